"""The command line in a real terminal, at 80 and at 200 columns."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from terminals import Terminal

from .conftest import Shell

pytestmark = pytest.mark.process

ON_A_TERMINAL = """
import fcntl, os, sys, termios
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, "-m", "asyncflow", *sys.argv[1:]])
"""

SLOW = """
    import asyncio
    from asyncflow import WorkflowStep
    async def slow():
        print("a step said this")
        await asyncio.sleep(30)
    steps = [WorkflowStep("slow", slow), WorkflowStep("next", slow, ["slow"])]
"""


class Window:
    """Runs commands in a terminal."""

    def __init__(self, shell: Shell, environment: dict[str, str], columns: int) -> None:
        self.columns = columns
        self._directory = shell.directory
        self._environment = {**environment, "TERM": "xterm-256color"}
        for name in ("COLUMNS", "LINES", "CI", "FORCE_COLOR"):
            self._environment.pop(name, None)
        self.terminal = Terminal(columns, 40)

    def start(self, *arguments: str, **variables: str) -> subprocess.Popen[bytes]:
        device = self.terminal.device
        return subprocess.Popen(
            [sys.executable, "-c", ON_A_TERMINAL, *arguments],
            cwd=self._directory,
            env={**self._environment, **variables},
            stdin=device,
            stdout=device,
            stderr=device,
        )

    def __call__(self, *arguments: str, **variables: str) -> tuple[int, str]:
        """Run the last command; return its exit code and the text on the screen."""
        code = self.start(*arguments, **variables).wait(timeout=20)
        self.terminal.close()
        return code, self.terminal.text

    def run_first(self, *arguments: str) -> tuple[int, str]:
        """Run a command that others follow; return its exit code and the text on the screen."""
        code = self.start(*arguments, "--text", "etl").wait(timeout=20)
        self.wait_for("etl")
        return code, self.terminal.text

    def wait_for(self, text: str) -> None:
        """Wait until the screen shows the text."""
        deadline = time.monotonic() + 20
        while text not in self.terminal.text:
            assert time.monotonic() < deadline, self.terminal.text
            time.sleep(0.02)


@pytest.fixture(params=[80, 200])
def window(
    request: pytest.FixtureRequest, shell: Shell, environment: dict[str, str]
) -> Iterator[Window]:
    made = Window(shell, environment, request.param)
    yield made
    made.terminal.close()


def test_a_run_shows_the_live_view_and_then_its_report(window: Window) -> None:
    code, text = window("run", "etl:failing", "--keep-going")

    assert code == 1
    lines = text.splitlines()
    assert "✗ FAILED" in text  # the live view
    assert text.index("✗ FAILED") < text.index("Traceback") < text.index("Pipeline FAILED")
    assert re.search(r"(?m)^\[FAILED \] bad \(1 attempt\(s\), \d+ms\): OSError: no disk$", text)
    assert lines[-1].startswith("To resume it: asyncflow resume ")
    assert "\x1b[31mFAILED" in window.terminal.written.decode() or b"\x1b[1;31mFAILED" in (
        window.terminal.written
    )


def test_no_color_changes_no_text(shell: Shell, environment: dict[str, str]) -> None:
    shell("run", "etl:failing", "--quiet", exits=1)
    plain, coloured = (Window(shell, environment, 80) for _ in range(2))

    code, text = plain("show", "latest", NO_COLOR="1")
    _, same = coloured("show", "latest")

    assert code == 0
    assert text == same
    assert not re.search(rb"\x1b\[[0-9;]*3[0-7]", plain.terminal.written)
    assert re.search(rb"\x1b\[[0-9;]*3[0-7]", coloured.terminal.written)


def test_a_table_and_a_timeline_fit_the_terminal(shell: Shell, window: Window) -> None:
    long = "etl:failing_with_a_name_that_is_as_long_as_names_of_pipelines_may_become_some_day"
    path = shell.directory / "etl.py"
    path.write_text(f"{path.read_text()}\n{long.partition(':')[2]} = failing\n")
    shell("run", long, "--quiet", "--keep-going", exits=1)

    runs, text = window.run_first("runs")
    timeline, drawn = window("show", "latest", "--timeline")

    assert (runs, timeline) == (0, 0)
    lines = text.splitlines()
    assert lines[0].split() == ["RUN", "STATUS", "STARTED", "TOOK", "PIPELINE"]
    assert len(lines) == 2
    assert max(map(len, lines)) <= window.columns
    assert lines[1].endswith(long if window.columns == 200 else "…")
    widest = max(map(len, drawn.removeprefix(text).splitlines()))
    assert window.columns - 20 <= widest <= window.columns


def test_a_run_id_is_never_truncated(shell: Shell, environment: dict[str, str]) -> None:
    name = "a-run-with-a-name-of-sixty-characters-that-can-be-copied-012"
    shell("run", "etl:failing", "--quiet", "--run-id", name, exits=1)
    window = Window(shell, environment, 80)

    code, text = window("runs")

    assert code == 0
    assert f"\n{name}  ✗ FAILED" in text


def test_ctrl_c_stops_the_run_and_restores_the_terminal(
    shell: Shell, environment: dict[str, str]
) -> None:
    shell.write("slow.py", SLOW)
    window = Window(shell, environment, 80)
    process = window.start("run", "slow:steps")
    window.wait_for("RUNNING")

    window.terminal.press(b"\x03")
    code = process.wait(timeout=20)
    window.terminal.close()

    text = window.terminal.text
    assert code == 130
    assert "a step said this" in text
    assert "SIGINT: stopping; running steps are cleaning up. Press Ctrl-C again" in text
    assert "Pipeline INTERRUPTED" in text
    written = window.terminal.written
    assert written.count(b"\x1b[?25l") == written.count(b"\x1b[?25h")  # the cursor is visible again
