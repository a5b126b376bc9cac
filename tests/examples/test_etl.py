"""The ETL example copes with any CSV file, and loads or quarantines each of its rows."""

import asyncio
import csv
import errno
import io
import itertools
import os
import runpy
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

from asyncflow import StepStatus, WorkflowStep, current_step, parallel_groups, run_pipeline
from asyncflow.examples import _csv_reader
from asyncflow.examples import etl as etl_module
from asyncflow.examples._csv_reader import Dialect, open_records
from asyncflow.examples._load import replace_table
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


# Encodings and dialects.

PLACES = "place;price\nMünchen;1\nČeské Budějovice;2\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_unicode_file_is_read_with_or_without_a_byte_order_mark(etl, database, encoding: str):
    status, *_ = etl(PLACES.encode(encoding))

    assert status == 0
    assert columns(database) == {"place": "TEXT", "price": "INTEGER"}
    assert table(database) == [(2, "München", 1), (3, "České Budějovice", 2)]


def test_a_utf_8_character_may_span_two_chunks(etl, database, monkeypatch):
    monkeypatch.setattr(_csv_reader, "_CHUNK_BYTES", 1)

    etl(PLACES)

    assert table(database)[0] == (2, "München", 1)


def test_a_file_that_ends_inside_a_character_is_not_utf_8(etl, database):
    etl("a,b\n1,é".encode()[:-1])

    assert table(database) == [(2, 1, "Ã")]


def test_a_windows_1252_file_keeps_its_euro_sign(etl, database):
    etl("name,price\nCafé,5 €\n".encode("cp1252"))

    assert table(database) == [(2, "Café", "5 €")]
    assert query(database, "SELECT encoding FROM etl_loads") == [("cp1252",)]


def test_a_latin_1_file_may_have_bytes_that_windows_1252_lacks(etl, database):
    etl("name,code\nCafé,x\x81\n".encode("latin-1"))

    assert table(database) == [(2, "Café", "x\x81")]


def test_with_a_byte_order_mark_an_invalid_byte_quarantines_only_its_row(etl, database):
    status, *_ = etl(b"\xef\xbb\xbfa,b\n1,x\n2,\xff\n3,\xc3\xa9\n")

    assert status == 0
    assert table(database) == [(2, 1, "x"), (4, 3, "é")]
    assert quarantine(database) == [(3, "holds bytes that are not UTF-8", "2,\\xff")]


def test_a_binary_file_is_refused(etl, database):
    status, out, _ = etl(b"PK\x03\x04\0\0")

    assert status == 1
    assert "ValueError: the source has NUL bytes" in out
    assert not database.exists()


def test_a_damaged_utf_16_file_is_refused(etl):
    status, out, _ = etl("a,b\n1,2\n".encode("utf-16") + b"\0")

    assert status == 1
    assert "UnicodeDecodeError" in out


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_any_usual_delimiter_and_line_ending_is_found(etl, database, delimiter: str, end: str):
    header = f"name{delimiter}size"
    rows = [f'"a,b;c\td|e"{delimiter}1', f"f{delimiter}2"]

    status, *_ = etl(end.join([header, *rows, ""]))

    assert status == 0
    assert table(database) == [(2, "a,b;c\td|e", 1), (3, "f", 2)]


def test_a_decimal_comma_is_not_mistaken_for_a_delimiter(etl, database):
    etl("what;price;weight\nx;1,5;2,5\ny;2;3,25\n")

    assert columns(database) == {"what": "TEXT", "price": "REAL", "weight": "REAL"}
    assert table(database) == [(2, "x", 1.5, 2.5), (3, "y", 2.0, 3.25)]


def test_a_file_of_one_column_needs_no_delimiter(etl, database):
    etl("size\n1\n2\n")

    assert table(database) == [(2, 1), (3, 2)]


def test_the_last_line_needs_no_line_ending(etl, database):
    etl("a,b\n1,2")

    assert table(database) == [(2, 1, 2)]


