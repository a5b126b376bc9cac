"""The web service: an ASGI application that starts and queues orders, reports and cancels them."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Annotated, Any
from uuid import uuid4

from fastapi import Body, FastAPI, Header, HTTPException, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from sse_starlette import EventSourceResponse

from asyncflow import (
    RunAlreadyActiveError,
    RunCancelledError,
    RunIdInUseError,
    RunNotFoundError,
    RunStatus,
)
from asyncflow.journal import PostgresJournal, QueueStats, SQLiteJournal
from asyncflow.service import ClientDisconnectedError, Service, ServiceUnavailableError
from asyncflow.web import app as pages_of

from .clients import open_db, open_http
from .pipeline import Order, Receipt, Tenant, orders, quotes, statements


class OrderState(BaseModel):
    """What is known of an order."""

    order_id: str
    status: str
    """A `RunStatus`, such as ``RUNNING``, ``WAITING`` or ``PASSED``."""
    waits_for: str | None = None
    """``"signal"`` for an approval; before its start ``"time"``, ``"key"`` or ``"place"``."""
    steps: dict[str, str]
    """The status of each step."""
    receipt: Receipt | None = None
    error: str | None = None


LANES = 2
"""How many orders of a list a tenant has under way at a time."""

IdempotencyKey = Annotated[str | None, Header(pattern="^[A-Za-z0-9_-]{1,200}$")]


class Quote(BaseModel):
    cents: int


def create_app() -> FastAPI:
    """Return the application, as the environment configures it."""
    dsn = os.environ.get("DATABASE_URL")
    journal = PostgresJournal(dsn) if dsn else SQLiteJournal("runs.db")
    service = Service(
        [orders, quotes, statements],
        journal=journal,
        resume_every_s=float(os.environ.get("RESUME_EVERY_S", "30")),
        keep=timedelta(days=90),
        max_runs=int(os.environ.get("MAX_RUNS", "100")),
        grace_ms=float(os.environ.get("GRACE_MS", "10000")),
        resources={"db": open_db, "http": open_http},
    )
    stored_orders = orders.with_options(journal=journal)  # reads reports with their types
    pages = pages_of(journal, pipelines=service.pipelines, token=os.environ.get("UI_TOKEN") or None)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        # In reverse order at the end: runs that were resumed from a page end before the service
        # closes what they use, and the service drains before its journal is closed.
        async with journal, service, pages.router.lifespan_context(pages):
            yield

    app = FastAPI(title="Orders", lifespan=lifespan)
    app.mount("/runs-ui", pages)

    @app.post("/orders", status_code=202)
    async def create(
        order: Order,
        request: Request,
        response: Response,
        wait: bool = False,
        idempotency_key: IdempotencyKey = None,
    ) -> OrderState:
        """Accept an order. A client that repeats a request with its key repeats nothing else."""
        try:
            run = await service.start(
                orders,
                {"order": order},
                run_id=idempotency_key,
                attributes={"tenant": order.tenant},
            )
        except RunAlreadyActiveError as active:
            run_id = active.run_id
            await check_same(run_id, order)
        except ValueError as error:
            raise HTTPException(422, "the key belongs to another order") from error
        else:
            run_id = run.run_id
            if wait:  # an order is an order, also if the client does not wait for its end
                await service.answer(run, request, on_disconnect="detach")
                response.status_code = 200
        response.headers["Location"] = f"/orders/{run_id}"
        return await state_of(run_id)

    @app.get("/orders/{order_id}")
    async def read(order_id: str) -> OrderState:
        return await state_of(order_id)

    @app.get("/orders/{order_id}/events")
    async def follow(
        order_id: str, last_event_id: Annotated[int, Header()] = 0
    ) -> EventSourceResponse:
        await journal.record(order_id)  # 404 before the stream begins
        return EventSourceResponse(events_of(order_id, last_event_id))

    @app.delete("/orders/{order_id}", status_code=202)
    async def cancel(order_id: str) -> OrderState:
        await service.cancel(order_id, "the customer has cancelled the order")
        return await state_of(order_id)

    @app.post("/orders/{order_id}/approval")
    async def approve(
        order_id: str,
        yes: Annotated[bool, Body()],
        by: Annotated[str | None, Body(min_length=1, max_length=200)] = None,
        note: Annotated[str, Body(max_length=10_000)] = "",
    ) -> OrderState:
        """Approve or refuse an order; the first answer counts. ``by`` and ``note`` go with it."""
        try:
            await service.signal(order_id, "approved", yes, sent_by=by, note=note)
        except ValueError as error:
            raise HTTPException(409, str(error)) from error
        return await state_of(order_id)

    @app.post("/tenants/{tenant}/orders", status_code=202)
    async def create_many(
        tenant: Tenant, many: list[Order], idempotency_key: IdempotencyKey = None
    ) -> list[str]:
        """Accept any number of orders, of which the tenant has a few under way at a time.

        An order that waits for its approval is under way: it keeps its lane, and holds up those
        behind it, but no other tenant.
        """
        prefix = idempotency_key or uuid4().hex
        try:
            return [
                await service.enqueue(
                    orders,
                    {"order": order.model_copy(update={"tenant": tenant})},
                    run_id=f"{prefix}-{number}",
                    key=f"{tenant} {number % LANES}",
                    attributes={"tenant": tenant},
                )
                for number, order in enumerate(many)
            ]
        except RunIdInUseError as error:
            raise HTTPException(422, "the key belongs to other orders") from error

    @app.get("/tenants/{tenant}/orders")
    async def list_orders(tenant: Tenant, status: RunStatus | None = None) -> list[str]:
        """Return the latest orders of a tenant."""
        found = await journal.runs(status, pipeline="orders", attributes={"tenant": tenant})
        return [record.run_id for record in found]

    @app.post("/tenants/{tenant}/statement", status_code=202)
    async def state(tenant: Tenant) -> str:
        """Make a statement when no other one was asked for within a second: the newest wins."""
        return await service.enqueue(
            statements,
            {"tenant": tenant},
            key=tenant,
            on_conflict="replace",
            delay_ms=float(os.environ.get("STATEMENT_DELAY_MS", "1000")),
            attributes={"tenant": tenant},
        )

    @app.post("/quotes")
    async def quote(order: Order, request: Request) -> Quote:
        """Return what an order would cost. Without its client the run is pointless: it ends."""
        run = await service.start(quotes, {"order": order})
        report = await service.answer(run, request, on_disconnect="cancel")
        report.raise_for_failures()
        return Quote(cents=report["price"].output)

    @app.get("/health")
    async def health(response: Response) -> dict[str, Any]:
        """Whether a load balancer may send requests to this replica."""
        if not service.is_ready:
            response.status_code = 503
        return {"ready": service.is_ready, "runs": len(service.runs)}

    @app.get("/queue")
    async def queue() -> QueueStats:
        """How many runs wait to start, for all replicas."""
        return await journal.queue()

    async def check_same(order_id: str, order: Order) -> None:
        """Check that a repeated request is for the order that is under way."""
        try:
            report = await stored_orders.report(order_id)
        except RunNotFoundError as error:  # the first request has not been answered either
            detail = "a request with this key is being accepted"
            raise HTTPException(409, detail, {"Retry-After": "1"}) from error
        if report.inputs["order"] != order:
            raise HTTPException(422, "the key belongs to another order")

    async def state_of(order_id: str) -> OrderState:
        """Return the state of an order, whichever replica it runs in."""
        record = await journal.record(order_id)
        report = await stored_orders.report(order_id)
        failed = report.failed
        return OrderState(
            order_id=order_id,
            status=record.status,
            waits_for=record.waits_for.kind if record.waits_for else None,
            steps={name: result.status for name, result in report.items()},
            receipt=report["book"].output,  # none of an order that was refused
            error=f"{failed[0].step_name}: {failed[0].error}" if failed else report.stop_reason,
        )

    async def events_of(order_id: str, after: int) -> AsyncIterator[dict[str, Any]]:
        async for stored in service.events(order_id, after):
            names = ("step", "attempt", "at_ms", "status", "reason")
            data = {name: getattr(stored.event, name, None) for name in names}
            yield {
                "id": str(stored.position),
                "event": type(stored.event).__name__,
                "data": json.dumps(
                    {name: value for name, value in data.items() if value is not None}
                ),
            }

    @app.exception_handler(ServiceUnavailableError)
    async def unavailable(_: Request, error: ServiceUnavailableError) -> JSONResponse:
        headers = {"Retry-After": str(error.retry_after_s)}
        return JSONResponse({"detail": str(error)}, 503, headers)

    @app.exception_handler(RunNotFoundError)
    async def not_found(_: Request, error: RunNotFoundError) -> JSONResponse:
        return JSONResponse({"detail": f"there is no order {error.run_id!r}"}, 404)

    @app.exception_handler(RunCancelledError)
    async def cancelled(_: Request, error: RunCancelledError) -> JSONResponse:
        return JSONResponse({"detail": f"order {error.run_id!r} was cancelled"}, 409)

    @app.exception_handler(ClientDisconnectedError)
    async def gone(_: Request, error: ClientDisconnectedError) -> Response:
        return Response(status_code=499)  # only for the access log: the client is gone

    return app


app = create_app()
