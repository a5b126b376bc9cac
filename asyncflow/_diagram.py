"""A pipeline drawn as a flowchart in the language of Mermaid.

Rules:

1. A node is known by a number of ours, never by a name of the user's.
2. A label is quoted, and whatever Mermaid or its Markdown may read in it is written as its code.
3. A status is told by a sign and by a word; its colour only repeats it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from asyncflow._result import StepResult, StepStatus
from asyncflow._signs import SIGNS
from asyncflow._text import in_one_line

__all__ = ["to_mermaid"]

# Dark text on a light ground, and both are said, so they can be read on a page of either kind.
_COLOURS = {
    StepStatus.PENDING: "fill:#f3f4f6,stroke:#6b7280,color:#1f2937",
    StepStatus.RUNNING: "fill:#dbeafe,stroke:#1d4ed8,color:#1e3a8a",
    StepStatus.SUCCESS: "fill:#d1fae5,stroke:#047857,color:#064e3b",
    StepStatus.FAILED: "fill:#fee2e2,stroke:#b91c1c,color:#7f1d1d",
    StepStatus.SKIPPED: "fill:#f3f4f6,stroke:#6b7280,color:#1f2937,stroke-dasharray:4",
    StepStatus.CANCELLED: "fill:#fef3c7,stroke:#b45309,color:#78350f",
}

# All ASCII punctuation, but for a dash or an underscore inside of a word. Quotes and `#` belong to
# Mermaid, `<` and `&` to HTML; `1. x`, `_x_` and `www.x.y` are Markdown, and `style x:` at the
# start of a label has Mermaid cut off the code that comes next.
_SPECIAL = re.compile(r"[!-,./:-@\[-^`{-~]|(?<![^\W_])[-_]|[-_](?![^\W_])")


def to_mermaid(
    dependencies: Mapping[str, Iterable[str]],
    results: Mapping[str, StepResult] | None = None,
) -> str:
    """Return a Mermaid flowchart, from left to right, of which steps wait for which.

    Args:
        dependencies: For each step the names of those that it depends on. One that is no step of
            the mapping is drawn like a step that has no result.
        results: What became of the steps. The label of each one that is in it shows its status
            and, if it started, its duration in milliseconds.
    """
    results = results or {}
    needs = {name: list(dict.fromkeys(needed)) for name, needed in dependencies.items()}
    names = dict.fromkeys([*needs, *(name for needed in needs.values() for name in needed)])
    ids = {name: f"s{number}" for number, name in enumerate(names)}
    # `in` first: a mapping with a hint in its KeyError would look for one.
    found = {name: results[name] for name in names if name in results}
    used = {result.status for result in found.values()}
    lines = [
        "flowchart LR",
        *(f"    {ids[name]}{_shape(name, found.get(name))}" for name in names),
        *(f"    {ids[first]} --> {ids[name]}" for name in needs for first in needs[name]),
        *(
            f"    classDef {status.lower()} {colours}"
            for status, colours in _COLOURS.items()
            if status in used
        ),
    ]
    return "\n".join(lines)


def _shape(name: str, result: StepResult | None) -> str:
    label = _SPECIAL.sub(lambda found: f"#{ord(found[0])};", in_one_line(name))
    if result is None:
        return f'["{label or " "}"]'  # Mermaid refuses an empty one
    status = result.status
    label += f"<br/>{SIGNS[status]} {status}"
    if result.started_ms is not None:
        label += f" {result.duration_ms:.0f}ms"
    return f'["{label}"]:::{status.lower()}'