def test_quoted_newlines_delimiters_and_quotes_are_preserved_and_lines_counted(etl, database):
    etl('id,note\r\n1,"two\r\nlines, and a ""quote"""\r\n2,plain\r\n')

    assert table(database) == [(2, 1, 'two\r\nlines, and a "quote"'), (4, 2, "plain")]


def test_blank_lines_are_no_rows_but_count_as_lines(etl, database):
    etl("\na,b\n\n1,2\n\n\n3,4\n\n")

    assert table(database) == [(4, 1, 2), (7, 3, 4)]
    assert quarantine(database) == []


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


def test_a_header_alone_makes_a_table_without_rows(etl, database):
    status, out, _ = etl("a,b\n")

    assert status == 0
    assert columns(database) == {"a": "TEXT", "b": "TEXT"}
    assert table(database) == []
    assert "0 row(s) loaded" in out


def test_duplicate_and_blank_headers_get_unique_names(etl, database):
    etl("Total,total,,total_2, ,TOTAL,source_line\n1,2,3,4,5,6,7\n")

    assert list(columns(database)) == [
        *("total", "total_2", "column_3", "total_2_2", "column_5", "total_3", "source_line_2"),
    ]
    assert table(database) == [(2, 1, 2, 3, 4, 5, 6, 7)]


