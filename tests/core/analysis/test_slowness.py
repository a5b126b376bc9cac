"""What a run took longer for than it usually does."""

from __future__ import annotations

from typing import Any

import pytest

from asyncflow import RunStatus
from asyncflow._core.analysis.slowness import Slower
from asyncflow._views.run_end import verdict
from asyncflow._views.run_view import RunView
from asyncflow._views.slowness import slowness_of, slowness_text
from asyncflow.events import AttemptStarted, Event, RunFinished, RunStarted, StepSucceeded

USUAL = {"extract": 500.0, "train": 1_200.0, "load": 0.0, "beside": 100.0, "gone": 1.0}


def run(status: RunStatus = RunStatus.PASSED, **start: Any) -> RunView:
    """Return a run of 2.3 s, of which `train` took 1.8 s, beside a step of 2.2 s."""
    edges: dict[str, tuple[str, ...]] = {"extract": (), "beside": (), "train": ("extract",)}
    events: list[Event] = [
        RunStarted("r", 0.0, {**edges, "load": ("train",)}, **start),
        *[AttemptStarted(name, 1, 0.0) for name in ("extract", "beside")],
        StepSucceeded("extract", 1, 500.0, None),
        AttemptStarted("train", 1, 500.0),
        StepSucceeded("beside", 1, 2_200.0, None),
        StepSucceeded("train", 1, 2_300.0, None),
        AttemptStarted("load", 1, 2_300.0),
        StepSucceeded("load", 1, 2_300.0, None),
        RunFinished(2_300.0, status),
    ]
    return RunView(events)


def brief(took_ms: float) -> RunView:
    """Return a run of one step."""
    return RunView(
        [
            RunStarted("r", 0.0, {"extract": ()}),
            AttemptStarted("extract", 1, 0.0),
            StepSucceeded("extract", 1, took_ms, None),
            RunFinished(took_ms, RunStatus.PASSED),
        ]
    )


def test_what_people_can_see_is_slower_from_a_tenth_of_a_second_on() -> None:
    assert slowness_of(brief(129.0), 30.0, {"extract": 30.0}) is None
    assert slowness_of(brief(130.0), 30.0, {"extract": 30.0}) == Slower(30.0, (("extract", 100.0),))


def test_a_slow_run_names_the_steps_of_its_critical_path_that_took_longer() -> None:
    found = slowness_of(run(), 1_700.0, USUAL)

    assert found == Slower(1_700.0, (("train", 600.0),))
    assert verdict(run(), slower=found) == (
        "PASSED in 2.3 s (usually 1.7 s: train +600 ms): 4 succeeded"
    )


@pytest.mark.parametrize(
    ("view", "usual_ms"),
    [
        (run(), None),
        (run(), 2_000.0),  # by less than a fifth
        (run(), 5_000.0),
        (run(RunStatus.FAILED), 1_700.0),
        (run(rerun_of="other"), 1_700.0),
    ],
)
def test_a_run_that_can_not_be_compared_or_was_not_notably_slower_says_nothing(
    view: RunView, usual_ms: float | None
) -> None:
    assert slowness_of(view, usual_ms, USUAL) is None


def test_two_steps_are_named_and_the_others_counted() -> None:
    steps = (("a", 900.0), ("b\x1b", 80.0), ("c", 20.0), ("d", 15.0))

    assert slowness_text(Slower(1_000.0, steps)) == (
        "usually 1.0 s: a +900 ms, b\\x1b +80 ms, 2 more steps"
    )
    assert slowness_text(Slower(1_000.0)) == "usually 1.0 s"
    assert slowness_text(None) == ""
