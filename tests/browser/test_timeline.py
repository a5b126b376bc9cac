"""The timeline of a page in a real browser: it shows shares, and nothing covers anything."""

from __future__ import annotations

import io
from collections.abc import Awaitable, Callable
from itertools import pairwise
from typing import Any

import PIL.Image
import PIL.ImageChops
import pytest
from golden_run import GOLDEN
from mapped_run import mapped_run

from asyncflow import StepTimeoutError
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

pytestmark = pytest.mark.asyncio(loop_scope="session")  # the loop of the browser

Open = Callable[..., Awaitable[Any]]
Colour = tuple[int, int, int]


async def screenshot(page: Any, query: str) -> PIL.Image.Image:
    taken = await page.locator(query).first.screenshot(animations="disabled")
    return PIL.Image.open(io.BytesIO(taken)).convert("RGB")


async def colour_of(page: Any, name: str) -> Colour:
    """Return a colour of the page's theme, such as ``failed``."""
    text = await page.evaluate(
        "(name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`)", name
    )
    return (int(text[1:3], 16), int(text[3:5], 16), int(text[5:7], 16))


def share_of(picture: PIL.Image.Image, colour: Colour) -> float:
    """Return the share of the pixels that have about this colour."""
    pixels = picture.tobytes()
    colours = list(zip(pixels[::3], pixels[1::3], pixels[2::3], strict=True))
    distances = [max(abs(a - b) for a, b in zip(one, colour, strict=True)) for one in colours]
    return sum(each < 40 for each in distances) / len(distances)


# A mapped step.


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("retried", [False, True])
async def test_the_bar_of_a_mapped_step_shows_few_failures_as_a_small_share(
    opened: Open, scheme: str, retried: bool
) -> None:
    page = await opened(to_html(mapped_run(6, retried=retried)), color_scheme=scheme)

    bar = await screenshot(page, ".line.step .bar.items rect")
    failed = share_of(bar, await colour_of(page, "failed"))
    succeeded = share_of(bar, await colour_of(page, "success"))

    assert 0.002 < failed < 0.06
    assert succeeded > 0.7


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
    RunFinished(1000.0, "passed"),
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


@pytest.mark.parametrize("zooms", [0, 6])
@pytest.mark.parametrize("events", [RETRIES, GOLDEN], ids=["retries", "golden"])
async def test_nothing_covers_the_icon_of_an_attempt(
    opened: Open, events: list[Event], zooms: int
) -> None:
    page = await opened(to_html(events))
    for _ in range(zooms):
        await page.keyboard.press("+")

    assert await page.locator(".line use:visible").count() > 0
    assert await page.evaluate(COVERED) == []


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
        return chart.crop((4, 4, 298, chart.height - 16))  # without corners and scroll bar

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
                RunFinished(hour, "passed"),
            ]
        )
    )

    labels = await page.locator(".ticks text").all_text_contents()

    assert labels[0] == "0"
    assert all(label.endswith((" min", " h")) for label in labels[1:])


# On paper.


async def test_a_printed_page_counts_the_events_instead_of_listing_them(opened: Open) -> None:
    page = await opened(to_html(mapped_run(6, retried=True, items=400)))
    await page.emulate_media(media="print")

    assert not await page.locator("#events-table").is_visible()
    text = " ".join((await page.locator("#history").inner_text()).split())
    assert text == "Events 816 events, not printed"
    assert (await page.pdf()).count(b"/Type /Page\n") <= 3
