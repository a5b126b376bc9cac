"""Routes requests to pages, to JSON for programs, and to actions on runs."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from starlette.convertors import Convertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from asyncflow._core.analysis.preview import RunPreview, counts_text, runs_nothing, words_of
from asyncflow._core.errors import (
    JournalError,
    PayloadError,
    RunNotFoundError,
    RunUnreadableError,
)
from asyncflow._core.history.results import RunStatus
from asyncflow._core.pipeline.signal import check_sender
from asyncflow._views.event_text import ended_as
from asyncflow._views.waiting import is_queued
from asyncflow.html_report._page_model import name_text
from asyncflow.journal._base import SQLJournal
from asyncflow.journal._read.queries import record_document
from asyncflow.web._auth import Guard, Token, log_in, login_required
from asyncflow.web._compare_page import compare_page
from asyncflow.web._feed import RunFeeds
from asyncflow.web._notes import attachment, list_notes
from asyncflow.web._pipeline_page import pipeline_api, pipeline_page
from asyncflow.web._responses import (
    asset_response,
    json_answer,
    link_to,
    path_in,
    problem,
    requested_url,
    wants_json,
)
from asyncflow.web._resumer import Resumer, ResumeRefusedError
from asyncflow.web._run_page import follow, run_page, show_details, show_parts
from asyncflow.web._runs_page import query_in, runs_page, selected


async def cancel(request: Request, journal: SQLJournal) -> Response:
    run_id = request.path_params["run_id"]
    record = await journal.record(run_id)
    if await journal.cancel(run_id):
        done = {RunStatus.RUNNING: "cancelling", RunStatus.WAITING: "cancelled"}
        return _done(request, run_id, done.get(record.status, "cancelled-later"))
    record = await journal.record(run_id)  # it may have ended meanwhile
    has = "" if record.status is RunStatus.INTERRUPTED else "has "
    why = f"It has ended already: it {has}{ended_as(record.status)}."
    return _refused(request, run_id, "There is nothing to cancel", why)


async def resume(request: Request, journal: SQLJournal, resumer: Resumer) -> Response:
    run_id = request.path_params["run_id"]
    record = await journal.record(run_id)
    try:
        has_begun = await resumer.resume(record)
    except ResumeRefusedError as error:
        why = f"Run {run_id!r}: {error}."
        return _refused(request, run_id, "The run can't be resumed here", why)
    done = "started" if is_queued(record.waits_for) else "resumed"
    return _done(request, run_id, done if has_begun else "waiting")


async def rerun(request: Request, journal: SQLJournal, resumer: Resumer) -> Response:
    """Rerun a run under a new id, in this process, or say what that would do.

    Raise `HTTPException` if the path is that of a run whose id ends like it.
    """
    if not _ends_in(request, _RERUN):
        raise HTTPException(405, headers={"Allow": "GET"})
    run_id = request.path_params["run_id"]
    record = await journal.record(run_id)
    try:
        wanted, only_previews = await _wanted(request)
    except ValueError as error:
        return problem(request, 400, "The request is invalid", str(error))
    try:
        if only_previews:
            return _previewed(await resumer.preview_of_rerun(record, **wanted))
        new = await resumer.rerun(record, **wanted)
    except ResumeRefusedError as error:
        why = f"Run {run_id!r}: {error}."
        return _refused(request, run_id, "The run can't be rerun here", why)
    if new is None:
        return json_answer({"done": "nothing"})
    url = link_to(request, "runs", new)
    return json_answer({"done": "rerun", "run_id": new, "url": url}, 201)


async def signal(request: Request, journal: SQLJournal, resumer: Resumer) -> Response:
    """Send a value to a step of a run that waits for it.

    Raise `HTTPException` if the path is that of a run whose id ends like it.
    """
    if not _ends_in(request, _SIGNAL):
        raise HTTPException(405, headers={"Allow": "GET"})
    run_id = request.path_params["run_id"]
    try:
        given = await _object_in(request)
        if not {"name", "value"} <= given.keys() <= {"name", "value", "sent_by", "note"}:
            raise ValueError(
                'the request must be an object with "name" and "value"; "sent_by" and "note" may '
                "be there"
            )
        name, value = given["name"], given["value"]
        if not isinstance(name, str):
            raise ValueError('"name" must be a string')
        sent_by, note = given.get("sent_by") or None, given.get("note", "")
        check_sender(sent_by, note)
    except (TypeError, ValueError) as error:
        return problem(request, 400, "The request is invalid", str(error))
    try:
        await resumer.check_signal(run_id, name, value)
        await journal.signal(run_id, name, value, sent_by=sent_by, note=note)
    except (ValueError, PayloadError) as error:
        return _refused(request, run_id, "The value is refused", str(error))
    return json_answer({"done": "stored", "continues": await resumer.continues(run_id)})


def _previewed(preview: RunPreview) -> Response:
    """Answer with what a rerun would do, first the steps that would not just be reused."""
    steps = sorted(preview.values(), key=lambda step: step.decision == "reused")
    shown = [
        {"name": name_text(each.step_name), "decision": each.decision, "words": words_of(each)}
        for each in steps[:_MOST_PREVIEWED]
    ]
    return json_answer(
        {
            "done": "preview",
            "counts": counts_text(preview),
            "runs_nothing": runs_nothing(preview),
            "steps": shown,
            "left_out": len(steps) - len(shown),
        }
    )


async def _wanted(request: Request) -> tuple[dict[str, Any], bool]:
    """Return what the body of a request to rerun a run asks for, and whether it only previews it.

    Raise `ValueError` if it is something else.
    """
    given = await _object_in(request)
    if given.keys() - {"from", "all", "inputs", "preview"}:
        raise ValueError('the request must be an object with "from", "all", "inputs" and "preview"')
    from_steps, inputs = given.get("from", []), given.get("inputs", {})
    everything, only_previews = given.get("all", False), given.get("preview", False)
    if not isinstance(from_steps, list) or not all(isinstance(name, str) for name in from_steps):
        raise ValueError('"from" must be a list of steps')
    if not isinstance(inputs, dict):
        raise ValueError('"inputs" must be an object')
    for name, flag in {"all": everything, "preview": only_previews}.items():
        if not isinstance(flag, bool):
            raise ValueError(f'"{name}" must be true or false')
    wanted = {"from_steps": from_steps, "everything": everything, "inputs": inputs}
    return wanted, only_previews


async def _object_in(request: Request) -> dict[str, Any]:
    """Return the JSON object in the body of a request, which may be empty.

    Raise `ValueError` if it is something else.
    """
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > _MOST_BYTES:
            raise ValueError(f"the request has more than {_MOST_BYTES:,} bytes")
    try:
        given = json.loads(body or b"{}")
    except (ValueError, RecursionError):
        raise ValueError("the request is not JSON") from None
    if not isinstance(given, dict):
        raise ValueError("the request must be an object in JSON")
    return given


def _done(request: Request, run_id: str, what: str) -> Response:
    if wants_json(request):
        return json_answer({"done": what})
    return RedirectResponse(f"{link_to(request, 'runs', run_id)}?done={what}", 303)


def _refused(request: Request, run_id: str, title: str, text: str) -> Response:
    links = [("Back to the run", link_to(request, "runs", run_id))]
    return problem(request, 409, title, text, links=links)


_MOST_BYTES = 1_048_576
_MOST_PREVIEWED = 200
"""How many steps a preview lists for a page."""
_NOTES, _RERUN, _SIGNAL = "/notes", "/rerun", "/signal"
_ATTACHMENT = re.compile(r"/attachments/(\d{1,15})$", re.ASCII)


async def list_runs(request: Request, journal: SQLJournal) -> Response:
    """Answer with the runs that the query selects, and the URL of the next ones."""
    try:
        query = query_in(request.query_params)
        runs, following = await selected(journal, query, time.time())
    except ValueError as error:
        return problem(request, 400, "The query is invalid", str(error))
    url = path_in(request, "/api/runs") + query.url(before=following) if following else None
    return json_answer({"runs": [record_document(record) for record in runs], "next": url})


async def show_run(request: Request, journal: SQLJournal) -> Response:
    """Answer with one run, or with what the end of the path asks for.

    That is its notes, or one of its attachments.
    """
    run_id = request.path_params["run_id"]
    if _ends_in(request, _NOTES):
        return await list_notes(request, journal, run_id.removesuffix(_NOTES))
    if found := _ATTACHMENT.search(_path_as_sent(request)):
        return await attachment(journal, run_id.removesuffix(found[0]), int(found[1]))
    return json_answer(record_document(await journal.record(run_id)))


def _path_as_sent(request: Request) -> str:
    """Return the path of a request, in which a slash of an id is quoted."""
    return requested_url(request).partition("?")[0]


def _ends_in(request: Request, name: str) -> bool:
    return _path_as_sent(request).endswith(name)


class _RunConvertor(Convertor[str]):
    """An id or a name in a path, with slashes and line breaks, which Starlette's ``path`` lacks."""

    regex = "(?s:.*)"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("asyncflow_run", _RunConvertor())


