"""The documentation of the command line covers each command and option, and its examples hold."""

from __future__ import annotations

import re
import shlex

import click
import pytest

from .conftest import COMMANDS, ROOT, Shell

PAGE = (ROOT / "docs" / "reference" / "command-line.md").read_text(encoding="utf-8")
SECTIONS = {
    part.partition("\n")[0].removeprefix("asyncflow "): part
    for part in re.split(r"(?m)^## ", PAGE)
    if part.startswith("asyncflow ")
}
MODULE = re.search(r"(?ms)^```python\n(.*?)^```", PAGE)
EXAMPLES = re.findall(r"(?ms)^\$ asyncflow ([^\n]+)\n(.*?)^```", PAGE)


def test_the_page_has_one_section_per_command() -> None:
    assert list(SECTIONS) == list(COMMANDS)
    assert re.findall(r"(?m)^\| \[`asyncflow (\w+)`\]", PAGE) == list(COMMANDS)


@pytest.mark.parametrize("name", list(COMMANDS))
def test_the_page_has_the_options_of_each_command_as_the_site_makes_them(name: str) -> None:
    has_options = any(isinstance(each, click.Option) for each in COMMANDS[name].params)

    assert (f"<!-- options of {name} -->" in SECTIONS[name]) == has_options


def test_each_command_and_option_has_a_help_text() -> None:
    for name, command in COMMANDS.items():
        assert command.name == name
        assert command.get_short_help_str(60), name
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert parameter.help, (name, parameter.name)


def test_the_examples_of_the_page_show_the_actual_output(shell: Shell) -> None:
    assert MODULE is not None
    assert len(EXAMPLES) >= 5
    shell.write("etl.py", MODULE[1])

    for command, shows in EXAMPLES:
        result = shell(*shlex.split(command), exits=1 if "Pipeline FAILED" in shows else 0)
        # On a terminal, the standard error comes first.
        assert normalized(result.stderr + result.stdout, shell) == normalized(shows, shell), command


def test_the_job_of_the_guide_runs_by_its_command_with_a_typed_input(shell: Shell) -> None:
    guide = (ROOT / "docs" / "guides" / "data-jobs.md").read_text(encoding="utf-8")
    sources, job = re.findall(r"(?ms)^```python\n(.*?)^```", guide)[:2]
    (command,) = re.findall(r"(?m)^\$ asyncflow (run sales\.py:nightly .*)$", guide)
    exec(sources, {})
    shell.write("sales.py", job)

    late = shell(*shlex.split(command), exits=1)
    (shell.directory / "sources" / "2026-01-31" / "oslo.csv").write_text("order,cents\n6,4900\n")
    whole = shell(*shlex.split(command))

    assert "[FAILED ] extract oslo (3 attempt(s)" in late.stdout
    assert "[SUCCESS] load bern (1 attempt(s)" in late.stdout
    assert "[SUCCESS] load oslo (1 attempt(s)" in whole.stdout
    assert whole.stdout.startswith("Pipeline PASSED")


def normalized(text: str, shell: Shell) -> str:
    """Replace what differs from run to run."""
    text = text.replace(f"{shell.directory}/", "")
    text = re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC(\+\d\d:\d\d)?", "DATE", text)
    text = re.sub(r"\d\.\d{3} s|\d+(\.\d+)? ?ms", "TIME", text)
    path = r"(, TIME of it on the critical path|; the steps of its [\w ]+ took TIME \w+)?"
    text = re.sub(rf"[▲▼] TIME \w+ \([\d.]+×\){path}", "about the same", text)
    return re.sub(" +", " ", text)
