"""The commands that run something: ``asyncflow run`` and ``asyncflow resume``."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, TextIO, TypedDict, TypeVar, Unpack

import click

from asyncflow._asked import check_new_id
from asyncflow._cli_execution import Execution, execute, tell_end
from asyncflow._cli_inputs import read_inputs
from asyncflow._cli_journal import LATEST, find_run, must_exist, opened
from asyncflow._cli_load import Loaded, load
from asyncflow._cli_options import (
    PIPELINES,
    TargetType,
    html_option,
    journal_option,
    json_option,
    run_argument,
    traceback_option,
)
from asyncflow._cli_output import logs_on_stderr, only_results_on_stdout, page_writer
from asyncflow._errors import nearest
from asyncflow._text import in_one_line
from asyncflow.journal import RunRecord

__all__ = ["resume", "run"]

F = TypeVar("F", bound=Callable[..., Any])


def _text_of(file: TextIO) -> str:
    try:
        return file.read()
    except UnicodeDecodeError as error:
        file.close()
        raise click.BadParameter(f"it is not encoded in UTF-8 (at byte {error.start})") from None


class Options(TypedDict):
    """The options that both have."""

    input_: Sequence[str]
    input_json: str | None
    inputs: str | None
    journal: str
    schedule: Literal["tiers", "ready"] | None
    keep_going: bool
    wait: bool
    html: Path | None
    as_json: bool
    quiet: bool
    all_frames: bool


_OPTIONS: list[Callable[[Any], Any]] = [
    click.option(
        "--input",
        "input_",
        metavar="NAME=VALUE",
        multiple=True,
        help="An input, as text of the type that the actions ask for.",
    ),
    click.option("--input-json", metavar="JSON", help="Inputs as a JSON object: '{\"days\": 3}'."),
    click.option(
        "--inputs",
        metavar="FILE",
        type=click.File(encoding="utf-8"),
        callback=lambda ctx, param, file: None if file is None else _text_of(file),
        help="A file with a JSON object of inputs; - for the standard input.",
    ),
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
    click.option(
        "--wait", is_flag=True, help="Wait if somebody else runs it, instead of refusing."
    ),
    html_option,
    json_option,
    click.option("--quiet", is_flag=True, help="Show no progress and no hints."),
    traceback_option,
]


def _both(command: F) -> F:
    """Give a command the options that both have."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@click.command()
@click.argument("target", metavar="MODULE:PIPELINE", type=TargetType())
@_both
@click.option("--no-journal", is_flag=True, help="Keep nothing of the run.")
@click.option("--run-id", metavar="NAME", help="Names the run; by default a name is made.")
@click.option(
    "--target",
    "targets",
    metavar="STEP",
    multiple=True,
    help="Run only this step and what it depends on; may be given several times.",
)
def run(
    target: str,
    no_journal: bool,
    run_id: str | None,
    targets: Sequence[str],
    **options: Unpack[Options],
) -> None:
    """Run a pipeline, or go on with a run of that name.

    MODULE:PIPELINE names a module or a file, and in it a Pipeline, an Orchestrator, a list of
    WorkflowStep objects, or a function without arguments that returns one: etl:pipeline,
    shop.etl:pipeline, path/to/etl.py:pipeline. The report is written to the standard output.
    """
    if run_id is not None:
        _check_run_id(run_id)
    _run(target, None if no_journal else options["journal"], run_id, targets, options)


@click.command(short_help="Go on with a run that has not passed.")
@run_argument
@click.argument(
    "targets", metavar="[MODULE:PIPELINE]", nargs=-1, type=TargetType(), envvar=PIPELINES
)
@_both
def resume(run: str, targets: Sequence[str], **options: Unpack[Options]) -> None:
    """Go on with a run that has failed, was stopped, or whose process has died.

    RUN is its id, or how that begins, or "latest". What has succeeded does not run again. Inputs
    are those that it was started with; only secret ones must be given again.

    A journal keeps nothing that could be executed, so it must be said which pipeline that is:
    MODULE:PIPELINE as for `run`, or a list of them in the variable ASYNCFLOW_PIPELINES, of which
    the one is taken that has the name of the run's pipeline.
    """
    must_exist(options["journal"])
    record = asyncio.run(_record_of(options["journal"], run))
    target = _pipeline_of(record, targets, options)
    _run(target, options["journal"], record.run_id, (), options)


def _run(
    target: str,
    journal: str | None,
    run_id: str | None,
    targets: Sequence[str],
    options: Options,
) -> None:
    if options["html"] is not None:
        page_writer()  # it may be missing, which should show now
    with only_results_on_stdout(options["as_json"]):
        # First the module, so that what it may say of logging counts.
        loaded = _varied(load(target, all_frames=options["all_frames"]), targets, options)
        inputs = read_inputs(
            loaded.orchestrator.steps,
            file=options["inputs"],
            text=options["input_json"],
            pairs=options["input_"],
        )
        execution = Execution(
            loaded=loaded,
            inputs=inputs,
            journal=journal,
            run_id=run_id,
            wait=options["wait"],
            html=options["html"],
            as_json=options["as_json"],
            quiet=options["quiet"],
            all_frames=options["all_frames"],
        )
        with logs_on_stderr():
            end = asyncio.run(execute(execution))
    sys.exit(tell_end(execution, end))


def _varied(loaded: Loaded, targets: Sequence[str], options: Options) -> Loaded:
    """Return the pipeline with the options that were given; the others are its own."""
    orchestrator = loaded.orchestrator.replace(journal=None)
    if options["schedule"] is not None:
        orchestrator = orchestrator.replace(schedule=options["schedule"])
    if options["keep_going"]:
        orchestrator = orchestrator.replace(fail_fast=False)
    if targets:
        try:
            orchestrator = orchestrator.replace(targets=targets)
        except ValueError as error:
            raise click.UsageError(str(error)) from error
    return loaded._replace(orchestrator=orchestrator)


def _check_run_id(run_id: str) -> None:
    try:
        check_new_id(run_id)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    if run_id.startswith("-") or run_id == LATEST:
        raise click.UsageError(
            f"--run-id {run_id!r} could not be told from an option, or from the latest run; choose "
            "another one"
        )


async def _record_of(journal: str, run: str) -> RunRecord:
    async with opened(journal) as found:
        return await find_run(found, run)


def _pipeline_of(record: RunRecord, targets: Sequence[str], options: Options) -> str:
    """Return which pipeline a run is to go on with."""
    if not targets:
        like = record.pipeline if ":" in record.pipeline else "MODULE:PIPELINE"
        raise click.UsageError(
            f"run {record.run_id!r} is one of pipeline {record.pipeline!r}; say where that is: "
            f"{in_one_line(f'asyncflow resume {record.run_id} {like}')}, or name it in ${PIPELINES}"
        )
    if len(targets) == 1:
        return targets[0]
    with only_results_on_stdout(options["as_json"]):
        names = {load(target).orchestrator.name: target for target in targets}
    if record.pipeline not in names:
        raise click.UsageError(
            f"run {record.run_id!r} is one of pipeline {record.pipeline!r}, which is none of "
            f"{', '.join(targets)}{nearest(record.pipeline, names)}"
        )
    return names[record.pipeline]
