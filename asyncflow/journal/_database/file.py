"""Notices when the files of an SQLite database are moved, replaced or cut while they are open.

SQLite has the database, its ``-wal`` and its ``-shm`` open and does not look at their names again.
A process that still writes to a file that was moved away commits what no reader finds. Another one
that opens the path meanwhile runs the same runs again. So a journal looks at all three names right
before and after it commits, when a transaction fails, and once a second while it runs something:

- *Moved, deleted or replaced*: the path, with all symbolic links that it has now, does not lead to
  the device and inode that were opened.
- *Emptied*: the database has 0 bytes. It had a header when it was opened.
- *A WAL that was cut*: it is shorter than after this connection's last commit, and no other
  connection has restarted it since (``PRAGMA data_version`` would differ). If other processes have
  committed meanwhile, a cut can't be told, nor can one that the next commits have filled up again.

While no process has the database open, a WAL that was cut or removed looks like one that ends
there: its last transactions are as if they had never been committed. What can be told then is a
``-wal`` without its database, or beside an empty one.

All connections of a process to a path share one `DatabaseFile`. None opens another file there while
others still use the old one: the locks of a process on the ``-shm``, which has the same name, would
be mixed up.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from weakref import WeakValueDictionary

from asyncflow.journal._database.sql import DatabaseChangedError

_FileId = tuple[int, int]

_SUFFIXES = ("", "-wal", "-shm")

_HOLDS = {
    "": "what was committed is in the file that was there before",
    "-wal": "it holds the latest commits",
    "-shm": "without it, processes can't see each other's commits",
}

_STOPPED = "nothing more is written"


class DatabaseFile:
    """The files of the database at one path, as the connections of this process have opened them.

    ``path`` is absolute, and may lead through symbolic links. ``is_cut`` says whether a part of the
    files is missing, so that no checkpoint may copy the rest.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.target = path
        """Where the path leads. SQLite puts the WAL there."""
        self._lock = threading.Lock()
        self._wal = self._shm = ""
        self._ids: list[_FileId] = []
        self._quick_ids = (0, 0, 0, 0)
        self._problem, self.is_cut = "", False
        self._attached: list[Callable[[], object]] = []

    @staticmethod
    def at(path: str) -> DatabaseFile:
        """Return the object for a path that all connections of this process share."""
        with _files_lock:
            file = _files.get(path)
            if file is None:
                file = _files[path] = DatabaseFile(path)
            return file

    def before_connecting(self, name: str, *, must_exist: bool) -> None:
        """Check that a connection may be opened.

        ``must_exist`` says whether the caller has had it open before. Raise `DatabaseChangedError`
        if it is not what it was, or part of it is missing.
        """
        with self._lock:
            if self._attached:
                self._compare(name)
                return
            self._problem, self.is_cut = "", False
            self.target = os.path.realpath(self.path)
            # In this order: while others create it, the WAL comes last; while they close it, the
            # database remains.
            wal_bytes, main_bytes = (_size(f"{self.target}{suffix}") for suffix in ("-wal", ""))
            if wal_bytes > 0 and main_bytes <= 0:
                state = "is missing" if main_bytes < 0 else "is empty"
                raise DatabaseChangedError(
                    name,
                    f"{self.target} {state}, but {self.target}-wal belongs to it: the database was "
                    "moved, deleted or emptied while a process used it, which may still run; put "
                    "it back, or remove the -wal and the -shm as well to begin anew",
                )
            if must_exist and main_bytes <= 0:
                how = "moved or deleted" if main_bytes < 0 else "emptied"
                raise DatabaseChangedError(name, self._changed("", how))

    def database_id(self) -> _FileId | None:
        """Return the device and inode of the database that is there; ``None`` if there is none."""
        try:
            return _id(os.stat(self.target))
        except OSError:
            return None

    def attach(self, name: str, opened: _FileId | None, let_go: Callable[[], object]) -> int:
        """Remember what a connection has opened, and return the size of its WAL in bytes.

        ``opened`` is the `database_id` when it was opened: making its tables may have taken long.
        ``let_go`` is called in any thread when the files have changed. It must not raise. It must
        have the connection closed soon, even if nothing uses it. Raise `DatabaseChangedError` if it
        is not what the others have opened, or is gone already.
        """
        with self._lock:
            if not self._attached:
                self._wal, self._shm = f"{self.target}-wal", f"{self.target}-shm"
                self._ids = []
                for suffix in _SUFFIXES:
                    try:
                        self._ids.append(_id(os.stat(f"{self.target}{suffix}")))
                    except FileNotFoundError as error:
                        problem = self._changed(suffix, "moved or deleted")
                        raise DatabaseChangedError(name, problem) from error
                main, wal, shm = self._ids
                if main != opened:
                    problem = self._changed("", "replaced by another file")
                    raise DatabaseChangedError(name, problem)
                self._quick_ids = (*main, wal[1], shm[1])
            wal_bytes = self._compare(name)
            self._attached.append(let_go)
            return wal_bytes

    def detach(self, let_go: Callable[[], object]) -> None:
        """Forget a connection, which is about to be closed."""
        with self._lock:
            self._attached.remove(let_go)

    def check(self, name: str) -> None:
        """Check that the database is what the attached connections have opened.

        Raise `DatabaseChangedError` if it was moved, deleted, replaced or emptied.
        """
        with self._lock:
            self._compare(name)

    def check_wal(self, name: str, least_bytes: int) -> int:
        """Check as `check` does, and that the WAL is not shorter; return its size in bytes."""
        with self._lock:
            wal_bytes = self._compare(name)
            if wal_bytes < least_bytes:
                raise self._failure(
                    name,
                    f"{self.target}-wal was cut from {least_bytes} to {wal_bytes} bytes while it "
                    f"was open: some of the latest commits are lost; {_RESTORE}",
                    is_cut=True,
                )
            return wal_bytes

    def _compare(self, name: str) -> int:
        """Return the size of the WAL."""
        if self._problem:
            raise DatabaseChangedError(name, self._problem)
        stat = os.stat  # every transaction passes here twice
        try:
            main, wal, shm = stat(self.path), stat(self._wal), stat(self._shm)
            if (
                main.st_size
                and (main.st_dev, main.st_ino, wal.st_ino, shm.st_ino) == self._quick_ids
            ):
                return wal.st_size
        except OSError:
            pass
        problem, is_cut = self._difference()
        raise self._failure(name, problem, is_cut=is_cut)

    def _failure(self, name: str, problem: str, *, is_cut: bool) -> DatabaseChangedError:
        self._problem, self.is_cut = problem, is_cut
        for let_go in self._attached:
            let_go()
        return DatabaseChangedError(name, problem)

    def _difference(self) -> tuple[str, bool]:
        """Return what has changed, and whether a part of the files is missing."""
        for suffix, opened in zip(_SUFFIXES, self._ids, strict=True):
            path = f"{self.target}{suffix}" if suffix else self.path
            try:
                stat = os.stat(path)
            except FileNotFoundError:
                return self._changed(suffix, "moved or deleted"), False
            except OSError as error:
                return f"{path} can't be looked at any more ({error.strerror}); {_STOPPED}", False
            if _id(stat) != opened:
                return self._changed(suffix, "replaced by another file"), False
            if not (suffix or stat.st_size):
                return f"{path} was emptied while it was open; {_RESTORE}", True
        return f"{self.path} was moved away for a moment while it was open; {_STOPPED}", False

    def _changed(self, suffix: str, how: str) -> str:
        path = f"{self.target}{suffix}" if suffix else self.path
        return (
            f"{path} was {how} while it was open, and {_HOLDS[suffix]}; {_STOPPED}: put it back "
            "and start the run again, or start it again with what is there now"
        )


_RESTORE = f"{_STOPPED}: restore a backup, or use another file"

_files: WeakValueDictionary[str, DatabaseFile]
_files_lock: threading.Lock


def _forget_files() -> None:
    """Begin without files: a forked process has locks whose holders are threads of its parent."""
    global _files, _files_lock
    _files, _files_lock = WeakValueDictionary(), threading.Lock()


_forget_files()
if hasattr(os, "register_at_fork"):  # pragma: no branch
    os.register_at_fork(after_in_child=_forget_files)


def _id(stat: os.stat_result) -> _FileId:
    return stat.st_dev, stat.st_ino


def _size(path: str) -> int:
    """Return how many bytes a file has; -1 if there is none."""
    try:
        return os.stat(path).st_size
    except OSError:
        return -1
