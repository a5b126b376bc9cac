"""A live view of runs in a terminal.

::

    from asyncflow.live import LiveView

    with LiveView() as view:
        report = await run_pipeline(steps, observers=[view])

Requires rich: ``pip install 'asyncflow-tiers[cli]'``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import TracebackType
from typing import IO

from asyncflow._core.errors import MissingExtraError
from asyncflow.events import Event

try:
    from rich.console import Console
except ImportError as error:
    raise MissingExtraError(
        "asyncflow.live needs rich, which comes with an extra: pip install 'asyncflow-tiers[cli]'",
        name="rich",
    ) from error

from asyncflow.live._captured import CapturedStream
from asyncflow.live._frame import Expected
from asyncflow.live._lines import LineRenderer
from asyncflow.live._renderer import Renderer, RenderThread
from asyncflow.live._screen import FrameRenderer, Screen
from asyncflow.live._theme import theme_for

__all__ = ["LiveView"]


class LiveView:
    """Shows runs in a terminal while they run; pass it to them as an observer.

    On a terminal each run has a frame that is redrawn in place, about eight times a second: its
    steps by tier, with status, attempt, the time until the next one, items and durations, and how
    many steps are done. A frame is never taller than the terminal: running and failed steps come
    first, and each tier counts the others in one line. Whatever the program prints or logs appears
    above the frame, and each line that a step prints begins with its name. The end of a run takes
    the place of its frame: one line if it passed, else what did not succeed, and the verdict last.

    Elsewhere (a file, a pipe, a ``dumb`` terminal) each event is one line, with the time on the
    run's clock: ``[0:00:01.234] extract: attempt 2 of 3 started``. The items of a mapped step have
    a line for each tenth of them, and each failure one.

    ``NO_COLOR`` is respected, and colour never carries information alone.

    One view may watch many runs at once, in any threads; their frames stand one below the other. A
    thread draws, so a slow terminal never delays a run. The thread lives while there are runs. A
    ``with`` statement ends the view, even when a run ends by an exception; without one, the end of
    the last run waits for the last frame.

    Args:
        console: Where to draw; by default a rich console on ``sys.stderr``.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console
        self._expected = Expected()
        self._is_held = False
        self._renderer: Renderer | None = None
        self._thread = RenderThread(self._make_renderer)

    def for_run(self) -> Callable[[Event], object]:
        """Return the observer of one run."""
        return self._thread.observer(waits=not self._is_held)

    def expect(
        self, run_ms: float | None, steps_ms: Mapping[str, float], *, elsewhere: bool = False
    ) -> None:
        """Show how long is left of runs, and of their running steps, by how long they usually take.

        It may be called while they run. A journal knows both: ``await journal.usual_ms("etl")``,
        and ``usual_ms`` of ``await journal.statistics("etl")``.

        Args:
            run_ms: How many milliseconds a run usually takes; ``None`` if that is unknown.
            steps_ms: The same of steps, by name, as far as it is known.
            elsewhere: Whether another process runs them, and what this view observes is what a
                journal has. Then the wall clock tells for how long they have been running.
        """
        self._expected.run_ms, self._expected.steps_ms = run_ms, steps_ms
        self._expected.is_elsewhere = elsewhere

    @property
    def has_shown_end(self) -> bool:
        """Whether the end of a run stays on the terminal: its verdict and its failures."""
        return self._renderer is not None and self._renderer.has_shown_end

    def __enter__(self) -> LiveView:
        self._is_held = True
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._is_held = False
        self._thread.close()

    def _make_renderer(self) -> Renderer:
        self._renderer = self._renderer_for_stream()
        return self._renderer

    def _renderer_for_stream(self) -> Renderer:
        console = Console(stderr=True) if self._console is None else self._console
        file = console.file
        screen = Screen(console, file, lambda: self._size(console, file))
        # What is written to a stream that another view captures would end up above its frame.
        is_in_place = console.is_interactive and not console.legacy_windows
        if self._console is None:  # FORCE_COLOR alone makes a console interactive
            is_in_place = is_in_place and file.isatty()
        if is_in_place and not isinstance(file, CapturedStream):
            return FrameRenderer(screen, file, theme_for(console.encoding), self._expected)
        return LineRenderer(screen.write)

    def _size(self, console: Console, file: IO[str]) -> tuple[int, int]:
        """Return the terminal's columns and lines; rich asks only the standard streams."""
        if self._console is None and not {"COLUMNS", "LINES"} & os.environ.keys():
            with suppress(OSError):
                width, height = os.get_terminal_size(file.fileno())
                if width and height:  # 0 if a pseudo-terminal does not know its size
                    return width, height
        return console.size
