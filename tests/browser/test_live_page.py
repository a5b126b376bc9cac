"""The pages of runs that go on, in a real browser."""

from __future__ import annotations

import http.server
import re
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe
from browser.live_processes import HOSTILE, Gates, Inside, Process
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

TOKEN = "a token that nobody guesses"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")

expect.set_options(timeout=10_000)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Tab:
    """A tab in which nothing may go wrong but what is expected."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.expected: list[str] = []
        self._told: list[str] = []
        page.on("console", lambda message: self._note(message.type, message.text))
        page.on("pageerror", lambda error: self._note("error", str(error)))

    def _note(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self._told.append(text)

    def check(self) -> None:
        surprises = [text for text in self._told if not any(word in text for word in self.expected)]
        assert not surprises
        assert self.page.evaluate("window.hacked") is None


@pytest.fixture
def tab(chromium: Browser) -> Iterator[Tab]:
    context = chromium.new_context(viewport={"width": 1280, "height": 900})
    tab = Tab(context.new_page())
    yield tab
    tab.check()
    context.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Inside]:
    """A server for all tests that don't end it."""
    site = Inside(tmp_path_factory.mktemp("site"))
    yield site
    site.close()


@pytest.fixture
def start(site: Inside) -> Iterator[Callable[..., Process]]:
    """Start processes, which end with the test."""
    started: list[Process] = []

    def start(what: str, argument: object) -> Process:
        started.append(Process(what, site.folder, argument))
        return started[-1]

    yield start
    for process in started:
        process.end()


def chip(page: Page) -> Locator:
    return page.locator("#header .chip")


def live(page: Page) -> Locator:
    return page.locator("#live-word")


def step(page: Page, name: str) -> Locator:
    return page.locator("#steps tbody tr").filter(has_text=name)


def button(page: Page, name: str) -> Locator:
    return page.get_by_role("button", name=f"{name} the run")


def test_a_run_is_followed_while_it_goes_on_and_through_a_reload(tab: Tab, site: Inside) -> None:
    gates, page = site.start("nightly/1"), tab.page
    page.goto(site.url)
    page.get_by_role("link", name="nightly/1").first.click()

    expect(chip(page)).to_contain_text("RUNNING")
    expect(live(page)).to_have_text("live")
    expect(step(page, "first")).to_contain_text("RUNNING")
    figure = page.locator("#header .figure").first
    before = figure.inner_text()
    expect(figure).not_to_have_text(before)  # time goes by though nothing happens
    gates.open("first")
    expect(step(page, "first")).to_contain_text("SUCCESS")
    expect(step(page, "second")).to_contain_text("RUNNING")

    page.reload()
    expect(step(page, "second")).to_contain_text("RUNNING")
    gates.open("second", "third")

    expect(chip(page)).to_contain_text("PASSED")
    expect(live(page)).to_have_text("ended")
    expect(button(page, "Cancel")).to_be_hidden()
    expect(button(page, "Resume")).to_be_hidden()


def test_a_server_that_is_killed_comes_back_and_nothing_is_lost(
    tab: Tab, site: Inside, start: Any
) -> None:
    server, gates, page = start("serve", 0), site.start("killed-server"), tab.page
    tab.expected = ["ERR_CONNECTION_REFUSED", "ERR_INCOMPLETE_CHUNKED", "ERR_CONNECTION_RESET"]
    page.goto(f"{server.told}runs/{gates.run_id}")
    expect(live(page)).to_have_text("live")
    rows = page.locator("#events tbody tr")
    expect(rows).not_to_have_count(0)

    server.end()
    expect(live(page)).to_have_text("disconnected")
    gates.open("first", "second")
    start("serve", urlsplit(server.told).port)

    expect(live(page)).to_have_text("live")
    expect(step(page, "first")).to_contain_text("SUCCESS")
    expect(step(page, "second")).to_contain_text("SUCCESS")
    gates.open("third")
    expect(chip(page)).to_contain_text("PASSED")
    texts, steps = rows.all_inner_texts(), page.locator("#steps").inner_text()
    assert len(texts) == len(set(texts))  # nothing twice
    page.reload()
    assert rows.all_inner_texts() == texts
    assert page.locator("#steps").inner_text() == steps


