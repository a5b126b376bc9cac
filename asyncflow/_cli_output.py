"""How the command line writes: results to the standard output, all else to the standard error.

Rules:

1. A colour only repeats what a word says, and only a terminal is given any.
2. What goes into a file or a pipe is neither cut nor folded.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import click
from rich.console import Console
from rich.text import Text

from asyncflow._cli_errors import RUN_FAILED, CommandError
from asyncflow._core.errors import in_one_line
from asyncflow._core.report import RunReport
from asyncflow._core.results import StepResult, StepStatus
from asyncflow._core.tracebacks import format_error
from asyncflow._look import COLOURS, sign_of_run
from asyncflow.events import Event

__all__ = [
    "logs_on_stderr",
    "only_results_on_stdout",
    "page_writer",
    "report_lines",
    "say",
    "say_json",
    "stdout_console",
    "tell",
    "tracebacks",
    "write_html",
]

_STATUS = re.compile(rf"(?m)^\[(?P<step>{'|'.join(StepStatus)}) *\] |^Pipeline (?P<run>[A-Z]+)$")
_WIDE = 100_000
"""How wide a file is, in characters."""


def stdout_console() -> Console:
    """Return a console for results: as wide as the terminal, or as they are."""
    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = _WIDE
    return console


def say(text: str) -> None:
    """Write a result, the words for statuses at the start of its lines in their colours."""
    styled = Text(text)
    for found in _STATUS.finditer(text):
        kind = found.lastgroup or ""
        status = StepStatus(found[kind]) if kind == "step" else sign_of_run(found[kind])
        styled.stylize(COLOURS[status], *found.span(kind))
    stdout_console().print(styled, soft_wrap=True)


def say_json(text: str) -> None:
    """Write JSON as a result."""
    click.echo(text)


def page_writer() -> Callable[[Iterable[Event]], str]:
    """Return what makes the page of a run of its events.

    Raises:
        ImportError: The extra that it needs is missing.
    """
    from asyncflow.html_report import to_html  # few commands need it, and it takes a while

    return to_html


def write_html(path: Path, events: Iterable[Event]) -> None:
    """Write the page of a run.

    Raises:
        ImportError: The extra that it needs is missing.
        CommandError: The file can't be written.
    """
    page = page_writer()(events)
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise CommandError(f"the HTML report can't be written: {error}", RUN_FAILED) from error


def tell(text: str, *, quiet: bool = False) -> None:
    """Write something that is no result."""
    if not quiet:
        click.echo(text, err=True)


def report_lines(report: RunReport) -> str:
    """Return a report as text, and why the run stopped."""
    if report.stop_reason is None or report.outcome == "passed":
        return str(report)
    return f"{report}\nStopped: {in_one_line(report.stop_reason)}"


def tracebacks(report: RunReport, *, limit: int | None = None, all_frames: bool = False) -> str:
    """Return the tracebacks of what went wrong in a run, that of the first failure first.

    Args:
        report: The report of the run.
        limit: For how many steps; ``None`` for all.
        all_frames: Whether frames of asyncflow are to be shown too.
    """
    failed = sorted(_with_errors(report.values()), key=_place)
    parts = [_traceback(result, all_frames) for result in failed[:limit]]
    if limit is not None and len(failed) > limit:
        parts.append(f"… and {len(failed) - limit} more steps with errors")
    return "\n\n".join(parts)


def _with_errors(results: Iterable[StepResult]) -> list[StepResult]:
    return [result for result in results if result.error is not None]


def _place(result: StepResult) -> tuple[bool, float]:
    """Return where an error belongs: those of failures first, by when they ended."""
    ended_ms = (result.started_ms or 0.0) + result.duration_ms
    return result.status is not StepStatus.FAILED, ended_ms


def _traceback(result: StepResult, all_frames: bool) -> str:
    assert result.error is not None
    name, verb = in_one_line(result.step_name), result.status.lower()
    # Those of a mapped step are of all its items.
    attempt = "" if result.items is not None else f", attempt {result.attempts}"
    return f"Step {name} {verb}{attempt}:\n{format_error(result.error, all_frames=all_frames)}"


@contextmanager
def only_results_on_stdout(is_asked: bool) -> Iterator[None]:
    """Let what modules and steps print go to the standard error, if only JSON may be in the other.

    It is only for what this process prints by `print` and the like.
    """
    if not is_asked:
        yield
        return
    with redirect_stdout(sys.stderr):
        yield


class _ToStderr(logging.Handler):
    """Writes to what is the standard error now, which a live view may have taken over."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record."""
        click.echo(self.format(record), err=True)


@contextmanager
def logs_on_stderr() -> Iterator[None]:
    """Show warnings that are logged meanwhile, unless somebody else has seen to that."""
    root = logging.getLogger()
    if root.handlers:
        yield
        return
    handler = _ToStderr(logging.WARNING)
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
