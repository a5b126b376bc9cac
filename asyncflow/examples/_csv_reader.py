"""Reads a CSV file of unknown encoding, dialect and column types.

How the file is read:

1. A byte order mark decides the encoding. Without one it is UTF-8 if the whole file is valid UTF-8,
   else Windows-1252 if that is possible, else Latin-1, which can decode any bytes.
2. The delimiter is the one of ``,`` ``;`` tab and ``|`` with which most of the first records have
   as many cells as the header; of several, the one that gives more cells. A quote that is closed
   elsewhere than before a delimiter counts against it.
3. A quote that is never closed, or is closed in the middle of a cell, costs the line on which its
   record starts and no other: reading continues with the next line.
4. A blank line is not a record.

Which type a column has:

1. An empty cell, or one of ``NA``, ``N/A``, ``NULL``, ``NaN`` or ``#N/A`` in upper or lower case,
   has no value and says nothing about its column.
2. A column has the first of the types integer, real, boolean and date that at least 95 % of its
   values have (`NEARLY_ALL`), else it is text. The few values that do not have the type are errors
   of their rows; in a text column nothing is an error.
3. An integer column has no other value that can be read as a number, or it would be real.
4. Digits that a number would lose (a leading zero, a plus sign, more than 64 bits) are a code.
   One code in a column of numbers makes it text: telephone numbers are not numbers.
5. A comma is a decimal point only in a file whose delimiter is a semicolon, and only in a column
   where nearly all numbers are written that way.
6. Whether 03/04/2024 is in March or in April is decided for the whole column, by the dates that
   can be read in one way only; nearly all of those must agree. If they do not, or there are none,
   the column stays text: a guess would silently corrupt it.
"""

from __future__ import annotations

import asyncio
import codecs
import csv
import datetime
import io
import math
import re
import unicodedata
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache, partial
from importlib.resources.abc import Traversable
from itertools import islice
from pathlib import Path
from typing import IO, Literal, NamedTuple, TypeAlias, TypeVar

from asyncflow import current_step

__all__ = [
    "NEARLY_ALL",
    "Column",
    "Dialect",
    "Record",
    "Survey",
    "copy_source",
    "find_delimiter",
    "open_records",
    "snake_case",
    "unique_names",
    "until_cancelled",
]

T = TypeVar("T")

DELIMITERS = ",;\t|"
MAX_RECORD = 1 << 20
"""How many characters a record may have; a longer one is a stray quote, not a record."""

