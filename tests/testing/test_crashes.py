"""A durable run that crashes after any of its events ends as one that never crashed."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from dataclasses import dataclass
from functools import partial

import pytest
from memory_journal import MemoryJournal

from asyncflow import (
    Pipeline,
    Pool,
    Retry,
    RunStatus,
    WorkflowStep,
    after,
    collect,
    current_step,
    each,
)
from asyncflow.journal import PostgresJournal, SQLiteJournal
from asyncflow.testing import CrashError, Crashes, crash_everywhere, fails, fake, simulate
from asyncflow.testing._recorded_runs import RecordedRuns

pipeline = Pipeline("etl")


@pipeline.step
async def extract(url: str) -> list[int]:
    await asyncio.sleep(1)
    return [1, 2]


@pipeline.step(max_retries=2)
async def double(row: int = each(extract)) -> int:
    return row * 2


@pipeline.step(secret=True)
async def password(rows: list[int] = collect(double)) -> str:
    return "secret"


@pipeline.step(run_if="failure")
async def alarm() -> None: ...


def share(journal):
    return lambda: journal


INPUTS = {"url": "u"}
FOUND = Crashes(13, {"extract": 1, "double": 3, "password": 1}, RunStatus.PASSED, {})


def test_a_run_crashes_after_each_event_and_its_repeated_steps_are_named():
    journal = MemoryJournal()

    found = crash_everywhere(pipeline, share(journal), INPUTS)

    assert found == FOUND
    assert len(journal.stored) == 1 + found.points
    assert not journal.open_sessions


@pytest.mark.process
def test_a_process_that_is_killed_leaves_the_same_as_a_journal_that_fails(tmp_path):
    def journal():
        return SQLiteJournal(tmp_path / "runs.db")

    assert crash_everywhere(pipeline, journal, INPUTS, kill=True) == FOUND
    assert crash_everywhere(pipeline, journal, INPUTS) == FOUND


def test_a_run_with_a_key_crashes_alike_and_is_simulated_without_it(tmp_path):
    keyed = pipeline.with_options(key="customer 17")

    found = crash_everywhere(keyed, lambda: SQLiteJournal(tmp_path / "runs.db"), INPUTS)

    assert found == FOUND
    assert simulate(keyed, INPUTS).all_passed


def test_runs_in_a_database_on_a_server_crash_alike(dsn):
    assert crash_everywhere(pipeline, lambda: PostgresJournal(dsn), INPUTS, kill=True) == FOUND


@pytest.mark.process
def test_what_a_step_keeps_in_memory_for_another_is_lost_with_its_process(tmp_path):
    session, shop, reports = {}, Pipeline("shop"), []

    def journal():
        return SQLiteJournal(tmp_path / "runs.db")

    @shop.step
    async def login() -> None:
        session["token"] = "t-1"

    @shop.step
    async def order(logged_in: None = after(login)) -> str:
        return session["token"]

    with pytest.raises(CrashError) as raised:
        crash_everywhere(shop, journal, check=reports.append, kill=True)
    found = crash_everywhere(shop, journal)

    assert raised.value.problem == (
        "in a run that crashed after 'login succeeded', step 'order' ended as FAILED with KeyError,"
        " and not as SUCCESS with 't-1'"
    )
    assert [report["order"].output for report in reports] == ["t-1"] * 3
    assert found.status == "PASSED"  # its lives are in one process


@pytest.mark.process
def test_what_a_child_raises_is_raised_here(tmp_path):
    def journal():
        return SQLiteJournal(tmp_path / "runs.db")

    class LocalError(BaseException):
        """One that can't be pickled."""

    async def fail() -> None:
        raise LocalError("gone")

    with pytest.raises(ValueError, match="'url'") as refused:
        crash_everywhere(pipeline, journal, kill=True)
    with pytest.raises(RuntimeError, match=r"in a child process, .+LocalError: gone"):
        crash_everywhere(only(fail), journal, kill=True)

    assert "In the child process:\nTraceback" in refused.value.__notes__[-1]


