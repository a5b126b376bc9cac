"""A running step's row shows how far it is, as much of it as fits."""

from __future__ import annotations

import pytest

from asyncflow._views.progress import progress_text
from asyncflow.events import (
    AttemptFailed,
    AttemptStarted,
    MapStarted,
    RunResumed,
    StepAttached,
    StepLogged,
    StepProgressed,
    StepSucceeded,
)
from asyncflow.live._theme import ASCII

from .test_frame import lines_of, run_of, started

NAME = "train_the_forecast_model"


def row(
    *reports: StepProgressed, width: int = 79, name: str = NAME, now_ms: float | None = None
) -> str:
    run = run_of([started(name), AttemptStarted(name, 1, 0.0), *reports])
    return lines_of(run, width, now_ms=reports[-1].at_ms if now_ms is None else now_ms)[1]


def rows_done(done: float, total: float | None = 5_000, at_ms: float = 4_000.0) -> StepProgressed:
    return StepProgressed(NAME, 1, at_ms, done, total, "rows")


class TestText:
    @pytest.mark.parametrize(
        ("done", "total", "at_ms", "text"),
        [
            (1_204, 5_000, 4_000.0, "1,204 of 5,000 rows (24 %), 301/s, 12.6 s left"),
            (1_204, None, 4_000.0, "1,204 rows, 301/s"),
            (2.5, 10, 5_000.0, "2.5 of 10 rows (25 %), 30/min, 15.0 s left"),
            (1, 3, 7_200_000.0, "1 of 3 rows (33 %), 0.5/h, 4 h 0 min left"),
            (0, 5_000, 4_000.0, "0 of 5,000 rows (0 %)"),
            (4_999.9, 5_000, 1_000.0, "4,999.9 of 5,000 rows (99 %), 5,000/s, 0.02 ms left"),
            (6_000, 5_000, 1_000.0, "6,000 of 5,000 rows (100 %), 6,000/s"),
            (3, 0, 1_000.0, "3 of 0 rows, 3/s"),
            (7, 10, 0.0, "7 of 10 rows (70 %)"),
        ],
    )
    def test_it_says_what_can_be_known(
        self, done: float, total: float | None, at_ms: float, text: str
    ) -> None:
        assert str(progress_text(rows_done(done, total, at_ms), 0.0, at_ms)) == text

    def test_the_time_left_shrinks_between_two_reports(self) -> None:
        report = rows_done(1_000)

        assert progress_text(report, 0.0, 4_000.0).left == "16.0 s left"
        assert progress_text(report, 0.0, 9_000.0).left == "11.0 s left"
        assert progress_text(report, 0.0, 30_000.0).left == ""

    def test_a_unit_cannot_move_the_cursor(self) -> None:
        assert progress_text(StepProgressed("s", 1, 1.0, 1, None, "\x1b[2J"), 0.0, 1.0).counted == (
            "1 \\x1b[2J"
        )


class TestRow:
    def test_a_wide_terminal_shows_bar_percentage_count_rate_and_time_left(self) -> None:
        assert row(rows_done(1_204), width=120).split("train_the_forecast_model  ")[1] == (
            "━━────────── 24 %, 1,204 of 5,000 rows, 301/s, 12.6 s left          4.0 s"
        )

    def test_at_80_columns_a_short_name_leaves_room_for_more(self) -> None:
        report = StepProgressed("train", 1, 4_000.0, 1_204, 5_000, "rows")

        assert row(report, name="train") == (
            "tier 1  ▷ RUNNING    train  ━─────── 24 %, 1,204 of 5,000 rows            4.0 s"
        )

    @pytest.mark.parametrize("width", [30, 43, 50])
    def test_a_narrow_terminal_shows_the_percentage_alone(self, width: int) -> None:
        line = row(rows_done(1_204), width=width)

        assert line.endswith(" 24 %")
        assert "rows" not in line

    def test_a_count_that_does_not_fit_loses_its_end(self) -> None:
        report = StepProgressed("s", 1, 1.0, 10, None, "rows of the table of all orders, by day")

        assert row(report, width=60, name="s").startswith("1  ▷ RUNNING    s  10 rows of the")

    def test_the_attempt_is_shown_if_there_is_room(self) -> None:
        name = "s"
        run = run_of(
            [
                started(name, max_retries={name: 3}),
                AttemptStarted(name, 1, 0.0),
                StepProgressed(name, 1, 10.0, 1, 2),
                AttemptFailed(name, 1, 20.0, ValueError("x"), 0.0),
                AttemptStarted(name, 2, 1_000.0),
                StepProgressed(name, 2, 2_000.0, 1, 2),
            ]
        )

        assert (
            "50 %, 1 of 2, 1/s, 1.0 s left, attempt 2 of 3" in lines_of(run, 119, now_ms=2_000.0)[1]
        )

    def test_progress_is_that_of_the_running_attempt(self) -> None:
        events = [started("s"), AttemptStarted("s", 1, 0.0), StepProgressed("s", 1, 10.0, 1, 2)]
        failed = AttemptFailed("s", 1, 20.0, ValueError("x"), 5_000.0)

        waiting = lines_of(run_of([*events, failed]))[1]
        again = lines_of(run_of([*events, failed, AttemptStarted("s", 2, 30.0)]))[1]
        ended = lines_of(run_of([*events, StepSucceeded("s", 1, 20.0, None)]))[1]
        resumed = run_of([*events, RunResumed("r", 20.0, 1.0, {"s": ()}, {})])

        assert not any("50 %" in line for line in (waiting, again, ended, lines_of(resumed)[1]))
        assert "next attempt in 5 s" in waiting

    def test_a_mapped_step_shows_how_far_its_running_items_are(self) -> None:
        run = run_of(
            [
                started("m"),
                MapStarted("m", 0.0, 4),
                *(AttemptStarted("m", 1, 0.0, item=at) for at in range(3)),
                StepProgressed("m", 1, 5.0, 1, 4, "rows", item=1),
                StepProgressed("m", 1, 5.0, 1, 5, "rows", item=0),
                StepProgressed("m", 1, 5.0, 7, None, "rows", item=2),
                StepSucceeded("m", 1, 9.0, None, item=1),
                AttemptStarted("m", 1, 9.0, item=3),
                StepProgressed("m", 1, 9.0, 1, 4, "rows", item=3),
                AttemptFailed("m", 1, 9.0, ValueError("x"), 9.0, item=3),
            ]
        )

        assert "1 of 4 items, [0] 20 %, [2] 7 rows " in lines_of(run)[1]

    def test_other_notes_change_no_frame(self) -> None:
        run = run_of([started("s"), AttemptStarted("s", 1, 0.0)])
        before = lines_of(run)

        run.apply(
            StepLogged("s", 1, 1.0, 20, "app", "hello"),
            StepAttached("s", 1, 2.0, "a.txt", "text/plain", b"hello"),
        )

        assert lines_of(run) == before

    def test_an_encoding_without_the_bar_gets_ascii(self) -> None:
        run = run_of([started("s"), AttemptStarted("s", 1, 0.0), rows_done(1)])
        run.apply(StepProgressed("s", 1, 1.0, 1, 2, "é"))

        assert "#---" in lines_of(run, theme=ASCII)[1] or "##" in lines_of(run, theme=ASCII)[1]
