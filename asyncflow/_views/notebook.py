"""A run as a small piece of HTML, which a notebook shows as the output of a cell.

It has neither script nor style sheet, which notebooks remove, and colours that can be seen on
light and on dark. Its words say the same as its colours.
"""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from asyncflow._core.analysis.looks import WAITS_LOOK, look_of
from asyncflow._core.analysis.remarks import remarks_of
from asyncflow._core.history.report import RunReport
from asyncflow._core.history.results import SignalWait, StepStatus
from asyncflow._core.history.step_view import StepView
from asyncflow._core.history.value_preview import shortened
from asyncflow._core.text import duration, escape_controls, plural
from asyncflow._views.names import middle_out
from asyncflow._views.preview import error_words
from asyncflow._views.run_end import verdict
from asyncflow._views.run_view import RunView, view_of

MOST_ROWS = 100
"""Of more steps, those are left out that succeeded, and then the last ones."""
_NAME, _WORDS = 120, 300
_WIDTH = 180
"""Of the timeline, in pixels."""

_CELL = "text-align:left;vertical-align:top;padding:2px 12px 2px 0;white-space:nowrap"
_WRAPPED = "text-align:left;vertical-align:top;padding:2px 0;white-space:normal"


def to_notebook_html(view: RunView) -> str:
    """Return the steps of a run as of its latest event, as a table without inputs and outputs."""
    steps = _chosen(view)
    left_out = len(view.steps) - len(steps)
    more = f"<p>and {plural(left_out, 'step')} more</p>" if left_out else ""
    heads = "".join(
        f'<th scope="col" style="{_CELL}">{head}</th>'
        for head in ("step", "status", "attempts", "duration", "when", "")
    )
    name = middle_out(escape_controls(view.pipeline or view.run_id), _NAME)
    rows = "".join(_row(step, view.at_ms) for step in steps)
    return (
        f"<div><p><strong>{escape(verdict(view))}</strong> {escape(name)}</p>"
        '<table style="border-collapse:collapse">'
        f"<thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>{more}</div>"
    )


def of_report(report: RunReport) -> str:
    view = view_of(report)
    return to_notebook_html(view)


def _chosen(view: RunView) -> list[StepView]:
    steps = [*view.steps.values()]
    if len(steps) <= MOST_ROWS:
        return steps
    order = sorted(range(len(steps)), key=lambda at: steps[at].status is StepStatus.SUCCESS)
    return [steps[at] for at in sorted(order[:MOST_ROWS])]


def _row(step: StepView, now_ms: float) -> str:
    spent = step.duration_ms(now_ms)
    name = middle_out(escape_controls(step.name), _NAME)
    said = remarks_of(step, lambda error: error_words(error, _WORDS))
    words = "; ".join([shortened(remark, _WORDS) for remark in said if remark])
    look = look_of(step)
    symbol = f'<span style="color:{look.hex}">{look.symbol}</span>'
    cells = (
        f"{symbol} {look.word}",
        str(step.attempt_count or ""),
        "" if spent is None else duration(spent),
        _bar(step, now_ms),
    )
    return (
        f'<tr><th scope="row" style="{_CELL}">{escape(name)}</th>'
        + "".join(f'<td style="{_CELL}">{cell}</td>' for cell in cells)
        + f'<td style="{_WRAPPED}">{escape(words)}</td></tr>'
    )


def _bar(step: StepView, now_ms: float) -> str:
    """Return when the step ran, on an axis of the whole run."""
    bars = "".join(_bars(step, now_ms))
    if not bars:
        return ""
    return (
        f'<svg width="{_WIDTH}" height="12" aria-hidden="true" style="display:block">{bars}</svg>'
    )


def _bars(step: StepView, now_ms: float) -> Iterator[str]:
    span_ms = max(now_ms, 1e-9)  # nothing has taken any time yet
    for time in step.active:
        ended_ms = now_ms if time.ended_ms is None else time.ended_ms
        x = time.started_ms / span_ms * _WIDTH
        width = max((ended_ms - time.started_ms) / span_ms * _WIDTH, 1)
        yield (
            f'<rect x="{min(x, _WIDTH - 1):.1f}" y="1" width="{width:.1f}" height="10" '
            f'fill="{look_of(step).hex}"/>'
        )
    if step.wait is not None:
        yield _hatched(step.wait, span_ms)


def _hatched(wait: SignalWait, span_ms: float) -> str:
    """Return the bar of a wait for a signal: it ends with a line only if it has ended."""
    ended_ms = span_ms if wait.ended_ms is None else wait.ended_ms
    x = min(wait.started_ms / span_ms * _WIDTH, _WIDTH - 1)
    end = max(min(ended_ms / span_ms * _WIDTH, _WIDTH), x + 1)
    lines = [f"M{at:.1f} 11L{min(at + 5, end):.1f} 1" for at in range(int(x), int(end), 5)]
    lines += [] if wait.ended_ms is None else [f"M{end:.1f} 1V11"]
    return f'<path d="{"".join(lines)}" stroke="{WAITS_LOOK.hex}" fill="none"/>'
