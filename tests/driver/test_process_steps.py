"""Steps in worker processes as programs use them: real scripts, `current_step`, pydantic models."""

from __future__ import annotations

import asyncio
import os
import py_compile
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from textwrap import dedent

import asking_work as asking
import process_work as work
import pytest

from asyncflow import StepStatus, StepTimeoutError, WorkflowStep, run_pipeline
from asyncflow.events import StepAttached, StepLogged, StepProgressed
from asyncflow.journal import SQLiteJournal

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.process


def run_script(folder, *arguments, exits=0):
    """Run a Python program that can import asyncflow and the tests' modules."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == exits, done.stderr
    return done


# Scripts.

SCRIPT = """
import asyncio, sys
{imports}
from asyncflow import WorkflowStep, run_pipeline

calls = []

class Point:
    def __init__(self, x):
        self.x = x

def double(point):
    calls.append(point)
    import __main__
    assert __main__.calls is calls  # one module, not a copy of its names
    assert (__name__, sys.argv[1:]) == ("__mp_main__", ["--fast"])
    return Point(2 * point.x)

STEPS = [WorkflowStep("double", double, runs_in="process")]

{guard}report = asyncio.run(run_pipeline(STEPS, inputs={{"point": Point(21)}}))
{guard}print(report)
{guard}print(report["double"].output.x)
"""
GUARD = "if __name__ == '__main__': "


@pytest.mark.parametrize(
    ("imports", "how"),
    [
        ("", "script.py"),
        ("import multiprocessing", "script.py"),
        ("import multiprocessing", "-mscript"),
    ],
)
def test_a_script_that_imports_multiprocessing_can_declare_process_steps(tmp_path, imports, how):
    (tmp_path / "script.py").write_text(SCRIPT.format(imports=imports, guard=GUARD))

    assert run_script(tmp_path, how, "--fast").stdout.endswith("\n42\n")
    assert (how == "script.py") <= (not (tmp_path / "__pycache__").exists())


def test_a_script_that_another_program_runs_can_declare_process_steps(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT.format(imports="", guard=GUARD))

    # It imports multiprocessing before it puts the script in the place of its own main module.
    done = run_script(tmp_path, "-mcoverage", "run", "script.py", "--fast")

    assert done.stdout.endswith("\n42\n")


@pytest.mark.parametrize("how", ["package", "-mpackage", "archive"])
def test_a_package_that_is_run_can_declare_process_steps(tmp_path, how):
    script = SCRIPT.format(imports="import multiprocessing", guard=GUARD)
    if how == "archive":
        with zipfile.ZipFile(tmp_path / how, "w") as file:
            file.writestr("__main__.py", script)
    else:
        (tmp_path / "package").mkdir()
        (tmp_path / "package" / "__main__.py").write_text(script)

    assert run_script(tmp_path, how, "--fast").stdout.endswith("\n42\n")


@pytest.mark.parametrize("how", ["script.py", "-mscript"])
def test_a_script_without_a_guard_is_told_to_add_one(tmp_path, how):
    (tmp_path / "script.py").write_text(SCRIPT.format(imports="import multiprocessing", guard=""))

    done = run_script(tmp_path, how, exits=1)

    assert "start the run under: if __name__ == '__main__':" in done.stdout


def test_a_compiled_script_can_declare_process_steps(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(imports="import multiprocessing", guard=GUARD))
    py_compile.compile(str(script), str(tmp_path / "compiled.pyc"))
    script.unlink()

    assert run_script(tmp_path, "compiled.pyc", "--fast").stdout.endswith("\n42\n")


def test_code_that_a_notebook_executes_is_refused_with_the_fix(tmp_path):
    (tmp_path / "kernel.py").write_text(
        dedent("""
        import sys, types

        notebook = types.ModuleType("__main__")
        sys.modules["__main__"] = notebook
        exec(sys.stdin.read(), notebook.__dict__)
        """)
    )
    cell = "import multiprocessing\nfrom asyncflow import WorkflowStep\ndef f(): ...\n"
    command = [sys.executable, str(tmp_path / "kernel.py")]
    done = subprocess.run(
        command,
        input=cell + "WorkflowStep('a', f, runs_in='process')",
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )

    assert "a notebook or python -c defines; define it in a file" in done.stderr


def test_a_run_in_a_child_of_multiprocessing_can_have_process_steps(tmp_path):
    (tmp_path / "script.py").write_text(
        dedent("""
        import asyncio, multiprocessing
        from asyncflow import WorkflowStep, run_pipeline

        def double(x):
            return 2 * x

        STEPS = [WorkflowStep("double", double, runs_in="process")]

        def child():
            print(asyncio.run(run_pipeline(STEPS, inputs={"x": 21}))["double"].output)

        if __name__ == "__main__":
            process = multiprocessing.get_context("spawn").Process(target=child)
            process.start()
            process.join()
        """)
    )

    assert run_script(tmp_path, "script.py").stdout == "42\n"


# What a step asks about itself.


async def test_a_process_can_ask_what_it_runs_for():
    report = await run_pipeline(
        [
            WorkflowStep(
                "look",
                asking.look_at_itself,
                max_retries=2,
                timeout_ms=60_000,
                runs_in="process",
            )
        ],
        run_id="r/1",
    )

    seen = report["look"].output
    assert seen == {
        "run_id": "r/1",
        "step_name": "look",
        "item": None,
        "attempt": 2,
        "max_retries": 2,
        "idempotency_key": "r%2F1/look",
        "cancel_requested": False,
        "remaining_ms": 60_000,
        "in_a_thread": 2,
        "logged_as": ("r/1", "look", 2, None),
    }


async def test_a_process_sees_a_copy_of_the_last_error_or_its_stand_in():
    report = await run_pipeline(
        [WorkflowStep("a", asking.last_errors, max_retries=3, runs_in="process")]
    )

    assert [str(attempt.error) for attempt in report["a"].history[:1]] == ["('first', None)"]
    second = report["a"].history[1].error
    kind, text = report["a"].output
    assert kind in ("LocalError", "RestoredError", "PicklingError")
    assert text == str(second)


async def test_an_item_in_a_process_knows_its_item_and_that_it_has_no_limit():
    async def numbers():
        return [7]

    report = await run_pipeline(
        [
            WorkflowStep("numbers", numbers),
            WorkflowStep(
                "item",
                asking.item_and_limit,
                ["numbers"],
                map_over="numbers",
                timeout_ms=None,
                runs_in="process",
            ),
        ],
        run_id="r",
    )

    assert report["item"].output == [(7, 0, "r/item#0", None)]


def test_the_time_that_a_process_has_left_counts_its_own_start(tmp_path):
    async def main():
        began = time.monotonic()
        report = await run_pipeline(
            [WorkflowStep("a", asking.times, timeout_ms=60_000, runs_in="process")]
        )
        return began, report["a"].output

    began, (at_s, remaining_ms) = asyncio.run(main())

    assert remaining_ms == pytest.approx(60_000 - (at_s - began) * 1000, abs=1_000)
    assert remaining_ms < 60_000


async def test_the_time_left_stands_still_in_a_process_when_the_clock_is_virtual():
    report = await run_pipeline(
        [WorkflowStep("a", asking.remaining_twice, timeout_ms=500, runs_in="process")]
    )

    assert report["a"].output == (500.0, 500.0)


async def test_the_results_of_dependencies_do_not_exist_in_a_process():
    report = await run_pipeline(
        [WorkflowStep("a", asking.results, run_if="always", runs_in="process")]
    )

    assert isinstance(report["a"].error, RuntimeError)
    assert "are not there in another process" in str(report["a"].error)
    assert "runs_in='thread'" in str(report["a"].error)


async def test_a_run_within_a_process_has_steps_of_its_own():
    report = await run_pipeline(
        [WorkflowStep("outer", asking.run_another, runs_in="process")], run_id="outer-run"
    )

    assert report["outer"].output == ("inner", "outer", [])


async def test_a_process_cannot_wait_for_its_own_run(tmp_path):
    path = tmp_path / "runs.db"
    async with SQLiteJournal(path) as journal:
        report = await run_pipeline(
            [WorkflowStep("a", asking.wait_for_run, runs_in="process")],
            run_id="r",
            inputs={"path": str(path)},
            journal=journal,
        )

    assert "a step of run 'r' can't wait for the end of that run" in str(report["a"].error)


# Heartbeats.


@pytest.mark.realtime
def test_a_process_that_gives_heartbeats_may_take_long(tmp_path):
    step = WorkflowStep("a", asking.beat, timeout_ms=None, heartbeat_ms=2_500, runs_in="process")
    report = asyncio.run(run_pipeline([step], inputs={"seconds": 3.0}))

    assert report["a"].output == "alive"
    assert report["a"].duration_ms > 3_000


@pytest.mark.realtime
def test_a_process_that_gives_no_heartbeat_is_killed(tmp_path):
    file = tmp_path / "pids"
    step = WorkflowStep("a", work.hang, timeout_ms=None, heartbeat_ms=2_500, runs_in="process")
    report = asyncio.run(run_pipeline([step], inputs={"path": str(file)}))

    assert report["a"].status is StepStatus.FAILED
    assert isinstance(report["a"].error, StepTimeoutError)
    assert report["a"].error.kind == "heartbeat"
    number, _ = map(int, file.read_text().split())
    with pytest.raises(ProcessLookupError):
        os.kill(number, 0)


# Models of pydantic.

MODELS = """
import asyncio
import multiprocessing
from datetime import date
from typing import Generic, TypeVar

