"""The command line in a real terminal, at 80 and at 200 columns."""

from __future__ import annotations

import re
import shlex
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

    def __init__(
        self, shell: Shell, environment: dict[str, str], columns: int, lines: int = 40
    ) -> None:
        self.columns = columns
        self._directory = shell.directory
        self._environment = {**environment, "TERM": "xterm-256color"}
        for name in ("COLUMNS", "LINES", "CI", "FORCE_COLOR", "GITHUB_ACTIONS"):
            self._environment.pop(name, None)
        self.terminal = Terminal(columns, lines)

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
        code = self.start(*arguments, **variables).wait(timeout=60)
        self.terminal.close()
        return code, self.terminal.text

    def run_first(self, *arguments: str) -> tuple[int, str]:
        """Run a command that others follow; return its exit code and the text on the screen."""
        code = self.start(*arguments, "--text", "etl").wait(timeout=60)
        self.wait_for("etl")
        return code, self.terminal.text

    def wait_for(self, text: str) -> None:
        """Wait until the screen shows the text."""
        deadline = time.monotonic() + 60
        while text not in self.terminal.text:
            assert time.monotonic() < deadline, self.terminal.text
            time.sleep(0.02)


@pytest.fixture
def window(
    request: pytest.FixtureRequest, shell: Shell, environment: dict[str, str]
) -> Iterator[Window]:
    made = Window(shell, environment, getattr(request, "param", 80))
    yield made
    made.terminal.close()


FORTY = """
    import asyncio
    from asyncflow import WorkflowStep

    calls = set()

    async def fine():
        await asyncio.sleep(0.01)

    def flaky(name):
        async def action():
            print("hello from", name)
            if name not in calls:
                calls.add(name)
                raise ConnectionError("refused")
        return action

    async def train():
        await asyncio.sleep(0.2)
        rows = {}
        return rows["no such row"]

    steps = [
        *(WorkflowStep(f"prepare_{n}", fine) for n in range(12)),
        *(WorkflowStep(f"fetch_{n}", flaky(f"fetch_{n}"), max_retries=2) for n in range(3)),
        WorkflowStep("train", train, [f"fetch_{n}" for n in range(3)]),
        *(WorkflowStep(f"publish_{n}", fine, ["train"]) for n in range(24)),
    ]
"""


@pytest.mark.parametrize(("columns", "lines"), [(80, 24), (200, 50)])
def test_the_end_of_a_failed_run_fits_the_terminal_and_shows_the_failure_last(
    shell: Shell, environment: dict[str, str], columns: int, lines: int
) -> None:
    shell.write("forty.py", FORTY)
    window = Window(shell, environment, columns, lines)

    code, text = window("run", "forty:steps", "--run-id", "my run", "--journal", "it's.db")

    assert code == 1
    shown = text.splitlines()
    end = next(at for at, line in enumerate(shown) if line.startswith("forty:steps  run my run"))
    names = ", ".join(f"publish_{n}" for n in range(24))
    assert shown[end + 1].startswith("✗ FAILED     train  2")
    assert shown[end + 2 : end + 5] == [
        '  File "forty.py", line 21, in train',
        '    return rows["no such row"]',
        "  KeyError: 'no such row'",
    ]
    assert shown[end + 5] == "⊘ SKIPPED    24 steps: step 'train' failed and fail_fast is on"
    assert names not in text
    # In a narrow terminal, the verdict and the commands take two lines each.
    told, _, command = "".join(shown[end + 6 :]).partition("To resume it: ")
    verdict, _, show = told.partition("To see what train did: ")
    assert re.fullmatch(
        r"✗ FAILED in \d+ ms: 15 succeeded, 1 failed, 24 skipped, 3 retried \(.*\)", verdict
    )
    assert show == """asyncflow show 'my run' train --journal 'it'"'"'s.db'"""
    assert command == """asyncflow resume 'my run' forty:steps --journal 'it'"'"'s.db'"""
    assert len(shown) - end < lines
    assert "Pipeline FAILED" not in text
    assert {line for line in shown if "hello" in line} == {
        f"fetch_{n}    | hello from fetch_{n}" for n in range(3)
    }


def test_a_passed_run_ends_with_one_line_and_the_command_that_shows_it(window: Window) -> None:
    code, text = window("run", "etl:pipeline", "--run-id", "r1")

    assert code == 0
    assert re.fullmatch(
        r"✓ PASSED in [\d.]+ ms: 2 succeeded  etl  run r1\n"
        r"To show it again: asyncflow show r1",
        text,
    )


def test_without_a_journal_the_whole_traceback_is_shown(window: Window) -> None:
    code, text = window("run", "etl:failing", "--no-journal")

    assert code == 1
    assert text.index("✗ FAILED in ") < text.index("ValueError: invalid literal")
    assert "resume" not in text


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_redirected_report_is_that_of_files(
    shell: Shell, environment: dict[str, str], stream: str
) -> None:
    window = Window(shell, environment, 80)
    command = f"asyncflow run etl:failing {'' if stream == 'stdout' else '2'}> output"
    script = f"{shlex.quote(sys.executable)} -m {command}"

    device = window.terminal.device
    code = subprocess.run(
        ["sh", "-c", script],
        cwd=shell.directory,
        env={**environment, "TERM": "xterm-256color"},
        stdin=device,
        stdout=device,
        stderr=device,
        timeout=60,
    ).returncode
    window.terminal.close()

    output, text = (shell.directory / "output").read_text(), window.terminal.text
    assert code == 1
    report = output if stream == "stdout" else text
    assert report.count("Pipeline FAILED\n[FAILED ] bad (1 attempt(s), ") == 1
    assert ("✗ FAILED in " in text) is (stream == "stdout")
    assert "✗" not in output


@pytest.mark.parametrize("window", [80, 200], indirect=True)
def test_a_table_and_a_timeline_fit_the_terminal(shell: Shell, window: Window) -> None:
    long = "etl:failing_with_a_name_that_is_as_long_as_names_of_pipelines_may_become_some_day"
    path = shell.directory / "etl.py"
    path.write_text(f"{path.read_text()}\n{long.partition(':')[2]} = failing\n")
    shell("run", long, "--quiet", "--keep-going", exits=1)

    runs, text = window.run_first("runs")
    timeline, drawn = window("show", "latest", "--timeline")

    assert (runs, timeline) == (0, 0)
    lines = text.splitlines()
    titles = [title for title in lines[0].split() if "(" not in title and ")" not in title]
    assert titles[:5] == ["RUN", "STATUS", "STARTED", "TOOK", "PIPELINE"]
    assert titles[5:] == (["DETAILS"] if window.columns == 200 else [])
    assert len(lines) == (2 if window.columns == 200 else 3)  # the reason is below its row
    assert "bad: OSError: no disk" in lines[-1]
    assert max(map(len, lines)) <= window.columns
    assert (f"{long}  bad: OSError: no disk" if window.columns == 200 else "…") in lines[1]
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
    code = process.wait(timeout=60)
    window.terminal.close()

    text = window.terminal.text
    assert code == 130
    assert "slow | a step said this" in text
    assert "SIGINT: stopping; running steps are cleaning up. Press Ctrl-C again" in text
    assert re.search(r"(?m)^□ INTERRUPTED in [\d.]+ m?s: 1 cancelled, 1 skipped$", text)
    written = window.terminal.written
    assert written.count(b"\x1b[?25l") == written.count(b"\x1b[?25h")  # the cursor is visible again
