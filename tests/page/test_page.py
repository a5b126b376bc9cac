"""The page of a run is complete, self-contained and inert."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import html.parser
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from golden_run import EVENTS_BEFORE_CRASH, GOLDEN, HOSTILE, LONG, golden_report
from mapped_run import mapped_run
from page.said import NOTES
from resumed_run import RESUMED, crashed_often

from asyncflow import (
    RunReport,
    RunStatus,
    WorkflowStep,
    current_step,
    run_pipeline,
)
from asyncflow._views.notes import RunNotes
from asyncflow._views.run_view import RunView
from asyncflow.events import (
    AttemptBegan,
    AttemptFailed,
    AttemptStarted,
    Event,
    MapStarted,
    RunFinished,
    RunInterrupted,
    RunResumed,
    RunStarted,
    StepCancelled,
    StepFailed,
    StepSkipped,
    StepSucceeded,
)
from asyncflow.html_report import to_html
from asyncflow.html_report._event_log import event_log
from asyncflow.html_report._page import Live, details, page, page_policy, sections
from asyncflow.html_report._page_model import PageContext
from asyncflow.testing import run_in_virtual_time

VOID = {"meta", "input", "wbr", "br", "link", "img"}
BLOCKS = {"h1", "h2", "h3", "h4", "p", "div", "dt", "dd", "td", "th", "tr", "li", "text", "title"}
BLOCKS |= {"caption", "summary", "pre", "article", "section", "svg", "label", "option"}


class Parsed(html.parser.HTMLParser):
    """The elements and the text of a page, whose tags must be balanced."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), (tag, attrs)
        self.elements.append((tag, dict(attrs)))
        if tag in BLOCKS:
            self.texts.append(" ")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        if tag in BLOCKS:
            self.texts.append(" ")

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("style", "script"):
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.texts).split())

    def tags(self, *names: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.elements if tag in names]


def started(*names: str, **more: object) -> RunStarted:
    return RunStarted("r1", 1_000.0, dict.fromkeys(names, ()), **more)  # type: ignore[arg-type]


def parsed_section(name: str, events: list[Event]) -> Parsed:
    view = RunView(events)
    return Parsed(sections(view, event_log(events), now_ms=view.at_ms)[name])


def section(name: str, events: list[Event]) -> str:
    return parsed_section(name, events).text


@pytest.fixture(scope="module")
def golden() -> str:
    return to_html(GOLDEN)


# One self-contained file.


@pytest.mark.process
def test_the_same_events_give_the_same_page_in_another_process(tmp_path: Path) -> None:
    script = (
        "import sys; sys.path[:0] = ['.', 'tests']\n"
        "from golden_run import GOLDEN\n"
        "from asyncflow.html_report import to_html\n"
        "sys.stdout.buffer.write(to_html(GOLDEN).encode())"
    )

    pages = {
        subprocess.run(
            [sys.executable, "-c", script],
            cwd=Path(__file__).parents[2],
            check=True,
            capture_output=True,
            env={"PYTHONHASHSEED": seed, "PATH": ""},
        ).stdout
        for seed in ("1", "2")
    }

    assert len(pages) == 1


def test_a_page_is_well_formed_and_refers_to_nothing_but_itself(golden: str) -> None:
    parsed = Parsed(golden)
    ids = Counter(attributes["id"] for _, attributes in parsed.elements if "id" in attributes)

    assert ids.most_common(1)[0][1] == 1
    assert {(each.get("href") or "")[1:] for each in parsed.tags("a", "use")} <= set(ids)
    for tag, attributes in parsed.elements:
        for name in ("src", "href", "action", "data", "poster", "srcset", "ping"):
            assert (attributes.get(name) or "#").startswith("#"), (tag, attributes)
        assert not any(name.startswith("on") or name == "style" for name in attributes)
    style = re.search(r"<style>(.*?)</style>", golden, re.DOTALL)
    assert style is not None
    assert set(re.findall(r"url\((.)|(@import)", style[1])) == {("#", "")}


