"""Durable runs that crash after each of their events, and are resumed.

Rules:

1. A process that dies leaves the events that were stored, and nothing else. A journal that fails
   leaves the same events, but steps are cancelled, which a process that dies has no time for, and
   the memory of the process stays.
2. With ``kill`` each life of a run is a child process that has run nothing before. What this
   process must know of it comes from the journal, or is plain data that the child writes.
3. A resumed run must end as one that never crashed. Only its id differs, so outputs may have that.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Iterable,
    Iterator,
    Mapping,
)
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import IO, Any, NoReturn, TypeAlias, TypeVar

from asyncflow._core.arguments import reject_awaitable
from asyncflow._core.errors import (
    JournalError,
    RestoredError,
    RunCancelledError,
    RunNotFoundError,
    StepCrashedError,
)
from asyncflow._core.history.replay import StoredRun
from asyncflow._core.history.report import RunReport
from asyncflow._core.history.results import (
    Payload,
    RestoredOutput,
    RunStatus,
    StepResult,
    StepStatus,
)
from asyncflow._core.record import record
from asyncflow._core.running.checkpoints import StoredCall
from asyncflow._core.running.context import call_watchers, key_watchers
from asyncflow._core.text import cut, did_you_mean, plural
from asyncflow._core.value_size import safe_repr
from asyncflow._policies import worker_process
from asyncflow._policies.durable import Journal, JournalSession
from asyncflow._runtime.orchestrator import Orchestrator
from asyncflow._views.event_text import describe_event
from asyncflow.events import Event
from asyncflow.testing._checks import Check, FailedCheck, check_is_plain, failed_check
from asyncflow.testing._fresh_pools import fresh_pools
from asyncflow.testing._recorded_runs import is_equal, timeline, unrecorded
from asyncflow.testing._stand_ins import AnyPipeline, orchestrator_of
from asyncflow.testing._virtual_time import run_in_virtual_time

T = TypeVar("T")

_Unit: TypeAlias = "tuple[str, str, int | None]"
"""A step of a run, or an item of it: what has one idempotency key."""

_Call: TypeAlias = "tuple[str, int | None]"
"""A call by name, as ``"step: name"``, and the item that made it."""

_LONGEST_OUTPUT = 200
"""How many characters of an output an error shows."""


@record(frozen=True)
class Crashes:
    """What `crash_everywhere` has found."""

    points: int
    """How many crashes there were: one for each event of the run, and each call by name."""
    repeated: dict[str, int]
    """The steps whose effect can happen twice, since a crash made them, or an item of them, run
    again that did not ask for its `StepContext.idempotency_key`: after how many of the crashes each
    did; a mapped step counts once for a crash, however many of its items ran again. A step is here
    although it asks, if it asks in another process."""
    status: RunStatus
    """How the run ended that never crashed: the others had to end as it did."""
    repeated_calls: dict[str, int]
    """The calls by name (`StepContext.call`) that a crash made happen twice, each as
    ``"step: name"``: after how many of the crashes each did. These are the calls that were under
    way: what a call has returned is stored before the step goes on."""


class CrashError(AssertionError):
    """A run that was resumed after a crash has not ended as it must.

    Attributes:
        point: How many events were stored when it crashed.
        report: Its report.
        problem: What is wrong with it. The message of the error has its timeline too.
    """

    def __init__(self, point: int, report: RunReport, problem: str) -> None:
        super().__init__(point, report, problem)
        self.point = point
        self.report = report
        self.problem = problem

    def __str__(self) -> str:
        return f"{self.problem}\n{timeline(self.report)}"


def crash_everywhere(
    pipeline: AnyPipeline,
    journal: Callable[[], Journal],
    inputs: Mapping[str, Any] | None = None,
    *,
    signals: Mapping[str, Any] | None = None,
    check: Check | None = None,
    kill: bool = False,
) -> Crashes:
    """Run a pipeline, crash it after each of its events and calls, and resume it, in virtual time.

    ::

        crashes = crash_everywhere(pipeline, lambda: SQLiteJournal(tmp_path / "runs.db"))
        assert crashes.status == "PASSED"
        assert crashes.repeated.keys() <= {"fetch"}  # which changes nothing

    What must be the same is the status of each step, the type of its error, and its output: it is
    equal, or has the same ``repr`` but for the id of the run. With ``fail_fast`` it depends on
    moments what else a failure stops; leave that out where steps fail. A crash takes no time, and
    a resumed run has its whole deadline again.

    It runs event loops of its own, so call it from a plain function. Fakes work in it. No observer
    of the pipeline is notified.

    Args:
        pipeline: A `Pipeline`, an `Orchestrator` or `WorkflowStep` objects.
        journal: Makes a journal, always of the same database: a file, not ``":memory:"``. Each run
            and each resumption has one of its own.
        inputs: The inputs of the runs.
        signals: What is sent to steps that wait for a signal, by their names, once the run waits
            for nothing else: ``{"approved": True}``. Without it, such a run ends as ``WAITING``.
        check: Is called with the report of each resumed run, as that of `explore` is. With ``kill``
            that report is read from the journal, so its errors are `RestoredError` objects.
        kill: Whether each run, and each resumption, is a child process that has run nothing before,
            and a crash is its SIGKILL. So it finds a step that needs what an earlier one has left
            in memory: a token, a client, a cache. By default all happens in this process, which
            keeps that, and a crash is a journal that fails: such a step isn't found. A child needs
            `os.fork`, hence POSIX, and begins with a copy of this process's memory. What an action
            changes there is lost with it, also for ``check`` and for the calls of fakes.

    Returns:
        The number of crashes, the steps whose effect they can repeat, and how the run that they
        are compared with ended.

    Raises:
        CrashError: A resumed run has not ended as one that never crashed, or ``check`` failed.
        RuntimeError: An event loop is running this code, or a child process did not end as it must.
        TypeError: ``check`` is async or returns something else, or an argument has the wrong
            type.
        ValueError: The inputs are wrong, as `Orchestrator.run` says; a step refuses its signal; or
            ``journal`` makes another database each time, so that nothing is resumed.
        BaseException: What else `Orchestrator.run` raises.
    """
    if asyncio._get_running_loop() is not None:
        raise RuntimeError(
            "crash_everywhere() runs event loops of its own; call it from a plain function"
        )
    if not callable(journal):
        raise TypeError(f"journal must be a function that makes one, not {type(journal).__name__}")
    if inputs is not None and not isinstance(inputs, Mapping):
        raise TypeError(
            f"inputs must be a mapping of parameter to value, not {type(inputs).__name__}"
        )
    check_is_plain(check)
    orchestrator = orchestrator_of(pipeline).with_options(observers=())
    lives = _Lives(
        orchestrator,
        journal,
        dict(inputs or {}),
        _checked_signals(signals, orchestrator),
        kill=kill,
    )
    repeated: Counter[str] = Counter()  # a step once for each crash, whatever its items
    repeated_calls: Counter[str] = Counter()
    with unrecorded():
        expected, events = lives.run_to_its_end()
        for point in range(len(events)):
            before = lives.crash(point)
            report, steps, calls = lives.resume(point)
            after = f"after {events[point - 1]!r}" if point else "at its start"
            if point and len(report.segments) == 1:  # its start was stored, and was not found
                raise _of_another_database(f"the run that crashed {after}")
            failed = _difference(report, expected) or failed_check(check, report)
            if failed is not None:
                problem = f"in a run that crashed {after}, {failed.problem}"
                raise CrashError(point, report, problem) from failed.error
            repeated.update(steps)
            repeated_calls.update({call for call, item in before & calls})
    return Crashes(len(events), dict(repeated), expected.status, dict(repeated_calls))


def _checked_signals(signals: object, orchestrator: Orchestrator) -> dict[str, Any]:
    if signals is None:
        return {}
    if not isinstance(signals, Mapping):
        raise TypeError(f"signals must be a mapping of step to value, not {type(signals).__name__}")
    known = [step.name for step in orchestrator.steps if step.signal is not None]
    for name in signals:
        if name not in known:
            raise ValueError(
                f"signals names {name!r}, which waits for no signal{did_you_mean(name, known)}"
            )
    return dict(signals)


def _of_another_database(run: str) -> ValueError:
    return ValueError(
        f"journal must make journals of one database, and {run} was not in it; use a file that "
        "stays the same"
    )


@contextmanager
def _asking_for_keys() -> Iterator[set[_Unit]]:
    """Yield those that ask for their idempotency key."""
    asked: set[_Unit] = set()

    def watch(run_id: str, step: str, item: int | None) -> None:
        asked.add((run_id, step, item))

    key_watchers.append(watch)
    try:
        yield asked
    finally:
        key_watchers.remove(watch)


@contextmanager
def _making_calls() -> Iterator[Callable[[], set[_Call]]]:
    """Yield what returns the calls that were made since, here or in a child that may be dead."""
    with tempfile.TemporaryFile(buffering=0) as file:

        def watch(step: str, item: int | None, name: str) -> None:
            file.write(pickle.dumps((f"{step}: {name}", item)))

        def made() -> set[_Call]:
            file.seek(0)
            found: set[_Call] = set()
            with suppress(EOFError):
                while True:
                    found.add(pickle.load(file))
            return found

        call_watchers.append(watch)
        try:
            yield made
        finally:
            call_watchers.remove(watch)


def _difference(report: RunReport, expected: RunReport) -> FailedCheck | None:
    """Return in what a run differs that must be the same, however often it was resumed."""

    def are_same(one: object, other: object) -> bool:
        if type(one) is RestoredOutput or type(other) is RestoredOutput:  # a secret isn't stored
            return True
        if is_equal(one, other):
            return True
        # An output may have the id of its run.
        texts = safe_repr(one), safe_repr(other)
        return texts[0].replace(report.run_id, "") == texts[1].replace(expected.run_id, "")

    def otherwise(what: str, one: StepResult | None, other: StepResult | None) -> FailedCheck:
        return FailedCheck(f"{what} ended as {_words(one)}, and not as {_words(other)}")

    for result in report.results:
        name, other = f"step {result.step_name!r}", expected[result.step_name]
        if result.status is not other.status or _type_of(result.error) != _type_of(other.error):
            return otherwise(name, result, other)
        if result.items is None or other.items is None:
            if not are_same(result.output, other.output):
                return otherwise(name, result, other)
            continue
        if _size(result) != _size(other):
            return FailedCheck(f"{name} had {_size(result)} items, and not {_size(other)}")
        items, others = _by_number(result.items), _by_number(other.items)
        for number in sorted(items.keys() | others.keys()):
            one, two = items.get(number), others.get(number)
            # Whether one has failed or was stopped by a failure depends on moments.
            are_alike = _has_succeeded(one) is _has_succeeded(two)
            if not are_alike or (one and two and not are_same(one.output, two.output)):
                return otherwise(f"item {number} of {name}", one, two)
    return None


def _by_number(items: Iterable[StepResult]) -> dict[int, StepResult]:
    return {item.item: item for item in items if item.item is not None}


def _has_succeeded(item: StepResult | None) -> bool:
    return item is None or item.status is StepStatus.SUCCESS  # only such items are left out


def _size(mapped: StepResult) -> int:
    """Return how many items a mapped step had."""
    return len(mapped.items or ()) + mapped.left_out


def _type_of(error: BaseException | None) -> str:
    """Return the name of an error's class, also of one that a journal has stored."""
    if isinstance(error, RestoredError):
        return error.type_name
    return "" if error is None else f"{type(error).__module__}.{type(error).__qualname__}"


