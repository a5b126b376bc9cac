"""Every test of the pages has a journal, and a client that asks the app without a socket."""

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

REAL_TIME = ("test_serve", "test_stream")
"""The modules whose tests have real sockets."""


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, type[asyncio.AbstractEventLoop]]:
    if Path(item.path).stem in REAL_TIME:
        return {"asyncio": asyncio.SelectorEventLoop}
    return {"virtual": VirtualTimeLoop}


@pytest.fixture
def journal() -> Iterator[SQLiteJournal]:
    journal = SQLiteJournal(":memory:")
    yield journal
    journal.close()


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def any_journal(request: pytest.FixtureRequest) -> Iterator[Any]:
    """A journal in each kind of database, for what depends on that."""
    if request.param == "sqlite":
        yield request.getfixturevalue("journal")
        return
    server: PostgresServer = request.getfixturevalue("postgres_server")
    with server.empty_database() as dsn:
        journal = PostgresJournal(dsn)
        yield journal
        journal.close()


Ask = Callable[..., httpx.AsyncClient]


@pytest.fixture
async def ask() -> AsyncIterator[Ask]:
    """Make a client of an app. Like a browser on this machine, unless told otherwise."""
    made = []

    def make(app: Any, base_url: str = "http://127.0.0.1:8765", **options: Any) -> Any:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        made.append(httpx.AsyncClient(transport=transport, base_url=base_url, **options))
        return made[-1]

    yield make
    for client in made:
        await client.aclose()


@pytest.fixture(autouse=True)
async def nothing_leaks() -> AsyncIterator[None]:
    """No task outlives a test, and the loop has had nothing to complain of."""
    loop = asyncio.get_running_loop()
    complaints: list[dict[str, object]] = []
    loop.set_exception_handler(lambda _, context: complaints.append(context))
    before = asyncio.all_tasks()

    yield

    left = {task for task in asyncio.all_tasks() if task not in before} - {asyncio.current_task()}
    # The one task that sse-starlette keeps for as long as there is a loop.
    assert {task.get_coro().__qualname__ for task in left} <= {"_shutdown_watcher"}
    assert not complaints