def test_the_security_policy_allows_only_the_style_and_script_of_the_page(
    golden: str,
) -> None:
    (policy,) = [
        each["content"]
        for each in Parsed(golden).tags("meta")
        if each.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy is not None
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))

    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    for tag in ("style", "script"):
        (text,) = re.findall(rf"<{tag}>(.*?)</{tag}>", golden, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert rules[f"{tag}-src"] == f"'sha256-{digest}'"
    assert rules["img-src"] == "data:"
    assert "unsafe" not in policy


def test_a_live_page_may_connect_only_to_its_origin() -> None:
    policy = page_policy(is_live=True)

    assert "connect-src 'self'" in policy
    assert "img-src 'self' data:;" in policy
    assert "script-src 'self' 'sha256-" in policy
    assert "unsafe" not in policy


# The content.


def test_the_header_shows_the_state_of_the_run() -> None:
    text = section("header", GOLDEN)

    assert "nightly import ✗ FAILED Duration 5.0 s" in text
    assert "Steps ✓ 7 succeeded ✗ 1 failed ■ 1 cancelled ⊘ 3 skipped" in text
    assert "Run nightly-2026-01-01 Copy Started 2026-01-01 00:00:00 UTC" in text
    assert "Resumed 1 time, last 2026-01-01 01:00:00 UTC" in text
    assert text.count("2026-01-01 00:00:00") == 1


def test_the_first_failure_is_shown_first_with_its_traceback() -> None:
    text = section("failure", GOLDEN)

    assert f"First failure: {HOSTILE} in attempt 2 of 2, 4.9 s after the start" in text
    assert "Traceback (most recent call last)" in text
    assert "ValueError: </pre><script>alert('error')</script> & more in a second line" in text


def test_what_the_first_failure_has_stopped_is_said_with_it_and_not_again() -> None:
    text = section("failure", GOLDEN)

    assert "3 steps were skipped or cancelled because of it ■fetch ⊘load ⊘notify" in text
    assert "Stopped early" not in section("header", GOLDEN)
    for name in ("gantt", "steps"):
        assert f"because of {HOSTILE}" not in section(name, GOLDEN), name
    assert f"skipped because of {HOSTILE}" in section("details", GOLDEN)


def test_what_another_failure_has_stopped_names_that() -> None:
    events = [
        RunStarted("r", 0.0, {"a": (), "b": (), "c": ("a",), "d": ("b",)}),
        *[AttemptStarted(name, 1, 0.0) for name in "ab"],
        *[StepFailed(name, 1, at, OSError("x")) for at, name in enumerate("ab", 1)],
        *[StepSkipped(name, 3.0, "a dependency failed") for name in "cd"],
        RunFinished(4.0, RunStatus.FAILED, "it was asked to stop"),
    ]

    assert "Stopped early because it was asked to stop" in section("header", events)
    failure = section("failure", events)
    assert "2 steps were skipped or cancelled because of a failure ⊘c ⊘d because of b" in failure
    assert "because of b" in section("gantt", events)
    assert section("steps", events).count("skipped because of") == 1


def test_a_failure_before_any_attempt_or_of_items_says_so() -> None:
    events = [
        started("a"),
        StepFailed("a", 0, 5.0, ValueError("when")),
    ]
    mapped = [
        started("a"),
        MapStarted("a", 0.0, 3),
        AttemptStarted("a", 1, 0.0, item=0),
        StepFailed("a", 1, 1.0, ValueError("item"), item=0),
        StepFailed("a", 0, 2.0, ValueError("items")),
    ]

    assert "a before its first attempt ValueError: when" in section("failure", events)
    assert "a in 1 of its 3 items, 2 ms after" in section("failure", mapped)


def test_long_lists_of_failures_and_skipped_steps_are_capped() -> None:
    names = [f"s{number}" for number in range(300)]
    run = RunStarted("r", 0.0, {"a": (), **dict.fromkeys(names, ("a",))})
    events: list[Event] = [run, StepFailed("a", 0, 1.0, ValueError("no"))]
    events += [StepSkipped(name, 1.0, "a failed") for name in names]
    many: list[Event] = [started(*names)]
    many += [StepFailed(name, 0, 1.0, ValueError("no")) for name in names]

    skipped, failed = section("failure", events), section("failure", many)

    assert "300 steps were skipped or cancelled" in skipped
    assert "and 100 more" in skipped
    assert "299 more failures" in failed
    assert "and 249 more" in failed


def test_long_lists_of_dependencies_and_dependents_are_capped() -> None:
    few = {f"s{n}": () for n in range(80)}
    many = {f"t{n}": ("s0",) for n in range(70)}
    events: list[Event] = [RunStarted("r", 0.0, {**few, "last": tuple(few), **many})]
    view = RunView(events)

    for step, words in (("last", "s59 and 20 more"), ("s0", "t58 and 11 more")):
        assert words in re.sub("<[^>]*>", "", details(view, step, now_ms=0.0))


def test_each_step_has_a_row_in_the_table_with_its_figures() -> None:
    text = section("steps", GOLDEN)

    assert "2 rates ✓ SUCCESS 1 3 of 3 0.6 ms 2.6 s 100 ms reused" in text
    assert f"6 {LONG} ✓ SUCCESS 2 2 of 2 2.6 s 1.9 s –" in text
    assert "4 archive ⊘ SKIPPED 1 – – – – its condition was false; reused" in text
    assert "7 fetch ■ CANCELLED 3 4 4.0 s 900 ms 198 ms 8 " in text


def test_the_timeline_marks_and_describes_each_attempt() -> None:
    parsed = parsed_section("gantt", GOLDEN)

    kinds = Counter(
        (each.get("class") or "").removesuffix(" earlier")
        for each in parsed.tags("g")
        if (each.get("class") or "").startswith("bar") and each.get("data-a")
    )
    assert kinds["bar attempt e-crashed"] == 1
    assert kinds["bar attempt e-timed-out"] == 1
    assert kinds["bar attempt e-failed"] == 4
    assert kinds["bar items e-cancelled"] == 1
    assert kinds["bar blocked"] == 1
    assert kinds["bar queue"] == 4
    assert kinds["bar backoff"] == 4
    used = Counter(each["href"] for each in parsed.tags("use"))
    # The legend has them too; a thread that keeps running has timed out.
    assert used["#i-crashed"] == used["#i-abandoned"] == 2
    assert used["#i-timed-out"] == 3
    assert "paused for 59 min 56 s; the run was resumed here" in parsed.text
    assert f"Critical path: rates → {LONG} → {HOSTILE} → fetch → tidy" in parsed.text
    for bar in (
        "attempt 1 failed: 399 ms, from 0.6 ms to 400 ms",
        "backoff of 1.0 s after attempt 2",
        "queued for 100 ms before attempt 2",
        "blocked the event loop for 180 ms at validate.py:12 in check",
        "attempt 1 timed out, its thread kept running",
    ):
        assert bar in parsed.text, bar


def test_the_graph_shows_each_status_as_symbol_word_and_class() -> None:
    parsed = parsed_section("dag", GOLDEN)

    classes = Counter((each.get("class") or "").split()[1] for each in parsed.tags("a"))
    assert classes == {"success": 7, "failed": 1, "skipped": 3, "cancelled": 1}
    assert "■ fetch CANCELLED · 900 ms · 4 items" in parsed.text
    assert "✓ rates SUCCESS · 2.6 s · 3 attempts" in parsed.text
    edges = [each for each in parsed.tags("path") if "edge" in (each.get("class") or "")]
    assert len(edges) == sum(map(len, RunView(GOLDEN).edges.values()))


def test_the_details_of_a_step_show_each_attempt_and_the_output() -> None:
    text = section("details", GOLDEN)

    assert "1 failed 0.6 ms 399 ms 500 ms ConnectionError: the server of the rates closed" in text
    assert "Output Copy { 'rows': 3, 'html': \"<script>alert('output')</script>\" }" in text
    assert "Run again because it had not finished." in text
    assert "1 crashed 2.6 s 1.4 s –" in text
    assert re.search(r"\[2\] ■ cancelled 898 ms step .* fail_fast is on; StepTimeoutError", text)
    assert "[0] ✓ succeeded 198 ms 'page 0'" in text


def test_a_step_or_an_item_that_fell_back_says_so_everywhere() -> None:
    gone = OSError("gone")
    events = [
        started("a", "m"),
        *(AttemptStarted("a", 1, 0.0), StepSucceeded("a", 1, 5.0, 7, error=gone)),
        MapStarted("m", 5.0, 2),
        *(AttemptStarted("m", 1, 5.0, item=0), AttemptStarted("m", 1, 5.0, item=1)),
        StepSucceeded("m", 1, 6.0, "x", 0),
        StepSucceeded("m", 1, 7.0, "y", 1, error=gone),
        StepSucceeded("m", 0, 7.0, ["x", "y"]),
        RunFinished(8.0, RunStatus.PASSED),
    ]

    assert "fell back: OSError: gone" in section("steps", events)
    assert "1 of 2 items fell back" in section("steps", events)
    details = section("details", events)
    assert "Fell back from OSError: gone" in details
    assert "1 failed" in details
    assert "a failed and fell back: OSError: gone" in section("events", events)
    log = [each.text for each in event_log(events).events]
    assert log.count("failed and fell back: OSError: gone") == 2


def test_inputs_are_shown_and_secret_ones_are_not() -> None:
    assert section("data", GOLDEN) == (
        "url 'https://example.org/?q=<b>&x=1' password redacted: it is secret"
    )
    assert section("data", [started("a")]) == "The run has no inputs."


def test_each_event_is_listed_with_its_description() -> None:
    parsed = parsed_section("events", GOLDEN)

    rows = [each for each in parsed.tags("tr") if "data-ms" in each]
    assert [float(each["data-ms"] or "") for each in rows] == [
        getattr(event, "at_ms", 0.0) for event in GOLDEN
    ]
    assert "1.4 s AttemptFailed rates attempt 2 failed, retrying in 1.0 s" in parsed.text
    assert "4.2 s StepSucceeded fetch[0] succeeded" in parsed.text


def test_every_prefix_of_the_events_has_a_page() -> None:
    context = PageContext(RunNotes(NOTES))
    for count in range(1, len(GOLDEN) + 1):
        view = RunView(GOLDEN[:count])
        found = sections(view, event_log(GOLDEN[:count]), context, now_ms=view.at_ms + 10)
        Parsed("".join(found.values()))


def test_a_page_without_events_is_refused() -> None:
    with pytest.raises(ValueError, match="a page needs the events of a run, from its first one"):
        to_html([])


# Resumed runs.


def test_the_header_of_a_resumed_run_shows_its_duration_without_and_with_the_pause() -> None:
    assert "Duration 2.0 s With the pause 3 d 0 h, paused 3 d 0 h" in section("header", RESUMED)
    assert "Running for 500 ms With pauses 3 min 0 s, paused 3 min 0 s" in section(
        "header", crashed_often(3)[:-1]
    )
    assert "With" not in section("header", RESUMED[:11])


def test_attempts_before_a_resumption_are_drawn_as_earlier_ones() -> None:
    parsed = parsed_section("gantt", RESUMED)

    bars = [
        (each["class"], each["data-a"])
        for each in parsed.tags("g")
        if (each.get("class") or "").startswith("bar attempt")
    ]
    assert bars == [
        ("bar attempt e-succeeded earlier", "1"),  # extract
        ("bar attempt e-failed earlier", "1"),  # load
        ("bar attempt e-failed earlier", "2"),
        ("bar attempt e-succeeded", "2.1"),
        ("bar attempt e-succeeded earlier", "1"),  # alert
        ("bar attempt e-succeeded", "2.1"),  # publish
    ]
    assert "attempt 2 failed: 300 ms, from 700 ms to 1.0 s, before the run was resumed" in (
        parsed.text
    )
    assert "Pause3 d 0 h 3 d 0 h Tier 1" in parsed.text
    assert "paused for 3 d 0 h; the run was resumed here, 2026-01-04 00:00:01 UTC" in parsed.text
    assert parsed.text.count("before the run was resumed") == 6  # five bars and the legend


def test_the_details_list_all_attempts_by_segment_with_their_old_errors() -> None:
    text = section("details", RESUMED)

    assert (
        "# Ended Started Took Backoff Segment 1, 2026-01-01 00:00:00 UTC, one:11 "
        "1 failed 400 ms 200 ms 100 ms TimeoutError: no connection Traceback"
    ) in text
    assert (
        "2 failed 700 ms 300 ms – ConnectionError: the database is down Traceback "
        "Copy Traceback (most recent call last)"
    ) in text
    assert re.search(r"Segment 2, 2026-01-04 00:00:01 UTC(, \S+)? 1 succeeded 1.2 s", text)
    assert "Attempts 3 (2 earlier)" in text


def test_a_step_with_many_segments_stays_readable() -> None:
    events = crashed_often(60)
    text = section("details", events)

    assert "11 more attempts are not listed, those that succeeded first of all." in text
    classes = [each.get("class") for each in parsed_section("gantt", events).tags("div")]
    assert "line pauses many" in classes  # their labels show only when zoomed in


def test_items_of_earlier_segments_keep_their_errors() -> None:
    first = mapped_run(6, retried=False)
    resumed = RunResumed("r", 2000.0, 9.0, {"fetch": ()}, {}, unfinished={"fetch": "it had failed"})
    again: list[Event] = [
        MapStarted("fetch", 2000.0, 1),
        AttemptStarted("fetch", 1, 2000.0, item=0),
    ]
    events = [*first, resumed, *again]

    details, gantt = section("details", events), parsed_section("gantt", events)

    assert "[0] 1 failed 0 ms 20 ms – ConnectionError: reset by peer Traceback" in details
    assert details.count("1 failed") == 6
    assert "194 more attempts are not listed, those that succeeded first of all." in details
    assert "200 attempts: 194 succeeded, 6 failed, before the run was resumed" in gantt.text
    kinds = [each.get("class") or "" for each in gantt.tags("g")]
    assert [each for each in kinds if "items" in each] == [
        "bar items earlier",
        "bar items e-running",
    ]


# No active content and no secrets.


def structure_of(parsed: Parsed) -> list[tuple[str, list[str]]]:
    """Return the elements and their attributes, except those that wrap or truncate a name."""
    return [
        (tag, sorted(set(each) - {"title"}))
        for tag, each in parsed.elements
        if tag not in ("wbr", "text", "title") and (each or tag != "span")
    ]


@pytest.mark.parametrize(
    "text",
    [
        "</style></script><img src=x onerror=alert(1)>",
        '" onmouseover="alert(1)" x=\'',
        "{{ 7 * 7 }}{% raw %}<!--",
        "a\nb\u202e\x00\ud800",
    ],
)
def test_hostile_text_does_not_change_the_structure_of_the_page(text: str) -> None:
    events = [
        RunStarted(text, 0.0, {text: (), "z": (text,)}, text, inputs={text: text}),
        AttemptStarted(text, 1, 0.0),
        StepFailed(text, 1, 1.0, ValueError(text)),
        StepSkipped("z", 1.0, text),
        RunFinished(2.0, RunStatus.FAILED, text),
    ]
    plain = [
        RunStarted("t", 0.0, {"t": (), "z": ("t",)}, "t", inputs={"t": "t"}),
        AttemptStarted("t", 1, 0.0),
        StepFailed("t", 1, 1.0, ValueError("t")),
        StepSkipped("z", 1.0, "t"),
        RunFinished(2.0, RunStatus.FAILED, "t"),
    ]

    found = Parsed(to_html(events))

    found.text.encode()
    assert structure_of(found) == structure_of(Parsed(to_html(plain)))


# Large runs.


def run_of(count: int, output: object = None, width: int = 10) -> list[Event]:
    names = [f"step_number_{number:05}" for number in range(count)]
    dependencies = {
        name: tuple(names[max(at - width, 0) : at - at % width][-2:] if at >= width else ())
        for at, name in enumerate(names)
    }
    events: list[Event] = [RunStarted("r", 0.0, dependencies)]
    for at, name in enumerate(names):
        begin = float(at // width * 100)
        events.append(AttemptStarted(name, 1, begin, 3.0))
        events.append(AttemptFailed(name, 1, begin + 10, ConnectionError("reset"), 20.0))
        events.append(AttemptStarted(name, 2, begin + 30))
        events.append(StepSucceeded(name, 2, begin + 90, output))
    return [*events, RunFinished(count * 100.0 / width, RunStatus.PASSED)]


@pytest.mark.parametrize(
    "output", [{"漢<": ["漢" * 50] * 1_000}, list(range(10**5))], ids=["wide text", "many numbers"]
)
def test_a_page_has_the_beginning_of_any_output(output: object) -> None:
    events = run_of(60, output)
    assert isinstance(events[0], RunStarted)
    usual_ms = dict.fromkeys(events[0].dependencies, 50.0)

    assert len(to_html(events, usual_ms=usual_ms).encode()) < 440_000


def long_error(message: str) -> ValueError:
    def fail(left: int) -> None:
        if left:
            fail(left - 1)
        raise ValueError(message)

    try:
        fail(100)
    except ValueError as error:
        return error
    raise AssertionError


def run_of_failures(message: str, *, segments: int = 1, attempts: int = 1) -> list[Event]:
    """Return the events of a run in which all attempts of 60 steps fail."""
    names = [f"step_number_{number:05}" for number in range(60)]
    edges: dict[str, tuple[str, ...]] = dict.fromkeys(names, ())
    events: list[Event] = [started(*names)]
    for segment in range(segments):
        at_ms = segment * 20.0
        if segment:
            why = dict.fromkeys(names, "it had failed")
            wall_time = 1_000.0 + 99 * segment
            events.append(
                RunResumed("r1", at_ms, wall_time, edges, {}, unfinished=why, afresh=True)
            )
        for name in names:
            for number in range(1, attempts):
                error = long_error(message)
                events.append(AttemptStarted(name, number, at_ms))
                events.append(AttemptFailed(name, number, at_ms + 1, error, 1.0))
            events.append(AttemptStarted(name, attempts, at_ms + 9))
            events.append(StepFailed(name, attempts, at_ms + 15, long_error(message)))
        events.append(RunFinished(at_ms + 20.0, RunStatus.FAILED))
    return events


@pytest.mark.parametrize(
    ("message", "segments", "attempts"),
    [("漢" * 5_000, 1, 1), ("<&>\"'" * 1_000, 2, 2)],
    ids=["one attempt", "two segments of two"],
)
def test_a_page_has_as_much_of_each_failure_however_many_there_are(
    message: str, segments: int, attempts: int
) -> None:
    events = run_of_failures(message, segments=segments, attempts=attempts)

    more = 60 * (segments * attempts - 1)
    usual_ms = {event.step: 5.0 for event in events if isinstance(event, StepFailed)}
    assert len(to_html(events, usual_ms=usual_ms).encode()) < 700_000 + 1_400 * more


@pytest.mark.exhaustive
def test_a_page_of_thousands_of_steps_says_what_it_omits() -> None:
    text = Parsed(to_html(run_of(2_500, width=50))).text

    assert "The graph is not drawn, because 2,500 steps are too many to read." in text
    assert "7,002 events are left out here, because a page lists at most 3,000." in text
    assert "2,500 succeeded" in text
    assert "0 of 2,500 steps have details here: those that did not succeed." in text
    assert "step_number_02499" in text


def test_many_items_are_capped_with_the_failed_ones_first() -> None:
    events: list[Event] = [started("a"), MapStarted("a", 0.0, 1_000)]
    for number in range(1_000):
        events.append(AttemptStarted("a", 1, 0.0, item=number))
        if number % 100 == 99:
            events.append(StepFailed("a", 1, 5.0, ValueError("no"), item=number))
        else:
            events.append(StepSucceeded("a", 1, 5.0, number, item=number))
    events.append(StepFailed("a", 0, 6.0, ValueError("items failed")))

    view = RunView(events)
    found = sections(view, event_log(events), now_ms=view.at_ms)

    gantt, details = Parsed(found["gantt"]).text, Parsed(found["details"]).text
    assert "1,000 items: ✓ 990 ✗ 10 show 30" in gantt
    for text in (gantt, details):
        assert "[999]" in text
        assert "[19]" in text
        assert "[20]" not in text
    assert "30 of 1000 items that have begun are listed" in details


# Pages of reports.


async def test_the_page_of_a_report_read_from_json_shows_no_traceback_twice() -> None:
    async def fail() -> None:
        raise ValueError("boom")

    report = await run_pipeline([WorkflowStep("a", fail, max_retries=2)])
    back = RunReport.from_json(report.to_json())

    tracebacks = [each.to_html().count("Traceback (most recent") for each in (report, back)]

    assert tracebacks[0] == tracebacks[1] > 0


@pytest.mark.parametrize("count", [len(GOLDEN), EVENTS_BEFORE_CRASH])
def test_the_page_of_a_report_lists_the_events_that_happened(count: int) -> None:
    listed = event_log([*golden_report(count).events()]).events

    assert listed == event_log(GOLDEN[:count]).events


def test_the_page_of_a_dead_run_says_that_nothing_runs() -> None:
    html = to_html(GOLDEN[:EVENTS_BEFORE_CRASH], orphaned=True)
    alive = to_html(GOLDEN[:EVENTS_BEFORE_CRASH])

    style = html[html.index("<style") : html.index("</style>")]
    fills = {*re.findall(r'class="(f-[a-z-]+)"', html), *re.findall(r'class="(f-[a-z-]+)"', alive)}
    assert [each for each in fills if not re.search(rf"\.{each}[ ,{{]", style)] == []
    head, head_alive = (re.search(r"(?s)<header.*?</header>", page)[0] for page in (html, alive))  # type: ignore[index]
    assert 'class="f-orphaned"' in head
    assert " 1 orphaned" in Parsed(head).text
    assert " 1 running" in Parsed(head_alive).text


def test_the_page_of_a_report_is_that_of_the_events_of_its_run() -> None:
    def steps() -> list[WorkflowStep]:
        async def numbers() -> list[int]:
            return [1, 2, 3]

        async def double(numbers: int) -> int:
            await asyncio.sleep(numbers / 100)
            if current_step().attempt < numbers:
                raise ValueError(numbers)
            return 2 * numbers

        async def hang() -> None:
            await asyncio.Event().wait()

        return [
            WorkflowStep("numbers", numbers),
            WorkflowStep("double", double, ["numbers"], map_over="numbers", max_retries=2),
            WorkflowStep("token", numbers, secret=True),
            WorkflowStep("never", numbers, when=lambda: False),
            WorkflowStep("hang", hang, timeout_ms=5_000),
            WorkflowStep("after", numbers, ["hang"]),
            WorkflowStep("tidy", numbers, run_if="always"),
        ]

    def unlike(html: str) -> str:
        """Leave out what no two runs have in common."""
        return re.sub(r"<time.*?</time>|0x\w+|\d{13}\.\d+", "", html)

    events: list[Event] = []
    observed = run_pipeline(steps(), run_id="r", observers=[events.append])
    told = run_in_virtual_time(observed)
    quiet = run_in_virtual_time(run_pipeline(steps(), run_id="r"))

    assert [*told.events()] == events
    page_of_quiet, page_of_events = unlike(quiet.to_html()), unlike(to_html(events))
    assert page_of_quiet == page_of_events


def test_a_page_says_where_a_step_ran() -> None:
    view = RunView(
        [
            RunStarted("r", 0.0, {"a": (), "m": ("a",), "b": ()}),
            AttemptStarted("a", 1, 0.0, engine="dask"),
            AttemptStarted("b", 1, 0.0, engine="<ray>"),
            AttemptBegan("a", 1, 20.0, "dask", "w1"),
            StepSucceeded("a", 1, 50.0, [1]),
            MapStarted("m", 50.0, 1),
            AttemptStarted("m", 1, 50.0, item=0, engine="dask"),
            AttemptBegan("m", 1, 60.0, "dask", "w2", 0),
            StepSucceeded("m", 1, 70.0, None, 0),
            StepSucceeded("m", 0, 70.0, [None]),
        ]
    )
    parsed = Parsed("".join(sections(view, event_log([]), now_ms=80.0).values()))

    assert parsed.text.count("Engine dask") == 2
    assert "Engine <ray>" in parsed.text
    assert "Worker w1" in parsed.text
    assert "queued for 80 ms before attempt 1: it waits for <ray>" in parsed.text
    assert "attempt 1 succeeded on dask, worker w1: 30 ms" in parsed.text


def test_a_missing_jinja2_is_reported_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    for module in ("html_report", "html_report._page", "html_report._templates"):
        monkeypatch.delitem(sys.modules, f"asyncflow.{module}")

    with pytest.raises(ImportError, match=r"pip install 'asyncflow-tiers\[report\]'"):
        RunReport("r", [], total_duration_ms=0.0, wall_time=0.0).to_html()


# Live pages.


def test_a_live_page_has_the_urls_for_its_script() -> None:
    view = RunView(GOLDEN[:EVENTS_BEFORE_CRASH])
    live = Live(*[f"/{name}?a=1&b=2" for name in Live._fields])

    parsed = Parsed(
        page(view, event_log(GOLDEN[:EVENTS_BEFORE_CRASH]), now_ms=view.at_ms, live=live)
    )

    (found,) = [each for _, each in parsed.elements if each.get("id") == "live"]
    for name in ("events", "cancel", "resume"):
        assert found[f"data-{name}-url"] == f"/{name}?a=1&b=2"
    assert {"src": "/script?a=1&b=2", "defer": None} in parsed.tags("script")
    assert "All runs" in parsed.text


def test_the_page_contains_all_sections_of_the_run(golden: str) -> None:
    view = RunView(GOLDEN)

    found = sections(view, event_log(GOLDEN), now_ms=view.at_ms)

    assert all(f' id="{name}">{html}</' in golden for name, html in found.items())


def test_a_step_cancelled_without_a_failure_shows_its_reason() -> None:
    events = [
        started("a"),
        AttemptStarted("a", 1, 0.0),
        RunInterrupted(1.0, "a signal came"),
        StepCancelled("a", 1, 2.0, "a signal came", None),
        RunFinished(2.0, RunStatus.INTERRUPTED, "a signal came"),
    ]

    assert "■ CANCELLED 1 1 0 ms 2 ms – a signal came" in section("steps", events)
    assert section("failure", events) == ""
