"""The timeline of a page in a real browser: it shows shares, and nothing covers anything."""

from __future__ import annotations

import io
import re
from collections.abc import Awaitable, Callable
from itertools import pairwise
from typing import Any

import PIL.Image
import PIL.ImageChops
import pytest
from browser.axe import violations
from golden_run import GOLDEN
from mapped_run import mapped_run
from resumed_run import RESUMED, crashed_often

from asyncflow import RunStatus, StepTimeoutError
from asyncflow._views.run_view import RunView
from asyncflow.events import (
    AttemptFailed,
    AttemptStarted,
    Event,
    RunFinished,
    RunStarted,
    StepSucceeded,
    ThreadAbandoned,
)
from asyncflow.html_report import to_html
from asyncflow.html_report._event_log import event_log
from asyncflow.html_report._page import sections

pytestmark = pytest.mark.asyncio(loop_scope="session")  # the loop of the browser

Open = Callable[..., Awaitable[Any]]
Colour = tuple[int, int, int]


async def screenshot(page: Any, query: str) -> PIL.Image.Image:
    taken = await page.locator(query).first.screenshot(animations="disabled")
    return PIL.Image.open(io.BytesIO(taken)).convert("RGB")


async def colour_of(page: Any, name: str) -> Colour:
    """Return a colour of the page's theme, such as ``failed``."""
    text = await page.evaluate(
        """(name) => { const box = document.createElement("i");
          box.style.color = `var(--${name})`;
          document.body.append(box);
          const { color } = getComputedStyle(box);
          box.remove();
          return color; }""",
        name,
    )
    red, green, blue = map(int, re.findall(r"\d+", text))
    return (red, green, blue)


def share_of(picture: PIL.Image.Image, colour: Colour) -> float:
    """Return the share of the pixels that have about this colour."""
    pixels = picture.tobytes()
    colours = list(zip(pixels[::3], pixels[1::3], pixels[2::3], strict=True))
    distances = [max(abs(a - b) for a, b in zip(one, colour, strict=True)) for one in colours]
    return sum(each < 40 for each in distances) / len(distances)


# A mapped step.


@pytest.mark.parametrize("retried", [False, True])
async def test_the_bar_of_a_mapped_step_shows_few_failures_as_a_small_share(
    opened: Open, retried: bool
) -> None:
    page = await opened(to_html(mapped_run(6, retried=retried)))

    for scheme in ("light", "dark"):
        await page.emulate_media(color_scheme=scheme)
        bar = await screenshot(page, ".line.step .bar.items rect")
        failed = share_of(bar, await colour_of(page, "failed"))
        succeeded = share_of(bar, await colour_of(page, "success"))
        assert failed == 0 if retried else 0.002 < failed < 0.06, scheme
        assert succeeded > 0.7, scheme


async def test_failed_attempts_of_items_have_a_pattern_not_just_a_colour(opened: Open) -> None:
    page = await opened(to_html(mapped_run(100, retried=False)))

    bar = (await screenshot(page, ".line.step .bar.items rect")).convert("L")

    bottom = [bar.getpixel((x, bar.height - 5)) for x in range(bar.width)]
    assert sum(abs(one - other) > 25 for one, other in pairwise(bottom)) > 40


# Icons.

RETRIES: list[Event] = [
    RunStarted("r", 0.0, {"load": (), "other": ()}),
    AttemptStarted("load", 1, 0.0),
    AttemptStarted("other", 1, 0.0),
    AttemptFailed("load", 1, 300.0, ValueError("no"), 1.0),
    AttemptStarted("load", 2, 301.0),
    ThreadAbandoned("load", 2, 600.0),
    AttemptFailed("load", 2, 600.0, StepTimeoutError("load", 2, 299.0, "attempt"), 1.0),
    AttemptStarted("load", 3, 601.0),
    AttemptFailed("load", 3, 603.0, ValueError("no"), 1.0),
    AttemptStarted("load", 4, 604.0),
    StepSucceeded("load", 4, 990.0, None),
    StepSucceeded("other", 1, 1000.0, None),
    RunFinished(1000.0, RunStatus.PASSED),
]

COVERED = """() => [...document.querySelectorAll(".line > svg")].flatMap((svg) => {
  const shapes = [...svg.querySelectorAll("rect, path, use, text")];
  const boxes = shapes.map((each) => each.getBoundingClientRect());
  return shapes.flatMap((icon, at) => icon.tagName !== "use" ? [] : shapes.slice(at + 1)
    .filter((each, more) => {
      const one = boxes[at], other = boxes[at + 1 + more];
      return other.width && one.width && one.left < other.right && other.left < one.right
        && one.top < other.bottom && other.top < one.bottom;
    })
    .map((each) => `${icon.getAttribute("href")} is below ${each.outerHTML}`));
})"""


