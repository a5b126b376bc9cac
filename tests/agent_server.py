"""The example of an agent, served by a process that tests kill, with a model that they script."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["SCRIPT", "agent_server"]

ROOT = Path(__file__).parents[1]
SCRIPT = [
    *(
        {"text": f"Turn {n}.", "calls": [["weather", f"city {n}"]], "word_s": 0.01}
        for n in range(3)
    ),
    {"text": " ".join(f"word{n}" for n in range(60)), "word_s": 0.03},
]


@contextmanager
def agent_server(folder: Path, port: int = 0) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """Serve the example, with its journal in a folder, until the end of the block, which kills it.

    What costs something is a line of the file ``log`` in that folder.
    """
    if not port:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
    script = folder / "script"
    script.write_text(json.dumps(SCRIPT))
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "AGENT_SCRIPT": str(script),
        "AGENT_LOG": str(folder / "log"),
        "RESUME_EVERY_S": "0.3",
    }
    command = [sys.executable, "-m", "examples.agent", str(port)]
    with subprocess.Popen(command, cwd=folder, env=environment) as process:
        try:
            yield process, f"http://127.0.0.1:{port}"
        finally:
            process.kill()
