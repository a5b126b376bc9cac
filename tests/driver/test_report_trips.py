"""A report that makes a trip through JSON, or is pickled, is the same report.

Seeds and virtual time make each failure reproducible: its message names the seed and shows the
pipeline.
"""

from __future__ import annotations

import asyncio
import json
import pickle
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_runs import RUN_ID, CallingJournal, RandomPipeline
from turn_counting import TurnCountingLoop

from asyncflow import (
    Orchestrator,
    Pipeline,
    RunCancelledError,
    RunReport,
    Segment,
    WorkflowStep,
    after,
    run_pipeline,
)
from asyncflow._core.history.log import History
from asyncflow._core.history.report import report_of
from asyncflow._core.history.results import RunStatus, StepResult, to_restored_error, visible_output
from asyncflow._core.record import values_by_name
from asyncflow.events import (
    AttemptFailed,
    AttemptStarted,
    LoopBlocked,
    PoolPaused,
    RunFinished,
    RunStarted,
    RunTimedOut,
    StepCancelled,
    StepSkipped,
    StepSucceeded,
    ThreadAbandoned,
)
from tests.explore.threads import in_turns


def through_json(report):
    return RunReport.from_json(report.to_json())


def through_pickle(report):
    return pickle.loads(pickle.dumps(report))


TRIPS = pytest.mark.parametrize("trip", [through_json, through_pickle])


def shown(value):
    """Return a value as both reports have it: no secret, and of an error what JSON has."""
    if isinstance(value, BaseException):
        restored = to_restored_error(value)
        return restored.type_name, restored.message
    if hasattr(value, "_fields") and hasattr(value, "__dataclass_fields__"):
        values = {name: shown(each) for name, each in values_by_name(value).items()}
        if isinstance(value, StepResult):
            values["recorded"] = shown(value.history)
        if "output" in values:
            values["output"] = visible_output(value)
        return type(value).__name__, values
    if isinstance(value, tuple):
        return tuple(map(shown, value))
    return value


def assert_same(back, report):
    assert [*map(shown, back.results)] == [*map(shown, report.results)]
    assert [*map(shown, back.events())] == [*map(shown, report.events())]
    assert str(back) == str(report)
    assert back.to_html() == report.to_html()
    assert back.to_json() == report.to_json()


def forget_tracebacks(report):
    results = [each for result in report.results for each in (result, *(result.items or ()))]
    told = [*report.events(), *results, *(one for each in results for one in each.history)]
    for error in [getattr(each, "error", None) for each in told]:
        if error is not None:
            error.__traceback__ = error.__context__ = error.__cause__ = None


async def reports_of(pipeline, chance):
    """Return the reports of a run, of its resumptions wherever it has died, and of reruns."""
    journal = CallingJournal(latency_s=pipeline.latency_s)
    found = [await report_in(journal, pipeline)]
    count = len(journal.stored[RUN_ID])
    for stored in {0, count, *(chance.randint(1, count) for _ in range(3))}:
        found.append(await report_in(journal.died_after(stored), pipeline))
        found.append(await report_in(journal.died_after(stored), pipeline, stop_at=0.004))
        if stored:
            found.append(await report_of_rerun(journal.stored[RUN_ID][:stored], pipeline))
    return [report for report in found if report is not None]


async def report_in(journal, pipeline, stop_at=None):
    world = pipeline.world(journal, RUN_ID)
    running = asyncio.ensure_future(
        run_pipeline(
            pipeline.steps(world),
            journal=journal,
            run_id=RUN_ID,
            name="p",
            inputs=pipeline.inputs,
            resources=world.resources if pipeline.has_resource else {},
            observers=[world.observe],
            **pipeline.options,
        )
    )
    if stop_at is not None:
        asyncio.get_running_loop().call_later(stop_at, stop, journal)
    try:
        return await running
    except RunCancelledError as cancelled:
        return cancelled.report


