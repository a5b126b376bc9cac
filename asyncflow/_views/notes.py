"""What the steps of a run have said so far: log lines, progress, attachments, named calls, streams.

Rules:

1. It keeps only what a display can show: the last lines of each step and of each attempt, the
   latest progress of each step and item, the last calls of each step, the end of what each step
   streams and of what its last attempts before streamed, and of a long text its beginning. It
   counts the rest.
2. It changes no state of the run, and needs none: who said what is in each note.
"""

from __future__ import annotations

import json
import logging
import re
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, TypeAlias

from asyncflow._core.record import replace
from asyncflow.events import (
    Event,
    NoteEvent,
    StepAttached,
    StepCalled,
    StepLogged,
    StepProgressed,
    StepStreamed,
)

NOTES = (StepLogged, StepProgressed, StepAttached, StepCalled, StepStreamed)
"""The classes of notes."""
MOST_LINES = 200
"""How many lines, and how many calls, of a step are kept, the last ones."""
TAIL = 10
"""How many lines of each attempt are kept beside them, also the last ones."""
MOST_STREAMED = 20_000
"""How many characters of what a step or an item streams are kept, the last ones."""
MOST_EARLIER = 20
"""Of how many earlier attempts of a step, and of its items, that is kept, the last ones."""
_EARLIER_STREAMED = 5_000
"""How many characters of each of these."""
_MOST_STREAMS = 200
"""Of how many items of a step that is kept, those that streamed last."""
_MOST_TEXT = 65_536
"""How many bytes are kept of an attachment that is no picture."""
_PICTURES = ("image/png", "image/svg+xml")
_STYLES = re.compile(r"\x1b\[[0-9;]*m")
"""What a logger writes to colour a terminal."""

_Attempt: TypeAlias = tuple[str, int | None, int]


class LogLine(NamedTuple):
    position: int
    """The place of its note in the journal; 0 if it has none."""
    note: StepLogged


class AttachedData(NamedTuple):
    """An attachment of a step or an item."""

    position: int
    """The place of its note in the journal; 0 if it has none."""
    note: StepAttached
    """Its data may be missing or cut: see `RunNotes`."""
    size: int

    @property
    def is_cut(self) -> bool:
        return len(self.note.data) < self.size


class StreamedText(NamedTuple):
    """The end of what an attempt of a step or an item has streamed."""

    segment: int
    attempt: int
    item: int | None
    text: str
    """Texts follow each other, and any other value has a line of its own, as JSON."""
    is_cut: bool
    """Whether there was more before it."""


