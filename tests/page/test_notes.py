"""What the steps of a run say is on its page, within limits, and never executed."""

from __future__ import annotations

import base64
import re

import pytest
from golden_run import GOLDEN, HOSTILE
from page.said import HOSTILE_SVG, NOTES, attached, logged, picture, progressed, streamed
from page.test_page import Parsed, run_of, run_of_failures, started

from asyncflow import RunReport, RunStatus, StepResult, StepStatus
from asyncflow._core.record import replace
from asyncflow._views.notes import MOST_LINES, MOST_STREAMED, RunNotes
from asyncflow._views.run_view import RunView
from asyncflow.events import (
    AttemptFailed,
    AttemptStarted,
    Event,
    MapStarted,
    NoteEvent,
    RunFinished,
    RunStarted,
    StepCalled,
    StepFailed,
    StepLogged,
    StepProgressed,
    StepSucceeded,
    StepWaiting,
)
from asyncflow.html_report import to_html
from asyncflow.html_report._event_log import event_log
from asyncflow.html_report._page import Live, details, page, sections
from asyncflow.html_report._page_model import PageContext, PageModel

SERVED = PageContext(attachments_url="/x")


def shown(name: str, events: list[Event], notes: list[NoteEvent], **more: object) -> str:
    view = RunView(events)
    context = PageContext(RunNotes(notes), **more)  # type: ignore[arg-type]
    return sections(view, event_log(events), context, now_ms=view.at_ms)[name]


def words(name: str, events: list[Event], notes: list[NoteEvent], **more: object) -> str:
    return Parsed(shown(name, events, notes, **more)).text


# The fold.


def test_the_last_lines_of_a_step_are_kept_and_all_are_counted() -> None:
    notes = RunNotes([logged("a", f"line {n}") for n in range(1_000)])

    assert notes.count("a") == 1_000
    assert [line.note.message for line in notes.lines("a")] == [
        f"line {n}" for n in range(1_000 - MOST_LINES, 1_000)
    ]
    assert (notes.count("b"), notes.lines("b")) == (0, ())


def test_pictures_and_the_rest_of_long_texts_need_not_be_kept() -> None:
    notes = RunNotes(with_pictures=False)
    notes.apply(attached("a", "x.png", "image/png", b"p" * 100), position=7)
    notes.apply(attached("a", "x.txt", "text/plain", "t" * 100_000))

    png, text = notes.attached("a")

    assert (png.position, png.size, png.note.data, png.is_cut) == (7, 100, b"", True)
    assert (text.size, len(text.note.data)) == (100_000, 65_536)
    assert RunNotes([png.note])
    assert not RunNotes()


# Logs.


def test_a_log_has_time_level_attempt_item_logger_and_message() -> None:
    text = words("details", GOLDEN, NOTES)

    assert "the last 200 of 260 lines" in text
    assert "page 259 of the orders" in text
    assert "page 59 of the orders" not in text
    assert "0.061 DEBUG app.db page 60 of the orders" in text
    assert "4.710 WARNING attempt 2 app.db row 2 has <b>no</b> price" in text
    assert "4.720 CRITICAL attempt 2 app.db gave up Traceback Traceback (most recent" in text
    assert "4.300 INFO [3] app.db page 3" in text


def test_the_failure_of_a_resumed_run_has_no_lines_of_an_earlier_segment() -> None:
    before = logged("load", "in the first segment", at_ms=1.0)
    events = run_of_failures("no", segments=2)
    name = next(iter(RunView(events).steps))

    text = words("failure", events, [replace(before, step=name), logged(name, "now", at_ms=30.0)])

    assert "0.030 INFO app.db now" in text
    assert "in the first segment" not in text


