"""What users rely on: these names, from this place, with documentation."""

from __future__ import annotations

import dataclasses
import inspect
import pickle
from collections.abc import Callable
from typing import Any

import pytest

from asyncflow import journal
from asyncflow.journal import PostgresJournal, SQLiteJournal

NAMES = [name for name in journal.__all__ if name != "RunStatus"]


@pytest.mark.parametrize("name", NAMES)
def test_a_public_name_says_where_it_comes_from(name: str) -> None:
    public: Any = getattr(journal, name)

    assert public.__module__ == "asyncflow.journal"
    assert pickle.loads(pickle.dumps(public)) is public


@pytest.mark.parametrize("name", NAMES)
def test_a_public_name_and_all_that_it_has_are_documented(name: str) -> None:
    public: Any = getattr(journal, name)

    members = [each for each in dir(public) if not each.startswith("_")]
    fields = dataclasses.fields(public) if dataclasses.is_dataclass(public) else ()
    for member in set(members) - {field.name for field in fields}:
        assert inspect.getdoc(getattr(public, member)), member
    assert (inspect.getdoc(public) or "").count("\n") > 2 or fields


def test_the_names_are_in_order() -> None:
    assert journal.__all__ == sorted(journal.__all__)


@pytest.mark.parametrize("make", [PostgresJournal, SQLiteJournal])
@pytest.mark.parametrize(("lease_s", "limit"), [(0.0, "at least 0.1"), (1e9, "at most 86400")])
def test_a_lease_lasts_neither_too_short_nor_too_long(
    make: Callable[..., object], lease_s: float, limit: str
) -> None:
    with pytest.raises(ValueError, match=f"lease_s must be .*{limit} s"):
        make("", lease_s=lease_s)


def test_the_address_of_a_postgres_journal_is_a_text() -> None:
    with pytest.raises(TypeError, match="dsn must be a str, not int"):
        PostgresJournal(3)  # type: ignore[arg-type]
