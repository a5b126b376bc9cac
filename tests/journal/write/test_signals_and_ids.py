"""Signals, and ids that are used again: no answer of one run is that of another."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from typing import Any

import pytest
from virtual_journals import in_virtual_time

from asyncflow import Pipeline, RunNotFoundError, after
from asyncflow._core.errors import LeaseLostError
from asyncflow._core.history.results import Payload


def offers() -> Pipeline:
    pipeline = Pipeline("offers")

    @pipeline.step
    async def draft(text: str) -> str:
        return f"offer for {text}"

    approved = pipeline.signal("approved", bool, depends_on=[draft])

    @pipeline.step
    async def send(draft: str = after(draft), approved: bool = after(approved)) -> str:
        return f"sent: {draft}"

    return pipeline


async def run(journal: Any, run_id: str = "r", **inputs: str) -> Any:
    return await offers().with_options(journal=journal, run_id=run_id).run(**inputs)


async def looked_at(journal: Any) -> Any:
    """Return an answer that was found right for the run that is there now."""
    payload = Payload("json", b"true")
    return await journal._read(journal._reader.check_signal, "r", "approved", payload)


async def store(journal: Any, sent: Any) -> None:
    await journal._worker.send_signal(sent)


@in_virtual_time
async def test_an_answer_is_not_stored_while_a_start_of_a_forgotten_run_has_its_lease(
    journal: Any, database: Any
) -> None:
    await run(journal, text="10 chairs")
    sent = await looked_at(journal)
    await journal.forget("r")
    session, _ = await journal.open("r", wait=False, read=bool)  # a start that will be refused

    with pytest.raises(RunNotFoundError):
        await store(journal, sent)

    await session.close()
    assert database.query("SELECT run_id FROM signals") == []
    assert (await run(journal, text="100 chairs")).status == "WAITING"


@in_virtual_time
async def test_an_answer_to_a_forgotten_run_is_not_stored_for_the_next_one_of_its_id(
    journal: Any,
) -> None:
    await run(journal, text="10 chairs")
    sent = await looked_at(journal)
    await journal.forget("r")
    await asyncio.sleep(1)  # runs of one id are told apart by when they started
    await run(journal, text="100 chairs")

    with pytest.raises(RunNotFoundError):
        await store(journal, sent)

    assert await journal.due() == []


@in_virtual_time
async def test_an_answer_of_one_run_never_answers_the_next_one_of_its_id(
    journal: Any, make_journal: Callable[..., Any]
) -> None:
    """Whatever comes between: it is forgotten, started without inputs, and answered at once."""
    chance = random.Random(6)
    async with AsyncExitStack() as stack:
        other, third = [await stack.enter_async_context(make_journal()) for _ in range(2)]
        for number in range(25):
            run_id = f"r{number}"
            await run(journal, run_id, text="10 chairs")

            async def some_turns() -> None:
                for _ in range(chance.randrange(4)):
                    await journal.counts()

            async def forget(run_id: str = run_id) -> None:
                await some_turns()
                await journal.forget(run_id)

            async def answer(run_id: str = run_id) -> None:
                await some_turns()
                with suppress(RunNotFoundError):
                    await other.signal(run_id, "approved", True)

            async def start(run_id: str = run_id) -> None:
                for _ in range(3):
                    await some_turns()
                    with suppress(Exception):
                        await run(third, run_id)

            await asyncio.gather(forget(), answer(), start(), return_exceptions=True)
            if any(record.run_id == run_id for record in await journal.runs(limit=None)):
                continue  # it ran while it was to be forgotten
            assert (await run(journal, run_id, text="100 chairs")).status == "WAITING"


@in_virtual_time
async def test_a_handle_sends_at_once_what_its_run_takes_when_its_start_is_stored(
    journal: Any,
) -> None:
    pipeline = offers().with_options(journal=journal, run_id="r", on_wait="stay")
    async with pipeline.start(text="10 chairs") as begun:
        await begun.signal("approved", True)

        assert (await begun.report())["send"].output == "sent: offer for 10 chairs"


async def test_a_deadline_that_expires_in_a_run_that_another_process_has_deleted_is_no_bug(
    make_journal: Any, database: Any
) -> None:
    """Its process stood still, lost the lease, and hears that when it renews it."""
    pipeline = Pipeline("offers")
    pipeline.signal("approved", bool, deadline_ms=200)
    async with make_journal(lease_s=1) as journal:
        staying = pipeline.with_options(journal=journal, run_id="r", on_wait="stay")
        async with staying.start() as handle:
            await handle.flush()
            database.query("UPDATE leases SET owner = NULL, expires_at = 0")
            await journal.forget("r")

            with pytest.raises(LeaseLostError, match="another process has taken over run 'r'"):
                await handle.report()
