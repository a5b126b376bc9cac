"""Who owns a run: which process, on which machine, and whether that process is dead.

Death is told on Linux only, and only of a process of the same boot, process namespace and time
namespace. Of any other one nothing is known, and its lease says when it counts as dead.
"""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

__all__ = ["is_dead", "this_owner", "this_process"]

_PROC = Path("/proc")


def this_owner() -> str:
    """Return what people call this process: host and process id."""
    return f"process {os.getpid()} on {socket.gethostname()}"


def this_process() -> str:
    """Return what `is_dead` tells this process by, as JSON."""
    pid = os.getpid()
    return json.dumps({"where": _where(), "pid": pid, "started": _started(pid)})


def is_dead(process: str) -> bool:
    """Whether a process, described by `this_process`, is provably dead."""
    try:
        known = json.loads(process)
        where, pid, started = known["where"], known["pid"], known["started"]
    except (ValueError, KeyError, TypeError):  # another version wrote it
        return False
    if not where or where != _where() or not started:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        pass  # of another user
    now = _started(pid)
    return now == _NOBODY or (bool(now) and now != started)


_NOBODY = "nobody"


def _where() -> str:
    """Return what processes have in common that can tell each other's death, or nothing."""
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
        spaces = [os.readlink(_PROC / "self/ns" / name) for name in ("pid", "time")]
    except OSError:
        return ""
    return " ".join([boot, *spaces])


def _started(pid: int) -> str:
    """Return when a process started, in ticks since the boot; nothing if that can't be seen.

    It is `_NOBODY` for one that has ended and of which only its exit code is left.
    """
    try:
        # The name, in parentheses, may hold anything.
        fields = (_PROC / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()
        threads = os.listdir(_PROC / str(pid) / "task")
    except OSError:
        return ""
    # With other threads left, only the main one has ended.
    return _NOBODY if fields[0] in "ZX" and len(threads) == 1 else fields[19]
