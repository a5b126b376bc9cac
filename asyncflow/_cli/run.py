"""The command ``asyncflow run``, and what it shares with ``resume`` and ``rerun``."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import click
from click.core import ParameterSource

from asyncflow._cli.execution import (
    Execution,
    Rerun,
    execute,
    preview_run,
    report_end,
)
from asyncflow._cli.inputs import read_inputs
from asyncflow._cli.loader import LoadedPipeline, load_pipeline, select_targets
from asyncflow._cli.options import (
    LATEST,
    PIPELINES,
    GroupedCommand,
    RunFlags,
    check_html,
    complete_target,
    find_run,
    journal_named,
    key_option,
    label_option,
    named_target,
    new_attribute_option,
    open_journal,
    run_options,
)
from asyncflow._cli.output import (
    INVALID,
    CommandError,
    logs_on_stderr,
    some_of,
    stdout_for_results_only,
    write_note,
    write_result,
)
from asyncflow._core.analysis.preview import runs_nothing
from asyncflow._core.arguments import AttributeValue
from asyncflow._core.text import did_you_mean, escape_controls
from asyncflow._runtime.options import Options
from asyncflow._views.next_command import command_of
from asyncflow.journal import RunRecord
from asyncflow.journal._read.queries import check_new_id

_EXAMPLES = """\b
Examples:
  asyncflow run etl:pipeline --input days=3 --label "order 12345"
  asyncflow run etl.py --target load --html run.html
  asyncflow run shop.etl --run-id monday --inputs inputs.json --input token=@env:TOKEN
