"""An unknown argument is refused with the right one, whatever other libraries call it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from asyncflow import Orchestrator, Pipeline, Pool, Retry, WorkflowStep, run_pipeline
from asyncflow.service import Service


async def load() -> None: ...


def declared(**policies: Any) -> None:
    Pipeline("etl").step(**policies)(load)


@pytest.mark.parametrize(
    ("make", "unknown", "says"),
    [
        (WorkflowStep, "max_retires", "WorkflowStep() got an unknown argument 'max_retires' (did "),
        (WorkflowStep, "retries", "(did you mean 'max_retries'?)"),
        (WorkflowStep, "max_attempts", "(did you mean 'max_retries'?)"),
        (WorkflowStep, "timeout", "(did you mean 'timeout_ms'?)"),
        (WorkflowStep, "per_second", "(did you mean 'per_second' of Pool?)"),
        (WorkflowStep, "rate", "(did you mean 'per_second' of Pool?)"),
        (WorkflowStep, "colour", "WorkflowStep() got an unknown argument 'colour'"),
        (declared, "retries", "step 'load' got an unknown argument 'retries' (did you mean 'max_r"),
        (declared, "depend_on", "(did you mean 'depends_on'?)"),
        (
            Retry,
            "max_attempts",
            "Retry() got an unknown argument 'max_attempts' (did you mean 'max_",
        ),
        (Retry, "retry_after", "(did you mean 'on'?)"),
        (Retry, "max_attempts", "(did you mean 'max_retries' of WorkflowStep?)"),
        (Retry, "delay", "(did you mean 'base_ms'?)"),
        (Retry, "base", "(did you mean 'base_ms'?)"),
        (Pool, "rate", "Pool() got an unknown argument 'rate' (did you mean 'per_second'?)"),
        (Pool, "max_workers", "(did you mean 'size'?)"),
        (
            Pipeline,
            "timeout",
            "Pipeline() got an unknown argument 'timeout' (did ",
        ),
        (Pipeline, "max_retries", "(did you mean 'max_retries' of WorkflowStep?)"),
        (Orchestrator, "concurrency", "Orchestrator() got an unknown argument 'concurrency' (did "),
        (Pipeline("etl").with_options, "timeout", "unknown option 'timeout' (did you mean 'deadli"),
    ],
)
def test_an_unknown_argument_is_refused_with_the_right_one(
    make: Callable[..., Any], unknown: str, says: str
) -> None:
    with pytest.raises(TypeError) as refused:
        make(**{unknown: 1})

    assert says in str(refused.value)


async def test_a_run_refuses_an_unknown_argument_with_the_right_one() -> None:
    with pytest.raises(TypeError) as refused:
        await run_pipeline([], timeout=5)  # type: ignore[call-arg]

    assert str(refused.value) == (
        "run_pipeline() got an unknown argument 'timeout' (did you mean 'deadline_ms'?); an input "
        "of the run is given in inputs={'timeout': ...}"
    )
    assert inspect.iscoroutinefunction(run_pipeline)


@pytest.mark.parametrize(
    ("call", "unknown", "says"),
    [
        (Pipeline("etl").enqueue, "countdown", "Pipeline.enqueue() got an unknown argument "),
        (Pipeline("etl").enqueue, "eta", "(did you mean 'delay_ms'?)"),
        (Orchestrator([]).enqueue, "delay", "Orchestrator.enqueue() got an unknown argument "),
        (partial(Service([]).enqueue, "etl"), "countdown", "'countdown' (did you mean 'delay_ms'"),
        (partial(Service([]).enqueue, "etl"), "on_conflicts", "(did you mean 'on_conflict'?)"),
        (
            partial(Service([]).start, "etl"),
            "tokens",
            "Service.start() got an unknown argument 'tokens'; inputs of the run are one argument: "
            "inputs={'tokens': ...}",
        ),
    ],
)
async def test_a_method_that_starts_runs_refuses_an_unknown_argument(
    call: Callable[..., Any], unknown: str, says: str
) -> None:
    with pytest.raises(TypeError) as refused:
        await call(**{unknown: 1})

    assert says in str(refused.value)


def test_a_missing_argument_is_reported_as_python_does() -> None:
    with pytest.raises(TypeError, match=r"Pool\.__init__\(\) missing 1 required .* 'size'"):
        Pool()  # type: ignore[call-arg]
