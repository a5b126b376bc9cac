"""The OpenTelemetry spans of one run: of the run, its steps, their items and attempts.

Rules:

1. A span begins and ends at the times of its events, not when the observer receives them.
2. The span of an attempt becomes current in the context of the attempt, which ends with it, so no
   context has to be restored. No other span becomes current.
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

from asyncflow import events
from asyncflow._core.history.results import RunStatus, StepStatus, to_restored_error
from asyncflow._core.text import describe_error, escape_controls
from asyncflow._views.event_text import describe_event
from asyncflow.otel import _semconv as semconv
from asyncflow.otel._semconv import attempt_end, encodable, error_type, result_of

_Attributes = dict[str, Any]
_Ended = events.StepSucceeded | events.StepFailed | events.StepCancelled
_Key = tuple[str, int | None]
"""A step and, if it is mapped, the index of an item."""

_OK = Status(StatusCode.OK)


class _OpenStep(NamedTuple):
    """A step, or an item of one, whose span is open."""

    span: Span
    context: Context
    """The context in which its span is current."""
    attributes: _Attributes
    """Shared with the spans of its attempts."""


class _Failure(NamedTuple):
    """A step that failed."""

    step: str
    at_ms: float
    error_type: str
    text: str


class RunSpans:
    """Makes the spans of one run."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer
        self._zero_ns = 0
        """The wall-clock time at which the run's clock was 0."""
        self._latest_ns = 0
        """The wall-clock time of the latest event."""
        self._run: Span | None = None
        self._context = Context()
        self._run_id: _Attributes = {}
        self._dependencies: Mapping[str, tuple[str, ...]] = {}
        self._steps: dict[_Key, _OpenStep] = {}
        self._attempts: dict[_Key, Span] = {}
        self._step_contexts: dict[str, SpanContext] = {}
        """Of each step that has a span; the steps that depend on it link to it."""
        self._waiting: dict[str, None] = {}
        """The steps that wait for a signal, which have no span until they end."""
        self._has_timed_out = False
        self._first_failure: _Failure | None = None

    def record(self, event: events.Event) -> None:
        """Begin or end the spans that an event concerns."""
        handler = _HANDLERS.get(type(event))
        if handler is not None:
            handler(self, event)

    def enter(self, running: events.AttemptStarted) -> None:
        """Make the span of an attempt current in the context of the caller."""
        attach(set_span_in_context(self._attempts[running.step, running.item]))

    def close(self) -> None:
        """End all open spans: no event will."""
        steps = [step.span for step in self._steps.values()]
        run = () if self._run is None else (self._run,)
        spans, self._run = [*self._attempts.values(), *steps, *run], None
        self._steps.clear()
        self._attempts.clear()
        for span in spans:
            with suppress(Exception):  # a span processor may raise; the other spans must end too
                span.set_status(Status(StatusCode.ERROR, "did not finish"))
                span.end(self._latest_ns)

    # The run.

    def _begin(self, event: events.RunStarted | events.RunResumed) -> None:
        self.close()  # the segment before, if these are the events of a stored run
        self._step_contexts.clear()
        self._waiting.clear()
        self._has_timed_out, self._first_failure = False, None
        self._zero_ns = self._latest_ns = int(event.wall_time * 1e9)
        pipeline = event.pipeline
        self._run_id = {semconv.RUN_ID: encodable(event.run_id)}
        self._dependencies = event.dependencies
        attributes: _Attributes = {
            **self._run_id,
            semconv.ACTION_NAME: semconv.RUN,
            semconv.STEPS: len(event.dependencies),
        }
        if pipeline:
            attributes[semconv.PIPELINE_NAME] = encodable(pipeline)
        for name, value in event.attributes.items():
            shown = encodable(value) if isinstance(value, str) else value
            attributes[f"{semconv.RUN_ATTRIBUTE}.{name}"] = shown
        if isinstance(event, events.RunResumed):
            attributes[semconv.RESUMED] = True
            self._zero_ns -= round(event.at_ms * 1e6)
        # The conventions ask for SERVER, as of a request; a run within a request is a part of it.
        is_part = get_current_span().get_span_context().is_valid
        self._run = self._tracer.start_span(
            escape_controls(f"{semconv.RUN} {pipeline}" if pipeline else semconv.RUN),
            kind=SpanKind.INTERNAL if is_part else SpanKind.SERVER,
            attributes=attributes,
            start_time=self._latest_ns,
        )
        self._context = set_span_in_context(self._run)

    def _time_out(self, event: events.RunTimedOut) -> None:
        self._has_timed_out = True

    def _finish(self, event: events.RunFinished) -> None:
        run, failure, why = self._run, self._first_failure, event.stop_reason
        assert run is not None  # it has started
        if event.status is RunStatus.WAITING:
            why = f"waits for {', '.join(self._waiting)}"
        else:
            run.set_attribute(semconv.RESULT, result_of(event, has_timed_out=self._has_timed_out))
        if why is not None:
            run.set_attribute(semconv.REASON, escape_controls(why))
        if event.status is RunStatus.PASSED:
            run.set_status(_OK)
        elif event.status is not RunStatus.WAITING:  # whose status stays unset
            if failure is not None:
                run.set_attribute(semconv.ERROR_TYPE, failure.error_type)
                why = why or failure.text
            run.set_status(Status(StatusCode.ERROR, escape_controls(why or "")))
        run.end(self._at_ns(event.at_ms))
        self._run = None

    # Steps and their items.

    def _step(self, event: Any) -> _OpenStep:
        """Return the step or item of an event, whose span may begin with it."""
        key = event.step, event.item
        if key not in self._steps:
            self._steps[key] = self._begin_step(event.step, event.item, event.at_ms)
        return self._steps[key]

    def _begin_step(self, step: str, item: int | None, at_ms: float) -> _OpenStep:
        attributes: _Attributes = {**self._run_id, semconv.TASK_NAME: encodable(step)}
        name, links, context = escape_controls(step), None, self._context
        if item is None:
            begun = (self._step_contexts.get(needed) for needed in self._dependencies.get(step, ()))
            links = [Link(each) for each in begun if each is not None]
            attributes[semconv.TASK_RUN_ID] = encodable(step)
        else:
            name, context = f"{name} item", self._steps[step, None].context
            attributes[semconv.TASK_RUN_ID] = encodable(f"{step}[{item}]")
            attributes[semconv.ITEM] = item
        span = self._tracer.start_span(
            name, context, attributes=attributes, links=links, start_time=self._at_ns(at_ms)
        )
        if item is None:
            self._step_contexts[step] = span.get_span_context()
        return _OpenStep(span, set_span_in_context(span, context), attributes)

    def _wait(self, event: events.StepWaiting) -> None:
        assert self._run is not None
        self._waiting[event.step] = None
        more: _Attributes = {semconv.TASK_NAME: encodable(event.step)}
        if event.refused:
            more[semconv.REASON] = escape_controls(event.refused)
        self._run.add_event(semconv.WAITING, more, self._at_ns(event.at_ms))

    def _end_step(self, event: Any, result: str, status: Status, more: _Attributes) -> None:
        self._waiting.pop(event.step, None)
        span = self._step(event).span
        span.set_attributes({semconv.TASK_RESULT: result, **more})
        span.set_status(status)
        span.end(self._at_ns(event.at_ms))
        del self._steps[event.step, event.item]

    def _skip(self, event: events.StepSkipped) -> None:
        reason = escape_controls(event.reason)
        status = _OK if event.by_condition else Status(StatusCode.ERROR, reason)
        self._end_step(event, result_of(event), status, {semconv.REASON: reason})

    def _reuse(self, event: events.StepReused) -> None:
        result, status = semconv.REUSED_RESULTS[event.status], _OK
        if event.status in (StepStatus.FAILED, StepStatus.CANCELLED):
            status = Status(StatusCode.ERROR, describe_event(event))
        self._end_step(event, result, status, {semconv.REUSED: True})

    def _end(self, event: _Ended) -> None:
        more: _Attributes = {}
        result, status = result_of(event), _OK
        if not isinstance(event, events.StepSucceeded):
            if isinstance(event, events.StepCancelled):
                more[semconv.REASON] = escape_controls(event.reason)
                status = Status(StatusCode.ERROR, more[semconv.REASON])
            else:
                status = Status(StatusCode.ERROR, describe_error(event.error))
                if event.item is None:
                    self._note_failure(event)
            if event.error is not None:
                more[semconv.ERROR_TYPE] = error_type(event.error)
        ended = attempt_end(event)
        if ended is not event:  # it fell back
            assert event.error is not None
            failed = Status(StatusCode.ERROR, describe_error(event.error))
            more[semconv.ERROR_TYPE] = error_type(event.error)
            has_attempt = self._end_attempt(ended, result_of(ended), failed, more)
            more[semconv.FELL_BACK] = True
        else:
            has_attempt = self._end_attempt(event, result, status, more)
        if isinstance(ended, events.StepFailed) and not has_attempt:
            self._add_exception(self._step(event).span, ended.error, event.at_ms)
        self._end_step(event, result, status, more)

    def _note_failure(self, event: events.StepFailed) -> None:
        """Note the first failure: of those at one moment, that of the first step, as in `failures`.

        Steps are in the order of the run, and not in that in which their tasks came to an end.
        """
        first = self._first_failure
        if first is not None:
            names = [*self._dependencies] if event.at_ms == first.at_ms else []
            if not names or names.index(event.step) > names.index(first.step):
                return
        text = describe_event(event)
        self._first_failure = _Failure(event.step, event.at_ms, error_type(event.error), text)

    # Attempts.

    def _start_attempt(self, event: events.AttemptStarted) -> None:
        step = self._step(event)
        self._attempts[event.step, event.item] = self._tracer.start_span(
            f"{escape_controls(event.step)} attempt {event.attempt}",
            step.context,
            attributes=step.attributes
            | {semconv.ATTEMPT: event.attempt, semconv.QUEUED_MS: event.queued_ms}
            | ({semconv.ENGINE: encodable(event.engine)} if event.engine else {}),
            start_time=self._at_ns(event.at_ms),
        )

    def _begin_attempt(self, event: events.AttemptBegan) -> None:
        """Note when and where a body begins whose span began with its submission."""
        span, worker = self._attempts[event.step, event.item], encodable(event.worker)
        span.set_attribute(semconv.WORKER, worker)
        span.add_event(semconv.BEGAN, {semconv.WORKER: worker}, self._at_ns(event.at_ms))

    def _locate_attempt(self, event: events.AttemptLocated) -> None:
        worker = encodable(event.worker)
        self._attempts[event.step, event.item].set_attribute(semconv.WORKER, worker)

    def _fail_attempt(self, event: events.AttemptFailed) -> None:
        status, kind = (
            Status(StatusCode.ERROR, describe_error(event.error)),
            error_type(event.error),
        )
        more = {semconv.RETRY_IN_MS: event.retry_in_ms, semconv.ERROR_TYPE: kind}
        self._end_attempt(event, result_of(event), status, more)

    def _end_attempt(
        self, event: events.AttemptFailed | _Ended, result: str, status: Status, more: _Attributes
    ) -> bool:
        """End the span of the running attempt; return whether there was one."""
        span = self._attempts.pop((event.step, event.item), None)
        if span is None:
            return False
        if not isinstance(event, events.StepSucceeded) and event.error is not None:
            self._add_exception(span, event.error, event.at_ms)
        span.set_attributes({semconv.ATTEMPT_RESULT: result, **more})
        span.set_status(status)
        span.end(self._at_ns(event.at_ms))
        return True

    def _add_exception(self, span: Span, error: BaseException, at_ms: float) -> None:
        if not span.is_recording():
            return
        # Not `record_exception`: an error may raise when asked for its message.
        shown = to_restored_error(error)
        attributes = {
            semconv.EXCEPTION_TYPE: error_type(error),
            semconv.EXCEPTION_MESSAGE: encodable(shown.message),
            semconv.EXCEPTION_STACKTRACE: encodable(shown.traceback),
        }
        span.add_event(semconv.EXCEPTION, attributes, self._at_ns(at_ms))

    def _add_event(self, event: events.ThreadAbandoned | events.LoopBlocked) -> None:
        """Add an event to the span of an attempt, unless that has ended."""
        span = self._attempts.get((event.step, event.item))
        if span is None:
            return
        name, more = semconv.THREAD_ABANDONED, _Attributes()
        if isinstance(event, events.LoopBlocked):
            name, where = semconv.LOOP_BLOCKED, escape_controls(event.where)
            more = {semconv.BLOCKED_MS: event.blocked_ms, semconv.WHERE: where}
        span.add_event(name, more, self._at_ns(event.at_ms))

    def _call(self, event: events.StepCalled) -> None:
        """Add a call by name to the span of its step or item, unless that has ended."""
        step = self._steps.get((event.step, event.item))
        if step is None:
            return
        more: _Attributes = {
            semconv.CALL_NAME: encodable(event.name),
            semconv.CALL_DURATION_MS: event.duration_ms,
            semconv.ATTEMPT: event.attempt,
        }
        step.span.add_event(semconv.CALL, more, self._at_ns(event.at_ms))

    def _at_ns(self, at_ms: float) -> int:
        self._latest_ns = self._zero_ns + round(at_ms * 1e6)
        return self._latest_ns


_HANDLERS: Mapping[type[events.Event], Callable[[RunSpans, Any], object]] = {
    events.RunStarted: RunSpans._begin,
    events.RunResumed: RunSpans._begin,
    events.RunTimedOut: RunSpans._time_out,
    events.RunFinished: RunSpans._finish,
    events.MapStarted: RunSpans._step,
    events.StepWaiting: RunSpans._wait,
    events.StepSkipped: RunSpans._skip,
    events.StepReused: RunSpans._reuse,
    events.StepSucceeded: RunSpans._end,
    events.StepFailed: RunSpans._end,
    events.StepCancelled: RunSpans._end,
    events.AttemptStarted: RunSpans._start_attempt,
    events.AttemptBegan: RunSpans._begin_attempt,
    events.AttemptLocated: RunSpans._locate_attempt,
    events.AttemptFailed: RunSpans._fail_attempt,
    events.ThreadAbandoned: RunSpans._add_event,
    events.LoopBlocked: RunSpans._add_event,
    events.StepCalled: RunSpans._call,
}
