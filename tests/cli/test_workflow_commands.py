"""In GitHub Actions, nothing that a step logs or raises acts as a command."""

from __future__ import annotations

import logging
import re

import pytest

from .conftest import Shell

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
        assert [each.strip() for each in commands] in ([], ["::notice::mine"])
