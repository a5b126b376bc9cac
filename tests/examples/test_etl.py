"""The ETL example copes with any CSV file, and loads or quarantines each of its rows."""

import asyncio
import csv
import errno
import io
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from asyncflow import current_step, parallel_groups
from asyncflow.examples import etl as etl_module
from asyncflow.examples.etl import main, run_etl

ROOT = Path(__file__).parents[2]

# Fixtures and queries.


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "out.db"


@pytest.fixture
def etl(tmp_path: Path, database: Path, capsys: pytest.CaptureFixture[str]):
    """Return a function that loads a source and returns the exit status and the output."""

    def run(content: str | bytes, *, name: str = "data.csv") -> tuple[int, str, str]:
        source = tmp_path / name
        source.write_bytes(content.encode() if isinstance(content, str) else content)
        status = main([str(source), "--database", str(database)])
        return status, *capsys.readouterr()

    return run


def query(database: Path, sql: str) -> list[tuple]:
    with closing(sqlite3.connect(database)) as connection:
        return connection.execute(sql).fetchall()


def table(database: Path, name: str = "data") -> list[tuple]:
    return query(database, f'SELECT * FROM "{name}" ORDER BY source_line')


def columns(database: Path, name: str = "data") -> dict[str, str]:
    """Return the columns and their types, without the line number."""
    found = query(database, f"SELECT name, type FROM pragma_table_info('{name}')")
    assert found[0] == ("source_line", "INTEGER")
    return dict(found[1:])


def quarantine(database: Path) -> list[tuple]:
    return query(
        database, "SELECT source_line, reason, raw FROM etl_quarantine ORDER BY source_line"
    )


def dump(database: Path) -> list[str]:
    with closing(sqlite3.connect(database)) as connection:
        return list(connection.iterdump())


def column(*cells: str) -> str:
    """Return a file with the column x, and a second column so that no row is blank."""
    return "n,x\n" + "".join(f'{n},"{cell}"\n' for n, cell in enumerate(cells))


def values(database: Path) -> list:
    return [row[2] for row in table(database)]


# The penguins.


def test_without_arguments_the_bundled_penguins_are_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)

    status = main([])

    assert status == 0
    rows = table(tmp_path / "etl.db", "penguins_raw")
    assert len(rows) == 344
    assert rows[0][1:3] == ("PAL0708", 1)
    assert rows[0][8:14] == (1, "2007-11-11", 39.1, 18.7, 181, 3750)
    assert rows[3][10:] == (None,) * 7 + ("Adult not sampled.",)
    assert quarantine(tmp_path / "etl.db") == []
    assert "344 row(s) loaded" in capsys.readouterr().out


def test_the_penguins_columns_get_their_names_and_types(database: Path):
    main(["--database", str(database)])

    assert columns(database, "penguins_raw") == {
        "study_name": "TEXT",
        "sample_number": "INTEGER",
        "species": "TEXT",
        "region": "TEXT",
        "island": "TEXT",
        "stage": "TEXT",
        "individual_id": "TEXT",
        "clutch_completion": "BOOLEAN",
        "date_egg": "DATE",
        "culmen_length_mm": "REAL",
        "culmen_depth_mm": "REAL",
        "flipper_length_mm": "INTEGER",
        "body_mass_g": "INTEGER",
        "sex": "TEXT",
        "delta_15_n_o_oo": "REAL",
        "delta_13_c_o_oo": "REAL",
        "comments": "TEXT",
    }


# The file.


def test_a_byte_order_mark_is_no_part_of_the_header(etl, database):
    etl("größe,b\n1,2\n".encode("utf-8-sig"))

    assert list(columns(database)) == ["größe", "b"]


def test_a_file_that_is_not_utf_8_fails_at_once(etl, database):
    status, out, _ = etl("name,price\nCafé,5\n".encode("cp1252"))

    assert status == 1
    assert "[FAILED ] extract (1 attempt(s)" in out
    assert "UnicodeDecodeError" in out
    assert not database.exists()


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_any_usual_delimiter_and_line_ending_is_found(etl, database, delimiter: str, end: str):
    header = f"name{delimiter}size"
    rows = [f'"a,b;c\td|e"{delimiter}1', f"f{delimiter}2"]

    status, *_ = etl(end.join([header, *rows, ""]))

    assert status == 0
    assert table(database) == [(2, "a,b;c\td|e", 1), (3, "f", 2)]


