"""The list of a journal's runs: which of them a request selects, and how they stand.

However many runs there are, the list takes three queries: one for its rows, one for what it says of
them beside their records, one for the counts. For each pipeline that runs, one more tells how long
that usually takes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, NamedTuple
from urllib.parse import urlencode

from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import Response

from asyncflow._core.looks import RUN_LOOKS
from asyncflow._core.results import RunStatus
from asyncflow._core.run_attributes import attribute_text, attributes_from
from asyncflow._core.text import duration, escape_controls
from asyncflow._views.preview import ago, moment_iso, moment_text, preview, shortened
from asyncflow._views.progress import left_text
from asyncflow.html_report._page_model import name_text, step_url
from asyncflow.journal._base import SQLJournal
from asyncflow.journal._queries import (
    DAMAGED,
    RunFilter,
    RunRecord,
    RunSummary,
    listed_status,
    parse_status,
    parse_time,
    so_far_ms,
)
from asyncflow.web._responses import link_to, path_in, problem, render

_TIMES = {"1h": "the last hour", "24h": "the last 24 hours", "7d": "the last 7 days"}
_MEANINGS = {
    RunStatus.ORPHANED: "orphaned: its process is gone",
    RunStatus.INTERRUPTED: "interrupted: it was cancelled",
    DAMAGED: "damaged: what the journal has of it can't be read",
}
_MOST, _USUALLY = 1_000, 50
_MOST_INPUTS, _LONGEST_INPUT, _LONGEST_LINE = 4, 60, 160


class RunQuery(NamedTuple):
    """The query of a URL that selects runs. An empty text is no condition."""

    text: str = ""
    """A part of the run's id, of its label or of the name of its pipeline."""
    pipeline: str = ""
    status: str = ""
    """A `RunStatus`."""
    since: str = ""
    """A time as `parse_time` reads it."""
    attribute: tuple[str, ...] = ()
    """Attributes, each as `attributes_from` reads it."""
    before: str = ""
    """The `place` of the last run of the page before."""
    limit: int = _USUALLY

    @property
    def has_conditions(self) -> bool:
        return any((self.text, self.pipeline, self.status, self.since, self.attribute))

    def url(self, **changes: str | tuple[str, ...]) -> str:
        """Return it as the query of a URL, with its question mark, and with some changes."""
        values = {name: value for name, value in {**self._asdict(), **changes}.items() if value}
        if self.limit == _USUALLY:
            del values["limit"]
        return f"?{urlencode(values, doseq=True, errors='replace')}" if values else "?"


def query_in(query: QueryParams) -> RunQuery:
    """Return the query of a URL.

    Raise `ValueError` if the limit is invalid.
    """
    names = ("text", "pipeline", "status", "since")
    texts = {name: query.get(name, "").strip() for name in names}
    limit = query.get("limit", "") or str(_USUALLY)
    if not limit.isascii() or not limit.isdigit() or not 1 <= int(limit[:9]) <= _MOST:
        raise ValueError(f"limit must be a number from 1 to {_MOST:,}, not {limit!r}")
    attribute = tuple(filter(None, map(str.strip, query.getlist("attribute"))))
    before = query.get("before", "")
    return RunQuery(**texts, attribute=attribute, before=before, limit=int(limit))


async def selected(
    journal: SQLJournal, query: RunQuery, now_s: float
) -> tuple[list[RunRecord], str]:
    """Return the runs that a query selects, and the ``before`` of the next ones, if there are any.

    ``now_s`` is the present time, in seconds since the epoch. Raise `ValueError` if a condition is
    invalid; the message says which.
    """
    conditions = RunFilter(
        query.status or None,
        pipeline=query.pipeline or None,
        since=parse_time(query.since, now_s) if query.since else None,
        limit=query.limit + 1,
        before=_place_of(query.before) if query.before else None,
        text=query.text,
        attributes=attributes_from(query.attribute),
    )
    found = await journal.runs(**asdict(conditions))
    runs = found[: query.limit]
    return runs, "{!r},{}".format(*runs[-1].place) if len(found) > query.limit else ""


