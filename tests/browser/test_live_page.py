"""The live pages in a real browser."""

from __future__ import annotations

import http.server
import itertools
import os
import re
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote, urlsplit

import pytest
import pytest_asyncio
from browser.axe import violations
from browser.live_processes import HOSTILE, Gates, Process, ServerThread
from playwright.async_api import Locator, Page, Route, expect

from asyncflow import Orchestrator, Pipeline, WorkflowStep, after
from asyncflow.journal import SQLiteJournal

TOKEN = "a token that is hard to guess"

pytestmark = pytest.mark.asyncio(loop_scope="session")  # the loop of the browser


class Tab:
    """A tab that collects the messages of its console; only expected ones are allowed."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.expected: list[str] = []
        self._messages: list[str] = []
        page.on("console", lambda message: self._note(message.type, message.text))
        page.on("pageerror", lambda error: self._note("error", str(error)))

    def _note(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self._messages.append(text)

    async def check(self) -> None:
        unexpected = [
            text for text in self._messages if not any(word in text for word in self.expected)
        ]
        assert not unexpected
        assert await self.page.evaluate("window.hacked") is None


@pytest_asyncio.fixture(loop_scope="session")
async def tab(browser: Any) -> AsyncIterator[Tab]:
    context = await browser.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(15_000)
    tab = Tab(await context.new_page())
    yield tab
    await tab.check()
    await context.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerThread]:
    """Return a server shared by all tests that do not stop it."""
    site = ServerThread(tmp_path_factory.mktemp("site"))
    yield site
    site.close()


@pytest.fixture
def start(site: ServerThread) -> Iterator[Callable[..., Process]]:
    """Return a function that starts processes, which are killed after the test."""
    started: list[Process] = []

    def start(what: str, argument: object) -> Process:
        started.append(Process(what, site.folder, argument))
        return started[-1]

    yield start
    for process in started:
        process.end()


def badge(page: Page) -> Locator:
    return page.locator("#header .badge")


def live(page: Page) -> Locator:
    return page.locator("#live-word")


def step(page: Page, name: str) -> Locator:
    return page.locator("#steps tbody tr").filter(has_text=name)


def button(page: Page, name: str) -> Locator:
    return page.get_by_role("button", name=f"{name} the run")


async def cancel(page: Page) -> None:
    await button(page, "Cancel").click()
    await page.get_by_role("button", name="Yes, cancel it").click()


async def test_a_page_follows_its_run_and_survives_a_reload(tab: Tab, site: ServerThread) -> None:
    gates, page = site.start("nightly/1"), tab.page
    await page.goto(site.url)
    await page.get_by_role("link", name="nightly/1").first.click()

    await expect(badge(page)).to_contain_text("RUNNING")
    await expect(live(page)).to_have_text("live")
    await expect(step(page, "first")).to_contain_text("RUNNING")
    figure = page.locator("#header .figure").first
    before = await figure.inner_text()
    await expect(figure).not_to_have_text(before)  # the duration advances without events
    gates.open("first")
    await expect(step(page, "first")).to_contain_text("SUCCESS")
    await expect(step(page, "second")).to_contain_text("RUNNING")

    await page.reload()
    await expect(step(page, "second")).to_contain_text("RUNNING")
    gates.open("second", "third")

    await expect(badge(page)).to_contain_text("PASSED")
    await expect(page).to_have_title(re.compile("✓ PASSED · .* · nightly/1"))
    await expect(live(page)).to_have_text("ended")
    await expect(button(page, "Cancel")).to_be_hidden()
    await expect(button(page, "Resume")).to_be_hidden()


async def test_a_page_misses_nothing_when_its_server_is_killed_and_restarted(
    tab: Tab, site: ServerThread, start: Any
) -> None:
    server, gates, page = start("serve", 0), site.start("killed-server"), tab.page
    tab.expected = ["ERR_CONNECTION_REFUSED", "ERR_INCOMPLETE_CHUNKED", "ERR_CONNECTION_RESET"]
    await page.goto(f"{server.first_line}runs/{gates.run_id}")
    await expect(live(page)).to_have_text("live")
    rows = page.locator("#events tbody tr")
    await expect(rows).not_to_have_count(0)

    server.end()
    await expect(live(page)).to_have_text("disconnected")
    gates.open("first", "second")
    start("serve", urlsplit(server.first_line).port)

    await expect(live(page)).to_have_text("live")
    await expect(step(page, "first")).to_contain_text("SUCCESS")
    await expect(step(page, "second")).to_contain_text("SUCCESS")
    gates.open("third")
    await expect(badge(page)).to_contain_text("PASSED")
    texts, steps = await rows.all_inner_texts(), await page.locator("#steps").inner_text()
    assert len(texts) == len(set(texts))  # no duplicates
    await page.reload()
    assert await rows.all_inner_texts() == texts
    assert await page.locator("#steps").inner_text() == steps


EXPOSE_STREAM = """window.EventSource = class extends EventSource {
    constructor(url) { super(url); window.stream = this; }
};"""


async def test_an_unreadable_run_is_not_shown_as_live(tab: Tab, site: ServerThread) -> None:
    gates, page, tab.expected = site.start("unreadable"), tab.page, ["503"]
    await page.add_init_script(EXPOSE_STREAM)
    await page.goto(f"{site.url}runs/{gates.run_id}")
    await expect(live(page)).to_have_text("live")

    problem = {"error": "The journal can't be read", "detail": "the disk is full"}
    await page.route("**/parts/**", lambda route: route.fulfill(status=503, json=problem))
    await expect(live(page)).to_have_text("the run can't be read: the disk is full")
    # The server is alive and sends pings.
    await page.evaluate("window.stream.dispatchEvent(new MessageEvent('ping'))")
    assert await live(page).inner_text() == "the run can't be read: the disk is full"
    await page.unroute("**/parts/**")
    await expect(live(page)).to_have_text("live")
    site.stop()


async def test_a_page_whose_server_does_not_answer_waits_before_it_asks_again(
    tab: Tab, site: ServerThread
) -> None:
    gates, page, tab.expected = site.start("no-answer"), tab.page, ["ERR_FAILED"]
    asked_at: list[float] = []

    async def refuse(route: Route) -> None:
        asked_at.append(time.monotonic())
        await route.abort()

    await page.goto(f"{site.url}runs/{gates.run_id}")
    await expect(live(page)).to_have_text("live")
    await page.route("**/parts/**", refuse)
    await expect(live(page)).to_have_text("disconnected")
    await page.wait_for_timeout(4_000)
    await page.unroute("**/parts/**")

    await expect(live(page)).to_have_text("live")
    assert len(asked_at) >= 2
    assert min(later - at for at, later in itertools.pairwise(asked_at)) >= 0.99
    site.stop()


async def test_an_orphan_is_at_no_time_shown_as_live(
    tab: Tab, site: ServerThread, start: Any
) -> None:
    running, page = start("run", "orphan"), tab.page
    running.end()
    await page.add_init_script("""window.words = new Set();
        setInterval(() => words.add(document.getElementById("live-word")?.textContent), 1);""")
    await page.goto(f"{site.url}runs/orphan")
    await expect(badge(page)).to_contain_text("ORPHANED", timeout=60_000)
    await page.evaluate("words.clear()")

    await page.reload()
    await expect(live(page)).to_have_text("orphaned: its process is gone")
    await page.wait_for_timeout(6_000)  # a ping

    assert not {"live", "disconnected"} & set(await page.evaluate("[...words]"))
    await expect(button(page, "Resume")).to_be_enabled()


async def test_a_cancellation_is_confirmed_by_keyboard(tab: Tab, site: ServerThread) -> None:
    gates, page = site.start("confirmed"), tab.page
    await page.goto(f"{site.url}runs/{gates.run_id}")
    question = page.get_by_role("dialog", name="Cancel this run?")
    await button(page, "Cancel").focus()

    await page.keyboard.press("Enter")
    await expect(question).to_be_visible()
    assert await violations(page) == []
    await expect(page.get_by_role("button", name="Keep it running")).to_be_focused()
    await page.keyboard.press("ArrowDown")  # a key of the page
    await page.keyboard.press("Enter")
    await expect(question).to_be_hidden()
    await expect(button(page, "Cancel")).to_be_focused()
    await page.keyboard.press("Enter")
    await page.keyboard.press("Escape")
    await expect(question).to_be_hidden()
    assert "step=" not in page.url
    assert not gates.has_cleaned_up("first")

    await page.keyboard.press("Enter")
    await page.keyboard.press("Tab")
    await page.keyboard.press("Enter")
    await expect(page.locator("#live-note")).to_be_focused()
    await expect(badge(page)).to_contain_text("INTERRUPTED")
    assert gates.has_cleaned_up("first")


async def test_without_a_connection_nothing_can_be_cancelled_or_resumed(
    tab: Tab, site: ServerThread, start: Any
) -> None:
    server, gates, page = start("serve", 0), site.start("no-connection"), tab.page
    tab.expected = ["ERR_"]
    await page.goto(f"{server.first_line}runs/{gates.run_id}")
    await button(page, "Cancel").click()
    yes = page.get_by_role("button", name="Yes, cancel it")
    await expect(yes).to_be_enabled()

    server.end()
    await expect(live(page)).to_have_text("disconnected")
    await expect(yes).to_be_disabled()
    await page.keyboard.press("Escape")
    await expect(button(page, "Cancel")).to_be_disabled()

    restarted = start("serve", urlsplit(server.first_line).port)
    await expect(button(page, "Cancel")).to_be_enabled()
    site.stop()
    await expect(button(page, "Resume")).to_be_enabled()
    restarted.end()
    await expect(button(page, "Resume")).to_be_disabled()


async def test_a_question_fits_a_phone_and_is_withdrawn_when_the_run_ends(
    tab: Tab, site: ServerThread
) -> None:
    gates, page = site.start("ended-meanwhile"), tab.page
    await page.set_viewport_size({"width": 390, "height": 844})
    await page.goto(f"{site.url}runs/{gates.run_id}")
    await button(page, "Cancel").click()
    box = await page.get_by_role("dialog").bounding_box()
    assert box is not None
    assert box["x"] >= 12
    assert box["x"] + box["width"] <= 378

    gates.open("first", "second", "third")

    await expect(badge(page)).to_contain_text("PASSED")
    await expect(page.get_by_role("dialog")).to_be_hidden()


async def test_filters_zoom_and_theme_survive_a_reload(tab: Tab, site: ServerThread) -> None:
    gates, page = site.start("reloaded"), tab.page
    gates.open("first")
    await page.goto(f"{site.url}runs/{gates.run_id}")
    await expect(step(page, "second")).to_contain_text("RUNNING")
    await page.get_by_label("Status").select_option("running")
    await page.get_by_label("Zoom in").first.click()
    await page.get_by_label(re.compile("^Theme")).click()
    await expect(page).to_have_url(re.compile("#status=running&zoom=1.6"))

    await page.reload()

    await expect(live(page)).to_have_text("live")
    await expect(page.locator("#found")).to_have_text("2 of 3")
    assert await page.evaluate("document.documentElement.dataset.theme") == "light"
    zoom = "document.querySelector('#gantt-scroll > *').style.getPropertyValue('--zoom')"
    assert await page.evaluate(zoom) == "1.6"
    site.stop()


async def test_a_run_is_cancelled_and_resumed_from_its_page(tab: Tab, site: ServerThread) -> None:
    gates, page = site.start("cancelled-from-page"), tab.page
    gates.open("first")
    await page.goto(f"{site.url}runs/{gates.run_id}")
    await expect(step(page, "second")).to_contain_text("RUNNING")

    await cancel(page)
    await expect(page.locator("#live-note")).to_contain_text("Stopping")
    await expect(badge(page)).to_contain_text("INTERRUPTED")
    assert gates.has_cleaned_up("second")

    await button(page, "Resume").click()
    await expect(page.locator("#live-note")).to_contain_text("Resumed")
    await expect(badge(page)).to_contain_text("RUNNING")
    await expect(live(page)).to_have_text("live")
    gates.open("second", "third")
    await expect(badge(page)).to_contain_text("PASSED")


async def test_a_run_is_run_again_from_its_page(tab: Tab, site: ServerThread) -> None:
    gates, page = site.start("run-again"), tab.page
    gates.open("first", "second", "third")
    await page.goto(f"{site.url}runs/{gates.run_id}")
    await expect(badge(page)).to_contain_text("PASSED")

    await page.get_by_role("button", name="Rerun …").click()
    choice = page.get_by_label("What runs again")
    await expect(choice).to_have_value("*")  # nothing has failed
    assert await violations(page) == []
    planned = page.locator("#live-preview")
    await expect(planned).to_contain_text("3 to run")
    await choice.select_option("")
    await expect(planned).to_contain_text("Nothing would run: 3 reused")
    await choice.select_option("=second")
    await expect(planned.get_by_role("listitem").filter(has_text="second")).to_have_text(
        "runs second the rerun starts from it"
    )
    assert await violations(page) == []
    await page.get_by_role("button", name="Rerun", exact=True).click()

    await expect(page).not_to_have_url(re.compile("run-again"))
    Gates(site.folder, page.url.rpartition("/")[2]).open("second")
    await expect(badge(page)).to_contain_text("PASSED")
    await expect(step(page, "first")).to_contain_text("reused from run run-again")
    await expect(step(page, "second")).not_to_contain_text("reused")
    await page.locator("#header").get_by_role("link", name="run-again").click()
    await expect(page).to_have_url(re.compile("runs/run-again"))


async def test_the_run_of_a_killed_process_is_shown_as_orphaned_and_resumed(
    tab: Tab, site: ServerThread, start: Any
) -> None:
    running, page = start("run", "killed-run"), tab.page
    await page.goto(f"{site.url}runs/killed-run")
    await expect(button(page, "Cancel")).to_be_visible()
    running.end()

    await expect(live(page)).to_have_text("orphaned: its process is gone")
    await expect(badge(page)).to_contain_text("ORPHANED")
    await expect(button(page, "Cancel")).to_be_visible()  # for the next process that takes it up
    other = await page.context.new_page()
    await other.goto(f"{site.url}?text=killed-run")
    await expect(other.locator("#list")).to_contain_text("ORPHANED")
    Gates(site.folder, "killed-run").open("first", "second", "third")
    await page.bring_to_front()
    await button(page, "Resume").click()

    await expect(badge(page)).to_contain_text("PASSED")
    await other.bring_to_front()
    await expect(other.locator("#list")).to_contain_text("PASSED")  # without a reload


async def test_a_page_notices_that_another_process_resumed_its_run(
    tab: Tab, site: ServerThread
) -> None:
    gates, page = site.start("resumed-elsewhere"), tab.page
    await page.goto(f"{site.url}runs/{gates.run_id}")
    await expect(live(page)).to_have_text("live")
    site.stop()
    await expect(live(page)).to_have_text("ended")
    await expect(badge(page)).to_contain_text("INTERRUPTED")

    site.start(gates.run_id)

    await expect(badge(page)).to_contain_text("RUNNING")
    await expect(live(page)).to_have_text("live")
    site.stop()


async def test_a_page_that_was_hidden_for_long_notices_that_its_run_was_resumed(
    tab: Tab, site: ServerThread
) -> None:
    gates, page = site.start("resumed-while-hidden"), tab.page
    await page.clock.install()
    await page.goto(f"{site.url}runs/{gates.run_id}")
    await expect(live(page)).to_have_text("live")
    site.stop()
    await expect(live(page)).to_have_text("ended")

    hide = """hidden => {
      Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
      document.dispatchEvent(new Event("visibilitychange"));
    }"""
    await page.evaluate(hide, True)
    await page.clock.fast_forward(60_000)
    site.start(gates.run_id)
    await page.evaluate(hide, False)

    await expect(badge(page)).to_contain_text("RUNNING")
    await expect(live(page)).to_have_text("live")
    site.stop()


async def test_runs_of_a_stopped_server_can_be_resumed(
    tab: Tab, site: ServerThread, start: Any
) -> None:
    server, gates, page = start("serve", 0), site.start("ended-server"), tab.page
    tab.expected = ["ERR_"]
    await page.goto(f"{server.first_line}runs/{gates.run_id}")
    await expect(live(page)).to_have_text("live")
    site.stop()
    await button(page, "Resume").click()
    await expect(badge(page)).to_contain_text("RUNNING")

    code = server.end(signal.SIGTERM)

    assert code == 143
    assert gates.has_cleaned_up("first")
    await expect(live(page)).to_have_text("disconnected")
    start("serve", urlsplit(server.first_line).port)
    await expect(badge(page)).to_contain_text("INTERRUPTED")
    await expect(button(page, "Resume")).to_be_visible()


# Other sites.


@pytest.fixture
def foreign_site(request: pytest.FixtureRequest) -> Iterator[Callable[[str], str]]:
    """Return a function that serves a page of another site and returns its port and path."""
    pages: list[bytes] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(pages[-1])

        def log_message(self, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()

    def make(html: str) -> str:
        pages.append(html.encode())
        return f":{server.server_port}/"

    yield make
    server.shutdown()
    server.server_close()
    thread.join()


async def test_pages_of_other_sites_cannot_act(
    tab: Tab, site: ServerThread, foreign_site: Any
) -> None:
    gates, page = site.start("not-theirs"), tab.page
    tab.expected = ["403", "CORS", "ERR_", "Failed to fetch", "frame-ancestors", "X-Frame"]
    run, act = f"{site.url}runs/{gates.run_id}", f"{site.url}cancel/{gates.run_id}"
    path = foreign_site(f"""<form method=post action="{act}"><button>Win</button></form>
        <iframe src="{run}"></iframe>
        <script>fetch("{act}", {{method: "POST", mode: "no-cors"}}).catch(() => 0);
        fetch("{run}").then(() => window.read = 1, () => window.read = 0)</script>""")

    for host in ("127.0.0.1", "localhost"):  # another port is another site, too
        await page.goto(f"http://{host}{path}")
        await page.wait_for_function("window.read === 0")
        assert not await page.frames[1].locator("#header").count()
        await page.get_by_role("button", name="Win").click()
        await expect(page.locator("h1")).to_have_text("Another site sent this request")

    await page.goto(run)
    await expect(badge(page)).to_contain_text("RUNNING")
    await expect(live(page)).to_have_text("live")
    assert not gates.has_cleaned_up("first")
    site.stop()


async def test_the_token_is_requested_once(tab: Tab, tmp_path: Path, foreign_site: Any) -> None:
    site, page = ServerThread(tmp_path, token=TOKEN), tab.page
    tab.expected = ["401"]
    gates = site.start("r")
    await page.goto(f"{site.url}runs/r")
    await page.get_by_label("Token").fill("not the token at all")
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("alert")).to_contain_text("That is not the token.")
    assert await violations(page) == []

    await page.get_by_label("Token").fill(TOKEN)
    await page.get_by_role("button", name="Show the runs").click()

    await expect(badge(page)).to_contain_text("RUNNING")
    await expect(live(page)).to_have_text("live")
    await cancel(page)
    await expect(badge(page)).to_contain_text("INTERRUPTED")
    assert gates.has_cleaned_up("first")
    (cookie,) = await page.context.cookies()
    assert cookie["httpOnly"]
    assert cookie["sameSite"] == "Lax"
    assert TOKEN not in cookie["value"]

    # Links on another site work, the one with the token and later ones without it.
    await page.context.clear_cookies()
    links = f"""<a href="{site.url}?token={quote(TOKEN)}">With it</a>
        <a href="{site.url}runs/r">Without</a>"""
    path = foreign_site(links)
    for link, title in (("With it", "Runs"), ("Without", f"etl {HOSTILE}")):
        await page.goto(f"http://localhost{path}")
        await page.get_by_role("link", name=link, exact=True).click()
        await expect(page.locator("h1")).to_have_text(title)
        assert "token" not in page.url
    site.close()


# The list.


async def test_the_list_is_updated_and_can_be_filtered(tab: Tab, tmp_path: Path) -> None:
    site, page = ServerThread(tmp_path), tab.page
    await page.goto(site.url)
    await expect(page.locator("#runs")).to_contain_text("No runs yet")

    for run_id in ("calm-otter", HOSTILE):
        Gates(tmp_path, run_id).open("first", "second", "third")
        site.start(run_id)
    await expect(page.locator("#list tbody tr")).to_have_count(2)
    # Too long to be shown whole.
    await expect(page.get_by_title(HOSTILE, exact=True)).to_be_visible()
    time = await page.locator("#list time").first.inner_text()
    assert re.fullmatch(r"just now|\d+ s ago", time)

    await page.get_by_label("Part of the id").fill("OTTER")
    await page.keyboard.press("Enter")
    await expect(page.locator("#list tbody tr")).to_have_count(1)
    await page.get_by_role("link", name="Failed").click()
    await expect(page.locator("#runs")).to_contain_text("No run matches.")
    await page.get_by_role("link", name="Show all", exact=True).click()
    await expect(page.locator("#list tbody tr")).to_have_count(2)

    await page.locator("#list th a").last.click()
    await expect(badge(page)).to_contain_text("PASSED")
    await page.get_by_role("link", name="All runs").click()
    await expect(page.locator("#list tbody tr")).to_have_count(2)
    site.close()


async def test_the_list_shows_that_the_server_is_gone(tab: Tab, start: Any) -> None:
    server, page = start("serve", 0), tab.page
    tab.expected = ["ERR_CONNECTION_REFUSED"]
    await page.goto(server.first_line)
    await expect(live(page)).to_have_text("live")

    server.end()
    await expect(live(page)).to_contain_text("disconnected")
    start("serve", urlsplit(server.first_line).port)

    await expect(live(page)).to_have_text("live")


# Accessibility.


async def test_the_pages_are_accessible(browser: Any, site: ServerThread) -> None:
    gates = site.start("accessible")
    gates.open("first")
    page = await browser.new_page(viewport={"width": 1280, "height": 900})

    for path in ("", "?text=nothing", "runs/accessibl"):
        await page.goto(site.url + path)
        assert await violations(page) == []
    await page.goto(f"{site.url}runs/{gates.run_id}")
    await expect(button(page, "Cancel")).to_be_visible()
    assert await violations(page) == []
    site.stop()
    await expect(button(page, "Resume")).to_be_visible()
    assert await violations(page) == []
    await page.close()


async def test_pages_fit_the_width_of_the_window(tab: Tab, site: ServerThread) -> None:
    gates = site.start("a-name-of-sixty-characters-for-a-run-that-was-given-a-long-name")
    gates.open("first", "second", "third")
    tab.expected = ["404"]

    for path in ("", "runs/" + quote("unknown" * 30)):
        await tab.page.goto(site.url + path)
        for width in (390, 1280):
            await tab.page.set_viewport_size({"width": width, "height": 800})
            assert await tab.page.evaluate("document.documentElement.scrollWidth") <= width


# A long name may break between its words.
LINES_OF_WORDS = """link => [...link.childNodes].filter(each => each.data).map(word => {
  const range = document.createRange(); range.selectNodeContents(word);
  return new Set([...range.getClientRects()].map(each => Math.round(each.top))).size; })"""


async def test_no_name_breaks_within_a_word_in_the_list(tab: Tab, site: ServerThread) -> None:
    words = " ".join(["the import of", "x" * 150] * 3)

    async def fail() -> None:
        raise ValueError(words)

    names = "nightly_import", "nightly_import_of_orders_and_invoices_of_customers_de"
    async with SQLiteJournal(site.folder / "runs.db") as journal:
        for name in names:
            pipeline = Orchestrator([WorkflowStep("a", fail)], name=name, journal=journal)
            await pipeline.with_options(run_id=f"{name}-12:00", label=words[:200]).run()
    await tab.page.goto(site.url)

    for width in (900, 1280):
        await tab.page.set_viewport_size({"width": width, "height": 800})
        assert await tab.page.evaluate("document.documentElement.scrollWidth") <= width
    links = await tab.page.locator("#list :is(th, td) > a").all()
    for lines in [each for link in links for each in await link.evaluate(LINES_OF_WORDS)]:
        assert lines == 1


PICTURE = "<img src=x onerror=window.hacked=1>"


def approval(run_id: str, journal: SQLiteJournal) -> Pipeline:
    """Return a pipeline that waits for a value of each kind that has a field of its own."""
    orders = Pipeline(f"orders {HOSTILE}")
    types = {"approved": bool, "count": int, "colour": Literal["red", "blue"], "toString": str}
    steps = [orders.signal(name, hint) for name, hint in types.items()]
    steps.append(orders.signal(PICTURE, dict[str, int]))

    @orders.step(depends_on=steps)
    async def send(**given: object) -> dict[str, object]:
        return given

    return orders.with_options(journal=journal, run_id=run_id)


async def test_a_page_shows_that_its_run_was_answered_elsewhere(
    tab: Tab, site: ServerThread
) -> None:
    page = tab.page
    async with SQLiteJournal(site.folder / "runs.db") as journal:
        await approval("answered", journal).run()
        await page.goto(f"{site.url}runs/answered")
        forms = page.locator("form.signal")
        await expect(forms).to_have_count(5)
        await page.get_by_label("Whole number").fill("7")
        await forms.nth(0).get_by_role("button", name="Yes").focus()

        await journal.signal("answered", "approved", True)

        await expect(forms.nth(0)).to_contain_text("It has an answer.")
        await expect(forms.nth(0).get_by_role("button")).to_have_count(0)
        await expect(forms.nth(0).get_by_role("status")).to_be_focused()
        await expect(page.get_by_label("Whole number")).to_have_value("7")


async def test_a_person_answers_what_a_run_waits_for_by_keyboard(
    tab: Tab, site: ServerThread
) -> None:
    page, tab.expected = tab.page, ["409"]
    async with SQLiteJournal(site.folder / "runs.db") as journal:
        run = approval("waits", journal)
        await run.run()
        await page.goto(f"{site.url}runs/waits")
        await page.get_by_role("link", name="Its pipeline").click()
        await expect(page.locator("#header")).to_contain_text("waits for approved, count")
        assert await violations(page) == []
        await page.get_by_role("link", name="waits").first.click()
        await expect(live(page)).to_have_text("waiting for a signal")
        await expect(page.locator("#header")).to_contain_text("Waits forapproved since")
        so_far = page.locator("time[data-so-far]").first  # it changes without an event
        await expect(so_far).to_have_text(re.compile(r"^\d+ s$"))
        await expect(so_far).not_to_have_text(await so_far.inner_text())
        forms = page.locator("form.signal")
        await expect(forms).to_have_count(5)
        assert await violations(page) == []

        # A key of the page is a letter in a field, and a wrong value is refused beside it.
        field = page.get_by_label("JSON")
        await field.focus()
        await page.keyboard.type("/")
        await expect(field).to_be_focused()
        await page.keyboard.press("Tab")
        await page.keyboard.press("Enter")
        await expect(forms.nth(4)).to_contain_text("This is not JSON")
        await field.fill('{"a": "b"}')
        await forms.nth(4).get_by_role("button").press("Enter")
        await expect(page.locator("#live-answer")).to_contain_text("The first answer counts.")
        assert await violations(page) == []
        await page.keyboard.press("Enter")
        await expect(forms.nth(4)).to_contain_text("'a' must be of type integer, not")
        await field.fill('{"a": 1}')
        await forms.nth(4).get_by_role("button").press("Enter")
        await page.get_by_label("Your name").fill(HOSTILE)
        await page.get_by_label("Note").fill("as discussed")
        await page.keyboard.press("Enter")
        await expect(forms.nth(4)).to_contain_text("Stored.")
        await expect(forms.nth(4).get_by_role("status")).to_be_focused()
        await page.reload()
        await expect(forms.nth(4)).to_contain_text("It has an answer.")
        await expect(forms.nth(4).get_by_role("button")).to_have_count(0)
        assert await violations(page) == []

        await page.get_by_label("Whole number").fill("-012345678901234567890")
        await page.keyboard.press("Enter")
        await page.get_by_role("button", name="Back").click()  # and once more
        await forms.nth(1).get_by_role("button").press("Enter")
        await page.keyboard.press("Enter")
        await expect(forms.nth(1)).to_contain_text("Stored.")
        await expect(forms.nth(1)).to_contain_text("without one, asyncflow resume waits")
        await page.get_by_label("Choice").select_option("blue")
        await forms.nth(2).get_by_role("button").press("Enter")
        await page.keyboard.press("Enter")
        await expect(forms.nth(2)).to_contain_text("Stored.")  # until then, all buttons are off
        await page.get_by_role("textbox", name="Text", exact=True).fill("a draft")
        await forms.nth(0).get_by_role("button", name="No").press("Enter")
        await expect(page.locator("#live-answer-text")).to_have_text("approved: No")
        await page.keyboard.press("Enter")
        await expect(forms.nth(0)).to_contain_text("Stored.")
        await run.run()

        # What a reader has typed stays while other forms go.
        await expect(forms).to_have_count(1)
        await expect(page.get_by_role("textbox", name="Text", exact=True)).to_have_value("a draft")
        await page.keyboard.press("Escape")
        await page.get_by_role("textbox", name="Text", exact=True).press("Enter")
        await page.keyboard.press("Enter")
        await expect(forms).to_contain_text("Stored.")
        await run.run()
        await expect(badge(page)).to_contain_text("PASSED")
        await expect(forms).to_have_count(0)
        await expect(page.locator("#live-note")).to_be_focused()
        report = await journal.report("waits")
    assert report["send"].output == {
        "approved": False,
        "count": -12345678901234567890,
        "colour": "blue",
        "toString": "a draft",
        PICTURE: {"a": 1},
    }


@dataclass
class Decision:
    ok: bool
    price: int
    colour: Literal["red", "blue"] = "red"
    why: str = "no reason"
    until: str | None = None


async def test_a_panel_says_what_is_asked_and_has_a_field_for_each_part_of_the_answer(
    tab: Tab, site: ServerThread
) -> None:
    page = tab.page
    orders = Pipeline("decided orders")

    @orders.step
    async def draft() -> str:
        return f"an offer {HOSTILE}"

    decided = orders.signal(
        "decided",
        Decision,
        depends_on=[draft],
        deadline_ms=864e5,
        description=lambda draft: f"Send it?\n{draft}",
    )

    @orders.step
    async def send(decided: Decision = after(decided)) -> str:
        return str(decided)

    async with SQLiteJournal(site.folder / "runs.db") as journal:
        run = orders.with_options(journal=journal, run_id="decides")
        await run.run()
        await page.goto(f"{site.url}runs/decides")

        panel = page.get_by_role("region", name="Waits for an answer: decided")
        await expect(panel).to_contain_text(f"Send it?\nan offer {HOSTILE}")
        await expect(panel).to_contain_text("Decision, since ")
        await expect(panel).to_contain_text(", then the step fails")
        await expect(panel.locator("details")).to_contain_text(
            f'Output of draft"an offer {HOSTILE}'
        )
        assert await violations(page) == []
        await pictured(page, "panel")
        await panel.get_by_label("ok").select_option("Yes")
        await panel.get_by_label("price").fill("12345678901234567890")
        await panel.get_by_label("colour").select_option("blue")
        await panel.get_by_label("why").fill("it is /fine/")
        await panel.get_by_role("button", name="Send …").click()
        await page.get_by_label("Your name").fill("Zoë")
        await pictured(page, "confirm")
        await page.get_by_role("button", name="Send the answer").click()
        await expect(panel).to_contain_text("Stored.")
        await pictured(page, "stored")
        await run.run()
        await expect(badge(page)).to_contain_text("PASSED")
        await expect(page.locator("#waiting")).to_be_empty()
        await expect(step(page, "decided")).to_contain_text("answered by Zoë")
        report = await journal.report("decides")
    assert report["send"].output == str(
        Decision(True, 12345678901234567890, "blue", "it is /fine/", None)
    )


@dataclass
class Price:
    cents: int | None
    valid: bool | None
    colour: Literal["red", "blue"]
    until: date
    why: str = "no reason"
    most: int | None = 9
    least: int = 1
    of: str | None = None


async def test_a_field_that_is_left_empty_is_no_value_that_a_person_has_not_seen(
    tab: Tab, site: ServerThread
) -> None:
    page, orders = tab.page, Pipeline("priced orders")
    orders.signal("priced", Price)
    async with SQLiteJournal(site.folder / "runs.db") as journal:
        await orders.with_options(journal=journal, run_id="prices").run()
        await page.goto(f"{site.url}runs/prices")
        form = page.locator("form.signal")
        await expect(form.get_by_label("until")).to_have_attribute("placeholder", "2027-01-31")
        await form.get_by_label("until").fill("2026-12-24")
        for default in ("why", "most", "least"):
            await form.get_by_label(default).fill("")

        await form.get_by_role("button").click()
        await expect(page.locator("#live-answer")).not_to_be_visible()  # no colour is chosen
        await form.get_by_label("colour").select_option("red")
        await form.get_by_role("button").click()

        answer = '{"cents": null, "valid": null, "colour": "red", "until": "2026-12-24", '
        await expect(page.locator("#live-answer-text")).to_have_text(
            f'priced: {answer}"why": "", "most": null}}'
        )
        await page.get_by_role("button", name="Send the answer").click()
        await expect(form).to_contain_text("Stored.")


@dataclass
class Rating:
    stars: int

    def __post_init__(self) -> None:
        if not self.stars:
            raise ValueError("no star is too few")


async def test_a_page_asks_anew_when_the_run_has_refused_an_answer(
    tab: Tab, site: ServerThread
) -> None:
    page, orders = tab.page, Pipeline("rated orders")
    orders.signal("rated", Rating)
    async with SQLiteJournal(site.folder / "runs.db") as journal:
        run = orders.with_options(journal=journal, run_id="rates")
        await run.run()
        await page.goto(f"{site.url}runs/rates")
        panel = page.get_by_role("region", name="Waits for an answer: rated")
        for stars in ("0", "5"):  # no schema says that there must be one
            await panel.get_by_label("stars").fill(stars)
            await panel.get_by_role("button").click()
            await page.get_by_role("button", name="Send the answer").click()
            await expect(panel).to_contain_text("Stored.")
            if stars == "0":
                await expect(panel.locator("form[data-known=answered]")).to_have_count(1)
                await run.run()
                await expect(panel).to_contain_text("An answer was refused: ")
                await expect(panel).to_contain_text("no star is too few")
        await run.run()
        await expect(badge(page)).to_contain_text("PASSED")


async def pictured(page: Page, name: str) -> None:
    """Keep pictures of a page for people, if a folder is named, and check that it fits."""
    folder = os.environ.get("ASYNCFLOW_PICTURES")
    before = page.viewport_size
    for width in (1280, 390):
        await page.set_viewport_size({"width": width, "height": 800})
        assert await page.evaluate("document.documentElement.scrollWidth") <= width
        for theme in ("light", "dark") if folder else ():
            await page.emulate_media(color_scheme=theme)  # type: ignore[arg-type]
            await page.screenshot(path=f"{folder}/{name}-{width}-{theme}.png")
    if before is not None:
        await page.set_viewport_size(before)
