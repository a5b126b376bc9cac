"""What steps say reaches observers and journals: log records, progress and attachments."""

from __future__ import annotations

import asyncio
import contextvars
import io
import logging
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
import structlog
from freed import Held, without_collector
from memory_journal import MemoryJournal, MemorySession
from pydantic import SecretStr

from asyncflow import WorkflowStep, current_step, run_pipeline
from asyncflow._core.running.context import surroundings
from asyncflow._policies import notes
from asyncflow.events import (
    Event,
    NoteEvent,
    RunFinished,
    RunInterrupted,
    RunTimedOut,
    StepAttached,
    StepLogged,
    StepProgressed,
    StepSucceeded,
)
from asyncflow.logs import add_step, keep_record
from asyncflow.testing import run_in_virtual_time

log = logging.getLogger("tests.notes")


@pytest.fixture(autouse=True)
def level(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, log.name)


class Listener:
    """An observer that wants log records."""

    logs = logging.INFO
    prints = False

    def __init__(self) -> None:
        self.events: list[Event] = []

    def __call__(self, event: Event) -> None:
        self.events.append(event)

    def of(self, *kinds: Any) -> list[Any]:
        return [event for event in self.events if isinstance(event, kinds)]

    @property
    def messages(self) -> list[str]:
        return [event.message for event in self.of(StepLogged)]

    @property
    def said(self) -> list[tuple[str, int | None, str]]:
        return [(event.step, event.item, event.message) for event in self.of(StepLogged)]


class PrintListener(Listener):
    prints = True


async def heard(*steps: WorkflowStep, listener: Listener | None = None, **options: Any) -> Listener:
    listener = listener or Listener()
    await run_pipeline(list(steps), observers=[listener], **options)
    return listener


@pytest.mark.exact_time
async def test_progress_reaches_observers_at_most_ten_times_a_second() -> None:
    async def load() -> None:
        for done in range(1_000):
            current_step().progress(done, 1_000, "rows")
            await asyncio.sleep(0.001)

    found = (await heard(WorkflowStep("load", load))).of(StepProgressed)

    assert [each.done for each in found[:2]] == [0, pytest.approx(100, abs=1)]
    assert 10 <= len(found) <= 12
    assert (found[-1].done, found[-1].total, found[-1].unit) == (999, 1_000, "rows")


async def test_the_last_progress_is_reported_although_nothing_follows() -> None:
    async def load() -> None:
        for done in range(50):
            current_step().progress(done)
        await asyncio.sleep(0.3)

    listener = await heard(WorkflowStep("load", load))
    found = listener.of(StepProgressed, StepSucceeded)

    assert [getattr(each, "done", None) for each in found] == [49, None]


async def test_the_last_progress_of_an_attempt_comes_before_its_end() -> None:
    async def load() -> None:
        current_step().progress(1)
        await asyncio.sleep(0.01)
        current_step().progress(2)
        current_step().attach("note", "done")

    listener = await heard(WorkflowStep("load", load))

    assert [type(event).__name__ for event in listener.events[2:]] == [
        "StepProgressed",
        "StepAttached",
        "StepProgressed",
        "StepSucceeded",
        "RunFinished",
    ]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((-1,), ValueError, "progress: done must be finite and at least 0, not -1"),
        ((float("nan"),), ValueError, "progress: done must be finite and at least 0, not nan"),
        ((1, float("inf")), ValueError, "progress: total must be finite and at least 0, not inf"),
        ((True,), TypeError, "progress: done must be a number, not bool"),
        (("1",), TypeError, "progress: done must be a number, not str"),
        ((1, 2, 3), TypeError, "progress: unit must be a str, not int"),
    ],
)
async def test_a_progress_that_is_none_is_refused(
    arguments: Any, error: type[Exception], message: str
) -> None:
    async def load() -> None:
        with pytest.raises(error) as caught:
            current_step().progress(*arguments)
        assert str(caught.value) == message

    await run_pipeline([WorkflowStep("load", load)])


async def test_other_numbers_than_those_of_python_are_welcome() -> None:
    class Int64:
        def __float__(self) -> float:
            return 3.0

    async def load() -> None:
        current_step().progress(Int64(), 10**30)  # type: ignore[arg-type]

    (found,) = (await heard(WorkflowStep("load", load))).of(StepProgressed)

    assert (found.done, found.total) == (3.0, 1e30)


