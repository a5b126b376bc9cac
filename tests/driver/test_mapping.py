"""Steps that run once for each item of another step's output."""

from __future__ import annotations

import asyncio
import gc
import sys
import weakref

import pytest
from freed import Holding, without_collector
from third_party import step_tasks

from asyncflow import (
    Pool,
    Retry,
    StepCancelledError,
    StepStatus,
    WorkflowStep,
    current_step,
    run_pipeline,
)
from asyncflow._core.record import replace
from asyncflow.events import AttemptStarted, MapStarted, RunFinished, StepFailed, StepSucceeded
from asyncflow.testing import VirtualTimeLoop

SUCCESS, FAILED, SKIPPED, CANCELLED = (
    StepStatus.SUCCESS,
    StepStatus.FAILED,
    StepStatus.SKIPPED,
    StepStatus.CANCELLED,
)


def over(values, action, **options):
    """A step that provides the values, and one that is mapped over them."""

    async def source():
        return values() if callable(values) else values

    return [
        WorkflowStep("source", source),
        WorkflowStep("m", action, {"item": "source"}, map_over="source", **options),
    ]


async def double(item):
    await asyncio.sleep(0)
    return item * 2


async def fail_on_odd(item):
    await asyncio.sleep(0)
    if item % 2:
        raise ValueError(item)
    return item


class AsyncItems:
    """An async iterator that can raise or hang and that records whether it was closed."""

    def __init__(self, count, then=None, closing=None):
        self.count = count
        self.then = then
        self.closing = closing
        self.closed = 0
        self.at = 0

    def __aiter__(self):
        return self

    async def __anext__(self):
        await asyncio.sleep(0)
        self.at += 1
        if self.at > self.count:
            if self.then == "hang":
                await asyncio.Event().wait()
            raise self.then or StopAsyncIteration
        return self.at - 1

    async def aclose(self):
        self.closed += 1
        if self.closing is not None:
            raise self.closing


# Items and results.


async def numbers_one_by_one():
    for number in range(5):
        await asyncio.sleep(0)
        yield number


@pytest.mark.parametrize(
    "values",
    [
        range(5),
        [0, 1, 2, 3, 4],
        lambda: iter(range(5)),
        lambda: (n for n in range(5)),
        numbers_one_by_one,
        dict.fromkeys(range(5)),
        lambda: AsyncItems(5),
    ],
)
async def test_any_collection_or_stream_of_items_gives_results_in_their_order(values):
    async def last_first(item):
        await asyncio.sleep((5 - item) / 1000)
        return item * 2

    report = await run_pipeline(over(values, last_first))

    assert report["m"].output == [0, 2, 4, 6, 8]
    assert [item.step_name for item in report["m"].items] == [f"m[{n}]" for n in range(5)]
    assert [item.output for item in report["m"].items] == report["m"].output
    assert report["m"].attempts == 5


class Unsized(list):
    def __len__(self):
        raise ValueError("unknown")


@pytest.mark.parametrize(
    ("values", "count"), [([1, 2], 2), (lambda: (v for v in [1, 2]), None), (Unsized([1, 2]), None)]
)
async def test_the_number_of_items_is_reported_if_the_source_has_a_length(values, count):
    events = []

    report = await run_pipeline(over(values, double), observers=[events.append])

    assert report["m"].output == [2, 4]
    assert [event.count for event in events if isinstance(event, MapStarted)] == [count]


async def test_no_items_give_an_empty_list():
    report = await run_pipeline(over([], double))

    assert (report["m"].status, report["m"].output, report["m"].items) == (SUCCESS, [], ())


@pytest.mark.exact_time
async def test_a_mapped_step_needs_no_slot_of_its_pool_but_its_items_do():
    pool, events = Pool(1), []

    async def hold():
        await asyncio.sleep(1)

    report = await run_pipeline(
        [
            WorkflowStep("hold", hold, pool=pool),
            *over([], double, pool=pool),
            WorkflowStep("after", lambda: asyncio.sleep(0), ["m"]),
            WorkflowStep("other", lambda: asyncio.sleep(0, [1])),
            WorkflowStep("n", double, {"item": "other"}, map_over="other", pool=pool),
        ],
        schedule="ready",
        observers=[events.append],
    )

    began = {event.step: event.at_ms for event in events if isinstance(event, MapStarted)}
    assert began == {"m": 0, "n": 0}
    assert report["after"].started_ms == 0
    assert report["n"].items[0].queued_ms == pytest.approx(1_000)


