"""The CI example runs the right steps, reports failures, and leaves no child process behind."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from asyncflow import StepTimeoutError, WorkflowStep, parallel_groups, run_pipeline
from examples import ci


def needs(*tools: str) -> pytest.MarkDecorator:
    missing = [tool for tool in tools if find_spec(tool) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(os.name != "posix", reason="uses named pipes and process groups"),
]

PYPROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]

[tool.mypy]
files = ["tiny.py"]

[tool.pytest.ini_options]
addopts = ["-p", "no:cacheprovider"]
"""

# Needs only the standard library, so that a build contacts no package index.
BACKEND = """\
import tarfile
import zipfile


def build_sdist(folder, config_settings=None):
    with tarfile.open(f"{folder}/tiny-1.tar.gz", "w:gz") as archive:
        for name in ("PKG-INFO", "pyproject.toml", "backend.py", "tiny.py"):
            archive.add(name, f"tiny-1/{name}")
    return "tiny-1.tar.gz"

def build_wheel(folder, config_settings=None, metadata_directory=None):
    with zipfile.ZipFile(f"{folder}/tiny-1-py3-none-any.whl", "w") as archive:
        archive.write("tiny.py")
        archive.write("PKG-INFO", "tiny-1.dist-info/METADATA")
    return "tiny-1-py3-none-any.whl"
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "pyproject.toml").write_text(PYPROJECT)
    (folder / "backend.py").write_text(BACKEND)
    (folder / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: tiny\nVersion: 1\n")
    (folder / "tiny.py").write_text("answer: int = 42\n")
    (folder / "test_tiny.py").write_text("def test_passes():\n    pass\n")
    return folder


@pytest.fixture
def artifacts(tmp_path: Path) -> Path:
    folder = tmp_path / "artifacts"
    folder.mkdir()
    return folder


class Lifeline:
    """A named pipe that child processes hold open: it ends when all of them have exited."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self.path = path
        self.reading = os.open(path, os.O_RDONLY | os.O_NONBLOCK)

    def read(self) -> bytes:
        """Return new data, or nothing if no holder is alive."""
        assert select.select([self.reading], [], [], 30)[0], "a child is still alive"
        return os.read(self.reading, 100)


@pytest.fixture
def lifeline(tmp_path: Path) -> Iterator[Lifeline]:
    line = Lifeline(tmp_path / "lifeline")
    yield line
    os.close(line.reading)


def shell_step(script: str, artifacts: Path, timeout_ms: float | None = None) -> WorkflowStep:
    async def action() -> str:
        return await ci.run_command(["sh", "-c", script], cwd=artifacts, artifacts=artifacts)

    return WorkflowStep("shell", action, timeout_ms=timeout_ms)


# Steps.


def test_independent_checks_are_one_tier() -> None:
    assert parallel_groups(ci.STEPS) == [["lint", "types", "tests"], ["build"], ["smoke"]]


@needs("ruff", "mypy", "build")
def test_a_sound_project_passes_all_steps(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exit_code = ci.main(["--project", str(project), "--tests", "test_tiny.py"])

    out, err = capsys.readouterr()
    assert exit_code == 0, out
    assert out.startswith("Pipeline PASSED\n")
    assert out.count("[SUCCESS]") == 5
    assert out.endswith(" -> build -> smoke\n")
    assert "smoke passed\n" in err


@needs("ruff", "mypy")
def test_only_the_chosen_steps_run(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exit_code = ci.main(["--project", str(project), "--only", "lint", "types"])

    out = capsys.readouterr().out
    assert exit_code == 0, out
    assert [line.split()[1] for line in out.splitlines() if "SUCCESS" in line] == ["lint", "types"]


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        (["build"], [["build"]]),
        (["build", "tests"], [["tests"], ["build"]]),
        (["smoke"], [["build"], ["smoke"]]),
        (["smoke", "lint"], [["lint"], ["build"], ["smoke"]]),
    ],
)
def test_a_chosen_step_selects_only_the_steps_whose_outputs_it_needs(
    chosen: list[str], expected: list[list[str]]
) -> None:
    assert parallel_groups(ci.select(ci.STEPS, chosen)) == expected


@pytest.mark.parametrize("arguments", [["--only", "lnit"], ["--project", "no/such/folder"]])
def test_wrong_usage_exits_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        ci.main(arguments)

    assert stopped.value.code == 2
    assert arguments[1] in capsys.readouterr().err


# Failures.


@needs("ruff", "mypy")
def test_a_failed_test_is_shown_and_nothing_is_built(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "test_tiny.py").write_text("def test_fails():\n    assert 6 * 9 == 42\n")

    exit_code = ci.main(["--project", str(project), "--keep-going", "--tests", "test_tiny.py"])

    out = capsys.readouterr().out
    assert exit_code == 1
    assert "--- tests ---\nCommandError: " in out
    assert "-m pytest -q test_tiny.py ended with exit code 1\n" in out
    assert "FAILED test_tiny.py::test_fails" in out
    assert "[SUCCESS] lint" in out
    assert "[SKIPPED] build" in out


