"""Runs as lines of text, for anything that is not a terminal: a file, a pipe, a CI log.

Rules:

1. Each event of a run or of a step is a line.
2. The items of a mapped step have a line for each tenth of them. What went wrong with an item is a
   line of its own.
3. Progress has a line for each tenth of its total, and not before ten seconds after the one before.
4. What steps log and attach has none: logging has its own handlers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from asyncflow._core.text import escape_controls
from asyncflow._views.event_text import describe_event, subject
from asyncflow._views.progress import progress_text
from asyncflow._views.workflow_commands import without_commands
from asyncflow.events import (
    WARNING,
    AttemptBegan,
    AttemptStarted,
    Event,
    MapStarted,
    NoteEvent,
    ResultReused,
    RunResumed,
    RunStarted,
    StepCancelled,
    StepFailed,
    StepProgressed,
    StepReused,
    StepSkipped,
    StepSucceeded,
)
from asyncflow.live._renderer import EventBuffer

_PAUSE_MS = 10_000
_ENDS = (StepSucceeded, StepFailed, StepCancelled, StepSkipped, StepReused)


class LineRenderer:
    """Writes runs as lines.

    ``write`` writes text and flushes it.
    """

    pause_s = 0.05
    has_shown_end = False

    def __init__(self, write: Callable[[str], object]) -> None:
        self._write = write
        self._text: list[str] = []
        self._runs: dict[EventBuffer, _RunLines] = {}
        self._are_many = False

    def take(self, buffers: Sequence[EventBuffer]) -> None:
        self._runs = {buffer: self._runs.get(buffer) or _RunLines() for buffer in buffers}
        for buffer, run in self._runs.items():
            for at_ms, line in run.lines(buffer.drain()):
                if not self._are_many and len(self._runs) > 1:
                    self._are_many = sum(bool(each.run_id) for each in self._runs.values()) > 1
                prefix = f" {run.run_id}:" if self._are_many and run.run_id else ""
                self._text.append(f"[{_time(int(at_ms))}]{prefix} {line}\n")

    def draw(self) -> None:
        text, self._text = self._text, []
        if text:
            self._write(without_commands("".join(text)))

    # There is nothing to prepare or to restore.

    def begin(self) -> None: ...

    def run_ended(self, buffer: EventBuffer, *, is_last: bool) -> None: ...

    def end(self) -> None: ...

    def abort(self) -> None: ...


class _Pace:
    """Decides when something that grows is worth a line: at each tenth of it."""

    def __init__(self, at_ms: float) -> None:
        self._shown_ms = at_ms
        self._tenth = 0

    def is_due(self, at_ms: float, done: float, total: float | None, pause_ms: float) -> bool:
        """Whether it is worth a line now; then it counts as shown.

        ``at_ms`` is the present, in milliseconds since the run started, and ``pause_ms`` is how
        long after the line before. ``total`` is ``None`` if unknown.
        """
        tenth = int(10 * done / total) if total else self._tenth + 1
        if tenth <= self._tenth or at_ms - self._shown_ms < pause_ms:
            return False
        self._tenth, self._shown_ms = tenth, at_ms
        return True


class _Items:
    def __init__(self, started: MapStarted) -> None:
        self._name, self._count = started.step, started.count
        self._settled = self._failed = 0
        self._pace = _Pace(started.at_ms)

    def settle(
        self, event: StepSucceeded | StepFailed | StepCancelled | StepSkipped | StepReused
    ) -> list[str]:
        """Count one that has ended; return a line if one is due."""
        self._settled += 1
        self._failed += isinstance(event, StepFailed)
        pause_ms = _PAUSE_MS if self._count is None else 0
        if not self._pace.is_due(event.at_ms, self._settled, self._count, pause_ms):
            return []
        of = "" if self._count is None else f" of {self._count:,}"
        noun = "item" if (self._count or self._settled) == 1 else "items"
        failed = f", {self._failed:,} failed" if self._failed else ""
        return [f"{escape_controls(self._name)}: {self._settled:,}{of} {noun}{failed}"]


class _RunLines:
    def __init__(self) -> None:
        self.run_id = ""
        self._max_retries: Mapping[str, int] = {}
        self._items: dict[str, _Items] = {}
        """By mapped step."""
        self._started: dict[tuple[str, int | None], float] = {}
        """When each running attempt started, by step and item."""
        self._paces: dict[tuple[str, int | None], _Pace] = {}
        """Those of the progress of running attempts."""

    def lines(self, events: Iterable[Event]) -> Iterator[tuple[float, str]]:
        """Yield the lines of more events, each with its time in ms since the run started."""
        for event in events:
            for line in self._lines_of(event):
                yield event.at_ms, line

    def _begin(self, event: RunStarted | RunResumed) -> None:
        self.run_id, self._max_retries = escape_controls(event.run_id), event.max_retries
        self._items, self._started, self._paces = {}, {}, {}

    def _lines_of(self, event: Event) -> Iterable[str]:
        if isinstance(event, NoteEvent):
            return self._progress(event) if isinstance(event, StepProgressed) else ()
        if isinstance(event, ResultReused):
            return ()  # the use of the result is reported, and says where it comes from
        name, item = event.step or "", event.item
        if isinstance(event, AttemptStarted | AttemptBegan):
            self._started[name, item] = event.at_ms
            self._paces.pop((name, item), None)
        elif isinstance(event, _ENDS):
            self._started.pop((name, item), None)
        elif isinstance(event, MapStarted):
            self._items[name] = _Items(event)
        elif isinstance(event, RunStarted | RunResumed):
            self._begin(event)
        items = None if item is None else self._items.get(name)
        lines = []
        # A run that stops may cancel a thousand items.
        goes_wrong = event.level >= WARNING and not isinstance(event, StepCancelled)
        if items is None or goes_wrong:
            lines.append(describe_event(event, self._max_retries.get(name)))
        if items is not None and isinstance(event, _ENDS):
            lines += items.settle(event)
        return lines

    def _progress(self, event: StepProgressed) -> Iterator[str]:
        key = event.step, event.item
        started_ms = self._started.get(key)
        if started_ms is None:  # it has ended
            return
        pace = self._paces.setdefault(key, _Pace(started_ms))
        if pace.is_due(event.at_ms, event.done, event.total, _PAUSE_MS):
            yield f"{subject(event)}: {progress_text(event, started_ms, event.at_ms)}"


def _time(ms: int) -> str:
    """Return a time of the run's clock: ``0:00:01.234``."""
    seconds, ms = divmod(ms, 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}.{ms:03}"
