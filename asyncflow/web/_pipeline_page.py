"""The page of a pipeline: its latest runs as one grid, with figures; a run or a step of it.

Rules of the drawings:

1. A column is a run, the latest one at the right: its duration as a bar, and below how its steps
   ended.
2. An outcome has a symbol of its own, which its colour only repeats.
3. Places from left to right are shares of the width; those from top to bottom are pixels.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import Response

from asyncflow._core.looks import OUTCOME_LOOKS, RUN_LOOKS
from asyncflow._core.results import RunStatus
from asyncflow._core.statistics import StepStatistics, by_trouble
from asyncflow._core.text import did_you_mean, duration, plural
from asyncflow._views.outcomes import frequency_text, items_text
from asyncflow._views.preview import ago, moment_iso, moment_text
from asyncflow.html_report._page_model import name_text, step_url
from asyncflow.journal._base import SQLJournal
from asyncflow.journal._queries import (
    PipelineStatistics,
    RunRecord,
    listed_status,
    statistics_document,
)
from asyncflow.web._compare_page import compare_url
from asyncflow.web._responses import (
    json_answer,
    link_to,
    path_in,
    problem,
    render,
)

_RUNS, _MOST_RUNS = 50, 1_000
_MOST_STEPS, _MOST_CELLS, _LEAST_RUNS = 1_000, 20_000, 5
"""Of a pipeline of many steps, the grid shows fewer runs; and at most so many of its steps."""
_MOST_WAITING = 5
"""Of how many runs that wait the page says for what."""


async def pipeline_page(request: Request, journal: SQLJournal) -> Response:
    name = request.path_params["pipeline"]
    found = await journal.statistics(name, runs=_RUNS)
    if not found.runs:
        return await _unknown(request, journal, name)
    now_s = time.time()
    columns = [_column(request, record) for record in found.runs]
    waiting = [record for record in found.runs if record.status is RunStatus.WAITING]
    summaries = await journal.summaries(waiting[:_MOST_WAITING])
    steps = dict(list(found.steps.items())[:_MOST_STEPS])
    occurring = {outcome for step in steps.values() for outcome in step.outcomes}
    drawn = min(len(columns), max(_LEAST_RUNS, _MOST_CELLS // max(len(steps), 1)))
    asked = request.query_params
    chosen = found.steps.get(asked.get("step", ""))
    chosen_run = next((each for each in columns if each.record.run_id == asked.get("run")), None)
    return render(
        request,
        "pipeline.html",
        found=found,
        history=chosen and _history(asked["step"], chosen, columns),
        run=chosen_run,
        ends=chosen_run and _ends_in(chosen_run, columns.index(chosen_run), steps),
        name=name_text(name) if name else "Runs without a pipeline name",
        columns=columns[:drawn][::-1],
        bars=bars(found.runs[:drawn]),
        waits={run_id: ", ".join(map(name_text, each.waits)) for run_id, each in summaries.items()},
        more_waiting=len(waiting) - len(summaries),
        links={column.record.run_id: column.link for column in columns},
        compare=chosen_run and compare_url(request, chosen_run.record.run_id),
        rows=[
            _StepRow(
                each,
                name_text(each),
                [_cell(each, step, at, column) for at, column in enumerate(columns[:drawn])][::-1],
            )
            for each, step in steps.items()
        ],
        figures=list(by_trouble(found.steps).items())[:_MOST_STEPS],
        hidden=len(found.steps) - len(steps),
        outcomes=[look for word, look in OUTCOME_LOOKS.items() if word in occurring],
        name_text=name_text,
        step_link=lambda step: f"?{urlencode({'step': step}, errors='replace')}#history",
        run_link=lambda run_id: f"?{urlencode({'run': run_id}, errors='replace')}#run",
        items_text=items_text,
        badges=RUN_LOOKS,
        all_runs=f"{path_in(request, '/')}?{urlencode({'pipeline': name}, errors='replace')}",
        duration=duration,
        plural=plural,
        moment=moment_text,
        iso=moment_iso,
        ago=lambda at: ago(now_s - at),
    )


async def pipeline_api(request: Request, journal: SQLJournal) -> Response:
    """Answer with the statistics of a pipeline as JSON."""
    name, count = request.path_params["pipeline"], request.query_params.get("runs", str(_RUNS))
    if not count.isascii() or not count.isdigit() or not 1 <= int(count[:9]) <= _MOST_RUNS:
        detail = f"runs must be a number from 1 to {_MOST_RUNS:,}, not {count!r}"
        return problem(request, 400, "The query is invalid", detail)
    found = await journal.statistics(name, runs=int(count))
    if not found.runs:
        return await _unknown(request, journal, name)
    return json_answer(statistics_document(found))


async def _unknown(request: Request, journal: SQLJournal, name: str) -> Response:
    hint = did_you_mean(name, await journal.pipelines())
    text = f"The journal has no runs of pipeline {name!r}{hint}. They may have been pruned."
    links = [("All runs", path_in(request, "/"))]
    return problem(request, 404, "There is no such pipeline", text, links=links)


# --- the chart -----------------------------------------------------------------------------------

_TOP, _BOTTOM = 18, 130
_GAP = 0.18
"""The share of its column that a bar leaves free."""
_LEAST_HEIGHT = 2.0


class RunBar(NamedTuple):
    record: RunRecord
    status: str
    """A `RunStatus`, or `DAMAGED`."""
    x: float
    """Its left edge, in percent of the width."""
    width: float
    """In percent of the width."""
    y: float
    """Its upper edge, in pixels from the top."""
    height: float


class _Bars(NamedTuple):
    bars: list[RunBar]
    marks: list[tuple[float, float]]
    """Durations on the axis, in milliseconds, each with its place in pixels from the top."""
    median: float | None
    """Where the median of the runs that passed, not counting reruns, is, in pixels from the top."""


def bars(runs: Sequence[RunRecord]) -> _Bars:
    """Return the chart of the durations of runs, which are given with the latest one first."""
    times = [0.0 if run.damaged else run.latest_ms for run in runs]
    top = _round_above(max(times, default=0.0))
    scale = (_BOTTOM - _TOP) / top
    column = 100 / max(len(runs), 1)  # as wide as those of the grid
    drawn = []
    for place, (run, took_ms) in enumerate(zip(reversed(runs), reversed(times), strict=True)):
        height = max(took_ms * scale, _LEAST_HEIGHT)
        x = (place + _GAP / 2) * column
        width = column * (1 - _GAP)
        y = round(_BOTTOM - height, 2)
        bar = RunBar(run, listed_status(run), round(x, 3), round(width, 3), y, round(height, 2))
        drawn.append(bar)
    middle = PipelineStatistics("", tuple(runs), {}).median_ms
    marks = [(share * top, _BOTTOM - share * top * scale) for share in (0.0, 0.5, 1.0)]
    return _Bars(drawn, marks, None if middle is None else round(_BOTTOM - middle * scale, 2))


def _round_above(value: float) -> float:
    """Return the next of 1, 2, 4, 6, 8 or 10 times a power of ten."""
    if value <= 1:
        return 1.0
    power: float = 10.0 ** math.floor(math.log10(value))
    return next(each * power for each in (1, 2, 4, 6, 8, 10, 20) if each * power >= value)


# --- the grid ------------------------------------------------------------------------------------


class _RunColumn(NamedTuple):
    record: RunRecord
    status: str
    link: str


class _StepCell(NamedTuple):
    kind: str
    """Its CSS class; empty for a run without the step."""
    symbol: str
    words: str
    link: str


class _StepRow(NamedTuple):
    step: str
    name: str
    cells: Sequence[_StepCell]


class _StepEnd(NamedTuple):
    title: str
    """The run's id in the history of a step, the step's name in the details of a run."""
    column: _RunColumn
    cell: _StepCell
    ended: str
    took: str
    share: float
    """Of the longest duration, in percent."""
    error: str


class _StepHistory(NamedTuple):
    name: str
    errors: list[tuple[str, str, _RunColumn, _RunColumn]]
    """Each error, in how many runs it occurred, and the first and the last of these."""
    ends: list[_StepEnd]


def _history(name: str, step: StepStatistics, columns: Sequence[_RunColumn]) -> _StepHistory:
    errors = [
        (
            name_text(each.error),
            frequency_text(each, step),
            columns[each.runs[-1]],
            columns[each.runs[0]],
        )
        for each in step.error_groups
    ]
    longest_ms = max(filter(None, step.durations_ms), default=1.0)
    ends = [
        _end(column.record.run_id, name, step, at, column, longest_ms)
        for at, column in enumerate(columns)
        if step.outcomes[at] is not None
    ]
    return _StepHistory(name_text(name), errors, ends)


def _ends_in(column: _RunColumn, at: int, steps: Mapping[str, StepStatistics]) -> list[_StepEnd]:
    of_run = {name: step for name, step in steps.items() if step.outcomes[at] is not None}
    longest_ms = max(filter(None, (step.durations_ms[at] for step in of_run.values())), default=1.0)
    return [_end(name, name, step, at, column, longest_ms) for name, step in of_run.items()]


def _end(
    title: str, name: str, step: StepStatistics, at: int, column: _RunColumn, longest_ms: float
) -> _StepEnd:
    outcome, took_ms = step.outcomes[at], step.durations_ms[at]
    assert outcome is not None  # the run has the step
    return _StepEnd(
        name_text(title),
        column,
        _cell(name, step, at, column),
        OUTCOME_LOOKS[outcome].said,
        "" if took_ms is None else duration(took_ms),
        round(100 * (took_ms or 0.0) / longest_ms, 2),
        name_text(step.errors[at]),
    )


def _column(request: Request, record: RunRecord) -> _RunColumn:
    return _RunColumn(record, listed_status(record), link_to(request, "runs", record.run_id))


def _cell(name: str, step: StepStatistics, at: int, column: _RunColumn) -> _StepCell:
    outcome, took_ms = step.outcomes[at], step.durations_ms[at]
    if outcome is None:
        return _StepCell("", "", "", "")
    look = OUTCOME_LOOKS[outcome]
    took = "" if took_ms is None else f", {duration(took_ms)}"
    words = f"{name_text(name)} in {column.record.run_id}: {look.said}{took}"
    return _StepCell(look.kind, look.symbol, words, step_url(column.link, name))
