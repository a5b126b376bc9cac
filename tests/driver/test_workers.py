"""Worker threads and worker processes, which run steps outside the event loop."""

from __future__ import annotations

import asyncio
import copyreg
import io
import logging
import math
import os
import pickle
import py_compile
import queue
import signal
import struct
import subprocess
import sys
import threading
import time
import weakref
from functools import partial
from multiprocessing import spawn
from pathlib import Path
from types import ModuleType

import anyio
import asking_work as asking
import process_work as work
import pytest
from freed import without_collector

from asyncflow import WorkflowStep, current_step
from asyncflow._core.running.checkpoints import Checkpoints
from asyncflow._policies import attempt_notes
from asyncflow._policies import worker_process as _child
from asyncflow._policies import workers as _workers
from asyncflow._policies.permits import Permit
from asyncflow._policies.workers import limiter_for, run_in_process, run_in_thread

ROOT = Path(__file__).parents[2]


class Work:
    """A function for a thread, whose start a test can await and whose end it controls."""

    def __init__(self, error=None):
        self.loop = asyncio.get_running_loop()
        self.started = asyncio.Event()
        self.release = threading.Event()
        self.error = error
        self.abandoned = []

    def __call__(self):
        self.loop.call_soon_threadsafe(self.started.set)
        assert self.release.wait(60)
        if self.error is not None:
            raise self.error
        return "done"

    async def start(self, *, ends=math.inf):
        task = asyncio.ensure_future(
            run_in_thread(self, None, ends=ends, on_abandon=self.abandoned.append)
        )
        await self.started.wait()
        return task


def never(_):
    raise AssertionError("abandoned")


async def in_thread(function, arguments=None):
    return await run_in_thread(function, arguments, ends=math.inf, on_abandon=never)


# Threads.


async def test_an_error_from_a_thread_is_in_no_reference_cycle():
    class Precious(Exception):
        pass

    def function():
        raise Precious

    with without_collector():
        try:
            await in_thread(function)
        except Precious as error:
            reference = weakref.ref(error)
        await in_thread(int)  # the worker drops the previous call

        assert reference() is None


async def test_the_future_of_an_abandoned_thread_can_be_cancelled():
    thread = Work()
    task = await thread.start(ends=asyncio.get_running_loop().time())
    task.cancel()
    await asyncio.wait([task])

    thread.abandoned[0].cancel()
    thread.release.set()
    await in_thread(int)


async def test_a_function_cancelled_before_a_thread_starts_it_is_never_called():
    calls = []
    task = asyncio.ensure_future(in_thread(lambda: calls.append(1)))
    await asyncio.sleep(0)

    task.cancel()
    await asyncio.wait([task])

    assert task.cancelled()
    await in_thread(int)
    await asyncio.sleep(0.001)  # the clock advances again
    assert calls == []


async def test_a_thread_does_not_call_a_dropped_function():
    calls = []
    job = _workers._Job(lambda: calls.append(1))
    assert job._claim.acquire(blocking=False)  # as the loop does when it is cancelled

    await asyncio.to_thread(job._run)
    job.ended.resolve()

    assert calls == []


async def test_a_callback_added_after_the_end_of_a_thread_runs_at_once():
    ended, calls = _workers.ThreadEnd(asyncio.get_running_loop()), []

    ended.report()
    ended.call_at_once(lambda: calls.append(1))

    assert calls == [1]


async def test_a_thread_that_cannot_start_is_an_ordinary_error(monkeypatch):
    def refuse(_):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            await in_thread(int)

    await asyncio.sleep(0.001)  # the clock advances again


@pytest.mark.parametrize(
    "run", [in_thread, pytest.param(run_in_process, marks=pytest.mark.process)]
)
async def test_a_plain_function_that_returns_an_awaitable_is_refused(run):
    with pytest.raises(TypeError, match=r"an awaitable \(coroutine\), .*; leave runs_in out"):
        await run(work.async_function, None)


