"""One frame of a live view: the lines that show a run at some moment, never more than fit.

Rules:

1. If there is room for all steps, each has its line, and they stand where they stood before.
2. Else steps that run or have failed go first, then small tiers, those near to the running ones
   first. What has no line of its own is counted in its tier's line.
3. If there are too many tiers, those that are done share a line, and so do those that wait.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import chain, islice

from rich.text import Text

from asyncflow._cells import cut, fitted, shown
from asyncflow._core.results import StepStatus
from asyncflow._live_rows import columns_for, row, tally_text
from asyncflow._live_run import LiveRun
from asyncflow._look import COLOURS, Look, bar, sign_of_run
from asyncflow._views.event_text import duration

__all__ = ["frame", "summary"]

_Span = tuple[int, int]
"""Tiers, from one to before another one, that share a line."""


def frame(
    run: LiveRun, *, width: int, height: int, now_ms: float, look: Look, least: int = 0
) -> list[Text]:
    """Return the lines.

    Args:
        run: The run.
        width: How many cells a line may have.
        height: How many lines there may be, at least 1.
        now_ms: What time it is, in milliseconds since the run started.
        look: What to draw with.
        least: How many lines there are at least, so that the last ones stay where they are.
    """
    head = [_title(run, width, look)] if height >= 5 else []
    foot = [summary(run, width, now_ms, look)]
    if height >= 4:
        foot = [_progress(run, width, look), *foot]
    if height >= 6 and run.view.stop_reason is not None:
        foot = [_stop(run.view.stop_reason, width, look), *foot]
    room = height - len(head) - len(foot)
    body = _body(run, room, width, now_ms, look)
    blank = [Text()] * (min(least, height) - len(head) - len(body) - len(foot))
    lines = [*head, *body, *blank, *foot]
    for line in lines:
        line.truncate(width)  # with hardly any cells, the columns don't shrink any further
    return lines


def summary(run: LiveRun, width: int, now_ms: float, look: Look) -> Text:
    """Return the line that says how a run stands: its state, its time, and how many steps."""
    view = run.view
    status = sign_of_run(view.word)
    text = Text(no_wrap=True)
    text.append(f"{look.signs[status]} {view.word}", f"bold {COLOURS[status]}")
    text.append(f"  {duration(view.at_ms if view.outcome else now_ms)}")
    counts = tally_text(view.counts, width - text.cell_len - 3, look)
    if counts:
        text.append("   ").append(counts)
    return text


def _title(run: LiveRun, width: int, look: Look) -> Text:
    name, run_id = (shown(each, look.encoding) for each in (run.view.pipeline, run.view.run_id))
    again = f" {look.between} resumed" if len(run.view.stretches) > 1 else ""
    text = Text(no_wrap=True)
    if name:
        text.append(cut(name, max(width // 2, width - 40), look.ellipsis), "bold")
        text.append("  ")
    rest = f"run {run_id}{again}"
    return text.append(cut(rest, max(width - text.cell_len, 0), look.ellipsis), "dim")


def _progress(run: LiveRun, width: int, look: Look) -> Text:
    view = run.view
    label = f"  {view.settled:,} of {len(view.steps):,} steps"
    full, empty = bar(view.settled, len(view.steps), max(width - len(label), 0), look)
    colour = COLOURS[StepStatus.FAILED if run.failed else StepStatus.SUCCESS]
    text = Text(no_wrap=True)
    return text.append(full, colour).append(empty, "dim").append(label)


def _stop(reason: str, width: int, look: Look) -> Text:
    said = cut(shown(f"stopped because {reason}", look.encoding), width, look.ellipsis)
    return Text(said, COLOURS[StepStatus.CANCELLED], no_wrap=True)


def _body(run: LiveRun, room: int, width: int, now_ms: float, look: Look) -> list[Text]:
    spans = _spans(run, room)
    labels = [_label(span, width, look) for span in spans]
    # As wide as the widest that there may be, so that nothing moves when others are shown.
    count = len(run.view.tiers)
    widest = (count - 1 if len(spans) == count else max(count - 2, 0), count)
    columns = columns_for(width, len(_label(widest, width, look)), run.name_width)
    whole, chosen = _choice(run, spans, room)
    lines = []
    for span, label in zip(spans, labels, strict=True):
        names: Sequence[str] = chosen.get(span, [])
        if span not in whole:
            counts = tally_text(run.tally(*span), width - columns.tier - 2, look)
            gutter = fitted(label, columns.tier + 2) if columns.tier else ""
            lines.append(Text(gutter, "dim", no_wrap=True).append(counts))
            label = ""
        for name in names:
            step = run.view.steps[name]
            if span[1] - span[0] > 1:
                label = _label((step.tier, step.tier + 1), width, look)
            lines.append(row(step, label, columns, now_ms, look))
            label = ""
    return lines


def _label(span: _Span, width: int, look: Look) -> str:
    first, last = span[0] + 1, span[1]
    numbers = str(first) if first == last else f"{first}{look.dash}{last}"
    if width < 70:
        return numbers
    return f"tier {numbers}" if first == last else f"tiers {numbers}"


def _spans(run: LiveRun, room: int) -> list[_Span]:
    if room < 1:
        return []
    count = len(run.view.tiers)
    if count <= room // 2 or len(run.view.steps) <= room:
        return [(tier, tier + 1) for tier in range(count)]
    done, begun = run.settled_tiers, max(run.begun_tiers, run.settled_tiers)
    between = [(tier, tier + 1) for tier in range(done, begun)]
    if len(between) > max(room // 2 - 2, 1):
        between = [(done, begun)]
    parts = [(0, done), *between, (begun, count)]
    # The line of those that run is needed most.
    return [part for part in parts if part[0] < part[1]][-room:]


def _choice(
    run: LiveRun, spans: list[_Span], room: int
) -> tuple[set[_Span], dict[_Span, list[str]]]:
    """Return of which tiers all steps have lines, and the steps that have lines for each tier."""
    left = room - len(spans)
    steps, span_of = run.view.steps, {tier: span for span in spans for tier in range(*span)}
    chosen: dict[_Span, list[str]] = defaultdict(list)
    for name in _first(run, left):
        chosen[span_of[steps[name].tier]].append(name)
        left -= 1
    whole = set()
    for span in _nearest(run, spans):
        size = run.size(*span)
        more = size - len(chosen[span]) - 1  # its own line is not needed then
        if span[1] - span[0] == 1 and more <= left:
            left -= more
            whole.add(span)
            chosen[span] = run.view.tiers[span[0]]
    return whole, chosen


def _first(run: LiveRun, count: int) -> Iterator[str]:
    """Return the steps that are shown first: those that run, and as many that have failed."""
    failed = min(len(run.failed), max(count - len(run.running), count // 2))
    return chain(islice(run.failed, failed), islice(run.running, max(count - failed, 0)))


def _nearest(run: LiveRun, spans: list[_Span]) -> list[_Span]:
    """Return the tiers in the order in which they are wanted: those where something goes on,
    those that come next, those that are done.
    """
    return sorted(
        spans,
        key=lambda span: (
            span[0] < run.settled_tiers,
            abs(span[0] - run.settled_tiers),
        ),
    )