def _words(result: StepResult | None) -> str:
    if result is None:
        return str(StepStatus.SUCCESS)
    if result.error is not None:  # its message may say more than what failed: when, how often
        return f"{result.status} with {_type_of(result.error).rpartition('.')[2]}"
    output = "a secret" if result.secret else cut(safe_repr(result.output), _LONGEST_OUTPUT)
    return f"{result.status} with {output}"


def _ran_again(report: RunReport) -> Iterator[_Unit]:
    """Yield the steps, and the items of mapped ones, that the crash made run again.

    An attempt that had failed before the crash didn't: another one would have followed it anyway.
    """
    assert report._history is not None
    # Not its results, which leave out items of a step with keep_outputs=False.
    for name, step in report._history.folded().steps.items():
        for one in (step,) if step.items is None else step.items.values():
            latest = one.attempts[-1].segment if one.attempts else 1
            if any(
                each.segment < latest and isinstance(each.error, StepCrashedError | None)
                for each in one.attempts
            ):
                yield report.run_id, name, one.item


class _Lives:
    """What processes do of the runs of one pipeline, each with a journal of its own."""

    def __init__(
        self,
        orchestrator: Orchestrator,
        make_journal: Callable[[], Journal],
        inputs: dict[str, Any],
        signals: dict[str, Any],
        *,
        kill: bool,
    ) -> None:
        self._signals = signals
        self._orchestrator = orchestrator
        self._make_journal = make_journal
        self._inputs = inputs
        self._kill = kill
        self._prefix = f"crashes-{os.urandom(4).hex()}"  # the database may have others

    def run_to_its_end(self) -> tuple[RunReport, list[str]]:
        """Run the pipeline without a crash; return its report, and its events in words."""

        def life() -> tuple[RunReport, list[str]]:
            events: list[Event | str] = []
            report = self._live("uncrashed", lambda real: _DyingJournal(real, events))
            words = [e if isinstance(e, str) else describe_event(e) for e in events]
            return report, words

        return self._lead("uncrashed", life)

    def crash(self, point: int) -> set[_Call]:
        """Let a run end after so many events and calls; return the calls that it has made."""

        def life(die: Callable[[], object] | None = None) -> RunReport:
            return self._live(f"after-{point}", lambda real: _DyingJournal(real, [], point, die))

        def is_alive() -> bool:
            life(lambda: os.kill(os.getpid(), signal.SIGKILL))
            return True

        with _making_calls() as made:
            if not self._kill:
                with suppress(JournalError):
                    life()
            elif _in_child(is_alive):
                raise RuntimeError(
                    f"the run did not reach its event {point + 1} again, after which its process "
                    "dies: it must have the same events in each process"
                )
            return made()

    def resume(self, point: int) -> tuple[RunReport, set[str], set[_Call]]:
        """Resume the run that has crashed.

        Return its report, the steps that it repeated, and the calls that it has made. Steps are not
        among them whose idempotency keys were asked for.
        """

        def life() -> tuple[RunReport, set[str]]:
            with _asking_for_keys() as asked:
                report = self._live(f"after-{point}")
            return report, {unit[1] for unit in _ran_again(report) if unit not in asked}

        with _making_calls() as made:
            report, steps = self._lead(f"after-{point}", life)
            return report, steps, made()

    def _lead(self, name: str, life: Callable[[], tuple[RunReport, T]]) -> tuple[RunReport, T]:
        """Lead a life that is not killed; return what it returns."""
        if not self._kill:
            return life()
        facts = _in_child(lambda: life()[1])
        if facts is None:
            raise RuntimeError("a child process was killed by SIGKILL before it ended")
        # Not from the child: what steps return need not be what pickle can write.
        return run_in_virtual_time(self._stored(name)), facts

    async def _stored(self, name: str) -> RunReport:
        async with self._journal() as real:
            pipeline = self._orchestrator.with_options(journal=real)
            try:
                return await pipeline.report(f"{self._prefix}-{name}")
            except RunNotFoundError:
                raise _of_another_database("the run that a child process has made") from None

    def _live(self, name: str, wrap: Callable[[Journal], Any] | None = None) -> RunReport:
        """Run, or resume, the pipeline to its end, in this process."""
        return run_in_virtual_time(self._life(f"{self._prefix}-{name}", wrap))

    async def _life(self, run_id: str, wrap: Callable[[Journal], Any] | None) -> RunReport:
        async with self._journal() as real:
            pipeline = self._orchestrator.with_options(journal=real, run_id=run_id)
            if wrap is not None:
                pipeline = pipeline.with_options(journal=wrap(real))
            with fresh_pools():  # as in a new process
                report = await pipeline.run(**self._inputs)
                unsent = dict(self._signals)
                while answered := report.waiting.keys() & self._signals.keys():
                    for name in sorted(answered):
                        if name not in unsent:
                            value = safe_repr(self._signals[name])
                            problem = f"step {name!r} refuses {value}, and waits on"
                            raise ValueError(f"signals: {problem}")
                        await real.signal(run_id, name, unsent.pop(name))
                    report = await pipeline.run(**self._inputs)
                return report

    @asynccontextmanager
    async def _journal(self) -> AsyncIterator[Any]:
        real: Any = reject_awaitable("journal", self._make_journal())
        if real is None:
            raise TypeError("journal must be a function that makes one, and it returned None")
        try:
            yield real
        finally:
            close = getattr(real, "aclose", None)
            if close is not None:
                await close()


