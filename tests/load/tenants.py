"""Kills the replicas of `examples.service` while three tenants order and ask for statements.

Two replicas share a journal and a ledger. Again and again one of them is killed with SIGKILL, or
stopped with SIGTERM, and started again, while clients repeat what was not answered. In the end each
order that was accepted is in the ledger, once, unless it was refused; no tenant had two orders of a
key under way at a time; and the latest statement of each tenant was made.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import socket
import sys
import tempfile
from collections import Counter
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import httpx

from asyncflow import RunStatus
from asyncflow.journal import PostgresJournal, RunRecord, SQLiteJournal
from examples.service.clients import PostgresLedger, SQLiteLedger
from tests.postgres_server import running_server
from tests.service.client import until

_ROOT = Path(__file__).parents[2]
_TENANTS = "acme", "initech", "umbrella"
_LARGE = 0.2
"""The share of orders that wait for an approval."""
_SMALL_CENTS, _LARGE_CENTS = 300, 120_000
_CLOCK_S = 0.01
"""By how much the clocks of journal and server may differ."""
_SETTINGS = {
    "MAX_RUNS": "8",
    "GRACE_MS": "200",
    "SHOP_DELAY_S": "0.05",
    "RESUME_EVERY_S": "0.5",
    "STATEMENT_DELAY_MS": "100",
    "PYTHONPATH": str(_ROOT),
}


class Shop:
    """The replicas that are there now, and what they have accepted."""

    def __init__(self, folder: Path, dsn: str | None, random: Random) -> None:
        self._folder = folder
        self._environment = {**os.environ, **_SETTINGS}
        self._environment.pop("DATABASE_URL", None)
        if dsn is not None:
            self._environment["DATABASE_URL"] = dsn
        self._random = random
        self._ports: dict[int, int] = {}
        self._client = httpx.AsyncClient(timeout=10)
        self.is_over = False
        self.ended = Counter[str]()
        self.approved: dict[str, bool] = {}
        """The answer for each order that was accepted: whether it is in the ledger in the end."""
        self.cents: dict[str, int] = {}
        self.statements: dict[str, str] = {}
        """The latest statement that each tenant has asked for."""

    async def request(self, method: str, target: str, **arguments: Any) -> httpx.Response:
        """Send a request to any replica until one answers."""
        while True:
            if self._ports:
                port = self._random.choice(list(self._ports.values()))
                with suppress(httpx.TransportError):
                    url = f"http://127.0.0.1:{port}{target}"
                    answer = await self._client.request(method, url, **arguments)
                    if answer.status_code < 500:
                        return answer
            await asyncio.sleep(0.05)

    async def replicate(self, number: int) -> None:
        """Run a replica, and end it, again and again; the last one stays until it is cancelled."""
        while True:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
            command = [sys.executable, "-m", "examples.service", str(port)]
            process = await asyncio.create_subprocess_exec(
                *command,
                cwd=self._folder,
                env=self._environment,
                stderr=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
            )
            try:
                await self._until_healthy(port)
                self._ports[number] = port
                await asyncio.sleep(self._random.uniform(0.5, 3))
                while self.is_over:
                    await asyncio.sleep(1)
                del self._ports[number]
                how = self._random.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM])
                process.send_signal(how)
                await process.wait()
                self.ended[how.name] += 1
            finally:
                self._ports.pop(number, None)
                if process.returncode is None:
                    process.kill()
                    await process.wait()

    async def _until_healthy(self, port: int) -> None:
        while True:
            with suppress(httpx.TransportError):
                if (await self._client.get(f"http://127.0.0.1:{port}/health")).is_success:
                    return
            await asyncio.sleep(0.05)

    async def order(self, tenant: str, kills: int) -> None:
        """Order until so many replicas were ended; approve orders and ask for statements."""
        random = self._random
        for number in itertools.count():
            if self.ended.total() >= kills:
                break
            many = random.randint(1, 6)
            cents = random.choices([_SMALL_CENTS, _LARGE_CENTS], [1 - _LARGE, _LARGE], k=many)
            orders = [
                {"customer": "ada", "items": [{"sku": "tea", "quantity": each // 300}]}
                for each in cents
            ]
            headers = {"Idempotency-Key": f"{tenant}-{number}"}
            target = f"/tenants/{tenant}/orders"
            accepted = await self.request("POST", target, json=orders, headers=headers)
            assert accepted.status_code == 202, accepted.text
            for order_id, each in zip(accepted.json(), cents, strict=True):
                is_large = each > _SMALL_CENTS
                self.cents[order_id] = each
                self.approved[order_id] = not is_large or random.random() < 0.5
                if is_large:  # also before it has started: the answer is kept
                    yes = {"yes": self.approved[order_id]}
                    answer = await self.request("POST", f"/orders/{order_id}/approval", json=yes)
                    assert answer.status_code == 200, answer.text
            if random.random() < 0.5:
                asked = await self.request("POST", f"/tenants/{tenant}/statement")
                self.statements[tenant] = asked.json()
            await asyncio.sleep(random.uniform(0, 1))
        asked = await self.request("POST", f"/tenants/{tenant}/statement")
        self.statements[tenant] = asked.json()

    async def close(self) -> None:
        await self._client.aclose()


async def tenants(kind: str, kills: int, seed: int) -> list[str]:
    """End replicas so many times; return what is wrong."""
    with tempfile.TemporaryDirectory() as folder:
        if kind == "postgres":
            with running_server() as server:
                return await _tenants(Path(folder), server.dsn(), kills, seed)
        return await _tenants(Path(folder), None, kills, seed)


async def _tenants(folder: Path, dsn: str | None, kills: int, seed: int) -> list[str]:
    kind = "sqlite" if dsn is None else "postgres"
    print(f"three tenants on {kind}, {kills} kills, seed {seed}", flush=True)
    shop = Shop(folder, dsn, Random(seed))
    journal = SQLiteJournal(folder / "runs.db") if dsn is None else PostgresJournal(dsn)
    ledger: Any = SQLiteLedger(str(folder / "orders.db")) if dsn is None else PostgresLedger(dsn)
    replicas = [asyncio.create_task(shop.replicate(number)) for number in range(2)]
    try:
        async with journal:
            await asyncio.gather(*(shop.order(tenant, kills) for tenant in _TENANTS))
            shop.is_over = True
            await until(lambda: _is_idle(journal))
            return await _judge(shop, await journal.runs(limit=None), ledger)
    finally:
        for replica in replicas:
            replica.cancel()
        await asyncio.wait(replicas)
        await shop.close()
        if dsn is not None:
            await ledger.aclose()


async def _is_idle(journal: SQLiteJournal | PostgresJournal) -> bool:
    counts = await journal.counts()
    busy = RunStatus.RUNNING, RunStatus.ORPHANED, RunStatus.WAITING
    drained = await journal.runs("INTERRUPTED", cause="drained", limit=1)
    return not (any(counts[each] for each in busy) or drained)


async def _judge(shop: Shop, records: list[RunRecord], ledger: Any) -> list[str]:
    """Print what became of the orders, and return what is wrong."""
    runs = {record.run_id: record for record in records}
    problems = [
        f"order {order_id} has not passed: {runs.get(order_id)}"
        for order_id in shop.approved
        if order_id not in runs or runs[order_id].status != "PASSED"
    ]
    for tenant in _TENANTS:
        owed = sum(
            shop.cents[order_id]
            for order_id, is_approved in shop.approved.items()
            if is_approved and order_id.startswith(tenant)
        )
        booked = await ledger.total(tenant)
        if booked != owed:
            problems.append(f"{tenant} has {booked} cents in the ledger, and owes {owed}")
        for run_id, record in runs.items():
            if record.pipeline == "statements" and record.attributes["tenant"] == tenant:
                is_newest = run_id == shop.statements[tenant]
                is_right = record.status == "PASSED" or record.cause == "replaced"
                if not is_right or (is_newest and record.cause == "replaced"):
                    problems.append(f"statement {run_id} of {tenant} is {record}")
    problems += _overlaps(records)
    large = sum(cents > _SMALL_CENTS for cents in shop.cents.values())
    print(
        f"{len(shop.approved):,} orders were accepted, of which {large} needed an approval; "
        f"{sum(record.cause == 'replaced' for record in records)} statements were replaced; "
        f"processes ended: {dict(shop.ended)}",
        flush=True,
    )
    return problems


def _overlaps(records: list[RunRecord]) -> list[str]:
    """Return which runs of a key were under way at a time. Those without a start never were."""
    of_key: dict[tuple[str, str], list[RunRecord]] = {}
    for record in sorted(records, key=lambda record: record.started_at):
        if record.key and record.cause != "replaced":
            of_key.setdefault((record.pipeline, record.key), []).append(record)
    return [
        f"{earlier} and {later} had their key at a time"
        for runs in of_key.values()
        for earlier, later in itertools.pairwise(runs)
        if later.started_at < earlier.updated_at - _CLOCK_S
    ]
