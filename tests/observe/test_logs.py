"""Log records carry their step, and the events of a run can be logged."""

from __future__ import annotations

import asyncio
import io
import logging
import logging.handlers
import queue
import threading

import pytest
import structlog
from golden_run import GOLDEN
from results import HostileError

from asyncflow import WorkflowStep, run_pipeline
from asyncflow.events import NoteEvent
from asyncflow.logs import LoggingObserver, StepFilter, add_step
from asyncflow.testing import run_in_virtual_time

FORMAT = "%(levelname)s %(run_id)s|%(step)s|%(attempt)s|%(item)s|%(message)s"


@pytest.fixture
def log():
    """A logger for one test."""
    logger = logging.Logger("test", logging.DEBUG)
    logger.propagate = False
    return logger


@pytest.fixture
def text(log):
    """The output of the logger's handler, with the step of each record."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.addFilter(StepFilter())
    handler.setFormatter(logging.Formatter(FORMAT))
    log.addHandler(handler)
    return lambda: stream.getvalue().splitlines()


@pytest.fixture
def records(log):
    found = []
    handler = logging.Handler()
    handler.emit = found.append
    log.addHandler(handler)
    return found


async def items():
    return ["x", "y"]


def run(*steps, **options):
    return run_in_virtual_time(run_pipeline(steps, run_id="r1", **options))


def test_a_record_made_in_a_step_carries_that_step(log, text):
    async def loads(items):
        log.info("loading %s", items)
        if len(text()) % 2:
            raise ValueError

    log.info("before")
    run(
        WorkflowStep("items", items),
        WorkflowStep("load", loads, ["items"], map_over="items", max_retries=2),
        max_concurrency=1,
    )
    log.info("after")

    assert text() == [
        "INFO ||None|None|before",
        "INFO r1|load|1|0|loading x",
        "INFO r1|load|1|1|loading y",
        "INFO r1|load|2|1|loading y",
        "INFO ||None|None|after",
    ]


def test_a_record_made_in_a_thread_or_a_task_of_a_step_carries_the_step_too(log, text):
    def blocking():
        log.info("in its thread")
        threading.Thread(target=log.info, args=["in a thread without context"]).start()

    async def later():
        log.info("in its task")

    async def awaiting():
        await asyncio.gather(asyncio.create_task(later()), asyncio.to_thread(log.info, "elsewhere"))

    run(WorkflowStep("a", blocking, runs_in="thread"), WorkflowStep("b", awaiting, ["a"]))

    assert sorted(text()) == [
        "INFO r1|a|1|None|in its thread",
        "INFO r1|b|1|None|elsewhere",
        "INFO r1|b|1|None|in its task",
        "INFO ||None|None|in a thread without context",
    ]


def test_the_filter_keeps_the_fields_that_a_record_already_has(log, records):
    async def act():
        log.info("x", extra={"step": "mine", "item": 7})

    log.handlers[0].addFilter(StepFilter())
    run(WorkflowStep("a", act))

    (record,) = records
    assert (record.run_id, record.step, record.attempt, record.item) == ("r1", "mine", 1, 7)


def test_a_filter_of_a_queue_handler_adds_the_step(log):
    waiting = queue.SimpleQueue()
    handler = logging.handlers.QueueHandler(waiting)
    handler.addFilter(StepFilter())
    log.addHandler(handler)

    async def act():
        log.info("x")

    run(WorkflowStep("a", act))

    assert waiting.get_nowait().step == "a"


def test_a_watchdog_warning_carries_no_step(caplog):
    caplog.handler.addFilter(StepFilter())

    async def stubborn():
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(60)

    run(WorkflowStep("a", stubborn, timeout_ms=10))

    (record,) = caplog.records
    assert "has not ended" in record.message
    assert record.step == ""


def test_structlog_adds_the_step_to_what_is_logged_within_one():
    with structlog.testing.capture_logs(processors=[add_step]) as logged:
        log = structlog.get_logger()

        async def act(items):
            log.info("acting", of=items)

        log.info("before")
        run(
            WorkflowStep("items", items),
            WorkflowStep("act", act, ["items"], map_over="items"),
            WorkflowStep("plain", lambda: act("all"), ["act"]),
        )

    here = {"run_id": "r1", "attempt": 1, "event": "acting", "log_level": "info"}
    assert logged == [
        {"event": "before", "log_level": "info"},
        {**here, "step": "act", "item": 0, "of": "x"},
        {**here, "step": "act", "item": 1, "of": "y"},
        {**here, "step": "plain", "of": "all"},
    ]


def test_the_processor_keeps_the_fields_that_a_structlog_event_already_has():
    with structlog.testing.capture_logs(processors=[add_step]) as logged:

        async def act():
            structlog.get_logger().info("x", step="mine")

        run(WorkflowStep("a", act))

    assert [(event["step"], event["attempt"]) for event in logged] == [("mine", 1)]


class Flaky:
    def __init__(self):
        self.calls = 0

    async def __call__(self):
        self.calls += 1
        if self.calls < 2:
            raise ValueError("not yet")
        return "the password"


async def fail():
    raise LookupError("nothing\nthere")


async def refuse():
    raise HostileError


def test_the_events_of_a_run_are_logged_line_by_line(log, text):
    run(
        WorkflowStep("flaky", Flaky(), max_retries=2, retry=100),
        WorkflowStep("fails", fail, ["flaky"]),
        WorkflowStep("never", fail, ["fails"]),
        WorkflowStep("unneeded", fail, when=lambda: False),
        observers=[LoggingObserver(log)],
        name="etl",
    )

    lines = [line for line in text() if line.startswith(("INFO", "WARNING", "ERROR"))]
    assert lines == [
        "INFO r1||None|None|run r1 of etl started: 4 steps",
        "INFO r1|unneeded|None|None|unneeded skipped: its condition was not met",
        "INFO r1|flaky|1|None|flaky: attempt 1 of 2 started",
        "WARNING r1|flaky|1|None|flaky: attempt 1 of 2 failed, retrying in 100 ms: "
        "ValueError: not yet",
        "INFO r1|flaky|2|None|flaky: attempt 2 of 2 started",
        "INFO r1|flaky|2|None|flaky succeeded in attempt 2 of 2",
        "INFO r1|fails|1|None|fails started",
        "ERROR r1|fails|1|None|fails failed: LookupError: nothing",
        "WARNING r1|never|None|None|never skipped: step 'fails' failed and fail_fast is on",
        "ERROR r1||None|None|the run failed after 100 ms: step 'fails' failed and fail_fast is on",
    ]


def test_a_failure_is_logged_with_the_traceback_of_the_step(log, text):
    run(WorkflowStep("fails", fail), observers=[LoggingObserver(log)])

    written = "\n".join(text())
    assert "in fail" in written
    assert "LookupError: nothing" in written
    assert "nodes.py" not in written


def test_a_fallback_is_logged_as_a_warning_with_the_traceback_of_the_step(log, records, text):
    run(WorkflowStep("a", fail, fallback=lambda error: 0), observers=[LoggingObserver(log)])

    (fallback,) = [record for record in records if record.kind == "StepSucceeded"]
    assert fallback.levelname == "WARNING"
    assert fallback.getMessage() == "a failed and fell back: LookupError: nothing"
    assert "in fail" in "\n".join(text())


def test_a_record_of_an_event_carries_the_fields_of_the_event(log, records):
    run(
        WorkflowStep("a", Flaky(), max_retries=2, retry=250),
        observers=[LoggingObserver(log)],
        max_concurrency=1,
    )

    by_kind = {record.kind: record for record in records}
    failed, finished = by_kind["AttemptFailed"], by_kind["RunFinished"]
    assert (failed.retry_in_ms, failed.at_ms, failed.exc_info) == (250.0, 0.0, None)
    assert by_kind["AttemptStarted"].queued_ms == 0.0
    assert (finished.status, finished.stop_reason, finished.at_ms) == ("PASSED", None, 250.0)


def test_a_record_has_what_its_event_says_in_numbers_and_words_and_no_value_of_a_user(log, records):
    told = [event for event in GOLDEN if not isinstance(event, NoteEvent)]
    observer = LoggingObserver(log).for_run()

    for event in told:
        observer(event)

    assert len(records) == len(told)
    users = {"inputs", "output", "error"}
    for event, record in zip(told, records, strict=True):
        said = {name: getattr(event, name) for name in event._fields if name not in users}
        plain = {name: each for name, each in said.items() if isinstance(each, str | int | float)}
        plain.pop("process", None)  # each record has its own
        assert {name: getattr(record, name) for name in plain} == plain
        assert users.isdisjoint(vars(record))
        assert record.levelno == event.level


def test_an_output_is_never_logged(log, records):
    async def takes(password):
        return f"hello {password}"

    run(
        WorkflowStep("a", Flaky(), max_retries=2),
        WorkflowStep("b", takes),
        observers=[LoggingObserver(log)],
        inputs={"password": "the password"},
        secret_inputs=["password"],
    )

    assert records
    for record in records:
        assert "the password" not in repr(vars(record))


def test_ordinary_events_have_the_given_level(log, records):
    log.setLevel(logging.INFO)

    run(WorkflowStep("a", items), observers=[LoggingObserver(log, logging.DEBUG)])
    assert records == []

    run(WorkflowStep("a", refuse), observers=[LoggingObserver(log, logging.DEBUG)])
    assert [record.levelname for record in records] == ["ERROR", "ERROR"]


def test_a_logger_and_a_level_can_be_given_by_name(caplog):
    with caplog.at_level(logging.DEBUG, "feeds"):
        run(WorkflowStep("a", items), observers=[LoggingObserver("feeds", "debug")])

    assert {(record.name, record.levelname) for record in caplog.records} == {("feeds", "DEBUG")}


@pytest.mark.parametrize(
    ("arguments", "error", "problem"),
    [
        ((3,), TypeError, "logger must be a Logger or its name, not int"),
        (("feeds", "LOUD"), ValueError, "level must be one of CRITICAL, .*, not 'LOUD'"),
        (("feeds", None), TypeError, "level must be a number or a name, not NoneType"),
        (("feeds", True), TypeError, "level must be a number or a name, not bool"),
    ],
)
def test_an_invalid_logger_or_level_is_refused_when_the_observer_is_made(arguments, error, problem):
    with pytest.raises(error, match=problem):
        LoggingObserver(*arguments)
