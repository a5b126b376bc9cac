"""A run as a handle: what its block, its readers and those who cancel it see."""

# ruff: noqa: PT012  # what a block raises has a body

from __future__ import annotations

import asyncio
import gc
import logging
import warnings
import weakref
from collections.abc import Callable, Coroutine
from typing import Any, cast

import anyio
import pytest
from freed import without_collector
from memory_journal import MemoryJournal

from asyncflow import (
    JournalError,
    Orchestrator,
    Pipeline,
    RunAlreadyActiveError,
    RunCancelledError,
    RunHandle,
    RunProgress,
    RunReport,
    StepStatus,
    WorkflowStep,
    current_step,
    each,
)
from asyncflow.events import (
    Event,
    EventsMissed,
    RunFinished,
    RunInterrupted,
    RunStarted,
    StepProgressed,
    StepSucceeded,
)


class Gate:
    """A step that runs until it is opened, and cleans up."""

    def __init__(self, cleanup_s: float = 0.01) -> None:
        self.opened, self.started = asyncio.Event(), asyncio.Event()
        self.cleanup_s = cleanup_s
        self.ended: list[str] = []

    async def __call__(self) -> str:
        self.started.set()
        try:
            await self.opened.wait()
        except asyncio.CancelledError:
            await asyncio.sleep(self.cleanup_s)
            self.ended.append("cancelled")
            raise
        self.ended.append("opened")
        return "value"


async def quick() -> int:
    return 1


def gated(gate: Gate, **options: Any) -> Orchestrator:
    steps = [WorkflowStep("gate", gate, timeout_ms=None), WorkflowStep("last", quick, ["gate"])]
    return Orchestrator(steps, **options)


def raising(error: BaseException) -> Orchestrator:
    async def fail() -> None:
        await asyncio.sleep(0.01)
        raise error

    return Orchestrator([WorkflowStep("fail", fail)])


async def read(run: RunHandle) -> list[Event | EventsMissed]:
    return [event async for event in run.events()]


def kinds(events: list[Any]) -> list[str]:
    return [type(event).__name__ for event in events]


def reasons(report: RunReport | None) -> set[str | None]:
    assert report is not None
    return {result.reason for result in report.results}


