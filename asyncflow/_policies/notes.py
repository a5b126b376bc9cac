"""What the attempts of a run say, on its way from any thread to the event loop of the run.

Rules:

1. Any thread may say something at any time, and never waits for the loop. The loop passes it on.
2. What is said after the run has closed, or in a fork of its process, is dropped.
3. What is too much, or refused where nothing can raise, is left out. Of an attempt, the first
   records and the last ones stay, and a record between them says how many are missing, and why.
4. A secret value that is known is replaced in texts. A secret step keeps nothing but its progress.
"""

from __future__ import annotations

import asyncio
import contextvars
import math
import os
import threading
from collections import Counter, deque
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeAlias

from asyncflow._core.errors import PayloadError
from asyncflow._core.history.log import StartedAttempt
from asyncflow._core.running.context import capturing_notes
from asyncflow._core.running.secret_texts import SecretTexts
from asyncflow._core.running.streamed import joined, without_secrets
from asyncflow._core.text import cut, left_out
from asyncflow._kernel.policy import Policy
from asyncflow._policies.attempt_notes import FirstAndLast
from asyncflow._policies.log_capture import capture, text_of
from asyncflow.events import (
    AttemptFailed,
    Event,
    NoteEvent,
    StepAttached,
    StepCalled,
    StepCancelled,
    StepFailed,
    StepLogged,
    StepProgressed,
    StepStreamed,
    StepSucceeded,
)

if TYPE_CHECKING:
    from asyncflow._kernel.run_scope import RunScope
    from asyncflow._policies.durable import RunPersistence
    from asyncflow._policies.observers import Observing
    from asyncflow._policies.run_link import RunLink

OWN_LOGGER = "asyncflow"
"""The logger of records that say what is missing. What it logs itself is about runs, not steps."""

STREAMS = {"stdout": 20, "stderr": 30}
"""The levels of printed lines, whose loggers have the names of their streams."""

_LONGEST_TEXT = 8_000
"""How many characters of a message, with its traceback, are kept."""
_ATTEMPT_RECORDS, _ATTEMPT_CHARACTERS = 1_000, 256_000
_RUN_RECORDS, _RUN_CHARACTERS = 20_000, 8_000_000
_RUN_ATTACHED = 10_000_000
"""How many bytes the attachments of a run may have."""
_LONGEST_REASON, _MOST_REASONS = 500, 10
"""How many characters of a reason why something is missing are kept, and how many reasons of an
attempt."""
_LAST_RECORDS = 20
"""How many records of an attempt that says too much are kept from its end."""

_REPORT_S, _STORE_S = 0.1, 1.0
"""How long after a progress the next one is reported to observers, and stored."""

_STREAM_S = 0.02
"""How long values that are streamed wait for more of them."""

_HIGHEST_LEVEL = 2**31 - 1
"""Databases have no larger ones."""

_Key: TypeAlias = tuple[str, int | None, int]
"""A step, an item and the number of an attempt."""

_Said: TypeAlias = tuple[float, float, float | None, str]
"""The time of a progress, and what it says."""


def log_level_of(wanting: object) -> int | None:
    """Return from which level on a journal or an observer wants log records, if it does.

    Its class must have the attribute: a mock has whatever it is asked for.
    """
    level = getattr(wanting, "logs", None) if hasattr(type(wanting), "logs") else None
    return level if isinstance(level, int) and not isinstance(level, bool) else None


def wants_prints(wanting: object) -> bool:
    """Whether a journal or an observer wants printed lines."""
    return hasattr(type(wanting), "prints") and getattr(wanting, "prints", False) is True


