"""What ``asyncflow show RUN`` prints, in the words and columns of ``asyncflow run``.

Rules:

1. Each step has a line. On a terminal, words that don't fit go on below, and no word is broken.
2. What failed comes after the steps, the first failure first, and the verdict is the last line.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import NamedTuple

from rich.console import Console
from rich.text import Text

from asyncflow._cli.output import hanging
from asyncflow._core.analysis.failures import final_errors, item_errors
from asyncflow._core.analysis.looks import DIED_LOOK, STEP_LOOKS, WAITS_LOOK, Look, look_of
from asyncflow._core.analysis.remarks import failure_text
from asyncflow._core.history.step_view import StepView
from asyncflow._core.text import duration, escape_controls, plural
from asyncflow._views.event_text import place_text
from asyncflow._views.item_errors import items_text, traceback_lines
from asyncflow._views.preview import local_moment_text
from asyncflow._views.received import received_text
from asyncflow._views.run_end import endured_steps
from asyncflow._views.run_view import RunView
from asyncflow._views.signal_form import type_of_signal
from asyncflow._views.waiting import waited_ms
from asyncflow.live._end import failure_head
from asyncflow.live._row import Columns, columns_for, words_of
from asyncflow.live._theme import Theme, elide, fit, printable, widest

_MOST_STEPS = 40
_MOST_ENDURED = 20
"""How many kinds of failures of steps that succeeded are listed."""
_STATUS, _TOOK = 11, 9


class _Row(NamedTuple):
    look: Look
    name: str
    words: str
    took: str


def step_lines(
    steps: Sequence[StepView],
    console: Console,
    theme: Theme,
    now_ms: float,
    *,
    has_died: bool = False,
    is_grouped: bool = False,
) -> list[Text]:
    """Return the lines of steps, in aligned columns.

    ``has_died`` says whether the process of the run is gone. If they are grouped, many steps that
    ended alike share a line, unless they have an error.
    """
    now_s = time.time()
    rows = [_row(step, theme, now_ms, now_s, has_died=has_died) for step in steps]
    if is_grouped and len(rows) > _MOST_STEPS:
        rows = _grouped(steps, rows)
    names, words = widest(row.name for row in rows), widest(row.words for row in rows)
    columns = Columns(0, _STATUS, names, words, _TOOK)
    if console.is_terminal and sum(columns) + 6 > console.width:
        columns = columns_for(console.width, 0, names)
    return [line for row in rows for line in _lines(row, columns, console, theme)]


def _row(step: StepView, theme: Theme, now_ms: float, now_s: float, *, has_died: bool) -> _Row:
    look = look_of(step, has_died=has_died)
    words = words_of(step, now_ms, {}, has_died=has_died)
    took_ms = step.duration_ms(now_ms) if step.waiting_since is None else waited_ms(step, now_s)
    return _Row(
        look,
        printable(step.name, theme.encoding),
        printable(words, theme.encoding),
        "" if took_ms is None else duration(took_ms),
    )


def _grouped(steps: Sequence[StepView], rows: Sequence[_Row]) -> list[_Row]:
    alike: dict[tuple[object, ...], list[_Row]] = {}
    for step, row in zip(steps, rows, strict=True):
        key = (row.look, row.words, row.name if step.error is not None else "")
        alike.setdefault(key, []).append(row)
    return [
        same[0] if len(same) == 1 else same[0]._replace(name=plural(len(same), "step"), took="")
        for same in alike.values()
    ]


def _lines(row: _Row, columns: Columns, console: Console, theme: Theme) -> Iterator[Text]:
    look, line = row.look, Text()
    status = f"{theme.symbol(look)} {look.word}"
    line.append(fit(status[: columns.status], columns.status), look.colour)
    line.append(f"  {fit(row.name, columns.name, theme.ellipsis)}")
    more: list[str] = []
    if columns.note > 0:
        first = row.words
        if look is STEP_LOOKS["FAILED"]:  # its error follows in full
            first = elide(first, columns.note, theme.ellipsis)
        elif console.is_terminal:
            parts = [part.plain.rstrip() for part in Text(first).wrap(console, columns.note)]
            first, *more = parts or [""]
        line.append(
            "  " + fit(first, columns.note),
            look.colour if look in (DIED_LOOK, WAITS_LOOK) else "dim",
        )
    line.append(f"  {row.took:>{columns.duration}}")
    line.rstrip()
    yield line
    for part in more:
        yield Text(" " * (columns.status + columns.name + 4) + part, "dim")


def asked_lines(view: RunView, console: Console, answered: Collection[str] = ()) -> Iterator[Text]:
    """Yield what each signal asks for which a run waits: with its type, since and until when."""
    for step in view.waiting:
        kind = type_of_signal(view.signals.schemas.get(step.name, {})) or "a value"
        times = f"since {local_moment_text(step.waiting_since or 0.0)}"
        if step.waiting_until is not None:
            times += f", until {local_moment_text(step.waiting_until)}"
            times += f", then {step.otherwise}" if step.otherwise else ""
        has_come = "; its answer has come" if step.name in answered else ""
        line = f"{step.name} waits for {kind}, {times}{has_come}"
        yield from hanging(Text(escape_controls(line)), 2, console)
        if step.refused:
            refused = f"  An answer was refused: {step.refused}"
            yield from hanging(Text(escape_controls(refused)), 4, console)
        for text in step.description.splitlines():
            yield from hanging(Text(f"  {escape_controls(text)}"), 2, console)


def failure_lines(view: RunView, console: Console, theme: Theme) -> Iterator[Text]:
    """Yield the steps with errors, the first failure first, each with its traceback."""
    for step in view.failures:
        yield Text("")
        head = failure_head(step, console.width, theme)
        if step.latest is not None and step.latest.engine:
            place = place_text(step.latest.engine, step.latest.worker)
            head.append(f", on {printable(place, theme.encoding)}")
        yield from hanging(head, _STATUS + 2, console)
        yield from indented(traceback_lines(view, step), console)
        if step.items is None and (taken := received_text(view, step)):
            yield from hanging(Text(taken), 2, console)


def endured_lines(view: RunView, console: Console) -> Iterator[Text]:
    """Yield what failed of steps that succeeded: tolerated items, and what fell back."""
    lines = []
    for step in endured_steps(view):
        name = escape_controls(step.name)
        if step.error is not None:
            lines.append(f"  {name}: {failure_text(step)}")
        lines += [
            f"  {name}: {'' if group.end == 'failed' else f'{group.end}: '}{group.words}, "
            + items_text(view, step, group)
            for group in final_errors(item_errors(step))
        ]
    if lines:
        left_out = len(lines) - _MOST_ENDURED
        more = [f"  … {plural(left_out, 'kind')} more"] if left_out > 0 else []
        title = "Failed, and tolerated or fell back:"
        yield from indented(["", title, *lines[:_MOST_ENDURED], *more], console)


def indented(texts: Iterable[str], console: Console) -> Iterator[Text]:
    """Yield lines of text that keep their indentation where they go on below."""
    for text in texts:
        yield from hanging(Text(text), len(text) - len(text.lstrip()) + 2, console)