class TestABlock:
    async def test_each_reader_sees_all_events_and_then_there_is_a_report(self) -> None:
        etl, seen = Pipeline("etl"), list[Event]()

        @etl.step
        async def rows(url: str) -> list[int]:
            current_step().progress(1, 2)
            return [len(url)]

        @etl.step
        async def load(row: int = each(rows)) -> int:
            return row

        async with etl.with_options(run_id="r1", observers=[seen.append]).start(url="abc") as run:
            first, second = await asyncio.gather(read(run), read(run))
            report = await run.report()
            late = await read(run)

        assert report.run_id == run.run_id == "r1"
        assert first == second == late == seen
        assert isinstance(first[-1], RunFinished)
        assert any(isinstance(event, StepProgressed) for event in first)
        assert report["load"].output == [3]
        assert await run.report() is report

    async def test_its_status_and_progress_change_while_it_runs(self) -> None:
        gate = Gate()

        async with gated(gate).start() as run:
            assert run.status == "RUNNING"
            assert run.progress == RunProgress(0, 2, ())
            await gate.started.wait()
            assert run.progress == RunProgress(0, 2, ("gate",))
            assert repr(run) == f"<RunHandle of run {run.run_id!r}, RUNNING>"
            gate.opened.set()
            await run.report()
            assert run.status == "PASSED"
            assert run.progress == RunProgress(2, 2, ())

    async def test_a_mapped_step_is_one_step_of_the_progress(self) -> None:
        etl, reader = Pipeline("etl"), list[RunProgress]()

        @etl.step
        async def rows() -> list[int]:
            return [1, 2, 3]

        @etl.step
        async def load(row: int = each(rows)) -> int:
            await asyncio.sleep(row / 1000)
            return row

        async with etl.start() as run:
            async for _ in run.events():
                reader.append(run.progress)

        assert max(len(each.running) for each in reader) == 1
        assert {each.total for each in reader} == {2}
        assert reader[-1] == RunProgress(2, 2, ())

    async def test_what_keeps_a_run_from_beginning_is_raised_by_entering(self) -> None:
        journal, entered = MemoryJournal(), False
        etl = Pipeline("etl", journal=journal)

        @etl.step
        async def fetch(url: str) -> None:
            await asyncio.sleep(1)

        for pipeline, inputs, error in [
            (etl, {"ulr": ""}, ValueError),
            (etl, {}, ValueError),
            (etl.with_options(journal=None), {}, ValueError),
        ]:
            with pytest.raises(error):
                async with pipeline.start(**inputs):
                    entered = True
        active = etl.with_options(run_id="r")
        async with active.start(url="") as run:
            with pytest.raises(RunAlreadyActiveError):
                async with active.start(url=""):
                    entered = True
            assert (await run.report()).all_passed

        assert not entered

    async def test_leaving_it_cancels_the_run_and_awaits_its_cleanup(self) -> None:
        gate = Gate()

        async with gated(gate).start() as run:
            await gate.started.wait()

        assert gate.ended == ["cancelled"]
        assert run.status == "INTERRUPTED"
        with pytest.raises(RunCancelledError, match="was cancelled: its block has ended") as caught:
            await run.report()
        assert reasons(caught.value.report) == {"the run was cancelled: its block has ended"}

    async def test_its_own_error_propagates_and_the_run_is_cancelled(self) -> None:
        gate = Gate()

        with pytest.raises(LookupError, match="mine"):
            async with gated(gate).start() as run:
                await gate.started.wait()
                raise LookupError("mine")

        assert gate.ended == ["cancelled"]
        with pytest.raises(RunCancelledError, match="its block raised LookupError"):
            await run.report()

    async def test_a_stored_report_is_there_at_once_and_without_events(self) -> None:
        pipeline = gated(gate := Gate(), journal=MemoryJournal()).with_options(run_id="r")
        gate.opened.set()
        await pipeline.run()

        async with pipeline.start() as run:
            assert await read(run) == []
            assert run.progress == RunProgress(2, 2, ())
            assert run.status == "PASSED"
            assert (await run.report()).all_passed

    async def test_a_handle_is_entered_once_and_must_be(self) -> None:
        pipeline = Orchestrator([WorkflowStep("a", quick)])
        run = pipeline.with_options(run_id="r").start()

        assert repr(run) == "<RunHandle of run 'r', not started>"
        for use in (lambda: run.status, lambda: run.progress, run.events, run.detach):
            with pytest.raises(RuntimeError, match="run 'r' has not started; enter its handle"):
                use()
        with pytest.raises(RuntimeError, match="run 'r' has not started"):
            await run.report()
        async with run:
            with pytest.raises(RuntimeError, match="'r' was entered already"):
                async with run:
                    raise AssertionError

    async def test_a_handle_that_is_never_entered_is_warned_about(self) -> None:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            Orchestrator([]).with_options(run_id="r").start()
            gc.collect()

        assert [str(each.message) for each in caught] == [
            "run 'r' was never started: its handle was not entered"
        ]

    async def test_within_a_step_the_run_is_a_nested_one(self) -> None:
        gate, started = Gate(), list[Event]()

        async def outer() -> None:
            async with gated(gate, observers=[started.append]).start() as run:
                await run.report()

        async with Orchestrator([WorkflowStep("outer", outer)]).start() as run:
            await gate.started.wait()
            run.cancel("enough")

        assert gate.ended == ["cancelled"]
        assert isinstance(started[0], RunStarted)
        assert (started[0].parent, started[0].parent_step) == (run.run_id, "outer")
        interrupted = [event for event in started if isinstance(event, RunInterrupted)]
        assert [event.reason for event in interrupted] == [
            "the run was cancelled: the caller was cancelled"
        ]