def test_the_more_steps_the_fewer_lines_each_but_failed_ones() -> None:
    events = run_of(59)[:-1]
    first = events[0]
    assert isinstance(first, RunStarted)
    events[0] = RunStarted("r", 0.0, {**first.dependencies, "bad": ()})
    events += [AttemptStarted("bad", 1, 1.0), StepFailed("bad", 1, 9.0, ValueError("no"))]
    notes = [logged(step, "<" * 400) for step in first.dependencies for _ in range(100)]
    notes += [logged("bad", f"line {n}") for n in range(150)]

    html = to_html([*events, *notes])

    assert [f"line {n}</span>" in html for n in range(150)] == [False] * 100 + [True] * 50
    assert "the last 40 of 100 lines" in html


def test_a_page_of_a_server_has_few_lines_since_it_loads_the_others() -> None:
    html = shown("details", GOLDEN, NOTES, attachments_url="/x")

    (log,) = re.findall(r'<div class="log" data-total="260" data-latest="0">.*?</div>', html, re.S)
    assert log.count("<li") == 20
    assert "the last 20 of 260 lines" in log


def test_each_traceback_of_a_line_is_opened_by_itself() -> None:
    for name in ("failure", "details"):
        parsed = Parsed(shown(name, GOLDEN, NOTES))
        keys = [each["data-key"] for each in parsed.tags("details") if "data-key" in each]
        assert len(keys) == len(set(keys))
        assert any(key is not None and key.endswith("-4.720") for key in keys)


@pytest.mark.parametrize("text", ["\udcff", "\x00\x1b[2J", "</pre><script>alert(1)</script>"])
def test_hostile_text_in_notes_stays_text(text: str) -> None:
    notes = [
        StepLogged(HOSTILE, 2, 4710.0, 20, text, text, traceback=text),
        StepProgressed("extract", 1, 1.0, 1.0, 2.0, text),
        attached("extract", text, "image/png", picture()),
        attached("extract", text, "text/csv", text.encode("utf-8", "surrogatepass")),
    ]

    html = to_html(GOLDEN, notes, resume=text)

    assert len(Parsed(html).tags("script")) == 1
    assert "\x00" not in html
    html.encode()


# Progress.


def test_the_progress_of_a_running_step_is_on_its_rows_and_in_its_details() -> None:
    events: list[Event] = [started("a", "b"), AttemptStarted("a", 1, 0.0)]
    notes: list[NoteEvent] = [progressed("a", 1204, 5000, at_ms=4000.0)]

    assert "24 %" in words("gantt", events, notes)
    assert "1,204 of 5,000 rows (24 %) 2 b " in words("steps", events, notes)
    assert "1,204 of 5,000 rows · 24 % · 301/s · 16.6 s left" in words("details", events, notes)
    assert '<rect class="f-running" width="24%"' in shown("details", events, notes)


def test_an_attempt_does_not_show_the_progress_of_the_one_before() -> None:
    events: list[Event] = [
        started("a"),
        AttemptStarted("a", 1, 0.0),
        AttemptFailed("a", 1, 50.0, ValueError("no"), 10.0),
        AttemptStarted("a", 2, 60.0),
    ]
    before = progressed("a", 7, 9, at_ms=40.0)

    assert "stopped at 7 of 9" in words("details", events[:-1], [before])
    assert "7 of 9" not in words("details", events, [before])
    now = progressed("a", 1, 9, at_ms=70.0, attempt=2)
    assert "1 of 9" in words("details", events, [before, now])


@pytest.mark.parametrize(
    ("done", "end", "shown_as"),
    [
        (7, StepSucceeded("a", 1, 50.0, None), ""),
        (9, StepSucceeded("a", 1, 50.0, None), "9 of 9 rows"),
        (7, StepFailed("a", 1, 50.0, ValueError("no")), "stopped at 7 of 9 rows"),
    ],
)
def test_what_has_ended_does_not_stand_at_its_last_progress(
    done: int, end: Event, shown_as: str
) -> None:
    events: list[Event] = [started("a"), AttemptStarted("a", 1, 0.0), end]
    notes: list[NoteEvent] = [progressed("a", done, 9, at_ms=40.0)]

    for part in ("steps", "details"):
        found = re.search(r"(stopped at )?\d of 9 rows", words(part, events, notes))
        assert (found[0] if found else "") == shown_as
    assert "%" not in words("gantt", events, notes)