async def test_records_belong_to_the_attempt_in_whose_context_they_are_made() -> None:
    async def child(number: int) -> None:
        await asyncio.sleep(0.01)
        log.info("child %d", number)

    async def load() -> list[int]:
        log.info("first")
        log.debug("too low")
        await asyncio.gather(child(1), asyncio.to_thread(log.warning, "thread"))
        return [1, 2]

    async def each(item: int) -> None:
        log.info("item")

    log.info("before")
    listener = await heard(
        WorkflowStep("load", load),
        WorkflowStep("each", each, {"item": "load"}, map_over="load"),
    )
    log.info("after")

    assert sorted(listener.said[:3]) == [
        ("load", None, "child 1"),
        ("load", None, "first"),
        ("load", None, "thread"),
    ]
    assert listener.said[3:] == [("each", 0, "item"), ("each", 1, "item")]
    levels = {each.message: each.level for each in listener.of(StepLogged)}
    assert (levels["first"], levels["thread"]) == (20, 30)
    assert {each.logger for each in listener.of(StepLogged)} == {"tests.notes"}


async def test_an_exception_is_kept_with_its_traceback() -> None:
    async def load() -> None:
        try:
            raise KeyError("lost")
        except KeyError:
            log.exception("oh")

    (found,) = (await heard(WorkflowStep("load", load))).of(StepLogged)

    assert (found.level, found.message) == (40, "oh")
    assert found.traceback.startswith("Traceback")
    assert found.traceback.endswith("KeyError: 'lost'")


async def test_an_observer_without_a_level_gets_no_records() -> None:
    found: list[Event] = []

    async def load() -> None:
        log.error("hello")
        current_step().attach("a", "b")

    await run_pipeline([WorkflowStep("load", load)], observers=[found.append])

    assert [event for event in found if isinstance(event, NoteEvent)] == [
        event for event in found if isinstance(event, StepAttached)
    ]


async def test_nothing_stays_of_the_capture(quiet_logging: Callable[[], object]) -> None:
    before = quiet_logging()

    async def load() -> None:
        assert quiet_logging() != before

    await heard(WorkflowStep("load", load), listener=PrintListener())

    assert quiet_logging() == before


@pytest.fixture
def quiet_logging() -> Callable[[], object]:
    root = logging.getLogger()
    return lambda: (list(root.handlers), root.level, sys.stdout, sys.stderr)


async def test_a_record_in_a_nested_run_belongs_to_the_inner_step() -> None:
    inner = Listener()

    async def nest() -> None:
        async def deep() -> None:
            log.info("from the inside")

        log.info("before")
        await heard(WorkflowStep("deep", deep), listener=inner)

    outer = await heard(WorkflowStep("nest", nest))

    assert outer.said == [("nest", None, "before")]
    assert inner.said == [("deep", None, "from the inside")]


# Where the records come from.


async def test_the_outer_step_keeps_the_records_of_a_nested_run_that_keeps_none() -> None:
    async def nest() -> None:
        async def deep() -> None:
            log.info("from the inside")
            current_step().progress(1)

        await run_pipeline([WorkflowStep("deep", deep)])
        await run_pipeline([WorkflowStep("deep", deep)], observers=[lambda event: None])

    outer = await heard(WorkflowStep("nest", nest))

    assert outer.said == [("nest", None, "from the inside")] * 2
    assert outer.of(StepProgressed) == []


async def test_concurrent_runs_keep_their_own_records() -> None:
    async def talk(number: int) -> None:
        for _ in range(3):
            await asyncio.sleep(0.01)
            log.info("run %d", number)

    steps = [WorkflowStep("talk", talk)]
    one, two = await asyncio.gather(*[heard(*steps, inputs={"number": n}) for n in (1, 2)])

    assert (one.messages, two.messages) == (["run 1"] * 3, ["run 2"] * 3)


async def test_a_step_in_a_thread_says_what_it_does() -> None:
    def work() -> None:
        log.info("working")
        current_step().progress(1)
        current_step().attach("a", "text")

    listener = await heard(WorkflowStep("work", work, runs_in="thread"))

    assert {type(event) for event in listener.events[2:-2]} == {
        StepLogged,
        StepAttached,
        StepProgressed,
    }


async def test_what_is_said_after_the_run_is_dropped() -> None:
    late: list[asyncio.Task[None]] = []

    async def linger() -> None:
        await asyncio.sleep(1)
        log.info("late")
        print("late")
        current_step().progress(1)
        current_step().attach("a", "b")

    async def start() -> None:
        late.append(asyncio.ensure_future(linger()))

    listener = await heard(WorkflowStep("start", start), listener=PrintListener())
    await late[0]

    assert listener.of(NoteEvent) == []


