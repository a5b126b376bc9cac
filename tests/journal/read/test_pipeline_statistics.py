"""A journal tells what the runs of a pipeline say together, and briefly how each run stands."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from golden_run import GOLDEN
from resumed_run import RESUMED
from segments import store_segment

from asyncflow import (
    Orchestrator,
    RestoredOutput,
    RunStatus,
    WorkflowStep,
    current_step,
    run_pipeline,
)
from asyncflow._core.analysis.slowness import Slower
from asyncflow._core.analysis.statistics import StepRun
from asyncflow._core.history.results import REDACTED, Payload
from asyncflow._core.record import replace
from asyncflow._core.text import describe_error
from asyncflow.events import (
    AttemptFailed,
    AttemptStarted,
    Event,
    MapStarted,
    ResultReused,
    RunFinished,
    RunResumed,
    RunStarted,
    StepFailed,
    StepReused,
    StepSucceeded,
)
from asyncflow.journal import RunSummary
from asyncflow.journal._read.overviews import OF_STEPS, read_brief
from asyncflow.journal._read.queries import RunFilter, RunRecord
from asyncflow.journal._write.store import Store
from asyncflow.journal._write.summaries import SELECT_STEPS

LONG_OUTPUT = Payload("json", b'"' + b"x" * 10_000 + b'"')


def of_one_step(
    run_id: str,
    started_at: float,
    *events: Event,
    pipeline: str = "etl",
    status: Any = RunStatus.PASSED,
    inputs: dict[str, Any] | None = None,
) -> list[Event]:
    start = RunStarted(run_id, started_at, {"a": ()}, pipeline, inputs=inputs or {})
    ended = [RunFinished(100.0, status)] if status else []
    return [start, *events, *ended]


def passed(took_ms: float, output: Payload | None = None) -> list[Event]:
    return [AttemptStarted("a", 1, 5.0), StepSucceeded("a", 1, 5.0 + took_ms, output)]


FAILED: list[Event] = [AttemptStarted("a", 1, 0.0), StepFailed("a", 1, 9.0, ValueError("bad day"))]


async def brief_events(journal: Any, *run_ids: str) -> Any:
    return await journal._read(read_brief, journal._reading, (OF_STEPS, run_ids))


async def numbers(count: int) -> list[int]:
    return list(range(count))


async def double(number: int) -> int:
    return 2 * number


async def mapped(journal: Any, run_id: str, items: int) -> Any:
    calls: list[int] = []

    async def flaky() -> None:
        calls.append(1)
        if len(calls) == 1:
            raise OSError("not yet")

    steps = [
        WorkflowStep("numbers", numbers),
        WorkflowStep("doubled", double, {"number": "numbers"}, map_over="numbers"),
        WorkflowStep("flaky", flaky, max_retries=2),
    ]
    inputs = {"count": items}
    return await run_pipeline(steps, name="etl", inputs=inputs, journal=journal, run_id=run_id)


async def test_the_statistics_of_runs_agree_with_their_reports(journal: Any) -> None:
    reports = [await mapped(journal, f"r{number}", 3) for number in range(2)]

    found = await journal.statistics("etl")

    assert [run.run_id for run in found.runs] == ["r1", "r0"]
    assert list(found.steps) == list(reports[0])
    for name, step in found.steps.items():
        assert step.durations_ms == pytest.approx(
            tuple(report[name].duration_ms for report in reversed(reports))
        )
    assert found.steps["flaky"].outcomes == ("RETRIED", "RETRIED")
    assert found.steps["flaky"].flakiness == 1.0
    assert found.steps["doubled"].outcomes == ("SUCCESS", "SUCCESS")
    assert found.success_rate == 1.0
    assert found.median_ms == pytest.approx(sum(report.total_duration_ms for report in reports) / 2)


async def test_the_summaries_of_runs_say_what_their_events_say(
    journal: Any, database: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    statements: list[str] = []
    read, is_broken = Store.read, True

    def noted(store: Store, sql: str, values: Sequence[Any] = ()) -> list[Any]:
        statements.append(sql)
        return read(store, sql, values)

    async def fetch(number: int) -> int:
        if number == 3 or (number == 2 and current_step().attempt == 1):
            raise OSError(f"no {number}")
        return number

    async def load() -> None:
        if is_broken:
            raise OSError("bad \ud800 day")

    async def run() -> Any:
        steps = [
            WorkflowStep("numbers", numbers),
            WorkflowStep(
                *("fetch", fetch, {"number": "numbers"}),
                map_over="numbers",
                max_retries=2,
                tolerated_failures=1,
            ),
            WorkflowStep("load", load, ["fetch"], fallback=lambda error: None),
            WorkflowStep("end", load, ["load"]),
            WorkflowStep("never", load, when=lambda: False),
        ]
        return await run_pipeline(
            steps, name="etl", inputs={"count": 4}, journal=journal, run_id="r"
        )

    for is_broken in (True, False):  # noqa: B007  # the steps ask for it
        report = await run()
        monkeypatch.setattr(Store, "read", noted)
        found = await journal.statistics("etl")
        monkeypatch.undo()
        row = database.query("SELECT * FROM summaries")
        database.query("DELETE FROM summaries")
        assert (await journal.statistics("etl")).steps == found.steps
        assert not [sql for sql in statements if sql.startswith("SELECT e.")]
        for name, step in found.steps.items():
            assert step.durations_ms[0] or pytest.approx(report[name].duration_ms) == 0.0, name
        items = found.steps["fetch"]
        assert (items.failed_items, items.retried_items) == ((1,), (1,))
        assert len(row) == 1

    assert found.steps["end"].outcomes == ("SUCCESS",)


async def test_a_summary_that_is_damaged_or_of_an_earlier_end_does_not_count(
    journal: Any, database: Any
) -> None:
    async def fail() -> None:
        raise OSError("bad day")

    pipeline = Orchestrator([WorkflowStep("a", fail)], name="etl")
    await pipeline.with_options(journal=journal, run_id="r").run()
    (before,) = await journal.runs()
    summary = (await journal.summaries([before]))["r"]

    database.query("UPDATE summaries SET payload = '{}'")
    damaged = await journal.statistics("etl")
    without_end = (await journal.summaries([before]))["r"]
    resumed = RunResumed("r", 9.0, 9.0, {"a": ()}, {}, unfinished={"a": "it failed"}, afresh=True)
    await store_segment(journal, "r", resumed, AttemptStarted("a", 1, 9.0))
    orphaned = await journal.statistics("etl")

    assert (summary.failed_step, describe_error(summary.error)) == ("a", "OSError: bad day")
    assert without_end == RunSummary()
    assert damaged.steps["a"].outcomes == ("FAILED",)
    assert orphaned.steps["a"].outcomes == ("ORPHANED",)
    assert not any(found.runs[0].damaged for found in (damaged, orphaned))


@pytest.mark.parametrize("length", [1, 100_000])
async def test_a_step_that_fell_back_counts_as_failed_however_long_its_output(
    journal: Any, length: int
) -> None:
    output = Payload("json", b'"' + b"x" * length + b'"')
    success = StepSucceeded("a", 1, 5.0, output, error=ValueError("bad day"))
    await store_segment(
        journal, "r", *of_one_step("r", 100.0, AttemptStarted("a", 1, 0.0), success)
    )

    found = await journal.statistics("etl")

    assert not found.runs[0].damaged
    assert found.steps["a"].outcomes == ("FAILED",)
    assert found.success_rate == 1.0
    assert (await journal.report("r"))["a"].fell_back


@pytest.mark.parametrize("events", [GOLDEN, RESUMED], ids=["golden", "resumed"])
async def test_the_durations_of_a_resumed_run_are_those_of_its_report(
    journal: Any, events: list[Event]
) -> None:
    first: Any = events[0]
    stored = [
        replace(event, output=None if event.output is None else Payload("json", b"1"))
        if isinstance(event, StepSucceeded)
        else replace(event, inputs={})
        if isinstance(event, RunStarted | RunResumed)
        else event
        for event in events
    ]
    await store_segment(journal, first.run_id, *stored)

    found = await journal.statistics(first.pipeline)
    report = await journal.report(first.run_id)

    assert not found.runs[0].damaged
    for name, step in found.steps.items():
        if report[name].items is None:
            expected = report[name].duration_ms
            assert (step.durations_ms[0] or 0.0) == pytest.approx(expected), name


async def test_what_is_read_does_not_grow_with_the_number_of_items(journal: Any) -> None:
    await mapped(journal, "few", 1)
    await mapped(journal, "many", 200)

    rows = await brief_events(journal, "few", "many")

    assert len(rows["few"]) == len(rows["many"]) == 10
    assert all(row[4] is None for each in rows.values() for row in each)


async def test_the_items_of_a_mapped_step_count(journal: Any) -> None:
    begins = [
        MapStarted("a", 0.0, 4),
        *(AttemptStarted("a", 1, 1.0, item=item) for item in range(4)),
    ]
    error = OSError("away")
    retried: list[Event] = [
        event
        for item in (0, 1)
        for event in (
            AttemptFailed("a", 1, 2.0, error, 0.0, item=item),
            AttemptStarted("a", 2, 2.0, item=item),
        )
    ]
    ends = [
        StepSucceeded("a", 2, 3.0, Payload("json", b"0"), item=0),
        StepFailed("a", 2, 3.0, error, item=1),
        StepSucceeded("a", 1, 3.0, Payload("json", b"0"), item=2, error=error),
        StepSucceeded("a", 1, 3.0, Payload("json", b"0"), item=3),
        StepSucceeded("a", 0, 9.0, None),
    ]
    await store_segment(journal, "r", *of_one_step("r", 1.0, *begins, *retried, *ends))
    await store_segment(journal, "s", *of_one_step("s", 2.0, *passed(3.0)))

    found = await journal.statistics("etl")

    step = found.steps["a"]
    assert (step.failed_items, step.retried_items) == ((0, 2), (0, 1))
    assert step.outcomes == ("SUCCESS", "RETRIED")


async def test_a_mapped_step_that_failed_first_took_the_time_of_both_segments(
    journal: Any,
) -> None:
    error, output = OSError("away"), Payload("json", b"0")
    first: list[Event] = [
        MapStarted("a", 0.0, 2),
        *(AttemptStarted("a", 1, 0.0, item=item) for item in (0, 1)),
        StepSucceeded("a", 1, 8_000.0, output, item=0),
        StepFailed("a", 1, 11_000.0, error, item=1),
        StepFailed("a", 0, 11_000.0, error),
        RunFinished(11_000.0, RunStatus.FAILED),
    ]
    second: list[Event] = [
        RunResumed("r", 11_000.0, 99.0, {"a": ()}, {}, afresh=True, unfinished={"a": "failed"}),
        MapStarted("a", 11_000.0, 2),
        StepReused("a", 11_000.0, item=0),
        AttemptStarted("a", 1, 11_000.0, item=1),
        StepSucceeded("a", 1, 11_261.0, output, item=1),
        StepSucceeded("a", 0, 11_261.0, None),
        RunFinished(11_261.0, RunStatus.PASSED),
    ]
    await store_segment(journal, "r", *of_one_step("r", 1.0, *first, *second, status=None))

    found = await journal.statistics("etl")

    step, report = found.steps["a"], await journal.report("r")
    assert not found.runs[0].damaged
    assert step.outcomes == ("SUCCESS",)
    assert step.p95_ms == report["a"].duration_ms == 11_261.0
    assert step.failed_items == (0,)  # the item that failed at first has succeeded


async def test_only_the_latest_runs_of_the_pipeline_count(journal: Any) -> None:
    for number in range(4):
        await store_segment(
            journal, f"r{number}", *of_one_step(f"r{number}", number, *passed(number))
        )
    await store_segment(journal, "x", *of_one_step("x", 9.0, *passed(50.0), pipeline="other"))
    await store_segment(journal, "y", *of_one_step("y", 9.0, *passed(60.0), pipeline=""))

    found = await journal.statistics("etl", runs=2)

    assert [run.run_id for run in found.runs] == ["r3", "r2"]
    assert found.steps["a"].passed_ms == [3.0, 2.0]
    assert found.p95_ms == 100.0
    assert [run.run_id for run in (await journal.statistics("")).runs] == ["y"]
    nothing = await journal.statistics("nothing")
    assert (nothing.runs, nothing.steps, nothing.success_rate) == ((), {}, None)
    assert (nothing.median_ms, nothing.p95_ms) == (None, None)


async def test_more_runs_than_one_statement_takes_are_read(journal: Any) -> None:
    for number in range(70):
        await store_segment(
            journal, f"r{number}", *of_one_step(f"r{number}", number, *passed(number))
        )

    found = await journal.statistics("etl", runs=600)

    assert found.steps["a"].passed_ms == [float(number) for number in reversed(range(70))]


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE events SET at_ms = 7 WHERE run_id = 'r1' AND kind = 'StepSucceeded'",
        "UPDATE events SET step = 'b' WHERE run_id = 'r1' AND kind = 'AttemptStarted'",
        "DELETE FROM events WHERE run_id = 'r1' AND kind = 'RunFinished'",
        "DELETE FROM events WHERE run_id = 'r1'",
        "DELETE FROM events WHERE run_id = 'r1' AND position = 1",
        "UPDATE runs SET started_at = 2.5 WHERE run_id = 'r1'",
    ],
)
async def test_a_damaged_run_is_marked_and_the_others_count(
    journal: Any, database: Any, damage: str
) -> None:
    for number in range(3):
        events = of_one_step(f"r{number}", 1.0 + number, *passed(number))
        await store_segment(journal, f"r{number}", *events)
    database.query(damage)

    found = await journal.statistics("etl")

    assert {run.run_id: run.damaged for run in found.runs} == {
        "r0": False,
        "r1": True,
        "r2": False,
    }
    assert found.steps["a"].outcomes == ("SUCCESS", None, "SUCCESS")
    assert found.steps["a"].passed_ms == [2.0, 0.0]
    assert found.passed_ms == [100.0, 100.0]
    assert found.success_rate == 1.0


async def test_long_outputs_are_not_read(journal: Any, database: Any) -> None:
    events = of_one_step("r", 1.0, *passed(3.0, LONG_OUTPUT))
    await store_segment(journal, "r", *events)

    (rows,) = (await brief_events(journal, "r")).values()
    found = await journal.statistics("etl")

    assert sum(len(str(row)) for row in rows) < 2_000
    assert found.steps["a"].passed_ms == [3.0]
    # Without the output there is no checksum; what does not fit is noticed all the same.
    database.query("UPDATE events SET step = NULL WHERE kind = 'StepSucceeded'")
    assert (await journal.statistics("etl")).runs[0].damaged


async def test_long_outputs_that_a_rerun_takes_over_are_not_read(
    journal: Any, database: Any
) -> None:
    taken = ResultReused("a", 0.0, "q", 2, 7.0, LONG_OUTPUT)
    events = of_one_step("r", 1.0, taken, StepReused("a", 1.0, origin="q"))
    await store_segment(journal, "r", *events)

    (rows,) = (await brief_events(journal, "r")).values()
    found = await journal.statistics("etl")

    assert sum(len(str(row)) for row in rows) < 2_000
    assert not found.runs[0].damaged
    assert found.steps["a"].outcomes == ("REUSED",)
    database.query("UPDATE events SET step = NULL WHERE kind = 'ResultReused'")
    assert (await journal.statistics("etl")).runs[0].damaged


@pytest.mark.parametrize("change", ["ends", "is deleted"])
async def test_a_run_that_changes_between_two_reads_is_not_damaged(
    journal: Any, change: str
) -> None:
    session, _ = await journal.open("r", wait=False, read=bool)
    for event in of_one_step("r", 1.0, *passed(3.0), status=None):
        session.append(event)
    await session.flush()
    before = await journal._read(journal._lists.rows, RunFilter())
    session.append_step_runs({"a": StepRun("SUCCESS", 3.0)})
    session.append(RunFinished(100.0, RunStatus.PASSED))
    await session.close()
    if change == "is deleted":
        await journal.forget("r")
    journal._lists.rows = lambda where, **options: before  # of an earlier moment

    found = await journal.statistics("etl")

    assert before[0].status == "running"
    assert [(run.status, run.damaged) for run in found.runs] == (
        [("PASSED", False)] if change == "ends" else []
    )


async def test_summaries_and_statistics_use_indexes(
    journal: Any, database: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without them, what is read grows with the number of all runs."""
    await journal.runs()
    is_sqlite = database.__class__.__name__ == "TestedSQLite"
    if not is_sqlite:  # it reads small tables without an index
        database.query(
            "INSERT INTO runs (run_id, pipeline, status, started_at, updated_at, last_event, "
            "checksum) SELECT 'r' || n, 'etl', 'failed', n, n, 0, 0 FROM generate_series(1, 5000) n"
        )
        database.query(
            "INSERT INTO events (run_id, position, kind, step, item, at_ms, checksum) "
            "SELECT 'r' || n, k, 'AttemptStarted', 's', NULLIF(k % 2, 0), 0, 0 "
            "FROM generate_series(1, 5000) n, generate_series(1, 20) k"
        )
        database.query(
            "INSERT INTO summaries (run_id, position, payload, checksum) "
            "SELECT 'r' || n, 0, repeat('x', 1000), 0 FROM generate_series(1, 5000) n"
        )
        database.query("ANALYZE runs, events, summaries")
    plans: list[str] = []
    read = Store.read

    def explained(store: Store, sql: str, values: Sequence[Any] = ()) -> list[Any]:
        kind = "EXPLAIN QUERY PLAN" if is_sqlite else "EXPLAIN"
        plans.append(str(read(store, f"{kind} {sql}", values)))
        return read(store, sql, values)

    monkeypatch.setattr(Store, "read", explained)
    statuses: list[Any] = ["RUNNING", "FAILED", "INTERRUPTED", "PASSED"]
    numbers = range(1, 21)
    records = [RunRecord(f"r{n}", "etl", statuses[n % 4], 0.0, 0.0, None) for n in numbers]

    await journal.summaries(records)
    run_ids = [each.run_id for each in records]
    await brief_events(journal, *run_ids)
    await journal._read(journal._overviews._summaries, SELECT_STEPS, run_ids)
    await journal.runs(parent="r")

    assert len(plans) == 5
    for plan in plans:
        assert "SCAN" not in plan, plan
        assert "Seq Scan" not in plan, plan


