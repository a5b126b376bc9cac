"""`StepContext.stream`: values for those who watch a step, while it runs and after a crash."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import pytest
from fake_engine import FakeEngine
from process_work import stream_in_process

from asyncflow import (
    Orchestrator,
    PayloadError,
    RunNotFoundError,
    RunStatus,
    ValuesMissed,
    WorkflowStep,
    current_step,
    run_pipeline,
)
from asyncflow.events import StepLogged
from asyncflow.journal import SQLiteJournal
from asyncflow.service import Service

ROOT = Path(__file__).parents[2]


@pytest.fixture
async def journal(tmp_path):
    async with SQLiteJournal(tmp_path / "runs.db") as journal:
        yield journal


def started(action, journal=None, run_id="r", **options):
    steps = action if isinstance(action, list) else [WorkflowStep("talk", action, **options)]
    return Orchestrator(steps, journal=journal).with_options(run_id=run_id).start()


async def say_three():
    for number in range(3):
        current_step().stream(f"word {number}")
        await asyncio.sleep(1)


def words(values):
    return [value.value for value in values]


@pytest.mark.parametrize("with_journal", [False, True])
async def test_a_reader_gets_each_value_while_the_step_runs(with_journal, journal):
    loop, seen = asyncio.get_running_loop(), []
    async with started(say_three, journal if with_journal else None) as run:
        began = loop.time()
        seen += [(each.value, loop.time() - began) async for each in run.streamed("talk")]
        late = words([value async for value in run.streamed()])

    assert [word for word, _ in seen] == late == ["word 0", "word 1", "word 2"]
    limit_s = 0.05 if with_journal else 0
    assert all(number <= at_s <= number + limit_s + 0.001 for number, (_, at_s) in enumerate(seen))


@pytest.mark.parametrize("with_journal", [False, True])
async def test_attempts_are_told_apart(with_journal, journal):
    async def talk():
        step = current_step()
        step.stream(step.attempt)
        if step.attempt < 3:
            raise OSError

    async with started(talk, journal if with_journal else None, max_retries=3) as run:
        values = [value async for value in run.streamed()]

    assert [(each.segment, each.attempt, each.value) for each in values] == [
        (1, 1, 1),
        (1, 2, 2),
        (1, 3, 3),
    ]


async def test_a_resumed_run_continues_the_positions_in_another_segment(journal):
    async def talk():
        step = current_step()
        step.stream("a")
        step.stream("b")
        if len((await journal.record("r")).run_id) and fails:
            fails.pop()
            raise OSError

    fails = [1]
    step = WorkflowStep("talk", talk)
    assert (await run_pipeline([step], journal=journal, run_id="r")).status is RunStatus.FAILED
    seen = [value async for value in journal.streamed("r")]

    await run_pipeline([step], journal=journal, run_id="r")

    rest = [value async for value in journal.streamed("r", after=seen[-1].position)]
    assert words(seen) == words(rest) == ["a", "b"]
    assert {value.segment for value in seen} == {1}
    assert {value.segment for value in rest} == {2}
    assert [value async for value in journal.streamed("r")] == seen + rest
    half = [value async for value in journal.streamed("r", after=rest[0].position)]
    assert half == rest[1:]


async def test_a_reader_of_a_step_ends_with_it_and_that_of_a_run_with_the_run(journal):
    steps = [WorkflowStep("talk", say_three), WorkflowStep("rest", say_three, ["talk"])]
    loop, ends = asyncio.get_running_loop(), {}

    async def read(name):
        values = [value async for value in journal.streamed("r", name)]
        ends[name] = round(loop.time() - began), len(values)

    async with started(steps, journal) as run:
        began = loop.time()
        await run.flush()
        async with asyncio.TaskGroup() as group:
            for name in ("talk", "rest", None):
                group.create_task(read(name))

    assert ends == {"talk": (3, 3), "rest": (6, 3), None: (6, 6)}


async def test_a_thousand_readers_of_one_run_get_the_same(journal):
    async def talk():
        for number in range(50):
            current_step().stream(number)
            await asyncio.sleep(0.01)

    async with started(talk, journal) as run:
        await run.flush()
        readers = [[v async for v in journal.streamed("r")] for _ in range(1)]
        every = await asyncio.gather(*(collected(journal.streamed("r")) for _ in range(1_000)))

    assert words(readers[0]) == list(range(50))
    assert all(values == readers[0] for values in every)


async def collected(values):
    return [value async for value in values]


async def test_a_reader_that_never_reads_slows_nothing_and_learns_how_many_it_missed():
    async def talk():
        for number in range(30_000):
            current_step().stream(number)
            if number % 100 == 0:
                await asyncio.sleep(0)

    async with started(talk) as run:
        reader = run.streamed()
        await run.report()
        values = await collected(reader)

    missed, *rest = values
    assert isinstance(missed, ValuesMissed)
    assert 10_000 <= len(rest) <= 11_000
    assert missed.count + len(rest) == 30_000
    assert words(rest) == list(range(missed.count, 30_000))
    assert rest[0].position == missed.count + 1


@pytest.mark.parametrize("with_journal", [False, True])
async def test_a_reader_of_much_lets_other_tasks_run(with_journal, journal):
    async def talk():
        for number in range(5_000):
            current_step().stream(number)

    async def count_turns():
        while True:
            turns.append(len(values))
            await asyncio.sleep(0)

    turns, values = [0], []
    async with started(talk, journal if with_journal else None) as run:
        await run.report()
        counting = asyncio.create_task(count_turns())
        async for value in run.streamed():
            values.append(value)  # noqa: PERF401  # another task counts them meanwhile
        await asyncio.sleep(0)
        counting.cancel()

    assert len(values) == 5_000
    assert max(later - one for one, later in pairwise(turns)) <= 101


async def test_items_of_a_mapped_step_say_which_they_are(journal):
    async def source():
        return ["a", "b"]

    async def talk(source):
        current_step().stream(source)

    steps = [WorkflowStep("source", source), WorkflowStep("talk", talk, ["source"])]
    steps[1] = WorkflowStep("talk", talk, ["source"], map_over="source")
    async with started(steps, journal) as run:
        values = await collected(run.streamed("talk"))

    assert sorted((value.item, value.value) for value in values) == [(0, "a"), (1, "b")]


def talk_in_thread():
    step = current_step()
    step.stream("from a thread")
    other = threading.Thread(target=step.stream, args=("from another",))
    other.start()
    other.join()


@pytest.mark.parametrize("with_journal", [False, True])
async def test_a_thread_streams(with_journal, journal):
    async with started(talk_in_thread, journal if with_journal else None, runs_in="thread") as run:
        assert words(await collected(run.streamed())) == ["from a thread", "from another"]


@pytest.mark.process
async def test_a_process_streams(journal):
    async with started(stream_in_process, journal, runs_in="process") as run:
        assert words(await collected(run.streamed())) == list(range(5))


async def test_an_engine_streams(journal):
    async def talk():
        current_step().stream("from afar")

    async with started(talk, journal, engine=FakeEngine(1)) as run:
        assert words(await collected(run.streamed())) == ["from afar"]


async def test_a_secret_step_streams_to_readers_here_and_never_to_a_journal(journal):
    async with started(say_three, secret=True) as run:
        assert len(await collected(run.streamed())) == 3

    report = await run_pipeline([WorkflowStep("talk", say_three, secret=True)], journal=journal)

    assert isinstance(report["talk"].error, ValueError)
    assert "step 'talk' is secret" in str(report["talk"].error)


async def test_the_text_of_a_secret_input_is_replaced(journal):
    async def talk(token):
        current_step().stream({"header": f"Bearer {token}"})

    run = Orchestrator(
        [WorkflowStep("talk", talk)], journal=journal, secret_inputs=["token"]
    ).start(token="hunter22")
    async with run:
        (value,) = await collected(run.streamed())

    assert value.value == {"header": "Bearer <secret>"}


@pytest.mark.parametrize(
    "secret", ['a "quoted\\" one', 123456, "null", "[1, 2]", "é\U0001f600 \ud800"]
)
async def test_no_secret_stays_or_breaks_the_json_that_is_stored(secret, journal):
    async def talk(token):
        current_step().stream([None, token, {f"key {token}": f"is {token}"}, 12])

    run = Orchestrator(
        [WorkflowStep("talk", talk)], journal=journal, secret_inputs=["token"]
    ).start(token=secret)
    async with run:
        (value,) = await collected(run.streamed())

    assert value.value == [None, "<secret>", {"key <secret>": "is <secret>"}, 12]


async def test_a_value_must_be_plain_data_and_an_attempt_has_a_limit(tmp_path):
    async def talk():
        step = current_step()
        for value in (object(), {1: 2}, (1,), float("nan"), 10**5_000):
            with pytest.raises(PayloadError, match="what step 'talk' streams is no plain data: "):
                step.stream(value)
        for _ in range(10):
            with pytest.raises(PayloadError):  # which leaves room for smaller ones
                step.stream("x" * 100)
            step.stream("é" * 4)  # ten bytes of JSON
        with pytest.raises(PayloadError, match="takes more than 100 bytes in this attempt"):
            step.stream("")

    async with SQLiteJournal(tmp_path / "r.db", max_stream_bytes=100) as journal:
        async with started(talk, journal) as run:
            assert words(await collected(run.streamed())) == ["é" * 4] * 10
            assert (await run.report()).all_passed


async def test_what_a_task_streams_after_its_attempt_is_dropped(journal):
    async def late(step):
        await asyncio.sleep(1)
        step.stream("late")

    async def talk():
        tasks.append(asyncio.create_task(late(current_step())))
        current_step().stream("in time")

    tasks = []
    steps = [WorkflowStep("talk", talk), WorkflowStep("wait", say_three, ["talk"])]
    async with started(steps, journal) as run:
        assert words(await collected(run.streamed("talk"))) == ["in time"]
        await run.report()
        await tasks[0]
    assert len(await collected(journal.streamed("r"))) == 4


async def test_what_comes_too_late_to_be_streamed_is_counted_in_the_log_of_its_step(journal):
    async def late(step):
        await asyncio.sleep(0.5)
        for _ in range(3):
            step.stream("late")

    async def talk():
        tasks.append(asyncio.create_task(late(current_step())))

    tasks = []
    steps = [WorkflowStep("talk", talk), WorkflowStep("wait", say_three, ["talk"])]
    async with started(steps, journal) as run:
        await run.report()

    assert await said_of_missing(journal) == [
        ("talk", "3 streamed values were left out: the attempt had ended")
    ]


async def said_of_missing(journal):
    notes = await journal.notes("r", kinds=[StepLogged])
    return [(note.event.step, note.event.message) for note in notes]


@pytest.mark.process
async def test_values_of_a_process_that_the_journal_refuses_are_counted_with_the_reason(tmp_path):
    async with SQLiteJournal(tmp_path / "r.db", max_stream_bytes=3) as journal:
        async with started(stream_in_process, journal, runs_in="process") as run:
            assert words(await collected(run.streamed())) == [0, 1, 2]
        assert await said_of_missing(journal) == [
            (
                "talk",
                "2 streamed values were left out: what step 'talk' streams takes more than 3 bytes "
                "in this attempt: return what is needed later, or raise the journal's "
                "max_stream_bytes",
            )
        ]


@pytest.mark.process
async def test_values_of_a_secret_process_are_counted_and_not_stored(journal):
    async with started(stream_in_process, journal, runs_in="process", secret=True) as run:
        assert words(await collected(run.streamed())) == []

    ((_, message),) = await said_of_missing(journal)
    assert message.startswith("5 streamed values were left out: step 'talk' is secret, and the ")


async def test_what_is_streamed_between_attempts_is_dropped_though_the_step_is_cancelled_then(
    journal,
):
    async def late(step):
        await asyncio.sleep(0.995)
        step.stream("late")

    async def talk():
        tasks.append(asyncio.create_task(late(current_step())))
        current_step().stream("in time")
        raise OSError

    async def fail():
        await asyncio.sleep(1)
        raise OSError

    tasks = []
    steps = [WorkflowStep("talk", talk, max_retries=2, retry=60_000), WorkflowStep("fail", fail)]
    async with Orchestrator(steps, fail_fast=True, journal=journal).start() as run:
        assert words(await collected(run.streamed())) == ["in time"]
        await run.report()


@pytest.mark.parametrize("with_journal", [False, True])
@pytest.mark.parametrize(
    "options",
    [{}, {"fallback": lambda error: 1}, {"max_retries": 2}, {"timeout_ms": 100}],
    ids=lambda options: next(iter(options), "plain"),
)
async def test_the_last_words_of_an_attempt_that_fails_are_there(with_journal, options, journal):
    async def talk():
        current_step().stream(current_step().attempt)
        if "timeout_ms" in options:
            try:
                await asyncio.sleep(1)
            finally:
                current_step().stream("last words")
        raise OSError

    async with started(talk, journal if with_journal else None, **options) as run:
        values = words(await collected(run.streamed()))
        await run.report()

    expected = [1, 2] if "max_retries" in options else [1]
    assert values == [*expected, *["last words"] * ("timeout_ms" in options)]


@pytest.mark.parametrize("with_journal", [False, True])
async def test_nothing_is_kept_of_what_is_streamed_after_its_attempt(with_journal, journal):
    async def late(step):
        for _ in range(100):
            for _ in range(100):
                step.stream("late")
            await asyncio.sleep(0.1)

    async def talk():
        contexts.append(current_step())
        contexts[0].stream("in time")

    async def wait():
        await late(contexts[0])
        kept = [len(attempt.streamed) for attempt in contexts[0]._notes._attempts.values()]
        return max(kept, default=0)

    contexts = []
    steps = [WorkflowStep("talk", talk), WorkflowStep("wait", wait, ["talk"])]
    async with started(steps, journal if with_journal else None) as run:
        assert (await run.report())["wait"].output == 0


@pytest.mark.parametrize("with_journal", [False, True])
async def test_no_timer_is_left_of_a_run_that_has_streamed(with_journal, journal):
    async def talk():
        current_step().stream("last word")

    await run_pipeline([WorkflowStep("talk", talk)], journal=journal if with_journal else None)

    timers = asyncio.get_running_loop()._scheduled
    assert not [timer for timer in timers if "stream" in repr(timer) and not timer.cancelled()]


async def test_notes_leave_out_what_is_streamed_and_keep_their_own_positions(journal):
    async def talk():
        step = current_step()
        step.attach("one", "text")
        await asyncio.sleep(1)
        for number in range(3):
            step.stream(number)
        await asyncio.sleep(1)
        step.attach("two", "text")

    await run_pipeline([WorkflowStep("talk", talk)], journal=journal, run_id="r")

    notes = await journal.notes("r")
    assert [note.event.name for note in notes] == ["one", "two"]
    values = await collected(journal.streamed("r"))
    positions = [value.position for value in values]
    assert positions == list(range(positions[0], positions[0] + 3))
    assert notes[0].position < positions[0] <= positions[-1] < notes[1].position


async def test_readers_are_refused_what_there_is_not(journal):
    await run_pipeline([WorkflowStep("talk", say_three)], journal=journal, run_id="r")

    with pytest.raises(RunNotFoundError):
        await collected(journal.streamed("none"))
    with pytest.raises(ValueError, match="run 'r' has no step 'tlak' \\(did you mean 'talk'\\?\\)"):
        await collected(journal.streamed("r", "tlak"))
    with pytest.raises(ValueError, match="after"):
        journal.streamed("r", after=-1)
    assert await collected(journal.streamed("r", after=1_000)) == []
    async with started(say_three, run_id="s") as run:
        with pytest.raises(ValueError, match="has no step 'tlak'"):
            run.streamed("tlak")


async def test_a_service_streams_runs_of_any_process(journal):
    pipeline = Orchestrator([WorkflowStep("talk", say_three)])
    async with Service(pipelines={"p": pipeline}, journal=journal) as service:
        run = await service.start("p", run_id="r")
        await run.flush()
        values = await collected(service.streamed("r", "talk"))
        assert words(values) == ["word 0", "word 1", "word 2"]
        again = await collected(service.streamed("r", after=values[0].position))
        assert again == values[1:]
    async with Service(pipelines={"p": pipeline}) as service:
        with pytest.raises(RuntimeError, match="without a journal"):
            await collected(service.streamed("r"))


async def test_a_step_that_streams_needs_no_reader():
    report = await run_pipeline([WorkflowStep("talk", say_three)])

    assert report.all_passed


_CHILD = """
import asyncio, itertools, sys
from asyncflow import WorkflowStep, current_step, run_pipeline
from asyncflow.journal import SQLiteJournal