@pytest.mark.parametrize("events", [RETRIES, GOLDEN], ids=["retries", "golden"])
async def test_nothing_covers_the_icon_of_an_attempt(opened: Open, events: list[Event]) -> None:
    page = await opened(to_html(events), width=390)

    for width, zooms in ((390, 0), (1280, 0), (1280, 6)):
        await page.set_viewport_size({"width": width, "height": 900})
        for _ in range(zooms):
            await page.keyboard.press("+")
        assert await page.locator(".line use:visible").count() > 0
        assert await page.evaluate(COVERED) == [], (width, zooms)


# Labels.


async def test_nothing_shows_below_the_labels_when_zoomed(opened: Open) -> None:
    events = mapped_run(6, retried=False)
    page = await opened(to_html(events))
    await page.locator("#gantt-scroll").scroll_into_view_if_needed()

    for _ in range(4):
        await page.keyboard.press("+")

    async def labels(left: int) -> PIL.Image.Image:
        await page.locator("#gantt-scroll").evaluate(
            "(of, left) => { of.scrollLeft = left; }", left
        )
        chart = await screenshot(page, "#gantt-scroll")
        return chart.crop((4, 42, 298, chart.height - 16))  # without the map and the scroll bar

    difference = PIL.ImageChops.difference(await labels(0), await labels(1_111))
    assert max(high for _, high in difference.getextrema()) < 10


async def test_the_axis_of_a_zoomed_timeline_calls_minutes_min(opened: Open) -> None:
    hour = 3_600_000.0
    page = await opened(
        to_html(
            [
                RunStarted("r", 0.0, {"long": ()}),
                AttemptStarted("long", 1, 0.0),
                StepSucceeded("long", 1, hour, None),
                RunFinished(hour, RunStatus.PASSED),
            ]
        )
    )

    labels = await page.locator(".ticks text").all_text_contents()

    assert labels[0] == "0"
    assert all(label.endswith((" min", " h")) for label in labels[1:])


# Resumed runs.


async def test_earlier_attempts_are_fainter_in_greyscale_and_outlined(opened: Open) -> None:
    page = await opened(to_html(RESUMED))

    def contrast(picture: PIL.Image.Image, at: float, ground: int) -> int:
        shade = picture.getpixel((int(picture.width * 0.5), int(picture.height * at)))
        assert isinstance(shade, int)
        return abs(shade - ground)

    for scheme in ("light", "dark"):
        await page.emulate_media(color_scheme=scheme)
        ground = (await colour_of(page, "card"))[0]
        earlier = (await screenshot(page, '.line.step[data-i="0"] .bar rect')).convert("L")
        now = (await screenshot(page, '.line.step[data-i="3"] .bar rect')).convert("L")
        inside = contrast(earlier, 0.5, ground)
        assert inside < 0.6 * contrast(now, 0.5, ground), scheme
        # The row may begin within a pixel.
        edge = max(contrast(earlier, row / earlier.height, ground) for row in range(3))
        assert edge > 1.3 * inside, scheme


async def test_a_pause_of_days_is_a_narrow_gap_with_its_length(opened: Open) -> None:
    page = await opened(to_html(RESUMED))

    gap = await page.locator(".marks rect").bounding_box()
    label = page.locator(".pauses svg text")

    assert 8 < gap["width"] < 24
    assert await label.text_content() == "3 d 0 h"
    box = await label.bounding_box()
    assert box["x"] < gap["x"] < gap["x"] + gap["width"] < box["x"] + box["width"]
    for bar in await page.locator(".line.step .bar rect").all():
        one = await bar.bounding_box()
        assert one["x"] + one["width"] <= gap["x"] + 1 or one["x"] >= gap["x"] + gap["width"] - 1
    await page.locator(".marks rect").hover()
    assert (await page.locator("#tip").inner_text()).startswith("paused for 3 d 0 h;")


async def test_the_ticks_of_an_axis_with_a_gap_are_where_the_bars_are(opened: Open) -> None:
    page = await opened(to_html(RESUMED))
    await assert_ticks_match_the_bars(page)

    for _ in range(4):
        await page.keyboard.press("+")

    await assert_ticks_match_the_bars(page)


