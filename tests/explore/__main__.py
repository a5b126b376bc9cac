"""Simulates random runs until one breaks a promise: ``python -m tests.explore --runs 1000000``.

``--replay NUMBER`` repeats one run, and shows the smallest failing case that it finds.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import suppress

from tests.explore.explorer import Failure, case_of, check, explore, shrink

_SEED_SPACING = 10**9
"""How many runs there are between those of two seeds."""
_PART = 4_000


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.explore", description=__doc__)
    parser.add_argument("--runs", type=int, default=100_000, help="how many runs (100,000)")
    parser.add_argument("--seed", type=int, default=1, help="which runs (1)")
    parser.add_argument("--jobs", type=int, default=1, help="in how many processes (1)")
    parser.add_argument(
        "--replay", type=int, metavar="NUMBER", help="only the run with this number"
    )
    options = parser.parse_args()
    if options.replay is not None:
        return _replay(options.replay)
    first = options.seed * _SEED_SPACING
    began, failure, done = time.monotonic(), None, 0
    with suppress(KeyboardInterrupt):
        for count, failure in _explore_all(first, options.runs, options.jobs):
            done += count
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


def _explore_all(first: int, runs: int, jobs: int) -> Iterator[tuple[int, Failure | None]]:
    """Yield, part by part, how many runs there were, and the failure that ended the part."""
    starts = range(first, first + runs, _PART)
    parts = [(start, min(_PART, first + runs - start)) for start in starts]
    if jobs == 1:
        for start, count in parts:
            yield count, explore(start, count)
        return
    with ProcessPoolExecutor(jobs) as workers:
        futures = {workers.submit(explore, *part): part[1] for part in parts}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:
            workers.shutdown(cancel_futures=True)


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
