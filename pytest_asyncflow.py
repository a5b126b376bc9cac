"""The pytest plugin: fixtures, the marker ``virtual_time``, and the runs of a failed test.

Rules:

1. pytest imports this module in every test run where asyncflow is installed. It stands beside the
   package, since importing that takes longer than a plugin may. So it imports asyncflow only for
   the tests that use it.
2. What is recorded belongs to the session of pytest: a test may start another one in its process.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from _pytest.unittest import TestCaseFunction

if TYPE_CHECKING:
    from asyncflow.journal import SQLiteJournal
    from asyncflow.testing import Fakes
    from asyncflow.testing._recorded_runs import RecordedRuns

__all__ = ["asyncflow_fakes", "asyncflow_journal"]

_MARKER = (
    "virtual_time(seed=None): run an async test on an asyncio event loop whose clock jumps to the "
    "next timer; with a seed, what is ready at the same time runs in a random order "
    "(asyncflow.testing.VirtualTimeLoop)"
)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("asyncflow")
    group.addoption(
        "--asyncflow-html",
        metavar="DIR",
        help="keep an HTML page of each asyncflow run of a failed test in this folder",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", _MARKER)
    folder = config.getoption("asyncflow_html")
    if folder is not None:  # workers of pytest-xdist take over the option
        config.option.asyncflow_html = str(Path(config.invocation_params.dir, folder).absolute())


# Fixtures.


@pytest.fixture
def asyncflow_journal(tmp_path: Path) -> Iterator[SQLiteJournal]:
    """A journal in a temporary SQLite file, which is closed after the test."""
    from asyncflow.journal import SQLiteJournal

    journal = SQLiteJournal(tmp_path / "asyncflow.db")
    try:
        yield journal
    finally:
        journal.close()


@pytest.fixture
def asyncflow_fakes() -> Iterator[Callable[..., Fakes]]:
    """`asyncflow.testing.fake` without a ``with`` block: the fakes work until the test ends."""
    from asyncflow.testing import fake

    entered: list[Fakes] = []

    def asyncflow_fakes(pipeline: Any, /, **steps: Any) -> Fakes:
        fakes = fake(pipeline, **steps)
        fakes._enter_everywhere()
        entered.append(fakes)
        return fakes

    try:
        yield asyncflow_fakes
    finally:
        for fakes in reversed(entered):
            fakes._leave_everywhere()


# The marker. Other plugins run async tests and fixtures; this one gives them the event loop, and
# runs a test itself if none of them does.


@pytest.hookimpl(tryfirst=True)
def pytest_pycollect_makeitem(collector: Any, name: str, obj: Any) -> None:
    """Make a marked test one of pytest-asyncio in its strict mode too."""
    test = obj.hypothesis.inner_test if hasattr(obj, "hypothesis") else obj
    if not inspect.iscoroutinefunction(test) or not collector.istestfunction(obj, name):
        return
    marks = {mark.name for mark in (*collector.iter_markers(), *getattr(obj, "pytestmark", ()))}
    config = collector.config
    if "virtual_time" in marks and config.pluginmanager.has_plugin("asyncio"):
        if not hasattr(config.hook, "pytest_asyncio_loop_factories"):
            raise pytest.UsageError("the marker virtual_time needs pytest-asyncio 1.4 or newer")
        if not marks & {"asyncio", "anyio"} and not _anyio_runs_all(config):
            pytest.mark.asyncio(obj)


def _anyio_runs_all(config: pytest.Config) -> bool:
    if not config.pluginmanager.has_plugin("anyio"):
        return False
    mode: str | None = config.getoption("anyio_mode", None)
    return (mode or config.getini("anyio_mode")) == "auto"


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> Generator[None, None, None]:
    marker = metafunc.definition.get_closest_marker("virtual_time")
    if marker is None:
        return (yield)
    seed = _seed_of(marker, metafunc.definition)
    if "anyio_backend" in metafunc.fixturenames:  # pytest-asyncio may run the test all the same
        _use_with_anyio(metafunc, _anyio_backend(seed))
    if not hasattr(metafunc.config.hook, "pytest_asyncio_loop_factories"):
        return (yield)
    # For this test only: where this hook has an implementation, it must answer for every test.
    factories = _LoopFactories(_loop_factory(seed))
    metafunc.config.pluginmanager.register(factories)
    try:
        return (yield)
    finally:
        metafunc.config.pluginmanager.unregister(factories)


def _seed_of(marker: pytest.Mark, test: pytest.Item) -> int | None:
    problem = f"{test.nodeid}: the marker virtual_time"
    if marker.args or marker.kwargs.keys() - {"seed"}:
        raise pytest.UsageError(f"{problem} takes seed=... and nothing else")
    seed: int | None = marker.kwargs.get("seed")
    if seed is not None and type(seed) is not int:
        raise pytest.UsageError(f"{problem} takes an int as its seed, not {seed!r}")
    return seed


@functools.cache
def _loop_factory(seed: int | None) -> Callable[[], Any]:
    def virtual_time() -> Any:
        from asyncflow.testing import VirtualTimeLoop

        return VirtualTimeLoop(seed)

    return virtual_time


@functools.cache
def _anyio_backend(seed: int | None) -> tuple[str, dict[str, Any]]:
    return "asyncio", {"loop_factory": _loop_factory(seed)}


class _LoopFactories:
    """Tells pytest-asyncio which event loop to use."""

    def __init__(self, make_loop: Callable[[], Any]) -> None:
        self._make_loop = make_loop

    @pytest.hookimpl(tryfirst=True)
    def pytest_asyncio_loop_factories(self) -> dict[str, Callable[[], Any]]:
        return {"virtual_time": self._make_loop}


def _use_with_anyio(metafunc: pytest.Metafunc, backend: tuple[str, dict[str, Any]]) -> None:
    """Set the backend of anyio, as a parameter of the test that its id does not show."""
    if "anyio_backend" not in metafunc._arg2fixturedefs:
        raise pytest.UsageError(
            f"{metafunc.definition.nodeid}: the marker virtual_time chooses the backend of anyio; "
            "remove anyio_backend from the test's parametrize"
        )
    (*_, fixture) = metafunc._arg2fixturedefs["anyio_backend"]
    hidden: Any = getattr(pytest, "HIDDEN_PARAM", "virtual_time")  # before pytest 8.4, it shows
    parameters = [pytest.param(backend, id=hidden)]
    metafunc.definition.add_marker(
        pytest.mark.parametrize("anyio_backend", parameters, scope=fixture.scope)
    )


def _refuse_real_time(item: pytest.Item) -> None:
    """Fail a marked test that would run in real time, as if it had no marker.

    The test case of unittest makes a loop of its own. Other tests may have got the marker when
    their event loop had been chosen already.
    """
    marker = item.get_closest_marker("virtual_time")
    if marker is None or not isinstance(item, pytest.Function):
        return
    if isinstance(item, TestCaseFunction):
        if inspect.iscoroutinefunction(item.obj):
            pytest.fail(
                "the marker virtual_time has no effect on the async tests of a unittest test "
                "case; call asyncflow.testing.run_in_virtual_time in a plain one",
                pytrace=False,
            )
        return
    by_asyncio = type(item).__module__.startswith("pytest_asyncio")
    if not by_asyncio and "anyio_backend" not in item.fixturenames:
        return
    seed = _seed_of(marker, item)
    wanted = _loop_factory(seed) if by_asyncio else _anyio_backend(seed)
    callspec = getattr(item, "callspec", None)
    if callspec is None or not any(value is wanted for value in callspec.params.values()):
        pytest.fail(
            "the marker virtual_time was added after pytest had collected this test; mark its "
            "function, class or module, or see docs/guides/testing.md for all tests at once",
            pytrace=False,
        )


def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    marker = pyfuncitem.get_closest_marker("virtual_time")
    if marker is None or not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    from asyncflow.testing import run_in_virtual_time

    names = pyfuncitem._fixtureinfo.argnames
    test = pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names})
    run_in_virtual_time(test, seed=_seed_of(marker, pyfuncitem))
    return True


# The runs of a failed test.

_RUNS: pytest.StashKey[RecordedRuns] = pytest.StashKey()
"""Those of the test that is running, in the stash of its session, if asyncflow is imported."""


def _record(config: pytest.Config) -> None:
    if "asyncflow" in sys.modules and _RUNS not in config.stash:
        from asyncflow.testing._recorded_runs import RecordedRuns

        runs = RecordedRuns(keeps_reports=config.getoption("asyncflow_html") is not None)
        runs.begin()
        config.stash[_RUNS] = runs


def _stop_recording(config: pytest.Config) -> None:
    if _RUNS in config.stash:
        config.stash[_RUNS].end()
        del config.stash[_RUNS]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    try:
        return (yield)
    finally:
        _stop_recording(item.config)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    _stop_recording(item.config)  # some plugins repeat a test that failed
    _record(item.config)
    _refuse_real_time(item)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> None:
    _record(item.config)  # a fixture may have imported asyncflow


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    report = yield
    runs = item.config.stash.get(_RUNS, None)
    if report.failed and runs:
        lines = [*runs.lines()]
        folder = item.config.getoption("asyncflow_html")
        if folder is not None:
            lines += runs.write_pages(Path(folder), item.nodeid)
        report.sections.append(("asyncflow runs", "\n".join(lines)))
    return report


def pytest_assertrepr_compare(
    config: pytest.Config, op: str, left: object, right: object
) -> list[str] | None:
    runs = config.stash.get(_RUNS, None)
    if runs is None:
        return None
    from asyncflow.testing._recorded_runs import explain

    return explain(op, left, right, runs)
