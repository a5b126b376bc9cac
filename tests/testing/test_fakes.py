"""Fakes replace steps in whatever runs them, and record their calls."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import gc
import weakref
from contextlib import nullcontext
from typing import Annotated
from unittest.mock import AsyncMock

import pytest
from fake_engine import FakeEngine
from memory_journal import MemoryJournal

from asyncflow import (
    Orchestrator,
    Pipeline,
    StepStatus,
    WorkflowStep,
    after,
    current_step,
    each,
    run_pipeline,
)
from asyncflow.testing import fails, fake, run_in_virtual_time

pipeline = Pipeline("etl")


@pipeline.step(timeout_ms=1_000)
async def fetch(url: str, limit: int = 10) -> list[int]:
    raise AssertionError("it is never called")


@pipeline.step(max_retries=3, retry=60_000)
async def load(rows: list[int] = after(fetch)) -> int:
    return len(rows)


def run(*runs, **inputs):
    return run_in_virtual_time((runs[0] if runs else pipeline).run(**{"url": "u"} | inputs))


def test_a_value_replaces_what_a_step_returns():
    with fake(pipeline, fetch=[1, 2]):
        report = run()

    assert report["fetch"].output == [1, 2]
    assert report["load"].output == 2


def test_the_calls_of_a_fake_are_recorded_as_the_action_would_have_received_them():
    with fake(pipeline, fetch=[1], load=fails(2, OSError, then=None)) as fakes:
        report = run()

    assert report["load"].attempts == 3
    assert fakes["fetch"].calls[0].arguments == {"url": "u", "limit": 10}
    assert [(call.arguments, call.attempt) for call in fakes["load"].calls] == [
        ({"rows": [1]}, 1),
        ({"rows": [1]}, 2),
        ({"rows": [1]}, 3),
    ]
    assert {call.run_id for call in fakes["load"].calls} == {report.run_id}
    assert [*fakes] == ["fetch", "load"]
    assert len(fakes) == 2


@pytest.mark.parametrize("error", [ValueError, ValueError("bad")])
def test_an_exception_is_raised(error):
    with fake(pipeline, fetch=error):
        report = run()

    assert isinstance(report["fetch"].error, ValueError)
    assert report["load"].status is StepStatus.SKIPPED


def test_a_step_that_fails_twice_is_itself_then_and_keeps_its_options():
    with fake(pipeline, fetch=[1, 2, 3], load=fails(2)) as fakes:
        report = run()

    assert report["load"].output == 3
    assert [attempt.started_ms for attempt in report["load"].history] == [0, 60_000, 120_000]
    assert len(fakes["load"].calls) == 3


def test_a_function_takes_those_arguments_that_it_has_parameters_for():
    async def slow(limit):
        await asyncio.sleep(0.5)
        return [limit] * limit

    with fake(pipeline, fetch=slow, load=lambda **arguments: arguments):
        report = run(limit=2)

    assert report["load"].output == {"rows": [2, 2]}
    assert report["fetch"].duration_ms == 500


def test_a_mock_is_called_like_the_action():
    mock = AsyncMock(return_value=[])

    with fake(pipeline, fetch=mock):
        run()

    mock.assert_awaited_once_with(url="u", limit=10)


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(
        ValueError, match=r"no step of pipeline 'etl' is named 'fetsh' .did you mean 'fetch'"
    ):
        fake(pipeline, fetsh=[])
    with pytest.raises(ValueError, match=r"no step is named 'x'"):
        fake([WorkflowStep("a", load)], x=1)
    with pytest.raises(ValueError, match=r"is named 'db'; it is a resource: use with_options\(res"):
        fake(pipeline.with_options(resources={"db": nullcontext}), db=1)
    with fake(pipeline, load=1) as fakes, pytest.raises(KeyError, match="did you mean 'load'"):
        fakes["laod"]


async def takes_another(urls): ...


async def never_awaited(): ...


def test_what_cannot_replace_an_action_is_refused():
    with pytest.raises(TypeError, match=r"'fetch' takes 'urls', which the step .*mean 'url'"):
        fake(pipeline, fetch=takes_another)
    with pytest.raises(TypeError, match=r"pass the function itself \(never_awaited"):
        fake(pipeline, fetch=never_awaited())
    with pytest.raises(TypeError, match="error must be an exception"):
        fails(1, "no")
    with pytest.raises(ValueError, match="times must be at least 1"):
        fails(0)
    with pytest.raises(TypeError, match="takes 'urls'"):
        fake(pipeline, fetch=fails(1, then=takes_another))


@pytest.mark.parametrize(
    "make",
    [
        lambda: pipeline.orchestrator,
        lambda: pipeline.with_options(fail_fast=False, run_id="r"),
        lambda: Orchestrator(pipeline, schedule="ready"),
        lambda: Orchestrator(pipeline.steps, targets=["load"]),
    ],
)
def test_steps_are_replaced_in_whatever_runs_them(make):
    with fake(pipeline, fetch=[1]):
        report = run_in_virtual_time(make().run(url="u"))

    assert report["load"].output == 1


def make_steps(value):
    async def one():
        return value

    return [WorkflowStep("one", one), WorkflowStep("two", functools.partial(one))]


class Callable:
    async def __call__(self, value="v"):
        return value


def test_the_object_that_a_fake_replaces_is_kept_since_its_id_tells_which_it_is():
    action = Callable()
    fakes = fake([WorkflowStep("call", action)], call="fake")
    kept = weakref.ref(action)
    del action
    gc.collect()

    assert kept() is not None
    assert fakes


def outer():
    whole = Pipeline("whole")
    whole.include(pipeline, name="ingest")

    @whole.step
    async def report(ingest=after(pipeline)):
        return ingest

    return whole


def test_included_steps_are_replaced_by_their_full_names():
    whole = outer()

    with fake(whole, **{"ingest/fetch": [1, 2]}, report="done") as fakes:
        report = run(whole)

    assert report["report"].output == "done"
    assert fakes["ingest/fetch"].calls[0].arguments == {"url": "u", "limit": 10}
    assert fakes["report"].calls[0].arguments == {"ingest": 2}


def test_a_pipeline_is_replaced_in_the_ones_that_include_it():
    with fake(pipeline, fetch=[1, 2]):
        assert run(outer())["report"].output == 2


def test_another_pipeline_whose_steps_have_the_same_names_is_itself():
    other = Pipeline("other")

    @other.step(name="fetch")
    async def fetch_other():
        return "other"

    with fake(pipeline, fetch=[1]):
        report = run_in_virtual_time(other.run())

    assert report["fetch"].output == "other"


def test_fakes_within_fakes_replace_them():
    with fake(pipeline, fetch=[1], load="outer") as outside:
        with fake(pipeline, load="inner"):
            inner = run()
        outer = run()

    assert (inner["fetch"].output, inner["load"].output) == ([1], "inner")
    assert outer["load"].output == "outer"
    assert len(outside["load"].calls) == 1


def test_fakes_work_in_the_context_of_their_block_only():
    context = contextvars.copy_context()

    with fake(make_steps("real"), one="fake"):
        elsewhere = context.run(lambda: run_in_virtual_time(run_pipeline(make_steps("real"))))
    later = run_in_virtual_time(run_pipeline(make_steps("real")))

    assert elsewhere["one"].output == later["one"].output == "real"


def test_fakes_may_be_left_in_another_context_and_entered_again():
    fakes = fake(pipeline, fetch=[1])
    contextvars.copy_context().run(fakes.__enter__)
    fakes.__exit__()

    with fakes, fakes:
        assert run()["load"].output == 1


def test_a_fixture_replaces_steps_in_all_contexts_until_it_ends():
    fakes = fake(pipeline, fetch=[1])
    elsewhere = contextvars.copy_context()

    fakes._enter_everywhere()
    faked = elsewhere.run(run)
    fakes._leave_everywhere()

    assert faked["load"].output == 1
    assert isinstance(run()["fetch"].error, AssertionError)


def test_a_fake_of_each_item_counts_attempts_by_item():
    mapped = Pipeline("mapped")

    @mapped.step
    async def numbers():
        return [1, 2]

    @mapped.step(max_retries=2)
    async def double(number=each(numbers)):
        return number * 2

    with fake(mapped, double=fails(1)) as fakes:
        report = run_in_virtual_time(mapped.run())

    assert report["double"].output == [2, 4]
    calls = [(call.item, call.attempt, call.arguments) for call in fakes["double"].calls]
    assert sorted(calls, key=str) == [
        (0, 1, {"number": 1}),
        (0, 2, {"number": 1}),
        (1, 1, {"number": 2}),
        (1, 2, {"number": 2}),
    ]


def in_a_thread(a=1, **others):
    return current_step().attempt, a, others


def test_fakes_of_steps_in_threads_and_processes_run_in_the_loop_and_what_they_are_in_a_thread():
    async def first():
        return "first"

    async def slow():
        await asyncio.sleep(0.5)
        return "fake"

    steps = [
        WorkflowStep("first", first),
        WorkflowStep("process", in_a_thread, runs_in="process"),
        WorkflowStep("thread", in_a_thread, ["first"], runs_in="thread", max_retries=2),
    ]

    with fake(steps, process=slow, thread=fails(1)):
        report = run_in_virtual_time(run_pipeline(steps))

    assert report["process"].output == "fake"
    assert report["thread"].output == (2, 1, {"first": "first"})


def test_fakes_run_here_whatever_engine_runs_the_others():
    of_the_run, of_the_step = FakeEngine(), FakeEngine()

    async def first():
        return "first"

    async def second(first):
        return first

    steps = [
        WorkflowStep("first", first),
        WorkflowStep("own", first, engine=of_the_step),
        WorkflowStep("second", second, ["first"]),
    ]

    with fake(steps, first="fake", own="fake") as fakes:
        report = run_in_virtual_time(run_pipeline(steps, engine=of_the_run))

    assert [call.step.name for call in of_the_run.calls] == ["second"]
    assert of_the_step.calls == []
    assert report["second"].output == "fake"
    assert len(fakes["first"].calls) == len(fakes["own"].calls) == 1


def test_a_fake_may_take_any_output_that_keywords_take():
    async def first():
        return 1

    async def second(**outputs): ...

    steps = [WorkflowStep("a", first), WorkflowStep("b", second, {"x": "a"})]

    with fake(steps, b=lambda x: x + 1):
        assert run_in_virtual_time(run_pipeline(steps))["b"].output == 2


def test_what_a_partial_has_bound_is_an_argument_of_the_fake():
    async def send(to, text): ...

    steps = [WorkflowStep("send", functools.partial(send, to="me"))]

    with fake(steps, send=lambda to, text: (to, text)) as fakes:
        report = run_in_virtual_time(run_pipeline(steps, inputs={"text": "hello"}))

    assert report["send"].output == ("me", "hello")
    assert fakes["send"].calls[0].arguments == {"to": "me", "text": "hello"}


def test_a_callable_without_a_signature_can_be_replaced():
    steps = [WorkflowStep("type", dict)]

    with fake(steps, type=3):
        assert run_in_virtual_time(run_pipeline(steps))["type"].output == 3


def test_a_journal_stores_the_output_of_a_fake_by_the_annotations_of_the_action():
    journal = MemoryJournal()

    async def count(of: list[str]) -> Annotated[int, "rows"]:
        raise AssertionError("it is never called")

    def run():
        options = {"run_id": "r", "journal": journal, "inputs": {"of": ["a"]}}
        return run_in_virtual_time(run_pipeline([WorkflowStep("count", count)], **options))

    with fake([WorkflowStep("count", count)], count=2):
        first = run()
    again = run()

    assert first["count"].output == again["count"].output == 2
    assert journal.hints["the output of step 'count'"] == Annotated[int, "rows"]
    assert journal.hints["input 'of'"] == list[str]
