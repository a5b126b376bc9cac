"""When a step is tried again, and after how long."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from asyncflow._errors import ResultRefusedError
from asyncflow._numbers import check_number
from asyncflow._plain import is_async, plain_answer

__all__ = ["AT_ONCE", "Retry", "RetryOn"]

RetryOn: TypeAlias = (
    type[Exception] | tuple[type[Exception], ...] | Callable[[Exception], bool | float]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """How long a step waits before its next attempt, and after which failures there is one.

    The wait after the n-th attempt is ``base_ms * factor ** (n - 1)``, at most ``max_ms``. With
    jitter it is a random part of that, from nothing to all of it ("full jitter": M. Brooker,
    "Exponential Backoff And Jitter", AWS 2015), so that clients which failed together don't come
    back together. How many attempts there are in all is the step's ``max_retries``.

    Attributes:
        base_ms: The wait after the first attempt, in milliseconds; finite and not below 0.
        factor: What each further failure multiplies it with; finite and at least 1.
        max_ms: The longest wait, in milliseconds; not below ``base_ms``.
        jitter: Whether the wait is a random part of this.
        on: After which failures there is another attempt: an exception type, a tuple of them, or
            a callable that is given the exception and returns ``False`` (no), ``True`` (after
            the wait above) or a number of milliseconds (after exactly this: what a server asked
            for in its Retry-After). If the callable raises, the step fails with that.
        until: Called with what an attempt returned; if the answer is false, the attempt has
            failed with `ResultRefusedError` and is followed by another, whatever ``on`` says.
        random: Returns a random number from 0 up to 1, for the jitter; `random.random` unless
            given. ``random.Random(7).random`` makes the waits the same in every run.

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
            raise TypeError(f"Retry: jitter must be True or False, not {self.jitter!r}")
        for kind in self.on if isinstance(self.on, tuple) else (self.on,):
            if isinstance(kind, type) and not issubclass(kind, Exception):
                raise TypeError(f"Retry: on must name subclasses of Exception, not {kind!r}")
            if not isinstance(kind, type) and (kind is not self.on or not callable(kind)):
                raise TypeError(
                    "Retry: on must be an exception type, a tuple of them or a callable, "
                    f"not {self.on!r}"
                )
        for name in ("until", "random"):
            value = getattr(self, name)
            if value is not None and not callable(value):
                raise TypeError(f"Retry: {name} must be callable, not {type(value).__name__}")
        for name in ("on", "until", "random"):
            if is_async(getattr(self, name)):
                raise TypeError(
                    f"Retry: {name} must be a plain function; what has to be awaited belongs "
                    "into the action"
                )

    def delay_ms(self, attempt: int, error: Exception, random: Callable[[], float]) -> float | None:
        """Return how long to wait after this failure, or ``None`` if nothing shall follow it.

        Args:
            attempt: Which attempt has failed, counted from 1.
            error: What it failed with.
            random: Used for the jitter if the policy has no random source of its own.
        """
        if self.on is not Exception and not isinstance(error, ResultRefusedError):
            verdict = self._verdict(error)
            if verdict is False:
                return None
            if verdict is not True:
                return float(verdict)
        if not self.base_ms:
            return 0.0
        try:
            high = min(self.base_ms * self.factor ** (attempt - 1), self.max_ms)
        except OverflowError:
            high = self.max_ms
        return float(high * (self.random or random)() if self.jitter else high)

    def _verdict(self, error: Exception) -> bool | float:
        if isinstance(self.on, type | tuple):
            return isinstance(error, self.on)
        verdict = plain_answer("Retry: on", self.on(error))
        if isinstance(verdict, bool):
            return verdict
        if isinstance(verdict, int | float) and 0 <= verdict <= sys.float_info.max:
            return verdict
        raise TypeError(
            f"Retry: on returned {verdict!r}; it must return True, False or a number of "
            "milliseconds, not below 0"
        )


AT_ONCE = Retry(base_ms=0, jitter=False)
"""The next attempt starts in the next turn of the event loop."""
