"""Errors and moments in short texts, whatever they are."""

from __future__ import annotations

from datetime import UTC, datetime, tzinfo

from asyncflow._core.errors import RestoredError
from asyncflow._core.history.results import to_restored_error
from asyncflow._core.history.value_preview import Preview, beginning, printable, shortened, size_of
from asyncflow._core.text import describe_error


def error_words(error: BaseException, limit: int) -> str:
    """Return ``ErrorType: message`` in one line of at most about ``limit`` bytes of HTML."""
    return shortened(describe_error(error), limit)


def error_trace(error: BaseException, limit: int) -> Preview:
    """Return the traceback of an error; a long one loses its middle."""
    restored = to_restored_error(error)
    text = restored.traceback or (
        f"{restored.type_name}: {restored.message}" if isinstance(error, RestoredError) else ""
    )
    text = printable(text.rstrip() or describe_error(error))
    if size_of(text) <= limit:
        return Preview(text, cut=False)
    head = beginning(text, limit // 3)
    tail = beginning(text[::-1], limit - limit // 3)[::-1]
    left_out = len(text) - len(head) - len(tail)
    return Preview(f"{head}\n… {left_out:,} characters left out …\n{tail}", cut=True)


def moment_text(wall_time: float, zone: tzinfo = UTC) -> str:
    """Return seconds since the epoch as date and time: ``2024-06-01 14:00:00 UTC+02:00``.

    All displays write times like that, but for those on an axis. ``times.js`` does the same in a
    browser, whose zone it knows.
    """
    moment = _moment(wall_time, zone)
    if moment is None:
        return "at an unknown time"
    return f"{moment:%Y-%m-%d %H:%M:%S} {zone_name(moment)}"


def local_moment_text(wall_time: float) -> str:
    """Return seconds since the epoch as `moment_text` does, in the zone of this machine then."""
    return moment_text(wall_time, local_zone(wall_time))


def local_zone(wall_time: float) -> tzinfo:
    """Return the zone of this machine at a time in seconds since the epoch."""
    moment = _moment(wall_time, UTC)
    return UTC if moment is None else moment.astimezone().tzinfo or UTC


def zone_name(moment: datetime) -> str:
    """Return the zone of a time by its offset: ``UTC``, ``UTC+02:00``."""
    offset = moment.isoformat(timespec="seconds")[19:]
    return "UTC" if offset == "+00:00" else f"UTC{offset}"


def ago(seconds: float) -> str:
    """Return how long ago something was, roughly: ``12 s ago``, ``3 min ago``, ``2 d ago``."""
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= (2 * length if unit == "d" else length):
            return f"{int(seconds // length)} {unit} ago"
    return "just now" if seconds < 1 else f"{int(seconds)} s ago"


def moment_iso(wall_time: float) -> str:
    """Return seconds since the epoch in ISO 8601; empty if no calendar has that time."""
    moment = _moment(wall_time, UTC)
    return "" if moment is None else moment.isoformat(timespec="milliseconds")


def _moment(wall_time: float, zone: tzinfo) -> datetime | None:
    try:
        return datetime.fromtimestamp(wall_time, zone)
    except (ValueError, OverflowError, OSError):
        return None
