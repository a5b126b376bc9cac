"""The end of a run, which takes the place of its last frame.

Rules:

1. A run that passed ends with one line.
2. Of any other run, only what did not succeed is shown, and the verdict is the last line.
3. It is never taller than it may be: first the frames of errors are left out, then the errors that
   came last.
"""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterator, Sequence

from rich.cells import cell_len
from rich.text import Text

from asyncflow._core.analysis.failures import why_failed
from asyncflow._core.analysis.looks import RUN_LOOKS, STEP_LOOKS
from asyncflow._core.analysis.remarks import nth_of, waited_text
from asyncflow._core.analysis.slowness import Slower
from asyncflow._core.history.results import RunStatus, StepStatus
from asyncflow._core.history.step_view import StepView
from asyncflow._core.text import describe_error, duration, error_lines, plural
from asyncflow._core.tracebacks import user_frames
from asyncflow._views.item_errors import items_text
from asyncflow._views.run_end import LostSteps, lost_steps, verdict
from asyncflow._views.run_view import RunView
from asyncflow.live._theme import Theme, elide, elide_middle, printable

_INDENT = 13
"""How many cells the status of a step takes."""
_MOST_GROUPS = 4
_DETAIL = ((3, 8), (3, 3), (2, 2), (1, 2), (1, 1), (0, 1))
"""How many frames and lines of its message each error may have, by how little room there is."""


def run_end(
    view: RunView,
    *,
    width: int,
    height: int,
    theme: Theme,
    title: Text,
    slower: Slower | None = None,
) -> list[Text]:
    """Return the lines that show how a run ended.

    ``width`` is how many cells a line may take, and ``height`` how many lines there may be, at
    least 1. ``slower`` is as in `verdict`.
    """
    foot = verdict_lines(view, width, theme, slower=slower)[:height]
    if view.status is RunStatus.PASSED:
        if len(foot) == 1 and foot[0].cell_len + 2 + title.cell_len <= width:
            foot[0].append("  ").append(title.plain, "dim")
        body = []
    else:
        lost = list(_lost(lost_steps(view), width, theme))
        room = height - 1 - len(lost) - len(foot)
        body = [title, *_failed(view, room, width, theme), *lost]
    lines = [*body, *foot][-height:]
    for line in lines:
        line.truncate(width)  # with hardly any cells, the columns don't shrink any further
    return lines


def verdict_lines(
    view: RunView,
    width: int,
    theme: Theme,
    *,
    now_ms: float | None = None,
    has_died: bool = False,
    slower: Slower | None = None,
    usual_ms: float | None = None,
) -> list[Text]:
    """Return how a run ended, or where it stands, in lines of a width; see `verdict`."""
    words = verdict(view, now_ms, has_died=has_died, slower=slower, usual_ms=usual_ms)
    word = words.split(" ", 1)[0].rstrip(":")
    look = RUN_LOOKS[word]
    text = f"{theme.symbol(look)} {words}"
    lines = [Text(each, no_wrap=True) for each in textwrap.wrap(text, max(width, 20))]
    lines[0].stylize(f"bold {look.colour}", 0, 2 + len(word))
    return lines


def path_lines(view: RunView, path: Sequence[str], width: int, theme: Theme) -> list[Text]:
    """Return the critical path in lines of a width, if a step on it waits, or waited, for a signal.

    The duration of a run is without such waits, so nothing else says what it took so long for.
    """
    waits = {name: _waits(view.steps[name]) for name in path}
    if not any(waits.values()):
        return []
    arrow = "->" if theme.is_ascii else "→"
    parts = [f"{name} ({wait})" if wait else name for name, wait in waits.items()]
    parts = [printable(part, theme.encoding) for part in parts]
    lines = [f"Critical path: {parts[0]}"]
    for part in parts[1:]:
        if cell_len(f"{lines[-1]} {arrow} {part}") <= width:
            lines[-1] += f" {arrow} {part}"
        else:
            lines.append(f"  {arrow} {part}")
    return [Text(elide(line, width, theme.ellipsis), "dim", no_wrap=True) for line in lines]


def _waits(step: StepView) -> str:
    return "waits" if step.waiting_since is not None else waited_text(step)


# Failed steps.


