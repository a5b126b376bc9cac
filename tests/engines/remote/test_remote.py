"""The far side of the engines, in this process: what a worker makes of a call, and what comes home.

Everything goes through bytes, as it does between machines.
"""

from __future__ import annotations

import asyncio
import logging
import math
import pickle
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any

import cloudpickle
import numpy as np
import pytest
from engine_calls import RecordedCall, RecordedHost, RecordedNotes

from asyncflow import (
    ActionNotAwaitableError,
    NotSendableError,
    OutputNotAwaitedError,
    RestoredError,
    WorkflowStep,
    current_step,
)
from asyncflow._core.pipeline.graph import plan
from asyncflow._core.running.context import RunContext, capturing_notes, enter_direct_call
from asyncflow.engines import RemoteOutput
from asyncflow.engines._remote import body as remote_body
from asyncflow.engines._remote import packing as _remote
from asyncflow.engines._remote import pulse as _pulse
from asyncflow.engines._remote.body import AttemptBody
from asyncflow.engines._remote.packing import (
    Answer,
    PackedCall,
    check_sendable,
    pack_call,
    run_packed,
    unpack_answer,
)
from asyncflow.engines._remote.pulse import Pulse
from asyncflow.engines._remote.wire import Sent


async def answer_of(
    recorded: RecordedCall,
    host: RecordedHost | None = None,
    *,
    stayed: Mapping[str, Any] | None = None,
    keep_bytes: int | None = None,
) -> Answer:
    """Send a call, make its attempt in a task of its own, and send the answer."""
    packed = pickle.loads(pickle.dumps(pack_call(recorded.call, keep_bytes)))
    answer = await asyncio.create_task(run_packed(packed, stayed or {}, host or RecordedHost()))
    pickle.dumps(answer)
    return answer


async def outcome_of(recorded: RecordedCall, **options: Any) -> Any:
    answer = pickle.loads(pickle.dumps(await answer_of(recorded, **options)))
    return unpack_answer(answer, recorded.call)


async def add(a: int, b: int) -> int:
    await asyncio.sleep(0)
    return a + b


class CustomError(Exception):
    """Can be pickled."""


class BadError(Exception):
    """Pickles, but doesn't unpickle."""

    def __reduce__(self) -> Any:
        return int, ("no number",)


# What is sent.


async def test_a_call_runs_the_action_with_its_arguments_and_with_those_that_stayed() -> None:
    remote = RemoteOutput("dask", "worker-2", 5)
    recorded = RecordedCall(WorkflowStep("add", add), {"a": 1, "b": remote})

    assert await outcome_of(recorded, stayed={"b": 41}) == 42


async def test_the_action_knows_its_attempt() -> None:
    async def tell() -> tuple[Any, ...]:
        step = current_step()
        return (
            (step.run_id, step.step_name, step.attempt, step.max_retries, step.item),
            step.idempotency_key,
            step.remaining_ms(),
            step.cancel_requested,
            dict(step.results),
        )

    step = WorkflowStep("load", tell, max_retries=3, timeout_ms=500)
    running = "load", 2, 0.0, 0.0, 7
    recorded = RecordedCall(step, running=running)

    about, key, left_ms, is_cancelled, results = await outcome_of(recorded)
    assert about == ("run-1", "load", 2, 3, 7)
    assert key == "run-1/load#7"
    assert left_ms == pytest.approx(500)
    assert (is_cancelled, results) == (False, {})


async def test_a_deadline_includes_the_wait_for_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    async def left_ms() -> float | None:
        return current_step().remaining_ms()

    now_s = 1e9
    monkeypatch.setattr(time, "time", lambda: now_s)
    step = WorkflowStep("load", left_ms, timeout_ms=None)
    packed = pack_call(RecordedCall(step, deadline_s=10.0).call, None)
    now_s += 7

    answer = await asyncio.create_task(run_packed(packed, {}, RecordedHost()))
    assert pickle.loads(answer.content) == pytest.approx(3000)


