"""The command ``asyncflow rerun``: reruns a stored run under a new id."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import click

from asyncflow._cli.options import (
    GroupedCommand,
    RunFlags,
    dry_run_option,
    key_option,
    label_option,
    new_attribute_option,
    new_run_options,
    pipelines_argument,
    require_journal,
    run_argument,
)
from asyncflow._cli.run import check_run_id, execute_run, pipeline_of, read_run
from asyncflow._core.arguments import AttributeValue

_EXAMPLES = """\b
Examples:
  asyncflow rerun latest etl:pipeline --from load
  asyncflow rerun calm-otter etl:pipeline --input days=7 --dry-run
"""


@click.command(cls=GroupedCommand, epilog=_EXAMPLES)
@run_argument
@pipelines_argument
@click.option(
    "--from",
    "from_steps",
    metavar="STEP",
    multiple=True,
    help="Run this step again, with all that depends on it; repeatable.",
)
@click.option("--all", "everything", is_flag=True, help="Run all steps again, with its inputs.")
@click.option("--run-id", metavar="NAME", help="The id of the new run; by default a new name.")
@label_option
@new_attribute_option
@key_option
@dry_run_option
@new_run_options
def rerun(
    run: str,
    pipelines: Sequence[str],
    from_steps: Sequence[str],
    everything: bool,
    run_id: str | None,
    label: str | None,
    attributes: Mapping[str, AttributeValue] | None,
    key: str | None,
    dry_run: bool,
    flags: RunFlags,
) -> None:
    """Run again under a new id, with the results of a run that are still valid.

    RUN is its id, the start of its id, or "latest". It stays as it is, whatever its status. What
    succeeded in it is reused, unless its step is newer, takes an input that has another value
    now, or is named by --from; whatever depends on a step that runs, runs again too. The inputs are
    those of the run; --input replaces some of them, and secret ones must be given again. If nothing
    would run, it says so and makes no run.

    The pipeline is found as for `resume`: MODULE:PIPELINE, or one of ASYNCFLOW_PIPELINES.
    """
    if run_id is not None:
        check_run_id(run_id)
    if everything and from_steps:
        raise click.UsageError("--all runs every step again, so --from has no effect")
    require_journal(flags.journal)
    stored = asyncio.run(read_run(flags.journal, run))
    target = pipeline_of(stored, pipelines, flags, "rerun")
    again = None if everything else from_steps
    execute_run(
        target,
        flags.journal,
        run_id,
        flags,
        stored,
        again,
        is_rerun=True,
        dry_run=dry_run,
        label=label,
        attributes=attributes,
        key=key,
    )
