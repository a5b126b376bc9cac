"""Every exception that asyncflow raises itself.

A step's own exception is never wrapped in one of these: it is kept as it was raised.
All of them can be pickled, and what a message tells in words stands in attributes too.

What names, values and errors read like in one line, whatever they hold or raise.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Literal, TypeAlias

__all__ = [
    "ActionNotAwaitableError",
    "CyclicDependencyError",
    "HangError",
    "IllegalEventError",
    "JournalError",
    "LeaseLostError",
    "OutputNotAwaitedError",
    "PayloadError",
    "RestoredError",
    "ResultRefusedError",
    "RunAlreadyActiveError",
    "RunCancelledError",
    "RunNotFoundError",
    "StepCancelledError",
    "StepCrashedError",
    "StepTimeoutError",
    "describe_error",
    "describe_fully",
    "did_you_mean",
    "escape_controls",
    "name_suffix",
    "safe_text",
]


class CyclicDependencyError(ValueError):
    """The steps depend on each other in a circle, so no order of them exists.

    Attributes:
        cycle: The names along the circle, each one a dependency of the next. The first and
            the last name are the same: ``["a", "b", "a"]``.
    """

    def __init__(self, cycle: list[str]) -> None:
        super().__init__(cycle)
        self.cycle = cycle

    def __str__(self) -> str:
        return f"steps depend on each other in a circle: {' -> '.join(self.cycle)}"


class StepTimeoutError(TimeoutError):
    """An attempt took longer than it may.

    Only the run raises it. A ``TimeoutError`` that the step raised by itself is kept as it is,
    so the two can be told apart. If the step's clean-up raised while the limit cancelled it,
    that exception is the ``__cause__``.

    Attributes:
        step_name: The step; with its number, ``fetch[3]``, for an item of a mapped step.
        attempt: Which attempt it was, counted from 1; 0 for a mapped step as a whole.
        timeout_ms: The limit that was exceeded, in milliseconds.
        kind: Which limit that was: ``"attempt"`` (the step's ``timeout_ms``), ``"step"`` (its
            ``deadline_ms``), ``"heartbeat"`` (its ``heartbeat_ms``) or ``"run"`` (the run's
            ``deadline_ms``).
    """

    def __init__(
        self, step_name: str, attempt: int, timeout_ms: float, kind: TimeoutKind = "attempt"
    ) -> None:
        who = f"attempt {attempt} of step {step_name!r}" if attempt else f"step {step_name!r}"
        what = _EXCEEDED[kind].format(who=who, step=repr(step_name), attempt=attempt)
        # One argument only: OSError, the base of TimeoutError, reads two as errno and text.
        super().__init__(f"{what} {timeout_ms:g} ms")
        self.step_name = step_name
        self.attempt = attempt
        self.timeout_ms = timeout_ms
        self.kind: TimeoutKind = kind

    def __reduce__(self) -> tuple[object, ...]:
        state = self.__dict__
        return type(self), (self.step_name, self.attempt, self.timeout_ms, self.kind), state


TimeoutKind: TypeAlias = Literal["attempt", "step", "heartbeat", "run"]

_EXCEEDED: dict[TimeoutKind, str] = {
    "attempt": "{who} exceeded",
    "step": "step {step} exceeded, in attempt {attempt}, its deadline of",
    "heartbeat": "{who} gave no heartbeat for",
    "run": "{who} was running when the run exceeded its deadline of",
}


class ResultRefusedError(Exception):
    """An attempt returned a value that the step's ``Retry(until=...)`` did not accept.

    Attributes:
        step_name: The step.
        attempt: Which attempt it was, counted from 1.
        result: What it returned.
    """

    def __init__(self, step_name: str, attempt: int, result: object) -> None:
        super().__init__(step_name, attempt, result)
        self.step_name = step_name
        self.attempt = attempt
        self.result = result

    def __str__(self) -> str:
        return (
            f"attempt {self.attempt} of step {self.step_name!r} returned a value that its "
            "Retry(until=...) did not accept"
        )


class StepCancelledError(Exception):
    """A step raised ``CancelledError`` although nobody had asked the run to stop.

    The step cancelled its own task, or it awaited something that somebody else cancelled. The
    ``CancelledError`` is the ``__cause__``. This is an ordinary failure, not a cancellation, so
    it is retried and it is no ``CancelledError``.

    Attributes:
        step_name: The step.
        attempt: Which attempt it was, counted from 1.
    """

    def __init__(self, step_name: str, attempt: int) -> None:
        super().__init__(step_name, attempt)
        self.step_name = step_name
        self.attempt = attempt

    def __str__(self) -> str:
        return (
            f"attempt {self.attempt} of step {self.step_name!r} was cancelled from inside: "
            "it cancelled its own task or awaited something that was cancelled"
        )


class ActionNotAwaitableError(TypeError):
    """An action was called and returned something that cannot be awaited.

    The call has had its effect by then, so it is not retried.

    Attributes:
        step_name: The step.
        returned: The name of the type that the action returned.
    """

    def __init__(self, step_name: str, returned: str) -> None:
        super().__init__(step_name, returned)
        self.step_name = step_name
        self.returned = returned

    def __str__(self) -> str:
        return (
            f"the action of step {self.step_name!r} returned {self.returned}, which cannot be "
            "awaited; make it 'async def', or say runs_in=\"thread\" if it is a plain function"
        )


class OutputNotAwaitedError(TypeError):
    """An action returned a coroutine: somebody has forgotten an ``await``, so that did not run.

    It is not retried, since the next attempt would forget it too.

    Attributes:
        step_name: The step.
        returned: The name of the coroutine.
    """

    def __init__(self, step_name: str, returned: str) -> None:
        super().__init__(step_name, returned)
        self.step_name = step_name
        self.returned = returned

    def __str__(self) -> str:
        return (
            f"the action of step {self.step_name!r} returned the coroutine {self.returned} without "
            "having awaited it; put an 'await' before the call"
        )


class RestoredError(Exception):
    """Stands for an exception that did not survive a trip through JSON or pickle.

    Attributes:
        type_name: The qualified name of the original's class.
        message: What ``str()`` of the original gave.
        traceback: The original's formatted traceback, or an empty string.
    """

    def __init__(self, type_name: str, message: str, traceback: str = "") -> None:
        super().__init__(type_name, message, traceback)
        self.type_name = type_name
        self.message = message
        self.traceback = traceback

    def __str__(self) -> str:
        return f"{self.type_name}: {self.message}"


class StepCrashedError(Exception):
    """The process died, or its journal failed, or it lost the run, while a step was running.

    It stands in the history of a resumed run for each attempt that was cut short so. A step that
    was cut short more often than its ``max_crashes`` fails with it.

    Attributes:
        step_name: The step; with its number, ``fetch[3]``, for an item of a mapped step.
        attempt: Which attempt it was, counted from 1.
        crashes: How many of its attempts were cut short so, up to this one.
    """

    def __init__(self, step_name: str, attempt: int, crashes: int) -> None:
        super().__init__(step_name, attempt, crashes)
        self.step_name = step_name
        self.attempt = attempt
        self.crashes = crashes

    def __str__(self) -> str:
        times = "" if self.crashes == 1 else f", as {self.crashes} of its attempts were"
        return (
            f"attempt {self.attempt} of step {self.step_name!r} was cut short with its process or "
            f"its journal{times}"
        )


class JournalError(Exception):
    """A journal could not read or write.

    The message says what happened, and what is safe. What was committed before stays committed:
    once the cause is mended, the same run can be started again under its id.

    Attributes:
        journal: Which journal it is: its file, or its address without the password.
    """

    def __init__(self, journal: str, problem: str) -> None:
        super().__init__(journal, problem)
        self.journal = journal
        self.problem = problem

    def __str__(self) -> str:
        return f"journal {self.journal}: {self.problem}"


class LeaseLostError(JournalError):
    """Another process has taken over the run, which this one did not keep alive in time."""


class RunAlreadyActiveError(Exception):
    """Another run with the same id is going on, here or in another process.

    Attributes:
        run_id: The run.
        owner: Who runs it.
    """

    def __init__(self, run_id: str, owner: str) -> None:
        super().__init__(run_id, owner)
        self.run_id = run_id
        self.owner = owner

    def __str__(self) -> str:
        return (
            f"run {self.run_id!r} is active in {self.owner}; to wait until it has ended there, say "
            'on_active="wait"'
        )


class RunCancelledError(Exception):
    """Somebody has cancelled the run through its journal, with ``journal.cancel(run_id)``.

    Its steps have ended, clean-up included, and that is kept. A step that awaited the run and fails
    with this error is not retried, since that would go on with what was to be stopped.

    Attributes:
        run_id: The run.
    """

    def __init__(self, run_id: str) -> None:
        super().__init__(run_id)
        self.run_id = run_id

    def __str__(self) -> str:
        return (
            f"run {self.run_id!r} was cancelled through its journal; start it again under its id "
            "to go on with it"
        )


class RunNotFoundError(LookupError):
    """A journal has no run with that id.

    Attributes:
        run_id: The id.
        journal: Which journal it is.
    """

    def __init__(self, run_id: str, journal: str, hint: str = "") -> None:
        super().__init__(run_id, journal, hint)
        self.run_id = run_id
        self.journal = journal
        self.hint = hint

    def __str__(self) -> str:
        return f"journal {self.journal} has no run {self.run_id!r}{self.hint}"


class PayloadError(Exception):
    """A value can't be kept in a journal, or not be read from it again.

    Attributes:
        subject: What it is: ``the output of step 'load'``.
        problem: What is wrong with it, and what can be done about it.
    """

    def __init__(self, subject: str, problem: str) -> None:
        super().__init__(subject, problem)
        self.subject = subject
        self.problem = problem

    def __str__(self) -> str:
        return f"{self.subject} {self.problem}"


class IllegalEventError(RuntimeError):
    """An event cannot happen to a step, or to a run, in the state that it is in.

    The event was refused and has changed nothing.

    Attributes:
        event: The refused event.
        state: In one or two words, the state that refused it.
    """

    def __init__(self, event: object, state: str) -> None:
        super().__init__(event, state)
        self.event = event
        self.state = state

    def __str__(self) -> str:
        return f"{self.event!r} cannot happen: {self.state}"


class HangError(RuntimeError):
    """In virtual time: nothing can ever happen again, and something still waits.

    Attributes:
        waiting: For each task, its name and where it waits.
    """

    def __init__(self, waiting: list[str]) -> None:
        super().__init__(waiting)
        self.waiting = waiting

    def __str__(self) -> str:
        return "\n  ".join(["nothing can ever happen again, but these tasks wait:", *self.waiting])


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `` (did you mean 'x'?)`` for the likeliest misspelling, or an empty string."""
    import difflib  # only an error message needs it, and it takes a while to import

    found = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {found[0]!r}?)" if found else ""


