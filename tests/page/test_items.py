"""The items of a mapped step are cells by outcome, and their errors groups, within bounds."""

from __future__ import annotations

import re
from html import unescape

import pytest
from mapped_run import chain_run, mapped_run
from results import failed, mapped, report_of, succeeded

from asyncflow import RunReport, RunStatus, WorkflowStep, run_pipeline
from asyncflow._core.analysis.looks import OUTCOME_LOOKS
from asyncflow._core.errors import RestoredError
from asyncflow._views.received import item_value
from asyncflow._views.run_view import RunView, view_of
from asyncflow.events import (
    AttemptFailed,
    AttemptStarted,
    Event,
    MapStarted,
    RunFinished,
    RunStarted,
    StepCancelled,
    StepFailed,
    StepSucceeded,
)
from asyncflow.html_report import to_html
from asyncflow.html_report._items import CellPath, ItemCells
from asyncflow.html_report._page_model import PageContext, PageModel


def model_of(events: list[Event]) -> PageModel:
    view = RunView(events)
    return PageModel(view, view.at_ms)


@pytest.mark.parametrize("left_out", [10**6, 10**30])
def test_the_page_of_items_that_are_only_counted_takes_no_longer_for_more(left_out: int) -> None:
    items = (failed("a[3]", ValueError("no"), item=3),)
    result = mapped("a", *items, left_out=left_out, attempts=left_out + 1)
    report = RunReport.from_json(report_of(result).to_json())

    html = report.to_html()

    assert len(html) < 200_000
    assert f"{left_out + 1} items" in html
    assert f"</svg> {left_out} succeeded" in html


@pytest.mark.parametrize("origin", ["", "other"])
def test_the_items_that_are_kept_have_the_cells_if_others_are_counted(origin: str) -> None:
    where = {"origin": origin, "reused": True, "started_ms": None} if origin else {}
    fell_back = succeeded("a[7]", error=ValueError("no"), item=7, **where)
    result = mapped("a", fell_back, left_out=8, attempts=9, **where)

    view = view_of(report_of(result))

    cells = ItemCells.of(view.steps["a"], 9, 2_000)
    assert (cells.counts, cells.data.partition(":")[0]) == (
        [(OUTCOME_LOOKS["SUCCESS"], 9)],
        "success 7",
    )


def test_a_result_that_counts_items_without_having_any_is_shown() -> None:
    report = report_of(succeeded("a", left_out=5))

    assert [*report.events()]
    assert "<html" in report.to_html()
    assert "SUCCESS" in report._repr_html_()


def cells_of(events: list[Event], most: int = 2_000) -> ItemCells:
    model = model_of(events)
    step = model.view.steps["fetch"]
    return ItemCells.of(step, model.item_count(step), most)


