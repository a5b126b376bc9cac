"""Cancelling and resuming runs from their pages."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from web.runs import Gate, failing, parts_of, passing, slow

from asyncflow import (
    Orchestrator,
    Pipeline,
    RunAlreadyActiveError,
    RunCancelledError,
    WorkflowStep,
)
from asyncflow.web import app
from asyncflow.web._resumer import Resumer

AS_SCRIPT = {"accept": "application/json"}


async def ended(journal: Any, run_id: str) -> Any:
    """Wait until a run has ended, and return its record."""
    while True:
        record = await journal.record(run_id)
        if record.status != "RUNNING":
            return record
        await asyncio.sleep(0.01)


async def interrupt(gate: Gate, journal: Any, run_id: str, name: str = "slow") -> None:
    """Start a run and interrupt it."""
    running = asyncio.create_task(
        slow(gate, name).with_options(run_id=run_id, journal=journal).run()
    )
    await gate.has_started.wait()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    gate.has_started.clear()


class Runnable:
    """Has what the server asks of a pipeline, and runs a function."""

    steps = ()

    def __init__(self, run: Any) -> None:
        self.run = run

    def with_options(self, **options: Any) -> Any:
        return self


# Cancelling.


async def test_a_run_is_cancelled(make_client: Any, any_journal: Any) -> None:
    gate = Gate()
    running = asyncio.create_task(slow(gate).with_options(run_id="a/b", journal=any_journal).run())
    await gate.has_started.wait()

    answer = await make_client(app(any_journal)).post("/cancel/a%2Fb")

    assert answer.status_code == 303
    assert answer.headers["location"] == "/runs/a%2Fb?done=cancelling"
    with pytest.raises(RunCancelledError):
        await running
    assert gate.clean_ups == 1
    assert (await any_journal.record("a/b")).status == "INTERRUPTED"


async def test_a_script_gets_json_answers(make_client: Any, journal: Any) -> None:
    gate = Gate()
    running = asyncio.create_task(slow(gate).with_options(run_id="r", journal=journal).run())
    await gate.has_started.wait()
    client = make_client(app(journal))

    answer = await client.post("/cancel/r", headers=AS_SCRIPT)
    await asyncio.gather(running, return_exceptions=True)
    again = await client.post("/cancel/r", headers=AS_SCRIPT)

    assert answer.json() == {"done": "cancelling"}
    assert again.status_code == 409
    assert again.json() == {
        "error": "There is nothing to cancel",
        "detail": "It has ended already: it was interrupted.",
    }


async def test_an_ended_run_cannot_be_cancelled(make_client: Any, journal: Any) -> None:
    await failing().with_options(run_id="r", journal=journal).run()
    client = make_client(app(journal))

    answer = await client.post("/cancel/r")

    assert answer.status_code == 409
    assert "it has failed" in answer.text
    assert 'href="/runs/r"' in answer.text
    assert (await client.post("/cancel/unknown")).status_code == 404


# Resuming.


async def test_a_run_is_resumed_in_the_server(make_client: Any, any_journal: Any) -> None:
    gate = Gate()
    await interrupt(gate, any_journal, "r")
    client = make_client(app(any_journal, pipelines={"slow": slow(gate)}))

    answer = await client.post("/resume/r")

    assert answer.status_code == 303
    assert answer.headers["location"] == "/runs/r?done=resumed"
    assert (await any_journal.record("r")).status == "RUNNING"
    gate.is_open.set()
    assert (await ended(any_journal, "r")).status == "PASSED"
    report = await any_journal.report("r")
    assert report["extract"].reused


async def test_the_page_says_what_resuming_would_run(make_client: Any, journal: Any) -> None:
    gate = Gate()
    await interrupt(gate, journal, "r")
    resumer, record = Resumer(journal, {"slow": slow(gate)}), await journal.record("r")

    assert await resumer.preview(record) == "1 reused, 1 to run"
    assert await Resumer(journal, {}).preview(record) == ""
    secret = Pipeline("slow", secret_inputs=["token"])

    @secret.step
    async def extract(token: str) -> None: ...

    assert await Resumer(journal, {"slow": secret}).preview(record) == ""  # it would be refused
    received = await parts_of(make_client(app(journal, pipelines={"slow": slow(gate)})), "r")
    assert received["sections"]["live"]["preview"] == "1 reused, 1 to run"


async def test_pages_of_an_ended_run_share_what_resuming_it_would_do(journal: Any) -> None:
    class Counting:
        replays = 0

        def __getattr__(self, name: str) -> Any:
            Counting.replays += name == "replay"
            return getattr(journal, name)

    await failing().with_options(run_id="r", journal=journal).run()
    resumer, record = Resumer(Counting(), {"reports": failing()}), await journal.record("r")  # type: ignore[arg-type]
    await resumer.preview(record)
    of_one = Counting.replays

    said = await asyncio.gather(*(resumer.preview(record) for _ in range(50)))
    of_many = Counting.replays
    await asyncio.sleep(0.001)  # in virtual time, what is stored at the same moment looks the same
    await failing().with_options(run_id="r", journal=journal).run()
    await resumer.preview(await journal.record("r"))

    assert {*said} == {"1 reused, 1 to run"}
    assert of_many == of_one
    assert Counting.replays == 2 * of_one


async def test_repeated_requests_resume_a_run_once(make_client: Any, journal: Any) -> None:
    gate = Gate()
    await interrupt(gate, journal, "r")
    client = make_client(app(journal, pipelines={"slow": slow(gate)}))

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
    ("name", "reason"),
    [
        ("", "its pipeline has no name"),
        ("slwo", "has no pipeline 'slwo' (did you mean 'slow'?); it has 'slow'; give it the"),
        ("other", "with `asyncflow ui --pipeline` or pipelines={'other': …}, or resume it"),
    ],
)
async def test_a_run_of_an_unknown_pipeline_cannot_be_resumed(
    make_client: Any, journal: Any, name: str, reason: str
) -> None:
    gate = Gate()
    await interrupt(gate, journal, "r", name)
    client = make_client(app(journal, pipelines={"slow": slow(gate)}))

    answer = await client.post("/resume/r", headers=AS_SCRIPT)

    assert answer.status_code == 409
    assert reason in answer.json()["detail"]
    assert (await journal.record("r")).status == "INTERRUPTED"


async def test_a_passed_run_cannot_be_resumed(make_client: Any, journal: Any) -> None:
    await passing().with_options(run_id="r", journal=journal).run()

    answer = await make_client(app(journal, pipelines={"etl": passing()})).post("/resume/r")

    assert answer.status_code == 409
    assert "it has passed, so nothing is left to do" in answer.text


async def test_an_incompatible_pipeline_is_reported_at_once(
    make_client: Any, journal: Any, caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate()
    await interrupt(gate, journal, "r")

    async def needs(url: str) -> None: ...

    other = Orchestrator([WorkflowStep("gate", needs)], name="slow")
    answer = await make_client(app(journal, pipelines={"slow": other})).post(
        "/resume/r", headers=AS_SCRIPT
    )

    assert answer.status_code == 409
    problem = "MissingInputError: nothing provides parameter 'url' of step 'gate'"
    assert problem in answer.json()["detail"]
    assert "run 'r' can't be started" in caplog.text


async def test_a_run_whose_steps_are_missing_is_not_resumed_by_its_page(
    make_client: Any, journal: Any
) -> None:
    async def refuse() -> None:
        raise ValueError("once")

    gate = Gate()
    steps = [WorkflowStep("refuse", refuse), WorkflowStep("gate", gate)]
    pipeline = Orchestrator(steps, name="two")
    await pipeline.with_options(run_id="r", journal=journal).run()
    shorter = {"two": Orchestrator(steps[1:], name="two")}

    answer = await make_client(app(journal, pipelines=shorter)).post("/resume/r", headers=AS_SCRIPT)
    preview = await Resumer(journal, shorter).preview(await journal.record("r"))

    assert answer.status_code == 409
    assert "pipeline 'two' no longer has its step 'refuse'" in answer.json()["detail"]
    assert preview == "1 to run, 1 missing"
    assert gate.calls == 1  # in the first process
    assert (await journal.record("r")).status == "FAILED"


async def test_a_run_that_another_process_resumes_first_is_left_alone(
    make_client: Any, journal: Any, caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate()
    await interrupt(gate, journal, "r")

    async def lose_the_race() -> None:
        raise RunAlreadyActiveError("r", "process 7 on there")

    answer = await make_client(app(journal, pipelines={"slow": Runnable(lose_the_race)})).post(
        "/resume/r"
    )

    assert answer.status_code == 409
    assert "it is running already, in process 7 on there" in answer.text
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_the_answer_does_not_wait_for_a_run_that_starts_slowly(
    make_client: Any, journal: Any
) -> None:
    gate, proceed = Gate(), asyncio.Event()
    await interrupt(gate, journal, "r")

    async def start_slowly() -> None:
        await proceed.wait()

    clock = asyncio.get_running_loop().time
    asked_s = clock()
    answer = await make_client(app(journal, pipelines={"slow": Runnable(start_slowly)})).post(
        "/resume/r"
    )
    proceed.set()
    await asyncio.sleep(0)

    assert answer.status_code == 303
    assert clock() - asked_s >= 3


async def test_a_run_that_is_only_claimed_has_not_begun(make_client: Any, journal: Any) -> None:
    gate, proceed = Gate(), asyncio.Event()
    await interrupt(gate, journal, "r")

    async def start_slowly_once_claimed() -> None:
        session, _ = await journal.open("r", wait=False, read=lambda stored: None)
        await proceed.wait()
        await session.close()

    client = make_client(app(journal, pipelines={"slow": Runnable(start_slowly_once_claimed)}))
    asking = asyncio.create_task(client.post("/resume/r"))
    await asyncio.sleep(1)

    assert (await journal.record("r")).owner
    assert not asking.done()
    proceed.set()
    await asking


async def test_a_resume_interrupted_by_the_shutdown_is_not_an_error(
    make_client: Any, journal: Any
) -> None:
    gate = Gate()
    await interrupt(gate, journal, "r")

    async def start_slowly() -> None:
        await asyncio.sleep(1_000)

    pages = app(journal, pipelines={"slow": Runnable(start_slowly)})
    async with pages.router.lifespan_context(pages):
        asking = asyncio.create_task(make_client(pages).post("/resume/r"))
        await asyncio.sleep(1)

    assert (await asking).status_code == 303


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit()])
async def test_a_step_that_raises_system_exit_ends_only_its_run(
    make_client: Any, journal: Any, error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate()
    await interrupt(gate, journal, "r")

    async def raise_error() -> None:
        raise error

    pipeline = Orchestrator([WorkflowStep("gate", raise_error)], name="slow")
    client = make_client(app(journal, pipelines={"slow": pipeline}))

    await client.post("/resume/r")
    await ended(journal, "r")
    await asyncio.sleep(1)

    assert (await client.get("/")).status_code == 200
    assert "the server continues" in caplog.text


async def test_a_run_cancelled_from_its_page_logs_no_error(
    make_client: Any, journal: Any, caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate()
    await interrupt(gate, journal, "r")
    client = make_client(app(journal, pipelines={"slow": slow(gate)}))
    await client.post("/resume/r")
    await gate.has_started.wait()

    await client.post("/cancel/r")
    await ended(journal, "r")
    await asyncio.sleep(1)

    assert not [record for record in caplog.records if record.levelname == "ERROR"]


# Shutdown.


async def test_resumed_runs_are_cancelled_at_shutdown_and_can_be_resumed_again(
    make_client: Any, any_journal: Any
) -> None:
    gate = Gate()
    await interrupt(gate, any_journal, "r")
    pages = app(any_journal, pipelines={"slow": slow(gate)})

    async with pages.router.lifespan_context(pages):
        await make_client(pages).post("/resume/r")
        await gate.has_started.wait()

    assert gate.clean_ups == 2
    record = await any_journal.record("r")
    assert (record.status, record.cause) == ("INTERRUPTED", "drained")
    refused = await make_client(pages).post("/resume/r")
    assert "this server is stopping" in refused.text
    gate.is_open.set()
    assert (await slow(gate).with_options(run_id="r", journal=any_journal).run()).all_passed


async def test_the_shutdown_does_not_wait_forever(
    make_client: Any, journal: Any, caplog: pytest.LogCaptureFixture
) -> None:
    gate, cleaned = Gate(), asyncio.Event()
    await interrupt(gate, journal, "r")

    async def stubborn() -> None:
        gate.has_started.set()
        try:
            await asyncio.sleep(1_000)
        finally:
            await cleaned.wait()

    pipeline = Orchestrator([WorkflowStep("gate", stubborn, timeout_ms=None)], name="slow")
    pages = app(journal, pipelines={"slow": pipeline}, grace_s=2.5)
    loop = asyncio.get_running_loop()

    async with pages.router.lifespan_context(pages):
        await make_client(pages).post("/resume/r")
        await gate.has_started.wait()
        closed_at = loop.time()
    took_s = loop.time() - closed_at
    cleaned.set()
    await ended(journal, "r")
    await asyncio.sleep(0.1)

    assert took_s == pytest.approx(2.5)
    assert "run 'r' is still cleaning up after 2.5 s" in caplog.text


@pytest.mark.parametrize("value", [[WorkflowStep("a", asyncio.Event().wait)], "etl", None])
def test_an_argument_that_is_not_a_pipeline_is_refused(journal: Any, value: Any) -> None:
    with pytest.raises(TypeError, match=r"pipelines\['etl'\] must be a Pipeline or"):
        app(journal, pipelines={"etl": value})


def test_a_negative_grace_is_refused(journal: Any) -> None:
    with pytest.raises(ValueError, match="grace_s must be"):
        app(journal, grace_s=-1)
