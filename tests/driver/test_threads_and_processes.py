"""Plain functions as steps: threads, which cannot be stopped, and processes, which can.

In virtual time the clock stands still while a thread runs, so limits are tested with a clock that
advances when a thread has started.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import anyio
import process_work as work
import pytest
from third_party import step_tasks

from asyncflow import (
    Pipeline,
    Pool,
    StepStatus,
    StepTimeoutError,
    WorkflowStep,
    current_step,
    run_pipeline,
)
from asyncflow.events import StepCancelled, StepSucceeded, ThreadAbandoned

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="nothing")


FAILED, CANCELLED = StepStatus.FAILED, StepStatus.CANCELLED


class Blocking:
    """A function that runs until it is released and that counts how many of its calls overlap."""

    def __init__(self):
        self.started = threading.Event()
        self.release = threading.Event()
        self.calls = self.running = self.highest = 0
        self.lock = threading.Lock()
        self.on_start = lambda: None

    def __call__(self):
        with self.lock:
            self.calls += 1
            self.running += 1
            self.highest = max(self.highest, self.running)
        self.started.set()
        self.on_start()
        assert self.release.wait(30)
        with self.lock:
            self.running -= 1
        return "done"


@pytest.fixture
def blocking():
    function = Blocking()
    yield function
    function.release.set()


async def until(condition):
    """Wait in real time, also in a loop with a virtual clock."""
    for _ in range(30_000):
        if condition():
            return
        await asyncio.to_thread(threading.Event().wait, 0.001)
    raise AssertionError("the condition never became true")


class StoppedClock(asyncio.SelectorEventLoop):
    """A loop whose time passes only on request, also while a thread runs."""

    now = 1_000.0  # as that of `VirtualTimeLoop`, and for the same reason

    def time(self):
        return self.now

    def advance(self, ms):
        self.now += ms / 1000


def run_when_started(main, blocking, ms):
    """Run with a clock that advances by `ms` when the function first starts."""
    with asyncio.Runner(loop_factory=StoppedClock) as runner:
        loop = runner.get_loop()

        def advance():
            blocking.on_start = lambda: None
            loop.call_soon_threadsafe(loop.advance, ms)

        blocking.on_start = advance
        return runner.run(main)


def after_turns(callback, turns=20):
    """Call back after more turns of the loop than any operation here takes."""
    loop = asyncio.get_running_loop()
    if turns:
        loop.call_soon(after_turns, callback, turns - 1)
    else:
        callback()


def test_a_thread_that_exceeds_its_limit_fails_on_time_and_is_abandoned(blocking):
    async def main():
        events = []
        report = await run_pipeline(
            [WorkflowStep("a", blocking, timeout_ms=30, runs_in="thread")],
            observers=[events.append],
        )
        assert blocking.running == 1
        return report, events

    report, events = run_when_started(main(), blocking, 30)

    assert isinstance(report["a"].error, StepTimeoutError)
    assert report["a"].abandoned
    assert sum(isinstance(event, ThreadAbandoned) for event in events) == 1
    assert report["a"].duration_ms == pytest.approx(30)


@pytest.mark.parametrize(
    ("limits", "of_run", "kind"),
    [
        ({"timeout_ms": None, "deadline_ms": 30}, None, "step"),
        ({"timeout_ms": None, "heartbeat_ms": 30}, None, "heartbeat"),
        ({"timeout_ms": None}, 30, "run"),
    ],
)
def test_a_thread_is_abandoned_at_its_first_limit(blocking, limits, of_run, kind):
    step = WorkflowStep("a", blocking, runs_in="thread", **limits)

    report = run_when_started(run_pipeline([step], deadline_ms=of_run), blocking, 30)

    assert report["a"].error.kind == kind
    assert report["a"].abandoned
    assert report["a"].status is (CANCELLED if kind == "run" else FAILED)


def test_a_stopped_thread_is_abandoned_when_it_misses_its_heartbeat(blocking):
    async def fails():
        await until(blocking.started.is_set)
        after_turns(partial(asyncio.get_running_loop().advance, 50))
        raise ValueError

    limits = {"timeout_ms": None, "heartbeat_ms": 50}
    main = run_pipeline(
        [WorkflowStep("a", blocking, runs_in="thread", **limits), WorkflowStep("b", fails)]
    )
    report = run_when_started(main, blocking, 0)

    assert report["a"].status is CANCELLED
    assert report["a"].error.kind == "heartbeat"
    assert report["a"].abandoned


def test_a_heartbeat_from_a_thread_keeps_it_alive():
    def beats(loop):
        for _ in range(6):
            has_passed = threading.Event()
            loop.call_soon_threadsafe(loop.advance, 80)
            loop.call_soon_threadsafe(has_passed.set)
            assert has_passed.wait(30)
            current_step().heartbeat()
        return "alive"

    with asyncio.Runner(loop_factory=StoppedClock) as runner:
        step = WorkflowStep("a", beats, runs_in="thread", timeout_ms=None, heartbeat_ms=100)
        report = runner.run(run_pipeline([step], inputs={"loop": runner.get_loop()}))

    assert report["a"].output == "alive"
    assert report["a"].duration_ms == pytest.approx(480)


def test_no_attempt_starts_while_an_abandoned_thread_of_the_step_still_runs(blocking):
    def release(event):
        if isinstance(event, ThreadAbandoned):
            assert blocking.running == 1
            after_turns(blocking.release.set)

    step = WorkflowStep("a", blocking, timeout_ms=20, max_retries=2, runs_in="thread")
    report = run_when_started(run_pipeline([step], observers=[release]), blocking, 20)

    assert (blocking.calls, blocking.highest) == (2, 1)
    assert report["a"].output == "done"


def test_a_third_party_prolongs_no_wait_for_an_abandoned_thread(blocking):
    limits = {"timeout_ms": 20, "deadline_ms": 100_000}
    step = WorkflowStep("a", blocking, **limits, max_retries=2, runs_in="thread")

    def disturb():
        asyncio.get_running_loop().advance(50_000)
        (task,) = step_tasks()
        task.cancel()
        after_turns(expire)

    def expire():
        asyncio.get_running_loop().advance(49_980)
        after_turns(blocking.release.set)

    def on_event(event):
        if isinstance(event, ThreadAbandoned):
            after_turns(disturb)

    report = run_when_started(run_pipeline([step], observers=[on_event]), blocking, 20)

    assert report["a"].error.kind == "step"
    assert blocking.calls == 1


def test_an_abandoned_thread_holds_its_slot_until_it_has_ended(blocking):
    pool = Pool(1)

    async def main():
        await run_pipeline(
            [WorkflowStep("a", blocking, timeout_ms=20, pool=pool, runs_in="thread")]
        )
        held = pool.in_use
        blocking.release.set()
        await until(lambda: pool.in_use == 0)
        return held

    assert run_when_started(main(), blocking, 20) == 1


def test_a_thread_that_outlives_its_event_loop_releases_its_slot(blocking):
    pool = Pool(1)
    step = WorkflowStep("a", blocking, timeout_ms=20, pool=pool, runs_in="thread")
    run_when_started(run_pipeline([step]), blocking, 20)

    async def use_the_pool():
        after_turns(blocking.release.set)
        return await run_pipeline([WorkflowStep("b", lambda: "ran", pool=pool, runs_in="thread")])

    report = asyncio.run(asyncio.wait_for(use_the_pool(), 30))

    assert report["b"].output == "ran"
    assert (pool.in_use, pool.waiting) == (0, 0)


def test_fail_fast_waits_for_a_thread_until_its_limit_and_then_abandons_it(blocking):
    async def fail():
        await until(blocking.started.is_set)
        after_turns(partial(asyncio.get_running_loop().advance, 150))
        raise ValueError

    main = run_pipeline(
        [
            WorkflowStep("thread", blocking, timeout_ms=150, runs_in="thread"),
            WorkflowStep("fails", fail),
        ]
    )
    report = run_when_started(main, blocking, 0)

    assert report["thread"].status is CANCELLED
    assert report["thread"].abandoned
    assert report.total_duration_ms == pytest.approx(150)


async def test_fail_fast_lets_a_thread_that_ends_in_time_keep_its_value(blocking):
    async def fail():
        await until(blocking.started.is_set)
        asyncio.get_running_loop().call_soon(blocking.release.set)
        raise ValueError

    report = await run_pipeline(
        [WorkflowStep("thread", blocking, runs_in="thread"), WorkflowStep("fails", fail)]
    )

    assert report["thread"].output == "done"
    assert not report["thread"].abandoned


async def test_a_caller_receives_its_cancellation_after_the_thread_has_ended(blocking):
    run = asyncio.ensure_future(run_pipeline([WorkflowStep("a", blocking, runs_in="thread")]))
    await until(blocking.started.is_set)

    run.cancel()
    await asyncio.sleep(0)
    early = run.done()
    blocking.release.set()
    with pytest.raises(asyncio.CancelledError):
        await run

    assert not early
    assert blocking.running == 0


@pytest.mark.parametrize("turns", range(12))
@pytest.mark.parametrize("is_taken", [False, True])
def test_a_run_of_a_thread_cancelled_in_any_turn_holds_no_limiter_token(turns, is_taken):
    async def main():
        limiter = anyio.to_thread.current_default_thread_limiter()
        limiter.total_tokens = 1
        if is_taken:
            limiter.acquire_on_behalf_of_nowait("another")
        run = asyncio.ensure_future(run_pipeline([WorkflowStep("a", int, runs_in="thread")]))
        for _ in range(turns):
            await asyncio.sleep(0)
        is_late = run.done()

        run.cancel()
        if is_taken:
            limiter.release_on_behalf_of("another")
        await asyncio.wait([run])

        assert is_late or run.cancelled()
        assert limiter.statistics().borrowed_tokens == 0
        assert limiter.statistics().tasks_waiting == 0

    asyncio.run(main())


async def test_a_thread_sees_the_context_of_the_caller_and_its_step():
    variable.set("the caller's")

    def action():
        seen = variable.get()
        variable.set("dirty")
        step = current_step()
        return seen, step.step_name, step.attempt, step.remaining_ms() > 0

    report = await run_pipeline(
        [
            WorkflowStep("a", action, runs_in="thread"),
            WorkflowStep("b", action, ["a"], runs_in="thread"),
        ]
    )

    assert [result.output for result in report.results] == [
        ("the caller's", "a", 1, True),
        ("the caller's", "b", 1, True),
    ]
    assert variable.get() == "the caller's"


async def test_mapped_threads_never_overlap_beyond_their_pool():
    pool, lock, together = Pool(3), threading.Lock(), threading.Barrier(3, timeout=30)
    running = highest = 0

    async def numbers():
        return range(12)

    def action(numbers):
        nonlocal running, highest
        with lock:
            running += 1
            highest = max(highest, running)
        together.wait()
        with lock:
            running -= 1
        return numbers, current_step().item

    report = await run_pipeline(
        [
            WorkflowStep("numbers", numbers),
            WorkflowStep("m", action, ["numbers"], map_over="numbers", pool=pool, runs_in="thread"),
        ]
    )

    assert report["m"].output == [(n, n) for n in range(12)]
    assert highest == 3
    assert (pool.in_use, pool.waiting) == (0, 0)


@pytest.mark.exact_time
async def test_a_rate_spreads_the_starts_of_steps_that_have_waited_for_a_thread():
    limiter = anyio.to_thread.current_default_thread_limiter()
    limiter.total_tokens, pool = 3, Pool(3, per_second=1, tokens_per_minute=60)
    for other in range(3):
        limiter.acquire_on_behalf_of_nowait(other)
        asyncio.get_running_loop().call_later(5, limiter.release_on_behalf_of, other)
    in_thread = [
        WorkflowStep(f"t{n}", int, runs_in="thread", pool=pool, tokens=1) for n in range(3)
    ]
    in_loop = WorkflowStep("in the loop", one, pool=pool)

    def pause():
        pool.pause(2_000)
        assert limiter.statistics().borrowed_tokens == 0  # what waits for the pool has no thread

    asyncio.get_running_loop().call_later(6.5, pause)

    report = await run_pipeline([*in_thread, in_loop])

    starts = {result.step_name: result.started_ms for result in report.results}
    assert starts == pytest.approx({"t0": 5_000, "t1": 6_000, "t2": 8_500, "in the loop": 9_500})
    assert (pool.in_use, pool.waiting) == (0, 0)


@pytest.mark.exact_time
async def test_an_attempt_that_waits_for_a_thread_leaves_its_start_to_another():
    limiter, pool = anyio.to_thread.current_default_thread_limiter(), Pool(3, per_second=1)
    limiter.total_tokens = 1
    limiter.acquire_on_behalf_of_nowait("another")
    asyncio.get_running_loop().call_later(2.5, limiter.release_on_behalf_of, "another")

    report = await run_pipeline(
        [
            WorkflowStep("in a thread", int, runs_in="thread", pool=pool),
            *(WorkflowStep(f"l{n}", one, pool=pool) for n in range(4)),
        ]
    )

    # The thread is free at 2.5 s, half a second after a start: so it waits, first in line.
    starts = [result.started_ms for result in report.results]
    assert starts == pytest.approx([3_000, 0, 1_000, 2_000, 4_000])


# What starts a step is often no task, and anyio then knows no loop if sniffio is installed.


async def one():
    return 1


@asynccontextmanager
async def resource():
    yield 1


@pytest.mark.parametrize(
    ("after", "options"),
    [
        ("step", {"when": lambda: True}),
        ("step", {"slots": lambda: 1}),
        ("signal", {}),
        ("resource", {}),
    ],
    ids=["a condition", "a function for slots", "a signal", "a resource"],
)
async def test_a_step_in_a_thread_takes_its_slot_outside_of_a_task(after, options):
    pytest.importorskip("sniffio")
    pool, pipeline = Pool(2), Pipeline("p")
    before = {}
    if after != "resource":  # which has the name of the parameter
        before["value"] = pipeline.signal("go", int) if after == "signal" else pipeline.step(one)
    pipeline.step(
        work.return_argument,
        name="work",
        depends_on=before,
        runs_in="thread",
        pool=pool,
        **options,
    )
    resources = {"value": resource} if after == "resource" else {}

    async with pipeline.with_options(max_concurrency=2, resources=resources).start() as run:
        if after == "signal":
            await run.signal("go", 1)
        report = await run.report()

    assert report["work"].output == 1
    assert pool.in_use == 0


# The stop flag.


def work_until_cancel_is_requested():
    for _ in range(30_000):
        if current_step().cancel_requested:
            return
        time.sleep(0.001)
    raise AssertionError("no stop was requested")


class Cooperative:
    """A function that works until a stop is requested."""

    def __init__(self):
        self.started, self.ended = threading.Event(), threading.Event()
        self.seen_at_start = None
        self.on_start = lambda: None

    def __call__(self):
        self.seen_at_start = current_step().cancel_requested
        self.started.set()
        self.on_start()
        work_until_cancel_is_requested()
        self.ended.set()
        raise InterruptedError


@pytest.mark.parametrize(
    ("limits", "deadline_ms"),
    [
        ({"timeout_ms": 30}, None),
        ({"timeout_ms": None, "deadline_ms": 30}, None),
        ({"timeout_ms": None, "heartbeat_ms": 30}, None),
        ({"timeout_ms": None}, 30),
    ],
)
def test_an_abandoned_thread_sees_the_stop_flag(limits, deadline_ms):
    work = Cooperative()
    step = WorkflowStep("a", work, runs_in="thread", **limits)

    report = run_when_started(run_pipeline([step], deadline_ms=deadline_ms), work, 30)

    assert report["a"].abandoned
    assert work.seen_at_start is False
    assert work.ended.wait(30)


async def test_a_failed_sibling_stops_a_thread_that_checks_the_flag():
    work = Cooperative()

    async def fail():
        await until(work.started.is_set)
        raise ValueError

    report = await run_pipeline(
        [WorkflowStep("thread", work, runs_in="thread"), WorkflowStep("fails", fail)]
    )

    assert report["thread"].status is CANCELLED
    assert not report["thread"].abandoned
    assert work.ended.is_set()


def test_each_attempt_and_each_item_has_its_own_flag():
    seen = []

    async def items():
        return [0, 1]

    def action(items, loop):
        step = current_step()
        seen.append((items, step.attempt, step.cancel_requested))
        if len(seen) == 1:
            loop.call_soon_threadsafe(loop.advance, 50)
            work_until_cancel_is_requested()

    limits = {"timeout_ms": 50, "max_retries": 2, "pool": Pool(1)}
    steps = [
        WorkflowStep("items", items),
        WorkflowStep("m", action, ["items"], map_over="items", runs_in="thread", **limits),
    ]
    with asyncio.Runner(loop_factory=StoppedClock) as runner:
        report = runner.run(run_pipeline(steps, inputs={"loop": runner.get_loop()}))

    report.raise_for_failures()
    assert sorted(seen) == [(0, 1, False), (0, 2, False), (1, 1, False)]


async def test_a_run_inside_a_stopped_thread_does_not_inherit_the_flag():
    seen = []

    async def inner():
        seen.append(current_step().cancel_requested)

    def outer():
        started.set()
        work_until_cancel_is_requested()
        asyncio.run(run_pipeline([WorkflowStep("inner", inner)]))
        return seen

    async def fail():
        await until(started.is_set)
        raise ValueError

    started = threading.Event()
    report = await run_pipeline(
        [WorkflowStep("outer", outer, runs_in="thread"), WorkflowStep("fails", fail)]
    )

    assert report["outer"].output == [False]


async def test_in_the_loop_the_flag_reports_a_cancellation_of_the_running_task():
    seen = []

    def look():
        return current_step().cancel_requested

    async def action():
        seen.append(look())
        try:
            await asyncio.sleep(60)
        finally:
            seen.extend([look(), await asyncio.to_thread(look)])
            asyncio.get_running_loop().call_soon(lambda: seen.append(look()))
            await asyncio.sleep(0)

    await run_pipeline([WorkflowStep("a", action, timeout_ms=30)])

    assert seen == [False, True, False, False]  # neither a thread nor a callback is a task


# Processes.


def is_alive(number):
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.process
@pytest.mark.parametrize("how", ["attempt", "caller", "fail fast"])
def test_an_interrupted_process_is_killed_with_its_children(tmp_path, how):
    pid_file = tmp_path / "pids"

    async def fail():
        await until(pid_file.exists)
        raise ValueError

    async def main():
        limit = 4_000 if how == "attempt" else None
        steps = [WorkflowStep("a", work.hang, timeout_ms=limit, runs_in="process")]
        if how == "fail fast":
            steps.append(WorkflowStep("fails", fail))
        run = asyncio.ensure_future(run_pipeline(steps, inputs={"path": str(pid_file)}))
        if how == "caller":
            await until(pid_file.exists)
            run.cancel()
        await asyncio.wait([run])
        return None if run.cancelled() else run.result()

    report = asyncio.run(main())

    numbers = [int(number) for number in pid_file.read_text().split()]
    for _ in range(1_000):
        if not any(map(is_alive, numbers)):
            break
        time.sleep(0.005)
    assert [number for number in numbers if is_alive(number)] == []
    assert (report is None) == (how == "caller")
    if report is not None:
        assert report["a"].status is (FAILED if how == "attempt" else CANCELLED)
        assert not report["a"].abandoned


def test_a_clean_up_step_in_a_thread_is_not_bound_by_the_deadline_of_the_run(blocking):
    ends = []

    def observe(event):
        if isinstance(event, ThreadAbandoned | StepSucceeded | StepCancelled):
            ends.append((event.step, type(event)))

    async def slow():
        asyncio.get_running_loop().advance(50)
        await asyncio.sleep(60)

    async def main():
        loop, caller = asyncio.get_running_loop(), asyncio.current_task()
        blocking.on_start = lambda: loop.call_soon_threadsafe(advance)

        def advance():
            loop.advance(1_000)
            caller.cancel()  # which a thread past its limit does not outlast
            after_turns(blocking.release.set)

        await run_pipeline(
            [
                WorkflowStep("slow", slow),
                WorkflowStep("tidy", blocking, run_if="always", runs_in="thread"),
            ],
            deadline_ms=50,
            observers=[observe],
        )

    with (
        asyncio.Runner(loop_factory=StoppedClock) as runner,
        pytest.raises(asyncio.CancelledError),
    ):
        runner.run(main())

    assert ends == [("slow", StepCancelled), ("tidy", StepSucceeded)]
