"""Which steps run: conditions and their errors, clean-up steps and targets."""

from __future__ import annotations

import asyncio
import contextvars

import pytest
from memory_journal import MemoryJournal
from results import statuses
from third_party import step_tasks

from asyncflow import (
    Pool,
    StepCancelledError,
    StepCrashedError,
    StepStatus,
    WorkflowStep,
    current_step,
    run_pipeline,
)
from asyncflow.events import AttemptStarted, RunFinished, RunInterrupted, StepSkipped

schedules = pytest.mark.parametrize("schedule", ["tiers", "ready"])
SUCCESS, FAILED, SKIPPED, CANCELLED = (
    StepStatus.SUCCESS,
    StepStatus.FAILED,
    StepStatus.SKIPPED,
    StepStatus.CANCELLED,
)


async def succeed():
    return "done"


async def fail():
    raise ValueError("broken")


async def hang():
    await asyncio.Event().wait()


# Conditions.


async def test_the_condition_of_a_step_that_a_dead_process_started_is_not_called_again():
    calls = []

    def when():
        calls.append(1)
        return len(calls) == 1

    steps = [
        WorkflowStep("source", numbers),
        WorkflowStep("plain", succeed, when=when),
        WorkflowStep("mapped", double, {"number": "source"}, map_over="source", when=when),
    ]
    for name in ("plain", "mapped"):
        calls.clear()
        journal = MemoryJournal()
        chosen = [steps[0], next(step for step in steps if step.name == name)]
        await run_pipeline(chosen, journal=journal, run_id="r")
        assert len(calls) == 1
        begun = next(
            at for at, event in enumerate(journal.stored["r"]) if is_attempt_of(event, name)
        )
        left = journal.died_after(begun + 1)

        report = await run_pipeline(chosen, journal=left, run_id="r")

        assert len(calls) == 1
        assert report[name].status is SUCCESS
        crashed = report[name] if name == "plain" else report[name].items[0]
        assert [type(attempt.error) for attempt in crashed.history] == [
            StepCrashedError,
            type(None),
        ]


async def numbers():
    return [1, 2]


async def double(number):
    return number * 2


def is_attempt_of(event, step):
    return isinstance(event, AttemptStarted) and event.step == step


@schedules
async def test_a_step_whose_condition_is_false_is_skipped_by_condition_with_its_descendants(
    schedule,
):
    def is_large(source):
        return len(source) > 100

    report = await run_pipeline(
        [
            WorkflowStep("source", succeed),
            WorkflowStep("large", succeed, ["source"], when=is_large),
            WorkflowStep("after", succeed, ["large"]),
            WorkflowStep("small", succeed, ["source"], when=lambda source: len(source) < 100),
        ],
        schedule=schedule,
    )

    assert statuses(report) == {
        "source": SUCCESS,
        "large": SKIPPED,
        "small": SUCCESS,
        "after": SKIPPED,
    }
    assert "is_large was not met" in report["large"].reason
    assert report["after"].reason == "it depends on step 'large', which was skipped"
    assert report.all_passed


async def test_a_condition_that_returns_an_awaitable_fails_the_step():
    async def is_large():
        return False

    report = await run_pipeline([WorkflowStep("a", succeed, when=lambda: is_large())])

    assert statuses(report) == {"a": FAILED}
    assert str(report["a"].error).startswith("the condition of step 'a' returned coroutine, which")


async def test_a_condition_receives_inputs_and_is_called_once_before_the_first_attempt():
    calls = []

    def when(dry_run):
        calls.append(dry_run)
        return not dry_run

    async def flaky():
        if current_step().attempt == 1:
            raise ValueError

    step = WorkflowStep("a", flaky, when=when, max_retries=2)

    for dry_run in (True, False):
        await run_pipeline([step], inputs={"dry_run": dry_run})

    assert calls == [True, False]


