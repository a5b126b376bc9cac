"""Writes what commands show: results to standard output, everything else to standard error.

Rules:

1. A colour repeats what a word says, and only a terminal receives colours.
2. Output to a file or a pipe is neither cut nor wrapped.
3. An error is one paragraph that says what to do.
4. A traceback is shown where the user's own code raised, and for a bug of asyncflow.
"""

from __future__ import annotations

import errno
import logging
import re
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from typing import IO, cast

import click
from rich.console import Console
from rich.text import Text

from asyncflow._core.analysis.failures import failures
from asyncflow._core.analysis.looks import RUN_LOOKS, STEP_LOOKS
from asyncflow._core.errors import (
    JournalError,
    MissingExtraError,
    RunAlreadyActiveError,
    RunNotFoundError,
)
from asyncflow._core.history.report import RunReport
from asyncflow._core.history.results import (
    Attempt,
    RunStatus,
    StepResult,
    attempt_end,
    latest_number,
)
from asyncflow._core.history.value_preview import printable
from asyncflow._core.text import describe_error, escape_controls, plural
from asyncflow._policies.log_capture import not_printed
from asyncflow._views.event_text import place_text
from asyncflow._views.item_errors import traceback_lines
from asyncflow._views.next_command import command_of
from asyncflow._views.run_view import RunView, view_of
from asyncflow._views.workflow_commands import GuardedStream, in_github_actions, without_commands
from asyncflow.events import Event

PASSED = 0
RUN_FAILED = 1
USAGE = 2
INVALID = 3
NOT_FOUND = 4
RUN_WAITING = 5
BUG = 70
INTERRUPTED = 130

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
"""The errors of a file, or the device below it, that takes no more data."""
_STATUS = re.compile(
    rf"(?m)^\[(?P<step>{'|'.join(STEP_LOOKS)}) *\] |^Pipeline (?P<run>{'|'.join(RUN_LOOKS)})$"
)
_MOST_NAMES = 10
_LEAST_TEXT = 24
"""How many cells a text has beside what it is aligned with; on a narrower terminal, below it."""
FILE_WIDTH = 100_000
"""How many characters a line of a file or a pipe may have."""


# Results.