@pytest.mark.parametrize(
    ("header", "name"),
    [
        ("studyName", "study_name"),
        ("HTTPServer ID", "http_server_id"),
        ("Delta 15 N (o/oo)", "delta_15_n_o_oo"),
        ("Größe", "grosse"),
        ("Prénom", "prenom"),
        ("名前", "名前"),
        ("が", "が"),
        ("2020", "column_2020"),
        ("%", "column"),
        ('he said "x"; DROP', "he_said_x_drop"),
        ("select", "select"),
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
    assert "the header in line 2 cannot be read: a quote opens a cell and is never closed" in out


# The steps.


def test_each_step_has_its_own_tier():
    tiers = parallel_groups(etl_module.pipeline)

    assert tiers == [["extract"], ["validate"], ["transform"], ["load"], ["notify"]]


# The quarantine.


def test_ragged_rows_are_quarantined_with_their_lines(etl, database):
    status, out, _ = etl("a,b\n1,2\n3\n4,5,6\n7,8\n")

    assert status == 0
    assert table(database) == [(2, 1, 2), (5, 7, 8)]
    assert quarantine(database) == [
        (3, "1 cell(s) where the header has 2", "3"),
        (4, "3 cell(s) where the header has 2", "4,5,6"),
    ]
    assert "2 row(s) loaded into table 'data'" in out
    assert "2 quarantined" in out


def test_line_numbers_count_lines_inside_quotes(etl, database):
    etl('a,b\n"1\n2\n3",x\nragged\n')

    assert quarantine(database) == [(5, "1 cell(s) where the header has 2", "ragged")]


def test_a_few_values_that_do_not_parse_are_quarantined_and_do_not_change_the_type(etl, database):
    cells = [str(n) for n in range(39)]

    etl(column(*cells, "many"))

    assert columns(database)["x"] == "INTEGER"
    assert values(database) == list(range(39))
    assert quarantine(database) == [(41, "column 'x': 'many' is not of type integer", '39,"many"')]


def test_a_type_needs_19_of_20_values(etl, database):
    etl(column(*["1"] * 19, "x"))
    assert (columns(database)["x"], len(quarantine(database))) == ("INTEGER", 1)

    _, _, err = etl(column(*["1"] * 18, "x"))
    assert (columns(database)["x"], len(quarantine(database))) == ("TEXT", 0)
    assert "note: column 'x' is text: only 18 of 19 values are numbers" in err


def test_a_row_with_two_bad_values_has_two_reasons(etl, database):
    etl("a,b\n" + "1,2.5\n" * 30 + f"x,{'y' * 100}\n")

    [(line, reason, _)] = quarantine(database)
    assert line == 32
    assert (
        reason
        == f"column 'a': 'x' is not of type integer; column 'b': '{'y' * 64}…' is not of type real"
    )


def test_an_unclosed_quote_quarantines_one_row(etl, database):
    rows = "".join(f"{n},x\n" for n in range(100))

    etl(f'a,b\n{rows}100,"oops\n{rows}')

    assert len(table(database)) == 200
    assert quarantine(database) == [
        (102, "a quote opens a cell and is never closed", '100,"oops'),
    ]


def test_a_stray_quote_before_another_one_quarantines_one_row(etl, database):
    etl('a;b\n1;"oops\n2;x\n3;"fine"\n4;y\n')

    assert table(database) == [(3, 2, "x"), (4, 3, "fine"), (5, 4, "y")]
    assert [line for line, *_ in quarantine(database)] == [2]


def test_a_record_is_no_longer_than_the_limit(etl, database, monkeypatch):
    monkeypatch.setattr(_csv_reader, "MAX_RECORD", 50)

    etl('a,b\n1,"oops\n' + "2,x\n" * 50)

    assert len(table(database)) == 50
    assert [line for line, *_ in quarantine(database)] == [2]


def test_a_line_longer_than_the_limit_fails(etl, monkeypatch):
    monkeypatch.setattr(_csv_reader, "MAX_RECORD", 50)

    status, out, _ = etl("a,b\n1,2\n" + "x" * 51)

    assert status == 1
    assert "line 3 has more than 50 characters: is this a CSV?" in out


def test_a_cell_that_is_too_long_for_csv_is_quarantined(etl, database):
    long = "x" * (csv.field_size_limit() + 1)

    status, *_ = etl(f"a;b\n1;2\n3;{long}\n")

    assert status == 0
    assert table(database) == [(2, 1, 2)]
    [(line, reason, raw)] = quarantine(database)
    assert (line, raw) == (3, f"3;{long}")
    assert "field limit" in reason


# Types.


@pytest.mark.parametrize(
    ("kind", "cells", "expected"),
    [
        ("INTEGER", ["1", "-2", " 3 "], [1, -2, 3]),
        ("INTEGER", [str(2**63 - 1), str(-(2**63))], [2**63 - 1, -(2**63)]),
        ("REAL", ["1", "2.5", "-.5", "1e3", "4."], [1.0, 2.5, -0.5, 1000.0, 4.0]),
        ("BOOLEAN", ["true", "FALSE", "Yes", "no"], [1, 0, 1, 0]),
        ("DATE", ["2024-02-29", "2024/3/1"], ["2024-02-29", "2024-03-01"]),
        ("DATE", ["29.2.2024", "01.03.2024"], ["2024-02-29", "2024-03-01"]),
        ("DATE", ["1.2.2024", "3.4.2024"], ["2024-02-01", "2024-04-03"]),
        ("DATE", ["1 Feb 2024", "02-March-2024"], ["2024-02-01", "2024-03-02"]),
        ("DATE", ["Feb 1, 2024", "March 2 2024"], ["2024-02-01", "2024-03-02"]),
        ("DATE", ["05/05/2024", "06-06-2024"], ["2024-05-05", "2024-06-06"]),
        ("TEXT", ["a", "1"], ["a", "1"]),
        ("TEXT", [" a ", "x" * 100], [" a ", "x" * 100]),
        ("TEXT", ["30 Feb 2024", "1 Foo 2024"], ["30 Feb 2024", "1 Foo 2024"]),
        ("TEXT", ["1e999", "2e999"], ["1e999", "2e999"]),
        ("TEXT", ["1,5", "2,5"], ["1,5", "2,5"]),
    ],
)
def test_the_type_of_a_column_is_found_and_its_values_converted(
    etl, database, kind: str, cells: list[str], expected: list
):
    etl(column(*cells))

    assert columns(database)["x"] == kind
    assert values(database) == expected
    assert quarantine(database) == []


@pytest.mark.parametrize("code", ["01234", "+4930123456", str(2**63)])
def test_one_code_makes_a_column_of_numbers_text(etl, database, code: str):
    etl(column(*["12345"] * 99, code))

    assert columns(database)["x"] == "TEXT"
    assert values(database)[-1] == code


def test_a_few_reals_make_a_column_real_instead_of_being_errors(etl, database):
    etl(column(*["1"] * 99, "1.5"))

    assert columns(database)["x"] == "REAL"
    assert quarantine(database) == []


def test_missing_values_are_null_in_every_column(etl, database):
    etl("a,b,c\n1,x,2024-01-31\nNA,,n/a\nNaN,NULL,#N/A\n")

    assert columns(database) == {"a": "INTEGER", "b": "TEXT", "c": "DATE"}
    assert [row[1:] for row in table(database)][1:] == [(None, None, None)] * 2


def test_a_column_without_any_value_is_text(etl, database):
    etl("a,b\n1,\n2,NA\n")

    assert columns(database)["b"] == "TEXT"


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["03/04/2024", "31/01/2024"], "2024-04-03"),
        (["03/04/2024", "01/31/2024"], "2024-03-04"),
        (["03-04-2024", "31-01-2024"], "2024-04-03"),
    ],
)
def test_one_date_decides_whether_the_day_comes_first_in_its_column(
    etl, database, cells: list[str], expected: str
):
    etl(column(*cells))

    assert columns(database)["x"] == "DATE"
    assert values(database) == [expected, "2024-01-31"]


