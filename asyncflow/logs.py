"""Logging: which step a record belongs to, and the events of a run as records.

`StepFilter` adds the step to every record that is made inside one, `add_step` does the same for
structlog, and `LoggingObserver` logs the events of runs. Inputs and outputs are never logged.
`keep_record` lets a run keep what structlog prints; it keeps what `logging` gets by itself.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, MutableMapping
from functools import cache
from types import TracebackType
from typing import Any, TypeAlias, cast

from asyncflow import events
from asyncflow._core.history.results import to_restored_error
from asyncflow._core.running.context import capturing_notes, current_attempt
from asyncflow._core.tracebacks import has_long_message
from asyncflow._views.event_text import describe_event
from asyncflow.events import Event

__all__ = ["LoggingObserver", "StepFilter", "add_step", "keep_record"]

_NO_STEP: Mapping[str, Any] = {"run_id": "", "step": "", "attempt": None, "item": None}
_ENDS = (events.StepSucceeded, events.StepFailed, events.StepCancelled)
_OF_RECORDS = {*vars(logging.makeLogRecord({})), "message", "asctime"}
"""The attributes that a record has by itself, such as ``process``: `logging` refuses others."""
_LOGGED_TYPES = {"str", "int", "float", "bool", "RunStatus", "StepStatus", "InterruptionCause"}

_ExcInfo: TypeAlias = tuple[type[BaseException], BaseException, TracebackType | None] | None


class StepFilter(logging.Filter):
    """Adds to each record the step that made it; lets every record pass.

    A record that is made in an action, in what the action calls, or in a thread or task that
    inherits its context, gets these attributes. Any other record gets the second value, so that a
    format string may always name them:

    - ``run_id``: the id of the run; or ``""``.
    - ``step``: the name of the step; or ``""``.
    - ``attempt``: the number of the attempt, from 1; or ``None``.
    - ``item``: the index of an item of a mapped step, from 0; or ``None``, even if the step is not
      mapped.

    Attributes that a record already has, such as those of `LoggingObserver`, stay.

    Add it to a handler: a filter of a logger does not see the records of its child loggers. With a
    `logging.handlers.QueueHandler`, add it to that one: the step is unknown behind the queue.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Add the attributes to a record; return ``True``."""
        for name, value in (_current_fields() or _NO_STEP).items():
            record.__dict__.setdefault(name, value)
        return True


def add_step(
    logger: Any, method: str, event_dict: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Add the step that logs to an event: a processor for structlog.

    In an action, and in the threads and tasks that inherit its context, it adds ``run_id``,
    ``step``, ``attempt`` and, for an item of a mapped step, ``item``, unless the event has them.
    Elsewhere it adds nothing.
    """
    for name, value in (_current_fields() or {}).items():
        if value is not None:
            event_dict.setdefault(name, value)
    return event_dict


def keep_record(
    logger: Any, method: str, event_dict: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Have the run keep what a step logs: a processor for a structlog that prints by itself.

    The journals and observers that want log records receive it, with the fields of the event as
    text. Place it before the renderer. Where structlog hands its events to `logging`, they are kept
    without it.
    """
    found = capturing_notes()
    level = logging.getLevelNamesMapping().get(_METHODS.get(method, method.upper()), logging.INFO)
    if found is not None and found[0].level is not None and level >= found[0].level:
        name = event_dict.get("logger") or getattr(logger, "name", None)
        logger_name = name if isinstance(name, str) else "structlog"
        found[0].log(found[1], level, logger_name, event_dict)
    return event_dict


_METHODS = {"exception": "ERROR", "msg": "INFO"}


class LoggingObserver:
    """Logs each event of a run as one line: ``observers=[LoggingObserver()]``.

    Failures are logged as errors, those of steps with their tracebacks. Retries, timeouts, skipped
    and cancelled steps, an interrupted run, a blocked event loop and an abandoned thread are
    logged as warnings: as the ``level`` of the event says. Everything else is logged at the given
    level.

    Each record has the attributes ``run_id``, ``step``, ``attempt`` and ``item``, as with
    `StepFilter`; ``kind``, the name of the event's class in `asyncflow.events`; ``at_ms``, its time
    in milliseconds since the run started; and what else the event says in numbers, in words or as a
    flag, such as ``queued_ms``, ``retry_in_ms``, ``reason``, ``status``, ``engine`` and ``worker``.

    Args:
        logger: The logger, or its name.
        level: The level of ordinary events, or its name, such as ``"DEBUG"``.

    Raises:
        TypeError: The logger is not a logger, or the level neither a number nor a name.
        ValueError: The level is unknown.
    """

    def __init__(
        self, logger: logging.Logger | str = "asyncflow.run", level: int | str = logging.INFO
    ) -> None:
        self._logger = _checked_logger(logger)
        self._level = _checked_level(level)

    def for_run(self) -> _RunLog:
        """Return the observer of one run."""
        return _RunLog(self._logger, self._level)


def _checked_logger(logger: logging.Logger | str) -> logging.Logger:
    if isinstance(logger, str):
        return logging.getLogger(logger)
    if not callable(getattr(logger, "log", None)):  # a LoggerAdapter is welcome
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
        if isinstance(event, events.NoteEvent):
            return  # a log record would be logged twice
        if isinstance(event, events.RunStarted | events.RunResumed):
            self._run_id, self._attempts = event.run_id, event.max_retries
        # A failure stays one if ordinary events are logged as less, or as more.
        level = self._level if event.level == events.INFO else event.level
        if not self._logger.isEnabledFor(level):
            return
        step, kind = event.step or "", cast("Any", type(event))
        extra = {
            **{name: getattr(event, name) for name in _logged_names(kind)},
            "run_id": self._run_id,
            "step": step,
            "attempt": event.attempt,
            "item": event.item,
            "kind": kind.__name__,
            "at_ms": event.at_ms,
        }
        line = describe_event(event, self._attempts.get(step))
        exc_info = _exc_info(event)
        if exc_info is not None and has_long_message(exc_info[1]):  # logging would write all of it
            line, exc_info = f"{line}\n{to_restored_error(exc_info[1]).traceback}", None
        self._logger.log(level, "%s", line, extra=extra, exc_info=exc_info)


@cache
def _logged_names(cls: Any) -> tuple[str, ...]:
    """Return the names of what an event says in numbers, in words or as a flag.

    No input, no output and no error is one of these.
    """
    types = {name: cls.__annotations__[name] for name in cls._fields}
    for name, value in vars(cls).items():
        if isinstance(value, property) and name != "level":
            types[name] = value.fget.__annotations__["return"]
    return tuple(
        name
        for name, hint in types.items()
        if hint.removesuffix(" | None") in _LOGGED_TYPES and name not in _OF_RECORDS
    )


def _exc_info(event: Event) -> _ExcInfo:
    """Return the final error of a step; for one that is retried the line is enough."""
    if not isinstance(event, _ENDS) or event.error is None:
        return None
    # Not the error itself: logging would ask for its truth value, which may raise.
    return type(event.error), event.error, event.error.__traceback__


def _current_fields() -> dict[str, Any] | None:
    found = current_attempt()
    if found is None:
        return None
    run_id, attempt = found
    fields = {"step": attempt.step, "attempt": attempt.attempt, "item": attempt.item}
    return {"run_id": run_id, **fields}
