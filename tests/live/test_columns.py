"""The width of a terminal is divided between the columns of a step's row."""

from __future__ import annotations

import pytest

from asyncflow.live._row import Columns, columns_for


@pytest.mark.parametrize(
    ("width", "columns"),
    [
        (20, Columns(tier=0, status=1, name=7, note=0, duration=9)),
        (50, Columns(tier=6, status=11, name=18, note=-2, duration=9)),
        (80, Columns(tier=6, status=11, name=18, note=28, duration=9)),
        (200, Columns(tier=6, status=11, name=30, note=136, duration=9)),
    ],
)
def test_columns_are_dropped_until_the_rest_fits_names_last(width: int, columns: Columns) -> None:
    assert columns_for(width, tier=6, name=30) == columns


@pytest.mark.parametrize("tier", [6, 7, 14])
def test_a_name_of_17_characters_stays_whole_in_80_columns(tier: int) -> None:
    # A line leaves the last column free, where some terminals would wrap it.
    columns = columns_for(79, tier=tier, name=17)

    assert columns.name == 17
    assert columns.note > 0


@pytest.mark.parametrize("width", [44, 50, 60, 70, 80, 120, 200])
def test_the_columns_and_their_gaps_fill_the_width(width: int) -> None:
    columns = columns_for(width, tier=6, name=30)

    assert sum(columns) + 2 * (len(columns) - 1) == width
