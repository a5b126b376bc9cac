"""The pages around a run: what they are made of, and what they say when something is wrong."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cache, partial
from typing import Any
from urllib.parse import quote, unquote

from jinja2 import Environment, FunctionLoader, StrictUndefined
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from asyncflow.html_report._page import asset

__all__ = [
    "asked_url",
    "asset_response",
    "asset_url",
    "html_answer",
    "json_answer",
    "link_to",
    "named_run",
    "path_in",
    "problem",
    "render",
    "route_of",
    "wants_json",
]

_SERVED = {
    "page.css": ("text/css", "asyncflow.html_report"),
    "web.css": ("text/css", "asyncflow.web"),
    "live.js": ("text/javascript", "asyncflow.web"),
    "runs.js": ("text/javascript", "asyncflow.web"),
}
"""The media type of each file that the server hands out, and the package that it is in."""
_NO_TEXT = "\ufffd"
"""What a server puts in a path in place of bytes that are no UTF-8."""
_A_YEAR = "public, max-age=31536000, immutable"

_TEMPLATES = Environment(
    loader=FunctionLoader(partial(asset, package="asyncflow.web")),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def path_in(request: Request, path: str) -> str:
    """Return the path of one of our pages, for a browser: the app may be mounted below others."""
    root: str = request.scope.get("root_path", "")
    return quote(root.rstrip("/")) + path


def route_of(request: Request) -> str:
    """Return which of our pages is asked for: its path without what the app is mounted below."""
    path: str = request.scope["path"]
    return path.removeprefix(request.scope.get("root_path", ""))


def asked_url(request: Request) -> str:
    """Return the path and the query that a request asks for, so that they can be asked for again.

    As it was sent: in the path that a server has decoded, nobody can tell what of an id a slash is.
    """
    path: str = request.scope["path"]
    sent = _sent_path(request)
    return (sent if unquote(sent) == path else quote(path)) + (
        f"?{request.url.query}" if request.url.query else ""
    )


def named_run(request: Request) -> str:
    """Return the id of the run that a path names.

    Raises:
        HTTPException: It names none: what was sent is no text.
    """
    run_id: str = request.path_params["run_id"]
    if _NO_TEXT in run_id:  # or it is a run with that sign in its id
        try:
            unquote(_sent_path(request), errors="strict")
        except UnicodeDecodeError:
            raise HTTPException(404) from None
    return run_id


def _sent_path(request: Request) -> str:
    """Return a path as it was sent, if the server tells."""
    sent: bytes = request.scope.get("raw_path") or b""
    return sent.decode("ascii", "replace")


def wants_json(request: Request) -> bool:
    """Return whether a request was sent by a program, or a script, rather than by its reader."""
    accepted = request.headers.get("accept", "")
    return route_of(request).startswith("/api/") or "application/json" in accepted


def link_to(request: Request, what: str, run_id: str) -> str:
    """Return the path of a run's page, or of what acts on it."""
    return path_in(request, f"/{what}/{quote(run_id, safe='')}")


def asset_url(request: Request, name: str) -> str:
    """Return the path of a style sheet or a script: another one when what is in it has changed."""
    return path_in(request, f"/assets/{name}?v={_digest_of(name)}")


def render(request: Request, template: str, status: int = 200, **values: Any) -> Response:
    """Return a page."""
    html = _TEMPLATES.get_template(template).render(
        nonce=request.scope["asyncflow.nonce"],
        home=path_in(request, "/"),
        asset_url=partial(asset_url, request),
        **values,
    )
    return html_answer(html, status)


def html_answer(html: str, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return a page as it is sent. A text of the user's may be no Unicode."""
    return HTMLResponse(html.encode("utf-8", "backslashreplace"), status, headers)


def json_answer(value: Any, status: int = 200) -> Response:
    """Return a value as it is sent, in JSON, which can have texts that are no Unicode."""
    body = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return Response(body, status, media_type="application/json")


def problem(
    request: Request,
    status: int,
    title: str,
    text: str,
    *,
    links: list[tuple[str, str]] | None = None,
) -> Response:
    """Return a page that says what is wrong and what to do; or for a program, the same in JSON.

    Args:
        request: What can't be answered as it was asked.
        status: The HTTP status.
        title: What is wrong, in a few words.
        text: What it means, and what to do.
        links: Where to go from here, each with its words.
    """
    if wants_json(request):
        return json_answer({"error": title, "detail": text}, status)
    told = {"number": status, "title": title, "text": text, "links": links}
    return render(request, "problem.html", status, **told)


def asset_response(request: Request) -> Response:
    """Answer with a style sheet or a script, which a browser may keep."""
    name = request.path_params["name"]
    if name not in _SERVED:
        return problem(request, 404, "There is no such file", "This server has no file like that.")
    media_type, package = _SERVED[name]
    text = asset(name, package)
    return Response(text, media_type=media_type, headers={"cache-control": _A_YEAR})


@cache
def _digest_of(name: str) -> str:
    return hashlib.sha256(asset(name, _SERVED[name][1]).encode()).hexdigest()[:12]
