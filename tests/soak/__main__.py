"""Runs steps until something has grown: ``make soak``, or ``python -m tests.soak --steps 1000000``.

Objects, tasks, threads, descriptors and memory must be the same at the end as in the middle. The
exit code is 1 if they are not, and else 0. Ctrl-C ends it early.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from random import randrange

from tests.soak.soak import Sample, Soak, problems_in


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--steps", type=int, default=1_000_000, help="how many (1,000,000)")
    parser.add_argument("--rounds", type=int, default=20, help="how often to measure (20)")
    parser.add_argument("--seed", type=int, default=randrange(10**6), help="chooses what happens")
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    samples: list[Sample] = []
    with suppress(KeyboardInterrupt):
        asyncio.run(soak(options.steps, options.rounds, options.seed, samples))
    problems = problems_in(samples)
    for problem in problems:
        print(f"PROBLEM: {problem}")
    print(f"{len(problems)} problems" if problems else "nothing has grown")
    return 1 if problems else 0


async def soak(steps: int, rounds: int, seed: int, samples: list[Sample]) -> None:
    """Run, and print a line for each round."""
    print("    steps      s   objects tasks threads files     MiB")
    with tempfile.TemporaryDirectory() as folder:
        work = Soak(seed, Path(folder))
        async for each in work.rounds(steps, rounds):
            samples.append(each)
            print(
                f"{each.steps:9,} {each.seconds:6.0f} {each.objects:9,} {each.tasks:5} "
                f"{each.threads:7} {each.descriptors:5} {each.memory_kb / 1024:7.1f}",
                flush=True,
            )
    print(f"{work.ends.total():,} runs: {dict(sorted(work.ends.items()))}")
    print(f"steps: {dict(sorted(work.outcomes.items()))}")


if __name__ == "__main__":
    sys.exit(main())
