"""A Ray cluster of two nodes on this machine, and what its tests ask of processes.

Ray replaces 127.0.0.1 by an address that others can reach. So a cluster starts only in a network
namespace that has nothing but the loopback interface; CONTRIBUTING.md has the command.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NODE: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 200 * 2**20}
"""The options of each node of the cluster."""


def has_own_network() -> bool:
    """Whether this process has a network of its own; if so, bring its loopback interface up."""
    if [name for _, name in socket.if_nameindex()] != ["lo"]:
        return False
    import fcntl  # not on Windows, which has no namespaces either

    up, get_flags, set_flags = 1, 0x8913, 0x8914
    with socket.socket() as any_socket:
        request = struct.pack("16sh14x", b"lo", 0)
        flags = struct.unpack("16sh14x", fcntl.ioctl(any_socket, get_flags, request))[1]
        fcntl.ioctl(any_socket, set_flags, struct.pack("16sh14x", b"lo", flags | up))
    return True


def set_environment(folder: Path) -> None:
    """Let Ray, and the processes that it starts, use this folder and nothing of this user."""
    # Workers find what is sent to them by name.
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)
    os.environ.update(
        RAY_AUTH_MODE="disabled",
        RAY_DEDUP_LOGS="0",
        RAY_TMPDIR=str(folder),
        RAY_USAGE_STATS_ENABLED="0",
    )


@contextmanager
def two_nodes(folder: Path, **options: Any) -> Iterator[Any]:
    """Start a cluster of two nodes with one processor each.

    Args:
        folder: Takes its logs and sockets, whose paths must be short.
        options: Other options of the nodes; the resources are those of the first one.
    """
    set_environment(folder)
    from ray.cluster_utils import Cluster

    node = NODE | options
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    node.pop("resources", None)
    try:
        cluster.add_node(**node)
        yield cluster
    finally:
        cluster.shutdown()


def is_running(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


async def until(happened: Callable[[], object], seconds: float = 60) -> float:
    """Wait until something has happened, and return how many seconds that took."""
    began_s = time.monotonic()
    while not happened():
        assert time.monotonic() - began_s < seconds
        await asyncio.sleep(0.01)
    return time.monotonic() - began_s
