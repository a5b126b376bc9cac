"""Run the checks of a Python project as a pipeline of commands.

Lint, types and tests don't depend on each other, so they are one tier and run at the same time.
If they all pass, the project is built, and what was built is imported. The critical path at the
end tells which of them to make faster first.

    python examples/ci.py [--keep-going] [--only STEP ...] [--tests PATH ...] [--project DIR]

Nothing of a command outlives its step: on failure, timeout or cancellation it is killed together
with everything that it started, and waited for. The exit code is 0 if all steps passed, 1 if one
did not, 2 on wrong usage, 130 after Ctrl-C and 143 after SIGTERM.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import os
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from inspect import signature
from pathlib import Path
from zipfile import ZipFile

import anyio
import anyio.abc

from asyncflow import RunReport, WorkflowStep, current_step, run_pipeline, topological_sort
from asyncflow.events import AttemptStarted, Event, StepFailed, StepSucceeded

ROOT = Path(__file__).resolve().parent.parent
TAIL_LINES = 20
"""How much of a command's output is shown if its step fails."""


# The steps. `project`, `artifacts` and `paths` are inputs of the run; `build` is a step.


async def lint(project: Path, artifacts: Path) -> str:
    command = ("ruff", "check", "--output-format=concise", ".")
    return await run_tool(*command, cwd=project, artifacts=artifacts)


async def types(project: Path, artifacts: Path) -> str:
    return await run_tool("mypy", cwd=project, artifacts=artifacts)


async def tests(project: Path, artifacts: Path, paths: Sequence[str]) -> str:
    return await run_tool("pytest", "-q", *paths, cwd=project, artifacts=artifacts)


async def build(project: Path, artifacts: Path) -> Path:
    """Build an sdist, and from it a wheel, and return the wheel."""
    await run_tool("build", "--outdir", str(artifacts), cwd=project, artifacts=artifacts)
    return wheel_in(artifacts)


async def smoke(build: Path, artifacts: Path) -> str:
    """Import each package of the wheel that was built, and nothing from the project's folder."""
    command = [sys.executable, "-c", f"import {', '.join(modules_in(build))}"]
    env = {**os.environ, "PYTHONPATH": str(build)}
    return await run_command(command, cwd=artifacts, artifacts=artifacts, env=env)


STEPS = [
    WorkflowStep("lint", lint, timeout_ms=60_000),
    WorkflowStep("types", types, timeout_ms=300_000),
    WorkflowStep("tests", tests, timeout_ms=900_000),
    WorkflowStep("build", build, depends_on=["lint", "types", "tests"], timeout_ms=300_000),
    WorkflowStep("smoke", smoke, depends_on=["build"], timeout_ms=30_000),
]


def select(steps: Sequence[WorkflowStep], names: Sequence[str]) -> list[WorkflowStep]:
    """Return the named steps and those whose outputs they need, without what is left out."""
    by_name = {step.name: step for step in steps}
    kept = set(names)
    for name in reversed(topological_sort(steps)):
        if name in kept:
            step = by_name[name]
            kept.update(signature(step.action).parameters.keys() & step.depends_on)
    return [
        replace(step, depends_on=tuple(name for name in step.depends_on if name in kept))
        for step in steps
        if step.name in kept
    ]


def wheel_in(folder: Path) -> Path:
    (wheel,) = folder.glob("*.whl")
    return wheel


def modules_in(wheel: Path) -> list[str]:
    """Return the names of the top-level modules and packages of a wheel."""
    with ZipFile(wheel) as archive:
        top_level = {name.partition("/")[0] for name in archive.namelist()}
    return sorted(name.removesuffix(".py") for name in top_level if ".dist-info" not in name)


# Running a command in a step.


class CommandError(Exception):
    """A command did not exit with 0."""

    def __init__(self, command: Sequence[str], exit_code: int, output: str) -> None:
        super().__init__(command, exit_code, output)
        self.command = command
        self.exit_code = exit_code
        """As `subprocess` tells it: below 0 it is the number of the signal that ended the child."""
        self.output = output

    def __str__(self) -> str:
        return (
            f"{shlex.join(self.command)} ended with exit code {self.exit_code}\n{tail(self.output)}"
        )


class ToolMissingError(Exception):
    """A tool is not installed in the environment that runs this script."""

    def __init__(self, tool: str) -> None:
        super().__init__(tool)
        self.tool = tool

    def __str__(self) -> str:
        return (
            f"{self.tool} is not installed for {sys.executable}; "
            f"install it with: python -m pip install {self.tool}"
        )


async def run_tool(module: str, *arguments: str, cwd: Path, artifacts: Path) -> str:
    """Run ``python -m module arguments...`` with this Python, and return what it printed.

    Raises:
        ToolMissingError: This Python has no such module.
        CommandError: The command did not exit with 0.
    """
    found = importlib.util.find_spec(module)
    if found is None or found.origin is None:  # a folder such as `build/` has no origin
        raise ToolMissingError(module)
    command = [sys.executable, "-m", module, *arguments]
    return await run_command(command, cwd=cwd, artifacts=artifacts)


