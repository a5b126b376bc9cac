"""What an action can ask about itself while it runs: `current_step`.

Context variables name the run and the attempt. Threads and tasks inherit the context of an action;
another process does not. The worker process of a step has `process_attempt` instead.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping
from contextvars import Context, ContextVar
from types import MappingProxyType
from typing import (
    TYPE_CHECKING,
    Any,
    NamedTuple,
    Never,
    ParamSpec,
    Protocol,
    TypeAlias,
    TypeVar,
    cast,
)

from asyncflow._core.arguments import check_number
from asyncflow._core.errors import RestoredError, StepCrashedError
from asyncflow._core.history.log import StartedAttempt
from asyncflow._core.history.results import StepResult, picklable_error, to_restored_error
from asyncflow._core.pipeline.graph import Plan
from asyncflow._core.pipeline.step import WorkflowStep
from asyncflow._core.record import made_by, record
from asyncflow._core.running import process_attempt
from asyncflow._core.running.checkpoints import Checkpoints, SentCheckpoint, received_checkpoints
from asyncflow.events import AttemptStarted

if TYPE_CHECKING:  # to make a class of protocols takes long
    from asyncflow._core.pools.pool import Pool
    from asyncflow._core.running.secret_texts import SecretTexts

    class Notes(Protocol):
        """Takes what attempts say. Any thread may call it."""

        takes_logs: bool
        """Whether it takes log records or printed lines too."""
        level: int | None
        """From which level on it takes log records; ``None`` for none."""
        prints: bool
        """Whether it takes printed lines."""

        def progress(
            self, running: StartedAttempt, done: float, total: float | None, unit: str, /
        ) -> None:
            """Take the progress of an attempt, whose numbers were checked."""

        def attach(
            self, running: StartedAttempt, name: str, data: object, media_type: str | None, /
        ) -> None:
            """Take an attachment; raise what `StepContext.attach` raises."""

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

        def printed(self, running: StartedAttempt, stream: str, text: str, /) -> None:
            """Take what was written to ``"stdout"`` or ``"stderr"``, of which lines are kept."""

        def stream(self, running: StartedAttempt, text: str, /) -> None:
            """Take a value that an attempt streams, as JSON; raise what that raises."""

        def leave_out(
            self, running: StartedAttempt, count: int, what: str = "record", why: str = "", /
        ) -> None:
            """Count what an attempt said and is missing; without a reason, it was too much."""

    class Calls(Protocol):
        """Makes the calls of one step or item that have a name."""

        async def call(
            self,
            run: RunContext,
            running: StartedAttempt,
            name: str,
            function: Callable[..., Awaitable[Any]],
            args: tuple[Any, ...],
            kwargs: dict[str, Any],
        ) -> Any:
            """Return what a call has returned in an earlier attempt; else call, and keep it."""


P = ParamSpec("P")
T = TypeVar("T")

key_watchers: list[Callable[[str, str, int | None], object]] = []
"""Each is called with the id of the run, the name of the step and the item, when an action of this
process asks for its idempotency key. A test watches; there are none outside of tests."""

call_watchers: list[Callable[[str, int | None, str], object]] = []
"""Each is called with the step, the item and the name when an action of this process makes a call
by name, and does not get a stored value. A test watches here too."""


class _InLoopOnly:
    """A coroutine method that a thread can't forget to await: there it raises when it is called.

    In the event loop it is the coroutine function that it was, which libraries recognise it by.
    """

    def __init__(self, method: Callable[..., Any]) -> None:
        self.__wrapped__ = method
        self.__doc__ = method.__doc__

    def __get__(self, step: StepContext | None, owner: type) -> Any:
        if step is not None and step._open_calls() is None:
            return step._refuse_call
        return self.__wrapped__.__get__(step, owner)


def _in_loop_only(method: T) -> T:
    return cast("T", _InLoopOnly(cast("Callable[..., Any]", method)))


class StepContext:
    """What an action may ask about itself while it runs; see `current_step`.

    Attributes:
        run_id: Identifies the run.
        step_name: The step.
        item: The item of a mapped step, counted from 0; ``None`` for other steps.
        attempt: The number of this attempt, counted from 1.
        max_retries: How many attempts there are in all.
        last_error: What the attempt before failed with; ``None`` in the first one. In another
            process it is a copy; a `RestoredError` stands for an error that can't be copied. After
            attempts that did not finish, because their process died, it is still what the latest
            one failed with that finished, and their `StepCrashedError` is its ``__context__``; if
            none had failed, it is that `StepCrashedError`.
    """

    __slots__ = (
        "_cancel_requested",
        "_checkpoints",
        "_clock",
        "_deadline_s",
        "_heartbeat",
        "_notes",
        "_results",
        "_run",
        "_running",
        "attempt",
        "item",
        "last_error",
        "max_retries",
        "run_id",
        "step_name",
    )

    def __init__(
        self,
        run_id: str,
        running: StartedAttempt,
        max_retries: int,
        *,
        deadline_s: float,
        clock: Callable[[], float],
        heartbeat: Callable[[], object] | None,
        cancel_requested: Callable[[], bool],
        results: Mapping[str, StepResult] | None,
        notes: Notes | None,
        last_error: BaseException | None,
        checkpoints: Checkpoints,
        run: RunContext | None = None,
    ) -> None:
        self._running = running
        step_name, attempt, _, _, item = running
        self.step_name: str = step_name
        self.attempt: int = attempt
        self.item: int | None = item
        self.run_id: str = run_id
        self.max_retries: int = max_retries
        self.last_error: BaseException | None = last_error
        self._deadline_s = deadline_s
        self._clock = clock
        self._heartbeat = heartbeat
        self._cancel_requested = cancel_requested
        self._results = results
        self._notes = notes
        self._checkpoints = checkpoints
        self._run = run

    @property
    def idempotency_key(self) -> str:
        """A string that is the same in every attempt of this step, or item, in this run.

        It is different in any other.
        """
        for watch in key_watchers:
            watch(self.run_id, self.step_name, self.item)
        return _idempotency_key(self.run_id, self.step_name, self.item)

    @property
    def results(self) -> Mapping[str, StepResult]:
        """For a clean-up step, the results of its dependencies, by name; empty for others.

        A clean-up step has ``run_if="failure"`` or ``"always"``.

        Raises:
            RuntimeError: The step runs in another process, which has no results.
        """
        if self._results is None:
            raise RuntimeError(
                f"step {self.step_name!r}: the results of its dependencies are not there in "
                "another process; run the step in that of the run, such as with runs_in='thread', "
                "or let another step take what this one needs of them, and return that"
            )
        return self._results

    @property
    def cancel_requested(self) -> bool:
        """Whether the attempt must stop. A thread can't be cancelled, so it should check this.

        In a step with ``runs_in="thread"`` it becomes true when a time limit expires, a heartbeat
        is missed, or the run cancels the step; then it stays true. Any thread may read it. In the
        event loop, where an `asyncio.CancelledError` reports the same, it is true in a task that
        was asked to cancel; and it is false in threads that such a step starts itself. In a
        process it is always false: a process that must stop is killed.
        """
        return self._cancel_requested()

    def remaining_ms(self) -> float | None:
        """Return how many milliseconds this attempt has left, at least 0; ``None`` for no limit.

        The earliest of the deadlines of the attempt, the step and the run counts, and in a nested
        run what is left to the attempt that runs it.
        """
        if self._deadline_s == math.inf:
            return None
        return max(0.0, (self._deadline_s - self._clock()) * 1000)

    def heartbeat(self) -> None:
        """Report that the action is alive, so that the step's ``heartbeat_ms`` begins again.

        Any thread may call it, as often as it likes; without ``heartbeat_ms`` it does nothing.
        """
        if self._heartbeat is not None:
            self._heartbeat()

    def progress(self, done: float, total: float | None = None, unit: str = "") -> None:
        """Report how far the action has come: ``progress(300, 1_000, "rows")``.

        Any thread may call it, as often as it likes: observers receive the latest value about ten
        times a second, a journal stores it about once a second, and the last value of an attempt
        always arrives. It is a `heartbeat` too. Without a journal and observers it does no more.

        Args:
            done: What is done, at least 0.
            total: What there is to do, at least 0; ``None`` if it is not known. ``done`` may
                exceed it.
            unit: What is counted, in the plural.

        Raises:
            TypeError: ``done`` or ``total`` is not a number, or ``unit`` not a string.
            ValueError: A number is negative, infinite or NaN.
        """
        if type(done) not in _NUMBERS or not 0 <= done < _LARGE:
            done = _checked_number("done", done)
        if total is not None and (type(total) not in _NUMBERS or not 0 <= total < _LARGE):
            total = _checked_number("total", total)
        if type(unit) is not str:
            raise TypeError(f"progress: unit must be a str, not {type(unit).__name__}")
        if self._heartbeat is not None:
            self._heartbeat()
        if self._notes is not None:
            self._notes.progress(self._running, done, total, unit)

    def checkpoint(self, value: object) -> None:
        """Save where the action has come to, so that the next attempt continues there.

        Any thread may call it, as often as it likes: only the latest value counts. It survives a
        retry. A journal stores it at most about 100 ms later, and with the end of the attempt, so
        that it also survives the process; after a crash it may be that much older than what the
        action did. It is gone when the step has succeeded, or its result is not valid any more.
        What a step with ``secret=True`` saves is not stored.

        Args:
            value: Plain data, or with ``codec="cloudpickle"`` whatever can be pickled: it is
                encoded here and now, like an output without an annotation. At most 65,536 bytes.

        Raises:
            PayloadError: It would not come back equal, or it is too large.
        """
        is_last = self.attempt >= self.max_retries
        self._checkpoints.save(self._running, value, is_last=is_last)

    @property
    def last_checkpoint(self) -> Any:
        """The latest `checkpoint` of an earlier attempt, in any process; ``None`` at first.

        Raises:
            PayloadError: The journal that it was stored in can't decode it any more.
        """
        return self._checkpoints.last(self._running)

    @_in_loop_only
    async def call(
        self,
        name: str,
        function: Callable[P, Awaitable[T]],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Call a coroutine function once for this step, or item, of the run, and return its value.

        What it returns is stored under the name before ``call`` returns. A later attempt, in this
        process or after a crash, gets the stored value and does not call again. So a loop of paid
        calls, such as to a language model, continues where it was::

            step = current_step()
            for turn in range(50):
                answer = await step.call(f"ask-{turn}", client.ask, messages)

        The value is kept until the step, or item, has succeeded, or its result is not valid any
        more; also when the step fails and the run is resumed. A rerun has none of it. A call that
        an earlier attempt has left running is awaited, and its value is the value. With a journal,
        a crash between the moment at which the function returns and the end of the commit loses
        the value, and the next attempt makes this one call again: pass
        ``f"{current_step().idempotency_key}/{name}"`` to a provider that takes such a key.

        A call has no timeout, retry or pool of its own. The step's ``timeout_ms``, 30 seconds by
        default, limits all calls of an attempt together: give a step that makes many
        ``timeout_ms=None`` and a ``deadline_ms``, and each call its limit within the function, such
        as with `asyncio.timeout`. A call that raises ends the attempt unless the action catches the
        error, such as to make the call again under the same name; and ``max_retries`` counts all
        attempts of the loop.

        What a step with ``secret=True`` calls, and any step of a run without a journal, is kept in
        memory, between the attempts of this process.

        Args:
            name: What the call is for, the same in each attempt: `"ask-3"`. An attempt uses a name
                once; after the call has raised, the name is free again. At most 200 characters.
            function: A coroutine function, or whatever else an action may be. What it returns is
                stored like an output of that annotation. Errors are raised, and not stored.
            args: Its arguments. They are not compared; if they can be written as JSON and have
                changed since the value was stored, a warning names the call.
            kwargs: Its keyword arguments.

        Raises:
            ValueError: This attempt has made a call of that name, or is making it.
            TypeError: ``function`` is not an async callable.
            PayloadError: What it returned would not come back equal. No other attempt follows,
                since it would pay again.
            RuntimeError: The action does not run in the event loop of the run, or its attempt has
                ended.
        """
        calls = self._open_calls()
        if calls is None:  # a thread has taken the method from the loop
            self._refuse_call(name)
        run = cast("RunContext", self._run)
        value: T = await calls.call(run, self._running, name, function, args, kwargs)
        return value

    def _open_calls(self) -> Calls | None:
        """Return what makes the calls; ``None`` outside of the event loop of the run."""
        run = self._run
        return None if run is None or run.open_calls is None else run.open_calls(run, self._running)

    def _refuse_call(self, name: str, *_: object, **__: object) -> Never:
        raise RuntimeError(
            f"step {self.step_name!r}: call {name!r} works only in the event loop of the run, not "
            "in a thread or a process or on an engine; await it in an 'async def' action that runs "
            "in the loop, and pass on what it returns"
        )

    def attach(self, name: str, data_or_path: object, media_type: str | None = None) -> None:
        """Attach data for people to look at, such as a plot or a table.

        Displays show it and never execute it, whatever an SVG image has in it. A journal stores it.
        Any thread may call it. Without a journal and observers it does nothing, and checks no more
        than the name. What a step with ``secret=True`` attaches is left out.

        Args:
            name: What displays call it.
            data_or_path: Bytes; a string, which is never a path; a path (`os.PathLike`), whose
                file is read at once; a list of dictionaries with plain values, which becomes a
                table; or whatever else can be written as JSON. At most 1,000,000 bytes.
            media_type: ``"image/png"``, ``"image/svg+xml"``, ``"application/json"``,
                ``"text/csv"``, ``"text/markdown"`` or ``"text/plain"``. By default it follows from
                the data, or from the suffix of the path.

        Raises:
            TypeError: An argument has the wrong type, or the data can't be written as JSON.
            ValueError: It is too large, of another media type or not of the one that is named.
            OSError: The file can't be read.
        """
        if not isinstance(name, str):
            raise TypeError(f"attach: name must be a str, not {type(name).__name__}")
        if not name:
            raise ValueError("attach: name must not be empty")
        if self._notes is not None:
            self._notes.attach(self._running, name, data_or_path, media_type)

    def stream(self, value: object) -> None:
        """Stream a value to those who watch the step, such as the next words of a language model.

        `RunHandle.streamed`, `Service.streamed` and the same method of a journal give it to any
        number of readers while the step runs. With a journal, they get it when it is stored: about
        50 ms after the call in this process, and half a second in others. What a reader has seen is
        never taken back, and it can continue after a crash where it was. Without a journal, they
        get it in the next turn of the loop.

        It is no output, no part of the report and no event. Any thread may call it, as often as it
        likes. Values of a step with ``runs_in="process"`` come in batches, those of an engine with
        the end of the attempt. What the journal refuses of these raises nothing: a log record of
        the step says how many were left out, and why. So it does of values that come after the end
        of their attempt. What a failed attempt has streamed stays; the values of the next one have
        its number. In a run without readers, it only checks the value.

        Args:
            value: Plain data, which JSON gives back as it was: it is encoded here and now.

        Raises:
            PayloadError: It is no plain data; or with a journal, the attempt has streamed more than
                its ``max_stream_bytes``, 16 MiB by default.
            ValueError: The step has ``secret=True``, and the run a journal, which stores what is
                streamed.
        """
        from asyncflow._core.running.streamed import encode_streamed  # few steps stream

        text = encode_streamed(self.step_name, value)
        if self._notes is not None:
            self._notes.stream(self._running, text)

    def __repr__(self) -> str:
        item = "" if self.item is None else f", item {self.item}"
        return (
            f"<StepContext {self.step_name!r}{item}, attempt {self.attempt}, of run {self.run_id}>"
        )