def test_quoted_newlines_delimiters_and_quotes_are_preserved_and_lines_counted(etl, database):
    etl('id,note\r\n1,"two\r\nlines, and a ""quote"""\r\n2,plain\r\n')

    assert table(database) == [(2, 1, 'two\r\nlines, and a "quote"'), (4, 2, "plain")]


# Headers.


def test_an_empty_file_fails_and_leaves_the_database_unchanged(etl, database):
    etl("a,b\n1,2\n")
    before = dump(database)

    status, out, _ = etl("")

    assert status == 1
    assert "[FAILED ] validate" in out
    assert "ValueError: the source is empty" in out
    assert "[SKIPPED] load" in out
    assert dump(database) == before


def test_columns_of_the_same_name_fail(etl):
    status, out, _ = etl("Total,total\n1,2\n")

    assert status == 1
    assert "two columns have the same name" in out


@pytest.mark.parametrize(
    ("header", "name"),
    [
        ("studyName", "study_name"),
        ("HTTPServer ID", "http_server_id"),
        ("Delta 15 N (o/oo)", "delta_15_n_o_oo"),
        ("名前", "名前"),
        ("2020", "column_2020"),
        ("%", "column"),
        ('a "b" DROP', "a_b_drop"),
    ],
)
def test_a_header_becomes_a_snake_case_name(etl, database, header: str, name: str):
    text = io.StringIO()
    csv.writer(text).writerows([[header, "other"], ["a", "b"]])

    etl(text.getvalue())

    assert list(columns(database)) == [name, "other"]


def test_a_header_that_cannot_be_read_fails_with_its_line(etl):
    status, out, _ = etl('\n"a,b\n1,2\n')

    assert status == 1
    assert "the header in line 2 cannot be read: unexpected end of data" in out


# The steps.


def test_each_step_has_its_own_tier():
    tiers = parallel_groups(etl_module.pipeline)

    assert tiers == [["extract"], ["validate"], ["transform"], ["load"], ["notify"]]


# The quarantine.


def test_invalid_rows_are_quarantined_with_their_lines(etl, database):
    good = '"1\n2",x\n' * 30

    status, out, _ = etl(f'a,b\n{good}3\n4,"5"6\n7,8,9\n{good}')

    assert status == 0
    assert "60 row(s) loaded into table 'data'" in out
    assert "3 quarantined" in out
    assert quarantine(database) == [
        (62, "1 cell(s) where the header has 2", "3"),
        (63, "',' expected after '\"'", '4,"5"6'),
        (64, "3 cell(s) where the header has 2", "7,8,9"),
    ]


def test_an_unclosed_quote_quarantines_what_it_takes_with_it(etl, database):
    rows = "".join(f"{n},x\n" for n in range(100))

    status, *_ = etl(f'a,b\n{rows}100,"oops\n{rows}')

    assert (status, len(table(database))) == (0, 100)
    assert quarantine(database) == [(102, "unexpected end of data", f'100,"oops\n{rows}'.rstrip())]


@pytest.mark.parametrize(("invalid", "fails"), [(10, False), (11, True)])
def test_more_than_a_tenth_of_invalid_rows_fails_and_leaves_the_database_unchanged(
    etl, database, invalid: int, fails: bool
):
    etl("a,b\n1,2\n")
    before = dump(database)

    status, out, _ = etl("a,b\n" + "3,4\n" * (100 - invalid) + "oops\n" * invalid)

    first = f"line {102 - invalid}: 1 cell(s) where the header has 2"
    assert (status == 1) is fails
    assert (dump(database) == before) is fails
    assert (f"ValueError: 11 of 100 rows are invalid, the first in {first}" in out) is fails