@pytest.mark.parametrize("value", [7, None, "text", b"bytes"])
async def test_an_output_that_is_no_collection_fails_the_step(value):
    report = await run_pipeline(over(value, double, max_retries=3))

    assert isinstance(report["m"].error, TypeError)
    assert "which is not a collection of items" in str(report["m"].error)
    assert report["m"].attempts == 0


async def test_each_item_has_its_own_attempts_and_backoff():
    async def fail_first(item):
        if current_step().attempt <= item:
            raise ValueError(item)
        return current_step().attempt

    report = await run_pipeline(over(range(4), fail_first, max_retries=4, retry=1))

    assert report["m"].output == [1, 2, 3, 4]
    assert report["m"].attempts == 10


async def test_each_item_has_its_own_index_and_idempotency_key():
    async def action(item):
        step = current_step()
        return step.item, step.idempotency_key

    report = await run_pipeline(over(["a#1", "b", "%"], action), run_id="r/1")

    assert report["m"].output == [(n, f"r%2F1/m#{n}") for n in range(3)]


async def test_idempotency_keys_are_distinct_whatever_the_names_of_steps_and_runs():
    async def source():
        return [1, 2]

    async def action(**_):
        return current_step().idempotency_key

    names = ["m", "m#0", "m#1", "m%230", "a/m", "a/m#1", "%", "#", "/", "%23", "/#0", "ä\n"]
    steps = [WorkflowStep("source", source)]
    steps += [
        WorkflowStep(f"{name}", action, ["source"], map_over=None if at % 2 else "source")
        for at, name in enumerate(names)
    ]

    keys = []
    for run_id in ("r", "r/a", "r%2Fa", "r#0", "%", "/"):
        report = await run_pipeline(steps, run_id=run_id)
        for name in names:
            output = report[name].output
            keys += output if isinstance(output, list) else [output]

    assert len(set(keys)) == len(keys) == 6 * 18


# Failing.


async def test_without_fail_fast_all_items_run_and_the_step_fails_with_a_group():
    report = await run_pipeline(over(range(6), fail_on_odd), fail_fast=False)

    error = report["m"].error
    assert isinstance(error, ExceptionGroup)
    assert [each.args[0] for each in error.exceptions] == [1, 3, 5]
    assert error.exceptions[0].__notes__ == ["in m[1]"]
    assert [item.status for item in report["m"].items] == [SUCCESS, FAILED] * 3
    assert [item.output for item in report["m"].items] == [0, None, 2, None, 4, None]


async def test_with_fail_fast_the_first_failed_item_stops_the_others_and_the_siblings():
    async def action(item):
        if item == 1:
            raise ValueError(item)
        await asyncio.Event().wait()

    async def hang():
        await asyncio.Event().wait()

    report = await run_pipeline([*over(range(3), action), WorkflowStep("s", hang, ["source"])])

    assert [item.status for item in report["m"].items][:2] == [CANCELLED, FAILED]
    assert (report["m"].status, report["s"].status) == (FAILED, CANCELLED)
    assert isinstance(report["m"].error, ExceptionGroup)


@pytest.mark.parametrize("limit", [None, 1, 3])
async def test_nothing_is_started_after_an_item_has_stopped_the_run(limit):
    events = []

    async def action(item):
        if item == 0:
            raise ValueError(item)
        await asyncio.sleep(0.001)

    await run_pipeline(over(range(500), action), max_concurrency=limit, observers=[events.append])

    started = [event for event in events if isinstance(event, AttemptStarted)]
    # Before 3.12 an action starts two turns after its task, and other tasks run meanwhile.
    assert len(started) - 1 <= (limit or 400)


async def test_an_iteration_that_raises_fails_the_step_after_the_items_it_yielded():
    broken = OSError("the cursor is gone")

    report = await run_pipeline(over(AsyncItems(3, broken), double), fail_fast=False)

    assert report["m"].error is broken
    assert [item.output for item in report["m"].items] == [0, 2, 4]


async def test_an_iteration_that_raises_joins_the_errors_of_the_items():
    broken = OSError("the cursor is gone")

    report = await run_pipeline(over(AsyncItems(3, broken), fail_on_odd), fail_fast=False)

    assert report["m"].error.exceptions[0] is broken
    assert report["m"].error.exceptions[1].args == (1,)


