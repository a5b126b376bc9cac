"""Whatever a value is, a few lines of it are shown, and never more."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncflow import RestoredError, RestoredOutput
from asyncflow._core.results import REDACTED_OUTPUT
from asyncflow._views.preview import error_trace, error_words, preview, printable


@dataclasses.dataclass
class Point:
    x: int
    y: int


class Hostile:
    def __repr__(self) -> str:
        raise RuntimeError("no")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "None"),
        (17, "17"),
        ("a\nb", "'a\\nb'"),
        (b"\x00", "b'\\x00'"),
        ([], "[]"),
        ({}, "{}"),
        (set(), "set()"),
        (frozenset(), "frozenset()"),
        (frozenset({1}), "frozenset({1})"),
        ((1,), "(1,)"),
        ([1, 2, 3], "[1, 2, 3]"),
        (["a.tmp", "b.tmp"], "['a.tmp', 'b.tmp']"),
        ({"rows": 3}, "{'rows': 3}"),
        ({"id": 1, "name": "fx", "rate": 0.5}, "{'id': 1, 'name': 'fx', 'rate': 0.5}"),
        ({"rows": 3, "names": ["a"]}, "{\n  'rows': 3,\n  'names': ['a']\n}"),
        ([{"a": 1}, [2]], "[\n  {'a': 1},\n  [2]\n]"),
        (Point(1, 2), "Point(x=1, y=2)"),
        (RestoredOutput("Point(1)"), "Point(1)"),
        (Hostile(), "<Hostile, whose repr raised RuntimeError>"),
    ],
)
def test_a_value_reads_as_it_does_in_python(value: object, text: str) -> None:
    assert preview(value, 1_000) == (text, False, False)


def test_what_is_secret_is_redacted_and_says_so() -> None:
    assert preview(REDACTED_OUTPUT, 100) == ("redacted", False, True)


@pytest.mark.parametrize(
    "value",
    [
        "x" * 10**7,
        b"x" * 10**7,
        list(range(10**6)),
        {n: [n] for n in range(10**5)},
        Point(10**60, 1),
    ],
)
def test_a_large_value_is_cut(value: object) -> None:
    shown = preview(value, 50)

    assert shown.cut
    assert 40 <= len(shown.text) <= 50


def test_a_value_that_holds_itself_ends() -> None:
    value: list[Any] = [1]
    value.append(value)

    assert "…" in preview(value, 1_000).text


def test_of_a_large_value_only_the_beginning_is_looked_at() -> None:
    looked = []

    class Item:
        def __repr__(self) -> str:
            looked.append(self)
            return "item"

    preview([Item() for _ in range(1_000)], 100)

    assert len(looked) < 40


@given(st.text(st.sampled_from("a<&>'\"漢\n\x00\u202e"), max_size=200), st.integers(1, 300))
def test_a_limit_is_one_of_bytes_in_the_page(value: str, limit: int) -> None:
    shown = preview([value, {value: value}], limit).text

    escaped = shown.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    assert len(escaped.encode()) <= limit


def test_control_characters_are_written_out_and_lines_stay() -> None:
    assert printable("a\tb\nc\x1b[1m\u202e") == "a   b\nc\\x1b[1m\\u202e"


def test_an_error_is_one_line_and_cut() -> None:
    assert error_words(ValueError("no\nmore"), 100) == "ValueError: no"
    assert error_words(ValueError("x" * 200), 20) == "ValueError: xxxxxxxx…"


def test_a_traceback_is_shown_in_full() -> None:
    try:
        raise ValueError("no")
    except ValueError as error:
        shown = error_trace(error, 10_000)

    assert shown.text.startswith("Traceback (most recent call last):\n")
    assert shown.text.endswith('raise ValueError("no")\nValueError: no')


def test_of_a_long_traceback_its_ends_are_shown() -> None:
    def deep(left: int) -> None:
        if left <= 0:
            raise ValueError("at the bottom")
        (odd if left % 2 else deep)(left - 1)

    def odd(left: int) -> None:  # so that no two lines in a row are the same
        deep(left - 1)

    try:
        deep(60)
    except ValueError as error:
        shown = error_trace(error, 600)

    assert shown.cut
    assert shown.text.startswith("Traceback")
    assert "characters left out" in shown.text
    assert shown.text.endswith("ValueError: at the bottom")


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (RestoredError("app.Bad", "no", "Traceback: kept\n"), "Traceback: kept"),
        (RestoredError("app.Bad", "no\nmore"), "app.Bad: no\nmore"),
        (ValueError("no"), "ValueError: no"),
    ],
)
def test_an_error_without_a_traceback_is_shown_too(error: Exception, text: str) -> None:
    assert error_trace(error, 1_000).text == text
