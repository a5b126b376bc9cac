"""``resume`` runs what the run was begun with, and nothing that it was begun without."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from .conftest import Shell

SHOP = """
    import os, pathlib
    from asyncflow import Pipeline, after

    pipeline = Pipeline("shop")

    @pipeline.step
    async def extract():
        return 1

    @pipeline.step
    async def load(rows: int = after(extract)):
        if not os.path.exists("mended"):
            raise OSError("no disk")

    @pipeline.step
    async def dangerous(rows: int = after(extract)):
        pathlib.Path("ran").write_text("")
"""


@pytest.fixture
def shop(shell: Shell) -> Shell:
    shell.write("shop.py", SHOP)
    return shell


def mend(shell: Shell) -> Path:
    """Let the step succeed, and return the file that tells whether the other one has run."""
    shell.write("mended", "")
    return shell.directory / "ran"


def hint_of(stderr: str) -> list[str]:
    """Return the command that goes on with a run, as it is said at its end."""
    return shlex.split(stderr.rpartition("To resume it: asyncflow ")[2])


def test_the_hint_goes_on_without_what_targets_have_left_out(shop: Shell) -> None:
    failed = shop("run", "shop:pipeline", "--run-id", "t1", "--target", "load", exits=1)
    ran = mend(shop)

    result = shop(*hint_of(failed.stderr))

    assert hint_of(failed.stderr) == ["resume", "t1", "shop:pipeline", "--target", "load"]
    assert "[SUCCESS] load" in result.stdout
    assert "dangerous" not in result.stdout
    assert not ran.exists()


def test_the_hint_repeats_how_the_run_was_to_go(shop: Shell) -> None:
    command = ["run", "shop:pipeline", "--run-id", "t1", "--keep-going", "--schedule", "ready"]

    failed = shop(*command, exits=1)
    again = shop(*hint_of(failed.stderr), exits=1)

    expected = ["resume", "t1", "shop:pipeline", "--schedule", "ready", "--keep-going"]
    assert hint_of(failed.stderr) == hint_of(again.stderr) == expected


def test_what_targets_have_left_out_is_not_run_unless_that_is_said(shop: Shell) -> None:
    shop("run", "shop:pipeline", "--run-id", "t1", "--target", "load", "--quiet", exits=1)
    ran = mend(shop)

    refused = shop("resume", "t1", "shop:pipeline", exits=2)

    assert "run 't1' does not have step 'dangerous' of shop:pipeline, excluded by" in refused.stderr
    assert "--target load" in refused.stderr
    assert "asyncflow run shop:pipeline --run-id t1" in refused.stderr
    assert not ran.exists()
    assert shop.json("runs", "--json")[0]["status"] == "failed"


def test_what_is_said_to_be_called_names_the_journal(shop: Shell) -> None:
    journal = ["--journal", "a b.db"]
    shop("run", "shop:pipeline", "--run-id", "t1", "--target", "load", *journal, exits=1)

    others = shop("resume", "t1", "shop:pipeline", *journal, exits=2)
    nowhere = shop("resume", "t1", *journal, exits=2)

    assert "asyncflow run shop:pipeline --run-id t1 --journal 'a b.db'\n" in others.stderr
    assert "asyncflow resume t1 MODULE:PIPELINE --journal 'a b.db', or in" in nowhere.stderr


def test_a_run_that_has_passed_does_not_get_more_steps_unless_that_is_said(shop: Shell) -> None:
    ran = mend(shop)
    shop("run", "shop:pipeline", "--run-id", "t1", "--target", "load", "--quiet")

    shop("resume", "t1", "shop:pipeline", exits=2)
    told = shop("resume", "t1", "shop:pipeline", "--target", "load")

    assert "passed earlier" in told.stderr
    assert not ran.exists()


def test_both_ways_that_are_said_run_the_other_steps_too(shop: Shell) -> None:
    ran = mend(shop)
    for run_id in ("t1", "t2"):
        shop("run", "shop:pipeline", "--run-id", run_id, "--target", "load", "--quiet")

    shop("resume", "t1", "shop:pipeline", "--target", "load", "--target", "dangerous")
    assert ran.exists()
    ran.unlink()
    shop("run", "shop:pipeline", "--run-id", "t2")
    assert ran.exists()
    shop("resume", "t2", "shop:pipeline")  # now it is one of the whole pipeline


def test_a_step_that_is_needed_now_runs_with_the_target(shop: Shell) -> None:
    shop("run", "shop:pipeline", "--run-id", "t1", "--target", "load", "--quiet", exits=1)
    mend(shop)
    shop.write(
        "newer.py",
        SHOP.replace("async def load(", "async def check(rows: int = after(extract)): ...\n\n"
                     "    @pipeline.step\n    async def load(checked: None = after(check), "),
    )  # fmt: skip

    result = shop("resume", "t1", "newer:pipeline", "--target", "load", "--quiet")

    assert "[SUCCESS] check" in result.stdout
    assert "dangerous" not in result.stdout


def test_a_run_that_shares_no_step_with_the_pipeline_is_told_so(shop: Shell) -> None:
    shop("run", "shop:pipeline", "--run-id", "t1", "--quiet", exits=1)
    names = SHOP.replace("extract", "fetch").replace("load", "store").replace("dangerous", "clean")
    shop.write("other.py", names)

    refused = shop("resume", "t1", "other:pipeline", exits=2)

    assert (
        "run 't1' does not have steps 'fetch', 'store' and 'clean' of other:pipeline, excluded"
        in (refused.stderr)
    )
    assert "--target STEP" in refused.stderr


def test_another_pipeline_is_refused_in_words_for_who_resumes(shop: Shell) -> None:
    shop("run", "shop:pipeline", "--run-id", "t1", "--quiet", exits=1)

    for target in ("etl:pipeline", "etl:failing"):
        refused = shop("resume", "t1", target, exits=3)
        assert "run 't1' belongs to pipeline 'shop', not to 'etl" in refused.stderr
        assert "name the module of 'shop'" in refused.stderr
        assert "another run id" not in refused.stderr


def test_an_unknown_target_is_a_wrong_usage(shop: Shell) -> None:
    shop("run", "shop:pipeline", "--run-id", "t1", "--quiet", exits=1)

    refused = shop("resume", "t1", "shop:pipeline", "--target", "laod", exits=2)

    assert "did you mean 'load'?" in refused.stderr
