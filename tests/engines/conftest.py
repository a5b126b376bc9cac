"""Time is virtual in the tests of engines, unless they wait for processes or for real seconds."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest

from asyncflow.testing import VirtualTimeLoop


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, type[asyncio.AbstractEventLoop]]:
    if any(map(item.get_closest_marker, ("process", "ray", "realtime"))):
        return {"asyncio": asyncio.SelectorEventLoop}
    return {"virtual": VirtualTimeLoop}
