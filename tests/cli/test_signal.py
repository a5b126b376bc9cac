"""``signal`` answers a run that waits, and ``run``, ``runs`` and ``show`` say that it does."""

from __future__ import annotations

import re
from typing import Any

import pytest

Shell = Any

ORDERS = """
    from asyncflow import Pipeline, after

    orders = Pipeline("orders")

    @orders.step
    async def draft() -> str:
        return "draft"

    approved = orders.signal("approved", bool, depends_on=[draft])

    @orders.step
    async def publish(approved: bool = after(approved)) -> bool:
        return approved
"""


@pytest.fixture
def waiting(shell: Shell) -> str:
    """Let a run wait, and return what was said at its end."""
    shell.write("orders.py", ORDERS)
    said: str = shell("run", "orders", "--run-id", "r1", exits=5).stderr
    return said


def test_a_run_that_waits_exits_with_5_and_says_how_to_answer(waiting: str, shell: Shell) -> None:
    assert "To answer it, of type bool: asyncflow signal r1 approved true\n" in waiting
    assert "Then resume it: asyncflow resume r1 orders" in waiting


def test_a_signal_is_stored_and_the_run_resumes(waiting: str, shell: Shell) -> None:
    still = shell("run", "orders", "--run-id", "r1", exits=5).stderr
    answered = shell("signal", "r1", "approved", "true").stderr
    listed = shell("runs").stdout
    shown = shell("show", "r1").stderr
    report = shell("resume", "r1", "orders").stdout

    assert "run r1 still waits for a signal, so nothing ran; this is its report" in still
    assert answered == (
        "signal 'approved' of run r1 is stored\n"
        "To resume it, unless a service does: asyncflow resume r1 MODULE:PIPELINE\n"
    )
    assert "1 of 3, has an answer for approved" in listed
    assert shown == (
        "It has an answer for approved; to resume it: asyncflow resume r1 MODULE:PIPELINE\n"
    )
    assert "Pipeline PASSED" in report
    assert "[SUCCESS] approved" in report


ASKING = """
    from dataclasses import dataclass
    from enum import Enum
    from typing import Literal
    from asyncflow import Pipeline

    orders = Pipeline("orders")

    class Speed(Enum):
        SLOW = "slow"
        FAST = "fast"

    @dataclass
    class Decision:
        ok: bool
        speed: Speed
        why: str = ""

    @orders.step
    async def draft(order: str = "17 chairs") -> str:
        return f"offer for {order}"

    orders.signal("approved", bool, depends_on=[draft], deadline_ms=864e5, default=False,
                  description=lambda draft: f"Send it?\\n{draft!r}")
    orders.signal("decided", Decision, deadline_ms=864e5)
    orders.signal("rated", Literal["good", "bad"])
    orders.signal("sizes", list[int])
"""


RATED = """
    from dataclasses import dataclass

    from asyncflow import Pipeline

    orders = Pipeline("orders")

    @dataclass
    class Rating:
        stars: int

        def __post_init__(self):
            if not self.stars:
                raise ValueError("too few")

    orders.signal("rated", Rating)
"""


def test_what_a_run_waits_for_is_listed_with_types_and_commands(shell: Shell) -> None:
    shell.write("orders.py", ASKING)
    ended = shell("run", "orders", "--run-id", "r1", exits=5).stderr
    shell("signal", "r1", "rated", '"good"')

    listed = shell("signal", "r1").stdout
    shown = shell("show", "r1").stdout

    time = r"2\d\d\d-[-0-9]+ [:0-9]+ UTC[^\n,]*"
    asked = (
        rf"decided waits for Decision, since {time}, until {time}, then the step fails\n"
        rf"rated waits for Literal\['good', 'bad'\], since {time}; its answer has come\n"
        rf"sizes waits for list\[int\], since {time}\n"
        rf"approved waits for bool, since {time}, until {time}, then the answer is False\n"
        r"  Send it\?\n  'offer for 17 chairs'\n"
    )
    commands = (
        "To answer decided: asyncflow signal r1 decided "
        """'{"ok": true, "speed": "fast"}'\n"""
        "To answer sizes: asyncflow signal r1 sizes JSON\n"
        "To answer approved: asyncflow signal r1 approved true\n"
    )
    assert re.fullmatch(asked + re.escape(commands), listed)
    assert re.search(asked, shown)
    assert re.search(asked.replace("; its answer has come", "") + "To answer it, of type", ended)
    missing = shell("signal", "r1", "approved", exits=2).stderr
    assert "a value for 'approved' is missing; `asyncflow signal r1` says what it takes" in missing
    shell("signal", "r1", "decided", """{"ok": true, "speed": "fast"}""")


