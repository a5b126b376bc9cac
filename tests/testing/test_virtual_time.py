"""The event loop of `asyncflow.testing` has a virtual clock."""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from asyncflow import WorkflowStep, run_pipeline
from asyncflow._core.errors import HangError
from asyncflow._policies.workers import run_in_process, run_in_thread
from asyncflow.testing import run_in_virtual_time


def now_s():
    return asyncio.get_running_loop().time() - 1_000  # where virtual time starts


def test_sleeps_and_timeouts_end_at_exact_virtual_times_and_take_no_real_time():
    ended = []

    async def sleep(seconds):
        await asyncio.sleep(seconds)
        ended.append((seconds, now_s()))

    async def main():
        async with asyncio.TaskGroup() as group:
            for seconds in (86_400 * 3, 1, 0.25):
                group.create_task(sleep(seconds))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(10):
                await asyncio.Event().wait()
        return now_s()

    started = time.monotonic()
    finished = run_in_virtual_time(main())

    assert ended == [(0.25, 0.25), (1, 1), (86_400 * 3, 86_400 * 3)]
    assert finished == 86_400 * 3 + 10
    assert time.monotonic() - started < 60


def test_a_pipeline_that_backs_off_for_hours_runs_instantly():
    calls = []

    async def flaky():
        calls.append(now_s())
        if len(calls) < 3:
            raise ConnectionError

    report = run_in_virtual_time(
        run_pipeline([WorkflowStep("flaky", flaky, max_retries=3, retry=3_600_000)])
    )

    assert calls == [0, 3_600, 7_200]
    assert report.total_duration_ms == 7_200_000


def test_a_hang_is_reported_with_the_line_where_the_task_waits():
    async def waits_forever():
        await asyncio.Event().wait()

    with pytest.raises(HangError) as raised:
        run_in_virtual_time(
            run_pipeline([WorkflowStep("stuck", waits_forever, timeout_ms=None)], run_id="r")
        )

    assert any(
        line.startswith("asyncflow:r:stuck#1 at ") and "waits_forever" in line
        for line in raised.value.waiting
    )
    assert "nothing can ever happen again" in str(raised.value)


def test_the_clock_stands_still_while_a_thread_works():
    released = threading.Event()

    async def main():
        loop = asyncio.get_running_loop()
        job = asyncio.ensure_future(asyncio.to_thread(released.wait))
        ticking = asyncio.ensure_future(asyncio.sleep(0))
        await ticking
        loop.call_soon(released.set)
        async with asyncio.timeout(1):
            finished = await job
        return finished, now_s()

    assert run_in_virtual_time(main()) == (True, 0)


@pytest.mark.parametrize("is_own", [False, True])
def test_the_clock_stands_still_while_a_thread_continues_after_a_cancellation(is_own):
    released, began = threading.Event(), threading.Event()

    def work():
        began.set()
        released.wait()

    async def main():
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(1) as own:
            if is_own:
                loop.set_default_executor(own)
            job = loop.run_in_executor(own, work)
            never_begins = loop.run_in_executor(own, work)
            began.wait()
            job.cancel()
            never_begins.cancel()
            threading.Timer(0.05, released.set).start()
            await asyncio.sleep(3_600)
            return released.is_set(), await asyncio.to_thread(lambda: "more"), now_s()

    assert run_in_virtual_time(main()) == (True, "more", 3_600)


def test_a_thread_may_continue_after_its_loop_is_closed():
    released, ended = threading.Event(), []

    async def main():
        job = asyncio.get_running_loop().run_in_executor(own, released.wait)
        job.add_done_callback(ended.append)
        await asyncio.sleep(0)
        job.cancel()

    with ThreadPoolExecutor(1) as own:
        run_in_virtual_time(main())
        released.set()

    assert len(ended) == 1


def test_the_clock_stands_still_inside_standing_still():
    async def main():
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        thread = threading.Timer(0.05, loop.call_soon_threadsafe, (future.set_result, "answer"))
        async with asyncio.timeout(1):
            with loop.standing_still(), loop.standing_still():
                loop.call_soon(thread.start)
                answer = await future
        thread.join()
        stood = now_s()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await loop.create_future()
        return answer, stood, now_s()

    assert run_in_virtual_time(main()) == ("answer", 0, 1)


def test_a_function_in_a_thread_takes_no_virtual_time():
    slow = threading.Event().wait

    async def main():
        async with asyncio.timeout(0.001):
            await run_in_thread(slow, {"timeout": 0.05}, ends=0.001, on_abandon=print)
        return now_s()

    assert run_in_virtual_time(main()) == 0


@pytest.mark.process
def test_a_function_in_a_process_takes_no_virtual_time():
    async def main():
        async with asyncio.timeout(0.001):
            number = await run_in_process(os.getpid, None)
        return number != os.getpid(), now_s()

    assert run_in_virtual_time(main()) == (True, 0)


