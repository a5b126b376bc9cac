"""The command ``asyncflow signal``."""

from __future__ import annotations

import asyncio
import json
import re

import click

from asyncflow._cli.options import (
    find_run,
    journal_named,
    journal_option,
    open_journal,
    require_journal,
    resume_command,
    run_argument,
)
from asyncflow._cli.output import (
    RUN_FAILED,
    CommandError,
    stdout_console,
    write_lines,
    write_note,
)
from asyncflow._cli.show_run import asked_lines
from asyncflow._core.errors import PayloadError
from asyncflow._core.history.results import RunStatus
from asyncflow._core.text import escape_controls
from asyncflow._views.next_command import answer_command, command_of
from asyncflow._views.run_view import RunView
from asyncflow.journal import RunRecord
from asyncflow.journal._read.queries import UNENDED


class _TakesNegativeNumbers(click.Command):
    """Reads -5 as a value, and not as an option."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        # A space makes no difference in JSON, and an option never begins with one.
        return super().parse_args(ctx, [re.sub(r"^(?=-\d)", " ", each) for each in args])


@click.command(cls=_TakesNegativeNumbers)
@run_argument
@click.argument("name", metavar="[NAME]", required=False)
@click.argument("value", metavar="[JSON]", required=False)
@click.option("--by", metavar="NAME", help="Say who sends it. By default, this process is named.")
@click.option("--note", default="", metavar="TEXT", help="Say something of the answer.")
@journal_option
def signal(
    run: str, name: str | None, value: str | None, by: str | None, note: str, journal: str
) -> None:
    """Send a value to a step of a run that waits for it, or list what the run waits for.

    RUN is its id, the start of its id, or "latest". NAME is the step, and JSON the value: true, 42,
    '"yes"', '{"amount": 3}'. The first value counts; the same one again changes nothing. A service
    with this journal continues the run; so does `asyncflow resume`. Who sent it, when, and the note
    are stored and shown with the answer. Without NAME, it lists what the run waits for: the type of
    each value, what is asked, and the command that answers it.
    """
    require_journal(journal)
    if name is None:
        asyncio.run(_list(journal, run))
        return
    if value is None:
        raise click.UsageError(
            f"a value for {name!r} is missing; `{command_of('signal', run)}` says what it takes"
        )
    try:
        plain = json.loads(value)
    except RecursionError as error:
        raise click.UsageError("JSON is nested too deeply") from error
    except ValueError as error:
        raise click.UsageError(
            f"{value!r} is no JSON ({error}); yes and no are true and false, and a string has "
            f"""double quotes within single ones: '"{value}"'"""
        ) from error

    sent_name = name

    async def send() -> RunRecord:
        async with open_journal(journal) as opened:
            record = await find_run(opened, run)
            await opened.signal(record.run_id, sent_name, plain, sent_by=by, note=note)
            return record

    try:
        record = asyncio.run(send())
    except (ValueError, PayloadError) as error:
        raise CommandError(str(error), RUN_FAILED) from error
    write_note(escape_controls(f"signal {name!r} of run {record.run_id} is stored"))
    if record.status is RunStatus.WAITING:
        resume = resume_command(record, journal)
        write_note(escape_controls(f"To resume it, unless a service does: {resume}"))


async def _list(journal: str, run: str) -> None:
    """Write what a run waits for, and how to answer it."""
    async with open_journal(journal) as opened:
        record = await find_run(opened, run)
        view = RunView(each.event for each in await opened.events(record.run_id))
        answered = (await opened.summaries([record]))[record.run_id].answered
    console = stdout_console()
    waiting = view.waiting if record.status in UNENDED else []
    if not waiting:
        write_note(escape_controls(f"run {record.run_id} waits for no signal"))
    write_lines([*asked_lines(view, console, answered)] if waiting else [], console)
    for step in waiting:
        if step.name not in answered:
            schema = view.signals.schemas.get(step.name, {})
            command = answer_command(record.run_id, step.name, schema, journal_named(journal))
            click.echo(escape_controls(f"To answer {step.name}: {command}"))