def test_an_answer_that_the_run_has_refused_is_asked_for_again(shell: Shell) -> None:
    shell.write("orders.py", RATED)
    shell("run", "orders", "--run-id", "r1", exits=5)
    shell("signal", "r1", "rated", '{"stars": 0}')
    shell("resume", "r1", "orders", exits=5)

    for command in ("signal", "show"):
        asked = shell(command, "r1").stdout
        assert re.search(r"rated waits for Rating.*\n  An answer was refused: .*too few", asked)


def test_a_run_that_waits_for_nothing_is_said_to(shell: Shell) -> None:
    shell.write("orders.py", ORDERS)
    shell("run", "orders", "--run-id", "r1", exits=5)
    shell("signal", "r1", "approved", "true")
    shell("resume", "r1", "orders")

    assert shell("signal", "r1").stderr == "run r1 waits for no signal\n"


def test_who_has_answered_is_shown_with_the_note(waiting: str, shell: Shell) -> None:
    shell("signal", "r1", "approved", "true", "--by", "Zoë", "--note", "see 4711\nand 4712")
    shell("signal", "r1", "approved", "true", "--by", "Bob")
    shell("resume", "r1", "orders")
    run, step = shell("show", "r1").stdout, shell("show", "r1", "approved").stdout

    assert "answered by Zoë: see 4711 …" in run
    assert re.search(r"^Answered by Zoë, 2\d\d\d-.*\n  see 4711\n  and 4712\n", step, re.MULTILINE)
    long = shell("signal", "r1", "approved", "true", "--by", 201 * "x", exits=1).stderr
    assert "sent_by must have 1 to 200 characters" in long


def test_a_signal_that_can_not_be_right_is_refused(waiting: str, shell: Shell) -> None:
    unquoted = shell("signal", "r1", "approved", "yes", exits=2).stderr
    assert "is no JSON" in unquoted
    assert "yes and no are true and false" in unquoted
    wrong = shell("signal", "r1", "approved", '"yes"', exits=1).stderr
    assert "signal 'approved' must be of type boolean, not \"yes\"" in wrong
    shell("signal", "r2", "approved", "true", exits=4)


def test_a_negative_number_is_a_value_and_a_mistyped_option_is_not(shell: Shell) -> None:
    shell.write("orders.py", ORDERS.replace("bool", "float"))
    shell("run", "orders", "--run-id", "r1", exits=5)

    mistyped = shell("signal", "--journl", "x.db", "r1", "approved", "-5", exits=2).stderr
    shell("signal", "r1", "approved", "-1.5e3", "--journal", "asyncflow.db")
    shell("resume", "r1", "orders")

    assert "No such option" in mistyped
    assert "--journl" in mistyped
    assert shell.json("show", "r1", "publish", "--json")["output"] == -1500


def test_a_value_that_is_nested_too_deeply_is_refused(waiting: str, shell: Shell) -> None:
    said = shell("signal", "r1", "approved", 100_000 * "[", exits=2).stderr

    assert "JSON is nested too deeply" in said


def test_what_shows_runs_knows_one_that_waits(waiting: str, shell: Shell) -> None:
    (listed,) = shell.json("runs", "--json", "--status", "waiting")
    shown = shell("show", "r1")

    assert listed["status"] == "WAITING"
    assert "waits for a signal" in shown.stdout
    assert "To answer it, of type bool: asyncflow signal r1 approved true\n" in shown.stderr
    assert "Then resume it: asyncflow resume r1 MODULE:PIPELINE\n" in shown.stderr
    assert "WAITING" in shell("runs").stdout
    assert "1 of 3, waits for approved" in shell("runs").stdout
    assert "0 failed" not in shell("stats", "orders").stdout


def test_the_page_of_a_run_that_waits_is_written(shell: Shell) -> None:
    shell.write("orders.py", ORDERS)

    shell("run", "orders", "--run-id", "r1", "--html", "run.html", exits=5)

    page = (shell.directory / "run.html").read_text(encoding="utf-8")
    assert "WAITING" in page
    assert "Waits for an answer: " in page
    assert "asyncflow signal r1 approved true --journal JOURNAL" in page


def test_a_run_that_waits_is_cancelled_at_once(waiting: str, shell: Shell) -> None:
    said = shell("cancel", "r1").stderr

    assert said == "run r1, which waited for a signal, has ended as cancelled\n"
    assert shell.json("runs", "--json")[0]["status"] == "INTERRUPTED"
