"""A service: how many runs it has, what it resumes, how it drains, and whom it answers."""

from __future__ import annotations

import asyncio
import logging
import pickle
import sqlite3
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing
from functools import partial, wraps
from pathlib import Path
from typing import Any

import httpx
import pytest
from fake_engine import FakeEngine

from asyncflow import (
    JournalError,
    Orchestrator,
    Pipeline,
    ResourceError,
    Retry,
    RunAlreadyActiveError,
    RunCancelledError,
    WorkflowStep,
    web,
)
from asyncflow.events import Event, RunResumed
from asyncflow.journal import SQLiteJournal
from asyncflow.service import (
    ClientDisconnectedError,
    Service,
    ServiceFullError,
    ServiceStoppingError,
    ServiceUnavailableError,
)
from asyncflow.testing import run_in_virtual_time


def in_virtual_time(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        run_in_virtual_time(test(*args, **kwargs))

    return run


class Work:
    """A pipeline of two steps that take ``pause_s`` each, and what they did."""

    def __init__(self) -> None:
        self.pipeline = Pipeline("work")
        self.done: list[str] = []
        self.cleaned_up: list[str] = []
        self.first = self.pipeline.step(self.first_step, name="first", timeout_ms=None)
        self.pipeline.step(self.second_step, name="second", timeout_ms=None, depends_on=["first"])

    async def first_step(self, pause_s: float = 1) -> None:
        await self.act("first", pause_s)

    async def second_step(self, pause_s: float = 1) -> None:
        await self.act("second", pause_s)

    async def act(self, name: str, pause_s: float) -> None:
        try:
            await asyncio.sleep(pause_s)
            self.done.append(name)
        except asyncio.CancelledError:
            await asyncio.sleep(0.1)
            self.cleaned_up.append(name)
            raise


@pytest.fixture
def work() -> Work:
    return Work()


def now_s() -> float:
    return asyncio.get_running_loop().time() - 1_000  # where virtual time starts


async def statuses(journal: Any) -> dict[str, str]:
    return {record.run_id: record.status for record in await journal.runs()}


async def client_that_stays() -> dict[str, Any]:
    return await asyncio.Future()


def client_that_leaves_after(seconds: float) -> Callable[[], Coroutine[Any, Any, dict[str, Any]]]:
    messages = ["http.request", "http.disconnect"]

    async def receive() -> dict[str, Any]:
        message = messages.pop(0)
        if message == "http.disconnect":
            await asyncio.sleep(seconds)
        return {"type": message}

    return receive


# --- starting ------------------------------------------------------------------------------------


@in_virtual_time
async def test_a_run_continues_without_the_task_that_started_it(work: Work) -> None:
    async with Service([work.pipeline]) as service:
        run = await asyncio.create_task(service.start("work"))
        assert service.get(run.run_id) is run
        assert service.runs == [run]

        report = await run.report()

    assert report.all_passed
    assert work.done == ["first", "second"]
    assert service.get(run.run_id) is None
    assert service.runs == []


@in_virtual_time
async def test_a_run_has_started_in_the_journal_when_start_returns(
    work: Work, tmp_path: Path
) -> None:
    async with (
        SQLiteJournal(tmp_path / "runs.db") as journal,
        Service([work.pipeline], journal=journal) as service,
    ):
        await service.start(work.pipeline, {"pause_s": 5}, run_id="r")

        assert await statuses(journal) == {"r": "RUNNING"}


@in_virtual_time
async def test_what_prevents_a_start_is_raised_by_it_and_takes_no_place(
    work: Work, tmp_path: Path
) -> None:
    async with (
        SQLiteJournal(tmp_path / "runs.db") as journal,
        Service([work.pipeline], journal=journal, max_runs=1) as service,
    ):
        with pytest.raises(ValueError, match=r"no step .* takes an input 'pause'"):
            await service.start("work", {"pause": 1})
        with pytest.raises(TypeError, match="run_id must be a str"):
            await service.start("work", run_id=3)  # type: ignore[arg-type]
        with pytest.raises(Exception, match="pause_s"):
            await service.start("work", {"pause_s": object()})  # which can't be stored

        run = await service.start("work")
        assert (await run.report()).all_passed


@in_virtual_time
async def test_an_input_may_have_the_name_of_an_option() -> None:
    async def copy(run_id: str, label: str) -> str:
        return f"{run_id} {label}"

    async with Service({"copies": [WorkflowStep("copy", copy)]}) as service:
        run = await service.start("copies", {"run_id": "1", "label": "l"}, run_id="r")
        with pytest.raises(TypeError, match="inputs must be a mapping of parameter name"):
            await service.start("copies", "r")  # type: ignore[arg-type]

        assert run.run_id == "r"
        assert (await run.report())["copy"].output == "1 l"


@in_virtual_time
async def test_an_id_is_active_once(work: Work) -> None:
    async with Service([work.pipeline]) as service:
        await service.start("work", run_id="r")

        with pytest.raises(RunAlreadyActiveError, match=r"service.get\('r'\) returns it") as raised:
            await service.start("work", run_id="r")
        assert str(pickle.loads(pickle.dumps(raised.value))) == str(raised.value)


@in_virtual_time
async def test_the_options_of_runs_are_those_that_the_service_was_given(work: Work) -> None:
    async with Service([work.pipeline]) as service:
        for known in (work.pipeline, service.pipelines["work"]):
            await service.start(known)

        with pytest.raises(LookupError, match="'work' was not given to the service"):
            await service.start(work.pipeline.with_options(max_concurrency=1))
        assert len(service.runs) == 2


@in_virtual_time
async def test_the_steps_of_a_service_run_on_its_engine(work: Work) -> None:
    async with Service([work.pipeline], engine=FakeEngine()) as service:
        report = await (await service.start("work")).report()

    assert {result.engine for result in report.results} == {"fake"}


@in_virtual_time
async def test_a_pipeline_that_the_service_does_not_have_is_refused(work: Work) -> None:
    async with Service({"steps": [WorkflowStep("a", partial(asyncio.sleep, 0))]}) as service:
        with pytest.raises(LookupError, match=r"no pipeline 'step' \(did you mean 'steps'\?\)"):
            await service.start("step")
        with pytest.raises(LookupError, match="'work' was not given to the service"):
            await service.start(work.pipeline)

        assert (await (await service.start("steps")).report()).all_passed
        assert list(service.pipelines) == ["steps"]


@in_virtual_time
async def test_a_pipeline_with_other_options_is_not_mistaken_for_that_of_the_service(
    work: Work,
) -> None:
    async with Service([work.pipeline]) as service:
        with pytest.raises(LookupError, match="with_options"):
            await service.start(work.pipeline.with_options(deadline_ms=1))

        for own in (work.pipeline, service.pipelines["work"]):
            assert (await (await service.start(own)).report()).all_passed


@in_virtual_time
async def test_a_run_is_started_with_a_label_which_a_resumption_keeps(
    work: Work, tmp_path: Path
) -> None:
    named: dict[str, Any] = {"other": work.pipeline}
    async with SQLiteJournal(tmp_path / "runs.db") as journal:
        async with Service(named, journal=journal, grace_ms=0) as service:
            with pytest.raises(ValueError, match="label must have at most"):
                await service.start("other", label="x" * 1_000)
            await service.start("other", run_id="r", label="order 12345")
            await asyncio.sleep(0.5)

        async with Service(named, journal=journal):
            await asyncio.sleep(3)

        (found,) = await journal.runs(label="order 12345")
        assert (found.run_id, found.pipeline, found.status) == ("r", "other", "PASSED")


@in_virtual_time
async def test_a_run_is_stored_and_resumed_under_the_name_that_the_service_knows(
    work: Work, tmp_path: Path
) -> None:
    named: dict[str, Any] = {"other": work.pipeline}
    async with SQLiteJournal(tmp_path / "runs.db") as journal:
        async with Service(named, journal=journal, grace_ms=0) as service:
            await service.start(work.pipeline, run_id="r")
            await asyncio.sleep(0.5)
        assert (await journal.record("r")).pipeline == "other"

        async with Service(named, journal=journal):
            await asyncio.sleep(3)
        assert await statuses(journal) == {"r": "PASSED"}


class SlowJournal(SQLiteJournal):
    """Takes a second to claim a run, and another one for each commit."""

    async def open(self, *args: Any, **kwargs: Any) -> Any:
        await asyncio.sleep(1)
        session, found = await super().open(*args, **kwargs)
        flush = session.flush

        async def flush_late() -> None:
            await asyncio.sleep(1)
            await flush()

        session.flush = flush_late  # type: ignore[method-assign]
        return session, found


@pytest.mark.parametrize(("cancel_after_s", "stored"), [(0.5, set()), (1.5, {"INTERRUPTED"})])
@in_virtual_time
async def test_a_start_that_is_cancelled_is_no_run_or_a_cancelled_one(
    work: Work, tmp_path: Path, cancel_after_s: float, stored: set[str]
) -> None:
    async with (
        SlowJournal(tmp_path / "runs.db") as journal,
        Service([work.pipeline], journal=journal) as service,
    ):
        starting = asyncio.create_task(service.start("work", run_id="r"))
        await asyncio.sleep(cancel_after_s)
        starting.cancel()

        with pytest.raises(asyncio.CancelledError):
            await starting
        await asyncio.sleep(2)
        assert set((await statuses(journal)).values()) == stored
        assert service.runs == []


@pytest.mark.parametrize("cancel_at", ["claim", "begin", "flush"])
@in_virtual_time
async def test_a_cancelled_start_does_not_end_a_run_that_was_accepted_before(
    work: Work, tmp_path: Path, cancel_at: str
) -> None:
    def on_event(event: Event) -> None:
        if cancel_at == "begin" and isinstance(event, RunResumed):
            starting.cancel()

    watched = work.pipeline.with_options(observers=[on_event])
    async with SlowJournal(tmp_path / "runs.db") as journal:
        async with Service([watched], journal=journal, resume_every_s=60) as service:
            await asyncio.sleep(5)  # it looks for runs to resume before there is one
            async with Service([work.pipeline], journal=journal, grace_ms=0) as draining:
                await draining.start("work", run_id="order-7")
            starting = asyncio.create_task(service.start("work", run_id="order-7"))
            await asyncio.sleep({"claim": 0.5, "begin": 5, "flush": 1.5}[cancel_at])
            starting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await starting

        async with Service([work.pipeline], journal=journal):
            await asyncio.sleep(20)

        assert await statuses(journal) == {"order-7": "PASSED"}


@in_virtual_time
async def test_a_run_can_be_cancelled_before_it_has_begun(work: Work, tmp_path: Path) -> None:
    async with (
        SlowJournal(tmp_path / "runs.db") as journal,
        Service([work.pipeline], journal=journal) as service,
    ):
        starting = asyncio.create_task(service.start("work", run_id="r"))
        await asyncio.sleep(0.5)
        assert await service.cancel("r", "not wanted")

        with pytest.raises(RunCancelledError, match="not wanted"):
            await starting


@in_virtual_time
async def test_a_step_that_would_end_the_program_ends_its_run(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def leave() -> None:
        raise SystemExit(3)

    async with Service({"leave": [WorkflowStep("leave", leave)]}) as service:
        run = await service.start("leave")
        with pytest.raises(SystemExit):
            await service.answer(run, client_that_stays)
        await service.start("leave")
        await asyncio.sleep(1)

        assert service.runs == []
    assert "the service continues" in caplog.text


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"max_runs": 0}, ValueError, "max_runs must be"),
        ({"grace_ms": -1}, ValueError, "grace_ms must be"),
        ({"resume_every_s": 0}, ValueError, "resume_every_s must be"),
        ({"on_disconnect": "ignore"}, ValueError, "on_disconnect must be 'cancel' or 'detach'"),
        ({"journal": "runs.db"}, TypeError, "journal must be a journal"),
    ],
)
def test_an_invalid_option_is_refused(
    work: Work, options: dict[str, Any], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        Service([work.pipeline], **options)


def test_pipelines_need_names_of_their_own(work: Work) -> None:
    with pytest.raises(ValueError, match="two pipelines are named 'work'"):
        Service([work.pipeline, work.pipeline])
    with pytest.raises(ValueError, match="needs a name"):
        Service([Orchestrator([])])


@in_virtual_time
async def test_a_service_is_entered_once(work: Work) -> None:
    service = Service([work.pipeline])
    with pytest.raises(RuntimeError, match="not been entered"):
        await service.start("work")
    assert not service.is_ready

    async with service:
        assert service.is_ready
        with pytest.raises(RuntimeError, match="entered before"):
            await service.__aenter__()

    assert not service.is_ready
    with pytest.raises(ServiceStoppingError):
        await service.start("work")
    with pytest.raises(RuntimeError, match="entered before"):
        await service.__aenter__()


# --- the limit -----------------------------------------------------------------------------------


@in_virtual_time
async def test_above_the_limit_a_run_is_refused_until_another_one_has_ended(work: Work) -> None:
    async with Service([work.pipeline], max_runs=2) as service:
        runs = [await service.start("work", {"pause_s": 5 * n}) for n in (1, 2)]

        with pytest.raises(ServiceFullError) as refused:
            await service.start("work")
        assert (refused.value.max_runs, refused.value.retry_after_s) == (2, 1)
        assert isinstance(refused.value, ServiceUnavailableError)

        await runs[0].report()
        runs[0] = await service.start("work", {"pause_s": 5})
        with pytest.raises(ServiceFullError) as refused:
            await service.start("work")
        # A run took 10 s, and there are two at a time.
        assert refused.value.retry_after_s == 5

        for run in runs:
            await run.report()
        for _ in runs:
            await service.start("work", {"pause_s": 5})
        with pytest.raises(ServiceFullError) as refused:
            await service.start("work")
        # They took 10, 20 and 10 s.
        assert refused.value.retry_after_s == 7


# --- answering a request -------------------------------------------------------------------------


@in_virtual_time
async def test_a_request_gets_the_report(work: Work) -> None:
    class Request:
        receive = staticmethod(client_that_stays)

    async with Service([work.pipeline]) as service:
        run = await service.start("work")
        report = await service.answer(run, Request())

        assert report.all_passed
        assert await service.answer(run, Request()) == report  # although it has ended


@in_virtual_time
async def test_a_client_that_leaves_cancels_its_run(work: Work) -> None:
    async with Service([work.pipeline]) as service:
        run = await service.start("work", {"pause_s": 60})

        with pytest.raises(ClientDisconnectedError, match="went away; the run was cancelled"):
            await service.answer(run, client_that_leaves_after(3))

        assert now_s() == pytest.approx(3.1)  # clean-up included
        assert work.cleaned_up == ["first"]
        assert service.runs == []


@in_virtual_time
async def test_a_client_that_leaves_detaches_its_run(work: Work) -> None:
    async with Service([work.pipeline], on_disconnect="detach") as service:
        run = await service.start("work", {"pause_s": 60})

        with pytest.raises(ClientDisconnectedError, match="went away; the run continues"):
            await service.answer(run, client_that_leaves_after(3))

        assert now_s() == 3
        assert (await run.report()).all_passed


@pytest.mark.parametrize("mode", ["cancel", "detach"])
@in_virtual_time
async def test_a_request_that_is_cancelled_counts_as_a_disconnect(work: Work, mode: Any) -> None:
    async with Service([work.pipeline]) as service:
        run = await service.start("work", {"pause_s": 60})
        request = asyncio.create_task(service.answer(run, client_that_stays, on_disconnect=mode))
        await asyncio.sleep(1)
        request.cancel()

        with pytest.raises(asyncio.CancelledError):
            await request
        assert (service.runs == []) == (mode == "cancel")
        if mode == "detach":
            assert (await run.report()).all_passed


@in_virtual_time
async def test_what_a_receive_raises_reaches_the_request(work: Work) -> None:
    async def broken() -> Any:
        raise ConnectionError("the server is gone")

    async with Service([work.pipeline]) as service:
        run = await service.start("work")

        with pytest.raises(ConnectionError):
            await service.answer(run, broken)
        with pytest.raises(ValueError, match="on_disconnect must be"):
            await service.answer(run, broken, on_disconnect="never")  # type: ignore[arg-type]


@in_virtual_time
async def test_a_request_whose_run_is_cancelled_is_told(work: Work, tmp_path: Path) -> None:
    async with (
        SQLiteJournal(tmp_path / "runs.db") as journal,
        Service([work.pipeline], journal=journal) as service,
    ):
        run = await service.start("work", {"pause_s": 60}, run_id="r")
        request = asyncio.create_task(service.answer(run, client_that_stays))
        await asyncio.sleep(1)

        assert await service.cancel("r", "it is late")

        with pytest.raises(RunCancelledError):
            await request
        assert (await journal.report("r")).stop_reason is not None
        assert not await service.cancel("r")


# --- resuming ------------------------------------------------------------------------------------


async def leave_orphan(path: Path, work: Work, run_id: str) -> None:
    """Leave a run whose first step has ended, and that no process runs."""
    journal = SQLiteJournal(path, close_timeout_s=0)
    run = asyncio.create_task(
        work.pipeline.with_options(run_id=run_id, journal=journal).run(pause_s=5)
    )
    await asyncio.sleep(7)
    await journal.aclose()
    with pytest.raises(JournalError):
        await run
    work.done.clear()
    work.cleaned_up.clear()


@in_virtual_time
async def test_a_service_resumes_orphans_at_its_start(work: Work, tmp_path: Path) -> None:
    await leave_orphan(tmp_path / "runs.db", work, "r")

    async with (
        SQLiteJournal(tmp_path / "runs.db") as journal,
        Service([work.pipeline], journal=journal) as service,
    ):
        await asyncio.sleep(6)

        assert work.done == ["second"]
        assert await statuses(journal) == {"r": "PASSED"}
        assert service.runs == []


@in_virtual_time
async def test_a_service_resumes_what_becomes_an_orphan_later(work: Work, tmp_path: Path) -> None:
    async with (
        SQLiteJournal(tmp_path / "runs.db") as journal,
        Service([work.pipeline], journal=journal, resume_every_s=10),
    ):
        await leave_orphan(tmp_path / "runs.db", work, "r")
        await asyncio.sleep(10)

        assert await statuses(journal) == {"r": "PASSED"}


@in_virtual_time
async def test_resumed_runs_wait_for_room(work: Work, tmp_path: Path) -> None:
    for number in range(3):
        await leave_orphan(tmp_path / "runs.db", work, f"r{number}")

    async with (
        SQLiteJournal(tmp_path / "runs.db") as journal,
        Service([work.pipeline], journal=journal, max_runs=2) as service,
    ):
        most = 0
        for _ in range(20):
            await asyncio.sleep(1)
            most = max(most, len(service.runs))

        assert most == 2
        assert set((await statuses(journal)).values()) == {"PASSED"}


@in_virtual_time
async def test_runs_that_wait_for_room_precede_new_ones(work: Work, tmp_path: Path) -> None:
    await leave_orphan(tmp_path / "runs.db", work, "r")

    async with (
        SQLiteJournal(tmp_path / "runs.db") as journal,
        Service([work.pipeline], journal=journal, max_runs=1) as service,
    ):
        run = await service.start("work")
        await asyncio.sleep(1)  # it has looked for runs
        await run.report()
        with pytest.raises(ServiceFullError):
            await service.start("work")
        await asyncio.sleep(6)

        assert await statuses(journal) == {run.run_id: "PASSED", "r": "PASSED"}


@in_virtual_time
async def test_a_run_that_has_changed_while_it_waited_for_room_is_left_alone(
    work: Work, tmp_path: Path
) -> None:
    for number in range(2):
        await leave_orphan(tmp_path / "runs.db", work, f"r{number}")

    async with (
        SQLiteJournal(tmp_path / "runs.db") as journal,
        SQLiteJournal(tmp_path / "runs.db") as other,
        Service([work.pipeline], journal=journal, max_runs=1) as service,
    ):
        await service.start("work", {"pause_s": 5})
        await asyncio.sleep(1)
        await other.forget("r0")
        resumed = asyncio.create_task(work.pipeline.with_options(run_id="r1", journal=other).run())
        await asyncio.sleep(1)
        resumed.cancel()
        await asyncio.sleep(20)

        assert service.runs == []
        found = await statuses(journal)
        assert (found.pop("r1"), [*found.values()]) == ("INTERRUPTED", ["PASSED"])
        assert (await (await service.start("work")).report()).all_passed  # no place was lost


@in_virtual_time
async def test_a_run_that_another_process_cancels_just_before_it_is_claimed_is_left_alone(
    work: Work, tmp_path: Path
) -> None:
    await leave_orphan(tmp_path / "runs.db", work, "r")
    async with (
        SlowJournal(tmp_path / "runs.db") as journal,
        SQLiteJournal(tmp_path / "runs.db") as other,
        Service([work.pipeline], journal=journal) as service,
    ):
        await asyncio.sleep(0.5)  # it is about to claim the run
        resumed = asyncio.create_task(work.pipeline.with_options(run_id="r", journal=other).run())
        await asyncio.sleep(0.1)
        assert await other.cancel("r")
        await asyncio.wait([resumed])
        await asyncio.sleep(20)

        assert service.runs == []
        assert (await journal.record("r")).cause == "cancelled"
    assert work.done == []


@in_virtual_time
async def test_a_run_that_was_cancelled_is_not_resumed(work: Work, tmp_path: Path) -> None:
    async with SQLiteJournal(tmp_path / "runs.db") as journal:
        async with Service([work.pipeline], journal=journal) as service:
            run = await service.start("work", {"pause_s": 60}, run_id="r")
            run.cancel("no longer wanted")

    async with (
        SQLiteJournal(tmp_path / "runs.db") as journal,
        Service([work.pipeline], journal=journal, resume_every_s=1),
    ):
        await asyncio.sleep(5)
        assert await statuses(journal) == {"r": "INTERRUPTED"}


@in_virtual_time
async def test_a_cancelled_run_whose_process_dies_while_it_cleans_up_is_not_continued(
    work: Work, tmp_path: Path
) -> None:
    journal = SQLiteJournal(tmp_path / "runs.db", close_timeout_s=0)
    async with Service([work.pipeline], journal=journal) as service:
        await service.start("work", {"pause_s": 5}, run_id="r")
        await asyncio.sleep(1)
        assert await service.cancel("r", "no longer wanted")
        await journal.aclose()
        assert work.cleaned_up == []

    async with SQLiteJournal(tmp_path / "runs.db") as later:
        async with Service([work.pipeline], journal=later, resume_every_s=1):
            await asyncio.sleep(20)
        record, report = await later.record("r"), await later.report("r")
    assert (record.status, record.cause) == ("INTERRUPTED", "cancelled")
    assert report.stop_reason == "the run was cancelled: no longer wanted"
    assert work.done == []


@in_virtual_time
async def test_a_run_that_a_replica_drained_is_resumed_whatever_was_interrupted_since(
    work: Work, tmp_path: Path
) -> None:
    async with (
        SQLiteJournal(tmp_path / "runs.db") as journal,
        Service([work.pipeline], journal=journal, resume_every_s=10),
    ):
        await asyncio.sleep(1)  # it has looked for runs
        async with Service([work.pipeline], journal=journal, grace_ms=0) as replica:
            await replica.start("work", {"pause_s": 5}, run_id="r")
        with closing(sqlite3.connect(tmp_path / "runs.db")) as connection, connection:
            connection.execute(
                "WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 1001) "
                "INSERT INTO runs (run_id, pipeline, status, started_at, updated_at, paused_s, "
                "last_event, checksum, cause) SELECT 'later ' || n, pipeline, status, "
                "started_at + n, updated_at, paused_s, last_event, checksum, 'cancelled' "
                "FROM runs, n"
            )
        await asyncio.sleep(30)

        assert (await journal.record("r")).status == "PASSED"


@in_virtual_time
async def test_a_run_that_is_cancelled_while_it_waits_for_a_place_starts_no_step(
    work: Work, tmp_path: Path
) -> None:
    for run_id in "first", "second":
        await leave_orphan(tmp_path / "runs.db", work, run_id)

    async with (
        SQLiteJournal(tmp_path / "runs.db") as journal,
        Service([work.pipeline], journal=journal, max_runs=1) as service,
    ):
        await asyncio.sleep(1)
        (running,) = service.runs
        (waiting,) = {"first", "second"} - {running.run_id}
        assert await service.cancel(waiting, "the customer has cancelled the order")

        await asyncio.sleep(60)

        assert await statuses(journal) == {running.run_id: "PASSED", waiting: "INTERRUPTED"}
        assert (await journal.record(waiting)).cause == "cancelled"
        reason = (await journal.report(waiting))["second"].reason
        assert reason == "the run was cancelled: the customer has cancelled the order"
        assert await service.cancel(waiting) is False
    assert work.done == ["second"]


@in_virtual_time
async def test_a_nested_run_is_left_to_its_parent(tmp_path: Path) -> None:
    steps = [WorkflowStep("sleep", partial(asyncio.sleep, 60), timeout_ms=None)]
    inner = Orchestrator(steps, name="inner")

    async def nest() -> None:
        await inner.with_options(run_id="inner", journal=journals[-1]).run()

    outer = Orchestrator([WorkflowStep("nest", nest, timeout_ms=None)], name="outer")
    journals = [SQLiteJournal(tmp_path / "runs.db", close_timeout_s=0)]
    run = asyncio.create_task(outer.with_options(run_id="outer", journal=journals[0]).run())
    await asyncio.sleep(1)
    await journals[0].aclose()
    with pytest.raises(JournalError):
        await run

    journals.append(SQLiteJournal(tmp_path / "runs.db"))
    async with journals[1] as journal, Service([inner, outer], journal=journal) as service:
        await asyncio.sleep(1)
        assert [run.run_id for run in service.runs] == ["outer"]
        await asyncio.sleep(60)
        assert await statuses(journal) == {"outer": "PASSED", "inner": "PASSED"}


@in_virtual_time
async def test_what_a_step_starts_in_a_service_is_not_nested_and_outlives_a_shutdown(
    work: Work, tmp_path: Path
) -> None:
    async def start_orders() -> None:
        for number in range(3):
            await services[-1].start("work", {"pause_s": 60}, run_id=f"order {number}")

    daily = Orchestrator([WorkflowStep("start_orders", start_orders)], name="daily")
    services: list[Service] = []
    async with SQLiteJournal(tmp_path / "runs.db") as journal:
        for _ in range(2):
            services.append(Service([work.pipeline, daily], journal=journal, grace_ms=0))
            async with services[-1] as service:
                if len(services) == 1:
                    await (await service.start("daily", run_id="day")).report()
                await asyncio.sleep(1 if len(services) == 1 else 130)

        orders = [await journal.record(f"order {number}") for number in range(3)]
        assert [(order.parent, order.status) for order in orders] == [("", "PASSED")] * 3


@in_virtual_time
async def test_a_step_that_starts_the_next_run_and_retries_loses_nothing_in_a_shutdown(
    tmp_path: Path,
) -> None:
    turns = Pipeline("turns")

    @turns.step(max_retries=10, retry=Retry(on=lambda error: 1_000 * error.retry_after_s))
    async def go_on(turn: int) -> None:
        await asyncio.sleep(1)
        if turn < 3:
            await service.start(turns, {"turn": turn + 1}, run_id=f"turn {turn + 1}")

    async with SQLiteJournal(tmp_path / "runs.db") as journal:
        for life in range(2):
            async with Service([turns], journal=journal) as service:
                if not life:
                    await service.start(turns, {"turn": 1}, run_id="turn 1")
                await asyncio.sleep(1.5 if not life else 60)  # at first, turn 2 is running

            found = await statuses(journal)
            assert found["turn 2"] == "PASSED" if life else "INTERRUPTED"
        assert found["turn 3"] == "PASSED"


@in_virtual_time
async def test_a_nested_run_whose_outer_run_is_over_resumes_by_itself(
    work: Work, tmp_path: Path
) -> None:
    background: list[asyncio.Task[Any]] = []

    async def start() -> None:
        inner = work.pipeline.with_options(run_id="inner", journal=journal)
        background.append(asyncio.create_task(inner.run(pause_s=60)))
        await asyncio.sleep(1)

    journal = SQLiteJournal(tmp_path / "runs.db", close_timeout_s=0)
    outer = Orchestrator([WorkflowStep("start", start)], name="outer")
    assert (await outer.with_options(run_id="outer", journal=journal).run()).all_passed
    await journal.aclose()
    with pytest.raises(JournalError):
        await background[0]

    async with (
        SQLiteJournal(tmp_path / "runs.db") as later,
        Service([work.pipeline, outer], journal=later),
    ):
        assert (await later.record("inner")).parent == "outer"
        await asyncio.sleep(130)
        assert await statuses(later) == {"outer": "PASSED", "inner": "PASSED"}


# --- resources that are down ---------------------------------------------------------------------


class Database:
    """A resource that is up at some times only, and what became of it."""

    def __init__(self, *up_s: tuple[float, float]) -> None:
        self.up_s = up_s
        self.opened: list[float] = []
        self.closed = 0

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Database]:
        if not any(start_s <= now_s() < end_s for start_s, end_s in self.up_s):
            raise ConnectionError("refused")
        self.opened.append(now_s())
        try:
            yield self
        finally:
            self.closed += 1

    @asynccontextmanager
    async def open_watched(self) -> AsyncIterator[Database]:
        """Open it, and cancel the run when it goes down, as a task group around it does."""
        async with self.open(), asyncio.TaskGroup() as group:
            end_s = next(end_s for start_s, end_s in self.up_s if start_s <= now_s() < end_s)
            watch = group.create_task(self.fail_after(end_s - now_s()))
            yield self
            watch.cancel()

    async def fail_after(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        raise ConnectionError("lost")


def paying(work: Work, database: Any) -> Pipeline:
    pipeline = Pipeline("pay", resources={"db": database})

    @pipeline.step(timeout_ms=None)
    async def pay(db: Database, pause_s: float) -> None:
        await work.act("pay", pause_s)

    return pipeline


@in_virtual_time
async def test_runs_wait_for_a_resource_that_is_down(
    work: Work, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    database = Database((20, 1000))
    pipeline = paying(work, database.open)
    async with (
        SQLiteJournal(tmp_path / "runs.db") as journal,
        Service([pipeline], journal=journal, max_runs=2, grace_ms=0) as service,
    ):
        run = await service.start("pay", {"pause_s": 1}, run_id="r")
        cancelled = await service.start("pay", {"pause_s": 1}, run_id="cancelled")
        await asyncio.sleep(1)
        cancelled.cancel()
        with pytest.raises(RunCancelledError):
            await cancelled.report()

        assert (await run.report()).all_passed
        assert 20 <= database.opened[0] < 32
        assert database.closed == 1
        assert "resource 'db' could not be opened, and is tried again in 8 s" in caplog.text


@in_virtual_time
async def test_runs_wait_for_a_resource_whose_function_raises(work: Work) -> None:
    database = Database((20, 1000))

    def connect() -> AbstractAsyncContextManager[Database]:
        if now_s() < 20:
            raise ConnectionError("refused")
        return database.open()

    async with Service([paying(work, connect)]) as service:
        run = await service.start("pay", {"pause_s": 1}, run_id="r")

        assert (await run.report()).all_passed
        assert 20 <= database.opened[0] < 32


@in_virtual_time
async def test_no_run_waits_for_a_function_that_opens_no_resource(work: Work) -> None:
    async with Service([paying(work, lambda: "no manager")]) as service:
        run = await service.start("pay", {"pause_s": 1}, run_id="r")
        with pytest.raises(ResourceError, match="returned str, which is no async context manager"):
            await run.report()

        assert now_s() < 1


@in_virtual_time
async def test_a_run_that_waits_for_its_resource_at_a_shutdown_is_resumed(
    work: Work, tmp_path: Path
) -> None:
    pipeline = paying(work, Database((20, 1000)).open)
    async with SQLiteJournal(tmp_path / "runs.db") as journal:
        async with Service([pipeline], journal=journal) as service:
            await service.start("pay", {"pause_s": 1}, run_id="r")
            await asyncio.sleep(1)
        assert now_s() < 2
        assert (await journal.record("r")).cause == "drained"

        async with Service([pipeline], journal=journal):
            await asyncio.sleep(40)
        assert await statuses(journal) == {"r": "PASSED"}


@in_virtual_time
async def test_a_run_that_loses_its_resource_is_tried_again_later_each_time(
    work: Work, tmp_path: Path
) -> None:
    database = Database(*((start_s, start_s + 2) for start_s in range(0, 1000, 2)))
    async with (
        SQLiteJournal(tmp_path / "runs.db") as journal,
        Service(
            [paying(work, database.open_watched)], journal=journal, resume_every_s=10
        ) as service,
    ):
        run = await service.start("pay", {"pause_s": 5}, run_id="r")
        with pytest.raises(ResourceError):
            await run.report()
        await asyncio.sleep(150)

        assert [round(opened_s, -1) for opened_s in database.opened] == [0, 10, 20, 40, 80]
        database.up_s = ((0, 1000),)
        await asyncio.sleep(100)
        assert await statuses(journal) == {"r": "PASSED"}


@in_virtual_time
async def test_what_opens_no_resource_is_not_tried_again(work: Work) -> None:
    async with Service([paying(work, lambda: None)]) as service:
        run = await service.start("pay", {"pause_s": 1})
        with pytest.raises(ResourceError, match="NoneType, which is no async context manager"):
            await run.report()


# --- runs that kill their process ----------------------------------------------------------------


@in_virtual_time
async def test_the_more_processes_have_died_with_runs_the_fewer_of_them_run_at_a_time(
    work: Work, tmp_path: Path
) -> None:
    most: list[int] = []
    for died in range(4):
        # Closing the journal first leaves the runs as a dying process would.
        journal = SQLiteJournal(tmp_path / "runs.db", close_timeout_s=0)
        async with Service([work.pipeline], journal=journal, resume_every_s=1) as service:
            if not died:
                for number in range(7):
                    await service.start("work", {"pause_s": 30}, run_id=f"r{number}")
            await asyncio.sleep(2)
            most.append(len(service.runs))
            crashes = sorted(run.crashes for run in await journal.runs())
            await journal.aclose()
    assert most == [7, 7, 3, 3]
    assert crashes == [2] * 4 + [3] * 3  # the three that have killed one more wait

    async with (
        SQLiteJournal(tmp_path / "runs.db") as last,
        Service([work.pipeline], journal=last, resume_every_s=1) as service,
    ):
        alone = 0
        for _ in range(600):
            await asyncio.sleep(1)
            active = [await last.record(run.run_id) for run in service.runs]
            alone = max(alone, sum(run.crashes > 2 for run in active))
        assert set((await statuses(last)).values()) == {"PASSED"}
        assert alone == 1


@in_virtual_time
async def test_runs_with_which_more_processes_have_died_wait_for_the_others(
    work: Work, tmp_path: Path
) -> None:
    for died in range(2):
        journal = SQLiteJournal(tmp_path / "runs.db", close_timeout_s=0)
        async with Service([work.pipeline], journal=journal, resume_every_s=1) as service:
            await service.start("work", {"pause_s": 30}, run_id=f"r{died}")
            await asyncio.sleep(2)
            await journal.aclose()

    async with (
        SQLiteJournal(tmp_path / "runs.db") as last,
        Service([work.pipeline], journal=last, resume_every_s=1) as service,
    ):
        await asyncio.sleep(59)
        assert [run.run_id for run in service.runs] == ["r1"]
        await asyncio.sleep(59)
        assert [run.run_id for run in service.runs] == ["r0"]


@in_virtual_time
async def test_a_run_that_has_lived_long_lets_others_of_its_kind_follow(
    work: Work, tmp_path: Path
) -> None:
    for died in range(3):
        journal = SQLiteJournal(tmp_path / "runs.db", close_timeout_s=0)
        async with Service([work.pipeline], journal=journal, resume_every_s=1) as service:
            if not died:
                for number in range(7):
                    await service.start("work", {"pause_s": 3600}, run_id=f"r{number}")
            await asyncio.sleep(2)
            if died == 2:
                assert len(service.runs) == 3
                await asyncio.sleep(300)
                assert len(service.runs) == 6
            await journal.aclose()


@in_virtual_time
async def test_a_run_that_cannot_resume_is_logged_once(
    work: Work, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await leave_orphan(tmp_path / "runs.db", work, "r")
    other = Orchestrator([WorkflowStep("other", partial(asyncio.sleep, 0))], name="others")

    async def third(missing: int) -> None: ...

    needy = Orchestrator([*work.pipeline, WorkflowStep("third", third)], name="work")

    for pipeline, problem in (
        (other, "no pipeline is named 'work'"),
        (Orchestrator(other.steps, name="work"), "no longer has its step 'second'"),
        (needy, "can't be resumed"),
    ):
        caplog.clear()
        async with (
            SQLiteJournal(tmp_path / "runs.db") as journal,
            Service([pipeline], journal=journal, resume_every_s=1),
        ):
            await asyncio.sleep(300)  # it tries again from time to time, without a word

        errors = [each for each in caplog.records if each.levelno == logging.ERROR]
        assert len(errors) == 1
        assert problem in errors[0].getMessage()


@in_virtual_time
async def test_a_journal_that_cannot_be_read_for_a_while_does_not_end_the_resuming(
    work: Work, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Faulty(SQLiteJournal):
        is_down = True

        async def orphans(self) -> Any:
            if self.is_down:
                raise JournalError("runs.db", "is down")
            return await super().orphans()

    await leave_orphan(tmp_path / "runs.db", work, "r")
    async with (
        Faulty(tmp_path / "runs.db") as journal,
        Service([work.pipeline], journal=journal, resume_every_s=1),
    ):
        await asyncio.sleep(5)
        assert "can't look for runs" in caplog.text
        journal.is_down = False
        await asyncio.sleep(7)

        assert await statuses(journal) == {"r": "PASSED"}


# --- draining ------------------------------------------------------------------------------------


@in_virtual_time
async def test_a_running_step_ends_in_its_grace_and_nothing_follows_it(
    work: Work, tmp_path: Path
) -> None:
    async with SQLiteJournal(tmp_path / "runs.db") as journal:
        async with Service([work.pipeline], journal=journal, grace_ms=10_000) as service:
            run = await service.start("work", {"pause_s": 5}, run_id="r")
            await asyncio.sleep(1)

        assert now_s() == 5
        assert work.done == ["first"]
        assert await statuses(journal) == {"r": "INTERRUPTED"}
        with pytest.raises(RunCancelledError):
            await run.report()

        async with Service([work.pipeline], journal=journal):
            await asyncio.sleep(6)

        assert work.done == ["first", "second"]
        assert await statuses(journal) == {"r": "PASSED"}


@pytest.mark.parametrize("by", ["service", "journal"])
@in_virtual_time
async def test_a_run_that_is_cancelled_while_it_drains_is_not_resumed(
    work: Work, tmp_path: Path, by: str
) -> None:
    async with SQLiteJournal(tmp_path / "runs.db") as journal:
        async with Service([work.pipeline], journal=journal) as service:
            run = await service.start("work", {"pause_s": 5}, run_id="r")
            await asyncio.sleep(1)
            draining = asyncio.create_task(service.drain())
            await asyncio.sleep(1)
            assert await (service if by == "service" else journal).cancel("r")
            await draining

        assert now_s() == pytest.approx(2.1)
        assert work.cleaned_up == ["first"]
        with pytest.raises(RunCancelledError) as cancelled:
            await run.report()
        stored = await journal.report("r")
        assert cancelled.value.report is not None
        assert stored.stop_reason == cancelled.value.report.stop_reason
        assert "the run was cancelled" in str(stored.stop_reason)

        async with Service([work.pipeline], journal=journal):
            await asyncio.sleep(20)
        assert await statuses(journal) == {"r": "INTERRUPTED"}


@in_virtual_time
async def test_a_run_whose_last_step_ends_in_its_grace_passes(work: Work, tmp_path: Path) -> None:
    async with SQLiteJournal(tmp_path / "runs.db") as journal:
        async with Service([work.pipeline], journal=journal) as service:
            run = await service.start("work", {"pause_s": 5}, run_id="r")
            await asyncio.sleep(6)

        assert now_s() == 10
        assert (await run.report()).all_passed
        assert await statuses(journal) == {"r": "PASSED"}


@pytest.mark.parametrize("pause_s", [30, 15])
@in_virtual_time
async def test_what_runs_after_the_grace_is_cancelled_and_resumes(
    work: Work, tmp_path: Path, pause_s: float
) -> None:
    async with SQLiteJournal(tmp_path / "runs.db") as journal:
        async with Service([work.pipeline], journal=journal, grace_ms=10_000) as service:
            await service.start("work", {"pause_s": pause_s}, run_id="r")
            await asyncio.sleep(16)  # in the first step, or in the last one

        assert now_s() == pytest.approx(26.1)
        assert len(work.cleaned_up) == 1
        assert await statuses(journal) == {"r": "INTERRUPTED"}
        async with Service([work.pipeline], journal=journal):
            await asyncio.sleep(61)

        assert work.done == ["first", "second"]
        assert await statuses(journal) == {"r": "PASSED"}


@in_virtual_time
async def test_a_step_that_waits_for_its_next_attempt_is_not_waited_for(tmp_path: Path) -> None:
    calls: list[float] = []

    async def fail() -> None:
        calls.append(now_s())
        await asyncio.sleep(2)
        if len(calls) < 3:
            raise ConnectionError("again")

    step = WorkflowStep("fail", fail, max_retries=3, retry=60_000)
    pipelines = {"fail": [step]}
    async with SQLiteJournal(tmp_path / "runs.db") as journal:
        for leave_after_s, ended_s in ((10, 10), (1, 12)):
            # In the backoff, and in an attempt that a backoff would follow.
            async with Service(pipelines, journal=journal, grace_ms=30_000) as service:
                if leave_after_s == 10:
                    await service.start("fail", run_id="r")
                await asyncio.sleep(leave_after_s)
            assert now_s() == ended_s
            assert await statuses(journal) == {"r": "INTERRUPTED"}

        async with Service(pipelines, journal=journal):
            await asyncio.sleep(3)
        assert calls == [0, 10, 12]
        assert await statuses(journal) == {"r": "PASSED"}


@in_virtual_time
async def test_without_a_journal_runs_continue_in_the_grace(work: Work) -> None:
    async with Service([work.pipeline], grace_ms=10_000) as service:
        short = await service.start("work", {"pause_s": 4})
        long = await service.start("work", {"pause_s": 9})

    assert now_s() == pytest.approx(10.1)
    assert (await short.report()).all_passed
    with pytest.raises(RunCancelledError):
        await long.report()


@in_virtual_time
async def test_a_drain_that_is_cancelled_cancels_what_runs(work: Work) -> None:
    service = await Service([work.pipeline], grace_ms=600_000).__aenter__()
    await service.start("work", {"pause_s": 60})
    draining = [asyncio.create_task(service.drain()) for _ in range(2)]
    await asyncio.sleep(1)
    draining[0].cancel()

    with pytest.raises(asyncio.CancelledError):
        await draining[0]
    await draining[1]
    assert now_s() == pytest.approx(1.1)
    assert work.cleaned_up == ["first"]


@in_virtual_time
async def test_a_run_that_is_being_resumed_when_the_service_drains_stays_resumable(
    work: Work, tmp_path: Path
) -> None:
    await leave_orphan(tmp_path / "runs.db", work, "r")
    for drained_after_s in (0.0, 0.5, 1.5):
        async with SlowJournal(tmp_path / "runs.db") as journal:
            async with Service([work.pipeline], journal=journal, grace_ms=0):
                await asyncio.sleep(drained_after_s)
            assert await statuses(journal) != {"r": "PASSED"}

    async with (
        SQLiteJournal(tmp_path / "runs.db") as journal,
        Service([work.pipeline], journal=journal),
    ):
        await asyncio.sleep(6)
        assert await statuses(journal) == {"r": "PASSED"}
    assert work.done == ["second"]


@in_virtual_time
async def test_a_service_that_drains_refuses_what_it_was_about_to_resume(
    work: Work, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Prompt(SQLiteJournal):
        """Lists the runs in no time."""

        listed: Any = ()

        async def orphans(self) -> Any:
            return self.listed

        async def runs(self, *args: Any, **kwargs: Any) -> Any:
            return []

        async def record(self, run_id: str) -> Any:
            return self.listed[0]

    await leave_orphan(tmp_path / "runs.db", work, "r")
    async with SQLiteJournal(tmp_path / "runs.db") as journal:
        orphans = await journal.orphans()
    caplog.clear()
    async with Prompt(tmp_path / "runs.db") as prompt:
        prompt.listed = orphans
        async with Service([work.pipeline], journal=prompt):
            await asyncio.sleep(0)  # it has looked for runs

    assert not caplog.records
    async with SQLiteJournal(tmp_path / "runs.db") as journal:
        assert [run.run_id for run in await journal.orphans()] == ["r"]


@in_virtual_time
async def test_a_run_that_just_begins_when_the_service_drains_is_not_lost(
    work: Work, tmp_path: Path
) -> None:
    async with SQLiteJournal(tmp_path / "runs.db") as journal:
        async with Service([work.pipeline], journal=journal) as service:
            starting = [
                asyncio.create_task(service.start("work", {"pause_s": 1}, run_id=f"r{n}"))
                for n in range(50)
            ]
            await asyncio.sleep(0)
        begun = {f"r{n}" for n, each in enumerate(starting) if each.exception() is None}

        found = await statuses(journal)
        assert begun == found.keys()
        async with Service([work.pipeline], journal=journal):
            await asyncio.sleep(5)
        assert set((await statuses(journal)).values()) <= {"PASSED"}


# --- streaming -----------------------------------------------------------------------------------


@in_virtual_time
async def test_a_reader_of_events_gets_all_of_them_from_where_it_was(
    work: Work, tmp_path: Path
) -> None:
    async with (
        SQLiteJournal(tmp_path / "runs.db") as journal,
        Service([work.pipeline], journal=journal) as service,
    ):
        await service.start("work", run_id="r")

        seen = [stored async for stored in service.events("r")]

        assert [type(each.event).__name__ for each in seen] == [
            "RunStarted",
            *["AttemptStarted", "StepSucceeded"] * 2,
            "RunFinished",
        ]
        assert [each.position for each in seen] == [1, 2, 3, 4, 5, 6]
        assert [each.position async for each in service.events("r", 4)] == [5, 6]
        assert [each async for each in service.events("r", 6)] == []
        assert len([each async for each in service.events("r", 99)]) == 6
        with pytest.raises(LookupError):
            await anext(service.events("no such run"))


@in_virtual_time
async def test_without_a_journal_there_are_no_stored_events(work: Work) -> None:
    async with Service([work.pipeline]) as service:
        run = await service.start("work")

        with pytest.raises(RuntimeError, match=r"use get\(run_id\)\.events\(\)"):
            await anext(service.events(run.run_id))
        assert not await service.cancel("no such run")


@in_virtual_time
async def test_without_a_journal_a_run_is_cancelled_by_its_id(work: Work) -> None:
    async with Service([work.pipeline]) as service:
        run = await service.start("work")
        await asyncio.sleep(0.5)

        assert await service.cancel(run.run_id, "not wanted")
        with pytest.raises(RunCancelledError, match="not wanted"):
            await run.report()

    assert work.cleaned_up == ["first"]


# --- resources -----------------------------------------------------------------------------------


def resource(name: str, log: list[str]) -> Any:
    @asynccontextmanager
    async def opened() -> AsyncIterator[str]:
        log.append(f"open {name}")
        try:
            yield name
        finally:
            log.append(f"close {name}")

    return opened


@in_virtual_time
async def test_resources_are_opened_once_and_shared_by_all_runs() -> None:
    log: list[str] = []
    first = Pipeline("first", resources={"own": resource("own", log)})
    second = Pipeline("second")

    @first.step(name="take")
    async def take(db: str, own: str) -> str:
        await asyncio.sleep(1)
        return f"{db} and {own}"

    @second.step(name="take", timeout_ms=None)
    async def take_longer(db: str) -> str:
        await asyncio.sleep(60)
        return db

    resources = {"db": resource("db", log), "http": resource("http", log)}
    with pytest.raises(ValueError, match="takes a resource 'http'"):
        Service([first, second], resources=resources)
    del resources["http"]
    async with Service([first, second], resources=resources) as service:
        reports = [await (await service.start("first")).report() for _ in range(2)]
        await service.start("second")

    assert [report["take"].output for report in reports] == ["db and own"] * 2
    # The one of the service is closed after the last run, which was cut short.
    assert log == ["open db", *["open own", "close own"] * 2, "close db"]
    assert now_s() == 12


@in_virtual_time
async def test_a_run_that_was_resumed_from_a_page_ends_before_its_resources_and_is_resumed_again(
    tmp_path: Path,
) -> None:
    log: list[str] = []
    pipeline = Pipeline("work")

    @pipeline.step(timeout_ms=None)
    async def take(db: str) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            log.append("end step")

    def make_service() -> Service:
        return Service([pipeline], journal=journal, resources={"db": resource("db", log)})

    async with SQLiteJournal(tmp_path / "runs.db") as journal:
        async with make_service() as service:
            await service.start("work", run_id="r")
            await asyncio.sleep(1)
            await service.cancel("r")
        async with make_service() as service:
            pages = web.app(journal, pipelines=service.pipelines)
            transport = httpx.ASGITransport(pages)
            async with (
                pages.router.lifespan_context(pages),
                httpx.AsyncClient(transport=transport, base_url="http://localhost") as client,
            ):
                assert (await client.post("/resume/r")).status_code == 303
                await asyncio.sleep(1)
        assert log == ["open db", "end step", "close db"] * 2
        assert await statuses(journal) == {"r": "INTERRUPTED"}

        async with make_service():
            await asyncio.sleep(61)
        assert await statuses(journal) == {"r": "PASSED"}


@in_virtual_time
async def test_a_resource_that_cannot_be_opened_keeps_the_service_from_starting() -> None:
    log: list[str] = []

    @asynccontextmanager
    async def broken() -> AsyncIterator[None]:
        raise ConnectionError("no database")
        yield

    pipeline = Pipeline("work")

    @pipeline.step
    async def take(http: str, db: str) -> None: ...

    service = Service([pipeline], resources={"http": resource("http", log), "db": broken})
    with pytest.raises(ConnectionError, match="no database"):
        await service.__aenter__()

    assert log == ["open http", "close http"]
    assert not service.is_ready
