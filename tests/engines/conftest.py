"""Time is virtual in the tests of engines, unless they wait for processes or for real seconds."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from engines.dask.cluster import DaskCluster, other_python

from asyncflow.testing import VirtualTimeLoop


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, type[asyncio.AbstractEventLoop]]:
    if any(map(item.get_closest_marker, ("process", "ray", "realtime"))):
        return {"asyncio": asyncio.SelectorEventLoop}
    return {"virtual": VirtualTimeLoop}


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Don't import Dask for the fast tests: it changes how their errors are pickled."""
    is_fast = config.getoption("markexpr") == "not slow"
    return True if is_fast and collection_path.name == "dask" else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let Dask warn of different versions of Python, which the tests have on purpose."""
    for item in items:
        if "dask" in item.nodeid:
            item.add_marker(pytest.mark.filterwarnings("ignore:Mismatched versions found"))


@pytest.fixture(scope="session")
def dask_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaskCluster]:
    """A scheduler and two workers, each a process; one has another minor version of Python.

    That one has the resource "other", the other one has "same".
    """
    cluster = DaskCluster(tmp_path_factory.mktemp("dask"))
    cluster.start_worker("--resources=same=1000")
    cluster.start_worker("--resources=other=1000", python=other_python() or sys.executable)
    try:
        yield cluster
    finally:
        cluster.close()


@pytest.fixture
def diary(tmp_path: Path) -> str:
    """The path of a file where bodies in any process note what they do."""
    return str(tmp_path / "diary")