def test_a_few_values_that_do_not_parse_are_quarantined_and_do_not_change_the_type(etl, database):
    cells = [str(n) for n in range(39)]

    etl(column(*cells, "many"))

    assert columns(database)["x"] == "INTEGER"
    assert values(database) == list(range(39))
    assert quarantine(database) == [(41, "column 'x': 'many' is not of type integer", '39,"many"')]


# Types.


@pytest.mark.parametrize(
    ("kind", "cells", "expected"),
    [
        ("INTEGER", ["1", "-2", " 3 "], [1, -2, 3]),
        ("REAL", ["1", "2.5", "-0.5", "1e3"], [1.0, 2.5, -0.5, 1000.0]),
        ("BOOLEAN", ["true", "FALSE", " Yes", "no"], [1, 0, 1, 0]),
        ("DATE", ["2024-02-29", "2024-03-01 "], ["2024-02-29", "2024-03-01"]),
        ("TEXT", [" a ", "1"], [" a ", "1"]),
        ("TEXT", ["01234", "05678"], ["01234", "05678"]),
        ("TEXT", ["9" * 19, "1e999"], ["9" * 19, "1e999"]),
        ("TEXT", ["29.2.2024", "2/29/2024"], ["29.2.2024", "2/29/2024"]),
    ],
)
def test_the_type_of_a_column_is_found_and_its_values_converted(
    etl, database, kind: str, cells: list[str], expected: list
):
    etl(column(*cells))

    assert columns(database)["x"] == kind
    assert values(database) == expected
    assert quarantine(database) == []


# The database.


def test_a_second_load_gives_the_same_database(etl, database):
    content = "a,b\n" + "1,x\n" * 40 + "oops,y\n3\n"
    etl(content)
    before = dump(database)

    status, *_ = etl(content)

    assert status == 0
    assert len(quarantine(database)) == 2
    assert dump(database) == before


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("etl_loads.csv", "table_etl_loads"),
        ("sqlite_master.csv", "table_sqlite_master"),
        ("2024.csv", "table_2024"),
        ("---.csv", "table"),
        ("order.csv", "order"),
    ],
)
def test_a_table_is_named_after_its_file_but_never_like_an_internal_table(
    etl, database, file: str, name: str
):
    status, *_ = etl("a,b\n1,2\n", name=file)

    assert status == 0
    assert table(database, name) == [(2, 1, 2)]


def test_a_table_that_the_pipeline_did_not_create_is_not_replaced(etl, database):
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("CREATE TABLE data (precious)")
        connection.execute("INSERT INTO data VALUES (1)")
    before = dump(database)

    status, out, _ = etl("a,b\n1,2\n")

    assert status == 1
    assert "the database has a table 'data' that this pipeline did not create" in out
    assert dump(database) == before


def test_a_database_in_a_missing_folder_is_a_clear_error_of_load(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    status = main(["--database", str(tmp_path / "missing" / "out.db")])

    assert status == 1
    [line] = [line for line in capsys.readouterr().out.splitlines() if "] load" in line]
    assert line.startswith("[FAILED ] load (1 attempt(s)")
    assert f"{tmp_path}/missing/out.db is a folder, or its folder does not exist" in line


KILLED_DURING_THE_LOAD = """
import os, pathlib, signal, sys
from asyncflow.examples._load import Table, replace_table

def rows():
    for line in range(2, 1_000_000):
        if line == 200_000:
            os.kill(os.getpid(), signal.SIGKILL)
        yield line, "new" * 10

columns = (("a", "text"),)
table = Table("data", columns)
replace_table(pathlib.Path(sys.argv[1]), table, rows(), [])
"""


@pytest.mark.process
def test_a_process_killed_during_the_load_leaves_the_old_database_intact(etl, database):
    etl("a,b\n1,2\n3\n")
    before = dump(database)

    ended = subprocess.run([sys.executable, "-c", KILLED_DURING_THE_LOAD, database], cwd=ROOT)

    assert ended.returncode == -signal.SIGKILL
    assert database.with_name("out.db-journal").exists()  # the process had begun to write
    assert dump(database) == before


def wait_for_the_stop_request() -> None:
    for _ in range(30_000):
        if current_step().cancel_requested:
            return
        time.sleep(0.001)
    raise AssertionError("the step received no stop request")


# Sources that cannot be read, and the command line.


def test_the_help_names_the_input_the_output_and_what_invalid_rows_get(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])

    words = " ".join(capsys.readouterr().out.split())
    assert "source a UTF-8 CSV file with a header; by default the penguins" in words
    assert "--database PATH the database, made if it does not exist (default: etl.db)" in words
    assert "go into the table etl_quarantine" in words
    assert "If more than 10 % are invalid, the run fails and changes nothing." in words


