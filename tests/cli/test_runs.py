"""``runs``, ``show``, ``resume`` and ``cancel`` read and change the runs of a journal."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import click
import pytest
from rich.console import Console
from segments import store_segment

from asyncflow import Orchestrator, RunCancelledError, RunReport, RunStatus, WorkflowStep
from asyncflow._core.history.results import Payload
from asyncflow.events import (
    AttemptFailed,
    AttemptStarted,
    Event,
    MapStarted,
    RunFinished,
    RunInterrupted,
    RunResumed,
    RunStarted,
    StepCancelled,
    StepFailed,
    StepReused,
    StepSkipped,
    StepSucceeded,
)
from asyncflow.journal import SQLiteJournal

from .conftest import COMMANDS, ROOT, Shell


async def fine() -> str:
    return "fine"


async def fail() -> None:
    raise OSError("no disk")


def store_run(run_id: str, action: Callable[[], object] = fine, name: str = "etl") -> RunReport:
    """Run a pipeline of one step and store the run in the default journal."""

    async def run() -> RunReport:
        async with SQLiteJournal("asyncflow.db") as journal:
            orchestrator = Orchestrator([WorkflowStep("one", action)], name=name)  # type: ignore[arg-type]
            return await orchestrator.with_options(run_id=run_id, journal=journal).run()

    return asyncio.run(run())


@pytest.fixture(scope="session")
def orphaned_journal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a journal with a run whose process died."""
    directory = tmp_path_factory.mktemp("orphaned_journal")
    text = """
import os
from asyncflow import Pipeline
pipeline = Pipeline("etl")
@pipeline.step
async def one():
    os._exit(9)
"""
    (directory / "dying.py").write_text(text, encoding="utf-8")
    command = [sys.executable, "-m", "asyncflow", "run", "dying:pipeline", "--run-id", "orphan"]
    variables = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=directory, env=variables, capture_output=True, check=False)
    assert done.returncode == 9, done.stderr
    return directory / "asyncflow.db"


@pytest.fixture
def orphan(shell: Shell, orphaned_journal: Path) -> str:
    """Put a run whose process died into the default journal; return its id."""
    for path in orphaned_journal.parent.glob("asyncflow.db*"):
        shutil.copy(path, shell.directory)
    return "orphan"


# runs


def test_options_filter_the_runs(shell: Shell, orphan: str) -> None:
    store_run("first")
    store_run("second", fail, "nightly")

    def listed(*options: str) -> list[str]:
        return [run["run_id"] for run in shell.json("runs", "--json", *options)]

    assert listed() == ["second", "first", orphan]
    assert listed("--status", "failed") == ["second"]
    assert listed("--status", "orphaned") == [orphan]
    assert listed("--status", "running") == []
    assert listed("--status", "FAILED") == ["second"]
    assert listed("--status", "Orphaned") == [orphan]
    assert listed("--pipeline", "nightly") == ["second"]
    assert listed("--text", "IR") == ["first"]
    assert listed("--limit", "1") == ["second"]
    assert listed("--limit", "0") == ["second", "first", orphan]
    assert listed("--since", "1h") == ["second", "first", orphan]
    assert listed("--since", "2999-01-01") == []
    refused = shell("runs", "--status", "lost", exits=2).stderr
    assert "status must be one of RUNNING, PASSED, FAILED, INTERRUPTED, ORPHANED" in refused


def test_a_text_without_its_option_is_pointed_to_it(shell: Shell) -> None:
    refused = shell("runs", "order", "12345", exits=2).stderr

    assert "asyncflow runs --text 'order 12345'" in refused


def test_a_label_is_given_shown_and_found(shell: Shell) -> None:
    shell("run", "etl:pipeline", "--run-id", "one", "--label", "order 12345")
    shell("run", "etl:pipeline", "--run-id", "two", "--label", "order 123456")
    shell("rerun", "two", "etl:pipeline", "--run-id", "again", "--all")
    store_run("plain")

    assert [run["run_id"] for run in shell.json("runs", "--json", "--label", "order 12345")] == [
        "one"
    ]
    assert [run["label"] for run in shell.json("runs", "--json", "--text", "ORDER")] == [
        "order 123456",
        "order 123456",
        "order 12345",
    ]
    header, *rows = shell("runs").stdout.splitlines()
    assert "LABEL" in header.split()
    assert ["order 123456" in row for row in rows] == [False, True, True, False]
    assert "LABEL" not in shell("runs", "--text", "plain").stdout
    part = shell("runs", "--label", "12345").stderr
    assert part == "no matching runs; --label is the whole label, and --text a part of it\n"
    assert shell("show", "one").stdout.startswith("Run one (order 12345) of etl, started ")
    assert "at most 200 characters" in shell("run", "etl", "--label", "x" * 201, exits=2).stderr


