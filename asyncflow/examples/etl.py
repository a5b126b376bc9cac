"""Loads a CSV file into an SQLite database: extract, validate, transform, load, notify.

::

    python -m asyncflow.examples.etl [SOURCE] [--database PATH]

Without a source it loads the measurements of 344 penguins that ship with the package. They were
collected by Dr. Kristen Gorman and the Palmer Station LTER program (Gorman, Williams and Fraser,
2014, https://doi.org/10.1371/journal.pone.0090081) and published under CC0 1.0 in the data
package *palmerpenguins* (Horst, Hill and Gorman, 2020). The database is ``etl.db`` in the current
folder unless another one is named.

What it does with a file:

- The first line that is not blank is the header. Encoding and delimiter are found out, see
  `asyncflow.examples._csv_file`; so is the type of each column, see
  `asyncflow.examples._columns`: it is the one that at least 95 of 100 of its values have, else
  text.
- A row that has another number of cells than the header, that cannot be read, or that has a value
  which is not of its column's type is put into the quarantine, with the number of its line, the
  reason and its text. No row is lost: every one is either loaded or there.
- The rows come into a table that is named after the file, the quarantine into the table
  ``etl_quarantine``, in one transaction. Doing it again gives the same database.
- However large the file is, the memory it takes is bounded: between the steps the rows are in
  scratch files. An empty file fails; one that has only a header is a table without rows.

A source that can't be opened or read, and a database that is locked, are tried three times, with a
random wait of at most 100 and 200 ms between. What another attempt would not change fails at once.

Progress goes to standard error, and the result, which is one line with the counts and the report
of the run, to standard output. The exit status is 0 if all steps succeeded, 1 if one failed, 2 if
the command line is wrong and 130 after Ctrl-C.
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
from asyncflow.examples._blocking import Checkpoint, in_thread
from asyncflow.examples._columns import Column, Survey
from asyncflow.examples._csv_file import Dialect, Record, copy_source, find_delimiter, open_records
from asyncflow.examples._database import Loaded, Table, replace_table
from asyncflow.examples._names import snake_case, unique_names
from asyncflow.examples._workspace import Workspace

__all__ = ["extract", "load", "main", "notify", "pipeline", "run_etl", "transform", "validate"]

PENGUINS = resources.files("asyncflow.examples") / "data" / "penguins_raw.csv"


@dataclass(frozen=True, slots=True)
class Validated:
    """What there is in the snapshot."""

    columns: tuple[Column, ...]
    accepted: int
    """How many rows suit their columns."""
    quarantined: int
    """How many do not."""
    notes: tuple[str, ...]
    """What the owner of the data should know."""


pipeline = Pipeline("etl")

# What the steps hand on is small. The rows are in the workspace, and the work on them is done in
# a thread, so that the event loop is free meanwhile. It is not runs_in="thread": such a thread is
# waited for, and here it shall stop when its step is cancelled.


@pipeline.step(max_retries=3, retry=Retry(on=OSError), timeout_ms=600_000)
async def extract(source: Traversable, workspace: Workspace) -> Dialect:
    """Take a snapshot of the source, and find out its encoding and its delimiter."""
    return await in_thread(_take_snapshot, source, workspace)


@pipeline.step(timeout_ms=None)
async def validate(workspace: Workspace, dialect: Dialect = after(extract)) -> Validated:
    """Find out the types of the columns, and part the rows that suit them from the others."""
    surveys = await in_thread(_survey_columns, dialect, workspace)
    columns, notes = zip(*(survey.decide() for survey in surveys), strict=True)
    accepted, quarantined = await in_thread(_part_rows, dialect, columns, workspace)
    return Validated(columns, accepted, quarantined, tuple(filter(None, notes)))


@pipeline.step(timeout_ms=None)
async def transform(
    source: Traversable,
    workspace: Workspace,
    dialect: Dialect = after(extract),
    validated: Validated = after(validate),
) -> Table:
    """Convert the accepted rows to values, and give the table and its columns their names."""
    await in_thread(_convert_rows, validated.columns, workspace)
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


# Worth another attempt is a database that somebody else has locked. One that is damaged is not.
@pipeline.step(max_retries=3, retry=Retry(on=sqlite3.OperationalError), timeout_ms=600_000)
async def load(database: Path, workspace: Workspace, table: Table = after(transform)) -> Loaded:
    """Write the rows and the quarantine into the database, all or nothing."""
    return await in_thread(_fill_database, table, database, workspace)


@pipeline.step
async def notify(
    database: Path,
    validated: Validated = after(validate),
    table: Table = after(transform),
    loaded: Loaded = after(load),
) -> None:
    """Tell in one line what was loaded, and on standard error what to know about it."""
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
    """Tell on standard error which attempt of which step begins or fails."""
    match event:
        case AttemptStarted(step=step, attempt=attempt):
            print(f"{step}: attempt {attempt}", file=sys.stderr)
        case AttemptFailed(step=step, attempt=attempt, error=error):
            print(f"{step}: attempt {attempt} failed: {error}", file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the pipeline as the command line says, print its report and return the exit status."""
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


# The work of the steps, one job a thread.


def _take_snapshot(checkpoint: Checkpoint, source: Traversable, workspace: Workspace) -> Dialect:
    encoding = copy_source(checkpoint, source, workspace.snapshot)
    return Dialect(encoding, find_delimiter(workspace.snapshot, encoding))


def _survey_columns(checkpoint: Checkpoint, dialect: Dialect, workspace: Workspace) -> list[Survey]:
    with open_records(checkpoint, workspace.snapshot, dialect) as records:
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


def _part_rows(
    checkpoint: Checkpoint,
    dialect: Dialect,
    columns: tuple[Column, ...],
    workspace: Workspace,
) -> tuple[int, int]:
    accepted, quarantine = workspace.accepted, workspace.quarantine
    with open_records(checkpoint, workspace.snapshot, dialect) as records:
        next(records)  # the header
        for record in records:
            if reason := _refusal(record, columns):
                quarantine.append([record.line, reason, record.text])
            else:
                accepted.append([record.line, *record.cells])
    return accepted.count, quarantine.count


def _refusal(record: Record, columns: tuple[Column, ...]) -> str:
    """Return why the row cannot be loaded; an empty string if it can."""
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


def _convert_rows(
    checkpoint: Checkpoint, columns: tuple[Column, ...], workspace: Workspace
) -> None:
    for line, *cells in workspace.accepted.read(checkpoint):
        values = map(Column.convert, columns, cells)
        workspace.table.append([line, *values])


def _table_name(source: Traversable) -> str:
    name = snake_case(PurePath(source.name).stem, "table")
    # Those are for what SQLite and this module need themselves.
    return f"table_{name}" if name.startswith(("sqlite_", "etl_")) else name


def _fill_database(
    checkpoint: Checkpoint, table: Table, database: Path, workspace: Workspace
) -> Loaded:
    rows = workspace.table.read(checkpoint)
    return replace_table(database, table, rows, workspace.quarantine.read(checkpoint))


if __name__ == "__main__":
    sys.exit(main())
