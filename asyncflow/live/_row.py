"""One step in one line of a frame: its status, what there is to say of it, and how long it ran."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from operator import itemgetter
from typing import NamedTuple, TypeAlias

from rich.cells import cell_len
from rich.text import Text

from asyncflow._core.analysis.failures import error_counts, item_errors, own_error
from asyncflow._core.analysis.looks import DIED_LOOK, STEP_LOOKS, WAITS_LOOK, look_of
from asyncflow._core.analysis.remarks import nth_of, remarks_of
from asyncflow._core.history.results import StepStatus
from asyncflow._core.history.step_view import StepView
from asyncflow._core.text import describe_error, duration, plural
from asyncflow._views.event_text import counted
from asyncflow._views.progress import (
    is_under_way,
    left_text,
    percentage,
    progress_of,
    progress_text,
)
from asyncflow.events import StepProgressed
from asyncflow.live._theme import Theme, bar, elide, fit, printable

_Reported: TypeAlias = Mapping[int | None, StepProgressed]
"""The latest progress of a step, and of each of its items, by item."""


class Columns(NamedTuple):
    """How many cells each column takes; there are two between any two."""

    tier: int
    status: int
    name: int
    note: int
    duration: int


def columns_for(width: int, tier: int, name: int) -> Columns:
    """Divide the width of a line; tiers and names take as many cells as given, or less."""
    if width < 44:  # a symbol, a name and a duration
        return Columns(0, 1, max(width - 13, 1), 0, 9)
    status, lasted = 11, 9
    rest = width - tier - status - lasted - 6
    # At 80 columns a name has 17 cells, and a note 28: "next attempt in 3 s (2 of 3)".
    name = min(name, max(17, min(rest * 9 // 20, rest - 30)))
    note = rest - name - 2
    if note < 12:
        name, note = rest, -2
    return Columns(tier, status, name, note, lasted)


def row(
    step: StepView,
    reported: _Reported,
    tier: str,
    columns: Columns,
    now_ms: float,
    theme: Theme,
    usual_ms: float | None = None,
    waits_ms: float | None = None,
    *,
    has_died: bool = False,
) -> Text:
    """Return the line of a step, with the label of its tier before it.

    ``usual_ms`` says how long the step usually takes, ``waits_ms`` for how long it has waited for
    its signal, if it does, and ``has_died`` whether it was running when its process died.
    """
    text = Text(no_wrap=True)
    if columns.tier:
        text.append(fit(tier, columns.tier + 2), "dim")
    gap = "  " if columns.tier else " "
    look = look_of(step, has_died=has_died)
    status = f"{theme.symbol(look)} {look.word}"
    text.append(fit(status[: columns.status], columns.status), look.colour)
    name = printable(step.name, theme.encoding)
    name_width, note_width = columns.name, columns.note
    progress = progress_of(step, reported.get(None)) if is_under_way(step) else None

    def note(width: int) -> Text:
        if look is DIED_LOOK:
            words = words_of(step, now_ms, reported, has_died=True)
            return Text(fit(words, width, theme.ellipsis), look.colour, end="")
        if progress is not None:
            return _progress_note(step, reported, width, now_ms, theme)
        return _note(step, reported, width, now_ms, theme, usual_ms)

    if note_width > 0 and cell_len(name) > name_width:  # it takes what the note leaves empty
        said = note(note_width).plain
        if progress is None:  # a bar of items may be shorter, or none
            said = said.lstrip(theme.done + theme.left + " ")
        used = cell_len(said.rstrip())
        whole = name_width + 2 + note_width
        name_width = max(min(cell_len(name), whole - 2 - used if used else whole), name_width)
        note_width = whole - 2 - name_width
    name = fit(name, name_width, theme.ellipsis)
    text.append(gap + name, "dim" if look is STEP_LOOKS["PENDING"] else "")
    if note_width > 0:
        text.append("  ").append(note(note_width))
    elif columns.note > 0:
        text.append(" " * (note_width + 2))
    duration_ms = step.duration_ms(now_ms) if waits_ms is None else waits_ms
    lasted = "" if duration_ms is None else duration(duration_ms)
    if (
        columns.note <= 0
        and not has_died
        and progress is not None
        and percentage(progress) is not None
    ):
        lasted = f"{percentage(progress)} %"
    if len(lasted) > columns.duration:
        lasted = lasted.replace(" ", "")
    return text.append(f"{gap}{lasted:>{columns.duration}}", "" if step.ended_ms is None else "dim")


_BAR_WIDTHS = range(4, 17)


def _note(
    step: StepView,
    reported: _Reported,
    width: int,
    now_ms: float,
    theme: Theme,
    usual_ms: float | None,
) -> Text:
    text = Text(no_wrap=True)
    said = words_of(step, now_ms, reported)
    is_running = step.status is StepStatus.RUNNING and step.retry_at_ms is None
    left = left_text(usual_ms, step.duration_ms(now_ms)) if is_running else ""
    words = printable(", ".join(filter(None, [left, said])), theme.encoding)
    if step.item_count is not None and step.status is StepStatus.RUNNING:
        cells = min(width - len(words) - 2, width // 2, _BAR_WIDTHS[-1])
        if cells in _BAR_WIDTHS:
            done, left = bar(_settled_items(step), step.item_count, cells, theme)
            text.append(done, STEP_LOOKS["RUNNING"].colour).append(f"{left}  ", "dim")
    failed = STEP_LOOKS["FAILED"].colour
    colour = {StepStatus.FAILED: failed, StepStatus.RUNNING: ""}.get(step.status, "dim")
    if step.retry_at_ms is not None:
        colour = "yellow"
    if step.waiting_since is not None:
        colour = WAITS_LOOK.colour
    text.append(elide(words, width - text.cell_len, theme.ellipsis), colour)
    return text.append(" " * (width - text.cell_len))


def _progress_note(
    step: StepView, reported: _Reported, width: int, now_ms: float, theme: Theme
) -> Text:
    """Return the progress of a running attempt, as much of it as fits: at least the percentage."""
    progress, latest = reported[None], step.latest
    assert latest is not None  # it is running
    share, count, rate, left = progress_text(progress, latest.started_ms, now_ms)
    # Its width depends on that of the column alone, so that it stays while the words change.
    cells = min(max(width // 5, _BAR_WIDTHS[0]), _BAR_WIDTHS[-1]) if share else 0
    with_bar, without = width - cells - 1, width
    choices = [
        (with_bar, [share, count, rate, left, words_of(step, now_ms, reported)]),
        (with_bar, [share, count, rate, left]),
        (with_bar, [share, count, left]),
        (with_bar, [share, count]),
        (without, [share, count]),
        (with_bar, [share, left]),
    ]
    words = share or count
    for room, parts in choices:
        fitting = printable(", ".join(filter(None, parts)), theme.encoding)
        if fitting and cell_len(fitting) <= room:
            words = fitting
            break
    text = Text(no_wrap=True)
    if share and cell_len(words) <= with_bar:
        done, empty = bar(percentage(progress) or 0, 100, cells, theme)
        text.append(done, STEP_LOOKS["RUNNING"].colour).append(f"{empty} ", "dim")
    text.append(elide(words, width - text.cell_len, theme.ellipsis), "dim")
    return text.append(" " * (width - text.cell_len))


def words_of(step: StepView, now_ms: float, reported: _Reported, *, has_died: bool = False) -> str:
    """Return what there is to say of a step beside its status and its duration."""
    said = remarks_of(step, has_died=has_died)
    if said.died:
        return ", ".join(filter(None, [said.died, _items(step)]))
    is_running = step.status is StepStatus.RUNNING
    failure = said.failure
    if step.error is not None and own_error(step) is None:
        failure = ""  # its items say it
    parts = [
        *(said.before, said.waits, said.answered, said.reason, _items(step)),
        *(_items_under_way(step, reported) if is_running else ()),
        _attempt(step, now_ms) if is_running else "",
        *(failure, said.fallbacks, said.reused_items),
        # Of what was skipped, the reason takes the room.
        "" if step.status is StepStatus.SKIPPED else said.reused,
        "" if is_running or said.before else _attempts(step),
        said.again,
    ]
    return ", ".join(filter(None, parts))


def _attempt(step: StepView, now_ms: float) -> str:
    """Return which attempt is running or comes next."""
    latest, most = step.latest, step.max_retries
    if latest is None:
        return ""
    if step.retry_at_ms is not None:
        # When its time has come, the attempt may have to queue.
        left_s = math.ceil((step.retry_at_ms - now_ms) / 1000)
        when = f"in {left_s} s" if left_s > 0 else "now"
        why = "" if latest.error is None else f": {describe_error(latest.error)}"
        return f"next attempt {when} ({nth_of(latest.number + 1, most)}){why}"
    which = (
        "" if most in (None, 1) and latest.number == 1 else f"attempt {nth_of(latest.number, most)}"
    )
    if latest.is_queued:
        return ", ".join(filter(None, [which, f"waits for {latest.engine}"]))
    on = f"on {latest.engine}" if latest.engine else ""
    queued = f"queued {duration(latest.queued_ms)}" if latest.queued_ms >= 1 else ""
    return ", ".join(filter(None, [which, on, queued]))


def _attempts(step: StepView) -> str:
    """Return how many attempts it took, if more than one, and how many before it began anew."""
    count, most = len(step.attempts) - step.fresh_from, step.max_retries
    earlier = plural(step.fresh_from, "earlier attempt") if step.fresh_from else ""
    if count < 2:
        return earlier
    these = f"{count} attempts" if most is None else f"attempt {nth_of(count, most)}"
    return ", ".join(filter(None, [these, earlier]))


def _items(step: StepView) -> str:
    if step.items is None:
        return ""
    count = settled = _settled_items(step)
    of = ""
    if step.item_count is not None and step.status is not StepStatus.SUCCESS:
        count, of = step.item_count, f" of {step.item_count:,}"
    failed, why = step.tally[StepStatus.FAILED], ""
    if failed and step.ended_ms is not None:
        of = of or f" of {settled:,}"
        settled = step.tally[StepStatus.SUCCESS]
        why = f": {error_counts(each for each in item_errors(step) if each.end == 'failed')}"
    text = f"{settled:,}{of} item{'' if count == 1 else 's'}"
    return f"{text}, {failed:,} failed{why}" if failed else text


def _items_under_way(step: StepView, reported: _Reported) -> Iterator[str]:
    """Yield how far running items are that reported it: ``[2] 24 %``."""
    for number, progress in sorted(
        ((at, each) for at, each in reported.items() if at is not None), key=itemgetter(0)
    ):
        item = (step.items or {}).get(number)
        if item is not None and is_under_way(item) and progress_of(item, progress):
            share = percentage(progress)
            yield f"[{number}] {counted(progress) if share is None else f'{share} %'}"


def _settled_items(step: StepView) -> int:
    tally = step.tally
    return tally.total() - tally[StepStatus.PENDING] - tally[StepStatus.RUNNING]
