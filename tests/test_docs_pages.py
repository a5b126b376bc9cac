"""The examples of the documentation run, and print what the pages show."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import importlib.util
import inspect
import io
import itertools
import logging
import os
import re
import sys
import textwrap
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from asyncflow.journal import SQLiteJournal
from asyncflow.testing import VirtualTimeLoop

ROOT = Path(__file__).parents[1]

FENCE = re.compile(
    r"^(?P<indent>[ ]*)(?P<fence>`{3,})(?P<language>[\w+-]*)[^\n`]*\n"
    r"(?P<body>.*?)"
    r"^(?P=indent)(?P=fence)[ ]*$",
    re.DOTALL | re.MULTILINE,
)
NOT_RUN = re.compile(r"<!--\s*not run:\s*(?P<reason>[^>]*?)\s*-->\s*\Z")
NEEDS = re.compile(r"<!--\s*needs:\s*(?P<modules>[\w., ]+?)\s*-->\s*\Z")

SAVED = re.compile(r"# (?P<path>\w+(?:/\w+)*\.py)\n")
SLOW = (
    r'"process"|"spawn"|subprocess\.Popen|time\.sleep\('
    r"|^(from|import) (airflow|celery|dbos|langgraph|prefect)\b"
)
"""What the code of a page has that starts processes or blocks: such a page runs in real time."""


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
    needs: tuple[str, ...]
    """The modules without which it is skipped."""

    @property
    def runs(self) -> bool:
        return self.not_run is None and all(map(is_installed, self.needs))


def is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of the package that it is in
        return False


def blocks_of(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    fences = list(FENCE.finditer(text))
    for fence, after in itertools.pairwise([*fences, None]):
        if fence["language"] != "python":
            continue
        not_run = NOT_RUN.search(text[: fence.start()])
        needs = NEEDS.search(text[: fence.start()])
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
            tuple(re.findall(r"[\w.]+", needs["modules"])) if needs else (),
        )


def pages() -> list[Any]:
    found = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [
        pytest.param(
            page,
            id=str(page.relative_to(ROOT)),
            marks=[pytest.mark.process] if is_slow(page) else [],
        )
        for page in found
        if any(block.runs for block in blocks_of(page))
    ]


def is_slow(page: Path) -> bool:
    return any(re.search(SLOW, block.code, re.M) for block in blocks_of(page) if block.runs)


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

    They share a namespace and an event loop, like the lines of one ``python -m asyncio`` session. A
    block that awaits nothing runs outside of the loop, so that it can start another one. A block
    whose first line is a comment with the path of a module is also saved there. What only sleeps
    does so in virtual time, so that a busy machine changes no order.
    """
    loop_factory = None if is_slow(page) else VirtualTimeLoop
    differences = []
    module = types.ModuleType("__page__")
    sys.modules[module.__name__] = module  # where dataclasses and pickle look for it
    try:
        with own_logging(), asyncio.Runner(loop_factory=loop_factory) as runner:
            for block in blocks_of(page):
                if not block.runs:
                    if block.needs and "ASYNCFLOW_ALL_BLOCKS" in os.environ:
                        differences.append(f"{page.name}:{block.line} needs {block.needs}")
                    continue
                if saved := SAVED.match(block.code):
                    path = Path(saved["path"])
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_text(block.code, encoding="utf-8")
                printed = io.StringIO()
                with contextlib.redirect_stdout(printed):
                    awaitable = eval(compiled(block), vars(module))
                    if inspect.iscoroutine(awaitable):
                        runner.run(awaitable)
                expected, actual = block.prints, printed.getvalue()
                if expected is not None and without_times(expected) != without_times(actual):
                    differences.append(f"{page.name}:{block.line} prints\n{actual}not\n{expected}")
    finally:
        for value in vars(module).values():
            if isinstance(value, SQLiteJournal):  # a program's journal is closed as it ends
                value.close()
        del sys.modules[module.__name__]
    return differences


