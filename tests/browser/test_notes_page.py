"""What steps say, and the details of steps, in a real browser."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from itertools import product
from typing import Any

import pytest
import pytest_asyncio
from browser.axe import violations
from browser.conftest import Open
from golden_run import GOLDEN
from page.said import HOSTILE_SVG, NOTES, attached, logged, picture, progressed
from page.test_notes import stored
from playwright.async_api import Page, expect
from web.noted import NotedJournal
from web.runs import Gate, failing, slow

from asyncflow import Orchestrator, WorkflowStep, current_step
from asyncflow.html_report import to_html
from asyncflow.journal import SQLiteJournal
from asyncflow.web import serve

pytestmark = pytest.mark.asyncio(loop_scope="session")  # the loop of the browser
COPIED = """() => new Promise((resolve) => { document.addEventListener(
  "copy", () => resolve(document.activeElement.value), { once: true }); })"""

IS_AT_END = """() => { const log = document.getElementById("log-lines");
  return log.scrollHeight - log.scrollTop - log.clientHeight < 24; }"""


@pytest.fixture(scope="module")
def told() -> str:
    return to_html(GOLDEN, NOTES)


async def open_all(page: Page) -> None:
    await page.evaluate("for (const each of document.querySelectorAll('details')) each.open = true")


def lines(page: Page) -> Any:
    return page.locator("#log-lines li:visible")


# A page of its own.


async def test_a_step_has_an_overview_and_a_log(opened: Open, told: str) -> None:
    page = await opened(told, at="#step=extract")
    tabs = page.get_by_role("tablist")

    await expect(tabs.get_by_role("tab", name="Overview")).to_have_attribute(
        "aria-selected", "true"
    )
    await expect(page.locator("#s0")).to_be_visible()
    await tabs.get_by_role("tab", name="Overview").focus()
    await page.keyboard.press("ArrowRight")

    await expect(page.get_by_role("tab", name="Log 260")).to_be_focused()
    await expect(page.get_by_role("tabpanel")).to_have_attribute("id", "log")
    await expect(lines(page)).to_have_count(200)
    await expect(page.locator("#log-state")).to_have_text("the last 200 lines of 260")
    await expect(lines(page).last).to_contain_text("page 259 of the orders")
    await page.wait_for_function(IS_AT_END)
    await page.wait_for_function("() => location.hash.includes('tab=log')")
    await page.keyboard.press("Tab")
    await page.get_by_role("tab", name="Log 260").focus()
    await page.keyboard.press("ArrowLeft")
    await expect(page.locator("#s0")).to_be_visible()
    await page.locator("#steps-table th a", has_text="validate").click()
    await expect(tabs).to_be_hidden()


async def test_a_link_to_a_log_opens_it(opened: Open, told: str) -> None:
    page = await opened(told, at="#step=rates&tab=log")

    await expect(lines(page)).to_have_text(["0.700 INFO app.db connecting"])
    await page.keyboard.press("ArrowUp")
    await expect(lines(page)).to_have_count(200)


async def test_a_log_is_filtered_by_level_and_text(opened: Open, told: str) -> None:
    page = await opened(told, at="#step=extract&tab=log")

    await page.get_by_label("Least level").select_option("WARNING")
    await expect(lines(page)).to_have_count(100)
    await page.get_by_label("Search the log").fill("PAGE 25")
    await expect(lines(page)).to_have_count(6)
    await expect(page.locator("#log-state")).to_have_text("6 lines match, of the 200 here")
    await page.get_by_label("Search the log").fill("")
    await page.get_by_label("Least level").select_option("All levels")
    await expect(lines(page)).to_have_count(200)


async def test_a_message_of_several_lines_and_its_traceback_are_text(
    opened: Open, told: str
) -> None:
    page = await opened(told, at="#tab=log")
    await page.locator("#steps-table th a", has_text="alert('step')").click()

    critical = lines(page).last
    await expect(critical.locator("b")).to_have_text("CRITICAL")
    await expect(critical.locator("pre")).to_be_hidden()
    await critical.locator("summary").click()
    await expect(critical.locator("pre")).to_contain_text("KeyError: 'price'")
    await expect(lines(page).nth(1)).to_contain_text("row 2 has <b>no</b> price")


async def test_what_is_copied_is_announced_also_in_a_file(opened: Open) -> None:
    page = await opened(to_html(stored("(rows=extract)"), [logged("extract", "a\nb")]))
    await page.evaluate("Object.defineProperty(navigator, 'clipboard', { value: undefined })")

    async def copied(button: Any) -> str:
        said = asyncio.ensure_future(page.evaluate(COPIED))
        await asyncio.sleep(0)
        await button.click()
        await expect(page.locator("#said")).to_have_text("copied")
        await expect(button).to_have_text("Copied")
        await expect(button).to_be_focused()
        return str(await said)

    command = page.get_by_role("button", name="Copy the command")
    assert await copied(command) == "asyncflow resume r1 MODULE:PIPELINE --journal JOURNAL"
    assert await copied(page.get_by_role("button", name="Copy the id of the run")) == "r1"
    await page.locator("#steps-table th a", has_text="extract").click()
    output = await copied(page.get_by_role("button", name="Copy the output"))
    assert output.startswith("{\n  'rows': [0, 1, 2")
    assert "cut off here" not in output
    assert (await copied(page.locator("#copy-link"))).endswith("#step=extract")
    await page.get_by_role("tab", name="Log").click()
    assert await copied(page.locator("#log-copy")) == "0.001 INFO app.db a\nb"
    await expect(page.locator("#log-copy")).to_have_text("Copy", timeout=5_000)


async def test_a_traceback_is_copied_to_the_clipboard(opened: Open, told: str) -> None:
    page = await opened(told)
    await page.evaluate(
        "Object.defineProperty(navigator, 'clipboard', "
        "{ value: { writeText: async (text) => { window.written = text; } } })"
    )

    await page.locator("#failure .copy").click()

    await expect(page.locator("#said")).to_have_text("copied")
    written = await page.evaluate("window.written")
    assert written.startswith("Traceback (most recent call last)")


async def test_a_refused_copy_says_so(opened: Open, told: str) -> None:
    page = await opened(told)
    await page.evaluate(
        "Object.defineProperty(navigator, 'clipboard', { value: undefined });"
        "document.execCommand = () => false"
    )

    await page.locator("#failure .copy").click()

    await expect(page.locator("#said")).to_have_text("not copied")


async def test_attachments_are_shown_and_nothing_in_them_runs(opened: Open) -> None:
    html = to_html(
        GOLDEN,
        [
            attached("extract", "a.png", "image/png", picture()),
            attached("extract", "<img src=x onerror=alert(1)>.svg", "image/svg+xml", HOSTILE_SVG),
            attached(
                "extract", "b.svg", "image/svg+xml", b"<html><script>alert(1)</script></html>"
            ),
            attached("extract", "c.html", "text/html", "<script>window.hacked = 1</script>"),
            attached("extract", "d.txt", "text/plain", "<img src=x onerror='window.hacked = 1'>"),
            attached("extract", "e.csv", "text/csv", "=cmd|' /C calc'!A0,<script>1</script>\n1,2"),
            attached(
                "extract", "f.json", "application/json", '["</pre><script>hacked=1</script>"]'
            ),
        ],
    )
    page = await opened(html, at="#step=extract")
    images = page.locator("#s0 img")
    await images.nth(1).scroll_into_view_if_needed()
    await page.wait_for_function(
        "() => [...document.images].slice(0, 2).every((each) => each.complete)"
    )

    sizes = await page.evaluate("[...document.images].map((each) => each.naturalWidth)")
    assert sizes == [40, 80, 0]
    assert await page.evaluate("window.hacked") is None
    assert await page.evaluate("document.scripts.length") == 1
    assert page.requests == [each for each in page.requests if each.startswith("data:")]
    await expect(page.locator("#s0 thead").last).to_contain_text("=cmd|' /C calc'!A0")


async def test_without_a_script_logs_and_attachments_are_visible(opened: Open, told: str) -> None:
    page = await opened(told, java_script_enabled=False)

    await expect(page.locator("#s0 .lines li")).to_have_count(200)
    await expect(page.locator("#s0 .lines li").last).to_be_visible()
    await expect(page.locator("#s0 img").first).to_be_visible()
    for query in ("#tabs", "#log", "#copy-link", ".copy >> nth=0"):
        await expect(page.locator(query)).to_be_hidden()


async def test_the_page_with_notes_violates_no_accessibility_rule(opened: Open, told: str) -> None:
    page = await opened(told)

    for at in ("#step=extract", "#step=extract&tab=log"):
        await page.evaluate("at => { location.hash = at; }", at)
        await open_all(page)
        assert await violations(page) == [], at


async def test_the_page_with_notes_fits_the_window(opened: Open) -> None:
    wide = logged("extract", "x" * 3_000)
    html = to_html(GOLDEN, [*NOTES, wide], resume="asyncflow resume " + "y" * 900)
    page = await opened(html)

    for at, width in product(("#step=extract", "#step=extract&tab=log"), (1440, 1024, 390)):
        await page.evaluate("at => { location.hash = at; }", at)
        await page.set_viewport_size({"width": width, "height": 900})
        assert await page.locator("#panel").is_visible()
        assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert await page.evaluate("document.querySelector('#panel').scrollWidth <= innerWidth")


# The page of a server.


class Site:
    """A server with a journal to which a test adds notes, or with one that has only its own."""

    def __init__(self, journal: SQLiteJournal | None = None) -> None:
        self.noted = NotedJournal(":memory:")
        self.journal = journal or self.noted
        self.url = ""
        self.runs: list[asyncio.Task[Any]] = []

    async def open(self) -> None:
        ready = asyncio.Event()

        def on_ready(url: str) -> None:
            self.url = url
            ready.set()

        self._serving = asyncio.create_task(serve(self.journal, port=0, on_ready=on_ready))
        await ready.wait()

    async def begin(self, pipeline: Orchestrator, gate: Gate, run_id: str = "r") -> None:
        self.runs.append(
            asyncio.create_task(pipeline.with_options(run_id=run_id, journal=self.journal).run())
        )
        await gate.has_started.wait()

    async def close(self) -> None:
        for task in (*self.runs, self._serving):
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        self.journal.close()


@pytest_asyncio.fixture(loop_scope="session")
async def site() -> AsyncIterator[Site]:
    site = Site()
    await site.open()
    yield site
    await site.close()


@pytest_asyncio.fixture(loop_scope="session")
async def tab(browser: Any) -> AsyncIterator[Page]:
    context = await browser.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(15_000)
    page, complaints = await context.new_page(), list[str]()
    page.on("console", lambda each: complaints.append(each.text))
    page.on("pageerror", lambda each: complaints.append(str(each)))
    page.on("dialog", lambda each: complaints.append(each.message))
    page.complaints = complaints
    yield page
    await context.close()
    assert complaints == []


async def test_a_log_follows_its_step_while_its_end_is_in_view(tab: Page, site: Site) -> None:
    gate, said = Gate(), site.noted.said["r"]
    said += [logged("gate", f"line {n}", level=20 + 10 * (n % 2)) for n in range(500)]
    await site.begin(slow(gate), gate)
    await tab.goto(f"{site.url}runs/r#step=gate&tab=log")

    await expect(lines(tab)).to_have_count(200)
    await expect(tab.locator("#log-state")).to_have_text("the last 200 lines of 500")
    said += [logged("gate", f"new {n}") for n in range(3)]
    await expect(lines(tab).last).to_contain_text("new 2")
    await expect(lines(tab)).to_have_count(203)
    await expect(lines(tab).last).to_be_in_viewport()
    await expect(tab.get_by_label("Follow")).to_be_checked()

    await tab.locator("#log-lines").evaluate("(each) => { each.scrollTop = 0; }")
    await expect(tab.get_by_label("Follow")).not_to_be_checked()
    said.append(logged("gate", "out of view"))
    await expect(lines(tab).last).to_contain_text("out of view")
    assert await tab.locator("#log-lines").evaluate("(each) => each.scrollTop") == 0
    await tab.get_by_label("Follow").check()
    await expect(lines(tab).last).to_be_in_viewport()

    await tab.get_by_role("button", name="Load earlier lines").click()
    await expect(lines(tab)).to_have_count(504)
    await expect(tab.locator("#log-earlier")).to_be_hidden()
    await tab.get_by_label("Search the log").fill("LINE 49")
    await expect(lines(tab)).to_have_count(11)
    await tab.get_by_label("Least level").select_option("WARNING")
    await expect(lines(tab)).to_have_count(6)
    said += [logged("gate", "line 49, again", level=40), logged("gate", "line 49, but not this")]
    await expect(lines(tab)).to_have_count(7)
    await expect(tab.locator("#log-state")).to_have_text("7 lines match")
    await expect(tab.get_by_label("Search the log")).to_have_value("LINE 49")
    gate.is_open.set()


async def test_progress_and_pictures_arrive_while_a_step_runs(tab: Page, site: Site) -> None:
    gate, said = Gate(), site.noted.said["r"]
    await site.begin(slow(gate), gate)
    await tab.goto(f"{site.url}runs/r#step=gate")
    await expect(tab.locator("#live-word")).to_have_text("live")
    await expect(tab.get_by_role("tablist")).to_be_hidden()

    said.append(progressed("gate", 1204, 5000, at_ms=9e6))
    await expect(tab.locator("article.selected .done")).to_contain_text("1,204 of 5,000 rows")
    await expect(tab.locator("#gantt .far")).to_have_text("24 %")
    said.append(progressed("gate", 2500, 5000, at_ms=9e6))
    await expect(tab.locator("#gantt .far")).to_have_text("50 %")
    said.append(attached("gate", "chart.svg", "image/svg+xml", HOSTILE_SVG))
    image = tab.locator("article.selected img")
    await image.scroll_into_view_if_needed()
    await expect(image).to_have_js_property("naturalWidth", 80)
    requests = list[str]()
    tab.on("request", lambda each: requests.append(each.url))
    for count in (3000, 4000):
        said.append(progressed("gate", count, 5000, at_ms=9e6))
        await expect(tab.locator("#gantt .far")).to_have_text(f"{count // 50} %")
    await expect(image).to_have_js_property("naturalWidth", 80)
    assert not [url for url in requests if "attachments" in url]
    said.append(logged("gate", "hello"))
    await tab.get_by_role("tab", name="Log 1").click()
    await expect(lines(tab)).to_contain_text(["hello"])
    assert await tab.evaluate("window.hacked") is None
    gate.is_open.set()


async def test_the_text_of_a_running_step_grows_and_stays(tab: Page) -> None:
    site, more, has_started = Site(SQLiteJournal(":memory:")), asyncio.Queue[str](), asyncio.Event()

    async def ask(question: str) -> str:
        return question

    async def talk() -> None:
        has_started.set()
        while text := await more.get():
            current_step().stream(text)
        await current_step().call("ask-1", ask, "why?")

    pipeline = Orchestrator([WorkflowStep("talk", talk, timeout_ms=None)], name="agent")
    await site.open()
    try:
        run = asyncio.create_task(pipeline.with_options(run_id="r", journal=site.journal).run())
        site.runs.append(run)
        await has_started.wait()
        await tab.goto(f"{site.url}runs/r#step=talk")
        await expect(tab.locator("#live-word")).to_have_text("live")
        said = tab.get_by_role("region", name="Streamed by talk")
        await expect(said).to_have_count(0)

        more.put_nowait("It is")
        await expect(said).to_have_text("It is")
        for number in range(60):
            more.put_nowait(f"\n<b>line</b> {number}")
        await expect(said).to_contain_text("<b>line</b> 59")
        assert await at_end(said)
        await said.evaluate("(each) => each.scrollBy(0, -100)")
        more.put_nowait("\nthe end")
        await expect(said).to_contain_text("the end")
        assert not await at_end(said)  # the reader has gone back

        more.put_nowait("")
        await expect(tab.locator("#header .badge")).to_contain_text("PASSED")
        await expect(said).to_contain_text("the end")
        await expect(tab.locator("article.selected .calls")).to_contain_text("ask-1")
        await tab.reload()
        await expect(said).to_contain_text("the end")
        assert await at_end(said)
    finally:
        await site.close()


async def at_end(scrolled: Any) -> bool:
    lies = "(each) => each.getBoundingClientRect().bottom - each.lastElementChild"
    return bool(await scrolled.evaluate(f"{lies}.getBoundingClientRect().bottom > -4"))


async def test_a_hostile_picture_that_is_opened_alone_is_saved(tab: Page, site: Site) -> None:
    await failing().with_options(run_id="r", journal=site.journal).run()
    site.noted.said["r"].append(attached("extract", "x.svg", "image/svg+xml", HOSTILE_SVG))
    await tab.goto(f"{site.url}runs/r#step=extract")

    async with tab.expect_download() as download:
        await tab.get_by_role("link", name="Download x.svg").click()

    assert (await download.value).suggested_filename == "x.svg"
    assert await tab.evaluate("window.hacked") is None


async def test_a_long_output_is_loaded_whole(tab: Page, site: Site) -> None:
    async def long() -> str:
        return "y" * 50_000

    steps = [WorkflowStep("long", long), WorkflowStep("other", long)]
    await Orchestrator(steps, name="etl").with_options(run_id="r", journal=site.journal).run()
    await tab.goto(f"{site.url}runs/r#step=long")

    await tab.locator("article.selected").get_by_role("button", name="Show all of it").click()

    await expect(tab.locator("#one pre")).to_have_text("'" + "y" * 50_000 + "'")
    await expect(tab.locator("#details")).to_be_hidden()
    await tab.keyboard.press("ArrowDown")
    await expect(tab.locator("#details article.selected h3")).to_have_text("other")
    await expect(tab.locator("#one")).to_be_hidden()


async def test_a_large_run_has_its_details_on_demand(
    tab: Page, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asyncflow.html_report._page_model.MOST_STEPS_WHOLE", 10)
    gate = Gate()

    async def work() -> str:
        return "done"

    steps = [WorkflowStep(f"s{n}", work) for n in range(11)]
    steps += [WorkflowStep("gate", gate, timeout_ms=None), WorkflowStep("after", work, ["gate"])]
    await site.begin(Orchestrator(steps, name="large"), gate)
    await tab.goto(f"{site.url}runs/r#step=s7")

    await expect(tab.locator("#one h3")).to_have_text("s7")
    await expect(tab.locator("#one")).to_contain_text("'done'")
    await expect(tab.locator("#details article")).to_have_count(1)
    await tab.goto(f"{site.url}runs/r#step=gate")
    await expect(tab.locator("#details article.selected")).to_contain_text("RUNNING")
    gate.is_open.set()
    await expect(tab.locator("#one")).to_contain_text("SUCCESS")
    await expect(tab.locator("#one")).to_contain_text("'through'")


async def test_details_that_cannot_be_loaded_say_so(tab: Page, site: Site) -> None:
    await failing().with_options(run_id="r", journal=site.journal).run()
    site.noted.said["r"].append(logged("extract", "hello"))
    await tab.route("**/details/**", lambda route: route.abort())
    await tab.route("**/notes?**", lambda route: route.fulfill(status=503))
    await tab.goto(f"{site.url}runs/r#step=extract")

    await tab.evaluate(
        "document.querySelector('#s0').insertAdjacentHTML('beforeend', "
        "'<button data-whole>all</button>')"
    )
    await tab.locator("#s0 [data-whole]").click()
    await expect(tab.locator("#one")).to_contain_text("The details can't be loaded")
    await tab.get_by_role("tab", name="Log 1").click()
    await expect(tab.locator("#log-state")).to_contain_text("The log can't be loaded")
    tab.complaints.clear()  # type: ignore[attr-defined]


async def test_the_live_page_with_notes_violates_no_accessibility_rule(
    browser: Any, site: Site
) -> None:
    await failing().with_options(run_id="r", journal=site.journal).run()
    site.noted.said["r"] += [
        logged("extract", "hello"),
        attached("extract", "a.csv", "text/csv", "a,b\n1,2"),
    ]
    context = await browser.new_context()
    page = await context.new_page()
    for at in ("#step=extract", "#step=extract&tab=log"):
        await page.goto("about:blank")
        await page.goto(f"{site.url}runs/r{at}")
        await expect(page.locator("#live-word")).to_have_text("ended")
        await open_all(page)
        assert await violations(page) == []
    await context.close()
