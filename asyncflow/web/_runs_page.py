"""Which runs a page or a program asks for, as it stands in the query of its URL.

How long runs took, over the time at which they began, as a drawing.

Rules:

1. A run is told by a shape, and its colour only repeats it.
2. Durations stand on a logarithmic scale: there are runs of milliseconds beside others of hours.
3. Places from left to right are shares of the width, those from top to bottom are pixels.

The list of the runs that a journal has kept.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import Response

from asyncflow._views.axis import tick_step_ms
from asyncflow._views.event_text import duration
from asyncflow._views.preview import moment_iso, moment_text
from asyncflow.journal._queries import RunRecord
from asyncflow.web._responses import link_to, path_in, problem, render
from asyncflow.web._resumer import RunsJournal

__all__ = [
    "SIGNS",
    "STATES",
    "TIMES",
    "Asked",
    "Dot",
    "Mark",
    "Scatter",
    "asked_in",
    "runs_asked",
    "runs_page",
    "scatter",
    "state_of",
]

STATES = ("running", "orphaned", "passed", "failed", "interrupted")
"""What a run can be. One that is orphaned has not ended, but nobody runs it."""

TIMES = {"1h": "the last hour", "24h": "the last 24 hours", "7d": "the last 7 days"}
_AGE = re.compile(r"(\d{1,6})([mhd])")
_SECONDS = {"m": 60, "h": 3_600, "d": 86_400}
_MOST, _USUALLY = 1_000, 50


class Asked(NamedTuple):
    """What runs there are to be, each part an empty text if anything will do."""

    text: str = ""
    """What is in the id or in the name of the pipeline."""
    pipeline: str = ""
    status: str = ""
    """One of `STATES`."""
    since: str = ""
    """An age, such as ``24h``, a time in ISO 8601, or seconds since the epoch."""
    before: str = ""
    """The `place` of the last run of the page before."""
    limit: int = _USUALLY

    @property
    def is_narrowed(self) -> bool:
        """Whether there may be others."""
        return any((self.text, self.pipeline, self.status, self.since))

    def query(self, **changes: str) -> str:
        """Return it as the query of a URL, with its question mark, but for what is changed."""
        asked = {name: value for name, value in {**self._asdict(), **changes}.items() if value}
        if self.limit == _USUALLY:
            del asked["limit"]
        return f"?{urlencode(asked, errors='replace')}" if asked else "?"


def asked_in(query: Mapping[str, str]) -> Asked:
    """Return what a query asks for.

    Raises:
        ValueError: It asks for what can't be. The message says what is wrong.
    """
    texts = {name: query.get(name, "").strip() for name in ("text", "pipeline", "status", "since")}
    asked = Asked(**texts, before=query.get("before", ""), limit=_limit_in(query.get("limit", "")))
    if asked.status and asked.status not in STATES:
        raise ValueError(f"status must be one of {', '.join(STATES)}, not {asked.status!r}")
    return asked


def _limit_in(text: str) -> int:
    if not text:
        return _USUALLY
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:9]) <= _MOST:
        raise ValueError(f"limit must be a number from 1 to {_MOST:,}, not {text!r}")
    return int(text)


async def runs_asked(
    journal: RunsJournal, asked: Asked, now_s: float
) -> tuple[list[RunRecord], str]:
    """Return the runs that are asked for, and the place after which others follow, if any do.

    Args:
        journal: Where they are.
        asked: Which.
        now_s: The present time, in seconds since the epoch.

    Raises:
        ValueError: It asks for what can't be. The message says what is wrong.
    """
    status: Any = asked.status or None
    orphaned = None
    if status in ("running", "orphaned"):
        status, orphaned = "running", status == "orphaned"
    found = await journal.runs(
        status,
        asked.pipeline or None,
        _time_of(asked.since, now_s) if asked.since else None,
        asked.limit + 1,
        before=_place_of(asked.before) if asked.before else None,
        text=asked.text or None,
        orphaned=orphaned,
    )
    runs = found[: asked.limit]
    return runs, _text_of(runs[-1]) if len(found) > asked.limit else ""


def _time_of(since: str, now_s: float) -> float:
    age = _AGE.fullmatch(since)
    if age is not None:
        return max(0.0, now_s - int(age[1]) * _SECONDS[age[2]])
    try:
        time = float(since)
    except ValueError:
        time = _moment(since)
    if not 0 <= time < math.inf:
        raise _refusal(since)
    return time


def _moment(since: str) -> float:
    try:
        return datetime.fromisoformat(since).timestamp()
    except (ValueError, OverflowError, OSError):
        raise _refusal(since) from None


def _refusal(since: str) -> ValueError:
    return ValueError(
        "since must be an age such as 30m, 24h or 7d, a time such as 2024-06-01T12:00, or seconds "
        f"since the epoch, not {since!r}"
    )


def _text_of(record: RunRecord) -> str:
    started_at, run_id = record.place
    return f"{started_at!r},{run_id}"


def _place_of(before: str) -> tuple[float, str]:
    time, comma, run_id = before.partition(",")
    try:
        started_at = float(time)
    except ValueError:
        started_at = math.nan
    if not comma or not 0 <= started_at < math.inf:
        raise ValueError(f"before must be what a page names as the next one, not {before!r}")
    return started_at, run_id


HEIGHT, _TOP, _BOTTOM = 168, 12, 140
_MARGIN = 2.5
"""How much of the width stays free at either end, in percent."""

_WORDS = {
    0.001: "1 ms",
    0.01: "10 ms",
    0.1: "100 ms",
    1: "1 s",
    10: "10 s",
    60: "1 min",
    600: "10 min",
    3_600: "1 h",
    36_000: "10 h",
    86_400: "1 d",
    864_000: "10 d",
    8_640_000: "100 d",
}
_DURATIONS_S = tuple(_WORDS)
_DAY_S = 86_400
_MOST_STEPS = 6


class Dot(NamedTuple):
    """What is drawn of a run."""

    run_id: str
    state: str
    started_at: float
    """In seconds since the epoch."""
    duration_s: float


class Mark(NamedTuple):
    """Where something is drawn."""

    at: float
    """In percent from the left, or in pixels from the top."""
    value: float
    """A time in seconds since the epoch, or a duration in seconds."""
    words: str = ""
    """What a duration reads like."""


class Scatter(NamedTuple):
    """The drawing."""

    dots: list[tuple[float, float, Dot]]
    """Each run with its place: in percent from the left, and in pixels from the top."""
    times: list[Mark]
    durations: list[Mark]
    form: str
    """What matters of its times: ``second``, ``minute``, ``day``, or ``moment`` for the last two
    together."""


def scatter(dots: Sequence[Dot]) -> Scatter | None:
    """Return the drawing of some runs; ``None`` if there are none."""
    if not dots:
        return None
    starts = [dot.started_at for dot in dots]
    first, last = min(starts), max(starts)
    if last - first < 10:  # a single one is drawn in the middle
        middle = (first + last) / 2
        first, last = middle - 5, middle + 5
    low, high = _range_of([dot.duration_s for dot in dots])

    def across(time: float) -> float:
        share = (time - first) / (last - first)
        return round(_MARGIN + share * (100 - 2 * _MARGIN), 3)

    def down(duration_s: float) -> float:
        share = math.log(max(duration_s, low) / low) / math.log(high / low)
        return round(_BOTTOM - share * (_BOTTOM - _TOP), 2)

    step = tick_step_ms((last - first) / _MOST_STEPS * 1000) / 1000
    times = range(math.ceil(first / step), math.floor(last / step) + 1)
    return Scatter(
        [(across(dot.started_at), down(dot.duration_s), dot) for dot in dots],
        [Mark(across(tick * step), tick * step) for tick in times],
        [Mark(down(each), each, _WORDS[each]) for each in _DURATIONS_S if low <= each <= high],
        _form_of(step, last - first),
    )


def _form_of(step_s: float, span_s: float) -> str:
    if step_s >= _DAY_S:
        return "day"
    if span_s > _DAY_S / 2:
        return "moment"
    return "minute" if step_s >= 60 else "second"


def _range_of(durations_s: Sequence[float]) -> tuple[float, float]:
    """Return the marks on the scale of durations that are below and above all of them."""
    shortest = max(min(durations_s), _DURATIONS_S[0])
    longest = max(max(durations_s), shortest)
    low = max(each for each in _DURATIONS_S if each <= shortest)
    high = next((each for each in _DURATIONS_S if each > longest), longest * 2)
    return low, high


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
        "runs.html",
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
