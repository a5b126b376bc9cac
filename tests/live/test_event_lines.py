"""Without a terminal, each event is one line with its time since the start of the run."""

from __future__ import annotations

import asyncio
import io
import re
import sys
from collections.abc import Iterable

import pytest
from golden_run import EVENTS_BEFORE_CRASH, GOLDEN
from rich.console import Console
from terminals import Terminal

from asyncflow import WorkflowStep, run_pipeline
from asyncflow._views.event_text import describe_event
from asyncflow.events import Event
from asyncflow.live import LiveView
from asyncflow.testing import run_in_virtual_time


def lines_of(*runs: Iterable[Event]) -> list[str]:
    """Return the lines that are written for runs, one run after another."""
    file = io.StringIO()
    with LiveView(Console(file=file)) as view:
        observers = [view.for_run() for _ in runs]
        for observer, events in zip(observers, runs, strict=True):
            for event in events:
                observer(event)
    return file.getvalue().splitlines()


def test_the_golden_run_is_written_event_by_event() -> None:
    attempts = {"rates": 3, "fetch": 2}

    lines = lines_of(GOLDEN)

    assert len(lines) == len(GOLDEN)
    for line, event in zip(lines, GOLDEN, strict=True):
        assert re.match(r"\[0:00:0\d\.\d{3}\] ", line)
        if getattr(event, "step", "") in attempts:
            assert line[14:] == describe_event(event, attempts[event.step])  # type: ignore[union-attr]
    assert lines[0] == ("[0:00:00.000] run nightly-2026-01-01 of nightly import started: 12 steps")
    assert "[0:00:02.400] rates: attempt 3 of 3 started" in lines
    assert lines[-1].startswith("[0:00:05.000] the run failed after 5.0 s")


def test_a_resumed_run_starts_with_its_resumption() -> None:
    lines = lines_of(GOLDEN[EVENTS_BEFORE_CRASH:])

    assert lines[0].startswith("[0:00:04.000] run nightly-2026-01-01 of nightly import resumed")


async def test_lines_are_written_during_the_run() -> None:
    proceed, file = asyncio.Event(), io.StringIO()

    with LiveView(Console(file=file)) as view:
        run = asyncio.ensure_future(
            run_pipeline([WorkflowStep("s", proceed.wait)], observers=[view])
        )
        while "s started" not in file.getvalue():
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.12)  # while nothing happens
        proceed.set()
        await run

    assert len(file.getvalue().splitlines()) == 4


def test_the_time_of_an_event_includes_hours() -> None:
    async def sleep() -> None:
        await asyncio.sleep(3 * 3600 + 62.5)

    file = io.StringIO()
    with LiveView(Console(file=file)) as view:
        run_in_virtual_time(
            run_pipeline([WorkflowStep("s", sleep, timeout_ms=None)], observers=[view])
        )

    assert "[3:01:02.500] s succeeded" in file.getvalue().splitlines()


def test_with_several_runs_each_line_names_its_run() -> None:
    lines = lines_of(GOLDEN[:5], GOLDEN[:5])

    assert lines[0].startswith("[0:00:00.000] run nightly-2026-01-01 of nightly import")
    assert lines[-1].startswith("[0:00:00.300] nightly-2026-01-01: token succeeded")


def test_events_without_the_start_of_their_run_are_written() -> None:
    assert lines_of(GOLDEN[3:4]) == ["[0:00:00.250] token started after 249 ms in the queue"]


@pytest.mark.parametrize("variable", ["TERM", "TTY_COMPATIBLE"])
def test_a_dumb_terminal_gets_lines(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "dumb" if variable == "TERM" else "0")
    terminal = Terminal()
    with terminal.open() as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        with LiveView() as view:
            asyncio.run(
                run_pipeline(
                    [WorkflowStep("s", asyncio.Event().wait)], observers=[view], deadline_ms=20
                )
            )
        monkeypatch.undo()
    terminal.close()

    assert "] s started\n" in terminal.text
    assert b"\x1b" not in terminal.written


def test_forced_colours_do_not_turn_a_pipe_into_a_terminal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    file = io.StringIO()
    monkeypatch.setattr(sys, "stderr", file)

    with LiveView() as view:
        asyncio.run(run_pipeline([], observers=[view]))

    assert "\x1b" not in file.getvalue()
    assert "the run passed" in file.getvalue()


def test_a_program_without_streams_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)

    with LiveView() as view:
        report = asyncio.run(run_pipeline([], observers=[view]))

    assert report.all_passed


def test_unencodable_characters_are_escaped() -> None:
    buffer = io.BytesIO()
    with LiveView(Console(file=io.TextIOWrapper(buffer, "ascii"))) as view:
        asyncio.run(
            run_pipeline(
                [WorkflowStep("café", asyncio.Event().wait)], observers=[view], deadline_ms=5
            )
        )
        written = buffer.getvalue()

    assert b"caf\\xe9 started\n" in (written or buffer.getvalue())
