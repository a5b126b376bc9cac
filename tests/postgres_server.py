"""A PostgreSQL server of the tests' own, which they may stop, freeze and cut off at will.

It listens on 127.0.0.1 only and lives in a temporary folder, with the durability that a server has
by default: a commit is told when it is on the disk. It ends with the tests, also if they are
killed: a process that waits for their end stops it and removes the folder.
"""

from __future__ import annotations

import os
import pwd
import random
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import psycopg
import pytest

__all__ = ["PostgresServer", "find_binaries", "running_server", "until"]

NEEDED = "needs the server of PostgreSQL: on Debian, apt-get install postgresql"

SETTINGS = """
listen_addresses = '127.0.0.1'
unix_socket_directories = '{folder}'
port = {port}
max_connections = 50
shared_buffers = 16MB
# No replica is ever started from it; see `unacknowledged_commits`.
max_wal_senders = 1
"""

END_WITH_THE_TESTS = """
trap '' INT TERM HUP
cat >/dev/null
# A frozen server can't be told to stop. It kills those of its processes that don't obey.
test ! -e "$1/data/postmaster.pid" || kill -CONT "$(head -n 1 "$1/data/postmaster.pid")"
"$0" stop --silent --mode=immediate --pgdata="$1/data"
rm -rf "$1"
"""
"""Standard input ends when the tests do, however they end."""


def find_binaries() -> Path | None:
    """The folder with the newest server of this machine; Debian has it outside of the PATH."""
    folders = sorted(
        Path("/usr/lib/postgresql").glob("*/bin"),
        key=lambda folder: [int(part) for part in re.findall(r"\d+", folder.parent.name)],
        reverse=True,
    )
    on_path = shutil.which("postgres")
    if on_path is not None:
        folders.append(Path(on_path).resolve().parent)
    needed = ("postgres", "initdb", "pg_ctl")
    return next((each for each in folders if all((each / name).exists() for name in needed)), None)


@contextmanager
def running_server() -> Iterator[PostgresServer]:
    """Start a server, and end it. Without one, the tests are skipped, but not in the CI."""
    binaries = find_binaries()
    if binaries is None and os.environ.get("CI") == "true":
        pytest.fail(NEEDED, pytrace=False)
    if binaries is None:
        pytest.skip(NEEDED)
    server = PostgresServer(binaries)
    try:
        yield server
    finally:
        server.close()