_NUMBERS = frozenset({int, float})
_LARGE = 2**63
"""Above this, a number becomes a float: JSON has no larger integers everywhere."""


def _checked_number(what: str, value: Any) -> float:
    if not isinstance(value, int | float) and hasattr(type(value), "__float__"):
        value = float(value)  # an integer of numpy, for one
    check_number(f"progress: {what}", value, 0)
    return float(value)


def _idempotency_key(run_id: str, step_name: str, item: int | None) -> str:
    # Escaped, so that no two triples have the same key.
    run = run_id.replace("%", "%25").replace("/", "%2F")
    step = step_name.replace("%", "%25").replace("#", "%23")
    return f"{run}/{step}" if item is None else f"{run}/{step}#{item}"


def current_step() -> StepContext:
    """Return the context of the step whose action is running.

    It works in the action, in all that the action awaits, and in the tasks and threads that
    inherit the action's context. In the process of a step with ``runs_in="process"`` it works in
    all threads, but not in processes that the action starts.

    Raises:
        RuntimeError: No step's action is running in this context.
    """
    sent = _sent_attempt()
    if sent is not None:
        return _context_in_process(*sent)
    running = _attempt.get(None)
    if running is None:
        raise RuntimeError(
            "current_step() works only while a step's action runs, and in what it calls; "
            "not in a process that it starts"
        )
    return _context_in_loop(_run.get(), running)


