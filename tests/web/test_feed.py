"""What the viewers of a run are told, while it goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import Any

import pytest
from web.runs import Gate, passing, slow

from asyncflow import JournalError, RunNotFoundError
from asyncflow._views.run_view import RunView
from asyncflow.events import AttemptStarted, Event, RunStarted
from asyncflow.journal._queries import RunRecord, StoredEvent
from asyncflow.web._feed import RunFeeds, Update, now_of


def render(
    view: RunView, events: Sequence[Event], record: RunRecord, now_ms: float
) -> dict[str, str]:
    return {"word": view.word, "events": str(len(events)), "name": view.run_id}


def timed(
    view: RunView, events: Sequence[Event], record: RunRecord, now_ms: float
) -> dict[str, str]:
    return {"now": str(asyncio_time()), "name": view.run_id}


TICKS: list[int] = []


def asyncio_time() -> int:
    TICKS.append(0)
    return len(TICKS)


async def until(updates: AsyncGenerator[Update, None], wanted: Callable[[Update], Any]) -> Update:
    async for update in updates:
        if wanted(update):
            return update
    raise AssertionError("it has not been told")


class OneRun:
    """A journal of one run that goes on as a test tells it to, and can fail."""

    def __init__(self) -> None:
        self.kept: list[StoredEvent] = []
        self.record_ = RunRecord("r", "etl", "running", 0.0, 0.0, "me")
        self.error: Exception | None = None
        self.asked: list[float] = []
        self.add(RunStarted("r", 0.0, {"a": ()}))

    def add(self, *events: Event) -> None:
        for event in events:
            self.kept.append(StoredEvent(len(self.kept) + 1, event))

    async def events(self, run_id: str, after: int = 0) -> list[StoredEvent]:
        self.asked.append(asyncio.get_running_loop().time())
        if self.error is not None:
            raise self.error
        return self.kept[after:]

    async def record(self, run_id: str) -> RunRecord:
        return self.record_

    runs: Any = None
    cancel: Any = None


async def test_a_run_is_told_from_its_start_to_its_end(any_journal: Any) -> None:
    gate = Gate()
    running = asyncio.create_task(slow(gate).run(run_id="r", journal=any_journal))
    await gate.has_begun.wait()
    feeds, told = RunFeeds(any_journal), []

    async with aclosing(feeds.updates("r", 0, render)) as updates:
        async for update in updates:
            told.append(update)
            gate.is_open.set()
    await running

    assert told[0].sections["word"] == "RUNNING"
    assert told[-1].sections["word"] == "PASSED"
    assert told[-1].end == "ended"
    assert [each.position for each in told] == sorted(each.position for each in told)
    assert told[-1].position == len(await any_journal.events("r"))
    # Only what has changed is told.
    assert all("name" not in each.sections for each in told[1:])


async def test_who_comes_back_is_told_what_it_has_missed_once(journal: Any) -> None:
    source = OneRun()
    feeds = RunFeeds(source)
    async with aclosing(feeds.updates("r", 0, render)) as other:
        first = await until(other, lambda each: each.sections)
        source.add(AttemptStarted("a", 1, 1.0))
        second = await until(other, lambda each: each.position == 2)

        async with aclosing(feeds.updates("r", first.position, render)) as late:
            missed = await anext(late)
        async with aclosing(feeds.updates("r", second.position, render)) as seen:
            source.add(AttemptStarted("a", 2, 2.0))
            following = await until(seen, lambda each: each.position == 3)

    assert missed.sections["events"] == "2"
    assert following.sections["events"] == "3"


async def test_a_new_server_tells_all_since_it_can_not_know_what_was_seen() -> None:
    async with aclosing(RunFeeds(OneRun()).updates("r", 1, render)) as updates:
        first = await anext(updates)

    assert set(first.sections) == {"word", "events", "name"}


async def test_viewers_share_one_reading() -> None:
    source = OneRun()
    feeds = RunFeeds(source)

    async def look() -> Update:
        async with aclosing(feeds.updates("r", 0, render)) as updates:
            await anext(updates)
            return await until(updates, lambda each: each.position == 2)

    viewers = [asyncio.create_task(look()) for _ in range(20)]
    await asyncio.sleep(5)
    source.add(AttemptStarted("a", 1, 1.0))
    await asyncio.gather(*viewers)

    assert len(source.asked) < 10


async def test_nothing_is_read_when_nobody_looks() -> None:
    source = OneRun()
    feeds = RunFeeds(source)
    for _ in range(2):
        async with aclosing(feeds.updates("r", 0, render)) as updates:
            await anext(updates)
    asked = len(source.asked)

    await asyncio.sleep(60)

    assert len(source.asked) == asked


async def test_a_busy_run_is_looked_at_a_few_times_a_second() -> None:
    source = OneRun()

    async def be_busy() -> None:
        for attempt in range(1, 100_000):
            source.add(AttemptStarted("a", attempt, float(attempt)))
            await asyncio.sleep(0.0001)

    busy = asyncio.create_task(be_busy())
    told = []
    async with aclosing(RunFeeds(source).updates("r", 0, render)) as updates:
        async for update in updates:
            told.append(update)
            if asyncio.get_running_loop().time() > 3:
                break
    busy.cancel()
    await asyncio.gather(busy, return_exceptions=True)

    assert 5 <= len(told) <= 12
    assert told[-1].position > 20_000
    assert told[-1].sections["events"] == str(told[-1].position)


async def test_a_large_page_is_told_less_often() -> None:
    source = OneRun()

    def large(
        view: RunView, events: Sequence[Event], record: RunRecord, now_ms: float
    ) -> dict[str, str]:
        source.add(AttemptStarted("a", 1, 1.0))
        return {"all": f"{len(events)} " + "x" * 10_000_000}

    async with aclosing(RunFeeds(source).updates("r", 0, large)) as updates:
        for _ in range(3):
            await anext(updates)

    assert source.asked[-1] >= 10


async def test_a_slow_viewer_gets_the_latest_and_nothing_is_kept_for_it() -> None:
    source = OneRun()
    feeds = RunFeeds(source)
    async with aclosing(feeds.updates("r", 0, render)) as slow_one:
        await anext(slow_one)

        for attempt in range(1, 50):  # it takes nothing meanwhile
            source.add(AttemptStarted("a", attempt, float(attempt)))
            await asyncio.sleep(1)
        following = await anext(slow_one)

    assert following == Update(50, {"events": "50"}, None, None)


async def test_time_goes_by_between_events() -> None:
    async with aclosing(RunFeeds(OneRun()).updates("r", 0, timed)) as updates:
        await anext(updates)
        following = [await anext(updates) for _ in range(3)]

    assert all(set(each.sections) == {"now"} for each in following)
    assert {each.position for each in following} == {1}


async def test_what_time_has_changed_is_told_again_to_who_comes_back() -> None:
    feeds = RunFeeds(OneRun())
    async with aclosing(feeds.updates("r", 0, timed)) as other:
        await anext(other)
        latest = await anext(other)
        async with aclosing(feeds.updates("r", 1, timed)) as updates:
            first = await anext(updates)

    assert first.sections["now"] == latest.sections["now"]


async def test_the_time_of_an_orphan_stands_still() -> None:
    source = OneRun()
    source.record_ = RunRecord("r", "", "running", 0.0, 0.0, None, orphaned=True)
    view = RunView(each.event for each in source.kept)

    async with aclosing(RunFeeds(source).updates("r", 0, timed)) as updates:
        await anext(updates)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(updates), 60)

    assert now_of(view, source.record_) == 0.0
    assert now_of(view, RunRecord("r", "", "running", 0.0, 0.0, "me")) > 1e12


async def test_it_is_told_when_a_process_has_died() -> None:
    source = OneRun()

    def orphaned(
        view: RunView, events: Sequence[Event], record: RunRecord, now_ms: float
    ) -> dict[str, str]:
        return {"orphaned": str(record.orphaned)}

    async with aclosing(RunFeeds(source).updates("r", 0, orphaned)) as updates:
        await anext(updates)
        source.record_ = RunRecord("r", "", "running", 0.0, 0.0, None, orphaned=True)
        following = await anext(updates)

    assert following.sections == {"orphaned": "True"}


async def test_a_journal_that_fails_is_told_of_until_it_works_again() -> None:
    source = OneRun()
    async with aclosing(RunFeeds(source).updates("r", 0, render)) as updates:
        await anext(updates)
        source.error = JournalError("runs.db", "the disk is gone")
        trouble = await anext(updates)
        source.error = None
        mended = await anext(updates)

    assert trouble.trouble == "journal runs.db: the disk is gone"
    assert mended == Update(1, {}, None, None)


async def test_a_page_that_can_not_be_made_is_told_of(caplog: pytest.LogCaptureFixture) -> None:
    def broken(*_: object) -> dict[str, str]:
        raise ZeroDivisionError("by zero")

    async with aclosing(RunFeeds(OneRun()).updates("r", 0, broken)) as updates:
        update = await anext(updates)

    assert update.trouble == "ZeroDivisionError: by zero"
    assert "run 'r' can't be shown" in caplog.text


async def test_a_run_that_was_forgotten_is_gone() -> None:
    source = OneRun()
    async with aclosing(RunFeeds(source).updates("r", 0, render)) as updates:
        await anext(updates)
        source.error = RunNotFoundError("r", "runs.db")
        told = [each async for each in updates]

    assert told == [Update(0, {}, None, "gone")]


async def test_another_run_of_the_same_id_is_loaded_anew() -> None:
    async with aclosing(RunFeeds(OneRun()).updates("r", 99, render)) as updates:
        told = [each async for each in updates]

    assert told == [Update(99, {}, None, "reload")]


async def test_who_has_seen_more_than_was_read_for_others_is_told_what_follows() -> None:
    source = OneRun()
    feeds = RunFeeds(source)
    async with aclosing(feeds.updates("r", 0, render)) as other:
        await anext(other)
        # The page of the second viewer was made of events that are not read for the first one yet.
        source.add(AttemptStarted("a", 1, 1.0), AttemptStarted("a", 2, 2.0))

        async with aclosing(feeds.updates("r", 3, render)) as ahead:
            source.add(AttemptStarted("a", 3, 3.0))
            update = await anext(ahead)

    assert update.end is None
    assert update.position == 4
    assert update.sections["events"] == "4"


async def test_a_page_that_could_not_be_made_once_counts_no_event_twice() -> None:
    source, failures = OneRun(), [ZeroDivisionError("by zero")]

    def broken_once(*seen: Any) -> dict[str, str]:
        if failures:
            raise failures.pop()
        return render(*seen)

    async with aclosing(RunFeeds(source).updates("r", 0, broken_once)) as updates:
        await until(updates, lambda each: each.trouble)
        healed = await until(updates, lambda each: not each.trouble)

    assert healed.sections["events"] == "1"
    assert healed.position == 1


async def test_a_position_is_told_with_the_page_that_has_it() -> None:
    source, loop, while_made = OneRun(), asyncio.get_running_loop(), []

    async def following() -> Update:
        return await anext(updates)

    def slow_at_last(view: RunView, events: Sequence[Event], *others: Any) -> dict[str, str]:
        if len(events) == 3:  # the viewer takes the page before while this one is being made
            while_made.append(asyncio.run_coroutine_threadsafe(following(), loop).result(20))
        return render(view, events, *others)

    async with aclosing(RunFeeds(source).updates("r", 0, slow_at_last)) as updates:
        await anext(updates)
        source.add(AttemptStarted("a", 1, 1.0))
        await asyncio.sleep(2)
        source.add(AttemptStarted("a", 2, 2.0))
        while not while_made:
            await asyncio.sleep(0.1)
        made = await anext(updates)

    assert (while_made[0].position, while_made[0].sections) == (2, {"events": "2"})
    assert (made.position, made.sections) == (3, {"events": "3"})


async def test_who_looks_is_let_go_at_the_end() -> None:
    feeds = RunFeeds(OneRun())
    told: list[Update] = []

    async def look() -> None:
        async with aclosing(feeds.updates("r", 0, render)) as updates:
            told.extend([update async for update in updates])

    looking = asyncio.create_task(look())
    await asyncio.sleep(1)
    feeds.close()
    await asyncio.wait_for(looking, 0.1)

    assert len(told) == 1
    assert [each async for each in feeds.updates("r", 0, render)] == []


async def test_a_run_that_has_ended_is_told_once(journal: Any) -> None:
    await passing().run(run_id="r", journal=journal)

    told = [each async for each in RunFeeds(journal).updates("r", 0, render)]

    assert [each.end for each in told] == ["ended"]
