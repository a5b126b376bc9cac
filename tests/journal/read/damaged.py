"""Damages a stored run in every way, and asks every reader of it.

The columns of the journal lose their types and constraints first: a disk does not check them.
"""

from __future__ import annotations

import json
import re
import sqlite3
import struct
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import httpx
from click.testing import CliRunner
from golden_run import GOLDEN

from asyncflow import (
    JournalError,
    Orchestrator,
    PayloadError,
    Pipeline,
    RunAlreadyActiveError,
    RunNotFoundError,
    RunStatus,
    RunUnreadableError,
    WorkflowStep,
    after,
    collect,
    current_step,
    each,
)
from asyncflow._cli import commands
from asyncflow._core.history.replay import StoredRun
from asyncflow._core.history.results import REDACTED, Payload, RestoredOutput
from asyncflow._core.history.stored_report import report_from
from asyncflow._core.record import replace
from asyncflow.events import (
    AttemptStarted,
    Event,
    ResultReused,
    RunFinished,
    RunInterrupted,
    RunResumed,
    RunStarted,
    RunTimedOut,
    StepCancelled,
    StepReused,
    StepSucceeded,
)
from asyncflow.journal import SQLiteJournal
from asyncflow.journal._codec.events import run_checksum, sealed
from asyncflow.journal._database.tables import EVENT_COLUMNS
from asyncflow.testing import run_in_virtual_time
from asyncflow.web import app

__all__ = [
    "BYSTANDER",
    "VICTIMS",
    "Damage",
    "RunUnreadable",
    "answers",
    "changes",
    "damages",
    "make_checksums_right",
    "remove_types",
    "set_value",
    "write",
]

VICTIMS = ("nightly-2026-01-01", "etl-1", "limits")
BYSTANDER = "quiet"

# --- the runs ------------------------------------------------------------------------------------

pipeline = Pipeline("etl", secret_inputs=["password"])
"""It fails until `is_mended`."""
is_mended = False


@pipeline.step(secret=True)
async def log_in(password: str) -> str:
    return password.upper()


@pipeline.step
async def extract(log_in: str = after(log_in), day: str = "") -> list[str]:
    return [f"{day} {number} of {len(log_in)}" for number in range(2)]


@pipeline.step(max_retries=2)
async def price(row: str = each(extract)) -> int:
    if current_step().attempt == 1:
        raise ValueError(f"no price of {row}")
    return 20


@pipeline.step
async def load(prices: list[int] = collect(price)) -> int:
    if not is_mended:
        raise OSError("the table is locked")
    return sum(prices)


@pipeline.step(run_if="failure")
async def alarm() -> str:
    return "sent"


async def rest() -> list[int]:
    return [1, 2]


INPUTS = {"password": "hunter2", "day": "monday"}
LIMITS: list[Event] = [
    RunStarted(
        *("limits", 5.0, {"a": (), "b": ("a",)}),
        max_retries={"a": 2},
        parent="quiet",
        parent_step="rest",
        rerun_of="etl-1",
        rerun_reasons={"a": "it had failed"},
    ),
    ResultReused("b", 0.0, "etl-1", 2, 5.0, Payload("json", b"[1]")),
    StepReused("b", 0.0, origin="etl-1"),
    AttemptStarted("a", 1, 1.0, queued_ms=0.5),
    RunTimedOut(20.0, 20.0),
    RunInterrupted(21.0, "the caller was cancelled"),
    StepCancelled("a", 1, 22.0, "the caller was cancelled", KeyError("x")),
    RunFinished(23.0, RunStatus.INTERRUPTED, "the caller was cancelled"),
]


async def write(path: Path) -> None:
    """Write a journal with the victims and the bystander."""
    async with SQLiteJournal(path, owner="the writer") as journal:
        for events in (GOLDEN, LIMITS):
            session, _ = await journal.open(events[0].run_id, wait=False, read=bool)  # type: ignore[union-attr]
            for event in events:
                session.append(_as_stored(event))
            await session.close()
        for _ in range(2):
            await pipeline.orchestrator.with_options(run_id="etl-1", journal=journal).run(**INPUTS)
        await (
            Orchestrator([WorkflowStep("rest", rest)])
            .with_options(run_id=BYSTANDER, journal=journal)
            .run()
        )
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("UPDATE leases SET process = '{}', token = 7")
        database.execute("UPDATE runs SET updated_at = started_at + 60")
        database.execute("PRAGMA journal_mode = DELETE")  # so that all of it is in one file


def remove_types(path: Path) -> None:
    """Remove the types and the constraints of all columns."""
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        keys = {"leases": ", UNIQUE (run_id)", "signals": ", UNIQUE (run_id, name)"}
        for table in ("runs", "leases", "events", "notes", "signals"):
            key = keys.get(table, "")
            names = [row[1] for row in database.execute(f"PRAGMA table_info({table})")]
            database.execute(f"ALTER TABLE {table} RENAME TO strict_{table}")
            database.execute(f"CREATE TABLE {table} ({', '.join(names)}{key})")
            database.execute(f"INSERT INTO {table} SELECT * FROM strict_{table}")
            database.execute(f"DROP TABLE strict_{table}")
        columns = "events (run_id, kind, position) WHERE step IS NULL"
        database.execute(f"CREATE INDEX events_of_runs ON {columns}")


