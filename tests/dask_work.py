"""Actions for workers of Dask, which import them from here, and a submitter to be killed.

Paths are texts: one of Python 3.13 can't be unpickled by an older one.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
import time
from pathlib import Path

from engine_calls import RecordedCall

from asyncflow import WorkflowStep, current_step
from asyncflow.engines.dask import DaskEngine


def note(diary: str, word: str) -> None:
    """Append a word to a file that several processes write."""
    with Path(diary).open("a") as file:
        file.write(word + "\n")


def words(diary: str) -> list[str]:
    """Return the words of such a file."""
    return Path(diary).read_text().split() if Path(diary).exists() else []


async def add(a: int, b: int = 0) -> int:
    return a + b


async def bytes_of(size: int) -> bytes:
    return bytes(size)


async def fail(message: str) -> None:
    raise ValueError(message)


async def pid() -> int:
    return os.getpid()


async def version() -> tuple[int, int]:
    return sys.version_info[:2]


async def linger(diary: str, name: str = "body", cleanup_s: float = 0.0) -> None:
    """Run until cancelled; then clean up."""
    note(diary, f"begin-{name}")
    try:
        await asyncio.sleep(60)
        note(diary, f"finish-{name}")
    finally:
        await asyncio.sleep(cleanup_s)
        note(diary, f"end-{name}")


async def return_when_cancelled() -> str:
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        return "done"
    return "late"


async def make(diary: str, size: int) -> bytearray:
    note(diary, f"make-{os.getpid()}")
    return bytearray(size)


async def fail_once(tried: str, data: bytearray, size: object) -> int:
    note(tried, "tried")
    if len(words(tried)) == 1:
        raise ValueError("the first time")
    return len(data)


async def measure(data: bytearray, **_: object) -> tuple[int, int]:
    return os.getpid(), len(data)


async def talk() -> None:
    step = current_step()
    for done in range(3):
        step.progress(done, 3)
        logging.getLogger("work").warning("%d of %s", done, step.step_name)
        await asyncio.sleep(0.06)


async def repeat(secret: str) -> str:
    current_step().attach("secret", secret)
    return secret


def sleep_in_thread(seconds: float) -> str:
    time.sleep(seconds)
    return threading.current_thread().name


async def submit(address: str, diary: str, count: int) -> None:
    """Run bodies until this process is killed."""
    async with DaskEngine(address) as engine:
        calls = [
            engine.run(RecordedCall(WorkflowStep("body", linger), {"diary": diary}).call)
            for _ in range(count)
        ]
        await asyncio.gather(*calls)


def main() -> None:
    asyncio.run(submit(sys.argv[1], sys.argv[2], int(sys.argv[3])))
