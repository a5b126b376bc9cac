"""``asyncflow run`` and ``resume`` report to GitHub Actions how a run ended."""

from __future__ import annotations

import json
import logging
import re

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
    assert json.loads(first.stdout)["status"] == "FAILED"
    assert "::error" not in again.stdout
    text = summary.read_text(encoding="utf-8")
    assert text.count("### <code>etl&#58;failing</code> FAILED") == 2


def test_a_summary_that_cannot_be_written_fails_no_run(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(shell.directory / "missing" / "summary.md"))

    result = shell("run", "etl:pipeline", "--quiet")

    assert result.stderr.startswith("the report for GitHub can't be written: ")


HOSTILE = """
    import logging
    from asyncflow import Pipeline

    pipeline = Pipeline("hostile")

    @pipeline.step
    async def upload():
        print("::notice::mine")
        logging.getLogger("x").warning("answer:\\n ::add-mask::a")
        raise OSError("##[group]b\\r\\n ::warning::c\\n::add-mask::d")
"""


MEANT = [
    "::notice::mine",
    "::error title=Step upload failed,file=hostile.py,line=11::"
    "OSError: ##[group]b%0A ::warning::c%0A::add-mask::d",  # of a command, its text is no command
]


def test_what_steps_log_and_raise_is_no_command(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setattr(logging.root, "handlers", [])  # pytest's
    shell.write("hostile.py", HOSTILE)

    ran = shell("run", "hostile:pipeline", "--logs", "INFO", "--run-id", "r", exits=1)
    logs = shell("logs", "r")
    shown = shell("show", "r", "--events")
    listed = shell("runs")

    assert ran.stdout.startswith("::notice::mine\n")  # a step may write commands of its own
    assert "\n \\::add-mask::a\n" in ran.stderr
    assert "OSError: ##[\\group]b" in ran.stderr
    assert "\n \\::warning::c\n\\::add-mask::d\n" in ran.stderr
    assert "\n     \\::add-mask::a\n" in logs.stdout
    for output in (ran.output, logs.output, shown.output, listed.output):
        commands = re.findall(r"(?:^|[\r\n])\s*::\w.*|.*##\[\w+", output)
        assert [each.strip() for each in commands] in ([], MEANT)
