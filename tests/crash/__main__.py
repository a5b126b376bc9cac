"""Kills processes until a promise is broken: ``python -m tests.crash --kills 10000 --seed 7``.

Beside that, it plays with the files of an SQLite journal, cuts the connections to a PostgreSQL
server and restarts it, and lets clocks jump.

``python -m tests.crash replay SHAPE SCHEDULE KILL...`` repeats a reported failure. The number of a
kill point can depend on the scheduling of the threads, so try it a few times.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random, randrange

from tests.crash.cycles import BrokenPromise, Cycles, Forks, fast_folder
from tests.crash.databases import Database, Files, Server
from tests.crash.shapes import SHAPES
from tests.postgres_server import running_server


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.crash", description=__doc__)
    parser.add_argument("--kills", type=int, default=1_000, help="how many processes to kill")
    parser.add_argument("--seed", type=int, default=randrange(10**6), help="chooses where")
    parser.add_argument("--journal", choices=["sqlite", "postgres"], default="sqlite")
    parser.add_argument("--shape", choices=SHAPES, help="kill only processes of this shape")
    parser.add_argument("replay", nargs="*", help="replay SHAPE SCHEDULE KILL...")
    options = parser.parse_args()
    try:
        with fast_folder() as folder, Forks() as forks, _database(options.journal) as database:
            if options.replay:
                _, shape, schedule, *kills = options.replay
                Cycles(forks, folder, shape, schedule, database).replay(
                    float(kill) if "." in kill else int(kill) for kill in kills
                )
                print("no promise is broken")
            else:
                _kill_at_random(forks, folder, options, database)
    except BrokenPromise as failure:
        print(failure)
        return 1
    return 0


@contextmanager
def _database(kind: str) -> Iterator[Database]:
    if kind == "sqlite":
        yield Files()
        return
    if os.access("/dev/shm", os.W_OK):
        tempfile.tempdir = "/dev/shm"  # what dies here is a server, not a machine
    with running_server() as server:
        database = Server(server)
        try:
            yield database
        finally:
            database.close()


def _kill_at_random(
    forks: Forks, folder: Path, options: argparse.Namespace, database: Database
) -> None:
    print(f"seed {options.seed}", flush=True)
    began, random = time.monotonic(), Random(options.seed)
    combinations = []
    for shape in [options.shape] if options.shape else SHAPES:
        for schedule in ("tiers", "ready"):
            (place := folder / f"{shape}-{schedule}").mkdir()
            combinations.append(Cycles(forks, place, shape, schedule, database))
    ways = [Cycles.kill_at_random_points] * 8 + [Cycles.kill_at_random_times] * 4
    ways += (
        [Cycles.kill_one_of_two] * 3
        + [Cycles.jump, Cycles.stall]
        + [Cycles.cancel_without_a_process] * 4
    )
    games = [Cycles.play_with_files] * 3 + [Cycles.play_between]
    senders = [Cycles.kill_senders] * 8
    if options.journal == "postgres":
        games = [Cycles.cut_connections] * 3
    while sum(cycles.killed for cycles in combinations) < options.kills:
        cycles = random.choice(combinations)
        # A file that is lost takes signals with it that were accepted.
        others = games if not cycles.has_signals else senders
        random.choice([*ways, *others])(cycles, random)
    seconds = time.monotonic() - began
    killed = sum(cycles.killed for cycles in combinations)
    faults = [f"{sum(cycles.jumps for cycles in combinations)} clocks have jumped"]
    faults.append(f"{sum(cycles.stalls for cycles in combinations)} owners stood still")
    faults.append(f"{sum(cycles.cancelled for cycles in combinations)} runs were cancelled")
    if isinstance(database, Server):
        faults.append(f"{database.cuts} connections were cut")
        faults.append(f"the server was restarted {database.restarts} times")
    else:
        faults.append(
            f"{sum(cycles.games for cycles in combinations)} games were played with files"
        )
    print(
        f"{options.journal}: {killed} processes were killed in {seconds:.0f} s, "
        f"{', '.join(faults)}; no promise is broken"
    )


if __name__ == "__main__":
    sys.exit(main())
