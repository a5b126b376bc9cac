"""A run in the Trace Event Format, which Perfetto (ui.perfetto.dev) and chrome://tracing open.

Steps overlap, so each of them, and each item of a mapped step, is a thread of the trace, on whose
line viewers draw its attempts. An arrow leads from the end of a step to the start of each that
depends on it, and a log record is an instant: viewers draw both for threads only. Times are wall
clock since the run started, so the pauses of a resumed run are as long as they were.

The format: "Trace Event Format" by Google, sections "Duration Events", "Flow Events", "Instant
Events" and "Counter Events".
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from itertools import accumulate
from typing import Any

from asyncflow._core.error_text import describe_error
from asyncflow._core.results import failure_text
from asyncflow._core.step_view import AttemptView, StepView
from asyncflow._core.text import escape_controls
from asyncflow._views.axis import changing_counts
from asyncflow._views.event_text import place_text, subject
from asyncflow._views.notes import log_text
from asyncflow._views.run_view import RunView, backoff_ends
from asyncflow.events import Event, StepLogged

_Event = dict[str, Any]

_BLOCKED = "event loop blocked"


def to_trace(view: RunView, now_ms: float, notes: Iterable[Event] = ()) -> dict[str, Any]:
    """Return the trace of a run, for `json.dumps`. It has neither inputs nor outputs.

    ``now_ms`` is the present, at which the slices of what runs end, in milliseconds since the run
    started. The trace has those of the notes that are log records.
    """
    return {
        "traceEvents": [*_Trace(view, now_ms).events(notes)],
        "displayTimeUnit": "ms",
        "otherData": {"run_id": view.run_id, "pipeline": view.pipeline, "status": view.word},
    }


class _Trace:
    def __init__(self, view: RunView, now_ms: float) -> None:
        self._view = view
        self._now_ms = now_ms
        self._pauses_ms = [*accumulate(view.pauses_ms, initial=0.0)]
        """How long the run had paused when each segment began."""
        self._threads: dict[str, int] = {}
        """The numbers of those of the trace, by name; the first one is the run's."""

    def events(self, notes: Iterable[Event]) -> Iterator[_Event]:
        """Yield the events in the order of their times; viewers rely on it."""
        pipeline = f" of {self._view.pipeline}" if self._view.pipeline else ""
        name = escape_controls(f"run {self._view.run_id}{pipeline}")
        yield {"ph": "M", "name": "process_name", "pid": 1, "args": {"name": name}}
        run, steps, arrows = [*self._of_run()], [*self._of_steps()], [*self._arrows()]
        heads, tails = [head for head, _ in arrows], [tail for _, tail in arrows]
        # The sort is stable: where times are equal, a slice begins before those in it, and an arrow
        # leaves a slice before that ends, and comes to one after that has begun.
        events = [*run, *tails, *steps, *heads, *self._logs(notes), *self._counter()]
        for thread, number in self._threads.items():
            yield self._about_thread("thread_name", number, {"name": thread})
            yield self._about_thread("thread_sort_index", number, {"sort_index": number})
        yield from sorted(events, key=_time_of)

    def _about_thread(self, what: str, number: int, facts: dict[str, Any]) -> _Event:
        return {"ph": "M", "name": what, "pid": 1, "tid": number, "args": facts}

    def _of_run(self) -> Iterator[_Event]:
        segments = self._view.segments
        for number, segment in enumerate(segments, 1):
            ended_ms = self._now_ms if segment.ended_ms is None else segment.ended_ms
            name = "run" if len(segments) == 1 else f"segment {number}"
            yield from self._slice("run", name, segment.at_ms, ended_ms, number)

    def _of_steps(self) -> Iterator[_Event]:
        for step in self._view.steps.values():
            yield from self._of_step(step)
            for item in (step.items or step.former_items).values():
                yield from self._of_step(item)

    def _of_step(self, step: StepView) -> Iterator[_Event]:
        name = escape_controls(step.name)
        id_ = _thread_of(name)
        begins_ms = [segment.at_ms for segment in self._view.segments]
        waits = [*zip(step.attempts, backoff_ends(step, begins_ms, self._now_ms), strict=True)]
        for time in step.active:
            number = time.segment
            attempts = [each for each in waits if each[0].segment == number]
            ended_ms = self._now_ms if time.ended_ms is None else time.ended_ms
            ended_ms = max([ended_ms, *[end or self._end_of(each) for each, end in attempts]])
            if attempts:
                yield from self._queued(id_, attempts[0][0])
            yield self._begin(id_, name, time.started_ms, number, _facts(step))
            for at, (attempt, end_ms) in enumerate(attempts):
                if at:
                    yield from self._queued(id_, attempt)
                yield from self._of_attempt(id_, attempt)
                if end_ms is not None:
                    yield from self._slice(id_, "backoff", self._end_of(attempt), end_ms, number)
            yield self._end(id_, name, ended_ms, number)

    def _queued(self, id_: str, attempt: AttemptView) -> Iterable[_Event]:
        started_ms = attempt.started_ms
        if not attempt.queued_ms:
            return ()
        return self._slice(
            id_, "queued", started_ms - attempt.queued_ms, started_ms, attempt.segment
        )

    def _of_attempt(self, id_: str, attempt: AttemptView) -> Iterator[_Event]:
        name, number = f"attempt {attempt.number}", attempt.segment
        ended_ms = self._end_of(attempt)
        facts: dict[str, Any] = {"end": attempt.end or "running"}
        if attempt.engine:
            facts["on"] = escape_controls(place_text(attempt.engine, attempt.worker))
        if attempt.error is not None:
            facts["error"] = describe_error(attempt.error)
        yield self._begin(id_, name, attempt.started_ms, number, facts)
        latest_ms = attempt.started_ms
        for block in attempt.blocks:
            # But for rounding, one attempt's blocks don't overlap.
            from_ms = max(block.at_ms - block.blocked_ms, latest_ms)
            latest_ms = min(max(block.at_ms, from_ms), ended_ms)
            yield self._begin(id_, _BLOCKED, from_ms, number, {"where": block.where})
            yield self._end(id_, _BLOCKED, latest_ms, number)
        yield self._end(id_, name, ended_ms, number)

    def _arrows(self) -> Iterator[tuple[_Event, _Event]]:
        """Yield the two ends of each arrow: where it comes to, and where it comes from."""
        number = 0
        for step in self._view.steps.values():
            for source in map(self._view.steps.get, step.depends_on):
                if source is None or not source.active or not step.active:
                    continue
                time, begun = source.active[-1], step.active[-1]
                ended_ms = self._now_ms if time.ended_ms is None else time.ended_ms
                if (time.segment, ended_ms) > (begun.segment, begun.started_ms):
                    continue  # it did not wait for this end
                number += 1
                yield (
                    self._arrow_end("f", number, step, begun.started_ms, begun.segment),
                    self._arrow_end("s", number, source, ended_ms, time.segment),
                )

    def _arrow_end(
        self, kind: str, number: int, step: StepView, at_ms: float, segment: int
    ) -> _Event:
        thread = _thread_of(escape_controls(step.name))
        event = self._end(thread, "dependency", at_ms, segment)
        return {**event, "ph": kind, "id": number, "bp": "e"}

    def _logs(self, notes: Iterable[Event]) -> Iterator[_Event]:
        segments = self._view.segments
        for note in notes:
            step = self._view.steps.get(note.step) if isinstance(note, StepLogged) else None
            if step is None or not isinstance(note, StepLogged):
                continue
            number = sum(segment.at_ms <= note.at_ms for segment in segments)
            facts = {"level": logging.getLevelName(note.level), "logger": note.logger}
            event = self._end(_thread_of(subject(note)), log_text(note.message), note.at_ms, number)
            yield {**event, "ph": "i", "s": "t", "args": facts}

    def _counter(self) -> Iterator[_Event]:
        """Yield how many attempts run, each time that this changes."""
        spans = (
            (self._ts(each.started_ms, each.segment), self._ts(self._end_of(each), each.segment))
            for step in self._view.steps.values()
            for each in step.all_attempts()
        )
        for ts, running in changing_counts(spans):
            count = {"attempts": running}
            yield {"ph": "C", "name": "running attempts", "pid": 1, "ts": ts, "args": count}

    def _end_of(self, attempt: AttemptView) -> float:
        return self._now_ms if attempt.ended_ms is None else attempt.ended_ms

    def _slice(
        self, id_: str, name: str, from_ms: float, to_ms: float, segment: int
    ) -> Iterable[_Event]:
        yield self._begin(id_, name, from_ms, segment, {})
        yield self._end(id_, name, to_ms, segment)

    def _begin(
        self, id_: str, name: str, at_ms: float, segment: int, facts: dict[str, Any]
    ) -> _Event:
        return {**self._end(id_, name, at_ms, segment), "ph": "B", "args": facts}

    def _end(self, id_: str, name: str, at_ms: float, segment: int) -> _Event:
        ts = self._ts(at_ms, segment)
        return {
            "ph": "E",
            "cat": "asyncflow",
            "name": name,
            "pid": 1,
            "tid": self._threads.setdefault(id_, len(self._threads) + 1),
            "ts": ts,
        }

    def _ts(self, at_ms: float, segment: int) -> float:
        """Return a time of a segment in microseconds since the run started, pauses included."""
        return round((at_ms + self._pauses_ms[segment - 1]) * 1000, 3)


def _thread_of(step: str) -> str:
    return f"step {step}"


def _time_of(event: _Event) -> float:
    ts: float = event["ts"]
    return ts


def _facts(step: StepView) -> dict[str, Any]:
    facts = {
        "status": str(step.status),
        "depends on": ", ".join(map(escape_controls, step.depends_on)),
        "error": failure_text(step),
        "reason": escape_controls(step.reason or step.rerun_reason or ""),
    }
    return {name: text for name, text in facts.items() if text}
