"""Steps that are mapped over mapped steps: items flow from one to the next, and fail by themselves.

Under ``schedule="tiers"`` a step still waits for the tier before; all else is the same.
"""

from __future__ import annotations

import asyncio
import pickle
import tracemalloc

import pytest
from memory_journal import MemoryJournal
from turn_counting import TurnCountingLoop

from asyncflow import (
    Orchestrator,
    Pool,
    RunReport,
    StepStatus,
    WorkflowStep,
    current_step,
    run_pipeline,
)
from asyncflow._core.history.replay import StoredRun
from asyncflow._core.record import replace
from asyncflow._views.run_view import view_of
from asyncflow.events import (
    AttemptStarted,
    MapStarted,
    StepCancelled,
    StepFailed,
    StepReused,
    StepSkipped,
    StepSucceeded,
)

SUCCESS, FAILED, SKIPPED, CANCELLED = (
    StepStatus.SUCCESS,
    StepStatus.FAILED,
    StepStatus.SKIPPED,
    StepStatus.CANCELLED,
)
SCHEDULES = pytest.mark.parametrize("schedule", ["tiers", "ready"])


def through_json(report):
    return RunReport.from_json(report.to_json())


def through_pickle(report):
    return pickle.loads(pickle.dumps(report))


DONE = {StepSucceeded, StepFailed, StepSkipped, StepCancelled, StepReused}


class Chain:
    """``fetch`` over numbers, ``parse`` over that, ``store`` over that, and ``total`` of it all.

    The numbers in ``bad`` fail in ``fetch``. Those that come first take longest there.
    """

    def __init__(self, count=6, bad=(), **fetch):
        self.count, self.bad, self.options = count, bad, fetch
        self.calls = []

    def steps(self):
        return [
            WorkflowStep("numbers", self.numbers),
            WorkflowStep("fetch", self.fetch, {"n": "numbers"}, map_over="numbers", **self.options),
            WorkflowStep("parse", self.parse, {"n": "fetch"}, map_over="fetch"),
            WorkflowStep("store", self.store, {"n": "parse"}, map_over="parse"),
            WorkflowStep("total", self.total, {"ns": "store"}),
        ]

    async def numbers(self) -> list[int]:
        self.calls.append("numbers")
        return list(range(self.count))

    async def fetch(self, n: int) -> int:
        self.calls.append(f"fetch {n}")
        await asyncio.sleep((self.count - n) / 1000)
        if n in self.bad:
            raise ValueError(n)
        return n * 10

    async def parse(self, n: int) -> int:
        self.calls.append(f"parse {n // 10}")
        await asyncio.sleep(0.001)
        return n + 1

    async def store(self, n: int) -> int:
        self.calls.append(f"store {n // 10}")
        await asyncio.sleep(0)
        return n + 1

    async def total(self, ns: list[int]) -> list[int]:
        self.calls.append("total")
        return ns


def statuses(result):
    return {int(item.step_name.split("[")[1][:-1]): item.status for item in result.items}


# Flowing.


async def test_an_item_starts_as_soon_as_the_same_item_of_the_step_before_has_succeeded():
    chain, stored = Chain(3), asyncio.Event()

    async def fetch(n):
        if n == 0:
            await stored.wait()  # for ever, unless another item has gone all the way
        return n * 10

    async def store(n):
        stored.set()
        return await chain.store(n)

    steps = chain.steps()
    steps[1] = WorkflowStep("fetch", fetch, {"n": "numbers"}, map_over="numbers")
    steps[3] = WorkflowStep("store", store, {"n": "parse"}, map_over="parse")

    report = await run_pipeline(steps, schedule="ready")

    assert chain.calls.index("store 2") < chain.calls.index("parse 0")
    assert report["total"].output == [2, 12, 22]
    assert [item.output for item in report["parse"].items] == report["parse"].output == [1, 11, 21]


