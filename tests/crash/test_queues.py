"""No run that waits to start is lost or doubled, whichever process is killed."""

from __future__ import annotations

import os
from random import Random

import pytest

if not hasattr(os, "fork"):
    pytest.skip("needs os.fork: processes are forked and killed", allow_module_level=True)

from tests.crash.cycles import fast_folder
from tests.crash.queues import Queues, database

pytestmark = pytest.mark.crash

KILLS = 100


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", ["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def test_what_was_enqueued_runs_once_at_a_time_and_one_of_a_key(kind: str) -> None:
    with fast_folder() as folder, database(kind) as dsn:
        queues = Queues(folder, dsn)

        queues.run(KILLS, Random(kind))

        assert queues.killed == KILLS
        assert queues.enqueued > KILLS
        assert queues.replaced > 0
