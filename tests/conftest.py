"""Marks the slow tests, which ``make test`` excludes, and sets up every test process.

pyproject.toml describes the marks.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Generator, Iterator

import pytest
from hypothesis import HealthCheck, settings
from listed_skips import refuse_an_unlisted_skip
from postgres_server import PostgresServer, running_server

SLOW = frozenset(
    {"browser", "crash", "debug", "exhaustive", "postgres", "process", "ray", "realtime", "uvloop"}
)
NEEDS = {
    "browser": "browser",
    "built_site": "process",
    "dask_cluster": "process",
    "needs_mkdocs": "process",
    "orphaned_journal": "process",
    "postgres_server": "postgres",
}
"""The mark that a test gets from a fixture that it uses."""

settings.register_profile(
    "quick",
    max_examples=20,
    derandomize=True,
    database=None,
    deadline=None,  # the duration of an example depends on the load of the machine
    # mutmut runs all tests many times in one process, with new instances of their classes.
    suppress_health_check=[HealthCheck.differing_executors],
)
# More of them by hand, the same each time: what fails for one change must not be an older bug.
settings.register_profile("thorough", settings.get_profile("quick"), max_examples=50)
settings.register_profile(
    "random", settings.get_profile("quick"), max_examples=2_000, derandomize=False, print_blob=True
)
settings.load_profile("quick")


def pytest_configure(config: pytest.Config) -> None:
    """Give child processes of the tests the default actions of SIGINT and SIGHUP.

    ``nohup`` and ``&`` ignore these signals, and a child inherits that. A signal with a handler has
    its default action in a child.
    """
    gc.disable()  # until the tests are collected: next to nothing of theirs is garbage
    if not config.getoption("numprocesses", None):  # this process runs tests: it has no workers
        os.environ.pop("COVERAGE_PROCESS_CONFIG", None)  # coverage does not measure its children
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda *_: None)  # the tests themselves still ignore it


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test as ``slow`` that has one of the slow marks, and let crashes come first.

    These wait for leases for up to a minute, while which others can run.
    """
    items.sort(key=lambda item: item.get_closest_marker("crash") is None)
    for item in items:
        for name in NEEDS.keys() & getattr(item, "fixturenames", ()):
            item.add_marker(NEEDS[name])
        if any(mark.name in SLOW for mark in item.iter_markers()):
            item.add_marker("slow")


def pytest_collection_finish() -> None:
    """Keep half a gigabyte of collected tests out of each later collection of garbage."""
    gc.freeze()
    gc.enable()


_fast: list[str] = []
"""The id of the running test; empty while a slow test runs."""


def _refuse_slow_calls(event: str, arguments: tuple[object, ...]) -> None:
    is_long = event == "time.sleep" and arguments > (0.01,)  # a poll may sleep for a moment
    if _fast and (is_long or event in {"os.fork", "os.forkpty", "subprocess.Popen"}):
        raise RuntimeError(f"{event} in {_fast[0]}: mark the test as process or as realtime")


sys.addaudithook(_refuse_slow_calls)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Fail a fast test that starts a process or sleeps."""
    _fast[:] = [] if item.get_closest_marker("slow") else [item.nodeid]
    result = yield
    _fast.clear()
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    refuse_an_unlisted_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    refuse_an_unlisted_skip(report)  # of a whole module
    return report


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown(nextitem: pytest.Item | None) -> None:
    """Let the fixtures of slow tests end with the last test, also where that is a fast one."""
    if nextitem is None:
        _fast.clear()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    with running_server() as server:
        yield server


@pytest.fixture
def dsn(postgres_server: PostgresServer) -> Iterator[str]:
    """The DSN of an empty database; a connection left open fails the test."""
    with postgres_server.empty_database() as address:
        yield address
