"""Which requests may see the pages, and which may act.

The token that a server asks for before it shows anything.

The page on which a browser shows the token once.
"""

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

from asyncflow.web._responses import asked_url, path_in, problem, render, route_of

__all__ = [
    "Guard",
    "Token",
    "ask",
    "check",
    "is_loopback",
]

_SHORTEST = 16
_A_MONTH_S = 30 * 24 * 3600


class Token:
    """A secret that whoever wants to see the pages must know.

    A browser shows it once, and then a cookie that was made from it.

    Args:
        secret: The secret.

    Raises:
        TypeError: It is no text.
        ValueError: It could be guessed.
    """

    def __init__(self, secret: str) -> None:
        if not isinstance(secret, str):
            raise TypeError(f"token must be a str, not {type(secret).__name__}")
        if len(secret) < _SHORTEST:
            raise ValueError(
                f"token must have at least {_SHORTEST} characters, so that nobody guesses it; "
                "secrets.token_urlsafe() makes one"
            )
        self._secret = secret.encode("utf-8", "surrogatepass")
        # Browsers don't keep the cookies of two servers on one machine apart.
        self._cookie = f"asyncflow_{self._made_for(b'name')[:8]}"
        self._pass = self._made_for(b"pass")

    def _made_for(self, purpose: bytes) -> str:
        return hmac.new(self._secret, purpose, hashlib.sha256).hexdigest()

    def is_equal_to(self, shown: str) -> bool:
        """Return whether what is shown is the token, in the same time whatever it is."""
        return hmac.compare_digest(shown.encode("utf-8", "surrogatepass"), self._secret)

    def is_shown_by(self, request: Request) -> bool:
        """Return whether a request shows the token in a header, or its cookie."""
        scheme, _, shown = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self.is_equal_to(shown.strip()):
            return True
        cookie = request.cookies.get(self._cookie, "")
        return hmac.compare_digest(cookie.encode(), self._pass.encode())

    def admitted(self, request: Request, url: str) -> Response:
        """Return what sends a browser on, with the cookie that it shows from now on.

        Args:
            request: What has shown the token.
            url: Where to, on this server, whatever host it names.
        """
        try:
            parts = urlsplit(url)
        except ValueError:  # a host that is none
            parts = urlsplit(path_in(request, "/"))
        path = "/" + parts.path.lstrip("/\\")  # two of them would name a host
        response = RedirectResponse(path + (f"?{parts.query}" if parts.query else ""), 303)
        response.set_cookie(
            self._cookie,
            self._pass,
            max_age=_A_MONTH_S,
            path=path_in(request, "/"),
            httponly=True,
            # Not "strict": who follows a link from elsewhere would be asked for the token again.
            samesite="lax",
            secure=request.url.scheme == "https",
        )
        return response


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
        "login.html",
        status,
        action=path_in(request, "/login"),
        asked=asked,
        is_wrong=is_wrong,
    )