def _failed(view: RunView, room: int, width: int, theme: Theme) -> list[Text]:
    steps = view.failures
    shown = steps if 2 * len(steps) <= room else steps[: max((room - 1) // 2, 0)]
    more = [f"{theme.ellipsis} and {len(steps) - len(shown):,} more with errors"]
    more = more if len(shown) < len(steps) and room > 0 else []
    lines: list[Text] = []
    for frames, most in _DETAIL:
        lines = [
            line for step in shown for line in _with_error(view, step, frames, most, width, theme)
        ]
        if len(lines) + len(more) <= room:
            break
    return [*lines, *(Text(each, "dim", no_wrap=True) for each in more)]


def _with_error(
    view: RunView, step: StepView, frames: int, most: int, width: int, theme: Theme
) -> Iterator[Text]:
    """Yield the lines of a step: its name, the user's innermost frames, and its error.

    Those of items are in groups, and the frames are of the first one.
    """
    error, groups = why_failed(step)
    yield failure_head(step, width, theme)
    for frame in user_frames(error or groups[0].first)[-frames:] if frames else []:
        place = f'File "{_shown_path(frame.path)}", line {frame.line}, in {frame.function}'
        yield _line(f"  {place}", width, theme)
        if frame.code:
            yield _line(f"    {frame.code}", width, theme)
    texts = [] if error is None else _message(error)
    lines = [line for each in texts for line in textwrap.wrap(each, max(width - 2, 10))]
    lines += [f"{group.words}, {items_text(view, step, group)}" for group in groups]
    if len(lines) > most:
        lines = [*lines[: most - 1], " ".join(lines[most - 1 :])]
    for line in lines:
        yield _line(f"  {line}", width, theme, STEP_LOOKS[step.status].colour)


def failure_head(step: StepView, width: int, theme: Theme) -> Text:
    """Return the first line about a failed step: its status, its name, and its attempts."""
    head, name = _status(step.status, theme), printable(step.name, theme.encoding)
    head.append(elide_middle(name, max(width - _INDENT, 1), theme.ellipsis), "bold")
    note = f"  {_note(step)}"
    return head.append(note) if head.cell_len + len(note) <= width else head


def _note(step: StepView) -> str:
    parts = []
    if step.items is not None:
        count = len(step.items) if step.item_count is None else step.item_count
        parts.append(f"{step.tally[StepStatus.FAILED]:,} of {plural(count, 'item')} failed")
    elif step.latest is not None and step.max_retries not in (None, 1):
        parts.append(f"attempt {nth_of(step.latest.number, step.max_retries)}")
    lasted_ms = step.duration_ms(step.ended_ms or 0.0)
    if lasted_ms is not None:
        parts.append(duration(lasted_ms))
    return ", ".join(parts)


def _message(error: BaseException) -> list[str]:
    """Return the lines of an error; of a group, with its first error, unless its line has that."""
    parts = [describe_error(error)]
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
        if (described := describe_error(error)) not in parts[-1]:
            parts.append(described)
    return [": ".join(parts), *error_lines(error)[1:]]


def _shown_path(path: str) -> str:
    """Return a path below the current directory as relative to that."""
    try:
        return path.removeprefix(os.path.join(os.getcwd(), ""))
    except OSError:  # the directory is gone
        return path


# Lost steps.


def _lost(groups: Sequence[LostSteps], width: int, theme: Theme) -> Iterator[Text]:
    room = max(width - _INDENT, 1)
    for status, reason, names in groups[:_MOST_GROUPS]:
        short = f"{plural(len(names), 'step') if len(names) > 1 else names[0]}: {reason}"
        long = f"{plural(len(names), 'step')} ({', '.join(names)}): {reason}"
        is_long = 1 < len(names) < room and cell_len(long) <= room
        text = printable(long if is_long else short, theme.encoding)
        yield _status(status, theme).append(elide(text, room, theme.ellipsis), "dim")
    others = groups[_MOST_GROUPS:]
    if others:
        steps = plural(sum(len(each.names) for each in others), "step")
        reasons = plural(len(others), "other reason")
        yield _line(f"{theme.ellipsis} and {steps} for {reasons}", width, theme, "dim")


# Parts of lines.


def _status(status: StepStatus, theme: Theme) -> Text:
    look = STEP_LOOKS[status]
    text = Text(f"{theme.symbol(look)} {look.word}", look.colour, no_wrap=True, end="")
    return text.append(" " * (_INDENT - text.cell_len))


def _line(text: str, width: int, theme: Theme, style: str = "") -> Text:
    shown = elide(printable(text, theme.encoding), width, theme.ellipsis)
    return Text(shown, style, no_wrap=True)
