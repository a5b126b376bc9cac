"""One attempt in a worker: makes it as it would be made at home, and says what came of it."""

from __future__ import annotations

import asyncio
import io
import math
import pickle
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache, partial
from types import CoroutineType
from typing import Any, Protocol

from asyncflow._core.arguments import checked_awaitable, is_iterator, refuse_unawaited
from asyncflow._core.history.results import Payload
from asyncflow._core.pipeline.graph import Dependents, Plan
from asyncflow._core.pipeline.step import RunIf, WorkflowStep
from asyncflow._core.record import replace
from asyncflow._core.running.checkpoints import Checkpoints, received_checkpoints
from asyncflow._core.running.context import (
    AttemptExtras,
    RunContext,
    capturing_notes,
    enter_attempt,
    enter_run,
    received_error,
)
from asyncflow._core.text import safe_text
from asyncflow._core.tracebacks import format_error, strip_internal_frames
from asyncflow._kernel.asyncio_compat import cancel_requested, clock_of, running_task
from asyncflow._policies import worker_process as _child
from asyncflow._policies.attempt_notes import AttemptNotes
from asyncflow._policies.log_capture import capture
from asyncflow._policies.workers import ThreadEnd, run_in_process, run_in_thread
from asyncflow.engines._remote.pulse import Pulse
from asyncflow.engines._remote.wire import (
    Answer,
    Sent,
    Version,
    cannot_send,
    dump,
    failed,
    other_python,
)


class AttemptHost(Protocol):
    """What an engine does for an attempt in its worker. All of it is called in the worker's loop.

    ``worker`` is the name of the worker.
    """

    worker: str

    async def begin(self) -> bool:
        """Ask whether the body may begin; the engine reports at home that it does."""
        ...

    def beat(self) -> None:
        """Pass on a heartbeat. It is called a few times for each ``heartbeat_ms``."""
        ...

    def save(self, saved: tuple[str, bytes]) -> None:
        """Pass on a checkpoint, if the engine can: it comes with the answer too."""
        ...

    def thread_ended(self) -> None:
        """Report at home that the thread which the attempt has abandoned has ended."""
        ...


_SAVE_S = 0.05
"""How long a checkpoint waits for a later one before it travels."""

_MOMENT_S = 0.1
"""How long after the end of its time a body stops by itself: the run knows of that end before."""