class RunNotes:
    """The notes of a run.

    ``with_pictures`` says whether to keep the data of pictures, which are large.
    """

    def __init__(self, notes: Iterable[NoteEvent] = (), *, with_pictures: bool = True) -> None:
        self._with_pictures = with_pictures
        self._lines: defaultdict[str, deque[LogLine]] = defaultdict(
            lambda: deque(maxlen=MOST_LINES)
        )
        self._tails: defaultdict[_Attempt, deque[LogLine]] = defaultdict(lambda: deque(maxlen=TAIL))
        self._counts: Counter[str] = Counter()
        self._progress: dict[str, dict[int | None, StepProgressed]] = {}
        self._attached: dict[str, list[AttachedData]] = {}
        self._calls: defaultdict[str, deque[StepCalled]] = defaultdict(
            lambda: deque(maxlen=MOST_LINES)
        )
        self._call_counts: Counter[str] = Counter()
        self._streamed: dict[str, dict[int | None, StreamedText]] = {}
        self._dropped: dict[tuple[str, int | None], StreamedText] = {}
        """What is left, without its text, of those items that streamed longer ago."""
        self._earlier: defaultdict[str, deque[StreamedText]] = defaultdict(
            lambda: deque(maxlen=MOST_EARLIER)
        )
        for note in notes:
            self.apply(note)

    def __bool__(self) -> bool:
        return bool(
            self._counts or self._progress or self._attached or self._calls or self._streamed
        )

    def apply(self, note: NoteEvent, position: int = 0) -> None:
        """Add one more note.

        ``position`` is its place in the journal, if it has one.
        """
        if isinstance(note, StepLogged):
            line = LogLine(position, note)
            self._counts[note.step] += 1
            self._lines[note.step].append(line)
            self._tails[note.step, note.item, note.attempt].append(line)
        elif isinstance(note, StepProgressed):
            self._progress.setdefault(note.step, {})[note.item] = note
        elif isinstance(note, StepCalled):
            self._calls[note.step].append(note)
            self._call_counts[note.step] += 1
        elif isinstance(note, StepStreamed):
            self._stream(note, is_all=True)
        else:
            attached = self._attached.setdefault(note.step, [])
            attached.append(AttachedData(position, self._kept(note), len(note.data)))

    def apply_streamed(self, notes: Iterable[Event], *, is_all: bool) -> None:
        """Add what was streamed. ``is_all`` says whether nothing is missing before it."""
        if not is_all:
            for each in (self._streamed, self._dropped, self._earlier):
                each.clear()
        for note in notes:
            if isinstance(note, StepStreamed):  # a damaged one is a log record
                self._stream(note, is_all=is_all)

    def _stream(self, note: StepStreamed, *, is_all: bool) -> None:
        streams = self._streamed.setdefault(note.step, {})
        known = streams.pop(note.item, None)  # the latest one is at the end
        known = known or self._dropped.pop((note.step, note.item), None)
        if known is None or (known.segment, known.attempt) != (note.segment, note.attempt):
            if known is not None and known.text:
                self._earlier[note.step].append(end_of(known, _EARLIER_STREAMED))
            known = StreamedText(note.segment, note.attempt, note.item, "", not is_all)
        text = known.text + _text_of(json.loads(note.data), known.text)
        is_cut = known.is_cut or len(text) > MOST_STREAMED
        streams[note.item] = known._replace(text=text[-MOST_STREAMED:], is_cut=is_cut)
        if len(streams) > _MOST_STREAMS:
            oldest = next(iter(streams))
            dropped = streams.pop(oldest)._replace(text="", is_cut=True)
            self._dropped[note.step, oldest] = dropped

    def _kept(self, note: StepAttached) -> StepAttached:
        if is_picture(note.media_type):
            most = len(note.data) if self._with_pictures else 0
        else:
            most = _MOST_TEXT
        if len(note.data) <= most:
            return note
        return replace(note, data=note.data[:most])

    def count(self, step: str) -> int:
        """Return how many log lines a step has, those of its items included."""
        return self._counts[step]

    def lines(self, step: str) -> Sequence[LogLine]:
        """Return the last `MOST_LINES` log lines of a step, in order."""
        return tuple(self._lines.get(step, ()))

    def tail(
        self, step: str, attempt: int, item: int | None = None, *, since_ms: float = 0.0
    ) -> list[LogLine]:
        """Return the last `TAIL` log lines of an attempt, in order.

        ``since_ms`` is when it started: a resumed run may have had an attempt of that number
        before.
        """
        lines = self._tails.get((step, item, attempt), ())
        return [line for line in lines if line.note.at_ms >= since_ms]

    def progress(self, step: str, item: int | None = None) -> StepProgressed | None:
        """Return the latest progress of a step, or of an item of it; ``None`` if it has none."""
        return self._progress.get(step, {}).get(item)

    def calls(self, step: str) -> Sequence[StepCalled]:
        """Return the last `MOST_LINES` calls by name of a step and of its items, in order."""
        return tuple(self._calls.get(step, ()))

    def call_count(self, step: str) -> int:
        """Return how many calls by name a step has made, those of its items included."""
        return self._call_counts[step]

    def streamed(self, step: str) -> Sequence[StreamedText]:
        """Return what a step, or each of its items that did so last, has streamed."""
        return tuple(self._streamed.get(step, {}).values())

    def streamed_count(self, step: str) -> int:
        """Return how many streams that are: one, or one of each of its items that streams."""
        older = sum(name == step for name, _ in self._dropped)
        return len(self._streamed.get(step, ())) + older

    def streamed_before(self, step: str) -> Sequence[StreamedText]:
        """Return the same of earlier attempts, in the order in which later ones began to stream."""
        return tuple(self._earlier.get(step, ()))

    def attached(self, step: str) -> Sequence[AttachedData]:
        """Return the attachments of a step and of its items, in order."""
        return self._attached.get(step, ())


def end_of(streamed: StreamedText, most: int) -> StreamedText:
    """Return at most so many characters of it, the last ones."""
    is_cut = streamed.is_cut or len(streamed.text) > most
    return streamed._replace(text=streamed.text[-most:], is_cut=is_cut)


def _text_of(values: Sequence[Any], before: str) -> str:
    """Return streamed values as a text that follows another one."""
    parts: list[str] = []
    is_at_start = before == "" or before.endswith("\n")
    for value in values:
        if not isinstance(value, str):
            start = "" if is_at_start else "\n"
            value = f"{start}{json.dumps(value, ensure_ascii=False)}\n"
        if value:
            parts.append(value)
            is_at_start = value.endswith("\n")
    return "".join(parts)


def is_picture(media_type: str) -> bool:
    """Return whether an attachment is a picture that a browser shows."""
    return media_type in _PICTURES


def level_name(level: int) -> str:
    """Return the name of a level, or of the next one below: ``WARNING`` for 30 and for 35."""
    known = (logging.CRITICAL, logging.ERROR, logging.WARNING, logging.INFO)
    return logging.getLevelName(next((each for each in known if level >= each), logging.DEBUG))


def log_text(message: str) -> str:
    """Return a message without the codes that colour it in a terminal."""
    return _STYLES.sub("", message)
