"""A web service in four processes that share one limit of a provider.

    pip install '.[web,journal]' fastapi httpx
    uvicorn examples.workers.provider:app --port 9000
    uvicorn examples.workers.app:app --port 8000 --workers 4 --timeout-graceful-shutdown 10

The provider, a stand-in for a language model, answers 8 calls at a time and refuses any more with
429 and ``Retry-After``. Now and then it refuses all calls for a second. Then:

    curl localhost:8000/summaries -H 'content-type: application/json' \
        -d '["a long story about dogs", "another one about cats"]'
    curl localhost:9000/seen

``seen`` tells that however many requests come, and to whichever workers, the provider never has
more than 8 calls, and that a refusal of one call holds up those of all workers. The environment
configures it:

- ``DATABASE_URL``: a PostgreSQL database for the journal, which also has the shares of the limit;
  by default the file ``summaries.db``
- ``PROVIDER_URL``: where the provider is; by default http://127.0.0.1:9000
"""
