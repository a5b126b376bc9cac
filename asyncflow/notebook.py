"""A live display of runs in a notebook: Jupyter, JupyterLab, VS Code, Colab.

::

    from asyncflow.notebook import NotebookView

    report = await run_pipeline(steps, observers=[NotebookView()])
    report  # a report that is the last line of a cell shows the same table

Requires IPython, which every notebook has.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from asyncflow._views.notebook import to_notebook_html
from asyncflow._views.run_end import verdict
from asyncflow._views.run_view import RunView
from asyncflow.events import Event, RunFinished

try:
    from IPython.display import display
except ImportError as error:
    raise ImportError(
        "asyncflow.notebook needs IPython, which every notebook has: pip install ipython",
        name="IPython",
    ) from error

__all__ = ["NotebookView"]

_INTERVAL_S = 0.2
"""How often a display changes at most."""


class NotebookView:
    """Shows each run as a table below the cell that runs it; pass it to runs as an observer.

    The table has a row for each step, with its status, attempts, duration, and when it ran. It
    changes at most five times a second, and for the last time when the run ends. It has neither
    inputs nor outputs. One view may watch many runs.
    """

    def for_run(self) -> Callable[[Event], object]:
        """Return the observer of one run."""
        return _RunDisplay()


class _RunDisplay:
    def __init__(self) -> None:
        self._view = RunView()
        self._handle: Any = None
        self._timer: asyncio.TimerHandle | None = None

    def __call__(self, event: Event) -> None:
        self._view.apply(event)
        if isinstance(event, RunFinished):
            if self._timer is not None:
                self._timer.cancel()
            self._show()
        elif self._handle is None:
            self._show()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_INTERVAL_S, self._show)

    def _show(self) -> None:
        self._timer = None
        view = self._view
        shown = {"text/html": to_notebook_html(view), "text/plain": verdict(view)}
        if self._handle is None:
            self._handle = display(shown, raw=True, display_id=True)  # type: ignore[no-untyped-call]
        else:
            self._handle.update(shown, raw=True)
