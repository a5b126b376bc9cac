"""Checks what people ask of a journal."""

from __future__ import annotations

from datetime import datetime
from typing import get_args

from asyncflow._archive import RunStatus
from asyncflow._numbers import check_number
from asyncflow._rows import column_of

__all__ = ["check_lease", "check_new_id", "check_status", "check_text", "seconds_of"]

_LONGEST_LEASE_S = 86_400


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
        ValueError: No database would take it.
    """
    check_text("run_id", run_id)
    if not run_id or column_of(run_id) != run_id:
        raise ValueError(
            "run_id must have a character, no quotes at its start, and neither NUL nor "
            f"surrogates, unlike {run_id!r}"
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


def seconds_of(since: datetime | float) -> float:
    """Return a time in seconds since the epoch.

    Raises:
        TypeError: It is none.
        ValueError: It is not finite, or before the epoch.
    """
    if isinstance(since, datetime):
        return since.timestamp()
    check_number("since", since, 0, kind="a datetime or seconds since the epoch")
    return since
