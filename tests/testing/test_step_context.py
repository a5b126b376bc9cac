"""`step_context` gives a direct call of an action its `current_step`."""

from __future__ import annotations

import asyncio
import threading

import pytest

from asyncflow import StepResult, StepStatus, current_step, run_pipeline
from asyncflow.testing import run_in_virtual_time, step_context


def test_current_step_works_in_the_block_alone():
    with step_context(step_name="load", attempt=2, run_id="r", item=3):
        step = current_step()

    assert (step.step_name, step.run_id, step.attempt, step.item) == ("load", "r", 2, 3)
    assert step.max_retries == 2
    assert step.idempotency_key == "r/load#3"
    assert step.results == {}
    assert step.remaining_ms() is None
    with pytest.raises(RuntimeError, match="current_step"):
        current_step()


def test_an_action_sees_the_last_error_that_the_test_gives():
    error = ValueError("no JSON")

    with step_context(attempt=2, last_error=error):
        seen = current_step().last_error

    assert seen is error


def test_an_action_continues_from_the_checkpoint_that_the_test_gives():
    with step_context(attempt=2, last_checkpoint=3) as said:
        step = current_step()
        for row in range(step.last_checkpoint, 5):
            step.checkpoint(row)

    assert said.checkpoints == [3, 4]


def test_blocks_nest():
    with step_context(attempt=1, max_retries=5), step_context(attempt=2):
        assert current_step().attempt == 2
    with step_context(attempt=1, max_retries=5):
        with step_context(attempt=2):
            pass
        assert (current_step().attempt, current_step().max_retries) == (1, 5)


def test_what_an_action_says_is_recorded():
    async def action():
        step = current_step()
        step.heartbeat()
        step.progress(1, 3, "rows")
        step.attach("plot", b"png", "image/png")
        await asyncio.sleep(0.4)
        return step.remaining_ms()

    async def main():
        with step_context(remaining_ms=1_000) as said:
            return said, await action()

    said, left_ms = run_in_virtual_time(main())

    assert said.heartbeats == 2
    assert said.progress == [(1, 3, "rows")]
    assert said.attachments == [("plot", b"png", "image/png")]
    assert left_ms == pytest.approx(600)


def test_an_action_can_be_asked_to_stop():
    def works():
        step = current_step()
        asked = threading.Event()
        while not step.cancel_requested:
            said.cancel_requested = asked.is_set()
            asked.set()
        return "stopped"

    with step_context() as said:
        assert works() == "stopped"


def test_a_clean_up_step_has_results():
    lost = StepResult("load", StepStatus.FAILED)

    with step_context(results={"load": lost}):
        assert current_step().results["load"] is lost


def test_a_run_within_the_block_has_steps_of_its_own():
    async def main():
        with step_context(run_id="outside"):
            report = await run_pipeline([])
            return report.parent, current_step().run_id

    assert run_in_virtual_time(main()) == ("outside", "outside")


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"attempt": 0}, ValueError, "attempt must be at least 1, not 0"),
        ({"remaining_ms": 0}, ValueError, "remaining_ms must be "),
        ({"run_id": 5}, TypeError, "run_id must be a str, not int"),
        ({"item": "x"}, TypeError, "item must be an int or None, not str"),
        ({"item": -1}, ValueError, "item must be at least 0, not -1"),
        ({"results": [1]}, TypeError, "results must be a mapping of step name to StepResult$"),
        ({"results": StepResult("a", StepStatus.SUCCESS)}, TypeError, "results must be a mapping"),
        ({"results": {"a": 1}}, TypeError, "results must be a mapping of step name to StepResult$"),
    ],
)
def test_arguments_are_checked(wrong, error, message):
    with pytest.raises(error, match=f"^step_context: {message}"), step_context(**wrong):
        pass
