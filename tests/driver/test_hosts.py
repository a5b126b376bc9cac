"""What surrounds a run: other libraries' loops, several threads, signals, third-party tasks."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import anyio
import pytest

from asyncflow import Orchestrator, WorkflowStep, run_pipeline
from asyncflow.testing import VirtualTimeLoop


async def succeed():
    return "done"


def step_without_a_loop():
    coroutine = run_pipeline([WorkflowStep("a", succeed)])
    try:
        coroutine.send(None)
    finally:
        coroutine.close()


def test_outside_an_asyncio_loop_the_error_says_what_is_needed():
    with pytest.raises(RuntimeError, match=r"asyncio event loop; start it with asyncio\.run"):
        step_without_a_loop()


async def test_outside_an_asyncio_task_the_error_says_what_is_needed():
    # As in trio's guest mode, the code runs in asyncio's thread but in no asyncio task.
    loop = asyncio.get_running_loop()
    outcome = loop.create_future()

    def not_in_a_task():
        try:
            step_without_a_loop()
        except RuntimeError as error:
            outcome.set_result(str(error))

    loop.call_soon(not_in_a_task)

    assert "only in a task of an asyncio event loop" in await outcome


def test_the_same_orchestrator_runs_in_several_threads_at_once():
    barrier = threading.Barrier(3)

    async def meet():
        await asyncio.to_thread(barrier.wait, 30)
        return threading.get_ident()

    orchestrator = Orchestrator([WorkflowStep("meet", meet)])
    outputs = []

    def work():
        outputs.append(asyncio.run(orchestrator.run())["meet"].output)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(set(outputs)) == 3


async def test_an_unusable_input_or_run_id_is_refused_before_anything_runs():
    ran = []

    async def action():
        ran.append(1)

    with pytest.raises(TypeError, match="inputs must be a mapping"):
        await run_pipeline([WorkflowStep("a", action)], inputs=["url"])
    with pytest.raises(TypeError, match="run_id must be a str"):
        await run_pipeline([WorkflowStep("a", action)], run_id=7)
    with pytest.raises(ValueError, match="run_id must not be empty"):
        await run_pipeline([WorkflowStep("a", action)], run_id="")

    assert ran == []


async def test_the_stop_reason_of_an_expired_anyio_scope_is_the_same_in_every_run():
    events = []
    with anyio.move_on_after(0.01):
        await run_pipeline([WorkflowStep("a", asyncio.Event().wait)], observers=[events.append])

    assert events[-1].stop_reason == "the caller was cancelled"


async def test_all_tasks_can_be_cancelled_at_once_as_at_shutdown():
    started = asyncio.Event()
    cleaned = []

    async def action():
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            if sys.version_info >= (3, 12):
                # Before 3.12, `wait_for` forwards a third party's cancellation to an attempt that
                # has received one already, which would interrupt a clean-up that waits.
                await asyncio.sleep(0)
            cleaned.append(1)

    me = asyncio.current_task()
    run = asyncio.ensure_future(
        run_pipeline([WorkflowStep("a", action), WorkflowStep("b", action)])
    )
    await started.wait()
    await asyncio.sleep(0)

    for task in asyncio.all_tasks() - {me}:
        task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run

    assert len(cleaned) == 2


@pytest.mark.asyncio(loop_factories=["uvloop"])
async def test_a_timeout_that_fires_before_the_attempt_could_start_does_not_count():
    # uvloop runs timers before ready callbacks: a stalled loop is late for both.
    calls = []

    async def flaky():
        calls.append(1)
        if len(calls) == 1:
            raise ValueError
        return "in time"

    async def stall():
        for _ in range(6):
            time.sleep(0.03)
            await asyncio.sleep(0)

    report = await run_pipeline(
        [
            WorkflowStep("flaky", flaky, timeout_ms=20, max_retries=3),
            WorkflowStep("stall", stall),
        ],
        fail_fast=False,
    )

    assert report["flaky"].output == "in time"
    assert report["flaky"].attempts == 2


async def test_a_task_factory_that_fails_stops_the_run_with_its_error():
    loop = asyncio.get_running_loop()
    before = loop.get_task_factory()

    def broken(loop, coroutine, **options):
        coroutine.close()
        raise OSError("no more tasks")

    run = asyncio.ensure_future(run_pipeline([WorkflowStep("a", succeed)]))
    loop.set_task_factory(broken)
    try:
        with pytest.raises(OSError, match="no more tasks"):
            await run
    finally:
        loop.set_task_factory(before)


async def test_the_watchdog_ignores_long_steps_that_were_not_cancelled(monkeypatch):
    loop = asyncio.get_running_loop()
    if not isinstance(loop, VirtualTimeLoop):
        pytest.skip("the watchdog looks after five seconds, which is too long in real time")
    warnings = []
    monkeypatch.setattr("asyncflow._kernel.watchdog.Watchdog._warn", lambda *_: warnings.append(1))

    async def long():
        await asyncio.sleep(5.6)

    report = await run_pipeline(
        [
            WorkflowStep("short", succeed, timeout_ms=100),
            *(WorkflowStep(f"s{i}", long) for i in range(100)),
        ]
    )

    assert report.all_passed
    assert warnings == []


PROGRAM = """
import asyncio, sys
from asyncflow import WorkflowStep, run_pipeline

async def step():
    print("started", flush=True)
    try:
        await asyncio.Event().wait()
    finally:
        await asyncio.sleep(0.01)
        print("cleaned", flush=True)

async def main():
    await run_pipeline([WorkflowStep("a", step), WorkflowStep("b", step)])

{start}
"""

SIGTERM_AS_CANCELLATION = """
import signal

async def service():
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, asyncio.current_task().cancel)
    try:
        await main()
    except asyncio.CancelledError:
        sys.exit(143)

asyncio.run(service())
"""


@pytest.mark.process
@pytest.mark.parametrize(
    ("number", "start", "exit_code"),
    [
        (signal.SIGINT, "asyncio.run(main())", -signal.SIGINT),
        (signal.SIGTERM, SIGTERM_AS_CANCELLATION, 143),
    ],
)
def test_one_signal_ends_the_program_after_the_steps_have_cleaned_up(number, start, exit_code):
    program = PROGRAM.format(start=textwrap.dedent(start))
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as process:
        lines = [process.stdout.readline(), process.stdout.readline()]

        process.send_signal(number)
        lines += process.stdout.readlines()

    assert lines == ["started\n", "started\n", "cleaned\n", "cleaned\n"]
    assert process.returncode == exit_code


@pytest.mark.process
def test_system_exit_in_a_step_ends_the_program_with_its_code_after_clean_up():
    program = PROGRAM.format(
        start="""
async def leave():
    await asyncio.sleep(0.01)
    sys.exit(3)

asyncio.run(run_pipeline([WorkflowStep("a", step), WorkflowStep("leave", leave)]))
"""
    )

    process = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
    )

    assert (process.returncode, process.stdout) == (3, "started\ncleaned\n")
    assert process.stderr == ""
