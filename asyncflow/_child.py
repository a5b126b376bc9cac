"""The program of a worker process: reads a call from its standard input, and answers there.

It is run as a script, by its path, and imports no more than it needs: that is what an attempt
waits for. What stands in the file is the question as long as its first byte is ``?``, and the
complete answer when it is ``!``.
"""

from __future__ import annotations

import os
import pickle
import sys
from types import ModuleType
from typing import BinaryIO

__all__ = ["answer", "is_importing_main"]

is_importing_main = False
"""Whether the script that asked is being imported here, so that it must not ask again."""


def answer(file: BinaryIO) -> None:
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


def _outcome(main: tuple[str, str] | None, call: bytes) -> bytes:
    try:
        if main is not None:
            _import_main(*main)
        function, arguments = pickle.loads(call)
    except BaseException as error:
        return _failed("the process could not load the function and its arguments", error)
    try:
        value = function(**arguments)
    except BaseException as error:
        return _raised(error)
    try:
        return pickle.dumps(("returned", value, ""))
    except Exception as error:
        return _failed("what the function returned can't be pickled", error)


def _raised(error: BaseException) -> bytes:
    try:
        text = pickle.dumps(("raised", error, _traceback(error)))
        pickle.loads(text)  # many an error can be pickled, but not made again from that
    except Exception as problem:
        summary = f"{type(error).__name__}: {error}"
        return _failed(f"the function raised {summary}; that error can't be pickled", problem)
    return text


def _failed(what: str, error: BaseException) -> bytes:
    return pickle.dumps(("failed", f"{what}: {type(error).__name__}: {error}", _traceback(error)))


def _traceback(error: BaseException) -> str:
    import traceback

    return "".join(traceback.format_exception(error))


def _import_main(kind: str, name: str) -> None:
    """Import the script that asked, under another name, so that it does not run as one."""
    import runpy

    global is_importing_main
    is_importing_main = True
    run = runpy.run_module if kind == "module" else runpy.run_path
    content = run(name, run_name="__mp_main__")
    main = ModuleType("__mp_main__")  # the name that it has in the children of multiprocessing
    main.__dict__.update(content)
    sys.modules["__main__"] = sys.modules["__mp_main__"] = main
    is_importing_main = False


if __name__ == "__main__":  # pragma: no cover - not in the process that counts
    this = sys.modules["__main__"]  # kept, for another may take its place
    with open(os.dup(0), "r+b") as own:
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)
        answer(own)
