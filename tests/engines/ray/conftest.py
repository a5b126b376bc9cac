"""A Ray cluster for all tests of this folder, and an engine that most of them share."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from ray_clusters import has_own_network, set_environment, two_nodes


@pytest.fixture(scope="session")
def ray_folder() -> Iterator[Path]:
    """The folder of the cluster, with its logs."""
    if find_spec("ray") is None:
        pytest.skip("Ray is not installed: make test-ray")
    if not has_own_network():
        pytest.skip("Ray needs a network namespace of its own: make test-ray")
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    set_environment(Path(folder))
    yield Path(folder)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def cluster(ray_folder: Path) -> Iterator[Any]:
    """A cluster of two nodes with one processor each."""
    with two_nodes(ray_folder) as cluster:
        yield cluster


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def engine(cluster: Any) -> AsyncIterator[Any]:
    """An engine of that cluster, with a host on each node."""
    from asyncflow.engines.ray import RayEngine

    async with RayEngine(cluster.address) as engine:
        yield engine