async def test_an_awaitable_that_is_no_coroutine_is_refused_too():
    with pytest.raises(TypeError, match=r"an awaitable \(Future\)"):
        await in_thread(work.return_argument, {"value": asyncio.Future()})


async def test_threads_and_processes_share_the_limits_of_the_loop():
    assert limiter_for("thread") is anyio.to_thread.current_default_thread_limiter()
    assert limiter_for("process") is anyio.to_process.current_default_process_limiter()


# Turns after which a test cancels; more than any operation here takes.
TURNS = range(12)

THREADED = WorkflowStep("threaded", work.get_pid, runs_in="thread")


def one_thread():
    """Let the loop run one thread at a time, and return the limiter that sees to it."""
    limiter = anyio.to_thread.current_default_thread_limiter()
    limiter.total_tokens = 1
    return limiter


@pytest.mark.parametrize("turns", TURNS)
@pytest.mark.parametrize("others", [0, 1])
async def test_a_permit_cancelled_in_any_turn_holds_no_token(turns, others):
    limiter, loop = one_thread(), asyncio.get_running_loop()
    first, second, third = (Permit(loop, THREADED) for _ in range(3))
    if others:
        await first.token()

    async def work():
        try:
            await second.token()
            await asyncio.sleep(0)
        finally:
            second.release()

    task, after = asyncio.ensure_future(work()), asyncio.ensure_future(third.token())
    for _ in range(turns):
        await asyncio.sleep(0)
    is_late = task.done()
    task.cancel()
    if others:
        first.release()
    await asyncio.wait([task])

    assert is_late or task.cancelled()
    await asyncio.wait_for(after, 60)
    third.release()
    assert limiter.statistics().borrowed_tokens == 0
    assert limiter.statistics().tasks_waiting == 0


async def test_a_permit_with_a_free_token_is_acquired_in_the_same_turn():
    passed = []
    one_thread()
    asyncio.get_running_loop().call_soon(passed.append, "a turn")

    await Permit(asyncio.get_running_loop(), THREADED).token()

    assert passed == []


# Processes.


@pytest.mark.process
async def test_a_function_runs_in_a_process_that_has_ended_when_it_returns():
    number = await run_in_process(work.get_pid, None)

    assert number != os.getpid()
    assert not is_alive(number)
    assert await run_in_process(work.add, {"left": 40}) == 42


@pytest.mark.process
async def test_an_error_from_a_process_is_raised_unchanged_with_its_traceback():
    with pytest.raises(KeyError) as raised:
        await run_in_process(work.fail, {"text": "x"})

    assert raised.value.args == ("x",)
    assert raised.value.detail == ["x"]
    (note,) = raised.value.__notes__
    assert note.startswith("In the process:\nTraceback (most recent call last):\n")
    assert "in fail" in note


@pytest.mark.process
async def test_system_exit_in_a_process_is_raised_as_in_the_loop():
    with pytest.raises(SystemExit) as raised:
        await run_in_process(work.exit_with, {"code": 3})

    assert raised.value.code == 3


@pytest.mark.process
async def test_the_death_of_a_process_is_an_ordinary_error_with_its_cause():
    with pytest.raises(anyio.BrokenWorkerProcess, match="ended with exit code 3 before"):
        await run_in_process(work.exit_at_once, {"code": 3})
    with pytest.raises(anyio.BrokenWorkerProcess, match="was killed by SIGKILL before"):
        await run_in_process(work.kill_itself, None)


@pytest.mark.process
async def test_a_signal_without_a_name_is_reported_by_its_number():
    with pytest.raises(anyio.BrokenWorkerProcess, match="was killed by signal 40 before"):
        await run_in_process(work.kill_by, {"number": 40})


@pytest.mark.process
async def test_an_error_that_refuses_a_note_is_raised_without_one():
    with pytest.raises(work.FrozenError):
        await run_in_process(work.throw, {"error": work.FrozenError})


@pytest.mark.process
async def test_a_process_is_the_leader_of_its_own_session():
    number, session, group = await run_in_process(work.leader, None)

    assert number == session == group


