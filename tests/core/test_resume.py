"""Resuming decides step by step, along the current pipeline, which stored results are valid."""

from __future__ import annotations

import json

import pytest

from asyncflow import PayloadError, RunStatus, StepStatus, WorkflowStep
from asyncflow._core.fingerprint import fingerprints_of
from asyncflow._core.graph import bind, bind_conditions, plan
from asyncflow._core.replay import StoredRun
from asyncflow._core.results import REDACTED, Payload
from asyncflow._core.resume import resume
from asyncflow.events import (
    AttemptStarted,
    MapStarted,
    RunFinished,
    RunInterrupted,
    RunResumed,
    RunStarted,
    StepFailed,
    StepReused,
    StepSkipped,
    StepSucceeded,
)

BOOM = ValueError("boom")


async def act(**outputs): ...
async def alone(): ...


def step(name, *needs, **options):
    return WorkflowStep(name, options.pop("action", act), needs, **options)


CHAIN = step("a"), step("b", "a"), step("c", "b")


def started(*steps):
    planned = plan(steps)
    return RunStarted("r", 1_000.0, planned.depends_on, "p", fingerprints_of(planned))


def payload(value):
    return Payload("json", json.dumps(value).encode())


def decode(step, payload):
    if payload.data == b'"broken"':
        raise PayloadError(f"the stored output of step {step!r}", "is broken")
    return json.loads(payload.data)


def done(*names, output=1):
    for name in names:
        yield AttemptStarted(name, 1, 1.0)
        yield StepSucceeded(name, 1, 2.0, output if output is REDACTED else payload(output))


def failed(name):
    return [AttemptStarted(name, 1, 1.0), StepFailed(name, 1, 2.0, BOOM)]


def resume_with(events, *steps, fail_fast=True, new_inputs=()):
    """Return the `RunResumed` event, which the stored run has applied, and the checkpoint."""
    planned = plan(steps)
    run = events if isinstance(events, StoredRun) else StoredRun(events)
    return resume(
        run,
        planned,
        bindings=bind(planned, new_inputs),
        conditions=bind_conditions(planned, new_inputs),
        new_inputs=new_inputs,
        fail_fast=fail_fast,
        wall_time=2_000.0,
        process="host:1",
        decode=decode,
    )


def restored(checkpoint):
    return sorted(name for name, item in checkpoint.restored if item is None)


def test_completed_steps_are_restored_and_the_others_resume():
    event, checkpoint = resume_with(
        [started(*CHAIN), *done("a"), AttemptStarted("b", 1, 3.0)], *CHAIN
    )

    assert (event.run_id, event.at_ms, event.wall_time) == ("r", 3.0, 2_000.0)
    assert (event.outdated, event.unfinished) == ({}, {"b": "it had not finished"})
    assert not event.afresh
    assert restored(checkpoint) == ["a"]
    assert checkpoint.restored["a", None].output == 1
    assert checkpoint.pending_attempts["b", None].crashes == 1
    assert event.rerun_reasons == {"b": "it had not finished"}
    assert (checkpoint.run_id, checkpoint.wall_time, checkpoint.at_ms) == ("r", 1_000.0, 3.0)


@pytest.mark.parametrize(
    ("more", "fail_fast", "afresh"),
    [
        ([], True, False),
        (failed("b"), False, False),
        (failed("b"), True, True),
        ([*failed("b"), RunFinished(3.0, RunStatus.FAILED)], False, True),
        ([RunInterrupted(3.0, "why")], False, True),
        ([StepSkipped("b", 3.0, "the run stopped")], False, True),
    ],
)
def test_a_run_that_had_ended_or_was_stopping_starts_afresh(more, fail_fast, afresh):
    event, checkpoint = resume_with(
        [started(*CHAIN), *done("a"), *more], *CHAIN, fail_fast=fail_fast
    )

    assert event.afresh is afresh
    assert "a" in restored(checkpoint)
    assert ("b" in restored(checkpoint)) is (not afresh and more != [])


def test_a_step_that_a_failure_skipped_stays_skipped_when_the_run_resumes():
    events = [
        started(*CHAIN),
        *failed("a"),
        StepSkipped("b", 2.0, "so"),
        StepSkipped("c", 2.0, "so"),
    ]

    event, checkpoint = resume_with(events, *CHAIN, fail_fast=False)

    assert restored(checkpoint) == ["a", "b", "c"]
    assert event.unfinished == {}
    assert checkpoint.restored["c", None].status is StepStatus.SKIPPED


