"""The built site: its links, its entries, its twins; and what a strict build refuses."""

from __future__ import annotations

import re
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import click
import pytest
from public_api import MODULES

from asyncflow._cli import commands

from .conftest import ROOT, build
from .test_sources import exported

pytestmark = pytest.mark.timeout(300)  # the first one builds the site

LOADED = {"script": "src", "img": "src", "source": "srcset", "iframe": "src"}


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: set[str] = set()
        self.loaded: set[str] = set()
        self.comments: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.ids |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.add(given["href"])
        if tag in LOADED and LOADED[tag] in given:
            self.loaded.add(given[LOADED[tag]])
        if tag == "link" and given.get("rel") in {"stylesheet", "icon", "preload"}:
            self.loaded.add(given["href"])

    def handle_comment(self, data: str) -> None:
        self.comments.append(data)


@cache
def parsed(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


def pages(site: Path) -> list[Path]:
    return sorted(path for path in site.rglob("*.html") if path.name != "404.html")


def dead_links(site: Path) -> list[str]:
    dead = []
    for path in pages(site):
        for link in parsed(path).links | parsed(path).loaded:
            url = urlsplit(link)
            if url.scheme:
                continue
            target = (path.parent / unquote(url.path)).resolve() if url.path else path
            if not target.is_file() or (
                url.fragment
                and target.suffix == ".html"
                and unquote(url.fragment) not in parsed(target).ids
            ):
                dead.append(f"{path.relative_to(site)}: {link}")
    return dead


def test_each_link_leads_to_a_page_and_to_an_anchor_on_it(built_site: Path) -> None:
    assert len(pages(built_site)) > 30
    assert dead_links(built_site) == []


def test_a_dead_link_is_found(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text('<a href="b.html#x"><a href="b.html#y"><a href="c.html">')
    (tmp_path / "b.html").write_text('<h1 id="x"></h1><img src="no.png">')

    assert sorted(dead_links(tmp_path)) == [
        "a.html: b.html#y",
        "a.html: c.html",
        "b.html: no.png",
    ]


def test_nothing_is_loaded_from_elsewhere(built_site: Path) -> None:
    loaded = {url for path in pages(built_site) for url in parsed(path).loaded}

    assert {url for url in loaded if urlsplit(url).scheme or url.startswith("//")} == set()


def test_each_public_name_can_be_linked_to(built_site: Path) -> None:
    for module in (*MODULES, "asyncflow.engines.ray"):
        page = built_site / f"reference/api/{module.removeprefix('asyncflow.')}.html"
        names = {f"{module}.{name}" for name in exported(module)}
        assert names - parsed(page).ids == set()


def test_each_option_of_the_command_line_is_on_its_page(built_site: Path) -> None:
    page = (built_site / "reference/command-line.md").read_text(encoding="utf-8")
    names = commands.list_commands(context := click.Context(commands))
    options = {
        text
        for name in names
        for each in commands.get_command(context, name).params
        if isinstance(each, click.Option)
        for text in each.opts
    }

    assert len(options) > 30
    assert [text for text in options if not re.search(rf"^\| `.*{text}\b", page, re.M)] == []


def test_no_comment_of_a_source_is_on_a_page(built_site: Path) -> None:
    comments = {text for path in pages(built_site) for text in parsed(path).comments}

    assert {text for text in comments if "not run" in text or "needs:" in text} == set()


def test_each_page_has_a_twin_in_markdown_that_llms_txt_lists(built_site: Path) -> None:
    twins = {path.relative_to(built_site) for path in built_site.rglob("*.md")}
    listed = re.findall(r"^- \[.+\]\((.+\.md)\): \S", (built_site / "llms.txt").read_text(), re.M)

    assert twins == {path.relative_to(built_site).with_suffix(".md") for path in pages(built_site)}
    assert sorted(map(Path, listed)) == sorted(twins)


def test_the_twin_of_an_api_page_has_signatures_and_docstrings(built_site: Path) -> None:
    twin = (built_site / "reference/api/asyncflow.md").read_text(encoding="utf-8")

    assert "async def run_pipeline(steps: " in twin
    assert "### `asyncflow.Retry`" in twin
    assert ":::" not in twin
    assert "](asyncflow." not in twin
    assert twin.strip() in (built_site / "llms-full.txt").read_text(encoding="utf-8")


def test_a_strict_build_refuses_what_leads_nowhere(needs_mkdocs: None, tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "index.md").write_text(
        "# Home\n\n[a](missing.md) [b](other.md#missing) [c](../asyncflow/missing.py)\n\n"
        "[`d`][asyncflow.Missing]\n\n::: broken.work\n"
    )
    (docs / "other.md").write_text("# Other\n")
    (tmp_path / "broken.py").write_text(
        '"""Broken."""\n__all__ = ["work"]\n\ndef work() -> None:\n    """See `Missing`."""\n'
    )
    config = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    config = re.sub(r"^nav:\n(?: .*\n|\n)+", "nav: [index.md]\n", config, flags=re.MULTILINE)
    config = config.replace("docs_dir: docs", f"docs_dir: {docs}")
    config = config.replace("docs/site/", f"{ROOT}/docs/site/").replace("[.]", f"[{tmp_path}]")
    (tmp_path / "mkdocs.yml").write_text(config)

    built = build(tmp_path / "mkdocs.yml", tmp_path / "site")

    assert built.returncode != 0
    for complaint in (
        r"not included in the \"nav\" configuration:(\n  - .+)*\n  - other.md",
        r"'index.md' contains a link 'missing.md', but the target is not found",
        r"'other.md#missing', but the doc 'other.md' does not contain an anchor '#missing'",
        r"docs/index.md links to asyncflow/missing.py, which does not exist",
        r"index.md: Could not find cross-reference target 'asyncflow.Missing'",
        r"broken.py:5: `Missing` in the docstring of broken.work has no entry",
    ):
        assert re.search(complaint, built.stdout), built.stdout
