"""Each journal stores what steps say: apart from events, in order, and not longer than the run."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import pytest

from asyncflow import RunStatus, WorkflowStep, current_step, run_pipeline
from asyncflow._core.errors import JournalError
from asyncflow.events import (
    AttemptStarted,
    NoteEvent,
    RunFinished,
    RunStarted,
    StepAttached,
    StepLogged,
    StepProgressed,
)
from asyncflow.journal import StoredEvent

Make = Callable[..., Any]


class OtherText(str):
    __slots__ = ()


SAID: list[NoteEvent] = [
    StepLogged("a", 1, 1.0, 20, "db", "hello", traceback="Traceback\n…"),
    StepProgressed("a", 1, 2.0, 1, 3, "rows"),
    StepAttached("a", 1, 3.0, "plot", "image/png", b"\x89PNG"),
    StepLogged("b\0", 2, 4.0, 40, OtherText("web"), "\0 and \udcff", 7),
    StepProgressed("b\0", 2, 5.5, 0.5, None, "", 7),
]


async def opened(journal: Any, run_id: str = "r") -> Any:
    session, _ = await journal.open(run_id, wait=False, read=bool)
    session.append(RunStarted(run_id, 1.0, {"a": (), "b\0": ()}))
    return session


async def store(journal: Any, *said: NoteEvent, run_id: str = "r") -> None:
    session = await opened(journal, run_id)
    for note in said:
        session.append_note(note)
    session.append(RunFinished(9.0, RunStatus.PASSED))
    await session.close()


async def test_notes_come_back_as_they_were_and_in_order(journal: Any) -> None:
    await store(journal, *SAID)

    notes = await journal.notes("r")

    assert notes == [StoredEvent(number, note) for number, note in enumerate(SAID, 1)]
    assert "done=1, total=3" in repr(notes[1])  # integers stay integers
    assert [each.event for each in await journal.events("r")] == [
        RunStarted("r", 1.0, {"a": (), "b\0": ()}),
        RunFinished(9.0, RunStatus.PASSED),
    ]
    assert (await journal.report("r")).total_duration_ms == 9.0


@pytest.mark.parametrize(
    ("where", "positions"),
    [
        ({}, [1, 2, 3, 4, 5]),
        ({"after": 3}, [4, 5]),
        ({"kinds": [StepLogged]}, [1, 4]),
        ({"kinds": {StepLogged, StepProgressed}}, [1, 2, 4, 5]),
        ({"kinds": ()}, []),
        ({"step": "b\0"}, [4, 5]),
        ({"step": "b"}, []),
        ({"item": 7}, [4, 5]),
        ({"attempt": 1}, [1, 2, 3]),
        ({"level": "WARNING"}, [2, 3, 4, 5]),
        ({"level": 21, "kinds": [StepLogged]}, [4]),
        ({"text": "HELLO"}, [1]),
        ({"text": "traceback"}, [1]),
        ({"text": "web"}, [4]),
        ({"text": "PLOT"}, [3]),
        ({"text": "rows"}, []),
        ({"limit": 2}, [1, 2]),
        ({"limit": 2, "after": 2}, [3, 4]),
        ({"limit": 2, "newest": True}, [4, 5]),
        ({"limit": 1, "newest": True, "text": "e"}, [4]),
        ({"limit": 0}, []),
    ],
)
async def test_notes_are_selected(journal: Any, where: Any, positions: list[int]) -> None:
    await store(journal, *SAID)

    assert [each.position for each in await journal.notes("r", **where)] == positions


async def test_the_data_of_attachments_are_left_out_on_request(journal: Any) -> None:
    await store(journal, *SAID)

    (found,) = await journal.notes("r", kinds=[StepAttached], data=False)

    assert found.event == StepAttached("a", 1, 3.0, "plot", "image/png", b"")


async def test_a_text_is_found_beyond_the_first_page(journal: Any) -> None:
    said = [StepLogged("a", 1, 1.0, 20, "db", f"number {number}") for number in range(2_500)]
    await store(journal, *said)

    for newest in (False, True):
        found = await journal.notes("r", text="number 1234", limit=1, newest=newest)
        assert [each.position for each in found] == [1_235]
    assert len(await journal.notes("r")) == 2_500


async def test_of_the_progress_of_an_attempt_only_the_latest_stays(journal: Any) -> None:
    session = await opened(journal)
    for done in range(3):
        session.append_note(StepProgressed("a", 1, done, done))
        session.append_note(StepProgressed("a", 2, done, done))
        session.append_note(StepProgressed("a", 1, done, done, item=done))
    session.append(AttemptStarted("a", 1, 1.0))
    await session.flush()
    first = await journal.notes("r")
    session.append_note(StepProgressed("a", 2, 3.0, 7))
    await session.close()
    then = await journal.notes("r", after=first[-1].position)

    said = [(each.event.attempt, each.event.item, each.event.done) for each in first]
    assert said == [(1, 0, 0), (1, 1, 1), (1, None, 2), (2, None, 2), (1, 2, 2)]
    assert [each.position for each in first] == [1, 2, 3, 4, 5]
    assert then == [StoredEvent(6, StepProgressed("a", 2, 3.0, 7))]
    assert [each.position for each in await journal.notes("r")] == [1, 2, 3, 5, 6]


async def test_the_positions_of_a_resumed_run_continue(make_journal: Make, journal: Any) -> None:
    session = await opened(journal)
    session.append_note(SAID[0])
    await session.close()

    again, _ = await make_journal().open("r", wait=False, read=bool)
    again.append_note(SAID[2])
    await again.close()

    assert await journal.notes("r") == [StoredEvent(1, SAID[0]), StoredEvent(2, SAID[2])]


async def test_notes_alone_are_stored_in_a_moment(journal: Any) -> None:
    session = await opened(journal)
    await session.flush()

    for note in SAID:
        session.append_note(note)
    stored = []
    async with asyncio.timeout(20):
        while len(stored) < len(SAID):
            await asyncio.sleep(0.005)
            stored = await journal.notes("r")

    await session.close()


async def test_a_failed_write_of_notes_is_a_failure_of_the_journal(
    journal: Any, database: Any
) -> None:
    session = await opened(journal)
    await session.flush()
    database.query("DROP TABLE notes")

    session.append_note(SAID[0])
    with pytest.raises(JournalError):
        await session.close()


async def test_damaged_data_of_an_attachment_are_noticed_when_they_are_read(
    journal: Any, database: Any
) -> None:
    await store(journal, SAID[2])
    column = "'\\x00'" if type(journal).__name__ == "PostgresJournal" else "x'00'"
    database.query(f"UPDATE notes SET data = {column}")

    (without,), (whole,) = await journal.notes("r", data=False), await journal.notes("r")

    assert isinstance(without.event, StepAttached)
    assert "note 1 is damaged and can't be shown: ValueError: the checksum of its data" in (
        whole.event.message
    )


async def test_a_damaged_level_of_a_record_is_noticed(journal: Any, database: Any) -> None:
    await store(journal, StepLogged("a", 1, 1.0, 20, "log", "hello"))
    database.query("UPDATE notes SET level = 50")

    (shown,) = await journal.notes("r", level=30)

    assert "note 1 is damaged and can't be shown: ValueError: its level has" in shown.event.message


async def test_a_run_stores_what_its_steps_say(make_journal: Make) -> None:
    journal = make_journal(logs="WARNING", prints=True)

    async def work() -> None:
        logging.getLogger("tests.journal").warning("careful")
        print("printed")
        current_step().attach("a", "text")
        current_step().progress(1)
        if current_step().attempt == 1:
            raise OSError

    report = await run_pipeline(
        [WorkflowStep("work", work, max_retries=2)], journal=journal, run_id="r"
    )

    assert report.all_passed
    said = [(type(each.event).__name__, each.event.attempt) for each in await journal.notes("r")]
    kinds = ["StepLogged", "StepLogged", "StepAttached", "StepProgressed"]
    assert said == [(kind, attempt) for attempt in (1, 2) for kind in kinds]
