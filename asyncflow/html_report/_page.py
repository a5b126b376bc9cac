"""The page of a run: one HTML file with its style and script, or sections of it for an update."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from asyncflow._core.history.results import RunStatus
from asyncflow._views.axis import ticks
from asyncflow._views.run_view import RunView
from asyncflow.events import StepLogged
from asyncflow.html_report._event_log import EventLog
from asyncflow.html_report._page_model import (
    MOST_EVENTS_WHOLE,
    NO_CONTEXT,
    PageContext,
    PageModel,
)
from asyncflow.html_report._templates import asset, template

_WHOLE = 1_000_000
"""How many bytes a message has at most that is shown whole."""

_SECTIONS = ("header", "waiting", "failure", "gantt", "dag", "steps", "events", "data", "details")


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
    return template("page.html").render(
        sections=sections(view, log, context, now_ms=now_ms),
        model=PageModel(view, now_ms, PageContext(is_orphaned=context.is_orphaned)),
        live=live,
        style=asset("page.css"),
        script=asset("page.js"),
        policy=page_policy(is_live=live is not None),
    )


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
    return {name: template(f"{name}.html").render(given).strip() for name in _SECTIONS}


def details(view: RunView, step: str, context: PageContext = NO_CONTEXT, *, now_ms: float) -> str:
    """Return the details of one step as HTML: as in the page, but whole.

    Raise `KeyError` if the run has no such step.
    """
    model = PageModel(view, now_ms, context, only=step)
    given = {"model": model, "view": view, "now_ms": now_ms, "names": [step], "is_alone": True}
    return template("details.html").render(given).strip()


def log_lines(notes: Sequence[StepLogged]) -> str:
    """Return log lines as HTML: as in the page, but whole."""
    return template("log.html").render(notes=notes, most=_WHOLE).strip()


def _can_resume(model: PageModel) -> bool:
    has_stopped = model.view.status in (RunStatus.FAILED, RunStatus.INTERRUPTED)
    return model.context.is_orphaned or has_stopped


def _source(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _given(model: PageModel, log: EventLog) -> Mapping[str, Any]:
    view = model.view
    nodes = model.nodes() if model.is_drawn else []
    return {
        "model": model,
        "nodes": nodes,
        "view": view,
        "now_ms": model.now_ms,
        "ticks": ticks(model.timeline.span_ms, model.timeline.span_ms / 8),
        "strip": model.strip,
        "breaks": model.breaks,
        "graph": model.draw(nodes) if model.is_drawn else None,
        "names": list(view.steps),
        "log": log,
        "is_long": len(log.events) > MOST_EVENTS_WHOLE,
        "resume": model.context.resume if _can_resume(model) else "",
        "is_alone": False,
    }
