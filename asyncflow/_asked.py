"""Checks what people ask of a journal."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any, get_args

from asyncflow._archive import RunStatus
from asyncflow._core.arguments import check_number
from asyncflow._rows import column_of, is_storable

__all__ = [
    "can_be_sought",
    "check_flag",
    "check_lease",
    "check_new_id",
    "check_sought",
    "check_status",
    "check_text",
    "place_of",
    "seconds_of",
]

_LONGEST_LEASE_S = 86_400
_LONGEST_SOUGHT = 1_000
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")
_RELATIVE = (".", "..")
"""What clients take out of an address before they send it."""

_TIME = "a datetime or seconds since the epoch"


def check_lease(lease_s: float) -> None:
    """Check for how long a lease is to hold.

    Raises:
        TypeError: It is no number.
        ValueError: It is no time between a tenth of a second and a day.
    """
    check_number("lease_s", lease_s, 0.1, unit=" s")
    if lease_s > _LONGEST_LEASE_S:
        raise ValueError(
            f"lease_s must be at most {_LONGEST_LEASE_S} s, not {lease_s:g}; it is how long others "
            "wait for a process that has died on another machine"
        )


def check_text(what: str, value: object) -> None:
    """Check what has to be a text.

    Raises:
        TypeError: It is none.
    """
    if not isinstance(value, str):
        raise TypeError(f"{what} must be a str, not {type(value).__name__}")


def check_new_id(run_id: str) -> None:
    """Check an id under which a run may be kept.

    Raises:
        TypeError: It is no text.
        ValueError: A database, a line of text or the address of a page could not have it.
    """
    check_text("run_id", run_id)
    if not run_id:
        raise ValueError("run_id must not be empty; leave it out to have one made")
    is_plain = column_of(run_id) == run_id and not _CONTROL.search(run_id)
    if not is_plain or run_id in _RELATIVE:
        raise ValueError(
            f"run_id can't be {run_id!r}: it stands in tables, lines of text and addresses of "
            "pages, so it must have no control characters and no surrogates, not begin with '\"', "
            "and not be '.' or '..'"
        )


def check_status(status: str | None) -> None:
    """Check the status that runs are to have.

    Raises:
        ValueError: There is no such status.
    """
    known = get_args(RunStatus)
    if status is not None and status not in known:
        names = ", ".join(map(repr, known))
        raise ValueError(f"status must be one of {names}, not {status!r}")


def check_flag(what: str, value: object) -> None:
    """Check what has to be true, false or left open.

    Raises:
        TypeError: It is none of these.
    """
    if value is not None and not isinstance(value, bool):
        raise TypeError(f"{what} must be True, False or None, not {type(value).__name__}")


def check_sought(text: str) -> None:
    """Check a text that is looked for in names.

    Raises:
        TypeError: It is no text.
        ValueError: It is too long, or no database would take it.
    """
    check_text("text", text)
    if not can_be_sought(text):
        raise ValueError(
            f"text must have at most {_LONGEST_SOUGHT:,} characters, and neither NUL nor surrogates"
        )


def can_be_sought(text: str) -> bool:
    """Whether a text is short enough, and one that every database takes."""
    return len(text) <= _LONGEST_SOUGHT and is_storable(text)


def seconds_of(what: str, time: datetime | float, kind: str = _TIME) -> float:
    """Return a time in seconds since the epoch.

    Raises:
        TypeError: It is none.
        ValueError: It is not finite, or before the epoch.
    """
    if isinstance(time, datetime):
        return time.timestamp()
    check_number(what, time, 0, kind=kind)
    return time


def place_of(before: Any) -> float | tuple[float, str]:
    """Return a time, or the place of a run in the list of all.

    Raises:
        TypeError: It is neither.
        ValueError: It is not finite, or before the epoch, or no run can have the id.
    """
    if not isinstance(before, tuple):
        return seconds_of("before", before, f"{_TIME}, or RunRecord.place")
    try:
        started_at, run_id = before
    except ValueError:
        raise TypeError("before must be a time, or what RunRecord.place gives") from None
    check_text("the run id in before", run_id)
    if not is_storable(run_id):
        raise ValueError(f"the run id in before must have neither NUL nor surrogates: {run_id!r}")
    return seconds_of("the time in before", started_at), run_id
