"""A pool whose service names a time: nothing starts in it before that, in any run."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from asyncflow import (
    Orchestrator,
    Pool,
    Retry,
    RunCancelledError,
    StepStatus,
    WorkflowStep,
    current_step,
    run_pipeline,
)
from asyncflow.events import PoolPaused
from asyncflow.testing import run_in_virtual_time


class Refused(Exception):
    def __init__(self, retry_after_ms):
        super().__init__(f"come back in {retry_after_ms} ms")
        self.retry_after_ms = retry_after_ms


NAMED = Retry(base_ms=0, on=lambda error: getattr(error, "retry_after_ms", True))


class Service:
    """Admits ten requests in each second of its clock, and refuses others until the next one."""

    def __init__(self, takes=0.1):
        self.takes = takes
        self.began = asyncio.get_running_loop().time()
        self.second, self.admitted, self.refusals = 0, 0, 0
        self.attempts = {}

    async def __call__(self, numbers):
        self.attempts[numbers] = current_step().attempt
        now = asyncio.get_running_loop().time() - self.began + 1e-9
        if int(now) > self.second:
            self.second, self.admitted = int(now), 0
        self.admitted += 1
        if self.admitted > 10:
            self.refusals += 1
            raise Refused(1_000)
        await asyncio.sleep(self.takes)
        return numbers


def storm(pool, service, items=200, attempts=6):
    return [
        WorkflowStep("numbers", lambda: asyncio.sleep(0, range(items))),
        WorkflowStep(
            "ask",
            service,
            ["numbers"],
            map_over="numbers",
            pool=pool,
            max_retries=attempts,
            retry=NAMED,
        ),
    ]


@pytest.mark.parametrize("size", [5, 20])
def test_a_storm_of_refusals_ends_with_every_item_served(size):
    async def main():
        service = Service()
        report = await run_pipeline(storm(Pool(size), service))
        return service, report

    service, report = run_in_virtual_time(main())

    assert report["ask"].output == list(range(200))
    assert service.refusals <= 200
    assert report.total_duration_ms <= 23_000
    assert max(service.attempts.values()) <= 6


def test_without_pauses_each_item_waits_by_itself():
    async def main():
        service = Service()
        report = await run_pipeline(storm(Pool(20, pauses=False), service), fail_fast=False)
        return service, report

    service, report = run_in_virtual_time(main())

    assert report["ask"].status is StepStatus.FAILED
    assert service.refusals > 500


@pytest.mark.exact_time
async def test_those_who_queued_before_a_pause_start_after_it():
    pool = Pool(1)

    async def ask():
        if current_step().run_id == "0" and current_step().attempt == 1:
            await asyncio.sleep(0.5)
            raise Refused(2_000)
        await asyncio.sleep(0.1)

    def run(number):
        step = WorkflowStep("ask", ask, pool=pool, max_retries=2, retry=NAMED)
        return run_pipeline([step], run_id=str(number))

    reports = await asyncio.gather(*map(run, range(3)))

    latest = [round(report["ask"].history[-1].started_ms) for report in reports]
    assert latest == [2_500, 2_600, 2_700]  # the one that was refused keeps its place
    assert round(reports[0]["ask"].queued_ms) == 0  # its own delay is no wait
    assert round(reports[1]["ask"].queued_ms) == 2_600


@pytest.mark.exact_time
async def test_a_backoff_that_no_service_has_named_pauses_nothing_and_loses_its_place():
    pool, order = Pool(1), []

    async def ask():
        order.append(current_step().step_name)
        await asyncio.sleep(0.1)
        if order == ["a"]:
            raise ValueError

    retry = Retry(base_ms=50, jitter=False, on=lambda error: True)
    report = await run_pipeline(
        [WorkflowStep(name, ask, pool=pool, max_retries=2, retry=retry) for name in "abc"]
    )

    assert order == ["a", "b", "c", "a"]
    assert report.total_duration_ms == pytest.approx(400)


@pytest.mark.exact_time
async def test_the_last_attempt_too_asks_when_the_service_wants_the_next_one():
    pool = Pool(1)

    async def ask():
        await asyncio.sleep(0.1)
        if current_step().step_name == "refused":
            raise Refused(3_000)

    report = await run_pipeline(
        [
            WorkflowStep("refused", ask, pool=pool, retry=NAMED),  # it has one attempt only
            WorkflowStep("next", ask, pool=pool),
        ],
        fail_fast=False,
    )

    assert report["refused"].attempts == 1
    assert round(report["next"].started_ms) == 3_100


@pytest.mark.exact_time
@pytest.mark.long_time
async def test_those_who_wait_for_a_pool_take_no_place_of_max_concurrency():
    pool = Pool(4)
    pool.pause(60_000)

    async def work():
        await asyncio.sleep(0.1)

    report = await run_pipeline(
        [
            *(WorkflowStep(f"waits{n}", work, pool=pool) for n in range(4)),
            *(WorkflowStep(f"free{n}", work) for n in range(5)),
        ],
        max_concurrency=4,
    )

    assert report.all_passed
    assert round(report["free4"].started_ms) == 100
    assert [round(report[f"waits{n}"].started_ms) for n in range(4)] == [60_000] * 4


@pytest.mark.exact_time
async def test_a_slot_that_a_full_run_cannot_use_goes_to_another_run():
    pool, running, most = Pool(2), 0, 0

    async def work():
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(10)
        running -= 1

    async def other():
        await asyncio.sleep(0.1)

    pool.pause(1_000)
    full = run_pipeline(
        [
            *(WorkflowStep(f"pooled{n}", work, pool=pool) for n in range(2)),
            *(WorkflowStep(f"free{n}", work) for n in range(2)),
        ],
        max_concurrency=2,
    )
    small = run_pipeline([WorkflowStep("other", other, pool=pool)])

    large_report, small_report = await asyncio.gather(full, small)

    assert most == 2
    assert round(small_report["other"].started_ms) == 1_000
    assert [round(large_report[f"pooled{n}"].started_ms) for n in range(2)] == [10_000] * 2
    assert (pool.in_use, pool.waiting) == (0, 0)


@pytest.mark.exact_time
@pytest.mark.long_time
async def test_pooled_steps_are_not_starved_by_others_under_max_concurrency():
    pool = Pool(1)

    async def work():
        await asyncio.sleep(1)

    pool.pause(1_500)
    report = await run_pipeline(
        [
            WorkflowStep("pooled", work, pool=pool),
            *(WorkflowStep(f"free{n}", work) for n in range(20)),
        ],
        max_concurrency=1,
    )

    assert report["pooled"].started_ms <= 3_000


@pytest.mark.exact_time
@pytest.mark.long_time
async def test_a_pause_longer_than_the_pools_maximum_holds_up_that_item_alone(caplog):
    pool = Pool(1, max_pause_ms=1_000)

    async def ask():
        if current_step().step_name == "refused" and current_step().attempt == 1:
            raise Refused(86_400_000)

    report = await run_pipeline(
        [
            WorkflowStep("refused", ask, pool=pool, max_retries=2, retry=NAMED),
            WorkflowStep("next", ask, pool=pool),
        ]
    )

    assert "named a time in 86400000 ms" in caplog.text
    assert round(report["next"].started_ms) == 1_000
    assert round(report["refused"].history[1].started_ms) == 86_400_000
    assert round(report["refused"].queued_ms) == 0


@pytest.mark.exact_time
async def test_a_named_delay_counts_against_the_deadline_and_the_wait_beyond_does_not():
    pool = Pool(1)

    async def ask():
        if current_step().attempt == 1:
            raise Refused(500)

    def step(name, deadline_ms):
        return WorkflowStep(
            name, ask, pool=pool, max_retries=2, retry=NAMED, deadline_ms=deadline_ms
        )

    run = asyncio.ensure_future(
        run_pipeline([step("late", 400), step("in time", 600)], fail_fast=False)
    )
    await asyncio.sleep(0.001)
    pool.pause(5_000)
    report = await run

    assert report["late"].status is StepStatus.FAILED
    assert "would exceed the step's deadline" in report["late"].error.__notes__[0]
    assert report["in time"].status is StepStatus.SUCCESS
    assert round(report["in time"].queued_ms) > 4_000


@pytest.mark.exact_time
async def test_a_slot_that_was_given_as_a_pause_began_is_returned():
    pool, starts = Pool(2), []

    async def ask():
        starts.append(round(asyncio.get_running_loop().time(), 3))
        await asyncio.sleep(0.1)  # both end in the same turn
        if current_step().step_name == "refused" and current_step().attempt == 1:
            raise Refused(1_000)

    began = asyncio.get_running_loop().time()
    await run_pipeline(
        [
            WorkflowStep("ends", ask, pool=pool),
            WorkflowStep("refused", ask, pool=pool, max_retries=2, retry=NAMED),
            WorkflowStep("next", ask, pool=pool),
        ]
    )

    assert [round(start - began, 3) for start in starts] == [0, 0, 1.1, 1.1]


def test_a_thread_of_a_virtual_run_pauses_by_the_clock_of_the_run():
    pool = Pool(1)

    def pause():
        pool.pause(2_000)

    async def ask():
        return pool.stats().paused_ms

    async def main():
        return await run_pipeline(
            [
                WorkflowStep("pause", pause, runs_in="thread"),
                WorkflowStep("ask", ask, ["pause"], pool=pool),
            ]
        )

    report = run_in_virtual_time(main())

    assert round(report["ask"].started_ms) == 2_000
    assert report["ask"].output == 0


@pytest.mark.realtime
def test_a_pause_that_is_made_where_no_loop_runs_holds_in_virtual_time_too():
    pool = Pool(1)

    async def ask(): ...

    async def started_ms():
        report = await run_pipeline([WorkflowStep("a", ask, pool=pool)])
        return round(report["a"].started_ms)

    async def twice():
        first = await started_ms()
        pauser = threading.Thread(target=pool.pause, args=(60_000,))
        pauser.start()
        pauser.join()
        return first, await started_ms(), await started_ms()

    pool.pause(30_000)

    assert run_in_virtual_time(twice()) == (30_000, 60_000, 0)
    assert run_in_virtual_time(started_ms()) == 60_000
    assert 59_000 < pool.stats().paused_ms <= 60_000


def test_a_pause_holds_in_every_loop_and_thread():
    pool, starts = Pool(4), []
    pool.pause(300)

    async def ask():
        starts.append(asyncio.get_running_loop().time())

    def work():
        steps = [WorkflowStep(f"s{n}", ask, pool=pool) for n in range(5)]
        asyncio.run(run_pipeline(steps))

    began = time.monotonic()
    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)

    assert len(starts) == 15
    assert min(starts) >= began + 0.25
    assert (pool.in_use, pool.waiting) == (0, 0)


@pytest.mark.exact_time
@pytest.mark.exact_time
async def test_a_retry_that_waits_in_line_has_been_queued_since_its_own_delay_was_over():
    pool = Pool(1)

    async def ask():
        if current_step().attempt == 1:
            pool.pause(3_000)
            raise Refused(1_000)

    step = WorkflowStep("a", ask, pool=pool, max_retries=2, retry=NAMED)
    report = await run_pipeline([step])

    assert [round(each.started_ms) for each in report["a"].history] == [0, 3_000]
    assert round(report["a"].queued_ms) == 2_000


async def test_steps_that_wait_for_a_pause_can_be_cancelled_in_any_turn():
    for turns in range(12):
        pool = Pool(2)
        pool.pause(1_000)

        async def ask():
            raise Refused(1_000)

        steps = [
            WorkflowStep(f"s{n}", ask, pool=pool, max_retries=3, retry=NAMED) for n in range(4)
        ]
        run = asyncio.ensure_future(run_pipeline(steps, max_concurrency=3))
        await asyncio.sleep(1 if turns % 2 else 0)
        for _ in range(turns):
            await asyncio.sleep(0)
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run

        assert (pool.in_use, pool.waiting) == (0, 0)


def refused_step(pool, **options):
    async def ask():
        raise Refused(60_000)

    return WorkflowStep("ask", ask, pool=pool, max_retries=2, retry=NAMED, **options)


@pytest.mark.exact_time
async def test_a_deadline_ends_the_wait_and_its_reason_names_the_pause():
    pool = Pool(1, name="api")

    report = await run_pipeline([refused_step(pool)], deadline_ms=1_000)
    late = await run_pipeline(
        [WorkflowStep("next", lambda: asyncio.sleep(0), pool=pool)], deadline_ms=500
    )

    assert "would exceed the run's deadline" in report["ask"].error.__notes__[0]
    assert late["next"].status is StepStatus.SKIPPED
    assert late.stop_reason == (
        "the run exceeded its deadline of 500 ms while pool 'api' was paused by step 'ask' for "
        "another 59,500 ms"
    )
    assert late["next"].reason == late.stop_reason


@pytest.mark.exact_time
@pytest.mark.parametrize("how", ["cancel", "drain"])
async def test_a_cancellation_and_a_drain_end_the_wait_and_their_reason_names_the_pause(how):
    pool = Pool(1)
    async with Orchestrator([refused_step(pool)]).start() as handle:
        await asyncio.sleep(1)
        getattr(handle, how)("shutdown")
        with pytest.raises(RunCancelledError) as cancelled:
            await handle.report()

    reason = cancelled.value.report.stop_reason
    assert reason.endswith("while its pool was paused by step 'ask' for another 59,000 ms")
    assert cancelled.value.report["ask"].status is StepStatus.CANCELLED
    assert (pool.in_use, pool.waiting) == (0, 0)


def pauses_in(events):
    return [event for event in events if isinstance(event, PoolPaused)]


@pytest.mark.exact_time
async def test_each_run_that_waits_reports_the_pause_and_why():
    pool, mine, others, late = Pool(1, name="api"), [], [], []

    async def ask():
        await asyncio.sleep(0.1)
        if current_step().run_id == "mine" and current_step().attempt == 1:
            raise Refused(2_000)

    async def free():
        pass

    async def run(run_id, events):
        steps = [
            WorkflowStep("ask", ask, pool=pool, max_retries=2, retry=NAMED),
            WorkflowStep("free", free),
            WorkflowStep("tell", free, ["ask"], pool=pool),
        ]
        await run_pipeline(steps, run_id=run_id, observers=[events.append])

    async def run_late():
        await asyncio.sleep(1.1)
        await run("late", late)

    await asyncio.gather(run("mine", mine), run("others", others), run_late())

    (first,), (second,), (third,) = map(pauses_in, (mine, others, late))
    assert (first.pool, first.by) == (second.pool, second.by) == (third.pool, third.by)
    assert (first.pool, first.by, first.steps) == ("api", "ask", ("ask", "tell"))
    assert [round(each.at_ms) for each in (first, second, third)] == [100, 100, 0]
    assert [round(each.until_ms) for each in (first, second, third)] == [2_100, 2_100, 1_000]


@pytest.mark.exact_time
async def test_a_third_party_that_cancels_a_waiting_step_lends_no_place_twice():
    pool, running, most = Pool(2), 0, 0
    pool.pause(1_000)

    async def work():
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(2)
        running -= 1

    steps = [WorkflowStep("pooled", work, pool=pool), WorkflowStep("free", work)]
    run = asyncio.ensure_future(run_pipeline(steps, max_concurrency=1))
    await asyncio.sleep(1.5)  # the slot was declined, since the run is full
    tasks = asyncio.all_tasks()
    (task,) = [task for task in tasks if task.get_coro().__qualname__ == "Nodes._make_attempts"]
    task.cancel()
    report = await run

    assert report.all_passed
    assert most == 1


async def test_a_run_inside_a_step_that_waits_for_the_same_pool_is_warned_of(caplog):
    pool = Pool(1, name="api")

    async def inner():
        pass

    async def outer():
        await run_pipeline([WorkflowStep("inner", inner, pool=pool)])

    report = await run_pipeline([WorkflowStep("outer", outer, pool=pool, timeout_ms=50)])

    assert report["outer"].status is StepStatus.FAILED
    assert "step 'inner' waits for pool 'api', of which a step around its run" in caplog.text
    assert (pool.in_use, pool.waiting) == (0, 0)
