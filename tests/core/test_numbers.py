"""A time or a factor must be a number that a timer accepts."""

from __future__ import annotations

import math
from typing import Any

import pytest

from asyncflow import Orchestrator, Retry, WorkflowStep


async def nothing() -> None:
    pass


def of_a_run(value: Any) -> object:
    return Orchestrator([], deadline_ms=value)


def of_a_step(value: Any) -> object:
    return WorkflowStep("a", nothing, timeout_ms=value)


@pytest.mark.parametrize("make", [of_a_run, of_a_step])
class TestLimit:
    # The last one is above 0 in milliseconds, but not in seconds.
    @pytest.mark.parametrize("value", [0, -1, math.nan, math.inf, 10**400, 5e-324])
    def test_must_be_positive_and_is_refused_in_the_same_words_everywhere(
        self, make: Any, value: float
    ) -> None:
        with pytest.raises(ValueError, match="_ms must") as refused:
            make(value)

        assert str(refused.value).endswith(
            f"_ms must be finite and above 0, not {value}; use None for no limit"
        )

    @pytest.mark.parametrize("value", [True, "1", [], 1j])
    def test_must_be_a_number(self, make: Any, value: Any) -> None:
        with pytest.raises(TypeError) as refused:
            make(value)

        assert str(refused.value).endswith(
            f"_ms must be a number or None, not {type(value).__name__}"
        )

    @pytest.mark.parametrize("value", [None, 1, 0.5, 1e300])
    def test_may_be_any_number_that_a_timer_accepts(self, make: Any, value: Any) -> None:
        assert make(value)


def test_a_number_with_too_many_digits_to_print_is_refused_without_them() -> None:
    with pytest.raises(ValueError, match="base_ms must be finite and at least 0, not <int, whose"):
        Retry(base_ms=10**5_000)
