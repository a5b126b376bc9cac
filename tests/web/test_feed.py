"""The feed tells the viewers of a run that it has changed, and renders its parts when they ask."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from page.said import logged, streamed
from web.runs import Gate, slow

from asyncflow import JournalError, RunNotFoundError, RunStatus
from asyncflow._views.notes import RunNotes
from asyncflow._views.run_view import RunView
from asyncflow.events import (
    AttemptStarted,
    Event,
    NoteEvent,
    RunFinished,
    RunStarted,
    StepLogged,
    StepStreamed,
)
from asyncflow.journal._read.queries import RunRecord, RunSummary, StoredEvent
from asyncflow.web._feed import PageParts, Prepare, Render, RunFeeds, now_of


def rendered_by(render: Render) -> Prepare:
    async def prepare(record: RunRecord, answered: Collection[str]) -> Render:
        return render

    return prepare


def render_all(view: RunView, events: Sequence[Event], notes: RunNotes) -> dict[str, Any]:
    return {
        "word": view.word,
        "events": len(events),
        "lines": notes.count("a"),
        "name": view.run_id,
        "steps": [*view.steps],
    }


render = rendered_by(render_all)


async def prepare_record(record: RunRecord, answered: Collection[str]) -> Render:
    return lambda *_: {"status": record.status, "answered": sorted(answered)}


def shown(parts: PageParts | None) -> dict[str, str]:
    """Return the parts as a viewer receives them."""
    assert parts is not None
    return {name: part.json.decode() for name, part in parts.by_id.items()}


class OneRun:
    """A journal of one run to which a test adds events, and which can fail on request."""

    def __init__(self) -> None:
        self.stored: list[StoredEvent] = []
        self.said: list[StoredEvent] = []
        self.said_after_reading: list[NoteEvent] = []
        """What is stored once the notes were read, and before what is streamed is."""
        self.record_ = RunRecord("r", "etl", RunStatus.RUNNING, 0.0, 0.0, "me")
        self.answered: tuple[str, ...] = ()
        self.error: Exception | None = None
        self.read_times: list[float] = []
        self.add(RunStarted("r", 0.0, {"a": ()}))

    def add(self, *events: Event) -> None:
        for event in events:
            self.stored.append(StoredEvent(len(self.stored) + 1, event))

    def say(self, *notes: NoteEvent) -> None:
        for note in notes:
            self.said.append(StoredEvent(len(self.said) + 1, note))

    async def notes(
        self, run_id: str, *, after: int = 0, kinds: Any = None, **_: Any
    ) -> list[StoredEvent]:
        is_streams = kinds is not None
        found = [e for e in self.said[after:] if isinstance(e.event, StepStreamed) == is_streams]
        self.say(*self.said_after_reading)
        self.said_after_reading.clear()
        return found

    async def events(self, run_id: str, after: int = 0) -> list[StoredEvent]:
        self.read_times.append(asyncio.get_running_loop().time() - 1_000)  # where it starts
        if self.error is not None:
            raise self.error
        return self.stored[after:]

    async def record(self, run_id: str) -> RunRecord:
        return self.record_

    async def summaries(self, records: Sequence[RunRecord]) -> dict[str, RunSummary]:
        return {each.run_id: RunSummary(answered=self.answered) for each in records}

    runs: Any = None
    cancel: Any = None


class Viewer:
    """A viewer of a run, which is told of changes and asks for the parts."""

    def __init__(self, feeds: RunFeeds, prepare: Prepare, changes: AsyncGenerator[None]) -> None:
        self._feeds, self._prepare, self._changes = feeds, prepare, changes

    async def is_told(self) -> None:
        await anext(self._changes)

    async def parts(self, after: int = 0) -> PageParts:
        parts = await self._feeds.parts("r", self._prepare, after)
        assert parts is not None
        return parts

    async def next_parts(self, after: int = 0) -> PageParts:
        await self.is_told()
        return await self.parts(after)

    async def parts_with(self, wanted: Callable[[dict[str, str]], bool]) -> PageParts:
        while not wanted(shown(parts := await self.next_parts())):
            pass
        return parts


@asynccontextmanager
async def viewing(feeds: RunFeeds, prepare: Prepare = render) -> AsyncIterator[Viewer]:
    async with aclosing(feeds.changes("r", prepare)) as changes:
        viewer = Viewer(feeds, prepare, changes)
        yield viewer


async def test_what_is_noted_and_what_is_streamed_are_each_read_once() -> None:
    source = OneRun()
    feeds = RunFeeds(source)  # type: ignore[arg-type]

    def render_said(view: RunView, events: Sequence[Event], notes: RunNotes) -> dict[str, Any]:
        lines = [each.note.message for each in notes.lines("a")]
        return {"said": lines + [each.text for each in notes.streamed("a")]}

    source.say(logged("a", "line 1"), streamed("a", "word 1, "))
    source.said_after_reading += [logged("a", "line 2"), streamed("a", "word 2, ")]
    async with viewing(feeds, rendered_by(render_said)) as viewer:
        first = await viewer.next_parts()
        source.said_after_reading += [streamed("a", "word 3, "), logged("a", "line 3")]
        second = await viewer.next_parts()
        third = await viewer.next_parts()

    assert shown(first)["said"] == '["line 1", "word 1, word 2, "]'
    assert shown(second)["said"] == '["line 1", "line 2", "word 1, word 2, word 3, "]'
    assert shown(third)["said"] == '["line 1", "line 2", "line 3", "word 1, word 2, word 3, "]'


async def test_a_run_is_followed_from_its_start_to_its_end(any_journal: Any) -> None:
    gate = Gate()
    running = asyncio.create_task(slow(gate).with_options(run_id="r", journal=any_journal).run())
    await gate.has_started.wait()
    feeds, received = RunFeeds(any_journal), list[PageParts]()

    async with aclosing(feeds.changes("r", render)) as changes:
        async for _ in changes:
            parts = await feeds.parts("r", render, 0)
            assert parts is not None
            received.append(parts)
            gate.is_open.set()
    await running

    assert shown(received[0])["word"] == '"RUNNING"'
    assert shown(received[-1])["word"] == '"PASSED"'
    assert [each.has_ended for each in received] == [*[False] * (len(received) - 1), True]
    assert [each.position for each in received] == sorted(each.position for each in received)
    assert received[-1].position == len(await any_journal.events("r"))
    names = {each.by_id["name"].digest for each in received}
    assert len(names) == 1  # by which a page knows that it has this part


async def test_a_viewer_of_a_run_that_is_followed_already_is_told_at_once() -> None:
    source = OneRun()
    feeds = RunFeeds(source)
    async with viewing(feeds) as first_viewer, viewing(feeds) as late_viewer:
        await first_viewer.is_told()
        source.add(AttemptStarted("a", 1, 1.0))
        await first_viewer.is_told()
        began_at = asyncio.get_running_loop().time()

        parts = await late_viewer.next_parts()

    assert shown(parts)["events"] == "2"
    assert asyncio.get_running_loop().time() == began_at


async def test_viewers_share_one_reading_and_one_rendering() -> None:
    source, renderings = OneRun(), list[int]()

    def counted(view: RunView, events: Sequence[Event], notes: RunNotes) -> dict[str, Any]:
        renderings.append(len(events))
        return render_all(view, events, notes)

    # Of a run that waits, time changes nothing.
    source.record_ = RunRecord("r", "etl", RunStatus.WAITING, 0.0, 0.0, None)
    feeds = RunFeeds(source)

    async def watch() -> list[PageParts]:
        async with viewing(feeds, rendered_by(counted)) as viewer:
            return [await viewer.next_parts(), await viewer.next_parts()]

    viewers = [asyncio.create_task(watch()) for _ in range(20)]
    await asyncio.sleep(5)
    source.add(AttemptStarted("a", 1, 1.0))
    received = await asyncio.gather(*viewers)

    assert len(source.read_times) < 10
    assert renderings == [1, 2]
    for first, second in received:
        assert first is received[0][0]
        assert second is received[0][1]


async def test_a_viewer_that_leaves_while_it_reads_for_all_leaves_the_reading_to_another() -> None:
    class Slow(OneRun):
        gate = asyncio.Event()

        async def events(self, run_id: str, after: int = 0) -> list[StoredEvent]:
            found = await super().events(run_id, after)
            await self.gate.wait()
            return found

    source = Slow()
    feeds = RunFeeds(source)
    async with viewing(feeds) as first_viewer, viewing(feeds) as second_viewer:
        first = asyncio.ensure_future(first_viewer.is_told())
        second = asyncio.ensure_future(second_viewer.next_parts())
        await asyncio.sleep(1)
        first.cancel()
        source.gate.set()

        assert shown(await second)["events"] == "1"


async def test_a_viewer_that_leaves_at_the_end_of_the_reading_does_not_keep_what_it_read() -> None:
    class Slow(OneRun):
        gate = asyncio.Event()

        async def notes(self, run_id: str, **options: Any) -> list[StoredEvent]:
            if options.get("newest"):  # what is read last
                await self.gate.wait()
            return []

    source = Slow()
    source.gate.set()
    feeds = RunFeeds(source)
    async with viewing(feeds) as first_viewer, viewing(feeds) as second_viewer:
        await first_viewer.is_told()
        await second_viewer.is_told()
        await asyncio.sleep(2)  # the record is due
        source.record_ = RunRecord("r", "", RunStatus.ORPHANED, 0.0, 0.0, None)
        source.gate.clear()
        first = asyncio.ensure_future(first_viewer.is_told())
        await asyncio.sleep(1)
        first.cancel()
        source.gate.set()

        await asyncio.wait_for(second_viewer.is_told(), 60)


async def test_without_viewers_nothing_is_read() -> None:
    source = OneRun()
    feeds = RunFeeds(source)
    for _ in range(2):
        async with viewing(feeds) as viewer:
            await viewer.next_parts()
    read_times = len(source.read_times)

    await asyncio.sleep(60)

    assert len(source.read_times) == read_times == 2


async def test_what_no_viewer_asks_for_is_not_rendered() -> None:
    def render_nothing(*_: object) -> dict[str, Any]:
        raise AssertionError("nobody has asked")

    source = OneRun()
    feeds = RunFeeds(source)
    async with viewing(feeds, rendered_by(render_nothing)) as viewer:
        for attempt in range(1, 50):
            source.add(AttemptStarted("a", attempt, float(attempt)))
            await viewer.is_told()


async def test_a_busy_run_is_read_a_few_times_per_second() -> None:
    source = OneRun()

    async def add_events() -> None:
        for attempt in range(1, 100_000):
            source.add(AttemptStarted("a", attempt, float(attempt)))
            await asyncio.sleep(0.0001)

    clock = asyncio.get_running_loop().time
    started_s = clock()
    busy = asyncio.create_task(add_events())
    received = list[PageParts]()
    async with viewing(RunFeeds(source)) as viewer:
        while clock() - started_s < 3:
            received.append(await viewer.next_parts())
    busy.cancel()
    await asyncio.gather(busy, return_exceptions=True)

    assert 5 <= len(received) <= 12
    assert received[-1].position > 20_000
    assert shown(received[-1])["events"] == str(received[-1].position)


async def test_a_large_page_is_read_less_often() -> None:
    source = OneRun()

    def render_large(view: RunView, events: Sequence[Event], _: RunNotes) -> dict[str, Any]:
        source.add(AttemptStarted("a", 1, 1.0))
        return {"all": f"{len(events)} " + "x" * 10_000_000}

    feeds = RunFeeds(source)
    async with viewing(feeds, rendered_by(render_large)) as viewer:
        for _ in range(3):
            await viewer.next_parts()

    assert source.read_times[-1] >= 10


async def test_what_steps_say_is_shown_between_events_within_a_third_of_a_second() -> None:
    source = OneRun()
    async with viewing(RunFeeds(source)) as viewer:
        await viewer.next_parts()
        await asyncio.sleep(60)  # however long nothing has happened
        await viewer.is_told()
        for number in range(1, 4):
            source.say(StepLogged("a", 1, 1.0, 20, "app", "x"))
            parts = await asyncio.wait_for(viewer.next_parts(), 0.34)
            assert shown(parts)["lines"] == str(number)


async def test_a_running_run_changes_as_time_passes_and_no_other() -> None:
    source, clock = OneRun(), asyncio.get_running_loop().time
    began_s = clock()
    async with viewing(RunFeeds(source)) as viewer:
        for _ in range(4):
            await viewer.is_told()
        assert 3 <= clock() - began_s <= 4

        source.record_ = RunRecord("r", "", RunStatus.ORPHANED, 0.0, 0.0, None)
        await viewer.is_told()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(viewer.is_told(), 60)


async def test_the_duration_of_an_orphaned_run_stands_still_at_its_last_sign_of_life() -> None:
    view = RunView(each.event for each in OneRun().stored)
    dead = RunRecord("r", "", RunStatus.ORPHANED, 0.0, 0.0, None)

    assert now_of(view, dead) == 0.0
    assert now_of(view, replace(dead, seen_at=view.wall_time + 7)) == 7_000.0
    assert now_of(view, RunRecord("r", "", RunStatus.RUNNING, 0.0, 0.0, "me")) > 1e12


async def test_viewers_learn_that_the_process_of_a_run_died() -> None:
    source = OneRun()
    async with viewing(RunFeeds(source), prepare_record) as viewer:
        await viewer.is_told()
        source.record_ = RunRecord("r", "", RunStatus.ORPHANED, 0.0, 0.0, None)
        following = await viewer.next_parts()

    assert shown(following)["status"] == '"ORPHANED"'


async def test_viewers_of_a_run_that_waits_learn_that_an_answer_has_come() -> None:
    source = OneRun()
    source.record_ = RunRecord("r", "", RunStatus.WAITING, 0.0, 0.0, None)
    async with viewing(RunFeeds(source), prepare_record) as viewer:
        before = await viewer.next_parts()
        await asyncio.sleep(60)
        source.answered = ("approved",)
        following = await asyncio.wait_for(viewer.next_parts(), 2)

    assert shown(before)["answered"] == "[]"
    assert shown(following)["answered"] == '["approved"]'


async def test_a_viewer_is_told_that_the_journal_fails_and_receives_the_error() -> None:
    source = OneRun()
    async with viewing(RunFeeds(source)) as viewer:
        await viewer.is_told()
        source.error = JournalError("runs.db", "the disk is gone")
        await asyncio.wait_for(viewer.is_told(), 2)
        reads = len(source.read_times)
        for _ in range(50):
            with pytest.raises(JournalError, match="the disk is gone"):
                await viewer.parts()
        assert len(source.read_times) == reads  # for none of them
        source.error = None
        recovered = await asyncio.wait_for(viewer.next_parts(), 2)

    assert shown(recovered)["events"] == "1"


async def test_a_forgotten_run_ends_its_viewers() -> None:
    source = OneRun()
    async with viewing(RunFeeds(source)) as viewer:
        await viewer.is_told()
        source.error = RunNotFoundError("r", "runs.db")
        with pytest.raises(RunNotFoundError):
            await viewer.next_parts()
        with pytest.raises(StopAsyncIteration):
            await viewer.is_told()


@pytest.mark.parametrize("count", [1, 2, 3])  # fewer events than the other has, as many, more
async def test_another_run_with_the_same_id_is_told_from_the_one_before(count: int) -> None:
    source = OneRun()
    source.add(AttemptStarted("a", 1, 1.0))
    async with viewing(RunFeeds(source)) as viewer:
        await viewer.next_parts()
        source.stored.clear()
        source.record_ = RunRecord("r", "etl", RunStatus.RUNNING, 7.0, 7.0, "me")
        source.add(RunStarted("r", 7.0, {"b": ()}))
        source.add(*(AttemptStarted("b", number, 1.0) for number in range(1, count)))
        await asyncio.sleep(2)

        parts = await viewer.next_parts(after=2)

    assert shown(parts)["events"] == str(count)
    assert shown(parts)["steps"] == '["b"]'


async def test_a_viewer_ahead_of_the_reading_is_shown_what_it_has_seen_and_more() -> None:
    source = OneRun()
    async with viewing(RunFeeds(source)) as viewer:
        await viewer.next_parts()
        # The page of another viewer has events that were not yet read here.
        source.add(AttemptStarted("a", 1, 1.0), AttemptStarted("a", 2, 2.0))

        parts = await viewer.parts(after=3)

    assert parts.position == 3
    assert shown(parts)["events"] == "3"


async def test_a_failed_rendering_does_not_count_events_twice() -> None:
    source, failures = OneRun(), [ZeroDivisionError("by zero")]

    def render_broken_once(*arguments: Any) -> dict[str, Any]:
        if failures:
            raise failures.pop()
        return render_all(*arguments)

    feeds = RunFeeds(source)
    async with viewing(feeds, rendered_by(render_broken_once)) as viewer:
        await viewer.is_told()
        for _ in range(50):
            with pytest.raises(ZeroDivisionError):
                await viewer.parts()
        recovered = await viewer.next_parts()

    assert shown(recovered)["events"] == "1"
    assert recovered.position == 1


async def test_parts_have_the_position_of_the_events_that_they_show() -> None:
    source = OneRun()

    def render_meanwhile(*arguments: Any) -> dict[str, Any]:
        source.add(AttemptStarted("a", 1, 1.0))
        return render_all(*arguments)

    async with viewing(RunFeeds(source), rendered_by(render_meanwhile)) as viewer:
        for _ in range(3):
            parts = await viewer.next_parts()
            assert shown(parts)["events"] == str(parts.position)


async def test_the_feed_of_an_ended_run_stays_until_its_viewers_have_the_last_parts() -> None:
    source = OneRun()
    feeds = RunFeeds(source)
    async with viewing(feeds) as viewer:
        await viewer.is_told()
        source.add(RunFinished(1.0, RunStatus.PASSED))
        source.record_ = RunRecord("r", "", RunStatus.PASSED, 0.0, 0.0, None)
        await viewer.is_told()
        end = asyncio.ensure_future(viewer.is_told())
        await asyncio.sleep(1)
        reads = len(source.read_times)
        parts = await viewer.parts()

        assert parts.has_ended
        assert len(source.read_times) == reads
        with pytest.raises(StopAsyncIteration):
            await asyncio.wait_for(end, 5)


async def test_closing_the_feeds_ends_all_viewers() -> None:
    feeds = RunFeeds(OneRun())
    told = list[None]()

    async def watch() -> None:
        async with aclosing(feeds.changes("r", render)) as changes:
            told.extend([each async for each in changes])

    watching = asyncio.create_task(watch())
    await asyncio.sleep(0.5)
    feeds.close()
    await asyncio.wait_for(watching, 0.1)

    assert len(told) == 1
    assert [each async for each in feeds.changes("r", render)] == []
