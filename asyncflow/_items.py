"""The items of a mapped step: where they come from, and what they come to together."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Set, Sized
from typing import Any

from asyncflow._core.errors import describe
from asyncflow._core.results import StepResult, StepStatus, noted

__all__ = ["check_order", "common_error", "count_of", "each_item"]


async def each_item(source: Any, name: str) -> AsyncGenerator[Any, None]:
    """Yield the items of what a mapped step maps over, one by one.

    An asynchronous generator is closed at the end, wherever that is.

    Raises:
        TypeError: It is no iterable and no async iterable; or it is text, of which hardly
            anybody wants each letter.
    """
    if isinstance(source, AsyncIterable):
        iterator = aiter(source)
        try:
            async for item in iterator:
                yield item
        finally:
            close = getattr(iterator, "aclose", None)
            if close is not None:
                await close()
    elif isinstance(source, Iterable) and not isinstance(source, str | bytes):
        for item in source:
            yield item
    else:
        raise TypeError(
            f"step {name!r} maps over {type(source).__name__}, which is not a collection of items"
        )


def count_of(source: Any) -> int | None:
    """Return how many items there will be, if what is mapped over can tell."""
    try:
        return len(source) if isinstance(source, Sized) else None
    except Exception:  # it is the user's object
        return None


def check_order(source: Any, name: str) -> None:
    """Check that the items have the same order in every process, since they are kept by number.

    Raises:
        TypeError: They have not, being those of a set.
    """
    if isinstance(source, Set):
        raise TypeError(
            f"step {name!r} maps over a {type(source).__name__}, which has another order in each "
            "process, so that a resumed run could not tell its items apart; return a list"
        )


def common_error(name: str, items: list[StepResult], error: Exception | None) -> Exception | None:
    """Return what a mapped step fails with, if it fails.

    Args:
        name: The step.
        items: The results of its items.
        error: What ended the iteration over the items too early, if anything did.
    """
    failed = [item for item in items if item.status is StepStatus.FAILED]
    errors = [noted(item, f"in {item.step_name}") for item in failed]
    if not errors:
        return error
    told = f"{failed[0].step_name}: {describe(errors[0])}"
    message = f"{len(errors)} of {len(items)} items of step {name!r} failed; the first is {told}"
    return ExceptionGroup(message, errors if error is None else [error, *errors])
