"""The spans of one run: one for the run, for each step, for each item and for each attempt.

Rules:

1. A span begins and ends when its events say so, not when they are told.
2. No span is current for the run itself. That of an attempt becomes current in the context of the
   attempt, which nobody else sees and which ends with it; so nothing is ever to be put back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from opentelemetry.context import Context, attach
from opentelemetry.trace import (
    Link,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    Tracer,
    get_current_span,
    set_span_in_context,
)

from asyncflow._core.errors import describe_error, escape_controls
from asyncflow._core.results import StepStatus, to_restored_error
from asyncflow._views.event_text import told
from asyncflow.events import (
    AttemptFailed,
    AttemptStarted,
    Event,
    LoopBlocked,
    MapStarted,
    RunFinished,
    RunResumed,
    RunStarted,
    RunTimedOut,
    StepCancelled,
    StepFailed,
    StepReused,
    StepSkipped,
    StepSucceeded,
    ThreadAbandoned,
)
from asyncflow.otel._semconv import (
    ACTION_NAME,
    ATTEMPT,
    ATTEMPT_RESULT,
    BLOCKED_MS,
    ERROR_TYPE,
    EXCEPTION,
    EXCEPTION_MESSAGE,
    EXCEPTION_STACKTRACE,
    EXCEPTION_TYPE,
    ITEM,
    LOOP_BLOCKED,
    PIPELINE_NAME,
    QUEUED_MS,
    REASON,
    RESULT,
    RESUMED,
    RETRY_IN_MS,
    REUSED,
    REUSED_RESULTS,
    RUN,
    RUN_ID,
    STEPS,
    TASK_NAME,
    TASK_RESULT,
    TASK_RUN_ID,
    THREAD_ABANDONED,
    WHERE,
    error_type,
    result_of,
    sendable,
)

__all__ = ["RunSpans"]

_Attributes = dict[str, Any]
_Ended = StepSucceeded | StepFailed | StepCancelled
_Key = tuple[str, int | None]
"""A step and, if it is about one, an item of it."""

_OK = Status(StatusCode.OK)


class _Unit(NamedTuple):
    """A step, or an item of one, that has begun and not ended."""

    span: Span
    context: Context
    """The context in which its span is the current one."""
    attributes: _Attributes
    """What its attempts are known by, too."""


class RunSpans:
    """Makes the spans of one run."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer
        self._zero_ns = 0
        """When the clock of the run stood at 0."""
        self._latest_ns = 0
        """When something was told last."""
        self._run: Span | None = None
        self._context = Context()
        self._run_id: _Attributes = {}
        self._dependencies: Mapping[str, tuple[str, ...]] = {}
        self._units: dict[_Key, _Unit] = {}
        self._attempts: dict[_Key, Span] = {}
        self._begun: dict[str, SpanContext] = {}
        """Of each step that has a span; others will link to it."""
        self._has_timed_out = False
        self._first_failure: tuple[str, str] | None = None
        """Of the first step that failed, the type of its error and what is told of it."""

    def tell(self, event: Event) -> None:
        """Begin or end the spans that an event is about."""
        teller = _TELLERS.get(type(event))
        if teller is not None:
            teller(self, event)

    def enter(self, running: AttemptStarted) -> None:
        """Make the span of an attempt the current one, in the context that this is called in."""
        attach(set_span_in_context(self._attempts[running.step, running.item]))

    def close(self) -> None:
        """End all spans, whose end nothing will tell."""
        units = [unit.span for unit in self._units.values()]
        run = () if self._run is None else (self._run,)
        spans, self._run = [*self._attempts.values(), *units, *run], None
        self._units.clear()
        self._attempts.clear()
        for span in spans:
            with suppress(Exception):  # the others shall end, too
                span.set_status(Status(StatusCode.ERROR, "it was broken off"))
                span.end(self._latest_ns)

    # The run.

    def _start(self, event: RunStarted) -> None:
        self._begin(event, int(event.wall_time * 1e9), {})

    def _resume(self, event: RunResumed) -> None:
        self._begin(event, int(event.wall_time * 1e9), {RESUMED: True})
        self._zero_ns -= round(event.at_ms * 1e6)

    def _begin(self, event: RunStarted | RunResumed, at_ns: int, more: _Attributes) -> None:
        self.close()  # of a stored run, the stretch before
        self._begun.clear()
        self._has_timed_out, self._first_failure = False, None
        self._zero_ns = self._latest_ns = at_ns
        pipeline = event.pipeline
        self._run_id = {RUN_ID: sendable(event.run_id)}
        self._dependencies = event.dependencies
        attributes = {
            **self._run_id,
            ACTION_NAME: RUN,
            STEPS: len(event.dependencies),
            **({PIPELINE_NAME: sendable(pipeline)} if pipeline else {}),
            **more,
        }
        # The conventions' kind is that of what answers a request: within one, the run is a part.
        is_part = get_current_span().get_span_context().is_valid
        self._run = self._tracer.start_span(
            escape_controls(f"{RUN} {pipeline}" if pipeline else RUN),
            kind=SpanKind.INTERNAL if is_part else SpanKind.SERVER,
            attributes=attributes,
            start_time=at_ns,
        )
        self._context = set_span_in_context(self._run)

    def _time_out(self, event: RunTimedOut) -> None:
        self._has_timed_out = True

    def _finish(self, event: RunFinished) -> None:
        run, failure, why = self._run, self._first_failure, event.stop_reason
        assert run is not None  # it has begun
        run.set_attribute(RESULT, result_of(event, has_timed_out=self._has_timed_out))
        if why is not None:
            run.set_attribute(REASON, escape_controls(why))
        if event.outcome == "passed":
            run.set_status(_OK)
        else:
            if failure is not None:
                run.set_attribute(ERROR_TYPE, failure[0])
                why = why or failure[1]
            run.set_status(Status(StatusCode.ERROR, escape_controls(why or "")))
        run.end(self._at_ns(event.at_ms))
        self._run = None

    # Steps and their items.

    def _unit(self, event: Any) -> _Unit:
        """Return the step or item that an event is about; it may begin with that."""
        key = event.step, event.item
        unit = self._units.get(key)
        if unit is None:
            unit = self._units[key] = self._begin_unit(event.step, event.item, event.at_ms)
        return unit

    def _begin_unit(self, step: str, item: int | None, at_ms: float) -> _Unit:
        attributes: _Attributes = {**self._run_id, TASK_NAME: sendable(step)}
        name, links, context = escape_controls(step), None, self._context
        if item is None:
            begun = (self._begun.get(needed) for needed in self._dependencies.get(step, ()))
            links = [Link(each) for each in begun if each is not None]
            attributes[TASK_RUN_ID] = sendable(step)
        else:
            name, context = f"{name} item", self._units[step, None].context
            attributes |= {TASK_RUN_ID: sendable(f"{step}[{item}]"), ITEM: item}
        span = self._tracer.start_span(
            name, context, attributes=attributes, links=links, start_time=self._at_ns(at_ms)
        )
        if item is None:
            self._begun[step] = span.get_span_context()
        return _Unit(span, set_span_in_context(span, context), attributes)

    def _end_unit(self, event: Any, result: str, status: Status, more: _Attributes) -> None:
        span = self._unit(event).span
        span.set_attributes({TASK_RESULT: result, **more})
        span.set_status(status)
        span.end(self._at_ns(event.at_ms))
        del self._units[event.step, event.item]

    def _skip(self, event: StepSkipped) -> None:
        reason = escape_controls(event.reason)
        status = _OK if event.on_purpose else Status(StatusCode.ERROR, reason)
        self._end_unit(event, result_of(event), status, {REASON: reason})

    def _reuse(self, event: StepReused) -> None:
        result, status = REUSED_RESULTS[event.status], _OK
        if event.status in (StepStatus.FAILED, StepStatus.CANCELLED):
            status = Status(StatusCode.ERROR, told(event))
        self._end_unit(event, result, status, {REUSED: True})

    def _end(self, event: _Ended) -> None:
        result, status, more = result_of(event), _OK, {}
        if not isinstance(event, StepSucceeded):
            if isinstance(event, StepCancelled):
                more[REASON] = escape_controls(event.reason)
                status = Status(StatusCode.ERROR, more[REASON])
            else:
                status = Status(StatusCode.ERROR, describe_error(event.error))
                if event.item is None and self._first_failure is None:
                    self._first_failure = error_type(event.error), told(event)
            if event.error is not None:
                more[ERROR_TYPE] = error_type(event.error)
        has_attempt = self._end_attempt(event, result, status, more)
        if isinstance(event, StepFailed) and not has_attempt:
            self._record(self._unit(event).span, event.error, event.at_ms)
        self._end_unit(event, result, status, more)

    # Attempts.

    def _start_attempt(self, event: AttemptStarted) -> None:
        unit = self._unit(event)
        self._attempts[event.step, event.item] = self._tracer.start_span(
            f"{escape_controls(event.step)} attempt {event.attempt}",
            unit.context,
            attributes={
                **unit.attributes,
                ATTEMPT: event.attempt,
                QUEUED_MS: event.queued_ms,
            },
            start_time=self._at_ns(event.at_ms),
        )

    def _fail_attempt(self, event: AttemptFailed) -> None:
        status = Status(StatusCode.ERROR, describe_error(event.error))
        more = {RETRY_IN_MS: event.retry_in_ms, ERROR_TYPE: error_type(event.error)}
        self._end_attempt(event, result_of(event), status, more)

    def _end_attempt(
        self, event: AttemptFailed | _Ended, result: str, status: Status, more: _Attributes
    ) -> bool:
        """End the running attempt, if there is one, and return whether there is."""
        span = self._attempts.pop((event.step, event.item), None)
        if span is None:
            return False
        if not isinstance(event, StepSucceeded) and event.error is not None:
            self._record(span, event.error, event.at_ms)
        span.set_attributes({ATTEMPT_RESULT: result, **more})
        span.set_status(status)
        span.end(self._at_ns(event.at_ms))
        return True

    def _record(self, span: Span, error: BaseException, at_ms: float) -> None:
        if not span.is_recording():
            return
        # By our own means: an error may raise when it is asked for its message.
        shown = to_restored_error(error)
        attributes = {
            EXCEPTION_TYPE: error_type(error),
            EXCEPTION_MESSAGE: sendable(shown.message),
            EXCEPTION_STACKTRACE: sendable(shown.traceback),
        }
        span.add_event(EXCEPTION, attributes, self._at_ns(at_ms))

    def _note(self, event: ThreadAbandoned | LoopBlocked) -> None:
        """Tell something of an attempt, if it has not ended by now."""
        span = self._attempts.get((event.step, event.item))
        if span is None:
            return
        more: _Attributes = {}
        if isinstance(event, LoopBlocked):
            more = {BLOCKED_MS: event.blocked_ms, WHERE: escape_controls(event.where)}
        name = LOOP_BLOCKED if isinstance(event, LoopBlocked) else THREAD_ABANDONED
        span.add_event(name, more, self._at_ns(event.at_ms))

    def _at_ns(self, at_ms: float) -> int:
        self._latest_ns = self._zero_ns + round(at_ms * 1e6)
        return self._latest_ns


_TELLERS: Mapping[type[Event], Callable[[RunSpans, Any], object]] = {
    RunStarted: RunSpans._start,
    RunResumed: RunSpans._resume,
    RunTimedOut: RunSpans._time_out,
    RunFinished: RunSpans._finish,
    MapStarted: RunSpans._unit,
    StepSkipped: RunSpans._skip,
    StepReused: RunSpans._reuse,
    StepSucceeded: RunSpans._end,
    StepFailed: RunSpans._end,
    StepCancelled: RunSpans._end,
    AttemptStarted: RunSpans._start_attempt,
    AttemptFailed: RunSpans._fail_attempt,
    ThreadAbandoned: RunSpans._note,
    LoopBlocked: RunSpans._note,
}
