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

    assert "  number is item 1 of the output of extract: 8\n" in item
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


MANY = """
    from asyncflow import Pipeline, collect, each

    images = Pipeline("images")

    @images.step
    async def names() -> list[str]:
        return [f"{number}.png" for number in range(2000)]

    @images.step(tolerated_failures=50)
    async def resize(name: str = each(names)) -> str:
        number = int(name.removesuffix(".png"))
        if number % 200 == 37:
            raise OSError("cannot identify image file")
        if number % 200 == 137:
            raise ValueError(f"{name} is 0 px wide")
        return name

    @images.step
    async def crop(name: str = each(collect(resize))) -> str:
        if name == "5.png":
            raise KeyError(name)
        return name
"""


def test_failures_of_items_are_grouped_with_their_values(shell: Shell) -> None:
    shell.write("images.py", MANY)
    ended = shell("run", "images:images", "--run-id", "first", "--quiet", exits=1)
    shown, step = (shell("show", *words).stdout for words in (["first"], ["first", "resize"]))
    of_item = shell("show", "first", "crop[5]").stdout

    counts = "1,980 of 2,000 items, 20 failed: OSError x 10, ValueError x 10"
    assert f"✓ SUCCESS    resize  {counts}" in step
    some = "[37] of '37.png', [237] of '237.png', "
    assert f"  resize: OSError x 10: cannot identify image file, {some}" in shown
    assert "  resize: ValueError x 10: 137.png is 0 px wide, [137] of '137.png', " in shown
    for text in (ended.stderr, shown):
        assert "KeyError: [5] of '5.png'\n  Traceback (most recent call last):\n" in text
        assert text.count("Traceback (most recent call last)") == 1
        assert "sub-exception" not in text.replace(MANY, "")
    assert step.count("Traceback (most recent call last)") == 2
    assert f"\nOSError x 10: {some}" in step
    assert "  name is item 5 of the output of resize: '5.png'\n" in of_item


def test_a_step_is_cut_and_says_how_to_see_the_rest(shell: Shell) -> None:
    shell.write("images.py", MANY)
    shell("run", "images:images", "--run-id", "first", "--quiet", "--target", "resize")

    step = shell("show", "first", "resize").stdout

    assert len(step) < 6_000
    assert step.endswith(
        "\n\nTo see one of its items: asyncflow show first 'resize[37]'\n"
        "To see all of the output: asyncflow show first resize --json\n"
    )
    assert len(shell.json("show", "first", "resize", "--json")["output"]) == 1_980


def test_what_items_of_a_secret_received_is_redacted(shell: Shell) -> None:
    shell.write(
        "vault.py",
        """
        from asyncflow import Pipeline, collect, each

        vault = Pipeline("vault")

        @vault.step(secret=True)
        async def keys() -> list[str]:
            return ["hunter-0", "hunter-1"]

        @vault.step(secret=True)
        async def mint(key: str = each(keys)) -> str:
            return f"coin of {key}"

        @vault.step(tolerated_failures=1)
        async def spend(coin: str = each(collect(mint))) -> int:
            if coin.endswith("1"):
                raise ValueError("no")
            return 1
        """,
    )
    shell("run", "vault:vault", "--run-id", "first", "--quiet", "--html", "run.html")
    steps = "mint", "mint[1]", "spend", "spend[1]"
    texts = [shell("show", "first", *words).stdout for words in ([], *([step] for step in steps))]

    assert "  spend: ValueError: no, [1] of redacted" in texts[0]
    assert "  coin is item 1 of the output of mint: redacted\n" in texts[-1]
    page = (shell.directory / "run.html").read_text(encoding="utf-8")
    assert not any("hunter" in text or "coin of" in text for text in (page, *texts))
