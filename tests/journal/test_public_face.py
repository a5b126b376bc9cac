"""The public names of `asyncflow.journal`: their module, order and documentation."""

from __future__ import annotations

import dataclasses
import inspect
import pickle
from collections.abc import Callable
from typing import Any

import pytest

from asyncflow import journal
from asyncflow.journal import PostgresJournal, SQLiteJournal

NAMES = [name for name in journal.__all__ if name not in ("RunStatus", "StepOutcome")]


@pytest.mark.parametrize("name", NAMES)
def test_a_public_name_reports_the_public_module(name: str) -> None:
    public: Any = getattr(journal, name)

    assert public.__module__ == "asyncflow.journal"
    assert pickle.loads(pickle.dumps(public)) is public


@pytest.mark.parametrize("name", NAMES)
def test_each_public_name_and_its_members_are_documented(name: str) -> None:
    public: Any = getattr(journal, name)

    members = [each for each in dir(public) if not each.startswith("_")]
    fields = dataclasses.fields(public) if dataclasses.is_dataclass(public) else ()
    for member in set(members) - {field.name for field in fields} - {"logs", "prints"}:
        assert inspect.getdoc(getattr(public, member)), member
    assert (inspect.getdoc(public) or "").count("\n") > 2 or fields


def test_public_names_are_sorted() -> None:
    assert journal.__all__ == sorted(journal.__all__)


@pytest.mark.parametrize("make", [PostgresJournal, SQLiteJournal])
@pytest.mark.parametrize(("lease_s", "limit"), [(0.0, "at least 0.1"), (1e9, "at most 86400")])
def test_a_lease_duration_outside_its_range_is_refused(
    make: Callable[..., object], lease_s: float, limit: str
) -> None:
    with pytest.raises(ValueError, match=f"lease_s must be .*{limit} s"):
        make("", lease_s=lease_s)


def test_the_dsn_of_a_postgres_journal_must_be_a_string() -> None:
    with pytest.raises(TypeError, match="dsn must be a str, not int"):
        PostgresJournal(3)  # type: ignore[arg-type]
