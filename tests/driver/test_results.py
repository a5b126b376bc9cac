"""The results that a handle gives as steps and items end: in order, complete, to any reader."""

# ruff: noqa: PT012  # what a block raises has a body

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Any

import pytest
from memory_journal import MemoryJournal

from asyncflow import (
    JournalError,
    Orchestrator,
    Pipeline,
    RunCancelledError,
    RunHandle,
    StepResult,
    StepStatus,
    WorkflowStep,
    each,
)

pytestmark = pytest.mark.exact_time


def returning(value: Any, after_ms: float = 0) -> Callable[[], Any]:
    async def action() -> Any:
        await asyncio.sleep(after_ms / 1000)
        return value

    return action


async def fail() -> None:
    raise ValueError("broken")


async def hang() -> None:
    await asyncio.Event().wait()


async def read(run: RunHandle, step: str | None = None) -> list[StepResult]:
    return [result async for result in run.results(step)]


def names(results: list[StepResult]) -> list[str]:
    return [result.step_name for result in results]


def crawl(broken: set[int] | None = None, *, tail_ms: float = 0, **options: Any) -> Orchestrator:
    """Return a pipeline whose later items end first, and whose last step takes a while."""

    async def fetch(page: int) -> str:
        await asyncio.sleep(0.001 * (10 - page))
        if page in (broken or ()):
            raise OSError(f"no page {page}")
        return f"page {page}"

    steps = [
        WorkflowStep("pages", returning([0, 1, 2])),
        WorkflowStep("fetch", fetch, {"page": "pages"}, map_over="pages"),
        WorkflowStep("last", returning("end", tail_ms), ["fetch"]),
    ]
    return Orchestrator(steps, **options)


class TestSteps:
    async def test_each_comes_when_its_step_ends_as_the_report_has_it(self) -> None:
        steps = [
            WorkflowStep("slow", returning(2, 20)),
            WorkflowStep("fast", returning(1, 10)),
            WorkflowStep("bad", fail),
            WorkflowStep("lost", hang, ["bad"]),
        ]
        found, done = list[StepResult](), list[int]()
        async with Orchestrator(steps, fail_fast=False).start() as run:
            async for result in run.results():
                found.append(result)
                done.append(run.progress.done)
            report = await run.report()

        assert names(found) == ["bad", "fast", "slow", "lost"]
        assert done == [1, 2, 4, 4]  # the last one is skipped at once
        assert [report[result.step_name] for result in found] == found
        assert [str(result.status) for result in found] == [
            "FAILED",
            "SUCCESS",
            "SUCCESS",
            "SKIPPED",
        ]

    async def test_late_readers_and_several_get_all_of_them_in_the_same_order(self) -> None:
        async with crawl().start() as run:
            first = asyncio.create_task(read(run))
            reader = run.results()
            early = [await anext(reader)]
            late_items = await read(run, "fetch")
            await run.report()
            early += [result async for result in reader]
            after = await read(run)
            assert await anext(reader, None) is None

        assert names(early) == ["pages", "fetch", "last"]
        assert await first == early == after == await read(run)
        assert await read(run, "fetch") == late_items

    async def test_reused_ones_come_first_with_their_outputs(self) -> None:
        journal = MemoryJournal()
        broken = {1}
        options: Any = {"journal": journal, "run_id": "r", "fail_fast": False}
        await crawl(broken).with_options(**options).run()
        broken.clear()

        async with crawl(broken).with_options(**options).start() as run:
            found, items = await read(run), await read(run, "fetch")
            report = await run.report()

        assert names(found) == ["pages", "fetch", "last"]
        assert [(result.reused, result.output) for result in found] == [
            (True, [0, 1, 2]),
            (False, ["page 0", "page 1", "page 2"]),
            (False, "end"),
        ]
        assert found == report.results
        assert [(each.step_name, each.reused) for each in items] == [
            ("fetch[0]", True),
            ("fetch[2]", True),
            ("fetch[1]", False),
        ]

    async def test_a_run_that_has_passed_earlier_gives_its_stored_results(self) -> None:
        options: Any = {"journal": MemoryJournal(), "run_id": "r"}
        first = await crawl().with_options(**options).run()

        async with crawl().with_options(**options).start() as run:
            assert names(await read(run)) == ["pages", "fetch", "last"]
            assert [item.output for item in await read(run, "fetch")] == first["fetch"].output
            assert run.progress.done == run.progress.total == 3

    async def test_a_rerun_gives_the_items_of_a_step_that_it_reuses(self) -> None:
        journal = MemoryJournal()
        await crawl(journal=journal).with_options(run_id="r").run()
        changed = crawl(journal=journal).with_options(run_id="new")

        report = await changed.rerun("r", from_="last")
        async with changed.start() as run:
            items = await read(run, "fetch")

        assert tuple(items) == report["fetch"].items
        assert [item.output for item in items] == ["page 0", "page 1", "page 2"]


