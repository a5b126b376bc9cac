"""The command line as a process of its own: how it starts and reacts to signals."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from importlib import import_module, util
from pathlib import Path

import pytest

from asyncflow import __main__

from .conftest import ROOT, Shell

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals"),
]

SLOW = """
    import asyncio, os, pathlib, time
    from asyncflow import WorkflowStep

    async def sleep():
        try:
            pathlib.Path("began").write_text("")
            await asyncio.sleep(30)
        finally:
            await asyncio.sleep(0.2)
            print("cleaned up")

    async def stubborn():
        pathlib.Path("began").write_text("")
        while True:
            try:
                await asyncio.sleep(30)
            except asyncio.CancelledError:
                print("no", flush=True)

    async def block():
        pathlib.Path("began").write_text("")
        time.sleep(30)

    def burn():
        pathlib.Path("worker").write_text(str(os.getpid()))
        pathlib.Path("began").write_text("")
        time.sleep(30)

    async def before():
        return "stored"

    def steps(action, **policies):
        slow = WorkflowStep("slow", action, ["before"], **policies)
        return [WorkflowStep("before", before), slow]

    sleeping, stubborn, blocking = steps(sleep), steps(stubborn), steps(block)
    burning = steps(burn, runs_in="process")
    threaded = steps(burn, runs_in="thread", timeout_ms=100)
