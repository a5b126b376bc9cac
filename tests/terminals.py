"""A real pseudo-terminal, with a screen that shows its output."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import termios
import threading
import time
from typing import Any

import pyte

__all__ = ["Terminal"]


class Terminal:
    """A pseudo-terminal with a scrollback of 10,000 lines."""

    def __init__(self, columns: int = 80, lines: int = 24) -> None:
        self._screen = pyte.HistoryScreen(columns, lines, history=10_000)
        self._stream = pyte.ByteStream(self._screen)
        self._ours, self.device = pty.openpty()
        self.resize(columns, lines)
        self._written = b""
        self._shown = threading.Lock()
        """Held from a read until its data is on the screen."""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def resize(self, columns: int, lines: int) -> None:
        size = struct.pack("HHHH", lines, columns, 0, 0)
        fcntl.ioctl(self.device, termios.TIOCSWINSZ, size)
        self._screen.resize(lines, columns)

    def open(self, encoding: str = "utf-8") -> Any:
        """Return a stream like a program's standard output."""
        return open(os.dup(self.device), "w", buffering=1, encoding=encoding)

    def press(self, keys: bytes) -> None:
        """Type these keys."""
        os.write(self._ours, keys)

    def close(self) -> None:
        """Close the device, and wait until all output is on the screen."""
        if self.device >= 0:
            os.close(self.device)
            self.device = -1
            self._reader.join()
            os.close(self._ours)

    @property
    def lines(self) -> list[str]:
        """All lines, with the scrollback and without trailing blanks."""
        above = [
            "".join(line[column].data for column in range(self._screen.columns))
            for line in self._screen.history.top
        ]
        return [line.rstrip() for line in [*above, *self._screen.display]]

    def styled_lines(self) -> list[list[Any]]:
        """Return the lines of the screen down to the last that is not blank, as characters."""
        lines = [
            [self._screen.buffer[row][column] for column in range(self._screen.columns)]
            for row in range(self._screen.lines)
        ]
        while lines and not "".join(char.data for char in lines[-1]).strip():
            lines.pop()
        return lines

    @property
    def text(self) -> str:
        """The text of all lines, with everything that has been written so far."""
        self._let_reader_finish()
        with self._shown:
            return "\n".join(self.lines).rstrip()

    @property
    def written(self) -> bytes:
        """The bytes that have been written so far."""
        self._let_reader_finish()
        return self._written

    def _let_reader_finish(self) -> None:
        while True:
            with self._shown:
                if self.device < 0 or not select.select([self._ours], [], [], 0)[0]:
                    return
            time.sleep(0.001)

    def _read(self) -> None:
        while True:
            select.select([self._ours], [], [])
            with self._shown:
                try:
                    data = os.read(self._ours, 65536)
                except OSError:  # the last stream was closed
                    return
                if not data:
                    return
                self._written += data
                self._stream.feed(data)