def _context_in_loop(run: RunContext, running: StartedAttempt) -> StepContext:
    name, _, started_ms, _, item = running
    step = run.plan.steps[run.plan.index[name]]
    extras = run.extras.get((name, item))
    if extras is None:
        limit_ms = math.inf if step.timeout_ms is None else step.timeout_ms
        extras = AttemptExtras(run.at_s(started_ms + limit_ms), None, {})
    return StepContext(
        run.run_id,
        running,
        step.max_retries,
        deadline_s=min(extras.deadline_s, run.ends_s(step)),
        clock=run.clock,
        heartbeat=None if extras.heartbeat is None else extras.heartbeat.beat,
        cancel_requested=_cancel_requested.get(),
        results=extras.results,
        notes=run.notes,
        last_error=run.last_errors.get((name, item)),
        checkpoints=run.checkpoints,
        run=run,
    )


# Worker processes.

SentError: TypeAlias = "tuple[bytes, str, str, str, tuple[Any, ...] | None]"
"""An error, pickled, and the fields of the `RestoredError` that replaces it where the bytes can't
be read; the arguments of the `StepCrashedError` that is its context, if one is."""

_SentAttempt: TypeAlias = (
    "tuple[str, StartedAttempt, int, float, float | None, SentError | None, SentCheckpoint]"
)
"""What a process is sent: the id of the run, the attempt, how many there are in all, its deadline,
the present time if the clock stands still, its last error and its last checkpoint. Times are in
seconds."""


