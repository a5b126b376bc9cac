"""What a page shows of the notes of a run: within which limits, and what it leaves out.

Rules:

1. A log loses its first lines: the more steps, the more of them.
2. Large pictures are left out. A page that a server sends has links in their place.
3. What is attached is shown, never run: a picture as an image, everything else as text.
"""

from __future__ import annotations

import base64
import csv
import json
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple

from asyncflow._core.history.results import StepStatus
from asyncflow._core.history.step_view import AttemptView, StepView
from asyncflow._core.history.value_preview import Preview, printable, shortened
from asyncflow._core.text import left_out
from asyncflow._views.notes import (
    MOST_EARLIER,
    MOST_STREAMED,
    AttachedData,
    LogLine,
    RunNotes,
    StreamedText,
    end_of,
    is_picture,
)
from asyncflow._views.progress import (
    ProgressText,
    is_under_way,
    percentage,
    progress_of,
    progress_text,
)
from asyncflow._views.run_view import RunView
from asyncflow.events import StepCalled, StepLogged

_ALL_LINES, _LEAST_LINES, _FAILED_LINES, _LIVE_LINES = 2_400, 5, 50, 20
"""How many log lines a file has of all steps together, of each one at least, and of one that
failed; and how many a page has of a step if it loads others."""
# In bytes of the page.
_PICTURE, _TEXT, _CELL = 500_000, 4_000, 200

_ALL_STREAMED, _LEAST_STREAMED = 20 * MOST_STREAMED, 1_000
"""How many characters a page has of what all steps stream together, and of each one at least."""
_ITEMS_STREAMED = 5
"""Of how many items of a step a page has what they stream, those that did so last."""
_MOST_CALLS = 100
"""How many calls of a step are listed, the last ones."""

_MOST_ROWS, _MOST_COLUMNS = 50, 20

_MOST_ITEMS = 20
"""Of how many running items of a step the progress is shown."""
_MOST_ATTACHMENTS = 100
"""How many attachments of a step are listed."""


class StepLog(NamedTuple):
    lines: Sequence[StepLogged]
    total: int
    latest: int
    """The place of its last line in the journal; 0 if it has none."""


class FailedLog(NamedTuple):
    """The last lines of the attempt that failed."""

    lines: Sequence[StepLogged]
    item: int | None
    """The item that failed, of a mapped step."""


class EarlierNotes(NamedTuple):
    """What an attempt of a step, or of an item of it, said before the latest one."""

    attempt: AttemptView
    item: int | None
    streamed: StreamedText | None
    lines: Sequence[StepLogged]
    """Its last lines, without those that the log of the step has."""


class ShownProgress(NamedTuple):
    text: ProgressText
    share: float | None
    """From 0 to 1; ``None`` if the total is unknown."""
    is_stopped: bool
    """Whether its attempt has ended before it was done."""

    @property
    def line(self) -> str:
        """The progress in a line of a table: ``1,204 of 5,000 rows (24 %)``."""
        return str(ProgressText(self.text.percentage, self.text.counted, "", ""))


class Attachment(NamedTuple):
    name: str
    item: int | None
    attempt: int
    size: str
    url: str
    """Where a server has all of it; empty in a page of its own."""
    picture: str = ""
    text: Preview | None = None
    table: Sequence[Sequence[str]] = ()
    """The first rows of a table, the head first."""
    left_out: str = ""
    """What is not shown, or why nothing is."""


