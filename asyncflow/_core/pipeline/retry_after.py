"""When a service wants to be asked again, as its answer says.

The errors of HTTP clients are recognized by what they have, not by their classes: none of the
clients is imported.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from asyncflow._core.text import safe_text

_BUSY = (429, 503)

_CONNECTION_ERRORS = {
    ("aiohttp", "ClientConnectionError"),
    ("anthropic", "APIConnectionError"),
    ("httpx", "TransportError"),
    ("openai", "APIConnectionError"),
    ("requests", "ConnectionError"),
    ("requests", "Timeout"),
}
"""Package and name of those that are neither a `ConnectionError` nor a `TimeoutError`."""


def retry_after(error_or_headers: BaseException | Mapping[Any, Any]) -> bool | float:
    """Return in how many milliseconds a service wants to be asked again: an ``on`` of `Retry`.

    ``retry=Retry(on=retry_after)`` is what most calls of an HTTP service need. With a `Pool`, the
    time that the service names pauses all who call it.

    It reads the headers ``Retry-After``, in seconds or as a date, and ``retry-after-ms``. A date
    counts from the ``Date`` of the same answer, so that no clock needs to be right. Headers come as
    they are, or with an error of httpx, aiohttp, requests, urllib, openai or anthropic.

    It never raises: a header that is no time names none.

    Returns:
        The milliseconds, finite and at least 0, if a time is named. If not, the answer to an error
        with the status 429 or 503, or of a connection that failed or took too long, is ``True``
        (retry after the usual backoff), and that to any other error, and to headers alone, is
        ``False``.
    """
    if isinstance(error_or_headers, Mapping):
        named_ms = _named_ms(error_or_headers)
        return False if named_ms is None else named_ms
    error: Any = error_or_headers
    response = _attribute(error, "response")
    for headers in (_attribute(response, "headers"), _attribute(error, "headers")):
        named_ms = _named_ms(headers)
        if named_ms is not None:
            return named_ms
    status = [_attribute(response, "status_code")]
    status += [_attribute(error, name) for name in ("status_code", "status", "code")]
    first = next((each for each in status if isinstance(each, int)), None)
    return _is_of_connection(error) if first is None else first in _BUSY


def _attribute(owner: object, name: str) -> Any:
    # A property of a user's object: that of `httpx.ConnectError` may raise, and the truth value of
    # a response of requests is its success.
    with suppress(Exception):
        return getattr(owner, name, None)
    return None


def _is_of_connection(error: BaseException) -> bool:
    if isinstance(error, ConnectionError | TimeoutError):
        return True
    kinds = ((kind.__module__.partition(".")[0], kind.__name__) for kind in type(error).__mro__)
    return any(kind in _CONNECTION_ERRORS for kind in kinds)


def _named_ms(headers: Any) -> float | None:
    """Return the milliseconds that headers name, if they name any."""
    with suppress(Exception):  # the headers may be any object, with anything in them
        items = headers.items()
        fields = {_text(name).lower(): _text(value).strip() for name, value in items}
        after = fields.get("retry-after", "")
        for text, unit_ms in (fields.get("retry-after-ms", ""), 1), (after, 1000):
            in_ms = _number(text) * unit_ms
            if 0 <= in_ms < math.inf:
                return in_ms
        in_s = (_date(after) - _date(fields.get("date", ""))).total_seconds()
        return max(0.0, in_s * 1000)
    return None


def _text(value: object) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else safe_text(str, value)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _date(text: str) -> datetime:
    date = parsedate_to_datetime(text)
    return date.replace(tzinfo=UTC) if date.tzinfo is None else date


retry_after.__module__ = "asyncflow"  # where users know it from
