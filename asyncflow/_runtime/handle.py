"""A run as a handle: its events, its progress and its report while it runs, and its cancellation.

Rules:

1. Nothing runs until the handle is entered, or begun in an owner. So every run is awaited: by
   the block, or by the owner.
2. No reader ever slows the run. The handle keeps the latest events, and a reader that is further
   behind learns how many it has missed. A reader of results misses none.
3. The task of a run raises nothing. The handle keeps what ended the run, and `report` or the end
   of the block raises it. The exception is what must end the program, if only the owner awaits it.
4. Who awaits the run is one state, which changes as the table says: a use that it lacks is
   refused. The state decides who receives an error. It does not depend on how far the run is.
5. The run's side, `RunLink`, does not know the handle. The frames of an error hold it, and the
   handle holds the error: it would be a cycle.
"""

from __future__ import annotations

import asyncio
import logging
import warnings
from collections.abc import AsyncGenerator, Callable, Coroutine
from types import TracebackType
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

from asyncflow._core.errors import JournalError, RunCancelledError
from asyncflow._core.history.report import RunReport
from asyncflow._core.history.results import InterruptionCause, RunStatus, why_cancelled
from asyncflow._core.running.streamed import StreamedValue, ValuesMissed
from asyncflow._core.text import describe_error, did_you_mean, escape_controls
from asyncflow._core.tracebacks import strip_internal_frames
from asyncflow._kernel.asyncio_compat import outlast, running_task
from asyncflow._kernel.outcome import by_caller
from asyncflow._policies.run_link import (
    EventReader,
    Notifier,
    ResultReader,
    RunLink,
    streamed_values,
)

_NO_REASON = "no reason given"

_Awaited: TypeAlias = Literal[
    "new", "refused", "by owner", "by block", "by owner and block", "left to owner"
]
"""Who awaits a run: ``refused`` if it could not be started; ``left to owner`` by its block."""
_Use: TypeAlias = Literal["begin", "enter", "refuse", "detach"]

_NEXT: dict[tuple[_Awaited, _Use], _Awaited] = {
    ("new", "begin"): "by owner",
    ("new", "enter"): "by block",
    ("refused", "begin"): "by owner",
    ("refused", "enter"): "by block",
    ("by owner", "refuse"): "refused",
    ("by owner", "enter"): "by owner and block",
    ("by owner", "detach"): "by owner",
    ("by block", "refuse"): "refused",
    ("by owner and block", "detach"): "left to owner",
    ("left to owner", "detach"): "left to owner",
}
_BY_OWNER_ALONE = ("by owner", "left to owner")
_REFUSALS = {
    "begin": "run {!r} was started already; start() makes another one",
    "enter": "the handle of run {!r} was entered already; start() makes another one",
    "detach": "run {!r} has no owner that would await it without this block; begin it in one, "
    "before the block: await etl.start(...).begin(task_group), or start it by a Service",
}

_log = logging.getLogger("asyncflow")


class RunProgress(NamedTuple):
    """How far a run is."""

    done: int
    """How many steps have ended: succeeded, failed, been skipped or been cancelled."""
    total: int
    """How many steps it has."""
    running: tuple[str, ...]
    """The names of the steps that have started and not ended, in the order of their starts."""


class RunOwner(Protocol):
    """Awaits the runs that are begun in it, however they end, such as an `asyncio.TaskGroup`."""

    def create_task(
        self, coro: Coroutine[Any, Any, None], /, *, name: str | None = None
    ) -> asyncio.Task[None]:
        """Run a coroutine in a task that this owner awaits."""
        ...