async def assert_ticks_match_the_bars(page: Any) -> None:
    await page.evaluate("document.getElementById('gantt-scroll').scrollLeft = 1e6")
    await page.evaluate(
        "new Promise((drawn) => setTimeout(() => requestAnimationFrame(drawn), 50))"
    )

    places = await page.evaluate(
        """() => {
          const left = (of) => of.getBoundingClientRect().left;
          const bar = (of) => document.querySelector(`.line.step[data-i="3"] ${of} rect`);
          const box = bar(".bar").getBoundingClientRect();
          const texts = [...document.querySelectorAll(".ticks text")];
          const lines = [...document.querySelectorAll(".grid line")];
          return [box.left, box.right, ...lines.map((line, at) =>
            [parseFloat(texts[at].textContent), left(line)])];
        }"""
    )

    start, end, *ticks = places  # of the bar from 1.7 s to 2.0 s
    for seconds, left in ticks:
        if 1.2 < seconds < 10:  # in seconds, after the pause
            assert left == pytest.approx(end - (2.0 - seconds) / 0.3 * (end - start), abs=2)
    assert any(1.2 < seconds < 10 for seconds, _ in ticks)


async def test_an_attempt_of_each_segment_can_be_selected_and_linked(opened: Open) -> None:
    page = await opened(to_html(RESUMED), at="#step=load&attempt=2")
    chosen = page.locator(".bar.chosen")
    assert "earlier" in await chosen.get_attribute("class")
    assert await page.locator("#events-table tr.chosen").count() == 2

    await page.keyboard.press("ArrowRight")

    assert await page.evaluate("location.hash") == "#step=load&attempt=2.1"
    assert "earlier" not in await chosen.get_attribute("class")
    rows = await page.locator("#events-table tr.chosen").all_inner_texts()
    assert [row.split("\t")[1] for row in rows] == ["AttemptStarted", "StepSucceeded"]
    assert await page.locator("#details .selected tr.chosen").count() == 1
    await page.reload()
    assert await chosen.get_attribute("data-a") == "2.1"
    page.requests.clear()


async def test_the_page_of_a_resumed_run_violates_no_accessibility_rule(opened: Open) -> None:
    page = await opened(to_html(RESUMED), at="#step=load&attempt=2")
    await page.evaluate("for (const each of document.querySelectorAll('details')) each.open = true")

    assert await violations(page) == []


async def test_a_live_page_of_a_run_that_resumes_gets_the_gap_and_keeps_its_zoom(
    opened: Open,
) -> None:
    page = await opened(to_html(RESUMED[:11]), at="#step=load&attempt=2")
    for _ in range(4):
        await page.keyboard.press("+")
    assert not await page.locator(".marks").count()
    view = RunView(RESUMED)

    found = sections(view, event_log(RESUMED), now_ms=view.at_ms)
    await page.evaluate("(found) => asyncflow.update(found)", found)

    assert await page.locator(".marks rect").count() == 1
    assert "zoomed" in await page.locator(".chart").get_attribute("class")
    assert await page.locator(".bar.chosen").get_attribute("class") == (
        "bar attempt e-failed earlier chosen"
    )
    assert "With the pause" in await page.locator("#header").inner_text()


async def test_many_segments_stay_readable(opened: Open) -> None:
    page = await opened(to_html(crashed_often(60)))

    for width in (1440, 1024, 390):
        await page.set_viewport_size({"width": width, "height": 900})
        assert await page.locator(".pauses svg text").filter(visible=True).count() == 0
        assert await page.locator('.line.step[data-i="1"] .bar rect').count() >= 61
        assert await page.evaluate("document.documentElement.scrollWidth") <= width


# The usual end of a step.


async def test_the_usual_end_of_a_step_is_marked_and_told(opened: Open) -> None:
    events: list[Event] = [RunStarted("r", 0.0, {"a": ()}), AttemptStarted("a", 1, 0.0)]
    events += [StepSucceeded("a", 1, 1_000.0, None), RunFinished(1_000.0, RunStatus.PASSED)]
    page = await opened(to_html(events, usual_ms={"a": 250.0}), at="#step=a")

    mark = await page.locator(".line [href='#i-usual']").bounding_box()
    track = await page.locator(".line.step > svg").bounding_box()
    assert mark["x"] + mark["width"] / 2 == pytest.approx(track["x"] + track["width"] / 4, abs=1)
    await page.mouse.move(mark["x"] + 1, mark["y"] + 10)
    assert await page.locator("#tip").inner_text() == "usually 250 ms"
    assert "1.0 s, usually 250 ms" in await page.locator("#details").inner_text()
