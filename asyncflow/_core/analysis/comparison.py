"""Compares a run with a baseline: what differs in inputs, steps, outputs and status.

Rules:

1. What takes longer in the run than in the baseline is slower.
2. Only what ran and succeeded in both runs is slower or faster: what failed, fell back or was
   stopped did less, and what a run reused of another one says nothing of how long it takes.
3. A difference in time is notable from `NOTABLE_SHARE` of the baseline on, and from `NOTABLE_MS`.
   Any other difference of a step is notable.
4. What a secret input or output was is not known, so neither is whether it changed.
5. Outputs are compared as values, by `is_same_value`, and not as a journal's bytes: a report has no
   others, and bytes differ with the codec and with the order of a dictionary where no value does.
6. An output that a run does not have as a value (it is secret, stayed on an engine, was not kept,
   or is just a text that stands for it) is neither equal nor changed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeAlias

from asyncflow._core.analysis.failures import first_failure
from asyncflow._core.history.remote_output import RemoteOutput
from asyncflow._core.history.report import RunReport
from asyncflow._core.history.results import (
    REDACTED_OUTPUT,
    AttemptEnd,
    RestoredOutput,
    RunStatus,
    StepResult,
    StepStatus,
    attempt_end,
    picklable_output,
    retries_among,
    visible_output,
)
from asyncflow._core.record import record, replace, values_by_name
from asyncflow._core.same_value import is_same_value
from asyncflow._core.text import cut, describe_error
from asyncflow._core.value_size import field_names, safe_repr

NOTABLE_SHARE = 0.2
"""From which part of the baseline's duration on a difference is notable."""
NOTABLE_MS = 10.0
"""From how many milliseconds on it is; both must be reached."""

_LONGEST_VALUE = 200
"""How many characters of an input or an output JSON has."""
_ENDED = (StepStatus.SUCCESS, StepStatus.FAILED, StepStatus.CANCELLED)
"""The statuses with which a step has a duration."""
_BY_IDENTITY: Any = object.__eq__
"""What compares objects of a class that defines no comparison."""

Fingerprints: TypeAlias = Mapping[str, tuple[str, str]]
"""For each step, which data its action takes and its version, as in `RunStarted.fingerprints`."""


def is_notable(difference_ms: float | None, baseline_ms: float) -> bool:
    """Whether a difference to a duration is notable; see the rules of this module."""
    if difference_ms is None:
        return False
    return abs(difference_ms) >= max(NOTABLE_SHARE * baseline_ms, NOTABLE_MS)


@record(frozen=True)
class InputChange:
    """An input that is not the same in two runs, or of which that is not known."""

    name: str
    change: Literal["added", "removed", "changed", "unknown"]
    """``"added"`` if only the run has it, ``"removed"`` if only the baseline has it;
    ``"unknown"`` if it is secret, or could not be stored or compared."""
    run: Any = None
    """Its value in the run; a `RestoredOutput` stands for a secret one."""
    baseline: Any = None
    """Its value in the baseline. If the input is secret in one of them, neither is shown."""

    def __reduce__(self) -> tuple[object, ...]:
        return _picklable(self)


@record(frozen=True)
class OutputComparison:
    """The output of a step that succeeded in both runs, compared."""

    change: Literal["equal", "changed", "unknown"]
    """``"equal"`` if the values have the same types and are equal, at any depth; ``"unknown"`` if
    one of the runs does not have the value."""
    why: Literal["", "secret", "engine", "not kept", "stand-in", "incomparable"] = ""
    """Why that is unknown: the output is secret in one of the runs; it stayed on an engine; the
    step has ``keep_outputs=False``; only a text stands for it, which is not enough to compare; or
    the values can't be compared."""
    where: str = ""
    """Where in the output the first difference is, such as ``[3]['total']``, with the number of an
    item of a mapped step first; empty for the output as a whole."""
    run: Any = None
    """What the run has there; ``None`` unless it has changed."""
    baseline: Any = None
    """What the baseline has there; ``None`` unless it has changed."""

    def __reduce__(self) -> tuple[object, ...]:
        return _picklable(self)


def _picklable(change: InputChange | OutputComparison) -> tuple[object, ...]:
    values = values_by_name(change)
    values |= {name: picklable_output(values[name]) for name in ("run", "baseline")}
    return type(change), tuple(values.values())


