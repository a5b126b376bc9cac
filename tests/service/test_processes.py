"""A service in processes of its own: clients that leave, SIGTERM, SIGKILL, two replicas."""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from asyncflow.events import StepReused, StepSucceeded
from asyncflow.journal import PostgresJournal, SQLiteJournal
from tests.service.client import Site, running_site, until

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(not hasattr(signal, "SIGTERM"), reason="needs SIGTERM"),
]


async def passed(journal: Any) -> set[str]:
    return {record.run_id for record in await journal.runs(status="PASSED", limit=None)}


def effects_of(path: Path) -> Counter[str]:
    return Counter(path.read_text().split()) if path.exists() else Counter()


def steps_of(run_ids: set[str]) -> set[str]:
    return {f"{run_id}/{step}" for run_id in run_ids for step in ("first", "second", "third")}


async def successes(journal: Any, run_id: str) -> Counter[str]:
    """Count how often the journal has a success of each step, other than one that was reused."""
    events = [stored.event for stored in await journal.events(run_id)]
    return Counter(event.step for event in events if isinstance(event, StepSucceeded))


async def test_half_of_500_clients_leave_and_their_runs_end_or_continue(tmp_path: Path) -> None:
    names = [f"{mode}-{number}" for number in range(250) for mode in ("cancel", "detach")]
    with running_site("--effects", tmp_path / "effects") as site:
        connections = await asyncio.gather(
            *(
                site.connect(f"/wait/{name}?pause_s=2&on_disconnect={name.partition('-')[0]}")
                for name in names
            )
        )

        async def all_run() -> bool:
            return len((await site.figures())["runs"]) == len(names)

        await until(all_run)
        left_at: dict[str, float] = {}
        stayed: dict[str, asyncio.StreamReader] = {}
        for number, (name, (reader, writer)) in enumerate(zip(names, connections, strict=True)):
            if number % 4 < 2:
                left_at[name] = time.time()
                writer.close()
            else:
                stayed[name] = reader
        answers = await asyncio.gather(*(reader.read() for reader in stayed.values()))
        for _, writer in connections:
            writer.close()

        assert all(answer.endswith(b"\r\n\r\n3") for answer in answers)

        async def none_runs() -> bool:
            return not (await site.figures())["runs"]

        await until(none_runs)
        figures = await site.figures()

    cancelled = {name for name in left_at if name.startswith("cancel")}
    stopped_at = figures["stopped_at"]
    assert stopped_at.keys() <= cancelled
    assert len(stopped_at) > len(cancelled) / 2  # others may have been between two steps
    late_s = [stopped_at[name] - left_at[name] for name in stopped_at]
    print(f"cancelled after {1000 * max(late_s):.0f} ms at most")
    assert max(late_s) < 5  # 50 ms on an idle machine; without the cancellation, 6 s
    found = effects_of(tmp_path / "effects")
    assert steps_of(set(names) - cancelled) <= found.keys()
    assert not [name for name in cancelled if f"{name}/third" in found]
    assert set(found.values()) == {1}
    assert figures["tasks"] < 20


async def test_sigterm_under_load_loses_nothing_and_repeats_no_finished_step(
    tmp_path: Path,
) -> None:
    path, effects = tmp_path / "runs.db", tmp_path / "effects"
    arguments = ("--journal", path, "--effects", effects, "--patience-s", 1)
    accepted: set[str] = set()
    refused: Counter[int] = Counter()

    async def load(site: Site, number: int) -> None:
        for again in range(200):
            run_id, kind = f"{number}-{again}", ("start", "wait")[number % 2]
            status, _ = await site.request(f"/{kind}/{run_id}?pause_s=1&on_disconnect=detach")
            if status in (200, 202):
                accepted.add(run_id)
            else:
                refused[status] += 1
                return
            await asyncio.sleep(0.05)

    with running_site(*arguments) as site:
        clients = [asyncio.create_task(load(site, number)) for number in range(20)]

        async def is_busy() -> bool:
            return len(accepted) >= 100

        await until(is_busy)
        site.terminate()
        await asyncio.gather(*clients)
        assert site.process.wait(30) == -signal.SIGTERM

    async with SQLiteJournal(path) as journal:
        stored = {record.run_id: record.status for record in await journal.runs(limit=None)}
        assert accepted <= stored.keys()
        assert "INTERRUPTED" in stored.values()
        assert set(stored.values()) <= {"PASSED", "INTERRUPTED"}
        assert set(effects_of(effects).values()) == {1}

        with running_site(*arguments) as site:

            async def all_passed() -> bool:
                return await passed(journal) == stored.keys()

            await until(all_passed)
            site.terminate()
            site.process.wait(30)

    # Each running step ended in its grace, so none was ever started again.
    assert effects_of(effects) == dict.fromkeys(steps_of(set(stored)), 1)


@pytest.mark.parametrize("first_signal", [signal.SIGTERM, signal.SIGKILL])
async def test_two_replicas_share_the_work_and_one_takes_over_that_of_the_other(
    dsn: str, tmp_path: Path, first_signal: signal.Signals
) -> None:
    effects = tmp_path / "effects"
    arguments = ("--journal", dsn, "--effects", effects, "--grace-ms", 100, "--patience-s", 1)
    run_ids = {f"r{number}" for number in range(30)}
    with running_site(*arguments) as one, running_site(*arguments) as two:
        for number, run_id in enumerate(sorted(run_ids)):
            status, _ = await (one, two)[number % 2].request(f"/start/{run_id}?pause_s=1")
            assert status == 202
        of_one = {*(await one.figures())["runs"]}
        assert of_one.isdisjoint((await two.figures())["runs"])

        async with PostgresJournal(dsn) as journal:

            async def has_done_a_first_step() -> bool:  # two more take two seconds
                for run_id in of_one:
                    if [*await successes(journal, run_id)] == ["first"]:
                        return True
                return False

            await until(has_done_a_first_step)
            one.process.send_signal(first_signal)
            one.process.wait(30)

            async def all_passed() -> bool:
                return await passed(journal) == run_ids

            await until(all_passed)
            for run_id in run_ids:
                assert await successes(journal, run_id) == dict.fromkeys(
                    ("first", "second", "third"), 1
                )
            taken_over = [
                run_id
                for run_id in run_ids
                if any(isinstance(e.event, StepReused) for e in await journal.events(run_id))
            ]
        assert taken_over
        found = effects_of(effects)
        assert found.keys() == steps_of(run_ids)
        # A step whose effect is written and whose end is not stored runs again: one of each run.
        assert sum(found.values()) - len(found) <= len(run_ids) / 2


async def test_a_full_service_says_when_to_try_again(tmp_path: Path) -> None:
    with running_site("--max-runs", 2) as site:
        assert (await site.request("/start/a?pause_s=60"))[0] == 202
        assert (await site.request("/start/b?pause_s=60"))[0] == 202

        reader, writer = await site.connect("/start/c?pause_s=60")
        answer = (await reader.read()).decode()
        writer.close()

        assert answer.startswith("HTTP/1.1 503")
        assert "retry-after: 1\r\n" in answer
