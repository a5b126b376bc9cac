"""A value as a journal keeps it."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["REDACTED", "Payload"]


class Payload(NamedTuple):
    """A value in bytes, and what can turn them into the value again."""

    codec: str
    """The name of what has encoded it; ``"redacted"`` if it was secret and is not here."""
    data: bytes


REDACTED = Payload("redacted", b"")
