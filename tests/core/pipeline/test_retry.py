"""A retry policy decides which failures are retried, and after which delay."""

from __future__ import annotations

import dataclasses
import math
import pickle
import random
import sys
from collections.abc import Callable
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import pytest
import tenacity
from hypothesis import given
from hypothesis import strategies as st

from asyncflow import ResultRefusedError, Retry
from asyncflow._core.pipeline.retry import NO_BACKOFF

BOOM = OSError("boom")
MILLISECONDS = st.floats(0, 1e9, allow_nan=False) | st.integers(0, 10**9)
FACTORS = st.floats(1, 10) | st.integers(1, 10)
ATTEMPTS = st.integers(1, 60) | st.sampled_from([400, 5_000, 10**6])


def delay_of(
    policy: Retry, attempt: int, error: Exception, random: Callable[[], float]
) -> float | None:
    answer = policy.answer(error)
    if isinstance(answer, bool):
        return policy.backoff_ms(attempt, random) if answer else None
    return answer


def never() -> float:
    raise AssertionError("no random number is needed")


@st.composite
def ranges(draw: st.DrawFn) -> tuple[float, float, float]:
    base_ms = draw(MILLISECONDS.filter(bool))  # for 0, tenacity's overflow gives the maximum
    return base_ms, draw(FACTORS), base_ms + draw(MILLISECONDS)


class TestFormula:
    @given(ranges(), ATTEMPTS)
    def test_the_delay_without_jitter_equals_the_one_of_tenacity(
        self, numbers: tuple[float, float, float], attempt: int
    ) -> None:
        base_ms, factor, max_ms = numbers
        policy = Retry(base_ms=base_ms, factor=factor, max_ms=max_ms, jitter=False)

        delay_ms = delay_of(policy, attempt, BOOM, never)

        oracle = tenacity.wait_exponential(multiplier=base_ms, exp_base=factor, max=max_ms)
        expected = oracle(SimpleNamespace(attempt_number=attempt))  # type: ignore[arg-type]
        assert delay_ms == pytest.approx(expected)  # it computes with logarithms, which are rounded
        assert type(delay_ms) is float

    @given(ranges(), ATTEMPTS, st.integers())
    def test_the_delay_with_jitter_equals_the_one_of_tenacity_for_the_same_random_numbers(
        self, numbers: tuple[float, float, float], attempt: int, seed: int
    ) -> None:
        base_ms, factor, max_ms = numbers
        policy = Retry(base_ms=base_ms, factor=factor, max_ms=max_ms)

        random.seed(seed)
        delay_ms = delay_of(policy, attempt, BOOM, random.random)

        random.seed(seed)
        oracle = tenacity.wait_random_exponential(multiplier=base_ms, exp_base=factor, max=max_ms)
        expected = oracle(SimpleNamespace(attempt_number=attempt))  # type: ignore[arg-type]
        assert delay_ms == pytest.approx(expected)

    def test_the_default_delay_doubles_from_100_ms_to_30_s(self) -> None:
        policy = Retry()

        highest = [delay_of(policy, attempt, BOOM, lambda: 1.0) for attempt in range(1, 12)]

        assert highest == [100, 200, 400, 800, 1600, 3200, 6400, 12800, 25600, 30000, 30000]
        assert (policy.jitter, policy.on, policy.until, policy.random) == (
            *(True, Exception),
            *(None, None),
        )

    @pytest.mark.parametrize(
        ("base_ms", "factor"),
        [
            (1e308, 1e308),  # infinite
            (1.5, 1e300),  # a float to a power: OverflowError
            (1.5, 10),  # a float times an integer above all floats: OverflowError
            (1, 2),  # an integer above all floats
        ],
    )
    def test_an_overflow_gives_the_longest_delay(self, base_ms: float, factor: float) -> None:
        policy = Retry(base_ms=base_ms, factor=factor, max_ms=sys.float_info.max, jitter=False)

        assert delay_of(policy, 2_000, BOOM, never) == sys.float_info.max

    def test_a_delay_of_zero_needs_no_random_number(self) -> None:
        delay_ms = delay_of(Retry(base_ms=0), 3, BOOM, never)

        assert delay_ms == 0
        assert type(delay_ms) is float
        assert delay_of(NO_BACKOFF, 3, BOOM, never) == 0


class Flaky(OSError):
    pass