async def test_what_is_printed_after_the_run_is_not_what_another_run_says() -> None:
    late: list[asyncio.Task[None]] = []

    async def linger() -> None:
        await asyncio.sleep(1)
        print("late")

    async def start() -> None:
        late.append(asyncio.ensure_future(linger()))

    async def wait() -> None:
        await late[0]

    first = await heard(WorkflowStep("start", start), listener=PrintListener())
    second = await heard(WorkflowStep("wait", wait), listener=PrintListener())

    assert (first.messages, second.messages) == ([], [])


async def test_what_a_task_says_after_its_attempt_belongs_to_that_attempt() -> None:
    tasks: list[asyncio.Task[None]] = []

    async def linger() -> None:
        await asyncio.sleep(0.05)
        log.info("late")
        current_step().progress(1)

    async def start() -> None:
        tasks.append(asyncio.ensure_future(linger()))
        if current_step().attempt == 1:
            raise OSError
        await asyncio.sleep(1)

    listener = await heard(WorkflowStep("start", start, max_retries=2))

    # Progress is reported at the end of a turn, and in real time the two tasks may wake in one turn
    # or in two: their notes may come in either order.
    assert [event.attempt for event in listener.of(StepLogged)] == [1, 2]
    assert [event.attempt for event in listener.of(StepProgressed)] == [1, 2]
    assert isinstance(listener.events[-1], RunFinished)


async def test_what_observers_log_is_not_what_a_step_says() -> None:
    class Chatty(Listener):
        def __call__(self, event: Event) -> None:
            log.info("seen")
            super().__call__(event)

    async def work() -> None:
        log.info("done")

    listener = await heard(WorkflowStep("work", work), listener=Chatty())

    assert listener.messages == ["done"]


async def test_what_asyncflow_logs_is_not_what_a_step_says() -> None:
    async def work() -> None:
        logging.getLogger("asyncflow").warning("about the run")

    assert (await heard(WorkflowStep("work", work))).messages == []


async def test_an_observer_that_fails_on_a_note_is_dropped() -> None:
    listener, calls = Listener(), []

    def fails(event: Event) -> None:
        calls.append(event)
        if isinstance(event, StepLogged):
            raise ValueError

    async def work() -> None:
        log.info("one")
        log.info("two")

    await run_pipeline([WorkflowStep("work", work)], observers=[fails, listener])

    assert len([event for event in calls if isinstance(event, StepLogged)]) == 1
    assert listener.messages == ["one", "two"]


async def test_an_observer_that_is_interrupted_by_a_note_ends_the_run() -> None:
    def interrupted(event: Event) -> None:
        if isinstance(event, StepAttached):
            raise KeyboardInterrupt

    async def work() -> None:
        current_step().attach("a", "b")
        current_step().attach("b", "c")

    with pytest.raises(KeyboardInterrupt):
        await run_pipeline([WorkflowStep("work", work)], observers=[interrupted])


async def test_an_observer_that_raises_at_a_note_interrupts_no_run_twice() -> None:
    listener, caller = Listener(), asyncio.current_task()
    assert caller is not None

    def interrupted(event: Event) -> None:
        if isinstance(event, StepAttached):
            raise KeyboardInterrupt

    async def work() -> None:
        caller.cancel()
        current_step().attach("a", "b")  # it is told in the next turn, or before the next event
        await asyncio.sleep(1)

    with pytest.raises(KeyboardInterrupt):
        await run_pipeline([WorkflowStep("work", work)], observers=[listener, interrupted])
    caller.uncancel()

    assert [event.cause for event in listener.of(RunInterrupted)] == ["caller"]
    assert [event.cause for event in listener.of(RunFinished)] == ["caller"]


@pytest.mark.exact_time
async def test_an_observer_that_raises_at_a_note_stops_the_run_after_the_next_event() -> None:
    listener = Listener()

    def interrupted(event: Event) -> None:
        if isinstance(event, StepAttached):
            raise KeyboardInterrupt

    async def work() -> None:
        loop, context = asyncio.get_running_loop(), current_step()
        left_ms = context.remaining_ms()
        assert left_ms is not None
        loop.call_at(loop.time() + left_ms / 1000 - 1e-10, context.attach, "a", "b")
        await asyncio.sleep(1)

    with pytest.raises(KeyboardInterrupt):
        await run_pipeline(
            [WorkflowStep("work", work)], observers=[listener, interrupted], deadline_ms=10
        )

    stops = listener.of(RunTimedOut, RunInterrupted)
    assert [type(event) for event in stops] == [RunTimedOut, RunInterrupted]


