"""What people have a run do from a page."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from asyncflow._archive import RunRecord
from asyncflow._web_journal import RunsJournal
from asyncflow._web_pages import json_answer, link_to, named_run, problem, wants_json
from asyncflow._web_resume import Resumer, ResumeRefusedError

__all__ = ["cancel", "resume"]


async def cancel(request: Request, journal: RunsJournal) -> Response:
    """Ask whoever runs a run to stop it.

    Raises:
        RunNotFoundError: There is no such run.
    """
    run_id = named_run(request)
    if await journal.cancel(run_id):
        return _done(request, run_id, "cancelling")
    record = await journal.record(run_id)
    return _refused(request, run_id, "There is nothing to cancel", _why_not(record))


def _why_not(record: RunRecord) -> str:
    if record.orphaned:
        return "Its process is gone, so nobody runs it. It stays as it is until it is resumed."
    ended = "was interrupted" if record.status == "interrupted" else f"has {record.status}"
    return f"It has ended already: it {ended}."


async def resume(request: Request, journal: RunsJournal, resumer: Resumer) -> Response:
    """Go on with a run in this process.

    Raises:
        RunNotFoundError: There is no such run.
    """
    run_id = named_run(request)
    record = await journal.record(run_id)
    try:
        await resumer.resume(record)
    except ResumeRefusedError as error:
        why = f"Run {run_id!r}: {error}."
        return _refused(request, run_id, "The run can't be resumed here", why)
    return _done(request, run_id, "resumed")


def _done(request: Request, run_id: str, what: str) -> Response:
    if wants_json(request):
        return json_answer({"done": what})
    return RedirectResponse(f"{link_to(request, 'runs', run_id)}?done={what}", 303)


def _refused(request: Request, run_id: str, title: str, text: str) -> Response:
    links = [("Back to the run", link_to(request, "runs", run_id))]
    return problem(request, 409, title, text, links=links)
