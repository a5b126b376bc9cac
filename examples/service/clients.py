"""The clients that all orders share: a ledger in a database, and the shop, a web service."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from typing import Protocol

import httpx
import psycopg
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

TABLE = """CREATE TABLE IF NOT EXISTS orders
    (id TEXT PRIMARY KEY, tenant TEXT, customer TEXT, cents INTEGER)"""
TOTAL = "SELECT COALESCE(SUM(cents), 0) FROM orders WHERE tenant = "


class Ledger(Protocol):
    """Has the orders that were paid."""

    async def book(self, order_id: str, tenant: str, customer: str, cents: int) -> None:
        """Write an order; one that was written before stays as it is."""
        ...

    async def total(self, tenant: str) -> int:
        """Return what the orders of a tenant come to, in cents."""
        ...


class SQLiteLedger:
    def __init__(self, path: str) -> None:
        self._path = path

    async def book(self, order_id: str, tenant: str, customer: str, cents: int) -> None:
        await asyncio.to_thread(self._book, order_id, tenant, customer, cents)

    async def total(self, tenant: str) -> int:
        return await asyncio.to_thread(self._total, tenant)

    def _book(self, *row: object) -> None:
        with closing(sqlite3.connect(self._path, timeout=30)) as connection, connection:
            connection.execute(TABLE)
            connection.execute("INSERT OR IGNORE INTO orders VALUES (?, ?, ?, ?)", row)

    def _total(self, tenant: str) -> int:
        with closing(sqlite3.connect(self._path, timeout=30)) as connection, connection:
            connection.execute(TABLE)
            return int(connection.execute(f"{TOTAL}?", (tenant,)).fetchone()[0])


class PostgresLedger:
    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._connection: psycopg.AsyncConnection | None = None
        self._lock = asyncio.Lock()

    async def book(self, order_id: str, tenant: str, customer: str, cents: int) -> None:
        async with self._lock:
            connection = await self._connected()
            await connection.execute(
                "INSERT INTO orders VALUES (%s, %s, %s, %s) ON CONFLICT DO NOTHING",
                (order_id, tenant, customer, cents),
            )

    async def total(self, tenant: str) -> int:
        async with self._lock:
            connection = await self._connected()
            found = await connection.execute(f"{TOTAL}%s".encode(), (tenant,))
            return int((await found.fetchone() or (0,))[0])

    async def _connected(self) -> psycopg.AsyncConnection:
        if self._connection is None or self._connection.closed:
            self._connection = await psycopg.AsyncConnection.connect(self._dsn, autocommit=True)
            await self._connection.execute(TABLE.encode())
        return self._connection

    async def aclose(self) -> None:
        if self._connection is not None:
            await self._connection.close()


@asynccontextmanager
async def open_db() -> AsyncIterator[Ledger]:
    dsn = os.environ.get("DATABASE_URL")
    if not dsn:
        yield SQLiteLedger("orders.db")
        return
    ledger = PostgresLedger(dsn)
    try:
        yield ledger
    finally:
        await ledger.aclose()


@asynccontextmanager
async def open_http() -> AsyncIterator[httpx.AsyncClient]:
    url = os.environ.get("SHOP_URL")
    transport = None if url else httpx.ASGITransport(shop)
    limits = httpx.Limits(max_connections=100)
    async with httpx.AsyncClient(
        transport=transport, base_url=url or "http://shop", limits=limits
    ) as client:
        yield client


# A stand-in for the shop, so that the example runs alone.


async def take_a_while() -> None:
    await asyncio.sleep(float(os.environ.get("SHOP_DELAY_S", "0.2")))


async def prices(request: Request) -> JSONResponse:
    await take_a_while()
    return JSONResponse({sku: 100 * len(sku) for sku in request.query_params.getlist("sku")})


async def payments(request: Request) -> JSONResponse:
    await take_a_while()
    return JSONResponse({"payment": f"paid-{request.headers['Idempotency-Key']}"})


shop = Starlette(routes=[Route("/prices", prices), Route("/payments", payments, methods=["POST"])])
