"""The rows of notes: what steps say, which is no part of a run's history.

A row has a checksum of its other columns, as a row of an event. That of an attachment leaves its
data out, so that it can be checked without them; the data have one of their own in the payload.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeAlias, get_args
from zlib import crc32

import msgspec

from asyncflow._core.arguments import check_count, parse_level
from asyncflow._core.error_text import describe_fully
from asyncflow._core.text import safe_text
from asyncflow.events import NoteEvent, StepAttached, StepLogged, StepProgressed
from asyncflow.journal._event_codec import column_of, event_checksum, from_column
from asyncflow.journal._queries import LARGEST, check_text

ProgressKey: TypeAlias = tuple[str, int, int | None]
"""A step, the number of an attempt, and an item."""


class NoteRow(NamedTuple):
    """A note with its run and its position."""

    run_id: str
    position: int
    """Counted from 1, apart from the events of the run. Replaced ones leave gaps."""
    kind: str
    """The name of its class."""
    step: str
    item: int | None
    attempt: int
    at_ms: float
    level: int | None
    """That of a log record."""
    payload: str
    """The fields without a column, as a JSON object."""
    data: bytes | None
    """The data of an attachment."""


_KINDS: dict[str, Any] = {kind.__name__: kind for kind in get_args(NoteEvent)}


def note_rows(run_id: str, position: int, notes: Sequence[NoteEvent]) -> list[tuple[object, ...]]:
    """Return the rows of notes from a position on, each with its checksum."""
    rows: list[tuple[object, ...]] = []
    for number, note in enumerate(notes, position):
        level = data = None
        details: dict[str, Any]
        if isinstance(note, StepLogged):
            details, level = {"logger": note.logger, "message": note.message}, note.level
            if note.traceback:
                details["traceback"] = note.traceback
        elif isinstance(note, StepProgressed):
            details = {"done": note.done, "total": note.total, "unit": note.unit}
        else:
            data = note.data
            details = {"name": note.name, "media_type": note.media_type, "crc32": crc32(data)}
        try:
            payload = msgspec.json.encode(details).decode()
        except (UnicodeEncodeError, TypeError):  # surrogates, or a subclass of str
            payload = json.dumps(details)
        kind, step, item, attempt = (
            type(note).__name__,
            column_of(note.step),
            note.item,
            note.attempt,
        )
        at_ms = note.at_ms
        checksum = _checksum(run_id, number, kind, step, item, attempt, at_ms, level, payload)
        # In the order of `NoteRow`, which takes as long to make as all the rest.
        row = run_id, number, kind, step, item, attempt, at_ms, level, payload, data, checksum
        rows.append(row)
    return rows


def _checksum(
    run_id: str,
    position: int,
    kind: str,
    step: str,
    item: int | None,
    attempt: int,
    at_ms: float,
    level: int | None,
    payload: str,
) -> int:
    return event_checksum(
        run_id, position, kind, step, item, attempt, at_ms, str(level), payload, None
    )


def note_of(row: Sequence[Any], *, with_data: bool) -> NoteEvent:
    """Return the note of a row, given with its checksum; a record in its place if it is damaged."""
    try:
        return _note_of(row, with_data)
    # Only our decoding is in here, and in a damaged row anything can be of any type.
    except Exception as error:
        _, position, _, step, item, attempt, at_ms, *_ = row
        message = f"note {position} is damaged and can't be shown: {describe_fully(error)}"
        return StepLogged(
            step if isinstance(step, str) else "",
            attempt if isinstance(attempt, int) else 0,
            at_ms if isinstance(at_ms, float) and 0 <= at_ms < 1e14 else 0.0,
            40,
            "asyncflow",
            message,
            item if isinstance(item, int) else None,
        )


def _note_of(row: Sequence[Any], with_data: bool) -> NoteEvent:
    *columns, checksum = row
    if _checksum(*columns[:-1]) != checksum:
        raise ValueError("its checksum is wrong, so it has changed since it was written")
    _, _, kind, step, item, attempt, at_ms, level, payload, data = columns
    if item is not None and item < 0:  # for the checksum, -1 is None
        raise ValueError("its item is out of range")
    values = json.loads(payload)
    if kind == StepLogged.__name__:
        values["level"] = level
    elif kind == StepAttached.__name__:
        expected = values.pop("crc32")
        values["data"] = data if with_data else b""
        if with_data and crc32(data) != expected:
            raise ValueError("the checksum of its data is wrong, so they have changed")
    note: NoteEvent = _KINDS[kind](
        step=from_column(step), attempt=attempt, at_ms=at_ms + 0.0, item=item, **values
    )
    return note


def latest_only(
    notes: Sequence[NoteEvent], position: int, known: dict[ProgressKey, int]
) -> tuple[Sequence[NoteEvent], list[int]]:
    """Leave out each progress that a later one replaces.

    ``position`` is that of the first note. ``known`` has the position of the stored progress of
    each attempt, and is updated. Return the notes that are left, and the positions of stored ones
    to delete.
    """
    latest: dict[ProgressKey, StepProgressed] = {}
    for note in notes:
        if isinstance(note, StepProgressed):
            latest[note.step, note.attempt, note.item] = note
    if not latest:
        return notes, []
    left = [
        note
        for note in notes
        if not isinstance(note, StepProgressed)
        or latest[note.step, note.attempt, note.item] is note
    ]
    replaced = [known[key] for key in latest if key in known]
    for number, note in enumerate(left, position):
        if isinstance(note, StepProgressed):
            known[note.step, note.attempt, note.item] = number
    return left, replaced


@dataclass(frozen=True, slots=True)
class NoteFilter:
    """Selects notes. Its fields are parameters of a journal's ``notes()``, which documents them."""

    after: int = 0
    kinds: Collection[type[NoteEvent]] | None = None
    step: str | None = None
    item: int | None = None
    attempt: int | None = None
    level: int | str | None = None
    text: str | None = None
    limit: int | None = None
    newest: bool = False
    data: bool = True
    before: int | None = None
    """Only notes whose position is less."""

    def __post_init__(self) -> None:
        for name, least in (("after", 0), ("item", 0), ("attempt", 1), ("limit", 0)):
            value = getattr(self, name)
            if value is not None or name == "after":
                check_count(name, value, least, at_most=LARGEST)
        for name in ("step", "text"):
            if getattr(self, name) is not None:
                check_text(name, getattr(self, name))
        if self.kinds is not None:
            _check_kinds(self.kinds)
        if self.level is not None:
            level = parse_level("level", self.level)
            check_count("level", level, 0, at_most=LARGEST)
            object.__setattr__(self, "level", level)

    def conditions(self) -> tuple[str, list[Any]]:
        """Return the conditions of SQL but for ``text``, and their values."""
        found: list[tuple[str, list[Any]]] = [("position > ?", [self.after])]
        if self.before is not None:
            found.append(("position < ?", [self.before]))
        if self.kinds is not None:
            names = sorted(kind.__name__ for kind in self.kinds)
            found.append((f"kind IN ({', '.join('?' * len(names)) or 'NULL'})", names))
        if self.step is not None:
            found.append(("step = ?", [column_of(self.step)]))
        if self.item is not None:
            found.append(("item = ?", [self.item]))
        if self.attempt is not None:
            found.append(("attempt = ?", [self.attempt]))
        if self.level is not None:
            found.append(("(level IS NULL OR level >= ?)", [self.level]))
        return " AND ".join(sql for sql, _ in found), [each for _, own in found for each in own]

    def selects(self, note: NoteEvent) -> bool:
        """Whether a note has the text."""
        if not self.text:
            return True
        texts = (
            (note.message, note.logger, note.traceback)
            if isinstance(note, StepLogged)
            else (note.name,)
            if isinstance(note, StepAttached)
            else ()
        )
        return any(self.text.casefold() in text.casefold() for text in texts)

    def beyond(self, position: int) -> NoteFilter:
        """Return the filter for the notes that follow one."""
        if self.newest:
            return replace(self, before=position)
        return replace(self, after=position)


def _check_kinds(kinds: Any) -> None:
    known = [*_KINDS.values()]
    if not isinstance(kinds, Iterable) or not all(kind in known for kind in kinds):
        shown = safe_text(repr, kinds)
        raise TypeError(f"kinds must be some of {', '.join(_KINDS)}, not {shown}")