class TestCancellation:
    async def test_its_reason_stands_in_the_events_the_results_and_the_error(self) -> None:
        gate = Gate()

        async with gated(gate).start() as run:
            await gate.started.wait()
            run.cancel("the\ncustomer left")
            run.cancel("too late")
            assert run.status == "RUNNING"
            with pytest.raises(RunCancelledError) as caught:
                await run.report()

        reason = "the run was cancelled: the\\ncustomer left"
        assert str(caught.value) == f"run {run.run_id!r} was cancelled: the\ncustomer left"
        assert caught.value.reason == "the\ncustomer left"
        report = caught.value.report
        assert report is not None
        assert (report.status, report.stop_reason) == ("INTERRUPTED", reason)
        assert [result.status for result in report.results] == [
            StepStatus.CANCELLED,
            StepStatus.SKIPPED,
        ]
        assert reasons(report) == {reason}
        events = await read(run)
        interrupted = [e for e in events if isinstance(e, RunInterrupted)]
        assert [(e.cause, e.reason) for e in interrupted] == [("cancelled", reason)]
        with pytest.raises(RunCancelledError) as again:
            await run.report()
        assert again.value is caught.value
        assert gate.ended == ["cancelled"]

    @pytest.mark.parametrize("reason", [(), ("",)])
    async def test_it_needs_no_reason_and_it_must_be_text(self, reason: tuple[str, ...]) -> None:
        async with gated(Gate()).start() as run:
            with pytest.raises(TypeError, match="reason must be a str, not int"):
                run.cancel(3)  # type: ignore[arg-type]
            run.cancel(*reason)
            with pytest.raises(RunCancelledError, match="was cancelled: no reason given"):
                await run.report()

    async def test_before_the_start_nothing_runs(self) -> None:
        gate, seen = Gate(), list[Event]()
        run = gated(gate, observers=[seen.append]).start()
        run.cancel("changed my mind")

        with pytest.raises(RunCancelledError, match="changed my mind") as caught:
            async with run:
                raise AssertionError

        assert caught.value.report is None
        assert not seen
        assert not gate.started.is_set()

    async def test_after_the_end_it_changes_nothing(self) -> None:
        async with Orchestrator([WorkflowStep("a", quick)]).start() as run:
            await run.report()
            run.cancel("late")
            assert run.status == "PASSED"
            assert (await run.report()).all_passed

    @pytest.mark.parametrize("turns", range(8))
    async def test_around_the_last_turns_the_status_and_the_report_agree(self, turns: int) -> None:
        async with Orchestrator([WorkflowStep("a", quick)]).start() as run:
            for _ in range(turns):
                await asyncio.sleep(0)
            run.cancel("now")
            had_succeeded = run.progress.done == 1
            try:
                report = await run.report()
            except RunCancelledError as cancelled:
                report = cast("RunReport", cancelled.report)

        assert run.status == report.status
        assert run.status == "INTERRUPTED" or report.all_passed
        assert run.status == "PASSED" or not had_succeeded
        assert isinstance((await read(run))[-1], RunFinished)

    async def test_a_step_and_an_observer_may_call_it(self) -> None:
        handles = list[RunHandle]()

        def observe(event: Event) -> None:
            if isinstance(event, StepSucceeded):
                handles[0].cancel("an observer has seen enough")

        async def first() -> None:
            await asyncio.sleep(0.01)

        async def second() -> None:
            handles[0].cancel("the step has seen enough")
            await asyncio.sleep(1)

        one = Orchestrator(
            [WorkflowStep("first", first), WorkflowStep("second", second, ["first"])],
            observers=[observe],
        )
        for pipeline, reason in [
            (one, "an observer has seen enough"),
            (one.with_options(observers=[]), "the step has seen enough"),
        ]:
            async with pipeline.start() as run:
                handles[:] = [run]
                with pytest.raises(RunCancelledError, match=reason) as caught:
                    await run.report()
                assert caught.value.report is not None
                assert caught.value.report["first"].status is StepStatus.SUCCESS
                told = kinds(await read(run))
                assert told.index("StepSucceeded") < told.index("RunInterrupted")
                handles.clear()

    async def test_through_the_journal_it_is_an_error_that_the_block_raises(self) -> None:
        gate, journal = Gate(), MemoryJournal()

        with pytest.raises(RunCancelledError, match="cancelled through its journal") as caught:
            async with gated(gate, journal=journal).with_options(run_id="r").start() as run:
                await gate.started.wait()
                journal.open_sessions["r"].cancel()
                run.cancel("the second request, which does not count")
                await read(run)

        assert reasons(caught.value.report) == {"the run was cancelled through its journal"}
        assert run.status == "INTERRUPTED"

    async def test_from_outside_it_gets_through_and_the_cleanup_ends_first(self) -> None:
        gate = Gate()
        handles = list[RunHandle]()

        async def caller() -> None:
            async with gated(gate).start() as run:
                handles.append(run)
                await run.report()

        task = asyncio.create_task(caller())
        await gate.started.wait()
        task.cancel("shut down")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel("at once")  # while the step cleans up
        await asyncio.wait([task])

        assert task.cancelled()
        assert gate.ended == ["cancelled"]
        with pytest.raises(RunCancelledError, match="the caller was cancelled: shut down"):
            await handles[0].report()

    async def test_that_comes_while_the_block_ends_gets_through(self) -> None:
        for error in (None, LookupError()):
            gate = Gate()

            async def caller(gate: Gate = gate, error: Exception | None = error) -> None:
                async with gated(gate).start():
                    await gate.started.wait()
                    if error is not None:
                        raise error

            task = asyncio.create_task(caller())
            await gate.started.wait()
            await asyncio.sleep(0.005)
            task.cancel()
            await asyncio.wait([task])

            assert task.cancelled()
            assert gate.ended == ["cancelled"]

    @pytest.mark.parametrize("delay_s", [0, 0.005, 0.01, 0.015])
    async def test_while_entering_leaves_nothing_behind(self, delay_s: float) -> None:
        gate, journal = Gate(), MemoryJournal(latency_s=0.01)

        async def caller() -> None:
            async with gated(gate, journal=journal).with_options(run_id="r").start() as run:
                await run.report()

        task = asyncio.create_task(caller())
        await asyncio.sleep(delay_s)
        task.cancel()
        task.cancel()
        await asyncio.wait([task])

        assert task.cancelled()
        assert not journal.open_sessions
        assert not gate.started.is_set() or gate.ended == ["cancelled"]

    async def test_in_the_turn_in_which_the_run_begins_ends_it(self) -> None:
        gate, callers = Gate(), list[Any]()
        run = gated(gate, observers=[lambda _: callers[0].cancel()]).start()

        async def caller() -> None:
            callers.append(asyncio.current_task())
            async with run:
                await asyncio.sleep(0)  # eager tasks come this far
                raise AssertionError

        task = asyncio.create_task(caller())
        await asyncio.wait([task])

        assert task.cancelled()
        with pytest.raises(RunCancelledError, match="the caller was cancelled"):
            await run.report()

    async def test_of_an_anyio_scope_lets_the_cleanup_end(self) -> None:
        gate = Gate(cleanup_s=0.05)
        with anyio.move_on_after(0.02) as scope:
            async with gated(gate).start() as run:
                await run.report()

        assert scope.cancelled_caught
        assert gate.ended == ["cancelled"]
        assert run.status == "INTERRUPTED"


