"""Runs that another version of their pipeline continues, on SQLite and on PostgreSQL."""

from __future__ import annotations

import asyncio
import logging
import pickle
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any, Literal

import pytest
from virtual_journals import in_virtual_time

from asyncflow import (
    JournalError,
    Orchestrator,
    PayloadError,
    Pipeline,
    PipelineChangedError,
    RunCancelledError,
    RunReport,
    StepStatus,
    WorkflowStep,
    after,
    each,
    resume_all,
)
from asyncflow._core.history.results import Payload
from asyncflow.journal._write.signals import SentSignal
from asyncflow.service import Service

SUCCESS, FAILED, SKIPPED = StepStatus.SUCCESS, StepStatus.FAILED, StepStatus.SKIPPED
GONE = "no longer in the pipeline"


def orders(version: int) -> Pipeline:
    """Return a pipeline of which the second version has a step more, between two it had."""
    pipeline = Pipeline("orders")

    @pipeline.step
    async def draft() -> str:
        return f"draft {version}"

    approved = pipeline.signal("approved", bool, depends_on=[draft])
    if version == 1:

        @pipeline.step
        async def ship(draft: str = after(draft), approved: bool = after(approved)) -> str:
            return f"{draft}, shipped unchecked"

    else:

        @pipeline.step
        async def check(approved: bool = after(approved)) -> str:
            return "checked"

        @pipeline.step(name="ship")
        async def ship_checked(draft: str = after(draft), check: str = after(check)) -> str:
            return f"{draft}, {check}, shipped"

    return pipeline


async def run(pipeline: Any, journal: Any, run_id: str = "r", **options: Any) -> RunReport:
    return await pipeline.with_options(journal=journal, run_id=run_id, **options).run()


async def count(journal: Any) -> int:
    return len(await journal.events("r"))


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.levelno >= logging.ERROR]


@in_virtual_time
async def test_a_run_is_continued_only_by_a_pipeline_with_all_steps_that_are_left(
    journal: Any, caplog: pytest.LogCaptureFixture
) -> None:
    await run(orders(2), journal)
    await journal.signal("r", "approved", True)
    before = await count(journal)

    with pytest.raises(PipelineChangedError) as refused:
        await run(orders(1), journal)
    resumed = await resume_all(journal, [orders(1)])

    assert str(refused.value) == (
        "run 'r' can't continue: pipeline 'orders' no longer has its step 'check'; continue it "
        "with a version that has all of them, or skip them with "
        "with_options(allow_missing_steps=True) or --allow-missing-steps"
    )
    assert isinstance(refused.value, ValueError)
    again = pickle.loads(pickle.dumps(refused.value))
    assert (again.run_id, again.pipeline, again.missing) == ("r", "orders", {"check": None})
    assert resumed == []
    assert errors(caplog) == [str(refused.value)]
    assert await count(journal) == before  # neither is the signal gone
    report = await run(orders(2), journal)
    assert report["ship"].output == "draft 2, checked, shipped"


