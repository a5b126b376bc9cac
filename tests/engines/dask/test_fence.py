"""The fence without Dask: what a scheduler, engines and workers say to each other, in any order."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from engine_calls import RecordedCall
from engine_work import linger, work

from asyncflow import WorkflowStep
from asyncflow.engines._dask import body as dask_body
from asyncflow.engines._dask import fence as dask_fence
from asyncflow.engines._dask import link as dask_link
from asyncflow.engines._dask.body import Kept, _Body, _FenceConnection
from asyncflow.engines._dask.fence import Fence
from asyncflow.engines._dask.link import Link
from asyncflow.engines._dask.wire import ENGINES, OPEN, WORKERS, Wire
from asyncflow.engines._remote.packing import pack_call

# It starts none, but it imports Dask, which the fast tests do without (conftest.py).
pytestmark = pytest.mark.process

_END = object()


class Comm:
    """One end of a connection in memory."""

    def __init__(self) -> None:
        self.other: Comm
        self._incoming: asyncio.Queue[Any] = asyncio.Queue()
        self._is_closed = False

    def closed(self) -> bool:
        return self._is_closed

    async def read(self) -> Any:
        message = await self._incoming.get()
        if message is _END:
            raise OSError("closed")
        return message

    async def write(self, message: Any) -> None:
        if self._is_closed:
            raise OSError("closed")
        self.other._incoming.put_nowait(message)

    def abort(self) -> None:
        for each in (self, self.other):
            each._is_closed = True
            each._incoming.put_nowait(_END)

    async def close(self) -> None:
        self.abort()


def connected() -> tuple[Comm, Comm]:
    one, other = Comm(), Comm()
    one.other, other.other = other, one
    return one, other


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


class Peer:
    """An engine or a worker, as the fence sees it."""

    def __init__(self, serve: Any, name: str) -> None:
        self.comm, theirs = connected()
        self._serving = asyncio.create_task(serve(theirs, name))

    async def say(self, *messages: tuple[Any, ...]) -> None:
        await self.comm.write(list(messages))
        await settle()

    async def hears(self) -> list[Any]:
        await settle()
        heard: list[Any] = []
        while not self.comm._incoming.empty():
            message = self.comm._incoming.get_nowait()
            heard.extend([message] if message in (OPEN, _END) else message)
        return heard[1:] if heard[:1] == [OPEN] else heard

    async def leave(self) -> None:
        self.comm.abort()
        await self._serving


@pytest.fixture
async def fence() -> Fence:
    fence, scheduler = Fence(), type("Scheduler", (), {"handlers": {}})()
    await fence.start(scheduler)
    assert scheduler.handlers == {ENGINES: fence.serve_engine, WORKERS: fence.serve_worker}
    return fence


@pytest.fixture
async def engine(fence: Fence) -> AsyncIterator[Peer]:
    peer = Peer(fence.serve_engine, "e")
    yield peer
    await peer.leave()


@pytest.fixture
async def worker(fence: Fence) -> AsyncIterator[Peer]:
    peer = Peer(fence.serve_worker, "w")
    yield peer
    await peer.leave()


async def test_a_body_may_begin_once_and_only_after_its_call(engine: Peer, worker: Peer) -> None:
    await worker.say(("begin", 1, "e"))
    assert await worker.hears() == []  # the call is on its way

    await engine.say(("call", 1, b"packed", ["a"]))
    assert await worker.hears() == [("yes", 1, "e", b"packed", ["a"])]

    await worker.say(("begin", 1, "e"), ("begin", 1, "unknown"))
    assert await worker.hears() == [("no", 1, "e"), ("no", 1, "unknown")]


async def test_a_stop_reaches_the_body_or_keeps_it_from_beginning(
    engine: Peer, worker: Peer
) -> None:
    await engine.say(("call", 1, b"", []), ("call", 2, b"", []))
    await worker.say(("begin", 1, "e"))

    await engine.say(("stop", 1), ("stop", 2))
    await worker.say(("begin", 2, "e"), ("ended", 1, "e", b"answer"))
    await engine.say(("stop", 1))  # its last word is on the way

    assert await worker.hears() == [("yes", 1, "e", b"", []), ("stop", 1, "e"), ("no", 2, "e")]
    assert await engine.hears() == [("refused", 2, ""), ("ended", 1, "w", b"answer")]


async def test_a_worker_that_goes_loses_its_bodies_and_ends_its_threads(
    engine: Peer, fence: Fence
) -> None:
    worker = Peer(fence.serve_worker, "w")
    await engine.say(*[("call", number, b"", []) for number in (1, 2, 3)])
    await worker.say(*[("begin", number, "e") for number in (1, 2, 3)])
    await worker.say(("abandoned", 1, "e"), ("ended", 1, "e", b""))
    await worker.say(("abandoned", 2, "e"), ("ended", 2, "e", b""), ("thread ended", 2, "e"))
    await engine.hears()

    await worker.leave()

    assert await engine.hears() == [
        ("lost", 3, "w", "its process is gone, frozen or cut off"),
        ("thread ended", 1, "w"),
    ]


async def test_a_worker_that_dask_removes_is_given_up_unless_it_answers(
    engine: Peer, fence: Fence, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dask_fence, "_ANSWER_WITHIN_S", 0.05)
    frozen, retiring = Peer(fence.serve_worker, "frozen"), Peer(fence.serve_worker, "retiring")
    await engine.say(("call", 1, b"", []), ("call", 2, b"", []))
    await frozen.say(("begin", 1, "e"))
    await retiring.say(("begin", 2, "e"))

    for name in ("frozen", "retiring", "another"):
        fence.remove_worker(None, name, stimulus_id="any")
    assert (await retiring.hears())[-1] == ("alive?", 0, "")
    await retiring.say(("alive", 0, ""))
    await asyncio.sleep(0.06)

    assert await engine.hears() == [("lost", 1, "frozen", "its process is gone, frozen or cut off")]
    await retiring.say(("ended", 2, "e", b"answer"))
    assert await engine.hears() == [("ended", 2, "retiring", b"answer")]
    await retiring.leave()


async def test_the_bodies_of_an_engine_that_goes_are_stopped(fence: Fence, worker: Peer) -> None:
    engine = Peer(fence.serve_engine, "e")
    await engine.say(("call", 1, b"", []), ("call", 2, b"", []))
    await worker.say(("begin", 1, "e"), ("begin", 3, "e"))
    await worker.hears()

    await engine.leave()
    assert await worker.hears() == [("no", 3, "e"), ("stop", 1, "e")]

    await worker.say(("ended", 1, "e", b""), ("begin", 2, "e"))  # no engine hears of it
    assert await worker.hears() == [("no", 2, "e")]


async def test_nothing_is_sent_on_a_wire_that_was_closed_by_the_other_side() -> None:
    mine, theirs = connected()
    wire = Wire(mine)
    wire.send("one")
    await settle()

    theirs.abort()
    wire.send("two")
    await settle()

    assert not wire.is_open
    assert await theirs.read() == [("one",)]
    with pytest.raises(OSError, match="closed"):
        await theirs.read()


async def test_a_wire_that_breaks_while_it_writes_is_closed() -> None:
    mine, theirs = connected()
    wire = Wire(mine)
    wire.send("one")
    theirs.abort()
    mine._is_closed = False  # as if the other side were still there

    async def write(message: Any) -> None:
        raise OSError("broken")

    mine.write = write  # type: ignore[method-assign]
    await settle()

    assert not wire.is_open


async def test_an_engine_that_loses_the_scheduler_loses_its_bodies_and_threads() -> None:
    mine, theirs = connected()
    link = Link("e", Wire(mine))
    calls = [RecordedCall(WorkflowStep("step", work)) for _ in range(2)]
    bodies = [link.announce(call.call, b"", []) for call in calls]
    await theirs.write([("abandoned", 1, "w"), ("ended", 1, "w", b""), ("began", 2, "w", 7)])
    await theirs.write([("beat", 2, "w")])
    await settle()
    (thread,) = calls[0].threads
    assert not thread.done()

    theirs.abort()
    await settle()

    assert not link.is_open
    assert bodies[1].ended.result() == ("lost", "the connection to the Dask scheduler was lost")
    assert bodies[1].worker == "w"
    assert thread.done()
    await link.aclose()


async def test_what_a_body_says_after_its_last_word_costs_no_other_body() -> None:
    mine, theirs = connected()
    link = Link("e", Wire(mine))
    calls = [RecordedCall(WorkflowStep("step", work)) for _ in range(2)]
    bodies = [link.announce(call.call, b"", []) for call in calls]

    await theirs.write([("ended", 1, "w", b""), ("saved", 1, "w", "json", b""), ("beat", 1, "w")])
    await theirs.write([("began", 2, "w", 7)])
    await settle()

    assert link.is_open
    assert bodies[1].worker == "w"
    theirs.abort()
    await link.aclose()


@pytest.mark.parametrize(
    ("said", "silent"), [([], "the Dask scheduler"), ([("began", 1, "w", 7)], "worker w")]
)
async def test_silence_after_a_stop_is_reported_with_who_should_answer(
    said: list[Any], silent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dask_link, "_ANSWER_WITHIN_S", 0)
    mine, theirs = connected()
    link, call = Link("e", Wire(mine)), RecordedCall(WorkflowStep("step", work))
    body = link.announce(call.call, b"", [])
    await theirs.write(said)
    await settle()

    body.stop()
    await settle()

    assert call.reasons == [f"{silent} has not answered for 0 s; the body may still run"]
    theirs.abort()
    await link.aclose()


# A worker.


class Sent:
    """A wire that records what is sent."""

    def __init__(self) -> None:
        self.messages: list[tuple[Any, ...]] = []
        self.is_open = True

    def send(self, *message: Any) -> None:
        self.messages.append(message)

    @property
    def said(self) -> list[str]:
        return [message[0] for message in self.messages]


def packed(action: Any = work, **policies: Any) -> bytes:
    return pack_call(RecordedCall(WorkflowStep("step", action, **policies)).call, None)


async def lasting() -> None:
    await asyncio.sleep(60)


async def test_the_beginning_of_a_body_is_written_before_it_can_block_the_loop() -> None:
    mine, theirs = connected()
    wire = Wire(mine)
    await settle()

    assert await _Body(wire, 1, "e", "w").begin()
    wire.send("what the body would say when it has ended")

    assert await theirs.read() == [("began", 1, "e", os.getpid())]
    await wire.aclose()


async def test_a_body_that_is_stopped_before_it_begins_never_does() -> None:
    sent = Sent()
    body = _Body(sent, 1, "e", "w")  # type: ignore[arg-type]
    running = asyncio.create_task(body.run([]))
    await settle()

    body.permit([packed(lasting), []])
    body.stop()

    assert await running is None
    assert sent.said == ["begin", "stopping", "refused"]
    assert not await body.begin()


async def test_an_attempt_that_is_stopped_before_its_first_line_is_refused() -> None:
    sent = Sent()
    body = _Body(sent, 1, "e", "w")  # type: ignore[arg-type]
    making = asyncio.create_task(body._make_attempt(packed(lasting), {}))
    await asyncio.sleep(0)

    body.stop()
    body.stop()

    assert body._report(await making) is None
    assert sent.said == ["stopping", "stopping", "refused"]


async def test_a_worker_that_closes_loses_the_bodies_that_wait_or_run() -> None:
    sent = Sent()
    bodies = [_Body(sent, number, "e", "w") for number in (1, 2, 3)]  # type: ignore[arg-type]
    tasks = [asyncio.create_task(body.run([])) for body in bodies]
    await settle()
    bodies[1].permit([packed(lasting), []])
    await settle()
    bodies[2].permit([packed(lasting), []])

    for task in tasks:  # as Dask does
        task.cancel()
    bodies[0].permit([packed(lasting), []])
    await settle()

    assert sorted(message[:2] for message in sent.messages if message[0] == "lost") == [
        ("lost", 1),
        ("lost", 2),
        ("lost", 3),
    ]


async def test_the_clean_up_of_a_body_is_cancelled_by_nobody(tmp_path: Path) -> None:
    diary = tmp_path / "diary"
    body = _Body(Sent(), 1, "e", "w")  # type: ignore[arg-type]
    running = asyncio.create_task(body.run([]))
    await settle()
    body.permit([packed(partial(linger, diary, 60.0, 0.05)), []])
    await settle()
    body.stop()
    await settle()

    running.cancel()
    body.lose_fence()
    body.stop()
    await asyncio.wait([running])

    assert diary.read_text().split() == ["begin", "end"]


async def test_a_body_that_was_neither_permitted_nor_refused_says_nothing() -> None:
    sent = Sent()
    body = _Body(sent, 1, "e", "w")  # type: ignore[arg-type]
    running = asyncio.create_task(body.run([]))
    await settle()
    running.cancel()
    await settle()

    body.permit(None)

    assert sent.said == ["begin"]


async def test_a_body_without_a_fence_never_begins() -> None:
    body = _Body(Sent(), 1, "e", "w")  # type: ignore[arg-type]
    running = asyncio.create_task(body.run([]))
    await settle()

    body.lose_fence()

    with pytest.raises(OSError, match="the connection to the fence has closed"):
        await running


async def test_a_thread_may_end_before_its_attempt_reports_that_it_is_abandoned() -> None:
    sent = Sent()
    body = _Body(sent, 1, "e", "w")  # type: ignore[arg-type]
    body.thread_ended()
    assert sent.said == []

    body._abandon()
    assert sent.said == ["abandoned", "thread ended"]


def test_dask_learns_how_large_an_output_is_that_stays() -> None:
    assert Kept(b"", 70).__sizeof__() == 70


# A worker's connection.


class Worker:
    address = "w"
    connection_args: dict[str, Any] = {}  # noqa: RUF012 - Dask's worker has it

    class scheduler:
        address = "s"


@pytest.fixture
def scheduler(monkeypatch: pytest.MonkeyPatch) -> Comm:
    """The scheduler's end of a worker's connection."""
    mine, theirs = connected()

    async def open_wire(*_: object) -> Wire:
        return Wire(mine)

    monkeypatch.setattr(dask_body, "open_wire", open_wire)
    return theirs


async def test_a_task_that_dask_runs_again_in_the_same_worker_does_nothing(
    scheduler: Comm,
) -> None:
    connection = _FenceConnection(Worker())
    running = asyncio.create_task(connection.run("e", 1, []))
    await settle()

    assert await connection.run("e", 1, []) is None
    await scheduler.write([("no", 1, "e")])
    assert await running is None
    await connection.close()


async def test_a_permission_that_comes_too_late_is_given_back(scheduler: Comm) -> None:
    connection = _FenceConnection(Worker())
    await settle()

    await scheduler.write([("yes", 1, "e", b"", []), ("stop", 2, "e"), ("no", 3, "e")])
    await settle()

    assert await scheduler.read() == [("lost", 1, "e", "it was closed or retired")]
    await connection.close()


async def test_a_worker_answers_that_it_is_alive_while_its_last_body_cleans_up(
    scheduler: Comm,
) -> None:
    connection = _FenceConnection(Worker())
    running = asyncio.create_task(connection.run("e", 1, []))
    await settle()
    await connection.close()

    await scheduler.write([("alive?", 0, "")])
    await settle()

    assert await scheduler.read() == [("begin", 1, "e")]
    assert await scheduler.read() == [("alive", 0, "")]
    running.cancel()
    await settle()


async def test_a_connection_closes_after_its_last_body(scheduler: Comm) -> None:
    connection = _FenceConnection(Worker())
    running = asyncio.create_task(connection.run("e", 1, []))
    await settle()
    await connection.close()
    assert not scheduler.closed()

    running.cancel()
    await settle()

    assert scheduler.closed()
    assert connection.is_over


async def test_a_connection_that_closes_stops_all_bodies(scheduler: Comm) -> None:
    connection = _FenceConnection(Worker())
    running = [asyncio.create_task(connection.run("e", number, [])) for number in (1, 2)]
    await settle()
    await scheduler.write([("yes", 1, "e", packed(lasting), [])])
    await settle()

    scheduler.abort()
    await asyncio.wait(running)

    assert running[0].result() is None
    assert isinstance(running[1].exception(), OSError)


async def test_a_connection_that_can_not_be_opened_fails_its_bodies(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def open_wire(*_: object) -> Wire:
        raise OSError("no scheduler")

    monkeypatch.setattr(dask_body, "open_wire", open_wire)
    connection = _FenceConnection(Worker())
    await connection.close()
    with pytest.raises(OSError, match="no scheduler"):
        await connection.run("e", 1, [])

    assert connection.is_over
