"""The commands for the runs of a journal: ``runs``, ``cancel``, ``prune`` and ``forget``."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import time as clock
from dataclasses import asdict
from datetime import UTC, datetime, timedelta

import click
from rich.cells import cell_len, set_cell_size
from rich.text import Text

from asyncflow._cli.options import (
    find_run,
    journal_option,
    json_option,
    must_exist,
    opened,
    run_argument,
)
from asyncflow._cli.output import RUN_FAILED, CommandError, say, say_json, stdout_console, tell
from asyncflow._core.errors import RunAlreadyActiveError, escape_controls
from asyncflow._views.event_text import duration
from asyncflow.journal import RunRecord
from asyncflow.journal._queries import RunFilter
from asyncflow.live._theme import COLOURS, Theme, status_for_run, theme_for

__all__ = ["cancel", "forget", "prune", "runs"]

_STATUSES = ["running", "passed", "failed", "interrupted", "orphaned"]
_AGE = re.compile(r"(?P<number>\d+)(?P<unit>[smhdw])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_MANY, _MOST = 20, 1_000_000_000
_HEADER = ["RUN", "STATUS", "STARTED", "TOOK", "PIPELINE"]
_GAP = "  "
_LEAST = 8
"""How many cells the last column has, however narrow the terminal is."""


def _time_of(text: str | None) -> datetime | None:
    """Return a time that is given as a date, or as how long ago it was."""
    if text is None:
        return None
    age = _AGE.fullmatch(text)
    try:
        if age is None:
            time = datetime.fromisoformat(text)
        else:
            time = datetime.now(UTC) - timedelta(**{_UNITS[age["unit"]]: int(age["number"])})
        time.timestamp()  # which is not to be had of every local time
    except (ValueError, OverflowError, OSError):
        raise click.BadParameter(
            f"{text!r} is no time such as 2h, 3d or 2024-06-01T12:00"
        ) from None
    return time


def _past(time: datetime | None) -> datetime | None:
    """Refuse a time that is yet to come."""
    if time is not None and time.timestamp() > clock.time():
        raise click.BadParameter("nothing can have ended before a time that is yet to come")
    return time


def _sought(text: str | None) -> str | None:
    """Refuse a text that can't be looked for."""
    if text is not None:
        try:
            RunFilter(text=text)
        except ValueError as error:
            raise click.BadParameter(str(error)) from None
    return text


@click.command()
@journal_option
@click.option("--status", type=click.Choice(_STATUSES), help="Only those with this status.")
@click.option("--pipeline", metavar="NAME", help="Only those of the pipeline of this name.")
@click.option(
    "--since",
    metavar="TIME",
    callback=lambda ctx, param, value: _time_of(value),
    help="Only those that began then or later: a date, or an age such as 2h or 3d.",
)
@click.option(
    "--text",
    metavar="TEXT",
    callback=lambda ctx, param, value: _sought(value),
    help="Only those with this in their id or pipeline.",
)
@click.option(
    "--limit",
    type=click.IntRange(0, _MOST),
    help=f"Only so many; 0 for all.  [default: {_MANY}]",
)
@json_option
def runs(
    journal: str,
    status: str | None,
    pipeline: str | None,
    since: datetime | None,
    text: str | None,
    limit: int | None,
    as_json: bool,
) -> None:
    """List the runs of a journal, those that began last first."""
    must_exist(journal)
    many = _MANY if limit is None else limit

    async def found() -> list[RunRecord]:
        async with opened(journal) as kept:
            return await kept.runs(
                None if status == "orphaned" else status,  # type: ignore[arg-type]
                pipeline,
                since,
                many + 1 if many else None,
                text=text,
                orphaned={"orphaned": True, "running": False}.get(status or ""),
            )

    records = asyncio.run(found())
    shown = records[: many or None]
    if as_json:
        say_json(json.dumps([_as_json(record) for record in shown], indent=2))
    elif shown:
        _print(shown)
    else:
        tell("no such runs")
    if len(shown) < len(records) and limit is None:
        tell("there are more of them: --limit 0 shows all")


def _as_json(record: RunRecord) -> dict[str, object]:
    return {**asdict(record), "duration_s": record.duration_s}


