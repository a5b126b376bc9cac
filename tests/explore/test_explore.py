"""A few thousand random runs keep the promises; ``python -m tests.explore`` simulates millions."""

from __future__ import annotations

from random import Random

import pytest

from asyncflow.events import AttemptStarted, StepSucceeded
from tests.explore.cases import Act, Case, Fault, Flow, Items, PoolSpec, Step, random_flow
from tests.explore.explorer import VARIATIONS, case_of, check, explore, shrink
from tests.explore.model import violations
from tests.explore.waits import first_problem
from tests.explore.world import Pipeline

FIRST = 1_000_000_000
"""The number of the first run, as with ``--seed 1``."""
LATER = pytest.param(FIRST + 600, 5_400, marks=[pytest.mark.exhaustive, pytest.mark.timeout(600)])


@pytest.mark.parametrize(("first", "runs"), [(FIRST, 600), LATER])
def test_random_runs_disturbed_at_random_moments_keep_every_promise(first, runs):
    failure = explore(first, runs)

    assert failure is None, f"repeat it: python -m tests.explore --replay {failure.number}"


@pytest.mark.parametrize(
    ("first", "runs"), [(0, 60), pytest.param(1_000, 300, marks=pytest.mark.exhaustive)]
)
@pytest.mark.timeout(900)
def test_random_runs_that_wait_end_as_the_model_says(first, runs):
    assert first_problem(first, runs) == ""


def test_a_value_that_is_sent_early_after_a_change_outlives_the_next_resumption():
    assert first_problem(1_331, 1) == ""


def test_a_step_whose_failure_was_reused_takes_a_value_when_its_run_has_failed():
    assert first_problem(1_086, 1) == ""


def test_what_only_a_condition_has_lost_is_skipped_when_the_waits_have_ended():
    assert first_problem(51_097, 1) == ""


@pytest.mark.parametrize("number", [77_000_015_013, 20_261_127_000_860_321])
def test_a_run_that_broke_a_promise_once_keeps_it(number):
    assert check(case_of(number, is_enriched=False)) == []


def test_a_second_stop_does_not_prolong_the_grace_period_of_an_attempt_that_cleans_up():
    cleans_up = Act(end="cancel itself and wait", clean=(700,))
    flow = Flow((Step("one"), Step("two", acts=(cleans_up,)), Step("three")))

    assert check(Case(flow, Fault(observer=("exit", 4), scope=("timeout", 4)))) == []


def test_a_block_just_before_an_attempt_counts_to_its_limit_where_that_has_a_task_of_its_own():
    blocks, in_thread = Step("one", acts=(Act(block=1),)), Step("two", timeout=1, thread=True)

    assert check(Case(Flow((blocks, in_thread)))) == []


def test_a_caller_that_is_cancelled_at_the_last_event_outlives_an_abandoned_thread():
    in_thread = Step("one", acts=(Act((1, 1), clean=(3,)),), thread=True)
    flow = Flow((in_thread, Step("two", (0,))), deadline=4)

    assert check(Case(flow, Fault(cancels=((4, 0),), observer=("cancel task", 6)))) == []


def test_an_iterator_that_is_refused_after_a_stop_is_an_error_and_no_value_that_comes_too_late():
    goes_on = Act((1,), on_cancel="go on", clean=(4,))
    source = Step("source", acts=(goes_on,), timeout=3, items=Items(1, "iterator"))
    flow = Flow((source, Step("one", (0,)), Step("two", (0,))))

    assert check(Case(flow, Fault(cancels=((0, 0),)))) == []


@pytest.mark.parametrize("at", range(9, 13))
def test_a_caller_that_is_cancelled_at_the_last_event_outlives_a_call_left_running(at):
    leaves = Step("one", acts=(Act((2,)),), pays="left")
    in_thread = Step("two", acts=(Act((1,), "hang"),), retries=3, timeout=2, thread=True)
    fault = Fault(observer=("cancel task", at), scope=("timeout", 7))

    assert check(Case(Flow((leaves, in_thread)), fault)) == []


A_TICK = (Act((1,)),)
URGENT_ITEMS = Flow(
    (
        Step("source", items=Items(8)),
        Step("others", (0,), A_TICK, pool=0, maps=0),
        Step("urgent", (0,), A_TICK, pool=0, maps=0, priority=1),
    ),
    (PoolSpec(2),),
)
RISING_CHAIN = Flow(
    (
        Step("source", items=Items(8)),
        Step("first", (0,), A_TICK, pool=0, maps=0),
        Step("second", (1,), A_TICK, pool=0, maps=1, priority=1),
    ),
    (PoolSpec(4),),
    schedule="ready",
)


@pytest.mark.parametrize("flow", [URGENT_ITEMS, RISING_CHAIN])
def test_the_model_notices_an_item_that_starts_before_a_more_urgent_one(flow):
    assert check(Case(flow)) == []
    even = flow._replace(steps=tuple(step._replace(priority=0) for step in flow.steps))

    (found,) = violations(Case(flow), Pipeline(even).simulate(Fault()), thorough=False)

    assert "starts before" in found


def test_a_step_that_looks_for_a_stored_result_holds_up_equally_urgent_ones_out_of_line():
    steps = (
        Step("source", pool=0, items=Items(1)),
        Step("other", (0,), pool=0),
        Step("urgent", (0,), pool=0, maps=0, priority=1),
        Step("cached", (0,), A_TICK, pool=0, asks=True, priority=1, caches=1),
    )

    assert check(Case(Flow(steps, (PoolSpec(1),), durable=True))) == []