@record(frozen=True)
class StepComparison:
    """A step in a run and in its baseline."""

    step_name: str
    run: StepResult | None
    """Its result in the run; ``None`` if it was removed."""
    baseline: StepResult | None
    """Its result in the baseline; ``None`` if it was added."""
    version: tuple[str, str] | None = None
    """Its ``version`` in the baseline and in the run, if the journal says that they differ."""
    takes: tuple[str, str] | None = None
    """Which data its action took in the baseline and takes in the run, if they differ."""
    output: OutputComparison | None = None
    """How its output differs; ``None`` unless it succeeded in both."""

    @property
    def change(self) -> Literal["added", "removed", "both"]:
        """Whether only the run has the step, or only the baseline, or both."""
        if self.run is None:
            return "removed"
        return "added" if self.baseline is None else "both"

    @property
    def difference_ms(self) -> float | None:
        """By how many milliseconds it took longer in the run; negative if it was faster.

        ``None`` unless it ran and succeeded in both, without its ``fallback`` and without results
        of other runs.
        """
        if not (_has_succeeded(self.run) and _has_succeeded(self.baseline)):
            return None
        return _ms(self.run) - _ms(self.baseline)

    @property
    def factor(self) -> float | None:
        """Its duration as a multiple of that in the baseline, if that is above 0."""
        return None if self.difference_ms is None else _ratio(_ms(self.run), _ms(self.baseline))

    @property
    def has_notable_duration(self) -> bool:
        """Whether it was slower or faster by at least 20 %, and by at least 10 ms."""
        return is_notable(self.difference_ms, _ms(self.baseline))

    @property
    def has_other_status(self) -> bool:
        """Whether both runs have the step, and it ended differently, or fell back in one only."""
        run, baseline = self.run, self.baseline
        if run is None or baseline is None:
            return False
        return (run.status, run.fell_back) != (baseline.status, baseline.fell_back)

    @property
    def has_other_output(self) -> bool:
        """Whether it succeeded in both runs, and is known to have returned another value."""
        return self.output is not None and self.output.change == "changed"

    @property
    def item_counts(self) -> tuple[int, int] | None:
        """How many items it had in the baseline and in the run, if it was mapped in both."""
        run, baseline = self.run, self.baseline
        if run is None or baseline is None or run.items is None or baseline.items is None:
            return None
        return len(baseline.items) + baseline.left_out, len(run.items) + run.left_out

    @property
    def failed_item_counts(self) -> tuple[int, int] | None:
        """How many of them failed for good, tolerated ones too, if it was mapped in both."""
        if self.item_counts is None:
            return None
        return _failed_items(self.baseline), _failed_items(self.run)

    @property
    def retry_counts(self) -> tuple[int, int] | None:
        """How many attempts followed one that failed, of the step or of an item, in each run.

        ``None`` unless it ran in both.
        """
        run, baseline = self.run, self.baseline
        if run is None or baseline is None or run.origin or baseline.origin:
            return None
        return retries_of(baseline), retries_of(run)

    @property
    def dependencies_added(self) -> tuple[str, ...]:
        """The steps that it depends on in the run, and not in the baseline, which has the step."""
        return () if self.run is None else _without(self.run, self.baseline)

    @property
    def dependencies_removed(self) -> tuple[str, ...]:
        """The steps that it depends on in the baseline, and not in the run, which has the step."""
        return () if self.baseline is None else _without(self.baseline, self.run)

    @property
    def is_notable(self) -> bool:
        """Whether something of it differs beside a little time."""
        pairs = self.item_counts, self.failed_item_counts, self.retry_counts
        counts = [each for each in pairs if each is not None]
        return (
            self.change != "both"
            or self.has_notable_duration
            or self.has_other_status
            or self.has_other_output
            or any(before != now for before, now in counts)
            or bool(self.dependencies_added or self.dependencies_removed)
            or self.version is not None
            or self.takes is not None
        )


