"""The page of one run, and the parts of it by which it follows the run."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeAlias

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from asyncflow._core.errors import JournalError, RunNotFoundError
from asyncflow._core.history.replay import AskedSignals
from asyncflow._core.history.results import RunStatus
from asyncflow._core.text import escape_controls
from asyncflow._views.next_command import PLACEHOLDER, command_of
from asyncflow._views.notes import NOTES, RunNotes
from asyncflow._views.run_view import RunView
from asyncflow._views.signal_form import field_of
from asyncflow._views.waiting import is_queued
from asyncflow.events import Event
from asyncflow.html_report._event_log import event_log
from asyncflow.html_report._page import Live, details, page, page_policy, sections
from asyncflow.html_report._page_model import NestedRun, PageContext, RelatedRuns
from asyncflow.journal._base import SQLJournal
from asyncflow.journal._read.queries import (
    UNENDED,
    USUAL_RUNS,
    RunRecord,
    StoredEvent,
    listed_status,
)
from asyncflow.journal._read.streams import MOST_ROWS, latest_streamed
from asyncflow.web._compare_page import compare_url
from asyncflow.web._feed import PagePart, PageParts, Prepare, Render, RunFeeds, now_of
from asyncflow.web._notes import attachments_url
from asyncflow.web._responses import (
    asset_url,
    html_answer,
    link_to,
    path_in,
    problem,
)
from asyncflow.web._resumer import Resumer
from asyncflow.web._stream import ChangeStream

ACTIONS = "live"
"""The part that has the actions on the run."""


def position_of(text: str | None) -> int:
    """Return the position that a browser has seen; 0 if it has seen none, or does not say."""
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 16 else 0


_Noted: TypeAlias = tuple[Sequence[StoredEvent], Sequence[StoredEvent]]
"""The notes of a run, and what it has streamed last."""

_MOST_NESTED = 200
"""How many of the runs that its steps have started a page links to, the latest ones."""


async def run_page(request: Request, journal: SQLJournal, resumer: Resumer) -> Response:
    run_id = request.path_params["run_id"]
    stored = await journal.events(run_id)
    record = await journal.record(run_id)
    if not stored:
        text = f"Run {run_id!r} has no events yet. Load the page again."
        return problem(request, 404, "The run has not begun", text, links=_home(request))
    noted = await journal.notes(run_id), await latest_streamed(journal, run_id)
    passed = await journal.last_passed(run_id)
    live = Live(
        events=f"{link_to(request, 'events', run_id)}?after={stored[-1].position}",
        parts=f"{link_to(request, 'parts', run_id)}?started={record.started_at!r}",
        cancel=link_to(request, "cancel", run_id),
        resume=link_to(request, "resume", run_id),
        rerun=f"{link_to(request, 'api/runs', run_id)}/rerun",
        signal=f"{link_to(request, 'api/runs', run_id)}/signal",
        script=asset_url(request, "live.js"),
        runs=path_in(request, "/"),
        compare=compare_url(request, run_id) if passed else None,
        details=link_to(request, "details", run_id),
        notes=f"{link_to(request, 'api/runs', run_id)}/notes",
        pipeline=link_to(request, "pipelines", record.pipeline),
    )
    context = await _context(request, journal, record, resumer, await _usual(journal, record))
    html = await asyncio.to_thread(_made, stored, noted, record, context, live)
    policy = f"{page_policy(is_live=True)}; frame-ancestors 'none'"
    return html_answer(html, headers={"content-security-policy": policy})


def _made(
    stored: Sequence[StoredEvent],
    noted: _Noted,
    record: RunRecord,
    context: PageContext,
    live: Live,
) -> str:
    events = [each.event for each in stored]
    view = RunView(events)
    context = context._replace(notes=_notes_of(noted))
    return page(view, event_log(events), context, now_ms=now_of(view, record), live=live)


async def _context(
    request: Request,
    journal: SQLJournal,
    record: RunRecord,
    resumer: Resumer,
    usual: Mapping[str, Any],
) -> PageContext:
    """Return what the page of a run says beside its events and notes.

    ``usual`` is how long that usually takes.
    """
    return PageContext(
        is_orphaned=record.status is RunStatus.ORPHANED,
        wait=record.waits_for,
        resume=_resume_command(journal, record, resumer),
        related=await _related(request, journal, record),
        attachments_url=attachments_url(request, record.run_id),
        **usual,
    )


async def _related(request: Request, journal: SQLJournal, record: RunRecord) -> RelatedRuns:
    """Return the runs that the page of a run links to: those that the journal has."""
    urls: dict[str, str] = {}
    for run_id in filter(None, (record.parent, record.rerun_of)):
        with suppress(RunNotFoundError):
            urls[run_id] = link_to(request, "runs", (await journal.record(run_id)).run_id)
    nested: dict[str, list[NestedRun]] = {}
    for each in reversed(await journal.runs(parent=record.run_id, limit=_MOST_NESTED)):
        run = NestedRun(each.run_id, link_to(request, "runs", each.run_id), listed_status(each))
        nested.setdefault(each.parent_step, []).append(run)
    return RelatedRuns(urls, nested)


async def _usual(journal: SQLJournal, record: RunRecord) -> dict[str, Any]:
    """Return how long a run and its steps usually take; nothing if its pipeline has no name."""
    if not record.pipeline:
        return {}
    found = await journal.statistics(record.pipeline, runs=USUAL_RUNS)
    run_ms = await journal.usual_ms(record.pipeline)
    return {"usual_ms": found.usual_ms, "usual_run_ms": run_ms}


def _notes_of(noted: _Noted) -> RunNotes:
    notes = RunNotes(with_pictures=False)
    for each in noted[0]:
        assert isinstance(each.event, NOTES)
        notes.apply(each.event, each.position)
    notes.apply_streamed([each.event for each in noted[1]], is_all=len(noted[1]) < MOST_ROWS)
    return notes


def _resume_command(journal: SQLJournal, record: RunRecord, resumer: Resumer) -> str:
    """Return the command that resumes a run, as far as this server knows it.

    It is empty if the page has a button for that.
    """
    if resumer.can_resume(record):
        return ""
    path = getattr(journal, "path", None)
    where = "JOURNAL" if path in (None, ":memory:") else str(path)
    return command_of("resume", record.run_id, PLACEHOLDER, journal=where)


async def show_details(request: Request, journal: SQLJournal, resumer: Resumer) -> Response:
    """Answer with the details of one step, whole, as a part of the page."""
    run_id, step = request.path_params["run_id"], request.query_params.get("step", "")
    stored = await journal.events(run_id)
    streamed = await latest_streamed(journal, run_id, step=step)
    noted = await journal.notes(run_id, step=step), streamed
    record = await journal.record(run_id)
    context = await _context(request, journal, record, resumer, await _usual(journal, record))
    html = await asyncio.to_thread(_made_details, stored, noted, record, context, step)
    if html is None:
        raise HTTPException(404)
    return html_answer(html)


def _made_details(
    stored: Sequence[StoredEvent],
    noted: _Noted,
    record: RunRecord,
    context: PageContext,
    step: str,
) -> str | None:
    view = RunView(each.event for each in stored)
    if step not in view.steps:
        return None
    context = context._replace(notes=_notes_of(noted))
    return details(view, step, context, now_ms=now_of(view, record))


async def follow(
    request: Request, journal: SQLJournal, feeds: RunFeeds, resumer: Resumer
) -> Response:
    """Answer with the stream that tells when a run has changed."""
    run_id = request.path_params["run_id"]
    after = position_of(request.query_params.get("after"))
    is_over = False
    with suppress(JournalError):  # the request for the parts receives it
        is_over = await _is_over(journal, await journal.record(run_id), after)
    if request.method == "HEAD":
        return Response(media_type="text/event-stream")
    changes = feeds.changes(run_id, _preparation(request, journal, resumer))
    return ChangeStream(_once() if is_over else changes)


async def _once() -> AsyncGenerator[None, None]:
    yield


async def show_parts(
    request: Request, journal: SQLJournal, feeds: RunFeeds, resumer: Resumer
) -> Response:
    """Answer with the parts of a page that the browser does not have, as JSON.

    The query says when the run of the page started: it may have been deleted, and its id be that of
    another one now, which has a page of its own.
    """
    run_id, query = request.path_params["run_id"], request.query_params
    after, have = position_of(query.get("after")), query.get("have", "").split(",")
    record = await journal.record(run_id)
    is_same = query.get("started") in (None, repr(record.started_at)) or record.damaged
    if not is_same:
        found = PageParts(after, {}, has_ended=False)
    # Without a feed, the whole run would be read to find that its page has all but the actions.
    elif not feeds.has(run_id) and await _is_over(journal, record, after):
        actions = _actions(None, record, resumer, await resumer.preview(record))
        found = PageParts(after, {ACTIONS: PagePart.of(actions)}, has_ended=True)
    else:
        found = await feeds.parts(run_id, _preparation(request, journal, resumer), after)
    position, parts, has_ended = found
    end = "ended" if has_ended else None if is_same else "reload"
    sections = b",".join(
        b'"%b":["%b",%b]' % (name.encode(), part.digest.encode(), part.json)
        for name, part in parts.items()
        if f"{name}:{part.digest}" not in have  # two parts may be equally empty
    )
    rest = json.dumps({"position": position, "end": end}).encode()[1:]
    return Response(b'{"sections":{%b},%b' % (sections, rest), media_type="application/json")


async def _is_over(journal: SQLJournal, record: RunRecord, after: int) -> bool:
    """Return whether a run has ended, and has no event after a position that a page has seen."""
    is_over = after > 0 and record.status not in UNENDED
    return is_over and not await journal.events(record.run_id, after)


def _preparation(request: Request, journal: SQLJournal, resumer: Resumer) -> Prepare:
    """Return what the feed of a run renders its parts with."""
    usual: dict[str, Any] | None = None

    async def prepare(record: RunRecord, answered: Collection[str]) -> Render:
        nonlocal usual
        if usual is None:
            usual = await _usual(journal, record)
        context = await _context(request, journal, record, resumer, usual)
        preview = await resumer.preview(record)

        def render(view: RunView, events: Sequence[Event], notes: RunNotes) -> dict[str, Any]:
            now = context._replace(notes=notes)
            parts = sections(view, event_log(events), now, now_ms=now_of(view, record))
            actions = _actions(view, record, resumer, preview, answered, context.resume)
            return {**parts, ACTIONS: actions}

        return render

    return prepare


def _actions(
    view: RunView | None,
    record: RunRecord,
    resumer: Resumer,
    preview: str,
    answered: Collection[str] = (),
    command: str = "",
) -> dict[str, Any]:
    """Return the actions on a run, and a note about them, for the script of the page."""
    is_running = record.status is RunStatus.RUNNING
    is_left = record.status is RunStatus.ORPHANED or record.cause in ("drained", "resource")
    stops = is_running and view is not None and view.stop_reason is not None
    can_resume, is_waiting = resumer.can_resume(record), record.status is RunStatus.WAITING
    needs_nothing = is_running or is_waiting or record.status is RunStatus.PASSED
    needs_pipeline = not needs_nothing and not can_resume
    signals = AskedSignals() if view is None else view.signals
    waits = signals.waits if record.status in UNENDED else ()
    # What this server's version of the pipeline takes: a run that waits asks for that then.
    schemas = {**signals.schemas, **resumer.schemas(record.pipeline)}
    return {
        "cancel": (is_running and not stops) or is_left or is_waiting,
        "resume": can_resume,
        "preview": preview,
        "rerun": resumer.rerun_options(record),
        "note": "to resume it here, give this server its pipeline" if needs_pipeline else "",
        "orphaned": record.status is RunStatus.ORPHANED,
        "waiting": is_waiting,
        "queued": is_queued(record.waits_for),
        "signals": {
            name: {"kind": "answered"} if name in answered else field_of(schemas.get(name, {}))
            for name in waits
        },
        "places": {} if view is None else {n: at for at, n in enumerate(view.steps) if n in waits},
        "next": _next_of(record, resumer, command) if waits else "",
    }


def _next_of(record: RunRecord, resumer: Resumer, command: str) -> str:
    """Return how a run goes on that has an answer and that no process runs."""
    if record.status is RunStatus.RUNNING:
        return "The run takes it."
    if not record.pipeline:
        return f"To continue the run: {command}"
    soon = " within a second" if record.status is RunStatus.WAITING else ""
    service = f"A service with pipeline {record.pipeline!r} continues the run{soon}"
    how = "resume it here" if resumer.can_resume(record) else command
    return escape_controls(f"{service}; without one, {how}.")


def _home(request: Request) -> list[tuple[str, str]]:
    return [("All runs", path_in(request, "/"))]
