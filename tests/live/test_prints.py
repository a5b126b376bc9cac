"""What is printed while frames are drawn is neither lost nor mixed up."""

from __future__ import annotations

import io
from typing import Any

import pytest

from asyncflow.live._renderer import EventBuffer
from asyncflow.live._screen import CapturedOutput


@pytest.fixture
def prints() -> CapturedOutput:
    return CapturedOutput(io.StringIO())


def test_marks_tell_what_was_printed_before_them(prints: CapturedOutput) -> None:
    first, last = EventBuffer(), EventBuffer()
    prints.add("one\ntw")
    prints.mark(first, ends_lines=False)
    prints.add("o\nthree")
    prints.mark(last, ends_lines=True)
    prints.add("four\nfive")

    assert prints.take() == ([("one\n", first), ("two\nthree\n", last)], "four\n", ["five"])
    assert prints.take() == ([], "", ["five"])


def test_what_is_printed_while_the_rest_is_written_is_written_too(prints: CapturedOutput) -> None:
    written: list[str] = []

    def write(text: str) -> None:
        written.append(text)
        if len(written) < 5:
            prints.add(f"{len(written)}\n")
        elif len(written) == 5:
            prints.add("half")

    prints.add("0\n")
    prints.mark(EventBuffer(), ends_lines=True)
    prints.end(write)

    assert "".join(written) == "0\n1\n2\n3\n4\nhalf"
    assert not prints.is_open
    assert not prints.add("later")


def test_who_prints_without_end_does_not_hold_up_the_end(prints: CapturedOutput) -> None:
    count = 0

    def write(_: str) -> None:
        nonlocal count
        count += 1
        assert count < 100
        prints.add("more\n")

    prints.add("first\n")
    prints.end(write)

    assert not prints.is_open


def test_if_the_rest_can_not_be_written_it_is_printed_as_ever(prints: CapturedOutput) -> None:
    def fails(_: str) -> None:
        raise BrokenPipeError

    prints.add("text\n")
    with pytest.raises(BrokenPipeError):
        prints.end(fails)

    assert not prints.is_open


def test_what_has_no_terminal_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed(io.StringIO):
        def isatty(self) -> bool:
            raise ValueError("it is closed")

    streams: list[Any] = [None, Closed()]
    for stream in streams:
        monkeypatch.setattr("sys.stdout", stream)
        prints: CapturedOutput = CapturedOutput(io.StringIO())
        prints.begin()

        prints.end(lambda _: None)
