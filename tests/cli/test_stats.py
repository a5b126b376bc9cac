"""``stats`` draws the latest runs of a pipeline, and says which steps are slow or flaky."""

from __future__ import annotations

import asyncio
import re
import sqlite3
import sys
from contextlib import closing
from typing import Any

import pytest
from click.testing import CliRunner
from rich.cells import cell_len
from rich.console import Console
from segments import store_segment

from asyncflow import RunStatus
from asyncflow._cli import commands
from asyncflow._core.history.results import Payload
from asyncflow.events import (
    AttemptFailed,
    AttemptStarted,
    Event,
    RunFinished,
    RunStarted,
    StepFailed,
    StepReused,
    StepSkipped,
    StepSucceeded,
)
from asyncflow.journal import SQLiteJournal

from .conftest import Shell

LONG = "normalise_customer_addresses_against_the_national_register"
STEPS: dict[str, tuple[str, ...]] = {"extract": (), LONG: ("extract",), "load": (LONG,)}


def a_run(number: int, pipeline: str = "etl", prefix: str = "r") -> list[Event]:
    """Return the events of a run: every fourth one retries, every fifth one fails."""
    run_id, took = f"{prefix}{number:02}", 100.0 * (number + 1)
    start = RunStarted(run_id, 1_000.0 * number, STEPS, pipeline)
    middle: list[Event] = [AttemptStarted(LONG, 1, 10.0), StepSucceeded(LONG, 1, took, None)]
    if number % 4 == 3:
        middle[1:] = [
            AttemptFailed(LONG, 1, 20.0, OSError("away"), 1.0),
            AttemptStarted(LONG, 2, 30.0),
            StepSucceeded(LONG, 2, took, None),
        ]
    last: list[Event] = [AttemptStarted("load", 1, took), StepSucceeded("load", 1, took, None)]
    status: Any = RunStatus.PASSED
    if number % 5 == 4:
        middle[1:] = [StepFailed(LONG, 1, took, ValueError("bad"))]
        last, status = [StepSkipped("load", took, "why")], RunStatus.FAILED
    output = Payload("json", b"1")
    first = [AttemptStarted("extract", 1, 0.0), StepSucceeded("extract", 1, 10.0, output)]
    if number == 0:
        first = [StepReused("extract", 0.0)]
    return [start, *first, *middle, *last, RunFinished(took, status)]


def store(*runs: list[Event]) -> None:
    async def write() -> None:
        async with SQLiteJournal("asyncflow.db") as journal:
            for events in runs:
                assert isinstance(events[0], RunStarted)
                await store_segment(journal, events[0].run_id, *events)

    asyncio.run(write())


