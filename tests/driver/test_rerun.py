"""Reruns: a new run reuses what is still valid of another one, and stands on its own."""

from __future__ import annotations

import asyncio
import sqlite3
from collections import Counter
from contextlib import closing
from cProfile import Profile
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from memory_journal import MemoryJournal

from asyncflow import (
    Journal,
    JournalError,
    Orchestrator,
    PayloadError,
    Pipeline,
    RestoredOutput,
    RunAlreadyActiveError,
    RunNotFoundError,
    RunReport,
    StepStatus,
    WorkflowStep,
    after,
    collect,
    current_step,
    each,
    run_pipeline,
)
from asyncflow._core.history.replay import StoredRun
from asyncflow._core.history.results import REDACTED, Payload
from asyncflow._core.history.stored_report import report_from
from asyncflow.events import (
    Event,
    ResultReused,
    RunStarted,
)
from asyncflow.journal import SQLiteJournal

SUCCESS, FAILED, SKIPPED = StepStatus.SUCCESS, StepStatus.FAILED, StepStatus.SKIPPED


class Work:
    """A pipeline that counts what it calls and fails where it is told to."""

    def __init__(self, **options: Any) -> None:
        self.calls: Counter[str] = Counter()
        self.broken: set[str] = set()
        self.options = options

    def act(self, name: str) -> None:
        self.calls[name] += 1
        if name in self.broken:
            raise ValueError(f"{name} is broken")

    def pipeline(self, journal: Any = None, **versions: str) -> Pipeline:
        pipeline = Pipeline("etl", journal=journal, **self.options)

        @pipeline.step(version=versions.get("extract", ""))
        async def extract(day: int = 1) -> list[int]:
            await asyncio.sleep(0.01)
            self.act("extract")
            return [day, day + 1, day + 2]

        @pipeline.step(version=versions.get("clean", ""), max_retries=2)
        async def clean(rows: list[int] = after(extract)) -> list[int]:
            await asyncio.sleep(0.01)
            self.act("clean")
            return [10 * row for row in rows]

        @pipeline.step(version=versions.get("count", ""))
        async def count(rows: list[int] = after(extract)) -> int:
            self.act("count")
            return len(rows)

        @pipeline.step(version=versions.get("load", ""))
        async def load(
            rows: list[int] = after(clean), number: int = after(count), table: str = "t"
        ) -> str:
            self.act("load")
            return f"{table}: {rows}, {number}"

        return pipeline


class OpenOnly:
    """A journal of a time when runs were not rerun."""

    async def open(self, *args: Any, **options: Any) -> Any:
        raise AssertionError("nothing is claimed")


@pytest.fixture
def journal() -> MemoryJournal:
    return MemoryJournal()


def taken(report: RunReport) -> list[str]:
    return [result.step_name for result in report.results if result.origin]


def resembles(one: RunReport, other: RunReport) -> bool:
    """Whether two reports say the same, apart from times and segments."""

    def said(report: RunReport) -> list[Any]:
        return [
            (each.step_name, each.status, each.output, each.origin, each.items is None)
            for each in report.results
        ]

    return one.status == other.status and said(one) == said(other)


