"""Kills processes of a run, resumes the run, and checks after each whether its promises hold.

A cycle starts from a copy of the folder that a killed process has left. So one start can have many
continuations: the kill points after it are the branches of a tree.
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

__all__ = ["BrokenPromise", "Cycles", "Forks", "Spawns", "fast_folder"]

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "tests.crash.zygote"]

Kill = int | str | float
"""The number of a kill point, its text, or a time after the start in milliseconds."""

StepRun = tuple[str, str]
"""A step, and its item or "-"."""


RESTARTED = {"failing": {"bad", "tidy"}}
"""The steps that start over, with all attempts, when a failed run is resumed: the failed ones and
their dependents."""


class BrokenPromise(AssertionError):
    """A promise was broken. The message says which, and how to repeat it."""


@contextmanager
def fast_folder() -> Iterator[Path]:
    """A temporary folder, in memory if possible: a killed process loses nothing that it wrote."""
    memory = Path("/dev/shm")
    with TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        yield Path(folder)


class Forks:
    """Runs tasks in forks of one process, at a few milliseconds each."""

    def __enter__(self) -> Forks:
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._process = subprocess.Popen(COMMAND, cwd=ROOT, text=True, **pipes)
        self._answer()  # it is ready
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()  # it exits at the end of its input

    def do(self, task: dict[str, Any]) -> list[int]:
        """Return the exit codes; for a process killed by a signal, the negative number of that."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(task) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> list[int]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the zygote has died: see its errors above"
        codes: list[int] = json.loads(line)
        return codes


class Spawns:
    """Runs each task in a fresh interpreter. It supports kill points, but no times and rivals."""

    def do(self, task: dict[str, Any]) -> list[int]:
        return [subprocess.run([*COMMAND, json.dumps(task)], cwd=ROOT, check=False).returncode]


class Row(NamedTuple):
    """The columns of a stored event that are checked."""

    position: int
    kind: str
    step: str | None
    item: int | None
    attempt: int | None
    payload: Any

    @property
    def step_run(self) -> StepRun:
        return (self.step or "", "-" if self.item is None else str(self.item))


class Effect(NamedTuple):
    """A line of the effects of the actions."""

    run_id: str
    step: str
    item: str
    attempt: str
    key: str

    @property
    def step_run(self) -> StepRun:
        return (self.step, self.item)


@dataclass
class State:
    """A run as its processes have left it so far."""

    folder: Path
    kills: tuple[Kill, ...] = ()
    rows: list[Row] = field(default_factory=list)
    done: dict[StepRun, int] = field(default_factory=dict)
    """How often each step and item with a stored success had run when that was first seen."""


