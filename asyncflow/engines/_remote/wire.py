"""What travels between a run and a worker: the call, and the answer.

Both are bytes to the engine that moves them. They may hold secrets, and no ``repr`` here shows any.
"""

from __future__ import annotations

import io
import pickle
from types import CodeType
from typing import Any, Literal, TypeAlias

from asyncflow._core.errors import MissingExtraError, NotSendableError
from asyncflow._core.history.log import StartedAttempt
from asyncflow._core.pipeline.step import RunIf, RunsIn
from asyncflow._core.record import record, values_by_name
from asyncflow._core.running.checkpoints import SentCheckpoint
from asyncflow._core.running.context import SentError
from asyncflow._core.text import describe_fully
from asyncflow._core.tracebacks import format_error

try:
    import cloudpickle  # type: ignore[import-untyped]
except ModuleNotFoundError as missing:  # pragma: no cover - the tests have it
    raise MissingExtraError(
        "engines send actions with cloudpickle, which comes with an extra: "
        "pip install 'asyncflow-tiers[cloudpickle]'",
        name=missing.name,
    ) from missing

FORMAT = 4
"""Changes with the head of a call. A worker may have another version of asyncflow."""

Version: TypeAlias = tuple[int, int]
"""The major and the minor version of a Python."""


class PackedCall(bytes):
    """A call, as it is sent. Its ``repr``, which an engine may log, shows nothing of it."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<PackedCall of {len(self):,} bytes>"

    __str__ = __repr__

    def __reduce__(self) -> Any:
        return PackedCall, (bytes(self),)


@record
class Sent:
    """The head of a call: what a worker must know of the attempt beside the action."""

    run_id: str
    running: StartedAttempt
    max_retries: int
    run_if: RunIf
    runs_in: RunsIn
    limit_s: float | None
    deadline_s: float | None
    sent_at_s: float
    """The wall-clock time when the call was packed."""
    heartbeat_ms: float | None
    notes: tuple[int | None, bool] | None
    """The lowest level of log records, and whether printed lines are taken; ``None`` if nothing
    takes notes."""
    keep_bytes: int | None
    """An output that is larger may stay where it was made; ``None`` if none may."""
    last_error: SentError | None = None
    """What the attempt before failed with."""
    checkpoint: SentCheckpoint | None = None
    """What the attempts before have saved."""

    @property
    def name(self) -> str:
        """The name of the step."""
        return self.running[0]


@record
class Answer:
    """What came of a call; it can be pickled, without the output of which it says that it stays.

    ``"returned"``, ``"raised"``: with the output or the error. ``"kept"``: the output, in `kept`,
    stays in the worker. ``"failed"``: something can't be sent, which `text` says. ``"not run"``:
    the body has not begun, and never will.
    """

    kind: Literal["returned", "kept", "raised", "failed", "not run"]
    content: bytes = b""
    """The output or the error, pickled; empty if the error can't be."""
    kept: Any = None
    size: int = 0
    """About how many bytes `kept` has."""
    subject: str = ""
    """What can't be sent."""
    text: tuple[str, str, str] = ("", "", "")
    """Of an error: its type, its message, and its traceback."""
    worker: str = ""
    notes: list[tuple[Any, ...]] | None = None
    """What the attempt said: each a method of the notes, and its arguments."""
    checkpoint: tuple[str, bytes] | None = None
    """What the attempt saved last, encoded."""
    is_abandoned: bool = False
    """Whether the thread of the attempt still runs; `AttemptHost.thread_ended` reports its end."""

    def __repr__(self) -> str:
        return f"<Answer {self.kind!r} of {len(self.content):,} bytes>"

    def __reduce__(self) -> Any:
        values = values_by_name(self) | {"kept": None}
        return Answer, tuple(values.values())


def failed(subject: str, error: BaseException, worker: str, advice: str = "") -> Answer:
    text = "", describe_fully(error) + advice, format_error(error)
    return Answer("failed", subject=subject, text=text, worker=worker)


def other_python(ours: Version, theirs: Version) -> str:
    return (
        f"it is not importable, so its code would be sent from Python {ours[0]}.{ours[1]} to "
        f"{theirs[0]}.{theirs[1]}, which may crash; define it at the top of a module that both "
        "have, or run the same version on both sides"
    )


def cannot_send(name: str, subject: str, error: BaseException) -> NotSendableError:
    return NotSendableError(name, subject, describe_fully(error))


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]  # it has no types
    """Notes which code it writes by value."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self.code = ""

    def reducer_override(self, obj: Any) -> Any:
        if type(obj) is CodeType and not self.code:
            self.code = obj.co_qualname
        return super().reducer_override(obj)


def dump(value: object, file: io.BytesIO | None = None) -> tuple[bytes, str]:
    """Return a pickle of a value, and the name of a function whose code it has, if it has any."""
    file = file or io.BytesIO()
    pickler = _Pickler(file)
    pickler.dump(value)
    return file.getvalue(), pickler.code
