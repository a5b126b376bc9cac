"""Frames on a terminal, each in the place of the one before."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import IO

from rich.color import ColorSystem
from rich.console import Console
from rich.text import Text

__all__ = ["Screen"]

_COLOURS = {
    "standard": ColorSystem.STANDARD,
    "256": ColorSystem.EIGHT_BIT,
    "truecolor": ColorSystem.TRUECOLOR,
}
_UP, _TO_THE_END, _REST_OF_LINE, _PLAIN = "\x1b[{}A", "\x1b[J", "\x1b[K", "\x1b[0m"


class Screen:
    """Args:
    console: Says what colours the terminal has.
    file: What is written to.
    size: Says how many columns and lines it has, at any moment.
    """

    def __init__(
        self, console: Console, file: IO[str], size: Callable[[], tuple[int, int]]
    ) -> None:
        self._console = console
        self._file = file
        self.size = size
        self._lines: list[tuple[str, int]] = []
        """What stands there, and how many cells each line takes."""
        self._width = 0

    def draw(self, above: str, lines: Sequence[Text], *, is_last: bool = False) -> None:
        """Draw a frame in the place of the one that stands there.

        Args:
            above: Text that is to stand above it, for good.
            lines: The lines of the frame, no more than the terminal has.
            is_last: Whether it is to stay there for good.
        """
        width, height = self.size()
        rows = sum(max(-(-cells // width), 1) for _, cells in self._lines)
        is_same = not above and width == self._width
        output = [_UP.format(min(rows, height)) + "\r"] if rows else []
        if above:
            plain = _PLAIN if "\x1b" in above else ""
            output.append(f"{_TO_THE_END}{above}{plain}")
        drawn = [(self._styled(line), line.cell_len) for line in lines]
        for number, (styled, _) in enumerate(drawn):
            stands = is_same and number < rows and self._lines[number][0] == styled
            output.append("\n" if stands else f"{styled}{_REST_OF_LINE}\n")
        if not is_same or rows > len(drawn):
            output.append(_TO_THE_END)
        self._lines, self._width = [] if is_last else drawn, width
        self.write("".join(output))

    def write(self, text: str) -> None:
        """Write text, with escapes for what the terminal's encoding does not have.

        Raises:
            OSError: Nobody reads it any more.
        """
        if not text:
            return
        encoding = getattr(self._file, "encoding", None) or "utf-8"
        try:
            self._file.write(text.encode(encoding, "backslashreplace").decode(encoding))
            self._file.flush()
        except ValueError as error:
            raise OSError("the stream is closed") from error

    def _styled(self, line: Text) -> str:
        """Return a line with its colours. `Console.print` does much more, in ten times the time."""
        colours = _COLOURS.get(self._console.color_system or "")
        parts = []
        for text, style, _ in line.render(self._console):
            if style is not None and self._console.no_color:
                style = style.without_color
            parts.append(text if style is None else style.render(text, color_system=colours))
        return "".join(parts)