class TestWhatIsReused:
    async def test_what_succeeded_is_reused_and_what_failed_runs_again(self, journal):
        work = Work()
        work.broken.add("load")
        first = await work.pipeline(journal).with_options(run_id="r").run()
        work.broken.clear()

        report = await work.pipeline(journal).rerun("r", "f")

        assert first.status == "FAILED"
        assert report.status == "PASSED"
        assert report.run_id == "f"
        assert report.rerun_of == "r"
        assert taken(report) == ["extract", "clean", "count"]
        assert report["load"].output == "t: [10, 20, 30], 3"
        assert report["load"].rerun_reason == "it had failed"
        assert work.calls == {"extract": 1, "clean": 1, "count": 1, "load": 2}

    async def test_it_has_the_attributes_of_the_other_run_unless_it_is_given_some(self, journal):
        work = Work()
        pipeline = work.pipeline(journal)
        await pipeline.with_options(run_id="r", attributes={"tenant": "acme", "tier": 1}).run()

        # The next release has another value in its options, and resumes nevertheless.
        resumed = await pipeline.with_options(run_id="r", attributes={"release": "42"}).run()
        again, other = [
            await pipeline.with_options(attributes=given).rerun("r", from_="load")
            for given in ({}, {"tenant": "b"})
        ]

        assert [each.attributes for each in (resumed, again, other)] == [
            {"tenant": "acme", "tier": 1},
            {"tenant": "acme", "tier": 1},
            {"tenant": "b"},
        ]
        assert RunReport.from_json(again.to_json()).attributes == again.attributes

    async def test_it_has_the_label_of_the_other_run_unless_it_is_given_one(self, journal):
        work = Work()
        pipeline = work.pipeline(journal)
        await pipeline.with_options(run_id="r", label="order 12345").run()

        resumed = await pipeline.with_options(run_id="r", label="another").run()
        again, named = [
            await pipeline.with_options(label=label).rerun("r", from_="load")
            for label in ("", "order 12345, corrected")
        ]

        assert [each.label for each in (resumed, again, named)] == [
            "order 12345",
            "order 12345",
            "order 12345, corrected",
        ]
        assert RunReport.from_json(named.to_json()).label == named.label
        with pytest.raises(ValueError, match="label must have at most 200 characters, not 201"):
            pipeline.with_options(label="x" * 201)

    async def test_a_step_runs_again_with_its_descendants(self, journal):
        work = Work()
        await work.pipeline(journal).with_options(run_id="r").run()

        report = await work.pipeline(journal).rerun("r", "f", from_="clean")

        assert taken(report) == ["extract", "count"]
        assert work.calls == {"extract": 1, "clean": 2, "count": 1, "load": 2}
        assert report["clean"].rerun_reason == "the rerun starts from it"
        assert report["load"].rerun_reason == "step 'clean', which it depends on, runs again"
        assert not report["clean"].reused
        assert report["extract"].reused

    async def test_what_takes_another_input_runs_again(self, journal):
        work = Work()
        await work.pipeline(journal).with_options(run_id="r").run(day=1, table="x")

        report = await work.pipeline(journal).rerun("r", inputs={"table": "y"})

        assert taken(report) == ["extract", "clean", "count"]
        assert report["load"].rerun_reason == "its input 'table' has another value"
        assert report["load"].output == "y: [10, 20, 30], 3"
        assert report.inputs == {"day": 1, "table": "y"}

    async def test_a_nested_value_of_another_type_counts_as_changed(self, journal):
        async def take(options: Any) -> str:
            return repr(options)

        orchestrator = Orchestrator([WorkflowStep("take", take)], journal=journal)
        await orchestrator.with_options(run_id="r").run(options={"a": 1})

        report = await orchestrator.rerun("r", inputs={"options": {"a": True}})

        assert report["take"].output == "{'a': True}"

    async def test_an_input_of_a_condition_counts_too(self, journal):
        calls: list[str] = []

        async def act() -> None:
            calls.append("act")

        def wanted(how: str) -> bool:
            return how == "yes"

        steps = [WorkflowStep("a", act, when=wanted)]
        await run_pipeline(steps, journal=journal, run_id="r", inputs={"how": "yes"})
        orchestrator = Orchestrator(steps, journal=journal)

        same = await orchestrator.rerun("r", inputs={"how": "yes"})
        other = await orchestrator.rerun("r", inputs={"how": "no"})

        assert taken(same) == ["a"]
        assert other["a"].status is SKIPPED
        assert calls == ["act"]

    async def test_an_input_that_is_of_another_type_now_may_be_replaced(self, journal):
        async def before(size: int) -> int:
            return size

        async def now(size: str) -> str:
            return size

        await run_pipeline(
            [WorkflowStep("a", before)], journal=journal, run_id="r", inputs={"size": 3}
        )
        orchestrator = Orchestrator([WorkflowStep("a", now)], journal=journal)

        with pytest.raises(PayloadError):
            await orchestrator.rerun("r")
        report = await orchestrator.rerun("r", inputs={"size": "large"})

        assert report["a"].output == "large"

    async def test_what_was_skipped_or_cleaned_up_is_decided_anew(self, journal):
        work = Work()
        work.broken.add("a")
        cleaned: list[dict[str, StepStatus]] = []

        async def a() -> None:
            work.act("a")

        async def clean_up() -> None:
            cleaned.append({name: each.status for name, each in current_step().results.items()})

        steps = [
            WorkflowStep("a", a),
            WorkflowStep("b", a, ["a"]),
            WorkflowStep("on_failure", clean_up, ["a"], run_if="failure"),
            WorkflowStep("always", clean_up, ["a"], run_if="always"),
        ]
        orchestrator = Orchestrator(steps, journal=journal)
        await orchestrator.with_options(run_id="r").run()
        work.broken.clear()

        report = await orchestrator.rerun("r")

        assert {name: each.status for name, each in report.items()} == {
            "a": SUCCESS,
            "b": SUCCESS,
            "on_failure": SKIPPED,
            "always": SUCCESS,
        }
        assert cleaned == [{"a": FAILED}, {"a": FAILED}, {"a": SUCCESS}]


