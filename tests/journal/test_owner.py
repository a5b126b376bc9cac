"""Whether a process is dead is told only where it can be proved."""

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

from asyncflow.journal import _worker as _owner
from asyncflow.journal._worker import is_dead, this_owner, this_process

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="/proc tells who is dead")


def of(pid: int, **changed: Any) -> str:
    """Describe a process as it would describe itself."""
    known = {**json.loads(this_process()), "pid": pid, "started": started(pid)}
    return json.dumps({**known, **changed})


def started(pid: int) -> str:
    return _owner._started(pid)


def test_this_process_is_alive() -> None:
    assert not is_dead(this_process())
    assert str(os.getpid()) in this_owner()


@pytest.mark.process
@LINUX
def test_a_process_that_has_ended_is_dead() -> None:
    with subprocess.Popen(["sleep", "600"]) as child:
        described = of(child.pid)
        assert not is_dead(described)

        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert is_dead(described)  # though nobody has asked for its exit code
        child.wait()

        assert is_dead(described)


@pytest.mark.process
@LINUX
def test_a_process_that_stands_still_is_alive() -> None:
    with subprocess.Popen(["sleep", "600"]) as child:
        child.send_signal(signal.SIGSTOP)

        assert not is_dead(of(child.pid))

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
        described = of(child.pid)
        status = Path(f"/proc/{child.pid}/stat")
        end = time.monotonic() + 20
        while ") Z " not in status.read_text():
            assert time.monotonic() < end

        assert not is_dead(described)

        child.kill()


@LINUX
def test_a_process_id_that_was_used_again_is_somebody_else() -> None:
    assert is_dead(of(os.getpid(), started="1"))


@pytest.mark.process
@LINUX
def test_of_another_machine_nothing_is_known() -> None:
    with subprocess.Popen(["true"]) as child:
        child.wait()

    assert not is_dead(of(child.pid, where="another boot", started="1"))


@pytest.mark.parametrize(
    "described",
    ["", "null", "{}", '{"where": "", "pid": 1, "started": "1"}', '{"where": 1, "pid": 1}'],
)
def test_of_what_nobody_has_described_so_nothing_is_known(described: str) -> None:
    assert not is_dead(described)


@LINUX
def test_without_a_start_time_nothing_is_known() -> None:
    assert not is_dead(of(os.getpid(), started=""))


def test_without_proc_nothing_is_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    described = of(2**22 + 1, started="1")
    monkeypatch.setattr(_owner, "_PROC", tmp_path)

    assert not is_dead(described)
    assert json.loads(this_process())["where"] == ""
    assert not is_dead(this_process())


@LINUX
@pytest.mark.parametrize("visible", [True, False])
def test_of_a_process_of_another_user_its_start_is_asked(
    monkeypatch: pytest.MonkeyPatch, visible: bool
) -> None:
    def kill(pid: int, signal: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "kill", kill)
    described = of(os.getpid())
    used_again = of(os.getpid(), started="1")
    if not visible:
        monkeypatch.setattr(_owner, "_started", lambda pid: "")

    assert not is_dead(described)
    assert is_dead(used_again) is visible
