"""The retry policy of a step: after which failures another attempt follows, and when.

A policy decides from one failure alone.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeAlias

from asyncflow._core.arguments import check_number, is_async, reject_awaitable, suggests_arguments
from asyncflow._core.errors import ResultRefusedError
from asyncflow._core.record import record
from asyncflow._core.text import safe_text

RetryOn: TypeAlias = (
    type[Exception] | tuple[type[Exception], ...] | Callable[[Exception], bool | float]
)


@suggests_arguments
@record(frozen=True, kw_only=True)
class Retry:
    """After which failures a step has another attempt, and the backoff before it.

    The backoff after the n-th attempt is ``base_ms * factor ** (n - 1)``, at most ``max_ms``. With
    jitter it is a random part of that, from nothing to all of it ("full jitter": M. Brooker,
    "Exponential Backoff And Jitter", AWS 2015), so that clients that failed together don't return
    together. The step's ``max_retries`` is the number of attempts in all.

    Attributes:
        base_ms: The backoff after the first attempt, in milliseconds; finite and at least 0; 100 by
            default.
        factor: What each further failure multiplies it by; finite and at least 1; 2 by default.
        max_ms: The longest backoff, in milliseconds; at least ``base_ms``; 30,000 by default.
        jitter: Whether the backoff is a random part of this; true by default.
        on: After which failures there is another attempt: an exception type, a tuple of them, or
            a callable that receives the exception and returns ``False`` (no), ``True`` (after the
            backoff above) or a number of milliseconds (after exactly this: the Retry-After of a
            server). If the callable raises, the step fails with that.
        until: Called with what an attempt returned. If it returns a false value, the attempt fails
            with `ResultRefusedError`, and another follows, whatever ``on`` says.
        random: Returns a random number from 0 up to 1, for the jitter; `random.random` by default.
            With ``random.Random(7).random`` a new program draws the same backoffs again.

    Raises:
        TypeError: An attribute has the wrong type.
        ValueError: A number is out of its range.
    """

    base_ms: float = 100
    factor: float = 2
    max_ms: float = 30_000
    jitter: bool = True
    on: RetryOn = Exception
    until: Callable[[Any], object] | None = None
    random: Callable[[], float] | None = None

    def __post_init__(self) -> None:
        check_number("Retry: base_ms", self.base_ms, 0)
        check_number("Retry: factor", self.factor, 1)
        check_number("Retry: max_ms", self.max_ms, self.base_ms)
        if not isinstance(self.jitter, bool):
            shown = safe_text(repr, self.jitter)
            raise TypeError(f"Retry: jitter must be True or False, not {shown}")
        for kind in self.on if isinstance(self.on, tuple) else (self.on,):
            if isinstance(kind, type) and not issubclass(kind, Exception):
                raise TypeError(f"Retry: on must name subclasses of Exception, not {kind!r}")
            if not isinstance(kind, type) and (kind is not self.on or not callable(kind)):
                raise TypeError(
                    "Retry: on must be an exception type, a tuple of them or a callable, "
                    f"not {safe_text(repr, self.on)}"
                )
        for name in ("until", "random"):
            value = getattr(self, name)
            if value is not None and not callable(value):
                raise TypeError(f"Retry: {name} must be callable, not {type(value).__name__}")
        for name in ("on", "until", "random"):
            if is_async(getattr(self, name)):
                raise TypeError(
                    f"Retry: {name} must be a plain function; what has to be awaited belongs "
                    "in the action"
                )

    @property
    def names_times(self) -> bool:
        """Whether it may answer a failure with milliseconds."""
        return not isinstance(self.on, type | tuple)

    def answer(self, error: Exception) -> bool | float:
        """Return whether another attempt may follow this failure, or in exactly how many ms."""
        if self.on is Exception or isinstance(error, ResultRefusedError):
            return True
        if isinstance(self.on, type | tuple):
            return isinstance(error, self.on)
        answer = reject_awaitable("Retry: on", self.on(error))
        if isinstance(answer, bool):
            return answer
        if isinstance(answer, int | float) and 0 <= answer <= sys.float_info.max:
            return float(answer)
        raise TypeError(
            f"Retry: on returned {answer!r}; it must return True, False or a number of "
            "milliseconds, not below 0"
        )

    def backoff_ms(self, attempt: int, random: Callable[[], float]) -> float:
        """Return the backoff after a failure to which the answer is just yes.

        Args:
            attempt: The attempt that failed, counted from 1.
            random: The source of the jitter, if the policy has none of its own.
        """
        if not self.base_ms:
            return 0.0
        try:
            high = min(self.base_ms * self.factor ** (attempt - 1), self.max_ms)
        except OverflowError:
            high = self.max_ms
        return float(high * (self.random or random)() if self.jitter else high)


NO_BACKOFF = Retry(base_ms=0, jitter=False)
"""The policy of a step that says nothing: the next attempt starts in the next turn of the loop."""
