"""The position of each bar of a timeline matches the times of the events."""

from __future__ import annotations

import itertools
import math
import re

import pytest
from golden_run import GOLDEN, HOSTILE, LONG
from hypothesis import given
from hypothesis import strategies as st
from mapped_run import mapped_run
from resumed_run import PAUSE_S, RESUMED, crashed_often

from asyncflow import RunStatus, StepTimeoutError
from asyncflow._core.history.step_view import AttemptView
from asyncflow._views.axis import ticks
from asyncflow._views.run_view import RunView
from asyncflow.events import (
    AttemptFailed,
    AttemptStarted,
    Event,
    LoopBlocked,
    MapStarted,
    PoolPaused,
    RunFinished,
    RunInterrupted,
    RunResumed,
    RunStarted,
    StepCancelled,
    StepFailed,
    StepSucceeded,
    ThreadAbandoned,
)
from asyncflow.html_report._event_log import event_log
from asyncflow.html_report._page import sections
from asyncflow.html_report._page_model import PageModel
from asyncflow.html_report._timeline import (
    Bar,
    Icon,
    Timeline,
    bars_of,
    icons_of,
    outcome_layers,
    running_at,
)

SPAN_MS, GAP = 5000.5, 1.6


def view_of(*events: Event) -> RunView:
    names = dict.fromkeys(event.step for event in events if isinstance(event, AttemptStarted))
    return RunView([RunStarted("r", 0.0, dict.fromkeys(names, ())), *events])


def bars(view: RunView, step: str, now_ms: float | None = None) -> tuple[Bar, ...]:
    now_ms = view.at_ms if now_ms is None else now_ms
    return bars_of(view.steps[step], Timeline.until(now_ms, view.segments), now_ms)


def drawn(events: list[Event], now_ms: float | None = None) -> list[str]:
    """Return a line for each bar of each step and item: when it was, in which segment, how."""
    view = RunView(events)
    now_ms = view.at_ms if now_ms is None else now_ms
    lines = []
    for step in view.steps.values():
        for each in (step, *(step.items or {}).values()):
            for bar in bars_of(each, Timeline.until(now_ms, view.segments), now_ms):
                span = f"{bar.start_ms:g}-{bar.end_ms:g} in {bar.segment}"
                more = (bar.end, bar.place, bar.note, "abandoned" * bar.abandoned)
                lines.append(" ".join(filter(None, (each.name, bar.kind, span, *more))))
    return lines


def test_the_golden_run_has_these_bars() -> None:
    found = drawn(GOLDEN)

    assert found == [line.format(LONG=LONG, HOSTILE=HOSTILE) for line in GOLDEN_BARS.splitlines()]


GOLDEN_BARS = """\
extract attempt 0.5-900 in 1 succeeded
rates attempt 0.6-400 in 1 failed
rates backoff 400-900 in 1
rates queue 900-1000 in 1
rates attempt 1000-1400 in 1 failed
rates backoff 1400-2400 in 1
rates attempt 2400-2600 in 1 succeeded
token queue 1-250 in 1
token attempt 250-300 in 1 succeeded
validate attempt 2600.5-3000 in 1 succeeded
validate blocked 2720-2900 in 1 validate.py:12 in check
{LONG} attempt 2600.6-4000 in 1 crashed
{LONG} attempt 4002-4500 in 2 succeeded
fetch items 4002-4902.5 in 2 cancelled
fetch[0] attempt 4002.5-4200 in 2 succeeded
fetch[1] attempt 4002.6-4901 in 2 cancelled
fetch[2] attempt 4002.7-4802.7 in 2 timed out abandoned
fetch[2] backoff 4802.7-4901.1 in 2
fetch[3] queue 4003-4201 in 2
fetch[3] attempt 4201-4902 in 2 cancelled
index queue 3000.4-3000.5 in 1
index attempt 3000.5-3000.9 in 1 succeeded dask, worker tcp://10.0.0.7:40001
{HOSTILE} attempt 4501-4600 in 2 failed
{HOSTILE} backoff 4600-4700 in 2
{HOSTILE} attempt 4700-4900 in 2 failed
tidy attempt 4903-5000 in 2 succeeded"""


