"""``asyncflow run`` and ``resume`` report to GitHub Actions how a run ended."""

from __future__ import annotations

import json

import pytest

from .conftest import Shell


def test_a_job_gets_a_summary_and_errors(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    summary = shell.directory / "summary.md"
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    monkeypatch.setenv("GITHUB_WORKSPACE", str(shell.directory))

    first = shell("run", "etl:failing", "--json", "--quiet", "--run-id", "r", exits=1)
    again = shell("resume", "r", "etl:failing", "--quiet", exits=1)

    command = "::error title=Step bad failed,file=etl.py,line=19::OSError: no disk\n"
    assert command in first.stderr
    assert command in again.stderr
    assert json.loads(first.stdout)["outcome"] == "failed"
    assert "::error" not in again.stdout
    text = summary.read_text(encoding="utf-8")
    assert text.count("### <code>etl&#58;failing</code> FAILED") == 2


def test_elsewhere_neither_is_written(shell: Shell) -> None:
    result = shell("run", "etl:failing", "--quiet", exits=1)

    assert "::error" not in result.stderr


def test_a_summary_that_cannot_be_written_fails_no_run(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(shell.directory / "missing" / "summary.md"))

    result = shell("run", "etl:pipeline", "--quiet")

    assert result.stderr.startswith("the report for GitHub can't be written: ")
