"""What axe, which checks accessibility, finds on a page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

__all__ = ["violations"]


async def violations(page: Any) -> list[str]:
    """Return which rules the page violates, and where."""
    axe = pytest.importorskip(
        "axe_playwright_python.base", reason="needs axe to check accessibility"
    )
    await page.evaluate(Path(axe.__file__).with_name("axe.min.js").read_text(encoding="utf-8"))
    found = await page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    assert len(found["passes"]) > 10
    return [
        f"{each['id']}: {node['html'][:200]} {node['failureSummary'][:300]}"
        for each in found["violations"]
        for node in each["nodes"]
    ]
