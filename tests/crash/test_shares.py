"""Processes that share a pool have no slot too many, whichever is killed or stands still."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

if not hasattr(os, "fork"):
    pytest.skip("needs os.fork: processes are forked and killed", allow_module_level=True)

from tests.crash.cycles import fast_folder
from tests.crash.queues import database
from tests.crash.shares import SharedPools

pytestmark = pytest.mark.crash

SIZE, SECONDS = 8, 4
KINDS = ["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)]


@pytest.fixture
def folder() -> Iterator[Path]:
    with fast_folder() as made:
        yield made


@pytest.fixture(params=KINDS)
def dsn(request: Any) -> Iterator[str | None]:
    with database(request.param) as made:
        yield made


@pytest.mark.timeout(120)
@pytest.mark.parametrize("size", [SIZE, 2])
def test_live_processes_have_no_slot_too_many_and_none_starves(
    folder: Path, dsn: str | None, size: int
) -> None:
    pools = SharedPools(folder, dsn, size)

    with pools:
        pools.kill_holders(SECONDS, Random(size))

    seen = pools.end()
    assert pools.killed > SECONDS / 2
    assert size / 2 < seen.most <= size
    assert len(seen.first_slots_s) > SECONDS / 2


@pytest.mark.timeout(120)
def test_processes_start_no_more_than_a_rate_allows_and_one_each(
    folder: Path, dsn: str | None
) -> None:
    pools = SharedPools(folder, dsn, SIZE, per_second=40)

    with pools:
        pools.kill_holders(SECONDS, Random(3))

    assert pools.end().calls > 40 * SECONDS / 2


@pytest.mark.timeout(120)
def test_after_the_end_of_its_lease_a_process_starts_nothing(folder: Path, dsn: str | None) -> None:
    """It stands still, or the database is locked; what it has in flight goes on."""
    pools = SharedPools(folder, dsn, SIZE)

    with pools:
        pools.stand_still(Random(1))
        pools.lock_out()

    seen = pools.end()
    assert seen.most <= SIZE
    assert seen.most_on_top <= SIZE


@pytest.mark.timeout(120)
def test_after_a_refusal_in_one_process_the_others_start_nothing_either(
    folder: Path, dsn: str | None
) -> None:
    pools = SharedPools(folder, dsn, SIZE)

    with pools:
        pools.refuse()
        pools.refuse_one(Random(1))

    seen = pools.end()
    assert len(seen.refusals) == 2
    assert max(seen.refusals) <= SIZE
