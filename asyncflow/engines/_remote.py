"""The far side of the engines: packs an attempt, runs it in a worker, and brings its answer home.

The engine moves two things, which are bytes to it: the call, from the run to a worker, and the
answer, back. What the action does is part of the answer, so the engine never sees an error of it.

Rules:

1. A worker reads the head of a call first, which has types of Python alone. A function that was
   sent by value has code that only the same minor version of Python can run: another one may crash.
   So it is refused before it is loaded.
2. The action, its arguments and its output may be secret. No ``repr`` here shows them.
3. The clocks of two machines are compared only to find out how long a call waited for its worker,
   which a deadline includes. All other times are measured where they count.
"""

from __future__ import annotations

import asyncio
import io
import math
import pickle
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import CodeType, CoroutineType
from typing import Any, Literal, Protocol, TypeAlias

from asyncflow._core.context import (
    AttemptExtras,
    RunContext,
    StartedAttempt,
    capturing_notes,
    enter_attempt,
    enter_run,
)
from asyncflow._core.errors import (
    NotSendableError,
    RestoredError,
    describe_fully,
    safe_text,
)
from asyncflow._core.graph import Dependents, Plan
from asyncflow._core.record import record, replace, values_by_name
from asyncflow._core.remote_output import RemoteOutput
from asyncflow._core.step import RunIf, RunsIn, WorkflowStep
from asyncflow._core.tracebacks import format_error, strip_internal_frames
from asyncflow._runtime import worker_process as _child
from asyncflow._runtime.asyncio_compat import cancel_requested, clock_of
from asyncflow._runtime.engine import EngineCall
from asyncflow._runtime.log_capture import capture
from asyncflow._runtime.step_runner import checked_awaitable, refuse_unawaited
from asyncflow._runtime.workers import ThreadEnd, run_in_process, run_in_thread
from asyncflow.engines._remote_notes import Pulse, RemoteNotes

try:
    import cloudpickle  # type: ignore[import-untyped]
except ModuleNotFoundError as missing:  # pragma: no cover - the tests have it
    raise ModuleNotFoundError(
        "engines send actions with cloudpickle, which is not installed; "
        "install asyncflow-tiers[dask] or asyncflow-tiers[cloudpickle]",
        name=missing.name,
    ) from missing

__all__ = [
    "Answer",
    "AttemptHost",
    "PackedCall",
    "check_sendable",
    "pack_call",
    "run_packed",
    "unpack_answer",
]

_FORMAT = 1
"""Changes with the head of a call. A worker may have another version of asyncflow."""

_Version: TypeAlias = tuple[int, int]


class AttemptHost(Protocol):
    """What an engine does for an attempt in its worker. All of it is called in the worker's loop.

    Attributes:
        worker: The name of the worker.
    """

    worker: str

    async def begin(self) -> bool:
        """Ask whether the body may begin; the engine reports at home that it does."""
        ...

    def beat(self) -> None:
        """Pass on a heartbeat. It is called a few times for each ``heartbeat_ms``."""
        ...

    def thread_ended(self) -> None:
        """Report at home that the thread which the attempt has abandoned has ended."""
        ...


