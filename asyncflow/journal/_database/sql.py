"""What the SQL statements of a journal share: the database that executes them, and their parts.

A database must provide what `Database` asks for: how a transaction begins and ends, its dialect
(`translate`), its schema, and what its driver's errors mean, as `JournalError`. Everything is
called in one thread only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import wraps
from itertools import islice
from typing import Any, Concatenate, NamedTuple, ParamSpec, Protocol, TypeVar

from asyncflow._core.errors import JournalError

P = ParamSpec("P")
T = TypeVar("T")

Parameters = Sequence[Any]


class Statement(NamedTuple):
    """A change of rows that belong to a run and are no events."""

    sql: str
    parameters: Parameters


class UnsettledError(JournalError):
    """The transaction may or may not be committed, and may succeed if it is tried again."""


class DatabaseChangedError(JournalError):
    """Another database has taken the place of the one in which the leases were acquired."""


class Cursor(Protocol):
    """A cursor of DB-API 2.0."""

    @property
    def rowcount(self) -> int: ...
    def execute(self, sql: str, parameters: Parameters = ..., /) -> object: ...
    def fetchone(self) -> Any: ...
    def fetchall(self) -> list[Any]: ...
    def fetchmany(self, size: int, /) -> list[Any]: ...


class Database(Protocol):
    """A connection to a database.

    It connects when it is first used and after the connection was lost. Then it makes the tables if
    there are none. Errors of the driver in a ``with`` block of `transaction` or `reading`, or at
    its begin or end, are raised as `JournalError`.
    """

    name: str
    """Its name in errors: a path, or an address without its password."""

    def translate(self, sql: str) -> str:
        """Return a statement in the dialect of this database, cached.

        ``?`` stands for a parameter, ``{now}`` for the seconds since the epoch by the database's
        clock (not that of the transaction's start), as a float, and ``{lock}``, at the end of a
        SELECT in a transaction, for what locks its rows (``FOR UPDATE``), if the database needs
        that. ``{like}`` compares a text with a `pattern`. ``{bytes}`` is the function for the size
        of a text, in bytes if that is fast, else in characters. ``{of_runs}``, after a table
        ``events``, lets it be read by the index of the events that are of no step, if the database
        would not choose that by itself. ``{valid}`` is the condition that a lease ``l`` has not
        expired, ``{left}`` in how many seconds it does, and ``{expiry}`` assigns when: in ``?``
        seconds.
        """
        ...

    def pattern(self, text: str) -> str:
        """Return a pattern that matches every text that contains this one, in any case."""
        ...

    def transaction(self) -> AbstractContextManager[Cursor]:
        """Begin a transaction that writes; the end of the block commits it or rolls it back."""
        ...

    def reading(self) -> AbstractContextManager[Cursor]:
        """Return a cursor for SELECTs.

        What is read within the block, also in inner ones, is of one database.
        """
        ...

    def retry(self, attempt: Callable[[], T]) -> T:
        """Return what a call returns; repeat it if it is not known whether it was done.

        Raise `JournalError` if the call fails, or for too long nothing is known.
        """
        ...

    def close(self) -> None:
        """Disconnect, and never raise. The next use connects again."""
        ...


class Connected(Protocol):
    """What has a database."""

    @property
    def database(self) -> Database: ...


C = TypeVar("C", bound=Connected)


def changing(
    method: Callable[Concatenate[C, Cursor, P], T],
) -> Callable[Concatenate[C, P], T]:
    """Let a method run in a transaction, whose cursor it receives.

    It may be repeated after it was committed: it must lead to the same then.
    """

    @wraps(method)
    def in_transaction(self: C, /, *args: P.args, **kwargs: P.kwargs) -> T:
        def attempt() -> T:
            with self.database.transaction() as cursor:
                return method(self, cursor, *args, **kwargs)

        return self.database.retry(attempt)

    return in_transaction


NOW = "COALESCE(?, {now})"
"""The present: a parameter that is what `virtual_now` returns, or else the database's clock."""


def virtual_now(loop: asyncio.AbstractEventLoop) -> float | None:
    """Return the present in virtual time; ``None`` where time is real."""
    wall_time = getattr(loop, "wall_time", None)
    return None if wall_time is None else wall_time()


def either_case(letter: str) -> str:
    """Return a letter and its lower and upper case, each once, if that is one character."""
    return "".join(sorted({c for c in (letter, letter.lower(), letter.upper()) if len(c) == 1}))


LARGEST = 2**63 - 1
"""The largest integer that a database stores."""

FREE = "(l.owner IS NULL OR NOT {valid})"

OWNER = f"CASE WHEN {FREE} THEN NULL ELSE l.owner END"

_CHUNK = 64
"""How many rows or ids one statement takes at most; a power of two."""


def chunks(rows: Sequence[Any]) -> Iterator[list[Any]]:
    """Split rows into lengths that are powers of two, so that few statements are compiled."""
    rest, left, size = iter(rows), len(rows), _CHUNK
    while left:
        while size > left:
            size //= 2
        yield list(islice(rest, size))
        left -= size


def padded(run_ids: Sequence[str]) -> list[str]:
    """Repeat the last id up to a length that `chunks` does not split into other ones.

    So few statements have to be compiled.
    """
    count = len(run_ids)
    missing = (-count) % min(_CHUNK, 1 << max(0, count - 1).bit_length())
    return [*run_ids, *[*run_ids[-1:]] * missing]


def marks(count: int) -> str:
    return ", ".join(["?"] * count)