# --- the pipelines, and how many runs they have --------------------------------------------------


async def test_pipelines_are_named_in_their_order(journal: Any) -> None:
    assert await journal.pipelines() == []
    for number, name in enumerate(["etl", "", "b\0\ud800", "etl", "Zoo", "ätl"]):
        events = of_one_step(f"r{number}", number, *passed(1.0), pipeline=name)
        await store_segment(journal, f"r{number}", *events)

    assert await journal.pipelines() == ["", "Zoo", "b\0\ud800", "etl", "ätl"]


async def test_a_damaged_name_is_listed_as_far_as_it_can_be_read(
    journal: Any, database: Any
) -> None:
    await store_segment(journal, "r", *of_one_step("r", 1.0, *passed(1.0)))
    database.query("UPDATE runs SET pipeline = '\"{'")

    assert await journal.pipelines() == ['"{']


async def test_no_count_is_negative_if_runs_change_between_two_reads(journal: Any) -> None:
    """A run begins, and its process dies, between the two."""
    rows: list[list[Any]] = [[("running", 1)], [(None, None)] * 2]
    journal._reading.read = lambda *select: rows.pop(0)

    counts = await journal.counts()

    assert (counts["RUNNING"], counts["ORPHANED"]) == (0, 1)


# --- how a run stands ----------------------------------------------------------------------------


