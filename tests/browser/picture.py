"""Makes the picture of a page in the docs: ``python tests/browser/picture.py``.

It runs a pipeline of 60 steps in virtual time, and takes a screenshot of its page in Chromium.
"""

from __future__ import annotations

import asyncio
import io
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

from conftest import CHROMIUM
from PIL import Image
from playwright.async_api import async_playwright

from asyncflow import Pool, WorkflowStep, current_step, run_pipeline
from asyncflow.events import Event, RunStarted
from asyncflow.html_report import to_html
from asyncflow.testing import run_in_virtual_time

PICTURE = Path(__file__).parents[2] / "docs" / "images" / "run-page.png"
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
FAILED_ATTEMPTS = {"extract_stock": 1, "extract_fx_rates": 2, BROKEN: 2}
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

    return WorkflowStep(name, act, depends_on, retry=900, **policies)


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


async def run() -> list[Event]:
    events: list[Event] = []
    await run_pipeline(
        pipeline(),
        name="nightly sales import",
        run_id="sales-2026-01-05",
        schedule="ready",
        fail_fast=False,
        observers=[events.append],
    )
    return [
        replace(each, wall_time=MONDAY) if isinstance(each, RunStarted) else each for each in events
    ]


async def take(html: str) -> bytes:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = await browser.new_page(
            viewport={"width": 1280, "height": 1240}, locale="en-US", timezone_id="UTC"
        )
        path = PICTURE.with_suffix(".html")
        path.write_text(html, encoding="utf-8")
        try:
            await page.goto(f"{path.as_uri()}#step=extract_fx_rates&attempt=2")
        finally:
            path.unlink()
        picture = await page.screenshot()
        await browser.close()
        return picture


if __name__ == "__main__":
    html = to_html(run_in_virtual_time(run())).replace(__file__, "pipelines/sales.py")
    picture = Image.open(io.BytesIO(asyncio.run(take(html)))).convert("RGB").quantize(128)
    picture.save(PICTURE, optimize=True)
    print(f"{PICTURE}: {len(html.encode()):,} bytes of HTML, {PICTURE.stat().st_size:,} of PNG")
