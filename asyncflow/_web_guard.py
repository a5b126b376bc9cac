"""Which requests may see the pages, and which may act."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Iterable
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import URL, MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from asyncflow._web_pages import asked_url, problem, route_of
from asyncflow._web_token import Token

__all__ = ["Guard", "is_loopback"]

_SAFE = ("GET", "HEAD", "OPTIONS")
_OURS = ("same-origin", "none")
"""Where a request comes from that a browser sends for one of our pages, or for its user."""

Answer = Callable[[Request], Awaitable[Response]]


class Guard:
    """What every request goes through, and every response.

    Args:
        app: What answers those that pass.
        token: What has to be shown, if anything.
        hosts: Under which names the pages may be asked for, without ports; ``None`` for any.
        login: What answers those that show no token.
    """

    def __init__(
        self, app: ASGIApp, *, token: Token | None, hosts: Iterable[str] | None, login: Answer
    ) -> None:
        self._app = app
        self._token = token
        self._hosts = None if hosts is None else frozenset(name.lower() for name in hosts)
        self._login = login

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope["asyncflow.nonce"] = nonce = secrets.token_urlsafe(16)

        async def send_safely(message: Message) -> None:
            if message["type"] == "http.response.start":
                _add_headers(MutableHeaders(scope=message), nonce)
            await send(message)

        request = Request(scope, receive)
        answer = self._refusal(request)
        if answer is None and self._token is not None and not _is_open(request):
            answer = await self._admission(self._token, request)
        await (answer or self._app)(scope, receive, send_safely)

    def _refusal(self, request: Request) -> Response | None:
        host = request.headers.get("host", "")
        name = _name_of(host)
        hosts = self._hosts if name else ()  # it is none, or none that can be read
        # A page of another site could have its own name lead here (DNS rebinding), and read all.
        if hosts is not None and name not in hosts and not is_loopback(name):
            return problem(
                request,
                421,
                "This name is not served here",
                f"The request is for the host {name!r}. Without a token only this machine's own "
                "names are answered. Give the server this one, allowed_hosts=[…], or a token.",
            )
        if _is_from_elsewhere(request, host):
            return problem(
                request,
                403,
                "Another site has sent this",
                "What acts on a run, and what reads its data, must come from a page of this "
                "server. Nothing was done. Open the run here, and use its buttons. Behind a proxy, "
                "have it pass on the header Host as it came.",
            )
        return None

    async def _admission(self, token: Token, request: Request) -> Response | None:
        """Return what is answered in place of a page, if the request shows no token."""
        shown = request.query_params.get("token")
        if shown is not None and request.method in _SAFE and token.is_equal_to(shown):
            return token.admitted(
                request, str(URL(asked_url(request)).remove_query_params("token"))
            )
        return None if token.is_shown_by(request) else await self._login(request)


def is_loopback(host: str) -> bool:
    """Return whether a name or an address is one under which a machine reaches only itself."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _name_of(host: str) -> str:
    """Return the host without its port, and an address of IPv6 without its brackets."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _is_open(request: Request) -> bool:
    """Return whether a request needs no token: what it gets shows nothing of any run."""
    return route_of(request).startswith(("/assets/", "/login"))


def _is_from_elsewhere(request: Request, host: str) -> bool:
    """Return whether the page of another site has had a browser send this.

    A browser tells where a request comes from: most by one header, all by another one when it
    could act. What has neither was sent by no page.
    """
    headers, acts = request.headers, request.method not in _SAFE
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if site is not None:
        # A link from elsewhere may lead here: nothing is told to who has set it.
        is_link = not acts and headers.get("sec-fetch-mode") == "navigate"
        return site not in _OURS and not is_link
    return acts and origin is not None and origin.lower().partition("://")[2] != host.lower()


def _add_headers(headers: MutableHeaders, nonce: str) -> None:
    source = f"'nonce-{nonce}'"
    headers.setdefault(
        "content-security-policy",
        f"default-src 'none'; script-src {source}; style-src {source}; img-src data:; "
        "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    )
    headers["x-content-type-options"] = "nosniff"
    headers["x-frame-options"] = "DENY"
    # Not "no-referrer": a browser would then not tell where a form was sent from.
    headers["referrer-policy"] = "same-origin"
    headers["cross-origin-resource-policy"] = "same-origin"
    headers["cross-origin-opener-policy"] = "same-origin"
    if not headers.get("cache-control", "").startswith("public"):
        headers["cache-control"] = "no-store"
