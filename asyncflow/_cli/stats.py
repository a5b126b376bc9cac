"""The command ``stats``: a pipeline's latest runs as a grid of steps by runs, with figures.

Rules of the drawing:

1. A column is a run, the latest one at the right. A row is a step.
2. Each outcome has a symbol of its own, which its colour only repeats. The legend names them.
3. Steps that failed most often come first, then the flakiest; the others are in their order.
4. Of one step, the bars are its durations, and below are its errors over the runs, and these.
5. Narrow terminals leave out the middle of long names, and columns of early runs. Figures are of
   all runs that were read.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import click
from rich.cells import set_cell_size
from rich.text import Text

from asyncflow._cli.options import (
    journal_option,
    json_option,
    open_journal,
    require_journal,
)
from asyncflow._cli.output import NOT_FOUND, CommandError, some_of, stdout_console, write_note
from asyncflow._core.analysis.looks import OUTCOME_LOOKS, RUN_LOOKS
from asyncflow._core.analysis.statistics import StepOutcome, StepStatistics, by_trouble
from asyncflow._core.text import did_you_mean, duration, escape_controls, plural
from asyncflow._views.outcomes import frequency_text, items_text
from asyncflow._views.preview import local_moment_text
from asyncflow.journal import PipelineStatistics, RunRecord
from asyncflow.journal._read.queries import listed_status, statistics_document
from asyncflow.live._theme import Theme, elide, fit, theme_for, widest

_MOST_RUNS, _DEFAULT_RUNS = 1_000, 50
_GAP = "  "
_HEADER = ("MEDIAN", "P95", "LAST", "FAILED", "FLAKY", "ITEMS")
"""The last one is left out if no step has a figure there."""
_RUN, _DURATION = "run", "duration"
_LEAST_NAME, _NAME, _LEAST_GRID = 16, 24, 10
"""Names give way down to `_NAME` cells before runs do, and down to the least one after them."""
_BARS, _ASCII_BARS = "▁▂▃▄▅▆▇█", "12345678"
_MOST_ERRORS, _MOST_ENDS = 5, 20
"""How many groups of errors, and how many runs, the history of a step shows."""
_NO_RUN = " "
"""A run without the step, or without a duration."""


@click.command()
@click.argument("pipeline", metavar="[PIPELINE]", required=False)
@click.argument("step", metavar="[STEP]", required=False)
@journal_option
@click.option(
    "--runs",
    "count",
    type=click.IntRange(1, _MOST_RUNS),
    default=_DEFAULT_RUNS,
    show_default=True,
    help="How many of the latest runs to read.",
)
@json_option
def stats(pipeline: str | None, step: str | None, journal: str, count: int, as_json: bool) -> None:
    """Show how each step ended in the latest runs of a pipeline, and how long it takes.

    PIPELINE is its name; "" stands for all runs whose pipeline has none. It can be left out if the
    journal has the runs of one pipeline only. With STEP, show the history of that step: its
    durations, its errors in groups, and how it ended in each run.
    """
    require_journal(journal)
    found = asyncio.run(_read(journal, pipeline, count))
    if step is not None:
        if step not in found.steps:
            hint = did_you_mean(step, found.steps) or f"; it has {some_of([*found.steps])}"
            raise click.UsageError(escape_controls(f"the pipeline has no step {step!r}{hint}"))
        found = replace(found, steps={step: found.steps[step]})
    if as_json:
        click.echo(json.dumps(statistics_document(found), indent=2))
        return
    console = stdout_console()
    theme = theme_for(console.encoding, also=_BARS)
    times = [None if run.duration_s is None else run.duration_s * 1000 for run in found.runs]
    if step is not None:
        times = [*found.steps[step].durations_ms]
    drawing = _Drawing(found, times, theme, console.width)
    lines = drawing.lines()
    if step is not None:
        lines += _history(found, found.steps[step], theme, console.width)
    console.print(Text("\n").join(lines), soft_wrap=True)
    if drawing.shown < len(found.runs):
        write_note(f"{drawing.shown} of {plural(len(found.runs), 'run')} fit; figures are of all")


async def _read(journal: str, pipeline: str | None, count: int) -> PipelineStatistics:
    async with open_journal(journal) as opened:
        if pipeline is not None:
            found = await opened.statistics(pipeline, runs=count)
            if found.runs:
                return found
        names = await opened.pipelines()
        if pipeline is None and len(names) == 1:
            return await opened.statistics(names[0], runs=count)
    if not names:
        raise CommandError(f"journal {journal!r} has no runs", NOT_FOUND)
    if pipeline is None:
        raise click.UsageError(f"name one of the pipelines: {some_of(names)}")
    problem = f"journal {journal!r} has no runs of pipeline {pipeline!r}"
    nearest = did_you_mean(pipeline, names) or f"; it has those of {some_of(names)}"
    raise CommandError(f"{problem}{nearest}", NOT_FOUND)


def _history(
    found: PipelineStatistics, step: StepStatistics, theme: Theme, width: int
) -> Iterator[Text]:
    """Yield the errors of a step over runs, and how it ended in each, the latest run first."""
    for group in step.error_groups[:_MOST_ERRORS]:
        first = local_moment_text(found.runs[group.runs[-1]].started_at)
        yield Text()
        yield Text(elide(escape_controls(group.error), width, theme.ellipsis))
        latest, earliest = (found.runs[place].run_id for place in (group.runs[0], group.runs[-1]))
        seen = f"first seen {first} in {earliest}, last in {latest}"
        yield Text(escape_controls(f"  {frequency_text(group, step)}, {seen}"))
    yield Text()
    rows = [
        (
            record.run_id,
            local_moment_text(record.started_at),
            OUTCOME_LOOKS[outcome].said,
            _ms(took),
            error,
        )
        for record, outcome, took, error in zip(
            found.runs, step.outcomes, step.durations_ms, step.errors, strict=True
        )
        if outcome is not None
    ][:_MOST_ENDS]
    titles = ("RUN", "STARTED", "ENDED", "TOOK", "ERROR")
    widths = [widest(column) for column in zip(titles, *rows, strict=True)][:-1]
    for row in (titles, *rows):
        *cells, last = map(escape_controls, row)
        fixed = map(set_cell_size, cells, widths)
        left = max(width - sum(widths) - len(_GAP) * len(widths), _LEAST_NAME)
        line = _GAP.join([*fixed, elide(last, left, theme.ellipsis)]).rstrip()
        yield Text(line, "bold" if row is titles else "")


class _GridRow(NamedTuple):
    name: str
    cells: Sequence[tuple[str, str]]
    """For each run, the latest first, a symbol and its colour."""
    figures: Sequence[str]


class _Drawing:
    """The statistics of a pipeline as lines of text."""

    def __init__(
        self,
        found: PipelineStatistics,
        times: Sequence[float | None],
        theme: Theme,
        width: int,
    ) -> None:
        self._found = found
        self._times = times
        """What the bars show for each run, in milliseconds."""
        self._theme = theme
        self._width = width
        self._bars = _ASCII_BARS if theme.is_ascii else _BARS
        self._rows = [self._run_row(), *self._step_rows()]
        self._columns = [
            max(len(title), *(len(row.figures[at]) for row in self._rows))
            for at, title in enumerate(_HEADER)
            if title != "ITEMS" or any(row.figures[at] for row in self._rows)
        ]
        left = width - len(_GAP) * (len(self._columns) + 1) - sum(self._columns)
        names = widest([_DURATION, *(row.name for row in self._rows)])
        grid = min(len(found.runs), max(left - min(names, _NAME), _LEAST_GRID))
        self._name_width = min(names, max(left - grid, _LEAST_NAME))
        self.shown = min(grid, max(left - self._name_width, 1))

    def lines(self) -> list[Text]:
        grid = max(self.shown, len("RUNS"))
        header = ["STEP".ljust(self._name_width), "RUNS".ljust(grid), *self._aligned(_HEADER)]
        lines = [Text(self._title(), "bold"), Text(), Text(_GAP.join(header).rstrip(), "bold")]
        lines += [self._line(row, grid) for row in self._rows]
        lines.insert(4, self._sparkline(grid))
        return [*lines, Text(), self._legend()]

    def _title(self) -> str:
        found = self._found
        name = f"Pipeline {found.pipeline}" if found.pipeline else "Runs without a pipeline name"
        rate = "" if found.success_rate is None else f", {found.success_rate:.0%} passed"
        return escape_controls(f"{name}: {plural(len(found.runs), 'run')}{rate}")

    def _run_row(self) -> _GridRow:
        found = self._found
        took = next(iter(found.passed_ms), None)
        figures = [*map(_ms, (found.median_ms, found.p95_ms, took)), "", "", ""]
        return _GridRow(_RUN, [self._run_cell(record) for record in found.runs], figures)

    def _run_cell(self, record: RunRecord) -> tuple[str, str]:
        look = RUN_LOOKS[listed_status(record)]
        return self._theme.symbol(look), look.colour

    def _step_rows(self) -> list[_GridRow]:
        return [
            _GridRow(
                escape_controls(name),
                [*map(self._cell, step.outcomes)],
                [
                    *map(_ms, (step.median_ms, step.p95_ms, step.last_ms)),
                    *map(_share, (step.failure_rate, step.flakiness)),
                    items_text(step),
                ],
            )
            for name, step in by_trouble(self._found.steps).items()
        ]

    def _cell(self, outcome: StepOutcome | None) -> tuple[str, str]:
        if outcome is None:
            return _NO_RUN, ""
        look = OUTCOME_LOOKS[outcome]
        return self._theme.symbol(look), look.colour

    def _line(self, row: _GridRow, grid: int) -> Text:
        line = Text(fit(row.name, self._name_width, self._theme.ellipsis) + _GAP)
        for symbol, colour in reversed(row.cells[: self.shown]):
            line.append(symbol, colour)
        line.append(" " * (grid - self.shown) + _GAP + _GAP.join(self._aligned(row.figures)))
        line.rstrip()
        return line

    def _aligned(self, figures: Sequence[str]) -> list[str]:
        return [text.rjust(width) for text, width in zip(figures, self._columns, strict=False)]

    def _sparkline(self, grid: int) -> Text:
        """Return a bar for each duration, from the shortest one to the longest."""
        times = self._times[: self.shown][::-1]
        known = [took for took in times if took is not None]
        shortest, longest = min(known, default=0.0), max(known, default=0.0)
        scale = (len(self._bars) - 1) / ((longest - shortest) or math.inf)
        bars = [
            _NO_RUN if took is None else self._bars[round((took - shortest) * scale)]
            for took in times
        ]
        label = fit(_DURATION, self._name_width)
        ends = f"{duration(shortest)} to {duration(longest)}"
        return Text(f"{label}{_GAP}{''.join(bars)}{' ' * (grid - self.shown)}{_GAP}{ends}")

    def _legend(self) -> Text:
        found, shown = self._found, slice(self.shown)
        occurring = {
            OUTCOME_LOOKS[outcome]
            for step in found.steps.values()
            for outcome in step.outcomes[shown]
            if outcome is not None
        }
        statuses = {listed_status(record) for record in found.runs[shown]}
        looks = [look for look in OUTCOME_LOOKS.values() if look in occurring]
        looks += [look for word, look in RUN_LOOKS.items() if word in statuses]
        meanings: dict[str, dict[str, None]] = {}
        for look in looks:
            meanings.setdefault(self._theme.symbol(look), {})[look.said] = None
        lines = [""]
        for symbol, words in meanings.items():
            meaning = f"{symbol} {' or '.join(words)}"
            if lines[-1] and len(lines[-1]) + len(meaning) + 3 > self._width:
                lines.append("")
            lines[-1] += f"   {meaning}" if lines[-1] else meaning
        return Text("\n".join(lines))


def _ms(value: float | None) -> str:
    return "" if value is None else duration(value)


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"
