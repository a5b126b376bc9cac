"""Each row of docs/reference/semantics.md names tests that prove it, and these tests exist."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs" / "reference" / "semantics.md"

NAME = re.compile(r"`([\w/]+)((?:::\w+)+)`")


def rows_of(page: str) -> Iterator[tuple[str, list[tuple[str, tuple[str, ...]]]]]:
    """Yield the situation of each row, and its tests as file and path of names."""
    for row in re.split(r"^- ", page, flags=re.MULTILINE)[1:]:
        situation = re.match(r"\*\*(.+?):\*\*", row, re.DOTALL)
        title = " ".join(situation[1].split()) if situation else row
        names = [(file, tuple(names[2:].split("::"))) for file, names in NAME.findall(row)]
        yield title, names


@functools.cache
def collected_from(file: Path) -> frozenset[tuple[str, ...]]:
    """Return the tests that pytest collects from a file, as paths of names."""
    if not (file.name.startswith("test_") and file.is_file()):
        return frozenset()
    return frozenset(_collected_in(ast.parse(file.read_text(encoding="utf-8"))))


def _collected_in(scope: ast.Module | ast.ClassDef) -> Iterator[tuple[str, ...]]:
    for node in scope.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            if node.name.startswith("test"):
                yield (node.name,)
        elif isinstance(node, ast.ClassDef) and node.name.startswith("Test"):
            yield from ((node.name, *names) for names in _collected_in(node))


def mistakes_in(page: str, tests: Path = TESTS) -> list[str]:
    """Return what is wrong with the rows of a page."""
    mistakes = []
    for title, names in rows_of(page):
        if not names:
            mistakes.append(f"{title}: no test")
        for file, path in names:
            if path not in collected_from(tests / f"{file}.py"):
                mistakes.append(f"{title}: there is no test {file}::{'::'.join(path)}")
    return mistakes


def test_each_row_names_tests_that_exist() -> None:
    page = PAGE.read_text(encoding="utf-8")

    assert len([*rows_of(page)]) == page.count("\n- **") > 90
    assert mistakes_in(page) == []


@pytest.fixture
def tests(tmp_path: Path) -> Path:
    (tmp_path / "driver").mkdir()
    (tmp_path / "driver" / "test_it.py").write_text(
        "import pytest\n"
        "async def test_plain(): ...\n"
        "@pytest.mark.parametrize('x', [1])\ndef test_parametrized(x): ...\n"
        "class TestOne:\n    class TestTwo:\n        async def test_method(self): ...\n"
        "class Helper:\n    def test_of_no_test_class(self): ...\n"
        "def test_outer():\n    def test_inner(): ...\n"
    )
    return tmp_path


@pytest.mark.parametrize(
    "name",
    ["test_plain", "test_parametrized", "TestOne::TestTwo::test_method", "test_outer"],
)
def test_a_test_is_found_wherever_pytest_finds_it(tests: Path, name: str) -> None:
    assert mistakes_in(f"- **It rains:** Wet.\n    - `driver/test_it::{name}`\n", tests) == []


@pytest.mark.parametrize(
    "name",
    [
        "driver/test_it::test_renamed",
        "driver/test_it::TestTwo::test_method",
        "driver/test_it::test_method",
        "driver/test_it::Helper::test_of_no_test_class",
        "driver/test_it::test_inner",
        "driver/test_other::test_plain",
        "driver/it::test_plain",
    ],
)
def test_what_pytest_does_not_collect_proves_nothing(tests: Path, name: str) -> None:
    page = f"- **It rains:** Wet.\n    - `driver/test_it::test_plain`\n    - `{name}`\n"

    assert mistakes_in(page, tests) == [f"It rains: there is no test {name}"]


def test_a_row_without_a_test_is_noticed(tests: Path) -> None:
    page = (
        "- **It\n  rains:** `wet`, says `driver::x`.\n"
        "- **It pours:** Wet.\n    - `driver/test_it::test_plain`\n"
    )

    assert mistakes_in(page, tests)[0] == "It rains: there is no test driver::x"
    assert mistakes_in(page.replace("`driver::x`", "nothing"), tests) == ["It rains: no test"]
