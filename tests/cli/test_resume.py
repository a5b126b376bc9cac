"""``resume`` runs the steps of the pipeline, which must have those that the run has left."""

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


def test_steps_that_a_target_excluded_run_unless_it_is_given_again(shop: Shell) -> None:
    shop("run", "shop:pipeline", "--run-id", "t1", "--target", "load", "--quiet", exits=1)
    marker = repair(shop)

    shop("resume", "t1", "shop:pipeline", "--target", "load")
    assert not marker.exists()
    shop("resume", "t1", "shop:pipeline")
    assert marker.exists()


def test_a_suggested_command_names_the_journal(shop: Shell) -> None:
    journal = ["--journal", "a b.db"]
    shop("run", "shop:pipeline", "--run-id", "t1", "--target", "load", *journal, exits=1)

    without_pipeline = shop("resume", "t1", *journal, exits=2)

    assert (
        "asyncflow resume t1 MODULE:PIPELINE --journal 'a b.db', or in" in without_pipeline.stderr
    )


def test_a_pipeline_without_steps_that_the_run_has_left_is_refused(shop: Shell) -> None:
    shop("run", "shop:pipeline", "--run-id", "t1", "--quiet", exits=1)
    shop.write("other.py", SHOP.replace("load", "store"))
    given = "other:pipeline", "--run-id", "t1"

    refused = shop("resume", "t1", "other:pipeline", exits=3)
    run_again = shop("run", *given, exits=3)
    shown = shop("resume", "t1", "other:pipeline", "--dry-run")

    problem = "run 't1' can't continue: pipeline 'shop' no longer has its step 'load'"
    assert problem in refused.stderr
    assert problem in run_again.stderr
    assert "[MISSING] load: no longer in the pipeline" in shown.stdout
    repair(shop)
    for command in (["resume", "t1", "other:pipeline"], ["run", *given]):
        result = shop(*command, "--allow-missing-steps")
        assert "Pipeline PASSED" in result.stdout
        line = next(line for line in result.stdout.splitlines() if "] load" in line)
        assert line.startswith("[SKIPPED]")
        assert "): no longer in the pipeline" in line