async def test_a_function_or_argument_that_cannot_be_pickled_is_named():
    class Unspeakable:
        __reduce__ = None

    class TextlessError(Exception):
        def __str__(self):
            raise ValueError("no text")

    class Unsendable:
        def __reduce__(self):
            raise TextlessError

    with pytest.raises(pickle.PicklingError, match="Unspeakable or one of its arguments"):
        await run_in_process(Unspeakable(), None)
    with pytest.raises(pickle.PicklingError, match="whose str raised ValueError"):
        await run_in_process(work.add, {"left": Unsendable()})
    with pytest.raises(pickle.PicklingError, match="or one of its arguments can't be pickled"):
        await run_in_process(lambda: None, None)
    with pytest.raises(pickle.PicklingError, match=r"process_work.add or .*can't be pickled.*lock"):
        await run_in_process(work.add, {"left": threading.Lock()})


@pytest.mark.process
@pytest.mark.parametrize(
    ("function", "message"),
    [
        (work.return_a_lock, "what the function returned can't be pickled: TypeError: .*lock"),
        (work.return_pickle_only, "what the function returned can't be unpickled: ValueError"),
        (
            work.raise_two_argument_error,
            r"raised TwoArgumentError: one two; that error can't be pickled: TypeError",
        ),
        (work.raise_unpicklable, "raised Unpicklable: lost; that error can't .* not this one"),
        (
            partial(work.throw, work.UnpicklesAsText),
            "raised UnpicklesAsText: .* back as str, which is not an exc",
        ),
        (
            partial(work.throw, work.Unprintable),
            r"raised Unprintable; that error .*: FrozenError\n",
        ),
    ],
)
async def test_a_result_or_error_that_cannot_be_pickled_is_named(function, message):
    with pytest.raises(pickle.PicklingError, match=message):
        await run_in_process(function, None)


@pytest.mark.process
async def test_a_process_shares_our_output_and_has_no_input(capfd):
    assert await run_in_process(work.talk, None) == ""

    assert capfd.readouterr() == ("to the output\n", "to the errors\n")


@pytest.mark.process
async def test_a_cancelled_process_and_its_children_are_killed_before_it_ends(tmp_path):
    pid_file = tmp_path / "numbers"
    task = asyncio.ensure_future(run_in_process(work.hang, {"path": str(pid_file)}))
    await asyncio.to_thread(wait_until, pid_file.exists)
    process, child = map(int, pid_file.read_text().split())

    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0)
    await asyncio.wait([task])

    assert task.cancelled()
    assert not is_alive(process)
    await asyncio.to_thread(wait_until, lambda: not is_alive(child))  # another reaps it


@pytest.mark.process
async def test_a_process_that_is_cancelled_while_it_starts_is_killed(monkeypatch):
    loop, starting, release = asyncio.get_running_loop(), asyncio.Event(), threading.Event()
    started = []

    class Slow(subprocess.Popen):
        def __init__(self, *args, **kwargs):
            loop.call_soon_threadsafe(starting.set)
            release.wait(60)
            super().__init__(*args, **kwargs)
            started.append(self)

    monkeypatch.setattr(subprocess, "Popen", Slow)
    task = asyncio.ensure_future(run_in_process(time.sleep, {}))
    await starting.wait()

    task.cancel()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    release.set()
    await asyncio.wait([task])

    assert task.cancelled()
    (process,) = started
    assert process.returncode == -9


@pytest.mark.process
async def test_a_cancellation_after_the_result_does_not_discard_it(monkeypatch):
    class Job(_workers._Job):
        async def has_ended(self):
            self.ended.add_done_callback(lambda _: task.cancel())
            return await super().has_ended()

    monkeypatch.setattr(_workers, "_Job", Job)

    async def main():
        await asyncio.sleep(0)
        return await run_in_process(work.add, None)

    task = asyncio.ensure_future(main())

    assert await task == 3
    assert task.cancelling() == 1


