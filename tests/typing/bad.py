"""What type checkers must refuse. It is checked, and never run.

Each line that ends with a mark must be refused, by both checkers, and no other line may be. The
mark gives the code of mypy's error.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Literal

from asyncflow import (
    Options,
    Orchestrator,
    Pipeline,
    Pool,
    Retry,
    RunReport,
    StepPolicies,
    StepResult,
    WorkflowStep,
    after,
    collect,
    each,
    run_pipeline,
)
from asyncflow.events import Event, StepSkipped
from asyncflow.journal import SQLiteJournal
from asyncflow.testing import (
    Faults,
    assert_order,
    crash_everywhere,
    explore,
    fails,
    fake,
    run_in_virtual_time,
    simulate,
    step_context,
)


async def extract() -> int:
    return 1


def plain() -> int:
    return 1


async def rows() -> AsyncIterator[int]:
    yield 1


step = WorkflowStep("extract", extract)

# What is no action, or none for the event loop.
WorkflowStep("plain", plain)  # E: arg-type
WorkflowStep("generator", rows)  # E: arg-type
WorkflowStep("object", extract())  # E: call-overload
WorkflowStep("name", "extract")  # E: call-overload
WorkflowStep("nothing", None)  # E: call-overload
WorkflowStep("missing")  # E: call-overload

# What is no name, and what are no dependencies.
WorkflowStep(1, extract)  # E: call-overload
WorkflowStep("load", extract, [1])  # E: list-item
WorkflowStep("load", extract, [step])  # E: list-item
WorkflowStep("load", extract, None)  # E: call-overload

# What options do not take.
WorkflowStep("load", extract, (), 3)  # E: call-overload
WorkflowStep("load", extract, max_retries=None)  # E: call-overload
WorkflowStep("load", extract, max_retries=1.5)  # E: call-overload
WorkflowStep("load", extract, ["rows"], map_over="rows", tolerated_failures="1")  # E: call-overload
WorkflowStep("load", extract, ["rows"], map_over="rows", keep_outputs=1)  # E: call-overload
WorkflowStep("load", extract, timeout_ms="1s")  # E: call-overload
WorkflowStep("load", extract, retry=None)  # E: call-overload
WorkflowStep("load", extract, retries=3)  # E: call-overload
WorkflowStep("load", extract, retry=[100])  # E: call-overload
WorkflowStep("load", extract, deadline_ms="1s")  # E: call-overload
WorkflowStep("load", extract, heartbeat_ms="1s")  # E: call-overload
WorkflowStep("load", extract, cache_ms="1h")  # E: call-overload
WorkflowStep("load", extract, pool=3)  # E: call-overload
WorkflowStep("load", extract, pool="openai")  # E: call-overload
WorkflowStep("load", extract, pool=Pool(3), slots="2")  # E: call-overload
WorkflowStep("load", extract, pool=Pool(3), tokens=str)  # E: arg-type
WorkflowStep("load", extract, pool=Pool(3), priority=0.5)  # E: call-overload
WorkflowStep("load", extract, when=True)  # E: call-overload
WorkflowStep("load", extract, run_if="failed")  # E: call-overload
WorkflowStep("load", extract, run_if=True)  # E: call-overload
WorkflowStep("load", plain, runs_in="loop")  # E: call-overload
WorkflowStep("load", plain, runs_in="threads")  # E: call-overload
WorkflowStep("load", plain, runs_in=None)  # E: call-overload
WorkflowStep("load", extract, ["rows"], map_over=["rows"])  # E: call-overload
WorkflowStep("load", extract, ["rows"], map_over=extract)  # E: call-overload


def in_words(error: Exception) -> str:
    return "soon"


# What policies do not take.
Retry(100)  # E: call-arg
Retry(base_ms="1s")  # E: arg-type
Retry(jitter=None)  # E: arg-type
Retry(on=OSError())  # E: arg-type
Retry(on=KeyboardInterrupt)  # E: arg-type
Retry(on=[OSError, ValueError])  # E: arg-type
Retry(on=in_words)  # E: arg-type
Retry(until=True)  # E: arg-type
Retry(random=7)  # E: arg-type
Retry(attempts=3)  # E: call-arg
Pool()  # E: call-arg
Pool("3")  # E: arg-type
Pool(3, 5)  # E: call-arg
Pool(3, per_second="5")  # E: arg-type

# What cannot be changed.
step.name = "other"  # E: misc
step.pool = Pool(3)  # E: misc
Retry().base_ms = 5  # E: misc
Pool(3).in_use = 2  # E: misc


def keep(result: StepResult, event: StepSkipped, report: RunReport) -> None:
    result.attempts = 2  # E: misc
    event.reason = "other"  # E: misc
    report["a"] = result  # E: index
    report.results = []  # E: misc
    print(result.no_such_thing)  # E: attr-defined
    result.items[0]  # E: index
    result.items = ()  # E: misc
    result.abandoned = True  # E: misc
    report.critical_path()  # E: operator
    report.critical_path = []  # E: misc
    report.to_mermaid(report)  # E: call-arg
    path: str = report.critical_path  # E: assignment
    print(path)


def watch(event: int) -> None: ...


async def main() -> None:
    await run_pipeline(step)  # E: arg-type
    await run_pipeline(["extract"])  # E: list-item
    await run_pipeline([step], schedule="fast")  # E: arg-type
    await run_pipeline([step], max_concurrency="3")  # E: arg-type
    await run_pipeline([step], inputs=["url"])  # E: arg-type
    await run_pipeline([step], observers=print)  # E: arg-type
    await run_pipeline([step], resources={"db": open})  # E: dict-item
    await run_pipeline([step], observers=[watch])  # E: list-item
    await run_pipeline([step], True, "ready")  # E: call-arg
    await run_pipeline([step], deadline_ms="1s")  # E: arg-type
    await run_pipeline([step], targets=[step])  # E: list-item
    await run_pipeline([step], targets=1)  # E: arg-type
    Orchestrator([step], inputs={})  # E: call-arg
    Orchestrator([step]).tiers()  # E: operator
    Orchestrator([step]).tiers = []  # E: misc
    await Orchestrator([step]).run({"url": 1})  # E: call-arg
    Orchestrator([step]).with_options(inputs={})  # E: call-arg
    Pipeline("etl").with_options(run_di="r1")  # E: call-arg
    Pipeline("etl").with_options(run_id=1)  # E: arg-type
    await Orchestrator([step]).start()  # E: misc
    Orchestrator([step]).start().results(step)  # E: arg-type
    await Orchestrator([step]).start().begin(1)  # E: arg-type
    Orchestrator([step]).with_options(schedule="soon")  # E: arg-type
    report: RunReport = run_pipeline([step])  # E: assignment
    print(report[1])  # E: index


def tell(event: Event) -> str:
    return event.step  # E: return-value


run_in_virtual_time(extract)  # E: arg-type


etl = Pipeline("etl")


@etl.step
async def names() -> list[str]:
    return ["a"]


@etl.step(runs_in="thread")
def number() -> int:
    return 1


@etl.step
async def length(name: str = each(names)) -> int:
    return len(name)


# Of an input, nothing says the type of its items.
async def many_names(name: str = each("names", "more")) -> None: ...  # E: call-overload
async def whole_input(names: str = after("names")) -> None: ...  # E: call-overload
async def collected_input(names: list[str] = collect("names")) -> None: ...  # E: call-overload


# What a step does not return.
async def wrong_element(rows: list[int] = after(names)) -> None: ...  # E: arg-type
async def wrong_type(rows: dict[str, int] = after(names)) -> None: ...  # E: arg-type
async def wrong_plain(text: str = after(number)) -> None: ...  # E: assignment
async def wrong_item(name: bytes = each(names)) -> None: ...  # E: assignment
async def not_iterable(digit: int = each(number)) -> None: ...  # E: arg-type
async def wrong_list(lengths: list[str] = collect(length)) -> None: ...  # E: arg-type
async def not_collected(lengths: list[int] = after(length)) -> None: ...  # E: arg-type
async def collected_whole(lengths: int = collect(length)) -> None: ...  # E: assignment
async def wrong_of_each(text: str = each(collect(length))) -> None: ...  # E: assignment


def or_nothing(error: Exception) -> str | None:
    return None


@etl.step(fallback=or_nothing)
async def page(name: str = each(names)) -> str:
    return name


@etl.step(fallback=lambda error: None, runs_in="thread")
def size() -> int:
    return 1


# What a signal never takes.
answered = etl.signal("answered", Literal["yes", "no"])


async def by_number(answer: int = after(answered)) -> None: ...  # E: assignment
async def other_answers(answer: Literal["maybe"] = after(answered)) -> None: ...  # E: arg-type


# What a step returns whose fallback returns something else.
async def only_pages(pages: list[str] = collect(page)) -> None: ...  # E: arg-type
async def only_size(size: int = after(size)) -> None: ...  # E: assignment


# What is no fallback.
WorkflowStep("load", extract, fallback=1)  # E: call-overload
WorkflowStep("load", extract, fallback=plain)  # E: arg-type
etl.step(fallback="nothing")  # E: call-overload

# What these do not take.
after("names")  # E: call-overload
after(names())  # E: call-overload
each(["a", 1], 2)  # E: call-overload
collect(etl)  # E: call-overload

# What is no pipeline, no step and no policy.
Pipeline()  # E: call-arg
Pipeline("etl", schedule="fast")  # E: arg-type
Pipeline("etl", deadline_ms="1s")  # E: arg-type
Pipeline("etl", step_options={"max_retries": "3"})  # E: arg-type
Pipeline("etl", step_options={"retries": 3})  # E: arg-type
Pipeline("etl", step_options=[])  # E: arg-type
etl.step("name")  # E: call-overload
etl.step(max_retries="3")  # E: call-overload
etl.step(retries=3)  # E: call-overload
etl.step(pool=3)  # E: call-overload
etl.step(run_if="failed")  # E: call-overload
etl.step(runs_in="threads")  # E: call-overload
etl.step(version=2)  # E: call-overload
Pipeline("etl", journal="runs.db")  # E: arg-type
etl.step(map_over=1)  # E: call-overload
etl.step(depends_on=[1])  # E: list-item
etl.include("inner")  # E: arg-type
etl.signal("approved")  # E: call-overload
etl.signal("approved", bool, pool=1)  # E: call-overload
misspelt: StepPolicies = {"retries": 3}  # E: typeddict-unknown-key
mistyped: StepPolicies = {"max_retries": "3"}  # E: typeddict-item
misspelt_option: Options = {"run_ids": "a"}  # E: typeddict-unknown-key
etl.include(length)  # E: arg-type


# What the decorator leaves as it is.
async def call() -> None:
    await length(3)  # E: arg-type
    await etl.run("https://example.org")  # E: call-arg
    total: str = await length("a")  # E: assignment
    print(total)


# What no pipeline of a test is, and no argument of what runs it.
def simulated() -> None:
    fake(extract, extract=1)  # E: arg-type
    fails("2")  # E: arg-type
    fails(2, "OSError")  # E: arg-type
    step_context(attempt="2")  # E: arg-type
    step_context(name="a")  # E: call-arg
    simulate(step)  # E: arg-type
    simulate(etl, seed="1")  # E: arg-type
    simulate(etl, faults=0.5)  # E: arg-type
    simulate(etl, ["url"])  # E: arg-type
    explore(etl, seeds=1.5)  # E: arg-type
    explore(etl, check=True)  # E: arg-type
    crash_everywhere(etl, SQLiteJournal("runs.db"))  # E: arg-type
    crash_everywhere(etl)  # E: call-arg
    assert_order({"a": 1}, "a")  # E: arg-type
    assert_order(simulate(etl), step)  # E: arg-type
    Faults(failing=0.5)  # E: call-arg
    Faults(fail="often")  # E: arg-type
