"""What moments read like on a page."""

from __future__ import annotations

from datetime import UTC, datetime

__all__ = ["moment_iso", "moment_text"]


def moment_text(wall_time: float) -> str:
    """Return a moment, in seconds since the epoch, as date and time in UTC."""
    moment = _moment(wall_time)
    return "at an unknown time" if moment is None else f"{moment:%Y-%m-%d %H:%M:%S} UTC"


def moment_iso(wall_time: float) -> str:
    """Return a moment, in seconds since the epoch, as machines read it, or an empty text."""
    moment = _moment(wall_time)
    return "" if moment is None else moment.isoformat(timespec="milliseconds")


def _moment(wall_time: float) -> datetime | None:
    try:
        return datetime.fromtimestamp(wall_time, UTC)
    except (ValueError, OverflowError, OSError):  # no clock of this world has shown it
        return None