def attempt_for_process(now_s: float | None) -> _SentAttempt | None:
    """Return the current attempt for a process that is about to make it; ``None`` if there is none.

    It has types of Python alone, so that the process need not import asyncflow to read it.

    ``now_s`` is the present time by the clock that this process shares with the other one; ``None``
    if the time of the attempt stands still meanwhile.
    """
    running = _attempt.get(None)
    if running is None:
        return None
    step = current_step()
    left_ms = step.remaining_ms()
    left_s = math.inf if left_ms is None else left_ms / 1000
    deadline_s = left_s + (now_s or 0.0)
    still_s = 0.0 if now_s is None else None
    checkpoint = _run.get().checkpoints.to_send(running)
    error = last_error_to_send()
    return step.run_id, running, step.max_retries, deadline_s, still_s, error, checkpoint


def last_error_to_send() -> SentError | None:
    """Return the last error of the current attempt as another process receives it, if any."""
    running = _attempt.get(None)
    error = None if running is None else current_step().last_error
    if error is None:
        return None
    import pickle  # few attempts need it, and it takes a while to import

    restored, context = to_restored_error(error), error.__context__
    content = pickle.dumps(picklable_error(error))
    crash = context.args if isinstance(context, StepCrashedError) else None
    return content, restored.type_name, restored.message, restored.traceback, crash


