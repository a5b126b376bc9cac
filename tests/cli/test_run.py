"""``asyncflow run``: which steps run, which output goes where, and the exit code."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from terminals import Terminal

from asyncflow._cli import commands
from asyncflow._views.event_text import describe_event
from asyncflow.journal import SQLiteJournal

from .conftest import Shell


def test_a_passed_run_writes_its_report_to_the_standard_output(shell: Shell) -> None:
    result = shell("run", "etl:pipeline", "--quiet")

    assert re.fullmatch(
        r"Pipeline PASSED\n"
        r"\[SUCCESS\] extract \(1 attempt\(s\), \d+ms\)\n"
        r"\[SUCCESS\] load \(1 attempt\(s\), \d+ms\)\n"
        r"Total: \d+ms\n",
        result.stdout,
    )
    assert result.stderr == ""


def test_a_failed_run_shows_why_it_stopped_and_the_traceback_of_the_step(
    shell: Shell,
) -> None:
    result = shell("run", "etl:failing", "--quiet", exits=1)

    assert result.stdout.startswith("Pipeline FAILED\n")
    assert result.stdout.endswith("\nStopped: step 'bad' failed and fail_fast is on\n")
    assert "Step bad failed, attempt 1:\nTraceback (most recent call last):" in result.stderr
    assert "ValueError: invalid literal" in result.stderr  # the cause
    assert "OSError: no disk" in result.stderr
    assert "etl.py" in result.stderr
    assert "/asyncflow/_" not in result.stderr


@pytest.mark.parametrize("options", [[], ["--no-journal"], ["--quiet"], ["--json"]])
def test_on_a_terminal_the_end_of_the_live_view_takes_the_place_of_the_report(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    terminal = Terminal(100, 40)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("COLUMNS", raising=False)
    with terminal.open() as stdout, terminal.open() as stderr:
        monkeypatch.setattr(sys, "stdout", stdout)
        monkeypatch.setattr(sys, "stderr", stderr)
        with pytest.raises(SystemExit) as exit_info:
            commands(["run", "etl:failing", *options])
        monkeypatch.undo()
    terminal.close()

    assert exit_info.value.code == 1
    is_live = "--quiet" not in options
    assert ("✗ FAILED in " in terminal.text) is is_live
    assert ("Pipeline FAILED" in terminal.text) is not is_live
    has_traceback = options in (["--quiet"], ["--no-journal"])
    assert ("Step bad failed, attempt 1:" in terminal.text) is has_traceback
    assert ('"status": "FAILED"' in terminal.text) is (options == ["--json"])


def test_a_target_runs_with_only_its_dependencies(shell: Shell) -> None:
    result = shell("run", "etl:failing", "--target", "more", "--quiet")

    assert "good" in result.stdout
    assert "bad" not in result.stdout
    both = shell("run", "etl:failing", "--target", "more", "--target", "lost", "--quiet", exits=1)
    assert "lost" in both.stdout


def test_an_unknown_target_is_wrong_usage_with_a_suggestion(shell: Shell) -> None:
    result = shell("run", "etl:failing", "--target", "mroe", exits=2)

    assert "did you mean 'more'?" in result.stderr


def test_with_json_the_standard_output_holds_only_the_report(shell: Shell) -> None:
    shell.write(
        "talker.py",
        """
        from asyncflow import WorkflowStep
        print("imported")
        async def talk():
            print("said")
            return 7
        steps = [WorkflowStep("talk", talk)]
        """,
    )

    result = shell("run", "talker:steps", "--json", "--quiet")

    assert json.loads(result.stdout)["results"][0]["output"] == 7
    assert result.stderr == "imported\nsaid\n"
    assert "said" in shell("run", "talker:steps", "--quiet").stdout


def test_a_generated_name_is_never_used_twice(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = iter(["calm-otter-0001", "calm-otter-0001", "calm-otter-0002"])
    monkeypatch.setattr("asyncflow.journal._run_names.new_run_name", lambda: next(names))

    shell("run", "etl:pipeline", "--quiet")
    shell("run", "etl:pipeline", "--quiet")

    assert {run["run_id"] for run in shell.json("runs", "--json")} == {
        "calm-otter-0001",
        "calm-otter-0002",
    }


def test_the_look_for_the_usual_durations_has_ended_when_the_run_has(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    read = SQLiteJournal.events

    async def look(view: object, journal: object, execution: object) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            done.append("the look has ended")

    async def events(journal: SQLiteJournal, run_id: str) -> list[object]:
        done.append("the journal is read")
        return [*await read(journal, run_id)]

    monkeypatch.setattr("asyncflow._cli.execution._expect_usual", look)
    monkeypatch.setattr(SQLiteJournal, "events", events)

    shell("run", "etl:pipeline", "--html", "run.html")

    assert done == ["the look has ended", "the journal is read"]


def test_an_option_or_a_variable_selects_the_journal(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    shell("run", "etl:pipeline", "--quiet", "--journal", "one.db")
    monkeypatch.setenv("ASYNCFLOW_JOURNAL", "two.db")
    shell("run", "etl:pipeline", "--quiet")
    shell("run", "etl:pipeline", "--quiet", "--journal", "one.db")

    assert len(shell.json("runs", "--json", "--journal", "one.db")) == 2
    assert len(shell.json("runs", "--json")) == 1
    assert not (shell.directory / "asyncflow.db").exists()


def test_the_journal_of_the_command_line_overrides_that_of_the_pipeline(
    shell: Shell,
) -> None:
    shell.write(
        "own.py",
        """
        from asyncflow import Pipeline
        from asyncflow.journal import SQLiteJournal
        pipeline = Pipeline("own", journal=SQLiteJournal("own.db"))
        @pipeline.step
        async def one(): ...
        """,
    )

    shell("run", "own:pipeline", "--quiet")
    shell("run", "own:pipeline", "--quiet", "--no-journal")

    assert not (shell.directory / "own.db").exists()
    assert len(shell.json("runs", "--json")) == 1


@pytest.mark.parametrize("name", ["-x", "", "latest", "a\0b", '"quoted"'])
def test_a_run_id_that_other_commands_could_not_accept_is_refused(shell: Shell, name: str) -> None:
    result = shell("run", "etl:pipeline", "--run-id", name, exits=2)

    assert "run" in result.stderr
    assert not list(shell.directory.glob("*.db"))


def test_a_failed_run_ends_with_a_resume_hint(shell: Shell) -> None:
    result = shell("run", "etl:failing", "--run-id", "my run", "--journal", "a b.db", exits=1)

    assert result.stderr.endswith(
        "To resume it: asyncflow resume 'my run' etl:failing --journal 'a b.db'\n"
    )


def test_a_failed_run_shows_at_most_three_tracebacks(shell: Shell) -> None:
    shell.write(
        "many.py",
        """
        from asyncflow import WorkflowStep
        async def fail():
            raise OSError("gone")
        steps = [WorkflowStep(f"s{number}", fail) for number in range(5)]
        """,
    )

    result = shell("run", "many:steps", "--keep-going", "--quiet", exits=1)

    assert result.stderr.count("Traceback") == 3
    assert "… and 2 more steps with errors" in result.stderr


def test_warnings_go_to_the_standard_error_unless_the_module_configures_logging(
    shell: Shell,
) -> None:
    shell.write(
        "warner.py",
        """
        import logging
        from asyncflow import WorkflowStep
        async def warn():
            logging.getLogger("warner").warning("look out")
        steps = [WorkflowStep("warn", warn)]
        """,
    )
    root = logging.getLogger()
    handlers, root.handlers = root.handlers, []
    try:
        shown = shell("run", "warner:steps", "--quiet")
        assert root.handlers == []
        root.addHandler(logging.NullHandler())
        configured = shell("run", "warner:steps", "--quiet")
    finally:
        root.handlers = handlers

    assert shown.stderr == "WARNING warner: look out\n"
    assert configured.stderr == ""


TALKER = """
    import logging
    from asyncflow import WorkflowStep

    async def talk() -> None:
        logging.getLogger("shop.talker").debug("to start with")
        logging.getLogger("shop.talker").info("all is well")
        logging.getLogger("shop.talker").warning("look out")

    steps = [WorkflowStep("talk", talk)]
