"""``diff`` says how a run differs from another one, by default from the last one that passed."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest
from click.testing import CliRunner
from compared_runs import MONDAY, store, store_two_runs

from asyncflow import RunReport, RunStatus
from asyncflow._cli import commands
from asyncflow._core.history.results import Payload
from asyncflow._views.preview import local_moment_text
from asyncflow.events import (
    AttemptStarted,
    Event,
    RunFinished,
    RunInterrupted,
    RunStarted,
    StepSucceeded,
)
from asyncflow.journal import SQLiteJournal

from .conftest import Shell

DAY = 86_400


def in_journal(write: Any, *args: Any) -> None:
    async def main() -> None:
        async with SQLiteJournal("asyncflow.db") as journal:
            await write(journal, *args)

    asyncio.run(main())


@pytest.fixture
def two_runs(shell: Shell) -> Shell:
    in_journal(store_two_runs)
    return shell


HEAD = f"""\
Run       tuesday of etl
          FAILED after 7.4 s, started {local_moment_text(MONDAY + DAY)}
          train: ValueError: column 'season' has 3 unknown values
Baseline  monday of etl
          PASSED after 5.0 s, started {local_moment_text(MONDAY)}
Inputs    days: 30 → 31
          dry_run: False (added)
          token: secret, so it is not known whether it changed
          mode: 'full' (removed)
Outputs   2 changed, first that of prices; 2 equal
"""


NOTABLE = """
STATUS     STEP     BASELINE     RUN  DIFFERENCE
✓ SUCCESS  extract     1.0 s   4.0 s  ▲ 3.0 s slower (4.0×)
✓ SUCCESS  load        1.0 s  400 ms  ▼ 600 ms faster (0.4×); depends on audit now; no longer depends on old
–          old        300 ms       –  removed
✓ SUCCESS  audit           –  250 ms  added
✓ SUCCESS  prices     500 ms  520 ms  about the same; 0 repeated attempts → 1 repeated attempt
           output, first at ['rate']: 1.1 → 1.2
⊘ SKIPPED  notify       2 ms       –  SUCCESS → SKIPPED
✓ SUCCESS  fetch       1.0 s   1.0 s  about the same; 2 items → 3 items; 0 repeated attempts → 1 repeated attempt
           output [1, 1] → [1, 1, 1]
