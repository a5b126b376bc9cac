"""Observers: what receives the events of runs, and how a run gets its own.

Rules:

1. An observer that raises an `Exception` or a cancellation, wherever it is called, is logged and
   not called again in that run. It never changes the run.
2. Anything else that it raises, such as a `KeyboardInterrupt`, ends the run.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, cast

from asyncflow._core.arguments import is_async
from asyncflow._core.history.results import Interruption
from asyncflow._kernel.asyncio_compat import FAILURES
from asyncflow._kernel.policy import Policy
from asyncflow._policies.loop_monitor import NOT_THE_TASK
from asyncflow.events import AttemptStarted, Event

if TYPE_CHECKING:
    from asyncflow._kernel.run_scope import Host
    from asyncflow._policies.notes import NoteQueue

_log = logging.getLogger("asyncflow")


class Observer(Protocol):
    """Called with every event of a run, in order, as it happens.

    What steps say is among the events: progress and attachments, and log records if the observer's
    class has an attribute ``logs`` with the level from which on it wants them, or the journal wants
    them. With an attribute ``prints`` that is ``True``, it receives printed lines too.

    It must return at once: the event loop waits for it. One that raises an `Exception`, or a
    cancellation, is logged and not called again in that run; the run continues.

    It may also have a method ``enter_attempt``, which is called with the `AttemptStarted` of each
    attempt, after the observer itself. It runs in the context in which the action is called next.
    So the context variables that it sets are visible to this attempt's action, to what that calls,
    and to the threads and tasks that inherit its context, and nowhere else.
    """

    def __call__(self, event: Event, /) -> object: ...


class ObserverFactory(Protocol):
    """Gives each run an observer of its own, so that one object can watch many runs at once."""

    def for_run(self) -> Observer:
        """Return the observer of one run.

        It is called once at the start of each run, in the task that runs it. If it raises an
        `Exception`, or a cancellation, that is logged, and the run continues without the observer.
        """
        ...


AnyObserver: TypeAlias = Observer | ObserverFactory


class _Entering(Protocol):
    def enter_attempt(self, running: AttemptStarted, /) -> object:
        """Act in the context of an attempt."""
        ...


def entry_of(observer: Observer) -> Callable[[AttemptStarted], object] | None:
    """Return what an observer does in the context of each attempt, if it does anything there."""
    if not _has_method(observer, "enter_attempt"):
        return None
    return cast("_Entering", observer).enter_attempt


def for_run(observers: Sequence[AnyObserver]) -> tuple[Observer, ...]:
    """Return the observers of a run that is about to start."""
    if not observers:
        return ()
    return tuple(own for each in observers if (own := _of_one_run(each)) is not None)


def check_observers(observers: object) -> tuple[AnyObserver, ...]:
    """Return the observers that a user gives."""
    if callable(observers) or _is_factory(observers) or not isinstance(observers, Iterable):
        raise TypeError("observers must be a list of callables; put a single one in a list")
    checked = tuple(observers)
    for observer in checked:
        if not _is_factory(observer):
            _check(observer)
        elif isinstance(observer, type):
            name = observer.__name__
            raise TypeError(f"an observer must be an object, not a class: write {name}()")
        elif is_async(observer.for_run):
            raise TypeError("for_run of an observer must be a plain method, not an async one")
    return checked


def _of_one_run(observer: AnyObserver) -> Observer | None:
    if not _is_factory(observer):
        return cast("Observer", observer)
    try:
        own: Observer = cast("ObserverFactory", observer).for_run()
        _check(own)
    except FAILURES:
        _log.exception("for_run of an observer failed; the run continues without it")
        return None
    return own


def _is_factory(observer: object) -> bool:
    return _has_method(observer, "for_run")


def _has_method(observer: object, name: str) -> bool:
    # In its class, or is one: a mock, which is a good observer too, has whatever it is asked for.
    kind = observer if isinstance(observer, type) else type(observer)
    return callable(getattr(kind, name, None))


def _check(observer: object) -> None:
    if not callable(observer):
        raise TypeError(
            f"an observer must be callable or have a method for_run, not {type(observer).__name__}"
        )
    if is_async(observer):
        raise TypeError(
            "an observer must be a plain function, not an async one; let it put events into "
            "a queue that something async reads"
        )


class Observing(Policy):
    """The policy of a run that has observers.

    The ``host`` is interrupted when an observer raises something else than an `Exception`, such as
    a `KeyboardInterrupt`. ``notes`` learn when observers are called, if they take log records:
    those of an observer belong to no step.
    """

    def __init__(
        self, host: Host, observers: tuple[Observer, ...], notes: NoteQueue | None
    ) -> None:
        self._run = host
        self._observers = observers
        self._notes = notes

    def enter(self, running: AttemptStarted) -> None:
        """Let the observers act in the context of an attempt."""
        self.notify(running, entry_of)

    def notify(
        self,
        event: Any,
        entry: Callable[[Observer], Callable[[Any], object] | None] | None = None,
    ) -> None:
        """Notify the observers of an event, or of what a step says.

        ``entry`` returns what of an observer is called instead of itself, if anything is.
        """
        interruptions = []
        notes = self._notes
        is_nested = notes is not None and notes.notifying(True)
        for observer in self._observers:
            try:
                call = observer if entry is None else entry(observer)
                if call is not None:
                    call(event)
            except BaseException as error:
                self._observers = tuple(one for one in self._observers if one is not observer)
                if isinstance(error, FAILURES):
                    _log_failure(event)
                else:
                    interruptions.append(error)
        if notes is not None:
            notes.notifying(is_nested)
        while interruptions:  # after all were notified, so that they see the events in order
            reason = f"an observer raised {type(interruptions[0]).__name__}"
            self._run.interrupt(interruptions[0], Interruption("observer", reason))
            del interruptions[0]  # an error keeps this frame

    on_applied = notify  # the hook itself: each event of a run goes through it


class AttemptEntries(Policy):
    """The policy of a run with an observer that does something in the context of each attempt."""

    def __init__(self, observing: Observing) -> None:
        self._observing = observing

    def on_attempt(self, running: AttemptStarted) -> None:
        self._observing.enter(running)


def _log_failure(event: Event) -> None:
    """Log the exception of an observer, which is being handled."""
    kind, subject = type(event).__name__, event.step or "the run"
    _log.exception("an observer failed and is not called again, at %s of %s", kind, subject)


NOT_THE_TASK.add(Observing.notify.__code__)

for _public in (Observer, ObserverFactory):
    _public.__module__ = "asyncflow"  # where users know them from
