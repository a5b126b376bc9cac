"""A preview says what a resumption or a rerun would do, and does nothing itself."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from fake_engine import FakeEngine
from memory_journal import MemoryJournal

from asyncflow import (
    Orchestrator,
    Pipeline,
    RunIdInUseError,
    RunNotFoundError,
    WorkflowStep,
    after,
)
from asyncflow._core.analysis.preview import RunPreview
from asyncflow.journal import SQLiteJournal
from asyncflow.testing import run_in_virtual_time

ALARM = "step 'load', which it depends on, runs again"


class Work:
    """A pipeline of which steps fail as they are told to."""

    def __init__(self) -> None:
        self.broken = {"load"}
        self.calls: list[str] = []

    async def act(self, name: str) -> None:
        self.calls.append(name)
        if name in self.broken:
            raise ValueError(f"{name} is broken")

    def pipeline(self, journal: Any, **versions: str) -> Orchestrator:
        pipeline = Pipeline("etl", journal=journal, secret_inputs=["token"])

        @pipeline.step(version=versions.get("extract", ""))
        async def extract(day: int = 1) -> list[int]:
            await self.act("extract")
            return [day, day + 1, day + 2]

        @pipeline.step(version=versions.get("load", ""))
        async def load(rows: list[int] = after(extract), token: str = "") -> int:
            await self.act("load")
            return len(rows)

        @pipeline.step(when=lambda load: load > 1)
        async def mail(load: int = after(load)) -> None:
            await self.act("mail")

        @pipeline.step(run_if="failure")
        async def alarm(load: int = after(load)) -> None:
            await self.act("alarm")

        return pipeline.with_options(run_id="r").orchestrator


@pytest.fixture
def work() -> Work:
    return Work()


@pytest.fixture
def journal() -> MemoryJournal:
    return MemoryJournal()


def told(preview: RunPreview) -> dict[str, tuple[Any, ...]]:
    return {name: (step.decision, step.reason, step.condition) for name, step in preview.items()}


async def test_each_step_is_reused_or_runs_for_a_reason(journal, work):
    await work.pipeline(journal).run()

    preview = await work.pipeline(journal).preview("r")

    assert told(preview) == {
        "extract": ("reused", None, ""),
        "load": ("runs", "it had failed", ""),
        "mail": ("runs", "it has not run yet", "its condition is met"),
        "alarm": ("runs", ALARM, "one of its dependencies fails"),
    }
    assert [step.step_name for step in preview.reused] == ["extract"]
    assert str(preview) == (
        "A resumption of run r: 1 reused, 3 to run\n"
        "[REUSED ] extract\n"
        "[RUNS   ] load: it had failed\n"
        "[RUNS   ] mail: it has not run yet; only if its condition is met\n"
        "[RUNS   ] alarm: step 'load', which it depends on, runs again; only if one of its "
        "dependencies fails"
    )
    assert json.loads(preview.to_json()) == {
        "run_id": "r",
        "is_rerun": False,
        "is_start": False,
        "has_passed": False,
        "steps": [
            {
                "step_name": step.step_name,
                "decision": step.decision,
                "reason": step.reason,
                "condition": step.condition,
                "items": None,
                "reused_items": 0,
            }
            for step in preview.values()
        ],
    }
    assert repr(preview) == "<RunPreview of run 'r': 1 reused, 3 to run>"


async def test_of_a_run_that_has_passed_nothing_runs_whatever_has_changed(journal, work):
    work.broken.clear()
    await work.pipeline(journal).run()
    calls = len(work.calls)

    preview = await work.pipeline(journal, extract="2").preview("r")
    await work.pipeline(journal, extract="2").run()

    assert len(work.calls) == calls
    assert preview.has_passed
    assert not preview.runs
    assert told(preview)["alarm"] == ("skipped", 'run_if="failure", and no dependency failed', "")
    assert str(preview).startswith("A resumption of run r, which has passed: nothing runs\n")


async def test_what_can_not_run_however_the_others_end_is_skipped(journal, work):
    async def never(broken: int) -> None: ...

    async def broken() -> int:
        raise ValueError

    async def slow() -> None: ...

    steps = [
        WorkflowStep("broken", broken),
        WorkflowStep("slow", slow),
        WorkflowStep("never", never, ["broken", "slow"], parameters={"broken": "broken"}),
        WorkflowStep("alarm", slow, ["broken"], run_if="failure"),
    ]
    pipeline = Orchestrator(steps, fail_fast=False, journal=journal)
    await pipeline.with_options(run_id="r").run()
    events = [str(type(event).__name__) for event in journal.stored["r"]]
    died = journal.died_after(events.index("StepFailed") + 1)

    preview = await pipeline.with_options(journal=died).preview("r")

    assert told(preview)["broken"] == ("reused", "it had failed", "")
    assert told(preview)["never"] == ("skipped", "it depends on step 'broken', which failed", "")
    assert {step.step_name for step in preview.runs} >= {"alarm"}


async def test_items_are_counted(journal):
    broken = {3, 7}

    async def numbers() -> list[int]:
        return list(range(10))

    async def half(number: int) -> float:
        if number in broken:
            raise ValueError
        return number / 2

    async def total(halves: list[float]) -> float:
        return sum(halves)

    steps = [
        WorkflowStep("numbers", numbers),
        WorkflowStep("half", half, {"number": "numbers"}, map_over="numbers"),
        WorkflowStep("total", total, {"halves": "half"}),
    ]
    pipeline = Orchestrator(steps, fail_fast=False, journal=journal)
    await pipeline.with_options(run_id="r").run()

    preview = await pipeline.preview("r")
    rerun = await pipeline.preview("r", rerun=True)
    broken.clear()
    await pipeline.with_options(run_id="r").run()
    passed = await pipeline.preview("r")

    assert (preview["half"].decision, preview["half"].items) == ("runs", 10)
    assert preview["half"].reused_items == rerun["half"].reused_items == 8
    assert "[RUNS   ] half: it had failed; 8 of 10 items reused" in str(preview)
    assert (passed["half"].items, passed["half"].reused_items) == (10, 10)
    assert "[REUSED ] half: 10 items" in str(passed)


async def test_of_a_rerun_with_its_inputs_and_first_steps(journal, work):
    work.broken.clear()
    await work.pipeline(journal).run(day=1)
    pipeline = work.pipeline(journal)

    same = await pipeline.preview("r", rerun=True)
    other = await pipeline.preview("r", rerun=True, inputs={"day": 2})
    part = await pipeline.preview("r", rerun=True, from_="load")

    assert same.is_rerun
    assert [step.step_name for step in same.reused] == ["extract", "load", "mail"]
    assert other["extract"].reason == "its input 'day' has another value"
    assert not other.reused
    assert part["load"].reason == "the rerun starts from it"
    assert str(part).startswith("A rerun of run r: 1 reused, 3 to run\n[REUSED ] extract\n")
    assert list(journal.stored) == ["r"]


async def test_what_the_resumption_would_refuse_is_refused(journal, work):
    await work.pipeline(journal).run(token="x", day=1)
    pipeline = work.pipeline(journal)

    for awaitable, error, problem in (
        (pipeline.preview("r"), ValueError, "input 'token' of run 'r' is secret"),
        (pipeline.preview("r", inputs={"token": "x", "day": 2}), RunIdInUseError, "another input"),
        (pipeline.preview("r", inputs={"tokem": "x"}), ValueError, "did you mean 'token'"),
        (pipeline.preview("x"), RunNotFoundError, "has no run 'x'"),
        (pipeline.preview(1), TypeError, "run_id must be a str, not int"),
        (pipeline.preview("r", from_="load"), ValueError, "give rerun=True too"),
        (pipeline.preview("r", rerun=True, from_="laod"), ValueError, "did you mean 'load'"),
        (
            pipeline.with_options(name="other").preview("r"),
            RunIdInUseError,
            "belongs to pipeline 'etl'",
        ),
        (
            pipeline.with_options(journal=None).preview("r"),
            ValueError,
            r"preview\(\) needs the journal",
        ),
    ):
        with pytest.raises(error, match=problem):
            await awaitable


async def test_no_engine_need_be_open(journal, work):
    await work.pipeline(journal).run()
    closed = FakeEngine()
    closed.is_open = False

    preview = await work.pipeline(journal).with_options(engine=closed).preview("r")

    assert preview["load"].decision == "runs"


async def test_nothing_runs_and_nothing_is_written(tmp_path: Path, work: Work):
    path = tmp_path / "runs.db"
    async with SQLiteJournal(path) as journal:
        await work.pipeline(journal).run()
        before, calls = dump(path), len(work.calls)

        await work.pipeline(journal, extract="2").preview("r")
        await work.pipeline(journal).preview("r", rerun=True, from_="extract")

        assert dump(path) == before
        assert len(work.calls) == calls


def dump(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as connection:
        return list(connection.iterdump())


async def test_what_waits_for_a_signal_runs_once_that_has_come(tmp_path: Path):
    pipeline = Pipeline("orders")

    @pipeline.step
    async def draft() -> str:
        return "draft"

    approved = pipeline.signal("approved", bool, depends_on=[draft])

    @pipeline.step
    async def publish(approved: bool = after(approved)) -> None: ...

    async with SQLiteJournal(tmp_path / "orders.db") as journal:
        stored = pipeline.with_options(journal=journal, run_id="r")
        await stored.run()
        waiting = await stored.preview("r")
        await journal.signal("r", "approved", True)
        answered = await stored.preview("r")
        before = dump(tmp_path / "orders.db")
        rerun = await stored.preview("r", rerun=True)
        assert dump(tmp_path / "orders.db") == before

    assert str(waiting) == (
        "A resumption of run r: 1 reused, 2 waiting\n"
        "[REUSED ] draft\n"
        "[WAITS  ] approved: no signal has come\n"
        "[WAITS  ] publish: signal 'approved' has not come"
    )
    assert [step.step_name for step in waiting.waits] == ["approved", "publish"]
    assert str(answered) == (
        "A resumption of run r: 1 reused, 2 to run\n"
        "[REUSED ] draft\n"
        "[RUNS   ] approved: its signal has come\n"
        "[RUNS   ] publish: it has not run yet"
    )
    assert told(rerun)["approved"] == ("waits", "no signal has come", "")


def signals(*, is_done: bool = True) -> Pipeline:
    """Return a pipeline in which steps of each kind come after signals."""

    async def act(**outputs: Any) -> str:
        return "done"

    async def act_later() -> str:
        if is_done:
            return "done"
        raise ValueError("not yet")

    pipeline = Pipeline("orders", fail_fast=False)
    pipeline.step(name="other")(act_later)
    pipeline.signal("one", bool)
    pipeline.signal("two", bool, depends_on=["one"])
    pipeline.signal("rare", bool, depends_on=["other"], when=lambda other: other != "done")
    steps: dict[str, Any] = {
        "after_two": {"depends_on": ["two"]},
        "after_rare": {"depends_on": ["rare"]},
        "joins": {"depends_on": ["rare", "other"], "run_if": "unless_failed"},
        "joins_all": {"depends_on": ["joins", "two"], "run_if": "unless_failed"},
        "tidies": {"run_if": "always"},
        "alarms": {"run_if": "failure"},
    }
    for name, options in steps.items():
        pipeline.step(name=name, **options)(partial(act))
    return pipeline


async def test_what_comes_after_a_signal_waits_unless_a_condition_or_a_stop_may_let_it_run(
    tmp_path: Path,
):
    async with SQLiteJournal(tmp_path / "orders.db") as journal:
        stored = signals(is_done=False).with_options(journal=journal, run_id="r")
        mended = signals().with_options(journal=journal, run_id="r")
        await stored.run()
        await journal.signal("r", "two", True)  # before its turn
        before = await mended.preview("r", rerun=True)
        failed = await mended.preview("r")
        await mended.with_options(run_id="s").run()
        last = await mended.preview("s")

    stops = "the run stops before signal 'one' has come"
    waits = ("waits", "signal 'one' has not come", "")
    assert told(before) == {
        "other": ("runs", "it had failed", ""),
        "one": ("waits", "no signal has come", ""),
        "two": waits,
        "rare": ("waits", "no signal has come", "its condition is met"),
        "after_two": waits,
        "after_rare": ("waits", "signal 'rare' has not come", ""),
        "joins": ("runs", "it has not run yet", ""),
        "joins_all": waits,
        "tidies": ("runs", "it has not run yet", stops),
        "alarms": ("runs", "it has not run yet", "one of its dependencies fails"),
    }
    assert told(failed)["two"] == waits
    assert {name: each.decision for name, each in last.items()} == {
        **dict.fromkeys(["other", "joins"], "reused"),
        **dict.fromkeys(["rare", "after_rare"], "skipped"),
        **dict.fromkeys(["one", "two", "after_two", "joins_all", "tidies", "alarms"], "waits"),
    }


async def test_the_preview_of_a_run_that_waits_to_start_is_about_its_start(tmp_path: Path):
    async with SQLiteJournal(tmp_path / "orders.db") as journal:
        stored = signals().with_options(journal=journal, run_id="r")
        await stored.enqueue()
        queued = await stored.preview("r")
        lacking = await Pipeline("orders", journal=journal).preview("r")
        await stored.run()
        begun = await stored.preview("r")

    assert (queued.is_start, begun.is_start) == (True, False)
    assert str(queued).startswith("A start of run r: ")
    assert str(lacking).startswith("A start of run r is refused, its pipeline lacks steps: ")
    assert str(begun).startswith("A resumption of run r: ")
    assert json.loads(queued.to_json())["is_start"] is True


def test_a_preview_says_that_a_signal_is_void_and_that_a_deadline_has_expired():
    def orders(version: str = "", **wait: Any) -> Pipeline:
        pipeline = Pipeline("orders")

        @pipeline.step(version=version)
        async def draft() -> str:
            return "draft"

        pipeline.signal("approved", bool, depends_on=[draft], **wait)
        return pipeline

    async def reasons() -> list[str | None]:
        async with SQLiteJournal(":memory:") as journal:
            options: Any = {"journal": journal, "run_id": "r"}
            late = orders(deadline_ms=1_000).with_options(**options)
            await late.run()
            await asyncio.sleep(2)
            expired = await late.preview("r")
            await journal.signal("r", "approved", True)
            changed = orders("2").with_options(**options)
            void = await changed.preview("r")
            assert (await changed.run()).status == "WAITING"
        return [expired["approved"].reason, void["approved"].reason]

    assert run_in_virtual_time(reasons()) == [
        "its deadline has expired",
        "step 'draft', which it depends on, runs again",
    ]


def test_a_preview_knows_a_signal_that_has_come_before_its_turn():
    draft = [ValueError("no draft"), "draft"]
    pipeline = Pipeline("orders")

    @pipeline.step(name="draft")
    async def write() -> str:
        await asyncio.sleep(2)
        result = draft.pop(0)
        if isinstance(result, Exception):
            raise result
        return result

    pipeline.signal("approved", bool, depends_on=[write])

    async def reason_and_output() -> tuple[str | None, Any]:
        async with SQLiteJournal(":memory:") as journal:
            orders = pipeline.with_options(journal=journal, run_id="r")
            run = asyncio.ensure_future(orders.run())
            await asyncio.sleep(1)
            await journal.signal("r", "approved", True)
            await asyncio.wait([run])
            preview = await orders.preview("r")
            return preview["approved"].reason, (await orders.run())["approved"].output

    assert run_in_virtual_time(reason_and_output()) == ("its signal has come", True)
