"""A process counts as dead only if that can be proved."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from asyncflow.journal._database import machine
from asyncflow.journal._database.machine import is_dead, this_owner, this_process

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc to detect dead processes")


def describe(pid: int, **changed: Any) -> str:
    """Return the description that the process would give of itself."""
    known = {**json.loads(this_process()), "pid": pid, "started": started(pid)}
    return json.dumps({**known, **changed})


def started(pid: int) -> str:
    return machine._started(pid)


def test_this_process_is_alive() -> None:
    assert not is_dead(this_process())
    assert str(os.getpid()) in this_owner()


@pytest.mark.process
@LINUX
def test_an_ended_process_is_dead() -> None:
    with subprocess.Popen(["sleep", "600"]) as child:
        described = describe(child.pid)
        assert not is_dead(described)

        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert is_dead(described)  # although its parent has not waited for it yet
        child.wait()

        assert is_dead(described)


@pytest.mark.process
@LINUX
def test_a_suspended_process_is_alive() -> None:
    with subprocess.Popen(["sleep", "600"]) as child:
        child.send_signal(signal.SIGSTOP)

        assert not is_dead(describe(child.pid))

        child.kill()


WITHOUT_MAIN_THREAD = """
import ctypes, sys, threading
threading.Thread(target=sys.stdin.read).start()
ctypes.CDLL(None).pthread_exit(None)
"""


@pytest.mark.process
@LINUX
def test_a_process_whose_main_thread_has_ended_is_alive() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WITHOUT_MAIN_THREAD], stdin=subprocess.PIPE
    ) as child:
        described = describe(child.pid)
        status = Path(f"/proc/{child.pid}/stat")
        end = time.monotonic() + 50
        while ") Z " not in status.read_text():
            assert time.monotonic() < end

        assert not is_dead(described)

        child.kill()


@LINUX
def test_a_reused_process_id_belongs_to_another_process() -> None:
    assert is_dead(describe(os.getpid(), started="1"))


@pytest.mark.process
@LINUX
def test_a_process_on_another_machine_counts_as_alive() -> None:
    with subprocess.Popen(["true"]) as child:
        child.wait()

    assert not is_dead(describe(child.pid, where="another boot", started="1"))


@pytest.mark.parametrize(
    "described",
    ["", "null", "{}", '{"where": "", "pid": 1, "started": "1"}', '{"where": 1, "pid": 1}'],
)
def test_an_unknown_description_counts_as_alive(described: str) -> None:
    assert not is_dead(described)


@LINUX
def test_a_process_without_a_start_time_counts_as_alive() -> None:
    assert not is_dead(describe(os.getpid(), started=""))
    assert not is_dead(describe(2**80, started="1"))


def test_without_proc_every_process_counts_as_alive(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    described = describe(2**22 + 1, started="1")
    monkeypatch.setattr(machine, "_PROC", tmp_path)

    assert not is_dead(described)
    assert json.loads(this_process())["where"] == ""
    assert not is_dead(this_process())


@LINUX
@pytest.mark.parametrize("visible", [True, False])
def test_the_start_time_identifies_a_process_of_another_user(
    monkeypatch: pytest.MonkeyPatch, visible: bool
) -> None:
    def kill(pid: int, signal: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "kill", kill)
    described = describe(os.getpid())
    reused = describe(os.getpid(), started="1")
    if not visible:
        monkeypatch.setattr(machine, "_started", lambda pid: "")

    assert not is_dead(described)
    assert is_dead(reused) is visible
