"""The progress of a step in words: percentage, count, rate and time left; and of what has none.

The rate is what was done divided by the time since the attempt started. A journal keeps only the
latest progress of an attempt, so that every display can compute it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from asyncflow._core.history.results import StepStatus
from asyncflow._core.history.step_view import StepView
from asyncflow._core.text import duration
from asyncflow._views.event_text import counted, number_text
from asyncflow.events import StepProgressed


class ProgressText(NamedTuple):
    """What a display may show of a progress; empty if unknown."""

    percentage: str
    """``24 %``."""
    counted: str
    """``1,204 of 5,000 rows``."""
    rate: str
    """``310/s``."""
    left: str
    """``12.2 s left``."""

    def __str__(self) -> str:
        """All of it in one line: ``1,204 of 5,000 rows (24 %), 310/s, 12.2 s left``."""
        share = f" ({self.percentage})" if self.percentage else ""
        return ", ".join(filter(None, [f"{self.counted}{share}", self.rate, self.left]))


def progress_of(step: StepView, reported: StepProgressed | None) -> StepProgressed | None:
    """Return what a step, or an item, reported last, if that says how far it is or came.

    What has succeeded did all of its work, even if it never reported that. What the attempt before
    reported says nothing of the one that runs.
    """
    if reported is None:
        return None
    latest = step.latest
    if step.status is StepStatus.SUCCESS:
        is_current = percentage(reported) == 100
    elif step.status is StepStatus.RUNNING:
        is_current = (
            latest is not None
            and latest.number == reported.attempt
            and latest.started_ms <= reported.at_ms  # one of an earlier segment had its number
        )
    else:
        is_current = True
    return reported if is_current else None


def is_under_way(step: StepView) -> bool:
    """Whether an attempt of a step, or of an item, runs, so that its progress may go on."""
    latest = step.latest
    is_running = step.status is StepStatus.RUNNING
    return is_running and latest is not None and latest.ended_ms is None


def progress_text(progress: StepProgressed, started_ms: float, now_ms: float) -> ProgressText:
    """Return a progress in words.

    ``started_ms``, when the attempt started, and ``now_ms``, the present, are in milliseconds since
    the run started.
    """
    share = percentage(progress)
    done, took_ms = progress.done, progress.at_ms - started_ms
    rate = left = ""
    if done > 0 and took_ms > 0:
        rate = _rate(done / took_ms * 1000)
        if progress.total is not None and progress.total > done:
            left_ms = (progress.total - done) * took_ms / done - (now_ms - progress.at_ms)
            left = f"{duration(left_ms)} left" if left_ms > 0 else ""
    return ProgressText("" if share is None else f"{share} %", counted(progress), rate, left)


_LEAST_LEFT_MS = 1_000
"""What ends sooner needs no estimate."""
_ROUNDED_MS = 60_000


def left_text(usual_ms: float | None, so_far_ms: float | None) -> str:
    """Return when something ends that takes as long as it usually does.

    It is ``about 4 s left``, or ``usually 15.0 s`` if its time has come; empty if that is unknown
    or too short to matter.
    """
    if usual_ms is None or usual_ms < _LEAST_LEFT_MS or so_far_ms is None:
        return ""
    left_ms = usual_ms - so_far_ms
    if left_ms < _LEAST_LEFT_MS:
        return f"usually {duration(usual_ms)}"
    left = duration(left_ms) if left_ms >= _ROUNDED_MS else f"{math.ceil(left_ms / 1000)} s"
    return f"about {left} left"


def percentage(progress: StepProgressed) -> int | None:
    """Return how many percent are done, from 0 to 100; ``None`` without a total.

    Only what is complete has 100.
    """
    total, done = progress.total, progress.done
    if total is None or total <= 0:
        return None
    return max(min(int(100 * done / total), 100), 0)


def _rate(a_second: float) -> str:
    for each, unit in ((a_second, "s"), (a_second * 60, "min")):
        if each >= 1:
            return f"{number_text(each if each < 10 else round(each))}/{unit}"
    return f"{number_text(a_second * 3600)}/h"