def compiled(block: Block) -> types.CodeType:
    return compile(
        "\n" * (block.line - 1) + block.code,  # so that a traceback names the line of the page
        str(block.page),
        "exec",
        flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT,
        dont_inherit=True,
    )


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


def test_the_code_of_the_docs_is_not_wider_than_their_column() -> None:
    wide = [
        f"{page.relative_to(ROOT)}:{block.line + number}"
        for page in (ROOT / "docs").rglob("*.md")
        for block in blocks_of(page)
        for number, line in enumerate(block.code.splitlines())
        if len(line) > 76 and not re.search("[\"']", line)  # a string stays in one piece
    ]

    assert wide == []


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

    def test_what_a_page_says_to_loggers_is_forgotten(self, page: Path) -> None:
        page.write_text(
            "```python\nimport logging\nlog = logging.getLogger('a page')\n"
            "log.setLevel('INFO')\nlog.addHandler(logging.NullHandler())\n```\n"
        )

        assert run_page(page) == []

        log = logging.getLogger("a page")
        assert (log.level, log.handlers) == (logging.NOTSET, [])

    def test_a_page_without_code_has_no_blocks(self, page: Path) -> None:
        page.write_text("# Words\n")

        assert list(blocks_of(page)) == []

    def test_blocks_in_other_languages_are_ignored(self, page: Path) -> None:
        page.write_text(
            "```console\n$ rm -r /\n```\n```python\nx = 1\n```\n```console\n$ ls\n```\n"
            "- item\n\n  ```python\n  y = 1\n  ```\nthen\n````text\n```python\nno\n```\n````\n"
        )

        assert [(block.code, block.prints) for block in blocks_of(page)] == [
            ("x = 1\n", None),
            ("y = 1\n", None),
        ]

    def test_a_block_whose_modules_are_missing_is_skipped_with_its_output(self, page: Path) -> None:
        page.write_text(
            "<!-- needs: json, airflow_of_tomorrow.sdk -->\n\n"
            "```python\nprint('never')\n```\n\n```text\nhere\n```\n"
            "<!-- needs: json, asyncio.tasks -->\n"
            "```python\nprint('wrong')\n```\n```text\nhere\n```\n"
            "```python\nprint('too')\n```\n```text\nhere\n```\n"
        )

        first, second, third = blocks_of(page)

        assert first.needs == ("json", "airflow_of_tomorrow.sdk")
        assert second.needs == ("json", "asyncio.tasks")
        assert third.needs == ()
        assert run_page(page) == [
            "page.md:12 prints\nwrong\nnot\nhere\n",
            "page.md:18 prints\ntoo\nnot\nhere\n",
        ]

    def test_a_needed_module_may_not_be_missing_where_all_blocks_must_run(
        self, page: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        page.write_text("<!-- needs: airflow_of_tomorrow -->\n```python\n1 / 0\n```\n")

        monkeypatch.setenv("ASYNCFLOW_ALL_BLOCKS", "1")

        assert run_page(page) == ["page.md:3 needs ('airflow_of_tomorrow',)"]

    def test_a_block_that_begins_with_a_path_is_saved_there(
        self, page: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        page.write_text("```python\n# flows/sales.py\nx = 1\n```\n```python\nprint(x)\n```\n")
        monkeypatch.chdir(page.parent)

        assert run_page(page) == []

        assert (page.parent / "flows" / "sales.py").read_text() == "# flows/sales.py\nx = 1\n"

    def test_a_block_without_await_may_start_an_event_loop(self, page: Path) -> None:
        page.write_text(
            "```python\nimport asyncio\nevent = asyncio.Event()\n```\n"
            "```python\nprint(asyncio.run(asyncio.sleep(0, 1)))\n```\n```text\n1\n```\n"
            "```python\nevent.set()\nprint(await event.wait())\n```\n```text\nTrue\n```\n"
        )

        assert run_page(page) == []
