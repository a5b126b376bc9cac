"""The commands about the runs of a journal: ``runs``, ``cancel``, ``prune`` and ``forget``."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timedelta, timezone, tzinfo
from typing import get_args

import click
from rich.cells import cell_len, set_cell_size
from rich.text import Text

from asyncflow._cli.options import (
    check_time,
    find_run,
    having_attribute_option,
    journal_named,
    journal_option,
    json_option,
    open_journal,
    require_journal,
    run_argument,
    since_option,
    status_option,
)
from asyncflow._cli.output import (
    FILE_WIDTH,
    RUN_FAILED,
    CommandError,
    stdout_console,
    write_note,
    write_result,
)
from asyncflow._core.analysis.looks import RUN_LOOKS
from asyncflow._core.analysis.slowness import Slower
from asyncflow._core.arguments import AttributeValue
from asyncflow._core.errors import RunAlreadyActiveError
from asyncflow._core.history.results import RunStatus
from asyncflow._core.run_attributes import attributes_text
from asyncflow._core.text import escape_controls, plural
from asyncflow._views.event_text import took
from asyncflow._views.next_command import command_of
from asyncflow._views.preview import local_moment_text, moment_text, zone_name
from asyncflow._views.progress import left_text
from asyncflow._views.slowness import slowness_text
from asyncflow._views.waiting import is_queued, queue_text, wait_text
from asyncflow.journal import RunRecord, RunSummary
from asyncflow.journal._read.queries import (
    RunFilter,
    WaitKind,
    listed_status,
    record_document,
    so_far_ms,
)
from asyncflow.live._theme import Theme, elide, elide_middle, theme_for

_DEFAULT_LIMIT, _HIGHEST_LIMIT = 20, 1_000_000_000
_GAP = "  "
_LEAST_WIDTH = 8
"""How many cells the last column has at least, on any terminal."""
_FIXED = 5
"""How many columns there always are, the last of which is the pipeline."""
_LEAST_DETAILS = 24
"""In how many cells the last column is worth having. With less room, what follows the pipeline
stands below the row."""
_INDENT = 4
_PROSE = "DETAILS"
"""The column that loses its end where it doesn't fit; names lose their middle."""
_TIME_WIDTH = len("2024-06-01 14:00:00")


def _check_is_past(time_s: float | None) -> float | None:
    if time_s is not None and time_s > time.time():
        raise click.BadParameter("the time is in the future, and no run has ended before it")
    return time_s


