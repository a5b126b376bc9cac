"""Decides which type the cells of a column have, and converts them.

Rules:

1. An empty cell, or one of ``NA``, ``N/A``, ``NULL``, ``NaN`` or ``#N/A`` in upper or lower case,
   is no value and tells nothing about its column.
2. A column has the first of the types integer, real, boolean and date as which at least 95 of 100
   of its values can be read (`NEARLY_ALL`), else it is text. The few values that cannot be read
   then are errors of their rows; in a text column nothing is an error.
3. An integer column has no other value that can be read as a number, or it would be real.
4. Digits that a number would not keep (a leading zero, a plus sign, more than 64 bits) are a code.
   One code in a column of numbers makes it text: telephone numbers are not counted.
5. A comma is a decimal point only in a file whose cells are separated by semicolons, and only in
   a column where nearly all numbers are written so.
6. Whether 03/04/2024 is in March or in April is decided for the whole column, by the dates that
   can be read in one way only; nearly all of those must agree. If they do not, or there are none,
   the column stays text: a guess would corrupt it silently.
"""

from __future__ import annotations

import datetime
import math
import re
from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal, TypeAlias

__all__ = ["NEARLY_ALL", "Column", "Survey", "Value", "is_missing"]

NEARLY_ALL = 0.95
"""The share of a column's values that must have a type before the column has it."""

_WORTH_A_NOTE = 0.5
_LONGEST = 64  # characters that a number, a date or a boolean may have

Kind: TypeAlias = Literal["integer", "real", "boolean", "date", "text"]
Value: TypeAlias = int | float | str | None
Reading: TypeAlias = Literal[
    "integer",
    "real",
    "decimal comma",
    "code",
    "boolean",
    "day first",
    "month first",
    "either way",
]
"""One way to read a value. A date that can be read "either way" is another date each way."""

_MISSING = frozenset({"", "na", "n/a", "null", "nan", "#n/a"})
_BOOLEANS = {"true": 1, "yes": 1, "false": 0, "no": 0}
_MONTHS = (
    *("january", "february", "march", "april", "may", "june", "july"),
    *("august", "september", "october", "november", "december"),
)
_INTEGER = re.compile(r"-?(0|[1-9]\d*)", re.ASCII)
_CODE = re.compile(r"[+-]?\d+", re.ASCII)
_REAL = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_YEAR_FIRST = re.compile(r"(\d{4})([-/.])(\d{1,2})\2(\d{1,2})", re.ASCII)
_YEAR_LAST = re.compile(r"(\d{1,2})([-/.])(\d{1,2})\2(\d{4})", re.ASCII)
_DAY_MONTH_NAME = re.compile(r"(\d{1,2})\.?[ -]([A-Za-z]+)\.?[ -](\d{4})", re.ASCII)
_MONTH_NAME_DAY = re.compile(r"([A-Za-z]+)\.? (\d{1,2}),? (\d{4})", re.ASCII)


def is_missing(cell: str) -> bool:
    """Whether the cell is no value."""
    return len(cell) <= _LONGEST and cell.strip().lower() in _MISSING


@dataclass(frozen=True, slots=True)
class Column:
    """A column and its type."""

    header: str
    """Its name as the source has it."""
    kind: Kind
    day_first: bool = False
    decimal_comma: bool = False

    def convert(self, cell: str) -> Value:
        """Return the value of a cell: booleans as 0 or 1, dates as ``YYYY-MM-DD``.

        Raises:
            ValueError: It cannot be read as the column's type.
        """
        if is_missing(cell):
            return None
        if self.kind == "text":
            return cell
        value = _READERS[self.kind](cell.strip(), self)
        if value is None:
            shown = cell if len(cell) <= _LONGEST else f"{cell[:_LONGEST]}…"
            raise ValueError(f"column {self.header!r}: {shown!r} is no {self.kind}")
        return value


def _integer(cell: str, _: Column) -> int | None:
    if _INTEGER.fullmatch(cell):
        value = int(cell)
        if -(2**63) <= value < 2**63:
            return value
    return None


def _real(cell: str, column: Column) -> float | None:
    if column.decimal_comma:
        cell = cell.replace(",", ".", 1)
    if not _REAL.fullmatch(cell):
        return None
    value = float(cell)
    return value if math.isfinite(value) else None


def _boolean(cell: str, _: Column) -> int | None:
    return _BOOLEANS.get(cell.lower())


