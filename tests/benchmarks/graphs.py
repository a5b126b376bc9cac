"""Pipelines of a given shape and size."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from asyncflow import WorkflowStep

Edges = list[tuple[str, list[str]]]


async def instant() -> int:
    return 1


async def suspending() -> int:
    await asyncio.sleep(0)
    return 1


def chain(count: int) -> Edges:
    return [(f"s{i}", [f"s{i - 1}"] if i else []) for i in range(count)]


def fan(count: int) -> Edges:
    middle = [f"s{i}" for i in range(1, count - 1)]
    return [("s0", []), *((name, ["s0"]) for name in middle), (f"s{count - 1}", middle)]


def layered(count: int, width: int = 50, needs: int = 3) -> Edges:
    return [
        (
            f"s{i}",
            [f"s{(i // width - 1) * width + (i * 7 + k * 13) % width}" for k in range(needs)]
            if i >= width
            else [],
        )
        for i in range(count)
    ]


SHAPES: dict[str, Callable[[int], Edges]] = {"chain": chain, "fan": fan, "layered": layered}


def pipeline(
    edges: Sequence[tuple[str, list[str]]],
    action: Callable[[], Awaitable[object]],
    **options: object,
) -> list[WorkflowStep]:
    return [WorkflowStep(name, action, needs, **options) for name, needs in edges]
