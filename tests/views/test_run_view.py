"""A run view is built from the events of a run, or from its report.

`tests/driver/test_random_durable_runs.py` compares it with the reports of random runs.
"""

import pickle

import pytest
from golden_run import (
    EVENTS_BEFORE_CRASH,
    GOLDEN,
    HOSTILE,
    LONG,
    SECRET,
    WALL_TIME,
    golden_report,
)
from mapped_run import chain_run

from asyncflow import (
    Attempt,
    IllegalEventError,
    RunReport,
    RunStatus,
    StepResult,
    StepStatus,
)
from asyncflow._views.run_view import RunView
from asyncflow.events import (
    AttemptBegan,
    AttemptFailed,
    AttemptLocated,
    AttemptStarted,
    MapStarted,
    RunFinished,
    RunInterrupted,
    RunResumed,
    RunStarted,
    RunTimedOut,
    StepCancelled,
    StepFailed,
    StepReused,
    StepSkipped,
    StepSucceeded,
)

PENDING, RUNNING, SUCCESS = StepStatus.PENDING, StepStatus.RUNNING, StepStatus.SUCCESS
FAILED, SKIPPED, CANCELLED = StepStatus.FAILED, StepStatus.SKIPPED, StepStatus.CANCELLED
BOOM = ValueError("boom")


def run_started(*names, **edges):
    dependencies = {**dict.fromkeys(names, ()), **edges}
    return RunStarted("r", 100.0, dependencies, max_retries=dict.fromkeys(dependencies, 3))


def view_of(*events):
    return RunView(events)


class TestEngines:
    """Attempts that wait for a worker of an engine before they begin."""

    STARTED = AttemptStarted("a", 1, 10.0, 5.0, engine="dask")
    BEGAN = AttemptBegan("a", 1, 40.0, "dask", "w1")

    def test_an_attempt_is_queued_until_it_begins(self):
        step = view_of(run_started("a"), self.STARTED).steps["a"]

        assert (step.status, step.latest.is_queued) == (RUNNING, True)
        assert (step.engine, step.worker, step.queued_ms) == ("dask", "", 5.0)

    def test_a_first_attempt_that_took_no_time_has_started_too(self):
        step = view_of(
            run_started("a"),
            self.STARTED,
            self.BEGAN,
            AttemptFailed("a", 1, 40.0, BOOM, 0.0),
            AttemptStarted("a", 2, 40.0, engine="dask"),
            AttemptBegan("a", 2, 50.0, "dask", "w2"),
            StepSucceeded("a", 2, 50.0, None),
        ).steps["a"]

        assert (step.started_ms, step.duration_ms(0.0)) == (40.0, 10.0)

    def test_it_has_started_in_an_earlier_segment(self):
        step = view_of(
            run_started("a"),
            self.STARTED,
            self.BEGAN,
            RunResumed("r", 60.0, 200.0, {"a": ()}, {}, unfinished={"a": "it had not finished"}),
            AttemptStarted("a", 2, 70.0, engine="ray"),
            AttemptBegan("a", 2, 80.0, "ray", "w9"),
            StepSucceeded("a", 2, 90.0, None),
        ).steps["a"]

        assert (step.started_ms, step.duration_ms(0.0)) == (40.0, 20.0 + 10.0)
        result = step.to_result(90.0)
        assert (result.engine, result.worker) == ("ray", "w9")
        assert [(each.engine, each.worker) for each in result.history] == [
            ("dask", "w1"),
            ("ray", "w9"),
        ]

    def test_an_attempt_that_ends_in_the_queue_was_only_queued(self):
        step = view_of(
            run_started("a"), self.STARTED, StepCancelled("a", 1, 30.0, "stopped", None)
        ).steps["a"]

        assert (step.latest.is_queued, step.worker) == (False, "")
        assert (step.started_ms, step.duration_ms(0.0), step.queued_ms) == (30.0, 0.0, 25.0)

    def test_only_the_attempt_that_runs_can_begin(self):
        late = StepSucceeded("a", 1, 50.0, None)
        for before in [], [AttemptStarted("a", 2, 1.0)], [self.STARTED, self.BEGAN, late]:
            with pytest.raises(IllegalEventError):
                view_of(run_started("a"), *before, self.BEGAN)


