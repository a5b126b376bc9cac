"""Runs one attempt of a step outside of the event loop, in a worker thread or a new process.

Rules:

1. A process can be stopped and a thread can't. So a cancelled process is killed and awaited. A
   thread is asked to stop, awaited until the attempt's time is up, and then abandoned.
2. Cancellations come from asyncio, once for each cause, so another one may arrive during a
   clean-up. None of them ends the wait for a killed process.
3. A worker process serves one call. anyio would pool its own beside a task that ends them with the
   loop, so they would outlive the run; and asyncio can't cancel one of them while it starts.
"""

from __future__ import annotations

import asyncio
import math
import mmap
import os
import pickle
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from functools import partial
from typing import IO, TYPE_CHECKING, Any

from anyio import BrokenWorkerProcess, CapacityLimiter, to_process, to_thread

from asyncflow._core.arguments import callable_name, is_importable_main
from asyncflow._core.history.log import StartedAttempt
from asyncflow._core.history.results import Payload
from asyncflow._core.running.checkpoints import Checkpoints
from asyncflow._core.running.context import attempt_for_process, current_checkpoints, enter_thread
from asyncflow._core.text import safe_text
from asyncflow._kernel.asyncio_compat import TIMER_SLACK_S, has_virtual_time, outlast
from asyncflow._policies import worker_process as _child
from asyncflow._policies.attempt_notes import pass_on

if TYPE_CHECKING:
    from typing import Protocol

    from asyncflow._core.running.context import Notes

    class Heartbeats(Protocol):
        """Counts the heartbeats of a process, such as `HeartbeatTimer`."""

        def follow(self, last_beat_s: Callable[[], float], /) -> None:
            """Count them.

            ``last_beat_s`` returns the time of the last one, in seconds of `time.monotonic`.
            """


def limiter_for(runs_in: str) -> CapacityLimiter:
    """Return the limiter of such workers, threads or processes, in the loop of this task.

    A caller holds a token of it as long as the worker works, even after the attempt has ended.

    Raise `RuntimeError` if processes can't be started here.
    """
    if runs_in == "thread":
        return to_thread.current_default_thread_limiter()
    _executable()  # called before a run starts, so an error is early
    return to_process.current_default_process_limiter()


async def run_in_thread(
    function: Callable[..., Any],
    arguments: Mapping[str, Any] | None,
    *,
    ends: float,
    on_abandon: Callable[[ThreadEnd], None],
    has_missed_heartbeat: Callable[[], bool] = bool,
) -> Any:
    """Call a function in a worker thread, in a copy of the current context.

    A cancellation sets the flag that `StepContext.cancel_requested` reads in the thread. Until the
    time is up, it does no more: the thread is awaited.

    ``ends`` is when the time is up, in seconds of the loop's clock; `math.inf` for never.
    ``on_abandon`` is called when it is up while the thread runs, with a future that is done when
    the thread has ended. The outcome of the function is dropped then. ``has_missed_heartbeat`` is
    called at a cancellation before ``ends``, and says whether the time is up because a heartbeat
    was missed.

    Raises:
        asyncio.CancelledError: The function was not called, or its thread was abandoned.
    """
    stop = threading.Event()
    job = _Job(partial(_call_in_thread, stop, function, arguments or {}))
    if not await job.has_ended():
        stop.set()
        while not job.ended.done():
            left_s = ends - job.loop.time()
            if left_s <= TIMER_SLACK_S or has_missed_heartbeat():
                on_abandon(job.ended)
                raise asyncio.CancelledError
            with suppress(asyncio.CancelledError):  # only the time ends this
                # Not the timer of `wait_for`, which before 3.12 a cancellation removes.
                await asyncio.wait([job.ended], timeout=None if ends == math.inf else left_s)
    return job.outcome()


def _call_in_thread(
    stop: threading.Event, function: Callable[..., Any], arguments: Mapping[str, Any]
) -> Any:
    enter_thread(stop.is_set)
    return _child._call(function, arguments)


