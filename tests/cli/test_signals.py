"""Signals to this process: what they stop, what is reported, and the exit code."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time

import pytest

from asyncflow._cli.execution import stopped_by_signals

from .conftest import Shell

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")

KILLER = """
    import asyncio, os, signal, sys
    from asyncflow import Pipeline
    from asyncflow.journal import SQLiteJournal

    def pipeline_that_sends(number):
        pipeline = Pipeline("killer")
        @pipeline.step
        async def kill():
            os.kill(os.getpid(), number)
            await asyncio.sleep(120)
        return pipeline

    term, int_ = pipeline_that_sends(signal.SIGTERM), pipeline_that_sends(signal.SIGINT)

    cancelled = Pipeline("cancelled")
    @cancelled.step
    async def cancel():
        async with SQLiteJournal("asyncflow.db") as journal:
            assert await journal.cancel("r1")
        await asyncio.sleep(120)
"""


@pytest.mark.parametrize(("target", "code"), [("killer:term", 143), ("killer:int_", 130)])
@pytest.mark.parametrize("options", [[], ["--no-journal"]])
def test_a_signal_stops_a_run(shell: Shell, target: str, code: int, options: list[str]) -> None:
    shell.write("killer.py", KILLER)
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]

    result = shell("run", target, *options, exits=code)

    assert "Pipeline INTERRUPTED\n[CANCELLED] kill" in result.stdout
    assert f"Stopped: the caller was cancelled: {signal.Signals(code - 128).name}" in result.stdout
    assert "stopping; running steps are cleaning up. " in result.stderr
    after = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert after == before


@pytest.mark.realtime
def test_a_run_cancelled_through_its_journal_exits_with_1(shell: Shell) -> None:
    shell.write("killer.py", KILLER)

    result = shell("run", "killer:cancelled", "--run-id", "r1", exits=1)

    assert "Stopped: the run was cancelled through its journal" in result.stdout
    assert "To resume it: asyncflow resume r1 killer:cancelled" in result.stderr


def test_a_signal_before_the_run_starts_leaves_no_report(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def wait(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(120)

    monkeypatch.setattr("asyncflow.journal.SQLiteJournal.open", wait)

    result = shell("run", "etl:pipeline", "--run-id", "r1", exits=143)

    assert result.stdout == ""
    assert result.stderr.endswith("Error: stopped before the run started; nothing has run\n")


async def test_the_second_signal_ends_the_process_without_waiting_for_the_loop(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    task = asyncio.ensure_future(asyncio.sleep(120))

    with stopped_by_signals(task, "stopping") as stop:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)  # before the next loop iteration
        assert codes == [143]
        await asyncio.wait([task])

    assert stop.signal is signal.SIGINT
    assert task.cancelled()
    assert capfd.readouterr().err == (
        "\nexited immediately\nSIGINT: stopping. Press Ctrl-C again to exit immediately\n"
    )


async def test_an_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a shell does for `&` in a script
    try:
        with stopped_by_signals(asyncio.ensure_future(asyncio.sleep(0)), "") as stop:
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.sleep(0)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)

    assert stop.signal is None


async def test_a_signal_after_the_end_of_the_run_has_no_effect(
    capfd: pytest.CaptureFixture[str],
) -> None:
    task = asyncio.ensure_future(asyncio.sleep(0, "done"))
    await task

    with stopped_by_signals(task, "stopping"):
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    assert capfd.readouterr().err == ""
    assert task.result() == "done"


@pytest.mark.realtime
async def test_a_signal_delivered_to_another_thread_wakes_the_loop() -> None:
    task = asyncio.ensure_future(asyncio.sleep(120))

    with stopped_by_signals(task, "stopping"):
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        try:
            # Only the new thread can receive the signal then.
            thread = threading.Thread(target=receive_signal)
            thread.start()
            done, _ = await asyncio.wait([task], timeout=50)
            thread.join()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])

    assert done == {task}
    assert task.cancelled()


def receive_signal() -> None:
    time.sleep(0.2)  # until the main thread waits for events
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
    os.kill(os.getpid(), signal.SIGTERM)
