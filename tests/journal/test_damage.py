"""Whatever is damaged in a stored run, each reader gives the right answer or the documented error.

`damaged.py` has the damage and the readers.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from functools import cache
from html import unescape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from journal.damaged import (
    BYSTANDER,
    VICTIMS,
    Damage,
    RunUnreadable,
    answers,
    damages,
    make_checksums_right,
    write,
)

from asyncflow.testing import run_in_virtual_time

_folder = TemporaryDirectory()


@cache
def intact() -> tuple[Path, dict[str, dict[str, Any]]]:
    """Return a journal, and what the readers answer about each of its runs."""
    path = Path(_folder.name) / "intact.db"
    run_in_virtual_time(write(path))
    copy = path.with_name("copy.db")
    known = {}
    for run_id in (*VICTIMS, BYSTANDER):
        shutil.copy(path, copy)
        known[run_id] = answers(copy, run_id)
    return path, known


@pytest.fixture
def check(tmp_path: Path) -> Callable[..., None]:
    """Return a function that damages a copy of the journal and asks all readers."""
    path, known = intact()

    def check_one(damage: Damage, *, with_right_checksums: bool = False) -> None:
        copy = tmp_path / "runs.db"
        for suffix in ("", "-wal", "-shm"):
            copy.with_name(copy.name + suffix).unlink(missing_ok=True)
        shutil.copy(path, copy)
        with closing(sqlite3.connect(copy)) as database, database:
            damage.apply(database)
            if with_right_checksums:
                make_checksums_right(database)
        found = answers(copy, damage.run_id)
        assert_others_are_shown(found, known[BYSTANDER])
        if not with_right_checksums:
            assert_right_or_refused(damage, found, known[damage.run_id])

    return check_one


def assert_others_are_shown(found: dict[str, Any], before: dict[str, Any]) -> None:
    assert found["other report"] == before["other report"]
    assert found["record list"][BYSTANDER] == before["record list"][BYSTANDER]
    assert BYSTANDER in found["table"]
    assert BYSTANDER in [run["run_id"] for run in json.loads(found["runs"])]


LISTS = ("record list", "runs", "table", "record", "api record")


def assert_right_or_refused(damage: Damage, found: dict[str, Any], before: dict[str, Any]) -> None:
    where = f"run {damage.run_id!r} can't be read"
    if damage.table == "events" and damage.column not in ("run_id", "position", "(row)"):
        where = f"event {damage.position} of run {damage.run_id!r} can't be read"
    for name in found.keys() - LISTS:
        if isinstance(found[name], RunUnreadable):
            assert where in unescape(found[name]), name
        elif name == "last events" and damage.column in ("run_id", "position", "(row)"):
            pass  # that the last row is missing shows only in the whole run
        elif damage.table != "leases" or name != "resume":  # a lease may seem to be held
            assert found[name] == before[name], name
    if damage.table == "events":
        assert found["record"] == before["record"]
        # Nothing that was stored is used if any of it is damaged.
        assert isinstance(found["report"], RunUnreadable)
        assert isinstance(found["resume"], RunUnreadable)
    elif damage.table == "runs" and damage.column not in ("status", "updated_at"):
        assert found["record"] == before["record"] or "damaged=True" in found["record"]
        listed = found["record list"].get(damage.run_id)
        assert listed in (None, before["record list"][damage.run_id]) or listed["damaged"]


def sample() -> list[Damage]:
    """Return some of each kind: of each column, and of each kind of event."""
    found: dict[tuple[Any, ...], Damage] = {}
    every = list(damages(intact()[0]))
    for index, damage in enumerate(every):
        if index % 3 == 0:
            found.setdefault((damage.table, damage.column, damage.number), damage)
    for index, damage in enumerate(every):
        if index % 7 == 0:
            found.setdefault((damage.run_id, damage.position), damage)
    return list(found.values())


def test_damage_is_reported_by_every_reader(check: Any) -> None:
    for damage in sample()[::8]:
        check(damage)


@pytest.mark.exhaustive
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("with_right_checksums", [False, True])
@pytest.mark.parametrize("run_id", VICTIMS)
@pytest.mark.parametrize("table", ["runs", "leases", *(f"events{n}" for n in range(8))])
def test_all_damage_is_reported_by_every_reader(
    check: Any, table: str, run_id: str, with_right_checksums: bool
) -> None:
    """With right checksums, the damage is older than these, and must not raise other errors."""
    for number, damage in enumerate(damages(intact()[0])):
        part = f"events{number % 8}" if damage.table == "events" else damage.table
        if damage.run_id == run_id and part == table:
            check(damage, with_right_checksums=with_right_checksums)
