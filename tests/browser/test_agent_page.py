"""The page of the example of an agent, whose server is killed in the middle of an answer."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from agent_server import SCRIPT, agent_server
from playwright.async_api import expect

pytestmark = pytest.mark.asyncio(loop_scope="session")  # the loop of the browser


async def test_a_browser_goes_on_where_it_was_when_its_server_is_killed(
    browser: Any, tmp_path: Path
) -> None:
    context = await browser.new_context()
    context.set_default_timeout(30_000)
    page = await context.new_page()
    turns, state = page.locator("#turns > p"), page.locator("#state")
    with agent_server(tmp_path) as (process, url):
        await page.goto("about:blank")
        for _ in range(100):
            try:
                await page.goto(url)
                break
            except Exception:  # it does not listen yet
                await page.wait_for_timeout(100)
        await page.get_by_role("button", name="Ask").click()
        await expect(turns).to_have_count(4)
        await expect(turns.last).to_contain_text("word10")
        process.kill()
    await expect(state).to_have_text("connecting again …")
    await expect(turns).to_have_count(4)

    with agent_server(tmp_path, int(url.rpartition(":")[2])):
        await expect(state).to_have_text("done")
        await expect(turns.nth(0)).to_have_text(re.compile(r"Turn 0\. +\[weather city 0\]"))
        await expect(turns.last).to_have_text(SCRIPT[3]["text"])
        await page.reload()
        await expect(state).to_have_text("done")
        await expect(turns.last).to_have_text(SCRIPT[3]["text"])

    paid = (tmp_path / "log").read_text()
    assert [len(re.findall(f"ask-{n}$", paid, re.M)) for n in range(4)] == [1, 1, 1, 2]
    await context.close()
