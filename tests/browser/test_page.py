"""The page of a run in a real browser: its appearance and its controls."""

from __future__ import annotations

import io
import re
from collections.abc import Awaitable, Callable
from itertools import combinations, product
from typing import Any

import PIL.Image
import pytest
from browser.axe import violations
from golden_run import EVENTS_BEFORE_CRASH, GOLDEN, HOSTILE, LONG, SECRET
from mapped_run import mapped_run

from asyncflow import RunStatus, StepStatus
from asyncflow._views.dag import wrapped
from asyncflow._views.run_view import RunView
from asyncflow.events import (
    AttemptStarted,
    Event,
    RunFinished,
    RunStarted,
    StepCancelled,
    StepFailed,
    StepSkipped,
    StepSucceeded,
)
from asyncflow.html_report import to_html
from asyncflow.html_report._event_log import event_log
from asyncflow.html_report._page import Live, sections
from asyncflow.html_report._page import page as page_of
from asyncflow.html_report._page_model import name_text
from asyncflow.html_report._timeline import Timeline, bars_of

pytestmark = pytest.mark.asyncio(loop_scope="session")  # the loop of the browser

Open = Callable[..., Awaitable[Any]]

VIEW = RunView(GOLDEN)
NUMBERS = {name: number for number, name in enumerate(VIEW.steps)}
RATES, FETCH, FAILED = NUMBERS["rates"], NUMBERS["fetch"], NUMBERS[HOSTILE]


@pytest.fixture(scope="session")
def golden() -> str:
    return to_html(GOLDEN)


def sections_of(events: list[Event]) -> dict[str, str]:
    view = RunView(events)
    return sections(view, event_log(events), now_ms=view.at_ms)


