"""The same events always give the same text, the same log and the same spans.

The expected outputs are beside this file, one line for each event or span.
"""

from __future__ import annotations

import io
import logging
from pathlib import Path

from golden_run import GOLDEN, SECRET, WALL_TIME
from telemetry import Telemetry, status_of

from asyncflow._views.event_text import describe_event
from asyncflow.events import RunStarted
from asyncflow.logs import LoggingObserver

HERE = Path(__file__).parent
LOG = (HERE / "golden_log.txt").read_text(encoding="utf-8")
SPANS = (HERE / "golden_spans.txt").read_text(encoding="utf-8")


def test_the_golden_events_give_the_golden_text() -> None:
    begin = GOLDEN[0]
    assert isinstance(begin, RunStarted)

    lines = [
        describe_event(event, begin.max_retries.get(getattr(event, "step", ""))) for event in GOLDEN
    ]

    assert lines == [line[8:] for line in LOG.splitlines()]


def test_the_golden_events_give_the_golden_log() -> None:
    stream, logger = io.StringIO(), logging.Logger("golden", logging.DEBUG)
    handler = logging.StreamHandler(stream)
    handler.setFormatter(WithoutTraceback("%(levelname)-7s %(message)s"))
    logger.addHandler(handler)
    observe = LoggingObserver(logger).for_run()

    for event in GOLDEN:
        observe(event)

    assert stream.getvalue() == LOG


class WithoutTraceback(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        record.exc_info = None
        return super().format(record)


def test_the_golden_events_give_the_golden_spans() -> None:
    otel = Telemetry()
    observe = otel.observer.for_run()

    for event in GOLDEN:
        observe(event)

    assert drawn(otel) == SPANS
    assert otel.in_flight() == {}
    assert SECRET not in "".join(span.to_json() for span in otel.spans)


def drawn(otel: Telemetry) -> str:
    """Return the spans as a tree, with their times in microseconds of the run."""
    spans = sorted(otel.spans, key=lambda span: span.start_time or 0)
    lines: list[str] = []

    def us(at_ns: int | None) -> int:
        assert at_ns is not None
        return round((at_ns - int(WALL_TIME * 1e9)) / 1000)

    def draw(parent: int | None, indent: str) -> None:
        for span in spans:
            if (span.parent and span.parent.span_id) != parent:
                continue
            status, why = status_of(span)
            links = f" after {', '.join(otel.links(span))}" if span.links else ""
            times = f"{us(span.start_time)}-{us(span.end_time)}"
            lines.append(f"{indent}{span.name} {times} {status}{f' {why}' if why else ''}{links}")
            lines.extend(f"{indent}  {each.name} at {us(each.timestamp)}" for each in span.events)
            draw(span.context.span_id, f"{indent}  ")

    draw(None, "")
    return "".join(f"{line}\n" for line in lines)
