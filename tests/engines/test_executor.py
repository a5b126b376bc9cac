"""The engine of an executor: what it asks of one, and what it makes of what comes back.

The executor of these tests is run by hand. `test_contract` has real ones.
"""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import BrokenExecutor, Executor, Future
from typing import Any

import pytest
from engine_calls import RecordedCall

from asyncflow import NotSendableError, WorkerLostError, WorkflowStep, current_step
from asyncflow.engines.executor import ExecutorEngine


class HandExecutor(Executor):
    """Runs what it was given when a test says so.

    Args:
        max_workers: How many workers it claims to have.
    """

    def __init__(self, max_workers: int | None = None) -> None:
        if max_workers is not None:
            self._max_workers = max_workers
        self.given: list[tuple[Future[Any], Callable[[], Any]]] = []
        self.refuses: Exception | None = None
        self.is_shut_down = False
        self.was_waited_for = False

    def submit(self, function: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        if self.refuses is not None:
            raise self.refuses
        future: Future[Any] = Future()
        self.given.append((future, lambda: function(*args, **kwargs)))
        return future

    def begin(self, index: int = 0) -> Callable[[], None]:
        """Let a call begin, and return what ends it."""
        future, call = self.given.pop(index)
        assert future.set_running_or_notify_cancel()
        return lambda: future.set_result(in_a_thread(call))

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self.is_shut_down = True
        self.was_waited_for = wait


def in_a_thread(call: Callable[[], Any]) -> Any:
    """Call a function where no event loop runs."""
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(call()))
    thread.start()
    thread.join()
    return results[0]


@pytest.fixture
def executors() -> list[HandExecutor]:
    return []


@pytest.fixture
async def engine(executors: list[HandExecutor]) -> AsyncIterator[ExecutorEngine]:
    def make() -> HandExecutor:
        executors.append(HandExecutor())
        return executors[-1]

    async with ExecutorEngine(make) as engine:
        yield engine
    assert all(executor.is_shut_down for executor in executors)


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def add(a: int, b: int) -> int:
    await asyncio.sleep(0)
    return a + b


def where() -> tuple[str, bool, float | None]:
    step = current_step()
    return step.idempotency_key, step.cancel_requested, step.remaining_ms()


ADD = WorkflowStep("add", add, timeout_ms=1000)


def adding(**others: Any) -> RecordedCall:
    return RecordedCall(ADD, {"a": 1, "b": 41}, **others)


async def test_an_attempt_runs_in_the_executor(
    engine: ExecutorEngine, executors: list[HandExecutor]
) -> None:
    recorded = adding()
    attempt = asyncio.create_task(engine.run(recorded.call))
    await turns()

    assert recorded.workers == ["HandExecutor"]
    executors[0].begin()()
    assert await attempt == 42
    assert recorded.located == [f"{socket.gethostname()}:{os.getpid()}"]


async def test_a_plain_function_runs_in_the_worker_itself(
    engine: ExecutorEngine, executors: list[HandExecutor]
) -> None:
    recorded = RecordedCall(WorkflowStep("where", where, runs_in="thread", timeout_ms=None))
    attempt = asyncio.create_task(engine.run(recorded.call))
    await turns()

    executors[0].begin()()
    assert await attempt == ("run-1/where", False, None)


def wait_until_told() -> str:
    step = current_step()
    while not step.cancel_requested:
        time.sleep(0.001)
    return f"told with {step.remaining_ms()} ms left"


@pytest.mark.realtime
async def test_a_plain_function_is_told_when_its_time_is_up(
    engine: ExecutorEngine, executors: list[HandExecutor]
) -> None:
    recorded = RecordedCall(WorkflowStep("act", wait_until_told, runs_in="thread", timeout_ms=50))
    attempt = asyncio.create_task(engine.run(recorded.call))
    await turns()

    executors[0].begin()()
    assert await attempt == "told with 0.0 ms left"


async def sleep_long() -> str:
    try:
        await asyncio.sleep(100)
    except asyncio.CancelledError:
        return "cancelled where it ran"
    return "not cancelled"


@pytest.mark.realtime
async def test_an_async_action_is_cancelled_in_its_own_loop_when_its_time_is_up(
    engine: ExecutorEngine, executors: list[HandExecutor]
) -> None:
    recorded = RecordedCall(WorkflowStep("act", sleep_long, timeout_ms=50))
    attempt = asyncio.create_task(engine.run(recorded.call))
    await turns()

    executors[0].begin()()
    assert await attempt == "cancelled where it ran"


async def fail() -> None:
    raise KeyError("no")


