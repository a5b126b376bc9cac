"""Attachments: which data become which media type, and what is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from asyncflow import WorkflowStep, current_step, run_pipeline
from asyncflow._policies.attachments import MOST_BYTES
from asyncflow.events import Event, StepAttached

PNG = b"\x89PNG\r\n\x1a\n..."
SVG = "<svg xmlns='http://www.w3.org/2000/svg'><rect fill='url(#a)'/><use href='#a'/></svg>"
PLOT = f"""<?xml version="1.0" encoding="utf-8" standalone="no"?>
<!DOCTYPE svg PUBLIC "-//W3C//DTD SVG 1.1//EN" "http://www.w3.org/Graphics/SVG/1.1/DTD/svg11.dtd">
<!-- based on one = two -->
{SVG}"""


async def attached(*arguments: Any) -> StepAttached:
    found: list[Event] = []

    async def work() -> None:
        current_step().attach(*arguments)

    report = await run_pipeline([WorkflowStep("work", work)], observers=[found.append])
    report.raise_for_failures()
    (event,) = [each for each in found if isinstance(each, StepAttached)]
    return event


@pytest.mark.parametrize(
    ("data", "named", "media_type", "content"),
    [
        (PNG, None, "image/png", PNG),
        (bytearray(PNG), "image/png", "image/png", PNG),
        (SVG, None, "image/svg+xml", SVG.encode()),
        (PLOT.encode(), None, "image/svg+xml", PLOT.encode()),
        ("text \udcff", None, "text/plain", b"text \\udcff"),
        ("# title", "text/markdown", "text/markdown", b"# title"),
        ("[1]", "application/json", "application/json", b"[1]"),
        ({"a": ["ä"]}, None, "application/json", '{\n "a": [\n  "ä"\n ]\n}'.encode()),
        ([], None, "application/json", b"[]"),
        ([{"a": [1]}], None, "application/json", b'[\n {\n  "a": [\n   1\n  ]\n }\n]'),
        ([{"a": 1, "b": 'x,"'}, {"c": None}], None, "text/csv", b'a,b,c\n1,"x,""",\n,,\n'),
        ([{"a": 1}], "application/json", "application/json", b'[\n {\n  "a": 1\n }\n]'),
    ],
)
async def test_data_become_bytes_of_a_media_type(
    data: Any, named: str | None, media_type: str, content: bytes
) -> None:
    event = await attached("thing", data, named)

    assert (event.name, event.media_type, event.data) == ("thing", media_type, content)
    assert f"<{len(content):,} bytes>" in repr(event)


@pytest.mark.parametrize(
    ("suffix", "content", "media_type"),
    [
        (".png", PNG, "image/png"),
        (".SVG", SVG.encode(), "image/svg+xml"),
        (".json", b"{}", "application/json"),
        (".csv", b"a\n1\n", "text/csv"),
        (".md", b"a", "text/markdown"),
        (".log", b"a", "text/plain"),
        (".unknown", PNG, "image/png"),
    ],
)
async def test_a_path_is_read_and_its_suffix_says_what_it_is(
    tmp_path: Path, suffix: str, content: bytes, media_type: str
) -> None:
    path = tmp_path / f"file{suffix}"
    path.write_bytes(content)

    event = await attached("thing", path)

    assert (event.media_type, event.data) == (media_type, content)


