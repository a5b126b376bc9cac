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
from collections.abc import Iterable, Sequence
from typing import NamedTuple
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import Response

from asyncflow._core.analysis.looks import OUTCOME_LOOKS
from asyncflow._core.analysis.statistics import StepStatistics, by_trouble
from asyncflow._core.history.results import RunStatus
from asyncflow._core.text import did_you_mean
from asyncflow._views.outcomes import frequency_text, items_text
from asyncflow.html_report._page_model import name_text
from asyncflow.journal._base import SQLJournal
from asyncflow.journal._read.queries import (
    PipelineStatistics,
    RunRecord,
    listed_status,
    so_far_ms,
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
    runs, asked = found.runs, request.query_params
    waiting = [record for record in runs if record.status is RunStatus.WAITING]
    summaries = await journal.summaries(waiting[:_MOST_WAITING])
    steps = dict(list(found.steps.items())[:_MOST_STEPS])
    occurring = {
        OUTCOME_LOOKS[outcome]
        for step in steps.values()
        for outcome in step.outcomes
        if outcome is not None
    }
    now_s = time.time()
    drawn = min(len(runs), max(_LEAST_RUNS, _MOST_CELLS // max(len(steps), 1)))
    chosen_name = asked.get("step", "")
    chosen = found.steps.get(chosen_name)
    run_at = next((at for at, each in enumerate(runs) if each.run_id == asked.get("run")), None)
    return render(
        request,
        "pipeline.html",
        found=found,
        name=name_text(name) if name else "Runs without a pipeline name",
        columns=range(drawn)[::-1],
        urls=[link_to(request, "runs", each.run_id) for each in runs],
        bars=bars(runs[:drawn], now_s),
        steps=steps,
        chosen_name=chosen_name,
        chosen=chosen,
        history=chosen and _ends((chosen_name, chosen, at) for at in range(len(runs))),
        run_at=run_at,
        ends=_ends((*item, run_at) for item in steps.items() if run_at is not None),
        compare=None if run_at is None else compare_url(request, runs[run_at].run_id),
        waits={run_id: ", ".join(map(name_text, each.waits)) for run_id, each in summaries.items()},
        more_waiting=len(waiting) - len(summaries),
        figures=list(by_trouble(found.steps).items())[:_MOST_STEPS],
        hidden=len(found.steps) - len(steps),
        outcomes=[look for look in OUTCOME_LOOKS.values() if look in occurring],
        look_at=lambda step, at: OUTCOME_LOOKS[step.outcomes[at]],
        all_runs=f"{path_in(request, '/')}?{urlencode({'pipeline': name}, errors='replace')}",
        now_s=now_s,
        status_of=listed_status,
        frequency_text=frequency_text,
        items_text=items_text,
        link_in_page=_link_in_page,
        longest_ms_of=_longest_ms,
    )


_End = tuple[str, StepStatistics, int]
"""A step by name, and the number of a run."""


def _ends(each: Iterable[_End]) -> list[_End]:
    """Return those of which the run has the step."""
    return [(name, step, at) for name, step, at in each if step.outcomes[at] is not None]


def _longest_ms(ends: Sequence[_End]) -> float:
    return max(filter(None, (step.durations_ms[at] for _, step, at in ends)), default=1.0)


def _link_in_page(what: str, name: str) -> str:
    """Return the address by which the page shows a run, or the history of a step."""
    place = "history" if what == "step" else "run"
    return f"?{urlencode({what: name}, errors='replace')}#{place}"


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
    ran_ms: float


class _Bars(NamedTuple):
    bars: list[RunBar]
    marks: list[tuple[float, float]]
    """Durations on the axis, in milliseconds, each with its place in pixels from the top."""
    median: float | None
    """Where the median of the runs that passed, not counting reruns, is, in pixels from the top."""


def bars(runs: Sequence[RunRecord], now_s: float) -> _Bars:
    """Return the chart of the durations of runs, which are given with the latest one first."""
    times = [0.0 if run.damaged else so_far_ms(run, now_s) for run in runs]
    top = _round_above(max(times, default=0.0))
    scale = (_BOTTOM - _TOP) / top
    column = 100 / max(len(runs), 1)  # as wide as those of the grid
    drawn = []
    for place, (run, took_ms) in enumerate(zip(reversed(runs), reversed(times), strict=True)):
        height = max(took_ms * scale, _LEAST_HEIGHT)
        x = (place + _GAP / 2) * column
        width = column * (1 - _GAP)
        y = round(_BOTTOM - height, 2)
        bar = RunBar(
            run, listed_status(run), round(x, 3), round(width, 3), y, round(height, 2), took_ms
        )
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
