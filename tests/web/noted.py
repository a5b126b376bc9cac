"""A journal whose runs have the notes that a test gives them, whatever they are."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from asyncflow._core.record import replace
from asyncflow.events import NoteEvent, StepAttached, StepLogged, StepStreamed
from asyncflow.journal import SQLiteJournal
from asyncflow.journal._read.queries import StoredEvent

__all__ = ["NotedJournal"]


class NotedJournal(SQLiteJournal):
    """A journal with notes that no step has made."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.said: defaultdict[str, list[NoteEvent]] = defaultdict(list)
        self.reads = 0

    async def notes(
        self,
        run_id: str,
        *,
        after: int = 0,
        kinds: Sequence[type] | None = None,
        step: str | None = None,
        item: int | None = None,
        attempt: int | None = None,
        level: int | None = None,
        text: str | None = None,
        limit: int | None = None,
        newest: bool = False,
        data: bool = True,
    ) -> list[StoredEvent]:
        self.reads += 1
        await self.record(run_id)

        def fits(note: NoteEvent) -> bool:
            if kinds is None and isinstance(note, StepStreamed):
                return False
            if kinds is not None and not isinstance(note, tuple(kinds)):
                return False
            if any(
                wanted is not None and wanted != found
                for wanted, found in ((step, note.step), (item, note.item), (attempt, note.attempt))
            ):
                return False
            if level is not None and isinstance(note, StepLogged) and note.level < level:
                return False
            return text is None or (
                isinstance(note, StepLogged) and text.lower() in note.message.lower()
            )

        found = [
            StoredEvent(position, note if data else _without_data(note))
            for position, note in enumerate(self.said[run_id], 1)
            if position > after and fits(note)
        ]
        if limit is None:
            return found
        return found[-limit:] if newest else found[:limit]


def _without_data(note: NoteEvent) -> NoteEvent:
    return replace(note, data=b"") if isinstance(note, StepAttached) else note
