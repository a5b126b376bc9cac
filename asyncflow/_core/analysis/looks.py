"""How a status looks, wherever it is shown: in a terminal, on a page, in a notebook, in a diagram.

Rules:

1. A symbol is one cell wide and clear without colour; a colour only repeats what it says.
2. Counts by status stand in the order of these tables: what has ended, what runs, what is left.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple, Protocol

from asyncflow._core.history.results import StepStatus


class Look(NamedTuple):
    word: str
    """The status as people know it, and but for WAITS, ORPHANED, STOPPING and QUEUED JSON too."""
    kind: str
    """Its CSS class."""
    symbol: str
    ascii: str
    """The symbol where the encoding has no other."""
    colour: str
    """In a terminal."""
    said: str
    """What is said of one, or of a number of them: ``5 succeeded``."""
    hex: str = ""
    """The colour that can be seen on light and on dark."""
    flowchart: str = ""
    """The style of a node in Mermaid: dark text on a light ground, whatever the page has."""


_GREY = "fill:#f3f4f6,stroke:#6b7280,color:#1f2937"

STEP_LOOKS: Mapping[str, Look] = {
    look.word: look
    for look in (
        Look(
            *("SUCCESS", "success", "✓", "v", "green", "succeeded", "#2f9e6e"),
            flowchart="fill:#d1fae5,stroke:#047857,color:#064e3b",
        ),
        Look(
            *("FAILED", "failed", "✗", "x", "bold red", "failed", "#d64545"),
            flowchart="fill:#fee2e2,stroke:#b91c1c,color:#7f1d1d",
        ),
        Look(
            *("CANCELLED", "cancelled", "■", "#", "yellow", "cancelled", "#b08400"),
            flowchart="fill:#fef3c7,stroke:#b45309,color:#78350f",
        ),
        Look(
            *("SKIPPED", "skipped", "⊘", "-", "dim", "skipped", "#7a8594"),
            flowchart=f"{_GREY},stroke-dasharray:4",
        ),
        Look(
            *("RUNNING", "running", "▷", ">", "cyan", "running", "#3b78d8"),
            flowchart="fill:#dbeafe,stroke:#1d4ed8,color:#1e3a8a",
        ),
        Look(
            *("ORPHANED", "orphaned", "◇", "?", "yellow", "orphaned", "#8b5cf6"),
            flowchart="fill:#f3e8ff,stroke:#7e22ce,color:#581c87",
        ),
        Look(
            *("WAITS", "waits", "◷", "w", "magenta", "waiting", "#0c8599"),
            flowchart="fill:#cffafe,stroke:#0e7490,color:#164e63",
        ),
        Look(
            *("PENDING", "pending", "○", "o", "dim", "pending", "#7a8594"),
            flowchart=_GREY,
        ),
    )
}
"""By `StepStatus`, and for two that people tell apart: a pending step that waits for a signal, and
one that was running when the process of its run died."""

DIED_LOOK, WAITS_LOOK = STEP_LOOKS["ORPHANED"], STEP_LOOKS["WAITS"]

WORST_FIRST = (
    "FAILED",
    "CANCELLED",
    "WAITS",
    "ORPHANED",
    "RUNNING",
    "PENDING",
    "SKIPPED",
    "SUCCESS",
)
"""The words of the looks of steps, what needs attention first."""

RUN_LOOKS: Mapping[str, Look] = {
    look.word: look
    for look in (
        Look("PASSED", "success", "✓", "v", "green", "passed"),
        Look("FAILED", "failed", "✗", "x", "bold red", "failed"),
        Look("INTERRUPTED", "cancelled", "□", "|", "yellow", "interrupted"),
        Look("RUNNING", "running", "▷", ">", "cyan", "running"),
        Look("STOPPING", "cancelled", "□", "|", "yellow", "stopping"),
        Look("WAITING", "waits", "◷", "w", "magenta", "waiting"),
        Look("QUEUED", "pending", "◌", "q", "dim", "queued"),
        Look("ORPHANED", "orphaned", "◇", "?", "yellow", "orphaned"),
        Look("DAMAGED", "failed", "!", "!", "bold red", "damaged"),
    )
}
"""By `RunStatus`, and for a run that is stopping, one that waits to start, and one whose row in a
journal is damaged."""

OUTCOME_LOOKS: Mapping[str, Look] = {
    look.word: look
    for look in (
        STEP_LOOKS["SUCCESS"],
        Look("RETRIED", "retried", "↻", "r", "yellow", "succeeded after a retry"),
        Look("REUSED", "reused", "=", "=", "green", "reused"),
        *(look for word, look in STEP_LOOKS.items() if word != "SUCCESS"),
    )
}
"""By `StepOutcome`: how a step ended in one of several runs, or an item of a mapped step."""


class _Step(Protocol):
    @property
    def status(self) -> StepStatus: ...
    @property
    def waiting_since(self) -> float | None: ...


def look_of(step: _Step, *, has_died: bool = False) -> Look:
    """Return the look of a step, or of an item; ``has_died`` if the process of the run did."""
    if step.waiting_since is not None:
        return WAITS_LOOK
    return DIED_LOOK if has_died and step.status is StepStatus.RUNNING else STEP_LOOKS[step.status]


def counted_looks(
    counts: Mapping[StepStatus, int], waiting: int, *, has_died: bool = False
) -> list[tuple[Look, int]]:
    """Return how many steps have which look, in the order of all counts.

    Of those that are pending, ``waiting`` wait for a signal.
    """
    by_word = Counter({str(status): count for status, count in counts.items()})
    by_word["PENDING"] -= waiting
    by_word["WAITS"] = waiting
    if has_died:
        by_word["ORPHANED"] = by_word.pop("RUNNING", 0)
    return [(look, by_word[word]) for word, look in STEP_LOOKS.items() if by_word[word]]