def _check_text(text: str | None) -> str | None:
    try:
        RunFilter(text=text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
    return text


# runs


def _check_nothing(words: tuple[str, ...]) -> None:
    if words:
        line = command_of("runs", "--text", " ".join(words))
        raise click.UsageError(
            escape_controls(f"the list takes options only; to search it: {line}")
        )


@click.command()
@click.argument(
    "words",
    metavar="",
    nargs=-1,
    expose_value=False,
    callback=lambda ctx, param, words: _check_nothing(words),
)
@journal_option
@status_option(f"Only runs with this status: {', '.join(RunStatus)}.")
@click.option("--pipeline", metavar="NAME", help="Only runs of the pipeline with this name.")
@since_option
@click.option(
    "--text",
    metavar="TEXT",
    callback=lambda ctx, param, value: _check_text(value),
    help="Only runs with this text in their id, their label or the name of their pipeline.",
)
@click.option("--label", metavar="TEXT", help="Only runs with exactly this label.")
@having_attribute_option
@click.option(
    "--waits-for",
    metavar="KIND",
    type=click.Choice(get_args(WaitKind)),
    help=f"Only runs that wait, and for this: {', '.join(get_args(WaitKind))}.",
)
@click.option(
    "--limit",
    type=click.IntRange(0, _HIGHEST_LIMIT),
    help=f"The highest number of runs; 0 for all.  [default: {_DEFAULT_LIMIT}]",
)
@click.option("--wide", is_flag=True, help="Cut nothing, however wide the terminal is.")
@json_option
def runs(
    journal: str,
    status: RunStatus | None,
    pipeline: str | None,
    since: float | None,
    text: str | None,
    label: str | None,
    attributes: Mapping[str, AttributeValue] | None,
    waits_for: WaitKind | None,
    limit: int | None,
    wide: bool,
    as_json: bool,
) -> None:
    """List the runs of a journal, the latest start first."""
    require_journal(journal)
    most = _DEFAULT_LIMIT if limit is None else limit
    where = RunFilter(
        status,
        pipeline=pipeline,
        since=since,
        text=text,
        label=label,
        attributes=attributes,
        waits_for=waits_for,
        limit=most + 1 if most else None,
    )

    slower: dict[str, Slower] = {}

    async def matching() -> tuple[list[RunRecord], Mapping[str, RunSummary], str]:
        async with open_journal(journal) as opened:
            records = await opened.runs(**asdict(where))
            if as_json:
                return records, {}, ""
            others = [each for each in records if each.status is not RunStatus.PASSED]
            summaries = await opened.summaries(others)
            slower.update(await opened._slower(records))
            return records, summaries, queue_text(await opened.queue(pipeline=pipeline))

    records, summaries, queued = asyncio.run(matching())
    shown = records[: most or None]
    if as_json:
        click.echo(json.dumps([record_document(record) for record in shown], indent=2))
    elif shown:
        write_table(shown, summaries, slower, wide=wide)
    else:
        hint = "" if label is None else "; --label is the whole label, and --text a part of it"
        write_note(f"no matching runs{hint}")
    if len(shown) < len(records) and limit is None:
        write_note("more runs match; --limit 0 lists all")
    if queued:
        write_note(queued)


def write_table(
    records: Sequence[RunRecord],
    summaries: Mapping[str, RunSummary],
    slower: Mapping[str, Slower],
    *,
    wide: bool = False,
) -> None:
    """Write the list of some runs.

    ``slower`` has those that were slower than usual; if it is ``wide``, nothing is cut.
    """
    console = stdout_console()
    if wide:
        console.width = FILE_WIDTH
    theme = theme_for(console.encoding)
    now = datetime.now().astimezone()
    # One zone for all rows, also for those from before the clocks were changed.
    zone = timezone(now.utcoffset() or timedelta())
    started = f"STARTED ({zone_name(now)})"
    rows = [["RUN", "STATUS", started, "TOOK", "PIPELINE", "LABEL", "ATTRIBUTES", _PROSE]]
    rows += [
        _cells(
            record,
            zone,
            theme,
            summaries.get(record.run_id),
            slowness_text(slower.get(record.run_id)),
        )
        for record in records
    ]
    used = [at for at in range(len(rows[0])) if at < _FIXED or any(row[at] for row in rows[1:])]
    rows = [[row[at] for at in used] for row in rows]
    titles, below = rows[0], [""] * len(rows)
    # Users copy ids, so only the last column may be cut.
    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)][:-1]
    room = console.width - sum(widths) - len(_GAP) * len(widths)
    if room < _LEAST_DETAILS and len(used) > _FIXED:
        most = max(console.width - _INDENT, _LEAST_WIDTH)
        below = ["", *(_below(titles[_FIXED:], row[_FIXED:], most, theme) for row in rows[1:])]
        rows, widths = [row[:_FIXED] for row in rows], widths[: _FIXED - 1]
        room = console.width - sum(widths) - len(_GAP) * len(widths)
    left = max(room, _LEAST_WIDTH)
    lines = []
    start = widths[0] + len(_GAP)
    for row, details, record in zip(rows, below, [None, *records], strict=True):
        *cells, last = row
        fixed = (set_cell_size(cell, width) for cell, width in zip(cells, widths, strict=True))
        line = Text(_GAP.join([*fixed, _cut(titles[len(row) - 1], last, left, theme)]).rstrip())
        if record is None:
            line.stylize("bold")
        else:
            line.stylize(RUN_LOOKS[listed_status(record)].colour, start, start + widths[1])
        lines.append(line)
        if details:
            lines.append(Text(" " * _INDENT + details))
    console.print(Text("\n").join(lines), soft_wrap=True)


def _below(titles: Sequence[str], cells: Sequence[str], room: int, theme: Theme) -> str:
    """Return what stands below a row: each name has its share of the room, and details the rest."""
    share = room // max(len([*filter(None, cells)]), 1) - len(_GAP)
    found = [
        cell if title == _PROSE else elide_middle(cell, share, theme.ellipsis)
        for title, cell in zip(titles, cells, strict=True)
    ]
    return elide(_GAP.join(filter(None, found)), room, theme.ellipsis)


def _cut(title: str, cell: str, room: int, theme: Theme) -> str:
    return (elide if title == _PROSE else elide_middle)(cell, room, theme.ellipsis)


