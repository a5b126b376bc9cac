"""A run in the Trace Event Format, which Perfetto (ui.perfetto.dev) and chrome://tracing open.

Attempts overlap, so they are nestable async slices: those of a step, or of an item of a mapped
step, have an ``id`` of their own, and viewers draw each id on a line of its own. Times are wall
clock since the run started, so the pauses of a resumed run are as long as they were.

The format: "Trace Event Format" by Google, sections "Async Events" and "Counter Events".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import accumulate, zip_longest
from typing import Any

from asyncflow._core.error_text import describe_error
from asyncflow._core.results import failure_text
from asyncflow._core.step_view import AttemptView, StepView
from asyncflow._core.text import escape_controls
from asyncflow._views.axis import changing_counts
from asyncflow._views.event_text import place_text
from asyncflow._views.run_view import RunView

_Event = dict[str, Any]

_BLOCKED = "event loop blocked"


def to_trace(view: RunView, now_ms: float) -> dict[str, Any]:
    """Return the trace of a run, for `json.dumps`. It has neither inputs nor outputs.

    ``now_ms`` is the present, at which the slices of what runs end, in milliseconds since the run
    started.
    """
    return {
        "traceEvents": [*_Trace(view, now_ms).events()],
        "displayTimeUnit": "ms",
        "otherData": {"run_id": view.run_id, "pipeline": view.pipeline, "status": view.word},
    }


class _Trace:
    def __init__(self, view: RunView, now_ms: float) -> None:
        self._view = view
        self._now_ms = now_ms
        self._pauses_ms = [*accumulate(view.pauses_ms, initial=0.0)]
        """How long the run had paused when each segment began."""

    def events(self) -> Iterator[_Event]:
        """Yield the events in the order of their times; viewers rely on it."""
        pipeline = f" of {self._view.pipeline}" if self._view.pipeline else ""
        name = escape_controls(f"run {self._view.run_id}{pipeline}")
        yield {"ph": "M", "name": "process_name", "pid": 1, "args": {"name": name}}
        # The sort is stable: where times are equal, a slice begins before those in it.
        yield from sorted([*self._of_run(), *self._of_steps(), *self._counter()], key=_time_of)

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
        id_ = f"step {name}"
        for time in step.active:
            number = time.segment
            attempts = [each for each in step.attempts if each.segment == number]
            ended_ms = self._now_ms if time.ended_ms is None else time.ended_ms
            ended_ms = max([ended_ms, *map(self._end_of, attempts)])
            if attempts:
                yield from self._queued(id_, attempts[0])
            yield self._begin(id_, name, time.started_ms, number, _facts(step))
            for attempt, following in zip_longest(attempts, attempts[1:]):
                yield from self._of_attempt(id_, attempt)
                if attempt.retry_in_ms is not None:
                    ready_ms = ended_ms
                    if following is not None:
                        ready_ms = following.started_ms - following.queued_ms
                    from_ms = self._end_of(attempt)
                    yield from self._slice(id_, "backoff", from_ms, max(ready_ms, from_ms), number)
                if following is not None:
                    yield from self._queued(id_, following)
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
            # Rounding aside, one attempt's blocks don't overlap.
            from_ms = max(block.at_ms - block.blocked_ms, latest_ms)
            latest_ms = min(max(block.at_ms, from_ms), ended_ms)
            yield self._begin(id_, _BLOCKED, from_ms, number, {"where": block.where})
            yield self._end(id_, _BLOCKED, latest_ms, number)
        yield self._end(id_, name, ended_ms, number)

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
        return {**self._end(id_, name, at_ms, segment), "ph": "b", "args": facts}

    def _end(self, id_: str, name: str, at_ms: float, segment: int) -> _Event:
        # One category for all: viewers nest only slices of the same category and id.
        ts = self._ts(at_ms, segment)
        return {
            "ph": "e",
            "cat": "asyncflow",
            "id": id_,
            "name": name,
            "pid": 1,
            "tid": 1,
            "ts": ts,
        }

    def _ts(self, at_ms: float, segment: int) -> float:
        """Return a time of a segment in microseconds since the run started, pauses included."""
        return round((at_ms + self._pauses_ms[segment - 1]) * 1000, 3)


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
