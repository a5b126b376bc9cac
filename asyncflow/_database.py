"""What a journal needs of the database that it keeps its runs in.

All of it is called in one thread only.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

__all__ = ["Cursor", "Database", "either_case"]

Parameters = Sequence[Any]


class Cursor(Protocol):
    """A cursor of DB-API 2.0."""

    @property
    def rowcount(self) -> int: ...
    def execute(self, sql: str, parameters: Parameters = ..., /) -> object: ...
    def fetchone(self) -> Any: ...
    def fetchall(self) -> list[Any]: ...


class Database(Protocol):
    """One connection to a database, or several behind one face.

    It connects when it is first used, and again when the connection was lost, and brings the
    schema up to date then. Whatever the driver raises in a ``with`` block of `transaction` or
    `reading`, or while it begins or ends one, is raised as a `JournalError`.
    """

    name: str
    """What error messages call it: a path, an address without its password."""

    def phrase(self, sql: str) -> str:
        """Return a statement in the words of this database, and remember it.

        ``?`` stands for a parameter, ``{now}`` for the seconds since the epoch by the database's
        clock (not that of the transaction's start), as a float, and ``{lock}``, at the end of a
        SELECT in a transaction, for what locks its rows (``FOR UPDATE``), if that needs saying.
        ``{like}`` compares a text with a `pattern`.
        """
        ...

    def pattern(self, text: str) -> str:
        """Return what matches every text that has this one in it, in whatever case."""
        ...

    def transaction(self) -> AbstractContextManager[Cursor]:
        """Begin a transaction that writes. The ``with`` block commits it, or rolls it back."""
        ...

    def reading(self) -> AbstractContextManager[Cursor]:
        """Give a cursor for SELECTs."""
        ...

    def close(self) -> None:
        """Disconnect, never raise. Using it again afterwards connects again."""
        ...


def either_case(letter: str) -> str:
    """Return a letter as it is, small and large, each once and as long as it stays one."""
    return "".join(sorted({c for c in (letter, letter.lower(), letter.upper()) if len(c) == 1}))