@pytest.mark.parametrize("wanting", ["INFO", True, None])
async def test_a_level_that_is_no_number_counts_as_none(wanting: Any) -> None:
    class Other(Listener):
        logs = wanting

    async def work() -> None:
        log.error("hello")

    assert (await heard(WorkflowStep("work", work), listener=Other())).messages == []


def test_without_a_collector_nothing_of_a_run_that_talks_stays() -> None:
    async def work() -> Held:
        log.info("hello")
        print("hello")
        current_step().progress(1)
        current_step().attach("a", "b")
        return Held()

    async def main() -> weakref.ref[Any]:
        report = await run_pipeline([WorkflowStep("work", work)], observers=[PrintListener()])
        return weakref.ref(report["work"].output)

    with without_collector():
        assert run_in_virtual_time(main())() is None


# Records as they are made.


async def test_records_are_kept_however_they_are_made() -> None:
    class Unprintable(Exception):
        def __str__(self) -> str:
            raise ValueError

        @property
        def __traceback__(self) -> Any:
            raise ValueError

    async def work() -> None:
        log.info("%d", "no number")
        log.info({"event": "loaded", "rows": 3, "level": "info", "_record": object()})
        log.info(Path("a"))
        log.info("where", stack_info=True)
        log.error("no error", exc_info=(None, None, None))
        try:
            raise Unprintable
        except Unprintable:
            log.exception("odd")

    raising = logging.raiseExceptions
    logging.raiseExceptions = False  # the other handlers would print what does not fit
    try:
        listener = await heard(WorkflowStep("work", work))
    finally:
        logging.raiseExceptions = raising
    records = listener.of(StepLogged)

    assert listener.messages[:4] == [
        "'%d' with the arguments ('no number',)",
        "loaded rows=3",
        "a",
        "where",
    ]
    assert records[3].traceback.startswith("Stack (most recent call last):")
    assert records[4].traceback == ""
    assert records[5].traceback == "Unprintable"


async def test_structlog_without_logging_has_a_processor_that_keeps_its_events() -> None:
    log_to_stdout = structlog.wrap_logger(
        structlog.PrintLogger(file=io.StringIO()),
        processors=[add_step, keep_record, structlog.processors.JSONRenderer()],
    )

    async def work() -> None:
        log_to_stdout.info("loaded", rows=3, logger="db")
        log_to_stdout.debug("too low")
        try:
            raise KeyError("x")
        except KeyError:
            log_to_stdout.exception("lost")

    log_to_stdout.info("outside")
    found = (await heard(WorkflowStep("work", work))).of(StepLogged)

    assert [(each.level, each.logger) for each in found] == [(20, "db"), (40, "structlog")]
    assert "loaded rows=3" in found[0].message


async def test_structlog_with_logging_needs_none() -> None:
    bound = structlog.wrap_logger(
        log,
        processors=[structlog.stdlib.render_to_log_kwargs],
        wrapper_class=structlog.stdlib.BoundLogger,
    )

    async def work() -> None:
        bound.info("loaded", rows=3)

    assert (await heard(WorkflowStep("work", work))).messages == ["loaded"]


# Logging stays as it is.


@contextmanager
def unconfigured() -> Iterator[logging.Logger]:
    """Take away what the test runner has configured."""
    root = logging.getLogger()
    handlers, level, own_level = root.handlers, root.level, log.level
    root.handlers = []
    root.setLevel(logging.WARNING)
    log.setLevel(logging.NOTSET)
    try:
        yield root
    finally:
        root.handlers = handlers
        root.setLevel(level)
        log.setLevel(own_level)


