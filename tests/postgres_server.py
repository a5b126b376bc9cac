"""A PostgreSQL server for the tests, which can stop it, freeze it and cut its connections.

It listens on 127.0.0.1 only, and has its data in a temporary folder. Its durability is the default:
it acknowledges a commit that is on disk. A watcher process stops the server and removes the folder
when the tests end, even if they are killed.
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

NEEDED = "needs a PostgreSQL server: on Debian, apt-get install postgresql"

SETTINGS = """
listen_addresses = '127.0.0.1'
unix_socket_directories = '{folder}'
port = {port}
max_connections = 50
shared_buffers = 16MB
# No replica ever connects; see `unacknowledged_commits`.
max_wal_senders = 1
"""

END_WITH_THE_TESTS = """
trap '' INT TERM HUP
cat >/dev/null
# A frozen server cannot stop: wake it up first. It kills those of its processes that remain.
test ! -e "$1/data/postmaster.pid" || kill -CONT "$(head -n 1 "$1/data/postmaster.pid")"
"$0" stop --silent --mode=immediate --pgdata="$1/data"
rm -rf "$1"
"""
"""Its standard input closes when the tests end, for whatever reason."""


def find_binaries() -> Path | None:
    """Return the folder of the newest server here; Debian has it outside of the PATH."""
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
    """Start a server, and stop it. Without binaries, skip the tests."""
    binaries = find_binaries()
    if binaries is None:
        pytest.skip(NEEDED)
    server = PostgresServer(binaries)
    try:
        yield server
    finally:
        server.close()


class PostgresServer:
    """A server that runs from its construction."""

    def __init__(self, binaries: Path) -> None:
        self._binaries = binaries
        # It refuses to run as root. Debian's package creates the user to run it as.
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
        # One database for all tests: creating one is slow.
        self.execute(f"CREATE DATABASE {_DATABASE}")

    def start(self) -> None:
        """Start it, and wait until it accepts connections."""
        self._pg_ctl("start", "--wait", f"--log={self.folder / 'log'}")

    def stop(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        """Stop it, which cuts every connection; "immediate" is like a crash."""
        self._pg_ctl("stop", "--wait", f"--mode={mode}")

    def restart(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        """Stop it and start it again."""
        self.stop(mode)
        self.start()

    def close(self) -> None:
        """Stop it for good, and remove its folder."""
        assert self._end.stdin is not None
        self._end.stdin.close()
        assert self._end.wait(timeout=30) == 0
        assert not self.folder.exists()

    def dsn(self, database: str = "postgres") -> str:
        """Return the DSN of one of its databases."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    @contextmanager
    def empty_database(self) -> Iterator[str]:
        """Yield the DSN of an empty database, and empty it again afterwards."""
        yield self.dsn(_DATABASE)
        # A connection left open fails the test.
        until(lambda: self.execute(_CONNECTIONS) == [(0,)])
        self.execute(_MAKE_EMPTY, _DATABASE)

    def cut_connections(self, where: str = "true") -> list[int]:
        """Cut the connections that match a condition on `pg_stat_activity`; return their PIDs."""
        rows = self.execute(
            "SELECT pid, pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
            f" WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() AND {where}"
        )
        assert all(is_gone for _, is_gone in rows)
        return [pid for pid, _ in rows]

    @contextmanager
    def unacknowledged_commits(self) -> Iterator[Callable[[], None]]:
        """Hold back the acknowledgement of commits, which wait for a replica that does not exist.

        Yields a function that waits for a commit and cuts its connection. The commit is durable.
        """
        self.execute("CREATE TABLE IF NOT EXISTS probe ()")
        self._set_standby("nobody")
        until(self._holds_back_commits)

        yield lambda: until(lambda: self.cut_connections(_WAITS_FOR_REPLICA))

        self._set_standby("")

    def _holds_back_commits(self) -> bool:
        # The new setting takes effect with a delay.
        probe = psycopg.connect(self.dsn(), autocommit=True)
        pid = probe.info.backend_pid
        probe.pgconn.send_query(b"INSERT INTO probe DEFAULT VALUES")
        while not self.cut_connections(f"pid = {pid} AND {_WAITS_FOR_REPLICA}"):
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
        """Freeze all its processes: it receives data, and does not answer."""
        leader = int((self.folder / "data" / "postmaster.pid").read_text().split()[0])
        # The leader first, so that it starts no other process meanwhile.
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
        """Run one statement outside of any journal; return its rows, if any."""
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
                text = output.read() + (log.read_text()[-3000:] if log.exists() else "")
                raise RuntimeError(f"{program} {arguments[0]} failed:\n{text}")

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

_WAITS_FOR_REPLICA = "wait_event = 'SyncRep'"


def until(condition: Callable[[], object]) -> None:
    """Poll a condition that sends no notification."""
    give_up_at = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < give_up_at, "the condition did not hold within 60 s"
        time.sleep(0.005)


def _free_port() -> int:
    """Return a free port that the system does not give to clients while the server is down."""
    for port in random.sample(range(20_000, 32_000), 100):
        with socket.socket() as candidate:
            try:
                candidate.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
    raise RuntimeError("no free port was found")
