"""Numbers of a pool that are set while runs use it."""

from __future__ import annotations

import asyncio
import sys
import threading

import pytest

from asyncflow import Orchestrator, Pool, WorkflowStep, run_pipeline
from asyncflow.events import PoolPaused
from asyncflow.testing import run_in_virtual_time


async def five_items():
    return range(5)


async def takes_a_second(n):
    await asyncio.sleep(1)


ITEMS = WorkflowStep("items", five_items)


def starts_of(report, step="each"):
    return [round(item.started_ms, 3) for item in report[step].items]


def mapped(pool, action=takes_a_second, **options):
    options = {"timeout_ms": None, **options}
    return WorkflowStep("each", action, {"n": "items"}, map_over="items", pool=pool, **options)


def after(delay_s, pool, **numbers):
    """Set numbers of a pool later, in the event loop."""

    def change():
        for name, number in numbers.items():
            setattr(pool, name, number)

    asyncio.get_running_loop().call_later(delay_s, change)


@pytest.mark.parametrize("limit", [None, 5])
def test_a_larger_size_lets_in_at_once_the_items_that_their_run_holds_back(limit):
    pool = Pool(1)

    async def main():
        after(0.5, pool, size=4)
        return await run_pipeline([ITEMS, mapped(pool)], max_concurrency=limit)

    report = run_in_virtual_time(main())

    assert starts_of(report) == [0, 500, 500, 500, 1_000]


def test_a_larger_size_lets_the_source_of_a_chain_run_further_ahead():
    pool, loaded, running = Pool(1), [], []

    async def numbers():
        return range(2_000)

    async def load(n):
        await asyncio.sleep(0.0002)
        loaded.append(n)

    async def store(load):
        running.append(load)
        await asyncio.sleep(1)

    steps = [
        WorkflowStep("numbers", numbers),
        WorkflowStep("load", load, {"n": "numbers"}, map_over="numbers", pool=Pool(1)),
        WorkflowStep("store", store, ["load"], map_over="load", pool=pool),
    ]

    async def main():
        run = asyncio.create_task(run_pipeline(steps, schedule="ready"))
        await asyncio.sleep(0.5)
        small = len(running), len(loaded) - len(running)
        pool.size = 200
        await asyncio.sleep(0.4)
        run.cancel()
        return small, (len(running), len(loaded) - len(running))

    seen = run_in_virtual_time(main())

    for (inside, waiting), size, most in zip(seen, (1, 200), (100, 400), strict=True):
        assert inside == size
        # As many as there are slots may stand in the pool's line; the task has one more at hand.
        assert most < waiting <= most + size + 2


def test_a_smaller_size_takes_nothing_back_and_holds_for_the_next():
    pool = Pool(3)

    async def main():
        after(0.5, pool, size=1)
        return await run_pipeline([ITEMS, mapped(pool)])

    assert starts_of(run_in_virtual_time(main())) == [0, 0, 0, 1_000, 2_000]


def test_a_smaller_size_holds_for_a_step_to_which_another_hands_its_slot():
    pool = Pool(3)

    async def long():
        await asyncio.sleep(1)

    async def sets():
        pool.size = 1

    actions = {"first": long, "sets": sets, "next": long}
    steps = [WorkflowStep(name, action, pool=pool) for name, action in actions.items()]
    report = run_in_virtual_time(run_pipeline(steps))

    # Before 3.12 an attempt has a task of its own: when that sets the size, all steps have started.
    assert report["next"].started_ms == (1_000 if sys.version_info >= (3, 12) else 0)


@pytest.mark.parametrize("is_counted", [False, True])
def test_items_that_need_more_slots_than_are_left_start_alone_and_none_fails_or_hangs(is_counted):
    pool = Pool(4)

    async def main():
        after(0.5, pool, size=2)
        slots = (lambda n: 4 if n % 2 else 1) if is_counted else 4
        made_later = []

        async def late():
            await asyncio.sleep(1.5)
            made_later.append(WorkflowStep("late", late, pool=pool, slots=4))
            with pytest.raises(ValueError, match="at most 4, the largest size so far of its pool"):
                WorkflowStep("never", late, pool=pool, slots=5)

        steps = [ITEMS, mapped(pool, slots=slots), WorkflowStep("late", late)]
        report = await run_pipeline(steps, schedule="ready")
        return report, made_later

    report, made_later = run_in_virtual_time(main())

    assert report.all_passed
    assert made_later[0].slots == 4
    assert starts_of(report) == [0, 1_000, 2_000, 3_000, 4_000]
    assert (pool.in_use, pool.waiting) == (0, 0)


def test_an_item_that_needs_more_than_the_pool_ever_had_fails_without_an_attempt():
    pool = Pool(2)
    pool.size = 4
    pool.size = 1

    async def main():
        steps = [ITEMS, mapped(pool, slots=lambda n: 5 if n == 1 else 4)]
        return await run_pipeline(steps, fail_fast=False)

    failed = [item for item in run_in_virtual_time(main())["each"].items if item.error]

    assert [(item.item, item.attempts) for item in failed] == [(1, 0)]
    assert "must be at most 4, the largest size so far of its pool" in str(failed[0].error)


def test_tokens_beyond_what_a_minute_gives_now_are_those_of_a_minute():
    pool = Pool(9, tokens_per_minute=1_000)

    async def main():
        after(0.5, pool, tokens_per_minute=10)
        steps = [ITEMS, mapped(pool, tokens=lambda n: 500)]
        return await run_pipeline(steps)

    # 30 s after the first one, as long as there were 1,000; then a minute after each.
    assert starts_of(run_in_virtual_time(main())) == [0, 60_000, 120_000, 180_000, 240_000]


def test_without_a_rate_those_who_wait_for_it_start_at_once():
    pool = Pool(9, per_minute=1)

    async def main():
        after(90, pool, per_minute=None)
        return await run_pipeline([ITEMS, mapped(pool)])

    assert starts_of(run_in_virtual_time(main())) == [0, 60_000, 90_000, 90_000, 90_000]


def test_any_thread_may_set_a_number_for_the_runs_of_all_loops():
    pool, inside, all_inside = Pool(1), threading.Semaphore(0), threading.Event()

    async def wait():
        inside.release()
        while not all_inside.is_set():
            await asyncio.sleep(0.001)

    reports = []

    def run():
        steps = [WorkflowStep(f"s{n}", wait, pool=pool) for n in range(3)]
        reports.append(asyncio.run(run_pipeline(steps)))

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    assert inside.acquire(timeout=20)
    assert not inside.acquire(timeout=0.05)

    pool.size = 6

    for _ in range(5):
        assert inside.acquire(timeout=20)
    all_inside.set()
    for thread in threads:
        thread.join(20)
    assert all(report.all_passed for report in reports)
    assert len(reports) == 2


def test_a_run_that_waits_for_no_paused_pool_reports_no_pause():
    pool, events = Pool(2), []

    async def main():
        asyncio.get_running_loop().call_later(0.5, pool.pause, 100)
        run = Orchestrator([WorkflowStep("one", lambda: asyncio.sleep(1), pool=pool)])
        await run.with_options(observers=[events.append]).run()

    run_in_virtual_time(main())

    assert not any(isinstance(event, PoolPaused) for event in events)