def _as_stored(event: Event) -> Event:
    if isinstance(event, StepSucceeded):
        return replace(event, output=_payload(event.output))
    if isinstance(event, RunStarted | RunResumed):
        return replace(event, inputs={name: _payload(each) for name, each in event.inputs.items()})
    return event


def _payload(value: Any) -> Payload:
    if isinstance(value, RestoredOutput):
        return REDACTED
    return Payload("json", json.dumps(value).encode())


# --- the damage ----------------------------------------------------------------------------------


class Damage(NamedTuple):
    """One change of a journal."""

    run_id: str
    """The run that it damages."""
    table: str
    column: str
    """Which one is changed; a word in parentheses if it is a whole row."""
    position: int | None
    """The event."""
    number: int
    """Which of the changes of this column it is."""
    apply: Callable[[sqlite3.Connection], object]

    def __str__(self) -> str:
        at = "" if self.position is None else f" {self.position}"
        return f"{self.table}{at} of {self.run_id}: {self.column} #{self.number}"


def damages(path: Path) -> Iterator[Damage]:
    """Yield every change of every column of every row of the victims."""
    with closing(sqlite3.connect(path)) as database:
        database.row_factory = sqlite3.Row
        for run_id in VICTIMS:
            for table in ("events", "runs", "leases"):
                order = "ORDER BY position" if table == "events" else ""
                rows = database.execute(
                    f"SELECT rowid AS id, * FROM {table} WHERE run_id = ? {order}", (run_id,)
                ).fetchall()
                for row in rows:
                    yield from _damages_of(run_id, table, row)


def _damages_of(run_id: str, table: str, row: sqlite3.Row) -> Iterator[Damage]:
    at = row["position"] if table == "events" else None
    for column in row.keys()[1:]:
        for number, value in enumerate(changes(row[column])):
            yield Damage(
                run_id, table, column, at, number, set_value(table, column, row["id"], value)
            )
    statements = [f"DELETE FROM {table} WHERE rowid = {row['id']}"]
    if table == "events":
        values = f"{', '.join(row.keys()[3:])} FROM events WHERE rowid = {row['id']}"
        names, contents = ", ".join(row.keys()[1:]), ", ".join(row.keys()[3:])
        other = f"FROM events WHERE run_id = '{BYSTANDER}' AND position = 1"
        statements += [
            # Twice at the same place, at the end, in the next place, in another run's place.
            f"INSERT INTO events ({names}) SELECT run_id, position, {values}",
            f"INSERT INTO events ({names}) SELECT run_id, (SELECT MAX(position) + 1 FROM events "
            f"WHERE run_id = '{run_id}'), {values}",
            "UPDATE events SET position = position + CASE rowid WHEN "
            f"{row['id']} THEN 1 ELSE -1 END WHERE run_id = '{run_id}' AND position IN ({at}, "
            f"{at} + 1)",
            f"UPDATE events SET ({contents}) = (SELECT {contents} {other}) "
            f"WHERE rowid = {row['id']}",
        ]
    for number, statement in enumerate(statements):
        yield Damage(run_id, table, "(row)", at, number, partial(_execute, statement))


def _execute(statement: str, database: sqlite3.Connection) -> None:
    database.execute(statement)


def set_value(
    table: str, column: str, rowid: int, value: Any
) -> Callable[[sqlite3.Connection], object]:
    mark, stored = "?", value
    if isinstance(value, _Text):
        mark, stored = "CAST(? AS TEXT)", bytes(value)

    def apply(database: sqlite3.Connection) -> None:
        database.execute(f"UPDATE {table} SET {column} = {mark} WHERE rowid = ?", (stored, rowid))

    return apply


class _Text(bytes):
    """The bytes of a text, which may be no UTF-8."""


