"""The command ``asyncflow enqueue``: stores a run that a service starts."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import get_args

import click

from asyncflow._cli.execution import explained_refusals
from asyncflow._cli.inputs import read_inputs
from asyncflow._cli.loader import load_pipeline
from asyncflow._cli.options import (
    GroupedCommand,
    check_delay,
    complete_target,
    input_options,
    journal_option,
    key_option,
    label_option,
    new_attribute_option,
    open_journal,
)
from asyncflow._cli.output import stdout_for_results_only
from asyncflow._cli.run import check_run_id
from asyncflow._core.arguments import AttributeValue
from asyncflow._runtime.options import OnConflict
from asyncflow.journal._run_names import free_name

_EXAMPLES = """\b
Examples:
  asyncflow enqueue etl:pipeline --input days=3 --key "customer 17"
  asyncflow enqueue etl:pipeline --delay 10m --run-id reminder-12345
  asyncflow enqueue etl:pipeline --key "customer 17" --on-conflict replace
"""


@click.command(cls=GroupedCommand, epilog=_EXAMPLES)
@click.argument("target", metavar="MODULE:PIPELINE", shell_complete=complete_target)
@input_options
@click.option(
    "--delay",
    "delay_ms",
    metavar="TIME",
    default="0s",
    callback=lambda ctx, param, value: check_delay(value),
    help="In which time the run is due, such as 30s, 10m, 2h or 3d; by default at once.",
)
@click.option(
    "--on-conflict",
    type=click.Choice(get_args(OnConflict)),
    default="wait",
    help="If the pipeline has a run with the key that has not ended: wait behind it, which is the "
    "default, fail, print its id and store nothing, or replace it.",
)
@journal_option
@click.option("--run-id", metavar="NAME", help="The id of the run; by default a new name.")
@label_option
@new_attribute_option
@key_option
def enqueue(
    target: str,
    input_: Sequence[str],
    input_json: str | None,
    inputs: str | None,
    delay_ms: float,
    on_conflict: OnConflict,
    journal: str,
    run_id: str | None,
    label: str | None,
    attributes: Mapping[str, AttributeValue] | None,
    key: str | None,
) -> None:
    """Store a run that waits to start, and print its id.

    A service on the journal that has the pipeline starts it when it is due, its key is free and
    there is a place. `asyncflow runs` says for what it waits, `asyncflow watch` follows it, and
    `asyncflow cancel` ends it. With an id that the journal has, and the same inputs, nothing is
    stored. MODULE:PIPELINE is as for `run`.
    """
    if run_id is not None:
        check_run_id(run_id)
    with stdout_for_results_only(True):
        loaded = load_pipeline(target)
        steps = loaded.orchestrator.steps
        values = read_inputs(steps, file=inputs, text=input_json, pairs=input_)

        async def store() -> str:
            async with open_journal(journal) as opened:
                with explained_refusals(loaded.target):
                    return await loaded.orchestrator.with_options(journal=opened).enqueue(
                        values,
                        run_id=run_id or await free_name(opened),
                        key=key,
                        on_conflict=on_conflict,
                        delay_ms=delay_ms,
                        label=label,
                        attributes=attributes,
                    )

        stored_id = asyncio.run(store())
    click.echo(stored_id)
