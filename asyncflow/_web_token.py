"""The token that a server asks for before it shows anything."""

from __future__ import annotations

import hashlib
import hmac
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from asyncflow._web_pages import path_in

__all__ = ["Token"]

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
