"""Kills processes until a promise is broken: ``python -m tests.crash --kills 10000 --seed 7``.

``python -m tests.crash replay SHAPE SCHEDULE KILL...`` does again what a failure tells. Which point
a number means can depend on how the threads of a process take turns, so try it a few times.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from random import Random, randrange

from tests.crash.cycles import Broken, Cycles, Forks, fast_folder
from tests.crash.shapes import SHAPES


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.crash", description=__doc__)
    parser.add_argument("--kills", type=int, default=1_000, help="how many processes to kill")
    parser.add_argument("--seed", type=int, default=randrange(10**6), help="chooses where")
    parser.add_argument("--shape", choices=SHAPES, help="only this one")
    parser.add_argument("replay", nargs="*", help="replay SHAPE SCHEDULE KILL...")
    options = parser.parse_args()
    try:
        with fast_folder() as folder, Forks() as forks:
            if options.replay:
                _, shape, schedule, *kills = options.replay
                Cycles(forks, folder, shape, schedule).follow(
                    float(kill) if "." in kill else int(kill) for kill in kills
                )
                print("nothing is broken")
            else:
                _walk(forks, folder, options)
    except Broken as broken:
        print(broken)
        return 1
    return 0


def _walk(forks: Forks, folder: Path, options: argparse.Namespace) -> None:
    print(f"seed {options.seed}", flush=True)
    began, random = time.monotonic(), Random(options.seed)
    all_of_them = []
    for shape in [options.shape] if options.shape else SHAPES:
        for schedule in ("tiers", "ready"):
            (place := folder / f"{shape}-{schedule}").mkdir()
            all_of_them.append(Cycles(forks, place, shape, schedule))
    while (killed := sum(cycles.killed for cycles in all_of_them)) < options.kills:
        cycles = random.choice(all_of_them)
        random.choice([cycles.walk, cycles.walk, cycles.stroll, cycles.contest])(random)
    print(f"{killed} processes were killed in {time.monotonic() - began:.0f} s, nothing is broken")


if __name__ == "__main__":
    sys.exit(main())
