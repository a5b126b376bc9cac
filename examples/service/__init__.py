"""A web service that runs pipelines: FastAPI, a journal, clients from its lifespan, graceful stops.

    pip install '.[web,postgres]' fastapi httpx
    python -m examples.service

Then:

    curl -i localhost:8000/orders -H 'content-type: application/json' \
        -d '{"customer": "ada", "items": [{"sku": "tea", "quantity": 2}]}'
    curl localhost:8000/orders/ID
    curl -N localhost:8000/orders/ID/events
    curl -X DELETE localhost:8000/orders/ID

and the runs in a browser: http://localhost:8000/runs-ui/. The environment configures it:

- ``DATABASE_URL``: a PostgreSQL database for journal and orders; by default two SQLite files
- ``SHOP_URL``: the shop that knows prices and takes payments; by default a stand-in in this process
- ``MAX_RUNS``: how many orders are under way at a time; 100 by default
- ``GRACE_MS``: how long running steps may take on SIGTERM; 10,000 by default
- ``UI_TOKEN``: the token of the pages; without it, only this machine can open them

``Dockerfile`` and ``compose.yaml`` beside this file deploy two replicas with a PostgreSQL server:

    docker compose -f examples/service/compose.yaml up --build
"""
