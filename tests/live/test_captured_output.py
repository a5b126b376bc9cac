"""Output printed while frames are drawn is neither lost nor reordered."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import Any

import pytest

from asyncflow.live._captured import CapturedOutput, Printed
from asyncflow.live._renderer import EventBuffer


def texts(printed: Iterable[Printed]) -> list[str]:
    return [each.text for each in printed]


@pytest.fixture
def captured() -> CapturedOutput:
    return CapturedOutput(io.StringIO())


def test_marks_separate_the_output_before_them(captured: CapturedOutput) -> None:
    first, last = EventBuffer(), EventBuffer()
    captured.add("one\ntw")
    captured.mark(first, ends_lines=False)
    captured.add("o\nthree")
    captured.mark(last, ends_lines=True)
    captured.add("four\nfive")

    output = captured.take()
    assert [(texts(printed), run) for printed, run in output.before] == [
        (["one\n"], first),
        (["two\n", "three\n"], last),
    ]
    assert (texts(output.printed), texts(output.unfinished)) == (["four\n"], ["five"])
    assert captured.take() == ([], [], [Printed(None, "five")])


def test_output_printed_during_the_final_write_is_written(captured: CapturedOutput) -> None:
    written: list[str] = []

    def write(printed: Iterable[Printed]) -> None:
        written.append("".join(texts(printed)))
        if len(written) < 5:
            captured.add(f"{len(written)}\n")
        elif len(written) == 5:
            captured.add("half")

    captured.add("0\n")
    captured.mark(EventBuffer(), ends_lines=True)
    captured.end(write)

    assert "".join(written) == "0\n1\n2\n3\n4\nhalf"
    assert not captured.is_open
    assert not captured.add("later")


def test_an_endless_writer_does_not_block_the_end(captured: CapturedOutput) -> None:
    count = 0

    def write(_: object) -> None:
        nonlocal count
        count += 1
        assert count < 100
        captured.add("more\n")

    captured.add("first\n")
    captured.end(write)

    assert not captured.is_open


def test_a_failed_final_write_ends_the_capture(captured: CapturedOutput) -> None:
    def fail(_: object) -> None:
        raise BrokenPipeError

    captured.add("text\n")
    with pytest.raises(BrokenPipeError):
        captured.end(fail)

    assert not captured.is_open


def test_streams_without_a_terminal_are_not_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed(io.StringIO):
        def isatty(self) -> bool:
            raise ValueError("it is closed")

    streams: list[Any] = [None, Closed()]
    for stream in streams:
        monkeypatch.setattr("sys.stdout", stream)
        captured: CapturedOutput = CapturedOutput(io.StringIO())
        captured.begin()

        captured.end(lambda _: None)
