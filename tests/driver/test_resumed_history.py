"""The report of a resumed run has the attempts of all its segments, in whatever form it is."""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import socket

import pytest
from memory_journal import MemoryJournal

from asyncflow import (
    Pool,
    RunReport,
    Segment,
    StepResult,
    StepStatus,
    WorkflowStep,
    run_pipeline,
)
from asyncflow._core.history.replay import StoredRun
from asyncflow._core.history.stored_report import report_from
from asyncflow._core.text import describe_error
from asyncflow._views.run_view import RunView
from asyncflow.testing import run_in_virtual_time

SUCCESS, SKIPPED, CANCELLED = StepStatus.SUCCESS, StepStatus.SKIPPED, StepStatus.CANCELLED

pytestmark = pytest.mark.exact_time


class Work:
    """A pipeline whose load fails until the disk has space; an alert tells of that."""

    def __init__(self):
        self.has_space = False

    async def extract(self):
        await asyncio.sleep(0.010)
        return [1, 2, 3]

    async def load(self, row):
        await asyncio.sleep(0.001 * row)
        if row == 2 and not self.has_space:
            raise OSError("the disk is full")
        return row

    async def alert(self):
        await asyncio.sleep(0.005)
        return "sent"

    def steps(self, *, is_mapped=False):
        many = {"map_over": "extract"} if is_mapped else {}
        needs = {"row": "extract"}

        async def load(row):
            return await self.load(row if is_mapped else row[1])

        return [
            WorkflowStep("extract", self.extract),
            WorkflowStep("load", load, needs, max_retries=2, **many),
            WorkflowStep("alert", self.alert, ["load"], run_if="failure"),
        ]


async def run(steps, journal, **options):
    return await run_pipeline(steps, journal=journal, run_id="r", **options)


def failed_and_resumed(*, is_mapped=False):
    """Return the journal and the report of a run that failed, and passed when it was resumed."""
    work, journal = Work(), MemoryJournal()

    async def main():
        await run(work.steps(is_mapped=is_mapped), journal)
        work.has_space = True
        return await run(work.steps(is_mapped=is_mapped), journal)

    return journal, run_in_virtual_time(main())


def stored_report(journal):
    return report_from(StoredRun(journal.stored["r"]), lambda _, payload: json.loads(payload.data))


def forms_of(journal, report):
    """Return all that a report becomes, by name."""
    return {
        "in process": report,
        "stored": stored_report(journal),
        "pickled": pickle.loads(pickle.dumps(report)),
        "json": RunReport.from_json(report.to_json()),
    }


def told(result):
    """Return each attempt of a result: segment, number, start, duration and error."""
    return [
        (
            *(each.segment, each.number),
            *(round(each.started_ms, 6), round(each.duration_ms, 6)),
            None if each.error is None else describe_error(each.error),
        )
        for each in result.history
    ]


@pytest.mark.parametrize("form", ["in process", "stored", "pickled", "json"])
def test_a_resumed_run_keeps_what_happened_before(form):
    report = forms_of(*failed_and_resumed())[form]

    load, alert = report["load"], report["alert"]
    assert (load.status, load.error, load.output, load.attempts) == (SUCCESS, None, 2, 3)
    assert told(load) == [
        (1, 1, 10.0, 2.0, "OSError: the disk is full"),
        (1, 2, 12.0, 2.0, "OSError: the disk is full"),
        (2, 1, 19.0, 2.0, None),
    ]
    assert (load.started_ms, load.duration_ms) == pytest.approx((10.0, 6.0))
    assert (alert.status, alert.by_condition, alert.attempts) == (SKIPPED, True, 1)
    assert told(alert) == [(1, 1, 14.0, 5.0, None)]
    assert (alert.started_ms, alert.duration_ms) == pytest.approx((14.0, 5.0))
    assert (report["extract"].reused, told(report["extract"])) == (True, [(1, 1, 0.0, 10.0, None)])
    here = f"{socket.gethostname()}:{os.getpid()}"
    assert [(each.at_ms, each.ended_ms, each.process) for each in report.segments] == [
        (0.0, pytest.approx(19.0), here),
        (pytest.approx(19.0), pytest.approx(21.0), here),
    ]
    assert report.total_duration_ms == pytest.approx(21.0)
    assert report.all_passed


def test_the_report_of_a_resumed_run_equals_the_one_in_its_journal():
    journal, report = failed_and_resumed()

    stored = stored_report(journal)

    assert repr(report.results) == repr(stored.results)
    assert str(report) == str(stored)
    assert report.segments == stored.segments
    assert (report.total_duration_ms, report.span_ms) == (stored.total_duration_ms, stored.span_ms)


