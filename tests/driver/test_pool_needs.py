"""How much of its pool an attempt takes, and who comes first in line."""

from __future__ import annotations

import asyncio
import itertools
import random

import pytest

from asyncflow import Pool, Retry, StepStatus, WorkflowStep, run_pipeline
from asyncflow.events import AttemptStarted, StepFailed
from asyncflow.journal import SQLiteJournal

pytestmark = pytest.mark.exact_time


async def second():
    await asyncio.sleep(1)


def starts_of(report):
    return {result.step_name: round(result.started_ms) for result in report.results}


def numbers(*values):
    return WorkflowStep("numbers", lambda: asyncio.sleep(0, list(values)))


async def test_an_attempt_may_take_several_slots_and_first_in_line_holds_the_line():
    pool = Pool(3)

    report = await run_pipeline(
        [
            WorkflowStep("two", second, pool=pool, slots=2),
            WorkflowStep("all", second, pool=pool, slots=3),
            WorkflowStep("one", second, pool=pool),
        ]
    )

    assert starts_of(report) == {"two": 0, "all": 1_000, "one": 2_000}
    assert (pool.in_use, pool.waiting) == (0, 0)


async def test_tokens_a_minute_spread_the_starts():
    pool = Pool(9, tokens_per_minute=600)

    report = await run_pipeline(
        [
            WorkflowStep(f"s{n}", second, pool=pool, tokens=tokens)
            for n, tokens in enumerate((50, 10, 20))
        ]
    )

    assert starts_of(report) == {"s0": 0, "s1": 5_000, "s2": 6_000}


async def test_slots_and_tokens_may_follow_from_the_data_of_each_item():
    pool, asked = Pool(4, tokens_per_minute=60), []

    def tokens(prompt, factor):
        asked.append(prompt)
        return len(prompt) * factor

    async def ask(prompt, factor, other=None):
        return prompt

    steps = [
        numbers("a", "bbb", "cc"),
        WorkflowStep(
            "ask",
            ask,
            {"prompt": "numbers"},
            map_over="numbers",
            pool=pool,
            slots=lambda prompt: len(prompt),
            tokens=tokens,
        ),
    ]

    report = await run_pipeline(steps, inputs={"factor": 2})

    assert [round(item.started_ms) for item in report["ask"].items] == [0, 2_000, 8_000]
    assert asked == ["a", "bbb", "cc"]


async def test_what_an_item_needs_is_computed_once_for_all_its_attempts():
    pool, asked, tries = Pool(1), [], []

    def slots(numbers):
        asked.append(numbers)
        return 1

    async def ask(numbers):
        tries.append(numbers)
        if len(tries) < 3:
            raise ValueError

    steps = [
        numbers(7),
        WorkflowStep(
            "ask", ask, ["numbers"], map_over="numbers", pool=pool, slots=slots, max_retries=3
        ),
    ]

    report = await run_pipeline(steps)

    assert report.all_passed
    assert (len(asked), len(tries)) == (1, 3)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"slots": lambda numbers: 3}, ValueError, "slots must be at most 2, the size of its pool"),
        ({"slots": lambda numbers: 0}, ValueError, "slots must be at least 1, not 0"),
        ({"slots": lambda numbers: 1.5}, TypeError, "slots must be an int, not float"),
        (
            {"tokens": lambda numbers: 601},
            ValueError,
            "must be at most 600, the tokens_per_minute of",
        ),
        (
            {"tokens": lambda numbers: -1},
            ValueError,
            "tokens must be finite and at least 0, not -1",
        ),
        ({"tokens": lambda numbers: float("nan")}, ValueError, "must be finite and at least 0"),
        ({"tokens": lambda numbers: numbers["x"]}, TypeError, "'int' object is not subscriptable"),
        ({"tokens": lambda numbers: asyncio.sleep(0, 3)}, TypeError, "coroutine"),
    ],
)
async def test_an_item_whose_needs_cannot_be_had_fails_without_an_attempt(options, error, message):
    pool, calls, events = Pool(2, tokens_per_minute=600), [], []

    async def ask(numbers):
        calls.append(numbers)

    steps = [
        numbers(1, 2),
        WorkflowStep(
            "ask", ask, ["numbers"], map_over="numbers", pool=pool, max_retries=3, **options
        ),
        WorkflowStep("single", lambda numbers: ask(numbers), ["numbers"], pool=pool, **options),
    ]

    report = await run_pipeline(steps, fail_fast=False, observers=[events.append])

    for result in (*report["ask"].items, report["single"]):
        if result is report["single"] and "subscriptable" in message:
            continue  # it has a list there
        assert (result.status, result.attempts) == (StepStatus.FAILED, 0)
        assert isinstance(result.error, error)
        assert message in str(result.error)
    assert report["ask"].status is StepStatus.FAILED
    assert calls == []
    assert not [e for e in events if isinstance(e, AttemptStarted) and e.step != "numbers"]
    assert (pool.in_use, pool.waiting) == (0, 0)