class TestOn:
    @pytest.mark.parametrize(
        ("on", "error", "follows"),
        [
            (Exception, BOOM, True),
            (OSError, BOOM, True),
            (OSError, Flaky(), True),
            (Flaky, BOOM, False),
            (ValueError, BOOM, False),
            ((ValueError, OSError), BOOM, True),
            ((ValueError, OSError), Flaky(), True),
            ((ValueError, KeyError), BOOM, False),
            ((), BOOM, False),
            (lambda error: True, BOOM, True),
            (lambda error: False, BOOM, False),
            (lambda error: error is BOOM, BOOM, True),
            (lambda error: error is BOOM, Flaky(), False),
        ],
    )
    def test_decides_which_failures_are_retried(
        self, on: Any, error: Exception, follows: bool
    ) -> None:
        policy = Retry(base_ms=40, jitter=False, on=on)

        assert delay_of(policy, 2, error, never) == (80.0 if follows else None)

    @pytest.mark.parametrize("asked_ms", [0, 0.0, 1, 250.5, 10**9, sys.float_info.max])
    def test_may_return_the_exact_delay(self, asked_ms: float) -> None:
        policy = Retry(base_ms=40, max_ms=50, on=lambda error: asked_ms)

        delay_ms = delay_of(policy, 2, BOOM, never)

        assert delay_ms == asked_ms
        assert type(delay_ms) is float

    @pytest.mark.parametrize(
        "answer", [None, "1", -1, -0.001, math.nan, math.inf, 10**400, Decimal(1), 1j, [], OSError]
    )
    def test_must_return_a_bool_or_a_number(self, answer: Any) -> None:
        policy = Retry(on=lambda error: answer)

        with pytest.raises(TypeError) as refused:
            delay_of(policy, 1, BOOM, never)

        assert str(refused.value) == (
            f"Retry: on returned {answer!r}; it must return True, False or a number of "
            "milliseconds, not below 0"
        )

    def test_may_raise(self) -> None:
        def on(error: Exception) -> bool:
            raise error

        with pytest.raises(OSError, match="boom") as raised:
            delay_of(Retry(on=on), 1, BOOM, never)

        assert raised.value is BOOM

    @pytest.mark.parametrize("on", [ValueError, (ValueError,), (), lambda error: False])
    def test_is_not_called_for_a_refused_value(self, on: Any) -> None:
        policy = Retry(base_ms=40, jitter=False, on=on, until=bool)

        assert delay_of(policy, 2, ResultRefusedError("poll", 2, "pending"), never) == 80.0
        assert delay_of(policy, 2, BOOM, never) is None


class TestChecks:
    @pytest.mark.parametrize(
        ("name", "values", "least"),
        [
            ("base_ms", [-1, -0.5, -math.inf], "0"),
            ("factor", [0, 0.999, -2], "1"),
            ("max_ms", [0, 99, 99.9, -1], "100"),
        ],
    )
    def test_numeric_options_must_be_in_their_range(
        self, name: str, values: list[float], least: str
    ) -> None:
        for value in [*values, math.nan, math.inf, 10**400]:
            with pytest.raises(ValueError, match=name) as refused:
                Retry(**{name: value})  # type: ignore[arg-type]

            assert str(refused.value) == (
                f"Retry: {name} must be finite and at least {least}, not {value}"
            )

    @pytest.mark.parametrize(
        "options",
        [
            {"base_ms": 0},
            {"base_ms": 30_000},
            {"base_ms": 0, "max_ms": 0},
            {"factor": 1},
            {"factor": sys.float_info.max},
            {"max_ms": 100},
            {"max_ms": sys.float_info.max},
            {"base_ms": 7, "max_ms": 7},
        ],
    )
    def test_the_ranges_include_their_ends(self, options: dict[str, Any]) -> None:
        policy = Retry(**options)

        assert {name: getattr(policy, name) for name in options} == options

    @pytest.mark.parametrize(
        "kind", [BaseException, KeyboardInterrupt, SystemExit, GeneratorExit, int, object]
    )
    def test_on_must_name_exceptions_that_a_step_can_fail_with(self, kind: Any) -> None:
        for on in (kind, (kind,), (OSError, kind)):
            with pytest.raises(TypeError) as refused:
                Retry(on=on)

            assert str(refused.value) == (
                f"Retry: on must name subclasses of Exception, not {kind!r}"
            )

    @pytest.mark.parametrize("on", [None, 1, "OSError", [OSError], BOOM, (OSError, bool), (max,)])
    def test_on_must_be_a_type_a_tuple_of_types_or_a_callable(self, on: Any) -> None:
        with pytest.raises(TypeError, match="Retry: on must") as refused:
            Retry(on=on)

        if on != (OSError, bool):
            assert str(refused.value) == (
                f"Retry: on must be an exception type, a tuple of them or a callable, not {on!r}"
            )


class TestData:
    def test_a_policy_is_frozen_and_can_be_compared_hashed_and_pickled(self) -> None:
        policy = Retry(base_ms=5, on=(OSError, ValueError))

        with pytest.raises(dataclasses.FrozenInstanceError):
            policy.base_ms = 7  # type: ignore[misc]
        assert policy == Retry(base_ms=5, on=(OSError, ValueError))
        assert hash(policy) == hash(Retry(base_ms=5, on=(OSError, ValueError)))
        assert policy != Retry(base_ms=6, on=(OSError, ValueError))
        assert pickle.loads(pickle.dumps(policy)) == policy

    @pytest.mark.parametrize("change", [{"base_ms": -1}, {"on": int}, {"jitter": None}])
    def test_a_changed_policy_is_checked_again(self, change: dict[str, Any]) -> None:
        replace: Callable[..., Retry] = dataclasses.replace

        with pytest.raises((TypeError, ValueError)):
            replace(Retry(), **change)