async def test_under_tiers_a_step_of_a_chain_waits_for_the_whole_step_before():
    chain = Chain(3)

    await run_pipeline(chain.steps())

    assert [call.split()[0] for call in chain.calls] == [
        *("numbers", "fetch", "fetch", "fetch", "parse", "parse", "parse"),
        *("store", "store", "store", "total"),
    ]
    assert chain.calls[4:7] == ["parse 0", "parse 1", "parse 2"]


async def test_a_step_of_a_chain_begins_with_its_first_item():
    events = []

    report = await run_pipeline(Chain(3).steps(), schedule="ready", observers=[events.append])

    begins = {e.step: e for e in events if isinstance(e, MapStarted)}
    first = next(e for e in events if isinstance(e, AttemptStarted) and e.step == "parse")
    assert begins["parse"].at_ms == first.at_ms == report["parse"].started_ms > 0
    assert begins["parse"].count == 3
    ends = [e.item for e in events if type(e) in DONE and e.step == "fetch"]
    assert ends == [2, 1, 0, None]


async def test_whoever_collects_the_middle_of_a_chain_gets_the_whole_list():
    async def middle(ns):
        return ns

    chain = Chain(4)
    steps = [*chain.steps(), WorkflowStep("middle", middle, {"ns": "parse"})]

    report = await run_pipeline(steps, schedule="ready")

    assert report["middle"].output == [1, 11, 21, 31]
    assert report["total"].output == [2, 12, 22, 32]


@pytest.mark.parametrize("is_stream", [False, True])
async def test_a_later_step_whose_source_has_ended_begins_with_the_number_of_its_items(is_stream):
    chain, seen = Chain(4), []

    async def stream():
        return iter(range(4))

    steps = chain.steps()
    if is_stream:
        steps[0] = WorkflowStep("numbers", stream)

    await run_pipeline(steps, schedule="tiers", observers=[seen.append])

    counts = {event.step: event.count for event in seen if isinstance(event, MapStarted)}
    assert counts == {"fetch": None if is_stream else 4, "parse": 4, "store": 4}


async def test_a_condition_is_asked_with_the_whole_output_and_so_keeps_the_barrier():
    asked = []

    def when(n):
        asked.append(n)
        return True

    chain = Chain(3)
    steps = chain.steps()
    steps[2] = WorkflowStep("parse", chain.parse, {"n": "fetch"}, map_over="fetch", when=when)

    report = await run_pipeline(steps, schedule="ready")

    assert asked == [[0, 10, 20]]
    assert chain.calls.index("parse 0") > chain.calls.index("fetch 2")
    assert report["total"].output == [2, 12, 22]


async def test_a_stream_flows_on_through_the_chain_while_it_still_produces():
    chain, stored = Chain(), asyncio.Event()

    async def stream():
        yield 5
        await stored.wait()  # for ever, unless the first item has gone all the way
        yield 4

    async def numbers():
        return stream()

    async def store(n):
        stored.set()
        return n

    steps = chain.steps()
    steps[0] = WorkflowStep("numbers", numbers)
    steps[3] = WorkflowStep("store", store, {"n": "parse"}, map_over="parse")

    report = await run_pipeline(steps, schedule="ready")

    assert report["total"].output == [51, 41]


# Backpressure.


@pytest.mark.parametrize(("slots", "most"), [(1, 100), (80, 160)])
async def test_a_fast_step_waits_for_a_slow_one_with_a_bounded_number_of_items(slots, most):
    made = taken = largest = 0

    async def numbers():
        return range(400)

    async def fast(numbers):
        nonlocal made, largest
        await asyncio.sleep(0)
        made += 1
        largest = max(largest, made - taken)

    async def slow(fast):
        nonlocal taken
        taken += 1
        await asyncio.sleep(0.001)

    report = await run_pipeline(
        [
            WorkflowStep("numbers", numbers),
            WorkflowStep("fast", fast, ["numbers"], map_over="numbers", pool=Pool(4)),
            WorkflowStep("slow", slow, ["fast"], map_over="fast", pool=Pool(slots)),
        ],
        schedule="ready",
    )

    assert report.all_passed
    assert taken == 400
    # Those under way end, and so do those that start until what has been taken begins, which before
    # 3.12 is a turn later; and the later step has one in hand.
    assert largest <= most + 2 * 4 + 2


