"""Opens the journal that an option names, and finds runs in it by what people type.

The options and arguments that several commands have, and what completes them in a shell.
"""

from __future__ import annotations

import asyncio
import os
import shlex
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem
from click.types import StringParamType

from asyncflow._cli.output import NOT_FOUND, USAGE, CommandError
from asyncflow._core.errors import RunNotFoundError, escape_controls
from asyncflow.journal import PostgresJournal, RunRecord, SQLiteJournal
from asyncflow.journal._queries import is_searchable

__all__ = [
    "DEFAULT",
    "LATEST",
    "PIPELINES",
    "VARIABLE",
    "AnyJournal",
    "TargetType",
    "check_is_no_journal",
    "find_run",
    "how_to_name",
    "html_option",
    "is_address",
    "journal_option",
    "json_option",
    "made",
    "must_exist",
    "opened",
    "run_argument",
    "traceback_option",
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
    elif run and is_searchable(run):
        found = await journal.runs(text=run, limit=None)
        found = [record for record in found if record.run_id.startswith(run)]
    else:
        found = []
    if len(found) > 1:
        some = ", ".join(escape_controls(record.run_id) for record in found[:5])
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


F = TypeVar("F", bound=Callable[..., Any])

PIPELINES = "ASYNCFLOW_PIPELINES"
"""The variable that names the pipelines which runs may go on with, divided by spaces."""

_MANY = 50


class TargetType(StringParamType):
    """``MODULE:PIPELINE``, of which the file is completed."""

    name = "module:pipeline"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Leave it to the shell to complete the file."""
        return [CompletionItem(incomplete, type="file")]


class RunType(StringParamType):
    """A run, of which the id is completed."""

    name = "run"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Return the latest runs whose id begins so, if the journal can be read."""
        journal = ctx.params.get("journal") or os.environ.get(VARIABLE) or DEFAULT
        if not is_address(journal) and not Path(journal).is_file():
            return []
        with suppress(Exception):  # a shell that waits for a word is no place for errors
            return asyncio.run(_runs_that_begin(journal, incomplete))
        return []


async def _runs_that_begin(journal: str, incomplete: str) -> list[CompletionItem]:
    async with opened(journal) as found:
        runs = await found.runs(text=incomplete, limit=_MANY)
    return [
        CompletionItem(run.run_id, help=escape_controls(f"{run.status} {run.pipeline}".strip()))
        for run in runs
        # bash inserts it as it is, and would execute what stands in it.
        if run.run_id.startswith(incomplete) and shlex.quote(run.run_id) == run.run_id
    ]


def _known(journal: str) -> str:
    """Refuse an address of something else, which would be taken for a file, password and all."""
    scheme, is_there, _ = journal.partition("://")
    if is_there and not is_address(journal):
        raise click.BadParameter(
            f"{scheme}:// is no address of a journal; give a file, or "
            "postgresql://user@host/database"
        )
    return journal


journal_option = click.option(
    "--journal",
    metavar="FILE|DSN",
    callback=lambda ctx, param, value: _known(value),
    default=DEFAULT,
    envvar=VARIABLE,
    show_envvar=True,
    show_default=True,
    help="What keeps the runs: a file, or postgresql://user@host/database.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Write JSON.")
html_option = click.option(
    "--html",
    metavar="FILE",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    callback=lambda ctx, param, value: _writable(value),
    help="Write a report of the run that a browser shows.",
)
traceback_option = click.option(
    "--traceback",
    "all_frames",
    is_flag=True,
    help="Show all frames of tracebacks, those of asyncflow too.",
)
run_argument = click.argument("run", metavar="RUN", type=RunType())


def _writable(path: Path | None) -> Path | None:
    """Refuse a file that can't be made, before anything is done."""
    if path is not None and not os.access(path.absolute().parent, os.W_OK):
        why = "is not writable" if path.absolute().parent.is_dir() else "does not exist"
        raise click.BadParameter(f"directory {str(path.absolute().parent)!r} {why}")
    return path and path.absolute()  # a step may go to another directory