def _cells(
    record: RunRecord, zone: tzinfo, theme: Theme, summary: RunSummary | None, slowness: str
) -> list[str]:
    look = RUN_LOOKS[listed_status(record)]
    started = "" if record.damaged else moment_text(record.started_at, zone)[:_TIME_WIDTH]
    return [
        escape_controls(record.run_id),
        f"{theme.symbol(look)} {look.word}",
        started,
        _took(record),
        escape_controls(", ".join(_pipeline_and_origin(record))),
        escape_controls(record.label),
        escape_controls(attributes_text(record.attributes)),
        escape_controls(_details(record, zone, summary) if summary else slowness),
    ]


def _details(record: RunRecord, zone: tzinfo, summary: RunSummary) -> str:
    wait, now_s = record.waits_for, time.time()
    if wait is not None and is_queued(wait):
        return wait_text(wait, now_s, zone)  # its status says that it waits
    left = left_text(summary.usual_ms, so_far_ms(record, now_s))
    return ", ".join(filter(None, [summary.line, left]))


def _pipeline_and_origin(record: RunRecord) -> Iterator[str]:
    if record.pipeline:
        yield record.pipeline
    if record.rerun_of:
        yield f"rerun of {record.rerun_of}"
    if record.parent:
        yield f"in {record.parent}"


def _took(record: RunRecord) -> str:
    if record.damaged or record.started_at == record.enqueued_at:
        return ""  # it has not started, or ended without a start
    ran_ms = so_far_ms(record, time.time())
    return took(ran_ms, ran_ms + record.paused_s * 1000)


# cancel, prune, forget


@click.command()
@run_argument
@click.option(
    "--reason",
    metavar="TEXT",
    default="",
    help="Why, for the report, the page and the log of the run. The first request's counts.",
)
@journal_option
def cancel(run: str, reason: str, journal: str) -> None:
    """Ask the process that runs a run to stop it, and do not wait for the end.

    Its running steps may clean up, and the run can be resumed. The next process that takes up a run
    which has none now ends it at once. RUN is its id, the start of its id, or "latest".
    """
    require_journal(journal)

    async def request() -> tuple[RunRecord, bool]:
        async with open_journal(journal) as opened:
            record = await find_run(opened, run)
            return record, await opened.cancel(record.run_id, reason)

    record, is_requested = asyncio.run(request())
    if not is_requested:
        raise CommandError(f"run {record.run_id!r} has ended", RUN_FAILED)
    if record.status is RunStatus.RUNNING:
        done = f"asked {record.owner} to stop run {record.run_id}"
    elif record.status is RunStatus.WAITING:
        what = "to start" if is_queued(record.waits_for) else "for a signal"
        done = f"run {record.run_id}, which waited {what}, has ended as cancelled"
    else:
        done = f"run {record.run_id} has no process; the next to take it up ends it as cancelled"
    write_note(escape_controls(done))


@click.command()
@click.option(
    "--older-than",
    "time_s",
    metavar="TIME",
    required=True,
    callback=lambda ctx, param, value: _check_is_past(check_time(value)),
    help="Remove runs that ended before this time: an age such as 90d or 12h, or a date.",
)
@journal_option
@json_option
def prune(time_s: float, journal: str, as_json: bool) -> None:
    """Remove the runs of a journal that ended long ago, and none that has not ended.

    This can't be undone.
    """
    require_journal(journal)

    async def remove() -> int:
        async with open_journal(journal) as opened:
            return await opened.prune(timedelta(seconds=time.time() - time_s))

    removed = asyncio.run(remove())
    if as_json:
        click.echo(json.dumps({"removed": removed}, indent=2))
    else:
        number = plural(removed, "run")
        write_result(f"removed {number} that ended before {local_moment_text(time_s)}")


@click.command()
@run_argument
@journal_option
@json_option
def forget(run: str, journal: str, as_json: bool) -> None:
    """Remove a run from its journal, whatever its status, unless a process runs it.

    This can't be undone, so RUN is the whole id. A new run may use the id again.
    """
    require_journal(journal)

    async def remove() -> RunRecord:
        async with open_journal(journal) as opened:
            record = await opened.record(run)
            await opened.forget(run)
            return record

    try:
        record = asyncio.run(remove())
    except RunAlreadyActiveError as error:
        raise CommandError(
            f"run {run!r} is active in {error.owner}; stop it with "
            f"`{command_of('cancel', run, journal=journal_named(journal))}`, and then forget it",
            RUN_FAILED,
        ) from error
    if as_json:
        click.echo(json.dumps(record_document(record), indent=2))
    else:
        of = f" of {record.pipeline}" if record.pipeline else ""
        write_result(escape_controls(f"removed run {run}{of} ({listed_status(record)})"))