@pytest.mark.process
def test_a_child_that_does_not_end_by_itself_is_reported(tmp_path):
    def journal():
        return SQLiteJournal(tmp_path / "runs.db")

    async def end_with(how) -> None:
        how()

    for how, problem in [
        (lambda: os._exit(3), "ended with code 3"),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "killed by SIGKILL before it ended"),
    ]:
        with pytest.raises(RuntimeError, match=problem):
            crash_everywhere(only(partial(end_with, how)), journal, kill=True)


@pytest.mark.process
@pytest.mark.parametrize("fails_at_last", [False, True])
def test_a_run_that_has_fewer_events_in_another_process_is_reported(tmp_path, fails_at_last):
    been_here = tmp_path / "been here"

    async def retried_once() -> None:
        if not been_here.exists():
            been_here.touch()
            raise OSError("gone")
        if fails_at_last:
            raise ValueError("bad")

    with pytest.raises(RuntimeError, match="did not reach its event 5 again"):
        crash_everywhere(
            only(retried_once, max_retries=2, retry=Retry(base_ms=0, on=OSError)),
            lambda: SQLiteJournal(tmp_path / "runs.db"),
            kill=True,
        )


@pytest.mark.process
def test_children_need_a_journal_that_all_processes_have():
    with pytest.raises(ValueError, match="the run that a child process has made was not in it"):
        crash_everywhere(pipeline, share(MemoryJournal()), INPUTS, kill=True)


def test_fakes_and_checks_work_in_runs_that_crash():
    reports = []

    with fake(pipeline, extract=[5], double=fails(1)) as fakes:
        found = crash_everywhere(pipeline, share(MemoryJournal()), INPUTS, check=reports.append)

    assert len(reports) == found.points > 10
    assert {report["double"].output[0] for report in reports} == {10}
    assert len(fakes["extract"].calls) > 1


def test_a_failing_run_fails_after_each_crash_too():
    with fake(pipeline, double=ValueError("bad")):
        found = crash_everywhere(pipeline, share(MemoryJournal()), INPUTS)

    assert found.repeated["alarm"] >= 1
    assert found.status == "FAILED"


def test_what_failed_or_fell_back_is_the_same_after_each_crash(tmp_path):
    """A journal gives back the error of a reused result as a `RestoredError`."""
    steps = Pipeline("steps", fail_fast=False, schedule="ready")

    async def fail() -> int:
        raise OSError("gone")

    steps.step(name="failed")(fail)
    steps.step(name="saved", fallback=lambda error: 7)(partial(fail))
    steps.step(name="skipped", when=lambda: False)(partial(fail))

    @steps.step(depends_on=["saved", "skipped"], run_if="unless_failed")
    async def join(saved: int, skipped: int | None) -> int:
        return saved

    found = crash_everywhere(steps, lambda: SQLiteJournal(tmp_path / "runs.db"))

    assert found.status == "FAILED"


def test_a_step_that_asks_for_its_idempotency_key_has_its_effect_once(tmp_path):
    shop = Pipeline("shop")

    @shop.step
    async def fetch() -> list[int]:
        return [1, 2]

    @shop.step
    async def pay(row: int = each(fetch)) -> str:
        return current_step().idempotency_key

    @shop.step(runs_in="thread")
    def ship(keys: list[str] = collect(pay)) -> str:
        return current_step().idempotency_key

    @shop.step
    async def mail(shipped: str = after(ship)) -> None: ...

    found = crash_everywhere(shop, lambda: SQLiteJournal(tmp_path / "runs.db"))

    assert found.repeated == {"fetch": 1, "mail": 1}


def test_an_item_that_does_not_ask_for_its_key_is_found_among_those_that_do(tmp_path):
    shop = Pipeline("shop")

    @shop.step
    async def fetch() -> list[int]:
        return [5, 7, 500]

    @shop.step(pool=Pool(1), keep_outputs=False)
    async def pay(amount: int = each(fetch)) -> None:
        if amount > 100:
            assert current_step().idempotency_key

    found = crash_everywhere(shop, lambda: SQLiteJournal(tmp_path / "runs.db"))

    assert found.repeated == {"fetch": 1, "pay": 2}