def test_pictures_are_in_the_page_of_a_run_as_images_only() -> None:
    parsed = Parsed(to_html(GOLDEN, NOTES))

    png, svg = parsed.tags("img")
    assert png["src"] == f"data:image/png;base64,{base64.b64encode(picture()).decode()}"
    assert svg["src"] == f"data:image/svg+xml;base64,{base64.b64encode(HOSTILE_SVG).decode()}"
    assert svg["alt"] == "chart.svg"
    assert len(parsed.tags("script")) == 1


# Attachments.


def test_texts_tables_and_json_are_shown_as_text() -> None:
    html = shown("details", GOLDEN, NOTES)
    text = Parsed(html).text

    assert '{ "a": [ 1, "</pre><script>alert(1)" ] }' in text
    assert "<b>notes</b>.txt 17 bytes plain <b>text</b>" in text
    assert "<td>=HYPERLINK(1)</td><td>1</td>" in html
    assert "<td>+2</td><td>&lt;b&gt;2&lt;/b&gt;</td>" in html
    assert "row 47" in text
    assert "row 48" not in text
    assert "rows were left out: a page has 50 rows and 20 columns of a table" in text


def test_the_page_of_a_server_links_to_attachments() -> None:
    notes = RunNotes(with_pictures=False)
    for position, note in enumerate(NOTES, 1):
        notes.apply(note, position)
    view = RunView(GOLDEN)

    context = PageContext(notes, attachments_url="/x/a")
    html = sections(view, event_log(GOLDEN), context, now_ms=1.0)

    parsed = Parsed(html["details"])
    at = len(NOTES) - 4
    assert [each["src"] for each in parsed.tags("img")] == [f"/x/a/{at}", f"/x/a/{at + 1}"]
    assert [each["href"] for each in parsed.tags("a") if "download" in each] == [
        f"/x/a/{at + n}" for n in range(5)
    ]


def test_rows_columns_and_attachments_that_a_page_does_not_have_are_counted() -> None:
    table = "\n".join([",".join(map(str, range(22)))] * 54)
    notes = [attached("extract", f"{n}.txt", "text/plain", b"x") for n in range(103)]
    notes.insert(0, attached("extract", "wide.csv", "text/csv", table.encode()))

    text = words("details", GOLDEN, [*notes])

    why = "left out: a page has 50 rows and 20 columns of a table"
    assert f"3 rows were {why}; 2 columns were {why}" in text
    assert "4 attachments were left out: a page lists 100 of a step" in text


def test_running_items_whose_progress_a_page_does_not_have_are_counted() -> None:
    events: list[Event] = [RunStarted("r", 0.0, {"m": ()}), MapStarted("m", 0.0, 30)]
    events += [AttemptStarted("m", 1, 0.0, item=n) for n in range(30)]
    notes = [progressed("m", 1, 9, item=n) for n in range(25)]

    text = words("details", events, [*notes])

    assert "[19] 1 of 9" in text
    assert "[20] 1 of 9" not in text
    assert "5 progress reports were left out: a page has that of 20 running items" in text


def test_outputs_that_the_question_of_a_signal_leaves_out_are_counted() -> None:
    needed = tuple(f"s{n}" for n in range(7))
    events: list[Event] = [
        RunStarted("r", 0.0, {**dict.fromkeys(needed, ()), "ask": needed}),
        *(each for name in needed for each in (AttemptStarted(name, 1, 0.0), done(name))),
        StepWaiting("ask", 2.0, 1.0),
    ]

    text = words("waiting", events, [])

    assert "Output of s4" in text
    assert "Output of s5" not in text
    assert "2 outputs were left out: a page has 5 here" in text


def done(name: str) -> StepSucceeded:
    return StepSucceeded(name, 1, 1.0, f"output of {name}")