@pytest.mark.exact_time
@pytest.mark.parametrize("limit", [{"pool": Pool(1)}, {"max_concurrency": 1}], ids=str)
async def test_a_condition_is_asked_when_the_turn_of_its_step_comes_and_waits_for_nothing(limit):
    pool, max_concurrency, asked = limit.get("pool"), limit.get("max_concurrency"), []

    def when(name, is_met):
        def ask():
            asked.append(name)
            return is_met

        return ask

    async def hold():
        await asyncio.sleep(10)

    report = await run_pipeline(
        [
            WorkflowStep("start", succeed),
            WorkflowStep("hold", hold, ["start"], pool=pool, timeout_ms=None),
            WorkflowStep("courier", succeed, ["start"], pool=pool, when=when("courier", False)),
            WorkflowStep("later", succeed, ["start"], pool=pool, when=when("later", True)),
            WorkflowStep(
                "invoice",
                succeed,
                ["start", "courier"],
                pool=pool,
                run_if="unless_failed",
                when=when("invoice", False),
            ),
        ],
        schedule="ready",
        max_concurrency=max_concurrency,
    )

    assert asked == ["courier", "later", "invoice"]
    assert report.all_passed
    assert report["later"].queued_ms == pytest.approx(10_000)
    skipped = [event for event in report.events() if isinstance(event, StepSkipped)]
    assert [(each.step, each.at_ms) for each in skipped] == [("courier", 0), ("invoice", 0)]


async def test_no_step_starts_unasked_behind_conditions_that_skip_a_whole_tier():
    asked = []

    def refuse(name):
        return lambda: asked.append(name)

    report = await run_pipeline(
        [
            WorkflowStep("a", succeed, when=refuse("a")),
            WorkflowStep("b", succeed, ["a"], run_if="always", when=refuse("b")),
            WorkflowStep("c", succeed, ["b"], run_if="always", when=refuse("c")),
        ]
    )

    assert asked == ["a", "b", "c"]
    assert {*statuses(report).values()} == {SKIPPED}


async def test_a_third_party_that_cancels_an_unstarted_task_does_not_repeat_the_condition():
    calls, attacked = [], []

    async def attacker():
        attacked.extend(step_tasks() - {asyncio.current_task()})
        for task in attacked:
            task.cancel()

    report = await run_pipeline(
        [
            WorkflowStep("attacker", attacker),
            WorkflowStep("a", succeed, when=lambda: calls.append(1) or True),
        ]
    )

    assert report.all_passed
    assert calls == [1]
    # An eager victim has ended before the attack.
    assert attacked or asyncio.get_running_loop().get_task_factory()


class Unanswerable:
    def __bool__(self):
        raise KeyError("neither")


def raise_key_error():
    raise KeyError("neither")


@pytest.mark.parametrize("when", [raise_key_error, Unanswerable])
@pytest.mark.parametrize("limit", [None, 1])
async def test_a_condition_that_raises_fails_the_step_with_its_error(when, limit):
    report = await run_pipeline(
        [
            WorkflowStep("a", succeed, when=when, max_retries=5),
            WorkflowStep("b", succeed, ["a"]),
            WorkflowStep("c", succeed),
        ],
        fail_fast=False,
        max_concurrency=limit,
    )

    assert statuses(report) == {"a": FAILED, "b": SKIPPED, "c": SUCCESS}
    assert isinstance(report["a"].error, KeyError)
    assert report["a"].attempts == 0


async def test_a_condition_that_raises_a_cancellation_fails_only_its_step():
    def when():
        raise asyncio.CancelledError

    report = await run_pipeline([WorkflowStep("a", succeed, when=when)])

    assert isinstance(report["a"].error, StepCancelledError)
    assert asyncio.current_task().cancelling() == 0


async def test_a_condition_that_raises_a_base_exception_interrupts_the_run():
    events = []

    def when():
        raise KeyboardInterrupt("here")

    with pytest.raises(KeyboardInterrupt, match="here"):
        await run_pipeline(
            [WorkflowStep("a", succeed, when=when), WorkflowStep("b", hang)],
            observers=[events.append],
        )

    assert any(isinstance(event, RunInterrupted) for event in events)
    assert isinstance(events[-1], RunFinished)


async def test_a_condition_changes_no_context():
    variable = contextvars.ContextVar("variable", default="untouched")

    async def read():
        return variable.get()

    report = await run_pipeline(
        [
            WorkflowStep("a", read, when=lambda: variable.set("dirty")),
            WorkflowStep("b", read, ["a"]),
        ]
    )

    assert [result.output for result in report.results] == ["untouched", "untouched"]


# Clean-up steps.


@schedules
@pytest.mark.parametrize("fail_fast", [True, False])
@pytest.mark.parametrize("action", [succeed, fail])
async def test_run_if_decides_whether_a_clean_up_step_runs(schedule, fail_fast, action):
    report = await run_pipeline(
        [
            WorkflowStep("a", action),
            WorkflowStep("success", succeed, ["a"]),
            WorkflowStep("failure", succeed, ["a"], run_if="failure"),
            WorkflowStep("always", succeed, ["a"], run_if="always"),
        ],
        fail_fast,
        schedule=schedule,
    )

    failed = action is fail
    assert statuses(report) == {
        "a": FAILED if failed else SUCCESS,
        "success": SKIPPED if failed else SUCCESS,
        "failure": SUCCESS if failed else SKIPPED,
        "always": SUCCESS,
    }
    assert report.all_passed == (not failed)