"""


@click.command(cls=GroupedCommand, epilog=_EXAMPLES)
@click.argument("target", metavar="MODULE:PIPELINE", shell_complete=complete_target)
@run_options
@click.option("--no-journal", is_flag=True, help="Store nothing of the run.")
@click.option("--run-id", metavar="NAME", help="The id of the run; by default a new name.")
@label_option
@new_attribute_option
@key_option
def run(
    target: str,
    no_journal: bool,
    run_id: str | None,
    label: str | None,
    attributes: Mapping[str, AttributeValue] | None,
    key: str | None,
    flags: RunFlags,
) -> None:
    """Run a pipeline, or resume the run with that id.

    MODULE:PIPELINE names a module or a file, and in it a Pipeline, an Orchestrator, a list of
    WorkflowStep objects, or a function without arguments that returns one: etl:pipeline,
    shop.etl:pipeline, path/to/etl.py:pipeline. The only pipeline of a module needs no name: etl.
    The report goes to standard output.
    """
    if run_id is not None:
        check_run_id(run_id)
    if no_journal and not _is_given("logs"):
        flags = replace(flags, logs="OFF")  # what the project stores otherwise
    if no_journal and (flags.kept_logs or flags.prints):
        option = "--logs" if flags.kept_logs else "--prints"
        raise click.UsageError(
            f"{option} stores what steps say in the journal; name one with --journal, and leave "
            "--no-journal out"
        )
    if no_journal and key is not None:
        raise click.UsageError("--key needs a journal, which knows the other runs")
    journal = None if no_journal else flags.journal
    execute_run(target, journal, run_id, flags, label=label, key=key, attributes=attributes)


def _is_given(name: str) -> bool:
    source = click.get_current_context().get_parameter_source(name)
    return source is ParameterSource.COMMANDLINE


def execute_run(
    target: str,
    journal: str | None,
    run_id: str | None,
    flags: RunFlags,
    stored: RunRecord | None = None,
    from_steps: Sequence[str] | None = None,
    *,
    is_rerun: bool = False,
    dry_run: bool = False,
    label: str | None = None,
    attributes: Mapping[str, AttributeValue] | None = None,
    key: str | None = None,
) -> None:
    """Run a pipeline, write its report, and exit; or say what would run, of the stored run.

    ``target`` is ``MODULE:PIPELINE``. ``journal`` is ``None`` to store nothing, and ``run_id`` for
    a new one. ``stored`` is the run to resume, or to rerun from ``from_steps``; ``None`` means all.
    A rerun in which no step would run makes no run.
    ``label``, ``key`` and ``attributes`` replace those of the pipeline's options.
    """
    check_html(flags.html, flags.journal)
    with stdout_for_results_only(flags.as_json):
        # The module comes before our logging, since it may configure its own.
        loaded, inputs = load(target, flags)
        given: Options = {}
        if label is not None:
            given["label"] = label
        if key is not None:
            given["key"] = key
        if attributes is not None:
            given["attributes"] = attributes
        loaded = loaded._replace(orchestrator=loaded.orchestrator.with_options(**given))
        if stored is not None:
            check_pipeline(stored, loaded)
        rerun = None
        if stored is not None and is_rerun:
            every = [step.name for step in loaded.orchestrator.steps]
            steps = every if from_steps is None else _checked_steps(from_steps, loaded)
            rerun = Rerun(stored.run_id, steps)
        execution = Execution(loaded, inputs, journal, run_id, flags, rerun)
        with logs_on_stderr(flags.log_level, flags.kept_logs, is_asked=flags.logs is not None):
            preview = None
            if stored is not None and (dry_run or rerun is not None):
                preview = asyncio.run(preview_run(execution, flags.journal, stored.run_id))
            is_shown = preview is not None and (dry_run or runs_nothing(preview))
            end = None if is_shown else asyncio.run(execute(execution))
    if end is not None:
        sys.exit(report_end(execution, end))
    assert preview is not None
    write_result(preview.to_json(indent=2) if flags.as_json else str(preview))
    if not dry_run:
        write_note(
            "nothing would run, so there is no new run; choose steps with --from STEP, or all "
            "with --all",
            quiet=flags.quiet,
        )


def load(target: str, flags: RunFlags) -> tuple[LoadedPipeline, Mapping[str, Any]]:
    """Return a pipeline with the options that were given, and the inputs that were."""
    loaded = load_pipeline(target)
    inputs = read_inputs(
        loaded.orchestrator.steps,  # what --target leaves out may still be given its inputs
        file=flags.inputs,
        text=flags.input_json,
        pairs=flags.input_,
    )
    orchestrator = loaded.orchestrator.with_options(journal=None)
    if flags.schedule is not None:
        orchestrator = orchestrator.with_options(schedule=flags.schedule)
    if flags.keep_going:
        orchestrator = orchestrator.with_options(fail_fast=False)
    if flags.allow_missing_steps:
        orchestrator = orchestrator.with_options(allow_missing_steps=True)
    orchestrator = select_targets(orchestrator, flags.targets)
    return loaded._replace(orchestrator=orchestrator), inputs


def check_run_id(run_id: str) -> None:
    """Refuse an id that no run can have, or that commands would read as something else."""
    try:
        check_new_id(run_id)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    if run_id.startswith("-") or run_id == LATEST:
        raise click.UsageError(
            f"--run-id {run_id!r} looks like an option, or like the latest run; choose another one"
        )


# The run to resume.


async def read_run(journal: str, run: str) -> RunRecord:
    async with open_journal(journal) as opened:
        return await find_run(opened, run)


def pipeline_of(
    record: RunRecord, targets: Sequence[str], flags: RunFlags, command: str = "resume"
) -> str:
    """Return the target whose pipeline has the name of the run's."""
    belongs = f"run {record.run_id!r} belongs to pipeline {record.pipeline!r}"
    if not targets:
        words, where = (record.run_id, named_target(record)), journal_named(flags.journal)
        line = command_of(command, *words, journal=where)
        raise click.UsageError(
            f"{belongs}; name it: {escape_controls(line)}, or in ${PIPELINES}, or as "
            "`pipelines` of [tool.asyncflow] in pyproject.toml"
        )
    if len(targets) == 1:
        return targets[0]
    with stdout_for_results_only(flags.as_json):
        names = {load_pipeline(target).orchestrator.name: target for target in targets}
    if record.pipeline not in names:
        raise click.UsageError(
            f"{belongs}, which is none of {', '.join(targets)}"
            f"{did_you_mean(record.pipeline, names)}"
        )
    return names[record.pipeline]


def _checked_steps(from_steps: Sequence[str], loaded: LoadedPipeline) -> Sequence[str]:
    names = [step.name for step in loaded.orchestrator.steps]
    for name in from_steps:
        if name not in names:
            hint = did_you_mean(name, names) or f"; there are {some_of(names)}"
            raise click.UsageError(f"--from names {name!r}, which is no step{hint}")
    return from_steps


def check_pipeline(record: RunRecord, loaded: LoadedPipeline) -> None:
    """Refuse a run of another pipeline."""
    if record.pipeline and record.pipeline != loaded.orchestrator.name:
        raise CommandError(
            f"{loaded.target!r} can't run: run {record.run_id!r} belongs to pipeline "
            f"{record.pipeline!r}, not to {loaded.orchestrator.name!r}; name the module of "
            f"{record.pipeline!r}",
            INVALID,
        )