def test_large_pictures_are_left_out_of_a_page() -> None:
    notes = [
        attached("extract", f"{size}.png", "image/png", b"x" * size)
        for size in (500_001, 100, 500_000)
    ]

    html = to_html(GOLDEN, notes)

    assert html.count('<img src="data:') == 2
    assert "500001.png 500 kB 1 picture was left out: it has more than 500 kB" in Parsed(html).text


@pytest.mark.parametrize(
    ("media_type", "data", "text"),
    [
        ("application/json", "{", "{"),
        ("application/json", "[" * 100_000, "[[[ … cut off here"),
        ("text/plain", "x" * 1_500_000, "x … cut off here"),
        ("text/plain", b"\xff\x00", "\ufffd\\x00"),
        ("text/html", "<script>alert(1)</script>", "<script>alert(1)</script>"),
        ("text/csv", "", "a.txt 0 bytes"),
        ("text/csv", 'a,b\n1,2,3\n"x', "a b 1 2 3 x"),
        ("text/csv", "a\n" + "1\n" * 60_000, "the other rows were left out: "),
        ("text/csv", "name\n" + "x" * 190_000, "the other rows were left out: "),
    ],
)
def test_any_data_can_be_shown(media_type: str, data: bytes | str, text: str) -> None:
    html = to_html(GOLDEN, [attached("extract", "a.txt", media_type, data)])

    assert text in Parsed(html).text
    assert len(html) < 320_000


# Notes of runs.


def test_notes_may_be_among_the_events_or_beside_them_or_beside_a_report() -> None:
    result = StepResult("a", StepStatus.SUCCESS, 1, 5.0, 1, started_ms=0.0)
    report = RunReport("r", [result], total_duration_ms=9.0, wall_time=1_000.0)
    note = logged("a", "hello")
    events: list[Event] = [started("a"), RunFinished(1.0, RunStatus.PASSED)]

    among, beside = to_html([events[0], note, events[1]]), to_html(events, [note])

    assert among == beside
    assert "hello" in Parsed(to_html(report, [note])).text
    assert to_html(GOLDEN) == to_html(GOLDEN, [])


# Parameters, tracebacks and commands.


def stored(fingerprint: str, **more: object) -> list[Event]:
    names = {"extract": (), "a": (), "a, b=c)": (), "load": ("a", "extract", "a, b=c)")}
    prints = {"extract": ("()", ""), "load": (fingerprint, "")}
    return [
        RunStarted(
            "r1",
            0.0,
            names,
            "etl",
            fingerprints=prints,
            **more,  # type: ignore[arg-type]
        ),
        AttemptStarted("extract", 1, 0.0),
        StepSucceeded("extract", 1, 9.0, {"rows": list(range(100))}),
        RunFinished(10.0, RunStatus.FAILED),
    ]


@pytest.mark.parametrize(
    ("fingerprint", "text"),
    [
        ("(rows=extract)", "Parameters rows from extract {'rows': [0, 1, 2"),
        ("(extract)", "Parameters extract from extract {'rows': ["),
        ("(rows=extract) for each of extract", "rows one item of extract {'rows': ["),
        ("(x=a, b=c), y)", "x from a, b=c) y its default"),
        ("(url)", "url input 'https://x'"),
        ("(key)", "key input redacted: it is secret"),
        ("(limit)", "limit its default"),
        ("(**)", "** the outputs of all its dependencies"),
        ("(rows=gone)", "Tier 2"),
        ("(?)", "Tier 2"),
    ],
)
def test_the_details_show_what_each_parameter_receives(fingerprint: str, text: str) -> None:
    from asyncflow import RestoredOutput

    inputs = {"url": "https://x", "key": RestoredOutput("redacted")}
    events = stored(fingerprint, inputs=inputs)

    shown = words("details", events, [])

    assert text in shown
    assert ("Parameters" in shown) == (text != "Tier 2")


def test_a_parameter_does_not_show_a_secret_output() -> None:
    text = words("details", stored("(rows=extract)", secret=("extract",)), [])

    assert "rows from extract redacted: it is secret" in text
    assert "'rows': [0" not in text


