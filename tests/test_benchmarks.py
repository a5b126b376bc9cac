"""The benchmarks measure what they say: only the measuring, not the figures."""

from collections.abc import Callable

import pytest

from asyncflow import WorkflowStep, run_pipeline
from tests.benchmarks.__main__ import SUBJECTS
from tests.benchmarks.limits import LIMITS
from tests.benchmarks.ratios import PATIENCE, Ratio, Row, cpu_s


def _taking(*seconds: float) -> Callable[[], float]:
    found = iter(seconds)
    return lambda: next(found)


def test_a_ratio_is_that_of_the_shortest_measurements_after_a_warm_up() -> None:
    ours, theirs = _taking(1, *[6.0] * 11, 3), _taking(1, *[9.0] * 5, 2, *[9.0] * 6)

    ratio = Ratio(ours, theirs, 1)

    assert ratio() == 1.5
    assert (ratio.ours, ratio.theirs) == (3, 2)


def test_a_row_above_its_limit_is_measured_again_before_it_counts() -> None:
    noisy, slow = _taking(9, 1), _taking(*[9.0] * PATIENCE)

    rows = [Row("row", measure, 2).measured() for measure in (noisy, slow)]

    assert [row.value for row in rows] == [1, 9]
    assert [row.holds for row in rows] == [True, False]
    assert str(rows[1]).endswith("TOO MUCH")


def test_a_run_that_fails_is_no_measurement() -> None:
    async def fail() -> None:
        raise ValueError

    with pytest.raises(AssertionError, match="what was timed did not end as it should"):
        cpu_s(lambda: run_pipeline([WorkflowStep("fail", fail)]))


@pytest.mark.parametrize("name", ["hand", "three_steps", "retries", "fail_fast", "pools", "mapped"])
def test_each_ratio_to_a_loop_by_hand_has_its_limits(name: str) -> None:
    ratios = [row for row in SUBJECTS[name](1) if isinstance(row.value, Ratio)]

    assert ratios
    assert {row.subject for row in ratios} <= LIMITS.keys()
