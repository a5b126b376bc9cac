"""Which requests the pages answer: those with the token, for a known host, not from other sites."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Awaitable, Callable, Iterable
from ipaddress import ip_address
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import URL, MutableHeaders
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from asyncflow.web._responses import path_in, problem, render, requested_url, route_of

_SHORTEST = 16
_A_MONTH_S = 30 * 24 * 3600


class Token:
    """The secret that requests must have. A browser logs in with it, and then has a cookie."""

    def __init__(self, secret: str) -> None:
        if not isinstance(secret, str):
            raise TypeError(f"token must be a str, not {type(secret).__name__}")
        if len(secret) < _SHORTEST:
            raise ValueError(
                f"token must have at least {_SHORTEST} characters, not {len(secret)}; "
                "secrets.token_urlsafe() makes one"
            )
        self._secret = secret.encode("utf-8", "surrogatepass")
        # Servers on one machine share their cookies, whatever their ports.
        self._cookie = f"asyncflow_{self._made_for(b'name')[:8]}"
        self._cookie_value = self._made_for(b"pass")

    def _made_for(self, purpose: bytes) -> str:
        return hmac.new(self._secret, purpose, hashlib.sha256).hexdigest()

    def is_equal_to(self, shown: str) -> bool:
        """Return whether a text is the token, in a time that does not depend on the text."""
        return hmac.compare_digest(shown.encode("utf-8", "surrogatepass"), self._secret)

    def is_in(self, request: Request) -> bool:
        """Return whether a request has the token in a header, or its cookie."""
        scheme, _, shown = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self.is_equal_to(shown.strip()):
            return True
        cookie = request.cookies.get(self._cookie, "")
        return hmac.compare_digest(cookie.encode(), self._cookie_value.encode())

    def admitted(self, request: Request, url: str) -> Response:
        """Return the response that sets the cookie and redirects the browser.

        ``request`` had the token. Of ``url``, where it redirects to, the host is ignored.
        """
        try:
            parts = urlsplit(url)
        except ValueError:  # its host is invalid
            parts = urlsplit(path_in(request, "/"))
        path = "/" + parts.path.lstrip("/\\")  # "//" would begin a host
        response = RedirectResponse(path + (f"?{parts.query}" if parts.query else ""), 303)
        response.set_cookie(
            self._cookie,
            self._cookie_value,
            max_age=_A_MONTH_S,
            path=path_in(request, "/"),
            httponly=True,
            # "strict" would ask for the token again after a link from another site.
            samesite="lax",
            secure=request.url.scheme == "https",
        )
        return response


_SAFE = ("GET", "HEAD", "OPTIONS")
_OURS = ("same-origin", "none")
"""The Sec-Fetch-Site of a request that one of our pages, or the user, caused."""

_Handler = Callable[[Request], Awaitable[Response]]


class Guard:
    """Middleware that refuses requests, and adds security headers to responses.

    ``hosts`` are the host names that requests may use, without ports; ``None`` for any. ``login``
    handles requests without the token.
    """

    def __init__(
        self, app: ASGIApp, *, token: Token | None, hosts: Iterable[str] | None, login: _Handler
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
        hosts = self._hosts if name else ()  # no host, or an invalid one
        # Another site could resolve its own name to this server and read all (DNS rebinding).
        if hosts is not None and name not in hosts and not is_loopback(name):
            return problem(
                request,
                421,
                "This name is not served here",
                f"The request is for the host {name!r}. Without a token, this server answers only "
                "to this machine's own names. Give it the name, allowed_hosts=[…], or a token.",
            )
        if _is_from_elsewhere(request, host):
            return problem(
                request,
                403,
                "Another site sent this request",
                "Requests that act on a run, or read its data, must come from a page of this "
                "server. Nothing was done. Open the run here, and use its buttons. A proxy in "
                "front of this server must pass on the header Host unchanged.",
            )
        return None

    async def _admission(self, token: Token, request: Request) -> Response | None:
        """Return the response to a request without the cookie; ``None`` for any other."""
        shown = request.query_params.get("token")
        if shown is not None and request.method in _SAFE and token.is_equal_to(shown):
            return token.admitted(
                request, str(URL(requested_url(request)).remove_query_params("token"))
            )
        return None if token.is_in(request) else await self._login(request)


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach a host name or an address."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _name_of(host: str) -> str:
    """Return the host without its port, and an IPv6 address without its brackets."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _is_open(request: Request) -> bool:
    """Return whether a request needs no token, because the response shows nothing of any run."""
    return route_of(request).startswith(("/assets/", "/login"))


def _is_from_elsewhere(request: Request, host: str) -> bool:
    """Return whether a page of another site caused a request.

    Most browsers say so in Sec-Fetch-Site, and all send Origin with a request that could act. A
    request with neither comes from no page.
    """
    headers, acts = request.headers, request.method not in _SAFE
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if site is not None:
        # Another site may link here: it can't read the response.
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
    # With "no-referrer" a browser would not say where a form comes from.
    headers["referrer-policy"] = "same-origin"
    headers["cross-origin-resource-policy"] = "same-origin"
    headers["cross-origin-opener-policy"] = "same-origin"
    if not headers.get("cache-control", "").startswith("public"):
        headers["cache-control"] = "no-store"


_MOST_BYTES = 8_192


async def login_required(request: Request) -> Response:
    """Answer a request without the token: with the login form, or with what a program must send."""
    is_for_scripts = route_of(request).startswith(("/api/", "/events/", "/parts/"))
    if is_for_scripts or request.method not in ("GET", "HEAD"):
        refusal = problem(
            request,
            401,
            "The token is missing",
            "Send it as a header, Authorization: Bearer …, or log in with a browser first.",
        )
        refusal.headers["www-authenticate"] = "Bearer"
        return refusal
    return _form(request, 401, requested_url(request))


async def log_in(request: Request, token: Token) -> Response:
    """Answer the login form: with the page that was requested first, or with the form again."""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > _MOST_BYTES:
            return problem(request, 413, "The request is too long", "No token is as long as that.")
    fields = parse_qs(body.decode("utf-8", "replace"))
    shown, then = (fields.get(name, [""])[0] for name in ("token", "then"))
    then = then or path_in(request, "/")
    if token.is_equal_to(shown.strip()):
        return token.admitted(request, then)
    return _form(request, 401, then, is_wrong=True)


def _form(request: Request, status: int, then: str, *, is_wrong: bool = False) -> Response:
    return render(
        request,
        "login.html",
        status,
        action=path_in(request, "/login"),
        then=then,
        is_wrong=is_wrong,
    )
