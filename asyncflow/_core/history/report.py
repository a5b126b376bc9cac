"""The report of a run: a mapping of results, its critical path, and its text.

A report outlives its run: it can be kept, pickled and sent, and no output or error in it can break
its text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, overload

from asyncflow._core.arguments import AttributeValue, check_count
from asyncflow._core.errors import RunWaitingError, StepTimeoutError
from asyncflow._core.history.log import History
from asyncflow._core.history.results import (
    RunStatus,
    Segment,
    StepResult,
    StepStatus,
    latest_number,
    picklable_output,
    run_facts,
    with_note,
)
from asyncflow._core.text import did_you_mean, escape_controls
from asyncflow._core.tracebacks import strip_frames_until

if TYPE_CHECKING:
    from asyncflow._core.analysis.comparison import RunComparison
    from asyncflow._core.history.log import LogEntry
    from asyncflow.events import Event

T = TypeVar("T")


class RunReport(Mapping[str, StepResult]):
    """The results of a run: a mapping of step name to `StepResult`, in topological order.

    A report holds no task and no event loop, so it can be kept, pickled and sent. Errors keep
    their tracebacks; pickle leaves these out, and JSON has their text. `RestoredOutput` and
    `RestoredError` stand for what could not be pickled. Two reports are equal only if they are the
    same object: outputs are never compared. A report is true if all its steps passed, even an empty
    one: ``if await pipeline.run(): ...``.

    Attributes:
        run_id: Identifies the run.
        wall_time: When the run started, in seconds since the epoch (UTC).
        total_duration_ms: For how many milliseconds its segments were running, in all; see
            `span_ms`.
        stop_reason: Why the run stopped early, such as a failed step under ``fail_fast`` or the
            run's deadline; ``None`` if it did not.
        pipeline: What the pipeline is called, if it has a name.
        inputs: The run's inputs. A `RestoredOutput` stands for each secret one.
        status: ``PASSED`` or ``FAILED``; ``INTERRUPTED`` for a run that was stopped from outside,
            whose report an error or a journal has; ``WAITING`` if it continues with a signal, for
            which no process waits; and in a report from a journal, for a run that has not ended,
            ``RUNNING``, or ``ORPHANED`` if its process is gone.
        parent: The id of the run one of whose steps started this one; empty if none did.
        parent_step: The name of that step.
        rerun_of: The id of the run whose results this one reuses, if it is a rerun.
        label: What the run is about; empty if it was given no label. A rerun has that of the other
            run, unless it was given one.
        attributes: What programs find the run by: names with strings, numbers and bools. A rerun
            has those of the other run, unless it was given some.
    """

    __slots__ = (
        "_history",
        "_known",
        "_segments",
        "attributes",
        "inputs",
        "label",
        "parent",
        "parent_step",
        "pipeline",
        "rerun_of",
        "run_id",
        "status",
        "stop_reason",
        "total_duration_ms",
        "wall_time",
    )

    def __init__(
        self,
        run_id: str,
        results: Iterable[StepResult],
        *,
        total_duration_ms: float,
        wall_time: float,
        stop_reason: str | None = None,
        pipeline: str = "",
        inputs: Mapping[str, Any] | None = None,
        status: RunStatus | None = None,
        segments: Sequence[Segment] = (),
        parent: str = "",
        parent_step: str = "",
        rerun_of: str = "",
        label: str = "",
        attributes: Mapping[str, AttributeValue] | None = None,
    ) -> None:
        self.run_id: str = run_id
        self.total_duration_ms: float = total_duration_ms
        self.wall_time: float = wall_time
        self.stop_reason: str | None = stop_reason
        self.pipeline: str = pipeline
        self.inputs: Mapping[str, Any] = {} if inputs is None else inputs
        self.parent: str = parent
        self.parent_step: str = parent_step
        self.rerun_of: str = rerun_of
        self.label: str = label
        self.attributes: Mapping[str, AttributeValue] = {} if attributes is None else attributes
        self._segments = segments
        self._history: History | None = None
        self._known: dict[str, StepResult] | None
        try:
            self._known = {result.step_name: result for result in results}
        except (AttributeError, TypeError):
            kind = type(results).__name__
            raise TypeError(f"results must be a list of StepResult objects, not {kind}") from None
        if not isinstance(status, RunStatus | None):
            raise TypeError(f"status must be a RunStatus, not {type(status).__name__}")
        self.status: RunStatus = status or (
            RunStatus.PASSED if self.all_passed else RunStatus.FAILED
        )

    @property
    def _by_name(self) -> dict[str, StepResult]:
        if self._known is None:
            assert self._history is not None
            self._known = self._history.results(self.inputs)
        return self._known

    def __getitem__(self, step_name: str) -> StepResult:
        try:
            return self._by_name[step_name]
        except KeyError:
            hint = did_you_mean(step_name, self._by_name) if isinstance(step_name, str) else ""
            raise KeyError(f"no step is named {step_name!r}{hint}") from None

    def __contains__(self, step_name: object) -> bool:
        return step_name in self._by_name  # a miss is no mistake, so it needs no hint

    @overload
    def get(self, step_name: str, /) -> StepResult | None: ...
    @overload
    def get(self, step_name: str, /, default: StepResult | T) -> StepResult | T: ...
    def get(self, step_name: str, /, default: object = None) -> object:
        """Return the result of that step, or the default if there is no such step."""
        return self._by_name.get(step_name, default)  # as above

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_name)

    def __len__(self) -> int:
        return len(self._by_name)

    def __bool__(self) -> bool:
        return self.all_passed  # a mapping is true if it is not empty, and this one says more

    def __eq__(self, other: object) -> bool:
        return self is other  # the inherited one compares outputs, and those may raise

    def __hash__(self) -> int:
        return id(self)

    @property
    def results(self) -> list[StepResult]:
        """All results, in topological order; ties in the order of declaration."""
        return list(self._by_name.values())

    @property
    def succeeded(self) -> list[StepResult]:
        """The results with status ``SUCCESS``."""
        return self._with_status(StepStatus.SUCCESS)

    @property
    def failed(self) -> list[StepResult]:
        """The results with status ``FAILED``."""
        return self._with_status(StepStatus.FAILED)

    @property
    def skipped(self) -> list[StepResult]:
        """The results with status ``SKIPPED``."""
        return self._with_status(StepStatus.SKIPPED)

    @property
    def cancelled(self) -> list[StepResult]:
        """The results with status ``CANCELLED``."""
        return self._with_status(StepStatus.CANCELLED)

    @property
    def reused(self) -> list[StepResult]:
        """The results that came from the journal; those steps did not run again."""
        return [result for result in self._by_name.values() if result.reused]

    @property
    def waiting(self) -> dict[str, StepResult]:
        """The results of the steps that wait for a signal, by name."""
        return {n: each for n, each in self._by_name.items() if each.waiting_since is not None}

    def _with_status(self, status: StepStatus) -> list[StepResult]:
        return [result for result in self._by_name.values() if result.status is status]

    @property
    def all_passed(self) -> bool:
        """Whether every step succeeded or was skipped by condition. True for an empty pipeline."""
        return all(
            result.status is StepStatus.SUCCESS
            or (result.status is StepStatus.SKIPPED and result.by_condition)
            for result in self._by_name.values()
        )

    @property
    def segments(self) -> tuple[Segment, ...]:
        """What each process did of the run: one segment, and one more for each resumption."""
        if self._segments:
            return tuple(self._segments)
        has_ended = self.status not in (RunStatus.RUNNING, RunStatus.ORPHANED)
        ended_ms = self.total_duration_ms if has_ended else None
        return (Segment(0.0, self.wall_time, ended_ms),)

    @property
    def span_ms(self) -> float:
        """Milliseconds from the start of the run to the end of its last segment.

        Unlike ``total_duration_ms``, it includes the pauses between segments, in which no process
        ran the run. These are by wall clock: where that was set back, a pause counts as none.
        """
        return self.total_duration_ms + paused_ms(self.segments)

    @property
    def critical_path(self) -> list[str]:
        """The names of the steps that decided when the run ended, in order.

        It is read backwards from the step that ended last: before each step comes the one whose end
        let it start, which is the last of its dependencies, or later the last step of the tier
        before or one that held a slot. Before a step whose items flow comes the one that they come
        from. Only a shorter chain can make the run shorter.

        Only steps that started, or waited for a signal, are named: how long these did says their
        `StepResult.wait`. An empty report has an empty path.
        """
        from asyncflow._core.analysis.critical_path import (  # few programs need it
            critical_path,
            time_of,
        )

        was_resumed = len(self.segments) > 1
        return critical_path(
            time
            for result in self._by_name.values()
            if (time := time_of(result, was_resumed=was_resumed))
        )

    def summary(self) -> dict[str, int | float]:
        """Return the number of steps, of each status, and the duration.

        The keys are ``total_steps``, ``succeeded``, ``failed``, ``skipped``, ``cancelled`` and
        ``total_duration_ms``.
        """
        return {
            "total_steps": len(self),
            "succeeded": len(self.succeeded),
            "failed": len(self.failed),
            "skipped": len(self.skipped),
            "cancelled": len(self.cancelled),
            "total_duration_ms": self.total_duration_ms,
        }

    def compare(self, baseline: RunReport) -> RunComparison:
        """Compare the run with another one: what differs in inputs, steps, outputs and status.

        Only a journal knows the versions of steps: ``journal.compare`` compares these too.

        Args:
            baseline: The report of the other run. What takes longer in this run is slower.

        Raises:
            TypeError: It is no report.
        """
        if not isinstance(baseline, RunReport):
            raise TypeError(f"baseline must be a RunReport, not {type(baseline).__name__}")
        from asyncflow._core.analysis.comparison import compare  # it needs this module

        return compare(self, baseline)

    def raise_for_failures(self) -> None:
        """Raise what the failed steps raised; return if no step failed and the run has ended.

        A step that the run's deadline cancelled counts as failed here.

        Raises:
            Exception: The error of the only failed step, as itself, with a note that names
                the step.
            RunWaitingError: No step failed, and the run waits for signals.
            ExceptionGroup: The errors of several failed steps, each with such a note.
            TimeoutError: The run exceeded its deadline while no step was running.
        """
        run_id = self.run_id
        errors = [
            _error_with_note(result, run_id) for result in self.results if _has_failed(result)
        ]
        if not errors and self.status is RunStatus.WAITING:
            raise RunWaitingError(run_id, tuple(self.waiting))
        if not errors and self.stop_reason is not None and not self.all_passed:
            raise TimeoutError(f"{self.stop_reason}, in run {run_id}")
        # No variable of this frame may hold the error, or the report: the error holds this frame.
        del self
        if len(errors) == 1:
            raise errors.pop()
        if errors:
            raise ExceptionGroup(f"{len(errors)} steps of run {run_id} failed", errors)

    def __str__(self) -> str:
        segment = len(self.segments)
        return "\n".join(
            [
                f"Pipeline {self.status}",
                *[result_line(result, segment) for result in self._by_name.values()],
                f"Total: {self.total_duration_ms:.0f}ms",
            ]
        )

    def __repr__(self) -> str:
        return f"<RunReport {self.run_id} {self.status}: {len(self)} step(s)>"

    def __reduce__(self) -> tuple[object, ...]:
        made = partial(
            RunReport,
            self.run_id,
            self.results,
            total_duration_ms=self.total_duration_ms,
            wall_time=self.wall_time,
            stop_reason=self.stop_reason,
            pipeline=self.pipeline,
            inputs={name: picklable_output(value) for name, value in self.inputs.items()},
            status=self.status,
            segments=self.segments,
            **run_facts(self),
        )
        if self._history is None or not self._history.is_whole:
            return made, ()
        return _restored, (made, tuple(self._history.events()))

    def to_json(self, *, indent: int | None = None) -> str:
        """Return the report as JSON text, of which `from_json` makes the same report.

        An output that JSON would not give back equal (a tuple, a set, a date, an object) appears
        as its ``repr``, and one of more than 10 MB as a note; an error as its type, its message and
        its formatted traceback, of each of which 100,000 characters at most. pydantic, and so
        FastAPI, writes the same of a report.

        Args:
            indent: How many spaces to indent each level by, at most 1,000; ``None`` (the default)
                for one line.

        Raises:
            TypeError: The indent is no integer.
            ValueError: It is out of its range.
        """
        if indent is not None:
            check_count("indent", indent, 0, at_most=1_000)
        from asyncflow._core.history.report_json import dump  # few programs need it

        return dump(self, indent)

    @classmethod
    def from_json(cls, text: str | bytes) -> RunReport:
        """Return the report that `to_json` wrote.

        `RestoredOutput` and `RestoredError` stand for what JSON could not hold.

        Raises:
            ValueError: The text is not JSON, or not that of a report, or its events and its results
                disagree: the message says what is missing or wrong, and where.
        """
        from asyncflow._core.history.report_json import load

        return load(cls, text)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: object, handler: object) -> Any:
        """Let pydantic, and so FastAPI, write a report as `to_json` does."""
        from asyncflow._core.history.report_json import pydantic_schema

        return pydantic_schema(cls)

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: object, handler: object) -> dict[str, Any]:
        from asyncflow._core.history.report_json import json_schema

        return json_schema(cls)

    def events(self) -> Iterator[Event]:
        """Yield what happened in the run, as an observer receives it, in order.

        A report has the events of all processes that ran the run, also as JSON and pickled, without
        what its steps said, and without the items that `StepResult.left_out` counts and that ended
        in the latest process. One that you have made of results alone has only the attempts and
        ends that these imply.
        """
        if self._history is not None and self._history.is_whole:
            return self._history.events()
        from asyncflow._core.history.events_of_report import events_of  # few programs need it

        return events_of(self)

    def to_mermaid(self) -> str:
        """Return the pipeline as a Mermaid flowchart that shows how each step ended.

        It can be pasted into Markdown behind ```` ```mermaid ````. A node shows the name of its
        step, the status as a symbol and a word, and the duration in milliseconds; an arrow leads
        from a step to those that depend on it. The critical path has thick borders and arrows. By
        default, Mermaid refuses to draw more than 500 arrows or 50,000 characters.
        """
        from asyncflow._core.analysis.diagram import to_mermaid  # few programs draw one

        results = self._by_name
        needs = {name: each.depends_on for name, each in results.items()}
        return to_mermaid(needs, results, self.critical_path)

    def to_markdown(self) -> str:
        """Return the report as Markdown, for the summary of a CI job, a comment or a chat.

        It has a table of the steps, what failed first, and the tracebacks of the steps with errors,
        which GitHub shows folded. It is cut to less than 1 MiB, and has no inputs and no outputs.
        """
        from asyncflow._core.analysis.report_markdown import to_markdown  # few programs need it

        return to_markdown(self)

    def to_html(self) -> str:
        """Return the report as one page of HTML that needs no network and no other file.

        It shows the first failure with its traceback, a timeline of all attempts, the graph, all
        steps and events, and the beginnings of inputs and outputs, even with JavaScript off. It
        contains nothing secret.

        Raises:
            ImportError: The extra ``report`` is not installed. The message says how to install it.
        """
        # The one import that points up: a report is asked for its page, and a user has no other.
        from asyncflow.html_report import to_html

        return to_html(self)

    def _repr_html_(self) -> str:
        """Return the table of its steps that a notebook shows."""
        from asyncflow._views.notebook import of_report  # as above: IPython asks for this name

        return of_report(self)


def _has_failed(result: StepResult) -> bool:
    if result.status is StepStatus.FAILED:
        return True
    error = result.error
    return isinstance(error, StepTimeoutError) and error.kind == "run"


def _error_with_note(result: StepResult, run_id: str) -> Exception:
    # The attempts of a mapped step are those of its items.
    attempt = "" if result.items is not None else f", attempt {latest_number(result)},"
    note = f"in step {result.step_name!r}{attempt} of run {run_id}"
    error = result.error
    with suppress(Exception):  # as in `with_note`
        if error is not None and note in error.__notes__:
            # It was raised before, and may keep the frames of that through pickle: Dask sees to it.
            strip_frames_until(error, "raise_for_failures")
    return with_note(error, note)


def report_of(history: History, run_id: str, **facts: Any) -> RunReport:
    """Return the report of a run, whose results are made when they are first read.

    ``facts`` are the other arguments of `RunReport`, with ``status`` among them.
    """
    report = RunReport(run_id, (), **facts)
    report._history, report._known = history, None
    return report


def with_events(report: RunReport, log: list[LogEntry]) -> RunReport:
    """Return the report, to which all that has happened in its run is given."""
    report._history = History()
    report._history.log = log
    return report


def _restored(made: Callable[[], RunReport], events: Iterable[Event]) -> RunReport:
    """Return a report that was pickled with its events."""
    return with_events(made(), [*events])


def result_line(result: StepResult, segment: int) -> str:
    """Return the line that the text of a report has for a step; there are so many segments."""
    from asyncflow._core.analysis.looks import look_of  # few programs need it
    from asyncflow._core.analysis.remarks import result_note

    name = escape_controls(result.step_name)
    took = f"({result.attempts} attempt(s), {result.duration_ms:.0f}ms)"
    return f"[{look_of(result).word:<7}] {name} {took}{result_note(result, segment)}"


def paused_ms(segments: Sequence[Segment]) -> float:
    """Return for how many milliseconds no process ran a run, between its segments in all."""
    first, last = segments[0], segments[-1]
    return max((last.wall_time - first.wall_time) * 1000 - (last.at_ms - first.at_ms), 0.0)
