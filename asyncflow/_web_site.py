"""The pages, put together: which path leads where, and what answers when something goes wrong."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from starlette.convertors import Convertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from asyncflow._core.errors import JournalError, RunNotFoundError
from asyncflow._runs_page import runs_page
from asyncflow._web_actions import cancel, resume
from asyncflow._web_api import list_runs, tell_run
from asyncflow._web_feed import Feeds
from asyncflow._web_guard import Guard
from asyncflow._web_journal import RunsJournal
from asyncflow._web_login import ask, check
from asyncflow._web_pages import asset, path_in, problem
from asyncflow._web_resume import Resumer
from asyncflow._web_run import follow, run_page, unknown_run
from asyncflow._web_token import Token

__all__ = ["Site"]


class _RunConvertor(Convertor[str]):
    """An id in a path, with all slashes and line breaks that it has.

    That of the library for paths has no line breaks, and leaves out one at the end.
    """

    regex = "(?s:.*)"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("asyncflow_run", _RunConvertor())


class Site:
    """The pages of one journal.

    Args:
        journal: The journal.
        pipelines: The pipelines whose runs can be resumed.
        secret: The token that is asked for, if any.
        hosts: Under which names the pages may be asked for, beside those of this machine.
    """

    def __init__(
        self,
        journal: RunsJournal,
        pipelines: Mapping[str, Any] | None,
        secret: str | None,
        hosts: Iterable[str] | None,
    ) -> None:
        self._journal = journal
        self._token = None if secret is None else Token(secret)
        self._hosts = () if hosts is None and secret is None else hosts
        self._feeds = Feeds(journal)
        self.resumer = Resumer(journal, pipelines or {})

    def end_streams(self) -> None:
        """Let go all who follow a run."""
        self._feeds.close()

    @property
    def middleware(self) -> Sequence[Middleware]:
        """What every request goes through."""
        return [Middleware(Guard, token=self._token, hosts=self._hosts, login=ask)]

    @property
    def routes(self) -> Sequence[Route]:
        """Which path leads where. An id may have slashes in it, so it comes last."""
        act = ["POST"]
        return [
            Route("/", self._runs),
            Route("/runs/{run_id:asyncflow_run}", self._run),
            Route("/events/{run_id:asyncflow_run}", self._follow),
            Route("/cancel/{run_id:asyncflow_run}", self._cancel, methods=act),
            Route("/resume/{run_id:asyncflow_run}", self._resume, methods=act),
            Route("/api/runs", self._api_runs),
            Route("/api/runs/{run_id:asyncflow_run}", self._api_run),
            Route("/login", self._login, methods=act),
            Route("/assets/{name}", asset),
        ]

    @property
    def exception_handlers(self) -> Mapping[Any, Any]:
        """What answers in place of what has failed."""
        return {
            RunNotFoundError: self._unknown,
            JournalError: _unreadable,
            HTTPException: _no_such_page,
        }

    async def _runs(self, request: Request) -> Response:
        return await runs_page(request, self._journal, self.resumer.names)

    async def _run(self, request: Request) -> Response:
        return await run_page(request, self._journal)

    async def _follow(self, request: Request) -> Response:
        return await follow(request, self._journal, self._feeds, self.resumer)

    async def _cancel(self, request: Request) -> Response:
        return await cancel(request, self._journal)

    async def _resume(self, request: Request) -> Response:
        return await resume(request, self._journal, self.resumer)

    async def _api_runs(self, request: Request) -> Response:
        return await list_runs(request, self._journal)

    async def _api_run(self, request: Request) -> Response:
        return await tell_run(request, self._journal)

    async def _login(self, request: Request) -> Response:
        if self._token is None:
            raise HTTPException(404)
        return await check(request, self._token)

    async def _unknown(self, request: Request, error: RunNotFoundError) -> Response:
        return await unknown_run(request, self._journal, error)


async def _unreadable(request: Request, error: JournalError) -> Response:
    text = f"{error}. Nothing was done. When that is mended, load the page again."
    return problem(request, 503, "The journal can't be read", text)


async def _no_such_page(request: Request, error: HTTPException) -> Response:
    if error.status_code == 405:
        allowed = ", ".join(sorted((error.headers or {}).get("Allow", "").split(", ")))
        text = f"This path takes {allowed} only."
        answer = problem(request, 405, "That can't be done here", text)
        answer.headers["allow"] = allowed
        return answer
    links = [("All runs", path_in(request, "/"))]
    text = "The address leads to no page of this server."
    return problem(request, error.status_code, "There is no such page", text, links=links)
