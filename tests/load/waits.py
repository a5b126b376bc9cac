"""Sends signals to a service whose replicas are killed, and fills its journal with waiting runs.

Each of 1,000 runs waits for three signals, one after the other. The first ones are sent slowly, for
the latency: from the call to the next step. Then replicas are killed with SIGKILL and started
again, while clients repeat what was not answered. In the end each run has passed with the values
that were accepted, and no step has succeeded twice.

`rows` measures what a million waiting runs cost, which no process holds.
"""

from __future__ import annotations

import asyncio
import sqlite3
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, closing, contextmanager
from pathlib import Path
from random import Random
from typing import Any

import psycopg

from asyncflow import RunStatus
from asyncflow.events import AttemptStarted, StepSucceeded
from asyncflow.journal import PostgresJournal, SQLiteJournal
from tests.postgres_server import running_server
from tests.service.client import Site, running_site, until
from tests.service.site import ROUNDS, approvals

_CLIENTS = 50
_REPLICAS = 3
_SLOW, _FAST = 50, 500
"""How many signals are sent a second: for the latency, and while replicas are killed."""


@contextmanager
def journal_address(kind: str) -> Iterator[str]:
    """Yield the address of a new journal."""
    if kind == "postgres":
        with running_server() as server:
            yield server.dsn()
    else:
        with tempfile.TemporaryDirectory() as folder:
            yield str(Path(folder, "runs.db"))


def open_journal(address: str) -> Any:
    is_server = address.startswith("postgresql:")
    return PostgresJournal(address) if is_server else SQLiteJournal(address)


class Office:
    """The replicas that are there now, and what was sent to them."""

    def __init__(self, address: str, effects: Path, random: Random) -> None:
        self.address = address
        self.effects = effects
        self.random = random
        self.sites: dict[int, Site] = {}
        self.killed = 0
        self.unanswered = 0
        """How many requests were repeated: their replica had died, or its file was locked."""
        self.is_killing = False
        self.sent_at: dict[str, float] = {}
        """When each signal was sent first, by the line of the step that follows it."""

    async def ask(self, target: str) -> str:
        """Send a request to any replica until one answers."""
        while True:
            if self.sites:
                site = self.random.choice(list(self.sites.values()))
                status, body = await site.request(target)
                if status == 200:
                    return body
                assert status in (0, 503), (status, body)
                self.unanswered += 1
            await asyncio.sleep(0.05)

    async def replicate(self, number: int) -> None:
        """Run a replica; while others are killed, kill it and start it again."""
        while True:
            with ExitStack() as stack:
                arguments = "--journal", self.address, "--effects", self.effects
                site = await asyncio.to_thread(stack.enter_context, running_site(*arguments))
                self.sites[number] = site
                try:
                    await asyncio.sleep(self.random.uniform(3, 10))
                    while not (self.is_killing and len(self.sites) > 1):
                        await asyncio.sleep(0.05)
                finally:
                    del self.sites[number]
                site.process.kill()
                self.killed += 1
                while site.process.poll() is None:
                    await asyncio.sleep(0.02)

    async def send_round(self, number: int, run_ids: list[str], rate: int) -> float:
        """Send one signal to each run, and return how many were sent a second."""
        clock, began_s = time.monotonic, time.monotonic()
        turns = iter(enumerate(run_ids))

        async def work() -> None:
            for turn, run_id in turns:
                await asyncio.sleep(began_s + turn / rate - clock())
                line = f"{run_id}/publish{number}"
                self.sent_at[line] = time.time()
                await self.ask(f"/approve/{run_id}?name=approved{number}&value={turn}")

        await asyncio.gather(*(work() for _ in range(_CLIENTS)))
        return len(run_ids) / (clock() - began_s)


async def waits(kind: str, seed: int, runs: int) -> list[str]:
    """Send signals to waiting runs while replicas are killed; return what is wrong."""
    print(f"{runs:,} waiting runs on {kind}, seed {seed}", flush=True)
    run_ids = [f"r{number}" for number in range(runs)]
    with journal_address(kind) as address, tempfile.TemporaryDirectory() as folder:
        office = Office(address, Path(folder, "effects"), Random(seed))
        async with open_journal(address) as journal, _replicas(office):
            for start in range(0, runs, _CLIENTS):
                starting = run_ids[start : start + _CLIENTS]
                await asyncio.gather(*(office.ask(f"/approvals/{run_id}") for run_id in starting))
            await until(lambda: _all_wait(journal, runs))
            rate = await office.send_round(0, run_ids, _SLOW)
            await until(lambda: _all_published(office, runs))  # not due any more when it is claimed
            await until(lambda: _all_wait(journal, runs))
            print(f"in peace: {_latencies(office, 0)}; {rate:.0f} signals a second", flush=True)
            office.is_killing = True
            for number in range(1, ROUNDS):
                rate = await office.send_round(number, run_ids, _FAST)
                print(f"while replicas die: {rate:.0f} signals a second", flush=True)
            office.is_killing = False
            await until(lambda: _all_passed(journal, runs), 300)
            late = [_latencies(office, number) for number in range(1, ROUNDS)]
            counts = f"{office.killed} replicas killed, {office.unanswered} requests repeated"
            print(f"{counts}; {'; '.join(late)}", flush=True)
            return await _judge(office, journal, run_ids)


