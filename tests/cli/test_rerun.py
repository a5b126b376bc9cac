"""``rerun`` makes a new run that reuses what is still valid of another one."""

from __future__ import annotations

import json
import re

import pytest

from .conftest import Shell

SHOP = """
    import pathlib
    from asyncflow import Pipeline, after

    pipeline = Pipeline("shop", secret_inputs=["token"])

    def note(name):
        with open("calls", "a") as file:
            file.write(f"{name} ")

    @pipeline.step
    async def extract(day: int = 1):
        note("extract")
        return day

    @pipeline.step
    async def load(rows: int = after(extract), table: str = "t"):
        note("load")
        if not pathlib.Path("repaired").exists():
            raise OSError("no disk")
        return f"{table} {rows}"

    @pipeline.step
    async def mail(rows: int = after(extract), token: str = ""):
        note("mail")

    other = Pipeline("other")
    other.step(extract)
"""


@pytest.fixture
def shop(shell: Shell) -> Shell:
    shell.write("shop.py", SHOP)
    return shell


def calls(shell: Shell) -> list[str]:
    """Return what was called since the last question."""
    file = shell.directory / "calls"
    found = file.read_text().split() if file.exists() else []
    file.unlink(missing_ok=True)
    return found


@pytest.fixture
def failed(shop: Shell) -> Shell:
    shop("run", "shop:pipeline", "--run-id", "first", "--keep-going", "--quiet", exits=1)
    shop.write("repaired", "")
    calls(shop)
    return shop


def test_what_is_valid_is_reused_by_a_new_run(failed: Shell) -> None:
    before = failed("show", "first", "--json").stdout

    result = failed("rerun", "first", "shop:pipeline", "--run-id", "second")

    assert calls(failed) == ["load"]
    assert "run second, a rerun of run first" in result.stderr
    assert result.stderr.endswith("To show it again: asyncflow show second\n")
    lines = result.stdout.splitlines()
    assert lines[0] == "Pipeline PASSED"
    assert lines[1].startswith("[SUCCESS] extract (1 attempt(s), ")
    assert lines[1].endswith("): reused from run first")
    assert lines[2].endswith("): run again because it had failed")
    assert failed("show", "first", "--json").stdout == before


