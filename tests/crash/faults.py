"""What happens to a run beside the death of its process: games with its files, jumps of the clock.

A fault strikes at a kill point, in the process itself, so that it can be repeated.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

__all__ = [
    "GAMES",
    "JUMPS",
    "PUT_BACK",
    "SHORT_LEASE_S",
    "jump_clock",
    "play",
    "put_back",
    "shift_clock",
    "stall",
]

_SUFFIXES = ("", "-wal", "-shm")


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _move(path: Path, *suffixes: str) -> None:
    for suffix in suffixes:
        if _beside(path, suffix).exists():
            _beside(path, suffix).rename(_beside(path, f"{suffix}.moved"))


def _replace(path: Path) -> None:
    """Replace the database by a copy of it, which is older: what the -wal holds is not in it."""
    copy = _beside(path, ".older")
    shutil.copy(path, copy)
    _beside(path, "-wal").unlink(missing_ok=True)
    copy.rename(path)


def _cut(path: Path, suffix: str, part: float) -> None:
    file = _beside(path, suffix)
    if file.exists():
        os.truncate(file, int(file.stat().st_size * part))


GAMES: dict[str, Callable[[Path], None]] = {
    "move": lambda path: _move(path, ""),
    "move all": lambda path: _move(path, *_SUFFIXES),
    "replace": _replace,
    "unlink": lambda path: path.unlink(missing_ok=True),
    "empty": lambda path: _cut(path, "", 0),
    "unlink wal": lambda path: _beside(path, "-wal").unlink(missing_ok=True),
    "empty wal": lambda path: _cut(path, "-wal", 0),
    "cut wal": lambda path: _cut(path, "-wal", 0.9),
}
"""What is done to the files of a database."""

PUT_BACK = ("move", "move all")
"""The games after which nothing is lost."""

SHORT_LEASE_S = 0.6
"""The lease of processes that may stand still."""

JUMPS = ("+1 h", "-1 h")
"""How far the wall clock jumps."""


def play(game: str, database: Path) -> None:
    """Play a game with the files of a database, if there are any yet."""
    if database.exists():
        GAMES[game](database)


def put_back(database: Path) -> None:
    """Put back the files that were moved."""
    for suffix in _SUFFIXES:
        moved = _beside(database, f"{suffix}.moved")
        if moved.exists():
            moved.rename(_beside(database, suffix))


def jump_clock(jump: str) -> None:
    """Let the wall clock of this process jump."""
    seconds = {"+1 h": 3_600, "-1 h": -3_600}[jump]
    _offset_s[0] += seconds


def stall() -> None:
    """Let this process stand still for longer than its lease."""
    own = os.getpid()
    waker = os.fork()
    if waker == 0:
        time.sleep(2 * SHORT_LEASE_S)
        os.kill(own, signal.SIGCONT)
        os._exit(0)
    os.kill(own, signal.SIGSTOP)
    os.waitpid(waker, 0)


_offset_s = [0.0]
_wall_clock = time.time


def _shifted() -> float:
    return _wall_clock() + _offset_s[0]


def shift_clock() -> None:
    """Make the wall clock of this process one that can jump. Call it before the package uses it."""
    time.time = _shifted