class TestReaders:
    async def test_a_slow_reader_learns_what_it_missed_and_slows_nothing(self) -> None:
        items = 50
        etl = Pipeline("etl")

        @etl.step
        async def rows() -> list[int]:
            return list(range(items))

        @etl.step
        async def load(row: int = each(rows)) -> int:
            return row

        seen, slow = list[Event](), list[Any]()
        options: Any = {"event_buffer": 10, "observers": [seen.append]}
        async with etl.with_options(**options).start() as run:
            reader = run.events()
            slow.append(await anext(reader))
            await run.report()
            slow += [event async for event in reader]
            late = await read(run)

        assert len(seen) > 2 * items
        assert slow == [seen[0], EventsMissed(len(seen) - 11), *seen[-10:]]
        assert late == [EventsMissed(len(seen) - 10), *seen[-10:]]

    async def test_a_wait_for_the_next_event_can_be_given_up(self) -> None:
        gate = Gate()

        async with gated(gate).start() as run:
            reader, events = run.events(), list[Any]()
            while len(events) < 2:
                events.append(await anext(reader))
            for _ in range(3):
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(anext(reader), 0.01)
            assert not run._link.has_news.has_waiters
            gate.opened.set()
            events += [event async for event in reader]

        assert events == await read(run)
        assert kinds(events).count("StepSucceeded") == 2

    async def test_a_reader_of_many_events_lets_others_run(self) -> None:
        steps = [WorkflowStep(f"s{n}", quick) for n in range(200)]
        async with Orchestrator(steps).start() as run:
            await run.report()
            turns = 0

            async def count() -> None:
                nonlocal turns
                while True:
                    turns += 1
                    await asyncio.sleep(0)

            counting = asyncio.create_task(count())
            events = await read(run)
            counting.cancel()
            await asyncio.wait([counting])

        assert len(events) == 402
        assert turns >= 3

    async def test_a_report_may_be_awaited_often_and_given_up(self) -> None:
        gate = Gate()

        async with gated(gate).start() as run:
            for _ in range(2):
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(run.report(), 0.01)
            waiting = [asyncio.create_task(run.report()) for _ in range(3)]
            await asyncio.sleep(0)
            waiting[0].cancel()
            gate.opened.set()
            await asyncio.wait(waiting)

        assert waiting[0].cancelled()
        assert waiting[1].result() is waiting[2].result()
        assert waiting[1].result().all_passed