def is_alive(number):
    """Return whether a process runs; a zombie does not."""
    try:
        state = Path(f"/proc/{number}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state.rpartition(") ")[2][0] != "Z"


def wait_until(condition):
    ends = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.005)


def run_python(*arguments, cwd=None):
    """Run a program that can import asyncflow and the tests' modules; return its output."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# The end of the parent process.

WAITING = """
import asyncio, process_work as work
from asyncflow._policies.workers import run_in_process
asyncio.run(run_in_process(work.hang, {{"path": {path!r}}}))
"""


@pytest.mark.process
def test_a_process_and_its_children_end_with_their_parent(tmp_path):
    pid_file = tmp_path / "numbers"
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    with subprocess.Popen(
        [sys.executable, "-c", WAITING.format(path=str(pid_file))],
        env={**os.environ, "PYTHONPATH": paths},
    ) as parent:
        wait_until(pid_file.exists)

        parent.kill()
        parent.wait()

    process, child = map(int, pid_file.read_text().split())
    wait_until(lambda: not is_alive(process) and not is_alive(child))


@pytest.mark.process
async def test_a_nested_process_is_killed_with_the_process_that_started_it(tmp_path):
    pid_file = tmp_path / "numbers"
    task = asyncio.ensure_future(run_in_process(work.nest, {"path": str(pid_file)}))
    await asyncio.to_thread(wait_until, pid_file.exists)

    task.cancel()
    await asyncio.wait([task])

    process, child = map(int, pid_file.read_text().split())
    await asyncio.to_thread(wait_until, lambda: not is_alive(process) and not is_alive(child))


def test_the_worker_program_kills_its_group_when_the_pipe_is_closed(monkeypatch):
    kills = queue.SimpleQueue()
    monkeypatch.setattr(os, "killpg", lambda *call: kills.put(call))
    theirs, ours = os.pipe()
    os.set_inheritable(theirs, True)

    _child._end_with(theirs)
    assert not os.get_inheritable(theirs)
    assert kills.empty()
    os.close(ours)

    assert kills.get(timeout=60) == (0, signal.SIGKILL)
    _child._wait_for_end_of(theirs)  # again in this thread, where coverage sees it
    os.close(theirs)


# Where no process can start.


@pytest.fixture
def executable():
    before = spawn.get_executable()
    yield spawn.set_executable
    spawn.set_executable(before)


@pytest.mark.process
async def test_a_frozen_application_needs_an_interpreter_for_its_processes(monkeypatch, executable):
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    interpreter = sys.executable
    with pytest.raises(RuntimeError, match=r"frozen .* multiprocessing.set_exec.*runs_in='thread'"):
        limiter_for("process")

    monkeypatch.setattr(sys, "executable", "/the/application")
    executable(interpreter)

    assert await run_in_process(work.add, None) == 3


@pytest.mark.parametrize("nothing", ["", None])
def test_a_process_is_refused_without_an_interpreter(executable, nothing):
    executable(nothing)

    with pytest.raises(RuntimeError, match=r"sys.executable is empty; name a Python interpreter"):
        limiter_for("process")


def test_a_process_is_refused_if_asyncflow_is_in_an_archive(monkeypatch):
    monkeypatch.setattr(_child, "__file__", "/app.zip/asyncflow/_child.py")

    with pytest.raises(RuntimeError, match=r"_child.py is not a file, .*; unpack it, or use"):
        limiter_for("process")


# The worker program, run in this process.

RUNNING = "a", 2, 0.0, 0.0, None
NOTHING_SAVED = Checkpoints().to_send(RUNNING)


def respond_to(function, arguments):
    file = io.BytesIO(_workers._request(function, arguments))
    _child._respond(file)
    file.seek(0)
    return _workers._outcome(file, 0)


def request_of(main, call):
    """Return the file of a request that a main module makes."""
    request = pickle.dumps(((sys.path, sys.argv), main, call, None, False, None))
    return io.BytesIO(b"?".ljust(_child._HEAD) + request)


def test_the_worker_program_writes_its_response_to_the_file_of_the_request(monkeypatch):
    # An import of distributed teaches pickle each exception that there is.
    for error in work.TwoArgumentError, work.UnpicklesAsText, work.Unprintable:
        monkeypatch.delitem(copyreg.dispatch_table, error, raising=False)

    assert respond_to(work.add, {"left": 2, "right": 3}) == 5
    with pytest.raises(KeyError, match="x"):
        respond_to(work.fail, {"text": "x"})
    with pytest.raises(pickle.PicklingError, match="that error can't be pickled"):
        respond_to(work.raise_two_argument_error, {})
    with pytest.raises(pickle.PicklingError, match="back as str, which is not an exception"):
        respond_to(work.throw, {"error": work.UnpicklesAsText})
    with pytest.raises(pickle.PicklingError, match="raised Unprintable; that error") as raised:
        respond_to(work.throw, {"error": work.Unprintable})
    assert raised.value.__notes__[0].startswith("In the process:\n")
    with pytest.raises(TypeError, match="leave runs_in out"):
        respond_to(work.async_function, {})
    with pytest.raises(pickle.PicklingError, match="returned can't be pickled"):
        respond_to(work.return_a_lock, {})
    with pytest.raises(pickle.PicklingError, match="could not load the function and its arguments"):
        respond_to(work.add, {"left": work.PickleOnly()})


def test_a_raised_object_that_is_no_exception_is_named():
    answer = b"!".ljust(_child._HEAD) + pickle.dumps(("raised", "not an error", ""))

    with pytest.raises(pickle.PicklingError, match="came back as <class 'str'>"):
        _workers._outcome(io.BytesIO(answer), 0)


def test_an_error_whose_traceback_cannot_be_printed_has_none():
    assert _child._traceback(work.Unprintable()) == "(its traceback can't be printed)"


def test_the_worker_program_knows_its_attempt_and_gives_heartbeats(tmp_path):
    attempt = "r", ("a", 2, 0.0, 0.0, None), 3, math.inf, 0.0, None, NOTHING_SAVED
    path = tmp_path / "request"
    path.write_bytes(_workers._request(asking.know_the_attempt, {}, attempt, True))
    began_s = time.monotonic()

    with path.open("r+b") as file:
        _child._respond(file)
        file.seek(_child._BEAT_AT)
        (at_s,) = struct.unpack("d", file.read(8))
        file.seek(0)
        key, left_ms, logged, problem = _workers._outcome(file, 0)

    assert began_s <= at_s <= time.monotonic()
    assert (key, left_ms, logged) == ("r/a", None, ("r", "a", 2, None))
    assert "results of its dependencies are not there in another process" in problem
    with pytest.raises(RuntimeError, match="not in a process that it starts"):
        current_step()


@pytest.mark.parametrize("is_loaded", [True, False])
def test_the_worker_program_writes_what_the_attempt_says(tmp_path, monkeypatch, is_loaded):
    if not is_loaded:
        for name in "log_capture", "attempt_notes":
            monkeypatch.delitem(sys.modules, f"asyncflow._policies.{name}", raising=False)
    attempt = "r", ("a", 2, 0.0, 0.0, None), 3, math.inf, 0.0, None, NOTHING_SAVED
    path, said = tmp_path / "request", tmp_path / "said"
    with said.open("w+b") as notes:
        notes.seek(_child._NOTES_AT)
        wanted = notes.fileno(), (logging.INFO, True)
        path.write_bytes(_workers._request(asking.speak, {}, attempt, False, wanted))

        with path.open("r+b") as file:
            _child._respond(file)
            file.seek(0)
            assert _workers._outcome(file, 0) is None

    content = said.read_bytes()
    records, at = [], _child._NOTES_AT
    while at < len(content):
        length = int.from_bytes(content[at : at + 4], "little")
        records.append(pickle.loads(content[at + 4 : at + 4 + length]))
        at += 4 + length
    assert pickle.loads(content) == (0, (2, 3, "rows"))
    assert [each for each in records if each[0] != "printed"] == [
        ("log", 20, "speaking", "a record", ""),
        ("log", 20, "structlog", "loaded rows=3 of=<Silent>", ""),
        ("attach", "table", b"x\n1\n", "text/csv"),
    ]
    printed = [text for kind, *_, text in records if kind == "printed"]
    assert "".join(printed) == "a line\nhalf a line"


class Said:
    """Takes what a process says, in order."""

    level, prints = None, True

    def __init__(self):
        self.calls = []

    def __getattr__(self, kind):
        return lambda running, *values: self.calls.append((kind, *values))


async def test_a_process_that_says_too_much_writes_the_first_and_the_last_records(monkeypatch):
    monkeypatch.setattr(attempt_notes, "_MOST_CHARACTERS", 60)
    said = Said()
    reader = _workers._NoteReader(said, Checkpoints(), RUNNING)
    notes = _child._NoteFile(reader.wanted[0], (None, False)).notes

    for number in range(90):
        notes.log(None, 20, "a", f"record {number}")
    size = os.fstat(reader.wanted[0]).st_size
    await asyncio.sleep(0.15)
    missing_if_it_is_killed = reader._state
    notes.end()
    reader.close()

    assert size < _child._NOTES_AT + 300
    assert missing_if_it_is_killed == (85, None)
    kept = [*range(5), *range(50, 90)]
    assert said.calls[:-1] == [("log", 20, "a", f"record {number}", "") for number in kept]
    assert said.calls[-1] == ("leave_out", 45)


async def test_of_a_large_text_that_a_process_prints_nothing_is_missing():
    said, text = Said(), "".join(map(str, range(30_000)))
    reader = _workers._NoteReader(said, Checkpoints(), RUNNING)
    notes = _child._NoteFile(reader.wanted[0], (None, True)).notes

    notes.printed(None, "stdout", text)
    notes.end()
    reader.close()

    assert "".join(part for _, _, part in said.calls) == text


def test_a_process_goes_on_if_the_disk_is_full():
    with open("/dev/full", "wb", buffering=0) as full:
        notes = _child._NoteFile(full.fileno(), (20, True)).notes
        notes.progress(None, 1, None, "rows")
        notes.log(None, 20, "a", "a record")
        notes.end()


async def test_what_is_half_written_is_read_later():
    said = Said()
    reader = _workers._NoteReader(said, Checkpoints(), RUNNING)
    file, record = reader.wanted[0], pickle.dumps(("log", 20, "a", "text", ""))
    os.write(file, len(record).to_bytes(4, "little") + record[:5])
    os.pwrite(file, pickle.dumps((0, (2.0, None, "rows"))), 0)

    await asyncio.sleep(0.15)
    before = said.calls.copy()
    os.pwrite(file, b"what a function likes", 0)
    garbage = pickle.dumps((1,))
    os.write(file, record[5:] + len(garbage).to_bytes(4, "little") + garbage)
    reader.close()

    assert before == [("progress", 2.0, None, "rows")]
    unreadable = ("leave_out", 1, "record", "it can't be read")
    assert said.calls == [*before, ("log", 20, "a", "text", ""), unreadable]


def test_a_process_that_has_not_started_has_given_no_heartbeat():
    process = _workers._Process(int, {}, None, gives_heartbeats=True)

    assert process.last_beat_s() == 0.0


@pytest.mark.parametrize("kind", ["path", "module", "compiled"])
def test_the_script_of_the_caller_is_imported_under_another_name(tmp_path, monkeypatch, kind):
    path = tmp_path / "asking_script.py"
    path.write_text(
        "import sys\n"
        "caller = sys.modules['__main__']\n"
        "seen = __name__, caller._asyncflow_is_importing_main, __name__ in sys.modules\n"
        "def function(): return 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "__main__", ModuleType("__main__"))
    monkeypatch.setitem(sys.modules, "__mp_main__", sys.modules["__main__"])

    if kind == "compiled":
        path = path.with_suffix(".pyc")
        py_compile.compile(str(path.with_suffix(".py")), str(path))
    main = ("module", path.stem) if kind == "module" else ("path", str(path))
    call = b"(c__main__\nfunction\nc__mp_main__\nfunction\n0}t."
    file = request_of(main, call)

    _child._respond(file)
    file.seek(0)

    assert _workers._outcome(file, 0) == 3
    assert sys.modules["__main__"] is sys.modules["__mp_main__"]
    assert sys.modules["__main__"].__dict__["seen"] == ("__mp_main__", True, True)
    assert not hasattr(sys.modules["__main__"], _child._IS_IMPORTING)


def test_data_with_the_name_of_the_script_does_not_run_it():
    call = pickle.dumps((work.return_argument, {"value": "__main__"}))
    main = "path", "nowhere.py"
    file = request_of(main, call)

    _child._respond(file)
    file.seek(0)

    assert _workers._outcome(file, 0) == "__main__"


@pytest.mark.process
async def test_a_function_defined_in_a_shell_is_refused_with_the_fix(monkeypatch):
    main = ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", main)
    exec("def _respond(): pass", main.__dict__)  # the worker program has this name too

    with pytest.raises(pickle.PicklingError, match=r"'_respond' .* notebook .*; define it in a fi"):
        await run_in_process(main._respond, None)
    with pytest.raises(pickle.PicklingError, match="'_respond' is defined in a main module"):
        respond_to(main._respond, {})


def test_a_main_module_is_found_by_its_name_or_its_file(monkeypatch):
    main = ModuleType("__main__")
    assert _workers._main_of(main) is None
    main.__file__ = "script.py"
    assert _workers._main_of(main) == ("path", os.path.abspath("script.py"))
    assert _workers._main_of(asyncio) == ("module", "asyncio")


@pytest.mark.process
def test_a_module_of_a_package_can_declare_steps_and_dataclasses(tmp_path):
    (tmp_path / "pkg").mkdir()
    (tmp_path / "pkg" / "__init__.py").touch()
    (tmp_path / "pkg" / "job.py").write_text(
        """
