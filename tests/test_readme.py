"""README.md: who follows it sees what it shows, here and on the index."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from page_reader import Command, Edit, Reader, matches, steps_of
from published_readme import broken_on_the_index, published

from asyncflow import __version__
from asyncflow.events import AttemptStarted, Event, StepSucceeded
from tests.release import PAGES, is_released, says_not_yet

README = Path(__file__).parents[1] / "README.md"
FENCE = re.compile(r"^```(?:python|text)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@pytest.mark.process
@pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX terminal")
def test_a_reader_who_kills_the_run_of_the_readme_sees_it_resume(tmp_path: Path) -> None:
    asked: list[int] = []
    stored: list[int] = []

    def two_prices_are_stored(events: list[Event]) -> bool:
        of_price = [each for each in events if each.step == "price" and each.item is not None]
        asked[:] = [each.item for each in of_price if isinstance(each, AttemptStarted)]  # type: ignore[misc]
        stored[:] = [each.item for each in of_price if isinstance(each, StepSucceeded)]  # type: ignore[misc]
        return len(stored) >= 2

    page = README.read_text(encoding="utf-8")
    shop = FENCE.findall(page)[0]
    fruits = re.findall(r'"(\w+)"', re.search(r"return \[(.+)\]", shop)[1])  # type: ignore[index]
    reader = Reader(tmp_path, two_prices_are_stored)
    reader.edit(Edit("shop.py", "", shop))
    demo = page[page.index("## Kill it") : page.index("## What is in it")]
    kill, again = [each for each in steps_of(demo) if isinstance(each, Command)]

    before, after = reader.run(kill.text), reader.run(again.text)

    rows = [f"price[{item}] | asking for {fruits[item]}\n" for item in range(len(fruits))]
    assert kill.shows == "".join(f"asking for {fruit}\n" for fruit in fruits[:4])
    assert before.split()[2::3][: len(asked)] == [fruits[item] for item in asked]
    rest = "".join(row for item, row in enumerate(rows) if item not in stored)
    page_has = again.shows.replace("".join(rows[2:]), rest)
    assert matches(page_has, after), after


@pytest.mark.process
def test_the_program_of_the_readme_prints_the_total(tmp_path: Path) -> None:
    reader = Reader(tmp_path, lambda events: True)
    reader.edit(Edit("shop.py", "", FENCE.findall(README.read_text(encoding="utf-8"))[0]))

    *asked, total = reader.run("python shop.py").split("\n")[:9]

    assert len(asked) == 8
    assert total == "38"


def test_the_readme_fits_on_a_few_screens() -> None:
    lines = README.read_text(encoding="utf-8").splitlines()

    assert len(lines) <= 150


def test_on_the_index_the_links_and_pictures_lead_to_the_files_of_the_tag() -> None:
    readme = README.read_text(encoding="utf-8")
    tag = "https://example.com/owner/asyncflow/{}/v0.1.0/"

    shown = published(readme, "https://example.com/owner/asyncflow", "v0.1.0")

    assert [*broken_on_the_index(shown)] == []
    assert FENCE.findall(shown) == FENCE.findall(readme)
    paths = re.findall(re.escape(tag.format("blob")) + r"([^)#]+)", shown)
    pictures = re.findall(re.escape(tag.format("raw")) + r"([^)#]+)", shown)
    assert "CHANGELOG.md" in paths
    assert pictures == ["docs/images/run-page.png"]
    assert [path for path in paths + pictures if not README.parent.joinpath(path).exists()] == []


def test_a_relative_link_and_a_picture_that_is_a_page_are_broken_on_the_index() -> None:
    page = "https://example.com/owner/asyncflow/blob/v0.1.0/docs/a.png"

    assert [
        *broken_on_the_index(f"[a](docs/a.md) ![b](b.png) ![c]({page}) [c]({page}) [d](#d)")
    ] == [
        "href=docs/a.md",
        "src=b.png",
        f"src={page}",
    ]


def test_pages_install_from_a_checkout_until_the_changelog_has_the_day_of_the_release() -> None:
    root = README.parent

    say_not_yet = {
        page: says_not_yet(root.joinpath(page).read_text("utf-8"), __version__) for page in PAGES
    }

    assert say_not_yet == dict.fromkeys(PAGES, not is_released(root, __version__))
