"""Recorded workflows in WfFormat 1.5. They are too large to come with the tests."""

from __future__ import annotations

import os
from pathlib import Path

NO_TRACES = "no workflow traces; set ASYNCFLOW_TRACES to their folder"


def trace_files() -> list[Path]:
    """Return the files in the folder that ``ASYNCFLOW_TRACES`` names; none without it."""
    folder = os.environ.get("ASYNCFLOW_TRACES")
    return sorted(Path(folder).rglob("*.json")) if folder else []