def on_a_terminal(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    module = sys.modules["asyncflow._cli.stats"]  # in the package, its name is the command's
    monkeypatch.setattr(
        module, "stdout_console", lambda: Console(width=width, highlight=False, markup=False)
    )


def test_a_grid_shows_each_step_in_each_run(shell: Shell) -> None:
    store(*map(a_run, range(10)))

    lines = shell("stats", "etl").stdout.splitlines()

    assert lines[0] == "Pipeline etl: 10 runs, 80% passed"
    rows = {line.split()[0]: line[len(LONG) + 2 :] for line in lines[2:7]}
    assert re.split("  +", rows["run"]) == ["✓✓✓✓✗✓✓✓✓✗", "500 ms", "900 ms", "900 ms"]
    assert rows["duration"].split("  ")[0] == "▁▂▃▃▄▅▆▆▇█"
    assert rows["duration"].endswith("100 ms to 1.0 s")
    assert rows["extract"].split()[0] == "=✓✓✓✓✓✓✓✓✓"
    assert re.split("  +", rows[LONG]) == [
        *("✓✓✓↻✗✓✓↻✓✗", "490 ms", "890 ms", "890 ms", "20%", "20%")
    ]
    assert [line.split()[0] for line in lines[5:8]] == [LONG, "extract", "load"]
    assert lines[7][len(LONG) + 2 :].split()[0] == "✓✓✓✓⊘✓✓✓✓⊘"
    assert lines[-1] == (
        "✓ succeeded or passed   ↻ succeeded after a retry   = reused   ✗ failed   ⊘ skipped"
    )


@pytest.mark.parametrize("width", [80, 60, 40])
def test_a_narrow_terminal_shows_fewer_runs_of_which_all_count(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    store(*map(a_run, range(59)), a_run(59)[:2])
    on_a_terminal(monkeypatch, width)

    result = shell("stats", "etl", "--runs", "60")

    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= max(width, 60)
    assert (lines[-2] == "") == (width == 40)  # else the legend takes two lines
    assert "…" in result.stdout
    shown = int(re.search(r"(\d+) of 60 runs fit; figures are of all", result.stderr)[1])  # type: ignore[index]
    assert 1 <= shown < 60
    assert "60 runs" in lines[0]


def test_a_step_has_a_history_with_its_errors_in_groups(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    store(*map(a_run, range(10)))
    on_a_terminal(monkeypatch, 120)

    lines = shell("stats", "etl", LONG).stdout.splitlines()

    assert any(line.startswith("duration") and "90 ms to 990 ms" in line for line in lines)
    at = lines.index("ValueError: bad")
    assert lines[at + 1].startswith("  in 2 of 10 runs, first seen 1970-01-01 ")
    assert lines[at + 1].endswith(" in r04, last in r09")
    assert "OSError: away" in lines
    table = lines[[line.split()[:2] for line in lines].index(["RUN", "STARTED"]) + 1 :]
    assert [row.split()[0] for row in table] == [f"r{number:02}" for number in range(9, -1, -1)]
    assert re.split("  +", table[0])[2:] == ["failed", "990 ms", "ValueError: bad"]
    assert re.split("  +", table[2])[2:] == ["succeeded after a retry", "790 ms", "OSError: away"]
    wrong = shell("stats", "etl", "extrct", exits=2).stderr
    assert "the pipeline has no step 'extrct' (did you mean 'extract'?)" in wrong


def test_the_history_of_a_step_has_columns_of_cells(shell: Shell) -> None:
    store(a_run(0, prefix="夜"), a_run(1, prefix="night"))

    *_, title, narrow, wide = shell("stats", "etl", LONG).stdout.splitlines()

    places = {
        cell_len(line[: line.index(word)])
        for line, word in zip((title, narrow, wide), ("STARTED", "1970", "1970"), strict=True)
    }
    assert len(places) == 1


def test_an_encoding_without_symbols_has_letters_and_digits(shell: Shell) -> None:
    store(*map(a_run, range(5)))

    shown = CliRunner(charset="ascii").invoke(commands, ["stats", "etl"]).stdout

    assert shown.isascii()
    assert "vvvrx" in shown
    assert "r succeeded after a retry" in shown


def test_json_has_every_run_and_step(shell: Shell) -> None:
    store(*map(a_run, range(5)))

    found = shell.json("stats", "etl", "--json", "--runs", "4")

    assert [run["run_id"] for run in found["runs"]] == ["r04", "r03", "r02", "r01"]
    assert [step["step"] for step in found["steps"]] == list(STEPS)
    assert found["steps"][1]["outcomes"] == ["FAILED", "RETRIED", "SUCCESS", "SUCCESS"]
    assert found["steps"][1]["durations_ms"] == [490.0, 390.0, 290.0, 190.0]
    assert (found["success_rate"], found["steps"][1]["flakiness"]) == (0.75, 0.25)


def test_the_only_pipeline_needs_no_name(shell: Shell) -> None:
    store(a_run(1))

    assert shell("stats").stdout.startswith("Pipeline etl: 1 run, 100% passed")


def test_one_of_several_pipelines_must_be_named(shell: Shell) -> None:
    store(a_run(1), a_run(2, ""), a_run(3, "load\x1b"))

    assert 'name one of the pipelines: "", etl, load\\x1b' in shell("stats", exits=2).stderr
    assert shell("stats", "").stdout.startswith("Runs without a pipeline name: 1 run")


def test_an_unknown_pipeline_is_reported_with_the_nearest(shell: Shell) -> None:
    store(a_run(1), *(a_run(number, f"job{number}") for number in range(10, 25)))

    near, far = shell("stats", "elt", exits=4), shell("stats", "nightly", exits=4)

    assert "has no runs of pipeline 'elt' (did you mean 'etl'?)" in near.stderr
    assert "; it has those of etl, job10, job11" in far.stderr
    assert "job18 and 6 more" in far.stderr


def test_a_journal_without_runs_is_reported(shell: Shell) -> None:
    assert "does not exist" in shell("stats", "etl", exits=4).stderr
    store()
    with_none = shell("stats", exits=4).stderr
    assert "journal 'asyncflow.db' has no runs" in with_none


def test_a_damaged_run_has_a_mark(shell: Shell) -> None:
    store(a_run(1), a_run(2))
    with closing(sqlite3.connect("asyncflow.db", isolation_level=None)) as database:
        database.execute("UPDATE events SET at_ms = 1 WHERE run_id = 'r01'")

    shown = shell("stats", "etl").stdout

    assert "!✓" in shown
    assert "! damaged" in shown