class TestTheOtherRun:
    async def test_the_other_run_stays_as_it_is(self, journal):
        work = Work()
        work.broken.add("load")
        await work.pipeline(journal).with_options(run_id="r").run()
        before = [*journal.stored["r"]]

        await work.pipeline(journal).rerun("r", from_="extract")

        assert journal.stored["r"] == before

    async def test_of_a_running_one_what_is_stored_so_far_is_reused(self, journal):
        go_on, waits = asyncio.Event(), asyncio.Event()

        async def first() -> int:
            return 1

        async def second(first: int) -> int:
            if current_step().run_id == "r":
                waits.set()
                await go_on.wait()
            return first + 1

        steps = [WorkflowStep("first", first), WorkflowStep("second", second, ["first"])]
        orchestrator = Orchestrator(steps, journal=journal)
        running = asyncio.create_task(orchestrator.with_options(run_id="r").run())
        await waits.wait()

        report = await orchestrator.rerun("r", "f")
        go_on.set()
        original = await running

        assert taken(report) == ["first"]
        assert report["second"].output == 2
        assert report["second"].rerun_reason == "it had not finished"
        assert original.all_passed

    async def test_a_rerun_of_a_rerun_names_the_run_that_made_a_result(self, journal):
        work = Work()
        await work.pipeline(journal).with_options(run_id="r").run()
        await work.pipeline(journal).rerun("r", "f", from_="clean")

        report = await work.pipeline(journal).rerun("f", "g", from_="load")

        assert {each.step_name: each.origin for each in report.results} == {
            "extract": "r",
            "clean": "f",
            "count": "r",
            "load": "",
        }
        assert report.rerun_of == "f"


