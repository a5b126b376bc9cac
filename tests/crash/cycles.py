"""Kills processes of a run, resumes it, and looks after each whether what is promised holds.

A cycle starts from a folder as a killed process has left it, in a copy, so that one beginning can
go on in many ways: the kill points after it are swept as branches of a tree.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from itertools import count, pairwise
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from tests.crash.zygote import RUN_ID

__all__ = ["Broken", "Cycles", "Forks", "Spawns", "fast_folder"]

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "tests.crash.zygote"]

Kill = int | str | float
"""The number of a kill point, its words, or a time after the start in milliseconds."""

Unit = tuple[str, str]
"""A step, and its item or "-"."""


AFRESH = {"failing": {"bad", "tidy"}}
"""What runs anew, with all its attempts, when a run is resumed that has ended: what has failed, and
what depends on that."""


class Broken(AssertionError):
    """A promise was not kept. The message says which, and how to see it again."""


@contextmanager
def fast_folder() -> Iterator[Path]:
    """A temporary folder, in memory if possible: a killed process loses nothing that it wrote."""
    memory = Path("/dev/shm")
    with TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        yield Path(folder)


class Forks:
    """Does tasks in forks of one process: some milliseconds each."""

    def __enter__(self) -> Forks:
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._process = subprocess.Popen(COMMAND, cwd=ROOT, text=True, **pipes)
        self._answer()  # it is ready
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()  # at the end of its input it ends

    def do(self, task: dict[str, Any]) -> list[int]:
        """Return the exit codes; that of a process killed by a signal is its number, negative."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(task) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> list[int]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the zygote has died: its errors stand above"
        codes: list[int] = json.loads(line)
        return codes


class Spawns:
    """Does each task in a fresh interpreter. Nothing but the points of a task kills there."""

    def do(self, task: dict[str, Any]) -> list[int]:
        return [subprocess.run([*COMMAND, json.dumps(task)], cwd=ROOT, check=False).returncode]


class Row(NamedTuple):
    """An event in the database, as far as it is looked at here."""

    position: int
    kind: str
    step: str | None
    item: int | None
    attempt: int | None
    payload: Any

    @property
    def unit(self) -> Unit:
        return (self.step or "", "-" if self.item is None else str(self.item))


class Effect(NamedTuple):
    """A line of what the actions have done."""

    run_id: str
    step: str
    item: str
    attempt: str
    key: str

    @property
    def unit(self) -> Unit:
        return (self.step, self.item)


@dataclass
class State:
    """A run as its processes have left it so far."""

    folder: Path
    kills: tuple[Kill, ...] = ()
    rows: list[Row] = field(default_factory=list)
    done: dict[Unit, int] = field(default_factory=dict)
    """How often each step and item whose success is kept had run when it was first seen so."""