async def test_a_clean_up_step_has_no_results_of_others_in_a_worker() -> None:
    async def look() -> Any:
        return current_step().results

    recorded = RecordedCall(WorkflowStep("clean", look, run_if="always"))
    with pytest.raises(RuntimeError, match="not there in another process"):
        await outcome_of(recorded)


def test_an_action_that_cannot_be_sent_is_named_before_anything_runs() -> None:
    lock = threading.Lock()

    async def locked() -> None:
        with lock:
            pass

    step = WorkflowStep("load", locked)
    with pytest.raises(NotSendableError) as raised:
        check_sendable(step)
    assert "step 'load': its action can't be sent between processes: TypeError: " in str(
        raised.value
    )
    check_sendable(WorkflowStep("add", add))
    with pytest.raises(NotSendableError, match="step 'load': its action can't be sent"):
        pack_call(RecordedCall(step).call, None)


def test_an_argument_that_cannot_be_sent_is_named() -> None:
    recorded = RecordedCall(WorkflowStep("add", add), {"a": 1, "b": threading.Lock()})

    with pytest.raises(NotSendableError) as raised:
        pack_call(recorded.call, None)
    assert raised.value.subject == "argument 'b'"
    assert isinstance(raised.value.__cause__, TypeError)


class Once:
    """Can be pickled, but not the first time."""

    failed = False

    def __reduce__(self) -> Any:
        if not Once.failed:
            Once.failed = True
            raise ValueError("not now")
        return Once, ()


def test_a_call_that_cannot_be_sent_names_the_step_if_each_of_its_parts_can() -> None:
    with pytest.raises(NotSendableError, match=r"step 'add': the call can't be sent .* not now"):
        pack_call(RecordedCall(WorkflowStep("add", add), {"a": Once()}).call, None)


async def test_nothing_that_is_sent_shows_a_secret() -> None:
    async def leak(token: str) -> str:
        return token

    packed = pack_call(RecordedCall(WorkflowStep("leak", leak), {"token": "hunter2"}).call, None)
    answer = await asyncio.create_task(run_packed(packed, {}, RecordedHost()))
    sent = pickle.loads(pickle.dumps(packed))

    assert type(sent) is PackedCall
    assert b"hunter2" in bytes(sent)
    assert b"hunter2" in answer.content
    for shown in (repr(packed), f"{sent}", str([sent]), repr(answer), f"{answer}"):
        assert "hunter2" not in shown


# What a worker refuses.


async def test_a_body_that_may_not_begin_does_not_run() -> None:
    ran = False

    async def act() -> None:
        nonlocal ran
        ran = True

    recorded = RecordedCall(WorkflowStep("act", act))
    with pytest.raises(asyncio.CancelledError):
        await outcome_of(recorded, host=RecordedHost(lets_begin=False))
    assert not ran


async def test_a_checkpoint_travels_before_the_body_has_ended_and_with_its_answer() -> None:
    class SavingHost(RecordedHost):
        def save(self, saved: tuple[str, bytes]) -> None:
            super().save(saved)
            arrived.set()

    async def act() -> None:
        for number in range(3):
            current_step().checkpoint(number)
        await arrived.wait()
        current_step().checkpoint("last")

    arrived, host = asyncio.Event(), SavingHost()
    step = WorkflowStep("act", act)
    recorded = RecordedCall(step)
    run = RunContext("run-1", plan([step]), time.monotonic, 0.0, math.inf, {}, bool)
    leave = enter_direct_call(run, recorded.call.running)
    packed = pack_call(recorded.call, None)
    leave()
    # As if it had been sent: what the action takes from this test is not.
    body = AttemptBody(Sent(*pickle.loads(packed)[3]), sys.version_info[:2], act, {}, "worker-1")
    answer = await body.run(host)
    unpack_answer(answer, recorded.call)

    assert [pickle.loads(data) for _, data in host.saved] == [2]
    assert [pickle.loads(data) for _, data in recorded.saved] == ["last"]


