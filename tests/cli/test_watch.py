"""``watch`` shows a run of another process until it ends, and exits as that run does."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from asyncflow import RunStatus
from asyncflow._cli import watch as module
from asyncflow._cli.watch import _follow
from asyncflow.events import (
    AttemptStarted,
    Event,
    RunFinished,
    RunResumed,
    RunStarted,
    StepFailed,
    StepSucceeded,
)
from asyncflow.journal import SQLiteJournal
from asyncflow.testing import run_in_virtual_time

from .conftest import Shell
from .test_runs import fail, orphan, orphaned_journal, store_run

__all__ = ["orphan", "orphaned_journal"]


def test_the_end_of_a_run_and_its_exit_code_are_those_of_run(shell: Shell) -> None:
    ran = [shell("run", f"etl:{name}", "--run-id", name, exits=code) for name, code in ENDS]
    watched = [shell("watch", name, exits=code) for name, code in ENDS]

    assert [each.stdout for each in watched] == [each.stdout for each in ran]
    lines = watched[0].stderr.splitlines()
    assert lines[0].endswith("run pipeline of etl started: 2 steps")
    assert "] the run passed after " in lines[-2]
    assert lines[-1] == "To show it again: asyncflow show pipeline"
    assert "OSError: no disk" in watched[1].stderr
    assert "To resume it: asyncflow resume failing etl:failing" in watched[1].stderr
    assert shell.json("watch", "pipeline", "--json")["status"] == "PASSED"


ENDS = (("pipeline", 0), ("failing", 1))


def test_it_watches_the_latest_run_that_is_running(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    store_run("ended")
    assert "no run is running; name the one to watch" in shell("watch", exits=4).stderr

    async def follow(journal: Any, run_id: str, observe: Any) -> Any:
        watched.append(run_id)
        return await journal.record("ended")

    async def watch() -> None:
        async with SQLiteJournal("asyncflow.db") as journal:
            for run_id, parent in (("one", ""), ("outer", ""), ("inner", "outer")):
                session, _ = await journal.open(run_id, wait=False, read=bool)
                session.append(RunStarted(run_id, 1.0, {}, parent=parent))
                await session.flush()
            await asyncio.to_thread(shell, "watch")

    watched: list[str] = []
    monkeypatch.setattr(module, "_follow", follow)
    asyncio.run(watch())

    assert watched == ["outer"]


def test_an_orphan_has_no_process_to_wait_for(shell: Shell, orphan: str) -> None:
    watched = shell("watch", orphan, exits=1)

    assert "no process runs it any more\nTo resume it: asyncflow resume orphan" in watched.stderr
    assert watched.stdout.startswith("Pipeline ORPHANED")


def test_ctrl_c_stops_watching_alone(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    async def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    store_run("r", fail)
    monkeypatch.setattr(module, "_follow", interrupt)

    assert "stopped watching; the run goes on" in shell("watch", "r", exits=130).stderr


FIRST: list[Event] = [
    RunStarted("r", 1.0, {"a": ()}),
    AttemptStarted("a", 1, 0.0),
    StepFailed("a", 1, 1.0, OSError("no disk")),
    RunFinished(2.0, RunStatus.FAILED),
]
SECOND: list[Event] = [
    RunResumed("r", 2.0, 9.0, {"a": ()}, {}, afresh=True),
    AttemptStarted("a", 1, 3.0),
    StepSucceeded("a", 1, 4.0, None),
    RunFinished(5.0, RunStatus.PASSED),
]


def test_it_sees_each_event_once_while_the_run_goes_on(tmp_path: Any) -> None:
    """And the end of an earlier process is no end."""
    seen: list[Event] = []

    async def write(journal: Any) -> None:
        for events in (FIRST, SECOND):
            session, _ = await journal.open("r", wait=False, read=bool)
            for event in events:
                session.append(event)
                await session.flush()
                if event is not FIRST[-1]:
                    await asyncio.sleep(1.0)
            await session.close()

    async def watch() -> Any:
        async with SQLiteJournal(tmp_path / "runs.db") as journal:
            writing = asyncio.create_task(write(journal))
            await asyncio.sleep(0.5)
            record = await _follow(journal, "r", seen.append)
            await writing
            return record

    record = run_in_virtual_time(watch())

    assert record.status is RunStatus.PASSED
    assert [type(event) for event in seen] == [type(event) for event in (*FIRST[:-1], *SECOND)]


def test_a_run_that_is_resumed_between_two_reads_has_not_ended(tmp_path: Any) -> None:
    seen: list[Event] = []

    class Resuming:
        """Another process resumes the run once its record was read."""

        def __init__(self, journal: Any) -> None:
            self.events, self.notes, self._journal = journal.events, journal.notes, journal
            self._segments = [FIRST, SECOND[:-1], SECOND[-1:]]
            self._session: Any = None

        async def write(self) -> None:
            if self._segments:
                if self._session is None:
                    self._session, _ = await self._journal.open("r", wait=False, read=bool)
                events = self._segments.pop(0)
                for event in events:
                    self._session.append(event)
                await self._session.flush()
                if isinstance(events[-1], RunFinished):
                    await self._session.close()
                    self._session = None

        async def record(self, run_id: str) -> Any:
            record = await self._journal.record(run_id)
            await self.write()
            return record

    async def watch() -> Any:
        async with SQLiteJournal(tmp_path / "runs.db") as journal:
            resuming: Any = Resuming(journal)
            await resuming.write()
            return await _follow(resuming, "r", seen.append)

    record = run_in_virtual_time(watch())

    assert record.status is RunStatus.PASSED
    assert [type(event) for event in seen] == [type(event) for event in (*FIRST[:-1], *SECOND)]
