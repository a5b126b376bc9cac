"""A web service for the tests, in a process of its own: ``python -m tests.service.site``.

It listens at a free port and prints it. Its pipeline ``work`` has three steps in a row. Each takes
``pause_s``, and then appends a line to a file: its effect, which must happen once. The pipeline
``orders`` is for `tests.load.kills`, and ``approvals`` for `tests.load.waits`.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import resource
import signal
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from asyncflow import (
    JournalError,
    Orchestrator,
    Pipeline,
    RunAlreadyActiveError,
    Signal,
    WorkflowStep,
    after,
    current_step,
)
from asyncflow.journal import PostgresJournal, SQLiteJournal
from asyncflow.service import ClientDisconnectedError, Service, ServiceUnavailableError

work = Pipeline("work")
effects: list[int] = []
"""The descriptor of the file."""
stopped_at: dict[str, float] = {}
"""When the step of a run was cancelled, by the clock of the machine."""


async def act(pause_s: float) -> int:
    step = current_step()
    try:
        await asyncio.sleep(pause_s)
    except asyncio.CancelledError:
        stopped_at[step.run_id] = time.time()
        raise
    if effects:
        os.write(effects[0], f"{step.run_id}/{step.step_name}\n".encode())
    return 1


@work.step
async def first(pause_s: float) -> int:
    return await act(pause_s)


@work.step
async def second(pause_s: float, before: int = after(first)) -> int:
    return before + await act(pause_s)


@work.step
async def third(pause_s: float, before: int = after(second)) -> int:
    return before + await act(pause_s)


# Orders that start orders, or kill their process, with a resource that may be down.

services: list[Service] = []
folders: list[Path] = []
"""Where each effect of an order is a file, so that it happens once however often it is tried."""


@asynccontextmanager
async def open_stock() -> AsyncIterator[Path]:
    if Path(folders[0], "down").exists():
        raise ConnectionError("the stock is down")
    yield folders[0]


orders = Pipeline("orders", resources={"stock": open_stock})


@orders.step
async def pack(stock: Path, pause_s: float) -> None:
    await asyncio.sleep(pause_s)


@orders.step(max_retries=10_000, retry=200, timeout_ms=None)
async def start_others(others: int, pause_s: float, packed: None = after(pack)) -> None:
    for number in range(others):
        run_id = f"{current_step().run_id}.{number}"
        with suppress(RunAlreadyActiveError):  # by an earlier attempt
            await services[0].start(
                orders, {"others": 0, "pause_s": pause_s, "poison": False}, run_id=run_id
            )


@orders.step
async def ship(stock: Path, pause_s: float, poison: bool, _: None = after(start_others)) -> None:
    await asyncio.sleep(pause_s)
    if poison:
        os.kill(os.getpid(), signal.SIGKILL)
    Path(stock, current_step().run_id).touch()


# Runs that wait for signals, for `tests.load.waits`.

ROUNDS = 3
"""How many signals each of these runs waits for, one after the other."""


async def publish() -> None:
    step = current_step()
    if effects:
        os.write(effects[0], f"{step.run_id}/{step.step_name} {time.time()}\n".encode())


approvals = Orchestrator(
    [
        step
        for number in range(ROUNDS)
        for step in (
            WorkflowStep(
                f"approved{number}", Signal(int), [f"publish{number - 1}"] if number else []
            ),
            WorkflowStep(f"publish{number}", publish, [f"approved{number}"]),
        )
    ],
    name="approvals",
)


# What a service often does: it asks two others at once, and answers with what they say.


class Item(BaseModel):
    sku: str
    quantity: int


class Offer(BaseModel):
    cents: int
    in_stock: bool


async def shop(request: Request) -> Response:
    await asyncio.sleep(0.001)
    return JSONResponse({"price": 100, "stock": 7})


http = httpx.AsyncClient(
    transport=httpx.ASGITransport(Starlette(routes=[Route("/{what}", shop)])),
    base_url="http://shop",
)
offers = Pipeline("offers")


@offers.step(max_retries=3, timeout_ms=5_000)
async def price(item: Item) -> int:
    answer = (await http.get("/price", params={"sku": item.sku})).raise_for_status()
    return int(answer.json()["price"])


@offers.step(max_retries=3, timeout_ms=5_000)
async def stock(item: Item) -> int:
    answer = (await http.get("/stock", params={"sku": item.sku})).raise_for_status()
    return int(answer.json()["stock"])


@offers.step
async def offer(item: Item, cents: int = after(price), left: int = after(stock)) -> Offer:
    return Offer(cents=cents * item.quantity, in_stock=left >= item.quantity)


async def offer_by_hand(item: Item) -> Offer:
    async def call(step: Callable[[Item], Awaitable[int]]) -> int:
        for attempt in range(3):
            try:
                return await asyncio.wait_for(step(item), 5)
            except Exception:
                if attempt == 2:
                    raise
        raise AssertionError

    async with asyncio.TaskGroup() as group:
        cents, left = group.create_task(call(price)), group.create_task(call(stock))
    return await offer(item, cents.result(), left.result())


async def pauses_by_hand(pause_s: float) -> int:
    """What `work` does, without effects."""
    result = 0
    for _ in range(3):
        result += await asyncio.wait_for(pause(pause_s), 30)
    return result


async def pause(pause_s: float) -> int:
    await asyncio.sleep(pause_s)
    return 1


def make_app(options: argparse.Namespace) -> Starlette:
    journal: Any = None
    if options.journal.startswith("postgresql:"):
        journal = PostgresJournal(options.journal, lease_s=options.lease_s)
    elif options.journal:
        journal = SQLiteJournal(options.journal, lease_s=options.lease_s)
    service = Service(
        [work, offers, orders, approvals],
        journal=journal,
        max_runs=options.max_runs,
        grace_ms=options.grace_ms,
        resume_every_s=0.5,
    )
    services[:] = [service]

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with nullcontext() if journal is None else journal, service:
            yield

    async def start(request: Request) -> Response:
        """Start a run, and don't wait for it."""
        run = await service.start(
            work,
            {"pause_s": float(request.query_params["pause_s"])},
            run_id=request.path_params["run_id"],
        )
        return PlainTextResponse(run.run_id, 202)

    async def wait(request: Request) -> Response:
        """Run, and return the result."""
        query = request.query_params
        run = await service.start(
            work, {"pause_s": float(query["pause_s"])}, run_id=request.path_params["run_id"]
        )
        mode: Any = query.get("on_disconnect", "cancel")
        report = await service.answer(run, request, on_disconnect=mode)
        return PlainTextResponse(str(report["third"].output))

    async def order(request: Request) -> Response:
        """Start an order, and don't wait for it."""
        query, run_id = request.query_params, request.path_params["run_id"]
        with suppress(RunAlreadyActiveError):  # the response to an earlier request was lost
            await service.start(
                orders,
                {
                    "others": int(query["others"]),
                    "pause_s": float(query["pause_s"]),
                    "poison": query["poison"] == "True",
                },
                run_id=run_id,
            )
        return PlainTextResponse(run_id, 202)

    async def cancel(request: Request) -> Response:
        was_asked = await service.cancel(request.path_params["run_id"], "the customer asked for it")
        return PlainTextResponse(str(was_asked))

    async def start_approval(request: Request) -> Response:
        with suppress(RunAlreadyActiveError):
            await service.start(approvals, run_id=request.path_params["run_id"])
        return PlainTextResponse("")

    async def approve(request: Request) -> Response:
        query = request.query_params
        await service.signal(request.path_params["run_id"], query["name"], int(query["value"]))
        return PlainTextResponse("")

    async def pauses(request: Request) -> Response:
        pause_s = float(request.query_params["pause_s"])
        if request.path_params["how"] == "by-hand":
            return PlainTextResponse(str(await pauses_by_hand(pause_s)))
        run = await service.start(work, {"pause_s": pause_s})
        report = await service.answer(run, request)
        return PlainTextResponse(str(report["third"].output))

    async def offers_of(request: Request) -> Response:
        item = Item.model_validate_json(await request.body())
        if request.path_params["how"] == "by-hand":
            made = await offer_by_hand(item)
        else:
            run = await service.start(offers, {"item": item})
            report = await service.answer(run, request)
            report.raise_for_failures()
            made = report["offer"].output
        return Response(made.model_dump_json(), media_type="application/json")

    async def figures(_: Request) -> Response:
        gc.collect()
        own = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
        return JSONResponse(
            {
                "runs": [run.run_id for run in service.runs],
                "tasks": len(asyncio.all_tasks()),
                "descriptors": own,
                "rss_kb": _rss_kb(),
                "cpu_s": time.process_time(),
                "stopped_at": stopped_at,
            }
        )

    async def locked(_: Request, error: Exception) -> Response:
        return PlainTextResponse(str(error), 503)

    async def full(_: Request, error: Exception) -> Response:
        assert isinstance(error, ServiceUnavailableError)
        return PlainTextResponse(str(error), 503, {"Retry-After": str(error.retry_after_s)})

    async def gone(_: Request, error: Exception) -> Response:
        return Response(status_code=499)

    return Starlette(
        routes=[
            Route("/start/{run_id}", start, methods=["POST"]),
            Route("/wait/{run_id}", wait, methods=["POST"]),
            Route("/orders/{run_id}", order, methods=["POST"]),
            Route("/cancel/{run_id}", cancel, methods=["POST"]),
            Route("/approvals/{run_id}", start_approval, methods=["POST"]),
            Route("/approve/{run_id}", approve, methods=["POST"]),
            Route("/pauses/{how}", pauses, methods=["POST"]),
            Route("/offers/{how}", offers_of, methods=["POST"]),
            Route("/figures", figures),
        ],
        exception_handlers={
            JournalError: locked,
            ServiceUnavailableError: full,
            ClientDisconnectedError: gone,
        },
        lifespan=lifespan,
    )


def _rss_kb() -> int:
    """Return how much memory this process has now; where that can't be told, had at most."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return pages * resource.getpagesize() // 1024


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--journal", default="", help="a path or a DSN; by default there is none")
    parser.add_argument("--effects", default="", help="the file of the effects")
    parser.add_argument("--folder", default="", help="that of the effects of orders")
    parser.add_argument("--grace-ms", type=float, default=10_000)
    parser.add_argument("--max-runs", type=int, default=1_000)
    parser.add_argument("--lease-s", type=float, default=2.0)
    parser.add_argument("--patience-s", type=int, default=10)
    options = parser.parse_args()
    if options.effects:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        effects.append(os.open(options.effects, flags, 0o600))
    folders[:] = [Path(options.folder)]
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(2_048)
        print(listening.getsockname()[1], flush=True)
        config = uvicorn.Config(
            make_app(options),
            log_level="error",
            timeout_graceful_shutdown=options.patience_s,
        )
        uvicorn.Server(config).run(sockets=[listening])


if __name__ == "__main__":
    main()