def test_the_pipeline_may_be_in_the_variable(
    failed: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ASYNCFLOW_PIPELINES", "shop:other shop:pipeline")

    failed("rerun", "first", "--quiet")

    assert calls(failed) == ["load"]


@pytest.mark.parametrize(
    ("arguments", "exits", "words"),
    [
        (["nope", "shop:pipeline"], 4, "has no run 'nope'"),
        (["first"], 2, "name it: asyncflow rerun first MODULE:PIPELINE, or in $ASYNCFLOW_PIPELI"),
        (["first", "shop:other"], 3, "run 'first' belongs to pipeline 'shop', not to 'other'"),
        (
            ["first", "shop:pipeline", "--from", "laod"],
            2,
            "--from names 'laod', which is no step (did you mean 'load'?)",
        ),
        (
            ["first", "shop:pipeline", "--run-id", "first"],
            3,
            "a rerun of run 'first' needs another",
        ),
        (
            ["first", "shop:pipeline", "--from", "q"],
            2,
            "--from names 'q', which is no step; there are extract, load, mail",
        ),
        (["first", "shop:pipeline", "--run-id", "-x"], 2, "choose another one"),
        (["first", "shop:pipeline", "--input", "tabel=x"], 2, "did you mean 'table'?"),
        (["first", "shop:pipeline", "--wait"], 2, "No such option"),
        (["first", "shop:pipeline", "--journal", "no.db"], 4, "does not exist"),
    ],
)
def test_a_refusal_says_what_to_do(
    failed: Shell, arguments: list[str], exits: int, words: str
) -> None:
    result = failed("rerun", *arguments, exits=exits)

    assert words in result.stderr.replace("\n", " ")
    assert "a rerun of run first" not in result.stderr
    assert calls(failed) == []


def test_a_secret_input_must_be_given_again(shop: Shell) -> None:
    shop.write("repaired", "")
    shop("run", "shop:pipeline", "--run-id", "first", "--input", "token=abc", "--quiet")
    calls(shop)

    refused = shop("rerun", "first", "shop:pipeline", exits=3)
    shop("rerun", "first", "shop:pipeline", "--from", "mail", "--input", "token=abc", "--quiet")

    assert "input 'token' of run 'first' is secret, so it was not stored" in refused.stderr
    assert calls(shop) == ["mail"]


def test_no_run_is_made_if_nothing_would_run(shop: Shell) -> None:
    shop.write("repaired", "")
    shop("run", "shop:pipeline", "--run-id", "first", "--quiet")
    calls(shop)

    said = shop("rerun", "first", "shop:pipeline", "--run-id", "second")
    as_json = shop.json("rerun", "first", "shop:pipeline", "--json", "--quiet")

    assert said.stdout.startswith("A rerun of run first: 3 reused\n[REUSED ] extract\n")
    assert said.stderr == (
        "nothing would run, so there is no new run; choose steps with --from STEP, or all with "
        "--all\n"
    )
    assert [step["decision"] for step in as_json["steps"]] == ["reused"] * 3
    assert calls(shop) == []
    assert [run["run_id"] for run in shop.json("runs", "--json")] == ["first"]


def test_steps_that_the_run_left_out_run_unless_a_target_leaves_them_out(shop: Shell) -> None:
    shop.write("repaired", "")
    shop("run", "shop:pipeline", "--run-id", "part", "--target", "load", "--quiet")
    calls(shop)

    shop("rerun", "part", "shop:pipeline", "--target", "load", "--quiet")
    assert calls(shop) == []
    shop("rerun", "part", "shop:pipeline", "--quiet")
    assert calls(shop) == ["mail"]


def test_lists_and_heads_say_where_a_run_comes_from(shop: Shell) -> None:
    shop.write("repaired", "")
    shop.write(
        "nested.py",
        """
        import shop
        from asyncflow import Pipeline
        from asyncflow.journal import SQLiteJournal

        pipeline = Pipeline("outer")

        @pipeline.step
        async def start():
            async with SQLiteJournal("asyncflow.db") as journal:
                await shop.pipeline.with_options(run_id="inner", journal=journal).run()
        """,
    )
    shop("run", "nested", "--run-id", "outer-1", "--quiet")
    shop("rerun", "inner", "shop:pipeline", "--run-id", "rerun", "--all", "--quiet")

    rows = {line.split()[0]: line for line in shop("runs").stdout.splitlines()}
    inner, rerun = shop("show", "inner").stdout, shop("show", "rerun").stdout
    records = {record["run_id"]: record for record in shop.json("runs", "--json")}

    assert rows["inner"].endswith("shop, in outer-1")
    assert rows["rerun"].endswith("shop, rerun of inner")
    assert inner.splitlines()[0].endswith(", started by step start of run outer-1")
    assert rerun.splitlines()[0].endswith(", a rerun of run inner")
    assert (records["inner"]["parent"], records["inner"]["parent_step"]) == ("outer-1", "start")
    assert records["rerun"]["rerun_of"] == "inner"


def test_a_dry_run_shows_what_would_run_and_runs_nothing(failed: Shell) -> None:
    before = failed("runs", "--json").stdout

    resumed = failed("resume", "first", "shop:pipeline", "--dry-run")
    rerun = failed("rerun", "first", "shop:pipeline", "--from", "extract", "--dry-run")
    as_json = json.loads(failed("resume", "first", "shop:pipeline", "--dry-run", "--json").stdout)

    assert resumed.stdout == (
        "A resumption of run first: 2 reused, 1 to run\n"
        "[REUSED ] extract\n"
        "[RUNS   ] load: it had failed\n"
        "[REUSED ] mail\n"
    )
    assert rerun.stdout.splitlines()[:2] == [
        "A rerun of run first: 3 to run",
        "[RUNS   ] extract: the rerun starts from it",
    ]
    assert [step["decision"] for step in as_json["steps"]] == ["reused", "runs", "reused"]
    assert calls(failed) == []
    assert failed("runs", "--json").stdout == before


def test_the_missing_files_of_a_night_are_listed_and_fetched_next_morning(shell: Shell) -> None:
    """The chain of the guide on nightly jobs, as a newcomer runs it."""
    shell.write(
        "night.py",
        """
        import pathlib
        from asyncflow import Pipeline, collect, each

        night = Pipeline("night", schedule="ready")

        @night.step
        async def names() -> list[str]:
            return ["a", "b", "c", "d"]

        @night.step(tolerated_failures=1)
        async def fetch(name: str = each(names)) -> str:
            if name == "b" and not pathlib.Path("delivered").exists():
                raise FileNotFoundError(name)
            return name

        @night.step(fallback=lambda error: "?")
        async def load(name: str = each(collect(fetch))) -> str:
            if name == "d":
                raise ValueError("no table")
            return name
        """,
    )
    shell("run", "night:night", "--run-id", "night")

    shown = shell("show", "night").stdout
    shell.write("delivered", "")
    again = shell("rerun", "night", "night:night").stdout

    assert re.search(r"\n✓ SUCCESS    fetch  3 of 4 items, 1 failed: FileNotFoundError  ", shown)
    assert (
        "\n\nFailed, and tolerated or fell back:\n"
        "  fetch: FileNotFoundError: b, [1] of 'b'\n"
        "  load: fell back: ValueError: no table, [3] of 'd'\n\n✓ PASSED in "
    ) in shown
    assert ": 3 of 4 items reused: run again because 1 item had failed" in again
    assert "load (4 attempt(s), " in again


def test_all_steps_run_again_with_the_inputs_of_the_run(failed: Shell) -> None:
    both = failed("rerun", "first", "shop:pipeline", "--all", "--from", "load", exits=2)

    failed("rerun", "first", "shop:pipeline", "--all", "--quiet")

    assert calls(failed) == ["extract", "load", "mail"]
    assert "--from has no effect" in both.stderr
