"""The page of errors quotes messages that the package has, and names each public exception."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import asyncflow
import asyncflow.journal
import asyncflow.service
import asyncflow.testing

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reference" / "troubleshooting.md"

FEWEST = 6
"""How many letters a quoted message must have at least."""


def quoted(page: str) -> list[str]:
    """Return the messages of the tables of a page: what is code before the last column."""
    cells = re.findall(r"^\| (.*) \| .* \|$", page, re.MULTILINE)
    return [
        message.replace("'…'", "…")
        for cell in cells
        for message in re.findall(r"`([^`]+)`", cell)
        if not message.isidentifier()  # an exception
    ]


def templates(code: str) -> str:
    """Return code in which each message is in one piece, with ``…`` for what is filled in later.

    It stays text, because parsing the whole package takes a second.
    """
    code = re.sub(r'r?"""(?:.|\n)*?"""|^\s*#.*$', "", code, flags=re.MULTILINE)
    code = re.sub(r"\"\n\s+f?[\"']|'\n\s+f?[\"']", "", code)  # adjacent literals are one
    code = re.sub(r"\{[^{}]*\}|%[rsdg]|%\.\d+f", "…", code)  # of f-strings, templates, log records
    return code.replace('\\"', '"').replace("'…'", "…")


def unknown_part(message: str, known: str) -> str | None:
    """Return the first part of a message that no template has; ``None`` if there is none."""
    if message in known:
        return None
    if sum(map(str.isalpha, message)) < FEWEST:
        return message
    # A placeholder may stand for what another template says.
    parts = (part.strip(" ,;:.()'") for part in message.split("…"))
    return next((part for part in parts if part not in known), None)


def public_errors() -> Iterator[str]:
    for module in (asyncflow, asyncflow.journal, asyncflow.service, asyncflow.testing):
        for name in module.__all__:
            found = getattr(module, name)
            if isinstance(found, type) and issubclass(found, BaseException):
                yield name


def test_each_quoted_message_is_one_of_the_package() -> None:
    messages = quoted(PAGE.read_text(encoding="utf-8"))
    code = [file.read_text(encoding="utf-8") for file in (ROOT / "asyncflow").rglob("*.py")]
    known = "\n".join(map(templates, code))

    unknown = {message: unknown_part(message, known) for message in messages}

    assert len(messages) > 100
    assert {message: part for message, part in unknown.items() if part is not None} == {}


def test_each_public_exception_has_its_place_on_the_page() -> None:
    page = PAGE.read_text(encoding="utf-8")

    assert [name for name in public_errors() if f"`{name}`" not in page] == []


def test_a_message_that_the_package_does_not_have_is_found() -> None:
    known = templates(
        '# must be below\nraise ValueError(\n    f"step {name!r} must be "\n    "above 0")'
    )

    assert unknown_part("step … must be above 0", known) is None
    assert unknown_part("step … must be below 0", known) == "must be below 0"
    assert unknown_part("…: …", known) == "…: …"
