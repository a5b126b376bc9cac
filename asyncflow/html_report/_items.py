"""The items of a mapped step: a cell for each by its outcome."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

from asyncflow._core.analysis.looks import OUTCOME_LOOKS, STEP_LOOKS, Look
from asyncflow._core.history.results import StepStatus
from asyncflow._core.history.step_view import AttemptView, StepView

OUTCOMES = ("failed", "cancelled", "retried", "running", "skipped", "success", "pending")
"""What becomes of an item, what needs attention first. One is ``retried`` if it succeeded, but not
in its first attempt."""
_COLUMNS, _PITCH = 40, 8
"""How many cells a row has, and how far the next one is, in pixels, as in `items.js`."""
_MOST_ATTEMPTS, _LATEST = 4_000, 5
"""Of more attempts in all, each item has its latest ones."""
_ENDS = {None: "r", "crashed": "x"}
"""How an attempt ended, as a letter; of the others, it is the first one."""


class CellPath(NamedTuple):
    outcome: str
    path: str
    """In the language of SVG. Cells beside each other are one shape."""


class ItemCells(NamedTuple):
    """A cell for each item; of very many items, a cell for several, as the worst of them."""

    each: int
    """How many items a cell stands for."""
    counts: list[tuple[Look, int]]
    """How many items have which outcome."""
    height: int
    paths: tuple[CellPath, ...]
    data: str
    """The cells by outcome, for the script of the page: ``failed 17:1f39.1+20,2f64+45|success …``
    says that item 17 failed, and that its attempt 1 started at 39.1 ms and failed after 20 ms."""

    @property
    def width(self) -> int:
        """How wide the cells are together, in pixels."""
        return _COLUMNS * _PITCH - 1

    @classmethod
    def of(cls, step: StepView, count: int, most: int) -> ItemCells:
        """Return the cells of a mapped step.

        ``count`` is the number of its items, as far as that is known, and ``most`` the maximum
        number of cells.
        """
        items = step.items or {}
        # An item that is only counted has no number, and so no cell.
        numbers = sorted(items) if step.left_out else range(count)
        outcomes = {number: outcome_of(items.get(number)) for number in numbers}
        counts = Counter(outcomes.values())
        counts["success"] += step.left_out
        each = max(-(-len(numbers) // most), 1)
        cells = [
            min(numbers[at : at + each], key=lambda number: _RANK[outcomes[number]])
            for at in range(0, len(numbers), each)
        ]
        shown = [outcomes[number] for number in cells]
        ordered = sorted(zip(shown, cells, strict=True), key=lambda cell: _RANK[cell[0]])
        latest = _LATEST if step.attempt_count > _MOST_ATTEMPTS else None
        return cls(
            each,
            [(look, counts[look.kind]) for look in OUTCOME_LOOKS.values() if counts[look.kind]],
            -(-len(cells) // _COLUMNS) * _PITCH,
            _paths([outcome for outcome, _ in ordered]),
            "|".join(
                " ".join([outcome, *(_data(number, items.get(number), latest) for _, number in of)])
                for outcome, of in groupby(ordered, key=lambda cell: cell[0])
            ),
        )


_RANK = {outcome: rank for rank, outcome in enumerate(OUTCOMES)}


def outcome_of(item: StepView | None) -> str:
    """Return what has become of an item; ``None`` is one that has not begun."""
    if item is not None and item.status is StepStatus.SUCCESS and len(item.attempts) > 1:
        return OUTCOME_LOOKS["RETRIED"].kind
    return STEP_LOOKS["PENDING" if item is None else item.status].kind


def _paths(outcomes: Sequence[str]) -> tuple[CellPath, ...]:
    paths: defaultdict[str, list[str]] = defaultdict(list)
    for row, begin in enumerate(range(0, len(outcomes), _COLUMNS)):
        at = 0
        for outcome, run in groupby(outcomes[begin : begin + _COLUMNS]):
            length = len(list(run))
            width, height = length * _PITCH - 1, _PITCH - 1
            paths[outcome].append(f"M{at * _PITCH} {row * _PITCH}h{width}v{height}h-{width}z")
            at += length
    return tuple(CellPath(each, "".join(paths[each])) for each in OUTCOMES if each in paths)


def _data(number: int, item: StepView | None, latest: int | None) -> str:
    attempts = [] if item is None else item.attempts
    shown = attempts if latest is None else attempts[-latest:]
    return f"{number}:{','.join(map(_attempt, shown))}"


def _attempt(attempt: AttemptView) -> str:
    took = "" if attempt.ended_ms is None else _tenths(attempt.ended_ms - attempt.started_ms)
    letter = _ENDS.get(attempt.end) or str(attempt.end)[0]
    return f"{attempt.number}{letter}{_tenths(attempt.started_ms)}+{took}"


def _tenths(ms: float) -> str:
    return f"{ms:.1f}".removesuffix(".0")