def fail_plainly() -> None:
    raise KeyError("no")


@pytest.mark.parametrize(
    "step",
    [WorkflowStep("fail", fail), WorkflowStep("fail", fail_plainly, runs_in="thread")],
    ids=["loop", "thread"],
)
async def test_an_error_comes_home_as_itself(
    engine: ExecutorEngine, executors: list[HandExecutor], step: WorkflowStep
) -> None:
    attempt = asyncio.create_task(engine.run(RecordedCall(step).call))
    await turns()

    executors[0].begin()()
    with pytest.raises(KeyError, match="no") as raised:
        await attempt
    assert "in fail" in raised.value.__notes__[0]


async def test_an_action_that_the_worker_can_not_load_is_named(
    engine: ExecutorEngine, executors: list[HandExecutor]
) -> None:
    class Elsewhere:
        def __reduce__(self) -> Any:
            return fail_plainly, ()

    recorded = RecordedCall(ADD, {"a": 1, "b": Elsewhere()})
    attempt = asyncio.create_task(engine.run(recorded.call))
    await turns()

    executors[0].begin()()
    with pytest.raises(NotSendableError, match="KeyError"):
        await attempt


# Cancellation.


async def test_what_waits_for_a_worker_is_cancelled_for_real(
    engine: ExecutorEngine, executors: list[HandExecutor]
) -> None:
    attempt = asyncio.create_task(engine.run(adding().call))
    await turns()
    ((future, _),) = executors[0].given
    attempt.cancel()

    with pytest.raises(asyncio.CancelledError):
        await attempt
    assert future.cancelled()


async def test_a_body_that_runs_is_awaited_until_its_time_is_up_and_then_abandoned(
    engine: ExecutorEngine, executors: list[HandExecutor]
) -> None:
    loop = asyncio.get_running_loop()
    recorded = adding()
    attempt = asyncio.create_task(engine.run(recorded.call))
    await turns()
    end, begun_s = executors[0].begin(), loop.time()
    await asyncio.sleep(0.2)
    attempt.cancel()
    await asyncio.sleep(0.7)
    attempt.cancel()  # a second one changes nothing
    assert not attempt.done()

    with pytest.raises(asyncio.CancelledError):
        await attempt
    assert loop.time() - begun_s == pytest.approx(1.0)
    (thread,) = recorded.threads
    assert not thread.done()
    end()
    await thread


async def test_an_abandoned_body_occupies_its_worker() -> None:
    executor = HandExecutor(max_workers=1)
    async with ExecutorEngine(lambda: executor) as engine:
        first, second = (asyncio.create_task(engine.run(adding().call)) for _ in range(2))
        await turns()
        assert len(executor.given) == 1
        end = executor.begin()
        await asyncio.sleep(2)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        await turns()
        assert executor.given == []

        end()
        await turns()
        executor.begin()()
        assert await second == 42


@pytest.mark.virtual_time
async def test_the_wait_for_a_worker_counts_against_the_deadline_of_the_run() -> None:
    executor = HandExecutor(max_workers=1)
    loop, recorded = asyncio.get_running_loop(), adding(limit_s=None, deadline_s=3)
    async with ExecutorEngine(lambda: executor) as engine:
        first = asyncio.create_task(engine.run(adding().call))
        second = asyncio.create_task(engine.run(recorded.call))
        await turns()
        end_first = executor.begin()
        await asyncio.sleep(2)
        end_first()
        await first
        await turns()
        end_second, begun_s = executor.begin(), loop.time()
        second.cancel()
        await asyncio.wait([second])

        assert second.cancelled()
        assert loop.time() - begun_s == pytest.approx(1)
        assert len(recorded.threads) == 1
        end_second()


@pytest.mark.parametrize(("claimed", "asked", "given"), [(2, None, 2), (None, None, 5), (4, 3, 3)])
async def test_an_executor_has_as_many_attempts_as_it_has_workers(
    claimed: int | None, asked: int | None, given: int
) -> None:
    executor = HandExecutor(claimed)
    async with ExecutorEngine(lambda: executor, max_workers=asked) as engine:
        attempts = [asyncio.create_task(engine.run(adding().call)) for _ in range(5)]
        await turns()
        assert len(executor.given) == given
        for attempt in attempts:
            attempt.cancel()
        await asyncio.wait(attempts)


# Executors that break.