def test_what_has_not_ended_has_a_bar_until_now_or_until_its_segment_ends() -> None:
    events: list[Event] = [
        RunStarted("r", 0.0, dict.fromkeys(("waits", "runs", "m", "blocks", "asleep"), ())),
        AttemptStarted("asleep", 1, 0.0),
        AttemptFailed("asleep", 1, 10.0, ValueError("no"), 9_000.0),
        RunInterrupted(20.0, "a deploy"),
        RunResumed(
            *("r", 20.0, 60.0, dict.fromkeys(("waits", "runs", "m", "blocks", "asleep"), ()), {}),
            unfinished={"asleep": "it had not finished"},
        ),
        AttemptStarted("waits", 1, 30.0, 10.0, engine="dask"),
        AttemptStarted("runs", 1, 30.0),
        MapStarted("m", 30.0, 2),
        AttemptStarted("m", 1, 35.0, item=0),
        AttemptStarted("asleep", 2, 25.0),
        AttemptFailed("asleep", 2, 40.0, ValueError("no"), 1e6),
        AttemptStarted("blocks", 1, 40.0),
        StepSucceeded("blocks", 1, 45.0, None),
        LoopBlocked("blocks", 1, 48.0, 150.0, "work.py:3 in dig"),
    ]

    assert drawn(events, 50.0) == [
        "waits queue 20-50 in 2 dask",
        "runs attempt 30-50 in 2 running",
        "m items 30-50 in 2 running",
        "m[0] attempt 35-50 in 2 running",
        "blocks attempt 40-45 in 2 succeeded",
        "blocks blocked 40-45 in 2 work.py:3 in dig",
        "asleep attempt 0-10 in 1 failed",
        "asleep backoff 10-20 in 1",
        "asleep attempt 25-40 in 2 failed",
        "asleep backoff 40-50 in 2",
    ]
    (*_, wait) = bars(RunView(events), "asleep", 50.0)
    assert wait.left + wait.width == pytest.approx(100.0)


def test_a_backoff_ends_when_it_ended_and_not_when_it_was_to_end() -> None:
    view = view_of(
        AttemptStarted("late", 1, 0.0),
        AttemptFailed("late", 1, 10.0, ValueError("no"), 5.0),
        AttemptStarted("stopped", 1, 0.0),
        AttemptFailed("stopped", 1, 20.0, ValueError("no"), 500.0),
        AttemptStarted("late", 2, 60.0, 20.0),  # something had blocked the loop
        StepSucceeded("late", 2, 70.0, None),
        StepCancelled("stopped", 1, 80.0, "the run stops", None),
    )

    backoffs = {
        name: [(bar.start_ms, bar.end_ms) for bar in bars(view, name) if bar.kind == "backoff"]
        for name in view.steps
    }

    assert backoffs == {"late": [(10.0, 40.0)], "stopped": [(20.0, 80.0)]}
    model = PageModel(view, 80.0)
    for name, waits in {"late": [30.0, None], "stopped": [60.0]}.items():
        [(_, rows)], _ = model.attempts_by_segment(view.steps[name])
        assert [row.backoff_ms for row in rows] == waits  # the details say the same


@given(st.floats(0, 1e9), st.floats(0, 1e9), st.floats(0.001, 1e9))
def test_every_bar_is_inside_the_timeline(start_ms: float, more_ms: float, span_ms: float) -> None:
    bar = Timeline.until(span_ms).bar("attempt", start_ms, start_ms + more_ms)

    assert 0 <= bar.left <= 100
    assert bar.width >= 0
    assert bar.left + bar.width <= 100.000001


# Segments.


def test_the_axis_has_a_narrow_break_however_long_the_pause_was() -> None:
    view = RunView(RESUMED)
    timeline = Timeline.until(view.at_ms, view.segments)

    (pause,) = timeline.breaks(view.pauses_ms)

    assert (pause.segment, pause.pause_ms) == (2, pytest.approx(PAUSE_S * 1000))
    assert pause.left == timeline.at(1200.0, 1) == pytest.approx(0.6 * (100 - GAP))
    assert pause.width == GAP
    assert timeline.at(1200.0, 2) == timeline.at(1200.0) == pytest.approx(pause.left + GAP)
    assert timeline.at(2000.0) == 100.0


@pytest.mark.parametrize("times", [1, 5, 60])
def test_breaks_leave_room_for_bars(times: int) -> None:
    view = RunView(crashed_often(times))
    breaks = Timeline.until(view.at_ms, view.segments).breaks(view.pauses_ms)

    assert len(breaks) == times
    assert sum(each.width for each in breaks) <= 25.0 + 1e-9


# Icons.


