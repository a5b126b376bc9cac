"""What is to be known of the clocks of event loops."""

from __future__ import annotations

import asyncio
import time

__all__ = ["TIMER_SLACK_S", "has_virtual_time"]

TIMER_SLACK_S = 0.001
"""How much earlier than asked a timer may fire: uvloop counts in whole ms (uvloop #739)."""


def has_virtual_time(loop: asyncio.AbstractEventLoop) -> bool:
    """Whether the loop's clock is its own, and not the one that all real loops share."""
    return abs(loop.time() - time.monotonic()) > 1
