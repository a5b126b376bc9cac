"""``asyncflow logs``: what the steps of a run said, as lines and as JSON, also while it runs."""

from __future__ import annotations

import asyncio
import importlib
import io
import json
import logging
import re
from collections.abc import Iterator
from typing import Any

import pytest
from click.testing import Result
from rich.console import Console

from asyncflow import RunStatus, WorkflowStep, current_step, run_pipeline
from asyncflow._views.run_view import RunView
from asyncflow.events import RunStarted, StepAttached, StepLogged
from asyncflow.journal import RunRecord, SQLiteJournal, StoredEvent
from asyncflow.testing import run_in_virtual_time

from .conftest import Shell

module: Any = importlib.import_module("asyncflow._cli.logs")
log = logging.getLogger("tests.cli.logs")
TIME = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}"


@pytest.fixture(autouse=True)
def level() -> Iterator[None]:
    log.setLevel(logging.DEBUG)
    yield
    log.setLevel(logging.NOTSET)


async def extract() -> list[int]:
    log.info("asking for rows")
    if current_step().attempt == 1:
        raise ConnectionError("refused")
    current_step().attach("../rows.csv", "a,b\n1,2\n", media_type="text/plain")
    return [1, 2, 3]


async def load(row: int) -> None:
    log.debug("row %s", row)
    try:
        if row == 3:
            raise ValueError("no such row\x1b[2J")
    except ValueError:
        log.exception("row %s\nis bad", row)


STEPS = [
    WorkflowStep("extract", extract, max_retries=2),
    WorkflowStep("load", load, {"row": "extract"}, map_over="extract"),
]


def store(run_id: str, steps: list[WorkflowStep], logs: str | None = "DEBUG") -> None:
    async def main() -> None:
        async with SQLiteJournal("asyncflow.db", logs=logs) as journal:
            await run_pipeline(steps, journal=journal, run_id=run_id)

    asyncio.run(main())


@pytest.fixture
def stored(shell: Shell) -> Shell:
    store("monday", STEPS)
    return shell


def texts(result: Result) -> list[str]:
    """Return the lines without their times."""
    lines = result.stdout.splitlines()
    assert all(re.match(f"{TIME} |    ", line) for line in lines)
    return [re.sub(f"^{TIME} ", "", line) for line in lines]


def test_each_record_is_a_line_with_time_level_step_and_message(stored: Shell) -> None:
    lines = texts(stored("logs", "monday"))

    assert lines[:5] == [
        "INFO     extract    asking for rows",
        "INFO     extract#2  asking for rows",
        "ATTACHED extract#2  ../rows.csv (text/plain)",
        "DEBUG    load[0]    row 1",
        "DEBUG    load[1]    row 2",
    ]
    assert lines[5:9] == [
        "DEBUG    load[2]    row 3",
        "ERROR    load[2]    row 3",
        "    is bad",
        "    Traceback (most recent call last):",
    ]
    assert lines[-1] == r"    ValueError: no such row\x1b[2J"


def test_a_step_or_an_item_can_be_chosen(stored: Shell) -> None:
    assert {line[9:14] for line in texts(stored("logs", "monday", "extract"))} == {"extra"}
    assert len(texts(stored("logs", "latest", "load[1]"))) == 1
    assert stored("logs").stdout == stored("logs", "latest").stdout


def test_a_run_that_only_attached_something_has_no_logs(stored: Shell) -> None:
    store("quiet", STEPS[:1], logs=None)

    assert "ATTACHED" in stored("logs", "quiet").stdout
    result = stored("logs", "quiet", "extract", "--attempt", "1")
    assert "run quiet has no logs: " in result.stderr


def test_an_unknown_step_without_a_near_one_is_answered_with_the_steps(stored: Shell) -> None:
    result = stored("logs", "monday", "q", exits=2)

    assert "the run has no step 'q'; it has extract, load" in result.stderr


def test_a_level_leaves_lower_records_and_attachments_out(stored: Shell) -> None:
    lines = texts(stored("logs", "monday", "--level", "error"))

    assert lines[0] == "ERROR    load[2]    row 3"
    assert sum(not line.startswith("    ") for line in lines) == 1


def test_json_has_one_object_a_line(stored: Shell) -> None:
    lines = stored("logs", "monday", "--json").stdout.splitlines()
    documents = [json.loads(line) for line in lines]

    assert [each["position"] for each in documents] == sorted(
        each["position"] for each in documents
    )
    first, attached, last = documents[0], documents[2], documents[-1]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d", first.pop("time"))
    assert first.pop("at_ms") >= 0
    assert first == {
        "position": 1,
        "event": "StepLogged",
        "step": "extract",
        "item": None,
        "attempt": 1,
        "level": "INFO",
        "logger": "tests.cli.logs",
        "message": "asking for rows",
        "traceback": "",
    }
    assert (attached["event"], attached["name"]) == ("StepAttached", "../rows.csv")
    assert (last["item"], last["level"], last["message"]) == (2, "ERROR", "row 3\nis bad")
    assert last["traceback"].startswith("Traceback ")


def test_attachments_are_saved_below_the_directory(stored: Shell) -> None:
    result = stored("logs", "monday", "--attachments", "saved/here", "--level", "ERROR")

    (path,) = (stored.directory / "saved" / "here").iterdir()
    assert path.name == "3-extract-.._rows.csv"
    assert path.read_text() == "a,b\n1,2\n"
    assert result.stderr == "saved 1 attachment in saved/here\n"
    assert "ATTACHED" in result.stdout


