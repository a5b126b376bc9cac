"""``resume`` runs the steps that the run started with, and no others."""

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
        if not os.path.exists("repaired"):
            raise OSError("no disk")

    @pipeline.step
    async def dangerous(rows: int = after(extract)):
        pathlib.Path("marker").write_text("")
"""


@pytest.fixture
def shop(shell: Shell) -> Shell:
    shell.write("shop.py", SHOP)
    return shell


def repair(shell: Shell) -> Path:
    """Let the step succeed, and return the file that the dangerous step creates."""
    shell.write("repaired", "")
    return shell.directory / "marker"


def hint_of(stderr: str) -> list[str]:
    """Return the command of the resume hint at the end of the standard error."""
    return shlex.split(stderr.rpartition("To resume it: asyncflow ")[2])


def test_the_resume_hint_repeats_the_targets_of_the_run(shop: Shell) -> None:
    failed = shop("run", "shop:pipeline", "--run-id", "t1", "--target", "load", exits=1)
    marker = repair(shop)

    result = shop(*hint_of(failed.stderr))

    assert hint_of(failed.stderr) == ["resume", "t1", "shop:pipeline", "--target", "load"]
    assert "[SUCCESS] load" in result.stdout
    assert "dangerous" not in result.stdout
    assert not marker.exists()


def test_the_resume_hint_repeats_the_options_of_the_run(shop: Shell) -> None:
    command = ["run", "shop:pipeline", "--run-id", "t1", "--keep-going", "--schedule", "ready"]

    failed = shop(*command, exits=1)
    again = shop(*hint_of(failed.stderr), exits=1)

    expected = ["resume", "t1", "shop:pipeline", "--schedule", "ready", "--keep-going"]
    assert hint_of(failed.stderr) == hint_of(again.stderr) == expected


def test_steps_that_a_target_excluded_run_only_on_request(shop: Shell) -> None:
    shop("run", "shop:pipeline", "--run-id", "t1", "--target", "load", "--quiet", exits=1)
    marker = repair(shop)

    refused = shop("resume", "t1", "shop:pipeline", exits=2)

    assert "run 't1' does not have step 'dangerous' of shop:pipeline, excluded by" in refused.stderr
    assert "--target load" in refused.stderr
    assert "asyncflow run shop:pipeline --run-id t1" in refused.stderr
    assert not marker.exists()
    assert shop.json("runs", "--json")[0]["status"] == "FAILED"


def test_a_suggested_command_names_the_journal(shop: Shell) -> None:
    journal = ["--journal", "a b.db"]
    shop("run", "shop:pipeline", "--run-id", "t1", "--target", "load", *journal, exits=1)

    targeted = shop("resume", "t1", "shop:pipeline", *journal, exits=2)
    without_pipeline = shop("resume", "t1", *journal, exits=2)

    assert "asyncflow run shop:pipeline --run-id t1 --journal 'a b.db'\n" in targeted.stderr
    assert (
        "asyncflow resume t1 MODULE:PIPELINE --journal 'a b.db', or in" in without_pipeline.stderr
    )


def test_a_passed_run_gets_more_steps_only_on_request(shop: Shell) -> None:
    marker = repair(shop)
    shop("run", "shop:pipeline", "--run-id", "t1", "--target", "load", "--quiet")

    shop("resume", "t1", "shop:pipeline", exits=2)
    resumed = shop("resume", "t1", "shop:pipeline", "--target", "load")

    assert "has passed, so nothing ran" in resumed.stderr
    assert not marker.exists()


def test_a_pipeline_that_shares_no_step_with_the_run_is_refused(shop: Shell) -> None:
    shop("run", "shop:pipeline", "--run-id", "t1", "--quiet", exits=1)
    names = SHOP.replace("extract", "fetch").replace("load", "store").replace("dangerous", "clean")
    shop.write("other.py", names)

    refused = shop("resume", "t1", "other:pipeline", exits=2)

    assert (
        "run 't1' does not have steps 'fetch', 'store' and 'clean' of other:pipeline, excluded"
        in (refused.stderr)
    )
    assert "--target STEP" in refused.stderr
