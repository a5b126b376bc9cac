"""What steps say reaches observers and journals: log records, progress and attachments."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import pytest

from asyncflow import WorkflowStep, current_step, run_pipeline
from asyncflow.events import (
    Event,
    NoteEvent,
    StepAttached,
    StepLogged,
    StepProgressed,
    StepSucceeded,
)

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
        await asyncio.sleep(5)

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
        current_step().progress(Int64(), Int64())  # type: ignore[arg-type]

    (found,) = (await heard(WorkflowStep("load", load))).of(StepProgressed)

    assert (found.done, found.total) == (3.0, 3.0)


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
    import sys

    root = logging.getLogger()
    return lambda: (list(root.handlers), root.level, sys.stdout, sys.stderr)