class Flaky(type(Path())):  # Path itself cannot be subclassed before 3.12
    """A source whose first attempts to open it fail."""

    refusals = 0

    def open(self, *args, **kwargs):
        if Flaky.refusals:
            Flaky.refusals -= 1
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        return super().open(*args, **kwargs)


def test_a_missing_file_and_a_folder_are_not_tried_again(tmp_path, database, capsys):
    for source in (tmp_path / "no.csv", tmp_path):
        assert main([str(source), "--database", str(database)]) == 1

        lines = capsys.readouterr().out.splitlines()
        assert lines[1].startswith("[FAILED ] extract (1 attempt(s)")
        assert f"{source} does not exist, or is not a regular file" in lines[1]
    assert not database.exists()


async def test_a_source_has_three_attempts(tmp_path, database, monkeypatch):
    (tmp_path / "data.csv").write_text("a,b\n1,2\n")
    monkeypatch.setattr(Flaky, "refusals", 2)

    report = await run_etl(Flaky(tmp_path / "data.csv"), database)

    assert report.all_passed
    assert report["extract"].attempts == 3


class InterruptedAt(io.StringIO):
    """A standard error that sends SIGINT when a word is written to it."""

    def __init__(self, word: str) -> None:
        super().__init__()
        self._word = word

    def write(self, text: str) -> int:
        if text.startswith(self._word):
            signal.raise_signal(signal.SIGINT)
        return super().write(text)


@pytest.mark.parametrize("step", ["extract", "load"])
def test_ctrl_c_exits_with_130_and_leaves_no_temporary_file(
    tmp_path, database, monkeypatch, capsys, step: str
):
    source = tmp_path / "data.csv"
    source.write_text("a,b\n" + "1,2\n" * 10_000)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    stderr = InterruptedAt(step)
    monkeypatch.setattr(sys, "stderr", stderr)

    status = main([str(source), "--database", str(database)])

    assert status == 130
    assert stderr.getvalue().endswith("interrupted\n")
    assert "Pipeline" not in capsys.readouterr().out
    assert list(scratch.iterdir()) == []


class Endless(type(Path())):
    """An endless source, which cancels its run while it is read."""

    run: ClassVar[asyncio.Task]

    def open(self, *args, **kwargs):
        return EndlessFile()


class EndlessFile(io.BytesIO):
    chunks = 0

    def read1(self, size: int | None = -1) -> bytes:
        EndlessFile.chunks += 1
        if self.chunks == 3:
            Endless.run.get_loop().call_soon_threadsafe(Endless.run.cancel)
            wait_for_the_stop_request()
        return b"1,2\n" * (1 << 16) if self.chunks < 1_000 else b""


async def test_an_extract_that_is_cancelled_stops_at_the_next_chunk(tmp_path, database):
    (tmp_path / "data.csv").touch()
    Endless.run = asyncio.ensure_future(run_etl(Endless(tmp_path / "data.csv"), database))

    with pytest.raises(asyncio.CancelledError):
        await Endless.run

    assert EndlessFile.chunks == 3


# In a process.


def start(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "asyncflow.examples.etl", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )


