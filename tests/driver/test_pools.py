"""Pools: how many attempts run at once, in which order, and that each slot is released."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
import threading

import pytest
from third_party import step_tasks

from asyncflow import (
    Pool,
    Retry,
    StepStatus,
    StepTimeoutError,
    WorkflowStep,
    current_step,
    run_pipeline,
)
from asyncflow.events import AttemptStarted, RunFinished
from asyncflow.testing import VirtualTimeLoop


class Gauge:
    """Counts how many of its calls run at the same time and records their order."""

    def __init__(self, takes=0.001):
        self.takes = takes
        self.running = self.highest = 0
        self.order = []

    async def __call__(self):
        self.order.append(current_step().step_name)
        self.running += 1
        self.highest = max(self.highest, self.running)
        try:
            await asyncio.sleep(self.takes)
        finally:
            self.running -= 1


def is_empty(*pools):
    return all((pool.in_use, pool.waiting) == (0, 0) for pool in pools)


def timers():
    loop = asyncio.get_running_loop()
    if not isinstance(loop, VirtualTimeLoop):
        return []
    return [timer for timer in loop._scheduled if not timer.cancelled()]


async def test_steps_of_concurrent_runs_share_a_pool_in_order_of_arrival():
    pool, gauge = Pool(2), Gauge()
    runs = [
        run_pipeline([WorkflowStep(f"{run}.{n}", gauge, pool=pool) for n in range(2)])
        for run in range(5)
    ]

    reports = await asyncio.gather(*runs)

    assert all(report.all_passed for report in reports)
    assert gauge.highest == 2
    assert gauge.order == [f"{run}.{n}" for run in range(5) for n in range(2)]
    assert is_empty(pool)


@pytest.mark.exact_time
async def test_waiting_for_a_pool_is_recorded_and_not_part_of_a_steps_duration():
    pool = Pool(1)

    report = await run_pipeline(
        [
            WorkflowStep(name, Gauge(0.1), pool=pool, timeout_ms=190, deadline_ms=195)
            for name in "abc"
        ]
    )

    assert report.all_passed
    assert [round(result.queued_ms, 6) for result in report.results] == [0, 100, 200]
    assert [round(result.duration_ms, 6) for result in report.results] == [100, 100, 100]


@pytest.mark.exact_time
async def test_waiting_for_a_pool_before_a_retry_does_not_count_against_the_deadline():
    pool = Pool(1)

    async def fail_first():
        await asyncio.sleep(0.005)
        if current_step().attempt < 3:
            raise ValueError

    report = await run_pipeline(
        [
            WorkflowStep("a", fail_first, pool=pool, max_retries=3, deadline_ms=30),
            WorkflowStep("b", Gauge(0.05), pool=pool),
        ]
    )

    assert report.all_passed
    assert report["a"].history[1].queued_ms > 40


async def test_a_slot_is_free_during_a_backoff():
    pool, log = Pool(1), []

    async def fail_first():
        log.append(f"attempt {current_step().attempt}")
        if current_step().attempt == 1:
            raise ValueError

    async def other():
        log.append("other")

    report = await run_pipeline(
        [
            WorkflowStep("a", fail_first, pool=pool, max_retries=2, retry=100),
            WorkflowStep("other", other, pool=pool),
        ]
    )

    assert log == ["attempt 1", "other", "attempt 2"]
    assert report["other"].started_ms < 90


@pytest.mark.exact_time
async def test_a_rate_spreads_the_starts_evenly():
    pool = Pool(10, per_second=100)

    report = await run_pipeline([WorkflowStep(f"s{n}", Gauge(), pool=pool) for n in range(5)])

    starts = [round(result.started_ms, 6) for result in report.results]
    assert starts == [0, 10, 20, 30, 40]
    assert is_empty(pool)


@pytest.mark.realtime
def test_real_loops_share_a_rate():
    pool = Pool(2, per_second=0.001)
    step = WorkflowStep("a", Gauge(), pool=pool)

    first, second = (asyncio.run(run_pipeline([step], deadline_ms=500)) for _ in range(2))

    assert first["a"].status is StepStatus.SUCCESS
    assert second["a"].status is StepStatus.SKIPPED  # its slot is 1,000 s away


@pytest.mark.exact_time
async def test_a_run_with_many_waiting_steps_does_not_starve_another():
    pool, order = Pool(2), []

    def steps(run, count):
        async def work():
            order.append(run)
            await asyncio.sleep(0.01)

        return [WorkflowStep(f"{run}{n}", work, pool=pool) for n in range(count)]

    large = asyncio.ensure_future(run_pipeline(steps("large", 100)))
    await asyncio.sleep(0.005)
    small = await run_pipeline(steps("small", 3))
    await large

    assert order[:8].count("small") == 3
    assert small.total_duration_ms < 60
    assert is_empty(pool)


async def test_a_step_that_waits_for_a_pool_when_the_run_stops_is_skipped_and_leaves_the_queue():
    pool = Pool(1)
    holder = asyncio.ensure_future(run_pipeline([WorkflowStep("holder", Gauge(0.03), pool=pool)]))
    await asyncio.sleep(0.005)

    async def fail():
        await asyncio.sleep(0.005)
        raise ValueError

    report = await run_pipeline(
        [WorkflowStep("waits", Gauge(), pool=pool), WorkflowStep("fails", fail)]
    )

    assert report["waits"].status is StepStatus.SKIPPED
    assert (pool.in_use, pool.waiting) == (1, 0)
    await holder
    assert is_empty(pool)


async def test_a_run_deadline_that_passes_while_a_step_waits_for_a_pool_skips_it():
    pool = Pool(1)
    ticket = pool._take()

    report = await run_pipeline([WorkflowStep("a", Gauge(), pool=pool)], deadline_ms=10)

    assert report["a"].status is StepStatus.SKIPPED
    assert report.stop_reason == "the run exceeded its deadline of 10 ms"
    ticket.release()
    assert is_empty(pool)


async def test_a_third_party_that_cancels_a_task_queued_for_a_pool_only_requeues_it():
    pool = Pool(1)
    ticket = pool._take()
    gauge = Gauge()
    run = asyncio.ensure_future(run_pipeline([WorkflowStep("a", gauge, pool=pool)]))
    await asyncio.sleep(0.005)

    (task,) = step_tasks()
    task.cancel()
    await asyncio.sleep(0.005)
    waiting = pool.waiting
    ticket.release()
    report = await run

    assert waiting == 1
    assert report.all_passed
    assert gauge.order == ["a"]
    assert is_empty(pool)


@pytest.mark.virtual_time
async def test_a_third_party_that_cancels_a_wait_for_a_place_takes_none_from_the_run():
    pool = Pool(1)

    async def frees_a_place():
        await asyncio.sleep(2)
        tasks = asyncio.all_tasks()  # before 3.12, this one has no name
        (waits,) = [each for each in tasks if "_make_attempts" in repr(each.get_coro())]
        waits.cancel()

    held = asyncio.ensure_future(run_pipeline([WorkflowStep("a", Gauge(1), pool=pool)]))
    await asyncio.sleep(0)
    first = [
        WorkflowStep("b", Gauge(3), pool=pool),  # has its slot when both places are taken
        WorkflowStep("c", frees_a_place),
        WorkflowStep("d", Gauge(3)),
    ]
    gauge, names = Gauge(1), [step.name for step in first]
    then = [WorkflowStep(f"e{n}", gauge, depends_on=names, when=lambda: True) for n in range(4)]
    report = await run_pipeline(first + then, max_concurrency=2)
    await held

    assert report.all_passed
    assert gauge.highest == 2


@pytest.mark.parametrize("turns", range(12))
async def test_a_caller_cancelled_in_any_turn_releases_every_slot(turns):
    pool = Pool(2, per_second=1_000)
    run = asyncio.ensure_future(
        run_pipeline(
            [WorkflowStep(f"s{n}", Gauge(), pool=pool) for n in range(6)], max_concurrency=4
        )
    )
    for _ in range(turns):
        await asyncio.sleep(0)

    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run

    assert is_empty(pool)
    assert timers() == []


async def test_a_step_that_exceeds_its_timeout_holds_its_slot_until_it_has_cleaned_up():
    pool, log = Pool(1), []

    async def slow_to_end():
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.005)
            log.append("cleaned")

    async def other():
        log.append("other")

    report = await run_pipeline(
        [
            WorkflowStep("slow", slow_to_end, pool=pool, timeout_ms=10),
            WorkflowStep("other", other, pool=pool),
        ],
        fail_fast=False,
    )

    assert log == ["cleaned", "other"]
    assert isinstance(report["slow"].error, StepTimeoutError)


def storm_steps(chance, pools, gauges):
    """Return a hundred steps of every kind, each with one of the pools or none."""
    steps = []
    for n in range(100):
        at = chance.randrange(len(pools) + 1)
        pool = pools[at] if at < len(pools) else None
        gauge = gauges[at]
        kind = chance.random()

        async def action(gauge=gauge, kind=kind):
            await gauge()
            if kind < 0.2 and current_step().attempt == 1:
                raise ValueError
            if kind > 0.95:
                await asyncio.Event().wait()

        needs = [f"s{chance.randrange(n)}"] if n and chance.random() < 0.3 else []
        attempts, backoff = chance.randint(1, 3), chance.choice([0, 1, 5])
        steps.append(
            WorkflowStep(
                f"s{n}",
                action,
                needs,
                pool=pool,
                max_retries=attempts,
                retry=backoff if attempts > 1 else 0,
                timeout_ms=chance.choice([2, 10, 50]),
            )
        )
    return steps


async def test_a_storm_of_cancelled_runs_never_exceeds_a_pool_and_leaks_nothing():
    loop = asyncio.get_running_loop()
    if not isinstance(loop, VirtualTimeLoop):
        pytest.skip("in real time a storm takes too long")
    chance = random.Random(7)
    pools = [Pool(1), Pool(3), Pool(20, per_second=5_000)]
    gauges = [Gauge(takes) for takes in (0.0005, 0.001, 0.002, 0.001)]
    recorded = []

    async def one_run():
        events = []
        recorded.append(events)
        await asyncio.sleep(chance.random() * 0.02)
        await run_pipeline(
            storm_steps(chance, pools, gauges),
            chance.random() < 0.3,
            schedule=chance.choice(["tiers", "ready"]),
            max_concurrency=chance.choice([None, 3, 40]),
            deadline_ms=chance.choice([None, None, 60]),
            observers=[events.append],
        )

    runs = [asyncio.create_task(one_run()) for _ in range(25)]
    for run in runs:
        if chance.random() < 0.6:
            loop.call_later(chance.random() * 0.1, run.cancel)
    outcomes = await asyncio.gather(*runs, return_exceptions=True)

    assert all(isinstance(each, asyncio.CancelledError | None) for each in outcomes)
    assert sum(each is None for each in outcomes) > 5
    assert sum(each is not None for each in outcomes) > 5
    for pool, gauge in zip(pools, gauges, strict=False):
        assert 0 < gauge.highest <= pool.size
    assert gauges[0].highest == 1
    assert all(gauge.running == 0 for gauge in gauges)
    assert all(not events or isinstance(events[-1], RunFinished) for events in recorded)
    assert is_empty(*pools)
    assert timers() == []


async def test_a_waiting_step_does_not_starve_while_others_retry():
    pool = Pool(1)

    async def fail():
        await asyncio.sleep(0.001)
        raise ValueError

    events = []
    await run_pipeline(
        [
            *(WorkflowStep(f"busy{n}", fail, pool=pool, max_retries=20) for n in range(3)),
            WorkflowStep("patient", Gauge(), pool=pool),
        ],
        fail_fast=False,
        observers=[events.append],
    )

    started = [event.step for event in events if isinstance(event, AttemptStarted)]
    assert started[:4] == ["busy0", "busy1", "busy2", "patient"]
    assert len(started) == 61


@pytest.mark.parametrize("limit", [None, 1, 3])
async def test_the_attempts_of_each_pool_start_in_the_order_in_which_they_were_queued(limit):
    pools = {"a": Pool(1), "b": Pool(2)}
    events = []

    await run_pipeline(
        [WorkflowStep(f"{'ab'[n % 2]}{n}", Gauge(), pool=pools["ab"[n % 2]]) for n in range(20)],
        max_concurrency=limit,
        observers=[events.append],
    )

    started = [event.step for event in events if isinstance(event, AttemptStarted)]
    for kind in "ab":
        of_kind = [name for name in started if name.startswith(kind)]
        assert of_kind == sorted(of_kind, key=lambda name: int(name[1:]))


def test_a_pool_limits_event_loops_of_several_threads_and_is_empty_afterwards():
    pool = Pool(3)
    lock = threading.Lock()
    running = highest = 0
    failures = []

    async def action():
        nonlocal running, highest
        with lock:
            running += 1
            highest = max(highest, running)
        try:
            await asyncio.sleep(0.0005)
        finally:
            with lock:
                running -= 1

    async def many_runs(seed):
        chance = random.Random(seed)
        steps = [WorkflowStep(f"s{n}", action, pool=pool) for n in range(20)]
        tasks = [asyncio.create_task(run_pipeline(steps)) for _ in range(6)]
        for task in tasks[:3]:
            asyncio.get_running_loop().call_later(chance.random() * 0.02, task.cancel)
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        failures.extend(
            outcome
            for outcome in outcomes
            if not (isinstance(outcome, asyncio.CancelledError) or outcome.all_passed)
        )

    threads = [threading.Thread(target=asyncio.run, args=(many_runs(n),)) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    assert failures == []
    assert highest == 3
    assert running == 0
    assert is_empty(pool)


def test_who_waits_in_a_loop_that_was_stopped_is_passed_over_until_it_runs_again():
    pool, may_end = Pool(1), asyncio.Event()

    async def start(name, action):
        task = asyncio.ensure_future(run_pipeline([WorkflowStep(name, action, pool=pool)]))
        for _ in range(10):
            await asyncio.sleep(0)
        return task

    async def nothing():
        pass

    async def end(holds):
        other = await start("other", nothing)
        may_end.set()
        return await holds, await asyncio.wait_for(other, 20)

    with asyncio.Runner() as here, asyncio.Runner() as stopped:
        holds = here.run(start("holds", may_end.wait))
        waits = stopped.run(start("waits", nothing))
        assert (pool.in_use, pool.waiting) == (1, 1)

        reports = here.run(end(holds))

        async def go_on():
            return await waits

        reports += (stopped.run(go_on()),)
    assert all(report.all_passed for report in reports)
    assert is_empty(pool)


FORKING = """
import asyncio, gc, os
from asyncflow import Pool, WorkflowStep, run_pipeline

