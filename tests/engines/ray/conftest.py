"""A Ray cluster of two nodes on this machine, for all tests of this folder.

Ray replaces 127.0.0.1 by an address that others can reach. So these tests run only in a network
namespace that has nothing but the loopback interface; CONTRIBUTING.md has the command.
"""

from __future__ import annotations

import os
import shutil
import socket
import struct
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from ray_clusters import NODE


@pytest.fixture(scope="session")
def own_network() -> None:
    """Skip the tests unless they have a network of their own, and bring its loopback up."""
    if [name for _, name in socket.if_nameindex()] != ["lo"]:
        pytest.skip("needs a network namespace of its own: `make test-ray`")
    import fcntl  # not on Windows, which has no namespaces either

    up, get_flags, set_flags = 1, 0x8913, 0x8914
    with socket.socket() as any_socket:
        request = struct.pack("16sh14x", b"lo", 0)
        flags = struct.unpack("16sh14x", fcntl.ioctl(any_socket, get_flags, request))[1]
        fcntl.ioctl(any_socket, set_flags, struct.pack("16sh14x", b"lo", flags | up))


@pytest.fixture(scope="session")
def ray_folder() -> Iterator[Path]:
    """The folder of the cluster, with its logs."""
    # The paths of the sockets in it must be short.
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    yield Path(folder)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def cluster(own_network: None, ray_folder: Path) -> Iterator[Any]:
    """A cluster of two nodes with one processor each."""
    pytest.importorskip("ray")
    os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_DEDUP_LOGS="0")
    # Its workers find what is sent to them by name.
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)
    from ray.cluster_utils import Cluster

    head = {**NODE, "include_dashboard": False, "temp_dir": str(ray_folder)}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        cluster.add_node(**NODE)
        yield cluster
    finally:
        cluster.shutdown()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def engine(cluster: Any) -> AsyncIterator[Any]:
    """An engine of that cluster, which most tests share, with a host on each node."""
    from asyncflow.engines.ray import RayEngine

    async with RayEngine(cluster.address) as engine:
        yield engine
