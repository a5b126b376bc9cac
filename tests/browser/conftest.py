"""Fixtures for tests in Chromium: one browser for all tests, with tabs that are reused.

The tests and the browser share one event loop, since playwright's objects belong to a loop.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import pytest_asyncio

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
Open: TypeAlias = Callable[..., Awaitable[Any]]


@pytest_asyncio.fixture(loop_scope="session", scope="session")
async def browser() -> AsyncIterator[Any]:
    if importlib.util.find_spec("playwright") is None:
        pytest.skip("these tests need playwright, which is not installed")
    if CHROMIUM is None:
        pytest.skip("these tests need Chromium, which is not installed")
    from playwright.async_api import async_playwright, expect

    expect.set_options(timeout=15_000)  # a busy machine takes its time

    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--force-color-profile=srgb"]
        )
        yield browser
        await browser.close()


@pytest_asyncio.fixture(loop_scope="session", scope="session")
async def tabs() -> dict[str, list[Any]]:
    """Return the free tabs, by their options: a new tab takes half a second."""
    return {}


@pytest_asyncio.fixture(loop_scope="session")
async def opened(browser: Any, tabs: dict[str, list[Any]], tmp_path: Path) -> AsyncIterator[Open]:
    """Return a function that opens a page from its HTML, as a file.

    The list ``requests`` of the page holds the URLs that it requests beside the file itself. The
    test fails if its list ``complaints`` holds console messages, errors or dialogs at the end.
    """
    tabs_in_use: list[tuple[str, Any]] = []
    complaints: list[str] = []

    async def open_page(html: str, at: str = "", width: int = 1280, **options: Any) -> Any:
        path = tmp_path / f"page{len(tabs_in_use)}.html"
        path.write_text(html, encoding="utf-8")
        free = tabs.setdefault(repr(options), [])
        page = free.pop() if free else await _new_tab(browser, options)
        tabs_in_use.append((repr(options), page))
        page.requests, page.complaints = [], complaints
        await page.set_viewport_size({"width": width, "height": 900})
        await page.mouse.move(0, 0)
        await page.goto(path.as_uri() + at)
        assert page.requests.pop(0).startswith("file:")
        return page

    yield open_page
    for options, page in tabs_in_use:
        await _reset_tab(page)
        tabs[options].append(page)
    assert complaints == []


async def _new_tab(browser: Any, options: dict[str, Any]) -> Any:
    page = await (await browser.new_context(color_scheme="light", **options)).new_page()
    page.on("request", lambda each: page.requests.append(each.url))
    page.on("console", lambda each: page.complaints.append(each.text))
    page.on("pageerror", lambda each: page.complaints.append(str(each)))
    page.on("dialog", lambda each: page.complaints.append(f"dialog: {each.message}"))
    return page


async def _reset_tab(page: Any) -> None:
    """Clear the local storage and the emulated media of a tab."""
    await page.evaluate("localStorage.clear()")
    await page.emulate_media(media="null", color_scheme="light")
    await page.goto("about:blank")