@schedules
async def test_clean_up_starts_after_the_cancelled_siblings_have_ended(schedule):
    log = []

    async def slow_to_end():
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.005)
            log.append("sibling ended")

    async def fail_soon():
        await asyncio.sleep(0.001)
        raise ValueError

    async def clean_up():
        log.append("clean-up")

    await run_pipeline(
        [
            WorkflowStep("a", fail_soon),
            WorkflowStep("sibling", slow_to_end),
            WorkflowStep("clean up", clean_up, ["a"], run_if="always"),
        ],
        schedule=schedule,
    )

    assert log == ["sibling ended", "clean-up"]


@schedules
async def test_clean_up_without_dependencies_waits_for_all_other_steps_and_sees_them(schedule):
    seen = {}

    async def notify(**outputs):
        seen.update(outputs)
        seen["results"] = {n: r.status for n, r in current_step().results.items()}

    report = await run_pipeline(
        [
            WorkflowStep("notify", notify, run_if="failure"),
            WorkflowStep("a", succeed),
            WorkflowStep("b", fail, ["a"]),
            WorkflowStep("c", succeed, ["b"]),
        ],
        schedule=schedule,
    )

    assert seen == {"results": {"a": SUCCESS, "b": FAILED, "c": SKIPPED}}
    assert report["notify"].depends_on == ("a", "b", "c")


async def test_a_missing_output_is_passed_as_none():
    async def clean_up(a, b):
        return a, b, {name: result.error for name, result in current_step().results.items()}

    report = await run_pipeline(
        [
            WorkflowStep("a", succeed),
            WorkflowStep("b", fail),
            WorkflowStep("clean up", clean_up, ["a", "b"], run_if="always"),
        ]
    )

    assert report["clean up"].output == ("done", None, {"a": None, "b": report["b"].error})


# Joins.


@schedules
async def test_a_join_runs_after_a_skipped_branch_with_defaults_for_missing_outputs(schedule):
    asked = []

    async def join(a, b, c="skipped", *, d="skipped"):
        return a, b, c, d, dict(current_step().results)

    def when(a, b, c="skipped"):
        asked.append((a, b, c))
        return True

    join_step = WorkflowStep("join", join, ["a", "b", "c", "d"], run_if="unless_failed", when=when)
    report = await run_pipeline(
        [
            WorkflowStep("a", succeed),
            WorkflowStep("b", fail, ["a"], when=lambda a: False),
            WorkflowStep("c", fail, ["b"]),
            WorkflowStep("d", succeed, ["a"]),
            join_step,
            WorkflowStep("next", succeed, ["join"]),
        ],
        schedule=schedule,
    )

    assert report.all_passed
    assert report["join"].output == ("done", None, "skipped", "done", {})
    assert asked == [("done", None, "skipped")]
    assert report["next"].status is SUCCESS
    assert not join_step.is_cleanup


@schedules
async def test_a_join_is_an_ordinary_step_when_the_run_stops(schedule):
    join = {"run_if": "unless_failed", "timeout_ms": None}
    steps = [
        WorkflowStep("a", succeed),
        WorkflowStep("b", fail, when=lambda: False),
        WorkflowStep("running", hang, ["a", "b"], **join),
        WorkflowStep("late", hang, ["a", "running"], **join),
    ]

    timed_out = await run_pipeline(steps, schedule=schedule, deadline_ms=100)
    failed = await run_pipeline(
        [*steps, WorkflowStep("bad", fail, ["a"])], schedule=schedule, fail_fast=True
    )

    for report in timed_out, failed:
        assert [report[name].status for name in ("running", "late")] == [CANCELLED, SKIPPED]
        assert report["late"].reason == report["running"].reason == report.stop_reason
    assert timed_out.stop_reason == "the run exceeded its deadline of 100 ms"


@schedules
async def test_a_join_whose_items_a_condition_skipped_is_skipped_by_condition(schedule):
    items = {"map_over": "b", "parameters": {"number": "b"}}
    report = await run_pipeline(
        [
            WorkflowStep("a", succeed),
            WorkflowStep("b", numbers, when=lambda: False),
            WorkflowStep("join", double, ["a", "b"], run_if="unless_failed", **items),
        ],
        schedule=schedule,
    )

    assert report.all_passed
    assert (report["join"].status, report["join"].by_condition) == (SKIPPED, True)
    assert report["join"].reason == "its items depend on step 'b', which was skipped"