@pytest.mark.parametrize("limit", [None, 1, 3])
async def test_a_later_step_that_also_waits_for_the_whole_source_stalls_nothing(limit):
    async def numbers():
        return range(300)

    async def copy(n):
        return n

    async def join(n, whole, side):
        return n + len(whole) + len(side)

    steps = [
        WorkflowStep("numbers", numbers),
        WorkflowStep("fetch", copy, {"n": "numbers"}, map_over="numbers"),
        WorkflowStep("parse", copy, {"n": "fetch"}, map_over="fetch"),
        WorkflowStep("side", copy, {"n": "fetch"}, map_over="fetch", pool=Pool(1)),
        WorkflowStep(
            "join", join, {"n": "parse", "whole": "fetch", "side": "side"}, map_over="parse"
        ),
    ]

    report = await run_pipeline(steps, schedule="ready", max_concurrency=limit)

    assert report["join"].output == [n + 600 for n in range(300)]


# Failing.


@SCHEDULES
async def test_a_failed_item_stops_its_own_lane_and_the_others_go_through(schedule):
    chain, events = Chain(6, bad=[1, 4]), []

    report = await run_pipeline(
        chain.steps(), fail_fast=False, schedule=schedule, observers=[events.append]
    )

    for name in "parse", "store":
        result = report[name]
        assert statuses(result) == {n: SKIPPED if n in (1, 4) else SUCCESS for n in range(6)}
        assert {item.reason for item in result.items if item.status is SKIPPED} == {
            "item 1 of step 'fetch' failed",
            "item 4 of step 'fetch' failed",
        }
        assert (result.status, result.reason) == (
            CANCELLED,
            f"its items depend on step {'fetch' if name == 'parse' else 'parse'!r}, "
            "which did not succeed",
        )
    assert (report["fetch"].status, report["total"].status) == (FAILED, SKIPPED)
    assert report["total"].reason == "it depends on step 'fetch', which failed"
    assert report.stop_reason is None
    causes = {e.step: e.cause for e in events if isinstance(e, StepCancelled)}
    assert causes == {"parse": "fetch", "store": "parse"}
    assert not StoredRun(events).was_stopping


@SCHEDULES
async def test_a_later_step_is_skipped_if_no_item_of_its_source_succeeded(schedule):
    report = await run_pipeline(Chain(2, bad=[0, 1]).steps(), fail_fast=False, schedule=schedule)

    assert [report[name].status for name in ("fetch", "parse", "store")] == [
        *(FAILED, SKIPPED, SKIPPED)
    ]
    assert report["parse"].reason == "it depends on step 'fetch', which failed"


@SCHEDULES
async def test_a_later_step_fails_by_failures_of_its_own(schedule):
    chain = Chain(3, bad=[0])

    async def parse(n):
        if n == 10:
            raise KeyError(n)
        return n

    steps = chain.steps()
    steps[2] = WorkflowStep("parse", parse, {"n": "fetch"}, map_over="fetch")

    report = await run_pipeline(steps, fail_fast=False, schedule=schedule)

    assert (report["parse"].status, report["store"].status) == (FAILED, CANCELLED)
    assert statuses(report["store"]) == {0: SKIPPED, 1: SKIPPED, 2: SUCCESS}
    assert [item.reason for item in report["store"].items[:2]] == [
        "item 0 of step 'fetch' failed",
        "item 1 of step 'parse' failed",
    ]


async def test_with_fail_fast_a_failed_item_stops_the_whole_chain():
    report = await run_pipeline(Chain(4, bad=[2]).steps(), schedule="ready")

    assert (report["fetch"].status, report["parse"].status) == (FAILED, CANCELLED)
    assert report.stop_reason == "step 'fetch' failed and fail_fast is on"


# Tolerated failures.


