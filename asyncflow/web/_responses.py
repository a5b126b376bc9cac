"""Responses: pages by template, JSON, assets, and what says that something is wrong."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cache, partial
from typing import Any
from urllib.parse import quote, unquote

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from asyncflow.html_report._templates import asset, template

_SERVED = {
    "page.css": ("text/css", "asyncflow.html_report"),
    "web.css": ("text/css", "asyncflow.web"),
    "compare.css": ("text/css", "asyncflow.web"),
    "live.js": ("text/javascript", "asyncflow.web"),
    "runs.js": ("text/javascript", "asyncflow.web"),
    "times.js": ("text/javascript", "asyncflow.html_report"),
    "web.js": ("text/javascript", "asyncflow.web"),
}
"""The media type and the package of each asset that the server sends."""
_A_YEAR = "public, max-age=31536000, immutable"


def path_in(request: Request, path: str) -> str:
    """Return the path of a page for a browser, below the path that the app is mounted at."""
    root: str = request.scope.get("root_path", "")
    return quote(root.rstrip("/")) + path


def route_of(request: Request) -> str:
    """Return the path of a request below the path that the app is mounted at."""
    path: str = request.scope["path"]
    return path.removeprefix(request.scope.get("root_path", ""))


def requested_url(request: Request) -> str:
    """Return the path and the query of a request, so that they can be requested again.

    The path is as it was sent: in a decoded path, a slash of an id looks like any other.
    """
    path: str = request.scope["path"]
    sent = _sent_path(request)
    query = request.scope["query_string"].decode("latin-1")
    return (sent if unquote(sent) == path else quote(path)) + (f"?{query}" if query else "")


def _sent_path(request: Request) -> str:
    """Return a path as it was sent; empty if the server does not say."""
    sent: bytes = request.scope.get("raw_path") or b""
    return sent.decode("ascii", "replace")


def wants_json(request: Request) -> bool:
    """Return whether a program or a script sent a request."""
    accepted = request.headers.get("accept", "")
    return route_of(request).startswith("/api/") or "application/json" in accepted


def link_to(request: Request, what: str, name: str) -> str:
    """Return the path of the page of a run or a pipeline, or of an action on it.

    The name of a pipeline may have lone surrogates, which no path can have.
    """
    return path_in(request, f"/{what}/{quote(name, safe='', errors='replace')}")


def asset_url(request: Request, name: str) -> str:
    """Return the path of a style or a script, which changes with its content."""
    return path_in(request, f"/assets/{name}?v={_digest_of(name)}")


def render(request: Request, name: str, /, status: int = 200, **values: Any) -> Response:
    html = template(f"asyncflow.web/{name}").render(
        nonce=request.scope["asyncflow.nonce"],
        home=path_in(request, "/"),
        asset_url=partial(asset_url, request),
        link=partial(link_to, request),
        **values,
    )
    return html_answer(html, status)


def html_answer(html: str, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return a page. A user's text may have lone surrogates, which UTF-8 lacks."""
    return HTMLResponse(html.encode("utf-8", "backslashreplace"), status, headers)


def json_answer(value: Any, status: int = 200) -> Response:
    """Return a value as JSON, whose escapes can have lone surrogates."""
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
    """Return a page that says what is wrong and what to do; or for a program, the same as JSON.

    ``title`` says what is wrong, in a few words, and ``text`` what that means, and what to do.
    ``links`` say where to go from here: texts and URLs.
    """
    if wants_json(request):
        return json_answer({"error": title, "detail": text}, status)
    return render(
        request, "problem.html", status, number=status, title=title, text=text, links=links
    )


def asset_response(request: Request) -> Response:
    """Answer with a style or a script, which a browser may cache."""
    name = request.path_params["name"]
    if name not in _SERVED:
        return problem(request, 404, "There is no such file", "This server has no file like that.")
    media_type, package = _SERVED[name]
    text = asset(name, package)
    return Response(text, media_type=media_type, headers={"cache-control": _A_YEAR})


@cache
def _digest_of(name: str) -> str:
    return hashlib.sha256(asset(name, _SERVED[name][1]).encode()).hexdigest()[:12]
