"""The same events always give the same text, the same log, the same spans and the same report."""

from __future__ import annotations

import io
import logging

from golden_log import GOLDEN
from telemetry import Telemetry, status_of

from asyncflow._events_told import told
from asyncflow._story import Story
from asyncflow.logs import LoggingObserver

TEXT = """\
run golden of nightly started: 8 steps
optional skipped: its condition was not met
extract started
audit started
extract: attempt 1 failed, the next one follows in 100 ms: ConnectionError: no answer
audit blocked the event loop for 150 ms at audit.py:7 in audit
extract: attempt 2 started
extract succeeded in attempt 2
audit: the thread of attempt 1 can't be stopped and goes on by itself
audit: attempt 1 failed, the next one follows at once: StepTimeoutError: attempt 1 of step 'audit' \
exceeded 500 ms
audit: attempt 2 started
audit succeeded in attempt 2
fetch started to go through its items
fetch[0] started
fetch[1] started after 3 ms in line
fetch[0] succeeded
fetch[1] succeeded
fetch succeeded
load started
index started
load failed: ValueError: column 'price' is missing
report skipped: step 'load' failed and fail_fast is on
notify skipped: step 'load' failed and fail_fast is on
index cancelled: step 'load' failed and fail_fast is on
the run failed after 942 ms: step 'load' failed and fail_fast is on
"""

LEVELS = {
    "ERROR": ["load failed", "the run failed"],
    "WARNING": [
        *("extract: attempt 1 failed", "audit blocked", "audit: the thread"),
        *("audit: attempt 1 failed", "report skipped", "notify skipped", "index cancelled"),
    ],
}

SPANS = """\
RUN nightly 0-941500 ERROR step 'load' failed and fail_fast is on
  optional 250-250 OK
  extract 500-150000 OK
    extract attempt 1 500-20500 ERROR ConnectionError: no answer
      exception at 20500
    extract attempt 2 120500-150000 OK
  audit 1000-901500 OK
    audit attempt 1 1000-501000 ERROR StepTimeoutError: attempt 1 of step 'audit' exceeded 500 ms
      asyncflow.loop_blocked at 100000
      asyncflow.thread_abandoned at 501000
      exception at 501000
    audit attempt 2 900000-901500 OK
  fetch 902000-930000 OK after extract
    fetch item 902000-910000 OK
      fetch attempt 1 902000-910000 OK
    fetch item 905000-930000 OK
      fetch attempt 1 905000-930000 OK
  load 931000-940125 ERROR ValueError: column 'price' is missing after fetch
    load attempt 1 931000-940125 ERROR ValueError: column 'price' is missing
      exception at 940125
  index 931000-941000 ERROR step 'load' failed and fail_fast is on after fetch, extract
    index attempt 1 931000-941000 ERROR step 'load' failed and fail_fast is on
  report 940500-940500 ERROR step 'load' failed and fail_fast is on after load, audit
  notify 940500-940500 ERROR step 'load' failed and fail_fast is on after report
"""

REPORT = """\
Pipeline FAILED
[SUCCESS] extract (2 attempt(s), 150ms)
[SUCCESS] audit (2 attempt(s), 900ms)
[SKIPPED] optional (0 attempt(s), 0ms): its condition was not met
[SUCCESS] fetch (2 attempt(s), 28ms)
[FAILED ] load (1 attempt(s), 9ms): ValueError: column 'price' is missing
[CANCELLED] index (1 attempt(s), 10ms): step 'load' failed and fail_fast is on
[SKIPPED] report (0 attempt(s), 0ms): step 'load' failed and fail_fast is on
[SKIPPED] notify (0 attempt(s), 0ms): step 'load' failed and fail_fast is on
Total: 942ms"""


def test_the_golden_events_give_the_golden_text() -> None:
    assert [told(event) for event in GOLDEN] == TEXT.splitlines()


def test_the_golden_events_give_the_golden_log() -> None:
    stream, logger = io.StringIO(), logging.Logger("golden", logging.DEBUG)
    handler = logging.StreamHandler(stream)
    handler.setFormatter(WithoutTraceback("%(levelname)s %(message)s"))
    logger.addHandler(handler)
    observe = LoggingObserver(logger).for_run()

    for event in GOLDEN:
        observe(event)

    lines = stream.getvalue().splitlines()
    assert [line.partition(" ")[2] for line in lines] == TEXT.splitlines()
    for level, beginnings in LEVELS.items():
        found = [line for line in lines if line.startswith(level)]
        for line, beginning in zip(found, beginnings, strict=True):
            assert line.startswith(f"{level} {beginning}")


class WithoutTraceback(logging.Formatter):
    def formatException(self, ei: object) -> str:
        return ""

    def format(self, record: logging.LogRecord) -> str:
        return super().format(record).rstrip("\n")


def test_the_golden_events_give_the_golden_spans() -> None:
    otel = Telemetry()
    observe = otel.observer.for_run()

    for event in GOLDEN:
        observe(event)

    assert drawn(otel) == SPANS
    assert otel.in_flight() == {}


def drawn(otel: Telemetry) -> str:
    """The spans as a tree, with their times in microseconds of the run."""
    spans = sorted(otel.spans, key=lambda span: span.start_time or 0)
    lines: list[str] = []

    def us(at_ns: int | None) -> int:
        assert at_ns is not None
        return round((at_ns - 1_700_000_000_250_000_000) / 1000)

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


def test_the_golden_events_give_the_golden_report() -> None:
    story = Story(GOLDEN)

    assert str(story.report(lambda step, payload: payload)) == REPORT