class _NotesOfAttempt:
    """What is known of one attempt that has said something."""

    def __init__(self, key: _Key) -> None:
        self.key = key
        self.records = FirstAndLast(_ATTEMPT_RECORDS, _ATTEMPT_CHARACTERS, _LAST_RECORDS)
        self.hidden = 0
        """How many records and attachments are missing because the step is secret."""
        self.refused: Counter[tuple[str, str]] = Counter()
        """What else is missing: what it is, and why."""
        self.latest: _Said | None = None
        """The latest progress, of which observers and the journal may have an earlier one."""
        self.reported: _Said | None = None
        self.stored: _Said | None = None
        self.is_waiting = False
        """Whether the loop will report the latest progress."""
        self.streamed: list[str] = []
        """What it has streamed since that was passed on, each value as JSON."""
        self.streamed_ms = 0.0
        """When it has streamed the first one of these."""
        self.streamed_size = 0
        """How many bytes it has streamed in all."""
        self.unfinished: dict[tuple[str, int], str] = {}
        """The line that a thread has begun to print to a stream."""

    def refuse(self, count: int, what: str, why: str) -> None:
        """Count what is missing, and keep the first reasons."""
        if (what, why) not in self.refused and len(self.refused) >= _MOST_REASONS:
            what, why = next(reversed(self.refused))
        self.refused[what, why] += count


