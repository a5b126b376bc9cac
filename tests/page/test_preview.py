"""The preview of any value is short."""

from __future__ import annotations

import dataclasses
import time
from datetime import timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncflow import RestoredError, RestoredOutput
from asyncflow._core.history.value_preview import preview, printable
from asyncflow._views.preview import ago, error_trace, local_moment_text, moment_text


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
def test_a_value_is_shown_as_python_writes_it(value: object, text: str) -> None:
    assert preview(value, 1_000) == (text, False, False)


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
def test_a_large_value_is_truncated(value: object) -> None:
    shown = preview(value, 50)

    assert shown.cut
    assert 40 <= len(shown.text) <= 50


def test_only_the_beginning_of_a_large_value_is_formatted() -> None:
    reprs = []

    class Item:
        def __repr__(self) -> str:
            reprs.append(self)
            return "item"

    preview([Item() for _ in range(1_000)], 100)

    assert len(reprs) < 40


@given(st.text(st.sampled_from("a<&>'\"漢\n\x00\u202e"), max_size=200), st.integers(1, 300))
def test_the_limit_counts_the_bytes_of_escaped_html(value: str, limit: int) -> None:
    shown = preview([value, {value: value}], limit).text

    escaped = shown.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    assert len(escaped.encode()) <= limit


def test_control_characters_are_escaped_and_line_breaks_preserved() -> None:
    assert printable("a\tb\nc\x1b[1m\u202e") == "a   b\nc\\x1b[1m\\u202e"


def test_both_ends_of_a_long_traceback_are_shown() -> None:
    def deep(left: int) -> None:
        if left <= 0:
            raise ValueError("at the bottom")
        (recurse_again if left % 2 else deep)(left - 1)

    def recurse_again(left: int) -> None:  # a traceback folds repeated frames
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
        (RestoredError("app.Bad", "no", "Traceback: stored\n"), "Traceback: stored"),
        (RestoredError("app.Bad", "no\nmore"), "app.Bad: no\nmore"),
        (ValueError("no"), "ValueError: no"),
    ],
)
def test_an_error_without_a_traceback_is_shown(error: Exception, text: str) -> None:
    assert error_trace(error, 1_000).text == text


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        *((-5.0, "just now"), (0.9, "just now"), (1.0, "1 s ago"), (59.9, "59 s ago")),
        *((60.0, "1 min ago"), (3_599.0, "59 min ago"), (3_600.0, "1 h ago")),
        *((172_799.0, "47 h ago"), (172_800.0, "2 d ago"), (8_640_000.0, "100 d ago")),
    ],
)
def test_an_age_is_told_in_one_unit(seconds: float, words: str) -> None:
    assert ago(seconds) == words


@pytest.mark.parametrize(
    ("offset_h", "text"),
    [
        (0.0, "2026-01-01 00:00:00 UTC"),
        (2.0, "2026-01-01 02:00:00 UTC+02:00"),
        (-3.5, "2025-12-31 20:30:00 UTC-03:30"),
    ],
)
def test_a_time_is_written_with_its_zone(offset_h: float, text: str) -> None:
    zone = timezone(timedelta(hours=offset_h))

    assert moment_text(1_767_225_600.0, zone) == text


def test_a_local_time_is_in_the_zone_that_was_in_force(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
    time.tzset()
    try:
        winter, summer = local_moment_text(1_767_225_600.0), local_moment_text(1_782_864_000.0)
    finally:
        monkeypatch.undo()
        time.tzset()

    assert winter == "2026-01-01 01:00:00 UTC+01:00"
    assert summer == "2026-07-01 02:00:00 UTC+02:00"
    assert local_moment_text(float("inf")) == "at an unknown time"
