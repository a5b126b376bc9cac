"""A Dask cluster for the tests: a scheduler and workers, each a process, on 127.0.0.1.

A process ends with the tests, for whatever reason, since its standard input closes then.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

__all__ = ["DaskCluster", "other_python", "until"]

_RUN_WHILE_STDIN_IS_OPEN = """
import os, runpy, sys, threading
def end(): sys.stdin.read(); os._exit(1)
threading.Thread(target=end, daemon=True).start()
sys.argv = sys.argv[1:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


def other_python() -> Path | None:
    """Return a Python of another minor version with asyncflow and Dask, if there is one here.

    ``ASYNCFLOW_OTHER_PYTHON`` names it, or it is in an environment of this checkout.
    """
    named = os.environ.get("ASYNCFLOW_OTHER_PYTHON")
    if named:
        return Path(named)
    minor = sys.version_info.minor
    root = Path(__file__).parents[3]
    paths = [root / f".venv-3.{other}/bin/python" for other in (13, 12, 11) if other != minor]
    return next((path for path in paths if path.exists()), None)


class DaskCluster:
    """A scheduler and its workers.

    Args:
        folder: Where their logs go, and what else they write.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._port = _free_port()
        self.processes: list[subprocess.Popen[bytes]] = []
        """In the order in which they were started."""
        self.address = f"tcp://127.0.0.1:{self._port}"
        self.scheduler = self.start_scheduler()

    def start_scheduler(self) -> subprocess.Popen[bytes]:
        """Start a scheduler at the address; the one before must have ended."""
        self.scheduler = self._start(sys.executable, "dask_scheduler", f"--port={self._port}")
        return self.scheduler

    def start_worker(
        self, *options: str, python: Path | str = sys.executable, threads: int = 8
    ) -> subprocess.Popen[bytes]:
        """Start a worker. It has no nanny, so it is one process."""
        return self._start(
            python,
            "dask_worker",
            self.address,
            "--no-nanny",
            f"--nthreads={threads}",
            "--death-timeout=20",
            *options,
        )

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        """Kill a process, which can do nothing about it."""
        process.send_signal(signal.SIGKILL)
        process.wait()

    def logs(self) -> str:
        """Return what all processes have logged."""
        return "".join(path.read_text() for path in sorted(self._folder.glob("*.log")))

    def close(self) -> None:
        """End all processes."""
        for process in reversed(self.processes):
            process.kill()
            assert process.stdin is not None
            process.stdin.close()
        for process in self.processes:
            process.wait()  # without a limit, which polls: a fast test may be the last one

    def _start(self, python: Path | str, module: str, *options: str) -> subprocess.Popen[bytes]:
        path = self._folder / f"{len(self.processes)}-{module}.log"
        with path.open("w") as log:
            process = subprocess.Popen(
                [
                    *(python, "-c", _RUN_WHILE_STDIN_IS_OPEN, f"distributed.cli.{module}"),
                    *("--host=127.0.0.1", "--dashboard-address=127.0.0.1:0", *options),
                ],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                cwd=self._folder,
                env=os.environ
                | {
                    "PYTHONPATH": str(Path(__file__).parents[2]),
                    "DASK_TEMPORARY_DIRECTORY": str(self._folder),
                },
                start_new_session=True,
            )
        self.processes.append(process)
        return process


def until(condition: Callable[[], object], within_s: float = 30) -> None:
    """Poll a condition of which nothing tells."""
    give_up_at = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < give_up_at, f"the condition did not hold within {within_s:g} s"
        time.sleep(0.01)


def _free_port() -> int:
    """Return a free port that the system does not give to clients while the scheduler is down."""
    for port in random.sample(range(20_000, 32_000), 100):
        with socket.socket() as candidate:
            try:
                candidate.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
    raise RuntimeError("no free port was found")
