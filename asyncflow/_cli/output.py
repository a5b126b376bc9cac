"""How the command line writes: results to the standard output, all else to the standard error.

Rules:

1. A colour only repeats what a word says, and only a terminal is given any.
2. What goes into a file or a pipe is neither cut nor folded.

What the command line says and returns when something is wrong.

Rules:

1. An error is one paragraph, which says what to do, on the standard error.
2. A traceback is shown where the reader's own code has raised, and where ours has a bug.
"""

from __future__ import annotations

import errno
import logging
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import click
from rich.console import Console
from rich.text import Text

from asyncflow._core.errors import (
    JournalError,
    RunAlreadyActiveError,
    RunNotFoundError,
    escape_controls,
)
from asyncflow._core.report import RunReport
from asyncflow._core.results import StepResult, StepStatus
from asyncflow._core.tracebacks import format_error
from asyncflow.events import Event
from asyncflow.live._theme import COLOURS, status_for_run

__all__ = [
    "BUG",
    "INTERRUPTED",
    "INVALID",
    "NOT_FOUND",
    "PASSED",
    "RUN_FAILED",
    "USAGE",
    "CommandError",
    "errors_explained",
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

PASSED = 0
RUN_FAILED = 1
USAGE = 2
INVALID = 3
NOT_FOUND = 4
BUG = 70
INTERRUPTED = 130

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
"""What the system says of a file, or the device below it, that takes no more."""


class CommandError(Exception):
    """Something that the command line can't do, and what to do instead.

    Args:
        message: One paragraph.
        exit_code: With what the process ends.
        trace: The traceback of the reader's code, if that has raised.
    """

    def __init__(self, message: str, exit_code: int, trace: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.exit_code = exit_code
        self.trace = trace


@contextmanager
def errors_explained() -> Iterator[None]:
    """Say what is wrong when a command raises something, and end it with the exit code for that."""
    try:
        yield
    except (click.exceptions.Exit, click.ClickException, click.Abort):
        raise
    except (KeyboardInterrupt, Exception) as error:
        if isinstance(error, OSError) and error.errno == errno.EPIPE:
            raise  # nobody reads on, as behind `| head`
        refusal = _refusal_of(error)
        if refusal.trace:
            click.echo(refusal.trace.rstrip("\n"), err=True)
        click.echo(f"Error: {escape_controls(refusal.message)}", err=True)
        raise click.exceptions.Exit(refusal.exit_code) from error


def _refusal_of(error: BaseException) -> CommandError:
    match error:
        case CommandError():
            return error
        case RunNotFoundError():
            hint = "" if error.hint else "; `asyncflow runs` lists those it has"
            return CommandError(f"{error}{hint}", NOT_FOUND)
        case RunAlreadyActiveError():
            return CommandError(_active(error), RUN_FAILED)
        case JournalError():
            return CommandError(str(error), RUN_FAILED)
        case ImportError() if "asyncflow-tiers[" in str(error):
            return CommandError(str(error), USAGE)
        case KeyboardInterrupt():
            return CommandError("interrupted", INTERRUPTED)
        case OSError() if error.errno in _FULL:
            why = f"nothing more can be written: {error.strerror}; make room, or write elsewhere"
            return CommandError(why, RUN_FAILED)
    return CommandError(
        "that is a bug of asyncflow, not of your pipeline; please report it with the traceback",
        BUG,
        "".join(traceback.format_exception(error)),
    )


def _active(error: RunAlreadyActiveError) -> str:
    return (
        f"run {error.run_id!r} is active in {error.owner}; wait for it with --wait, or stop it "
        f"there with `asyncflow cancel {error.run_id}`"
    )


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
        status = StepStatus(found[kind]) if kind == "step" else status_for_run(found[kind])
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
    return f"{report}\nStopped: {escape_controls(report.stop_reason)}"


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
    name, verb = escape_controls(result.step_name), result.status.lower()
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
