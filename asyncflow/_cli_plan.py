"""The command that shows a pipeline without running anything of it: ``asyncflow plan``."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

import click

from asyncflow._cli_load import load
from asyncflow._cli_options import TargetType, traceback_option
from asyncflow._cli_output import only_results_on_stdout, say, say_json
from asyncflow._core.errors import in_one_line
from asyncflow._core.step import WorkflowStep
from asyncflow._runtime.orchestrator import Orchestrator

__all__ = ["plan"]


@click.command()
@click.argument("target", metavar="MODULE:PIPELINE", type=TargetType())
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "mermaid", "svg", "json"]),
    default="text",
    show_default=True,
    help="How it is shown.",
)
@click.option(
    "--target",
    "targets",
    metavar="STEP",
    multiple=True,
    help="Show only this step and what it depends on; may be given several times.",
)
@traceback_option
def plan(target: str, form: str, targets: Sequence[str], all_frames: bool) -> None:
    """Show the steps of a pipeline in their tiers. Nothing is run.

    A tier holds the steps that may run at the same time.
    """
    with only_results_on_stdout(True):
        orchestrator = load(target, all_frames=all_frames).orchestrator
    if targets:
        try:
            orchestrator = orchestrator.replace(targets=targets)
        except ValueError as error:
            raise click.UsageError(str(error)) from error
    _FORMS[form](orchestrator)


def _as_text(orchestrator: Orchestrator) -> None:
    steps = {step.name: step for step in orchestrator.steps}
    dependencies, tiers = orchestrator.dependencies, orchestrator.tiers
    name = in_one_line(orchestrator.name)
    lines = [f"Pipeline {name}: {_count(len(steps), 'step')} in {_count(len(tiers), 'tier')}"]
    for number, tier in enumerate(tiers, 1):
        lines.append(f"Tier {number}")
        lines += [f"  {_line(steps[each], dependencies[each])}" for each in tier]
    say("\n".join(lines))


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _line(step: WorkflowStep, dependencies: tuple[str, ...]) -> str:
    parts = [step.name]
    if step.run_if != "success" and not step.depends_on:
        parts.append("after all others")
    elif dependencies:
        parts.append(f"after {', '.join(dependencies)}")
    return in_one_line("  ".join([*parts, *_policies(step)]))


def _policies(step: WorkflowStep) -> list[str]:
    told = []
    if step.map_over is not None:
        told.append(f"for each item of {step.map_over}")
    if step.when is not None:
        told.append("if its condition is met")
    if step.run_if == "failure":
        told.append("if something has failed")
    elif step.run_if == "always":
        told.append("in any case")
    if step.max_retries > 1:
        told.append(f"up to {step.max_retries} attempts")
    if step.runs_in != "loop":
        told.append(f"in a {step.runs_in}")
    return [f"({', '.join(told)})"] if told else []


def _as_mermaid(orchestrator: Orchestrator) -> None:
    say(orchestrator.to_mermaid())


def _as_json(orchestrator: Orchestrator) -> None:
    tiers, dependencies = orchestrator.tiers, orchestrator.dependencies
    tier_of = {name: number for number, tier in enumerate(tiers, 1) for name in tier}
    steps = [
        {
            "name": step.name,
            "tier": tier_of[step.name],
            "depends_on": dependencies[step.name],
            "max_retries": step.max_retries,
            "timeout_ms": step.timeout_ms,
            "deadline_ms": step.deadline_ms,
            "map_over": step.map_over,
            "run_if": step.run_if,
            "runs_in": step.runs_in,
            "secret": step.secret,
        }
        for step in orchestrator.steps
    ]
    document = {"pipeline": orchestrator.name, "tiers": tiers, "steps": steps}
    say_json(json.dumps(document, indent=2))


def _as_svg(orchestrator: Orchestrator) -> None:
    from asyncflow._views.dag import to_svg  # it takes a while to import

    click.echo(to_svg(orchestrator.name, orchestrator.tiers, orchestrator.dependencies))


_FORMS: dict[str, Callable[[Orchestrator], None]] = {
    "text": _as_text,
    "mermaid": _as_mermaid,
    "svg": _as_svg,
    "json": _as_json,
}
