"""Run each test of the driver on every event loop that users have.

Time is real on uvloop, so delays are short and no test asserts their length; it is virtual on the
others. ``make test-all`` adds uvloop and asyncio's debug mode.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Mapping

import pytest
import uvloop

from asyncflow.testing import VirtualTimeLoop


class DebugLoop(VirtualTimeLoop):
    """asyncio's debug mode."""

    def __init__(self) -> None:
        super().__init__()
        self.set_debug(True)


class EagerLoop(VirtualTimeLoop):
    """The eager task factory, which runs a task up to its first wait while creating it."""

    def __init__(self) -> None:
        super().__init__()
        self.set_task_factory(asyncio.eager_task_factory)


LOOPS: dict[str, type[asyncio.AbstractEventLoop]] = {
    "asyncio": VirtualTimeLoop,
    "uvloop": uvloop.Loop,
    "debug": DebugLoop,
}
if sys.version_info >= (3, 12):
    LOOPS["eager"] = EagerLoop

_ABOUT_DATA = frozenset(
    f"test_{subject}"
    for subject in (
        *("attachments", "durable", "fallback", "inputs", "inspection", "notes"),
        *("observers", "pipeline", "pool_needs", "rerun", "resumed_history"),
    )
)
"""Files about what steps receive, leave, say and store, which depends on no loop."""

_ABOUT_ORDER = frozenset(
    f"test_{subject}"
    for subject in (
        *("cache", "chains", "checkpoints", "conditions", "pool_pauses", "pools"),
        *("calls", "preview", "retry", "signals", "streaming"),
    )
)
"""Files about what starts after what, which depends on when a loop begins a task. Debug mode begins
it as asyncio does; and on uvloop, whose time is real, a busy machine would decide the order."""


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, type[asyncio.AbstractEventLoop]]:
    # Another process has its own loop.
    if item.path.stem in _ABOUT_DATA or item.get_closest_marker("process"):
        return {"asyncio": LOOPS["asyncio"]}
    if item.path.stem in _ABOUT_ORDER or item.get_closest_marker("exact_time"):
        return {name: loop for name, loop in LOOPS.items() if name not in {"debug", "uvloop"}}
    return LOOPS


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests on loops that ``make test`` excludes."""
    for item in items:
        if isinstance(item, pytest.Function) and hasattr(item, "callspec"):
            loop = item.callspec.params.get("_asyncio_loop_factory")
            if loop in (uvloop.Loop, DebugLoop):
                item.add_marker("uvloop" if loop is uvloop.Loop else "debug")


_UNANNOUNCED_S = 20.0
"""The default ``timeout_ms`` is 30 s: a test that comes near it may see that limit instead of what
it is about. In real time, how long a test takes depends on the load of the machine."""


@pytest.fixture(autouse=True)
async def ends_in_time_and_leaves_nothing(request: pytest.FixtureRequest) -> AsyncIterator[None]:
    """Check that no task outlives the test and the loop reported no error.

    A test that takes long in virtual time fails too, unless it is marked ``long_time``. One fixture
    checks both, since each costs as much as a short test.
    """
    loop = asyncio.get_running_loop()
    errors: list[dict[str, object]] = []
    loop.set_exception_handler(lambda _, context: errors.append(context))
    before, started_s = asyncio.all_tasks(), loop.time()

    yield

    if isinstance(loop, VirtualTimeLoop) and not request.node.get_closest_marker("long_time"):
        took_s = loop.time() - started_s
        assert took_s <= _UNANNOUNCED_S, f"mark the test as long_time, or let it end: {took_s:g} s"
    assert {task for task in asyncio.all_tasks() if task not in before} <= {asyncio.current_task()}
    assert errors == []
