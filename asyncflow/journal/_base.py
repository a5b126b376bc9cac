"""The journal of an SQL database: what all databases have in common.

It has two threads, each with a connection of its own. One writes and claims runs. The other one
reads, so that no step of a run waits for a long read.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import threading
import warnings
import weakref
from collections.abc import (
    AsyncGenerator,
    Callable,
    Collection,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import suppress
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any, TypeVar

from asyncflow._core.analysis.comparison import RunComparison
from asyncflow._core.analysis.slowness import Slower
from asyncflow._core.arguments import (
    AttributeValue,
    check_count,
    check_names,
    check_number,
    check_text,
    parse_level,
)
from asyncflow._core.errors import JournalError, RunAlreadyActiveError, RunNotFoundError
from asyncflow._core.history.replay import StoredRun
from asyncflow._core.history.report import RunReport
from asyncflow._core.history.results import (
    Interruption,
    InterruptionCause,
    Payload,
    RunStatus,
    StepStatus,
    why_cancelled,
)
from asyncflow._core.pipeline.signal import check_sender, is_plain
from asyncflow._core.pools.pool import Clock, Pool
from asyncflow._core.pools.shares import PoolShare
from asyncflow._core.running.checkpoints import LARGEST as LARGEST_CHECKPOINT
from asyncflow._core.running.context import current_run, is_inside_run
from asyncflow._core.running.step_cache import CachedResult
from asyncflow._core.running.streamed import MOST_BYTES, StreamedValue
from asyncflow._core.text import did_you_mean, safe_text
from asyncflow.events import (
    Event,
    NoteEvent,
    RunFinished,
    RunInterrupted,
    RunStarted,
    StepSkipped,
)
from asyncflow.journal._codec.events import is_storable, status_column
from asyncflow.journal._codec.payloads import CODECS, Codec
from asyncflow.journal._codec.signal_types import admits, payload_of, schema_of_signal
from asyncflow.journal._database.machine import is_void, this_owner, this_process
from asyncflow.journal._database.sql import LARGEST, virtual_now
from asyncflow.journal._read.export import export_run
from asyncflow.journal._read.overviews import Overviews
from asyncflow.journal._read.queries import (
    UNFINISHED,
    PipelineStatistics,
    QueueStats,
    RunFilter,
    RunRecord,
    RunSummary,
    StoredEvent,
    WaitKind,
    check_new_id,
    parse_status,
)
from asyncflow.journal._read.reader import RunReader
from asyncflow.journal._read.run_lists import RunLists
from asyncflow.journal._read.streams import StreamPlace, StreamReader
from asyncflow.journal._write.cached import CacheLookup
from asyncflow.journal._write.keys import RunKey
from asyncflow.journal._write.notes import NoteFilter
from asyncflow.journal._write.queue import DueRuns, NewRun, Queue, announce, watchers
from asyncflow.journal._write.session import (
    CommitQueue,
    FinishedSession,
    SQLSession,
    StreamWatch,
    batch_of,
)
from asyncflow.journal._write.store import Claim, Store
from asyncflow.journal._write.worker import (
    JournalWorker,
    Lease,
    PendingClaim,
    Shared,
    WorkerThread,
)

Self = TypeVar("Self", bound="SQLJournal")
T = TypeVar("T")

_STREAM_POLL_S = 0.4
"""How long a reader of what is streamed waits for what other processes commit."""

_IN_A_ROW = 100
"""After how many values such a reader lets other tasks run."""

_FIRST_RETRY_S, _LONGEST_RETRY_S = 0.02, 1.0
"""How long to wait before a run that another process owns is claimed again."""

_EVENTS_PER_DELETE = 2_000
"""How many events, or runs without events, one transaction deletes, in some milliseconds."""

_OLD_RUNS = 1_000
"""How many runs to read at a time of those to delete little by little."""
_FEW_EVENTS = 1_000
"""How many events one transaction deletes of them, in a few milliseconds."""
_REST, _LEAST_REST_S = 20, 0.02
"""How much longer than such a transaction to rest after it, and for how many seconds at least."""


class SQLJournal:
    """The journal of one database.

    ``second`` is the same database by another connection, for reading; ``None`` if there can't be
    one.
    """

    logs: int | None = None
    """From which level on the log records of steps are stored; ``None`` for none."""
    prints: bool = False
    """Whether the lines that steps print are stored."""
    max_stream_bytes: int = MOST_BYTES
    """How many bytes an attempt may stream."""

    def __init__(
        self,
        store: Store,
        second: Store | None,
        *,
        codec: str,
        max_payload_bytes: int,
        lease_s: float,
        owner: str | None,
        close_timeout_s: float,
        logs: int | str | None,
        prints: bool,
        max_stream_bytes: int,
    ) -> None:
        check_text("codec", codec)
        if codec not in CODECS:
            known = " or ".join(map(repr, CODECS))
            raise ValueError(f"codec must be {known}, not {codec!r}{did_you_mean(codec, CODECS)}")
        check_number("max_payload_bytes", max_payload_bytes, 1)
        check_number("max_stream_bytes", max_stream_bytes, 1)
        check_number("close_timeout_s", close_timeout_s, 0, unit=" s")
        if not isinstance(prints, bool):
            raise TypeError(f"prints must be True or False, not {safe_text(repr, prints)}")
        self.logs = None if logs is None else parse_level("logs", logs)
        self.prints = prints
        self.max_stream_bytes = max_stream_bytes
        name = store.database.name
        self._name = name
        self._codec = Codec(codec, max_payload_bytes)
        self.checkpoint_codec = Codec(codec, min(max_payload_bytes, LARGEST_CHECKPOINT))
        self._store = store
        self._claim = Claim(owner or this_owner(), this_process(), lease_s, is_void)
        self._worker = JournalWorker(store, self._claim)
        self._write_thread = self._worker.thread
        self._reading = reading = second or store
        self._lists = RunLists(reading)
        self._overviews = Overviews(reading, self._lists, self._codec)
        self._reader = RunReader(reading, self._lists, self._codec)
        self._read_thread = WorkerThread(name, lambda: None) if second else self._write_thread
        self._lock = threading.Lock()
        self._queues: weakref.WeakValueDictionary[asyncio.AbstractEventLoop, CommitQueue] = (
            weakref.WeakValueDictionary()
        )
        self._find_cached = Shared(self._read_thread, reading.cached_all)
        self._streams = StreamWatch()
        self._stream_reader = StreamReader(reading)
        self._find_streamed = Shared(self._read_thread, self._stream_reader.read_all)
        self._close_timeout_s = close_timeout_s
        self._closing = self._closed = False
        self._queue = Queue(reading)
        self._queue_writer = Queue(store)
        self._on_enqueue: list[Callable[[], object]] = []
        """Called when a run was enqueued by way of this journal. Any thread may do that."""
        self._on_signal: list[Callable[[str], object]] = []
        """Called with the run to which a signal was sent by way of this journal, which may be due
        now. Any thread may do that."""

    # --- queries --------------------------------------------------------------------------------

    async def runs(
        self,
        status: RunStatus | str | None = None,
        *,
        pipeline: str | None = None,
        since: datetime | float | None = None,
        limit: int | None = 100,
        before: datetime | float | tuple[float, str] | None = None,
        text: str | None = None,
        parent: str | None = None,
        cause: InterruptionCause | None = None,
        label: str | None = None,
        attributes: Mapping[str, AttributeValue] | None = None,
        waits_for: WaitKind | None = None,
    ) -> list[RunRecord]:
        """Return the stored runs, the latest start first.

        Args:
            status: Only those with this status, as `RunStatus` or its name in any case.
            pipeline: Only those of the pipeline with this name.
            since: Only those that started at this time or later: a datetime, local if it is naive,
                or seconds since the epoch.
            limit: At most this many; ``None`` for all.
            before: Only those that started before this time; or with the `RunRecord.place` of the
                last run of a page, those of the next page.
            text: Only those with this text, up to 1,000 characters in any case, in their id, their
                label or the name of their pipeline.
            parent: Only those that a step of the run with this id has started.
            cause: Only those that were interrupted by this, as in `RunInterrupted`.
            label: Only those with exactly this label.
            waits_for: Only those that wait for this, as in `RunRecord.waits_for`: ``"signal"`` for
                those that have started; ``"time"``, ``"key"`` or ``"place"`` for those that have
                not.
            attributes: Only those with all of these attributes, such as ``{"tenant": "acme"}``.
                Types count: ``1``, ``1.0``, ``True`` and ``"1"`` differ.

        Raises:
            TypeError: A condition is of the wrong type.
            ValueError: There is no such status, time, number or cause, or no run can have such an
                attribute.
            JournalError: The journal can't be read.
        """
        where = RunFilter(
            status,
            pipeline,
            since,
            limit,
            before=before,
            text=text,
            parent=parent,
            cause=cause,
            label=label,
            attributes=attributes,
            waits_for=waits_for,
        )
        return await self._read(self._lists.runs, where, self._virtual_now())

    async def record(self, run_id: str) -> RunRecord:
        """Return the record of a run.

        Raises:
            RunNotFoundError: There is no such run.
            JournalError: The journal can't be read.
        """
        await self._check_id(run_id)
        return await self._read(self._lists.record, run_id, self._virtual_now())

    async def orphans(self) -> list[RunRecord]:
        """Return the runs that have not ended and that no process runs, the latest start first.

        Their process is provably dead, or has not renewed its lease, or has given them up when the
        journal failed. Start them again under their id, and they resume.

        Raises:
            JournalError: The journal can't be read.
        """
        return await self.runs(RunStatus.ORPHANED, limit=None)

    async def events(self, run_id: str, after: int = 0) -> list[StoredEvent]:
        """Return the events of a run in their order.

        Outputs and inputs are decoded from JSON without a type hint. A `RestoredOutput` stands for
        a secret one, and for a pickled one unless the journal has ``codec="cloudpickle"``.

        Args:
            run_id: The run.
            after: Only events whose position is greater.

        Raises:
            RunNotFoundError: There is no such run.
            RunUnreadableError: It is damaged, or a newer asyncflow wrote it.
            JournalError: The journal can't be read.
        """
        await self._check_id(run_id)
        check_count("after", after, 0, at_most=LARGEST)
        return await self._read(self._reader.events, run_id, after)

    async def notes(
        self,
        run_id: str,
        *,
        after: int = 0,
        kinds: Collection[type[NoteEvent]] | None = None,
        step: str | None = None,
        item: int | None = None,
        attempt: int | None = None,
        level: int | str | None = None,
        text: str | None = None,
        limit: int | None = None,
        newest: bool = False,
        data: bool = True,
    ) -> list[StoredEvent]:
        """Return what the steps of a run said, in its order: log records, progress, attachments.

        They have positions of their own, from 1. Of the progress of an attempt, the journal keeps
        the latest, which has a new position each time: so with the last position as ``after``, a
        reader that asks again misses nothing. A note that is damaged is replaced by a record that
        says so, of the logger ``asyncflow``.

        Args:
            run_id: The run.
            after: Only notes whose position is greater.
            kinds: Only these: some of `asyncflow.events.StepLogged`,
                `asyncflow.events.StepProgressed`, `asyncflow.events.StepAttached` and
                `asyncflow.events.StepCalled`.
            step: Only those of the step with this name.
            item: Only those of the item with this index.
            attempt: Only those of the attempts with this number.
            level: Only log records of at least this level, a number or a name; other notes stay.
            text: Only log records with this text, in any case, in their message, their logger or
                their traceback, and attachments with it in their name.
            limit: At most this many, ``None`` for all: the first ones, or with ``newest``
            newest: the last ones.
            data: Whether to read the data of attachments; without it, they are empty.

        Raises:
            TypeError: A condition is of the wrong type.
            ValueError: A number is out of range, or there is no such level.
            RunNotFoundError: There is no such run.
            JournalError: The journal can't be read.
        """
        await self._check_id(run_id)
        where = NoteFilter(after, kinds, step, item, attempt, level, text, limit, newest, data)
        return await self._read(self._reader.notes, run_id, where)

    def streamed(
        self, run_id: str, step: str | None = None, after: int = 0
    ) -> AsyncGenerator[StreamedValue, None]:
        """Return an asynchronous iterator over what the steps of a run stream, as it is stored.

        It begins with the first value that is stored, and ends when the step, or the run, has
        ended: with a run that waits for a signal, was drained, or has lost its process, it waits
        on. A value is there about 50 ms after the call of `StepContext.stream` if this journal
        object stores it, and half a second after it if another one does.

        Args:
            run_id: The run.
            step: Only what the step of this name, or its items, stream.
            after: Only values whose position is greater, such as the ``Last-Event-ID`` of
                Server-Sent Events: a reader that continues after a position misses none.

        Raises:
            TypeError, ValueError: ``after`` is no position, or the run has no such step.
            RunNotFoundError: There is no such run.
            JournalError: The journal can't be read.
        """
        check_text("run_id", run_id)
        if step is not None:
            check_text("step", step)
        check_count("after", after, 0, at_most=LARGEST)
        return self.follow_streamed(run_id, step, after)

    async def report(self, run_id: str) -> RunReport:
        """Return the report of a run; of one that has not ended, what is known so far.

        Outputs and inputs are plain data, as those of `events`: the journal does not know their
        types. `asyncflow.Pipeline.report` gives them as the annotations of its steps say.

        Raises:
            RunNotFoundError: There is no such run.
            RunUnreadableError: It is damaged, or a newer asyncflow wrote it.
            JournalError: The journal can't be read.
        """
        await self._check_id(run_id)
        return await self._read(self._reader.report, run_id)

    async def export(self, run_id: str, path: str | os.PathLike[str]) -> None:
        """Copy a run into a new SQLite file, with its logs and attachments, to look into elsewhere.

        An `asyncflow.journal.SQLiteJournal` opens that file. Secrets are not in it, and runs that
        its steps have started are runs of their own. A run that is running is copied as far as it
        is stored; in the copy, no process runs it.

        Args:
            run_id: The run.
            path: The file, which must not exist.

        Raises:
            FileExistsError: The file exists. It stays as it is.
            OSError: The file can't be created.
            RunNotFoundError: There is no such run.
            RunUnreadableError: It is damaged, or a newer asyncflow wrote it.
            JournalError: The journal can't be read, or the file can't be written.
        """
        await self._check_id(run_id)
        await self._read(self._lists.check_exists, run_id)
        await self._read(export_run, self._reading, self._lists, run_id, os.fspath(path))

    async def compare(self, run_id: str, baseline: str) -> RunComparison:
        """Compare a run with another one, as `RunReport.compare` does, and their steps' versions.

        Args:
            run_id: The run. If it has not ended, what is known so far is compared.
            baseline: The other run, such as `last_passed`.

        Raises:
            RunNotFoundError: There is no such run.
            RunUnreadableError: One of them is damaged, or a newer asyncflow wrote it.
            JournalError: The journal can't be read.
        """
        await self._check_id(run_id)
        await self._check_id(baseline, "baseline")
        return await self._read(self._reader.comparison, run_id, baseline)

    async def last_passed(self, run_id: str) -> RunRecord | None:
        """Return the last run of the same pipeline that passed and started before a run.

        ``None`` if there is none, or if the pipeline has no name.

        Raises:
            RunNotFoundError: There is no such run.
            JournalError: The journal can't be read.
        """
        await self._check_id(run_id)
        return await self._read(self._lists.last_passed, run_id)

    async def statistics(self, pipeline: str, *, runs: int = 50) -> PipelineStatistics:
        """Return the latest runs of a pipeline, and the statistics of its steps over them.

        Of a run that has ended, or waits, it reads a summary that its process has stored, so a run
        costs the same with any number of items. Of any other, it reads the events.

        Args:
            pipeline: The name of the pipeline. ``""`` stands for all runs whose pipeline has none.
            runs: How many runs to read at most, at least 1.

        Returns:
            The statistics; of no runs if there is no such pipeline.

        Raises:
            TypeError: The name is not a string, or the number is none.
            ValueError: The number is below 1.
            JournalError: The journal can't be read.
        """
        check_text("pipeline", pipeline)
        check_count("runs", runs, 1)
        return await self._read(self._overviews.statistics, pipeline, runs)

    async def usual_ms(self, pipeline: str) -> float | None:
        """Return how many milliseconds a run of a pipeline usually takes.

        It is the median of its latest 20 runs that passed, without the reruns among them. Pauses
        do not count.

        Args:
            pipeline: The name of the pipeline.

        Returns:
            The duration; ``None`` if fewer than three have passed, or the name is empty.

        Raises:
            TypeError: The name is not a string.
            JournalError: The journal can't be read.
        """
        check_text("pipeline", pipeline)
        return await self._read(self._lists.usual_ms, pipeline)

    async def pipelines(self) -> list[str]:
        """Return the names of the pipelines that have runs, sorted; ``""`` for runs without one.

        Raises:
            JournalError: The journal can't be read.
        """
        return await self._read(self._lists.pipelines)

    async def counts(
        self, *, pipeline: str | None = None, since: datetime | float | None = None
    ) -> dict[RunStatus, int]:
        """Return how many stored runs have which status.

        Args:
            pipeline: As that of `runs`.
            since: The same.

        Raises:
            TypeError, ValueError, JournalError: As `runs` raises them.
        """
        return await self._read(self._lists.counts, RunFilter(pipeline=pipeline, since=since))

    async def summaries(self, records: Iterable[RunRecord]) -> dict[str, RunSummary]:
        """Return what a list of runs says beside their records, by run id, with one query.

        Args:
            records: Runs that `runs` returned. The summary of one that is damaged is empty.

        Raises:
            TypeError: There is something else among them.
            JournalError: The journal can't be read.
        """
        listed = [*records] if isinstance(records, Iterable) else records
        if not isinstance(listed, list) or not all(isinstance(e, RunRecord) for e in listed):
            raise TypeError("records must be a list of RunRecord objects, as runs() returns it")
        return await self._read(self._overviews.summaries, listed)

    async def _slower(self, records: Iterable[RunRecord]) -> dict[str, Slower]:
        """Return which of these runs were slower than usual, and in which steps, by run id."""
        return await self._read(self._overviews.slower, [*records])

    # --- changes --------------------------------------------------------------------------------

    async def cancel(self, run_id: str, reason: str = "") -> bool:
        """Cancel a run gracefully, whichever process runs it.

        The run stops as if its caller had been cancelled: running steps are cancelled and awaited,
        clean-up completes, the end is stored with the status ``INTERRUPTED``, and the task that
        awaits the run gets a `RunCancelledError`. Started again under its id, the run resumes.

        A run that has no process, since its process has died or a service was shut down, is
        cancelled by the next one that takes it up, before it starts a step. A run that waits for a
        signal ends at once.

        This does not wait for the end. A run of this journal object receives the request at once;
        a run of another one, or of another process, within a second, or a third of its lease if
        that is less. A run that ends by itself before that is not interrupted. A caller that waits
        for the run with ``on_active="wait"`` resumes it then.

        Args:
            run_id: The run.
            reason: Why, in words for the results of the steps that this cancels or skips, and for
                the error. Of several requests, the first one counts.

        Returns:
            Whether the request was stored: False if the run has ended.

        Raises:
            TypeError: The reason is not a string.
            RunNotFoundError: There is no such run.
            JournalError: The journal can't be read or written.
        """
        await self._check_id(run_id)
        check_text("reason", reason)
        if await self._cancel_waiting(run_id, reason):
            return True
        was_asked = await self._write(self._worker.cancel, run_id, reason)
        announce(self._name)
        if not was_asked:
            await self._read(self._lists.check_exists, run_id)
        return was_asked

    async def signal(
        self, run_id: str, name: str, value: Any, *, sent_by: str | None = None, note: str = ""
    ) -> None:
        """Send a value to a step of a run that waits for it, or will.

        It is stored before this returns. The process that runs the run takes it within a second; if
        none does, because the run waits, a `asyncflow.service.Service` or `asyncflow.resume_all`
        continues it. The first value counts: the same one again changes nothing, even after the run
        has passed; ``sent_by`` and ``note`` of the first one stay. A run that has failed or was
        interrupted keeps it until it is resumed.

        Args:
            run_id: The run.
            name: The name of the step that waits.
            value: An instance of exactly the type of the signal, or plain data for one. The
                journal knows the schema of the type; a run that finds more amiss deletes the value
                and waits on.
            sent_by: Who sends it, for people, in 1 to 200 characters; ``None`` (the default) for
                this process. It is stored and shown with the answer, and so is the note; neither is
                checked against anything, and secrets are not replaced in them.
            note: What to say of the answer, in at most 10,000 characters.

        Raises:
            ValueError: The run has no such signal, the value is of another type, another value came
                first, the deadline has expired, or the run has passed or skipped its step without
                it; or ``sent_by`` or ``note`` has too many characters.
            TypeError: An argument has the wrong type.
            RunNotFoundError: There is no such run.
            PayloadError: The value can't be stored.
            JournalError: The journal can't be read or written.
        """
        await self._check_id(run_id)
        check_text("name", name)
        check_sender(sent_by, note)
        # Of plain data, the same look at the run tells whether it is of the type.
        schema = {} if is_plain(value) else await self._read(self._reader.schema, run_id, name)
        payload = payload_of(name, value, schema, self._codec)
        by = sent_by or ""
        sent = await self._read(self._reader.check_signal, run_id, name, payload, by, note)
        if sent is None:
            return
        await self._worker.send_signal(sent._replace(now=self._virtual_now()))
        for call in list(self._on_signal):
            call(run_id)
        announce(self._name)

    async def due(
        self, *, pipelines: Iterable[str] | None = None, limit: int | None = 1_000
    ) -> list[RunRecord]:
        """Return the waiting runs that are to be continued, the one that was due first first.

        A signal has reached them, their deadline has expired, or they were cancelled. A run that a
        process has claimed since then is no longer among them.

        Args:
            pipelines: Only those of the pipelines with these names; ``None`` for all.
            limit: At most this many, at least 1; ``None`` for all.

        Raises:
            JournalError: The journal can't be read.
        """
        limit = LARGEST if limit is None else limit
        check_count("limit", limit, 1, at_most=LARGEST)
        names = None if pipelines is None else check_names("pipelines", pipelines, "pipeline")
        return await self._due(names, limit)

    async def _due(
        self,
        pipelines: Iterable[str] | None,
        limit: int,
        skipped: Collection[str] = (),
        among: Sequence[str] | None = None,
    ) -> list[RunRecord]:
        """Do the same without the runs ``skipped``, or only for those ``among``."""
        now = virtual_now(asyncio.get_running_loop())
        return await self._read(self._lists.due, now, pipelines, limit, skipped, among)

    async def _asking_otherwise(
        self, pipeline: str, asks: int, limit: int, skipped: Collection[str]
    ) -> list[str]:
        """Return runs of a pipeline that wait as another version of it asks for signals."""
        return await self._read(
            self._lists.signals.asking_otherwise, pipeline, asks, limit, skipped
        )

    async def _asks(self, run_id: str) -> tuple[str, int] | None:
        """Return the pipeline of a run that waits, and what it asks for; else ``None``."""
        return await self._read(self._lists.signals.asks, run_id)

    # --- runs that wait to start ----------------------------------------------------------------

    async def queue(self, *, pipeline: str | None = None) -> QueueStats:
        """Return how many runs wait to start, and whether they get on.

        Args:
            pipeline: Only those of the pipeline with this name.

        Raises:
            TypeError: The name is no string.
            JournalError: The journal can't be read.
        """
        if pipeline is not None:
            check_text("pipeline", pipeline)
        found = await self._read(self._queue.counts, self._virtual_now(), pipeline)
        return QueueStats(*found)

    def _queue_now(self) -> QueueStats:
        """Do the same in any thread, and wait for it there: a meter collects in one of its own."""
        try:
            now = self._virtual_now()
        except RuntimeError:  # that thread has no loop, so its time is real
            now = None
        return QueueStats(*self._read_thread.submit(self._queue.counts, now, None).result())

    async def _enqueue(
        self,
        event: RunStarted,
        *,
        delay_ms: float,
        on_conflict: str,
        check_same: Callable[[StoredRun], object],
    ) -> str:
        """Store a run that waits to start; `asyncflow.Pipeline.enqueue` calls this.

        Args:
            event: Its first event, as it is stored.
            delay_ms: In how many milliseconds it is due.
            on_conflict: What to do if there is another run of its key.
            check_same: Called in another thread with the replay of a stored run of this id. It
                raises if that is another one.

        Returns:
            Its id, or that of the run which is there instead.

        Raises:
            RunAlreadyActiveError: A process has just claimed the id, or there is another run of the
                key.
            JournalError: The journal can't be read or written.
        """
        run_id = event.run_id
        check_new_id(run_id)
        loop = asyncio.get_running_loop()
        waiting = RunFinished(0.0, RunStatus.WAITING)
        batch = batch_of(run_id, [event, waiting], loop)
        new = NewRun(
            *(run_id, event.pipeline, batch, event.key or None, delay_ms / 1000),
            *(self._virtual_now(), on_conflict),
        )
        while True:
            stored: str | None = await self._write(
                self._worker.call, self._queue_writer.enqueue, new, self._claim
            )
            if stored is not None:
                self._announce()
                return stored
            with suppress(RunNotFoundError):  # it was forgotten meanwhile
                await self._read(lambda: check_same(self._reader.run(run_id)))
                return run_id

    async def _due_to_start(
        self, pipelines: Iterable[str], limit: int, skipped: Collection[object] = ()
    ) -> DueRuns:
        """Return runs that are due to start, one a key, and when the next run is due."""
        names = [*pipelines]
        while True:
            now = self._virtual_now()
            found, early = await self._read(self._queue.due, now, names, limit, skipped)
            if not early:
                return found
            await self._write(self._worker.call, self._queue_writer.correct, early)

    async def _replace_due(self, pipelines: Iterable[str]) -> None:
        """Let the runs of keys stop that runs are due to replace."""
        now = self._virtual_now()
        is_void = self._claim.is_void
        for key in await self._read(self._queue.replacing, now, [*pipelines], is_void):
            await self._write(self._worker.replace, key, now)

    async def _next_due_s(self) -> float | None:
        """Return in how many seconds another run is due that waits for signals, if one is."""
        return await self._read(self._queue.next_wait_s, self._virtual_now())

    def _watch(self, call: Callable[[], object]) -> None:
        """Call a function when a run may start or continue because of a journal of this name."""
        watchers.setdefault(self._name, []).append(call)

    def _unwatch(self, call: Callable[[], object]) -> None:
        watchers[self._name].remove(call)
        if not watchers[self._name]:
            del watchers[self._name]

    def _announce(self) -> None:
        """Say that a run may start, or continue."""
        for call in [*self._on_enqueue]:
            call()
        announce(self._name)

    def _virtual_now(self) -> float | None:
        return virtual_now(asyncio.get_running_loop())

    async def prune(self, older_than: timedelta, *, status: RunStatus | str | None = None) -> int:
        """Delete runs that have ended, never an active one, and return how many.

        It takes several short transactions, so that runs that write meanwhile do not wait for long.

        Args:
            older_than: Only those that ended longer ago, such as ``timedelta(days=90)``, and that
                have received no signal since.
            status: Only those with this status, which can't be ``RUNNING`` or ``ORPHANED``. Runs
                that are ``WAITING`` for a signal are deleted only if this says so, and never those
                that are `due`.

        Raises:
            TypeError: The age is not a timedelta. A number would not tell its unit.
            ValueError: No run that has ended has such a status, or the age is negative.
            JournalError: The journal can't be read or written.
        """
        ended_as = parse_status(status)
        if ended_as in UNFINISHED:
            raise ValueError(
                f"prune() deletes runs that have ended, so status can't be {ended_as}; forget() "
                "deletes one of those that orphans() returns"
            )
        if not isinstance(older_than, timedelta):
            raise TypeError(
                "older_than must be a timedelta, such as timedelta(days=90), not "
                f"{safe_text(repr, older_than)}: a number does not tell its unit"
            )
        age_s = older_than.total_seconds()
        check_number("older_than", age_s, 0, kind="a timedelta", unit=" s")
        column = ended_as and status_column(ended_as)
        asked = age_s, column, virtual_now(asyncio.get_running_loop())
        ended = await self._read(self._reading.ended, *asked)
        count = 0
        for run_ids in _transactions(ended, _EVENTS_PER_DELETE):
            count += await self._write(self._worker.call, self._store.prune, run_ids, *asked)
        while await self._write(self._worker.call, self._store.forget_keys):
            pass
        return count

    async def _prune_unneeded(self, age_s: float) -> int:
        """Delete the runs that ended so long ago and that no service needs any more.

        It deletes few at a time and rests in between, so that what commits meanwhile loses little.
        Return how many runs it has deleted.
        """
        count, before, now = 0, -1, self._virtual_now()
        while count > before:  # with a run, those that its steps have started become unneeded
            before, place = count, (-1.0, "")
            while found := await self._read(self._reading.unneeded, age_s, place, _OLD_RUNS, now):
                for run_ids in _transactions(((id_, rows) for id_, rows, _ in found), _FEW_EVENTS):
                    asked = run_ids, age_s, now
                    count += await self._write_and_rest(self._store.prune_unneeded, *asked)
                run_id, _, started_at = found[-1]
                place = started_at, run_id
        while count and await self._write_and_rest(self._store.forget_keys):
            pass
        return count

    async def _write_and_rest(self, method: Callable[..., T], *args: Any) -> T:
        clock = asyncio.get_running_loop().time
        began_s = clock()
        answer: T = await self._write(self._worker.call, method, *args)
        await asyncio.sleep(max(_LEAST_REST_S, (clock() - began_s) * _REST))
        return answer

    async def forget(self, run_id: str) -> None:
        """Delete a run that no process runs, whatever its status, even if it is damaged.

        Its id may be used again.

        Raises:
            RunNotFoundError: There is no such run.
            RunAlreadyActiveError: A process runs it.
            JournalError: The journal can't be read or written.
        """
        await self._check_id(run_id)
        await self._read(self._lists.check_exists, run_id)
        await self._write(self._worker.call, self._store.forget, run_id, self._claim)
        announce(self._name)

    async def _check_id(self, run_id: str, what: str = "run_id") -> None:
        check_text(what, run_id)
        if not is_storable(run_id):
            # Some databases would answer that there is no such run, some would fail.
            raise await self._read(self._lists.unknown, run_id)

    async def _write(self, call: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._write_thread, call, *args)

    async def _read(self, call: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._read_thread, call, *args)

    # --- for the driver -------------------------------------------------------------------------

    async def open(
        self,
        run_id: str,
        *,
        wait: bool,
        read: Callable[[StoredRun], T],
        key: tuple[str, str] | None = None,
    ) -> tuple[SQLSession | FinishedSession, T]:
        """Claim a run and replay its stored events. A run calls this; see `asyncflow.Journal`.

        A run that has passed needs no owner if ``read`` makes a report of it, even while
        another process owns it. If it is to resume all the same, it must be free.

        Raises:
            RunAlreadyActiveError: Another process owns it, and ``wait`` is false; or another run
                has the key.
            RunUnreadableError: It is damaged, or a newer asyncflow wrote it.
            JournalError: The journal can't be read or written.
            TypeError: The id is not a string.
            ValueError: No database could hold it.
        """
        check_new_id(run_id)
        within = current_run()
        pause, must_resume = _FIRST_RETRY_S, False
        while True:
            if self._closing and within is None:
                raise JournalError(self._name, "it is closed; open another journal")
            try:
                return await self._open(run_id, within, read, key and RunKey.of(*key))
            except RunAlreadyActiveError as active:
                owner, refusal = active.owner, active if active.key else None
            passed = None if must_resume else await self._read(self._reader.passed, run_id)
            if passed:
                answer = await self._read(read, passed)
                if isinstance(answer, RunReport):
                    return FinishedSession(), answer
                must_resume = True
            if refusal is not None:
                raise _within(refusal)
            if not wait:
                raise RunAlreadyActiveError(run_id, owner)
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_RETRY_S)

    async def _open(
        self,
        run_id: str,
        within: str | None,
        read: Callable[[StoredRun], T],
        key: RunKey | None = None,
        *,
        takes_key: bool = True,
    ) -> tuple[SQLSession, T]:
        loop = asyncio.get_running_loop()
        claim = PendingClaim(self._worker, run_id, loop, within, key, takes_key)
        try:
            # Only when the claim is committed, the events can't change any more.
            lease = await self._worker.claim_run(claim)
            # A new run has no events, and does not wait for other reads.
            answer = await (self._read if lease.committed else self._write)(
                self._read_history, lease, read
            )
            return SQLSession(self._queue_of(loop), lease), answer
        except (asyncio.CancelledError, GeneratorExit):
            claim.abandon()
            raise
        except BaseException:
            if claim.lease:
                try:
                    await self._write(claim.release)
                except JournalError:  # the journal is closed
                    claim.lease.let_go()
            raise

    def _read_history(self, lease: Lease, read: Callable[[StoredRun], T]) -> T:
        committed = lease.committed
        run = self._reader.history(lease.run_id, committed) if committed else StoredRun()
        run.journal.must_stop = lease.cancel_reason is not None
        lease.is_queued = run.status is RunStatus.WAITING and not run.signals.waits
        # Until the database has that the run continues, a value may take the place of an expiry.
        lease.is_told = None in run.signals.sent.values()
        return read(run)

    async def _cancel_waiting(self, run_id: str, reason: str) -> bool:
        """End a run that waits for a signal, which no process runs, and return whether it did."""
        row = await self._read(self._lists.row, run_id)
        if row is None or row.status != "waiting":
            return False
        try:
            session, run = await self._open(
                run_id, current_run(), lambda stored: stored, takes_key=False
            )
        except RunAlreadyActiveError:
            return False  # it goes on, and its owner cancels it
        try:
            if run.status is RunStatus.WAITING:
                for event in _cancellation_of(run, why_cancelled(reason)):
                    session.append(event)
                return True
            return False
        finally:
            await session.close()

    async def follow_streamed(
        self,
        run_id: str,
        step: str | None,
        after: int,
        is_over: Callable[[], bool] | None = None,
    ) -> AsyncGenerator[StreamedValue, None]:
        """Do what `streamed` does. A handle says when its run is over, which need not be stored."""
        await self._check_id(run_id)
        place = StreamPlace(run_id, step, after)
        with self._streams.watching(run_id) as news:
            if is_over is None:
                await self._read(self._stream_reader.check, run_id, step)
            while True:
                news.clear()
                is_last = is_over is not None and is_over()
                found = await self._find_streamed(place)
                place = found.place
                for number, value in enumerate(found.values, 1):
                    yield value
                    if number % _IN_A_ROW == 0:
                        await asyncio.sleep(0)
                if found.is_all:
                    if is_last or found.has_ended or (is_over is None and not found.exists):
                        return
                    with suppress(TimeoutError):
                        await asyncio.wait_for(news.wait(), _STREAM_POLL_S)

    async def replay(self, run_id: str, read: Callable[[StoredRun], T]) -> T:
        """Replay a run without owning it. A rerun or a pipeline calls it; see `asyncflow.Journal`.

        Raises:
            RunNotFoundError: There is no such run.
            RunUnreadableError: It is damaged, or a newer asyncflow wrote it.
            JournalError: The journal can't be read.
        """
        await self._check_id(run_id)
        return await self._read(lambda: read(self._reader.run(run_id, with_log=True)))

    async def cached(self, key: str, age_ms: float, /) -> CachedResult | None:
        """Return a result that an equal call has stored. A run calls this; see `asyncflow.Journal`.

        Raises:
            JournalError: The journal can't be read.
        """
        check_text("key", key)
        check_number("age_ms", age_ms, 0, unit=" ms")
        lookup = CacheLookup(key, age_ms / 1000, virtual_now(asyncio.get_running_loop()))
        return await self._find_cached(lookup)

    def encode(self, subject: str, value: Any, hint: Any) -> Payload:
        """Encode a value. A run calls this; see `asyncflow.Journal`.

        Raises:
            PayloadError: It would not come back equal, or it is too large.
        """
        return self._codec.encode(subject, value, hint)

    def decode(self, subject: str, payload: Payload, hint: Any) -> Any:
        """Decode a value. A run calls this; see `asyncflow.Journal`.

        Raises:
            PayloadError: It is not of that type, or is a pickle, which this journal does not read.
        """
        return self._codec.decode(subject, payload, hint)

    def schema(self, hint: Any) -> dict[str, Any]:
        """Return the JSON schema of a type, by which `signal` checks values.

        Raises:
            TypeError: There is none.
        """
        return schema_of_signal(hint)

    def admits(self, schema: Mapping[str, Any], payload: Payload) -> bool:
        """Whether a signal with such a schema takes a value that was sent. A run calls this."""
        return admits(schema, payload)

    def _share(self, pool: Pool, clock: Clock) -> PoolShare:
        """Return what this process has of a shared pool, which a run uses until it leaves.

        ``clock`` is the one that real event loops share.
        """
        shares = self._worker.shares
        database = shares if self._reading is self._store else self._name  # each in memory is one
        return shares.enter(pool, clock, weakref.ref(self), database)

    def _queue_of(self, loop: asyncio.AbstractEventLoop) -> CommitQueue:
        with self._lock:
            queue = self._queues.get(loop)
            if queue is None:
                queue = self._queues[loop] = CommitQueue(
                    loop, self._write_thread, self._worker, self._streams
                )
            return queue

    # --- life cycle -----------------------------------------------------------------------------

    async def __aenter__(self: Self) -> Self:
        try:
            # What keeps it from being opened shows now.
            await self._write(self._store.read, "SELECT 1 FROM runs LIMIT 0")
        except BaseException:
            await self.aclose()  # `__aexit__` is not called
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> list[str]:
        """Wait for the active runs to record their end, and disconnect.

        It waits for ``close_timeout_s`` at most, and not for a run from one of whose steps it is
        called. Runs that are still active then fail with a `JournalError`: they are stored as
        running, and resume when they are started again. It stops no run: cancel those that must
        not go on, before. Meanwhile only steps of active runs can start runs. Cancelled, it waits
        no longer and disconnects.

        Returns:
            The ids of the runs that were still active, which a warning in the log names too.
        """
        self._closing = True
        try:
            with suppress(JournalError):  # it is closed; another thread may have done so
                if self._write_thread.has_started:
                    ended: concurrent.futures.Future[None] = concurrent.futures.Future()
                    await self._write(self._worker.wait, ended, current_run(), None)
                    waiting = asyncio.wrap_future(ended)
                    try:
                        await asyncio.wait([waiting], timeout=self._close_timeout_s)
                    finally:
                        waiting.cancel()
                # They may have to wait for the disk. A read may release a claim.
                if self._read_thread.has_started:
                    await self._read(self._reading.database.close)
                if self._write_thread.has_started:
                    await self._write(self._worker.close)
        finally:
            self._join()
        return self._worker.given_up.copy()

    def close(self) -> list[str]:
        """Do what `aclose` does, and block until it is done.

        It does not wait for runs of the event loop that it blocks.
        """
        self._closing = True
        if self._write_thread.has_started:
            ended: concurrent.futures.Future[None] = concurrent.futures.Future()
            blocked = _running_loop()
            with suppress(TimeoutError, JournalError):  # it is closed
                self._write_thread.submit(self._worker.wait, ended, current_run(), blocked)
                ended.result(min(self._close_timeout_s, threading.TIMEOUT_MAX))
        self._join()
        return self._worker.given_up.copy()

    def _join(self) -> None:
        self._end()
        self._read_thread.join()
        self._write_thread.join()

    def _end(self) -> None:
        self._closed = True
        self._write_thread.end(self._worker.close)
        self._read_thread.end(self._reading.database.close)

    def __del__(self) -> None:
        # Without the attribute, its construction has failed.
        if not getattr(self, "_closed", True):
            self._end()
            if self._write_thread.has_started or self._read_thread.has_started:
                warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._name!r})"


def _cancellation_of(run: StoredRun, why: Interruption) -> list[Event]:
    """Return the events that end a run which waits for a signal as cancelled."""
    reason, at_ms = why.reason, run.at_ms
    skipped = [
        StepSkipped(name, at_ms, reason)
        for name, step in run.steps.items()
        if step.status is StepStatus.PENDING
    ]
    return [
        RunInterrupted(at_ms, reason, why.cause),
        *skipped,
        RunFinished(at_ms, RunStatus.INTERRUPTED, reason, why.cause),
    ]


def _within(refusal: RunAlreadyActiveError) -> RunAlreadyActiveError:
    """Return the error for a key that another run has, which may be the one that asks for it."""
    run_id, advice = refusal.run_id, refusal.advice
    if is_inside_run(run_id):
        advice = "this step belongs to that run, so a run with its key could only start after it"
    return RunAlreadyActiveError(
        run_id, refusal.owner, advice, key=refusal.key, status=refusal.status
    )


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _transactions(runs: Iterable[tuple[str, int]], most: int) -> Iterator[list[str]]:
    """Divide runs, each with its number of events, into those that one transaction may delete."""
    run_ids: list[str] = []
    size = 0
    for run_id, events in runs:
        if run_ids and size + events > most:  # a larger run goes alone
            yield run_ids
            run_ids, size = [], 0
        run_ids.append(run_id)
        size += events + 1
    if run_ids:
        yield run_ids