class RunHandle:
    """A run that is watched, awaited and cancelled while it runs: what ``start(...)`` returns.

    Entering it starts the run: ``async with etl.start(url=...) as run``. It returns when the run
    has begun, so it raises whatever keeps a run from beginning. If the block is left while the run
    runs, the run is cancelled, and its steps have ended when the block has. A run that is over is
    left as it is.

    At its end, the block raises what has ended the run, as `Pipeline.run` would, unless the block
    has asked for it, `report` has raised it, or the block raises something itself.

    Everything here belongs to the thread of the event loop; from another one, use
    ``loop.call_soon_threadsafe(run.cancel, reason)``.
    """

    def __init__(
        self, link: RunLink, launch: Callable[[RunLink], Coroutine[Any, Any, RunReport]]
    ) -> None:
        self._link = link
        self._launch = launch
        self._awaited: _Awaited = "new"
        self._task: asyncio.Task[Any] | None = None
        self._ended = Notifier()
        self._report: RunReport | None = None
        self._error: BaseException | None = None
        self._traceback: TracebackType | None = None
        self._is_told = False
        """Whether `report` has raised the error."""
        self._request: RunCancelledError | None = None
        """The request to end the run, if there was one."""
        self._body: asyncio.Task[Any] | None = None
        """The task of the block, while it is in there and awaits the run."""

    def __repr__(self) -> str:
        status = "not started" if self._task is None else self.status
        return f"<RunHandle of run {self.run_id!r}, {status}>"

    def __del__(self) -> None:
        if self._awaited == "new" and self._request is None:
            warnings.warn(
                f"run {self.run_id!r} was never started: its handle was not entered",
                RuntimeWarning,
                stacklevel=2,
                source=self,
            )

    # Its life.

    async def begin(self, owner: RunOwner) -> RunHandle:
        """Start the run in an owner, which awaits it, and return this when the run has begun.

        Then the run needs no block: ``run = await etl.start(url=...).begin(group)``. If it has one
        nevertheless, `detach` leaves it to its owner.

        An owner that cancels the run's task interrupts the run. An owner sees how a run ends in one
        case: a step raised a `KeyboardInterrupt`, `SystemExit` or the like, and no block awaits the
        run. Other errors are logged if neither a block nor `report` awaits the run.

        Args:
            owner: An `asyncio.TaskGroup`, or anything else with such a ``create_task``.

        Raises:
            RuntimeError: The run was started already.
            TypeError: The owner has no ``create_task``, or that returns no task.
            Exception: What keeps the run from beginning, as `Pipeline.run` raises it. Nothing has
                run.
        """
        self._awaited = self._next("begin")
        try:
            await self._begin(owner)
        except BaseException:
            del self  # what is raised holds this frame
            raise
        return self

    async def __aenter__(self) -> RunHandle:
        self._awaited = self._next("enter")
        if self._task is None:
            try:
                await self._begin(asyncio)
            except BaseException:
                del self  # as in begin
                raise
        if not self._link.is_over:
            self._body = running_task()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._awaited == "left to owner":
            return
        has_cancelled = self._link.is_over and _ends_the_program(self._error)  # in `_tell`
        cancelled_body, self._body = self._body if has_cancelled else None, None
        if cancelled_body is not None:
            cancelled_body.uncancel()
        self._stop(_reason_to_leave(error))
        cancellation = await self._outlast()
        raised = self._error_to_raise(error, cancellation)
        before = None if raised is None else raised.__context__
        try:
            if raised is not None:
                raise raised
        finally:
            if raised is not None and cancelled_body is not None:
                # That it was raised while the cancellation of the body was handled tells nothing,
                # and the frames of that may hold the handle.
                raised.__context__ = before
            # What is raised holds this frame.
            del self, error, traceback, cancelled_body, cancellation, raised, before

    async def _outlast(self) -> asyncio.CancelledError | None:
        """Wait until the run is over; return the cancellation that came meanwhile, if any."""
        return await outlast(lambda: self._link.is_over, self._ended.wait)

    def _error_to_raise(
        self, error: BaseException | None, cancellation: asyncio.CancelledError | None
    ) -> BaseException | None:
        """Return what the end of the block raises by itself.

        ``error`` is what the block raises, and ``cancellation`` the one that came while it waited
        for the run.
        """
        own = None if self._error is error else self._error
        if _ends_the_program(own):
            return own
        if cancellation is not None and not isinstance(error, asyncio.CancelledError):
            return cancellation
        if own is None or own is self._request or self._is_told:
            return None
        if error is None:
            return own
        error.add_note(f"run {self.run_id!r} has failed too: {describe_error(own)}")
        return None

    def detach(self) -> None:
        """Leave the run to its owner: the end of the block neither cancels nor awaits it.

        Raises:
            RuntimeError: It has no owner.
        """
        self._check_started()
        awaited = self._next("detach")
        if not self._link.is_over:  # else its end is the block's to tell
            self._awaited, self._body = awaited, None

    def _next(self, use: _Use) -> _Awaited:
        """Return who awaits the run after this use of the handle."""
        awaited = _NEXT.get((self._awaited, use))
        if awaited is None:
            raise RuntimeError(_REFUSALS[use].format(self.run_id))
        return awaited

    async def _begin(self, owner: RunOwner) -> None:
        """Start the run, and wait until it has begun."""
        running = self._run()
        try:
            if self._request is not None:
                raise self._request
            self._task = _task_in(owner, running, f"asyncflow:{self.run_id}")
        except BaseException:
            running.close()
            self._awaited = self._next("refuse")
            del self, running  # as in begin; since 3.13, the coroutine keeps its arguments
            raise
        self._task.add_done_callback(self._on_done)
        link = self._link
        try:
            while not (link.is_begun or self._link.is_over):
                await link.has_begun.wait()
        except asyncio.CancelledError as cancellation:
            self._let_go(by_caller(cancellation).reason)
            await self._outlast()
            raise
        if not link.is_begun and self._error is not None:
            running.close()  # if the owner has not run it
            self._is_told = True
            try:
                raise self._error
            finally:
                del self, running, link  # as above

    async def _run(self) -> None:
        launch = self._launch
        del self._launch
        try:
            self._report = await launch(self._link)
        except BaseException as error:
            self._fail(error)
            if self._awaited in _BY_OWNER_ALONE and _ends_the_program(error):
                raise
        finally:
            del self, launch  # what is kept holds this frame

    def _fail(self, error: BaseException) -> None:
        """Keep what has ended the run."""
        if isinstance(error, asyncio.CancelledError):
            state = self._link.state
            error = self._request or RunCancelledError(self.run_id, by_caller(error).reason)
            if state is not None and state.has_finished:
                error.report = state.report()
        elif _ends_the_program(error):
            strip_internal_frames(error)  # they hold the link, whose events hold the error
        self._error, self._traceback = error, error.__traceback__

    def _on_done(self, task: asyncio.Task[Any]) -> None:
        if task.cancelled():  # before its first line
            self._fail(asyncio.CancelledError())
        elif self._report is None and self._error is None:
            error = RuntimeError(
                f"the owner of run {self.run_id!r} ended its task without running it"
            )
            error.__cause__ = task.exception()
            self._fail(error)
        link = self._link
        link.is_over = True
        if self._error is not None:
            self._tell(self._error)
        link.close(getattr(self._error, "report", None) if self._report is None else self._report)
        self._ended.notify()

    def _tell(self, error: BaseException) -> None:
        """See to it that what has ended the run does not pass unnoticed."""
        if _ends_the_program(error):
            if self._body is not None:
                # As a task group does it. The end of the block takes it back and raises the error.
                self._body.cancel()
        elif not (
            isinstance(error, RunCancelledError)
            or self._awaited not in _BY_OWNER_ALONE
            or self._ended.has_waiters
            or self._link.has_ended.has_waiters
            or not self._link.is_begun
        ):
            if isinstance(error, JournalError):  # its message says all
                _log.error(
                    "run %r did not end in this process, and nothing awaits it; a service can "
                    "resume it: %s",
                    *(self.run_id, describe_error(error)),
                )
            else:
                _log.error("run %r has failed, and nothing awaits it", self.run_id, exc_info=error)

    # While it runs.

    @property
    def run_id(self) -> str:
        """Identifies the run."""
        return self._link.run_id

    @property
    def status(self) -> RunStatus:
        """How the run ended; ``RUNNING`` until its end is stored, if it has a journal.

        What ends without a report, such as a run whose journal has failed, is ``INTERRUPTED``.

        Raises:
            RuntimeError: The run was not started.
        """
        self._check_started()
        if not self._link.is_over:
            return RunStatus.RUNNING
        return RunStatus.INTERRUPTED if self._report is None else self._report.status

    @property
    def progress(self) -> RunProgress:
        """How far the run is.

        Raises:
            RuntimeError: The run was not started.
        """
        self._check_started()
        link = self._link
        return RunProgress(len(link.ended), link.total, tuple(link.running))

    def events(self) -> EventReader:
        """Return an asynchronous iterator over the events of the run, until it is over.

        It begins with the first event. Each call returns a reader of its own, and none of them
        slows the run: the handle keeps the latest 10,000 events (the option ``event_buffer``). A
        reader that is further behind receives an `EventsMissed` with the number of those it has
        missed, and continues with the oldest event that is kept. A run that had passed earlier has
        no events.

        Raises:
            RuntimeError: The run was not started.
        """
        self._check_started()
        return EventReader(self._link)

    def results(self, step: str | None = None) -> ResultReader:
        """Return an asynchronous iterator over the results of the steps, each when it has ended.

        It begins with what has ended already, in that order: reused results come first. Each call
        returns a reader of its own, which misses nothing and slows nothing, however slowly it is
        read. The results are those that the report has at the end, so a failed step is among them,
        and raises nothing.

        Args:
            step: The name of a mapped step, to iterate over the results of its items instead. They
                come as the items end, and not in their order; ``item.output`` is what the call
                returned. The iteration ends as soon as the step has succeeded or failed.

        The iteration ends with the run. If something other than its steps has ended that, such as
        `cancel` or the journal, the iteration raises it then, as `report` does: what it has given
        is not all.

        Raises:
            RuntimeError: The run was not started.
            TypeError: The step is not a name.
            ValueError: The pipeline has no such step, or the step is not mapped, or has
                ``keep_outputs=False``.
        """
        self._check_started()
        return ResultReader(self._link, self.report, self._checked_step(step))

    def streamed(
        self, step: str | None = None
    ) -> AsyncGenerator[StreamedValue | ValuesMissed, None]:
        """Return an asynchronous iterator over what the steps stream, with `StepContext.stream`.

        It begins with the first value of the run, also of earlier processes, and ends when the
        step, or the run, is over. Each call returns a reader of its own, and none of them slows
        the run. With a journal that stores what is streamed, a value comes when it is stored.
        Without one, the handle keeps the latest 10,000 values, and a reader that is further behind
        receives a `ValuesMissed` with the number of those it has missed.

        Args:
            step: The name of a step, for what this step or its items stream; ``None`` for all.

        Raises:
            RuntimeError: The run was not started.
            TypeError, ValueError: The step is not a name, or the pipeline has no such step.
            JournalError: The journal can't be read.
        """
        self._check_started()
        self._check_step(step)
        link = self._link
        if link.follow is None:
            return streamed_values(link, step)
        return link.follow(link.run_id, step, 0, lambda: link.is_over)

    def _check_step(self, name: str | None) -> None:
        if name is None:
            return
        if not isinstance(name, str):
            raise TypeError(f"step must be the name of a step, not {type(name).__name__}")
        index = self._link.plan.index
        if name not in index:
            raise ValueError(f"run {self.run_id!r} has no step {name!r}{did_you_mean(name, index)}")

    def _checked_step(self, name: str | None) -> str | None:
        self._check_step(name)
        if name is None:
            return None
        plan = self._link.plan
        step = plan.steps[plan.index[name]]
        if step.map_over is None or not step.keep_outputs:
            lacks = "is not mapped, so it has" if step.map_over is None else "keeps"
            what = "items" if step.map_over is None else "outputs of its items"
            raise ValueError(
                f"step {name!r} {lacks} no {what}; results() without a name has "
                "the result of each step"
            )
        return name

    async def report(self) -> RunReport:
        """Wait until the run is over, and return its report, even when steps failed.

        It may be awaited many times, even concurrently, and a wait that is cancelled does not
        cancel the run.

        Raises:
            RuntimeError: The run was not started.
            RunCancelledError: The run was cancelled, by `cancel`, the end of its block, its owner
                or its journal. Its ``reason`` says why, its ``report`` how the steps ended.
            BaseException: What else has ended the run, as `Pipeline.run` raises it.
        """
        self._check_started()
        while not self._link.is_over:
            await self._ended.wait()
        if self._error is not None:
            self._is_told = True
            try:
                raise self._error.with_traceback(self._traceback)
            finally:
                del self  # what is raised holds this frame
        assert self._report is not None
        return self._report

    async def signal(
        self, name: str, value: Any, *, sent_by: str | None = None, note: str = ""
    ) -> None:
        """Send a value to the step of this name, which waits for it, or will.

        With a journal, it returns when the value is stored. The first value counts: the same one
        again changes nothing, and ``sent_by`` and ``note`` of the first one stay.

        Args:
            name: The name of the step.
            value: An instance of exactly the type of the signal, or plain data for one.
            sent_by: Who sends it, for people, in 1 to 200 characters; ``None`` (the default) for
                this process. It is shown with the answer, and so is the note: see `SignalReceived`.
                Secrets are not replaced in them.
            note: What to say of the answer, in at most 10,000 characters.

        Raises:
            ValueError: The run waits for no such signal, the value is of another type, another
                value was sent before, the deadline has expired, or the run is not running. A run
                that waits without a process has none: send the signal with ``journal.signal``.
                Or ``sent_by`` or ``note`` has too many characters.
            JournalError: The journal fails.
            PayloadError: The journal can't store the value.
            TypeError: An argument is not a string.
            RuntimeError: The run was not started.
        """
        self._check_started()
        if not isinstance(name, str):
            raise TypeError(f"name must be the name of a signal, not {type(name).__name__}")
        from asyncflow._core.pipeline.signal import check_sender  # few runs wait for one

        check_sender(sent_by, note)
        await self.flush()  # or what is void would count as the first
        await self._link.send(name, value, sent_by, note)

    def cancel(self, reason: str = _NO_REASON) -> None:
        """Cancel the run: its running steps are cancelled, and no other starts.

        It returns at once; `report` waits until the steps have ended, and then raises a
        `RunCancelledError`. Only the first call counts. A run all of whose steps have ended is
        left as it is. With a journal, the run is stored as interrupted, and can be resumed.

        Args:
            reason: Why, in words for the results of the steps that this cancels or skips, and for
                `RunInterrupted`: "the run was cancelled: no reason given".

        Raises:
            TypeError: The reason is not a string.
        """
        self._stop(_checked_reason(reason))

    def drain(self, reason: str, *, spare_running: bool = True) -> None:
        """Let the running attempts end, and start nothing more, since this process shuts down.

        An attempt that waits for a worker of an engine does not run yet, so it is cancelled.

        A run that this completes ends as usual. Any other is interrupted once they have ended, and
        `report` raises a `RunCancelledError`; with a journal, it can be resumed. Meanwhile `cancel`
        stops what is running, and its reason replaces this one. A run that has not begun is
        cancelled.

        Args:
            reason: Why, in words that complete the sentence "the run stopped because …".
            spare_running: Whether the running attempts may end; otherwise they are cancelled, as
                by `cancel`, even when the run drains already.

        Raises:
            TypeError: The reason is not a string.
        """
        reason = _checked_reason(reason)
        if self._link.is_begun and spare_running:
            self._link.drain(escape_controls(reason))
        else:
            self._stop(reason, "drained")

    async def flush(self) -> None:
        """Wait until the journal has stored all that has happened in the run so far.

        It returns at once without a journal.

        Raises:
            BaseException: As `report` raises it, if the run ends first, since its journal fails.
        """
        self._check_started()
        if self._link.flush is None:
            return
        stored = asyncio.ensure_future(self._link.flush())
        ended = asyncio.ensure_future(self._ended.wait())
        try:
            await asyncio.wait([stored, ended], return_when=asyncio.FIRST_COMPLETED)
            if not stored.done():
                await self.report()
        finally:
            stored.cancel()
            ended.cancel()

    def _let_go(self, reason: str) -> None:
        """End the run because its start was cancelled; drain one that this start has resumed.

        Another start has accepted that run, so it must not end for good.
        """
        if self._link.has_resumed:
            self.drain(reason)
        else:
            self._stop(reason)

    def _stop(self, reason: str, cause: InterruptionCause = "cancelled") -> None:
        if self._link.is_over or self._request is not None:
            return
        self._request = RunCancelledError(self.run_id, reason)
        if self._task is None:
            return
        if self._link.is_begun:
            self._link.stop(self._request, why_cancelled(reason, cause))
        else:
            self._task.cancel()

    def _check_started(self) -> None:
        if self._task is None:
            raise RuntimeError(
                f"run {self.run_id!r} has not started; enter its handle: "
                "async with pipeline.start(...) as run"
            )


def _checked_reason(reason: object) -> str:
    if not isinstance(reason, str):
        raise TypeError(f"reason must be a str, not {type(reason).__name__}")
    return reason or _NO_REASON  # an error without one is that of a cancellation through a journal


def _task_in(owner: object, coroutine: Coroutine[Any, Any, None], name: str) -> asyncio.Task[Any]:
    create_task = getattr(owner, "create_task", None)
    if not callable(create_task):
        raise TypeError(
            f"owner must be a TaskGroup, or have such a create_task, not {type(owner).__name__}"
        )
    task = create_task(coroutine, name=name)
    if not isinstance(task, asyncio.Task):
        raise TypeError(
            f"the owner's create_task must return an asyncio.Task, not {type(task).__name__}"
        )
    return task


def _ends_the_program(error: BaseException | None) -> bool:
    return error is not None and not isinstance(error, Exception)


def _reason_to_leave(error: BaseException | None) -> str:
    if error is None:
        return "its block has ended"
    if isinstance(error, asyncio.CancelledError):
        return by_caller(error).reason
    return f"its block raised {type(error).__name__}"


for _public in (RunHandle, RunOwner, RunProgress):
    _public.__module__ = "asyncflow"  # where users know them from