async def run_in_process(
    function: Callable[..., Any],
    arguments: Mapping[str, Any] | None,
    heartbeat: Heartbeats | None = None,
    notes: Notes | None = None,
) -> Any:
    """Call a function in a new process, which has ended when this returns or raises.

    The function, its arguments and its outcome are pickled, in a worker thread. The process
    inherits standard output and error; its standard input is empty. It leads a session of its own:
    a Ctrl-C reaches only the run. Killing it kills its process group, and it kills that itself when
    this process dies. It lasts until its threads have ended, daemons aside; children that it leaves
    behind keep running.

    The function can ask for the attempt that calls this, with `current_step`. ``heartbeat``
    receives the heartbeats of the process, and the start of the function is the first; ``notes``
    receives what the attempt says. What it saves is kept with the checkpoints of its run.

    Raises:
        asyncio.CancelledError: It was cancelled, and the process was killed.
        anyio.BrokenWorkerProcess: The process died before it returned.
        pickle.PicklingError: The function, an argument or its outcome can't be pickled.
        TypeError: The function returned an awaitable.
        BaseException: What the function raised, with its traceback in a note.
    """
    if getattr(sys.modules["__main__"], _child._IS_IMPORTING, False):
        # Not an ordinary error, which a step would report: the run itself must not be here.
        raise SystemExit(
            "a worker process imports the script whose steps it runs; "
            "start the run under: if __name__ == '__main__':"
        )
    # The time of a virtual clock stands still while the process runs.
    has_virtual = has_virtual_time(asyncio.get_running_loop())
    attempt = attempt_for_process(None if has_virtual else _child._clock())
    reader = None
    current = current_checkpoints()
    if current is not None and sys.platform != "win32":
        reader = _NoteReader(notes, *current)
    process = _Process(
        function, arguments or {}, attempt, reader, gives_heartbeats=heartbeat is not None
    )
    if heartbeat is not None:
        heartbeat.follow(process.last_beat_s)
    job = _Job(process.run)
    try:
        if not await job.has_ended() and not job.ended.done():
            process.kill()
            await outlast(job.ended.done, partial(asyncio.wait, [job.ended]))
            raise asyncio.CancelledError
        return job.outcome()
    finally:
        if reader is not None:
            reader.close()
        del reader, process, job  # what is raised holds this frame


