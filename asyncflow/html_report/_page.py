"""The page of a run: one HTML file with its style and script, or sections of it for an update."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import zlib
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any, NamedTuple

from asyncflow._core.errors import MissingExtraError
from asyncflow._core.results import RunStatus
from asyncflow._core.text import duration
from asyncflow._views.axis import ticks
from asyncflow._views.dag import draw_graph
from asyncflow._views.preview import moment_iso, moment_text
from asyncflow._views.run_view import RunView
from asyncflow.html_report._event_log import EventLog
from asyncflow.html_report._page_model import (
    MOST_EVENTS_WHOLE,
    NO_CONTEXT,
    PageContext,
    PageModel,
    halves,
    line_text,
    name_text,
    reason_text,
)

try:
    import jinja2
    from markupsafe import Markup
except ImportError as _error:
    raise MissingExtraError(
        "a page of a run needs jinja2, which comes with an extra: "
        "pip install 'asyncflow-tiers[report]'"
    ) from _error

_BUNDLES = {
    "page.css": (
        *("base.css", "timeline.css", "minimap.css", "graph.css", "tables.css", "details.css"),
        *("items.css", "notes.css", "media.css"),
    ),
    "page.js": (
        *("base.js", "moments.js", "rows.js", "selection.js", "items.js", "steps.js", "events.js"),
        *("timeline.js", "minimap.js", "graph.js", "pointer.js", "keys.js", "copy.js"),
        *("details.js", "log.js", "update.js"),
    ),
}
"""The parts of the style and of the script. Those of the script share one scope."""

_SECTIONS = ("header", "failure", "gantt", "dag", "steps", "events", "data", "details")


class Live(NamedTuple):
    """The addresses that the page of a server needs to follow a run, and to act on it."""

    events: str
    """The stream that tells when sections may have changed."""
    parts: str
    """The sections that the page does not have, as JSON; the query has the digests of its own."""
    cancel: str
    resume: str
    rerun: str
    signal: str
    details: str
    """The details of one step, as HTML; the query names it."""
    notes: str
    """The notes of the run, as JSON."""
    script: str
    """The script that follows the run and acts. It reads this from the ``data-`` attributes of the
    element ``#live``, and calls ``window.asyncflow.update``."""
    runs: str
    pipeline: str
    compare: str | None
    """The comparison with the last run of the pipeline that passed; ``None`` if there is none."""


def page(
    view: RunView,
    log: EventLog,
    context: PageContext = NO_CONTEXT,
    *,
    now_ms: float,
    live: Live | None = None,
) -> str:
    """Return the page of a run.

    It loads nothing, and its security policy allows only its own script and style. So an output
    stays text, whatever it contains.

    ``now_ms`` is the moment that it shows, in milliseconds since the run started. ``live`` is what
    it needs to follow the run; ``None`` for a page of its own.
    """
    style, script = asset("page.css"), asset("page.js")
    found = sections(view, log, context, now_ms=now_ms)
    return _template("page.html").render(
        sections={name: Markup(html) for name, html in found.items()},
        model=PageModel(view, now_ms, PageContext(is_orphaned=context.is_orphaned)),
        live=live,
        style=Markup(style),
        script=Markup(script),
        policy=page_policy(is_live=live is not None),
    )


def digest_of(text: str) -> str:
    """Return what tells one text of a section from another, of 16 characters."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def page_policy(*, is_live: bool) -> str:
    """Return the Content-Security-Policy of a page, which a server sends as a header too.

    It allows the page's style and script, and nothing else. A page that ``is_live`` may also load
    scripts and pictures from its own origin, and connect to that.
    """
    own = ["'self'"] if is_live else []
    return "; ".join(
        [
            "default-src 'none'",
            f"style-src {_source(asset('page.css'))}",
            " ".join(["script-src", *own, _source(asset("page.js"))]),
            " ".join(["img-src", *own, "data:"]),
            *(["connect-src 'self'"] if is_live else []),
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )


def sections(
    view: RunView, log: EventLog, context: PageContext = NO_CONTEXT, *, now_ms: float
) -> dict[str, str]:
    """Return the sections of a page, which change while its run does. See `page`.

    Return the inner HTML of each section, by the ``id`` of its element. The script's
    ``window.asyncflow.update`` replaces the sections with it, and keeps what the reader has
    selected, opened, filtered, zoomed and scrolled.
    """
    if not view.segments:
        raise ValueError("a page needs the events of a run, from its first one on")
    given = _given(PageModel(view, now_ms, context), log)
    return {name: _template(f"{name}.html").render(given).strip() for name in _SECTIONS}


def details(view: RunView, step: str, context: PageContext = NO_CONTEXT, *, now_ms: float) -> str:
    """Return the details of one step as HTML: as in the page, but whole.

    Raise `KeyError` if the run has no such step.
    """
    model = PageModel(view, now_ms, context, only=step)
    given = {"model": model, "view": view, "now_ms": now_ms, "names": [step], "is_alone": True}
    return _template("details.html").render(given).strip()


def _can_resume(model: PageModel) -> bool:
    has_stopped = model.view.status in (RunStatus.FAILED, RunStatus.INTERRUPTED)
    return model.context.is_orphaned or has_stopped


@cache
def asset(name: str, package: str = "asyncflow.html_report") -> str:
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


def _source(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _given(model: PageModel, log: EventLog) -> Mapping[str, Any]:
    view = model.view
    return {
        "model": model,
        "view": view,
        "now_ms": model.now_ms,
        "ticks": ticks(model.timeline.span_ms, model.timeline.span_ms / 8),
        "strip": model.strip,
        "breaks": model.breaks,
        "graph": draw_graph(view.edges) if model.is_drawn else None,
        "names": list(view.steps),
        "log": log,
        "is_long": len(log.events) > MOST_EVENTS_WHOLE,
        "resume": model.context.resume if _can_resume(model) else "",
        "is_alone": False,
    }


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


@cache
def _template(name: str) -> jinja2.Template:
    return _environment().get_template(name)


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(asset),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["pack"] = PackedRows
    environment.filters.update(
        digest=digest_of,
        ms=duration,
        grouped="{:,}".format,
        name=name_text,
        halves=halves,
        line=line_text,
        reason=reason_text,
        moment=moment_text,
        iso=moment_iso,
        num=_number,
        key=_key,
        text=_text,
    )
    return environment


def _key(segment: int, number: int) -> str:
    """Return what identifies an attempt of a step in the page and in its address."""
    return f"{segment}.{number}" if number and segment > 1 else str(number)


def _number(value: float) -> str:
    """Return a number in as few digits as it needs."""
    text = f"{value:.12f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def _text(text: str) -> Markup:
    """Escape a text between tags, where quotes need no escape."""
    return Markup(text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;"))
