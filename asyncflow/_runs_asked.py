"""Which runs a page or a program asks for, as it stands in the query of its URL."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple
from urllib.parse import urlencode

from asyncflow._archive import RunRecord
from asyncflow._web_journal import RunsJournal

__all__ = ["STATES", "TIMES", "Asked", "asked_in", "runs_asked"]

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
