"""How two runs differ, in words: what a display says beside figures.

A pair has the baseline's value first: ``1 → 31``. No text has a control character.
"""

from __future__ import annotations

import re
from collections import Counter

from asyncflow._core.analysis.comparison import (
    InputChange,
    RunComparison,
    StepComparison,
    has_run,
    reused_items,
    reused_steps,
)
from asyncflow._core.analysis.failures import first_failure
from asyncflow._core.analysis.looks import look_of
from asyncflow._core.history.report import RunReport
from asyncflow._core.history.results import RunStatus, StepResult
from asyncflow._core.history.value_preview import preview, shortened
from asyncflow._core.text import duration, escape_controls, plural
from asyncflow._views.preview import error_words

_LONGEST_VALUE, _LONGEST_ERROR = 60, 400
_WHY_UNKNOWN = {
    "secret": "output secret",
    "engine": "output left on an engine",
    "not kept": "outputs of items not kept",
    "stand-in": "output not stored as a value",
    "incomparable": "output can't be compared",
}
"""What is said for `OutputComparison.why`."""


def difference_text(compared: RunComparison | StepComparison) -> str:
    """Return how much slower or faster a run or a step was: ``3.2 s slower (3.9×)``.

    ``about the same`` if that is not notable, and nothing if it is not known.
    """
    difference_ms, factor = compared.difference_ms, compared.factor
    if difference_ms is None:
        return ""
    if not compared.has_notable_duration:
        return "about the same"
    times = "" if factor is None else f" ({factor:.1f}×)" if factor >= 0.1 else f" ({factor:.1g}×)"
    return f"{duration(abs(difference_ms))} {'slower' if difference_ms > 0 else 'faster'}{times}"


def arrow(compared: RunComparison | StepComparison) -> str:
    """Return an arrow up if a run or a step was notably slower, one down if it was faster."""
    if not compared.has_notable_duration or compared.difference_ms is None:
        return ""
    return "▲ " if compared.difference_ms > 0 else "▼ "


def run_difference_text(compared: RunComparison) -> str:
    """Return the difference of two runs, and what the steps of the critical path have of it.

    These can differ by more than the runs, or the other way: the baseline may have had another
    path, and steps that only one of the runs has don't count.
    """
    text, critical_ms = difference_text(compared), compared.critical_difference_ms
    difference_ms = compared.difference_ms
    if difference_ms is None:
        return _why_not_compared(compared)
    if not compared.has_notable_duration:
        return text
    share, took = critical_ms / difference_ms, duration(abs(critical_ms))
    # A little more than all of it reads as all.
    if 0 <= share <= 1 or (share > 1 and took == duration(abs(difference_ms))):
        return f"{text}, {took} of it on the critical path"
    change = "more" if critical_ms > 0 else "less"
    return f"{text}; the steps of its critical path that ran in both took {took} {change}"


def _why_not_compared(compared: RunComparison) -> str:
    """Return why the durations of two runs that passed are not compared."""
    if not compared.run.status is compared.baseline.status is RunStatus.PASSED:
        return ""
    found = [(run.run_id, len(reused_steps(run))) for run in (compared.run, compared.baseline)]
    said = [
        f"{escape_controls(run)} reused {plural(count, 'step')}" for run, count in found if count
    ]
    return f"not compared, since {' and '.join(said)}"


def took_text(result: StepResult | None) -> str:
    """Return how long a step took in a run, or that it was reused; nothing if it has not ended."""
    if result is None or not has_run(result):
        return "reused" if result is not None and result.origin else ""
    return duration(result.duration_ms)


