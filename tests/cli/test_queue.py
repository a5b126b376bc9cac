"""What the command line shows of runs that wait to start, and of those that were replaced."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from rich.console import Console

from asyncflow import Pipeline, RunReport, after
from asyncflow._cli.watch import _until_it_starts
from asyncflow.journal import SQLiteJournal
from asyncflow.testing import run_in_virtual_time

from .conftest import Shell

pipeline = Pipeline("etl")


@pipeline.step
async def extract(days: int = 1) -> list[str]:
    return ["row"] * days


@pipeline.step
async def load(rows: list[str] = after(extract)) -> int:
    return len(rows)


approve = Pipeline("approve")
approve.signal("approval", bool)


def stored(fill: Callable[[Pipeline, SQLiteJournal], Awaitable[Any]]) -> None:
    """Fill the default journal of the current directory."""

    async def main() -> None:
        async with SQLiteJournal("asyncflow.db") as journal:
            await fill(pipeline.with_options(journal=journal), journal)

    asyncio.run(main())


async def queue(etl: Pipeline, journal: SQLiteJournal) -> None:
    await approve.with_options(journal=journal, run_id="asked").run()
    await etl.enqueue({}, run_id="first", key="customer-17")
    await etl.enqueue({}, run_id="second", key="customer-17")
    await etl.enqueue({}, run_id="later", delay_ms=40 * 86_400_000)


def due_text() -> str:
    return time.strftime("%Y-%m-%d", time.localtime(time.time() + 40 * 86_400))


def test_a_list_says_for_what_each_run_waits(shell: Shell) -> None:
    stored(queue)

    lines = shell("runs").stdout.splitlines()[1:]

    said = {line.split()[0]: line.split("  ")[-1].strip() for line in lines}
    later = said.pop("later")
    assert later.startswith(f"until {due_text()} ")
    assert said == {
        "second": "for key customer-17",
        "first": "for a place",
        "asked": "0 of 1, waits for approval",
    }
    assert " ms" not in lines[0]  # it has taken no time


@pytest.mark.parametrize(
    ("kind", "run_id"),
    [("signal", "asked"), ("place", "first"), ("key", "second"), ("time", "later")],
)
def test_a_list_has_the_runs_that_wait_for_one_kind_of_thing(
    shell: Shell, kind: str, run_id: str
) -> None:
    stored(queue)

    assert [each["run_id"] for each in shell.json("runs", "--waits-for", kind, "--json")] == [
        run_id
    ]


def test_below_a_list_is_how_many_wait(shell: Shell) -> None:
    stored(queue)

    *_, note = shell("runs").stderr.splitlines()

    assert re.fullmatch(r"3 runs wait to start: 2 due, the oldest for [\d.]+ m?s", note), note
    assert "to start" not in shell("runs", "--pipeline", "approve").stderr


def test_a_kind_that_there_is_not_is_a_usage_error(shell: Shell) -> None:
    assert "'signal', 'time', 'key', 'place'" in shell("runs", "--waits-for", "x", exits=2).stderr


def test_a_narrow_list_says_it_too(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asyncflow._cli.runs.stdout_console", lambda: Console(width=80))
    stored(queue)

    lines = shell("runs").stdout.splitlines()

    assert max(map(len, lines)) <= 80
    assert "  for key customer-17" in "\n".join(lines)


def test_a_run_that_waits_to_start_is_shown_as_enqueued(shell: Shell) -> None:
    stored(queue)

    shown = shell("show", "second")

    head, *_, verdict = shown.stdout.splitlines()
    assert head.startswith("Run second of etl with key customer-17, enqueued ")
    assert head.endswith(", waits for key customer-17")
    assert "started" not in head
    assert verdict == "◌ QUEUED: 2 pending"
    assert shown.stderr == "To start it now: asyncflow resume second MODULE:PIPELINE\n"


def test_a_run_that_was_enqueued_was_not_resumed_when_it_starts(shell: Shell) -> None:
    stored(queue)
    shell("resume", "first", "etl:pipeline")

    head = shell("show", "first").stdout.splitlines()[0]

    assert head.startswith("Run first of etl with key customer-17, enqueued ")
    assert ", started " in head
    assert "resumed" not in head


def test_a_run_is_watched_from_before_it_starts(shell: Shell, capfd: Any) -> None:
    async def main() -> None:
        async with SQLiteJournal("asyncflow.db") as journal:
            etl = pipeline.with_options(journal=journal, run_id="one")
            await etl.enqueue({}, key="customer-17", delay_ms=90_000)
            record = await journal.record("one")
            watching = asyncio.ensure_future(_until_it_starts(journal, record))
            await asyncio.sleep(100)
            assert not watching.done()
            await etl.run()
            await watching

    run_in_virtual_time(main())

    first, second = capfd.readouterr().err.splitlines()
    assert first.startswith("run one waits until ")
    assert second == "run one waits for a place"


def test_a_run_that_was_replaced_names_the_other_and_has_no_step_left(shell: Shell) -> None:
    async def replace(etl: Pipeline, journal: SQLiteJournal) -> None:
        await etl.enqueue({}, run_id="old", key="customer-17")
        await etl.enqueue({}, run_id="new", key="customer-17", on_conflict="replace")
        report = await journal.report("old")
        assert str(RunReport.from_json(report.to_json())) == str(report)
        texts.append(str(report))

    texts: list[str] = []
    stored(replace)
    why = "the run was cancelled: run 'new' has replaced it"

    assert texts == [
        "Pipeline INTERRUPTED\n"
        f"[SKIPPED] extract (0 attempt(s), 0ms): {why}\n"
        f"[SKIPPED] load (0 attempt(s), 0ms): {why}\n"
        "Total: 0ms"
    ]
    shown = shell("show", "old").stdout
    assert f"Stopped: {why}\n□ INTERRUPTED in 0 ms: 2 skipped" in shown
    line = shell("runs", "--status", "INTERRUPTED").stdout.splitlines()[1]
    assert line.endswith(f"  etl       {why}")
    assert " ms " not in line  # it never started


def test_a_run_that_waited_to_start_is_cancelled_as_that(shell: Shell) -> None:
    stored(queue)

    cancelled = shell("cancel", "later").stderr

    assert cancelled == "run later, which waited to start, has ended as cancelled\n"


def test_the_preview_of_a_run_that_waits_to_start_is_that_of_a_start(shell: Shell) -> None:
    shell("enqueue", "etl:pipeline", "--run-id", "r")

    assert shell("resume", "r", "etl:pipeline", "--dry-run").stdout.startswith("A start of run r:")


# asyncflow enqueue


def record(run_id: str) -> Any:
    async def read() -> Any:
        async with SQLiteJournal("asyncflow.db") as journal:
            return await journal.record(run_id), await journal.report(run_id)

    return asyncio.run(read())


def test_enqueue_stores_a_run_and_prints_its_id_alone(shell: Shell) -> None:
    shell.write("loud.py", "print('imported')\nfrom etl import pipeline\n")
    options = ["--input", "days=3", "--key", "customer 17", "--label", "sync"]

    done = shell("enqueue", "loud:pipeline", *options, "--attribute", "tier=1", "--delay", "10m")

    found, report = record(run_id := done.stdout.removesuffix("\n"))
    assert (found.run_id, found.key, found.label) == (run_id, "customer 17", "sync")
    assert found.attributes == {"tier": 1}
    assert found.waits_for.due_at == pytest.approx(found.enqueued_at + 600, abs=5)
    assert report.inputs == {"days": 3}


def test_enqueue_may_be_repeated_under_an_id(shell: Shell) -> None:
    for _ in range(2):
        assert shell("enqueue", "etl:pipeline", "--run-id", "one").stdout == "one\n"

    other = shell("enqueue", "etl:pipeline", "--run-id", "one", "--input", "days=2", exits=3)

    assert "'etl:pipeline' can't run: run 'one'" in other.stderr


@pytest.mark.parametrize(
    ("conflict", "code", "printed"),
    [("wait", 0, "two\n"), ("raise", 1, ""), ("return", 0, "one\n"), ("replace", 0, "two\n")],
)
def test_enqueue_has_a_choice_if_there_is_a_run_of_the_key(
    shell: Shell, conflict: str, code: int, printed: str
) -> None:
    shell("enqueue", "etl:pipeline", "--key", "a", "--run-id", "one")

    second = ["--key", "a", "--run-id", "two", "--on-conflict", conflict]

    assert shell("enqueue", "etl:pipeline", *second, exits=code).stdout == printed
    assert record("one")[0].status == ("INTERRUPTED" if conflict == "replace" else "WAITING")


@pytest.mark.parametrize("delay", ["10", "soon", "10m ago", "-1s", f"{10**30}d"])
def test_a_delay_is_a_number_with_a_unit(shell: Shell, delay: str) -> None:
    refused = shell("enqueue", "etl:pipeline", f"--delay={delay}", exits=2)

    assert "(30s, 10m, 2h, 3d)" in " ".join(refused.stderr.split())


def test_a_rerun_may_have_a_key(shell: Shell) -> None:
    shell("run", "etl:pipeline", "--run-id", "one", "--quiet")
    shell("rerun", "one", "etl:pipeline", "--all", "--run-id", "two", "--key", "a", "--quiet")

    assert record("two")[0].key == "a"
