"""The list of runs and the page of a pipeline in a real browser."""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from browser.axe import violations
from browser.live_processes import ServerThread
from playwright.async_api import Page, expect

from asyncflow import RunStatus
from asyncflow._core.history.results import Payload
from asyncflow.events import (
    AttemptFailed,
    AttemptStarted,
    Event,
    RunFinished,
    RunStarted,
    StepFailed,
    StepSkipped,
    StepSucceeded,
)
from asyncflow.journal import SQLiteJournal

pytestmark = pytest.mark.asyncio(loop_scope="session")  # the loop of the browser

LONG = "normalise_customer_addresses_against_the_national_register_v2"
STEPS: dict[str, tuple[str, ...]] = {"extract": (), LONG: ("extract",), "load": (LONG,)}
RUNS = 60


def a_run(number: int, now_s: float) -> list[Event]:
    """Return the events of a run: every fourth one retries, every fifth one fails."""
    took, run_id = 100.0 * (number + 1), f"nightly-{number:02}"
    inputs = {"day": Payload("json", b'"2024-06-01"')}
    start = RunStarted(run_id, now_s - 3_600 * (RUNS - number), STEPS, "orders", inputs=inputs)
    events: list[Event] = [start, AttemptStarted("extract", 1, 0.0)]
    events += [StepSucceeded("extract", 1, 10.0, None), AttemptStarted(LONG, 1, 10.0)]
    if number % 5 == 4:
        error = ValueError(f"no address of {'customer ' * 40}")
        events += [StepFailed(LONG, 1, took, error), StepSkipped("load", took, "why")]
        return [*events, RunFinished(took, RunStatus.FAILED)]
    if number % 4 == 3:
        events.append(AttemptFailed(LONG, 1, 20.0, OSError("away"), 1.0))
        events.append(AttemptStarted(LONG, 2, 30.0))
    events.append(StepSucceeded(LONG, 2 if number % 4 == 3 else 1, took, None))
    events += [AttemptStarted("load", 1, took), StepSucceeded("load", 1, took, None)]
    return [*events, RunFinished(took, RunStatus.PASSED)]


@pytest_asyncio.fixture(loop_scope="session", scope="module")
async def site(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ServerThread]:
    folder: Path = tmp_path_factory.mktemp("site")
    site = ServerThread(folder)
    now_s = time.time()
    async with SQLiteJournal(folder / "runs.db") as journal:
        for number in range(RUNS):
            session, _ = await journal.open(f"nightly-{number:02}", wait=False, read=bool)
            for event in a_run(number, now_s):
                session.append(event)
            await session.close()
    yield site
    site.close()


@pytest_asyncio.fixture(loop_scope="session")
async def open_tab(browser: Any) -> AsyncIterator[Any]:
    """Return a function that opens a page; its console must stay empty."""
    contexts: list[Any] = []
    complaints: list[str] = []

    async def open_tab(url: str, width: int = 1280, **options: Any) -> Page:
        context = await browser.new_context(viewport={"width": width, "height": 900}, **options)
        contexts.append(context)
        page: Page = await context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        await page.goto(url)
        return page

    yield open_tab
    for context in contexts:
        await context.close()
    assert complaints == []


@pytest.mark.parametrize("path", ["", "pipelines/orders", "pipelines/orders?run=nightly-59"])
async def test_a_page_violates_no_accessibility_rule_and_fits(
    open_tab: Any, site: ServerThread, path: str
) -> None:
    page = await open_tab(site.url + path)

    for width in (1440, 390):
        await page.set_viewport_size({"width": width, "height": 900})
        assert await violations(page) == []
        assert await page.evaluate("document.documentElement.scrollWidth") <= width


async def test_a_cell_leads_to_its_step_in_its_run(open_tab: Any, site: ServerThread) -> None:
    page = await open_tab(site.url)
    await page.locator("#list td a").first.click()
    await expect(page.get_by_role("heading", name="orders")).to_be_visible()

    await page.locator(".matrix td a.failed").last.click()

    await expect(page).to_have_url(re.compile(rf"/runs/nightly-59#step={LONG}$"))
    await expect(page.locator("#panel h3:visible")).to_have_text(LONG)
    await page.get_by_role("link", name="Its pipeline").click()
    await expect(page.locator(".plot rect.bar")).to_have_count(50)


async def test_the_latest_runs_show_first_on_a_phone(open_tab: Any, site: ServerThread) -> None:
    page = await open_tab(f"{site.url}pipelines/orders", 390)

    latest = page.locator(".matrix thead a").last
    assert await latest.get_attribute("title") == "nightly-59, FAILED"
    box, frame = await latest.bounding_box(), await page.locator("#grid .scroll").bounding_box()
    assert box is not None
    assert frame is not None
    assert box["x"] + box["width"] <= frame["x"] + frame["width"] + 1
    name = await page.locator(".matrix tbody th").first.bounding_box()
    assert name is not None
    assert abs(name["x"] - frame["x"]) < 2


@pytest.mark.parametrize("path", ["", "pipelines/orders"])
async def test_a_page_is_complete_without_javascript(
    open_tab: Any, site: ServerThread, path: str
) -> None:
    page = await open_tab(site.url + path, java_script_enabled=False)

    time_of = page.locator("time").first
    assert re.fullmatch(r"\d+ (s|min|h) ago", await time_of.inner_text())
    assert re.search(r" UTC$", await time_of.get_attribute("title") or "")
    assert await page.locator("a[href*='/runs/nightly-59']").count() >= 1


async def test_a_run_without_javascript_does_not_say_that_it_connects(
    open_tab: Any, site: ServerThread
) -> None:
    page = await open_tab(f"{site.url}runs/nightly-59", java_script_enabled=False)

    await expect(page.get_by_role("link", name="Its pipeline")).to_be_visible()
    await expect(page.locator("#live-state")).to_be_hidden()


async def test_times_are_in_the_zone_of_the_browser(open_tab: Any, site: ServerThread) -> None:
    page = await open_tab(site.url, timezone_id="Asia/Tokyo")

    title = await page.locator("#list time").first.get_attribute("title")

    assert title is not None
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC\+09:00", title)


async def test_a_chip_filters_the_list(open_tab: Any, site: ServerThread) -> None:
    page = await open_tab(site.url)

    await page.locator(".chip", has_text="Failed").click()

    await expect(page.locator("#list tbody tr")).to_have_count(12)
    await expect(page.locator(".chip[aria-current]")).to_contain_text("FAILED 12")
    await expect(page.locator("#list .told").first).to_contain_text("ValueError: no address of")
