"""The events that the results of a run imply, for a report that has no history of its own.

That is one which a user has made, which resumed a run, or which a journal has made.

Rules:

1. The replay of these events says what the results say.
2. What results don't tell (a submission to an engine, where the loop was blocked) is left out, or
   put where it is no lie: a skip comes at the end of its segment.
3. An item that its result only counts has no event: who shows the report counts it (`view_of`).
4. Times in results are rounded sums, so no step ends before its attempts have.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from asyncflow._core.record import replace
from asyncflow._core.results import Attempt, RunStatus, StepResult, StepStatus, attempt_end
from asyncflow.events import (
    RECALLED,
    AttemptBegan,
    AttemptFailed,
    AttemptStarted,
    Event,
    LoopBlocked,
    MapStarted,
    ResultReused,
    RunFinished,
    RunInterrupted,
    RunResumed,
    RunStarted,
    StepCancelled,
    StepFailed,
    StepReused,
    StepSkipped,
    StepSucceeded,
    StepWaiting,
    ThreadAbandoned,
)

if TYPE_CHECKING:
    from asyncflow._core.report import RunReport

_ROUNDING_MS = 1e-6
"""By how much a sum of times may differ from the time that it stands for."""
_ENDED = (StepStatus.SUCCESS, StepStatus.FAILED, StepStatus.CANCELLED)


def events_of(report: RunReport) -> Iterator[Event]:
    """Yield the events that the results of a report imply, in order."""
    return _Teller(report).events()


class _Node(NamedTuple):
    """A step, or an item of a mapped step."""

    step: str
    item: int | None
    result: StepResult
    attempts: Sequence[Attempt]
    """Its own; those of a mapped step are its items'."""
    ends_in: int
    """The segment in which it ends, or has to: the latest one, unless its result was reused."""


