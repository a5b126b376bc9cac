"""Kill points: a process kills itself at the n-th point that it passes.

There is a point before each statement that writes, BEGIN and COMMIT included; after each COMMIT;
and wherever an action calls `Reaper.pass_point`. Another fault may strike at a point too.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

__all__ = ["Reaper"]


class Reaper:
    """Counts the points that its process passes, and kills it at one of them.

    Args:
        kill_at: The number of the point, counted from 1, or its text; 0 for none.
        note: The file that receives the text of that point.
        faults: What else happens at which point, by its number.
    """

    def __init__(
        self,
        kill_at: int | str,
        note: Path,
        faults: dict[int, Callable[[], object]] | None = None,
    ) -> None:
        self.passed: list[str] = []
        """The texts of the points so far, such as "before COMMIT"."""
        self._kill_at = kill_at
        self._note = note
        self._faults = faults or {}
        self.struck = 0
        """How many faults there were so far."""
        self._lock = threading.Lock()  # a journal works in a thread of its own

    def pass_point(self, where: str) -> None:
        with self._lock:
            self.passed.append(where)
            fault = self._faults.get(len(self.passed))
            if fault is not None:
                self.struck += 1
                fault()
            if self._kill_at in (len(self.passed), where):
                self._note.write_text(where)
                os.kill(os.getpid(), signal.SIGKILL)

    def watch_sqlite(self) -> None:
        """Add kill points to all connections that this process opens from now on."""
        reaper = self

        class Cursor(sqlite3.Cursor):
            def execute(self, sql: str, *arguments: Any) -> Any:
                return reaper._around(sql, partial(super().execute, sql, *arguments))

            def executemany(self, sql: str, *arguments: Any) -> Any:
                return reaper._around(sql, partial(super().executemany, sql, *arguments))

            def executescript(self, sql: str) -> Any:
                return reaper._around(sql, partial(super().executescript, sql))

        class Connection(sqlite3.Connection):
            # The inherited methods do not call each other.
            def cursor(self, factory: type[sqlite3.Cursor] = Cursor) -> Any:
                return super().cursor(factory)

            def execute(self, sql: str, *arguments: Any) -> Any:
                return self.cursor().execute(sql, *arguments)

            def executemany(self, sql: str, *arguments: Any) -> Any:
                return self.cursor().executemany(sql, *arguments)

            def executescript(self, sql: str) -> Any:
                return self.cursor().executescript(sql)

            def commit(self) -> None:
                reaper._around("COMMIT", super().commit)

            def __exit__(self, kind: object, *_: object) -> Any:
                return self.rollback() if kind is not None else self.commit()

        sqlite3.connect = partial(sqlite3.connect, factory=Connection)

    def watch_postgres(self) -> None:
        """Add kill points to all statements that this process sends to PostgreSQL from now on."""
        import psycopg

        execute, executemany = psycopg.Cursor.execute, psycopg.Cursor.executemany
        reaper = self

        def one(cursor: Any, query: Any, *arguments: Any, **options: Any) -> Any:
            work = partial(execute, cursor, query, *arguments, **options)
            return reaper._around(_text(query), work)

        def many(cursor: Any, query: Any, *arguments: Any, **options: Any) -> Any:
            work = partial(executemany, cursor, query, *arguments, **options)
            return reaper._around(_text(query), work)

        psycopg.Cursor.execute, psycopg.Cursor.executemany = one, many  # type: ignore[method-assign]

    def _around(self, sql: str, work: Callable[[], Any]) -> Any:
        verb = sql.split(None, 1)[0].upper()
        if verb in {"SELECT", "PRAGMA", "ROLLBACK"}:  # they do not change the file
            return work()
        self.pass_point(f"before {verb}")
        result = work()
        if verb == "COMMIT":
            self.pass_point("after COMMIT")
        return result


def _text(query: Any) -> str:
    return query.decode() if isinstance(query, bytes) else str(query)
