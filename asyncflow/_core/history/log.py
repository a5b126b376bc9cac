"""What has happened in a run: a log, which is folded when a caller asks.

Rules:

1. The run's state decides and appends; nothing else does. What steps say (`NoteEvent`) stays out.
   A resumed run goes on with the log that its journal has read (`log_of`).
2. An attempt of the plain lane is two tuples in the log, and becomes two events when they are asked
   for: most runs need neither.
3. Results are made when they are first read. Where a step's events leave no doubt, its result is
   made of them; of all others, the replay (`StoredRun`) makes it. Both come to the same.
4. No output of an item of a step with ``keep_outputs=False`` is kept. One that succeeds in its
   first attempt, and not on an engine, is counted, and leaves no entry.
5. A history outlives its run, in the report. It holds nothing of the pipeline but names.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from asyncflow._core.history.results import Attempt, Key, RunStatus, StepResult, StepStatus, end_of
from asyncflow._core.record import replace
from asyncflow.events import (
    AttemptFailed,
    AttemptStarted,
    Event,
    LoopBlocked,
    MapStarted,
    ResultReused,
    RunFinished,
    RunStarted,
    StepCancelled,
    StepFailed,
    StepSkipped,
    StepSucceeded,
)

if TYPE_CHECKING:
    from asyncflow._core.history.replay import StoredRun
    from asyncflow._core.history.step_view import StepView

StartedAttempt: TypeAlias = tuple[str, int, float, float, int | None]
"""The fields of an `AttemptStarted`, of which each attempt makes one: a tuple costs a tenth."""

EndedAttempt: TypeAlias = tuple[StartedAttempt, float, Any]
"""An attempt of the plain lane that has succeeded: how it started, when it ended, its output."""

LogEntry: TypeAlias = Event | StartedAttempt | EndedAttempt


def as_event(entry: LogEntry) -> Event:
    """Return the event that an entry of a log stands for."""
    if not isinstance(entry, tuple):
        return entry
    if len(entry) == 5:
        return AttemptStarted(*entry)
    (name, attempt, _, _, item), at_ms, output = entry
    return StepSucceeded(name, attempt, at_ms, output, item)


class LeftOut:
    """Items of a mapped step that have succeeded in one attempt each, and left nothing behind."""

    __slots__ = ("count", "latest_ms", "queued_ms", "started_ms")

    def __init__(self) -> None:
        self.count, self.queued_ms = 0, 0.0
        self.started_ms, self.latest_ms = math.inf, 0.0

    def add(self, started_ms: float, queued_ms: float, ended_ms: float) -> None:
        """Count one."""
        self.count += 1
        self.queued_ms += queued_ms
        self.started_ms = min(self.started_ms, started_ms)
        self.latest_ms = max(self.latest_ms, ended_ms)

    def show_in(self, step: StepView) -> None:
        """Let a view of the step count them."""
        step.left_out = step.left_out_attempts = self.count
        step.left_out_queued_ms = self.queued_ms
        step.include_active(self.started_ms, self.latest_ms)


class History:
    """The log of a run, from its start on.

    ``before`` is the replay of what earlier segments did, up to the `RunResumed` with which the run
    continues, or of what a rerun reuses. The log goes on with its log. ``slim`` are the mapped
    steps that keep no outputs.
    """

    def __init__(self, before: StoredRun | None = None, slim: frozenset[str] = frozenset()) -> None:
        self.log: list[LogEntry] = [] if before is None or before.log is None else before.log
        self._slim = slim
        self._run = before
        """The replay so far; ``None`` until a caller asks for one."""
        self.is_whole = before is None or before.log is not None
        """Whether the log has what has happened from the start of the run on."""
        self._is_first = before is None
        """Whether all of it has happened in this process, and nothing is reused."""
        self._folded = len(self.log)
        """How many entries the replay has."""
        self.left_out: dict[str, LeftOut] = {}
        """The items that are not in the log, by mapped step."""
        self._unlogged: dict[Key, LogEntry] = {}
        """How items without outputs have started that run their first attempt, and only that."""
        self._logged: set[Key] = set()
        """The items without outputs of which the log has an entry."""

    def note_folded(self, event: Event) -> None:
        """Append an event that the replay has already."""
        self.append(event)
        self._folded += 1

    @property
    def unfolded(self) -> int:
        """How many entries the replay does not have yet."""
        return len(self.log) - self._folded

    def events(self, first: int = 0) -> Iterator[Event]:
        """Yield what has happened, without the first so many events."""
        log = self.log
        # Not by `islice`, which would go through what it leaves out: a reader asks for each result.
        return (as_event(log[at]) for at in range(first, len(log)))

    def append(self, entry: LogEntry) -> None:
        """Append an entry, as far as it is kept. Without ``slim``, the log itself takes all."""
        step = step_of(entry)
        if step not in self._slim:
            self.log.append(entry)
        elif (item := _item_of(entry)) is None:
            self.log.append(_without_output(entry))
        else:
            self._append_of_item(step, item, entry)

    def _append_of_item(self, step: str, item: int, entry: LogEntry) -> None:
        """Append an entry of an item without outputs, unless the item just succeeds."""
        key = step, item
        if _is_first_start(entry) and not self._has_former(step, item):
            self._unlogged[key] = entry
            return
        started = self._unlogged.pop(key, None)
        if started is not None and _is_plain_success(entry):
            self._leave_out(started, entry)
            return
        if started is not None:
            self.log.append(started)
        elif isinstance(entry, LoopBlocked) and key not in self._logged:
            return  # it is known only after the end of the item, which was left out
        self._logged.add(key)
        self.log.append(_without_output(entry))

    def folded(self) -> StoredRun:
        """Return the replay of the run, up to now."""
        from asyncflow._core.history.replay import StoredRun  # most runs are never folded

        run = self._run = self._run or StoredRun()
        for event in self.events(self._folded):
            run.apply(event)
        self._folded = len(self.log)
        for name, left_out in self.left_out.items():
            left_out.show_in(run.steps[name])
        return run

    def without_outputs(self) -> StoredRun:
        """Return the replay of a run that has ended, without the outputs that are not kept."""
        run = self.folded()
        if self._slim:
            run.carryover.drop_outputs(self._slim)
        return run

    def _has_former(self, step: str, item: int) -> bool:
        """Whether an item had attempts before, which must not be left out with it."""
        return self._run is not None and item in self._run.steps[step].former_items

    def _leave_out(self, started: Any, ended: Any) -> None:
        """Count the success of an item, in its only attempt."""
        if isinstance(started, tuple):
            name, _, started_ms, queued_ms, _ = started
        else:
            name, started_ms, queued_ms = started.step, started.at_ms, started.queued_ms
        ended_ms = ended[1] if isinstance(ended, tuple) else ended.at_ms
        self.left_out.setdefault(name, LeftOut()).add(started_ms, queued_ms, ended_ms)

    def start(self) -> RunStarted | None:
        """Return the first event of a run that was never resumed and does not wait for signals."""
        first, last = self.log[0], self.log[-1]
        waits = isinstance(last, RunFinished) and last.status is RunStatus.WAITING
        return first if self._is_first and isinstance(first, RunStarted) and not waits else None

    def results(self, inputs: Mapping[str, Any]) -> dict[str, StepResult]:
        """Return the results of the steps, in topological order."""
        start = self.start()
        if start is not None:
            results, map_over = _Results(start, self.log, self.left_out).by_name(), start.map_over
        else:
            run = self.folded()
            results = {name: step.to_result(run.at_ms) for name, step in run.steps.items()}
            map_over = run.carryover.map_over
            if self.is_whole:  # a report may be kept for long, and the log is smaller
                self._run, self._folded = None, 0
        if map_over:
            from asyncflow._core.history.item_values import give_all  # other runs need none

            give_all(results, map_over, inputs, self._slim)
        return results


class _Results:
    """Makes the results of a run that was never resumed."""

    def __init__(
        self, started: RunStarted, log: Sequence[LogEntry], left_out: Mapping[str, LeftOut]
    ) -> None:
        self._started = started
        self._log = log
        self._left_out = left_out
        self._secret = frozenset(started.secret)
        self._replay: StoredRun | None = None

    def by_name(self) -> dict[str, StepResult]:
        """Return them in topological order."""
        log: Sequence[Any] = self._log
        plain: dict[str, EndedAttempt]
        plain = {entry[0][0]: entry for entry in log if type(entry) is tuple and len(entry) == 3}
        eventful: dict[str, list[LogEntry]] = {
            entry.step: [] for entry in log if type(entry) is not tuple and entry.step is not None
        }
        for entry in log if eventful else ():
            name = step_of(entry)
            if name in eventful:
                eventful[name].append(entry)
        results = {}
        max_retries = self._started.max_retries
        for name, depends_on in self._started.dependencies.items():
            if name in eventful:
                results[name] = self._of(name, eventful[name], depends_on)
            elif name in plain:
                results[name] = of_plain(plain[name], depends_on, max_retries.get(name))
        return results

    def _of(self, name: str, entries: list[LogEntry], depends_on: tuple[str, ...]) -> StepResult:
        first, last, most = entries[0], entries[-1], self._started.max_retries.get(name)
        result: StepResult | None
        if isinstance(first, StepSkipped):
            result = _of_skip(name, first, depends_on, most)
        elif isinstance(first, MapStarted) and not first.keeps_outputs:
            result = None
        elif isinstance(first, MapStarted):
            result = _of_items(first, entries[1:-1], ended_by(last), depends_on, most)
        else:
            result = _of_attempts(name, None, entries, depends_on, most)
        if result is None:
            return self._replayed(name, entries)
        return _as_secret(result) if name in self._secret else result

    def _replayed(self, name: str, entries: Iterable[LogEntry]) -> StepResult:
        from asyncflow._core.history.replay import StoredRun  # most results need none

        if self._replay is None:
            self._replay = StoredRun([self._started])
        for entry in entries:
            self._replay.apply(as_event(entry))
        if name in self._left_out:
            self._left_out[name].show_in(self._replay.steps[name])
        return self._replay.steps[name].to_result(self._replay.at_ms)


class _Start(NamedTuple):
    """How an attempt in this process started."""

    at_ms: float
    queued_ms: float


class _End(NamedTuple):
    """How a step or an item ended."""

    at_ms: float
    status: StepStatus
    output: Any = None
    error: BaseException | None = None
    reason: str | None = None


def start_of(entry: Any) -> _Start | None:
    """Return how an attempt started, if the entry says that, and it is one in this process."""
    if type(entry) is tuple:
        return _Start(entry[2], entry[3])
    is_here = isinstance(entry, AttemptStarted) and not entry.engine
    return _Start(entry.at_ms, entry.queued_ms) if is_here else None


def ended_by(entry: Any) -> _End | None:
    """Return how a step or an item ended, if the entry says that."""
    if type(entry) is tuple:
        return _End(entry[1], StepStatus.SUCCESS, entry[2])
    if isinstance(entry, StepSucceeded):
        return _End(entry.at_ms, StepStatus.SUCCESS, entry.output, entry.error)
    if isinstance(entry, StepFailed):
        return _End(entry.at_ms, StepStatus.FAILED, None, entry.error)
    if isinstance(entry, StepCancelled):
        return _End(entry.at_ms, StepStatus.CANCELLED, None, entry.error, entry.reason)
    return None


def step_of(entry: Any) -> Any:
    """Return the step that an entry is about; ``None`` if it is about the run."""
    if type(entry) is not tuple:
        return entry.step
    return entry[0] if len(entry) == 5 else entry[0][0]


def _item_of(entry: Any) -> Any:
    """Return the item that an entry about a step is about; ``None`` if it is the step itself."""
    if type(entry) is not tuple:
        return entry.item
    return entry[4] if len(entry) == 5 else entry[0][4]


def _is_first_start(entry: Any) -> bool:
    if type(entry) is tuple:
        return len(entry) == 5 and entry[1] == 1
    return isinstance(entry, AttemptStarted) and entry.attempt == 1


def _is_plain_success(entry: Any) -> bool:
    """Whether an entry says that a step, or an item, has succeeded, and not by its fallback."""
    if type(entry) is tuple:
        return len(entry) == 3
    return isinstance(entry, StepSucceeded) and entry.error is None


def _without_output(entry: Any) -> LogEntry:
    if type(entry) is tuple:
        return entry if len(entry) == 5 else (entry[0], entry[1], None)
    return replace(entry, output=None) if isinstance(entry, StepSucceeded | ResultReused) else entry


def of_plain(
    ended: EndedAttempt, depends_on: tuple[str, ...], max_retries: int | None
) -> StepResult:
    """Return the result of a step, or an item, whose first attempt in the plain lane succeeded."""
    (name, attempt, started_ms, queued_ms, item), ended_ms, output = ended
    return StepResult(
        name if item is None else f"{name}[{item}]",
        StepStatus.SUCCESS,
        attempt,
        ended_ms - started_ms,
        output,
        started_ms=started_ms,
        depends_on=depends_on,
        queued_ms=queued_ms,
        item=item,
        max_retries=max_retries,
    )


def _of_attempts(
    name: str,
    item: int | None,
    entries: Sequence[LogEntry],
    depends_on: tuple[str, ...],
    max_retries: int | None,
) -> StepResult | None:
    """Return the result of a step, or an item; ``None`` if more happened than its attempts."""
    start, end = start_of(entries[0]), ended_by(entries[-1])
    if start is None or end is None:
        return None
    started_ms, queued_ms = start
    ended_ms, status, output, error, reason = end
    recorded = None
    if len(entries) > 2:
        recorded = _recorded(entries)
        if recorded is None:
            return None
        queued_ms = sum([attempt.queued_ms for attempt in recorded])
    return StepResult(
        name,
        status,
        1 if recorded is None else len(recorded),
        ended_ms - started_ms,
        output,
        error,
        reason,
        started_ms,
        recorded,
        depends_on,
        queued_ms,
        item=item,
        max_retries=max_retries,
    )


def _recorded(entries: Sequence[LogEntry]) -> tuple[Attempt, ...] | None:
    """Return attempts each of which has a start and an end here, and nothing else has happened."""
    if len(entries) % 2:
        return None
    attempts = []
    for number, (first, last) in enumerate(zip(entries[::2], entries[1::2], strict=True), 1):
        start, end = start_of(first), last if isinstance(last, AttemptFailed) else ended_by(last)
        if start is None or end is None:
            return None
        error = end.error
        cancelled = isinstance(last, StepCancelled) and end_of(error) != "timed out"
        duration_ms = end.at_ms - start.at_ms
        attempt = Attempt(number, start.at_ms, duration_ms, error, start.queued_ms, 1, cancelled)
        if isinstance(last, AttemptFailed):
            attempt = replace(attempt, retry_in_ms=last.retry_in_ms)
        attempts.append(attempt)
    return tuple(attempts)


def _of_items(
    started: MapStarted,
    between: Iterable[LogEntry],
    end: _End | None,
    depends_on: tuple[str, ...],
    max_retries: int | None,
) -> StepResult | None:
    """Return the result of a mapped step; ``None`` if more happened than attempts of its items."""
    if end is None:  # an item is known to have blocked the loop only after the end of the step
        return None
    name, entries_of = started.step, dict[int, list[LogEntry]]()
    for entry in between:
        entries_of.setdefault(_item_of(entry), []).append(entry)
    items = []
    for item, entries in sorted(entries_of.items()):
        result = _of_attempts(f"{name}[{item}]", item, entries, depends_on, max_retries)
        if result is None:
            return None
        items.append(result)
    ended_ms, status, output, error, reason = end
    return StepResult(
        name,
        status,
        sum([result.attempts for result in items]),
        ended_ms - started.at_ms,
        output,
        error,
        reason,
        started.at_ms,
        (),
        depends_on,
        sum([result.queued_ms for result in items], 0.0),
        items=tuple(items),
        max_retries=max_retries,
    )


def _of_skip(
    name: str, skip: StepSkipped, depends_on: tuple[str, ...], max_retries: int | None
) -> StepResult:
    return StepResult(
        name,
        StepStatus.SKIPPED,
        reason=skip.reason,
        recorded=(),
        depends_on=depends_on,
        by_condition=skip.by_condition,
        item=skip.item,
        max_retries=max_retries,
    )


def _as_secret(result: StepResult) -> StepResult:
    items = result.items and tuple(map(_as_secret, result.items))
    return replace(result, items=items, secret=result.status is StepStatus.SUCCESS)
