"""What the pages show, in JSON for programs."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from asyncflow._archive import RunRecord, StoredEvent
from asyncflow._core.errors import text_of
from asyncflow._core.results import RestoredOutput, stand_in
from asyncflow._runs_asked import asked_in, runs_asked
from asyncflow._web_journal import RunsJournal
from asyncflow._web_pages import asked_url, json_answer, named_run, path_in, problem

__all__ = ["event_json", "list_runs", "tell_run"]

_EVENTS = "/events"
_DEEPEST = 50
_LONGEST = 2_000


async def list_runs(request: Request, journal: RunsJournal) -> Response:
    """Answer with the runs that the query asks for, and the URL of the ones that follow."""
    try:
        asked = asked_in(request.query_params)
        runs, following = await runs_asked(journal, asked, time.time())
    except ValueError as error:
        return problem(request, 400, "The query can't be read", str(error))
    url = path_in(request, "/api/runs") + asked.query(before=following) if following else None
    return json_answer({"runs": [_record_json(record) for record in runs], "next": url})


async def tell_run(request: Request, journal: RunsJournal) -> Response:
    """Answer with one run, or with its events if the path ends so.

    Raises:
        RunNotFoundError: There is no such run.
    """
    run_id = named_run(request)
    # A slash that belongs to the id is quoted in what was sent.
    if asked_url(request).partition("?")[0].endswith(_EVENTS):
        return await _events(request, journal, run_id.removesuffix(_EVENTS))
    return json_answer(_record_json(await journal.record(run_id)))


async def _events(request: Request, journal: RunsJournal, run_id: str) -> Response:
    after = request.query_params.get("after", "0")
    if not after.isascii() or not after.isdigit() or len(after) > 15:
        detail = f"after must be the position of an event, not {after!r}"
        return problem(request, 400, "The query can't be read", detail)
    stored = await journal.events(run_id, int(after))
    last = stored[-1].position if stored else int(after)
    # There may be hundreds of thousands of them.
    return await asyncio.to_thread(_events_answer, stored, last)


def _events_answer(stored: Sequence[StoredEvent], last: int) -> Response:
    return json_answer({"events": [event_json(each) for each in stored], "last": last})


def _record_json(record: RunRecord) -> dict[str, object]:
    told = {field.name: getattr(record, field.name) for field in fields(record)}
    return {**told, "duration_s": record.duration_s}


def event_json(stored: StoredEvent) -> dict[str, object]:
    """Return an event as JSON has it: its name, its position, and its fields by their names."""
    event = stored.event
    told = {field.name: _json_of(getattr(event, field.name)) for field in fields(event)}
    return {"position": stored.position, "event": type(event).__name__, **told}


def _json_of(value: Any, depth: int = 0) -> Any:
    """Return a value as JSON has it; one that JSON has not, in words."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, str):
        return str(value)  # a status is one, too
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, BaseException):
        return _error_json(value)
    if isinstance(value, RestoredOutput) or depth > _DEEPEST:
        return {"repr": text_of(repr, value)[:_LONGEST]}
    if isinstance(value, list | tuple):
        return [_json_of(each, depth + 1) for each in value]
    if isinstance(value, Mapping):
        return {str(name): _json_of(each, depth + 1) for name, each in value.items()}
    return {"repr": text_of(repr, value)[:_LONGEST]}


def _error_json(error: BaseException) -> dict[str, str]:
    kept = stand_in(error)
    return {"type": kept.type_name, "message": kept.message}