def received_error(sent: SentError | None) -> BaseException | None:
    """Return the error that another process has sent, if it has sent one."""
    if sent is None:
        return None
    import pickle  # as above

    content, *fields, crash = sent
    try:
        error = pickle.loads(content)
    except Exception:  # its class is not importable here, for one
        error = None
    last_error = error if isinstance(error, BaseException) else RestoredError(*fields)
    if crash is not None:
        last_error.__context__ = StepCrashedError(*crash)
    return last_error


def _sent_attempt() -> tuple[Any, ...] | None:
    """Return the attempt that this process makes, unless a run of this process calls this."""
    return process_attempt.sent if _run.get(None) is None else None


def _context_in_process(
    run_id: str,
    running: StartedAttempt,
    max_retries: int,
    deadline_s: float,
    still_s: float | None,
    last_error: SentError | None,
    checkpoint: SentCheckpoint,
) -> StepContext:
    return StepContext(
        run_id,
        running,
        max_retries,
        deadline_s=deadline_s,
        clock=process_attempt.clock if still_s is None else lambda: still_s,
        heartbeat=process_attempt.beat,
        cancel_requested=bool,
        results=None,
        notes=process_attempt.notes,
        last_error=received_error(last_error),
        checkpoints=received_checkpoints(running, checkpoint, process_attempt.save),
    )


