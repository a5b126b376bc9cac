"""Turns what an action attaches into bytes of a media type that displays can show."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import stat
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from xml.parsers import expat

from asyncflow._core.value_size import extent

MOST_BYTES = 1_000_000
"""How large an attachment may be."""

PNG = "image/png"
_SVG = "image/svg+xml"
_JSON, _CSV, _MARKDOWN, _TEXT = "application/json", "text/csv", "text/markdown", "text/plain"
_MEDIA_TYPES = (PNG, _SVG, _JSON, _CSV, _MARKDOWN, _TEXT)
_SUFFIXES = {
    ".png": PNG,
    ".svg": _SVG,
    ".json": _JSON,
    ".csv": _CSV,
    ".md": _MARKDOWN,
    ".txt": _TEXT,
    ".log": _TEXT,
}
_PNG_BEGINS = b"\x89PNG\r\n\x1a\n"
_SVG_BEGINS = re.compile(
    r"\ufeff?\s*(?:<\?xml[^>]*\?>\s*|<!--.*?-->\s*|<!DOCTYPE[^>]*>\s*)*<svg[\s>]", re.DOTALL
)
_SCALARS = str | int | float | bool | None


def attachment_of(name: str, data: object, media_type: str | None) -> tuple[str, bytes]:
    """Return the media type and the bytes of an attachment.

    Raise as `asyncflow.StepContext.attach` does.
    """
    if media_type is not None and media_type not in _MEDIA_TYPES:
        known = ", ".join(map(repr, _MEDIA_TYPES))
        raise ValueError(
            f"attachment {name!r}: media_type must be one of {known}, not {media_type!r}"
        )
    if isinstance(data, os.PathLike):
        media_type = media_type or _SUFFIXES.get(os.path.splitext(os.fsdecode(data))[1].lower())
        data = _content_of(name, data)
    # Before it is encoded: a few lists that refer to each other may stand for gigabytes.
    found = extent(data, MOST_BYTES)
    if found == "large":
        raise _too_large(name)
    if found == "deep":
        raise _no_json(name, "it is nested too deeply")
    if isinstance(data, bytes | bytearray | memoryview):
        content = bytes(data)
        media_type = media_type or _type_of(name, content)
    elif isinstance(data, str):
        content = data.encode(errors="backslashreplace")
        media_type = media_type or (_SVG if _is_svg(data) else _TEXT)
    elif media_type in (None, _CSV) and _is_table(data):
        content, media_type = _as_csv(data).encode(errors="backslashreplace"), _CSV
    elif media_type in (None, _JSON):
        content, media_type = _as_json(name, data), _JSON
    else:
        raise TypeError(
            f"attachment {name!r}: {media_type} must be given as bytes, a str or a path, "
            f"not {type(data).__name__}"
        )
    if len(content) > MOST_BYTES:
        raise _too_large(name)
    _check(name, media_type, content)
    return media_type, content


def _too_large(name: str) -> ValueError:
    return ValueError(
        f"attachment {name!r} must have at most {MOST_BYTES:,} bytes; attach less of it, or its "
        "address"
    )


def _no_json(name: str, problem: object) -> TypeError:
    return TypeError(
        f"attachment {name!r} can't be written as JSON ({problem}); give bytes, a str, a path, or "
        "values that JSON has"
    )


def without_secrets(
    media_type: str, content: bytes, hide: Callable[[str], str]
) -> tuple[str, bytes]:
    """Return an attachment without what ``hide`` replaces in texts.

    It becomes a plain text if it is no longer of its media type.
    """
    if media_type == PNG:
        return media_type, content
    text = content.decode()
    public = hide(text)
    if public == text:
        return media_type, content
    if media_type == _SVG:
        public = public.replace("<secret>", "&lt;secret&gt;")
    content = public.encode()[:MOST_BYTES].decode(errors="ignore").encode()
    try:
        _check("", media_type, content)
    except ValueError:
        media_type = _TEXT
    return media_type, content


def _content_of(name: str, path: os.PathLike[str]) -> bytes:
    # Who opens a pipe waits for its writer, and a device may have no end.
    with open(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError(f"attachment {name!r}: {os.fspath(path)!r} is no file")
        return file.read(MOST_BYTES + 1)


def _type_of(name: str, content: bytes) -> str:
    if content.startswith(_PNG_BEGINS):
        return PNG
    try:
        text = content.decode()
    except UnicodeDecodeError:
        raise ValueError(
            f"attachment {name!r} is neither a PNG image nor text in UTF-8; displays can show "
            f"only {', '.join(_MEDIA_TYPES)}"
        ) from None
    return _SVG if _is_svg(text) else _TEXT


def _is_svg(text: str) -> bool:
    return _SVG_BEGINS.match(text) is not None


def _is_table(data: object) -> bool:
    return (
        isinstance(data, Sequence)
        and len(data) > 0
        and all(
            isinstance(row, Mapping)
            and all(isinstance(key, str) for key in row)
            and all(isinstance(value, _SCALARS) for value in row.values())
            for row in data
        )
    )


def _as_csv(rows: Any) -> str:
    columns = list(dict.fromkeys(column for row in rows for column in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _as_json(name: str, data: object) -> bytes:
    try:
        text = json.dumps(data, ensure_ascii=False, indent=1)
    except (TypeError, ValueError, RecursionError) as error:
        raise _no_json(name, error) from error
    return text.encode(errors="backslashreplace")


def _check(name: str, media_type: str, content: bytes) -> None:
    """Check that data are of their media type."""
    if media_type == PNG:
        if not content.startswith(_PNG_BEGINS):
            raise ValueError(f"attachment {name!r} is no PNG image")
        return
    try:
        text = content.decode()
        if media_type == _JSON:
            json.loads(text)
        elif media_type == _SVG:
            _parse_svg(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"attachment {name!r} is no {media_type}: {error}") from None


def _parse_svg(text: str) -> None:
    """Check that a text is an SVG image, whatever it does: displays keep it from doing anything."""
    if not _is_svg(text):
        raise ValueError("it has no <svg>")
    try:
        expat.ParserCreate().Parse(text, True)
    except expat.ExpatError as error:
        raise ValueError(str(error)) from None
