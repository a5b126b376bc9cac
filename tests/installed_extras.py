"""For each extra, a program that uses what it is for, where nothing but the extra is installed.

`tests/distribution.py` installs the wheel with one extra after the other, in the versions that a
user gets today, and runs its program there.
"""

from __future__ import annotations

_PRELUDE = """
import asyncio, os, subprocess, sys
from pathlib import Path
from asyncflow import Pipeline, WorkflowStep, run_pipeline

async def one(): return 1

STEPS = [WorkflowStep("a", one)]
"""

_JOURNAL = """
from asyncflow.journal import SQLiteJournal

async def main():
    async with SQLiteJournal("runs.db") as journal:
        await run_pipeline(STEPS, journal=journal, run_id="monday")
        assert (await journal.report("monday"))["a"].output == 1
        (run,) = await journal.runs()
        assert run.run_id == "monday"

asyncio.run(main())
"""

_CLI = """
Path("numbers_pipeline.py").write_text('''
from asyncflow import Pipeline

pipeline = Pipeline("numbers")

@pipeline.step
async def a() -> int:
    return 1
''')

def asyncflow(*arguments):
    command = [Path(sys.executable).with_name("asyncflow"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr

assert "PASSED" in asyncflow("run", "numbers_pipeline.py", "--run-id", "monday")
assert "monday" in asyncflow("runs")
assert "PASSED" in asyncflow("show", "monday")
"""

_POSTGRES = """
from asyncflow import JournalError
from asyncflow.journal import PostgresJournal

async def main():
    try:
        async with PostgresJournal("postgresql://nobody@127.0.0.1:1/none") as journal:
            await journal.runs()
    except JournalError as error:
        assert "127.0.0.1" in str(error), error
    else:
        raise AssertionError("there is a server at port 1")

asyncio.run(main())
"""

_CLOUDPICKLE = """
from concurrent.futures import ProcessPoolExecutor

from asyncflow.engines.executor import ExecutorEngine

async def main():
    steps = [WorkflowStep("a", lambda: 1, runs_in="thread")]  # which pickle alone refuses
    async with ExecutorEngine(lambda: ProcessPoolExecutor(1)) as engine:
        report = await run_pipeline(steps, engine=engine)
    assert report["a"].output == 1, report
    assert report["a"].engine == "executor"

asyncio.run(main())
"""

_REPORT = """
async def main():
    page = (await run_pipeline(STEPS)).to_html()
    assert page.lower().startswith("<!doctype html>") and "PASSED" in page.upper()

asyncio.run(main())
"""

_WEB = """
import urllib.request

from asyncflow.journal import SQLiteJournal
from asyncflow.web import serve

async def main():
    async with SQLiteJournal("runs.db") as journal:
        await run_pipeline(STEPS, journal=journal, run_id="monday")
        ready = asyncio.get_running_loop().create_future()
        served = asyncio.create_task(serve(journal, port=0, on_ready=ready.set_result))
        url = await ready
        page = await asyncio.to_thread(lambda: urllib.request.urlopen(url).read().decode())
        assert "monday" in page
        served.cancel()
        await asyncio.wait([served])

asyncio.run(main())
"""

_OTEL = """
from asyncflow.otel import OpenTelemetryObserver

async def main():
    report = await run_pipeline(STEPS, observers=[OpenTelemetryObserver()])
    assert report.all_passed

asyncio.run(main())
"""

_DASK = """
from distributed import Client, LocalCluster

from asyncflow.engines.dask import DaskEngine

async def main():
    async with LocalCluster(
        n_workers=1, processes=False, dashboard_address=None, asynchronous=True
    ) as cluster, Client(cluster, asynchronous=True) as client, DaskEngine(client) as engine:
        report = await run_pipeline(STEPS, engine=engine)
    assert report["a"].engine == "dask", report

asyncio.run(main())
"""

_RAY = """
from asyncflow.engines.ray import RayEngine

assert RayEngine().name == "ray"  # `make test-ray` starts a cluster, in a network of its own
"""

_PROGRAMS = {
    "cli": _CLI,
    "cloudpickle": _CLOUDPICKLE,
    "dask": _DASK,
    "journal": _JOURNAL,
    "otel": _OTEL,
    "postgres": _POSTGRES,
    "ray": _RAY,
    "report": _REPORT,
    "web": _WEB,
}

PROGRAMS = {extra: _PRELUDE + program for extra, program in _PROGRAMS.items()}
"""The source of each extra's program, which says nothing and exits with 0 if all is well."""
