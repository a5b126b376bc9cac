"""What a step may expect, wherever it runs: in this process, in an executor or on a cluster.

The actions are in `engine_work`, and the places in `places`. A place says what it can, and the
tests expect that. The tests of another engine import these and define a `place` of their own.
"""

from __future__ import annotations

import asyncio
import os
import re
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import engine_work as do
import pytest
from engines.places import (
    DASK,
    LOCAL,
    Place,
    Pools,
    dask_place,
    executor_engine,
    executor_place,
    local_place,
    open_dask,
)
from memory_journal import MemoryJournal

from asyncflow import (
    NotSendableError,
    RunReport,
    StepStatus,
    StepTimeoutError,
    WorkerLostError,
    WorkflowStep,
    run_pipeline,
)
from asyncflow._core.tracebacks import format_error
from asyncflow.engines import RemoteOutput
from asyncflow.events import (
    AttemptBegan,
    AttemptStarted,
    Event,
    StepAttached,
    StepLogged,
    StepProgressed,
)
from asyncflow.journal import SQLiteJournal

pytestmark = pytest.mark.process

A_WHILE_S = 60
"""More than anything here takes on a machine that is busy."""


@pytest.fixture(scope="session")
def pools() -> Iterator[Pools]:
    pools = Pools()
    yield pools
    pools.close()


@pytest.fixture(params=[*LOCAL, "pool-loop", "pool-thread", "loky-loop", *DASK])
async def place(request: pytest.FixtureRequest) -> AsyncIterator[Place]:
    """Where a step can run."""
    kind, _, runs_in = request.param.partition("-")
    if kind in LOCAL:
        yield local_place(kind)
    elif kind == "dask":
        async with open_dask(request) as engine:
            yield dask_place(request, runs_in, engine)
    else:
        pools: Pools = request.getfixturevalue("pools")
        async with executor_engine(pools, kind) as engine:
            yield executor_place(pools, kind, runs_in, engine)


class Recorder:
    """An observer that wants log records too."""

    logs = 20

    def __init__(self) -> None:
        self.events: list[Event] = []

    def __call__(self, event: Event) -> None:
        self.events.append(event)

    def of(self, kind: type[Any]) -> list[Any]:
        return [event for event in self.events if type(event) is kind]


async def run(place: Place, steps: Iterable[WorkflowStep], **options: Any) -> RunReport:
    async with asyncio.timeout(A_WHILE_S):
        return await run_pipeline(steps, engine=place.engine, **options)


def words(diary: Path) -> list[str]:
    return diary.read_text().split() if diary.exists() else []


def lingering(place: Place, diary: Path, seconds: float = 0.6, cleanup_s: float = 0.0) -> Any:
    """Return the actions of a body that runs for long, or that long if nothing stops it."""
    lasts = diary, 60.0 if place.stops_bodies else seconds, cleanup_s
    return partial(do.linger, *lasts), partial(do.linger_plainly, *lasts)


async def reach(condition: Callable[[], object]) -> None:
    """Poll a condition of which nothing tells."""
    async with asyncio.timeout(A_WHILE_S):
        while not condition():
            await asyncio.sleep(0.01)


# Values, errors, and what an action may ask.


async def test_an_action_sees_the_error_of_the_attempt_before(place: Place) -> None:
    step = place.step("a", do.second_try, do.second_try_plainly, max_retries=2)

    report = await run(place, [step])

    assert report["a"].output == "ValueError: at first"


async def test_an_action_sees_the_error_before_an_attempt_that_died_with_its_run(
    place: Place,
) -> None:
    step, journal = (
        place.step("a", do.second_try, do.second_try_plainly, max_retries=2),
        MemoryJournal(),
    )
    await run(place, [step], journal=journal, run_id="r")
    events = journal.stored["r"]
    starts = [n for n, event in enumerate(events, 1) if isinstance(event, AttemptStarted)]

    report = await run(place, [step], journal=journal.died_after(starts[1]), run_id="r")

    assert report["a"].output == (
        "ValueError: at first; attempt 2 of step 'a' did not finish: its process died or its "
        "journal failed"
    )