class Heartbeat(Protocol):
    """A limit that every heartbeat moves on."""

    def beat(self) -> None:
        """Give a heartbeat, from any thread."""


_NO_RESULTS: Mapping[str, StepResult] = MappingProxyType({})  # all attempts share it


@record
class AttemptExtras:
    """What an action can ask of an attempt only if its step has a policy for it."""

    deadline_s: float
    """The loop's time at which the attempt must have ended."""
    heartbeat: Heartbeat | None = None
    results: Mapping[str, StepResult] | None = _NO_RESULTS
    """The results of a clean-up step's dependencies; ``None`` in the worker of an engine."""


@record
class RunContext:
    """What all attempts of a run have in common. Contexts hold it, so it holds nothing large."""

    run_id: str
    plan: Plan
    clock: Callable[[], float]
    """The loop's clock, in seconds."""
    started_s: float
    """The loop's time at the start of the run, in seconds."""
    deadline_s: float
    """The loop's time at which the run's deadline expires."""
    extras: dict[tuple[str, int | None], AttemptExtras]
    """Those of each running attempt that has any, by its step and item."""
    cancel_requested: Callable[[], bool]
    """Whether the running task was asked to cancel. False where no task is running."""
    notes: Notes | None = None
    """Takes what attempts say; ``None`` if nothing would receive it."""
    secrets: SecretTexts | None = None
    """The secrets that it and the runs around it know; ``None`` if there are none."""
    outer_ends_s: float = math.inf
    """The loop's time at which the attempt must have ended within which the run runs."""
    outer: tuple[Notes, StartedAttempt] | None = None
    """What takes the log records of attempts, if the run does not: the attempt of another run
    within which it runs, and the notes of that run."""
    pools: frozenset[Pool] = frozenset()
    """Those of which the attempts hold slots within which the run runs."""
    last_errors: dict[tuple[str, int | None], BaseException] = made_by(default_factory=dict)
    """What the attempt before failed with, of each node that makes another one."""
    checkpoints: Checkpoints = made_by(default_factory=Checkpoints)
    open_calls: Callable[[RunContext, StartedAttempt], Calls | None] | None = None
    """Returns what makes the calls of the step, or item, of a running attempt; ``None`` outside of
    the event loop of the run."""

    @property
    def by_node(self) -> tuple[dict[tuple[str, int | None], Any], ...]:
        """What the run forgets of a node when its attempts are over; a journal keeps its own."""
        return self.last_errors, self.checkpoints.saved, self.checkpoints.calls

    def ends_s(self, step: WorkflowStep) -> float:
        """Return the loop's time at which the attempts of a step end that have no limit."""
        # The deadline of a run leaves its clean-up steps alone; what stops the run does not.
        return self.outer_ends_s if step.is_cleanup else min(self.outer_ends_s, self.deadline_s)

    def now_ms(self) -> float:
        """Return the milliseconds since the start of the run."""
        return (self.clock() - self.started_s) * 1000

    def at_s(self, at_ms: float) -> float:
        """Return the loop's time at a moment of the run."""
        return self.started_s + at_ms / 1000


_run: ContextVar[RunContext] = ContextVar("asyncflow.run")

_attempt: ContextVar[StartedAttempt | None] = ContextVar("asyncflow.attempt")
"""``None`` in what a run does between its attempts."""

_cancel_requested: ContextVar[Callable[[], bool]] = ContextVar("asyncflow.cancel_requested")
"""Whether the attempt must stop. A thread may outlive its attempt, so its context has the flag."""

enter_attempt = _attempt.set
"""Make an attempt of the run the current one, from here on, in this context."""


