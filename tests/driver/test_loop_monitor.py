"""The loop monitor reports tasks that block the event loop. Most of its tests block in real time.

A loaded machine can delay anything, so no test sets an upper bound on a duration.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import uvloop

from asyncflow._core.errors import HangError
from asyncflow._policies import loop_monitor as _monitor
from asyncflow._policies.loop_monitor import has_gil, watch
from asyncflow.testing import run_in_virtual_time

pytestmark = pytest.mark.skipif(not has_gil(), reason="without a GIL no block is reported")

ROOT = Path(__file__).parents[2]


def eager_loop():
    loop = asyncio.new_event_loop()
    loop.set_task_factory(asyncio.eager_task_factory)
    return loop


LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
if sys.version_info >= (3, 12):
    LOOPS["eager"] = eager_loop

on_each_loop = pytest.mark.parametrize("factory", LOOPS.values(), ids=LOOPS)


class Findings(list):
    """The reports, as tuples of the task's name, the milliseconds and the line."""

    def __call__(self, task, blocked_ms, where):
        self.thread = threading.current_thread()
        self.append((task and task.get_name(), blocked_ms, where))

    @property
    def names(self):
        return [name for name, _, _ in self]


def run(main, factory=asyncio.new_event_loop):
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(main)


async def block(seconds):
    """Block the loop; return for how long, in seconds."""
    started = time.monotonic()
    time.sleep(seconds)
    return time.monotonic() - started


async def blocking(name, seconds):
    return await asyncio.create_task(block(seconds), name=name)


def monitors():
    return [each for each in threading.enumerate() if each.name == "asyncflow loop monitor"]


def wait_until(condition):
    ends = time.monotonic() + 50
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.005)


@pytest.fixture(autouse=True)
def no_thread_remains():
    yield

    wait_until(lambda: not monitors())


# Reports.


@pytest.mark.realtime
@on_each_loop
def test_a_task_that_blocks_is_reported_with_the_line(factory):
    async def main():
        findings = Findings()
        handle = watch(asyncio.get_running_loop(), findings)
        seconds = await blocking("slow", 0.4)
        await asyncio.sleep(0)
        handle.stop()
        return findings, seconds

    findings, seconds = run(main(), factory)

    ((name, blocked_ms, where),) = findings
    line = block.__code__.co_firstlineno + 3
    assert (name, where) == ("slow", f"{__file__}:{line} in block")
    assert 100 <= blocked_ms <= (seconds + 60) * 1000
    assert findings.thread is threading.main_thread()


@pytest.mark.realtime
def test_each_of_two_tasks_that_block_in_the_same_turn_is_reported():
    async def main():
        findings = Findings()
        handle = watch(asyncio.get_running_loop(), findings)
        await asyncio.gather(blocking("first", 0.4), blocking("second", 0.4))
        await asyncio.sleep(0)
        handle.stop()
        return findings

    assert run(main()).names == ["first", "second"]


@pytest.mark.realtime
@on_each_loop
def test_a_block_of_less_than_100_ms_is_not_reported(factory):
    async def main():
        findings = Findings()
        handle = watch(asyncio.get_running_loop(), findings)
        short = [await blocking("short", 0.06) for _ in range(4)]
        # Together they delay a ping by more than 100 ms.
        many = await asyncio.gather(*(block(0.01) for _ in range(20)))
        handle.stop()
        return findings, [seconds for seconds in (*short, *many) if seconds >= 0.1]

    findings, long = run(main(), factory)

    assert len(findings) <= len(long)  # none on an idle machine


@pytest.mark.realtime
def test_a_c_function_that_holds_the_gil_is_reported():
    started = time.thread_time()
    sum(range(1_000_000))
    count = int(1_000_000 * 0.4 / (time.thread_time() - started))

    async def compute():
        return sum(range(count))

    async def main():
        findings = Findings()
        handle = watch(asyncio.get_running_loop(), findings)
        await asyncio.create_task(compute(), name="computes")
        await asyncio.sleep(0)
        handle.stop()
        return findings

    ((name, blocked_ms, where),) = run(main())

    assert name == "computes"
    assert blocked_ms >= 100
    assert where.endswith("compute")


@pytest.mark.realtime
def test_an_idle_loop_is_not_reported():
    async def main():
        findings = Findings()
        handle = watch(asyncio.get_running_loop(), findings)
        await asyncio.sleep(0.2)
        handle.stop()
        return findings

    assert run(main()) == []


