"""The command ``asyncflow signal``."""

from __future__ import annotations

import asyncio
import json
import re

import click

from asyncflow._cli.options import (
    find_run,
    journal_option,
    open_journal,
    require_journal,
    resume_command,
    run_argument,
)
from asyncflow._cli.output import RUN_FAILED, CommandError, write_note
from asyncflow._core.errors import PayloadError
from asyncflow._core.results import RunStatus
from asyncflow._core.text import escape_controls
from asyncflow.journal import RunRecord


class _TakesNegativeNumbers(click.Command):
    """Reads -5 as a value, and not as an option."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        # A space makes no difference in JSON, and an option never begins with one.
        return super().parse_args(ctx, [re.sub(r"^(?=-\d)", " ", each) for each in args])


@click.command(cls=_TakesNegativeNumbers)
@run_argument
@click.argument("name")
@click.argument("value", metavar="JSON")
@click.option("--by", metavar="NAME", help="Say who sends it. By default, this process is named.")
@click.option("--note", default="", metavar="TEXT", help="Say something of the answer.")
@journal_option
def signal(run: str, name: str, value: str, by: str | None, note: str, journal: str) -> None:
    """Send a value to a step of a run that waits for it.

    RUN is its id, the start of its id, or "latest". NAME is the step, and JSON the value: true, 42,
    '"yes"', '{"amount": 3}'. The first value counts; the same one again changes nothing. A service
    with this journal continues the run; so does `asyncflow resume`. Who sent it, when, and the note
    are stored and shown with the answer.
    """
    require_journal(journal)
    try:
        plain = json.loads(value)
    except RecursionError as error:
        raise click.UsageError("JSON is nested too deeply") from error
    except ValueError as error:
        raise click.UsageError(
            f"{value!r} is no JSON ({error}); yes and no are true and false, and a string has "
            f"""double quotes within single ones: '"{value}"'"""
        ) from error

    async def send() -> RunRecord:
        async with open_journal(journal) as opened:
            record = await find_run(opened, run)
            await opened.signal(record.run_id, name, plain, sent_by=by, note=note)
            return record

    try:
        record = asyncio.run(send())
    except (ValueError, PayloadError) as error:
        raise CommandError(str(error), RUN_FAILED) from error
    write_note(escape_controls(f"signal {name!r} of run {record.run_id} is stored"))
    if record.status is RunStatus.WAITING:
        resume = resume_command(record, journal)
        write_note(escape_controls(f"To resume it, unless a service does: {resume}"))