async def test_a_call_that_is_cancelled_before_it_may_begin_does_not_run() -> None:
    class SlowHost(RecordedHost):
        async def begin(self) -> bool:
            self.began.set()
            await asyncio.Event().wait()
            return True

    host = SlowHost()
    packed = pack_call(RecordedCall(WorkflowStep("add", add)).call, None)
    task = asyncio.create_task(run_packed(packed, {}, host))
    await host.began.wait()
    task.cancel()

    assert (await task).kind == "not run"


@pytest.mark.parametrize(
    ("kind", "advice"), [(ImportError, ""), (ModuleNotFoundError, "; install it on the workers")]
)
async def test_an_action_that_cannot_be_loaded_is_named(
    kind: type[ImportError], advice: str
) -> None:
    def load_nothing() -> Any:
        raise kind("no module named 'pandas'")

    class Elsewhere:
        def __reduce__(self) -> Any:
            return load_nothing, ()

    recorded = RecordedCall(WorkflowStep("add", add), {"a": 1, "b": Elsewhere()})
    message = f"{kind.__name__}: no module named 'pandas'{advice}"
    with pytest.raises(NotSendableError, match=message) as raised:
        await outcome_of(recorded)
    assert raised.value.subject == "its action, or an argument,"
    assert "load_nothing" in raised.value.__notes__[0]


def other_python(packed: bytes) -> bytes:
    form, _, code, fields, content = pickle.loads(packed)
    return pickle.dumps((form, (3, 1), code, fields, content))


async def test_a_closure_is_not_loaded_by_another_minor_version_of_python() -> None:
    async def act() -> str:
        return "ran"

    host = RecordedHost()
    recorded = RecordedCall(WorkflowStep("act", act))
    packed = other_python(pack_call(recorded.call, None))
    answer = await asyncio.create_task(run_packed(packed, {}, host))

    with pytest.raises(NotSendableError, match=r"from Python 3\.1 to 3\.") as raised:
        unpack_answer(answer, recorded.call)
    assert "act" in raised.value.subject
    assert not host.began.is_set()


def importable_call() -> RecordedCall:
    return RecordedCall(WorkflowStep("sleep", asyncio.sleep), {"delay": 0, "result": "slept"})


async def test_an_importable_function_is_fine_in_another_version_of_python() -> None:
    recorded = importable_call()
    packed = other_python(pack_call(recorded.call, None))
    answer = await asyncio.create_task(run_packed(packed, {}, RecordedHost()))

    assert unpack_answer(answer, recorded.call) == "slept"


async def test_a_worker_of_another_version_sends_no_code_home() -> None:
    recorded = RecordedCall(WorkflowStep("load", return_it))
    packed = other_python(pack_call(recorded.call, None))
    answer = await asyncio.create_task(run_packed(packed, {"value": lambda: 1}, RecordedHost()))

    with pytest.raises(NotSendableError, match=r"to 3\.1, which may crash") as raised:
        unpack_answer(answer, recorded.call)
    assert raised.value.subject.startswith("its output, with ")


async def raise_it(error: BaseException) -> None:
    raise error


async def test_a_worker_of_another_version_sends_the_text_of_an_error_with_code() -> None:
    class LocalError(Exception):
        def explain(self) -> str:
            return "why"

    recorded = RecordedCall(WorkflowStep("fail", raise_it), {"error": LocalError("no")})
    packed = pack_call(recorded.call, None)
    form, version, _, fields, content = pickle.loads(packed)
    packed = pickle.dumps((form, (3, 1), "", fields, content))  # as if it were importable there
    answer = await asyncio.create_task(run_packed(packed, {}, RecordedHost()))

    assert version == sys.version_info[:2]
    with pytest.raises(RestoredError, match="LocalError: no"):
        unpack_answer(answer, recorded.call)