class TestItems:
    async def test_each_comes_when_it_ends_and_the_last_one_before_the_run_is_over(self) -> None:
        async with crawl(tail_ms=1_000).start() as run:
            items = await read(run, "fetch")
            assert run.status == "RUNNING"
            report = await run.report()

        assert names(items) == ["fetch[2]", "fetch[1]", "fetch[0]"]
        assert tuple(sorted(items, key=lambda item: item.step_name)) == report["fetch"].items
        assert [item.output for item in items] == ["page 2", "page 1", "page 0"]

    async def test_failed_ones_are_among_them_and_the_reader_ends_with_the_step(self) -> None:
        steps = [*crawl({1}).steps, WorkflowStep("other", returning(1, 5_000))]
        async with Orchestrator(steps, fail_fast=False, schedule="ready").start() as run:
            items = await read(run, "fetch")
            assert run.progress.running == ("other",)

        assert [str(item.status) for item in items] == ["SUCCESS", "FAILED", "SUCCESS"]

    async def test_a_step_without_items_gives_none(self) -> None:
        etl = Pipeline("etl")

        @etl.step
        async def rows() -> list[int]:
            return []

        @etl.step
        async def load(row: int = each(rows)) -> int:
            return row

        @etl.step(when=lambda: False)
        async def skipped(row: int = each(rows)) -> int:
            return row

        async with etl.start() as run:
            assert await read(run, "load") == await read(run, "skipped") == []

    async def test_items_that_did_not_start_have_no_results(self) -> None:
        async def some(page: int) -> int:
            if page == 1:
                raise ValueError
            await asyncio.sleep(0.01)
            return page

        steps = [
            WorkflowStep("pages", returning([0, 1, 2, 3])),
            WorkflowStep("some", some, {"page": "pages"}, map_over="pages"),
        ]
        async with Orchestrator(steps, max_concurrency=2).start() as run:
            during = await read(run, "some")
            report = await run.report()
            after = await read(run, "some")

        assert names(during) == ["some[1]", "some[0]"]
        assert during == after
        assert report["some"].items == (during[1], during[0])


class TestTheEnd:
    async def test_a_cancelled_run_raises_when_all_that_has_ended_was_given(self) -> None:
        steps = [
            WorkflowStep("quick", returning(1)),
            WorkflowStep("numbers", returning([1])),
            WorkflowStep(
                "endless", lambda number: hang(), {"number": "numbers"}, map_over="numbers"
            ),
        ]
        for step, expected in (None, ["quick", "numbers", "endless"]), ("endless", ["endless[0]"]):
            found = list[StepResult]()
            async with Orchestrator(steps).start() as run:
                asyncio.get_running_loop().call_later(0.01, run.cancel, "enough")
                with pytest.raises(RunCancelledError, match="enough"):
                    async for result in run.results(step):
                        found.append(result)
                with pytest.raises(RunCancelledError, match="enough"):
                    await read(run, step)

            assert names(found) == expected
            assert found[-1].status is StepStatus.CANCELLED

    async def test_a_reader_has_what_ended_before_the_journal_failed(self) -> None:
        steps = [WorkflowStep(f"s{number}", returning(number)) for number in range(3)]
        journal = MemoryJournal(fail_at=5)
        with pytest.raises(JournalError):
            async with Orchestrator(steps, journal=journal).start() as run:
                reader = run.results()
                with pytest.raises(JournalError):
                    await run.report()
                found = [await anext(reader) for _ in run._link.ended]
                assert names(found) == run._link.ended != []
                await anext(reader)

    async def test_the_error_that_a_waiting_reader_raises_is_not_logged_as_unseen(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        journal = MemoryJournal(fail_at=4)
        pipeline = Orchestrator([WorkflowStep("a", returning(1, 5))], journal=journal)
        with pytest.raises(ExceptionGroup) as caught:
            async with asyncio.TaskGroup() as group:
                run = await pipeline.start().begin(group)
                group.create_task(read(run))

        assert caught.group_contains(JournalError)
        assert not caplog.records


class TestReaders:
    async def test_a_wait_can_be_given_up_and_leaves_nothing(self) -> None:
        async with crawl().start() as run:
            reader = run.results("fetch")
            for _ in range(3):
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(anext(reader), 0.001)
            assert not run._link.has_ended.has_waiters
            async for first in reader:
                assert first.step_name == "fetch[2]"
                break
            assert names([result async for result in reader]) == ["fetch[1]", "fetch[0]"]

    async def test_a_reader_of_many_lets_others_run(self) -> None:
        steps = [WorkflowStep(f"s{number}", returning(number)) for number in range(300)]
        turns = 0

        async def count() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        async with Orchestrator(steps).start() as run:
            await run.report()
            counting = asyncio.create_task(count())
            assert len(await read(run)) == 300
            counting.cancel()
            await asyncio.wait([counting])

        assert turns >= 2

    async def test_the_results_of_plain_items_are_made_without_a_replay(self) -> None:
        async def count() -> range:
            return range(1_000)

        async def half(number: int) -> float:
            return number / 2

        steps = [
            WorkflowStep("numbers", count),
            WorkflowStep("half", half, {"number": "numbers"}, map_over="numbers"),
        ]
        async with Orchestrator(steps).start() as run:
            state = run._link.state
            assert state is not None
            items = await read(run, "half")
            assert state.history._folded == 0
            assert tuple(items) == (await run.report())["half"].items

    async def test_a_name_that_has_no_items_is_refused(self) -> None:
        run = crawl().start()
        with pytest.raises(RuntimeError, match="has not started"):
            run.results()
        async with run:
            unknown = f"run {run.run_id!r} has no step 'fetsch' (did you mean 'fetch'?)"
            with pytest.raises(ValueError, match=re.escape(unknown)):
                run.results("fetsch")
            with pytest.raises(ValueError, match="step 'last' is not mapped, so it has no items"):
                run.results("last")