async def test_a_function_of_needs_that_exits_stops_the_run():
    def leave():
        raise KeyboardInterrupt

    pool = Pool(1)
    with pytest.raises(KeyboardInterrupt):
        await run_pipeline([WorkflowStep("a", second, pool=pool, slots=leave)])

    assert (pool.in_use, pool.waiting) == (0, 0)


async def test_an_item_that_failed_without_an_attempt_is_stored_and_runs_again(tmp_path):
    pool, limit = Pool(1, tokens_per_minute=60), [2]
    steps = [
        numbers(1, 2),
        WorkflowStep(
            "ask",
            lambda numbers: asyncio.sleep(0, numbers),
            ["numbers"],
            map_over="numbers",
            pool=pool,
            tokens=lambda numbers: 1 if numbers < limit[0] else 61,
        ),
    ]

    async with SQLiteJournal(tmp_path / "runs.db") as journal:
        first = await run_pipeline(steps, journal=journal, run_id="r", fail_fast=False)
        events = [stored.event for stored in await journal.events("r")]
        limit[0] = 9
        second = await run_pipeline(steps, journal=journal, run_id="r", fail_fast=False)

    assert [item.status for item in first["ask"].items] == ["SUCCESS", "FAILED"]
    assert next((e.attempt, e.item) for e in events if isinstance(e, StepFailed)) == (0, 1)
    assert second["ask"].output == [1, 2]


def test_what_can_never_be_had_is_refused_when_the_step_is_made():
    pool = Pool(2, tokens_per_minute=600, name="api")

    with pytest.raises(ValueError, match="at most 2, the size of pool 'api', not 3"):
        WorkflowStep("a", second, pool=pool, slots=3)
    with pytest.raises(ValueError, match=r"600, the tokens_per_minute of pool 'api', not 700\.5"):
        WorkflowStep("a", second, pool=pool, tokens=700.5)
    for tokens in 0, 500, lambda: 5:
        with pytest.raises(ValueError, match="tokens has no effect, since its pool has no tokens_"):
            WorkflowStep("a", second, pool=Pool(2, per_minute=60), tokens=tokens)
    for options in {"slots": 2}, {"tokens": 0}, {"priority": 1}, {"slots": lambda: 1}:
        with pytest.raises(ValueError, match="has no effect without a pool"):
            WorkflowStep("a", second, **options)
    with pytest.raises(ValueError, match="its tokens function takes 'promt', which its action"):
        WorkflowStep("a", second, pool=pool, tokens=lambda promt: 1)
    with pytest.raises(TypeError, match="slots must be a plain function"):
        WorkflowStep("a", second, pool=pool, slots=second)
    with pytest.raises(TypeError, match="slots must be an int or a function, not str"):
        WorkflowStep("a", second, pool=pool, slots="2")
    with pytest.raises(TypeError, match="priority must be an int, not float"):
        WorkflowStep("a", second, pool=pool, priority=1.5)


@pytest.mark.long_time
async def test_priorities_that_rise_along_a_chain_finish_what_has_begun():
    pool, ends = Pool(1), []

    def chain(run):
        names = "abc"
        return [
            WorkflowStep(name, second, [*names[:n][-1:]], pool=pool, priority=n)
            for n, name in enumerate(names)
        ]

    async def run(number, schedule):
        await run_pipeline(chain(number), schedule=schedule)
        ends.append(round(asyncio.get_running_loop().time() - began))

    for schedule in ("tiers", "ready"):
        ends.clear()
        began = asyncio.get_running_loop().time()
        await asyncio.gather(*(run(number, schedule) for number in range(4)))

        assert ends == [3, 6, 9, 12]


