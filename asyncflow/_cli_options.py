"""The options and arguments that several commands have, and what completes them in a shell."""

from __future__ import annotations

import asyncio
import os
import shlex
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem
from click.types import StringParamType

from asyncflow._cli_journal import DEFAULT, VARIABLE, is_address, opened
from asyncflow._core.errors import in_one_line

__all__ = [
    "PIPELINES",
    "TargetType",
    "html_option",
    "journal_option",
    "json_option",
    "run_argument",
    "traceback_option",
]

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
        CompletionItem(run.run_id, help=in_one_line(f"{run.status} {run.pipeline}".strip()))
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
