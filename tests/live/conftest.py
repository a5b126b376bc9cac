"""Fixtures that isolate these tests from the terminal in which they run."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator

import pytest

VARIABLES = (
    *("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "COLORTERM"),
    *("TTY_COMPATIBLE", "TTY_INTERACTIVE", "UNICODE_VERSION"),
)


@pytest.fixture(autouse=True)
def reset_terminal_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


@pytest.fixture(autouse=True)
def no_live_thread_remains() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    remaining = set(threading.enumerate()) - before
    assert not [thread for thread in remaining if thread.name.startswith("asyncflow:live")]


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_call(item: pytest.Function) -> Generator[None, object, object]:
    """Install the streams of the test's terminal after pytest has installed its own."""
    screen = item.funcargs.get("screen")
    if screen is not None:
        screen.install()
    return (yield)