def test_each_process_begins_with_pools_that_no_other_has_used(tmp_path):
    calls = Pipeline("calls")

    @calls.step(pool=Pool(1, retry_budget=0.1), max_retries=3)
    async def call() -> None:
        if current_step().attempt < 3:
            raise OSError("try again")

    found = crash_everywhere(calls, lambda: SQLiteJournal(tmp_path / "runs.db"))

    assert found.status == "PASSED"


def test_a_journal_of_another_database_each_time_is_refused():
    with pytest.raises(ValueError, match=r"after 'run crashes-.+ started.+' was not in it"):
        crash_everywhere(pipeline, MemoryJournal, INPUTS)
    with pytest.raises(ValueError, match="journals of one database"):
        crash_everywhere(pipeline, lambda: SQLiteJournal(":memory:"), INPUTS)


def test_a_run_that_ends_otherwise_after_a_crash_is_reported():
    calls = []

    async def counted():
        calls.append(1)
        return [len(calls)]

    with fake(pipeline, double=0, extract=counted), pytest.raises(CrashError) as raised:
        crash_everywhere(pipeline, share(MemoryJournal()), INPUTS)

    assert raised.value.point == 0
    assert raised.value.problem.startswith(
        "in a run that crashed at its start, step 'extract' ended as SUCCESS with [2]"
    )


@pytest.mark.parametrize("some_fail", [False, True])
def test_the_item_that_ends_otherwise_after_a_crash_is_named(some_fail):
    calls = Counter()

    async def times(row):
        if some_fail and row == 1:
            raise ValueError("bad")
        calls[row] += 1
        return calls[2] if row == 2 else 0

    with fake(pipeline, double=times), pytest.raises(CrashError) as raised:
        crash_everywhere(pipeline, share(MemoryJournal()), INPUTS)

    assert raised.value.problem.endswith(
        "item 1 of step 'double' ended as SUCCESS with 2, and not as SUCCESS with 1"
    )


def test_an_item_whose_success_is_left_out_of_the_report_must_succeed():
    mapped, calls = Pipeline("mapped"), []

    @mapped.step
    async def numbers() -> list[int]:
        return [1, 2]

    @mapped.step(keep_outputs=False, tolerated_failures=1)
    async def once(number: int = each(numbers)) -> None:
        calls.append(number)
        if len(calls) == 3:
            raise OSError("gone")

    with pytest.raises(CrashError) as raised:
        crash_everywhere(mapped, share(MemoryJournal()))

    assert raised.value.problem.endswith(
        "item 0 of step 'once' ended as FAILED with OSError, and not as SUCCESS"
    )


def test_the_number_of_items_must_stay_the_same():
    rows = []

    async def more():
        rows.append(1)
        return rows

    with fake(pipeline, extract=more), pytest.raises(CrashError) as raised:
        crash_everywhere(pipeline, share(MemoryJournal()), INPUTS)

    assert raised.value.problem.endswith("step 'double' had 2 items, and not 1")


def test_an_effect_that_happened_twice_is_found_with_the_event_after_which():
    shop, charges = Pipeline("shop"), Counter()

    @shop.step
    async def charge() -> None:
        charges[current_step().run_id] += 1

    @shop.step
    async def bill(charged: None = after(charge)) -> int:
        return charges[current_step().run_id]

    with pytest.raises(CrashError) as raised:
        crash_everywhere(shop, share(MemoryJournal()))

    assert raised.value.point == 2
    assert raised.value.problem == (
        "in a run that crashed after 'charge started', step 'bill' ended as SUCCESS with 2, "
        "and not as SUCCESS with 1"
    )
    assert "\nshop PASSED in 0 ms, run crashes-" in str(raised.value)
    assert raised.value.report["charge"].attempts == 2


def fails_check(report):
    pytest.fail("too late")


@pytest.mark.parametrize(
    ("check", "problem"),
    [(fails_check, "the check failed: Failed: too late"), (lambda _: 0, "the check returned 0")],
)
def test_a_check_that_fails_is_reported_with_the_event_after_which_the_run_crashed(check, problem):
    with pytest.raises(CrashError, match=f"in a run that crashed at its start, {problem}"):
        crash_everywhere(pipeline, share(MemoryJournal()), INPUTS, check=check)


