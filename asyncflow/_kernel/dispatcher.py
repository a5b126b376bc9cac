"""Dispatches a run's events: applies them to the state, and tells the policies before and after.

Before an event is applied, a policy may report others. Afterwards those that store it come first,
then the observers: nothing is reported that was not stored.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from asyncflow._core.state import RunState
from asyncflow._kernel.policy import Hooks
from asyncflow._kernel.run_scope import Host
from asyncflow.events import Event

_FAILED = "a policy failed"


class EventDispatcher:
    """The only writer of a run's history."""

    def __init__(self, state: RunState, host: Host) -> None:
        self._state = state
        self._run = host
        self.hooks = Hooks()
        """Those of the run's policies, from its start to its end."""
        self._held: list[Callable[[], object]] | None = None
        """What waits for the event that is about to be applied; ``None`` if there is none."""

    def emit(self, event: Event) -> None:
        """Apply an event, and tell the policies."""
        held = self._announce(event) if self.hooks.on_event else ()
        self._state.apply(event)
        self._tell(event, held)

    def applied(self, event: Event) -> None:
        """Tell the policies of an event that the state has already."""
        self._tell(event, self._announce(event))

    def after_event(self, call: Callable[[], object]) -> None:
        """Call it now; or, if an event is about to be applied, when that was told.

        Policies may tell others of something before an event, and that may interrupt the run: but
        the event was decided before, and what it says must still be true when it is applied.
        """
        if self._held is None:
            call()
        else:
            self._held.append(call)

    def _announce(self, event: Event) -> Sequence[Callable[[], object]]:
        """Tell the policies of an event that is about to be applied; return what waits for it."""
        held = list[Callable[[], object]]()
        around, self._held = self._held, held  # a policy may report another event before this one
        try:
            for hook in self.hooks.on_event:
                hook(event)
        except BaseException as bug:
            self._run.broken(bug, _FAILED)
        self._held = around
        return held

    def _tell(self, event: Event, held: Sequence[Callable[[], object]]) -> None:
        try:
            for hook in self.hooks.on_applied:
                hook(event)
        except BaseException as bug:
            self._run.broken(bug, _FAILED)
        for call in held:
            call()
