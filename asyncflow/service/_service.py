"""Runs pipelines inside a long-lived process, such as a web service.

Rules:

1. A run belongs to the service, not to the request that started it. A request may wait for it.
2. `Service.start` returns when the start of the run is stored: an accepted run survives a crash.
3. A shutdown loses nothing: running steps get time to end, and what is left is stored as
   interrupted, with a reason by which the next service recognises the runs that it must resume.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import sys
from collections.abc import (
    AsyncGenerator,
    Awaitable,
    Callable,
    Coroutine,
    Mapping,
    MutableMapping,
)
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing, nullcontext, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, TypeVar, cast, get_args

from asyncflow._core.arguments import (
    AttributeValue,
    check_count,
    check_number,
    method_suggests_arguments,
)
from asyncflow._core.errors import (
    SHUTDOWN,
    RunAlreadyActiveError,
    RunCancelledError,
    RunNotFoundError,
)
from asyncflow._core.history.report import RunReport
from asyncflow._core.history.results import RunStatus
from asyncflow._core.pipeline.signal import check_value
from asyncflow._core.pipeline.step import inputs_of
from asyncflow._core.running.context import leave_attempt
from asyncflow._core.running.streamed import StreamedValue
from asyncflow._core.text import did_you_mean, safe_text
from asyncflow._kernel.asyncio_compat import outlast
from asyncflow._policies.engine import Engine
from asyncflow._runtime.handle import RunHandle
from asyncflow._runtime.options import OnConflict, check_run_id
from asyncflow._runtime.orchestrator import Orchestrator
from asyncflow._runtime.pipeline import Pipeline
from asyncflow._runtime.planned_pipeline import check_engines
from asyncflow._runtime.recovery import Pipelines, pipelines_by_name
from asyncflow.events import RunFinished
from asyncflow.service._errors import ClientDisconnectedError, ServiceStoppingError
from asyncflow.service._patient import PatientResource
from asyncflow.service._places import Places
from asyncflow.service._queue import QueueStarter
from asyncflow.service._recovery import Recovery
from asyncflow.service._retention import check_keep, delete_old_runs

if TYPE_CHECKING:  # a service without a journal needs no msgspec
    from asyncflow.journal import PostgresJournal, QueueStats, SQLiteJournal, StoredEvent

OnDisconnect: TypeAlias = Literal["cancel", "detach"]
Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Self = TypeVar("Self", bound="Service")

_LOOK_EVERY_S = 0.25
"""How often `Service.events` asks the journal for more."""

_log = logging.getLogger("asyncflow")


class HasReceive(Protocol):
    """A request of Starlette or FastAPI."""

    @property
    def receive(self) -> Receive:
        """What ASGI servers give an application to receive messages."""
        ...


@dataclass(frozen=True, slots=True)
class ServiceStats:
    """How full a service is."""

    taken: int
    """How many of its places are taken: by runs, and by those that are about to begin."""
    max_runs: int | None
    """How many places it has; ``None`` for no limit."""
    queue: QueueStats | None
    """How many runs wait to start, in the whole journal; ``None`` without a journal."""


class Service:
    """Starts, resumes, streams and cancels runs, as many as it may have at a time.

    Enter it in the lifespan of a web service: ``async with journal, service: yield``. Until the end
    of the block, it also resumes runs that have lost their process, and those that waited for a
    signal which has come. At the end it drains (`drain`).

    Args:
        pipelines: The pipelines that it runs: `Pipeline` and `Orchestrator` objects, each of which
            has a name of its own; or a mapping of name to such an object or a list of steps.
        journal: Stores the runs, and must be closed after the service. By default each pipeline
            keeps its own, if it has one, and the service resumes nothing.
        max_runs: How many runs it may have at a time, at least 1; 100 by default, ``None`` for no
            limit. Runs that it resumes count too, but neither nested runs nor runs that wait for
            signals.
        engine: Where the steps run; by default each pipeline keeps its own. Open it around the
            service: ``async with engine, journal, service``.
        resources: What steps of all runs share, such as a pool of connections, by the name of the
            parameter that receives it: functions that return an async context manager. They are
            opened in their order when the service is entered, and closed after the last run. The
            steps that take them must have been declared before.
        grace_ms: How many milliseconds running steps may take to end when the service drains;
            10,000 by default. 0 cancels them at once. Clean-up is awaited however long it takes.
        on_disconnect: What happens to a run when the client that waits for it in `answer` goes
            away: ``"cancel"`` (the default) cancels it; ``"detach"`` lets it continue.
        resume_every_s: How often it looks for runs to resume, in seconds; 30 by default.
        keep: How long the journal keeps runs that have ended, as a timedelta of an hour at least;
            ``None`` (the default) for ever. The service deletes older ones little by little: each
            hour, and first some time in its first hour. Runs that wait, runs that a service will
            continue and the nested runs of both stay; a nested run goes after the one that has
            started it. Other programs may use the journal: their runs go too.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is out of its range, or two pipelines have the same name, or one
            has none; or no step takes one of the resources.
    """

    def __init__(
        self,
        pipelines: Pipelines,
        *,
        journal: SQLiteJournal | PostgresJournal | None = None,
        max_runs: int | None = 100,
        engine: Engine | None = None,
        resources: Mapping[str, Any] | None = None,
        grace_ms: float = 10_000,
        on_disconnect: OnDisconnect = "cancel",
        resume_every_s: float = 30.0,
        keep: timedelta | None = None,
    ) -> None:
        check_number("grace_ms", grace_ms, 0, unit=" ms")
        check_number("resume_every_s", resume_every_s, 0.1, unit=" s")
        _check_on_disconnect(on_disconnect)
        check_keep(keep)
        if keep is not None and journal is None:
            raise ValueError("keep deletes runs of the service's journal; give it one: journal=...")
        self._keep = keep
        self._journal = journal
        self._places = Places(max_runs)
        self._grace_s = grace_ms / 1000
        self._on_disconnect = on_disconnect
        self._resume_every_s = resume_every_s
        given = {"journal": journal, "engine": engine}
        options: dict[str, Any] = {name: each for name, each in given.items() if each is not None}
        if resources is not None and not isinstance(resources, Mapping):
            raise TypeError(
                "resources must be a mapping of parameter to resource, not "
                f"{type(resources).__name__}"
            )
        self._resources = dict(resources or {})
        self._opened: dict[str, Any] = {}
        self._open_resources = AsyncExitStack()
        self._pipelines: dict[str, Pipeline | Orchestrator] = {}
        unused = set(self._resources)
        self._given = pipelines_by_name(pipelines)
        for name, pipeline in self._given.items():
            opening: dict[str, Any] = {
                own: partial(PatientResource, own, open_resource)
                for own, open_resource in pipeline.resources.items()
            }
            if self._resources:
                taken = self._resources.keys() & inputs_of(pipeline.steps)
                opening |= {shared: partial(self._share, shared) for shared in taken}
                unused -= taken
            options["resources"] = opening
            self._pipelines[name] = pipeline.with_options(**options, name=name)
        for resource in unused:
            raise ValueError(f"no step of the service's pipelines takes a resource {resource!r}")
        self._runs: dict[str, RunHandle] = {}
        self._ends: dict[str, asyncio.Task[None]] = {}
        self._recovery: Recovery | None = None
        self._queue: QueueStarter | None = None
        self._resuming: list[asyncio.Task[None]] = []
        self._draining: asyncio.Task[None] | None = None
        self._is_open = False

    # --- what it has ----------------------------------------------------------------------------

    @property
    def pipelines(self) -> Mapping[str, Pipeline | Orchestrator]:
        """Its pipelines by name, with its journal, engine and resources: for ``asyncflow.web.app``.

        Enter the lifespan of the pages after the service, so that the runs that were resumed from
        them end before the resources close. They are runs of the pages: they count to no
        ``max_runs``.
        """
        return self._pipelines

    @property
    def runs(self) -> list[RunHandle]:
        """The runs that it has now, the earliest start first."""
        return list(self._runs.values())

    @property
    def is_ready(self) -> bool:
        """Whether it starts runs: it was entered, and does not drain."""
        return self._is_open

    def get(self, run_id: str) -> RunHandle | None:
        """Return the run with this id if the service has it now, and ``None`` otherwise.

        A journal knows those that have ended, or that another process has.

        Raises:
            TypeError, ValueError: ``run_id`` is no string, or empty.
        """
        check_run_id("run_id", run_id)
        return self._runs.get(run_id)

    # --- runs -----------------------------------------------------------------------------------

    @method_suggests_arguments
    async def start(
        self,
        pipeline: str | Pipeline | Orchestrator,
        /,
        inputs: Mapping[str, Any] | None = None,
        *,
        run_id: str | None = None,
        key: str | None = None,
        label: str | None = None,
        attributes: Mapping[str, AttributeValue] | None = None,
    ) -> RunHandle:
        """Start a run, or resume it, and return when its start is stored.

        It continues without its caller. If the caller is cancelled before that, so is a run that
        this call has started. A run that it has resumed is drained, since it was accepted before:
        it is stored as a shutdown would leave it, and a service resumes it.

        Args:
            pipeline: One of the pipelines that the service was given, or its name. Others are
                refused, such as what ``with_options`` makes of it.
            inputs: The inputs of the run, by name.
            run_id: Identifies the run; a random id by default.
            key: What no two started runs of the pipeline may have in common, such as
                ``"customer 17"``, as `Pipeline.with_options` takes it; by default that of the
                pipeline.
            label: Says to people what the run is about: ``"order 12345"``; by default that of the
                pipeline.
            attributes: What programs find the run by, such as ``{"tenant": "acme"}``, as the option
                of a pipeline takes them; by default those of the pipeline.

        Raises:
            ServiceFullError: The service has ``max_runs`` runs.
            ServiceStoppingError: The service is shutting down.
            RunAlreadyActiveError: A run of that id is active, here or elsewhere, or another run has
                the key.
            LookupError: It has no such pipeline, or the one that it was given has other options.
            RuntimeError: The service was not entered.
            TypeError: ``pipeline`` is neither a name nor a pipeline.
            BaseException: What else prevents the start, as `Pipeline.run` raises it. Nothing has
                run.
        """
        chosen = self._find(pipeline)
        if label is not None:
            chosen = chosen.with_options(label=label)
        if attributes is not None:
            chosen = chosen.with_options(attributes=attributes)
        if key is not None:
            chosen = chosen.with_options(key=key)
        check_run_id("run_id", run_id)
        self._check_open()
        await self._places.take()
        try:
            run = await self._begin(chosen, run_id, inputs)
        except RunCancelledError:
            self._check_open()
            raise
        try:
            await run.flush()
        except asyncio.CancelledError:
            run._let_go("its start was cancelled")
            raise
        return run

    @method_suggests_arguments
    async def enqueue(
        self,
        pipeline: str | Pipeline | Orchestrator,
        /,
        inputs: Mapping[str, Any] | None = None,
        *,
        run_id: str | None = None,
        key: str | None = None,
        on_conflict: OnConflict = "wait",
        delay_ms: float = 0,
        label: str | None = None,
        attributes: Mapping[str, AttributeValue] | None = None,
    ) -> str:
        """Store a run that waits to start, and return its id when that is stored.

        This service starts it, or another one on the journal that has the pipeline: when it is due
        and there is a place, in the order in which runs became due. So a full service, or one that
        shuts down, accepts it too. The same id again, with the same inputs, stores nothing.

        Args:
            pipeline: As `start` takes it.
            inputs: The inputs of the run, by name.
            run_id: Identifies the run; a random id by default. In a step, which a crash may repeat:
                ``f"{current_step().idempotency_key}/reminder"``.
            key: Of the runs of the pipeline with this key, one runs at a time, and the others wait.
            on_conflict: What to do if there is a run of the key: ``"wait"``, ``"raise"``,
                ``"return"`` or ``"replace"``, as `Pipeline.enqueue` says.
            delay_ms: In how many milliseconds the run is due.
            label: Says to people what the run is about.
            attributes: What programs find the run by.

        Returns:
            The id of the run; with ``"return"``, it may be that of another one.

        Raises:
            LookupError: It has no such pipeline, or the one that it was given has other options.
            RuntimeError: The service has no journal.
            TypeError: ``pipeline`` is neither a name nor a pipeline.
            BaseException: What else `Pipeline.enqueue` raises.
        """
        chosen = self._find(pipeline)
        if self._journal is None:
            raise RuntimeError("a service without a journal can't store a run that waits to start")
        return await chosen.enqueue(
            inputs,
            run_id=run_id,
            key=key,
            on_conflict=on_conflict,
            delay_ms=delay_ms,
            label=label,
            attributes=attributes,
        )

    async def stats(self) -> ServiceStats:
        """Return how many places it has, and how many runs wait to start.

        Raises:
            JournalError: The journal can't be read.
        """
        queue = None if self._journal is None else await self._journal.queue()
        return ServiceStats(self._places.taken, self._places.most, queue)

    def _stats_now(self) -> ServiceStats:
        """Return the same in any thread, for a meter."""
        queue = None if self._journal is None else self._journal._queue_now()
        return ServiceStats(self._places.taken, self._places.most, queue)

    async def answer(
        self,
        run: RunHandle,
        request: HasReceive | Receive,
        *,
        on_disconnect: OnDisconnect | None = None,
    ) -> RunReport:
        """Wait for the end of a run on behalf of a request, and return the report.

        With a journal, a run that begins to wait for a signal leaves its process: its report has
        the status ``WAITING``, and its ``raise_for_failures`` raises a `RunWaitingError`. Answer
        with 202 and the id of the run, or give the pipeline the option ``on_wait="stay"``.

        ``on_disconnect`` also decides what happens to the run when the calling task is cancelled,
        as servers do with requests that take too long when they shut down.

        Args:
            run: The run.
            request: The request of Starlette or FastAPI, whose body has been read; or the
                ``receive`` of an ASGI application.
            on_disconnect: As the service takes it; by default that of the service.

        Raises:
            TypeError: ``run`` is no `RunHandle`, or ``request`` is neither of both.
            ClientDisconnectedError: The client went away first. With ``"cancel"``, the run has
                ended.
            RunCancelledError: Something else has cancelled the run.
            BaseException: What else the run raised, as `Pipeline.run` raises it.
        """
        mode = self._on_disconnect if on_disconnect is None else on_disconnect
        _check_on_disconnect(mode)
        if not isinstance(run, RunHandle):
            raise TypeError(f"run must be a RunHandle, not {type(run).__name__}")
        receive: Receive = getattr(request, "receive", cast("Any", request))
        if not callable(receive):
            raise TypeError(
                "request must have a receive, as those of Starlette do, or be one, not "
                f"{type(request).__name__}"
            )
        end = asyncio.create_task(_until_over(run))
        gone = asyncio.create_task(_until_disconnected(receive))
        try:
            await asyncio.wait([end, gone], return_when=asyncio.FIRST_COMPLETED)
            if not end.done():
                gone.result()  # it may have failed
                if mode == "cancel":
                    run.cancel("its client went away")
                    await asyncio.wait([end])
                raise ClientDisconnectedError(run.run_id, mode)
        except asyncio.CancelledError:
            if mode == "cancel":
                run.cancel("its request was cancelled")
                await outlast(end.done, lambda: asyncio.wait([end]))
            raise
        finally:
            end.cancel()
            if not gone.cancel() and not gone.cancelled():
                gone.exception()  # which does not matter if the run is over
        return await run.report()

    async def cancel(self, run_id: str, reason: str = "no reason given") -> bool:
        """Cancel a run, wherever it runs, without waiting for its end.

        Running steps are cancelled and clean up. The run is stored as interrupted: a service does
        not resume it by itself, but `start` does, under its id.

        Args:
            run_id: The run.
            reason: Why, for reports and displays.

        Returns:
            Whether it will end as cancelled, unless its steps end first: False if it had ended. One
            that has no process at the moment ends when a service, or another process, takes it up.

        Raises:
            TypeError, ValueError: ``run_id`` or ``reason`` is no string, or ``run_id`` is empty.
            RunNotFoundError: The journal has no such run.
            JournalError: The journal can't be read or written.
        """
        run = self.get(run_id)
        if run is None:
            return self._journal is not None and await self._journal.cancel(run_id, reason)
        run.cancel(reason)
        if self._journal is not None:
            # This process may die while its steps clean up.
            with suppress(RunNotFoundError):  # it has not begun
                await self._journal.cancel(run_id, reason)
        return True

    async def signal(
        self, run_id: str, name: str, value: Any, *, sent_by: str | None = None, note: str = ""
    ) -> None:
        """Send a value to a step of a run that waits for it, or will.

        With a journal it is stored before this returns, whichever process runs the run, if one
        does. A run that waits without a process continues at once in this service, or within a
        second in another one. The first value counts: the same one again changes nothing. If
        another version of its pipeline has left the run waiting, it asks for the signals of this
        one from now on.

        Args:
            run_id: The run.
            name: The name of the step that waits.
            value: An instance of exactly the type of the signal, or plain data for one.
            sent_by: Who sends it, for people, in 1 to 200 characters, such as the user of this
                request; ``None`` (the default) for this process. It is stored and shown with the
                answer, and so is the note. Secrets are not replaced in them.
            note: What to say of the answer, in at most 10,000 characters. When the same
                value comes again, ``sent_by`` and ``note`` of the first one stay.

        Raises:
            ValueError: The run has no such signal, the value is of another type, another value was
                sent before, the deadline has expired, or the run has passed without it; or
                ``sent_by`` or ``note`` has too many characters.
            TypeError: An argument is no string.
            RunNotFoundError: There is no such run: a `LookupError`.
            PayloadError: The value can't be stored.
            JournalError: The journal can't be read or written.
        """
        run = self.get(run_id)
        if self._journal is not None:
            if run is not None:
                check_value(run._link.plan, name, value)
            elif self._recovery is not None and self._is_open:
                await self._recovery.check_signal(run_id, name, value)
            await self._journal.signal(run_id, name, value, sent_by=sent_by, note=note)
        elif run is not None:
            await run.signal(name, value, sent_by=sent_by, note=note)
        else:
            raise LookupError(f"the service has no run {run_id!r} now, and no journal either")

    async def events(self, run_id: str, after: int = 0) -> AsyncGenerator[StoredEvent, None]:
        """Yield the events of a run from the journal, as they are stored, until the run has ended.

        They are those of any run, from its first event on, whichever process runs it, and also
        while it waits for a signal. For a run of this service, `RunHandle.events` has them sooner.

        Args:
            run_id: The run.
            after: The position of the last event that the reader has, such as the
                ``Last-Event-ID`` of Server-Sent Events.

        Yields:
            The events with their positions.

        Raises:
            TypeError, ValueError: ``run_id`` is no string, or ``after`` no position.
            RunNotFoundError: There is no such run.
            JournalError: The journal can't be read.
            RuntimeError: The service has no journal.
        """
        check_run_id("run_id", run_id)
        check_count("after", after, 0)
        if self._journal is None:
            raise RuntimeError(
                "a service without a journal has no stored events; use get(run_id).events()"
            )
        while True:
            # With the last one that the reader has: the run may have ended with that.
            batch = await self._journal.events(run_id, max(after - 1, 0))
            for stored in batch:
                if stored.position > after:
                    yield stored
                    after = stored.position
            end = batch[-1].event if batch else None
            if isinstance(end, RunFinished) and end.status is not RunStatus.WAITING:
                return
            if not batch:
                after = 0  # the run was forgotten, and its id is used again
            await asyncio.sleep(_LOOK_EVERY_S)

    async def streamed(
        self, run_id: str, step: str | None = None, after: int = 0
    ) -> AsyncGenerator[StreamedValue, None]:
        """Yield what the steps of a run stream, as it is stored, until the step or run has ended.

        It is that of any run, whichever process runs it. A value of a run of this
        service comes about 50 ms after the call of `StepContext.stream`, one of another process
        half a second after it.

        Args:
            run_id: The run.
            step: Only what the step of this name, or its items, stream.
            after: Only values whose position is greater, such as the ``Last-Event-ID`` of
                Server-Sent Events.

        Yields:
            The values with their positions.

        Raises:
            TypeError, ValueError: ``after`` is no position, or the run has no such step.
            RunNotFoundError: There is no such run.
            JournalError: The journal can't be read.
            RuntimeError: The service has no journal.
        """
        if self._journal is None:
            raise RuntimeError(
                "a service without a journal stores nothing; use get(run_id).streamed()"
            )
        async with aclosing(self._journal.streamed(run_id, step, after)) as values:
            async for value in values:
                yield value

    # --- life cycle -----------------------------------------------------------------------------

    async def __aenter__(self: Self) -> Self:
        if self._is_open or self._draining is not None:
            raise RuntimeError("the service was entered before; make another one")
        for pipeline in self._pipelines.values():
            check_engines(getattr(pipeline, "orchestrator", pipeline).steps)
        await self._open_resources.__aenter__()
        try:
            for name, resource in self._resources.items():
                self._opened[name] = await self._open_resources.enter_async_context(resource())
        except BaseException:
            await self._open_resources.__aexit__(*sys.exc_info())
            raise
        self._is_open = True
        if self._journal is not None:
            self._recovery = recovery = Recovery(
                self._journal, self._pipelines, self._places, self._runs, self._begin
            )
            self._queue = queue = QueueStarter(
                self._journal,
                self._pipelines,
                self._places,
                recovery.resume_one,
                recovery.left_alone,
            )
            looks = [recovery.run(self._resume_every_s), recovery.run_due(), queue.run()]
            if self._keep is not None:
                looks.append(delete_old_runs(self._journal, self._keep))
            name = "asyncflow:service:resume"
            self._resuming = [asyncio.create_task(look, name=name) for look in looks]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            await self.drain()
        finally:
            await self._open_resources.__aexit__(kind, error, trace)

    async def drain(self) -> None:
        """Start nothing more, and wait until all runs have ended. The end of its block does that.

        With a journal, no more steps start, and those that run get ``grace_ms`` to end. A run that
        this does not complete is interrupted, and resumes in the next service with that journal.
        Without a journal, runs continue for ``grace_ms``. Then what still runs is cancelled, and
        cleans up.

        Call it earlier if a shutdown is known before the server ends the lifespan. If the caller is
        cancelled, what runs is cancelled at once.
        """
        self._is_open = False
        if self._draining is None:
            self._draining = asyncio.create_task(self._drain(), name="asyncflow:service:drain")
        draining = self._draining
        cancellation = await outlast(
            draining.done, lambda: asyncio.wait([draining]), lambda _: self._cancel_all()
        )
        if cancellation is not None:
            raise cancellation
        draining.result()

    async def _drain(self) -> None:
        for look in self._resuming:
            look.cancel()
        if self._resuming:
            await asyncio.wait(self._resuming)
        if self._journal is not None:
            for run in self.runs:
                run.drain(SHUTDOWN)
        if self._ends:
            await asyncio.wait(self._ends.values(), timeout=self._grace_s)
        self._cancel_all()
        while self._ends:
            await asyncio.wait(self._ends.values())

    def _cancel_all(self) -> None:
        for run in self.runs:
            run.drain(SHUTDOWN, spare_running=False)

    def _share(self, resource: str) -> AbstractAsyncContextManager[Any]:
        """Return what a run opens, and closes without effect, for a resource that is open."""
        return nullcontext(self._opened[resource])

    # --- starting and resuming ------------------------------------------------------------------

    def _find(self, pipeline: str | Pipeline | Orchestrator) -> Pipeline | Orchestrator:
        """Return a pipeline as the service runs it.

        Another one with the same name is refused, since it may have other steps or options.
        """
        for name, own in self._pipelines.items():
            if pipeline == name or pipeline is self._given[name] or pipeline is own:
                return own
        known = ", ".join(map(repr, self._pipelines)) or "none"
        if isinstance(pipeline, str):
            hint = did_you_mean(pipeline, self._pipelines)
            raise LookupError(f"the service has no pipeline {pipeline!r}{hint}; it has {known}")
        if not isinstance(pipeline, Pipeline | Orchestrator):
            raise TypeError(
                f"pipeline must be one of the service's or its name, not {type(pipeline).__name__}"
            )
        raise LookupError(
            f"this pipeline {pipeline.name!r} was not given to the service, which has {known}; "
            "with_options() makes another one"
        )

    def _check_open(self) -> None:
        if self._draining is not None:
            raise ServiceStoppingError(1)
        if not self._is_open:
            raise RuntimeError("the service has not been entered; use `async with service:`")

    async def _begin(
        self,
        pipeline: Pipeline | Orchestrator,
        run_id: str | None,
        inputs: Mapping[str, Any] | None = None,
    ) -> RunHandle:
        """Start a run for which a place was taken, and return when it has begun."""
        try:
            self._check_open()
            if run_id in self._runs:
                advice = f"service.get({run_id!r}) returns it"
                raise RunAlreadyActiveError(str(run_id), "this service", advice)
            run = pipeline.with_options(run_id=run_id)._planned().start(inputs)
        except BaseException:
            self._places.free()
            raise
        return await run.begin(_Owner(partial(self._register, run)))

    def _register(self, run: RunHandle, task: asyncio.Task[None]) -> None:
        """Keep a run until its end, and free its place then."""
        clock = asyncio.get_running_loop().time
        started_s = clock()
        self._runs[run.run_id], self._ends[run.run_id] = run, task

        def end(_: asyncio.Task[None]) -> None:
            del self._runs[run.run_id], self._ends[run.run_id]
            self._places.free(clock() - started_s)
            if self._recovery is not None:
                self._recovery.ended(run)
            if self._queue is not None:
                self._queue.wake()

        task.add_done_callback(end)


class _Owner:
    """Owns one run: `RunHandle.begin` starts it in a task of this.

    ``register`` is called with the task.
    """

    def __init__(self, register: Callable[[asyncio.Task[None]], object]) -> None:
        self._register = register

    def create_task(
        self, coro: Coroutine[Any, Any, None], /, *, name: str | None = None
    ) -> asyncio.Task[None]:
        # A run of the service is not nested in the run whose step happens to start it.
        context = contextvars.copy_context()
        context.run(leave_attempt)
        task = asyncio.create_task(_contained(coro, name), name=name, context=context)
        task.add_done_callback(lambda _: coro.close())  # it may be cancelled before its first line
        self._register(task)
        return task


async def _contained(run: Coroutine[Any, Any, None], name: str | None) -> None:
    """Await a run. A step that raises `SystemExit` or the like ends its run, not the service."""
    try:
        await run
    except asyncio.CancelledError:
        raise
    except BaseException:
        _log.exception("%s has ended with what ends programs, and the service continues", name)


async def _until_over(run: RunHandle) -> None:
    with suppress(BaseException):  # in a task, some of them would end the event loop
        await run.report()


async def _until_disconnected(receive: Receive) -> None:
    """Wait until the client of a request has gone; the rest of the request is of no interest."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _check_on_disconnect(mode: object) -> None:
    if not isinstance(mode, str) or mode not in get_args(OnDisconnect):
        choices = " or ".join(map(repr, get_args(OnDisconnect)))
        raise ValueError(f"on_disconnect must be {choices}, not {safe_text(repr, mode)}")
