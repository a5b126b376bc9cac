"""What a notebook shows of a run."""

from __future__ import annotations

import asyncio
import importlib
import sys
from html.parser import HTMLParser
from typing import Any

import nbclient
import nbformat
import pytest

import asyncflow.notebook
from asyncflow import RunReport, WorkflowStep, run_pipeline
from asyncflow._views.notebook import MOST_ROWS, to_notebook_html
from asyncflow._views.run_view import RunView
from asyncflow.events import AttemptStarted, RunStarted, StepFailed, StepSkipped, StepSucceeded
from asyncflow.notebook import NotebookView
from asyncflow.testing import run_in_virtual_time


class _Page(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.rows: list[str] = []
        self.tags: set[str] = set()
        self.open: list[str] = []
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.add(tag)
        self.open.append(tag)
        if tag in ("tr", "p"):
            self.rows.append("")

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.rows[-1] += f"{data} "


async def _ok() -> str:
    await asyncio.sleep(2)
    return "an output"


async def _bad(value: str) -> None:
    raise ValueError("<script>alert(1)</script>")


def _failed() -> RunReport:
    steps = [
        WorkflowStep("load & go", _ok),
        WorkflowStep("check", _bad, {"value": "load & go"}, max_retries=2),
        WorkflowStep("save", _ok, ["check"]),
    ]
    return run_in_virtual_time(run_pipeline(steps))


def test_a_report_is_a_table_without_scripts_and_values() -> None:
    html = _failed()._repr_html_()

    page = _Page(html)
    assert page.tags <= {
        *["div", "p", "strong", "table", "thead", "tbody", "tr", "th", "td", "span", "svg", "rect"]
    }
    verdict, head, load, check, save = page.rows
    assert "FAILED in 2.0 s: 1 succeeded, 1 failed, 1 skipped" in verdict
    assert head.split() == ["step", "status", "attempts", "duration", "when"]
    assert load.split() == ["load", "&", "go", "✓", "SUCCESS", "1", "2.0", "s"]
    assert "FAILED 2 " in check
    assert "ValueError: <script>alert(1)</script>" in check
    assert "SKIPPED" in save
    assert "step 'check' failed" in save
    assert "an output" not in html


def test_a_step_or_items_that_fell_back_say_so() -> None:
    async def numbers() -> list[int]:
        return [0, 1]

    async def invert(number: int) -> float:
        return 1 / number

    steps = [
        WorkflowStep("numbers", numbers),
        WorkflowStep("check", _bad, {"value": "numbers"}, fallback=lambda error: None),
        WorkflowStep(
            "invert", invert, {"number": "numbers"}, map_over="numbers", fallback=lambda error: 0.0
        ),
    ]
    report = run_in_virtual_time(run_pipeline(steps))

    *_, check, inverted = _Page(report._repr_html_()).rows
    assert "fell back: ValueError: <script>alert(1)</script>" in check
    assert "1 of 2 items fell back" in inverted


def test_of_many_steps_those_that_did_not_succeed_stay() -> None:
    names = [f"step {number}" for number in range(MOST_ROWS + 20)]
    view = RunView([RunStarted("r", 0.0, dict.fromkeys(names, ()))])
    for name in names[:-2]:
        view.apply(AttemptStarted(name, 1, 0.0))
        view.apply(StepSucceeded(name, 1, 1.0, None))
    view.apply(AttemptStarted(names[-2], 1, 0.0))
    view.apply(StepFailed(names[-2], 1, 2.0, OSError()))
    view.apply(StepSkipped(names[-1], 2.0, "it was too late"))

    rows = _Page(to_notebook_html(view)).rows
    assert len(rows) == 1 + 1 + MOST_ROWS + 1
    assert rows[-2].split()[:2] == ["step", str(MOST_ROWS + 19)]
    assert rows[-2].endswith("it was too late ")
    assert rows[-1] == "and 20 steps more "


def test_a_run_is_shown_while_it_runs_and_at_most_five_times_a_second(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shown: list[tuple[float, str]] = []

    class Handle:
        def update(self, bundle: dict[str, str], *, raw: bool) -> None:
            shown.append((asyncio.get_running_loop().time(), bundle["text/plain"]))

    def display(bundle: dict[str, str], *, raw: bool, display_id: bool) -> Handle:
        handle = Handle()
        handle.update(bundle, raw=raw)
        return handle

    monkeypatch.setattr(asyncflow.notebook, "display", display)

    async def nap() -> None:
        await asyncio.sleep(0.05)

    steps = [WorkflowStep(str(n), nap, [str(n - 1)] if n else []) for n in range(20)]
    run_in_virtual_time(run_pipeline(steps, observers=[NotebookView()]))

    times = [at - 1_000 for at, _ in shown]  # virtual time starts there
    assert times == pytest.approx([0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.0])
    assert "RUNNING" in shown[0][1]
    assert "PASSED" in shown[-1][1]
    assert shown[-1][1].endswith("20 succeeded")


@pytest.mark.process
def test_a_notebook_shows_the_run_and_its_report() -> None:
    cell = """
        import asyncio
        from asyncflow import WorkflowStep, run_pipeline
        from asyncflow.notebook import NotebookView

        async def nap():
            await asyncio.sleep(0.3)

        steps = [WorkflowStep("a", nap), WorkflowStep("b", nap, ["a"])]
        report = await run_pipeline(steps, observers=[NotebookView()])
        report
    """
    code = "\n".join(line[8:] for line in cell.splitlines())
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    nbclient.NotebookClient(book, kernel_name="python3", timeout=60).execute()

    live, report = [output["data"]["text/html"] for output in book.cells[0].outputs]
    for html in (live, report):
        rows = _Page(html).rows
        assert "PASSED" in rows[0]
        assert [row.split()[0] for row in rows[2:]] == ["a", "b"]


def test_a_missing_ipython_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "IPython.display", None)
    monkeypatch.delitem(sys.modules, "asyncflow.notebook")

    with pytest.raises(ImportError, match="needs IPython"):
        importlib.import_module("asyncflow.notebook")