@pytest.mark.parametrize("is_shared", [False, True])
def test_the_model_notices_an_iterator_that_several_steps_take(is_shared):
    takers = [Step("one", (0,), maps=0), Step("two", (0,) if is_shared else ())]
    flow = Flow((Step("source", items=Items(2, "iterator")), *takers))
    world = Pipeline(flow).simulate(Fault())
    assert violations(Case(flow), world, thorough=True) == []

    other = flow._replace(steps=(flow.steps[0]._replace(items=Items(2)), *flow.steps[1:]))

    assert bool(violations(Case(other), world, thorough=False)) is is_shared


@pytest.mark.parametrize("number", range(FIRST, FIRST + 10 * VARIATIONS, 3))
def test_a_number_tells_all_that_happens_in_a_run(number):
    def events_of(case):
        log = Pipeline(case.flow).simulate(case.fault).log
        return [(run, type(event), getattr(event, "step", ""), turn) for run, event, turn, _ in log]

    case = case_of(number)

    assert case == case_of(number)
    assert events_of(case) == events_of(case)


TWO_STEPS = Flow((Step("one", acts=(Act((1,)),)), Step("two", (0,))))


@pytest.mark.parametrize("kind", [AttemptStarted, StepSucceeded])
def test_the_model_notices_an_event_that_is_missing(kind):
    world = Pipeline(TWO_STEPS).simulate(Fault())
    assert violations(Case(TWO_STEPS), world, thorough=True) == []

    world.log.remove(next(entry for entry in world.log if type(entry[1]) is kind))

    assert violations(Case(TWO_STEPS), world, thorough=True) != []


EQUAL_ITEMS = Flow(
    (
        Step("source", items=Items(3, "pairs")),
        Step("ask", (0,), A_TICK, maps=0, caches=9, saves=2, notes=1),
    ),
    durable=True,
)


def test_the_list_of_a_fallback_is_no_equal_argument_where_the_journal_tells_its_type():
    source = Step("source", acts=(Act((0,)),), items=Items(0), fallback="value")
    flow = Flow((source, Step("ask", (0,), caches=9)), copies=2, durable=True)

    assert check(Case(flow, Fault(strangers=((3, 0),)))) == []


def test_the_model_notices_an_equal_call_that_is_made_again():
    assert check(Case(EQUAL_ITEMS)) == []
    never = EQUAL_ITEMS._replace(
        steps=(EQUAL_ITEMS.steps[0], EQUAL_ITEMS.steps[1]._replace(caches=0))
    )

    (found,) = violations(Case(EQUAL_ITEMS), Pipeline(never).simulate(Fault()), thorough=False)

    assert "equal calls overlap" in found


def test_an_action_may_leave_a_call_running_when_the_journal_fails_in_another_one():
    pays = Step("pays", acts=A_TICK, pays="at once")
    flow = Flow((Step("one"), pays, Step("two")), durable=True)

    for fails_at in range(2, 8):
        assert check(Case(flow, Fault(fails_at=fails_at))) == []


def test_the_model_notices_what_is_not_stored():
    def found_after(lose):
        world = Pipeline(EQUAL_ITEMS).simulate(Fault())
        lose(world.journal, world)
        return "".join(violations(Case(EQUAL_ITEMS), world, thorough=False))

    assert "not stored" in found_after(lambda journal, _: journal.stored["0"].pop())
    assert "stored:" in found_after(lambda journal, _: journal.notes.pop())
    assert "no such result" in found_after(lambda journal, _: journal.reusable.clear())
    assert "finds" in found_after(lambda _, world: setattr(world.calls[-1], "found", "another"))


def test_the_model_notices_a_checkpoint_that_is_lost_or_outlives_its_step():
    fails = EQUAL_ITEMS.steps[1]._replace(acts=(Act((1,), "raise"),))
    flow = EQUAL_ITEMS._replace(steps=(EQUAL_ITEMS.steps[0], fails))
    world = Pipeline(flow).simulate(Fault())
    assert violations(Case(flow), world, thorough=True) == []

    world.journal.saved["0"].popitem()
    (lost,) = violations(Case(flow), world, thorough=False)
    world = Pipeline(EQUAL_ITEMS).simulate(Fault())
    saved = world.journal.checkpoint_codec.encode("", "left", str)
    world.journal.saved["0"] = {("ask", 0): saved}
    (outlives,) = violations(Case(EQUAL_ITEMS), world, thorough=False)

    assert "is lost" in lost
    assert "outlives" in outlives


def test_the_model_notices_a_cancellation_that_was_lost():
    world = Pipeline(TWO_STEPS).simulate(Fault(cancels=((3, 0),)))
    assert world.accepted == [1]

    world.raised, world.reports = [None], Pipeline(TWO_STEPS).simulate(Fault()).reports

    (found,) = violations(Case(TWO_STEPS), world, thorough=False)
    assert "lost" in found


def test_the_smallest_case_has_only_what_makes_it_fail():
    flow = random_flow(Random(5))._replace(fail_fast=True)
    spoiled = flow.steps[-1]._replace(retries=3)
    case = Case(flow._replace(steps=(*flow.steps, spoiled)), Fault(cancels=((9, 2), (4, 0))))

    smallest = shrink(case, fails=lambda case: any(step.retries == 3 for step in case.flow.steps))

    assert smallest == Case(Flow((Step(spoiled.name, retries=3),)))
