"""`StepResult.item_value` says which value an item was given, wherever the result comes from."""

from __future__ import annotations

import gc
import pickle
import weakref

import pytest
from memory_journal import MemoryJournal

from asyncflow import Orchestrator, RunReport, WorkflowStep, current_step, each, run_pipeline
from asyncflow import Pipeline as PipelineOf
from asyncflow._core.history.results import StepResult
from asyncflow.journal import SQLiteJournal


class Value: ...


def values(result: StepResult) -> list[str | None]:
    return [item.item_value for item in result.items or ()]


def returning(value):
    async def action():
        return value

    return action


async def fetch(url):
    if url == "b":
        raise OSError("gone")
    return url * 2


async def parse(page):
    return page


SOURCE = WorkflowStep("urls", returning(["a", "b", "c"]))
FETCH = WorkflowStep("fetch", fetch, {"url": "urls"}, map_over="urls", tolerated_failures=1)
PARSE = WorkflowStep("parse", parse, {"page": "fetch"}, map_over="fetch")
STEPS = [SOURCE, FETCH, PARSE]


@pytest.mark.parametrize("schedule", ["tiers", "ready"])
async def test_an_item_has_the_value_of_its_number_even_if_it_failed_or_never_ran(schedule):
    report = await run_pipeline(STEPS, schedule=schedule)

    assert values(report["fetch"]) == ["'a'", "'b'", "'c'"]
    assert values(report["parse"]) == ["'aa'", None, "'cc'"]  # fetch[1] has returned nothing
    assert report["urls"].item_value is None
    assert report["fetch"].item_value is None


async def test_an_item_of_an_input_has_its_value():
    async def double(n):
        return n * 2

    steps = [WorkflowStep("double", double, map_over="n")]
    report = await run_pipeline(steps, inputs={"n": [1, {"deep": [2]}]})

    assert values(report["double"]) == ["1", "{'deep': [2]}"]


@pytest.mark.parametrize(
    "source", [lambda: iter("ab"), lambda: {"a": 1, "b": 2}, lambda: frozenset("ab")]
)
async def test_the_value_of_what_is_read_once_or_has_no_order_is_not_known(source):
    report = await run_pipeline(
        [
            WorkflowStep("urls", returning(source())),
            WorkflowStep("fetch", parse, {"page": "urls"}, map_over="urls"),
        ]
    )

    assert values(report["fetch"]) == [None, None]


async def test_a_long_value_is_cut_and_one_that_raises_when_it_is_shown_is_named():
    class Hostile:
        def __repr__(self):
            raise RuntimeError

    report = await run_pipeline(
        [
            WorkflowStep("urls", returning(["x" * 1_000, "two\nlines", Hostile()])),
            WorkflowStep("fetch", parse, {"page": "urls"}, map_over="urls"),
        ]
    )

    long, lines, hostile = values(report["fetch"])
    assert long == f"'{'x' * 99}…"
    assert lines == r"'two\nlines'"
    assert hostile.startswith("<Hostile")


async def test_the_value_of_a_secret_is_redacted():
    steps = [
        WorkflowStep("urls", returning(["hidden"]), secret=True),
        WorkflowStep("fetch", parse, {"page": "urls"}, map_over="urls"),
        WorkflowStep("send", parse, {"page": "keys"}, map_over="keys"),
    ]
    pipeline = Orchestrator(steps[:2])
    report = await pipeline.run()
    of_input = await run_pipeline(
        [WorkflowStep("send", returning_item, map_over="keys")],
        inputs={"keys": ["hidden"]},
        secret_inputs=["keys"],
    )

    assert values(report["fetch"]) == ["redacted"]
    assert values(of_input["send"]) == ["redacted"]
    assert "hidden" not in repr(of_input["send"])


async def returning_item(keys):
    return None


async def test_outputs_that_were_not_kept_are_not_known():
    slim = WorkflowStep(
        "fetch",
        fetch,
        {"url": "urls"},
        map_over="urls",
        keep_outputs=False,
        fallback=lambda error: "instead",
    )
    report = await run_pipeline([SOURCE, slim, PARSE], schedule="ready")

    assert values(report["fetch"]) == ["'b'"]
    assert values(report["parse"]) == [None, None, None]


async def test_it_is_the_same_after_any_trip(tmp_path):
    async with SQLiteJournal(tmp_path / "runs.db") as journal:
        report = await run_pipeline(STEPS, journal=journal, run_id="r")
        stored = await journal.report("r")
        again = await run_pipeline(STEPS, journal=journal, run_id="r")
        rerun = await Orchestrator(STEPS, journal=journal).rerun("r")

    trips = [
        *(report, stored, again, rerun, pickle.loads(pickle.dumps(report))),
        *(RunReport.from_json(each.to_json()) for each in (report, stored, rerun)),
    ]
    for trip in trips:
        assert values(trip["fetch"]) == ["'a'", "'b'", "'c'"]
        assert values(trip["parse"]) == ["'aa'", None, "'cc'"]


async def test_a_resumed_run_has_the_values_of_all_items():
    failing = {"b"}

    async def fetch(url):
        if url in failing:
            raise OSError
        return url

    steps = [SOURCE, WorkflowStep("fetch", fetch, {"url": "urls"}, map_over="urls")]
    journal = MemoryJournal()
    await run_pipeline(steps, journal=journal, run_id="r", fail_fast=False)
    failing.clear()
    report = await run_pipeline(steps, journal=journal, run_id="r")

    assert values(report["fetch"]) == ["'a'", "'b'", "'c'"]


@pytest.mark.parametrize("schedule", ["tiers", "ready"])
async def test_a_reader_of_results_and_a_clean_up_step_see_what_the_report_has(schedule):
    seen = {}

    async def clean_up():
        seen.update(current_step().results)

    pipeline = PipelineOf("etl", schedule=schedule)

    @pipeline.step
    async def urls():
        return ["a", "c"]

    @pipeline.step
    async def load(url=each(urls)):
        return url

    @pipeline.step(map_over=load, depends_on={"page": load})
    async def parsed(page):
        return page

    pipeline.step(clean_up, depends_on=[load, parsed], run_if="always")

    async with pipeline.start() as run:
        items = [item async for item in run.results("parsed")]
        report = await run.report()

    assert sorted(item.item_value for item in items) == ["'a'", "'c'"]
    assert values(seen["parsed"]) == values(report["parsed"]) == ["'a'", "'c'"]
    assert values(seen["load"]) == ["'a'", "'c'"]


async def test_a_result_holds_no_value_that_its_report_does_not_hold():
    made = []

    async def rows():
        made.append(weakref.ref(value := Value()))
        yield value

    async def source():
        return rows()

    streaming = WorkflowStep("rows", source), WorkflowStep("each", take, ["rows"], map_over="rows")
    report = await run_pipeline(streaming)
    gc.collect()
    assert values(report["each"]) == [None]
    assert made[0]() is None

    listed = WorkflowStep("rows", listing(Value)), streaming[1]
    report = await run_pipeline(listed)
    listed_one = weakref.ref(report["rows"].output[0])
    (item,) = report["each"].items
    assert "Value object at" in item.item_value
    del report, item
    gc.collect()
    assert listed_one() is None


def listing(kind):
    async def action():
        return [kind()]

    return action


async def take(rows):
    return None


def test_an_unknown_attribute_of_a_result_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'StepResult' object has no attribute 'itemvalue'"):
        StepResult("a", "SUCCESS").itemvalue  # type: ignore[attr-defined]  # noqa: B018