class NoteQueue:
    """The notes of one run.

    ``now_ms`` returns the milliseconds since the start of the run. ``secrets`` are replaced in
    texts, and ``secret`` are the names of the secret steps. Log records are kept from ``level`` on;
    ``None`` for none. ``segment`` is that of the run, and ``max_stream_bytes`` what its journal
    stores of what an attempt streams; ``None`` without a journal.
    """

    def __init__(
        self,
        now_ms: Callable[[], float],
        *,
        secrets: SecretTexts,
        secret: Collection[str] = (),
        level: int | None = None,
        prints: bool = False,
        segment: int = 1,
        max_stream_bytes: int | None = None,
    ) -> None:
        self.level = level
        self.prints = prints
        self.takes_logs = level is not None or prints
        self.has_any = False
        """Whether an attempt has said something."""
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._process = os.getpid()
        self._context: contextvars.Context | None = contextvars.copy_context()
        """The context of the task that runs the run: what observers do belongs to no attempt."""
        self._now_ms = now_ms
        self._secret = frozenset(secret)
        self._secrets = secrets
        self._receiver: Noted | None = None
        self._is_notifying = False
        self._lock = threading.RLock()  # the collector may run what logs within any call
        self._queue: deque[NoteEvent] = deque()
        self._attempts: dict[_Key, _NotesOfAttempt] = {}
        self._records = self._characters = self._attached = 0
        self._is_scheduled = False
        self._waiting: deque[_NotesOfAttempt] = deque()
        """The attempts whose progress must be reported to observers."""
        self._unstored: dict[_NotesOfAttempt, None] = {}
        """Those whose progress must be stored."""
        self._segment = segment
        self._max_stream_bytes = max_stream_bytes
        self._streaming: dict[_NotesOfAttempt, None] = {}
        """Those that have streamed what was not passed on."""
        self._stream_timer: asyncio.TimerHandle | None = None
        self._report_at = self._store_at = -math.inf
        self._timer: asyncio.TimerHandle | None = None

    # What attempts say, in any thread.

    def progress(
        self, running: StartedAttempt, done: float, total: float | None, unit: str, /
    ) -> None:
        """Take the progress of an attempt."""
        key = running[0], running[4], running[1]
        with self._lock:
            attempt = self._attempts.get(key) or self._attempt(key)
            attempt.latest = self._now_ms(), done, total, unit
            if not attempt.is_waiting and self._is_open():
                attempt.is_waiting = True
                self._waiting.append(attempt)
                self._wake()

    def attach(
        self, running: StartedAttempt, name: str, data: object, media_type: str | None, /
    ) -> None:
        """Take an attachment; raise what `StepContext.attach` raises."""
        from asyncflow._policies.attachments import attachment_of, without_secrets  # few need it

        media_type, content = attachment_of(name, data, media_type)
        media_type, content = without_secrets(media_type, content, self._secrets.replaced)
        if not self._is_open():
            return
        step, number, _, _, item = running
        with self._lock:
            attempt = self._attempt((step, item, number))
            if step in self._secret:
                attempt.hidden += 1
            elif (
                attempt.records.count >= _ATTEMPT_RECORDS
                or self._records >= _RUN_RECORDS
                or self._attached + len(content) > _RUN_ATTACHED
            ):
                attempt.records.left_out += 1
            else:
                attempt.records.count += 1
                self._records += 1
                self._attached += len(content)
                shown = cut(self._secrets.replaced(name), _LONGEST_TEXT)
                self._put(
                    StepAttached(step, number, self._now_ms(), shown, media_type, content, item)
                )

    def called(self, running: StartedAttempt, name: str, duration_ms: float, size: int, /) -> None:
        """Take a call by name that has returned."""
        step, number, _, _, item = running
        if step in self._secret or not self._is_open():
            return
        with self._lock:
            attempt = self._attempt((step, item, number))
            if attempt.records.count >= _ATTEMPT_RECORDS or self._records >= _RUN_RECORDS:
                attempt.records.left_out += 1
                return
            attempt.records.count += 1
            self._records += 1
            shown = self._secrets.replaced(name)
            self._put(StepCalled(step, number, self._now_ms(), shown, duration_ms, size, item))

    def log(
        self,
        running: StartedAttempt,
        level: int,
        logger: str,
        message: str | Mapping[Any, Any],
        traceback: str = "",
        /,
    ) -> None:
        """Take a log record; its message is a text, or an event of structlog."""
        if not self._is_heard():
            return
        if not isinstance(message, str):
            message = text_of(message)  # before the lock: it calls the user's objects
        step, number, _, _, item = running
        with self._lock:
            attempt = self._attempt((step, item, number))
            if step in self._secret:
                attempt.hidden += 1
                return
            text = self._short(message, _LONGEST_TEXT)
            trace = traceback and self._short(traceback, _LONGEST_TEXT - len(text))
            level, name = min(int(level), _HIGHEST_LEVEL), self._secrets.replaced(logger)
            event = StepLogged(step, number, self._now_ms(), level, name, text, item, trace)
            size = len(text) + len(trace)
            if self._records >= _RUN_RECORDS or self._characters + size > _RUN_CHARACTERS:
                attempt.records.left_out += 1
            elif attempt.records.is_first(event, size):
                self._records += 1
                self._characters += size
                self._put(event)

    def printed(self, running: StartedAttempt, stream: str, text: str, /) -> None:
        """Take what was written to a standard stream; whole lines become records."""
        if not self._is_heard():
            return
        step, number, _, _, item = running
        thread = threading.get_ident()
        with self._lock:
            attempt = self._attempt((step, item, number))
            unfinished = attempt.unfinished
            if (end := len(text) - _ATTEMPT_CHARACTERS) > _ATTEMPT_CHARACTERS:
                # As many lines may take far more memory than their text.
                attempt.records.left_out += text.count("\n", _ATTEMPT_CHARACTERS, end)
                text = text[:_ATTEMPT_CHARACTERS] + text[end:]
            *lines, rest = (unfinished.pop((stream, thread), "") + text).split("\n")
            if rest:
                # Of a line that is overwritten again and again, only the last state counts.
                rest = rest[max(rest.rfind("\r", 0, -1), 0) :]
                unfinished[stream, thread] = rest[: 2 * _LONGEST_TEXT]
        for line in lines:
            self._log_line(running, stream, line)

    def stream(self, running: StartedAttempt, text: str, /) -> None:
        """Take a value that an attempt streams; raise what `StepContext.stream` raises."""
        step, number, _, _, item = running
        most = self._max_stream_bytes
        if most is not None and step in self._secret:
            raise ValueError(
                f"step {step!r} is secret, and the run's journal would store what it streams; "
                "stream nothing, or only what is no secret, from a step of its own"
            )
        if not self._is_open():
            return
        if self._secrets.longest():
            text = without_secrets(text, self._secrets.replaced)
        size = len(text) if text.isascii() else len(text.encode())
        with self._lock:
            attempt = self._attempt((step, item, number))
            if most is not None and attempt.streamed_size + size > most:
                problem = (
                    f"takes more than {most:,} bytes in this attempt: return what is needed later, "
                    "or raise the journal's max_stream_bytes"
                )
                raise PayloadError(f"what step {step!r} streams", problem)
            attempt.streamed_size += size
            if not attempt.streamed:
                attempt.streamed_ms = self._now_ms()
            attempt.streamed.append(text)
            if not self._streaming:
                self._call_soon(self._stream_soon)
            self._streaming[attempt] = None

    def leave_out(
        self, running: StartedAttempt, count: int, what: str = "record", why: str = "", /
    ) -> None:
        """Count what an attempt said and is missing; without a reason, it was too much."""
        step, number, _, _, item = running
        with self._lock:
            attempt = self._attempt((step, item, number))
            if step in self._secret and what != "streamed value":
                attempt.hidden += count  # the reason may name what is secret
            elif why:
                attempt.refuse(count, what, self._short(why, _LONGEST_REASON))
            else:
                attempt.records.left_out += count

    def _log_line(self, running: StartedAttempt, stream: str, line: str) -> None:
        line = line.rstrip("\r").rpartition("\r")[2]
        if line:
            self.log(running, STREAMS[stream], stream, line)

    def _is_open(self) -> bool:
        return self._receiver is not None and os.getpid() == self._process

    def _is_heard(self) -> bool:
        """Whether what is said here and now belongs to an attempt, and not to an observer."""
        is_observing = self._is_notifying and threading.get_ident() == self._thread
        return not is_observing and self._is_open()

    def _attempt(self, key: _Key) -> _NotesOfAttempt:
        attempt = self._attempts.get(key)
        if attempt is None:
            attempt = _NotesOfAttempt(key)
            self.has_any = True
            if self._receiver is not None:
                self._attempts[key] = attempt
        return attempt

    def _put(self, note: NoteEvent) -> None:
        self._queue.append(note)
        self._wake()

    def _wake(self) -> None:
        """Have the loop pass on what is here. The caller holds the lock."""
        if not self._is_scheduled:
            self._is_scheduled = True
            self._call_soon(self._drain)

    def _call_soon(self, function: Callable[[], object]) -> None:
        if threading.get_ident() == self._thread:
            self._loop.call_soon(function, context=self._context)
        else:
            with suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(function, context=self._context)

    # Secrets.

    def _short(self, text: str, limit: int) -> str:
        limit, public = max(limit, 0), self._secrets.replaced
        # Before it is cut: what is left of a secret could not be found.
        if len(text) <= 4 * _LONGEST_TEXT:
            return cut(public(text), limit)
        # A large text is not searched as a whole, so what is searched may end within a secret.
        more = len(text) - 4 * _LONGEST_TEXT
        text = public(text[: 4 * _LONGEST_TEXT])
        kept = text[: min(limit, max(len(text) - self._secrets.longest(), 0))]
        return f"{kept}… ({more + len(text) - len(kept):,} more characters)"

    # Passing them on, in the loop.

    def open(self, receiver: Noted) -> None:
        """Begin to pass notes on."""
        self._receiver = receiver

    def before(self, event: Event) -> None:
        """Pass on what was said before an event; if an attempt ends, the rest that it has.

        Without `has_any` there is nothing to do.
        """
        if type(event) in _ENDS:
            key: Any = event.step, event.item, event.attempt
            attempt = self._attempts.get(key)
            if attempt is not None:
                if _may_end_later(event) and not self._is_running(attempt):
                    self._drop_stream(attempt)
                self._end(attempt)
        if self._queue:
            self._pass_on()

    def notifying(self, is_notifying: bool) -> bool:
        """Set whether observers are being notified, whose log records belong to no step."""
        before, self._is_notifying = self._is_notifying, is_notifying
        return before

    def finish(self) -> None:
        """Pass on all that is left, before the end of the run."""
        for attempt in list(self._attempts.values()):
            self._drop_stream(attempt)
            self._end(attempt)
        self._pass_on()

    def close(self) -> None:
        """Drop what is said from now on, and let go of everything."""
        for timer in (self._timer, self._stream_timer):
            if timer is not None:
                timer.cancel()
        with self._lock:
            self._receiver = self._timer = self._stream_timer = self._context = None
            self._streaming.clear()
            for each in (self._queue, self._attempts, self._waiting, self._unstored):
                each.clear()

    def _drain(self) -> None:
        with self._lock:
            self._is_scheduled = False
        self._pass_on()
        now = self._loop.time()
        if self._waiting and now >= self._report_at:
            self._report_at = now + _REPORT_S
            for _ in range(len(self._waiting)):
                self._report(self._waiting.popleft())
        if self._unstored and now >= self._store_at:
            self._store_at = now + _STORE_S
            while self._unstored:
                self._say(self._unstored.popitem()[0], store=True, notify=False)
        if self._waiting:
            self._drain_at(self._report_at)
        elif self._unstored:
            self._drain_at(self._store_at)

    def _drain_at(self, due: float) -> None:
        if self._timer is not None:
            if self._timer.when() <= due:
                return
            self._timer.cancel()
        self._timer = self._loop.call_at(due, self._tick, context=self._context)

    def _tick(self) -> None:
        self._timer = None
        self._drain()

    def _stream_soon(self) -> None:
        if self._receiver is None:
            return
        # A journal takes the values of a moment together: each transaction waits for the disk.
        wait_s = 0.0 if self._max_stream_bytes is None else _STREAM_S
        self._stream_timer = self._loop.call_later(
            wait_s, self._pass_on_streams, context=self._context
        )

    def _pass_on_streams(self) -> None:
        with self._lock:
            attempts = list(self._streaming)
            self._streaming.clear()
        for attempt in attempts:
            if self._is_running(attempt):
                self._pass_on_stream(attempt)
            else:
                self._drop_stream(attempt)

    def _is_running(self, attempt: _NotesOfAttempt) -> bool:
        return self._receiver is not None and self._receiver.is_running(*attempt.key)

    def _drop_stream(self, attempt: _NotesOfAttempt) -> None:
        """Leave out values that come from what has outlived its attempt."""
        with self._lock:
            if attempt.streamed:
                attempt.refuse(len(attempt.streamed), "streamed value", "the attempt had ended")
            attempt.streamed = []

    def _pass_on_stream(self, attempt: _NotesOfAttempt) -> None:
        with self._lock:
            texts, attempt.streamed = attempt.streamed, []
        if not texts or self._receiver is None:
            return
        step, item, number = attempt.key
        data, at_ms = joined(texts), attempt.streamed_ms
        streamed = StepStreamed(step, number, at_ms, self._segment, len(texts), data, item)
        self._receiver.stream(streamed)

    def _pass_on(self) -> None:
        while self._queue and self._receiver is not None:
            self._receiver.note(self._queue.popleft())

    def _report(self, attempt: _NotesOfAttempt) -> None:
        with self._lock:  # before it is read: another thread may say more meanwhile
            attempt.is_waiting = False
        self._say(attempt, store=False, notify=True)
        self._unstored[attempt] = None

    def _say(self, attempt: _NotesOfAttempt, *, store: bool, notify: bool) -> None:
        """Pass on the latest progress of an attempt to those that have an earlier one."""
        latest, receiver = attempt.latest, self._receiver
        store = store and attempt.stored is not latest
        notify = notify and attempt.reported is not latest
        if latest is None or receiver is None or not (store or notify):
            return
        if store:
            attempt.stored = latest
        if notify:
            attempt.reported = latest
        at_ms, done, total, unit = latest
        step, item, number = attempt.key
        unit = cut(self._secrets.replaced(unit), 100)
        progress = StepProgressed(step, number, at_ms, done, total, unit, item)
        receiver.note(progress, store=store, notify=notify)

    def _end(self, attempt: _NotesOfAttempt) -> None:
        """Pass on the last progress of an attempt, its unfinished lines and what is missing."""
        step, item, number = attempt.key
        running = step, number, 0.0, 0.0, item
        self._pass_on_stream(attempt)
        with self._lock:
            while attempt.unfinished:
                (stream, _), line = attempt.unfinished.popitem()
                self._log_line(running, stream, line)
            self._attempts.pop(attempt.key, None)
            records = attempt.records
            at_ms = records.last[0].at_ms if records.last else self._now_ms()
            for (what, why), count in {
                ("record", _TOO_MUCH): records.left_out,
                ("record", "the step is secret"): attempt.hidden,
                **attempt.refused,
            }.items():
                if count:
                    message = left_out(count, what, why)
                    missing = StepLogged(step, number, at_ms, 30, OWN_LOGGER, message, item)
                    self._queue.append(missing)
            self._queue.extend(records.last)
            records.last.clear()
        self._pass_on()
        self._unstored.pop(attempt, None)
        self._say(attempt, store=True, notify=True)


