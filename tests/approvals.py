"""A pipeline of a draft, its approval, and what is published."""

from __future__ import annotations

from typing import Any

from asyncflow import Pipeline, after


def orders(**wait: Any) -> Pipeline:
    pipeline = Pipeline("orders")

    @pipeline.step
    async def draft() -> str:
        return "draft"

    approved = pipeline.signal("approved", bool, depends_on=[draft], **wait)

    @pipeline.step
    async def publish(draft: str = after(draft), approved: bool = after(approved)) -> str:
        return f"{draft}: {approved}"

    return pipeline