def area(path: str) -> int:
    """Return how many cells a path has."""
    return sum((int(width) + 1) // 8 for width in re.findall(r"h(\d+)v", path))


EACH_OUTCOME: list[Event] = [
    RunStarted("r", 0.0, {"fetch": ()}),
    MapStarted("fetch", 0.0, 6),
    AttemptStarted("fetch", 1, 0.0, item=0),
    StepSucceeded("fetch", 1, 5.0, None, item=0),
    AttemptStarted("fetch", 1, 0.0, item=1),
    AttemptFailed("fetch", 1, 2.25, ConnectionError("reset"), 1.0, item=1),
    AttemptStarted("fetch", 2, 3.25, item=1),
    StepSucceeded("fetch", 2, 6.0, None, item=1),
    AttemptStarted("fetch", 1, 0.0, item=2),
    StepFailed("fetch", 1, 7.0, ValueError("no"), item=2),
    AttemptStarted("fetch", 1, 0.0, item=3),
    AttemptStarted("fetch", 1, 0.0, item=4),
    StepCancelled("fetch", 1, 8.0, "a sibling failed", None, item=4),
]


def test_each_outcome_of_an_item_has_cells_what_went_wrong_first() -> None:
    cells = cells_of(EACH_OUTCOME)

    order = ["failed", "cancelled", "retried", "running", "success", "pending"]
    counted = ["success", "retried", "failed", "cancelled", "running", "pending"]
    assert [(look.kind, count) for look, count in cells.counts] == [(each, 1) for each in counted]
    assert cells.paths == tuple(
        CellPath(outcome, f"M{at * 8} 0h7v7h-7z") for at, outcome in enumerate(order)
    )


def test_cells_beside_each_other_are_one_shape() -> None:
    cells = cells_of(mapped_run(1, retried=True, items=80))

    assert dict(cells.paths)["success"] == "M8 0h311v7h-311zM0 8h319v7h-319z"


def test_of_very_many_items_a_cell_stands_for_several_as_the_worst_of_them() -> None:
    cells = cells_of(mapped_run(3, retried=False, items=10_000))

    assert cells.each == 5
    counts = {look.kind: count for look, count in cells.counts}
    assert counts == {"failed": 3, "success": 9_997}
    assert {outcome: area(path) for outcome, path in cells.paths} == {
        "failed": 3,
        "success": 1_997,
    }
    assert re.match(r"failed 0:1f0\+20 3333:\S+ 6666:\S+\|success 5:", cells.data)
    assert len(cells.data) < 50_000
    assert sum(len(path) for _, path in cells.paths) < 5_000


@pytest.mark.parametrize(
    ("retried", "text"), [(False, "<span"), (True, '<span class="dim">then another attempt</span>')]
)
def test_the_details_group_the_errors_with_links_to_their_items(retried: bool, text: str) -> None:
    run = mapped_run(6, retried=retried)
    html = to_html(run)

    assert "<strong>ConnectionError x 6</strong> " + text in html
    assert '<a href="#s0" data-item="33">[33]</a>' in html
    assert "reset by peer" in html


def test_many_types_of_errors_and_many_items_are_capped() -> None:
    events: list[Event] = [RunStarted("r", 0.0, {"fetch": ()}), MapStarted("fetch", 0.0, 60)]
    for item in range(60):
        error = RestoredError(f"Error{item % 10 if item < 40 else 0}", "no")
        events += [
            AttemptStarted("fetch", 1, 0.0, item=item),
            StepFailed("fetch", 1, 1.0, error, item=item),
        ]

    html = to_html(events)

    assert "<strong>Error0 x 24</strong>" in html
    assert "and 16 more" in html
    assert "and 2 more kinds of errors" in html


def test_a_passed_run_says_first_which_items_failed_and_why() -> None:
    prints = {"names": ("()", ""), "fetch": ("(name=names) for each of names", "")}
    names = ["a.png", "b.png", "c.png"]
    events: list[Event] = [
        RunStarted("r", 0.0, {"names": (), "fetch": ("names",)}, "p", prints),
        AttemptStarted("names", 1, 0.0),
        StepSucceeded("names", 1, 1.0, names),
        MapStarted("fetch", 1.0, 3),
        *(AttemptStarted("fetch", 1, 1.0, item=item) for item in range(3)),
        StepFailed("fetch", 1, 2.0, OSError("gone"), item=0),
        StepFailed("fetch", 1, 2.0, OSError("gone too"), item=1),
        StepSucceeded("fetch", 1, 2.0, None, item=2),
        StepSucceeded("fetch", 0, 2.0, None),
        RunFinished(2.0, RunStatus.PASSED),
    ]

    html = to_html(events)

    assert "1 of 3 · 2 failed: OSError x 2" in html.partition('id="bar"')[0]
    panel = html.partition('<section class="failure endured"')[2].partition("</section>")[0]
    assert "<strong>OSError x 2</strong>" in panel
    assert re.search(
        r"""\[0\]</a> <code>'a.png'</code>.*\[1\]</a> <code>'b.png'""", unescape(panel)
    )
    assert traits_of(events) == {"names": "", "fetch": "failed"}
    assert 'data-failed="2"' in html


# What the filter of the page knows.


def timed(*took_ms: float) -> list[Event]:
    names = [f"s{number}" for number in range(len(took_ms))]
    events: list[Event] = [RunStarted("r", 0.0, dict.fromkeys(names, ()))]
    for name, ms in zip(names, took_ms, strict=True):
        events += [AttemptStarted(name, 1, 0.0), StepSucceeded(name, 1, ms, None)]
    return events


def traits_of(events: list[Event]) -> dict[str, str]:
    model = model_of(events)
    return {name: model.traits(step) for name, step in model.view.steps.items()}


async def test_the_page_of_a_run_without_a_journal_names_the_values_of_items_that_failed() -> None:
    async def urls() -> list[str]:
        return ["here.png", "gone.png"]

    async def fetch(url: str) -> None:
        if url == "gone.png":
            raise OSError(2, "no such file")

    steps = [
        WorkflowStep("urls", urls),
        WorkflowStep("fetch", fetch, {"url": "urls"}, map_over="urls"),
    ]
    report = await run_pipeline(steps, fail_fast=False)
    view = view_of(RunReport.from_json(report.to_json()))

    assert item_value(view, view.steps["fetch"], 1) == ("'gone.png'", False, False)
    assert "'gone.png'" in unescape(to_html(report)).partition('id="s1"')[2]


def test_a_step_is_slow_if_it_took_longer_than_nine_of_ten() -> None:
    found = traits_of(timed(*range(1, 21)))

    assert [name for name, traits in found.items() if traits == "slow"] == ["s18", "s19"]


def test_a_step_is_slow_if_it_took_notably_longer_than_it_usually_does() -> None:
    usual_ms = {"s0": 830.0, "s1": 840.0, "s2": 1.0, "s3": 0.1, "s4": 5_000.0}
    view = RunView(timed(1_000.0, 1_000.0, 1_000.0, 99.0, 1_000.0))
    model = PageModel(view, 1_000.0, PageContext(usual_ms=usual_ms))

    slow = [name for name, step in view.steps.items() if model.traits(step) == "slow"]

    assert slow == ["s0", "s2"]  # of s3, people can't see the difference


def test_long_tiers_are_laid_out_in_blocks() -> None:
    (tier,) = model_of(timed(*[1.0] * 120)).rows()

    (fold,) = tier.folds
    assert [len(block) for block in fold.blocks()] == [50, 50, 20]


def branches(*, has_ended: bool = True) -> list[Event]:
    """Return the events of a large run, in whose second tier one step fails."""
    first = {f"extract_{number}": () for number in range(100)}
    second = {f"load_{number}": (f"extract_{number}",) for number in range(99, -1, -1)}
    edges = {**first, **second, "load": ("extract_1",), "check": ("extract_1",)}
    events: list[Event] = [RunStarted("r", 0.0, edges)]
    for at, name in enumerate(edges):
        events.append(AttemptStarted(name, 1, float(at)))
        if name == "load_17":
            events.append(StepFailed(name, 1, at + 0.5, OSError("away")))
        else:
            events.append(StepSucceeded(name, 1, at + 0.5, None))
    return [*events, RunFinished(300.0, RunStatus.FAILED)] if has_ended else events


def test_in_a_large_run_names_that_begin_alike_fold_and_what_failed_comes_first() -> None:
    model = model_of(branches())
    first, second = model.rows()

    assert [(fold.name, len(fold.rows)) for fold in first.folds] == [("", 100)]
    alone, fold = second.folds
    assert [row.step.name for row in alone.rows] == ["load_17", "load", "check"]
    assert (fold.name, len(fold.rows), [count for _, count in fold.counts]) == ("load_", 99, [99])
    assert (first.is_open, second.is_open) == (False, True)


def test_in_the_graph_of_a_large_run_names_that_begin_alike_share_a_box() -> None:
    model = model_of(branches())

    nodes = model.nodes()
    graph = model.draw(nodes)

    assert [(node.start, len(node.steps)) for node in nodes] == [
        ("extract_", 100), ("load_", 99), ("", 1), ("", 1), ("", 1)
    ]  # fmt: skip
    assert [box.lines for box in graph.boxes][:2] == [("extract_…",), ("load_…",)]
    assert {(curve.first, curve.last) for curve in graph.curves} == {(0, at) for at in range(1, 5)}
    assert len(model_of(branches(has_ended=False)).nodes()) == 202


def test_the_rows_of_a_large_run_keep_their_places_while_it_goes_on() -> None:
    _, second = model_of(branches(has_ended=False)).rows()

    (fold,) = second.folds
    assert [row.step.name for row in fold.rows][:2] == ["load_99", "load_98"]


@pytest.mark.parametrize("is_orphaned", [False, True])
def test_what_an_orphan_was_running_looks_dead(is_orphaned: bool) -> None:
    events: list[Event] = [
        RunStarted("r", 0.0, {"a": (), "fetch": ()}),
        AttemptStarted("a", 1, 0.0),
        MapStarted("fetch", 0.0, 2),
        AttemptStarted("fetch", 1, 0.0, item=0),
        AttemptStarted("fetch", 1, 5.0, item=1),
    ]
    view = RunView(events)
    model = PageModel(view, view.at_ms, PageContext(is_orphaned=is_orphaned))
    step = view.steps["a"]

    row, layers = model.row(step), model.row(view.steps["fetch"]).layers

    assert model.note(step) == ("was running when its process died" if is_orphaned else "")
    assert model.look(step).symbol == ("◇" if is_orphaned else "▷")
    end = "crashed" if is_orphaned else "running"
    assert [bar.end for bar in row.bars] == [end]
    assert [layer.end for _, of_bar in layers for layer in of_bar] == [end]


def test_the_items_of_a_chain_have_a_lane_through_its_steps() -> None:
    flowing, waiting = (to_html(chain_run(parsed_at)) for parsed_at in (3.0, 9.0))

    assert re.findall(r'<td class="lane">(.*?)</td>', waiting) == []
    assert flowing.count("Its items flow one by one") == 2  # the details of both steps
    lanes = re.findall(r'<td class="lane">(.*?)</td>', flowing)
    assert [re.findall(r'href="#s(\d)" data-item="1" title="([^"]*)"', lane) for lane in lanes] == [
        *([("1", "fetch[1]: failed, 8 ms"), ("2", "parse[1]: skipped")], []),
        *([("1", "fetch[1]: failed, 8 ms"), ("2", "parse[1]: skipped")], []),
    ]
    assert flowing.count(" flows") - waiting.count(" flows") == 1  # the edge between the two


def test_the_legend_shows_what_occurs() -> None:
    def legend_of(*events: Event) -> str:
        html = to_html([RunStarted("r", 0.0, {"a": ()}), AttemptStarted("a", 1, 0.0), *events])
        legend = html.partition('<ul class="legend"')[2].partition("</ul>")[0]
        return ",".join(re.findall(r"> ([a-z ]+)</li>", legend))

    retry = AttemptFailed("a", 1, 5.0, ValueError("x"), 10.0)
    again = AttemptStarted("a", 2, 20.0, 5.0)

    assert legend_of() == "running,critical path"
    assert legend_of(StepSucceeded("a", 1, 5.0, None)) == "succeeded,critical path"
    ended = legend_of(retry, again, StepSucceeded("a", 2, 25.0, None))
    assert ended == "succeeded,failed,backoff,queued,critical path"


async def test_an_error_that_is_raised_again_is_cut_as_an_earlier_one_and_whole_as_the_last() -> (
    None
):
    error = ValueError("x" * 3_000)

    async def fails() -> None:
        raise error

    view = view_of(await run_pipeline([WorkflowStep("a", fails, max_retries=2)]))
    model, step = PageModel(view, view.at_ms), view.steps["a"]

    assert model.is_cut(step)
    assert model.earlier_trace(error).cut
    assert not model.trace(error).cut
