"""Follows a page to the letter: writes its files, and runs its commands in a terminal."""

from __future__ import annotations

import ast
import os
import re
import stat
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from terminals import Terminal

ROOT = Path(__file__).parents[1]

BLOCK = re.compile(r"(?ms)^```(?P<language>python|console)\n(?P<body>.*?)^```$")
FILE = re.compile(
    r"(?P<how>Write this to|Add this to the end of|Replace `(?P<name>\w+)`\s+in)\s+"
    r"`(?P<file>\w+\.py)`"
)
"""What the paragraph before a Python block says to do with it."""

IN_A_TERMINAL = """
import fcntl, os, sys, termios
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execvp("bash", ["bash", "-c", sys.argv[1]])
"""


class Command(NamedTuple):
    line: int
    text: str
    shows: str


class Edit(NamedTuple):
    file: str
    replaces: str | None
    """The function that the code replaces, ``""`` for the whole file, ``None`` for its end."""
    code: str


def steps_of(page: str) -> Iterator[Command | Edit]:
    """Yield what the page tells its reader to do, in order."""
    end = 0
    for block in BLOCK.finditer(page):
        before, end = page[end : block.start()], block.end()
        told, comments = re.subn(r"<!--.*?-->", "", before)
        if block["language"] == "python":
            (edit,) = FILE.finditer(told.strip().rpartition("\n\n")[2])
            replaces = edit["name"] or ("" if edit["how"].startswith("Write") else None)
            yield Edit(edit["file"], replaces, block["body"])
        elif not comments:
            line = page.count("\n", 0, block.start("body")) + 1
            for command in re.finditer(r"(?m)^\$ (.*)\n((?:(?!\$ ).*\n)*)", block["body"]):
                here = line + block["body"].count("\n", 0, command.start())
                yield Command(here, command[1], command[2])


class Reader:
    """Does what the page says, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "coffee"
        self.folder.mkdir()
        programs = folder / "bin"
        programs.mkdir()
        for name, arguments in {
            "python": "",
            "asyncflow": "-m asyncflow",
            "pytest": "-m pytest -p no:cacheprovider -p pytest_asyncflow",
        }.items():
            program = programs / name
            program.write_text(f'#!/bin/sh\nexec "{sys.executable}" {arguments} "$@"\n')
            program.chmod(program.stat().st_mode | stat.S_IXUSR)
        hidden = {"COLUMNS", "LINES", "CI", "FORCE_COLOR", "NO_COLOR", "GITHUB_ACTIONS"}
        hidden.add("PYTHONUNBUFFERED")  # a reader's program writes to a pipe when it flushes
        self._environment = {
            **{name: value for name, value in os.environ.items() if name not in hidden},
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # the reader has none of them
            "TERM": "xterm-256color",
        }

    def edit(self, edit: Edit) -> None:
        file = self.folder / edit.file
        if edit.replaces == "":
            file.write_text(edit.code)
            return
        old = file.read_text()
        if edit.replaces is None:
            file.write_text(f"{old}\n\n{edit.code}")
            return
        (function,) = (
            node
            for node in ast.parse(old).body
            if isinstance(node, ast.AsyncFunctionDef) and node.name == edit.replaces
        )
        lines = old.splitlines(keepends=True)
        assert function.end_lineno is not None
        lines[function.decorator_list[0].lineno - 1 : function.end_lineno] = [edit.code]
        file.write_text("".join(lines))

    def run(self, command: str) -> str:
        """Run a command in a terminal of 100 columns; return what a wide terminal shows then."""
        terminal = Terminal(100 if "--timeline" in command else 200, 50)
        try:
            serves = command.startswith("asyncflow ui")
            if serves:  # another program may have the usual port, and no browser is wanted
                command = command.replace(" --open", " --port 0")
            process = subprocess.Popen(
                [sys.executable, "-c", IN_A_TERMINAL, command],
                cwd=self.folder,
                env=self._environment,
                stdin=terminal.device,
                stdout=terminal.device,
                stderr=terminal.device,
            )
            if serves:
                self._visit(terminal)
                terminal.press(b"\x03")
            process.wait(timeout=30)
        finally:
            terminal.close()
        return terminal.text.partition("^C")[0]

    def run_in_a_pipe(self, command: str) -> str:
        """Run a command where there is no terminal; return all that it writes."""
        ended = subprocess.run(
            ["bash", "-c", command],
            cwd=self.folder,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=30,
        )
        return ended.stdout

    def _visit(self, terminal: Terminal) -> None:
        deadline = time.monotonic() + 20
        while not (address := re.search(r"http://\S+/", terminal.text)):
            assert time.monotonic() < deadline, terminal.text
            time.sleep(0.05)
        with urllib.request.urlopen(address[0], timeout=10) as page:
            assert "monday" in page.read().decode()


def masked(text: str) -> str:
    """Return the text without what differs between runs: times, ids, ports, lengths of bars."""
    text = re.sub(" +", " ", text)
    for pattern, mask in (
        (r"\b[a-z]+-[a-z]+-[0-9a-f]{4}\b", "<run>"),
        (r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d( UTC([+-]\d\d:\d\d)?)?", "<time>"),
        (r"\(UTC([+-]\d\d:\d\d)?\)", "(<zone>)"),
        (r"\d+(\.\d+)? ?(ms|s)\b", "<duration>"),
        (r"(<duration> ?){2,}", "<durations>"),  # of an axis
        (r"/\S+/(?=coffee/)", "/<home>/"),
        (r"127\.0\.0\.1:\d+", "127.0.0.1:<port>"),
        (r"─ between items ?", ""),  # a busy machine lets steps wait where the page has none
        (r"[█▓▚▞·!─]+(?=.*<duration>$)", "<bar>"),
        (r"[├─┬]+", "<axis>"),
    ):
        text = re.sub(pattern, mask, text, flags=re.MULTILINE)
    return "\n".join(line.strip() for line in text.strip().splitlines())


def matches(shows: str, shown: str) -> bool:
    """Whether a terminal shows what the page says, up to a last line ``...``, if it has one."""
    start, cut, _ = shows.partition("\n...\n")
    return masked(shown).startswith(masked(start)) if cut else masked(shown) == masked(start)
