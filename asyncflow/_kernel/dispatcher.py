"""Dispatches a run's events: applies them to the state, and tells the policies before and after.

Before an event is applied, a policy may report others. Afterwards those that store it come first,
then the observers: nothing is reported that was not stored.
"""

from __future__ import annotations

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

    def emit(self, event: Event) -> None:
        """Apply an event, and tell the policies."""
        hooks = self.hooks
        try:
            for hook in hooks.on_event:
                hook(event)
        except BaseException as bug:
            self._run.broken(bug, _FAILED)
        self._state.apply(event)
        try:
            for hook in hooks.on_applied:
                hook(event)
        except BaseException as bug:
            self._run.broken(bug, _FAILED)

    def applied(self, event: Event) -> None:
        """Tell the policies of an event that the state has already."""
        try:
            for hook in (*self.hooks.on_event, *self.hooks.on_applied):
                hook(event)
        except BaseException as bug:
            self._run.broken(bug, _FAILED)