async def test_another_version_of_asyncflow_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recorded = importable_call()
    packed = pack_call(recorded.call, None)
    monkeypatch.setattr(_remote, "FORMAT", 0)
    answer = await asyncio.create_task(run_packed(packed, {}, RecordedHost()))

    with pytest.raises(NotSendableError, match="another version of asyncflow"):
        unpack_answer(answer, recorded.call)


# What comes home.


@pytest.mark.parametrize("kind", [CustomError, KeyboardInterrupt, SystemExit, TimeoutError])
async def test_an_error_comes_home_as_itself_with_its_remote_traceback(
    kind: type[BaseException],
) -> None:
    recorded = RecordedCall(WorkflowStep("fail", raise_it), {"error": kind("no")})

    with pytest.raises(kind) as raised:
        await outcome_of(recorded)
    assert type(raised.value) is kind
    assert raised.value.args == ("no",)
    (note,) = raised.value.__notes__
    assert note.startswith("On worker-1:\nTraceback ")
    assert "in raise_it" in note
    assert "in run_packed" not in note


async def test_an_error_that_cannot_be_sent_comes_home_as_text() -> None:
    recorded = RecordedCall(WorkflowStep("fail", raise_it))

    with pytest.raises(RestoredError, match="BadError: one") as raised:
        await outcome_of(recorded, stayed={"error": BadError("one")})
    assert "in raise_it" in raised.value.traceback


async def test_an_error_whose_class_is_missing_at_home_comes_home_as_text() -> None:
    recorded = RecordedCall(WorkflowStep("fail", raise_it), {"error": CustomError("no")})
    answer = await answer_of(recorded)
    for content in (b"cmissing\nError\n.", pickle.dumps("no error")):
        answer = Answer("raised", content, text=answer.text)
        with pytest.raises(RestoredError, match="CustomError: no"):
            unpack_answer(answer, recorded.call)


async def test_a_cancellation_that_the_action_raises_comes_home_as_itself() -> None:
    recorded = RecordedCall(WorkflowStep("fail", raise_it))
    with pytest.raises(asyncio.CancelledError):
        await outcome_of(recorded, stayed={"error": asyncio.CancelledError()})


async def return_it(value: Any) -> Any:
    return value


async def test_an_output_that_cannot_be_sent_names_the_step() -> None:
    recorded = RecordedCall(WorkflowStep("load", return_it))

    with pytest.raises(NotSendableError, match="step 'load': its output can't be sent"):
        await outcome_of(recorded, stayed={"value": threading.Lock()})


async def test_an_output_that_cannot_be_loaded_at_home_names_the_step() -> None:
    call = importable_call().call
    with pytest.raises(NotSendableError, match="step 'sleep': its output can't be sent"):
        unpack_answer(Answer("returned", b"cmissing\nClass\n."), call)


async def test_a_large_output_stays_if_it_may() -> None:
    large, small = b"x" * 2000, b"x" * 500
    kept = RecordedCall(WorkflowStep("load", return_it), may_keep=True)

    answer = await answer_of(kept, stayed={"value": large}, keep_bytes=1000)
    assert answer.kept is large
    assert pickle.loads(pickle.dumps(answer)).kept is None
    remote = unpack_answer(answer, kept.call, lambda size: RemoteOutput("dask", "w", size))
    assert isinstance(remote, RemoteOutput)
    assert 2000 <= remote.size < 2200
    assert await outcome_of(kept, stayed={"value": small}, keep_bytes=1000) == small
    assert await outcome_of(kept, stayed={"value": large}) == large
    home = RecordedCall(WorkflowStep("load", return_it))
    assert await outcome_of(home, stayed={"value": large}, keep_bytes=1000) == large


