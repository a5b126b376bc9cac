"""The worker thread of a journal runs jobs in order, and its own routine between them."""

from __future__ import annotations

import asyncio
import os
import threading
from itertools import chain, repeat

import pytest

from asyncflow._core.errors import JournalError
from asyncflow.journal._write.worker import Shared, WorkerThread


def test_a_cancelled_job_does_not_run() -> None:
    done: list[int] = []
    proceed = threading.Event()
    thread = WorkerThread("runs.db", lambda: None)
    thread.submit(proceed.wait, 20)

    cancelled = thread.submit(done.append, 1).cancel()
    proceed.set()
    thread.submit(done.append, 2).result(50)

    assert cancelled
    assert done == [2]
    thread.end(int)
    thread.join()


def test_the_routine_runs_after_jobs_and_when_its_pause_is_over() -> None:
    enough = threading.Event()
    pauses = chain([0.001, 0.0, 0.002], repeat(None))

    def routine() -> float | None:
        pause = next(pauses)
        if pause is None:
            enough.set()
        return pause

    thread = WorkerThread("runs.db", routine)

    thread.submit(int)

    assert enough.wait(20)
    thread.end(int)
    with pytest.raises(JournalError, match=r"runs\.db: it is closed; open another journal"):
        thread.submit(int)


def test_a_forked_process_has_no_worker_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[int] = []
    thread = WorkerThread("runs.db", lambda: None)
    thread.submit(int).result(50)

    with monkeypatch.context() as fork:
        fork.setattr(os, "getpid", lambda: -1)
        with pytest.raises(JournalError, match="belongs to the parent of this process"):
            thread.submit(int)
        assert not thread.has_started
        thread.end(lambda: done.append(1))
        thread.join()  # would block forever if it waited for the parent's thread

    assert done == []
    thread._jobs.put(None)
    thread.join()


def test_the_next_job_retries_a_thread_that_could_not_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    thread = WorkerThread("runs.db", lambda: None)

    def refuse(_: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as full:
        full.setattr(threading.Thread, "start", refuse)
        with pytest.raises(JournalError, match=r"can't be started \(can't start new thread\)"):
            thread.submit(int)
    assert not thread.has_started

    assert thread.submit(int).result(50) == 0
    thread.end(int)
    thread.join()


async def test_questions_share_a_call_behind_the_jobs_that_were_queued_before_them():
    done: list[str] = []
    release = threading.Event()

    def answer_all(questions):
        done.append("+".join(questions))
        return [ValueError(each) if each == "refused" else each for each in questions]

    thread = WorkerThread("runs.db", lambda: None)
    send = Shared(thread, answer_all)
    thread.submit(release.wait)
    cancelled = asyncio.create_task(send("cancelled"))
    asked = [asyncio.create_task(send(name)) for name in ("a", "refused")]
    await asyncio.sleep(0)
    cancelled.cancel()
    thread.submit(done.append, "commit")
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    asked += [asyncio.create_task(send(name)) for name in ("b", "c")]
    await asyncio.sleep(0)
    release.set()

    a, refused, *others = await asyncio.gather(*asked, return_exceptions=True)
    assert [a, *others] == ["a", "b", "c"]
    assert isinstance(refused, ValueError)
    assert done == ["commit", "a+refused", "b+c"]
    thread.end(lambda: None)
    thread.join()


async def test_a_question_that_breaks_a_shared_call_breaks_no_other_one():
    def answer_all(questions):
        return [10 // each for each in questions]

    thread = WorkerThread("runs.db", lambda: None)
    send = Shared(thread, answer_all)

    answers = await asyncio.gather(*map(send, (5, 0, 2)), return_exceptions=True)

    assert answers[::2] == [2, 5]
    assert isinstance(answers[1], ZeroDivisionError)
    thread.end(lambda: None)
    thread.join()
    with pytest.raises(JournalError, match="it is closed"):
        await send(1)


async def test_two_threads_may_forget_the_same_closed_loop():
    class Loop:
        """A loop that another thread forgets as soon as this one has seen that it is closed."""

        def is_closed(self):
            send._waiting.pop(self)
            return True

    thread = WorkerThread("runs.db", lambda: None)
    send = Shared(thread, list)
    send._waiting[Loop()] = []

    assert await send(1) == 1
    thread.end(lambda: None)
    thread.join()