class ThreadEnd(asyncio.Future[None]):
    """Done when a call in a thread has ended, if the loop still runs by then."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop=loop)
        self._lock = threading.Lock()
        self._has_ended = False
        self._at_once: list[Callable[[], object]] = []

    def call_at_once(self, callback: Callable[[], object]) -> None:
        """Call back, in any thread, when the thread has ended, even if the loop is closed then."""
        with self._lock:
            if not self._has_ended:
                self._at_once.append(callback)
                return
        callback()

    def report(self) -> None:
        """Report the end, from the thread."""
        with self._lock:
            self._has_ended = True
        for callback in self._at_once:  # no other is added any more
            callback()
        with suppress(RuntimeError):  # the loop is closed: no task waits
            self.get_loop().call_soon_threadsafe(self.resolve)

    def resolve(self) -> None:
        """Report the end, from the loop."""
        if not self.done():  # its receiver may have cancelled it
            self.set_result(None)


class _Job:
    """A call in a worker thread. A virtual clock stands still meanwhile.

    anyio's limiter is not used, because it would free the token of an abandoned thread.
    """

    def __init__(self, call: Callable[[], Any]) -> None:
        self.loop = asyncio.get_running_loop()
        self.ended = ThreadEnd(self.loop)
        """Done when the call has ended, or will never start."""
        self._call = call
        self._claim = threading.Lock()
        """Acquired once: by the thread that makes the call, or by the loop that forbids it."""
        self._value: Any = None
        self._error: BaseException | None = None
        clock = ExitStack()
        clock.enter_context(self._standing_still())
        self.ended.add_done_callback(lambda _: clock.close())

    def _standing_still(self) -> AbstractContextManager[object]:
        still: AbstractContextManager[object] = getattr(self.loop, "standing_still", nullcontext)()
        return still

    async def has_ended(self) -> bool:
        """Make the call and wait for it; return False if this was cancelled meanwhile."""
        try:
            with self._standing_still():  # `ended` is done a moment before anyio returns
                await to_thread.run_sync(self._run, limiter=CapacityLimiter(math.inf))
        except BaseException:
            if self._claim.acquire(blocking=False):
                self.ended.resolve()
                raise  # cancelled before the call started, or no thread could be started
            return False
        return True

    def outcome(self) -> Any:
        """Return or raise what the call returned or raised."""
        error, self._error = self._error, None
        try:
            if error is not None:
                raise error
            return self._value
        finally:
            del error  # or its traceback, which has this frame, would refer to it

    def _run(self) -> None:
        if not self._claim.acquire(blocking=False):
            return
        try:
            self._value = self._call()
        except BaseException as error:
            self._error = error
        self.ended.report()
        del self  # the error's traceback has this frame


_READ_S = 0.1
"""How long what a process says waits until it is read."""


class _NoteReader:
    """Reads what a process says, a few times a second, from the file that the process writes."""

    def __init__(
        self, notes: Notes | None, checkpoints: Checkpoints, running: StartedAttempt
    ) -> None:
        self._notes = notes
        self._checkpoints = checkpoints
        self._saved = 0
        """The number of the last checkpoint that was read."""
        self._running = running
        self._loop = asyncio.get_running_loop()
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  # `close` closes it
        self._file.seek(_child._NOTES_AT)
        self._at = _child._NOTES_AT
        self._state: tuple[int, tuple[Any, ...] | None] = 0, None
        """How many notes are missing, and the latest progress."""
        self.wanted = self._file.fileno(), None if notes is None else (notes.level, notes.prints)
        """What the process receives to write it."""
        self._timer = self._loop.call_later(_READ_S, self._poll)

    def _poll(self) -> None:
        self._timer = self._loop.call_later(_READ_S, self._poll)
        self._read()

    def close(self) -> None:
        """Read the rest, after the process has ended."""
        self._timer.cancel()
        self._read()
        if (missing := self._state[0]) and self._notes is not None:
            self._notes.leave_out(self._running, missing)
        self._file.close()

    def _read(self) -> None:
        with suppress(Exception):  # a function may write to any file that it has open
            self._read_checkpoint()
        if self._notes is not None:
            self._read_notes(self._notes)

    def _read_checkpoint(self) -> None:
        latest = None
        for at in (_child._SLOT_AT, _child._SLOT_AT + _child._SLOT):
            head = os.pread(self.wanted[0], _child._SLOT_HEAD.size, at)
            if len(head) < _child._SLOT_HEAD.size:
                break  # nothing is written yet
            number, length, checksum = _child._SLOT_HEAD.unpack(head)
            if number > self._saved:
                data = os.pread(self.wanted[0], length, at + len(head))
                if zlib.crc32(data) == checksum:  # else it is being written
                    self._saved, latest = number, data
        if latest is not None:
            self._checkpoints.keep(self._running, Payload(*pickle.loads(latest)))

    def _read_notes(self, notes: Notes) -> None:
        before = self._state[1]
        with suppress(Exception):  # nothing is written yet, or by a function what it likes
            self._state = pickle.loads(os.pread(self.wanted[0], _child._NOTES_AT, 0))
            _, progress = self._state
            if progress is not None and progress != before:
                notes.progress(self._running, *progress)
        size = os.fstat(self.wanted[0]).st_size
        while self._at + 4 <= size:
            length = int.from_bytes(os.pread(self.wanted[0], 4, self._at), "little")
            if self._at + 4 + length > size:
                break  # it is being written, or its writer was killed
            record = os.pread(self.wanted[0], length, self._at + 4)
            self._at += 4 + length
            note = None
            with suppress(Exception):  # a function may write to any file that it has open
                note = pickle.loads(record)
            pass_on(notes, self._running, note)


class _Process:
    """A call in a new process: one thread calls `run`, another one may call `kill`."""

    def __init__(
        self,
        function: Callable[..., Any],
        arguments: Mapping[str, Any],
        attempt: _child._Attempt | None,
        notes: _NoteReader | None = None,
        *,
        gives_heartbeats: bool,
    ) -> None:
        self._notes = None if notes is None else notes.wanted
        self._function = function
        self._arguments = arguments
        self._attempt = attempt
        self._gives_heartbeats = gives_heartbeats
        self._head: mmap.mmap | None = None
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._is_killed = False

    def run(self) -> Any:
        request = _request(
            self._function,
            dict(self._arguments),
            self._attempt,
            self._gives_heartbeats,
            self._notes,
        )
        # Not a pipe, which grandchildren would hold open after the process has ended.
        with tempfile.TemporaryFile() as file:
            file.write(request)
            file.seek(0)
            if self._gives_heartbeats:
                self._head = mmap.mmap(file.fileno(), _child._HEAD)
            code = self._wait_for_child(file)
            file.seek(0)
            return _outcome(file, code)

    def last_beat_s(self) -> float:
        """Return the time of the last heartbeat, in seconds of `time.monotonic`; 0 for none."""
        if self._head is None:
            return 0.0
        (at_s,) = struct.unpack_from("d", self._head, _child._BEAT_AT)
        return float(at_s)

    def _wait_for_child(self, file: IO[bytes]) -> int:
        # The flags of this interpreter, as multiprocessing passes them on.
        flags: list[str] = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
        with _lifeline() as ends:
            command = [_executable(), *flags, "-P", _child.__file__, *map(str, ends)]
            fds = ends if self._notes is None else (*ends, self._notes[0])
            child = subprocess.Popen(command, stdin=file, pass_fds=fds, start_new_session=True)
            with self._lock:
                self._child = child
            if self._is_killed:
                self.kill()
            code = child.wait()
            with self._lock:
                self._child = None  # from now on its pid may be another process's
        return code

    def kill(self) -> None:
        """Kill the process, even before it starts."""
        with self._lock:
            self._is_killed = True
            if self._child is None:
                return
            if sys.platform == "win32":  # pragma: no cover
                self._child.kill()
            else:
                with suppress(ProcessLookupError, PermissionError):  # it has just ended
                    os.killpg(self._child.pid, signal.SIGKILL)


@contextmanager
def _lifeline() -> Iterator[tuple[int, ...]]:
    """Open a pipe and yield the end that a child watches; nothing on Windows.

    Only this process holds the other end, so that end closes however this process dies.
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


