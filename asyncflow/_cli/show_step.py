"""What ``asyncflow show RUN STEP`` says of one step, or of an item of a mapped one."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

from rich.console import Console
from rich.text import Text

from asyncflow._cli.output import hanging
from asyncflow._cli.show_run import indented
from asyncflow._core.analysis.failures import item_errors
from asyncflow._core.history.report import RunReport
from asyncflow._core.history.results import Attempt, StepResult, attempt_end
from asyncflow._core.history.step_view import AttemptView, StepView
from asyncflow._core.history.value_preview import preview
from asyncflow._core.text import describe_error, duration, escape_controls
from asyncflow._core.tracebacks import format_error
from asyncflow._views.event_text import place_text
from asyncflow._views.item_errors import traceback_lines
from asyncflow._views.next_command import command_of
from asyncflow._views.notes import level_name, log_text
from asyncflow._views.preview import local_moment_text
from asyncflow._views.received import Received, received
from asyncflow._views.run_view import RunView
from asyncflow.events import StepAttached, StepCalled, StepLogged
from asyncflow.journal import StoredEvent

_LONGEST = 2_000
"""How many bytes of the output are shown; `--json` has all of it."""
_MOST_ATTEMPTS, _MOST_CALLS, _MOST_WORKERS = 20, 100, 4


def step_of(view: RunView, step: str, item: int | None) -> StepView:
    """Return a step, or an item of it, also one that only an earlier process had."""
    of_step = view.steps[step]
    if item is None:
        return of_step
    return (of_step.items or {}).get(item) or of_step.former_items[item]


def result_of(report: RunReport, step: str, item: int | None) -> StepResult | None:
    """Return the result of a step, or of an item of it, that the report has."""
    if item is None:
        return report[step]
    found = (each for each in report[step].items or () if each.item == item)
    return next(found, None)


def step_as_json(report: RunReport, step: str, item: int | None) -> str:
    """Return the result of a step, or of an item, as the JSON of the report has it."""
    results = json.loads(report.to_json())["results"]
    found = next(each for each in results if each["step_name"] == step)
    if item is not None:
        found = next(each for each in found["items"] if each["item"] == item)
    return json.dumps(found, indent=2)


def step_parts(
    result: StepResult,
    view: RunView,
    step: str,
    notes: Sequence[StoredEvent],
    calls: Sequence[StoredEvent],
    console: Console,
) -> Iterator[Text]:
    """Yield all that is known of a step: what it received, attempts, calls, output and log."""
    viewed = step_of(view, step, result.item)
    taken = received(view, view.steps[step], result.item) or ()
    running = [each for each in viewed.attempts if each.ended_ms is None and each.began]
    parts = {
        "Received": [(line, 2) for line in map(_received_line, taken)],
        **_attempts_by_process(result.history, len(view.segments), running),
        "Calls": list(_call_lines([each.event for each in calls])),
        "Output": [(line, 0) for line in _output_lines(result)],
        "Log": [_note_line(view, each.event) for each in notes],
    }
    if description := view.steps[step].description:
        yield from hanging(Text("Asked"), 2, console)
        for line in description.splitlines():
            yield from hanging(Text(f"  {escape_controls(line)}"), 2, console)
    if (answer := view.steps[step].answer) is not None:
        sent_at = f", {local_moment_text(answer.sent_at)}" if answer.sent_at else ""
        by = f" by {escape_controls(answer.sent_by)}" if answer.sent_by else ""
        yield from hanging(Text(f"Answered{by}{sent_at}"), 2, console)
        for line in answer.note.splitlines():
            yield from hanging(Text(f"  {escape_controls(line)}"), 2, console)
    for place in _places(view, viewed):
        yield from hanging(Text(escape_controls(place)), 2, console)
    for title, of_part in parts.items():
        if of_part:
            yield Text(title)
        for line, indent in of_part:
            yield from hanging(Text(f"  {line}"), 2 + indent, console)


def _places(view: RunView, step: StepView) -> Iterator[str]:
    """Yield where a step, or an item, ran last: in a process of the run, or on an engine."""
    if process := view.process_of(step):
        yield f"Ran in process {process}"
    if engine := view.engine_of(step):
        workers = view.workers_of(step)
        more = f" and {len(workers) - _MOST_WORKERS} more" if workers[_MOST_WORKERS:] else ""
        named = f", {'workers' if len(workers) > 1 else 'worker'} " if workers else ""
        yield f"Ran on {engine}{named}{', '.join(workers[:_MOST_WORKERS])}{more}"


def _received_line(each: Received) -> str:
    origin = {
        "step": f"the output of {each.step}",
        "item": f"{_which(each)} of the output of {each.step}",
        "input": "an input",
        "input item": f"{_which(each)} of the input {each.step}",
        "default": "its default",
        "all": "the outputs of all dependencies",
    }[each.source]
    value = "" if each.value is None else f": {each.value.text}{'…' if each.value.cut else ''}"
    return escape_controls(f"{each.parameter} is {origin}{value}")


def _which(each: Received) -> str:
    return "an item" if each.item is None else f"item {each.item}"


def _attempts_by_process(
    history: Sequence[Attempt], latest: int, running: Sequence[AttemptView]
) -> dict[str, list[tuple[str, int]]]:
    """Return the lines of the last attempts by the process: a step may count anew in one."""
    attempts = history[-_MOST_ATTEMPTS:]
    lines = iter([*_attempt_lines(attempts)])
    parts: dict[str, list[tuple[str, int]]] = {}
    for attempt in attempts:
        title = "Attempts"
        if attempt.segment < latest:
            which = f", in process {attempt.segment} of {latest}" if latest > 2 else ""
            title = f"Attempts before the run was resumed{which}"
        parts.setdefault(title, []).append(next(lines))
    if len(attempts) < len(history):
        next(iter(parts.values())).insert(0, (f"the last {len(attempts)} of {len(history):,}", 0))
    for each in running:
        on = f"  on {place_text(each.engine, each.worker)}" if each.engine else ""
        line = f"attempt {each.number}  running  at {duration(each.started_ms)}{on}"
        parts.setdefault("Attempts", []).append((escape_controls(line), 2))
    return parts


def _attempt_lines(attempts: Sequence[Attempt]) -> Iterator[tuple[str, int]]:
    """Yield a line for each attempt, and where its error begins."""
    cells = [
        (
            f"{'' if each.item is None else f'[{each.item}] '}attempt {each.number}",
            attempt_end(each),
            duration(each.duration_ms),
            f"at {duration(each.started_ms)}",
        )
        for each in attempts
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for (number, end, lasted, at), each in zip(cells, attempts, strict=True):
        facts = (
            f"{number:<{widths[0]}}  {end:<{widths[1]}}  {lasted:>{widths[2]}}  {at:<{widths[3]}}"
        )
        on = f"on {place_text(each.engine, each.worker)}" if each.engine else ""
        error = "" if each.error is None else describe_error(each.error)
        said = ": ".join(filter(None, [on, error]))
        yield escape_controls(f"{facts}  {said}".rstrip()), len(facts) + 2


def _call_lines(calls: Sequence[Any]) -> Iterator[tuple[str, int]]:
    """Yield a line for each of the last calls by name, and where it goes on."""
    if len(calls) > _MOST_CALLS:
        yield f"the last {_MOST_CALLS} of {len(calls):,}", 0
    shown = [
        (
            duration(each.duration_ms),
            f"{'' if each.item is None else f'[{each.item}] '}attempt {each.attempt}",
            each.name,
        )
        for each in calls[-_MOST_CALLS:]
        if isinstance(each, StepCalled)  # a damaged one is a log record
    ]
    widths = [max((len(row[at]) for row in shown), default=0) for at in range(2)]
    for took, attempt, name in shown:
        facts = f"{attempt:<{widths[1]}}  {took:>{widths[0]}}  "
        yield escape_controls(f"{facts}{name}"), len(facts)


def _output_lines(result: StepResult) -> Iterator[str]:
    if result.status != "SUCCESS":
        return
    shown = preview(result.output, _LONGEST)
    yield from shown.text.splitlines()
    if shown.cut:
        yield "…"


def _note_line(view: RunView, note: Any) -> tuple[str, int]:
    """Return a line, and where it goes on."""
    moment = datetime.fromtimestamp(view.wall_time_of(note.at_ms)).astimezone()
    if isinstance(note, StepAttached):
        text = f"attached {note.name} ({note.media_type})"
    else:
        assert isinstance(note, StepLogged)
        text = f"{level_name(note.level)} {note.logger}: {log_text(note.message)}"
    return escape_controls(f"{moment:%H:%M:%S} {text}"), 9


def more_lines(
    result: StepResult, view: RunView, step: str, journal: str, console: Console
) -> Iterator[Text]:
    """Yield why a step failed, or items of it, and how to see what is left out."""
    viewed = view.steps[step]
    if result.items is not None:
        lines = [*traceback_lines(view, viewed)]
    else:
        failed = result.error is not None and not result.fell_back
        lines = format_error(result.error).splitlines() if failed and result.error else []
    if lines:
        yield from indented(["", *lines], console)
    hints = list[tuple[str, str, tuple[str, ...]]]()
    if result.items:
        group = next(iter(item_errors(viewed)), None)
        item = group.items[0] if group is not None else result.items[0].item
        hints.append(("To see one of its items", f"{step}[{item}]", ()))
    if result.status == "SUCCESS" and preview(result.output, _LONGEST).cut:
        hints.append(("To see all of the output", result.step_name, ("--json",)))
    for number, (purpose, name, flags) in enumerate(hints):
        if not number:
            yield Text("")
        command = command_of("show", view.run_id, name, *flags, journal=journal)
        yield from indented([escape_controls(f"{purpose}: {command}")], console)
