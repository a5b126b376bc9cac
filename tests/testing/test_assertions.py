"""`assert_order` and `assert_overlap` say what happened instead."""

from __future__ import annotations

import asyncio

import pytest

from asyncflow import WorkflowStep, run_pipeline
from asyncflow.testing import assert_order, assert_overlap, run_in_virtual_time


def sleeps(seconds):
    return lambda: asyncio.sleep(seconds)


@pytest.fixture
def report():
    steps = [
        WorkflowStep("first", sleeps(2)),
        WorkflowStep("beside", sleeps(1)),
        WorkflowStep("instant", sleeps(0)),
        WorkflowStep("then", sleeps(1), ["first"]),
        WorkflowStep("never", sleeps(1), when=lambda: False),
    ]
    return run_in_virtual_time(run_pipeline(steps, run_id="r"))


def test_steps_that_ran_one_after_the_other_pass(report):
    assert_order(report, "beside", "then")
    assert_order(report, "instant", "first", "then")


def test_a_step_that_started_too_early_is_named_with_its_times(report):
    with pytest.raises(AssertionError) as raised:
        assert_order(report, "beside", "then", "first")

    lines = str(raised.value).splitlines()
    assert lines[0] == "'first' started before 'then' had ended"
    assert "  then from 2.0 s to 3.0 s" in lines
    assert "PASSED in 3.0 s, run r" in lines


def test_of_steps_that_take_no_time_the_one_that_another_depends_on_came_first():
    async def instant(): ...

    chain = [
        WorkflowStep("charge", instant),
        WorkflowStep("pack", instant, ["charge"]),
        WorkflowStep("ship", instant, ["pack"]),
        WorkflowStep("log", instant),
    ]
    report = run_in_virtual_time(run_pipeline(chain))

    assert_order(report, "charge", "pack", "ship")
    assert_order(report, "charge", "ship")
    with pytest.raises(AssertionError, match="'ship' depends on 'charge', so it ran after it"):
        assert_order(report, "ship", "charge")
    for independent in (("charge", "log"), ("log", "charge"), ("log", "log")):
        with pytest.raises(AssertionError, match="came first is unknown; let one of them sleep"):
            assert_order(report, *independent)


def test_steps_that_ran_at_the_same_time_pass(report):
    assert_overlap(report, "first", "beside")


@pytest.mark.parametrize(
    ("steps", "problem"),
    [
        (("beside", "first", "then"), "'beside' and 'then' did not run at the same time"),
        (("instant", "first"), "'instant' took no time"),
        (("never", "first"), "'never' did not run"),
    ],
)
def test_steps_that_did_not_run_at_the_same_time_are_named(report, steps, problem):
    with pytest.raises(AssertionError, match=problem):
        assert_overlap(report, *steps)


def test_wrong_names_are_reported(report):
    with pytest.raises(KeyError, match="did you mean 'first'"):
        assert_order(report, "frist", "then")
    with pytest.raises(TypeError, match="report must be a RunReport, not str"):
        assert_order("first", "then", "never")
    with pytest.raises(TypeError, match="name at least two steps"):
        assert_overlap(report, "first")
