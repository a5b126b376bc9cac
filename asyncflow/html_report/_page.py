"""The page of a run: one file of HTML that needs nothing else."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any, NamedTuple

from asyncflow._views.axis import ticks
from asyncflow._views.dag import draw_graph
from asyncflow._views.event_text import duration
from asyncflow._views.preview import moment_iso, moment_text
from asyncflow._views.run_view import RunView
from asyncflow.html_report._event_log import EventLog
from asyncflow.html_report._page_model import PageModel, line_text, name_text

try:
    import jinja2
    from markupsafe import Markup
except ImportError as _error:
    raise ImportError(
        "a page of a run needs jinja2, which comes with an extra: "
        "pip install 'asyncflow-tiers[report]'"
    ) from _error

__all__ = ["Live", "asset", "page", "page_policy", "sections", "security_policy"]

_SECTIONS = ("header", "failure", "gantt", "dag", "steps", "events", "data", "details")


class Live(NamedTuple):
    """What a page needs to follow a run that goes on, and to act on it."""

    events_url: str
    """Where the sections that change are told."""
    cancel_url: str
    resume_url: str | None = None
    """``None`` if the run cannot be resumed from here."""
    token: str | None = None
    """What is sent along with an action."""
    script_url: str | None = None
    """The script that follows the run and acts. It finds all of this in the ``data-`` attributes
    of the element ``#live``, and calls ``window.asyncflow.update``."""
    runs_url: str | None = None
    """The list of all runs."""


def page(
    view: RunView,
    log: EventLog,
    *,
    now_ms: float,
    live: Live | None = None,
    is_orphaned: bool = False,
) -> str:
    """Return the page of a run.

    It loads nothing. Its security policy lets no script and no style run but its own, so that what
    a step has returned stays text whatever it holds.

    Args:
        view: The run.
        log: What happened in it.
        now_ms: The moment that it shows, in milliseconds since the run started.
        live: What it needs to follow the run; ``None`` for a page that stands by itself.
        is_orphaned: Whether it has not ended, but nobody runs it any more.
    """
    style, script = asset("page.css"), asset("page.js")
    found = sections(view, log, now_ms=now_ms, is_orphaned=is_orphaned)
    return _template("page.html").render(
        sections={name: Markup(html) for name, html in found.items()},
        model=PageModel(view, now_ms, is_orphaned=is_orphaned),
        live=live,
        style=Markup(style),
        script=Markup(script),
        policy=page_policy(is_live=live is not None),
    )


def page_policy(*, is_live: bool) -> str:
    """Return the Content-Security-Policy that a page has; a server sends the same as a header."""
    return security_policy([asset("page.css")], [asset("page.js")], is_live=is_live)


def sections(
    view: RunView, log: EventLog, *, now_ms: float, is_orphaned: bool = False
) -> dict[str, str]:
    """Return what changes on the page of a run while it goes on.

    Returns:
        The HTML inside of each section, by the ``id`` of its element. Handed to
        ``window.asyncflow.update`` it replaces what is there, and what the reader has selected,
        opened, filtered, zoomed and scrolled stays so.
    """
    if not view.segments:
        raise ValueError("a page needs the events of a run, from its first one on")
    given = _given(PageModel(view, now_ms, is_orphaned=is_orphaned), log)
    return {name: _template(f"{name}.html").render(given).strip() for name in _SECTIONS}


def security_policy(styles: Sequence[str], scripts: Sequence[str], *, is_live: bool = False) -> str:
    """Return the Content-Security-Policy under which these texts may run, and nothing else.

    Args:
        styles: What stands in the ``style`` elements of a page.
        scripts: What stands in its ``script`` elements.
        is_live: Whether it may also load scripts from, and connect to, where it comes from.
    """
    own = ["'self'"] if is_live else []
    return "; ".join(
        [
            "default-src 'none'",
            " ".join(["style-src", *map(_source, styles)]),
            " ".join(["script-src", *own, *map(_source, scripts)]),
            *(["connect-src 'self'"] if is_live else []),
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )


@cache
def asset(name: str, package: str = "asyncflow.html_report") -> str:
    """Return the text of a file in the ``assets`` folder of a package.

    Of a style or a script it is what a browser needs, without the comments and the indentation. A
    comment takes lines of its own there, and no string goes over the end of a line.
    """
    text = resources.files(package).joinpath("assets", name).read_text(encoding="utf-8")
    if not name.endswith((".css", ".js")):
        return text
    lines = (line.strip() for line in text.splitlines())
    return "\n".join(line for line in lines if line and not line.startswith(("//", "/*")))


def _source(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _given(model: PageModel, log: EventLog) -> Mapping[str, Any]:
    view = model.view
    return {
        "model": model,
        "view": view,
        "now_ms": model.now_ms,
        "ticks": ticks(model.timeline.span_ms, model.timeline.span_ms / 8),
        "strip": model.strip(view.steps.values()),
        "graph": draw_graph(view.dependencies) if model.is_drawn else None,
        "names": list(view.steps),
        "log": log,
    }


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
    environment.filters.update(
        ms=duration,
        name=name_text,
        line=line_text,
        moment=moment_text,
        iso=moment_iso,
        num=_number,
        text=_text,
    )
    return environment


def _number(value: float) -> str:
    """Write a number in as few digits as it needs."""
    text = f"{value:.12f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def _text(text: str) -> Markup:
    """Escape what stands between tags, where quotes need not be."""
    return Markup(text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;"))