async def test_a_broken_pool_loses_its_attempts_and_is_replaced_once(
    engine: ExecutorEngine, executors: list[HandExecutor]
) -> None:
    attempts = [asyncio.create_task(engine.run(adding(attempt=2).call)) for _ in range(3)]
    await turns()
    for future, _ in executors[0].given:
        future.set_running_or_notify_cancel()
        future.set_exception(BrokenExecutor("a child process terminated"))

    for attempt in attempts:
        with pytest.raises(WorkerLostError, match="a child process terminated") as raised:
            await attempt
    assert (raised.value.attempt, raised.value.worker) == (2, "HandExecutor")
    assert len(executors) == 2
    assert executors[0].is_shut_down
    assert not executors[0].was_waited_for  # the event loop would wait for its workers
    again = asyncio.create_task(engine.run(adding().call))
    await turns()
    executors[1].begin()()
    assert await again == 42


async def test_a_pool_that_broke_while_it_was_idle_is_replaced_before_an_attempt(
    engine: ExecutorEngine, executors: list[HandExecutor]
) -> None:
    executors[0].refuses = BrokenExecutor("it broke")
    attempt = asyncio.create_task(engine.run(adding().call))
    await turns()

    executors[1].begin()()
    assert await attempt == 42


async def test_a_factory_of_broken_pools_fails_the_attempt() -> None:
    def broken() -> HandExecutor:
        executor = HandExecutor(max_workers=1)
        executor.refuses = BrokenExecutor("it never worked")
        return executor

    async with ExecutorEngine(broken) as engine:
        for _ in range(2):  # the worker of the first attempt is free again
            with pytest.raises(WorkerLostError, match="it never worked"):
                await engine.run(adding().call)


async def test_an_attempt_that_another_party_cancels_in_the_executor_is_lost(
    engine: ExecutorEngine, executors: list[HandExecutor]
) -> None:
    attempt = asyncio.create_task(engine.run(adding().call))
    await turns()
    executors[0].given[0][0].cancel()

    with pytest.raises(WorkerLostError, match="CancelledError"):
        await attempt
    assert len(executors) == 1


# What is refused.


def test_a_factory_is_due_and_no_executor() -> None:
    with pytest.raises(TypeError, match="lambda: ProcessPoolExecutor"):
        ExecutorEngine(HandExecutor())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_workers must be at least 1"):
        ExecutorEngine(HandExecutor, max_workers=0)


async def test_what_is_no_executor_is_refused_when_the_engine_opens() -> None:
    with pytest.raises(TypeError, match="must return a concurrent"):
        await ExecutorEngine(lambda: 7).__aenter__()  # type: ignore[arg-type,return-value]


async def test_the_executor_of_a_dask_client_is_refused_and_the_dask_engine_named() -> None:
    # Not the real one: its library changes how all errors are pickled in this process.
    kind = type("ClientExecutor", (HandExecutor,), {"__module__": "distributed.cfexecutor"})
    with pytest.raises(TypeError, match=r"use DaskEngine\(client\)"):
        await ExecutorEngine(kind).__aenter__()


async def test_steps_that_an_executor_can_not_serve_are_refused_before_the_run(
    engine: ExecutorEngine,
) -> None:
    engine.check(ADD)
    with pytest.raises(ValueError, match="step 'add': an executor can't pass heartbeats on"):
        engine.check(WorkflowStep("add", add, heartbeat_ms=100))
    lock = threading.Lock()
    with pytest.raises(NotSendableError, match="step 'locked'"):
        engine.check(WorkflowStep("locked", lambda: lock))
    with pytest.raises(RuntimeError, match="open already"):
        await engine.__aenter__()


async def test_an_engine_serves_the_loop_in_which_it_is_open(engine: ExecutorEngine) -> None:
    with pytest.raises(RuntimeError, match="use 'async with'"):
        ExecutorEngine(HandExecutor).check(ADD)

    async def check() -> None:
        engine.check(ADD)

    with pytest.raises(RuntimeError, match="another event loop"):
        await asyncio.to_thread(asyncio.run, check())


async def test_closing_waits_for_the_executor_although_it_is_cancelled() -> None:
    has_begun, may_end = threading.Event(), threading.Event()

    class SlowExecutor(HandExecutor):
        def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
            has_begun.set()
            may_end.wait()
            super().shutdown()

    executor = SlowExecutor()

    async def use() -> None:
        async with ExecutorEngine(lambda: executor):
            pass

    using = asyncio.create_task(use())
    loop: Any = asyncio.get_running_loop()
    with loop.standing_still():
        await asyncio.to_thread(has_begun.wait)
        using.cancel()
        await turns()
        assert not using.done()
        may_end.set()
        with pytest.raises(asyncio.CancelledError):
            await using
    assert executor.is_shut_down
