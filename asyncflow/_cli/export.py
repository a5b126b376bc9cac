"""The command ``asyncflow export``: copies a run into a file of its own."""

from __future__ import annotations

import asyncio
from pathlib import Path

import click

from asyncflow._cli.options import (
    find_run,
    journal_option,
    open_journal,
    require_journal,
    run_argument,
)
from asyncflow._cli.output import write_note
from asyncflow._core.text import escape_controls
from asyncflow._views.next_command import command_of


@click.command()
@run_argument
@click.argument("file", metavar="FILE", type=click.Path(dir_okay=False, path_type=Path))
@journal_option
def export(run: str, file: Path, journal: str) -> None:
    """Copy a run into a new SQLite journal, with its logs and attachments, and without secrets.

    It is for looking into a failure elsewhere: `asyncflow show`, `rerun` and all others take the
    FILE as their --journal. RUN is its id, the start of its id, or "latest".
    """
    require_journal(journal)

    async def copy() -> str:
        async with open_journal(journal) as opened:
            record = await find_run(opened, run)
            await opened.export(record.run_id, file)
            return record.run_id

    try:
        run_id = asyncio.run(copy())
    except OSError as error:
        why = "it exists already" if isinstance(error, FileExistsError) else error.strerror
        raise click.BadParameter(f"can't create {str(file)!r}: {why}", param_hint="FILE") from None
    line = command_of("show", run_id, journal=str(file))
    write_note(escape_controls(f"exported run {run_id}; to show it: {line}"))
