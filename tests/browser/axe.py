"""What axe, which checks accessibility, finds on a page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

__all__ = ["violations"]

_ALL_BUT_CONTRAST = """axe.run(document, {
  resultTypes: ["violations"], rules: {"color-contrast": {enabled: false}},
})"""
# The contrast of hundreds of texts takes most of the time, and few of them look different.
_CONTRAST = """() => {
  const seen = new Set();
  const looks_new = (text) => {
    const {color, fontSize, fontWeight} = getComputedStyle(text);
    const look = [color, fontSize, fontWeight];
    for (let at = text; at; at = at.parentElement) {
      const {backgroundColor, backgroundImage, opacity} = getComputedStyle(at);
      look.push(backgroundColor, backgroundImage, opacity);
    }
    const size = seen.size;
    return seen.add(String(look)).size > size;
  };
  const is_text = (node) => node.nodeType === Node.TEXT_NODE && node.data.trim();
  const texts = [...document.body.querySelectorAll("*")].filter((each) =>
    each.checkVisibility() && [...each.childNodes].some(is_text) && looks_new(each)
  );
  return axe.run({include: texts}, {runOnly: ["color-contrast"]});
}"""


async def violations(page: Any) -> list[str]:
    """Return which rules the page violates, and where: contrast in light and in dark colours."""
    axe = pytest.importorskip(
        "axe_playwright_python.base", reason="needs axe to check accessibility"
    )
    await page.evaluate(Path(axe.__file__).with_name("axe.min.js").read_text(encoding="utf-8"))
    found = {"any colours": await page.evaluate(_ALL_BUT_CONTRAST)}
    assert len(found["any colours"]["passes"]) > 10
    for scheme in ("dark", "light"):
        await page.emulate_media(color_scheme=scheme)
        found[scheme] = await page.evaluate(_CONTRAST)
        assert len(found[scheme]["passes"]) == 1
    return [
        f"{each['id']} in {scheme}: {node['html'][:200]} {node['failureSummary'][:300]}"
        for scheme, result in found.items()
        for each in result["violations"]
        for node in each["nodes"]
    ]