class AttemptBody:
    """One attempt in a worker, which has begun."""

    def __init__(
        self,
        sent: Sent,
        home: Version,
        action: Callable[..., Any],
        arguments: dict[str, Any],
        worker: str,
    ) -> None:
        self._sent = sent
        self._home = home
        self._action = action
        self._arguments = arguments
        self._worker = worker
        self._clock: Callable[[], float] = time.monotonic
        self._ends_s = math.inf
        self._said: list[tuple[Any, ...]] = []
        self._notes = None if sent.notes is None else AttemptNotes(*sent.notes, self._said.append)
        self._saved: tuple[str, bytes] | None = None
        self._saves: Pulse | None = None
        self._pulse: Pulse | None = None
        self._is_abandoned = False
        self.is_plain = sent.runs_in == "thread"
        """Whether it is a plain function for a thread."""

    async def run(self, host: AttemptHost | None = None) -> Answer:
        """Make the attempt in the event loop, or beside it. It raises nothing.

        ``host`` is ``None`` if the engine can't stop it, so that it must stop by itself.
        """
        loop, beat_ms = asyncio.get_running_loop(), self._sent.heartbeat_ms
        self._begin(clock_of(loop))
        timer = None
        if host is not None:
            self._saves = Pulse(loop, 4 * _SAVE_S, partial(self._pass_on, host))
        if host is None:
            if self._ends_s < math.inf:
                timer = loop.call_at(self._ends_s + _MOMENT_S, running_task().cancel)
        elif beat_ms is not None:
            self._pulse = Pulse(loop, beat_ms / 1000, host.beat)
        try:
            with self._entered(cancel_requested):
                answer = self._returned(await self._call(host))
        except BaseException as error:
            answer = self._raised(error)
        for pulse in (self._pulse, self._saves):
            if pulse is not None:
                pulse.stop()
        if timer is not None:
            timer.cancel()
        return self._completed(answer)

    def run_here(self) -> Answer:
        """Make the attempt of a plain function in this thread. It raises nothing."""
        self._begin(time.monotonic)
        try:
            with self._entered(lambda: self._clock() >= self._ends_s):
                answer = self._returned(_child._call(self._action, self._arguments))
        except BaseException as error:
            answer = self._raised(error)
        return self._completed(answer)

    def _begin(self, clock: Callable[[], float]) -> None:
        sent, now_s = self._sent, clock()
        self._clock = clock
        if sent.limit_s is not None:
            self._ends_s = now_s + sent.limit_s
        if sent.deadline_s is not None:
            waited_s = max(time.time() - sent.sent_at_s, 0.0)
            self._ends_s = min(self._ends_s, now_s + sent.deadline_s - waited_s)

    @contextmanager
    def _entered(self, must_stop: Callable[[], bool]) -> Iterator[None]:
        """Make `current_step` and log records work in the action, as they do at home."""
        sent, captured = self._sent, None
        step = _step_like(sent.max_retries, sent.run_if)
        results: Any = None if step.is_cleanup else {}
        extras = AttemptExtras(self._ends_s, self._pulse, results)
        key, last_error = (sent.name, sent.running[4]), received_error(sent.last_error)
        enter_run(
            RunContext(
                sent.run_id,
                _plan_of(sent.name, step),
                self._clock,
                self._clock(),
                math.inf,
                {key: extras},
                must_stop,
                self._notes,
                last_errors={} if last_error is None else {key: last_error},
                checkpoints=self._checkpoints(),
            )
        )
        enter_attempt(sent.running)
        if self._notes is not None and self._notes.takes_logs:
            captured = capture(self._notes, capturing_notes)
        try:
            yield
        finally:
            if captured is not None:
                captured.end()
            enter_attempt(None)

    def _checkpoints(self) -> Checkpoints:
        sent = self._sent
        if sent.checkpoint is None:
            return Checkpoints()
        return received_checkpoints(sent.running, sent.checkpoint, self._save)

    def _save(self, _: object, payload: Payload) -> None:
        self._saved = payload.codec, payload.data
        if self._saves is not None:
            self._saves.beat()

    def _pass_on(self, host: AttemptHost) -> None:
        if self._saved is not None:
            host.save(self._saved)

    def _completed(self, answer: Answer) -> Answer:
        return replace(
            answer,
            worker=self._worker,
            is_abandoned=self._is_abandoned,
            notes=None if self._notes is None else self._all_said(self._notes),
            checkpoint=self._saved,
        )

    def _all_said(self, notes: AttemptNotes) -> list[tuple[Any, ...]]:
        notes.end()
        said = self._said.copy()  # an abandoned thread may say more
        if notes.missing:
            said.append(("leave_out", notes.missing))
        if notes.latest is not None:
            said.append(("progress", *notes.latest))
        return said

    async def _call(self, host: AttemptHost | None) -> Any:
        sent, arguments = self._sent, self._arguments
        if sent.runs_in == "process":
            # A child can't import what came here by value: it gets that as the worker did.
            content, _ = dump((sent.name, self._action, arguments))
            output = await run_in_process(
                _call_in_child, {"content": content}, self._pulse, self._notes
            )
            return pickle.loads(output)
        if self.is_plain:
            assert host is not None

            def abandon(thread: ThreadEnd) -> None:
                self._is_abandoned = True
                thread.add_done_callback(lambda _: host.thread_ended())

            return await run_in_thread(
                self._action,
                arguments,
                ends=self._ends_s,
                on_abandon=abandon,
                has_missed_heartbeat=bool if self._pulse is None else self._pulse.is_missed,
            )
        output = await checked_awaitable(sent.name, self._action(**arguments))
        if type(output) is CoroutineType:
            refuse_unawaited(sent.name, output)
        return output

    def _returned(self, output: Any) -> Answer:
        # Those who share a worker would share an iterator that stays there: at home it is refused.
        limit = None if is_iterator(output) else self._sent.keep_bytes
        file = io.BytesIO() if limit is None else _LimitedFile(limit)
        try:
            content, code = dump(output, file)
        except _TooLargeError as large:
            return Answer("kept", kept=output, size=max(large.size, _size_of(output)))
        except Exception as error:  # whatever its objects raise
            return failed("its output", error, "")
        if code and self._home != sys.version_info[:2]:
            problem = other_python(sys.version_info[:2], self._home)
            return Answer("failed", subject=f"its output, with {code},", text=("", problem, ""))
        return Answer("returned", content)

    def _raised(self, error: BaseException) -> Answer:
        strip_internal_frames(error)
        kind = type(error)
        text = (
            f"{kind.__module__}.{kind.__qualname__}",
            safe_text(str, error),
            format_error(error),
        )
        with suppress(Exception):  # many errors can't be pickled, or pickle but don't unpickle
            content, code = dump(error)
            is_portable = not code or self._home == sys.version_info[:2]
            if is_portable and isinstance(pickle.loads(content), BaseException):
                return Answer("raised", content, text=text)
        return Answer("raised", text=text)


@lru_cache(64)
def _step_like(max_retries: int, run_if: RunIf) -> WorkflowStep:
    """Return a step for `current_step`, which asks it for these, and not for its name or action."""
    return WorkflowStep("any", _no_action, max_retries=max_retries, run_if=run_if)


async def _no_action() -> None:
    """Stand for the action of a step."""


def _plan_of(name: str, step: WorkflowStep) -> Plan:
    return Plan((step,), {name: 0}, [()], _NO_DEPENDENTS, [[0]], [0], {}, frozenset())


_NO_DEPENDENTS = Dependents([()])


def _call_in_child(content: bytes) -> bytes:
    name, action, arguments = pickle.loads(content)
    output = _child._call(action, arguments)
    try:
        return dump(output)[0]
    except Exception as error:  # whatever its objects raise
        raise cannot_send(name, "its output", error) from error


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
        size = self.tell() + memoryview(data).nbytes  # a large buffer is no bytes: it has no len()
        if size > self._limit:
            raise _TooLargeError(size)
        return super().write(data)


def _size_of(value: object) -> int:
    try:
        return sys.getsizeof(value)
    except Exception:  # it is the user's object
        return 0