@pytest.mark.parametrize("fail_fast", [True, False])
@SCHEDULES
async def test_within_the_tolerance_a_step_succeeds_without_the_failed_items(schedule, fail_fast):
    chain = Chain(6, bad=[1, 4], tolerated_failures=2)

    report = await run_pipeline(chain.steps(), fail_fast, schedule=schedule)

    assert report.all_passed
    assert report["fetch"].output == [0, 20, 30, 50]
    assert report["total"].output == [2, 22, 32, 52]
    assert statuses(report["fetch"]) == {n: FAILED if n in (1, 4) else SUCCESS for n in range(6)}
    assert statuses(report["store"]) == {n: SKIPPED if n in (1, 4) else SUCCESS for n in range(6)}
    line = str(report).splitlines()[2]
    assert line.startswith("[SUCCESS] fetch (6 attempt(s), ")
    assert line.endswith("ms): 2 of 6 items failed, tolerated (ValueError x 2)")
    report.raise_for_failures()


async def fail_on(n):
    if n < 0:
        raise ValueError(n)
    return n


def over(values, tolerated):
    async def source():
        return values

    return [
        WorkflowStep("source", source),
        WorkflowStep(
            "m", fail_on, {"n": "source"}, map_over="source", tolerated_failures=tolerated
        ),
    ]


@pytest.mark.parametrize(
    ("failed", "count", "tolerated", "status"),
    [
        (29, 100, 0.29, SUCCESS),  # 0.29 * 100 is less than 29
        (30, 100, 0.29, FAILED),
        (1, 100, 0.01, SUCCESS),
        (1, 99, 0.01, FAILED),
        (3, 3, 1.0, SUCCESS),
        (1, 3, 1, SUCCESS),
        (2, 3, 1, FAILED),
        (1, 3, 0.0, FAILED),
        (0, 0, 0.5, SUCCESS),
    ],
)
@pytest.mark.parametrize("is_stream", [False, True])
async def test_an_int_is_a_count_and_a_float_a_share(failed, count, tolerated, status, is_stream):
    values = [-1] * failed + [1] * (count - failed)

    report = await run_pipeline(over(iter(values) if is_stream else values, tolerated), False)

    assert report["m"].status is status
    assert len(report["m"].items) == count


@pytest.mark.parametrize("told", [0, 2, 100])
async def test_a_share_is_of_the_items_that_came_whatever_their_collection_told(told):
    class Page(list):
        def __len__(self):
            return told

    for failed, status in ((1, SUCCESS), (3, FAILED)):
        values = Page([-1] * failed + [1] * (4 - failed))

        report = await run_pipeline(over(values, 0.5), False)

        assert (report["m"].status, len(report["m"].items)) == (status, 4)


@pytest.mark.exact_time
async def test_beyond_the_tolerance_fail_fast_stops_as_soon_as_that_is_certain():
    calls = []

    async def act(source):
        calls.append(source)
        await asyncio.sleep(0.001 * source)
        raise ValueError(source)

    async def source():
        return [1, 2, 3, 4, 5]

    report = await run_pipeline(
        [
            WorkflowStep("source", source),
            WorkflowStep("m", act, ["source"], map_over="source", tolerated_failures=0.2),
        ]
    )

    assert statuses(report["m"]) == {0: FAILED, 1: FAILED, **dict.fromkeys((2, 3, 4), CANCELLED)}
    assert "2 of 5 items of step 'm' failed" in str(report["m"].error)


def halved(tolerated, **options):
    """A step that loses each second of 20 items, and one that fails for each fifth."""

    async def numbers():
        return list(range(20))

    async def halve(n):
        if n % 2:
            raise ValueError(n)
        return n

    async def fail_at_0_and_10(n):
        calls.append(n)
        await asyncio.sleep(0.001 * n)
        if n % 10 == 0:
            raise ValueError(n)
        return n

    calls = []
    return calls, [
        WorkflowStep("numbers", numbers),
        WorkflowStep("half", halve, {"n": "numbers"}, map_over="numbers", tolerated_failures=0.5),
        WorkflowStep(
            "m",
            fail_at_0_and_10,
            {"n": "half"},
            map_over="half",
            tolerated_failures=tolerated,
            **options,
        ),
    ]