class Site:
    """The pages of one journal.

    ``hosts`` are the host names that requests may use, beside those of this machine.
    """

    def __init__(
        self,
        journal: SQLJournal,
        pipelines: Mapping[str, Any] | None,
        secret: str | None,
        hosts: Iterable[str] | None,
    ) -> None:
        self._journal = journal
        self._token = None if secret is None else Token(secret)
        self._hosts = () if hosts is None and secret is None else hosts
        self._feeds = RunFeeds(journal)
        self.resumer = Resumer(journal, pipelines or {})

    def end_streams(self) -> None:
        self._feeds.close()

    @property
    def middleware(self) -> Sequence[Middleware]:
        return [Middleware(Guard, token=self._token, hosts=self._hosts, login=login_required)]

    @property
    def routes(self) -> Sequence[Route]:
        """Which path leads where. An id may have slashes, so it comes last."""
        journal, resumer, token = self._journal, self.resumer, self._token
        run, act = "{run_id:asyncflow_run}", ["POST"]
        return [
            Route("/", partial(runs_page, journal=journal, pipelines=resumer.names)),
            Route("/runs", _to_runs),
            Route("/compare", partial(compare_page, journal=journal)),
            Route(f"/runs/{run}", partial(run_page, journal=journal, resumer=resumer)),
            Route(
                f"/events/{run}",
                partial(follow, journal=journal, resumer=resumer, feeds=self._feeds),
            ),
            Route(
                f"/parts/{run}",
                partial(show_parts, journal=journal, resumer=resumer, feeds=self._feeds),
            ),
            Route(f"/details/{run}", partial(show_details, journal=journal, resumer=resumer)),
            Route(f"/cancel/{run}", partial(cancel, journal=journal), methods=act),
            Route(f"/resume/{run}", partial(resume, journal=journal, resumer=resumer), methods=act),
            Route(
                "/pipelines/{pipeline:asyncflow_run}",
                partial(pipeline_page, journal=journal),
            ),
            Route(
                "/api/pipelines/{pipeline:asyncflow_run}", partial(pipeline_api, journal=journal)
            ),
            Route("/api/compare", partial(compare_page, journal=journal)),
            Route("/api/runs", partial(list_runs, journal=journal)),
            Route(
                f"/api/runs/{run}/rerun",
                partial(rerun, journal=journal, resumer=resumer),
                methods=act,
            ),
            Route(
                f"/api/runs/{run}/signal",
                partial(signal, journal=journal, resumer=resumer),
                methods=act,
            ),
            Route(f"/api/runs/{run}", partial(show_run, journal=journal)),
            *([Route("/login", partial(log_in, token=token), methods=act)] if token else []),
            Route("/assets/{name}", asset_response),
        ]

    @property
    def exception_handlers(self) -> Mapping[Any, Any]:
        """What answers in place of a handler that failed."""
        return {
            RunNotFoundError: _unknown_run,
            RunUnreadableError: _unreadable_run,
            JournalError: _unreadable,
            HTTPException: _no_such_page,
            ClientDisconnect: _gone,
        }


