"""What the tests of the Ray engine know of the nodes and processes of a cluster."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

NODE = {"num_cpus": 1, "object_store_memory": 200 * 2**20}
"""The options of each node of the cluster."""


def is_running(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


async def until(happened: Callable[[], object], seconds: float = 60) -> float:
    """Wait until something has happened, and return how many seconds that took."""
    began_s = time.monotonic()
    while not happened():
        assert time.monotonic() - began_s < seconds
        await asyncio.sleep(0.01)
    return time.monotonic() - began_s