class TestTheNewRun:
    async def test_its_results_have_the_figures_of_the_other_run(self, journal):
        work = Work()
        failures = iter([True, False])
        pipeline = Pipeline("p", journal=journal)

        @pipeline.step(max_retries=2)
        async def flaky() -> int:
            await asyncio.sleep(0.01)
            if next(failures, False):
                raise ValueError("once")
            return 7

        first = await pipeline.with_options(run_id="r").run()
        report = await pipeline.rerun("r", "f")

        result = report["flaky"]
        assert (result.attempts, result.output, result.origin) == (2, 7, "r")
        assert result.duration_ms == pytest.approx(first["flaky"].duration_ms)
        assert (result.started_ms, result.history) == (None, ())
        assert report.total_duration_ms < first["flaky"].duration_ms
        assert str(report).splitlines()[1] == (
            f"[SUCCESS] flaky (2 attempt(s), {result.duration_ms:.0f}ms): reused from run r"
        )
        assert report.critical_path == []
        assert work.calls.total() == 0

    @pytest.mark.parametrize("schedule", ["tiers", "ready"])
    async def test_a_crash_anywhere_runs_no_step_again_that_it_had_reused(self, schedule):
        journal = MemoryJournal()
        work = Work(schedule=schedule)
        await work.pipeline(journal).with_options(run_id="r").run(table="x")
        whole = await work.pipeline(journal).rerun("r", "f", from_="clean", inputs={"table": "y"})
        events = journal.stored["f"]
        start = 1 + sum(isinstance(event, ResultReused) for event in events)

        for count in range(start, len(events) + 1):
            work.calls.clear()
            left = journal.died_after(count, "f")
            report = await work.pipeline(left).with_options(run_id="f").run()

            assert resembles(report, whole), count
            assert not {"extract", "count"} & work.calls.keys()

    async def test_a_journal_that_fails_stores_all_that_is_reused_or_nothing(self, journal):
        work = Work()
        await work.pipeline(journal).with_options(run_id="r").run()
        journal.latency_s, journal.fail_at = 0.01, journal.added + 1

        with pytest.raises(JournalError):
            await work.pipeline(journal).rerun("r", "f")

        assert not journal.stored.get("f")

    async def test_one_that_reuses_many_results_begins_in_turns_and_stores_all_or_nothing(
        self, tmp_path: Path
    ) -> None:
        turn, seen, stored = 0, Counter[int](), Counter[int]()

        def note(event: Event) -> None:
            seen[turn] += isinstance(event, ResultReused)

        async def count_turns() -> None:
            nonlocal turn
            with closing(sqlite3.connect(tmp_path / "runs.db")) as reader:
                while True:
                    turn += 1
                    sql = "SELECT COUNT(*) FROM events WHERE run_id = 'f'"
                    stored[reader.execute(sql).fetchone()[0]] += 1
                    await asyncio.sleep(0)

        async with SQLiteJournal(tmp_path / "runs.db") as journal:
            await mapped(journal, 3_000).with_options(run_id="r").run()
            counting = asyncio.create_task(count_turns())
            again = mapped(journal).with_options(observers=[note])
            await again.rerun("r", "f")
            counting.cancel()

        assert max(seen.values()) <= 250
        assert sum(seen.values()) == 3_002
        assert stored.keys().isdisjoint(range(1, 3_003))  # its start comes with all of them