✗ FAILED   train       2.0 s   2.0 s  SUCCESS → FAILED; version 1 → 2
"""  # noqa: E501 - a file has no width


def test_a_run_is_compared_with_the_last_passed_one_the_largest_difference_first(
    two_runs: Shell,
) -> None:
    assert two_runs("diff", "latest").stdout == HEAD + NOTABLE


def test_all_steps_are_shown_in_the_order_of_the_pipeline(two_runs: Shell) -> None:
    lines = two_runs("diff", "tue", "mon", "--all").stdout.splitlines()

    names = [line[:18].split()[-1] for line in lines[12:] if not line.startswith(" ")]
    assert names == ["extract", "prices", "fetch", "audit", "load", "train", "notify", "old"]


def test_runs_without_a_difference_say_so(two_runs: Shell) -> None:
    result = two_runs("diff", "monday", "monday").stdout

    assert result.endswith("Duration  about the same\n"
                           "Inputs    token: secret, so it is not known whether it changed\n"
                           "Outputs   7 equal\n\n"
                           "no notable difference in 7 steps\n")  # fmt: skip


def test_steps_that_hardly_differ_are_counted(two_runs: Shell) -> None:
    start = RunStarted("short", MONDAY, {"extract": (), "prices": (), "old": ()}, "etl")
    events: list[Event] = [start]
    for name, ms in {"extract": 1_005.0, "prices": 505.0, "old": 500.0}.items():
        output = Payload("json", b'{"currency":"EUR","rate":1.1}' if name == "prices" else b"1")
        events += [AttemptStarted(name, 1, 0.0), StepSucceeded(name, 1, ms, output)]
    in_journal(store, [*events, RunFinished(1_005.0, RunStatus.PASSED)])

    rest = two_runs("diff", "short", "monday").stdout.splitlines()[-1]

    assert rest == "2 other steps hardly differ; --all shows all"


def test_the_json_has_the_whole_comparison(two_runs: Shell) -> None:
    document = two_runs.json("diff", "tuesday", "--json")

    assert document["baseline"]["run_id"] == "monday"
    assert document["run"]["first_failure"] == "train"
    assert len(document["steps"]) == 8
    outputs = {each["step_name"]: each["output"] for each in document["steps"]}
    assert outputs["prices"] == {
        "change": "changed",
        "why": None,
        "where": "['rate']",
        "run": "1.2",
        "baseline": "1.1",
    }
    assert outputs["extract"]["change"] == "equal"
    assert outputs["train"] is None


def test_every_document_calls_a_run_whose_process_is_gone_orphaned(shell: Shell) -> None:
    async def store(journal: SQLiteJournal) -> None:
        session, _ = await journal.open("lost", wait=False, read=bool)
        for event in (RunStarted("lost", MONDAY, {"a": ()}, "etl"), AttemptStarted("a", 1, 1.0)):
            session.append(event)
        await session.close()

    in_journal(store)

    compared = shell.json("diff", "lost", "lost", "--json")
    assert shell.json("runs", "--json")[0]["status"] == "ORPHANED"
    assert compared["run"]["status"] == compared["baseline"]["status"] == "ORPHANED"
    assert compared["steps"][0]["run"]["status"] == "ORPHANED"
    assert shell.json("stats", "etl", "--json")["steps"][0]["outcomes"] == ["ORPHANED"]
    report = RunReport.from_json(shell("show", "lost", "--json").stdout)
    assert report.status is RunStatus.ORPHANED
    assert "◇ ORPHANED" in report.to_html()


def test_other_runs_can_be_named_also_those_of_other_pipelines(two_runs: Shell) -> None:
    start = RunStarted("other", MONDAY, {}, "a [bold]pipeline")
    events: list[Event] = [start, RunInterrupted(1.0, "it was cancelled")]
    in_journal(store, [*events, RunFinished(1.0, RunStatus.INTERRUPTED, "it was cancelled")])

    lines = two_runs("diff", "other", "monday").stdout.splitlines()

    assert lines[0] == "Run       other of a [bold]pipeline"
    assert lines[2] == "          it was cancelled"
    assert "Pipeline  these are runs of different pipelines" in lines


@pytest.mark.parametrize("pipeline", ["etl", ""])
def test_a_run_without_a_baseline_needs_one(shell: Shell, pipeline: str) -> None:
    in_journal(store, [RunStarted("r", MONDAY, {}, pipeline), RunFinished(1.0, RunStatus.PASSED)])

    error = shell("diff", "r", exits=4).stderr
    why = "no run of 'etl' before it has passed" if pipeline else "its pipeline has no name"
    assert error == f"Error: nothing to compare run 'r' with: {why}; name another run\n"
    assert shell("diff", "r", "r").stdout.startswith("Run       r")
    shell("diff", "r", "lost", exits=4)
    shell("diff", "r", "--journal", "no.db", exits=4)


def test_lines_fit_a_terminal_of_80_columns(two_runs: Shell) -> None:
    long = "features_customer_lifetime_value_with_seasonal_adjustment_v3"
    in_journal(
        store, [RunStarted("long", MONDAY, {long: ()}, "etl"), RunFinished(1.0, RunStatus.FAILED)]
    )
    terminal = {"FORCE_COLOR": "1", "COLUMNS": "80", "TERM": "xterm"}

    for arguments in (["tuesday"], ["tuesday", "long"], ["long", "tuesday", "--all"]):
        result = CliRunner(env=terminal).invoke(commands, ["diff", *arguments])

        assert result.exit_code == 0
        assert "\x1b[1;31mFAILED\x1b[0m after" in result.stdout
        plain = re.sub(r"\x1b\[[\d;]*m", "", result.stdout)
        assert max(map(len, plain.splitlines())) <= 80


def test_an_encoding_without_the_symbols_gets_others(two_runs: Shell) -> None:
    result = CliRunner(charset="ascii").invoke(commands, ["diff", "tuesday"])

    assert "v SUCCESS  extract     1.0 s   4.0 s  + 3.0 s slower (4.0x)" in result.stdout
    assert "days: 30 > 31" in result.stdout
    assert "output, first at ['rate']: 1.1 > 1.2" in result.stdout


def test_lists_and_a_shown_run_say_how_long_it_and_its_steps_usually_take(shell: Shell) -> None:
    for number, ms in enumerate((1_000.0, 2_000.0, 9_000.0)):
        start = RunStarted(f"r{number}", MONDAY + number, {"load": ()}, "etl")
        events: list[Event] = [start, AttemptStarted("load", 1, 0.0)]
        in_journal(
            store, [*events, StepSucceeded("load", 1, ms, None), RunFinished(ms, RunStatus.PASSED)]
        )
    in_journal(store, [RunStarted("nameless", MONDAY, {}), RunFinished(0.0, RunStatus.PASSED)])

    shown = shell("show", "r2", "--html", "page.html").stdout
    shell("show", "nameless", "--html", "other.html")
    listed = shell("runs", "--pipeline", "etl").stdout.splitlines()

    told = "usually 2.0 s: load +7.0 s"
    assert shown.endswith(f"\n✓ PASSED in 9.0 s ({told}): 1 succeeded\n")
    assert [line.endswith(f"etl       {told}") for line in listed[1:]] == [True, False, False]
    assert f", {told}<" in (shell.directory / "page.html").read_text(encoding="utf-8")
    assert ", usually 2.0 s" in (shell.directory / "page.html").read_text(encoding="utf-8")
    assert "usually" not in (shell.directory / "other.html").read_text(encoding="utf-8")
