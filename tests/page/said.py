"""Notes for tests of pages: what the steps of the golden run might have said."""

from __future__ import annotations

import json
import struct
import zlib

from golden_run import HOSTILE

from asyncflow.events import NoteEvent, StepAttached, StepLogged, StepProgressed, StepStreamed

__all__ = [
    "HOSTILE_SVG",
    "NOTES",
    "TABLE",
    "attached",
    "logged",
    "picture",
    "progressed",
    "streamed",
]

HOSTILE_SVG = b"""<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"
 width="80" height="40" onload="parent.hacked = 1"><script>parent.hacked = 1; alert(1)</script>
<image xlink:href="https://example.org/x.png" width="9" height="9"/><foreignObject><b
 xmlns="http://www.w3.org/1999/xhtml" onclick="parent.hacked = 1">x</b></foreignObject>
<rect width="80" height="40" style="fill: #0a0"/></svg>"""
TABLE = "name,amount\n=HYPERLINK(1),1\n+2,<b>2</b>\n" + "".join(f"row {n},{n}\n" for n in range(80))


def logged(
    step: str, text: str, *, at_ms: float = 1.0, attempt: int = 1, level: int = 20, **more: object
) -> StepLogged:
    return StepLogged(step, attempt, at_ms, level, "app.db", text, **more)  # type: ignore[arg-type]


def progressed(
    step: str,
    done: float,
    total: float | None = None,
    *,
    at_ms: float = 1.0,
    attempt: int = 1,
    item: int | None = None,
) -> StepProgressed:
    return StepProgressed(step, attempt, at_ms, done, total, "rows", item)


def streamed(
    step: str, *values: object, attempt: int = 1, segment: int = 1, item: int | None = None
) -> StepStreamed:
    data = json.dumps(values).encode()
    return StepStreamed(step, attempt, 1.0, segment, len(values), data, item)


def attached(step: str, name: str, media_type: str, data: bytes | str) -> StepAttached:
    data = data.encode() if isinstance(data, str) else data
    return StepAttached(step, 1, 800.0, name, media_type, data)


def picture(width: int = 40, height: int = 20) -> bytes:
    """Return a PNG image of one colour."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    rows = (b"\0" + b"\x20\x60\xc0" * width) * height
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    begin = b"\x89PNG\r\n\x1a\n"
    return begin + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


NOTES: list[NoteEvent] = [
    *(
        logged("extract", f"page {n} of the orders", at_ms=1.0 + n, level=(10, 20, 30, 40)[n % 4])
        for n in range(260)
    ),
    logged("rates", "connecting", at_ms=700.0),
    logged(HOSTILE, "the first attempt", at_ms=4510.0),
    logged(HOSTILE, "row 2 has <b>no</b> price", at_ms=4710.0, attempt=2, level=30),
    logged(
        HOSTILE,
        "\x1b[31mgave up\x1b[0m",
        at_ms=4720.0,
        attempt=2,
        level=50,
        traceback="Traceback (most recent call last):\nKeyError: 'price'",
    ),
    logged("fetch", "page 3", at_ms=4300.0, item=3),
    progressed("extract", 3, 3, at_ms=890.0),
    progressed(HOSTILE, 1204, 5000, at_ms=4800.0, attempt=2),
    attached("extract", "histogram.png", "image/png", picture()),
    attached("extract", "chart.svg", "image/svg+xml", HOSTILE_SVG),
    attached("extract", "rows.csv", "text/csv", TABLE),
    attached("extract", "meta.json", "application/json", '{"a":[1,"</pre><script>alert(1)"]}'),
    attached("extract", "<b>notes</b>.txt", "text/plain", "plain <b>text</b>"),
]