@pytest.mark.parametrize(
    ("b", "reason"),
    [
        (step("b", "a", version="2"), "its version is '2', and was ''"),
        (step("b", "a", action=alone), "its action asks for (), and asked for (**)"),
        (step("b"), "its action asks for (), and asked for (**)"),
        (step("b", "a", "n"), "it depends on 'a', 'n', and depended on 'a'"),
    ],
)
def test_a_changed_step_is_outdated_with_its_dependents(b, reason):
    a, _, c = CHAIN

    event, checkpoint = resume_with([started(*CHAIN), *done("a", "b", "c")], a, b, c, step("n"))

    assert event.outdated == {"b": reason, "c": "step 'b', which it depends on, runs again"}
    assert restored(checkpoint) == ["a"]


def test_a_step_that_lost_its_dependencies_is_outdated():
    before = step("a"), WorkflowStep("b", alone, ["a"])

    event, _ = resume_with([started(*before), *done("a", "b")], step("a"), WorkflowStep("b", alone))

    assert event.outdated == {"b": "it depends on nothing, and depended on 'a'"}


def test_an_unreadable_output_is_an_error_and_does_not_rerun_its_step():
    events = [started(*CHAIN), *done("a", output="broken"), *done("b")]

    with pytest.raises(PayloadError, match=r"output of step 'a' is broken; nothing has run: .*'a'"):
        resume_with(events, *CHAIN)


def test_the_output_of_an_outdated_step_is_not_read():
    events = [started(*CHAIN), *done("a", output="broken"), *done("b")]

    event, checkpoint = resume_with(events, step("a", version="2"), *CHAIN[1:])

    assert event.outdated.keys() == {"a", "b"}
    assert restored(checkpoint) == []


def test_a_new_input_outdates_the_steps_that_take_it():
    async def limited(limit=0): ...

    steps = step("a", action=limited), step("b", "a"), step("c")

    event, checkpoint = resume_with(
        [started(*steps), *done("a", "b", "c")], *steps, new_inputs=["limit"]
    )

    assert event.outdated == {
        "a": "the run did not have the input 'limit' before",
        "b": "step 'a', which it depends on, runs again",
    }
    assert restored(checkpoint) == ["c"]


def test_a_later_success_replaces_an_earlier_secret_one():
    secret, plain = step("a", secret=True), step("a")
    run = StoredRun([started(secret, *CHAIN[1:]), *done("a", output=REDACTED), *failed("b")])
    event, _ = resume_with(run, plain, *CHAIN[1:])
    assert event.recalled == ("a",)
    for each in [*done("a"), *failed("b"), RunFinished(3.0, RunStatus.FAILED)]:
        run.apply(each)

    event, checkpoint = resume_with(run, plain, *CHAIN[1:])

    assert event.recalled == ()
    assert restored(checkpoint) == ["a"]


def test_a_step_that_ran_after_a_failure_is_outdated_although_the_fixed_run_lacked_it():
    steps = step("z"), step("tell", "z", run_if="always")
    run = StoredRun(
        [started(*steps), *failed("z"), *done("tell"), RunFinished(3.0, RunStatus.FAILED)]
    )
    resume_with(run, steps[0])
    for each in [*done("z"), RunFinished(4.0, RunStatus.PASSED)]:
        run.apply(each)

    _, checkpoint = resume_with(run, *steps)

    assert restored(checkpoint) == ["z"]


def test_a_condition_is_asked_again_but_its_skip_outdates_nothing():
    steps = (
        step("a", secret=True),
        step("b", "a", when=lambda a: False),
        step("told", "b", run_if="always"),
    )
    run = StoredRun(
        [
            started(*steps),
            *done("a", output=REDACTED),
            StepSkipped("b", 2.0, "no", by_condition=True),
            *done("told"),
            RunInterrupted(3.0, "why"),
        ]
    )

    for _ in range(2):
        event, checkpoint = resume_with(run, *steps)

        assert (event.outdated, event.unfinished) == ({}, {})
        assert event.recalled == ("a",)
        assert restored(checkpoint) == ["told"]

        run.apply(RunInterrupted(4.0, "why"))


def test_new_steps_have_no_rerun_reason_and_removed_steps_are_dropped():
    event, checkpoint = resume_with(
        [started(*CHAIN), *done("a"), AttemptStarted("b", 1, 3.0)], CHAIN[0], step("n", "a")
    )

    assert (event.outdated, event.unfinished) == ({}, {})
    assert restored(checkpoint) == ["a"]
    assert checkpoint.pending_attempts == {}


def test_a_clean_up_step_without_dependencies_runs_again_after_all_others():
    steps = step("a"), step("b"), step("end", run_if="always")
    event, checkpoint = resume_with(
        [started(*steps), *done("a"), *failed("b"), *done("end")], *steps
    )

    assert event.outdated == {"end": "step 'b', which it depends on, runs again"}
    assert restored(checkpoint) == ["a"]