class TestMappedSteps:
    def pipeline(self, journal: Any, work: Work, *, secret: bool = False) -> Pipeline:
        pipeline = Pipeline("mapped", journal=journal, fail_fast=False)

        @pipeline.step(secret=secret)
        async def urls(count: int = 3) -> list[int]:
            work.act("urls")
            return [*range(count)]

        @pipeline.step
        async def fetch(url: int = each(urls)) -> int:
            work.act(f"fetch {url}")
            return url * url

        @pipeline.step
        async def index(pages: list[int] = collect(fetch)) -> int:
            work.act("index")
            return sum(pages)

        return pipeline

    async def test_the_items_that_hold_are_reused_and_the_others_run(self, journal):
        work = Work()
        work.broken.add("fetch 1")
        await self.pipeline(journal, work).with_options(run_id="r").run()
        work.broken.clear()

        report = await self.pipeline(journal, work).rerun("r", "f")

        assert report["index"].output == 5
        assert [item.origin for item in report["fetch"].items or ()] == ["r", "", "r"]
        assert report["fetch"].origin == ""
        assert (work.calls["fetch 0"], work.calls["fetch 1"]) == (1, 2)
        assert report["fetch"].attempts == 3

    async def test_items_are_reused_in_the_order_of_their_numbers(self, journal):
        pipeline = Pipeline("p", journal=journal, schedule="ready")

        @pipeline.step
        async def urls() -> list[int]:
            return [0, 1, 2]

        @pipeline.step
        async def fetch(url: int = each(urls)) -> int:
            await asyncio.sleep((3 - url) / 100)  # so the last one is the first to be parsed
            return url

        @pipeline.step
        async def parse(page: int = each(collect(fetch))) -> int:
            return page

        await pipeline.with_options(run_id="r").run()
        seen: list[Any] = []

        await pipeline.with_options(observers=[seen.append]).rerun("r", "f")

        reused = [(e.step, e.item) for e in seen if isinstance(e, ResultReused)]
        items = [0, 1, 2, None]
        assert reused == [
            ("urls", None),
            *(("fetch", item) for item in items),
            *(("parse", item) for item in items),
        ]

    async def test_a_secret_source_runs_again_only_for_items_that_need_it(self, journal):
        work = Work()
        await self.pipeline(journal, work, secret=True).with_options(run_id="r").run()

        whole = await self.pipeline(journal, work, secret=True).rerun("r", from_="index")
        work.broken.add("fetch 1")
        await self.pipeline(journal, work, secret=True).with_options(run_id="broken").run()
        work.broken.clear()
        work.calls.clear()
        part = await self.pipeline(journal, work, secret=True).rerun("broken")

        assert taken(whole) == ["urls", "fetch"]
        assert taken(part) == []
        assert work.calls == {"urls": 1, "fetch 0": 1, "fetch 1": 1, "fetch 2": 1, "index": 1}


class TestSecrets:
    def steps(self, calls: Counter[str], *, secret: bool = True) -> list[WorkflowStep]:
        async def key() -> str:
            calls["key"] += 1
            return "hunter2"

        async def user(key: str, token: str = "") -> str:
            calls["user"] += 1
            return f"{len(key)} {token}"

        async def other(key: str) -> int:
            calls["other"] += 1
            return len(key)

        return [
            WorkflowStep("key", key, secret=secret),
            WorkflowStep("user", user, ["key"]),
            WorkflowStep("other", other, ["key"]),
        ]

    async def test_a_secret_output_is_made_again_for_a_step_that_needs_it(self, journal):
        calls: Counter[str] = Counter()
        orchestrator = Orchestrator(self.steps(calls), journal=journal)
        await orchestrator.with_options(run_id="r").run()

        report = await orchestrator.rerun("r", "f", from_="other")

        assert calls == {"key": 2, "user": 1, "other": 2}
        assert taken(report) == ["user"]
        assert "secret" in (report["key"].rerun_reason or "")
        assert "hunter2" not in repr(journal.stored["f"])

        for count in range(4, len(journal.stored["f"]) + 1):
            calls.clear()
            left = journal.died_after(count, "f")
            again = (
                await Orchestrator(self.steps(calls), journal=left).with_options(run_id="f").run()
            )

            assert again.status == "PASSED"
            assert calls["user"] == 0, count

    async def test_one_that_nothing_needs_is_reused_unseen(self, journal):
        calls: Counter[str] = Counter()
        orchestrator = Orchestrator(self.steps(calls), journal=journal)
        await orchestrator.with_options(run_id="r").run()
        seen: list[Any] = []

        report = await orchestrator.with_options(observers=[seen.append]).rerun("r")

        assert taken(report) == ["key", "user", "other"]
        assert isinstance(report["key"].output, RestoredOutput)
        assert "hunter2" not in repr(seen)

    async def test_a_step_that_is_secret_now_stores_nothing_in_the_rerun(self, journal):
        calls: Counter[str] = Counter()
        await (
            Orchestrator(self.steps(calls, secret=False), journal=journal)
            .with_options(run_id="r")
            .run()
        )
        assert "hunter2" in repr(journal.stored["r"])

        now = Orchestrator(self.steps(calls), journal=journal)
        report = await now.rerun("r", "f", from_="other")

        assert "hunter2" not in repr(journal.stored["f"])
        assert taken(report) == ["user"]
        assert calls["key"] == 2

    async def test_a_secret_input_must_be_given_again_and_counts_as_unchanged(self, journal):
        calls: Counter[str] = Counter()
        orchestrator = Orchestrator(
            self.steps(calls, secret=False), journal=journal, secret_inputs=["token"]
        )
        await orchestrator.with_options(run_id="r").run(token="abc")

        with pytest.raises(
            ValueError, match="input 'token' of run 'r' is secret, so it was not stored; give it"
        ):
            await orchestrator.rerun("r", "f")
        report = await orchestrator.rerun("r", "f", inputs={"token": "xyz"})

        assert taken(report) == ["key", "user", "other"]
        started = journal.stored["f"][0]
        assert isinstance(started, RunStarted)
        assert started.inputs == {"token": REDACTED}

    async def test_an_input_that_is_secret_now_is_not_stored_in_the_rerun(self, journal):
        calls: Counter[str] = Counter()
        steps = self.steps(calls, secret=False)
        await Orchestrator(steps, journal=journal).with_options(run_id="r").run(token="abc")

        now = Orchestrator(steps, journal=journal, secret_inputs=["token"])
        kept = await now.rerun("r", "f")
        same = await now.rerun("r", inputs={"token": "abc"})
        other = await now.rerun("r", inputs={"token": "xyz"})

        assert "abc" not in repr(journal.stored["f"][0])
        assert taken(kept) == taken(same) == ["key", "user", "other"]
        assert taken(other) == ["key", "other"]


