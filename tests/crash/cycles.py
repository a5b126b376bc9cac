"""Kills processes of a run, resumes the run, and checks after each whether its promises hold.

A cycle starts from a copy of the folder that a killed process has left. So one start can have many
continuations: the kill points after it are the branches of a tree.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import count, pairwise
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from tests.crash.databases import Call, Database, Files, Row, Server, StepRun
from tests.crash.effects import lines_of
from tests.crash.faults import GAMES, JUMPS, PUT_BACK, play, put_back
from tests.crash.senders import answers_in
from tests.crash.shapes import QUOTED, SIGNALS
from tests.crash.zygote import RUN_ID, journal_of

__all__ = ["BrokenPromise", "Cycles", "Forks", "Spawns", "fast_folder"]

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "tests.crash.zygote"]

Kill = int | str | float
"""The number of a kill point, its text, or a time after the start in milliseconds."""

RESTARTED = {"failing": {"bad", "tidy"}}
"""The steps that start over, with all attempts, when a failed run is resumed: the failed ones and
their dependents."""

PARTS_LATER = 3
"""How many parts of work later, 80 ms each, a part is stored at the latest. Not a time: on a busy
machine all processes are slow."""


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

    def do(self, task: dict[str, Any], meanwhile: Callable[[], object] | None = None) -> list[int]:
        """Return the exit codes; for a process killed by a signal, the negative number of that."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(task) + "\n")
        self._process.stdin.flush()
        if meanwhile is not None:
            meanwhile()
        return self._answer()

    def _answer(self) -> list[int]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the zygote has died: see its errors above"
        codes: list[int] = json.loads(line)
        return codes


class Spawns:
    """Runs each task in a fresh interpreter. It supports kill points, but no times and rivals."""

    def do(self, task: dict[str, Any], meanwhile: None = None) -> list[int]:
        return [subprocess.run([*COMMAND, json.dumps(task)], cwd=ROOT, check=False).returncode]


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
    run_id: str = RUN_ID
    kills: tuple[Kill, ...] = ()
    rows: list[Row] = field(default_factory=list)
    done: dict[StepRun, int] = field(default_factory=dict)
    """How often each step and item with a stored success had run when that was first seen."""
    saved: int | None = None
    """The checkpoint that the latest process has left, if one is stored."""
    lines: int = 0
    """How many lines about parts it had written by then."""
    note: str = ""
    """What has happened to it beside that."""
    stops: int = 0
    """How many of its processes have stopped because of a game with their files."""
    calls: dict[str, int] = field(default_factory=dict)
    """How often each call with a stored result had been made when that was first seen."""
    paid: dict[Call, int] = field(default_factory=dict)
    """How often each call by name had been made when it was first seen that its value is stored."""
    is_cancelled: bool = False
    """Whether it was cancelled: a later start begins all steps afresh that have not succeeded."""

    @property
    def interruptions(self) -> int:
        """How often an attempt may have begun and not been stored."""
        return len(self.kills) + self.stops