@pytest.mark.parametrize("schedule", ["tiers", "ready"])
@pytest.mark.parametrize("fail_fast", [True, False])
@pytest.mark.parametrize("keep_outputs", [True, False])
async def test_a_share_is_of_the_items_that_the_step_was_given(schedule, fail_fast, keep_outputs):
    _, steps = halved(0.2, keep_outputs=keep_outputs)
    report = await run_pipeline(steps, fail_fast, schedule=schedule)
    assert report["m"].status is SUCCESS
    line = str(report).splitlines()[3]
    assert line.endswith("ms): 2 of 10 items failed, tolerated (ValueError x 2)")

    _, steps = halved(0.19, keep_outputs=keep_outputs)
    report = await run_pipeline(steps, fail_fast, schedule=schedule)
    assert report["m"].status is FAILED
    assert "2 of 10 items of step 'm' failed" in str(report["m"].error)


@pytest.mark.exact_time
async def test_fail_fast_stops_when_the_items_that_are_skipped_make_a_failure_too_many():
    calls, steps = halved(0.05, pool=Pool(1))
    report = await run_pipeline(steps)

    # 1 of 20 is tolerated, and 1 of 19 is not.
    assert calls == [0]
    assert report["m"].status is FAILED
    assert "m" in report.stop_reason


@pytest.mark.exact_time
async def test_an_item_that_runs_is_stopped_when_a_skipped_one_makes_a_failure_too_many():
    async def first(number: int) -> int:
        if number == 2:
            await asyncio.sleep(1)
            raise ValueError(number)
        return number

    async def second(number: int) -> None:
        if number == 0:
            raise ValueError(number)
        await asyncio.sleep(10)

    numbers = {"number": "first"}
    report = await run_pipeline(
        [
            WorkflowStep("numbers", lambda: asyncio.sleep(0, [0, 1, 2])),
            WorkflowStep(
                "first", first, {"number": "numbers"}, map_over="numbers", tolerated_failures=1
            ),
            WorkflowStep("second", second, numbers, map_over="first", tolerated_failures=0.34),
        ],
        schedule="ready",
    )

    # 1 of 3 is tolerated. Once the third is skipped, 1 of 2 is not.
    assert [item.status for item in report["second"].items] == [FAILED, CANCELLED, SKIPPED]
    assert report.total_duration_ms == pytest.approx(1000)


async def test_a_resumed_run_counts_the_items_that_were_skipped_before():
    calls, steps = halved(0.1, pool=Pool(1))
    journal = MemoryJournal()
    options = {"journal": journal, "run_id": "r"}
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.025):
            await run_pipeline(steps, False, **options)
    report = await run_pipeline(steps, False, **options)

    assert sorted(set(calls)) == list(range(0, 20, 2))
    assert report["m"].status is FAILED
    assert "2 of 10 items of step 'm' failed" in str(report["m"].error)


@pytest.mark.parametrize("tolerated", [-1, -0.1, 1.1, float("nan"), float("inf")])
def test_a_tolerance_out_of_its_range_is_refused(tolerated):
    with pytest.raises(ValueError, match="tolerated_failures must be a count of at least 0, or a"):
        over([], tolerated)


@pytest.mark.parametrize("tolerated", [True, "1", None])
def test_a_tolerance_of_another_type_is_refused(tolerated):
    with pytest.raises(TypeError, match="tolerated_failures must be an int"):
        over([], tolerated)


def test_only_a_mapped_step_tolerates_failures():
    with pytest.raises(ValueError, match="'a': tolerated_failures is about the items of a mapped"):
        WorkflowStep("a", fail_on, tolerated_failures=1)


# Stopping.


@pytest.mark.parametrize("eager", [False, True])
def test_a_chain_that_is_cancelled_in_any_turn_leaves_nothing_behind(eager):
    turn, turns = 0, 1
    while turn <= turns:
        loop = TurnCountingLoop(turn, eager)

        async def main():
            chain = Chain(4, bad=[1], tolerated_failures=0.5)
            run = asyncio.Task(run_pipeline(chain.steps(), schedule="ready", max_concurrency=3))
            loop.victim = run  # noqa: B023
            await asyncio.wait([run])
            loop.victim = None  # noqa: B023
            assert asyncio.all_tasks() == {asyncio.current_task()}
            if not run.cancelled():
                assert run.result()["total"].output == [2, 22, 32]
            return run.cancelled()

        with asyncio.Runner(loop_factory=lambda: loop) as runner:  # noqa: B023
            assert runner.run(main()) == loop.cancel_accepted
        assert loop.complaints == []
        turn, turns = turn + 1, loop.turns
    assert turns > 10