def changes(value: Any) -> Iterator[Any]:
    """Yield other types, no value, a shorter one, and flipped bits."""
    yield from [each for each in (None, "x", -1, 1e300, b"\xff") if each != value]
    if isinstance(value, str | bytes) and value:
        data, kind = (value.encode(), _Text) if isinstance(value, str) else (value, bytes)
        yield kind(data[:-1])
        yield data if kind is _Text else _Text(data)
        for at, bit in ((len(data) // 2, 0), (len(data) // 3, 2), (len(data) - 1, 7)):
            yield kind(data[:at] + bytes([data[at] ^ (1 << bit)]) + data[at + 1 :])
    elif isinstance(value, int):
        yield from (value ^ 1, value ^ (1 << 31), str(value))
    elif isinstance(value, float):
        (bits,) = struct.unpack("<Q", struct.pack("<d", value))
        for bit in (0, 51, 63) if value else (0, 51):  # for SQLite, -0.0 is 0.0
            yield from struct.unpack("<d", struct.pack("<Q", bits ^ (1 << bit)))
        yield str(value)


def make_checksums_right(database: sqlite3.Connection) -> None:
    """Give every row the checksum of what it has now, if it can have one."""
    database.text_factory = lambda data: str(data, "utf-8", "surrogateescape")
    of_run = "run_id, pipeline, started_at, parent, parent_step, rerun_of, label, key, attributes"
    columns = ", ".join(EVENT_COLUMNS)
    for rowid, *row in database.execute(f"SELECT rowid, {columns} FROM events").fetchall():
        with suppress(TypeError, ValueError, struct.error):
            *_, of_data, checksum, _ = sealed(*row[:9], row[-1])
            database.execute(
                "UPDATE events SET data_checksum = ?, checksum = ? WHERE rowid = ?",
                (of_data, checksum, rowid),
            )
    for rowid, *row in database.execute(f"SELECT rowid, {of_run} FROM runs").fetchall():
        with suppress(TypeError, ValueError, struct.error):
            database.execute(
                "UPDATE runs SET checksum = ? WHERE rowid = ?", (run_checksum(*row), rowid)
            )


# --- the readers ---------------------------------------------------------------------------------

_CLI = {
    "runs": ["runs", "--json"],
    "table": ["runs"],
    "show": ["show", "RUN"],
    "show --timeline": ["show", "RUN", "--timeline"],
    "show --events": ["show", "RUN", "--events", "--json"],
    "show --json": ["show", "RUN", "--json"],
}
_PAGES = {
    "page": "/runs/RUN",
    "api record": "/api/runs/RUN",
    "api events": "/api/runs/RUN/events",
    "parts": "/parts/RUN",
}


def answers(path: Path, run_id: str) -> dict[str, Any]:
    """Return what each reader answers about a run: its answer or the error that it reports.

    The run is resumed, and then removed.

    Raises:
        AssertionError: One of them reports an error of another kind.
    """
    found: dict[str, Any] = {}
    for name, arguments in _CLI.items():
        words = [run_id if each == "RUN" else each for each in arguments]
        result = CliRunner().invoke(commands, [*words, "--journal", str(path)])
        assert result.exit_code in (0, 1, 4), (words, result.output, result.exception)
        is_error = result.exit_code == 1
        found[name] = RunUnreadable(result.stderr) if is_error else result.stdout
    found.update(run_in_virtual_time(_ask(path, run_id)))
    return found


class RunUnreadable(str):
    """The documented error, as a reader reports it."""

    __slots__ = ()


_CHANGING = re.compile(
    r'nonce-?="?[^"\']+|"now": ?[\d.]+|>(\d+ \w+ ago|just now)<|data-have="[^"]*"|"[0-9a-f]{16}",'
)
"""What differs in two answers about the same journal."""


async def _ask(path: Path, run_id: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    async with SQLiteJournal(path) as journal:
        found["record list"] = {each.run_id: asdict(each) for each in await journal.runs()}
        await journal.orphans()
        for name, call in {
            "report": lambda: journal.report(run_id),
            "events": lambda: journal.events(run_id),
            "last events": lambda: journal.events(run_id, 2),
            "record": lambda: journal.record(run_id),
        }.items():
            try:
                found[name] = _plain(await call())
            except RunNotFoundError as error:
                found[name] = str(error)
            except RunUnreadableError as error:
                found[name] = RunUnreadable(error)
        transport = httpx.ASGITransport(app(journal))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:1") as client:
            assert (await client.get("/")).status_code == 200
            for name, url in _PAGES.items():
                headers = {"accept": "application/json"} if name == "parts" else {}
                answer = await client.get(url.replace("RUN", run_id), headers=headers)
                assert answer.status_code in (200, 404, 409), (name, answer.text)
                text = _CHANGING.sub("", answer.text).replace(str(path), "")
                found[name] = RunUnreadable(text) if answer.status_code == 409 else text
        found["other report"] = (await journal.report(BYSTANDER)).to_json()
        found["resume"] = await _resume(journal, run_id)
        with suppress(RunNotFoundError, RunAlreadyActiveError):
            await journal.forget(run_id)
    return found


def _plain(answer: Any) -> Any:
    if hasattr(answer, "to_json"):
        return answer.to_json()
    return repr(answer)


def _report_of(run: StoredRun) -> str:
    return report_from(run, lambda _, payload: payload).to_json()


async def _resume(journal: SQLiteJournal, run_id: str) -> Any:
    """Claim the run, and let it pass if its pipeline is here."""
    global is_mended
    try:
        if run_id != "etl-1":
            session, report = await journal.open(run_id, wait=False, read=_report_of)
            await session.close()
            return report
        is_mended = True
        report = await pipeline.orchestrator.with_options(run_id=run_id, journal=journal).run(
            **INPUTS
        )
        return {name: (each.status, each.output, each.reused) for name, each in report.items()}
    except RunAlreadyActiveError as error:
        return str(error)
    except (JournalError, PayloadError) as error:
        return RunUnreadable(error)
    finally:
        is_mended = False
