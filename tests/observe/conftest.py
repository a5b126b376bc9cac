"""Run the tests of observers in virtual time, also with eager tasks, and with the real SDK."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping

import pytest
from telemetry import Telemetry

from asyncflow.testing import VirtualTimeLoop


class EagerLoop(VirtualTimeLoop):
    """The eager task factory, which runs a task up to its first wait while creating it."""

    def __init__(self) -> None:
        super().__init__()
        self.set_task_factory(asyncio.eager_task_factory)


LOOPS: dict[str, type[asyncio.AbstractEventLoop]] = {"virtual": VirtualTimeLoop}
if sys.version_info >= (3, 12):
    LOOPS["eager"] = EagerLoop


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, type[asyncio.AbstractEventLoop]]:
    return LOOPS


@pytest.fixture
def otel() -> Telemetry:
    return Telemetry()