# Durable.


def died_everywhere(journal):
    for stored in range(1, len(journal.stored["r"]) + 1):
        yield journal.died_after(stored), journal.stored["r"][:stored]


@pytest.mark.parametrize("first", ["tiers", "ready"])
@pytest.mark.parametrize("then", ["tiers", "ready"])
async def test_a_run_that_dies_anywhere_resumes_item_by_item_under_either_schedule(first, then):
    chain = Chain(4, bad=[1], tolerated_failures=1)
    journal = MemoryJournal()
    await run_pipeline(chain.steps(), schedule=first, journal=journal, run_id="r")

    for left, before in died_everywhere(journal):
        chain.calls.clear()

        report = await run_pipeline(chain.steps(), schedule=then, journal=left, run_id="r")

        assert report["total"].output == [2, 22, 32]
        assert statuses(report["store"]) == {0: SUCCESS, 1: SKIPPED, 2: SUCCESS, 3: SUCCESS}
        ended = {
            f"{e.step} {e.item}" if e.item is not None else e.step
            for e in before
            if isinstance(e, StepSucceeded | StepFailed)
        }
        assert ended.isdisjoint(chain.calls)


@SCHEDULES
async def test_after_a_crash_no_tolerated_failure_runs_again_and_in_a_rerun_only_those_do(schedule):
    chain, journal = Chain(4, bad=[1], tolerated_failures=1), MemoryJournal()
    orchestrator = Orchestrator(chain.steps(), schedule=schedule, journal=journal)
    await orchestrator.with_options(run_id="r").run()
    chain.bad = ()
    chain.calls.clear()

    again = await orchestrator.with_options(run_id="r").run()

    assert (again["total"].output, chain.calls) == ([2, 22, 32], [])

    rerun = await orchestrator.rerun("r")

    assert rerun["total"].output == [2, 12, 22, 32]
    assert chain.calls == ["fetch 1", "parse 1", "store 1", "total"]
    assert rerun["fetch"].rerun_reason == "1 item had failed"


@SCHEDULES
async def test_a_failed_run_resumes_with_the_lanes_that_failed(schedule):
    chain, journal = Chain(4, bad=[1]), MemoryJournal()
    options = {"fail_fast": False, "schedule": schedule, "journal": journal, "run_id": "r"}
    await run_pipeline(chain.steps(), **options)
    chain.bad = ()
    chain.calls.clear()

    report = await run_pipeline(chain.steps(), **options)

    assert report["total"].output == [2, 12, 22, 32]
    assert chain.calls == ["fetch 1", "parse 1", "store 1", "total"]


@SCHEDULES
async def test_a_secret_step_of_a_chain_runs_all_later_items_again(schedule):
    chain, journal = Chain(3, secret=True), MemoryJournal()
    await run_pipeline(chain.steps(), schedule=schedule, journal=journal, run_id="r")
    events = journal.stored["r"]
    at = max(n for n, e in enumerate(events) if isinstance(e, StepSucceeded) and e.step == "store")
    left = journal.died_after(at)  # store as a whole has not ended
    chain.calls.clear()

    report = await run_pipeline(chain.steps(), schedule=schedule, journal=left, run_id="r")

    assert report["total"].output == [2, 12, 22]
    assert {call.split()[0] for call in chain.calls} <= {"fetch", "parse", "store", "total"}


# Outputs that are not kept.


def slim(chain, *, whole=False):
    """The steps of a chain, of which none but the last one, if any, keeps its outputs."""
    steps = chain.steps()
    slimmed = [replace(step, keep_outputs=False) for step in steps[1 : 3 if whole else 4]]
    return [steps[0], *slimmed, *(steps[3:] if whole else [])]


