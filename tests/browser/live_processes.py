"""Web servers and runs of a pipeline, in a thread or in processes that tests can kill."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

from asyncflow import Orchestrator, WorkflowStep, current_step
from asyncflow.journal import SQLiteJournal
from asyncflow.web import serve

__all__ = ["HOSTILE", "Gates", "Process", "ServerThread", "pipeline"]

HOSTILE = "</script><script>window.hacked=1</script><img src=x onerror='window.hacked=1'>"
TESTS = Path(__file__).parents[1]


class Gates:
    """Files that the steps of a run wait for, one file per step."""

    def __init__(self, folder: Path, run_id: str) -> None:
        self.run_id = run_id
        self._folder = folder / quote(run_id, safe="")
        self._folder.mkdir(exist_ok=True)

    def open(self, *names: str) -> None:
        for name in names:
            (self._folder / name).touch()

    def has_cleaned_up(self, name: str) -> bool:
        return (self._folder / f"{name} has cleaned up").exists()

    async def wait(self, name: str) -> None:
        try:
            while not (self._folder / name).exists():
                await asyncio.sleep(0.02)
        except asyncio.CancelledError:
            (self._folder / f"{name} has cleaned up").touch()
            raise


def pipeline(folder: Path) -> Orchestrator:
    """Return a pipeline of three steps, two of which depend on the first one."""

    def step(name: str) -> WorkflowStep:
        async def wait() -> dict[str, str]:
            await Gates(folder, current_step().run_id).wait(name)
            return {"output of": name, "text": HOSTILE}

        return WorkflowStep(name, wait, ["first"] if name != "first" else [], timeout_ms=None)

    return Orchestrator([step("first"), step("second"), step("third")], name=f"etl {HOSTILE}")


async def _serve(folder: Path, port: int, on_ready: Any, **options: Any) -> None:
    etl = pipeline(folder)
    async with SQLiteJournal(folder / "runs.db") as journal:
        await serve(journal, port=port, pipelines={etl.name: etl}, on_ready=on_ready, **options)


class ServerThread:
    """A server and runs in the event loop of another thread."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.folder = folder
        self.url = ""
        self._ready = threading.Event()
        self._options = options
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._main(),))
        self._thread.start()
        assert self._ready.wait(50)

    async def _main(self) -> None:
        self._serving = asyncio.current_task()

        def ready(url: str) -> None:
            self.url = url
            self._ready.set()

        async with SQLiteJournal(self.folder / "runs.db") as self._journal:
            with suppress(asyncio.CancelledError):
                await _serve(self.folder, 0, ready, **self._options)
            rest = asyncio.all_tasks() - {asyncio.current_task()}
            for task in rest:
                task.cancel()
            await asyncio.gather(*rest, return_exceptions=True)

    def start(self, run_id: str) -> Gates:
        """Start or resume a run."""
        gates = Gates(self.folder, run_id)
        self._run_in_loop(self._start(run_id))
        return gates

    async def _start(self, run_id: str) -> None:
        before = [each for each in await self._journal.runs() if each.run_id == run_id]
        run = pipeline(self.folder).with_options(run_id=run_id, journal=self._journal).run()
        self._run = asyncio.create_task(run)
        self._run.add_done_callback(lambda task: task.cancelled() or task.exception())
        while [each for each in await self._journal.runs() if each.run_id == run_id] == before:
            await asyncio.sleep(0.01)

    def stop(self) -> None:
        """Cancel the last started run, as its process does at exit."""
        self._loop.call_soon_threadsafe(self._run.cancel)

    def _run_in_loop(self, coroutine: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(50)

    def close(self) -> None:
        assert self._serving is not None
        self._loop.call_soon_threadsafe(self._serving.cancel)
        self._thread.join(50)
        self._loop.close()


class Process:
    """A server or a run in a child process, which has started once this is constructed."""

    def __init__(self, kind: str, folder: Path, argument: object) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, kind, str(folder), str(argument)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": f"{TESTS.parent}:{TESTS}"},
        )
        assert self._process.stdout is not None
        self.first_line = self._process.stdout.readline().strip()
        assert self.first_line, "the process died"

    def end(self, number: signal.Signals = signal.SIGKILL) -> int:
        """Send the process a signal if it is alive, and return its exit code."""
        if self._process.poll() is None:
            self._process.send_signal(number)
        code = self._process.wait(timeout=50)
        assert self._process.stdout is not None
        self._process.stdout.close()
        return code


async def _run(folder: Path, run_id: str) -> None:
    async with SQLiteJournal(folder / "runs.db") as journal:
        running = asyncio.create_task(
            pipeline(folder).with_options(run_id=run_id, journal=journal).run()
        )
        while run_id not in [each.run_id for each in await journal.runs()]:
            await asyncio.sleep(0.01)
        print(run_id, flush=True)
        await running


async def _main(kind: str, folder: Path, argument: str) -> None:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    if kind == "run":
        await _run(folder, argument)
    else:
        await _serve(folder, int(argument), lambda url: print(url, flush=True))


if __name__ == "__main__":
    try:
        asyncio.run(_main(sys.argv[1], Path(sys.argv[2]), sys.argv[3]))
    except asyncio.CancelledError:
        sys.exit(143)