async def test_unconfigured_logging_still_writes_warnings(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async def work() -> None:
        log.info("kept")
        log.warning("kept and written")
        logging.warning("at the root")

    with unconfigured() as root:
        listener = await heard(WorkflowStep("work", work), listener=PrintListener())
        assert (root.level, root.handlers) == (logging.WARNING, [])

    assert listener.messages == ["kept", "kept and written", "at the root"]
    assert capsys.readouterr().err == "kept and written\nat the root\n"


async def test_without_a_last_resort_nothing_is_written(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logging, "lastResort", None)

    async def work() -> None:
        log.warning("kept")

    with unconfigured():
        assert (await heard(WorkflowStep("work", work))).messages == ["kept"]
    assert capsys.readouterr().err == ""


async def test_a_logger_with_a_handler_of_its_own_is_configured(
    capsys: pytest.CaptureFixture[str],
) -> None:
    own = io.StringIO()
    parent = logging.getLogger("tests.notes_with_handler")
    handler = logging.StreamHandler(own)
    parent.addHandler(handler)

    async def work() -> None:
        parent.getChild("child").warning("to its handler")

    try:
        with unconfigured():
            listener = await heard(WorkflowStep("work", work))
    finally:
        parent.removeHandler(handler)

    assert listener.messages == ["to its handler"]
    assert (own.getvalue(), capsys.readouterr().err) == ("to its handler\n", "")


async def test_a_level_that_is_set_meanwhile_stays() -> None:
    with unconfigured() as root:

        async def work() -> None:
            assert root.level == logging.INFO
            root.setLevel(logging.ERROR)

        await heard(WorkflowStep("work", work))

        assert root.level == logging.ERROR


async def test_a_configured_level_stands() -> None:
    async def work() -> None:
        log.info("not let through")
        log.warning("let through")

    with unconfigured() as root:
        root.addHandler(logging.NullHandler())
        assert (await heard(WorkflowStep("work", work))).messages == ["let through"]


# What is printed.


async def test_printed_lines_are_kept_and_still_printed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async def work() -> None:
        print("one", "two")
        print("\nto", "stderr", file=sys.stderr)
        sys.stdout.writelines(["three\nfo", "ur\n"])
        sys.stdout.write("10 %\r20 %\r")
        sys.stdout.flush()
        print("30 %")
        print("unfinished", end="")

    print("before")
    listener = await heard(WorkflowStep("work", work), listener=PrintListener())
    print("after")

    assert [(each.logger, each.level, each.message) for each in listener.of(StepLogged)] == [
        ("stdout", 20, "one two"),
        ("stderr", 30, "to stderr"),
        ("stdout", 20, "three"),
        ("stdout", 20, "four"),
        ("stdout", 20, "30 %"),
        ("stdout", 20, "unfinished"),
    ]
    written = capsys.readouterr()
    assert written.out.startswith("before\none two\nthree\nfour\n10 %\r20 %\r30 %\nunfinished")
    assert written.err == "\nto stderr\n"


async def test_a_run_that_does_not_want_printed_lines_gets_none() -> None:
    async def work() -> None:
        print("hello")

    other = PrintListener()
    listener, _ = await asyncio.gather(
        heard(WorkflowStep("work", work)), heard(WorkflowStep("work", work), listener=other)
    )

    assert (listener.messages, other.messages) == ([], ["hello"])


async def test_another_wrapper_may_come_while_lines_are_kept_and_stay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Wrapper:
        def __init__(self, stream: Any) -> None:
            self.stream = stream

        def write(self, text: str) -> int:
            written: int = self.stream.write(text)
            return written

        def __getattr__(self, name: str) -> Any:
            return getattr(self.stream, name)

    out = io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    second = PrintListener()

    async def talk() -> None:
        print("second")

    async def work() -> None:
        sys.stdout = Wrapper(sys.stdout)  # type: ignore[assignment]
        print("first")
        await heard(WorkflowStep("talk", talk), listener=second)
        print("again")

    first = await heard(WorkflowStep("work", work), listener=PrintListener())
    wrapper: Any = sys.stdout
    print("after")
    third = await heard(WorkflowStep("talk", talk), listener=PrintListener())

    assert out.getvalue().split() == ["first", "second", "again", "after", "second"]
    assert (first.messages, second.messages) == (["first", "again"], ["second"])
    assert third.messages == ["second"]
    assert sys.stdout is wrapper


async def test_a_program_without_standard_streams_prints_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "stdout", None)

    async def work() -> None:
        print("nowhere")

    assert (await heard(WorkflowStep("work", work), listener=PrintListener())).messages == []


# What is too much.


async def test_of_an_attempt_that_logs_without_end_the_first_and_the_last_records_stay() -> None:
    async def work() -> None:
        for number in range(1_500):
            log.info("%d", number)

    listener = await heard(WorkflowStep("work", work))

    cut = "480 records were left out: an attempt keeps 1,000 with at most 256 kB of text, "
    assert listener.messages[:1_000] == [str(number) for number in range(1_000)]
    assert listener.messages[1_000].startswith(cut)
    assert listener.messages[1_001:] == [str(number) for number in range(1_480, 1_500)]
    missing = listener.of(StepLogged)[1_000]
    assert (missing.logger, missing.level) == ("asyncflow", logging.WARNING)


