"""Tracebacks show the lines of the step, and ours only if they are asked for."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Awaitable, Callable
from typing import Any

import process_work
import pytest

from asyncflow import RestoredError, RunReport, WorkflowStep, run_pipeline, topological_sort
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


@pytest.mark.parametrize("stand_in", [lambda error: error, restored], ids=["live", "kept"])
@pytest.mark.parametrize("action", [deep, both])
async def test_our_frames_are_left_out_of_causes_and_groups_too(
    stand_in: Callable[[BaseException], BaseException], action: Callable[[], Awaitable[None]]
) -> None:
    error = stand_in(await error_of(action))

    short, full = format_error(error), format_error(error, all_frames=True)

    assert "asyncflow/_core/report.py" in full
    assert "asyncflow/_" not in short
    assert "raise errors.pop()" not in short
    for text in (short, full):
        assert "in inner" in text
        assert "OSError: no disk" in text
        assert "Traceback (most recent call last):" in text
    assert [line for line in full.splitlines() if line in short.splitlines()] == short.splitlines()


async def circle() -> None:
    topological_sort([WorkflowStep("a", deep, ["a"])])


@pytest.mark.parametrize("stand_in", [lambda error: error, restored], ids=["live", "kept"])
async def test_what_we_raise_in_a_step_ends_where_the_step_has_called_us(
    stand_in: Callable[[BaseException], BaseException],
) -> None:
    lines = format_error(stand_in(await error_of(circle))).splitlines()

    assert "in circle" in lines[1]
    assert "circle: a -> a" in lines[-1]
    assert "asyncflow/_" not in "".join(lines)


@pytest.mark.process
async def test_our_frames_are_left_out_of_what_a_process_tells_too() -> None:
    error = await error_of(process_work.raise_of_two, runs_in="process")
    text = format_error(error)

    assert "In the process:" in text
    assert "process_work.py" in text
    assert "worker_process.py" not in text
    assert "worker_process.py" in format_error(error, all_frames=True)


async def test_an_error_of_a_limit_says_so_without_a_frame() -> None:
    async def sleep() -> None:
        await asyncio.sleep(30)

    error = await error_of(sleep, timeout_ms=1)

    assert format_error(error) == (
        "asyncflow.StepTimeoutError: attempt 1 of step 'one' exceeded 1 ms"
    )


async def test_the_cause_of_an_error_of_ours_is_told() -> None:
    async def sleep() -> None:
        try:
            await asyncio.sleep(30)
        finally:
            raise OSError("the disk is full")

    text = format_error(await error_of(sleep, timeout_ms=1))

    assert "OSError: the disk is full" in text
    assert text.endswith("StepTimeoutError: attempt 1 of step 'one' exceeded 1 ms")


async def test_an_error_that_can_not_be_printed_is_still_told() -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no words")

    async def fail() -> None:
        raise Mute

    text = format_error(await error_of(fail))

    assert "Mute" in text


def test_a_traceback_that_can_not_be_made_leaves_the_error() -> None:
    class Torn(Exception):
        def __getattribute__(self, name: str) -> Any:
            if name == "__cause__":
                raise RuntimeError
            return super().__getattribute__(name)

    assert format_error(Torn("apart")) == "Torn: apart"


def test_a_kept_error_without_a_traceback_is_told_in_a_line() -> None:
    assert format_error(RestoredError("builtins.OSError", "no disk")) == "OSError: no disk"


async def test_no_text_of_a_traceback_moves_the_cursor() -> None:
    async def fail() -> None:
        raise OSError("up\x1b[2A and\naway")

    error = await error_of(fail)

    for each in (error, restored(error)):
        text = format_error(each)
        assert "\x1b" not in text
        assert "up\\x1b[2A and\naway" in text


async def test_a_report_that_was_json_shows_the_same_traceback() -> None:
    report = await run_pipeline([WorkflowStep("one", deep)])
    again = RunReport.from_json(report.to_json())
    error, kept = report["one"].error, again["one"].error
    assert error is not None
    assert kept is not None

    assert format_error(kept) == format_error(error)
