"""Runs a plain function in a worker thread, or in a process of its own, for one attempt of a step.

Rules:

1. A thread can't be stopped, a process can: so a thread is waited for as long as its attempt may
   take and then abandoned, and a process is killed and waited for.
2. Cancellations come from asyncio, not from a scope of anyio's: once for each cause, so perhaps
   while one is being obeyed. None of them ends the wait for a process that was killed.
3. A worker process is used once. anyio keeps its own for later, beside a task that is to end
   them with the loop: neither would end with the run. And it can't be cancelled from asyncio
   while it starts.
"""

from __future__ import annotations

import asyncio
import math
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from functools import partial
from typing import IO, Any

from anyio import BrokenWorkerProcess, CapacityLimiter, to_process, to_thread

from asyncflow._core.arguments import is_importable_main
from asyncflow._core.context import enter_thread
from asyncflow._core.errors import safe_text
from asyncflow._runtime import worker_process as _child
from asyncflow._runtime.asyncio_compat import TIMER_SLACK_S

__all__ = ["ThreadEnd", "limiter_for", "run_in_process", "run_in_thread"]


def limiter_for(runs_in: str) -> CapacityLimiter | None:
    """Return what limits how many such workers there are in this loop; ``None``: nothing.

    It is to be held for as long as the worker is at work, also if the attempt has ended.

    Raises:
        RuntimeError: There can't be such workers here.
    """
    if runs_in == "thread":
        return to_thread.current_default_thread_limiter()
    if runs_in == "process":
        _executable()  # the run asks for this before anything of it runs
        return to_process.current_default_process_limiter()
    return None


async def run_in_thread(
    function: Callable[..., Any],
    arguments: Mapping[str, Any] | None,
    *,
    ends: float,
    on_abandon: Callable[[ThreadEnd], None],
    has_lapsed: Callable[[], bool] = bool,
) -> Any:
    """Call a function in a worker thread, in a copy of the present context.

    A cancellation sets the flag that `StepContext.cancel_requested` reads in the thread. Before
    the time is up it is swallowed then: the thread is waited for.

    Args:
        function: What to call.
        arguments: By their names.
        ends: When the time is up, in seconds of the loop's clock; `math.inf` for never.
        on_abandon: Called if the time is up and the thread still runs, with a future that is
            done when it has ended. What it returns or raises then is dropped.
        has_lapsed: Whether, when this is cancelled, the time is up although it is not ``ends``.

    Raises:
        asyncio.CancelledError: It was cancelled before the function was called, or abandoned.
        TypeError: The function returned an awaitable.
    """
    stop = threading.Event()
    job = _Job(partial(_call_in_thread, stop, function, arguments or {}))
    if not await job.has_ended():
        stop.set()
        while not job.ended.done():
            left_s = ends - job.loop.time()
            if left_s <= TIMER_SLACK_S or has_lapsed():
                on_abandon(job.ended)
                raise asyncio.CancelledError
            with suppress(asyncio.CancelledError):  # the time decides
                # By a timer of our own: before 3.12 `wait_for` forgets its own when cancelled.
                await asyncio.wait([job.ended], timeout=None if ends == math.inf else left_s)
    return job.outcome()


def _call_in_thread(
    stop: threading.Event, function: Callable[..., Any], arguments: Mapping[str, Any]
) -> Any:
    enter_thread(stop.is_set)
    return _child._called(function, arguments)


async def run_in_process(function: Callable[..., Any], arguments: Mapping[str, Any] | None) -> Any:
    """Call a function in a new process, which has ended when this returns or raises.

    The function, its arguments, and what it returns or raises are pickled, in a worker thread.
    The process inherits the standard output and error; its standard input is empty. It is the
    leader of a session of its own: a Ctrl-C reaches the run only, and it can't ask for another
    session. If it is killed, so are its children, save those that have left its process group;
    and it kills itself and them when this process ends without having waited for it. Children
    that it leaves behind when it answers are nobody's from then on: they work on.

    Raises:
        asyncio.CancelledError: It was cancelled, and the process was killed.
        anyio.BrokenWorkerProcess: The process ended by itself without an answer.
        pickle.PicklingError: Something can't be sent from the one process to the other.
        TypeError: The function returned an awaitable.
        BaseException: What the function raised, with a note of its traceback.
    """
    if getattr(sys.modules["__main__"], _child._IS_IMPORTING, False):
        # Not an ordinary error: it shall end the run that should not have begun here.
        raise SystemExit(
            "a script with steps that run in a process is imported by that process too; "
            "start the run under: if __name__ == '__main__':"
        )
    process = _Process(function, arguments or {})
    job = _Job(process.run)
    if not await job.has_ended() and not job.ended.done():
        process.kill()
        while not job.ended.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait([job.ended])
        raise asyncio.CancelledError
    return job.outcome()


