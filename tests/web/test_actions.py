"""What people have a run do from a page."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar
from typing import Any

import pytest
from web.runs import Gate, failing, passing, slow

from asyncflow import (
    Orchestrator,
    Pipeline,
    RunAlreadyActiveError,
    RunCancelledError,
    WorkflowStep,
    after,
)
from asyncflow.journal._queries import RunRecord
from asyncflow.web import app

AS_SCRIPT = {"accept": "application/json"}


async def ended(journal: Any, run_id: str) -> Any:
    """Wait until a run has ended, and return what is known of it."""
    while True:
        record = await journal.record(run_id)
        if record.status != "running":
            return record
        await asyncio.sleep(0.01)


async def interrupt(gate: Gate, journal: Any, run_id: str, name: str = "slow") -> None:
    """Leave a run that was cut short."""
    running = asyncio.create_task(slow(gate, name).run(run_id=run_id, journal=journal))
    await gate.has_begun.wait()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    gate.has_begun.clear()


# Cancelling.


async def test_a_run_is_cancelled(ask: Any, any_journal: Any) -> None:
    gate = Gate()
    running = asyncio.create_task(slow(gate).run(run_id="a/b", journal=any_journal))
    await gate.has_begun.wait()

    answer = await ask(app(any_journal)).post("/cancel/a%2Fb")

    assert answer.status_code == 303
    assert answer.headers["location"] == "/runs/a%2Fb?done=cancelling"
    with pytest.raises(RunCancelledError):
        await running
    assert gate.clean_ups == 1
    assert (await any_journal.record("a/b")).status == "interrupted"


async def test_a_script_is_told_in_json(ask: Any, journal: Any) -> None:
    gate = Gate()
    running = asyncio.create_task(slow(gate).run(run_id="r", journal=journal))
    await gate.has_begun.wait()
    client = ask(app(journal))

    answer = await client.post("/cancel/r", headers=AS_SCRIPT)
    await asyncio.gather(running, return_exceptions=True)
    again = await client.post("/cancel/r", headers=AS_SCRIPT)

    assert answer.json() == {"done": "cancelling"}
    assert again.status_code == 409
    assert again.json() == {
        "error": "There is nothing to cancel",
        "detail": "It has ended already: it was interrupted.",
    }


async def test_what_has_ended_can_not_be_cancelled(ask: Any, journal: Any) -> None:
    await failing().run(run_id="r", journal=journal)
    client = ask(app(journal))

    answer = await client.post("/cancel/r")

    assert answer.status_code == 409
    assert "it has failed" in answer.text
    assert 'href="/runs/r"' in answer.text
    assert (await client.post("/cancel/unknown")).status_code == 404


async def test_an_orphan_can_not_be_cancelled(ask: Any) -> None:
    class Orphaned:
        runs = events = None

        async def cancel(self, run_id: str) -> bool:
            return False

        async def record(self, run_id: str) -> RunRecord:
            return RunRecord("r", "etl", "running", 0.0, 0.0, None, orphaned=True)

    pages: Any = app(Orphaned())  # type: ignore[arg-type]
    answer = await ask(pages).post("/cancel/r")

    assert answer.status_code == 409
    assert "It is orphaned: its process is gone." in answer.text


# Resuming.


async def test_a_run_is_resumed_in_the_server(ask: Any, any_journal: Any) -> None:
    gate = Gate()
    await interrupt(gate, any_journal, "r")
    client = ask(app(any_journal, pipelines={"slow": slow(gate)}))

    answer = await client.post("/resume/r")

    assert answer.status_code == 303
    assert answer.headers["location"] == "/runs/r?done=resumed"
    assert (await any_journal.record("r")).status == "running"
    gate.is_open.set()
    assert (await ended(any_journal, "r")).status == "passed"
    report = await any_journal.report("r")
    assert report["extract"].reused


async def test_a_pipeline_of_functions_is_resumed_too(ask: Any, journal: Any) -> None:
    etl, calls = Pipeline("etl"), []

    @etl.step
    async def extract() -> int:
        return 1

    @etl.step
    async def load(rows: int = after(extract)) -> int:
        calls.append(rows)
        if len(calls) == 1:
            raise ValueError("once")
        return rows

    await etl.orchestrator.run(run_id="r", journal=journal)

    answer = await ask(app(journal, pipelines={"etl": etl})).post("/resume/r", headers=AS_SCRIPT)

    assert answer.json() == {"done": "resumed"}
    assert (await ended(journal, "r")).status == "passed"


async def test_a_run_is_resumed_once_however_often_that_is_asked(ask: Any, journal: Any) -> None:
    gate = Gate()
    await interrupt(gate, journal, "r")
    client = ask(app(journal, pipelines={"slow": slow(gate)}))

    answers = await asyncio.gather(*(client.post("/resume/r") for _ in range(5)))
    later = await client.post("/resume/r")
    gate.is_open.set()
    await ended(journal, "r")

    assert {answer.status_code for answer in answers} <= {303, 409}
    assert 303 in {answer.status_code for answer in answers}
    assert later.status_code == 409
    assert "it is running already" in later.text
    assert gate.calls == 2


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("", "its pipeline has no name"),
        ("slwo", "has no pipeline 'slwo' (did you mean 'slow'?)"),
    ],
)
async def test_a_run_of_an_unknown_pipeline_can_not_be_resumed(
    ask: Any, journal: Any, name: str, why: str
) -> None:
    gate = Gate()
    await interrupt(gate, journal, "r", name)
    client = ask(app(journal, pipelines={"slow": slow(gate)}))

    answer = await client.post("/resume/r", headers=AS_SCRIPT)

    assert answer.status_code == 409
    assert why in answer.json()["detail"]
    assert (await journal.record("r")).status == "interrupted"


async def test_a_run_that_has_passed_can_not_be_resumed(ask: Any, journal: Any) -> None:
    await passing().run(run_id="r", journal=journal)

    answer = await ask(app(journal, pipelines={"etl": passing()})).post("/resume/r")

    assert answer.status_code == 409
    assert "it has passed, so nothing is left to do" in answer.text


async def test_a_pipeline_that_has_changed_too_much_says_so_at_once(
    ask: Any, journal: Any, caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate()
    await interrupt(gate, journal, "r")

    async def needs(url: str) -> None: ...

    other = Orchestrator([WorkflowStep("gate", needs)], name="slow")
    answer = await ask(app(journal, pipelines={"slow": other})).post("/resume/r", headers=AS_SCRIPT)

    assert answer.status_code == 409
    assert "ValueError: nothing provides parameter 'url' of step 'gate'" in answer.json()["detail"]
    assert "run 'r' can't be resumed" in caplog.text


async def test_a_run_does_not_get_steps_that_it_was_begun_without(ask: Any, journal: Any) -> None:
    async def refuse() -> None:
        raise ValueError("once")

    gate = Gate()
    steps = [WorkflowStep("refuse", refuse), WorkflowStep("gate", gate)]
    pipeline = Orchestrator(steps, name="two")
    await pipeline.replace(targets=["refuse"]).run(run_id="r", journal=journal)

    answer = await ask(app(journal, pipelines={"two": pipeline})).post(
        "/resume/r", headers=AS_SCRIPT
    )

    assert answer.status_code == 409
    assert "it has no step 'gate' of pipeline 'two'" in answer.json()["detail"]
    assert gate.calls == 0
    assert (await journal.record("r")).status == "failed"


async def test_a_run_that_somebody_else_takes_first_is_left_to_them(
    ask: Any, journal: Any, caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate()
    await interrupt(gate, journal, "r")

    class Late:
        """A pipeline that comes a moment too late."""

        async def run(self, *, run_id: str | None = None, journal: Any = None) -> None:
            raise RunAlreadyActiveError("r", "process 7 on there")

    answer = await ask(app(journal, pipelines={"slow": Late()})).post("/resume/r")

    assert answer.status_code == 409
    assert "it is running already, in process 7 on there" in answer.text
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_a_run_that_is_slow_to_begin_is_not_waited_for(ask: Any, journal: Any) -> None:
    gate, go_on = Gate(), asyncio.Event()
    await interrupt(gate, journal, "r")

    class Slow:
        """A pipeline that takes long to begin."""

        async def run(self, *, run_id: str | None = None, journal: Any = None) -> None:
            await go_on.wait()

    answer = await ask(app(journal, pipelines={"slow": Slow()})).post("/resume/r")
    go_on.set()
    await asyncio.sleep(0)

    assert answer.status_code == 303
    assert asyncio.get_running_loop().time() >= 3


async def test_a_run_whose_resumption_ends_with_the_service_is_no_error(
    ask: Any, journal: Any
) -> None:
    gate = Gate()
    await interrupt(gate, journal, "r")

    class Slow:
        """A pipeline that takes long to begin."""

        async def run(self, *, run_id: str | None = None, journal: Any = None) -> None:
            await asyncio.sleep(1_000)

    pages = app(journal, pipelines={"slow": Slow()})
    async with pages.router.lifespan_context(pages):
        asking = asyncio.create_task(ask(pages).post("/resume/r"))
        await asyncio.sleep(1)

    assert (await asking).status_code == 303


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit()])
async def test_a_step_that_wants_to_end_the_process_ends_its_run_only(
    ask: Any, journal: Any, error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate()
    await interrupt(gate, journal, "r")

    async def exits() -> None:
        raise error

    pipeline = Orchestrator([WorkflowStep("gate", exits)], name="slow")
    client = ask(app(journal, pipelines={"slow": pipeline}))

    await client.post("/resume/r")
    await ended(journal, "r")
    await asyncio.sleep(1)

    assert (await client.get("/")).status_code == 200
    assert "the server continues" in caplog.text


async def test_a_run_that_was_cancelled_from_its_page_ends_quietly(
    ask: Any, journal: Any, caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate()
    await interrupt(gate, journal, "r")
    client = ask(app(journal, pipelines={"slow": slow(gate)}))
    await client.post("/resume/r")
    await gate.has_begun.wait()

    await client.post("/cancel/r")
    await ended(journal, "r")
    await asyncio.sleep(1)

    assert not [record for record in caplog.records if record.levelname == "ERROR"]


VARIABLE: ContextVar[str] = ContextVar("VARIABLE", default="")


async def test_nothing_of_the_request_goes_on_with_the_run(ask: Any, journal: Any) -> None:
    gate, seen = Gate(), []
    await interrupt(gate, journal, "r")

    async def look() -> None:
        seen.append(VARIABLE.get())

    pipeline = Orchestrator([WorkflowStep("gate", look)], name="slow")
    VARIABLE.set("of the request")

    await ask(app(journal, pipelines={"slow": pipeline})).post("/resume/r")
    await ended(journal, "r")

    assert seen == [""]


# The end of the service.


async def test_resumed_runs_end_with_the_service_and_can_be_resumed_again(
    ask: Any, any_journal: Any
) -> None:
    gate = Gate()
    await interrupt(gate, any_journal, "r")
    pages = app(any_journal, pipelines={"slow": slow(gate)})

    async with pages.router.lifespan_context(pages):
        await ask(pages).post("/resume/r")
        await gate.has_begun.wait()

    assert gate.clean_ups == 2
    assert (await any_journal.record("r")).status == "interrupted"
    refused = await ask(pages).post("/resume/r")
    assert "this server is stopping" in refused.text
    gate.is_open.set()
    assert (await slow(gate).run(run_id="r", journal=any_journal)).all_passed


async def test_the_service_does_not_wait_for_ever(
    ask: Any, journal: Any, caplog: pytest.LogCaptureFixture
) -> None:
    gate, cleaned = Gate(), asyncio.Event()
    await interrupt(gate, journal, "r")

    async def stubborn() -> None:
        gate.has_begun.set()
        try:
            await asyncio.sleep(1_000)
        finally:
            await cleaned.wait()

    pipeline = Orchestrator([WorkflowStep("gate", stubborn, timeout_ms=None)], name="slow")
    pages = app(journal, pipelines={"slow": pipeline}, grace_s=2.5)
    loop = asyncio.get_running_loop()

    async with pages.router.lifespan_context(pages):
        await ask(pages).post("/resume/r")
        await gate.has_begun.wait()
        closed_at = loop.time()
    took_s = loop.time() - closed_at
    cleaned.set()
    await ended(journal, "r")
    await asyncio.sleep(0.1)

    assert took_s == pytest.approx(2.5)
    assert "run 'r' is still cleaning up after 2.5 s" in caplog.text


@pytest.mark.parametrize("wrong", [[WorkflowStep("a", passing)], "etl", None])
def test_what_is_no_pipeline_is_refused(journal: Any, wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"pipelines\['etl'\] must be a Pipeline or"):
        app(journal, pipelines={"etl": wrong})


def test_a_negative_grace_is_refused(journal: Any) -> None:
    with pytest.raises(ValueError, match="grace_s must be"):
        app(journal, grace_s=-1)
