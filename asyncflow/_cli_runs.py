"""The commands for the runs of a journal: ``asyncflow runs`` and ``asyncflow cancel``."""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import asdict
from datetime import UTC, datetime, timedelta

import click
from rich.table import Table
from rich.text import Text

from asyncflow._cli_errors import RUN_FAILED, CommandError
from asyncflow._cli_journal import find_run, must_exist, opened
from asyncflow._cli_options import journal_option, json_option, run_argument
from asyncflow._cli_output import say_json, stdout_console, tell
from asyncflow._events_told import duration
from asyncflow._look import COLOURS, look_for, sign_of_run
from asyncflow._text import in_one_line
from asyncflow.journal import RunRecord

__all__ = ["cancel", "runs"]

_STATUSES = ["running", "passed", "failed", "interrupted", "orphaned"]
_AGE = re.compile(r"(?P<number>\d+)(?P<unit>[smhdw])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_MANY = 20


def _time_of(text: str | None) -> datetime | None:
    """Return a time that is given as a date, or as how long ago it was."""
    if text is None:
        return None
    age = _AGE.fullmatch(text)
    try:
        if age is None:
            return datetime.fromisoformat(text)
        return datetime.now(UTC) - timedelta(**{_UNITS[age["unit"]]: int(age["number"])})
    except (ValueError, OverflowError):
        raise click.BadParameter(
            f"{text!r} is no time such as 2h, 3d or 2024-06-01T12:00"
        ) from None


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
@click.option("--text", metavar="TEXT", help="Only those with this in their id or pipeline.")
@click.option(
    "--limit",
    type=click.IntRange(min=0),
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
    with console.capture() as captured:
        console.print(_table(records, console.encoding))
    # The last column, too, is filled up with spaces, which a pipe has no use for.
    click.echo("\n".join(line.rstrip() for line in captured.get().splitlines()))


def _table(records: list[RunRecord], encoding: str) -> Table:
    look = look_for(encoding)
    table = Table(box=None, pad_edge=False, header_style="bold")
    # Ids are to be copied, so they are shown in full.
    table.add_column("RUN", no_wrap=True, overflow="fold")
    table.add_column("STATUS", no_wrap=True)
    table.add_column("STARTED", no_wrap=True)
    table.add_column("TOOK", no_wrap=True)
    table.add_column("PIPELINE", no_wrap=True, overflow="ellipsis")
    for record in records:
        word = "ORPHANED" if record.orphaned else record.status.upper()
        sign = sign_of_run(word)
        started = datetime.fromtimestamp(record.started_at).astimezone()
        took = "" if record.duration_s is None else duration(record.duration_s * 1000)
        table.add_row(
            in_one_line(record.run_id),
            Text(f"{look.signs[sign]} {word}", COLOURS[sign]),
            f"{started:%Y-%m-%d %H:%M:%S}",
            took,
            in_one_line(record.pipeline),
        )
    return table


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
    tell(f"{record.owner} was asked to stop run {record.run_id}")