@record(frozen=True)
class RunComparison:
    """A run compared with a baseline, which is usually the last run of its pipeline that passed."""

    run: RunReport
    """The run."""
    baseline: RunReport
    """What it is compared with."""
    inputs: tuple[InputChange, ...]
    """The inputs that differ, or of which that is not known."""
    steps: tuple[StepComparison, ...]
    """All steps: those of the run in topological order, then those that it does not have."""
    versions_known: bool = False
    """Whether the versions of the steps were compared. Only a journal knows them."""

    @property
    def difference_ms(self) -> float | None:
        """By how many milliseconds the run took longer, without pauses; negative if it was faster.

        ``None`` unless both passed, and neither reused results of other runs.
        """
        if not self._are_measured:
            return None
        return self.run.total_duration_ms - self.baseline.total_duration_ms

    @property
    def _have_passed(self) -> bool:
        return self.run.status is self.baseline.status is RunStatus.PASSED

    @property
    def _are_measured(self) -> bool:
        return self._have_passed and not (reused_steps(self.run) or reused_steps(self.baseline))

    @property
    def critical_difference_ms(self) -> float:
        """By how many milliseconds the steps on the run's critical path took longer in all.

        Of those that succeeded in both runs; see `RunReport.critical_path`.
        """
        path = set(self.run.critical_path)
        return sum(
            (step.difference_ms or 0.0 for step in self.steps if step.step_name in path), 0.0
        )

    @property
    def span_difference_ms(self) -> float | None:
        """By how many milliseconds the run took longer, with pauses: see `RunReport.span_ms`.

        ``None`` as for `difference_ms`.
        """
        return self.run.span_ms - self.baseline.span_ms if self._are_measured else None

    @property
    def factor(self) -> float | None:
        """The run's duration as a multiple of the baseline's; ``None`` as for `difference_ms`."""
        if not self._are_measured:
            return None
        return _ratio(self.run.total_duration_ms, self.baseline.total_duration_ms)

    @property
    def has_notable_duration(self) -> bool:
        """Whether the run was slower or faster by at least 20 %, and by at least 10 ms."""
        return is_notable(self.difference_ms, self.baseline.total_duration_ms)

    @property
    def changed_outputs(self) -> list[StepComparison]:
        """The steps that returned another value than in the baseline, in topological order."""
        return [step for step in self.steps if step.has_other_output]

    @property
    def notable_steps(self) -> list[StepComparison]:
        """The steps of which something differs, the largest difference in time first.

        Of a step that only one of the runs ran, its whole duration counts.
        """
        return sorted(
            (step for step in self.steps if step.is_notable), key=_extent_ms, reverse=True
        )

    def __repr__(self) -> str:
        steps = f"{len(self.notable_steps)} of {len(self.steps)} step(s) differ"
        return f"<RunComparison {self.run.run_id} with {self.baseline.run_id}: {steps}>"

    def to_json(self, *, indent: int | None = None) -> str:
        """Return the comparison as JSON text.

        Inputs, and what has changed of outputs, are the beginnings of their ``repr``, errors their
        type and message. A pair has the baseline's value first.

        Args:
            indent: How many spaces to indent each level by; ``None`` (the default) for one line.
        """
        document = {
            "run": _run_to_json(self.run),
            "baseline": _run_to_json(self.baseline),
            "difference_ms": self.difference_ms,
            "critical_difference_ms": self.critical_difference_ms,
            "span_difference_ms": self.span_difference_ms,
            "factor": self.factor,
            "is_notable": self.has_notable_duration,
            "versions_known": self.versions_known,
            "inputs": [_input_to_json(each) for each in self.inputs],
            "steps": [_step_to_json(each, self.run, self.baseline) for each in self.steps],
        }
        return json.dumps(document, indent=indent, allow_nan=False)


def compare(
    run: RunReport,
    baseline: RunReport,
    *,
    fingerprints: tuple[Fingerprints, Fingerprints] | None = None,
) -> RunComparison:
    """Compare the reports of two runs.

    ``fingerprints`` are those of the run's steps and those of the baseline's, if they are known.
    """
    of_run, of_baseline = fingerprints or ({}, {})
    names = [*run, *(name for name in baseline if name not in run)]
    steps = []
    for name in names:
        result, earlier = run.get(name), baseline.get(name)
        takes = version = None
        if name in of_run and name in of_baseline:
            (took, before), (takes_now, now) = of_baseline[name], of_run[name]
            takes = (took, takes_now) if took != takes_now else None
            version = (before, now) if before != now else None
        output = None if result is None or earlier is None else _compare_outputs(result, earlier)
        steps.append(StepComparison(name, result, earlier, version, takes, output))
    inputs = [
        _input_change(name, run.inputs, baseline.inputs)
        for name in dict.fromkeys([*run.inputs, *baseline.inputs])
    ]
    changed = tuple(each for each in inputs if each is not None)
    return RunComparison(run, baseline, changed, tuple(steps), fingerprints is not None)