class PackedCall(bytes):
    """A call, as it is sent. Its ``repr``, which an engine may log, shows nothing of it."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<PackedCall of {len(self):,} bytes>"

    __str__ = __repr__

    def __reduce__(self) -> Any:
        return PackedCall, (bytes(self),)


@record
class _Sent:
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

    @property
    def name(self) -> str:
        """The name of the step."""
        return self.running[0]


# At home, before the call.


def check_sendable(step: WorkflowStep) -> None:
    """Check that the action of a step can be sent to a worker.

    Raises:
        NotSendableError: It can't.
    """
    try:
        _dump(step.action)
    except Exception as error:  # whatever its objects raise
        raise _cannot_send(step.name, "its action", error) from error


def pack_call(call: EngineCall, keep_bytes: int | None) -> PackedCall:
    """Return a call as a worker receives it, without the arguments that stayed on the engine.

    Args:
        call: The call.
        keep_bytes: The size in bytes above which an output stays where it was made, if the call
            says that it may; ``None`` if it never stays.

    Raises:
        NotSendableError: The action or an argument can't be sent.
    """
    step, notes = call.step, call.notes
    sent = _Sent(
        call.run_id,
        tuple(call.running),  # type: ignore[arg-type]  # it may be the event
        step.max_retries,
        step.run_if,
        step.runs_in,
        call.limit_s,
        call.deadline_s,
        time.time(),
        None if call.beat is None else step.heartbeat_ms,
        None if notes is None else (notes.level, notes.prints),
        keep_bytes if call.may_keep else None,
    )
    own = {n: v for n, v in call.arguments.items() if not isinstance(v, RemoteOutput)}
    try:
        content, code = _dump((step.action, own))
    except Exception as error:  # whatever their objects raise
        raise _first_unsendable(step, own) or _cannot_send(step.name, "the call", error) from error
    head = _FORMAT, sys.version_info[:2], code, tuple(values_by_name(sent).values()), content
    return PackedCall(pickle.dumps(head, pickle.HIGHEST_PROTOCOL))


def _first_unsendable(step: WorkflowStep, own: Mapping[str, Any]) -> NotSendableError | None:
    parts = {"its action": step.action} | {f"argument {n!r}": v for n, v in own.items()}
    for subject, part in parts.items():
        try:
            _dump(part)
        except Exception as error:
            return _cannot_send(step.name, subject, error)
    return None


def _cannot_send(name: str, subject: str, error: BaseException) -> NotSendableError:
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


def _dump(value: object, file: io.BytesIO | None = None) -> tuple[bytes, str]:
    """Return a pickle of a value, and the name of a function whose code it has, if it has any."""
    file = file or io.BytesIO()
    pickler = _Pickler(file)
    pickler.dump(value)
    return file.getvalue(), pickler.code


# In the worker.


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
    is_abandoned: bool = False
    """Whether the thread of the attempt still runs; `AttemptHost.thread_ended` reports its end."""

    def __repr__(self) -> str:
        return f"<Answer {self.kind!r} of {len(self.content):,} bytes>"

    def __reduce__(self) -> Any:
        values = values_by_name(self) | {"kept": None}
        return Answer, tuple(values.values())


async def run_packed(packed: bytes, arguments: Mapping[str, Any], host: AttemptHost) -> Answer:
    """Make the attempt of a call, in a task of its own in the worker's event loop.

    Cancelling the task stops the body and awaits its clean-up; a thread is told, and abandoned when
    the time of the attempt is up.

    Args:
        packed: The call.
        arguments: Those that stayed on the engine, by parameter.
        host: The engine, in this worker.
    """
    form, version, code, fields, content = pickle.loads(packed)
    if form != _FORMAT:
        problem = "the worker has another version of asyncflow; install the same one"
        return Answer("failed", subject="the call", text=("", problem, ""), worker=host.worker)
    sent = _Sent(*fields)
    if code and version != sys.version_info[:2]:
        return Answer(
            "failed",
            subject=f"the function {code}",
            text=("", _other_python(version, sys.version_info[:2]), ""),
            worker=host.worker,
        )
    try:
        action, own = pickle.loads(content)
    except BaseException as error:
        strip_internal_frames(error)
        return _failed("its action, or an argument,", error, host.worker)
    try:
        may_begin = await host.begin()
    except asyncio.CancelledError:
        may_begin = False
    if not may_begin:
        return Answer("not run", worker=host.worker)
    return await _Body(sent, version, action, {**own, **arguments}, host).run()


def _other_python(ours: _Version, theirs: _Version) -> str:
    return (
        f"it is not importable, so its code would be sent from Python {ours[0]}.{ours[1]} to "
        f"{theirs[0]}.{theirs[1]}, which may crash; define it at the top of a module that both "
        "have, or run the same version on both sides"
    )


def _failed(subject: str, error: BaseException, worker: str) -> Answer:
    text = "", describe_fully(error), format_error(error)
    return Answer("failed", subject=subject, text=text, worker=worker)


class _Body:
    """One attempt in a worker, which has begun."""

    def __init__(
        self,
        sent: _Sent,
        home: _Version,
        action: Callable[..., Any],
        arguments: dict[str, Any],
        host: AttemptHost,
    ) -> None:
        self._sent = sent
        self._home = home
        self._action = action
        self._arguments = arguments
        self._host = host
        self._loop = loop = asyncio.get_running_loop()
        now_s = loop.time()
        self._ends_s = now_s + (math.inf if sent.limit_s is None else sent.limit_s)
        if sent.deadline_s is not None:
            waited_s = max(time.time() - sent.sent_at_s, 0.0)
            self._ends_s = min(self._ends_s, now_s + sent.deadline_s - waited_s)
        self._notes = None if sent.notes is None else RemoteNotes(*sent.notes)
        self._pulse: Pulse | None = None
        if sent.heartbeat_ms is not None:
            self._pulse = Pulse(loop, sent.heartbeat_ms / 1000, host.beat)
        self._is_abandoned = False

    async def run(self) -> Answer:
        """Make the attempt; it raises nothing."""
        notes, captured = self._notes, None
        self._enter()
        if notes is not None and notes.takes_logs:
            captured = capture(notes, capturing_notes)
        try:
            output = await self._call()
        except BaseException as error:
            strip_internal_frames(error)
            answer = self._raised(error)
        else:
            answer = self._returned(output)
        finally:
            if captured is not None:
                captured.end()
            if self._pulse is not None:
                self._pulse.stop()
            enter_attempt(None)
        return replace(
            answer,
            worker=self._host.worker,
            is_abandoned=self._is_abandoned,
            notes=None if notes is None else notes.take(),
        )

    def _enter(self) -> None:
        """Make `current_step` work in the action, as it does at home."""
        sent, loop = self._sent, self._loop
        # Only what `current_step` asks for: it never calls the action.
        step = WorkflowStep(sent.name, _entered, max_retries=sent.max_retries, run_if=sent.run_if)
        results: Any = {} if sent.run_if == "success" else None
        extras = AttemptExtras(self._ends_s, self._pulse, results)
        enter_run(
            RunContext(
                sent.run_id,
                Plan((step,), {step.name: 0}, [()], Dependents([()]), [[0]], [0], (), frozenset()),
                clock_of(loop),
                loop.time(),
                math.inf,
                {(sent.name, sent.running[4]): extras},
                cancel_requested,
                self._notes,
            )
        )
        enter_attempt(sent.running)

    async def _call(self) -> Any:
        sent, arguments = self._sent, self._arguments
        if sent.runs_in == "process":
            # A child can't import what came here by value: it gets that as the worker did.
            content, _ = _dump((sent.name, self._action, arguments))
            output = await run_in_process(
                _call_in_child, {"content": content}, self._pulse, self._notes
            )
            return pickle.loads(output)
        if sent.runs_in == "thread":
            return await run_in_thread(
                self._action,
                arguments,
                ends=self._ends_s,
                on_abandon=self._abandon,
                has_missed_heartbeat=bool if self._pulse is None else self._pulse.is_missed,
            )
        output = await checked_awaitable(sent.name, self._action(**arguments))
        if type(output) is CoroutineType:
            refuse_unawaited(sent.name, output)
        return output

    def _abandon(self, thread: ThreadEnd) -> None:
        self._is_abandoned = True
        thread.add_done_callback(lambda _: self._host.thread_ended())

    def _returned(self, output: Any) -> Answer:
        limit = self._sent.keep_bytes
        file = io.BytesIO() if limit is None else _LimitedFile(limit)
        try:
            content, code = _dump(output, file)
        except _TooLargeError as large:
            return Answer("kept", kept=output, size=max(large.size, _size_of(output)))
        except Exception as error:  # whatever its objects raise
            return _failed("its output", error, "")
        if code and self._home != sys.version_info[:2]:
            problem = _other_python(sys.version_info[:2], self._home)
            return Answer("failed", subject=f"its output, with {code},", text=("", problem, ""))
        return Answer("returned", content)

    def _raised(self, error: BaseException) -> Answer:
        kind = type(error)
        text = (
            f"{kind.__module__}.{kind.__qualname__}",
            safe_text(str, error),
            format_error(error),
        )
        with suppress(Exception):  # many errors can't be pickled, or pickle but don't unpickle
            content, code = _dump(error)
            is_portable = not code or self._home == sys.version_info[:2]
            if is_portable and isinstance(pickle.loads(content), BaseException):
                return Answer("raised", content, text=text)
        return Answer("raised", text=text)


async def _entered() -> None:
    """Stand for the action of the entered step."""


def _call_in_child(content: bytes) -> bytes:
    name, action, arguments = pickle.loads(content)
    output = _child._call(action, arguments)
    try:
        return _dump(output)[0]
    except Exception as error:  # whatever its objects raise
        raise _cannot_send(name, "its output", error) from error


class _TooLargeError(Exception):
    """An output is too large to be sent home unless it is asked for."""

    def __init__(self, size: int) -> None:
        self.size = size


class _LimitedFile(io.BytesIO):
    """Takes so many bytes and not one more."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self._limit = limit

    def write(self, data: Any) -> int:
        size = self.tell() + len(data)
        if size > self._limit:
            raise _TooLargeError(size)
        return super().write(data)


