"""Tells addresses, which may hold a password, from paths of files."""

from __future__ import annotations

import re

_POSTGRES = re.compile(
    r"postgres[\w+]*://|(?:.*\s)?(?:host|hostaddr|port|user|password|dbname|service)\s*=",
    re.DOTALL,
)
"""A URL, or libpq's keywords with one of those that say where."""

_OTHER = re.compile(r"[\w+]+://|[^/\\]*:[^/\\]*@")
"""A URL, or one without its scheme: ``user:password@host``."""


def is_postgres_address(text: str) -> bool:
    return _POSTGRES.match(text) is not None


def is_other_address(text: str) -> bool:
    return not is_postgres_address(text) and _OTHER.match(text) is not None
