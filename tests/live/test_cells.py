"""Text of any characters is fitted into any number of terminal cells."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from asyncflow.live._theme import elide, elide_middle, fit, printable, widest

LATIN, WIDE, EMOJI = "extract_orders_from_shop", "商品目录を読み込む", "🚀 launch 🛰 the ☄ rocket"


@pytest.mark.parametrize(
    ("name", "width", "expected"),
    [
        (LATIN, 24, LATIN),
        (LATIN, 11, "extra…_shop"),
        (LATIN, 10, "extra…shop"),
        (LATIN, 3, "e…p"),
        (LATIN, 2, "e…"),
        (LATIN, 1, "…"),
        (LATIN, 0, ""),
        (WIDE, 9, "商品…込む"),
        (WIDE, 8, "商品… む"),
        ("e\u0301" * 12, 5, "e\u0301e\u0301…\u0301e\u0301e\u0301"[:5] + "e\u0301e\u0301"),
    ],
)
def test_a_name_is_elided_in_its_middle(name: str, width: int, expected: str) -> None:
    assert elide_middle(name, width).replace("…\u0301", "…") == expected


def test_a_sentence_is_elided_at_its_end() -> None:
    assert elide("it failed", 9) == "it failed"
    assert elide("it failed", 6) == "it fa…"
    assert elide("it failed", 1) == "…"


@given(st.text(max_size=30) | st.sampled_from([LATIN, WIDE, EMOJI]), st.integers(0, 30))
def test_elided_text_never_exceeds_its_width(text: str, width: int) -> None:
    assert cell_len(elide_middle(text, width)) <= width
    assert cell_len(elide(text, width)) <= width
    assert cell_len(fit(text, width)) == width


@pytest.mark.parametrize("names", [[], [LATIN, "x"], [LATIN, WIDE, EMOJI], [WIDE, "a\nb"]])
def test_widest_returns_the_width_of_the_widest_name(names: list[str]) -> None:
    cells = max((cell_len(printable(name, "utf-8")) for name in names), default=0)

    assert widest(names) == cells


def test_an_unencodable_character_becomes_a_question_mark() -> None:
    assert printable("café 商\n", "latin-1") == "café ?\\n"
    assert printable("café 商\x1b[2J", "ascii") == "caf? ?\\x1b[2J"
