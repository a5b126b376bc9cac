"""The tests in docs/guides/testing.md pass."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
from test_docs_pages import ROOT, blocks_of

from asyncflow.testing import ExplorationError, run_in_virtual_time

PAGE = ROOT / "docs" / "guides" / "testing.md"


def page_tests() -> dict[str, Callable[[], Any]]:
    names: dict[str, Any] = {}
    for block in blocks_of(PAGE):
        if block.not_run is None and "def test_" in block.code:
            exec(compile(block.code, f"{PAGE}:{block.line}", "exec"), names)
    return {name: test for name, test in names.items() if name.startswith("test_")}


TESTS = page_tests()


STARTS_PROCESSES = "test_an_order_survives_the_process_that_has_logged_in"


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.process] if name == STARTS_PROCESSES else [])
        for name in TESTS
    ],
)
def test_a_test_of_the_page_passes(name):
    outcome = TESTS[name]()
    if inspect.isawaitable(outcome):
        run_in_virtual_time(outcome)


def test_the_page_has_tests_of_each_kind():
    assert len(TESTS) >= 7


def test_the_error_of_an_exploration_is_as_shown():
    shop = TESTS["test_an_exploration_finds_the_second_charge"].__globals__

    with pytest.raises(ExplorationError) as raised:
        shop["explore"](shop["shop"], shop["new_account"], check=shop["charged_once"])

    assert str(raised.value).replace(": \n", ":\n") in PAGE.read_text(encoding="utf-8")
