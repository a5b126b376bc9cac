"""Makes the pictures of pages in the docs: ``python tests/browser/picture.py``.

It runs two pipelines in virtual time, and takes screenshots of their pages in Chromium:

- ``run-page.png``: the window of a run of 60 steps that failed.
- ``timeline-light.png`` and ``timeline-dark.png``: the verdict and the timeline of a small run that
  passed, as wide as the column of text on GitHub, with two pixels for each of its pixels.
"""

from __future__ import annotations

import asyncio
import io
import random
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from conftest import CHROMIUM
from PIL import Image
from playwright.async_api import Browser, async_playwright

from asyncflow import Pool, WorkflowStep, current_step, run_pipeline
from asyncflow.events import Event, RunStarted
from asyncflow.html_report import to_html
from asyncflow.testing import run_in_virtual_time

IMAGES = Path(__file__).parents[2] / "docs" / "images"
COLUMN = 830
"""How wide GitHub shows a README, in CSS pixels."""
MONDAY = 1_767_589_200.0  # 2026-01-05 05:00 UTC
TABLES = [
    "orders",
    "customers",
    "products",
    "prices",
    "stock",
    "suppliers",
    "returns",
    "shipments",
    "web_sessions",
    "campaigns",
    "fx_rates",
    "stores",
]
BROKEN = "features_customer_lifetime_value_with_seasonal_adjustment_v3"
FAILED_ATTEMPTS = {"extract_stock": 1, "extract_fx_rates": 2, BROKEN: 2, "prices": 2}
DATABASE = Pool(10)


def step(
    name: str, *depends_on: str, seconds: float, rows: int = 0, **policies: Any
) -> WorkflowStep:
    async def act() -> object:
        await asyncio.sleep(seconds)
        if current_step().attempt <= FAILED_ATTEMPTS.get(name, 0):
            if name == BROKEN:
                raise ValueError("column 'season' has 3 unknown values: 'spring ', 'fall', None")
            raise ConnectionError("connection reset by peer while reading the next page of results")
        sample = [{"id": each, "name": f"{name}-{each}"} for each in range(min(rows, 8))]
        return {"rows": rows, "columns": ["id", "created_at", "updated_at"], "sample": sample}

    retry = 900 if "max_retries" in policies else 0
    return WorkflowStep(name, act, depends_on, retry=retry, **policies)


def pipeline() -> list[WorkflowStep]:
    random.seed(5)
    of = random.uniform
    steps = [
        step(
            f"extract_{table}",
            seconds=3.8 if table == "fx_rates" else of(0.7, 3.8),
            rows=random.randrange(1_000, 90_000),
            max_retries=3,
            pool=DATABASE,
        )
        for table in TABLES
    ]
    steps.append(step("heartbeat", seconds=0.1, pool=DATABASE))
    for before, stage in (("extract", "validate"), ("validate", "clean"), ("clean", "features")):
        steps += [
            step(f"{stage}_{table}", f"{before}_{table}", seconds=of(0.5, 2), rows=500)
            for table in TABLES
        ]
    marts = ["sales", "stock", "web", "finance", "returns", "logistics"]
    for mart, table in zip(marts, TABLES, strict=False):
        steps.append(step(f"load_{mart}_mart", f"features_{table}", seconds=of(0.4, 1.5), rows=20))
    inputs = ["features_customers", "features_orders", "features_fx_rates"]
    steps += [
        step("audit_log", "heartbeat", seconds=0.3),
        step(BROKEN, *inputs, seconds=1.1, max_retries=2),
        step("load_customer_mart", BROKEN, seconds=1),
        step("refresh_dashboards", "load_customer_mart", "load_sales_mart", seconds=1),
        step("notify_finance", "refresh_dashboards", seconds=1),
    ]
    return steps


def small_pipeline() -> list[WorkflowStep]:
    return [
        step("orders", seconds=1.9),
        step("prices", seconds=1.2, max_retries=3),
        step("stock", seconds=2.6),
        step("total", "orders", "prices", seconds=0.9),
        step("forecast", "total", "stock", seconds=2.3),
        step("publish", "total", seconds=0.8),
    ]


async def run(steps: list[WorkflowStep], name: str, run_id: str) -> list[Event]:
    events: list[Event] = []
    await run_pipeline(
        steps,
        name=name,
        run_id=run_id,
        schedule="ready",
        fail_fast=False,
        observers=[events.append],
    )
    return [
        replace(each, wall_time=MONDAY) if isinstance(each, RunStarted) else each for each in events
    ]


def page_of(steps: list[WorkflowStep], name: str, run_id: str) -> str:
    events = run_in_virtual_time(run(steps, name, run_id))
    return to_html(events).replace(__file__, "pipelines/sales.py")


async def take_window(browser: Browser, path: Path) -> bytes:
    page = await browser.new_page(
        viewport={"width": 1280, "height": 1240}, locale="en-US", timezone_id="UTC"
    )
    await page.goto(f"{path.as_uri()}#step=extract_fx_rates&attempt=2")
    return await page.screenshot()


async def take_timeline(
    browser: Browser, path: Path, color_scheme: Literal["light", "dark"]
) -> bytes:
    page = await browser.new_page(
        viewport={"width": COLUMN, "height": 1000},
        device_scale_factor=2,
        color_scheme=color_scheme,
        bypass_csp=True,  # for the style below
        locale="en-US",
        timezone_id="UTC",
    )
    await page.goto(path.as_uri())
    await page.add_style_tag(
        content="#bar, #panel, button, .legend, .legend ~ * { display: none !important }"
    )
    end = await page.locator("#timeline").bounding_box()
    assert end is not None
    below = end["y"] + end["height"] + 16
    return await page.screenshot(clip={"x": 0, "y": 0, "width": COLUMN, "height": below})


def save(name: str, screenshot: bytes) -> None:
    picture = Image.open(io.BytesIO(screenshot)).convert("RGB").quantize(128)
    picture.save(IMAGES / name, optimize=True)
    print(f"{name}: {(IMAGES / name).stat().st_size:,} bytes, {picture.width} x {picture.height}")


async def main(large: Path, small: Path) -> None:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        save("run-page.png", await take_window(browser, large))
        save("timeline-light.png", await take_timeline(browser, small, "light"))
        save("timeline-dark.png", await take_timeline(browser, small, "dark"))
        await browser.close()


if __name__ == "__main__":
    large = page_of(pipeline(), "nightly sales import", "sales-2026-01-05")
    small = page_of(small_pipeline(), "nightly", "nightly-2026-01-05")
    with tempfile.TemporaryDirectory() as folder:
        paths = Path(folder, "large.html"), Path(folder, "small.html")
        for path, html in zip(paths, (large, small), strict=True):
            path.write_text(html, encoding="utf-8")
        asyncio.run(main(*paths))