async def test_long_records_are_cut_and_fill_an_attempt_earlier() -> None:
    async def work() -> None:
        for number in range(60):
            log.info("%d %s", number, "x" * 20_000, stack_info=True)

    listener = await heard(WorkflowStep("work", work))
    first = listener.of(StepLogged)[0]

    assert len(first.message) < 8_100
    assert first.message.endswith("more characters)")
    assert first.traceback.startswith("… (")
    kept = [message.split()[0] for message in listener.messages]
    assert kept == [*map(str, range(31)), "9", *map(str, range(40, 60))]


async def test_a_run_keeps_so_many_records(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notes, "_RUN_RECORDS", 200)

    async def work(item: int) -> None:
        for number in range(9):
            log.info("%d %d", item, number)
        current_step().attach("a", "b")

    async def items() -> list[int]:
        return list(range(25))

    listener = await heard(
        WorkflowStep("items", items),
        WorkflowStep("work", work, {"item": "items"}, map_over="items", max_retries=1),
        max_concurrency=1,
    )

    missing = [each for each in listener.of(StepLogged) if each.logger == "asyncflow"]
    assert len(listener.of(StepLogged, StepAttached)) - len(missing) == 200
    assert [(each.item, each.message.split()[0]) for each in missing] == [
        (20, "10"),
        (21, "10"),
        (22, "10"),
        (23, "10"),
        (24, "10"),
    ]


async def test_a_run_keeps_attachments_of_so_many_bytes() -> None:
    async def work() -> None:
        for number in range(12):
            current_step().attach(str(number), b"x" * 900_000)
        log.info("the end")

    listener = await heard(WorkflowStep("work", work))

    assert [each.name for each in listener.of(StepAttached)] == [str(n) for n in range(11)]
    assert listener.messages[0] == "the end"
    assert listener.messages[1].startswith("1 record was left out: ")


async def test_a_secret_step_keeps_its_progress_only() -> None:
    async def work() -> None:
        log.info("hello")
        print("hello")
        current_step().attach("a", "b")
        current_step().progress(1)

    listener = await heard(WorkflowStep("work", work, secret=True), listener=PrintListener())

    assert listener.messages == ["3 records were left out: the step is secret"]
    assert len(listener.of(NoteEvent)) == 2


@pytest.mark.parametrize(
    ("secret", "text", "shown"),
    [
        ("hunter2", "is hunter2, hunter22", "is <secret>, <secret>2"),
        ("abc", "abc", "abc"),  # too short
        (b"abc", "abc", "abc"),
        (12345, "pin 12345", "pin <secret>"),
        (True, "True", "True"),
        (["a long one", {"key": "the key's"}], "a long one: the key's", "<secret>: <secret>"),
        (b"bytes", "bytes and 'bytes'", "<secret> and '<secret>'"),
        ("first line\nsecond line", "first line, second line", "<secret>, <secret>"),
        (SimpleNamespace(token="a token"), "a token", "<secret>"),
        (SecretStr("pydantic"), "pydantic", "<secret>"),
        ("inner", "the longest inner", "the longest <secret>"),
        ('a"b/c&d é', 'a"b/c&d é or a%22b%2Fc%26d', "<secret> or a%22b%2Fc%26d"),  # no encoding
        (UUID(int=255), "id 00000000-0000-0000-0000-0000000000ff", "id <secret>"),
        (Decimal("12.50"), "owes 12.50", "owes <secret>"),
        (Path("/etc/key"), "at /etc/key", "at <secret>"),
    ],
)
async def test_what_is_found_in_a_secret_value_is_replaced(
    secret: Any, text: str, shown: str
) -> None:
    async def work(key: Any) -> None:
        log.info(text)
        current_step().attach(text, text)

    step = WorkflowStep("work", work)
    listener = await heard(step, inputs={"key": secret}, secret_inputs=["key"])

    assert listener.messages == [shown]
    (attached,) = listener.of(StepAttached)
    assert (attached.name, attached.data.decode()) == (shown, shown)


