"""What the command line says and returns when something is wrong.

Rules:

1. An error is one paragraph, which says what to do, on the standard error.
2. A traceback is shown where the reader's own code has raised, and where ours has a bug.
"""

from __future__ import annotations

import errno
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import click

from asyncflow._core.errors import (
    JournalError,
    RunAlreadyActiveError,
    RunNotFoundError,
    in_one_line,
)

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
        click.echo(f"Error: {in_one_line(refusal.message)}", err=True)
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
