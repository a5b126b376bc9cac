"""The arguments that both journals check."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from asyncflow.journal import PostgresJournal, SQLiteJournal


@pytest.mark.parametrize("make", [PostgresJournal, SQLiteJournal])
@pytest.mark.parametrize(("lease_s", "limit"), [(0.0, "at least 0.1"), (1e9, "at most 86400")])
def test_a_lease_duration_outside_its_range_is_refused(
    make: Callable[..., object], lease_s: float, limit: str
) -> None:
    with pytest.raises(ValueError, match=f"lease_s must be .*{limit} s"):
        make("", lease_s=lease_s)
