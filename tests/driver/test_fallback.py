"""What a fallback returns stands in for the output of a step, or an item, that failed for good."""

from __future__ import annotations

import asyncio
import contextvars
from typing import Any

import pytest
from memory_journal import MemoryJournal

from asyncflow import (
    Orchestrator,
    PayloadError,
    Pool,
    RestoredError,
    Retry,
    RunReport,
    StepCrashedError,
    StepResult,
    StepStatus,
    StepTimeoutError,
    WorkflowStep,
    run_pipeline,
)
from asyncflow.events import AttemptFailed, StepFailed, StepSucceeded

SUCCESS, FAILED = StepStatus.SUCCESS, StepStatus.FAILED
SKIPPED, CANCELLED = StepStatus.SKIPPED, StepStatus.CANCELLED

BROKEN = OSError("no page")


async def fail() -> str:
    raise BROKEN


async def hang() -> None:
    await asyncio.Event().wait()


class Fallback:
    """Returns a value, or raises it, and keeps the errors that it received."""

    def __init__(self, value: Any = "instead") -> None:
        self.value = value
        self.errors: list[Exception] = []

    def __call__(self, error: Exception) -> Any:
        self.errors.append(error)
        if isinstance(self.value, BaseException):
            raise self.value
        return self.value


async def numbers() -> list[int]:
    return [0, 1, 2]


async def invert(number: int) -> float:
    return 1 / number


def mapped(**options: Any) -> list[WorkflowStep]:
    return [
        WorkflowStep("numbers", numbers),
        WorkflowStep("invert", invert, {"number": "numbers"}, map_over="numbers", **options),
    ]


def items_of(report: RunReport, step: str) -> tuple[StepResult, ...]:
    items = report[step].items
    assert items is not None
    return items


lanes = pytest.mark.parametrize(
    "options", [{}, {"pool": Pool(1)}, {"deadline_ms": 10_000}, {"max_retries": 3}], ids=str
)


class TestWhatItReturns:
    @lanes
    @pytest.mark.parametrize("is_durable", [False, True])
    async def test_is_the_output_of_a_step_that_succeeds_and_keeps_its_error(
        self, options: Any, is_durable: bool
    ) -> None:
        fallback, events = Fallback(), list[Any]()
        steps = [
            WorkflowStep("page", fail, fallback=fallback, **options),
            WorkflowStep("parse", parse, ["page"]),
        ]
        journal = MemoryJournal() if is_durable else None

        report = await run_pipeline(steps, journal=journal, observers=[events.append])

        attempts, page = options.get("max_retries", 1), report["page"]
        assert report.all_passed
        assert report["parse"].output == "INSTEAD"
        assert (page.status, page.output, page.error) == (SUCCESS, "instead", BROKEN)
        assert (page.fell_back, page.attempts) == (True, attempts)
        assert [each.error for each in page.history] == [BROKEN] * attempts
        assert fallback.errors == [BROKEN]
        assert not report["parse"].fell_back
        ends = [each for each in events if isinstance(each, StepSucceeded | StepFailed)]
        assert [(each.step, each.error) for each in ends] == [("page", BROKEN), ("parse", None)]
        retried = [each for each in events if isinstance(each, AttemptFailed)]
        assert len(retried) == attempts - 1
        assert f"[SUCCESS] page ({attempts} attempt(s), " in str(report)
        assert "): fell back: OSError: no page" in str(report)

    @lanes
    async def test_is_the_output_of_the_items_that_failed(self, options: Any) -> None:
        report = await run_pipeline(mapped(fallback=Fallback(0.0), **options))

        first, *others = items_of(report, "invert")
        assert report["invert"].output == [0.0, 1.0, 0.5]
        assert (first.fell_back, type(first.error)) == (True, ZeroDivisionError)
        assert not any(item.fell_back for item in (report["invert"], *others))
        assert report["invert"].error is None
        assert "1 of 3 items fell back" in str(report)

    @pytest.mark.exact_time
    async def test_stands_in_for_an_attempt_that_exceeded_its_limit(self) -> None:
        fallback = Fallback()
        step = WorkflowStep("a", hang, timeout_ms=10, max_retries=2, retry=5, fallback=fallback)

        report = await run_pipeline([step])

        [error] = fallback.errors
        assert isinstance(error, StepTimeoutError)
        assert report["a"].attempts == 2
        assert report["a"].duration_ms == pytest.approx(25)

    async def test_stands_in_for_what_a_thread_raised(self) -> None:
        def read() -> str:
            raise BROKEN

        report = await run_pipeline(
            [WorkflowStep("read", read, runs_in="thread", fallback=lambda error: str(error))]
        )

        assert report["read"].output == "no page"

    async def test_is_not_judged_by_until(self) -> None:
        step = WorkflowStep(
            "a",
            numbers,
            max_retries=2,
            retry=Retry(base_ms=0, until=lambda output: False),
            fallback=lambda error: [],
        )

        report = await run_pipeline([step])

        assert (report["a"].output, report["a"].attempts) == ([], 2)