@asynccontextmanager
async def _replicas(office: Office) -> AsyncIterator[None]:
    replicas = [asyncio.create_task(office.replicate(number)) for number in range(_REPLICAS)]
    try:
        yield
    finally:
        for each in replicas:
            each.cancel()
        await asyncio.wait(replicas)


async def _all_wait(journal: Any, runs: int) -> bool:
    counts, due = await journal.counts(), await journal.due(limit=1)
    return bool(counts[RunStatus.WAITING] == runs and not due)


async def _all_published(office: Office, runs: int) -> bool:
    return len({line for line, _ in _effects_of(office.effects)}) == runs


async def _all_passed(journal: Any, runs: int) -> bool:
    return bool((await journal.counts())[RunStatus.PASSED] == runs)


def _effects_of(path: Path) -> list[tuple[str, float]]:
    lines = (line.rsplit(" ", 1) for line in path.read_text().splitlines())
    return [(line, float(at_s)) for line, at_s in lines]


def _latencies(office: Office, number: int) -> str:
    """Say how long it took from a signal to the next step."""
    first: dict[str, float] = {}
    for line, at_s in _effects_of(office.effects):
        first.setdefault(line, at_s)
    name = f"publish{number}"
    took = sorted(
        (first[line] - sent_s) * 1000
        for line, sent_s in office.sent_at.items()
        if line.endswith(name)
    )
    median_ms, late_ms = (took[int(len(took) * share)] for share in (0.5, 0.99))
    return f"{median_ms:.1f} ms p50, {late_ms:.1f} ms p99 from signal to step"


async def _judge(office: Office, journal: Any, run_ids: list[str]) -> list[str]:
    made, problems = Counter(line for line, _ in _effects_of(office.effects)), []
    crashed = 0
    for turn, run_id in enumerate(run_ids):
        events = [stored.event for stored in await journal.events(run_id)]
        succeeded = Counter(each.step for each in events if isinstance(each, StepSucceeded))
        began = Counter(each.step for each in events if isinstance(each, AttemptStarted))
        report = await journal.report(run_id)
        answers = [report[f"approved{number}"].output for number in range(ROUNDS)]
        if answers != [turn] * ROUNDS:
            problems.append(f"{run_id} was sent {turn}, and took {answers}")
        for step in approvals.steps:
            if succeeded[step.name] != 1:
                problems.append(f"{run_id}/{step.name} succeeded {succeeded[step.name]} times")
            if step.name.startswith("publish"):
                times = made[f"{run_id}/{step.name}"]
                crashed += began[step.name] - 1
                if not 1 <= times <= began[step.name]:
                    problems.append(f"{run_id}/{step.name} had its effect {times} times")
    print(f"{crashed} attempts were cut short and ran again; {len(problems)} problems", flush=True)
    return problems


# --- rows ----------------------------------------------------------------------------------------


async def rows(kind: str) -> None:
    """Print what waiting runs cost: the memory of a service, its look, and lists."""
    with journal_address(kind) as address:
        async with open_journal(address) as journal:
            await approvals.with_options(journal=journal, run_id="r0").run()
        for count in (0, 100_000, 1_000_000):
            _fill(address, count)
            await _measure(kind, address, count)


async def _measure(kind: str, address: str, count: int) -> None:
    with running_site("--journal", address) as site:
        await asyncio.sleep(3)  # it looks every second
        figures = await site.figures()
    async with open_journal(address) as journal:
        took_ms = {}
        calls = {
            "look": lambda: journal.due(pipelines=["approvals"]),
            "runs()": journal.runs,
            'runs("WAITING")': lambda: journal.runs("WAITING"),
            "counts()": journal.counts,
        }
        for what, call in calls.items():
            took = []
            for _ in range(5):
                began_s = time.perf_counter()
                await call()
                took.append(time.perf_counter() - began_s)
            took_ms[what] = min(took) * 1000
    times = ", ".join(f"{what} {ms:.2f} ms" for what, ms in took_ms.items())
    rss_mib = figures["rss_kb"] / 1024
    print(f"{kind}, {count:9,} waiting: the service has {rss_mib:.1f} MiB; {times}", flush=True)


def _fill(address: str, count: int) -> None:
    """Copy the run that is there until so many others wait, and none is due."""
    if address.startswith("postgresql:"):
        options = "-csearch_path=asyncflow"
        with psycopg.connect(address, autocommit=True, options=options) as server:
            columns = "SELECT column_name FROM information_schema.columns WHERE table_name = '{}'"
            for table in ("runs", "leases"):
                names = [name for (name,) in server.execute(columns.format(table).encode())]
                numbers = f"generate_series(1, {count}) AS n (n)"
                server.execute(f"{_copy(table, names, numbers)} ON CONFLICT DO NOTHING".encode())
            server.execute(b"ANALYZE")
        return
    with closing(sqlite3.connect(address)) as file, file:
        for table in ("runs", "leases"):
            names = [row[1] for row in file.execute(f"PRAGMA table_info({table})")]
            numbers = (
                "(WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n "
                f"WHERE n < {count}) SELECT n FROM n WHERE n <= {count})"
            )
            file.execute(f"{_copy(table, names, numbers)} ON CONFLICT DO NOTHING")


def _copy(table: str, names: list[str], numbers: str) -> str:
    values = {"run_id": "'r' || n", "started_at": "started_at + n / 1000.0"}
    copied = ", ".join(values.get(name, name) for name in names)
    return (
        f"INSERT INTO {table} ({', '.join(names)}) SELECT {copied} FROM {table}, {numbers} "
        "WHERE run_id = 'r0'"
    )
