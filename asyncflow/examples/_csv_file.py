"""Reads a CSV file of unknown encoding and dialect, record by record, with its line numbers.

Rules:

1. A byte order mark decides the encoding. Without one it is UTF-8 if all of the file is, else
   Windows-1252 if it can be, else Latin-1, which any bytes can be.
2. The delimiter is the one of ``,`` ``;`` tab and ``|`` with which most of the first records have
   as many cells as the header, and of several such the one that gives more cells. A quote that
   is closed elsewhere than before a delimiter speaks against it.
3. A quote that is never closed, or that is closed in the middle of a cell, costs the line on
   which its record began and no other: reading goes on with the next line.
4. Blank lines are no records.
"""

from __future__ import annotations

import codecs
import csv
import io
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources.abc import Traversable
from itertools import islice
from pathlib import Path
from typing import IO, NamedTuple

from asyncflow.examples._blocking import Checkpoint

__all__ = ["Dialect", "Record", "copy_source", "find_delimiter", "open_records"]

DELIMITERS = ",;\t|"
MAX_RECORD = 1 << 20
"""How many characters a record may have. What is longer is no record but a stray quote."""

_CHUNK_BYTES = 1 << 18
_SAMPLE_RECORDS = 200
_UTF_8_MARK = "utf-8-sig"
_MARKS = {
    codecs.BOM_UTF8: _UTF_8_MARK,
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_NOT_WINDOWS_1252 = bytes([0x81, 0x8D, 0x8F, 0x90, 0x9D])


class Dialect(NamedTuple):
    """How a file is to be read."""

    encoding: str
    delimiter: str


class Record(NamedTuple):
    """One record of the file: the header or a row."""

    line: int
    """The number, from 1, of the line on which it begins."""
    text: str
    """Its text without the end of the line. Bytes that cannot be decoded are in hexadecimal."""
    cells: list[str]
    problem: str | None
    """Why it has no cells, if it could not be read."""


def copy_source(checkpoint: Checkpoint, source: Traversable, snapshot: IO[bytes]) -> str:
    """Copy the source into the snapshot and return the name of its encoding.

    Raises:
        OSError: The source cannot be read.
        ValueError: It is neither a file nor a folder, or no text.
    """
    if isinstance(source, Path) and source.exists() and not (source.is_file() or source.is_dir()):
        # What a pipe has given is gone: a second attempt would load the rest as if it were all.
        raise ValueError(f"{source} is not a regular file; save its content in one first")
    snapshot.seek(0)
    snapshot.truncate()
    evidence = _Evidence()
    with source.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            checkpoint()
            evidence.add(chunk)
            snapshot.write(chunk)
    return evidence.encoding()


class _Evidence:
    """What the bytes of a file tell about its encoding."""

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
                "the source holds NUL bytes: it is no text, or UTF-16 without a byte order mark"
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
    """Return the delimiter of the snapshot; a comma if nothing tells."""
    with _as_text(snapshot, encoding) as text:
        sample = text.read(MAX_RECORD)
    return max(DELIMITERS, key=lambda delimiter: _fit(sample, delimiter))


def _fit(sample: str, delimiter: str) -> tuple[float, int, int]:
    """Return how well a delimiter fits: three figures, the first that differs decides.

    They are which share of the rows has as many cells as the header, if those are more than one;
    how many those are, 0 if the header cannot be read; and minus how many rows cannot be read.
    """
    records = _records(lambda: None, _Lines(io.StringIO(sample, newline="")), delimiter)
    widths = [len(record.cells) for record in islice(records, _SAMPLE_RECORDS)]
    if not widths:
        return 0.0, 0, 0
    header, rows = widths[0], widths[1:]
    share = rows.count(header) / len(rows) if rows else 1.0
    return (share if header > 1 else 0.0), header, -rows.count(0)


@contextmanager
def open_records(
    checkpoint: Checkpoint, snapshot: IO[bytes], dialect: Dialect
) -> Iterator[Iterator[Record]]:
    """Give an iterator over the records of the snapshot, the header being the first.

    Raises:
        ValueError: While iterating: a line is longer than `MAX_RECORD`, or UTF-16 is damaged.
    """
    with _as_text(snapshot, dialect.encoding) as text:
        yield _records(checkpoint, _Lines(text), dialect.delimiter)


@contextmanager
def _as_text(snapshot: IO[bytes], encoding: str) -> Iterator[io.TextIOWrapper]:
    snapshot.seek(0)
    errors = "surrogateescape" if encoding == _UTF_8_MARK else "strict"
    text = io.TextIOWrapper(snapshot, encoding, errors, newline="")
    try:
        yield text
    finally:
        text.detach()  # or it would close the snapshot


def _records(checkpoint: Checkpoint, lines: _Lines, delimiter: str) -> Iterator[Record]:
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        checkpoint()
        line, cells, problem = lines.begin_record(), list[str](), None
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
    """Return the text with an escape sequence for each byte that could not be decoded."""
    if text.isascii():
        return text
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


class _Lines:
    """Hands the lines of one record after the other to a csv reader, and can take them back."""

    def __init__(self, text: IO[str]) -> None:
        self._text = text
        self._again: deque[str] = deque()
        self._taken: list[str] = []
        self._length = 0
        self._next_line = 1

    def begin_record(self) -> int:
        """Return the number of the line on which the next record begins."""
        self._next_line += len(self._taken)
        self._taken.clear()
        self._length = 0
        return self._next_line

    def record(self) -> str:
        return "".join(self._taken)

    def put_back_all_but_first(self) -> None:
        self._again.extendleft(reversed(self._taken[1:]))
        del self._taken[1:]

    def __iter__(self) -> _Lines:
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
