"""Fixtures that run the command line in a temporary directory with pipelines."""

from __future__ import annotations

import json
import os
import signal
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from asyncflow._cli import commands

ROOT = Path(__file__).parents[2]

_context = click.Context(commands)
COMMANDS = {name: commands.get_command(_context, name) for name in commands.list_commands(_context)}

PIPELINES = """
    import asyncio, datetime, enum, pathlib
    from asyncflow import Orchestrator, Pipeline, WorkflowStep, after

    pipeline = Pipeline("etl")

    @pipeline.step
    async def extract(days: int = 1):
        return ["row"] * days

    @pipeline.step(max_retries=2)
    async def load(rows: list[str] = after(extract)):
        return len(rows)

    async def fail():
        try:
            int("x")
        except ValueError as error:
            raise OSError("no disk") from error

    async def fine():
        return "fine"

    failing = [
        WorkflowStep("bad", fail),
        WorkflowStep("good", fine),
        WorkflowStep("more", fine, ["good"]),
        WorkflowStep("lost", fine, ["bad"]),
    ]
    nameless = Orchestrator([WorkflowStep("fine", fine)])

    def made():
        return pipeline
"""


class Shell:
    """Runs commands in this process, in a temporary directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def write(self, name: str, text: str) -> Path:
        """Write a dedented text to a file in the directory, and return its path."""
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text), encoding="utf-8")
        return path

    def __call__(self, *arguments: str, exits: int = 0, **options: Any) -> Result:
        """Run a command and assert its exit code."""
        result = CliRunner().invoke(commands, arguments, **options)
        assert result.exit_code == exits, (result.stdout, result.stderr, result.exception)
        return result

    def json(self, *arguments: str, exits: int = 0) -> Any:
        """Run a command and return the JSON document that its standard output consists of."""
        return json.loads(self(*arguments, exits=exits).stdout)


@pytest.fixture(autouse=True)
def enable_ctrl_c() -> Iterator[None]:
    """Restore the default of SIGINT, which a shell ignores in processes started by ``&``."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)  # a run that leaves a thread replaces the handler


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shell]:
    monkeypatch.chdir(tmp_path)
    for name in ("ASYNCFLOW_JOURNAL", "ASYNCFLOW_PIPELINES", "ASYNCFLOW_TOKEN", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
    monkeypatch.setattr(sys, "path", list(sys.path))
    # The next test may write a file of the same path, size and second: its bytecode would be taken.
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    made = Shell(tmp_path)
    made.write("etl.py", PIPELINES)
    known = set(sys.modules)
    yield made
    for name in set(sys.modules) - known:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture
def environment(shell: Shell) -> dict[str, str]:
    """Return environment variables with which a child process imports this package."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
