"""What a user may type next can be pasted into a shell, whatever runs and steps are called."""

from __future__ import annotations

import shlex

import pytest
from results import failed, report_of, succeeded

from asyncflow import RestoredOutput, RunReport, RunStatus
from asyncflow._views.next_command import command_of, next_commands
from asyncflow._views.received import received_text
from asyncflow._views.run_view import RunView
from asyncflow.events import (
    AttemptStarted,
    MapStarted,
    RunFinished,
    RunStarted,
    StepFailed,
    StepSucceeded,
)

NAME = "ask 'me'"
ERRORS = [KeyError("x"), OSError("y"), OSError("z")]


def ended(status: RunStatus) -> RunReport:
    waits = succeeded(NAME, waiting_since=1.0)
    return RunReport("a b", [waits], total_duration_ms=1.0, wall_time=0.0, status=status)


def test_each_word_of_a_command_is_quoted() -> None:
    line = command_of("resume", "$(id)", "etl.py:pipeline", journal="my runs.db")

    assert line == "asyncflow resume '$(id)' etl.py:pipeline --journal 'my runs.db'"
    assert command_of("runs") == "asyncflow runs"


@pytest.mark.parametrize(
    ("status", "hints"),
    [
        (RunStatus.PASSED, ["To show it again: asyncflow show 'a b' --journal r.db"]),
        (RunStatus.FAILED, ["To resume it: RESUME"]),
        (RunStatus.ORPHANED, ["To resume it: RESUME"]),
        (
            RunStatus.WAITING,
            [
                f"To answer it: asyncflow signal 'a b' {shlex.quote(NAME)} JSON --journal r.db",
                "Then resume it: RESUME",
            ],
        ),
    ],
)
def test_what_follows_depends_on_how_the_run_ended(status: RunStatus, hints: list[str]) -> None:
    assert next_commands(ended(status), "RESUME", "r.db") == hints


def test_the_step_that_failed_first_can_be_looked_into() -> None:
    steps = failed("b", OSError(), started_ms=9.0), failed("a c", OSError()), succeeded("d")

    assert next_commands(report_of(*steps), "RESUME", "") == [
        "To see what a c did: asyncflow show r1 'a c'",
        "To resume it: RESUME",
    ]


def test_a_signal_that_has_come_is_not_asked_for_again() -> None:
    report = ended(RunStatus.WAITING)

    assert next_commands(report, "RESUME", "", [NAME]) == [
        "It has an answer for ask 'me'; to resume it: RESUME"
    ]
    assert next_commands(report_of(), "RESUME", "") == ["To show it again: asyncflow show r1"]


@pytest.mark.parametrize(
    ("step", "secret", "said"),
    [
        ("(rows=extract, day, limit)", (), "load received rows=[1, 2], day='monday'"),
        ("(rows=extract, key)", ("extract",), "load received rows=redacted, key=redacted"),
        ("(limit)", (), ""),
        ("(rows=gone)", (), ""),
    ],
)
def test_what_the_first_step_that_failed_has_received_comes_first(
    step: str, secret: tuple[str, ...], said: str
) -> None:
    view = RunView(
        [
            RunStarted(
                *("r", 0.0, {"extract": (), "load": ("extract",)}),
                inputs={"day": "monday", "key": RestoredOutput("redacted")},
                fingerprints={"extract": ("()", ""), "load": (step, "")},
                secret=secret,
            ),
            AttemptStarted("extract", 1, 0.0),
            StepSucceeded("extract", 1, 1.0, [1, 2]),
            AttemptStarted("load", 1, 1.0),
            StepFailed("load", 1, 2.0, KeyError("x")),
            RunFinished(2.0, RunStatus.FAILED),
        ]
    )

    assert received_text(view, view.steps["load"]) == said


def test_a_step_whose_items_have_failed_says_what_the_first_of_most_of_them_has_received() -> None:
    view = RunView(
        [
            RunStarted(
                *("r", 0.0, {"names": (), "load": ("names",)}),
                fingerprints={"names": ("()", ""), "load": ("(name=names) for each of names", "")},
            ),
            AttemptStarted("names", 1, 0.0),
            StepSucceeded("names", 1, 1.0, ["a", "b", "c"]),
            MapStarted("load", 1.0, 3),
            *(AttemptStarted("load", 1, 1.0, item=at) for at in range(3)),
            *(StepFailed("load", 1, 2.0, error, item=at) for at, error in enumerate(ERRORS)),
            StepFailed("load", 0, 3.0, ExceptionGroup("all failed", ERRORS)),
            RunFinished(3.0, RunStatus.FAILED),
        ]
    )

    assert received_text(view, view.steps["load"]) == "load[1] received name='b'"