class TestErrors:
    async def test_the_block_raises_what_has_ended_the_run(self) -> None:
        gate, journal = Gate(), MemoryJournal()

        with pytest.raises(JournalError, match="the disk is full"):
            async with gated(gate, journal=journal).with_options(run_id="r").start() as run:
                await gate.started.wait()
                journal.open_sessions["r"].fail(JournalError("memory", "the disk is full"))
                assert kinds(await read(run))[-1] == "RunFinished"

        assert run.status == "INTERRUPTED"
        assert gate.ended == ["cancelled"]

    async def test_unless_report_has_raised_it(self) -> None:
        gate, journal = Gate(), MemoryJournal()

        async with gated(gate, journal=journal).with_options(run_id="r").start() as run:
            await gate.started.wait()
            journal.open_sessions["r"].fail(JournalError("memory", "the disk is full"))
            for _ in range(2):
                with pytest.raises(JournalError):
                    await run.report()

    async def test_it_is_a_note_of_another_error_of_the_block(self) -> None:
        gate, journal = Gate(), MemoryJournal()

        with pytest.raises(LookupError) as caught:
            async with gated(gate, journal=journal).with_options(run_id="r").start() as run:
                await gate.started.wait()
                journal.open_sessions["r"].fail(JournalError("memory", "the disk is full"))
                await read(run)
                raise LookupError

        assert caught.value.__notes__ == [
            "run 'r' has failed too: JournalError: journal memory: the disk is full"
        ]

    async def test_report_raises_it_through_the_block_as_it_is(self) -> None:
        gate, journal = Gate(), MemoryJournal()

        with pytest.raises(JournalError) as caught:
            async with gated(gate, journal=journal).with_options(run_id="r").start() as run:
                await gate.started.wait()
                journal.open_sessions["r"].fail(JournalError("memory", "the disk is full"))
                await run.report()

        assert not hasattr(caught.value, "__notes__")

    @pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()])
    @pytest.mark.parametrize("where", ["report", "events", "elsewhere", "swallowed"])
    async def test_what_ends_the_program_leaves_the_block_at_once(
        self, error: BaseException, where: str
    ) -> None:
        task, now = asyncio.current_task(), asyncio.get_running_loop().time
        assert task is not None
        began_s = now()

        with pytest.raises(type(error)) as caught:
            async with raising(error).start() as run:
                if where == "report":
                    await run.report()
                elif where == "events":
                    await read(run)
                    await asyncio.sleep(3600)
                elif where == "elsewhere":
                    await asyncio.sleep(3600)
                else:
                    with pytest.raises(asyncio.CancelledError):
                        await asyncio.sleep(3600)
                    await asyncio.sleep(0.01)

        assert caught.value is error
        assert task.cancelling() == 0
        assert now() - began_s < 60
        assert run.status == "INTERRUPTED"
        await asyncio.sleep(0)

    async def test_what_ends_the_program_while_the_block_ends_is_raised_too(self) -> None:
        gate, error = Gate(), SystemExit(3)

        async def fail() -> None:
            try:
                await asyncio.sleep(3600)
            finally:
                raise error

        steps = [WorkflowStep("gate", gate), WorkflowStep("fail", fail)]
        with pytest.raises(SystemExit) as caught:
            async with Orchestrator(steps).start():
                await gate.started.wait()
                raise LookupError

        assert caught.value is error
        assert isinstance(error.__context__, LookupError)
        assert gate.ended == ["cancelled"]

    async def test_what_ends_the_program_precedes_a_cancellation_that_comes_with_it(self) -> None:
        error = SystemExit(3)
        tasks = list[asyncio.Task[Any]]()

        async def fail() -> None:
            await asyncio.sleep(0.01)
            asyncio.get_running_loop().call_soon(tasks[0].cancel)
            raise error

        async def caller() -> SystemExit:
            with pytest.raises(SystemExit) as caught:
                async with Orchestrator([WorkflowStep("fail", fail)]).start():
                    await asyncio.sleep(3600)
            return caught.value

        tasks.append(asyncio.create_task(caller()))
        await asyncio.wait(tasks)

        assert tasks[0].result() is error
        assert tasks[0].cancelling() == 1


