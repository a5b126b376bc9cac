"""What the command line does when something is wrong, with itself too."""

from __future__ import annotations

import errno
import re
import runpy
import sys
from importlib import util
from typing import Any

import click
import pytest

import asyncflow
from asyncflow import __main__
from asyncflow._cli.execution import new_run_name
from asyncflow._cli.output import explained_errors

from .conftest import Shell


def test_the_version_is_that_of_the_package(shell: Shell) -> None:
    assert shell("--version").stdout == f"asyncflow, version {asyncflow.__version__}\n"


def test_without_a_command_there_is_help(shell: Shell) -> None:
    text = shell("--help").stdout

    commands = "run plan runs show resume cancel prune forget ui completion"
    assert re.findall(r"(?m)^  ([a-z]+)  +\w", text) == commands.split()
    assert "..." not in text.partition("Commands:")[2]


@pytest.mark.parametrize("command", [["rnu"], ["run"], ["run", "etl:pipeline", "--fast"], ["show"]])
def test_a_wrong_usage_is_told_as_such(shell: Shell, command: list[str]) -> None:
    result = shell(*command, exits=2)

    assert result.stderr.startswith("Usage: ")
    assert result.stdout == ""


@pytest.mark.parametrize(
    "options",
    [
        ["--since", "0001-01-01"],
        ["--since", "9999999w"],
        ["--text", "x" * 1_001],
        ["--text", "\udcff"],
        ["--limit", "9223372036854775807"],
        ["--limit", "9" * 30],
        ["--limit", "-1"],
    ],
)
def test_what_no_run_can_be_asked_for_is_a_wrong_usage(shell: Shell, options: list[str]) -> None:
    shell("run", "etl:pipeline", "--quiet")

    result = shell("runs", *options, exits=2)

    assert f"Invalid value for '{options[0]}'" in result.stderr


def test_a_pipeline_of_which_there_can_be_none_has_no_runs(shell: Shell) -> None:
    shell("run", "etl:pipeline", "--quiet")

    assert shell("runs", "--pipeline", "\udcff").stderr == "no matching runs\n"


@pytest.mark.parametrize("run", ["\udcff", "a\udcff", '"a', "a\n", ".", ".."])
@pytest.mark.parametrize("command", [["show"], ["cancel"], ["resume", "--quiet"]])
def test_an_id_that_no_run_can_have_is_that_of_no_run(
    shell: Shell, command: list[str], run: str
) -> None:
    shell("run", "etl:pipeline", "--quiet", "--run-id", "a")
    target = ["etl:pipeline"] if command[0] == "resume" else []

    result = shell(*command, run, *target, exits=4)

    assert f"has no run {run!r}" in result.stderr


def raised(error: BaseException) -> tuple[int, BaseException | None]:
    with pytest.raises(click.exceptions.Exit) as caught, explained_errors():
        raise error
    return caught.value.exit_code, caught.value.__cause__


def test_a_bug_of_ours_is_told_as_one_with_its_traceback(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for error in (ZeroDivisionError("oops"), ImportError("no module"), OSError("no")):
        assert raised(error) == (70, error)

        said = capsys.readouterr().err
        assert said.startswith("Traceback (most recent call last):")
        assert said.endswith(
            "Error: this is a bug in asyncflow, not in your pipeline; please report it with the "
            "traceback\n"
        )


def test_a_missing_extra_is_told_in_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    error = ImportError("pages need jinja2: pip install 'asyncflow-tiers[report]'")

    assert raised(error) == (2, error)
    assert capsys.readouterr().err == f"Error: {error}\n"


def test_an_interruption_while_nothing_runs_is_told_in_a_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert raised(KeyboardInterrupt())[0] == 130
    assert capsys.readouterr().err == "Error: interrupted\n"


def test_a_full_disk_is_no_bug_of_ours(capsys: pytest.CaptureFixture[str]) -> None:
    error = OSError(errno.ENOSPC, "No space left on device")

    assert raised(error) == (1, error)
    assert capsys.readouterr().err == (
        "Error: can't write: No space left on device; free some space, or write elsewhere\n"
    )


def test_nobody_who_reads_on_is_left_to_click() -> None:
    with pytest.raises(BrokenPipeError), explained_errors():
        raise BrokenPipeError(32, "nobody reads")


def test_what_ends_a_command_on_purpose_is_left_alone() -> None:
    for end in (click.exceptions.Exit(3), click.UsageError("no"), click.Abort(), SystemExit(4)):
        with pytest.raises(type(end)) as caught, explained_errors():
            raise end
        assert caught.value is end


def test_without_the_extra_there_is_one_line_that_names_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = util.find_spec
    lost = {"click", "rich", "msgspec"}
    monkeypatch.setattr(
        util, "find_spec", lambda name, *more: None if name in lost else find(name, *more)
    )

    with pytest.raises(SystemExit) as caught:
        __main__.main()

    assert caught.value.code == 2
    assert capsys.readouterr().err == (
        "Error: the command line needs click, rich and msgspec: "
        "pip install 'asyncflow-tiers[cli]'\n"
    )


def test_an_interruption_while_it_is_imported_ends_it_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Interrupted:
        def find_spec(self, name: str, *_: object) -> None:
            if name == "asyncflow._cli":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "asyncflow._cli")
    monkeypatch.setattr(sys, "meta_path", [Interrupted(), *sys.meta_path])

    with pytest.raises(SystemExit) as caught:
        __main__.main()

    assert caught.value.code == 130
    assert capsys.readouterr().err == ""


def test_main_runs_the_command_that_the_process_was_given(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["whatever", "--version"])

    with pytest.raises(SystemExit) as caught:
        __main__.main()

    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith("asyncflow, version ")


def test_the_package_can_be_run_as_a_module(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["whatever", "--version"])
    monkeypatch.delitem(sys.modules, "asyncflow.__main__")

    with pytest.raises(SystemExit):
        runpy.run_module("asyncflow", run_name="__main__")

    assert capsys.readouterr().out.startswith("asyncflow, version ")


def test_names_of_runs_are_never_taken_for_anything_else() -> None:
    names: set[Any] = {new_run_name() for _ in range(1_000)}

    assert len(names) > 990
    assert all(re.fullmatch(r"[a-z]+-[a-z]+-[0-9a-f]{4}", name) for name in names)