_CHUNK_BYTES = 1 << 18
_SAMPLE_RECORDS = 200
_UTF_8_MARK = "utf-8-sig"
_MARKS = {
    codecs.BOM_UTF8: _UTF_8_MARK,
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_NOT_WINDOWS_1252 = bytes([0x81, 0x8D, 0x8F, 0x90, 0x9D])


def until_cancelled(items: Iterable[T]) -> Iterator[T]:
    """Yield the items of an iterable until the current step must stop.

    A thread can't be cancelled, so the long loops of steps in threads iterate over this.

    Raises:
        asyncio.CancelledError: The step must stop.
    """
    step = current_step()
    for item in items:
        if step.cancel_requested:
            raise asyncio.CancelledError
        yield item


class Dialect(NamedTuple):
    """How to read a file."""

    encoding: str
    delimiter: str


class Record(NamedTuple):
    """One record of the file: the header or a row."""

    line: int
    """The number, from 1, of the line on which it starts."""
    text: str
    """Its text without the line ending. Bytes that cannot be decoded are hexadecimal escapes."""
    cells: list[str]
    problem: str | None
    """Why it has no cells; ``None`` if it could be read."""


def copy_source(source: Traversable, snapshot: IO[bytes]) -> str:
    """Copy the source into the snapshot and return its encoding.

    Raises:
        OSError: The source cannot be read.
        ValueError: It is a pipe or a device, or its content is not text.
    """
    if isinstance(source, Path) and source.exists() and not (source.is_file() or source.is_dir()):
        # A pipe can be read once: a second attempt would load the rest as if it were everything.
        raise ValueError(f"{source} is not a regular file; save its content in one first")
    snapshot.seek(0)
    snapshot.truncate()
    detector = _EncodingDetector()
    with source.open("rb") as file:
        for chunk in until_cancelled(iter(partial(file.read, _CHUNK_BYTES), b"")):
            detector.add(chunk)
            snapshot.write(chunk)
    return detector.encoding()


class _EncodingDetector:
    """Finds the encoding of a file from its bytes."""

    def __init__(self) -> None:
        self._head = b""
        self._utf_8: codecs.IncrementalDecoder | None = codecs.getincrementaldecoder("utf-8")()
        self._windows_1252 = True
        self._nul = False

    def add(self, chunk: bytes) -> None:
        self._head = self._head or chunk[:3]
        self._nul = self._nul or b"\0" in chunk
        self._decode(chunk, final=False)
        if len(chunk.translate(None, _NOT_WINDOWS_1252)) < len(chunk):
            self._windows_1252 = False

    def encoding(self) -> str:
        for mark, encoding in _MARKS.items():
            if self._head.startswith(mark):
                return encoding
        if self._nul:
            raise ValueError(
                "the source has NUL bytes: it is not text, or UTF-16 without a byte order mark"
            )
        self._decode(b"", final=True)
        if self._utf_8 is not None:
            return "utf-8"
        return "cp1252" if self._windows_1252 else "latin-1"

    def _decode(self, chunk: bytes, *, final: bool) -> None:
        if self._utf_8 is not None:
            try:
                self._utf_8.decode(chunk, final)
            except UnicodeDecodeError:
                self._utf_8 = None


def find_delimiter(snapshot: IO[bytes], encoding: str) -> str:
    """Return the delimiter of the snapshot; a comma if all fit equally well."""
    with _as_text(snapshot, encoding) as text:
        sample = text.read(MAX_RECORD)
    return max(DELIMITERS, key=lambda delimiter: _fit(sample, delimiter))


def _fit(sample: str, delimiter: str) -> tuple[float, int, int]:
    """Return how well a delimiter fits; of the three figures, the first that differs decides.

    The share of rows with as many cells as the header, if the header has several; the number of
    the header's cells, 0 if it cannot be read; minus the number of rows that cannot be read.
    """
    records = _records(_LineFeeder(io.StringIO(sample, newline="")), delimiter)
    widths = [len(record.cells) for record in islice(records, _SAMPLE_RECORDS)]
    if not widths:
        return 0.0, 0, 0
    header, rows = widths[0], widths[1:]
    share = rows.count(header) / len(rows) if rows else 1.0
    return (share if header > 1 else 0.0), header, -rows.count(0)


@contextmanager
def open_records(snapshot: IO[bytes], dialect: Dialect) -> Iterator[Iterator[Record]]:
    """Yield an iterator over the records of the snapshot; the first one is the header.

    Raises:
        ValueError: While iterating: a line is longer than `MAX_RECORD`, or UTF-16 is damaged.
    """
    with _as_text(snapshot, dialect.encoding) as text:
        yield _records(_LineFeeder(text), dialect.delimiter)


@contextmanager
def _as_text(snapshot: IO[bytes], encoding: str) -> Iterator[io.TextIOWrapper]:
    snapshot.seek(0)
    errors = "surrogateescape" if encoding == _UTF_8_MARK else "strict"
    text = io.TextIOWrapper(snapshot, encoding, errors, newline="")
    try:
        yield text
    finally:
        text.detach()  # or it would close the snapshot


def _records(lines: _LineFeeder, delimiter: str) -> Iterator[Record]:
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    for line in until_cancelled(iter(lines.begin_record, None)):  # without end
        cells, problem = list[str](), None
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            problem = _explain(error)
            lines.put_back_all_but_first()
        text = lines.record().rstrip("\r\n")
        readable = _readable(text)
        if readable != text:
            cells, problem = [], "holds bytes that are not UTF-8"
        if cells or problem:
            yield Record(line, readable, cells, problem)


def _explain(error: csv.Error) -> str:
    if str(error) == "unexpected end of data":
        return "a quote opens a cell and is never closed"
    return str(error)


def _readable(text: str) -> str:
    """Return the text with an escape for each byte that could not be decoded."""
    if text.isascii():
        return text
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


class _LineFeeder:
    """Feeds a `csv.reader` the lines of one record at a time, and can feed it a line again."""

    def __init__(self, text: IO[str]) -> None:
        self._text = text
        self._again: deque[str] = deque()
        self._taken: list[str] = []
        self._length = 0
        self._next_line = 1

    def begin_record(self) -> int:
        """Return the number, from 1, of the line on which the next record starts."""
        self._next_line += len(self._taken)
        self._taken.clear()
        self._length = 0
        return self._next_line

    def record(self) -> str:
        return "".join(self._taken)

    def put_back_all_but_first(self) -> None:
        self._again.extendleft(reversed(self._taken[1:]))
        del self._taken[1:]

    def __iter__(self) -> _LineFeeder:
        return self

    def __next__(self) -> str:
        line = self._again.popleft() if self._again else self._text.readline(MAX_RECORD + 1)
        if not line:
            raise StopIteration
        if len(line) > MAX_RECORD:
            number = self._next_line + len(self._taken)
            raise ValueError(f"line {number} has more than {MAX_RECORD} characters: is this a CSV?")
        if self._length + len(line) > MAX_RECORD:
            self._again.appendleft(line)
            raise StopIteration
        self._length += len(line)
        self._taken.append(line)
        return line


# Types of columns.

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
"""One way to read a value. A date that can be read "either way" differs by the way."""

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
    """Whether the cell has no value."""
    return len(cell) <= _LONGEST and cell.strip().lower() in _MISSING


@dataclass(frozen=True, slots=True)
class Column:
    """A column and its type."""

    header: str
    """Its name in the source."""
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
            raise ValueError(f"column {self.header!r}: {shown!r} is not of type {self.kind}")
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
        if separator != "." and not column.day_first:  # 03.04. always has the day first
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
    """Return every way to read a value; none if it is only text."""
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
    """Counts the ways to read the values of one column, and stores none of them."""

    header: str
    decimal_comma: bool
    """Whether a comma may be a decimal point in this file."""
    counts: Counter[tuple[Reading, ...]] = field(default_factory=Counter)

    def add(self, cell: str) -> None:
        """Count a cell."""
        if len(cell) > _LONGEST:  # a long text would fill the cache
            self.counts[()] += 1
        elif not is_missing(cell):
            self.counts[_readings(cell.strip(), self.decimal_comma)] += 1

    def decide(self) -> tuple[Column, str | None]:
        """Return the column with its type, and a note for the owner of the data, or ``None``."""
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
                f"column {self.header!r} is text: the day and the month are ambiguous in "
                f"{ambiguous} of its {self.counts.total()} dates"
            )
        return Column(self.header, "date", day_first=day_first > month_first), None

    def _count(self, *ways: Reading) -> int:
        """Return how many values can be read in each of these ways."""
        wanted = set(ways)
        return sum(count for readings, count in self.counts.items() if wanted <= set(readings))


# Names of tables and columns.

_ACCENTS = re.compile("[\u0300-\u036f]")
_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


def snake_case(text: str, default: str) -> str:
    """Return the text in lower case with ``_`` between its words; the default if it has none.

    Letters of every alphabet stay, without their accents. A name that would start with a digit
    gets the default and a ``_`` before it.
    """
    plain = _ACCENTS.sub("", unicodedata.normalize("NFKD", text))
    words = re.sub(r"[\W_]+", "_", _HUMP.sub("_", unicodedata.normalize("NFC", plain)))
    name = words.strip("_").casefold()
    if not name:
        return default
    return f"{default}_{name}" if name[0].isdigit() else name


def unique_names(headers: Iterable[str], taken: Iterable[str] = ()) -> list[str]:
    """Return a name for each header; the second of two equal ones ends in ``_2``, and so on.

    A blank header gets its position: ``column_3``.
    """
    used = set(taken)
    names = []
    for place, header in enumerate(headers, start=1):
        wanted = name = snake_case(header, f"column_{place}" if not header.strip() else "column")
        count = 1
        while name in used:
            count += 1
            name = f"{wanted}_{count}"
        used.add(name)
        names.append(name)
    return names
