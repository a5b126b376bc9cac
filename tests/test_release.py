"""A release that is not ready is refused before anything is built; the rest `make dist` checks."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from asyncflow import __version__
from tests.release import (
    NOWHERE,
    PAGES,
    UNSEEN,
    missing,
    notes,
    pretend_that_nothing_is_missing,
    project_of,
)

ROOT = Path(__file__).parents[1]
TAG = f"v{__version__}"
RELEASED = ["pyproject.toml", "CHANGELOG.md", "asyncflow/__init__.py", *PAGES]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The files that a release is about, where a test may change them."""
    for name in RELEASED:
        tmp_path.joinpath(name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def test_all_that_a_release_lacks_is_named_at_once(copy: Path) -> None:
    pretend_that_nothing_is_missing(copy, __version__)
    assert [*missing(copy, TAG)] == []

    undo(copy / "CHANGELOG.md", f"[{__version__}]", "[Unreleased]")
    undo(copy / "pyproject.toml", "Repository =", "Homepage =")
    undo(copy / "asyncflow/__init__.py", f'"{__version__}"', '"0.0.9"')
    undo(copy / "docs/index.md", "```console", f"```console # once {__version__} is released")

    assert [each.split(" ")[0] for each in missing(copy, "v9")] == [
        "asyncflow/__init__.py:",
        "the",
        "CHANGELOG.md:",
        "pyproject.toml:",
        "docs/index.md:",
    ]


def undo(file: Path, done: str, before: str) -> None:
    text = file.read_text("utf-8")
    assert done in text
    file.write_text(text.replace(done, before, 1), "utf-8")


def test_no_address_of_the_repository_is_made_up() -> None:
    urls = project_of(ROOT).get("urls", {})

    assert NOWHERE not in urls.values()
    assert [url for url in urls.values() if "example" in url] == []


def test_the_notes_of_a_release_lead_to_the_files_of_its_tag(copy: Path) -> None:
    pretend_that_nothing_is_missing(copy, __version__)

    text = notes(copy, __version__, NOWHERE)

    links = re.findall(r"\]\(([^)\s]+)\)", text)
    at_the_tag = f"{NOWHERE}/blob/{TAG}/"
    assert {link.partition("/blob/")[0] for link in links} == {NOWHERE}
    paths = {link.removeprefix(at_the_tag).partition("#")[0] for link in links}
    assert [path for path in paths if not ROOT.joinpath(path).exists()] == []
    assert not re.search(r"^## ", text, re.MULTILINE)
    assert "Unreleased" not in text
    assert UNSEEN not in text
    assert len(text.splitlines()) <= 150  # as many as a person reads
