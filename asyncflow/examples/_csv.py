"""Reads the records of a CSV file, and finds the type of each of its columns.

A column has the type that nearly all of its values have, else it is text; the few others are errors
of their rows. A number would lose a leading zero, so digits with one are no number.
"""

from __future__ import annotations

import asyncio
import csv
import datetime
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import IO, NamedTuple, TypeVar

from asyncflow import current_step

T = TypeVar("T")


def until_cancelled(items: Iterable[T]) -> Iterator[T]:
    """Yield the items until the current step must stop, then raise ``CancelledError``.

    A thread can't be cancelled, so the long loops of steps in threads iterate over this.
    """
    step = current_step()
    for item in items:
        if step.cancel_requested:
            raise asyncio.CancelledError
        yield item


class Record(NamedTuple):
    """The header or a row: where it starts, its text, and its cells or why there are none."""

    line: int
    text: str
    cells: list[str]
    problem: str | None


def find_delimiter(text: IO[str]) -> str:
    """Return what the standard library takes for the delimiter of the header; else a comma."""
    text.seek(0)
    header = next((line for line in text if line.strip()), "")
    try:
        return csv.Sniffer().sniff(header, delimiters=",;\t|").delimiter
    except csv.Error:  # such as a header of one column
        return ","


def read_records(text: IO[str], delimiter: str) -> Iterator[Record]:
    """Yield the records of a file from its start; the first one is the header."""
    text.seek(0)
    taken: list[str] = []

    def lines() -> Iterator[str]:
        for line in until_cancelled(text):
            taken.append(line)
            yield line

    reader = csv.reader(lines(), delimiter=delimiter, strict=True)
    while True:
        line, cells, problem = reader.line_num + 1, list[str](), None
        taken.clear()
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:  # an unclosed quote takes the lines up to the next quote with it
            problem = str(error)
        if cells or problem:  # a blank line is no record
            yield Record(line, "".join(taken).rstrip("\r\n"), cells, problem)


NEARLY_ALL = 0.95
"""The share of a column's values that must have a type before the column has it."""

_MISSING = frozenset({"", "na", "n/a", "null", "nan"})
_TYPED = re.compile(
    r"(?P<integer>-?(?:0|[1-9][0-9]{0,17}))"
    r"|(?P<real>-?(?:0|[1-9][0-9]{0,17})(?:\.[0-9]+)?(?:[eE][+-]?[0-9]{1,2})?)"
    r"|(?P<boolean>(?i:true|yes|false|no))"
    r"|(?P<date>[0-9]{4}-[0-9]{2}-[0-9]{2})"
)


def kind_of(cell: str) -> str | None:
    """Return the type of the value of a cell; ``None`` if it has no value."""
    value = cell.strip()
    if value.lower() in _MISSING:
        return None
    match = _TYPED.fullmatch(value)
    return match.lastgroup if match else "text"


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the source and its type."""

    header: str
    kind: str

    def convert(self, cell: str) -> int | float | str | None:
        """Return the value of a cell; a ``ValueError`` if it does not have the column's type."""
        kind = kind_of(cell)
        if kind is None:
            return None
        if self.kind not in ("text", kind) and (self.kind, kind) != ("real", "integer"):
            raise ValueError(f"column {self.header!r}: {cell[:64]!r} is not of type {self.kind}")
        match self.kind:
            case "integer":
                return int(cell)
            case "real":
                return float(cell)
            case "boolean":
                return int(cell.strip().lower() in ("true", "yes"))
            case "date":
                return datetime.date.fromisoformat(cell.strip()).isoformat()
        return cell


def column_of(header: str, kinds: Counter[str]) -> Column:
    """Return the column that has so many values of each type."""
    enough = max(1, NEARLY_ALL * kinds.total())
    if kinds["integer"] + kinds["real"] >= enough:
        return Column(header, "real" if kinds["real"] else "integer")
    return Column(header, next((kind for kind in kinds if kinds[kind] >= enough), "text"))


_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


def snake_case(text: str, default: str) -> str:
    """Return the text in lower case with ``_`` between its words; the default if it has none."""
    name = re.sub(r"[\W_]+", "_", _HUMP.sub("_", text)).strip("_").lower()
    return f"{default}_{name}" if name[:1].isdigit() else name or default
