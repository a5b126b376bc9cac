"""Where there is no terminal, each event is one line, with the time on the clock of its run."""

from __future__ import annotations

import asyncio
import io
import re
import sys
from collections.abc import Iterable

import pytest
from golden_run import GOLDEN, STOOD_STILL
from rich.console import Console
from terminals import Terminal

from asyncflow import WorkflowStep, run_pipeline
from asyncflow._views.event_text import describe_event
from asyncflow.events import Event
from asyncflow.live import LiveView
from asyncflow.testing import run_in_virtual_time


def lines_of(*runs: Iterable[Event]) -> list[str]:
    """Return what is written of runs of which each is told before the next one."""
    file = io.StringIO()
    with LiveView(Console(file=file)) as view:
        observers = [view.for_run() for _ in runs]
        for observer, events in zip(observers, runs, strict=True):
            for event in events:
                observer(event)
    return file.getvalue().splitlines()


def test_the_golden_run_is_told_event_by_event() -> None:
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


def test_a_run_that_goes_on_begins_with_that() -> None:
    lines = lines_of(GOLDEN[STOOD_STILL:])

    assert lines[0].startswith("[0:00:04.000] run nightly-2026-01-01 of nightly import resumed")


async def test_lines_come_while_the_run_goes_on() -> None:
    go_on, file = asyncio.Event(), io.StringIO()

    with LiveView(Console(file=file)) as view:
        run = asyncio.ensure_future(run_pipeline([WorkflowStep("s", go_on.wait)], observers=[view]))
        while "s started" not in file.getvalue():
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.12)  # in which nothing happens
        go_on.set()
        await run

    assert len(file.getvalue().splitlines()) == 4


def test_hours_are_told() -> None:
    async def sleeps() -> None:
        await asyncio.sleep(3 * 3600 + 62.5)

    file = io.StringIO()
    with LiveView(Console(file=file)) as view:
        run_in_virtual_time(
            run_pipeline([WorkflowStep("s", sleeps, timeout_ms=None)], observers=[view])
        )

    assert "[3:01:02.500] s succeeded" in file.getvalue().splitlines()


def test_if_there_are_many_runs_each_line_says_which_it_is_of() -> None:
    lines = lines_of(GOLDEN[:5], GOLDEN[:5])

    assert lines[0].startswith("[0:00:00.000] run nightly-2026-01-01 of nightly import")
    assert lines[-1].startswith("[0:00:00.300] nightly-2026-01-01: token succeeded")


def test_what_is_not_a_run_from_its_start_is_told_all_the_same() -> None:
    assert lines_of(GOLDEN[3:4]) == ["[0:00:00.250] token started after 249 ms in the queue"]


@pytest.mark.parametrize("variable", ["TERM", "TTY_COMPATIBLE"])
def test_a_terminal_that_can_do_nothing_gets_lines(
    monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
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


def test_forced_colours_do_not_make_a_terminal_of_a_pipe(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    file = io.StringIO()
    monkeypatch.setattr(sys, "stderr", file)

    with LiveView() as view:
        asyncio.run(run_pipeline([], observers=[view]))

    assert "\x1b" not in file.getvalue()
    assert "the run passed" in file.getvalue()


def test_a_program_without_streams_runs_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)

    with LiveView() as view:
        report = asyncio.run(run_pipeline([], observers=[view]))

    assert report.all_passed


def test_what_the_encoding_does_not_have_is_escaped() -> None:
    buffer = io.BytesIO()
    with LiveView(Console(file=io.TextIOWrapper(buffer, "ascii"))) as view:
        asyncio.run(
            run_pipeline(
                [WorkflowStep("café", asyncio.Event().wait)], observers=[view], deadline_ms=5
            )
        )
        written = buffer.getvalue()

    assert b"caf\\xe9 started\n" in (written or buffer.getvalue())
