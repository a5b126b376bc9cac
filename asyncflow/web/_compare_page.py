"""The page that compares two runs: what differs in inputs and versions, and of the steps."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from functools import partial
from typing import Any
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import Response

from asyncflow._core.analysis.comparison import RunComparison, StepComparison
from asyncflow._core.analysis.failures import first_failure
from asyncflow._core.analysis.looks import look_of
from asyncflow._core.history.report import RunReport
from asyncflow._core.history.results import RunStatus
from asyncflow._views.comparison_text import (
    arrow,
    difference_text,
    error_text,
    input_text,
    output_text,
    outputs_text,
    pair,
    run_difference_text,
    step_facts,
    took_text,
)
from asyncflow._views.event_text import took
from asyncflow._views.preview import error_trace
from asyncflow.journal._base import SQLJournal
from asyncflow.journal._read.queries import RunRecord, so_far_ms
from asyncflow.web._responses import path_in, problem, render, wants_json

_MOST_ROWS = 500
"""How many steps are shown."""
_TRACE = 6_000
_OUTPUT = 160
"""How much the outputs of a step take that it returned in the two runs."""


def compare_url(request: Request, run_id: str, baseline: str = "") -> str:
    """Return the path of the page that compares a run, by default with the last passed one."""
    query = {"a": run_id} | ({"b": baseline} if baseline else {})
    return f"{path_in(request, '/compare')}?{urlencode(query, errors='replace')}"


async def compare_page(request: Request, journal: SQLJournal) -> Response:
    """Answer with the comparison of the runs ``a`` and ``b``; as JSON for a program.

    Without ``b``, run ``a`` is compared with the last run of its pipeline that passed before it.
    Without ``a``, the page asks for both.
    """
    run_id, baseline = (request.query_params.get(name, "") for name in "ab")
    note = ""
    if run_id and not baseline:
        found = await journal.last_passed(run_id)
        baseline = "" if found is None else found.run_id
        note = "" if found else f"No earlier run of the pipeline of {run_id!r} has passed."
    if wants_json(request):
        if not (run_id and baseline):
            text = note or "Name the runs to compare as a= and b=."
            return problem(request, 400 if not run_id else 404, "Nothing to compare", text)
        compared = await journal.compare(run_id, baseline)
        body = await asyncio.to_thread(compared.to_json)
        return Response(body, media_type="application/json")
    if not (run_id and baseline):
        return _page(request, run_id, baseline, None, note)
    compared = await journal.compare(run_id, baseline)
    records = [await journal.record(each) for each in (run_id, baseline)]
    return await asyncio.to_thread(_page, request, run_id, baseline, compared, "", records)


def _page(
    request: Request,
    run_id: str,
    baseline: str,
    compared: RunComparison | None,
    note: str,
    records: Sequence[RunRecord] = (),
) -> Response:
    """Return the page, with the comparison or just the question which runs to compare."""
    return render(
        request,
        "compare.html",
        action=path_in(request, "/compare"),
        run_id=run_id,
        baseline=baseline,
        note=note,
        compared=compared,
        **({} if compared is None else _given(request, compared, records)),
    )


def _given(
    request: Request, compared: RunComparison, records: Sequence[RunRecord]
) -> dict[str, Any]:
    now_s = time.time()
    has_died, had_died = (record.status is RunStatus.ORPHANED for record in records)
    shown = compared.steps if "all" in request.query_params else compared.notable_steps
    run_id, baseline = compared.run.run_id, compared.baseline.run_id
    return {
        "duration_words": arrow(compared) + run_difference_text(compared),
        "output_words": outputs_text(compared),
        "steps": shown[:_MOST_ROWS],
        "swapped": compare_url(request, baseline, run_id),
        "every": f"{compare_url(request, run_id, baseline)}&all=1",
        "hidden": max(len(shown) - _MOST_ROWS, 0),
        "others": len(compared.steps) - len(shown),
        "arrow": arrow,
        "difference_text": difference_text,
        "error_text": error_text,
        "facts_of": partial(_facts, has_died=has_died, had_died=had_died),
        "input_text": input_text,
        "look_of": partial(look_of, has_died=has_died),
        # Only a record knows how far a run is that has not ended, and that its process died.
        "sides": [
            ("Run", compared.run, records[0], so_far_ms(records[0], now_s)),
            ("Baseline", compared.baseline, records[1], so_far_ms(records[1], now_s)),
        ],
        "statuses": pair(*[record.status for record in reversed(records)]),
        "took": took,
        "took_text": took_text,
        "trace_of": _trace,
    }


def _trace(report: RunReport) -> str:
    """Return the traceback of the first failure; empty if there is none."""
    failed = first_failure(report.values())
    return "" if failed is None or failed.error is None else error_trace(failed.error, _TRACE).text


def _facts(step: StepComparison, *, has_died: bool, had_died: bool) -> list[str]:
    facts = step_facts(step, has_died=has_died, had_died=had_died)
    return [*facts, *filter(None, [output_text(step, _OUTPUT)])]