async def report_of_rerun(events, pipeline):
    journal = CallingJournal(latency_s=pipeline.latency_s)
    journal.stored["origin"] = events
    world = pipeline.world(journal, RUN_ID)
    orchestrator = Orchestrator(
        pipeline.steps(world),
        journal=journal,
        resources=world.resources if pipeline.has_resource else {},
        observers=[world.observe],
        **pipeline.options,
    )
    return await orchestrator.rerun("origin", RUN_ID)


def stop(journal):
    session = journal.open_sessions.get(RUN_ID)
    if session is not None and session.is_watched:
        session.cancel()


@given(st.integers(0, 2**32))
def test_a_report_of_any_run_makes_a_trip(seed):
    pipeline = RandomPipeline(seed, rich=True)
    loop = TurnCountingLoop(None, eager=seed % 3 == 0)
    try:
        with in_turns(), asyncio.Runner(loop_factory=lambda: loop) as runner:
            reports = runner.run(reports_of(pipeline, random.Random(seed)))
        for report in reports:
            assert_same(through_json(report), report)
            forget_tracebacks(report)  # as pickle does
            assert_same(through_pickle(report), report)
    except BaseException as error:
        error.add_note(f"seed {seed}:\n{pipeline.describe()}")
        raise


@TRIPS
async def test_a_signal_keeps_its_place_among_the_events(trip):
    pipeline = Pipeline("d")
    ok = pipeline.signal("ok", int)

    @pipeline.step
    async def use(x: int = after(ok)) -> int:
        return x

    async with pipeline.start() as run:
        await run.signal("ok", 3)
        report = await run.report()

    back = trip(report)

    kinds = [type(event).__name__ for event in back.events()]
    assert kinds[1:3] == ["StepWaiting", "StepSucceeded"]
    assert_same(back, report)


@TRIPS
def test_what_no_result_tells_makes_a_trip(trip):
    history = History()
    history.log += [
        RunStarted("r", 5.0, {"a": (), "b": ("a",)}, max_retries={"a": 2, "b": 1}, process="one:1"),
        AttemptStarted("a", 1, 1.0, 0.5),
        PoolPaused(2.0, 9.0, "api", "a"),
        LoopBlocked("a", 1, 151.0, 150.0, "app.py:3 in work"),
        ThreadAbandoned("a", 1, 151.0),
        AttemptFailed("a", 1, 151.0, ValueError("no"), 7.5),
        RunTimedOut(152.0, 152.0),
        StepCancelled("a", 1, 152.0, "the run exceeded its deadline of 152 ms", None),
        StepSkipped("b", 152.0, "the run exceeded its deadline of 152 ms"),
        RunFinished(152.0, RunStatus.FAILED, "the run exceeded its deadline of 152 ms"),
    ]
    report = report_of(
        *(history, "r"),
        status=RunStatus.FAILED,
        total_duration_ms=152.0,
        wall_time=5.0,
        stop_reason="the run exceeded its deadline of 152 ms",
        segments=(Segment(0.0, 5.0, 152.0, "one:1"),),
    )

    assert_same(trip(report), report)


@TRIPS
async def test_what_no_trip_can_hold_has_one_stand_in(trip):
    async def opens():
        return lambda: None

    pipeline = Pipeline("p")
    pipeline.step(opens)
    report = await pipeline.run()

    back = trip(report)

    success = next(event for event in back.events() if isinstance(event, StepSucceeded))
    assert success.output == back["opens"].output
    assert "<function" in success.output.text
    assert json.loads(back.to_json()) == json.loads(through_json(back).to_json())
    assert [*map(shown, through_json(back).events())] == [*map(shown, back.events())]


@TRIPS
async def test_a_run_that_did_the_same_many_times_makes_a_trip(trip):
    no = ValueError("no")

    async def large():
        return 10**700  # JSON has the text of it

    async def fails(large):
        raise ValueError("no")

    async def raises_one():
        raise no

    journal = CallingJournal()
    for version in "123":
        steps = [
            WorkflowStep("large", large, version=version),
            WorkflowStep("fails", fails, ["large"]),
            WorkflowStep("raises_one", raises_one, max_retries=2),
        ]
        report = await run_pipeline(steps, journal=journal, run_id=RUN_ID, fail_fast=False)
    forget_tracebacks(report)
    back = trip(report)

    assert [each.attempts for each in report.results] == [3, 6, 3]
    assert back.to_json() == report.to_json()
    assert back.to_html() == report.to_html()
    assert_same(trip(back), back)