class NotesModel:
    """The notes of a run as a page shows them.

    ``steps`` are those that have details. ``is_orphaned`` says whether the run has not ended and
    its process is gone. ``attachments_url`` is where a server has the attachments, by position;
    empty if there is none.
    """

    def __init__(
        self,
        view: RunView,
        notes: RunNotes,
        steps: Sequence[StepView],
        now_ms: float,
        *,
        is_orphaned: bool = False,
        attachments_url: str = "",
    ) -> None:
        self._view = view
        self._notes = notes
        self._now_ms = now_ms
        self._is_orphaned = is_orphaned
        self._url = attachments_url
        self._lines = max(_ALL_LINES // max(len(steps), 1), _LEAST_LINES)
        self._streamed = max(_ALL_STREAMED // max(len(steps), 1), _LEAST_STREAMED)

    def __bool__(self) -> bool:
        return bool(self._notes)

    # Logs.

    def log(self, step: StepView) -> StepLog | None:
        """Return the log of a step; ``None`` if it has logged nothing."""
        lines = self._notes.lines(step.name)
        if not lines:
            return None
        most = max(self._lines, _FAILED_LINES) if _failed(step) else self._lines
        shown = lines[-(_LIVE_LINES if self._url else most) :]
        return StepLog(
            [line.note for line in shown], self._notes.count(step.name), lines[-1].position
        )

    def failed_log(self, step: StepView) -> FailedLog | None:
        """Return the last lines of the attempt with which a step failed, if it logged any."""
        failed = [(number, item) for number, item in (step.items or {}).items() if _failed(item)]
        item, run = min(failed, key=lambda each: each[1].ended_ms or 0.0, default=(None, step))
        if run.latest is None:
            return None
        lines = self._tail(step.name, run.latest, item)
        return FailedLog([each.note for each in lines], item) if lines else None

    def _tail(self, name: str, attempt: AttemptView, item: int | None) -> list[LogLine]:
        return self._notes.tail(name, attempt.number, item, since_ms=attempt.started_ms)

    # Progress.

    def progress(self, step: StepView, item: int | None = None) -> ShownProgress | None:
        """Return how far a step is, or came; ``None`` if that is not known."""
        name = step.name if item is None else step.name.removesuffix(f"[{item}]")
        latest = progress_of(step, self._notes.progress(name, item))
        if latest is None:
            return None
        attempts = [each for each in step.attempts if each.number == latest.attempt]
        started_ms = attempts[-1].started_ms if attempts else latest.at_ms
        text = progress_text(latest, started_ms, self._now_ms)
        is_running = is_under_way(step) and not self._is_orphaned
        if not is_running:
            text = text._replace(left="")
        percent = percentage(latest)
        has_succeeded = step.status is StepStatus.SUCCESS
        share = None if percent is None or has_succeeded else percent / 100
        return ShownProgress(text, share, not (is_running or has_succeeded))

    def items_progress(self, step: StepView) -> list[tuple[int, ShownProgress]]:
        """Return the progress of those items of a step that are running, by number."""
        running = ((at, self.progress(item, at)) for at, item in self._running(step))
        return list(islice(((at, shown) for at, shown in running if shown), _MOST_ITEMS))

    def items_progress_left_out(self, step: StepView) -> str:
        """Say of how many other items that are running the progress is known; empty for none."""
        known = [at for at, _ in self._running(step) if self._notes.progress(step.name, at)]
        more, why = len(known) - _MOST_ITEMS, f"a page has that of {_MOST_ITEMS} running items"
        return left_out(more, "progress report", why) if more > 0 else ""

    def _running(self, step: StepView) -> list[tuple[int, StepView]]:
        items = sorted((step.items or {}).items())
        return [(at, item) for at, item in items if item.status is StepStatus.RUNNING]

    # What they stream, and their calls by name.

    def streamed(self, step: StepView) -> list[StreamedText]:
        """Return the end of what a step streams, or of what some of its items do."""
        found = self._notes.streamed(step.name)[-_ITEMS_STREAMED:]
        most = min(self._streamed // max(len(found), 1), MOST_STREAMED)
        return [_end_of(each, most) for each in found]

    def streamed_left_out(self, step: StepView) -> str:
        """Say how many other items of a step have streamed something too; empty for none."""
        more = self._notes.streamed_count(step.name) - _ITEMS_STREAMED
        why = f"a page has those of the {_ITEMS_STREAMED} that streamed last"
        return left_out(more, "stream", why) if more > 0 else ""

    def earlier(self, step: StepView) -> list[EarlierNotes]:
        """Return what is shown nowhere else of what attempts before the latest one have said."""
        before, log = self._notes.streamed_before(step.name), self.log(step)
        if not before and (log is None or len(log.lines) == log.total):
            return []
        streamed = {(each.item, each.segment, each.attempt): each for each in before}
        shown = {id(line) for line in (() if log is None else log.lines)}
        found = []
        for item, each in _attempts_before(step):
            text = streamed.get((item, each.segment, each.number))
            lines = [
                line.note
                for line in self._tail(step.name, each, item)
                if id(line.note) not in shown and line.note.at_ms <= (each.ended_ms or 0.0)
            ]
            if text is not None or lines:
                found.append(EarlierNotes(each, item, text, lines))
        found.sort(key=lambda each: (each.attempt.segment, each.attempt.started_ms))
        found = found[-MOST_EARLIER:]
        most = self._streamed // max(len(found), 1)
        return [
            each._replace(streamed=each.streamed and _end_of(each.streamed, most)) for each in found
        ]

    def calls(self, step: StepView) -> Sequence[StepCalled]:
        """Return the last calls by name of a step."""
        return self._notes.calls(step.name)[-_MOST_CALLS:]

    def call_count(self, step: StepView) -> int:
        return self._notes.call_count(step.name)

    # Attachments.

    def attachments(self, step: StepView) -> list[Attachment]:
        return [self._shown(each) for each in self._notes.attached(step.name)[:_MOST_ATTACHMENTS]]

    def attachments_left_out(self, step: StepView) -> str:
        """Say how many attachments of a step are not listed; empty for none."""
        more = len(self._notes.attached(step.name)) - _MOST_ATTACHMENTS
        why = f"a page lists {_MOST_ATTACHMENTS} of a step"
        return left_out(more, "attachment", why) if more > 0 else ""

    def _shown(self, each: AttachedData) -> Attachment:
        note = each.note
        url = f"{self._url}/{each.position}" if self._url else ""
        size = _size_text(each.size)
        found = Attachment(printable(note.name), note.item, note.attempt, size, url)
        if is_picture(note.media_type):
            if url:
                return found._replace(picture=url)
            if each.size <= _PICTURE:
                data = base64.b64encode(note.data).decode()
                return found._replace(picture=f"data:{note.media_type};base64,{data}")
            why = f"it has more than {_size_text(_PICTURE)}; the journal has it"
            return found._replace(left_out=left_out(1, "picture", why))
        text = note.data.decode("utf-8", "replace")
        if note.media_type == "text/csv":
            rows = [*csv.reader(text.splitlines())]
            table = [
                [shortened(printable(cell), _CELL) for cell in row[:_MOST_COLUMNS]]
                for row in rows[: _MOST_ROWS + 1]
            ]
            return found._replace(table=table, left_out=_of_table(rows, is_cut=each.is_cut))
        if note.media_type == "application/json" and not each.is_cut:
            text = _indented(text)
        shown = shortened(printable(text), _TEXT)
        is_cut = each.is_cut or len(shown) < len(printable(text))
        return found._replace(text=Preview(shown.removesuffix("…") if is_cut else shown, is_cut))


def _attempts_before(step: StepView) -> Iterator[tuple[int | None, AttemptView]]:
    """Yield the attempts of a step and of its items but for their latest ones, with the item."""
    now = step.items or {}
    for number, run in [(None, step), *now.items(), *step.former_items.items()]:
        if not run.is_brief:  # or it has one attempt
            has_latest = number is None or now.get(number) is run
            for each in run.attempts[:-1] if has_latest else run.attempts:
                yield number, each


def _failed(step: StepView) -> bool:
    return step.status is StepStatus.FAILED


def _end_of(streamed: StreamedText, most: int) -> StreamedText:
    return end_of(streamed._replace(text=printable(streamed.text)), most)


def _of_table(rows: Sequence[Sequence[str]], *, is_cut: bool) -> str:
    """Say what of a table is not shown; empty if all of it is."""
    missing, why = [], f"a page has {_MOST_ROWS} rows and {_MOST_COLUMNS} columns of a table"
    more_rows, more_columns = (
        len(rows) - 1 - _MOST_ROWS,
        max(map(len, rows), default=0) - _MOST_COLUMNS,
    )
    if is_cut:  # the rest was not even read
        missing.append(f"the other rows were left out: {why}")
    elif more_rows > 0:
        missing.append(left_out(more_rows, "row", why))
    if more_columns > 0:
        missing.append(left_out(more_columns, "column", why))
    return "; ".join(missing)


def _indented(text: str) -> str:
    try:
        return json.dumps(json.loads(text), indent=2, ensure_ascii=False)
    except (ValueError, RecursionError):
        return text


def _size_text(size: int) -> str:
    if size < 1_000:
        return f"{size} bytes"
    return f"{size / 1_000:.3g} kB" if size < 999_500 else f"{size / 1_000_000:.3g} MB"
