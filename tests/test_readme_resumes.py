"""The program of README.md resumes after it was killed, and prints what README.md shows."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
FENCE = re.compile(r"^```(python|text)\n(.*?)^```$", re.DOTALL | re.MULTILINE)

PROGRAM = """
import ast, asyncio, contextlib, inspect, io, os, signal, sys

from asyncflow.testing import fake

names = {}


async def run(code):
    awaitable = eval(compile(code, "README.md", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT), names)
    if inspect.isawaitable(awaitable):
        await awaitable


async def main(first, durable, is_killed):
    with contextlib.redirect_stdout(io.StringIO()):
        await run(first)
    dies = {"total": lambda *_: os.kill(os.getpid(), signal.SIGKILL)} if is_killed else {}
    with fake(names["shop"], **dies):
        await run(durable)


asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3] == "kill"))
"""


def without_times(text: str) -> str:
    return re.sub(r"\d+ms", "…ms", text)


@pytest.mark.process
def test_the_program_of_the_readme_resumes_after_it_was_killed(tmp_path: Path) -> None:
    blocks = FENCE.findall(README.read_text(encoding="utf-8"))
    (_, first), _, (_, durable), (kind, shown) = blocks
    assert kind == "text"

    def start(how: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", PROGRAM, first, durable, how]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    killed, resumed = start("kill"), start("let it run")

    assert (killed.returncode, killed.stdout) == (-signal.SIGKILL, "")
    assert without_times(resumed.stdout) == without_times(shown), resumed.stderr