async def parse(page: str) -> str:
    return page.upper()


IMPOSSIBLE = pytest.mark.parametrize(
    ("needs", "why"),
    [
        ({"slots": lambda number: 2 if number else 5}, "slots must be at most 4"),
        ({"tokens": lambda number: 9 if number else 99}, "tokens must be at most 60"),
        ({"tokens": lambda number: 9 // number}, "division"),
    ],
    ids=["too many slots", "too many tokens", "a function that raises"],
)


class TestWithoutAnAttempt:
    @IMPOSSIBLE
    @pytest.mark.parametrize("is_mapped", [False, True])
    async def test_it_stands_in_for_what_its_pool_can_never_give(
        self, needs: Any, why: str, is_mapped: bool
    ) -> None:
        pool, fallback, journal = Pool(4, tokens_per_minute=60), Fallback(0.5), MemoryJournal()
        options = {"pool": pool, "max_retries": 3, "fallback": fallback, **needs}
        single = WorkflowStep("invert", invert, **options)
        steps = mapped(**options) if is_mapped else [single]
        inputs: dict[str, Any] = {} if is_mapped else {"number": 0}
        pipeline = Orchestrator(steps, journal=journal).with_options(run_id="r")

        report = await pipeline.run(**inputs)
        again = await pipeline.run(**inputs)

        [error] = fallback.errors
        assert why in str(error)
        for each in report, again, await pipeline.report("r"):
            assert each.all_passed
            assert each["invert"].output == ([0.5, 1.0, 0.5] if is_mapped else 0.5)
            result = items_of(each, "invert")[0] if is_mapped else each["invert"]
            assert (result.fell_back, result.attempts, result.history) == (True, 0, ())
        assert (pool.in_use, pool.waiting) == (0, 0)

    async def test_what_it_raises_is_what_the_step_fails_with(self) -> None:
        wrong, fallback = KeyError("none"), Fallback(KeyboardInterrupt())
        options: Any = {"pool": Pool(1), "slots": lambda: 2}

        report = await run_pipeline([WorkflowStep("a", fail, fallback=Fallback(wrong), **options)])
        with pytest.raises(KeyboardInterrupt):
            await run_pipeline([WorkflowStep("a", fail, fallback=fallback, **options)])

        assert (report["a"].status, report["a"].attempts, report["a"].error) == (FAILED, 0, wrong)
        assert isinstance(wrong.__context__, ValueError)

    async def test_it_changes_no_context(self) -> None:
        variable = contextvars.ContextVar("variable", default="as it was")

        def fallback(error: Exception) -> str:
            variable.set("changed")
            return variable.get()

        async def read() -> str:
            return variable.get()

        report = await run_pipeline(
            [
                WorkflowStep("a", fail, pool=Pool(1), slots=lambda: 2, fallback=fallback),
                WorkflowStep("b", read, ["a"]),
            ]
        )

        assert [result.output for result in report.results] == ["changed", "as it was"]


class TestWhatItRaises:
    @lanes
    async def test_is_what_the_step_failed_with(self, options: Any) -> None:
        wrong = KeyError("no default")

        report = await run_pipeline(
            [WorkflowStep("page", fail, fallback=Fallback(wrong), **options)]
        )

        page = report["page"]
        assert (page.status, page.error, page.fell_back) == (FAILED, wrong, False)
        assert wrong.__context__ is BROKEN

    async def test_is_what_an_item_and_then_its_step_failed_with(self) -> None:
        wrong = KeyError("no default")

        report = await run_pipeline(mapped(fallback=Fallback(wrong)), fail_fast=False)

        assert [item.status for item in items_of(report, "invert")] == [FAILED, SUCCESS, SUCCESS]
        error = report["invert"].error
        assert isinstance(error, ExceptionGroup)
        assert error.exceptions == (wrong,)

    async def test_a_cancellation_is_a_failure(self) -> None:
        fallback = Fallback(asyncio.CancelledError())

        report = await run_pipeline([WorkflowStep("page", fail, fallback=fallback)])

        assert report["page"].status is FAILED
        assert report["page"].error is not None
        assert report["page"].error.__cause__ is fallback.value

    async def test_ends_the_run_if_it_ends_the_program(self) -> None:
        steps = [
            WorkflowStep("page", fail, fallback=Fallback(SystemExit(3))),
            WorkflowStep("other", hang),
        ]

        with pytest.raises(SystemExit):
            await run_pipeline(steps)

    async def test_what_has_to_be_awaited_is_refused(self) -> None:
        report = await run_pipeline([WorkflowStep("a", fail, fallback=lambda error: numbers())])

        assert report["a"].status is FAILED
        assert "the fallback of step 'a' returned coroutine" in str(report["a"].error)


class TestWhenItIsNotCalled:
    async def test_a_step_that_the_run_stopped(self) -> None:
        fallback = Fallback()
        steps = [
            WorkflowStep("running", hang, fallback=fallback),
            WorkflowStep("bad", fail),
            WorkflowStep("after", hang, ["running"], fallback=fallback),
        ]

        failed = await run_pipeline(steps)
        late = await run_pipeline(steps[:1], deadline_ms=10)

        assert [failed[name].status for name in ("running", "after")] == [CANCELLED, SKIPPED]
        assert late["running"].status is CANCELLED
        assert fallback.errors == []

    async def test_a_step_that_raises_while_the_run_stops_it(self) -> None:
        fallback = Fallback()

        async def stubborn() -> None:
            try:
                await hang()
            finally:
                raise BROKEN

        steps = [WorkflowStep("a", stubborn, fallback=fallback), WorkflowStep("bad", fail)]
        report = await run_pipeline(steps)

        assert (report["a"].status, report["a"].error) == (CANCELLED, BROKEN)
        assert fallback.errors == []

    async def test_a_condition_or_a_source_of_items_that_raises(self) -> None:
        fallback = Fallback()

        async def stream() -> Any:
            def items() -> Any:
                yield 1
                raise BROKEN

            return items()

        report = await run_pipeline(
            [
                WorkflowStep("asked", fail, when=lambda: 1 / 0, fallback=fallback),
                WorkflowStep("numbers", stream),
                WorkflowStep(
                    "invert",
                    invert,
                    {"number": "numbers"},
                    map_over="numbers",
                    fallback=fallback,
                ),
            ],
            fail_fast=False,
        )

        assert [report[name].status for name in ("asked", "invert")] == [FAILED, FAILED]
        assert report["invert"].error is BROKEN
        assert fallback.errors == []


class TestInADurableRun:
    async def test_it_is_stored_and_kept_by_a_resumption_and_by_a_rerun(self) -> None:
        journal, fallback, is_broken = MemoryJournal(), Fallback(), True

        async def last(page: str, invert: list[float]) -> str:
            if is_broken:
                raise ValueError
            return f"{page} {invert}"

        page = WorkflowStep("page", fail, fallback=fallback)
        items = mapped(fallback=Fallback(0.0))
        steps = [page, *items, WorkflowStep("last", last, ["page", "invert"])]
        pipeline = Orchestrator(steps, journal=journal).with_options(run_id="r")
        await pipeline.run()
        is_broken = False

        resumed = await pipeline.run()
        rerun = await pipeline.rerun("r", "new", from_="last")

        for report in resumed, rerun, await pipeline.report("r"), await pipeline.report("new"):
            assert report.all_passed
            assert report["last"].output == "instead [0.0, 1.0, 0.5]"
            assert report["page"].fell_back
            assert report["page"].reused
            assert [item.fell_back for item in items_of(report, "invert")] == [True, False, False]
            assert type(report["page"].error) in (OSError, RestoredError)
            assert "no page" in str(report["page"].error)
        assert len(fallback.errors) == 1

    async def test_what_cannot_be_stored_is_a_failure(self) -> None:
        step = WorkflowStep("a", fail, fallback=lambda error: object())

        report = await run_pipeline([step], journal=MemoryJournal())

        error = report["a"].error
        assert isinstance(error, PayloadError)
        assert error.__context__ is BROKEN

    @pytest.mark.exact_time
    async def test_it_stands_in_for_what_kills_its_process(self) -> None:
        journal, fallback = MemoryJournal(), Fallback()
        step = WorkflowStep("a", hang, max_crashes=0, fallback=fallback)
        await run_pipeline([step], journal=journal, run_id="r", deadline_ms=5)
        died = journal.died_after(2)  # the start of the run, and of the attempt

        report = await run_pipeline([step], journal=died, run_id="r")

        [error] = fallback.errors
        assert isinstance(error, StepCrashedError)
        assert (report["a"].status, report["a"].output) == (SUCCESS, "instead")
        stored = (await Orchestrator([step], journal=died).report("r"))["a"]
        for result in report["a"], stored:
            assert (result.fell_back, result.attempts, len(result.history)) == (True, 1, 1)