def test_each_column_has_its_own_date_order(etl, database):
    etl("a,b\n03/04/2024,03/04/2024\n31/01/2024,01/31/2024\n")

    assert table(database)[0] == (2, "2024-04-03", "2024-03-04")


def test_dates_of_the_other_order_are_quarantined_if_they_are_few(etl, database):
    etl(column(*["31/01/2024"] * 30, "01/31/2024"))

    assert len(table(database)) == 30
    assert quarantine(database)[0][1] == "column 'x': '01/31/2024' is not of type date"


@pytest.mark.parametrize(
    "cells",
    [
        ["03/04/2024", "05/06/2024"],
        [*["03/04/2024"] * 96, *["31/01/2024"] * 2, *["01/31/2024"] * 2],
    ],
)
def test_ambiguous_dates_stay_text_with_a_note(etl, database, cells: list[str]):
    _, _, err = etl(column(*cells))

    assert columns(database)["x"] == "TEXT"
    assert values(database) == cells
    assert "note: column 'x' is text: the day and the month are ambiguous in" in err


@pytest.mark.parametrize(
    ("cells", "kind", "expected"),
    [
        (["1,5", "2"], "REAL", [1.5, 2.0]),
        (["1.5", "2"], "REAL", [1.5, 2.0]),
        (["1,5", "1.500"], "TEXT", ["1,5", "1.500"]),
    ],
)
def test_a_semicolon_file_may_have_decimal_commas_but_no_points_as_well(
    etl, database, cells: list[str], kind: str, expected: list
):
    etl("n;x\n" + "".join(f"{n};{cell}\n" for n, cell in enumerate(cells)))

    assert columns(database)["x"] == kind
    assert values(database) == expected


# The database.


def test_a_second_load_gives_the_same_database(etl, database):
    content = "a,b\n" + "1,x\n" * 40 + "oops,y\n3\n"
    etl(content)
    before = dump(database)

    status, *_ = etl(content)

    assert status == 0
    assert len(quarantine(database)) == 2
    assert dump(database) == before


def test_a_new_version_of_a_file_replaces_the_old_one(etl, database):
    etl("a,b\n1,2\n3\n")

    etl("c\n5\n")

    assert columns(database) == {"c": "INTEGER"}
    assert table(database) == [(2, 5)]
    assert quarantine(database) == []