def test_each_attempt_has_its_traceback() -> None:
    events: list[Event] = [started("a"), AttemptStarted("a", 1, 0.0)]
    for number, name in enumerate(("first", "second", "third"), 1):
        try:
            raise ValueError(name)
        except ValueError as error:
            last = StepFailed("a", number, 9.0 * number, error)
            failed = AttemptFailed("a", number, 9.0 * number, error, 1.0)
            events += [last] if number == 3 else [failed, AttemptStarted("a", number + 1, 9.0)]

    html = shown("details", events, [])

    assert html.count("Traceback (most recent call last)") == 3
    for number in (1, 2):
        assert f'aria-label="Traceback of attempt {number}"' in html


def test_a_run_that_can_be_resumed_has_the_command() -> None:
    command = "asyncflow resume r1 MODULE:PIPELINE --journal JOURNAL"
    passed = [*stored("()")[:-1], RunFinished(10.0, RunStatus.PASSED)]

    assert f"To resume it {command} Copy" in Parsed(to_html(stored("()"))).text
    assert (
        "asyncflow resume 'r 1' etl:etl"
        in Parsed(to_html(GOLDEN, resume="asyncflow resume 'r 1' etl:etl")).text
    )
    for events in (passed, stored("()")[:-1], GOLDEN):
        assert "asyncflow resume" not in to_html(events)
    assert command in words("header", stored("()")[:-1], [], is_orphaned=True, resume=command)


# Pages of servers.


def test_the_details_of_one_step_are_whole() -> None:
    view = RunView(run_of_failures("x" * 9_000, attempts=2))
    name = next(iter(view.steps))

    html = details(view, name, SERVED, now_ms=view.at_ms)

    assert html.count("<article") == 1
    assert html.count("x" * 9_000) == 2
    assert "data-whole" not in html
    assert "characters left out" not in html
    with pytest.raises(KeyError):
        details(view, "unknown", now_ms=1.0)


def test_the_page_of_a_server_has_few_details_of_a_large_run() -> None:
    events = run_of(2_001)
    live = Live(*[f"/{name}" for name in Live._fields])
    view = RunView(events[:-1])

    html = page(view, event_log(events[:-1]), SERVED, now_ms=view.at_ms, live=live)
    begun = RunView(events[:1])

    assert 'data-details-url="/details" data-notes-url="/notes"' in html
    assert "0 of 2,001 steps have details here: those that did not succeed. Select another" in html
    assert "<article" not in html
    assert PageModel(begun, 1.0, SERVED).detailed == []
    assert len(PageModel(begun, 1.0).detailed) == 2_000


def test_the_first_failure_says_what_the_step_received() -> None:
    events = stored("(rows=extract)")
    failure: list[Event] = [
        AttemptStarted("load", 1, 9.0),
        StepFailed("load", 1, 10.0, ValueError("bad")),
    ]

    shown = words("failure", [*events[:-1], *failure, events[-1]], [])

    assert "What it received rows from extract {'rows': [0, 1, 2" in shown
    assert "What it received" not in words("failure", [started("load"), *failure], [])


# What steps stream, and their calls by name.


def test_streamed_texts_are_joined_and_other_values_have_lines_of_their_own() -> None:
    notes = RunNotes([streamed("a", "It is ", "18 degrees"), streamed("a", {"cite": 1}, "So")])

    (text,) = notes.streamed("a")

    assert text.text == 'It is 18 degrees\n{"cite": 1}\nSo'
    assert not text.is_cut


@pytest.mark.parametrize("anew", [{"attempt": 2}, {"segment": 2}])
def test_another_attempt_streams_anew(anew: dict[str, int]) -> None:
    notes = RunNotes([streamed("a", "half an ans"), streamed("a", "an answer", **anew)])

    assert [each.text for each in notes.streamed("a")] == ["an answer"]


