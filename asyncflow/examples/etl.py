"""Loads a CSV file into an SQLite database: extract, validate, transform, load, notify.

::

    python -m asyncflow.examples.etl [SOURCE] [--database PATH]

Without a source it loads the measurements of 344 penguins that ship with the package. They were
collected by Dr. Kristen Gorman and the Palmer Station LTER program (Gorman, Williams and Fraser,
2014, https://doi.org/10.1371/journal.pone.0090081) and published under CC0 1.0 in the data
package *palmerpenguins* (Horst, Hill and Gorman, 2020). The database is ``etl.db`` in the current
folder unless another one is named.

What it does with a file:

- The first line that is not blank is the header. Encoding, delimiter and the type of each column
  are detected as `asyncflow.examples._csv_reader` says: at least 95 % of a column's values have its
  type, else it is text.
- A row goes to the quarantine if it has another number of cells than the header, cannot be read, or
  has a value that is not of its column's type. The quarantine stores its line number, the reason
  and its text. No row is lost: each one is either loaded or quarantined.
- The rows go into a table named after the file, the quarantine into the table ``etl_quarantine``,
  both in one transaction. Loading a file again gives the same database.
- Memory is bounded, however large the file is: between the steps the rows are in scratch files. An
  empty file fails; a file with a header only gives a table without rows.

A source that cannot be opened or read, and a database that is locked, are tried three times, with a
random backoff of at most 100 and 200 ms. Other errors fail at once, since a retry would not help.

Progress goes to standard error. The result, one line with the counts and the report of the run,
goes to standard output. The exit code is 0 if all steps succeeded, 1 if one failed, 2 after a usage
error and 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import asyncio
import sqlite3
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path, PurePath

from asyncflow import Pipeline, Retry, RunReport, after, run_pipeline
from asyncflow.events import AttemptFailed, AttemptStarted, Event
from asyncflow.examples._csv_reader import (
    Column,
    Dialect,
    Record,
    Survey,
    copy_source,
    find_delimiter,
    open_records,
    snake_case,
    unique_names,
)
from asyncflow.examples._load import Loaded, Table, Workspace, replace_table

__all__ = ["extract", "load", "main", "notify", "pipeline", "run_etl", "transform", "validate"]

PENGUINS = resources.files("asyncflow.examples") / "data" / "penguins_raw.csv"


@dataclass(frozen=True, slots=True)
class Validated:
    """The columns of the snapshot, and how many of its rows are valid."""

    columns: tuple[Column, ...]
    accepted: int
    quarantined: int
    notes: tuple[str, ...]
    """What the owner of the data should know."""


pipeline = Pipeline("etl")

# The outputs of the steps are small; the rows are in the workspace. The work on them blocks, so it
# runs in threads, where each loop over rows checks whether its step must stop.


@pipeline.step(runs_in="thread", max_retries=3, retry=Retry(on=OSError), timeout_ms=600_000)
def extract(source: Traversable, workspace: Workspace) -> Dialect:
    """Take a snapshot of the source, and detect its encoding and its delimiter."""
    encoding = copy_source(source, workspace.snapshot)
    return Dialect(encoding, find_delimiter(workspace.snapshot, encoding))


@pipeline.step(runs_in="thread", timeout_ms=None)
def validate(workspace: Workspace, dialect: Dialect = after(extract)) -> Validated:
    """Detect the types of the columns, and separate the valid rows from the others."""
    decided = [survey.decide() for survey in _survey_columns(dialect, workspace)]
    columns = tuple(column for column, _ in decided)
    accepted, quarantine = workspace.accepted, workspace.quarantine
    with open_records(workspace.snapshot, dialect) as records:
        next(records)  # the header
        for record in records:
            if reason := _rejection(record, columns):
                quarantine.append([record.line, reason, record.text])
            else:
                accepted.append([record.line, *record.cells])
    notes = tuple(note for _, note in decided if note)
    return Validated(columns, accepted.count, quarantine.count, notes)


def _survey_columns(dialect: Dialect, workspace: Workspace) -> list[Survey]:
    with open_records(workspace.snapshot, dialect) as records:
        header = next(records, None)
        if header is None:
            raise ValueError("the source is empty: it has not even a header")
        if header.problem:
            raise ValueError(f"the header in line {header.line} cannot be read: {header.problem}")
        surveys = [Survey(cell, dialect.delimiter == ";") for cell in header.cells]
        for record in records:
            if len(record.cells) == len(surveys):
                for survey, cell in zip(surveys, record.cells, strict=True):
                    survey.add(cell)
    return surveys


def _rejection(record: Record, columns: tuple[Column, ...]) -> str:
    """Return why the row is invalid; an empty string if it is valid."""
    if record.problem:
        return record.problem
    if len(record.cells) != len(columns):
        return f"{len(record.cells)} cell(s) where the header has {len(columns)}"
    reasons = []
    for column, cell in zip(columns, record.cells, strict=True):
        try:
            column.convert(cell)
        except ValueError as error:
            reasons.append(str(error))
    return "; ".join(reasons)


@pipeline.step(runs_in="thread", timeout_ms=None)
def transform(
    source: Traversable,
    workspace: Workspace,
    dialect: Dialect = after(extract),
    validated: Validated = after(validate),
) -> Table:
    """Convert the valid rows to values, and name the table and its columns."""
    for line, *cells in workspace.accepted.read():
        workspace.table.append([line, *map(Column.convert, validated.columns, cells)])
    headers = [column.header for column in validated.columns]
    names = unique_names(headers, taken=["source_line"])
    kinds = [column.kind for column in validated.columns]
    return Table(
        name=_table_name(source),
        columns=tuple(zip(names, kinds, strict=True)),
        source=source.name,
        encoding=dialect.encoding,
        delimiter=dialect.delimiter,
    )


def _table_name(source: Traversable) -> str:
    name = snake_case(PurePath(source.name).stem, "table")
    # SQLite and this module reserve these prefixes for their own tables.
    return f"table_{name}" if name.startswith(("sqlite_", "etl_")) else name


# A retry helps when another connection has locked the database, not when the file is damaged.
@pipeline.step(
    runs_in="thread", max_retries=3, retry=Retry(on=sqlite3.OperationalError), timeout_ms=600_000
)
def load(database: Path, workspace: Workspace, table: Table = after(transform)) -> Loaded:
    """Write the rows and the quarantine into the database, all or nothing."""
    return replace_table(database, table, workspace.table.read(), workspace.quarantine.read())


@pipeline.step
async def notify(
    database: Path,
    validated: Validated = after(validate),
    table: Table = after(transform),
    loaded: Loaded = after(load),
) -> None:
    """Print one line with the counts, and the notes to standard error."""
    for note in validated.notes:
        print(f"note: {note}", file=sys.stderr)
    print(
        f"{table.source}: {loaded.rows} row(s) loaded into table {table.name!r} of "
        f"{database}, {loaded.quarantined} quarantined",
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
        prog="python -m asyncflow.examples.etl",
        description="Load a CSV file into an SQLite database.",
    )
    parser.add_argument(
        "source", nargs="?", type=Path, default=PENGUINS, help="a CSV file (default: penguins)"
    )
    parser.add_argument(
        "--database", metavar="PATH", type=Path, default=Path("etl.db"), help="(default: etl.db)"
    )
    options = parser.parse_args(argv)
    if isinstance(options.source, Path) and options.source.resolve() == options.database.resolve():
        parser.error("the source and the database are the same file")
    try:
        report = asyncio.run(run_etl(options.source, options.database))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    print(report)
    return 0 if report.all_passed else 1


if __name__ == "__main__":
    sys.exit(main())
