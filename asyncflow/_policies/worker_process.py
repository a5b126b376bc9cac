"""The program of a worker process: reads one request from its standard input and answers it there.

It runs as a script, by its path, and imports as little as it can, since each attempt waits for it.
All names here begin with an underscore, so that no name of the requesting main module, which this
script replaces, can be confused with one of them.

The file begins with a head of `_HEAD` bytes. Its first byte is ``?`` while a request follows, and
``!`` once the whole response does. From byte `_BEAT_AT` on, it has the time of the last heartbeat,
as a double in seconds of `time.monotonic`: the processes of a machine share that clock.

What the attempt says goes to a second file. That begins with a pickle of how many notes are
missing, and of the latest progress. Two slots follow for its checkpoints: each goes in that of the
one before the last, so that one of them is whole whenever this process is killed. From byte
`_NOTES_AT` on, each note has the four bytes of its length.
"""

from __future__ import annotations

import _thread
import io
import os
import pickle
import struct
import sys
import time
from collections.abc import Callable, Mapping
from types import CoroutineType, ModuleType

TYPE_CHECKING = False  # importing `typing` takes a tenth of the start
if TYPE_CHECKING:
    from typing import Any, BinaryIO, TypeAlias

    _Main: TypeAlias = tuple[str, str] | None
    """How to import the requesting main module: ``"module"`` or ``"path"``, and which."""

    _Attempt: TypeAlias = tuple[Any, ...]
    """What `asyncflow._core.running.context` tells a process of the attempt, in plain types."""

    _NotesWanted: TypeAlias = tuple[int, tuple[int | None, bool] | None] | None
    """The descriptor of the file for what the attempt says, and of notes the lowest level of log
    records, and whether to keep what is printed; ``None`` if nothing receives notes."""

_HEAD = 16
_BEAT_AT = 8

_SLOT_AT, _SLOT = 1024, 66_560
"""Where the first slot for a checkpoint begins, and the size of each."""

_SLOT_HEAD = struct.Struct("QII")
"""The number of a checkpoint, counted from 1, its length and its CRC-32."""

_NOTES_AT = _SLOT_AT + 2 * _SLOT

_IS_IMPORTING = "_asyncflow_is_importing_main"
"""An attribute of ``__main__`` while it is imported here, where it must not start a run."""

_SIGKILL = 9  # importing `signal` takes as long as all other imports here

_head: Any = None
"""The head of the file, in memory, if the attempt has to give heartbeats."""

_clock = time.monotonic


def _beat() -> None:
    """Note a heartbeat, from any thread."""
    if _head is not None:
        _head[_BEAT_AT:_HEAD] = struct.pack("d", _clock())


def _respond(file: BinaryIO) -> None:
    """Read the request in a file, make the call, and write the response in its place."""
    global _head
    file.seek(_HEAD)
    (sys.path[:], sys.argv[:]), main, call, attempt, gives_heartbeats, wanted = pickle.load(file)
    said = None if wanted is None else _NoteFile(*wanted)
    notes = None if said is None else said.notes
    if gives_heartbeats:
        import mmap  # few need it

        _head = mmap.mmap(file.fileno(), _HEAD)
    own = _module("_core.running.process_attempt")
    own.sent, own.notes, own.beat, own.clock = attempt, notes, _beat, _clock
    own.save = None if said is None else said.save
    try:
        text = _outcome(main, call, notes)
    finally:
        own.sent = own.notes = own.save = _head = None
    file.seek(_HEAD)
    file.write(text)  # what is left of the request behind it does no harm
    file.flush()
    file.seek(0)
    file.write(b"!")  # last, so that half a response is none
    file.flush()


def _outcome(main: _Main, call: bytes, notes: Any) -> bytes:
    try:
        function, arguments = _Unpickler(io.BytesIO(call), main).load()
    except BaseException as error:
        return _failed("the process could not load the function and its arguments", error)
    _beat()  # for the time that it took to start
    capture = None
    if notes is not None and notes.takes_logs:
        capture = _module("_policies.log_capture").capture(notes, lambda: (notes, None))
    try:
        value = _call(function, arguments)
    except BaseException as error:
        return _raised(error)
    finally:
        if capture is not None:
            capture.end()
        if notes is not None:
            notes.end()
    try:
        return pickle.dumps(("returned", value, ""))
    except Exception as error:
        return _failed("what the function returned can't be pickled", error)


class _NoteFile:
    """The file in which the process of the run finds what the attempt says."""

    def __init__(self, file: int, wanted: tuple[int | None, bool] | None) -> None:
        os.set_inheritable(file, False)
        self._file = file
        self._saved = 0
        self._lock = _thread.allocate_lock()
        self.notes: Any = None
        if wanted is not None:
            collector = _module("_policies.attempt_notes").AttemptNotes
            self.notes = collector(*wanted, self._send, self._update)

    def save(self, _: object, payload: tuple[str, bytes]) -> None:
        from zlib import crc32  # few need it

        data = pickle.dumps(tuple(payload))
        with self._lock:
            self._saved += 1
            head = _SLOT_HEAD.pack(self._saved, len(data), crc32(data))
            self._write(os.pwrite, head + data, _SLOT_AT + self._saved % 2 * _SLOT)

    def _send(self, note: tuple[Any, ...]) -> None:
        text = pickle.dumps(note)
        self._write(os.write, len(text).to_bytes(4, "little") + text)

    def _update(self) -> None:
        self._write(os.pwrite, pickle.dumps((self.notes.missing, self.notes.latest)), 0)

    def _write(self, write: Callable[..., int], *what: Any) -> None:
        try:  # noqa: SIM105  # importing `contextlib` takes long
            write(self._file, *what)
        except OSError:  # the disk is full: the step does without notes
            pass


