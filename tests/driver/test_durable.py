"""Durable runs: a completed step is never re-run, and nothing is lost."""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import anyio
import pytest
from memory_journal import MemoryJournal

from asyncflow import (
    JournalError,
    Orchestrator,
    PayloadError,
    Pipeline,
    RestoredOutput,
    RunAlreadyActiveError,
    RunIdInUseError,
    RunNotFoundError,
    RunStatus,
    Signal,
    StepCrashedError,
    StepStatus,
    WorkflowStep,
    current_step,
    resume_all,
    run_pipeline,
)
from asyncflow._core.history.replay import StoredRun
from asyncflow._core.history.results import REDACTED, Payload
from asyncflow._core.history.stored_report import report_from
from asyncflow._views.run_view import RunView
from asyncflow.events import (
    AttemptFailed,
    AttemptStarted,
    RunFinished,
    StepReused,
    StepSucceeded,
)
from asyncflow.journal import SQLiteJournal
from asyncflow.testing import crash_everywhere

SUCCESS, FAILED, SKIPPED, CANCELLED = (
    StepStatus.SUCCESS,
    StepStatus.FAILED,
    StepStatus.SKIPPED,
    StepStatus.CANCELLED,
)


def decode(step, payload):
    return json.loads(payload.data)


class Work:
    """Actions that count their calls and fail while their name is in `broken`."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.broken: set[str] = set()

    def action(self, name, *needed):
        async def act(**inputs):
            self.calls[name] += 1
            await asyncio.sleep(0.01)
            if name in self.broken:
                raise ValueError(name)
            return [name, *(inputs[each] for each in needed)]

        return act

    def step(self, name, *needed, **options):
        return WorkflowStep(name, self.action(name, *needed), needed, **options)

    def diamond(self, **options):
        return [
            self.step("a"),
            self.step("b", "a", **options),
            self.step("c", "a"),
            self.step("d", "b", "c"),
        ]


@pytest.fixture
def work():
    return Work()


@pytest.fixture
def journal():
    return MemoryJournal()


def reused(report):
    return [result.step_name for result in report.results if result.reused]


@pytest.fixture(params=["tiers", "ready"])
def schedule(request):
    return request.param


class TestOneRun:
    async def test_an_action_is_called_only_after_its_start_is_stored(self, schedule):
        journal = MemoryJournal(latency_s=0.05)

        async def act():
            starts = [e for e in journal.stored["r"] if isinstance(e, AttemptStarted)]
            assert current_step().step_name in [event.step for event in starts]

        steps = [WorkflowStep("a", act), WorkflowStep("b", act, ["a"]), WorkflowStep("c", act)]
        report = await run_pipeline(steps, schedule=schedule, journal=journal, run_id="r")

        assert report.all_passed

    async def test_the_timeout_of_an_attempt_excludes_the_wait_for_the_journal(self):
        journal = MemoryJournal(latency_s=0.05)

        async def act():
            remaining.append(current_step().remaining_ms())
            await asyncio.sleep(0.02)

        remaining = []
        report = await run_pipeline(
            [WorkflowStep("a", act, timeout_ms=40)], journal=journal, run_id="r"
        )

        assert report.all_passed
        assert remaining[0] > 30

    async def test_an_output_that_the_journal_cannot_encode_fails_the_step_at_once(self, journal):
        async def act():
            return {1, 2}

        report = await run_pipeline(
            [WorkflowStep("a", act, max_retries=3)], journal=journal, run_id="r"
        )

        assert isinstance(report["a"].error, PayloadError)
        assert report["a"].attempts == 1
        assert "the output of step 'a'" in str(report["a"].error)

    async def test_the_journal_receives_the_annotated_types(self, journal):
        async def fetch(url: str) -> list[int]:
            return [1]

        async def total(fetch: list[int]) -> int:
            return sum(fetch)

        steps = [WorkflowStep("fetch", fetch), WorkflowStep("total", total, ["fetch"])]
        await run_pipeline(steps, inputs={"url": "u"}, journal=journal, run_id="r")

        assert journal.hints == {
            "input 'url'": str,
            "the output of step 'fetch'": list[int],
            "the output of step 'total'": int,
        }


class TestResume:
    async def test_a_passed_run_returns_its_stored_report(self, work, journal, schedule):
        first = await run_pipeline(work.diamond(), schedule=schedule, journal=journal, run_id="r")
        again = await run_pipeline(work.diamond(), schedule=schedule, journal=journal, run_id="r")

        assert again.results == [replace(result, reused=True) for result in first.results]
        assert set(work.calls.values()) == {1}
        assert not journal.open_sessions

    async def test_an_outdated_output_that_cannot_be_read_has_a_stand_in_among_the_events(
        self, work, journal
    ):
        work.broken.add("b")
        steps = [WorkflowStep("a", work.action("a")), WorkflowStep("b", work.action("b"), ["a"])]
        await run_pipeline(steps, journal=journal, run_id="r")
        stored = next(e for e in journal.stored["r"] if isinstance(e, StepSucceeded)).output
        steps[0] = replace(steps[0], version="2")

        def decode(subject, payload, hint):
            if payload is stored:
                raise PayloadError(subject, "can't be read")
            return json.loads(payload.data)

        journal.decode = decode
        report = await run_pipeline(steps, journal=journal, run_id="r")

        before, after = [
            event.output
            for event in report.events()
            if isinstance(event, StepSucceeded) and event.step == "a"
        ]
        assert isinstance(before, RestoredOutput)
        assert "can't be read" in before.text
        assert after is report["a"].output

    async def test_a_start_that_runs_nothing_says_so_and_the_stored_report_does_not(
        self, work, journal
    ):
        def never(a):
            return False

        work.broken.add("b")
        steps = [*work.diamond(), WorkflowStep("e", work.action("e"), ["a"], when=never)]
        run = Orchestrator(steps, journal=journal).with_options(run_id="r")
        await run.run()
        work.broken.clear()
        passed = await run.run()
        assert passed["b"].rerun_reason

        again = await run.run()

        assert reused(again) == list(again) == ["a", "b", "c", "e", "d"]
        assert again["b"].rerun_reason is None
        told = report_from(StoredRun(again.events()), lambda _, output: output)
        assert told.results == again.results
        assert reused(await run.report("r")) == reused(passed) == ["a", "c"]

    async def test_a_stored_report_is_valid_after_a_change_of_annotations(self, journal):
        async def number(x: int) -> int:
            return x

        async def text(x: str) -> str:
            return x

        options = {"journal": journal, "run_id": "r"}
        await run_pipeline([WorkflowStep("a", number)], inputs={"x": 5}, **options)

        report = await run_pipeline([WorkflowStep("a", text)], **options)

        assert report["a"].output == 5
        assert report.inputs == {"x": 5}

    async def test_a_failed_run_resumes_with_the_steps_that_have_not_succeeded(
        self, work, journal, schedule
    ):
        work.broken.add("c")
        first = await run_pipeline(work.diamond(), schedule=schedule, journal=journal, run_id="r")
        assert first["c"].status is FAILED
        work.broken.clear()

        report = await run_pipeline(work.diamond(), schedule=schedule, journal=journal, run_id="r")

        assert report.all_passed
        assert report["d"].output == ["d", ["b", ["a"]], ["c", ["a"]]]
        assert "a" in reused(report)
        assert work.calls["a"] == 1
        assert report["c"].rerun_reason == "it had failed"
        assert report["a"].rerun_reason is None
        assert report["a"].started_ms == first["a"].started_ms

    async def test_a_run_resumes_after_its_process_died_at_any_event(self, work, journal, schedule):
        whole = await run_pipeline(work.diamond(), schedule=schedule, journal=journal, run_id="r")

        for count in range(len(journal.stored["r"]) - 1):
            left, again = journal.died_after(count), Work()
            done = {e.step for e in left.stored["r"] if isinstance(e, StepSucceeded)}

            report = await run_pipeline(
                again.diamond(), schedule=schedule, journal=left, run_id="r"
            )

            assert {n: r.output for n, r in report.items()} == {
                n: r.output for n, r in whole.items()
            }
            assert report.all_passed
            assert set(reused(report)) == done
            assert again.calls == Counter({"a", "b", "c", "d"} - done)

    async def test_the_deadline_of_a_run_restarts_on_resume(self, work, journal):
        work.broken.add("d")
        await run_pipeline(work.diamond(), journal=journal, run_id="r", deadline_ms=400)
        for _ in range(20):
            await run_pipeline(work.diamond(), journal=journal, run_id="r", deadline_ms=400)
        work.broken.clear()

        report = await run_pipeline(work.diamond(), journal=journal, run_id="r", deadline_ms=400)

        assert report.all_passed

    async def test_failed_attempts_count_and_crashed_ones_do_not(self, journal):
        seen = []

        async def act():
            seen.append(current_step().attempt)
            raise ValueError(len(seen))

        steps = [WorkflowStep("a", act, max_retries=3)]
        await run_pipeline(steps, journal=journal, run_id="r")
        assert seen == [1, 2, 3]

        # The process died during the second attempt, and again during the next one.
        left = journal.died_after(4)
        assert isinstance(left.stored["r"][-1], AttemptStarted)
        seen.clear()
        await run_pipeline(steps, journal=left, run_id="r")
        assert seen == [3, 4]

        starts = [n for n, e in enumerate(left.stored["r"]) if isinstance(e, AttemptStarted)]
        left = left.died_after(starts[2] + 1)
        seen.clear()
        report = await run_pipeline(steps, journal=left, run_id="r")

        assert seen == [4, 5]
        result = report["a"]
        assert (result.status, result.attempts) == (FAILED, 5)
        errors = [type(attempt.error) for attempt in result.history]
        assert errors == [ValueError, StepCrashedError, StepCrashedError, ValueError, ValueError]
        assert result.rerun_reason == "it had not finished"

    @pytest.mark.parametrize("crashes", [1, 2])
    async def test_an_action_can_ask_what_failed_before_its_process_died(self, journal, crashes):
        async def act(n):
            seen.append(current_step().last_error)
            if current_step().attempt == 1:
                raise ValueError(f"no such JSON: {n}")

        seen = []
        steps = [
            WorkflowStep("n", lambda: asyncio.sleep(0, [7])),
            WorkflowStep("a", act, ["n"], map_over="n", max_retries=2),
        ]
        await run_pipeline(steps, journal=journal, run_id="r")
        for _ in range(crashes):
            starts = [n for n, e in enumerate(journal.stored["r"]) if isinstance(e, AttemptStarted)]
            journal = journal.died_after(starts[-1] + 1)  # in the latest attempt
            seen.clear()
            report = await run_pipeline(steps, journal=journal, run_id="r")

        (error,) = seen
        assert repr(error) == repr(ValueError("no such JSON: 7"))
        assert isinstance(error.__context__, StepCrashedError)
        assert (error.__context__.attempt, error.__context__.crashes) == (crashes + 1, crashes)
        assert report["a"].items[0].history[0].error.__context__ is None

    def test_what_an_action_asks_for_is_the_same_wherever_its_process_has_died(self, tmp_path):
        async def act() -> str:
            error = current_step().last_error
            if error is None or isinstance(error, StepCrashedError):
                raise ValueError("no such JSON")
            return "told"

        found = crash_everywhere(
            [WorkflowStep("a", act, max_retries=2)], lambda: SQLiteJournal(tmp_path / "runs.db")
        )

        assert found.status == "PASSED"

    async def test_a_step_whose_latest_attempt_failed_without_a_crash_is_retried(self, journal):
        async def act():
            if current_step().attempt == 2:
                raise ValueError

        steps = [WorkflowStep("a", act, max_retries=3, max_crashes=1)]
        stricter = [WorkflowStep("a", act, max_retries=3, max_crashes=0)]
        await run_pipeline(steps, journal=journal, run_id="r")
        crashed = journal.died_after(2)  # in its first attempt
        await run_pipeline(steps, journal=crashed, run_id="r")
        failed = next(
            n for n, event in enumerate(crashed.stored["r"]) if isinstance(event, AttemptFailed)
        )

        report = await run_pipeline(stricter, journal=crashed.died_after(failed + 1), run_id="r")

        assert [type(attempt.error) for attempt in report["a"].history] == [
            StepCrashedError,
            ValueError,
            type(None),
        ]

    @pytest.mark.parametrize("max_crashes", [0, 1, 3])
    async def test_a_step_that_kills_its_process_fails_after_max_crashes(
        self, journal, max_crashes
    ):
        async def act():
            calls.append(1)

        calls = []
        steps = [WorkflowStep("a", act, max_crashes=max_crashes)]
        await run_pipeline(steps, journal=journal, run_id="r")
        left = journal.died_after(2)
        for _ in range(max_crashes):
            await run_pipeline(steps, journal=left, run_id="r")
            starts = [n for n, e in enumerate(left.stored["r"]) if isinstance(e, AttemptStarted)]
            left = left.died_after(starts[-1] + 1)
        calls.clear()

        report = await run_pipeline(steps, journal=left, run_id="r")

        assert not calls
        error = report["a"].error
        assert isinstance(error, StepCrashedError)
        assert error.crashes == max_crashes + 1
        assert report["a"].attempts == max_crashes + 1
        # A run that is started again has all its attempts.
        assert (await run_pipeline(steps, journal=left, run_id="r")).all_passed
        assert calls == [1]

    async def test_a_step_that_crashed_too_often_waits_if_it_is_a_signal_now(self, journal):
        async def act():
            pass

        await run_pipeline([WorkflowStep("a", act, max_crashes=0)], journal=journal, run_id="r")
        signal = WorkflowStep("a", Signal(str), deadline_ms=1, fallback=lambda _: "default")
        left = journal.died_after(2)

        report = await run_pipeline([signal], journal=left, run_id="r")

        assert report["a"].output == "default"

    async def test_what_ran_beside_a_step_that_crashed_too_often_is_cancelled(self, journal):
        async def act():
            pass

        steps = [WorkflowStep("crashes", act, max_crashes=0), WorkflowStep("beside", act)]
        await run_pipeline(steps, journal=journal, run_id="r")
        left = journal.died_after(3)  # both were running

        report = await run_pipeline(steps, journal=left, run_id="r")

        assert [result.status for result in report.results] == [FAILED, CANCELLED]
        assert isinstance(report["beside"].error, StepCrashedError)

    async def test_the_idempotency_key_stays_the_same(self, journal):
        keys = []

        async def act():
            keys.append(current_step().idempotency_key)
            if len(keys) < 4:
                raise ValueError

        steps = [WorkflowStep("a", act, max_retries=2)]
        await run_pipeline(steps, journal=journal, run_id="r")
        await run_pipeline(steps, journal=journal, run_id="r")

        assert len(keys) == 4
        assert set(keys) == {"r/a"}

    async def test_a_finished_step_is_not_called_again_because_a_condition_skipped_another(
        self, work, journal, schedule
    ):
        steps = [
            work.step("a"),
            WorkflowStep("never", work.action("never"), ["a"], when=lambda: False),
            work.step("told", "a", "never", run_if="always"),
            work.step("b", "told"),
        ]
        work.broken.add("b")
        for _ in range(3):
            await run_pipeline(steps, schedule=schedule, journal=journal, run_id="r")
        work.broken.clear()

        report = await run_pipeline(steps, schedule=schedule, journal=journal, run_id="r")

        assert report.all_passed
        assert work.calls == {"a": 1, "told": 1, "b": 4}
        assert report["never"].rerun_reason is None

    async def test_a_run_stopped_at_its_first_event_still_restores_completed_steps(
        self, work, journal
    ):
        await run_pipeline(work.diamond(), journal=journal, run_id="r")
        left = journal.died_after(4)

        def stop(event):
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            await run_pipeline(work.diamond(), journal=left, run_id="r", observers=[stop])

        restored = [event.step for event in left.stored["r"] if isinstance(event, StepReused)]
        assert restored == ["a"]
        assert not left.open_sessions

    async def test_a_stored_report_is_not_returned_if_the_journal_fails(self, work):
        journal = SlowToClose()
        await run_pipeline(work.diamond(), journal=journal, run_id="r")
        again = asyncio.ensure_future(run_pipeline(work.diamond(), journal=journal, run_id="r"))
        while journal.closing != 2:
            await asyncio.sleep(0.001)
        journal.open_sessions["r"].fail(JournalError("memory", "broken"))

        with pytest.raises(JournalError, match="broken"):
            await again


class SlowToClose(MemoryJournal):
    """Takes a while to release the lease of a run."""

    closing = 0

    async def open(self, run_id, **options):
        session, result = await super().open(run_id, **options)
        close = session.close

        async def close_slowly():
            self.closing += 1
            await asyncio.sleep(0.01)
            await close()

        session.close = close_slowly
        return session, result


class TestChangedPipelines:
    async def run_until_d_fails(self, work, journal):
        work.broken.add("d")
        await run_pipeline(work.diamond(), journal=journal, run_id="r")
        work.broken.clear()
        work.calls.clear()

    async def test_a_changed_version_runs_again_with_what_depends_on_it(self, work, journal):
        await self.run_until_d_fails(work, journal)

        report = await run_pipeline(work.diamond(version="2"), journal=journal, run_id="r")

        assert reused(report) == ["a", "c"]
        assert report["b"].rerun_reason == "its version is '2', and was ''"
        assert report["d"].rerun_reason == "step 'b', which it depends on, runs again"
        assert work.calls == Counter("bd")

    async def test_other_dependencies_or_parameters_run_again(self, work, journal):
        await self.run_until_d_fails(work, journal)
        a, b, _, d = work.diamond()

        async def act(a, extra=None):
            return "c"

        report = await run_pipeline(
            [a, b, WorkflowStep("c", act, ["a"]), d], journal=journal, run_id="r"
        )
        assert reused(report) == ["a", "b"]
        assert report["c"].rerun_reason == "its action asks for (a, extra), and asked for (**)"

        work.broken.add("d")
        b = work.step("b", "a", "c")
        await run_pipeline([a, b, WorkflowStep("c", act, ["a"]), d], journal=journal, run_id="s")
        report = await run_pipeline(
            [a, work.step("b", "a"), WorkflowStep("c", act, ["a"]), d], journal=journal, run_id="s"
        )
        assert report["b"].rerun_reason == "it depends on 'a', and depended on 'a', 'c'"

    async def test_a_stored_output_that_no_longer_fits_its_annotation_is_an_error(self, journal):
        async def number() -> int:
            return 5

        async def text() -> str:
            return "five"

        async def fail(x):
            raise ValueError

        last = WorkflowStep("last", fail, {"x": "a"})
        await run_pipeline([WorkflowStep("a", number), last], journal=journal, run_id="r")
        count = len(journal.stored["r"])

        with pytest.raises(PayloadError, match="is no str any more; nothing has run"):
            await run_pipeline([WorkflowStep("a", text), last], journal=journal, run_id="r")
        assert len(journal.stored["r"]) == count
        assert not journal.open_sessions

        new = WorkflowStep("a", text, version="2")
        report = await run_pipeline([new, last], journal=journal, run_id="r")
        assert report["a"].output == "five"

    async def test_a_run_belongs_to_one_pipeline(self, work, journal):
        await (
            Orchestrator(work.diamond(), name="etl").with_options(journal=journal, run_id="r").run()
        )

        with pytest.raises(ValueError, match="run 'r' belongs to pipeline 'etl', not to 'bill'"):
            await (
                Orchestrator(work.diamond(), name="bill")
                .with_options(journal=journal, run_id="r")
                .run()
            )

        assert (await run_pipeline(work.diamond(), journal=journal, run_id="r")).all_passed
        assert not journal.open_sessions

    async def test_a_passed_run_resumes_with_added_steps(self, work, journal):
        await run_pipeline(work.diamond(), targets=["b"], journal=journal, run_id="r")

        report = await run_pipeline(work.diamond(), journal=journal, run_id="r")

        assert report.all_passed
        assert reused(report) == ["a", "b"]
        assert set(report) == {"a", "b", "c", "d"}
        assert set(work.calls.values()) == {1}

    async def test_a_passed_run_only_gains_the_steps_that_it_did_not_have(self, journal):
        calls = Counter()

        def step(name, needs=(), *, fails=False, **options):
            async def action():
                calls[name] += 1
                if fails and calls[name] == 1:
                    raise ValueError(name)

            return WorkflowStep(name, action, needs, **options)

        bill = partial(run_pipeline, journal=journal, run_id="r")
        await bill([step("charge"), step("ship", ["charge"]), step("gift", when=lambda: False)])
        changed = [
            step("charge", version="2"),
            step("check", ["charge"], fails=True),
            step("ship", ["check"]),
            step("gift", when=lambda: True),
        ]

        report = await bill(changed)
        again = await bill(changed)

        assert [result.step_name for result in report.failed] == ["check"]
        assert again.all_passed
        assert calls == {"charge": 1, "ship": 1, "check": 2}

    async def test_a_session_is_closed_if_the_run_cannot_start(self, work, journal):
        def refuse(on_failure):
            raise RuntimeError("no")

        opened = journal.open

        async def open_badly(*args, **kwargs):
            session, answer = await opened(*args, **kwargs)
            session.watch = refuse
            return session, answer

        journal.open = open_badly
        with pytest.raises(RuntimeError, match="no"):
            await run_pipeline(work.diamond(), journal=journal, run_id="r")
        assert not journal.open_sessions


class TestInputs:
    def steps(self, **options):
        async def use(x, y=0):
            seen.append((x, y))
            if len(seen) == 1:
                raise ValueError
            return x

        seen = []
        return [WorkflowStep("use", use)], seen

    async def test_a_run_resumes_with_its_stored_inputs(self, journal):
        steps, seen = self.steps()
        await run_pipeline(steps, inputs={"x": [1]}, journal=journal, run_id="r")

        report = await run_pipeline(steps, inputs={"y": 2}, journal=journal, run_id="r")

        assert seen == [([1], 0), ([1], 2)]
        assert report.all_passed

    async def test_changed_inputs_are_refused(self, journal):
        steps, seen = self.steps()
        await run_pipeline(steps, inputs={"x": 1}, journal=journal, run_id="r")

        with pytest.raises(RunIdInUseError, match="with another input 'x'; leave") as refused:
            await run_pipeline(steps, inputs={"x": 2}, journal=journal, run_id="r")

        assert "1" not in str(refused.value)  # the client of the other request may be another one
        assert len(seen) == 1
        assert not journal.open_sessions

    @pytest.mark.parametrize(
        ("before", "x"),
        [
            (1, True),
            ({"a": [1, 2]}, {"a": [True, 2]}),
        ],
    )
    async def test_an_input_of_another_type_is_refused_at_any_depth(self, journal, before, x):
        steps, _ = self.steps()
        await run_pipeline(steps, inputs={"x": before}, journal=journal, run_id="r")

        with pytest.raises(ValueError, match="another input 'x'"):
            await run_pipeline(steps, inputs={"x": x}, journal=journal, run_id="r")

    async def test_an_input_that_cannot_be_compared_is_refused(self, journal):
        class Odd:
            def __eq__(self, other):
                raise RuntimeError

            __hash__ = None

        steps, _ = self.steps()
        await run_pipeline(steps, inputs={"x": 1}, journal=journal, run_id="r")
        journal.encode = lambda *_: Payload("json", b"[]")
        journal.decode = lambda *_: Odd()

        with pytest.raises(ValueError, match="another input 'x'"):
            await run_pipeline(steps, inputs={"x": Odd()}, journal=journal, run_id="r")

    async def test_a_secret_input_that_no_step_takes_is_refused(self):
        steps, _ = self.steps()

        with pytest.raises(ValueError, match=r"'xx', which no step takes \(did you mean 'x'"):
            await run_pipeline(steps, inputs={"x": 1}, secret_inputs=["xx"])

    async def test_a_secret_input_is_not_stored_and_must_be_passed_again(self, journal):
        steps, seen = self.steps()
        received = []
        options = {"journal": journal, "run_id": "r", "secret_inputs": ["x"]}
        await run_pipeline(
            steps, inputs={"x": "abc", "y": 1}, observers=[received.append], **options
        )
        assert "abc" not in repr(journal.stored) + repr(received)

        with pytest.raises(ValueError, match="input 'x' of run 'r' is secret"):
            await run_pipeline(steps, **options)
        await run_pipeline(steps, inputs={"x": "def"}, **options)

        assert seen == [("abc", 1), ("def", 1)]

    @pytest.mark.parametrize("other", [{"x": "hunter3"}, {"x": {1, 2}}])
    async def test_an_input_made_secret_later_must_still_equal_the_stored_one(self, journal, other):
        steps, seen = self.steps()
        options = {"journal": journal, "run_id": "r"}
        await run_pipeline(steps, inputs={"x": "hunter2", "y": 1}, **options)
        options["secret_inputs"] = ["x"]

        with pytest.raises(ValueError, match="was started with another input 'x'; leave") as caught:
            await run_pipeline(steps, inputs=other, **options)
        await run_pipeline(steps, inputs={"x": "hunter2"}, **options)

        assert "hunter" not in str(caught.value)
        assert seen == [("hunter2", 1)] * 2

    async def test_an_input_made_secret_later_is_no_longer_shown_anywhere(self, journal):
        steps, seen = self.steps()
        received = []
        options = {"journal": journal, "run_id": "r"}
        await run_pipeline(steps, inputs={"x": "hunter2", "y": 1}, **options)
        begun = StoredRun(journal.stored["r"])

        report = await run_pipeline(
            steps, secret_inputs=["x"], observers=[received.append], **options
        )

        inputs = {"x": RestoredOutput("redacted"), "y": 1}
        assert seen == [("hunter2", 1)] * 2
        assert report_from(begun, decode).inputs == {"x": "hunter2", "y": 1}
        assert received[0].inputs == {"x": RestoredOutput("redacted")}
        for one in (report, report_from(StoredRun(journal.stored["r"]), decode)):
            assert one.inputs == inputs
        for view in (RunView(report.events()), RunView(journal.stored["r"])):
            assert view.shown_inputs["x"] == RestoredOutput("redacted")

    async def test_an_input_that_was_secret_once_stays_secret(self, journal):
        async def use(x, y):
            if len(seen) < 3:
                seen.append((x, y))
                raise ValueError
            return y

        seen = []
        steps = [WorkflowStep("use", use)]
        options = {"journal": journal, "run_id": "r"}
        await run_pipeline(steps, inputs={"x": "hunter2", "y": 2}, **options)
        await run_pipeline(steps, secret_inputs=["x"], **options)

        third = await run_pipeline(steps, **options)  # it was stored, and the journal still has it
        with pytest.raises(ValueError, match="was started with another input 'x'; leave") as caught:
            await run_pipeline(steps, inputs={"x": "hunter3"}, **options)
        with pytest.raises(ValueError, match="another input 'y'; leave"):
            await run_pipeline(steps, inputs={"y": 3}, **options)
        fourth = await run_pipeline(steps, inputs={"x": "hunter2"}, **options)

        assert seen == [("hunter2", 2)] * 3
        assert "hunter" not in str(caught.value)
        for report in (third, fourth):
            assert report.inputs == {"x": RestoredOutput("redacted"), "y": 2}
        assert report_from(StoredRun(journal.stored["r"]), decode).inputs == fourth.inputs

    @pytest.mark.parametrize(
        ("first", "second", "is_same"),
        [
            ({}, {"currency": "eur"}, True),
            ({}, {"currency": "usd"}, False),
            ({"currency": "eur"}, {"currency": "usd"}, False),
            ({"currency": "usd"}, {}, True),
            ({}, {"big": 1}, True),
            ({}, {"big": True}, False),
            ({}, {"key": "a"}, True),
            ({}, {"key": "b"}, False),
        ],
    )
    async def test_a_passed_run_is_not_executed_again_with_an_input_that_it_did_not_have(
        self, journal, first, second, is_same
    ):
        async def charge(order, currency="eur", key="a"):
            charged.append(order)

        def is_due(order, big=1):
            return True

        charged = []
        run = Orchestrator(
            [WorkflowStep("charge", charge, when=is_due)],
            journal=journal,
            secret_inputs=["key"],
        ).with_options(run_id="r")
        await run.run(order=7, **first)

        if is_same:
            assert reused(await run.run(order=7, **second)) == ["charge"]
        else:
            with pytest.raises(RunIdInUseError, match="leave the input"):
                await run.run(order=7, **second)
        assert charged == [7]

    async def test_an_added_step_takes_an_input_that_a_passed_run_did_not_have(self, journal):
        async def charge(currency="eur"):
            charged.append(currency)

        async def ship(address, currency="eur"):
            return f"{address}, {currency}"

        charged = []
        steps = [WorkflowStep("charge", charge), WorkflowStep("ship", ship, ["charge"])]
        run = Orchestrator(steps, journal=journal).with_options(run_id="r")
        await run.with_options(targets=["charge"]).run()

        with pytest.raises(RunIdInUseError, match="has passed without the input 'currency'"):
            await run.run(address="Oslo", currency="usd")
        report = await run.run(address="Oslo", currency="eur")

        assert report["ship"].output == "Oslo, eur"
        assert reused(report) == ["charge"]
        assert charged == ["eur"]
        with pytest.raises(RunIdInUseError, match="another input 'address'"):
            await run.run(address="Bergen")

    async def test_a_run_that_has_not_passed_resumes_with_an_input_that_it_did_not_have(
        self, work, journal
    ):
        async def price(tax=0, currency="eur"):
            prices.append((tax, currency))

        prices = []
        work.broken.add("ship")
        steps = [WorkflowStep("price", price), WorkflowStep("ship", work.action("ship"))]
        run = Orchestrator(steps, journal=journal).with_options(run_id="r")
        await run.run()

        same = await run.run(currency="eur")
        work.broken.clear()
        other = await run.run(tax=2)

        assert reused(same) == ["price"]
        assert other["price"].rerun_reason == "the run did not have the input 'tax' before"
        assert prices == [(0, "eur"), (2, "eur")]


class TestSecretOutputs:
    def steps(self, work, broken):
        async def login():
            work.calls["login"] += 1
            return "s3cret"

        async def use(login):
            work.calls["use"] += 1
            return len(login)

        async def fetch(login):
            work.calls["fetch"] += 1
            if broken:
                raise ValueError(broken.pop())
            return login == "s3cret"

        return [
            WorkflowStep("login", login, secret=True),
            WorkflowStep("use", use, ["login"]),
            WorkflowStep("fetch", fetch, ["login", "use"], max_retries=1),
        ]

    async def test_a_secret_output_is_not_stored_and_is_computed_again(self, work, journal):
        steps = self.steps(work, [1])
        first = await run_pipeline(steps, journal=journal, run_id="r")
        assert first["login"].output == "s3cret"
        assert "s3cret" not in repr(journal.stored) + repr(first["login"]) + first.to_json()

        report = await run_pipeline(steps, journal=journal, run_id="r")

        assert report.all_passed
        assert work.calls == {"login": 2, "use": 1, "fetch": 2}
        assert reused(report) == ["use"]
        assert "is secret" in report["login"].rerun_reason

    async def test_a_secret_output_that_no_step_needs_is_not_computed_again(self, work, journal):
        steps = self.steps(work, [])
        work.broken.add("last")
        steps.append(WorkflowStep("last", work.action("last"), ["fetch"]))
        await run_pipeline(steps, journal=journal, run_id="r")
        work.broken.clear()

        report = await run_pipeline(steps, journal=journal, run_id="r")

        assert report.all_passed
        assert work.calls["login"] == 1
        assert report["login"].output == RestoredOutput("redacted")

    async def test_an_output_made_secret_later_is_no_longer_shown_and_is_not_computed_again(
        self, work, journal
    ):
        def steps(*, secret):
            login, use, fetch = self.steps(work, broken)
            numbers = WorkflowStep("numbers", pair)
            tell = WorkflowStep("tell", one, ["numbers"], map_over="numbers", secret=secret)
            return [replace(login, secret=secret), use, fetch, numbers, tell]

        async def pair():
            return [1, 2]

        async def one(numbers):
            work.calls["tell"] += 1
            return f"s3cret {numbers}"

        broken = [1, 2]
        options = {"journal": journal, "run_id": "r", "fail_fast": False}
        first = await run_pipeline(steps(secret=False), **options)
        assert not first["login"].secret

        second = await run_pipeline(steps(secret=True), **options)
        stored, view = (
            report_from(StoredRun(journal.stored["r"]), decode),
            RunView(journal.stored["r"]),
        )
        third = await run_pipeline(steps(secret=False), **options)

        assert work.calls == {"login": 1, "use": 1, "fetch": 3, "tell": 2}
        assert second["login"].output == "s3cret"  # the report in memory has it
        assert "s3cret" not in repr([*second.values()]) + second.to_json() + second.to_html()
        assert "s3cret" not in repr([*stored.values()]) + repr(view.steps)
        for report in (second, stored):
            assert {name for name, each in report.items() if each.secret} == {"login", "tell"}
            assert all(item.secret for item in report["tell"].items)
        # The current declaration counts: the journal still has the values.
        for report in (third, report_from(StoredRun(journal.stored["r"]), decode)):
            assert not report["login"].secret
            assert report["login"].output == "s3cret"
            assert report["tell"].output == ["s3cret 1", "s3cret 2"]
        shown = RunView(journal.stored["r"]).steps
        assert decode("login", shown["login"].output) == "s3cret"
        assert decode("tell", shown["tell"].items[1].output) == "s3cret 2"


class TestMappedSteps:
    def steps(self, calls, broken=(), **options):
        async def source():
            calls["source"] += 1
            return [1, 2, 3, 4]

        async def act(item):
            calls[item] += 1
            await asyncio.sleep(0.01 * item)
            if item in broken:
                raise ValueError(item)
            return item * 10

        return [
            WorkflowStep("source", source),
            WorkflowStep("m", act, {"item": "source"}, map_over="source", **options),
        ]

    @pytest.mark.parametrize("fail_fast", [True, False])
    async def test_a_run_resumes_after_an_item_that_crashed_too_often(self, journal, fail_fast):
        calls = Counter()
        steps = self.steps(calls, max_crashes=0)
        await run_pipeline(steps, journal=journal, run_id="r", max_concurrency=1)
        start = next(
            n
            for n, e in enumerate(journal.stored["r"])
            if isinstance(e, AttemptStarted) and e.item == 2
        )
        left = journal.died_after(start + 1)
        report = await run_pipeline(steps, fail_fast, journal=left, run_id="r", max_concurrency=1)
        assert isinstance(report["m"].items[2].error, StepCrashedError)
        stored = report_from(
            StoredRun(left.stored["r"]), lambda _, payload: left.decode("", payload, Any)
        )
        assert repr(stored["m"].error) == repr(report["m"].error)

        report = await run_pipeline(steps, fail_fast, journal=left, run_id="r")

        assert report["m"].output == [10, 20, 30, 40]

    async def test_a_set_cannot_be_mapped_in_a_durable_run(self, journal):
        async def source():
            return "ab"

        async def act(item): ...

        steps = [
            WorkflowStep("source", source),
            WorkflowStep("m", act, {"item": "source"}, map_over="source"),
        ]
        journal.encode = lambda *_: Payload("json", b"[]")
        for output in {"a"}, frozenset("a"), {"a": 1}.keys():
            steps[0] = WorkflowStep("source", lambda output=output: asyncio.sleep(0, output))
            report = await run_pipeline(steps, journal=journal)

            assert isinstance(report["m"].error, TypeError)
            assert "return a list" in str(report["m"].error)
            assert (await run_pipeline(steps)).all_passed


class TestActiveRuns:
    async def test_an_active_run_cannot_be_started_again(self, work, journal):
        first = asyncio.ensure_future(run_pipeline(work.diamond(), journal=journal, run_id="r"))
        while not work.calls:
            await asyncio.sleep(0.001)

        with pytest.raises(RunAlreadyActiveError, match="run 'r' is active in this process"):
            await run_pipeline(work.diamond(), journal=journal, run_id="r")
        assert (await first).all_passed

    async def test_a_caller_can_wait_for_an_active_run(self, work, journal):
        one, two = await asyncio.gather(
            *(
                run_pipeline(work.diamond(), journal=journal, run_id="r", on_active="wait")
                for _ in range(2)
            )
        )

        ran, found = sorted((one, two), key=lambda report: len(report.reused))
        assert found.results == [replace(result, reused=True) for result in ran.results]
        assert set(work.calls.values()) == {1}

    async def test_a_step_cannot_wait_for_its_own_run(self, work, journal):
        async def again():
            await run_pipeline(work.diamond(), journal=journal, run_id="r", on_active="wait")

        async def other():
            await run_pipeline(work.diamond(), journal=journal, run_id="s", on_active="wait")

        steps = [WorkflowStep("again", again), WorkflowStep("other", other)]
        report = await run_pipeline(steps, False, journal=journal, run_id="r")

        assert report["other"].status is SUCCESS
        assert "can't wait for the end of that run" in str(report["again"].error)

    async def test_a_run_that_loses_its_lease_is_cancelled(self, work, journal):
        running = asyncio.ensure_future(run_pipeline(work.diamond(), journal=journal, run_id="r"))
        while not work.calls["b"]:
            await asyncio.sleep(0.001)

        journal.open_sessions["r"].fail(JournalError("memory", "lost"))

        with pytest.raises(JournalError, match="lost"):
            await running
        assert not work.calls["d"]


class TestFailingJournals:
    async def test_a_run_fails_with_the_error_of_its_journal_and_resumes_later(self, schedule):
        for fail_at in range(1, 11):
            work, journal = Work(), MemoryJournal(fail_at=fail_at)
            received = []

            with pytest.raises(JournalError, match="the disk is full"):
                await run_pipeline(
                    work.diamond(),
                    schedule=schedule,
                    journal=journal,
                    run_id="r",
                    observers=[received.append],
                )
            assert len(journal.stored["r"]) == fail_at - 1
            assert isinstance(received[-1], RunFinished)
            assert not journal.open_sessions
            done = {e.step for e in journal.stored["r"] if isinstance(e, StepSucceeded)}
            before = work.calls.copy()

            report = await run_pipeline(
                work.diamond(), schedule=schedule, journal=journal, run_id="r"
            )

            assert report.all_passed
            assert set(reused(report)) == done
            assert all(work.calls[name] == before[name] == 1 for name in done)

    async def test_a_journal_failure_cancels_the_steps_and_awaits_their_clean_up(self):
        journal = MemoryJournal()
        begun, cleaned = asyncio.Event(), []

        async def hang():
            begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0.01)
                cleaned.append(current_step().step_name)

        running = asyncio.ensure_future(
            run_pipeline([WorkflowStep("a", hang, timeout_ms=None)], journal=journal, run_id="r")
        )
        await begun.wait()
        journal.open_sessions["r"].fail(JournalError("memory", "broken"))

        with pytest.raises(JournalError):
            await running
        assert cleaned == ["a"]

    async def test_a_cancelled_caller_receives_its_cancellation_despite_a_journal_failure(
        self, work
    ):
        journal = MemoryJournal()
        running = asyncio.ensure_future(run_pipeline(work.diamond(), journal=journal, run_id="r"))
        while not work.calls["b"]:
            await asyncio.sleep(0.001)
        journal.open_sessions["r"].fail(JournalError("memory", "broken"))
        running.cancel()

        with pytest.raises(asyncio.CancelledError):
            await running

    async def test_a_cancellation_during_the_last_write_propagates(self, work):
        journal = MemoryJournal(latency_s=0.05)
        received = []
        running = asyncio.ensure_future(
            run_pipeline(work.diamond(), journal=journal, run_id="r", observers=[received.append])
        )
        while not any(isinstance(event, RunFinished) for event in received):
            await asyncio.sleep(0.001)
        running.cancel()

        with pytest.raises(asyncio.CancelledError):
            await running
        assert isinstance(journal.stored["r"][-1], RunFinished)
        assert not journal.open_sessions


class TestHosts:
    async def test_a_cancel_scope_does_not_interrupt_the_release_of_a_lease(self, work):
        journal = SlowToClose()
        await run_pipeline(work.diamond(), journal=journal, run_id="r")

        with anyio.move_on_after(0.005) as scope:
            report = await run_pipeline(work.diamond(), journal=journal, run_id="r")
            assert report.all_passed
            assert not journal.open_sessions
            await asyncio.sleep(0)  # anyio delivers the cancellation at the next checkpoint

        assert scope.cancelled_caught

    async def test_the_deadline_of_a_step_restarts_on_resume(self, journal):
        async def act():
            await asyncio.sleep(0.06)

        steps = [WorkflowStep("a", act, deadline_ms=100)]
        await run_pipeline(steps, journal=journal, run_id="r")
        left = journal.died_after(2)
        for _ in range(2):
            report = await run_pipeline(steps, journal=left, run_id="r")
            assert report.all_passed
            left.stored["r"] = left.stored["r"][:-2]
        assert report["a"].attempts == 3


@dataclass
class ListedRun:
    run_id: str
    pipeline: str
    status: RunStatus
    parent: str
    cause: str | None = None


class OrphanJournal(MemoryJournal):
    """Lists its runs: all that have not ended and are not open are orphans."""

    async def record(self, run_id):
        if run_id not in self.stored:
            raise RunNotFoundError(run_id, "memory")
        started, latest = self.stored[run_id][0], self.stored[run_id][-1]
        status = RunStatus.RUNNING if run_id in self.open_sessions else RunStatus.ORPHANED
        if isinstance(latest, RunFinished):
            status = latest.status
        cause = getattr(latest, "cause", None)
        return ListedRun(run_id, started.pipeline, status, started.parent, cause)

    async def runs(self, status, *, limit, cause=None):
        runs = [await self.record(run_id) for run_id in self.stored]
        return [run for run in runs if run.status is status and cause in (None, run.cause)]

    async def orphans(self):
        return await self.runs(RunStatus.ORPHANED, limit=None)


class TestResumeAll:
    async def journal_with_orphans(self, work):
        journal, left = MemoryJournal(), OrphanJournal()
        for run_id, name in ("r1", "one"), ("r2", "two"), ("r3", "gone"):
            await (
                Orchestrator(work.diamond(), name=name)
                .with_options(journal=journal, run_id=run_id)
                .run()
            )
            left.stored[run_id] = journal.stored[run_id][:7]
        work.calls.clear()
        return left

    async def test_orphans_of_known_pipelines_are_resumed(self, work, caplog):
        journal = await self.journal_with_orphans(work)
        known = [Orchestrator(work.diamond(), name=name) for name in ("one", "two")]

        reports = await resume_all(journal, known)

        assert sorted(report.run_id for report in reports) == ["r1", "r2"]
        assert all(report.all_passed for report in reports)
        assert not work.calls["a"]
        assert "run 'r3' can't be resumed: no pipeline is named 'gone'" in caplog.text

    async def test_a_run_that_cannot_resume_does_not_block_the_others(self, work, caplog):
        journal = await self.journal_with_orphans(work)
        journal.stored["r1"][0] = replace(journal.stored["r1"][0], inputs={"x": REDACTED})
        known = [Orchestrator(work.diamond(), name=name) for name in ("one", "two", "gone")]

        reports = await resume_all(journal, known)

        assert sorted(report.run_id for report in reports) == ["r2", "r3"]
        assert "run 'r1' can't be resumed" in caplog.text
        assert "input 'x' of run 'r1' is secret" in caplog.text

    async def test_a_run_that_another_process_takes_up_first_is_no_error(self, work, caplog):
        caplog.set_level(logging.INFO)
        journal = await self.journal_with_orphans(work)
        orphans = await journal.orphans()
        journal.orphans = lambda: asyncio.sleep(0, orphans)
        journal.open_sessions["r1"] = None
        known = [Orchestrator(work.diamond(), name=name) for name in ("one", "two", "gone")]

        reports = await resume_all(journal, known)

        assert sorted(report.run_id for report in reports) == ["r2", "r3"]
        assert caplog.messages == ["run 'r1' resumes in another process"]

    async def test_a_nested_run_is_resumed_although_its_outer_run_was_deleted(self, work):
        journal = await self.journal_with_orphans(work)
        journal.stored["r1"][0] = replace(journal.stored["r1"][0], parent="deleted")

        reports = await resume_all(journal, [Orchestrator(work.diamond(), name="one")])

        assert [report.run_id for report in reports] == ["r1"]

    async def test_a_nested_run_that_its_outer_run_deletes_is_not_resumed(self, work):
        journal = await self.journal_with_orphans(work)
        journal.stored["r1"][0] = replace(journal.stored["r1"][0], parent="r2")

        async def delete():
            del journal.stored["r1"]

        steps = [*work.diamond(), WorkflowStep("delete", delete)]
        known = [Orchestrator(work.diamond(), name="one"), Orchestrator(steps, name="two")]

        reports = await resume_all(journal, known)

        assert [report.run_id for report in reports] == ["r2"]

    async def test_interrupted_runs_are_resumed_on_request(self, work):
        journal = await self.journal_with_orphans(work)
        known = [Orchestrator(work.diamond(), name="four")]
        running = asyncio.ensure_future(known[0].with_options(journal=journal, run_id="r4").run())
        while not work.calls["b"]:
            await asyncio.sleep(0.001)
        running.cancel()
        await asyncio.wait([running])

        assert await resume_all(journal, known) == []
        (report,) = await resume_all(journal, known, interrupted=True)

        assert report.run_id == "r4"
        assert report.all_passed

    @pytest.mark.parametrize("outcome", ["resumed", "other way", "unknown", "active"])
    async def test_a_nested_run_is_its_outer_runs_unless_that_ends_without_it(
        self, work, outcome, caplog
    ):
        journal, calls = OrphanJournal(), []
        inner = Orchestrator(work.diamond(), name="inner")

        async def call():
            calls.append("call")
            if outcome == "other way" and len(calls) > 1:
                return
            report = await inner.with_options(run_id="in", journal=journal).run()
            report.raise_for_failures()

        outer = Orchestrator([WorkflowStep("call", call)], name="outer")
        await outer.with_options(run_id="out", journal=journal).run()
        journal.stored = {run_id: events[:7] for run_id, events in journal.stored.items()}
        journal.stored["out"] = journal.stored["out"][:2]
        if outcome == "active":
            journal.open_sessions["out"] = None

        reports = await resume_all(journal, [inner] if outcome == "unknown" else [inner, outer])

        resumed = {report.run_id: report.all_passed for report in reports}
        assert (
            resumed
            == {
                "resumed": {"out": True},
                "other way": {"out": True, "in": True},
                "unknown": {"in": True},
                "active": {},
            }[outcome]
        )
        assert (await journal.record("in")).status is (
            RunStatus.ORPHANED if outcome == "active" else RunStatus.PASSED
        )

    @pytest.mark.parametrize(
        ("pipelines", "error", "message"),
        [
            ([5], TypeError, "must be Pipeline and Orchestrator objects, not int"),
            ([Orchestrator([])], ValueError, "needs a name"),
            ([Pipeline("p"), Pipeline("p")], ValueError, "two pipelines are named 'p'"),
        ],
    )
    async def test_pipelines_need_distinct_names(self, journal, pipelines, error, message):
        with pytest.raises(error, match=message):
            await resume_all(journal, pipelines)
