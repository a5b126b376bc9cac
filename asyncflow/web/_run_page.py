"""The page of one run, and the stream of updates by which it follows the run."""

from __future__ import annotations

import asyncio
import difflib
import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress

from sse_starlette import EventSourceResponse, ServerSentEvent
from sse_starlette.sse import SendTimeoutError
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from asyncflow._core.errors import JournalError, RunNotFoundError
from asyncflow._views.run_view import RunView
from asyncflow.events import Event
from asyncflow.html_report._event_log import event_log
from asyncflow.html_report._page import Live, page, page_policy, sections
from asyncflow.journal._queries import RunRecord, StoredEvent
from asyncflow.web._feed import RunFeeds, Update, now_of
from asyncflow.web._responses import (
    asset_url,
    html_answer,
    json_answer,
    link_to,
    named_run,
    path_in,
    problem,
    wants_json,
)
from asyncflow.web._resumer import Resumer, RunsJournal

__all__ = [
    "UpdateStream",
    "follow",
    "position_of",
    "run_page",
    "unknown_run",
]

_PING_S = 5.0
"""How often the stream says that the server is alive."""
_PATIENCE_S = 30.0
"""How long a browser may take to read what it is sent."""
_RETRY_MS = 1_000
"""How long a browser waits before it connects again."""


class UpdateStream(EventSourceResponse):
    """A response of Server-Sent Events that lasts as long as there may be updates."""

    def __init__(self, updates: AsyncGenerator[Update, None]) -> None:
        super().__init__(
            _events_of(updates),
            ping=_PING_S,
            # An event, because a script can't see comments.
            ping_message_factory=lambda: ServerSentEvent("", event="ping"),
            send_timeout=_PATIENCE_S,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        except* SendTimeoutError:  # in a group before sse-starlette 3.3
            pass  # the browser may connect again


async def _events_of(
    updates: AsyncGenerator[Update, None],
) -> AsyncGenerator[ServerSentEvent | bytes, None]:
    yield ServerSentEvent("", event="ping", retry=_RETRY_MS)
    async with aclosing(updates):
        async for update in updates:
            yield _encoded(update)


def _encoded(update: Update) -> bytes:
    """Return an event of the stream.

    The library would look for line breaks, which JSON does not have. For the page of a large run
    this takes a tenth of the time, in the event loop.
    """
    fields = {"sections": update.sections, "trouble": update.trouble, "end": update.end}
    data = json.dumps(fields, ensure_ascii=False, separators=(",", ":"))
    return f"id: {update.position}\r\nevent: update\r\ndata: {data}\r\n\r\n".encode(
        "utf-8", "backslashreplace"
    )


def position_of(text: str | None) -> int:
    """Return the position that a browser has seen; 0 if it has seen none, or does not say."""
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 16 else 0


_ACTIONS = "live"
"""The part of an update that has the actions on the run, as JSON."""
_MOST_NEAREST, _MOST_SOUGHT = 5, 1_000


async def run_page(request: Request, journal: RunsJournal) -> Response:
    """Answer with the page of a run.

    Raises:
        RunNotFoundError: There is no such run.
    """
    run_id = named_run(request)
    stored = await journal.events(run_id)
    record = await journal.record(run_id)
    if not stored:
        text = f"Run {run_id!r} has no events yet. Load the page again."
        return problem(request, 404, "The run has not begun", text, links=_home(request))
    live = Live(
        events_url=f"{link_to(request, 'events', run_id)}?after={stored[-1].position}",
        cancel_url=link_to(request, "cancel", run_id),
        resume_url=link_to(request, "resume", run_id),
        script_url=asset_url(request, "live.js"),
        runs_url=path_in(request, "/"),
    )
    html = await asyncio.to_thread(_made, stored, record, live)
    policy = f"{page_policy(is_live=True)}; frame-ancestors 'none'"
    return html_answer(html, headers={"content-security-policy": policy})


def _made(stored: Sequence[StoredEvent], record: RunRecord, live: Live) -> str:
    events = [each.event for each in stored]
    view = RunView(events)
    now_ms = now_of(view, record)
    return page(view, event_log(events), now_ms=now_ms, live=live, is_orphaned=record.orphaned)


async def follow(
    request: Request, journal: RunsJournal, feeds: RunFeeds, resumer: Resumer
) -> Response:
    """Answer with the stream of what changes in a run after what the browser has seen."""
    run_id = named_run(request)
    after = position_of(request.headers.get("last-event-id") or request.query_params.get("after"))
    if wants_json(request):  # a page that has seen the end polls
        return json_answer({"more": not await _is_over(journal, run_id, after)})
    return UpdateStream(_updates(run_id, after, journal, feeds, resumer))


async def _is_over(journal: RunsJournal, run_id: str, after: int) -> bool:
    """Return whether a run has ended, without an event after a position."""
    record = await journal.record(run_id)
    return record.status != "running" and not await journal.events(run_id, after)


async def _updates(
    run_id: str, after: int, journal: RunsJournal, feeds: RunFeeds, resumer: Resumer
) -> AsyncGenerator[Update, None]:
    with suppress(JournalError, RunNotFoundError):  # the feed reports it
        if after and await _is_over(journal, run_id, after):
            actions = _actions(None, await journal.record(run_id), resumer)
            yield Update(after, {_ACTIONS: actions}, None, "ended")
            return

    def render(
        view: RunView, events: Sequence[Event], record: RunRecord, now_ms: float
    ) -> dict[str, str]:
        parts = sections(view, event_log(events), now_ms=now_ms, is_orphaned=record.orphaned)
        return {**parts, _ACTIONS: _actions(view, record, resumer)}

    async with aclosing(feeds.updates(run_id, after, render)) as updates:
        async for update in updates:
            yield update


def _actions(view: RunView | None, record: RunRecord, resumer: Resumer) -> str:
    """Return the actions on a run, and a note about them, as JSON."""
    is_running = record.status == "running" and not record.orphaned
    stops = is_running and view is not None and view.stop_reason is not None
    can_resume = resumer.can_resume(record)
    note = "orphaned: its process is gone" if record.orphaned else ""
    if not is_running and record.status != "passed" and not can_resume:
        hint = "to resume it here, give this server its pipeline"
        note = f"{note}; {hint}" if note else hint
    return json.dumps({"cancel": is_running and not stops, "resume": can_resume, "note": note})


async def unknown_run(request: Request, journal: RunsJournal, error: RunNotFoundError) -> Response:
    """Answer a request for an unknown run with those that it may mean."""
    ids = [record.run_id for record in await journal.runs(limit=_MOST_SOUGHT)]
    near = difflib.get_close_matches(error.run_id, ids, n=_MOST_NEAREST, cutoff=0.4)
    links = [(run_id, link_to(request, "runs", run_id)) for run_id in near]
    text = f"The journal has no run {error.run_id!r}. It may have been pruned."
    if near:
        text += f" Did you mean {' or '.join(map(repr, near))}?"
    return problem(request, 404, "There is no such run", text, links=[*links, *_home(request)])


def _home(request: Request) -> list[tuple[str, str]]:
    return [("All runs", path_in(request, "/"))]