@pytest.mark.parametrize("order", ["C", "F"])
async def test_an_array_with_a_large_buffer_stays_or_comes_home_by_its_size(order: Any) -> None:
    # From 64 KiB the pickler hands its file a buffer, which has no length, and no bytes.
    array = np.zeros((2, 2**15), order=order)
    call = RecordedCall(WorkflowStep("load", return_it), may_keep=True)

    kept = await answer_of(call, stayed={"value": array}, keep_bytes=array.nbytes - 1)
    assert kept.kept is array
    assert kept.size >= array.nbytes
    home = await outcome_of(call, stayed={"value": array}, keep_bytes=2 * array.nbytes)
    assert np.array_equal(home, array)


async def test_an_iterator_never_stays_where_several_steps_could_share_it() -> None:
    recorded = RecordedCall(WorkflowStep("load", return_it), may_keep=True)

    home = await outcome_of(recorded, stayed={"value": iter([1, 2])}, keep_bytes=0)

    assert [*home] == [1, 2]


async def test_an_output_stays_although_its_size_cannot_be_told() -> None:
    class Sizeless(bytes):
        def __sizeof__(self) -> int:
            raise RuntimeError("no")

    recorded = RecordedCall(WorkflowStep("load", return_it), may_keep=True)
    answer = await answer_of(recorded, stayed={"value": Sizeless(2000)}, keep_bytes=1000)
    assert answer.size >= 2000


async def test_an_action_that_is_none_fails_as_it_does_at_home() -> None:
    async def forget() -> Any:
        return add(1, 2)

    with pytest.raises(OutputNotAwaitedError, match="step 'forget'"):
        await outcome_of(RecordedCall(WorkflowStep("forget", forget)))
    with pytest.raises(ActionNotAwaitableError, match="step 'plain'"):
        await outcome_of(RecordedCall(WorkflowStep("plain", lambda: 1)))


# Cancellation.


async def test_a_cancelled_body_cleans_up_before_it_answers() -> None:
    clock = asyncio.get_running_loop().time
    cleaned = []

    async def act() -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            await asyncio.sleep(5)
            cleaned.append(clock())

    host = RecordedHost()
    step = WorkflowStep("act", return_it)
    packed = pack_call(RecordedCall(step).call, None)
    task = asyncio.create_task(run_packed(packed, {"value": None}, host))
    assert (await task).kind == "returned"

    # Not through bytes, or the list would be a copy.
    call = RecordedCall(WorkflowStep("act", call_it)).call
    started_s = clock()
    task = asyncio.create_task(run_packed(pack_call(call, None), {"function": act}, host))
    await asyncio.sleep(1)
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        unpack_answer(await task, call)
    assert cleaned == [started_s + 6]


async def call_it(function: Any) -> Any:
    return await function()


async def test_a_body_may_answer_a_cancellation_with_a_value() -> None:
    async def act() -> str:
        try:
            await asyncio.sleep(1000)
        except asyncio.CancelledError:
            assert current_step().cancel_requested
        return "late"

    call = RecordedCall(WorkflowStep("act", act)).call
    task = asyncio.create_task(run_packed(pack_call(call, None), {}, RecordedHost()))
    await asyncio.sleep(1)
    task.cancel()

    assert unpack_answer(await task, call) == "late"


# Threads and processes beside the worker's loop.


def call_plainly(function: Any) -> Any:
    return function()


async def test_a_thread_is_told_and_then_abandoned_when_its_time_is_up() -> None:
    has_begun, may_end, was_told = threading.Event(), threading.Event(), []

    def act() -> None:
        has_begun.set()
        may_end.wait()
        was_told.append(current_step().cancel_requested)

    host = RecordedHost()
    recorded = RecordedCall(WorkflowStep("act", call_plainly, runs_in="thread", timeout_ms=20))
    packed = pack_call(recorded.call, None)
    loop: Any = asyncio.get_running_loop()
    task = asyncio.create_task(run_packed(packed, {"function": act}, host))
    with loop.standing_still():
        await asyncio.to_thread(has_begun.wait)
    task.cancel()
    # The clock stands still while the thread runs, so the time is taken to be up.
    body = asyncio.create_task(asyncio.wait([task]))
    await asyncio.sleep(0)
    assert not task.done()
    may_end.set()
    await body
    assert was_told == [True]
    assert (await task).is_abandoned is False


