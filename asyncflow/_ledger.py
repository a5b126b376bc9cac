"""The books of a run: its state, and the events that are entered into it and told to observers."""

from __future__ import annotations

import asyncio
from abc import abstractmethod

from asyncflow._cancels import FAILURES
from asyncflow._core.state import RunState
from asyncflow._journal import Book
from asyncflow._observers import Observer, entry_of, log_failure
from asyncflow.events import AttemptStarted, Event

__all__ = ["CALLS_OBSERVERS", "Ledger"]


class Ledger:
    """Enters what happens into the state of a run, and tells it to the observers."""

    # Here and above, since the attributes of a run are more than Python keeps with an object: it
    # would look each of them up in a dictionary.
    __slots__ = ("_book", "_has_entries", "_loop", "_observers", "_started", "_state")

    def __init__(self, state: RunState, observers: tuple[Observer, ...], book: Book | None) -> None:
        self._state = state
        self._observers = observers
        self._has_entries = any(entry_of(observer) is not None for observer in observers)
        """Whether an observer does something in the context of each attempt."""
        self._book = book
        self._loop = asyncio.get_running_loop()
        # The clock of a run stands still while no process runs it.
        self._started = self._loop.time() - state.limits.began_ms / 1000

    @abstractmethod
    def _interrupt(self, cause: BaseException, reason: str) -> None:
        """Stop the run because of something that it shall raise."""

    def _now_ms(self) -> float:
        return (self._loop.time() - self._started) * 1000

    def _emit(self, event: Event, kept: Event | None = None) -> None:
        """Enter an event into the books.

        Args:
            event: The event.
            kept: The same, as a journal keeps it, if that is not the same.
        """
        self._state.apply(event)
        self._pass_on(event, kept)

    def _pass_on(self, event: Event, kept: Event | None = None) -> None:
        """Have an event kept that was applied, and tell it to the observers."""
        if self._book is not None:
            self._book.add(event if kept is None else kept)
        if self._observers:
            self._tell(event)

    def _tell(self, event: Event, *, entered: AttemptStarted | None = None) -> None:
        """Call the observers with an event; or in the context of an attempt that is entered."""
        interruptions = []
        for observer in self._observers:
            try:
                if entered is None:
                    observer(event)
                elif (entry := entry_of(observer)) is not None:
                    entry(entered)
            except BaseException as error:
                self._observers = tuple(one for one in self._observers if one is not observer)
                if isinstance(error, FAILURES):
                    log_failure(event)
                else:
                    interruptions.append(error)
        while interruptions:  # after all have been told, so that they hear it in order
            self._interrupt(
                interruptions[0], f"an observer raised {type(interruptions[0]).__name__}"
            )
            del interruptions[0]  # an error keeps this frame


CALLS_OBSERVERS = Ledger._tell.__code__
"""What is called from here is an observer's, in whatever task that may be."""
