"""A program with a live view in its own process and terminal, as users see it."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from terminals import Terminal

import asyncflow.live

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[2]

PROGRAM = """
import asyncio, logging
from asyncflow import WorkflowStep, run_pipeline
from asyncflow.live import LiveView

logging.basicConfig(format="%(levelname)s %(message)s")
calls = 0

async def extract():
    global calls
    calls += 1
    await asyncio.sleep(0.15)
    if calls == 1:
        raise ConnectionError("refused")
    print("extracted")
    return range(20)

async def clean(number):
    await asyncio.sleep(0.01)

async def load():
    logging.warning("the table is empty")
    await asyncio.sleep(0.2)

steps = [
    WorkflowStep("extract orders", extract, max_retries=3, retry=200),
    WorkflowStep("clean", clean, {"number": "extract orders"}, map_over="extract orders"),
    WorkflowStep("load 商品", load, ["clean"]),
]

async def main():
    with LiveView() as view:
        report = await run_pipeline(steps, run_id="r", observers=[view])
        print(report.all_passed)

asyncio.run(main())
"""


def run(program: str, columns: int, **variables: str) -> Terminal:
    terminal = Terminal(columns, 24)
    try:
        subprocess.run(
            [sys.executable, "-c", program],
            cwd=ROOT,
            stdin=terminal.device,
            stdout=terminal.device,
            stderr=terminal.device,
            env={**os.environ, "PYTHONIOENCODING": "utf-8", **variables},
            check=True,
            timeout=50,
        )
    finally:
        terminal.close()
    return terminal


def test_a_program_shows_its_run_in_a_terminal() -> None:
    terminal = run(PROGRAM, 80)

    assert "▷ RUNNING" in terminal.written.decode()
    lines = terminal.text.splitlines()
    assert lines[:2] == [
        "extract orders | extracted",
        "load 商品      | WARNING the table is empty",
    ]
    assert re.fullmatch(
        r"✓ PASSED in [\d.]+ m?s: 3 succeeded, 1 retried \(extract orders\)  run r", lines[2]
    )
    assert lines[3:] == ["True"]


def test_a_program_with_no_color_writes_no_colours() -> None:
    written = run(PROGRAM, 80, NO_COLOR="1").written

    assert b"\x1b[3" not in written.replace(b"\x1b[3m", b"")
    assert "✓ PASSED".encode() in written


def test_a_program_in_a_dumb_terminal_writes_lines() -> None:
    terminal = run(PROGRAM, 200, TERM="dumb")

    assert b"\x1b" not in terminal.written
    assert "extract orders: attempt 1 of 3 failed" in terminal.text


def test_a_program_that_exits_during_a_run_draws_a_last_frame() -> None:
    program = """
import asyncio
from asyncflow.events import RunStarted
from asyncflow.live import LiveView

observer = LiveView().for_run()
observer(RunStarted("r", 0.0, {"s": ()}))
"""
    lines = run(program, 80).text.splitlines()

    assert lines[0] == "run r"
    assert lines[1] == "tier 1  ○ PENDING    s"


def test_a_missing_rich_is_reported_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rich.console", None)
    spec = importlib.util.spec_from_file_location("asyncflow_live", asyncflow.live.__file__)
    assert spec is not None
    assert spec.loader is not None

    with pytest.raises(ImportError, match=r"pip install 'asyncflow-tiers\[cli\]'"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