async def test_an_abandoned_thread_reports_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    has_begun, may_end = threading.Event(), threading.Event()

    def act() -> None:
        has_begun.set()
        may_end.wait()

    host = RecordedHost()
    recorded = RecordedCall(
        WorkflowStep("act", call_plainly, runs_in="thread", timeout_ms=None), deadline_s=0.0
    )
    packed = pack_call(recorded.call, None)
    loop: Any = asyncio.get_running_loop()
    task = asyncio.create_task(run_packed(packed, {"function": act}, host))
    with loop.standing_still():
        await asyncio.to_thread(has_begun.wait)
    task.cancel()

    answer = await task
    assert answer.is_abandoned
    with pytest.raises(asyncio.CancelledError):
        unpack_answer(answer, recorded.call)
    assert not host.ended.is_set()
    may_end.set()
    with loop.standing_still():
        await host.ended.wait()


@pytest.mark.process
async def test_a_process_beside_the_worker_gets_what_was_sent_by_value() -> None:
    def act(base: int) -> int:
        logging.getLogger("job").warning("counting")
        current_step().heartbeat()
        current_step().progress(1, 2, "rows")
        return base + current_step().attempt

    notes = RecordedNotes()
    # A closure can't run in a local process, whose step refuses it; by way of a worker it can.
    step = WorkflowStep("act", call_with_base, runs_in="process", heartbeat_ms=60_000)
    recorded = RecordedCall(step, {"function": act, "base": 40}, attempt=2, notes=notes)

    assert await outcome_of(recorded) == 42
    assert ("log", 30, "job", "counting", "") in notes.said
    assert ("progress", 1, 2, "rows") in notes.said


def call_with_base(function: Any, base: int) -> Any:
    return function(base)


def make_a_lock() -> Any:
    return threading.Lock()


@pytest.mark.process
async def test_an_output_of_a_process_that_cannot_be_sent_names_the_step() -> None:
    recorded = RecordedCall(WorkflowStep("act", make_a_lock, runs_in="process"))
    with pytest.raises(NotSendableError, match="step 'act': its output"):
        await outcome_of(recorded)


async def test_a_child_of_a_worker_loads_what_it_gets_and_returns_what_can_be_loaded() -> None:
    def double(number: int) -> int:
        return 2 * number

    content = cloudpickle.dumps(("act", double, {"number": 21}))
    assert pickle.loads(remote_body._call_in_child(content)) == 42
    content = cloudpickle.dumps(("act", make_a_lock, {}))
    with pytest.raises(NotSendableError, match="step 'act': its output"):
        remote_body._call_in_child(content)
    await remote_body._no_action()  # its name is all that counts


# Notes.