def test_another_thread_may_wake_an_idle_loop():
    async def main():
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        # A timer thread: the loop already waits, in real time, when it calls.
        thread = threading.Timer(0.05, loop.call_soon_threadsafe, (future.set_result, "woken"))
        loop.call_soon(thread.start)
        try:
            return await future
        finally:
            thread.join()

    assert run_in_virtual_time(main()) == "woken"


def test_a_thread_that_never_wakes_the_loop_does_not_hide_a_hang(monkeypatch):
    monkeypatch.setattr("asyncflow.testing._virtual_time._WAKE_TIMEOUT_S", 0.01)
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()

    async def main():
        await asyncio.Event().wait()

    try:
        with pytest.raises(HangError):
            run_in_virtual_time(main())
    finally:
        stop.set()
        thread.join()


def test_a_ready_file_descriptor_is_handled_before_any_timer():
    async def main():
        loop = asyncio.get_running_loop()
        reading, writing = os.pipe()
        ready = asyncio.Event()
        loop.add_reader(reading, ready.set)
        os.write(writing, b"x")
        try:
            await ready.wait()
            return now_s()
        finally:
            loop.remove_reader(reading)
            os.close(reading)
            os.close(writing)

    assert run_in_virtual_time(main()) == 0


def test_a_virtual_time_loop_can_run_in_debug_mode():
    async def main():
        return asyncio.get_running_loop().get_debug()

    assert run_in_virtual_time(main(), debug=True)
    assert not run_in_virtual_time(main(), debug=False)


async def order_of_three_tasks_and_their_timers():
    order = []

    async def work(name):
        order.append(f"{name} starts")
        await asyncio.sleep(1)
        order.append(f"{name} ends")

    async with asyncio.TaskGroup() as group:
        for name in "abc":
            group.create_task(work(name))
    return order


def test_a_seed_makes_ready_tasks_and_due_timers_run_in_another_order():
    in_order = ["a starts", "b starts", "c starts", "a ends", "b ends", "c ends"]

    found = {
        seed: run_in_virtual_time(order_of_three_tasks_and_their_timers(), seed=seed)
        for seed in (None, *range(30))
    }

    assert found[None] == in_order
    assert all(sorted(order) == sorted(in_order) for order in found.values())
    assert {tuple(order[:3]) for order in found.values()} == {*itertools.permutations(in_order[:3])}
    assert {tuple(order[3:]) for order in found.values()} == {*itertools.permutations(in_order[3:])}


def test_a_seed_always_makes_the_same_order():
    def run():
        return run_in_virtual_time(order_of_three_tasks_and_their_timers(), seed=7)

    assert run() == run()


def test_a_seed_keeps_callbacks_in_order_and_between_the_tasks_that_were_ready_around_them():
    async def main():
        loop, order = asyncio.get_running_loop(), []

        async def work(name):
            order.append(name)

        tasks = [loop.create_task(work("task 1")), loop.create_task(work("task 2"))]
        loop.call_soon(order.append, "first")
        loop.call_soon(order.append, "second")
        tasks += [loop.create_task(work("task 3")), loop.create_task(work("task 4"))]
        await asyncio.wait(tasks)
        return order

    orders = {tuple(run_in_virtual_time(main(), seed=seed)) for seed in range(20)}

    assert len(orders) == 4
    assert {order[2:4] for order in orders} == {("first", "second")}
    assert {frozenset(order[:2]) for order in orders} == {frozenset({"task 1", "task 2"})}


def test_a_seed_leaves_the_times_of_a_run_as_they_are():
    calls = []

    async def flaky():
        calls.append(now_s())
        await asyncio.sleep(1)
        raise ConnectionError

    steps = [WorkflowStep("flaky", flaky, max_retries=3, retry=10_000)]
    report = run_in_virtual_time(run_pipeline(steps), seed=3)

    assert calls == [0, 11, 22]
    assert report.total_duration_ms == 23_000


def test_a_seed_keeps_cancelled_timers_from_firing():
    async def main():
        loop, fired = asyncio.get_running_loop(), []
        timers = [loop.call_later(1, fired.append, number) for number in range(10)]
        for timer in timers[::2]:
            timer.cancel()
        await asyncio.sleep(2)
        return sorted(fired)

    assert run_in_virtual_time(main(), seed=1) == [1, 3, 5, 7, 9]


def test_a_seed_stands_threads_that_schedule_callbacks_while_tasks_are_shuffled():
    has_ended = threading.Event()

    def schedule_without_end(loop):
        while not has_ended.is_set():
            loop.call_soon_threadsafe(int)

    async def main():
        thread = threading.Thread(
            target=schedule_without_end, args=(asyncio.get_running_loop(),), daemon=True
        )
        thread.start()
        try:
            for _ in range(5):
                await asyncio.gather(*(asyncio.sleep(0) for _ in range(2_000)))
        finally:
            has_ended.set()
            thread.join()
        return now_s()

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # so that the thread runs in the midst of each shuffle
    try:
        assert run_in_virtual_time(main(), seed=1) == 0
    finally:
        sys.setswitchinterval(before)