from __future__ import annotations
import asyncio, dataclasses
from asyncflow import WorkflowStep, run_pipeline

@dataclasses.dataclass
class Point:
    x: int
    kind: dataclasses.InitVar[int] = 0

def double():
    return Point(42)

STEPS = [WorkflowStep("double", double, runs_in="process")]

if __name__ == "__main__":
    print(asyncio.run(run_pipeline(STEPS))["double"].output == Point(42))
"""
    )

    assert run_python("-m", "pkg.job", cwd=tmp_path) == "True\n"


@pytest.mark.process
def test_a_process_has_the_options_of_the_interpreter():
    code = (
        "import asyncio, process_work as work;"
        "from asyncflow._policies.workers import run_in_process;"
        "print(asyncio.run(run_in_process(work.options, None)))"
    )

    assert run_python("-O", "-c", code) == "(1, True)\n"


@pytest.mark.process
async def test_the_process_loads_the_main_module_of_a_function(monkeypatch):
    main = ModuleType("__main__")
    main.__file__ = "nowhere.py"
    monkeypatch.setitem(sys.modules, "__main__", main)
    monkeypatch.delitem(sys.modules, "__mp_main__", raising=False)
    exec("def function(): pass", main.__dict__)

    with pytest.raises(pickle.PicklingError, match=r"could not load .*nowhere.py"):
        await run_in_process(main.function, None)

    assert sys.modules["__mp_main__"] is main


async def test_a_script_that_a_process_imports_starts_no_process(monkeypatch):
    monkeypatch.setattr(sys.modules["__main__"], _child._IS_IMPORTING, True, raising=False)

    with pytest.raises(SystemExit, match="start the run under: if __name__ == '__main__':"):
        await run_in_process(work.add, None)