def test_a_run_is_cancelled_and_resumed_from_its_page(tab: Tab, site: Inside) -> None:
    gates, page = site.start("to-be-cancelled"), tab.page
    gates.open("first")
    page.goto(f"{site.url}runs/{gates.run_id}")
    expect(step(page, "second")).to_contain_text("RUNNING")

    button(page, "Cancel").click()
    expect(page.locator("#live-note")).to_contain_text("asked to stop")
    expect(chip(page)).to_contain_text("INTERRUPTED")
    assert gates.has_cleaned_up("second")

    button(page, "Resume").click()
    expect(page.locator("#live-note")).to_contain_text("It goes on.")
    expect(chip(page)).to_contain_text("RUNNING")
    expect(live(page)).to_have_text("live")
    gates.open("second", "third")
    expect(chip(page)).to_contain_text("PASSED")


def test_the_end_of_a_process_is_seen_and_its_run_resumed(
    tab: Tab, site: Inside, start: Any
) -> None:
    running, page = start("run", "killed-run"), tab.page
    page.goto(f"{site.url}runs/killed-run")
    expect(button(page, "Cancel")).to_be_visible()
    running.end()

    expect(page.locator("#live-note")).to_contain_text("orphaned")
    expect(button(page, "Cancel")).to_be_hidden()
    other = page.context.new_page()
    other.goto(f"{site.url}?text=killed-run")
    expect(other.locator("#list")).to_contain_text("ORPHANED")
    Gates(site.folder, "killed-run").open("first", "second", "third")
    page.bring_to_front()
    button(page, "Resume").click()

    expect(chip(page)).to_contain_text("PASSED")
    other.bring_to_front()
    expect(other.locator("#list")).to_contain_text("PASSED")  # without a reload


def test_a_resumption_by_somebody_else_is_noticed(tab: Tab, site: Inside) -> None:
    gates, page = site.start("resumed-elsewhere"), tab.page
    page.goto(f"{site.url}runs/{gates.run_id}")
    expect(live(page)).to_have_text("live")
    site.stop()
    expect(live(page)).to_have_text("ended")
    expect(chip(page)).to_contain_text("INTERRUPTED")

    site.start(gates.run_id)

    expect(chip(page)).to_contain_text("RUNNING")
    expect(live(page)).to_have_text("live")
    site.stop()


def test_a_server_that_ends_leaves_its_runs_resumable(tab: Tab, site: Inside, start: Any) -> None:
    server, gates, page = start("serve", 0), site.start("ended-server"), tab.page
    tab.expected = ["ERR_"]
    page.goto(f"{server.told}runs/{gates.run_id}")
    expect(live(page)).to_have_text("live")
    site.stop()
    button(page, "Resume").click()
    expect(chip(page)).to_contain_text("RUNNING")

    code = server.end(signal.SIGTERM)

    assert code == 143
    assert gates.has_cleaned_up("first")
    expect(live(page)).to_have_text("disconnected")
    start("serve", urlsplit(server.told).port)
    expect(chip(page)).to_contain_text("INTERRUPTED")
    expect(button(page, "Resume")).to_be_visible()


# Other sites.


@pytest.fixture
def evil(request: pytest.FixtureRequest) -> Iterator[Callable[[str], str]]:
    """Serve a page of another site."""
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


def test_no_page_of_another_site_can_act(tab: Tab, site: Inside, evil: Any) -> None:
    gates, page = site.start("not-theirs"), tab.page
    tab.expected = ["403", "CORS", "ERR_", "Failed to fetch", "frame-ancestors", "X-Frame"]
    run, act = f"{site.url}runs/{gates.run_id}", f"{site.url}cancel/{gates.run_id}"
    path = evil(f"""<form method=post action="{act}"><button>Win</button></form>
        <iframe src="{run}"></iframe>
        <script>fetch("{act}", {{method: "POST", mode: "no-cors"}}).catch(() => 0);
        fetch("{run}").then(() => window.read = 1, () => window.read = 0)</script>""")

    for host in ("127.0.0.1", "localhost"):  # another port is another site's, too
        page.goto(f"http://{host}{path}")
        page.wait_for_function("window.read === 0")
        assert not page.frames[1].locator("#header").count()
        page.get_by_role("button", name="Win").click()
        expect(page.locator("h1")).to_have_text("Another site has sent this")

    page.goto(run)
    expect(chip(page)).to_contain_text("RUNNING")
    expect(live(page)).to_have_text("live")
    assert not gates.has_cleaned_up("first")
    site.stop()