@pytest.mark.parametrize("then", [None, OSError()])
async def test_a_stream_is_closed_at_its_end(then):
    items = AsyncItems(2, then)

    await run_pipeline(over(items, double))

    assert items.closed == 1


async def test_a_stream_is_closed_when_the_run_stops():
    items = AsyncItems(2, "hang")

    async def fail_later():
        await asyncio.sleep(0.002)
        raise ValueError

    report = await run_pipeline([*over(items, double), WorkflowStep("f", fail_later, ["source"])])

    assert items.closed == 1
    assert (report["m"].status, report["m"].error) == (CANCELLED, None)


@pytest.mark.parametrize("max_concurrency", [None, 1, 2])
async def test_a_step_whose_item_was_stopped_before_it_started_has_not_succeeded(max_concurrency):
    async def double_at_once(item):
        return item * 2

    for turns in range(20):
        received = []
        run = asyncio.ensure_future(
            run_pipeline(
                over([1, 2], double_at_once),
                max_concurrency=max_concurrency,
                observers=[received.append],
            )
        )
        for _ in range(turns):
            await asyncio.sleep(0)
        if not run.done():
            run.cancel()
        await asyncio.wait([run])

        outputs = [
            event.output
            for event in received
            if isinstance(event, StepSucceeded) and (event.step, event.item) == ("m", None)
        ]
        assert outputs in ([], [[2, 4]])


async def test_a_stream_that_ignores_its_cancellation_provides_no_more_items():
    received = []

    class Stubborn(AsyncItems):
        async def __anext__(self):
            try:
                return await super().__anext__()
            except asyncio.CancelledError:
                return "one more"

    async def action(item):
        received.append(item)

    async def fail_later():
        await asyncio.sleep(0.002)
        raise ValueError

    report = await run_pipeline(
        [*over(Stubborn(2, "hang"), action), WorkflowStep("f", fail_later, ["source"])]
    )

    assert received == [0, 1]
    assert report["m"].status is CANCELLED


async def test_an_item_that_interrupts_stops_the_run_and_closes_the_stream():
    items = AsyncItems(3, "hang")
    stop = SystemExit(7)
    events = []

    async def action(item):
        if item == 1:
            raise stop
        await asyncio.Event().wait()

    with pytest.raises(SystemExit) as raised:
        await run_pipeline(over(items, action), observers=[events.append])

    assert raised.value is stop
    assert items.closed == 1
    assert isinstance(events[-1], RunFinished)


async def test_an_iteration_that_interrupts_stops_the_run():
    stop, events = SystemExit(7), []

    with pytest.raises(SystemExit) as raised:
        await run_pipeline(over(AsyncItems(2, stop), double), observers=[events.append])

    assert raised.value is stop
    kinds = [type(event).__name__ for event in events]
    assert kinds.index("RunInterrupted") < kinds.index("StepCancelled") == len(kinds) - 2
    assert events[-1].status == "INTERRUPTED"


async def test_an_item_that_cancels_itself_fails_alone():
    async def action(item):
        if item == 1:
            asyncio.current_task().cancel()
        await asyncio.sleep(0)
        return item

    report = await run_pipeline(over(range(3), action), fail_fast=False)

    assert [item.status for item in report["m"].items] == [SUCCESS, FAILED, SUCCESS]
    (error,) = report["m"].error.exceptions
    assert isinstance(error, StepCancelledError)


async def test_a_stream_that_awaits_something_cancelled_fails_the_step():
    report = await run_pipeline(
        over(AsyncItems(2, asyncio.CancelledError()), double), fail_fast=False
    )

    assert isinstance(report["m"].error, StepCancelledError)
    assert [item.output for item in report["m"].items] == [0, 2]


async def test_a_source_that_cancels_its_own_task_does_not_leave_the_mapped_step_cancelled():
    counts = []

    async def items():
        yield 1
        asyncio.current_task().cancel()
        await asyncio.sleep(0)

    def observe(event):
        if isinstance(event, StepFailed):
            counts.append(asyncio.current_task().cancelling())

    report = await run_pipeline(over(items(), double), fail_fast=False, observers=[observe])

    assert isinstance(report["m"].error, StepCancelledError)
    assert [item.output for item in report["m"].items] == [2]
    assert counts == [0]


