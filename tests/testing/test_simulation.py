"""Simulated runs misbehave as their seed says; an exploration finds the run that must not be."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import sys
import threading

import pytest
from fake_engine import FakeEngine
from memory_journal import MemoryJournal

from asyncflow import (
    Orchestrator,
    Pipeline,
    Pool,
    Retry,
    StepStatus,
    WorkflowStep,
    after,
    current_step,
    each,
    run_pipeline,
)
from asyncflow.testing import (
    Exploration,
    ExplorationError,
    Faults,
    HangError,
    SimulatedError,
    explore,
    fails,
    fake,
    simulate,
)
from asyncflow.testing._recorded_runs import RecordedRuns

pipeline = Pipeline("etl")


@pipeline.step(max_retries=3, retry=Retry(base_ms=1_000), timeout_ms=5_000)
async def extract(url: str) -> list[int]:
    await asyncio.sleep(1)
    return [1, 2, 3]


@pipeline.step(max_retries=2)
async def double(row: int = each(extract)) -> int:
    await asyncio.sleep(0)
    return row * 2


@pipeline.step(runs_in="thread")
def load(url: str) -> str:
    return threading.current_thread().name


INPUTS = {"url": "u"}


def figures(report):
    return [
        (result.step_name, result.status, result.attempts, result.started_ms, str(result.error))
        for result in report.results
    ], report.total_duration_ms


def test_without_faults_only_the_order_is_random():
    report = simulate(pipeline, INPUTS, seed=3)

    assert report.all_passed
    assert report["double"].output == [2, 4, 6]
    assert report["load"].output == threading.current_thread().name
    assert report.run_id == "seed-3"
    assert report.total_duration_ms == 1_000


def test_the_same_seed_makes_the_same_run_and_others_make_others():
    def run(seed):
        return figures(simulate(pipeline, INPUTS, seed=seed, faults=Faults()))

    assert [run(seed) for seed in range(20)] == [run(seed) for seed in range(20)]
    assert len({str(run(seed)) for seed in range(20)}) > 10


def one_step(action, **options):
    return [WorkflowStep("one", action, **options)]


async def works():
    await asyncio.sleep(1)
    return "done"


def only(**faults):
    return Faults(**{"fail": 0, "hang": 0, "slow": 0, "swallow": 0, "cancel": 0} | faults)


def test_attempts_fail_before_or_after_their_action():
    calls = []

    async def action():
        calls.append("called")

    reports = [simulate(one_step(action), seed=seed, faults=only(fail=1)) for seed in range(20)]

    assert {type(report["one"].error) for report in reports} == {SimulatedError}
    assert 0 < len(calls) < 20


def test_attempts_hang_until_their_time_limit():
    report = simulate(one_step(works, timeout_ms=7_000, max_retries=2), faults=only(hang=1))

    assert report.total_duration_ms == 14_000


def test_a_hang_without_a_time_limit_is_reported():
    with pytest.raises(HangError, match="asyncflow:seed-0:one#1 at"):
        simulate(one_step(works, timeout_ms=None), faults=only(hang=1))


@pytest.mark.parametrize(("timeout_ms", "latest_ms"), [(4_000, 8_000), (None, 60_000)])
def test_attempts_are_slow(timeout_ms, latest_ms):
    steps = one_step(works, timeout_ms=timeout_ms)
    reports = [simulate(steps, seed=seed, faults=only(slow=1)) for seed in range(30)]

    passed = [report.total_duration_ms for report in reports if report.all_passed]
    assert all(1_000 < ms <= (timeout_ms or latest_ms + 1_000) for ms in passed)
    assert len({*passed}) > 3
    assert (len(passed) == 30) is (timeout_ms is None)


@pytest.mark.parametrize(("seconds", "ends_ms"), [(3, 3_000), (1_000, 62_000)])
def test_attempts_ignore_their_cancellation_for_up_to_a_minute(seconds, ends_ms):
    async def action():
        await asyncio.sleep(seconds)
        return "late"

    report = simulate(one_step(action, timeout_ms=2_000), faults=only(swallow=1))

    assert report["one"].status is StepStatus.FAILED
    assert report["one"].output is None
    assert report.total_duration_ms == ends_ms


def test_a_run_is_cancelled_in_any_turn():
    reports = [simulate(pipeline, INPUTS, seed=7, cancel_at=turn) for turn in range(25)]

    statuses = [report.status for report in reports]
    last = statuses.index("PASSED")
    assert 8 < last < 25
    assert {*statuses[:last]} == {"INTERRUPTED"}
    assert {*statuses[last:]} == {"PASSED"}
    assert reports[last - 1]["extract"].output == [1, 2, 3]


def test_a_run_may_be_cancelled_before_it_begins():
    reports = [simulate(pipeline, INPUTS, seed=seed, cancel_at=0) for seed in range(10)]

    assert {report.status for report in reports} == {"INTERRUPTED"}
    assert all([*report] == ["extract", "load", "double"] for report in reports)
    assert all(report.inputs == INPUTS and report.pipeline == "etl" for report in reports)
    reasons = {report["load"].reason for report in reports}
    assert "the run was cancelled before it began" in reasons


def test_a_run_that_is_cancelled_before_it_begins_has_only_its_targets():
    part = pipeline.with_options(targets=["extract"])
    reports = [simulate(part, INPUTS, seed=seed, cancel_at=0) for seed in range(10)]

    assert all([*report] == ["extract"] for report in reports)


def test_faults_leave_random_numbers_as_they_were():
    random.seed(1)
    expected = random.random()
    random.seed(1)

    simulate(pipeline, INPUTS, seed=9, faults=Faults())

    assert random.random() == expected


def test_nothing_is_stored_and_no_observer_is_notified():
    journal, events = MemoryJournal(), []
    orchestrator = Orchestrator(one_step(works), journal=journal, observers=[events.append])

    assert simulate(orchestrator).all_passed

    assert not journal.stored
    assert not events


def test_engines_are_left_out_of_simulations():
    engine = FakeEngine()
    steps = [WorkflowStep("a", works), WorkflowStep("b", works, engine=engine)]

    report = simulate(Orchestrator(steps, engine=engine))

    assert report.all_passed
    assert engine.calls == []


def test_fakes_work_in_a_simulation_beneath_its_faults():
    with fake(pipeline, extract=[5], load=fails(1)) as fakes:
        done = explore(pipeline, INPUTS, seeds=30, faults=Faults(cancel=0))

    assert done.runs == 30
    assert done.passed == 0
    assert 0 < len(fakes["extract"].calls) < 90


def test_only_the_pipeline_has_faults_and_not_another_run_within_it():
    async def nested():
        report = await run_pipeline(one_step(works))
        return report.all_passed

    report = simulate([WorkflowStep("outer", nested, timeout_ms=None)], faults=only(fail=1))
    slow = simulate([WorkflowStep("outer", nested, timeout_ms=None)], faults=only(slow=1))

    assert isinstance(report["outer"].error, SimulatedError)
    assert slow["outer"].output is True


def test_each_run_begins_with_pools_that_no_other_has_used():
    """Else a seed that an exploration finds makes another run alone."""
    api = Pool(1, per_minute=6, retry_budget=0.1)
    calls, outer = Pipeline("calls"), Pipeline("outer")

    @calls.step(pool=api, max_retries=3)
    async def call() -> float:
        if current_step().attempt < 3:
            raise OSError("try again")
        return asyncio.get_running_loop().time()

    @outer.step
    async def nested() -> float:
        return (await calls.run())["call"].output

    ends_s = []
    explore(
        calls, seeds=20, faults=only(), check=lambda report: ends_s.append(report["call"].output)
    )
    explore(outer, seeds=20, faults=only(), check=lambda run: ends_s.append(run["nested"].output))

    assert ends_s == [1_020.0] * 40  # each waits twice for ten seconds
    assert api.stats().retries_left == pytest.approx(8.1)


def test_a_run_that_was_given_up_leaves_no_slot_taken(monkeypatch):
    monkeypatch.setattr("asyncflow.testing._simulation._MOST_TURNS", 100)
    monkeypatch.setattr("asyncflow.testing._simulation._LAST_TURNS", 10)
    api, ends = Pool(1), False

    async def call() -> None:
        while not ends:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0)

    steps = [WorkflowStep("call", call, pool=api)]
    with pytest.raises(RuntimeError, match="the run has not ended"):
        simulate(steps)
    ends = True

    assert simulate(steps).all_passed


def test_an_exploration_says_how_the_runs_ended():
    done = explore(pipeline, INPUTS, seeds=100)

    assert done.runs == done.passed + done.failed + done.interrupted == 100
    assert min(done.passed, done.failed, done.interrupted) > 5


def test_the_runs_of_an_exploration_are_not_recorded_for_the_report_of_its_test():
    recorded = RecordedRuns()
    recorded.begin()
    try:
        explore(pipeline, INPUTS, seeds=3)
        assert not recorded
        simulate(pipeline, INPUTS)
        assert recorded
    finally:
        recorded.end()


def test_an_exploration_can_cancel_everywhere():
    done = explore(pipeline, lambda: INPUTS, seeds=[1, 2], faults=only(), cancel_everywhere=True)

    # The last cancellation of each seed comes after the end of the last step; before 3.12 up to two
    # before it too, since an attempt has a task of its own, which that of its step then awaits.
    assert done.passed in ([4] if sys.version_info >= (3, 12) else [6, 7, 8])
    assert done == Exploration(done.runs, done.passed, 0, done.runs - done.passed)
    assert done.interrupted > 15


class Store:
    """What a step changes: it must be there once for each run that passed."""

    def __init__(self):
        self.rows = []


def storing():
    etl = Pipeline("store")

    @etl.step(max_retries=3)
    async def insert(store):
        store.rows.append("row")

    @etl.step
    async def finish(inserted=after(insert)): ...

    return etl


def stored_once(report):
    assert len(report.inputs["store"].rows) <= 1, "stored twice"


def test_an_exploration_stops_at_the_smallest_seed_of_a_run_that_must_not_be():
    faults = Faults(cancel=0)
    with pytest.raises(ExplorationError) as raised:
        explore(storing(), lambda: {"store": Store()}, faults=faults, check=stored_once)

    error = raised.value
    assert error.cancel_at is None
    assert error.replay == f"simulate(pipeline, inputs, seed={error.seed}, faults=Faults(cancel=0))"
    assert "insert: attempt 1 is made to fail after its action" in str(error)
    assert f"with seed {error.seed}: the check failed: AssertionError: stored twice" in str(error)
    assert isinstance(error.__cause__, AssertionError)
    for seed in range(error.seed + 1):
        report = simulate(storing(), lambda: {"store": Store()}, seed=seed, faults=faults)
        assert (len(report.inputs["store"].rows) > 1) is (seed == error.seed)


def test_a_check_may_return_false_and_a_cancellation_is_replayed():
    with pytest.raises(ExplorationError, match="the check returned False") as raised:
        explore(
            pipeline,
            INPUTS,
            faults=only(),
            cancel_everywhere=True,
            check=lambda report: "double" not in report or report["double"].attempts < 1,
        )

    assert raised.value.cancel_at > 0
    assert f"cancelled in turn {raised.value.cancel_at}: the check" in str(raised.value)
    assert raised.value.replay.endswith(f"cancel=0), cancel_at={raised.value.cancel_at})")


def raises_nothing(report):
    with pytest.raises(ValueError):  # noqa: PT011
        report.raise_for_failures()


def test_a_check_may_use_what_pytest_offers():
    with pytest.raises(ExplorationError, match=r"with seed 0: .* Failed: DID NOT RAISE"):
        explore(one_step(works), faults=only(), check=raises_nothing)
    with pytest.raises(pytest.skip.Exception, match="not here"):
        explore(one_step(works), check=lambda _: pytest.skip("not here"))


class Ambiguous:
    def __bool__(self):
        raise ValueError("ambiguous, as an array")


class NumpyFalse:
    def __bool__(self):
        return False


@pytest.mark.parametrize("answer", [0, "", [], NumpyFalse()])
def test_a_falsy_answer_of_a_check_fails(answer):
    with pytest.raises(ExplorationError) as raised:
        explore(one_step(works), faults=only(), check=lambda _: answer)

    assert raised.value.problem == f"the check returned {answer!r}"


async def check_nothing(report):
    raise AssertionError


def check_later(report):
    raise AssertionError
    yield


def test_what_would_check_nothing_is_refused():
    with pytest.raises(TypeError, match="check must be a plain function, not an async one"):
        explore(pipeline, INPUTS, check=check_nothing)
    with pytest.raises(TypeError, match="check must be a plain function, not an async one"):
        explore(pipeline, INPUTS, check=lambda report: check_nothing(report))
    for answer in (check_later, lambda report: check_later, lambda _: 1, lambda _: Ambiguous()):
        with pytest.raises(TypeError, match="check must return None, True or False, not"):
            explore(one_step(works), faults=only(), check=answer)
    with pytest.raises(ValueError, match="seeds must be at least 1, not 0"):
        explore(pipeline, INPUTS, seeds=0)
    with pytest.raises(ValueError, match="seeds must have at least one seed"):
        explore(pipeline, INPUTS, seeds=[])


def test_a_run_that_hangs_is_found():
    with pytest.raises(ExplorationError, match="HangError: nothing can ever happen") as raised:
        explore(one_step(works, timeout_ms=None))

    assert raised.value.log[-1].endswith("one: attempt 1 is made to hang")


def test_tasks_that_are_left_behind_are_found():
    tasks = []

    async def leaves():
        tasks.append(asyncio.create_task(asyncio.sleep(1_000), name="left"))

    with pytest.raises(ExplorationError, match="these tasks are left:\n  left at") as raised:
        explore(one_step(leaves))

    assert raised.value.seed == 0


@pytest.mark.parametrize("wait", [asyncio.sleep, lambda s: asyncio.create_task(asyncio.sleep(s))])
def test_a_step_that_ignores_every_cancellation_is_found(wait):
    async def ignores():
        while True:
            with contextlib.suppress(asyncio.CancelledError):
                await wait(1)

    with pytest.raises(ExplorationError) as raised:
        explore(one_step(ignores, timeout_ms=2_000), faults=only())

    problem = raised.value.problem
    assert "attempt 1 of step 'one' goes on an hour after it was cancelled; it is at " in problem
    assert problem.endswith(
        "in test_a_step_that_ignores_every_cancellation_is_found.<locals>.ignores"
    )


@pytest.mark.parametrize("faults", [only(cancel=1), only(slow=1), only(fail=0.5)])
def test_a_step_that_swallows_its_cancellation_and_returns_is_found(faults):
    async def swallows():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(25)

    with pytest.raises(ExplorationError, match="attempt 1 of step 'one' swallowed its cancell"):
        explore([*one_step(swallows), WorkflowStep("other", works)], faults=faults)


def test_steps_that_end_their_own_waits_swallow_nothing():
    async def has_a_timeout():
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.5):
                await asyncio.sleep(1)

    async def cancels_a_task():
        async with asyncio.TaskGroup() as group:
            task = group.create_task(asyncio.sleep(1))
            await asyncio.sleep(0.5)
            task.cancel()

    async def cleans_up():
        try:
            await asyncio.sleep(1)
        finally:
            await asyncio.sleep(10)

    actions = {"a": has_a_timeout, "b": cancels_a_task, "c": cleans_up}
    steps = [WorkflowStep(name, action) for name, action in actions.items()]

    assert explore(steps, seeds=200, faults=Faults(fail=0.2, cancel=0.5)).interrupted > 20


def test_a_run_that_keeps_busy_without_an_end_is_found(monkeypatch):
    monkeypatch.setattr("asyncflow.testing._simulation._MOST_TURNS", 500)

    async def spins():
        while True:
            await asyncio.sleep(0)

    with pytest.raises(
        RuntimeError, match=r"has not ended after 500 turns .+: attempt 1 of step 'one'"
    ):
        simulate(one_step(spins))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # its task is lost
def test_a_run_that_keeps_busy_although_it_is_cancelled_is_given_up(monkeypatch):
    monkeypatch.setattr("asyncflow.testing._simulation._MOST_TURNS", 500)
    monkeypatch.setattr("asyncflow.testing._simulation._LAST_TURNS", 50)

    async def spins():
        while True:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0)

    with pytest.raises(RuntimeError, match="has not ended after 500 turns"):
        simulate(one_step(spins))
    gc.collect()


def test_a_long_log_is_cut(monkeypatch):
    monkeypatch.setattr("asyncflow.testing._simulation._MOST_LINES", 2)

    with pytest.raises(ExplorationError) as raised:
        explore(one_step(works), check=lambda report: False)

    assert "\n  and 3 more lines\n" in str(raised.value)
    assert len(raised.value.log) == 5


async def test_a_simulation_runs_a_loop_of_its_own():
    with pytest.raises(RuntimeError, match="run an event loop of their own"):
        simulate(pipeline, INPUTS)


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="Faults: fail must be at most 1, not 2"):
        Faults(fail=2)
    with pytest.raises(ValueError, match="Faults: slow must be finite and at least 0"):
        Faults(slow=-1)
    with pytest.raises(ValueError, match="must not exceed 1 together"):
        Faults(fail=0.6, hang=0.6)
    with pytest.raises(ValueError, match="cancel_at must be at least 0"):
        simulate(pipeline, INPUTS, cancel_at=-1)