@SCHEDULES
async def test_what_is_not_kept_flows_on_and_only_counts_and_failures_stay(schedule):
    chain, taken = Chain(6, bad=[1, 4], tolerated_failures=2), []

    async def store(n):
        taken.append(n)

    steps = slim(chain)
    steps[3] = WorkflowStep("store", store, {"n": "parse"}, map_over="parse", keep_outputs=False)

    report = await run_pipeline(steps, schedule=schedule)

    assert report.all_passed
    assert sorted(taken) == [1, 21, 31, 51]
    for name, attempts in ("fetch", 6), ("parse", 4), ("store", 4):
        result = report[name]
        assert (result.output, result.attempts, result.left_out) == (None, attempts, 4)
        assert statuses(result) == dict.fromkeys((1, 4), FAILED if name == "fetch" else SKIPPED)
    assert "2 of 6 items failed, tolerated" in str(report)
    assert RunReport.from_json(report.to_json())["fetch"].left_out == 4


@pytest.mark.parametrize("flaky", [False, True])
@pytest.mark.parametrize("trip", [lambda report: report, through_json, through_pickle])
async def test_a_view_counts_each_item_that_is_not_kept_once(trip, flaky):
    async def numbers():
        return iter(range(10))

    async def half(number):
        if flaky and number % 2 and current_step().attempt == 1:
            raise ValueError(number)

    steps = [
        WorkflowStep("numbers", numbers),
        WorkflowStep(
            *("half", half, {"number": "numbers"}),
            map_over="numbers",
            keep_outputs=False,
            max_retries=2,
        ),
    ]

    report = trip(await run_pipeline(steps))

    step = view_of(report).steps["half"]
    attempts = 15 if flaky else 10
    assert (report["half"].attempts, step.attempt_count) == (attempts, attempts)
    assert (report["half"].left_out, +step.tally) == (10, {SUCCESS: 10})
    assert len([event for event in report.events() if isinstance(event, MapStarted)]) == 1
    assert "10 items" in report.to_html()


@pytest.mark.parametrize("journal", [None, MemoryJournal()])
async def test_an_item_that_succeeds_in_a_later_attempt_is_counted_too(journal):
    async def flaky(n):
        if current_step().attempt <= n % 3:
            raise ValueError(n)

    async def source():
        return list(range(7))

    steps = [
        WorkflowStep("source", source),
        WorkflowStep(
            *("m", flaky, {"n": "source"}),
            map_over="source",
            max_retries=2,
            keep_outputs=False,
            tolerated_failures=2,
            pool=Pool(2),
        ),
    ]

    report = await run_pipeline(steps, journal=journal)

    assert (report["m"].attempts, report["m"].left_out) == (7 + 2 + 2, 5)
    assert statuses(report["m"]) == {2: FAILED, 5: FAILED}
    assert len(report["m"].items[0].history) == 2


@pytest.mark.parametrize("eager", [False, True])
def test_a_long_map_that_keeps_nothing_needs_no_memory_for_what_has_ended(eager):
    async def source():
        return iter(range(5_000))

    async def grow(n):
        return bytes(1_000)

    async def check(n):
        assert len(n) == 1_000

    steps = [
        WorkflowStep("source", source),
        WorkflowStep("grow", grow, {"n": "source"}, map_over="source", keep_outputs=False),
        WorkflowStep("check", check, {"n": "grow"}, map_over="grow", keep_outputs=False),
    ]

    async def main():
        tracemalloc.start()
        try:
            report = await run_pipeline(steps, schedule="ready", max_concurrency=10)
            return report, tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    loop = TurnCountingLoop(None, eager)
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        report, peak = runner.run(main())

    assert report["check"].left_out == 5_000
    assert peak < 1_000_000  # with all outputs it would be more than 5 MB


