"""GitHub Actions shows a run: Markdown that no error can break, and errors at their lines."""

from __future__ import annotations

import io
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from asyncflow import RestoredError, RunReport, RunStatus, StepResult, WorkflowStep, run_pipeline
from asyncflow._core.results import StepStatus
from asyncflow.github import (
    MAX_SUMMARY_BYTES,
    to_markdown,
    write_errors,
    write_summary,
)
from asyncflow.testing import run_in_virtual_time

HOSTILE = (
    "a | b <script>x</script> `c` **d** [e](http://f.g) </pre>\n\n# h\n</details> www.i.org $j$"
)


class Page(HTMLParser):
    """What a reader of the rendered Markdown sees."""

    def __init__(self, markdown: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.cells: list[str] = []
        self.traces: list[str] = []
        self.open: list[str] = []
        self.feed(MarkdownIt("commonmark").enable("table").render(markdown))

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)
        self.open.append(tag)
        if tag == "td":
            self.cells.append("")
        if tag == "pre":
            self.traces.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "td" in self.open:
            self.cells[-1] += data
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


class TestSummary:
    def test_it_has_the_verdict_the_failed_steps_and_their_tracebacks(self) -> None:
        markdown = to_markdown(failing(ValueError("no such row")))

        page = Page(markdown)
        assert ", <code>" not in markdown  # it has no label
        assert markdown.startswith("\n### <code>r</code> FAILED\n\nFAILED in 100 ms&#58; 1 succ")
        assert (
            "1 succeeded, 1 failed, 2 skipped, 1 retried (fetch). Run <code>r</code>.\n" in markdown
        )
        assert page.cells[:5] == ["train", "FAILED", "1", "0 ms", "ValueError: no such row"]
        assert len(page.traces) == 1
        assert "raise error\nValueError: no such row" in page.traces[0]
        assert "\n- 2 steps skipped: it depends on step 'train', which fail" in markdown
        assert page.cells[5:8] == ["fetch", "SUCCESS", "100 ms"]

    def test_it_has_the_label_of_the_run(self) -> None:
        steps = [WorkflowStep("lost", lost)]

        markdown = to_markdown(
            run_in_virtual_time(run_pipeline(steps, run_id="r", label="order #1"))
        )

        assert "Run <code>r</code>, <code>order &#35;1</code>.\n" in markdown

    def test_it_says_what_failed_of_steps_that_succeeded(self) -> None:
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

        markdown = to_markdown(run_in_virtual_time(run_pipeline(steps)))

        Page(markdown)
        assert "4 succeeded, 2 items failed, tolerated, 3 fell back. Run" in markdown
        assert "- <code>tolerant</code>: 2 of 3 items failed, tolerated\n" in markdown
        assert "- <code>guarded</code>: 2 of 3 items fell back\n" in markdown
        assert "- <code>guess</code>: fell back&#58; OSError&#58; no &#60;page&#62;\n" in markdown

    def test_a_passed_run_has_no_table_of_failures(self) -> None:
        async def fine() -> None: ...

        report = run_in_virtual_time(run_pipeline([WorkflowStep("s", fine)], run_id="r"))

        assert to_markdown(report) == (
            "\n### <code>r</code> PASSED\n\nPASSED in 0 ms&#58; 1 succeeded. Run <code>r</code>.\n"
        )

    def test_an_error_and_a_name_can_be_anything(self) -> None:
        markdown = to_markdown(failing(ValueError(HOSTILE), HOSTILE.partition("\n")[0]))

        page = Page(markdown)
        assert set(page.tags) <= ALLOWED
        assert page.open == []
        assert page.cells[0] == HOSTILE.partition("\n")[0]
        assert page.cells[4] == f"ValueError: {HOSTILE.partition(chr(10))[0]}"
        assert HOSTILE in page.traces[0]
        cell = markdown.partition("ValueError")[2].partition("\n")[0]
        assert "http:" not in cell
        assert "www.i" not in cell

    @given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
    def test_no_text_adds_a_tag(self, text: str) -> None:
        page = Page(to_markdown(report_of([failed(f"s{text}", ValueError(text))])))

        assert set(page.tags) <= ALLOWED
        assert page.open == []
        assert len(page.traces) == 1
        assert len(page.cells) == 5

    def test_secrets_and_outputs_are_not_in_it(self) -> None:
        async def token() -> str:
            return "hunter2"

        async def use(token: str) -> None:
            raise ValueError("no access")

        steps = [WorkflowStep("token", token, secret=True), WorkflowStep("use", use, ["token"])]
        report = run_in_virtual_time(run_pipeline(steps, inputs={}))

        assert "hunter2" not in to_markdown(report)

    def test_many_failures_and_reasons_are_counted(self) -> None:
        results = [failed(f"step {number}", ValueError(f"{number}")) for number in range(150)]
        results += [
            StepResult(f"lost {number}", StepStatus.SKIPPED, reason=f"reason {number}")
            for number in range(12)
        ]

        markdown = to_markdown(report_of(results))

        page = Page(markdown)
        assert "\n50 more steps with errors\n" in markdown
        assert len(page.traces) == 20
        assert "\n130 more tracebacks left out\n" in markdown
        assert "\n- 2 more reasons\n" in markdown

    def test_a_long_traceback_loses_its_beginning(self) -> None:
        error = RestoredError("ValueError", "x", "\n".join(f"line {n}" for n in range(9_000)))

        (trace,) = Page(to_markdown(report_of([failed("s", error)]))).traces

        assert trace.startswith("\n(")
        assert " characters left out)\n" in trace[:50]
        assert trace.endswith("line 8999\n")

    @pytest.mark.parametrize("limit", [0, 200, 900, 2_000, 5_000, 20_000, 60_000])
    def test_it_is_never_larger_than_it_may_be(self, limit: int) -> None:
        results = [failed(f"step é {n}", ValueError("é" * 300)) for n in range(40)]

        markdown = to_markdown(report_of(results), limit=limit)

        assert len(markdown.encode()) <= limit
        assert ("The rest is left out" in markdown) is (bool(markdown) and limit < 60_000)
        assert bool(markdown) is (limit >= 200)
        page = Page(markdown)
        assert page.open == []


