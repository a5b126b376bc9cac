"""What has happened in a run: a log, which is folded when somebody asks.

Rules:

1. The run's state decides and appends; nothing else does. What steps say (`NoteEvent`) stays out.
2. An attempt of the plain lane is two tuples in the log, and becomes two events when they are asked
   for: most runs need neither.
3. Results are made when they are first read. Where a step's events leave no doubt, its result is
   made of them; of all others, the replay (`StoredRun`) makes it. Both come to the same.
4. A history outlives its run, in the report. It holds nothing of the pipeline but names.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple, TypeAlias

from asyncflow._core.context import StartedAttempt
from asyncflow._core.record import replace
from asyncflow._core.replay import StoredRun
from asyncflow._core.results import StepResult, StepStatus
from asyncflow._core.step_runs import EndedAttempt, Key
from asyncflow.events import (
    AttemptStarted,
    Event,
    MapStarted,
    RunStarted,
    StepCancelled,
    StepFailed,
    StepSkipped,
    StepSucceeded,
)

LogEntry: TypeAlias = Event | StartedAttempt | EndedAttempt


def as_event(entry: LogEntry) -> Event:
    """Return the event that an entry of a log stands for."""
    if not isinstance(entry, tuple):
        return entry
    if len(entry) == 5:
        return AttemptStarted(*entry)
    (name, attempt, _, _, item), at_ms, output = entry
    return StepSucceeded(name, attempt, at_ms, output, item)


class History:
    """The log of what one process did of a run, after what others did before.

    ``before`` is the replay of what earlier segments did, up to the `RunResumed` with which the run
    continues.
    """

    def __init__(self, before: StoredRun | None = None) -> None:
        self.log: list[LogEntry] = []
        self._run = StoredRun() if before is None else before
        self._is_whole = before is None
        """Whether the log has all that has happened."""
        self._folded = 0
        """How many entries the replay has."""

    def events(self, first: int = 0) -> Iterator[Event]:
        """Yield what has happened, without the first so many events."""
        return map(as_event, islice(self.log, first, None))

    def folded(self) -> StoredRun:
        """Return the replay of the run, up to now."""
        run = self._run
        for event in self.events(self._folded):
            run.apply(event)
        self._folded = len(self.log)
        return run

    def detach(self) -> None:
        """Let go of the pipeline, which the mappings of the first event are views of."""
        if isinstance(first := self.log[0], RunStarted):
            names = "dependencies", "max_retries", "fingerprints"
            self.log[0] = replace(first, **{name: dict(getattr(first, name)) for name in names})

    def results(self) -> dict[str, StepResult]:
        """Return the results of the steps that have ended, in topological order."""
        first = self.log[0]
        if self._is_whole and isinstance(first, RunStarted):
            return _Results(first, self.log).by_name()
        run = self.folded()
        return {name: step.to_result(run.at_ms) for name, step in run.steps.items()}


class _Results:
    """Makes the results of a run that was never resumed."""

    def __init__(self, started: RunStarted, log: Sequence[LogEntry]) -> None:
        self._started = started
        self._log = log
        self._secret = frozenset(started.secret)
        self._replay: StoredRun | None = None

    def by_name(self) -> dict[str, StepResult]:
        """Return them in topological order."""
        plain: dict[str, EndedAttempt] = {}
        eventful: dict[str, list[LogEntry]] = {}
        for entry in self._log:
            if type(entry) is tuple:
                if len(entry) == 3:
                    plain[entry[0][0]] = entry
            elif (name := getattr(entry, "step", None)) is not None:
                eventful[name] = []
        for entry in self._log if eventful else ():
            name, _ = _key_of(entry)
            if name in eventful:
                eventful[name].append(entry)
        results = {}
        for name, depends_on in self._started.dependencies.items():
            if name in eventful:
                results[name] = self._of(name, eventful[name], depends_on)
            elif name in plain:
                results[name] = _of_plain(plain[name], depends_on)
        return results

    def _of(self, name: str, entries: list[LogEntry], depends_on: tuple[str, ...]) -> StepResult:
        first, last = entries[0], entries[-1]
        if isinstance(first, StepSkipped):
            result = _of_skip(name, first, depends_on)
        elif isinstance(first, MapStarted):
            result = _of_items(first, entries[1:-1], _end_of(last), depends_on)
        elif len(entries) == 2:
            result = _of_attempt(name, None, _start_of(first), _end_of(last), depends_on)
        if result is None:
            return self._replayed(name, entries)
        return _as_secret(result) if name in self._secret else result

    def _replayed(self, name: str, entries: Iterable[LogEntry]) -> StepResult:
        if self._replay is None:
            self._replay = StoredRun([self._started])
        for entry in entries:
            self._replay.apply(as_event(entry))
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


def _start_of(entry: Any) -> _Start | None:
    if type(entry) is tuple:
        return _Start(entry[2], entry[3])
    is_here = isinstance(entry, AttemptStarted) and not entry.engine
    return _Start(entry.at_ms, entry.queued_ms) if is_here else None


def _end_of(entry: Any) -> _End | None:
    if type(entry) is tuple:
        return _End(entry[1], StepStatus.SUCCESS, entry[2])
    if isinstance(entry, StepSucceeded):
        return _End(entry.at_ms, StepStatus.SUCCESS, entry.output)
    if isinstance(entry, StepFailed):
        return _End(entry.at_ms, StepStatus.FAILED, None, entry.error)
    if isinstance(entry, StepCancelled):
        return _End(entry.at_ms, StepStatus.CANCELLED, None, entry.error, entry.reason)
    return None


def _key_of(entry: Any) -> Key:
    """Return the step, and the item, that an entry is about."""
    if type(entry) is not tuple:
        return getattr(entry, "step", ""), getattr(entry, "item", None)
    start = entry if len(entry) == 5 else entry[0]
    return start[0], start[4]


def _of_plain(ended: EndedAttempt, depends_on: tuple[str, ...]) -> StepResult:
    (name, attempt, started_ms, queued_ms, _), ended_ms, output = ended
    return StepResult(
        *(name, StepStatus.SUCCESS, attempt, ended_ms - started_ms, output, None, None, started_ms),
        *(None, depends_on, queued_ms),
    )


def _of_attempt(
    name: str, item: int | None, start: _Start | None, end: _End | None, depends_on: tuple[str, ...]
) -> StepResult | None:
    """Return the result of a step, or an item, that had one attempt; ``None`` if it had no such."""
    if start is None or end is None:
        return None
    started_ms, queued_ms = start
    ended_ms, status, output, error, reason = end
    return StepResult(
        *(name, status, 1, ended_ms - started_ms, output, error, reason, started_ms, None),
        *(depends_on, queued_ms),
        item=item,
    )


def _of_items(
    started: MapStarted, between: Iterable[LogEntry], end: _End | None, depends_on: tuple[str, ...]
) -> StepResult | None:
    """Return the result of a mapped step; ``None`` unless each item had one attempt."""
    name, entries_of = started.step, dict[int, list[LogEntry]]()
    for entry in between:
        entries_of.setdefault(_key_of(entry)[1] or 0, []).append(entry)
    items = []
    for item, (first, *_, last) in sorted(entries_of.items()):
        if len(entries_of[item]) == 2:
            start = _start_of(first)
            items.append(_of_attempt(f"{name}[{item}]", item, start, _end_of(last), depends_on))
    known = [item for item in items if item is not None]
    if end is None or len(known) < len(entries_of):
        return None
    ended_ms, status, output, error, reason = end
    duration_ms, queued_ms = ended_ms - started.at_ms, sum([item.queued_ms for item in known], 0.0)
    return StepResult(
        *(name, status, len(known), duration_ms, output, error, reason, started.at_ms, ()),
        *(depends_on, queued_ms),
        items=tuple(known),
    )


def _of_skip(name: str, skip: StepSkipped, depends_on: tuple[str, ...]) -> StepResult:
    return StepResult(
        name,
        StepStatus.SKIPPED,
        reason=skip.reason,
        recorded=(),
        depends_on=depends_on,
        on_purpose=skip.on_purpose,
        item=skip.item,
    )


def _as_secret(result: StepResult) -> StepResult:
    items = result.items and tuple(map(_as_secret, result.items))
    return replace(result, items=items, secret=result.status is StepStatus.SUCCESS)