def test_the_text_of_a_report_calls_earlier_attempts_earlier():
    _, report = failed_and_resumed()

    assert str(report).splitlines() == [
        "Pipeline PASSED",
        "[SUCCESS] extract (1 attempt(s), 10ms): reused",
        "[SUCCESS] load (3 attempt(s), 6ms): run again because it had failed; "
        "2 attempts before the run was resumed",
        '[SKIPPED] alert (1 attempt(s), 5ms): run_if="failure", and no dependency failed; '
        "1 attempt before the run was resumed",
        "Total: 21ms",
    ]


@pytest.mark.parametrize("form", ["in process", "stored", "json"])
def test_the_items_of_a_mapped_step_keep_their_attempts(form):
    report = forms_of(*failed_and_resumed(is_mapped=True))[form]

    load = report["load"]
    assert (load.status, load.output, load.attempts, load.history) == (SUCCESS, [1, 2, 3], 5, ())
    assert [item.reused for item in load.items] == [True, False, True]
    assert [told(item) for item in load.items] == [
        [(1, 1, 10.0, 1.0, None)],
        [
            (1, 1, 10.0, 2.0, "OSError: the disk is full"),
            (1, 2, 12.0, 2.0, "OSError: the disk is full"),
            (2, 1, 19.0, 2.0, None),
        ],
        [(1, 1, 10.0, 3.0, None)],
    ]
    assert load.duration_ms == pytest.approx(6.0)


def test_a_mapped_step_that_is_skipped_later_keeps_the_attempts_of_its_items():
    journal, is_mended = MemoryJournal(), False

    async def check(rows):
        if not is_mended:
            raise ValueError("no")

    async def rows():
        return ["a", "b"]

    async def tell(row, check=None):
        return row.upper()

    def steps():
        return [
            WorkflowStep("rows", rows),
            WorkflowStep("check", check, ["rows"]),
            WorkflowStep(
                "tell", tell, {"row": "rows", "check": "check"}, map_over="rows", run_if="failure"
            ),
        ]

    async def main():
        nonlocal is_mended
        with pytest.raises(ValueError, match="no"):
            (await run(steps(), journal)).raise_for_failures()
        is_mended = True
        return await run(steps(), journal)

    report = run_in_virtual_time(main())
    passed = run_in_virtual_time(run(steps(), journal))  # it runs nothing

    told_of = report["tell"]
    assert (told_of.status, told_of.items, told_of.attempts) == (SKIPPED, None, 2)
    assert [(each.segment, each.item, each.number) for each in told_of.history] == [
        (1, 0, 1),
        (1, 1, 1),
    ]
    assert repr(stored_report(journal).results) == repr(report.results)
    for each in (RunReport.from_json(report.to_json()), passed):
        view = RunView(each.events()).steps["tell"]
        assert (list(view.former_items), view.attempt_count, view.attempts) == ([0, 1], 2, [])
        assert view.former_items[1].attempts[0].end == "succeeded"
        assert not view.items


def test_a_step_keeps_its_attempts_when_the_pipeline_changes_between_segments():
    journal = MemoryJournal()

    async def rows():
        return [1, 2]

    async def each(rows):
        if rows == 2:
            raise ValueError("two")

    async def whole(rows):
        raise ValueError("three")

    source = WorkflowStep("rows", rows)
    mapped = WorkflowStep("work", each, ["rows"], map_over="rows")
    plain = WorkflowStep("work", whole, ["rows"])

    async def main():
        await run([source, mapped], journal)
        await run([source, mapped], journal, targets=["rows"])
        plainly = await run([source, plain], journal)
        assert [(each.segment, each.item) for each in plainly["work"].history] == [
            (1, 0),
            (1, 1),
            (3, None),
        ]
        return await run([source, mapped], journal)

    report = run_in_virtual_time(main())

    work = report["work"]
    assert [(each.segment, each.item, each.number) for each in work.history] == [(3, None, 1)]
    assert [[(each.segment, each.item) for each in item.history] for item in work.items] == [
        [(1, None), (4, None)],
        [(1, None), (4, None)],
    ]
    assert work.attempts == 5
    assert repr(stored_report(journal).results) == repr(report.results)


@pytest.mark.parametrize("form", ["in process", "stored", "pickled", "json"])
def test_a_cancelled_attempt_is_still_cancelled_when_its_step_is_skipped_later(form):
    journal = MemoryJournal()

    async def wait():
        await asyncio.sleep(1)

    async def main():
        task = asyncio.create_task(run([WorkflowStep("wait", wait)], journal))
        await asyncio.sleep(0.5)
        task.cancel()
        await asyncio.wait([task])
        return await run([WorkflowStep("wait", wait, when=lambda: False)], journal)

    report = forms_of(journal, run_in_virtual_time(main()))[form]

    assert report["wait"].status is SKIPPED
    assert [(each.segment, each.cancelled) for each in report["wait"].history] == [(1, True)]