class TestRefusals:
    async def test_each_comes_before_anything_has_run(self, journal):
        work = Work()
        pipeline = work.pipeline(journal)
        await pipeline.with_options(run_id="r").run()
        await pipeline.with_options(run_id="other").run()
        count = work.calls.total()
        cases: list[tuple[Any, type[Exception], str]] = [
            (pipeline.rerun("x"), RunNotFoundError, "has no run 'x'"),
            (
                pipeline.rerun("r", "other"),
                ValueError,
                "run 'other' exists already; choose another id",
            ),
            (pipeline.rerun("r", "r"), ValueError, "a rerun of run 'r' needs another id"),
            (pipeline.rerun("r", ""), ValueError, "new_id must not be empty"),
            (pipeline.rerun(1), TypeError, "run_id must be a str, not int"),  # type: ignore[arg-type]
            (pipeline.rerun("r", 1), TypeError, "new_id must be a str, not int"),  # type: ignore[arg-type]
            (
                pipeline.rerun("r", from_="laod"),
                ValueError,
                r"from_ names 'laod', which is no step \(did you mean 'load'\?\)",
            ),
            (pipeline.rerun("r", from_=3), TypeError, "from_ must be"),  # type: ignore[arg-type]
            (
                pipeline.orchestrator.with_options(targets=["clean"]).rerun("r", from_="load"),
                ValueError,
                "'load', which is no step; the targets leave it out",
            ),
            (
                pipeline.rerun("r", inputs={"tabel": "x"}),
                ValueError,
                r"takes an input 'tabel' \(did you mean 'table'\?\)",
            ),
            (
                pipeline.orchestrator.with_options(name="other").rerun("r"),
                ValueError,
                "run 'r' belongs to pipeline 'etl', not to 'other'; rerun it with that pipeline",
            ),
            (
                pipeline.orchestrator.with_options(journal=None).rerun("r"),
                ValueError,
                "needs the journal that has the run",
            ),
            (pipeline.rerun("r", inputs={"table": object()}), PayloadError, "input 'table'"),
        ]

        without = OpenOnly()
        cases.append(
            (
                pipeline.orchestrator.with_options(journal=without).rerun("r"),
                TypeError,
                "OpenOnly has no replay\\(\\)",
            )
        )

        for call, kind, words in cases:
            with pytest.raises(kind, match=words):
                await call

        assert work.calls.total() == count
        assert journal.stored.keys() == {"r", "other"}
        assert not journal.open_sessions

    async def test_of_two_reruns_to_the_same_id_one_owns_it(self, tmp_path: Path):
        work = Work()
        async with SQLiteJournal(tmp_path / "runs.db") as journal:
            pipeline = work.pipeline(journal)
            await pipeline.with_options(run_id="r").run()

            ends = await asyncio.gather(
                *[pipeline.rerun("r", "f", from_="load") for _ in range(2)],
                return_exceptions=True,
            )

        reports = [end for end in ends if isinstance(end, RunReport)]
        errors = [end for end in ends if not isinstance(end, RunReport)]
        assert len(reports) == 1
        assert isinstance(errors[0], RunAlreadyActiveError | ValueError)
        assert work.calls["load"] == 2


