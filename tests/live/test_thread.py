"""The thread that draws lives as long as there are runs, whatever what it draws does."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest

from asyncflow.events import Event, RunFinished, RunStarted
from asyncflow.live._painter import Feed, Painter

STARTED, FINISHED = RunStarted("r", 0.0, {}), RunFinished(1.0, "passed")


class Kept:
    """Draws nothing, and keeps what it is told; its end waits until it may."""

    pause_s = 0.001

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.ended: list[Feed] = []
        self.is_ending = threading.Event()
        self.may_end = threading.Event()

    def begin(self) -> None: ...

    def mark(self, feed: Feed, *, is_last: bool) -> None: ...

    def collect(self) -> None: ...

    def take(self, feed: Feed, events: Sequence[Event]) -> None:
        self.events += events

    def draw(self, ended: Sequence[Feed]) -> None:
        self.ended += ended

    def end(self, left: Sequence[Feed]) -> None:
        self.ended += left
        self.is_ending.set()
        assert self.may_end.wait(10)

    def give_up(self) -> None: ...


def test_a_run_that_starts_while_the_thread_ends_gets_another_one() -> None:
    made: list[Kept] = []

    def make() -> Kept:
        made.append(Kept())
        return made[-1]

    painter = Painter(make)
    painter.observer(waits=False)(FINISHED)
    assert made[0].is_ending.wait(10)
    starting = threading.Thread(
        target=lambda: painter.observer(waits=False)(STARTED), name="starting"
    )
    starting.start()
    starting.join(0.05)

    assert starting.is_alive()  # two of them can't draw at once
    made[0].may_end.set()
    starting.join()
    made[1].may_end.set()
    painter.close()

    assert made[0].events == [FINISHED]
    assert made[1].events == [STARTED]


def test_all_events_reach_what_draws_in_their_order() -> None:
    kept = Kept()
    kept.may_end.set()
    painter = Painter(lambda: kept)
    observer = painter.observer(waits=True)
    events: list[Event] = [STARTED, *(RunStarted(f"{n}", 0.0, {}) for n in range(10_000)), FINISHED]

    for event in events:
        observer(event)

    assert kept.events == events
    assert len(kept.ended) == 1


@pytest.mark.parametrize("waits", [True, False])
def test_the_thread_goes_on_while_another_run_does(waits: bool) -> None:
    kept = Kept()
    kept.may_end.set()
    painter = Painter(lambda: kept)
    first, second = painter.observer(waits=waits), painter.observer(waits=waits)

    first(FINISHED)
    second(STARTED)
    assert not kept.is_ending.wait(0.05)
    second(FINISHED)

    assert kept.is_ending.wait(10)
    painter.close()
    assert kept.events.count(FINISHED) == 2
