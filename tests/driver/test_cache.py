"""Steps with ``cache_ms`` reuse the results of equal calls, in other runs and beside them."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import Any

import pytest
from memory_journal import MemoryJournal

from asyncflow import (
    JournalError,
    Orchestrator,
    Pipeline,
    Pool,
    RunCancelledError,
    RunStatus,
    StepStatus,
    WorkflowStep,
    run_pipeline,
)
from asyncflow.events import AttemptStarted, StepReused, StepSucceeded
from asyncflow.journal import SQLiteJournal

AN_HOUR = 3_600_000


class Calls:
    """Actions that note their calls, and fail so many times at first."""

    def __init__(self, failures=0, takes_ms=10):
        self.made: list[Any] = []
        self.failures, self.takes_s = failures, takes_ms / 1000
        self.running = self.most_running = 0

    async def load(self, key):
        self.made.append(key)
        number = len(self.made)
        self.running += 1
        self.most_running = max(self.running, self.most_running)
        try:
            await asyncio.sleep(self.takes_s)
        finally:
            self.running -= 1
        if number <= self.failures:
            raise ConnectionError(number)
        return f"{key} {number}"

    def step(self, name="load", **policies):
        return WorkflowStep(name, self.load, **{"cache_ms": AN_HOUR} | policies)

    def items(self, count=0, keys=None, **policies):
        async def source():
            return keys or ["k"] * count

        policies = {"cache_ms": AN_HOUR} | policies
        load = WorkflowStep("load", self.load, {"key": "source"}, map_over="source", **policies)
        return [WorkflowStep("source", source), load]


async def run(steps, journal, name="p", **options):
    steps = steps if isinstance(steps, list) else [steps]
    options = {"inputs": {"key": "k"} if len(steps) == 1 else {}} | options
    return await run_pipeline(steps, journal=journal, name=name, **options)


# What is reused.


async def test_a_success_of_an_equal_call_in_another_run_is_reused_with_its_origin():
    journal, calls, seen = MemoryJournal(), Calls(), []
    first = await run(calls.step(), journal, run_id="one")

    second = await run(calls.step(), journal, run_id="two", observers=[seen.append])

    assert calls.made == ["k"]
    assert (first["load"].reused, first["load"].origin) == (False, "")
    result = second["load"]
    assert (result.status, result.output) == (StepStatus.SUCCESS, "k 1")
    assert (result.reused, result.origin) == (True, "one")
    assert result.duration_ms >= 9
    assert [type(event) for event in seen if isinstance(event, AttemptStarted | StepReused)] == [
        StepReused
    ]


@pytest.mark.exact_time
async def test_a_reused_result_says_how_long_its_call_took_whenever_that_began():
    journal, calls = MemoryJournal(), Calls()
    later = WorkflowStep("load", calls.load, ["wait"], cache_ms=AN_HOUR)
    steps = [WorkflowStep("wait", lambda: asyncio.sleep(1)), later]
    await run(steps, journal, inputs={"key": "k"})

    report = await run(steps, journal, inputs={"key": "k"})

    assert report["load"].reused
    assert report["load"].duration_ms == pytest.approx(10)


@pytest.mark.exact_time
async def test_a_success_is_reused_until_it_is_older_than_cache_ms():
    journal, calls = MemoryJournal(), Calls()

    for pause_s in (0, 0.9, 0.2):
        await asyncio.sleep(pause_s)
        await run(calls.step(cache_ms=1_000), journal)

    assert calls.made == ["k", "k"]


@pytest.mark.parametrize(
    "other",
    [{"version": "2"}, {"name": "other"}],
)
async def test_another_step_or_version_is_another_call(other):
    journal, calls = MemoryJournal(), Calls()

    await run(calls.step(), journal)
    await run(calls.step(**other), journal)

    assert calls.made == ["k", "k"]


async def test_other_arguments_are_another_call():
    journal, calls = MemoryJournal(), Calls()

    for key in ("k", "other", "k", "other"):
        await run(calls.step(), journal, inputs={"key": key})

    assert calls.made == ["k", "other"]


async def test_a_result_of_another_pipeline_is_not_reused():
    # Trap 2: the cache crosses pipelines, B's load("u") returned A's output.
    journal, one, two = MemoryJournal(), Calls(), Calls()

    await run(one.step(), journal, name="A")
    report = await run(two.step(), journal, name="B")

    assert (one.made, two.made) == (["k"], ["k"])
    assert not report["load"].reused


async def test_a_failure_is_never_reused_nor_is_the_value_of_a_fallback():
    journal, calls = MemoryJournal(), Calls(failures=2)

    first = await run(calls.step(), journal)
    second = await run(calls.step(fallback=lambda error: "instead"), journal)
    third = await run(calls.step(), journal)

    assert first["load"].status is StepStatus.FAILED
    assert (second["load"].output, third["load"].output) == ("instead", "k 3")


async def test_a_step_that_reuses_a_result_makes_those_after_it_run():
    journal, calls, got = MemoryJournal(), Calls(), []

    async def after(load):
        got.append(load)

    for _ in range(2):
        await run_pipeline(
            [calls.step(), WorkflowStep("after", after, ["load"])],
            journal=journal,
            name="p",
            inputs={"key": "k"},
        )

    assert got == ["k 1", "k 1"]


async def test_a_run_that_is_resumed_or_read_keeps_what_it_has_reused(tmp_path):
    calls, broken = Calls(), [True]

    async def after(load: str) -> str:
        if broken:
            raise ValueError
        return load

    steps = [calls.step(), WorkflowStep("after", after, ["load"])]
    options = {"name": "p", "inputs": {"key": "k"}}
    async with SQLiteJournal(tmp_path / "runs.db") as journal:
        await run_pipeline(steps, journal=journal, run_id="one", **options)
        await run_pipeline(steps, journal=journal, run_id="two", **options)
        await journal.forget("one")
        broken.clear()
        report = await run_pipeline(steps, journal=journal, run_id="two", **options)
        stored = await journal.report("two")

    assert calls.made == ["k"]
    for each in (report, stored):
        assert each.status is RunStatus.PASSED
        assert (each["load"].reused, each["load"].origin) == (True, "one")
        assert each["after"].output == "k 1"


async def test_a_rerun_says_from_which_run_the_result_comes():
    pipeline, calls = Pipeline("p"), Calls()
    pipeline.step(name="load", cache_ms=AN_HOUR)(calls.load)
    durable = pipeline.with_options(journal=MemoryJournal())
    await durable.with_options(run_id="one").run(key="k")
    await durable.with_options(run_id="two").run(key="k")

    report = await durable.rerun("two", "three")

    assert (report["load"].reused, report["load"].origin) == (True, "one")


async def test_a_step_that_a_rerun_starts_from_is_called_even_if_the_rerun_is_resumed():
    calls, failures = Calls(), []

    async def check():
        if failures:
            raise ConnectionError(failures.pop())

    steps = [*calls.items(keys=["k", "k"]), WorkflowStep("check", check)]
    etl = Orchestrator(steps, name="p", journal=MemoryJournal())
    await etl.with_options(run_id="one").run()
    failures.append("once")

    cut_short = await etl.rerun("one", "two", from_=["check", "load"])
    resumed = await etl.with_options(run_id="two").run()
    from_its_source = await etl.rerun("two", "three", from_="source")

    assert cut_short["load"].status is StepStatus.SKIPPED
    assert [item.output for item in resumed["load"].items] == ["k 2", "k 2"]
    assert [item.origin for item in from_its_source["load"].items] == ["two", "two"]
    assert calls.made == ["k", "k"]


async def test_a_pruned_run_takes_what_others_could_reuse_with_it(tmp_path):
    calls = Calls()

    async with SQLiteJournal(tmp_path / "runs.db") as journal:
        await run(calls.step(), journal, run_id="one")
        await journal.forget("one")
        report = await run(calls.step(), journal, run_id="two")

    assert calls.made == ["k", "k"]
    assert not report["load"].reused


async def test_an_output_that_no_longer_fits_its_annotation_is_made_anew(tmp_path):
    made = []

    async def load() -> int:
        made.append(1)
        return 1

    async def load_again() -> str:
        made.append(2)
        return "text"

    async with SQLiteJournal(tmp_path / "runs.db") as journal:
        for action in (load, load_again):
            step = WorkflowStep("load", action, cache_ms=AN_HOUR)
            report = await run_pipeline([step], journal=journal, name="p")

    assert (made, report["load"].output) == ([1, 2], "text")


# Equal calls at once.


@pytest.mark.parametrize("latency_s", [0.0, 0.02])
async def test_equal_items_at_once_are_asked_for_once(latency_s):
    journal, calls = MemoryJournal(latency_s=latency_s), Calls()

    report = await run(calls.items(keys=["a", "b", "a", "a", "b"]), journal, run_id="r")

    assert calls.made == ["a", "b"]
    assert report["load"].output == ["a 1", "b 2", "a 1", "a 1", "b 2"]
    assert [item.reused for item in report["load"].items] == [False, False, True, True, True]


@pytest.mark.exact_time
async def test_equal_calls_of_two_runs_at_once_are_made_once():
    journal, calls = MemoryJournal(latency_s=0.01), Calls()

    reports = await asyncio.gather(*(run(calls.step(), journal) for _ in range(3)))

    assert calls.made == ["k"]
    assert [report["load"].output for report in reports] == ["k 1"] * 3
    assert [report["load"].reused for report in reports].count(True) == 2


@pytest.mark.parametrize("policies", [{"retry": 50}, {"pool": Pool(1), "retry": 50}])
@pytest.mark.parametrize("max_concurrency", [None, 1])
async def test_who_waits_for_an_equal_call_holds_no_slot(policies, max_concurrency):
    # Trap 3: the leader backs off, and its follower holds the only slot.
    journal, calls = MemoryJournal(), Calls(failures=1)

    report = await asyncio.wait_for(
        run(
            calls.items(3, max_retries=2, **policies),
            journal,
            max_concurrency=max_concurrency,
        ),
        20,
    )

    assert report["load"].output == ["k 2"] * 3
    assert calls.made == ["k", "k"]


@pytest.mark.exact_time
async def test_other_items_run_while_equal_ones_wait():
    journal, calls = MemoryJournal(), Calls()

    report = await run(calls.items(keys=["a", "a", "b", "c"]), journal, max_concurrency=3)

    assert report["load"].output == ["a 1", "a 1", "b 2", "c 3"]
    assert calls.most_running == 3


async def test_if_the_call_fails_one_of_those_that_wait_takes_over():
    journal, calls = MemoryJournal(), Calls(failures=2)

    report = await run(calls.items(5), journal, fail_fast=False)

    statuses = [item.status for item in report["load"].items]
    assert statuses == [StepStatus.FAILED] * 2 + [StepStatus.SUCCESS] * 3
    assert len(calls.made) == 3


@pytest.mark.exact_time
async def test_if_the_run_of_the_call_is_cancelled_another_run_takes_over():
    journal, calls = MemoryJournal(), Calls()
    leader = asyncio.ensure_future(run(calls.step(), journal))
    await asyncio.sleep(0.005)
    follower = asyncio.ensure_future(run(calls.step(), journal))
    await asyncio.sleep(0.002)

    leader.cancel()
    report = await follower

    assert calls.made == ["k", "k"]
    assert report["load"].output == "k 2"
    with pytest.raises(asyncio.CancelledError):
        await leader


@pytest.mark.exact_time
async def test_a_run_that_waits_for_an_equal_call_can_be_cancelled():
    journal, calls = MemoryJournal(), Calls()
    leader = asyncio.ensure_future(run(calls.step(), journal))
    await asyncio.sleep(0.002)
    follower = asyncio.ensure_future(run(calls.step(), journal))
    await asyncio.sleep(0.002)

    follower.cancel()
    with pytest.raises(asyncio.CancelledError):
        await follower

    assert (await leader)["load"].output == "k 1"


@pytest.mark.exact_time
async def test_a_run_that_closes_while_it_waits_for_an_equal_call_holds_up_no_other():
    journal, calls = MemoryJournal(latency_s=0.02), Calls()
    leader = asyncio.ensure_future(run(calls.step(), journal))
    await asyncio.sleep(0.005)
    cancelled, other = (asyncio.ensure_future(run(calls.step(), journal)) for _ in range(2))
    while not calls.running:
        await asyncio.sleep(0.001)
    await asyncio.sleep(0.015)  # the call has ended, and is not stored yet

    cancelled.cancel()

    assert (await asyncio.wait_for(other, 60))["load"].output == "k 1"
    assert (await leader).all_passed


@pytest.mark.exact_time
async def test_what_waits_for_an_equal_call_is_skipped_when_the_run_stops():
    journal, calls = MemoryJournal(), Calls(takes_ms=1_000)

    async def fails():
        await asyncio.sleep(0.01)
        raise ValueError

    steps = [*calls.items(3), WorkflowStep("fails", fails, ["source"])]
    report = await run(steps, journal)

    assert report["load"].status is StepStatus.CANCELLED
    assert [item.status for item in report["load"].items] == [StepStatus.CANCELLED]
    assert calls.made == ["k"]


@pytest.mark.exact_time
async def test_a_run_never_reads_before_the_success_of_another_is_stored():
    # Trap 10: a cache follower reads before its leader's commit.
    journal, calls = MemoryJournal(latency_s=0.05), Calls()

    await asyncio.gather(run(calls.step(), journal), run(calls.step(), journal))

    first, second = journal.asked
    assert first == second
    assert calls.made == ["k"]


@pytest.mark.exact_time
async def test_if_the_journal_of_the_call_fails_another_run_takes_over():
    journal, calls = MemoryJournal(latency_s=0.02), Calls(takes_ms=100)
    leader = asyncio.ensure_future(run(calls.step(), journal, run_id="leader"))
    await asyncio.sleep(0.09)
    follower = asyncio.ensure_future(run(calls.step(), journal, run_id="follower"))
    await asyncio.sleep(0.04)

    journal.open_sessions["leader"].fail(JournalError("memory", "its lease is lost"))
    report = await follower

    assert report["load"].output == "k 2"
    with pytest.raises(JournalError):
        await leader


@pytest.mark.exact_time
async def test_a_condition_is_asked_once_although_the_step_waits_for_an_equal_call():
    journal, calls, asked = MemoryJournal(), Calls(), []
    step = calls.step(when=lambda: asked.append(1) or True)

    await asyncio.gather(run(step, journal), run(step, journal))

    assert (len(asked), calls.made) == (2, ["k"])


@pytest.mark.exact_time
async def test_a_run_that_waits_for_an_equal_call_does_not_end_its_segment(tmp_path):
    calls = Calls(takes_ms=200)
    waiting = Pipeline("p")
    waiting.signal("approved", bool)
    waiting.step(name="load", cache_ms=AN_HOUR)(calls.load)

    async with SQLiteJournal(tmp_path / "runs.db") as journal:
        leader = asyncio.ensure_future(run(calls.step(), journal))
        while not calls.made:
            await asyncio.sleep(0.01)
        report = await waiting.with_options(journal=journal, schedule="ready").run(key="k")
        await leader

    assert report.status is RunStatus.WAITING
    assert report["load"].reused
    assert calls.made == ["k"]


@pytest.mark.parametrize("policies", [{}, {"keep_outputs": False}])
async def test_items_that_need_slots_wait_for_equal_ones(policies):
    journal, calls, pool = MemoryJournal(), Calls(failures=1), Pool(2)
    keys = ["a", "b", "a", "a", "b", "c"]
    needs = {"pool": pool, "slots": lambda key: 2 if key == "b" else 1, "max_retries": 2}

    report = await run(calls.items(keys=keys, **needs, **policies), journal, max_concurrency=2)

    assert report.status is RunStatus.PASSED
    assert sorted(calls.made) == ["a", "a", "b", "c"]
    assert (pool.in_use, pool.waiting) == (0, 0)


async def test_what_an_item_needs_of_its_pool_is_computed_once():
    journal, calls, measured = MemoryJournal(), Calls(failures=1), []

    def slots(key):
        measured.append(key)
        if len(measured) > 4:
            raise ValueError("again")
        return 1

    items = calls.items(4, pool=Pool(5), slots=slots)
    report = await asyncio.wait_for(run(items, journal, fail_fast=False), 20)

    assert measured == ["k"] * 4
    assert [item.reused for item in report["load"].items] == [False, False, True, True]


@pytest.mark.exact_time
async def test_another_run_makes_the_call_while_the_next_in_line_is_queued_and_then_dropped():
    journal, calls, ended = MemoryJournal(), Calls(failures=1, takes_ms=50), asyncio.Event()

    async def fails():
        await asyncio.sleep(0.2)
        raise ValueError

    async def clean():
        await ended.wait()

    full = [
        calls.step(),
        WorkflowStep("fails", fails),
        WorkflowStep("clean", clean, ["fails"], run_if="always"),
    ]
    leader = asyncio.ensure_future(run(calls.step(), journal))
    await asyncio.sleep(0.01)
    options = {"inputs": {"key": "k"}, "max_concurrency": 1}
    queued = asyncio.ensure_future(run(full, journal, **options))
    await asyncio.sleep(0.01)
    report = await asyncio.wait_for(run(calls.step(), journal), 0.2)

    ended.set()
    await leader
    assert report["load"].output == "k 2"
    assert (await queued)["load"].status is StepStatus.SKIPPED
    assert calls.made == ["k", "k"]


@pytest.mark.exact_time
async def test_a_nested_run_makes_the_call_for_which_the_run_around_it_is_queued():
    journal, calls = MemoryJournal(), Calls(failures=1)

    async def nested():
        return (await run(calls.step(), journal))["load"].output

    leader = asyncio.ensure_future(run(calls.step(), journal))
    await asyncio.sleep(0.002)
    steps = [calls.step(), WorkflowStep("nested", nested, timeout_ms=None)]
    options = {"inputs": {"key": "k"}, "max_concurrency": 1}
    report = await asyncio.wait_for(run(steps, journal, **options), 5)

    await leader
    assert (report["load"].output, report["nested"].output) == ("k 2", "k 2")
    assert calls.made == ["k", "k"]


async def test_an_item_waits_once_for_equal_ones(monkeypatch):
    from asyncflow._core.running.scheduler import AdmissionQueue

    journal, calls, parked, park = MemoryJournal(), Calls(), [], AdmissionQueue.park
    monkeypatch.setattr(AdmissionQueue, "park", lambda *args: parked.append(park(*args)))

    report = await run(calls.items(50), journal)

    assert report["load"].output == ["k 1"] * 50
    assert len(parked) == 49


@pytest.mark.exact_time
@pytest.mark.parametrize(
    ("options", "policies", "most"),
    [
        ({"max_concurrency": 2}, {}, 101),
        ({}, {"pool": Pool(2)}, 101),
        ({}, {}, 300),
    ],
)
async def test_a_map_with_a_limit_takes_few_items_beyond_those_that_wait(
    monkeypatch, options, policies, most
):
    from asyncflow._core.running.state import RunState

    journal, calls, added, add = MemoryJournal(), Calls(takes_ms=100), [], RunState.add_item
    monkeypatch.setattr(RunState, "add_item", lambda *args: added.append(1) or add(*args))

    under_way = asyncio.ensure_future(run(calls.items(300, **policies), journal, **options))
    await asyncio.sleep(0.09)
    taken = len(added)
    report = await under_way

    assert most <= taken <= most + 2  # as many have started and are not parked yet
    assert (report["load"].output, calls.made) == (["k 1"] * 300, ["k"])


@pytest.mark.exact_time
async def test_a_larger_pool_lets_more_items_wait_for_an_equal_one(monkeypatch):
    from asyncflow._core.running.state import RunState

    calls, added, add, pool = Calls(takes_ms=100), [], RunState.add_item, Pool(2)
    monkeypatch.setattr(RunState, "add_item", lambda *args: added.append(1) or add(*args))

    under_way = asyncio.ensure_future(run(calls.items(300, pool=pool), MemoryJournal()))
    await asyncio.sleep(0.04)
    before = len(added)
    pool.size = 100
    await asyncio.sleep(0.04)
    after = len(added)
    await under_way

    assert 100 < before <= 103  # as in the test before
    assert 200 < after <= 203


async def test_nothing_is_left_of_a_call_that_has_ended():
    from asyncflow._policies import caching

    journal, calls = MemoryJournal(), Calls(failures=1)

    await run(calls.items(3), journal, fail_fast=False)

    assert caching._under_way[asyncio.get_running_loop()][journal] == {}


# What is refused.


async def test_a_step_with_cache_ms_needs_a_journal_and_a_pipeline_with_a_name():
    calls = Calls()

    with pytest.raises(
        ValueError, match=r"step 'load' has cache_ms, .* give the run a journal, or"
    ):
        await run(calls.step(), None)
    with pytest.raises(ValueError, match=r"step 'load' has cache_ms, .* give the pipeline one"):
        await run(calls.step(), MemoryJournal(), name="")

    assert not calls.made


async def test_no_digest_of_a_secret_is_stored():
    # Trap 17: a hash of secret arguments landed in the cache's key.
    calls, journal = Calls(), MemoryJournal()

    async def password():
        return "hush"

    secret = WorkflowStep("password", password, secret=True)
    taker = WorkflowStep("load", calls.load, {"key": "password"}, cache_ms=AN_HOUR)

    with pytest.raises(ValueError, match="its parameter 'key' is the secret input 'key'"):
        await run(calls.step(), journal, secret_inputs=["key"])
    with pytest.raises(ValueError, match="is the secret output of step 'password'"):
        await run([secret, taker], journal)
    with pytest.raises(ValueError, match=r"step 'load': cache_ms reuses stored outputs, and with"):
        calls.step(secret=True)

    assert not calls.made
    assert not journal.results


async def test_an_argument_that_cannot_be_stored_fails_the_step():
    journal, calls = MemoryJournal(), Calls()

    async def source():
        return [{1, 2}]

    steps = calls.items(1)
    steps[0] = WorkflowStep("source", source, keep_outputs=True)
    report = await run(steps, journal, fail_fast=False)

    assert report["load"].status is not StepStatus.SUCCESS
    assert not calls.made


@dataclass
class Page:
    text: str


async def test_an_argument_without_an_annotation_has_the_type_of_the_output_that_it_is(tmp_path):
    made = []

    async def fetch() -> Page:
        return Page("text")

    async def parse(fetch):
        made.append(fetch)
        return fetch.text

    steps = [
        WorkflowStep("fetch", fetch),
        WorkflowStep("parse", parse, ["fetch"], cache_ms=AN_HOUR),
    ]
    async with SQLiteJournal(tmp_path / "runs.db") as journal:
        for _ in range(2):
            report = await run(steps, journal)

    assert (made, report["parse"].output, report["parse"].reused) == ([Page("text")], "text", True)


async def test_resources_are_no_part_of_a_call():
    from contextlib import nullcontext

    journal, made = MemoryJournal(), []

    async def load(key, http):
        made.append(http)
        return key

    for client in (object(), object()):
        await run_pipeline(
            [WorkflowStep("load", load, cache_ms=AN_HOUR)],
            journal=journal,
            name="p",
            inputs={"key": "k"},
            resources={"http": lambda client=client: nullcontext(client)},
        )

    assert len(made) == 1


async def test_a_journal_that_cannot_find_results_lets_every_step_run():
    class Plain(MemoryJournal):
        cached = None

    calls, journal = Calls(), Plain()

    for _ in range(2):
        await run(calls.step(), journal)

    assert calls.made == ["k", "k"]


async def test_a_run_that_stops_just_before_an_item_waits_for_an_equal_one_ends():
    async def source():
        return [1, 1, 2, 2]

    steps = Calls(takes_ms=0).items()
    steps[0] = WorkflowStep("source", source, when=lambda: True)

    for fail_at in range(4, 9):
        journal = MemoryJournal(fail_at=fail_at)
        with pytest.raises(JournalError):
            await run_pipeline(steps, journal=journal, name="p", max_concurrency=1)


async def test_a_step_that_must_run_and_waits_for_its_pool_lends_its_place():
    pool, calls = Pool(1), Calls()

    async def takes_a_second():
        await asyncio.sleep(1)

    async def other():
        return "done"

    holder = asyncio.create_task(run_pipeline([WorkflowStep("held", takes_a_second, pool=pool)]))
    await asyncio.sleep(0.1)
    steps = [calls.step(pool=pool), WorkflowStep("other", other)]
    report = await run(steps, MemoryJournal(), inputs={"key": "k"}, max_concurrency=1)
    await holder

    assert report["other"].started_ms == 0


async def test_items_that_must_run_get_the_slot_that_was_kept_for_them():
    pool = Pool(1)

    async def first():
        return None

    steps = Calls(takes_ms=0).items(keys=[1, 2, 3], pool=pool, priority=1)
    steps.insert(0, WorkflowStep("first", first, pool=pool))
    report = await run(steps, MemoryJournal(), max_concurrency=1)

    assert report.all_passed


async def test_a_success_is_reused_although_an_observer_of_it_has_ended_its_run():
    calls = Calls()

    def leave(event):
        if isinstance(event, StepSucceeded):
            raise SystemExit

    async with SQLiteJournal(":memory:") as journal:
        with pytest.raises(SystemExit):
            await run(calls.step(), journal, observers=[leave])
        report = await run(calls.step(), journal)

    assert (len(calls.made), report["load"].reused) == (1, True)


@pytest.mark.parametrize("turns", range(1, 12))
async def test_a_run_that_is_cancelled_before_an_item_runs_lets_equal_ones_go(turns):
    journal = MemoryJournal()
    steps = Calls(takes_ms=0).step(depends_on=["key"], map_over="key")
    going = asyncio.create_task(run(steps, journal, inputs={"key": [1, 1, 2, 2]}, run_id="r"))
    for _ in range(turns):
        await asyncio.sleep(0)

    session = journal.open_sessions.get("r")
    if session is not None and session.is_watched:
        session.cancel()

    with contextlib.suppress(RunCancelledError):
        await going


async def test_items_that_lend_their_places_to_each_other_all_get_their_slots():
    pool = Pool(3)

    async def holds_a_place():
        await asyncio.sleep(1)

    steps = Calls(takes_ms=0).items(keys=[1, 2, 3, 4], pool=pool, slots=2)
    steps.append(WorkflowStep("holds_a_place", holds_a_place))
    report = await run(steps, MemoryJournal(), max_concurrency=2, schedule="ready")

    assert report.all_passed