class _Teller:
    """Tells what has happened in a run, segment by segment."""

    def __init__(self, report: RunReport) -> None:
        self._report = report
        self._segments = report.segments
        self._latest = len(self._segments)
        self._reused: list[Event] = []
        """What a rerun reuses."""
        self._told: list[list[Any]] = [[] for _ in self._segments]
        """What happened to steps, by segment."""
        self._map_starts: dict[str, dict[int, float]] = {}
        """When each mapped step began with its items, by segment."""
        self._anew: dict[int, set[str]] = {}
        """The steps that were interrupted and begin anew, by segment."""
        self._continued: set[int] = set()
        """The segments that continue where the run was: with steps that were interrupted, or with
        failures and skips, which are not reused otherwise."""

    def events(self) -> Iterator[Event]:
        """Yield the events of the run, in order."""
        report = self._report
        for result in report.results:
            self._tell_step(result)
        if report.status is RunStatus.INTERRUPTED:
            self._tell_interruption()
        yield self._start()
        yield from self._reused
        for number, told in enumerate(self._told, 1):
            if number > 1:
                yield self._resumption(number)
            yield from sorted(told, key=lambda event: event.at_ms)  # at once: in order
        if report.status is not RunStatus.RUNNING:
            yield RunFinished(report.total_duration_ms, report.status, report.stop_reason)

    # The run.

    def _start(self) -> RunStarted:
        report = self._report
        return RunStarted(
            report.run_id,
            report.wall_time,
            self._dependencies(),
            report.pipeline,
            inputs=report.inputs,
            max_retries=self._max_retries(),
            secret=self._secret(),
            parent=report.parent,
            parent_step=report.parent_step,
            rerun_of=report.rerun_of,
            label=report.label,
            attributes=report.attributes,
            rerun_reasons=self._reasons() if self._latest == 1 else {},
            process=self._segments[0].process,
        )

    def _resumption(self, number: int) -> RunResumed:
        segment = self._segments[number - 1]
        reasons = self._reasons() if number == self._latest else {}
        anew = self._anew.get(number, set())
        outdated = {name: reasons.get(name, "") for name in anew if number in self._continued}
        return RunResumed(
            self._report.run_id,
            segment.at_ms,
            segment.wall_time,
            self._dependencies(),
            {},
            outdated,
            unfinished={
                name: why
                for name, why in reasons.items()
                if why != RECALLED and name not in outdated
            },
            recalled=tuple([name for name, why in reasons.items() if why == RECALLED]),
            afresh=bool(anew) and not outdated,
            max_retries=self._max_retries(),
            secret=self._secret(),
            process=segment.process,
            attributes=self._report.attributes,
        )

    def _dependencies(self) -> dict[str, tuple[str, ...]]:
        return {result.step_name: result.depends_on for result in self._report.results}

    def _max_retries(self) -> dict[str, int]:
        most = {result.step_name: result.max_retries for result in self._report.results}
        return {name: each for name, each in most.items() if each is not None}

    def _secret(self) -> tuple[str, ...]:
        results = self._report.results
        return tuple([r.step_name for r in results if any(e.secret for e in (r, *(r.items or ())))])

    def _reasons(self) -> dict[str, str]:
        results = self._report.results
        return {each.step_name: each.rerun_reason for each in results if each.rerun_reason}

    def _tell_interruption(self) -> None:
        told, reason = self._told[-1], self._report.stop_reason or "it was interrupted"
        cancelled = [event.at_ms for event in told if isinstance(event, StepCancelled)]
        at_ms = min(cancelled, default=self._report.total_duration_ms)
        told.insert(0, RunInterrupted(at_ms, reason))

    # Steps.

    def _tell_step(self, result: StepResult) -> None:
        name, items = result.step_name, result.items or ()
        former = [attempt for attempt in result.history if attempt.item is not None]
        own = [attempt for attempt in result.history if attempt.item is None]
        of_items = [*former, *[attempt for item in items for attempt in item.history]]
        ends_in = self._latest
        if result.reused:
            ran_in = [attempt.segment for attempt in (*own, *of_items)]
            ends_in = max(ran_in, default=max(self._latest - 1, 1))
            if former and result.items is None:  # it was skipped after the segment of its items
                ends_in = min(ends_in + 1, self._latest)
        step = _Node(name, None, result, own, ends_in)
        self._tell_attempts(step)
        if result.items is not None or former:
            self._tell_maps(step, of_items)
        for (item, segment), attempts in _by_item(former):
            outcome = StepResult(name, StepStatus.PENDING)
            self._tell_attempts(_Node(name, item, outcome, attempts, segment + 1))
        for item, each in _numbered(items):
            self._tell_item(_Node(name, item, each, each.history, ends_in))
        self._tell_earlier_end(step, of_items)
        self._tell_origin(step)
        ended_ms = self._ended_ms(step, [*own, *of_items])
        self._tell_end(step, ended_ms)
        if result.reused:  # also by a start that ran nothing, after the segment in which it ended
            self._tell_reuse(step, self._latest, 0.0 if result.origin else ended_ms)

    def _tell_maps(self, step: _Node, attempts: Iterable[Attempt]) -> None:
        """Tell in which segments a mapped step began with its items."""
        result = step.result
        how_many = None if result.items is None else len(result.items) + result.left_out
        starts = {segment: times[0] for segment, times in _active(attempts).items()}
        if starts and result.started_ms is not None:
            first = min(starts)
            starts[first] = min(starts[first], result.started_ms)
        if result.started_ms is not None or (result.items and not result.origin):
            begin_ms = self._segments[step.ends_in - 1].at_ms
            began_ms = begin_ms if starts or result.started_ms is None else result.started_ms
            starts.setdefault(step.ends_in, began_ms)
            unattempted = [item for item in result.items or () if not item.history]
            if min(starts) > 1 and any(item.reused and not item.origin for item in unattempted):
                # They ended earlier, though nothing says when: their slots could not be had.
                earlier = min(starts) - 1
                starts[earlier] = self._segments[earlier - 1].at_ms
        self._map_starts[step.step] = starts
        for segment, at_ms in starts.items():
            self._tell(segment, MapStarted(step.step, at_ms, how_many, not result.left_out))

    def _tell_earlier_end(self, step: _Node, attempts: Sequence[Attempt]) -> None:
        """Tell the end of a mapped step in the last segment with attempts of it, if it came first.

        Otherwise it would seem to have lasted as long as that segment, because it ends in a later
        one, in which it has not run.
        """
        last = max(_active(attempts), default=step.ends_in)
        if last < step.ends_in:
            at_ms = self._ended_ms(step._replace(ends_in=last), attempts)
            if self._end_of(last) - at_ms > _ROUNDING_MS:
                self._tell(last, StepCancelled(step.step, 0, at_ms, "", None))

    def _tell_item(self, node: _Node) -> None:
        has_map = node.ends_in in self._map_starts[node.step]  # not if a rerun took the step over
        if node.result.reused and has_map:
            begun_in = min(self._map_starts[node.step])
            ran_in = max([attempt.segment for attempt in node.attempts], default=begun_in)
            self._tell_reuse(node, node.ends_in)
            node = node._replace(ends_in=ran_in)
        self._tell_attempts(node)
        self._tell_origin(node)
        if node.attempts or not has_map:
            self._tell_end(node, self._ended_ms(node, node.attempts))
        else:  # its slots could not be had
            self._tell_end(node, self._map_starts[node.step][node.ends_in])

    def _tell_origin(self, node: _Node) -> None:
        """Report from which run the result of a node was reused, if it was."""
        name, item, result, attempts, _ = node
        if not result.origin:
            return
        how_many, there = None, max(result.attempts - len(attempts), 0)
        if attempts:  # then an equal call was found: a rerun has no attempt of what it reuses
            ran_ms = sum([ended - began for began, ended in _active(attempts).values()])
            took_ms, at_ms = max(result.duration_ms - ran_ms, 0.0), self._segments[-1].at_ms
            if item is not None:
                at_ms = max(at_ms, self._map_starts[name][self._latest])
            found = ResultReused(name, at_ms, result.origin, there, took_ms, result.output, item)
            self._tell(self._latest, found)
            return
        if result.items is not None:
            how_many, there = len(result.items) + result.left_out, 0
            if not all(each.origin for each in result.items):
                how_many = None  # no asyncflow has written that
        figures = result.origin, there, result.duration_ms, result.output, item, how_many
        facts = result.secret, result.error, not result.left_out
        self._reused.append(ResultReused(name, 0.0, *figures, *facts))

    def _tell_reuse(self, node: _Node, segment: int, ended_ms: float = 0.0) -> None:
        at_ms, status = max(self._segments[segment - 1].at_ms, ended_ms), node.result.status
        if node.item is not None:
            at_ms = max(at_ms, self._map_starts[node.step][segment])
        elif status is StepStatus.FAILED:
            self._continued.add(segment)
        keeps_outputs = not node.result.left_out
        reused = StepReused(node.step, at_ms, node.item, status, node.result.origin, keeps_outputs)
        self._tell(segment, reused)

    # Attempts.

    def _tell_attempts(self, node: _Node) -> None:
        """Tell the attempts of a node, but for how the last one has ended if the node did so."""
        name, item, result, attempts, ends_in = node
        earliest_ms = -math.inf
        for attempt, later in pairwise([*attempts, None]):
            assert attempt is not None
            # A damaged report may have its attempts in another order.
            began_ms = earliest_ms = max(attempt.started_ms, earliest_ms)
            if began_ms > attempt.started_ms:
                attempt = replace(attempt, started_ms=began_ms)
            self._begin(node, attempt)
            at_ms = attempt.started_ms + attempt.duration_ms
            end = attempt_end(attempt)
            if later is None:
                if attempt.segment == ends_in and result.status in _ENDED and not result.origin:
                    self._remark(node, attempt.segment, attempt.number, at_ms)
                    return
                is_retried = attempt.retry_in_ms is not None or result.status is StepStatus.RUNNING
            else:
                is_retried = later.number > attempt.number
                if end == "crashed" and is_retried:
                    self._continued.add(later.segment)
                elif end == "crashed":
                    self._anew.setdefault(later.segment, set()).add(name)
            if end == "crashed":
                continue  # the next segment tells
            in_segment = later is not None and later.segment == attempt.segment
            told: Event = _end(name, attempt, at_ms, item)
            if attempt.error is not None and (is_retried or in_segment):
                wait_ms = 0.0
                if later is not None and in_segment:
                    at_ms = max(min(at_ms, later.started_ms), began_ms)
                    wait_ms = max(later.started_ms - later.queued_ms - at_ms, 0.0)
                if attempt.retry_in_ms is not None:
                    wait_ms = attempt.retry_in_ms
                told = AttemptFailed(name, attempt.number, at_ms, attempt.error, wait_ms, item)
            self._tell(attempt.segment, told)
        if result.status is StepStatus.RUNNING and result.items is None:
            self._tell_running(node)

    def _begin(self, node: _Node, attempt: Attempt) -> None:
        name, number, item, segment = node.step, attempt.number, node.item, attempt.segment
        at_ms, queued_ms, engine = attempt.started_ms, attempt.queued_ms, attempt.engine
        if engine and item is None:  # it was submitted, and then queued there
            at_ms, queued_ms = at_ms - queued_ms, 0.0
        self._tell(segment, AttemptStarted(name, number, at_ms, queued_ms, item, engine))
        if attempt.worker:
            began = AttemptBegan(name, number, attempt.started_ms, engine, attempt.worker, item)
            self._tell(segment, began)

    def _tell_running(self, node: _Node) -> None:
        """Tell the attempt that runs, which is not in the history; its start is an estimate."""
        result, attempts = node.result, node.attempts
        if result.started_ms is None or result.attempts <= len(attempts):
            return
        number, started_ms, times = 1, result.started_ms, _active(attempts)
        if attempts:
            latest = attempts[-1]
            if self._latest in times:
                started_ms = max(started_ms, times[self._latest][1])
            else:
                ran_ms = sum([ended_ms - began_ms for began_ms, ended_ms in times.values()])
                started_ms = self._report.total_duration_ms - result.duration_ms + ran_ms
            if latest.segment == self._latest or attempt_end(latest) == "crashed":
                number = latest.number + 1
        place = result.engine, result.worker
        running = Attempt(number, started_ms, 0.0, None, 0.0, self._latest, False, None, *place)
        self._begin(node, running)
        self._remark(node, self._latest, number, started_ms)

    def _remark(self, node: _Node, segment: int, number: int, at_ms: float) -> None:
        """Tell what a result says of the whole node, as if it were of one attempt."""
        name, item, result = node.step, node.item, node.result
        if result.abandoned:
            self._tell(segment, ThreadAbandoned(name, number, at_ms, item))
        if result.loop_blocked_ms:
            blocked = LoopBlocked(name, number, at_ms, result.loop_blocked_ms, "", item)
            self._tell(segment, blocked)

    # Ends.

    def _ended_ms(self, node: _Node, attempts: Sequence[Attempt]) -> float:
        """Return when a node ended, which results don't say."""
        times, result = _active(attempts), node.result
        if times and result.started_ms is not None:  # a mapped step begins before its items
            first = min(times)
            times[first] = min(result.started_ms, times[first][0]), times[first][1]
        if node.ends_in not in times:
            if result.started_ms is not None and not times:  # a mapped step without items
                return result.started_ms + result.duration_ms
            return self._end_of(node.ends_in)
        before = [ended - began for at, (began, ended) in times.items() if at < node.ends_in]
        began_ms, latest_ms = times[node.ends_in]
        return max(began_ms + result.duration_ms - sum(before), latest_ms)

    def _end_of(self, number: int) -> float:
        ended_ms = self._segments[number - 1].ended_ms
        return self._report.total_duration_ms if ended_ms is None else ended_ms

    def _tell_end(self, node: _Node, at_ms: float) -> None:
        name, item, result, attempts, ends_in = node
        if result.origin:
            return
        if result.waiting_since is not None:
            since, until = result.waiting_since, result.waiting_until
            deadline_ms = None if until is None else (until - since) * 1000
            self._tell(ends_in, StepWaiting(name, self._end_of(ends_in), since, deadline_ms))
        last = attempts[-1] if attempts and attempts[-1].segment == ends_in else None
        number = attempts[-1].number if attempts else 0
        if last is not None and last.error is not None and last.retry_in_ms is not None:
            ended_ms, wait_ms = last.started_ms + last.duration_ms, last.retry_in_ms
            failed = AttemptFailed(name, number, ended_ms, last.error, wait_ms, item)
            self._tell(ends_in, failed)
        error, reason = result.error, result.reason
        if result.status is StepStatus.SUCCESS:
            output, secret = result.output, result.secret
            self._tell(ends_in, StepSucceeded(name, number, at_ms, output, item, secret, error))
        elif result.status is StepStatus.FAILED:
            failure = error or ValueError("not known")
            self._tell(ends_in, StepFailed(name, number, at_ms, failure, item))
        elif result.status is StepStatus.CANCELLED:
            self._tell(ends_in, StepCancelled(name, number, at_ms, reason or "", error, item))
        elif result.status is StepStatus.SKIPPED:
            at_ms = self._end_of(ends_in)
            self._tell(ends_in, StepSkipped(name, at_ms, reason or "", result.by_condition, item))

    def _tell(self, segment: int, event: Event) -> None:
        self._told[min(segment, self._latest) - 1].append(event)


