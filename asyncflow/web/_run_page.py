"""The page of one run, and the updates by which it follows the run."""

from __future__ import annotations

import asyncio
import difflib
import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress

from starlette.requests import Request
from starlette.responses import Response

from asyncflow._core.errors import JournalError, RunNotFoundError
from asyncflow._views.run_view import RunView
from asyncflow.events import Event
from asyncflow.html_report._event_log import event_log
from asyncflow.html_report._page import Live, page, page_policy, sections
from asyncflow.journal._queries import RunRecord, StoredEvent
from asyncflow.web._compare_page import compare_url
from asyncflow.web._feed import ACTIONS, RunFeeds, Update, now_of
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
from asyncflow.web._stream import UpdateStream, Viewers

__all__ = [
    "follow",
    "position_of",
    "run_page",
    "unknown_run",
]


def position_of(text: str | None) -> int:
    """Return the position that a browser has seen; 0 if it has seen none, or does not say."""
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 16 else 0


_AGAIN_S = 10
"""When a page may ask again to follow a run."""
_MOST_NEAREST, _MOST_SOUGHT, _LONGEST_SOUGHT = 5, 1_000, 60
"""Ids are compared in a time that grows with the square of their length, or faster."""


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
    passed = await journal.last_passed(run_id)
    live = Live(
        events_url=f"{link_to(request, 'events', run_id)}?after={stored[-1].position}",
        cancel_url=link_to(request, "cancel", run_id),
        resume_url=link_to(request, "resume", run_id),
        script_url=asset_url(request, "live.js"),
        runs_url=path_in(request, "/"),
        compare_url=compare_url(request, run_id) if passed else None,
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
    request: Request, journal: RunsJournal, feeds: RunFeeds, viewers: Viewers, resumer: Resumer
) -> Response:
    """Answer with the stream of what changes in a run after what the browser has seen."""
    run_id = named_run(request)
    after = position_of(request.headers.get("last-event-id") or request.query_params.get("after"))
    # A page polls when it has seen the end, and when its stream was refused: it can't see why.
    is_poll = wants_json(request)
    if is_poll and await _is_over(journal, run_id, after):
        return json_answer({"more": False})
    if viewers.is_full:
        text = f"{viewers.most} pages follow runs, which is the limit. Try again in {_AGAIN_S} s."
        refusal = problem(request, 503, "There are too many viewers", text)
        refusal.headers["retry-after"] = str(_AGAIN_S)
        return refusal
    if is_poll:
        return json_answer({"more": True})
    if request.method == "HEAD":
        return Response(media_type="text/event-stream")
    return UpdateStream(_updates(run_id, after, journal, feeds, resumer), viewers)


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
            yield Update(after, {ACTIONS: actions}, None, "ended")
            return

    def render(
        view: RunView, events: Sequence[Event], record: RunRecord, now_ms: float
    ) -> dict[str, bytes]:
        parts = sections(view, event_log(events), now_ms=now_ms, is_orphaned=record.orphaned)
        encoded = {name: json.dumps(html).encode() for name, html in parts.items()}
        return {**encoded, ACTIONS: _actions(view, record, resumer)}

    async with aclosing(feeds.updates(run_id, after, render)) as updates:
        async for update in updates:
            yield update


def _actions(view: RunView | None, record: RunRecord, resumer: Resumer) -> bytes:
    """Return the actions on a run, and a note about them, as JSON."""
    is_running = record.status == "running" and not record.orphaned
    stops = is_running and view is not None and view.stop_reason is not None
    can_resume = resumer.can_resume(record)
    needs_pipeline = not is_running and record.status != "passed" and not can_resume
    actions = {
        "cancel": is_running and not stops,
        "resume": can_resume,
        "note": "to resume it here, give this server its pipeline" if needs_pipeline else "",
        "orphaned": record.orphaned,
    }
    return json.dumps(actions).encode()


async def unknown_run(request: Request, journal: RunsJournal, error: RunNotFoundError) -> Response:
    """Answer a request for an unknown run with those that it may mean."""
    ids = [record.run_id for record in await journal.runs(limit=_MOST_SOUGHT)]
    near = await asyncio.to_thread(_nearest, error.run_id, ids)
    links = [(run_id, link_to(request, "runs", run_id)) for run_id in near]
    text = f"The journal has no run {error.run_id!r}. It may have been pruned."
    if near:
        text += f" Did you mean {' or '.join(map(repr, near))}?"
    return problem(request, 404, "There is no such run", text, links=[*links, *_home(request)])


def _nearest(run_id: str, ids: list[str]) -> list[str]:
    if len(run_id) > _LONGEST_SOUGHT:
        return []
    ids = [each for each in ids if len(each) <= _LONGEST_SOUGHT]
    return difflib.get_close_matches(run_id, ids, n=_MOST_NEAREST, cutoff=0.4)


def _home(request: Request) -> list[tuple[str, str]]:
    return [("All runs", path_in(request, "/"))]
