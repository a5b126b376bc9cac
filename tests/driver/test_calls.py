"""`StepContext.call`: what a call by name returned is stored, and never paid again."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import logging
from dataclasses import dataclass

import pytest
from memory_journal import MemoryJournal
from process_work import call_in_process

from asyncflow import (
    JournalError,
    Orchestrator,
    PayloadError,
    RunStatus,
    StepTimeoutError,
    WorkflowStep,
    current_step,
    run_pipeline,
)
from asyncflow.events import StepCalled
from asyncflow.journal import SQLiteJournal
from asyncflow.testing import crash_everywhere, step_context


class Model:
    """A service that is paid for each answer."""

    def __init__(self):
        self.asked = []

    async def ask(self, turn: int) -> int:
        await asyncio.sleep(0.01)
        self.asked.append(turn)
        return turn * 10


def agent(model, *, turns=3, fails=()):
    """Return an action that asks several times, and then fails in the attempts that are named."""

    async def action():
        step = current_step()
        answers = [await step.call(f"ask-{turn}", model.ask, turn) for turn in range(turns)]
        if step.attempt in fails:
            raise OSError(step.attempt)
        return answers

    return action


@pytest.fixture
def path(tmp_path):
    return tmp_path / "runs.db"


def stored_calls(path):
    import sqlite3
    from contextlib import closing

    with closing(sqlite3.connect(path)) as database:
        return [name for (name,) in database.execute("SELECT name FROM checkpoints ORDER BY name")]


@pytest.mark.parametrize("with_journal", [False, True])
async def test_a_later_attempt_gets_what_an_earlier_one_has_paid_for(with_journal):
    model, journal = Model(), MemoryJournal() if with_journal else None
    step = WorkflowStep("agent", agent(model, fails=[1, 2]), max_retries=3)

    report = await run_pipeline([step], journal=journal, run_id="r")

    assert model.asked == [0, 1, 2]
    assert report["agent"].output == [0, 10, 20]
    assert report["agent"].attempts == 3
    if journal is not None:
        assert journal.called == {"r": {}}  # gone with the success of the step


async def test_a_failed_step_keeps_its_calls_until_it_has_succeeded(path):
    model = Model()
    async with SQLiteJournal(path) as journal:
        failing = WorkflowStep("agent", agent(model, fails=[1]))
        report = await run_pipeline([failing], journal=journal, run_id="r")
        assert report.status is RunStatus.FAILED
        assert stored_calls(path) == ["ask-0", "ask-1", "ask-2"]

        passing = WorkflowStep("agent", agent(model, turns=4))
        report = await run_pipeline([passing], journal=journal, run_id="r")

    assert report.status is RunStatus.PASSED
    assert model.asked == [0, 1, 2, 3]
    assert stored_calls(path) == []


async def test_a_step_that_is_made_anew_and_a_rerun_have_no_calls(path):
    model = Model()
    async with SQLiteJournal(path) as journal:

        async def run(version):
            step = WorkflowStep("agent", agent(model, turns=1, fails=[1]), version=version)
            await run_pipeline([step], journal=journal, run_id="r")

        await run("1")
        await run("1")
        assert model.asked == [0]
        await run("2")
        assert model.asked == [0, 0]

        step = WorkflowStep("agent", agent(model, turns=1), version="2")
        await Orchestrator([step], journal=journal).rerun("r")

    assert model.asked == [0, 0, 0]


@pytest.mark.parametrize("name", ["one after the other", "at the same time"])
async def test_an_attempt_uses_a_name_once(name):
    async def action():
        step = current_step()
        if name == "at the same time":
            await asyncio.gather(*(step.call("ask", asyncio.sleep, 0, 1) for _ in range(2)))
        for _ in range(2):
            await step.call("ask", asyncio.sleep, 0, 1)

    report = await run_pipeline([WorkflowStep("a", action)])

    state = "is under way" if name == "at the same time" else "was made before"
    assert isinstance(report["a"].error, ValueError)
    assert f"call 'ask' {state} in this attempt; give each call a name" in str(report["a"].error)


async def test_a_name_is_free_again_when_its_function_has_raised():
    asked = []

    async def ask():
        asked.append(current_step().attempt)
        if len(asked) < 3:
            raise ConnectionError
        return len(asked)

    async def action():
        step = current_step()
        for _ in range(2):
            with contextlib.suppress(ConnectionError):
                await step.call("ask", ask)
        answer = await step.call("ask", ask)
        if step.attempt == 1:
            raise OSError
        return answer

    report = await run_pipeline([WorkflowStep("a", action, max_retries=2)])

    assert asked == [1, 1, 1]
    error = report["a"].error  # of attempt 2, which has the value of attempt 1 at once
    assert "call 'ask' was made before in this attempt" in str(error)


async def test_a_loop_of_tenacity_makes_a_call_until_it_returns():
    tenacity = pytest.importorskip("tenacity")
    model, refused = Model(), [ConnectionError, ConnectionError]

    async def ask():
        if refused:
            raise refused.pop()
        return await model.ask(1)

    async def action():
        retrying = tenacity.AsyncRetrying(
            stop=tenacity.stop_after_attempt(3), wait=tenacity.wait_fixed(1)
        )
        return await retrying(current_step().call, "ask", ask)

    journal = MemoryJournal()
    report = await run_pipeline([WorkflowStep("a", action)], journal=journal)

    assert report["a"].output == 10
    assert model.asked == [1]


async def test_a_limit_around_a_call_frees_its_name_and_keeps_what_was_being_stored():
    class SlowSession(MemoryJournal.session):
        def append_call(self, step, item, name, stored):
            storing = super().append_call(step, item, name, stored)

            async def late():
                await asyncio.sleep(1)
                await storing

            return late()

    journal, model = MemoryJournal(), Model()
    journal.session = SlowSession

    async def action():
        step = current_step()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.005):
                await step.call("ask", model.ask, 1)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await step.call("ask", model.ask, 1)
        return await step.call("ask", model.ask, 1)

    report = await run_pipeline([WorkflowStep("a", action)], journal=journal)

    assert report["a"].output == 10
    assert model.asked == [1]


async def test_a_call_that_an_earlier_attempt_has_left_frees_no_name_of_a_later_one():
    begun, kept = [], []

    async def ask():
        begun.append(current_step().attempt)
        await asyncio.sleep(1)
        if len(begun) == 1:
            raise ConnectionError

    async def action():
        step = current_step()
        call = asyncio.create_task(step.call("ask", ask))
        kept.append(call)
        await asyncio.sleep(0.5)
        if step.attempt == 1:
            raise OSError
        await asyncio.sleep(1)
        await call
        with pytest.raises(ValueError, match="was made before"):
            await step.call("ask", ask)

    report = await run_pipeline([WorkflowStep("a", action, max_retries=2)])

    assert report.all_passed
    assert begun == [1, 2]
    assert isinstance(kept[0].exception(), ConnectionError)


async def test_a_call_with_other_arguments_warns_and_returns_what_is_stored(caplog):
    async def ask(prompt, *, client):
        return prompt

    async def action():
        step = current_step()
        answer = await step.call("ask", ask, f"question {step.attempt}", client=object())
        same = await step.call("same", ask, "question", client=object())
        if step.attempt == 1:
            raise OSError
        return answer, same

    with caplog.at_level(logging.WARNING):
        report = await run_pipeline([WorkflowStep("a", action, max_retries=2)])

    assert report["a"].output == ("question 1", "question")
    (warning,) = caplog.messages
    assert warning == (
        "step 'a', attempt 2: call 'ask' returns what attempt 1 has stored, although its arguments "
        "have changed since"
    )


async def test_an_error_is_raised_and_not_stored():
    seen = []

    async def ask():
        seen.append(current_step().attempt)
        if len(seen) < 3:
            raise ConnectionError

    async def action():
        await current_step().call("ask", ask)

    report = await run_pipeline([WorkflowStep("a", action, max_retries=3)])

    assert report.all_passed
    assert seen == [1, 2, 3]


async def test_a_limit_while_the_function_runs_stores_nothing():
    journal, started = MemoryJournal(latency_s=0.001), []

    async def ask():
        started.append(current_step().attempt)
        await asyncio.sleep(1 if len(started) == 1 else 0)
        return 1

    async def action():
        return await current_step().call("ask", ask)

    step = WorkflowStep("a", action, max_retries=2, timeout_ms=100)
    report = await run_pipeline([step], journal=journal)

    assert started == [1, 2]
    assert report["a"].output == 1


@pytest.mark.parametrize("stop", ["limit", "caller"])
async def test_a_value_that_is_being_stored_when_the_attempt_must_end_is_stored(stop):
    class SlowSession(MemoryJournal.session):
        def append_call(self, step, item, name, stored):
            stored_late = super().append_call(step, item, name, stored)

            async def late():
                await asyncio.sleep(1)
                await stored_late

            return late()

    journal, model, seen = MemoryJournal(), Model(), []
    journal.session = SlowSession
    step = WorkflowStep("agent", agent(model, turns=1), max_retries=2, timeout_ms=500)
    options = {"journal": journal, "run_id": "r", "observers": [seen.append]}
    run = asyncio.create_task(run_pipeline([step], **options))
    if stop == "caller":
        await asyncio.sleep(0.3)
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
        assert asyncio.get_running_loop().time() >= 1  # it was awaited
        journal.session = MemoryJournal.session
        report = await run_pipeline([step], journal=journal, run_id="r")
    else:
        report = await run
        first = report["agent"].history[0]
        assert isinstance(first.error, StepTimeoutError)
        assert first.duration_ms >= 1_000

    assert model.asked == [0]
    assert report["agent"].output == [0]
    assert [event.name for event in seen if isinstance(event, StepCalled)] == ["ask-0"]


async def test_a_journal_that_fails_while_a_value_is_being_stored_ends_the_run():
    journal, model = MemoryJournal(latency_s=0.01, fail_at=3), Model()

    async def two():
        asking = current_step().call("ask", model.ask, 1)
        await asyncio.gather(asking, asyncio.sleep(0.015))

    steps = [WorkflowStep("a", two), WorkflowStep("b", functools.partial(asyncio.sleep, 0.011))]
    with pytest.raises(JournalError):
        await run_pipeline(steps, journal=journal)


async def test_the_next_attempt_waits_for_a_call_that_was_left_running():
    started = []

    async def slow(name):
        started.append(name)
        await asyncio.sleep(1)
        return name

    async def fails():
        await asyncio.sleep(0.1)
        if current_step().attempt == 1:
            raise OSError
        return "b"

    async def action():
        step = current_step()
        return await asyncio.gather(step.call("a", slow, "a"), step.call("b", fails))

    report = await run_pipeline([WorkflowStep("s", action, max_retries=2)])

    assert started == ["a"]
    assert report["s"].output == ["a", "b"]
    assert report["s"].duration_ms == pytest.approx(1_000, abs=5)


async def test_a_call_that_outlives_its_step_is_dropped_and_says_so():
    journal, left, contexts = MemoryJournal(), [], []

    async def action():
        step = current_step()
        left.append(asyncio.create_task(step.call("late", asyncio.sleep, 1, "late")))
        contexts.append(step)
        await asyncio.sleep(0)

    await run_pipeline([WorkflowStep("a", action)], journal=journal, run_id="r")

    with pytest.raises(RuntimeError, match="step 'a' has ended, so what call 'late' returned"):
        await left[0]
    with pytest.raises(RuntimeError, match="attempt 1 has ended, so it can't make call 'more'"):
        await contexts[0].call("more", asyncio.sleep, 0)
    assert not any(journal.called.values())


async def test_a_stored_call_that_outlives_its_step_is_not_made_again():
    class SlowSession(MemoryJournal.session):
        async def load_call(self, step, item, name):
            await asyncio.sleep(1)  # the step succeeds meanwhile
            return await super().load_call(step, item, name)

    model, journal, left = Model(), MemoryJournal(), []

    async def leaving():
        left.append(asyncio.create_task(agent(model, turns=1)()))
        await asyncio.sleep(0.05)

    await run_pipeline([WorkflowStep("a", agent(model, fails=[1]))], journal=journal, run_id="r")
    journal.session = SlowSession
    await run_pipeline([WorkflowStep("a", leaving)], journal=journal, run_id="r")

    with pytest.raises(RuntimeError, match="attempt 1 has ended"):
        await left[0]
    assert model.asked == [0, 1, 2]


async def test_a_run_keeps_nothing_of_the_calls_of_items_that_have_ended():
    contexts, kept = [], []

    async def item(source):
        step = current_step()
        contexts.append(step)
        await step.call("ask", asyncio.sleep, 0)
        kept.append(len(step._run.checkpoints.calls))

    async def last(item):
        for context in contexts:
            with pytest.raises(RuntimeError, match="attempt 1 has ended"):
                await context.call("more", asyncio.sleep, 0)
        kept.append(len(contexts[0]._run.checkpoints.calls))

    source = functools.partial(asyncio.sleep, 0, [*range(100)])
    steps = [
        WorkflowStep("source", source),
        WorkflowStep("item", item, ["source"], map_over="source"),
        WorkflowStep("last", last, ["item"]),
    ]
    for options in ({"max_concurrency": 2}, {"max_concurrency": 2, "journal": MemoryJournal()}):
        report = await run_pipeline(steps, **options)
        assert report.all_passed

    assert max(kept) <= 4


async def test_each_item_of_a_mapped_step_has_its_own_calls():
    model, failed = Model(), set()

    async def action(source):
        paid = await current_step().call("ask", model.ask, source)
        if source % 2 and source not in failed:
            failed.add(source)
            raise OSError
        return paid

    async def source():
        return [1, 2, 3]

    steps = [
        WorkflowStep("source", source),
        WorkflowStep("ask", action, ["source"], map_over="source", max_retries=2),
    ]
    report = await run_pipeline(steps, journal=MemoryJournal())

    assert report["ask"].output == [10, 20, 30]
    assert sorted(model.asked) == [1, 2, 3]


async def test_a_secret_step_stores_nothing_and_keeps_its_values_between_attempts(path):
    model = Model()
    step = WorkflowStep("agent", agent(model, fails=[1, 2]), max_retries=2, secret=True)
    async with SQLiteJournal(path) as journal:
        await run_pipeline([step], journal=journal, run_id="r")
        assert model.asked == [0, 1, 2]
        assert stored_calls(path) == []
        assert await journal.notes("r") == []

        await run_pipeline([step], journal=journal, run_id="r")

    assert model.asked == [0, 1, 2] * 2


@dataclass
class Answer:
    text: str


async def test_a_value_comes_back_as_its_annotation_says(path):
    async def ask() -> Answer:
        return Answer("yes")

    async def action():
        step = current_step()
        answer = await step.call("ask", functools.partial(ask))
        if step.attempt == 1:
            raise OSError
        return answer.text

    async with SQLiteJournal(path) as journal:
        step = WorkflowStep("a", action, max_retries=2)
        assert (await run_pipeline([step], journal=journal))["a"].output == "yes"


async def test_a_value_that_would_not_come_back_fails_the_step_without_another_attempt(path):
    asked = []

    async def ask():
        asked.append(1)
        return {1}

    async def action():
        await current_step().call("ask", ask)

    async with SQLiteJournal(path) as journal:
        report = await run_pipeline([WorkflowStep("a", action, max_retries=5)], journal=journal)

    assert isinstance(report["a"].error, PayloadError)
    assert "what call 'ask' of step 'a' returned can't be stored" in str(report["a"].error)
    assert "annotate what its function returns, or" in str(report["a"].error)
    assert asked == [1]


def plain() -> int:
    return 1


async def items():
    yield 1


@pytest.mark.parametrize(
    ("name", "function", "error", "message"),
    [
        (1, asyncio.sleep, TypeError, "name must be a str, not int"),
        ("", asyncio.sleep, ValueError, "name must have 1 to 200 characters, not 0"),
        ("x" * 201, asyncio.sleep, ValueError, "1 to 200 characters, not 201"),
        ("x", 1, TypeError, "call 'x': int is not an async callable"),
        ("x", plain, TypeError, "plain function that returns int, which cannot be awaited"),
        ("x", items, TypeError, "is an async generator function"),
        ("x", lambda: 1, TypeError, "its function returned int, which cannot be awaited"),
    ],
)
async def test_a_wrong_call_says_what_to_pass(name, function, error, message):
    async def action():
        await current_step().call(name, function)

    report = await run_pipeline([WorkflowStep("a", action)])

    assert type(report["a"].error) is error
    assert message in str(report["a"].error)


async def test_a_coroutine_object_is_refused_and_closed():
    async def action():
        await current_step().call("x", Model().ask(1))

    report = await run_pipeline([WorkflowStep("a", action)])

    assert "pass the function and its arguments, not a coroutine object" in str(report["a"].error)


async def test_calls_within_a_call_are_stored_too():
    asked = []

    async def inner():
        asked.append("inner")
        return 1

    async def outer():
        value = await current_step().call("inner", inner)
        if len(asked) == 1:
            asked.append("outer")
            raise OSError
        return value

    async def action():
        return await current_step().call("outer", outer)

    report = await run_pipeline([WorkflowStep("a", action, max_retries=2)])

    assert report["a"].output == 1
    assert asked == ["inner", "outer"]


def call_in_thread():
    _ = current_step().call("x", asyncio.sleep, 0)  # without an await: it must raise here


@pytest.mark.process
@pytest.mark.parametrize(
    ("action", "runs_in"), [(call_in_thread, "thread"), (call_in_process, "process")]
)
async def test_calls_work_in_the_event_loop_of_the_run_only(action, runs_in):
    report = await run_pipeline([WorkflowStep("a", action, runs_in=runs_in)])

    assert isinstance(report["a"].error, RuntimeError)
    assert "call 'x' works only in the event loop of the run" in str(report["a"].error)
    assert "await it in an 'async def' action that runs in the loop" in str(report["a"].error)


@pytest.mark.parametrize("taken", ["the step", "the method"])
async def test_a_thread_that_an_action_starts_makes_no_call(taken):
    async def action():
        step = current_step()
        assert inspect.iscoroutinefunction(step.call)  # what awaits it recognises it by that
        take = step.call if taken == "the method" else lambda *args: step.call(*args)
        await asyncio.to_thread(lambda: asyncio.run(take("x", asyncio.sleep, 0)))

    report = await run_pipeline([WorkflowStep("a", action)])

    assert isinstance(report["a"].error, RuntimeError)
    assert "call 'x' works only in the event loop of the run" in str(report["a"].error)


async def test_ten_calls_that_end_together_are_one_commit_or_two(path, monkeypatch):
    model = Model()

    async def action():
        step = current_step()
        await asyncio.gather(*(step.call(f"ask-{n}", model.ask, n) for n in range(10)))

    async with SQLiteJournal(path) as journal:
        commits, write = [], journal._worker.store.write

        def counted(take):
            def taken():
                batches = take()
                commits.append(sum(len(batch.statements) for batch in batches))
                return batches

            return write(taken)

        monkeypatch.setattr(journal._worker.store, "write", counted)
        await run_pipeline([WorkflowStep("a", action)], journal=journal)

    with_calls = [count for count in commits if count > 1]
    assert sum(with_calls) >= 10
    assert len(with_calls) <= 2


async def test_a_run_tells_of_its_calls_and_how_long_they_took(path):
    model = Model()
    async with SQLiteJournal(path) as journal:
        await run_pipeline([WorkflowStep("agent", agent(model))], journal=journal, run_id="r")
        notes = [stored.event for stored in await journal.notes("r", kinds=[StepCalled])]

    assert [(note.step, note.attempt, note.name) for note in notes] == [
        ("agent", 1, f"ask-{turn}") for turn in range(3)
    ]
    assert all(note.duration_ms == pytest.approx(10) for note in notes)
    assert [note.size for note in notes] == [1, 2, 2]


async def test_what_a_damaged_row_had_is_called_again(path, caplog):
    import sqlite3
    from contextlib import closing

    model = Model()
    async with SQLiteJournal(path) as journal:
        failing = WorkflowStep("agent", agent(model, turns=2, fails=[1]))
        await run_pipeline([failing], journal=journal, run_id="r")
    with closing(sqlite3.connect(path)) as database:
        database.execute("UPDATE checkpoints SET data = X'37' WHERE name = 'ask-1'")
        database.commit()

    async with SQLiteJournal(path) as journal:
        passing = WorkflowStep("agent", agent(model, turns=2))
        report = await run_pipeline([passing], journal=journal, run_id="r")

    assert report["agent"].output == [0, 10]
    assert model.asked == [0, 1, 1]
    assert "is damaged and was left out: ('agent', 'ask-1')" in caplog.text


PAID = Model()


async def paying():
    step = current_step()
    return [await step.call(f"ask-{turn}", PAID.ask, turn) for turn in range(4)]


@pytest.mark.parametrize("kill", [False, pytest.param(True, marks=pytest.mark.process)])
def test_a_crash_repeats_no_call_but_the_one_under_way(path, kill):
    crashes = crash_everywhere(
        [WorkflowStep("agent", paying)], lambda: SQLiteJournal(path), kill=kill
    )

    assert crashes.status is RunStatus.PASSED
    assert crashes.points == 8  # four events, and four calls
    assert crashes.repeated_calls == {f"agent: ask-{turn}": 1 for turn in range(4)}


async def test_a_test_can_call_an_action_that_makes_calls():
    model = Model()

    with step_context() as said:
        answers = await agent(model)()

    assert answers == [0, 10, 20]
    assert said.calls == ["ask-0", "ask-1", "ask-2"]
