"""What each test run starts from: which tests are slow, how many random examples, which signals.

``make test`` runs what is not slow. `SLOW` lists the reasons why a test is; pyproject.toml
describes them.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings
from postgres_server import PostgresServer, running_server

SLOW = frozenset(
    {"browser", "crash", "debug", "exhaustive", "postgres", "process", "realtime", "uvloop"}
)
NEEDS = {"browser": "browser", "orphanage": "process", "postgres_server": "postgres"}
"""The marks of tests by a fixture that they have."""

settings.register_profile(
    "quick",
    max_examples=20,
    derandomize=True,
    database=None,
    deadline=None,  # how long an example takes says nothing on a busy machine
    # mutmut runs all tests many times in one process, each time with new objects of their classes.
    suppress_health_check=[HealthCheck.differing_executors],
)
settings.register_profile(
    "thorough", settings.get_profile("quick"), max_examples=250, derandomize=False, print_blob=True
)
settings.load_profile("quick")


def pytest_configure(config: pytest.Config) -> None:
    """Let what tests start obey SIGINT and SIGHUP, also under ``nohup`` and ``&``.

    A child inherits an ignored signal; a handled one gets its default action back.
    """
    if not config.getoption("numprocesses", None):  # this process runs tests, and no workers
        os.environ.pop("COVERAGE_PROCESS_CONFIG", None)  # children of tests are not measured
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda *_: None)  # nohup's promise holds for the tests


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is slow, whatever the reason."""
    for item in items:
        for name in NEEDS.keys() & getattr(item, "fixturenames", ()):
            item.add_marker(NEEDS[name])
        if any(mark.name in SLOW for mark in item.iter_markers()):
            item.add_marker("slow")


_fast: list[str] = []
"""The test that runs now, if it is not slow."""


def _refuse_what_is_slow(event: str, arguments: tuple[object, ...]) -> None:
    is_long = event == "time.sleep" and arguments > (0.01,)  # what asks again and again may wait
    if _fast and (is_long or event in {"os.fork", "os.forkpty", "subprocess.Popen"}):
        raise RuntimeError(f"{event} in {_fast[0]}: mark the test as process or as realtime")


sys.addaudithook(_refuse_what_is_slow)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Hold the fast tests to what they are: without processes, and without real seconds."""
    _fast[:] = [] if item.get_closest_marker("slow") else [item.nodeid]
    result = yield
    _fast.clear()
    return result


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    with running_server() as server:
        yield server


@pytest.fixture
def dsn(postgres_server: PostgresServer) -> Iterator[str]:
    """The address of an empty database, to which no connection may be left at the end."""
    with postgres_server.empty_database() as address:
        yield address
