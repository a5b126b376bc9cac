"""``asyncflow ui`` and ``asyncflow completion``."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import webbrowser
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from click.shell_completion import ShellComplete

from asyncflow import WorkflowStep, run_pipeline
from asyncflow._cli import commands
from asyncflow.journal import SQLiteJournal

from .conftest import ROOT, Shell

pytest.importorskip("uvicorn")


def visit(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:
        text: str = answer.read().decode()
        return text


def open_and_signal(
    monkeypatch: pytest.MonkeyPatch, number: int, visit_page: Callable[[str], str]
) -> dict[str, str]:
    """Replace the browser by one that visits the opened page, then signals this process."""
    seen: dict[str, str] = {}

    def browse(url: str) -> None:
        seen["url"] = url
        try:
            seen["page"] = visit_page(url)
        finally:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(
        webbrowser, "open", lambda url: threading.Thread(target=browse, args=[url]).start()
    )
    return seen


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_pages_are_served_until_a_signal_arrives(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    shell("run", "etl:pipeline", "--quiet", "--run-id", "calm-otter-1")
    seen = open_and_signal(monkeypatch, number, visit)

    result = shell("ui", "--port", "0", "--open", "--pipeline", "etl:made", exits=128 + number)

    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", seen["url"])
    assert "calm-otter-1" in seen["page"]
    assert result.stderr.startswith(f"The runs of asyncflow.db are at {seen['url']}\n")
    assert f"{number.name}: closing the pages. " in result.stderr


def test_the_pages_have_the_pipelines_of_the_project(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    shell.write("pyproject.toml", "[tool.asyncflow]\npipelines = ['etl:pipeline']\n")
    shell("run", "etl:pipeline", "--quiet", "--run-id", "first")

    def rerun(url: str) -> str:
        body, headers = b'{"all": true}', {"Content-Type": "application/json"}
        asked = urllib.request.Request(f"{url}api/runs/first/rerun", body, headers)
        with urllib.request.urlopen(asked, timeout=10) as answer:
            return str(json.load(answer)["done"])

    seen = open_and_signal(monkeypatch, signal.SIGTERM, rerun)
    shell("ui", "--port", "0", "--open", exits=143)

    assert seen["page"] == "rerun"


def test_the_pages_of_a_journal_without_runs_show_the_first_one(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    def visit_before_and_after(url: str) -> str:
        before = visit(url)

        async def nothing() -> None: ...

        async def first_run() -> None:
            async with SQLiteJournal("asyncflow.db") as journal:
                step = WorkflowStep("only", nothing)
                await run_pipeline([step], run_id="first", journal=journal)

        asyncio.run(first_run())
        return before + "<hr>" + visit(url)

    seen = open_and_signal(monkeypatch, signal.SIGTERM, visit_before_and_after)
    result = shell("ui", "--port", "0", "--open", "-v", exits=143)

    before, _, after = seen["page"].partition("<hr>")
    assert "No runs yet" in before
    assert ">first</a>" in after
    assert result.stderr.startswith(
        "Journal asyncflow.db did not exist; the pages show its first run as it starts\n"
    )


def test_other_machines_need_a_token(shell: Shell) -> None:
    shell("run", "etl:pipeline", "--quiet")

    result = shell("ui", "--host", "0.0.0.0", "--port", "0", exits=2)

    assert "use --token TEXT, or $ASYNCFLOW_TOKEN" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_browser_is_opened_only_on_request(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    shell("run", "etl:pipeline", "--quiet")
    seen = open_and_signal(monkeypatch, signal.SIGTERM, visit)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    visitor = threading.Thread(target=visit_and_stop, args=[f"http://127.0.0.1:{port}/"])
    visitor.start()

    shell("ui", "--port", str(port), exits=143)

    visitor.join()
    assert seen == {}


def visit_and_stop(url: str) -> None:
    """Send SIGTERM to this process when the server answers."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with suppress(OSError):
            visit(url)
            os.kill(os.getpid(), signal.SIGTERM)
            return
        time.sleep(0.005)