@pytest.mark.process
def test_a_process_prints_one_line_and_the_report(tmp_path: Path):
    ended = start(cwd=tmp_path)

    assert ended.returncode == 0
    first, *report = ended.stdout.splitlines()
    assert first == (
        "penguins_raw.csv: 344 row(s) loaded into table 'penguins_raw' of etl.db, 0 quarantined"
    )
    assert report[0] == "Pipeline PASSED"
    names = ["extract", "validate", "transform", "load", "notify"]
    for line, name in zip(report[1:-1], names, strict=True):
        assert line.startswith(f"[SUCCESS] {name} (1 attempt(s), ")
        assert line.endswith("ms)")
    assert report[-1].startswith("Total: ")
    assert ended.stderr.splitlines() == [f"{name}: attempt 1" for name in names]


@pytest.mark.process
def test_a_process_exits_with_1_after_the_report_of_a_failure(tmp_path: Path):
    ended = start("no.csv", cwd=tmp_path)

    assert ended.returncode == 1
    assert ended.stdout.startswith("Pipeline FAILED\n[FAILED ] extract (1 attempt(s), ")
    assert "Traceback" not in ended.stderr
    assert list(tmp_path.iterdir()) == []


# Memory.

PEAK = """
import resource, sys
from asyncflow.examples.etl import main
status = main(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
sys.exit(status)
"""


def peak_kib(source: Path) -> int:
    """Return the peak memory of a process that loads the source, in KiB."""
    ended = subprocess.run(
        [sys.executable, "-c", PEAK, source, "--database", source.with_suffix(".db")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    peak = int(ended.stdout.splitlines()[-1])
    return peak // 1024 if sys.platform == "darwin" else peak


def write_rows(path: Path, count: int) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "name", "amount", "day", "note"])
        for n in range(count):
            writer.writerow([n, f"name {n}", n / 7, f"{n % 28 + 1}/{n % 12 + 1}/2024", "x" * 50])
    return path


@pytest.mark.exhaustive
def test_100_000_rows_take_hardly_more_memory_than_1_000(tmp_path: Path):
    small, large = write_rows(tmp_path / "s.csv", 1_000), write_rows(tmp_path / "l.csv", 100_000)

    growth = peak_kib(large) - peak_kib(small)

    assert len(table(tmp_path / "l.db", "l")) == 100_000
    assert quarantine(tmp_path / "l.db") == []
    assert growth < 30 * 1024


# Arbitrary files.

CELLS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\ufeff"), max_size=8),
    st.integers(-100, 100).map(str),
    st.sampled_from(["NA", "", "1.5", "31/01/2024", "true", 'a "quote"', "two\nlines", "a;b,c|d"]),
)
ROWS = st.lists(st.lists(CELLS, min_size=1, max_size=4), min_size=2, max_size=12)


@example(rows=[[""], ["", "two\nlines"]], end="\n")
@given(rows=ROWS, end=st.sampled_from(["\n", "\r\n"]))
def test_every_row_is_either_loaded_or_quarantined(rows: list[list[str]], end: str):
    rows = [["name", "size"], *rows]
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator=end, quoting=csv.QUOTE_ALL).writerows(rows)
    with tempfile.TemporaryDirectory() as folder:
        source, database = Path(folder, "data.csv"), Path(folder, "out.db")
        source.write_bytes(text.getvalue().encode())
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(etl_module, "MOST_INVALID", 1)

            assert main([str(source), "--database", str(database)]) == 0

        loaded, refused = table(database), quarantine(database)
    lines = sorted(row[0] for row in [*loaded, *refused])
    assert lines == starts_of_rows(text.getvalue(), rows, end)


def starts_of_rows(text: str, rows: list[list[str]], end: str) -> list[int]:
    """Return the numbers of the lines on which the rows after the header begin."""
    starts, position = [], 0
    for row in rows:
        starts.append(1 + len(io.StringIO(text[:position], newline="").readlines()))
        one = io.StringIO(newline="")
        csv.writer(one, delimiter="\a", lineterminator=end, quoting=csv.QUOTE_ALL).writerow(row)
        position += len(one.getvalue())
    return starts[1:]


@given(content=st.binary(max_size=200))
def test_any_bytes_end_in_a_report_and_never_in_a_traceback(content: bytes):
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "data.csv")
        source.write_bytes(content)

        assert main([str(source), "--database", str(Path(folder, "out.db"))]) in (0, 1)