def test_an_icon_that_the_next_one_would_cover_is_crowded() -> None:
    error = ValueError("no")
    view = view_of(
        AttemptStarted("a", 1, 0.0),
        AttemptFailed("a", 1, 500.0, error, 0.0),
        AttemptStarted("a", 2, 500.0),
        AttemptFailed("a", 2, 900.0, error, 0.0),
        AttemptStarted("a", 3, 900.0),
        ThreadAbandoned("a", 3, 905.0),
        AttemptFailed("a", 3, 905.0, StepTimeoutError("a", 3, 5.0, "attempt"), 0.0),
        AttemptStarted("a", 4, 905.0),
        StepFailed("a", 4, 1000.0, error),
    )

    icons = icons_of(bars(view, "a"))

    assert [*icons] == [
        Icon("failed", 50.0, 1, 1, is_crowded=False),
        Icon("failed", 90.0, 2, 1, is_crowded=True),
        Icon("timed out", 90.5, 3, 1, is_crowded=False),
        Icon("abandoned", 90.5, 3, 1, is_crowded=False),
        Icon("failed", 100.0, 4, 1, is_crowded=False),
    ]


# The layers of a mapped step.


def layers_of(events: list[Event]) -> dict[str, str]:
    view = RunView(events)
    (bar,) = bars(view, "fetch")
    layers = outcome_layers(view.steps["fetch"], bar, view.at_ms, view.at_ms)
    return {layer.end: layer.path for layer in layers}


def area_below(path: str) -> float:
    """Return which share of its bar a layer covers, the lower layers included."""
    area = x = 0.0
    y = 1.0
    for corner in re.findall(r"H([^HVZ]+)V([^HVZ]+)", path):
        area += (float(corner[0]) - x) * (1 - y)
        x, y = map(float, corner)
    return area


@pytest.mark.parametrize("retried", [False, True])
def test_6_failures_in_206_attempts_take_a_small_share_of_a_bar(retried: bool) -> None:
    layers = layers_of(mapped_run(6, retried=retried))

    end = "retried" if retried else "failed"
    assert [*layers] == ["succeeded", end]
    assert 0.006 <= area_below(layers[end]) < 0.02
    assert area_below(layers["succeeded"]) > 0.9


def test_layers_stand_on_each_other_in_the_order_of_severity() -> None:
    ends: list[Event] = [
        StepFailed("fetch", 1, 50.0, ValueError("no"), 0),
        StepFailed("fetch", 1, 50.0, StepTimeoutError("fetch[1]", 1, 50.0, "attempt"), 1),
        StepCancelled("fetch", 1, 50.0, "", None, 2),
        StepSucceeded("fetch", 1, 50.0, None, 3),
    ]
    events: list[Event] = [RunStarted("r", 0.0, {"fetch": ()}), MapStarted("fetch", 0.0, 5)]
    events += [AttemptStarted("fetch", 1, 0.0, item=item) for item in range(5)]

    view = RunView([*events, *ends])
    (bar,) = bars(view, "fetch", now_ms=100.0)
    layers = outcome_layers(view.steps["fetch"], bar, 100.0, 100.0)

    assert [(layer.end, area_below(layer.path)) for layer in layers] == [
        ("succeeded", 0.6),  # a failure is at least a quarter high: more than fits
        ("running", pytest.approx(0.55)),
        ("cancelled", pytest.approx(0.35)),
        ("timed out", 0.25),
        ("failed", 0.125),
    ]


# The concurrency strip.


def attempts_of(view: RunView) -> list[AttemptView]:
    return [attempt for step in view.steps.values() for attempt in step.all_attempts()]


def test_the_strip_shows_how_many_attempts_run_at_each_time() -> None:
    view = view_of(
        AttemptStarted("a", 1, 0.0),
        AttemptStarted("b", 1, 5.0),
        StepSucceeded("a", 1, 10.0, None),
        AttemptStarted("c", 1, 10.0),  # 'c' starts as 'a' ends
        StepCancelled("b", 1, 20.0, "", None),
    )

    assert running_at(attempts_of(view), 30.0) == [(0.0, 1), (5.0, 2), (20.0, 1), (30.0, 0)]


def test_a_strip_of_many_attempts_keeps_its_peaks_in_few_points() -> None:
    events: list[Event] = []
    for number in range(3_000):
        events += [
            AttemptStarted(f"s{number}", 1, float(number)),
            StepSucceeded(f"s{number}", 1, number + 1.5, None),
        ]
    events.sort(key=lambda event: getattr(event, "at_ms", 0.0))
    strip = running_at(attempts_of(view_of(*events)), 3_001.0)

    assert len(strip) <= 401
    assert max(count for _, count in strip) == 2
    assert strip[-1] == (3_000.5, 0)
    assert [at for at, _ in strip] == sorted(at for at, _ in strip)