class Cycles:
    """All that is tried with one shape under one schedule.

    Args:
        engine: What runs the processes.
        folder: An empty folder for databases.
        shape: A name in `SHAPES`.
        schedule: ``"tiers"`` or ``"ready"``.
    """

    def __init__(self, engine: Forks | Spawns, folder: Path, shape: str, schedule: str) -> None:
        self._engine, self._folder, self._shape, self._schedule = engine, folder, shape, schedule
        self._numbers = count()
        self.killed = 0
        """How many processes were killed."""
        self._afresh = AFRESH.get(shape, set())
        self.start = State(self._new_folder())
        whole = self._copy(self.start)
        began = time.perf_counter()
        self._run(whole, 0)
        self.whole_s = time.perf_counter() - began
        """How long a run takes that is not killed."""
        self._outcome = self._outcome_of(whole)
        self.points: list[str] = self._outcome.pop("points")
        """The kill points of a run that is not killed."""
        self._effects = Counter(effect.unit for effect in _effects_in(whole.folder))
        self._check_end(whole)

    # What is tried.

    def sweep(self, before: State | None = None) -> list[State]:
        """Kill at every point, and resume after each; return what the kills have left.

        Args:
            before: What an earlier process has left; by default nothing has run.
        """
        killed = []
        for point in count(1):
            state = self.kill(before or self.start, point)
            if state is None:
                return killed
            self._resume(state)
            killed.append(state)
        raise AssertionError("it counts for ever")

    def walk(self, random: Random) -> None:
        """Kill up to three processes in a row, each at a random point, and resume."""
        self.follow([random.randint(1, len(self.points)) for _ in range(random.randint(1, 3))])

    def stroll(self, random: Random) -> None:
        """Kill up to three processes in a row, each after a random time, and resume."""
        longest_ms = self.whole_s * 1000
        self.follow([random.uniform(1, longest_ms) for _ in range(random.randint(1, 3))])

    def follow(self, kills: Iterable[Kill]) -> None:
        """Kill these processes, one after the other, and resume."""
        state = self.start
        for kill in kills:
            after = self.kill(state, kill)
            if after is None:
                return
            state = after
        self._resume(state)

    def contest(self, random: Random) -> None:
        """Kill one of two processes that run the same at the same time; resume after both."""
        state = self._copy(self.start)
        kill = random.randint(1, len(self.points))
        state.kills = (kill,)
        codes = self._run(state, kill, rival=True)
        self.killed += codes.count(-signal.SIGKILL)
        self._check(state)
        self._resume(state)

    # The single steps of it.

    def kill(self, before: State, kill: Kill) -> State | None:
        """Run until the process is killed; return what is left, or ``None`` if it ended before."""
        state = self._copy(before)
        state.kills = (*before.kills, kill)
        if self._run(state, kill) == [0]:
            self._check_end(state)
            shutil.rmtree(state.folder)
            return None
        self.killed += 1
        self._check(state)
        return state

    def end(self, before: State) -> dict[str, list[Any]]:
        """Resume the run, and return the summary of its report, whatever that is."""
        state = self._copy(before)
        self._run(state, 0)
        told: dict[str, list[Any]] = self._outcome_of(state)["told"]
        return told

    def _resume(self, before: State) -> None:
        state = self._copy(before)
        self._run(state, 0)
        self._check_end(state)
        shutil.rmtree(state.folder)

    def _run(self, state: State, kill: Kill, *, rival: bool = False) -> list[int]:
        task = {
            "folder": str(state.folder),
            "shape": self._shape,
            "schedule": self._schedule,
            "point": 0 if isinstance(kill, float) else kill,
            "ms": kill if isinstance(kill, float) else 0,
            "rival": rival,
        }
        codes = self._engine.do(task)
        for code in codes:
            if code != 0 and not (kill and code == -signal.SIGKILL):
                error = state.folder / "error"
                text = error.read_text() if error.exists() else f"exit code {code}"
                raise self._broken(state, text)
        return codes

    def _new_folder(self) -> Path:
        folder = self._folder / str(next(self._numbers))
        folder.mkdir()
        return folder

    def _copy(self, state: State) -> State:
        folder = self._folder / str(next(self._numbers))
        shutil.copytree(state.folder, folder)
        return State(folder, state.kills, state.rows, dict(state.done))

    # What is promised.

    def _check(self, state: State) -> None:
        """Check what must hold whenever a process has ended, however it did."""
        kept = _rows_in(state.folder)
        effects = _effects_in(state.folder)
        ran = Counter(effect.unit for effect in effects)
        self._hold(state, kept[: len(state.rows)] == state.rows, "what was kept has changed")
        places = [row.position for row in kept]
        self._hold(state, places == sorted(set(places)), f"the positions are {places}")
        kinds = [row.kind for row in kept]
        anew = list(pairwise(kinds)).count(("RunFinished", "RunResumed"))
        began = {(*row.unit, str(row.attempt)) for row in kept if row.kind == "AttemptStarted"}
        calls = [(*effect.unit, effect.attempt) for effect in effects]
        for call in calls:
            self._hold(state, call in began, f"{call} had its effect before its start was kept")
        for call, times in Counter(calls).items():
            rounds = 1 + (anew if call[0] in self._afresh else 0)
            self._hold(state, times <= rounds, f"the attempt {call} ran {times} times")
        for effect in effects:
            key = f"{RUN_ID}/{effect.step}" + ("" if effect.item == "-" else f"#{effect.item}")
            self._hold(state, effect.key == key, f"the idempotency key was {effect.key}")
        for unit, times in state.done.items():
            holds = ran[unit] == times or (anew and unit[0] in self._afresh)
            self._hold(state, holds, f"{unit} ran again, though its success was kept")
        for unit, times in ran.items():
            rounds = 1 + (anew if unit[0] in self._afresh else 0)
            most = self._effects[unit] * rounds + len(state.kills)
            self._hold(state, times <= most, f"{unit} ran {times} times, not {most} at most")
        state.rows = kept
        for row in kept:
            if row.kind == "StepSucceeded":
                state.done.setdefault(row.unit, ran[row.unit])

    def _check_end(self, state: State) -> None:
        """Check what must hold when the run has ended."""
        self._check(state)
        outcome = self._outcome_of(state)
        for which in ("told", "stored"):
            is_, should = outcome[which], self._outcome[which]
            self._hold(state, is_ == should, f"the report {which} is\n{is_}\nnot\n{should}")
        told, stored = (_without_outputs(outcome[which]) for which in ("told", "stored"))
        self._hold(state, told == stored, f"the report told is\n{told}\nand stored\n{stored}")
        for name, history in outcome["histories"].items():
            numbers, cut_short = zip(*history, strict=True) if history else ((), ())
            holds = [*numbers] == [*range(1, len(numbers) + 1)]
            self._hold(state, holds, f"the attempts of {name} have the numbers {numbers}")
            holds = sum(cut_short) <= len(state.kills)
            self._hold(state, holds, f"{sum(cut_short)} attempts of {name} were cut short")
        ran = Counter(effect.unit for effect in _effects_in(state.folder))
        for unit, times in self._effects.items():
            self._hold(state, ran[unit] >= times, f"{unit} ran {ran[unit]} times, not {times}")
        with closing(_read_only(state.folder)) as database:
            found = database.execute("SELECT status FROM runs").fetchall()
            kept = "failed" if self._shape == "failing" else "passed"
            self._hold(state, found == [(kept,)], f"the status is {found}")
            owners = database.execute("SELECT owner FROM leases").fetchall()
            self._hold(state, owners == [(None,)], f"the run still has the owner {owners}")

    def _hold(self, state: State, holds: bool, otherwise: str) -> None:
        if not holds:
            raise self._broken(state, otherwise)

    def _broken(self, state: State, what: str) -> Broken:
        note = state.folder / "killed"
        last = f" (the last one {note.read_text()})" if note.exists() else ""
        kills = " ".join(map(str, state.kills))  # a float has a dot
        return Broken(
            f"{what}\nin the shape {self._shape} under {self._schedule}, killed at its points "
            f"{kills or 'none'}{last}; to see it again:\n"
            f"{sys.executable} -m tests.crash replay {self._shape} {self._schedule} {kills}"
        )

    @staticmethod
    def _outcome_of(state: State) -> dict[str, Any]:
        outcome: dict[str, Any] = json.loads((state.folder / "outcome").read_text())
        return outcome


def _without_outputs(summary: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Leave out the outputs, which are stored without the types that they come back with."""

    def of(result: list[Any]) -> list[Any]:
        *others, items = result
        del others[1]
        return [*others, None if items is None else [of(item) for item in items]]

    return {name: of(result) for name, result in summary.items()}


def _read_only(folder: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{folder / 'runs.db'}?mode=ro", uri=True)


def _rows_in(folder: Path) -> list[Row]:
    if not (folder / "runs.db").exists():
        return []
    with closing(_read_only(folder)) as database:
        verdict = database.execute("PRAGMA integrity_check").fetchone()[0]
        assert verdict == "ok", verdict
        tables = database.execute("SELECT 1 FROM sqlite_master WHERE name = 'events'").fetchall()
        if not tables:
            return []
        columns = ", ".join(Row._fields)
        query = f"SELECT {columns} FROM events WHERE run_id = ? ORDER BY position"
        return [Row(*row) for row in database.execute(query, (RUN_ID,))]


def _effects_in(folder: Path) -> list[Effect]:
    path = folder / "effects"
    lines = path.read_text().splitlines() if path.exists() else []
    return [Effect(*line.split()) for line in lines]