_TOO_MUCH = (
    f"an attempt keeps {_ATTEMPT_RECORDS:,} with at most {_ATTEMPT_CHARACTERS // 1000} kB of text, "
    f"and a run {_RUN_RECORDS:,} with {_RUN_CHARACTERS // 1_000_000} MB, and "
    f"{_RUN_ATTACHED // 1_000_000} MB of attachments"
)

_ENDS = frozenset({AttemptFailed, StepSucceeded, StepFailed, StepCancelled})


def _may_end_later(event: Event) -> bool:
    """Whether a step may end with this event when no attempt is running, such as in a backoff."""
    if type(event) is StepSucceeded:
        return event.error is not None  # its fallback's
    return type(event) is not AttemptFailed


class Noted(Policy):
    """The policy of a run whose steps say something that a journal or an observer receives."""

    def __init__(
        self,
        scope: RunScope,
        notes: NoteQueue,
        persistence: RunPersistence | None,
        observing: Observing | None,
        link: RunLink | None,
    ) -> None:
        self._runs = scope.state.step_runs
        self._notes = notes
        takes = persistence is not None and persistence.takes_notes
        self._persistence = persistence if takes else None
        self._observing = observing
        self._link = link
        notes.open(self)

    def note(self, note: NoteEvent, *, store: bool = True, notify: bool = True) -> None:
        """Store what an attempt said, and notify the observers."""
        if store and self._persistence is not None:
            self._persistence.store_note(note)
        if notify and self._observing is not None:
            self._observing.notify(note)

    def is_running(self, step: str, item: int | None, attempt: int) -> bool:
        """Whether an attempt is running."""
        node = self._runs.find_unended(step, item)
        running = None if node is None else self._runs.running_attempt(node)
        return running is not None and running.attempt == attempt

    def stream(self, streamed: StepStreamed) -> None:
        """Pass on what an attempt has streamed."""
        if self._persistence is not None and self._persistence.streams:
            self._persistence.session.append_note(streamed)  # type: ignore[attr-defined]
        elif self._link is not None:
            self._link.stream(streamed)

    def on_watch(self) -> Callable[[], object] | None:
        return capture(self._notes, capturing_notes).end if self._notes.takes_logs else None

    def on_event(self, event: Event) -> None:
        if self._notes.has_any:
            self._notes.before(event)

    def on_end(self) -> None:
        self._notes.finish()

    def on_ended(self) -> None:
        self._notes.close()