@in_virtual_time
async def test_services_of_two_versions_side_by_side_each_continue_what_they_can(
    journal: Any, make_journal: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    """Both directions: the old one finishes no run of the new one, which may finish all."""
    async with AsyncExitStack() as stack:
        other = await stack.enter_async_context(make_journal())
        old = await stack.enter_async_context(
            Service([orders(1)], journal=journal, resume_every_s=1)
        )
        new = await stack.enter_async_context(Service([orders(2)], journal=other, resume_every_s=1))
        for n in range(5):
            await (await old.start("orders", run_id=f"old {n}")).report()
            await (await new.start("orders", run_id=f"new {n}")).report()
        await asyncio.sleep(3)
        for n in range(5):  # each is sent where the other version takes signals
            await new.signal(f"old {n}", "approved", True)
            await old.signal(f"new {n}", "approved", True)
        with pytest.raises(PipelineChangedError):
            await old.start("orders", run_id="new 0")
        await asyncio.sleep(200)

        reports = [await journal.report(record.run_id) for record in await journal.runs()]

    assert {report.status for report in reports} == {"PASSED"}
    by_new = [each["ship"].output for each in reports if each.run_id.startswith("new")]
    assert by_new == ["draft 2, checked, shipped"] * 5
    assert {each["ship"].output for each in reports if each.run_id.startswith("old")} <= {
        "draft 1, shipped unchecked",
        "draft 1, checked, shipped",
    }
    left = [each for each in errors(caplog) if "no longer has its step 'check'" in each]
    assert len(left) == len(set(left)) <= 5  # once for each run, however often it is tried


@in_virtual_time
async def test_a_run_that_a_newer_version_has_continued_is_left_alone_by_the_older_one(
    journal: Any,
) -> None:
    await run(orders(1), journal)
    await run(orders(2), journal)  # it waits on, and its steps are those of the new version

    with pytest.raises(PipelineChangedError, match="no longer has its step 'check'"):
        await run(orders(1), journal)


@in_virtual_time
async def test_an_older_version_continues_a_run_again_when_what_it_lacks_is_done(
    journal: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """A service that has left a run to others looks at it again."""

    def pipeline(*, has_check: bool) -> Pipeline:
        made = Pipeline("orders")
        if has_check:

            @made.step(timeout_ms=None)
            async def check() -> None:
                await asyncio.sleep(30)

        made.signal("approved", bool)
        return made

    old, new = pipeline(has_check=False), pipeline(has_check=True)
    async with Service([old], journal=journal, resume_every_s=1):
        async with new.with_options(journal=journal, run_id="r").start() as begun:
            await asyncio.sleep(10)
            begun.drain("the service was shut down", spare_running=False)
            with pytest.raises(RunCancelledError):
                await begun.report()
        await asyncio.sleep(20)
        assert "no longer has its step 'check'" in errors(caplog)[0]
        await run(new, journal)
        await journal.signal("r", "approved", True)
        await asyncio.sleep(130)

        assert (await journal.record("r")).status == "PASSED"


def steps(*names: str, broken: str = "") -> Orchestrator:
    def action(name: str) -> Callable[[], Any]:
        async def act() -> str:
            if name == broken:
                raise OSError(f"{name} is broken")
            return name

        return act

    return Orchestrator([WorkflowStep(name, action(name)) for name in names], name="chain")


@in_virtual_time
async def test_only_steps_that_would_still_run_are_missed(journal: Any) -> None:
    pipeline = Pipeline("chain")

    @pipeline.step
    async def done() -> None: ...

    @pipeline.step(when=lambda: False)
    async def unwanted() -> None: ...

    @pipeline.step(name="broken")
    async def fail() -> None:
        raise OSError

    @pipeline.step(depends_on=["broken"])
    async def skipped() -> None: ...

    await run(pipeline, journal)

    with pytest.raises(PipelineChangedError, match=r"its steps 'broken', 'skipped' \(did you mean"):
        await run(steps("skip"), journal)
    report = await run(steps("broken", "skipped"), journal)
    assert (report.status, list(report)) == ("PASSED", ["broken", "skipped"])
    assert (await run(steps("broken"), journal)).status == "PASSED"  # it has passed: the stored one


@in_virtual_time
async def test_missing_steps_may_be_skipped_by_condition(journal: Any) -> None:
    await run(orders(2), journal)
    await journal.signal("r", "approved", True)

    report = await run(orders(1), journal, allow_missing_steps=True)

    assert (report.status, bool(report)) == ("PASSED", True)
    assert list(report) == ["draft", "approved", "ship", "check"]
    for stored in (report, await journal.report("r"), RunReport.from_json(report.to_json())):
        check = stored["check"]
        assert (check.status, check.reason, check.by_condition) == (SKIPPED, GONE, True)
        assert stored["ship"].output == "draft 2, shipped unchecked"
    before = await count(journal)
    for version in (1, 2):  # it has passed, and has all their steps
        assert (await run(orders(version), journal))["check"].reason == GONE
    assert await count(journal) == before


@in_virtual_time
async def test_a_run_waits_on_without_the_steps_that_it_misses(journal: Any) -> None:
    await run(orders(2), journal)

    first = await run(orders(1), journal, allow_missing_steps=True)
    preview = await orders(1).with_options(journal=journal).preview("r")
    assert (preview["check"].decision, preview.missing) == ("skipped", [])
    before = await count(journal)
    again = await run(orders(1), journal)  # what was skipped is settled

    assert first.status == again.status == "WAITING"
    assert await count(journal) == before
    await journal.signal("r", "approved", True)
    report = await run(orders(1), journal)
    assert report["ship"].output == "draft 2, shipped unchecked"
    assert report["check"].reason == GONE  # so that the version with it does not ship again
    assert (await run(orders(2), journal))["ship"].output == "draft 2, shipped unchecked"


@in_virtual_time
async def test_a_version_that_has_a_skipped_step_runs_it_after_all(journal: Any) -> None:
    def deliveries(*, checks: bool) -> Pipeline:
        pipeline = Pipeline("deliveries")

        @pipeline.step
        async def draft() -> str:
            return "draft"

        approved = pipeline.signal("approved", bool, depends_on=[draft])
        needed: list[Any] = [approved]
        if checks:

            @pipeline.step(timeout_ms=None, depends_on=[draft])
            async def check() -> None:
                await asyncio.sleep(60)

            needed.append(check)

        @pipeline.step(depends_on=needed)
        async def ship() -> str:
            return "shipped"

        return pipeline

    with_check = deliveries(checks=True)
    async with with_check.with_options(journal=journal, run_id="r").start() as begun:
        await asyncio.sleep(1)
        begun.cancel("for the deploy")
        with pytest.raises(RunCancelledError):
            await begun.report()
    without = await run(deliveries(checks=False), journal, allow_missing_steps=True)
    await journal.signal("r", "approved", True)

    preview = await with_check.with_options(journal=journal).preview("r")
    report = await run(with_check, journal)

    assert (without.status, without["check"].reason) == ("WAITING", GONE)
    assert preview["check"].decision == preview["ship"].decision == "runs"
    assert (report["check"].status, report["ship"].output) == (SUCCESS, "shipped")


@in_virtual_time
async def test_what_a_missing_step_had_begun_is_given_up(journal: Any) -> None:
    """A signal, a step whose attempt was cut short, and one that is mapped."""
    pipeline = Pipeline("chain")
    pipeline.signal("asked", int)

    @pipeline.step
    async def numbers() -> list[int]:
        return [1, 2]

    @pipeline.step(max_retries=3, timeout_ms=None)
    async def double(number: int = each(numbers)) -> int:
        if number == 2:
            await asyncio.sleep(60)
        return 2 * number

    pipeline.step(steps("slow").steps[0].action, name="last", depends_on=["double"])
    async with pipeline.with_options(journal=journal, run_id="r").start() as begun:
        await asyncio.sleep(1)
        begun.cancel("for the deploy")
        with pytest.raises(RunCancelledError):
            await begun.report()

    report = await run(steps("last"), journal, allow_missing_steps=True)

    assert {name: (each.status, each.reason) for name, each in report.items()} == {
        "last": (SUCCESS, None),
        "asked": (SKIPPED, GONE),
        "double": (SKIPPED, GONE),
    }
    assert report["double"].attempts == 2
    assert report.status == "PASSED"
    stored = await journal.report("r")
    assert [(name, one.status) for name, one in stored.items()] == [
        (name, one.status) for name, one in report.items()
    ]


@in_virtual_time
async def test_a_preview_says_which_steps_are_missing(journal: Any) -> None:
    await run(orders(2), journal)
    old = orders(1).with_options(journal=journal)

    refused = await old.preview("r")
    allowed = await old.with_options(allow_missing_steps=True).preview("r")

    assert [step.step_name for step in refused.missing] == ["check"]
    assert str(refused) == (
        "A resumption of run r is refused, its pipeline lacks steps: "
        "1 reused, 2 waiting, 1 missing\n"
        "[REUSED ] draft\n"
        "[WAITS  ] approved: no signal has come\n"
        "[WAITS  ] ship: signal 'approved' has not come\n"
        "[MISSING] check: no longer in the pipeline"
    )
    assert allowed.missing == []
    assert allowed["check"].decision == "skipped"
    assert (await old.preview("r", rerun=True)).missing == []
    near = await steps("cheek").with_options(name="orders", journal=journal).preview("r")
    assert near["check"].reason == "no longer in the pipeline (did you mean 'cheek'?)"


@in_virtual_time
async def test_reruns_and_reports_ask_for_no_step(journal: Any) -> None:
    await run(orders(2), journal)
    old = orders(1).with_options(journal=journal)

    rerun = await old.rerun("r", "again")

    assert (await old.report("r")).status == rerun.status == "WAITING"
    assert list(rerun) == ["draft", "approved", "ship"]


@in_virtual_time
async def test_steps_that_targets_leave_out_are_not_missing(journal: Any) -> None:
    await run(steps("a", "b", broken="a"), journal)

    report = await run(steps("a", "b"), journal, targets=["a"])

    assert (report.status, list(report)) == ("PASSED", ["a"])


# Signals.


def asking(hint: Any = bool, name: str = "approved", **wait: Any) -> Pipeline:
    """Return a pipeline that sends what a signal of some type lets it send."""
    pipeline = Pipeline("offers")

    @pipeline.step
    async def draft() -> str:
        return "draft"

    pipeline.signal(name, hint, depends_on=[draft], **wait)

    async def send(**given: Any) -> str:
        return f"sent: {given[name]}"

    pipeline.step(send, depends_on=[name])
    return pipeline


OLD, NEW = asking(bool), asking(Literal["yes", "no"])


async def segments(journal: Any, run_id: str = "r") -> int:
    return len((await journal.report(run_id)).segments)


@in_virtual_time
async def test_an_answer_that_a_version_cannot_read_is_left_to_the_one_that_asked_for_it(
    journal: Any, caplog: pytest.LogCaptureFixture
) -> None:
    await run(NEW, journal)
    await journal.signal("r", "approved", "yes")
    before = await count(journal)

    with pytest.raises(PayloadError, match=r"signal 'approved' of run 'r' .* has asked for it"):
        await run(OLD, journal)
    assert await resume_all(journal, [OLD]) == []

    assert errors(caplog) == ["run 'r' can't be resumed"]
    assert await count(journal) == before
    assert [record.run_id for record in await journal.due()] == ["r"]
    assert (await run(NEW, journal))["send"].output == "sent: yes"


@in_virtual_time
async def test_services_of_two_versions_side_by_side_lose_no_answer_when_a_type_changes(
    journal: Any, make_journal: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    async with AsyncExitStack() as stack:
        journals = [await stack.enter_async_context(make_journal()) for _ in range(2)]
        for pipeline, own in zip((OLD, NEW), journals, strict=True):
            await stack.enter_async_context(Service([pipeline], journal=own, resume_every_s=1))
        await asyncio.sleep(5)  # they have looked for runs
        for n in range(10):
            await run(NEW, journal, f"new {n}")
            await run(OLD, journal, f"old {n}")
        for n in range(10):
            await journal.signal(f"new {n}", "approved", "yes")
            await journal.signal(f"old {n}", "approved", True)
            await asyncio.sleep(0.1)
        await asyncio.sleep(200)

        reports = [await journal.report(record.run_id) for record in await journal.runs()]

    sent = Counter((each.run_id[:3], each["send"].output) for each in reports)
    assert sent == {("old", "sent: True"): 10, ("new", "sent: yes"): 10}
    assert len(errors(caplog)) <= 20  # at most once for each run and version


@in_virtual_time
async def test_an_answer_that_comes_while_another_version_takes_over_is_left_to_its_own(
    journal: Any,
) -> None:
    """Its sender was told by what the run asked for before."""

    def with_work(pipeline: Pipeline) -> Pipeline:
        @pipeline.step
        async def work() -> None:
            await asyncio.sleep(10)

        return pipeline

    await run(NEW, journal)
    old = with_work(asking(bool)).with_options(journal=journal, run_id="r")
    async with old.start() as taken_over:
        await asyncio.sleep(1)
        sent = SentSignal("r", "approved", Payload("json", b'"yes"'))
        await journal._worker.send_signal(sent)
        assert (await taken_over.report()).status == "WAITING"

    with pytest.raises(PayloadError):
        await old.run()
    report = await run(with_work(asking(Literal["yes", "no"])), journal)
    assert report["send"].output == "sent: yes"


@in_virtual_time
async def test_a_value_that_no_version_takes_is_deleted_and_the_run_waits_on(journal: Any) -> None:
    await run(NEW, journal)
    await journal._worker.send_signal(SentSignal("r", "approved", Payload("json", b"[]")))

    assert (await run(OLD, journal)).status == "WAITING"

    await journal.signal("r", "approved", True)
    assert (await run(OLD, journal))["send"].output == "sent: True"


@pytest.mark.parametrize(
    ("new", "value"),
    [
        (NEW, "yes"),
        (asking(deadline_ms=5_000, default=False), None),
        (asking(name="approved", hint=bool, when=lambda: True), True),
    ],
    ids=["type", "deadline", "neither"],
)
@in_virtual_time
async def test_starting_a_run_that_waits_lets_it_ask_as_the_new_version_does(
    journal: Any, new: Pipeline, value: Any
) -> None:
    await run(OLD, journal)

    for _ in range(2):
        assert (await run(new, journal)).status == "WAITING"

    assert await segments(journal) == (1 if value is True else 2)
    if value is not None:
        await journal.signal("r", "approved", value)
    else:
        assert await journal.due() == []
        await asyncio.sleep(5)
    assert (await run(new, journal))["send"].output == f"sent: {value or False}"


@in_virtual_time
async def test_a_service_lets_runs_that_wait_ask_as_its_version_does(journal: Any) -> None:
    """A type, a deadline, and a signal more: each is known without an answer or a start."""
    more = Pipeline("more")
    await run(OLD, journal, "type")
    await run(asking().with_options(name="late"), journal, "deadline")
    more.signal("first", bool)
    await run(more, journal, "one more")
    more.signal("second", int)
    late = asking(deadline_ms=20_000, default=False).with_options(name="late")

    async with Service([NEW, late, more], journal=journal):
        await asyncio.sleep(1)
        await journal.signal("type", "approved", "yes")
        await journal.signal("one more", "second", 2)
        await asyncio.sleep(25)

        found = {each.run_id: each.status for each in await journal.runs()}
        assert found == {"type": "PASSED", "deadline": "PASSED", "one more": "WAITING"}
        assert await segments(journal, "one more") == 3


@in_virtual_time
async def test_a_service_takes_the_values_of_its_own_version(journal: Any) -> None:
    """Although it has not looked for such runs since the old version left one."""
    async with Service([NEW], journal=journal) as service:
        await asyncio.sleep(1)
        await run(OLD, journal)

        with pytest.raises(ValueError, match="must be one of 'no', 'yes', not true"):
            await service.signal("r", "approved", True)
        await service.signal("r", "approved", "yes")
        await asyncio.sleep(2)

        assert (await journal.report("r"))["send"].output == "sent: yes"


@in_virtual_time
async def test_a_service_that_can_not_read_a_value_logs_that_once_however_often_others_come(
    journal: Any, caplog: pytest.LogCaptureFixture
) -> None:
    await run(OLD, journal)
    await journal.signal("r", "approved", True)

    async with Service([NEW], journal=journal) as service:
        await asyncio.sleep(2)
        for _ in range(3):
            with pytest.raises(ValueError, match="'approved'"):
                await service.signal("r", "approved", "yes")

    assert len(errors(caplog)) == 1


@in_virtual_time
async def test_versions_side_by_side_take_turns_ever_more_rarely(
    journal: Any, make_journal: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asyncflow.service._recovery._PATIENT_S", 30)
    monkeypatch.setattr("asyncflow.service._recovery._MOST_PATIENT_S", 480)
    async with AsyncExitStack() as stack:
        for pipeline in (OLD, NEW):
            own = await stack.enter_async_context(make_journal())
            await stack.enter_async_context(Service([pipeline], journal=own, resume_every_s=1))
        await asyncio.sleep(5)  # they have looked for runs
        for run_id, pipeline in (("old", OLD), ("new", NEW)):
            await run(pipeline, journal, run_id)
        found = []
        for wait_s in (20, 980, 1000):
            await asyncio.sleep(wait_s)
            found.append([await segments(journal, run_id) for run_id in ("old", "new")])

    first, later, last = found
    assert first == [1, 1]  # one of the versions is about to end, as a rule
    assert min(later) > 1
    assert max(later) <= 1 + 2 * 6  # each after 30, 60, 120, 240, 480 and 960 s
    assert max(each - before for each, before in zip(last, later, strict=True)) <= 2 * 3


@in_virtual_time
async def test_a_deadline_that_an_old_version_drops_at_the_end_of_a_deploy_is_asked_for_again(
    journal: Any, make_journal: Callable[..., Any]
) -> None:
    new = asking(deadline_ms=20_000, default=False)
    async with make_journal() as own:
        await run(asking(), own)
        async with Service([new], journal=own):
            await asyncio.sleep(10)
            assert await segments(journal) == 2
            await run(asking(), journal)  # the old version, as its service does
            await asyncio.sleep(60)
            assert (await journal.record("r")).status == "WAITING"
            await asyncio.sleep(600)

            assert (await journal.report("r"))["send"].output == "sent: False"


@in_virtual_time
async def test_a_service_leaves_a_run_again_to_a_version_that_continues_it_much_later(
    journal: Any, make_journal: Callable[..., Any]
) -> None:
    """It may be a newer one, whose deploy has begun."""
    async with make_journal() as own:
        await run(OLD, own)
        async with Service([NEW], journal=own):
            await asyncio.sleep(3600)
            await run(asking(int), journal)
            found = [await segments(journal)]
            for wait_s in (500, 200):
                await asyncio.sleep(wait_s)
                found.append(await segments(journal))

    assert found == [3, 3, 4]


@in_virtual_time
async def test_a_service_that_could_not_let_a_run_ask_as_its_version_does_tries_again_soon(
    journal: Any, make_journal: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    await run(OLD, journal)
    async with make_journal() as own:
        opens, failures = own.open, [JournalError("r", "the network is down")]

        async def fail_once(*args: Any, **kwargs: Any) -> Any:
            if failures:
                raise failures.pop()
            return await opens(*args, **kwargs)

        monkeypatch.setattr(own, "open", fail_once)
        async with Service([NEW], journal=own, resume_every_s=1):
            await asyncio.sleep(5)

        assert (failures, await segments(journal)) == ([], 2)


@in_virtual_time
async def test_a_service_forgets_runs_that_it_has_let_ask_as_its_version_does(
    journal: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asyncflow.service._recovery._PATIENT_S", 5)
    monkeypatch.setattr("asyncflow.service._recovery._MOST_PATIENT_S", 20)
    await run(OLD, journal)
    async with Service([NEW], journal=journal, resume_every_s=1) as service:
        await asyncio.sleep(2)
        assert service._recovery is not None
        assert list(service._recovery._renewed) == ["r"]
        await run(OLD, journal)
        await asyncio.sleep(2)
        assert list(service._recovery._outdated) == ["r"]
        await asyncio.sleep(60)

        assert service._recovery._outdated == service._recovery._renewed == {}


@in_virtual_time
async def test_a_signal_that_is_gone_is_a_missing_step(
    journal: Any, caplog: pytest.LogCaptureFixture
) -> None:
    await run(OLD, journal)
    renamed = asking(bool, name="approval")

    with pytest.raises(PipelineChangedError, match=r"'approved' \(did you mean 'approval'\?\)"):
        await run(renamed, journal)
    async with Service([renamed], journal=journal, resume_every_s=1):
        await asyncio.sleep(300)

    assert len(errors(caplog)) == 1
    report = await run(renamed, journal, allow_missing_steps=True)
    assert (report.status, report["approved"].reason) == ("WAITING", GONE)
    await journal.signal("r", "approval", True)
    assert (await run(renamed, journal))["send"].output == "sent: True"
