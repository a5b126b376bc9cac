"""Dispatches a run's events: applies them to the state, and tells the policies before and after.

Before an event is applied, a policy may report others. Afterwards those that store it come first,
then the observers: nothing is reported that was not stored.
"""

from __future__ import annotations

from collections.abc import Callable

from asyncflow._core.running.state import RunState
from asyncflow._kernel.policy import NO_HOOKS
from asyncflow._kernel.run_scope import Host
from asyncflow.events import Event

_FAILED = "a policy failed"


class EventDispatcher:
    """The only writer of a run's history."""

    def __init__(self, state: RunState, host: Host) -> None:
        self._state = state
        self._run = host
        self.hooks = NO_HOOKS
        """Those of the run's policies, from its start to its end."""
        self._announced = 0
        """How many events are about to be applied: a policy may report one before another."""
        self._held: list[Callable[[], object]] = []
        """What waits until these were told."""

    def emit(self, event: Event) -> None:
        """Apply an event, and tell the policies."""
        hooks = self.hooks
        try:
            if hooks.on_event:
                self._announced += 1
                try:
                    for hook in hooks.on_event:
                        hook(event)
                finally:
                    self._announced -= 1
        except BaseException as bug:
            self._run.broken(bug, _FAILED)
        self._state.apply(event)
        try:
            for hook in hooks.on_applied:
                hook(event)
        except BaseException as bug:
            self._run.broken(bug, _FAILED)
        if self._held:
            self._call_held()

    def applied(self, event: Event) -> None:
        """Tell the policies of an event that the state has already."""
        # The loops of `emit` again: a function for them made runs with an observer a fifth slower.
        hooks = self.hooks
        try:
            self._announced += 1
            try:
                for hook in hooks.on_event:
                    hook(event)
            finally:
                self._announced -= 1
            for hook in hooks.on_applied:
                hook(event)
        except BaseException as bug:
            self._run.broken(bug, _FAILED)
        if self._held:
            self._call_held()

    def after_event(self, call: Callable[[], object]) -> None:
        """Call it now; or, if an event is about to be applied, when that was told.

        Policies may tell others of something before an event, and that may interrupt the run: but
        the event was decided before, and what it says must still be true when it is applied.
        """
        if self._announced:
            self._held.append(call)
        else:
            call()

    def _call_held(self) -> None:
        while self._held and not self._announced:
            self._held.pop(0)()
