"""A report as Markdown says how a run ended, whatever its names and errors contain."""

from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from asyncflow import (
    Pipeline,
    RestoredError,
    RunReport,
    RunStatus,
    StepResult,
    WorkflowStep,
    run_pipeline,
)
from asyncflow._core.history.results import StepStatus
from asyncflow.testing import run_in_virtual_time

HOSTILE = (
    "a | b <script>x</script> `c` **d** [e](http://f.g) </pre>\n\n# h\n</details> www.i.org $j$"
)


class Page(HTMLParser):
    """What a reader of the rendered Markdown sees."""

    def __init__(self, markdown: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.rows: list[list[str]] = []
        self.traces: list[str] = []
        self.open: list[str] = []
        self.feed(MarkdownIt("commonmark").enable("table").render(markdown))

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)
        self.open.append(tag)
        if tag == "tr" and "tbody" in self.open:
            self.rows.append([])
        if tag == "td":
            self.rows[-1].append("")
        if tag == "pre":
            self.traces.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "td" in self.open:
            self.rows[-1][-1] += data
        if "pre" in self.open:
            self.traces[-1] += data


ALLOWED = {
    *("h3", "p", "code", "table", "thead", "tbody", "tr", "th", "td", "ul", "li"),
    *("details", "summary", "pre"),
}


def failing(error: Exception, name: str = "train") -> RunReport:
    """Return the report of a run with a step that fails, one that is retried, and dependents."""
    calls: list[int] = []

    async def fail() -> None:
        raise error

    async def flaky() -> None:
        calls.append(1)
        if len(calls) == 1:
            raise ConnectionError("refused")

    steps = [
        WorkflowStep("fetch", flaky, max_retries=2, retry=100),
        WorkflowStep(name, fail, ["fetch"]),
        WorkflowStep("publish", flaky, [name]),
        WorkflowStep("tell", flaky, [name]),
    ]
    return run_in_virtual_time(run_pipeline(steps, run_id="r", fail_fast=False))


def report_of(results: list[StepResult]) -> RunReport:
    return RunReport(
        "r", results, total_duration_ms=9_000.0, wall_time=0.0, status=RunStatus.FAILED
    )


def failed(name: str, error: BaseException) -> StepResult:
    return StepResult(
        name,
        StepStatus.FAILED,
        1,
        5.0,
        error=error,
        started_ms=1.0,
    )


async def lost() -> int:
    raise OSError("no <page>")


def test_it_has_the_steps_the_failed_ones_first_and_their_tracebacks() -> None:
    markdown = failing(ValueError("no such row")).to_markdown()

    page = Page(markdown)
    assert markdown.startswith("### <code>r</code> FAILED\n\nRun <code>r</code>: 100 ms\n\n| step")
    assert page.rows == [
        ["train", "✗ FAILED", "1", "0 ms", "ValueError: no such row"],
        ["publish", "⊘ SKIPPED", "0", "0 ms", "it depends on step 'train', which failed"],
        ["tell", "⊘ SKIPPED", "0", "0 ms", "it depends on step 'train', which failed"],
        ["fetch", "✓ SUCCESS", "2", "100 ms", ""],
    ]
    assert len(page.traces) == 1
    assert "raise error\nValueError: no such row" in page.traces[0]


def test_the_first_failure_comes_first() -> None:
    late, early = failed("b", ValueError("b")), failed("a", ValueError("a"))

    page = Page(report_of([replace(late, duration_ms=9.0), early]).to_markdown())

    assert [row[0] for row in page.rows] == ["a", "b"]
    assert [text.splitlines()[-1] for text in page.traces] == ["ValueError: a", "ValueError: b"]


def test_it_has_the_label_of_the_run_and_why_it_stopped() -> None:
    etl = Pipeline("etl")
    etl.step(lost)

    report = run_in_virtual_time(etl.with_options(run_id="r", label="order #1").run())
    markdown = report.to_markdown()

    assert markdown.startswith("### <code>etl</code> FAILED\n")
    assert "Run <code>r</code>, <code>order &#35;1</code>: 0 ms\n" in markdown
    assert "\nStopped: step 'lost' failed and fail&#95;fast is on\n" in markdown


def test_it_says_what_failed_of_steps_that_succeeded() -> None:
    async def numbers() -> list[int]:
        return [1, 2, 3]

    async def half(number: int) -> int:
        if number < 3:
            raise ValueError(f"{number} | is <odd>")
        return number

    over: dict[str, Any] = {"depends_on": {"number": "numbers"}, "map_over": "numbers"}
    steps = [
        WorkflowStep("numbers", numbers),
        WorkflowStep("tolerant", half, tolerated_failures=2, **over),
        WorkflowStep("guarded", half, fallback=lambda error: 0, **over),
        WorkflowStep("guess", lost, fallback=lambda error: 0),
    ]

    markdown = run_in_virtual_time(run_pipeline(steps)).to_markdown()

    page = Page(markdown)
    assert {row[0]: row[4] for row in page.rows} == {
        "numbers": "",
        "tolerant": "2 of 3 items failed, tolerated (ValueError x 2)",
        "guarded": "2 of 3 items fell back",
        "guess": "fell back: OSError: no <page>",
    }
    of_items = [trace.splitlines()[-1] for trace in page.traces]
    assert of_items == ["ValueError: 1 | is <odd>"] * 2  # one for each group
    assert (
        "Traceback of <code>tolerant</code>: ValueError x 2, &#91;0&#93;, &#91;1&#93;" in markdown
    )


def test_an_error_and_a_name_can_be_anything() -> None:
    markdown = failing(ValueError(HOSTILE), HOSTILE.partition("\n")[0]).to_markdown()

    page = Page(markdown)
    assert set(page.tags) <= ALLOWED
    assert page.open == []
    name, *_, note = page.rows[0]
    assert name == HOSTILE.partition("\n")[0]
    assert note == f"ValueError: {HOSTILE.partition(chr(10))[0]}"
    assert HOSTILE in page.traces[0]
    cell = markdown.partition("ValueError")[2].partition("\n")[0]
    assert "http:" not in cell
    assert "www.i" not in cell


@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_no_text_adds_a_tag(text: str) -> None:
    page = Page(report_of([failed(f"s{text}", ValueError(text))]).to_markdown())

    assert set(page.tags) <= ALLOWED
    assert page.open == []
    assert len(page.traces) == 1
    assert len(page.rows) == 1


def test_it_is_cut_to_less_than_the_summary_of_a_job_may_have() -> None:
    error = RestoredError("ValueError", "é&" * 5_000, "\n".join("&" * 99 for _ in range(9_000)))

    markdown = report_of([failed(f"{n}" + "&" * 900, error) for n in range(150)]).to_markdown()

    page = Page(markdown)
    assert len(markdown.encode()) < 1024 * 1024
    assert (len(page.rows), len(page.traces)) == (100, 10)
    assert "\nand 50 more steps\n" in markdown
    assert markdown.endswith("\nand 140 more tracebacks\n")
    assert page.traces[0].startswith("\n(891,999 characters left out)\n")
    assert page.open == []