@SCHEDULES
async def test_a_chain_that_keeps_nothing_resumes_item_by_item(schedule):
    chain = Chain(4, bad=[1], tolerated_failures=1)
    journal = MemoryJournal()
    await run_pipeline(slim(chain, whole=True), schedule=schedule, journal=journal, run_id="r")

    for left, before in died_everywhere(journal):
        chain.calls.clear()

        report = await run_pipeline(
            slim(chain, whole=True), schedule=schedule, journal=left, run_id="r"
        )

        assert report["total"].output == [2, 22, 32]
        assert (report["parse"].left_out, report["parse"].output) == (3, None)
        assert StoredRun(left.stored["r"]).steps["fetch"].to_result(0.0).left_out == 3
        ended = {f"{e.step} {e.item}" for e in before if isinstance(e, StepSucceeded)}
        assert ended.isdisjoint(chain.calls)


@pytest.mark.parametrize("kind", ["parameter", "condition", "everything"])
def test_what_is_not_kept_cannot_be_taken_as_a_whole(kind):
    async def taker(ns):
        return ns

    async def all_of_it(**outputs):
        return outputs

    steps = slim(Chain())
    action, when = (all_of_it if kind == "everything" else taker), None
    options = {}
    if kind == "condition":
        when = lambda store: bool(store)  # noqa: E731
        options, action = {"when": when}, Chain().numbers
    steps.append(
        WorkflowStep(
            "taker", action, {"ns": "store"} if kind == "parameter" else ["store"], **options
        )
    )

    with pytest.raises(
        ValueError, match="'taker' takes the output of step 'store', which has keep"
    ):
        Orchestrator(steps)


async def test_a_step_may_come_after_one_that_keeps_nothing():
    chain = Chain(2)

    report = await run_pipeline([*slim(chain), WorkflowStep("done", chain.numbers, ["store"])])

    assert report.all_passed


@pytest.mark.parametrize("keep", [1, None, "no"])
def test_keep_outputs_must_be_a_bool(keep):
    with pytest.raises(TypeError, match="keep_outputs must be True or False"):
        WorkflowStep("m", fail_on, {"n": "source"}, map_over="source", keep_outputs=keep)


def test_only_a_mapped_step_can_keep_no_outputs():
    with pytest.raises(ValueError, match="'a': keep_outputs is about the items of a mapped step"):
        WorkflowStep("a", fail_on, keep_outputs=False)


async def test_the_results_of_items_are_not_there_to_be_read_if_no_output_is_kept():
    async with Orchestrator(slim(Chain(2))).start() as run:
        with pytest.raises(ValueError, match="step 'store' keeps no outputs of its items"):
            run.results("store")
        assert [result.left_out async for result in run.results()] == [0, 2, 2, 2]


async def test_an_item_of_a_clean_up_step_is_not_taken_for_one_that_was_asked_to_stop():
    async def source():
        return [0]

    async def stubborn(n):
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return n

    async def fail():
        await asyncio.sleep(0.001)
        raise ValueError

    async def clean_up(n):
        raise KeyError(n)

    report = await run_pipeline(
        [
            WorkflowStep("source", source),
            WorkflowStep(
                "stubborn", stubborn, {"n": "source"}, map_over="source", keep_outputs=False
            ),
            WorkflowStep("fail", fail, ["source"]),
            WorkflowStep(
                "clean up", clean_up, {"n": "stubborn"}, map_over="stubborn", run_if="always"
            ),
        ]
    )

    assert report["stubborn"].status is SUCCESS
    assert statuses(report["clean up"]) == {0: FAILED}


async def test_two_maps_that_keep_nothing_do_not_wait_for_items_of_each_other():
    async def first():
        return [0, 1, 2, 3]

    async def second():
        async def stream():
            await asyncio.sleep(0)
            yield 0

        return stream()

    async def at_once(n):
        return n

    steps = [
        WorkflowStep("second", second),
        WorkflowStep("first", first, when=lambda: True),
        WorkflowStep("m", at_once, {"n": "first"}, map_over="first", keep_outputs=False),
        WorkflowStep("other", at_once, {"n": "second"}, map_over="second"),
    ]

    report = await run_pipeline(steps)

    assert (report["m"].left_out, report["other"].output) == (4, [0])
