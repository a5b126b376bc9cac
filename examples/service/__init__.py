"""A web service that runs pipelines: FastAPI, a journal, clients from its lifespan, graceful stops.

    pip install '.[web,postgres]' fastapi httpx
    python -m examples.service

Then:

    curl -i localhost:8000/orders -H 'content-type: application/json' \
        -d '{"customer": "ada", "items": [{"sku": "tea", "quantity": 2}]}'
    curl localhost:8000/orders/ID
    curl -N localhost:8000/orders/ID/events
    curl -X DELETE localhost:8000/orders/ID

An order of more than 1,000.00 waits for its approval, without a process:

    curl -i localhost:8000/orders -H 'content-type: application/json' \
        -d '{"customer": "ada", "items": [{"sku": "piano", "quantity": 300}]}'
    curl localhost:8000/orders/ID/approval -H 'content-type: application/json' -d '{"yes": true}'

Three tenants, acme, initech and umbrella, may send lists of orders of any length. They wait in the
journal, and a tenant has two under way at a time. A statement is made of a tenant's orders when
nobody has asked for another one within a second:

    curl localhost:8000/tenants/acme/orders -H 'content-type: application/json' \
        -d '[{"customer": "ada", "items": [{"sku": "tea", "quantity": 2}]}]'
    curl localhost:8000/tenants/acme/orders?status=FAILED
    curl -X POST localhost:8000/tenants/acme/statement
    curl localhost:8000/queue

and the runs in a browser: http://localhost:8000/runs-ui/. The environment configures it:

- ``DATABASE_URL``: a PostgreSQL database for journal and orders; by default two SQLite files
- ``SHOP_URL``: the shop that knows prices and takes payments; by default a stand-in in this process
- ``MAX_RUNS``: how many orders are under way at a time; 100 by default
- ``GRACE_MS``: how long running steps may take on SIGTERM; 10,000 by default
- ``STATEMENT_DELAY_MS``: how long no other statement must be asked for; 1,000 by default
- ``RESUME_EVERY_S``: how often to look for runs whose process has died; 30 by default
- ``UI_TOKEN``: the token of the pages; without it, only this machine can open them

``Dockerfile`` and ``compose.yaml`` beside this file deploy two replicas with a PostgreSQL server:

    docker compose -f examples/service/compose.yaml up --build
"""