async def test_a_condition_does_not_cost_the_successor_its_place():
    pool, order = Pool(1), []

    def step(name, needs, priority):
        async def act(**_):
            order.append(name)
            await asyncio.sleep(1)

        return WorkflowStep(name, act, needs, pool=pool, priority=priority, when=lambda: True)

    await run_pipeline(
        [step("a", [], 1), step("other", [], 0), step("b", ["a"], 1)], schedule="ready"
    )

    assert order == ["a", "b", "other"]


async def test_an_urgent_step_behind_many_waiting_ones_of_its_run_starts_next():
    pool, order = Pool(1), []

    def act(name):
        async def action():
            order.append(name)
            await asyncio.sleep(1)

        return action

    steps = [WorkflowStep(f"s{n}", act(f"s{n}"), pool=pool) for n in range(10)]
    urgent = WorkflowStep("urgent", act("urgent"), pool=pool, priority=-1 + 2)

    await run_pipeline([*steps, urgent])

    assert order.index("urgent") == 1


async def test_runs_take_turns_within_a_priority():
    pool, order = Pool(1), []

    def steps(run):
        async def act():
            order.append(run)
            await asyncio.sleep(1)

        return [WorkflowStep(f"{run}{n}", act, pool=pool, priority=5) for n in range(3)]

    await asyncio.gather(run_pipeline(steps("x")), run_pipeline(steps("y")))

    assert order == list("xyxyxy")


# Items join the line only when the task of their step adds them.


def mapped(name, source, act, **options):
    return WorkflowStep(name, act, {"number": source}, map_over=source, **options)


def noting(log, name, takes=1.0):
    async def act(number):
        log.append(name)
        await asyncio.sleep(takes)
        return number

    return act


@pytest.mark.long_time
@pytest.mark.parametrize(("size", "count"), [(1, 3), (2, 210), (4, 12)])
@pytest.mark.parametrize("is_one_run", [True, False])
@pytest.mark.parametrize("options", [{}, {"max_concurrency": 200}], ids=str)
async def test_urgent_items_leave_no_slot_to_others(size, count, is_one_run, options):
    pool, log = Pool(size), []

    def steps(name, priority):
        source = WorkflowStep(f"{name} items", lambda: asyncio.sleep(0, [*range(count)]))
        act = noting(log, name)
        return [source, mapped(name, source.name, act, pool=pool, priority=priority)]

    urgent, other = steps("urgent", 1), steps("other", 0)

    runs = [urgent + other] if is_one_run else [urgent, other]
    await asyncio.gather(*(run_pipeline(each, **options) for each in runs))

    assert log == ["urgent"] * count + ["other"] * count
    assert (pool.in_use, pool.waiting) == (0, 0)


@pytest.mark.parametrize("priority", [0, 1])
async def test_those_whose_slots_come_together_get_the_places_of_the_run_in_the_order_of_the_line(
    priority,
):
    pool, log = Pool(3), []

    async def act(number):
        log.append(number)
        if number == 0:
            await asyncio.sleep(4)

    items = WorkflowStep("items", lambda: asyncio.sleep(0, [*range(6)]))
    last = mapped("last", "items", act, pool=pool, priority=priority)
    first = WorkflowStep("first", lambda: asyncio.sleep(2), pool=pool)
    report = await run_pipeline([first, items, last], schedule="ready", max_concurrency=2)

    assert report.all_passed
    assert log == [*range(6)]


RISING = (0, 1, 2)


@pytest.mark.long_time
@pytest.mark.parametrize(
    ("priorities", "is_random"),
    [(RISING, True), *((each, False) for each in itertools.permutations(RISING))],
)
@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("is_asked", [False, True])
async def test_priorities_hold_along_a_chain_of_items_as_along_chains_of_steps(
    priorities, is_random, size, is_asked
):
    pool, chance, count, names = Pool(size), random.Random(size), 12, "abc"
    takes = {
        (name, n): chance.uniform(0.5, 1.5) if is_random else {"a": 1, "b": 0.7, "c": 1.2}[name]
        for n in range(count)
        for name in names
    }
    # What calls functions of the user is started a turn later.
    options = {"pool": pool, "slots": lambda: 1} if is_asked else {"pool": pool}

    def work(name, n=None):
        async def act(number=n):
            await asyncio.sleep(takes[name, number])
            return number

        return act

    chained = [WorkflowStep("items", lambda: asyncio.sleep(0, [*range(count)]))]
    for source, name, priority in zip(("items", *names), names, priorities, strict=False):
        chained.append(mapped(name, source, work(name), priority=priority, **options))
    plain = [
        WorkflowStep(
            f"{name}{n}",
            work(name, n),
            [f"{names[at - 1]}{n}"] if at else [],
            priority=priorities[at],
            **options,
        )
        for n in range(count)
        for at, name in enumerate(names)
    ]

    of_items = await run_pipeline(chained, schedule="ready")
    of_steps = await run_pipeline(plain, schedule="ready")

    items = {f"{name}{item.item}": item for name in names for item in of_items[name].items}
    starts = {name: item.started_ms for name, item in items.items()}
    expected = {result.step_name: result.started_ms for result in of_steps.results}
    if is_random:
        assert starts == pytest.approx(expected)
    for name in names:  # of those that end in the same moment, the loop decides which is first
        of_name = [sorted(at[f"{name}{n}"] for n in range(count)) for at in (starts, expected)]
        assert of_name[0] == pytest.approx(of_name[1])


