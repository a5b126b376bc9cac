"""The templates, styles and scripts of all pages: of reports, and of those that a server has."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import zlib
from functools import cache
from importlib import resources

from asyncflow._core.analysis.looks import RUN_LOOKS, STEP_LOOKS
from asyncflow._core.errors import MissingExtraError
from asyncflow._core.history.value_preview import printable, shortened
from asyncflow._core.text import duration, plural
from asyncflow._views.names import middle_out
from asyncflow._views.notes import level_name, log_text
from asyncflow._views.preview import ago, error_trace, moment_iso, moment_text
from asyncflow._views.waiting import is_queued, wait_text
from asyncflow.html_report._page_model import (
    error_line,
    halves,
    line_text,
    name_text,
    reason_text,
    step_url,
)

try:
    import jinja2
    from markupsafe import Markup
except ImportError as _error:
    raise MissingExtraError(
        "a page of a run needs jinja2, which comes with an extra: "
        "pip install 'asyncflow-tiers[report]'"
    ) from _error

_HERE = "asyncflow.html_report"
_BUNDLES = {
    "page.css": (
        *("base.css", "timeline.css", "minimap.css", "graph.css", "tables.css", "details.css"),
        *("items.css", "notes.css", "media.css"),
    ),
    "page.js": (
        *("base.js", "times.js", "rows.js", "selection.js", "items.js", "steps.js", "events.js"),
        *("timeline.js", "minimap.js", "graph.js", "pointer.js", "keys.js", "copy.js"),
        *("details.js", "log.js", "update.js"),
    ),
}
"""The parts of the style and of the script. Those of the script share one scope."""


@cache
def asset(name: str, package: str = _HERE) -> str:
    """Return the text of a file in the ``assets`` folder of a package, or of one made of several.

    Styles and scripts lose their indentation and their comments, which have lines of their own or
    are at the end of one and have no quotes, and styles the spaces that separate nothing.
    """
    folder = resources.files(package).joinpath("assets")
    files = _BUNDLES.get(name, (name,))
    text = "\n".join(folder.joinpath(each).read_text(encoding="utf-8") for each in files)
    if not name.endswith((".css", ".js")):
        return text
    lines = (re.sub(r"\s+// [^\"'`]*$", "", line).strip() for line in text.splitlines())
    text = "\n".join(line for line in lines if line and not line.startswith(("//", "/*")))
    if name.endswith(".css"):
        text = re.sub(r"\s*([{};,>])\s*|(:) ", r"\1\2", text).replace(";}", "}")
    return text


def digest_of(text: str) -> str:
    """Return what tells one text of a section from another, of 16 characters."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


@cache
def template(name: str) -> jinja2.Template:
    """Return the template of a page. That of another package has its name, and a slash, first."""
    return _environment().get_template(name)


def _source_of(name: str) -> str:
    package, _, file = name.rpartition("/")
    return asset(file, package or _HERE)


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_source_of),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(
        pack=PackedRows,
        run_looks=RUN_LOOKS,
        step_looks=STEP_LOOKS,
        step_url=step_url,
        is_queued=is_queued,
        wait_text=wait_text,
    )
    environment.filters.update(
        digest=digest_of,
        ms=duration,
        grouped="{:,}".format,
        plural=plural,
        name=name_text,
        short=middle_out,
        halves=halves,
        line=line_text,
        reason=reason_text,
        ago=ago,
        moment=moment_text,
        iso=moment_iso,
        num=_number,
        key=_key,
        level=level_name,
        logged=log_text,
        words=error_line,
        trace=error_trace,
        brief=_brief,
        text=_text,
    )
    return environment


class PackedRows:
    """The rows of a section: HTML, or packed for the script, which draws those in view."""

    def __init__(self, are_packed: bool) -> None:
        self._are_packed = are_packed
        self._rows: dict[int, str] = {}

    def put(self, number: int, row: Markup, is_drawn: bool) -> str:
        """Return what the section has of a row. ``is_drawn`` says whether it always has it."""
        row = row.strip()
        if not self._are_packed:
            return row
        self._rows[number] = row
        return row if is_drawn else ""

    def __html__(self) -> str:
        if not self._rows:
            return ""
        packed = base64.b64encode(zlib.compress(json.dumps(self._rows).encode())).decode()
        return f'<script type="text/plain" data-packed>{packed}</script>'


def _key(segment: int, number: int) -> str:
    """Return what identifies an attempt of a step in the page and in its address."""
    return f"{segment}.{number}" if number and segment > 1 else str(number)


def _number(value: float) -> str:
    """Return a number in as few digits as it needs."""
    text = f"{value:.12f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def _brief(text: str, most: int) -> str:
    """Return a text of a user that has at most so many bytes in the page."""
    return shortened(printable(text), most)


def _text(text: str) -> Markup:
    """Escape a text between tags, where quotes need no escape."""
    return Markup(text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;"))