def test_several_files_share_a_database(etl, database):
    etl("a,b\n1\n", name="one.csv")
    etl("a,b\n2\n", name="Two Files.2024.csv")

    assert query(database, "SELECT table_name, source_line, raw FROM etl_quarantine") == [
        ("one", 2, "1"),
        ("two_files_2024", 2, "2"),
    ]


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


def test_a_file_that_is_not_a_database_is_not_overwritten(etl, database):
    database.write_text("my diary\n" * 1000)

    status, out, _ = etl("a,b\n1,2\n")

    assert status == 1
    assert "[FAILED ] load (1 attempt(s)" in out
    assert "DatabaseError: file is not a database" in out
    assert database.read_text() == "my diary\n" * 1000


@pytest.mark.parametrize(("refusals", "status"), [(2, "SUCCESS"), (3, "FAILED")])
async def test_a_locked_database_has_three_attempts(
    tmp_path, database, monkeypatch, refusals: int, status: str
):
    locked = itertools.repeat(sqlite3.OperationalError("database is locked"), refusals)

    def replace_when_unlocked(*arguments):
        for error in locked:
            raise error
        return replace_table(*arguments)

    (tmp_path / "data.csv").write_text("a,b\n1,2\n")
    monkeypatch.setattr(etl_module, "replace_table", replace_when_unlocked)

    report = await run_etl(tmp_path / "data.csv", database)

    assert report["load"].status is StepStatus(status)
    assert report["load"].attempts == 3
    assert report.all_passed is (refusals == 2)
    assert not report.all_passed or table(database) == [(2, 1, 2)]