# What would end a line, move the cursor, turn the direction of writing or could not be printed.
# Less than what `str.isprintable` refuses: the joiners of emoji and of Persian are harmless.
_UNSAFE = "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"


def escape_controls(text: str) -> str:
    r"""Return the text with its control characters written as Python writes them: ``\n``."""
    return re.sub(_UNSAFE, lambda found: found[0].encode("unicode_escape").decode(), text)


def describe_error(error: BaseException) -> str:
    """Return ``ErrorType: message`` in one line, even of an error that cannot be printed."""
    name, message = type(error).__name__, safe_text(str, error)
    if isinstance(error, RestoredError):
        name, message = error.type_name.rpartition(".")[2], error.message
    lines = message.strip().splitlines()
    return escape_controls(f"{name}: {lines[0]}" if lines else name)


def describe_fully(error: BaseException) -> str:
    """Return ``ErrorType: message`` in one line, all of the message."""
    return escape_controls(f"{type(error).__name__}: {safe_text(str, error)}")


def safe_text(render: Callable[[object], str], value: object) -> str:
    """Return what ``str`` or ``repr`` gives for the value, or a placeholder if that raises."""
    try:
        return render(value)
    except Exception as error:  # it is the user's object: whatever it raises must not spread
        return f"<{type(value).__name__}, whose {render.__name__} raised {type(error).__name__}>"


def name_suffix(function: object) -> str:
    """Return the name of a function after a blank, or nothing if it has none, as a lambda."""
    name = getattr(function, "__name__", "")
    return f" {name}" if name.isidentifier() else ""
