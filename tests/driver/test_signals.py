"""Steps that wait for signals, in one process: what is sent, deadlines, tiers and stops."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from functools import partial

import pytest
from approvals import orders
from memory_journal import MemoryJournal
from results import statuses

from asyncflow import (
    Orchestrator,
    PayloadError,
    Pipeline,
    Retry,
    RunCancelledError,
    RunStatus,
    Signal,
    StepStatus,
    StepTimeoutError,
    WorkflowStep,
    after,
    current_step,
    run_pipeline,
)
from asyncflow.events import RunFinished, SignalReceived, StepSkipped, StepSucceeded, StepWaiting
from asyncflow.testing import fake

SUCCESS, FAILED, SKIPPED = StepStatus.SUCCESS, StepStatus.FAILED, StepStatus.SKIPPED
each_schedule = pytest.mark.parametrize("schedule", ["tiers", "ready"])


async def nothing():
    return "done"


async def fail():
    raise ValueError("broken")


async def until_waiting(run, *names):
    """Wait until the steps of these names wait."""
    waiting = set(names)
    async for event in run.events():
        if isinstance(event, StepWaiting):
            waiting.discard(event.step)
            if not waiting:
                return


@each_schedule
async def test_the_output_of_a_signal_is_what_is_sent(schedule):
    async with orders().with_options(schedule=schedule).start() as run:
        await until_waiting(run, "approved")
        await run.signal("approved", True)
        report = await run.report()

    assert report["publish"].output == "draft: True"
    assert (report["approved"].status, report["approved"].attempts) == (SUCCESS, 0)
    assert report.status is RunStatus.PASSED
    assert report["approved"].waiting_since is None


async def test_a_signal_that_comes_before_its_turn_is_kept():
    async with orders().start() as run:
        await run.signal("approved", True)
        report = await run.report()

    assert report["publish"].output == "draft: True"


async def test_the_first_value_counts_and_the_same_value_again_is_no_error():
    pipeline = orders()
    pipeline.signal("closed", str, depends_on=["publish"])
    async with pipeline.start() as run:
        await run.signal("approved", True)
        await run.signal("approved", True)
        with pytest.raises(ValueError, match=r"'approved'.* has another value"):
            await run.signal("approved", False)
        await until_waiting(run, "closed")
        await run.signal("approved", True)
        with pytest.raises(ValueError, match=r"'approved'.* has another value"):
            await run.signal("approved", False)
        await run.signal("closed", "yes")
        report = await run.report()

    assert report["publish"].output == "draft: True"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("aproved", True, r"waits for no signal 'aproved' \(did you mean 'approved'\?\)"),
        ("publish", True, "waits for no signal 'publish'"),
        ("approved", "yes", "signal 'approved' must be of type boolean, not \"yes\""),
        ("approved", 1, "signal 'approved' must be of type boolean, not 1"),
    ],
)
async def test_an_unknown_name_and_a_value_of_another_type_are_refused(name, value, message):
    async with orders().start() as run:
        with pytest.raises(ValueError, match=message):
            await run.signal(name, value)
        await run.signal("approved", True)
        await run.report()

    with pytest.raises(ValueError, match="is not running"):
        await run.signal("approved", True)


@each_schedule
async def test_a_waiting_step_holds_up_no_tier(schedule):
    pipeline = orders()

    @pipeline.step
    async def first() -> int:
        await asyncio.sleep(0.01)
        return 1

    @pipeline.step
    async def second(first: int = after(first)) -> int:
        await asyncio.sleep(0.01)
        return first + 1

    @pipeline.step
    async def third(second: int = after(second)) -> int:
        return second + 1

    async with pipeline.with_options(schedule=schedule).start() as run:
        async for result in run.results():
            if result.step_name == "third":
                break
        assert run.status is RunStatus.RUNNING
        await run.signal("approved", False)
        report = await run.report()

    assert report["third"].output == 3
    assert report["publish"].output == "draft: False"


async def test_a_waiting_step_takes_no_place_of_max_concurrency():
    pipeline = orders()
    pipeline.step(nothing, name="other", depends_on=["draft"])
    async with pipeline.with_options(max_concurrency=1).start() as run:
        async for result in run.results():
            if result.step_name == "other":
                break
        await run.signal("approved", True)
        assert (await run.report()).all_passed


async def test_a_condition_that_is_not_met_asks_nobody():
    report = await orders(when=lambda draft: draft == "long").run()

    assert statuses(report) == {"draft": SUCCESS, "approved": SKIPPED, "publish": SKIPPED}
    assert report.all_passed


# Deadlines.


@pytest.mark.exact_time
async def test_a_signal_whose_deadline_expires_fails_its_step():
    report = await orders(deadline_ms=500).run()

    error = report["approved"].error
    assert isinstance(error, StepTimeoutError)
    assert (error.step_name, error.attempt, error.timeout_ms, error.kind) == (
        *("approved", 0, 500, "step"),
    )
    assert statuses(report) == {"draft": SUCCESS, "approved": FAILED, "publish": SKIPPED}
    assert report.total_duration_ms == pytest.approx(500)


async def test_a_deadline_that_expires_has_the_default_or_the_fallback():
    report = await orders(deadline_ms=5, default=False).run()
    other = await orders(deadline_ms=5, fallback=lambda error: error.attempt == 0).run()

    assert report["publish"].output == "draft: False"
    assert report["approved"].fell_back
    assert other["publish"].output == "draft: True"


def refuses(draft):
    raise LookupError("no such draft")


@pytest.mark.parametrize("make_journal", [lambda: None, MemoryJournal])
@pytest.mark.parametrize(
    ("when", "why"),
    [
        (lambda draft: False, "its condition was not met"),
        (refuses, "no such draft"),
    ],
)
async def test_a_signal_whose_step_has_ended_without_it_is_refused(make_journal, when, why):
    pipeline = orders(when=when)

    @pipeline.step
    async def slow():
        await asyncio.sleep(1)

    refusal = f"signal 'approved' of run 'r' takes no value any more: {why}"
    options = pipeline.with_options(run_id="r", fail_fast=False, journal=make_journal())
    async with options.start() as run:
        await asyncio.sleep(0.5)
        with pytest.raises(ValueError, match=f"^{refusal}$"):
            await run.signal("approved", True)
        report = await run.report()

    assert report["publish"].status is SKIPPED


@pytest.mark.parametrize("default", ["no", 1, None])
def test_a_default_of_another_type_is_refused_when_the_signal_is_made(default):
    with pytest.raises(TypeError, match="the default of signal 'approved' must be of type boolean"):
        orders(deadline_ms=5, default=default)


async def test_a_fallback_of_another_type_fails_its_step():
    report = await orders(deadline_ms=5, fallback=lambda error: "no").run()
    stored = orders(deadline_ms=5, fallback=lambda error: object())
    with_journal = await stored.with_options(journal=MemoryJournal()).run()

    error = report["approved"].error
    assert isinstance(error, TypeError)
    assert "the fallback of signal 'approved' must be of type boolean" in str(error)
    assert isinstance(error.__context__, StepTimeoutError)
    assert isinstance(with_journal["approved"].error, TypeError)


async def test_plain_data_as_a_default_becomes_an_instance():
    pipeline = Pipeline("p")
    pipeline.signal("rate", float, deadline_ms=5, default=1)

    assert repr((await pipeline.run())["rate"].output) == "1.0"


@pytest.mark.parametrize("journal", [None, MemoryJournal()])
@pytest.mark.parametrize("fallback", [None, lambda error: 1 / 0])
async def test_an_answer_after_the_deadline_comes_too_late(fallback, journal):
    pipeline = orders(deadline_ms=5, fallback=fallback)

    @pipeline.step
    async def slow():
        await asyncio.sleep(1)

    async with pipeline.with_options(fail_fast=False, journal=journal).start() as run:
        await asyncio.sleep(0.5)
        with pytest.raises(ValueError, match="comes too late: its deadline has expired"):
            await run.signal("approved", True)
        report = await run.report()

    assert report["approved"].status is FAILED


async def test_a_fallback_that_raises_fails_its_step():
    def fallback(error):
        raise LookupError("nobody") from error

    report = await orders(deadline_ms=5, fallback=fallback).run()

    assert isinstance(report["approved"].error, LookupError)


async def test_a_fallback_that_ends_programs_ends_the_run():
    def fallback(error):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        await orders(deadline_ms=5, fallback=fallback).run()


@pytest.mark.exact_time
@pytest.mark.long_time
async def test_in_virtual_time_a_deadline_of_two_days_expires_at_once():
    report = await orders(deadline_ms=2 * 86_400_000, default=False).run()

    assert report["publish"].output == "draft: False"
    assert report.total_duration_ms == pytest.approx(2 * 86_400_000)


@pytest.mark.exact_time
async def test_a_run_deadline_does_not_count_while_nothing_but_waits_is_left():
    pipeline = orders()

    @pipeline.step(depends_on=["publish"])
    async def slow():
        await asyncio.sleep(0.15)

    async with pipeline.with_options(deadline_ms=200).start() as run:
        await asyncio.sleep(5)
        await run.signal("approved", True)
        report = await run.report()
    async with pipeline.with_options(deadline_ms=100).start() as run:
        await asyncio.sleep(5)
        await run.signal("approved", True)
        late = await run.report()

    assert report.status is RunStatus.PASSED
    assert report.total_duration_ms == pytest.approx(5150)
    assert late.status is RunStatus.FAILED
    assert late.total_duration_ms == pytest.approx(5100)


@pytest.mark.exact_time
async def test_a_run_deadline_counts_while_something_else_runs():
    pipeline = orders()

    @pipeline.step
    async def slow():
        await asyncio.sleep(0.5)

    report = await pipeline.with_options(deadline_ms=200).run()

    assert report.total_duration_ms == pytest.approx(200)
    assert report["approved"].status is SKIPPED


# Stops.


async def test_a_failure_elsewhere_skips_what_waits():
    pipeline = orders()
    pipeline.step(fail)

    report = await pipeline.run()

    assert statuses(report) == {
        "draft": SUCCESS,
        "fail": FAILED,
        "approved": SKIPPED,
        "publish": SKIPPED,
    }
    assert report["approved"].reason == "step 'fail' failed and fail_fast is on"


async def test_without_fail_fast_a_failure_elsewhere_lets_it_wait():
    pipeline = orders()
    pipeline.step(fail)
    async with pipeline.with_options(fail_fast=False).start() as run:
        await until_waiting(run, "approved")
        await run.signal("approved", True)
        report = await run.report()

    assert report["publish"].status is SUCCESS
    assert report.status is RunStatus.FAILED


async def test_a_run_that_stays_skips_what_a_failure_has_lost_while_it_waits():
    pipeline, events = orders(), []
    pipeline.step(fail)
    pipeline.step(nothing, name="lost", depends_on=["approved", "fail"])
    pipeline.signal("lost too", bool, depends_on=["lost"])
    pipeline = pipeline.with_options(fail_fast=False, observers=[events.append])
    async with pipeline.start() as run:
        await until_waiting(run, "approved")
        await asyncio.sleep(1)
        skipped = [event.step for event in events if isinstance(event, StepSkipped)]
        await run.signal("approved", True)
        report = await run.report()

    assert skipped == ["lost", "lost too"]
    assert report["lost too"].reason == "it depends on step 'fail', which failed"
    assert report["publish"].status is SUCCESS


async def test_a_cancelled_run_skips_what_waits():
    async with orders().start() as run:
        await until_waiting(run, "approved")
        run.cancel("enough")
        with pytest.raises(RunCancelledError) as raised:
            await run.report()

    assert raised.value.report["approved"].status is SKIPPED


@pytest.mark.parametrize("first", ["stop", "signal"])
async def test_a_stop_and_a_signal_in_one_turn_are_no_illegal_event(first):
    async with orders().start() as run:
        await until_waiting(run, "approved")
        sending = asyncio.ensure_future(run.signal("approved", True))
        if first == "signal":
            await sending
        run.cancel("enough")
        await asyncio.wait([sending])
        try:
            report = await run.report()
        except RunCancelledError as error:
            report = error.report

    assert report.status in (RunStatus.INTERRUPTED, RunStatus.PASSED)  # whichever came first


async def test_a_clean_up_step_runs_at_the_real_end():
    pipeline = orders()
    ended = []

    @pipeline.step(run_if="always")
    async def clean_up():
        ended.append(True)

    async with pipeline.start() as run:
        await until_waiting(run, "approved")
        assert ended == []
        await run.signal("approved", True)
        await run.report()

    assert ended == [True]


async def test_a_parents_time_limit_cuts_a_nested_run_that_waits():
    inner = orders()

    async def outer():
        await inner.run()

    report = await run_pipeline([WorkflowStep("outer", outer, timeout_ms=20)])

    assert isinstance(report["outer"].error, StepTimeoutError)


async def test_an_included_signal_has_the_name_of_its_pipeline_before_its_own():
    outer = Pipeline("outer")
    outer.include(orders(), name="order")
    async with outer.start() as run:
        await until_waiting(run, "order/approved")
        await run.signal("order/approved", True)
        report = await run.report()

    assert report["order"].output == "draft: True"


async def test_the_events_tell_of_the_wait():
    events = []
    async with orders(deadline_ms=1000).with_options(observers=[events.append]).start() as run:
        await until_waiting(run, "approved")
        await run.signal("approved", True)
        await run.report()

    (wait,) = [event for event in events if isinstance(event, StepWaiting)]
    (end,) = [e for e in events if isinstance(e, StepSucceeded) and e.step == "approved"]
    assert wait.until == pytest.approx(wait.since + 1)
    assert (end.attempt, end.output) == (0, True)
    assert isinstance(events[-1], RunFinished)


def asking(description, **options):
    """Return a pipeline whose signal asks like this, and the waits of the runs that it makes."""
    waits = []

    def note(event):
        if isinstance(event, StepWaiting):
            waits.append(event)

    pipeline = Pipeline("orders", observers=[note], **options)

    @pipeline.step
    async def draft(order: str = "tea") -> str:
        return f"offer for {order}"

    pipeline.signal("approved", bool, depends_on=[draft], description=description)
    return pipeline, waits


async def answered(pipeline, **inputs):
    async with pipeline.start(**inputs) as run:
        await run.signal("approved", True)
        return await run.report()


@pytest.mark.parametrize(
    ("description", "text"),
    [
        (None, ""),
        ("May it be sent?", "May it be sent?"),
        (lambda draft: f"Send {draft!r}?", "Send 'offer for jam'?"),
        (lambda draft, order: f"{order}: {draft}", "jam: offer for jam"),
        (lambda order, by="mail": f"{order} by {by}", "jam by mail"),
        (lambda **outputs: str(outputs), "{'draft': 'offer for jam'}"),
        (partial(lambda draft, end: draft + end, end="?"), "offer for jam?"),
        (lambda: "x" * 10_001, "x" * 10_000 + "… (1 more characters)"),
    ],
)
async def test_a_wait_begins_with_what_is_asked(description, text):
    pipeline, waits = asking(description)

    report = await answered(pipeline, order="jam")

    assert report.all_passed
    assert [wait.description for wait in waits] == [text]


async def test_a_description_takes_the_output_that_its_default_names():
    pipeline, waits = Pipeline("orders"), []

    @pipeline.step
    async def draft() -> str:
        return "offer"

    def ask(text: str = after(draft)) -> str:
        return f"Send {text}?"

    pipeline.signal("approved", bool, description=ask)
    outer = Pipeline("outer", observers=[waits.append])
    outer.include(pipeline, name="order")
    async with outer.start() as run:
        await run.signal("order/approved", True)
        await run.report()

    assert [w.description for w in waits if isinstance(w, StepWaiting)] == ["Send offer?"]


def ask_and_fail(draft):
    raise LookupError("no such customer")


@pytest.mark.parametrize(
    ("description", "why"),
    [
        (ask_and_fail, "LookupError: no such customer"),
        (lambda draft: 7, "must return a str, not int"),
        (lambda draft: nothing(), "must be a plain function"),
        (lambda draft: asyncio.current_task().cancelled() or fail_with_a_cancellation(), "Cancel"),
    ],
)
async def test_a_wait_goes_on_without_a_description_that_fails(description, why, caplog):
    pipeline, waits = asking(description)

    report = await answered(pipeline)

    (logged,) = caplog.records
    assert report.all_passed
    assert [wait.description for wait in waits] == [""]
    assert "the description of signal 'approved' failed" in logged.getMessage()
    assert why in caplog.text


def fail_with_a_cancellation():
    raise asyncio.CancelledError


@pytest.mark.parametrize("schedule", ["tiers", "ready"])
async def test_a_description_belongs_to_no_step(schedule):
    found = []

    def ask():
        with pytest.raises(RuntimeError) as error:
            current_step()
        found.append(str(error.value))
        return ""

    pipeline, _ = asking(ask, schedule=schedule)
    await answered(pipeline)

    assert found[0].startswith("current_step() works only while a step's action runs")


class Stop(BaseException):
    """As a `KeyboardInterrupt`, which pytest would take for itself."""


async def test_a_description_that_raises_what_ends_runs_ends_the_run():
    def ask():
        raise Stop("stop")

    pipeline, _ = asking(ask)

    with pytest.raises(Stop, match="stop"):
        await pipeline.run()


@pytest.mark.parametrize("description", [lambda draft, password: f"{draft} {password}?", "s3cret?"])
async def test_secrets_are_replaced_in_a_description(description):
    waits = []
    pipeline = Pipeline("orders", secret_inputs=["password"], observers=[waits.append])

    @pipeline.step(secret=True)
    async def draft(password: str) -> str:
        return "hidden offer"

    pipeline.signal("approved", bool, depends_on=[draft], description=description)
    await answered(pipeline, password="s3cret")

    (wait,) = [event for event in waits if isinstance(event, StepWaiting)]
    assert wait.description in ("<secret> <secret>?", "<secret>?")


async def ask_later() -> str: ...


def ask_by_position(draft, /) -> str: ...


@pytest.mark.parametrize(
    ("description", "error", "message"),
    [
        (7, TypeError, "signal 'approved': description must be a str, a plain function or None"),
        (ask_later, TypeError, "description must be a plain function; what has to be awaited"),
        (ask_by_position, TypeError, "parameter 'draft' of its description is positional-only"),
        ("x" * 10_001, ValueError, "description must have at most 10,000 characters, not 10,001"),
    ],
)
def test_a_description_that_can_not_be_called_is_refused_where_it_is_given(
    description, error, message
):
    with pytest.raises(error, match=message):
        asking(description)


@pytest.mark.parametrize(
    ("description", "inputs", "message"),
    [
        (
            lambda drafft: "",
            {},
            r"nothing provides parameter 'drafft' of the description of step 'approved': .*"
            r"did you mean 'draft'\?",
        ),
        (lambda database: "", {}, "the description of step 'approved' takes resource 'database'"),
        (lambda draft: "", {"draft": "x"}, "'draft' of step 'approved' is provided twice"),
    ],
)
async def test_a_description_whose_data_nothing_provides_is_refused_before_anything_runs(
    description, inputs, message
):
    @asynccontextmanager
    async def database():
        yield

    pipeline, waits = asking(description, resources={"database": database})

    @pipeline.step
    async def load(database, draft_of="mail"): ...

    with pytest.raises(ValueError, match=message):
        await pipeline.run(**inputs)
    assert waits == []


async def test_a_fake_of_a_signal_with_a_description_takes_what_that_takes():
    pipeline, _ = asking(lambda draft: f"Send {draft}?")

    with fake(pipeline, approved=lambda draft: "offer" in draft):
        report = await pipeline.run()

    assert report["approved"].output is True


async def test_without_a_journal_an_answer_has_its_sender_too():
    events = []
    async with orders().with_options(observers=[events.append]).start() as run:
        await run.signal("approved", True, sent_by="Zoë", note="fine")
        await run.signal("approved", True, sent_by="Bob", note="me too")
        await run.report()

    (answer,) = [event for event in events if isinstance(event, SignalReceived)]
    after_it = events[events.index(answer) + 1]
    assert (answer.step, answer.sent_by, answer.note) == ("approved", "Zoë", "fine")
    assert answer.sent_at == pytest.approx(events[0].wall_time)
    assert (type(after_it), after_it.step) == (StepSucceeded, "approved")


# Declarations.


async def test_a_step_without_a_pipeline_waits_for_a_signal_too():
    steps = [WorkflowStep("paid", Signal(int)), WorkflowStep("ship", nothing, ["paid"])]
    async with Orchestrator(steps).start() as run:
        await run.signal("paid", 3)
        report = await run.report()

    assert report["paid"].output == 3


async def test_a_fake_answers_a_signal():
    pipeline = orders(deadline_ms=86_400_000, default=False)
    with fake(pipeline, approved=True):
        report = await pipeline.run()

    assert report["publish"].output == "draft: True"


async def test_a_value_that_the_journal_cannot_store_is_refused_and_the_run_waits_on():
    pipeline = Pipeline("orders")
    pipeline.signal("seats", set[int])
    async with pipeline.with_options(journal=MemoryJournal()).start() as run:
        await until_waiting(run, "seats")
        with pytest.raises(PayloadError, match="is no JSON"):  # this journal knows no sets
            await run.signal("seats", {1, 2})
        run.cancel()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_retries": 2}, "waits for a signal, so max_retries has no effect"),
        ({"secret": True}, "waits for a signal, so secret has no effect"),
        ({"run_if": "always"}, "waits for a signal, so it can't be a clean-up step"),
        ({"fallback": lambda error: 1}, "its fallback or default has no effect"),
    ],
)
def test_what_has_no_effect_on_a_signal_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        WorkflowStep("paid", Signal(int), **options)


def test_a_signal_has_a_default_or_a_fallback():
    with pytest.raises(ValueError, match="a default and a fallback; give one of them"):
        Pipeline("p").signal("paid", int, deadline_ms=1, default=1, fallback=lambda error: 1)


async def test_defaults_of_steps_do_not_apply_to_signals():
    pipeline = Pipeline("p", step_options={"max_retries": 3, "retry": Retry(base_ms=1)})
    pipeline.signal("paid", int)
    async with pipeline.start() as run:
        await run.signal("paid", 3)
        assert (await run.report())["paid"].output == 3


async def test_a_signal_is_called_by_nobody():
    with pytest.raises(RuntimeError, match="<signal paid: int> can't be called"):
        await Pipeline("p").signal("paid", int)()