def _numbered(items: Iterable[StepResult]) -> Iterator[tuple[int, StepResult]]:
    """Yield the results of items with their numbers, which those of before did not have."""
    for at, each in enumerate(items):
        yield at if each.item is None else each.item, each


def _end(name: str, attempt: Attempt, at_ms: float, item: int | None) -> Event:
    """Return how a node ended of which only this attempt is known."""
    if attempt.cancelled:
        return StepCancelled(name, attempt.number, at_ms, "", attempt.error, item)
    if attempt.error is None:
        return StepSucceeded(name, attempt.number, at_ms, None, item)
    return StepFailed(name, attempt.number, at_ms, attempt.error, item)


def _active(attempts: Iterable[Attempt]) -> dict[int, tuple[float, float]]:
    """Return from when to when attempts ran, by segment."""
    times: dict[int, tuple[float, float]] = {}
    for each in sorted(attempts, key=lambda attempt: attempt.segment):
        began_ms, ended_ms = each.started_ms, each.started_ms + each.duration_ms
        earliest_ms, latest_ms = times.get(each.segment, (began_ms, ended_ms))
        times[each.segment] = min(earliest_ms, began_ms), max(latest_ms, ended_ms)
    return times


def _by_item(attempts: Iterable[Attempt]) -> Iterator[tuple[tuple[int, int], list[Attempt]]]:
    """Yield the attempts of items by item and segment, in this order."""

    def key(attempt: Attempt) -> tuple[int, int]:
        return attempt.item or 0, attempt.segment

    for found, group in groupby(sorted(attempts, key=key), key):
        yield found, list(group)
