"""Steps that return an iterator: who may take it, and how long the next item may take."""

from __future__ import annotations

import asyncio
import io

import pytest
from freed import Holding, without_collector
from memory_journal import MemoryJournal

from asyncflow import (
    Pipeline,
    Pool,
    Retry,
    SharedIteratorError,
    StepStatus,
    StepTimeoutError,
    WorkflowStep,
    collect,
    each,
    run_pipeline,
)

SUCCESS, FAILED, SKIPPED = StepStatus.SUCCESS, StepStatus.FAILED, StepStatus.SKIPPED


async def stream():
    for number in range(3):
        yield number


ITERATORS = {
    "iterator": lambda: iter([0, 1, 2]),
    "generator": lambda: (number for number in range(3)),
    "stream": stream,
    "file": lambda: io.StringIO("0\n1\n2\n"),
}


INSTEAD = {
    "iterator": "a list, with list(...)",
    "generator": "a list, with list(...)",
    "stream": "a list, [item async for item in ...]; only one mapped step, in a run without a "
    "journal, can take the items as they come",
    "file": "what its getvalue() returns",
}


async def take(rows):
    return rows


async def take_all(**outputs):
    return outputs


async def ignore():
    return None


def mapped(name):
    return WorkflowStep(name, take, ["rows"], map_over="rows")


def asked(name):
    return WorkflowStep(name, ignore, ["rows"], when=lambda rows: rows is not None)


def given(name):
    return WorkflowStep(name, take, ["rows"])


def renamed(name):
    async def act(table):
        return table

    return WorkflowStep(name, act, {"table": "rows"})


def all_given(name):
    return WorkflowStep(name, take_all, ["rows"])


def providing(values, **options):
    async def rows():
        return values()

    return WorkflowStep("rows", rows, **options)


