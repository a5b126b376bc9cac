"""Connects a run to a journal: its protocol, and how a run stores its values.

Rules:

1. An action is called only after everything that happened before is stored, including the start of
   its attempt. So a process that dies has done nothing that the journal does not know of.
2. A report is returned only after the end of the run is stored.
3. In the events of a journal, outputs and inputs are `Payload` objects. The output of a mapped
   step as a whole is ``None``, because each of its items stores its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from asyncflow._core.analysis.statistics import step_runs_of
from asyncflow._core.errors import JournalError, PayloadError, RunCancelledError
from asyncflow._core.history.remote_output import RemoteOutput
from asyncflow._core.history.results import REDACTED, Key, Payload, SignalAnswer
from asyncflow._core.pipeline.graph import OutputTypes
from asyncflow._core.pipeline.signal import fits, is_plain, other_type, shape_of
from asyncflow._core.pipeline.step import WorkflowStep
from asyncflow._core.running.checkpoints import Checkpoints, StoredCall
from asyncflow._core.running.step_cache import CachedResult
from asyncflow._kernel.asyncio_compat import outlast
from asyncflow._policies.notes import OWN_LOGGER, STREAMS, log_level_of, wants_prints
from asyncflow.events import (
    Event,
    NoteEvent,
    StepLogged,
)

if TYPE_CHECKING:
    from asyncflow._core.history.log import History
    from asyncflow._core.history.replay import StoredRun

T = TypeVar("T")


# --- the protocol --------------------------------------------------------------------------------


class JournalSession(Protocol):
    """One run's access to a journal, while this process owns the run."""

    def watch(self, on_stop: Callable[[JournalError | RunCancelledError], object]) -> None:
        """Call a function in the event loop, not before its next turn, when the run must stop.

        With a `JournalError`, at most once, when the journal fails or another process takes over
        the run. With a `RunCancelledError`, at most once and before that, when the run is cancelled
        through the journal, which still stores what is appended.
        """

    def append(self, event: Event) -> None:
        """Append an event. Never blocks, and does nothing after a failure or the close.

        Events that are appended in one turn of the loop are stored together or not at all.
        So are those within a block of ``with session.together()``, if the session has that method:
        then a rerun that reuses many results begins in more than one turn.

        A session may have a method ``append_note``, which does the same for a `NoteEvent`: what
        steps say. These are no part of a run's history. Without the method they are not stored.

        It may have a method ``append_checkpoint(step, item, payload)``, which replaces what a step
        or an item has saved with `StepContext.checkpoint`, or with ``None`` deletes that. Its
        journal has a ``checkpoint_codec`` then. Checkpoints that are appended in one turn of the
        loop with events are stored together with these, or not at all. Such a session may also have
        ``append_call`` and ``load_call``, for what `StepContext.call` returns.

        It may have a method ``append_step_runs(steps)``, called right before the end of the run is
        appended, with how each step has ended, for statistics over many runs.
        """

    async def flush(self) -> None:
        """Wait until all events appended so far are stored; forever if the journal has failed.

        It may be cancelled at any time, without effect.
        """

    def close(self) -> Coroutine[Any, Any, None]:
        """Wait until all events are stored, and release the run.

        It begins at the call, and may be cancelled and called again.

        Raises:
            JournalError: The journal fails, or failed before.
        """
        ...


class SignalSession(JournalSession, Protocol):
    """A session that takes signals.

    With any other one, a run waits in its process, and only its handle can send them.
    """

    def on_signal(self, call: Callable[[], object], /) -> None:
        """Call a function in the event loop, in a later turn, when a signal may have come."""

    async def send(self, name: str, answer: SignalAnswer | None, /) -> None:
        """Store a value, or with ``None`` that the deadline of a signal has expired.

        The first one counts. Raise `ValueError` for another value. It is called when all that was
        appended is stored. The session knows the time, and a sender who has not said who it is.
        """

    async def receive(self) -> Mapping[str, SignalAnswer | None]:
        """Return what was sent to the run, by name; ``None`` stands for an expired deadline.

        It contains nothing that an event which was appended has made void or refused. It need not
        contain values that came before the run was opened, which the replay has, or what this has
        returned before.
        """
        ...


class CheckpointSession(Protocol):
    """A session that stores checkpoints."""

    def append_checkpoint(self, step: str, item: int | None, payload: Payload | None) -> None:
        """Replace the checkpoint of a step or an item; ``None`` deletes it, with its calls."""

    # A session that stores no calls has none of the following methods.

    def append_call(
        self, step: str, item: int | None, name: str, stored: StoredCall, /
    ) -> Awaitable[None]:
        """Store what a call by name of a step or an item has returned.

        It goes with the events of this turn, and before those of later ones. What is returned is
        done when it is stored, and raises a `JournalError` if it can't be.
        """
        ...

    async def load_call(self, step: str, item: int | None, name: str, /) -> StoredCall | None:
        """Return what a call by name has returned; ``None`` if it is damaged."""
        ...