def step_facts(
    step: StepComparison, *, has_died: bool = False, had_died: bool = False
) -> list[str]:
    """Return what else differs of a step, one fact a text.

    ``has_died`` says whether the process of the run is gone, and ``had_died`` that of the baseline.
    """
    run, baseline = step.run, step.baseline
    if run is None or baseline is None:
        return []
    facts = (
        [pair(_ended(baseline, had_died), _ended(run, has_died))] if step.has_other_status else []
    )
    retries, items, failed = step.retry_counts, step.item_counts, step.failed_item_counts
    if items is not None and items[0] != items[1]:
        facts.append(_counted("item", items))
    if failed is not None and failed[0] != failed[1]:
        facts.append(_counted("failed item", failed))
    if reused := reused_items(run):
        facts.append(f"{plural(reused, 'item')} reused")
    if retries is not None and retries[0] != retries[1]:
        facts.append(_counted("repeated attempt", retries))
    facts += [f"depends on {_listed(step.dependencies_added)} now"] * bool(step.dependencies_added)
    if step.dependencies_removed:
        facts.append(f"no longer depends on {_listed(step.dependencies_removed)}")
    if step.version is not None:
        facts.append("version " + pair(*[escape_controls(each or "none") for each in step.version]))
    if step.takes is not None:
        facts.append("takes " + pair(*map(escape_controls, step.takes)))
    return facts


def output_text(step: StepComparison, room: int = 78) -> str:
    """Return how the output of a step differs: ``output True → False``.

    What has changed takes at most ``room`` bytes of HTML, and so cells of a terminal. Nothing for
    an output that is equal, or that not both runs have.
    """
    output = step.output
    if output is None or output.change == "equal":
        return ""
    if output.change == "unknown":
        return f"{_WHY_UNKNOWN[output.why]}, so it is not known whether it changed"
    place = shortened(escape_controls(output.where), room // 3)
    label = f"output, first at {place}: " if place else "output "
    rest = " (changed after that)"
    limit = (room - len(label) - len(pair("", ""))) // 2 - 1  # each may end in an ellipsis
    before, now = _value(output.baseline, limit), _value(output.run, limit)
    if before == now:
        return f"{label}{_value(output.run, room - len(label) - len(rest) - 1)}{rest}"
    return label + pair(before, now)


def outputs_text(compared: RunComparison) -> str:
    """Return how many outputs differ, and which step was the first to return another value.

    Nothing if no step succeeded in both runs.
    """
    changed = compared.changed_outputs
    counts = Counter(step.output.change for step in compared.steps if step.output is not None)
    parts = []
    if changed:
        first = escape_controls(changed[0].step_name)
        parts.append(
            f"that of {first} changed"
            if len(changed) == 1
            else f"{len(changed):,} changed, first that of {first}"
        )
    if counts["equal"]:
        parts.append(f"{counts['equal']:,} equal")
    if counts["unknown"]:
        parts.append(f"{counts['unknown']:,} not known")
    return "; ".join(parts)


def input_text(change: InputChange) -> str:
    """Return how an input differs: ``1 → 31``."""
    if change.change == "added":
        return f"{_value(change.run)} (added)"
    if change.change == "removed":
        return f"{_value(change.baseline)} (removed)"
    if change.change == "changed":
        before, now = _value(change.baseline), _value(change.run)
        return pair(before, now) if before != now else f"{now} (changed after that)"
    if any(preview(each, 1).redacted for each in (change.run, change.baseline)):
        return "secret, so it is not known whether it changed"
    return f"{_value(change.run)} (not known whether it changed)"


def error_text(report: RunReport) -> str:
    """Return why a run did not pass: its first error, or why it stopped; else nothing."""
    failed = first_failure(report.values())
    if failed is not None:
        assert failed.error is not None  # that is why it has failed
        return f"{escape_controls(failed.step_name)}: {error_words(failed.error, _LONGEST_ERROR)}"
    return "" if report.status is RunStatus.PASSED else escape_controls(report.stop_reason or "")


def pair(before: str, now: str) -> str:
    """Return the baseline's text and the run's."""
    return f"{before} → {now}"


def _ended(result: StepResult, has_died: bool) -> str:
    return "fell back" if result.fell_back else look_of(result, has_died=has_died).word


def _value(value: object, limit: int = _LONGEST_VALUE) -> str:
    text = preview(value, limit * 2).text
    # In one line, a bracket needs no space beside it.
    text = re.sub(r"(?<=[\[({])\n *|\n *(?=[\])}])", "", text)
    return shortened(re.sub("\n *", " ", text), limit)


def _counted(noun: str, counts: tuple[int, int]) -> str:
    return pair(plural(counts[0], noun), plural(counts[1], noun))


def _listed(names: tuple[str, ...]) -> str:
    return escape_controls(", ".join(names))
