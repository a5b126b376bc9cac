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

PAGES = ("index.html", "guides/terminal.html", "reference/api/logs.html")
WIDTHS = (390, 820, 1440)


QUERIES = {
    "cancel a run": ["guides/pipelines"],
    "stop run": ["guides/durable-runs", "guides/pipelines"],
    "rate limit": ["guides/limits"],
    "concurrency limit": ["guides/limits"],
    "retry after": ["guides/retries"],
    "retry on 429": ["guides/retries"],
    "timeout": ["guides/retries"],
    "fallback": ["guides/retries"],
    "skip a step": ["guides/conditions"],
    "clean up": ["guides/conditions"],
    "one call for each item": ["guides/items"],
    "fake step": ["guides/testing"],
    "mock a step": ["guides/testing"],
    "resume": ["guides/durable-runs"],
    "resume after a crash": ["guides/durable-runs"],
    "kill -9": ["guides/durable-runs", "getting-started"],
    "wait for approval": ["guides/waiting"],
    "idempotency key": ["guides/durable-runs", "recipes/effects"],
    "cron": ["recipes/schedules"],
    "pass data between steps": ["guides/pipelines"],
    "run_pipeline": ["reference/api/asyncflow"],
    "dead letter": ["guides/data-jobs"],
    "environment variable": ["reference/command-line", "guides/resources"],
    "github actions": ["recipes/ci", "guides/observing"],
    "progress": ["guides/observing"],
    "fastapi": ["guides/services"],
    "postgres": ["guides/journals", "guides/deployment"],
    "blocking code": ["guides/threads"],
    "database connection": ["guides/resources"],
    "upgrade": ["guides/deployment"],
    "kubernetes": ["recipes/kubernetes"],
    "prometheus": ["recipes/prometheus"],
    "openai": ["guides/llm"],
    "dask": ["guides/engines"],
    "sigterm": ["recipes/signals", "guides/services"],
    "secrets": ["guides/journals", "guides/observing"],
    "subprocess": ["recipes/threads"],
    "html report": ["guides/html-report"],
}
"""What readers type, and the pages one of which must come first."""


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
    field = page.locator("[data-md-component=search-query]")
    await field.evaluate("field => field.focus()")
    await field.fill(words[:-1])
    await page.keyboard.type(words[-1])  # the theme listens to keys
    await page.wait_for_selector(".md-search-result__item")


async def first_hit(page: Any, query: str) -> str:
    """Return the page that a search finds first, by its path on the site without ``.html``."""
    # What an earlier search found stays until the answer to this one is there.
    await page.locator(".md-search-result__list").evaluate("list => list.replaceChildren()")
    await search(page, query)
    link = await page.locator(".md-search-result__link").first.get_attribute("href")
    return (link or "").partition(".html")[0].rpartition("/site/")[2]


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


async def test_the_search_finds_what_readers_ask_for(page: Any, built_site: Path) -> None:
    await page.goto((built_site / "index.html").as_uri())
    found = {}
    for query in QUERIES:
        found[query] = await first_hit(page, query)

    wrong = {query: found[query] for query, pages in QUERIES.items() if found[query] not in pages}
    assert wrong == {}


async def test_the_search_finds_an_error_by_its_message(page: Any, built_site: Path) -> None:
    await page.goto((built_site / "index.html").as_uri())
    await search(page, '"which cannot be awaited"')

    first = await page.locator(".md-search-result__link").first.get_attribute("href")
    assert "reference/troubleshooting.html" in first


async def test_diagrams_are_drawn(page: Any, built_site: Path) -> None:
    await page.goto((built_site / "architecture.html").as_uri())

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