pool = Pool(2, name="api")

async def work():
    await asyncio.sleep(0.2)

def step(name, action=work):
    return WorkflowStep(name, action, pool=pool)

async def fork():
    while pool.waiting < 2:
        await asyncio.sleep(0)
    child = os.fork()
    if child:
        assert os.waitpid(child, 0)[1] == 0
        return
    assert (pool.in_use, pool.waiting) == (0, 0), pool
    report = asyncio.run(run_pipeline([step("c"), step("d"), step("e")], deadline_ms=20_000))
    assert report.all_passed, report
    for task in asyncio.all_tasks(parent):
        task.cancel()  # what the other process holds or waits for is not given back here
    gc.collect()
    assert (pool.in_use, pool.waiting) == (0, 0), pool
    os._exit(0)

async def main():
    global parent
    parent = asyncio.get_running_loop()
    run = run_pipeline([step("a"), step("b"), WorkflowStep("fork", fork)])
    reports = await asyncio.gather(run, run_pipeline([step("c"), step("d")]))
    assert all(report.all_passed for report in reports), reports
    print(pool)

asyncio.run(main())
"""


@pytest.mark.process
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_child_that_is_forked_begins_with_all_slots_free():
    ended = subprocess.run(
        [sys.executable, "-c", FORKING],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
        timeout=60,
    )

    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout == "<Pool(2, name='api'): 0 in use, 0 waiting>\n"


async def test_a_step_that_is_stopped_as_it_gets_its_slot_keeps_no_place_of_the_run():
    pool, tried = Pool(1), 0

    async def tries():
        nonlocal tried
        tried += 1
        return tried

    async def fails():
        await asyncio.sleep(0.003)
        raise ValueError

    steps = [
        WorkflowStep(
            "tries", tries, pool=pool, max_retries=3, retry=Retry(base_ms=0, until=lambda n: n > 2)
        ),
        WorkflowStep("fails", fails, pool=pool),
        WorkflowStep("cleans_up", Gauge(), run_if="always"),
    ]
    report = await run_pipeline(steps, max_concurrency=1)

    assert report["cleans_up"].status is StepStatus.SUCCESS