def _input_change(
    name: str, run: Mapping[str, Any], baseline: Mapping[str, Any]
) -> InputChange | None:
    if name not in baseline:
        return InputChange(name, "added", run=run[name])
    if name not in run:
        return InputChange(name, "removed", baseline=baseline[name])
    now, before = run[name], baseline[name]
    if REDACTED_OUTPUT in [each for each in (now, before) if type(each) is RestoredOutput]:
        return InputChange(name, "unknown", REDACTED_OUTPUT, REDACTED_OUTPUT)
    same = _are_same(now, before)
    if same:
        return None
    return InputChange(name, "unknown" if same is None else "changed", now, before)


def _are_same(one: Any, other: Any) -> bool | None:
    """Whether two inputs are the same, as for a rerun; ``None`` if that is not known."""
    if RestoredOutput in (type(one), type(other)):  # the same text may stand for other values
        return None if _text(one) == _text(other) else False
    try:
        return one is other or is_same_value(one, other)
    except Exception:  # it is the user's object, such as an array
        return None


def _compare_outputs(run: StepResult, baseline: StepResult) -> OutputComparison | None:
    """Compare the outputs of a step, those of a step that is mapped in both runs by item."""
    if not run.status is baseline.status is StepStatus.SUCCESS:
        return None
    if _is_secret(run) or _is_secret(baseline):
        return OutputComparison("unknown", "secret")
    if any(each.items is not None and each.output is None for each in (run, baseline)):
        return OutputComparison("unknown", "not kept")
    if run.items is None or baseline.items is None:
        return _compare_values(run.output, baseline.output)
    unknown: OutputComparison | None = None
    have, had = _succeeded_items(run.items), _succeeded_items(baseline.items)
    for name in (each for each in have if each in had):
        compared = _compare_values(have[name], had[name])
        if compared.change == "changed":
            item = name.removeprefix(run.step_name)
            return replace(compared, where=f"{item}{compared.where}")
        if compared.change == "unknown" and unknown is None:
            unknown = compared
    if unknown is None and have.keys() != had.keys():
        return OutputComparison("changed", "", "", run.output, baseline.output)
    return unknown or OutputComparison("equal")


def _succeeded_items(items: Iterable[StepResult]) -> dict[str, Any]:
    """Return the outputs of the items that have succeeded, in order, by their names."""
    return {each.step_name: each.output for each in items if each.status is StepStatus.SUCCESS}


def _compare_values(run: Any, baseline: Any) -> OutputComparison:
    kinds = type(run), type(baseline)
    if RemoteOutput in kinds:
        return OutputComparison("unknown", "engine")
    if RestoredOutput in kinds:
        # The same text may stand for other values, and another text, such as that of a set or with
        # an address, for the same one.
        return OutputComparison("unknown", "stand-in")
    try:
        if run is baseline or is_same_value(run, baseline):
            return OutputComparison("equal")
        kind = kinds[0]
        if kind is kinds[1] and kind.__eq__ is _BY_IDENTITY and field_names(kind) is None:
            return OutputComparison("unknown", "incomparable")  # two objects are never equal
        return OutputComparison("changed", "", *_first_difference(run, baseline))
    except Exception:  # it is the user's object, such as an array
        return OutputComparison("unknown", "incomparable")


def _is_secret(result: StepResult) -> bool:
    """Whether the output of a step or of an item of it must not be shown."""
    output = visible_output(result)
    if type(output) is RestoredOutput and output == REDACTED_OUTPUT:
        return True
    return any(map(_is_secret, result.items or ()))


def _first_difference(run: Any, baseline: Any) -> tuple[str, Any, Any]:
    """Return where two values that are not the same differ first, and what they have there."""
    where = ""
    while True:
        kind = type(run)
        if kind is not type(baseline) or kind not in (dict, list, tuple):
            return where, run, baseline
        if len(run) != len(baseline):
            return where, run, baseline
        keys = run if kind is dict else range(len(run))
        for key in keys:
            if kind is dict and key not in baseline:
                return where, run, baseline
            if not is_same_value(run[key], baseline[key]):
                where += f"[{cut(safe_repr(key), _LONGEST_VALUE)}]"
                run, baseline = run[key], baseline[key]
                break
        else:
            return where, run, baseline  # the keys of a dictionary are equal, and not the same


def reused_steps(report: RunReport) -> list[str]:
    """Return the steps of a run of which results are those of other runs, or of some items are."""
    return [name for name, result in report.items() if result.origin or reused_items(result)]


