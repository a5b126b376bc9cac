"""The list of a journal's runs: which of them a request selects, and how they stand.

However many runs there are, the list takes five queries: one for its rows, one for what it says of
them beside their records, one for the counts, two for the queue. For each pipeline that runs or has
passed, one more tells how long that usually takes; for one with runs that took longer, some more in
which steps.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import NamedTuple
from urllib.parse import urlencode

from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import Response

from asyncflow._core.history.results import RunStatus
from asyncflow._core.history.value_preview import preview, shortened
from asyncflow._core.run_attributes import attribute_text, attributes_from
from asyncflow._core.text import escape_controls
from asyncflow._views.progress import left_text
from asyncflow._views.slowness import slowness_text
from asyncflow._views.waiting import queue_text
from asyncflow.journal._base import SQLJournal
from asyncflow.journal._read.queries import (
    DAMAGED,
    RunFilter,
    RunRecord,
    RunSummary,
    WaitKind,
    listed_status,
    parse_status,
    parse_time,
    so_far_ms,
)
from asyncflow.web._responses import path_in, problem, render

_TIMES = {"1h": "the last hour", "24h": "the last 24 hours", "7d": "the last 7 days"}
_MEANINGS = {
    RunStatus.ORPHANED: "orphaned: its process is gone",
    RunStatus.INTERRUPTED: "interrupted: it was cancelled",
    DAMAGED: "damaged: what the journal has of it can't be read",
}
_WAITS: Mapping[WaitKind, str] = {
    "signal": "for a signal",
    "time": "until a time",
    "key": "for a key",
    "place": "for a place",
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
    waits_for: str = ""
    """A `WaitKind`."""
    attribute: tuple[str, ...] = ()
    """Attributes, each as `attributes_from` reads it."""
    before: str = ""
    """The `place` of the last run of the page before."""
    limit: int = _USUALLY

    @property
    def has_conditions(self) -> bool:
        return any(self._replace(before="", limit=0))

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
    names = ("text", "pipeline", "status", "since", "waits_for")
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
        waits_for=query.waits_for or None,  # type: ignore[arg-type]  # it is checked there
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
    summaries, nothing = await journal.summaries(runs), RunSummary()
    return render(
        request,
        "runs.html",
        query=query,
        rows=[(record, summaries.get(record.run_id, nothing)) for record in runs],
        statuses=["", *RunStatus],
        chosen=parse_status(query.status or None) or "",
        counts=await _counts(journal, query, now_s),
        queued=queue_text(await journal.queue(pipeline=query.pipeline or None)),
        waits=_WAITS,
        older=query.url(before=following) if following else None,
        newest=query.url(before="") if query.before else None,
        meanings=_MEANINGS,
        times=_TIMES,
        pipelines=sorted({*pipelines, *(record.pipeline for record in runs)} - {""}),
        now_s=now_s,
        status_of=listed_status,
        ran_ms_of=so_far_ms,
        left_of=left_text,
        line_of=_line,
        slowness_of=slowness_text,
        slower=await journal._slower(runs),
        inputs_of=_inputs_line,
        attribute_text=attribute_text,
    )


def _line(summary: RunSummary) -> str:
    """Return what runs now, the first error, or why the run stopped."""
    return shortened(escape_controls(summary.line), _LONGEST_LINE)


def _inputs_line(summary: RunSummary) -> str:
    """Return the inputs of a run in one line, without secrets: ``day='monday', n=3``."""
    shown = [
        f"{escape_controls(name)}={' '.join(preview(value, _LONGEST_INPUT).text.split())}"
        for name, value in list(summary.inputs.items())[:_MOST_INPUTS]
    ]
    more = ["…"][: len(summary.inputs) > _MOST_INPUTS]
    return shortened(", ".join([*shown, *more]), _LONGEST_LINE)


async def _counts(journal: SQLJournal, query: RunQuery, now_s: float) -> dict[str, int]:
    """Return how many runs have which status, and as "" how many there are.

    It is empty if counting them would take long: only a look at each run tells which has a text.
    """
    if query.text or query.attribute or query.waits_for:
        return {}
    counts = await journal.counts(
        pipeline=query.pipeline or None,
        since=parse_time(query.since, now_s) if query.since else None,
    )
    return {"": sum(counts.values()), **{str(each): count for each, count in counts.items()}}