@pytest.mark.realtime
def test_each_watch_reports_the_blocks_of_its_own_loop():
    async def main(name, seconds):
        findings = Findings()
        handle = watch(asyncio.get_running_loop(), findings)
        await blocking(name, seconds)
        await asyncio.sleep(0)
        handle.stop()
        return findings

    found = {}
    threads = [
        threading.Thread(
            target=lambda name=name, seconds=seconds: found.update(
                {name: run(main(name, seconds)).names}
            )
        )
        for name, seconds in (("left", 0.2), ("right", 0.25), ("neither", 0))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert found == {"left": ["left"], "right": ["right"], "neither": []}


@pytest.mark.realtime
def test_a_loop_that_moves_to_another_thread_is_still_watched():
    findings = Findings()
    loop = asyncio.new_event_loop()

    async def begin():
        return watch(loop, findings)

    async def resume():
        again = watch(loop, print)
        await blocking("elsewhere", 0.2)
        await asyncio.sleep(0)
        again.stop()

    handle = loop.run_until_complete(begin())
    thread = threading.Thread(target=lambda: loop.run_until_complete(resume()))
    thread.start()
    thread.join()
    handle.stop()
    loop.close()

    ((name, _, where),) = findings
    assert name == "elsewhere"
    assert "in block" in where


@pytest.mark.realtime
def test_each_watch_of_a_loop_receives_reports_until_it_stops():
    async def main():
        loop = asyncio.get_running_loop()
        first, second, dropped = Findings(), Findings(), Findings()
        stays, stops = watch(loop, first), watch(loop, second)
        watch(loop, dropped)
        await blocking("one", 0.25)
        await asyncio.sleep(0)
        stops.stop()
        await blocking("two", 0.25)
        await asyncio.sleep(0)
        stays.stop()
        return first.names, second.names, dropped

    assert run(main()) == (["one", "two"], ["one"], [])


# Single samples, taken by hand.


class Samples:
    """A watched loop that a test looks at, with a clock and CPU times that the test moves."""

    def __init__(self, monkeypatch):
        self.findings = Findings()
        self._handle = _monitor.Watch(asyncio.get_running_loop(), self.findings)
        self.watched = _monitor._WatchedLoop(
            asyncio.get_running_loop(), {_monitor.ref(self._handle)}
        )
        self.now, self._own, self._others = time.monotonic(), 0.0, 0.0
        self.watched._cpu_s = lambda: self._own
        self.watched._worked_s = self.watched._all_worked_s = 0.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        monkeypatch.setattr(time, "process_time", lambda: self._own + self._others)

    def look(self, after=0.025, own=0.0, others=0.0):
        """Look after some seconds, in which the loop's thread and all others have computed."""
        self.now, self._own, self._others = self.now + after, self._own + own, self._others + others
        self.watched.look(after)


def test_a_block_ends_when_another_task_is_seen(monkeypatch):
    async def main():
        samples = Samples(monkeypatch)

        watched = samples.watched

        async def blocks():
            watched.look(0.025)
            samples.now += 0.11
            watched.look(0.025)

        async def follows():
            samples.now += 0.02
            watched.look(0.025)
            samples.now += 1  # until the loop gets to the ping

        await asyncio.gather(blocks(), follows())
        await asyncio.sleep(0)
        return samples.findings, watched

    ((_, blocked_ms, where),), watched = run(main())

    assert "blocks" in where
    assert blocked_ms == pytest.approx(130)
    assert not watched.is_watched()


def test_a_callback_that_follows_a_task_in_the_same_turn_is_measured_separately(monkeypatch):
    async def main():
        samples = Samples(monkeypatch)
        watched = samples.watched

        async def first():
            watched.loop.call_soon(callback)
            watched.look(0.025)

        def callback():
            watched.look(0.025)
            samples.now += 0.11
            watched.look(0.025)

        await asyncio.gather(first())
        await asyncio.sleep(0)
        return samples.findings

    ((name, _, where),) = run(main())

    assert name is None
    assert "callback" in where


def test_a_suspended_process_is_not_reported(monkeypatch):
    async def main():
        samples = Samples(monkeypatch)
        samples.look()
        samples.look(3600)
        samples.look()
        await asyncio.sleep(0)
        return samples.findings

    assert run(main()) == []


def test_a_delayed_monitor_goes_by_the_cpu_time_of_the_loop(monkeypatch):
    async def main():
        samples = Samples(monkeypatch)
        samples.look(0.2, own=0.11)
        await asyncio.sleep(0)
        samples.look(0.2)  # the loop has used no CPU since
        await asyncio.sleep(0)
        return samples.findings

    ((_, blocked_ms, _),) = run(main())

    assert blocked_ms >= 100


@pytest.mark.parametrize(
    ("own", "others", "slept", "is_reported"),
    [
        (0.0, 0.0, 0.025, True),  # the loop sleeps
        (0.0, 0.025, 0.025, True),  # the same, while another thread computes
        (0.025, 0.0, 0.025, True),  # the loop computes
        (0.025, 0.1, 0.025, True),  # the same, while threads on other processors compute
        (0.005, 0.003, 0.025, True),  # the loop reads file after file
        (0.005, 0.02, 0.025, False),  # the loop gets a fifth of the time
        (0.0, 0.2, 0.2, False),  # a C function of another thread holds the GIL
        (0.0, 0.0, 0.2, True),  # another process delays the monitor's thread
    ],
)
def test_a_loop_that_waits_for_other_busy_threads_does_not_block(
    own, others, slept, is_reported, monkeypatch
):
    async def main():
        samples = Samples(monkeypatch)
        samples.look()
        for _ in range(2 if slept >= 0.1 else 5):
            samples.look(slept, own, others)
        await asyncio.sleep(0)
        return samples.findings

    assert len(run(main())) == is_reported


def test_a_thread_that_has_ended_has_no_frames():
    thread = threading.Thread(target=print)
    thread.start()
    thread.join()

    assert thread.ident is not None
    assert list(_monitor._frames(thread.ident)) == []


def test_without_a_gil_no_loop_is_watched(monkeypatch):
    monkeypatch.setattr(sys, "_is_gil_enabled", lambda: False, raising=False)

    async def main():
        handle = watch(asyncio.get_running_loop(), lambda *_: None)
        names = [thread.name for thread in threading.enumerate()]
        handle.stop()
        return names

    assert "asyncflow loop monitor" not in run(main())


# The thread.


def test_a_long_run_leaves_no_monitor_thread():
    async def main():
        handle = watch(asyncio.get_running_loop(), print)
        other = watch(asyncio.get_running_loop(), print)
        await asyncio.sleep(_monitor._LONG_S * 1.5)
        other.stop()
        during = monitors()
        handle.stop()
        return during, monitors()

    during, after = run(main())

    assert len(during) == 1
    assert after == []


@pytest.mark.realtime
def test_short_runs_share_a_thread_which_ends_by_itself(monkeypatch):
    monkeypatch.setattr(_monitor, "_LONG_S", 60)

    async def main():
        threads = set()
        for _ in range(100):
            handle = watch(asyncio.get_running_loop(), print)
            threads.update(monitors())
            handle.stop()
        return threads

    threads = run(main())

    assert 1 <= len(threads) <= 100
    wait_until(lambda: not monitors())


@pytest.mark.realtime
def test_the_monitor_soon_forgets_a_loop_that_is_no_longer_watched():
    async def short():
        watch(asyncio.get_running_loop(), print).stop()
        dropped = watch(asyncio.get_running_loop(), print)
        return len(_monitor._monitor._loops), dropped

    async def main():
        handle = watch(asyncio.get_running_loop(), print)
        during, _ = await asyncio.to_thread(run, short())
        loops = _monitor._monitor._loops
        await asyncio.to_thread(wait_until, lambda: len(loops) == 1)
        handle.stop()
        await asyncio.to_thread(wait_until, lambda: not loops)
        return during

    assert run(main()) == 2


@pytest.mark.realtime
def test_the_monitor_thread_does_not_hide_a_hang():
    async def main():
        watch(asyncio.get_running_loop(), print).stop()

    started = time.monotonic()
    run(main())
    with pytest.raises(HangError):
        run_in_virtual_time(asyncio.Event().wait())

    assert time.monotonic() - started < 4  # else it waited 5 s for that thread


@pytest.mark.realtime
def test_nothing_is_reported_if_no_thread_can_start(monkeypatch):
    def start(_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)

    async def main():
        findings = Findings()
        handle = watch(asyncio.get_running_loop(), findings)
        await blocking("slow", 0.15)
        handle.stop()
        return findings

    assert run(main()) == []


def test_a_loop_with_a_virtual_clock_is_not_watched():
    async def main():
        handle = watch(asyncio.get_running_loop(), print)
        during = monitors()
        handle.stop()
        return during

    wait_until(lambda: not monitors())
    assert run_in_virtual_time(main()) == []


@pytest.mark.realtime
def test_a_dropped_watch_ends():
    async def main():
        return watch(asyncio.get_running_loop(), print)

    handle = run(main())  # the loop is closed
    wait_until(lambda: not monitors() or not _monitor._monitor._loops)
    handle.stop()

    async def drop():
        watch(asyncio.get_running_loop(), print)
        await asyncio.to_thread(wait_until, lambda: not monitors())

    run(drop())


@pytest.mark.realtime
def test_a_loop_that_is_closed_during_a_task_is_dropped():
    class Closed(asyncio.SelectorEventLoop):
        def call_soon_threadsafe(self, *args, **kwargs):
            raise RuntimeError("Event loop is closed")

    async def main():
        loop = asyncio.get_running_loop()
        handle = watch(loop, print)
        wait_until(lambda: loop not in _monitor._monitor._loops)
        handle.stop()

    run(main(), Closed)


@pytest.mark.process
def test_the_interpreter_exits_while_a_loop_is_watched():
    script = f"""
import asyncio, sys
sys.path.insert(0, {str(ROOT)!r})
from asyncflow._policies.loop_monitor import watch
loop = asyncio.new_event_loop()
async def main():
    return watch(loop, print)
handle = loop.run_until_complete(main())
print("done")
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=50, check=True
    )

    assert done.stdout == "done\n"


@pytest.mark.process
@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="there is no fork")
def test_a_forked_child_starts_its_own_monitor():
    script = f"""
import asyncio, os, sys, threading, time
sys.path.insert(0, {str(ROOT)!r})
from asyncflow._policies.loop_monitor import watch

async def main(inherited):
    found = []
    handle = watch(asyncio.get_running_loop(), lambda *found_: found.append(found_))
    time.sleep(0.6)  # the thread may start late
    await asyncio.sleep(0)
    if inherited is None and (child := os.fork()) == 0:
        os._exit(child_main(handle))
    handle.stop()
    if inherited is None:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    inherited.stop()
    return 0 if len(found) == 1 and threading.active_count() == 1 else 1

def child_main(handle):
    done = []
    # In another thread, since this one has a running loop.
    thread = threading.Thread(target=lambda: done.append(asyncio.run(child(handle))))
    thread.start()
    thread.join()
    return done[0]

async def child(inherited):
    found = []
    handle = watch(asyncio.get_running_loop(), lambda *each: found.append(each))
    time.sleep(0.6)  # the thread may start late
    await asyncio.sleep(0)
    handle.stop()
    inherited.stop()
    return 0 if len(found) == 1 else 1

sys.exit(asyncio.run(main(None)))
"""
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script], timeout=50, check=True, capture_output=True
    )


@pytest.mark.process
@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="there is no fork")
def test_a_fork_sees_a_single_thread_and_the_loop_is_watched_afterwards():
    script = f"""
import asyncio, os, sys, threading, time
sys.path.insert(0, {str(ROOT)!r})
from asyncflow._policies.loop_monitor import watch

async def main():
    found = []
    handle = watch(asyncio.get_running_loop(), lambda *each: found.append(each))
    before = threading.active_count()
    if (child := os.fork()) == 0:
        os._exit(0)
    os.waitpid(child, 0)
    await asyncio.sleep(0)
    time.sleep(0.6)  # the thread may start late
    await asyncio.sleep(0)
    handle.stop()
    return before, len(found), threading.active_count()

print(asyncio.run(main()))
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        timeout=50,
        check=True,
        capture_output=True,
        text=True,
    )

    assert (done.stdout, done.stderr) == ("(2, 1, 1)\n", "")


@pytest.mark.process
def test_after_a_fork_the_monitor_thread_restarts_in_the_next_turn():
    async def main():
        handle = watch(asyncio.get_running_loop(), print)
        _monitor._monitor.pause()
        during = monitors()
        _monitor._monitor.resume()
        await asyncio.sleep(0)
        after = monitors()
        handle.stop()
        return during, len(after)

    assert run(main()) == ([], 1)


def test_after_a_fork_no_thread_restarts_for_a_loop_that_is_not_watched():
    class Closed(asyncio.SelectorEventLoop):
        def call_soon_threadsafe(self, *args, **kwargs):
            raise RuntimeError("Event loop is closed")

    async def main():
        loop = asyncio.get_running_loop()
        handle = watch(loop, print)
        _monitor._monitor.pause()
        _monitor._monitor.pause()  # as in two simultaneous forks
        _monitor._monitor.resume()
        handle.stop()
        await asyncio.sleep(0)
        return monitors()

    assert run(main()) == run(main(), Closed) == []