class CachingSession(Protocol):
    """A session that remembers by which key a success may be reused."""

    def append_cached(self, key: str, attempts: int, duration_ms: float) -> asyncio.Future[None]:
        """Let the success that was appended last be found by a key.

        Return a future that is done when both are stored; never if that fails.
        """
        ...


class CachingJournal(Protocol):
    """A journal in which steps with ``cache_ms`` find results."""

    async def cached(self, key: str, age_ms: float, /) -> CachedResult | None:
        """Return the stored success with a key that is not older; ``None`` if there is none."""


class Journal(Protocol):
    """Stores the events of runs, as the journals of `asyncflow.journal` do.

    Its class may have two attributes: ``logs``, the level from which on it stores the log records
    of steps, or ``None``; and ``prints``, whether it stores what they print. Its sessions must
    take notes then.
    """

    def encode(self, subject: str, value: Any, hint: Any) -> Payload:
        """Encode a value.

        Args:
            subject: What the value is, for the error: "the output of step 'load'".
            value: The value.
            hint: Its type by annotations; `Any` if there are none.

        Raises:
            PayloadError: It would not come back equal.
        """
        ...

    def decode(self, subject: str, payload: Payload, hint: Any) -> Any:
        """Decode a value.

        Args:
            subject: What the value is, for the error.
            payload: What `encode` has returned for it.
            hint: Its type by annotations now; `Any` if there are none.

        Raises:
            PayloadError: It is not of that type.
        """
        ...

    async def open(
        self, run_id: str, *, wait: bool, read: Callable[[StoredRun], T]
    ) -> tuple[JournalSession, T]:
        """Become the only owner of a run, and replay its stored events.

        It may take a ``key`` too, a pair of the name of a pipeline and the key of a new run of it.
        Whenever a run with a key is opened, no other one of that pipeline and key may have an
        owner, or be one that a process will continue. If ``open`` has no such parameter, runs with
        this journal have no keys.

        Args:
            run_id: The run, which need not exist.
            wait: Whether to wait until another owner is gone.
            read: Called in another thread with the replay, which it may change; of a new run, it
                has no segments. Its ``checkpoints`` are what the session has stored, and its
                ``calls`` the names of the calls of which it has what they returned. Called again
                with another replay if events were read before the run was owned; the last answer
                counts.

        Returns:
            The run's session, and the last answer of ``read``.

        Raises:
            RunAlreadyActiveError: It has another owner, or another run has its key.
            JournalError: The journal fails.
            Exception: What ``read`` raised. The run has no owner then.
        """
        ...

    async def replay(self, run_id: str, read: Callable[[StoredRun], T]) -> T:
        """Replay the stored events of a run, without owning it, and return what ``read`` returns.

        Only reruns, previews and the reports of a pipeline call it, so that a journal without it
        still runs and resumes runs.

        Args:
            run_id: The run.
            read: Called in another thread with the replay, which it may change.

        Raises:
            RunNotFoundError: There is no such run.
            RunUnreadableError: It is damaged.
            JournalError: The journal fails.
            Exception: What ``read`` raised.
        """
        ...


# --- a run's values ------------------------------------------------------------------------------


