"""The tutorial, followed to the letter: its files are written, its commands run in a terminal."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from page_reader import ROOT, Edit, Reader, matches, steps_of

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX terminal"),
]

PAGE = ROOT / "docs" / "getting-started.md"


def test_a_machine_that_lets_items_wait_shows_what_the_page_says() -> None:
    page = "c ◆ ▚▚▓▓! 870 ms\n█ attempt ▚ some items failed ! timed out"
    shown = "c ◆ ─▚▓─▓! 871 ms\n█ attempt ▚ some items failed ! timed out ─ between items"

    assert matches(page, shown)


@pytest.mark.timeout(300)  # seconds; it starts some fifteen processes
def test_a_reader_who_does_what_the_page_says_sees_what_it_shows(tmp_path: Path) -> None:
    reader = Reader(tmp_path)

    for step in steps_of(PAGE.read_text(encoding="utf-8")):
        if isinstance(step, Edit):
            reader.edit(step)
        else:
            shown = reader.run(step.text)
            assert matches(step.shows, shown), f"{PAGE.name}:{step.line}\n{shown}"
