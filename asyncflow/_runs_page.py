"""The list of the runs that a journal has kept."""

from __future__ import annotations

import time
from typing import NamedTuple

from starlette.requests import Request
from starlette.responses import Response

from asyncflow._archive import RunRecord
from asyncflow._runs_asked import STATES, TIMES, asked_in, runs_asked
from asyncflow._runs_scatter import Dot, scatter
from asyncflow._views.event_text import duration
from asyncflow._views.preview import moment_iso, moment_text
from asyncflow._web_journal import RunsJournal
from asyncflow._web_pages import link_to, path_in, problem, render

__all__ = ["SIGNS", "runs_page", "state_of"]

SIGNS = {"running": "▷", "orphaned": "◇", "passed": "✓", "failed": "✗", "interrupted": "■"}
_MEANINGS = {
    "running": "running",
    "orphaned": "orphaned: its process is gone, and nobody runs it",
    "passed": "passed",
    "failed": "failed",
    "interrupted": "interrupted: it was cancelled",
}


class _Line(NamedTuple):
    """A run in the list."""

    record: RunRecord
    state: str
    link: str
    duration_s: float


async def runs_page(request: Request, journal: RunsJournal, pipelines: list[str]) -> Response:
    """Answer with the list of runs that a request asks for.

    Args:
        request: What is asked for.
        journal: Where the runs are.
        pipelines: The names of pipelines to choose from, beside those that are in the list.
    """
    now_s = time.time()
    try:
        asked = asked_in(request.query_params)
        runs, following = await runs_asked(journal, asked, now_s)
    except ValueError as error:
        home = [("All runs", path_in(request, "/"))]
        return problem(request, 400, "This list can't be made", f"{error}.", links=home)
    lines = [_line(request, record, now_s) for record in runs]
    dots = [
        Dot(each.record.run_id, each.state, each.record.started_at, each.duration_s)
        for each in lines
    ]
    return render(
        request,
        "web_runs.html",
        asked=asked,
        lines=lines,
        drawing=scatter(dots),
        links={each.record.run_id: each.link for each in lines},
        older=asked.query(before=following) if following else None,
        newest=asked.query(before="") if asked.before else None,
        states={name: _MEANINGS[name] for name in STATES},
        signs=SIGNS,
        times=TIMES,
        pipelines=sorted({*pipelines, *(record.pipeline for record in runs)} - {""}),
        duration=duration,
        moment=moment_text,
        iso=moment_iso,
    )


def state_of(record: RunRecord) -> str:
    """Return the state of a run in one word; one that nobody runs any more has its own."""
    return "orphaned" if record.orphaned else record.status


def _line(request: Request, record: RunRecord, now_s: float) -> _Line:
    so_far_s = (record.updated_at if record.orphaned else now_s) - record.started_at
    duration_s = record.duration_s
    return _Line(
        record,
        state_of(record),
        link_to(request, "runs", record.run_id),
        max(so_far_s, 0.0) if duration_s is None else duration_s,
    )
