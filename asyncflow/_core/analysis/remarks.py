"""What there is to say of a step beside its status and its figures, for every text and page.

Rules:

1. A remark is made once, here; who shows a step chooses those that have a place, and what is
   between them.
2. The items of a mapped step are looked at only when it has ended: there may be many, and a view of
   a run that goes on is drawn often.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from asyncflow._core.analysis.failures import error_counts, item_errors
from asyncflow._core.history.results import (
    StepResult,
    StepStatus,
    earlier_attempts,
    has_fallen_back,
)
from asyncflow._core.history.step_view import StepView
from asyncflow._core.text import LONGEST_LINE, cut, describe_error, duration, escape_controls

if TYPE_CHECKING:
    from asyncflow.events import SignalReceived

DIED = "was running when its process died"


class Remarks(NamedTuple):
    """Each is empty if there is no reason for it."""

    waits: str = ""
    """What it waits for, or how long it waited for its signal."""
    answered: str = ""
    """Who has sent its output, if it is that of a signal."""
    reason: str = ""
    """Why it was skipped or cancelled."""
    failure: str = ""
    """What it failed with; if it succeeded all the same, that it fell back."""
    tolerated: str = ""
    """How many of its items failed, although it succeeded."""
    fallbacks: str = ""
    """How many of its items fell back."""
    reused_items: str = ""
    reused: str = ""
    """Where its result comes from, if it did not run here."""
    again: str = ""
    """Why it ran again, or will."""
    died: str = ""
    before: str = ""
    """That it has not run since the run was resumed."""


def remarks_of(
    step: StepView | StepResult,
    words_of: Callable[[BaseException], str] = describe_error,
    *,
    has_died: bool = False,
) -> Remarks:
    """Return what there is to say of a step or of an item, without control characters.

    ``words_of`` describes an error, and ``has_died`` says whether the process of the run is gone.
    """
    runs_again = step.rerun_reason and not step.reused and step.status is not StepStatus.SKIPPED
    again = f"run again because {escape_controls(step.rerun_reason or '')}"
    ran_before = isinstance(step, StepView) and step.ran_before
    answer = step.answer if isinstance(step, StepView) else None
    return Remarks(
        "waits for a signal" if step.waiting_since is not None else waited_text(step),
        "" if answer is None else answered_text(answer),
        escape_controls(step.reason or ""),
        failure_text(step, words_of),
        *_of_items(step),
        reused=reused_text(step.origin) if step.reused else "",
        again=again if runs_again else "",
        died=DIED if has_died and step.status is StepStatus.RUNNING else "",
        before="ran before the run was resumed" if ran_before else "",
    )


def waited_text(step: StepView | StepResult) -> str:
    """Return how long a step has waited for its signal; empty if it waits, or did not."""
    lasted_ms = 0.0 if step.wait is None else step.wait.lasted_ms or 0.0
    return f"waited {duration(lasted_ms)}" if lasted_ms >= 1 else ""


def _of_items(step: StepView | StepResult) -> tuple[str, str, str]:
    """Return the remarks `tolerated`, `fallbacks` and `reused_items`."""
    if not step.items or (isinstance(step, StepView) and step.ended_ms is None):
        return "", "", ""
    items = step.items if isinstance(step.items, tuple) else step.items.values()
    count = len(items) + step.left_out
    tally = step.tally if isinstance(step, StepView) else Counter([each.status for each in items])
    failed, tolerated, fallbacks, reused_items = tally[StepStatus.FAILED], "", "", ""
    if failed and step.status is StepStatus.SUCCESS:
        given = count - tally[StepStatus.SKIPPED]
        final = [group for group in item_errors(step) if group.end == "failed"]
        tolerated = f"{failed} of {given} item{'' if given == 1 else 's'} failed, tolerated"
        tolerated += f" ({error_counts(final)})"
    if fallen := sum(map(has_fallen_back, items)):
        fallbacks = f"{fallen:,} of {len(items):,} items fell back"
    reused = 0 if step.reused else sum([item.reused for item in items])
    if reused:
        reused_items = f"{reused} of {count} items reused"
    return tolerated, fallbacks, reused_items


def answered_text(answer: SignalReceived) -> str:
    """Return who has answered a signal, and the first line of the note that goes with it."""
    first, *rest = answer.note.strip().split("\n", 1)
    note = f": {cut(first, LONGEST_LINE)}{' …' if rest else ''}" if first else ""
    by = f" by {answer.sent_by}" if answer.sent_by else ""
    return escape_controls(f"answered{by}{note}")


def failure_text(
    step: StepView | StepResult, words_of: Callable[[BaseException], str] = describe_error
) -> str:
    """Return what a step or an item failed with, in a line; empty if with nothing."""
    if step.error is None:
        return ""
    return f"{'fell back: ' if has_fallen_back(step) else ''}{words_of(step.error)}"


def reused_text(origin: str) -> str:
    """Return that a result was reused, and from which run if not from this one."""
    return f"reused from run {escape_controls(origin)}" if origin else "reused"


def result_note(result: StepResult, segment: int) -> str:
    """Return the end of the line of a report: what is notable of the step, after a colon."""
    note = "".join(f": {remark}" for remark in remarks_of(result) if remark)
    earlier = 0 if result.reused else earlier_attempts(result, segment)
    if not earlier:
        return note
    attempts = "1 attempt" if earlier == 1 else f"{earlier} attempts"
    return f"{note}{';' if note else ':'} {attempts} before the run was resumed"


def nth_of(number: int, most: int | None) -> str:
    """Return a number of attempts, and of how many: ``2 of 3``, or ``2``."""
    return f"{number}" if most in (None, 1) else f"{number} of {most}"
