"""The phases that a step of a run goes through, or an item of a mapped step."""

from __future__ import annotations

__all__ = [
    "ATTEMPTING",
    "CLEARED",
    "DOOMED",
    "HANDED_OUT",
    "IN_FLIGHT",
    "MAPPING",
    "PENDING",
    "PHASES",
    "QUEUED",
    "READY",
    "SETTLED",
    "WAITING",
    "WITHDRAWN",
]

# Plain integers: they are compared for every event.
PENDING = 0
READY = 1
HANDED_OUT = 2
DOOMED = 3
WITHDRAWN = 4
ATTEMPTING = 5
WAITING = 6
QUEUED = 7
CLEARED = 8
MAPPING = 9
SETTLED = 10

PHASES = (
    "the step's turn has not come",
    "the step is ready",
    "the step is about to start",
    "the step will never start",
    "the step was ready when the run stopped",
    "an attempt of the step is running",
    "the step waits for its next attempt",
    "the step stands in line for its next attempt",
    "the step is about to start its next attempt",
    "the step goes through its items",
    "the step has ended",
)
"""Each of them in words."""

IN_FLIGHT = (HANDED_OUT, CLEARED, ATTEMPTING)
"""Those that count against ``max_concurrency`` and the pools."""