class TestTwoTakers:
    @pytest.mark.parametrize("kind", ITERATORS)
    @pytest.mark.parametrize(
        "takers",
        [(mapped, mapped), (mapped, given), (given, renamed), (mapped, asked), (all_given, mapped)],
        ids=lambda takers: "-".join(taker.__name__ for taker in takers),
    )
    async def test_fail_the_step_without_a_retry(self, kind, takers):
        source = providing(ITERATORS[kind], max_retries=3)
        steps = [source, *(taker(name) for taker, name in zip(takers, "ab", strict=True))]

        report = await run_pipeline(steps)

        error = report["rows"].error
        assert isinstance(error, SharedIteratorError)
        assert (error.step_name, error.takers) == ("rows", ("a", "b"))
        assert str(error) == (
            f"step 'rows' returned an iterator ({error.returned}), which steps 'a' and 'b' take, "
            f"and each would get only some of its items; return {INSTEAD[kind]}"
        )
        assert [report[name].status for name in ("rows", "a", "b")] == [FAILED, SKIPPED, SKIPPED]
        assert report["rows"].attempts == 1

    @pytest.mark.parametrize(
        "options",
        [
            {"deadline_ms": 100},
            {"retry": Retry(until=list), "max_retries": 2},
            {"run_if": "always"},
            {"fallback": lambda error: iter([1])},
        ],
        ids=lambda options: "-".join(options),
    )
    async def test_fail_it_in_every_lane_whatever_its_policies(self, options):
        report = await run_pipeline([providing(stream, **options), mapped("a"), mapped("b")])

        assert isinstance(report["rows"].error, SharedIteratorError)
        assert report["rows"].attempts == 1

    @pytest.mark.parametrize("kind", ITERATORS)
    async def test_are_the_items_of_a_step_to_which_it_is_an_argument(self, kind):
        async def numbers():
            return [1, 2]

        async def act(numbers, rows):
            return [row async for row in rows] if kind == "stream" else [*rows]

        source, other = providing(ITERATORS[kind]), WorkflowStep("numbers", numbers)
        items = WorkflowStep("a", act, ["numbers", "rows"], map_over="numbers")

        report = await run_pipeline([source, other, items])

        error = report["rows"].error
        assert isinstance(error, SharedIteratorError)
        assert error.takers == ("a",)
        assert str(error) == (
            f"step 'rows' returned an iterator ({error.returned}), which each item of step 'a' "
            f"takes, and would get only some of what it gives; return {INSTEAD[kind]}"
        )

    async def test_fail_it_wherever_it_runs(self):
        source = WorkflowStep("rows", lambda: iter([0, 1, 2]), runs_in="thread", max_retries=2)

        report = await run_pipeline([source, mapped("a"), mapped("b")])

        assert isinstance(report["rows"].error, SharedIteratorError)
        assert report["rows"].attempts == 1

    async def test_take_what_its_fallback_returns_instead(self):
        source = providing(stream, fallback=lambda error: [7])

        report = await run_pipeline([source, mapped("a"), mapped("b")])

        assert report["a"].output == report["b"].output == [7]

    async def test_fail_an_item_whose_output_they_take(self):
        flow = Pipeline("flow", schedule="ready", fail_fast=False)

        @flow.step
        async def pages() -> list[int]:
            return [1, 2]

        @flow.step
        async def rows(page: int = each(pages)):
            return iter([page]) if page == 2 else [page]

        flow.step(name="archive")(lambda row=each(collect(rows)): take(row))
        flow.step(name="index")(lambda all_rows=collect(rows): take(all_rows))
        report = await flow.run()

        assert [item.status for item in report["rows"].items] == [SUCCESS, FAILED]
        error = report["rows"].items[1].error
        assert (error.step_name, error.takers) == ("rows[1]", ("archive", "index"))

    async def test_of_what_an_included_pipeline_forwards_are_named(self):
        inner = Pipeline("inner")

        @inner.step
        async def rows():
            return stream()

        outer = Pipeline("outer")
        outer.include(inner)
        outer.step(name="archive")(lambda row=each(inner): take(row))
        outer.step(name="index", depends_on={"r": "inner/rows"}, map_over="inner/rows")(
            lambda r: take(r)
        )
        report = await outer.run()

        assert report["inner/rows"].error.takers == ("index", "archive")

    async def test_share_a_list_and_a_range(self):
        for values in (lambda: [0, 1], lambda: range(2)):
            report = await run_pipeline([providing(values), mapped("a"), mapped("b")])

            assert report["a"].output == report["b"].output == [0, 1]


class TestOneTaker:
    @pytest.mark.parametrize("kind", ITERATORS)
    async def test_gets_all_items_whoever_else_only_depends_on_the_step(self, kind):
        others = [
            WorkflowStep("after", ignore, ["rows"]),
            WorkflowStep("notify", ignore, run_if="always"),
        ]

        report = await run_pipeline([providing(ITERATORS[kind]), mapped("a"), *others])

        assert [int(row) for row in report["a"].output] == [0, 1, 2]
        assert report.all_passed

    async def test_gets_them_if_the_run_leaves_the_other_out(self):
        steps = [providing(stream), mapped("a"), mapped("b")]

        report = await run_pipeline(steps, targets=["a"])

        assert report["a"].output == [0, 1, 2]

    async def test_gets_them_from_an_included_pipeline_that_forwards_them_too(self):
        inner = Pipeline("inner")

        @inner.step
        async def rows():
            return stream()

        outer = Pipeline("outer")
        outer.include(inner)
        outer.step(name="load", depends_on={"r": "inner/rows"}, map_over="inner/rows")(
            lambda r: take(r)
        )
        report = await outer.run()

        assert report["load"].output == [0, 1, 2]

    async def test_gets_them_in_a_resumed_run_whose_other_taker_has_ended(self):
        rows = [stream(), [5], stream()]
        source = providing(lambda: rows.pop(), secret=True)
        options = {"journal": MemoryJournal(), "run_id": "r"}
        first = await run_pipeline([source, mapped("a")], **options)
        assert first["a"].output == [0, 1, 2]

        added = await run_pipeline([source, mapped("a"), mapped("b"), mapped("c")], **options)
        assert added["b"].output == added["c"].output == [5]
        again = await run_pipeline([source, *map(mapped, "abcd")], **options)

        assert again["d"].output == [0, 1, 2]
        assert again.all_passed

    async def test_of_a_step_with_its_condition_and_its_items_is_one(self):
        step = WorkflowStep(
            "a", take, ["rows"], map_over="rows", when=lambda rows: rows is not None
        )

        report = await run_pipeline([providing(stream), step])

        assert report["a"].output == [0, 1, 2]


