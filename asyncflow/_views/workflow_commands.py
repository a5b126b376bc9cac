"""Keeps text from becoming a command of GitHub Actions.

A job's log is read for commands: ``::name …::`` at the start of a line, after white space, and
``##[name …]`` anywhere in it. What a step logs or raises may come from elsewhere, so it must not
mask, annotate or group anything. The rules are those of the runner:
https://github.com/actions/runner/blob/main/src/Runner.Common/ActionCommand.cs
"""

from __future__ import annotations

import os
import re
from typing import Any

_COMMAND = re.compile(r"(?:^|(?<=[\r\n]))[^\S\r\n]*(?=::)|##\[")


def in_github_actions() -> bool:
    """Whether this process belongs to a job of GitHub Actions."""
    return os.environ.get("GITHUB_ACTIONS") == "true"


def without_commands(text: str) -> str:
    r"""Return whole lines in which GitHub Actions finds no command: ``\::error::``, ``##[\error]``.

    Elsewhere, the text stays as it is.
    """
    return _COMMAND.sub(r"\g<0>\\", text) if in_github_actions() else text


class GuardedStream:
    """A stream that writes whole lines `without_commands`."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        written: int = self._stream.write(without_commands(text))
        return written

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
