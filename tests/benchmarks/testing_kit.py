"""Measures the testing kit: virtual time, simulated runs, and what the plugin costs other tests.

In CPU time, but it is absolute: a busy machine makes it longer.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from asyncflow import WorkflowStep, run_pipeline
from asyncflow.examples.etl import pipeline as etl
from asyncflow.testing import Faults, explore, fake, run_in_virtual_time
from tests.benchmarks.ratios import Ratio, Row

INPUTS = {"source": "penguins.csv", "database": "etl.db", "workspace": "folder"}
RUNS = 1_000


def testing_kit(rounds: int) -> Iterator[Row]:
    """Yield the figures of the testing kit."""
    three_days_ms = min(_three_days_ms() for _ in range(rounds))
    yield Row("three days of retries in virtual time", three_days_ms, 50, "ms")
    simulated_s = min(_exploration_s() for _ in range(3))
    yield Row("10,000 simulated runs of the ETL", simulated_s * 10_000 / RUNS, 15, "s")
    yield Row("   simulated runs a minute", RUNS / simulated_s * 60, None, "")
    with TemporaryDirectory() as folder:
        test = "import pytest\n\n\n@pytest.mark.parametrize('n', range(1_000))\ndef test_it(n): ..."
        Path(folder, "test_trivial.py").write_text(test, encoding="utf-8")
        value = Ratio(lambda: _pytest_s(folder), lambda: _pytest_s(folder, "-p", "no:asyncflow"), 3)
        yield Row("1,000 trivial tests with the plugin / without", value, 1.1)


def _three_days_ms() -> float:
    async def unreachable() -> None:
        raise ConnectionError

    began = time.process_time()
    steps = [WorkflowStep("fetch", unreachable, max_retries=73, retry=3_600_000)]
    report = run_in_virtual_time(run_pipeline(steps))
    took_ms = (time.process_time() - began) * 1000
    assert report.total_duration_ms == 3 * 24 * 3_600_000
    return took_ms


def _exploration_s() -> float:
    fakes = fake(etl, extract=",", validate=(2, 0), transform="table", load=2, notify=None)
    began = time.process_time()
    with fakes:
        done = explore(etl, INPUTS, seeds=RUNS, faults=Faults(hang=0))  # two steps have no limit
    took_s = time.process_time() - began
    assert min(done.passed, done.failed, done.interrupted) > 0
    return took_s


def _pytest_s(folder: str, *options: str) -> float:
    before = os.times()
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options]
    subprocess.run(
        command, check=True, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    after = os.times()
    return (after.children_user + after.children_system) - (
        before.children_user + before.children_system
    )
