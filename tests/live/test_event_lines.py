"""Without a terminal, each event is one line with its time since the start of the run."""

from __future__ import annotations

import asyncio
import io
import re
import sys
from collections.abc import Iterable
from typing import Any

import pytest
from golden_run import EVENTS_BEFORE_CRASH, GOLDEN
from rich.console import Console
from terminals import Terminal

from asyncflow import WorkflowStep, run_pipeline
from asyncflow._views.event_text import describe_event
from asyncflow.events import (
    AttemptFailed,
    AttemptStarted,
    Event,
    MapStarted,
    RunStarted,
    StepCancelled,
    StepFailed,
    StepLogged,
    StepProgressed,
    StepSucceeded,
)
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
    quiet = (AttemptStarted, StepSucceeded, StepCancelled)
    events = [
        event
        for event in GOLDEN
        if getattr(event, "item", None) is None or not isinstance(event, quiet)
    ]

    lines = lines_of(GOLDEN)

    assert all(re.match(r"\[0:00:0\d\.\d{3}\] ", line) for line in lines)
    of_items = [line for line in lines if "of 4 items" in line]
    for line, event in zip([one for one in lines if one not in of_items], events, strict=True):
        if getattr(event, "step", "") in attempts:
            assert line[14:] == describe_event(event, attempts[event.step])
    assert lines[0] == ("[0:00:00.000] run nightly-2026-01-01 of nightly import started: 12 steps")
    assert "[0:00:02.400] rates: attempt 3 of 3 started" in lines
    assert lines[-1].startswith("[0:00:05.000] the run failed after 5.0 s")
    assert [line[14:] for line in of_items] == [f"fetch: {n} of 4 items" for n in range(1, 5)]


def items_of(
    count: int | None, *, failed: frozenset[int] = frozenset(), ms: float = 1
) -> list[str]:
    """Return the lines of a mapped step with 414 items, one after the other."""
    events: list[Event] = [RunStarted("r", 0.0, {"m": ()}), MapStarted("m", 0.0, count)]
    for item in range(414):
        events.append(AttemptStarted("m", 1, item * ms, item=item))
        if item in failed:
            error = ValueError(f"item {item}")
            events.append(AttemptFailed("m", 1, item * ms, error, 0.0, item=item))
            events.append(StepFailed("m", 2, item * ms, error, item=item))
        else:
            events.append(StepSucceeded("m", 1, item * ms, None, item=item))
    return [line[14:] for line in lines_of(events)[2:]]


def test_the_items_of_a_mapped_step_have_a_line_for_each_tenth() -> None:
    done = (42, 83, 125, 166, 207, 249, 290, 332, 373, 414)

    assert items_of(414) == [f"m: {count} of 414 items" for count in done]


def test_each_failure_of_an_item_has_a_line() -> None:
    lines = items_of(414, failed=frozenset({50, 300}))

    assert lines[1:3] == [
        "m[50]: attempt 1 failed, retrying at once: ValueError: item 50",
        "m[50] failed in attempt 2: ValueError: item 50",
    ]
    assert "m: 83 of 414 items, 1 failed" in lines
    assert lines[-1] == "m: 414 of 414 items, 2 failed"
    assert len(lines) == 14


def test_each_item_that_fell_back_has_a_line() -> None:
    events = [
        *(RunStarted("r", 0.0, {"m": ()}), MapStarted("m", 0.0, 2)),
        *(StepSucceeded("m", 1, 1.0, 1, 0), StepSucceeded("m", 1, 2.0, 0, 1, error=OSError("x"))),
    ]

    assert [line[14:] for line in lines_of(events)[2:]] == [
        "m: 1 of 2 items",
        "m[1] failed and fell back: OSError: x",
        "m: 2 of 2 items",
    ]


def progress_of(total: float | None, *, seconds: int, step: float = 1) -> list[str]:
    """Return the lines of a step that reports its progress every second."""
    events: list[Any] = [RunStarted("r", 0.0, {"s": ()}), AttemptStarted("s", 1, 0.0)]
    events += [
        StepProgressed("s", 1, second * 1_000.0, second * step, total, "rows")
        for second in range(seconds + 1)
    ]
    events += [
        StepLogged("s", 1, 1.0, 20, "app", "logged"),
        StepSucceeded("s", 1, seconds * 1_000.0, None),
        StepProgressed("s", 1, seconds * 1_000.0 + 20_000, 1, 1),  # from a thread that it left
    ]
    return [line[14:] for line in lines_of(events)[2:-1]]


def test_progress_has_a_line_for_each_tenth_if_that_is_rarer() -> None:
    lines = progress_of(300, seconds=300)

    assert lines[0] == "s: 30 of 300 rows (10 %), 1/s, 4 min 30 s left"
    assert len(lines) == 10


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
            run_in_virtual_time(
                run_pipeline(
                    [WorkflowStep("s", asyncio.Event().wait)], observers=[view], deadline_ms=20
                )
            )
        monkeypatch.undo()
    terminal.close()

    assert "] s started\n" in terminal.text
    assert b"\x1b" not in terminal.written


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
