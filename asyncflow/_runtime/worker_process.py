"""The program of a worker process: reads a call from its standard input, and answers there.

It is run as a script, by its path, and imports no more than it needs: that is what an attempt
waits for. What stands in the file is the question as long as its first byte is ``?``, and the
complete answer when it is ``!``. Its names begin with an underscore, for the main module of the
process that asks is looked for by the name that this one has here.
"""

from __future__ import annotations

import _thread
import io
import os
import pickle
import sys
from collections.abc import Callable, Mapping
from types import CoroutineType, ModuleType
from typing import Any, BinaryIO, TypeAlias

__all__ = ["_IS_IMPORTING", "_answer", "_called", "_said"]

_Main: TypeAlias = "tuple[str, str] | None"
"""How to import the main module of the process that asks: its kind, and its name or path."""

_IS_IMPORTING = "_asyncflow_is_importing_main"
"""Whether the main module that asked is being imported here, so that it must not ask again."""


_SIGKILL = 9  # not by `signal`, whose import takes as long as all others here


def _answer(file: BinaryIO) -> None:
    """Read the question in a file, run what it asks for, and write the answer in its place."""
    file.seek(1)
    (sys.path[:], sys.argv[:]), main, call = pickle.load(file)
    text = _outcome(main, call)
    file.seek(0)
    file.truncate()
    file.write(b"?" + text)
    file.flush()
    file.seek(0)
    file.write(b"!")  # last, so that half an answer is none
    file.flush()


def _outcome(main: _Main, call: bytes) -> bytes:
    try:
        function, arguments = _Unpickler(io.BytesIO(call), main).load()
    except BaseException as error:
        return _failed("the process could not load the function and its arguments", error)
    try:
        value = _called(function, arguments)
    except BaseException as error:
        return _raised(error)
    try:
        return pickle.dumps(("returned", value, ""))
    except Exception as error:
        return _failed("what the function returned can't be pickled", error)


def _called(function: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    """Call a plain function.

    Raises:
        TypeError: It returned an awaitable.
    """
    value = function(**arguments)
    if hasattr(type(value), "__await__"):
        if isinstance(value, CoroutineType):
            value.close()  # it will never be awaited, and the error says so better
        raise TypeError(
            f"the action returned an awaitable ({type(value).__name__}), and only the event loop "
            "can await it; leave runs_in out, or return a plain value"
        )
    return value


def _raised(error: BaseException) -> bytes:
    try:
        text = pickle.dumps(("raised", error, _traceback(error)))
        copy = pickle.loads(text)[1]  # many can be pickled, but not made again from that
        if not isinstance(copy, BaseException):
            raise TypeError(f"it comes back as {type(copy).__name__}, which is no exception")
    except Exception as problem:
        return _failed(f"the function raised {_said(error)}; that error can't be pickled", problem)
    return text


def _failed(what: str, error: BaseException) -> bytes:
    return pickle.dumps(("failed", f"{what}: {_said(error)}", _traceback(error)))


def _said(error: BaseException) -> str:
    """Return the type and message of an error, if it has one that can be printed."""
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
    """Imports the main module that asked when something of it is needed, and only then.

    A script should not be run for nothing, say for data that has its name.
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
    """Import the script that asked, under another name, so that it does not run as one."""
    import runpy

    setattr(sys.modules["__main__"], _IS_IMPORTING, True)
    other_name = "__mp_main__"  # that it has in the children of multiprocessing
    if kind == "module":
        # Under its name among the modules too: there dataclasses and pickle look for it.
        content = runpy.run_module(name, run_name=other_name, alter_sys=True)
    else:
        content = runpy.run_path(name, run_name=other_name)
    main = ModuleType(other_name)
    main.__dict__.update(content)
    sys.modules["__main__"] = sys.modules[other_name] = main


def _end_with(lifeline: int) -> None:
    """Kill this process, and its group, when nobody holds the other end of a pipe any more."""
    os.set_inheritable(lifeline, False)
    _thread.start_new_thread(_wait_for_end_of, (lifeline,))


def _wait_for_end_of(lifeline: int) -> None:
    os.read(lifeline, 1)  # nothing is ever written into it
    os.killpg(0, _SIGKILL)


if __name__ == "__main__":  # pragma: no cover - not in the process that counts
    this = sys.modules["__main__"]  # kept, for another takes its place
    sys.modules["__main__"] = ModuleType("__main__")  # one in which nothing is found by mistake
    if len(sys.argv) > 1:
        _end_with(int(sys.argv[1]))
    with open(os.dup(0), "r+b") as own:
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)
        _answer(own)
