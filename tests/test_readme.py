"""README.md: who follows it sees what it shows, here and on the index."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from page_reader import Command, Edit, Reader, masked, matches, steps_of
from published_readme import broken_on_the_index, published

from asyncflow import __version__
from asyncflow.examples import etl
from tests.release import PAGES, is_released, says_not_yet

README = Path(__file__).parents[1] / "README.md"
FENCE = re.compile(r"^```(?:python|text)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def section(title: str) -> str:
    page = README.read_text(encoding="utf-8")
    return page.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def commands(title: str) -> list[Command]:
    return [each for each in steps_of(section(title)) if isinstance(each, Command)]


def test_the_first_section_has_a_command_for_the_example_and_one_for_the_tests() -> None:
    first = README.read_text(encoding="utf-8").partition("\n## ")[2]

    assert first.startswith("Try it\n")
    assert [each.text for each in commands("Try it")] == ["make etl", "make test"]
    assert "`python -m asyncflow.examples.etl [SOURCE] [--database PATH]`" in first


def test_the_example_prints_what_the_readme_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    status = etl.main([])

    printed = capsys.readouterr()
    made = "making .venv ...\ninstalling asyncflow ...\n"  # by make, the first time
    assert status == 0
    assert masked(commands("Try it")[0].shows) == masked(made + printed.err + printed.out)
    assert [each.name for each in tmp_path.iterdir()] == ["etl.db"]


@pytest.mark.process
@pytest.mark.parametrize(
    ("heading", "made"), [("## Try it", ["etl", "test"]), ("## Tried", [])], ids=["has", "lacks"]
)
def test_the_check_makes_what_the_readme_says_and_fails_if_it_says_nothing(
    tmp_path: Path, heading: str, made: list[str]
) -> None:
    page = README.read_text(encoding="utf-8").replace("\n## Try it\n", f"\n{heading}\n")
    (tmp_path / "README.md").write_text(page, encoding="utf-8")
    (tmp_path / "Makefile").write_text("etl test:\n\t@echo $@ >>made\n")
    (tmp_path / ".ci").mkdir()
    check = Path(shutil.copy(README.parent / ".ci" / "readme", tmp_path / ".ci"))

    ended = subprocess.run([check], capture_output=True, text=True)

    record = tmp_path / "made"
    assert (record.read_text().split() if record.exists() else []) == made
    assert (ended.returncode == 0) is bool(made), ended.stderr


@pytest.mark.process
@pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX terminal")
@pytest.mark.parametrize("run", [Reader.run, Reader.run_in_a_pipe], ids=["terminal", "pipe"])
def test_a_reader_who_kills_the_run_of_the_readme_sees_it_resume(
    tmp_path: Path, run: Callable[[Reader, str], str]
) -> None:
    reader = Reader(tmp_path)
    reader.edit(Edit("shop.py", "", FENCE.findall(README.read_text(encoding="utf-8"))[0]))
    kill, again = commands("Kill it, and start it again")

    before, after = run(reader, kill.text), run(reader, again.text)

    assert before.strip() == kill.shows.strip()
    assert matches(again.shows, after), after


@pytest.mark.process
def test_the_program_of_the_readme_prints_the_total(tmp_path: Path) -> None:
    reader = Reader(tmp_path)
    reader.edit(Edit("shop.py", "", FENCE.findall(README.read_text(encoding="utf-8"))[0]))

    *asked, total = reader.run("python shop.py").split("\n")[:7]

    assert len(asked) == 6
    assert total == "29"


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