class RunPersistence:
    """Stores what one run produces.

    The session stores log records from the level ``logs`` on; ``None`` for none.
    """

    def __init__(self, journal: Journal, session: JournalSession, types: OutputTypes) -> None:
        self.session = session
        self.has_closed = False
        # `LostRuns` opens a journal's runs, and is not what keeps them.
        kept_in: Journal = getattr(journal, "__wrapped__", journal)
        self.journal = kept_in
        self.types = types
        self.takes_notes = callable(getattr(type(session), "append_note", None))
        self.logs = log_level_of(kept_in) if self.takes_notes else None
        self.prints = self.takes_notes and wants_prints(kept_in)
        has_cache = callable(getattr(type(kept_in), "cached", None))
        self.caches = has_cache and callable(getattr(type(session), "append_cached", None))
        self.streams = self.takes_notes and callable(
            getattr(type(kept_in), "follow_streamed", None)
        )
        """Whether readers can follow in the journal what steps stream."""
        self.takes_checkpoints = callable(getattr(type(session), "append_checkpoint", None))
        self.takes_step_runs = callable(getattr(type(session), "append_step_runs", None))
        self.takes_signals = callable(getattr(type(session), "receive", None))
        self.together: Callable[[], AbstractContextManager[None]] | None
        self.together = getattr(session, "together", None)
        self.payloads: dict[Key, Payload] = {}
        """How the outputs are stored with which steps and items are about to succeed."""
        self.instead: dict[int, Event] = {}
        """What is stored instead of events that are about to be, by their ids."""

    def store_note(self, note: NoteEvent) -> None:
        """Store what a step said, unless it is a log record that the journal does not want."""
        if isinstance(note, StepLogged):
            if note.logger in STREAMS:
                is_wanted = self.prints
            else:
                is_wanted = self.logs is not None and note.level >= self.logs
            if not is_wanted and note.logger != OWN_LOGGER:
                return
        self.session.append_note(note)  # type: ignore[attr-defined]  # it takes notes

    def store_step_runs(self, history: History) -> None:
        """Store how the steps of a run have ended, which ends now."""
        steps = step_runs_of(history) if self.takes_step_runs else None
        if steps is not None:
            self.session.append_step_runs(steps)  # type: ignore[attr-defined]  # it takes them

    def checkpoints(self, stored: Mapping[Key, Payload]) -> Checkpoints:
        """Return the checkpoints of the run, with those that its earlier processes left."""
        if not self.takes_checkpoints:
            return Checkpoints()
        return Checkpoints(self.journal.checkpoint_codec, stored)  # type: ignore[attr-defined]

    def output(self, name: str, step: WorkflowStep, value: Any) -> Payload:
        """Encode an output; a secret one, or one that stayed on an engine, is replaced.

        ``name`` is that of the step, or of the item.
        """
        if step.secret:
            return REDACTED
        if isinstance(value, RemoteOutput):
            return value.to_payload()
        return self.journal.encode(f"the output of step {name!r}", value, self.types[step.name])

    def decode(self, step: WorkflowStep, payload: Payload) -> Any:
        """Decode a stored output of a step, or of an item."""
        subject = f"the stored output of step {step.name!r}"
        return self.journal.decode(subject, payload, self.types[step.name])

    def received(self, name: str, payload: Payload) -> Any:
        """Return the value of a signal that was sent; raise as `value_of_signal` does."""
        return value_of_signal(self.journal, name, payload, self.types[name])

    def is_for_another_version(self, name: str, payload: Payload, asked: Sequence[Any]) -> bool:
        """Whether a signal that is not of its type is one for which another version has asked."""
        return is_for_another_version(self.journal, self.types[name], payload, asked)

    def sent(self, name: str, value: Any) -> Payload:
        """Encode a value as it was given to a signal, so that every sender stores the same."""
        return self.journal.encode(
            f"signal {name!r}", value, Any if is_plain(value) else self.types[name]
        )

    async def close(
        self, run_id: str
    ) -> tuple[BaseException | None, asyncio.CancelledError | None]:
        """Wait until all events are stored, and release the run, even if cancelled meanwhile.

        Return the journal's failure, and the cancellation that came meanwhile, if any.
        """
        self.has_closed, cancellation = True, None
        while True:
            closing = asyncio.create_task(self.session.close(), name=f"asyncflow:{run_id}")
            late = await outlast(closing.done, partial(asyncio.wait, [closing]))
            cancellation = cancellation or late
            if not closing.cancelled():  # else by a third party
                break
        try:
            return closing.exception(), cancellation
        finally:
            del cancellation, late  # they keep this frame


# --- signals ----------------------------------------------------------------------------------


def value_of_signal(journal: Journal, name: str, payload: Payload, hint: Any) -> Any:
    """Return the value of a signal that was sent; raise `PayloadError` if it is not of its type."""
    subject = f"signal {name!r}"
    value, shape = journal.decode(subject, payload, hint), shape_of(hint)
    if not fits(value, shape):
        raise PayloadError(subject, other_type(value, shape))
    return value


def is_for_another_version(
    journal: Journal, hint: Any, payload: Payload, asked: Sequence[Any]
) -> bool:
    """Whether a signal that is not of its type here is one for which another version has asked.

    ``asked`` are the schemas that the run has stored for it. Such a value was acknowledged, so it
    is left to a process that can read it.
    """
    admits: Callable[[Any, Payload], bool] | None = getattr(journal, "admits", None)
    if admits is None:
        return False
    own = journal.schema(hint)  # type: ignore[attr-defined]  # it has both
    others = [schema for schema in asked if schema != own]
    return not admits(own, payload) and any(admits(schema, payload) for schema in others)


Journal.__module__ = "asyncflow"  # where users know it from
