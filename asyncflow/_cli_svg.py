"""A pipeline that has not run, drawn as a picture of its own in SVG."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape

from asyncflow._core.errors import in_one_line
from asyncflow._dag import Box, Drawing, drawing

__all__ = ["to_svg"]

_STYLE = """
  .box { fill: #f8fafc; stroke: #64748b }
  .edge { fill: none; stroke: #94a3b8; stroke-width: 1.5 }
  text { font: 12px system-ui, sans-serif; fill: #0f172a }
  .tier { font-size: 11px; fill: #475569 }
  @media (prefers-color-scheme: dark) {
    .box { fill: #1e293b; stroke: #94a3b8 }
    .edge { stroke: #64748b }
    text { fill: #f1f5f9 }
    .tier { fill: #cbd5e1 }
  }
"""


def to_svg(
    name: str, tiers: Sequence[Sequence[str]], dependencies: Mapping[str, tuple[str, ...]]
) -> str:
    """Return the picture: a box for each step with its name and tier, a curve for each dependency.

    Args:
        name: What the pipeline is called.
        tiers: The names of the steps in their tiers.
        dependencies: For each step, in topological order, the steps it depends on.
    """
    graph = drawing(dependencies)
    tier_of = {step: number for number, tier in enumerate(tiers, 1) for step in tier}
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{graph.width:g}" '
            f'height="{graph.height:g}" viewBox="0 0 {graph.width:g} {graph.height:g}" role="img">',
            f"<title>{_text(name)}</title>",
            f"<style>{_STYLE}</style>",
            *(f'<path class="edge" d="{curve.path}"/>' for curve in graph.curves),
            *_boxes(graph, dependencies, tier_of),
            "</svg>",
        ]
    )


def _boxes(
    graph: Drawing, steps: Mapping[str, object], tier_of: Mapping[str, int]
) -> Iterator[str]:
    for step, box in zip(steps, graph.boxes, strict=True):
        yield f'<g transform="translate({box.x:g} {box.y:g})"><title>{_text(step)}</title>'
        yield f'<rect class="box" width="{graph.box_width:g}" height="{box.height:g}" rx="6"/>'
        yield from _lines(box)
        yield f'<text class="tier" x="12" y="{box.height - 9:g}">tier {tier_of[step]}</text></g>'


def _text(name: str) -> str:
    return escape(in_one_line(name))


def _lines(box: Box) -> Iterator[str]:
    for number, line in enumerate(box.lines):
        yield f'<text x="12" y="{18 + 16 * number}">{escape(line)}</text>'
