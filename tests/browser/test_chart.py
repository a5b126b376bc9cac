"""The chart of a page in a real browser: its map, tiers and filter, the graph, and the items."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from browser.axe import violations
from mapped_run import mapped_run

from asyncflow import RunStatus
from asyncflow._views.run_view import RunView
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
from asyncflow.html_report import to_html
from asyncflow.html_report._event_log import event_log
from asyncflow.html_report._page import sections

pytestmark = pytest.mark.asyncio(loop_scope="session")  # the loop of the browser

Open = Callable[..., Awaitable[Any]]

TABLES = [f"table_{number}" for number in range(8)]
STAGES = ("extract", "validate", "load")
DEPENDENCIES: dict[str, tuple[str, ...]] = {
    **{f"extract_{table}": () for table in TABLES},
    "fetch": (),
    **{f"validate_{table}": (f"extract_{table}",) for table in TABLES},
    **{f"load_{table}": (f"validate_{table}",) for table in TABLES},
    "join": tuple(f"load_{table}" for table in TABLES),
    "train": ("join",),
    "publish": ("train",),
    "announce": ("publish",),
}
DEPENDENCIES["tidy"] = tuple(DEPENDENCIES)
NUMBERS = {name: number for number, name in enumerate(DEPENDENCIES)}


def nightly() -> list[Event]:
    """Return the events of 30 steps: one retried, one that fails, one mapped, one clean-up step."""
    events: list[Event] = [RunStarted("nightly", 0.0, DEPENDENCIES)]
    for at, stage in enumerate(STAGES):
        for number, table in enumerate(TABLES):
            name, begin = f"{stage}_{table}", at * 1_000.0
            events.append(AttemptStarted(name, 1, begin))
            if name == "extract_table_3":
                events.append(AttemptFailed(name, 1, begin + 50, ConnectionError("reset"), 10.0))
                events.append(AttemptStarted(name, 2, begin + 60))
            attempt = 2 if name == "extract_table_3" else 1
            events.append(StepSucceeded(name, attempt, begin + 500 + number * 50, None))
    events += [
        AttemptStarted("join", 1, 3_000.0),
        StepSucceeded("join", 1, 3_500.0, None),
        AttemptStarted("train", 1, 3_500.0),
        StepFailed("train", 1, 5_000.0, ValueError("3 NaN values")),
        StepSkipped("publish", 5_000.0, "it depends on step 'train', which failed", False),
        StepSkipped("announce", 5_000.0, "it depends on step 'train', which failed", False),
        *mapped_run(6, retried=False)[1:-1],
    ]
    events.sort(key=lambda each: getattr(each, "at_ms", 0.0))
    return [
        *events,
        AttemptStarted("tidy", 1, 5_000.0),
        StepSucceeded("tidy", 1, 5_100.0, None),
        RunFinished(5_100.0, RunStatus.FAILED),
    ]


@pytest.fixture(scope="session")
def page_html() -> str:
    return to_html(nightly())


def sections_of(events: list[Event]) -> dict[str, str]:
    view = RunView(events)
    return sections(view, event_log(events), now_ms=view.at_ms)


# The map.

MAPPED = """() => {
  const share = (of) => (of - map.left) / map.width;
  const map = document.querySelector(".minimap").getBoundingClientRect();
  const view = document.querySelector(".map-view").getBoundingClientRect();
  const box = document.querySelector("#gantt-scroll");
  const track = document.querySelector(".line.axis > svg").getBoundingClientRect();
  return {
    window: [share(view.left), share(view.right)],
    timeline: [(map.left - track.left) / track.width, (map.right - track.left) / track.width],
    values: [...document.querySelectorAll("[data-map]")].map((each) => each.ariaValueText),
  };
}"""


async def shown(page: Any) -> tuple[float, float]:
    """Return which part of the timeline is shown. The map must say the same."""
    await page.wait_for_function(
        "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
        ".then(() => true)"
    )
    found = await page.evaluate(MAPPED)
    assert found["window"] == pytest.approx(found["timeline"], abs=0.005)
    assert found["values"] == [" to ".join(found["values"][1:]), *found["values"][1:]]
    return found["window"][0], found["window"][1]


async def drag(page: Any, begin: float, end: float, query: str = ".minimap") -> None:
    """Drag over the map, by shares of its width."""
    box = await page.locator(".minimap").bounding_box()
    y = box["y"] + box["height"] / 2
    await page.mouse.move(box["x"] + begin * box["width"], y)
    await page.mouse.down()
    await page.mouse.move(box["x"] + (begin + end) / 2 * box["width"], y)
    await page.mouse.move(box["x"] + end * box["width"], y)
    await page.mouse.up()


async def test_dragging_over_the_map_zooms_to_that_part(opened: Open, page_html: str) -> None:
    page = await opened(page_html)
    assert await shown(page) == pytest.approx((0, 1), abs=0.005)

    await drag(page, 0.6, 0.2)

    assert await shown(page) == pytest.approx((0.2, 0.6), abs=0.01)
    await page.wait_for_url(re.compile(r"#zoom=2\.\d+&from=0\.\d+"))
    await page.reload()
    assert await shown(page) == pytest.approx((0.2, 0.6), abs=0.01)

    await page.locator(".minimap").dblclick(position={"x": 5, "y": 20})
    assert await shown(page) == pytest.approx((0, 1), abs=0.005)


async def test_the_window_of_the_map_moves_and_its_edges_resize_it(
    opened: Open, page_html: str
) -> None:
    page = await opened(page_html, at="#zoom=4&from=0.25")
    assert await shown(page) == pytest.approx((0.25, 0.5), abs=0.01)

    await drag(page, 0.4, 0.65)
    assert await shown(page) == pytest.approx((0.5, 0.75), abs=0.01)

    width = (await page.locator(".minimap").bounding_box())["width"]
    await drag(page, 0.75 + 5 / width, 0.9 + 5 / width)
    assert await shown(page) == pytest.approx((0.5, 0.9), abs=0.02)

    await drag(page, 0.5 - 5 / width, 0.8)
    assert await shown(page) == pytest.approx((0.8, 0.9), abs=0.02)

    await drag(page, 0.85, 3.0)  # it ends with the timeline
    assert await shown(page) == pytest.approx((0.9, 1.0), abs=0.02)


async def test_the_arrow_keys_move_the_window_and_its_edges(opened: Open, page_html: str) -> None:
    page = await opened(page_html, at="#zoom=4&from=0.5")

    await page.locator(".map-from").press("ArrowUp")
    assert await shown(page) == pytest.approx((0.525, 0.75), abs=0.01)
    await page.locator(".map-to").press("End")
    assert await shown(page) == pytest.approx((0.525, 1.0), abs=0.01)
    await page.locator(".map-view").press("Home")
    assert await shown(page) == pytest.approx((0, 0.475), abs=0.01)
    await page.locator(".map-view").press("PageUp")
    assert await shown(page) == pytest.approx((0.2375, 0.7125), abs=0.01)
    await page.locator(".map-from").press("Home")
    assert await shown(page) == pytest.approx((0, 0.7125), abs=0.01)
    assert "step=" not in page.url  # the arrows did not select


async def test_the_map_follows_zooming_scrolling_and_the_room_that_is_left(
    opened: Open, page_html: str
) -> None:
    page = await opened(page_html)

    await page.keyboard.press("+")
    begin, end = await shown(page)
    assert end - begin == pytest.approx(1 / 1.6, abs=0.01)
    await page.evaluate("document.querySelector('#gantt-scroll').scrollLeft = 0")
    assert await shown(page) == pytest.approx((0, 1 / 1.6), abs=0.01)

    await page.locator(".map-view").press("ArrowRight")
    before = await shown(page)
    await page.evaluate("asyncflow.choose(3)")  # the details open
    await page.wait_for_timeout(100)  # and the browser reports the width that is left
    assert await shown(page) == pytest.approx(before, abs=0.01)


async def test_an_update_preserves_the_window_of_the_map(opened: Open, page_html: str) -> None:
    page = await opened(to_html(nightly()[:-30]), at="#zoom=4&from=0.5")

    await page.evaluate("(found) => asyncflow.update(found)", sections_of(nightly()))

    assert await shown(page) == pytest.approx((0.5, 0.75), abs=0.01)


# Tiers.


def tier(page: Any, number: int) -> Any:
    return page.locator(f'.rows[data-key="tier-{number}"]')


async def test_a_closed_tier_stays_closed(opened: Open, page_html: str) -> None:
    page = await opened(to_html(nightly()[:-30]))

    await tier(page, 2).locator("summary.tierhead").press("Enter")
    await tier(page, 3).locator("summary.tierhead").click()
    await page.wait_for_url(re.compile(r"#closed=2%2C3$"))
    assert not await page.locator('.line.step[data-i="10"]').is_visible()
    assert await tier(page, 2).locator(".tally").inner_text() == "✓ 8"

    await page.evaluate("(found) => asyncflow.update(found)", sections_of(nightly()))
    assert not await page.locator('.line.step[data-i="10"]').is_visible()
    await page.reload()
    assert not await page.locator('.line.step[data-i="10"]').is_visible()
    assert await page.locator('.line.step[data-i="3"]').is_visible()
    await page.evaluate("location.hash = '#closed=2'")
    await page.wait_for_function("() => document.querySelector('[data-key=tier-3]').open")
    assert not await tier(page, 2).evaluate("(of) => of.open")


async def test_the_arrow_keys_skip_a_closed_tier_and_a_selection_opens_it(
    opened: Open, page_html: str
) -> None:
    page = await opened(page_html, at="#step=fetch&closed=2")

    await page.keyboard.press("ArrowDown")
    assert "step=load_table_0" in page.url
    await page.locator('#steps-table tr[data-i="10"] a').click()

    assert await tier(page, 2).evaluate("(of) => of.open")
    await page.wait_for_url(lambda url: "closed" not in url)


async def test_all_tiers_are_open_without_a_script(opened: Open, page_html: str) -> None:
    static = await opened(page_html, java_script_enabled=False)
    assert await static.locator(".line.step:visible").count() == len(NUMBERS)
    assert await static.locator("[data-map]:visible").count() == 0


# The filter.


async def test_chips_show_only_failed_retried_or_slow_steps(opened: Open, page_html: str) -> None:
    page = await opened(page_html)

    async def names() -> set[str]:
        return set(await page.locator(".line.step:visible .name").all_inner_texts())

    await page.get_by_role("button", name="failed", exact=True).click()
    assert await names() == {"train", "fetch"}
    found = await page.locator("#found").inner_text()
    assert found == f"2 of {len(NUMBERS)}, 6 failed items"
    await page.get_by_role("button", name="retried").click()
    assert await names() == {"train", "fetch", "extract_table_3"}
    await page.get_by_role("button", name="failed", exact=True).click()
    await page.get_by_role("button", name="slow").click()
    slow = await names()
    assert "train" in slow
    assert len(slow) < 6
    await page.wait_for_url(re.compile("#show=retried%2Cslow$"))

    await page.reload()
    assert await names() == slow
    await page.evaluate("(found) => asyncflow.update(found)", sections_of(nightly()))
    assert await names() == slow
    await page.keyboard.press("Escape")
    assert len(await names()) == len(NUMBERS)
    assert await page.locator('[aria-pressed="true"]').count() == 0


# The graph.

SEEN = """(number) => {
  const box = document.querySelector("#dag-scroll").getBoundingClientRect();
  const node = document.querySelector(`.node[data-i="${number}"]`).getBoundingClientRect();
  return node.left >= box.left && node.right <= box.right
    && node.top >= box.top && node.bottom <= box.bottom;
}"""


async def test_a_graph_opens_whole_if_it_stays_legible(opened: Open) -> None:
    small = {"a": (), "b": ("a",), "c": ("b",), "d": ("c",), "e": ("d",)}
    page = await opened(to_html([RunStarted("r", 0.0, small)]))

    for number in range(5):
        assert await page.evaluate(SEEN, number)


@pytest.mark.parametrize("state", ["failed", "running", "just started"])
async def test_a_large_graph_opens_at_what_failed_or_runs_or_at_its_start(
    opened: Open, state: str
) -> None:
    names = [f"step_{number}" for number in range(40)]
    needs = {name: tuple(names[max(at - 1, 0) : at]) for at, name in enumerate(names)}
    events: list[Event] = [RunStarted("r", 0.0, needs)]
    if state != "just started":
        events.append(AttemptStarted("step_20", 1, 1.0))
    if state == "failed":
        events.append(StepFailed("step_20", 1, 2.0, ValueError("no")))
        events.append(AttemptStarted("step_39", 1, 3.0))
    page = await opened(to_html(events))

    assert await page.evaluate(SEEN, 0 if state == "just started" else 20)
    scale = await page.evaluate(
        "document.querySelector('.graph').getBoundingClientRect().width"
        " / document.querySelector('.graph').dataset.width"
    )
    assert scale == pytest.approx(0.64, abs=0.01)


async def test_the_edges_of_a_clean_up_step_show_when_it_is_selected(
    opened: Open, page_html: str
) -> None:
    page = await opened(page_html)
    tidy = NUMBERS["tidy"]

    async def edges() -> int:
        return await page.evaluate(  # type: ignore[no-any-return]
            """(number) => [...document.querySelectorAll(`.edge[data-t="${number}"]`)]
              .filter((edge) => getComputedStyle(edge).display !== "none").length""",
            tidy,
        )

    assert await page.locator(f'.node[data-i="{tidy}"] .after').text_content() == "all 29"
    assert await edges() <= 1  # one may be on the critical path
    await page.evaluate("(number) => asyncflow.choose(number)", tidy)
    assert await edges() == 29

    # Back by "needed by": a step shows its own edge alone.
    await page.locator("#details .selected .needs a").filter(has_text="announce").click()
    assert await edges() <= 2
    text = await page.locator("#details .selected .needs").all_inner_texts()
    assert text == ["Depends on publish", "Needed by tidy"]


# Items.


async def test_an_item_can_be_linked_and_shows_its_attempts(opened: Open, page_html: str) -> None:
    page = await opened(page_html, at="#step=fetch&item=33")
    card = page.locator("#details .selected .of-item")

    assert "fetch[33]: failed" in await card.inner_text()
    assert "ConnectionError: reset by peer" in await card.inner_text()
    assert await card.locator("tbody tr").all_inner_texts() == ["1\tfailed\t300 ms\t20 ms"]
    assert await page.locator("#details tr.chosen").count() == 1
    assert await card.evaluate(
        "(of) => of.getBoundingClientRect().bottom"
        " <= document.querySelector('#panel').getBoundingClientRect().bottom"
    )

    await page.locator("#details .groups a", has_text="[66]").click()
    assert "step=fetch&item=66" in page.url
    assert "fetch[66]: failed" in await card.inner_text()
    await page.go_back()
    assert "fetch[33]: failed" in await card.inner_text()
    await page.evaluate("(found) => asyncflow.update(found)", sections_of(nightly()))
    assert "fetch[33]: failed" in await card.inner_text()

    await page.evaluate("location.hash = '#step=fetch&item=7000'")
    await page.wait_for_function(
        "() => document.querySelector('.of-item').textContent"
        " === 'fetch[7000]: the page has no details of it'"
    )
    await page.evaluate("location.hash = '#step=fetch&item=x'")
    await page.wait_for_function("() => !document.querySelector('.of-item').textContent")


async def test_a_cell_selects_its_item_and_the_arrow_keys_its_neighbours(
    opened: Open, page_html: str
) -> None:
    page = await opened(page_html, at="#step=fetch")
    strip = page.locator("#details .selected .strip-of-cells")
    box = await strip.bounding_box()
    pitch = box["width"] / 40

    async def click(number: int) -> None:
        at = {"x": (number % 40 + 0.5) * pitch, "y": (number // 40 + 0.5) * pitch}
        await strip.click(position=at)

    await click(2)  # the failed ones come first
    assert page.url.endswith("item=66")
    await page.keyboard.press("ArrowRight")
    assert page.url.endswith("item=99")
    await click(45)
    mark = await page.locator(".chosen-cell").get_attribute("x")
    assert mark == str(5 * 8)
    await page.keyboard.press("ArrowDown")  # another step has no item
    assert "item=" not in page.url


async def test_an_item_of_the_timeline_and_an_event_of_an_item_select_it(
    opened: Open, page_html: str
) -> None:
    page = await opened(page_html)

    await page.locator("details.items > summary").click()
    await page.locator('.line.item[data-item="33"] a').click()
    assert page.url.endswith("#step=fetch&item=33")
    assert await page.locator(".line.item.chosen").get_attribute("data-item") == "33"
    await page.locator('#events-table tr[data-item="66"]').first.click()
    assert page.url.endswith("#step=fetch&item=66")
    assert await page.locator("#events-table tr.chosen").count() == 2


# Large runs.


def large(count: int, done: int) -> list[Event]:
    names = [f"step_{number:04}" for number in range(count)]
    needs = {name: tuple(names[at - 500 : at - 499]) for at, name in enumerate(names)}
    needs |= dict.fromkeys(names[:500], ())
    events: list[Event] = [RunStarted("large", 0.0, needs)]
    for at, name in enumerate(names[:done]):
        events.append(AttemptStarted(name, 1, at * 1.0))
        events.append(StepSucceeded(name, 1, at + 20.0, None))
    return events


def broken(count: int) -> list[Event]:
    """Return the events of a large run that ends at its last step, which fails."""
    name, at_ms = f"step_{count - 1:04}", count * 1.0
    failed = [AttemptStarted(name, 1, at_ms), StepFailed(name, 1, at_ms + 20, ValueError("no"))]
    return [*large(count, count - 1), *failed, RunFinished(at_ms + 20, RunStatus.FAILED)]


@pytest.fixture(scope="session")
def broken_html() -> str:
    return to_html(broken(2_000))


IN_VIEW = """(of) => { const line = of.getBoundingClientRect();
  const box = of.closest(".scroll").getBoundingClientRect();
  return line.top >= box.top && line.bottom <= box.bottom; }"""


async def test_of_2000_steps_those_in_view_are_drawn(opened: Open, broken_html: str) -> None:
    assert len(broken_html.encode()) < 500_000
    page = await opened(broken_html)
    lines, rows = page.locator(".line.step"), page.locator("#steps-table tbody tr")

    assert await page.locator(".rows[open]").count() == 1  # not those that only passed
    await page.locator('.line.step[data-i="1999"]').wait_for()
    assert await lines.count() == 1  # the others of its tier share a line
    await page.locator(".fold summary").click()
    height = await page.locator(".chart").evaluate("(of) => of.scrollHeight")
    assert height == pytest.approx(500 * 26 + 5 * 25 + 66, abs=30)
    await page.locator("#gantt-scroll").evaluate("(of) => { of.scrollTop = of.scrollHeight; }")
    await page.locator('.line.step[data-i="1998"]').wait_for()
    assert await lines.count() < 200
    assert await rows.count() == 100
    await page.locator("#steps .scroll").evaluate("(of) => { of.scrollTop = of.scrollHeight; }")
    await page.locator('#steps-table tr[data-i="150"]').wait_for(state="attached")
    assert await page.evaluate("document.querySelectorAll('*').length") < 8_000


async def test_what_is_not_drawn_yet_is_found_and_linked(opened: Open, broken_html: str) -> None:
    page = await opened(broken_html, at="#step=step_1334")

    for query in ('.line.step[data-i="1334"]', '#steps-table tr[data-i="1334"]'):
        await page.locator(f"{query}.chosen").wait_for()
        assert await page.locator(query).evaluate(IN_VIEW)
    assert await page.locator("#one h3").inner_text() == "step_1334"
    assert await page.locator(".line.upstream").count() == 0  # in a tier that is closed
    assert await page.locator("#events-table tr.chosen").count() == 2
    await page.locator("#panel .needs a", has_text="step_0834").click()
    assert await page.locator("#one h3").inner_text() == "step_0834"
    assert await page.locator('.line.downstream[data-i="1334"]').count() == 1

    await page.locator("#find").fill("step_067")
    assert await page.locator("#steps-table tbody tr").count() == 10
    assert await page.locator(".line.step:visible").count() == 10
    await page.locator("#find").fill("")
    await page.locator("#find-status").select_option("failed")
    await page.keyboard.press("Escape")
    await page.locator("#event-text").fill("step_1998")
    assert await page.evaluate(
        "[...document.querySelectorAll('#events-table tbody tr')].map((row) => row.dataset.i)"
    ) == ["1998", "1998"]
    await page.locator("#steps-table thead button", has_text="Duration").click()
    await page.locator("#steps-table thead button", has_text="#").click()
    await page.locator("#steps-table thead button", has_text="#").click()
    assert await page.locator("#steps-table tbody tr").first.get_attribute("data-i") == "1999"


async def test_a_large_run_says_without_a_script_what_failed(
    opened: Open, broken_html: str
) -> None:
    static = await opened(broken_html, java_script_enabled=False)
    for query in (".line.step", "#steps-table tbody tr", "article"):
        assert await static.locator(query).count() == 1
    assert await static.locator(".tierhead").count() == 4 + 1
    assert "Of 2,000 steps, only those that failed" in await static.locator("#steps").inner_text()


async def test_without_a_script_all_of_200_steps_can_be_seen(opened: Open) -> None:
    from playwright.async_api import expect

    page = await opened(to_html(large(200, 200)), java_script_enabled=False)

    line = page.locator('.line.step[data-i="199"]')
    await line.scroll_into_view_if_needed()

    await expect(line).to_have_text(re.compile("step_0199"), use_inner_text=True)


async def test_an_update_of_a_large_run_keeps_what_is_drawn_and_scrolled(opened: Open) -> None:
    page = await opened(to_html(large(600, 300)))
    await page.locator("#steps-table thead button", has_text="Step").click()
    await page.locator("#steps-table thead button", has_text="Step").click()  # downwards
    boxes = {"#gantt-scroll": '.line.step[data-i="301"]', "#steps .scroll": "#steps-table tbody tr"}
    for box in boxes:
        await page.locator(box).evaluate("(of) => { of.scrollTop = 7_000; }")
    await page.locator(boxes["#gantt-scroll"]).wait_for()
    before = [await page.locator(box).evaluate("(of) => of.scrollTop") for box in boxes]

    await page.evaluate("(found) => asyncflow.update(found)", sections_of(large(600, 302)))

    assert [await page.locator(box).evaluate("(of) => of.scrollTop") for box in boxes] == before
    line = page.locator('.line.step[data-i="301"]')
    assert await line.locator(".symbol").get_attribute("aria-label") == "SUCCESS"
    numbers = await page.evaluate(
        "[...document.querySelectorAll('#steps-table tbody tr')].map((row) => +row.dataset.i)"
    )
    assert numbers[:3] == [599, 598, 597]


async def test_an_update_that_changes_a_whole_table_replaces_it(opened: Open) -> None:
    page = await opened(to_html(large(40, 10)))

    for done in (12, 40, 5):
        await page.evaluate("(found) => asyncflow.update(found)", sections_of(large(40, done)))
        assert await page.locator('#steps-table tr[data-s="success"]').count() == done
        assert await page.locator("#events-table tbody tr").count() == 1 + 2 * done


# Accessibility.


async def test_the_chart_violates_no_accessibility_rule(opened: Open, page_html: str) -> None:
    page = await opened(
        page_html, at="#step=fetch&item=33&zoom=3&from=0.2&closed=2&show=failed", width=390
    )

    assert await violations(page) == []
    await page.set_viewport_size({"width": 1280, "height": 900})
    assert await violations(page) == []