async def test_what_an_attempt_says_comes_home_in_order(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    async def talk() -> None:
        step = current_step()
        logging.getLogger("job").info("one %s", "argument")
        print("two")
        step.progress(1, 10)
        step.progress(3, 10, "rows")
        step.attach("table", [{"a": 1}])
        logging.getLogger("job").debug("too low")
        with pytest.raises(ValueError, match="media_type"):
            step.attach("picture", b"", "image/gif")

    notes = RecordedNotes(level=20, prints=True)
    recorded = RecordedCall(WorkflowStep("talk", talk), notes=notes)
    with caplog.at_level(10):
        await outcome_of(recorded)

    assert notes.said == [
        ("log", 20, "job", "one argument", ""),
        ("printed", "stdout", "two"),
        ("printed", "stdout", "\n"),
        ("attach", "table", b"a\n1\n", "text/csv"),
        ("progress", 3, 10, "rows"),
    ]


async def test_of_too_many_notes_the_first_and_the_last_come_home() -> None:
    async def talk() -> None:
        for number in range(2_000):
            logging.getLogger("job").warning("%d %s", number, "x" * 40_000)

    notes = RecordedNotes()
    await outcome_of(RecordedCall(WorkflowStep("talk", talk), notes=notes))

    *records, (last_kind, count) = notes.said
    numbers = [int(message.split()[0]) for _, _, _, message, _ in records]
    first = len(numbers) - 40
    assert numbers == [*range(first), *range(1_960, 2_000)]
    assert 300 < first < 500
    assert (last_kind, count) == ("leave_out", 2_000 - len(numbers))


async def test_a_note_that_the_run_refuses_is_counted_and_does_not_fail_the_attempt() -> None:
    class Refusing(RecordedNotes):
        def stream(self, running: Any, text: str) -> None:
            raise ValueError("no more")

    async def talk() -> int:
        current_step().stream("hello")
        return 1

    notes = Refusing()
    assert await outcome_of(RecordedCall(WorkflowStep("talk", talk), notes=notes)) == 1
    assert notes.said == [("leave_out", 1, "streamed value", "no more")]


async def test_a_run_learns_how_many_records_a_child_has_left_out() -> None:
    async def act() -> None:
        notes, running = capturing_notes() or pytest.fail("nothing takes records")
        notes.leave_out(running, 3)
        notes.leave_out(running, 4)
        notes.log(running, 30, "job", {"event": "an event of structlog", "rows": 3})

    notes = RecordedNotes()
    await outcome_of(RecordedCall(WorkflowStep("act", act), notes=notes))

    assert notes.said == [
        ("log", 30, "job", "an event of structlog rows=3", ""),
        ("leave_out", 7),
    ]


async def test_nothing_is_collected_if_nothing_takes_it() -> None:
    async def talk() -> None:
        logging.getLogger("job").warning("hello")
        current_step().progress(1)

    answer = await answer_of(RecordedCall(WorkflowStep("talk", talk)))
    assert answer.notes is None


# Heartbeats, whose time is real.


@pytest.mark.realtime
async def test_heartbeats_are_passed_on_a_few_times_for_each_limit() -> None:
    async def act() -> None:
        until = time.monotonic() + 0.2
        while time.monotonic() < until:
            current_step().heartbeat()
            await asyncio.to_thread(time.sleep, 0.001)

    host = RecordedHost()
    recorded = RecordedCall(WorkflowStep("act", act, heartbeat_ms=100))
    await outcome_of(recorded, host=host)
    assert 1 <= host.beats <= 9


async def test_a_heartbeat_that_comes_soon_after_another_is_passed_on_late(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(_pulse, "monotonic", loop.time)
    started_s, beats = loop.time(), list[float]()
    pulse = Pulse(loop, 4.0, lambda: beats.append(loop.time() - started_s))

    for _ in range(10):  # at 0.3, 0.6 ... 3.0
        await asyncio.sleep(0.3)
        pulse.beat()
        pulse.beat()
    await asyncio.sleep(3.9)
    assert not pulse.is_missed()
    await asyncio.sleep(0.2)
    assert pulse.is_missed()
    assert beats == pytest.approx([1.0, 2.0, 3.0])
    pulse.stop()
    pulse.beat()
    await asyncio.sleep(2)
    assert len(beats) == 3


async def test_the_heartbeats_of_a_child_are_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(_pulse, "monotonic", loop.time)
    started_s, beats = loop.time(), list[float]()
    pulse = Pulse(loop, 4.0, lambda: beats.append(loop.time() - started_s))

    beaten_s = started_s + 1.5
    pulse.follow(lambda: beaten_s if loop.time() >= beaten_s else 0.0)
    await asyncio.sleep(5)
    assert len(beats) == 1
    assert 1.5 <= beats[0] <= 1.8
    pulse.stop()


def test_a_heartbeat_after_the_end_of_the_loop_is_dropped() -> None:
    loop = asyncio.new_event_loop()
    pulse = Pulse(loop, 1.0, lambda: None)
    loop.close()
    pulse.beat()