class TestRun:
    @pytest.mark.parametrize(
        ("events", "word", "reason"),
        [
            ([], "RUNNING", None),
            (
                [RunInterrupted(1.0, "the caller was cancelled")],
                "STOPPING",
                "the caller was cancelled",
            ),
            ([RunTimedOut(1.0, 5.0)], "STOPPING", "the run exceeded its deadline of 5 ms"),
            (
                [RunInterrupted(1.0, "first"), RunTimedOut(1.0, 5.0)],
                "STOPPING",
                "first",
            ),
            ([RunFinished(1.0, RunStatus.FAILED, "why")], "FAILED", "why"),
            (
                [RunInterrupted(1.0, "why"), RunFinished(1.0, RunStatus.INTERRUPTED)],
                "INTERRUPTED",
                "why",
            ),
        ],
    )
    def test_the_state_of_a_run_is_one_word(self, events, word, reason):
        view = view_of(run_started("a"), *events)

        assert (view.word, view.stop_reason) == (word, reason)

    def test_run_times_and_wall_times_are_converted(self):
        view = RunView(GOLDEN[:EVENTS_BEFORE_CRASH])
        assert view.wall_time_of(1500.0) == WALL_TIME + 1.5
        assert view.ms_at(WALL_TIME + 60.0) == 60_000.0
        assert view.ms_at(WALL_TIME) == view.at_ms

        view = RunView(GOLDEN[:-1])

        assert view.wall_time == WALL_TIME
        assert view.wall_time_of(1500.0) == WALL_TIME + 1.5
        assert view.wall_time_of(4500.0) == WALL_TIME + 3600.5
        assert view.ms_at(WALL_TIME + 3601.5) == 5500.0

    def test_the_clock_of_a_run_that_has_ended_stands_still(self):
        assert RunView(GOLDEN).ms_at(WALL_TIME + 1e6) == 5000.5

    def test_the_golden_run_has_these_counts_and_this_critical_path(self):
        view = RunView(GOLDEN)

        assert (view.word, view.pipeline, len(view.segments)) == ("FAILED", "nightly import", 2)
        assert view.counts == {
            PENDING: 0,
            RUNNING: 0,
            SUCCESS: 7,
            FAILED: 1,
            SKIPPED: 3,
            CANCELLED: 1,
        }
        assert view.ended_steps == len(view.steps)
        assert view.first_failure.name == HOSTILE
        assert view.critical_path(5000.5) == ["rates", LONG, HOSTILE, "fetch", "tidy"]
        assert SECRET not in repr(view.steps)


def told(view):
    """Return a line for each step and item: its times, and each attempt with segment and end."""
    lines = []
    for step in view.steps.values():
        for each in (step, *(step.items or {}).values()):
            attempts = [
                f"{one.segment}.{one.number} {one.started_ms:g} {one.end or 'runs'}"
                + " abandoned" * one.abandoned
                + f" on {one.worker}" * bool(one.worker)
                for one in each.attempts
            ]
            span = f"{each.started_ms or 0:g} +{each.duration_ms(view.at_ms) or 0:g}"
            queued = f" ({each.queued_ms:g} queued)" * bool(each.queued_ms)
            words = f"{each.name} {each.status}{' reused' * each.reused}: {span}{queued}"
            lines.append("; ".join([words, *attempts]))
    return lines


class TestStep:
    def test_a_mapped_step_counts_its_items(self):
        step = RunView(GOLDEN).steps["fetch"]

        assert step.item_count == 4
        assert +step.tally == {SUCCESS: 1, CANCELLED: 3}
        assert step.items[2].name == "fetch[2]"
        assert step.items[2].max_retries == 2
        assert (step.attempt_count, step.queued_ms, step.abandoned) == (4, 198.0, True)
        assert step.blocked_ms == 0.0


class TestCauses:
    def test_lost_steps_may_be_traced_to_several_failures(self):
        view = view_of(
            run_started("a", "b", c=("a",), d=("b",), e=("c", "d"), f=(), g=("f",), h=("x",)),
            AttemptStarted("a", 1, 1.0),
            AttemptStarted("b", 1, 1.0),
            StepFailed("b", 1, 2.0, BOOM),
            StepFailed("a", 1, 3.0, BOOM),
            *(StepSkipped(name, 3.0, "why") for name in ("c", "d", "e")),
            StepSkipped("f", 3.0, "by condition", by_condition=True),
            StepSkipped("g", 3.0, "by condition", by_condition=True),
            StepSkipped("h", 3.0, "why"),
        )

        assert view.causes() == {"c": "a", "d": "b", "e": "a", "h": "b"}