def events_of(count: int, width: int = 25) -> list[Event]:
    names = [f"step_{number:04}" for number in range(count)]
    dependencies = {
        name: (names[at - width],) if at >= width else () for at, name in enumerate(names)
    }
    events: list[Event] = [RunStarted("many", 0.0, dependencies)]
    for at, name in enumerate(names):
        begin = float(at // width * 100)
        events.append(AttemptStarted(name, 1, begin))
        events.append(StepSucceeded(name, 1, begin + 10 + at % width * 3, {"rows": at}))
    return [*events, RunFinished(count * 100.0 / width, RunStatus.PASSED)]


# Appearance.


async def geometry(page: Any, number: int) -> tuple[dict[str, float], list[dict[str, float]]]:
    """Return the position of a step's track and of the bars in it."""
    found = await page.evaluate(
        """number => {
          const line = document.querySelector(`.line.step[data-i="${number}"]`);
          const box = (of) => {
            const {left, right, width} = of.getBoundingClientRect();
            return {left, right, width};
          };
          return [box(line.querySelector("svg")), [...line.querySelectorAll(".bar")].map((bar) => {
            const boxes = [...bar.querySelectorAll("rect")].map(box);
            return {
              left: Math.min(...boxes.map((each) => each.left)),
              right: Math.max(...boxes.map((each) => each.right)),
            };
          })];
        }""",
        number,
    )
    return found[0], found[1]


GAP = 0.016
"""The share of the axis that its break has, where the run was resumed."""


def place_of(ms: float, segment: int, track: dict[str, float]) -> float:
    """Return where a time of a segment is, in pixels."""
    share = ms / VIEW.at_ms * (1 - GAP) + GAP * (segment - 1)
    return track["left"] + share * track["width"]


async def assert_bars_match_the_events(page: Any) -> None:
    timeline = Timeline.until(VIEW.at_ms, VIEW.segments)
    for name, number in NUMBERS.items():
        track, shown = await geometry(page, number)
        bars = bars_of(VIEW.steps[name], timeline, VIEW.at_ms)
        bars = tuple(
            sorted(bars, key=lambda bar: bar.kind == "blocked")
        )  # blocked bars are drawn last
        assert len(shown) == len(bars)
        for bar, seen in zip(bars, shown, strict=True):
            left = place_of(bar.start_ms, bar.segment, track)
            right = place_of(bar.end_ms, bar.segment, track)
            if bar.kind in ("attempt", "items"):
                right = max(right, left + 3)
            assert seen["left"] == pytest.approx(left, abs=1), (name, bar)
            assert seen["right"] == pytest.approx(right, abs=1), (name, bar)


async def test_bars_match_the_events_to_a_pixel_also_when_zoomed(opened: Open, golden: str) -> None:
    page = await opened(golden)
    await assert_bars_match_the_events(page)

    for _ in range(5):
        await page.keyboard.press("+")

    track, _ = await geometry(page, RATES)
    assert track["width"] > 5_000
    await assert_bars_match_the_events(page)


async def test_bars_match_the_events_without_a_script(opened: Open, golden: str) -> None:
    page = await opened(golden, java_script_enabled=False)

    boxes = [
        await page.locator(f'.line.step[data-i="{RATES}"] > svg').bounding_box(),
        *[
            await each.bounding_box()
            for each in await page.locator(
                f'.line.step[data-i="{RATES}"] .bar.attempt rect:not(.least)'
            ).all()
        ],
    ]
    track, *bars = boxes
    starts = [0.6, 1000.0, 2400.0]
    for bar, start_ms in zip(bars, starts, strict=True):
        left = place_of(start_ms, 1, {"left": track["x"], "width": track["width"]})
        assert bar["x"] == pytest.approx(left, abs=1)


async def test_a_millisecond_beside_hours_is_visible_and_can_be_zoomed(opened: Open) -> None:
    hours = 5 * 3_600_000.0
    page = await opened(
        to_html(
            [
                RunStarted("r", 0.0, {"short": (), "long": ()}),
                AttemptStarted("short", 1, 1_000.0),
                AttemptStarted("long", 1, 0.0),
                StepSucceeded("short", 1, 1_001.0, None),
                StepSucceeded("long", 1, hours, None),
                RunFinished(hours, RunStatus.PASSED),
            ]
        )
    )

    _, (bar,) = await geometry(page, 0)
    assert bar["right"] - bar["left"] >= 3
    assert await page.locator(".ticks text").all_text_contents() != []
    for _ in range(30):
        await page.keyboard.press("+")
    track, (bar,) = await geometry(page, 0)
    assert track["width"] > 7_000_000
    await page.evaluate("document.getElementById('gantt-scroll').scrollLeft = 0")
    await page.wait_for_function(
        "[...document.querySelectorAll('.ticks text')].some((of) => / m?s$/.test(of.textContent))"
    )


def events_of_all_states() -> list[Event]:
    names = {status: f"a step that is {status}" for status in StepStatus}
    return [
        RunStarted("states", 0.0, dict.fromkeys(names.values(), ())),
        AttemptStarted(names[StepStatus.SUCCESS], 1, 0.0),
        AttemptStarted(names[StepStatus.RUNNING], 1, 0.0),
        AttemptStarted(names[StepStatus.FAILED], 1, 0.0),
        AttemptStarted(names[StepStatus.CANCELLED], 1, 0.0),
        StepSucceeded(names[StepStatus.SUCCESS], 1, 9.0, None),
        StepSkipped(names[StepStatus.SKIPPED], 9.0, "its condition was false", True),
        StepFailed(names[StepStatus.FAILED], 1, 9.0, ValueError("no")),
        StepCancelled(names[StepStatus.CANCELLED], 1, 9.0, "a step failed", None),
    ]


async def greyscale_screenshot(page: Any) -> PIL.Image.Image:
    """Return a screenshot of the whole page in greyscale."""
    return PIL.Image.open(io.BytesIO(await page.screenshot(full_page=True))).convert("L")


async def crop(picture: PIL.Image.Image, one: Any, size: tuple[int, int]) -> bytes:
    """Return the pixels of an element, one byte each."""
    left, top, width, height = await one.evaluate(
        """(of) => { const {x, y, width, height} = of.getBoundingClientRect();
          return [x + scrollX, y + scrollY, width, height]; }"""
    )
    return picture.crop((left, top, left + width, top + height)).resize(size).tobytes()


def differing_pixels(one: bytes, other: bytes, threshold: int) -> int:
    """Return how many pixels differ by more than the threshold."""
    return sum(abs(a - b) > threshold for a, b in zip(one, other, strict=True))


async def test_the_six_statuses_are_distinguishable_in_greyscale(opened: Open) -> None:
    page = await opened(to_html(events_of_all_states()))

    shapes = {
        ".node.{0} .side": (28, 48),
        ".badge.{0} > span": (16, 18),
        ".line.step .symbol.{0}": (16, 20),
    }
    for scheme, (query, size) in product(("light", "dark"), shapes.items()):
        await page.emulate_media(color_scheme=scheme)
        picture = await greyscale_screenshot(page)
        pictures = {
            status: await crop(picture, page.locator(query.format(status.lower())).first, size)
            for status in StepStatus
        }
        for one, other in combinations(StepStatus, 2):
            differing = differing_pixels(pictures[one], pictures[other], 60)
            assert differing >= 8, (scheme, query, one, other)
    words = await page.locator("#steps-table .badge").all_inner_texts()
    assert {word.split()[1] for word in words} == {status.value for status in StepStatus}


async def test_the_outcomes_of_attempts_are_distinguishable_in_greyscale(
    opened: Open, golden: str
) -> None:
    page = await opened(golden)

    picture = await greyscale_screenshot(page)
    pictures = {
        kind: await crop(picture, page.locator(f".legend .f-{kind}").first, (24, 16))
        for kind in ("success", "p-failed", "p-timed-out", "p-cancelled", "p-crashed")
    }

    for one, other in combinations(pictures, 2):
        assert differing_pixels(pictures[one], pictures[other], 25) > 40, (one, other)


async def test_a_name_of_60_characters_is_readable_in_every_view(opened: Open, golden: str) -> None:
    assert len(LONG) >= 60
    page = await opened(golden, at=f"#step={LONG}")
    number = NUMBERS[LONG]

    fits = await page.evaluate(
        """number => {
          const is = `[data-i="${number}"]`, node = document.querySelector(`.node${is}`);
          const box = node.querySelector(".box").getBoundingClientRect();
          const lines = [...node.querySelectorAll(".n")];
          const fits = (of) =>
            of.scrollWidth <= of.clientWidth + 1 && of.scrollHeight <= of.clientHeight + 2;
          return [
            ...[`.line.step${is} .name`, `#steps-table tr${is} th`, `#s${number} h3`]
              .map((query) => document.querySelector(query))
              .map((of) => of.textContent + (fits(of) ? "" : " cut")),
            lines.map((each) => each.textContent).join("")
              + (lines.some((of) => of.getBoundingClientRect().right > box.right) ? " cut" : ""),
          ];
        }""",
        number,
    )

    assert fits == [LONG] * 4


async def test_names_that_differ_at_their_ends_look_different(opened: Open) -> None:
    stem = "enrich_order_with_address_and_customer_lifetime_value_" * 2
    names = [f"{stem}v{number}" for number in (2, 3)]
    events = [RunStarted("r", 0.0, dict.fromkeys(names, ()))]
    page = await opened(to_html(events))

    for width in (390, 1440):
        await page.set_viewport_size({"width": width, "height": 900})
        ends = await page.evaluate(
            """[...document.querySelectorAll(".line.step .name > :last-child")]
              .map((of) => of.textContent + (of.scrollWidth > of.clientWidth ? " cut" : ""))"""
        )
        assert ends == ["lifetime_value_v2", "lifetime_value_v3"]
    lines = [wrapped(name) for name in names]
    assert [(len(each), each[3][0], each[3][-3:]) for each in lines] == [
        (4, "…", "_v2"),
        (4, "…", "_v3"),
    ]
    assert name_text("x" * 200 + "_v2").endswith("x_v2")


async def test_text_stays_inside_the_boxes_of_the_graph(opened: Open, golden: str) -> None:
    page = await opened(golden)

    assert (
        await page.evaluate(
            """[...document.querySelectorAll(".node")].filter((node) => {
          const box = node.querySelector(".box").getBoundingClientRect();
          return [...node.querySelectorAll("text")].some((text) => {
            const of = text.getBoundingClientRect();
            return of.left < box.left || of.right > box.right
              || of.top < box.top - 1 || of.bottom > box.bottom + 1; });
        }).map((node) => node.textContent)"""
        )
        == []
    )


async def test_a_narrow_screen_needs_no_horizontal_scrolling(opened: Open, golden: str) -> None:
    page = await opened(golden, width=400)

    assert await page.evaluate("document.documentElement.scrollWidth") <= 400


@pytest.mark.parametrize("width", [1280, 390])
async def test_the_first_failure_is_the_first_thing_after_two_lines(
    opened: Open, golden: str, width: int
) -> None:
    page = await opened(golden, width=width)

    head = await page.locator("#header").bounding_box()
    failure = await page.locator("section.failure").bounding_box()
    assert head["height"] <= 90
    assert failure["y"] <= 100
    assert await page.locator("#bar").evaluate("(of) => of.getBoundingClientRect().top") > 300


async def test_events_are_readable_on_a_phone(opened: Open, golden: str) -> None:
    page = await opened(golden, width=390)

    widths = await page.evaluate(
        """[...document.querySelectorAll("#events-table td:last-child")]
          .map((of) => of.getBoundingClientRect().width)"""
    )

    assert min(widths) > 200
    assert await page.locator("#events .scroll").evaluate(
        "(of) => of.scrollWidth <= of.clientWidth"
    )


async def test_the_start_is_shown_once_in_the_timezone_of_the_browser(
    opened: Open, golden: str
) -> None:
    page = await opened(golden, timezone_id="Asia/Tokyo", locale="en-GB")

    text = await page.locator("#header").inner_text()
    assert "2026-01-01 09:00:00 UTC+09:00" in text
    assert "00:00:00" not in text


async def test_the_page_is_complete_without_javascript(opened: Open, golden: str) -> None:
    page = await opened(golden, java_script_enabled=False, timezone_id="Asia/Tokyo")

    text = await page.locator("body").inner_text()
    assert "2026-01-01 00:00:00 UTC" in text
    for name in VIEW.steps:
        assert await page.locator("article", has_text=name).first.is_visible()
    assert await page.locator("article").count() == len(VIEW.steps)
    assert "'rows': 3" in text
    assert "in _with_traceback" in text
    assert "the server of the rates closed the connection" in text
    for query in ("#gantt", "#dag svg", "#steps-table", "#events-table", "#data", "#failure"):
        assert await page.locator(query).is_visible()
    for query in ("#bar", "#event-tools", "[data-zoom]"):  # they need the script
        assert not await page.locator(query).first.is_visible()


# No active content and no requests.


async def test_the_page_requests_nothing(opened: Open, golden: str) -> None:
    page = await opened(golden)
    await page.keyboard.press("ArrowDown")
    await page.wait_for_timeout(50)

    assert page.requests == []
    assert SECRET not in await page.content()


async def test_markup_in_names_outputs_and_errors_is_inert(opened: Open, golden: str) -> None:
    page = await opened(golden)
    await page.locator("#steps-table th a", has_text="alert('step')").click()

    assert await page.evaluate("document.scripts.length") == 1
    assert HOSTILE in await page.locator("#details .selected h3").inner_text()


async def test_the_security_policy_blocks_injected_markup(opened: Open, golden: str) -> None:
    page = await opened(golden)

    await page.evaluate(
        """asyncflow.update({data: `<img src=x onerror="window.hacked = 1">
          <b onclick="window.hacked = 1">x</b><iframe src="data:text/html,x"></iframe>
          <a href="javascript:window.hacked = 1">x</a>`})"""
    )
    await page.locator("#data b").click()
    await page.locator("#data a").click()
    await page.evaluate(
        """() => { const script = document.createElement("script");
          script.textContent = "window.hacked = 1"; document.body.append(script); }"""
    )
    blocked = await page.evaluate("fetch('https://example.org/').then(() => false, () => true)")

    assert blocked
    assert await page.evaluate("window.hacked") is None
    assert len(page.complaints) >= 4
    assert all("Content Security Policy" in each or "CSP" in each for each in page.complaints)
    page.complaints.clear()


async def test_the_page_of_a_run_that_has_not_ended_violates_no_accessibility_rule(
    opened: Open,
) -> None:
    html = to_html(GOLDEN[: EVENTS_BEFORE_CRASH - 3])
    page = await opened(html, at="#step=rates&attempt=2")
    await page.evaluate("for (const each of document.querySelectorAll('details')) each.open = true")

    assert await violations(page) == []


async def test_the_help_and_the_static_page_violate_no_accessibility_rule(
    opened: Open, golden: str
) -> None:
    page = await opened(golden)
    await page.keyboard.press("?")
    await page.evaluate("document.documentElement.classList.remove('js')")

    assert await violations(page) == []


# Selecting.


async def selected(page: Any) -> dict[str, Any]:
    """Return which step each view selects, and the fragment of the address."""
    found = await page.evaluate(
        """() => ({
          gantt: document.querySelector(".line.chosen")?.dataset.i,
          node: document.querySelector(".node.chosen")?.dataset.i,
          row: document.querySelector("#steps-table .chosen")?.dataset.i,
          event: document.querySelector("#events-table .chosen")?.dataset.i,
          details: document.querySelector("#details .selected")?.dataset.i,
          bar: document.querySelector(".bar.chosen")?.dataset.a,
          hash: location.hash,
        })"""
    )
    return {view: what for view, what in found.items() if what is not None}


def selected_everywhere(number: int, at: str, bar: str | None = None) -> dict[str, Any]:
    views = dict.fromkeys(("gantt", "node", "row", "event", "details"), str(number))
    return {**views, "hash": at} | ({} if bar is None else {"bar": bar})


NOTHING = {"hash": ""}


async def test_a_selected_step_is_selected_in_every_view(opened: Open, golden: str) -> None:
    page = await opened(golden)
    assert await selected(page) == NOTHING
    assert not await page.locator("#panel").is_visible()

    for query in (
        f'.line.step[data-i="{RATES}"] .name',
        f'.node[data-i="{RATES}"] .box',
        f'#steps-table tr[data-i="{RATES}"] a',
        f'#steps-table tr[data-i="{RATES}"] td:nth-child(4)',
    ):
        await page.locator(query).first.click()
        assert await selected(page) == selected_everywhere(RATES, "#step=rates"), query
        assert await page.locator("#panel h3").filter(visible=True).inner_text() == "rates"
        await page.keyboard.press("Escape")
        assert await selected(page) == NOTHING


async def test_a_bar_or_an_event_selects_its_attempt(opened: Open, golden: str) -> None:
    page = await opened(golden)

    await page.locator(f'.line.step[data-i="{RATES}"] .bar.attempt[data-a="2"]').click()
    assert await selected(page) == selected_everywhere(RATES, "#step=rates&attempt=2", "2")

    await page.locator(f'#events-table tr[data-i="{RATES}"][data-a="1"]').first.click()
    assert await selected(page) == selected_everywhere(RATES, "#step=rates&attempt=1", "1")

    await page.locator('#details .selected a[data-a="3"]').click()
    assert await selected(page) == selected_everywhere(RATES, "#step=rates&attempt=3", "3")


async def test_a_link_selects_a_step_and_the_browser_history_works(
    opened: Open, golden: str
) -> None:
    page = await opened(golden, at="#step=rates&attempt=2")
    assert await selected(page) == selected_everywhere(RATES, "#step=rates&attempt=2", "2")

    await page.locator("#failure h2 a").click()
    assert (await selected(page))["details"] == str(FAILED)
    link = await page.evaluate("location.href")
    await page.go_back()
    assert await selected(page) == selected_everywhere(RATES, "#step=rates&attempt=2", "2")
    await page.go_forward()
    assert (await selected(page))["details"] == str(FAILED)

    await page.goto("about:blank")
    await page.goto(link)
    assert (await selected(page))["details"] == str(FAILED)


async def test_an_invalid_link_is_ignored(opened: Open, golden: str) -> None:
    page = await opened(golden, at="#step=gone")
    assert {*await selected(page)} == {"hash"}

    for at in ("#step=", "#step=rates&attempt=x", "#%", "#table"):
        await page.evaluate("at => { location.hash = at; }", at)
        await page.reload()
        found = await selected(page)
        assert found.get("bar") is None, at
        assert found.get("details") == (str(RATES) if "rates" in at else None), at


async def test_a_step_with_any_name_can_be_linked(opened: Open) -> None:
    names = ["a&b=c", "100% + 1", "ünï/漢?", "a#b", " a  b ", "'\"<i>"]
    page = await opened(to_html([RunStarted("r", 0.0, dict.fromkeys(names, ()))]))

    for number in range(len(names)):
        await page.keyboard.press("ArrowDown")
        link = await page.evaluate("location.href")
        await page.keyboard.press("Escape")
        await page.evaluate("(to) => { location.href = to; }", link)
        await page.wait_for_function(
            "number => document.querySelector('#details .selected')?.dataset.i === number",
            arg=str(number),
        )


async def test_a_link_of_the_static_page_selects_the_step(opened: Open, golden: str) -> None:
    page = await opened(golden, at=f"#s{RATES}")

    assert (await selected(page))["details"] == str(RATES)


async def test_the_arrow_keys_move_through_steps_and_attempts(opened: Open, golden: str) -> None:
    page = await opened(golden)
    order = [NUMBERS[name] for tier in VIEW.tiers for name in tier]

    seen = []
    for _ in order:
        await page.keyboard.press("ArrowDown")
        seen.append(int((await selected(page))["details"]))
    assert seen == order
    await page.keyboard.press("ArrowDown")  # the last step stays selected
    assert (await selected(page))["details"] == str(order[-1])
    for _ in order:
        await page.keyboard.press("ArrowUp")
    assert (await selected(page))["details"] == str(order[0])
    await page.keyboard.press("ArrowDown")
    attempts = []
    for key in ("ArrowRight", "ArrowRight", "ArrowRight", "ArrowRight", "ArrowLeft"):
        await page.keyboard.press(key)
        attempts.append((await selected(page)).get("bar"))
    assert attempts == ["1", "2", "3", "3", "2"]
    await page.keyboard.press("Escape")
    assert await selected(page) == NOTHING


async def test_the_keyboard_opens_and_closes_the_help(opened: Open, golden: str) -> None:
    page = await opened(golden)

    await page.keyboard.press("?")
    assert await page.locator("#help").is_visible()
    await page.keyboard.press("ArrowDown")
    await page.keyboard.press("Escape")

    assert not await page.locator("#help").is_visible()
    assert await selected(page) == NOTHING


async def test_the_focus_is_visible(opened: Open, golden: str) -> None:
    page = await opened(golden)

    for _ in range(12):
        await page.keyboard.press("Tab")
        style = await page.evaluate(
            """() => {
              const {outlineStyle, outlineWidth} = getComputedStyle(document.activeElement);
              return [outlineStyle, outlineWidth];
            }"""
        )
        assert style == ["solid", "2px"], await page.evaluate("document.activeElement.outerHTML")


async def test_the_panel_has_buttons_to_move_and_to_close(opened: Open, golden: str) -> None:
    page = await opened(golden, at="#step=rates")

    await page.locator("#panel-next").click()
    assert (await selected(page))["details"] == str(NUMBERS["token"])
    await page.locator("#panel-previous").click()
    assert (await selected(page))["details"] == str(RATES)
    await page.locator("#panel-close").click()
    assert await selected(page) == NOTHING


# Filtering and sorting.


async def test_the_filter_hides_other_steps_in_every_view(opened: Open, golden: str) -> None:
    page = await opened(golden)

    await page.keyboard.press("/")
    await page.keyboard.type("CLOSED the")  # matches no step
    assert await page.locator("#found").inner_text() == "0 of 12"
    await page.locator("#find").fill("fet")
    assert await page.locator(".line.step:visible").count() == 1
    assert await page.locator("details.items:visible").count() == 1
    assert await page.locator("#steps-table tbody tr:visible").count() == 1
    assert await page.locator(".node:not(.faint)").count() == 1
    assert await page.locator(".tier:visible").count() == 1
    await page.keyboard.press("ArrowDown")
    assert (await selected(page))["details"] == str(FETCH)
    await page.keyboard.press("Escape")
    assert await page.locator(".line.step:visible").count() == 12
    assert (await selected(page))["details"] == str(FETCH)
    await page.keyboard.press("Escape")
    assert await selected(page) == NOTHING


async def test_steps_are_filtered_by_status(opened: Open, golden: str) -> None:
    page = await opened(golden)

    await page.locator("#find-status").select_option("skipped")

    assert await page.locator("#found").inner_text() == "3 of 12"
    assert await page.locator("#steps-table tbody tr:visible .badge.skipped").count() == 3


async def test_the_chip_of_what_failed_counts_items_of_steps_that_passed(opened: Open) -> None:
    ends = [StepSucceeded("fetch", 0, 2e3, None), RunFinished(2e3, RunStatus.PASSED)]
    page = await opened(to_html([*mapped_run(3, retried=False)[:-2], *ends]))

    await page.locator('[data-only="failed"]').click()

    assert await page.locator("#found").inner_text() == "1 of 1, 3 failed items"
    await page.locator('#failure [data-item="66"]').click()
    assert "fetch[66]: failed" in await page.locator(".of-item").inner_text()


async def test_the_table_of_steps_can_be_sorted_by_any_column(opened: Open, golden: str) -> None:
    page = await opened(golden)
    names = page.locator("#steps-table tbody th")
    started = await names.all_inner_texts()

    button = page.locator("#steps-table thead button", has_text="Duration")
    await button.click()
    ascending = await names.all_inner_texts()
    assert ascending[-1] == "rates"
    assert await page.locator("th[aria-sort=ascending]").inner_text() == "Duration"
    await button.click()
    assert (await names.all_inner_texts())[0] == "rates"
    await page.locator("#steps-table thead button", has_text="Step").click()
    assert [name.lower() for name in await names.all_inner_texts()] == sorted(
        name.lower() for name in started
    )
    await page.locator("#steps-table thead button", has_text="#").click()
    assert await names.all_inner_texts() == started


async def test_events_are_filtered_by_text_kind_and_step(opened: Open, golden: str) -> None:
    page = await opened(golden, at="#step=rates")
    rows = page.locator("#events-table tbody tr:visible")

    await page.locator("#event-text").fill("closed the connection")
    assert await rows.count() == 2
    await page.locator("#event-text").fill("")
    await page.locator("#event-kind").select_option("AttemptStarted")
    assert await rows.count() == sum(isinstance(event, AttemptStarted) for event in GOLDEN)
    await page.locator("#event-step").check()
    assert await rows.count() == 3
    await page.locator("#event-kind").select_option("")
    assert await rows.count() == sum(getattr(event, "step", None) == "rates" for event in GOLDEN)


# Zooming and panning.


async def test_buttons_keys_and_the_wheel_zoom_the_timeline(opened: Open, golden: str) -> None:
    page = await opened(golden)

    async def width() -> float:
        return (await geometry(page, RATES))[0]["width"]

    full = await width()
    await page.locator('[data-of="gantt"][data-zoom="in"]').click()
    assert await width() == pytest.approx(full * 1.6, abs=2)
    await page.locator('[data-of="gantt"][data-zoom="out"]').click()
    assert await width() == pytest.approx(full, abs=2)
    await page.keyboard.press("+")
    await page.keyboard.press("+")
    assert await width() == pytest.approx(full * 2.56, abs=2)
    await page.keyboard.press("-")
    assert await width() == pytest.approx(full * 1.6, abs=2)
    await page.locator('[data-of="gantt"][data-zoom="fit"]').click()
    assert await width() == pytest.approx(full, abs=2)

    bar = page.locator(f'.line.step[data-i="{RATES}"] .bar.attempt[data-a="3"] rect').first
    await bar.scroll_into_view_if_needed()
    before = await bar.bounding_box()
    await page.mouse.move(before["x"], before["y"] + 5)
    await page.keyboard.down("Control")
    await page.mouse.wheel(0, -240)
    await page.keyboard.up("Control")
    assert await width() > full * 1.3
    after = await bar.bounding_box()
    assert after["x"] == pytest.approx(
        before["x"], abs=3
    )  # the point under the pointer stays in place
    await page.keyboard.press("0")
    assert await width() == pytest.approx(full, abs=2)


async def test_the_axis_has_finer_labels_when_zoomed(opened: Open, golden: str) -> None:
    page = await opened(golden)
    before = await page.locator(".ticks text").all_text_contents()

    for _ in range(8):
        await page.keyboard.press("+")
    await page.wait_for_function(
        "first => [...document.querySelectorAll('.ticks text')]"
        ".every((each) => !first.includes(each.textContent))",
        arg=[text for text in before if text != "2 s"],
    )

    texts = await page.locator(".ticks text").all_text_contents()
    assert 3 <= len(texts) <= 12


async def test_dragging_pans_the_zoomed_timeline(opened: Open, golden: str) -> None:
    page = await opened(golden)
    for _ in range(4):
        await page.keyboard.press("+")
    box = page.locator("#gantt-scroll")
    await box.scroll_into_view_if_needed()
    at = await box.bounding_box()
    before = await box.evaluate("(of) => of.scrollLeft")

    await page.mouse.move(at["x"] + 700, at["y"] + 150)
    await page.mouse.down()
    await page.mouse.move(at["x"] + 600, at["y"] + 150, steps=4)
    await page.mouse.up()

    assert await box.evaluate("(of) => of.scrollLeft") == pytest.approx(before + 100, abs=2)
    now = await selected(page)
    assert {**now, "hash": ""} == NOTHING  # a drag is not a click


async def test_the_graph_can_be_zoomed_and_fitted(opened: Open, golden: str) -> None:
    page = await opened(golden)
    graph, box = page.locator("#dag svg"), page.locator("#dag-scroll")

    async def width() -> float:
        return float((await graph.bounding_box())["width"])

    await page.locator('[data-of="dag"][data-zoom="fit"]').click()
    assert await width() <= (await box.bounding_box())["width"]
    before = await width()
    await page.locator('[data-of="dag"][data-zoom="in"]').click()
    assert await width() == pytest.approx(before * 1.6, abs=2)
    await box.hover()
    await page.keyboard.down("Control")
    await page.mouse.wheel(0, 300)
    await page.keyboard.up("Control")
    assert await width() < before * 1.6


async def test_a_hovered_bar_shows_its_description_at_once(opened: Open, golden: str) -> None:
    page = await opened(golden)

    await page.locator(f'.line.step[data-i="{RATES}"] .bar.backoff').first.hover()

    text = await page.locator("#tip").inner_text()
    assert text == "backoff of 500 ms after attempt 1, before the run was resumed"
    await page.locator("h1").hover()
    assert not await page.locator("#tip").is_visible()


async def test_the_chosen_theme_survives_a_reload(opened: Open, golden: str) -> None:
    page = await opened(golden)

    async def background() -> str:
        return str(await page.evaluate("getComputedStyle(document.body).backgroundColor"))

    light = await background()
    await page.keyboard.press("t")
    assert await background() == light
    await page.locator("#theme").click()
    dark = await background()
    assert dark != light
    assert await page.locator("#theme").get_attribute("aria-label") == "Theme: dark"
    await page.reload()
    assert await background() == dark
    page.requests.clear()


# Live updates.


SHOWN = """() => ({
    steps: document.querySelectorAll("#steps-table tbody tr:not([hidden])").length,
    events: document.querySelectorAll("#events-table tr[data-ms]:not([hidden])").length,
    width: document.querySelector("#gantt-scroll").scrollWidth,
    left: Math.round(document.querySelector("#gantt-scroll").scrollLeft),
    graph: Math.round(document.querySelector("#dag-scroll svg").getAttribute("width")),
    inputs: [...document.querySelectorAll("#find, #find-status, #event-text, #event-kind")].map(
        (each) => each.value),
})"""


async def test_filters_and_zoom_survive_a_reload_and_can_be_linked(
    opened: Open, golden: str
) -> None:
    page = await opened(golden)
    untouched = await page.evaluate(SHOWN)
    await page.get_by_label("Filter the steps by name or text").fill("a")
    await page.get_by_label("Status").select_option("success")
    await page.get_by_label("Filter the events by text").fill("attempt")
    await page.get_by_label("Kind of event").select_option(index=1)
    for _ in range(3):
        await page.get_by_label("Zoom in").first.click()
    await page.get_by_label("Zoom in").last.click()
    await page.wait_for_url(re.compile("find=a&.*&from=.*&graph="))
    zoomed = page.url
    await page.locator("#gantt-scroll").evaluate("(box) => { box.scrollLeft = 400; }")
    await page.wait_for_url(lambda url: url != zoomed)
    before = await page.evaluate(SHOWN)

    await page.reload()
    reloaded = await page.evaluate(SHOWN)
    await page.get_by_role("link", name="Graph", exact=True).click()
    await page.wait_for_url(re.compile("find=a&.*&graph="))
    await page.evaluate("location.hash = ''")
    await page.wait_for_timeout(100)
    cleared = await page.evaluate(SHOWN)

    assert before != untouched
    assert reloaded == {**before, "left": pytest.approx(before["left"], abs=2)}
    assert {**cleared, "left": 0} == untouched


async def test_an_invalid_view_in_a_link_does_no_harm(opened: Open, golden: str) -> None:
    page = await opened(golden)

    for at in ("#zoom=x&graph=-1&from=y&status=none&kind=x", "#zoom=1e99&graph=1e99&from=7"):
        await page.evaluate("at => { location.hash = at; }", at)
        await page.reload()
        assert await page.locator("#steps-table tbody tr:visible").count() > 0
        assert await page.evaluate("document.querySelector('#gantt-scroll').scrollWidth") < 2e7


BLOCKED_STORAGE = """for (const name of ["localStorage", "sessionStorage"]) {
    Object.defineProperty(window, name, {
        get() { throw new DOMException("denied", "SecurityError"); }, configurable: true });
}"""


async def test_without_storage_the_page_works(opened: Open, golden: str, browser: Any) -> None:
    context = await browser.new_context()
    await context.add_init_script(BLOCKED_STORAGE)
    errors: list[str] = []
    page = await context.new_page()
    page.on("pageerror", lambda error: errors.append(str(error)))
    await page.goto((await opened(golden)).url)

    await page.keyboard.press("t")
    await page.get_by_label("Filter the steps by name or text").fill("a")
    await page.wait_for_url(re.compile("#find=a$"))
    await page.reload()

    assert await page.get_by_label("Filter the steps by name or text").input_value() == "a"
    assert await page.evaluate("document.documentElement.dataset.theme ?? 'system'") == "system"
    assert errors == []
    await context.close()


async def test_an_update_preserves_what_the_reader_selected(opened: Open) -> None:
    early = GOLDEN[: EVENTS_BEFORE_CRASH + 12]
    page = await opened(to_html(early), at="#step=rates&attempt=2")
    await page.locator("#event-kind").select_option("AttemptStarted")
    await page.locator("#steps-table thead button", has_text="Step").click()
    for _ in range(3):
        await page.locator('[data-of="gantt"][data-zoom="in"]').click()
    await page.evaluate("document.getElementById('gantt-scroll').scrollLeft = 321")
    await page.locator("details.items summary").click()
    await page.locator("#find").fill("reused")
    await page.locator('#details .selected a[data-a="2"]').focus()
    width = (await geometry(page, RATES))[0]["width"]

    await page.evaluate("(found) => asyncflow.update(found)", sections_of(GOLDEN))

    await page.wait_for_url(
        re.compile("#step=rates&attempt=2&find=reused&kind=AttemptStarted&zoom=")
    )
    now = {**await selected(page), "hash": ""}
    assert now == selected_everywhere(RATES, "", "2")
    assert "FAILED" in await page.locator("#header .badge").inner_text()
    assert await page.locator("#failure h2").is_visible()
    assert (await geometry(page, RATES))[0]["width"] == pytest.approx(width, abs=1)
    assert await page.evaluate("document.getElementById('gantt-scroll').scrollLeft") == 321
    assert await page.locator("details.items").first.evaluate("(of) => of.open")
    assert await page.locator("#events-table tbody tr:visible").count() == sum(
        isinstance(event, AttemptStarted) for event in GOLDEN
    )
    names = await page.locator("#steps-table tbody tr:visible th").all_inner_texts()
    assert names == sorted(names)
    assert set(names) == {"archive", "extract", "index", "rates", "token", "validate"}
    assert await page.evaluate("document.activeElement.textContent") == "2"


async def test_a_removed_step_is_no_longer_selected(opened: Open) -> None:
    page = await opened(to_html(GOLDEN), at="#step=tidy")

    await page.evaluate(
        "(found) => asyncflow.update(found)", sections_of([RunStarted("r", 0.0, {"a": ()})])
    )

    assert (await selected(page)).get("details") is None


# Large runs.


async def test_a_page_of_500_steps_is_usable(opened: Open) -> None:
    page = await opened(to_html(events_of(500)))

    await page.locator("#find").fill("step_0499")
    assert await page.locator(".line.step:visible").count() == 1
    await page.keyboard.press("ArrowDown")
    assert await page.locator("#one h3").inner_text() == "step_0499"
    await page.keyboard.press("Escape")
    line = page.locator('.line.step[data-i="499"]')
    assert await line.evaluate(
        """(of) => { const line = of.getBoundingClientRect();
          const box = of.closest(".scroll").getBoundingClientRect();
          return line.top >= box.top && line.bottom <= box.bottom; }"""
    )


async def test_what_failed_of_300_steps_is_in_view_first(opened: Open) -> None:
    events = events_of(300, 25)
    failed = "step_0217"
    last = [event for event in events if isinstance(event, RunFinished)]
    events = [event for event in events if event not in last]
    at = next(at for at, each in enumerate(events) if each.step == failed and each.attempt)
    end = StepFailed(failed, 1, events[at + 1].at_ms, OSError("away"))
    page = await opened(to_html([*events[: at + 1], end, *events[at + 2 :], *last]))

    rows = page.locator("#steps-table tbody tr")
    assert await rows.first.get_attribute("data-i") == "217"
    line = page.locator('.line.step[data-i="217"]')
    in_view = """(of) => { const line = of.getBoundingClientRect();
      const box = of.closest(".scroll").getBoundingClientRect();
      return line.top >= box.top && line.bottom <= box.bottom; }"""
    assert await line.evaluate(in_view)
    assert "step_…" in await page.locator(".fold summary").inner_text()
    assert await page.locator(".node").count() == 11 + 2
    await page.evaluate("asyncflow.choose(205)")
    assert await page.locator(".node.chosen").get_attribute("data-i") == "200"
    assert await page.locator(".node.upstream").count() == 8
    assert await page.locator(".edge.beside").count() == 11
    assert await page.locator(".fold[open]").count() == 1
    assert await page.locator('.line.step[data-i="205"]').evaluate(in_view)


async def test_a_page_of_5000_steps_opens(opened: Open) -> None:
    page = await opened(to_html(events_of(5_000, 100)))

    assert "The graph is not drawn" in await page.locator("#dag").inner_text()
    await page.evaluate("asyncflow.choose(4321)")
    assert (await selected(page))["row"] == "4321"


async def test_a_live_page_shows_its_connection_state(opened: Open) -> None:
    events = GOLDEN[:EVENTS_BEFORE_CRASH]
    view = RunView(events)
    page = await opened(
        page_of(
            view,
            event_log(events),
            now_ms=view.at_ms,
            live=Live(*[f"/{name}" for name in Live._fields])._replace(script=""),
        )
    )

    assert (await page.locator("#live-state").inner_text()).strip() == "connecting"
    assert not await page.locator("#live-cancel").is_visible()
