"""``--html`` writes the page of a run with all its segments, even if the run fails."""

from __future__ import annotations

import html

import pytest

from .conftest import Shell


def test_the_page_path_is_resolved_before_a_step_changes_the_directory(shell: Shell) -> None:
    shell.write(
        "goer.py",
        """
        import os
        from asyncflow import Pipeline
        pipeline = Pipeline("goer")

        @pipeline.step
        async def go():
            os.mkdir("elsewhere")
            os.chdir("elsewhere")
        """,
    )

    shell("run", "goer:pipeline", "--html", "out.html")

    assert (shell.directory / "out.html").exists()


TALKER = """
    from asyncflow import Pipeline, current_step
    pipeline = Pipeline("talker")

    @pipeline.step
    async def talk():
        current_step().progress(1204, 5000, "rows")
        current_step().attach("notes.txt", "an attached text")
        current_step().stream("it ")
        current_step().stream("rains")
        raise OSError("no disk")
"""


def test_a_page_has_what_the_steps_of_a_run_said(shell: Shell) -> None:
    shell.write("talker.py", TALKER)
    run = ("run", "talker:pipeline", "--run-id", "r1", "--quiet", "--html", "run.html")

    shell(*run, exits=1)
    shell("show", "r1", "--html", "shown.html")

    for name in ("run.html", "shown.html"):
        page = (shell.directory / name).read_text(encoding="utf-8")
        assert "stopped at" in page
        assert "an attached text" in page
        assert "<pre>it rains</pre>" in page


def test_the_page_of_a_run_without_a_journal_has_what_observers_heard(shell: Shell) -> None:
    shell.write("talker.py", TALKER)

    shell("run", "talker:pipeline", "--no-journal", "--html", "out.html", "--quiet", exits=1)

    page = (shell.directory / "out.html").read_text(encoding="utf-8")
    assert "an attached text" in page
    assert "asyncflow resume" not in page


def test_a_page_has_the_command_that_resumes_its_run(shell: Shell) -> None:
    where = ("--journal", "my runs.db", "--quiet")
    shell("run", "etl:failing", "--run-id", "r 1", "--html", "run.html", *where, exits=1)
    shell("show", "r 1", "--journal", "my runs.db", "--html", "shown.html")

    for name in ("run.html", "shown.html"):
        page = html.unescape((shell.directory / name).read_text(encoding="utf-8"))
        assert "asyncflow resume 'r 1' etl:failing --journal 'my runs.db'" in page


def test_a_page_says_what_its_command_lacks_if_the_pipeline_has_a_name_of_its_own(
    shell: Shell,
) -> None:
    shell.write("talker.py", TALKER)
    shell("run", "talker:pipeline", "--run-id", "r1", "--quiet", exits=1)
    shell("show", "r1", "--html", "shown.html")

    page = (shell.directory / "shown.html").read_text(encoding="utf-8")

    assert "asyncflow resume r1 MODULE:PIPELINE" in page
    assert "MODULE:PIPELINE is where its code is, such as etl.py, with pipeline talker" in page


@pytest.mark.parametrize("path", ["no/where/out.html", "."])
def test_an_unwritable_file_is_refused_before_the_run(shell: Shell, path: str) -> None:
    result = shell("run", "etl:pipeline", "--html", path, exits=2)

    assert "Invalid value for '--html'" in result.stderr
    assert not list(shell.directory.glob("*.db"))


def test_a_page_that_cannot_be_written_after_the_run_is_reported_in_one_line(shell: Shell) -> None:
    shell.write(
        "taker.py",
        """
        import os
        from asyncflow import WorkflowStep
        async def take():
            os.mkdir("out.html")
        steps = [WorkflowStep("take", take)]
        """,
    )

    result = shell("run", "taker:steps", "--html", "out.html", "--quiet", exits=1)

    assert "Pipeline PASSED" in result.stdout
    assert result.stderr.startswith("Error: the HTML report can't be written: ")


@pytest.mark.parametrize("command", [["run", "etl:failing"], ["show", "r1"], ["resume", "r1"]])
def test_the_page_never_overwrites_the_journal(shell: Shell, command: list[str]) -> None:
    shell("run", "etl:failing", "--run-id", "r1", "--quiet", exits=1)
    runs_before = shell("runs").stdout
    target = ["etl:failing"] if command[0] == "resume" else []

    for path in ("asyncflow.db", f"../{shell.directory.name}/asyncflow.db"):
        result = shell(*command, *target, "--html", path, exits=2)
        assert "Invalid value for '--html'" in result.stderr
        assert "is the journal" in result.stderr

    assert shell("runs").stdout == runs_before


def test_a_future_or_unused_journal_is_not_overwritten(
    shell: Shell,
) -> None:
    shell("run", "etl:pipeline", "--journal", "new.db", "--html", "new.db", exits=2)
    assert not (shell.directory / "new.db").exists()
    shell("run", "etl:pipeline", "--journal", "new.db", "--quiet")

    shell("run", "etl:pipeline", "--no-journal", "--journal", "new.db", "--html", "new.db", exits=2)

    assert len(shell.json("runs", "--json", "--journal", "new.db")) == 1
