"""The thread of a journal does one thing after the other, and something of its own in between."""

from __future__ import annotations

import os
import threading
from itertools import chain, repeat

import pytest

from asyncflow._core.errors import JournalError
from asyncflow.journal._worker import WorkerThread


def test_jobs_are_done_in_their_order() -> None:
    done: list[int] = []
    thread = WorkerThread("x", "runs.db", lambda: None)

    for number in range(100):
        thread.submit(done.append, number)
    thread.end(lambda: done.append(-1))
    thread.join()

    assert done == [*range(100), -1]


def test_what_a_job_returns_or_raises_arrives() -> None:
    thread = WorkerThread("x", "runs.db", lambda: None)

    assert thread.submit(divmod, 7, 2).result(20) == (3, 1)
    assert isinstance(thread.submit(divmod, 7, 0).exception(20), ZeroDivisionError)
    assert isinstance(thread.submit(exec, "raise SystemExit").exception(20), SystemExit)
    assert thread.submit(threading.current_thread).result(20).name == "x"

    thread.end(int)
    thread.join()


def test_a_job_that_was_cancelled_is_left_out() -> None:
    done: list[int] = []
    go_on = threading.Event()
    thread = WorkerThread("x", "runs.db", lambda: None)
    thread.submit(go_on.wait, 20)

    cancelled = thread.submit(done.append, 1).cancel()
    go_on.set()
    thread.submit(done.append, 2).result(20)

    assert cancelled
    assert done == [2]
    thread.end(int)
    thread.join()


def test_the_routine_is_done_after_jobs_and_at_its_time() -> None:
    enough = threading.Event()
    pauses = chain([0.001, 0.0, 0.002], repeat(None))

    def routine() -> float | None:
        pause = next(pauses)
        if pause is None:
            enough.set()
        return pause

    thread = WorkerThread("x", "runs.db", routine)

    thread.submit(int)

    assert enough.wait(20)
    thread.end(int)
    with pytest.raises(JournalError, match=r"runs\.db: it is closed; open another journal"):
        thread.submit(int)


def test_a_thread_that_was_never_needed_ends_too() -> None:
    thread = WorkerThread("x", "runs.db", lambda: None)

    thread.end(int)
    thread.end(int)
    thread.join()

    assert not thread.has_started


def test_a_fork_has_no_such_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[int] = []
    thread = WorkerThread("x", "runs.db", lambda: None)
    thread.submit(int).result(20)

    with monkeypatch.context() as fork:
        fork.setattr(os, "getpid", lambda: -1)
        with pytest.raises(JournalError, match="belongs to the parent of this process"):
            thread.submit(int)
        assert not thread.has_started
        thread.end(lambda: done.append(1))
        thread.join()  # which would last for ever

    assert done == []
    thread._jobs.put(None)
    thread.join()


def test_a_thread_that_can_not_start_is_tried_again_by_the_next_job(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    thread = WorkerThread("x", "runs.db", lambda: None)

    def refuse(_: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as full:
        full.setattr(threading.Thread, "start", refuse)
        with pytest.raises(JournalError, match=r"can't be started \(can't start new thread\)"):
            thread.submit(int)
    assert not thread.has_started

    assert thread.submit(int).result(20) == 0
    thread.end(int)
    thread.join()