async def _to_runs(request: Request) -> Response:
    """Redirect a shortened address of a run to the list of all runs."""
    return RedirectResponse(path_in(request, "/"))


async def _unknown_run(request: Request, error: RunNotFoundError) -> Response:
    text = f"The journal has no run {error.run_id!r}. It may have been pruned."
    links = [("All runs", path_in(request, "/"))]
    return problem(request, 404, "There is no such run", text, links=links)


async def _unreadable(request: Request, error: JournalError) -> Response:
    text = f"{error}. Nothing was done. Load the page again once that is fixed."
    return problem(request, 503, "The journal can't be read", text)


async def _gone(request: Request, error: ClientDisconnect) -> Response:
    """Return an answer that no client receives: it left before its request had arrived."""
    return Response(status_code=400)


async def _unreadable_run(request: Request, error: RunUnreadableError) -> Response:
    # Not 503: the journal works, and trying again does not help until the user does something.
    links = [("All runs", path_in(request, "/"))]
    text = f"{error}. Other runs are not affected."
    return problem(request, 409, "The run can't be read", text, links=links)


async def _no_such_page(request: Request, error: HTTPException) -> Response:
    if error.status_code == 405:
        allowed = ", ".join(sorted((error.headers or {}).get("Allow", "").split(", ")))
        text = f"This path takes {allowed} only."
        answer = problem(request, 405, "The method is not allowed", text)
        answer.headers["allow"] = allowed
        return answer
    links = [("All runs", path_in(request, "/"))]
    text = "This server has no page at this address."
    return problem(request, error.status_code, "There is no such page", text, links=links)
