"""Gives pools a clock, and forked processes empty pools: `asyncflow.Pool` is imported from here.

The core, where a pool is, knows neither event loops nor time nor processes.
"""

from __future__ import annotations

import asyncio
import os
import time

from asyncflow._core.pools import pool as pools
from asyncflow._core.pools.pool import Clock, Pool, PoolKeyStats, PoolStats
from asyncflow._core.running.context import current_clock
from asyncflow._kernel.asyncio_compat import has_virtual_time

__all__ = ["Pool", "PoolKeyStats", "PoolStats", "pool_clock"]


def pool_clock(loop: asyncio.AbstractEventLoop) -> Clock:
    """Return the clock of a loop, as pools know it: real loops share one."""
    key = loop if has_virtual_time(loop) else time.monotonic
    return Clock(key, loop.time, loop.is_running)


def _present_clock() -> Clock:
    """Return the clock of the run in whose action this is called, or of the loop that runs."""
    clock = current_clock()
    loop = getattr(clock, "__self__", None)  # that of a virtual loop is a method of it
    if isinstance(loop, asyncio.AbstractEventLoop):
        return pool_clock(loop)
    try:
        return pool_clock(asyncio.get_running_loop())
    except RuntimeError:  # no event loop runs in this thread
        return Clock(time.monotonic, time.monotonic)


pools.present_clock = _present_clock
if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=pools.begin_in_child)
