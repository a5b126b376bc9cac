"""The site in Chromium, opened as files: the search, the diagrams, the layout and axe."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

pytestmark = [
    pytest.mark.browser,
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.timeout(300),  # the first one builds the site
]

PAGES = ("index.html", "guides/terminal.html", "reference/api/github.html")
WIDTHS = (390, 820, 1440)


@pytest_asyncio.fixture(loop_scope="session")
async def page(browser: Any) -> AsyncIterator[Any]:
    """Return a tab whose list ``requests`` has what it requests, and which fails on complaints."""
    context = await browser.new_context(viewport={"width": 1280, "height": 900})
    page = await context.new_page()
    page.requests = []
    complaints: list[str] = []
    page.on("request", lambda each: page.requests.append(each.url))
    page.on("console", lambda each: complaints.append(each.text))
    page.on("pageerror", lambda each: complaints.append(str(each)))
    yield page
    await context.close()
    assert complaints == []
    assert page.requests
    assert [url for url in page.requests if not url.startswith(("file:", "data:", "blob:"))] == []


async def search(page: Any, words: str) -> None:
    # On a narrow window the field is behind a button.
    await page.locator("[data-md-component=search-query]").evaluate("field => field.focus()")
    await page.keyboard.type(words)
    await page.wait_for_selector(".md-search-result__item")


async def axe(page: Any, within: str | None = None) -> list[str]:
    from axe_playwright_python.async_playwright import Axe

    # The theme makes a <nav> for each block of code. To preload styles is to fetch, which a browser
    # refuses to a page that is opened as a file.
    options = {"preload": False, "rules": {"landmark-unique": {"enabled": False}}}
    violations = (await Axe().run(page, context=within, options=options)).response["violations"]
    return [
        f"{violation['id']}: {node['html'][:200]}"
        for violation in violations
        for node in violation["nodes"]
    ]


async def test_the_search_works_without_a_server(page: Any, built_site: Path) -> None:
    await page.goto((built_site / "index.html").as_uri())
    await search(page, "timeout_ms")

    links = await page.locator(".md-search-result__link").evaluate_all(
        "all => all.map(a => a.href)"
    )
    found = {link.partition("?")[0] for link in links}
    assert (built_site / "guides/policies.html").as_uri() in found
    assert (built_site / "reference/api/asyncflow.html").as_uri() in found


async def test_the_search_finds_an_error_by_its_message(page: Any, built_site: Path) -> None:
    await page.goto((built_site / "index.html").as_uri())
    await search(page, '"which cannot be awaited"')

    first = await page.locator(".md-search-result__link").first.get_attribute("href")
    assert "reference/troubleshooting.html" in first


async def test_diagrams_are_drawn(page: Any, built_site: Path) -> None:
    await page.goto((built_site / "concepts/how-it-works.html").as_uri())

    # Drawn ones are in a shadow, which is closed; the source was in a <pre>.
    drawing = page.locator("div.mermaid")
    await drawing.wait_for()
    assert await page.locator("pre.mermaid").count() == 0
    assert (await drawing.bounding_box())["height"] > 300


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_axe_finds_nothing(page: Any, built_site: Path, scheme: str) -> None:
    await page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    found = {}
    for name in PAGES:
        await page.goto((built_site / name).as_uri())
        found[name] = await axe(page)
    background = await page.evaluate("getComputedStyle(document.body).backgroundColor")
    await search(page, "retry")
    found["search"] = await axe(page, ".md-search")

    assert (background == "rgb(255, 255, 255)") == (scheme == "light")
    assert {name: violations for name, violations in found.items() if violations} == {}


async def test_no_page_is_wider_than_its_window(page: Any, built_site: Path) -> None:
    wider = []
    for name in PAGES:
        await page.goto((built_site / name).as_uri())
        for width in WIDTHS:
            await page.set_viewport_size({"width": width, "height": 900})
            if await page.evaluate("document.documentElement.scrollWidth") > width:
                wider.append((name, width))

    assert wider == []


async def test_the_picture_follows_the_switch(page: Any, built_site: Path) -> None:
    await page.emulate_media(color_scheme="light")
    await page.goto((built_site / "index.html").as_uri())
    shown = page.locator("article img:visible").first
    assert "#only-light" in (await shown.get_attribute("src") or "")

    await page.locator("label[title='Use dark colours']").click()

    assert "#only-dark" in (await shown.get_attribute("src") or "")
