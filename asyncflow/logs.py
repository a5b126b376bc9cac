"""Logging: which step a record is of, and the events of a run as records.

`StepFilter` adds the step to every record that is made inside of one, `add_step` does the same for
structlog, and `LoggingObserver` logs what happens in a run. None of them shows an input or an
output.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, MutableMapping
from types import TracebackType
from typing import Any, TypeAlias

from asyncflow._core.context import current_attempt
from asyncflow._views.event_text import told
from asyncflow.events import (
    AttemptFailed,
    Event,
    LoopBlocked,
    RunFinished,
    RunInterrupted,
    RunResumed,
    RunStarted,
    RunTimedOut,
    StepCancelled,
    StepFailed,
    StepSkipped,
    ThreadAbandoned,
)

__all__ = ["LoggingObserver", "StepFilter", "add_step"]

_ExcInfo: TypeAlias = tuple[type[BaseException], BaseException, TracebackType | None] | None


class StepFilter(logging.Filter):
    """Adds to each record the step that has made it, and lets all records pass.

    A record that is made in an action, in what that calls, or in a thread or task that inherits its
    context, has these attributes; any other record has the second value, so that a format string
    may name them anyway:

    - ``run_id``: identifies the run; or ``""``.
    - ``step``: the step's name; or ``""``.
    - ``attempt``: which attempt it is, counted from 1; or ``None``.
    - ``item``: which item of a mapped step it is, counted from 0; or ``None``, as for a step that
      is not mapped.

    What a record says of these by itself, as those of `LoggingObserver` do, is left as it is.

    Add it to a handler: a filter of a logger does not see the records of the loggers below. With a
    `logging.handlers.QueueHandler`, add it to that one: behind the queue nobody knows the step.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Add the attributes to a record, and let it pass."""
        for name, value in (_here() or _NOWHERE).items():
            record.__dict__.setdefault(name, value)
        return True


def add_step(
    logger: Any, method: str, event_dict: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Add the step that logs: a processor for structlog.

    Inside of a step's action, and in the threads and tasks that inherit its context, it adds
    ``run_id``, ``step``, ``attempt`` and, for an item of a mapped step, ``item``, unless the event
    has them. Elsewhere it adds nothing.
    """
    for name, value in (_here() or {}).items():
        if value is not None:
            event_dict.setdefault(name, value)
    return event_dict


class LoggingObserver:
    """Logs each event of a run as one line, for ``observers=[LoggingObserver()]``.

    What is as it should be is logged at the given level; retries, timeouts, skipped and cancelled
    steps, an interrupted run, a blocked event loop and an abandoned thread as warnings; failures
    as errors, those of steps with their tracebacks.

    Beside the line, a record has the attributes ``run_id``, ``step``, ``attempt`` and ``item``, as
    with `StepFilter`; ``kind``, the name of the event's class in `asyncflow.events`; ``at_ms``,
    its time in milliseconds since the run started; and those of the event's own numbers and words
    that it has, such as ``queued_ms``, ``retry_in_ms``, ``reason`` and ``outcome``.

    Args:
        logger: The logger, or its name.
        level: The level of what is as it should be, or its name, such as ``"DEBUG"``.

    Raises:
        TypeError: The logger is none, or the level neither a number nor a name.
        ValueError: There is no level of that name.
    """

    def __init__(
        self, logger: logging.Logger | str = "asyncflow.run", level: int | str = logging.INFO
    ) -> None:
        self._logger = _checked_logger(logger)
        self._level = _checked_level(level)

    def for_run(self) -> _RunLog:
        """Return what logs the events of one run."""
        return _RunLog(self._logger, self._level)


def _checked_logger(logger: logging.Logger | str) -> logging.Logger:
    if isinstance(logger, str):
        return logging.getLogger(logger)
    if not callable(getattr(logger, "log", None)):  # an adapter is as good
        raise TypeError(f"logger must be a Logger or its name, not {type(logger).__name__}")
    return logger


def _checked_level(level: int | str) -> int:
    if isinstance(level, str):
        known = logging.getLevelNamesMapping()
        named = level if level in known else level.upper()
        if named not in known:
            raise ValueError(f"level must be one of {', '.join(known)}, not {level!r}")
        return known[named]
    if not isinstance(level, int) or isinstance(level, bool):
        raise TypeError(f"level must be a number or a name, not {type(level).__name__}")
    return level


class _RunLog:
    def __init__(self, logger: logging.Logger, level: int) -> None:
        self._logger = logger
        self._level = level
        self._run_id = ""
        self._attempts: Mapping[str, int] = {}

    def __call__(self, event: Event) -> None:
        if isinstance(event, RunStarted | RunResumed):
            self._run_id, self._attempts = event.run_id, event.max_retries
        level = self._level_of(event)
        if not self._logger.isEnabledFor(level):
            return
        step = getattr(event, "step", "")
        extra = {
            "run_id": self._run_id,
            "step": step,
            "attempt": getattr(event, "attempt", None),
            "item": getattr(event, "item", None),
            "kind": type(event).__name__,
            "at_ms": getattr(event, "at_ms", 0.0),
            **{name: getattr(event, name) for name in _TOLD_TOO if hasattr(event, name)},
        }
        line = told(event, self._attempts.get(step))
        self._logger.log(level, "%s", line, extra=extra, exc_info=_last_word(event))

    def _level_of(self, event: Event) -> int:
        if isinstance(event, StepFailed):
            return logging.ERROR
        if isinstance(event, RunFinished):
            return _LEVELS.get(event.outcome, self._level)
        if isinstance(event, _WARNINGS) and not getattr(event, "on_purpose", False):
            return logging.WARNING
        return self._level


def _last_word(event: Event) -> _ExcInfo:
    """Return the error that a step ended with; of one that a retry follows, the line is enough."""
    if not isinstance(event, StepFailed | StepCancelled) or event.error is None:
        return None
    # Not the error itself: logging would ask whether it is true, and it may raise.
    return type(event.error), event.error, event.error.__traceback__


def _here() -> dict[str, Any] | None:
    found = current_attempt()
    if found is None:
        return None
    run_id, running = found
    return {
        "run_id": run_id,
        "step": running.step,
        "attempt": running.attempt,
        "item": running.item,
    }


_NOWHERE: Mapping[str, Any] = {"run_id": "", "step": "", "attempt": None, "item": None}
_LEVELS = {"failed": logging.ERROR, "interrupted": logging.WARNING}
_WARNINGS = (
    *(AttemptFailed, StepCancelled, StepSkipped, ThreadAbandoned),
    *(LoopBlocked, RunTimedOut, RunInterrupted),
)
_TOLD_TOO = (
    *("pipeline", "queued_ms", "retry_in_ms", "reason", "on_purpose"),
    *("deadline_ms", "outcome", "stop_reason", "blocked_ms", "where"),
)
