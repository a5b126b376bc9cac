"""The command line reports wrong usage, failures and its own bugs."""

from __future__ import annotations

import errno
import re
import runpy
import sys
from importlib import util
from typing import Any

import click
import pytest

from asyncflow import __main__
from asyncflow._cli.output import explained_errors
from asyncflow.journal._run_names import new_run_name

from .conftest import Shell


def test_the_help_lists_the_commands(shell: Shell) -> None:
    text = shell("--help").stdout

    commands = "run enqueue plan runs show watch diff logs stats resume rerun signal cancel"
    commands += " export prune forget ui"
    assert re.findall(r"(?m)^  ([a-z]+)  +\w", text) == [*commands.split(), "completion"]
    assert "..." not in text.partition("Commands:")[2]


@pytest.mark.parametrize("command", [["rnu"], ["run"], ["run", "etl:pipeline", "--fast"], ["diff"]])
def test_wrong_usage_exits_with_2_and_shows_the_usage(shell: Shell, command: list[str]) -> None:
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
def test_an_invalid_filter_is_wrong_usage(shell: Shell, options: list[str]) -> None:
    shell("run", "etl:pipeline", "--quiet")

    result = shell("runs", *options, exits=2)

    assert f"Invalid value for '{options[0]}'" in result.stderr


def exit_of(error: BaseException) -> tuple[int, BaseException | None]:
    with pytest.raises(click.exceptions.Exit) as caught, explained_errors():
        raise error
    return caught.value.exit_code, caught.value.__cause__


def test_a_bug_in_asyncflow_is_reported_as_such_with_its_traceback(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for error in (ZeroDivisionError("oops"), ImportError("no module"), OSError("no")):
        assert exit_of(error) == (70, error)

        message = capsys.readouterr().err
        assert message.startswith("Traceback (most recent call last):")
        assert message.endswith(
            "Error: this is a bug in asyncflow, not in your pipeline; please report it with the "
            "traceback\n"
        )


def test_an_interruption_outside_a_run_is_reported_in_one_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert exit_of(KeyboardInterrupt())[0] == 130
    assert capsys.readouterr().err == "Error: interrupted\n"


def test_a_full_disk_is_not_reported_as_a_bug(capsys: pytest.CaptureFixture[str]) -> None:
    error = OSError(errno.ENOSPC, "No space left on device")

    assert exit_of(error) == (1, error)
    assert capsys.readouterr().err == (
        "Error: can't write: No space left on device; free some space, or write elsewhere\n"
    )


def test_a_broken_pipe_is_left_to_click() -> None:
    with pytest.raises(BrokenPipeError), explained_errors():
        raise BrokenPipeError(32, "Broken pipe")


def test_a_missing_cli_extra_is_reported_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = util.find_spec
    missing = {"click", "rich", "msgspec"}
    monkeypatch.setattr(
        util, "find_spec", lambda name, *more: None if name in missing else find(name, *more)
    )

    with pytest.raises(SystemExit) as caught:
        __main__.main()

    assert caught.value.code == 2
    assert capsys.readouterr().err == (
        "Error: the command line needs click, rich and msgspec: "
        "pip install 'asyncflow-tiers[cli]'\n"
    )


def test_an_interruption_during_the_import_shows_no_traceback(
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


def test_main_runs_the_command_of_the_process_arguments(
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


def test_generated_run_names_have_a_fixed_form_and_rarely_collide() -> None:
    names: set[Any] = {new_run_name() for _ in range(1_000)}

    assert len(names) > 990
    assert all(re.fullmatch(r"[a-z]+-[a-z]+-[0-9a-f]{4}", name) for name in names)
