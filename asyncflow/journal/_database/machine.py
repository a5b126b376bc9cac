"""Identifies this machine, its boot and this process, and reads the clocks by which leases expire.

Leases in an SQLite file expire by a clock that all processes of a boot share, and that does not
jump with the wall clock: `time.CLOCK_BOOTTIME` on Linux, `time.CLOCK_MONOTONIC` on macOS.
Containers share the boot of their machine and this clock, unless they have a time namespace of
their own.

Whether the process that holds a lease is dead is known on Linux only, and only if it was started in
the same boot, process namespace and time namespace. Any other process loses its runs when its
leases expire.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

_PROC = Path("/proc")
_MACHINE_ID = Path("/etc/machine-id")
_EXITED = "exited"
_THIS = uuid.uuid4().hex
"""Identifies this process, together with its process id, which a fork changes."""

held_claims: set[str] = set()
"""The claims that journals of this process hold: those of all others are void, whatever the
database says. A journal that can't write can't release them there."""


# --- processes -----------------------------------------------------------------------------------


def this_owner() -> str:
    """Return a description of this process for people: its id and host."""
    return f"process {os.getpid()} on {socket.gethostname()}"


def this_process(claim: str = "") -> str:
    """Return a description of this process, and of one of its claims, for `is_void`, as JSON."""
    pid = os.getpid()
    described = {"where": _where(), "pid": pid, "started": _started(pid)}
    return json.dumps({**described, "id": _THIS, "claim": claim})


def new_claim(process: str) -> tuple[str, str]:
    """Return a new claim, and a description of the process that has this claim."""
    claim = uuid.uuid4().hex
    return claim, json.dumps({**json.loads(process), "claim": claim})


def is_void(process: str) -> bool:
    """Whether a claim is void: its process is provably dead, or is this one and has given it up."""
    known = _known(process)
    is_this = known.get("id") == _THIS and known.get("pid") == os.getpid()
    return str(known.get("claim")) not in held_claims if is_this else is_dead(process)


def is_dead(process: str) -> bool:
    """Whether a process, described by `this_process`, is provably dead."""
    known = _known(process)
    where, pid, started = (known.get(name) for name in ("where", "pid", "started"))
    if not where or where != _where() or not started or not isinstance(pid, int):
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OverflowError:  # it is no process id
        return False
    except OSError:
        pass  # it belongs to another user
    now = _started(pid)
    return now == _EXITED or (bool(now) and now != started)


def _known(process: str) -> dict[str, object]:
    try:
        known = json.loads(process)
    except (ValueError, TypeError):
        known = None
    return known if isinstance(known, dict) else {}  # another version wrote it


def _where() -> str:
    """Identify the boot and the namespaces of this process; empty if they can't be read."""
    try:
        spaces = [os.readlink(_PROC / "self/ns" / name) for name in ("pid", "time")]
    except OSError:
        return ""
    boot = _boot()
    return " ".join([boot, *spaces]) if boot else ""


def _started(pid: int) -> str:
    """Return when a process started, in ticks since the boot; empty if that can't be read.

    It is `_EXITED` for a process that has exited and of which only the exit code is left.
    """
    try:
        # The name, in parentheses, may hold anything.
        fields = (_PROC / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()
        threads = os.listdir(_PROC / str(pid) / "task")
    except OSError:
        return ""
    # With other threads left, only the main one has ended.
    return _EXITED if fields[0] in "ZX" and len(threads) == 1 else fields[19]


# --- clocks --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LeaseClock:
    """The clocks of a machine, and which boot of which machine they belong to.

    ``machine`` identifies the machine across its boots, and ``boot`` the boot; they are empty if
    that can't be identified. ``namespace`` identifies the time namespace of this process.
    ``wall_s`` returns the seconds since the epoch, and ``boot_s`` those on a clock that all
    processes of the boot and namespace share.
    """

    machine: str
    boot: str
    namespace: str
    wall_s: Callable[[], float]
    boot_s: Callable[[], float]

    @property
    def name(self) -> str | None:
        """Identifies `boot_s` for the claimants of a lease; ``None`` if they can't share it."""
        return f"{self.machine} {self.boot} {self.namespace}" if self.boot else None

    def left_s(self, until_s: float, name: str | None, boot_until_s: float | None) -> float:
        """Return in how many seconds a lease expires; 0 or less if it has.

        ``name`` is that of the clock of its process. It expires at ``until_s`` by the `wall_s` of
        that process, and at ``boot_until_s`` by its `boot_s`. Only a process on another machine, or
        in another time namespace, goes by ``until_s``.
        """
        if name is not None and boot_until_s is not None:
            if name == self.name:
                return boot_until_s - self.boot_s()
            machine, _, rest = name.partition(" ")
            boot = rest.partition(" ")[0]
            if self.boot and machine and machine == self.machine and boot != self.boot:
                return 0.0  # the machine has rebooted, so the process is dead
        return until_s - self.wall_s()


def this_machine() -> LeaseClock:
    """Return the clocks of this machine."""
    clock = getattr(time, "CLOCK_BOOTTIME", getattr(time, "CLOCK_MONOTONIC", None))
    boot = "" if clock is None else _boot()
    try:
        namespace = os.readlink(_PROC / "self/ns/time")
    except OSError:  # the system has none
        namespace = ""
    boot_s = time.monotonic if clock is None else partial(time.clock_gettime, clock)
    return LeaseClock(_machine(), boot, namespace, time.time, boot_s)


def _boot() -> str:
    if sys.platform == "darwin":
        return _sysctl("kern.bootsessionuuid")
    try:
        return (_PROC / "sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _machine() -> str:
    """Identify this machine, or this container, by a hash: the id itself is confidential."""
    if sys.platform == "darwin":
        machine = _sysctl("kern.uuid")
    else:
        try:
            machine = _MACHINE_ID.read_text().strip()
        except OSError:
            machine = ""
    # The host name too: copies of an image may have the same id.
    host = f"asyncflow {machine} {socket.gethostname()}".encode()
    return hashlib.sha256(host).hexdigest()[:32] if machine else ""


def _sysctl(name: str) -> str:
    """Return what the system of a Mac says; empty if it says nothing."""
    import ctypes  # takes long, and others don't need it

    size, buffer = ctypes.c_size_t(64), ctypes.create_string_buffer(64)
    failed = ctypes.CDLL(None).sysctlbyname(name.encode(), buffer, ctypes.byref(size), None, 0)
    return "" if failed else buffer.value.decode()