class Cycles:
    """Kills and resumes runs of one shape under one schedule.

    Args:
        engine: Runs the processes.
        folder: An empty folder for databases.
        shape: A name in `SHAPES`.
        schedule: ``"tiers"`` or ``"ready"``.
    """

    def __init__(self, engine: Forks | Spawns, folder: Path, shape: str, schedule: str) -> None:
        self._engine, self._folder, self._shape, self._schedule = engine, folder, shape, schedule
        self._numbers = count()
        self.killed = 0
        """How many processes were killed."""
        self._restarted = RESTARTED.get(shape, set())
        self.start = State(self._new_folder())
        whole = self._copy(self.start)
        began = time.perf_counter()
        self._run(whole, 0)
        self.whole_s = time.perf_counter() - began
        """The duration of a run that is not killed."""
        self._outcome = self._outcome_of(whole)
        self.points: list[str] = self._outcome.pop("points")
        """The kill points of a run that is not killed."""
        self._effects = Counter(effect.step_run for effect in _effects_in(whole.folder))
        self._check_end(whole)

    # Scenarios.

    def sweep(self, before: State | None = None) -> list[State]:
        """Kill at every point, and resume after each; return the states that the kills leave.

        Args:
            before: The state that an earlier process has left; by default nothing has run.
        """
        killed = []
        for point in count(1):
            state = self.kill(before or self.start, point)
            if state is None:
                return killed
            self._resume(state)
            killed.append(state)
        raise AssertionError("the points never end")

    def kill_at_random_points(self, random: Random) -> None:
        """Kill up to three processes in a row, each at a random point, and resume."""
        self.replay([random.randint(1, len(self.points)) for _ in range(random.randint(1, 3))])

    def kill_at_random_times(self, random: Random) -> None:
        """Kill up to three processes in a row, each after a random time, and resume."""
        longest_ms = self.whole_s * 1000
        self.replay([random.uniform(1, longest_ms) for _ in range(random.randint(1, 3))])

    def replay(self, kills: Iterable[Kill]) -> None:
        """Kill one process after the other in this way, and resume."""
        state = self.start
        for kill in kills:
            after = self.kill(state, kill)
            if after is None:
                return
            state = after
        self._resume(state)

    def kill_one_of_two(self, random: Random) -> None:
        """Kill one of two processes that run the same run concurrently; resume after both."""
        state = self._copy(self.start)
        kill = random.randint(1, len(self.points))
        state.kills = (kill,)
        codes = self._run(state, kill, rival=True)
        self.killed += codes.count(-signal.SIGKILL)
        self._check(state)
        self._resume(state)

    # Their parts.

    def kill(self, before: State, kill: Kill) -> State | None:
        """Run until the process is killed; return its state, or ``None`` if it ended before."""
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
        """Resume the run, and return the summary of its report without a check."""
        state = self._copy(before)
        self._run(state, 0)
        returned: dict[str, list[Any]] = self._outcome_of(state)["returned"]
        return returned

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

    # The promises.

    def _check(self, state: State) -> None:
        """Check what must hold whenever a process has ended, in whatever way."""
        stored = _rows_in(state.folder)
        effects = _effects_in(state.folder)
        ran = Counter(effect.step_run for effect in effects)
        self._require(
            state, stored[: len(state.rows)] == state.rows, "the stored events have changed"
        )
        places = [row.position for row in stored]
        self._require(state, places == sorted(set(places)), f"the positions are {places}")
        kinds = [row.kind for row in stored]
        restarts = list(pairwise(kinds)).count(("RunFinished", "RunResumed"))
        began = {
            (*row.step_run, str(row.attempt)) for row in stored if row.kind == "AttemptStarted"
        }
        calls = [(*effect.step_run, effect.attempt) for effect in effects]
        for call in calls:
            self._require(
                state, call in began, f"{call} had its effect before its start was stored"
            )
        for call, times in Counter(calls).items():
            rounds = 1 + (restarts if call[0] in self._restarted else 0)
            self._require(state, times <= rounds, f"the attempt {call} ran {times} times")
        for effect in effects:
            key = f"{RUN_ID}/{effect.step}" + ("" if effect.item == "-" else f"#{effect.item}")
            self._require(state, effect.key == key, f"the idempotency key was {effect.key}")
        for step_run, times in state.done.items():
            holds = ran[step_run] == times or (restarts and step_run[0] in self._restarted)
            self._require(state, holds, f"{step_run} ran again, although its success was stored")
        for step_run, times in ran.items():
            rounds = 1 + (restarts if step_run[0] in self._restarted else 0)
            most = self._effects[step_run] * rounds + len(state.kills)
            self._require(state, times <= most, f"{step_run} ran {times} times, not {most} at most")
        state.rows = stored
        for row in stored:
            if row.kind == "StepSucceeded":
                state.done.setdefault(row.step_run, ran[row.step_run])

    def _check_end(self, state: State) -> None:
        """Check what must hold when the run has ended."""
        self._check(state)
        outcome = self._outcome_of(state)
        for which in ("returned", "stored"):
            is_, should = outcome[which], self._outcome[which]
            self._require(state, is_ == should, f"the report {which} is\n{is_}\nnot\n{should}")
        returned, stored = (_without_outputs(outcome[which]) for which in ("returned", "stored"))
        differ = f"the report returned is\n{returned}\nand stored\n{stored}"
        self._require(state, returned == stored, differ)
        for name, history in outcome["histories"].items():
            numbers, crashed = zip(*history, strict=True) if history else ((), ())
            # A step that starts over counts from 1 again.
            holds = all(later in (1, one + 1) for one, later in pairwise((0, *numbers)))
            self._require(state, holds, f"the attempts of {name} have the numbers {numbers}")
            holds = sum(crashed) <= len(state.kills)
            self._require(state, holds, f"{sum(crashed)} attempts of {name} crashed")
        ran = Counter(effect.step_run for effect in _effects_in(state.folder))
        for step_run, times in self._effects.items():
            self._require(
                state, ran[step_run] >= times, f"{step_run} ran {ran[step_run]} times, not {times}"
            )
        with closing(_read_only(state.folder)) as database:
            found = database.execute("SELECT status FROM runs").fetchall()
            status = "failed" if self._shape == "failing" else "passed"
            self._require(state, found == [(status,)], f"the status is {found}")
            owners = database.execute("SELECT owner FROM leases").fetchall()
            self._require(state, owners == [(None,)], f"the run still has the owner {owners}")

    def _require(self, state: State, holds: bool, otherwise: str) -> None:
        if not holds:
            raise self._broken(state, otherwise)

    def _broken(self, state: State, what: str) -> BrokenPromise:
        note = state.folder / "killed"
        last = f" (the last one {note.read_text()})" if note.exists() else ""
        kills = " ".join(map(str, state.kills))  # a float has a dot
        return BrokenPromise(
            f"{what}\nin the shape {self._shape} under {self._schedule}, killed at the points "
            f"{kills or 'none'}{last}; to repeat it:\n"
            f"{sys.executable} -m tests.crash replay {self._shape} {self._schedule} {kills}"
        )

    @staticmethod
    def _outcome_of(state: State) -> dict[str, Any]:
        outcome: dict[str, Any] = json.loads((state.folder / "outcome").read_text())
        return outcome


def _without_outputs(summary: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Return a summary without outputs, which are stored without their types."""

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
        result = database.execute("PRAGMA integrity_check").fetchone()[0]
        assert result == "ok", result
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
