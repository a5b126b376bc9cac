"""Steps that return an iterator: who may take it, and how long the next item may take."""

from __future__ import annotations

import io

import pytest
from memory_journal import MemoryJournal

from asyncflow import (
    Pipeline,
    Retry,
    SharedIteratorError,
    StepStatus,
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
            "and each would get only some of its items; return a list"
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