def enter_run(run: RunContext) -> None:
    """Make a run the current one, from here on, in this context."""
    _run.set(run)
    _attempt.set(None)  # the run may run within a step of another run
    _cancel_requested.set(run.cancel_requested)


def leave_attempt() -> None:
    """Be outside of all actions, from here on, in this context."""
    _attempt.set(None)


def enter_direct_call(run: RunContext, running: StartedAttempt) -> Callable[[], None]:
    """Make an attempt the current one without a run; return what takes that back."""
    of_run, of_attempt = _run.set(run), _attempt.set(running)
    of_cancel = _cancel_requested.set(run.cancel_requested)

    def leave() -> None:
        _run.reset(of_run)
        _attempt.reset(of_attempt)
        _cancel_requested.reset(of_cancel)

    return leave


def enter_thread(cancel_requested: Callable[[], bool]) -> None:
    """Make a flag the one that `StepContext.cancel_requested` reads, from here on, in this context.

    The worker thread calls it, in its copy of the context: the attempt's own stays as it is.
    """
    _cancel_requested.set(cancel_requested)


def current_checkpoints() -> tuple[Checkpoints, StartedAttempt] | None:
    """Return the running attempt and the checkpoints of its run; ``None`` outside of an action."""
    running = _attempt.get(None)
    return None if running is None else (_run.get().checkpoints, running)


def current_attempt() -> tuple[str, AttemptStarted] | None:
    """Return the id of the run and the start of the attempt; ``None`` outside of an action."""
    sent = _sent_attempt()
    if sent is not None:
        return sent[0], AttemptStarted(*sent[1])
    running = _attempt.get(None)
    return None if running is None else (_run.get().run_id, AttemptStarted(*running))


def capturing_notes() -> tuple[Notes, StartedAttempt] | None:
    """Return the current attempt and what takes its log records; ``None`` if nothing does."""
    sent = _sent_attempt()
    if sent is not None:
        notes = process_attempt.notes
        return None if notes is None or not notes.takes_logs else (notes, sent[1])
    running = _attempt.get(None)
    if running is None:
        return None
    run = _run.get()
    return run.outer if run.notes is None or not run.notes.takes_logs else (run.notes, running)


class Surroundings(NamedTuple):
    """What a run has of the attempt that runs it."""

    left_s: float = math.inf
    """How many seconds the attempt has left."""
    notes: tuple[Notes, StartedAttempt] | None = None
    """As `capturing_notes` returns it."""
    secrets: SecretTexts | None = None
    """The secrets of its run, if that has any."""
    pools: frozenset[Pool] = frozenset()
    """The pools of which it, and those around its run, hold slots."""


_NOTHING_AROUND = Surroundings()


def surroundings() -> Surroundings:
    """Return what a run that starts now has of the attempt that is running."""
    running = _attempt.get(None)
    if running is None and _sent_attempt() is None:
        return _NOTHING_AROUND
    left_ms = current_step().remaining_ms()
    left_s, notes = math.inf if left_ms is None else left_ms / 1000, capturing_notes()
    if running is None:  # of a run in another process
        return Surroundings(left_s, notes)
    run = _run.get()
    pool = run.plan.steps[run.plan.index[running[0]]].pool
    pools = run.pools if pool is None else run.pools | {pool}
    return Surroundings(left_s, notes, run.secrets, pools)


def is_within_run() -> bool:
    """Whether what a run calls leads to here: an action, a condition, what opens a resource."""
    return _run.get(None) is not None


def current_clock() -> Callable[[], float] | None:
    """Return the clock of the run one of whose actions is running; ``None`` outside of one."""
    return None if _attempt.get(None) is None else _run.get().clock


def current_run() -> str | None:
    """Return the id of the run one of whose actions is running; ``None`` outside of an action."""
    attempt = current_attempt()
    return None if attempt is None else attempt[0]


def attempt_in(context: Context, run: RunContext) -> AttemptStarted | None:
    """Return the attempt that a context belongs to, if it is one of this run."""
    running = context.get(_attempt) if context.get(_run) is run else None
    return None if running is None else AttemptStarted(*running)


def is_inside_run(run_id: str) -> bool:
    """Whether an action of the run with that id is calling this."""
    return current_run() == run_id