@pytest.mark.parametrize("turns", range(8))
@pytest.mark.parametrize("limit", [None, 1])
async def test_a_third_party_that_cancels_a_waiting_mapped_step_changes_nothing(turns, limit):
    async def attacker():
        for _ in range(turns):
            await asyncio.sleep(0)
        (mapped,) = (task for task in step_tasks() if "Maps" in repr(task.get_coro()))
        mapped.cancel()

    report = await run_pipeline(
        [*over(range(250), double), WorkflowStep("attacker", attacker, ["source"])],
        max_concurrency=None if limit is None else 2,
    )

    assert report["m"].output == [item * 2 for item in range(250)]


# Limits.


class Gauge:
    """Counts how many of its calls run at the same time."""

    def __init__(self):
        self.running = self.highest = 0

    async def __call__(self, item):
        self.running += 1
        self.highest = max(self.highest, self.running)
        try:
            await asyncio.sleep(0.001)
            if current_step().attempt == 1 and item % 3 == 0:
                raise ValueError
        finally:
            self.running -= 1


@pytest.mark.parametrize(
    ("limit", "size", "highest"),
    [(None, None, 30), (4, None, 4), (None, 3, 3), (2, 5, 2), (5, 2, 2)],
)
async def test_no_more_items_run_at_once_than_the_limit_and_the_pool_allow(limit, size, highest):
    gauge, pool = Gauge(), Pool(size) if size else None

    report = await run_pipeline(
        over(range(30), gauge, max_retries=2, pool=pool), max_concurrency=limit
    )

    assert report.all_passed
    assert gauge.highest == highest
    assert pool is None or (pool.in_use, pool.waiting) == (0, 0)


async def test_a_limited_map_reads_its_items_only_as_fast_as_they_run():
    read = running = 0

    async def stream():
        nonlocal read
        for _ in range(50):
            read += 1
            yield read

    async def action(item):
        nonlocal running
        running += 1
        assert read <= running + 1
        await asyncio.sleep(0.001)

    report = await run_pipeline(over(stream, action), max_concurrency=1)

    assert report.all_passed


@pytest.mark.exhaustive
async def test_100_000_items_hold_no_more_tasks_and_values_than_run_at_once():
    if type(asyncio.get_running_loop()) is not VirtualTimeLoop:
        pytest.skip("once is enough for what takes seconds")
    live, most_tasks, most_values = weakref.WeakSet(), 0, 0

    class Value:
        pass

    def stream():
        for _ in range(100_000):
            value = Value()
            live.add(value)
            yield value

    calls = 0

    async def action(item):
        nonlocal calls, most_tasks, most_values
        calls += 1
        await asyncio.sleep(0)
        if calls % 5_000 == 0:
            most_tasks = max(most_tasks, len(asyncio.all_tasks()))
            most_values = max(most_values, len(live))

    gc.disable()
    try:
        report = await run_pipeline(over(stream, action), max_concurrency=100)
    finally:
        gc.enable()

    assert report["m"].attempts == calls == 100_000
    # Before 3.12, `wait_for` needs a task of its own for each attempt.
    assert most_tasks <= (105 if sys.version_info >= (3, 12) else 205)
    assert most_values <= 105


# Memory.


async def test_without_a_collector_a_dropped_report_frees_what_policies_held():
    hold = Holding()

    def raises(*_):
        thing = hold()
        raise KeyError(type(thing))

    def generator():
        thing = hold()
        yield 1
        raise OSError(type(thing))

    async def stream():
        thing = hold()
        yield 1
        raise OSError(type(thing))

    async def item_fails(item):
        thing = hold()
        await asyncio.sleep(0)
        raise ValueError(type(thing))

    async def item_fails_at_once(item):
        thing = hold()
        raise ValueError(type(thing))

    async def hangs(**_):
        thing = hold()
        await asyncio.Event().wait()
        return thing

    async def fails():
        thing = hold()
        raise ValueError(type(thing))

    async def succeed(**_):
        return hold()

    again = {"max_retries": 2}
    pipelines = [
        [WorkflowStep("a", succeed, when=raises)],
        [WorkflowStep("a", fails, retry=Retry(on=raises), **again)],
        [WorkflowStep("a", succeed, retry=Retry(until=raises), **again)],
        [WorkflowStep("a", succeed, retry=Retry(base_ms=0, until=lambda _: False), **again)],
        [WorkflowStep("a", hangs, heartbeat_ms=5)],
        [WorkflowStep("a", hangs, deadline_ms=5, **again)],
        [WorkflowStep("a", hangs, pool=Pool(1), timeout_ms=5, **again)],
        over(generator, succeed),
        over(stream, succeed),
        over(range(3), item_fails, **again),
        over(range(3), item_fails_at_once, **again),
        over(range(3), hangs, timeout_ms=5),
        [WorkflowStep("a", fails), WorkflowStep("b", fails, ["a"], run_if="always")],
        [WorkflowStep("h", hangs), WorkflowStep("b", succeed, ["h"], run_if="always")],
    ]
    with without_collector():
        for steps in pipelines:
            for options in ({}, {"max_concurrency": 2}):
                report = await run_pipeline(steps, False, deadline_ms=500, **options)
                assert not report.all_passed
                del report
                await asyncio.sleep(0)
                assert hold
                assert hold.alive() == [], steps
                hold.clear()


