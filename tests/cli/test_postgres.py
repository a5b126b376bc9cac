"""The command line can use a PostgreSQL database as its journal."""

from __future__ import annotations

import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from .conftest import Shell


def test_runs_are_stored_shown_and_resumed_in_postgresql(
    shell: Shell, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    keywords = make_conninfo(**conninfo_to_dict(dsn))
    failed = shell("run", "etl:failing", "--journal", dsn, "--run-id", "r1", exits=1)
    monkeypatch.setenv("ASYNCFLOW_JOURNAL", keywords)
    again = shell("resume", "r", "etl:failing", exits=1)

    assert failed.stderr.endswith("asyncflow resume r1 etl:failing --journal DSN\n")
    assert again.stderr.endswith("asyncflow resume r1 etl:failing\n")
    assert [run["status"] for run in shell.json("runs", "--json")] == ["FAILED"]
    assert "resumed 1 time" in shell("show", "latest").stdout
    assert "run 'r1' has ended" in shell("cancel", "r1", exits=1).stderr
    assert "has no run 'r2'" in shell("show", "r2", exits=4).stderr
    assert not list(shell.directory.glob("*.db"))
    assert not list(shell.directory.glob("*=*"))