@needs("ruff", "mypy")
def test_keep_going_shows_every_failure(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "tiny.py").write_text('import os\n\nanswer: int = "42"\n')

    exit_code = ci.main(["--project", str(project), "--keep-going", "--only", "lint", "types"])

    out = capsys.readouterr().out
    assert exit_code == 1
    assert "tiny.py:1:8: F401" in out
    assert "tiny.py:3: error: Incompatible types in assignment" in out


async def test_a_failing_command_is_reported_with_its_exit_code_and_the_end_of_its_output(
    artifacts: Path,
) -> None:
    script = r"seq 1000; echo oh no >&2; printf \\377; exit 7"

    report = await run_pipeline([shell_step(script, artifacts)])

    error = report["shell"].error
    assert isinstance(error, ci.CommandError)
    assert error.exit_code == 7
    first, *lines = str(error).splitlines()
    assert first == f"sh -c '{script}' ended with exit code 7"
    assert lines[-2:] == ["oh no", "\N{REPLACEMENT CHARACTER}"]
    assert len(lines) == ci.TAIL_LINES
    assert error.output.startswith("1\n2\n")


async def test_the_output_of_a_command_is_the_output_of_its_step(artifacts: Path) -> None:
    report = await run_pipeline([shell_step("echo out; echo err >&2", artifacts)])

    assert report["shell"].output == "out\nerr\n"


async def test_a_command_killed_by_a_signal_fails(artifacts: Path) -> None:
    report = await run_pipeline([shell_step("kill -9 $$", artifacts)])

    error = report["shell"].error
    assert isinstance(error, ci.CommandError)
    assert error.exit_code == -signal.SIGKILL


async def test_a_missing_tool_is_named_with_the_way_to_install_it(artifacts: Path) -> None:
    with pytest.raises(ci.ToolMissingError) as raised:
        await ci.run_tool("no_such_tool", cwd=artifacts, artifacts=artifacts)

    assert str(raised.value).startswith(f"no_such_tool is not installed for {sys.executable}")
    assert str(raised.value).endswith("python -m pip install no_such_tool")


async def test_a_folder_with_the_name_of_a_tool_is_not_the_tool(
    tmp_path: Path, artifacts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "on_path" / "hollow_tool").mkdir(parents=True)
    monkeypatch.syspath_prepend(tmp_path / "on_path")

    with pytest.raises(ci.ToolMissingError):
        await ci.run_tool("hollow_tool", cwd=artifacts, artifacts=artifacts)


def test_the_output_of_a_command_before_its_timeout_is_shown(
    project: Path, artifacts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def hangs(artifacts: Path) -> str:
        command = ["sh", "-c", "echo so far so good; exec sleep 60"]
        return await ci.run_command(command, cwd=artifacts, artifacts=artifacts)

    steps = [WorkflowStep("hangs", hangs, timeout_ms=500)]

    exit_code = ci.main(["--project", str(project)], steps)

    out = capsys.readouterr().out
    assert exit_code == 1
    assert (
        "StepTimeoutError: attempt 1 of step 'hangs' exceeded its timeout_ms of 500 ms\n"
        "so far so good\n" in out
    )


# Child processes.


def holding(lifeline: Lifeline, script: str) -> str:
    return f"exec 3>'{lifeline.path}'; echo alive >&3; {script}"


async def test_a_timeout_kills_the_command_and_its_children(
    artifacts: Path, lifeline: Lifeline
) -> None:
    script = holding(lifeline, "sleep 60 & sleep 60")

    report = await run_pipeline([shell_step(script, artifacts, timeout_ms=500)])

    assert isinstance(report["shell"].error, StepTimeoutError)
    assert lifeline.read() == b"alive\n"
    assert lifeline.read() == b""


async def test_a_child_of_a_successful_command_is_killed(
    artifacts: Path, lifeline: Lifeline
) -> None:
    report = await run_pipeline([shell_step(holding(lifeline, "sleep 60 &"), artifacts)])

    assert report.all_passed
    assert lifeline.read() == b"alive\n"
    assert lifeline.read() == b""


def test_a_signal_to_the_pipeline_kills_its_commands(project: Path, lifeline: Lifeline) -> None:
    (project / "test_tiny.py").write_text(
        "import signal\n\n\ndef test_hangs():\n"
        "    signal.alarm(60)\n"
        f"    with open({str(lifeline.path)!r}, 'w') as line:\n"
        "        print('alive', file=line, flush=True)\n"
        "        signal.pause()\n"
    )
    command = [sys.executable, ci.__file__, "--project", str(project), "--only", "tests"]

    with subprocess.Popen(
        [*command, "--tests", "test_tiny.py"],
        env={**os.environ, "PYTHONPATH": str(ci.ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as pipeline:
        try:
            assert lifeline.read() == b"alive\n"
            pipeline.terminate()
            out, err = pipeline.communicate(timeout=30)
        finally:
            pipeline.kill()

    assert pipeline.returncode == 143
    assert lifeline.read() == b""
    assert out == b""
    assert b"Traceback" not in err
