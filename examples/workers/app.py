"""The web service: each worker process has its own event loop, runs and connections."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
from fastapi import FastAPI, Request
from pydantic import BaseModel

from asyncflow import Pipeline, Pool, Retry, retry_after
from asyncflow.journal import PostgresJournal, SQLiteJournal
from asyncflow.service import Service

SIZE = 8
"""How many calls the provider takes at a time, from all of us."""

provider = Pool(SIZE, name="provider", shared=True)

summaries = Pipeline("summaries")


# A refusal counts as an attempt. It pauses the pool in all workers, so that few follow it.
@summaries.step(
    map_over="texts", pool=provider, max_retries=20, retry=Retry(on=retry_after), timeout_ms=10_000
)
async def summarize(texts: str, http: httpx.AsyncClient) -> str:
    """Return what the provider makes of a text."""
    response = await http.post("/summarize", json={"text": texts})
    return str(response.raise_for_status().json()["summary"])


class Answer(BaseModel):
    summaries: list[str]
    worker: int
    """The process that has answered."""


@asynccontextmanager
async def open_http() -> AsyncIterator[httpx.AsyncClient]:
    url = os.environ.get("PROVIDER_URL", "http://127.0.0.1:9000")
    async with httpx.AsyncClient(base_url=url, timeout=30) as client:
        yield client


def create_app() -> FastAPI:
    """Return the application, as the environment configures it."""
    dsn = os.environ.get("DATABASE_URL")
    journal = PostgresJournal(dsn) if dsn else SQLiteJournal("summaries.db")
    service = Service([summaries], journal=journal, resources={"http": open_http})

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with journal, service:
            yield

    app = FastAPI(title="Summaries", lifespan=lifespan)

    @app.post("/summaries")
    async def create(texts: list[str], request: Request) -> Answer:
        """Return a summary of each text."""
        run = await service.start(summaries, {"texts": texts})
        report = await service.answer(run, request)
        report.raise_for_failures()
        return Answer(summaries=report["summarize"].output, worker=os.getpid())

    @app.get("/limit")
    async def limit() -> dict[str, int | float | None]:
        """What this worker has of the limit now."""
        stats = provider.stats()
        return {
            "worker": os.getpid(),
            "share": stats.share,
            "in_use": stats.in_use,
            "paused_ms": stats.paused_ms,
        }

    return app


app = create_app()