def _date(cell: str, column: Column) -> str | None:
    if match := _YEAR_FIRST.fullmatch(cell):
        year, _, month, day = match.groups()
    elif match := _YEAR_LAST.fullmatch(cell):
        day, separator, month, year = match.groups()
        if separator != "." and not column.day_first:  # nobody puts the month before a full stop
            day, month = month, day
    elif match := _DAY_MONTH_NAME.fullmatch(cell):
        day, month, year = match.groups()
    elif match := _MONTH_NAME_DAY.fullmatch(cell):
        month, day, year = match.groups()
    else:
        return None
    try:
        return datetime.date(int(year), _month(month), int(day)).isoformat()
    except ValueError:  # such as the 30th of February
        return None


def _month(text: str) -> int:
    if text.isdecimal():
        return int(text)
    name = text.lower()
    return next((n for n, month in enumerate(_MONTHS, 1) if name in (month, month[:3])), 0)


_READERS = {"integer": _integer, "real": _real, "boolean": _boolean, "date": _date}


@lru_cache(maxsize=4096)
def _readings(cell: str, decimal_comma: bool) -> tuple[Reading, ...]:
    """Return all that a value can be read as; nothing if it can only be text."""
    if _integer(cell, _POINT) is not None:
        return "integer", "real", "decimal comma"
    if _real(cell, _POINT) is not None:
        return ("code", "real", "decimal comma") if _CODE.fullmatch(cell) else ("real",)
    if decimal_comma and _real(cell, _COMMA) is not None:
        return ("decimal comma",)
    if _boolean(cell, _POINT) is not None:
        return ("boolean",)
    day_first, month_first = _date(cell, _DAY_FIRST), _date(cell, _MONTH_FIRST)
    if day_first and month_first:
        same = day_first == month_first
        return ("day first", "month first") if same else ("day first", "month first", "either way")
    if day_first or month_first:
        return ("day first",) if day_first else ("month first",)
    return ()


_POINT, _COMMA = Column("", "real"), Column("", "real", decimal_comma=True)
_MONTH_FIRST, _DAY_FIRST = Column("", "date"), Column("", "date", day_first=True)


@dataclass(slots=True)
class Survey:
    """Counts what the values of one column can be read as, and keeps none of them."""

    header: str
    decimal_comma: bool
    """Whether a comma may be a decimal point in this file."""
    counts: Counter[tuple[Reading, ...]] = field(default_factory=Counter)

    def add(self, cell: str) -> None:
        """Count a cell."""
        if len(cell) > _LONGEST:  # also keeps long texts out of the cache
            self.counts[()] += 1
        elif not is_missing(cell):
            self.counts[_readings(cell.strip(), self.decimal_comma)] += 1

    def decide(self) -> tuple[Column, str | None]:
        """Return the column with its type, and what its owner should know about it, if anything."""
        total = self.counts.total()
        enough = max(1, NEARLY_ALL * total)
        numbers = max(self._count("real"), self._count("decimal comma"))
        if numbers >= enough and not self._count("code"):
            return self._number(), None
        booleans = self._count("boolean")
        if booleans >= enough:
            return Column(self.header, "boolean"), None
        dates = max(self._count("day first"), self._count("month first"))
        if dates >= enough:
            return self._date()
        most, what = max((numbers, "numbers"), (dates, "dates"), (booleans, "booleans"))
        note = None
        if _WORTH_A_NOTE * total <= most < enough and most:
            note = f"column {self.header!r} is text: only {most} of {total} values are {what}"
        return Column(self.header, "text"), note

    def _number(self) -> Column:
        points, commas = self._count("real"), self._count("decimal comma")
        if self._count("integer") == points == commas:
            return Column(self.header, "integer")
        return Column(self.header, "real", decimal_comma=commas > points)

    def _date(self) -> tuple[Column, str | None]:
        ambiguous = self._count("either way")
        both = self._count("day first", "month first")
        day_first = self._count("day first") - both
        month_first = self._count("month first") - both
        agreed = max(day_first, month_first) >= max(1, NEARLY_ALL * (day_first + month_first))
        if ambiguous and not agreed:
            return Column(self.header, "text"), (
                f"column {self.header!r} is text: nothing tells the day from the month in "
                f"{ambiguous} of its {self.counts.total()} dates"
            )
        return Column(self.header, "date", day_first=day_first > month_first), None

    def _count(self, *ways: Reading) -> int:
        """Return how many values can be read in all of these ways."""
        wanted = set(ways)
        return sum(count for readings, count in self.counts.items() if wanted <= set(readings))
