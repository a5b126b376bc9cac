"""A time axis: where its ticks are, and what they are called."""

from __future__ import annotations

__all__ = ["ticks"]

_SECOND, _MINUTE, _HOUR, _DAY = 1000.0, 60_000.0, 3_600_000.0, 86_400_000.0
_UNITS = ((_DAY, "d"), (_HOUR, "h"), (_MINUTE, "min"), (_SECOND, "s"), (1.0, "ms"))
_STEPS = (
    *(unit * 10**power for power in range(-3, 3) for unit in (1.0, 2.0, 5.0)),
    *(_SECOND * count for count in (1, 2, 5, 10, 15, 30)),
    *(_MINUTE * count for count in (1, 2, 5, 10, 15, 30)),
    *(_HOUR * count for count in (1, 2, 3, 6, 12)),
)


def ticks(end_ms: float, cells: int) -> list[tuple[float, str]]:
    """Return round times from 0 to an end, each with what it is called.

    Args:
        end_ms: Where the axis ends, in milliseconds; above 0.
        cells: How long it is.

    There are ten of them at most, and eight cells from one to the next one at least.
    """
    least = end_ms * max(8 / cells, 0.1)
    step = next((step for step in _STEPS if step >= least), 0.0)
    if not step:
        days = 1.0
        while days * _DAY < least:
            days *= 2
        step = days * _DAY
    return [(number * step, _name(number * step, step)) for number in range(int(end_ms / step) + 1)]


def _name(ms: float, step: float) -> str:
    """Return a time in the largest unit in which it has no more than one decimal."""
    if not ms:
        return "0"
    for size, unit in _UNITS:
        tenths = ms / size * 10
        if ms >= size and abs(tenths - round(tenths)) < 1e-6 and (size < _MINUTE or not tenths % 5):
            return f"{ms / size:g} {unit}"
    return f"{ms:.3g} ms"