class TestAStoredRerun:
    async def test_the_other_run_may_be_pruned_at_once(self, tmp_path: Path):
        work = Work()
        async with SQLiteJournal(tmp_path / "runs.db") as journal:
            pipeline = work.pipeline(journal)
            await pipeline.with_options(run_id="r").run()
            work.broken.add("load")
            await pipeline.rerun("r", "f", from_="load")
            work.broken.clear()
            await journal.prune(timedelta(0), status="PASSED")
            report = await pipeline.with_options(run_id="f").run()

        assert report.all_passed
        assert taken(report) == ["extract", "clean", "count"]
        assert work.calls["extract"] == 1


class TestParents:
    async def test_a_run_within_a_step_knows_its_parent(self, journal):
        async def inner() -> int:
            return 1

        async def outer() -> str:
            steps = [WorkflowStep("inner", inner)]
            report = await run_pipeline(steps, journal=journal, run_id="child")
            assert (report.parent, report.parent_step) == ("r", "outer")
            return report.run_id

        report = await run_pipeline([WorkflowStep("outer", outer)], journal=journal, run_id="r")
        stored = report_from(StoredRun(journal.stored["child"]), lambda _, payload: payload)

        assert report.parent == ""
        assert (stored.parent, stored.parent_step) == ("r", "outer")


class TestWhatARerunCosts:
    async def test_each_output_is_decoded_once(self):
        journal = CountingJournal()
        await mapped(journal, 10).with_options(run_id="r").run()

        report = await mapped(journal).rerun("r", "f")

        assert report["double"].output == [2 * number for number in range(10)]
        assert journal.decoded == Counter(
            {"the stored output of step 'numbers'": 1, "the stored output of step 'double'": 10}
        )

    async def test_each_further_item_costs_the_same(self):
        calls = [await calls_of_a_rerun(items) for items in (100, 300, 500)]

        first, second = calls[1] - calls[0], calls[2] - calls[1]
        assert second < 1.1 * first
        assert first < 200 * 300  # some 210 calls an item; a comprehension is one on 3.11


class CountingJournal(MemoryJournal):
    """Counts what it decodes."""

    def __init__(self) -> None:
        super().__init__()
        self.decoded: Counter[str] = Counter()

    def decode(self, subject: str, payload: Payload, hint: Any) -> Any:
        self.decoded[subject] += 1
        return super().decode(subject, payload, hint)


def mapped(journal: Journal, items: int = 0) -> Orchestrator:
    async def numbers() -> list[int]:
        return list(range(items))

    async def double(number: int) -> int:
        return 2 * number

    steps = [
        WorkflowStep("numbers", numbers),
        WorkflowStep("double", double, {"number": "numbers"}, map_over="numbers"),
    ]
    return Orchestrator(steps, journal=journal)


async def calls_of_a_rerun(items: int) -> int:
    """Return how many functions the rerun of a run with so many items calls."""
    journal = MemoryJournal()
    await mapped(journal, items).with_options(run_id="r").run()
    profile = Profile()
    with profile:
        await mapped(journal).rerun("r", "f")
    return sum(entry.callcount for entry in profile.getstats())
