"""The examples of the documentation run, and print what the pages show."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import inspect
import io
import logging
import re
import sys
import textwrap
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).parents[1]

FENCE = re.compile(
    r"^(?P<indent>[ ]*)(?P<fence>`{3,})(?P<language>[\w+-]*)[^\n`]*\n"
    r"(?P<body>.*?)"
    r"^(?P=indent)(?P=fence)[ ]*$",
    re.DOTALL | re.MULTILINE,
)
NOT_RUN = re.compile(r"<!--\s*not run:\s*(?P<reason>[^>]*?)\s*-->\s*\Z")

SLOW = r'"process"|"spawn"|time\.sleep\('
"""What the code of a page has that starts processes or sleeps."""


class Block(NamedTuple):
    """A Python block of a page."""

    page: Path
    line: int
    """The line of its first line of code, counted from 1."""
    code: str
    prints: str | None
    """Its expected output: the text block that follows directly, if there is one."""
    not_run: str | None
    """The reason not to run it, if there is one."""


def blocks_of(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    fences = list(FENCE.finditer(text))
    for fence, after in zip(fences, [*fences, None][1:], strict=True):
        if fence["language"] != "python":
            continue
        not_run = NOT_RUN.search(text[: fence.start()])
        follows = (
            after is not None
            and after["language"] == "text"
            and not text[fence.end() : after.start()].strip()
        )
        yield Block(
            page,
            text.count("\n", 0, fence.start("body")) + 1,
            textwrap.dedent(fence["body"]),
            textwrap.dedent(after["body"]) if follows and after is not None else None,
            not_run["reason"] if not_run else None,
        )


def pages() -> list[Any]:
    found = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [
        pytest.param(
            page,
            id=str(page.relative_to(ROOT)),
            marks=[pytest.mark.process] if re.search(SLOW, code) else [],
        )
        for page in found
        if (code := "".join(block.code for block in blocks_of(page) if block.not_run is None))
    ]


@contextlib.contextmanager
def own_logging() -> Iterator[None]:
    """Let a page configure loggers for itself only."""
    known = logging.root.manager.loggerDict
    before = {
        name: (logger.level, [*logger.handlers], logger.propagate)
        for name, logger in known.items()
        if isinstance(logger, logging.Logger)
    }
    try:
        yield
    finally:
        for name, logger in known.items():
            if isinstance(logger, logging.Logger):
                level, logger.handlers, logger.propagate = before.get(name, (0, [], True))
                logger.setLevel(level)


def run_page(page: Path) -> list[str]:
    """Run the blocks of a page in order; return the differences from the expected output.

    They share a namespace, like the lines of one ``python -m asyncio`` session.
    """
    differences = []
    module = types.ModuleType("__page__")
    sys.modules[module.__name__] = module  # where dataclasses and pickle look for it
    try:
        with own_logging(), asyncio.Runner() as runner:
            for block in blocks_of(page):
                if block.not_run is not None:
                    continue
                printed = io.StringIO()
                with contextlib.redirect_stdout(printed):
                    runner.run(run_block(block, vars(module)))
                expected, actual = block.prints, printed.getvalue()
                if expected is not None and without_times(expected) != without_times(actual):
                    differences.append(f"{page.name}:{block.line} prints\n{actual}not\n{expected}")
    finally:
        del sys.modules[module.__name__]
    return differences


async def run_block(block: Block, namespace: dict[str, Any]) -> None:
    code = compile(
        "\n" * (block.line - 1) + block.code,  # so that a traceback names the line of the page
        str(block.page),
        "exec",
        flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT,
        dont_inherit=True,
    )
    awaitable = eval(code, namespace)
    if inspect.isawaitable(awaitable):
        await awaitable


def without_times(text: str) -> str:
    """Return the text without what differs between runs: milliseconds, addresses, run ids."""
    text = re.sub(r"\d+(\.\d+)?( ?)ms\b", r"…\2ms", text)
    text = re.sub(r"0x[0-9a-f]+", "0x…", text)
    text = re.sub(r"\b[0-9a-f]{16}\b", "<run>", text)
    return "\n".join(line.rstrip() for line in text.strip().splitlines())


@pytest.mark.parametrize("page", pages())
def test_every_example_of_a_page_runs_and_prints_what_the_page_shows(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # an example may write files

    differences = run_page(page)

    assert not differences, "\n\n".join(differences)


@pytest.fixture
def page(tmp_path: Path) -> Path:
    return tmp_path / "page.md"


class TestRunner:
    """The runner of the pages reports a page that is wrong."""

    def test_blocks_of_a_page_share_their_names_and_may_await(self, page: Path) -> None:
        page.write_text(
            "```python\nimport asyncio\nx = 1\n```\ntext\n"
            "```python\nprint(await asyncio.sleep(0, x))\n```\n\n```text\n1\n```\n"
        )

        assert run_page(page) == []

    def test_a_block_that_prints_something_else_is_reported(self, page: Path) -> None:
        page.write_text("```python\nprint('3ms', 2)\n```\n```text\n5ms 3\n```\n")

        assert run_page(page) == ["page.md:2 prints\n3ms 2\nnot\n5ms 3\n"]

    def test_a_block_that_raises_is_reported_with_the_line_of_the_page(self, page: Path) -> None:
        page.write_text("# Page\n\n```python\nx = 1\n1 / 0\n```\n")

        with pytest.raises(ZeroDivisionError) as raised:
            run_page(page)

        *_, last = raised.traceback
        assert (last.path, last.lineno + 1) == (page, 5)

    def test_a_block_with_a_reason_not_to_run_is_not_run(self, page: Path) -> None:
        page.write_text(
            "<!-- not run: it would fail -->\n\n```python\n1 / 0\n```\n\n```python\nx = 1\n```\n"
        )

        first, second = blocks_of(page)

        assert (first.not_run, second.not_run) == ("it would fail", None)
        assert run_page(page) == []

    def test_a_page_without_blocks_has_none(self, page: Path) -> None:
        page.write_text("# Page\n")

        assert list(blocks_of(page)) == []

    def test_what_a_page_says_to_loggers_is_forgotten(self, page: Path) -> None:
        page.write_text(
            "```python\nimport logging\nlog = logging.getLogger('a page')\n"
            "log.setLevel('INFO')\nlog.addHandler(logging.NullHandler())\n```\n"
        )

        assert run_page(page) == []

        log = logging.getLogger("a page")
        assert (log.level, log.handlers) == (logging.NOTSET, [])

    def test_blocks_in_other_languages_are_ignored(self, page: Path) -> None:
        page.write_text(
            "```console\n$ rm -r /\n```\n```python\nx = 1\n```\n```console\n$ ls\n```\n"
            "- item\n\n  ```python\n  y = 1\n  ```\nthen\n````text\n```python\nno\n```\n````\n"
        )

        assert [(block.code, block.prints) for block in blocks_of(page)] == [
            ("x = 1\n", None),
            ("y = 1\n", None),
        ]
