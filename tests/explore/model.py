"""Judges what a run has done by the table of semantics, from what its actions did and saw.

It shares no code with the driver. An action notes when it received a cancellation, and how it
ended. The times of the events tell which limits had passed, and since when the run was stopping.
From that follows what each attempt may have come to. Where two causes tie, either is right.

Times are in milliseconds since the start of the run.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
import sys
from dataclasses import replace
from fractions import Fraction
from functools import cached_property, partial
from itertools import pairwise
from typing import Any, NamedTuple

from asyncflow import (
    JournalError,
    ResourceError,
    RunCancelledError,
    SharedIteratorError,
    StepCancelledError,
    StepResult,
    StepStatus,
    StepTimeoutError,
)
from asyncflow._core.errors import ResultRefusedError
from asyncflow._core.history.replay import StoredRun
from asyncflow._core.history.stored_report import report_from
from asyncflow.events import (
    AttemptFailed,
    AttemptStarted,
    MapStarted,
    PoolPaused,
    ResultReused,
    RunFinished,
    RunInterrupted,
    RunStarted,
    RunTimedOut,
    StepAttached,
    StepCalled,
    StepCancelled,
    StepFailed,
    StepLogged,
    StepProgressed,
    StepReused,
    StepSkipped,
    StepStreamed,
    StepSucceeded,
    ThreadAbandoned,
)
from tests.explore.cases import GIVEN, STREAM_WAITS, TICK_MS, Case, Fault, Step
from tests.explore.journals import stored_text
from tests.explore.world import Call, Instead, World, key_of

__all__ = ["violations"]

SUCCESS, FAILED = StepStatus.SUCCESS, StepStatus.FAILED
SKIPPED, CANCELLED = StepStatus.SKIPPED, StepStatus.CANCELLED
EPSILON = 1e-3
_ATTEMPT_HAS_A_TASK = sys.version_info < (3, 12)
"""A task of its own, which learns a turn or two later that it was asked to stop."""
_TURNS_TO_STOP = 6
"""In how many turns of the loop what was asked to stop must know it."""


class _Wrong(Exception):
    pass


class _Stop(NamedTuple):
    """When the run began to stop."""

    at_ms: float
    turn: int
    place: int
    """In the log."""


_LATE = r"streamed values? (was|were) left out: the attempt had ended"


class _Attempt:
    __slots__ = (
        *("abandoned", "attached", "call", "end", "end_place", "end_turn", "logged", "place"),
        *("late", "progress", "start", "turn"),
    )

    def __init__(self, start: AttemptStarted, turn: int, place: int) -> None:
        self.start, self.turn, self.place = start, turn, place
        self.end: Any = None
        self.end_turn = self.end_place = -1
        self.call: Call | None = None
        self.abandoned: ThreadAbandoned | None = None
        self.attached: list[str] = []
        self.logged: list[str] = []
        self.late = 0
        """How many values were left out, because they were streamed after its end."""
        self.progress = 0.0

    @property
    def error(self) -> BaseException | None:
        """What the action raised, as far as its attempt knew."""
        assert self.call is not None
        return asyncio.CancelledError() if self.abandoned else self.call.error


class _Node:
    """A step, or an item of a mapped one."""

    __slots__ = (
        *("attempts", "end", "end_place", "end_turn", "item", "map", "map_place", "step"),
        "reused",
    )

    def __init__(self, step: int, item: int | None) -> None:
        self.step, self.item = step, item
        self.attempts: list[_Attempt] = []
        self.end: Any = None
        self.end_turn = self.end_place = -1
        self.map: MapStarted | None = None
        self.map_place = -1
        self.reused: ResultReused | None = None
        """The result of an equal call that it has reused."""

    @property
    def started_ms(self) -> float | None:
        if self.map is not None:
            return self.map.at_ms
        return self.attempts[0].start.at_ms if self.attempts else None


def violations(case: Case, world: World, *, thorough: bool) -> list[str]:
    """Return which promises a simulated run has broken.

    Args:
        case: What was run.
        world: What happened.
        thorough: Whether to compare the report with the replay of the events too.
    """
    found = list(world.violations)
    if world.loop.hangs:
        return found
    pools = [(pool.in_use, pool.waiting) for pool in world.pipeline.pools]
    if any(map(any, pools)):
        found.append(f"slots and waits of pools are left: {pools}")
    if world.live:
        found.append(f"these actions have not ended: {world.live}")
    if world.streams:
        found.append("a stream of items was not closed")
    if found:
        return found
    runs = [_Run(case, world, run) for run in range(case.flow.copies)]
    for check in (_Run.read, partial(_Run.check, runs=runs, thorough=thorough)):
        for run in runs:
            try:
                check(run)
            except _Wrong as wrong:
                found.append(f"run {run.run}: {wrong}")
        if found:
            break
    return found


def _require(holds: object, *otherwise: object) -> None:
    if not holds:
        raise _Wrong(" ".join(map(str, otherwise)))


class _Run:
    def __init__(self, case: Case, world: World, run: int) -> None:
        self.case, self.flow, self.world, self.run = case, case.flow, world, run
        self.specs = case.flow.steps
        self.index = {spec.name: number for number, spec in enumerate(self.specs)}
        self.log = [
            (place, event, turn, now)
            for place, (which, event, turn, now) in enumerate(world.log)
            if which == run
        ]
        self.tiers, self.dependencies = world.pipeline.tiers, world.pipeline.dependencies
        self.report = world.reports[run]
        self.raised = world.raised[run]
        self.steps = [_Node(index, None) for index in range(len(self.specs))]
        self.items: list[dict[int, _Node]] = [{} for _ in self.specs]
        self.nodes = list(self.steps)
        self.failed_items = [0] * len(self.specs)
        self.skipped_items = [0] * len(self.specs)
        self.fail_stop: _Stop | None = None
        """When the run began to stop for a failure or its deadline."""
        self.interrupted: _Stop | None = None
        self.timed_out: RunTimedOut | None = None
        self.is_limited = self.flow.max_concurrency is not None or any(
            spec.pool is not None or spec.thread for spec in self.specs
        )

    def read(self) -> None:
        """Find out what has happened, and check what can be seen without other runs."""
        self.check_outcome()
        if not self.log:
            _require(self.report is None, "there is a report and no event")
            return
        self.started_s = self.log[0][3]
        self.read_events()
        self.match_calls()

    def check(self, *, runs: list[_Run], thorough: bool) -> None:
        if not self.log:
            return
        self.all_runs = runs
        self.check_journal()
        self.check_checkpoints()
        self.check_streams()
        for node in self.nodes:
            if self.specs[node.step].maps is not None and node.item is None:
                self.check_map(node)
            else:
                self.check_attempts(node)
            if self.specs[node.step].caches:
                self.check_equal_calls(node)
        for node in self.steps:
            self.check_step(node)
        self.check_deadline()
        if self.is_limited:
            self.check_queue()
            self.check_line()
        if self.report is not None:
            self.check_report()
            if thorough:
                self.check_replay()

    # The run.

    def check_outcome(self) -> None:
        """Check what the caller of the run got."""
        world, run = self.world, self.run
        accepted = world.accepted[run]
        _require(
            world.counts[run] == accepted or (run == 0 and self.case.fault.scope is not None),
            *("cancelling() is", world.counts[run], "after", accepted, "cancellations"),
        )
        raised = self.raised
        exits = [each for each in world.exits if raised is each]
        if raised is None:
            _require(not accepted, "the cancellation of the caller is lost")
            # The scopes cancel a turn later, and not a task that is about to go on.
            scope = self.case.fault.scope
            is_late = scope is not None and self.ends_at(scope[1])
            is_lost = run == 0 and world.scope_cancelled and not is_late
            _require(not is_lost, "the cancellation of the scope is lost")
            _require(self.report is not None, "there is neither a report nor an error")
            _require(not self.has_failed_journal, "the failure of the journal is lost")
            _require(not world.resource_failed[run], "the failure of the resource is lost")
        elif isinstance(raised, asyncio.CancelledError):
            _require(accepted or world.scope_cancelled, "the caller was cancelled by nobody")
            if accepted and not world.scope_cancelled:
                _require(raised.args == ("from outside",), "another cancellation was raised")
        elif isinstance(raised, ResourceError):
            can_be = world.resource_failed[run] or (self.flow.resource and world.strangers)
            _require(can_be, f"the run raised {raised!r}")
            if world.resource_failed[run]:
                _require(isinstance(raised.__cause__, ConnectionError), f"raised {raised!r}")
        elif isinstance(raised, JournalError):
            _require(self.has_failed_journal, f"the run raised {raised!r}")
        elif isinstance(raised, RunCancelledError):
            _require(run == 0 and world.requests, f"the run raised {raised!r}")
        else:
            _require(exits, f"the run raised {raised!r}")
        if world.resources[run]:
            _require(world.resources[run] == "is closed", "the resource", world.resources[run])

    @property
    def has_failed_journal(self) -> bool:
        """Whether its journal has failed."""
        journal, fails_at = self.world.journal, self.case.fault.fails_at
        return (
            self.run == 0
            and journal is not None
            and fails_at is not None
            and journal.added >= fails_at
        )

    def ends_at(self, ticks: int) -> bool:
        ended_ms = (self.log[-1][3] - self.log[0][3]) * 1000
        return bool(self.world.blocks) or abs(ended_ms - ticks * TICK_MS) < EPSILON

    def read_events(self) -> None:
        """Sort the events by node, and check that each may follow the one before."""
        log, last_ms = self.log, 0.0
        _require(isinstance(log[0][1], RunStarted), "the first event is", log[0])
        _require(isinstance(log[-1][1], RunFinished), "the last event is", log[-1])
        self.finished: RunFinished = log[-1][1]  # type: ignore[assignment]
        fail_fast = self.flow.fail_fast
        for place, event, turn, now in log[1:]:
            kind = type(event)
            if kind in (StepAttached, StepLogged, StepProgressed):
                self.read_note(event)
                continue
            if kind is StepCalled:
                _require(self.specs[self.node(event).step].pays, "it makes no calls:", event)
                continue
            at_ms = event.at_ms  # type: ignore[union-attr]
            _require(abs((now - self.started_s) * 1000 - at_ms) < EPSILON, "a false time:", event)
            _require(at_ms >= last_ms - EPSILON, "before the event before it:", event)
            last_ms = at_ms
            if kind is AttemptStarted:
                node = self.node(event)
                _require(node.end is None, "after the end:", event)
                before = node.attempts[-1] if node.attempts else None
                number = 1 if before is None else before.start.attempt + 1
                _require(event.attempt == number, "not attempt", number, ":", event)
                _require(before is None or type(before.end) is AttemptFailed, "overlaps:", event)
                _require(number <= self.specs[node.step].retries, "one too many:", event)
                node.attempts.append(_Attempt(event, turn, place))
            elif kind is MapStarted:
                node = self.node(event)
                _require(node.map is None and not node.end, "again:", event)
                node.map, node.map_place = event, place
            elif kind is RunInterrupted:
                _require(self.interrupted is None, "again:", event)
                self.interrupted = _Stop(at_ms, turn, place)
            elif kind is RunTimedOut:
                _require(self.timed_out is None, "again:", event)
                _require(self.fail_stop is None and self.interrupted is None, "too late:", event)
                self.timed_out = event
                self.fail_stop = _Stop(at_ms, turn, place)
            elif kind is PoolPaused:
                can_be = any(spec.named is not None for spec in self.specs)
                _require(can_be and event.until_ms > at_ms, "no pool can be paused:", event)
            elif kind is RunFinished:
                _require(place == log[-1][0], "an event follows the last one")
            elif kind is ThreadAbandoned:
                latest = self.node(event).attempts[-1]
                _require(latest.start.attempt == event.attempt, "of another attempt:", event)
                _require(latest.end is None and latest.abandoned is None, "too late:", event)
                latest.abandoned = event
            elif kind is ResultReused:
                node = self.node(event)
                _require(self.specs[node.step].caches, "it reuses nothing:", event)
                _require(node.end is None and not node.attempts, "too late:", event)
                _require(node.reused is None, "again:", event)
                node.reused = event
            elif kind is StepReused:
                self.read_reuse(event, turn, place)
            elif kind in (AttemptFailed, StepSucceeded, StepFailed, StepCancelled, StepSkipped):
                self.read_end(event, turn, place)
                stops = kind in (StepFailed, StepSkipped) and not self.may_tolerate(event)
                stops = stops and fail_fast
                if stops and self.fail_stop is None:
                    self.fail_stop = _Stop(at_ms, turn, place)
            else:
                raise _Wrong(f"an event that nothing here makes: {event}")

    def read_note(self, event: Any) -> None:
        """Check that what an attempt says comes while it runs, in order."""
        attempt = next(
            (one for one in self.node(event).attempts if one.start.attempt == event.attempt), None
        )
        _require(attempt is not None, "before the start of its attempt:", event)
        assert attempt is not None
        if type(event) is StepLogged and event.logger == "asyncflow":
            count, what = event.message.split(" ", 1)
            _require(re.fullmatch(_LATE, what), "it says of what is missing:", event)
            attempt.late += int(count)
            return
        _require(attempt.end is None or attempt.abandoned, "after the end of its attempt:", event)
        if type(event) is StepAttached:
            attempt.attached.append(event.name)
        elif type(event) is StepLogged:
            attempt.logged.append(event.message)
        else:
            _require(event.done >= attempt.progress, "an earlier progress:", event)
            attempt.progress = event.done

    def may_tolerate(self, event: Any) -> bool:
        """Whether the step of an item that has failed, or is skipped, may still succeed."""
        if event.item is None:
            return type(event) is StepSkipped
        step = self.index[event.step]
        lost = self.failed_items if type(event) is StepFailed else self.skipped_items
        lost[step] += 1
        begun, failed = self.steps[step].map, self.failed_items[step]
        assert begun is not None
        if begun.count is None and isinstance(self.specs[step].tolerated, float):
            return not failed or self.specs[step].tolerated > 0
        return self.tolerates(step, failed, (begun.count or 0) - self.skipped_items[step])

    def is_tolerated(self, node: _Node, failed: int, items: int) -> tuple[bool, bool]:
        """Return whether a step may have tolerated failures, and whether it must have."""
        assert node.map is not None
        spec = self.specs[node.step]
        is_share = isinstance(spec.tolerated, float)
        if is_share and node.map.count is None and self.stop_for(spec) is not None:
            return not failed or spec.tolerated > 0, not failed  # of how many is unknown
        count = items if node.map.count is None else node.map.count
        given = count - self.skipped_items[node.step]
        tolerated = self.tolerates(node.step, failed, given)
        return tolerated, tolerated

    def tolerates(self, step: int, failed: int, count: int) -> bool:
        tolerated = self.specs[step].tolerated
        most = tolerated if isinstance(tolerated, int) else Fraction(str(tolerated)) * count
        return failed <= most

    def flow_source(self, step: int) -> _Node | None:
        """Return the mapped step whose items a step may take before all of them have ended."""
        spec = self.specs[step]
        if spec.maps in (None, GIVEN) or spec.when or spec.run_if != "success":
            return None
        assert spec.maps is not None
        source = self.specs[spec.maps]
        return None if source.maps is None or source.is_cleanup else self.steps[spec.maps]

    def first_success(self, source: _Node) -> _Node | None:
        """Return the item of a mapped step that was the first to succeed."""
        items = self.items[source.step].values()
        succeeded = [item for item in items if type(item.end) is StepSucceeded]
        return min(succeeded, key=lambda item: item.end_place, default=None)

    def node(self, event: Any) -> _Node:
        step = self.index[event.step]
        if event.item is None:
            return self.steps[step]
        items = self.items[step]
        node = items.get(event.item)
        if node is None:
            _require(self.steps[step].map, "before the map began:", event)
            node = items[event.item] = _Node(step, event.item)
            self.nodes.append(node)
        return node

    def read_end(self, event: Any, turn: int, place: int) -> None:
        node = self.node(event)
        _require(node.end is None, "a second end:", event)
        latest = node.attempts[-1] if node.attempts else None
        if type(event) is not StepSkipped:
            number = 0 if latest is None else latest.start.attempt
            _require(event.attempt == number, "the latest attempt is", number, ":", event)
        if latest is not None and latest.end is None:
            latest.end, latest.end_turn, latest.end_place = event, turn, place
        else:
            is_idle = type(event) is StepCancelled or latest is None
            # Its deadline has expired while a thread of the attempt before was awaited.
            is_failure = type(event) in (StepFailed, StepSucceeded)  # or its fallback's value
            is_idle |= is_failure and latest is not None and bool(latest.abandoned)
            _require(is_idle, "no attempt was running:", event)
        if type(event) is not AttemptFailed:
            node.end, node.end_turn, node.end_place = event, turn, place
            for item in self.items[node.step].values() if node.item is None else ():
                _require(item.end is not None, "before the end of an item:", event)

    def read_reuse(self, event: StepReused, turn: int, place: int) -> None:
        node = self.node(event)
        reused = node.reused
        _require(reused is not None and node.end is None, "it has no result:", event)
        assert reused is not None
        both = (event.status, event.origin, event.at_ms)
        _require(both == (SUCCESS, reused.origin, reused.at_ms), event, "after", reused)
        before = [each for at, each, _, _ in self.log if at < place][-2:]
        if type(before[-1]) is RunInterrupted:  # an observer of the first event has raised
            before.pop()
        _require(before[-1] is reused, before[-1], "comes before", event)
        node.end = StepSucceeded(event.step, 0, event.at_ms, reused.output, event.item)
        node.end_turn, node.end_place = turn, place

    def match_calls(self) -> None:
        attempts = {
            (node.step, node.item, attempt.start.attempt): attempt
            for node in self.nodes
            for attempt in node.attempts
        }
        for call in self.world.calls:
            if call.run == self.run:
                attempt = attempts.get((call.step, call.item, call.attempt))
                _require(attempt is not None, "no event tells that attempt", call.key)
                assert attempt is not None
                _require(attempt.call is None, "called twice:", attempt.start)
                _require(call.began > attempt.place, "called before its event:", attempt.start)
                attempt.call = call
        for attempt in attempts.values():
            _require(attempt.end is not None, "no event tells its end:", attempt.start)
            if attempt.call is None:
                self.check_uncalled(attempt)
                continue
            _require(
                attempt.call.ended <= attempt.end_place or attempt.abandoned,
                *("its end was told early:", attempt.end),
            )
            if not attempt.abandoned:
                said = attempt.call.said
                _require(attempt.attached == said, "it said", said, "not", attempt.attached)
                _require(attempt.logged == said, "it logged", said, "not", attempt.logged)
                _require(attempt.progress == len(said), "the last progress is lost:", attempt.start)

    def check_uncalled(self, attempt: _Attempt) -> None:
        """Check that an attempt that called nothing was cancelled before its thread began."""
        start, end = attempt.start, attempt.end
        spec = self.specs[self.index[start.step]]
        may_be = spec.thread or self.flow.durable  # nor before its start was stored
        _require(may_be and self.is_now(end.at_ms, start.at_ms), "never called:", start)
        stop = self.stop_for(spec)
        was_stopped = stop is not None and stop.place < attempt.end_place
        was_stopped = was_stopped or bool(self.world.strangers) or bool(self.world.blocks)
        is_value = type(end) is StepSucceeded and end.error is None  # else its fallback's
        _require(was_stopped and not is_value, "cancelled by nobody:", end)

    # What is stored.

    def check_journal(self) -> None:
        """Check that the journal has all events of the run; if it has failed, those before that."""
        journal = self.world.journal
        if journal is None:
            return
        notes = StepAttached, StepCalled, StepLogged, StepProgressed
        told = [_identity(event) for _, event, _, _ in self.log if type(event) not in notes]
        stored = [_identity(event) for event in journal.events_of(self.run)]
        if self.has_failed_journal:
            fails_at = self.case.fault.fails_at
            assert fails_at is not None
            _require(len(stored) == fails_at - 1, "stored after the failure:", stored)
        else:
            _require(len(told) == len(stored), "not stored:", told[len(stored) :])
        _require(told[: len(stored)] == stored, "other events than", told, "are stored:", stored)
        if not self.has_failed_journal:
            said: Any = [event for _, event, _, _ in self.log if type(event) in notes]
            kept: Any = [
                note
                for run, note in journal.notes
                if run == self.run and not isinstance(note, StepStreamed)
            ]
            kept, said = _as_stored(kept), _as_stored(said)
            _require(said == kept, "other notes than", said, "are stored:", kept)

    def check_checkpoints(self) -> None:
        """Check that each attempt has found the latest checkpoint of those before it."""
        journal = self.world.journal
        stored = {} if journal is None else journal.saved_of(self.run)
        for node in self.nodes:
            latest: Any = None
            name = self.specs[node.step].name
            for attempt in node.attempts:
                call = attempt.call
                if call is None:
                    continue
                found = call.found
                _require(found == latest, attempt.start, "finds", found, "and not", latest)
                if call.saved:
                    latest = call.saved[-1][1]
            left = stored.pop((name, node.item), None)
            if type(node.end) is StepSucceeded:
                is_right = left is None or self.has_failed_journal
                _require(is_right, "a checkpoint outlives the success:", node.end, left)
            elif journal is not None and not self.has_failed_journal and latest is not None:
                last = [each for each in node.attempts if each.call and each.call.saved][-1]
                may_be = {latest, *(value for _, value in last.call.saved)}  # type: ignore[union-attr]
                is_right = left in may_be if last.abandoned else left == latest
                if node.item is not None and type(self.steps[node.step].end) is StepSucceeded:
                    is_right = left is None  # its failure was tolerated
                _require(is_right, "the checkpoint", latest, "is lost:", node.end, left)
        _require(not stored or self.has_failed_journal, "checkpoints of no step:", stored)

    def check_streams(self) -> None:
        """Check that readers get what each attempt has streamed until its end, and no more.

        No call outlives the success of its step either.
        """
        journal = self.world.journal
        if journal is None or self.has_failed_journal:
            return
        _require(not journal.broken, journal.broken)
        stored: dict[Any, list[Any]] = {}
        for run, note in journal.notes:
            if run == self.run and isinstance(note, StepStreamed):
                values = json.loads(note.data)
                _require(note.count == len(values) and note.segment == 1, "damaged:", note)
                stored.setdefault((note.step, note.item, note.attempt), []).extend(values)
        called = journal.called.get(str(self.run), {})
        for node in self.nodes:
            if type(node.end) is StepSucceeded:
                left = called.get((self.specs[node.step].name, node.item))
                _require(not left, "calls outlive the success:", node.end, left)
            for attempt in node.attempts:
                streamed = [] if attempt.call is None else attempt.call.streamed
                due = [value for place, value in streamed if place <= attempt.end_place]
                key = self.specs[node.step].name, node.item, attempt.start.attempt
                found = stored.pop(key, [])
                _require(found == due, "streamed", due, "and stored", found, attempt.start)
                late = len(streamed) - len(due)
                _require(attempt.late <= late, "late:", late, "and told:", attempt.late)
        _require(not stored, "streamed by no attempt:", stored)

    # Equal calls.

    def arguments_of(self, node: _Node) -> str:
        """Return the arguments of a node as the journal stores them, which tells equal ones."""
        spec, given = self.specs[node.step], {}
        if spec.maps == GIVEN:
            of_input = self.world.given[self.run]
            given["given"] = of_input if node.item is None else of_input[node.item]
        for need in spec.needs:
            end, name = self.steps[need].end, self.specs[need].name
            given[name] = end.output if type(end) is StepSucceeded else None
            if node.item is not None and need == spec.maps:
                is_chain = self.specs[need].maps is not None
                given[name] = (
                    self.items[need][node.item].end.output if is_chain else given[name][node.item]
                )
        return repr([(name, stored_text(value)) for name, value in sorted(given.items())])

    @cached_property
    def cached_nodes(self) -> list[tuple[_Node, str]]:
        """The nodes that may have reused a result or made a call, each with its arguments."""
        return [
            (node, self.arguments_of(node))
            for node in self.nodes
            if self.specs[node.step].caches and (node.reused or node.attempts)
        ]

    def equal_to(self, node: _Node) -> list[tuple[_Run, _Node]]:
        """Return the other nodes of all runs whose calls are equal to that of a node."""
        own = self.arguments_of(node)
        return [
            (run, other)
            for run in self.all_runs
            if run.log
            for other, arguments in run.cached_nodes
            if other.step == node.step and arguments == own and other is not node
        ]

    def check_equal_calls(self, node: _Node) -> None:
        """Check that what a node has reused is there, and that it has not called what is there."""
        if node.reused is None and not node.attempts:
            return
        spec, others = self.specs[node.step], self.equal_to(node)
        begun = node.end_place if node.reused else node.attempts[0].place
        begun_s = self.world.log[begun][3]
        fresh, may_be = [], []
        for run, other in others:
            is_success = type(other.end) is StepSucceeded and other.end.error is None
            if is_success and other.attempts and other.end_place < begun and run.has_stored(other):
                age = (begun_s - self.world.log[other.end_place][3]) * 1000 - spec.caches * TICK_MS
                may_be += [(run, other)] if age < EPSILON else []
                fresh += [other] if age < -EPSILON else []
            if node.attempts and other.attempts:
                first, second = sorted(
                    (each.attempts[0].place, each.end_place) for each in (node, other)
                )
                _require(first[1] < second[0], "equal calls overlap:", node.end, other.end)
        if node.reused is None:
            _require(
                not fresh, "called again:", node.attempts[0].start, [each.end for each in fresh]
            )
            return
        reused = node.reused
        its = [other for run, other in may_be if str(run.run) == reused.origin]
        _require(its, "there is no such result:", reused)
        latest = max(its, key=lambda other: other.end_place)
        last = latest.attempts[-1]
        _require(repr(reused.output) == repr(latest.end.output), "another output:", reused)
        _require(reused.attempts == last.start.attempt, "other attempts:", reused)
        duration_ms = latest.end.at_ms - last.start.at_ms
        _require(abs(reused.duration_ms - duration_ms) < EPSILON, "another duration:", reused)

    def has_stored(self, node: _Node) -> bool:
        """Whether other nodes may reuse the success of a node."""
        journal = self.world.journal
        assert journal is not None
        return (str(self.run), self.specs[node.step].name, node.item) in journal.reusable

    def stop_for(self, spec: Step) -> _Stop | None:
        """Return since when the steps of a kind are asked to stop."""
        if spec.is_cleanup:
            return self.interrupted
        if self.fail_stop is None or self.interrupted is None:
            return self.fail_stop or self.interrupted
        return min(self.fail_stop, self.interrupted, key=lambda stop: stop.place)

    # Attempts.

    def check_attempts(self, node: _Node) -> None:
        """Check what each attempt of a node has come to, and what has followed."""
        spec = self.specs[node.step]
        stop = self.stop_for(spec)
        counts_from = None
        queued_ms = 0.0
        for number, attempt in enumerate(node.attempts):
            start, call = attempt.start, attempt.call
            if stop is not None and attempt.place > stop.place:
                _require(
                    attempt.turn <= stop.turn + _TURNS_TO_STOP
                    and (start.at_ms <= stop.at_ms + EPSILON or self.world.blocks),
                    "it starts although the run stops:",
                    start,
                )
            if number:
                queued_ms += start.queued_ms
                before: AttemptFailed = node.attempts[number - 1].end
                due_ms = before.at_ms + before.retry_in_ms
                if node.attempts[number - 1].abandoned:
                    due_ms = max(due_ms, self.ended_ms(node.attempts[number - 1]))
                due_ms += start.queued_ms
                _require(start.at_ms >= due_ms - EPSILON, "before its backoff is over:", start)
                is_late = start.at_ms > due_ms + EPSILON and not self.world.blocks
                _require(not is_late, "after its backoff was over:", start)
            else:
                counts_from = start.at_ms
            if not self.is_limited:
                _require(start.queued_ms == 0, "it has waited for nothing:", start)
            assert counts_from is not None
            if call is None:
                continue
            ends_ms = [(start.at_ms + self.timeout_ms(spec), "attempt")]
            if spec.deadline is not None:
                ends_ms.append((counts_from + queued_ms + spec.deadline * TICK_MS, "step"))
            self.check_remaining(spec, attempt, call, min(ends_ms)[0])
            self.check_arguments(node, call)
            if spec.heartbeat is not None:
                missed_ms = _missed(call, start.at_ms, spec.heartbeat * TICK_MS, self.started_s)
                ends_ms.append((missed_ms, "heartbeat"))
            if spec.thread:
                self.check_thread(node, attempt, stop, ends_ms, counts_from + queued_ms)
            else:
                self.check_attempt(node, attempt, stop, ends_ms, counts_from + queued_ms)
        if not node.attempts and node.end is not None and node.item is not None:
            fails = type(self.check_fallback(node, node.end)) is StepFailed
            _require(not fails or self.cannot_be_had(node), "it has made no attempt:", node.end)
        last = node.attempts[-1] if node.attempts else None
        if last is not None and last.end is not node.end and type(node.end) is not StepCancelled:
            end = self.check_fallback(node, node.end)
            assert spec.deadline is not None
            assert counts_from is not None
            end_ms = counts_from + queued_ms + spec.deadline * TICK_MS
            is_right = isinstance(end.error, StepTimeoutError) and end.error.kind == "step"
            _require(type(end) is StepFailed and is_right, "no timeout:", node.end)
            _require(self.is_now(end.at_ms, end_ms), "not in time:", node.end)
            _require(self.ended_ms(last) > end.at_ms - EPSILON, "its thread has ended")
            return
        if node.end is not None and node.attempts and node.attempts[-1].end is not node.end:
            # Cancelled between two attempts.
            _require(stop is not None, "cancelled, although nothing stops the run:", node.end)
            assert stop is not None
            _require(stop.place < node.end_place, "cancelled before the run stopped:", node.end)
            last = node.attempts[-1].end
            is_kept = node.end.error is last.error
            _require(is_kept, "the error of the last attempt is lost:", node.end)
            due_ms = max(stop.at_ms, last.at_ms)
            _require(self.is_now(node.end.at_ms, due_ms), "it was not stopped at once:", node.end)

    def ended_ms(self, attempt: _Attempt) -> float:
        """Return when the action of an attempt has ended."""
        if attempt.call is None:
            return float(attempt.end.at_ms)
        return (attempt.call.ended_at - self.started_s) * 1000

    def cannot_be_had(self, node: _Node) -> bool:
        """Whether a node needs of its pool what that does not give, or can't tell what it needs."""
        spec, is_odd = self.specs[node.step], node.item is None or bool(node.item % 2)
        fails = spec.measured in ("raise", "much") or spec.key == "raise"
        return spec.pool is not None and fails and is_odd

    def check_thread(
        self,
        node: _Node,
        attempt: _Attempt,
        stop: _Stop | None,
        ends_ms: list[tuple[float, str]],
        counts_from: float,
    ) -> None:
        """Check what an attempt in a thread has come to."""
        call, end, spec = attempt.call, attempt.end, self.specs[node.step]
        assert call is not None
        ended_ms, blocks = self.ended_ms(attempt), self.world.blocks
        if self.flow.deadline is not None and not spec.is_cleanup:
            ends_ms = [*ends_ms, (self.flow.deadline * TICK_MS, "run")]
        limit_ms = last_ms = min(ends_ms)[0]
        if spec.heartbeat is not None:  # one that comes just as the limit expires may count
            beat_ms = spec.heartbeat * TICK_MS
            misses = _misses(call, attempt.start.at_ms, beat_ms, self.started_s)
            others = [ms for ms, what in ends_ms if what != "heartbeat"]
            last_ms = min([misses[-1], *others])
            ends_ms = [*ends_ms, *((ms, "heartbeat") for ms in misses)]
        if attempt.abandoned is None:
            _require(self.is_now(end.at_ms, ended_ms), "it ended at", ended_ms, "not:", end)
            is_late = ended_ms > last_ms + EPSILON and not blocks
            _require(not is_late, "its limit is", last_ms, "and it is not abandoned:", end)
        else:
            _require(self.is_now(end.at_ms, attempt.abandoned.at_ms), "not yet abandoned:", end)
            in_time = any(self.is_now(end.at_ms, ms) for ms, _ in ends_ms)
            _require(in_time, "its limits are", ends_ms, "and it ends at", end)
            _require(ended_ms > end.at_ms - EPSILON or blocks, "abandoned when it had ended:", end)
        asked: tuple[bool, ...] = (False, True)
        if stop is None or stop.place >= attempt.end_place:
            asked = (False,)
        elif end.at_ms > stop.at_ms + EPSILON:
            asked = (True,)
        causes = [] if attempt.abandoned else ["own"]
        if end.at_ms > limit_ms - EPSILON or blocks:
            causes = ["own", "limit"]  # the run may have asked it to stop before
        kinds = self.kinds_at(attempt, ends_ms, end.at_ms)
        outcomes = [(cause, is_asked) for cause in causes for is_asked in asked]
        reasons = [
            self.mismatch(node, attempt, spec, cause, is_asked, kinds, counts_from)
            for cause, is_asked in outcomes
        ]
        _require(None in reasons, end, [*zip(outcomes, reasons, strict=True)])

    def timeout_ms(self, spec: Step) -> float:
        return 30_000.0 if spec.timeout is None else spec.timeout * TICK_MS

    def is_now(self, at_ms: float, due_ms: float) -> bool:
        return bool(self.world.blocks) or abs(at_ms - due_ms) < EPSILON

    def early_ms(self, attempt: _Attempt) -> float:
        """Return how long before an attempt its limit may begin, if that has a task of its own.

        It begins in the turn before, and either turn may last.
        """
        turns = (attempt.turn - 1, attempt.turn) if _ATTEMPT_HAS_A_TASK else ()
        return TICK_MS * sum(ticks for turn, ticks in self.world.blocks if turn in turns)

    def kinds_at(
        self, attempt: _Attempt, ends_ms: list[tuple[float, str]], at_ms: float
    ) -> set[str]:
        """Return which limits of an attempt may have passed at a time."""
        early_ms = self.early_ms(attempt)
        return {
            what
            for ms, what in ends_ms
            if ms - (early_ms if what in ("attempt", "step") else 0) <= at_ms + EPSILON
        }

    def check_remaining(self, spec: Step, attempt: _Attempt, call: Call, ends_ms: float) -> None:
        if not spec.is_cleanup and self.flow.deadline is not None:
            ends_ms = min(ends_ms, self.flow.deadline * TICK_MS)
        left_ms = max(0.0, ends_ms - (call.began_at - self.started_s) * 1000)
        given_ms, early_ms = call.remaining_ms, self.early_ms(attempt)
        _require(
            given_ms is not None
            and max(0.0, left_ms - early_ms) - EPSILON < given_ms < left_ms + EPSILON,
            *("remaining_ms is", given_ms, "not", left_ms, "in", call.key),
        )

    def check_arguments(self, node: _Node, call: Call) -> None:
        spec = self.specs[node.step]
        names = {self.specs[need].name for need in spec.needs}
        if spec.maps == GIVEN:
            names.add("given")
            item, of_input = call.arguments["given"], self.world.given[self.run]
            expected = of_input[node.item] if isinstance(of_input, list) else node.item
            _require(item == expected, "another item:", call.key, item)
        if spec.resource:
            names.add("resource")
            _require(call.arguments["resource"] == f"resource {self.run}", call.arguments)
        _require(call.arguments.keys() == names, "it is called with", call.arguments, "not", names)
        for need in spec.needs:
            end = self.steps[need].end
            _require(end is not None, f"{spec.name} starts before", self.specs[need].name)
            given = call.arguments[self.specs[need].name]
            output = end.output if type(end) is StepSucceeded else None
            if node.item is not None and need == spec.maps:
                if self.specs[need].maps is not None:
                    output = self.items[need][node.item].end.output
                    _require(given is output, "another item:", call.key, given)
                elif isinstance(output, list | tuple):
                    _require(given is output[node.item], "another item:", call.key, given)
                else:
                    _require(given == node.item, "another item:", call.key, given)
            else:
                _require(given is output, "another output:", call.key, given)
        if spec.is_cleanup:
            known = {name: result.status for name, result in call.results.items()}
            statuses = {
                self.specs[need].name: _status_of(self.steps[need].end)
                for need in self.dependencies[node.step]
            }
            _require(known == statuses, "current_step().results are", known, "not", statuses)

    def check_fallback(self, node: _Node, end: Any) -> Any:
        """Return the end that the last attempt of a node would have had without a fallback."""
        fallback = self.specs[node.step].fallback
        if type(end) is StepSucceeded and end.error is not None:
            _require(fallback == "value", "there is no fallback:", end)
            is_its = isinstance(end.output, Instead) and end.output.error is end.error
            _require(is_its, "another output than the fallback's:", end)
            return StepFailed(end.step, end.attempt, end.at_ms, end.error, end.item)
        if type(end) is StepFailed and fallback:
            is_its = isinstance(end.error, KeyError) and end.error.args == ("fallback",)
            _require(fallback == "raise" and is_its, "its fallback was not called:", end)
            error: Any = end.error.__context__
            return StepFailed(end.step, end.attempt, end.at_ms, error, end.item)
        return end

    def check_attempt(
        self,
        node: _Node,
        attempt: _Attempt,
        stop: _Stop | None,
        ends_ms: list[tuple[float, str]],
        counts_from: float,
    ) -> None:
        """Check what one attempt has come to."""
        limit_ms = min(ends_ms)[0]
        early_ms = self.early_ms(attempt)
        last_ms = attempt.end.at_ms if self.world.blocks else limit_ms
        kinds = self.kinds_at(attempt, ends_ms, last_ms)
        call, end, spec = attempt.call, attempt.end, self.specs[node.step]
        assert call is not None
        ended_ms = (call.ended_at - self.started_s) * 1000
        blocks = self.world.blocks
        if not blocks:
            _require(abs(end.at_ms - ended_ms) < EPSILON, "it ended at", ended_ms, "not:", end)
        may_limit, must_limit = False, False
        may_stop, must_stop = False, False
        is_foreign = False
        last_turn = -1
        for now, turn in call.cancels:
            at_ms = (now - self.started_s) * 1000
            by_own = now in call.own or bool(blocks and call.own)
            by_stranger = any(
                now - EPSILON / 1000 <= each + (0 if not blocks else 1) and each <= now
                for each in self.world.strangers
            )
            by_limit = any(
                at_ms >= ms - early_ms - EPSILON and (blocks or at_ms <= ms + EPSILON)
                for ms, _ in ends_ms
            )
            by_stop = stop is not None and stop.turn <= turn and stop.at_ms <= at_ms + EPSILON
            if by_stop and not blocks:
                assert stop is not None
                by_stop = at_ms <= max(stop.at_ms, attempt.start.at_ms) + EPSILON or (
                    # What somebody else had cancelled is left alone for a while.
                    is_foreign and abs(at_ms - stop.at_ms - 5_000) < EPSILON
                )
            _require(
                by_own or by_stranger or by_limit or by_stop,
                *(call.key, "was cancelled at", at_ms, "ms, by nobody"),
            )
            _require(turn > last_turn, call.key, "was cancelled twice in a turn")
            last_turn = turn
            may_limit |= by_limit
            may_stop |= by_stop
            must_limit |= not (by_own or by_stranger or by_stop)
            must_stop |= not (by_own or by_stranger or by_limit)
            is_foreign |= by_own or by_stranger or by_limit
        if stop is not None and ended_ms > stop.at_ms + 5_000 + EPSILON and not blocks:
            _require(may_stop or may_limit, call.key, "was not cancelled when its grace was over")
        if ended_ms > limit_ms + EPSILON and not blocks:
            _require(
                may_limit or any(now < self.started_s + limit_ms / 1000 for now, _ in call.cancels),
                f"{call.key} was not cancelled when its limit passed, at {limit_ms} ms",
            )
            if any(
                abs((now - self.started_s) * 1000 - limit_ms) < EPSILON for now, _ in call.cancels
            ):
                may_limit = True
        self.check_stopped(call, stop, ended_ms, limit_ms, may_stop or bool(call.cancels))
        asked = self.asked(call, attempt, stop, may_stop, must_stop)
        outcomes = []
        # A limit that passes after the run has asked the attempt to stop is not its cause.
        # What was cancelled before and ends as the limit passes may have been cancelled by either.
        # So may be what the action did not see because it blocked the loop and awaited no more.
        is_unseen = any(
            attempt.start.at_ms - EPSILON <= (each - self.started_s) * 1000 <= ended_ms + EPSILON
            for each in self.world.strangers
        )
        is_tie = ended_ms > limit_ms - early_ms - EPSILON and (
            blocks or ended_ms < limit_ms + EPSILON
        )
        if may_limit or (is_tie and (call.own or call.cancels or is_unseen)):
            outcomes += [("limit", is_asked) for is_asked in asked]
        if not must_limit or (stop is not None and stop.at_ms < limit_ms):
            outcomes += [("own", is_asked) for is_asked in asked]
        is_refused = call.attempt <= spec.refused or self.is_shared(node.step)
        if call.error is None and not is_refused and True in asked:
            # A value must come in time, but heartbeats no longer count. One that is refused is an
            # error, with which the attempt may end its clean-up at any time.
            limit_ms = min(ms for ms, what in ends_ms if what != "heartbeat")
            if ended_ms > limit_ms - early_ms - EPSILON:
                kinds |= {what for ms, what in ends_ms if ms <= limit_ms + early_ms + EPSILON}
                outcomes.append(("limit", True))
            if ended_ms > limit_ms + EPSILON and ("own", True) in outcomes:
                outcomes.remove(("own", True))
        reasons = [
            self.mismatch(node, attempt, spec, cause, is_asked, kinds, counts_from)
            for cause, is_asked in outcomes
        ]
        if outcomes and None not in reasons:
            raise _Wrong(
                f"{end} follows from an attempt that ended with {call.error or call.value!r} at "
                f"{ended_ms:g} ms, cancelled at {[now for now, _ in call.cancels]} s, limit at "
                f"{limit_ms:g} ms; the run stops at {stop}: "
                f"{[*zip(outcomes, reasons, strict=True)]}"
            )

    def check_stopped(
        self, call: Call, stop: _Stop | None, ended_ms: float, limit_ms: float, seen: bool
    ) -> None:
        if stop is None or self.world.blocks or seen:
            return
        lives_on = ended_ms > stop.at_ms + EPSILON or call.ended_turn > stop.turn + _TURNS_TO_STOP
        _require(
            not lives_on or ended_ms < stop.at_ms,
            *(call.key, "was not cancelled when the run stopped, at", stop.at_ms, "ms"),
        )

    def asked(
        self,
        call: Call,
        attempt: _Attempt,
        stop: _Stop | None,
        may_stop: bool,
        must_stop: bool,
    ) -> tuple[bool, ...]:
        """Return whether the run had asked an attempt to stop when it ended; both if unknown."""
        if stop is None or stop.place >= attempt.end_place or call.ended_turn < stop.turn:
            return (False,)
        if must_stop:
            return (True,)
        if call.cancels:
            # Somebody else had cancelled it, so that the request does not show.
            if call.ended_turn > stop.turn + _TURNS_TO_STOP:
                return (True,)
            return (False, True)
        if _ATTEMPT_HAS_A_TASK and call.ended > stop.place:
            return (False, True)
        if isinstance(call.error, JournalError):  # it hid the request from the action
            return (False, True)
        return (False,)

    def mismatch(
        self,
        node: _Node,
        attempt: _Attempt,
        spec: Step,
        cause: str,
        asked: bool,
        kinds: set[str],
        counts_from: float,
    ) -> str | None:
        """Return what is wrong with the end of an attempt, if it was cancelled by that cause."""
        call, end = attempt.call, self.check_fallback(node, attempt.end)
        assert call is not None
        kind, error = type(end), attempt.error
        told = None if kind is StepSucceeded else end.error
        is_exit = error is not None and not isinstance(error, Exception | asyncio.CancelledError)
        if is_exit:
            if kind is not StepCancelled or told is not error:
                return "what is no Exception must end the run"
            return None
        if cause == "limit":
            if not isinstance(told, StepTimeoutError) or told.kind not in kinds:
                return f"not a timeout of {kinds}"
            if isinstance(error, Exception) and told.__cause__ is not error:
                return "the timeout has lost what the clean-up raised"
            if told.attempt != attempt.start.attempt:
                return "the timeout of another attempt"
        elif error is None and call.attempt > spec.refused and self.is_shared(node.step):
            if not isinstance(told, SharedIteratorError):
                return "not refused, although several steps take the iterator"
            if asked:
                return None if kind is StepCancelled else "not cancelled"
            return None if kind is StepFailed else "retried, although it would be shared again"
        elif error is None and call.attempt > spec.refused:
            if kind is not StepSucceeded:
                return "not a success"
            return None if end.output is call.value else "another output"
        elif error is None:
            if not isinstance(told, ResultRefusedError):
                return "not refused"
        elif isinstance(error, asyncio.CancelledError):
            if asked:
                is_right = told is None or (
                    self.timed_out is not None
                    and isinstance(told, StepTimeoutError)
                    and told.kind == "run"
                )
                if not is_right:
                    return "not just cancelled"
            elif not isinstance(told, StepCancelledError) or (
                told.__cause__ is not error and not attempt.abandoned
            ):
                return "not a failure by its own cancellation"
        elif told is not error:
            return "another error"
        if asked:
            return None if kind is StepCancelled else "not cancelled"
        return self.mismatch_of_failure(attempt, end, spec, counts_from)

    def mismatch_of_failure(
        self, attempt: _Attempt, end: Any, spec: Step, counts_from: float
    ) -> str | None:
        number = attempt.start.attempt
        delay_ms = spec.backoff * TICK_MS * (2 ** (number - 1) if spec.doubling else 1)
        is_named = spec.named is not None and isinstance(end.error, ValueError)
        if is_named:
            assert spec.named is not None
            delay_ms = spec.named * TICK_MS
        if number >= spec.retries:
            return None if type(end) is StepFailed else "not a failure for good"
        last_ms = float("inf")
        if spec.deadline is not None:
            last_ms = counts_from + spec.deadline * TICK_MS
        if self.flow.deadline is not None and not spec.is_cleanup:
            last_ms = min(last_ms, self.flow.deadline * TICK_MS)
        next_ms = end.at_ms + delay_ms
        may_fail, may_retry = next_ms > last_ms - 0.1, next_ms < last_ms + 0.1
        if type(end) is AttemptFailed and may_retry:
            return None if end.retry_in_ms == delay_ms else "another backoff"
        if type(end) is StepFailed and (may_fail or (self.has_budget(spec) and not is_named)):
            return None
        return "another attempt must follow" if may_retry else "no other attempt may follow"

    def is_shared(self, step: int) -> bool:
        """Whether several steps or items take an iterator, of which each would get some items."""
        items = self.specs[step].items
        takers = [spec for spec in self.specs if step in spec.needs]
        is_argument = any(spec.maps not in (None, step) for spec in takers)
        return items is not None and items.kind == "iterator" and (len(takers) > 1 or is_argument)

    def has_budget(self, spec: Step) -> bool:
        return spec.pool is not None and self.flow.pools[spec.pool].budget is not None

    # Steps.

    def check_map(self, node: _Node) -> None:
        """Check what a mapped step has come to."""
        end, spec = node.end, self.specs[node.step]
        if node.map is None:
            return
        assert spec.maps is not None
        _require(not node.attempts, "a mapped step has attempts of its own:", node.attempts)
        items = self.items[node.step]
        if spec.maps != GIVEN and self.specs[spec.maps].maps is not None:
            self.check_chain(node, items)
            return
        self.check_gaps(node, items)
        if spec.maps == GIVEN:
            given = self.world.given[self.run]
        else:
            source = self.steps[spec.maps].end
            _require(type(source) is StepSucceeded, "there are no items:", node.map)
            given = source.output
        stop = self.stop_for(spec)
        count, breaks = self.count_of(given)
        if self.was_late(spec, given, end):
            count, breaks = len(items) if breaks == "hang" else 1, "late"
        ends = [items[number].end for number in sorted(items)]
        failed = [item.error for item in ends if type(item) is StepFailed]
        known = len(given) if isinstance(given, list | tuple) else None
        _require(node.map.count == known, f"{known} items are known:", node.map)
        may_tolerate, must_tolerate = self.is_tolerated(node, len(failed), len(items))
        is_whole = len(items) == count and all(
            type(item.end) is StepSucceeded or (may_tolerate and type(item.end) is StepFailed)
            for item in items.values()
        )
        was_broken = bool(breaks) or bool(self.world.strangers)
        if type(end) is StepSucceeded:
            _require(is_whole and breaks == "", "not all items have succeeded:", end)
            self.check_outputs(spec, items, end)
        elif type(end) is StepFailed:
            _require((failed and not must_tolerate) or was_broken or breaks, "why failed:", end)
            if failed:
                errors = end.error.exceptions if isinstance(end.error, ExceptionGroup) else ()
                if len(errors) > len(failed):
                    _require(was_broken, "an error of no item:", end)
                    errors = errors[1:]
                same = len(errors) == len(failed) and all(map(_is, errors, failed))
                _require(same, "other errors than those of the items:", end, failed)
        else:
            _require(type(end) is StepCancelled, "it can't end like this:", end)
            _require(not end.cause, "it is in no chain:", end)
            _require(may_tolerate, "an item has failed:", end)
            is_right = stop is not None and stop.place < node.end_place
            _require(is_right or breaks == "exit", "nothing stops the run:", end)
            _require(not is_whole or breaks or stop, "all items have succeeded:", end)
        if stop is None and not was_broken:
            _require(len(items) == count, f"{len(items)} of {count} items ran")
        if breaks == "hang" and type(end) is StepFailed and not failed:
            is_timeout = isinstance(end.error, StepTimeoutError) and end.error.source
            _require(is_timeout or self.world.strangers, "no timeout of its source:", end)

    def check_outputs(self, spec: Step, items: dict[int, _Node], end: StepSucceeded) -> None:
        if not spec.keeps:
            _require(end.output is None, "outputs that are not kept:", end)
            return
        outputs = [
            items[number].end.output
            for number in sorted(items)
            if type(items[number].end) is StepSucceeded
        ]
        same = len(outputs) == len(end.output) and all(map(_is, outputs, end.output))
        _require(same, "other outputs than those of the items:", end)

    def check_chain(self, node: _Node, items: dict[int, _Node]) -> None:
        """Check what a step has come to that is mapped over a mapped step."""
        end, spec, stop = node.end, self.specs[node.step], self.stop_for(self.specs[node.step])
        assert spec.maps is not None
        source, before = self.steps[spec.maps], self.items[spec.maps]
        for number, item in items.items():
            place = item.attempts[0].place if item.attempts else item.end_place
            _require(number in before, f"{spec.name}[{number}] comes from nowhere")
            was = before[number]
            _require(was.end_place < place, f"{spec.name}[{number}] comes before its source")
            if type(was.end) is StepSucceeded:
                _require(type(item.end) is not StepSkipped, "its source succeeded:", item.end)
                continue
            _require(type(item.end) is StepSkipped, "its source did not succeed:", item.end)
            word = "failed" if type(was.end) is StepFailed else "was cancelled"
            why = f"item {number} of step {self.specs[spec.maps].name!r} {word}"
            why = was.end.reason if type(was.end) is StepSkipped else why
            _require(item.end.reason == why, "not because", why, ":", item.end)
        ends = [items[number].end for number in sorted(items)]
        failed = [item.error for item in ends if type(item) is StepFailed]
        has_all = items.keys() == before.keys()
        has_all &= all(type(item) is not StepCancelled for item in ends)
        may_tolerate, must_tolerate = self.is_tolerated(node, len(failed), len(items))
        was_broken = bool(self.world.strangers)
        if type(end) is StepSucceeded:
            _require(has_all and may_tolerate, "not all items have ended well:", end)
            _require(type(source.end) is StepSucceeded, "its source did not succeed:", end)
            self.check_outputs(spec, items, end)
        elif type(end) is StepFailed:
            _require(not must_tolerate or was_broken, "that is tolerated:", end)
            if not may_tolerate:
                errors = end.error.exceptions[-len(failed) :]
                _require(all(map(_is, errors, failed)), "other errors:", end, failed)
        else:
            _require(type(end) is StepCancelled, "it can't end like this:", end)
            _require(may_tolerate, "an item has failed:", end)
            if end.cause:
                is_it = end.cause == self.specs[spec.maps].name
                _require(is_it and has_all, "it has another cause:", end)
                _require(type(source.end) is not StepSucceeded, "its source succeeded:", end)
            else:
                is_right = stop is not None and stop.place < node.end_place
                _require(is_right, "nothing stops the run:", end)
        if stop is None and not was_broken:
            _require(has_all, f"{len(items)} of {len(before)} items of a chain ran")

    def check_gaps(self, node: _Node, items: dict[int, _Node]) -> None:
        """Check that each item has begun before the next one."""
        # An item that a third party has cancelled while it waited may wait until the run stops; so
        # may one whose pool was paused in the turn in which it was to begin.
        # Nor need those that wait for a thread start in their order.
        spec = self.specs[node.step]
        waits = spec.pool is not None and self.has_other_waits(spec.pool)
        waits |= spec.thread and self.flow.threads < len(self.nodes)
        waits |= bool(spec.caches)  # for equal ones
        waits |= bool(spec.key)  # others take their turn
        if not (self.world.strangers or waits):
            stop = self.stop_for(self.specs[node.step])
            gap = next(number for number in range(len(items) + 1) if number not in items)
            later = [
                item.attempts[0] for number, item in items.items() if number > gap and item.attempts
            ]
            # What is scheduled at the same time begins in any order, until the run stops.
            are_even = stop is not None and all(each.turn >= stop.turn - 1 for each in later)
            _require(not later or are_even, "the items are", sorted(items))

    def count_of(self, given: Any) -> tuple[int, str]:
        if isinstance(given, list | tuple):
            return len(given), ""
        return given.items.count, given.items.breaks

    def was_late(self, spec: Step, given: Any, end: Any) -> bool:
        """Whether an item of a stream did not come within the limits of its wait."""
        assert spec.maps is not None
        timeout = None if spec.maps == GIVEN else self.specs[spec.maps].timeout
        limits = [each for each in (timeout, spec.deadline) if each]
        is_stream = not isinstance(given, list | tuple) and given.items.kind == "stream"
        waits: float = STREAM_WAITS if is_stream and given.items.count > 1 else 0
        if is_stream and given.items.breaks == "hang":
            waits = math.inf
        shortest = min(limits, default=math.inf)
        _require(shortest >= waits or type(end) is not StepSucceeded, "too late:", end)
        error = getattr(end, "error", None)
        if isinstance(error, ExceptionGroup):
            error = error.exceptions[0]
        if not isinstance(error, StepTimeoutError) or not error.source:
            return False
        # What blocks the loop makes the wait end with an item that has been there for long.
        is_late = shortest <= waits or bool(self.world.blocks)
        _require(is_late, "its item came in time:", error)
        source = self.world.pipeline.source_of(spec)
        is_right = error.source == source and error.step_name == spec.name
        _require(is_right, "it waited for another item:", error)
        return True

    def check_step(self, node: _Node) -> None:
        """Check why and when a step has started, or why it has not."""
        spec, end = self.specs[node.step], node.end
        _require(end is not None, f"step {spec.name} has no end")
        needed = self.dependencies[node.step]
        ends = [self.steps[need] for need in needed]
        stop = self.stop_for(spec)
        self.check_condition(node)
        started_ms = node.started_ms
        place = node.attempts[0].place if node.attempts else node.map_place
        if node.reused is not None:
            started_ms, place = node.reused.at_ms, node.end_place
        flow = self.flow_source(node.step)
        first = None if flow is None else self.first_success(flow)
        # The items that have succeeded go through, whatever becomes of the others.
        is_blocked = any(
            _blocks(each.end) and not (each is flow and first is not None) for each in ends
        )
        is_unwanted = any(type(each.end) is StepSkipped and each.end.by_condition for each in ends)
        is_pointless = bool(ends) and all(
            type(each.end) is StepSkipped and each.end.by_condition for each in ends
        )
        source = None if spec.maps in (None, GIVEN) else self.steps[spec.maps].end
        if started_ms is not None:
            _require(spec.when in ("", "yes"), f"{spec.name} starts in spite of its condition")
            late = [each for each in ends if each.end_place > place]
            if first is not None and first.end_place < place and self.flow.schedule == "ready":
                late = [each for each in late if each is not flow]
            _require(not late, f"{spec.name} starts before the end of a dependency")
            if spec.run_if == "success":
                _require(not is_blocked and not is_unwanted, f"{spec.name} starts for nothing")
            elif spec.run_if == "unless_failed":
                _require(not is_blocked and not is_pointless, f"{spec.name} starts for nothing")
            elif spec.run_if == "failure":
                _require(is_blocked, f"{spec.name} starts although nothing has failed")
            has_items = source is None or type(source) is StepSucceeded or first is not None
            _require(has_items, f"{spec.name} starts without items")
            _require(type(end) is not StepSkipped, f"{spec.name} has started:", end)
            if stop is not None and place > stop.place and node.map is not None:
                is_late = started_ms > stop.at_ms + EPSILON and not self.world.blocks
                _require(not is_late, f"{spec.name} starts after the stop")
            self.check_start(node, started_ms, place)
            return
        was_stopped = stop is not None and stop.place < node.end_place
        if self.cannot_be_had(node) and spec.when in ("", "yes"):
            end = self.check_fallback(node, end)
        if type(end) is StepFailed:
            if self.cannot_be_had(node) and spec.when in ("", "yes") and spec.maps is None:
                raises = "raise" in (spec.measured, spec.key)
                kinds: type[Exception] = KeyError if raises else ValueError
                _require(isinstance(end.error, kinds), "another error than its slots':", end)
                return
            _require(spec.when == "raise", "it has failed without an attempt:", end)
            _require(isinstance(end.error, KeyError), "another error than its condition's:", end)
            return
        _require(type(end) is StepSkipped, "it has not started:", end)
        if end.by_condition:
            if spec.run_if == "success":
                _require(not is_blocked, "a dependency has failed:", end)
                _require(is_unwanted or spec.when == "no", "nobody asked for that:", end)
            else:
                if spec.run_if == "unless_failed":
                    _require(not is_blocked, "a dependency has failed:", end)
                    never = is_pointless
                else:
                    never = spec.run_if == "failure" and not is_blocked
                never |= type(source) is StepSkipped and source.by_condition
                _require(never or spec.when == "no", "nobody asked for that:", end)
        elif not spec.is_cleanup:
            is_right = is_blocked or was_stopped or spec.when == "exit"
            _require(is_right, "nothing has failed:", end)
        else:
            is_right = was_stopped or spec.when == "exit" or _blocks(source)
            _require(is_right, "a clean-up step is left out:", end)
        _require(end.reason, "no reason:", end)

    def before(self, node: _Node) -> list[_Node]:
        """Return what must have ended before the turn of a step comes."""
        if self.flow.schedule == "tiers":
            own = self.tiers[node.step]
            return [self.steps[step] for step, tier in enumerate(self.tiers) if tier < own]
        flow = self.flow_source(node.step)
        first = None if flow is None else self.first_success(flow)
        before = [self.steps[need] for need in self.dependencies[node.step]]
        return [first if first and each is flow else each for each in before]

    def due_ms(self, node: _Node) -> list[float]:
        """Return when the turn of a step comes: a clean-up step may have to wait for others."""
        due_ms = max((each.end.at_ms for each in self.before(node)), default=0.0)
        if self.world.opened_at[self.run] >= 0:
            due_ms = max(due_ms, (self.world.opened_at[self.run] - self.started_s) * 1000)
        if not self.specs[node.step].is_cleanup or self.fail_stop is None:
            return [due_ms]
        return [due_ms, max(due_ms, *(each.end.at_ms for each in self.ordinary()), 0.0)]

    def ordinary(self) -> list[_Node]:
        return [each for each in self.steps if not self.specs[each.step].is_cleanup]

    def is_due(self, node: _Node, at_ms: float) -> bool:
        """Whether the turn of a step comes at a time, as far as that can be told."""
        if self.world.blocks or self.case.fault.strangers or self.case.fault.observer:
            return True
        return any(abs(at_ms - due_ms) < EPSILON for due_ms in self.due_ms(node))

    def check_start(self, node: _Node, started_ms: float, place: int) -> None:
        """Check that a step starts when its turn comes."""
        spec = self.specs[node.step]
        late = [each for each in self.before(node) if each.end_place > place]
        _require(not late, f"{spec.name} starts before its tier")
        if spec.is_cleanup and self.fail_stop is not None and self.fail_stop.place < place:
            late = [each for each in self.ordinary() if each.end_place > place]
            began_before = self.due_ms(node)[0] <= self.fail_stop.at_ms + EPSILON
            _require(not late or began_before, f"{spec.name} cleans up too early")
        _require(not self.cannot_be_had(node) or node.map, f"{spec.name} starts without its slots")
        if node.map is not None and self.flow.max_concurrency is not None:
            return
        queued_ms = node.attempts[0].start.queued_ms if node.attempts else 0.0
        due_ms = [*self.due_ms(node), *self.unparked_ms(node)]
        is_due = self.is_due(node, started_ms - queued_ms) or any(
            abs(started_ms - queued_ms - each) < EPSILON for each in due_ms
        )
        is_limited = self.flow.max_concurrency is not None or spec.pool is not None
        if node.reused is not None and is_limited:
            return  # it may have waited for its run to have room, which no event tells
        _require(is_due, spec.name, "starts at", started_ms, "ms, not at", due_ms)

    def unparked_ms(self, node: _Node) -> list[float]:
        """Return when a node may have stopped waiting for an equal call."""
        if not self.specs[node.step].caches or node.map is not None:
            return []
        ends = [(run, other.end.at_ms) for run, other in self.equal_to(node)]
        for run in self.all_runs:
            if run.log:  # it may have led a call of which it made no attempt, or stored no success
                stops = [stop.at_ms for stop in (run.fail_stop, run.interrupted) if stop]
                ends += [(run, at_ms) for at_ms in (*stops, run.finished.at_ms)]
        return [(run.started_s - self.started_s) * 1000 + at_ms for run, at_ms in ends]

    def check_condition(self, node: _Node) -> None:
        """Check that a condition is asked once, when the turn of its step comes."""
        spec = self.specs[node.step]
        asked = [at_s for step, at_s in self.world.conditions if step == node.step]
        if not asked or self.flow.copies > 1:
            return
        _require(len(asked) == 1, f"the condition of {spec.name} was asked {len(asked)} times")
        at_ms = (asked[0] - self.started_s) * 1000
        is_due = self.is_due(node, at_ms)
        _require(is_due, spec.name, "is asked at", at_ms, "ms, not at", self.due_ms(node))
        if spec.when != "yes":
            _require(self.is_now(node.end.at_ms, at_ms), "it ends later:", node.end)

    def check_deadline(self) -> None:
        """Check the deadline of the run."""
        if self.flow.deadline is None:
            _require(self.timed_out is None, "there is no deadline:", self.timed_out)
            return
        deadline_ms = self.flow.deadline * TICK_MS
        ordinary = [node for node in self.steps if not self.specs[node.step].is_cleanup]
        last_ms = max((node.end.at_ms for node in ordinary), default=0.0)
        if self.timed_out is not None:
            _require(
                self.is_now(self.timed_out.at_ms, deadline_ms), "at another time:", self.timed_out
            )
        elif last_ms > deadline_ms + EPSILON and not self.world.blocks:
            stops = [stop for stop in (self.fail_stop, self.interrupted) if stop is not None]
            _require(
                any(stop.at_ms <= deadline_ms + EPSILON for stop in stops),
                f"the deadline of {deadline_ms} ms has passed unnoticed",
            )

    def check_queue(self) -> None:
        """Check that whatever waits has to: that the limits are used up meanwhile."""
        if self.flow.copies > 1 or self.world.blocks or self.interrupted or self.fail_stop:
            return
        flow = self.flow
        has_few_threads = flow.threads < len(self.nodes)
        attempts = [(node, attempt) for node in self.nodes for attempt in node.attempts]
        for node, attempt in attempts:
            start = attempt.start
            if start.queued_ms < EPSILON:
                continue
            pool, key = self.specs[node.step].pool, key_of(self.specs[node.step], node.item)
            if pool is not None and self.has_other_waits(pool):
                continue
            since, until = start.at_ms - start.queued_ms, start.at_ms
            times = sorted({since, until, *self.times_between(since, until)})
            if pool is not None:
                changed = (at_s for at_s, _ in self.world.numbers[pool])
                changed_ms = ((at_s - self.started_s) * 1000 for at_s in changed)
                times = sorted({*times, *(each for each in changed_ms if since < each < until)})
            for one, other in pairwise(times):
                at_ms = (one + other) / 2
                if other - one < EPSILON:
                    continue
                in_all = in_pool = in_threads = of_key = 0
                for each, its in attempts:
                    held_from, held_until = its.start.at_ms, its.end.at_ms
                    own_pool = self.specs[each.step].pool
                    waits_elsewhere = own_pool is not None and self.has_other_waits(own_pool)
                    if waits_elsewhere or (self.specs[each.step].thread and has_few_threads):
                        held_from -= its.start.queued_ms  # it may have waited for the rate
                    if held_from <= at_ms <= held_until:
                        in_all += 1
                    held_until = max(held_until, self.ended_ms(its))
                    if held_from <= at_ms <= held_until:
                        in_pool += own_pool == pool
                        of_key += own_pool == pool and key == key_of(
                            self.specs[each.step], each.item
                        )
                        in_threads += self.specs[each.step].thread
                is_full = self.specs[node.step].thread and in_threads >= flow.threads
                is_full = is_full or (
                    flow.max_concurrency is not None and in_all >= flow.max_concurrency
                )
                if pool is not None and key and flow.pools[pool].per_key is not None:
                    is_full = is_full or of_key >= flow.pools[pool].per_key
                if pool is not None and not is_full:
                    is_full = in_pool >= self.world.size_at(pool, self.started_s + at_ms / 1000)
                _require(is_full, f"it waits at {at_ms} ms although there is room:", start)

    def has_other_waits(self, pool: int) -> bool:
        """Whether attempts wait in a pool for more than one slot."""
        users = [step for step in self.specs if step.pool == pool]
        paused = any(step.named is not None for step in users)
        rated = any(numbers.interval or numbers.tokens for _, numbers in self.world.numbers[pool])
        return rated or paused or any(step.slots > 1 for step in users)

    def check_line(self) -> None:
        """Check that no attempt is given slots for which a more urgent step is in line."""
        flow, is_calm = self.flow, self.case.fault == Fault() and not self.world.blocks
        stops = self.interrupted or self.fail_stop
        if flow.copies > 1 or flow.max_concurrency is not None or stops or not is_calm:
            return
        attempts = [(node, each) for node in self.nodes for each in node.attempts]
        for urgent in self.nodes:
            spec, since = self.specs[urgent.step], self.in_line_since(urgent)
            if (
                spec.pool is None
                or since is None
                or flow.pools[spec.pool].per_key
                or (spec.thread and flow.threads < 40)
            ):
                continue
            begun = urgent.attempts[0]
            others = [
                (its, each) for its, each in attempts if self.specs[its.step].pool == spec.pool
            ]
            for its, each in others:
                other = self.specs[its.step]
                if other.priority >= spec.priority or not since < each.place < begun.place:
                    continue
                if other.thread and flow.threads < 40:
                    continue  # it may have had its slots before
                if urgent.item is not None and begun.start.at_ms < each.start.at_ms + EPSILON:
                    continue  # its step adds it in a later turn
                size = flow.pools[spec.pool].size
                fits_both = self.held_after(each.start.at_ms, others) + spec.slots <= size
                since_ms = (self.world.log[since][3] - self.started_s) * 1000
                is_later = self.held_at(since, others) + other.slots > size
                is_later |= each.start.at_ms > since_ms + EPSILON
                _require(fits_both or not is_later, each.start, "starts before", begun.start)

    def held_at(self, place: int, attempts: list[tuple[_Node, _Attempt]]) -> int:
        """Return how many slots these attempts hold at a place in the log."""
        return sum(
            self.specs[its.step].slots
            for its, attempt in attempts
            if attempt.place <= place <= self.held_until(attempt)
        )

    def held_after(self, at_ms: float, attempts: list[tuple[_Node, _Attempt]]) -> int:
        """Return how many slots these attempts hold after all that happens at a time."""
        return sum(
            self.specs[its.step].slots
            for its, attempt in attempts
            if attempt.start.at_ms <= at_ms + EPSILON
            and max(attempt.end.at_ms, self.ended_ms(attempt)) > at_ms + EPSILON
        )

    def held_until(self, attempt: _Attempt) -> int:
        """Return the place in the log until which an attempt holds its slots."""
        is_late = attempt.abandoned is not None and attempt.call is not None
        return attempt.call.ended if is_late else attempt.end_place

    def in_line_since(self, node: _Node) -> int | None:
        """Return since which place in the log a step must have been in line, if that is known."""
        spec = self.specs[node.step]
        if any(each.caches and _stand_together(each, spec) for each in self.specs):
            # It joins the line when no stored result serves it, and holds up others behind it.
            return None
        if node.attempts and node.item is not None:
            return self.item_in_line_since(node)
        if not node.attempts or spec.when or spec.is_cleanup:
            return None
        before = self.before(node)
        if not before:
            return None if self.flow.resource else 0
        return max(each.end_place for each in before)

    def item_in_line_since(self, node: _Node) -> int | None:
        """Return the same for an item: a slot is kept until the task of its step has added it."""
        spec, owner = self.specs[node.step], self.steps[node.step]
        assert spec.maps is not None
        source = None if spec.maps == GIVEN else self.specs[spec.maps]
        given = self.flow.given if source is None else source.items
        is_stream = given is not None and given.kind == "stream"
        feeds = any(other.maps == node.step for other in self.specs)
        is_sure = not (spec.when or spec.is_cleanup)
        if not is_sure or is_stream or (feeds and self.flow.ahead < 100):
            return None
        places = [each.end_place for each in self.before(owner)]
        if source is not None and source.maps is not None and node.item is not None:
            places.append(self.items[spec.maps][node.item].end_place)
        if not places:
            return None if self.flow.resource else 0
        return max(places)

    def times_between(self, since: float, until: float) -> list[float]:
        return [
            event.at_ms  # type: ignore[union-attr]
            for _, event, _, _ in self.log[1:]
            if since < event.at_ms < until  # type: ignore[union-attr]
        ]

    # The report.

    def check_report(self) -> None:
        report = self.report
        assert report is not None
        _require(not self.interrupted, "there is a report of an interrupted run")
        is_passed = not any(_blocks(node.end) for node in self.steps)
        status = "PASSED" if is_passed else "FAILED"
        _require(self.finished.status == report.status == status, "not", status, ":", report)
        _require(report.all_passed == is_passed, "all_passed is", report.all_passed)
        _require(report.total_duration_ms == self.finished.at_ms, "another duration:", report)
        _require(report.stop_reason == self.finished.stop_reason, "another reason:", report)
        _require((report.stop_reason is None) == (self.fail_stop is None), "a stop:", report)
        _require({*report} == self.index.keys(), "other steps:", report)
        for node in self.steps:
            self.check_result(node, report[self.specs[node.step].name])

    def check_result(self, node: _Node, result: StepResult) -> None:
        end = node.end
        _require(result.status is _status_of(end), "not the status of its event:", result)
        items = self.items[node.step] if node.map is not None else {}
        if node.reused is not None:
            reused = node.reused
            expected = reused.attempts, reused.duration_ms, reused.origin, True, None, ()
            shown = result.attempts, result.duration_ms, result.origin, result.reused
            _require((*shown, result.started_ms, result.history) == expected, result, reused)
            _require(result.output is reused.output, "another output:", result)
            return
        from_others = sum(each.reused.attempts for each in items.values() if each.reused)
        count = (
            len(node.attempts) + sum(len(each.attempts) for each in items.values()) + from_others
        )
        _require(result.attempts == count, f"not {count} attempts:", result)
        keeps = node.item is None or self.specs[node.step].keeps
        output = end.output if keeps and type(end) is StepSucceeded else None
        _require(result.output is output, "another output:", result)
        error = getattr(end, "error", None)
        _require(result.error is error, "another error than its event has:", result)
        _require(result.started_ms == node.started_ms, "another start:", result)
        if node.started_ms is not None:
            duration_ms = end.at_ms - node.started_ms
            _require(abs(result.duration_ms - duration_ms) < EPSILON, "another duration:", result)
        if node.map is not None:
            if not self.specs[node.step].keeps:
                shown = {
                    number: item
                    for number, item in items.items()
                    if type(item.end) is not StepSucceeded or item.end.error is not None
                }
                _require(result.left_out == len(items) - len(shown), "others left out:", result)
                items = shown
            _require(len(result.items or ()) == len(items), "other items:", result)
            for number, item in zip(sorted(items), result.items or (), strict=True):
                name = f"{self.specs[node.step].name}[{number}]"
                _require(item.step_name == name, "not", name, ":", item)
                self.check_result(items[number], item)
        else:
            _require(len(result.history) == len(node.attempts), "another history:", result)
            for attempt, shown in zip(node.attempts, result.history, strict=True):
                one = (shown.number, shown.started_ms, shown.queued_ms)
                start = attempt.start
                _require(one == (start.attempt, start.at_ms, start.queued_ms), shown, start)
                error = getattr(attempt.end, "error", None)
                _require(shown.error is error, "another error:", shown, attempt.end)

    def check_replay(self) -> None:
        """Check that the fold of the events is the report."""
        stored = StoredRun([event for _, event, _, _ in self.log])
        report = self.report
        assert report is not None
        again = report_from(stored, lambda _, payload: payload)
        _require(stored.status == report.status, "replayed, the status is", stored.status)
        _require(again.stop_reason == report.stop_reason, "replayed:", again.stop_reason)
        _require([*again] == [*report], "replayed, the steps are", [*again])
        for one, other in zip(
            map(_rounded, again.results), map(_rounded, report.results), strict=True
        ):
            if isinstance(other.output, list) or other.output is None or one == other:
                _require(one == other, "replayed:", one, "not", other)
            else:
                _require(one.output is other.output, "replayed:", one, "not", other)


