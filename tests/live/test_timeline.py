"""A timeline places each attempt and each wait, and fits the width of the terminal."""

from __future__ import annotations

import pytest
from golden_run import GOLDEN
from hypothesis import given
from hypothesis import strategies as st
from mapped_run import chain_run, mapped_run
from resumed_run import RESUMED
from rich.cells import cell_len
from watched_runs import random_events

from asyncflow import RunStatus
from asyncflow._views.run_view import RunView
from asyncflow.events import (
    AttemptBegan,
    AttemptFailed,
    AttemptStarted,
    Event,
    LoopBlocked,
    MapStarted,
    RunFinished,
    RunStarted,
    StepSucceeded,
)
from asyncflow.live._timeline import Scale, timeline

HOUR = 3_600_000.0


def lines_of(view: RunView, width: int = 80, **options: object) -> list[str]:
    text = timeline(view, width=width, **options)  # type: ignore[arg-type]
    lines = text.plain.splitlines()
    assert all(cell_len(line) <= width for line in lines)
    assert all(line == line.rstrip() for line in lines)
    return lines


def row_of(name: str, *events: Event, width: int = 80, **options: object) -> str:
    view = RunView(events)
    return next(line for line in lines_of(view, width, **options) if f" {name} " in f"{line} ")


def test_the_golden_run_in_80_columns() -> None:
    assert lines_of(RunView(GOLDEN)) == IN_80.splitlines()


def test_an_attempt_that_waits_for_a_worker_is_queued_up_to_now() -> None:
    started = RunStarted("r", 0.0, {"step": (), "m": ("step",)})
    submitted = AttemptStarted("step", 1, 0.0, engine="dask")
    began = AttemptBegan("step", 1, 3_000.0, "dask", "w1")
    item = AttemptStarted("m", 1, 2_000.0, item=0, engine="dask")
    mapped = [StepSucceeded("step", 1, 2_000.0, None), MapStarted("m", 2_000.0, 1), item]
    now = LoopBlocked("step", 1, 4_000.0, 0.0, "")

    assert row_of("step", started, submitted, now, width=98)[20:90] == "░" * 70
    row = row_of("step", started, submitted, began, now, width=98)[20:90]
    assert (row.count("░"), row.count("█")) == (52, 18)
    assert row_of("m", started, submitted, *mapped, now, width=98)[20:90].count("█") == 0


IN_80 = """\
                                 0              2 s            4 s
                                 ├──────────────┬──────────────┬───────
✓ SUCCESS   extract              ███████                       ┊        900 ms =
✓ SUCCESS   rates              ◆ 1▓▓▓··░2▓▓▓·······3█          ┊         2.6 s =
✓ SUCCESS   token                ░██                           ┊         50 ms =
⊘ SKIPPED   archive              its condition was false                       =
✓ SUCCESS   validate                                ████       ┊        400 ms =
✓ SUCCESS   normalise…ister_v2 ◆                    1▒▒▒▒▒▒▒▒▒▒2████     1.9 s
■ CANCELLED fetch              ◆                               ▓▓▓▓▓▓!▒ 900 ms
✓ SUCCESS   index                                      █       ┊        0.4 ms =
✗ FAILED    <script>a…/script> ◆                               ┊   12▓▓ 399 ms
⊘ SKIPPED   load                 step "<script>alert('step')</script>"…
⊘ SKIPPED   notify               step "<script>alert('step')</script>"…
✓ SUCCESS   tidy               ◆                               ┊      █  97 ms

█ attempt   ▓ failed attempt   ▒ unfinished   ! timed out   ░ queued   · backoff
┊ resumed here, after a pause of 59 min 56 s; faint: before
◆ on the critical path   = reused"""


@pytest.mark.parametrize("retried", [False, True])
def test_few_failures_of_items_are_marked_where_they_happened(retried: bool) -> None:
    row = row_of("fetch", *mapped_run(6, retried=retried))

    cells = row[20:].rpartition("█")[0]
    assert 6 <= cells.count("▞" if retried else "▚") <= 12
    assert ("▚" in row) is not retried  # all of its items have succeeded
    assert cells.count("█") >= 40
    assert "▓" not in row


def test_a_millisecond_beside_hours_has_a_cell() -> None:
    events = [
        RunStarted("r", 0.0, {"short": (), "long": ("short",)}),
        AttemptStarted("short", 1, 0.0),
        StepSucceeded("short", 1, 1.0, None),
        AttemptStarted("long", 1, 1.0),
        StepSucceeded("long", 1, 5 * HOUR, None),
        RunFinished(5 * HOUR, RunStatus.PASSED),
    ]

    assert row_of("short", *events).count("█") == 1
    assert row_of("short", *events).endswith("1 ms")
    assert row_of("long", *events).endswith("5 h 0 min")