async def test_the_error_of_an_item_names_the_item():
    async def late(item):
        await asyncio.sleep(60 if item == 2 else 0)

    report = await run_pipeline(over([1, 2, 3], late, timeout_ms=20), fail_fast=False)

    (error,) = report["m"].error.exceptions
    assert error.step_name == "m[1]"
    assert str(error) == "attempt 1 of step 'm[1]' exceeded its timeout_ms of 20 ms"
    assert report["m"].error.message == (
        "1 of 3 items of step 'm' failed; the first is m[1]: StepTimeoutError: attempt 1 of step "
        "'m[1]' exceeded its timeout_ms of 20 ms"
    )
    with pytest.raises(ExceptionGroup) as raised:
        report.raise_for_failures()
    assert raised.value.__notes__ == [f"in step 'm' of run {report.run_id}"]


async def test_a_stream_that_cannot_be_closed_is_read_to_its_end():
    class Countdown:
        def __init__(self) -> None:
            self.left = 3

        def __aiter__(self):
            return self

        async def __anext__(self) -> int:
            if not self.left:
                raise StopAsyncIteration
            self.left -= 1
            return self.left

    async def stream():
        return Countdown()

    report = await run_pipeline(
        [
            WorkflowStep("stream", stream),
            WorkflowStep("double", double, {"item": "stream"}, map_over="stream"),
        ]
    )

    assert report["double"].output == [4, 2, 0]


@pytest.mark.parametrize("run_if", ["always", "failure"])
async def test_a_mapped_clean_up_step_is_skipped_if_its_source_has_no_output(run_if):
    loaded = []

    async def fail():
        raise OSError

    async def load(doubled):
        loaded.append(doubled)

    report = await run_pipeline(
        [
            WorkflowStep("rows", fail),
            WorkflowStep("doubled", double, {"item": "rows"}, map_over="rows", run_if=run_if),
            WorkflowStep("load", load, ["doubled"]),
        ],
        fail_fast=False,
    )

    assert [result.status for result in report.values()] == [FAILED, SKIPPED, SKIPPED]
    assert (report["doubled"].output, report["doubled"].items) == (None, None)
    assert report["doubled"].reason == "its items depend on step 'rows', which failed"
    assert report["load"].reason == "it depends on step 'rows', which failed"
    assert loaded == []


async def test_a_mapped_clean_up_step_is_skipped_by_condition_with_its_source():
    source, mapped = over([1, 2], double, run_if="always")

    report = await run_pipeline([replace(source, when=lambda: False), mapped])

    assert report["m"].by_condition
    assert report.all_passed


async def test_a_mapped_clean_up_step_runs_after_the_failure_of_another_dependency():
    async def fail():
        raise OSError

    source, mapped = over([1, 2], double, run_if="failure")
    mapped = replace(mapped, depends_on=["source", "fails"])

    report = await run_pipeline([source, WorkflowStep("fails", fail), mapped])

    assert report["m"].output == [2, 4]


async def test_an_internal_error_in_a_mapped_step_is_raised(monkeypatch):
    def fault(*_):
        raise RuntimeError("ours")

    monkeypatch.setattr("asyncflow._policies.mapping.common_error", fault)

    with pytest.raises(RuntimeError, match="ours"):
        await run_pipeline(over([1, 2], double))
