"""How often what is random is tried: as often as is said, or less where others try it in full."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TypeVar

__all__ = ["in_full", "some", "tries"]

T = TypeVar("T")

_SHARES = {"": 1, "all": 1, "third": 3}
_share = _SHARES[os.environ.get("ASYNCFLOW_TRIES", "")]
in_full = _share == 1
"""Whether all is tried."""


def tries(count: int) -> int:
    """Return how often to try: ``count``, or a third of it with ``ASYNCFLOW_TRIES=third``."""
    return -(-count // _share)


def some(things: Sequence[T]) -> Sequence[T]:
    """Return all of these, or every third one with ``ASYNCFLOW_TRIES=third``."""
    return things[::_share]
