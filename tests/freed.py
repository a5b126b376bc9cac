"""What steps hold, to see that a run frees it without the garbage collector."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["Held", "Holding", "without_collector"]


class Held:
    """A thing that a weak reference can tell about."""


class Holding(list[weakref.ref[Held]]):
    """Makes things to hold, and tells which of them are still there."""

    def __call__(self) -> Held:
        thing = Held()
        self.append(weakref.ref(thing))
        return thing

    def alive(self) -> list[Held]:
        return [thing for each in self if (thing := each()) is not None]


@contextmanager
def without_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
