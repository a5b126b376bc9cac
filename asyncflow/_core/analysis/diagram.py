"""A pipeline or a run as a flowchart of Mermaid.

Rules:

1. A node is named by a number, never by what a user wrote. A label is quoted, and whatever Mermaid
   or its Markdown may read in it is written as its code.
2. A status is shown by a symbol and a word; its colour only repeats it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

from asyncflow._core.analysis.looks import STEP_LOOKS, look_of
from asyncflow._core.analysis.remarks import waited_text
from asyncflow._core.history.results import StepResult
from asyncflow._core.text import escape_controls

# All ASCII punctuation but a dash or an underscore within a word. Quotes and `#` belong to Mermaid,
# `<` and `&` to HTML; `1. x`, `_x_` and `www.x.y` are Markdown. After `style x:` at the start of a
# label, Mermaid cuts off the next code.
_SPECIAL = r"[!-,./:-@\[-^`{-~]|(?<![^\W_])[-_]|[-_](?![^\W_])"


def to_mermaid(
    dependencies: Mapping[str, Iterable[str]],
    results: Mapping[str, StepResult] | None = None,
    critical: Sequence[str] = (),
) -> str:
    """Return a Mermaid flowchart, from left to right, of steps and their dependencies.

    A dependency that is not a step of the mapping is drawn like a step without a result. The label
    of a step with a result shows its status and, if it started, its duration in milliseconds.
    ``critical`` names the steps of the critical path, in order.
    """
    results, thick = results or {}, frozenset(pairwise(critical))
    needs = {name: list(dict.fromkeys(needed)) for name, needed in dependencies.items()}
    names = dict.fromkeys([*needs, *(name for needed in needs.values() for name in needed)])
    ids = {name: f"s{number}" for number, name in enumerate(names)}
    # `in` first: the KeyError of a report has a hint, which takes a while to find.
    found = {name: results[name] for name in names if name in results}
    used = {look_of(result) for result in found.values()}
    lines = [
        "flowchart LR",
        *(f"    {ids[name]}{_node(name, found.get(name))}" for name in names),
        *(
            f"    {ids[first]} {'==>' if (first, name) in thick else '-->'} {ids[name]}"
            for name in needs
            for first in needs[name]
        ),
        *(
            f"    classDef {look.kind} {look.flowchart}"
            for look in STEP_LOOKS.values()
            if look in used
        ),
    ]
    if thick:  # one step alone is no path
        lines.append("    classDef critical stroke-width:4px")
        lines.append(f"    class {','.join(ids[name] for name in critical)} critical")
    return "\n".join(lines)


def _node(name: str, result: StepResult | None) -> str:
    label = re.sub(_SPECIAL, lambda found: f"#{ord(found[0])};", escape_controls(name))
    if result is None:
        return f'["{label or " "}"]'  # Mermaid refuses an empty one
    look = look_of(result)
    label += f"<br/>{look.symbol} {look.word}"
    if result.started_ms is not None:
        label += f" {result.duration_ms:.0f}ms"
    elif waited := waited_text(result):
        label += f", {waited}"
    return f'["{label}"]:::{look.kind}'
