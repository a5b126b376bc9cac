"""The end of a run shows what did not succeed, with the verdict last, and always fits."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mapped_run import chain_run
from rich.text import Text
from watched_runs import random_events

from asyncflow import RestoredError, RunStatus
from asyncflow._views.run_end import lost_steps, verdict
from asyncflow._views.run_view import RunView
from asyncflow.events import (
    AttemptFailed,
    AttemptStarted,
    Event,
    MapStarted,
    RunFinished,
    RunResumed,
    RunStarted,
    StepCancelled,
    StepFailed,
    StepSkipped,
    StepSucceeded,
)
from asyncflow.html_report._page_model import PageModel
from asyncflow.live._end import run_end
from asyncflow.live._theme import ASCII, UNICODE, Theme

STOP = "step 'train' failed and fail_fast is on"


def lines_of(
    events: Iterable[Event], width: int = 79, height: int = 21, theme: Theme = UNICODE
) -> list[str]:
    view = RunView(events)
    lines = run_end(view, width=width, height=height, theme=theme, title=Text("run r"))
    assert all(line.cell_len <= width for line in lines)
    assert 1 <= len(lines) <= height
    return [re.sub(r"(test_end.py\", line) \d+", r"\1 N", line.plain.rstrip()) for line in lines]


def raised(error: Exception, depth: int = 1) -> Exception:
    """Return the error as it is after it was raised in a function that functions called."""

    def fail(left: int) -> None:
        if left > 1:
            fail(left - 1)
        raise error

    try:
        fail(depth)
    except Exception as caught:
        return caught
    raise AssertionError


def run_of_40(errors: Mapping[str, Exception], *, more: Iterable[Event] = ()) -> list[Event]:
    """Return the events of a run in which 15 steps succeed, 3 of them at their second attempt."""
    names = [f"prepare_{number}" for number in range(15)]
    skipped = [f"publish_{number}" for number in range(25 - len(errors))]
    events: list[Event] = [RunStarted("r", 0.0, dict.fromkeys([*names, *errors, *skipped], ()))]
    for at, name in enumerate(names):
        events.append(AttemptStarted(name, 1, float(at)))
        if at < 3:
            events.append(AttemptFailed(name, 1, at + 0.5, ValueError("x"), 0.0))
            events.append(AttemptStarted(name, 2, at + 0.6))
        events.append(StepSucceeded(name, 2 if at < 3 else 1, at + 0.9, None))
    for at, (name, error) in enumerate(errors.items()):
        events.append(AttemptStarted(name, 1, 20.0))
        events.append(StepFailed(name, 1, 1_200.0 + at, error))
    events += [StepSkipped(name, 1_300.0, STOP) for name in skipped]
    return [*events, *more, RunFinished(4_900.0, RunStatus.FAILED, STOP)]


def test_only_what_did_not_succeed_is_shown_and_the_verdict_is_last() -> None:
    lines = lines_of(run_of_40({"train": raised(ValueError("no such row"))}), width=120)

    assert lines == [
        "run r",
        "✗ FAILED     train  1.2 s",
        '  File "tests/live/test_end.py", line N, in raised',
        "    fail(depth)",
        '  File "tests/live/test_end.py", line N, in fail',
        "    raise error",
        "  ValueError: no such row",
        f"⊘ SKIPPED    24 steps: {STOP}",
        "✗ FAILED in 4.9 s: 15 succeeded, 1 failed, 24 skipped, "
        "3 retried (prepare_0, prepare_1, prepare_2)",
    ]


def test_a_step_whose_process_died_was_not_retried() -> None:
    events = [
        *(RunStarted("r", 0.0, {"a": ()}), AttemptStarted("a", 1, 1.0)),
        RunResumed("r", 2.0, 9.0, {"a": ()}, {}, unfinished={"a": "it had not finished"}),
        *(AttemptStarted("a", 2, 2.0), StepSucceeded("a", 2, 3.0, None)),
        RunFinished(4.0, RunStatus.PASSED),
    ]

    assert "retried" not in verdict(RunView(events))


def test_of_a_deep_traceback_the_innermost_three_frames_are_shown() -> None:
    lines = lines_of(run_of_40({"train": raised(ValueError("x"), 9)}))

    assert [line.strip() for line in lines if "File" in line or "(left" in line] == [
        'File "tests/live/test_end.py", line N, in fail',
        "fail(left - 1)",
        'File "tests/live/test_end.py", line N, in fail',
        "fail(left - 1)",
        'File "tests/live/test_end.py", line N, in fail',
    ]


@pytest.mark.parametrize(("failures", "frames"), [(2, 6), (3, 6), (4, 4), (5, 0), (8, 0)])
def test_many_failures_have_less_detail_each(failures: int, frames: int) -> None:
    errors = {f"train_{n}": raised(ValueError(f"error {n}"), 5) for n in range(failures)}

    lines = lines_of(run_of_40(errors), height=22)  # the verdict takes two lines

    assert sum("✗ FAILED     train_" in line for line in lines) == failures
    assert sum("ValueError: error" in line for line in lines) == failures
    assert sum("File" in line for line in lines) == frames


def test_failures_that_do_not_fit_are_counted() -> None:
    errors = {f"train_{n}": ValueError(f"error {n}") for n in range(20)}

    lines = lines_of(run_of_40(errors), height=12)

    assert lines[1] == "✗ FAILED     train_0  1.2 s"
    assert lines[7] == "… and 17 more with errors"
    assert "20 failed, 5 skipped, 3 retried (prepare_0," in lines[-2]


def test_a_long_message_is_wrapped_and_cut() -> None:
    lines = lines_of(run_of_40({"train": ValueError("word " * 200)}))

    assert [line[:7] for line in lines[2:10]] == ["  Value", *["  word "] * 7]
    assert lines[9].endswith("…")


def test_the_lines_of_a_message_are_shown_as_far_as_there_is_room() -> None:
    error = ValueError("2 fields are wrong\n\nday\n    is missing\x1b[2J\nprice\n    is negative")

    roomy = lines_of(run_of_40({"train": error}))
    tight = lines_of(run_of_40({"train": error}), height=7)

    assert roomy[2:7] == [
        "  ValueError: 2 fields are wrong",
        "  day",
        "      is missing\\x1b[2J",
        "  price",
        "      is negative",
    ]
    assert tight[2:4] == [
        "  ValueError: 2 fields are wrong",
        "  day     is missing\\x1b[2J price     is negative",
    ]


def test_a_group_is_shown_with_its_first_error() -> None:
    group = ExceptionGroup("2 failed", [raised(ValueError("first")), ValueError("second")])

    lines = lines_of(run_of_40({"train": group}))

    assert '  File "tests/live/test_end.py", line N, in fail' in lines
    assert "  ExceptionGroup: 2 failed (2 sub-exceptions): ValueError: first" in lines


def test_the_error_of_an_item_is_shown_once() -> None:
    group = ExceptionGroup("the first is t[3]: OSError: x", [OSError("x")])

    lines = lines_of(run_of_40({"train": group}))

    shown = [line for line in lines if "OSError" in line]
    assert shown == ["  ExceptionGroup: the first is t[3]: OSError: x (1 sub-exception)"]


def test_the_current_directory_may_be_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace = 'Traceback (most recent call last):\n  File "/srv/etl.py", line 3, in go'
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()

    lines = lines_of(run_of_40({"train": RestoredError("ValueError", "x", trace)}))

    assert lines[2] == '  File "/srv/etl.py", line 3, in go'


def test_the_frames_of_a_cause_are_left_out() -> None:
    error = ValueError("effect")
    error.__cause__ = raised(OSError("cause"), 3)

    lines = lines_of(run_of_40({"train": raised(error)}))

    assert [line.strip() for line in lines if "File" in line or "Error" in line] == [
        'File "tests/live/test_end.py", line N, in raised',
        'File "tests/live/test_end.py", line N, in fail',
        "ValueError: effect",
    ]


def test_lost_steps_are_grouped_by_reason_the_cancelled_ones_first() -> None:
    names = dict.fromkeys(("bad", "a", "b", "c", "d", "e", "f", "g", "h", "by condition"), ())
    events = [
        RunStarted("r", 0.0, names, max_retries={"bad": 2}),
        MapStarted("bad", 1.0, 3),
        AttemptStarted("bad", 1, 1.0, item=0),
        StepFailed("bad", 1, 2.0, ValueError("x"), item=0),
        StepFailed("bad", 0, 2.0, ExceptionGroup("1 of 3 items failed", [ValueError("x")])),
        StepSkipped("a", 2.0, "reason 1"),
        *(StepSkipped(name, 2.0, "reason 2") for name in "bc"),
        AttemptStarted("d", 1, 1.0),
        StepCancelled("d", 1, 2.0, "it had to stop", None),
        AttemptStarted("e", 1, 1.0),
        StepCancelled("e", 1, 2.0, "it had to stop", RuntimeError("no clean-up")),
        *(StepSkipped(name, 2.0, f"reason {name}") for name in "fgh"),
        StepSkipped("by condition", 2.0, "its condition was false", by_condition=True),
        RunFinished(3.0, RunStatus.FAILED),
    ]

    assert lines_of(events) == [
        "run r",
        "✗ FAILED     bad  1 of 3 items failed, 1 ms",
        "  ValueError: x, [0]",
        "■ CANCELLED  e  1 ms",
        "  RuntimeError: no clean-up",
        "■ CANCELLED  d: it had to stop",
        "⊘ SKIPPED    2 steps (b, c): reason 2",
        "⊘ SKIPPED    a: reason 1",
        "⊘ SKIPPED    f: reason f",
        "… and 2 steps for 2 other reasons",
        "✗ FAILED in 3 ms: 1 failed, 2 cancelled, 7 skipped",
    ]


def test_a_passed_run_has_one_line() -> None:
    events = [
        RunStarted("r", 0.0, {"a": ()}),
        AttemptStarted("a", 1, 1.0),
        StepSucceeded("a", 1, 1.0, None),
        RunFinished(2.0, RunStatus.PASSED),
    ]

    assert lines_of(events) == ["✓ PASSED in 2 ms: 1 succeeded  run r"]
    assert lines_of(events, width=30) == ["✓ PASSED in 2 ms: 1 succeeded"]
    assert lines_of([events[0], events[-1]], theme=ASCII) == ["v PASSED in 2 ms: 1 pending  run r"]
    assert verdict(RunView([RunStarted("r", 0.0, {}), events[-1]])) == "PASSED in 2 ms: no steps"


def test_a_run_that_passed_names_what_was_retried_and_counts_what_failed() -> None:
    names, error = [f"s{n}" for n in range(5)], OSError("away")
    retries: list[Event] = [
        event
        for name in names
        for event in (
            AttemptStarted(name, 1, 1.0),
            AttemptFailed(name, 1, 1.0, error, 0.0),
            AttemptStarted(name, 2, 1.0),
            StepSucceeded(name, 2, 1.0, None),
        )
    ]
    start = RunStarted("r", 0.0, dict.fromkeys(names, ()) | {"fetch": (), "parse": ("fetch",)})
    events = [start, *retries, *chain_run()[3:]]

    assert lines_of(events, width=150)[-1].startswith(
        "✓ PASSED in 12 ms: 7 succeeded, 5 retried (s0, s1, s2, 2 more), 1 item failed, tolerated"
    )


def test_what_failed_at_its_last_attempt_was_not_retried() -> None:
    error = OSError("away")

    def twice(step: str, item: int | None = None) -> list[Event]:
        return [
            AttemptStarted(step, 1, 1.0, item=item),
            AttemptFailed(step, 1, 2.0, error, 0.0, item=item),
            AttemptStarted(step, 2, 2.0, item=item),
            StepFailed(step, 2, 3.0, error, item=item),
        ]

    start = RunStarted("r", 0.0, {"fetch": (), "load": ("fetch",)})
    items = [MapStarted("fetch", 0.0, 1), *twice("fetch", 0), StepSucceeded("fetch", 0, 3.0, None)]
    view = RunView([start, *items, *twice("load"), RunFinished(4.0, RunStatus.FAILED)])

    assert verdict(view) == "FAILED in 4 ms: 1 succeeded, 1 failed, 1 item failed, tolerated"
    assert [PageModel(view, 4.0).traits(step) for step in view.steps.values()] == ["failed"] * 2


@given(
    seed=st.integers(0, 100_000),
    cut=st.none() | st.integers(1, 60),
    width=st.integers(1, 130),
    height=st.integers(1, 40),
)
def test_the_end_of_any_run_fits(seed: int, cut: int | None, width: int, height: int) -> None:
    events = random_events(seed, cut, whole=True)
    view = RunView(events)

    lines = lines_of(events, width, height)

    if width > 40:
        assert f"{view.word} in" in "\n".join(lines)
    shown = {step.name for step in view.failures}
    shown |= {name for each in lost_steps(view) for name in each.names}
    assert shown == {
        name
        for name, step in view.steps.items()
        if step.status in ("FAILED", "CANCELLED", "SKIPPED") and not step.by_condition
    }


def test_a_run_that_has_not_ended_says_for_how_long_it_runs_and_what_is_left() -> None:
    running = RunView([RunStarted("r", 0.0, {"a": ()}), AttemptStarted("a", 1, 1.0)])
    rerun = RunView([RunStarted("r", 0.0, {"a": ()}, rerun_of="o"), AttemptStarted("a", 1, 1.0)])

    assert verdict(running, 12_000.0) == "RUNNING for 12.0 s: 1 running"
    said = verdict(running, 12_000.0, usual_ms=40_000.0)
    assert said == "RUNNING for 12.0 s, about 28 s left: 1 running"
    assert verdict(rerun, 12_000.0, usual_ms=40_000.0) == "RUNNING for 12.0 s: 1 running"
    died = verdict(running, 12_000.0, has_died=True, usual_ms=40_000.0)
    assert died == "ORPHANED after 12.0 s: 1 orphaned"