@schedules
@pytest.mark.parametrize("fail_fast", [True, False])
async def test_clean_up_waits_for_the_clean_up_it_depends_on_whatever_was_skipped(
    schedule, fail_fast
):
    log = []

    async def first():
        await asyncio.sleep(0.005)
        log.append("first ended")
        return "first"

    async def second(first):
        log.append(f"second got {first}")

    report = await run_pipeline(
        [
            WorkflowStep("a", fail),
            WorkflowStep("first", first, ["a"], run_if="always"),
            WorkflowStep("second", second, ["first"], run_if="always"),
            WorkflowStep("x", succeed, ["a"]),
            WorkflowStep("y", succeed, ["x"]),
            WorkflowStep("after first", succeed, ["first"]),
        ],
        fail_fast,
        schedule=schedule,
    )

    assert log == ["first ended", "second got first"]
    assert (report["after first"].status is SKIPPED) == fail_fast


@pytest.mark.exact_time
@schedules
async def test_clean_up_runs_after_the_runs_deadline_with_its_own_limits(schedule):
    async def clean_up():
        await asyncio.sleep(0.02)
        return "cleaned"

    report = await run_pipeline(
        [
            WorkflowStep("a", hang),
            WorkflowStep("clean up", clean_up, ["a"], run_if="failure", timeout_ms=1_000),
        ],
        schedule=schedule,
        deadline_ms=10,
    )

    assert statuses(report) == {"a": CANCELLED, "clean up": SUCCESS}


@pytest.mark.exact_time
@schedules
async def test_a_deadline_that_passes_during_clean_up_stops_nothing(schedule):
    async def clean_up():
        await asyncio.sleep(0.15)
        return "cleaned"

    report = await run_pipeline(
        [WorkflowStep("a", succeed), WorkflowStep("clean up", clean_up, ["a"], run_if="always")],
        schedule=schedule,
        deadline_ms=100,
    )

    assert report["clean up"].output == "cleaned"
    assert report.stop_reason is None


@schedules
@pytest.mark.parametrize("interruption", ["caller", "interrupt"])
async def test_clean_up_is_cancelled_only_if_the_run_is_interrupted(schedule, interruption):
    begun, ended = asyncio.Event(), []

    async def clean_up():
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("cancelled")

    async def interrupt():
        await begun.wait()
        raise KeyboardInterrupt

    steps = [
        WorkflowStep("a", fail),
        WorkflowStep("clean up", clean_up, ["a"], run_if="always", timeout_ms=None),
        WorkflowStep("never", clean_up, ["clean up"], run_if="always"),
    ]
    if interruption == "interrupt":
        steps.append(WorkflowStep("interrupt", interrupt, ["a"], run_if="always"))
        with pytest.raises(KeyboardInterrupt):
            await run_pipeline(steps, schedule=schedule)
    else:
        run = asyncio.ensure_future(run_pipeline(steps, schedule=schedule))
        await begun.wait()
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run

    assert ended == ["cancelled"]


@schedules
async def test_a_failed_clean_up_step_does_not_stop_other_clean_up_steps(schedule):
    report = await run_pipeline(
        [
            WorkflowStep("a", fail),
            WorkflowStep("bad", fail, ["a"], run_if="always", max_retries=2),
            WorkflowStep("good", succeed, ["a"], run_if="always"),
        ],
        schedule=schedule,
    )

    assert statuses(report) == {"a": FAILED, "bad": FAILED, "good": SUCCESS}
    assert report["bad"].attempts == 2


# Targets.


async def test_only_the_targets_and_their_dependencies_run():
    ran = []

    def step(name, *needs, **options):
        async def action():
            ran.append(name)

        return WorkflowStep(name, action, needs, **options)

    steps = [
        step("extract"),
        step("transform", "extract"),
        step("load", "transform"),
        step("other"),
        step("notify", run_if="always"),
    ]

    report = await run_pipeline(steps, targets=["transform"])

    assert ran == list(report) == ["extract", "transform"]


async def test_a_step_without_results_cannot_leave_any_for_others():
    async def write():
        current_step().results["x"] = None

    async def read():
        return dict(current_step().results)

    steps = [WorkflowStep(each.__name__, each, deadline_ms=100) for each in (write, read)]
    report = await run_pipeline(steps, fail_fast=False)

    assert isinstance(report["write"].error, TypeError)
    assert report["read"].output == {}