async def test_a_nested_run_hides_the_secrets_of_the_runs_around_it() -> None:
    listener = Listener()

    async def log_in() -> str:
        return "the token"

    async def innermost(outer: str, own: str) -> None:
        log.info("%s, %s", outer, own)

    async def middle(key: str, log_in: str) -> None:
        async def nest(own: str) -> None:
            log.info("%s and %s, %s", key, log_in, own)
            inputs = {"outer": log_in, "own": own}
            await run_pipeline(
                [WorkflowStep("say", innermost)], observers=[listener], inputs=inputs
            )

        await run_pipeline(
            [WorkflowStep("nest", nest)],
            observers=[listener],
            inputs={"own": "own key"},
            secret_inputs=["own"],
        )

    steps = [
        WorkflowStep("log_in", log_in, secret=True),
        WorkflowStep("middle", middle, ["log_in"]),
    ]
    await run_pipeline(steps, inputs={"key": "hunter2"}, secret_inputs=["key"])

    assert listener.messages == ["<secret> and <secret>, <secret>", "<secret>, <secret>"]


async def test_what_outlives_a_run_holds_none_of_its_secrets() -> None:
    kept: list[contextvars.Context] = []

    async def say(key: str) -> None:
        kept.append(contextvars.copy_context())
        await run_pipeline([WorkflowStep("inner", inner)])

    async def inner() -> None:
        kept.append(contextvars.copy_context())
        texts = [context.run(surroundings).secrets for context in kept]
        assert [known and known.replaced("hunter2") for known in texts] == ["<secret>"] * 2

    report = await run_pipeline(
        [WorkflowStep("say", say)], inputs={"key": "hunter2"}, secret_inputs=["key"]
    )

    report.raise_for_failures()
    texts = [context.run(surroundings).secrets for context in kept]
    assert [known and known.replaced("hunter2") for known in texts] == ["hunter2"] * 2


async def test_the_name_of_a_logger_hides_secrets() -> None:
    async def work(key: str) -> None:
        logging.getLogger(f"client.{key}").warning("hello")

    step = WorkflowStep("work", work)
    listener = await heard(step, inputs={"key": "hunter2"}, secret_inputs=["key"])

    assert [note.logger for note in listener.of(StepLogged)] == ["client.<secret>"]


async def test_a_secret_that_is_known_later_is_replaced_from_then_on() -> None:
    class Slotted:
        __slots__ = ("missing", "token")

        def __init__(self) -> None:
            self.token = "the token"

    async def log_in(**_: Any) -> Any:
        return [Slotted(), SimpleNamespace(token="other token"), iter([])] * 400

    async def work(log_in: Any) -> None:
        log.info("other token and the token")

    async def before() -> None:
        log.info("other token")

    listener = await heard(
        WorkflowStep("before", before),
        WorkflowStep("log_in", log_in, ["before"], secret=True),
        WorkflowStep("work", work, ["log_in"]),
    )

    assert listener.messages == ["other token", "<secret> and <secret>"]


# What must not hurt.


async def test_a_record_whose_arguments_raise_does_not_fail_the_step() -> None:
    class Hostile:
        def __str__(self) -> str:
            raise ValueError

        __repr__ = __str__

    async def work() -> str:
        log.info("%s", Hostile())
        log.info(Hostile())
        log.handle(logging.makeLogRecord({"msg": "odd", "levelno": 20, "exc_info": True}))
        log.log(2**70, "urgent")
        return "done"

    raising, logging.raiseExceptions = logging.raiseExceptions, False
    try:
        listener = await heard(WorkflowStep("work", work))
    finally:
        logging.raiseExceptions = raising

    assert isinstance(listener.events[-2], StepSucceeded)
    assert listener.messages[-2:] == ["odd", "urgent"]
    assert len(listener.messages) == 4


async def test_half_a_line_of_an_observer_is_not_what_a_step_says() -> None:
    class Dotted(PrintListener):
        def __call__(self, event: Event) -> None:
            print(".", end="")
            super().__call__(event)

    async def work() -> None:
        print("said")

    assert (await heard(WorkflowStep("work", work), listener=Dotted())).messages == ["said"]


async def test_what_a_process_has_left_out_is_counted() -> None:
    async def work() -> None:
        step: Any = current_step()
        step._notes.leave_out(step._running, 7)

    (message,) = (await heard(WorkflowStep("work", work))).messages

    assert message.startswith("7 records were left out: ")


async def test_a_record_that_waits_for_another_thread_blocks_none() -> None:
    class Slow:
        def __repr__(self) -> str:
            thread = threading.Thread(
                target=contextvars.copy_context().run, args=(log.info, "from the thread")
            )
            thread.start()
            thread.join(30)
            return "blocked" if thread.is_alive() else "free"

    async def work() -> None:
        keep_record(None, "info", {"event": "waited", "for": Slow()})

    listener = await heard(WorkflowStep("work", work))

    assert listener.messages == ["from the thread", "waited for=free"]


