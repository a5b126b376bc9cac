"""The web service: it starts agents, and gives what they say to any number of browsers."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Header, HTTPException, Request
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic import BaseModel
from sse_starlette import EventSourceResponse

from asyncflow import RunAlreadyActiveError, RunNotFoundError
from asyncflow.journal import SQLiteJournal
from asyncflow.service import Service
from asyncflow.web import app as pages_of

from .pipeline import agents

PAGE = Path(__file__).with_name("page.html")


class Question(BaseModel):
    text: str


def create_app() -> FastAPI:
    """Return the application, with its runs in ``agents.db``."""
    journal = SQLiteJournal("agents.db")
    service = Service(
        [agents], journal=journal, resume_every_s=float(os.environ.get("RESUME_EVERY_S", "30"))
    )
    pages = pages_of(journal, pipelines=service.pipelines)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with journal, service, pages.router.lifespan_context(pages):
            yield

    app = FastAPI(title="Agents", lifespan=lifespan)
    app.mount("/runs-ui", pages)

    @app.get("/")
    async def page() -> HTMLResponse:
        return HTMLResponse(PAGE.read_text(encoding="utf-8"))

    @app.put("/questions/{run_id}", status_code=202)
    async def start(run_id: str, question: Question) -> dict[str, str]:
        """Ask a question. The browser chooses its id, so that a repeated request asks once."""
        try:
            await service.start(agents, {"question": question.text}, run_id=run_id)
        except RunAlreadyActiveError:
            pass
        except ValueError as error:
            raise HTTPException(409, "the id belongs to another question") from error
        return {"page": f"/runs-ui/runs/{run_id}"}

    @app.get("/questions/{run_id}/words")
    async def words(
        run_id: str, last_event_id: Annotated[int, Header()] = 0, after: int = 0
    ) -> EventSourceResponse:
        await journal.record(run_id)  # 404 before the stream begins
        return EventSourceResponse(words_of(run_id, max(after, last_event_id)))

    async def words_of(run_id: str, after: int) -> AsyncIterator[dict[str, Any]]:
        async for each in service.streamed(run_id, "agent", after):
            yield {"id": str(each.position), "data": json.dumps(each.value)}
        report = await journal.report(run_id)
        result = report["agent"]
        end = {"answer": result.output, "error": str(result.error or "") or report.stop_reason}
        yield {"event": "end", "data": json.dumps(end)}

    @app.exception_handler(RunNotFoundError)
    async def not_found(_: Request, error: RunNotFoundError) -> JSONResponse:
        return JSONResponse({"detail": f"there is no question {error.run_id!r}"}, 404)

    return app


app = create_app()
