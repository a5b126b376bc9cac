"""Checkpoints inside a step: they survive a retry and a crash, may lag, and never lead."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest
from memory_journal import MemoryJournal

from asyncflow import (
    PayloadError,
    Pipeline,
    Pool,
    RunStatus,
    WorkflowStep,
    collect,
    current_step,
    each,
    run_pipeline,
)
from asyncflow.journal import SQLiteJournal
from asyncflow.testing import crash_everywhere

ROOT = Path(__file__).parents[2]


def saved_in(journal, run_id="r"):
    return {key: json.loads(each.data) for key, each in journal.saved.get(run_id, {}).items()}


def work(seen, *, fail_until):
    """Return the action of a step that saves one more each time, and fails in its first calls."""

    async def action():
        step = current_step()
        seen.append((step.attempt, step.last_checkpoint))
        step.checkpoint((step.last_checkpoint or 0) + 1)
        if len(seen) < fail_until:
            raise ValueError(len(seen))
        return step.last_checkpoint

    return action


@pytest.mark.parametrize("with_journal", [False, True])
async def test_the_next_attempt_continues_from_the_checkpoint(with_journal):
    seen, journal = [], MemoryJournal() if with_journal else None
    step = WorkflowStep("a", work(seen, fail_until=3), max_retries=3)

    report = await run_pipeline([step], journal=journal)

    assert seen == [(1, None), (2, 1), (3, 2)]
    assert report["a"].output == 2


@pytest.mark.parametrize("options", [{}, {"heartbeat_ms": 60_000}, {"timeout_ms": None}])
async def test_an_attempt_that_exceeds_its_limit_leaves_its_checkpoint(options):
    async def slow():
        step = current_step()
        if step.attempt == 1:
            step.checkpoint("so far")
            await asyncio.sleep(1)
            raise ValueError
        return step.last_checkpoint

    options = {"timeout_ms": 5} | options

    report = await run_pipeline([WorkflowStep("a", slow, max_retries=2, **options)])

    assert report["a"].output == "so far"


async def test_a_thread_and_the_threads_that_it_starts_save_checkpoints():
    def action():
        step = current_step()
        if step.attempt == 1:
            thread = threading.Thread(target=step.checkpoint, args=["from within"])
            thread.start()
            thread.join()
            raise ValueError
        return step.last_checkpoint

    report = await run_pipeline([WorkflowStep("a", action, runs_in="thread", max_retries=2)])

    assert report["a"].output == "from within"


async def test_each_item_has_a_checkpoint_of_its_own():
    pipeline = Pipeline("p")

    @pipeline.step
    async def numbers() -> list[int]:
        return [10, 20]

    @pipeline.step(max_retries=2)
    async def item(number: int = each(numbers)) -> int:
        step = current_step()
        if step.attempt == 1:
            step.checkpoint(number + 1)
            raise ValueError
        return step.last_checkpoint

    @pipeline.step
    async def total(items: list[int] = collect(item)) -> list[int]:
        return items

    report = await pipeline.run()

    assert report["total"].output == [11, 21]


async def test_nothing_is_left_in_memory_of_a_step_that_has_ended():
    runs = []

    async def action():
        from asyncflow._core.running import context

        runs.append(context._run.get())
        current_step().checkpoint("x")

    await run_pipeline([WorkflowStep("a", action), WorkflowStep("b", action, max_retries=2)])

    assert not runs[0].checkpoints.saved


# With a journal.


@pytest.mark.exact_time
async def test_a_checkpoint_is_stored_at_most_100_ms_later():
    journal, found = MemoryJournal(latency_s=0.04), []

    async def action():
        current_step().checkpoint(1)
        await asyncio.sleep(0.06)
        current_step().checkpoint(2)  # while the first one is being written
        await asyncio.sleep(0.04)
        found.append(saved_in(journal))
        await asyncio.sleep(0.06)
        found.append(saved_in(journal))

    await run_pipeline([WorkflowStep("a", action)], journal=journal, run_id="r")

    assert found == [{("a", None): 1}, {("a", None): 2}]


@pytest.mark.exact_time
async def test_a_checkpoint_of_an_item_is_stored_while_it_runs_and_where_it_continues():
    journal, left, seen = MemoryJournal(), [], []

    async def numbers():
        return [1, 2]

    async def item(n):
        seen.append((n, current_step().last_checkpoint))
        current_step().checkpoint(n * 10)
        await asyncio.sleep(0.2)
        left.append(journal.died_after(len(journal.stored["r"])))

    steps = [
        WorkflowStep("numbers", numbers),
        WorkflowStep("item", item, {"n": "numbers"}, map_over="numbers"),
    ]
    await run_pipeline(steps, journal=journal, run_id="r")
    assert saved_in(left[0]) == {("item", 0): 10, ("item", 1): 20}

    await run_pipeline(steps, journal=left[0], run_id="r")

    assert seen == [(1, None), (2, None), (1, 10), (2, 20)]


async def test_what_an_item_saves_after_it_was_forgotten_is_dropped():
    journal, leaked = MemoryJournal(), []

    async def numbers():
        return [1, 2, 3, 4]

    async def item(n):
        leaked.append(current_step())
        if n == 4:
            leaked[0].checkpoint("late")
            leaked[3].checkpoint("in time")
            await asyncio.sleep(0.2)
            leaked.append(saved_in(journal))

    policies = {"map_over": "numbers", "keep_outputs": False, "pool": Pool(1)}
    steps = [
        WorkflowStep("numbers", numbers),
        WorkflowStep("item", item, {"n": "numbers"}, **policies),
    ]

    report = await run_pipeline(steps, journal=journal, run_id="r")

    assert report.status is RunStatus.PASSED
    assert leaked[-1] == {("item", 3): "in time"}


async def test_a_checkpoint_is_stored_with_the_end_of_its_attempt_and_deleted_with_the_success():
    journal, found = MemoryJournal(), []

    async def action():
        found.append(saved_in(journal))
        current_step().checkpoint(current_step().attempt)
        if current_step().attempt < 3:
            raise ValueError

    await run_pipeline([WorkflowStep("a", action, max_retries=3)], journal=journal, run_id="r")

    assert found == [{}, {("a", None): 1}, {("a", None): 2}]
    assert not saved_in(journal)


async def test_a_checkpoint_is_gone_when_its_step_reuses_a_result():
    journal, seen = MemoryJournal(), []
    step = WorkflowStep("a", work(seen, fail_until=2), cache_ms=3_600_000)

    await run_pipeline([step], journal=journal, name="p", run_id="r")
    left = saved_in(journal)
    await run_pipeline([step], journal=journal, name="p", run_id="other")
    report = await run_pipeline([step], journal=journal, name="p", run_id="r")

    assert left == {("a", None): 1}
    assert report["a"].reused
    assert not saved_in(journal)


async def test_a_run_that_starts_afresh_continues_from_the_checkpoint_of_its_step():
    # Trap 9: attempt numbers restart afresh, and the checkpoint is there all the same.
    journal, seen = MemoryJournal(), []
    step = WorkflowStep("a", work(seen, fail_until=4), max_retries=2)

    reports = [await run_pipeline([step], journal=journal, run_id="r") for _ in range(2)]

    assert [report.status for report in reports] == [RunStatus.FAILED, RunStatus.PASSED]
    assert seen == [(1, None), (2, 1), (1, 2), (2, 3)]
    assert not saved_in(journal)


async def test_a_step_that_is_cut_short_continues_from_its_checkpoint():
    journal, seen = MemoryJournal(), []

    async def action():
        seen.append(current_step().last_checkpoint)
        current_step().checkpoint("here")
        if len(seen) == 1:
            await asyncio.sleep(1_000)

    run = run_pipeline([WorkflowStep("a", action)], journal=journal, run_id="r", deadline_ms=200)
    await run
    await run_pipeline([WorkflowStep("a", action)], journal=journal, run_id="r")

    assert seen == [None, "here"]


async def test_a_checkpoint_is_gone_when_the_version_of_its_step_changes():
    journal, seen = MemoryJournal(), []
    before, now = (
        WorkflowStep("a", work(seen, fail_until=2), version=version) for version in ("1", "2")
    )

    await run_pipeline([before], journal=journal, run_id="r")
    left = saved_in(journal)
    await run_pipeline([now], journal=journal, run_id="r")

    assert left == {("a", None): 1}
    assert seen == [(1, None), (1, None)]


async def test_the_checkpoint_of_an_item_is_gone_when_the_items_are_made_anew():
    journal, seen = MemoryJournal(), []

    async def numbers():
        return [1, 2]

    async def item(n):
        seen.append(current_step().last_checkpoint)
        current_step().checkpoint(n)
        if len(seen) <= 2:
            raise ValueError

    steps = [
        WorkflowStep("numbers", numbers, secret=True),
        WorkflowStep("item", item, {"n": "numbers"}, map_over="numbers"),
    ]

    for _ in range(2):
        await run_pipeline(steps, journal=journal, run_id="r", fail_fast=False)

    assert seen == [None] * 4


async def test_what_a_secret_step_saves_survives_a_retry_and_is_never_stored():
    journal, seen, found = MemoryJournal(), [], []

    async def action():
        seen.append(current_step().last_checkpoint)
        current_step().checkpoint("hush")
        await asyncio.sleep(0.2)
        found.append(saved_in(journal))
        if len(seen) < 3:
            raise ValueError

    step = WorkflowStep("a", action, secret=True, max_retries=2)

    for _ in range(2):
        await run_pipeline([step], journal=journal, run_id="r")

    assert seen == [None, "hush", None]
    assert not any(found)


async def test_the_checkpoints_of_tolerated_items_are_gone_with_the_success_of_their_step():
    journal, found = MemoryJournal(), []

    async def item(n):
        current_step().checkpoint(n)
        if n == 2:
            raise ValueError

    async def after():
        found.append(saved_in(journal))

    steps = [
        WorkflowStep("numbers", lambda: asyncio.sleep(0, [1, 2])),
        WorkflowStep("item", item, {"n": "numbers"}, map_over="numbers", tolerated_failures=1),
        WorkflowStep("after", after, ["item"]),
    ]

    report = await run_pipeline(steps, journal=journal, run_id="r")

    assert report.status is RunStatus.PASSED
    assert found == [{}]
    assert not saved_in(journal)


async def test_what_is_saved_after_the_end_of_a_step_is_dropped():
    journal, leaked = MemoryJournal(), []

    async def action():
        leaked.append(current_step())

    async def later():
        leaked[0].checkpoint("late")
        await asyncio.sleep(0.2)

    steps = [WorkflowStep("a", action), WorkflowStep("later", later, ["a"])]

    await run_pipeline(steps, journal=journal, run_id="r")
    leaked[0].checkpoint("later still")

    assert not saved_in(journal)


async def test_a_rerun_starts_its_steps_without_the_checkpoints_of_the_other_run(tmp_path):
    seen, pipeline = [], Pipeline("p")
    pipeline.step(name="a")(work(seen, fail_until=2))

    async with SQLiteJournal(tmp_path / "runs.db") as journal:
        durable = pipeline.with_options(journal=journal, run_id="r")
        await durable.run()
        await durable.rerun("r", "again")

    assert seen == [(1, None), (1, None)]


async def test_a_checkpoint_that_json_does_not_bring_back_is_refused_where_it_is_made(tmp_path):
    problems = []

    async def action():
        for value in ({1}, "x" * 70_000):
            try:
                current_step().checkpoint(value)
            except PayloadError as error:
                problems.append(str(error))

    async with SQLiteJournal(tmp_path / "runs.db") as journal:
        await run_pipeline([WorkflowStep("a", action)], journal=journal)

    assert problems == [
        "the checkpoint of step 'a' can't be stored in the journal: set would come back as list; "
        'save plain data, or pass codec="cloudpickle" to the journal',
        "the checkpoint of step 'a' takes more bytes than can be stored in the journal, whose "
        "limit is 65,536: store it elsewhere and save where the action has come to",
    ]


async def test_a_journal_without_checkpoints_still_lets_them_survive_a_retry():
    class Session(MemoryJournal.session):
        append_checkpoint = None

    journal, seen = MemoryJournal(), []
    journal.session = Session

    step = WorkflowStep("a", work(seen, fail_until=4), max_retries=2)
    for _ in range(2):
        await run_pipeline([step], journal=journal, run_id="r")

    assert seen == [(1, None), (2, 1), (1, None), (2, 1)]


def test_a_run_that_crashes_anywhere_ends_as_one_that_never_did():
    pipeline = Pipeline("p")

    @pipeline.step(max_retries=3)
    async def parts() -> list[int]:
        step = current_step()
        done = step.last_checkpoint or []
        for part in range(len(done), 4):
            done = [*done, part]
            step.checkpoint(done)
            await asyncio.sleep(0.06)
        return done

    journal = MemoryJournal()

    crashes = crash_everywhere(pipeline, lambda: journal)

    assert crashes.status is RunStatus.PASSED
    assert not any(journal.saved.values())


# In other processes.


def save_and_fail():
    step = current_step()
    before = step.last_checkpoint
    for row in range(200):
        step.checkpoint({"attempt": step.attempt, "row": row})
    if step.attempt == 1:
        raise ValueError
    if step.attempt == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return before


@pytest.mark.process
async def test_a_process_that_is_killed_leaves_its_last_checkpoint(tmp_path):
    steps = [WorkflowStep("a", save_and_fail, runs_in="process", max_retries=3)]

    async with SQLiteJournal(tmp_path / "runs.db") as journal:
        report = await run_pipeline(steps, journal=journal)

    assert report["a"].output == {"attempt": 2, "row": 199}


def save_too_much():
    current_step().checkpoint("x" * 70_000)


@pytest.mark.process
async def test_a_process_refuses_a_checkpoint_where_it_is_made():
    report = await run_pipeline([WorkflowStep("a", save_too_much, runs_in="process")])

    assert isinstance(report["a"].error, PayloadError)


_KILLED = """
import asyncio, sys, time
from asyncflow import WorkflowStep, current_step, run_pipeline
from asyncflow.journal import SQLiteJournal

