"""Type checkers accept what users write, and refuse what would fail."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
GOOD, BAD = ROOT / "tests" / "typing" / "good.py", ROOT / "tests" / "typing" / "bad.py"
EXPECTED = re.compile(r"#\ E:\ (?P<code>[\w-]+)$")


class Finding(NamedTuple):
    file: str
    line: int
    code: str
    text: str


def mypy() -> list[Finding]:
    done = run([sys.executable, "-m", "mypy", "--strict", "--no-incremental", "--no-error-summary"])
    found = re.findall(
        r"^(?P<file>[^:]+\.py):(?P<line>\d+): error: (?P<text>.*?)(?:  \[(?P<code>[\w-]+)\])?$",
        done.stdout,
        re.MULTILINE,
    )
    assert done.returncode == (1 if found else 0), done.stdout + done.stderr
    return [Finding(Path(name).name, int(line), code, text) for name, line, text, code in found]


def pyright() -> list[Finding]:
    done = run([sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable])
    assert "{" in done.stdout, done.stdout + done.stderr
    found = json.loads(done.stdout[done.stdout.index("{") :])["generalDiagnostics"]
    return [
        Finding(
            Path(each["file"]).name,
            each["range"]["start"]["line"] + 1,
            each.get("rule", ""),
            each["message"],
        )
        for each in found
        if each["severity"] == "error"
    ]


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Check both files at once: most of the time goes into what they import."""
    return subprocess.run(
        [*command, str(GOOD), str(BAD)], cwd=ROOT, capture_output=True, text=True, check=False
    )


def expected_in(file: Path) -> dict[int, str]:
    lines = file.read_text(encoding="utf-8").splitlines()
    marks = {number: EXPECTED.search(line) for number, line in enumerate(lines, start=1)}
    return {number: mark["code"] for number, mark in marks.items() if mark is not None}


pytestmark = [
    pytest.mark.process,
    pytest.mark.timeout(300),  # a checker reads a good part of the standard library
]


def test_mypy_accepts_what_users_write_and_refuses_what_would_fail() -> None:
    found = mypy()

    assert [each for each in found if each.file != BAD.name] == []
    assert {each.line: each.code for each in found} == expected_in(BAD)


def test_pyright_accepts_what_users_write_and_refuses_what_would_fail() -> None:
    found = pyright()

    assert [each for each in found if each.file != BAD.name] == []
    assert {each.line for each in found} == set(expected_in(BAD))


def test_the_bad_file_has_at_least_100_mistakes_and_the_good_file_none() -> None:
    assert len(expected_in(BAD)) >= 100
    assert not expected_in(GOOD)
