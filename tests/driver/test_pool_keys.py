"""Attempts of a pool that have keys: a tenant's backlog holds up no other tenant."""

from __future__ import annotations

import asyncio

import pytest

from asyncflow import (
    Orchestrator,
    Pool,
    Retry,
    StepStatus,
    WorkflowStep,
    current_step,
    run_pipeline,
)
from asyncflow.testing import run_in_virtual_time


def of_tenants(tenants, pool, action=None, **options):
    """Return steps of which the second is mapped over these tenants, and takes a second each."""

    async def each(tenant):
        await asyncio.sleep(1)

    async def listed():
        return tenants

    options = {"pool_key": lambda tenant: tenant, "timeout_ms": None, **options}
    mapped = WorkflowStep(
        "each", action or each, {"tenant": "listed"}, map_over="listed", pool=pool, **options
    )
    return [WorkflowStep("listed", listed), mapped]


def starts_of(report, step="each"):
    return [round(item.started_ms / 1000, 3) for item in report[step].items]


@pytest.mark.parametrize("limit", [None, 4])
def test_a_key_at_its_limit_holds_up_no_other_of_its_run(limit):
    pool = Pool(4, per_key=2)
    steps = of_tenants(["a"] * 40 + ["b", "c"], pool)

    report = run_in_virtual_time(run_pipeline(steps, max_concurrency=limit))

    assert starts_of(report) == [n // 2 for n in range(40)] + [0, 0]
    assert (pool.in_use, pool.waiting) == (0, 0)


def test_without_a_limit_keys_take_turns_and_those_without_one_as_one_more():
    steps = of_tenants(
        ["a", "a", "a", "b", "b", "", ""], Pool(1), pool_key=lambda tenant: tenant or None
    )

    report = run_in_virtual_time(run_pipeline(steps))

    assert starts_of(report) == [0, 1, 4, 2, 5, 3, 6]


def test_the_runs_of_a_key_take_turns():
    async def main():
        pool = Pool(1)
        runs = [run_pipeline(of_tenants(["a"] * count, pool)) for count in (50, 3)]
        return await asyncio.gather(*runs)

    _, short = run_in_virtual_time(main())

    assert starts_of(short) == [1, 3, 5]


def test_a_step_has_a_key_as_its_items_have():
    started = []

    async def act():
        started.append(current_step().step_name)
        await asyncio.sleep(1)

    pool = Pool(3, per_key=1)
    steps = [WorkflowStep(f"a{n}", act, pool=pool, pool_key="a") for n in range(3)]
    steps.append(WorkflowStep("b", act, pool=pool, pool_key="b"))
    steps.append(WorkflowStep("free", act, pool=pool))

    report = run_in_virtual_time(run_pipeline(steps))

    assert started == ["a0", "b", "free", "a1", "a2"]
    assert report.total_duration_ms == 3_000


@pytest.mark.parametrize(("size", "ahead"), [(1, 100), (80, 160)])
def test_a_map_looks_a_hundred_items_ahead_or_twice_the_size_of_the_pool(size, ahead):
    read, seen = [], []

    async def listed():
        async def items():
            for n in range(1_000):
                read.append(n)
                yield "a"

        return items()

    async def act(tenant):
        seen.append(len(read))
        await asyncio.sleep(1)

    pool = Pool(size)
    steps = [WorkflowStep("listed", listed), of_tenants([], pool, act)[1]]

    async def main():
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await run_pipeline(steps)

    run_in_virtual_time(main())

    assert len(seen) == size
    assert len(read) == ahead + 1  # one more is at hand


@pytest.mark.parametrize(
    ("key", "error", "message"),
    [
        (lambda tenant: {}["tenant"], KeyError, "'tenant'"),
        (lambda tenant: 5, TypeError, "pool_key must be a str or None, not int"),
        (lambda tenant: "", ValueError, "pool_key must have 1 to 200 characters, not 0"),
        (
            lambda tenant: tenant * 201,
            ValueError,
            "pool_key must have 1 to 200 characters, not 201",
        ),
    ],
)
def test_an_item_whose_key_cannot_be_had_fails_without_an_attempt_and_its_fallback_is_asked(
    key, error, message
):
    def main(**options):
        steps = of_tenants(["a"], Pool(1), pool_key=key, **options)
        return run_in_virtual_time(run_pipeline(steps, fail_fast=False))

    (item,) = main()["each"].items
    assert (item.status, item.attempts) == (StepStatus.FAILED, 0)
    assert type(item.error) is error
    assert message in str(item.error)
    assert main(fallback=lambda error: "instead")["each"].output == ["instead"]


def test_slots_above_what_a_key_may_have_are_refused_as_those_above_the_size():
    pool, message = Pool(8, per_key=2, name="crm"), "slots must be at most 2, the per_key of"

    with pytest.raises(ValueError, match=f"step 'each': {message} pool 'crm', not 3"):
        of_tenants([], pool, slots=3, pool_key="acme")
    steps = of_tenants(["a", ""], pool, slots=3, pool_key=lambda tenant: tenant or None)
    report = run_in_virtual_time(run_pipeline(steps, fail_fast=False))

    assert [item.attempts for item in report["each"].items] == [0, 1]
    assert message in str(report["each"].items[0].error)


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"pool_key": "a"}, ValueError, "pool_key has no effect without a pool; give it one"),
        ({"pool": Pool(1), "pool_key": ""}, ValueError, "pool_key must have 1 to 200 characters"),
        (
            {"pool": Pool(1), "pool_key": 5},
            TypeError,
            "pool_key must be a str, a function or None, not int",
        ),
        (
            {"pool": Pool(1), "pool_key": lambda tenent: tenent},
            ValueError,
            "its pool_key function takes 'tenent', which its action does not",
        ),
        (
            {"pool": Pool(1), "pool_key": asyncio.sleep},
            TypeError,
            "pool_key must be a plain function",
        ),
    ],
)
def test_a_key_that_can_be_of_no_use_is_refused_when_the_step_is_made(options, kind, message):
    async def act(tenant):
        pass

    with pytest.raises(kind, match=message):
        WorkflowStep("one", act, **options)