def test_the_error_of_an_invalid_host_does_not_mention_the_token(shell: Shell) -> None:
    shell("run", "etl:pipeline", "--quiet")

    result = shell("ui", "--host", "x" * 70, "--token", "t" * 16, exits=1)

    assert "can't listen at xxx" in result.stderr
    assert "--token" not in result.stderr


def test_an_unknown_pipeline_is_reported_before_the_server_starts(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    shell("run", "etl:pipeline", "--quiet")
    monkeypatch.setenv("ASYNCFLOW_PIPELINES", "etl:made etl:mad")

    assert "there is no 'mad' in 'etl'" in shell("ui", exits=3).stderr


# Completion.


def completed(*words: str) -> list[str]:
    """Return the completions of the last word."""
    completion = ShellComplete(commands, {}, "asyncflow", "_ASYNCFLOW_COMPLETE")
    return [item.value for item in completion.get_completions(list(words[:-1]), words[-1])]


@pytest.mark.parametrize("kind", [pytest.param("bash", marks=pytest.mark.process), "zsh", "fish"])
def test_there_is_a_script_for_each_shell(shell: Shell, kind: str) -> None:
    if kind == "bash" and shutil.which("bash") is None:
        pytest.skip("click asks bash for its version")

    script = shell("completion", kind).stdout

    assert "_ASYNCFLOW_COMPLETE" in script
    assert f"{kind}_complete" in script
    shell("completion", "csh", exits=2)


def test_commands_and_options_are_completed(shell: Shell) -> None:
    assert completed("re") == ["resume", "rerun"]
    assert "--keep-going" in completed("run", "--ke")


def test_runs_are_completed_from_the_journal(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    shell("run", "etl:pipeline", "--quiet", "--run-id", "calm-otter-1")
    shell("run", "etl:pipeline", "--quiet", "--run-id", "keen-lion-2", "--journal", "other.db")

    assert completed("show", "ca") == ["calm-otter-1"]
    assert completed("cancel", "otter") == []
    assert completed("resume", "--journal", "other.db", "") == ["keen-lion-2"]
    monkeypatch.setenv("ASYNCFLOW_JOURNAL", "other.db")
    assert completed("show", "k") == ["keen-lion-2"]
    monkeypatch.setenv("ASYNCFLOW_JOURNAL", "none.db")
    assert completed("show", "k") == []
    assert not (shell.directory / "none.db").exists()
    shell.write("broken.db", "no database" * 100)
    monkeypatch.setenv("ASYNCFLOW_JOURNAL", "broken.db")
    assert completed("show", "k") == []


def test_the_shell_completes_files(shell: Shell) -> None:
    completion = ShellComplete(commands, {}, "asyncflow", "_ASYNCFLOW_COMPLETE")

    (item,) = completion.get_completions(["run"], "et")

    assert item.type == "file"


@pytest.mark.process
@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_a_real_bash_completes_a_run(
    shell: Shell, environment: dict[str, str], tmp_path: Path
) -> None:
    shell("run", "etl:pipeline", "--quiet", "--run-id", "calm-otter-1")
    program = tmp_path / "bin" / "asyncflow"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\nexec '{sys.executable}' -m asyncflow \"$@\"\n")
    program.chmod(0o755)
    script = """
        eval "$(asyncflow completion bash)"
        COMP_WORDS=(asyncflow show ca) COMP_CWORD=2
        _asyncflow_completion asyncflow
        echo "${COMPREPLY[@]}"
    """
    variables = {**environment, "PATH": f"{program.parent}{os.pathsep}{environment['PATH']}"}

    done = subprocess.run(
        ["bash", "-c", script], env=variables, cwd=shell.directory, capture_output=True,
        text=True, check=False,
    )  # fmt: skip

    assert done.stdout == "calm-otter-1\n"
    assert str(ROOT) in environment["PYTHONPATH"]