from pydantic import BaseModel, Field, PrivateAttr

from asyncflow import WorkflowStep, run_pipeline

T = TypeVar("T")

class Line(BaseModel):
    model_config = {"frozen": True}
    day: date
    amount: float = Field(alias="Amount")

class Page(BaseModel, Generic[T]):
    items: list[T]
    _seen: int = PrivateAttr(default=0)

def total(page: Page[Line]):
    page._seen = len(page.items)
    amount = sum(line.amount for line in page.items)
    return page, Line(day=page.items[0].day, Amount=amount)

def invalid():
    Line(day="never", Amount="much")

STEPS = [
    WorkflowStep("total", total, runs_in="process"),
    WorkflowStep("invalid", invalid, runs_in="process"),
]

if __name__ == "__main__":
    page = Page[Line](items=[Line(day="2024-01-01", Amount=n) for n in (1, 2)])
    report = asyncio.run(run_pipeline(STEPS, inputs={"page": page}, fail_fast=False))
    back, line = report["total"].output
    print(type(back) is Page[Line], back == page.model_copy(), back._seen)
    print(type(line) is Line, line.amount, line.day == date(2024, 1, 1))
    print("validation errors for Line" in str(report["invalid"].error))
"""


def test_models_of_pydantic_are_arguments_and_results_of_processes(tmp_path):
    pytest.importorskip("pydantic")
    (tmp_path / "models.py").write_text(MODELS)

    done = run_script(tmp_path, "models.py")

    assert done.stdout == "True False 2\nTrue 3.0 True\nTrue\n"


# What a process says.


def test_what_a_process_says_is_stored_and_reported_while_it_runs(tmp_path):
    seen = []

    async def main():
        async with SQLiteJournal(tmp_path / "runs.db", logs="INFO", prints=True) as journal:
            report = await run_pipeline(
                [WorkflowStep("a", asking.say_and_wait, runs_in="process")],
                inputs={"path": str(tmp_path / "seen")},
                journal=journal,
                run_id="r",
                observers=[observe],
            )
            assert report["a"].output == "seen"
            return [each.event for each in await journal.notes("r")]

    def observe(event):
        seen.append(event)
        if isinstance(event, StepProgressed):
            (tmp_path / "seen").touch()

    notes = asyncio.run(main())

    logged = [(each.logger, each.message) for each in notes if isinstance(each, StepLogged)]
    assert logged == [("speaking", "waiting"), ("stdout", "no end")]
    assert [each.data for each in notes if isinstance(each, StepAttached)] == [b"x\n1\n"]
    (progress,) = [each for each in notes if isinstance(each, StepProgressed)]
    assert repr((progress.done, progress.total, progress.unit)) == "(2, 3, 'rows')"
    assert {type(each) for each in seen} >= {StepLogged, StepAttached, StepProgressed}


def test_what_a_process_said_before_it_was_killed_stays(tmp_path):
    async def main():
        async with SQLiteJournal(tmp_path / "runs.db", logs="INFO") as journal:
            step = WorkflowStep("a", asking.say_and_die, runs_in="process")
            await run_pipeline([step], journal=journal, run_id="r")
            return [each.event.message for each in await journal.notes("r")]

    assert asyncio.run(main()) == ["the last word"]


def test_a_process_loads_no_more_of_asyncflow_than_it_needs(tmp_path, monkeypatch):
    class Listener:
        logs = 20

        def __call__(self, event):
            events.append(event)

    events = []
    (tmp_path / "alone.py").write_text(
        "import logging, sys\n"
        "def loaded_here():\n"
        "    logging.warning('hello')\n"
        "    return sorted(name for name in sys.modules if name.startswith('asyncflow'))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    from alone import loaded_here

    step = WorkflowStep("a", loaded_here, runs_in="process")
    report = asyncio.run(run_pipeline([step], observers=[Listener()]))

    assert report["a"].output == [
        "asyncflow._core.running.process_attempt",
        "asyncflow._policies.attempt_notes",
        "asyncflow._policies.log_capture",
    ]
    assert [each.message for each in events if isinstance(each, StepLogged)] == ["hello"]