def test_the_token_is_asked_for_once(tab: Tab, tmp_path: Path) -> None:
    site, page = Inside(tmp_path, TOKEN), tab.page
    tab.expected = ["401"]
    gates = site.start("r")
    page.goto(f"{site.url}runs/r")
    page.get_by_label("Token").fill("not the token at all")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("That is not the token.")
    check(page)

    page.get_by_label("Token").fill(TOKEN)
    page.get_by_role("button", name="Show the runs").click()

    expect(chip(page)).to_contain_text("RUNNING")
    expect(live(page)).to_have_text("live")
    button(page, "Cancel").click()
    expect(chip(page)).to_contain_text("INTERRUPTED")
    assert gates.has_cleaned_up("first")
    (cookie,) = page.context.cookies()
    assert cookie["httpOnly"]
    assert cookie["sameSite"] == "Strict"
    assert TOKEN not in cookie["value"]
    site.close()


# The list.


def test_the_list_is_as_it_is_now_and_can_be_narrowed(tab: Tab, tmp_path: Path) -> None:
    site, page = Inside(tmp_path), tab.page
    page.goto(site.url)
    expect(page.locator("#runs")).to_contain_text("No run has been kept yet")

    for run_id in ("calm-otter", HOSTILE):
        Gates(tmp_path, run_id).open("first", "second", "third")
        site.start(run_id)
    expect(page.locator("#list tbody tr")).to_have_count(2)
    expect(page.locator("#list")).to_contain_text(HOSTILE)
    time = page.locator("#list time").first.inner_text()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", time)

    page.get_by_label("Name of the run").fill("OTTER")
    page.keyboard.press("Enter")
    expect(page.locator("#list tbody tr")).to_have_count(1)
    page.get_by_label("Status").select_option("failed")
    expect(page.locator("#runs")).to_contain_text("No run is like that.")
    page.get_by_role("link", name="Show all", exact=True).click()
    expect(page.locator("#list tbody tr")).to_have_count(2)

    page.locator(".plot a").first.click()
    expect(chip(page)).to_contain_text("PASSED")
    page.get_by_role("link", name="All runs").click()
    expect(page.locator("#list tbody tr")).to_have_count(2)
    site.close()


def test_the_list_says_when_the_server_is_gone(tab: Tab, start: Any) -> None:
    server, page = start("serve", 0), tab.page
    tab.expected = ["ERR_CONNECTION_REFUSED"]
    page.goto(server.told)
    expect(live(page)).to_have_text("live")

    server.end()
    expect(live(page)).to_contain_text("disconnected")
    start("serve", urlsplit(server.told).port)

    expect(live(page)).to_have_text("live")


# For everybody.


def check(page: Page) -> None:
    """A page must keep the rules of accessibility."""
    found = Axe().run(page).response["violations"]
    assert not [(each["id"], [node["html"] for node in each["nodes"]]) for each in found], page.url


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_pages_are_accessible(chromium: Browser, site: Inside, scheme: Any) -> None:
    gates = site.start(f"accessible-{scheme}")
    gates.open("first")
    page = chromium.new_page(color_scheme=scheme, viewport={"width": 1280, "height": 900})

    for path in ("", "?text=nothing", "runs/accessibl"):
        page.goto(site.url + path)
        check(page)
    page.goto(f"{site.url}runs/{gates.run_id}")
    expect(button(page, "Cancel")).to_be_visible()
    check(page)
    site.stop()
    expect(button(page, "Resume")).to_be_visible()
    check(page)
    page.close()


@pytest.mark.parametrize("width", [390, 1280])
def test_no_page_is_wider_than_its_window(chromium: Browser, site: Inside, width: int) -> None:
    gates = site.start(f"a-name-of-sixty-characters-for-a-run-that-was-given-a-long-{width}")
    gates.open("first", "second", "third")
    page = chromium.new_page(viewport={"width": width, "height": 800})

    for path in ("", "runs/" + quote("unknown" * 30)):
        page.goto(site.url + path)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.close()