def _executable() -> str:
    """Return the path of the interpreter for worker processes.

    Raise `RuntimeError` if there is none, or it can't run the worker's program.
    """
    from multiprocessing import spawn  # slow to import, and few need it

    path = os.fsdecode(spawn.get_executable() or "")
    naming = "name a Python interpreter with multiprocessing.set_executable()"
    if not path:
        problem = f"sys.executable is empty; {naming}"
    elif getattr(sys, "frozen", False) and path == sys.executable:
        # Given a program to run, it would run the application instead, which starts another one.
        problem = f"this is a frozen application, which would start itself; {naming}"
    elif not os.path.isfile(_child.__file__):
        problem = f"{_child.__file__} is not a file, as in an archive; unpack it"
    else:
        return path
    raise RuntimeError(
        f"steps with runs_in='process' can't run here: {problem}, or use runs_in='thread'"
    )


def _request(
    function: Callable[..., Any],
    arguments: dict[str, Any],
    attempt: _child._Attempt | None = None,
    gives_heartbeats: bool = False,
    notes: _child._NotesWanted = None,
) -> bytes:
    try:
        call = pickle.dumps((function, arguments), pickle.HIGHEST_PROTOCOL)
    except Exception as error:
        raise pickle.PicklingError(
            f"{callable_name(function)} or one of its arguments can't be pickled, as a process "
            f"requires: {safe_text(str, error)}"
        ) from error
    main = sys.modules["__main__"]
    # In the process the classes of the main module have this name, and so in its response. After
    # an import of multiprocessing it may be that of a program which has run this script since.
    sys.modules["__mp_main__"] = main
    request = (sys.path, sys.argv), _main_of(main), call, attempt, gives_heartbeats, notes
    head = b"?".ljust(_child._HEAD, b"\0")
    return head + pickle.dumps(request, pickle.HIGHEST_PROTOCOL)


def _main_of(main: Any) -> tuple[str, str] | None:
    """Return how to import the main module again; ``None`` if that is impossible."""
    spec = getattr(main, "__spec__", None)
    if not is_importable_main(main):
        return None
    if spec is not None and spec.name != "__main__":
        return "module", spec.name
    # The module of a folder or an archive that is run is always named __main__.
    loader = getattr(spec, "loader", None)
    return "path", os.path.abspath(getattr(loader, "archive", main.__file__))


def _outcome(file: IO[bytes], code: int) -> Any:
    if file.read(_child._HEAD)[:1] != b"!":
        raise BrokenWorkerProcess(f"the worker process {_ending(code)} before it returned")
    try:
        kind, content, trace = pickle.load(file)
    except Exception as error:
        raise pickle.PicklingError(
            f"what the function returned can't be unpickled: {_child._describe(error)}"
        ) from error
    if kind == "returned":
        return content
    problem = content if kind == "raised" else pickle.PicklingError(content)
    if not isinstance(problem, BaseException):
        problem = pickle.PicklingError(f"the error of the function came back as {type(problem)}")
    with suppress(Exception):  # an error may refuse notes
        problem.add_note(f"In the process:\n{trace.rstrip()}")
    try:
        raise problem
    finally:
        del problem, content  # as in `_Job.outcome`


def _ending(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:  # most of the real-time signals have no name
        return f"was killed by signal {-code}"