def in_process():
    step = current_step()
    print("from", step.last_checkpoint, flush=True)
    for row in range(10_000):
        step.checkpoint(row)
        print("row", row, time.time(), flush=True)
        time.sleep(0.01)

async def in_loop():
    step = current_step()
    print("from", step.last_checkpoint, flush=True)
    for row in range(10_000):
        step.checkpoint(row)
        print("row", row, time.time(), flush=True)
        await asyncio.sleep(0.01)

async def main():
    options = {"runs_in": sys.argv[2]}
    action = in_loop if sys.argv[2] == "loop" else in_process
    async with SQLiteJournal(sys.argv[1]) as journal:
        await run_pipeline([WorkflowStep("a", action, **options)], journal=journal, run_id="r")

if __name__ == "__main__":
    asyncio.run(main())
"""


def has_checkpoint(path):
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
        return bool(database.execute("SELECT 1 FROM checkpoints").fetchall())


@pytest.mark.process
@pytest.mark.parametrize("runs_in", ["loop", "process"])
def test_after_a_kill_a_step_continues_from_a_checkpoint_that_was_made(tmp_path, runs_in):
    script, database = tmp_path / "killed.py", tmp_path / "runs.db"
    script.write_text(_KILLED)
    command = [sys.executable, str(script), str(database), runs_in]

    made, began = [], []
    for _ in range(2):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        assert process.stdout is not None
        began.append(process.stdout.readline().split()[1])
        while not has_checkpoint(database):
            made.append(int(process.stdout.readline().split()[1]))
        process.kill()
        made += [int(line.split()[1]) for line in process.stdout if line.startswith("row")]
        process.wait()
        process.stdout.close()

    assert began[0] == "None"
    assert 0 <= int(began[1]) <= max(made)
