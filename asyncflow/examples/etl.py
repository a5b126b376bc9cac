"""Loads a CSV file into an SQLite database: extract, validate, transform, load, notify.

::

    python -m asyncflow.examples.etl [SOURCE] [--database PATH]

Without a source it loads the measurements of 344 penguins that ship with the package (see the
README beside them). The database is ``etl.db`` in the current folder unless another one is named.

- The file is UTF-8, and its first record the header. The standard library guesses the delimiter.
  A column has the type that at least 95 % of its values have (`asyncflow.examples._csv`).
- A row that can't be read, or does not fit the header or the types, goes into the table
  ``etl_quarantine``, with its line number, the reason and its text. With more than 10 % of them,
  the run fails. The others go into a table named after the file, in the same transaction.
- Memory does not grow with the number of rows: between steps, they are in scratch files.
- Errors while the source is read, and a locked database, are tried three times, with a random
  backoff of at most 100 and 200 ms. Other errors, such as a missing file, fail at once.

One line with the counts, and the report of the run, go to standard output; progress goes to stderr.
The exit code is 0 if all steps succeeded, 1 if one failed, 2 after a usage error, 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import sqlite3
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib import resources
from importlib.resources.abc import Traversable
from itertools import islice
from pathlib import Path, PurePath

from asyncflow import Pipeline, Retry, RunReport, after, run_pipeline
from asyncflow.events import AttemptFailed, AttemptStarted, Event
from asyncflow.examples import _csv
from asyncflow.examples._csv import Column, Record
from asyncflow.examples._load import Table, Workspace, replace_table

__all__ = ["extract", "load", "main", "notify", "pipeline", "run_etl", "transform", "validate"]

PENGUINS = resources.files("asyncflow.examples") / "data" / "penguins_raw.csv"

MOST_INVALID = 0.1
"""The share of rows that may be invalid; above it, the file is wrong, or has a new format."""


@dataclass(frozen=True, slots=True)
class Validated:
    """The columns of the snapshot, and how many of its rows are valid."""

    columns: tuple[Column, ...]
    accepted: int
    quarantined: int


pipeline = Pipeline("etl")

# The outputs of the steps are small; the rows are in the workspace. The work on them blocks, so it
# runs in threads, where each loop over rows checks whether its step must stop.


@pipeline.step(runs_in="thread", max_retries=3, retry=Retry(on=OSError), timeout_ms=600_000)
def extract(source: Traversable, workspace: Workspace) -> str:
    """Take a snapshot of the source, and return its delimiter."""
    if not source.is_file():  # nor a pipe, which a second attempt could not read
        raise ValueError(f"{source} does not exist, or is not a regular file")
    workspace.snapshot.seek(0)
    workspace.snapshot.truncate()
    with source.open("rb") as file, io.TextIOWrapper(file, "utf-8-sig", newline="") as text:
        for chunk in _csv.until_cancelled(iter(partial(text.read, 1 << 18), "")):
            workspace.snapshot.write(chunk)
    return _csv.find_delimiter(workspace.snapshot)


@pipeline.step(runs_in="thread", timeout_ms=None)
def validate(workspace: Workspace, delimiter: str = after(extract)) -> Validated:
    """Find the types of the columns, and separate the valid rows from the others."""
    columns = _find_columns(workspace, delimiter)
    accepted, quarantine = workspace.accepted, workspace.quarantine
    first = ""
    for record in islice(_csv.read_records(workspace.snapshot, delimiter), 1, None):
        if reason := _rejection(record, columns):
            quarantine.append(record.line, reason, record.text)
            first = first or f"line {record.line}: {reason}"
        else:
            accepted.append(record.line, *record.cells)
    total = accepted.count + quarantine.count
    if quarantine.count > MOST_INVALID * total:
        raise ValueError(f"{quarantine.count} of {total} rows are invalid, the first in {first}")
    return Validated(columns, accepted.count, quarantine.count)


def _find_columns(workspace: Workspace, delimiter: str) -> tuple[Column, ...]:
    records = _csv.read_records(workspace.snapshot, delimiter)
    header = next(records, None)
    if header is None:
        raise ValueError("the source is empty: it has not even a header")
    if header.problem:
        raise ValueError(f"the header in line {header.line} cannot be read: {header.problem}")
    counters = [Counter[str]() for _ in header.cells]
    for record in records:
        if len(record.cells) == len(counters):
            for counts, cell in zip(counters, record.cells, strict=True):
                if kind := _csv.kind_of(cell):
                    counts[kind] += 1
    return tuple(map(_csv.column_of, header.cells, counters))


def _rejection(record: Record, columns: tuple[Column, ...]) -> str:
    """Return why the row is invalid; an empty string if it is valid."""
    if record.problem:
        return record.problem
    if len(record.cells) != len(columns):
        return f"{len(record.cells)} cell(s) where the header has {len(columns)}"
    try:
        for column, cell in zip(columns, record.cells, strict=True):
            column.convert(cell)
    except ValueError as error:
        return str(error)
    return ""


@pipeline.step(runs_in="thread", timeout_ms=None)
def transform(
    source: Traversable, workspace: Workspace, validated: Validated = after(validate)
) -> Table:
    """Convert the valid rows to values, and name the table and its columns."""
    for line, *cells in workspace.accepted.read():
        workspace.table.append(line, *map(Column.convert, validated.columns, cells))
    columns = {_csv.snake_case(each.header, "column"): each.kind for each in validated.columns}
    if len(columns) < len(validated.columns) or "source_line" in columns:
        raise ValueError("two columns have the same name, or one is named source_line")
    name = _csv.snake_case(PurePath(source.name).stem, "table")
    # SQLite and this module reserve these prefixes for their own tables.
    name = f"table_{name}" if name.startswith(("sqlite_", "etl_")) else name
    return Table(name, tuple(columns.items()))


# A retry helps when another connection has locked the database, not when the file is damaged.
@pipeline.step(
    runs_in="thread", max_retries=3, retry=Retry(on=sqlite3.OperationalError), timeout_ms=600_000
)
def load(database: Path, workspace: Workspace, table: Table = after(transform)) -> int:
    """Write the rows and the quarantine into the database, all or nothing; count the rows."""
    replace_table(database, table, workspace.table.read(), workspace.quarantine.read())
    return workspace.table.count


@pipeline.step
async def notify(
    source: Traversable,
    database: Path,
    validated: Validated = after(validate),
    table: Table = after(transform),
    loaded: int = after(load),
) -> None:
    """Print one line with the counts."""
    print(
        f"{source.name}: {loaded} row(s) loaded into table {table.name!r} of "
        f"{database}, {validated.quarantined} quarantined",
        flush=True,
    )


async def run_etl(source: Traversable, database: Path) -> RunReport:
    """Run the pipeline for one file and return its report."""
    with Workspace() as workspace:
        inputs = {"source": source, "database": database, "workspace": workspace}
        return await run_pipeline(pipeline, inputs=inputs, observers=[show_progress])


def show_progress(event: Event) -> None:
    """Print each attempt that starts or fails to standard error."""
    match event:
        case AttemptStarted(step=step, attempt=attempt):
            print(f"{step}: attempt {attempt}", file=sys.stderr)
        case AttemptFailed(step=step, attempt=attempt, error=error):
            print(f"{step}: attempt {attempt} failed: {error}", file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the pipeline for a command line, print its report and return the exit code."""
    parser = argparse.ArgumentParser(
        "python -m asyncflow.examples.etl",
        description="Load a CSV file into a table of an SQLite database, named after the file.",
        epilog="Invalid rows (unreadable, or unlike the header or the types of the columns) go "
        "into the table etl_quarantine, with line number, reason and text. If more than "
        f"{MOST_INVALID * 100:.0f} % are invalid, the run fails and changes nothing.",
    )
    parser.add_argument(
        "source",
        nargs="?",
        type=Path,
        default=PENGUINS,
        help="a UTF-8 CSV file with a header; by default the penguins that come with asyncflow",
    )
    parser.add_argument(
        "--database",
        metavar="PATH",
        type=Path,
        default=Path("etl.db"),
        help="the database, made if it does not exist (default: %(default)s)",
    )
    options = parser.parse_args(argv)
    try:
        report = asyncio.run(run_etl(options.source, options.database))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    print(report)
    return 0 if report.all_passed else 1


if __name__ == "__main__":
    sys.exit(main())