class ThreadEnd(asyncio.Future[None]):
    """Done when a call in a thread has ended, if the loop is still there to hear of it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop=loop)
        self._has_come = False
        self._calls: list[Callable[[], object]] = []

    def call_at_once(self, call: Callable[[], object]) -> None:
        """Call something when it comes, in any thread, also if the loop is closed by then.

        It may be called twice.
        """
        self._calls.append(call)
        if self._has_come:
            call()

    def come(self) -> None:
        """Tell that the call has ended, from the thread."""
        self._has_come = True
        for call in self._calls:
            call()
        with suppress(RuntimeError):  # the loop was closed: nobody waits
            self.get_loop().call_soon_threadsafe(self.settle)

    def settle(self) -> None:
        """Be done."""
        if not self.done():  # whom it was handed to may have cancelled it
            self.set_result(None)


class _Job:
    """A call in a worker thread; a loop with a clock that can stand still lets it do so meanwhile.

    Of anyio's limiter we ask nothing: it would free the place of a thread that is abandoned.
    """

    def __init__(self, call: Callable[[], Any]) -> None:
        self.loop = asyncio.get_running_loop()
        self.ended = ThreadEnd(self.loop)
        """Done when the call has ended in the thread, or never will begin."""
        self._call = call
        self._claim = threading.Lock()
        """Taken by the thread if it makes the call, and by the loop if it shall not be made."""
        self._value: Any = None
        self._error: BaseException | None = None
        clock = ExitStack()
        clock.enter_context(self._clock_standing_still())
        self.ended.add_done_callback(lambda _: clock.close())

    def _clock_standing_still(self) -> AbstractContextManager[object]:
        still: AbstractContextManager[object] = getattr(self.loop, "standing_still", nullcontext)()
        return still

    async def has_ended(self) -> bool:
        """Make the call and wait; return whether it ended, else this was cancelled meanwhile."""
        try:
            with self._clock_standing_still():  # the thread tells us first, and anyio a bit later
                await to_thread.run_sync(self._run, limiter=CapacityLimiter(math.inf))
        except BaseException:
            if self._claim.acquire(blocking=False):
                self.ended.settle()
                raise  # cancelled before the thread took it up, or there was no thread to be had
            return False
        return True

    def outcome(self) -> Any:
        """Return or raise what the call did."""
        error, self._error = self._error, None
        try:
            if error is not None:
                raise error
            return self._value
        finally:
            del error  # or it would keep itself, through this frame

    def _run(self) -> None:
        if not self._claim.acquire(blocking=False):
            return
        try:
            self._value = self._call()
        except BaseException as error:
            self._error = error
        self.ended.come()
        del self  # the error's traceback keeps this frame


class _Process:
    """A call in a new process: `run` in a thread, `kill` in any other."""

    def __init__(self, function: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
        self._function = function
        self._arguments = arguments
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._is_killed = False

    def run(self) -> Any:
        question = _question(self._function, dict(self._arguments))
        # A file, not a pipe: its end is known without waiting for grandchildren that hold it.
        with tempfile.TemporaryFile() as file:
            file.write(question)
            file.seek(0)
            code = self._wait_for_child(file)
            file.seek(0)
            return _read(file.read(), code)

    def _wait_for_child(self, file: IO[bytes]) -> int:
        with _lifeline() as ends:
            command = [*_command(), *map(str, ends)]
            child = subprocess.Popen(command, stdin=file, pass_fds=ends, start_new_session=True)
            with self._lock:
                self._child = child
            if self._is_killed:
                self.kill()
            code = child.wait()
            with self._lock:
                self._child = None  # from here on its number may be another's
        return code

    def kill(self) -> None:
        """Kill the process, also if it has still to be started."""
        with self._lock:
            self._is_killed = True
            if self._child is None:
                return
            if sys.platform == "win32":  # pragma: no cover
                self._child.kill()
            else:
                with suppress(ProcessLookupError, PermissionError):  # it has ended just now
                    os.killpg(self._child.pid, signal.SIGKILL)


@contextmanager
def _lifeline() -> Iterator[tuple[int, ...]]:
    """Open a pipe, and give the end of it, if any, that another process is to watch.

    The other end, which only this process holds, is closed however this process ends.
    """
    if sys.platform == "win32":  # pragma: no cover
        yield ()
        return
    theirs, ours = os.pipe()
    try:
        yield (theirs,)
    finally:
        os.close(theirs)
        os.close(ours)


def _command() -> list[str]:
    # With the options of this interpreter, as multiprocessing does it too.
    flags: list[str] = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    return [_executable(), *flags, "-P", _child.__file__]


def _executable() -> str:
    """Return the interpreter for the processes.

    Raises:
        RuntimeError: There is none, or it can't run our program.
    """
    from multiprocessing import spawn  # only those who use it shall wait for its import

    path = os.fsdecode(spawn.get_executable() or "")
    naming = "name a Python interpreter with multiprocessing.set_executable()"
    if not path:
        problem = f"sys.executable is empty; {naming}"
    elif getattr(sys, "frozen", False) and path == sys.executable:
        # Started with our program, it would start itself, and so on without end.
        problem = f"this is a frozen application, which would start itself; {naming}"
    elif not os.path.isfile(_child.__file__):
        problem = f"{_child.__file__} is no file, as in an archive; unpack it"
    else:
        return path
    raise RuntimeError(
        f"steps with runs_in='process' can't run here: {problem}, or use runs_in='thread'"
    )


def _question(function: Callable[..., Any], arguments: dict[str, Any]) -> bytes:
    try:
        call = pickle.dumps((function, arguments), pickle.HIGHEST_PROTOCOL)
    except Exception as error:
        raise pickle.PicklingError(
            f"{safe_text(repr, function)} or an argument of it can't be pickled, as a process "
            f"needs it: {safe_text(str, error)}"
        ) from error
    main = sys.modules["__main__"]
    # The name that its classes have in the process, and so in the answer.
    sys.modules.setdefault("__mp_main__", main)
    return b"?" + pickle.dumps(
        ((sys.path, sys.argv), _main_of(main), call), pickle.HIGHEST_PROTOCOL
    )


def _main_of(main: Any) -> tuple[str, str] | None:
    """Tell how to import the main module again; ``None``: it can't be."""
    spec = getattr(main, "__spec__", None)
    if not is_importable_main(main):
        return None
    if spec is not None and spec.name != "__main__":
        return "module", spec.name
    # Of a folder or an archive that is run, its name says nothing.
    loader = getattr(spec, "loader", None)
    return "path", os.path.abspath(getattr(loader, "archive", main.__file__))


def _read(answer: bytes, code: int) -> Any:
    if answer[:1] != b"!":
        raise BrokenWorkerProcess(
            f"the process of the step ended {_how(code)} before it had a result"
        )
    try:
        kind, content, trace = pickle.loads(answer[1:])
    except Exception as error:
        raise pickle.PicklingError(
            f"what the function returned can't be unpickled: {_child._said(error)}"
        ) from error
    if kind == "returned":
        return content
    problem = content if kind == "raised" else pickle.PicklingError(content)
    if not isinstance(problem, BaseException):
        problem = pickle.PicklingError(f"the error of the function came back as {type(problem)}")
    with suppress(Exception):  # an error may refuse notes, and is what counts
        problem.add_note(f"In the process:\n{trace.rstrip()}")
    try:
        raise problem
    finally:
        del problem, content  # or it would keep itself, through this frame


def _how(code: int) -> str:
    if code >= 0:
        return f"with exit code {code}"
    try:
        return f"by {signal.Signals(-code).name}"
    except ValueError:  # most of the real-time signals have no name
        return f"by signal {-code}"