def _module(name: str) -> Any:
    """Return a module of asyncflow that imports nothing else of it, without importing asyncflow."""
    folder, name = os.path.dirname(os.path.dirname(__file__)), f"asyncflow.{name}"
    module: Any = sys.modules.get(name)
    if module is None:
        from importlib.machinery import SourceFileLoader

        # Under its own name: if the action imports asyncflow, that must find this one.
        module = sys.modules[name] = ModuleType(name)
        path = os.path.join(folder, *name.split(".")[1:]) + ".py"
        code: Any = SourceFileLoader(name, path).get_code(name)
        exec(code, module.__dict__)
    return module


def _call(function: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    """Call a plain function."""
    value = function(**arguments)
    if hasattr(type(value), "__await__"):
        if isinstance(value, CoroutineType):
            value.close()  # or Python would warn that it was never awaited
        raise TypeError(
            f"the action returned an awaitable ({type(value).__name__}), and only the event loop "
            "can await it; leave runs_in out, or return a plain value"
        )
    return value


def _raised(error: BaseException) -> bytes:
    try:
        text = pickle.dumps(("raised", error, _traceback(error)))
        copy = pickle.loads(text)[1]  # many errors pickle, but don't unpickle
        if not isinstance(copy, BaseException):
            raise TypeError(f"it comes back as {type(copy).__name__}, which is not an exception")
    except Exception as problem:
        return _failed(
            f"the function raised {_describe(error)}; that error can't be pickled", problem
        )
    return text


def _failed(what: str, error: BaseException) -> bytes:
    return pickle.dumps(("failed", f"{what}: {_describe(error)}", _traceback(error)))


def _describe(error: BaseException) -> str:
    """Return the type of an error, and its message if that can be printed."""
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:
        return type(error).__name__


def _traceback(error: BaseException) -> str:
    import traceback

    try:
        return "".join(traceback.format_exception(error))
    except Exception:  # an error may have attributes that raise
        return "(its traceback can't be printed)"


class _Unpickler(pickle.Unpickler):
    """Imports the requesting main module when the request refers to it, and only then.

    Importing a script runs it, which data that merely contains its name must not cause.
    """

    def __init__(self, file: BinaryIO, main: _Main) -> None:
        super().__init__(file)
        self._main = main
        self._is_imported = False

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        if module_name in ("__main__", "__mp_main__") and not self._is_imported:
            if self._main is None:
                raise ImportError(
                    f"{global_name!r} is defined in a main module that can't be imported again, "
                    "such as that of a shell, a notebook or python -c; define it in a file"
                )
            _import_main(*self._main)
            self._is_imported = True
        return super().find_class(module_name, global_name)


def _import_main(kind: str, name: str) -> None:
    """Import the requesting main module, under another name, so that it does not run as one."""
    from importlib import machinery, util

    other_name = "__mp_main__"  # as in the children of multiprocessing
    # Not `runpy`, for which the module is `__main__` only when its code has run: meanwhile an
    # import of multiprocessing makes what is `__main__` its `__mp_main__` too.
    main = sys.modules["__main__"] = sys.modules[other_name] = ModuleType(other_name)
    setattr(main, _IS_IMPORTING, True)
    is_module = kind == "module"
    spec = util.find_spec(name) if is_module else machinery.PathFinder.find_spec("__main__", [name])
    if spec is not None and spec.loader is not None:  # a module, or that of an archive
        main.__spec__, main.__loader__, main.__file__ = spec, spec.loader, spec.origin
        main.__package__ = spec.parent
        code = spec.loader.get_code(spec.name)  # type: ignore[attr-defined]  # as for `python -m`
    else:
        main.__file__, main.__package__ = name, ""
        code = _code_of_script(name)
    exec(code, main.__dict__)
    delattr(main, _IS_IMPORTING)


def _code_of_script(path: str) -> Any:
    from importlib import machinery

    if path.endswith(".pyc"):
        return machinery.SourcelessFileLoader("__main__", path).get_code("__main__")
    loader = machinery.SourceFileLoader("__main__", path)
    # Its `get_code` would leave compiled code beside the script.
    return loader.source_to_code(loader.get_data(path), path)


def _end_with(lifeline: int) -> None:
    """Kill this process and its group when the other end of a pipe is closed."""
    os.set_inheritable(lifeline, False)
    _thread.start_new_thread(_wait_for_end_of, (lifeline,))


def _wait_for_end_of(lifeline: int) -> None:
    os.read(lifeline, 1)  # returns at the end of the pipe: nothing is ever written
    os.killpg(0, _SIGKILL)


if __name__ == "__main__":  # pragma: no cover - not in the process that counts
    sys.modules["__main__"] = ModuleType("__main__")  # an empty one, which has none of our names
    if len(sys.argv) > 1:
        _end_with(int(sys.argv[1]))
    with open(os.dup(0), "r+b") as own:
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)
        _respond(own)
