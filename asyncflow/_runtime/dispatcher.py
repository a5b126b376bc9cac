"""Dispatches a run's events: applies them to the state, stores them, notifies observers.

Rules:

1. An observer that raises an `Exception` or a cancellation, wherever it is called, is logged and
   not called again in that run. It never changes the run.
2. Anything else that it raises, such as a `KeyboardInterrupt`, ends the run.
3. What is not stored is not reported: a journal gets an event before the observers do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from asyncflow._core.results import Interruption, Payload
from asyncflow._runtime.asyncio_compat import FAILURES
from asyncflow._runtime.observers import Observer, entry_of, log_failure
from asyncflow._runtime.run_scope import Host, RunScope
from asyncflow.events import AttemptStarted, Event, NoteEvent, StepSucceeded

if TYPE_CHECKING:
    from asyncflow._runtime.checkpoint_writer import CheckpointWriter
    from asyncflow._runtime.durable import CheckpointSession


class EventDispatcher:
    """The only writer of a run's history: applies an event, stores it, notifies the observers.

    The ``host`` ends for what an observer raised that is not the observer's to raise.
    """

    def __init__(self, scope: RunScope, host: Host, observers: tuple[Observer, ...]) -> None:
        notes, persistence = scope.notes, scope.persistence
        self._notes = notes
        self._takes_logs = notes is not None and notes.takes_logs
        self.checkpoints: CheckpointWriter | None = None
        """Stores the checkpoints of steps; ``None`` without a journal that does."""
        if persistence is not None and persistence.takes_checkpoints:
            from asyncflow._runtime.checkpoint_writer import CheckpointWriter  # others need none

            session = cast("CheckpointSession", persistence.session)
            self.checkpoints = CheckpointWriter(scope, session)
        self._persistence = persistence
        self._state = scope.state
        self._session = None if persistence is None else persistence.session
        self.observers = observers
        self._run = host
        self.has_entries = any(map(entry_of, observers))
        """Whether an observer does something in the context of each attempt."""

    def emit(self, event: Event, stored: Event | None = None) -> None:
        """Apply an event, store it, and notify the observers.

        ``stored`` is the event to store, if that is another one.
        """
        if self._notes is not None and self._notes.has_any:
            self._notes.before(event)
        if self.checkpoints is not None and self.checkpoints.has_any:
            self.checkpoints.before(event)
        self._state.apply(event)
        if self._session is not None:
            self._session.append(event if stored is None else stored)
        if self.observers:
            self._call_observers(event, lambda observer: observer)

    def succeed(self, success: StepSucceeded, payload: Payload | None) -> None:
        """Do the same with a success, whose output a journal stores as the payload."""
        persistence = self._persistence
        self.emit(success, None if persistence is None else persistence.stored(success, payload))

    def notify(self, event: Event) -> None:
        """Notify the observers of an event that was applied."""
        if self._notes is not None and self._notes.has_any:
            self._notes.before(event)
        self._call_observers(event, lambda observer: observer)

    def note(self, note: NoteEvent, *, store: bool = True, notify: bool = True) -> None:
        """Store what an attempt said, and notify the observers."""
        if store and self._persistence is not None and self._persistence.takes_notes:
            self._persistence.store_note(note)
        if notify and self.observers:
            self._call_observers(note, lambda observer: observer)

    def enter(self, running: AttemptStarted) -> None:
        """Let the observers act in the context of an attempt, which must be the current one."""
        self._call_observers(running, entry_of)

    def _call_observers(
        self, event: Any, entry: Callable[[Observer], Callable[[Any], object] | None]
    ) -> None:
        interruptions = []
        notes = self._notes if self._takes_logs else None
        is_nested = notes is not None and notes.notifying(True)
        for observer in self.observers:
            try:
                call = entry(observer)
                if call is not None:
                    call(event)
            except BaseException as error:
                self.observers = tuple(one for one in self.observers if one is not observer)
                if isinstance(error, FAILURES):
                    log_failure(event)
                else:
                    interruptions.append(error)
        if notes is not None:
            notes.notifying(is_nested)
        while interruptions:  # after all were notified, so that they see the events in order
            reason = f"an observer raised {type(interruptions[0]).__name__}"
            self._run.interrupt(interruptions[0], Interruption("observer", reason))
            del interruptions[0]  # an error keeps this frame


OBSERVER_CALLS = EventDispatcher._call_observers.__code__
"""What is called from here is an observer's, in whatever task that may be."""