def test_a_database_in_a_missing_folder_is_a_clear_error_of_load(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    status = main(["--database", str(tmp_path / "missing" / "out.db")])

    assert status == 1
    [line] = [line for line in capsys.readouterr().out.splitlines() if "] load" in line]
    assert line.startswith("[FAILED ] load (1 attempt(s)")
    assert "FileNotFoundError" in line
    assert "the database's folder does not exist" in line
    assert str(tmp_path / "missing") in line


KILLED_DURING_THE_LOAD = """
import os, pathlib, signal, sys
from asyncflow.examples._load import Table, replace_table

def rows():
    for line in range(2, 1_000_000):
        if line == 200_000:
            os.kill(os.getpid(), signal.SIGKILL)
        yield line, "new" * 10

columns = (("a", "text"),)
table = Table("data", columns, "data.csv", "utf-8", ",")
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


async def test_a_load_that_is_cancelled_stops_and_leaves_the_old_database_intact(
    tmp_path, database, monkeypatch
):
    source = tmp_path / "data.csv"
    source.write_text("a,b\n1,2\n")
    await run_etl(source, database)
    before = dump(database)
    loop, written = asyncio.get_running_loop(), []

    def replace_and_be_cancelled(database, table, rows, quarantine):
        def cancelled_after_the_first():
            for row in rows:
                written.append(row)
                yield row
                loop.call_soon_threadsafe(run.cancel)
                wait_for_the_stop_request()
                written.append("stop requested")

        return replace_table(database, table, cancelled_after_the_first(), quarantine)

    monkeypatch.setattr(etl_module, "replace_table", replace_and_be_cancelled)
    source.write_text("a,b\n" + "3,4\n" * 100)
    run = asyncio.ensure_future(run_etl(source, database))
    with pytest.raises(asyncio.CancelledError):
        await run

    assert written == [[2, 3, 4], "stop requested"]
    assert dump(database) == before


def wait_for_the_stop_request() -> None:
    for _ in range(30_000):
        if current_step().cancel_requested:
            return
        time.sleep(0.001)
    raise AssertionError("the step received no stop request")


# Sources that cannot be read, and the command line.


def failure(capsys: pytest.CaptureFixture[str], attempts: int = 3) -> str:
    """Return the line of step extract in the report; no later step has run."""
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "Pipeline FAILED"
    assert all(line.startswith("[SKIPPED]") for line in out[2:-1])
    assert out[1].startswith(f"[FAILED ] extract ({attempts} attempt(s)")
    return out[1]


def test_a_missing_file_is_a_clear_error_of_extract(tmp_path, database, capsys):
    assert main([str(tmp_path / "no.csv"), "--database", str(database)]) == 1

    assert f"FileNotFoundError: [Errno 2] No such file or directory: '{tmp_path}" in failure(capsys)
    assert not database.exists()


def test_a_folder_is_a_clear_error_of_extract(tmp_path, database, capsys):
    assert main([str(tmp_path), "--database", str(database)]) == 1

    assert "IsADirectoryError" in failure(capsys)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_a_pipe_is_refused_because_it_can_be_read_only_once(tmp_path, database, capsys):
    os.mkfifo(tmp_path / "pipe")

    assert main([str(tmp_path / "pipe"), "--database", str(database)]) == 1

    assert "is not a regular file" in failure(capsys, attempts=1)


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything"
)
def test_an_unreadable_file_is_a_clear_error_of_extract(tmp_path, database, capsys):
    source = tmp_path / "secret.csv"
    source.write_text("a,b\n")
    source.chmod(0)

    assert main([str(source), "--database", str(database)]) == 1

    assert "PermissionError" in failure(capsys)


class Flaky(type(Path())):  # Path itself cannot be subclassed before 3.12
    """A source whose first attempts to open it fail."""

    refusals = 0

    def open(self, *args, **kwargs):
        if Flaky.refusals:
            Flaky.refusals -= 1
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        return super().open(*args, **kwargs)


@pytest.mark.parametrize(("refusals", "status"), [(2, "SUCCESS"), (3, "FAILED")])
async def test_a_source_has_three_attempts(tmp_path, database, monkeypatch, refusals, status):
    (tmp_path / "data.csv").write_text("a,b\n1,2\n")
    monkeypatch.setattr(Flaky, "refusals", refusals)

    report = await run_etl(Flaky(tmp_path / "data.csv"), database)

    assert report["extract"].status is StepStatus(status)
    assert report["extract"].attempts == 3
    assert report.all_passed is (refusals == 2)


class FailsOnFirstRead(type(Path())):
    """A source whose first read gives junk, and then an error."""

    content: ClassVar[list[bytes]] = []

    def open(self, *args, **kwargs):
        return BrokenFile(self.content.pop())


class BrokenFile(io.BytesIO):
    def read(self, size: int | None = -1) -> bytes:
        chunk = super().read(size)
        if not chunk and b"junk" in self.getvalue():
            raise OSError(errno.EIO, "Input/output error")
        return chunk


async def test_a_second_attempt_discards_the_data_of_the_first(tmp_path, database, monkeypatch):
    monkeypatch.setattr(FailsOnFirstRead, "content", [b"a,b\n1,2\n", b"junk\xff,junk\n" * 10])

    report = await run_etl(FailsOnFirstRead(tmp_path / "data.csv"), database)

    assert report["extract"].attempts == 2
    assert columns(database) == {"a": "INTEGER", "b": "INTEGER"}
    assert table(database) == [(2, 1, 2)]
    assert quarantine(database) == []


def test_a_source_that_is_the_database_is_a_usage_error(tmp_path, capsys):
    source = tmp_path / "data.csv"
    source.touch()

    with pytest.raises(SystemExit) as stopped:
        main([str(source), "--database", str(source)])

    assert stopped.value.code == 2
    assert "the source and the database are the same file" in capsys.readouterr().err


class InterruptedAt(io.StringIO):
    """A standard error that sends SIGINT when a word is written to it."""

    def __init__(self, word: str) -> None:
        super().__init__()
        self._word = word

    def write(self, text: str) -> int:
        if text.startswith(self._word):
            signal.raise_signal(signal.SIGINT)
        return super().write(text)


@pytest.mark.parametrize("step", ["extract", "validate", "transform", "load", "notify"])
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
    chunks: ClassVar[list[bytes]] = []
    saw_stop_request: ClassVar[list[bool]] = []

    def open(self, *args, **kwargs):
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def read(self, size: int) -> bytes:
        self.chunks.append(b"1,2\n" if len(self.chunks) < 1_000 else b"")
        if len(self.chunks) == 3:
            self.run.get_loop().call_soon_threadsafe(self.run.cancel)
            wait_for_the_stop_request()
            self.saw_stop_request.append(True)
        return self.chunks[-1]


async def test_an_extract_that_is_cancelled_stops_at_the_next_chunk(tmp_path, database):
    (tmp_path / "data.csv").touch()
    Endless.run = asyncio.ensure_future(run_etl(Endless(tmp_path / "data.csv"), database))

    with pytest.raises(asyncio.CancelledError):
        await Endless.run

    assert (len(Endless.chunks), Endless.saw_stop_request) == (3, [True])


class BlankLines(io.RawIOBase):
    """A very long file of blank lines."""

    reads = 0

    def readable(self) -> bool:
        return True

    def seek(self, *_) -> int:
        return 0

    def readinto(self, buffer) -> int:
        self.reads += 1
        if self.reads > 1_000:
            return 0
        buffer[:] = b"\n" * len(buffer)
        return len(buffer)


async def test_a_cancelled_step_stops_even_if_it_finds_no_record():
    loop, begun, stopped = asyncio.get_running_loop(), asyncio.Event(), []

    def read():
        loop.call_soon_threadsafe(begun.set)
        with open_records(BlankLines(), Dialect("utf-8", ",")) as records:
            try:
                next(records)
            except asyncio.CancelledError:
                stopped.append(True)

    run = asyncio.ensure_future(run_pipeline([WorkflowStep("read", read, runs_in="thread")]))
    await begun.wait()
    run.cancel()
    await asyncio.wait([run])

    assert stopped == [True]


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


def test_the_module_can_be_run_as_a_script(database, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["etl.py", "--database", str(database)])

    with pytest.raises(SystemExit) as ended:
        runpy.run_path(etl_module.__file__, run_name="__main__")

    assert ended.value.code == 0
    assert len(table(database, "penguins_raw")) == 344


def test_a_semicolon_inside_quotes_is_not_mistaken_for_a_delimiter(etl, database):
    etl('"a";","\n"1";"x"\n')

    assert list(columns(database)) == ["a", "column"]
    assert table(database) == [(2, 1, "x")]


@pytest.mark.process
def test_a_process_exits_with_1_after_the_report_of_a_failure(tmp_path: Path):
    ended = start("no.csv", cwd=tmp_path)

    assert ended.returncode == 1
    assert ended.stdout.startswith("Pipeline FAILED\n[FAILED ] extract (3 attempt(s), ")
    assert "Traceback" not in ended.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.process
def test_a_process_exits_with_2_after_a_usage_error(tmp_path: Path):
    ended = start("--no-such-option", cwd=tmp_path)

    assert ended.returncode == 2
    assert ended.stdout == ""
    assert "usage: python -m asyncflow.examples.etl" in ended.stderr


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


@example(rows=[[""], ["", "two\nlines"]], delimiter=";", end="\n")
@given(rows=ROWS, delimiter=st.sampled_from(",;\t|"), end=st.sampled_from(["\n", "\r\n"]))
def test_every_row_is_either_loaded_or_quarantined(rows: list[list[str]], delimiter: str, end: str):
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=delimiter, lineterminator=end, quoting=csv.QUOTE_ALL).writerows(rows)
    with tempfile.TemporaryDirectory() as folder:
        source, database = Path(folder, "data.csv"), Path(folder, "out.db")
        source.write_bytes(text.getvalue().encode())

        assert main([str(source), "--database", str(database)]) == 0

        loaded, refused = table(database), quarantine(database)
    assert len(loaded) + len(refused) == len(rows) - 1
    lines = sorted(row[0] for row in [*loaded, *refused])
    assert len(set(lines)) == len(lines)
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