async def run_command(
    command: Sequence[str], *, cwd: Path, artifacts: Path, env: Mapping[str, str] | None = None
) -> str:
    """Run a command and return what it printed, its stderr included.

    The output goes into a file, so that there is something to show after a timeout, too.

    Raises:
        CommandError: The command did not exit with 0.
    """
    log = log_of(current_step().step_name, artifacts)
    with log.open("wb") as output:
        # Not `anyio.run_process`: cancelled by asyncio, it waits for the child and kills nothing.
        async with await anyio.open_process(
            command,
            cwd=cwd,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        ) as process:
            try:
                exit_code = await process.wait()
            finally:
                kill_all_of(process)
    printed = log.read_text(errors="replace")
    if exit_code:
        raise CommandError(command, exit_code, printed)
    return printed


def kill_all_of(process: anyio.abc.Process) -> None:
    """Kill a process that leads its own session, and what it started and left behind."""
    if sys.platform == "win32":
        with suppress(ProcessLookupError):
            process.kill()
    else:
        # macOS says PermissionError of a group in which all have ended.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)


def log_of(step_name: str, artifacts: Path) -> Path:
    return artifacts / f"{step_name}.log"


def tail(output: str) -> str:
    return "\n".join(output.rstrip().splitlines()[-TAIL_LINES:])


# Running the pipeline.


def show_progress(event: Event) -> None:
    match event:
        case AttemptStarted(step=name):
            print(f"{name} ...", file=sys.stderr, flush=True)
        case StepSucceeded(step=name) | StepFailed(step=name):
            verdict = "passed" if isinstance(event, StepSucceeded) else "FAILED"
            print(f"{name} {verdict}", file=sys.stderr, flush=True)


async def run(
    steps: Sequence[WorkflowStep], inputs: Mapping[str, object], *, keep_going: bool
) -> RunReport:
    """Run the steps; SIGTERM cancels the run as Ctrl-C does, so that no child is left behind."""
    this_task = asyncio.current_task()
    assert this_task is not None
    with suppress(NotImplementedError):  # on Windows
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, this_task.cancel)
    return await run_pipeline(
        steps, fail_fast=not keep_going, inputs=inputs, observers=[show_progress]
    )


def print_failures(report: RunReport, artifacts: Path) -> None:
    """Print for each failed step what went wrong, and the end of what its command printed."""
    for result in report.failed:
        print(f"--- {result.step_name} ---")
        print(f"{type(result.error).__name__}: {result.error}")
        log = log_of(result.step_name, artifacts)
        if not isinstance(result.error, CommandError) and log.exists():
            print(tail(log.read_text(errors="replace")))
        print()


def parse(argv: Sequence[str] | None, steps: Sequence[WorkflowStep]) -> argparse.Namespace:
    names = [step.name for step in steps]
    parser = argparse.ArgumentParser(description="Lint, type-check, test and build a project.")
    parser.add_argument(
        "--keep-going", action="store_true", help="run what does not depend on a failed step"
    )
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="STEP",
        choices=names,
        help=f"run only these, and what they need the output of: {', '.join(names)}",
    )
    parser.add_argument(
        "--tests", nargs="+", metavar="PATH", default=["tests"], help="what pytest shall run"
    )
    parser.add_argument(
        "--project", type=Path, metavar="DIR", default=ROOT, help="the project (default: this one)"
    )
    arguments = parser.parse_args(argv)
    if not arguments.project.is_dir():
        parser.error(f"--project: {arguments.project} is not a folder")
    return arguments


def main(argv: Sequence[str] | None = None, steps: Sequence[WorkflowStep] = STEPS) -> int:
    arguments = parse(argv, steps)
    if arguments.only:
        steps = select(steps, arguments.only)
    with tempfile.TemporaryDirectory(prefix="ci-") as folder:
        artifacts = Path(folder)
        inputs: dict[str, object] = {
            "project": arguments.project.resolve(),
            "artifacts": artifacts,
            "paths": arguments.tests,
        }
        # A run refuses inputs that none of its steps takes, and not all steps may be chosen.
        taken = {name for step in steps for name in signature(step.action).parameters}
        inputs = {name: value for name, value in inputs.items() if name in taken}
        try:
            report = asyncio.run(run(steps, inputs, keep_going=arguments.keep_going))
        except KeyboardInterrupt:
            return 130
        except asyncio.CancelledError:
            return 143
        print_failures(report, artifacts)
    print(report)
    print("Critical path:", " -> ".join(report.critical_path))
    return 0 if report.all_passed else 1


if __name__ == "__main__":
    sys.exit(main())
