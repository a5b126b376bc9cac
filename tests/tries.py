"""How often what is random is tried: as often as is said, or less where others try it in full."""

from __future__ import annotations

import os

__all__ = ["tries"]

_SHARES = {"": 1, "all": 1, "third": 3}
_share = _SHARES[os.environ.get("ASYNCFLOW_TRIES", "")]


def tries(count: int) -> int:
    """Return how often to try: ``count``, or a third of it with ``ASYNCFLOW_TRIES=third``."""
    return -(-count // _share)
