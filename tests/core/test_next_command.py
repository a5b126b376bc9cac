"""What a user may type next can be pasted into a shell, whatever runs and steps are called."""

from __future__ import annotations

import shlex

import pytest
from results import failed, report_of, succeeded

from asyncflow import RunReport, RunStatus
from asyncflow._views.next_command import command_of, next_commands

NAME = "ask 'me'"


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