"""


class Process:
    """A command in a child process."""

    def __init__(self, shell: Shell, environment: dict[str, str], *arguments: str) -> None:
        shell.write("slow.py", SLOW)
        self._directory = shell.directory
        self._process = subprocess.Popen(
            [sys.executable, "-m", "asyncflow", *arguments],
            cwd=shell.directory,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def wait_until_started(self) -> Process:
        """Wait until the slow step has started, and return the process."""
        wait_for(self._directory / "began")
        return self

    def send(self, number: int) -> None:
        self._process.send_signal(number)

    def wait_for_line(self, text: str) -> None:
        """Read the standard error up to a line that contains the text."""
        assert self._process.stderr is not None
        while text not in (line := self._process.stderr.readline()):
            assert line, f"no line contains {text!r}"

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def wait(self) -> tuple[int, str, str]:
        """Wait for the end; return the exit code, the standard output and the standard error."""
        try:
            out, err = self._process.communicate(timeout=60)
        finally:
            self._process.kill()
        return self._process.returncode, out, err


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, f"{path.name} never came"
        time.sleep(0.01)


def test_the_first_signal_stops_a_run_gracefully_and_the_run_can_be_resumed(
    shell: Shell, environment: dict[str, str]
) -> None:
    process = Process(
        shell, environment, "run", "slow:sleeping", "--run-id", "r1"
    ).wait_until_started()

    process.send(signal.SIGTERM)
    code, out, err = process.wait()

    assert code == 143
    assert out.startswith("cleaned up\nPipeline INTERRUPTED\n")
    assert "SIGTERM: stopping; running steps are cleaning up. " in err
    assert err.endswith("To resume it: asyncflow resume r1 slow:sleeping\n")
    assert "Traceback" not in err
    (run,) = shell.json("runs", "--json")
    assert run["status"] == "INTERRUPTED"
    path = shell.directory / "slow.py"
    path.write_text(path.read_text().replace("await asyncio.sleep(30)", "pass"))
    report = shell("resume", "r1", "slow:sleeping", "--quiet").stdout
    assert "Pipeline PASSED" in report
    assert re.search(r"\[SUCCESS\] before .*: reused", report)


@pytest.mark.parametrize(
    ("number", "target"),
    [(signal.SIGINT, "slow:blocking"), (signal.SIGTERM, "slow:stubborn")],
)
def test_the_second_signal_ends_the_process_at_once_whatever_the_step_does(
    shell: Shell, environment: dict[str, str], number: signal.Signals, target: str
) -> None:
    process = Process(
        shell, environment, "run", target, "--run-id", "r1", "--quiet"
    ).wait_until_started()

    while process.is_alive():
        process.send(number)
        time.sleep(0.05)  # simultaneous signals would merge into one
    code, out, err = process.wait()

    assert code == 128 + number
    assert "Pipeline" not in out
    assert err.endswith("exited immediately\n")
    (run,) = shell.json("runs", "--json")
    assert run["status"] == "ORPHANED"  # so it can be resumed


def test_the_first_signal_stops_a_run_without_a_journal(
    shell: Shell, environment: dict[str, str]
) -> None:
    process = Process(
        shell, environment, "run", "slow:sleeping", "--no-journal"
    ).wait_until_started()

    process.send(signal.SIGINT)
    code, out, err = process.wait()

    assert code == 130
    assert "[SUCCESS] before" in out
    assert "[CANCELLED] slow" in out
    assert "resume" not in err


def test_the_worker_process_of_a_step_does_not_outlive_the_run(
    shell: Shell, environment: dict[str, str]
) -> None:
    process = Process(shell, environment, "run", "slow:burning", "--quiet").wait_until_started()
    worker = int((shell.directory / "worker").read_text())

    process.send(signal.SIGTERM)
    code, out, _ = process.wait()

    assert code == 143
    assert "[CANCELLED] slow" in out
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)


def test_a_thread_that_outlives_the_run_is_reported_and_ended_by_ctrl_c(
    shell: Shell, environment: dict[str, str]
) -> None:
    process = Process(shell, environment, "run", "slow:threaded").wait_until_started()

    process.wait_for_line("and the process waits for it; press Ctrl-C to exit")
    process.send(signal.SIGINT)
    code, out, err = process.wait()

    assert code == -signal.SIGINT
    assert "Pipeline FAILED" in out
    assert err == ""


def test_the_installed_script_calls_main() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]

    assert list(scripts) == ["asyncflow"]
    module, _, name = scripts["asyncflow"].partition(":")
    assert getattr(import_module(module), name) is __main__.main


def test_a_process_without_the_extra_says_so_in_one_line(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    for name in ("anyio", "idna", "sniffio", "typing_extensions"):
        spec = util.find_spec(name)
        if spec is not None and spec.origin is not None:
            origin = Path(spec.origin)
            if origin.name == "__init__.py":
                shutil.copytree(origin.parent, tmp_path / name)
            else:
                shutil.copy(origin, tmp_path)
    variables = {**environment, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}

    done = subprocess.run(
        [sys.executable, "-S", "-m", "asyncflow", "runs"],
        env=variables,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == (
        "Error: the command line needs click, rich and msgspec: "
        "pip install 'asyncflow-tiers[cli]'\n"
    )


@pytest.mark.parametrize(
    ("line", "without"),
    [
        (["--help"], {"rich", "asyncflow._cli.output", "asyncflow.journal"}),
        (
            ["runs"],
            {"asyncflow._cli.execution", "asyncflow._cli.logs", "concurrent.futures.process"},
        ),
    ],
)
def test_a_command_imports_what_it_needs(
    shell: Shell, environment: dict[str, str], line: list[str], without: set[str]
) -> None:
    shell("run", "etl:pipeline")
    command = [sys.executable, "-X", "importtime", "-m", "asyncflow", *line]

    done = subprocess.run(
        command, env=environment, cwd=shell.directory, capture_output=True, text=True, check=True
    )

    imported = {part.rpartition("|")[2].strip() for part in done.stderr.splitlines()}
    assert "asyncflow._cli" in imported
    assert not imported & without


def test_the_command_line_works_in_an_encoding_without_its_symbols(
    shell: Shell, environment: dict[str, str]
) -> None:
    shell("run", "etl:failing", "--quiet", exits=1)
    variables = {**environment, "PYTHONIOENCODING": "ascii"}

    for command in (["runs"], ["show", "latest", "--timeline"]):
        done = subprocess.run(
            [sys.executable, "-m", "asyncflow", *command],
            env=variables,
            cwd=shell.directory,
            capture_output=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, b"")
        assert b"FAILED" in done.stdout


def test_a_closed_pipe_ends_a_command_quietly(shell: Shell, environment: dict[str, str]) -> None:
    shell("run", "etl:failing", "--quiet", exits=1)
    command = f"'{sys.executable}' -m asyncflow show latest --events | head -0"

    done = subprocess.run(
        command, shell=True, env=environment, cwd=shell.directory, capture_output=True, check=False
    )

    assert done.stderr == b""
