"""What the steps of a run say, for scripts and programs: log lines, progress and attachments."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any
from urllib.parse import quote

from starlette.datastructures import QueryParams
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from asyncflow._views.notes import is_picture
from asyncflow.events import StepAttached, StepCalled, StepLogged, StepProgressed
from asyncflow.html_report._page import log_lines
from asyncflow.journal._base import SQLJournal
from asyncflow.journal._read.queries import StoredEvent
from asyncflow.web._responses import json_answer, link_to, problem

_MOST, _BY_DEFAULT = 5_000, 1_000
"""How many notes a response has."""
_KINDS = {
    "log": StepLogged,
    "progress": StepProgressed,
    "attachment": StepAttached,
    "call": StepCalled,
}
_LEVELS = logging.getLevelNamesMapping()
_TEXTS = ("application/json", "text/csv", "text/markdown", "text/plain")


def attachments_url(request: Request, run_id: str) -> str:
    """Return the path of the attachments of a run, each of which follows a slash."""
    return f"{link_to(request, 'api/runs', run_id)}/attachments"


async def list_notes(request: Request, journal: SQLJournal, run_id: str) -> Response:
    """Answer with the notes of a run that the query selects.

    With ``html`` these are log lines as its page has them.
    """
    try:
        selection = _selection(request.query_params)
        stored = await journal.notes(run_id, **selection, data=False)
    except ValueError as error:
        return problem(request, 400, "The query is invalid", str(error))
    last = stored[-1].position if stored else selection["after"]
    if "html" in request.query_params:
        logged = [each.event for each in stored if isinstance(each.event, StepLogged)]
        return json_answer({"html": await asyncio.to_thread(log_lines, logged), "last": last})
    base = attachments_url(request, run_id)
    notes = [_as_json(each, base) for each in stored]
    return json_answer({"notes": notes, "last": last})


def _as_json(stored: StoredEvent, base: str) -> dict[str, object]:
    note, position = stored.event, stored.position
    names = [field.name for field in fields(note) if field.name != "data"]
    found = {name: getattr(note, name) for name in names}
    url = {"url": f"{base}/{position}"} if isinstance(note, StepAttached) else {}
    return {"position": position, "event": type(note).__name__, **found, **url}


def _selection(query: QueryParams) -> dict[str, Any]:
    """Return the arguments of the journal for a query.

    Raise `ValueError` if the query is invalid; the message says why.
    """
    kind, level = query.get("kind"), query.get("level")
    if kind is not None and kind not in _KINDS:
        raise ValueError(f"kind must be one of {', '.join(_KINDS)}, not {kind!r}")
    return {
        "after": _number(query, "after") or 0,
        "kinds": None if kind is None else [_KINDS[kind]],
        "step": query.get("step"),
        "item": _number(query, "item"),
        "attempt": _number(query, "attempt"),
        "level": None if level is None else _level(level),
        "text": query.get("text") or None,
        "limit": min(_number(query, "limit") or _BY_DEFAULT, _MOST),
        "newest": query.get("newest", "0") not in ("", "0"),
    }


def _number(query: QueryParams, name: str) -> int | None:
    text = query.get(name)
    if text is None:
        return None
    if not text.isascii() or not text.isdigit() or len(text) > 15:
        raise ValueError(f"{name} must be a number, not {text!r}")
    return int(text)


def _level(text: str) -> int:
    if text.upper() in _LEVELS:
        return _LEVELS[text.upper()]
    if text.isascii() and text.isdigit() and len(text) < 6:
        return int(text)
    raise ValueError(f"level must be a number, or a name such as WARNING, not {text!r}")


async def attachment(journal: SQLJournal, run_id: str, position: int) -> Response:
    """Answer with the data of an attachment, which no browser may run."""
    before = max(position - 1, 0)
    found = await journal.notes(run_id, after=before, kinds=[StepAttached], limit=1)
    note = found[0].event if found and found[0].position == position else None
    if not isinstance(note, StepAttached):
        raise HTTPException(404)
    media_type = note.media_type
    if media_type in _TEXTS:
        media_type = f"{media_type}; charset=utf-8"
    elif not is_picture(media_type):  # whatever the journal calls it
        media_type = "application/octet-stream"
    return Response(note.data, headers={"content-type": media_type, **_inert(note.name)})


def _inert(name: str) -> Mapping[str, str]:
    """Return the headers by which a browser saves a response, and runs nothing in it."""
    plain = re.sub(r"[^\w.-]+", "_", name, flags=re.ASCII)[-100:] or "attachment"
    encoded = quote(name.encode("utf-8", "replace")[:400], safe="")
    return {
        "content-disposition": f"attachment; filename=\"{plain}\"; filename*=UTF-8''{encoded}",
        "content-security-policy": "sandbox; default-src 'none'; frame-ancestors 'none'",
    }
