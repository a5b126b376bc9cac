"""``[tool.asyncflow]`` in ``pyproject.toml`` has the defaults of a project."""

from __future__ import annotations

import pytest

from .conftest import PIPELINES, Shell

PROJECT = """
    [tool.asyncflow]
    pipelines = ["flows:pipeline", "flows:failing"]
    journal = "runs.db"
    logs = "INFO"
"""


@pytest.fixture
def project(shell: Shell) -> Shell:
    shell.write("flows.py", PIPELINES)
    shell.write("pyproject.toml", PROJECT)
    return shell


def test_a_run_is_stored_and_resumed_without_naming_anything_again(project: Shell) -> None:
    failed = project("run", "flows:failing", "--run-id", "first", exits=1)

    assert (project.directory / "runs.db").exists()
    assert not (project.directory / "asyncflow.db").exists()
    assert failed.stderr.endswith("To resume it: asyncflow resume first flows:failing\n")
    resumed = project("resume", "first", "--quiet", exits=1)
    assert "run again because it had failed" in resumed.stdout
    assert "A rerun of run first" in project("rerun", "first", "--dry-run").stdout
    project("show", "first", "--html", "shown.html")
    assert ">asyncflow resume first<" in (project.directory / "shown.html").read_text("utf-8")


def test_an_option_and_a_variable_come_first(
    project: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ASYNCFLOW_JOURNAL", "variable.db")
    project("run", "flows:pipeline", "--quiet")
    project("run", "flows:pipeline", "--quiet", "--journal", "option.db")
    project("run", "flows:pipeline", "--quiet", "--no-journal")

    stored = {each.name for each in project.directory.glob("*.db")}
    assert stored == {"variable.db", "option.db"}


def test_a_project_keeps_no_logs_if_it_says_so(project: Shell) -> None:
    shown = []
    for level in ("off", "INFO"):
        project.write("pyproject.toml", f"[tool.asyncflow]\nlogs = '{level}'\n")
        project.write(
            "says.py",
            """
            import logging
            from asyncflow import WorkflowStep

            async def say():
                logging.getLogger("app").info("hello")

            steps = [WorkflowStep("say", say)]
            """,
        )
        project("run", "says:steps", "--quiet", "--run-id", level)
        shown.append("hello" in project("logs", level).stdout)

    assert shown == [False, True]


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ("journals = 'x'", "has no 'journals' (did you mean 'journal'?)"),
        ("pipelines = 'flows:pipeline'", "pipelines must be a list of MODULE:PIPELINE"),
        ("logs = 20", "logs must be a string"),
        ("logs = 'LOUD'", "'LOUD' is not one of"),
        ("pipelines = [1, 2]", "pipelines must be a list of MODULE:PIPELINE"),
        ("journal = ", "pyproject.toml can't be read"),
        ("journal = " + 100_000 * "[", "pyproject.toml can't be read"),
    ],
)
def test_what_is_wrong_is_named(project: Shell, table: str, problem: str) -> None:
    project.write("pyproject.toml", f"[tool.asyncflow]\n{table}\n")

    assert problem in project("run", "flows:pipeline", exits=2).stderr


def test_the_pages_refuse_an_unknown_level_as_a_run_does(project: Shell) -> None:
    project.write("pyproject.toml", "[tool.asyncflow]\nlogs = 'LOUD'\n")

    assert "'LOUD' is not one of" in project("ui", exits=2).stderr


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("tool = 1", "tool"),
        ("[tool]\nasyncflow = 3", "asyncflow"),
        ("[[tool.asyncflow]]", "asyncflow"),
    ],
)
def test_what_is_no_table_is_named(project: Shell, text: str, name: str) -> None:
    project.write("pyproject.toml", text)

    said = project("run", "flows:pipeline", exits=2).stderr

    assert f"{name!r} in pyproject.toml must be a table" in said


def test_help_shows_no_password_of_the_journal(shell: Shell) -> None:
    dsn = "postgresql://u:SECRETPW@localhost/x"
    shell.write("pyproject.toml", f"[tool.asyncflow]\njournal = '{dsn}'\n")

    said = shell("show", "--help").stdout

    assert "SECRETPW" not in said
    assert "by default asyncflow.db" in " ".join(said.split())