def test_attributes_are_given_shown_and_found(shell: Shell) -> None:
    of_one = ("--attribute", "tenant=acme", "--attribute", "tier=1")
    shell("run", "etl:pipeline", "--run-id", "one", *of_one)
    shell("run", "etl:pipeline", "--run-id", "two", "--attribute", 'tier="1"')
    shell("rerun", "one", "etl:pipeline", "--run-id", "again", "--all")
    shell("rerun", "one", "etl:pipeline", "--run-id", "other", "--all", "--attribute", "tenant=b")
    store_run("plain")

    def found(*attributes: str) -> list[str]:
        options = [word for each in attributes for word in ("--attribute", each)]
        return [run["run_id"] for run in shell.json("runs", "--json", *options)]

    assert found("tier=1") == found("tenant=acme", "tier=1") == ["again", "one"]
    assert found('tier="1"') == ["two"]
    assert found("tenant=acme", "tier=2") == []
    (one,) = shell.json("runs", "--json", "--attribute", "tenant=b")
    assert (one["run_id"], one["attributes"]) == ("other", {"tenant": "b"})
    header, *rows = shell("runs").stdout.splitlines()
    assert "ATTRIBUTES" in header.split()
    assert "tenant=acme, tier=1" in rows[-1]
    assert shell("show", "one").stdout.startswith("Run one [tenant=acme, tier=1] of etl, started ")
    for command in ("run", "rerun", "runs", "resume"):
        refused = shell(command, "etl", "--attribute", "tenant", exits=2).stderr
        assert "give NAME=VALUE, such as tenant=acme" in refused


def test_a_key_is_of_one_run(shell: Shell) -> None:
    shell("run", "etl:pipeline", "--run-id", "one", "--key", "customer 17")
    (one,) = shell.json("runs", "--json")
    with sqlite3.connect("asyncflow.db") as database:
        database.execute("UPDATE runs SET status = 'interrupted', cause = 'drained'")
    database.close()

    refused = shell("run", "etl:pipeline", "--key", "customer 17", "--quiet", exits=1).stderr

    assert one["key"] == "customer 17"
    assert refused == (
        "Error: run 'one', which is INTERRUPTED, has the key 'customer 17'; resume it, or cancel "
        "or forget it to free the key\n"
    )
    assert "must not be empty" in shell("run", "etl", "--key", "", exits=2).stderr
    no_journal = shell("run", "etl", "--key", "k", "--no-journal", exits=2).stderr
    assert "--key needs a journal" in no_journal