class Owner:
    """Awaits tasks; keeps what they raise."""

    def __init__(self) -> None:
        self.raised = list[BaseException]()

    def create_task(
        self, coro: Coroutine[Any, Any, None], /, *, name: str | None = None
    ) -> asyncio.Task[None]:
        return asyncio.create_task(self._keep(coro), name=name)

    async def _keep(self, coro: Coroutine[Any, Any, None]) -> None:
        try:
            await coro
        except (KeyboardInterrupt, SystemExit) as error:
            self.raised.append(error)


class Refusing(Owner):
    def create_task(self, *_: Any, **__: Any) -> asyncio.Task[None]:
        raise LookupError


class TestAnOwner:
    async def test_a_run_that_is_left_to_its_owner_continues_after_its_block(self) -> None:
        gate = Gate()

        async with asyncio.TaskGroup() as group:
            run = await gated(gate).start().begin(group)
            async with run as entered:
                assert entered is run
                await gate.started.wait()
                run.detach()
            assert run.status == "RUNNING"
            gate.opened.set()

        assert (await run.report()).all_passed
        assert gate.ended == ["opened"]

    async def test_without_a_block_it_is_watched_and_cancelled_all_the_same(self) -> None:
        gate = Gate()

        async with asyncio.TaskGroup() as group:
            run = await gated(gate).start().begin(group)
            await gate.started.wait()
            reading = group.create_task(read(run))
            run.cancel("enough")

        assert kinds(reading.result())[-1] == "RunFinished"
        with pytest.raises(RunCancelledError, match="enough"):
            await run.report()

    async def test_a_run_without_an_owner_can_not_be_left(self) -> None:
        async with gated(Gate()).with_options(run_id="r").start() as run:
            with pytest.raises(RuntimeError, match=r"run 'r' has no owner .*\.begin\(task_group\)"):
                run.detach()

    async def test_an_owner_that_has_refused_the_run_is_none(self) -> None:
        run = gated(Gate()).start()
        with pytest.raises(LookupError):
            await run.begin(Refusing())

        async with run:
            with pytest.raises(RuntimeError, match="has no owner"):
                run.detach()

    async def test_it_awaits_the_run_alone_before_the_block_and_once_that_is_left(self) -> None:
        gate = Gate()
        run = gated(gate).start()
        with pytest.raises(LookupError):
            await run.begin(Refusing())

        async with asyncio.TaskGroup() as group:
            await run.begin(group)
            run.detach()
            async with run:
                await gate.started.wait()
                run.detach()
                run.detach()
            assert run.status == "RUNNING"
            gate.opened.set()

        assert (await run.report()).all_passed

    async def test_it_is_started_once(self) -> None:
        async with asyncio.TaskGroup() as group:
            run = await Orchestrator([]).with_options(run_id="r").start().begin(group)
            with pytest.raises(RuntimeError, match="run 'r' was started already"):
                await run.begin(group)

    async def test_what_keeps_it_from_beginning_is_raised_to_the_caller_alone(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with asyncio.TaskGroup() as group:
            with pytest.raises(ValueError, match="takes an input 'url'"):
                await Orchestrator([]).start(url="").begin(group)

        assert not caplog.records

    async def test_an_owner_that_has_ended_starts_nothing(self) -> None:
        async with asyncio.TaskGroup() as group:
            pass

        with pytest.raises(RuntimeError, match="is finished"):
            await Orchestrator([]).start().begin(group)
        with pytest.raises(TypeError, match="create_task"):
            await Orchestrator([]).start().begin(None)  # type: ignore[arg-type]
        with pytest.raises(LookupError):
            await Orchestrator([]).start().begin(Refusing())

    @pytest.mark.parametrize("make", [object, asyncio.Future, lambda: None])
    async def test_an_owner_that_returns_no_task_starts_nothing(
        self, make: Callable[[], Any]
    ) -> None:
        class Owner:
            def create_task(self, coro: Any, *, name: str | None = None) -> Any:
                return make()

        kind = type(make()).__name__

        with pytest.raises(TypeError, match=f"create_task must return an asyncio.Task, not {kind}"):
            await gated(Gate()).start().begin(Owner())

    async def test_an_owner_that_ends_the_task_without_the_run_is_an_error(self) -> None:
        async def refuse(_: object) -> None:
            raise LookupError

        class Wrapping:
            def create_task(self, coro: Any, *, name: str | None = None) -> asyncio.Task[None]:
                return asyncio.create_task(refuse(coro))

        run = gated(Gate()).with_options(run_id="r").start()

        with pytest.raises(RuntimeError, match="owner of run 'r' ended its task without") as caught:
            await run.begin(Wrapping())
        assert isinstance(caught.value.__cause__, LookupError)
        with pytest.raises(RuntimeError, match="ended its task"):
            await run.report()

    async def test_the_end_of_its_owner_interrupts_it(self) -> None:
        gate = Gate()
        with pytest.raises(ExceptionGroup):
            async with asyncio.TaskGroup() as group:
                run = await gated(gate).start().begin(group)
                await gate.started.wait()
                raise LookupError

        assert gate.ended == ["cancelled"]
        with pytest.raises(RunCancelledError, match="the caller was cancelled") as caught:
            await run.report()
        assert reasons(caught.value.report) == {"the caller was cancelled"}

    async def test_an_error_that_nobody_awaits_is_logged(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        gate, journal = Gate(), MemoryJournal()

        async with asyncio.TaskGroup() as group:
            pipeline = gated(gate, journal=journal).with_options(run_id="r")
            run = await pipeline.start().begin(group)
            await gate.started.wait()
            journal.open_sessions["r"].fail(JournalError("memory", "the disk is full"))

        errors = [each for each in caplog.records if each.levelno == logging.ERROR]
        assert [each.getMessage() for each in errors] == [
            "run 'r' did not end in this process, and nothing awaits it; a service can resume it: "
            "JournalError: journal memory: the disk is full"
        ]
        with pytest.raises(JournalError):
            await run.report()

    @pytest.mark.parametrize("awaits", ["report", "block"])
    async def test_an_error_that_somebody_awaits_is_not_logged(
        self, awaits: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        gate, journal = Gate(), MemoryJournal()

        async with asyncio.TaskGroup() as group:
            pipeline = gated(gate, journal=journal).with_options(run_id="r")
            run = await pipeline.start().begin(group)
            await gate.started.wait()
            asyncio.get_running_loop().call_later(
                0.01, journal.open_sessions["r"].fail, JournalError("memory", "full")
            )
            with pytest.raises(JournalError):
                if awaits == "report":
                    await run.report()
                async with run:
                    await read(run)

        assert not [each for each in caplog.records if each.levelno == logging.ERROR]

    async def test_what_ends_the_program_is_raised_to_it_if_no_block_awaits_the_run(self) -> None:
        owner, error = Owner(), SystemExit(3)
        run = await raising(error).start().begin(owner)

        with pytest.raises(SystemExit):
            await run.report()

        assert owner.raised == [error]

    async def test_a_detached_block_is_not_cancelled_by_what_ends_the_program(self) -> None:
        owner, error = Owner(), SystemExit(3)

        async with await raising(error).start().begin(owner) as run:
            run.detach()
            await asyncio.sleep(0.1)

        assert owner.raised == [error]


class Value:
    """An input that a weak reference can tell about."""


@pytest.mark.parametrize(
    "end", ["passes", "is cancelled", "exits", "never begins", "is cancelled before it begins"]
)
async def test_dropping_the_handle_frees_what_the_run_held(end: str) -> None:
    kept = list[weakref.ref[Any]]()

    async def use(value: Any) -> None:
        if end == "exits":
            await asyncio.sleep(0.01)
            raise SystemExit
        if end == "is cancelled":
            await asyncio.sleep(3600)

    async def watch(value: Value) -> None:
        kept.append(weakref.ref(value))
        pipeline = Orchestrator([WorkflowStep("use", use)])
        wrong = {"wrong": 1} if end == "never begins" else {}
        run: RunHandle | None = pipeline.start(value=value, **wrong)
        kept.append(weakref.ref(run))
        if end == "is cancelled before it begins":
            run.cancel("enough")
        try:
            async with run:
                kept.append(weakref.ref(run._link))
                if end == "is cancelled":
                    run.cancel("enough")
                await read(run)
                assert [result.step_name async for result in run.results()] == ["use"]
        except (SystemExit, ValueError, RunCancelledError):
            run = None  # else it would be a cycle: the error has this frame, and the handle has it

    with without_collector():
        await asyncio.create_task(watch(Value()))
        for _ in range(3):
            await asyncio.sleep(0)
        alive = [each() for each in kept]

    assert alive == [None] * len(kept)