class TestSpan:
    def test_a_span_includes_the_pauses_and_a_duration_does_not(self):
        segments = (Segment(0.0, 1_000.0, 50.0), Segment(50.0, 1_060.05, 80.0))

        report = RunReport("r", [], total_duration_ms=80.0, wall_time=1_000.0, segments=segments)

        assert report.total_duration_ms == 80.0
        assert report.span_ms == pytest.approx(60_080.0)
        assert json.loads(report.to_json())["span_ms"] == report.span_ms

    def test_a_wall_clock_that_was_set_back_makes_no_negative_pause(self):
        segments = (Segment(0.0, 1_000.0, 50.0), Segment(50.0, 400.0, 80.0))

        report = RunReport("r", [], total_duration_ms=80.0, wall_time=1_000.0, segments=segments)

        assert report.span_ms == 80.0


class TestJson:
    @pytest.mark.parametrize("version", [None, "1", 2])
    def test_the_json_of_another_version_is_refused(self, version):
        document = json.loads(RunReport("r", [], total_duration_ms=0, wall_time=0).to_json())
        document["version"] = version

        with pytest.raises(ValueError, match=rf"version is {version!r}, and .* reads 1 alone"):
            RunReport.from_json(json.dumps(document))


def test_events_of_a_report_end_a_mapped_step_before_its_segment_if_it_ended_before():
    item = StepResult("tell[0]", SUCCESS, 1, 2.0, started_ms=1.0, reused=True, item=0)
    tell = StepResult("tell", CANCELLED, 1, 2.0, started_ms=1.0, recorded=(), items=(item,))
    segments = [Segment(0.0, 0.0, 10.0), Segment(10.0, 60.0, 12.0)]
    report = RunReport("r", [tell], total_duration_ms=12.0, wall_time=0.0, segments=segments)

    view = RunView(report.events()).steps["tell"]

    assert view.duration_ms(12.0) == 2.0


def views_of(report):
    """Return what the events show that a report implies, by step."""
    return RunView(report.events()).steps


@pytest.mark.parametrize("urgent", [[1], []])
def test_the_events_of_a_report_tell_items_that_an_earlier_process_found_no_slots_for(urgent):
    journal = MemoryJournal()

    async def rows():
        return [1, 2]

    async def work(row):
        await asyncio.sleep(0.01)

    def slots(row):
        if row not in urgent:
            raise LookupError("slots")
        return 1

    options = {"map_over": "rows", "pool": Pool(1), "slots": slots, "tolerated_failures": 2}
    steps = [WorkflowStep("rows", rows), WorkflowStep("work", work, {"row": "rows"}, **options)]

    async def main():
        await run(steps, journal)
        left = journal.died_after(2)  # in the attempt of "rows"
        await run(steps, left)
        failed = [getattr(event, "item", None) for event in left.stored["r"]].index(1)
        return await run(steps, left.died_after(failed + 1))

    report = run_in_virtual_time(main())

    item = views_of(report)["work"].items[1]
    assert (item.status, item.attempts, repr(item.error)) == ("FAILED", [], "LookupError('slots')")
    assert item.reused


def test_the_events_of_a_report_tell_the_attempts_of_a_step_that_found_an_equal_call_later():
    journal = MemoryJournal()

    async def first():
        return "data"

    async def upper(first):
        await asyncio.sleep(0.01)
        return first.upper()

    async def fail(load):
        raise ValueError("broken")

    def steps(version):
        return [
            WorkflowStep("first", first, version=version),
            WorkflowStep("load", upper, ["first"], cache_ms=3_600_000),
            WorkflowStep("fail", fail, ["load"]),
        ]

    async def main():
        await run(steps("1"), journal, name="p")
        return await run(steps("2"), journal, name="p")

    report = run_in_virtual_time(main())

    load, view = report["load"], views_of(report)["load"]
    assert (load.origin, load.attempts, [each.number for each in load.history]) == ("r", 2, [1])
    assert (view.status, view.attempt_count, view.output) == ("SUCCESS", 2, "DATA")
    assert [(each.segment, each.end) for each in view.attempts] == [(1, "succeeded")]
    assert view.duration_ms(report.total_duration_ms) == pytest.approx(load.duration_ms)


def test_the_events_of_a_report_keep_a_failure_that_a_later_process_reused():
    journal = MemoryJournal()

    async def fail():
        raise ValueError("broken")

    async def work():
        await asyncio.sleep(0.01)

    def steps(version):
        return [WorkflowStep("fail", fail), WorkflowStep("work", work, version=version)]

    async def main():
        await run(steps("1"), journal, fail_fast=False)
        events = [type(event).__name__ for event in journal.stored["r"]]
        left = journal.died_after(events.index("StepFailed") + 1)  # "work" is running
        return await run(steps("2"), left, fail_fast=False)

    report = run_in_virtual_time(main())

    fails = views_of(report)["fail"]
    assert (fails.status, repr(fails.error), fails.reused) == (
        "FAILED",
        "ValueError('broken')",
        True,
    )
