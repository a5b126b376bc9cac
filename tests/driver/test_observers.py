"""One observer can watch many runs and set context that only attempts see; it changes no run."""

from __future__ import annotations

import asyncio
import functools
import logging
from contextvars import ContextVar

import pytest
from memory_journal import MemoryJournal

from asyncflow import Orchestrator, WorkflowStep, current_step, run_pipeline
from asyncflow.events import AttemptStarted, RunFinished, RunStarted

MARK: ContextVar[str] = ContextVar("mark", default="nothing")


class Recorder:
    """Returns a list for each run."""

    def __init__(self):
        self.runs = []

    def for_run(self):
        events = []
        self.runs.append(events)
        return events.append


class Marking:
    """Marks the context of each attempt."""

    def for_run(self):
        return MarkingRun()


class MarkingRun:
    def __init__(self):
        self.entered = []

    def __call__(self, event):
        if isinstance(event, AttemptStarted):
            assert event not in self.entered  # the event comes before the entry

    def enter_attempt(self, running):
        self.entered.append(running)
        name = running.step if running.item is None else f"{running.step}[{running.item}]"
        MARK.set(f"{name}#{running.attempt}")


async def succeed():
    return MARK.get()


async def wait():
    await asyncio.sleep(0.001)
    return current_step().run_id


def run_ids(runs):
    return {next(e.run_id for e in events if isinstance(e, RunStarted)) for events in runs}


async def test_one_observer_can_watch_many_runs_at_once():
    recorder = Recorder()
    orchestrator = Orchestrator([WorkflowStep("a", wait)], observers=[recorder])

    reports = await asyncio.gather(
        *(orchestrator.with_options(run_id=f"r{n}").run() for n in range(5))
    )

    assert all(report.all_passed for report in reports)
    assert run_ids(recorder.runs) == {f"r{n}" for n in range(5)}
    for events in recorder.runs:
        assert len(events) == 4
        assert isinstance(events[-1], RunFinished)


class Failing:
    def __init__(self, error):
        self.error = error

    def for_run(self):
        raise self.error


class Returning:
    def __init__(self, given):
        self.given = given

    def for_run(self):
        return self.given


async def observe_async(event): ...


@pytest.mark.parametrize(
    ("observer", "problem"),
    [
        (Failing(RuntimeError("no observer today")), "no observer today"),
        (Failing(asyncio.CancelledError("nor tomorrow")), "nor tomorrow"),
        (Returning(None), "must be callable"),
        (Returning(observe_async), "not an async one"),
    ],
)
async def test_a_run_continues_without_an_observer_that_cannot_be_made(observer, problem, caplog):
    seen = []

    report = await run_pipeline([WorkflowStep("a", succeed)], observers=[observer, seen.append])

    assert report.all_passed
    assert len(seen) == 4
    assert "for_run of an observer failed" in caplog.text
    assert problem in caplog.text


@pytest.mark.parametrize("journal", [False, True])
async def test_a_base_exception_of_an_observer_ends_the_run_before_it_starts(journal):
    store = MemoryJournal() if journal else None
    steps = [WorkflowStep("a", succeed)]

    with pytest.raises(KeyboardInterrupt):
        await run_pipeline(
            steps, observers=[Failing(KeyboardInterrupt())], journal=store, run_id="r"
        )

    assert store is None or not store.open_sessions


@pytest.mark.parametrize("durable", [False, True])
async def test_what_an_observer_does_to_an_event_concerns_no_other_run(durable):
    def forget(event):
        if isinstance(event, RunStarted):
            event.dependencies.clear()
            event.max_retries.clear()

    seen = []
    journal = MemoryJournal() if durable else None
    orchestrator = Orchestrator([WorkflowStep("a", succeed)], journal=journal)

    await orchestrator.with_options(observers=[forget]).run()
    await orchestrator.with_options(observers=[seen.append]).run()

    assert (seen[0].dependencies, seen[0].max_retries) == ({"a": ()}, {"a": 1})


async def test_a_stored_run_that_has_passed_is_not_observed_again():
    recorder, journal = Recorder(), MemoryJournal()

    for _ in range(2):
        await run_pipeline(
            [WorkflowStep("a", succeed)], observers=[recorder], journal=journal, run_id="r"
        )

    assert len(recorder.runs) == 1


class AsyncFactory:
    async def for_run(self): ...


@pytest.mark.parametrize(
    ("observers", "problem"),
    [
        ([Recorder], r"an observer must be an object, not a class: write Recorder\(\)"),
        ([AsyncFactory()], "for_run of an observer must be a plain method"),
        (Recorder(), "put a single one in a list"),
        ([1], "an observer must be callable or have a method for_run, not int"),
        ([observe_async], "not an async one"),
        ([functools.partial(observe_async)], "not an async one"),
    ],
)
async def test_an_object_that_cannot_observe_is_refused(observers, problem):
    with pytest.raises(TypeError, match=problem):
        Orchestrator([WorkflowStep("a", succeed)], observers=observers)


def flaky(options):
    """Return the marks that attempts find, and a step that fails in its first attempt."""
    found = []

    def note():
        context = current_step()
        item = "" if context.item is None else f"[{context.item}]"
        found.append((f"{context.step_name}{item}#{context.attempt}", MARK.get()))
        if context.attempt == 1:
            raise ValueError

    async def act(**_):
        note()
        await asyncio.sleep(0)

    def in_thread(**_):
        note()

    action = in_thread if options.get("runs_in") else act
    return found, WorkflowStep("a", action, ["items"], max_retries=2, **options)


async def two_items():
    return [0, 1]


@pytest.mark.parametrize("durable", [False, True])
@pytest.mark.parametrize(
    "options",
    [{}, {"runs_in": "thread"}, {"map_over": "items"}, {"retry": 1}, {"deadline_ms": 60_000}],
)
async def test_an_observer_can_mark_the_context_of_each_attempt(options, durable):
    found, step = flaky(options)
    journal = MemoryJournal(latency_s=0.001) if durable else None

    report = await run_pipeline(
        [WorkflowStep("items", two_items), step],
        observers=[Marking()],
        journal=journal,
        max_concurrency=2,
    )

    assert report.all_passed
    assert len(found) == 2 * len(report["a"].items or [1])
    assert all(own == mark for own, mark in found)
    assert MARK.get() == "nothing"


async def test_an_observer_that_cannot_enter_an_attempt_is_dropped(caplog):
    class Refusing(MarkingRun):
        def enter_attempt(self, running):
            super().enter_attempt(running)
            raise LookupError("no way in")

    refusing = Refusing()
    with caplog.at_level(logging.ERROR, "asyncflow"):
        report = await run_pipeline(
            [WorkflowStep("a", succeed), WorkflowStep("b", succeed, ["a"])], observers=[refusing]
        )

    assert report.all_passed
    assert len(refusing.entered) == 1
    assert "at AttemptStarted of a" in caplog.text
    assert "no way in" in caplog.text


async def test_a_base_exception_of_an_observer_that_enters_an_attempt_ends_the_run():
    class Interrupting(MarkingRun):
        def enter_attempt(self, running):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        await run_pipeline([WorkflowStep("a", wait)], observers=[Interrupting()])


async def test_a_condition_or_a_later_step_does_not_see_the_marks_of_an_observer():
    seen = []

    def condition():
        seen.append(MARK.get())
        return True

    await run_pipeline(
        [WorkflowStep("a", succeed), WorkflowStep("b", succeed, ["a"], when=condition)],
        observers=[Marking()],
    )

    assert seen == ["nothing"]
