"""Pipelines inside a long-lived service: as many runs as it can take, each to its end.

A `Service` starts, resumes, streams and cancels runs for as long as a web service lives::

    service = Service([orders], journal=journal, max_runs=200)

    @asynccontextmanager
    async def lifespan(app):
        async with journal, service:
            yield

    app = FastAPI(lifespan=lifespan)

    @app.post("/orders")
    async def create(order: Order, request: Request) -> Receipt:
        run = await service.start(orders, {"order": order})
        report = await service.answer(run, request)
        ...

It knows no web framework, and needs no extra.
"""

from asyncflow.service._errors import (
    ClientDisconnectedError,
    ServiceFullError,
    ServiceStoppingError,
    ServiceUnavailableError,
)
from asyncflow.service._service import Service, ServiceStats

__all__ = [
    "ClientDisconnectedError",
    "Service",
    "ServiceFullError",
    "ServiceStats",
    "ServiceStoppingError",
    "ServiceUnavailableError",
]

for _name in __all__:
    globals()[_name].__module__ = __name__  # not that of a private module
