"""The options and arguments that several commands share, and the journals and runs they name."""

from __future__ import annotations

import asyncio
import logging
import os
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import Any, Literal, TextIO

import click
from click.shell_completion import CompletionItem

from asyncflow._cli.engines import check_engine_name
from asyncflow._cli.output import NOT_FOUND, USAGE, CommandError, load_html_writer
from asyncflow._cli.project import project_defaults
from asyncflow._core.arguments import LEVELS, AttributeValue
from asyncflow._core.errors import RunNotFoundError
from asyncflow._core.history.results import RunStatus
from asyncflow._core.run_attributes import attributes_from
from asyncflow._core.text import escape_controls
from asyncflow._runtime.options import check_key, check_label
from asyncflow._views.next_command import PLACEHOLDER, command_of
from asyncflow.journal import PostgresJournal, RunRecord, SQLiteJournal
from asyncflow.journal._database.addresses import is_other_address, is_postgres_address
from asyncflow.journal._read.queries import (
    USUAL_RUNS,
    is_searchable,
    parse_age,
    parse_status,
    parse_time,
)

AnyJournal = SQLiteJournal | PostgresJournal

LATEST = "latest"
PIPELINES = "ASYNCFLOW_PIPELINES"
"""The variable with the pipelines that runs may be resumed with, separated by spaces."""

_VARIABLE = "ASYNCFLOW_JOURNAL"
_DEFAULT = "asyncflow.db"
_COMPLETIONS = 50


# Journals.


def _default_journal() -> str:
    """Return the journal of a command that names none."""
    return os.environ.get(_VARIABLE) or project_defaults().get("journal") or _DEFAULT


def journal_exists(journal: str) -> bool:
    """Whether the file of a journal exists, or it is in a database, which may be asked."""
    return is_postgres_address(journal) or Path(journal).is_file()


def require_journal(journal: str) -> None:
    """Refuse a file that does not exist, which opening would create."""
    if not journal_exists(journal):
        raise CommandError(
            f"journal {journal!r} does not exist; name another one with --journal or "
            f"${_VARIABLE}, or create one with `asyncflow run`",
            NOT_FOUND,
        )


def check_html(html: Path | None, journal: str) -> None:
    """Refuse to write a page without its extra, or over the journal."""
    if html is None:
        return
    if not is_postgres_address(journal) and html.resolve() == Path(journal).resolve():
        problem = f"{str(html)!r} is the journal; name another file"
        raise click.BadParameter(problem, param_hint="'--html'")
    load_html_writer()


def open_journal(journal: str, *, logs: str | None = None, prints: bool = False) -> AnyJournal:
    """Return the journal that an option names; ``async with`` opens it.

    It stores what steps log from the level ``logs`` on; ``None`` for nothing. ``prints`` says
    whether it stores what they print.
    """
    try:
        kind = PostgresJournal if is_postgres_address(journal) else SQLiteJournal
        return kind(journal, logs=logs, prints=prints)
    except ValueError as error:
        raise CommandError(str(error), USAGE) from error


async def find_run(journal: AnyJournal, run: str) -> RunRecord:
    """Return the run with that id, or whose id starts with it, or the latest one.

    Raise `click.UsageError` if several ids start with it.
    """
    try:
        return await journal.record(run)
    except RunNotFoundError as error:
        unknown = error
    found: list[RunRecord] = []
    if run == LATEST:
        found = await journal.runs(limit=1)
    elif run and is_searchable(run):
        found = await journal.runs(text=run, limit=None)
        found = [record for record in found if record.run_id.startswith(run)]
    if len(found) > 1:
        some = ", ".join(escape_controls(record.run_id) for record in found[:5])
        more = f" and {len(found) - 5} more" if len(found) > 5 else ""
        raise click.UsageError(
            f"{len(found)} runs start with {run!r}: {some}{more}; type more of the id"
        )
    if found:
        return found[0]
    if unknown.hint:
        raise unknown
    if run == LATEST:
        raise CommandError(f"journal {unknown.journal} has no runs", NOT_FOUND)
    listing = command_of("runs", journal=journal_named(unknown.journal))
    raise CommandError(f"{unknown}; to list its runs: {listing}", NOT_FOUND)


def journal_named(journal: str) -> str:
    """Return what another command finds a journal by, for `command_of`; empty if by itself.

    It leaves out the address of a database, which may contain a password.
    """
    if journal == _default_journal():
        return ""
    return "DSN" if is_postgres_address(journal) else journal


