"""``show RUN STEP`` says all that is known of one step; without RUN, of the latest run."""

from __future__ import annotations

import os
import re
import socket

import pytest

from .conftest import Shell

SHOP = """
    import logging
    from asyncflow import Pipeline, after, current_step, each

    pipeline = Pipeline("shop")

    @pipeline.step
    async def extract(day: int = 1):
        return [day, day + 1]

    @pipeline.step
    async def double(number: int = each(extract)):
        return 2 * number

    @pipeline.step(max_retries=2)
    async def load(rows: list[int] = after(extract), table: str = "t"):
        logging.getLogger("shop").info("attempt %s", current_step().attempt)
        raise OSError("no disk")
"""


@pytest.fixture
def shop(shell: Shell) -> Shell:
    shell.write("shop.py", SHOP)
    arguments = "--input", "day=7", "--run-id", "first", "--logs", "INFO", "--keep-going"
    shell("run", "shop:pipeline", *arguments, "--quiet", exits=1)
    return shell


def test_a_step_that_is_mapped_over_an_input_received_its_items(shell: Shell) -> None:
    shell.write(
        "repos.py",
        """
        from asyncflow import Pipeline, each

        pipeline = Pipeline("repos")

        @pipeline.step
        async def fetch(repo: int = each("repos")):
            if repo == 2:
                raise OSError("gone")
            return repo
        """,
    )
    arguments = "--input", "repos=[1, 2]", "--run-id", "first", "--quiet"
    shell("run", "repos:pipeline", *arguments, exits=1)

    shown = shell("show", "first", "fetch").stdout
    assert "  repo is an item of the input repos: [1, 2]" in shown.splitlines()
    assert "for each item of repos" in shell("plan", "repos:pipeline").stdout
    refused = shell("run", "repos:pipeline", "--no-journal", "--quiet", exits=3).stderr
    assert "and no input has that name; give it with --input NAME=VALUE" in refused


def test_a_step_with_what_it_received_its_attempts_log_and_error(shop: Shell) -> None:
    shown = shop("show", "latest", "load").stdout

    lines = shown.splitlines()
    assert lines[0].startswith("Run first of shop, started ")
    assert lines[2].startswith("✗ FAILED     load  OSError: no disk, attempt 2 of 2 ")
    assert lines[3] == f"Ran in process {socket.gethostname()}:{os.getpid()}"
    assert lines[4:7] == [
        "Received",
        "  rows is the output of extract: [7, 8]",
        "  table is its default",
    ]
    assert lines[7] == "Attempts"
    assert re.fullmatch(r"  attempt 1  failed +\S+ ms  at \S+ ms +OSError: no disk", lines[8])
    assert lines[9].index("OSError") == lines[8].index("OSError")
    assert lines[10] == "Log"
    assert lines[11].endswith(" INFO shop: attempt 1")
    assert lines[-1] == "OSError: no disk"
    assert "Traceback" in shown


def test_a_step_that_succeeded_with_its_output(shop: Shell) -> None:
    shown = shop("show", "first", "extract").stdout

    assert "  day is an input: 7\n" in shown
    assert shown.endswith("Output\n  [7, 8]\n")


def test_an_item_and_the_json(shop: Shell) -> None:
    item = shop("show", "first", "double[1]").stdout
    as_json = shop.json("show", "first", "double[1]", "--json")

    assert "  number is an item of the output of extract: [7, 8]\n" in item
    assert item.endswith("Output\n  16\n")
    assert (as_json["output"], as_json["item"]) == (16, 1)
    assert shop.json("show", "first", "extract", "--json")["output"] == [7, 8]


def test_without_an_id_it_is_the_latest_run(shop: Shell) -> None:
    assert shop("show").stdout == shop("show", "first").stdout


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["first", "laod"], "has no step 'laod' (did you mean 'load'?)"),
        (["first", "double[7]"], "the report has no item 'double[7]'"),
        (["first", "load", "--events"], "are about the whole run"),
    ],
)
def test_what_is_not_there_is_named(shop: Shell, arguments: list[str], problem: str) -> None:
    assert problem in shop("show", *arguments, exits=2).stderr


def test_a_step_with_its_calls_by_name(shell: Shell) -> None:
    shell.write(
        "agent.py",
        """
        from asyncflow import Pipeline, current_step

        pipeline = Pipeline("agent")

        async def ask(question):
            return question.upper()

        @pipeline.step(max_retries=2)
        async def loop():
            for number in range(3):
                if (number, current_step().attempt) == (2, 1):
                    raise OSError("lost")
                await current_step().call(f"ask-{number}", ask, "why?")
        """,
    )
    shell("run", "agent:pipeline", "--quiet")

    lines = shell("show", "latest", "loop").stdout.splitlines()

    calls = lines[lines.index("Calls") + 1 :][:3]
    assert [re.fullmatch(r"  attempt (\d)  +\S+ ms  (\S+)", line).groups() for line in calls] == [
        ("1", "ask-0"),
        ("1", "ask-1"),
        ("2", "ask-2"),
    ]