def _print(records: list[RunRecord]) -> None:
    console = stdout_console()
    look = theme_for(console.encoding)
    rows = [_HEADER, *(_row(record, look) for record in records)]
    # Ids are to be copied, so only the last column may be cut.
    widths = [max(cell_len(row[column]) for row in rows) for column in range(len(_HEADER) - 1)]
    left = max(console.width - sum(widths) - len(_GAP) * len(widths), _LEAST)
    lines = []
    for row in rows:
        *cells, last = row
        fixed = (set_cell_size(cell, width) for cell, width in zip(cells, widths, strict=True))
        lines.append(Text(_GAP.join([*fixed, _cut(last, left, look.ellipsis)]).rstrip()))
    lines[0].stylize("bold")
    begin = widths[0] + len(_GAP)
    for line, record in zip(lines[1:], records, strict=True):
        line.stylize(COLOURS[status_for_run(_word(record))], begin, begin + widths[1])
    console.print(Text("\n").join(lines), soft_wrap=True)


def _row(record: RunRecord, look: Theme) -> list[str]:
    word = _word(record)
    started = datetime.fromtimestamp(record.started_at)
    return [
        escape_controls(record.run_id),
        f"{look.symbols[status_for_run(word)]} {word}",
        f"{started:%Y-%m-%d %H:%M:%S}",
        "" if record.duration_s is None else duration(record.duration_s * 1000),
        escape_controls(record.pipeline),
    ]


def _word(record: RunRecord) -> str:
    return "ORPHANED" if record.orphaned else record.status.upper()


def _cut(text: str, width: int, ellipsis: str) -> str:
    if cell_len(text) <= width:
        return text
    return set_cell_size(text, width - 1).rstrip() + ellipsis


@click.command(short_help="Ask whoever runs a run to stop it.")
@run_argument
@journal_option
def cancel(run: str, journal: str) -> None:
    """Ask whoever runs a run to stop it, in whatever process that is.

    What is running may clean up, and the run can go on later. RUN is its id, or how that begins, or
    "latest". This does not wait for the end.
    """
    must_exist(journal)

    async def asked() -> tuple[RunRecord, bool]:
        async with opened(journal) as kept:
            record = await find_run(kept, run)
            return record, await kept.cancel(record.run_id)

    record, was_asked = asyncio.run(asked())
    if not was_asked:
        raise CommandError(
            f"nobody runs {record.run_id!r}, so there is nothing to stop", RUN_FAILED
        )
    tell(escape_controls(f"{record.owner} was asked to stop run {record.run_id}"))


@click.command(short_help="Remove runs that ended long ago.")
@click.option(
    "--older-than",
    "time",
    metavar="TIME",
    required=True,
    callback=lambda ctx, param, value: _past(_time_of(value)),
    help="Those that ended before then: an age such as 90d or 12h, or a date.",
)
@journal_option
@json_option
def prune(time: datetime, journal: str, as_json: bool) -> None:
    """Remove the runs of a journal that ended long ago, and never one that has not ended.

    It can't be undone.
    """
    must_exist(journal)

    async def pruned() -> int:
        async with opened(journal) as kept:
            return await kept.prune(timedelta(seconds=clock.time() - time.timestamp()))

    count = asyncio.run(pruned())
    if as_json:
        say_json(json.dumps({"removed": count}, indent=2))
    else:
        before = datetime.fromtimestamp(time.timestamp())
        number = f"{count:,} run{'' if count == 1 else 's'}"
        say(f"removed {number} that ended before {before:%Y-%m-%d %H:%M:%S}")


@click.command(short_help="Remove a run that nobody runs.")
@run_argument
@journal_option
@json_option
def forget(run: str, journal: str, as_json: bool) -> None:
    """Remove a run from its journal, whatever has become of it, unless somebody runs it.

    It can't be undone, so RUN is the whole id. The id may be used again, for a new run.
    """
    must_exist(journal)

    async def forgotten() -> RunRecord:
        async with opened(journal) as kept:
            record = await kept.record(run)
            await kept.forget(run)
            return record

    try:
        record = asyncio.run(forgotten())
    except RunAlreadyActiveError as error:
        why = f"run {run!r} is active in {error.owner}, so it is kept; stop it there with"
        hint = f"`asyncflow cancel {shlex.quote(run)}`, and then forget it"
        raise CommandError(f"{why} {hint}", RUN_FAILED) from error
    if as_json:
        say_json(json.dumps(_as_json(record), indent=2))
    else:
        of = f" of {record.pipeline}" if record.pipeline else ""
        say(escape_controls(f"removed run {run}{of}, which {_had_ended(record)}"))


def _had_ended(record: RunRecord) -> str:
    if record.status == "running":
        return "its process had left before its end"
    return "was interrupted" if record.status == "interrupted" else f"had {record.status}"
