"""The commands that show something: ``asyncflow show`` a run, ``asyncflow plan`` a pipeline."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import click
from rich.console import Console
from rich.text import Text

from asyncflow._cli.loader import load_pipeline, select_targets
from asyncflow._cli.logs import step_and_item
from asyncflow._cli.options import (
    LATEST,
    check_html,
    complete_run,
    complete_target,
    find_run,
    html_option,
    journal_named,
    journal_option,
    json_option,
    open_journal,
    require_journal,
    resume_command,
    targets_option,
    usual_times,
)
from asyncflow._cli.output import (
    format_earlier_attempts,
    hanging,
    stdout_console,
    stdout_for_results_only,
    write_html,
    write_lines,
    write_note,
    write_result,
)
from asyncflow._cli.show_run import asked_lines, endured_lines, failure_lines, indented, step_lines
from asyncflow._cli.show_step import more_lines, result_of, step_as_json, step_of, step_parts
from asyncflow._core.history.report import RunReport
from asyncflow._core.history.results import RunStatus
from asyncflow._core.pipeline.signal import type_text
from asyncflow._core.pipeline.step import WorkflowStep, resources_of
from asyncflow._core.run_attributes import attributes_text
from asyncflow._core.text import duration, escape_controls, plural
from asyncflow._runtime.explaining import ActingPolicies
from asyncflow._runtime.orchestrator import Orchestrator
from asyncflow._views.event_text import describe_event, took
from asyncflow._views.next_command import next_commands
from asyncflow._views.preview import local_moment_text
from asyncflow._views.run_view import RunView
from asyncflow._views.slowness import slowness_of
from asyncflow._views.waiting import is_queued, wait_text
from asyncflow.events import StepAttached, StepCalled, StepLogged
from asyncflow.journal import RunRecord, StoredEvent
from asyncflow.journal._read.queries import counts_until
from asyncflow.journal._read.streams import latest_streamed
from asyncflow.live._end import path_lines, verdict_lines
from asyncflow.live._theme import printable, theme_for

# A pipeline.

_POLICIES = [
    *("max_retries", "timeout_ms", "deadline_ms", "map_over", "tolerated_failures"),
    *("keep_outputs", "run_if", "runs_in", "cache_ms", "secret"),
]


@click.command()
@click.argument("target", metavar="MODULE:PIPELINE", shell_complete=complete_target)
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "mermaid", "json"]),
    default="text",
    show_default=True,
    help="The format.",
)
@click.option(
    "--explain",
    "explained",
    metavar="STEP",
    help="Show which policies act on a step instead, and in which order.",
)
@targets_option
def plan(target: str, form: str, explained: str | None, targets: Sequence[str]) -> None:
    """Show the steps of a pipeline in their tiers, and run nothing.

    The steps of a tier may run at the same time.
    """
    with stdout_for_results_only(True):
        orchestrator = select_targets(load_pipeline(target).orchestrator, targets)
    if explained is None:
        _FORMATS[form](orchestrator)
        return
    try:
        acting = asyncio.run(orchestrator._planned().acting_on(explained))
    except ValueError as unknown:
        raise click.UsageError(str(unknown)) from None
    _write_acting(explained, acting)


def _write_acting(step: str, acting: ActingPolicies) -> None:
    lane = "plain" if acting.is_plain else "full"
    lines = [f"Step {escape_controls(step)}: its policies, hook by hook, as they are called"]
    lines += [f"  {hook:<16}{', '.join(names)}" for hook, names in acting.by_hook.items()]
    if not acting.by_hook:
        lines.append("  none: its attempts have a limit and retries, and nothing else")
    lines.append(f"Its attempts are made in the {lane} lane.")
    lines.append(f"Around the whole run: {', '.join(acting.around)}")
    write_result("\n".join(lines))


def _write_text(orchestrator: Orchestrator) -> None:
    steps = {step.name: step for step in orchestrator.steps}
    dependencies, tiers = orchestrator.dependencies, orchestrator.tiers
    name = escape_controls(orchestrator.name)
    lines = [f"Pipeline {name}: {plural(len(steps), 'step')} in {plural(len(tiers), 'tier')}"]
    for number, tier in enumerate(tiers, 1):
        lines.append(f"Tier {number}")
        lines += [
            f"  {_line(steps[each], dependencies[each], orchestrator.resources)}" for each in tier
        ]
    write_result("\n".join(lines))


def _line(step: WorkflowStep, dependencies: tuple[str, ...], resources: Collection[str]) -> str:
    parts = [step.name]
    if step.is_cleanup and not step.depends_on:
        parts.append("after all others")
    elif dependencies:
        parts.append(f"after {', '.join(dependencies)}")
    if taken := resources_of(step, resources):
        parts.append(f"with {', '.join(taken)}")
    if policies := _policies(step):
        parts.append(f"({', '.join(policies)})")
    return escape_controls("  ".join(parts))


def _policies(step: WorkflowStep) -> list[str]:
    texts = []
    if step.signal is not None:
        limit = "" if step.deadline_ms is None else f" for {duration(step.deadline_ms)} at most"
        texts.append(f"waits for a signal of type {type_text(step.signal.type)}{limit}")
    if step.map_over is not None:
        texts.append(f"for each item of {step.map_over}")
    if tolerated := step.tolerated_failures:
        many = f"{tolerated:.3g} of" if isinstance(tolerated, float) else f"{tolerated}"
        texts.append(f"tolerates the failure of {many} items")
    if not step.keep_outputs:
        texts.append("keeps no outputs")
    if step.when is not None:
        texts.append("if its condition is met")
    if step.run_if == "failure":
        texts.append("if something has failed")
    elif step.run_if == "unless_failed":
        texts.append("unless something has failed")
    elif step.run_if == "always":
        texts.append("in any case")
    if step.max_retries > 1:
        texts.append(f"up to {step.max_retries} attempts")
    if step.fallback is not None:
        texts.append("with a fallback")
    if step.runs_in != "loop":
        texts.append(f"in a {step.runs_in}")
    if step.remote is not None:
        texts.append(f"on {step.remote.name}")
    return texts


def _write_mermaid(orchestrator: Orchestrator) -> None:
    write_result(orchestrator.to_mermaid())


def _write_json(orchestrator: Orchestrator) -> None:
    tiers, dependencies = orchestrator.tiers, orchestrator.dependencies
    tier_of = {name: number for number, tier in enumerate(tiers, 1) for name in tier}
    steps = [
        {"name": step.name, "tier": tier_of[step.name], "depends_on": dependencies[step.name]}
        | {"resources": resources_of(step, orchestrator.resources)}
        | {policy: getattr(step, policy) for policy in _POLICIES}
        | {"engine": "local" if step.remote is None else step.remote.name}
        | {"fallback": step.fallback is not None}
        | {"signal": None if step.signal is None else type_text(step.signal.type)}
        for step in orchestrator.steps
    ]
    document = {"pipeline": orchestrator.name, "tiers": tiers, "steps": steps}
    click.echo(json.dumps(document, indent=2))


_FORMATS: dict[str, Callable[[Orchestrator], None]] = {
    "text": _write_text,
    "mermaid": _write_mermaid,
    "json": _write_json,
}


# A run.

_MOST_NOTES = 100
"""How many log records of a step are shown, the latest ones; `asyncflow logs` shows all."""
_TIMELINE_WIDTH = 80
"""How many characters wide a timeline is that does not go to a terminal."""


@dataclass(frozen=True, slots=True)
class _ShownRun:
    record: RunRecord
    report: RunReport
    events: Sequence[StoredEvent]
    view: RunView
    answered: Collection[str] = ()
    """The signals that it waits for and that have come."""
    notes: Sequence[StoredEvent] = ()
    """What its steps have said, if that is shown."""
    usual_run_ms: float | None = None
    """How many milliseconds it usually takes, if that is known."""
    usual_ms: Mapping[str, float] = field(default_factory=dict)
    """The same of its steps, by name."""


@click.command()
@click.argument("run", metavar="[RUN]", default=LATEST, shell_complete=complete_run)
@click.argument("step", metavar="[STEP]", required=False)
@journal_option
@click.option("--timeline", is_flag=True, help="Show when each attempt of each step ran.")
@click.option("--all", "everything", is_flag=True, help="List every step, even of many.")
@click.option("--events", is_flag=True, help="Show all events, one a line.")
@json_option
@html_option
def show(
    run: str,
    step: str | None,
    journal: str,
    timeline: bool,
    everything: bool,
    events: bool,
    as_json: bool,
    html: Path | None,
) -> None:
    """Show a run: its report, and the tracebacks of failed steps; or one of its steps.

    RUN is its id, the start of its id, or "latest", which is the default. STEP is a step, or an
    item of a mapped step, such as 'fetch[3]': what it received, its attempts, output and log. Of
    more than 40 steps, those that ended alike have one line. The exit code is 0 however the run
    ended.
    """
    if as_json and timeline:
        raise click.UsageError("--timeline and --json exclude each other")
    if step is not None and (timeline or events or html is not None):
        raise click.UsageError("--timeline, --events and --html are about the whole run")
    check_html(html, journal)
    require_journal(journal)
    if step is not None:
        asyncio.run(_show_step(journal, run, step, as_json=as_json))
        return
    shown = asyncio.run(_read(journal, run, with_notes=html is not None))
    if html is not None:
        write_html(
            html,
            [each.event for each in shown.events],
            [each.event for each in shown.notes],
            resume=resume_command(shown.record, journal),
            usual_ms=shown.usual_ms,
            usual_run_ms=shown.usual_run_ms,
            orphaned=shown.record.status is RunStatus.ORPHANED,
            until=counts_until(shown.record, time.time()),
        )
        write_note(f"HTML report: {html}")
    if as_json:
        click.echo(_events_as_json(shown) if events else shown.report.to_json(indent=2))
        return
    console = stdout_console()
    if timeline or events:
        write_lines(_head(shown, console), console)
    if timeline:
        _write_timeline(shown)
    if events:
        texts = [f"{at_ms / 1000:12.3f} s  {text}" for at_ms, text in _described(shown)]
        write_lines([line for text in texts for line in hanging(Text(text), 16, console)], console)
    if not (timeline or events):
        _write_run(shown, console, everything=everything)
        if shown.record.status is RunStatus.WAITING:
            resume = resume_command(shown.record, journal)
            for hint in next_commands(shown.report, resume, journal_named(journal), shown.answered):
                write_note(escape_controls(hint))


def _write_run(shown: _ShownRun, console: Console, *, everything: bool) -> None:
    view = shown.view
    theme, has_died = theme_for(console.encoding), shown.record.status is RunStatus.ORPHANED
    steps = step_lines(
        [*view.steps.values()],
        console,
        theme,
        _now_of(shown),
        has_died=has_died,
        is_grouped=not everything,
    )
    lines = [*_head(shown, console), Text(""), *steps, *failure_lines(view, console, theme)]
    lines += [Text(""), *asked_lines(view, console, shown.answered)] if view.waiting else []
    lines += endured_lines(view, console)
    if earlier := format_earlier_attempts(shown.report):
        lines += [Text(""), *indented(earlier.splitlines(), console)]
    lines.append(Text(""))
    if view.stop_reason is not None and view.status is not RunStatus.PASSED:
        lines += indented([f"Stopped: {printable(view.stop_reason, theme.encoding)}"], console)
    now_ms = _now_of(shown)
    lines += path_lines(view, view.critical_path(now_ms), console.width, theme)
    slower = slowness_of(view, shown.usual_run_ms, shown.usual_ms)
    lines += verdict_lines(
        view,
        console.width,
        theme,
        now_ms=now_ms,
        has_died=has_died,
        slower=slower,
        usual_ms=shown.usual_run_ms,
    )
    write_lines(lines, console)


async def _show_step(journal: str, run: str, text: str, *, as_json: bool) -> None:
    shown = await _read(journal, run, with_notes=False)
    step, item = step_and_item(text, shown.report.keys())
    assert step is not None
    result = result_of(shown.report, step, item)
    if result is None:
        raise click.UsageError(escape_controls(f"the report has no item {text!r}"))
    if as_json:
        click.echo(step_as_json(shown.report, step, item))
        return
    async with open_journal(journal) as opened:
        run_id, kinds = shown.record.run_id, (StepLogged, StepAttached)
        notes = await opened.notes(
            run_id, kinds=kinds, step=step, item=item, limit=_MOST_NOTES, newest=True
        )
        calls = await opened.notes(run_id, kinds=[StepCalled], step=step, item=item)
    view, console = shown.view, stdout_console()
    viewed = step_of(view, step, item)
    has_died = shown.record.status is RunStatus.ORPHANED
    theme, now_ms = theme_for(console.encoding), _now_of(shown)
    lines = [*_head(shown, console), Text("")]
    lines += step_lines([viewed], console, theme, now_ms, has_died=has_died)
    parts = step_parts(result, view, step, notes, calls, console)
    lines += [*parts, *more_lines(result, view, step, journal_named(journal), console)]
    write_lines(lines, console)


async def _read(journal: str, run: str, *, with_notes: bool) -> _ShownRun:
    async with open_journal(journal) as opened:
        record = await find_run(opened, run)
        report = await opened.report(record.run_id)
        events = await opened.events(record.run_id)
        view = RunView(each.event for each in events)
        answered: Collection[str] = ()
        if record.status is RunStatus.WAITING:
            answered = (await opened.summaries([record]))[record.run_id].answered
        notes: list[StoredEvent] = []
        if with_notes:
            notes += await opened.notes(record.run_id)
            notes += await latest_streamed(opened, record.run_id)
        usual = await usual_times(opened, record.pipeline)
        return _ShownRun(record, report, events, view, answered, notes, *usual)


def _head(shown: _ShownRun, console: Console) -> list[Text]:
    record, view = shown.record, shown.view
    parts = [f"Run {escape_controls(record.run_id)}"]
    if record.label:
        parts.append(f" ({escape_controls(record.label)})")
    if record.attributes:
        parts.append(f" [{escape_controls(attributes_text(record.attributes))}]")
    if record.pipeline:
        parts.append(f" of {escape_controls(record.pipeline)}")
    if record.key:
        parts.append(f" with key {escape_controls(record.key)}")
    if record.enqueued_at is not None:
        parts.append(f", enqueued {local_moment_text(record.enqueued_at)}")
    if record.waits_for is not None and is_queued(record.waits_for):
        parts.append(f", waits {wait_text(record.waits_for, time.time())}")
    elif view.has_started:
        parts.append(f", started {local_moment_text(record.started_at)}")
    if record.rerun_of:
        parts.append(f", a rerun of run {escape_controls(record.rerun_of)}")
    if record.parent:
        step, parent = escape_controls(record.parent_step), escape_controls(record.parent)
        parts.append(f", started by step {step} of run {parent}")
    if resumed := view.resumptions:
        parts.append(f", resumed {plural(resumed, 'time')}")
        ran_ms = _now_of(shown)
        spent = took(ran_ms, ran_ms + view.paused_ms)
        verb = "so far" if view.is_running else "took"
        parts.append(f", {verb} {spent}")
        if " of " in spent:
            parts.append(f", paused for {duration(view.paused_ms)}")
    if record.status is RunStatus.ORPHANED:
        parts.append(", orphaned: not finished, and no process runs it")
    return hanging(Text("".join(parts)), 4, console)


def _write_timeline(shown: _ShownRun) -> None:
    from asyncflow.live._timeline import timeline  # few need it

    view, console = shown.view, stdout_console()
    width = console.width if console.is_terminal else _TIMELINE_WIDTH
    drawn = timeline(
        view,
        width=width,
        now_ms=_now_of(shown),
        encoding=console.encoding,
        is_orphaned=shown.record.status is RunStatus.ORPHANED,
        now_s=time.time(),
    )
    console.print(drawn, soft_wrap=True)


def _now_of(shown: _ShownRun) -> float:
    return shown.view.ms_at(counts_until(shown.record, time.time()))


def _described(shown: _ShownRun) -> list[tuple[float, str]]:
    """Return each event as its time, in milliseconds since the run started, and its text."""
    lines, view = [], RunView()
    for each in shown.events:
        event = each.event
        view.apply(event)
        step = view.steps.get(event.step or "")
        lines.append(
            (event.at_ms, describe_event(event, None if step is None else step.max_retries))
        )
    return lines


def _events_as_json(shown: _ShownRun) -> str:
    document = [
        {
            "position": each.position,
            "at_ms": at_ms,
            "event": type(each.event).__name__,
            **{name: getattr(each.event, name, None) for name in ("step", "item", "attempt")},
            "text": text,
        }
        for each, (at_ms, text) in zip(shown.events, _described(shown), strict=True)
    ]
    return json.dumps(document, indent=2)
