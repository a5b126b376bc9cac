"""The commands that run something: ``asyncflow run`` and ``asyncflow resume``."""

from __future__ import annotations

import asyncio
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TextIO, TypedDict, TypeVar, Unpack

import click

from asyncflow._cli.execution import Execution, execute, tell_end
from asyncflow._cli.inputs import read_inputs
from asyncflow._cli.loader import Loaded, load
from asyncflow._cli.options import (
    LATEST,
    PIPELINES,
    TargetType,
    check_is_no_journal,
    find_run,
    how_to_name,
    html_option,
    journal_option,
    json_option,
    must_exist,
    opened,
    run_argument,
    traceback_option,
)
from asyncflow._cli.output import (
    INVALID,
    CommandError,
    logs_on_stderr,
    only_results_on_stdout,
    page_writer,
)
from asyncflow._core.errors import did_you_mean, escape_controls
from asyncflow._core.replay import latest_steps
from asyncflow.journal import RunRecord
from asyncflow.journal._queries import check_new_id

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
    targets: Sequence[str]
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
        "--target",
        "targets",
        metavar="STEP",
        multiple=True,
        help="Run only this step and what it depends on; may be given several times.",
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
def run(target: str, no_journal: bool, run_id: str | None, **options: Unpack[Options]) -> None:
    """Run a pipeline, or go on with a run of that name.

    MODULE:PIPELINE names a module or a file, and in it a Pipeline, an Orchestrator, a list of
    WorkflowStep objects, or a function without arguments that returns one: etl:pipeline,
    shop.etl:pipeline, path/to/etl.py:pipeline. The report is written to the standard output.
    """
    if run_id is not None:
        _check_run_id(run_id)
    _run(target, None if no_journal else options["journal"], run_id, options)


@click.command(short_help="Go on with a run that has not passed.")
@run_argument
@click.argument(
    "pipelines", metavar="[MODULE:PIPELINE]", nargs=-1, type=TargetType(), envvar=PIPELINES
)
@_both
def resume(run: str, pipelines: Sequence[str], **options: Unpack[Options]) -> None:
    """Go on with a run that has failed, was stopped, or whose process has died.

    RUN is its id, or how that begins, or "latest". What has succeeded does not run again. Inputs
    are those that it was started with; only secret ones must be given again.

    A journal keeps nothing that could be executed, so it must be said which pipeline that is:
    MODULE:PIPELINE as for `run`, or a list of them in the variable ASYNCFLOW_PIPELINES, of which
    the one is taken that has the name of the run's pipeline. If that has steps which the run is
    without, because of targets or since they are newer, --target must say what is to be run.
    """
    must_exist(options["journal"])
    kept = asyncio.run(_kept(options["journal"], run))
    target = _pipeline_of(kept.record, pipelines, options)
    _run(target, options["journal"], kept.record.run_id, options, kept)


def _run(
    target: str,
    journal: str | None,
    run_id: str | None,
    options: Options,
    kept: _Kept | None = None,
) -> None:
    check_is_no_journal(options["html"], options["journal"])
    if options["html"] is not None:
        page_writer()  # it may be missing, which should show now
    with only_results_on_stdout(options["as_json"]):
        # First the module, so that what it may say of logging counts.
        loaded = _varied(load(target, all_frames=options["all_frames"]), options)
        if kept is not None:
            _check_is_of(kept, loaded, options["targets"], options["journal"])
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
            repeated=_repeated(options),
        )
        with logs_on_stderr():
            end = asyncio.run(execute(execution))
    sys.exit(tell_end(execution, end))


def _varied(loaded: Loaded, options: Options) -> Loaded:
    """Return the pipeline with the options that were given; the others are its own."""
    orchestrator = loaded.orchestrator.replace(journal=None)
    if options["schedule"] is not None:
        orchestrator = orchestrator.replace(schedule=options["schedule"])
    if options["keep_going"]:
        orchestrator = orchestrator.replace(fail_fast=False)
    if options["targets"]:
        try:
            orchestrator = orchestrator.replace(targets=options["targets"])
        except ValueError as error:
            raise click.UsageError(str(error)) from error
    return loaded._replace(orchestrator=orchestrator)


