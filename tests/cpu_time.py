"""Measures CPU time, for tests that compare two measurements of one test run."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable

__all__ = ["cpu_seconds"]


def cpu_seconds(action: Callable[[], object], repeats: int = 5) -> float:
    """Return the median of several measurements, taken without the garbage collector."""
    taken = []
    gc.collect()
    gc.disable()
    try:
        for _ in range(repeats):
            began = time.process_time()
            action()
            taken.append(time.process_time() - began)
    finally:
        gc.enable()
    return statistics.median(taken)
