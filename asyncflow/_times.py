"""What durations and moments read like on a page."""

from __future__ import annotations

from datetime import UTC, datetime

__all__ = ["duration_text", "moment_iso", "moment_text"]

_SECOND, _MINUTE, _HOUR, _DAY = 1_000, 60_000, 3_600_000, 86_400_000


def duration_text(ms: float) -> str:
    """Return a duration in milliseconds with the unit that suits it: ``1.25 s``, ``2 m 05 s``."""
    if ms < 10:
        return f"{ms:.2g} ms" if 0 < ms < 0.995 else f"{ms:.1f} ms".replace(".0 ", " ")
    if ms < 999.5:
        return f"{ms:.0f} ms"
    if ms < 59_995:
        return f"{ms / _SECOND:.2f} s" if ms < 9_995 else f"{ms / _SECOND:.1f} s"
    seconds = round(ms / _SECOND)
    if seconds < 3_600:
        return f"{seconds // 60} m {seconds % 60:02} s"
    minutes = round(ms / _MINUTE)
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60:02} m"
    hours = round(ms / _HOUR)
    return f"{hours // 24} d {hours % 24:02} h"


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
