"""The comparison of two runs in a real browser, without JavaScript."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from browser.axe import violations
from browser.live_processes import ServerThread
from compared_runs import store_two_runs
from playwright.async_api import expect

from asyncflow.journal import SQLiteJournal

pytestmark = pytest.mark.asyncio(loop_scope="session")  # the loop of the browser


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerThread]:
    folder = tmp_path_factory.mktemp("compared")

    async def fill() -> None:
        async with SQLiteJournal(folder / "runs.db") as journal:
            await store_two_runs(journal)

    with asyncio.Runner() as runner:
        runner.run(fill())
    site = ServerThread(folder)
    yield site
    site.close()


async def test_two_runs_are_compared_without_a_script(browser: Any, site: ServerThread) -> None:
    page = await browser.new_page(
        java_script_enabled=False, viewport={"width": 1280, "height": 900}
    )

    await page.goto(f"{site.url}runs/tuesday")
    await page.get_by_role("link", name="Compare with the last passed").click()
    await expect(page.locator("#compared tbody tr")).to_have_count(8)
    row = page.locator("#compared tr", has_text="extract")
    await page.get_by_role("searchbox", name="Run").fill("monday")
    await page.get_by_role("searchbox", name="Baseline").fill("tuesday")
    await page.get_by_role("button", name="Compare").click()
    await expect(row).to_contain_text("▼ 3.0 s faster")
    await page.get_by_role("link", name="extract").last.click()
    assert page.url == f"{site.url}runs/monday#step=extract"
    await page.close()


async def test_the_comparison_is_accessible_and_fits(browser: Any, site: ServerThread) -> None:
    page = await browser.new_page(viewport={"width": 1280, "height": 900})
    messages: list[str] = []
    page.on("console", lambda message: messages.append(message.text))

    for path in ("compare", "compare?a=monday", "compare?a=tuesday"):
        await page.goto(site.url + path)
        assert await violations(page) == []
        for width in (390, 1024):
            await page.set_viewport_size({"width": width, "height": 800})
            assert await page.evaluate("document.documentElement.scrollWidth") <= width
    assert messages == []
    await page.close()
