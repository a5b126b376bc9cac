"""Steps are drawn as boxes with readable names."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncflow._views.dag import BOX_WIDTH, draw_graph, to_svg, wrapped


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("extract", ("extract",)),
        ("", ("",)),
        (
            "normalise_customer_addresses_against_the_national_register_v2",
            ("normalise_customer_", "addresses_against_the_", "national_register_v2"),
        ),
        ("a" * 40, ("a" * 24, "a" * 16)),
        ("a\nb", ("a\\nb",)),
    ],
)
def test_a_name_is_wrapped_between_words(name: str, lines: tuple[str, ...]) -> None:
    assert wrapped(name) == lines


@pytest.mark.parametrize("letter", ["w", "M", "x", "W", "漢"])
def test_a_name_of_60_wide_letters_fits_its_box(letter: str) -> None:
    lines = wrapped(letter * 60)

    assert len(lines) <= 4
    assert max(map(len, lines)) <= 25


@given(st.text(st.characters(codec="utf-8"), max_size=60))
def test_a_wrapped_name_is_complete_or_ends_in_an_ellipsis(name: str) -> None:
    displayed = "".join(wrapped(name))

    assert displayed.endswith("…") or "\\" in displayed or displayed == name


def test_all_boxes_are_inside_the_drawing() -> None:
    drawing = draw_graph({f"s{n}": tuple(f"s{m}" for m in range(n)) for n in range(6)})

    assert all(box.x + drawing.box_width < drawing.width for box in drawing.boxes)
    assert all(box.y + box.height < drawing.height for box in drawing.boxes)


# Clean-up steps.


def etl(*needs_of_clean_up: str) -> dict[str, tuple[str, ...]]:
    """Return a pipeline of four tables in three stages, with a clean-up step."""
    steps: dict[str, tuple[str, ...]] = {}
    for stage, before in (("extract", ""), ("validate", "extract"), ("load", "validate")):
        for number in range(4):
            steps[f"{stage}{number}"] = (f"{before}{number}",) if before else ()
    return {**steps, "tidy": needs_of_clean_up or tuple(steps)}


def test_a_step_after_all_others_has_a_badge_in_place_of_its_edges() -> None:
    drawing = draw_graph(etl())

    assert [box.badge for box in drawing.boxes] == [""] * 12 + ["all 12"]
    assert [curve.last == 12 for curve in drawing.curves] == [
        curve.is_bundled for curve in drawing.curves
    ]
    assert sum(curve.is_bundled for curve in drawing.curves) == 12
    # It still lies to the right of all that it runs after, where the badge has room.
    *others, tidy = drawing.boxes
    assert tidy.x - max(box.x for box in others) > BOX_WIDTH + tidy.badge_width


def test_a_badge_says_how_many_steps_it_stands_for() -> None:
    drawing = draw_graph({**etl(*list(etl())[:10])})

    assert drawing.boxes[-1].badge == "10"
    assert drawing.boxes[-1].badge_width < 50


@pytest.mark.parametrize(
    "steps",
    [
        {**{f"s{number}": () for number in range(9)}, "join": tuple(f"s{n}" for n in range(9))},
        {f"s{n}": tuple(f"s{m}" for m in range(n)) for n in range(6)},
        etl(*list(etl())[:9]),
    ],
    ids=["a join of one tier", "few steps", "too small a share"],
)
def test_other_steps_keep_their_edges(steps: dict[str, tuple[str, ...]]) -> None:
    drawing = draw_graph(steps)

    assert not any(box.badge for box in drawing.boxes)
    assert not any(curve.is_bundled for curve in drawing.curves)


def test_a_picture_has_a_box_for_each_step_and_loads_nothing() -> None:
    steps = {"<script>alert(1)</script>": (), "a & b": (), "two\nlines": ("a & b",)}

    text = to_svg("<plan>", [list(steps)[:2], ["two\nlines"]], steps)

    root = ElementTree.fromstring(text)
    svg = "{http://www.w3.org/2000/svg}"
    assert root.tag == f"{svg}svg"
    titles = [each.text for each in root.iter(f"{svg}title")]
    assert titles == ["<plan>", "<script>alert(1)</script>", "a & b", "two\\nlines"]
    assert len(list(root.iter(f"{svg}rect"))) == 3
    assert len(list(root.iter(f"{svg}path"))) == 1
    tiers = [each.text for each in root.iter(f"{svg}text") if each.get("class") == "tier"]
    assert tiers == ["tier 1", "tier 1", "tier 2"]
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")


def test_the_picture_of_a_plan_has_the_badge_too() -> None:
    steps = etl()
    tiers = [[name for name in steps if name.startswith(stage)] for stage in ("e", "v", "l", "t")]

    svg = to_svg("nightly", tiers, steps)

    assert ">all 12</text>" in svg
    assert svg.count('<path class="edge"') == 8 + 1
