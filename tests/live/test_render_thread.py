"""The render thread lives as long as any run is shown."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest

from asyncflow import RunStatus
from asyncflow.events import Event, RunFinished, RunStarted
from asyncflow.live._renderer import EventBuffer, RenderThread

STARTED, FINISHED = RunStarted("r", 0.0, {}), RunFinished(1.0, RunStatus.PASSED)


class Recorder:
    """A renderer that records its events, and whose end blocks until `may_end` is set."""

    pause_s = 0.001

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.ended: list[EventBuffer] = []
        self.is_ending = threading.Event()
        self.may_end = threading.Event()

    def run_ended(self, buffer: EventBuffer, *, is_last: bool) -> None:
        self.ended.append(buffer)

    def take(self, buffers: Sequence[EventBuffer]) -> None:
        for buffer in buffers:
            self.events += buffer.drain()

    def begin(self) -> None: ...

    def draw(self) -> None: ...

    def abort(self) -> None: ...

    def end(self) -> None:
        self.is_ending.set()
        assert self.may_end.wait(50)


def test_a_run_that_starts_while_the_thread_ends_gets_a_new_thread() -> None:
    made: list[Recorder] = []

    def make() -> Recorder:
        made.append(Recorder())
        return made[-1]

    renders = RenderThread(make)
    renders.observer(waits=False)(FINISHED)
    assert made[0].is_ending.wait(50)
    starting = threading.Thread(
        target=lambda: renders.observer(waits=False)(STARTED), name="starting"
    )
    starting.start()
    starting.join(0.05)

    assert starting.is_alive()  # two threads must not draw at once
    made[0].may_end.set()
    starting.join()
    made[1].may_end.set()
    renders.close()

    assert made[0].events == [FINISHED]
    assert made[1].events == [STARTED]


def test_the_renderer_receives_all_events_in_order() -> None:
    recorder = Recorder()
    recorder.may_end.set()
    renders = RenderThread(lambda: recorder)
    observer = renders.observer(waits=True)
    events: list[Event] = [STARTED, *(RunStarted(f"{n}", 0.0, {}) for n in range(10_000)), FINISHED]

    for event in events:
        observer(event)

    assert recorder.events == events
    assert len(recorder.ended) == 1


@pytest.mark.parametrize("waits", [True, False])
def test_the_thread_continues_while_another_run_is_active(waits: bool) -> None:
    recorder = Recorder()
    recorder.may_end.set()
    renders = RenderThread(lambda: recorder)
    first, second = renders.observer(waits=waits), renders.observer(waits=waits)

    first(FINISHED)
    second(STARTED)
    assert not recorder.is_ending.wait(0.05)
    second(FINISHED)

    assert recorder.is_ending.wait(50)
    renders.close()
    assert recorder.events.count(FINISHED) == 2


def test_closing_the_thread_ends_all_runs() -> None:
    recorder = Recorder()
    recorder.may_end.set()
    renders = RenderThread(lambda: recorder)
    observers = [renders.observer(waits=False) for _ in range(3)]

    renders.close()
    observers[0](STARTED)

    assert recorder.is_ending.is_set()
    assert len(set(recorder.ended)) == len(recorder.ended) == 3
    assert recorder.events == []