async def test_a_large_print_is_cut_before_it_is_taken_apart() -> None:
    async def work() -> None:
        sys.stdout.write("line\n" * 100_000 + "the end\n")

    listener = await heard(WorkflowStep("work", work), listener=PrintListener())

    assert listener.messages[0] == "line"
    assert listener.messages[-1] == "the end"


async def test_many_secrets_stay_cheap_and_hidden() -> None:
    async def items() -> list[int]:
        return list(range(3_000))

    async def secret(item: int) -> str:
        return f"token {item:06d}"

    async def work(tokens: list[str]) -> None:
        log.info(" ".join(tokens[::500]))

    started = time.process_time()
    listener = await heard(
        WorkflowStep("items", items),
        WorkflowStep("secret", secret, {"item": "items"}, map_over="items", secret=True),
        WorkflowStep("work", work, {"tokens": "secret"}),
    )

    assert listener.messages == [" ".join(["<secret>"] * 6)]
    assert time.process_time() - started < 10


async def test_a_repeated_long_secret_leaves_no_part() -> None:
    secret = "".join(chr(ord("a") + number % 26) * 3 for number in range(567))

    async def work(key: str) -> None:
        log.info(key * 50)

    step = WorkflowStep("work", work)
    listener = await heard(step, inputs={"key": secret}, secret_inputs=["key"])

    assert listener.messages[0].replace("<secret>", "").startswith("… (")


# What a journal keeps.


@pytest.mark.exact_time
async def test_a_journal_stores_the_progress_once_a_second_and_the_last_one() -> None:
    journal = NotingJournal()

    async def load() -> None:
        for done in range(3_000):
            current_step().progress(done)
            await asyncio.sleep(0.001)
        log.info("no journal wants this")

    await run_pipeline([WorkflowStep("load", load)], journal=journal, run_id="r")

    done = [each.done for each in journal.notes]
    assert done == [0, *(pytest.approx(1000 * n, abs=100) for n in (1, 2)), 2_999]


async def test_a_journal_gets_the_records_that_it_wants() -> None:
    journal = NotingJournal()
    journal.logs = logging.WARNING
    listener = PrintListener()

    async def work() -> None:
        log.info("for the observer")
        log.warning("for both")
        print("printed")

    for prints in (False, True):
        journal.prints = prints
        await run_pipeline(
            [WorkflowStep("work", work)], journal=journal, run_id=f"{prints}", observers=[listener]
        )

    assert listener.messages == ["for the observer", "for both", "printed"] * 2
    assert [each.message for each in journal.notes] == ["for both", "for both", "printed"]


async def test_a_journal_whose_sessions_take_no_notes_gets_none() -> None:
    journal = MemoryJournal()
    journal.logs = logging.INFO  # type: ignore[attr-defined]

    async def work() -> None:
        log.info("hello")
        current_step().progress(1)
        current_step().attach("a", "b")

    report = await run_pipeline([WorkflowStep("work", work)], journal=journal, run_id="r")

    assert report.all_passed
    assert [type(each).__name__ for each in journal.stored["r"]] == [
        "RunStarted",
        "AttemptStarted",
        "StepSucceeded",
        "RunFinished",
    ]


async def test_what_was_said_is_stored_before_the_end_of_the_run() -> None:
    journal = NotingJournal()

    async def work() -> None:
        current_step().attach("a", "b")

    await run_pipeline([WorkflowStep("work", work)], journal=journal, run_id="r")

    assert journal.order[-3:] == ["StepAttached", "StepSucceeded", "RunFinished"]


class NotingSession(MemorySession):
    def append_note(self, note: NoteEvent) -> None:
        self.noting.notes.append(note)
        self.noting.order.append(type(note).__name__)

    @property
    def noting(self) -> NotingJournal:
        assert isinstance(self._journal, NotingJournal)
        return self._journal

    def append(self, event: Event) -> None:
        self.noting.order.append(type(event).__name__)
        super().append(event)


class NotingJournal(MemoryJournal):
    """A journal in memory that stores notes."""

    logs: int | None = None
    prints = False
    session = NotingSession

    def __init__(self) -> None:
        super().__init__()
        self.notes: list[Any] = []
        self.order: list[str] = []
