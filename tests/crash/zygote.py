"""A process that forks one for each run, with everything imported: ``-m tests.crash.zygote``.

It reads a task a line, as JSON, and answers each with the exit status of the process that has done
it. With a task as its argument, it does that one itself.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

from asyncflow.journal import SQLiteJournal

from asyncflow import RunReport, StepResult, run_pipeline
from tests.crash.kill_points import Reaper
from tests.crash.shapes import INPUTS, SHAPES, World

LIMIT_S = 30
"""A process that takes longer hangs."""
RUN_ID = "r1"


def do(task: dict[str, Any]) -> None:
    """Start or resume the run, and write its outcome into the folder; or die in the attempt."""
    signal.alarm(LIMIT_S)
    folder = Path(task["folder"])
    reaper = Reaper(task["kill_at"], folder / "killed")
    reaper.watch_sqlite()
    steps = SHAPES[task["shape"]](World(folder, reaper))
    told, stored = asyncio.run(_run(folder / "runs.db", steps, task["schedule"]))
    outcome = {"told": summary(told), "stored": summary(stored), "points": reaper.passed}
    (folder / "outcome").write_text(json.dumps(outcome))


async def _run(database: Path, steps: Any, schedule: Any) -> tuple[RunReport, RunReport]:
    async with SQLiteJournal(database) as journal:
        report = await run_pipeline(
            steps,
            fail_fast=False,
            schedule=schedule,
            inputs=INPUTS,
            journal=journal,
            run_id=RUN_ID,
        )
        return report, await journal.report(RUN_ID)


def summary(report: RunReport) -> dict[str, list[Any]]:
    """What must be the same, however often the run was resumed."""

    def of(result: StepResult) -> list[Any]:
        items = None if result.items is None else [of(item) for item in result.items]
        return [result.status, repr(result.output), result.error is None, result.reason, items]

    return {result.step_name: of(result) for result in report.results}


def serve() -> None:
    for line in sys.stdin:
        task = json.loads(line)
        child = os.fork()
        if child == 0:
            _do_and_leave(task)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _do_and_leave(task: dict[str, Any]) -> None:
    code = 1
    try:
        do(task)
        code = 0
    except BaseException:
        (Path(task["folder"]) / "error").write_text(traceback.format_exc())
    finally:
        os._exit(code)  # not through what the zygote would do at its end


if __name__ == "__main__":
    if sys.argv[1:]:
        _do_and_leave(json.loads(sys.argv[1]))
    serve()