class TestResumed:
    def test_a_step_that_became_secret_hides_its_stored_outputs(self):
        events = [
            run_started("a", "b"),
            AttemptStarted("a", 1, 1.0),
            StepSucceeded("a", 1, 2.0, SECRET),
            MapStarted("b", 2.0),
            AttemptStarted("b", 1, 3.0, item=0),
            StepSucceeded("b", 1, 4.0, SECRET, 0),
            AttemptStarted("b", 1, 4.0, item=1),
            StepFailed("b", 1, 5.0, BOOM, 1),
            StepFailed("b", 0, 5.0, BOOM),
        ]
        edges, reused = {"a": (), "b": ()}, StepReused("b", 6.0, status=FAILED)
        resumed = RunResumed("r", 6.0, 200.0, edges, {}, secret=("a", "b"))
        openly = RunResumed("r", 7.0, 300.0, edges, {})

        view = view_of(*events, resumed, StepReused("a", 6.0), reused)
        later = view_of(*events, resumed, StepReused("a", 6.0), reused, openly, reused)

        assert SECRET not in repr(view.steps)
        assert view.steps["b"].items[0].secret
        assert view.steps["b"].items[1].output is None
        assert later.steps["b"].items[0].output == SECRET


def view_of_result(result):
    report = RunReport(
        *("r", [result]),
        total_duration_ms=20.0,
        wall_time=100.0,
        status=RunStatus.RUNNING if result.status is RUNNING else None,
    )
    return RunView(report.events()).steps[result.step_name]


def attempts_of(result):
    return [
        (each.number, each.started_ms, each.ended_ms, each.end, each.retry_in_ms)
        for each in view_of_result(result).attempts
    ]


class TestResults:
    @pytest.mark.parametrize(
        ("attempts", "shown"),
        [
            (1, [(1, 1.0, 2.0, "failed", 0.0)]),
            (2, [(1, 1.0, 2.0, "failed", 0.0), (2, 4.0, None, None, None)]),
        ],
    )
    def test_a_running_step_shows_its_attempts_so_far(self, attempts, shown):
        history = (Attempt(1, 1.0, 1.0, BOOM),)
        result = StepResult("a", RUNNING, attempts, 5.0, started_ms=4.0, recorded=history)

        found = attempts_of(result)

        assert found[1:] == shown[1:]
        assert found[0][:4] == shown[0][:4]

    @pytest.mark.parametrize(
        "result",
        [
            StepResult("a", FAILED),
            StepResult("a", SUCCESS, items=()),
            StepResult("a", SUCCESS, 2, started_ms=0.0, recorded=(Attempt(1, 0.0, 1.0, None),)),
            StepResult("a", RUNNING, 1, 1.0, started_ms=0.0, recorded=(), loop_blocked_ms=2.0),
        ],
    )
    def test_an_impossible_result_is_shown_too(self, result):
        assert view_of_result(result).name == "a"


class TestReports:
    @pytest.mark.parametrize("count", [len(GOLDEN), EVENTS_BEFORE_CRASH])
    def test_a_report_of_the_golden_run_gives_the_view_of_its_events(self, count):
        report = golden_report(count)
        whole = RunView(GOLDEN[:count])

        for sent in (
            report,
            pickle.loads(pickle.dumps(report)),
            RunReport.from_json(report.to_json()),
        ):
            view = RunView(sent.events())

            assert told(view) == told(whole)
            for name in ("word", "stop_reason", "shown_inputs", "tiers", "edges", "pipeline"):
                assert getattr(view, name) == getattr(whole, name), name
            assert (+view.counts, view.causes(), view.at_ms) == (
                +whole.counts,
                whole.causes(),
                whole.at_ms,
            )
            assert len(view.segments) == len(whole.segments)
            assert SECRET not in repr(view.steps)


# --- chains of mapped steps ----------------------------------------------------------------------


@pytest.mark.parametrize(("parsed_at", "flows"), [(3.0, {"parse": "fetch"}), (9.0, {})])
def test_items_flowed_into_a_step_that_began_before_its_source_had_ended(parsed_at, flows):
    assert RunView(chain_run(parsed_at)).flows == flows


def test_a_step_that_ran_on_an_engine_has_workers_and_no_process_of_the_run() -> None:
    view = RunView(
        [
            RunStarted("r", 0.0, {"here": (), "map": ()}, process="h:1"),
            AttemptStarted("here", 1, 0.0),
            MapStarted("map", 0.0, 3),
        ]
    )
    for item, worker in enumerate(("h:7", "h:8", "h:8")):
        view.apply(AttemptStarted("map", 1, 1.0, 0.0, item, "executor"))
        view.apply(AttemptBegan("map", 1, 2.0, "executor", "ProcessPoolExecutor", item))
        view.apply(AttemptLocated("map", 1, 3.0, "executor", worker, item))
        view.apply(StepSucceeded("map", 1, 3.0, None, item))

    here, mapped = view.steps.values()
    assert (view.process_of(here), view.engine_of(here), view.workers_of(here)) == ("h:1", "", [])
    assert (view.process_of(mapped), view.engine_of(mapped)) == ("", "executor")
    assert view.workers_of(mapped) == ["h:8", "h:7"]
    assert [item.worker for item in (mapped.items or {}).values()] == ["h:7", "h:8", "h:8"]