@TRIPS
async def test_a_run_that_was_resumed_and_stopped_in_a_backoff_makes_a_trip(trip):
    numbers = iter("123")

    async def fails():
        raise ValueError(f"no {next(numbers)}")

    steps, journal = [WorkflowStep("fails", fails, max_retries=2, retry=50)], CallingJournal()
    await run_pipeline(steps, journal=journal, run_id=RUN_ID)
    asyncio.get_running_loop().call_later(0.01, stop, journal)
    with pytest.raises(RunCancelledError) as cancelled:
        await run_pipeline(steps, journal=journal, run_id=RUN_ID)
    report = cancelled.value.report
    forget_tracebacks(report)

    back = trip(report)

    assert [str(each.error) for each in report["fails"].history] == ["no 1", "no 2", "no 3"]
    assert_same(back, report)


@pytest.mark.parametrize(
    ("at", "change", "problem"),
    [
        (1, {"step": "b"}, r"must lead to the results: they can't follow each other: "),
        (1, {"kind": "StepLogged"}, r"events\[1\]\.kind is that of no event: 'StepLogged'"),
        (1, {"kind": []}, r"events\[1\]\.kind must be text"),
        (1, {"at_ms": "now"}, r"events\[1\]\.at_ms must be a number"),
        (1, {"at_ms": -5.0}, r"must lead to the results: 'a' has duration_ms 5"),
        (0, {"run_id": "other"}, r"must lead to the results: they are those of run 'other'"),
        (0, {"dependencies": {"a": [], "b": []}}, r"results: the run has other steps"),
        (0, {"max_retries": {"a": 7}}, r"must lead to the results: 'a' has max_retries 7, not 1"),
        (0, {"secret": ["a"]}, r"must lead to the results: 'a' has output "),
        (2, {"output": 5}, r"must lead to the results: 'a' has output 5, not None"),
        (2, {"kind": "StepSkipped", "reason": "so"}, r"must lead to the results: "),
        (3, {"status": "FAILED"}, r"must lead to the results: the run is FAILED, not PASSED"),
    ],
)
async def test_json_whose_events_and_results_disagree_is_refused(at, change, problem):
    async def a():
        pass

    pipeline = Pipeline("p")
    pipeline.step(a)
    document = json.loads((await pipeline.run()).to_json())
    document["events"][at] |= change

    with pytest.raises(ValueError, match=rf"^not the JSON of a report: .*{problem}"):
        RunReport.from_json(json.dumps(document))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"total_duration_ms": 99.0}, r"the run took [\d.e-]+ ms, not 99\.0"),
        ({"stop_reason": "so"}, "the run has stop_reason None, not 'so'"),
    ],
)
async def test_json_whose_figures_disagree_with_its_events_is_refused(change, problem):
    document = json.loads((await Pipeline("p").run()).to_json()) | change

    with pytest.raises(ValueError, match=f"must lead to the results: {problem}"):
        RunReport.from_json(json.dumps(document))


@pytest.mark.parametrize("change", [{"wall_time": 5.0}, {"process": "other:1"}, {"at_ms": 5.0}])
async def test_json_of_a_resumed_run_whose_segments_disagree_is_refused(change):
    async def a():
        if not is_mended:
            raise ValueError("no")

    async def run():
        return await run_pipeline([WorkflowStep("a", a)], journal=journal, run_id=RUN_ID)

    is_mended, journal = False, CallingJournal()
    await run()
    is_mended = True
    document = json.loads((await run()).to_json())
    next(row for row in document["events"] if row["kind"] == "RunResumed").update(change)

    with pytest.raises(ValueError, match="must lead to the results: the run has other segments"):
        RunReport.from_json(json.dumps(document))