class TestFile:
    def test_it_appends_to_the_file_of_the_job(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "summary.md"
        monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(path))
        report = failing(ValueError("x"))

        assert write_summary(report)
        assert write_summary(report)

        assert path.read_text(encoding="utf-8") == to_markdown(report) * 2

    def test_what_is_in_the_file_counts(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "summary.md"
        monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(path))
        path.write_bytes(b"x" * (MAX_SUMMARY_BYTES - 700))

        assert write_summary(failing(ValueError("y" * 400)))
        assert path.stat().st_size <= MAX_SUMMARY_BYTES
        assert "The rest is left out" in path.read_text(encoding="utf-8")
        path.write_bytes(b"x" * MAX_SUMMARY_BYTES)
        assert not write_summary(failing(ValueError("x")))
        assert path.stat().st_size == MAX_SUMMARY_BYTES

    def test_elsewhere_nothing_is_written(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)

        assert not write_summary(failing(ValueError("x")))


class TestErrors:
    @pytest.fixture(autouse=True)
    def job(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("GITHUB_ACTIONS", "true")
        monkeypatch.setenv("GITHUB_WORKSPACE", str(Path(__file__).parents[2]))

    def commands(self, report: RunReport) -> list[str]:
        file = io.StringIO()
        number = write_errors(report, file)
        lines = file.getvalue().splitlines()
        assert len(lines) == number
        return lines

    def test_an_error_is_at_the_line_that_raised_it(self) -> None:
        (command,) = self.commands(failing(ValueError("no such row")))

        line = next(
            number
            for number, text in enumerate(Path(__file__).read_text().splitlines(), 1)
            if text.strip() == "raise error"
        )
        assert command == (
            f"::error title=Step train failed,file=tests/observe/test_github.py,line={line}"
            "::ValueError: no such row"
        )

    def test_nothing_in_an_error_ends_the_command(self) -> None:
        error = RestoredError("ValueError", "50%0A,::warning::x", "")
        report = report_of([failed("a:b,c%", error)])

        assert self.commands(report) == [
            "::error title=Step a%3Ab%2Cc%25 failed::ValueError: 50%250A,::warning::x"
        ]

    def test_all_lines_of_a_message_are_shown(self) -> None:
        report = report_of([failed("a", RestoredError("ValueError", "2 wrong:\n  day\r\n  price"))])

        assert self.commands(report) == [
            "::error title=Step a failed::ValueError: 2 wrong:%0A  day%0A  price"
        ]

    def test_a_file_elsewhere_is_not_named(self) -> None:
        trace = 'Traceback (most recent call last):\n  File "/srv/a.py", line 3, in go\nValueError'

        (command,) = self.commands(report_of([failed("s", RestoredError("E", "x", trace))]))

        assert command == "::error title=Step s failed::E: x"

    def test_there_are_at_most_ten(self) -> None:
        results = [failed(f"step {number}", ValueError("x")) for number in range(12)]

        assert len(self.commands(report_of(results))) == 10

    def test_they_go_to_the_standard_error(self, capsys: pytest.CaptureFixture[str]) -> None:
        write_errors(failing(ValueError("x")))

        out, err = capsys.readouterr()
        assert (out, err.count("::error ")) == ("", 1)

    def test_elsewhere_nothing_is_written(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("GITHUB_ACTIONS", "false")

        assert self.commands(failing(ValueError("x"))) == []