def test_what_earlier_attempts_streamed_is_kept_in_part() -> None:
    notes = RunNotes([streamed("a", f"{n:06}" * 1_000, attempt=n) for n in range(1, 24)])

    before = notes.streamed_before("a")

    assert [each.attempt for each in before] == [*range(3, 23)]
    assert {(len(each.text), each.is_cut) for each in before} == {(5_000, True)}
    assert before[-1].text.endswith("000022")


def test_a_page_opens_what_earlier_attempts_streamed_and_logged() -> None:
    events: list[Event] = [
        *(RunStarted("r", 0.0, {"ask": ()}), AttemptStarted("ask", 1, 1.0)),
        *(AttemptFailed("ask", 1, 9.0, OSError(), 1.0), AttemptStarted("ask", 2, 10.0)),
    ]
    notes: list[NoteEvent] = [
        streamed("ask", "half an <answer>"),
        logged("ask", "the line is busy", at_ms=8.0),
        *(streamed("ask", "an answer", attempt=2), logged("ask", "ringing", at_ms=10.0, attempt=2)),
    ]

    text = words("details", events, notes)

    assert "Earlier attempts attempt 1 streamed half an <answer>" in text
    assert "logged at its end" not in text  # the log has all of it
    assert text.count("the line is busy") == 1
    many = [logged("ask", f"line {n}", at_ms=11.0, attempt=2) for n in range(300)]
    crowded = words("details", events, [*notes, *many])
    assert "half an <answer> logged at its end 0.008 INFO" in crowded
    assert "the line is busy" in crowded


def test_of_what_is_streamed_the_end_is_kept_of_few_items() -> None:
    notes = RunNotes([streamed("a", "x" * 15_000, "<", item=n) for n in range(300) for _ in "ab"])

    found = notes.streamed("a")

    assert [each.item for each in found] == [*range(100, 300)]
    assert {(len(each.text), each.is_cut) for each in found} == {(MOST_STREAMED, True)}
    assert found[0].text.endswith("x<")


def test_an_item_that_streams_again_after_many_others_is_marked_as_cut() -> None:
    notes = RunNotes([streamed("a", f"of {n}", item=n) for n in range(201)])

    notes.apply(streamed("a", "more", item=0))

    assert [(each.text, each.is_cut) for each in notes.streamed("a")[-2:]] == [
        ("of 200", False),
        ("more", True),
    ]


def test_a_text_whose_beginning_was_not_read_is_marked() -> None:
    notes = RunNotes([streamed("a", "lost")])

    notes.apply_streamed([streamed("a", "the end")], is_all=False)

    assert [(each.text, each.is_cut) for each in notes.streamed("a")] == [("the end", True)]


def test_a_page_shows_the_end_of_what_a_step_streams_as_text() -> None:
    notes = [streamed("extract", "y" * 30_000, "<script>parent.hacked = 1</script>\x1b[31m")]
    notes += [streamed("fetch", f"item {n}", attempt=2, item=n) for n in range(6)]

    html = shown("details", GOLDEN, [*notes])

    assert "&lt;script&gt;parent.hacked = 1&lt;/script&gt;\\x1b[31m</pre>" in html
    assert html.count("y" * 1_000) * 1_000 <= MOST_STREAMED
    text = Parsed(html).text
    assert "Streamed the end of it" in text
    assert "[5] attempt 2 item 5" in text
    assert "item 0" not in text
    assert "1 stream was left out: a page has those of the 5 that streamed last" in text


def test_a_page_lists_the_calls_of_a_step_with_their_durations() -> None:
    calls = [StepCalled("extract", 1, 10.0 * n, f"ask-{n}", 3.0, 17) for n in range(120)]
    calls += [StepCalled("fetch", 2, 4500.0, "<b>look up</b>", 1_500.0, 9, item=3)]

    text = words("details", GOLDEN, [*calls])

    assert "Calls the last 100 of 120" in text
    assert "ask-119 1 1.2 s 3 ms" in text
    assert "ask-19 " not in text
    assert "[3] <b>look up</b> 2 4.5 s 1.5 s" in text
