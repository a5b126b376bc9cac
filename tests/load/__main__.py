"""Measures a service in a process of its own: ``python -m tests.load --minutes 10``.

1. Load: clients that wait, that leave and that start runs without waiting, for some minutes, with a
   journal. The memory, tasks and descriptors of the server must stay flat.
2. Cost: requests a second, their latency and the processor time of a request, beside the same
   handler written by hand. The processor time may be 1.5 times as much.
3. Runs: 1,000 concurrent runs of ten steps, without and with a journal.
4. Kills: two replicas that are killed in a loop, see `tests.load.kills`.
5. Waits: 1,000 runs that wait for signals while replicas are killed, on SQLite and PostgreSQL; and
   what a million waiting runs cost, see `tests.load.waits`.
6. Tenants: the example service, with keys, approvals and a queue, while its replicas are killed,
   see `tests.load.tenants`.

The exit code is 1 if something grows, is lost, or costs too much.
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from random import Random
from typing import Any

from asyncflow import Orchestrator, WorkflowStep
from asyncflow.journal import SQLiteJournal
from asyncflow.service import Service
from tests.load.kills import kills
from tests.load.tenants import tenants
from tests.load.waits import rows, waits
from tests.service.client import Connection, Site, running_site, until

MOST_GROWTH_KB = 8_192
"""How much memory the second half of the load may add."""
MOST_CPU = 1.5


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.load", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--requests", type=int, default=4_000, help="for each handler compared")
    parser.add_argument("--seed", type=int, default=0, help="of the kills")
    parser.add_argument("--waiting", type=int, default=1_000, help="how many runs wait")
    parser.add_argument(
        "--only", choices=["load", "cost", "runs", "kills", "waits", "rows", "tenants"]
    )
    options = parser.parse_args()
    problems: list[str] = []
    if options.only in (None, "load"):
        problems += asyncio.run(load(options.minutes * 60, options.clients))
    if options.only in (None, "cost"):
        problems += asyncio.run(cost(options.requests))
    if options.only in (None, "runs"):
        asyncio.run(many_runs())
    if options.only in (None, "kills"):
        problems += asyncio.run(kills(options.minutes * 60, options.seed))
    for kind in ("sqlite", "postgres"):
        if options.only in (None, "waits"):
            problems += asyncio.run(waits(kind, options.seed, options.waiting))
        if options.only in (None, "rows"):
            asyncio.run(rows(kind))
        if options.only in (None, "tenants"):
            problems += asyncio.run(tenants(kind, round(options.minutes * 20), options.seed))
    for problem in problems:
        print(f"PROBLEM: {problem}")
    return 1 if problems else 0


# --- load ----------------------------------------------------------------------------------------


async def load(seconds: float, clients: int) -> list[str]:
    """Load a service with a journal; return what is wrong."""
    print(f"{seconds / 60:g} minutes of {clients} clients")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "runs.db")
        with running_site("--journal", path, "--max-runs", clients) as site:
            return await _load(site, path, seconds, clients)


async def _load(site: Site, path: Path, seconds: float, clients: int) -> list[str]:
    loop, answers = asyncio.get_running_loop(), Counter[str]()
    ends_s = loop.time() + seconds
    working = [asyncio.create_task(client(site, n, ends_s, answers)) for n in range(clients)]
    samples = []
    print(f"{'s':>5} {'requests':>9} {'MiB':>7} {'tasks':>6} {'files':>6} {'runs':>5}")
    interval_s = max(seconds / 20, 1)
    while loop.time() < ends_s:
        await asyncio.sleep(interval_s)
        found = await site.figures()
        samples.append(found)
        line = f"{seconds - ends_s + loop.time():5.0f} {answers.total():9,}"
        line += f" {found['rss_kb'] / 1024:7.1f} {found['tasks']:6} {found['descriptors']:6}"
        print(f"{line} {len(found['runs']):5}", flush=True)
    await asyncio.gather(*working)
    problems = []

    async def is_idle() -> bool:
        return not (await site.figures())["runs"]

    await until(is_idle)
    last = await site.figures()
    print(dict(answers), f"idle: {last['tasks']} tasks, {last['descriptors']} descriptors")
    if last["tasks"] > 20 or last["descriptors"] > 30:
        problems.append(f"{last['tasks']} tasks, {last['descriptors']} descriptors are left")
    middle = len(samples) // 2
    growth_kb = samples[-1]["rss_kb"] - samples[middle]["rss_kb"]
    print(f"memory: {growth_kb / 1024:+.1f} MiB in the second half")
    if growth_kb > MOST_GROWTH_KB:
        problems.append(f"the server's memory has grown by {growth_kb:,} KiB")
    if set(answers) - {"200", "202", "503", "left"}:
        problems.append(f"unexpected answers: {dict(answers)}")
    async with SQLiteJournal(path) as journal:
        counts = await journal.counts()
    print("runs:", {str(status): count for status, count in counts.items()})
    accepted = answers["200"] + answers["202"]
    if counts["PASSED"] < accepted or counts["FAILED"] or counts["RUNNING"]:
        problems.append(f"{accepted} runs were accepted, and the journal has {counts}")
    return problems


async def client(site: Site, number: int, ends_s: float, answers: Counter[str]) -> None:
    """Send requests until the end: some wait, some leave, some don't wait for their run."""
    loop, random = asyncio.get_running_loop(), Random(number)
    while loop.time() < ends_s:
        kind = random.choice(["wait", "wait", "start", "leave"])
        run_id = f"{number}-{loop.time():.6f}"
        pause_s = random.uniform(0, 0.1)
        if kind == "leave":
            _, writer = await site.connect(f"/wait/{run_id}?pause_s={pause_s}")
            await asyncio.sleep(pause_s)
            writer.close()
            answers["left"] += 1
        else:
            status, _ = await site.request(f"/{kind}/{run_id}?pause_s={pause_s}")
            answers[str(status)] += 1
            if status == 503:
                await asyncio.sleep(0.1)