def _size_of(value: object) -> int:
    try:
        return sys.getsizeof(value)
    except Exception:  # it is the user's object
        return 0


# At home, with the answer.


def unpack_answer(
    answer: Answer, call: EngineCall, kept: Callable[[int], RemoteOutput] | None = None
) -> Any:
    """Return what the action returned, or raise what it raised, and pass on what it said.

    If the answer says that its thread is abandoned, the engine has called `EngineCall.abandon`.

    Args:
        answer: The answer.
        call: The call.
        kept: Returns what stands for an output that stayed, from its size in bytes.

    Raises:
        asyncio.CancelledError: The body has not begun.
        NotSendableError: Something can't be sent.
        RestoredError: The action raised an error that can't be sent.
        BaseException: What the action raised, with its remote traceback as a note.
    """
    _pass_on_notes(answer, call)
    name = call.step.name
    if answer.kind == "kept":
        assert kept is not None
        return kept(answer.size)
    if answer.kind == "not run":
        raise asyncio.CancelledError
    if answer.kind == "returned":
        try:
            return pickle.loads(answer.content)
        except Exception as error:  # a module is missing here, for one
            raise _cannot_send(name, "its output", error) from error
    problem = _error_of(answer, name)
    _, _, trace = answer.text
    if trace:
        with suppress(Exception):  # an error may refuse notes
            problem.add_note(f"On {answer.worker}:\n{trace.rstrip()}")
    try:
        raise problem
    finally:
        del problem  # or its traceback, which has this frame, would refer to it


def _pass_on_notes(answer: Answer, call: EngineCall) -> None:
    for kind, *values in answer.notes or ():
        with suppress(Exception):  # a worker may have another idea of what can be attached
            getattr(call.notes, kind)(call.running, *values)


def _error_of(answer: Answer, name: str) -> BaseException:
    kind, message, trace = answer.text
    if answer.kind == "failed":
        return NotSendableError(name, answer.subject, message)
    if answer.content:
        with suppress(Exception):  # its module is missing here, for one
            error = pickle.loads(answer.content)
            if isinstance(error, BaseException):
                return error
    return RestoredError(kind, message, trace)
