"""Frames drawn in place on a terminal, with the program's output above them.

rich's `Live` is no substitute: it writes, and draws its frame again, in the thread that prints. A
slow terminal would block the event loop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import IO

from rich.cells import cell_len
from rich.console import COLOR_SYSTEMS, Console
from rich.text import Text

from asyncflow._views.slowness import slowness_of
from asyncflow.live._captured import CapturedOutput, Output, Printed, PrintedBy
from asyncflow.live._end import run_end
from asyncflow.live._frame import Expected, LiveRun, frame, summary, title
from asyncflow.live._renderer import EventBuffer
from asyncflow.live._theme import Theme, elide_middle, printable

_UP, _ERASE_BELOW, _ERASE_LINE_END, _RESET = "\x1b[{}A", "\x1b[J", "\x1b[K", "\x1b[0m"


class Screen:
    """Draws frames on a terminal, each in place of the one before.

    ``size`` returns the terminal's columns and lines, at any moment.
    """

    def __init__(
        self, console: Console, file: IO[str], size: Callable[[], tuple[int, int]]
    ) -> None:
        self._console = console
        self._file = file
        self.size = size
        self._lines: list[tuple[str, int]] = []
        """The lines on the screen, each with its width in cells."""
        self._width = 0

    def draw(self, above: str, lines: Sequence[Text], *, is_last: bool = False) -> None:
        """Draw a frame in place of the current one, in a single write.

        ``above`` is text to leave above the frame, and the terminal has room for all ``lines``. A
        frame that ``is_last`` stays: the next one is drawn below it.
        """
        width, height = self.size()
        # A terminal that has become narrower has wrapped the lines.
        rows = sum(max(-(-cells // width), 1) for _, cells in self._lines)
        is_same = not above and width == self._width
        output = [_UP.format(min(rows, height)) + "\r"] if rows else []
        if above:
            output += [_ERASE_BELOW, above, _RESET if "\x1b" in above else ""]
        drawn = [(self.styled(line), line.cell_len) for line in lines]
        for number, (styled, _) in enumerate(drawn):
            is_drawn = is_same and number < rows and self._lines[number][0] == styled
            output.append("\n" if is_drawn else f"{styled}{_ERASE_LINE_END}\n")
        if not is_same or rows > len(drawn):
            output.append(_ERASE_BELOW)
        self._lines, self._width = [] if is_last else drawn, width
        self.write("".join(output))

    def write(self, text: str) -> None:
        """Write text, with escapes for what the stream's encoding lacks.

        Raise `OSError` if the stream is closed, or its reader is gone.
        """
        if not text:
            return
        encoding = getattr(self._file, "encoding", None) or "utf-8"
        try:
            self._file.write(text.encode(encoding, "backslashreplace").decode(encoding))
            self._file.flush()
        except ValueError as error:
            raise OSError("the stream is closed") from error

    def styled(self, line: Text) -> str:
        """Return a line with its colours. `Console.print` takes ten times as long."""
        colours = COLOR_SYSTEMS.get(self._console.color_system or "")
        parts = []
        for text, style, _ in line.render(self._console):
            if style is not None and self._console.no_color:
                style = style.without_color
            parts.append(text if style is None else style.render(text, color_system=colours))
        return "".join(parts)


_WIDEST_LABEL = 20
"""How many cells the name before a printed line may have."""
_LEAST_LINES = 5
"""The height of a frame below which each run is one line instead."""
_LINES_BELOW = 2
"""How many lines stay free below the end of a run: for the command that resumes it."""


class FrameRenderer:
    """Draws runs as frames, one below the other.

    ``file`` is the stream that the screen writes to. ``expected`` may change at any time.
    """

    pause_s = 0.12

    def __init__(self, screen: Screen, file: IO[str], theme: Theme, expected: Expected) -> None:
        self._screen = screen
        self._expected = expected
        self._theme = theme
        self._captured = CapturedOutput(file)
        self._runs: dict[EventBuffer, LiveRun] = {}
        self.has_shown_end = False
        self._output = Output([], [], [])
        self._label_width = 0
        """How many cells the names before printed lines have."""

    def begin(self) -> None:
        self._captured.begin()

    def run_ended(self, buffer: EventBuffer, *, is_last: bool) -> None:
        self._captured.mark(buffer, ends_lines=is_last)

    def take(self, buffers: Sequence[EventBuffer]) -> None:
        self._runs = {buffer: self._runs.get(buffer) or self._new_run() for buffer in buffers}
        for buffer, run in self._runs.items():
            events = buffer.drain()
            run.apply(*events)
            self._captured.end_lines(run.view.run_id, events)
            self._label_width = max(self._label_width, min(run.name_width, _WIDEST_LABEL))
        self._output = self._captured.take()

    def _new_run(self) -> LiveRun:
        return LiveRun(self._expected)

    def draw(self) -> None:
        self._draw_ended()
        width, height = self._space()
        unfinished = self._output.unfinished
        hidden = max(len(unfinished) - max(height - _LEAST_LINES, 0), 0)
        lines = [self._unfinished_line(each, width) for each in unfinished[hidden:]]
        lines += self._frames(width, height - len(lines))
        self._screen.draw(self._above(self._output.printed), lines)
        self._output = Output([], [], [])

    def end(self) -> None:
        self._screen.draw("", [])
        self._captured.end(self._write_printed)

    def abort(self) -> None:
        with suppress(Exception):  # the screen may be what failed
            self._screen.draw(self._above(self._output.lines), [])
        with suppress(OSError):
            self._captured.end(self._write_printed)

    def _write_printed(self, printed: Sequence[Printed]) -> None:
        self._screen.write(self._above(printed))

    # What steps print.

    def _above(self, printed: Iterable[Printed]) -> str:
        """Return printed text with the name of the step before each of its lines."""
        parts, is_styled = [], False
        labels: dict[PrintedBy, str] = {}
        for by, text in printed:
            if by is None:
                parts.append(text)
                is_styled = is_styled or "\x1b" in text
                continue
            label = labels.get(by)
            if label is None:
                label = labels[by] = self._screen.styled(self._label(by))
            for line in text.removesuffix("\n").split("\n"):
                # A line that overwrote itself stays as it was in the end, after the name.
                shown = line.removesuffix("\r").rpartition("\r")[2]
                parts.append(f"{_RESET if is_styled else ''}{label}{shown}\n")
                is_styled = "\x1b" in shown
        return "".join(parts)

    def _label(self, by: PrintedBy) -> Text:
        width = min(_WIDEST_LABEL, max(self._screen.size()[0] // 3, 1))
        name = elide_middle(printable(by.label, self._theme.encoding), width, self._theme.ellipsis)
        self._label_width = max(self._label_width, cell_len(name))
        padding = " " * (min(self._label_width, width) - cell_len(name))
        return Text(f"{name}{padding}", "cyan", no_wrap=True, end="").append(" | ", "dim")

    def _unfinished_line(self, printed: Printed, width: int) -> Text:
        text = Text() if printed.by is None else self._label(printed.by)
        shown = printable(printed.text, self._theme.encoding)
        return text.append(elide_middle(shown, max(width - text.cell_len, 1), self._theme.ellipsis))

    def _draw_ended(self) -> None:
        """Draw the last frames of the runs that ended, each below the output before its end."""
        while self._output.before:
            printed, buffer = self._output.before[0]
            run = self._runs.pop(buffer, None) or self._new_run()  # it may be newer than `take`
            run.apply(*buffer.drain())
            self._screen.draw(self._above(printed), self._last_lines(run), is_last=True)
            self.has_shown_end = self.has_shown_end or not run.view.is_running
            del self._output.before[0]

    def _last_lines(self, run: LiveRun) -> list[Text]:
        """Return what stays of a run: its end, or its last frame if it does not have one."""
        width, height = self._space()
        if not run.has_begun:
            return []
        if run.view.is_running:
            return self._frame(run, width, height, min_height=0)
        return run_end(
            run.view,
            width=width,
            height=max(height - _LINES_BELOW, 1),
            theme=self._theme,
            title=title(run, width, run.now_ms(), self._theme),
            slower=slowness_of(run.view, run.expected.run_ms, run.expected.steps_ms),
        )

    def _space(self) -> tuple[int, int]:
        """Return how many cells and lines frames may take."""
        width, height = self._screen.size()
        return max(width - 1, 1), max(height - 1, 1)

    def _frames(self, width: int, height: int) -> list[Text]:
        begun = [run for run in self._runs.values() if run.has_begun]
        lines: list[Text] = []
        for number, run in enumerate(begun):
            share = (height - len(lines)) // (len(begun) - number)
            if share < _LEAST_LINES and len(begun) > 1:
                return _many(begun, width, height, self._theme)
            lines += self._frame(run, width, share, min_height=run.height)
        return lines

    def _frame(self, run: LiveRun, width: int, height: int, *, min_height: int) -> list[Text]:
        lines = frame(
            run,
            width=width,
            height=height,
            now_ms=run.now_ms(),
            theme=self._theme,
            min_height=min_height,
        )
        run.height = len(lines)
        return lines


def _many(runs: Sequence[LiveRun], width: int, height: int, theme: Theme) -> list[Text]:
    """Return one line for each run, as far as there is room."""
    listed = runs if len(runs) <= height else runs[: max(height - 1, 0)]
    lines = []
    for run in listed:
        name = printable(run.view.pipeline or run.view.run_id, theme.encoding)
        text = Text(f"{elide_middle(name, width // 3, theme.ellipsis)}  ", no_wrap=True)
        text.append(summary(run, width - text.cell_len, run.now_ms(), theme))
        lines.append(text)
    if len(listed) < len(runs):
        lines.append(Text(f"and {len(runs) - len(listed):,} more runs", "dim"))
    return lines
