"""Nested runs: those that actions of a run start, and that drain when it drains.

Rules:

1. A nested run that drains and is not complete stands still instead of raising: its error would
   fail the step that awaits it, and nothing would resume the outer run.
2. An attempt all of whose nested runs stand still can't continue. It is stopped, and then they
   raise. Until then, the others have the time that running steps have.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import Context, ContextVar

from asyncflow._core.history.results import Key
from asyncflow._core.running.context import current_attempt

_nested: ContextVar[NestedRuns] = ContextVar("asyncflow.nested_runs")
"""Those of the run whose action is running."""


class NestedRuns:
    """The nested runs of one run, in its event loop.

    The attempts of the run start in ``context``, and ``stop`` stops one, although it runs.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        context: Context,
        stop: Callable[[Key], object],
    ) -> None:
        context.run(_nested.set, self)
        self._loop = loop
        self._stop: Callable[[Key], object] | None = stop
        self._runs: dict[Key, set[NestedLink]] = {}
        self._drain_reason = ""

    def enter(self, key: Key, drain: Callable[[str], object]) -> NestedLink | None:
        """Note that an attempt runs a run; return its link, or ``None`` in another loop.

        ``drain`` drains the run, from the next turn of the loop on.
        """
        if asyncio.get_running_loop() is not self._loop:
            return None
        nested = NestedLink(self, key, drain)
        self._runs.setdefault(key, set()).add(nested)
        if self._drain_reason:
            drain(self._drain_reason)
        return nested

    def leave(self, nested: NestedLink) -> None:
        """Note that a run has ended."""
        runs = self._runs.get(nested.key, set())
        runs.discard(nested)
        if runs:
            self.check(nested.key)
        else:
            self._runs.pop(nested.key, None)

    def drain(self, reason: str) -> None:
        """Drain the nested runs that there are, and those that come."""
        self._drain_reason = reason
        for runs in self._runs.values():
            for nested in runs:
                nested.drain(reason)

    def check(self, key: Key) -> None:
        """Stop an attempt if its run drains and all of its nested runs stand still."""
        runs = self._runs.get(key, set())
        if all(nested.may_raise for nested in runs):
            if self._drain_reason and self._stop is not None:
                self._stop(key)
            for nested in runs:
                if nested.may_raise and not nested.may_raise.done():
                    nested.may_raise.set_result(None)

    def close(self) -> None:
        """Let go of the run. Nested runs that an action has left behind may outlive it."""
        self._stop = None


class NestedLink:
    """Connects a nested run with the run around it.

    ``runs`` are all nested runs of the other run, and ``drain`` is as `NestedRuns.enter` takes it.
    """

    def __init__(self, runs: NestedRuns, key: Key, drain: Callable[[str], object]) -> None:
        self._runs = runs
        self.key = key
        self.drain = drain
        self.may_raise: asyncio.Future[None] | None = None
        """Done when the run may raise that it was drained; set once it stands still."""

    async def stand_still(self) -> asyncio.CancelledError | None:
        """Wait until the run may raise; return the cancellation that came meanwhile, if any."""
        may_raise = self.may_raise = asyncio.get_running_loop().create_future()
        self._runs.check(self.key)
        try:
            while not may_raise.done():
                await asyncio.wait([may_raise])
        except asyncio.CancelledError as cancellation:
            return cancellation
        return None

    def leave(self) -> None:
        """Note that the run has ended."""
        self._runs.leave(self)


def is_nested() -> bool:
    """Whether an action of a run, in any event loop, leads to here."""
    return _nested.get(None) is not None


def enter_outer_run(drain: Callable[[str], object]) -> NestedLink | None:
    """Note that the current attempt runs a run; ``None`` if there is none in this loop."""
    runs = _nested.get(None)
    attempt = None if runs is None else current_attempt()
    if runs is None or attempt is None:
        return None
    _, started = attempt
    return runs.enter((started.step, started.item), drain)
