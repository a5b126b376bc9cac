"""The page that compares two runs: what differs in inputs and versions, and of the steps."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, NamedTuple
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import Response

from asyncflow._core.comparison import RunComparison, StepComparison
from asyncflow._core.failures import first_failure
from asyncflow._core.looks import RUN_LOOKS, STEP_LOOKS, Look
from asyncflow._core.report import RunReport
from asyncflow._core.results import StepResult
from asyncflow._core.text import duration, plural
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
)
from asyncflow._views.event_text import took
from asyncflow._views.preview import error_trace, moment_iso, moment_text
from asyncflow.html_report._page_model import name_text, step_url
from asyncflow.journal._base import SQLJournal
from asyncflow.web._responses import link_to, path_in, problem, render, wants_json

_MOST_ROWS = 500
"""How many steps are shown."""
_TRACE = 6_000
_OUTPUT = 160
"""How much the outputs of a step take that it returned in the two runs."""


class _ComparedRun(NamedTuple):
    title: str
    report: RunReport
    link: str
    badge: Look
    took: str
    why: str
    trace: str


class _ComparedStep(NamedTuple):
    step: StepComparison
    name: str
    link: str
    """The step on the page of the run, or of the baseline if only that has it."""
    badge: Look | None
    figures: tuple[str, str]
    words: str
    facts: Sequence[str]


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
    return await asyncio.to_thread(_page, request, run_id, baseline, compared, "")


def _page(
    request: Request, run_id: str, baseline: str, compared: RunComparison | None, note: str
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
        moment=moment_text,
        iso=moment_iso,
        plural=plural,
        **({} if compared is None else _given(request, compared)),
    )


def _given(request: Request, compared: RunComparison) -> dict[str, Any]:
    show_all = "all" in request.query_params
    shown = compared.steps if show_all else compared.notable_steps
    run_id, baseline = compared.run.run_id, compared.baseline.run_id
    links = link_to(request, "runs", run_id), link_to(request, "runs", baseline)
    before, now = compared.baseline.status, compared.run.status
    return {
        "sides": (
            _side("Run", compared.run, links[0]),
            _side("Baseline", compared.baseline, links[1]),
        ),
        "statuses": f"{now} in both" if before == now else pair(before, now),
        "duration_words": arrow(compared) + run_difference_text(compared),
        "inputs": [(name_text(each.name), input_text(each)) for each in compared.inputs],
        "output_words": outputs_text(compared),
        "rows": [_row(step, links) for step in shown[:_MOST_ROWS]],
        "swapped": compare_url(request, baseline, run_id),
        "every": f"{compare_url(request, run_id, baseline)}&all=1",
        "hidden": max(len(shown) - _MOST_ROWS, 0),
        "others": len(compared.steps) - len(shown),
    }


def _side(title: str, report: RunReport, link: str) -> _ComparedRun:
    failed = first_failure(report.values())
    trace = "" if failed is None or failed.error is None else error_trace(failed.error, _TRACE).text
    return _ComparedRun(
        title,
        report,
        link,
        RUN_LOOKS[report.status],
        took(report.total_duration_ms, report.span_ms),
        error_text(report),
        trace,
    )


def _row(step: StepComparison, links: tuple[str, str]) -> _ComparedStep:
    run, baseline = step.run, step.baseline
    return _ComparedStep(
        step,
        name_text(step.step_name),
        step_url(links[1] if run is None else links[0], step.step_name),
        None if run is None else STEP_LOOKS[run.status],
        (_took(baseline), _took(run)),
        step.change if step.change != "both" else arrow(step) + difference_text(step),
        [*step_facts(step), *filter(None, [output_text(step, _OUTPUT)])],
    )


def _took(result: StepResult | None) -> str:
    return "–" if result is None or result.started_ms is None else duration(result.duration_ms)