class Slow:
    """An async iterator that waits before each item, and may hold out against a cancellation."""

    def __init__(self, *delays_s, then=StopAsyncIteration, on_cancel=None):
        self.delays_s = [*delays_s]
        self.then = then
        self.on_cancel = on_cancel
        self.at = self.closed = 0

    def __aiter__(self):
        return self

    async def __anext__(self):
        if self.at == len(self.delays_s):
            raise self.then
        try:
            await asyncio.sleep(self.delays_s[self.at])
        except asyncio.CancelledError:
            if self.on_cancel is None:
                raise
            await asyncio.sleep(1)
            if self.on_cancel is not Slow:
                raise self.on_cancel from None
        self.at += 1
        return self.at

    async def aclose(self):
        self.closed += 1


FOR_EVER = 30 * 24 * 3600


def slow(rows, *, timeout_ms=1000, action=take, **options):
    """A step that returns the iterator, and one that is mapped over it."""
    source = providing(lambda: rows, timeout_ms=timeout_ms)
    return [source, WorkflowStep("load", action, {"rows": "rows"}, map_over="rows", **options)]


@pytest.mark.exact_time
class TestTheWaitForAnItem:
    async def test_is_limited_by_the_timeout_of_the_step_that_returned_the_iterator(self):
        rows = Slow(0.5, 0.9, FOR_EVER)

        report = await run_pipeline(slow(rows), fail_fast=False)

        error = report["load"].error
        assert isinstance(error, StepTimeoutError)
        assert str(error) == (
            "step 'load' waited for the next item of 'rows' longer than that one's timeout_ms of "
            "1000 ms"
        )
        assert (error.step_name, error.source, error.kind) == ("load", "rows", "attempt")
        assert isinstance(error.__context__, asyncio.CancelledError)
        assert [report[name].status for name in ("rows", "load")] == [SUCCESS, FAILED]
        assert [item.output for item in report["load"].items] == [1, 2]
        assert report.total_duration_ms == pytest.approx(2400, abs=1)
        assert rows.closed == 1

    @pytest.mark.long_time
    async def test_has_a_limit_by_default(self):
        rows = Slow(FOR_EVER)
        source = providing(lambda: rows)

        report = await run_pipeline([source, mapped("load")])

        assert str(report["load"].error).endswith(
            "longer than the default timeout_ms of 30000 ms; give 'rows' another one, or None for "
            "no limit"
        )

    @pytest.mark.long_time
    async def test_has_none_if_that_step_has_none(self):
        report = await run_pipeline(slow(Slow(3600, 7200), timeout_ms=None))

        assert report["load"].output == [1, 2]

    async def test_lets_the_iterator_clean_up_although_the_run_stops_meanwhile(self):
        cleaned_up = []

        async def rows():
            try:
                yield await asyncio.sleep(FOR_EVER)
            finally:
                cleaned_up.append(await asyncio.sleep(1, "all"))

        async def fail():
            await asyncio.sleep(1.5)
            raise OSError

        failing = WorkflowStep("fail", fail)
        report = await run_pipeline([*slow(rows()), failing], schedule="ready")

        assert report["load"].status is StepStatus.CANCELLED
        assert isinstance(report["load"].error, StepTimeoutError)
        assert cleaned_up == ["all"]
        assert report.total_duration_ms == pytest.approx(2000, abs=1)

    async def test_does_not_include_the_time_in_which_nobody_asks(self):
        async def work(rows):
            await asyncio.sleep(4)

        report = await run_pipeline(
            slow(Slow(0.5, 0.5), action=work, deadline_ms=4500, pool=Pool(1))
        )

        assert report.all_passed

    async def test_belongs_to_the_step_inside_if_an_included_pipeline_forwards_the_iterator(self):
        inner = Pipeline("inner")

        @inner.step(timeout_ms=1000)
        async def rows():
            return Slow(FOR_EVER)

        outer = Pipeline("outer")
        outer.include(inner)
        outer.step(name="load")(lambda row=each(inner): take(row))
        report = await outer.run()

        assert report["load"].error.source == "inner/rows"
        assert report.total_duration_ms == pytest.approx(1000, abs=1)

    @pytest.mark.parametrize("on_cancel", [Slow, StopAsyncIteration(), ValueError("x")])
    async def test_that_holds_out_against_its_limit_is_too_late(self, on_cancel):
        rows = Slow(0.1, 60, on_cancel=on_cancel)

        report = await run_pipeline(slow(rows), fail_fast=False)

        error = report["load"].error
        assert (error.source, error.timeout_ms) == ("rows", 1000)
        assert error.__cause__ is (on_cancel if isinstance(on_cancel, ValueError) else None)
        assert [item.output for item in report["load"].items] == [1]
        assert rows.closed == 1

    async def test_keeps_a_timeout_error_of_the_iterator_itself(self):
        own = TimeoutError("of the server")

        report = await run_pipeline(slow(Slow(0.1, then=own)))

        assert report["load"].error is own

    async def test_joins_the_errors_of_the_items(self):
        async def fail(rows):
            raise ValueError(rows)

        steps = slow(Slow(0, FOR_EVER), action=fail)
        report = await run_pipeline(steps, fail_fast=False)

        late, failed = report["load"].error.exceptions
        assert (type(late), type(failed)) == (StepTimeoutError, ValueError)

    async def test_of_a_step_that_the_run_has_stopped_is_no_failure(self):
        async def fail():
            await asyncio.sleep(0.5)
            raise ValueError

        rows = Slow(60, on_cancel=Slow)
        report = await run_pipeline([*slow(rows), WorkflowStep("fail", fail, ["rows"])])

        assert report["load"].status is StepStatus.CANCELLED
        assert report["load"].error is None
        assert report["fail"].status is FAILED

    async def test_leaves_nothing_alive(self):
        hold = Holding()

        async def items():
            thing = hold()
            await asyncio.sleep(FOR_EVER)
            yield thing

        with without_collector():
            report = await run_pipeline(slow(items()))
            assert report["load"].status is FAILED
            del report
            await asyncio.sleep(0)
            assert hold.alive() == []


@pytest.mark.exact_time
class TestAllWaitsForItems:
    async def test_count_against_the_deadline_of_the_mapped_step(self):
        report = await run_pipeline(slow(Slow(*[0.3] * 100), deadline_ms=1000))

        error = report["load"].error
        assert str(error) == (
            "step 'load' waited for the next item of 'rows' longer than its deadline of 1000 ms"
        )
        assert (error.source, error.kind) == ("rows", "step")
        assert [item.output for item in report["load"].items] == [1, 2, 3]
        assert report.total_duration_ms == pytest.approx(1000, abs=1)

    async def test_count_against_the_deadline_of_the_run(self):
        rows = Slow(*[0.3] * 100)

        report = await run_pipeline(slow(rows), deadline_ms=1000)

        assert report["load"].status is StepStatus.CANCELLED
        assert report["load"].error.kind == "run"
        assert report.total_duration_ms == pytest.approx(1000, abs=1)
        assert rows.closed == 1
