"""The command that shows what the steps of a run said: ``asyncflow logs``."""

from __future__ import annotations

import asyncio
import json
import logging
import mimetypes
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeAlias

import click
from rich.text import Text

from asyncflow._cli.options import (
    LATEST,
    AnyJournal,
    complete_run,
    find_run,
    journal_option,
    json_option,
    open_journal,
    require_journal,
)
from asyncflow._cli.output import (
    RUN_FAILED,
    CommandError,
    hanging,
    some_of,
    stdout_console,
    write_lines,
    write_note,
)
from asyncflow._core.arguments import LEVELS
from asyncflow._core.history.results import RunStatus
from asyncflow._core.text import did_you_mean, escape_controls, plural
from asyncflow._views.event_text import subject
from asyncflow._views.run_view import RunView
from asyncflow._views.workflow_commands import without_commands
from asyncflow.events import NoteEvent, RunResumed, RunStarted, StepAttached, StepLogged
from asyncflow.journal import RunRecord, StoredEvent

_Note: TypeAlias = StepLogged | StepAttached
_COLOURS = {"DEBUG": "dim", "WARNING": "yellow", "ERROR": "bold red", "CRITICAL": "bold red"}
_ATTACHED = "ATTACHED"
"""Stands where the level of a log record does."""
_WIDEST_LABEL = 24
_INDENT = "    "
_LONGEST_NAME = 80
_PAGE = 500
"""How many notes to read at a time; ten times less if their data are read."""
_SHORTEST_S, _LONGEST_S = 0.3, 1.0
"""How long to wait between two reads of a run in which something, or nothing, was said."""


@dataclass(frozen=True, slots=True)
class _Wanted:
    step: str | None
    item: int | None
    attempt: int | None
    level: int | None
    as_json: bool
    directory: Path | None

    @property
    def filter(self) -> dict[str, Any]:
        """The parameters of a journal's ``notes()``."""
        kinds: tuple[type[NoteEvent], ...] = (StepLogged, StepAttached)
        if self.level is not None and self.directory is None:
            kinds = (StepLogged,)
        return {
            "kinds": kinds,
            "step": self.step,
            "item": self.item,
            "attempt": self.attempt,
            "level": self.level,
            "data": self.directory is not None,
            "limit": _PAGE if self.directory is None else _PAGE // 10,
        }


@click.command()
@click.argument("run", metavar="[RUN]", default=LATEST, shell_complete=complete_run)
@click.argument("step", metavar="[STEP]", required=False)
@journal_option
@click.option("--attempt", type=click.IntRange(1), metavar="N", help="Only attempts number N.")
@click.option("--follow", "-f", is_flag=True, help="Show what comes until the run ends.")
@click.option(
    "--level",
    metavar="LEVEL",
    type=click.Choice([*LEVELS], case_sensitive=False),
    help=f"Only records from this level on: {', '.join(LEVELS)}.",
)
@click.option(
    "--attachments",
    metavar="DIR",
    type=click.Path(file_okay=False, writable=True, path_type=Path),
    help="Also save what steps attached, as files in this directory.",
)
@json_option
def logs(
    run: str,
    step: str | None,
    journal: str,
    attempt: int | None,
    follow: bool,
    level: str | None,
    attachments: Path | None,
    as_json: bool,
) -> None:
    """Show what the steps of a run logged, and what they attached.

    RUN is its id, the start of its id, or "latest", which is the default. STEP is a step, or an
    item of a mapped step: fetch, 'fetch[3]'. `asyncflow run` keeps log records from INFO on, unless
    --logs says otherwise.
    """
    require_journal(journal)
    number = None if level is None else LEVELS[level]
    asyncio.run(_show(journal, run, step, attempt, number, follow, attachments, as_json))


async def _show(
    address: str,
    run: str,
    step: str | None,
    attempt: int | None,
    level: int | None,
    follow: bool,
    directory: Path | None,
    as_json: bool,
) -> None:
    async with open_journal(address) as journal:
        record = await find_run(journal, run)
        events = [each.event for each in await journal.events(record.run_id)]
        starts = [event for event in events if isinstance(event, RunStarted | RunResumed)]
        names = {name for event in starts for name in event.dependencies}
        wanted = _Wanted(*step_and_item(step, names), attempt, level, as_json, directory)
        writer = _NoteWriter(RunView(events), wanted)
        shown = await _show_notes(journal, record, wanted, writer, follow=follow)
        if not shown and not await journal.notes(record.run_id, kinds=[StepLogged], limit=1):
            write_note(_no_logs(record))
        elif not shown:
            write_note(
                "nothing matches; without STEP, --attempt and --level, the command shows all"
            )
        if writer.saved:
            write_note(f"saved {plural(writer.saved, 'attachment')} in {directory}")


async def _show_notes(
    journal: AnyJournal, record: RunRecord, wanted: _Wanted, writer: _NoteWriter, *, follow: bool
) -> int:
    """Show the notes of a run; return how many there were."""
    shown = after = 0
    while True:
        is_over = record.status is not RunStatus.RUNNING
        before = shown
        while notes := await journal.notes(record.run_id, after=after, **wanted.filter):
            for each in notes:
                writer.write(each)
            after, shown = notes[-1].position, shown + len(notes)
        if is_over or not follow:
            return shown
        await asyncio.sleep(_SHORTEST_S if shown > before else _LONGEST_S)
        record = await journal.record(record.run_id)