def test_a_running_or_waiting_step_reaches_up_to_now() -> None:
    events = [
        RunStarted("r", 0.0, {"runs": (), "waits": (), "comes": ()}),
        AttemptStarted("runs", 1, 0.0),
        AttemptStarted("waits", 1, 0.0),
        AttemptFailed("waits", 1, 500.0, ValueError("x"), 9_000.0),
    ]

    assert row_of("runs", *events, now_ms=1_000.0)[20:].count("█") == 52
    row = row_of("waits", *events, now_ms=1_000.0)
    assert row.count("▓") + 1 == pytest.approx(row.count("·"), abs=1)
    assert row_of("comes", *events, now_ms=1_000.0) == "○ PENDING   comes"


def test_a_run_without_events_has_an_empty_timeline() -> None:
    assert lines_of(RunView([RunStarted("r", 0.0, {"a": ()})]))[2:] == ["○ PENDING   a"]
    assert len(lines_of(RunView())) == 2


def test_what_ran_before_a_pause_is_faint_and_left_of_it() -> None:
    text = timeline(RunView(RESUMED), width=72)

    assert text.plain.splitlines() == RESUMED_IN_72.splitlines()
    faint = {
        text.plain[span.start : span.end]
        for span in text.spans
        if isinstance(span.style, str) and "dim" in span.style.split()
    }
    load = text.plain.splitlines()[3]
    assert {"█", "▓", "┊"} <= faint
    assert load[22:64].split() == ["1▓▓▓▓·2▓▓▓▓▓▓", "1██████████"]


RESUMED_IN_72 = """\
                      0                   1 s                 2 s
                      ├───────────────────┬───────────────────┬
✓ SUCCESS   extract ◆ █████████               ┊                 400 ms =
✓ SUCCESS   load    ◆         1▓▓▓▓·2▓▓▓▓▓▓   1██████████        1.1 s
⊘ SKIPPED   alert                         █████ no dependency … 200 ms
✓ SUCCESS   publish ◆                         ┊         ███████ 300 ms

█ attempt   ▓ failed attempt   · backoff
┊ resumed here, after a pause of 3 d 0 h; faint: before
◆ on the critical path   = reused"""


def test_critical_steps_are_marked_and_wide_names_are_elided() -> None:
    name = "商品目录" * 8
    events = [
        RunStarted("r", 0.0, {name: ()}),
        AttemptStarted(name, 1, 0.0),
        StepSucceeded(name, 1, 10.0, None),
        RunFinished(10.0, RunStatus.PASSED),
    ]

    row = lines_of(RunView(events))[2]

    assert row.startswith("✓ SUCCESS   商品目录 … 商品目录 ◆ ███")


@given(st.integers(1, 200), st.floats(0, 1000), st.floats(0, 1000))
def test_a_time_span_covers_all_its_cells(cells: int, start_ms: float, more: float) -> None:
    scale = Scale(2_000.0, cells)

    span = scale.span(start_ms, start_ms + more)

    assert len(span) >= 1
    assert span[0] >= 0
    assert span[-1] < cells
    assert span[0] <= start_ms / 2_000 * cells
    assert (start_ms + more) / 2_000 * cells <= span[-1] + 1 + 1e-6


@given(
    seed=st.integers(0, 100_000),
    cut=st.none() | st.integers(1, 60),
    width=st.integers(20, 220),
    encoding=st.sampled_from(["utf-8", "ascii", "latin-1"]),
)
def test_a_timeline_of_any_run_fits_any_width(
    seed: int, cut: int | None, width: int, encoding: str
) -> None:
    view = RunView(random_events(seed, cut))

    lines = lines_of(view, width, encoding=encoding)

    assert len(lines) >= len(view.steps) + 2
    "\n".join(lines).encode(encoding)


def test_a_step_that_takes_items_one_by_one_stands_below_its_source() -> None:
    view = RunView(chain_run())

    lines = lines_of(view)

    assert [line.split()[2] for line in lines[3:5]] == ["fetch", "↳"]
    assert "↳ takes each item when the step before has it" in lines[-1]
    ascii_lines = lines_of(view, encoding="ascii")
    assert ascii_lines[4].split()[2:4] == [">", "parse"]