def _place_of(before: str) -> tuple[float, str]:
    time, comma, run_id = before.partition(",")
    try:
        started_at = float(time)
    except ValueError:
        started_at = math.nan
    if not comma or not 0 <= started_at < math.inf:
        raise ValueError(f"before must be what a page gives for the next one, not {before!r}")
    return started_at, run_id


class _ListRow(NamedTuple):
    record: RunRecord
    status: str
    """A `RunStatus`, or `DAMAGED`."""
    link: str
    pipeline_link: str
    duration_s: float
    left: str
    """How long is probably left of it, if it runs."""
    line: str
    """What runs now, the first error, or why the run stopped."""
    inputs: str
    parent_link: str
    """Its parent, at the step that started it."""
    origin_link: str
    attributes: Mapping[str, str]
    """Its attributes in words, each with the link to all runs that have it."""


class _Chip(NamedTuple):
    status: str
    """Empty for all runs."""
    number: int | None
    """How many runs have it; ``None`` if counting them would take long."""
    url: str
    is_chosen: bool


async def runs_page(request: Request, journal: SQLJournal, pipelines: list[str]) -> Response:
    """Answer with the list of runs that a request selects.

    ``pipelines`` are names to choose from, beside those of the runs.
    """
    now_s = time.time()
    try:
        query = query_in(request.query_params)
        runs, following = await selected(journal, query, now_s)
    except ValueError as error:
        home = [("All runs", path_in(request, "/"))]
        return problem(request, 400, "The query is invalid", f"{error}.", links=home)
    summaries = await journal.summaries(runs)
    nothing = RunSummary()
    rows = [
        _row(request, query, record, summaries.get(record.run_id, nothing), now_s)
        for record in runs
    ]
    return render(
        request,
        "runs.html",
        query=query,
        rows=rows,
        chips=await _chips(journal, query, now_s),
        older=query.url(before=following) if following else None,
        newest=query.url(before="") if query.before else None,
        meanings={word: _MEANINGS.get(word, look.said) for word, look in RUN_LOOKS.items()},
        badges=RUN_LOOKS,
        times=_TIMES,
        pipelines=sorted({*pipelines, *(record.pipeline for record in runs)} - {""}),
        duration=duration,
        ago=lambda at: ago(now_s - at),
        name=name_text,
        moment=moment_text,
        iso=moment_iso,
    )


def _row(
    request: Request, query: RunQuery, record: RunRecord, summary: RunSummary, now_s: float
) -> _ListRow:
    texts = [attribute_text(name, value) for name, value in record.attributes.items()]
    ran_ms, duration_s = so_far_ms(record, now_s), record.duration_s
    return _ListRow(
        record,
        listed_status(record),
        link_to(request, "runs", record.run_id),
        link_to(request, "pipelines", record.pipeline),
        ran_ms / 1000 if duration_s is None else duration_s,
        left_text(summary.usual_ms, ran_ms),
        shortened(escape_controls(summary.line), _LONGEST_LINE),
        _inputs_line(summary.inputs),
        step_url(link_to(request, "runs", record.parent), record.parent_step),
        link_to(request, "runs", record.rerun_of),
        {text: query.url(attribute=(text,), before="") for text in texts},
    )


def _inputs_line(inputs: Mapping[str, Any]) -> str:
    """Return the inputs of a run in one line, without secrets: ``day='monday', n=3``."""
    shown = [
        f"{escape_controls(name)}={' '.join(preview(value, _LONGEST_INPUT).text.split())}"
        for name, value in list(inputs.items())[:_MOST_INPUTS]
    ]
    return shortened(", ".join([*shown, *["…"][: len(inputs) > _MOST_INPUTS]]), _LONGEST_LINE)


async def _chips(journal: SQLJournal, query: RunQuery, now_s: float) -> list[_Chip]:
    counts: Mapping[RunStatus, int] = {}
    if not (query.text or query.attribute):  # only a look at each run tells which have it
        counts = await journal.counts(
            pipeline=query.pipeline or None,
            since=parse_time(query.since, now_s) if query.since else None,
        )
    return [
        _Chip(
            status,
            (counts[RunStatus(status)] if status else sum(counts.values())) if counts else None,
            query.url(status=status, before=""),
            (parse_status(query.status or None) or "") == status,
        )
        for status in ("", *RunStatus)
    ]