async def test_what_follows_the_last_item_joins_the_line_before_its_slot_is_offered():
    pool, log = Pool(2), []

    def act(name):
        async def action():
            log.append(name)
            await asyncio.sleep(1)

        return action

    steps = [
        numbers(1, 2),
        mapped("items", "numbers", noting(log, "item"), pool=pool, priority=1),
        WorkflowStep("later", lambda: asyncio.sleep(0.5)),
        *(WorkflowStep(f"other{n}", act("other"), ["later"], pool=pool) for n in range(3)),
        WorkflowStep("after", act("after"), ["items"], pool=pool, priority=2),
    ]

    await run_pipeline(steps, schedule="ready")

    assert log == ["item", "item", "after", "other", "other", "other"]


@pytest.mark.parametrize("pauses", [0, 3])
async def test_a_source_that_lets_others_wait_for_items_keeps_no_slot(pauses):
    pool, log, gate = Pool(1), [], asyncio.Event()

    async def source():
        async def items():
            for n in range(2):
                yield n
                for _ in range(pauses):
                    await asyncio.sleep(0)
            await gate.wait()

        return items()

    async def other(number):
        log.append("other")
        gate.set()

    steps = [
        WorkflowStep("source", source),
        numbers(1),
        mapped("urgent", "source", noting(log, "urgent"), pool=pool, priority=1),
        mapped("last", "numbers", other, pool=pool),
    ]

    await run_pipeline(steps, schedule="ready")

    assert sorted(log) == ["other", "urgent", "urgent"]
    if not pauses:
        assert log[-1] == "other"
    assert (pool.in_use, pool.waiting) == (0, 0)


# Retries.


def failing(pool, count, attempts=2, **options):
    async def ask(numbers):
        if numbers >= count:
            return numbers
        raise ValueError(numbers)

    return WorkflowStep(
        "ask", ask, ["numbers"], map_over="numbers", pool=pool, max_retries=attempts, **options
    )


async def test_a_retry_budget_bounds_the_retries_and_the_last_error_says_so():
    pool = Pool(1, retry_budget=0.1, name="api")

    steps = [numbers(*range(12)), failing(pool, 12)]
    report = await run_pipeline(steps, fail_fast=False)

    items = report["ask"].items
    assert [item.attempts for item in items] == [2] * 10 + [1] * 2
    assert items[11].error.__notes__[0] == ("not retried: the retry budget of pool 'api' is spent")
    assert pool.stats().retries_left == 0


async def test_successes_earn_retries():
    pool = Pool(1, retry_budget=0.5)
    for _ in range(10):
        pool._retries.spend()

    await run_pipeline([numbers(*range(6)), failing(pool, 0)])

    assert pool.stats().retries_left == pytest.approx(3)


async def test_a_failure_with_a_fallback_earns_no_retry():
    pool = Pool(1, retry_budget=0.5)

    report = await run_pipeline(
        [numbers(*range(12)), failing(pool, 12, fallback=lambda error: None)]
    )

    assert sum(item.attempts - 1 for item in report["ask"].items) == 10
    assert pool.stats().retries_left == 0


async def test_a_retry_at_a_named_time_spends_nothing():
    pool = Pool(1, retry_budget=0)
    for _ in range(10):
        pool._retries.spend()

    steps = [numbers(1), failing(pool, 9, 4, retry=Retry(on=lambda error: 10))]
    report = await run_pipeline(steps, fail_fast=False)

    assert report["ask"].items[0].attempts == 4