def reused_items(result: StepResult) -> int:
    """Return how many items of a step that ran have the results of other runs."""
    return 0 if result.origin else sum([bool(item.origin) for item in result.items or ()])


def has_run(result: StepResult | None) -> bool:
    """Whether a step ran in its run, and has ended."""
    return result is not None and result.started_ms is not None and result.status in _ENDED


def _has_succeeded(result: StepResult | None) -> bool:
    if result is None or not has_run(result) or reused_items(result):
        return False
    return result.status is StepStatus.SUCCESS and not result.fell_back


def _ms(result: StepResult | None) -> float:
    return result.duration_ms if result is not None and has_run(result) else 0.0


def _failed_items(result: StepResult | None) -> int:
    items = () if result is None else result.items or ()
    return sum([item.status is StepStatus.FAILED for item in items])


def _ratio(run_ms: float, baseline_ms: float) -> float | None:
    return run_ms / baseline_ms if baseline_ms > 0 else None


def _without(result: StepResult, other: StepResult | None) -> tuple[str, ...]:
    if other is None:
        return ()
    return tuple(name for name in result.depends_on if name not in other.depends_on)


def retries_of(result: StepResult) -> int:
    """Return how many attempts of a step, or of items of it, followed one that failed."""
    if result.items is not None:
        return sum(map(retries_of, result.items))
    history = result.history
    ends: list[AttemptEnd | None] = []
    for attempt in history:
        if attempt.number == 1:  # it began, or began anew
            ends.clear()
        ends.append(attempt_end(attempt))
    running = result.attempts - len(history)
    return retries_among([*ends, *[None] * running])


def _extent_ms(step: StepComparison) -> float:
    return abs(_ms(step.run) - _ms(step.baseline))


def _text(value: Any) -> str:
    return value.text if type(value) is RestoredOutput else safe_repr(value)


def _run_to_json(report: RunReport) -> dict[str, object]:
    failed = first_failure(report.values())
    return {
        "run_id": report.run_id,
        "pipeline": report.pipeline,
        "status": report.status,
        "wall_time": report.wall_time,
        "total_duration_ms": report.total_duration_ms,
        "span_ms": report.span_ms,
        "stop_reason": report.stop_reason,
        "first_failure": None if failed is None else failed.step_name,
        "first_error": None if failed is None else _error(failed),
    }


def _error(result: StepResult) -> str | None:
    return None if result.error is None else describe_error(result.error)


def _input_to_json(change: InputChange) -> dict[str, object]:
    has_run, has_baseline = change.change != "removed", change.change != "added"
    return {
        "name": change.name,
        "change": change.change,
        "run": cut(_text(change.run), _LONGEST_VALUE) if has_run else None,
        "baseline": cut(_text(change.baseline), _LONGEST_VALUE) if has_baseline else None,
    }


def _output_to_json(output: OutputComparison) -> dict[str, object]:
    has_values = output.change == "changed"
    return {
        "change": output.change,
        "why": output.why or None,
        "where": cut(output.where, _LONGEST_VALUE) if has_values else None,
        "run": cut(safe_repr(output.run), _LONGEST_VALUE) if has_values else None,
        "baseline": cut(safe_repr(output.baseline), _LONGEST_VALUE) if has_values else None,
    }


def _step_to_json(step: StepComparison, run: RunReport, baseline: RunReport) -> dict[str, object]:
    return {
        "step_name": step.step_name,
        "change": step.change,
        "is_notable": step.is_notable,
        "difference_ms": step.difference_ms,
        "factor": step.factor,
        "run": None if step.run is None else _result_to_json(step.run, run),
        "baseline": None if step.baseline is None else _result_to_json(step.baseline, baseline),
        "dependencies_added": [*step.dependencies_added],
        "dependencies_removed": [*step.dependencies_removed],
        "version": None if step.version is None else [*step.version],
        "takes": None if step.takes is None else [*step.takes],
        "output": None if step.output is None else _output_to_json(step.output),
    }


def _result_to_json(result: StepResult, report: RunReport) -> dict[str, object]:
    has_died = result.status is StepStatus.RUNNING and report.status is RunStatus.ORPHANED
    return {
        "status": str(report.status if has_died else result.status),
        "fell_back": result.fell_back,
        "reused_from": result.origin or None,
        "duration_ms": result.duration_ms if has_run(result) else None,
        "attempts": result.attempts,
        "items": None if result.items is None else len(result.items) + result.left_out,
        "failed_items": None if result.items is None else _failed_items(result),
        "error": _error(result),
    }
