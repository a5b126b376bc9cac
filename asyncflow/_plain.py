"""Tells async callables where plain ones are due: nobody would await what they return."""

from __future__ import annotations

import inspect
from functools import partial
from typing import TypeVar

__all__ = ["is_async", "plain_answer"]

T = TypeVar("T")


def is_async(function: object) -> bool:
    """Whether calling this makes a coroutine or an async generator, as far as can be seen."""
    while isinstance(function, partial):
        function = function.func
    # An instance is called through its class: what it has as an attribute does not count.
    return _is_written_async(function) or _is_written_async(type(function).__call__)


def _is_written_async(function: object) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)


def plain_answer(what: str, answer: T) -> T:
    """Return what a callable has answered.

    Raises:
        TypeError: It is an awaitable, which is always true, whatever would come of it.
    """
    if not inspect.isawaitable(answer):
        return answer
    if inspect.iscoroutine(answer):
        answer.close()  # it will never be awaited, and the TypeError says so better
    raise TypeError(
        f"{what} returned {type(answer).__name__}, which would have to be awaited; it must be a "
        "plain function that returns its answer"
    )
