"""Kill points: a process kills itself at the n-th point that it passes.

There is a point before each statement of SQLite that writes, BEGIN and COMMIT included; after each
COMMIT; and wherever an action calls `Reaper.pass_point`.
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
    """

    def __init__(self, kill_at: int | str, note: Path) -> None:
        self.passed: list[str] = []
        """The texts of the points so far, such as "before COMMIT"."""
        self._kill_at = kill_at
        self._note = note
        self._lock = threading.Lock()  # a journal works in a thread of its own

    def pass_point(self, where: str) -> None:
        with self._lock:
            self.passed.append(where)
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

    def _around(self, sql: str, work: Callable[[], Any]) -> Any:
        verb = sql.split(None, 1)[0].upper()
        if verb in {"SELECT", "PRAGMA", "ROLLBACK"}:  # they do not change the file
            return work()
        self.pass_point(f"before {verb}")
        result = work()
        if verb == "COMMIT":
            self.pass_point("after COMMIT")
        return result