class Cycles:
    """Kills and resumes runs of one shape under one schedule.

    Args:
        engine: Runs the processes.
        folder: An empty folder for databases.
        shape: A name in `SHAPES`.
        schedule: ``"tiers"`` or ``"ready"``.
        database: Where the runs are stored.
        has_tables: Whether their tables are there before the first process starts. Making them
            takes some kill points of a short run.
    """

    def __init__(
        self,
        engine: Forks | Spawns,
        folder: Path,
        shape: str,
        schedule: str,
        database: Database | None = None,
        *,
        has_tables: bool = True,
    ) -> None:
        self._engine, self._folder, self._shape, self._schedule = engine, folder, shape, schedule
        self._database = database or Files()
        self._numbers = count()
        self.games = self.jumps = self.stalls = self.cancelled = 0
        """How many games there were with files, how often a clock has jumped or an owner has stood
        still, and how many runs were cancelled that had no process."""
        self.killed = 0
        """How many processes were killed."""
        self.has_signals = shape in SIGNALS
        self._restarted = RESTARTED.get(shape, set())
        self.start = State(self._new_folder())
        if has_tables:
            asyncio.run(self._make_tables())
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

    def sweep(self, before: State | None = None, every: int = 1) -> list[State]:
        """Kill at every point, and resume after each; return the states that the kills leave.

        Args:
            before: The state that an earlier process has left; by default nothing has run.
            every: To kill at every third point only, say 3. An even number would leave out all that
                come before a statement, or all that come after one.
        """
        killed = []
        for point in count(1, every):
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
        state, killed = self.start, []
        for kill in kills:
            after = self.kill(state, kill)
            if after is None:
                break
            killed.append(after)
            state = after
        else:
            self._resume(state)
        for each in killed:
            shutil.rmtree(each.folder)

    def kill_one_of_two(self, random: Random) -> None:
        """Kill one of two processes that run the same run concurrently; resume after both."""
        state = self._copy(self.start)
        kill = random.randint(1, len(self.points))
        state.kills = (kill,)
        codes = self._run(state, kill, rival=True)
        self.killed += codes.count(-signal.SIGKILL)
        self._check(state)
        self._resume(state)
        shutil.rmtree(state.folder)

    def kill_senders(self, random: Random) -> None:
        """Kill a process, senders of signals to the run that it leaves, and one to that resumed."""
        before = self.kill(self.start, random.randint(1, len(self.points)))
        if before is None:
            return
        state, senders = self._copy(before), []
        if self._database.rows(state.folder, state.run_id):  # else there is no run
            senders = [random.randint(1, 8) for _ in range(random.randint(0, 2))]
        for kill in senders:
            self.killed += self._run(state, kill, send=True).count(-signal.SIGKILL)
            self._check(state)
        sender_kill = random.randint(1, 8)
        state.note = f"killed senders at {senders} without an owner, and at {sender_kill} with one"
        self._run(state, 0, sender_kill=sender_kill)
        self._check_end(state)
        for each in (before, state):
            shutil.rmtree(each.folder)

    def stall(self, random: Random) -> None:
        """Let the owner of a run stand still for longer than its lease, beside another process.

        Meanwhile the run may be cancelled too. What the owner does when it wakes up counts no more.
        """
        state = self._copy(self.start)
        point = random.randint(1, len(self.points))
        cancel_after_s = random.choice([None, random.uniform(0.01, 2 * self.whole_s)])
        state.note, state.stops = f"stalled at {point}, cancelled after {cancel_after_s} s", 2
        state.is_cancelled = cancel_after_s is not None
        options: Any = {"stall": point, "cancel_after_s": cancel_after_s, "may_fail": True}
        self._run(state, 0, rival=True, **options)
        self.stalls += 1
        self._check(state)
        if state.is_cancelled:
            self._run(state, 0)  # it may end as cancelled
        self._resume(state)
        shutil.rmtree(state.folder)

    def jump(self, random: Random) -> None:
        """Let the wall clock of one of two processes jump that run the same run; kill it or not."""
        state = self._copy(self.start)
        kill = random.choice([0, random.randint(1, len(self.points))])
        early = random.randint(1, 4)  # before it has claimed the run
        jump = random.choice(JUMPS), random.choice([early, random.randint(1, len(self.points))])
        state.note = f"jump {jump[0]} at {jump[1]}"
        state.kills = (kill,) if kill else ()
        codes = self._run(state, kill, rival=random.random() < 0.7, jump=jump)
        self.killed += codes.count(-signal.SIGKILL)
        self.jumps += 1
        self._check(state)
        self._resume(state)
        shutil.rmtree(state.folder)

    def play_with_files(self, random: Random) -> None:
        """Play with the files of the database while a run continues; it may be a resumed one."""
        state = self.start
        if random.random() < 0.5:
            state = self.kill(state, random.randint(1, len(self.points))) or state
        game = random.choice([*GAMES]), random.randint(1, len(self.points))
        self.games += 1
        before, state = state, self._copy(state)
        state.note, state.stops = f"{game[0]} at {game[1]}", 1
        self._run(state, 0, game=game)
        outcome = self._outcome_of(state)
        if "error" not in outcome and not outcome["struck"]:
            return  # there was no file yet, or the run had ended
        if outcome.get("struck") and not self._is_untellable(game[0], outcome["points"][: game[1]]):
            status, _ = self._database.status(state.folder, state.run_id)
            holds = status == self._status
            self._require(state, holds, f"a run has passed that is not kept: it is {status}")
            kinds = [row.kind for row in self._database.rows(state.folder, state.run_id)]
            holds = kinds[-1:] == ["RunFinished"]
            self._require(state, holds, f"a run has passed of which is kept: {kinds}")
        self._continue_after(game[0], state)
        shutil.rmtree(before.folder) if before is not self.start else None

    @staticmethod
    def _is_untellable(game: str, before: list[str]) -> bool:
        """Whether a journal can't tell: it has not looked at its WAL yet, or is committing.

        Args:
            game: The game.
            before: The points until then.
        """
        has_looked = "before INSERT" in before
        return game in ("cut wal", "empty wal") and (
            not has_looked or before[-1].endswith("COMMIT")
        )

    def play_between(self, random: Random) -> None:
        """Play with the files of the database between two segments."""
        state = self.kill(self.start, random.randint(1, len(self.points)))
        if state is None:
            return
        game = random.choice([*GAMES])
        self.games += 1
        state.note = f"{game} after the kill"
        play(game, state.folder / "runs.db")
        self._continue_after(game, state)

    def _continue_after(self, game: str, state: State) -> None:
        """Resume a run after a game. What it has lost runs again, but what it tells is stored."""
        if game in PUT_BACK:
            put_back(state.folder / "runs.db")
            self._check(state)
            self._resume(state)
            shutil.rmtree(state.folder)
            return
        (state.folder / "outcome").unlink(missing_ok=True)
        self._run(state, 0, may_fail=True)
        outcome = self._outcome_of(state)
        if "error" not in outcome:
            self._check_reports(state, outcome)
            status, owner = self._database.status(state.folder, state.run_id)
            holds = (status, owner) == (self._status, None)
            self._require(state, holds, f"the status is {status}, and the owner {owner}")
        shutil.rmtree(state.folder)

    def cut_connections(self, random: Random) -> None:
        """Cut all connections, or restart the server, while a run continues; kill it or not."""
        assert isinstance(self._database, Server)
        server, state = self._database, self._copy(self.start)
        kill = random.choice([0, 0, random.randint(1, len(self.points))])
        state.kills, state.note = ((kill,) if kill else ()), "cut connections"
        codes = self._run(
            state,
            kill,
            meanwhile=lambda: server.disturb(random, self.whole_s),
            may_fail=True,
        )
        self.killed += codes.count(-signal.SIGKILL)
        if codes == [0]:
            outcome = self._outcome_of(state)
            if "error" not in outcome:
                self._check_end(state)
                shutil.rmtree(state.folder)
                return
            # A journal does not wait for a server that has never answered it.
            has_begun = bool(self._database.rows(state.folder, state.run_id))
            self._require(state, not has_begun, outcome["error"])
        self._check(state)
        self._resume(state)
        shutil.rmtree(state.folder)

    def cancel_without_a_process(self, random: Random) -> None:
        """Cancel a run whose process was killed; kill who cancels it, and who takes it up."""
        before = self.kill(self.start, random.randint(1, len(self.points)))
        if before is None:
            return
        state = self._copy(before)
        state.is_cancelled, state.note = True, "cancelled after that"
        self._run(state, random.choice([0, 0, random.randint(1, 9)]), cancel=True)
        was_asked = self._take_outcome(state).get("asked")  # unknown if that process was killed
        effects = _effects_in(state.folder)
        kills = [*random.choices(range(1, len(self.points) + 1), k=random.randint(0, 2)), 0]
        if self._database.status(state.folder, state.run_id)[0] == "interrupted":
            self.cancelled += 1  # it was waiting, and has ended at once
            kills = []
        for kill in kills:
            state.kills = (*state.kills, kill) if kill else state.kills
            self._run(state, kill)
            self._check(state)
            outcome = self._take_outcome(state)
            status, owner = self._database.status(state.folder, state.run_id)
            if was_asked or status == "interrupted":
                holds = _effects_in(state.folder) == effects
                self._require(state, holds, "a step had an effect although the run was cancelled")
            if status == "interrupted":
                self.cancelled += 1
                holds = owner is None or not outcome
                self._require(state, holds, f"the run still has the owner {owner}")
                break
            if outcome:
                break  # it had not been asked, or all of its steps had ended
        self._run(state, 0)
        self._check_end(state)
        for each in (before, state):
            shutil.rmtree(each.folder)

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

    def _run(
        self,
        state: State,
        kill: Kill,
        *,
        rival: bool = False,
        game: tuple[str, int] | None = None,
        jump: tuple[str, int] | None = None,
        meanwhile: Callable[[], object] | None = None,
        may_fail: bool = False,
        cancel: bool = False,
        send: bool = False,
        sender_kill: int = 0,
        stall: int = 0,
        cancel_after_s: float | None = None,
    ) -> list[int]:
        task = {
            "cancel": cancel,
            "stall": stall,
            "has_short_lease": bool(stall),
            "cancel_after_s": cancel_after_s,
            "send": send,
            "sender_point": sender_kill,
            "is_answered": self.has_signals and not (cancel or send),
            "may_fail": may_fail,
            "folder": str(state.folder),
            "run_id": state.run_id,
            "dsn": self._database.dsn,
            "game": game,
            "jump": jump,
            "shape": self._shape,
            "schedule": self._schedule,
            "point": 0 if isinstance(kill, float) else kill,
            "ms": kill if isinstance(kill, float) else 0,
            "rival": rival,
        }
        codes = self._engine.do(task, meanwhile)
        self.killed += codes.count(-signal.SIGKILL) if state.is_cancelled else 0
        for code in codes:
            if code != 0 and not (kill and code == -signal.SIGKILL):
                error = state.folder / "error"
                text = error.read_text() if error.exists() else f"exit code {code}"
                raise self._broken(state, text)
        return codes

    async def _make_tables(self) -> None:
        task = {"folder": str(self.start.folder), "dsn": self._database.dsn}
        async with journal_of(task) as journal:
            await journal.runs()

    def _new_folder(self) -> Path:
        folder = self._folder / str(next(self._numbers))
        folder.mkdir()
        return folder

    def _copy(self, state: State) -> State:
        folder = self._folder / str(next(self._numbers))
        shutil.copytree(state.folder, folder)
        run_id = state.run_id
        if self._database.dsn is not None and state is self.start:
            # Where runs share a database, what is copied is a run that has not begun.
            run_id = f"{self._shape}-{self._schedule}-{folder.name}"
        return replace(
            state,
            folder=folder,
            run_id=run_id,
            done=dict(state.done),
            calls=dict(state.calls),
            paid=dict(state.paid),
        )

    # The promises.

    def _check(self, state: State) -> None:
        """Check what must hold whenever a process has ended, in whatever way."""
        stored = self._database.rows(state.folder, state.run_id)
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
            rounds = 1 + (restarts if call[0] in self._restarted or state.is_cancelled else 0)
            self._require(state, times <= rounds, f"the attempt {call} ran {times} times")
        for effect in effects:
            key = f"{state.run_id}/{effect.step}" + (
                "" if effect.item == "-" else f"#{effect.item}"
            )
            self._require(state, effect.key == key, f"the idempotency key was {effect.key}")
        for step_run, times in state.done.items():
            holds = ran[step_run] == times or (restarts and step_run[0] in self._restarted)
            self._require(state, holds, f"{step_run} ran again, although its success was stored")
        for step_run, times in ran.items():
            may_restart = step_run[0] in self._restarted or state.is_cancelled
            rounds = 1 + (restarts if may_restart else 0)
            most = self._effects[step_run] * rounds + state.interruptions
            self._require(state, times <= most, f"{step_run} ran {times} times, not {most} at most")
        self._check_checkpoint(state, stored)
        self._check_calls(state, stored)
        self._check_paid(state, stored)
        self._check_signals(state, stored)
        state.rows = stored
        for row in stored:
            if row.kind == "StepSucceeded":
                state.done.setdefault(row.step_run, ran[row.step_run])

    def _check_checkpoint(self, state: State, stored: list[Row]) -> None:
        """Check that the work continued after what was stored of it, and what is stored now."""
        lines = [line.split() for line in lines_of(state.folder / "parts")]
        saved, new = state.saved, [(what, int(part)) for what, part in lines[state.lines :]]
        for part in (part for what, part in new if what == "begin"):
            holds = part == (saved or 0)
            self._require(state, holds, f"a process began after part {part}; stored was {saved}")
            break
        for part in (part for what, part in new if what == "part"):
            holds = part > (saved or 0)
            self._require(state, holds, f"part {part} was done again; stored was {saved}")
        state.saved, state.lines = self._database.saved(state.folder, state.run_id), len(lines)
        done = max((int(part) for what, part in lines if what == "part"), default=0)
        self._require(
            state, (state.saved or 0) <= done, f"{state.saved} is stored, and {done} done"
        )
        has_succeeded = ("StepSucceeded", "parts") in {(row.kind, row.step) for row in stored}
        begins = [at for at, (what, _) in enumerate(lines) if what == "begin"]
        reached = max((int(part) for _, part in lines[max(begins, default=0) :]), default=0)
        due = 0 if has_succeeded else reached - PARTS_LATER
        holds = (state.saved or 0) >= due
        self._require(state, holds, f"part {reached} was begun, and {state.saved} is stored")
        holds = not (has_succeeded and state.saved)
        self._require(state, holds, "a step that has succeeded still has a checkpoint")

    def _check_calls(self, state: State, stored: list[Row]) -> None:
        """Check that no call was made again whose result was stored."""
        made = Counter(lines_of(state.folder / "asked"))
        for word, times in state.calls.items():
            self._require(state, made[word] == times, f"{word} was asked for again")
        for word, times in made.items():
            most = 1 + state.interruptions
            self._require(state, times <= most, f"{word} was asked for {times} times")
        for row in stored:
            if row.kind == "StepSucceeded" and row.step == "quote" and row.item is not None:
                state.calls.setdefault(QUOTED[row.item], made[QUOTED[row.item]])

    def _check_paid(self, state: State, stored: list[Row]) -> None:
        """Check that no call by name was made again that had returned, or whose value is stored."""
        made, has = Counter[Call](), set[Call]()
        for what, *call in map(str.split, lines_of(state.folder / "paid")):
            step, item, name = call
            key = step, item, name
            if what == "has":
                has.add(key)
                continue
            made[key] += 1
            # Where an owner stands still, another process has the value before it wakes up.
            holds = key not in has or bool(state.stops)
            self._require(state, holds, f"{key} was paid again, although it had returned")
        for key, times in state.paid.items():
            self._require(
                state, made[key] == times, f"{key} was paid again, although it was stored"
            )
        for key, times in made.items():
            most = 1 + state.interruptions
            self._require(state, times <= most, f"{key} was paid {times} times")
        in_loop = sum(times for (step, *_), times in made.items() if step == "agent")
        holds = in_loop <= 10 + state.interruptions
        self._require(state, holds, f"a loop of ten calls has paid {in_loop} times")
        kept = self._database.calls(state.folder, state.run_id)
        succeeded = {row.step_run for row in stored if row.kind == "StepSucceeded"}
        left = [key for key in kept if key[:2] in succeeded]
        self._require(state, not left, f"a step that has succeeded still has calls: {left}")
        lost = [key for key in has - kept if key[:2] not in succeeded]
        self._require(state, not lost, f"calls have returned that are not stored: {lost}")
        for key in kept:
            state.paid.setdefault(key, made[key])

    def _check_signals(self, state: State, stored: list[Row]) -> None:
        """Check that no signal counts twice, and that the one counts which was accepted."""
        kinds = Counter((row.kind, row.step) for row in stored)
        received = {*lines_of(state.folder / "answers")}
        for name in SIGNALS.get(self._shape, ()):
            tried, accepted, is_refused = answers_in(state.folder, name)
            counted = [int(line.split()[1]) for line in received if line.startswith(name)]
            times = kinds["StepSucceeded", name]
            self._require(state, times <= 1, f"the signal {name} has counted {times} times")
            for value in counted:
                possible = {accepted} if accepted is not None else {*tried, 0}
                holds = len(counted) == 1 and value in possible
                what = f"{counted} counted for {name}; {tried} were tried, accepted {accepted}"
                self._require(state, holds, what)
            holds = name == "paid" or not is_refused or len(set(tried)) > 1
            self._require(state, holds, f"the only value for {name} was refused")

    def _check_end(self, state: State) -> None:
        """Check what must hold when the run has ended."""
        self._check(state)
        outcome = self._outcome_of(state)
        self._check_reports(state, outcome)
        for name, history in outcome["histories"].items():
            numbers, crashed = zip(*history, strict=True) if history else ((), ())
            # A step that starts over counts from 1 again.
            holds = all(later in (1, one + 1) for one, later in pairwise((0, *numbers)))
            self._require(state, holds, f"the attempts of {name} have the numbers {numbers}")
            holds = sum(crashed) <= state.interruptions
            self._require(state, holds, f"{sum(crashed)} attempts of {name} crashed")
        ran = Counter(effect.step_run for effect in _effects_in(state.folder))
        for step_run, times in self._effects.items():
            self._require(
                state, ran[step_run] >= times, f"{step_run} ran {ran[step_run]} times, not {times}"
            )
        status, owner = self._database.status(state.folder, state.run_id)
        self._require(state, status == self._status, f"the status is {status}")
        self._require(state, owner is None, f"the run still has the owner {owner}")

    def _check_reports(self, state: State, outcome: dict[str, Any]) -> None:
        """Check that a run has ended as one does that nothing happens to, and that it is stored."""
        for which in ("returned", "stored"):
            is_, should = outcome[which], self._outcome[which]
            self._require(state, is_ == should, f"the report {which} is\n{is_}\nnot\n{should}")
        returned, stored = (_without_outputs(outcome[which]) for which in ("returned", "stored"))
        differ = f"the report returned is\n{returned}\nand stored\n{stored}"
        self._require(state, returned == stored, differ)

    @property
    def _status(self) -> str:
        return "failed" if self._shape == "failing" else "passed"

    def _require(self, state: State, holds: bool, otherwise: str) -> None:
        if not holds:
            raise self._broken(state, otherwise)

    def _broken(self, state: State, what: str) -> BrokenPromise:
        note = state.folder / "killed"
        last = f" (the last one {note.read_text()})" if note.exists() else ""
        kills = " ".join(map(str, state.kills))  # a float has a dot
        return BrokenPromise(
            f"{what}\nin the shape {self._shape} under {self._schedule}, killed at the points "
            f"{kills or 'none'}{last}, and beside that: {state.note or 'nothing'}; to repeat it:\n"
            f"{sys.executable} -m tests.crash replay {self._shape} {self._schedule} {kills}"
        )

    @classmethod
    def _take_outcome(cls, state: State) -> dict[str, Any]:
        """Return the outcome of the latest process, and remove it; empty if that was killed."""
        if not (state.folder / "outcome").exists():
            return {}
        outcome = cls._outcome_of(state)
        (state.folder / "outcome").unlink()
        return outcome

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


def _effects_in(folder: Path) -> list[Effect]:
    return [Effect(*line.split()) for line in lines_of(folder / "effects")]
