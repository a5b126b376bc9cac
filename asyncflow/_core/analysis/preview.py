"""What the resumption of a stored run, or a rerun of it, would do: by step, with the reasons.

Rules:

1. Nothing is decided here. The opening of a resumption says what is reused, and the state of a run
   that has begun so says what will never start.
2. How the steps that run will end is unknown, so a step counts as skipped only if it is skipped
   however they end. What is left runs, waits for a signal that has not come, or is skipped by a
   condition that is asked then.
3. Nothing runs that is said to wait, as long as nothing comes meanwhile. So what may run because a
   condition lets a signal out, or because the run stops before one has come, is said to run.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set, Sized
from typing import Any, Literal, TypeAlias

from asyncflow._core.history.replay import StoredRun
from asyncflow._core.history.report import RunReport
from asyncflow._core.history.results import StepStatus
from asyncflow._core.history.resume import Snapshot
from asyncflow._core.history.step_view import StepView
from asyncflow._core.pipeline.graph import Plan
from asyncflow._core.pipeline.step import WorkflowStep
from asyncflow._core.record import record, replace
from asyncflow._core.running.state import RunState
from asyncflow._core.text import escape_controls, plural
from asyncflow.events import (
    NOT_IN_PIPELINE,
    ResultReused,
    RunResumed,
    RunStarted,
    StepSkipped,
)

Decision: TypeAlias = Literal["reused", "runs", "waits", "skipped", "missing"]


@record(frozen=True)
class StepPreview:
    """What a resumption, or a rerun, would do with one step."""

    step_name: str
    decision: Decision
    """``reused``: its stored result stays; ``runs``: it runs, unless the run stops before or its
    `condition` is not met, or takes the answer that its signal has, or the default after its
    deadline; ``waits``: its signal has not come, or that of a step before it; ``skipped``: it
    will not run; ``missing``: the run would still run it, and the pipeline no longer has it, so the
    resumption raises a `PipelineChangedError`."""
    reason: str | None = None
    """Why it runs, waits or is skipped; of what is reused, why it did not succeed."""
    condition: str = ""
    """What decides only then whether it runs; empty if nothing does."""
    items: int | None = None
    """How many items it has; ``None`` if it is not mapped, or if that is not known yet."""
    reused_items: int = 0
    """How many items keep their stored result. The others run."""

    def __str__(self) -> str:
        said = words_of(self)
        head = f"[{self.decision.upper():<7}] {escape_controls(self.step_name)}"
        return f"{head}: {said}" if said else head


def words_of(step: StepPreview) -> str:
    """Return what there is to say of the preview of a step, beside its decision."""
    parts = []
    if step.reason is not None:
        parts.append(escape_controls(step.reason))
    if step.condition:
        parts.append(f"only if {step.condition}")
    if step.decision == "runs" and step.reused_items:
        of = "" if step.items is None else f" of {step.items}"
        parts.append(f"{step.reused_items}{of} items reused")
    elif step.items is not None:
        parts.append(plural(step.items, "item"))
    return "; ".join(parts)


class RunPreview(Mapping[str, StepPreview]):
    """What a resumption, or the start, of a stored run would do, or a rerun: by step.

    It is a mapping of step name to `StepPreview`, in topological order, and a text if printed.

    Attributes:
        run_id: The stored run.
        is_rerun: Whether this is about a rerun of it.
        is_start: Whether the run waits to start, so that this is about its start.
        has_passed: Whether the run has passed, so that its resumption returns its report.
    """

    def __init__(
        self,
        run_id: str,
        steps: Iterable[StepPreview],
        *,
        is_rerun: bool,
        has_passed: bool,
        is_start: bool = False,
    ) -> None:
        self.run_id = run_id
        self.is_rerun = is_rerun
        self.is_start = is_start
        self.has_passed = has_passed
        self._by_name = {step.step_name: step for step in steps}

    def __getitem__(self, name: str) -> StepPreview:
        return self._by_name[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_name)

    def __len__(self) -> int:
        return len(self._by_name)

    @property
    def reused(self) -> list[StepPreview]:
        """The steps whose stored results stay."""
        return self._with("reused")

    @property
    def runs(self) -> list[StepPreview]:
        """The steps that run."""
        return self._with("runs")

    @property
    def waits(self) -> list[StepPreview]:
        """The steps that wait for a signal, or for a step that does."""
        return self._with("waits")

    @property
    def skipped(self) -> list[StepPreview]:
        """The steps that will not run, and have no result."""
        return self._with("skipped")

    @property
    def missing(self) -> list[StepPreview]:
        """The steps that the pipeline no longer has, so that the resumption is refused."""
        return self._with("missing")

    def _with(self, decision: Decision) -> list[StepPreview]:
        return [step for step in self.values() if step.decision == decision]

    def to_json(self, *, indent: int | None = None) -> str:
        """Return the preview as JSON: an object with its attributes, and a list of ``steps``."""
        steps: list[dict[str, Any]] = [
            {name: getattr(step, name) for name in _FIELDS} for step in self.values()
        ]
        document = {
            "run_id": self.run_id,
            "is_rerun": self.is_rerun,
            "is_start": self.is_start,
            "has_passed": self.has_passed,
            "steps": steps,
        }
        return json.dumps(document, indent=indent)

    def __repr__(self) -> str:
        return f"<RunPreview of run {self.run_id!r}: {counts_text(self)}>"

    def __str__(self) -> str:
        what = "rerun" if self.is_rerun else "start" if self.is_start else "resumption"
        head, counts = f"A {what} of run {escape_controls(self.run_id)}", counts_text(self)
        if self.has_passed:
            head += ", which has passed: nothing runs"
        elif self.missing:
            head += f" is refused, its pipeline lacks steps: {counts}"
        else:
            head += f": {counts}"
        return "\n".join([head, *map(str, self.values())])


def counts_text(preview: RunPreview) -> str:
    """Return what would become of how many steps: ``2 reused, 3 to run``."""
    found = {
        "reused": preview.reused,
        "waiting": preview.waits,
        "to run": preview.runs,
        "skipped": preview.skipped,
        "missing": preview.missing,
    }
    return (
        ", ".join(f"{len(steps):,} {word}" for word, steps in found.items() if steps) or "no steps"
    )


def runs_nothing(preview: RunPreview) -> bool:
    """Whether no step would run or wait, so that a rerun would only copy results."""
    return not preview.runs and not preview.waits


_FIRST_STARTED = 2
"""How many segments a run has that waited to start, when it does."""
_FIELDS = ("step_name", "decision", "reason", "condition", "items", "reused_items")


def preview_of_report(report: RunReport) -> RunPreview:
    """Return the preview of a run that has passed: its resumption returns this report."""
    steps = []
    for name, result in report.items():
        items = None if result.items is None else len(result.items) + result.left_out
        is_skipped = result.status is StepStatus.SKIPPED
        decision: Decision = "skipped" if is_skipped else "reused"
        steps.append(StepPreview(name, decision, result.reason, "", items, items or 0))
    return RunPreview(report.run_id, steps, is_rerun=False, has_passed=True)


def preview_of_start(
    run_id: str,
    plan: Plan,
    state: RunState,
    event: RunStarted | RunResumed,
    results: Sequence[ResultReused],
    snapshot: Snapshot,
    now_s: float,
) -> RunPreview:
    """Return the preview of a run that would start so, by the wall clock at ``now_s``.

    ``state`` is the state of that run, to which nothing has happened yet.
    """
    at_ms, restored, begun = snapshot.at_ms, snapshot.restored, snapshot.steps_begun()
    for each in (event, *results):
        state.apply(each)
    for index in plan.order:
        stored = snapshot.stored_end(plan.steps[index], at_ms)
        if stored is not None:
            state.apply(stored)
    skipped = _certain_skips(plan, state, at_ms)
    counts: dict[str, int] = {}
    for name, item in restored:
        if item is not None:
            counts[name] = counts.get(name, 0) + 1
    steps: dict[int, StepPreview] = {}
    held = _Held(plan, begun, _answered(event, snapshot.replay, plan, now_s))
    for index in plan.order:
        step = plan.steps[index]
        before, why = restored.get((step.name, None)), event.rerun_reasons.get(step.name)
        if before is not None:
            steps[index] = _of_restored(step, before)
        elif step.name in skipped:
            steps[index] = StepPreview(step.name, "skipped", skipped[step.name])
        else:
            held.look_at(index)
            items, reused = _count_of_items(step, plan, snapshot), counts.get(step.name, 0)
            condition = _condition(step, has_begun=step.name in begun)
            not_yet = "it has not run yet" if step.signal is None else "no signal has come"
            reason = held.answered.get(step.name) or why or not_yet
            steps[index] = StepPreview(step.name, "runs", reason, condition, items, reused)
    runs_some = len(held.by) < sum(each.decision == "runs" for each in steps.values())
    for index, (signal, _) in held.by.items():
        steps[index] = _of_held(plan.steps[index], steps[index], signal, runs_some=runs_some)
    is_start = snapshot.replay.was_enqueued and len(snapshot.replay.segments) == _FIRST_STARTED
    is_rerun = isinstance(event, RunStarted)
    return RunPreview(
        run_id, steps.values(), is_rerun=is_rerun, has_passed=False, is_start=is_start
    )


class _Held:
    """The steps that a signal holds which has not come.

    ``begun`` are the steps that had begun. ``answered`` are the signals whose wait ends when their
    turn comes, each with the reason.
    """

    def __init__(self, plan: Plan, begun: Set[str], answered: Mapping[str, str]) -> None:
        self._plan = plan
        self._begun = begun
        self.answered = answered
        self.by: dict[int, tuple[str, bool]] = {}
        """The signal that holds each step, and whether that is certain: a condition may skip the
        signal."""
        self._may_be_skipped = set[int]()
        """The steps that a condition may skip."""

    def look_at(self, index: int) -> None:
        """Find out what holds a step, whose dependencies were looked at before."""
        step, by, needed = self._plan.steps[index], self.by, self._plan.dependencies[index]
        asks = step.when is not None and step.name not in self._begun
        lost = [each in self._may_be_skipped for each in needed]
        if asks or (any(lost) if step.run_if == "success" else lost and all(lost)):
            self._may_be_skipped.add(index)
        holding = [by[each] for each in needed if each in by]
        certain = next((signal for signal, is_certain in holding if is_certain), None)
        if certain is not None:
            by[index] = certain, True
        elif step.signal is not None and step.name not in self.answered:
            by[index] = step.name, index not in self._may_be_skipped
        elif holding and step.run_if == "success":  # else it may run if a condition skips these
            by[index] = holding[0]


def _of_held(
    step: WorkflowStep, preview: StepPreview, signal: str, *, runs_some: bool
) -> StepPreview:
    """Return the preview of a step that would run but for a signal that has not come.

    ``runs_some`` says whether others run, which may stop the run.
    """
    if step.is_cleanup and runs_some:
        stops = f"the run stops before signal {signal!r} has come"
        return replace(preview, condition=preview.condition or stops)
    why = preview.reason if signal == step.name else f"signal {signal!r} has not come"
    return replace(preview, decision="waits", reason=why)


def with_missing(
    preview: RunPreview, missing: Iterable[str], refused: Mapping[str, str | None]
) -> RunPreview:
    """Return a preview with the steps that its pipeline no longer has.

    ``refused`` are those for which the resumption is refused, each with the nearest step of the
    pipeline. The others are skipped.
    """
    steps = [
        StepPreview(name, "missing", f"{NOT_IN_PIPELINE}{_hint(refused[name])}")
        if name in refused
        else StepPreview(name, "skipped", NOT_IN_PIPELINE)
        for name in missing
    ]
    return RunPreview(
        preview.run_id,
        [*preview.values(), *steps],
        is_rerun=False,
        has_passed=False,
        is_start=preview.is_start,
    )


def _hint(nearest: str | None) -> str:
    return "" if nearest is None else f" (did you mean {nearest!r}?)"


def _answered(
    event: RunStarted | RunResumed, run: StoredRun, plan: Plan, now_s: float
) -> dict[str, str]:
    """Return the signals whose wait ends when their turn comes, each with why."""
    found: dict[str, str] = {}
    if isinstance(event, RunStarted):
        return found  # what was sent to another run, and not used there
    for step in (plan.steps[at] for at in plan.signals):
        wait, name = run.signals.waits.get(step.name), step.name
        if name in event.outdated:
            continue
        if run.signals.sent.get(name) is not None:
            found[name] = "its signal has come"
        elif step.deadline_ms is not None:
            # A step that has failed for that waits anew.
            is_stored = name in run.signals.sent and name not in event.unfinished
            is_over = wait is not None and wait.since + step.deadline_ms / 1000 <= now_s
            if is_stored or is_over:
                found[name] = "its deadline has expired"
    return found


def _certain_skips(plan: Plan, state: RunState, at_ms: float) -> dict[str, str]:
    """Skip what will never start, however the steps end that run, and return why, by name."""
    found: dict[str, str] = {}
    for index in plan.order:
        state.readiness.skip_if_lost(index)
        for each in state.readiness.take_unreachable():
            name = plan.steps[each.step].name
            found[name] = each.reason
            state.apply(StepSkipped(name, at_ms, each.reason, each.by_condition))
    return found


def _of_restored(step: WorkflowStep, before: StepView) -> StepPreview:
    if before.status is StepStatus.SKIPPED:
        return StepPreview(step.name, "skipped", before.reason)
    reason = "it had failed" if before.status is StepStatus.FAILED else None
    items = _count(before)
    return StepPreview(step.name, "reused", reason, "", items, items or 0)


def _condition(step: WorkflowStep, *, has_begun: bool) -> str:
    if step.run_if == "failure":
        return "one of its dependencies fails"
    return "" if step.when is None or has_begun else "its condition is met"


def _count_of_items(step: WorkflowStep, plan: Plan, snapshot: Snapshot) -> int | None:
    """Return how many items a mapped step has, if the result is there over which it is mapped, or
    the input is.
    """
    if step.map_over is None:
        return None
    if step.map_over not in plan.index:
        value = snapshot.inputs.get(step.map_over)
        return len(value) if isinstance(value, Sized) and not isinstance(value, str) else None
    source = snapshot.restored.get((step.map_over, None))
    if source is None:
        return None
    if source.items is not None:  # the items of a chain keep their numbers, also those that failed
        return _count(source)
    return len(source.output) if isinstance(source.output, Sized) else None


def _count(mapped: StepView) -> int | None:
    """Return how many items a restored step has; ``None`` if it is not mapped."""
    if mapped.item_count is not None or mapped.items is None:
        return mapped.item_count
    return len(mapped.items) + mapped.left_out
