"""The command that shows one run of a journal: ``asyncflow show``.

The command that shows a pipeline without running anything of it: ``asyncflow plan``.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import click

from asyncflow._cli.loader import load
from asyncflow._cli.options import (
    TargetType,
    check_is_no_journal,
    find_run,
    html_option,
    journal_option,
    json_option,
    must_exist,
    opened,
    run_argument,
    traceback_option,
)
from asyncflow._cli.output import (
    only_results_on_stdout,
    page_writer,
    report_lines,
    say,
    say_json,
    stdout_console,
    tell,
    tracebacks,
    write_html,
)
from asyncflow._core.errors import escape_controls
from asyncflow._core.report import RunReport
from asyncflow._core.step import WorkflowStep
from asyncflow._runtime.orchestrator import Orchestrator
from asyncflow._views.event_text import told
from asyncflow._views.run_view import RunView
from asyncflow.events import RunStarted
from asyncflow.journal import RunRecord, StoredEvent

__all__ = [
    "plan",
    "show",
]


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
    name = escape_controls(orchestrator.name)
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
    return escape_controls("  ".join([*parts, *_policies(step)]))


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


_NARROW = 80
"""How wide a timeline is that no terminal shows, in characters."""


@dataclass(frozen=True, slots=True)
class _Kept:
    """What a journal has of a run."""

    record: RunRecord
    report: RunReport
    events: Sequence[StoredEvent]


@click.command(short_help="Show a run: its report and its tracebacks.")
@run_argument
@journal_option
@click.option("--timeline", is_flag=True, help="Show when each attempt of each step ran.")
@click.option("--events", is_flag=True, help="Show all that has happened, a line each.")
@json_option
@html_option
@traceback_option
def show(
    run: str,
    journal: str,
    timeline: bool,
    events: bool,
    as_json: bool,
    html: Path | None,
    all_frames: bool,
) -> None:
    """Show a run: its report, and the tracebacks of what has failed.

    RUN is its id, or how that begins, or "latest". The exit code is 0 however the run has ended.
    """
    if as_json and timeline:
        raise click.UsageError("--timeline is for people; leave it or --json out")
    check_is_no_journal(html, journal)
    if html is not None:
        page_writer()  # it may be missing, which should show now
    must_exist(journal)
    kept = asyncio.run(_read(journal, run))
    if html is not None:
        write_html(html, [each.event for each in kept.events])
        tell(f"HTML report: {html}")
    if as_json:
        say_json(_events_as_json(kept) if events else kept.report.to_json(indent=2))
        return
    _say_head(kept)
    if timeline:
        _say_timeline(kept)
    if events:
        say("\n".join(_event_lines(kept)))
    if not (timeline or events):
        _say_report(kept.report, all_frames)


async def _read(journal: str, run: str) -> _Kept:
    async with opened(journal) as found:
        record = await find_run(found, run)
        report = await found.report(record.run_id)
        return _Kept(record, report, await found.events(record.run_id))


def _say_head(kept: _Kept) -> None:
    record, view = kept.record, RunView(each.event for each in kept.events)
    parts = [f"Run {escape_controls(record.run_id)}"]
    if record.pipeline:
        parts.append(f" of {escape_controls(record.pipeline)}")
    parts.append(f", began {datetime.fromtimestamp(record.started_at):%Y-%m-%d %H:%M:%S}")
    resumed = len(view.stretches) - 1
    if resumed:
        parts.append(f", resumed {resumed} time{'' if resumed == 1 else 's'}")
    if record.orphaned:
        parts.append(", left by its process before its end")
    say("".join(parts))


def _say_report(report: RunReport, all_frames: bool) -> None:
    say(report_lines(report))
    trace = tracebacks(report, all_frames=all_frames)
    if trace:
        say(f"\n{trace}")


def _say_timeline(kept: _Kept) -> None:
    from asyncflow.live._timeline import timeline  # few need it

    view, console = RunView(each.event for each in kept.events), stdout_console()
    width = console.width if console.is_terminal else _NARROW
    drawn = timeline(view, width=width, now_ms=_now_ms(kept, view), encoding=console.encoding)
    console.print(drawn, soft_wrap=True)


def _now_ms(kept: _Kept, view: RunView) -> float:
    """Return up to when the run has come; nobody knows how far an orphan came."""
    return view.at_ms if kept.record.orphaned else view.ms_at(time.time())


def _event_lines(kept: _Kept) -> list[str]:
    return [f"{at_ms / 1000:12.3f} s  {text}" for at_ms, text in _told(kept)]


def _told(kept: _Kept) -> list[tuple[float, str]]:
    """Return for each event its time, in milliseconds since the run began, and what it says."""
    lines, view = [], RunView()
    for each in kept.events:
        event = each.event
        view.apply(event)
        at_ms = 0.0 if isinstance(event, RunStarted) else event.at_ms
        step = view.steps.get(getattr(event, "step", ""))
        lines.append((at_ms, told(event, None if step is None else step.max_retries)))
    return lines


def _events_as_json(kept: _Kept) -> str:
    document = [
        {
            "position": each.position,
            "at_ms": at_ms,
            "event": type(each.event).__name__,
            "step": getattr(each.event, "step", None),
            "item": getattr(each.event, "item", None),
            "attempt": getattr(each.event, "attempt", None),
            "text": text,
        }
        for each, (at_ms, text) in zip(kept.events, _told(kept), strict=True)
    ]
    return json.dumps(document, indent=2)
