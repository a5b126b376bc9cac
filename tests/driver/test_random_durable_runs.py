"""Random durable runs, interrupted at every possible point, end as if they had not been.

Seeds and virtual time make each failure reproducible: its message names the seed and shows the
pipeline.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter, defaultdict
from dataclasses import fields
from itertools import pairwise
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_runs import RUN_ID, CallingJournal, CallingSession, RandomPipeline, key_of
from turn_counting import TurnCountingLoop

from asyncflow import (
    JournalError,
    Orchestrator,
    RunCancelledError,
    StepCrashedError,
    StepResult,
    StepStatus,
    run_pipeline,
    topological_sort,
)
from asyncflow._core.history.replay import StoredRun
from asyncflow._core.history.results import REDACTED, REDACTED_OUTPUT, Payload, visible_output
from asyncflow._core.history.resume import resume
from asyncflow._core.history.stored_report import report_from
from asyncflow._core.pipeline.graph import ForwardOutputs, plan
from asyncflow._core.record import replace
from asyncflow._core.running.state import RunState
from asyncflow._views.run_view import RunView, view_of
from asyncflow.events import (
    NOT_IN_PIPELINE,
    RECALLED,
    AttemptBegan,
    AttemptFailed,
    AttemptStarted,
    MapStarted,
    NoteEvent,
    ResultReused,
    RunFinished,
    RunResumed,
    RunStarted,
    StepCalled,
    StepCancelled,
    StepFailed,
    StepLogged,
    StepProgressed,
    StepReused,
    StepStreamed,
    StepSucceeded,
)
from tests.explore.threads import in_turns

SUCCESS, FAILED = StepStatus.SUCCESS, StepStatus.FAILED
DECISIONS = "reused", "runs", "waits", "skipped"
ENDS = AttemptFailed, StepSucceeded, StepFailed, StepCancelled


def decode(step, payload):
    return json.loads(payload.data)


class NotingSession(CallingSession):
    """A session that stores what steps say."""

    def append_note(self, note):
        if isinstance(note, StepStreamed):
            self._journal.streamed[self._run_id].append(note)
        else:
            self._journal.notes.append(note)


class NotingJournal(CallingJournal):
    """A journal that stores what steps say, in the order in which they say it."""

    session = NotingSession
    logs = 20
    max_stream_bytes = 10_000

    def __init__(self, **options):
        super().__init__(**options)
        self.notes = []
        self.streamed = defaultdict(list)
        """What the steps of each run have streamed."""

    def follow_streamed(self):
        """Let runs store what their steps stream."""


class Received(list):
    """The observer of an execution: the events that are no notes, and apart from them the notes."""

    logs = 20

    def __init__(self):
        super().__init__()
        self.notes = []

    def __call__(self, event):
        (self.notes if isinstance(event, get_args(NoteEvent)) else self).append(event)


class Request:
    """Takes the place of the task that a loop cancels: cancels the run through its journal."""

    def __init__(self, journal):
        self.session = None
        self.journal = journal

    def done(self):
        self.session = self.journal.open_sessions.get(RUN_ID)
        return self.session is None or not self.session.is_watched

    def cancel(self, message):
        self.session.cancel()
        return False  # the task itself is not cancelled


class Execution:
    """A segment of a run: the part from its start, or a resumption, to its end."""

    def __init__(self, pipeline, journal, kind="the same", run_id=RUN_ID):
        self.kind = kind
        self.run_id = run_id
        self.pipeline = pipeline
        self.journal = journal
        self.stored = list(journal.stored.get(self.run_id, ()))
        self.world = pipeline.world(journal, run_id)
        self.steps = pipeline.steps(self.world)
        self.received = Received()
        self.report = None
        self.error = None

    def begin(self):
        return run_pipeline(
            self.steps,
            journal=self.journal,
            run_id=self.run_id,
            name="p",
            inputs=self.pipeline.inputs,
            resources=self.resources,
            observers=[self.received, self.world.observe],
            allow_missing_steps=True,
            key=f"the key of {self.run_id}",
            attributes={"begun": len(self.stored)},  # only those of the first start count
            **self.pipeline.options,
        )

    async def run(self, turn=None, *, through_journal=False):
        loop = asyncio.get_running_loop()
        self.preview = await self.previewed() if self.stored else None
        task = asyncio.Task(self.begin())
        loop.turn, loop.turns, loop.cancel_accepted = turn, 0, False
        loop.victim = Request(self.journal) if through_journal else task
        await asyncio.wait([task])
        loop.victim = None
        assert task.cancelled() == loop.cancel_accepted
        self.end(task)
        self.turns = loop.turns
        self.check()
        if self.preview is not None:
            check_preview(self.preview, self.received, self.report)
        return self

    async def run_beside(self, others):
        """Run it while others of its journal run; each is checked when all have ended."""
        together = [self, *others]
        tasks = [asyncio.ensure_future(each.begin()) for each in together]
        await asyncio.wait(tasks)
        for each, task in zip(together, tasks, strict=True):
            each.end(task)
        del tasks, task
        for each in together:
            each.check()

    def end(self, task):
        if not task.cancelled():
            self.error = task.exception()
            self.report = None if self.error else task.result()

    @property
    def resources(self):
        return self.world.resources if self.pipeline.has_resource else {}

    @property
    def orchestrator(self):
        return Orchestrator(
            self.steps,
            journal=self.journal,
            name="p",
            resources=self.resources,
            **self.pipeline.options,
        )

    @property
    def plan(self):
        return replace(plan(self.steps), resources=frozenset(self.resources))

    async def previewed(self):
        """Return what the resumption will do, by a preview that changes nothing."""
        orchestrator = self.orchestrator
        preview = await orchestrator.with_options(allow_missing_steps=True).preview(self.run_id)
        assert self.journal.stored[self.run_id] == self.stored
        assert not self.world.calls
        return preview

    def check(self):
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert not self.journal.open_sessions, (self.error, self.received[-3:])
        assert self.world.violations == []
        assert not +self.world.running
        assert not self.world.is_open
        assert [(pool.in_use, pool.waiting) for pool in self.world.pools] == [(0, 0)] * 2
        assert self.error is None or isinstance(self.error, JournalError | RunCancelledError)
        if isinstance(self.error, RunCancelledError):
            last = self.received[-1], self.journal.stored[self.run_id][-1]
            assert [event.status for event in last] == ["INTERRUPTED"] * 2
        self.check_calls()
        self.check_notes()
        if self.report is not None:
            if self.received:
                self.check_times()
                self.check_stored_run()
                self.check_replay()
                assert_shows(RunView(self.journal.stored[self.run_id]), self.report)
            else:
                assert all(result.reused for result in self.report.results)  # nothing has run
            assert_shows(view_of(self.report), self.report)
            check_history(self.report, self.journal.stored[self.run_id])
            check_kept_outputs(self.report, self.steps)
            first = self.journal.stored[self.run_id][0]
            assert self.report.attributes == first.attributes == {"begun": 0}
            if self.received:
                assert self.received[0].attributes == {"begun": 0}
            for result in self.report.results:
                if result.reason != NOT_IN_PIPELINE:
                    self.check_attempts(result)

    def check_calls(self):
        """A completed step is not re-run, unless its output is secret and needed."""
        completed = successes(self.stored)
        recalled, again = set(), set()
        if self.received and isinstance(self.received[0], RunResumed):
            recalled, again = set(self.received[0].recalled), set(self.received[0].outdated)
        # A clean-up step follows steps that run again, and a rerun repeats failed items that were
        # tolerated; and then so do their dependents.
        late = {it.name for it in self.steps if it.run_if != "success" or it.tolerated_failures}
        for name, needed in plan(self.steps).depends_on.items():
            if late.intersection(needed):
                late.add(name)
        assert again <= late or self.kind == "changing"
        secret = {step.name for step in self.steps if step.secret}
        assert recalled <= secret or self.kind == "changing"
        again |= with_chains(self.steps, recalled)
        lost = {key for key in self.world.lost if key[0] not in again}
        assert not lost or self.kind == "changing", "a checkpoint is lost"
        for key in self.world.calls:
            assert key not in completed or key[0] in again, f"{key} was called again"
        ours = {step.name for step in self.steps if not isinstance(step.action, ForwardOutputs)}
        starts = Counter(
            key_of(e) for e in self.received if isinstance(e, AttemptStarted) and e.step in ours
        )
        assert all(calls <= starts[key] for key, calls in self.world.calls.items())
        if self.report is not None and self.report.stop_reason is None:
            assert self.world.calls == starts  # else a stop can come between the two

    def check_notes(self):
        """What an attempt has said arrives once, in order, as far as it has ended."""
        heard = defaultdict(list)
        for note in self.received.notes:
            key = note.step, note.item, note.attempt
            if not isinstance(note, StepProgressed | StepCalled):
                heard[key].append(note.message if isinstance(note, StepLogged) else note.name)
        said = {
            (*key_of(e), e.attempt): self.world.said[*key_of(e), e.attempt]
            for e in self.received
            if isinstance(e, ENDS)
        }
        streamed, stored = defaultdict(list), self.journal.stored.get(self.run_id, ())
        segment = sum(isinstance(event, RunStarted | RunResumed) for event in stored)
        for note in self.journal.streamed[self.run_id]:
            if note.segment == segment:
                streamed[note.step, note.item, note.attempt] += json.loads(note.data)
        secret = {step.name for step in self.steps if step.secret}
        for key, all_said in said.items():
            if key[0] not in secret:
                assert heard[key] == [each for each in all_said for _ in range(2)], key
                assert streamed[key] == all_said, key
        assert not secret.intersection(step for step, *_ in streamed)

    def check_attempts(self, result):
        by_name = {step.name: step for step in self.steps}
        for item in result.items or ():
            self.check_attempts(item)
        # A mapped step that was skipped this time has the attempts of its former items.
        is_mapped = any(each.item is not None for each in result.history)
        if result.items is None and not result.origin and not is_mapped:
            assert len(result.history) == result.attempts
            series = latest_series(result.history)
            assert [each.number for each in series] == list(range(1, len(series) + 1))
            crashes = sum(isinstance(each.error, StepCrashedError) for each in series)
            step = by_name[result.step_name.partition("[")[0]]
            if result.status is not FAILED or not isinstance(result.error, StepCrashedError):
                assert len(series) - crashes <= step.max_retries

    def check_times(self):
        times = [e.at_ms for e in self.journal.stored[self.run_id][1:]]
        assert all(later > one - 1e-6 for one, later in pairwise(times))

    def check_stored_run(self):
        """The report of the stored run equals the report of the run."""
        stored = StoredRun(self.journal.stored[self.run_id])
        assert_equal(report_from(stored, decode), self.report)
        assert stored.status == self.received[-1].status

    def check_replay(self):
        """A fresh state that applies the events of this segment has the same report."""
        if len(without_cached(self.received)) < len(self.received):
            return  # a state knows the items for which a result is found, before it is
        planned = self.plan
        past = None
        if self.stored:
            stored = StoredRun(self.stored)
            event, past = resume(
                stored,
                planned,
                bindings=planned.bindings(self.pipeline.inputs.keys()),
                new_inputs=(),
                missing_steps=stored.carryover.missing_from(planned.index),
                fail_fast=self.pipeline.options["fail_fast"],
                wall_time=self.received[0].wall_time,
                process=self.received[0].process,
                decode=decode,
            )
            assert repr(replace(event, pipeline="p")) == repr(self.received[0])
            past = replace(past, inputs=self.report.inputs)
        state = RunState(planned, snapshot=past, **self.pipeline.options)
        for event in self.received:
            state.apply(event)
        assert_equal(state.report(), self.report, secret=True)
        assert (state.queue.take_ready(), state.readiness.take_unreachable()) == ([], [])
        assert state.status == self.received[-1].status


def check_preview(preview, events, report):
    """Check that a segment has reused what its preview says, and run nothing else."""
    events = without_cached(events)
    by_decision = {what: {s.step_name for s in getattr(preview, what)} for what in DECISIONS}
    reused = [event for event in events if isinstance(event, StepReused) and event.item is None]
    skipped = {event.step for event in reused if event.status is StepStatus.SKIPPED}
    assert {event.step for event in reused} - skipped <= by_decision["reused"]
    started = {event.step for event in events if isinstance(event, AttemptStarted | MapStarted)}
    assert started <= by_decision["runs"], preview
    if report is None:
        return  # it was stopped, maybe before it had begun
    assert list(report) == list(preview)
    if not events:
        assert preview.has_passed
        return
    assert {event.step for event in reused} - skipped == by_decision["reused"], preview
    assert skipped <= by_decision["skipped"]
    for name in by_decision["skipped"]:
        assert report[name].status in (StepStatus.SKIPPED, StepStatus.CANCELLED)
    items = Counter(e.step for e in events if isinstance(e, StepReused) and e.item is not None)
    for step in preview.runs:
        assert items[step.step_name] <= step.reused_items
        if report[step.step_name].status is SUCCESS:
            assert items[step.step_name] == step.reused_items, preview
            count = len(report[step.step_name].items or ()) + report[step.step_name].left_out
            assert step.items in (None, count)


def without_cached(events):
    """Return events without the reuse of equal calls, of which no preview can know."""
    first = 0
    if events and isinstance(events[0], RunStarted) and events[0].rerun_of:  # it begins with others
        begins = [isinstance(event, AttemptStarted | MapStarted) for event in events]
        first = begins.index(True) if True in begins else len(events)
    cached = {
        id(later)
        for one, later in pairwise(events[first:])
        if isinstance(one, ResultReused) and isinstance(later, StepReused)
        if key_of(one) == key_of(later)
    }
    return [event for event in events if id(event) not in cached]


class RerunExecution(Execution):
    """A rerun of the run that the journal has as "origin"."""

    async def run(self):
        orchestrator = self.orchestrator
        preview = await orchestrator.preview("origin", rerun=True)
        self.report = await orchestrator.with_options(
            observers=[self.received, self.world.observe]
        ).rerun("origin", RUN_ID)
        self.taken = [event for event in self.received if isinstance(event, ResultReused)]
        self.check()
        check_preview(preview, self.received, self.report)
        return self

    def check_calls(self):
        """What is taken over is not run again, unless its output is secret and needed."""
        reasons = self.received[0].rerun_reasons
        recalled = {name for name, why in reasons.items() if why == RECALLED}
        assert recalled <= {step.name for step in self.steps if step.secret}
        again = with_chains(self.steps, recalled)
        taken = {key_of(event) for event in self.taken}
        assert {key for key in self.world.calls if key[0] not in again}.isdisjoint(taken)

    def check_replay(self):
        assert_shows(RunView(self.received), self.report)


def successes(events):
    """Return the steps and items that have succeeded and are not outdated."""
    completed, dependencies = set(), {}
    for event in events:
        if isinstance(event, StepSucceeded | ResultReused):
            completed.add(key_of(event))
        elif isinstance(event, RunStarted):
            dependencies.update(event.dependencies)
        elif isinstance(event, RunResumed):
            outdated, before = set(event.outdated), None
            while before != len(outdated):
                before = len(outdated)
                outdated |= {n for n, needed in dependencies.items() if outdated & {*needed}}
            completed = {key for key in completed if key[0] not in outdated}
            dependencies.update(event.dependencies)
    return completed


def check_kept_outputs(report, steps):
    """Check that a report has no output of an item whose step keeps none."""
    slim = {step.name for step in steps if not step.keep_outputs}
    if not slim or report._history is None:
        return
    for event in report._history.events():
        if isinstance(event, StepSucceeded | ResultReused) and event.step in slim:
            assert event.output is None
    for (name, _), step in report._history.folded().carryover.settled().items():
        assert name not in slim or step.output is None, step


def check_history(report, events):
    """Check that a report has the attempts of the event log, in order, segment by segment."""
    expected, running, segments = {}, {}, []
    waiting = set()  # those of them that no worker of an engine has begun with

    def end(key, at_ms, error, cancelled=False):
        attempt = running.pop(key)
        attempt[4:] = at_ms, error, cancelled
        if key in waiting and (cancelled or error != "NoneType"):
            attempt[3] = at_ms  # it has only waited

    for event in events:
        if isinstance(event, RunStarted | RunResumed):
            at_ms = getattr(event, "at_ms", 0.0)
            segments.append((at_ms, event.wall_time))
            for key in [*running]:
                end(key, at_ms, "StepCrashedError")
        if isinstance(event, AttemptStarted):
            attempt = [len(segments), event.item, event.attempt, event.at_ms]
            running[key_of(event)] = attempt
            expected.setdefault(key_of(event), []).append(attempt)
            (waiting.add if event.engine else waiting.discard)(key_of(event))
        elif isinstance(event, AttemptBegan):
            running[key_of(event)][3] = event.at_ms
            waiting.discard(key_of(event))
        elif isinstance(event, ENDS) and key_of(event) in running:
            error = type(getattr(event, "error", None)).__name__
            cancelled = isinstance(event, StepCancelled) and error != "StepTimeoutError"
            end(key_of(event), event.at_ms, error, cancelled)
    found = {}
    for name, result in report.items():
        for each in result.history:
            found.setdefault((name, each.item), []).append(told(each, each.item))
        for item in result.items or ():
            number = int(item.step_name.removesuffix("]").rpartition("[")[2])
            assert (name, number) not in found
            if item.history:
                found[name, number] = [told(each, number) for each in item.history]
    attempts = {
        key: tries
        for key, tries in expected.items()
        if key[0] in report and (key in found or not report[key[0]].left_out)
    }
    assert found.keys() == attempts.keys()
    for key, tries in attempts.items():
        for one, other in zip(found[key], tries, strict=True):
            assert one == [*other[:4], pytest.approx(other[4], abs=1e-6), *other[5:]], key
    assert [(each.at_ms, each.wall_time) for each in report.segments] == segments
    ends = [each.at_ms for each in report.segments[1:]] + [report.total_duration_ms]
    assert [each.ended_ms for each in report.segments] == ends


def told(attempt, item):
    error = type(attempt.error).__name__
    ended_ms = attempt.started_ms + attempt.duration_ms
    begin = attempt.segment, item, attempt.number, attempt.started_ms
    return [*begin, ended_ms, error, attempt.cancelled]


def latest_series(history):
    """Return the attempts since the step last began anew."""
    begins = [at for at, each in enumerate(history) if each.number == 1]
    return history[begins[-1] :] if begins else history


def assert_equal(report, expected, *, secret=False):
    """Check that two reports are equal; `secret` includes the outputs of secret steps."""
    for name in "run_id", "wall_time", "total_duration_ms", "stop_reason", "segments":
        assert getattr(report, name) == getattr(expected, name), name
    assert list(report) == list(expected)
    for one, other in zip(report.results, expected.results, strict=True):
        assert_same_result(one, other, secret)


def assert_same_result(one, other, secret):
    for each in fields(StepResult):
        ours, theirs = getattr(one, each.name), getattr(other, each.name)
        if each.name == "items":
            assert (ours is None) == (theirs is None), (one, other)
            assert len(ours or ()) == len(theirs or ()), (one, other)
            for pair in zip(ours or (), theirs or (), strict=True):
                assert_same_result(*pair, secret)
        elif each.name != "output" or secret or not other.secret:
            assert text_of(ours) == text_of(theirs), (each.name, one, other)


def assert_shows(view, report):
    assert (view.run_id, view.status or "RUNNING") == (report.run_id, report.status)
    assert view.stop_reason == report.stop_reason
    assert view.steps.keys() == report.keys()
    for name, result in report.items():
        step = view.steps[name]
        assert_step_shows(step, result, report.total_duration_ms)
        items = {
            number: item
            for number, item in (step.items or {}).items()
            if step.keeps_outputs or item.status is not SUCCESS or item.error is not None
        }
        assert len(items) == len(result.items or ())
        for number, item in zip(sorted(items), result.items or (), strict=True):
            shown = items[number]
            if not step.keeps_outputs:  # what the fallback of an item has returned is stored
                assert item.output is None
                shown = replace(shown, output=None)
            assert_step_shows(shown, item, report.total_duration_ms)
    assert +view.counts == Counter(result.status for result in report.results)


def assert_step_shows(step, result, now_ms):
    assert step.status is result.status
    assert step.by_condition == result.by_condition
    assert (step.reason, text_of(step.error)) == (result.reason, text_of(result.error))
    assert step.started_ms == result.started_ms
    assert step.attempt_count == result.attempts
    assert_output_shows(step, result)
    if "[" not in step.name:
        assert (step.reused, step.rerun_reason) == (result.reused, result.rerun_reason)
    assert (step.duration_ms(now_ms) or 0.0) == pytest.approx(result.duration_ms, abs=1e-6)
    ended = [each for each in step.attempts if each.ended_ms is not None]
    own = [each for each in result.history if each.item is None]
    for attempt, stored in zip(ended, own, strict=True):
        assert (attempt.segment, attempt.number) == (stored.segment, stored.number)
        assert attempt.started_ms == stored.started_ms
        assert attempt.ended_ms - attempt.started_ms == pytest.approx(stored.duration_ms, abs=1e-6)
        assert text_of(attempt.error) == text_of(stored.error)
        assert attempt.end == "cancelled" or (attempt.error is None) == (attempt.end == "succeeded")


def assert_output_shows(step, result):
    """Check that a view shows the output unless it is secret."""
    if result.status is SUCCESS:
        assert result.secret or not step.secret
        output = visible_output(step)
        if result.secret:
            outputs = output if isinstance(output, list) else [output]
            assert all(each in (REDACTED, REDACTED_OUTPUT, None) for each in outputs)
        elif result.items is None:
            is_encoded = isinstance(output, Payload) and output != REDACTED
            assert (decode(step.name, output) if is_encoded else output) == result.output


def text_of(value):
    return repr(value)  # errors are equal only to themselves


def known(report, secret):
    """Return what two runs of one pipeline must have in common."""
    return {
        name: (result.status, result.by_condition, None if name in secret else result.output)
        for name, result in report.items()
        if result.reason != NOT_IN_PIPELINE
    }


def has_crashed(report):
    """Return whether a step failed because its process died too often."""
    errors = [each.error for result in report.results for each in (result, *(result.items or ()))]
    return any(isinstance(error, StepCrashedError) for error in errors)


def assert_same_end(report, whole, pipeline):
    if not pipeline.options["fail_fast"] or whole.all_passed:
        both = *report.results, *whole.results
        # The outputs of items that ended while their step was secret are lost.
        secret = {
            result.step_name
            for result in both
            if any(each.secret for each in (result, *(result.items or ())))
        }
        assert known(report, secret) == known(whole, secret), f"{report}\n{whole}"
    else:
        # Timing decides which steps ended before the run stopped.
        assert report.failed
        assert not report.all_passed


def may_differ(execution):
    """Return whether an earlier segment can have changed the end of the run.

    A clean-up step can have seen that a secret could not be computed again. A step can have lost
    its other attempts to a deadline that the run no longer has.
    """
    events, shape = execution.journal.stored[RUN_ID], plan(execution.steps).depends_on
    recalled = {
        name for event in events if isinstance(event, RunResumed) for name in event.recalled
    }
    cleanups = [step.name for step in execution.steps if step.run_if != "success"]
    return any(recalled.intersection(shape[name]) for name in cleanups) or any(
        note.startswith("not retried: ")
        for event in events
        if isinstance(event, StepFailed | StepSucceeded)
        for note in getattr(event.error, "__notes__", ())
    )


def in_loop(pipeline, main, seed):
    loop = TurnCountingLoop(None, eager=seed % 3 == 0)
    try:
        with in_turns(), asyncio.Runner(loop_factory=lambda: loop) as runner:
            result = runner.run(main)
        assert loop.complaints == []
    except BaseException as error:
        error.add_note(f"seed {seed}:\n{pipeline.describe()}")
        raise
    return result


async def die_everywhere(pipeline, seed):
    chance = random.Random(seed)
    journal = NotingJournal(latency_s=pipeline.latency_s)
    whole = (await Execution(pipeline, journal).run()).report
    count = len(journal.stored[RUN_ID])
    executions = 1
    twice = chance.randrange(count)
    for stored in range(count + 1):
        left = journal.died_after(stored)
        if stored:
            so_far = left.stored[RUN_ID]
            assert_shows(RunView(so_far), report_from(StoredRun(so_far), decode))
        again = await Execution(pipeline, left).run()
        executions += 1
        assert_same_end(again.report, whole, pipeline)
        if stored == twice:
            for more in range(stored, len(left.stored[RUN_ID])):
                left_again = left.died_after(more)
                third = await Execution(pipeline, left_again).run()
                executions += 1
                assert_same_end(third.report, whole, pipeline)
    return executions


async def fail_everywhere(pipeline, seed):
    """Let the journal fail at each of its writes, then resume the run."""
    whole_journal = NotingJournal(latency_s=pipeline.latency_s)
    whole = (await Execution(pipeline, whole_journal).run()).report
    count = len(whole_journal.stored[RUN_ID])
    executions = 1
    for fail_at in range(1, count + 1):
        journal = NotingJournal(latency_s=pipeline.latency_s, fail_at=fail_at)
        broken = await Execution(pipeline, journal).run()
        assert isinstance(broken.error, JournalError)
        assert isinstance(broken.received[-1], RunFinished)
        assert len(journal.stored.get(RUN_ID, ())) == fail_at - 1
        stored = len(journal.stored.get(RUN_ID, ()))
        again = await Execution(pipeline, journal).run()
        assert_same_end(again.report, whole, pipeline)
        executions += 2
        if stored and seed % 4 == fail_at % 4:
            # And once more, in the resumed run.
            left = whole_journal.died_after(stored)
            left.fail_at = random.Random(fail_at).randint(1, 8)
            resumed = await Execution(pipeline, left).run()
            if resumed.error is not None:
                resumed = await Execution(pipeline, left).run()
            assert_same_end(resumed.report, whole, pipeline)
            executions += 2
    return executions


async def cancel_caller(pipeline, seed):
    """Cancel the caller in any turn, also of a resumed run, then start the run again."""
    return await cancel_somewhere(pipeline, seed, through_journal=False)


async def cancel_through_journal(pipeline, seed):
    """Cancel the run through its journal in any turn, then start it again."""
    return await cancel_somewhere(pipeline, seed, through_journal=True)


async def cancel_somewhere(pipeline, seed, *, through_journal):
    chance = random.Random(seed)
    first = NotingJournal(latency_s=pipeline.latency_s)
    whole = await Execution(pipeline, first).run()
    executions = 1
    for _ in range(8):
        journal = NotingJournal(latency_s=pipeline.latency_s)
        for _ in range(6):
            turn = chance.randrange(whole.turns + 1)
            execution = Execution(pipeline, journal)
            await execution.run(turn, through_journal=through_journal)
            executions += 1
            if execution.report is not None:
                break
            events = journal.stored.get(RUN_ID)
            if events:
                report_from(StoredRun(events), decode)
        else:
            execution = await Execution(pipeline, journal).run()
            executions += 1
        assert_same_end(execution.report, whole.report, pipeline)
    return executions


async def change_often(pipeline, seed):
    """Resume the run repeatedly, each time as another pipeline, and interrupt it."""
    chance = random.Random(seed)
    executions = 0
    for _ in range(6):
        journal = NotingJournal(latency_s=pipeline.latency_s)
        current = pipeline
        for _ in range(4):
            turn = chance.choice([None, None, chance.randrange(40)])
            await Execution(current, journal, "changing").run(turn)
            executions += 1
            count = len(journal.stored.get(RUN_ID, ()))
            if count and chance.random() < 0.6:
                journal = journal.died_after(chance.randint(1, count))
            if count and StoredRun(journal.stored[RUN_ID]).status == "PASSED":
                break
            current = current.changed()
            pipeline.latest = current
        current.options.update(fail_fast=False, deadline_ms=None)
        for spec in current.specs:
            spec.options.pop("max_crashes", None)
        last = await Execution(current, journal, "changing").run()
        fresh = NotingJournal(latency_s=pipeline.latency_s)
        whole = await Execution(current, fresh).run()
        executions += 2
        if not (has_crashed(last.report) or may_differ(last)):
            assert_same_end(last.report, whole.report, current)
    return executions


async def rerun_everywhere(pipeline, seed):
    """Rerun the run wherever it has come to, and resume each rerun whose process dies."""
    chance = random.Random(seed)
    journal = NotingJournal(latency_s=pipeline.latency_s)
    whole = (await Execution(pipeline, journal).run()).report
    events = journal.stored[RUN_ID]
    for stored in range(1, len(events) + 1):
        left = NotingJournal(latency_s=pipeline.latency_s)
        left.stored["origin"] = events[:stored]
        rerun = await RerunExecution(pipeline, left).run()
        assert_same_end(rerun.report, whole, pipeline)
        assert left.stored["origin"] == events[:stored]
        check_nothing_is_missing(rerun, events[:stored])
        died = left.died_after(chance.randint(1 + len(rerun.taken), len(left.stored[RUN_ID])))
        again = await Execution(pipeline, died).run()
        assert_same_end(again.report, whole, pipeline)
    return 2 * len(events)


def check_nothing_is_missing(rerun, events):
    """Check that a rerun has taken over all that had succeeded and holds."""
    late = {step.name for step in rerun.steps if step.run_if != "success"}
    for name, needed in plan(rerun.steps).depends_on.items():
        if late.intersection(needed):
            late.add(name)
    again = with_chains(rerun.steps, {step.name for step in rerun.steps if step.secret})
    done = successes(events)
    failed = {e.step for e in events if isinstance(e, StepFailed) and key_of(e) not in done}
    shape, by_item = plan(rerun.steps), set()
    for name, needed in shape.depends_on.items():
        step = shape.steps[shape.index[name]]
        flows, runs = shape.index[name] in shape.flows, (late | by_item).intersection(needed)
        if runs and not (flows and runs == by_item.intersection([step.map_over])):
            late.add(name)
        elif runs or (name in failed and step.map_over is not None):
            by_item.add(name)
    for name, item in done - {key_of(event) for event in rerun.taken}:
        is_item_again = item is not None and name in again
        assert name in late or is_item_again or (item is None and name in by_item), (name, item)


class OnlyPreviewed(Execution):
    """A segment of which only the preview is checked."""

    def check(self):
        pass


async def change_and_continue(pipeline, seed):
    """Interrupt the run, change its pipeline and resume it."""
    chance = random.Random(seed)
    journal = NotingJournal(latency_s=pipeline.latency_s)
    turn = chance.choice([None, chance.randrange(40)])
    first = await OnlyPreviewed(pipeline, journal).run(turn)
    count = len(journal.stored.get(RUN_ID, ()))
    if count and (first.report is None or chance.random() < 0.7):
        journal = journal.died_after(chance.randint(1, count))
    await OnlyPreviewed(pipeline.changed(), journal).run()


def with_chains(steps, names):
    """Return these steps, and those that are mapped over them, directly or along a chain."""
    found = {*names}
    for name in topological_sort(steps):
        step = next(step for step in steps if step.name == name)
        if step.map_over in found:
            found.add(name)
    return found


async def share_everywhere(pipeline, seed):
    """Run it while another run makes equal calls, and let the journal fail one of them anywhere."""
    first, other = "r", "other"
    journal = NotingJournal(latency_s=pipeline.latency_s)
    whole = Execution(pipeline, journal)
    await whole.run_beside([Execution(pipeline, journal, run_id=other)])
    count, executions = sum(map(len, journal.stored.values())), 2
    step = 1 + count // 40
    for fail_at in range(1 + seed % step, count + 1, step):
        journal = NotingJournal(latency_s=pipeline.latency_s, fail_at=fail_at)
        both = [Execution(pipeline, journal, run_id=each) for each in (first, other)]
        await both[0].run_beside(both[1:])
        assert sum(isinstance(each.error, JournalError) for each in both) <= 1
        for each in both:
            if each.report is None:  # it has failed, and is resumed with what both have stored
                again = Execution(pipeline, journal, run_id=each.run_id)
                await again.run()
                executions += 1
                each.report = again.report
            assert_same_end(each.report, whole.report, pipeline)
        executions += 2
    return executions


PROPERTIES = {
    "dies": die_everywhere,
    "shares its calls with a run that fails": share_everywhere,
    "is rerun": rerun_everywhere,
    "its journal fails": fail_everywhere,
    "its caller is cancelled": cancel_caller,
    "is cancelled through its journal": cancel_through_journal,
    "its pipeline is changed": change_often,
}


@given(st.integers(0, 2**32))
def test_a_resumption_does_what_its_preview_says_whatever_has_changed(seed):
    pipeline = RandomPipeline(seed, rich=True)

    in_loop(pipeline, change_and_continue(pipeline, seed), seed)


ALL_REUSED = 2005
"""The seed of a pipeline whose run has nothing to do if another one makes equal calls."""
CALLED_AS_BEFORE = 307
"""The seed of one whose items make calls in a segment that dies, and made others before."""
EQUAL_CALLS = 147
"""The seed of a pipeline whose items wait for equal ones."""
MORE_SEEDS = [pytest.param(seed, marks=pytest.mark.exhaustive) for seed in range(2, 10)]


@pytest.mark.parametrize("seed", [*range(2), *MORE_SEEDS])
@pytest.mark.parametrize("what", PROPERTIES)
def test_a_run_ends_as_if_nothing_had_happened_whenever_it(what, seed):
    pipeline = RandomPipeline(seed, rich=True)

    assert in_loop(pipeline, PROPERTIES[what](pipeline, seed), seed) > 1


@pytest.mark.parametrize(
    ("what", "seed"),
    [
        ("shares its calls with a run that fails", ALL_REUSED),
        ("its pipeline is changed", CALLED_AS_BEFORE),
    ],
)
def test_a_run_with_cache_ms_ends_so_too_whenever_it(what, seed):
    pipeline = RandomPipeline(seed, rich=True)

    assert in_loop(pipeline, PROPERTIES[what](pipeline, seed), seed) > 1


@pytest.mark.parametrize("what", [each for each in PROPERTIES if "changed" not in each])
def test_a_run_whose_items_wait_for_equal_ones_ends_so_too_whenever_it(what):
    pipeline = RandomPipeline(EQUAL_CALLS, rich=True)

    assert in_loop(pipeline, PROPERTIES[what](pipeline, EQUAL_CALLS), EQUAL_CALLS) > 1
