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
    "agent loop": ["guides/llm"],
    "backfill": ["recipes/schedules"],
    "batches": ["guides/items"],
    "blocking code": ["guides/threads"],
    "budget of tokens": ["guides/llm"],
    "cache result": ["recipes/caching"],
    "cancel": ["guides/pipelines"],
    "cancel a run": ["guides/pipelines"],
    "cancel run": ["guides/pipelines"],
    "clean up": ["guides/conditions"],
    "concurrency limit": ["guides/limits"],
    "cron": ["recipes/schedules"],
    "cron job": ["recipes/schedules"],
    "dask": ["guides/engines"],
    "database connection": ["guides/resources"],
    "dead letter": ["guides/data-jobs"],
    "delay": ["guides/waiting"],
    "delay a step": ["guides/waiting"],
    "delay between retries": ["guides/retries"],
    "delete old runs": ["guides/looking-back"],
    "django": ["guides/services"],
    "environment variable": ["reference/command-line", "guides/resources"],
    "fake step": ["guides/testing"],
    "fallback": ["guides/retries"],
    "fan out": ["guides/items"],
    "fastapi": ["guides/services"],
    "github actions": ["recipes/ci", "guides/observing"],
    "html report": ["guides/html-report"],
    "human approval": ["guides/waiting"],
    "idempotency key": ["guides/durable-runs", "recipes/effects"],
    "kill -9": ["guides/durable-runs", "getting-started"],
    "kubernetes": ["recipes/kubernetes"],
    "logs": ["guides/observing"],
    "map over an input": ["guides/items"],
    "mock a step": ["guides/testing"],
    "one call for each item": ["guides/items"],
    "openai": ["guides/llm"],
    "pass data between steps": ["guides/pipelines"],
    "per tenant": ["guides/services", "guides/limits"],
    "postgres": ["guides/journals", "guides/deployment"],
    "progress": ["guides/observing"],
    "progress bar": ["guides/observing"],
    "prometheus": ["recipes/prometheus"],
    "queue": ["guides/services"],
    "rate limit": ["guides/limits"],
    "rate limit tokens": ["guides/limits"],
    "rerun from step": ["guides/changed-code"],
    "resume": ["guides/durable-runs"],
    "resume after a crash": ["guides/durable-runs"],
    "retry after": ["guides/retries"],
    "retry on 429": ["guides/retries"],
    "retry-after": ["guides/retries"],
    "run_pipeline": ["reference/api/asyncflow"],
    "schedule": ["recipes/schedules"],
    "secrets": ["guides/journals", "guides/observing"],
    "sigterm": ["recipes/signals", "guides/services"],
    "skip a step": ["guides/conditions"],
    "stop run": ["guides/durable-runs", "guides/pipelines"],
    "streaming": ["guides/streaming"],
    "subprocess": ["recipes/threads"],
    "tenant": ["guides/services", "guides/limits"],
    "timeout": ["guides/retries"],
    "tolerated failures": ["guides/items"],
    "typing": ["guides/pipelines"],
    "upgrade": ["guides/deployment"],
    "wait for approval": ["guides/waiting"],
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


async def test_what_a_search_shows_of_a_page_has_no_code(page: Any, built_site: Path) -> None:
    await page.goto((built_site / "index.html").as_uri())
    await search(page, "fan out")
    code = page.locator(".md-search-result pre")

    assert await code.count() > 0
    assert [await each.is_visible() for each in await code.all()] == [False] * await code.count()


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
