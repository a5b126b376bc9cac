"""Resuming decides step by step, along the current pipeline, which stored results are valid."""

from __future__ import annotations

import json

import pytest

from asyncflow import PayloadError, RunStatus, StepStatus, WorkflowStep
from asyncflow._core.history.replay import StoredRun
from asyncflow._core.history.results import REDACTED, Payload
from asyncflow._core.history.resume import resume
from asyncflow._core.pipeline.fingerprint import fingerprints_of
from asyncflow._core.pipeline.graph import plan
from asyncflow.events import (
    AttemptStarted,
    MapStarted,
    RunFinished,
    RunInterrupted,
    RunStarted,
    StepFailed,
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
    """Return the `RunResumed` event, which the stored run has applied, and the snapshot."""
    planned = plan(steps)
    run = events if isinstance(events, StoredRun) else StoredRun(events)
    return resume(
        run,
        planned,
        bindings=planned.bindings(set(new_inputs)),
        new_inputs=new_inputs,
        missing_steps={},
        fail_fast=fail_fast,
        wall_time=2_000.0,
        process="host:1",
        decode=decode,
    )


def restored(snapshot):
    return sorted(name for name, item in snapshot.restored if item is None)


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
    event, snapshot = resume_with([started(*CHAIN), *done("a"), *more], *CHAIN, fail_fast=fail_fast)

    assert event.afresh is afresh
    assert "a" in restored(snapshot)
    assert ("b" in restored(snapshot)) is (not afresh and more != [])


def test_a_step_that_a_failure_skipped_stays_skipped_when_the_run_resumes():
    events = [
        started(*CHAIN),
        *failed("a"),
        StepSkipped("b", 2.0, "so"),
        StepSkipped("c", 2.0, "so"),
    ]

    event, snapshot = resume_with(events, *CHAIN, fail_fast=False)

    assert restored(snapshot) == ["a", "b", "c"]
    assert event.unfinished == {}
    assert snapshot.restored["c", None].status is StepStatus.SKIPPED


def test_the_output_of_an_outdated_step_is_not_read():
    events = [started(*CHAIN), *done("a", output="broken"), *done("b")]

    event, snapshot = resume_with(events, step("a", version="2"), *CHAIN[1:])

    assert event.outdated.keys() == {"a", "b"}
    assert restored(snapshot) == []


def test_a_later_success_replaces_an_earlier_secret_one():
    secret, plain = step("a", secret=True), step("a")
    run = StoredRun([started(secret, *CHAIN[1:]), *done("a", output=REDACTED), *failed("b")])
    event, _ = resume_with(run, plain, *CHAIN[1:])
    assert event.recalled == ("a",)
    for each in [*done("a"), *failed("b"), RunFinished(3.0, RunStatus.FAILED)]:
        run.apply(each)

    event, snapshot = resume_with(run, plain, *CHAIN[1:])

    assert event.recalled == ()
    assert restored(snapshot) == ["a"]


def test_a_step_that_ran_after_a_failure_is_outdated_although_the_fixed_run_lacked_it():
    steps = step("z"), step("tell", "z", run_if="always")
    run = StoredRun(
        [started(*steps), *failed("z"), *done("tell"), RunFinished(3.0, RunStatus.FAILED)]
    )
    resume_with(run, steps[0])
    for each in [*done("z"), RunFinished(4.0, RunStatus.PASSED)]:
        run.apply(each)

    _, snapshot = resume_with(run, *steps)

    assert restored(snapshot) == ["z"]


class TestSecrets:
    def steps(self, *, last=act, **options):
        return [
            step("login", secret=True),
            step("use", "login"),
            step("last", "use", "login", action=last, **options),
        ]

    def test_a_secret_that_only_a_condition_takes_is_recalled_too(self):
        steps = self.steps(last=alone, when=lambda login: True)
        event, _ = resume_with(
            [started(*steps), *done("login", output=REDACTED), *done("use")], *steps
        )

        assert event.recalled == ("login",)

    def test_the_secrets_that_a_recalled_step_takes_are_recalled_too(self):
        steps = step("key", secret=True), step("login", "key", secret=True), step("use", "login")
        event, snapshot = resume_with(
            [started(*steps), *done("key", "login", output=REDACTED)], *steps
        )

        assert event.recalled == ("key", "login")
        assert restored(snapshot) == []

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
        event, snapshot = resume_with(events, *steps)

        assert event.recalled == ("ids",)
        assert snapshot.restored == {}

    def test_an_outdated_step_is_not_recalled(self):
        steps = self.steps()
        events = [started(*steps), *done("login", output=REDACTED), *done("use")]
        event, _ = resume_with(events, step("login", secret=True, version="2"), *steps[1:])

        assert event.outdated.keys() == {"login", "use"}
        assert event.recalled == ()