def _identity(event: Any) -> tuple[Any, ...]:
    """Return what an event and its stored form have in common."""
    names = ("step", "item", "attempt", "at_ms")
    return (type(event).__name__, *(getattr(event, name, None) for name in names))


def _as_stored(notes: list[Any]) -> tuple[list[Any], dict[Any, Any]]:
    """Return notes in order, and apart from them the latest progress of each attempt."""
    progress = {
        (note.step, note.item, note.attempt): note.done
        for note in notes
        if type(note) is StepProgressed
    }
    return [note for note in notes if type(note) is not StepProgressed], progress


def _is(one: object, other: object) -> bool:
    return one is other


def _status_of(end: Any) -> StepStatus:
    return {
        StepSucceeded: SUCCESS,
        StepFailed: FAILED,
        StepCancelled: CANCELLED,
        StepSkipped: SKIPPED,
    }[type(end)]


def _stand_together(one: Step, other: Step) -> bool:
    """Whether two steps are admitted to the same place in line of a pool."""
    return one.pool is not None and (one.pool, one.priority) == (other.pool, other.priority)


def _blocks(end: Any) -> bool:
    """Whether the dependents of a step that ended like this can't run."""
    if type(end) is StepSkipped:
        return not end.by_condition
    return type(end) in (StepFailed, StepCancelled)


def _missed(call: Call, started_ms: float, limit_ms: float, started_s: float) -> float:
    """Return when an attempt misses a heartbeat, if it runs for so long."""
    return _misses(call, started_ms, limit_ms, started_s)[0]


def _misses(call: Call, started_ms: float, limit_ms: float, started_s: float) -> list[float]:
    """Return when it may miss one: a heartbeat that comes just as the limit expires may count."""
    ends_ms = started_ms + limit_ms
    misses = []
    for beat in call.beats:
        at_ms = (beat - started_s) * 1000
        if at_ms > ends_ms + EPSILON:
            break
        if at_ms > ends_ms - EPSILON:
            misses.append(ends_ms)
        ends_ms = at_ms + limit_ms
    return [*misses, ends_ms]


def _rounded(result: StepResult) -> StepResult:
    """Return a result whose queued time, a sum over items, does not depend on their order."""
    return replace(result, queued_ms=round(result.queued_ms, 6))