"""
DEBUG, INFO, WARNING = (
    "DEBUG shop.talker: to start with\n",
    "INFO shop.talker: all is well\n",
    "WARNING shop.talker: look out\n",
)


@contextmanager
def unconfigured_logging(*own: logging.Handler) -> Iterator[None]:
    """Leave the root logger its own handlers only, as in a process of its own."""
    root = logging.getLogger()
    handlers, level, root.handlers = root.handlers, root.level, [*own]
    try:
        yield
        assert root.handlers == [*own]
        assert root.level == level
    finally:
        root.handlers = handlers


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ([], WARNING),
        (["-v"], INFO + WARNING),
        (["--log-level", "info"], INFO + WARNING),
        (["--log-level", "DEBUG"], DEBUG + INFO + WARNING),
        (["-v", "--log-level", "ERROR"], ""),
    ],
)
def test_the_log_level_decides_which_records_of_steps_are_shown(
    shell: Shell, options: list[str], shown: str
) -> None:
    shell.write("talker.py", TALKER)

    with unconfigured_logging():
        result = shell("run", "talker", "--quiet", *options)

    ours = re.findall(r"(?m)^\w+ shop.*\n", result.stderr)
    assert "".join(ours) == shown
    assert len(ours) == result.stderr.count("\n") or "DEBUG" in options


def test_control_characters_of_log_records_are_escaped(shell: Shell) -> None:
    shell.write(
        "quoter.py",
        r"""
        import logging
        from asyncflow import WorkflowStep

        async def quote() -> None:
            try:
                raise ValueError("no such row\x9b2J")
            except ValueError:
                logging.getLogger("quoter").exception("sent:\n\x1b]0;title\x07\tand\x08\u202e")

        steps = [WorkflowStep("quote", quote)]
        """,
    )

    with unconfigured_logging():
        result = shell("run", "quoter", "--quiet")

    first, second, *_, last = result.stderr.splitlines()
    assert (first, second) == ("ERROR quoter: sent:", r"\x1b]0;title\x07  and\x08\u202e")
    assert last == r"ValueError: no such row\x9b2J"


def test_a_page_is_written_without_log_records_of_its_making(shell: Shell) -> None:
    pytest.importorskip("jinja2")

    with unconfigured_logging():
        result = shell("run", "etl:pipeline", "--quiet", "--html", "page.html", "-v")

    assert result.stderr == ""


def test_a_step_that_raises_system_exit_ends_the_run_with_a_report(shell: Shell) -> None:
    shell.write(
        "leaver.py",
        """
        import sys
        from asyncflow import WorkflowStep
        async def leave():
            sys.exit(5)
        steps = [WorkflowStep("leave", leave)]
        """,
    )

    stored = shell("run", "leaver:steps", "--quiet", exits=1)
    unstored = shell("run", "leaver:steps", "--quiet", "--no-journal", exits=1)

    for result in (stored, unstored):
        assert result.stdout.startswith("Pipeline INTERRUPTED\n[CANCELLED] leave")
        assert result.stdout.endswith("Stopped: step 'leave' raised SystemExit\n")


def test_a_resource_that_fails_is_reported_with_the_run(shell: Shell) -> None:
    shell.write(
        "pools.py",
        """
        import asyncio
        from contextlib import asynccontextmanager
        from asyncflow import Pipeline

        @asynccontextmanager
        async def late():
            await asyncio.Event().wait()
            yield

        @asynccontextmanager
        async def refused():
            raise OSError("refused")
            yield

        @asynccontextmanager
        async def lost():
            yield "pool"
            raise OSError("lost")

        late = Pipeline("late", resources={"db": late}, deadline_ms=1)
        first = Pipeline("first", resources={"db": refused})
        last = Pipeline("last", resources={"db": lost})

        @late.step
        @first.step
        @last.step
        async def load(db):
            return db
        """,
    )

    unopened = shell("run", "pools:first", "--quiet", exits=1)
    unclosed = shell("run", "pools:last", "--quiet", exits=1)
    given = shell("run", "pools:last", "--quiet", "--input", "db=x", exits=3)
    late = shell("run", "pools:late", "--quiet", "--no-journal", exits=1)

    assert unopened.stdout.startswith("Pipeline INTERRUPTED\n[SKIPPED] load")
    assert 'raise OSError("refused")' in unopened.stderr
    end = "Error: resource 'db' could not be opened: OSError: refused\n"
    assert unopened.stderr.endswith(end)
    assert unclosed.stdout.startswith("Pipeline PASSED\n")
    assert "Error: resource 'db' failed while it closed: OSError: lost\n" in unclosed.stderr
    assert "'db' is both an input and a resource" in given.stderr
    deadline = "the run exceeded its deadline of 1 ms"
    assert late.stderr == f"Error: resource 'db' was not open before {deadline}\n"


def test_an_interrupted_run_without_a_journal_reports_outputs_as_text(shell: Shell) -> None:
    shell.write(
        "leaver.py",
        """
        import sys
        from asyncflow import WorkflowStep
        async def hide():
            return "a secret"
        async def give():
            return [1]
        async def leave(give):
            sys.exit(5)
        steps = [
            WorkflowStep("give", give),
            WorkflowStep("hide", hide, secret=True),
            WorkflowStep("leave", leave, ["give"]),
        ]
        """,
    )

    result = shell("run", "leaver:steps", "--quiet", "--no-journal", "--json", exits=1)

    by_name = {each["step_name"]: each for each in json.loads(result.stdout)["results"]}
    assert by_name["give"]["output_repr"] == "[1]"
    assert "a secret" not in result.stdout


def test_a_file_that_is_not_a_journal_is_reported_in_one_line_and_left_unchanged(
    shell: Shell,
) -> None:
    shell.write("notes.txt", "not a database, but much longer than the header of one" * 20)
    with sqlite3.connect(shell.directory / "other.db") as other:
        other.execute("create table mine (x)")
    other.close()

    for name in ("notes.txt", "other.db", "nowhere/a.db"):
        result = shell("run", "etl:pipeline", "--quiet", "--journal", name, exits=1)
        assert result.stderr.startswith(f"Error: journal {name}: ")
        assert result.stderr.count("\n") == 1
    assert (shell.directory / "notes.txt").read_text().startswith("not a database")


def test_the_error_of_an_unreachable_database_hides_the_password(
    shell: Shell,
) -> None:
    pytest.importorskip("psycopg")

    result = shell(
        "run", "etl:pipeline", "--quiet", "--journal",
        "postgresql://me:hidden@127.0.0.1:1/none?connect_timeout=1", exits=1,
    )  # fmt: skip
    wrong = shell("runs", "--journal", "postgresql://me@host/name?nonsense=1", exits=2)

    for each in (result, wrong):
        assert each.stderr.startswith("Error: ")
        assert "hidden" not in each.stderr
        assert "Traceback" not in each.stderr


@pytest.mark.process
def test_a_process_step_runs_from_the_command_line(shell: Shell) -> None:
    shell.write(
        "worker.py",
        """
        from asyncflow import WorkflowStep
        def double():
            return 42
        steps = [WorkflowStep("double", double, runs_in="process")]
        """,
    )

    report = shell.json("run", "worker:steps", "--quiet", "--json")

    assert report["results"][0]["output"] == 42


def test_a_thread_that_outlives_the_run_is_reported(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    shell.write(
        "lasting.py",
        """
        import threading
        from asyncflow import WorkflowStep
        may_end = threading.Event()
        def wait():
            may_end.wait(20)
        async def free():
            may_end.set()
        steps = [WorkflowStep("wait", wait, runs_in="thread", timeout_ms=300)]
        ended = [*steps, WorkflowStep("free", free, run_if="always")]
        """,
    )

    result = shell("run", "lasting:steps", "--quiet", exits=1)
    shell("run", "lasting:ended", "--quiet", exits=1)

    assert "a thread of step wait is still running, and the process waits for it" in result.stderr


def test_what_steps_log_is_stored_from_info_on_unless_an_option_says_otherwise(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.root, "handlers", [])  # pytest's
    shell.write(
        "talk.py",
        """
        import logging
        from asyncflow import WorkflowStep, current_step

        async def talk():
            logging.getLogger("app").info("hello")
            logging.getLogger("app").debug("too low")
            print("printed")
            current_step().progress(1, 2, "rows")

        steps = [WorkflowStep("talk", talk)]
        """,
    )

    shell("run", "talk:steps", "--quiet", "--run-id", "plain")
    shell("run", "talk:steps", "--logs", "off", "--quiet", "--run-id", "silent")
    shell("run", "talk:steps", "--logs", "DEBUG", "--quiet", "--run-id", "all")
    result = shell("run", "talk:steps", "--logs", "info", "--prints", "--run-id", "loud", "--quiet")

    async def notes(run_id: str) -> list[str]:
        async with SQLiteJournal(shell.directory / "asyncflow.db") as journal:
            return [describe_event(each.event) for each in await journal.notes(run_id)]

    assert asyncio.run(notes("silent")) == ["talk: 1 of 2 rows"]
    assert asyncio.run(notes("plain")) == ["talk: INFO hello", "talk: 1 of 2 rows"]
    assert len(asyncio.run(notes("all"))) == 3
    assert asyncio.run(notes("loud")) == [
        "talk: INFO hello",
        "talk: INFO printed",
        "talk: 1 of 2 rows",
    ]
    assert "hello" not in result.stderr


@pytest.mark.parametrize("option", [["--logs", "INFO"], ["--prints"]])
def test_what_steps_say_is_stored_in_a_journal_only(shell: Shell, option: list[str]) -> None:
    result = shell("run", "etl", "--no-journal", *option, exits=2)

    assert f"{option[0]} stores what steps say in the journal; name one with --journal" in (
        " ".join(result.stderr.split())
    )