# The axis.


@pytest.mark.parametrize(
    ("span_ms", "texts"),
    [
        (5.0, ["0", "1 ms", "2 ms", "3 ms", "4 ms", "5 ms"]),
        (0.5, ["0", "0.1 ms", "0.2 ms", "0.3 ms", "0.4 ms", "0.5 ms"]),
        (1300.0, ["0", "200 ms", "400 ms", "600 ms", "800 ms", "1.0 s", "1.2 s"]),
        (4000.0, ["0", "500 ms", "1.0 s", "1.5 s", "2.0 s", "2.5 s", "3.0 s", "3.5 s", "4.0 s"]),
        (100_000.0, ["0", "15 s", "30 s", "45 s", "1 min", "1 min 15 s", "1 min 30 s"]),
        (
            4 * 3.6e6,
            ["0", "30 min", "1 h", "1 h 30 min", "2 h", "2 h 30 min", "3 h", "3 h 30 min", "4 h"],
        ),
        (86.4e6 * 3, ["0", "12 h", "1 d", "1 d 12 h", "2 d", "2 d 12 h", "3 d"]),
    ],
)
def test_the_axis_has_round_labels(span_ms: float, texts: list[str]) -> None:
    assert [tick.text for tick in ticks(span_ms, span_ms / 8)] == texts


@given(st.floats(0.001, 1e13))
def test_the_axis_has_at_most_ten_ticks_for_any_span(span_ms: float) -> None:
    bars_found = ticks(span_ms, span_ms / 8)

    assert 1 <= len(bars_found) <= 10
    assert len({tick.text for tick in bars_found}) == len(bars_found)
    assert 0 == bars_found[0].ms <= bars_found[-1].ms <= span_ms * 1.000001
    gaps = [b.ms - a.ms for a, b in itertools.pairwise(bars_found)]
    assert all(math.isclose(gap, gaps[0], rel_tol=1e-6) for gap in gaps)


def paused(at_ms: float, until_ms: float, by: str = "ask[3]") -> PoolPaused:
    return PoolPaused(at_ms, until_ms, "api", by, ("ask", "tell"))


def test_the_pauses_of_a_pool_cover_the_rows_of_all_its_steps() -> None:
    steps: dict[str, tuple[str, ...]] = {"ask": (), "tell": ("ask",), "free": ()}
    events: list[Event] = [
        RunStarted("r", 0.0, steps),
        AttemptStarted("ask", 1, 0.0),
        paused(1_000.0, 3_000.0),
        paused(2_000.0, 4_000.0, "tell"),  # it goes on
        paused(5_000.0, 9_000.0),
        RunFinished(10_000.0, RunStatus.PASSED),
    ]
    sections_of_run = sections(RunView(events), event_log(events), now_ms=10_000.0)
    chart = sections_of_run["gantt"]

    found = re.findall(r'<rect class="f-paused" x="(\d+)%" width="(\d+)%"', chart)
    assert found == [("10", "30"), ("50", "40")]
    assert chart.count('<use href="#pause-0">') == 2
    assert chart.count("</svg> pool paused</li>") == 1
    told = "api 7.0 s in 2 pauses, by ask[3]"
    assert f"<dt>Pool paused</dt><dd>{told}</dd>" in sections_of_run["header"]


def test_a_pool_that_is_paused_now_says_for_how_long_still() -> None:
    events: list[Event] = [RunStarted("r", 0.0, {"ask": ()}), paused(1_000.0, 9_000.0, "")]
    view = RunView(events)

    header = sections(view, event_log(events), now_ms=2_000.0)["header"]

    assert "<dd>api 1.0 s, 7.0 s left</dd>" in header
    assert [each.times for each in view.pool_pauses_until(2_000.0)] == [[(1_000.0, 2_000.0, 1)]]
    resumed = RunResumed("r", 1_500.0, 60.0, {"ask": ()}, {})
    again = RunView([*events, resumed, paused(1_600.0, 1_700.0)])
    times = [each.times for each in again.pool_pauses_until(5_000.0)]
    assert times == [[(1_000.0, 1_500.0, 1), (1_600.0, 1_700.0, 2)]]
