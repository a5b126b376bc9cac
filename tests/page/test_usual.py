"""A page says how long steps usually take, and marks where they usually end."""

from __future__ import annotations

import re

from golden_run import GOLDEN
from mapped_run import mapped_run

from asyncflow import RunStatus
from asyncflow.events import (
    AttemptStarted,
    Event,
    RunFinished,
    RunResumed,
    RunStarted,
    StepSucceeded,
)
from asyncflow.html_report import to_html


def run(*, ended: bool = True) -> list[Event]:
    events: list[Event] = [RunStarted("r", 0.0, {"a": (), "b": ()}), AttemptStarted("a", 1, 0.0)]
    events += [StepSucceeded("a", 1, 1_000.0, None), AttemptStarted("b", 1, 1_000.0)]
    if ended:
        events += [StepSucceeded("b", 1, 2_000.0, None), RunFinished(2_000.0, RunStatus.PASSED)]
    return events


def ticks(html: str) -> list[tuple[str, str]]:
    """Return the place and the title of each mark."""
    chart = html.partition('<div id="gantt">')[2].partition('class="legend"')[0]
    marks = re.findall(r'href="#i-usual" x="([\d.]+)%"><title>(.*?)</title>', chart)
    return [(title, place) for place, title in marks]


def test_the_usual_end_is_marked_from_the_start_of_the_step_on() -> None:
    html = to_html(run(), usual_ms={"a": 400.0, "b": 500.0, "gone": 1.0})

    assert ticks(html) == [("usually 400 ms", "20"), ("usually 500 ms", "75")]
    assert html.count("<dd>1.0 s, usually 400 ms</dd>") == 1
    assert html.count(" usual end</li>") == 1


def test_an_item_has_no_mark_and_neither_has_a_step_of_several_segments() -> None:
    events = mapped_run(3, retried=True)
    assert len(ticks(to_html(events, usual_ms={"fetch": 1.0, "fetch[0]": 1.0}))) == 1

    resumed = RunResumed("r", 1_000.0, 9.0, {"a": (), "b": ()}, {})
    events = [*run(ended=False), resumed, AttemptStarted("b", 2, 1_100.0)]
    events += [StepSucceeded("b", 2, 1_500.0, None), RunFinished(1_500.0, RunStatus.PASSED)]
    assert [title for title, _ in ticks(to_html(events, usual_ms={"a": 900.0, "b": 10.0}))] == [
        "usually 900 ms",
    ]
    assert ticks(to_html(events, usual_ms={"a": 1_200.0})) == []  # it would end in the pause
    assert len(ticks(to_html(GOLDEN, usual_ms={"extract": 1.0}))) == 1