def test_a_key_is_computed_once_an_item_and_kept_by_its_retries():
    asked, tries = [], []

    async def act(tenant):
        tries.append(tenant)
        raise ConnectionError

    def key(tenant):
        asked.append(tenant)
        return tenant

    steps = of_tenants(["a", "b"], Pool(1, per_key=1), act, pool_key=key, max_retries=3)
    run_in_virtual_time(run_pipeline(steps, fail_fast=False))

    assert asked == ["a", "b"]
    assert sorted(tries) == ["a"] * 3 + ["b"] * 3


def test_a_refusal_pauses_the_pool_and_not_a_key():
    async def act(tenant):
        if tenant == "a" and current_step().attempt == 1:
            raise ConnectionError

    pool = Pool(1)
    options = {"max_retries": 2, "retry": Retry(on=lambda error: 5_000)}
    report = run_in_virtual_time(run_pipeline(of_tenants(["a", "b"], pool, act, **options)))

    assert report["each"].items[1].started_ms >= 5_000


def test_stats_and_reasons_name_keys_and_show_no_secret():
    pool, seen = Pool(4, per_key=1, name="crm"), []

    async def act(tenant, token):
        seen.append(pool.stats().keys)
        await asyncio.sleep(60)

    steps = of_tenants(["a", "a"], pool, act, pool_key=lambda tenant, token: f"{tenant}/{token}")
    run = Orchestrator(steps, secret_inputs=["token"], deadline_ms=30_000)

    report = run_in_virtual_time(run.run(token="hunter22"))

    ((key,),) = seen
    assert (key.key, key.in_use, key.waiting) == ("a/<secret>", 1, 0)
    reason = "while key 'a/<secret>' was at its limit in pool 'crm' (per_key=1)"
    assert reason in report.stop_reason
    assert pool.stats().keys == ()
