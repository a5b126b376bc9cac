"""Simulates random runs until one breaks a promise: ``python -m tests.explore --runs 1000000``.

``--seconds 3600`` runs for so long instead, from a number that is new each time.

``--replay NUMBER`` repeats one run, and shows the smallest failing case that it finds.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from contextlib import suppress
from itertools import count, islice, takewhile
from random import randrange

from tests.explore.explorer import Failure, case_of, check, explore, shrink

_SEED_SPACING = 10**9
"""How many runs there are between those of two seeds."""
_PART = 4_000


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.explore", description=__doc__)
    parser.add_argument("--runs", type=int, default=100_000, help="how many runs (100,000)")
    parser.add_argument("--seconds", type=float, help="for how long, instead of how many runs")
    parser.add_argument("--seed", type=int, help="which runs (1; with --seconds, a random one)")
    parser.add_argument("--jobs", type=int, default=1, help="in how many processes (1)")
    parser.add_argument(
        "--replay", type=int, metavar="NUMBER", help="only the run with this number"
    )
    options = parser.parse_args()
    if options.replay is not None:
        return _replay(options.replay)
    seed = options.seed
    if seed is None:
        seed = 1 if options.seconds is None else randrange(2, 10**6)
    first = seed * _SEED_SPACING
    began, failure, done = time.monotonic(), None, 0
    parts = _parts(first, options.runs if options.seconds is None else None)
    if options.seconds is not None:
        parts = takewhile(lambda _: time.monotonic() < began + options.seconds, parts)
    with suppress(KeyboardInterrupt):
        for runs, failure in _explore_all(parts, options.jobs):
            done += runs
            seconds = time.monotonic() - began
            _progress(f"{done:,} runs, {done / seconds * 60:,.0f} a minute")
            if failure is not None:
                break
    _progress("")
    if failure is not None:
        _show(failure)
        return 1
    seconds, busy = time.monotonic() - began, sum(os.times()[:4]) / 60
    print(
        f"{done:,} runs on Python {_python()} from number {first} on: no promise is broken "
        f"({done / seconds * 60:,.0f} a minute, {done / busy:,.0f} a minute of processor time)"
    )
    return 0


def _python() -> str:
    return ".".join(map(str, sys.version_info[:3]))


def _parts(first: int, runs: int | None) -> Iterator[tuple[int, int]]:
    """Yield the first number of each part, and how many runs it has; without end for ``None``."""
    if runs is None:
        yield from ((start, _PART) for start in count(first, _PART))
    else:
        for start in range(first, first + runs, _PART):
            yield start, min(_PART, first + runs - start)


def _explore_all(
    parts: Iterator[tuple[int, int]], jobs: int
) -> Iterator[tuple[int, Failure | None]]:
    """Yield, part by part, how many runs there were, and the failure that ended the part."""
    if jobs == 1:
        for start, runs in parts:
            yield runs, explore(start, runs)
        return
    with ProcessPoolExecutor(jobs) as workers:
        running = {workers.submit(explore, *part): part[1] for part in islice(parts, jobs)}
        while running:
            ended, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in ended:
                yield running.pop(future), future.result()
                running |= {workers.submit(explore, *part): part[1] for part in islice(parts, 1)}


def _replay(number: int) -> int:
    case = case_of(number)
    found = check(case)
    if not found:
        print(f"{case}\nrun {number} breaks no promise")
        return 0
    _show(Failure(number, case, found))
    return 1


def _show(failure: Failure) -> None:
    print(f"run {failure.number} breaks a promise:")
    print("\n".join(f"  {each}" for each in failure.found))
    smallest = shrink(failure.case)
    print(f"the smallest case found that breaks one:\n  {smallest}")
    print("\n".join(f"  {each}" for each in check(smallest)))
    print(f"to repeat it:\n{sys.executable} -m tests.explore --replay {failure.number}")


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{text}")
        sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