async def usual_times(
    journal: AnyJournal, pipeline: str
) -> tuple[float | None, Mapping[str, float]]:
    """Return how many milliseconds a run of a pipeline usually takes, and its steps by name.

    ``None`` and nothing, as far as the journal can't tell.
    """
    if not pipeline:
        return None, {}
    steps = (await journal.statistics(pipeline, runs=USUAL_RUNS)).usual_ms
    return await journal.usual_ms(pipeline), steps


def resume_command(record: RunRecord, journal: str) -> str:
    """Return the command that resumes a run, as far as the journal and the project tell."""
    target = [named_target(record)]
    if os.environ.get(PIPELINES) or project_defaults().get("pipelines"):
        target = []  # the command looks there, too
    return command_of("resume", record.run_id, *target, journal=journal_named(journal))


def named_target(record: RunRecord) -> str:
    """Return MODULE:PIPELINE of a run; a pipeline without a name has it as its name."""
    return record.pipeline if ":" in record.pipeline else PLACEHOLDER


# Completion in a shell.


def complete_target(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Let the shell complete the file of ``MODULE:PIPELINE``."""
    return [CompletionItem(incomplete, type="file")]


def complete_run(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    journal = ctx.params.get("journal") or _default_journal()
    if not journal_exists(journal):
        return []
    with suppress(Exception):  # an error would end up in the line that is completed
        return asyncio.run(_runs_that_start_with(journal, incomplete))
    return []


async def _runs_that_start_with(journal: str, incomplete: str) -> list[CompletionItem]:
    async with open_journal(journal) as opened:
        runs = await opened.runs(text=incomplete, limit=_COMPLETIONS)
    return [
        CompletionItem(run.run_id, help=escape_controls(f"{run.status} {run.pipeline}".strip()))
        for run in runs
        # bash inserts an id without quoting it, so it would execute a command in it.
        if run.run_id.startswith(incomplete) and shlex.quote(run.run_id) == run.run_id
    ]


# Options.


def _check_address(journal: str) -> str:
    """Refuse other addresses, which would become the name of a file, with a password in it."""
    if is_other_address(journal):
        raise click.BadParameter(
            "this is not the address of a journal; give a file, or postgresql://user@host/database"
        )
    return journal


def _check_is_writable(path: Path | None) -> Path | None:
    """Refuse a file that can't be created, before anything runs."""
    if path is not None and not os.access(path.absolute().parent, os.W_OK):
        why = "is not writable" if path.absolute().parent.is_dir() else "does not exist"
        raise click.BadParameter(f"directory {str(path.absolute().parent)!r} {why}")
    return path and path.absolute()  # a step may change the current directory


def _read_text(file: TextIO) -> str:
    try:
        return file.read()
    except UnicodeDecodeError as error:
        file.close()
        raise click.BadParameter(f"it is not encoded in UTF-8 (at byte {error.start})") from None


journal_option = click.option(
    "--journal",
    metavar="FILE|DSN",
    callback=lambda ctx, param, value: _check_address(value),
    default=_DEFAULT,
    envvar=_VARIABLE,
    show_envvar=True,
    # Without show_default, which shows that of the project: a password may be in it.
    help="The journal that stores the runs: a file, or postgresql://user@host/database; by default "
    f"{_DEFAULT}.",
)
_LEVEL = click.Choice([*LEVELS], case_sensitive=False)
_KEPT, _OFF = "INFO", "OFF"
"""From which level on log records are stored unless an option says otherwise, and what it says to
store none."""
json_option = click.option("--json", "as_json", is_flag=True, help="Write JSON.")


def _file_option(name: str, help_: str) -> Callable[[Any], Any]:
    return click.option(
        name,
        metavar="FILE",
        type=click.Path(dir_okay=False, writable=True, path_type=Path),
        callback=lambda ctx, param, value: _check_is_writable(value),
        help=help_,
    )


html_option = _file_option("--html", "Write an HTML report of the run.")


def check_time(text: str | None) -> float | None:
    """Return a time that a person typed, in seconds since the epoch."""
    if text is None:
        return None
    try:
        time_s = parse_time(text, time.time())
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
    with suppress(ValueError):
        if float(text) == time_s:  # a number without a unit is a mistake: 90 for 90d
            raise click.BadParameter(f"{text!r} has no unit; use an age, such as 2h or 3d")
    return time_s


def check_delay(text: str) -> float:
    """Return a time that a person typed, such as 10m, in milliseconds."""
    with suppress(OverflowError):
        age = None if "ago" in text else parse_age(text)
        if age is not None:
            return age.total_seconds() * 1000
    raise click.BadParameter(f"invalid time {text!r}; use a number with a unit (30s, 10m, 2h, 3d)")


def _check_status(status: str | None) -> RunStatus | None:
    # click.Choice that ignores the case names its choices in lower case.
    try:
        return parse_status(status)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def status_option(help_: str) -> Callable[[Any], Any]:
    return click.option(
        "--status",
        metavar="STATUS",
        callback=lambda ctx, param, value: _check_status(value),
        shell_complete=lambda ctx, param, part: [
            each for each in RunStatus if each.startswith(part.upper())
        ],
        help=help_,
    )


since_option = click.option(
    "--since",
    metavar="TIME",
    callback=lambda ctx, param, value: check_time(value),
    help="Only runs that started at this time or later: a date, yesterday, or an age such as "
    "2h or 3d.",
)


def _check_label(label: str | None) -> str | None:
    try:
        check_label(label or "")
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
    return label


label_option = click.option(
    "--label",
    metavar="TEXT",
    callback=lambda ctx, param, value: _check_label(value),
    help="What the run is about, such as 'order 12345'; `asyncflow runs` shows and finds it.",
)


def _read_attributes(pairs: Sequence[str]) -> dict[str, AttributeValue] | None:
    try:
        return attributes_from(pairs) or None
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def attribute_option(help_: str) -> Callable[[Any], Any]:
    return click.option(
        "--attribute",
        "attributes",
        metavar="NAME=VALUE",
        multiple=True,
        callback=lambda ctx, param, value: _read_attributes(value),
        help=help_,
    )


_ATTRIBUTE = "a number or true or false as JSON has it, else a string; repeatable."
new_attribute_option = attribute_option(
    f"An attribute of the run, such as tenant=acme: {_ATTRIBUTE}"
)
having_attribute_option = attribute_option(
    f"Only runs with this attribute, such as tenant=acme: {_ATTRIBUTE}"
)


def _check_key(key: str | None) -> str | None:
    """Check the key of a run; click reports what is wrong."""
    try:
        check_key(key)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
    return key


key_option = click.option(
    "--key",
    metavar="KEY",
    callback=lambda ctx, param, value: _check_key(value),
    help="What no two started runs of the pipeline may have in common, such as 'customer 17'.",
)
dry_run_option = click.option(
    "--dry-run", is_flag=True, help="Run and store nothing; show what would run, and why."
)
targets_option = click.option(
    "--target",
    "targets",
    metavar="STEP",
    multiple=True,
    help="Only this step and what it depends on; repeatable.",
)


def log_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options of logging to a command, which receives a ``log_level``."""

    @click.option(
        "--log-level",
        metavar="LEVEL",
        type=_LEVEL,
        help="Write log records from this level on to standard error; by default WARNING.",
    )
    @click.option("-v", "verbose", is_flag=True, help="The same as --log-level INFO.")
    @wraps(command)
    def with_level(*, log_level: str | None, verbose: bool, **given: Any) -> None:
        name = log_level or ("INFO" if verbose else None)
        level = None if name is None else logging.getLevelNamesMapping()[name]
        command(**given, log_level=level)

    return with_level


pipelines_argument = click.argument(
    "pipelines",
    metavar="[MODULE:PIPELINE]",
    nargs=-1,
    shell_complete=complete_target,
    envvar=PIPELINES,
)
run_argument = click.argument("run", metavar="RUN", shell_complete=complete_run)
baseline_argument = click.argument(
    "baseline", metavar="[BASELINE]", required=False, shell_complete=complete_run
)


@dataclass(frozen=True, slots=True)
class RunFlags:
    input_: Sequence[str]
    input_json: str | None
    inputs: str | None
    journal: str
    schedule: Literal["tiers", "ready"] | None
    keep_going: bool
    targets: Sequence[str]
    wait: bool
    allow_missing_steps: bool
    html: Path | None
    as_json: bool
    quiet: bool
    engine: str | None
    logs: str | None
    prints: bool
    log_level: int | None

    @property
    def kept_logs(self) -> str | None:
        """From which level on the journal stores log records; ``None`` for none."""
        return kept_logs(self.logs)


def kept_logs(logs: str | None) -> str | None:
    """Return the level that ``--logs``, or the project, stands for; ``None`` to store nothing."""
    logs = (logs or _KEPT).upper()
    return None if logs == _OFF else logs


logs_option = click.option(
    "--logs",
    metavar="LEVEL",
    type=click.Choice([*LEVELS, _OFF], case_sensitive=False),
    help="Store what steps log in the journal, from this level on, by default "
    f"{_KEPT}; {_OFF} stores nothing. `asyncflow logs` shows it.",
)
_WAIT = click.option(
    "--wait", is_flag=True, help="If another process runs it, wait for that instead of failing."
)
_ALLOW_MISSING = click.option(
    "--allow-missing-steps",
    is_flag=True,
    help="Continue a run although the pipeline no longer has all of its steps; skip those.",
)
_INPUT_OPTIONS: Sequence[Callable[[Any], Any]] = (
    click.option(
        "--input",
        "input_",
        metavar="NAME=VALUE",
        multiple=True,
        help="An input, as text of the type that the actions declare; @env:VARIABLE and @FILE take "
        "it from there; repeatable.",
    ),
    click.option("--input-json", metavar="JSON", help="Inputs as a JSON object: '{\"days\": 3}'."),
    click.option(
        "--inputs",
        metavar="FILE",
        type=click.File(encoding="utf-8"),
        callback=lambda ctx, param, file: None if file is None else _read_text(file),
        help="A file with a JSON object of inputs; - for the standard input.",
    ),
)
_RUN_OPTIONS: Sequence[Callable[[Any], Any]] = (
    *_INPUT_OPTIONS,
    journal_option,
    click.option(
        "--schedule",
        type=click.Choice(["tiers", "ready"]),
        help="When a step may start: with its tier, or as soon as its own dependencies allow.",
    ),
    click.option(
        "--keep-going",
        is_flag=True,
        help="When a step fails, skip only what depends on it (fail_fast=False).",
    ),
    targets_option,
    click.option(
        "--engine",
        metavar="ENGINE",
        callback=check_engine_name,
        help="Where actions run: dask://HOST:PORT, ray://HOST:PORT, ray (on this machine) or "
        "processes (processes:4). Steps with an engine of their own keep it.",
    ),
    _WAIT,
    _ALLOW_MISSING,
    html_option,
    json_option,
    click.option("--quiet", is_flag=True, help="Show no progress and no hints."),
    logs_option,
    click.option("--prints", is_flag=True, help="Store what steps print in the journal, as logs."),
    log_options,
)


class GroupedCommand(click.Command):
    """A command with so many options that its help has them in groups, and examples at its end."""

    groups: Mapping[str, Sequence[str]] = {
        "Inputs": ("--input", "--input-json", "--inputs"),
        "What runs, and how": (
            *("--target", "--from", "--all", "--schedule", "--keep-going", "--engine", "--wait"),
            *("--allow-missing-steps", "--delay", "--on-conflict"),
            *("--status", "--since", "--attribute", "--jobs", "--dry-run"),
        ),
        "What is stored": (
            "--journal",
            "--no-journal",
            "--run-id",
            "--label",
            "--key",
            "--logs",
            "--prints",
        ),
        "What is shown": ("--html", "--json", "--quiet", "--log-level", "-v", "-h"),
    }

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, those of each group together."""
        for title, names in self.groups.items():
            records = [
                option.get_help_record(ctx)
                for name in names
                for option in self.get_params(ctx)
                if name in option.opts
            ]
            with formatter.section(title):
                formatter.write_dl([record for record in records if record is not None])


def input_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that give inputs: ``input_``, ``input_json`` and ``inputs``."""
    for option in reversed(_INPUT_OPTIONS):
        command = option(command)
    return command


def run_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options of `run` and `resume` to a command, which receives them as ``flags``."""
    return _with_flags(command, _RUN_OPTIONS)


def new_run_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add those options to a command that always makes a new run, and continues none."""
    options = [option for option in _RUN_OPTIONS if option not in (_WAIT, _ALLOW_MISSING)]
    return _with_flags(command, options)


def _with_flags(
    command: Callable[..., None], options: Sequence[Callable[[Any], Any]]
) -> Callable[..., None]:
    @wraps(command)
    def with_flags(**given: Any) -> None:
        given = {"wait": False, "allow_missing_steps": False, **given}
        flags = RunFlags(**{field.name: given.pop(field.name) for field in fields(RunFlags)})
        command(**given, flags=flags)

    decorated: Callable[..., None] = with_flags
    for option in reversed(options):
        decorated = option(decorated)
    return decorated