class PostgresServer:
    """A server that runs when it is made."""

    def __init__(self, binaries: Path) -> None:
        self._binaries = binaries
        # It refuses to run as root. Debian's package makes the user that it shall run as.
        self._user = "postgres" if os.geteuid() == 0 else None
        self.port = _free_port()
        self.folder = Path(tempfile.mkdtemp(prefix="asyncflow-postgres."))
        if self._user is not None:
            account = pwd.getpwnam(self._user)
            os.chown(self.folder, account.pw_uid, account.pw_gid)
        self._end = self._spawn(
            ["sh", "-c", END_WITH_THE_TESTS, str(binaries / "pg_ctl"), str(self.folder)],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        data = str(self.folder / "data")
        fast = ["--no-sync", "--no-locale", "--encoding=UTF8", "--no-instructions"]
        self._run("initdb", "--auth=trust", "--username=postgres", *fast, f"--pgdata={data}")
        with (self.folder / "data" / "postgresql.conf").open("a") as settings:
            settings.write(SETTINGS.format(folder=self.folder, port=self.port))
        self.start()
        # One for all tests: to make one takes long.
        self.execute(f"CREATE DATABASE {_DATABASE}")

    def start(self) -> None:
        """Start it; returns when it takes connections."""
        self._pg_ctl("start", "--wait", f"--log={self.folder / 'log'}")

    def stop(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        """Stop it; "immediate" is as if it had crashed. Every connection is cut."""
        self._pg_ctl("stop", "--wait", f"--mode={mode}")

    def restart(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        """Stop it and start it again."""
        self.stop(mode)
        self.start()

    def close(self) -> None:
        """End it for good, and remove its folder."""
        assert self._end.stdin is not None
        self._end.stdin.close()
        assert self._end.wait(timeout=30) == 0
        assert not self.folder.exists()

    def dsn(self, database: str = "postgres") -> str:
        """The address of one of its databases."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    @contextmanager
    def empty_database(self) -> Iterator[str]:
        """The address of a database that is empty, and is made empty again afterwards."""
        yield self.dsn(_DATABASE)
        # Who leaves a connection open shall be found out.
        until(lambda: self.execute(_CONNECTIONS) == [(0,)])
        self.execute(_MAKE_EMPTY, _DATABASE)

    def cut_connections(self, where: str = "true") -> list[int]:
        """End connections, which `pg_stat_activity` describes; returns their processes."""
        rows = self.execute(
            "SELECT pid, pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
            f" WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() AND {where}"
        )
        assert all(is_gone for _, is_gone in rows)
        return [pid for pid, _ in rows]

    @contextmanager
    def unacknowledged_commits(self) -> Iterator[Callable[[], None]]:
        """Delay the acknowledgement of each commit: the server waits for a missing replica.

        The yielded function waits until a journal commits, and cuts its connection. The commit
        is stored, but the journal receives no answer.
        """
        self.execute("CREATE TABLE IF NOT EXISTS probe ()")
        self._set_standby("nobody")
        until(self._delays_acknowledgements)

        yield lambda: until(lambda: self.cut_connections(_UNACKNOWLEDGED))

        self._set_standby("")

    def _delays_acknowledgements(self) -> bool:
        # It takes a while to change its mind.
        probe = psycopg.connect(self.dsn(), autocommit=True)
        pid = probe.info.backend_pid
        probe.pgconn.send_query(b"INSERT INTO probe DEFAULT VALUES")
        while not self.cut_connections(f"pid = {pid} AND {_UNACKNOWLEDGED}"):
            probe.pgconn.consume_input()
            if not probe.pgconn.is_busy():
                break
        else:
            pid = 0
        probe.close()
        return not pid

    def _set_standby(self, name: str) -> None:
        self.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{name}'")
        self.execute("SELECT pg_reload_conf()")

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """All its processes stand still: it takes what it is sent, and does not answer."""
        leader = int((self.folder / "data" / "postmaster.pid").read_text().split()[0])
        # The leader first, so that it starts no others meanwhile.
        os.kill(leader, signal.SIGSTOP)
        children = Path(f"/proc/{leader}/task/{leader}/children").read_text().split()
        every = [*map(int, children), leader]
        try:
            for process in every:
                os.kill(process, signal.SIGSTOP)
            yield
        finally:
            for process in every:
                os.kill(process, signal.SIGCONT)

    def execute(self, statement: str, database: str = "postgres") -> list[tuple[Any, ...]]:
        """Run one statement outside of any journal, and return its rows if it has some."""
        with psycopg.connect(self.dsn(database), autocommit=True) as connection:
            cursor = connection.execute(
                statement.encode() if isinstance(statement, str) else statement
            )
            return cursor.fetchall() if cursor.description else []

    def _pg_ctl(self, what: str, *options: str) -> None:
        data = f"--pgdata={self.folder / 'data'}"
        self._run("pg_ctl", what, "--silent", "--timeout=30", data, *options)

    def _run(self, program: str, *arguments: str) -> None:
        # Not a pipe: the server would keep it open.
        with (self.folder / "programs").open("w+") as output:
            process = self._spawn(
                [str(self._binaries / program), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
            if process.wait(timeout=60):
                output.seek(0)
                log = self.folder / "log"
                told = output.read() + (log.read_text()[-3000:] if log.exists() else "")
                raise RuntimeError(f"{program} {arguments[0]} failed:\n{told}")

    def _spawn(self, command: list[str], **options: object) -> subprocess.Popen[bytes]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
        environment = clean | {"LC_ALL": "C"}
        return subprocess.Popen(  # type: ignore[call-overload,no-any-return]
            command,
            env=environment,
            cwd=self.folder,
            user=self._user,
            group=self._user,
            extra_groups=None if self._user is None else [],
            **options,
        )


_DATABASE = "tests"
_CONNECTIONS = f"SELECT count(*) FROM pg_stat_activity WHERE datname = '{_DATABASE}'"
_MAKE_EMPTY = "DROP SCHEMA IF EXISTS asyncflow, public CASCADE; CREATE SCHEMA public"

_UNACKNOWLEDGED = "wait_event = 'SyncRep'"


def until(condition: Callable[[], object]) -> None:
    """Ask again and again, for what tells nobody when it happens."""
    give_up_at = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < give_up_at, "it has not happened"
        time.sleep(0.005)


def _free_port() -> int:
    """A port that nobody has: not one that the system gives to clients while the server is down."""
    for port in random.sample(range(20_000, 32_000), 100):
        with socket.socket() as candidate:
            try:
                candidate.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
    raise RuntimeError("no free port was found")
