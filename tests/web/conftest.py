"""Fixtures of the web tests: a journal, and a client that calls the app without a socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from postgres_server import PostgresServer

from asyncflow.journal import PostgresJournal, SQLiteJournal
from asyncflow.testing import VirtualTimeLoop

REAL_SOCKETS = ("test_serve",)
"""The modules whose tests use real sockets, and so real time."""


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, type[asyncio.AbstractEventLoop]]:
    if Path(item.path).stem in REAL_SOCKETS:
        return {"asyncio": asyncio.SelectorEventLoop}
    return {"virtual": VirtualTimeLoop}


@pytest.fixture
def journal() -> Iterator[SQLiteJournal]:
    journal = SQLiteJournal(":memory:")
    yield journal
    journal.close()


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def any_journal(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Return a journal in each kind of database, for tests that depend on the database."""
    if request.param == "sqlite":
        yield request.getfixturevalue("journal")
        return
    server: PostgresServer = request.getfixturevalue("postgres_server")
    with server.empty_database() as dsn:
        journal = PostgresJournal(dsn)
        yield journal
        journal.close()


MakeClient = Callable[..., httpx.AsyncClient]


@pytest.fixture
async def make_client() -> AsyncIterator[MakeClient]:
    """Return a function that makes a client of an app; by default, one on this machine."""
    clients = []

    def make(app: Any, base_url: str = "http://127.0.0.1:8765", **options: Any) -> Any:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        clients.append(httpx.AsyncClient(transport=transport, base_url=base_url, **options))
        return clients[-1]

    yield make
    for client in clients:
        await client.aclose()


@pytest.fixture(autouse=True)
async def nothing_leaks() -> AsyncIterator[None]:
    """Assert that no task outlives a test and that the loop reported no error."""
    loop = asyncio.get_running_loop()
    loop_errors: list[dict[str, object]] = []
    loop.set_exception_handler(lambda _, context: loop_errors.append(context))
    before = asyncio.all_tasks()

    yield

    remaining = {task for task in asyncio.all_tasks() if task not in before} - {
        asyncio.current_task()
    }
    # sse-starlette keeps this one task for the lifetime of the loop.
    assert {task.get_coro().__qualname__ for task in remaining} <= {"_shutdown_watcher"}
    assert not loop_errors