async def talk():
    step = current_step()
    for number in itertools.count():
        step.stream([sys.argv[2], number])
        await asyncio.sleep(0.002)

async def main():
    async with SQLiteJournal(sys.argv[1]) as journal:
        steps = [WorkflowStep("talk", talk, timeout_ms=None)]
        await run_pipeline(steps, journal=journal, run_id="r")

asyncio.run(main())
"""


async def read_through_kills(path, lives):
    """Kill the process that streams, and start another one; return what was read meanwhile."""
    seen = []
    async with SQLiteJournal(path) as journal:
        for life in range(lives):
            child = subprocess.Popen([sys.executable, "-c", _CHILD, path, str(life)], cwd=ROOT)
            try:
                async for value in following(journal, seen[-1].position if seen else 0):
                    seen.append(value)
                    if value.value == [str(life), 60]:
                        break
            finally:
                child.send_signal(signal.SIGKILL)
                child.wait()
        stored = []
        with suppress(TimeoutError):
            async with asyncio.timeout(1):  # the run goes on: no process has ended it
                async for value in journal.streamed("r"):
                    stored.append(value)  # noqa: PERF401  # a timeout must leave what was read
    return seen, stored


async def following(journal, after):
    while True:
        try:
            async for value in journal.streamed("r", after=after):
                yield value
        except RunNotFoundError:  # the process has not begun
            await asyncio.sleep(0.05)


@pytest.mark.realtime
@pytest.mark.process
def test_what_a_reader_has_seen_is_never_taken_back_though_processes_are_killed(tmp_path):
    seen, stored = asyncio.run(read_through_kills(str(tmp_path / "runs.db"), 4))

    positions = [value.position for value in seen]
    assert positions == sorted(set(positions))
    by_position = {value.position: value for value in stored}
    assert all(by_position[value.position] == value for value in seen)
    for life in range(4):
        numbers = [value.value[1] for value in stored if value.value[0] == str(life)]
        assert numbers == list(range(len(numbers)))
        assert len(numbers) > 60
    assert [value.segment for value in stored] == sorted(value.segment for value in stored)