def _repeated(options: Options) -> str:
    """Return the options that whoever goes on with the run has to give again."""
    given = [f" --target {shlex.quote(step)}" for step in options["targets"]]
    if options["schedule"] is not None:
        given.append(f" --schedule {options['schedule']}")
    if options["keep_going"]:
        given.append(" --keep-going")
    return "".join(given)


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


# The run that is to go on.


class _Kept(NamedTuple):
    """What a journal has of a run that is to go on."""

    record: RunRecord
    dependencies: Mapping[str, tuple[str, ...]]
    """The steps with which it began, or went on the last time; none if it has not begun."""


async def _kept(journal: str, run: str) -> _Kept:
    async with opened(journal) as found:
        record = await find_run(found, run)
        events = [each.event for each in await found.events(record.run_id)]
    return _Kept(record, latest_steps(events))


def _pipeline_of(record: RunRecord, targets: Sequence[str], options: Options) -> str:
    """Return which pipeline a run is to go on with."""
    if not targets:
        like = record.pipeline if ":" in record.pipeline else "MODULE:PIPELINE"
        command = f"asyncflow resume {record.run_id} {like}{how_to_name(options['journal'])}"
        raise click.UsageError(
            f"run {record.run_id!r} is one of pipeline {record.pipeline!r}; say where that is: "
            f"{escape_controls(command)}, or name it in ${PIPELINES}"
        )
    if len(targets) == 1:
        return targets[0]
    with only_results_on_stdout(options["as_json"]):
        names = {load(target).orchestrator.name: target for target in targets}
    if record.pipeline not in names:
        raise click.UsageError(
            f"run {record.run_id!r} is one of pipeline {record.pipeline!r}, which is none of "
            f"{', '.join(targets)}{did_you_mean(record.pipeline, names)}"
        )
    return names[record.pipeline]


def _check_is_of(kept: _Kept, loaded: Loaded, targets: Sequence[str], journal: str) -> None:
    """Refuse another pipeline, and steps that the run is without, unless somebody asks for them.

    Nobody can tell a step that targets have left out on purpose from one that is newer.
    """
    record, orchestrator = kept.record, loaded.orchestrator
    if record.pipeline and record.pipeline != orchestrator.name:
        raise CommandError(
            f"{loaded.target!r} can't run: run {record.run_id!r} is one of pipeline "
            f"{record.pipeline!r}, and not of {orchestrator.name!r}; say where "
            f"{record.pipeline!r} is",
            INVALID,
        )
    if targets or not kept.dependencies:
        return
    names = [step.name for step in orchestrator.steps]
    others = [repr(name) for name in names if name not in kept.dependencies]
    if others:
        needed = {name for each in kept.dependencies.values() for name in each}
        last = [name for name in names if name in kept.dependencies and name not in needed]
        some = [shlex.quote(name) for name in last] if len(last) <= 4 else []
        such_as = " ".join(f"--target {name}" for name in some or ["STEP"])
        run_id, target = shlex.quote(record.run_id), shlex.quote(loaded.target)
        raise click.UsageError(
            escape_controls(
                f"run {record.run_id!r} is without {_listed('step', others)} of {loaded.target}, "
                f"left out by targets or newer; say what is to be run, as with {such_as}, or run "
                f"all of it: asyncflow run {target} --run-id {run_id}{how_to_name(journal)}"
            )
        )


def _listed(noun: str, names: Sequence[str]) -> str:
    if len(names) == 1:
        return f"{noun} {names[0]}"
    some = [*names[:3], f"{len(names) - 3} more"] if len(names) > 4 else names
    return f"{noun}s {', '.join(some[:-1])} and {some[-1]}"
