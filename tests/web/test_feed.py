"""The feed sends updates of a run to its viewers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import Any

import pytest
from web.runs import Gate, slow

from asyncflow import JournalError, RunNotFoundError, RunStatus
from asyncflow._views.notes import RunNotes
from asyncflow._views.run_view import RunView
from asyncflow.events import AttemptStarted, Event, NoteEvent, RunStarted, StepLogged
from asyncflow.journal._queries import RunRecord, StoredEvent
from asyncflow.web._feed import RunFeeds, Update, now_of


def render(
    view: RunView, events: Sequence[Event], notes: RunNotes, record: RunRecord, now_ms: float
) -> dict[str, bytes]:
    return {
        "word": view.word.encode(),
        "events": str(len(events)).encode(),
        "lines": str(notes.count("a")).encode(),
        "name": view.run_id.encode(),
    }


def render_time(
    view: RunView, events: Sequence[Event], notes: RunNotes, record: RunRecord, now_ms: float
) -> dict[str, bytes]:
    return {"now": str(asyncio_time()).encode(), "name": view.run_id.encode()}


TICKS: list[int] = []


def asyncio_time() -> int:
    TICKS.append(0)
    return len(TICKS)


async def wait_for(
    updates: AsyncGenerator[Update, None], wanted: Callable[[Update], Any]
) -> Update:
    async for update in updates:
        if wanted(update):
            return update
    raise AssertionError("no such update")


class OneRun:
    """A journal of one run to which a test adds events, and which can fail on request."""

    def __init__(self) -> None:
        self.stored: list[StoredEvent] = []
        self.said: list[StoredEvent] = []
        self.record_ = RunRecord("r", "etl", RunStatus.RUNNING, 0.0, 0.0, "me")
        self.error: Exception | None = None
        self.read_times: list[float] = []
        self.add(RunStarted("r", 0.0, {"a": ()}))

    def add(self, *events: Event) -> None:
        for event in events:
            self.stored.append(StoredEvent(len(self.stored) + 1, event))

    def say(self, *notes: NoteEvent) -> None:
        for note in notes:
            self.said.append(StoredEvent(len(self.said) + 1, note))

    async def notes(self, run_id: str, *, after: int = 0, **_: Any) -> list[StoredEvent]:
        return self.said[after:]

    async def events(self, run_id: str, after: int = 0) -> list[StoredEvent]:
        self.read_times.append(asyncio.get_running_loop().time() - 1_000)  # where it starts
        if self.error is not None:
            raise self.error
        return self.stored[after:]

    async def record(self, run_id: str) -> RunRecord:
        return self.record_

    runs: Any = None
    cancel: Any = None


async def test_updates_cover_a_run_from_its_start_to_its_end(any_journal: Any) -> None:
    gate = Gate()
    running = asyncio.create_task(slow(gate).with_options(run_id="r", journal=any_journal).run())
    await gate.has_started.wait()
    feeds, received = RunFeeds(any_journal), []

    async with aclosing(feeds.updates("r", 0, render)) as updates:
        async for update in updates:
            received.append(update)
            gate.is_open.set()
    await running

    assert received[0].sections["word"] == b"RUNNING"
    assert received[-1].sections["word"] == b"PASSED"
    assert received[-1].end == "ended"
    assert [each.position for each in received] == sorted(each.position for each in received)
    assert received[-1].position == len(await any_journal.events("r"))
    # Updates contain only changed sections.
    assert all("name" not in each.sections for each in received[1:])


async def test_a_reconnecting_viewer_receives_missed_updates_once(journal: Any) -> None:
    source = OneRun()
    feeds = RunFeeds(source)
    async with aclosing(feeds.updates("r", 0, render)) as first_viewer:
        first = await wait_for(first_viewer, lambda each: each.sections)
        source.add(AttemptStarted("a", 1, 1.0))
        second = await wait_for(first_viewer, lambda each: each.position == 2)

        async with aclosing(feeds.updates("r", first.position, render)) as late_viewer:
            missed = await anext(late_viewer)
        async with aclosing(feeds.updates("r", second.position, render)) as up_to_date_viewer:
            source.add(AttemptStarted("a", 2, 2.0))
            following = await wait_for(up_to_date_viewer, lambda each: each.position == 3)

    assert missed.sections["events"] == b"2"
    assert following.sections["events"] == b"3"


async def test_viewers_share_one_reader() -> None:
    source = OneRun()
    feeds = RunFeeds(source)

    async def watch() -> Update:
        async with aclosing(feeds.updates("r", 0, render)) as updates:
            await anext(updates)
            return await wait_for(updates, lambda each: each.position == 2)

    viewers = [asyncio.create_task(watch()) for _ in range(20)]
    await asyncio.sleep(5)
    source.add(AttemptStarted("a", 1, 1.0))
    await asyncio.gather(*viewers)

    assert len(source.read_times) < 10


async def test_without_viewers_nothing_is_read() -> None:
    source = OneRun()
    feeds = RunFeeds(source)
    for _ in range(2):
        async with aclosing(feeds.updates("r", 0, render)) as updates:
            await anext(updates)
    read_times = len(source.read_times)

    await asyncio.sleep(60)

    assert len(source.read_times) == read_times


async def test_a_busy_run_is_updated_a_few_times_per_second() -> None:
    source = OneRun()

    async def add_events() -> None:
        for attempt in range(1, 100_000):
            source.add(AttemptStarted("a", attempt, float(attempt)))
            await asyncio.sleep(0.0001)

    clock = asyncio.get_running_loop().time
    started_s = clock()
    busy = asyncio.create_task(add_events())
    received = []
    async with aclosing(RunFeeds(source).updates("r", 0, render)) as updates:
        async for update in updates:
            received.append(update)
            if clock() - started_s > 3:
                break
    busy.cancel()
    await asyncio.gather(busy, return_exceptions=True)

    assert 5 <= len(received) <= 12
    assert received[-1].position > 20_000
    assert received[-1].sections["events"] == b"%d" % received[-1].position


async def test_a_large_page_is_updated_less_often() -> None:
    source = OneRun()

    def render_large(
        view: RunView, events: Sequence[Event], _: RunNotes, record: RunRecord, now_ms: float
    ) -> dict[str, bytes]:
        source.add(AttemptStarted("a", 1, 1.0))
        return {"all": f"{len(events)} ".encode() + b"x" * 10_000_000}

    async with aclosing(RunFeeds(source).updates("r", 0, render_large)) as updates:
        for _ in range(3):
            await anext(updates)

    assert source.read_times[-1] >= 10


async def test_a_slow_viewer_receives_only_the_latest_update() -> None:
    source = OneRun()
    feeds = RunFeeds(source)
    async with aclosing(feeds.updates("r", 0, render)) as slow_viewer:
        await anext(slow_viewer)

        for attempt in range(1, 50):  # the viewer takes nothing meanwhile
            source.add(AttemptStarted("a", attempt, float(attempt)))
            await asyncio.sleep(1)
        following = await anext(slow_viewer)

    assert following == Update(50, {"events": b"50"}, None, None)


async def test_what_steps_say_is_sent_between_events() -> None:
    source = OneRun()
    feeds = RunFeeds(source)
    async with aclosing(feeds.updates("r", 0, render)) as updates:
        await anext(updates)
        source.say(*(StepLogged("a", 1, 1.0, 20, "app", "x") for _ in range(3)))
        following = await anext(updates)
        source.say(StepLogged("a", 1, 1.0, 20, "app", "y"))
        latest = await anext(updates)

    assert following.sections == {"lines": b"3"}
    assert latest.sections == {"lines": b"4"}
    assert source.read_times[-1] - source.read_times[-2] < 0.5  # it is a busy run


async def test_a_reconnecting_viewer_receives_what_steps_have_said_since() -> None:
    source = OneRun()
    feeds = RunFeeds(source)
    async with aclosing(feeds.updates("r", 0, render)) as updates:
        await anext(updates)
        source.say(StepLogged("a", 1, 1.0, 20, "app", "x"))
        source.add(AttemptStarted("a", 1, 1.0))
        await wait_for(updates, lambda each: each.position == 2)
        async with aclosing(feeds.updates("r", 2, render)) as other:
            missed = await anext(other)

    assert missed.sections["lines"] == b"1"


async def test_durations_are_updated_between_events() -> None:
    async with aclosing(RunFeeds(OneRun()).updates("r", 0, render_time)) as updates:
        await anext(updates)
        following = [await anext(updates) for _ in range(3)]

    assert all(set(each.sections) == {"now"} for each in following)
    assert {each.position for each in following} == {1}


async def test_a_new_viewer_receives_actions_that_changed_before_its_page() -> None:
    source = OneRun()

    def render_actions(view: RunView, events: Sequence[Event], *others: object) -> dict[str, bytes]:
        return {"live": b"%d" % len(events)}

    feeds = RunFeeds(source)
    async with aclosing(feeds.updates("r", 0, render_actions)) as first_viewer:
        await anext(first_viewer)
        source.add(AttemptStarted("a", 1, 1.0))
        await anext(first_viewer)
        async with aclosing(feeds.updates("r", 2, render_actions)) as updates:
            first = await asyncio.wait_for(anext(updates), 60)

    assert first.sections == {"live": b"2"}


async def test_the_duration_of_an_orphaned_run_stands_still() -> None:
    source = OneRun()
    source.record_ = RunRecord("r", "", RunStatus.ORPHANED, 0.0, 0.0, None)
    view = RunView(each.event for each in source.stored)

    async with aclosing(RunFeeds(source).updates("r", 0, render_time)) as updates:
        await anext(updates)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(updates), 60)

    assert now_of(view, source.record_) == 0.0
    assert now_of(view, RunRecord("r", "", RunStatus.RUNNING, 0.0, 0.0, "me")) > 1e12


async def test_viewers_learn_that_the_process_of_a_run_died() -> None:
    source = OneRun()

    def render_orphaned(
        view: RunView, events: Sequence[Event], _: RunNotes, record: RunRecord, now_ms: float
    ) -> dict[str, bytes]:
        return {"status": record.status.encode()}

    async with aclosing(RunFeeds(source).updates("r", 0, render_orphaned)) as updates:
        await anext(updates)
        source.record_ = RunRecord("r", "", RunStatus.ORPHANED, 0.0, 0.0, None)
        following = await anext(updates)

    assert following.sections == {"status": b"ORPHANED"}


async def test_a_failing_journal_is_reported_until_it_recovers() -> None:
    source = OneRun()
    async with aclosing(RunFeeds(source).updates("r", 0, render)) as updates:
        await anext(updates)
        source.error = JournalError("runs.db", "the disk is gone")
        trouble = await anext(updates)
        source.error = None
        recovered = await anext(updates)

    assert trouble.trouble == "journal runs.db: the disk is gone"
    assert recovered == Update(1, {}, None, None)


async def test_a_page_that_cannot_be_rendered_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    def render_broken(*_: object) -> dict[str, bytes]:
        raise ZeroDivisionError("by zero")

    async with aclosing(RunFeeds(OneRun()).updates("r", 0, render_broken)) as updates:
        update = await anext(updates)

    assert update.trouble == "ZeroDivisionError: by zero"
    assert "run 'r' can't be shown" in caplog.text


async def test_a_forgotten_run_is_gone() -> None:
    source = OneRun()
    async with aclosing(RunFeeds(source).updates("r", 0, render)) as updates:
        await anext(updates)
        source.error = RunNotFoundError("r", "runs.db")
        received = [each async for each in updates]

    assert received == [Update(0, {}, None, "gone")]


async def test_another_run_with_the_same_id_is_reloaded() -> None:
    async with aclosing(RunFeeds(OneRun()).updates("r", 99, render)) as updates:
        received = [each async for each in updates]

    assert received == [Update(99, {}, None, "reload")]


async def test_a_viewer_ahead_of_the_reader_receives_what_follows() -> None:
    source = OneRun()
    feeds = RunFeeds(source)
    async with aclosing(feeds.updates("r", 0, render)) as first_viewer:
        await anext(first_viewer)
        # The second viewer's page includes events that the feed has not read yet.
        source.add(AttemptStarted("a", 1, 1.0), AttemptStarted("a", 2, 2.0))

        async with aclosing(feeds.updates("r", 3, render)) as viewer:
            source.add(AttemptStarted("a", 3, 3.0))
            update = await anext(viewer)

    assert update.end is None
    assert update.position == 4
    assert update.sections["events"] == b"4"


async def test_a_viewer_ahead_of_a_read_that_is_under_way_waits_for_the_next_one() -> None:
    class Slow(OneRun):
        """Returns what it had when it was asked."""

        gate = asyncio.Event()
        was_asked = asyncio.Event()

        async def events(self, run_id: str, after: int = 0) -> list[StoredEvent]:
            found = await super().events(run_id, after)
            self.was_asked.set()
            await self.gate.wait()
            return found

    source = Slow()
    source.gate.set()
    feeds = RunFeeds(source)
    async with aclosing(feeds.updates("r", 0, render)) as first_viewer:
        await anext(first_viewer)
        source.gate.clear()
        source.was_asked.clear()
        await source.was_asked.wait()
        source.add(AttemptStarted("a", 1, 1.0), AttemptStarted("a", 2, 2.0))

        async with aclosing(feeds.updates("r", 3, render)) as viewer:
            update = asyncio.ensure_future(anext(viewer))
            await asyncio.sleep(0)
            source.gate.set()
            source.add(AttemptStarted("a", 3, 3.0))

            assert (await update).end is None
            assert (await update).position == 4


async def test_a_failed_rendering_does_not_count_events_twice() -> None:
    source, failures = OneRun(), [ZeroDivisionError("by zero")]

    def render_broken_once(*arguments: Any) -> dict[str, bytes]:
        if failures:
            raise failures.pop()
        return render(*arguments)

    async with aclosing(RunFeeds(source).updates("r", 0, render_broken_once)) as updates:
        await wait_for(updates, lambda each: each.trouble)
        recovered = await wait_for(updates, lambda each: not each.trouble)

    assert recovered.sections["events"] == b"1"
    assert recovered.position == 1


async def test_a_position_is_sent_with_the_sections_that_include_it() -> None:
    source, loop, during_render = OneRun(), asyncio.get_running_loop(), []

    async def following() -> Update:
        return await anext(updates)

    def render_slowly_at_last(
        view: RunView, events: Sequence[Event], *others: Any
    ) -> dict[str, bytes]:
        if len(events) == 3:  # the viewer takes the previous update while this one is rendered
            during_render.append(asyncio.run_coroutine_threadsafe(following(), loop).result(50))
        return render(view, events, *others)

    async with aclosing(RunFeeds(source).updates("r", 0, render_slowly_at_last)) as updates:
        await anext(updates)
        source.add(AttemptStarted("a", 1, 1.0))
        await asyncio.sleep(2)
        source.add(AttemptStarted("a", 2, 2.0))
        while not during_render:
            await asyncio.sleep(0.1)
        last_update = await anext(updates)

    assert (during_render[0].position, during_render[0].sections) == (2, {"events": b"2"})
    assert (last_update.position, last_update.sections) == (3, {"events": b"3"})


async def test_closing_the_feeds_ends_all_viewers() -> None:
    feeds = RunFeeds(OneRun())
    received: list[Update] = []

    async def watch() -> None:
        async with aclosing(feeds.updates("r", 0, render)) as updates:
            received.extend([update async for update in updates])

    watching = asyncio.create_task(watch())
    await asyncio.sleep(1)
    feeds.close()
    await asyncio.wait_for(watching, 0.1)

    assert len(received) == 1
    assert [each async for each in feeds.updates("r", 0, render)] == []
