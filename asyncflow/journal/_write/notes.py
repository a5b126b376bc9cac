"""The rows of notes: what steps say, which is no part of a run's history.

They have rows as events have, and positions of their own, counted from 1: replaced ones leave gaps.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, get_args

from asyncflow._core.arguments import check_count, check_text, parse_level
from asyncflow._core.text import describe_fully, safe_text
from asyncflow.events import (
    Event,
    NoteEvent,
    StepAttached,
    StepLogged,
    StepProgressed,
    StepStreamed,
)
from asyncflow.journal._codec.events import column_of, event_of, row_of
from asyncflow.journal._database.sql import LARGEST

ProgressKey: TypeAlias = tuple[str, int, int | None]
"""A step, the number of an attempt, and an item."""


_CLASSES = get_args(NoteEvent)
_KINDS: dict[str, Any] = {kind.__name__: kind for kind in _CLASSES}


def last_positions(notes: Sequence[NoteEvent], position: int) -> Iterator[tuple[int, NoteEvent]]:
    """Yield notes with their positions, from one on.

    Each value that was streamed has a position, so a row of several has that of the last.
    """
    position -= 1
    for note in notes:
        position += note.count if isinstance(note, StepStreamed) else 1
        yield position, note


def note_rows(run_id: str, position: int, notes: Sequence[NoteEvent]) -> list[tuple[object, ...]]:
    """Return the rows of notes from a position on: those of events, and the level of a record."""
    return [
        (*row_of(run_id, number, note), _level_of(note))
        for number, note in last_positions(notes, position)
    ]


def _level_of(note: Event) -> int | None:
    """Return by what level a note is selected: other notes than log records always are."""
    return note.level if isinstance(note, StepLogged) else None


def note_of(row: Sequence[Any], *, with_data: bool) -> NoteEvent:
    """Return the note of such a row; a record in its place if it is damaged."""
    try:
        *columns, level = row
        note = event_of(columns, is_brief=not with_data)
        if not isinstance(note, _CLASSES):
            raise ValueError(f"{type(note).__name__} is no note")
        if level != _level_of(note):
            raise ValueError("its level has changed since it was written")
        return note  # type: ignore[no-any-return]  # it is one of them
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
    for number, note in last_positions(left, position):
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
        if self.kinds is None:  # what is streamed may be much more, and has readers of its own
            found.append(("COALESCE(kind, '') <> ?", [StepStreamed.__name__]))
        else:
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
