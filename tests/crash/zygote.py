"""A process that forks a child for each run, with everything imported: ``-m tests.crash.zygote``.

It reads one task per line, as JSON, and answers with the exit codes of its children. With a task as
its argument, it runs that task itself.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from asyncflow import (
    JournalError,
    RunCancelledError,
    RunNotFoundError,
    RunReport,
    RunStatus,
    StepCrashedError,
    StepResult,
    run_pipeline,
)
from asyncflow._core.text import describe_error
from asyncflow.journal import PostgresJournal, SQLiteJournal
from asyncflow.journal._database import postgres  # noqa: F401  # else each child would import psycopg
from tests.crash.faults import SHORT_LEASE_S, jump_clock, play, shift_clock, stall
from tests.crash.kill_points import Reaper
from tests.crash.senders import send
from tests.crash.shapes import INPUTS, SHAPES, SIGNALS, STAYING, World

LIMIT_S = 30
"""A process that takes longer hangs."""
LOST_S = 10
"""A run that waits longer for a signal has lost it."""
RUN_ID = "r1"


def do(task: dict[str, Any], reaper: Reaper) -> None:
    """Start or resume the run, and write its outcome into the folder unless the process dies.

    A task has ``folder``, ``shape`` and ``schedule``; ``point``: the kill point, or 0; ``ms``: the
    time after which the zygote kills the process, or 0; ``rival``: whether another process runs the
    same run concurrently; ``is_answered``: whether another one sends its signals, and
    ``sender_point``: where one is killed before that; ``run_id``; ``dsn``: the address of the
    database, if it is not a file in the folder; ``game``: what is done to that file, and ``jump``:
    how far the clock jumps, each with the number of the point; ``stall``: the point at which the
    owner stands still, and ``cancel_after_s``: when another process cancels the run then;
    ``may_fail``: whether the journal may fail for another reason; ``cancel``: whether to cancel the
    run instead; ``send``: whether to send its signals instead.
    """
    folder = Path(task["folder"])
    steps = SHAPES[task["shape"]](World(folder, reaper))
    outcome: dict[str, Any] = {}
    try:
        if task.get("send"):
            asyncio.run(send(journal_of(task), folder, task["run_id"], SIGNALS[task["shape"]]))
            return
        asyncio.run(_run(task, steps, reaper, outcome))
    except JournalError as error:
        if not (task.get("may_fail") or reaper.struck):
            raise
        outcome["error"] = str(error)
    outcome["points"] = reaper.passed
    part = folder / f"outcome.{os.getpid()}"
    part.write_text(json.dumps(outcome))
    part.rename(folder / "outcome")


def journal_of(task: dict[str, Any]) -> Any:
    options = {"lease_s": SHORT_LEASE_S} if task.get("has_short_lease") else {}
    if task.get("dsn"):
        return PostgresJournal(task["dsn"], **options)
    return SQLiteJournal(Path(task["folder"]) / "runs.db", **options)


async def _run(task: dict[str, Any], steps: Any, reaper: Reaper, outcome: dict[str, Any]) -> None:
    async with journal_of(task) as journal:
        if task.get("cancel"):
            await asyncio.sleep(task["cancel_after_s"] or 0)
            with suppress(RunNotFoundError):
                outcome["asked"] = await journal.cancel(task["run_id"])
            return
        try:
            report = await _run_to_its_end(task, steps, journal)
        except RunCancelledError:
            outcome["cancelled"] = True
            return
        outcome["struck"] = reaper.struck  # what comes now can't be noticed any more
        outcome["returned"], outcome["histories"] = summary(report), _histories(report)
        with suppress(RunNotFoundError):
            outcome["stored"] = summary(await journal.report(task["run_id"]))


async def _run_to_its_end(task: dict[str, Any], steps: Any, journal: Any) -> RunReport:
    """Run, and continue whenever the run waits and is due."""
    shape, run_id = task["shape"], task["run_id"]
    while True:
        report = await run_pipeline(
            steps,
            shape != "failing",
            schedule=task["schedule"],
            inputs=INPUTS,
            journal=journal,
            name=f"{shape} {run_id}",  # runs that share a database share no results
            run_id=run_id,
            on_active="wait",
            on_wait="stay" if shape in STAYING else "suspend",
        )
        if report.status is not RunStatus.WAITING:
            return report
        ends_s = time.monotonic() + LOST_S
        while report.status is RunStatus.WAITING and run_id not in await _due(journal):
            assert time.monotonic() < ends_s, f"waits for {[*report.waiting]}, which was sent"
            await asyncio.sleep(0.002)
            report = await journal.report(run_id)  # another process may have continued it


async def _due(journal: Any) -> list[str]:
    return [run.run_id for run in await journal.due()]


def summary(report: RunReport) -> dict[str, list[Any]]:
    """Return what must be the same, however often the run was resumed."""

    def of(result: StepResult) -> list[Any]:
        if result.step_name in ("paid", "approved"):  # which answer counts is checked elsewhere
            return [result.status, "an answer", None, result.reason, None]
        items = None if result.items is None else [of(item) for item in result.items]
        error = None if result.error is None else describe_error(result.error)
        return [result.status, repr(result.output), error, result.reason, items]

    return {result.step_name: of(result) for result in report.results}


def _histories(report: RunReport) -> dict[str, list[tuple[int, bool]]]:
    """Return for each step and item the number of each attempt, and whether it crashed."""
    results = [each for result in report.results for each in (result, *(result.items or ()))]
    return {
        result.step_name: [
            (each.number, isinstance(each.error, StepCrashedError)) for each in result.history
        ]
        for result in results
    }


def serve() -> None:
    _warm_up()
    gc.freeze()  # so that a child's collector does not copy shared pages
    print("[]", flush=True)  # ready
    for line in sys.stdin:
        task = json.loads(line)
        undisturbed = {**task, "point": 0, "game": None, "jump": None, "stall": 0}
        children = [_fork(task)]
        if task["rival"]:
            children.append(_fork(undisturbed))
        if task["cancel_after_s"]:
            children.append(_fork({**undisturbed, "cancel": True}))
        sender = _fork_sender(undisturbed) if task["is_answered"] else 0
        if task["ms"]:
            time.sleep(task["ms"] / 1000)
            os.kill(children[0], signal.SIGKILL)
        ends = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        if sender:  # it would wait for a run that has died before it began
            os.kill(sender, signal.SIGKILL)
            os.waitpid(sender, 0)
        print(json.dumps(ends), flush=True)


def _warm_up() -> None:
    """Run each shape once: the first run in a process is slower."""
    for name in SHAPES:
        with TemporaryDirectory() as folder:
            task = {"folder": folder, "shape": name, "schedule": "ready", "run_id": RUN_ID}
            reaper = Reaper(0, Path(folder) / "killed")
            if name in SIGNALS:
                with ThreadPoolExecutor() as sender:
                    sender.submit(do, {**task, "send": True}, reaper)
                    do(task, reaper)
            else:
                do(task, reaper)
    for thread in threading.enumerate():
        if thread is not threading.main_thread():
            thread.join()  # only a process with one thread can be forked


def _fork(task: dict[str, Any]) -> int:
    child = os.fork()
    if child == 0:
        _do_and_exit(task)
    return child


def _fork_sender(task: dict[str, Any]) -> int:
    """Let a child send the signals of a run; with ``sender_point``, after one that is killed."""
    task = {**task, "send": True}
    if task["sender_point"]:
        os.waitpid(_fork({**task, "point": task["sender_point"]}), 0)
    return _fork(task)


def _faults_of(task: dict[str, Any]) -> dict[int, Callable[[], object]]:
    faults: dict[int, Callable[[], object]] = {}
    if task.get("game"):
        game, point = task["game"]
        faults[point] = partial(play, game, Path(task["folder"]) / "runs.db")
    if task.get("jump"):
        jump, point = task["jump"]
        faults[point] = partial(jump_clock, jump)
    if task.get("stall"):
        faults[task["stall"]] = stall
    return faults


def _do_and_exit(task: dict[str, Any]) -> None:
    code = 1
    signal.alarm(LIMIT_S)
    reaper = Reaper(task["point"], Path(task["folder"]) / "killed", _faults_of(task))
    if task.get("dsn"):
        reaper.watch_postgres()
    else:
        reaper.watch_sqlite()
    shift_clock()
    try:
        do(task, reaper)
        code = 0
    except BaseException:
        (Path(task["folder"]) / "error").write_text(traceback.format_exc())
    finally:
        os._exit(code)  # without the exit handlers of the zygote


if __name__ == "__main__":
    if sys.argv[1:]:
        _do_and_exit(json.loads(sys.argv[1]))
    serve()
