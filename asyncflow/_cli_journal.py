"""Opens the journal that an option names, and finds runs in it by what people type."""

from __future__ import annotations

import os
import shlex
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import click

from asyncflow._asked import can_be_sought
from asyncflow._cli_errors import NOT_FOUND, USAGE, CommandError
from asyncflow._core.errors import RunNotFoundError, in_one_line
from asyncflow.journal import PostgresJournal, RunRecord, SQLiteJournal

__all__ = [
    "DEFAULT",
    "LATEST",
    "VARIABLE",
    "AnyJournal",
    "check_is_no_journal",
    "find_run",
    "how_to_name",
    "is_address",
    "made",
    "must_exist",
    "opened",
]

AnyJournal = SQLiteJournal | PostgresJournal

VARIABLE = "ASYNCFLOW_JOURNAL"
DEFAULT = "asyncflow.db"
LATEST = "latest"
_BESIDE = ("", "-wal", "-shm", "-journal")
"""How the names of the files of a journal go on after that of the journal."""


def is_address(journal: str) -> bool:
    """Whether it is the address of a PostgreSQL database, and not a file."""
    return journal.startswith(("postgresql://", "postgres://"))


def must_exist(journal: str) -> None:
    """Refuse a file that is not there, which a journal would make.

    Raises:
        CommandError: There is no such file.
    """
    if not is_address(journal) and not Path(journal).is_file():
        raise CommandError(
            f"there is no journal {journal!r}; name another one with --journal or in ${VARIABLE}, "
            "or make one with `asyncflow run`",
            NOT_FOUND,
        )


def check_is_no_journal(html: Path | None, journal: str) -> None:
    """Refuse to write a page where a journal is, or may be soon.

    Raises:
        click.BadParameter: It is one of the journal's files.
    """
    if html is None or is_address(journal):
        return
    kept = Path(journal).resolve()  # what a link leads to has the others beside it
    for suffix in _BESIDE:
        file = Path(f"{kept}{suffix}")
        if html.resolve() == file or (html.exists() and file.exists() and html.samefile(file)):
            raise click.BadParameter(
                f"{str(html)!r} is part of the journal {journal!r}, which would be lost; name "
                "another file",
                param_hint="'--html'",
            )


def made(journal: str) -> AnyJournal:
    """Return the journal that an option names, not yet opened.

    Raises:
        CommandError: The address can't be read.
        ImportError: What it needs is missing.
    """
    try:
        return PostgresJournal(journal) if is_address(journal) else SQLiteJournal(journal)
    except ValueError as error:
        raise CommandError(str(error), USAGE) from error


@asynccontextmanager
async def opened(journal: str) -> AsyncIterator[AnyJournal]:
    """Open a journal for as long as this lasts.

    Raises:
        CommandError, ImportError: As `made` raises them.
        JournalError: It can't be read.
    """
    async with made(journal) as one:
        yield one


async def find_run(journal: AnyJournal, run: str) -> RunRecord:
    """Return the run of that id, of an id that begins so, or the one that began last.

    Raises:
        click.UsageError: Several begin so.
        RunNotFoundError: There is no such run.
    """
    try:
        return await journal.record(run)
    except RunNotFoundError as error:
        unknown = error
    if run == LATEST:
        found = await journal.runs(limit=1)
    elif run and can_be_sought(run):
        found = await journal.runs(text=run, limit=None)
        found = [record for record in found if record.run_id.startswith(run)]
    else:
        found = []
    if len(found) > 1:
        some = ", ".join(in_one_line(record.run_id) for record in found[:5])
        more = f" and {len(found) - 5} more" if len(found) > 5 else ""
        raise click.UsageError(
            f"{len(found)} runs begin with {run!r}: {some}{more}; type more of it"
        )
    if not found:
        raise unknown
    return found[0]


def how_to_name(journal: str) -> str:
    """Return the option that names a journal in another command; empty if it needs none.

    The address of a database is not told, since it may hold a password.
    """
    if journal == os.environ.get(VARIABLE, DEFAULT):
        return ""
    return " --journal " + ("DSN" if is_address(journal) else shlex.quote(journal))
