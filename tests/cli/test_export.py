"""``export`` copies one run, and the other commands read the copy."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from .conftest import PIPELINES, ROOT, Shell

RECIPE = ROOT / "docs" / "recipes" / "reproduce.md"


def test_a_failure_is_looked_into_in_a_copy(shell: Shell) -> None:
    shell.write("flows.py", PIPELINES)
    shell("run", "flows.py:failing", "--run-id", "first", "--quiet", exits=1)

    copied = shell("export", "fir", "first.db")
    again = shell("export", "first", "first.db", exits=2)

    assert copied.stderr == (
        "exported run first; to show it: asyncflow show first --journal first.db\n"
    )
    assert "can't create 'first.db': it exists already" in again.stderr
    shown = shell("show", "first", "--journal", "first.db").stdout
    assert shown == shell("show", "first").stdout
    missing = shell("export", "first", "no/where.db", exits=2)
    assert "can't create 'no/where.db': No such file" in missing.stderr


def test_the_commands_of_the_recipe_lead_into_the_failed_step(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = RECIPE.read_text()
    module = page.partition("# orders.py\n")[2].partition("```")[0]
    commands = re.findall(r"^\$ (?:python -m )?asyncflow (.*)$", page, re.MULTILINE)
    shell.write("orders.py", module)
    arguments = "--run-id", "order-7", "--input", "order=7", "--input", "token=s3cret"
    shell("run", "orders.py:pipeline", *arguments, "--journal", "production.db", exits=1)
    seen = []

    def look() -> None:
        seen.append(sys._getframe(1).f_locals["lines"])

    monkeypatch.setattr(sys, "breakpointhook", look)
    shell.write("orders.py", module.replace("    return sum(", "    breakpoint()\n    return sum("))
    sys.modules.pop("orders", None)
    exits = {"export": 0, "show": 0, "logs": 0, "rerun": 1}
    for command in commands:
        name, *rest = command.split()
        shell(name, *rest, exits=exits.pop(name))

    assert not exits
    assert seen == [[{"price": 20.0, "count": 3.0}, {"price": 5.0}]]
    assert b"s3cret" not in Path("order-7.db").read_bytes()
