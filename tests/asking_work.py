"""Functions for worker processes that ask `current_step`, in a module that they can import."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
import time
from contextlib import suppress

from asyncflow import WorkflowStep, current_step, run_pipeline
from asyncflow.journal import SQLiteJournal
from asyncflow.logs import StepFilter, keep_record


def logged_fields():
    record = logging.makeLogRecord({})
    StepFilter().filter(record)
    return record.run_id, record.step, record.attempt, record.item


def look_at_itself():
    """Fail at first; then return what the second attempt knows."""
    step = current_step()
    if step.attempt == 1:
        raise ValueError
    in_a_thread = []
    thread = threading.Thread(target=lambda: in_a_thread.append(current_step().attempt))
    thread.start()
    thread.join()
    step.heartbeat()  # the step has no heartbeat_ms
    names = "run_id", "step_name", "item", "attempt", "max_retries", "idempotency_key"
    return {
        **{name: getattr(step, name) for name in names},
        "cancel_requested": step.cancel_requested,
        "remaining_ms": step.remaining_ms(),
        "in_a_thread": in_a_thread[0],
        "logged_as": logged_fields(),
    }


class LocalError(Exception):
    def __reduce__(self):
        raise TypeError("not this one")


def last_errors():
    """Fail twice; then return what the attempts have seen of each other's errors."""
    step = current_step()
    if step.attempt == 1:
        raise ValueError("first", step.last_error)
    if step.attempt == 2:
        raise LocalError(f"second, after {step.last_error!r}")
    return type(step.last_error).__name__, str(step.last_error)


def item_and_limit(numbers):
    step = current_step()
    return numbers, step.item, step.idempotency_key, step.remaining_ms()


def times():
    return time.monotonic(), current_step().remaining_ms()


def remaining_twice():
    first = current_step().remaining_ms()
    time.sleep(0.05)
    return first, current_step().remaining_ms()


def results():
    return current_step().results


async def name_of_this_step():
    return current_step().step_name


def run_another():
    in_condition = []

    def when():
        with suppress(RuntimeError):
            in_condition.append(current_step())
        return True

    report = asyncio.run(run_pipeline([WorkflowStep("inner", name_of_this_step, when=when)]))
    return report["inner"].output, current_step().step_name, in_condition


def wait_for_run(path):
    async def main():
        async with SQLiteJournal(path) as journal:
            await run_pipeline([], run_id="r", journal=journal, on_active="wait")

    asyncio.run(main())


def beat(seconds):
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        current_step().heartbeat()
        time.sleep(0.05)
    return "alive"


def know_the_attempt():
    step = current_step()
    step.heartbeat()
    try:
        step.results  # noqa: B018 - it raises
    except RuntimeError as error:
        return step.idempotency_key, step.remaining_ms(), logged_fields(), str(error)


class Silent:
    def __repr__(self):
        raise ValueError("no text")


def speak():
    step = current_step()
    log = logging.getLogger("speaking")
    log.setLevel(logging.INFO)
    log.info("a %s", "record")
    keep_record(None, "info", {"event": "loaded", "rows": 3, "of": Silent()})
    print("a line")
    print("half a line", end="")
    step.progress(1, 3, "rows")
    step.progress(2, 3, "rows")
    step.attach("table", [{"x": 1}])


def say_and_wait(path):
    step, log = current_step(), logging.getLogger("speaking")
    log.info("waiting")
    step.attach("table", [{"x": 1}])
    step.progress(1, 3, "rows")
    until = time.monotonic() + 30
    while not os.path.exists(path):
        if time.monotonic() > until:
            return "not seen"
        time.sleep(0.01)
    step.progress(2, 3, "rows")
    print("no end", end="")
    return "seen"


def say_and_die():
    logging.getLogger("speaking").info("the last word")
    os.kill(os.getpid(), signal.SIGKILL)