def test_label_and_error_stand_below_the_row_on_a_narrow_terminal(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    shell("run", "etl:failing", "--run-id", "bad", "--label", "order 1", exits=1)
    narrow = Console(width=80, highlight=False, markup=False, emoji=False)
    monkeypatch.setattr("asyncflow._cli.runs.stdout_console", lambda: narrow)

    header, row, below = shell("runs").stdout.splitlines()

    assert header.split()[-1] == "PIPELINE"
    assert row.startswith("bad  ")
    assert below == "    order 1  bad: OSError: no disk"


def test_names_that_do_not_fit_lose_their_middle_unless_the_list_is_wide(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    label = "the nightly import of all orders and invoices of customers in"
    for country in ("de", "fr"):
        name = f"nightly_import_of_orders_and_invoices_of_customers_{country}"
        shell.write(f"{country}.py", f"from asyncflow import Pipeline\np = Pipeline({name!r})\n")
        shell("run", f"{country}:p", "--run-id", country, "--label", f"{label} {country}")

    def listed(*options: str) -> list[str]:
        narrow = Console(width=80, highlight=False, markup=False, emoji=False)
        monkeypatch.setattr("asyncflow._cli.runs.stdout_console", lambda: narrow)
        return shell("runs", *options).stdout.splitlines()

    _, french, of_french, german, of_german = listed()
    assert max(map(len, (french, of_french))) <= 80
    for country, line in (("fr", french), ("de", german)):
        assert re.fullmatch(f".*  nightly_import_of_…s_of_customers_{country}", line)
    assert of_french == of_german.replace("in de", "in fr") == f"    {label} fr"
    assert [line.split("  ")[-2:] for line in listed("--wide")[1:]] == [
        [f"nightly_import_of_orders_and_invoices_of_customers_{country}", f"{label} {country}"]
        for country in ("fr", "de")
    ]


def test_the_json_of_a_run_has_machine_readable_values(shell: Shell, orphan: str) -> None:

    (run,) = shell.json("runs", "--json")

    assert run["status"] == "ORPHANED"
    assert run["duration_s"] == run["span_s"] == run["latest_ms"] / 1000
    assert shell.json("show", run["run_id"], "--json")["total_duration_ms"] == run["latest_ms"]
    assert abs(run["started_at"] - time.time()) < 600
    assert "⊘" not in shell("runs").stdout
    assert "◇ ORPHANED" in shell("runs").stdout


def change_leases(changes: str) -> None:
    with closing(sqlite3.connect("asyncflow.db")) as database, database:
        database.execute(f"UPDATE leases SET {changes}")


def test_a_dead_run_counts_until_its_process_gave_a_sign_of_life(shell: Shell, orphan: str) -> None:
    start = "(SELECT r.started_at FROM runs r WHERE r.run_id = leases.run_id)"
    change_leases(f"renewed_at = {start} + 90")

    (record,) = shell.json("runs", "--json")
    report = shell("show", orphan).stdout
    lines = [line for line in report.splitlines() if line.startswith("◇")]

    assert record["seen_at"] == pytest.approx(record["started_at"] + 90)
    assert lines[0].endswith(("1 min 29 s", "1 min 30 s"))  # it started a moment after the run
    assert lines[1] == "◇ ORPHANED after 1 min 30 s: 1 orphaned"
    assert "◇ ORPHANED  " in shell("runs").stdout
    assert "  1 min 30 s  etl" in shell("runs").stdout
    assert "ORPHANED after 1 min 30 s, started " in shell("diff", orphan, orphan).stdout
    statistics = shell("stats", "etl").stdout
    assert "\none       ◇" in statistics
    assert statistics.endswith("\n◇ orphaned\n")
    assert "Last seen after</dt><dd" in shell_page(shell, orphan)
    assert "1 min 30 s" in shell_page(shell, orphan)


def shell_page(shell: Shell, run_id: str) -> str:
    shell("show", run_id, "--html", "run.html")
    return (shell.directory / "run.html").read_text(encoding="utf-8")


def test_a_running_run_counts_until_now(shell: Shell, orphan: str) -> None:
    change_leases("owner = 'x', process = '{}', expires_at = 1e12, clock = NULL")
    took = r"[\d.]+ m?s|\d+ min \d+ s"

    (record,) = shell.json("runs", "--json")

    assert (record["status"], record["duration_s"]) == ("RUNNING", None)
    assert re.search(rf"▷ RUNNING for ({took}): 1 running", shell("show", orphan).stdout)
    assert re.search(rf"▷ RUNNING .*  ({took})  etl", shell("runs").stdout)
    assert re.search(rf"RUNNING for ({took}), started", shell("diff", orphan, orphan).stdout)


def test_the_steps_of_an_orphan_were_running_when_its_process_died(
    shell: Shell, orphan: str
) -> None:
    report, drawn = shell("show", orphan).stdout, shell("show", orphan, "--timeline").stdout

    assert "◇ ORPHANED   one  was running when its process died" in report
    assert "\n◇ ORPHANED after " in report
    assert "◇ ORPHANED" in drawn
    assert "◇ was running when its process died" in drawn
    assert "▒ unfinished" in drawn


@pytest.mark.parametrize("text", ["2x", "tomorrow", "99999999999w", ""])
def test_an_invalid_time_is_wrong_usage(shell: Shell, text: str) -> None:
    store_run("first")

    assert "use an age (2h, 3d) or an ISO date" in shell("runs", "--since", text, exits=2).stderr


def test_show_groups_the_steps_of_a_large_run_and_lists_all_if_asked(shell: Shell) -> None:
    shell.write(
        "large.py",
        """
        from asyncflow import WorkflowStep

        async def fine(): ...

        async def fail():
            raise OSError("no disk")

        first = [WorkflowStep(f"s{n}", fail if n == 7 else fine) for n in range(30)]
        steps = [*first, *[WorkflowStep(f"t{n}", fine, [f"s{n}"]) for n in range(30)]]
        """,
    )
    shell("run", "large:steps", "--run-id", "r", "--quiet", exits=1)

    grouped = shell("show", "r").stdout.split("\n\n")[1].splitlines()
    listed = shell("show", "r", "--all").stdout.split("\n\n")[1].splitlines()

    assert [" ".join(line.split()) for line in (grouped[0], grouped[2])] == [
        "✓ SUCCESS 29 steps",
        "⊘ SKIPPED 30 steps step 's7' failed and fail_fast is on",
    ]
    assert re.fullmatch(r"✗ FAILED     s7        OSError: no disk +[\d.]+ ms", grouped[1])
    assert len(listed) == len(grouped) - 3 + 60


@pytest.mark.parametrize("name", ["run", "resume", "rerun"])
def test_help_has_each_option_in_one_group_and_ends_with_examples(shell: Shell, name: str) -> None:
    text = shell(name, "--help").stdout
    options = [
        option.opts[0] for option in COMMANDS[name].params if isinstance(option, click.Option)
    ]

    assert [text.count(f"\n  {option} ") for option in options] == [1] * len(options)
    assert max(map(len, text.splitlines())) <= 100
    last = text[text.index("Examples:") :].splitlines()[1:]
    assert all(line.startswith(f"    asyncflow {name} ") for line in last)


def test_the_list_shows_twenty_runs_and_a_hint_that_more_match(shell: Shell) -> None:
    async def many() -> None:
        async with SQLiteJournal("asyncflow.db", synchronous="NORMAL") as journal:
            for number in range(21):
                orchestrator = Orchestrator([], name="etl")
                await orchestrator.with_options(run_id=f"run-{number}", journal=journal).run()

    asyncio.run(many())

    result = shell("runs")

    assert len(result.stdout.splitlines()) == 1 + 20
    assert result.stderr == "more runs match; --limit 0 lists all\n"
    assert shell("runs", "--limit", "20").stderr == ""


@pytest.mark.parametrize(
    "command",
    [["runs"], ["show", "latest"], ["resume", "latest", "etl:pipeline"], ["cancel", "latest"]],
)
def test_a_missing_journal_is_not_created(shell: Shell, command: list[str]) -> None:
    for options in ([], ["--journal", "other.db"]):
        result = shell(*command, *options, exits=4)

        assert result.stderr.startswith("Error: journal '")
        assert "--journal" in result.stderr
        assert result.stdout == ""
    assert not list(shell.directory.glob("*.db*"))


@pytest.mark.parametrize("command", [["run", "etl:pipeline"], ["runs"], ["show", "r"], ["ui"]])
@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("mysql://me:hunter2@host/db", "this is not the address of a journal; give a file, or "),
        ("me:hunter2@host", "this is not the address of a journal; give a file, or postgresql://"),
        ("host=h password=my hunter2", "can't be read; it is written as postgresql://user@host"),
    ],
)
def test_an_address_that_is_none_of_a_journal_is_refused_and_not_shown(
    shell: Shell, command: list[str], address: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ASYNCFLOW_JOURNAL", address)

    result = shell(*command, exits=2)

    assert says in result.stderr
    assert "hunter2" not in result.output
    assert not list(shell.directory.glob("*hunter2*"))


# show


def test_show_prints_the_report_and_the_traceback(shell: Shell) -> None:
    store_run("first")
    store_run("second", fail)

    passed, failed = shell("show", "first").stdout, shell("show", "second").stdout

    assert re.match(
        r"Run first of etl, started [\d-]+ [\d:]+ UTC\S*\n\n"
        r"✓ SUCCESS    one +[\d.]+ ms\n\n✓ PASSED in [\d.]+ ms: 1 succeeded\n\Z",
        passed,
    )
    assert re.search(
        r"\n\n✗ FAILED     one  [\d.]+ ms\nTraceback (?s:.*)\nOSError: no disk\n\n"
        r"Stopped: step 'one' failed and fail_fast is on\n✗ FAILED in .*: 1 failed\n\Z",
        failed,
    )


@pytest.mark.parametrize("name", ["second-one", "second", "latest"])
def test_a_run_is_found_by_a_prefix_of_its_id_or_as_the_latest(shell: Shell, name: str) -> None:
    store_run("first-one")
    store_run("second-one")

    assert shell("show", name).stdout.startswith("Run second-one of etl")


def test_an_ambiguous_prefix_is_wrong_usage_and_lists_the_matches(shell: Shell) -> None:
    for number in range(7):
        store_run(f"calm-otter-{number}")
    store_run("calm-otter")

    result = shell("show", "calm", exits=2)

    assert "8 runs start with 'calm': calm-otter, calm-otter-6, " in result.stderr
    assert "and 3 more; type more of the id" in result.stderr
    assert shell("show", "calm-otter").stdout.startswith("Run calm-otter of")  # an exact match wins


@pytest.mark.parametrize("name", ["frist", "irst", "", "x" * 2_000, "a%"])
def test_an_unknown_run_is_reported_with_a_suggestion(shell: Shell, name: str) -> None:
    store_run("first")

    result = shell("show", name, exits=4)

    assert result.stderr.startswith(f"Error: journal asyncflow.db has no run {name!r}")
    assert (
        "did you mean 'first'?" in result.stderr
        or "to list its runs: asyncflow runs" in result.stderr
    )


def test_an_unknown_run_of_another_journal_is_looked_for_in_that_one(shell: Shell) -> None:
    shell("run", "etl:pipeline", "--run-id", "a", "--journal", "other.db")
    shell("forget", "a", "--journal", "other.db")

    assert "other.db has no runs\n" in shell("show", "--journal", "other.db", exits=4).stderr
    assert shell("show", "b", "--journal", "other.db", exits=4).stderr.endswith(
        "; to list its runs: asyncflow runs --journal other.db\n"
    )


def test_show_as_json_is_the_report(shell: Shell) -> None:
    store_run("second", fail)

    text = shell("show", "second", "--json").stdout

    report = RunReport.from_json(text)
    assert report.run_id == "second"
    assert report.status == "FAILED"
    assert "no disk" in str(report["one"].error)


def test_show_events_prints_one_line_per_event(shell: Shell) -> None:
    store_run("second", fail)

    lines = shell("show", "second", "--events").stdout.splitlines()

    assert lines[0].startswith("Run second of etl")
    assert re.fullmatch(r" +0\.\d{3} s  run second of etl started: 1 step", lines[1])
    assert lines[2].endswith(" s  one started")
    assert lines[3].endswith(" s  one failed: OSError: no disk")
    assert lines[4].endswith("step 'one' failed and fail_fast is on")


def test_events_as_json_have_a_position_and_a_text(shell: Shell) -> None:
    store_run("second", fail)

    events = shell.json("show", "second", "--events", "--json")

    assert [each["position"] for each in events] == [1, 2, 3, 4]
    assert [each["event"] for each in events][1:3] == ["AttemptStarted", "StepFailed"]
    assert events[2]["step"] == "one"
    assert events[2]["text"] == "one failed: OSError: no disk"


def test_the_timeline_has_a_row_for_each_step(shell: Shell, orphan: str) -> None:
    store_run("second", fail)

    text = shell("show", "second", "--timeline").stdout

    assert "✗ FAILED" in text
    assert max(map(len, text.splitlines())) <= 80
    assert (
        ", orphaned: not finished, and no process runs it"
        in shell("show", orphan, "--timeline").stdout
    )
    assert "one" in shell("show", "second", "--timeline", "--events").stdout
    shell("show", "second", "--timeline", "--json", exits=2)


def test_a_damaged_run_is_listed_and_named_in_the_error(shell: Shell) -> None:
    store_run("first")
    store_run("second")
    with closing(sqlite3.connect("asyncflow.db")) as database, database:
        database.execute("UPDATE runs SET started_at = 1e299 WHERE run_id = 'second'")

    lines = shell("runs").stdout.splitlines()
    shown = shell("show", "second", exits=1)

    assert lines[1].split() == ["second", "!", "DAMAGED"]
    assert lines[2].split()[:3] == ["first", "✓", "PASSED"]
    assert "run 'second' can't be read: its row is damaged" in shown.stderr
    assert "first" in shell("show", "first").stdout
    assert shell("forget", "second").stdout == "removed run second (DAMAGED)\n"


def test_a_terminal_gets_colours_and_lines_that_fit(shell: Shell) -> None:
    store_run("first", fail, "a pipeline with a name that is far too long for that")
    variables = {"FORCE_COLOR": "1", "COLUMNS": "72", "TERM": "xterm"}

    table, report = shell("runs", env=variables), shell("show", "first", env=variables)

    line = re.sub(r"\x1b\[[\d;]*m", "", table.stdout.splitlines()[1])
    assert re.search(r"  a pipeline.*….*for that$", line)
    assert len(line) <= 72
    assert "\x1b[1;31m✗ FAILED" in table.stdout
    assert "\n\x1b[1;31m✗ FAILED   \x1b[0m  one" in report.stdout
    assert "\n\x1b[1;31m✗ FAILED\x1b[0m in " in report.stdout


# A run that was resumed.

DISK_FULL = OSError("the disk is full")


def store_resumed_run(mapped: int = 0) -> None:
    """Store a run that failed after 2 s, was resumed half a minute later, and passed in 1 s.

    Args:
        mapped: How many items its mapped step had before that, and has no more.
    """
    edges: dict[str, tuple[str, ...]] = {"load": (), "alert": ("load",), "rows": ()}
    before: list[Event] = [
        RunStarted("r", 1_000.0, edges),
        AttemptStarted("load", 1, 0.0),
        AttemptFailed("load", 1, 500.0, DISK_FULL, 500.0),
        AttemptStarted("load", 2, 1_000.0),
        StepFailed("load", 2, 1_500.0, DISK_FULL),
        AttemptStarted("alert", 1, 1_500.0),
        StepSucceeded("alert", 1, 2_000.0, Payload("json", b"1")),
        MapStarted("rows", 2_000.0),
        *(AttemptStarted("rows", 1, 2_000.0, item=number) for number in range(mapped)),
        *(StepSucceeded("rows", 1, 2_000.0, Payload("json", b"1"), n) for n in range(mapped)),
        StepFailed("rows", 0, 2_000.0, ValueError("no more items")),
        RunFinished(2_000.0, RunStatus.FAILED),
    ]
    after: list[Event] = [
        RunResumed("r", 2_000.0, 1_032.7, edges, {}, unfinished={"load": "so"}, afresh=True),
        AttemptStarted("load", 1, 2_000.0),
        StepSucceeded("load", 1, 3_000.0, Payload("json", b"1")),
        StepSkipped("alert", 3_000.0, "nothing has failed", by_condition=True),
        StepSkipped("rows", 3_000.0, "there is nothing to do", by_condition=True),
        RunFinished(3_000.0, RunStatus.PASSED),
    ]
    store_segments(before, after)


def store_segments(*segments: list[Event]) -> None:
    async def store() -> None:
        async with SQLiteJournal("asyncflow.db") as journal:
            for segment in segments:
                await store_segment(journal, "r", *segment)

    asyncio.run(store())


def test_runs_and_show_tell_the_same_duration_and_the_span_with_pauses(shell: Shell) -> None:
    store_resumed_run()

    (record,), report = shell.json("runs", "--json"), shell.json("show", "r", "--json")

    assert "  3.0 s of 33.7 s" in shell("runs").stdout
    took = ", resumed 1 time, took 3.0 s of 33.7 s, paused for 30.7 s\n"
    assert took in shell("show", "r").stdout
    assert (record["duration_s"], report["total_duration_ms"]) == (3.0, 3_000.0)
    assert record["span_s"] == pytest.approx(33.7)
    assert report["span_ms"] == pytest.approx(33_700.0)


def test_what_ran_before_a_resumption_has_a_line_for_each_step_and_no_attempt_twice(
    shell: Shell,
) -> None:
    edges: dict[str, tuple[str, ...]] = {"rows": (), "fetch": ("rows",), "save": ("rows",)}
    slow, down, done = TimeoutError("no answer"), ConnectionError("refused"), Payload("json", b"1")
    items = range(60)
    before: list[Event] = [
        RunStarted("r", 1_000.0, edges),
        AttemptStarted("rows", 1, 0.0),
        StepSucceeded("rows", 1, 0.0, done),
        MapStarted("fetch", 0.0, 60),
        *(AttemptStarted("fetch", 1, 0.0, item=number) for number in items),
        *(AttemptFailed("fetch", 1, 9.0, slow, 0.0, item=number) for number in items),
        *(AttemptStarted("fetch", 2, 9.0, item=number) for number in items),
        *(StepSucceeded("fetch", 2, 9.0, done, number) for number in items[:-1]),
        AttemptStarted("save", 1, 9.0),
        AttemptFailed("save", 1, 10.0, down, 9_000.0),
        RunInterrupted(20.0, "SIGINT"),
        StepCancelled("fetch", 2, 20.0, "SIGINT", None, items[-1]),
        StepCancelled("fetch", 0, 20.0, "SIGINT", None),
        StepCancelled("save", 1, 20.0, "SIGINT", down),
        RunFinished(20.0, RunStatus.INTERRUPTED, "SIGINT"),
    ]
    why = dict.fromkeys(["fetch", "save"], "it was cancelled")
    after: list[Event] = [
        RunResumed("r", 20.0, 1_030.0, edges, {}, unfinished=why, afresh=True),
        StepReused("rows", 20.0),
        MapStarted("fetch", 20.0, 60),
        *(StepReused("fetch", 20.0, number) for number in items[:-1]),
        AttemptStarted("fetch", 1, 20.0, item=items[-1]),
        StepSucceeded("fetch", 1, 30.0, done, items[-1]),
        StepSucceeded("fetch", 0, 30.0, None),
        AttemptStarted("save", 1, 30.0),
        StepSucceeded("save", 1, 40.0, done),
        RunFinished(40.0, RunStatus.PASSED),
    ]
    store_segments(before, after)

    run, step = shell("show", "r").stdout, shell("show", "r", "save").stdout

    earlier = run.partition("Before the run was resumed:\n")[2].partition("\n\n")[0]
    assert earlier.splitlines() == [
        "  fetch: 61 attempts of 60 items: 60 failed (TimeoutError), 1 cancelled",
        "  save: attempt 1 failed: ConnectionError: refused",
    ]
    assert len(run.splitlines()) < 24
    assert run.endswith(": 3 succeeded, 1 retried (fetch), 1 reused, 2 ran again (fetch, save)\n")
    assert ", paused for 30.0 s\n" in run
    attempts = [line.split("  ")[0].strip() or line.split()[:2] for line in step.splitlines()]
    begin = attempts.index("Attempts before the run was resumed")
    assert attempts[begin : begin + 4] == [
        "Attempts before the run was resumed",
        ["attempt", "1"],
        "Attempts",
        ["attempt", "1"],
    ]


# resume


def test_a_run_resumes_where_it_stopped(shell: Shell) -> None:
    shell("run", "etl:failing", "--run-id", "r1", "--quiet", "--keep-going", exits=1)
    path = shell.directory / "etl.py"
    path.write_text(path.read_text().replace('int("x")', "return"))
    forget_modules(shell.directory)

    result = shell("resume", "r1", "etl:failing", "--quiet")

    assert "[SUCCESS] bad (2 attempt(s), " in result.stdout
    again = "run again because it had failed; 1 attempt before the run was resumed\n"
    assert again in result.stdout
    assert result.stdout.count("reused") == 2
    shown = shell("show", "r1").stdout
    assert re.search(
        r", resumed 1 time, took \d+ ms( of [\d.]+ m?s, paused for [\d.]+ m?s)?\n", shown
    )
    before = "Before the run was resumed:\n  bad: attempt 1 failed: OSError: no disk\n\n✓ PASSED"
    assert f"\n\n{before} in " in shown
    shell("resume", "r1", "etl:failing", "--quiet")  # now it has passed


def test_without_a_pipeline_the_error_suggests_the_command(shell: Shell) -> None:
    shell("run", "etl:failing", "--run-id", "r1", "--quiet", exits=1)
    store_run("r2", fail, "nightly")

    first, second = shell("resume", "r1", exits=2), shell("resume", "r2", exits=2)

    assert "asyncflow resume r1 etl:failing, or in $ASYNCFLOW_PIPELINES" in first.stderr
    assert "run 'r2' belongs to pipeline 'nightly'" in second.stderr
    assert "asyncflow resume r2 MODULE:PIPELINE" in second.stderr


def test_a_variable_names_the_pipelines_to_resume(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    shell("run", "etl:failing", "--run-id", "r1", "--quiet", exits=1)
    store_run("r2", fail, "etlx")
    monkeypatch.setenv("ASYNCFLOW_PIPELINES", "etl:pipeline etl:failing")

    shell("resume", "r1", "--quiet", exits=1)
    unknown = shell("resume", "r2", exits=2)
    monkeypatch.setenv("ASYNCFLOW_PIPELINES", "etl:failing")
    shell("resume", "r1", "--quiet", exits=1)

    assert "which is none of etl:pipeline, etl:failing (did you mean 'etl'?)" in unknown.stderr


# Active runs.


@pytest.fixture
def active_run(shell: Shell) -> Iterator[dict[str, object]]:
    """Run a pipeline in another thread; yield its task, its loop and later its outcome."""
    has_started, outcome = threading.Event(), dict[str, object]()

    async def hang() -> None:
        has_started.set()
        await asyncio.sleep(30)

    async def run() -> None:
        async with SQLiteJournal("asyncflow.db") as journal:
            orchestrator = Orchestrator([WorkflowStep("hang", hang)], name="etl")
            outcome["task"] = task = asyncio.ensure_future(
                orchestrator.with_options(run_id="r1", journal=journal).run()
            )
            outcome["loop"] = asyncio.get_running_loop()
            (outcome["end"],) = await asyncio.gather(task, return_exceptions=True)

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    assert has_started.wait(10)
    outcome["thread"] = thread
    yield outcome
    thread.join()


@pytest.mark.realtime
def test_cancel_stops_a_run_of_another_journal_object(active_run: Any, shell: Shell) -> None:
    message = shell("cancel", "r1").stderr

    active_run["thread"].join()
    assert isinstance(active_run["end"], RunCancelledError)
    assert re.fullmatch(r"asked process \d+ on \S+ to stop run r1\n", message)


def test_the_reason_to_cancel_reaches_the_next_process_the_report_the_page_and_the_log(
    shell: Shell,
) -> None:
    store_segments([RunStarted("r", 0.0, {"extract": (), "load": ("extract",)}, "etl")])
    why = "the run was cancelled: wrong input"

    shell("cancel", "r", "--reason", "wrong input")
    log = shell("resume", "r", "etl:pipeline", exits=1).stderr

    assert f"the run stops because {why}" in log
    shown = shell.json("show", "r", "--json", "--html", "run.html")
    assert [(step["step_name"], step["reason"]) for step in shown["results"]] == [
        ("extract", why),
        ("load", why),
    ]
    assert f"Stopped: {why}" in shell("show", "r").stdout
    page = (shell.directory / "run.html").read_text(encoding="utf-8")
    assert f"</strong> because {why}" in page


def test_a_run_that_has_ended_cannot_be_cancelled(shell: Shell) -> None:
    store_run("first")

    result = shell("cancel", "first", exits=1)

    assert result.stderr == "Error: run 'first' has ended\n"


def test_a_resume_of_an_active_run_can_wait_for_it(active_run: Any, shell: Shell) -> None:
    shell.write("same.py", "from asyncflow import Pipeline\npipeline = Pipeline('etl')\n")
    command = ["resume", "r1", "same:pipeline", "--quiet", "--allow-missing-steps"]

    refused = shell(*command, exits=1)
    active_run["loop"].call_soon_threadsafe(active_run["task"].cancel)
    waited = shell(*command, "--wait")

    assert re.fullmatch(
        r"Error: run 'r1' is active in .*; wait for it with --wait, or stop it with "
        r"`asyncflow cancel r1`\n",
        refused.stderr,
    )
    assert waited.stdout.startswith("Pipeline PASSED")


def forget_modules(directory: Path) -> None:
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", "")).startswith(str(directory)):
            del sys.modules[name]


@pytest.mark.parametrize(
    "command", [["show", "r"], ["show", "r", "geocode"], ["logs", "r"], ["diff", "r", "first"]]
)
def test_a_terminal_breaks_no_word_and_no_line_is_wider(shell: Shell, command: list[str]) -> None:
    shell.write(
        "long.py",
        """
        import logging
        from asyncflow import Pipeline, after

        pipeline = Pipeline("nightly", fail_fast=False)
        SERVER = "the geocoder at geo.example.com answered 503 Service Unavailable, come back later"

        @pipeline.step(max_retries=2)
        async def geocode(bad: bool = False) -> None:
            logging.getLogger("geo").warning(SERVER)
            if bad:
                raise ConnectionError(SERVER)

        @pipeline.step
        async def publish_the_dashboards_of_all_regions(done: None = after(geocode)) -> None: ...
        """,
    )
    shell("run", "long", "--run-id", "first", "--quiet")
    shell("run", "long", "--run-id", "r", "--input", "bad=true", "--quiet", exits=1)
    terminal = {"FORCE_COLOR": "1", "COLUMNS": "80", "TERM": "xterm"}

    wide, narrow = shell(*command).stdout, shell(*command, env=terminal).stdout

    plain = re.sub(r"\x1b\[[\d;]*m", "", narrow)
    assert max(map(len, plain.splitlines())) <= 80
    file = f'"{shell.directory / "long.py"}",'  # a word that may be wider than a line
    broken = {word for word in plain.split() if word not in file} - {*wide.split()}
    assert [word for word in broken if "…" not in word] == []
    assert "come back later" in " ".join(plain.split())
