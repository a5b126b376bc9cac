"""The check that a user gives for the reports of many runs."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

from asyncflow._core.arguments import is_async
from asyncflow._core.history.report import RunReport
from asyncflow._core.value_size import safe_repr

Check: TypeAlias = Callable[[RunReport], object]


class FailedCheck(NamedTuple):
    """What a check found wrong with a report."""

    problem: str
    error: BaseException | None = None
    """What it raised, if it raised."""


def check_is_plain(check: object) -> None:
    """Check what a user gives as a check, which may be ``None``.

    An async function would check nothing.
    """
    if check is not None and not callable(check):
        raise TypeError(f"check must be a function of a report, not {type(check).__name__}")
    if is_async(check):
        raise TypeError("check must be a plain function, not an async one")


def failed_check(check: Check | None, report: RunReport) -> FailedCheck | None:
    """Call a check with a report; return what it found, or ``None`` if the run may be.

    Raise `TypeError` if it returns neither ``None`` nor whether the run may be: a coroutine or a
    generator, which has checked nothing, or a function that it forgot to call. Raise what it raised
    that is no failure, such as `KeyboardInterrupt`.
    """
    if check is None:
        return None
    try:
        answer = check(report)
    except BaseException as error:
        if not isinstance(error, Exception | _failures_of_pytest()):
            raise
        return FailedCheck(f"the check failed: {type(error).__name__}: {error}", error)
    if inspect.iscoroutine(answer):
        answer.close()
        raise TypeError("check must be a plain function, not an async one")
    if answer is None or answer is True:
        return None
    if _is_falsy(answer):  # such as a comparison of NumPy
        return FailedCheck(f"the check returned {safe_repr(answer)}")
    raise TypeError(
        f"check must return None, True or False, not {type(answer).__name__}; wrap a condition in "
        "bool(...)"
    )


def _is_falsy(answer: object) -> bool:
    try:
        return not answer
    except Exception:  # an array has no truth value
        return False


def _failures_of_pytest() -> type[BaseException]:
    """Return what `pytest.fail` and `pytest.raises` raise, which is no `Exception`."""
    pytest = sys.modules.get("pytest")
    return AssertionError if pytest is None else pytest.fail.Exception
