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
import pickle
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from contextvars import copy_context
from typing import Any

from asyncflow._core.errors import NotSendableError, RestoredError
from asyncflow._core.history.remote_output import RemoteOutput
from asyncflow._core.pipeline.step import WorkflowStep
from asyncflow._core.record import values_by_name
from asyncflow._core.running.context import current_checkpoints, last_error_to_send
from asyncflow._core.tracebacks import strip_internal_frames
from asyncflow._policies.attempt_notes import pass_on
from asyncflow._policies.engine import EngineCall
from asyncflow.engines._remote.body import AttemptBody, AttemptHost
from asyncflow.engines._remote.wire import (
    FORMAT,
    Answer,
    PackedCall,
    Sent,
    cannot_send,
    dump,
    failed,
    other_python,
)

# At home, before the call.


def check_sendable(step: WorkflowStep) -> None:
    """Check that the action of a step can be sent to a worker."""
    try:
        dump(step.action)
    except Exception as error:  # whatever its objects raise
        raise cannot_send(step.name, "its action", error) from error


def pack_call(call: EngineCall, keep_bytes: int | None) -> PackedCall:
    """Return a call as a worker receives it, without the arguments that stayed on the engine.

    ``keep_bytes`` is the size in bytes above which an output stays where it was made, if the call
    says that it may; ``None`` if it never stays. Raise `NotSendableError` if the action or an
    argument can't be sent.
    """
    step, notes, current = call.step, call.notes, current_checkpoints()
    sent = Sent(
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
        last_error_to_send(),
        None if current is None else current[0].to_send(current[1]),
    )
    own = {n: v for n, v in call.arguments.items() if not isinstance(v, RemoteOutput)}
    try:
        content, code = dump((step.action, own))
    except Exception as error:  # whatever their objects raise
        raise _first_unsendable(step, own) or cannot_send(step.name, "the call", error) from error
    head = FORMAT, sys.version_info[:2], code, tuple(values_by_name(sent).values()), content
    return PackedCall(pickle.dumps(head, pickle.HIGHEST_PROTOCOL))


def _first_unsendable(step: WorkflowStep, own: Mapping[str, Any]) -> NotSendableError | None:
    parts = {"its action": step.action} | {f"argument {n!r}": v for n, v in own.items()}
    for subject, part in parts.items():
        try:
            dump(part)
        except Exception as error:
            return cannot_send(step.name, subject, error)
    return None


# In the worker.


async def run_packed(packed: bytes, arguments: Mapping[str, Any], host: AttemptHost) -> Answer:
    """Make the attempt of a call, in a task of its own in the worker's event loop.

    Cancelling the task stops the body and awaits its clean-up; a thread is asked to stop, and
    abandoned when the time of the attempt is up.

    ``arguments`` are those that stayed on the engine, by parameter, and ``host`` is the engine, in
    this worker.
    """
    body = _load(packed, arguments, host.worker)
    if isinstance(body, Answer):
        return body
    try:
        may_begin = await host.begin()
    except asyncio.CancelledError:
        may_begin = False
    if not may_begin:
        return Answer("not run", worker=host.worker)
    return await body.run(host)


def run_packed_alone(packed: bytes, worker: str) -> Answer:
    """Make the attempt of a call in a thread without an event loop, where nothing can stop it.

    A body that is not a plain function gets a loop of its own, and is cancelled there when its time
    is up. A plain function reads `StepContext.cancel_requested`.
    """
    body = _load(packed, {}, worker)
    if isinstance(body, Answer):
        return body
    if body.is_plain:
        return copy_context().run(body.run_here)
    return asyncio.run(body.run())


def _load(packed: bytes, arguments: Mapping[str, Any], worker: str) -> AttemptBody | Answer:
    """Return the body of a call, or the answer if it can't be loaded."""
    form, version, code, fields, content = pickle.loads(packed)
    if form != FORMAT:
        problem = "the worker has another version of asyncflow; install the same one"
        return Answer("failed", subject="the call", text=("", problem, ""), worker=worker)
    if code and version != sys.version_info[:2]:
        problem = other_python(version, sys.version_info[:2])
        subject = f"the function {code}"
        return Answer("failed", subject=subject, text=("", problem, ""), worker=worker)
    try:
        action, own = pickle.loads(content)
    except BaseException as error:
        strip_internal_frames(error)
        advice = _MISSING_MODULE if isinstance(error, ModuleNotFoundError) else ""
        return failed("its action, or an argument,", error, worker, advice)
    return AttemptBody(Sent(*fields), version, action, {**own, **arguments}, worker)


_MISSING_MODULE = "; install it on the workers, or start them with it on their PYTHONPATH"


# At home, with the answer.


def unpack_answer(
    answer: Answer, call: EngineCall, kept: Callable[[int], RemoteOutput] | None = None
) -> Any:
    """Return what the action returned, or raise what it raised, and pass on what it said.

    If the answer says that its thread is abandoned, the engine has called `EngineCall.abandon`.

    ``kept`` returns what stands for an output that stayed, from its size in bytes.

    Raises:
        asyncio.CancelledError: The body has not begun.
        NotSendableError: Something can't be sent.
        RestoredError: The action raised an error that can't be sent.
        BaseException: What the action raised, with its remote traceback as a note.
    """
    _pass_on_notes(answer, call)
    if answer.checkpoint is not None:
        call.saved(answer.checkpoint)
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
            raise cannot_send(name, "its output", error) from error
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
    for note in answer.notes or ():
        pass_on(call.notes, call.running, note)


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
