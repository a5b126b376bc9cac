"""The scratch files through which the steps of the ETL hand on what may not fit in memory."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from typing import IO, Any

from asyncflow.examples._blocking import Checkpoint

__all__ = ["Rows", "Workspace"]


class Rows:
    """A sequence of rows in a file: each row a list of what JSON can hold, one a line.

    Attributes:
        count: How many rows there are.
    """

    def __init__(self, file: IO[str]) -> None:
        self._file = file
        self.count = 0

    def append(self, row: list[Any]) -> None:
        """Add a row at the end. Not to be called while the rows are read."""
        self._file.write(json.dumps(row))
        self._file.write("\n")
        self.count += 1

    def read(self, checkpoint: Checkpoint) -> Iterator[list[Any]]:
        """Yield the rows one by one, from the first one on."""
        self._file.seek(0)
        for line in self._file:
            checkpoint()
            yield json.loads(line)


class Workspace:
    """The scratch files of one run. They have no names, so even a killed run leaves none behind.

    Together they need about three times the space of the source, in the system's temporary
    folder (which ``TMPDIR`` moves).

    Attributes:
        snapshot: The bytes of the source. It cannot change between two steps that read it.
        accepted: Rows that suit their columns: the number of the line, then the cells as text.
        quarantine: The others: the number of the line, the reason and the text of the row.
        table: The rows as the database gets them.
    """

    def __init__(self) -> None:
        with ExitStack() as files:
            self.snapshot: IO[bytes] = files.enter_context(tempfile.TemporaryFile())
            self.accepted, self.quarantine, self.table = (
                Rows(files.enter_context(tempfile.TemporaryFile("w+", encoding="utf-8")))
                for _ in range(3)
            )
            self._files = files.pop_all()

    def __enter__(self) -> Workspace:
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()
