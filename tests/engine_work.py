"""Actions for the contract of the engines. Other processes import them from here.

Each is there twice: for an event loop, and as a plain function for a thread or a process. What they
do, they write to a diary, which is a file.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

from asyncflow import current_step

__all__ = [
    "CustomError",
    "array_of",
    "array_of_plainly",
    "beat",
    "beat_plainly",
    "build",
    "build_plainly",
    "describe",
    "describe_plainly",
    "die_once",
    "die_once_plainly",
    "fail",
    "fail_once",
    "fail_once_plainly",
    "fail_plainly",
    "interrupt",
    "interrupt_plainly",
    "linger",
    "linger_plainly",
    "lock",
    "lock_plainly",
    "measure",
    "measure_plainly",
    "save",
    "save_plainly",
    "total",
    "total_plainly",
    "work",
    "work_plainly",
    "write",
]


class CustomError(Exception):
    """Can be sent."""


def write(diary: Path, word: str) -> None:
    """Append a word; several processes may do so at the same time."""
    file = os.open(diary, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, f"{word}\n".encode())
    os.close(file)


async def linger(diary: Path, seconds: float, cleanup_s: float = 0.0) -> None:
    """Run for a while or until it is cancelled, and clean up."""
    write(diary, "begin")
    try:
        await asyncio.sleep(seconds)
    finally:
        await asyncio.sleep(cleanup_s)
        write(diary, "end")


def linger_plainly(diary: Path, seconds: float, cleanup_s: float = 0.0) -> None:
    """Do the same, and never notice that it must stop."""
    write(diary, "begin")
    time.sleep(seconds)
    time.sleep(cleanup_s)
    write(diary, "end")


async def work(seconds: float = 0.0) -> int:
    await asyncio.sleep(seconds)
    return os.getpid()


def work_plainly(seconds: float = 0.0) -> int:
    time.sleep(seconds)
    return os.getpid()


def describe_plainly(text: str) -> dict[str, Any]:
    """Say things, and return what the attempt knows of itself."""
    step = current_step()
    logging.getLogger("work").warning("about %s", text)
    step.progress(3, 4, "rows")
    step.attach("note", text)
    left_ms = step.remaining_ms()
    return {
        "run": step.run_id,
        "key": step.idempotency_key,
        "attempt": (step.step_name, step.attempt, step.max_retries),
        "has_time": left_ms is not None and 0 < left_ms <= 20_000,
        "cancelled": step.cancel_requested,
    }


async def describe(text: str) -> dict[str, Any]:
    await asyncio.sleep(0)
    return describe_plainly(text)


def fail_plainly(message: str = "no") -> None:
    raise CustomError(message)


async def fail(message: str = "no") -> None:
    fail_plainly(message)


def interrupt_plainly() -> None:
    raise KeyboardInterrupt("stop it all")


async def interrupt() -> None:
    interrupt_plainly()


def fail_once_plainly(diary: Path) -> str:
    """Fail unless the diary tells of an earlier attempt."""
    is_first = not diary.exists()
    write(diary, "tried")
    if is_first:
        raise CustomError("the first one fails")
    return "done"


async def fail_once(diary: Path) -> str:
    return fail_once_plainly(diary)


def die_once_plainly(diary: Path) -> str:
    """Kill the process unless the diary tells of an earlier attempt."""
    if not diary.exists():
        write(diary, "killed")
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)
    return "alive"


async def die_once(diary: Path) -> str:
    return die_once_plainly(diary)


def lock_plainly() -> Any:
    """Return what can't be sent."""
    return threading.Lock()


async def lock() -> Any:
    return lock_plainly()


def build_plainly(diary: Path, size: int) -> bytes:
    write(diary, "built")
    return bytes(size)


async def build(diary: Path, size: int) -> bytes:
    return build_plainly(diary, size)


def second_try_plainly() -> str:
    """Fail at first; then return what that attempt failed with, and a later one."""
    error = current_step().last_error
    if error is None:
        raise ValueError("at first")
    later = "" if error.__context__ is None else f"; {error.__context__}"
    return f"{type(error).__name__}: {error}{later}"


async def second_try() -> str:
    return second_try_plainly()


def measure_plainly(built: bytes) -> int:
    return len(built)


async def measure(built: bytes) -> int:
    return len(built)


def array_of_plainly(size: int) -> Any:
    import numpy as np

    return np.ones(size, "u1")


async def array_of(size: int) -> Any:
    return array_of_plainly(size)


def total_plainly(array: Any) -> int:
    return int(array.sum())


async def total(array: Any) -> int:
    return total_plainly(array)


def save_plainly(count: int) -> object:
    """Save so many checkpoints and fail; the next attempt returns the last one."""
    step = current_step()
    for number in range(count):
        step.checkpoint({"attempt": step.attempt, "number": number})
    if step.attempt == 1:
        raise ValueError("after its checkpoints")
    return step.last_checkpoint


async def save(count: int) -> object:
    return save_plainly(count)


def beat_plainly(count: int) -> str:
    """Give some heartbeats, and then none."""
    for _ in range(count):
        current_step().heartbeat()
        time.sleep(0.1)
    return "beaten"


async def beat(count: int) -> str:
    for _ in range(count):
        current_step().heartbeat()
        await asyncio.sleep(0.1)
    return "beaten"
