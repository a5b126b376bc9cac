"""The page that compares two runs: what differs in inputs, versions, status and steps."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, NamedTuple
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import Response

from asyncflow._core.comparison import RunComparison, StepComparison, first_failure
from asyncflow._core.report import RunReport
from asyncflow._core.results import STATUS_SYMBOLS, StepResult, StepStatus
from asyncflow._core.text import duration, plural
from asyncflow._views.comparison_text import (
    difference_text,
    error_text,
    input_text,
    pair,
    run_difference_text,
    step_facts,
)
from asyncflow._views.event_text import took
from asyncflow._views.preview import error_trace, moment_iso, moment_text
from asyncflow.html_report._page_model import RUN_BADGES, StatusBadge, name_text, step_url
from asyncflow.journal._base import SQLJournal
from asyncflow.journal._queries import RunRecord
from asyncflow.web._responses import link_to, path_in, problem, render, wants_json

_MOST_ROWS = 500
"""Of more steps, only those that differ are shown."""
_MOST_NAMED = 5
"""How many steps the summary names that are slower, and how many that are faster."""
_MOST_OFFERED = 100
_TRACE = 6_000
_LEAST_WIDTH = 0.4
"""How wide a bar is at least, in percent."""


class _ComparedRun(NamedTuple):
    """One of the two runs."""

    title: str
    report: RunReport
    link: str
    badge: StatusBadge
    took: str
    why: str
    trace: str
    """The traceback of its first failure."""


class _ComparedStep(NamedTuple):
    """A step in the table."""

    step: StepComparison
    name: str
    link: str | None
    """The step on the page of the run, or of the baseline if only that has it."""
    badge: StatusBadge | None
    figures: tuple[str, str]
    widths: tuple[float, float]
    """The bars of the baseline and of the run, in percent of the longest one."""
    words: str
    facts: Sequence[str]

    @property
    def trend(self) -> str:
        """``"slower"``, ``"faster"``, or nothing if the difference in time is not notable."""
        difference_ms = self.step.difference_ms
        if difference_ms is None or not self.step.has_notable_duration:
            return ""
        return "slower" if difference_ms > 0 else "faster"


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
    offered = await journal.runs(limit=_MOST_OFFERED)
    if not (run_id and baseline):
        return _page(request, run_id, baseline, offered, None, note)
    compared = await journal.compare(run_id, baseline)
    return await asyncio.to_thread(_page, request, run_id, baseline, offered, compared, "")


def _page(
    request: Request,
    run_id: str,
    baseline: str,
    offered: Sequence[RunRecord],
    compared: RunComparison | None,
    note: str,
) -> Response:
    """Return the page, with the comparison or just the question which runs to compare."""
    only_notable = "only" in request.query_params
    given = {} if compared is None else _given(request, compared, only_notable)
    return render(
        request,
        "compare.html",
        action=path_in(request, "/compare"),
        run_id=run_id,
        baseline=baseline,
        offered=[record.run_id for record in offered],
        note=note,
        swapped=compare_url(request, baseline, run_id),
        here=compare_url(request, run_id, baseline),
        only_notable=only_notable,
        compared=compared,
        moment=moment_text,
        iso=moment_iso,
        plural=plural,
        **given,
    )


def _given(request: Request, compared: RunComparison, only_notable: bool) -> dict[str, Any]:
    notable = compared.notable_steps
    is_short = len(compared.steps) <= _MOST_ROWS
    if is_short and not only_notable:
        shown: Sequence[StepComparison] = compared.steps
    else:
        differ = {step.step_name for step in notable[:_MOST_ROWS]}
        shown = [step for step in compared.steps if step.step_name in differ]
    links = (
        link_to(request, "runs", compared.run.run_id),
        link_to(request, "runs", compared.baseline.run_id),
    )
    both = [each for step in shown for each in (step.run, step.baseline) if each is not None]
    longest_ms = max((each.duration_ms for each in both), default=0.0)
    rows = [_row(step, links, longest_ms) for step in shown]
    by_extent = [_row(step, links, longest_ms) for step in notable if step.has_notable_duration]
    trends = {
        trend: [row for row in by_extent if row.trend == trend] for trend in ("slower", "faster")
    }
    return {
        "sides": (
            _side("Run", compared.run, links[0]),
            _side("Baseline", compared.baseline, links[1]),
        ),
        "statuses": _statuses(compared),
        "duration_words": run_difference_text(compared),
        "is_slower": compared.difference_ms > 0,
        "inputs": [(name_text(each.name), input_text(each)) for each in compared.inputs],
        "trends": {trend: (found[:_MOST_NAMED], found) for trend, found in trends.items() if found},
        "others": {
            change: [name_text(step.step_name) for step in compared.steps if step.change == change]
            for change in ("added", "removed")
        },
        "rows": rows,
        "notable": len(notable),
        "is_short": is_short,
    }


def _side(title: str, report: RunReport, link: str) -> _ComparedRun:
    word = report.status
    failed = first_failure(report)
    trace = "" if failed is None or failed.error is None else error_trace(failed.error, _TRACE).text
    return _ComparedRun(
        title,
        report,
        link,
        StatusBadge(*RUN_BADGES[word], word),
        took(report.total_duration_ms, report.span_ms),
        error_text(report),
        trace,
    )


def _statuses(compared: RunComparison) -> str:
    before, now = compared.baseline.status, compared.run.status
    return f"{now} in both" if before == now else pair(before, now)


def _row(step: StepComparison, links: tuple[str, str], longest_ms: float) -> _ComparedStep:
    run, baseline = step.run, step.baseline
    link = links[1] if run is None else links[0]
    return _ComparedStep(
        step,
        name_text(step.step_name),
        step_url(link, step.step_name),
        None if run is None else _badge(run.status),
        (_took(baseline), _took(run)),
        (_width(baseline, longest_ms), _width(run, longest_ms)),
        step.change if step.change != "both" else difference_text(step),
        step_facts(step),
    )


def _badge(status: StepStatus) -> StatusBadge:
    return StatusBadge(status.lower(), STATUS_SYMBOLS[status], status.value)


def _took(result: StepResult | None) -> str:
    return "–" if result is None or result.started_ms is None else duration(result.duration_ms)


def _width(result: StepResult | None, longest_ms: float) -> float:
    if result is None or result.started_ms is None:
        return 0.0
    share = result.duration_ms / longest_ms if longest_ms else 0.0
    return round(max(share * 100, _LEAST_WIDTH), 2)