def test_an_attachment_is_not_saved_through_a_link(stored: Shell) -> None:
    saved, victim = stored.directory / "saved", stored.directory / "victim"
    saved.mkdir()
    victim.write_text("precious")
    path = saved / "3-extract-.._rows.csv"
    path.symlink_to(victim)

    for _ in range(2):
        stored("logs", "monday", "--attachments", "saved")

    assert victim.read_text() == "precious"
    assert not path.is_symlink()
    assert path.read_text() == "a,b\n1,2\n"


def test_the_file_of_an_items_attachment_has_its_number(shell: Shell) -> None:
    async def numbers() -> list[int]:
        return [1, 2]

    async def draw(number: int) -> None:
        current_step().attach("ä.txt" * 30, str(number), media_type="text/plain")

    steps = [
        WorkflowStep("numbers", numbers),
        WorkflowStep("draw", draw, {"number": "numbers"}, map_over="numbers"),
    ]
    store("r", steps)

    shell("logs", "r", "--attachments", "saved")

    names = sorted(path.name for path in (shell.directory / "saved").iterdir())
    assert [name[:9] for name in names] == ["1-draw-0-", "2-draw-1-"]
    assert max(map(len, names)) < 100


def test_a_run_without_logs_says_how_to_keep_them(shell: Shell) -> None:
    store("r", STEPS[:1], logs=None)
    shell("run", "etl:pipeline", "--run-id", "s", "--quiet")

    result = shell("logs", "s")

    assert result.stdout == ""
    assert result.stderr == (
        "run s has no logs: its steps logged nothing, or only below the level that it kept; "
        "`asyncflow run` keeps INFO unless --logs says otherwise, and what they print only with "
        '--prints; a program asks its journal: SQLiteJournal(..., logs="INFO", prints=True)\n'
    )
    assert shell("logs", "s", "--follow").stderr == result.stderr


def test_a_filter_that_matches_nothing_says_so(stored: Shell) -> None:
    way_out = "nothing matches; without STEP, --attempt and --level, the command shows all\n"
    assert stored("logs", "monday", "--level", "CRITICAL").stderr == way_out
    assert stored("logs", "monday", "load[99]").stderr == way_out


class LiveJournal:
    """A journal of a run that says something at a time, until it ends."""

    def __init__(self, said: dict[float, str], ends_at: float, *, orphaned: bool = False) -> None:
        self._said = sorted(said.items())
        self._ends_at = ends_at
        self._orphaned = orphaned
        self.reads: list[float] = []

    def _now_s(self) -> float:
        return asyncio.get_running_loop().time() - 1_000  # where virtual time starts

    async def notes(self, _: str, *, after: int, **__: object) -> list[StoredEvent]:
        now = self._now_s()
        self.reads.append(now)
        return [
            StoredEvent(position, StepLogged("s", 1, at * 1_000, 20, "app", text))
            for position, (at, text) in enumerate(self._said, 1)
            if position > after and at <= now
        ]

    async def record(self, _: str) -> RunRecord:
        is_over = self._now_s() >= self._ends_at
        return RunRecord(
            "r",
            "",
            RunStatus.RUNNING
            if not is_over
            else RunStatus.ORPHANED
            if self._orphaned
            else RunStatus.PASSED,
            0.0,
            0.0,
            "",
        )


@pytest.mark.parametrize("orphaned", [False, True])
def test_following_shows_what_comes_until_the_run_ends(
    capsys: pytest.CaptureFixture[str], orphaned: bool
) -> None:
    journal: Any = LiveJournal({0.0: "one", 2.0: "two", 2.1: "three", 6.4: "last"}, 6.5)
    view = RunView([RunStarted("r", 0.0, {"s": ()})])
    wanted = module._Wanted(None, None, None, None, False, None)

    async def follow() -> int:
        lines = module._NoteWriter(view, wanted)
        shown: int = await module._show_notes(
            journal, await journal.record("r"), wanted, lines, follow=True
        )
        return shown

    assert run_in_virtual_time(follow()) == 4

    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in lines] == ["one", "two", "three", "last"]
    assert len(journal.reads) <= 16  # two for a second in which something is said, else one


def test_ctrl_c_ends_following(stored: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    async def interrupt(*_: object, **__: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_show_notes", interrupt)

    stored("logs", "monday", "--follow", exits=130)


def test_a_terminal_has_colours(stored: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Console(file=io.StringIO(), force_terminal=True, color_system="standard", width=200)
    monkeypatch.setattr(module, "stdout_console", lambda: terminal)

    stored("logs", "monday", "--level", "ERROR")

    assert isinstance(terminal.file, io.StringIO)
    assert "\x1b[1;31mERROR    \x1b[0m\x1b[36mload[2]    \x1b[0mrow 3\n" in terminal.file.getvalue()


def test_a_directory_for_attachments_that_cannot_be_made_is_explained(stored: Shell) -> None:
    (stored.directory / "file").touch()

    result = stored("logs", "monday", "--attachments", "file/below", exits=1)

    assert result.stderr.startswith("Error: attachments can't be saved in file/below: ")


@pytest.mark.parametrize(
    ("name", "media_type", "file"),
    [
        ("by country", "text/csv", "7-s-by_country.csv"),
        ("rows.tsv", "text/plain", "7-s-rows.tsv"),
        ("note", "text/markdown", "7-s-note.md"),
        ("v1.2 of it", "application/json", "7-s-v1.2_of_it.json"),
        ("x", "", "7-s-x"),
    ],
)
def test_an_attachment_is_a_file_with_the_suffix_of_its_type(
    name: str, media_type: str, file: str
) -> None:
    note = StepAttached("s", 1, 0.0, name, media_type, b"")

    assert module._file_name(7, note) == file
