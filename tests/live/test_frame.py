"""A frame shows the state of a run and never exceeds the size of the terminal."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product

import pytest
from golden_run import EVENTS_BEFORE_CRASH, GOLDEN
from hypothesis import given
from hypothesis import strategies as st
from resumed_run import RESUMED
from watched_runs import random_events

from asyncflow import StepStatus
from asyncflow._core.analysis.looks import OUTCOME_LOOKS, STEP_LOOKS
from asyncflow._views.run_view import RunView
from asyncflow.events import (
    AttemptBegan,
    AttemptFailed,
    AttemptStarted,
    Event,
    MapStarted,
    PoolPaused,
    RunResumed,
    RunStarted,
    StepFailed,
    StepSkipped,
    StepSucceeded,
)
from asyncflow.live._frame import Expected, LiveRun, frame
from asyncflow.live._theme import ASCII, UNICODE, Theme, bar, theme_for


def run_of(events: Iterable[Event]) -> LiveRun:
    run = LiveRun()
    for event in events:
        run.apply(event)
    return run


def lines_of(
    run: LiveRun,
    width: int = 79,
    height: int = 23,
    now_ms: float | None = None,
    theme: Theme = UNICODE,
    min_height: int = 0,
) -> list[str]:
    now_ms = run.view.at_ms if now_ms is None else now_ms
    lines = frame(
        run, width=width, height=height, now_ms=now_ms, theme=theme, min_height=min_height
    )
    assert all(line.cell_len <= width for line in lines)
    assert len(lines) <= height
    return [line.plain.rstrip() for line in lines]


def started(*names: str, depends_on: str | None = None, **options: object) -> RunStarted:
    """Return the start of a run whose steps are independent or all depend on one of them."""
    edges = {name: (depends_on,) if depends_on and name != depends_on else () for name in names}
    return RunStarted("r", 0.0, edges, **options)  # type: ignore[arg-type]


def layers(count: int, width: int) -> dict[str, tuple[str, ...]]:
    return {
        f"s{number}": (f"s{number - width}",) if number >= width else () for number in range(count)
    }


class TestWhatIsUsual:
    def lines_at(self, now_ms: float, **options: object) -> list[str]:
        run = LiveRun(Expected(15_000.0, {"a": 4_000.0, "b": 900.0}))
        run.apply(
            started("a", "b", "c", **options), *(AttemptStarted(name, 1, 0.0) for name in "abc")
        )
        return lines_of(run, now_ms=now_ms)

    def test_a_frame_says_how_long_is_left_of_the_run_and_of_its_running_steps(self) -> None:
        title, a, b, c, _, end = self.lines_at(1_200.0)

        assert "▷ RUNNING  1.2 s, about 14 s left   " in end
        assert "about 3 s left" in a
        assert "left" not in title + b + c  # b is too short to matter, and c is new

    def test_what_takes_longer_says_how_long_it_usually_takes(self) -> None:
        _, a, *_, end = self.lines_at(15_500.0)

        assert "15.5 s, usually 15.0 s" in end
        assert "usually 4.0 s" in a

    def test_a_rerun_runs_a_part_only_so_it_has_no_estimate(self) -> None:
        assert "left" not in self.lines_at(1_200.0, rerun_of="r0")[-1]


class TestNames:
    def lines_of(self, *events: Event) -> list[str]:
        name = "geocode_customer_address_with_fallback"
        run = run_of([RunStarted("r", 0.0, {name: (), "b": ()}), *events])
        return lines_of(run, now_ms=100.0)

    def test_a_long_name_takes_the_cells_that_its_note_leaves_empty(self) -> None:
        name = "geocode_customer_address_with_fallback"
        started = AttemptStarted(name, 1, 0.0)
        failed = AttemptFailed(name, 1, 50.0, OSError("away"), 0.0)
        mapped = [MapStarted(name, 0.0, 2_000), AttemptStarted(name, 1, 0.0, item=0)]

        assert f"PENDING    {name}" in self.lines_of()[1]
        assert f"RUNNING    {name}  " in self.lines_of(started)[1]
        again = self.lines_of(started, failed, AttemptStarted(name, 2, 60.0))[1]
        assert "geocode_customer_a…ess_with_fallback  attempt 2 " in again
        items = self.lines_of(*mapped)[1]
        assert "geocode_custom…_with_fallback  0 of 2,000 items" in items

    def test_a_name_keeps_its_column_if_the_note_has_no_room(self) -> None:
        reason = "step 'a' failed and fail_fast is on, so nothing of it can run"
        skipped = StepSkipped("geocode_customer_address_with_fallback", 1.0, reason)

        assert "geocode_…fallback  step 'a' failed and fail_fa…" in self.lines_of(skipped)[1]


class TestGoldenRun:
    def test_a_frame_while_a_step_waits_for_its_next_attempt(self) -> None:
        run = run_of(event for event in GOLDEN[:EVENTS_BEFORE_CRASH] if _time(event) <= 1400)

        assert lines_of(run, now_ms=1_500) == WAITING.splitlines()

    def test_the_last_frame(self) -> None:
        assert lines_of(run_of(GOLDEN)) == AT_THE_END.splitlines()

    def test_a_short_frame_in_ascii(self) -> None:
        run = run_of(event for event in GOLDEN if _time(event) <= 4802.7)

        assert lines_of(run, height=9, theme=ASCII) == IN_ASCII.splitlines()

    def test_a_wide_terminal_truncates_nothing(self) -> None:
        run = run_of(GOLDEN)

        lines = lines_of(run, width=199, height=49)

        assert all("…" not in line for line in lines)
        assert all(any(name in line for line in lines) for name in run.view.steps)


WAITING = """\
nightly import  run nightly-2026-01-01
tier 1  ✓ SUCCESS    extract                                             900 ms
        ▷ RUNNING    rates              next attempt in 1 s (3 of 3…      1.5 s
        ✓ SUCCESS    token                                                50 ms
        ⊘ SKIPPED    archive            its condition was false
tier 2  ○ PENDING    validate
        ○ PENDING    normalise_customer_addr…he_national_register_v2
tier 3  ○ PENDING    fetch
        ○ PENDING    index
        ○ PENDING    <script>alert('step')</script>
tier 4  ○ PENDING    load
tier 5  ○ PENDING    notify
tier 6  ○ PENDING    tidy
━━━━━━━━━━━━━━━━────────────────────────────────────────────────  3 of 12 steps
▷ RUNNING  1.5 s   ✓ 2 succeeded  ⊘ 1 skipped  ▷ 1 running  ○ 8 pending"""

AT_THE_END = """\
nightly import  run nightly-2026-01-01 · resumed, 1 h 0 min with the pause
tier 1  ✓ SUCCESS    extract            reused                           900 ms
        ✓ SUCCESS    rates              reused, attempt 3 of 3            2.6 s
        ✓ SUCCESS    token              reused                            50 ms
        ⊘ SKIPPED    archive            its condition was false
tier 2  ✓ SUCCESS    validate           reused                           400 ms
        ✓ SUCCESS    normalis…ister_v2  attempt 2 of 2, run again b…      1.9 s
tier 3  ■ CANCELLED  fetch              step "<script>alert('step')…     900 ms
        ✓ SUCCESS    index              reused                           0.4 ms
        ✗ FAILED     <script>…/script>  ValueError: </pre><script>a…     399 ms
tier 4  ⊘ SKIPPED    load               step "<script>alert('step')…
tier 5  ⊘ SKIPPED    notify             step "<script>alert('step')…
tier 6  ✓ SUCCESS    tidy                                                 97 ms
stopped because step "<script>alert('st…')</script>" failed and fail_fast is on
━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━  12 of 12 steps
✗ FAILED  5.0 s   ✓ 7 succeeded  ✗ 1 failed  ■ 1 cancelled  ⊘ 3 skipped"""

IN_ASCII = """\
nightly import  run nightly-2026-01-01 - resumed, 1 h 0 min with the pause
tiers 1-2  v 5 succeeded  - 1 skipped
tier 3     > RUNNING    fetch              ##---------  1 of 4 items     801 ms
           v SUCCESS    index              reused                        0.4 ms
           > RUNNING    <script>alert(~ep')</script>  attempt 2 of 2     302 ms
tiers 4-6  o 3 pending
#####################################---------------------------  7 of 12 steps
> RUNNING  4.8 s   v 6 succeeded  - 1 skipped  > 2 running  o 3 pending"""


class TestResumedRun:
    def test_what_ran_before_is_told_apart_while_the_run_continues(self) -> None:
        resumed = next(at for at, each in enumerate(RESUMED) if isinstance(each, RunResumed))

        lines = lines_of(run_of(RESUMED[: resumed + 3]), now_ms=1_300)

        assert lines == RESUMING.splitlines()

    def test_attempts_of_this_segment_and_earlier_ones_are_counted_apart(self) -> None:
        failed = AttemptFailed("load", 1, 1300.0, ValueError("no"), 1.0)
        events = [*RESUMED[:14], failed, AttemptStarted("load", 2, 1301.0)]

        lines = lines_of(run_of([*events, StepSucceeded("load", 2, 1400.0, None)]))

        assert "load     attempt 2 of 2, 2 earlier attempts" in lines[2]


RESUMING = """\
nightly import  run nightly · resumed, 3 d 0 h with the pause
tier 1  ✓ SUCCESS    extract  reused                                     400 ms
tier 2  ▷ RUNNING    load     attempt 1 of 2, run again because it …     700 ms
tier 3  ○ PENDING    alert    ran before the run was resumed             200 ms
        ○ PENDING    publish
━━━━━━━━━━━━━━━━─────────────────────────────────────────────────  1 of 4 steps
▷ RUNNING  1.3 s   ✓ 1 succeeded  ▷ 1 running  ○ 2 pending"""


def test_a_pause_of_a_pool_has_a_line_until_it_ends() -> None:
    run = run_of([started("ask"), PoolPaused(1_000.0, 61_000.0, "api", "ask[3]")])

    paused, later = (lines_of(run, now_ms=now_ms) for now_ms in (2_000.0, 62_000.0))

    assert "pool api is paused by ask[3], 59.0 s left" in paused
    assert not any("is paused" in line for line in later)


def test_the_last_frame_of_a_dead_run_says_that_nothing_runs() -> None:
    run = run_of([started("a", "b"), AttemptStarted("a", 1, 0.0)])
    before = lines_of(run)

    run.expected.died_at = 0.0
    after = lines_of(run, now_ms=run.now_ms())

    assert before[-1] == "▷ RUNNING  0 ms   ▷ 1 running  ○ 1 pending"
    assert after[-1] == "◇ ORPHANED  0 ms   ◇ 1 orphaned  ○ 1 pending"
    assert "◇ ORPHANED   a  was running when its process died" in after[1]


def _time(event: Event) -> float:
    return 0.0 if isinstance(event, RunStarted) else event.at_ms


class TestStepRow:
    def row(self, *events: Event, now_ms: float = 0.0, width: int = 119, **options: object) -> str:
        """Return the row of the step 's' without its tier and its symbol."""
        run = run_of([started("s", **options), *events])
        return " ".join(lines_of(run, width, now_ms=now_ms)[1].split()[2:])

    def test_a_step_on_an_engine_waits_for_it_and_then_runs_on_it(self) -> None:
        submitted = AttemptStarted("s", 1, 250.0, engine="dask")
        began = AttemptBegan("s", 1, 450.0, "dask", "w1")

        assert self.row(submitted, now_ms=300) == "▷ RUNNING s waits for dask 50 ms"
        row = self.row(submitted, began, now_ms=500)
        assert row == "▷ RUNNING s on dask, queued 200 ms 50 ms"

    @pytest.mark.parametrize(
        ("now_ms", "countdown"),
        [(10, "in 3 s"), (2_500, "in 1 s"), (2_999, "in 1 s"), (3_100, "now")],
    )
    def test_a_step_in_backoff_counts_down(self, now_ms: float, countdown: str) -> None:
        failed = AttemptFailed("s", 1, 10.0, ConnectionError("refused"), 3_000.0)

        row = self.row(AttemptStarted("s", 1, 0.0), failed, now_ms=now_ms, max_retries={"s": 2})

        assert f"next attempt {countdown} (2 of 2): ConnectionError: refused" in row

    def test_a_failed_step_shows_its_error_and_attempts(self) -> None:
        failed = StepFailed("s", 2, 20.0, ValueError("no such row"))
        events = [AttemptStarted("s", 1, 0.0), AttemptFailed("s", 1, 1.0, ValueError("x"), 0.0)]

        row = self.row(*events, AttemptStarted("s", 2, 1.0), failed)

        assert row == "✗ FAILED s ValueError: no such row, 2 attempts 20 ms"

    def test_a_step_or_items_that_fell_back_say_so(self) -> None:
        gone = OSError("gone")
        fallen = StepSucceeded("s", 1, 20.0, 7, error=gone)
        items = [AttemptStarted("s", 1, 0.0, item=0), StepSucceeded("s", 1, 5.0, 1, 0, error=gone)]

        row = self.row(AttemptStarted("s", 1, 0.0), fallen)
        mapped = self.row(MapStarted("s", 0.0, 1), *items, StepSucceeded("s", 0, 5.0, [1]))

        assert row == "✓ SUCCESS s fell back: OSError: gone 20 ms"
        assert mapped == "✓ SUCCESS s 1 item, 1 of 1 items fell back 5 ms"

    def test_a_duration_of_an_hour_fits_its_column(self) -> None:
        first_attempt = AttemptStarted("s", 1, 0.0)

        assert self.row(first_attempt, now_ms=3_599_000).endswith(" 59min59s")

    def test_a_mapped_step_shows_how_many_items_are_done(self) -> None:
        items = [AttemptStarted("s", 1, 0.0, item=0), AttemptStarted("s", 1, 0.0, item=1)]
        done = [StepSucceeded("s", 1, 5.0, 1, 0), StepFailed("s", 1, 5.0, ValueError("x"), 1)]

        row = self.row(MapStarted("s", 0.0, 4), *items, *done, now_ms=5)

        assert row == f"▷ RUNNING s {'━' * 8}{'─' * 8} 2 of 4 items, 1 failed 5 ms"
        narrow = self.row(MapStarted("s", 0.0, 4), *items, *done, now_ms=5, width=55)
        assert narrow == "RUNNING s 2 of 4 items, 1 failed 5 ms"

    def test_a_mapped_step_with_an_unknown_item_count_has_no_bar(self) -> None:
        done = [AttemptStarted("s", 1, 0.0, item=0), StepSucceeded("s", 1, 5.0, 1, 0)]

        assert self.row(MapStarted("s", 0.0), *done, now_ms=5) == "▷ RUNNING s 1 item 5 ms"

    def test_the_view_stores_no_output(self) -> None:
        run = run_of(
            [started("s"), AttemptStarted("s", 1, 0.0), StepSucceeded("s", 1, 1.0, "secret")]
        )

        assert run.view.steps["s"].output is None


class TestTenThousandSteps:
    def test_many_tiers_share_one_line_when_done_and_one_when_pending(self) -> None:
        run = run_of([RunStarted("r", 0.0, layers(10_000, 10))])
        for number in range(5_005):
            run.apply(AttemptStarted(f"s{number}", 1, 0.0))
            if number < 5_002:
                run.apply(StepSucceeded(f"s{number}", 1, 1.0, None))

        lines = lines_of(run, now_ms=5.0)

        assert lines[1] == "tiers 1–500     ✓ 5,000 succeeded"
        assert [line[16:26] for line in lines[2:-3]] == 2 * ["✓ SUCCESS "] + 3 * ["▷ RUNNING "] + (
            5 * ["○ PENDING "]
        )
        assert lines[-3] == "tiers 502–1000  ○ 4,990 pending"

    def test_one_tier_shows_its_running_and_failed_steps(self) -> None:
        names = [f"s{number}" for number in range(10_000)]
        run = run_of([started(*names)])
        for name in names[:40]:
            run.apply(AttemptStarted(name, 1, 0.0))
        for name in names[10:40]:
            run.apply(StepFailed(name, 1, 1.0, ValueError(name)))

        lines = lines_of(run)

        assert lines[1] == "tier 1  ✗ 30 failed  ▷ 10 running  ○ 9,960 pending"
        assert sum("✗ FAILED" in line for line in lines[:-1]) == 9
        assert sum("▷ RUNNING" in line for line in lines[:-1]) == 10

    def test_completed_tiers_between_running_ones_share_a_line(self) -> None:
        run = run_of([RunStarted("r", 0.0, layers(10_000, 2))])
        for number in [*range(1, 8_000, 2), 8_001]:
            run.apply(AttemptStarted(f"s{number}", 1, 0.0))
            if number < 8_000:
                run.apply(StepSucceeded(f"s{number}", 1, 1.0, None))
        run.apply(AttemptStarted("s0", 1, 1.0))

        lines = lines_of(run)

        assert lines[1:-2] == [
            "tiers 1–4001     ✓ 4,000 succeeded  ▷ 2 running  ○ 4,000 pending",
            "tier 4001        ▷ RUNNING    s8001                                        1 ms",
            "tier 1           ▷ RUNNING    s0                                           0 ms",
            "tiers 4002–5000  ○ 1,998 pending",
        ]


class TestFrame:
    def test_a_bar_is_full_only_at_completion(self) -> None:
        assert bar(999, 1_000, 10, ASCII) == ("#" * 9, "-")
        assert bar(1, 1_000, 10, ASCII) == ("#", "-" * 9)
        assert bar(0, 1_000, 10, ASCII) == ("", "-" * 10)

    @pytest.mark.parametrize(
        ("encoding", "symbols"),
        [
            ("utf-8", "✓✗■⊘▷◇◷○"),
            ("latin-1", "vx#->?wo"),
            ("ascii", "vx#->?wo"),
            ("nonsense", "vx#->?wo"),
        ],
    )
    def test_the_symbols_suit_the_encoding(self, encoding: str, symbols: str) -> None:
        assert "".join(map(theme_for(encoding).symbol, STEP_LOOKS.values())) == symbols

    def test_every_status_has_its_own_symbol(self) -> None:
        for theme, looks in product((UNICODE, ASCII), (STEP_LOOKS, OUTCOME_LOOKS)):
            assert len(set(map(theme.symbol, looks.values()))) == len(looks)


@given(
    seed=st.integers(0, 100_000),
    cut=st.none() | st.integers(1, 60),
    whole=st.booleans(),
    width=st.integers(1, 130),
    height=st.integers(1, 40),
)
def test_every_frame_of_any_run_fits_and_counts_each_step_once(
    seed: int, cut: int | None, whole: bool, width: int, height: int
) -> None:
    run = LiveRun()
    view = RunView()
    for event in random_events(seed, cut, whole=whole):
        run.apply(event)
        view.apply(event)

        lines = lines_of(run, width, height)

        assert run.counts(0, len(view.tiers)) == view.counts
        assert {*run.running} == _named(view, StepStatus.RUNNING)
        assert {*run.failed} == _named(view, StepStatus.FAILED)
        if height >= len(view.steps) + 6 and width >= 80:
            assert sum(line[8:10] in _STATUS_PREFIXES for line in lines) == len(view.steps)


_STATUS_PREFIXES = [f"{symbol} " for symbol in map(UNICODE.symbol, STEP_LOOKS.values())]


def _named(view: RunView, status: StepStatus) -> set[str]:
    return {name for name, step in view.steps.items() if step.status is status}