class TestSecrets:
    def steps(self, *, last=act, **options):
        return [
            step("login", secret=True),
            step("use", "login"),
            step("last", "use", "login", action=last, **options),
        ]

    def test_a_secret_that_is_needed_is_recalled(self):
        steps = self.steps()
        event, checkpoint = resume_with(
            [started(*steps), *done("login", output=REDACTED), *done("use")], *steps
        )

        assert event.recalled == ("login",)
        assert restored(checkpoint) == ["use"]
        assert "is secret" in event.rerun_reasons["login"]

    def test_a_secret_that_only_a_condition_takes_is_recalled_too(self):
        steps = self.steps(last=alone, when=lambda login: True)
        event, _ = resume_with(
            [started(*steps), *done("login", output=REDACTED), *done("use")], *steps
        )

        assert event.recalled == ("login",)

    def test_a_secret_that_no_step_takes_is_not_recalled(self):
        steps = self.steps(last=alone)
        event, checkpoint = resume_with(
            [started(*steps), *done("login", output=REDACTED), *done("use")], *steps
        )

        assert event.recalled == ()
        assert restored(checkpoint) == ["login", "use"]

    def test_the_secrets_that_a_recalled_step_takes_are_recalled_too(self):
        steps = step("key", secret=True), step("login", "key", secret=True), step("use", "login")
        event, checkpoint = resume_with(
            [started(*steps), *done("key", "login", output=REDACTED)], *steps
        )

        assert event.recalled == ("key", "login")
        assert restored(checkpoint) == []

    def items(self, step_name, output, *numbers):
        yield MapStarted(step_name, 2.0)
        for item in numbers:
            yield AttemptStarted(step_name, 1, 2.0, item=item)
            yield StepSucceeded(step_name, 1, 3.0, output, item)

    def test_items_of_a_recalled_source_are_not_restored(self):
        steps = step("ids", secret=True), step("fetch", "ids", map_over="ids")
        events = [
            *(started(*steps), *done("ids", output=REDACTED)),
            *self.items("fetch", payload(1), 0),
        ]
        event, checkpoint = resume_with(events, *steps)

        assert event.recalled == ("ids",)
        assert checkpoint.restored == {}

    @pytest.mark.parametrize(("is_needed", "recalled"), [(True, ("fetch",)), (False, ())])
    def test_secret_items_are_restored_if_no_step_takes_them(self, is_needed, recalled):
        steps = [step("ids"), step("fetch", "ids", map_over="ids", secret=True)]
        if is_needed:
            steps.append(step("use", "fetch"))
        events = [started(*steps), *done("ids", output=[1, 2]), *self.items("fetch", REDACTED, 0)]
        event, checkpoint = resume_with(events, *steps)

        assert event.recalled == recalled
        assert (("fetch", 0) in checkpoint.restored) is not is_needed

    def test_an_outdated_step_is_not_recalled(self):
        steps = self.steps()
        events = [started(*steps), *done("login", output=REDACTED), *done("use")]
        event, _ = resume_with(events, step("login", secret=True, version="2"), *steps[1:])

        assert event.outdated.keys() == {"login", "use"}
        assert event.recalled == ()


def test_a_run_resumes_three_times_with_changing_pipelines():
    run = StoredRun([started(*CHAIN), *done("a", "b"), AttemptStarted("c", 1, 3.0)])
    a, b, c = CHAIN

    # The pipeline has no step c.
    event, checkpoint = resume_with(run, a, b)
    assert restored(checkpoint) == ["a", "b"]
    assert (event.outdated, event.unfinished) == ({}, {})

    # It has c again, and b has changed.
    b2 = step("b", "a", version="2")
    event, checkpoint = resume_with(run, a, b2, c)
    assert restored(checkpoint) == ["a"]
    assert event.outdated.keys() == {"b", "c"}
    assert checkpoint.pending_attempts == {}
    for each in (StepReused("a", 3.0), *done("b")):
        run.apply(each)

    # a has changed too.
    event, checkpoint = resume_with(run, step("a", version="3"), b2, c)
    assert restored(checkpoint) == []
    assert event.outdated.keys() == {"a", "b", "c"}
    assert isinstance(event, RunResumed)


def test_targets_do_not_change_the_stored_results_of_other_steps():
    run = StoredRun([started(*CHAIN), *done("a", "b", "c")])
    planned = plan(CHAIN, ["b"])
    options = {"fail_fast": True, "wall_time": 2.0, "process": "", "decode": decode}

    _, checkpoint = resume(
        run,
        planned,
        bindings=bind(planned),
        conditions={},
        new_inputs=(),
        **options,
    )
    assert restored(checkpoint) == ["a", "b"]

    _, checkpoint = resume_with(run, *CHAIN)
    assert restored(checkpoint) == ["a", "b", "c"]
