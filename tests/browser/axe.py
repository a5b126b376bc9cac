"""What axe, which checks accessibility, finds on a page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

__all__ = ["violations"]


async def violations(page: Any) -> list[str]:
    """Return which rules the page violates, and where: all in light colours, contrast in dark ones.

    Nothing but contrast depends on colours, and each check of a page takes a second.
    """
    axe = pytest.importorskip(
        "axe_playwright_python.base", reason="needs axe to check accessibility"
    )
    await page.evaluate(Path(axe.__file__).with_name("axe.min.js").read_text(encoding="utf-8"))
    light = await page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    await page.emulate_media(color_scheme="dark")
    dark = await page.evaluate("axe.run(document, {runOnly: ['color-contrast']})")
    await page.emulate_media(color_scheme="light")
    assert len(light["passes"]) > 10
    assert len(dark["passes"]) == 1
    return [
        f"{each['id']} in {scheme}: {node['html'][:200]} {node['failureSummary'][:300]}"
        for scheme, found in (("light", light), ("dark", dark))
        for each in found["violations"]
        for node in each["nodes"]
    ]