async def test_outputs_reach_the_steps_that_take_them(place: Place, tmp_path: Path) -> None:
    build = (
        partial(do.build, tmp_path / "diary", 1000),
        partial(do.build_plainly, tmp_path / "d", 1000),
    )
    steps = [
        place.step("built", *build),
        place.step("size", do.measure, do.measure_plainly, ["built"]),
        place.step("pid", do.work, do.work_plainly),
    ]
    recorder = Recorder()
    report = await run(place, steps, observers=[recorder])

    report.raise_for_failures()
    assert report["size"].output == 1000
    name = "" if place.engine is None else place.engine.name
    assert {result.engine for result in report.results} == {name}
    assert all(bool(result.worker) is bool(name) for result in report.results)
    assert len(recorder.of(AttemptBegan)) == (3 if name else 0)
    pid = report["pid"].output
    if name and place.name.endswith("loop"):  # what has a process of its own is that of no worker
        assert re.search(rf"\b{pid}\b", report["pid"].worker)
        assert report["pid"].history[0].worker == report["pid"].worker
    is_here = pid == os.getpid()
    assert is_here is (place.name in ("loop", "thread"))


async def test_arrays_reach_the_steps_that_take_them(place: Place) -> None:
    size = 2_000_000
    make = partial(do.array_of, size), partial(do.array_of_plainly, size)
    report = await run(
        place,
        [
            place.step("array", *make),
            place.step("there", do.total, do.total_plainly, ["array"]),
            WorkflowStep("here", do.total, ["array"], engine="local"),
        ],
    )

    report.raise_for_failures()
    assert report["there"].output == report["here"].output == size

    # Only steps on the engine take it, so it may stay there.
    report = await run(
        place,
        [place.step("array", *make), place.step("there", do.total, do.total_plainly, ["array"])],
    )

    report.raise_for_failures()
    assert report["there"].output == size


async def test_an_action_knows_its_attempt_and_what_it_says_arrives(place: Place) -> None:
    text = "a text to log"
    describe = partial(do.describe, text), partial(do.describe_plainly, text)
    recorder = Recorder()
    step = place.step("tell", *describe, max_retries=3, timeout_ms=20_000)
    report = await run(place, [step], run_id="run-7", observers=[recorder])

    report.raise_for_failures()
    assert report["tell"].output == {
        "run": "run-7",
        "key": "run-7/tell",
        "attempt": ("tell", 1, 3),
        "has_time": True,
        "cancelled": False,
    }
    (logged,) = recorder.of(StepLogged)
    assert (logged.message, logged.logger, logged.level) == (f"about {text}", "work", 30)
    (attached,) = recorder.of(StepAttached)
    assert (attached.name, attached.data) == ("note", text.encode())
    progress = recorder.of(StepProgressed)[-1]
    assert (progress.done, progress.total, progress.unit) == (3, 4, "rows")


async def test_an_error_has_its_type_and_the_lines_of_the_action(place: Place) -> None:
    step = place.step("fail", do.fail, do.fail_plainly, max_retries=2)
    result = (await run(place, [step]))["fail"]

    assert (result.status, result.attempts) == (StepStatus.FAILED, 2)
    assert type(result.error) is do.CustomError
    assert result.error.args == ("no",)
    assert "in fail_plainly" in format_error(result.error)


async def test_what_is_no_exception_ends_the_run_as_itself(place: Place) -> None:
    with pytest.raises(KeyboardInterrupt, match="stop it all"):
        await run(place, [place.step("stop", do.interrupt, do.interrupt_plainly)])