def only(action, **options):
    return [WorkflowStep("only", action, **options)]


def test_an_output_may_have_the_id_of_its_run():
    async def path() -> str:
        return f"out/{current_step().run_id}.csv"

    assert crash_everywhere(only(path), share(MemoryJournal())).points == 4


@pytest.mark.parametrize(("secret", "shown"), [(False, "more characters"), (True, "a secret")])
def test_outputs_are_compared_in_full_but_neither_shown_in_full_nor_if_they_are_secret(
    secret, shown
):
    calls = []

    async def make() -> list[int]:
        calls.append(1)
        return [*range(1_000), len(calls)]

    with pytest.raises(CrashError, match=shown) as raised:
        crash_everywhere(only(make, secret=secret), share(MemoryJournal()))

    assert len(raised.value.problem) < 700


def test_secret_outputs_that_no_journal_stores_are_the_same():
    mapped = Pipeline("mapped")

    @mapped.step
    async def numbers() -> list[int]:
        return [1, 2]

    @mapped.step(secret=True)
    async def key(number: int = each(numbers)) -> str:
        return f"key {number}"

    assert crash_everywhere(mapped, share(MemoryJournal())).repeated == {"numbers": 1, "key": 3}


def test_a_step_that_fails_after_a_crash_only_is_reported_with_the_type_of_its_error():
    calls = []

    async def works_once():
        calls.append(1)
        if len(calls) > 1:
            raise OSError("gone")

    with pytest.raises(CrashError, match="ended as FAILED with OSError, and not as SUCCESS with N"):
        crash_everywhere(only(works_once), share(MemoryJournal()))


def test_the_runs_are_not_recorded_for_the_report_of_a_failed_test():
    recorded = RecordedRuns()
    recorded.begin()
    try:
        crash_everywhere(pipeline, share(MemoryJournal()), INPUTS)
        assert not recorded
    finally:
        recorded.end()


async def test_it_runs_event_loops_of_its_own():
    with pytest.raises(RuntimeError, match="runs event loops of its own"):
        crash_everywhere(pipeline, MemoryJournal, INPUTS)


def test_a_run_that_waits_crashes_and_resumes_with_its_signals(tmp_path):
    orders = Pipeline("orders")

    def journal():
        return SQLiteJournal(tmp_path / "runs.db")

    @orders.step
    async def draft() -> str:
        return "draft"

    approved = orders.signal("approved", bool, depends_on=[draft])

    @orders.step
    async def publish(draft: str = after(draft), approved: bool = after(approved)) -> str:
        return f"{draft}: {approved}"

    found = crash_everywhere(orders, journal, signals={"approved": True})
    waits = crash_everywhere(orders, journal)

    assert (found.status, waits.status) == ("PASSED", "WAITING")
    assert found.points > waits.points
    assert found.repeated.keys() == {"draft", "publish"}
    with pytest.raises(ValueError, match="signals names 'draft', which waits for no signal"):
        crash_everywhere(orders, journal, signals={"draft": True})


def test_a_signal_that_its_step_refuses_is_not_sent_again_and_again(tmp_path):
    @dataclass
    class Amount:
        euros: int

        def __post_init__(self):
            if self.euros < 0:
                raise ValueError("must be at least 0")

    orders = Pipeline("orders")
    orders.signal("paid", Amount)

    with pytest.raises(ValueError, match=r"step 'paid' refuses \{'euros': -1\}, and waits"):
        crash_everywhere(
            orders, lambda: SQLiteJournal(tmp_path / "runs.db"), signals={"paid": {"euros": -1}}
        )


@pytest.mark.process
def test_a_run_that_waits_survives_a_kill_at_each_event(tmp_path):
    orders = Pipeline("orders")
    first = orders.signal("first", int)
    orders.signal("second", str, depends_on=[first])
    answers = {"first": 1, "second": "two"}

    found = crash_everywhere(
        orders, lambda: SQLiteJournal(tmp_path / "runs.db"), signals=answers, kill=True
    )

    assert (found.status, found.repeated) == ("PASSED", {})
