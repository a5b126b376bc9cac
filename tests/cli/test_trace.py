"""``--trace`` writes the trace of a run with all its segments, even if the run fails."""

from __future__ import annotations

import json
from typing import Any

import pytest

from .conftest import Shell


def _names(shell: Shell, name: str) -> list[str]:
    trace: dict[str, Any] = json.loads((shell.directory / name).read_text(encoding="utf-8"))
    return [event["name"] for event in trace["traceEvents"] if event["ph"] == "B"]


def test_a_resumed_run_writes_the_trace_of_all_its_segments(shell: Shell) -> None:
    shell("run", "etl:failing", "--run-id", "r1", "--trace", "first.json", exits=1)
    result = shell("resume", "r1", "etl:failing", "--trace", "resumed.json", exits=1)
    shell("show", "r1", "--trace", "shown.json")

    assert f"Trace: {shell.directory / 'resumed.json'}\n" in result.stderr
    assert "run" in _names(shell, "first.json")
    assert {"segment 1", "segment 2"} < {*_names(shell, "resumed.json")}
    assert _names(shell, "resumed.json") == _names(shell, "shown.json")


def test_without_a_journal_the_trace_is_made_of_the_observed_events(shell: Shell) -> None:
    shell("run", "etl:failing", "--trace", "out.json", "--no-journal", "--quiet", exits=1)

    assert "attempt 1" in _names(shell, "out.json")


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["--trace", "asyncflow.db"], "is the journal"),
        (["--trace", "out", "--html", "./out"], "the file of --html"),
        (["--trace", "no/where"], "does not exist"),
    ],
)
def test_a_file_that_would_replace_another_one_is_refused_before_the_run(
    shell: Shell, options: list[str], error: str
) -> None:
    result = shell("run", "etl:pipeline", *options, exits=2)

    assert "'--trace'" in result.stderr
    assert error in result.stderr
    assert not list(shell.directory.glob("*.db"))


def test_a_trace_that_cannot_be_written_is_reported_in_one_line(shell: Shell) -> None:
    shell("run", "etl:pipeline", "--run-id", "r1", "--quiet")

    result = shell("show", "r1", "--trace", "/dev/full", exits=1)

    assert result.stderr.startswith("Error: the trace can't be written: ")
