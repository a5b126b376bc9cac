"""Kills replicas of a service in a loop, while orders start orders and are cancelled.

Two replicas share a journal. One after the other is killed with SIGKILL, or stopped with SIGTERM,
and started again. Some orders kill their process whenever they run. The resource of all orders is
down at times. In the end each order has shipped, or was cancelled; of those that kill their process
each has failed; and none was forgotten.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from random import Random

from asyncflow import RunStatus, StepCrashedError
from asyncflow.events import AttemptStarted, RunResumed
from asyncflow.journal import RunRecord, SQLiteJournal
from tests.service.client import Site, running_site, until

_CLIENTS = 12
_POISON = 0.01
"""The share of orders that kill their process."""
_UNLUCKY = 0.001
"""The share of orders that may be taken for such: new ones run beside the suspects."""
_CANCELLED = 0.25
_LATEST_S = 10.0
"""How long after the answer to its cancellation an order may have shipped at the latest, if it was
running then."""


class Shop:
    """What was ordered and cancelled, and the replicas that are there now."""

    def __init__(self, path: Path, folder: Path, random: Random) -> None:
        self.path = path
        self.folder = folder
        self.random = random
        self.sites: dict[int, Site] = {}
        self.accepted: dict[str, int] = {}
        """How many other orders each starts."""
        self.poison: set[str] = set()
        self.cancelled: dict[str, float] = {}
        """When the answer came that an order is cancelled."""
        self.ended = Counter[str]()
        self.unlucky = 0

    async def ask(self, target: str) -> tuple[int, str]:
        """Send a request to any replica until one answers."""
        while True:
            if self.sites:
                site = self.random.choice(list(self.sites.values()))
                status, body = await site.request(target)
                if status not in (0, 503):
                    return status, body
            await asyncio.sleep(0.1)

    async def order(self, prefix: str, ends_s: float) -> None:
        """Order until the end, and cancel some orders at any moment."""
        random, number = self.random, 0
        while time.monotonic() < ends_s:
            number += 1
            run_id, others = f"{prefix}-{number}", random.choice([0, 0, 1, 2])
            poison = random.random() < _POISON
            pause_s = random.uniform(0.02, 0.4)
            status, body = await self.ask(
                f"/orders/{run_id}?others={others}&pause_s={pause_s}&poison={poison}"
            )
            assert status == 202, (status, body)
            self.accepted[run_id] = others
            if poison:
                self.poison.add(run_id)
            elif random.random() < _CANCELLED:
                await asyncio.sleep(random.uniform(0, 2))
                _, was_asked = await self.ask(f"/cancel/{run_id}")
                if was_asked == "True":
                    self.cancelled[run_id] = time.time()
            await asyncio.sleep(random.uniform(0, 0.5))

    async def replicate(self, number: int, ends_s: float) -> None:
        """Run a replica, and end it, again and again."""
        random = self.random
        arguments = ("--journal", self.path, "--folder", self.folder, "--max-runs", 30)
        while time.monotonic() < ends_s:
            with ExitStack() as stack:
                replica = running_site(*arguments, "--grace-ms", 200)
                # It waits for the port of the replica, and must not stop the clients.
                site = await asyncio.to_thread(stack.enter_context, replica)
                self.sites[number] = site
                lasts_s = random.uniform(1, 10)
                while site.process.poll() is None and lasts_s > 0:
                    await asyncio.sleep(0.05)
                    lasts_s -= 0.05
                how = "by an order"
                if site.process.poll() is None:
                    how = random.choice(["SIGKILL", "SIGKILL", "SIGTERM"])
                    site.process.kill() if how == "SIGKILL" else site.terminate()
                del self.sites[number]
                while site.process.poll() is None:
                    await asyncio.sleep(0.02)
                self.ended[how] += 1

    async def interrupt_stock(self, ends_s: float) -> None:
        """Let the resource be down at times."""
        while time.monotonic() < ends_s:
            await asyncio.sleep(self.random.uniform(5, 15))
            Path(self.folder, "down").touch()
            await asyncio.sleep(self.random.uniform(0.5, 4))
            Path(self.folder, "down").unlink()


async def kills(seconds: float, seed: int) -> list[str]:
    """Kill replicas for some time; return what is wrong."""
    print(f"{seconds / 60:g} minutes of two replicas that are killed, seed {seed}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        effects = Path(folder, "effects")
        effects.mkdir()
        shop = Shop(Path(folder, "runs.db"), effects, Random(seed))
        ends_s = time.monotonic() + seconds
        async with asyncio.TaskGroup() as group:
            for number in range(2):
                # They stay until nobody waits for an answer.
                group.create_task(shop.replicate(number, ends_s + 10))
            group.create_task(shop.interrupt_stock(ends_s))
            for number in range(_CLIENTS):
                group.create_task(shop.order(f"order-{number}", ends_s))
        async with SQLiteJournal(shop.path) as journal:
            started = time.monotonic()
            await _finish(shop, journal)
            print(f"idle after {time.monotonic() - started:.1f} s", flush=True)
            return await _judge(shop, journal)


async def _finish(shop: Shop, journal: SQLiteJournal) -> None:
    """Let a replica do what is left. Only orders kill it now."""

    async def is_idle() -> bool:
        counts = await journal.counts()
        drained = await journal.runs(RunStatus.INTERRUPTED, cause="drained")
        return not (counts[RunStatus.RUNNING] or counts[RunStatus.ORPHANED] or drained)

    async def serve() -> None:
        while True:
            arguments = ("--journal", shop.path, "--folder", shop.folder, "--max-runs", 30)
            with ExitStack() as stack:
                site = await asyncio.to_thread(stack.enter_context, running_site(*arguments))
                while site.process.poll() is None:
                    await asyncio.sleep(0.05)
            shop.ended["by an order"] += 1

    serving = asyncio.create_task(serve())
    try:
        await until(is_idle, 600)
    finally:
        serving.cancel()
        await asyncio.wait([serving])


async def _judge(shop: Shop, journal: SQLiteJournal) -> list[str]:
    """Print what became of the orders, and return what is wrong."""
    runs = {run.run_id: run for run in await journal.runs(limit=None)}
    problems = []
    expected = set(shop.accepted)
    for run_id, others in shop.accepted.items():
        if run_id in runs and runs[run_id].status is RunStatus.PASSED:
            expected.update(f"{run_id}.{number}" for number in range(others))
    for run_id in sorted(expected):
        run = runs.get(run_id)
        problem = "is forgotten" if run is None else await _problem(shop, journal, run)
        if problem:
            problems.append(f"{run_id} {problem}")
    if shop.unlucky > _UNLUCKY * len(runs):
        problems.append(f"{shop.unlucky} orders were taken for some that kill their process")
    counts = Counter(str(run.status) for run in runs.values())
    print(
        f"{len(shop.accepted):,} orders were accepted, and started "
        f"{len(runs) - len(shop.accepted):,} others; {len(shop.cancelled)} were cancelled, and "
        f"{len(shop.poison)} kill their process ({shop.unlucky} were taken for such); "
        f"processes ended: {dict(shop.ended)}; runs: {dict(counts)}"
    )
    return problems


async def _problem(shop: Shop, journal: SQLiteJournal, run: RunRecord) -> str:
    """Return what is wrong with a run that was accepted; empty if nothing is."""
    shipped = Path(shop.folder, run.run_id)
    cancelled_at = shop.cancelled.get(run.run_id)
    if run.run_id in shop.poison:
        is_right = run.status is RunStatus.FAILED and not shipped.exists()
        return "" if is_right else f"kills its process, and is {run.status}"
    if run.status is RunStatus.PASSED:
        if not shipped.exists():
            return "has passed, and was not shipped"
        if cancelled_at is None:
            return ""
        late_s = shipped.stat().st_mtime - cancelled_at
        if late_s > _LATEST_S:
            return f"was shipped {late_s:.1f} s after it was cancelled"
        is_late = False
        for stored in await journal.events(run.run_id):
            if isinstance(stored.event, RunResumed):
                is_late = stored.event.wall_time > cancelled_at
            if is_late and isinstance(stored.event, AttemptStarted):
                return "was continued after it was cancelled"
        return ""
    if cancelled_at and (run.status, run.cause) == (RunStatus.INTERRUPTED, "cancelled"):
        return ""
    summary = (await journal.summaries([run]))[run.run_id]
    if isinstance(summary.error, StepCrashedError):
        shop.unlucky += 1
        return ""
    return f"is {run.status}, and was {'' if cancelled_at else 'not '}cancelled: {summary.line}"