def stdout_console() -> Console:
    """Return a console for results, with no limit on the width unless it is a terminal."""
    file = GuardedStream(sys.stdout) if in_github_actions() else None
    console = Console(file=cast("IO[str]", file), highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = FILE_WIDTH
    return console


def write_result(text: str) -> None:
    """Write a result, with the colours of the statuses at the start of its lines."""
    styled = Text(text)
    for found in _STATUS.finditer(text):
        kind = found.lastgroup or ""
        look = (STEP_LOOKS if kind == "step" else RUN_LOOKS)[found[kind]]
        styled.stylize(look.colour, *found.span(kind))
    stdout_console().print(styled, soft_wrap=True)


def write_lines(lines: Iterable[Text], console: Console) -> None:
    """Write lines of a result that have their styles."""
    console.print(Text("\n").join(lines), soft_wrap=True)


def hanging(line: Text, indent: int, console: Console) -> list[Text]:
    """Return a line in lines that fit a terminal: words stay whole, and it goes on indented."""
    if not console.is_terminal or line.cell_len <= console.width:
        return [line]
    if indent > console.width - _LEAST_TEXT:
        indent = min(indent, 4)
    head, text = line.divide([indent])
    first, *others = text.wrap(console, console.width - indent)
    lines = [head + first, *(Text(" " * indent) + other for other in others)]
    for each in lines:
        each.rstrip()
    return lines


def stdout_for_results_only(enabled: bool) -> AbstractContextManager[object]:
    """Redirect what modules and steps of this process print to standard error, if enabled."""
    return redirect_stdout(sys.stderr) if enabled else nullcontext()


def load_html_writer() -> Callable[..., str]:
    """Return the function that renders the page of a run from its events and notes."""
    from asyncflow.html_report import to_html  # slow to import, and few commands need it

    return to_html


def write_html(
    path: Path,
    events: Iterable[Event],
    notes: Iterable[Event] = (),
    *,
    resume: str = "",
    usual_ms: Mapping[str, float] | None = None,
    usual_run_ms: float | None = None,
    orphaned: bool = False,
    until: float | None = None,
) -> None:
    """Write the page of a run.

    ``notes`` are more notes than those among the events. ``resume`` is the command that resumes the
    run, and the others are as in `asyncflow.html_report.to_html`.
    """
    to_html = load_html_writer()
    page = to_html(
        events,
        notes,
        resume=resume,
        usual_ms=usual_ms,
        usual_run_ms=usual_run_ms,
        orphaned=orphaned,
        until=until,
    )
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise CommandError(f"the HTML report can't be written: {error}", RUN_FAILED) from error


# Reports.


def format_report(report: RunReport) -> str:
    """Return a report as text, with the reason why the run stopped."""
    if report.stop_reason is None or report.status is RunStatus.PASSED:
        return str(report)
    return f"{report}\nStopped: {escape_controls(report.stop_reason)}"


def format_tracebacks(report: RunReport, *, limit: int | None = None) -> str:
    """Return the tracebacks of the steps with errors, that of the first failure first.

    ``limit`` is the maximum number of steps; ``None`` for all.
    """
    failed = failures(report.values())
    view = view_of(report) if failed else RunView()
    parts = [_format_traceback(result, view) for result in failed[:limit]]
    if limit is not None and len(failed) > limit:
        parts.append(f"… and {len(failed) - limit} more steps with errors")
    return "\n\n".join(parts)


def format_earlier_attempts(report: RunReport, *, limit: int = 8) -> str:
    """Return how the attempts ended that ran before a run was resumed.

    Those of a step that ended alike share a line, and so do all those of the items of a mapped
    step. Of what was reused, it leaves out the attempts that succeeded.

    ``limit`` is the maximum number of lines, the latest ones.
    """
    latest = len(report.segments)
    lines = [line for result in report.values() for line in _earlier(result, latest)]
    if not lines:
        return ""
    lines.sort()
    left_out = [f"  … and {len(lines) - limit} more before these"] if lines[limit:] else []
    shown = [f"  {escape_controls(text)}" for _, text in lines[-limit:]]
    return "\n".join(["Before the run was resumed:", *left_out, *shown])


def _earlier(result: StepResult, latest: int) -> Iterator[tuple[float, str]]:
    """Yield when the first of some earlier attempts started, and how they ended."""
    found = [
        (each.step_name if one.item is None else f"{each.step_name}[{one.item}]", one)
        for each in (result, *(result.items or ()))
        for one in each.history
        if one.segment < latest
        and not ((result.reused or each.reused) and attempt_end(one) == "succeeded")
    ]
    alike: dict[tuple[str, str], list[Attempt]] = {}
    is_mapped = result.items is not None or any(name != result.step_name for name, _ in found)
    if is_mapped and len(found) > 1:
        attempts = [one for _, one in found]
        items = plural(len({name for name, _ in found}), "item")
        count = plural(len(attempts), "attempt")
        text = f"{result.step_name}: {count} of {items}: {_ends_of(attempts)}"
        yield min(one.started_ms for one in attempts), text
        return
    for name, one in found:
        alike.setdefault((name, _end_of(one)), []).append(one)
    for (name, end), of in alike.items():
        which = f"attempt {of[0].number}" if len(of) == 1 else f"{len(of)} attempts"
        yield of[0].started_ms, f"{name}: {which} {end}"


def _end_of(attempt: Attempt) -> str:
    """Return how an attempt ended; that it crashed says all that its error does."""
    end, error = attempt_end(attempt), attempt.error
    on = f" on {place_text(attempt.engine, attempt.worker)}" if attempt.engine else ""
    words = "" if error is None or end == "crashed" else f": {describe_error(error)}"
    return f"{end}{on}{words}"


def _ends_of(attempts: Sequence[Attempt]) -> str:
    """Return how the attempts of items ended: ``40 failed (TimeoutError), 10 crashed``."""
    parts = []
    for end, count in Counter(map(attempt_end, attempts)).most_common():
        types = Counter(
            describe_error(one.error).partition(":")[0]
            for one in attempts
            if one.error is not None and attempt_end(one) == end
        )
        words = [name if len(types) == 1 else f"{name} x {each}" for name, each in types.items()]
        parts.append(f"{count:,} {end}{f' ({some_of(words)})' if end == 'failed' else ''}")
    return ", ".join(parts)


def _format_traceback(result: StepResult, view: RunView) -> str:
    name, verb = escape_controls(result.step_name), result.status.lower()
    # The attempts of a mapped step are those of all its items.
    attempt = "" if result.items is not None else f", attempt {latest_number(result)}"
    on = f" on {place_text(result.engine, result.worker)}" if result.engine else ""
    trace = "\n".join(traceback_lines(view, view.steps[result.step_name]))
    return f"Step {name} {verb}{attempt}{escape_controls(on)}:\n{trace}"


# Everything else.


def some_of(names: Sequence[str]) -> str:
    """Return the first ten names, and how many more there are."""
    some = ", ".join(escape_controls(name) or '""' for name in names[:_MOST_NAMES])
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return f"{some}{more}"


def write_note(text: str, *, quiet: bool = False) -> None:
    """Write something that is not a result to standard error, unless the user wants quiet."""
    if not quiet:
        click.echo(without_commands(text), err=True)


class _StderrHandler(logging.Handler):
    """Writes to the current standard error, which a live view may have replaced."""

    def emit(self, record: logging.LogRecord) -> None:
        with not_printed():
            write_note(printable(self.format(record)))  # a record may quote what a stranger sent


@contextmanager
def logs_on_stderr(
    level: int | None = None, stored: str | None = None, *, is_asked: bool = False
) -> Iterator[None]:
    """Show what is logged meanwhile, unless the user's code has configured where that goes.

    ``level`` is the lowest level of the records; by default warnings, or what the code configured.
    A journal stores records from the level ``stored`` on: they are made, even if none is shown. If
    the user has not asked for that, the level that the code configured stands, because its handlers
    would show more. Code that has configured no more than a handler of a logger of its own may
    choose that logger's level.
    """
    root = logging.getLogger()
    before, handler = root.level, None
    if not root.handlers:
        handler = _StderrHandler(logging.WARNING if level is None else level)
        handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
        root.addHandler(handler)
    if level is not None:
        root.setLevel(level)
    if stored is not None and (is_asked or handler is not None):
        root.setLevel(min(root.level, logging.getLevelNamesMapping()[stored]))
    try:
        yield
    finally:
        root.setLevel(before)
        if handler is not None:
            root.removeHandler(handler)


# Errors.


class CommandError(Exception):
    """A command can't do something; the message says what to do instead.

    ``message`` is one paragraph, and ``trace`` is the traceback of the user's code, if that raised.
    """

    def __init__(self, message: str, exit_code: int, trace: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.exit_code = exit_code
        self.trace = trace


@contextmanager
def explained_errors() -> Iterator[None]:
    """Explain what a command raises, and end it with the exit code for that."""
    try:
        yield
    except (click.exceptions.Exit, click.ClickException, click.Abort):
        raise
    except (KeyboardInterrupt, Exception) as error:
        if isinstance(error, OSError) and error.errno == errno.EPIPE:
            raise  # the reader has gone, as behind `| head`: click handles it
        explained = _explain(error)
        if explained.trace:
            write_note(explained.trace.rstrip("\n"))
        write_note(f"Error: {escape_controls(explained.message)}")
        raise click.exceptions.Exit(explained.exit_code) from error


def _explain(error: BaseException) -> CommandError:
    match error:
        case CommandError():
            return error
        case RunNotFoundError():
            return CommandError(str(error), NOT_FOUND)
        case RunAlreadyActiveError() if not error.key:
            return CommandError(
                f"run {error.run_id!r} is active in {error.owner}; wait for it with --wait, or "
                f"stop it with `{command_of('cancel', error.run_id)}`",
                RUN_FAILED,
            )
        case RunAlreadyActiveError() | JournalError():
            return CommandError(str(error), RUN_FAILED)
        case MissingExtraError():
            return CommandError(str(error), USAGE)
        case KeyboardInterrupt():
            return CommandError("interrupted", INTERRUPTED)
        case OSError() if error.errno in _FULL:
            return CommandError(
                f"can't write: {error.strerror}; free some space, or write elsewhere", RUN_FAILED
            )
    return CommandError(
        "this is a bug in asyncflow, not in your pipeline; please report it with the traceback",
        BUG,
        "".join(traceback.format_exception(error)),
    )
