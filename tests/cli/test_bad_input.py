"""Whatever is typed, a command ends with an exit code that its help lists, and without a traceback.

The command lines come from the commands themselves: their options and arguments, with values that
fit and values that don't.
"""

from __future__ import annotations

from typing import Any

import click
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asyncflow._cli import commands

from .conftest import COMMANDS, Shell

SERVES = {"ui"}
"""Runs until it is stopped."""

WAITS = {"--follow", "--wait", "--open"}

WORDS = [
    *("etl:pipeline", "etl:failing", "etl:made", "etl:nothing", "etl", "no_module:x", ":", "a:b:c"),
    *("a", "b", "extract", "load", "days=1", "days=x", "days", "=", "runs.db", "missing.db", "."),
    *(
        "",
        "0",
        "-1",
        "1.5",
        "9" * 30,
        "1e999",
        "nan",
        "1h",
        "2024-06-01",
        "0001-01-01",
        "x" * 2_000,
    ),
    *("\udcff", "a\nb", "--", "-", "{}", "[1]", '{"days": 1}', "postgresql://", "etl.py", "@"),
]


def names_of(command: click.Command) -> list[str]:
    return [
        name
        for option in command.params
        if isinstance(option, click.Option)
        for name in (*option.opts, *option.secondary_opts)
        if name not in WAITS and not WAITS & {*option.opts}
    ]


@st.composite
def command_lines(draw: st.DrawFn, name: str) -> list[str]:
    """Draw the arguments of a command: some of its options with words, and other words."""
    words = st.sampled_from(WORDS) | st.text(st.characters(exclude_characters="\0"), max_size=5)
    command = COMMANDS[name]
    line = draw(st.lists(words, max_size=3))
    for option in draw(st.lists(st.sampled_from([*names_of(command), "--nothing"]), max_size=3)):
        line.append(option)
        line += draw(st.lists(words, max_size=1))
    return line


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in SERVES])
@settings(
    max_examples=settings().max_examples // 4,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_no_command_line_ends_in_a_traceback(shell: Shell, name: str, data: st.DataObject) -> None:
    if not (shell.directory / "runs.db").exists():
        shell("run", "etl:pipeline", "--quiet", "--run-id", "a", "--journal", "runs.db")
    line = data.draw(command_lines(name))

    result = CliRunner().invoke(commands, [name, *line])

    shown: Any = (name, line, result.output, result.exception)
    assert result.exit_code in (0, 1, 2, 3, 4), shown
    assert "this is a bug" not in result.output, shown
    assert result.exit_code == 1 or "Traceback (most recent call last)" not in result.output, shown
