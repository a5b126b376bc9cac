"""``asyncflow diff``: how a run differs from another one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence

import click
from rich.cells import set_cell_size
from rich.console import Console
from rich.text import Text

from asyncflow._cli.options import (
    AnyJournal,
    baseline_argument,
    find_run,
    journal_option,
    json_option,
    open_journal,
    require_journal,
    run_argument,
)
from asyncflow._cli.output import NOT_FOUND, CommandError, hanging, stdout_console
from asyncflow._core.analysis.comparison import RunComparison, StepComparison
from asyncflow._core.analysis.looks import RUN_LOOKS, Look, look_of
from asyncflow._core.history.report import RunReport
from asyncflow._core.history.results import RunStatus
from asyncflow._core.text import escape_controls, plural
from asyncflow._views.comparison_text import (
    arrow,
    difference_text,
    error_text,
    input_text,
    output_text,
    outputs_text,
    run_difference_text,
    step_facts,
    took_text,
)
from asyncflow._views.event_text import took
from asyncflow._views.preview import local_moment_text
from asyncflow.journal import RunRecord
from asyncflow.journal._read.queries import so_far_ms
from asyncflow.live._theme import Theme, elide_middle, theme_for, widest

_SYMBOLS = "▲▼→×"
_PLAIN = str.maketrans({"▲": "+", "▼": "-", "→": ">", "×": "x", "…": "~"})
_LEAST_WIDTH = 8
"""How many cells the name of a step has at least, on any terminal."""
_DIFFERENCE = 30
"""How many cells a difference has at least before names are cut; a longer one goes on below."""
_COLUMNS = 80
"""How many cells two outputs side by side take at most, also in a file."""
_LABEL = 10
_GAP = "  "


@click.command()
@run_argument
@baseline_argument
@journal_option
@click.option("--all", "show_all", is_flag=True, help="Show all steps, in the pipeline's order.")
@json_option
def diff(run: str, baseline: str | None, journal: str, show_all: bool, as_json: bool) -> None:
    """Show how a run differs from a baseline: inputs, versions, status, outputs and durations.

    Each is the id of a run, the start of its id, or "latest". The baseline is by default the last
    run of the same pipeline that passed and started before. The exit code is 0 whether they
    differ or not.
    """
    require_journal(journal)
    compared, *records = asyncio.run(_compare(journal, run, baseline))
    if as_json:
        click.echo(compared.to_json(indent=2))
        return
    console = stdout_console()
    theme = theme_for(console.encoding, _SYMBOLS)
    head = _head(compared, records, console)
    lines = [*head, *_table(compared, records, show_all, theme, console)]
    text = Text("\n").join(lines)
    if theme.encoding == "ascii":
        text.plain = text.plain.translate(_PLAIN)
    console.print(text, soft_wrap=True)


async def _compare(
    journal: str, run: str, baseline: str | None
) -> tuple[RunComparison, RunRecord, RunRecord]:
    async with open_journal(journal) as opened:
        record = await find_run(opened, run)
        other = await _baseline(opened, record, baseline)
        return await opened.compare(record.run_id, other.run_id), record, other


async def _baseline(journal: AnyJournal, record: RunRecord, baseline: str | None) -> RunRecord:
    if baseline is not None:
        return await find_run(journal, baseline)
    found = await journal.last_passed(record.run_id)
    if found is None:
        name = record.pipeline
        why = f"no run of {name!r} before it has passed" if name else "its pipeline has no name"
        raise CommandError(
            f"nothing to compare run {record.run_id!r} with: {why}; name another run", NOT_FOUND
        )
    return found


# What the runs are, and what differs beside their steps.


def _head(compared: RunComparison, records: Sequence[RunRecord], console: Console) -> list[Text]:
    run, baseline = compared.run, compared.baseline
    lines = _run("Run", run, records[0], console)
    lines += _run("Baseline", baseline, records[1], console)
    if run.pipeline != baseline.pipeline:
        lines += _wrapped("Pipeline", "these are runs of different pipelines", console)
    if difference := run_difference_text(compared):
        lines += _wrapped("Duration", f"{arrow(compared)}{difference}", console)
    inputs = [f"{escape_controls(each.name)}: {input_text(each)}" for each in compared.inputs]
    for number, text in enumerate(inputs):
        lines += _wrapped("" if number else "Inputs", text, console)
    if outputs := outputs_text(compared):
        lines += _wrapped("Outputs", outputs, console)
    return lines


def _run(label: str, report: RunReport, record: RunRecord, console: Console) -> list[Text]:
    of = f" of {escape_controls(report.pipeline)}" if report.pipeline else ""
    # Only the record knows how far a run is that has not ended, and that its process died.
    word, ran_ms = record.status, so_far_ms(record, time.time())
    spent = took(ran_ms, ran_ms + record.paused_s * 1000)
    started = local_moment_text(record.started_at)
    verb = "for" if word is RunStatus.RUNNING else "after"
    outcome = Text(f"{'':<{_LABEL}}{word} {verb} {spent}, started {started}")
    outcome.stylize(RUN_LOOKS[word].colour, _LABEL, _LABEL + len(word))
    why = error_text(report)
    return [
        *_wrapped(label, f"{escape_controls(report.run_id)}{of}", console),
        outcome,
        *(_wrapped("", why, console) if why else []),
    ]


def _wrapped(label: str, text: str, console: Console, indent: int = _LABEL) -> list[Text]:
    """Return a text behind a label, in lines that fit a terminal."""
    return hanging(Text(f"{label:<{indent}}{text}"), indent, console)


# The steps.


def _table(
    compared: RunComparison,
    records: Sequence[RunRecord],
    show_all: bool,
    theme: Theme,
    console: Console,
) -> list[Text]:
    notable, total = compared.notable_steps, len(compared.steps)
    if not notable and not show_all:
        return [Text(""), Text(f"no notable difference in {plural(total, 'step')}")]
    shown = compared.steps if show_all else notable
    has_died, had_died = (record.status is RunStatus.ORPHANED for record in records)
    looks = [None if step.run is None else look_of(step.run, has_died=has_died) for step in shown]
    facts = [step_facts(step, has_died=has_died, had_died=had_died) for step in shown]
    rows = [_cells(*each, theme) for each in zip(shown, looks, facts, strict=True)]
    header = ["STATUS", "BASELINE", "RUN", "DIFFERENCE"]
    widths = [max(widest(column), 1) for column in zip(header, *rows, strict=True)]
    names = [escape_controls(step.step_name) for step in shown]
    room = widest([*names, "STEP"])
    if console.is_terminal:
        taken = sum(widths[:3]) + min(widths[3], _DIFFERENCE) + len(_GAP) * len(widths)
        room = min(room, max(console.width - taken, _LEAST_WIDTH))
    begins_at = room + sum(widths[:3]) + len(_GAP) * len(widths)
    below = widths[0] + len(_GAP)  # the name
    lines = [Text(""), _row("STEP", header, room, widths, theme)]
    lines[1].stylize("bold")
    for name, step, look, cells in zip(names, shown, looks, rows, strict=True):
        line = _row(name, cells, room, widths, theme)
        if look is not None:
            line.stylize(look.colour, 0, widths[0])
        lines += hanging(line, begins_at, console)
        if output := output_text(step, _COLUMNS - below):
            lines += _wrapped("", output, console, below)
    rest = total - len(shown)
    if rest:
        verb = "differs" if rest == 1 else "differ"
        lines.append(Text(f"{plural(rest, 'other step')} hardly {verb}; --all shows all"))
    return lines


def _row(name: str, cells: Iterable[str], room: int, widths: list[int], theme: Theme) -> Text:
    status, before, now, change = cells
    text = _GAP.join(
        [
            set_cell_size(status, widths[0]),
            set_cell_size(elide_middle(name, room, theme.ellipsis), room),
            f"{before:>{widths[1]}}",
            f"{now:>{widths[2]}}",
            change,
        ]
    )
    return Text(text.rstrip())


def _cells(
    step: StepComparison, look: Look | None, differing: Sequence[str], theme: Theme
) -> list[str]:
    status = theme.dash if look is None else f"{theme.symbol(look)} {look.word}"
    change = "" if step.change == "both" else step.change
    facts = [change or f"{arrow(step)}{difference_text(step)}", *differing]
    return [
        status,
        took_text(step.baseline) or theme.dash,
        took_text(step.run) or theme.dash,
        "; ".join(filter(None, facts)),
    ]