def _in_child(life: Callable[[], T]) -> T | None:
    """Lead a life in a child process.

    Return what it returns, which must be plain data; ``None`` if SIGKILL has ended the process.
    Raise what it raises, and `RuntimeError` if the process has ended in another way.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.flush()  # or the child would write it too
    with tempfile.TemporaryFile() as file:
        with warnings.catch_warnings():
            # Other threads of this process don't exist in the child, which uses none of their
            # locks.
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if not child:  # pragma: no cover - not measured in another process
            _end_with(life, file)
        try:
            _, status = os.waitpid(child, 0)
        except BaseException:  # Ctrl-C, or the time limit of a test
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise
        ended = os.waitstatus_to_exitcode(status)
        if ended == -signal.SIGKILL:
            return None
        if ended:
            raise RuntimeError(
                f"a child process ended with code {ended} in the middle of a run: a step, or what "
                "it calls, has ended it"
            )
        file.seek(0)
        kind, content, trace = pickle.load(file)
    if kind == "returned":
        returned: T = content
        return returned
    if kind == "raised":
        with suppress(Exception):  # an error may refuse notes
            content.add_note(f"In the child process:\n{trace.rstrip()}")
        raise content
    raise RuntimeError(f"in a child process, {content}\n{trace.rstrip()}")


def _end_with(
    life: Callable[[], object], file: IO[bytes]
) -> NoReturn:  # pragma: no cover - not measured in another process
    """Lead a life in this process, the child, and end with it."""
    try:
        try:
            text = pickle.dumps(("returned", life(), ""))
        except BaseException as error:
            text = worker_process._raised(error)
        file.write(text)
        for stream in (file, sys.stdout, sys.stderr):
            stream.flush()
        os._exit(0)
    finally:
        os._exit(1)


class _DyingJournal:
    """Stores the first events and calls of a run in another journal, and none after that.

    ``events`` receives those that are stored, calls in words, and ``dies_at`` says how many they
    are; ``None`` for all. Then ``die`` is called, instead of letting the journal fail.
    """

    def __init__(
        self,
        real: Journal,
        events: list[Event | str],
        dies_at: int | None = None,
        die: Callable[[], object] | None = None,
    ) -> None:
        self._real = real
        self.events = events
        self.dies_at = dies_at
        self.die = die
        self.encode = real.encode
        self.decode = real.decode
        self.checkpoint_codec = getattr(real, "checkpoint_codec", None)
        self.schema: Callable[[Any], Any] = getattr(real, "schema", lambda hint: {})

    async def open(
        self,
        run_id: str,
        *,
        wait: bool,
        read: Callable[[StoredRun], T],
        key: tuple[str, str] | None = None,
    ) -> tuple[JournalSession, T]:
        options: Any = {} if key is None else {"key": key}
        session, answer = await self._real.open(run_id, wait=wait, read=read, **options)
        kind: type[_DyingSession] = _DyingSession
        if self.checkpoint_codec is not None:
            kind = _SavingSession if hasattr(session, "append_call") else _SavingNoCalls
        return kind(self, session), answer


class _DyingSession:
    def __init__(self, journal: _DyingJournal, real: JournalSession) -> None:
        self._journal = journal
        self._real = real
        self._on_stop: Callable[[JournalError | RunCancelledError], object]
        self._death: JournalError | None = None
        self._dying: asyncio.Future[None] | None = None  # the loop keeps only weak references

    def watch(self, on_stop: Callable[[JournalError | RunCancelledError], object]) -> None:
        self._on_stop = on_stop
        self._real.watch(on_stop)

    def append(self, event: Event) -> None:
        if self._lives_on(event):
            self._real.append(event)

    def _lives_on(self, event: Event | str) -> bool:
        """Whether one more event, or call in words, is stored."""
        journal = self._journal
        if self._death is not None:
            return False
        if len(journal.events) != journal.dies_at:
            journal.events.append(event)
            return True
        stored = plural(len(journal.events), "event")
        self._death = JournalError("of a crash", f"it fails after {stored}")
        self._dying = asyncio.ensure_future(self._die(self._death))
        return False

    async def _die(self, death: JournalError) -> None:
        if self._journal.die is not None:  # pragma: no cover - not measured in another process
            await self._real.flush()
            self._journal.die()
        self._on_stop(death)

    async def flush(self) -> None:
        if self._death is not None:
            await asyncio.Event().wait()
        await self._real.flush()

    def close(self) -> Coroutine[Any, Any, None]:
        return self._closed(self._real.close())

    async def _closed(self, closing: Coroutine[Any, Any, None]) -> None:
        await closing
        if self._death is not None:
            raise self._death


class _SavingSession(_DyingSession):
    """A session of a journal that stores checkpoints and calls, and takes signals."""

    def __init__(self, journal: _DyingJournal, real: JournalSession) -> None:
        super().__init__(journal, real)
        self._checkpoints: list[tuple[str, int | None, Payload | None]] = []

    def on_signal(self, call: Callable[[], object]) -> None:
        self._real.on_signal(call)  # type: ignore[attr-defined]

    async def send(self, name: str, payload: Payload | None) -> None:
        await self._real.send(name, payload)  # type: ignore[attr-defined]

    async def receive(self) -> Mapping[str, Payload | None]:
        received: Mapping[str, Payload | None] = await self._real.receive()  # type: ignore[attr-defined]
        return received

    def append_checkpoint(self, step: str, item: int | None, payload: Payload | None) -> None:
        # Stored with the event that follows in this turn, or not at all.
        self._checkpoints.append((step, item, payload))
        asyncio.get_running_loop().call_soon(self._store_checkpoints)

    def append(self, event: Event) -> None:
        if self._lives_on(event):
            self._store_checkpoints()
            self._real.append(event)

    def _store_checkpoints(self) -> None:
        append = getattr(self._real, "append_checkpoint", None)
        if self._death is None and append is not None:
            for checkpoint in self._checkpoints:
                append(*checkpoint)
        self._checkpoints.clear()

    def append_call(
        self, step: str, item: int | None, name: str, stored: StoredCall
    ) -> Awaitable[None]:
        if self._lives_on(f"call {name!r} of step {step!r}"):
            storing: Awaitable[None] = self._real.append_call(step, item, name, stored)  # type: ignore[attr-defined]
            return storing
        failed = asyncio.get_running_loop().create_future()
        failed.set_exception(JournalError("of a crash", f"call {name!r} was not stored"))
        return failed

    async def load_call(self, step: str, item: int | None, name: str) -> StoredCall | None:
        stored: StoredCall | None = await self._real.load_call(step, item, name)  # type: ignore[attr-defined]
        return stored


# A run looks at the class of its session for what that can do.
_SavingNoCalls = type("_SavingNoCalls", (_SavingSession,), {"append_call": None})
