"""No output of an item is reachable from a report if its step has ``keep_outputs=False``."""

from __future__ import annotations

import gc
import pickle
from types import ModuleType, TracebackType

import pytest
from fake_engine import FakeEngine
from memory_journal import MemoryJournal

from asyncflow import Orchestrator, Pool, StepStatus, WorkflowStep, current_step, run_pipeline
from asyncflow._core.history.replay import StoredRun
from asyncflow._core.history.stored_report import report_from

MARK = "what an item has returned"
HIDDEN = {"max_retries": 2, "secret": True}


def strings_of(thing):
    """Yield all strings and bytes that can be reached, but for those that errors refer to."""
    seen, left = set(), [thing]
    while left:
        each = left.pop()
        if id(each) in seen or isinstance(each, type | ModuleType | TracebackType):
            continue
        seen.add(id(each))
        if isinstance(each, str | bytes):
            yield str(each)
        left += gc.get_referents(each)


def keeps(report):
    """Whether an output of an item is reachable from a report, in memory or in what it becomes."""
    _ = report.results, list(report.events()), report.to_html()
    written = str(pickle.dumps(report)), report.to_json(), report.to_html()
    return any(MARK in each for each in (*written, *strings_of(report)))


async def numbers() -> list[int]:
    return [0, 1, 1]


async def flaky(n: int) -> str:
    if n and current_step().attempt == 1:
        raise ValueError(n)
    return f"{MARK}: {n}"


async def steady(n: int) -> str:
    return f"{MARK}: {n}"


async def lost(n: int) -> str:
    raise ValueError(n)


async def taken(text: str) -> str:
    return f"{text} and more"


def instead(error):
    return MARK


def unknown(**arguments):
    raise LookupError("slots")


def steps_of(action, **options):
    """A map that keeps nothing, and one that takes its items and does not either."""
    source = {"map_over": "numbers", "keep_outputs": False, **options}
    return [
        WorkflowStep("numbers", numbers),
        WorkflowStep("made", action, {"n": "numbers"}, **source),
        WorkflowStep("taken", taken, {"text": "made"}, map_over="made", keep_outputs=False),
    ]


@pytest.mark.parametrize("engine", [None, "plain", "keeps"])
@pytest.mark.parametrize(
    ("action", "options"),
    [
        (flaky, {"max_retries": 2}),
        (flaky, {"max_retries": 2, "secret": True}),
        (flaky, {"max_retries": 2, "pool": Pool(1), "deadline_ms": 1_000}),
        (flaky, {"fallback": instead}),
        (lost, {"fallback": instead, "max_retries": 2, "secret": True}),
        (lost, {"fallback": instead, "pool": Pool(1), "slots": unknown}),
        (steady, {}),
        (steady, {"secret": True}),
    ],
)
async def test_no_output_is_left_whatever_an_item_took(action, options, engine):
    if engine is not None:
        options = {**options, "engine": FakeEngine(keeps=engine == "keeps")}

    report = await run_pipeline(steps_of(action, **options))

    assert report.all_passed, report
    assert report["taken"].left_out == 3
    assert not keeps(report)


async def test_no_output_is_left_of_equal_calls_of_this_run_and_another_one():
    journal = MemoryJournal()
    steps = steps_of(flaky, max_retries=2, cache_ms=1_000_000)

    first = await run_pipeline(steps, journal=journal, name="p", run_id="first")
    second = await run_pipeline(steps, journal=journal, name="p", run_id="second")

    assert (first["made"].left_out, second["made"].left_out) == (3, 3)
    assert second["made"].attempts
    assert not keeps(first)
    assert not keeps(second)


@pytest.mark.parametrize("action", [flaky, steady])
async def test_no_output_is_left_of_what_is_resumed_or_rerun(action):
    journal = MemoryJournal()
    steps = steps_of(action, max_retries=2, fallback=instead)
    await run_pipeline(steps, journal=journal, name="p", run_id="r")
    count = len(journal.stored["r"])

    for stored in range(1, count):
        left = journal.died_after(stored, "r")
        report = await run_pipeline(steps, journal=left, name="p", run_id="r")

        assert report["taken"].left_out == 3
        assert not keeps(report), left.stored["r"][stored - 1]
        # The journal has all, as another process may need it.
        assert sum(MARK in text for text in strings_of(left.stored["r"])) == 6

    orchestrator = Orchestrator(steps, journal=journal, name="p")
    for from_ in None, "made", "taken":
        report = await orchestrator.rerun("r", from_=from_)

        assert report["taken"].left_out == 3
        assert report["taken"].status is StepStatus.SUCCESS
        assert not keeps(report)


async def told() -> list[int]:
    raise ValueError("not yet")


async def collect(texts: list[str]) -> int:
    return len(texts)


@pytest.mark.parametrize("secret", [False, True])
@pytest.mark.parametrize("kept", [[False, True], [True, False], [False, False, True, False]])
async def test_a_resumed_run_keeps_the_outputs_that_its_pipeline_asks_for_now(kept, secret):
    journal, last = MemoryJournal(), None

    for keep in kept:
        _, made, _ = steps_of(flaky, max_retries=2, keep_outputs=keep, secret=secret)
        steps = [WorkflowStep("numbers", numbers), made, WorkflowStep("told", told)]
        if keep:
            steps.append(WorkflowStep("collect", collect, {"texts": "made"}))

        report = await run_pipeline(
            *(steps, False), journal=journal, run_id="r", allow_missing_steps=True
        )
        stored = report_from(StoredRun(journal.stored["r"]), lambda step, payload: MARK)

        assert (report["made"].left_out, stored["made"].left_out) == ((3, 3), (0, 0))[keep]
        assert len(report["made"].items) == len(stored["made"].items) == (0, 3)[keep]
        assert keep or not keeps(report)
        if keep:
            assert report["collect"].output == 3
        assert last is None or secret or report["made"].reused
        last = report