async def summary(journal: Any, run_id: str, *events: Event, **options: Any) -> RunSummary:
    await store_segment(journal, run_id, *of_one_step(run_id, 1.0, *events, **options))
    found: RunSummary = (await journal.summaries(await journal.runs()))[run_id]
    return found


async def test_a_running_run_says_what_runs_now(journal: Any) -> None:
    steps: dict[str, tuple[str, ...]] = dict.fromkeys("abcd", ())
    events = [
        RunStarted("r", 1.0, steps, inputs={"day": Payload("json", b'"monday"')}),
        *passed(1.0),
        *(AttemptStarted("c", 1, 9.0), MapStarted("b", 9.0, 2), AttemptStarted("b", 1, 9.0, 0, 0)),
    ]
    await store_segment(journal, "r", *events)

    found = (await journal.summaries(await journal.runs()))["r"]

    assert found == RunSummary({"day": "monday"}, steps=4, settled=1, active=("b", "c"))


async def test_a_run_usually_takes_the_median_of_the_last_that_passed(journal: Any) -> None:
    async def run(run_id: str, took_ms: float, status: Any = RunStatus.PASSED, **start: Any) -> Any:
        ended = [RunFinished(took_ms, status)] if status else []
        await store_segment(journal, run_id, *[RunStarted(run_id, 1.0, {"a": ()}, **start), *ended])
        return await journal.usual_ms("etl")

    assert await run("one", 100.0, pipeline="etl") is None
    assert await run("failed", 1.0, RunStatus.FAILED, pipeline="etl") is None
    assert await run("part", 1.0, pipeline="etl", rerun_of="one") is None
    assert await run("two", 300.0, pipeline="etl") is None
    assert await run("three", 200.0, pipeline="etl") == 200.0
    assert await journal.usual_ms("") is None

    session, _ = await journal.open("now", wait=False, read=bool)
    session.append(RunStarted("now", 2.0, {"a": ()}, "etl"))
    await session.flush()
    summaries = await journal.summaries(await journal.runs())
    await session.close()

    assert {run_id: each.usual_ms for run_id, each in summaries.items() if each.usual_ms} == {
        "now": 200.0
    }


