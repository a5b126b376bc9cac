"""Files of lines, which processes append to and no kill takes back."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["append", "lines_of"]


def append(path: Path, line: str) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(handle, line.encode())
    finally:
        os.close(handle)


def lines_of(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []
