"""Kills processes until a promise is broken: ``python -m tests.crash --kills 10000 --seed 7``.

``python -m tests.crash replay SHAPE SCHEDULE KILL...`` repeats a reported failure. The number of a
kill point can depend on the scheduling of the threads, so try it a few times.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from random import Random, randrange

from tests.crash.cycles import BrokenPromise, Cycles, Forks, fast_folder
from tests.crash.shapes import SHAPES


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.crash", description=__doc__)
    parser.add_argument("--kills", type=int, default=1_000, help="how many processes to kill")
    parser.add_argument("--seed", type=int, default=randrange(10**6), help="chooses where")
    parser.add_argument("--shape", choices=SHAPES, help="kill only processes of this shape")
    parser.add_argument("replay", nargs="*", help="replay SHAPE SCHEDULE KILL...")
    options = parser.parse_args()
    try:
        with fast_folder() as folder, Forks() as forks:
            if options.replay:
                _, shape, schedule, *kills = options.replay
                Cycles(forks, folder, shape, schedule).replay(
                    float(kill) if "." in kill else int(kill) for kill in kills
                )
                print("no promise is broken")
            else:
                _kill_at_random(forks, folder, options)
    except BrokenPromise as failure:
        print(failure)
        return 1
    return 0


def _kill_at_random(forks: Forks, folder: Path, options: argparse.Namespace) -> None:
    print(f"seed {options.seed}", flush=True)
    began, random = time.monotonic(), Random(options.seed)
    combinations = []
    for shape in [options.shape] if options.shape else SHAPES:
        for schedule in ("tiers", "ready"):
            (place := folder / f"{shape}-{schedule}").mkdir()
            combinations.append(Cycles(forks, place, shape, schedule))
    while (killed := sum(cycles.killed for cycles in combinations)) < options.kills:
        cycles = random.choice(combinations)
        random.choice(
            [
                cycles.kill_at_random_points,
                cycles.kill_at_random_points,
                cycles.kill_at_random_times,
                cycles.kill_one_of_two,
            ]
        )(random)
    seconds = time.monotonic() - began
    print(f"{killed} processes were killed in {seconds:.0f} s, no promise is broken")


if __name__ == "__main__":
    sys.exit(main())