async def test_a_list_tells_which_runs_were_slow_with_few_reads(
    journal: Any, database: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(12):
        took_ms = 400.0 if number % 4 == 3 else 100.0
        run_id, of_run = f"r{number}", passed(took_ms)
        rerun_of = "r0" if number == 3 else ""
        start = RunStarted(run_id, 1.0, {"a": ()}, "etl", rerun_of=rerun_of)
        ended = RunFinished(took_ms + 5, RunStatus.PASSED)
        await store_segment(journal, run_id, start, *of_run, ended, with_steps=True)
    records = await journal.runs()
    reads: list[str] = []
    read = Store.read

    def noted(store: Store, sql: str, values: Sequence[Any] = ()) -> list[Any]:
        reads.append(sql)
        return read(store, sql, values)

    monkeypatch.setattr(Store, "read", noted)
    found = await journal._slower(records)
    none = await journal._slower([each for each in records if each.latest_ms < 200])

    assert found == {run_id: Slower(105.0, (("a", 300.0),)) for run_id in ("r7", "r11")}
    assert none == {}
    assert len(reads) <= 8  # however many runs there are
    database.query("UPDATE summaries SET data_checksum = 1")
    assert await journal._slower(records) == {each: Slower(105.0) for each in found}


async def test_a_failed_run_says_its_first_error(journal: Any) -> None:
    again: list[Event] = [
        AttemptStarted("a", 1, 100.0),
        AttemptFailed("a", 1, 101.0, OSError("retried"), 1.0),
        AttemptStarted("a", 2, 102.0),
        StepFailed("a", 2, 103.0, KeyError("first")),
    ]
    resumption = RunResumed("one", 100.0, 9.0, {"a": ()}, {}, afresh=True)

    found = await summary(journal, "one", *FAILED, resumption, *again, status=RunStatus.FAILED)

    assert (found.failed_step, describe_error(found.error)) == ("a", "KeyError: 'first'")
    plain = await summary(journal, "two", *FAILED, status=RunStatus.FAILED)
    assert describe_error(plain.error) == "ValueError: bad day"


async def test_an_interrupted_run_says_why_it_stopped_though_a_step_had_failed(
    journal: Any,
) -> None:
    await store_segment(
        *(journal, "r", *of_one_step("r", 100.0, *FAILED, status=None)),
        RunFinished(9.0, RunStatus.INTERRUPTED, "the run was cancelled: enough"),
    )

    found = (await journal.summaries(await journal.runs()))["r"]

    assert (found.failed_step, found.error) == ("", None)
    assert found.line == "the run was cancelled: enough"


async def test_secret_inputs_are_hidden_also_those_that_became_secret(journal: Any) -> None:
    open_value, redacted = Payload("json", b'"hunter2"'), RestoredOutput("redacted")
    inputs = {"key": REDACTED, "password": open_value, "day": Payload("json", b"3")}
    later = RunResumed("r", 0.0, 9.0, {"a": ()}, {}, inputs={"password": REDACTED})

    found = await summary(journal, "r", later, *passed(1.0), inputs=inputs)

    assert found.inputs == {"key": redacted, "password": redacted, "day": 3}


async def test_a_run_whose_events_are_damaged_has_no_summary(journal: Any, database: Any) -> None:
    await summary(journal, "bad", *FAILED, status=RunStatus.FAILED)
    await summary(journal, "good", *FAILED, status=RunStatus.FAILED)
    database.query("UPDATE events SET checksum = 1 WHERE run_id = 'bad'")

    found = await journal.summaries(await journal.runs())

    assert found["bad"] == RunSummary()
    assert found["good"].failed_step == "a"
    assert await journal.summaries([]) == {}
