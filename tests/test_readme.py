"""The programs of README.md print what it shows; the second resumes after it was killed."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from published_readme import broken_on_the_index, published

from asyncflow import __version__
from tests.release import PAGES, is_released, says_not_yet

README = Path(__file__).parents[1] / "README.md"
FENCE = re.compile(r"^```(?:python|text)\n(.*?)^```$", re.DOTALL | re.MULTILINE)

KILLED_IN_TOTAL = """
import os, signal

from asyncflow.testing import fake
from shop import shop

with fake(shop, total=lambda *_: os.kill(os.getpid(), signal.SIGKILL)):
    import monday
"""


def without_times(text: str) -> str:
    return re.sub(r"\d+ms", "…ms", text)


@pytest.mark.process
def test_the_programs_of_the_readme_run_and_resume(tmp_path: Path) -> None:
    shop, shown, _, monday, resumed = FENCE.findall(README.read_text(encoding="utf-8"))
    tmp_path.joinpath("shop.py").write_text(shop)
    tmp_path.joinpath("monday.py").write_text(monday)

    def start(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    first, killed, again = start("shop.py"), start("-c", KILLED_IN_TOTAL), start("monday.py")

    assert without_times(first.stdout) == without_times(shown), first.stderr
    assert (killed.returncode, killed.stdout) == (-signal.SIGKILL, "")
    assert without_times(again.stdout) == without_times(resumed), again.stderr


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
    assert pictures == ["docs/images/terminal.svg", "docs/images/run-page.png"]
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
