"""Dispatches a run's events: applies them to the state, and tells the policies before and after.

Before an event is applied, a policy may report others. Afterwards those that store it come first,
then the observers: nothing is reported that was not stored.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from asyncflow._core.state import RunState
from asyncflow._core.step import WorkflowStep
from asyncflow._runtime.policy import Policy, overriding
from asyncflow._runtime.run_scope import Host
from asyncflow.events import AttemptStarted, Event


class EventDispatcher:
    """The only writer of a run's history.

    Attributes:
        is_heard: Whether a policy takes events that were applied. If none does, the fast path of
            an attempt makes none.
        has_entries: Whether a policy acts in the context of each attempt.
    """

    def __init__(self, state: RunState, host: Host) -> None:
        self._state = state
        self._run = host
        self._before: tuple[Callable[[Event], None], ...] = ()
        self._after: tuple[Callable[[Event], None], ...] = ()
        self._entries: tuple[Callable[[AttemptStarted], None], ...] = ()
        self._outputs: tuple[Callable[[int, WorkflowStep, Any], None], ...] = ()
        self.is_heard = self.has_entries = False

    def tell(self, policies: Sequence[Policy]) -> None:
        """Tell these policies, in this order; with none, let go of all."""
        self._before = overriding(policies, Policy.on_event)
        self._after = overriding(policies, Policy.on_applied)
        self._entries = overriding(policies, Policy.on_attempt)
        self._outputs = overriding(policies, Policy.on_output)
        self.is_heard, self.has_entries = bool(self._after), bool(self._entries)

    def emit(self, event: Event) -> None:
        """Apply an event, and tell the policies."""
        self._tell(self._before, event)
        self._state.apply(event)
        self._tell(self._after, event)

    def applied(self, event: Event) -> None:
        """Tell the policies of an event that the state has already."""
        self._tell(self._before, event)
        self._tell(self._after, event)

    def _tell(self, hooks: tuple[Callable[[Event], None], ...], event: Event) -> None:
        for hook in hooks:
            try:
                hook(event)
            except BaseException as bug:
                self._run.broken(bug, f"a policy failed at {type(event).__name__}")

    def enter(self, running: AttemptStarted) -> None:
        """Let the policies act in the context of an attempt, which must be the current one."""
        for hook in self._entries:
            hook(running)

    def take_output(self, node: int, step: WorkflowStep, output: Any) -> None:
        """Let the policies have the output with which a node is about to succeed, or refuse it."""
        for hook in self._outputs:
            hook(node, step, output)
