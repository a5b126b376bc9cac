"""The page on which a browser shows the token once."""

from __future__ import annotations

from urllib.parse import parse_qs

from starlette.requests import Request
from starlette.responses import Response

from asyncflow._web_pages import asked_url, path_in, problem, render, route_of
from asyncflow._web_token import Token

__all__ = ["ask", "check"]

_MOST_BYTES = 8_192


async def ask(request: Request) -> Response:
    """Answer what shows no token: with the form for it, or a program with what it has to send."""
    if route_of(request).startswith(("/api/", "/events/")) or request.method not in ("GET", "HEAD"):
        refusal = problem(
            request,
            401,
            "The token is missing",
            "Send it as a header, Authorization: Bearer …, or log in with a browser first.",
        )
        refusal.headers["www-authenticate"] = "Bearer"
        return refusal
    return _form(request, 401, asked_url(request))


async def check(request: Request, token: Token) -> Response:
    """Answer the form: with the page that was asked for first, or with the form once more."""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > _MOST_BYTES:
            return problem(request, 413, "That is too long", "A token is not as long as that.")
    fields = parse_qs(body.decode("utf-8", "replace"))
    shown, asked = (fields.get(name, [""])[0] for name in ("token", "then"))
    asked = asked or path_in(request, "/")
    if token.is_equal_to(shown.strip()):
        return token.admitted(request, asked)
    return _form(request, 401, asked, is_wrong=True)


def _form(request: Request, status: int, asked: str, *, is_wrong: bool = False) -> Response:
    return render(
        request,
        "web_login.html",
        status,
        action=path_in(request, "/login"),
        asked=asked,
        is_wrong=is_wrong,
    )