async def test_a_missing_file_is_an_error_of_the_step(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await attached("thing", tmp_path / "missing.png")


LIMIT = "attachment 'thing' must have at most 1,000,000 bytes; attach less of it, or its address"


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((1, "a"), TypeError, "attach: name must be a str, not int"),
        (("", "a"), ValueError, "attach: name must not be empty"),
        (("thing", b"x" * 1_000_001), ValueError, LIMIT),
        (("thing", "ä" * 500_001), ValueError, LIMIT),
        (("thing", "a", "text/html"), ValueError, "media_type must be one of 'image/png', .*"),
        (("thing", b"\xff\xfe"), ValueError, ".* is neither a PNG image nor text in UTF-8; .*"),
        (("thing", b"\xff\xfe", "text/plain"), ValueError, ".* is no text/plain: .*"),
        (("thing", "a", "image/png"), ValueError, "attachment 'thing' is no PNG image"),
        (("thing", "{", "application/json"), ValueError, ".* is no application/json: .*"),
        (("thing", {1}), TypeError, r"attachment 'thing' can't be written as JSON \(.*\); give .*"),
        (("thing", {1}, "text/plain"), TypeError, ".*text/plain must be given as bytes, a str .*"),
        (("thing", "a", "image/svg+xml"), ValueError, r".* is no image/svg\+xml: it has no <svg>"),
        (("thing", "<svg><"), ValueError, r".* is no image/svg\+xml: .*line 1.*"),
    ],
)
async def test_what_displays_cannot_show_is_refused(
    arguments: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        await attached(*arguments)


def doubled(value: object, times: int) -> object:
    """Return lists that refer twice to each other: little memory, and 2 ** times values."""
    for _ in range(times):
        value = [value, value]
    return value


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (doubled("text", 60), ValueError, LIMIT),
        (doubled("text", 2_000), TypeError, "can't be written as JSON .it is nested too deeply.; "),
        ([{"row": "x" * 1_000_000}] * 10_000, ValueError, LIMIT),
    ],
)
async def test_an_attachment_is_counted_before_it_is_encoded(
    data: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        await attached("thing", data)


async def test_without_anything_that_receives_it_nothing_is_attached() -> None:
    async def work() -> None:
        current_step().attach("thing", object())

    assert (await run_pipeline([WorkflowStep("work", work)])).all_passed


async def test_a_pipe_is_refused_at_once(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.txt"
    os.mkfifo(pipe)

    with pytest.raises(ValueError, match="is no file"):
        await attached("thing", pipe)


@pytest.mark.parametrize(
    ("data", "media_type", "shown"),
    [
        (SVG.replace("<use", "<text>hunter2</text><use"), None, "<text>&lt;secret&gt;</text>"),
        ({"pin": "hunter2"}, None, '"pin": "<secret>"'),
        ({"pin": "another"}, None, '"pin": "another"'),
    ],
)
async def test_what_hides_a_secret_leaves_the_rest_readable(
    data: Any, media_type: str | None, shown: str
) -> None:
    found: list[Event] = []

    async def work(key: Any) -> None:
        current_step().attach("thing", data, media_type)

    await run_pipeline(
        [WorkflowStep("work", work)],
        inputs={"key": ["hunter2", 123456]},
        secret_inputs=["key"],
        observers=[found.append],
    )

    (event,) = [each for each in found if isinstance(each, StepAttached)]
    text = event.data.decode()
    assert shown in text
    assert "hunter2" not in text
    if event.media_type == "application/json":
        assert json.loads(text)["pin"] in ("<secret>", "another")
    else:
        ElementTree.fromstring(text)


async def test_an_image_is_kept_as_it_is() -> None:
    found: list[Event] = []

    async def work(key: str) -> None:
        current_step().attach("thing", PNG)

    await run_pipeline(
        [WorkflowStep("work", work)],
        inputs={"key": "PNG\r"},
        secret_inputs=["key"],
        observers=[found.append],
    )

    assert [each.data for each in found if isinstance(each, StepAttached)] == [PNG]


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        ({"code": 123456}, '{\n "code": <secret>\n}'),
        (SVG.replace("rect", "hunter2"), SVG.replace("rect", "&lt;secret&gt;")),
        ("hunter2" * 140_000, "<secret>" * 125_000),
        (SVG.replace("<use", f"<text>{'hunter2' * 120_000}</text><use"), None),
    ],
)
async def test_what_is_spoilt_by_hiding_a_secret_becomes_a_text(
    data: Any, shown: str | None
) -> None:
    found: list[Event] = []

    async def work(key: Any) -> None:
        current_step().attach("thing", data)

    await run_pipeline(
        [WorkflowStep("work", work)],
        inputs={"key": ["hunter2", 123456]},
        secret_inputs=["key"],
        observers=[found.append],
    )

    (event,) = [each for each in found if isinstance(each, StepAttached)]
    assert event.media_type == "text/plain"
    assert shown is None or event.data.decode() == shown
    assert b"hunter2" not in event.data
    assert len(event.data) <= MOST_BYTES
