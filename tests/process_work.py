"""Functions for worker processes of tests, in a module that the processes can import."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
from pathlib import Path

from asyncflow import current_step
from asyncflow._policies.workers import run_in_process


class Unpicklable(Exception):
    def __reduce__(self):
        raise TypeError("not this one")


class TwoArgumentError(Exception):
    """It can be pickled but not unpickled."""

    def __init__(self, one, two):
        super().__init__(f"{one} {two}")


class PickleOnly:
    """It can be pickled but not unpickled."""

    def __reduce__(self):
        return int, ("not a number",)


class FrozenError(Exception):
    """It refuses notes and attributes, and its text raises."""

    def __setattr__(self, name, value):
        raise AttributeError("frozen")

    def add_note(self, note):
        raise AttributeError("frozen")

    def __str__(self):
        raise ValueError("no text")


class UnpicklesAsText(Exception):
    """It can be pickled, but it is unpickled as an object that is no exception."""

    def __reduce__(self):
        return str, ("not an error",)


class Unprintable(FrozenError):
    """It can't be pickled either, and its traceback can't be formatted."""

    def __reduce__(self):
        raise FrozenError

    def __getattribute__(self, name):
        if name == "__cause__":
            raise ValueError("no cause")
        return super().__getattribute__(name)


async def async_function():
    return 1


def return_argument(value):
    return value


def add(left=1, right=2):
    return left + right


def get_pid():
    return os.getpid()


def fail(text):
    error = KeyError(text)
    error.detail = [text]
    raise error


def throw(error):
    raise error()


def kill_by(number):
    os.kill(os.getpid(), number)


def options():
    return sys.flags.optimize, sys.flags.safe_path


def leader():
    return os.getpid(), os.getsid(0), os.getpgid(0)


def nest(path):
    """Start a process that hangs, and wait for it."""
    asyncio.run(run_in_process(hang, {"path": path}))


def raise_two_argument_error():
    raise TwoArgumentError("one", "two")


def raise_unpicklable():
    raise Unpicklable("lost")


def exit_with(code):
    sys.exit(code)


def exit_at_once(code):
    os._exit(code)


def kill_itself():
    os.kill(os.getpid(), signal.SIGKILL)


def return_a_lock():
    return threading.Lock()


def return_pickle_only():
    return PickleOnly()


def talk():
    print("to the output")
    print("to the errors", file=sys.stderr)
    return sys.stdin.read()


def hang(path):
    """Write the ids of this process and of a child to a file; then run forever."""
    child = os.fork()
    if child == 0:
        while True:
            time.sleep(100)
    part = Path(path).with_suffix(".part")
    part.write_text(f"{os.getpid()} {child}")
    part.rename(path)
    while True:
        time.sleep(100)


def call_in_process():
    _ = current_step().call("x", asyncio.sleep, 0)  # without an await, as a thread would


def stream_in_process():
    for number in range(5):
        current_step().stream(number)
