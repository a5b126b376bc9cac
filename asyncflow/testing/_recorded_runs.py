"""The runs of a test, for its failure report: a timeline of each, and what a comparison was about.

Rules:

1. A recorded run keeps text and figures. It keeps no output and no error alive, since a test may
   check that nothing does; only with ``--asyncflow-html`` does it keep the report.
2. A test may have many runs, and a run many steps: the first ones are recorded.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from asyncflow._core.analysis.looks import Look, look_of
from asyncflow._core.analysis.remarks import remarks_of
from asyncflow._core.history.report import RunReport
from asyncflow._core.history.results import StepResult, StepStatus
from asyncflow._core.record import values_by_name
from asyncflow._core.text import describe_error, duration, escape_controls, plural
from asyncflow._core.value_size import safe_repr
from asyncflow._runtime.planned_pipeline import report_watchers

_MOST_RUNS = 10
_MOST_STEPS = 50
_MOST_FAILURES = 10
_BAR = 32
"""How many cells a timeline is wide."""


class _Span(NamedTuple):
    """An attempt, or a wait for a signal."""

    started_ms: float
    ended_ms: float | None
    """``None`` for a wait that has not ended."""
    mark: str


class _RecordedStep(NamedTuple):
    """What a timeline shows of a step."""

    name: str
    status: StepStatus
    look: Look
    words: str
    spans: list[_Span]
    failures: list[str]
    """What its attempts failed with, unless ``words`` say it."""


class _RecordedRun(NamedTuple):
    title: str
    duration_ms: float
    steps: list[_RecordedStep]
    left_out: int
    """How many more steps it had."""


class RecordedRuns:
    """The runs of one test."""

    def __init__(self, *, keeps_reports: bool = False) -> None:
        self._keeps_reports = keeps_reports
        self._runs: list[_RecordedRun] = []
        self._left_out = 0
        self._reports: list[RunReport] = []

    def begin(self) -> None:
        """Record the runs that end from now on, in whatever thread and loop."""
        report_watchers.append(self._record)

    def end(self) -> None:
        """Record no more."""
        report_watchers.remove(self._record)

    def __bool__(self) -> bool:
        return bool(self._runs)

    def _record(self, report: RunReport) -> None:
        if len(self._runs) == _MOST_RUNS:
            self._left_out += 1
            return
        self._runs.append(_recorded(report))
        if self._keeps_reports:
            self._reports.append(report)

    def lines(self) -> Iterator[str]:
        """Yield the timelines of the runs."""
        for run in self._runs:
            yield from _timeline(run)
        if self._left_out:
            yield f"and {plural(self._left_out, 'more run')}"

    def with_status(self, status: str) -> Iterator[str]:
        """Yield a line for each step that ended with a status."""
        for run in self._runs:
            for step in run.steps:
                if step.status == status:
                    yield f"{step.name}: {step.words}  ({run.title})"

    def write_pages(self, folder: Path, test: str) -> Iterator[str]:
        """Write a page for each run, named after the test; yield a line for each."""
        for number, report in enumerate(self._reports, 1):
            path = folder / f"{_file_name(test)}-{number}.html"
            try:
                folder.mkdir(parents=True, exist_ok=True)
                path.write_text(report.to_html(), encoding="utf-8")
            except (ImportError, OSError) as error:  # the extra is missing, or it can't write there
                yield f"no page: {error}"
                return
            yield f"page: {path}"


def _file_name(test: str) -> str:
    """Return the id of a test as a file name: no two tests have the same one."""
    path = re.sub("::|/", "-", test)
    name = re.sub(r"[^\w.-]+", "-", path, flags=re.ASCII)[-150:]
    if name != path:  # such as those of a parameter: [<] and [>]
        digest = blake2b(test.encode("utf-8", "surrogatepass"), digest_size=4)
        name = f"{name}-{digest.hexdigest()}"
    return name


@contextmanager
def unrecorded() -> Iterator[None]:
    """Keep the runs of a ``with`` block out of the report of a failed test: they are too many."""
    watchers = report_watchers.copy()
    report_watchers.clear()
    try:
        yield
    finally:
        report_watchers[:] = watchers


def timeline(report: RunReport) -> str:
    """Return what a run did when, as text."""
    return "\n".join(_timeline(_recorded(report)))


def _recorded(report: RunReport) -> _RecordedRun:
    name = f"{escape_controls(report.pipeline)} " if report.pipeline else ""
    spent = duration(report.total_duration_ms)
    title = f"{name}{report.status} in {spent}, run {escape_controls(report.run_id)}"
    results = report.results
    return _RecordedRun(
        title,
        report.total_duration_ms,
        [_row_of(result) for result in results[:_MOST_STEPS]],
        max(0, len(results) - _MOST_STEPS),
    )


def _row_of(result: StepResult) -> _RecordedStep:
    parts = []
    if result.items is not None:
        parts.append(plural(len(result.items), "item"))
    if result.attempts:
        parts += [plural(result.attempts, "attempt"), duration(result.duration_ms)]
    parts += filter(None, remarks_of(result))
    spans = [
        _Span(
            *(attempt.started_ms, attempt.started_ms + attempt.duration_ms),
            mark="#" if attempt.error is None else "x",
        )
        for each in (result, *(result.items or ()))
        if not (each is result and result.items is not None)
        for attempt in each.history
    ]
    name = escape_controls(result.step_name)
    failures = [*islice(_failures(result), _MOST_FAILURES + 1)]
    if len(failures) > _MOST_FAILURES:
        failures[-1] = "and more failed attempts"
    if (wait := result.wait) is not None:
        spans.append(_Span(wait.started_ms, wait.ended_ms, "/"))
    return _RecordedStep(name, result.status, look_of(result), ", ".join(parts), spans, failures)


def _failures(result: StepResult) -> Iterator[str]:
    for attempt in result.history:
        if attempt.error is not None and attempt.error is not result.error:
            yield f"attempt {attempt.number}: {describe_error(attempt.error)}"
    for index, item in enumerate(result.items or ()):
        for attempt in item.history:
            if attempt.error is not None:
                yield f"item {index}, attempt {attempt.number}: {describe_error(attempt.error)}"


def _timeline(run: _RecordedRun) -> Iterator[str]:
    yield run.title
    width = max([len(step.name) for step in run.steps], default=0)
    for step in run.steps:
        look, bar = step.look, _bar(step.spans, run.duration_ms)
        yield f"  {look.symbol} {look.word:<9} {step.name:<{width}} |{bar}| {step.words}"
        yield from (f"      {failure}" for failure in step.failures)
    if run.left_out:
        yield f"  and {plural(run.left_out, 'more step')}"


def _bar(spans: list[_Span], whole_ms: float) -> str:
    """Return when attempts ran: ``#`` for one that succeeded, ``x`` for one that failed.

    ``/`` is a wait for a signal.

    Of two in one cell, the later one is drawn.
    """
    cells = [" "] * _BAR
    scale = _BAR / whole_ms if whole_ms > 0 else 0.0
    for span in spans:
        first = min(int(span.started_ms * scale), _BAR - 1)
        ended_ms = whole_ms if span.ended_ms is None else span.ended_ms
        last = min(int(ended_ms * scale), _BAR - 1)
        for at in range(first, max(last, first + 1)):
            cells[at] = span.mark
    return "".join(cells)


def explain(op: str, left: object, right: object, runs: RecordedRuns) -> list[str] | None:
    """Return the lines that say what a failed comparison of a status or a result was about.

    ``op`` is the operator, and ``runs`` are those of the test.
    """
    title = f"{safe_repr(left)} {op} {safe_repr(right)}"
    if isinstance(left, StepStatus) and op == "==":
        found = [*runs.with_status(left)]
        return [title, f"Steps that are {left}:", *(f"  {line}" for line in found)]
    if isinstance(left, StepResult) and isinstance(right, StepResult) and op == "==":
        return [f"results of {left.step_name!r} and {right.step_name!r}", *_differing(left, right)]
    if isinstance(left, RunReport) and isinstance(right, RunReport) and op == "==":
        return [
            title,
            "Two reports are equal only if they are the same object; compare their results, or "
            "use report.compare(baseline).",
        ]
    return None


def _differing(left: StepResult, right: StepResult) -> Iterator[str]:
    fields: dict[str, Any] = values_by_name(right)
    for name, value in values_by_name(left).items():
        if not (value is fields[name] or is_equal(value, fields[name])):
            yield f"  {name}: {safe_repr(value)} != {safe_repr(fields[name])}"


def is_equal(one: object, other: object) -> bool:
    try:
        return bool(one == other)
    except Exception:  # they belong to users
        return False
