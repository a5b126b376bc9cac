"""Leases in an SQLite file expire by a clock that does not jump with the wall clock."""

from __future__ import annotations

import ctypes
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from asyncflow import WorkflowStep, run_pipeline
from asyncflow._core.errors import RunAlreadyActiveError
from asyncflow.journal import SQLiteJournal
from asyncflow.journal._database import machine as _machine
from asyncflow.journal._database import sqlite as _sqlite
from asyncflow.journal._database.machine import LeaseClock, this_machine
from asyncflow.journal._database.sqlite import SQLite
from asyncflow.journal._write.store import Claim, Store

ROOT = Path(__file__).parents[3]
HOUR = 3_600.0
MINE = Claim("me", "mine", 30.0, lambda process: False)
THEIRS = Claim("they", "theirs", 30.0, lambda process: False)


class Clocks:
    """The clocks of a machine, which a test sets."""

    def __init__(self) -> None:
        self.wall_s, self.boot_s = 1.7e9, 500.0
        self.machine = LeaseClock(
            "machine", "boot", "time", lambda: self.wall_s, lambda: self.boot_s
        )

    def wait(self, seconds: float) -> None:
        self.wall_s += seconds
        self.boot_s += seconds


@pytest.fixture
def clocks() -> Clocks:
    return Clocks()


MakeStore = Callable[..., Store]


@pytest.fixture
def make_store(tmp_path: Path, clocks: Clocks) -> Iterator[MakeStore]:
    made = []

    def make(**machine: str) -> Store:
        clock = replace(clocks.machine, **machine)
        made.append(Store(SQLite(str(tmp_path / "runs.db"), "NORMAL", 1.0, clock)))
        return made[-1]

    yield make
    for store in made:
        store.database.close()


@pytest.mark.parametrize("jump_s", [HOUR, -HOUR])
async def test_a_run_keeps_its_lease_when_the_wall_clock_jumps(
    tmp_path: Path, clocks: Clocks, monkeypatch: pytest.MonkeyPatch, jump_s: float
) -> None:
    monkeypatch.setattr(_sqlite, "this_machine", lambda: clocks.machine)

    async def act() -> None:
        clocks.wall_s += jump_s
        with pytest.raises(RunAlreadyActiveError):
            await other.open("r", wait=False, read=bool)
        assert await other.orphans() == []

    async with (
        SQLiteJournal(tmp_path / "runs.db") as journal,
        SQLiteJournal(tmp_path / "runs.db") as other,
    ):
        report = await run_pipeline([WorkflowStep("a", act)], journal=journal, run_id="r")

        report.raise_for_failures()
        session, outcome = await other.open("r", wait=False, read=lambda run: run.status)
        assert outcome == "PASSED"
        await session.close()


@pytest.mark.parametrize(
    "elsewhere",
    [
        {"machine": "another", "boot": "another"},
        {"machine": "another"},  # a copy of an image may have the same boot id by mistake
        {"namespace": "another"},
        {"machine": "", "boot": "another"},
        {"boot": ""},
    ],
)
def test_a_process_with_another_clock_goes_by_the_wall_clock(
    make_store: MakeStore, clocks: Clocks, elsewhere: dict[str, str]
) -> None:
    mine, theirs = make_store(), make_store(**elsewhere)
    (token,) = mine.claim([("r", MINE)])
    clocks.boot_s += HOUR

    (refusal,) = theirs.claim([("r", THEIRS)])
    assert isinstance(refusal, RunAlreadyActiveError)
    clocks.wall_s += 31

    assert theirs.claim([("r", THEIRS)]) == [token + 1]


@pytest.mark.parametrize("jump_s", [HOUR, -HOUR])
def test_the_leases_of_an_earlier_boot_of_the_machine_are_free(
    make_store: MakeStore, clocks: Clocks, jump_s: float
) -> None:
    (token,) = make_store().claim([("r", MINE)])
    clocks.boot_s = 1.0
    clocks.wall_s += jump_s

    assert make_store(boot="the next one").claim([("r", THEIRS)]) == [token + 1]


@pytest.mark.parametrize("is_unknown", [True, False])
def test_without_the_boot_leases_expire_by_the_wall_clock(
    make_store: MakeStore, clocks: Clocks, is_unknown: bool
) -> None:
    store = make_store(boot="" if is_unknown else "boot")
    (token,) = store.claim([("r", MINE)])
    if not is_unknown:
        with store.database.transaction() as cursor:
            cursor.execute("UPDATE leases SET clock = NULL, boot_expires_at = NULL")
    clocks.boot_s += HOUR

    (refusal,) = store.claim([("r", THEIRS)])
    assert isinstance(refusal, RunAlreadyActiveError)
    clocks.wall_s += 31

    assert store.claim([("r", THEIRS)]) == [token + 1]


# --- this machine --------------------------------------------------------------------------------


@pytest.mark.process
@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_all_processes_of_a_machine_share_its_clock() -> None:
    script = """
from asyncflow.journal._database.machine import this_machine
clock = this_machine()
print(repr(clock.name), clock.boot_s())
"""
    before = this_machine().boot_s()
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    name, _, theirs = done.stdout.rpartition(" ")

    assert name == repr(this_machine().name)
    assert before <= float(theirs) <= this_machine().boot_s()


def test_the_machine_is_identified_by_a_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "machine-id").write_text("0123456789abcdef\n")
    monkeypatch.setattr(_machine, "_MACHINE_ID", tmp_path / "machine-id")
    machine = this_machine().machine

    assert len(machine) == 32
    assert "0123456789abcdef" not in machine
    monkeypatch.setattr(_machine.socket, "gethostname", lambda: "another")
    assert this_machine().machine not in ("", machine)
    (tmp_path / "machine-id").write_text("\n")  # as in the image of a container
    assert this_machine().machine == ""


def test_a_system_that_says_nothing_has_the_wall_clock_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_machine, "_PROC", tmp_path)
    monkeypatch.setattr(_machine, "_MACHINE_ID", tmp_path / "missing")
    assert this_machine().name is None

    for clock in ("CLOCK_BOOTTIME", "CLOCK_MONOTONIC"):
        monkeypatch.delattr(time, clock, raising=False)
    clock = this_machine()

    assert (clock.name, clock.machine, clock.namespace) == (None, "", "")
    assert clock.boot_s() <= time.monotonic()


@pytest.mark.parametrize("answers", [True, False])
def test_a_mac_is_asked_by_its_system_call(monkeypatch: pytest.MonkeyPatch, answers: bool) -> None:
    asked = []

    def sysctlbyname(name: bytes, buffer: Any, size: Any, *_: object) -> int:
        asked.append(name)
        buffer.value = b"of-this-mac"
        return 0 if answers else -1

    monkeypatch.setattr(_machine.sys, "platform", "darwin")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(sysctlbyname=sysctlbyname))

    clock = this_machine()

    assert sorted(asked) == [b"kern.bootsessionuuid", b"kern.uuid"]
    assert clock.boot == ("of-this-mac" if answers else "")
    assert bool(clock.machine) == answers
