"""The scatter plot of run durations."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncflow.web._runs_page import HEIGHT, Dot, scatter

DOTS = st.builds(
    Dot,
    run_id=st.just("r"),
    status=st.just("PASSED"),
    started_at=st.floats(0, 4e9),
    duration_s=st.floats(0, 1e9),
)


@given(st.lists(DOTS, min_size=1, max_size=20))
def test_every_dot_is_inside_the_drawing_and_the_axes_have_marks(dots: list[Dot]) -> None:
    drawing = scatter(dots)

    assert drawing is not None
    assert [dot for _, _, dot in drawing.dots] == dots
    assert all(0 <= x <= 100 and 0 <= y <= HEIGHT for x, y, _ in drawing.dots)
    assert 1 <= len(drawing.durations) <= 12
    assert len(drawing.times) <= 7


def test_later_runs_are_further_right_and_longer_ones_higher() -> None:
    drawing = scatter([Dot("a", "PASSED", 0, 0.5), Dot("b", "PASSED", 3_600, 50)])

    assert drawing is not None
    (x1, y1, _), (x2, y2, _) = drawing.dots
    assert (x1, x2) == (2.5, 97.5)
    assert y2 < y1
    assert [mark.words for mark in drawing.durations] == ["100 ms", "1 s", "10 s", "1 min"]
    assert [mark.value for mark in drawing.times] == [0, 600, 1_200, 1_800, 2_400, 3_000, 3_600]


def test_a_single_run_is_in_the_middle() -> None:
    drawing = scatter([Dot("a", "PASSED", 1_000, 1)])

    assert drawing is not None
    assert drawing.dots[0][0] == 50


@pytest.mark.parametrize(
    ("span_s", "form"), [(30, "second"), (600, "minute"), (90_000, "moment"), (900_000, "day")]
)
def test_the_time_format_suits_the_span(span_s: float, form: str) -> None:
    drawing = scatter([Dot("a", "PASSED", 0, 1), Dot("b", "PASSED", span_s, 1)])

    assert drawing is not None
    assert drawing.form == form


def test_no_runs_have_no_drawing() -> None:
    assert scatter([]) is None
