"""Tracebacks show the frames of the step, and never ours."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Awaitable, Callable
from typing import Any

import process_work
import pytest

from asyncflow import RestoredError, WorkflowStep, run_pipeline, topological_sort
from asyncflow._core.tracebacks import format_error


async def error_of(action: Callable[[], Awaitable[object]], **policies: Any) -> BaseException:
    report = await run_pipeline([WorkflowStep("one", action, **policies)])
    error = report["one"].error
    assert error is not None
    return error


def restored(error: BaseException) -> RestoredError:
    return RestoredError("builtins.OSError", str(error), "".join(traceback.format_exception(error)))


async def deep() -> None:
    try:
        await nested()
    except OSError as error:
        raise RuntimeError("no luck") from error


async def nested() -> None:
    async def inner() -> None:
        raise OSError("no disk")

    report = await run_pipeline([WorkflowStep("inner", inner)])
    report.raise_for_failures()


async def both() -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(nested())
        group.create_task(nested())


@pytest.mark.parametrize("convert", [lambda error: error, restored], ids=["live", "restored"])
@pytest.mark.parametrize("action", [deep, both])
async def test_our_frames_are_hidden_in_causes_and_groups(
    convert: Callable[[BaseException], BaseException], action: Callable[[], Awaitable[None]]
) -> None:
    error = await error_of(action)

    short, full = format_error(convert(error)), restored(error).traceback

    assert "asyncflow/_core/history/report.py" in full
    assert "asyncflow/_" not in short
    assert "raise errors.pop()" not in short
    for text in (short, full):
        assert "in inner" in text
        assert "OSError: no disk" in text
        assert "Traceback (most recent call last):" in text


async def cyclic() -> None:
    topological_sort([WorkflowStep("a", deep, ["a"])])


@pytest.mark.parametrize("convert", [lambda error: error, restored], ids=["live", "restored"])
async def test_an_error_raised_by_us_ends_at_the_line_of_the_step(
    convert: Callable[[BaseException], BaseException],
) -> None:
    lines = format_error(convert(await error_of(cyclic))).splitlines()

    assert "in cyclic" in lines[1]
    assert "circle: a -> a" in lines[-1]
    assert "asyncflow/_" not in "".join(lines)


@pytest.mark.process
async def test_our_frames_are_hidden_in_the_traceback_of_a_process() -> None:
    error = await error_of(process_work.raise_two_argument_error, runs_in="process")
    text = format_error(error)

    assert "In the process:" in text
    assert "process_work.py" in text
    assert "worker_process.py" not in text
    assert "worker_process.py" in restored(error).traceback


async def test_the_cause_of_a_timeout_is_shown() -> None:
    async def sleep() -> None:
        try:
            await asyncio.sleep(30)
        finally:
            raise OSError("the disk is full")

    text = format_error(await error_of(sleep, timeout_ms=1))

    assert "OSError: the disk is full" in text
    assert text.endswith(
        "StepTimeoutError: attempt 1 of step 'one' exceeded its timeout_ms of 1 ms"
    )


def test_an_error_whose_traceback_cannot_be_formatted_is_shown_without_it() -> None:
    class Torn(Exception):
        def __getattribute__(self, name: str) -> Any:
            if name == "__cause__":
                raise RuntimeError
            return super().__getattribute__(name)

    assert format_error(Torn("apart")) == "Torn: apart"


async def test_control_characters_of_a_traceback_are_escaped() -> None:
    async def fail() -> None:
        raise OSError("up\x1b[2A and\naway")

    error = await error_of(fail)

    for each in (error, restored(error)):
        text = format_error(each)
        assert "\x1b" not in text
        assert "up\\x1b[2A and\naway" in text
