"""Lets the runs of this process use pools that processes share, by the database of their journal.

Under a virtual clock, such a pool is an ordinary one, with or without a journal: the lease of a
share could not follow that clock.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from asyncflow._core.pools.pool import Clock, Pool
from asyncflow._kernel.asyncio_compat import has_virtual_time

if TYPE_CHECKING:
    from asyncflow._core.pools.shares import PoolShare
    from asyncflow._policies.durable import RunPersistence

_CLOCK = Clock(time.monotonic, time.monotonic)
"""The one that real event loops share, as `asyncflow._policies.pool_clock` has it."""

_lock = threading.Lock()
_used: WeakValueDictionary[tuple[object, str], PoolShare] = WeakValueDictionary()
"""The shares that runs of this process have used, by their database and the name of their pool."""


def _begin_in_child() -> None:
    """Let a forked process have no share."""
    global _lock  # a thread that is gone may have held it
    _lock = threading.Lock()
    _used.clear()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_begin_in_child)


@contextmanager
def sharing(pools: Collection[Pool], persistence: RunPersistence | None) -> Iterator[None]:
    """Let a run use shared pools within the block.

    Raises:
        ValueError: It has no journal, or other runs use one of the pools with another journal, or
            another pool of that name.
        TypeError: Its journal can't say how many slots each process has.
    """
    if has_virtual_time(asyncio.get_running_loop()):
        yield
        return
    with ExitStack() as entered:
        for pool in pools:
            entered.callback(_enter(pool, persistence).leave)
        yield


def _enter(pool: Pool, persistence: RunPersistence | None) -> PoolShare:
    if persistence is None:
        raise ValueError(
            f"{pool.title} is shared, so a run that uses it needs a journal, whose database says "
            "how many slots each process has: give it one by with_options(journal=...), or make "
            "the pool without shared=True"
        )
    journal = persistence.journal
    enter: Callable[[Pool, Clock], PoolShare] | None = getattr(journal, "_share", None)
    if enter is None:
        raise TypeError(
            f"{pool.title} is shared, which needs a journal of asyncflow.journal: "
            f"{type(journal).__name__} can't say how many slots each process has"
        )
    with _lock:
        before = pool._share
        # A run whose journal is closed or gone starts nothing, and may never end.
        other_journal = before and before.runs and not before.is_closed and before.journal()
        if other_journal and other_journal is not journal:
            raise ValueError(
                f"{pool.title} is shared in the database of another journal, with which other runs "
                "use it: wait until these have ended, or give both the same journal object"
            )
        share = enter(pool, _CLOCK)
        key = share.database, pool.name or ""
        other = _used.get(key)
        if other is not None and other.pool is not pool and other.runs and not other.is_closed:
            share.leave()
            raise ValueError(
                f"another Pool object that is shared as {pool.name!r} is used by other runs of "
                "this process, and neither sees the line of the other one: share one object, such "
                "as at the top of a module, or give them two names"
            )
        _used[key] = share
        return share


def why_waiting(pool: Pool) -> str:
    """Return why attempts wait for the share of a pool, as an end of a sentence; empty if not."""
    share = pool._share
    if share is None or not share.is_short:
        return ""
    away = ""
    away_since_s = share.away_since_s
    if away_since_s is not None:
        since = time.localtime(time.time() - (time.monotonic() - away_since_s))
        away = time.strftime(" (database unreachable since %Y-%m-%d %H:%M:%S)", since)
    return f"while it waits for its share of {pool.title}{away}"
