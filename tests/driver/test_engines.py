"""Attempts on engines: what the run does with them, row by row of the semantics."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import pickle
from collections import Counter

import pytest
from fake_engine import Abandoning, FakeEngine
from freed import Holding, without_collector
from memory_journal import MemoryJournal
from results import statuses
from third_party import step_tasks

from asyncflow import (
    NotSendableError,
    Orchestrator,
    OutputLostError,
    Pipeline,
    Pool,
    Retry,
    RunReport,
    StepCancelledError,
    StepCrashedError,
    StepStatus,
    StepTimeoutError,
    WorkerLostError,
    WorkflowStep,
    collect,
    current_step,
    each,
    run_pipeline,
)
from asyncflow._core.history.replay import StoredRun
from asyncflow._core.history.stored_report import report_from
from asyncflow._policies.workers import ThreadEnd
from asyncflow.engines import RemoteOutput
from asyncflow.events import (
    AttemptBegan,
    AttemptStarted,
    StepSucceeded,
    ThreadAbandoned,
)

SUCCESS, FAILED, SKIPPED, CANCELLED = (
    StepStatus.SUCCESS,
    StepStatus.FAILED,
    StepStatus.SKIPPED,
    StepStatus.CANCELLED,
)
counts_time = pytest.mark.virtual_time


@pytest.fixture
async def engine():
    return FakeEngine()


@pytest.fixture
def events():
    return []


async def forever():
    await asyncio.Event().wait()


async def fail():
    raise ValueError("broken")


def sleeps(seconds, output="done"):
    async def action():
        await asyncio.sleep(seconds)
        return output

    return action


def cleans_up(seconds, then=None):
    """Run until it is cancelled, then clean up; ``then`` is returned, or raised."""

    async def action():
        try:
            await forever()
        except asyncio.CancelledError:
            await asyncio.sleep(seconds)
            if isinstance(then, BaseException):
                raise then from None
            if then is None:
                raise
        return then

    return action


def kinds(events):
    return [type(event).__name__ for event in events]


# Where steps run.


async def test_an_attempt_is_submitted_begins_and_ends(engine, events):
    report = await run_pipeline(
        [WorkflowStep("a", sleeps(0, 7))], engine=engine, observers=[events.append]
    )

    assert report["a"].output == 7
    assert (report["a"].engine, report["a"].worker) == ("fake", "w1")
    assert kinds(events)[1:-1] == ["AttemptStarted", "AttemptBegan", "StepSucceeded"]
    started, began = events[1:3]
    assert (started.engine, began.engine, began.worker) == ("fake", "fake", "w1")
    (call,) = engine.calls
    assert (call.run_id, call.running[:2], call.step.name) == (report.run_id, ("a", 1), "a")
    assert (call.limit_s, call.deadline_s, call.beat) == (30.0, None, None)
    assert call.notes is not None


async def test_a_step_keeps_an_engine_of_its_own(engine):
    other = FakeEngine(name="other")
    steps = [
        WorkflowStep("here", sleeps(0), engine="local"),
        WorkflowStep("there", sleeps(0)),
        WorkflowStep("elsewhere", sleeps(0), engine=other),
    ]

    report = await run_pipeline(steps, engine=engine)

    assert [report[name].engine for name in report] == ["", "fake", "other"]
    without = await run_pipeline(steps)
    assert [without[name].engine for name in without] == ["", "", "other"]


async def test_mapped_and_included_steps_run_on_the_engine_and_what_joins_them_here(engine):
    inner = Pipeline("inner")

    @inner.step
    async def numbers():
        return [1, 2]

    outer = Pipeline("outer", engine=engine)
    outer.include(inner)

    @outer.step(engine="local")
    async def shift(each_number=each(inner)):
        return each_number

    @outer.step
    async def double(number=each(collect(shift))):
        return 2 * number

    report = await outer.run()

    assert report["double"].output == [2, 4]
    assert [item.engine for item in report["double"].items] == ["fake", "fake"]
    engines = {name: result.engine for name, result in report.items()}
    assert engines == {"inner/numbers": "fake", "inner": "", "shift": "", "double": ""}
    assert [(call.step.name, call.running[4]) for call in engine.calls] == [
        ("inner/numbers", None),
        ("double", 0),
        ("double", 1),
    ]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            TypeError("its action is a closure"),
            "step 'b' can't run on engine 'fake': its action is a closure; "
            'engine="local" runs it here',
        ),
        (
            ValueError("it has no GPU"),
            "step 'b' can't run on engine 'fake': it has no GPU; engine=\"local\" runs it here",
        ),
        (RuntimeError("it is closed"), "step 'b' can't run on engine 'fake': it is closed"),
    ],
)
async def test_nothing_runs_if_an_engine_refuses_a_step(engine, error, message):
    engine.refused["b"] = error
    ran = []
    steps = [
        WorkflowStep("a", lambda: ran.append("a"), engine="local"),
        WorkflowStep("b", sleeps(0), ["a"]),
    ]

    with pytest.raises(type(error)) as caught:
        await run_pipeline(steps, engine=engine)

    assert str(caught.value) == message
    assert ran == engine.calls == []


async def test_the_repr_of_a_step_shows_the_name_of_its_engine(engine):
    assert "engine='fake'" in repr(WorkflowStep("a", sleeps(0), engine=engine))


async def test_an_engine_runs_in_the_context_of_its_attempt(engine):
    seen = contextvars.ContextVar("seen", default=None)
    found = []

    class Entering:
        def __call__(self, event):
            pass

        def enter_attempt(self, running):
            seen.set(running.attempt)

    async def action():
        found.append((seen.get(), current_step().step_name, current_step().attempt))
        if len(found) == 1:
            raise ValueError

    await run_pipeline(
        [WorkflowStep("a", action, max_retries=2)], engine=engine, observers=[Entering()]
    )

    assert found == [(1, "a", 1), (2, "a", 2)]


# Time.


@counts_time
async def test_time_counts_from_when_the_body_begins(events):
    one_by_one = FakeEngine(workers=1)
    steps = [WorkflowStep(name, sleeps(0.05), timeout_ms=60) for name in "abc"]

    report = await run_pipeline(steps, engine=one_by_one, observers=[events.append])

    assert report.all_passed
    assert [round(report[name].queued_ms) for name in "abc"] == [0, 50, 100]
    assert [round(report[name].started_ms) for name in "abc"] == [0, 50, 100]
    assert [round(report[name].duration_ms) for name in "abc"] == [50, 50, 50]
    assert [round(e.at_ms) for e in events if isinstance(e, AttemptStarted)] == [0, 0, 0]
    assert [round(e.at_ms) for e in events if isinstance(e, AttemptBegan)] == [0, 50, 100]


@counts_time
async def test_an_attempt_that_ends_before_a_worker_begins_was_only_queued(events):
    class Losing(FakeEngine):
        async def run(self, call, /):
            if len(self.calls) < 2:
                self.calls.append(call)
                await asyncio.sleep(0.2)
                raise WorkerLostError(call.step.name, call.running[1], "w1", "it is gone")
            return await super().run(call)

    # Its deadline, too, leaves the waits out.
    steps = [WorkflowStep("a", sleeps(0.05), max_retries=3, deadline_ms=100)]

    report = await run_pipeline(steps, engine=Losing(), observers=[events.append])

    assert report.all_passed
    history = report["a"].history
    assert [round(each.queued_ms) for each in history] == [200, 200, 0]
    assert [round(each.started_ms) for each in history] == [200, 400, 400]
    assert [round(each.duration_ms) for each in history] == [0, 0, 50]
    assert (round(report["a"].queued_ms), round(report["a"].duration_ms)) == (400, 250)
    assert report_from(StoredRun(events), lambda _, value: value)["a"].history == history


@counts_time
@pytest.mark.parametrize("fails", [True, False])
async def test_the_last_attempt_may_end_while_it_is_queued(events, fails):
    class Refusing(FakeEngine):
        async def run(self, call, /):
            if call.step.name == "b":
                return await super().run(call)
            await asyncio.sleep(0.2 if fails else 9)
            raise WorkerLostError("a", 1, "w1", "it is gone")

    steps = [WorkflowStep("a", sleeps(1)), WorkflowStep("b", fail if not fails else sleeps(0))]

    report = await run_pipeline(steps, engine=Refusing(), observers=[events.append])

    a = report["a"]
    assert a.status is (FAILED if fails else CANCELLED)
    assert (round(a.queued_ms), a.duration_ms) == (200 if fails else 0, 0.0)
    stored = report_from(StoredRun(events), lambda _, value: value)["a"]
    assert (stored.queued_ms, stored.started_ms) == (a.queued_ms, a.started_ms)
    assert stored.history == a.history


@counts_time
async def test_a_limit_cancels_the_body_and_waits_for_its_cleanup(engine):
    report = await run_pipeline(
        [WorkflowStep("a", cleans_up(0.05), timeout_ms=500, max_retries=2)], engine=engine
    )

    result = report["a"]
    assert isinstance(result.error, StepTimeoutError)
    assert (result.error.kind, result.attempts) == ("attempt", 2)
    assert [round(each.duration_ms) for each in result.history] == [550, 550]
    assert round(result.history[1].started_ms) == 550
    assert engine.overlaps["a"] == 0


@counts_time
async def test_10_000_attempts_with_a_limit_pass_behind_two_workers():
    steps = [WorkflowStep(f"s{n}", sleeps(0.002), timeout_ms=3) for n in range(1_000)]

    report = await run_pipeline(steps, engine=FakeEngine(workers=2))

    assert report.all_passed


@counts_time
async def test_the_deadline_of_a_step_does_not_count_the_wait_for_a_worker():
    engine, attempts = FakeEngine(workers=1), []

    async def fails_slowly():
        attempts.append(1)
        await asyncio.sleep(0.04)
        raise ValueError("broken")

    steps = [
        WorkflowStep("first", sleeps(1)),
        WorkflowStep("b", fails_slowly, deadline_ms=100, max_retries=9),
    ]

    report = await run_pipeline(steps, engine=engine, fail_fast=False)

    # Two whole attempts, and a third one that the deadline cuts short.
    assert len(attempts) == 3
    assert report["b"].error.kind == "step"
    assert round(report["b"].started_ms) == 1000
    assert round(report["b"].duration_ms) == 100
    assert [round(call.limit_s, 3) for call in engine.calls[1:]] == [0.1, 0.06, 0.02]


@counts_time
async def test_the_deadline_of_the_run_counts_the_wait_for_a_worker(events):
    engine = FakeEngine(workers=1)
    cleanup = WorkflowStep("c", sleeps(0), run_if="always")
    steps = [WorkflowStep("a", forever), WorkflowStep("b", forever), cleanup]

    report = await run_pipeline(steps, engine=engine, deadline_ms=200, observers=[events.append])

    assert statuses(report) == {"a": CANCELLED, "b": CANCELLED, "c": SUCCESS}
    assert [report[name].error.kind for name in "ab"] == ["run", "run"]
    assert [call.deadline_s for call in engine.calls] == [*[pytest.approx(0.2)] * 2, None]
    assert [e.step for e in events if isinstance(e, AttemptBegan)] == ["a", "c"]
    assert round(report.total_duration_ms) == 200


@counts_time
async def test_a_limit_of_an_earlier_attempt_does_not_cut_one_short_that_is_queued():
    engine, calls = FakeEngine(workers=1), []

    async def hangs_once():
        calls.append(1)
        if len(calls) == 1:
            await forever()

    # Between the attempts of a, b takes the only worker.
    steps = [
        WorkflowStep("a", hangs_once, timeout_ms=100, max_retries=2, retry=1),
        WorkflowStep("b", sleeps(10)),
    ]

    report = await run_pipeline(steps, engine=engine)

    assert report["a"].status is SUCCESS
    assert round(report["a"].history[1].queued_ms) == 9_999


# How attempts end.


async def test_an_engine_that_raises_a_cancellation_by_itself_fails_the_attempt(engine):
    async def cancelled():
        raise asyncio.CancelledError

    report = await run_pipeline([WorkflowStep("a", cancelled, max_retries=2)], engine=engine)

    assert isinstance(report["a"].error, StepCancelledError)
    assert report["a"].attempts == 2
    assert asyncio.current_task().cancelling() == 0


@pytest.mark.parametrize("error", [KeyboardInterrupt("now"), SystemExit(3)])
async def test_anything_else_ends_the_run_after_all_bodies(engine, error):
    cleaned = []

    async def cleans():
        try:
            await forever()
        finally:
            await asyncio.sleep(0.01)
            cleaned.append(1)

    async def action():
        await asyncio.sleep(0)
        raise error

    class Raising(FakeEngine):
        async def run(self, call, /):
            if call.step.name == "a":
                await asyncio.sleep(0.001)
                raise error
            return await super().run(call)

    steps = [WorkflowStep("a", action, max_retries=3), WorkflowStep("b", cleans)]
    with pytest.raises(type(error)) as caught:
        await run_pipeline(steps, engine=Raising(), fail_fast=False)

    assert caught.value is error
    assert cleaned == [1]


async def test_an_attempt_that_its_engine_refuses_has_not_begun(events):
    class Refusing(FakeEngine):
        async def run(self, call, /):
            raise TypeError("its argument can't be sent")

    report = await run_pipeline(
        [WorkflowStep("a", sleeps(0), max_retries=2)],
        engine=Refusing(),
        observers=[events.append],
    )

    assert isinstance(report["a"].error, TypeError)
    assert AttemptBegan not in map(type, events)
    assert (report["a"].engine, report["a"].worker) == ("fake", "")


@counts_time
async def test_a_lost_worker_is_a_failure_that_is_retried(engine, events):
    def kill(event):
        events.append(event)
        if isinstance(event, AttemptBegan) and event.attempt == 1:
            asyncio.get_running_loop().call_later(0.001, engine.lose, "a")

    report = await run_pipeline(
        [WorkflowStep("a", sleeps(0.01), max_retries=2)], engine=engine, observers=[kill]
    )

    result = report["a"]
    assert (result.status, result.worker) == (SUCCESS, "w2")
    assert isinstance(result.history[0].error, WorkerLostError)
    assert [(each.engine, each.worker) for each in result.history] == [
        ("fake", "w1"),
        ("fake", "w2"),
    ]


@counts_time
async def test_an_engine_may_report_the_beginning_twice_or_too_late(events):
    class Chatty(FakeEngine):
        async def run(self, call, /):
            output = await super().run(call)
            call.began("again")
            asyncio.get_running_loop().call_soon(call.began, "after the end")
            return output

    report = await run_pipeline(
        [WorkflowStep("a", sleeps(0)), WorkflowStep("b", sleeps(0.01), ["a"])],
        engine=Chatty(),
        observers=[events.append],
    )

    assert report["a"].worker == "w1"
    assert sum(isinstance(event, AttemptBegan) for event in events) == 2


@counts_time
async def test_what_an_engine_reports_after_an_attempt_does_not_count_for_the_next_one(
    events, caplog
):
    class Chatty(FakeEngine):
        async def run(self, call, /):
            if len(self.calls) == 1:
                earlier, thread = self.calls[0], ThreadEnd(asyncio.get_running_loop())
                for report, value in [
                    (earlier.began, "late"),
                    (earlier.abandon, thread),
                    (earlier.unconfirmed, "late"),
                ]:
                    asyncio.get_running_loop().call_later(0.001, report, value)
                asyncio.get_running_loop().call_later(0.001, earlier.beat)
            return await super().run(call)

    async def fails_once():
        await asyncio.sleep(0.004)
        if current_step().attempt == 1:
            raise ValueError("first")

    steps = [WorkflowStep("a", fails_once, max_retries=2, heartbeat_ms=5)]
    report = await run_pipeline(steps, engine=Chatty(), observers=[events.append])

    assert [each.worker for each in report["a"].history] == ["w1", "w2"]
    assert not report["a"].abandoned
    assert ThreadAbandoned not in map(type, events)
    assert caplog.messages == []


async def test_a_bug_at_the_end_of_an_attempt_breaks_the_run_and_leaves_no_body(monkeypatch):
    cleaned = []

    async def cleans():
        try:
            await forever()
        finally:
            await asyncio.sleep(0.01)
            cleaned.append(1)

    def defective(*_):
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr("asyncflow._kernel.attempt.Attempts.conclude", defective)

    with pytest.raises(ZeroDivisionError):
        await run_pipeline(
            [WorkflowStep("a", sleeps(0.01)), WorkflowStep("b", cleans)], engine=FakeEngine()
        )
    assert cleaned == [1]


async def test_until_sees_the_value_itself(engine):
    outputs = iter([1, 2, 3])

    async def action():
        return next(outputs)

    async def consumer(a):
        return a

    engine = FakeEngine(keeps=True)
    report = await run_pipeline(
        [
            WorkflowStep("a", action, max_retries=5, retry=Retry(until=lambda value: value == 3)),
            WorkflowStep("b", consumer, ["a"]),
        ],
        engine=engine,
    )

    assert (report["a"].attempts, report["a"].output, report["b"].output) == (3, 3, 3)


# Stopping.


@counts_time
async def test_a_failure_cancels_running_and_queued_attempts_at_once():
    engine, turns = FakeEngine(workers=10), []
    steps = [WorkflowStep(f"s{n}", cleans_up(0.02)) for n in range(200)]

    async def fails_soon():
        await asyncio.sleep(0.05)
        turns.append(asyncio.get_running_loop().time())
        raise ValueError("broken")

    report = await run_pipeline(
        [WorkflowStep("bad", fails_soon, engine="local"), *steps], engine=engine
    )

    assert report["bad"].status is FAILED
    assert {report[step.name].status for step in steps} == {CANCELLED}
    assert {report[step.name].attempts for step in steps} == {1}
    assert sum(report[step.name].worker != "" for step in steps) == 10
    assert asyncio.get_running_loop().time() - turns[0] == pytest.approx(0.02)


@counts_time
async def test_a_caller_that_cancels_twice_still_waits_for_the_bodies(engine):
    ended = []

    async def cleans():
        try:
            await forever()
        finally:
            await asyncio.sleep(0.02)
            ended.append(1)

    steps = [WorkflowStep("a", cleans), WorkflowStep("b", cleans, engine=FakeEngine(stop_s=0.05))]
    run = asyncio.create_task(run_pipeline(steps, engine=engine))
    await asyncio.sleep(0.01)
    for _ in range(3):
        run.cancel()
        await asyncio.sleep(0.005)
    assert ended == []

    with pytest.raises(asyncio.CancelledError):
        await run
    assert ended == [1, 1]
    assert engine.running == {}


@counts_time
@pytest.mark.parametrize("workers", [1, 0])
async def test_an_engine_is_asked_once_to_stop_a_body(workers):
    cancels = []

    class Counting(FakeEngine):
        async def run(self, call, /):
            run = asyncio.ensure_future(super().run(call))
            while not run.done():
                try:
                    await asyncio.wait([run])
                except asyncio.CancelledError:
                    cancels.append(1)
                    asyncio.get_running_loop().call_later(0.01, run.cancel)
            return await run

    run = asyncio.create_task(run_pipeline([WorkflowStep("a", forever)], engine=Counting(workers)))
    await asyncio.sleep(0.01)
    for _ in range(3):
        run.cancel()
        for task in step_tasks():
            task.cancel()
        await asyncio.sleep(0.002)

    with pytest.raises(asyncio.CancelledError):
        await run
    assert cancels == [1]


@counts_time
async def test_a_stopped_attempt_that_returns_a_value_has_succeeded(engine):
    async def fails_soon():
        await asyncio.sleep(0.01)
        raise ValueError("broken")

    steps = [
        WorkflowStep("value", cleans_up(0.001, "value")),
        WorkflowStep("error", cleans_up(0.001, OSError("no"))),
        WorkflowStep("bad", fails_soon),
    ]

    report = await run_pipeline(steps, engine=engine)

    assert statuses(report) == {"value": SUCCESS, "error": CANCELLED, "bad": FAILED}
    assert report["value"].output == "value"
    assert isinstance(report["error"].error, OSError)


async def test_what_an_engine_raises_when_a_queued_attempt_is_stopped_is_kept():
    class Broken(FakeEngine):
        async def run(self, call, /):
            try:
                await forever()
            finally:
                raise ConnectionError("no scheduler")

    run = asyncio.create_task(
        Orchestrator([WorkflowStep("a", forever)], engine=Broken(), deadline_ms=20).run()
    )

    report = await run

    assert report["a"].status is CANCELLED
    assert isinstance(report["a"].error, ConnectionError)


@counts_time
async def test_a_third_party_can_stop_a_body_but_not_the_wait_for_a_worker():
    engine = FakeEngine(workers=1)
    run = asyncio.create_task(
        run_pipeline(
            [WorkflowStep("a", sleeps(0.05)), WorkflowStep("b", sleeps(0.01))],
            engine=engine,
            fail_fast=False,
        )
    )
    await asyncio.sleep(0.02)

    assert len(step_tasks()) == 2
    for task in step_tasks():
        task.cancel()

    report = await run
    assert statuses(report) == {"a": FAILED, "b": SUCCESS}
    assert isinstance(report["a"].error, StepCancelledError)


# Heartbeats, threads and doubts.


@counts_time
async def test_a_heartbeat_of_an_earlier_body_keeps_no_other_attempt_alive():
    engine = FakeEngine()

    async def hangs():
        earlier = engine.calls[0] if current_step().attempt == 2 else None
        for _ in range(20):
            await asyncio.sleep(0.04)
            if earlier is not None:
                earlier.beat()

    steps = [WorkflowStep("a", hangs, heartbeat_ms=50, max_retries=2)]
    report = await run_pipeline(steps, engine=engine)

    assert report["a"].error.kind == "heartbeat"
    assert [round(each.duration_ms) for each in report["a"].history] == [50, 50]


@counts_time
async def test_heartbeats_count_from_when_the_body_begins():
    engine = FakeEngine(workers=1)

    async def beats():
        call = next(call for call in engine.calls if call.step.name == "b")
        for _ in range(5):
            await asyncio.sleep(0.04)
            call.beat()
        await forever()

    steps = [
        WorkflowStep("a", sleeps(1)),
        WorkflowStep("b", beats, heartbeat_ms=50),
    ]

    report = await run_pipeline(steps, engine=engine)

    assert report["b"].error.kind == "heartbeat"
    assert round(report["b"].duration_ms) == 250
    engine.calls[1].beat()  # too late, and without effect


@pytest.mark.parametrize("options", [{}, {"max_concurrency": 1}])
async def test_a_plain_function_on_an_engine_is_retried_in_a_run_in_which_nothing_waits(
    engine, options
):
    step = WorkflowStep("a", lambda: fail(), runs_in="thread", max_retries=3)

    async with asyncio.timeout(5):
        report = await run_pipeline([step], engine=engine, **options)

    assert (report["a"].status, report["a"].attempts) == (FAILED, 3)


@counts_time
async def test_a_heartbeat_is_not_missed_while_the_run_stops_the_body(engine):
    async def fails_soon():
        await asyncio.sleep(0.01)
        raise ValueError("broken")

    in_thread = cleans_up(0.2)
    steps = [
        WorkflowStep("a", cleans_up(0.2), heartbeat_ms=50),
        # The engine asks a thread to stop too.
        WorkflowStep("b", lambda: in_thread(), heartbeat_ms=50, runs_in="thread"),
        WorkflowStep("bad", fails_soon),
    ]

    report = await run_pipeline(steps, engine=engine)

    assert (report["a"].status, report["a"].error) == (CANCELLED, None)
    assert (report["b"].status, report["b"].error) == (CANCELLED, None)
    assert round(report.total_duration_ms) == 210


@counts_time
@pytest.mark.parametrize(("slots", "next_ms"), [(1, 1_000), (2, 0)])
async def test_an_abandoned_body_is_never_overlapped_and_holds_its_slot(events, slots, next_ms):
    engine, pool, starts = Abandoning(), Pool(slots), []

    async def action():
        starts.append(asyncio.get_running_loop().time())
        await asyncio.sleep(1 if len(starts) == 1 else 0)

    report = await run_pipeline(
        [
            WorkflowStep("a", action, timeout_ms=100, max_retries=2, pool=pool),
            WorkflowStep("b", sleeps(0), pool=pool),
        ],
        engine=engine,
        observers=[events.append],
    )

    assert (report["a"].status, report["a"].abandoned) == (SUCCESS, True)
    assert [round(each.duration_ms) for each in report["a"].history] == [100, 0]
    assert starts[1] - starts[0] == pytest.approx(1)
    assert round(report["b"].started_ms) == next_ms
    assert sum(isinstance(event, ThreadAbandoned) for event in events) == 1
    assert engine.overlaps["a"] == 0


@counts_time
async def test_a_doubt_about_the_end_of_a_body_is_logged(caplog):
    class Doubtful(FakeEngine):
        async def run(self, call, /):
            output = await super().run(call)
            call.unconfirmed("no answer from w1")
            asyncio.get_running_loop().call_later(0.005, call.unconfirmed, "after the end")
            return output

    with caplog.at_level(logging.WARNING, "asyncflow"):
        await run_pipeline(
            [WorkflowStep("a", sleeps(0)), WorkflowStep("b", sleeps(0.01), engine="local")],
            engine=Doubtful(),
        )

    assert caplog.messages == [
        "step 'a', attempt 1: engine 'fake' can't confirm that it has ended: no answer from w1"
    ]


@counts_time
async def test_a_body_that_does_not_end_is_named_and_one_that_is_queued_is_not(caplog):
    engine = FakeEngine(workers=1)

    async def stubborn():
        for _ in range(2):
            try:
                await asyncio.sleep(8)
            except asyncio.CancelledError:
                continue

    steps = [
        WorkflowStep("a", stubborn, timeout_ms=100),
        WorkflowStep("b", sleeps(0), timeout_ms=1),
    ]
    with caplog.at_level(logging.WARNING, "asyncflow"):
        report = await run_pipeline(steps, engine=engine, fail_fast=False)

    assert statuses(report) == {"a": FAILED, "b": SUCCESS}
    (message,) = caplog.messages
    assert message.startswith("step 'a', attempt 1, has not ended 5 s after it was cancelled")
    assert "fake_engine.py" in message


async def test_limits_of_concurrency_stay_with_the_run(engine):
    pool, running, most = Pool(2), Counter(), Counter()

    async def action():
        for kind in (current_step().step_name[0], "all"):
            running[kind] += 1
            most[kind] = max(most[kind], running[kind])
        await asyncio.sleep(0.01)
        running.subtract([current_step().step_name[0], "all"])

    steps = [
        *(WorkflowStep(f"p{n}", action, pool=pool) for n in range(6)),
        *(WorkflowStep(f"q{n}", action) for n in range(6)),
    ]

    report = await run_pipeline(steps, engine=engine, max_concurrency=4)

    assert report.all_passed
    assert (most["all"], most["p"]) == (4, 2)


# Outputs that stay.


async def make():
    return "large"


async def grow(value):
    return f"{value}r"


def chain(**options):
    return [
        WorkflowStep("a", make, **options),
        WorkflowStep("b", grow, {"value": "a"}),
        WorkflowStep("c", grow, {"value": "b"}),
    ]


async def test_an_output_stays_where_only_the_engine_needs_it():
    engine = FakeEngine(keeps=True)

    async def make_of(kind):
        return kind

    first = WorkflowStep("a", make_of)
    report = await run_pipeline([first, *chain()[1:]], engine=engine, inputs={"kind": "large"})

    assert [call.may_keep for call in engine.calls] == [True, True, False]
    assert engine.calls[0].arguments == {"kind": "large"}
    assert isinstance(engine.calls[1].arguments["value"], RemoteOutput)
    assert report["c"].output == "largerr"
    assert await report["b"].output.fetch() == "larger"
    shown = "<RemoteOutput of 100 bytes on fake at w1>"
    assert repr(report["a"].output) == shown
    assert shown in repr(report["a"])
    assert RunReport.from_json(report.to_json())["a"].output.text == shown
    copy = pickle.loads(pickle.dumps(report))["a"].output
    assert repr(copy) == shown
    with pytest.raises(RuntimeError, match="this is a copy of its place"):
        await copy.fetch()


async def test_a_lost_output_fails_its_consumer_for_good_and_its_producer_runs_once():
    engine = FakeEngine(keeps=True)

    def lose(event):
        if isinstance(event, StepSucceeded):
            engine.kept.clear()

    steps = [
        WorkflowStep("a", make),
        WorkflowStep("b", grow, {"value": "a"}, max_retries=5),
    ]
    steps += [WorkflowStep("c", grow, {"value": "a"})]
    report = await run_pipeline(steps, engine=engine, observers=[lose], fail_fast=False)

    assert isinstance(report["b"].error, OutputLostError)
    assert (report["b"].error.step_name, report["b"].error.parameter) == ("a", "value")
    assert report["b"].attempts == report["a"].attempts == 1
    assert [call.step.name for call in engine.calls] == ["a", "b", "c"]
    with pytest.raises(LookupError):
        await report["a"].output.fetch()


@pytest.mark.parametrize("is_copy", [False, True])
async def test_an_output_of_another_engine_is_refused_by_name(is_copy):
    there = FakeEngine(keeps=True)
    here = there if is_copy else FakeEngine(name="here")
    output = (await run_pipeline(chain(), engine=there))["a"].output
    if is_copy:
        output = pickle.loads(pickle.dumps(output))

    report = await run_pipeline(
        [WorkflowStep("b", grow, max_retries=3)], engine=here, inputs={"value": output}
    )

    assert isinstance(report["b"].error, NotSendableError)
    assert "argument 'value' can't be sent" in str(report["b"].error)
    assert "stayed on engine 'fake'" in str(report["b"].error)
    assert report["b"].attempts == 1


# Journals.


async def test_a_resumed_run_has_the_attempts_and_makes_a_needed_output_again(events):
    journal, engine, broken = MemoryJournal(), FakeEngine(keeps=True), [True]

    async def fails_once(value):
        if broken:
            raise ValueError(broken.pop())
        return value

    steps = [*chain()[:2], WorkflowStep("c", fails_once, {"value": "b"})]
    options = {"journal": journal, "run_id": "r"}
    first = await run_pipeline(steps, engine=engine, **options)
    assert first["c"].status is FAILED
    assert "large" not in repr(journal.stored)
    engine.kept.clear()

    report = await run_pipeline(
        steps, engine=FakeEngine(name="new", keeps=True), observers=[events.append], **options
    )

    assert report["c"].output == "larger"
    assert report["a"].rerun_reason == report["b"].rerun_reason
    assert "stayed on an engine, so it was not stored" in report["a"].rerun_reason
    assert [(each.engine, each.worker) for each in report["c"].history] == [
        ("fake", "w3"),
        ("new", "w3"),
    ]
    assert (report["c"].engine, report["c"].worker) == ("new", "w3")
    assert [type(e) for e in events if getattr(e, "step", "") == "c"][:2] == [
        AttemptStarted,
        AttemptBegan,
    ]


async def test_a_resumed_run_leaves_an_output_where_it_was_if_no_step_needs_it():
    journal, engine, broken = MemoryJournal(), FakeEngine(keeps=True), [True]

    async def fails_once():
        if broken:
            raise ValueError(broken.pop())

    steps = [*chain(), WorkflowStep("d", fails_once, ["c"])]
    options = {"journal": journal, "run_id": "r", "engine": engine}
    await run_pipeline(steps, **options)

    report = await run_pipeline(steps, **options)

    assert report.all_passed
    assert [report[name].reused for name in "abcd"] == [True, True, True, False]
    assert repr(report["a"].output) == "<RemoteOutput of 100 bytes on fake at w1>"
    again = await run_pipeline(steps, **options)
    assert again["a"].output.worker == "w1"
    assert (again["c"].engine, again["c"].worker) == ("fake", "w3")


async def test_a_queued_attempt_is_stored_before_it_is_submitted():
    journal, seen = MemoryJournal(), []

    class Looking(FakeEngine):
        async def run(self, call, /):
            seen.append(kinds(journal.stored["r"])[-1])
            output = await super().run(call)
            seen.append(AttemptBegan.__name__ in kinds(journal.stored["r"]))
            return output

    await run_pipeline(
        [WorkflowStep("a", sleeps(0.01))], engine=Looking(), journal=journal, run_id="r"
    )

    assert seen == ["AttemptStarted", True]


# Memory.


@counts_time
async def test_without_a_collector_a_dropped_report_frees_what_attempts_on_engines_held():
    hold = Holding()

    async def fails():
        thing = hold()
        await asyncio.sleep(0)
        raise ValueError(type(thing))

    async def hangs():
        thing = hold()
        try:
            await forever()
        finally:
            del thing

    async def returns():
        return hold()

    engines = [FakeEngine(), FakeEngine(workers=1)]
    with without_collector():
        report = await run_pipeline(
            [
                WorkflowStep("fails", fails, max_retries=2),
                WorkflowStep("hangs", hangs, timeout_ms=10, heartbeat_ms=1_000),
                WorkflowStep("returns", returns),
                WorkflowStep("queued", hangs, engine=engines[1], deadline_ms=1_000),
            ],
            engine=engines[0],
            fail_fast=False,
            deadline_ms=50,
        )
        assert len(hold) == 5
        assert statuses(report)["returns"] is SUCCESS
        del report
        for engine in engines:
            engine.calls.clear()  # they lead to the run
        await asyncio.sleep(0)
        assert hold.alive() == []


async def test_an_attempt_that_was_queued_when_its_process_died_is_no_crash_of_the_step():
    journal, calls = MemoryJournal(), []

    async def act():
        calls.append(1)

    steps = [WorkflowStep("a", act, max_retries=1, max_crashes=0)]
    options = {"engine": FakeEngine(), "run_id": "r"}
    await run_pipeline(steps, journal=journal, **options)
    assert kinds(journal.stored["r"])[:3] == ["RunStarted", "AttemptStarted", "AttemptBegan"]

    queued, begun = journal.died_after(2), journal.died_after(3)
    first = await run_pipeline(steps, journal=queued, **options)
    starts = [n for n, e in enumerate(queued.stored["r"]) if isinstance(e, AttemptStarted)]
    again = await run_pipeline(steps, journal=queued.died_after(starts[-1] + 1), **options)
    crashed = await run_pipeline(steps, journal=begun, **options)

    assert first.all_passed
    assert first["a"].attempts == 2
    assert again.all_passed
    assert [type(each.error) for each in again["a"].history[:2]] == [StepCrashedError] * 2
    assert [each.duration_ms for each in again["a"].history[:2]] == [0.0, 0.0]
    assert isinstance(crashed["a"].error, StepCrashedError)
    assert len(calls) == 3


async def test_an_engine_that_does_not_tell_when_a_body_begins_may_have_begun_with_what_crashed():
    class Untold(FakeEngine):
        tells_began = False

    journal = MemoryJournal()
    steps = [WorkflowStep("a", sleeps(0), max_crashes=0)]
    options = {"engine": Untold(), "run_id": "r"}
    await run_pipeline(steps, journal=journal, **options)

    report = await run_pipeline(steps, journal=journal.died_after(2), **options)

    assert isinstance(report["a"].error, StepCrashedError)
