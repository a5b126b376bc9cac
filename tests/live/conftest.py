"""Tests of what is seen in a terminal: nothing of the terminal that they run in counts."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator

import pytest

VARIABLES = (
    *("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "COLORTERM"),
    *("TTY_COMPATIBLE", "TTY_INTERACTIVE", "UNICODE_VERSION"),
)


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    left = set(threading.enumerate()) - before
    assert not [thread for thread in left if thread.name.startswith("asyncflow:live")]


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_call(item: pytest.Function) -> Generator[None, object, object]:
    """Let the terminal of a test stand for the program's, after pytest has put its own there."""
    seen = item.funcargs.get("seen")
    if seen is not None:
        seen.stand_in()
    return (yield)