def step_and_item(text: str | None, names: Collection[str]) -> tuple[str | None, int | None]:
    """Return the step, and the item, that the user names."""
    if text is None or text in names:
        return text, None
    found = re.fullmatch(r"(?s)(.*)\[(\d+)\]", text)
    if found is not None and found[1] in names:
        return found[1], int(found[2])
    known = sorted(names)
    nearest = did_you_mean(text if found is None else found[1], known)
    nearest = nearest or f"; it has {some_of(known)}"
    raise click.UsageError(escape_controls(f"the run has no step {text!r}{nearest}"))


def _no_logs(record: RunRecord) -> str:
    run_id = escape_controls(record.run_id)
    return (
        f"run {run_id} has no logs: its steps logged nothing, or only below "
        "the level that it kept; `asyncflow run` keeps INFO unless --logs says otherwise, and "
        "what they print only with --prints; a program asks its journal: "
        'SQLiteJournal(..., logs="INFO", prints=True)'
    )


class _NoteWriter:
    def __init__(self, view: RunView, wanted: _Wanted) -> None:
        self._view = view
        self._wanted = wanted
        self._console = stdout_console()
        labels = [
            len(_label(escape_controls(each.name), len(each.attempts)))
            for step in view.steps.values()
            if wanted.step in (None, step.name)
            for each in (step, *(step.items or {}).values())
        ]
        self._width = min(max(labels, default=0), _WIDEST_LABEL)
        self._date = ""
        """That of the note before, on a terminal."""
        self.saved = 0

    def write(self, stored: StoredEvent) -> None:
        """Write a note, and save what is attached if the user wants that."""
        note: Any = stored.event
        directory = self._wanted.directory
        if directory is not None and isinstance(note, StepAttached):
            try:
                directory.mkdir(parents=True, exist_ok=True)
                path = directory / _file_name(stored.position, note)
                path.unlink(missing_ok=True)
                with path.open("xb") as file:  # never through a link that lies there
                    file.write(note.data)
            except OSError as error:
                problem = f"attachments can't be saved in {directory}: {error}"
                raise CommandError(problem, RUN_FAILED) from error
            self.saved += 1
        moment = datetime.fromtimestamp(self._view.wall_time_of(note.at_ms)).astimezone()
        if self._wanted.as_json:
            click.echo(json.dumps(_as_json(stored.position, note, moment)))
        elif self._console.is_terminal:
            self._write_to_terminal(note, moment)
        else:  # many times faster
            click.echo(without_commands("".join(text for text, _ in self._parts(note, moment))))

    def _write_to_terminal(self, note: _Note, moment: datetime) -> None:
        """Write a note in lines that fit, with the date above where it changes."""
        date = f"{moment:%Y-%m-%d} "
        if date != self._date:
            self._console.print(Text(date.rstrip(), "dim"))
            self._date = date
        text = Text.assemble(*self._parts(note, moment))[len(date) :]
        first, *others = text.split("\n", allow_blank=True)
        begins_at = len("00:00:00.000 ") + len(f"{_ATTACHED} ") + self._width + 2
        lines = hanging(first, begins_at, self._console)
        for line in others:
            indent = len(line.plain) - len(line.plain.lstrip())
            lines += hanging(line, indent + 2, self._console)
        write_lines(lines, self._console)

    def _parts(self, note: _Note, moment: datetime) -> Iterator[tuple[str, str]]:
        """Yield the texts of a note, each with its style."""
        label = _label(subject(note), note.attempt)
        self._width = max(self._width, min(len(label), _WIDEST_LABEL))
        if isinstance(note, StepAttached):
            level, lines = _ATTACHED, [f"{note.name} ({note.media_type})"]
        else:
            level = _level(note)
            lines = [*note.message.split("\n"), *note.traceback.splitlines()]
        first, *rest = map(escape_controls, lines)
        yield f"{moment:%Y-%m-%d %H:%M:%S}.{moment.microsecond // 1000:03} ", "dim"
        yield f"{level:<8} ", _COLOURS.get(level, "")
        yield f"{label:<{self._width}}  ", "cyan"
        yield first, ""
        for line in rest:
            yield f"\n{_INDENT}{line}", ""


def _label(name: str, attempt: int) -> str:
    return f"{name}#{attempt}" if attempt > 1 else name


def _level(note: StepLogged) -> str:
    name = logging.getLevelName(note.level)
    return name if name in LEVELS else str(note.level)


def _as_json(position: int, note: _Note, moment: datetime) -> dict[str, Any]:
    document = {
        "position": position,
        "event": type(note).__name__,
        "time": moment.isoformat(timespec="milliseconds"),
        **{name: getattr(note, name) for name in ("at_ms", "step", "item", "attempt")},
    }
    if isinstance(note, StepAttached):
        return document | {"name": note.name, "media_type": note.media_type}
    return document | {
        "level": _level(note),
        **{name: getattr(note, name) for name in ("logger", "message", "traceback")},
    }


def _file_name(position: int, note: StepAttached) -> str:
    """Return a name that no other attachment of the run has, and that every file system takes."""
    item = "" if note.item is None else f"-{note.item}"
    parts = (note.step, note.name)
    step, name = (re.sub(r"[^A-Za-z0-9_.-]+", "_", part)[-_LONGEST_NAME:] for part in parts)
    has_suffix = re.fullmatch(r".*\.[A-Za-z]\w*", name)
    suffix = None if has_suffix else mimetypes.guess_extension(note.media_type)
    return f"{position}-{step}{item}-{name}{suffix or ''}"
