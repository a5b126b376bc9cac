"""The names of OpenTelemetry's semantic conventions that apply to runs.

They are those for CI/CD pipelines (version 1.43) and for errors. They are copied here because the
package that holds them may change at any time. Names of our own begin with ``asyncflow``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from asyncflow._core.errors import RestoredError, StepTimeoutError
from asyncflow._core.history.results import RunStatus, StepStatus
from asyncflow.events import (
    AttemptFailed,
    RunFinished,
    StepCancelled,
    StepFailed,
    StepSkipped,
    StepSucceeded,
)

PIPELINE_NAME = "cicd.pipeline.name"
ACTION_NAME = "cicd.pipeline.action.name"
RUN = "RUN"
RUN_ID = "cicd.pipeline.run.id"
RUN_STATE = "cicd.pipeline.run.state"
RUN_STATE_EXECUTING = "executing"
RESULT = "cicd.pipeline.result"
TASK_NAME = "cicd.pipeline.task.name"
TASK_RUN_ID = "cicd.pipeline.task.run.id"
TASK_RESULT = "cicd.pipeline.task.run.result"

ERROR_TYPE = "error.type"
EXCEPTION = "exception"
EXCEPTION_TYPE = "exception.type"
EXCEPTION_MESSAGE = "exception.message"
EXCEPTION_STACKTRACE = "exception.stacktrace"

RUN_ATTRIBUTE = "asyncflow.run.attribute"
"""The beginning of the names of a run's own attributes."""
ATTEMPT = "asyncflow.attempt"
ATTEMPT_RESULT = "asyncflow.attempt.result"
ITEM = "asyncflow.item"
QUEUED_MS = "asyncflow.queued_ms"
REASON = "asyncflow.reason"
RESUMED = "asyncflow.resumed"
RETRY_IN_MS = "asyncflow.retry_in_ms"
REUSED = "asyncflow.reused"
FELL_BACK = "asyncflow.fell_back"
STEPS = "asyncflow.steps"
THREAD_ABANDONED = "asyncflow.thread_abandoned"
LOOP_BLOCKED = "asyncflow.loop_blocked"
BLOCKED_MS = "asyncflow.blocked_ms"
WHERE = "asyncflow.where"
ENGINE = "asyncflow.engine"
WORKER = "asyncflow.worker"
BEGAN = "asyncflow.began"
WAITING = "asyncflow.waiting"
CALL = "call"
CALL_NAME = "asyncflow.call.name"
CALL_DURATION_MS = "asyncflow.call.duration_ms"

POOL_NAME = "asyncflow.pool.name"
POOL_KEY = "asyncflow.pool.key"

METRIC_POOL_SHARE = "asyncflow.pool.slots.share"
METRIC_POOL_SIZE = "asyncflow.pool.slots.limit"
METRIC_POOL_IN_USE = "asyncflow.pool.slots.used"
METRIC_POOL_KEY_IN_USE = "asyncflow.pool.key.slots.used"
METRIC_POOL_KEY_WAITING = "asyncflow.pool.key.waiting"
METRIC_POOL_WAITING = "asyncflow.pool.waiting"
METRIC_POOL_PAUSED = "asyncflow.pool.pause.remaining"
METRIC_POOL_RETRIES = "asyncflow.pool.retries.remaining"
METRIC_QUEUE_WAITING = "asyncflow.queue.waiting"
METRIC_QUEUE_DUE = "asyncflow.queue.due"
METRIC_QUEUE_OLDEST_DUE = "asyncflow.queue.oldest_due"
METRIC_QUEUE_BLOCKED_KEYS = "asyncflow.queue.blocked_keys"
METRIC_SERVICE_TAKEN = "asyncflow.service.taken"
METRIC_SERVICE_MAX_RUNS = "asyncflow.service.max_runs"
METRIC_RUN_DURATION = "cicd.pipeline.run.duration"
METRIC_RUNS_ACTIVE = "cicd.pipeline.run.active"
METRIC_ERRORS = "cicd.pipeline.run.errors"
METRIC_STEP_DURATION = "asyncflow.step.duration"
METRIC_ATTEMPTS = "asyncflow.attempts"
METRIC_ATTEMPTS_ACTIVE = "asyncflow.attempts.active"
METRIC_QUEUED = "asyncflow.attempt.queue.duration"

Ended: TypeAlias = StepSucceeded | AttemptFailed | StepFailed | StepCancelled | StepSkipped

_RUN_RESULTS: Mapping[RunStatus, str] = {
    RunStatus.PASSED: "success",
    RunStatus.FAILED: "failure",
    RunStatus.INTERRUPTED: "cancellation",
}
_RESULTS: Mapping[type[Ended], str] = {
    StepSucceeded: "success",
    AttemptFailed: "failure",
    StepFailed: "failure",
    StepCancelled: "cancellation",
    StepSkipped: "skip",
}

REUSED_RESULTS: Mapping[StepStatus, str] = {
    StepStatus.SUCCESS: "success",
    StepStatus.FAILED: "failure",
    StepStatus.CANCELLED: "cancellation",
    StepStatus.SKIPPED: "skip",
}
"""The result of a step that is not run again."""


def result_of(event: Ended | RunFinished, *, has_timed_out: bool = False) -> str:
    """Return the conventions' word for how a run, a step or an attempt ended.

    They have none for a run that waits for a signal.
    """
    if isinstance(event, RunFinished):
        is_late = has_timed_out and event.status is RunStatus.FAILED
        return "timeout" if is_late else _RUN_RESULTS[event.status]
    error = None if isinstance(event, StepSucceeded) else getattr(event, "error", None)
    # A step that is cancelled between two attempts has the error of the first.
    is_late = isinstance(error, StepTimeoutError) and (
        error.kind == "run" or not isinstance(event, StepCancelled)
    )
    return "timeout" if is_late else _RESULTS[type(event)]


def attempt_end(
    event: StepSucceeded | StepFailed | StepCancelled,
) -> StepSucceeded | StepFailed | StepCancelled:
    """Return the event with which the last attempt of a step ended: it failed before a fallback."""
    if isinstance(event, StepSucceeded) and event.error is not None:
        return StepFailed(event.step, event.attempt, event.at_ms, event.error, event.item)
    return event


def error_type(error: BaseException) -> str:
    """Return the qualified name of an error's class; a built-in one has no module."""
    if isinstance(error, RestoredError):
        return error.type_name.removeprefix("builtins.")
    kind = type(error)
    return f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.")


def encodable(text: str) -> str:
    """Return the text with lone surrogates escaped: one prevents the export of a whole batch."""
    return text.encode("utf-8", "backslashreplace").decode()
