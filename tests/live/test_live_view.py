"""The live view draws runs on a real pseudo-terminal and restores everything afterwards."""

from __future__ import annotations

import asyncio
import gc
import io
import logging
import os
import re
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from typing import Any

import pyte
import pytest
from rich.console import Console
from rich.text import Text
from terminals import Terminal

from asyncflow import WorkflowStep, run_pipeline
from asyncflow.events import Event, RunStarted, StepLogged
from asyncflow.live import LiveView
from asyncflow.live import _renderer as renderer_module
from asyncflow.live import _screen as screen_module
from asyncflow.live._screen import Screen

RUN_STARTED = RunStarted("r", 0.0, {"s": ()})


class ProgramScreen:
    """A pseudo-terminal that serves as the standard streams of the program."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, columns: int, lines: int) -> None:
        self.terminal = Terminal(columns, lines)
        self.stdout, self.stderr = self.terminal.open(), self.terminal.open()
        self._monkeypatch = monkeypatch

    def install(self) -> None:
        self._monkeypatch.setattr(sys, "stdout", self.stdout)
        self._monkeypatch.setattr(sys, "stderr", self.stderr)

    @property
    def now(self) -> str:
        return self.terminal.text

    def lines(self) -> list[str]:
        """Close the streams and return all lines on the terminal."""
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
def open_terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., ProgramScreen]]:
    opened: list[ProgramScreen] = []

    def open_terminal(columns: int = 80, lines: int = 24) -> ProgramScreen:
        opened.append(ProgramScreen(monkeypatch, columns, lines))
        opened[-1].install()
        return opened[-1]

    yield open_terminal
    monkeypatch.undo()
    for screen in opened:
        screen.close()


@pytest.fixture
def screen(open_terminal: Callable[..., ProgramScreen]) -> ProgramScreen:
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
def test_a_passed_run_ends_with_one_line_below_what_it_printed(
    open_terminal: Callable[..., ProgramScreen], columns: int
) -> None:
    screen = open_terminal(columns)

    with LiveView() as view:
        asyncio.run(run_pipeline(steps_that_print(), run_id="r", observers=[view]))
        print("Pipeline PASSED")  # immediately after the end

    lines = screen.lines()
    assert lines[:4] == [
        "extract | extract says hello",
        "each[0] | item 1",
        "each[1] | item 2",
        "each[2] | item 3",
    ]
    assert re.fullmatch(r"✓ PASSED in [\d.]+ ms: 2 succeeded  run r", lines[4])
    assert lines[5:] == ["Pipeline PASSED"]


def test_the_streams_and_logging_handlers_are_restored(screen: ProgramScreen) -> None:
    stdout, stderr = sys.stdout, sys.stderr
    handler = logging.StreamHandler()
    logger = logging.getLogger("test_live_view")
    logger.addHandler(handler)

    async def log() -> None:
        assert sys.stdout is not stdout
        assert sys.stdout.isatty()
        logger.warning("a warning")
        sys.stdout.writelines(["a", "b\n"])
        sys.stdout.flush()

    try:
        with LiveView() as view:
            asyncio.run(run_pipeline([WorkflowStep("logs", log)], observers=[view]))
    finally:
        logger.removeHandler(handler)

    assert (sys.stdout, sys.stderr, handler.stream) == (stdout, stderr, stderr)
    assert not live_threads()
    assert screen.lines()[:2] == ["logs | a warning", "logs | ab"]


def test_a_handler_created_by_a_step_writes_to_the_real_stream_afterwards(
    screen: ProgramScreen,
) -> None:
    logger = logging.getLogger("test_live_view")

    async def configure() -> None:
        logger.addHandler(logging.StreamHandler())

    with LiveView() as view:
        asyncio.run(run_pipeline([WorkflowStep("s", configure)], observers=[view]))
    (handler,) = logger.handlers
    logger.removeHandler(handler)

    assert isinstance(handler, logging.StreamHandler)
    assert handler.stream is screen.stderr


def test_a_stream_replaced_by_a_step_stays_replaced(screen: ProgramScreen) -> None:
    handler = logging.StreamHandler()
    logging.getLogger("test_live_view").addHandler(handler)

    async def replace() -> None:
        sys.stdout = other
        handler.setStream(other)

    with open(os.devnull, "w") as other:
        try:
            with LiveView() as view:
                asyncio.run(run_pipeline([WorkflowStep("s", replace)], observers=[view]))
        finally:
            logging.getLogger("test_live_view").removeHandler(handler)

        assert sys.stdout is other
        assert handler.stream is other
        sys.stdout = screen.stdout


def test_only_output_to_the_terminal_is_captured(
    screen: ProgramScreen, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    with open(tmp_path / "results", "w+") as results:
        monkeypatch.setattr(sys, "stdout", results)

        async def print_lines() -> None:
            assert sys.stdout is results
            print("a result")

        with LiveView() as view:
            asyncio.run(run_pipeline([WorkflowStep("s", print_lines)], observers=[view]))

        assert (tmp_path / "results").read_text() == ""  # the stream still buffers it
        results.flush()
        assert (tmp_path / "results").read_text() == "a result\n"
        assert "a result" not in screen.now


async def test_frames_are_drawn_during_a_run(screen: ProgramScreen) -> None:
    proceed, calls = asyncio.Event(), 0

    async def flaky() -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise ConnectionError("refused")
        print("half a line", end="")
        await proceed.wait()
        print(" and the rest")

    steps = [WorkflowStep("flaky", flaky, max_retries=2, retry=300)]
    with LiveView() as view:
        run = asyncio.ensure_future(run_pipeline(steps, observers=[view]))
        await screen.until(lambda: "next attempt in 1 s (2 of 2)" in screen.now)
        await screen.until(lambda: "attempt 2 of 2 " in screen.now and "half a line" in screen.now)
        before = screen.now.splitlines()
        await screen.until(
            lambda: screen.now.splitlines()[-1] != before[-1]
        )  # the duration advances
        proceed.set()
        await run

    assert before[0] == "flaky | half a line"
    assert before[1].startswith("run ")
    assert screen.lines()[0] == "flaky | half a line and the rest"


def test_lines_of_concurrent_threads_are_not_mixed(screen: ProgramScreen) -> None:
    async def print_lines(number: int) -> None:
        def lines() -> None:
            for count in range(50):
                print("thread", number, "line", count)

        await asyncio.gather(*(asyncio.to_thread(lines) for _ in range(4)))

    async def numbers() -> range:
        return range(5)

    steps = [
        WorkflowStep("numbers", numbers),
        WorkflowStep("prints", print_lines, {"number": "numbers"}, map_over="numbers"),
    ]
    with LiveView() as view:
        asyncio.run(run_pipeline(steps, observers=[view]))

    lines = screen.lines()
    printed = [line for line in lines if line.startswith("prints[")]
    assert len(printed) == 1_000
    assert {tuple(line.split()[2::2]) for line in printed} == {("thread", "line")}
    assert all(line[7] == line.split()[3] for line in printed)  # the item that printed it
    assert lines[1_000].startswith("✓ PASSED")


async def test_an_unfinished_line_ends_with_its_attempt(screen: ProgramScreen) -> None:
    proceed, calls = asyncio.Event(), 0

    async def flaky() -> None:
        nonlocal calls
        calls += 1
        print(f"attempt {calls}", end="")
        if calls == 1:
            raise ConnectionError("refused")
        await proceed.wait()

    steps = [WorkflowStep("flaky", flaky, max_retries=2)]
    with LiveView() as view:
        run = asyncio.ensure_future(run_pipeline(steps, observers=[view]))
        await screen.until(lambda: "attempt 2 of 2" in screen.now and "| attempt 2" in screen.now)
        now = screen.now
        proceed.set()
        await run

    assert now.splitlines()[:2] == ["flaky | attempt 1", "flaky | attempt 2"]
    assert screen.lines()[:2] == ["flaky | attempt 1", "flaky | attempt 2"]


def test_a_rewritten_line_is_shown_once(screen: ProgramScreen) -> None:
    async def progress() -> None:
        for percent in range(101):
            print(f"\r{percent} %", end="", flush=True)
        print("x" * 20_001, end="")

    with LiveView() as view:
        asyncio.run(run_pipeline([WorkflowStep("s", progress)], observers=[view]))

    lines = screen.lines()
    assert lines[0] == "s | 100 %" + "x" * 71
    assert lines[1] == "x" * 80


def test_printed_colours_do_not_leak_into_the_frame(screen: ProgramScreen) -> None:
    async def print_lines() -> None:
        print("\x1b[35mpurple")

    with LiveView() as view:
        asyncio.run(run_pipeline([WorkflowStep("s", print_lines)], observers=[view]))

    assert screen.lines()[0] == "s | purple"
    assert b"\x1b[35mpurple\r\n\x1b[0m" in screen.terminal.written
    assert b"\x1b[1;32m" in screen.terminal.written


def test_no_color_changes_no_text(screen: ProgramScreen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")

    async def print_lines() -> None:
        print("hello")

    with LiveView() as view:
        asyncio.run(run_pipeline([WorkflowStep("s", print_lines)], observers=[view]))

    assert screen.lines()[0] == "s | hello"
    assert screen.lines()[1].startswith("✓ PASSED")
    assert b"\x1b[1m" in screen.terminal.written
    assert not re.search(rb"\x1b\[[0-9;]*3[0-7]", screen.terminal.written)


@pytest.mark.parametrize("size", [(20, 5), (1, 1), (200, 3), (10, 50)])
async def test_a_run_is_shown_in_a_terminal_of_any_size(
    open_terminal: Callable[..., ProgramScreen], size: tuple[int, int]
) -> None:
    screen = open_terminal(*size)
    steps = [WorkflowStep(f"step {number}", quick) for number in range(100)]

    with LiveView() as view:
        print("hello")
        report = await run_pipeline(steps, observers=[view])

    screen.close()
    assert report.all_passed
    assert not live_threads()
    assert screen.terminal.written


def test_a_frame_of_another_width_leaves_nothing_of_the_one_before_below_it() -> None:
    terminal, size = pyte.Screen(20, 6), [20]
    file = io.StringIO()
    screen = Screen(Console(file=file), file, lambda: (size[0], 6))

    def draw(line: str) -> list[str]:
        screen.draw("", [Text(line)])
        pyte.Stream(terminal).feed(file.getvalue().replace("\n", "\r\n"))
        file.seek(0)
        file.truncate()
        return [row.rstrip() for row in terminal.display if row.strip()]

    assert draw("a frame") == ["a frame"]
    pyte.Stream(terminal).feed("what it wrapped\r")
    size[0] = 15

    assert draw("another frame") == ["another frame"]


@pytest.mark.realtime
async def test_frames_follow_the_size_of_the_terminal(screen: ProgramScreen) -> None:
    proceed = asyncio.Event()
    steps = [WorkflowStep(f"a step with a long name {n}", proceed.wait) for n in range(5)]

    with LiveView() as view:
        run = asyncio.ensure_future(run_pipeline(steps, observers=[view]))
        await screen.until(lambda: "5 running" in screen.now)
        screen.terminal.resize(120, 30)
        await screen.until(lambda: any(len(line) > 90 for line in screen.terminal.lines))
        screen.terminal.resize(40, 6)
        await screen.until(lambda: "▷ RUNNING" in screen.now)
        proceed.set()
        await run

    assert screen.lines()[-1].startswith("✓ PASSED")


async def test_two_runs_have_frames_one_below_the_other(screen: ProgramScreen) -> None:
    proceed = asyncio.Event(), asyncio.Event()
    pipelines = [
        [WorkflowStep(f"step {n}", proceed[n].wait), WorkflowStep("other", quick)] for n in range(2)
    ]
    with LiveView() as view:
        runs = [
            asyncio.ensure_future(run_pipeline(steps, run_id=f"run-{n}", observers=[view]))
            for n, steps in enumerate(pipelines)
        ]
        await screen.until(lambda: screen.now.count("1 of 2 steps") == 2)
        both = screen.now
        proceed[1].set()
        await runs[1]
        await screen.until(lambda: "✓ PASSED" in screen.now)
        print("between")
        proceed[0].set()
        await runs[0]

    assert both.index("run run-0") < both.index("step 0") < both.index("run run-1")
    text = "\n".join(screen.lines())
    assert text.index("run run-1") < text.index("between") < text.index("run run-0")
    assert text.count("✓ PASSED") == 2
    assert "RUNNING" not in text


@pytest.mark.parametrize(("count", "last"), [(7, "run-6"), (10, "and 4 more runs")])
async def test_many_runs_have_one_line_each(
    open_terminal: Callable[..., ProgramScreen], count: int, last: str
) -> None:
    screen = open_terminal(80, 8)
    proceed = asyncio.Event()
    steps = [WorkflowStep("step", proceed.wait)]

    with LiveView() as view:
        runs = [
            asyncio.ensure_future(run_pipeline(steps, run_id=f"run-{n}", observers=[view]))
            for n in range(count)
        ]
        await screen.until(lambda: last in screen.now)
        lines = screen.now.splitlines()
        runs.append(asyncio.ensure_future(run_pipeline([], run_id="empty", observers=[view])))
        proceed.set()
        await asyncio.gather(*runs)

    assert [line.split()[0] for line in lines] == [*(f"run-{n}" for n in range(6)), last.split()[0]]
    assert sum("✓ PASSED" in line for line in screen.lines()) == count + 1


class TestEnds:
    def test_without_a_with_statement_the_run_draws_its_last_frame(
        self, screen: ProgramScreen
    ) -> None:
        stdout = sys.stdout

        asyncio.run(run_pipeline([WorkflowStep("s", quick)], observers=[LiveView()]))

        assert not live_threads()
        assert sys.stdout is stdout
        assert screen.lines()[-1].startswith("✓ PASSED")

    @pytest.mark.parametrize("in_with", [True, False])
    def test_the_view_ends_after_a_keyboard_interrupt(
        self, screen: ProgramScreen, in_with: bool
    ) -> None:
        async def interrupt() -> None:
            raise KeyboardInterrupt

        def run() -> None:
            view = LiveView()
            with view if in_with else nullcontext():
                asyncio.run(run_pipeline([WorkflowStep("s", interrupt)], observers=[view]))

        with pytest.raises(KeyboardInterrupt):
            run()

        assert not live_threads()
        assert sys.stdout is screen.stdout
        assert "□ INTERRUPTED" in screen.lines()[-1]

    async def test_the_view_ends_when_its_last_observer_is_dropped(
        self, screen: ProgramScreen
    ) -> None:
        view = LiveView()
        observer = view.for_run()

        del observer
        gc.collect()

        await screen.until(lambda: not live_threads())
        assert sys.stdout is screen.stdout

    def test_the_view_ends_with_its_with_statement(self, screen: ProgramScreen) -> None:
        with LiveView() as view:
            observer = view.for_run()
            observer(RUN_STARTED)

        assert not live_threads()
        assert re.fullmatch(r"▷ RUNNING  .* m?s   ○ 1 pending", screen.lines()[-1])
        observer(RUN_STARTED)  # ignored


class TestDrawingFailures:
    async def test_the_run_continues_and_the_error_is_logged(
        self,
        screen: ProgramScreen,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        def fail(*_: object, **__: object) -> None:
            raise ArithmeticError("an internal error")

        monkeypatch.setattr(screen_module, "frame", fail)

        async def print_lines() -> None:
            print("hello")
            while live_threads():
                await asyncio.sleep(0.01)
            print("still here")

        with LiveView() as view:
            report = await run_pipeline([WorkflowStep("s", print_lines)], observers=[view])

        assert report.all_passed
        assert not live_threads()
        assert sys.stdout is screen.stdout
        assert screen.lines() == ["s | hello", "still here"]
        assert "the live view failed and draws no more" in caplog.text
        assert "an internal error" in caplog.text

    async def test_printed_output_is_never_lost(
        self, screen: ProgramScreen, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*_: object, **__: object) -> None:
            raise ArithmeticError("an internal error")

        monkeypatch.setattr(Screen, "draw", fail)

        with LiveView() as view:
            await run_pipeline([WorkflowStep("quick", quick)], observers=[view])
        print("after that")

        assert sys.stdout is screen.stdout
        assert "after that" in screen.lines()

    @pytest.mark.parametrize("is_terminal", [True, False])
    async def test_a_broken_pipe_is_ignored(
        self, is_terminal: bool, caplog: pytest.LogCaptureFixture
    ) -> None:
        read_end, write_end = os.pipe()
        os.close(read_end)
        console = Console(file=os.fdopen(write_end, "w"), force_terminal=is_terminal)

        with LiveView(console) as view:
            report = await run_pipeline([WorkflowStep("s", quick)], observers=[view])
            again = await run_pipeline([WorkflowStep("s", quick)], observers=[view])

        assert report.all_passed
        assert again.all_passed
        assert not live_threads()
        assert caplog.text == ""
        with pytest.raises(BrokenPipeError):
            console.file.close()

    async def test_a_closed_stream_is_ignored(
        self, screen: ProgramScreen, caplog: pytest.LogCaptureFixture
    ) -> None:
        screen.stderr.close()

        report = await run_pipeline([WorkflowStep("s", quick)], observers=[LiveView()])

        assert report.all_passed
        assert not live_threads()
        assert caplog.text == ""

    async def test_a_run_continues_without_a_view_if_no_thread_can_start(
        self,
        screen: ProgramScreen,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        def fail(_: object) -> None:
            raise RuntimeError("can't start new thread")

        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", fail)
            report = await run_pipeline([WorkflowStep("s", quick)], observers=[LiveView()])

        assert report.all_passed
        assert sys.stdout is screen.stdout
        assert "can't start new thread" in caplog.text


class TestPrintedOutput:
    @pytest.mark.process
    def test_output_of_a_forked_process_is_written_at_once(self, screen: ProgramScreen) -> None:
        async def fork() -> None:
            process = os.fork()
            if not process:
                print("from the child", flush=True)
                os._exit(0)
            os.waitpid(process, 0)

        with warnings.catch_warnings(), LiveView() as view:
            warnings.simplefilter("ignore")  # the warning about threads; they are the subject
            asyncio.run(run_pipeline([WorkflowStep("s", fork)], observers=[view]))

        screen.close()
        assert b"from the child" in screen.terminal.written  # a frame may have overwritten it

    def test_writing_bytes_raises_a_type_error(self, screen: ProgramScreen) -> None:
        async def print_lines() -> None:
            sys.stdout.write(b"bytes")  # type: ignore[arg-type]

        with LiveView() as view:
            report = asyncio.run(run_pipeline([WorkflowStep("s", print_lines)], observers=[view]))

        assert isinstance(report["s"].error, TypeError)

    def test_output_through_a_captured_stream_after_the_end_is_written_at_once(
        self, screen: ProgramScreen
    ) -> None:
        streams: list[Any] = []

        async def store_stream() -> None:
            streams.append(sys.stdout)

        with LiveView() as view:
            asyncio.run(run_pipeline([WorkflowStep("s", store_stream)], observers=[view]))
        print("later", file=streams[0], flush=True)

        assert screen.lines()[-1] == "later"

    async def test_the_second_of_two_views_writes_lines(self, screen: ProgramScreen) -> None:
        steps = [WorkflowStep("s", quick)]

        with LiveView() as outer, LiveView() as inner:
            await run_pipeline(steps, run_id="r", observers=[outer, inner])

        lines = screen.lines()
        assert any(line.endswith("] s succeeded") for line in lines)
        assert any(line.startswith("✓ PASSED") for line in lines)


async def test_a_slow_terminal_does_not_delay_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
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
    monkeypatch.setattr(renderer_module, "_EXIT_TIMEOUT_S", 0.05)
    steps = [WorkflowStep("s", quick), WorkflowStep("t", quick, ["s"])]

    started_at = time.monotonic()
    report = await run_pipeline(steps, observers=[LiveView(console)])

    assert report.all_passed
    assert time.monotonic() - started_at < 5
    (thread,) = live_threads()
    gate.set()
    thread.join()


class PrintListener:
    """An observer that wants what steps print."""

    logs = logging.WARNING
    prints = True

    def __init__(self) -> None:
        self.messages: list[str] = []

    def __call__(self, event: Event) -> None:
        if isinstance(event, StepLogged):
            self.messages.append(event.message)


@pytest.mark.parametrize("in_with", [True, False])
@pytest.mark.parametrize("view_first", [True, False])
def test_printed_lines_reach_an_observer_and_the_streams_are_restored(
    screen: ProgramScreen, in_with: bool, view_first: bool
) -> None:
    async def talk() -> None:
        print("hello")
        print("to the other stream", file=sys.stderr)

    view, listener = LiveView(), PrintListener()
    observers = [view, listener] if view_first else [listener, view]
    stdout, stderr = sys.stdout, sys.stderr
    with view if in_with else nullcontext():
        asyncio.run(run_pipeline([WorkflowStep("s", talk)], observers=observers))
    print("after that")

    assert listener.messages == ["hello", "to the other stream"]
    assert (sys.stdout, sys.stderr) == (stdout, stderr)
    lines = screen.lines()
    assert lines[:2] == ["s | hello", "s | to the other stream"]
    assert lines[-1] == "after that"