async def test_nothing_that_is_secret_is_logged(
    place: Place, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    secret = "hunter2-hunter2"
    fail = partial(do.fail, secret), partial(do.fail_plainly, secret)
    steps = [
        place.step("tell", do.measure, do.measure_plainly, secret=True),
        place.step("fail", *fail, max_retries=2),
        place.step("lock", do.lock, do.lock_plainly),
    ]
    await run(place, steps, inputs={"built": secret}, secret_inputs=["built"], fail_fast=False)

    written = capfd.readouterr()
    assert secret not in caplog.text + written.out + written.err + place.logs()


# What can't be sent.


async def test_what_can_not_be_sent_is_named(place: Place) -> None:
    if place.engine is None:
        pytest.skip("nothing is sent")
    lock = threading.Lock()
    if place.runs_in != "process":  # such a step refuses a closure when it is made
        problem = r"step 'closed' can't run on engine .* its action can't be sent"
        with pytest.raises(TypeError, match=problem):
            await run(place, [place.step("closed", _closure(lock), lambda: lock)])

    steps = [
        place.step("output", do.lock, do.lock_plainly, max_retries=3),
        WorkflowStep("built", do.lock, engine="local"),
        place.step("argument", do.measure, do.measure_plainly, ["built"], max_retries=3),
    ]
    report = await run(place, steps, fail_fast=False)
    for name, subject in [("output", "its output"), ("argument", "argument 'built'")]:
        error = report[name].error
        assert isinstance(error, NotSendableError)
        assert (error.step_name, error.subject) == (name, subject)
        assert report[name].attempts == 1


def _closure(lock: Any) -> Any:
    async def use() -> None:
        with lock:
            pass

    return use


async def test_a_step_may_stay_in_this_process_though_the_run_has_an_engine(place: Place) -> None:
    steps = [
        WorkflowStep("here", do.work, engine="local"),
        place.step("there", do.work, do.work_plainly),
    ]
    report = await run(place, steps)

    report.raise_for_failures()
    assert report["here"].output == os.getpid()
    assert report["here"].engine == ""


async def test_an_engine_that_is_closed_is_refused_before_anything_runs(place: Place) -> None:
    if place.engine is None:
        pytest.skip("this process is never closed")
    async with place.open_another() as closed:
        pass
    with pytest.raises(RuntimeError, match=r"step 'work' can't run on engine .* not open"):
        await run_pipeline([place.step("work", do.work, do.work_plainly)], engine=closed)


# Time.


async def test_a_body_whose_time_is_up_ends_or_is_abandoned(place: Place, tmp_path: Path) -> None:
    diary = tmp_path / "diary"
    linger = lingering(place, diary, 2.5, cleanup_s=0.05)
    await run(place, [place.step("warm", do.work, do.work_plainly)])
    result = (await run(place, [place.step("linger", *linger, timeout_ms=500)]))["linger"]

    assert isinstance(result.error, StepTimeoutError)
    assert (result.error.kind, result.error.timeout_ms) == ("attempt", 500)
    assert 490 <= result.duration_ms < (10_000 if place.stops_bodies else 2_400)
    assert result.abandoned is not place.stops_bodies
    if place.runs_in == "process":
        assert "end" not in words(diary)
    elif place.stops_bodies:
        assert words(diary) == ["begin", "end"]
    else:
        await reach(lambda: words(diary) == ["begin", "end"])


async def test_attempts_never_overlap(place: Place, tmp_path: Path) -> None:
    diary = tmp_path / "diary"
    step = place.step("linger", *lingering(place, diary, 0.6, 0.2), timeout_ms=300, max_retries=2)
    await run(place, [place.step("warm", do.work, do.work_plainly)])
    result = (await run(place, [step]))["linger"]

    assert (result.attempts, type(result.error)) == (2, StepTimeoutError)
    if place.runs_in != "process":  # a process is killed, and may be so before it begins
        await reach(lambda: words(diary) == ["begin", "end", "begin", "end"])


async def test_waiting_for_a_worker_does_not_count(place: Place) -> None:
    if place.engine is None or place.runs_in == "process":
        pytest.skip("no step waits for a worker, or a body takes longer to start than to run")
    work = partial(do.work, 0.05), partial(do.work_plainly, 0.05)
    steps = [place.step(f"work-{n}", *work, timeout_ms=1000) for n in range(60)]
    report = await run(place, steps)

    report.raise_for_failures()
    assert max(result.queued_ms for result in report.results) > 100


async def test_the_next_attempt_continues_from_the_checkpoint(place: Place) -> None:
    save = partial(do.save, 3), partial(do.save_plainly, 3)

    report = await run(place, [place.step("save", *save, max_retries=2)])

    assert report["save"].output == {"attempt": 1, "number": 2}


async def test_heartbeats_reach_the_run(place: Place) -> None:
    # The start of a process, which takes long on a machine that is busy, counts as silence.
    limit_ms, count, silent_s = (1000, 12, 4) if place.runs_in != "process" else (4000, 45, 60)
    beat = partial(do.beat, count), partial(do.beat_plainly, count)
    silent = partial(do.work, silent_s), partial(do.work_plainly, silent_s)
    steps = [
        place.step("beat", *beat, heartbeat_ms=limit_ms),
        place.step("silent", *silent, heartbeat_ms=limit_ms),
    ]
    if place.engine is not None and not place.engine.tells_began:
        with pytest.raises(ValueError, match="can't pass heartbeats on"):
            await run(place, steps)
        return
    report = await run(place, steps, fail_fast=False)

    assert report["beat"].output == "beaten"
    error = report["silent"].error
    assert isinstance(error, StepTimeoutError)
    assert error.kind == "heartbeat"


# Cancellation.


@pytest.mark.parametrize("delay_s", [0.0, 0.01, 0.1, 0.4])
async def test_a_burst_of_cancels_leaves_nothing_behind(
    place: Place, tmp_path: Path, delay_s: float
) -> None:
    diary = tmp_path / "diary"
    linger = lingering(place, diary)
    await run(place, [place.step("warm", do.work, do.work_plainly)])
    steps = [place.step(f"linger-{n}", *linger) for n in range(many(place))]
    running = asyncio.create_task(run(place, steps))
    await asyncio.sleep(delay_s)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running

    await expect_nothing_left(place, diary)


async def test_a_failure_stops_the_other_steps(place: Place, tmp_path: Path) -> None:
    diary = tmp_path / "diary"
    linger = lingering(place, diary)
    steps = [place.step(f"linger-{n}", *linger) for n in range(many(place))]
    steps.insert(1, place.step("fail", do.fail, do.fail_plainly))
    report = await run(place, steps)

    assert report["fail"].status is StepStatus.FAILED
    assert len(report.failed) == 1
    if place.stops_bodies:
        assert len(report.cancelled) + len(report.skipped) == many(place)
    await expect_nothing_left(place, diary)


def many(place: Place) -> int:
    """Return more than there are workers. Processes take long to start."""
    return 12 if place.runs_in == "process" else 30


async def expect_nothing_left(place: Place, diary: Path) -> None:
    """Expect that every body which has begun has ended, and that none begins."""
    left = words(diary)
    if place.runs_in == "process":
        assert "end" not in left
    else:
        assert left.count("begin") == left.count("end")
    await asyncio.sleep(0.2)
    assert words(diary) == left


# Loss.


async def test_a_killed_worker_fails_the_attempt_and_the_next_one_runs_elsewhere(
    place: Place, tmp_path: Path
) -> None:
    if not place.can_lose_workers:
        pytest.skip("the tests are in that process, or others need it")
    diary = tmp_path / "diary"
    die = partial(do.die_once, diary), partial(do.die_once_plainly, diary)
    result = (await run(place, [place.step("die", *die, max_retries=2)]))["die"]

    assert (result.output, result.attempts) == ("alive", 2)
    error = result.history[0].error
    if place.engine is not None:
        assert isinstance(error, WorkerLostError)
    assert words(diary) == ["killed"]


async def test_a_resumed_run_does_not_repeat_what_another_engine_has_finished(
    place: Place, tmp_path: Path
) -> None:
    built, tried = tmp_path / "built", tmp_path / "tried"
    steps = [
        place.step("built", partial(do.build, built, 10), partial(do.build_plainly, built, 10)),
        place.step(
            *("load", partial(do.fail_once, tried), partial(do.fail_once_plainly, tried)),
            depends_on=["built"],
        ),
    ]
    async with SQLiteJournal(tmp_path / "runs.db") as journal:
        first = await run(place, steps, journal=journal, run_id="r1")
        assert type(first["load"].error) is do.CustomError
        async with place.open_another() as engine:
            second = await run_pipeline(steps, journal=journal, engine=engine, run_id="r1")

    second.raise_for_failures()
    assert second["load"].attempts == 2
    assert (words(built), words(tried)) == (["built"], ["tried", "tried"])


async def test_a_large_output_stays_where_it_is_if_it_can(place: Place, tmp_path: Path) -> None:
    size = 100_000_000 if os.environ.get("ASYNCFLOW_LARGE") else 4_000_000
    diary = tmp_path / "diary"
    steps = [
        place.step("built", partial(do.build, diary, size), partial(do.build_plainly, diary, size)),
        place.step("size", do.measure, do.measure_plainly, ["built"]),
        place.step("again", do.measure, do.measure_plainly, {"built": "built"}),
    ]
    report = await run(place, steps)

    report.raise_for_failures()
    assert (report["size"].output, report["again"].output) == (size, size)
    output = report["built"].output
    if place.engine is not None and place.engine.moves_data:
        assert isinstance(output, RemoteOutput)
        assert size <= output.size < 1.1 * size
        output = await output.fetch()
    assert len(output) == size
    assert words(diary) == ["built"]