# --- cost ----------------------------------------------------------------------------------------


HANDLERS = {
    "pauses": ("three steps in a row, each a pause of 1 ms", "?pause_s=0.001", b""),
    "offers": ("two calls of a service at once, and a model", "", b'{"sku":"tea","quantity":2}'),
}
"""Handlers of the site: what they do, their query and their body."""


async def cost(requests: int) -> list[str]:
    """Compare handlers that run a pipeline with the same by hand; return what is wrong."""
    clients, problems = 20, []
    with running_site() as site:
        for handler, (what, query, body) in HANDLERS.items():
            print(f"{handler}: {what}; {requests} requests of {clients} clients")
            print(f"{'':<10} {'a second':>9} {'p50 ms':>7} {'p99 ms':>7} {'CPU µs':>7}")
            ratios = []
            for _ in range(3):
                figures = {}
                for how in ("by-hand", "run"):
                    target = f"/{handler}/{how}{query}"
                    figures[how] = await _measure(site, how, target, body, requests, clients)
                ratios.append(figures["run"] / figures["by-hand"])
            ratio = sorted(ratios)[1]
            print(f"CPU of a request: {ratio:.2f} times that by hand (median of three)")
            # A pause costs nothing by hand, so that only the other handler tells of services.
            if handler == "offers" and ratio > MOST_CPU:
                problems.append(f"a request costs {ratio:.2f} times as much as by hand")
    return problems


async def _measure(
    site: Site, how: str, target: str, body: bytes, requests: int, clients: int
) -> float:
    """Send requests to a handler; return how many microseconds of the processor each takes."""
    latencies: list[float] = []

    async def work() -> None:
        async with Connection(site.port) as connection:
            for _ in range(requests // clients):
                started = time.perf_counter()
                status = await connection.request(target, body)
                latencies.append(time.perf_counter() - started)
                assert status == 200

    before, started = await site.figures(), time.perf_counter()
    await asyncio.gather(*(work() for _ in range(clients)))
    took_s, after = time.perf_counter() - started, await site.figures()
    latencies.sort()
    median_ms, late_ms = (latencies[int(len(latencies) * q)] * 1000 for q in (0.5, 0.99))
    cpu_us = (after["cpu_s"] - before["cpu_s"]) / len(latencies) * 1e6
    rate = len(latencies) / took_s
    print(f"{how:<10} {rate:9.0f} {median_ms:7.1f} {late_ms:7.1f} {cpu_us:7.0f}", flush=True)
    return cpu_us


# --- runs ----------------------------------------------------------------------------------------


async def many_runs(runs: int = 1_000, steps: int = 10) -> None:
    """Run many pipelines at the same time, each a chain of steps."""

    async def act() -> int:
        await asyncio.sleep(0)
        return 1

    chain = Orchestrator(
        [WorkflowStep(f"s{n}", act, [f"s{n - 1}"] if n else []) for n in range(steps)],
        name="chain",
    )
    for kind in ("without a journal", "with SQLite"):
        with _journal(kind != "without a journal") as journal:
            async with nullcontext() if journal is None else journal:
                service = Service([chain], journal=journal, max_runs=None)
                async with service:
                    started, cpu = time.perf_counter(), time.process_time()
                    handles = await asyncio.gather(*(service.start("chain") for _ in range(runs)))
                    reports = await asyncio.gather(*(handle.report() for handle in handles))
                    took_s, cpu_s = time.perf_counter() - started, time.process_time() - cpu
        assert all(report.all_passed for report in reports)
        peak_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(
            f"{runs:,} concurrent runs of {steps} steps {kind}: {took_s:.2f} s, CPU {cpu_s:.2f} s, "
            f"{cpu_s / runs / steps * 1e6:.0f} µs a step, peak {peak_kb / 1024:.0f} MiB"
        )


@contextmanager
def _journal(is_wanted: bool) -> Iterator[Any]:
    if not is_wanted:
        yield None
        return
    with tempfile.TemporaryDirectory() as folder:
        yield SQLiteJournal(Path(folder, "runs.db"))


if __name__ == "__main__":
    sys.exit(main())
