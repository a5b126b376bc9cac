"""Runs are seen while they go on, on a real pseudo-terminal, and nothing of that is left."""

from __future__ import annotations

import asyncio
import fcntl
import gc
import logging
import os
import re
import struct
import sys
import termios
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from typing import Any

import pytest
from rich.console import Console
from terminals import Terminal

from asyncflow import WorkflowStep, current_step, run_pipeline
from asyncflow.events import RunStarted
from asyncflow.live import LiveView
from asyncflow.live import _renderer as thread_room
from asyncflow.live import _screen as frames_room
from asyncflow.live._screen import Screen

RUN_STARTED = RunStarted("r", 0.0, {"s": ()})


class Seen:
    """A terminal that stands for that of the program, with its standard streams."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, columns: int, lines: int) -> None:
        self.terminal = Terminal(columns, lines)
        self.stdout, self.stderr = self.terminal.open(), self.terminal.open()
        self._monkeypatch = monkeypatch

    def stand_in(self) -> None:
        self._monkeypatch.setattr(sys, "stdout", self.stdout)
        self._monkeypatch.setattr(sys, "stderr", self.stderr)

    @property
    def now(self) -> str:
        return self.terminal.text

    def lines(self) -> list[str]:
        """Return all lines, when all has been written."""
        self.close()
        return self.terminal.text.splitlines()

    def close(self) -> None:
        with suppress(OSError):
            self.stdout.close()
        with suppress(OSError):
            self.stderr.close()
        self.terminal.close()

    async def until(self, condition: Callable[[], bool]) -> None:
        for _ in range(1_000):
            if condition():
                return
            await asyncio.sleep(0.01)
        raise AssertionError(self.now)


@pytest.fixture
def open_terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Seen]]:
    opened: list[Seen] = []

    def open_terminal(columns: int = 80, lines: int = 24) -> Seen:
        opened.append(Seen(monkeypatch, columns, lines))
        opened[-1].stand_in()
        return opened[-1]

    yield open_terminal
    monkeypatch.undo()
    for seen in opened:
        seen.close()


@pytest.fixture
def seen(open_terminal: Callable[..., Seen]) -> Seen:
    return open_terminal()


def live_threads() -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name == "asyncflow:live"]


async def quick() -> None:
    pass


def steps_that_print() -> list[WorkflowStep]:
    async def extract() -> list[int]:
        print("extract says hello")
        return [1, 2, 3]

    async def each(number: int) -> None:
        print("item", number, file=sys.stderr)

    return [
        WorkflowStep("extract", extract),
        WorkflowStep("each", each, {"number": "extract"}, map_over="extract"),
    ]


@pytest.mark.parametrize("columns", [80, 200])
def test_the_last_frame_stays_below_what_was_printed(
    open_terminal: Callable[..., Seen], columns: int
) -> None:
    seen = open_terminal(columns)

    with LiveView() as view:
        asyncio.run(run_pipeline(steps_that_print(), run_id="r", observers=[view]))
        print("Pipeline PASSED")  # in the next moment

    lines = seen.lines()
    assert lines[:5] == ["extract says hello", "item 1", "item 2", "item 3", "run r"]
    assert [" ".join(line.split()[:4]) for line in lines[5:7]] == [
        "tier 1 ✓ SUCCESS",
        "tier 2 ✓ SUCCESS",
    ]
    assert lines[7] == "━" * (columns - 15) + "  2 of 2 steps"
    assert lines[8].startswith("✓ PASSED")
    assert lines[9:] == ["Pipeline PASSED"]


def test_the_streams_and_the_handlers_of_logging_are_given_back(seen: Seen) -> None:
    stdout, stderr = sys.stdout, sys.stderr
    handler = logging.StreamHandler()
    logger = logging.getLogger("test_live_view")
    logger.addHandler(handler)

    async def logs() -> None:
        assert sys.stdout is not stdout
        assert sys.stdout.isatty()
        logger.warning("a warning")
        sys.stdout.writelines(["a", "b\n"])
        sys.stdout.flush()

    try:
        with LiveView() as view:
            asyncio.run(run_pipeline([WorkflowStep("logs", logs)], observers=[view]))
    finally:
        logger.removeHandler(handler)

    assert (sys.stdout, sys.stderr, handler.stream) == (stdout, stderr, stderr)
    assert not live_threads()
    assert seen.lines()[:2] == ["a warning", "ab"]


def test_a_handler_that_a_step_makes_writes_to_the_stream_afterwards(seen: Seen) -> None:
    logger = logging.getLogger("test_live_view")

    async def configures() -> None:
        logger.addHandler(logging.StreamHandler())

    with LiveView() as view:
        asyncio.run(run_pipeline([WorkflowStep("s", configures)], observers=[view]))
    (handler,) = logger.handlers
    logger.removeHandler(handler)

    assert isinstance(handler, logging.StreamHandler)
    assert handler.stream is seen.stderr


def test_what_somebody_else_put_in_place_of_a_stream_stays(seen: Seen) -> None:
    handler = logging.StreamHandler()
    logging.getLogger("test_live_view").addHandler(handler)

    async def replaces() -> None:
        sys.stdout = other
        handler.setStream(other)

    with open(os.devnull, "w") as other:
        try:
            with LiveView() as view:
                asyncio.run(run_pipeline([WorkflowStep("s", replaces)], observers=[view]))
        finally:
            logging.getLogger("test_live_view").removeHandler(handler)

        assert sys.stdout is other
        assert handler.stream is other
        sys.stdout = seen.stdout


def test_only_what_goes_to_the_terminal_is_held_back(
    seen: Seen, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    with open(tmp_path / "results", "w+") as results:
        monkeypatch.setattr(sys, "stdout", results)

        async def prints() -> None:
            assert sys.stdout is results
            print("a result")

        with LiveView() as view:
            asyncio.run(run_pipeline([WorkflowStep("s", prints)], observers=[view]))

        assert (tmp_path / "results").read_text() == ""  # it is in the buffer, as ever
        results.flush()
        assert (tmp_path / "results").read_text() == "a result\n"
        assert "a result" not in seen.now


async def test_frames_are_drawn_while_a_run_goes_on(seen: Seen) -> None:
    go_on, calls = asyncio.Event(), 0

    async def flaky() -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise ConnectionError("refused")
        print("half a line", end="")
        await go_on.wait()
        print(" and the rest")

    steps = [WorkflowStep("flaky", flaky, max_retries=2, retry=300)]
    with LiveView() as view:
        run = asyncio.ensure_future(run_pipeline(steps, observers=[view]))
        await seen.until(lambda: "next attempt in 1 s (2 of 2)" in seen.now)
        await seen.until(lambda: "attempt 2 of 2 " in seen.now and "half a line" in seen.now)
        before = seen.now.splitlines()
        await seen.until(lambda: seen.now.splitlines()[-1] != before[-1])  # time goes by
        go_on.set()
        await run

    assert before[0] == "half a line"
    assert before[1].startswith("run ")
    assert seen.lines()[0] == "half a line and the rest"


async def test_a_line_is_hidden_until_its_end_if_there_is_only_room_for_the_frame(
    open_terminal: Callable[..., Seen],
) -> None:
    seen, go_on = open_terminal(40, 5), asyncio.Event()

    async def prints() -> None:
        print("half a line", end="")
        await go_on.wait()
        print(" and the rest")

    with LiveView() as view:
        run = asyncio.ensure_future(run_pipeline([WorkflowStep("s", prints)], observers=[view]))
        await seen.until(lambda: "▷ RUNNING" in seen.now)
        before = seen.now
        go_on.set()
        await run

    assert "half" not in before
    assert seen.lines()[0] == "half a line and the rest"


def test_lines_of_many_threads_stay_whole(seen: Seen) -> None:
    async def prints(number: int) -> None:
        def lines() -> None:
            for count in range(50):
                print("thread", number, "line", count)

        await asyncio.gather(*(asyncio.to_thread(lines) for _ in range(4)))

    async def numbers() -> range:
        return range(5)

    steps = [
        WorkflowStep("numbers", numbers),
        WorkflowStep("prints", prints, {"number": "numbers"}, map_over="numbers"),
    ]
    with LiveView() as view:
        asyncio.run(run_pipeline(steps, observers=[view]))

    lines = seen.lines()
    printed = [line for line in lines if line.startswith("thread")]
    assert len(printed) == 1_000
    assert {tuple(line.split()[::2]) for line in printed} == {("thread", "line")}
    assert lines[1_000].startswith("run ")


def test_a_line_that_is_written_again_and_again_is_one_line(seen: Seen) -> None:
    async def progress() -> None:
        for percent in range(101):
            print(f"\r{percent} %", end="", flush=True)
        print("x" * 20_001, end="")

    with LiveView() as view:
        asyncio.run(run_pipeline([WorkflowStep("s", progress)], observers=[view]))

    lines = seen.lines()
    assert lines[0] == "100 %" + "x" * 75
    assert lines[1] == "x" * 80


def test_what_is_printed_has_its_colours_and_the_frame_has_its_own(seen: Seen) -> None:
    async def prints() -> None:
        print("\x1b[35mpurple")

    with LiveView() as view:
        asyncio.run(run_pipeline([WorkflowStep("s", prints)], observers=[view]))

    assert seen.lines()[0] == "purple"
    assert b"\x1b[35mpurple\r\n\x1b[0m" in seen.terminal.written
    assert b"\x1b[1;32m" in seen.terminal.written


def test_without_colours_nothing_is_lost(seen: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")

    with LiveView() as view:
        asyncio.run(run_pipeline([WorkflowStep("s", quick)], observers=[view]))

    assert any("✓ SUCCESS" in line for line in seen.lines())
    assert b"\x1b[1m" in seen.terminal.written
    assert b"\x1b[1;3" not in seen.terminal.written
    assert b"\x1b[32m" not in seen.terminal.written


def test_on_a_terminal_in_ascii_signs_are_in_ascii(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    with terminal.open("ascii") as stream:
        monkeypatch.setattr(sys, "stderr", stream)

        async def prints() -> None:
            print("schön", file=sys.stderr)

        with LiveView() as view:
            asyncio.run(run_pipeline([WorkflowStep("商", prints)], observers=[view]))
        monkeypatch.undo()
    terminal.close()

    assert terminal.written.isascii()
    assert "v SUCCESS    ?" in terminal.text
    assert terminal.text.startswith("sch\\xf6n\n")


@pytest.mark.parametrize("size", [(20, 5), (1, 1), (200, 3), (10, 50)])
async def test_a_terminal_may_be_small(
    open_terminal: Callable[..., Seen], size: tuple[int, int]
) -> None:
    seen = open_terminal(*size)
    steps = [WorkflowStep(f"step {number}", quick) for number in range(100)]

    with LiveView() as view:
        print("hello")
        report = await run_pipeline(steps, observers=[view])

    seen.close()
    assert report.all_passed
    assert not live_threads()
    assert seen.terminal.written


async def test_a_terminal_may_not_know_its_size(seen: Seen) -> None:
    size = struct.pack("HHHH", 0, 0, 0, 0)  # as of one that `docker exec -t` or `expect` makes
    fcntl.ioctl(seen.terminal.device, termios.TIOCSWINSZ, size)

    with LiveView() as view:
        print("hello")
        await run_pipeline([WorkflowStep("quick", quick)], observers=[view])
    print("after that")

    lines = seen.lines()
    assert lines[0] == "hello"
    assert re.match("tier 1  ✓ SUCCESS    quick .* ms$", lines[2])
    assert lines[-1] == "after that"


@pytest.mark.realtime
async def test_a_terminal_may_be_resized(seen: Seen) -> None:
    go_on = asyncio.Event()
    steps = [WorkflowStep(f"a step with a long name {n}", go_on.wait) for n in range(5)]

    with LiveView() as view:
        run = asyncio.ensure_future(run_pipeline(steps, observers=[view]))
        await seen.until(lambda: "5 running" in seen.now)
        seen.terminal.resize(120, 30)
        await seen.until(lambda: any(len(line) > 90 for line in seen.terminal.lines))
        seen.terminal.resize(40, 6)
        await seen.until(lambda: "▷ RUNNING" in seen.now)
        go_on.set()
        await run

    assert seen.lines()[-1].startswith("✓ PASSED")


async def test_two_runs_have_frames_one_below_the_other(seen: Seen) -> None:
    go_on = asyncio.Event(), asyncio.Event()
    pipelines = [
        [WorkflowStep(f"step {n}", go_on[n].wait), WorkflowStep("other", quick)] for n in range(2)
    ]
    with LiveView() as view:
        runs = [
            asyncio.ensure_future(run_pipeline(steps, run_id=f"run-{n}", observers=[view]))
            for n, steps in enumerate(pipelines)
        ]
        await seen.until(lambda: seen.now.count("1 of 2 steps") == 2)
        both = seen.now
        go_on[1].set()
        await runs[1]
        await seen.until(lambda: "✓ PASSED" in seen.now)
        print("between")
        go_on[0].set()
        await runs[0]

    assert both.index("run run-0") < both.index("step 0") < both.index("run run-1")
    text = "\n".join(seen.lines())
    assert text.index("run run-1") < text.index("between") < text.index("run run-0")
    assert text.count("✓ PASSED") == 2
    assert "RUNNING" not in text


async def test_many_runs_have_a_line_each(open_terminal: Callable[..., Seen]) -> None:
    seen = open_terminal(80, 8)
    go_on = asyncio.Event()
    steps = [WorkflowStep("step", go_on.wait)]

    with LiveView() as view:
        runs = [
            asyncio.ensure_future(run_pipeline(steps, run_id=f"run-{n}", observers=[view]))
            for n in range(10)
        ]
        await seen.until(lambda: "and 4 more runs" in seen.now)
        lines = seen.now.splitlines()
        runs.append(asyncio.ensure_future(run_pipeline([], run_id="empty", observers=[view])))
        go_on.set()
        await asyncio.gather(*runs)

    assert [line.split()[0] for line in lines] == [*(f"run-{n}" for n in range(6)), "and"]
    assert sum("✓ PASSED" in line for line in seen.lines()) == 11


async def test_as_many_runs_as_there_are_lines_have_a_line_each(
    open_terminal: Callable[..., Seen],
) -> None:
    seen = open_terminal(80, 8)
    go_on = asyncio.Event()
    steps = [WorkflowStep("step", go_on.wait)]

    with LiveView() as view:
        runs = [
            asyncio.ensure_future(run_pipeline(steps, run_id=f"run-{n}", observers=[view]))
            for n in range(7)
        ]
        await seen.until(lambda: "run-6  ▷ RUNNING" in seen.now)
        lines = seen.now.splitlines()
        go_on.set()
        await asyncio.gather(*runs)

    assert [line.split()[0] for line in lines] == [f"run-{n}" for n in range(7)]


def test_a_view_without_runs_is_nothing(seen: Seen) -> None:
    with LiveView():
        pass

    assert seen.lines() == []


async def test_runs_that_come_one_after_another_have_a_frame_each(seen: Seen) -> None:
    with LiveView() as view:
        for number in range(3):
            await run_pipeline([WorkflowStep("s", quick)], run_id=f"run-{number}", observers=[view])
            print("after", number)

    lines = seen.lines()
    assert [line for line in lines if line.startswith(("run", "after"))] == [
        each for number in range(3) for each in (f"run run-{number}", f"after {number}")
    ]


async def test_a_nested_run_has_a_frame_above_that_of_the_outer_one(seen: Seen) -> None:
    view = LiveView()

    async def outer() -> None:
        await run_pipeline([WorkflowStep("inner step", quick)], run_id="in", observers=[view])

    await run_pipeline([WorkflowStep("outer step", outer)], run_id="out", observers=[view])

    assert not live_threads()
    text = "\n".join(seen.lines())
    assert text.index("run in") < text.index("inner step") < text.index("run out")
    assert text.count("✓ PASSED") == 2


def test_runs_in_loops_of_many_threads_share_a_view(seen: Seen) -> None:
    view = LiveView()

    def run(number: int) -> None:
        steps = [WorkflowStep(f"{number}.{n}", quick) for n in range(5)]
        for _ in range(3):
            asyncio.run(run_pipeline(steps, observers=[view]))

    threads = [threading.Thread(target=run, args=(number,)) for number in range(5)]
    with view:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert sum("✓ PASSED" in line for line in seen.lines()) == 15
    assert not live_threads()


class TestHoweverARunEnds:
    def test_without_a_with_statement_the_last_frame_is_there_when_the_run_ends(
        self, seen: Seen
    ) -> None:
        stdout = sys.stdout

        asyncio.run(run_pipeline([WorkflowStep("s", quick)], observers=[LiveView()]))

        assert not live_threads()
        assert sys.stdout is stdout
        assert seen.lines()[-1].startswith("✓ PASSED")

    async def test_by_a_failed_step(self, seen: Seen) -> None:
        async def fails() -> None:
            raise ValueError("no such row")

        with LiveView() as view:
            await run_pipeline([WorkflowStep("s", fails)], observers=[view])

        assert not live_threads()
        assert "ValueError: no such row" in seen.lines()[1]

    async def test_by_a_cancellation(self, seen: Seen) -> None:
        begun = asyncio.Event()

        async def waits() -> None:
            begun.set()
            await asyncio.Event().wait()

        run = asyncio.ensure_future(
            run_pipeline([WorkflowStep("s", waits)], observers=[LiveView()])
        )
        await begun.wait()
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run

        assert not live_threads()
        assert "■ INTERRUPTED" in seen.lines()[-1]

    @pytest.mark.parametrize("is_held", [True, False])
    def test_by_a_keyboard_interrupt(self, seen: Seen, is_held: bool) -> None:
        async def interrupts() -> None:
            raise KeyboardInterrupt

        def run() -> None:
            view = LiveView()
            with view if is_held else nullcontext():
                asyncio.run(run_pipeline([WorkflowStep("s", interrupts)], observers=[view]))

        with pytest.raises(KeyboardInterrupt):
            run()

        assert not live_threads()
        assert sys.stdout is seen.stdout
        assert "■ INTERRUPTED" in seen.lines()[-1]

    async def test_by_an_error_that_the_run_does_not_tell(self, seen: Seen) -> None:
        view = LiveView()
        observer = view.for_run()

        del observer
        gc.collect()

        await seen.until(lambda: not live_threads())
        assert sys.stdout is seen.stdout

    def test_by_the_end_of_the_with_statement(self, seen: Seen) -> None:
        with LiveView() as view:
            observer = view.for_run()
            observer(RUN_STARTED)

        assert not live_threads()
        assert re.fullmatch(r"▷ RUNNING  .* m?s   ○ 1 pending", seen.lines()[-1])
        observer(RUN_STARTED)  # nobody is interested any more


class TestIfDrawingFails:
    async def test_the_run_goes_on_and_the_error_is_logged(
        self, seen: Seen, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def fails(*_: object, **__: object) -> None:
            raise ArithmeticError("a mistake of ours")

        monkeypatch.setattr(frames_room, "frame", fails)

        async def prints() -> None:
            print("hello")
            while live_threads():
                await asyncio.sleep(0.01)
            print("still here")

        with LiveView() as view:
            report = await run_pipeline([WorkflowStep("s", prints)], observers=[view])

        assert report.all_passed
        assert not live_threads()
        assert sys.stdout is seen.stdout
        assert seen.lines() == ["hello", "still here"]
        assert "the live view failed and draws no more" in caplog.text
        assert "a mistake of ours" in caplog.text

    async def test_what_is_printed_is_never_held_back(
        self, seen: Seen, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fails(*_: object, **__: object) -> None:
            raise ArithmeticError("a mistake of ours")

        monkeypatch.setattr(Screen, "draw", fails)

        with LiveView() as view:
            await run_pipeline([WorkflowStep("quick", quick)], observers=[view])
        print("after that")

        assert sys.stdout is seen.stdout
        assert "after that" in seen.lines()

    @pytest.mark.parametrize("is_terminal", [True, False])
    async def test_since_nobody_reads_any_more_nothing_happens(
        self, is_terminal: bool, caplog: pytest.LogCaptureFixture
    ) -> None:
        theirs, ours = os.pipe()
        os.close(theirs)
        console = Console(file=os.fdopen(ours, "w"), force_terminal=is_terminal)

        with LiveView(console) as view:
            report = await run_pipeline([WorkflowStep("s", quick)], observers=[view])
            again = await run_pipeline([WorkflowStep("s", quick)], observers=[view])

        assert report.all_passed
        assert again.all_passed
        assert not live_threads()
        assert caplog.text == ""
        with pytest.raises(BrokenPipeError):
            console.file.close()

    async def test_since_the_stream_was_closed_nothing_happens(
        self, seen: Seen, caplog: pytest.LogCaptureFixture
    ) -> None:
        seen.stderr.close()

        report = await run_pipeline([WorkflowStep("s", quick)], observers=[LiveView()])

        assert report.all_passed
        assert not live_threads()
        assert caplog.text == ""

    async def test_since_there_can_be_no_thread_the_run_goes_on_without(
        self, seen: Seen, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def fails(_: object) -> None:
            raise RuntimeError("can't start new thread")

        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", fails)
            report = await run_pipeline([WorkflowStep("s", quick)], observers=[LiveView()])

        assert report.all_passed
        assert sys.stdout is seen.stdout
        assert "can't start new thread" in caplog.text


class TestWhatIsPrinted:
    @pytest.mark.process
    def test_in_a_forked_process_goes_out_at_once(self, seen: Seen) -> None:
        async def forks() -> None:
            process = os.fork()
            if not process:
                print("from the child", flush=True)
                os._exit(0)
            os.waitpid(process, 0)

        with warnings.catch_warnings(), LiveView() as view:
            warnings.simplefilter("ignore")  # there are threads: that is the subject
            asyncio.run(run_pipeline([WorkflowStep("s", forks)], observers=[view]))

        seen.close()
        assert b"from the child" in seen.terminal.written  # the frame may have been drawn over it

    def test_must_be_text_as_ever(self, seen: Seen) -> None:
        async def prints() -> None:
            sys.stdout.write(b"bytes")  # type: ignore[arg-type]

        with LiveView() as view:
            report = asyncio.run(run_pipeline([WorkflowStep("s", prints)], observers=[view]))

        assert isinstance(report["s"].error, TypeError)

    def test_after_the_end_through_what_stood_in_goes_out_at_once(self, seen: Seen) -> None:
        streams: list[Any] = []

        async def keeps() -> None:
            streams.append(sys.stdout)

        with LiveView() as view:
            asyncio.run(run_pipeline([WorkflowStep("s", keeps)], observers=[view]))
        print("later", file=streams[0], flush=True)

        assert seen.lines()[-1] == "later"

    async def test_of_two_views_one_draws_and_the_other_writes_lines(self, seen: Seen) -> None:
        steps = [WorkflowStep("s", quick)]

        with LiveView() as outer, LiveView() as inner:
            await run_pipeline(steps, run_id="r", observers=[outer, inner])

        lines = seen.lines()
        assert any(line.endswith("] s succeeded") for line in lines)
        assert any("✓ SUCCESS" in line for line in lines)


async def test_a_slow_terminal_does_not_hold_up_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()

    class Stuck:
        encoding = "utf-8"

        def isatty(self) -> bool:
            return True

        def write(self, text: str) -> int:
            gate.wait()
            return len(text)

        def flush(self) -> None:
            pass

    console: Any = Console(file=Stuck(), force_terminal=True)  # type: ignore[arg-type]
    monkeypatch.setattr(thread_room, "_EXIT_TIMEOUT_S", 0.05)
    steps = [WorkflowStep("s", quick), WorkflowStep("t", quick, ["s"])]

    began = time.monotonic()
    report = await run_pipeline(steps, observers=[LiveView(console)])

    assert report.all_passed
    assert time.monotonic() - began < 5
    (thread,) = live_threads()
    gate.set()
    thread.join()


def test_the_name_of_a_step_reaches_what_it_prints(seen: Seen) -> None:
    async def prints() -> None:
        print(current_step().step_name)

    with LiveView() as view:
        asyncio.run(run_pipeline([WorkflowStep("the step", prints)], observers=[view]))

    assert seen.lines()[0] == "the step"
