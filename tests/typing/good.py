"""What users write, and what type checkers must accept. It is checked, and never run."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import random
from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager, nullcontext
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, assert_type

from rich.console import Console
from starlette.applications import Starlette

from asyncflow import (
    Attempt,
    CyclicDependencyError,
    EventReader,
    Observer,
    ObserverFactory,
    Options,
    Orchestrator,
    Pipeline,
    Pool,
    RestoredError,
    RestoredOutput,
    ResultReader,
    Retry,
    RunCancelledError,
    RunHandle,
    RunOwner,
    RunProgress,
    RunReport,
    RunStatus,
    Segment,
    Signal,
    StepContext,
    StepPolicies,
    StepResult,
    StepStatus,
    StepTimeoutError,
    WorkflowStep,
    after,
    collect,
    current_step,
    each,
    parallel_groups,
    resume_all,
    retry_after,
    run_pipeline,
    topological_sort,
    web,
)
from asyncflow.events import (
    AttemptBegan,
    AttemptFailed,
    AttemptLocated,
    AttemptStarted,
    Event,
    EventsMissed,
    LoopBlocked,
    MapStarted,
    PoolPaused,
    ResultReused,
    RunFinished,
    RunInterrupted,
    RunResumed,
    RunStarted,
    RunTimedOut,
    SignalReceived,
    StepAttached,
    StepCalled,
    StepCancelled,
    StepFailed,
    StepLogged,
    StepProgressed,
    StepReused,
    StepSkipped,
    StepStreamed,
    StepSucceeded,
    StepWaiting,
    ThreadAbandoned,
)
from asyncflow.journal import (
    InputChange,
    RunComparison,
    RunPreview,
    RunRecord,
    SQLiteJournal,
    StepComparison,
    StoredEvent,
)
from asyncflow.live import LiveView
from asyncflow.testing import (
    Crashes,
    DirectCall,
    Exploration,
    FakeCall,
    Fakes,
    Faults,
    VirtualTimeLoop,
    assert_order,
    assert_overlap,
    crash_everywhere,
    explore,
    fails,
    fake,
    run_in_virtual_time,
    simulate,
    step_context,
)


async def extract() -> list[int]:
    return [1, 2]


async def transform(extract: list[int], *, factor: int = 2) -> list[int]:
    return [number * factor for number in extract]


async def load(table: Sequence[int], **others: object) -> None:
    assert table


class Loader:
    async def load(self, table: list[int]) -> None: ...

    async def __call__(self, table: list[int]) -> None: ...


def factory() -> asyncio.Task[int]:
    return asyncio.ensure_future(asyncio.sleep(0, 1))


def future() -> asyncio.Future[int]:
    return asyncio.get_running_loop().create_future()


class Job:
    def __await__(self) -> Any: ...


def job() -> Job:
    return Job()


accepted_actions = [
    WorkflowStep("function", extract),
    WorkflowStep("partial", functools.partial(transform, factor=3), ["extract"]),
    WorkflowStep("method", Loader().load, {"table": "extract"}),
    WorkflowStep("object", Loader(), {"table": "extract"}),
    WorkflowStep("lambda", lambda: extract()),
    WorkflowStep("task", factory),
    WorkflowStep("future", future),
    WorkflowStep("awaitable", job),
    WorkflowStep("sleep", asyncio.sleep),
]


def plain() -> int:
    return 1


accepted_in_threads = [
    WorkflowStep("thread", plain, runs_in="thread"),
    WorkflowStep("process", plain, runs_in="process"),
    WorkflowStep("lambda in a thread", lambda: 1, runs_in="thread"),
    WorkflowStep("class in a thread", Loader, runs_in="thread"),
    WorkflowStep("all", plain, ["a"], runs_in="thread", pool=Pool(2), max_retries=3, map_over="a"),
    WorkflowStep("said to be in the loop", extract, runs_in="loop"),
]

accepted_dependencies = [
    WorkflowStep("list", extract, ["a", "b"]),
    WorkflowStep("tuple", extract, depends_on=("a", "b")),
    WorkflowStep("set", extract, depends_on={"a", "b"}),
    WorkflowStep("generator", extract, depends_on=(name for name in "ab")),
    WorkflowStep("mapping", load, depends_on={"table": "transform"}),
    WorkflowStep("keys", extract, depends_on={"a": 1}.keys()),
]

accepted_options = [
    WorkflowStep("all", extract, max_retries=3, timeout_ms=1_000, retry=250),
    WorkflowStep("floats", extract, max_retries=2, timeout_ms=0.5, retry=0.5),
    WorkflowStep("no limit", extract, timeout_ms=None),
]


def is_busy(error: Exception) -> bool:
    return isinstance(error, OSError)


def retry_after_ms(error: Exception) -> bool | float:
    return getattr(error, "retry_after_ms", True)


def is_complete(output: list[int]) -> bool:
    return bool(output)


accepted_retries = [
    Retry(),
    Retry(base_ms=10, factor=1.5, max_ms=1_000, jitter=False),
    Retry(on=OSError),
    Retry(on=(OSError, ValueError)),
    Retry(on=is_busy),
    Retry(on=retry_after_ms),
    Retry(on=lambda error: "busy" in str(error)),
    Retry(until=is_complete),
    Retry(until=bool, random=random.Random(7).random),
]

openai = Pool(5, per_second=0.5, tokens_per_minute=600)
assert_type(openai, Pool)
assert_type(openai.size, int)
rate: float | None = openai.per_second
assert_type(openai.in_use, int)
assert_type(openai.waiting, int)


def is_wanted(extract: list[int], limit: int = 3) -> bool:
    return len(extract) < limit


accepted_policies = [
    WorkflowStep("retry", extract, max_retries=3, retry=Retry(on=OSError)),
    WorkflowStep("pool", extract, pool=openai),
    WorkflowStep("no pool", extract, pool=None),
    WorkflowStep("many", extract, pool=openai, slots=2, tokens=3.5, priority=-1),
    WorkflowStep("by data", extract, pool=openai, slots=lambda: 2, tokens=lambda: 0.5),
    WorkflowStep("named", extract, pool=openai, retry=Retry(on=retry_after)),
    WorkflowStep("when", load, ["extract"], when=is_wanted),
    WorkflowStep("when lambda", load, ["extract"], when=lambda extract: extract),
    WorkflowStep("clean-up", extract, run_if="always"),
    WorkflowStep("notify", extract, run_if="failure"),
    WorkflowStep("limits", extract, deadline_ms=5_000, heartbeat_ms=0.5),
    WorkflowStep("cached", extract, cache_ms=3_600_000, version="2"),
    WorkflowStep("no limits", extract, deadline_ms=None, heartbeat_ms=None),
    WorkflowStep("mapped", load, {"table": "pages"}, map_over="pages"),
    WorkflowStep("not mapped", load, map_over=None),
]

step = WorkflowStep("load", load, {"table": "transform"})
assert_type(step.retry, Retry)
assert_type(step.pool, Pool | None)
assert_type(step.map_over, str | None)
assert_type(step.deadline_ms, float | None)
assert_type(step.fallback, Callable[[Exception], Any] | None)
assert_type(step.run_if, Literal["success", "unless_failed", "failure", "always"])
assert_type(step.runs_in, Literal["loop", "thread", "process"])
assert_type(step.name, str)
assert_type(step.depends_on, tuple[str, ...])
assert_type(step.max_retries, int)
assert_type(step.timeout_ms, float | None)
assert_type(step.parameters, tuple[tuple[str, str], ...])
action: Callable[..., Awaitable[Any]] = step.action
replaced: WorkflowStep = dataclasses.replace(step, name="other", max_retries=2)
as_keys: set[WorkflowStep] = {step, replaced}

assert_type(topological_sort(accepted_actions), list[str])
assert_type(parallel_groups(iter(accepted_actions)), list[list[str]])


def watch(event: Event) -> None:
    if isinstance(event, RunStarted):
        assert_type(event.run_id, str)
        assert_type(event.dependencies, Mapping[str, tuple[str, ...]])
    elif isinstance(event, AttemptStarted):
        assert_type(event.attempt, int)
        assert_type(event.queued_ms, float)
        assert_type(event.item, int | None)
    elif isinstance(event, AttemptFailed):
        assert_type(event.error, BaseException)
        assert_type(event.retry_in_ms, float)
    elif isinstance(event, StepSucceeded):
        assert_type(event.output, Any)
    elif isinstance(event, StepFailed):
        assert_type(event.error, BaseException)
    elif isinstance(event, StepCancelled):
        assert_type(event.error, BaseException | None)
    elif isinstance(event, StepSkipped | RunInterrupted):
        assert_type(event.reason, str)
    elif isinstance(event, MapStarted):
        assert_type(event.item, None)
    elif isinstance(event, StepReused):
        assert_type(event.item, int | None)
    elif isinstance(event, RunResumed):
        assert_type(event.unfinished, Mapping[str, str])
    elif isinstance(event, ThreadAbandoned):
        assert_type(event.attempt, int)
    elif isinstance(event, LoopBlocked):
        assert_type(event.blocked_ms, float)
        assert_type(event.where, str)
    elif isinstance(event, PoolPaused):
        assert_type(event.until_ms, float)
    elif isinstance(event, RunTimedOut):
        assert_type(event.deadline_ms, float)
    elif isinstance(event, ResultReused):
        assert_type(event.origin, str)
    elif isinstance(event, StepLogged):
        assert_type(event.level, int)
    elif isinstance(event, StepProgressed):
        assert_type(event.total, float | None)
    elif isinstance(event, StepAttached):
        assert_type(event.data, bytes)
    elif isinstance(event, StepCalled):
        assert_type(event.duration_ms, float)
    elif isinstance(event, StepStreamed):
        assert_type(event.count, int)
    elif isinstance(event, AttemptBegan | AttemptLocated):
        assert_type(event.worker, str)
    elif isinstance(event, SignalReceived):
        assert_type(event.sent_by, str)
    elif isinstance(event, StepWaiting):
        assert_type(event.until, float | None)
    else:
        assert_type(event, RunFinished)
        assert_type(event.status, RunStatus)


class Recorder:
    def __init__(self) -> None:
        self.events: list[Event] = []

    def __call__(self, event: Event) -> int:
        self.events.append(event)
        return len(self.events)


events: list[Event] = []
observers: list[Observer] = [watch, Recorder(), events.append, print, lambda event: None]


class RecorderFactory:
    def for_run(self) -> Recorder:
        return Recorder()


factories: list[ObserverFactory] = [RecorderFactory()]
Orchestrator([], observers=[watch, *factories, RecorderFactory()])


async def main() -> None:
    report = await run_pipeline(accepted_actions)
    assert_type(report, RunReport)
    await run_pipeline(accepted_actions, False)
    await run_pipeline(
        (step for step in accepted_actions),
        fail_fast=True,
        schedule="ready",
        max_concurrency=3,
        deadline_ms=60_000,
        targets=["load"],
        inputs={"url": "https://example.org", "limit": 3},
        run_id="r1",
        observers=observers,
    )
    orchestrator = Orchestrator(accepted_actions, True, schedule="tiers", max_concurrency=None)
    limited = Orchestrator(accepted_actions, deadline_ms=None, targets=(n for n in ["load"]))
    varied = limited.with_options(
        fail_fast=False, schedule="ready", targets=None, observers=[watch]
    )
    assert_type(varied, Orchestrator)
    assert_type(varied.steps, list[WorkflowStep])
    assert_type(varied.dependencies, dict[str, tuple[str, ...]])
    assert_type(await varied.with_options(observers=[watch, RecorderFactory()]).run(), RunReport)
    await varied.with_options(resources={**varied.resources, "db": opened, "http": Client}).run()
    assert_type(limited.tiers, list[list[str]])
    assert_type(limited.execution_order, list[str])
    assert_type(limited.to_mermaid(), str)
    assert_type(await orchestrator.run(), RunReport)
    assert_type(await orchestrator.with_options(run_id=None).run(), RunReport)

    as_mapping: Mapping[str, StepResult] = report
    assert_type(report["load"], StepResult)
    assert_type(report.get("load"), StepResult | None)
    assert_type(report.get("load", 1), StepResult | int)
    assert_type(as_mapping.get("load"), StepResult | None)
    assert_type(list(report), list[str])
    assert_type(report.results, list[StepResult])
    assert_type(report.failed, list[StepResult])
    assert_type(report.all_passed, bool)
    assert_type(report.total_duration_ms, float)
    assert_type(report.span_ms, float)
    assert_type(report.segments, tuple[Segment, ...])
    assert_type(report.segments[0].ended_ms, float | None)
    assert_type(report.summary(), dict[str, int | float])
    assert_type(report.to_json(indent=2), str)
    assert_type(RunReport.from_json(b"{}"), RunReport)
    assert_type(report.critical_path, list[str])
    assert_type(report.to_mermaid(), str)
    assert_type(report.to_markdown(), str)
    assert_type(report.stop_reason, str | None)
    report.raise_for_failures()

    result = report["load"]
    assert_type(result.status, StepStatus)
    assert_type(result.output, Any)
    assert_type(result.error, BaseException | None)
    assert_type(result.reason, str | None)
    assert_type(result.started_ms, float | None)
    assert_type(result.history, tuple[Attempt, ...])
    assert_type(result.history[0].segment, int)
    assert_type(result.items, tuple[StepResult, ...] | None)
    for item in result.items or ():
        assert_type(item.step_name, str)
    assert_type(result.depends_on, tuple[str, ...])
    assert_type(result.queued_ms, float)
    assert_type(result.loop_blocked_ms, float)
    assert_type(result.abandoned, bool)
    assert_type(result.by_condition, bool)
    number: int = result.output
    status: str = result.status
    if result.status is StepStatus.FAILED and isinstance(result.error, StepTimeoutError):
        assert_type(result.error.timeout_ms, float)
    if isinstance(result.output, RestoredOutput):
        assert_type(result.output.text, str)
    if isinstance(result.error, RestoredError):
        assert_type(result.error.traceback, str)

    context = current_step()
    assert_type(context, StepContext)
    assert_type(context.attempt, int)
    assert_type(context.idempotency_key, str)
    assert_type(context.remaining_ms(), float | None)
    assert_type(context.item, int | None)
    assert_type(context.cancel_requested, bool)
    assert_type(context.results, Mapping[str, StepResult])
    context.heartbeat()

    try:
        topological_sort([])
    except CyclicDependencyError as error:
        assert_type(error.cycle, list[str])
    print(number, status)


assert_type(run_in_virtual_time(extract()), list[int])
assert_type(run_in_virtual_time(run_pipeline([]), debug=True), RunReport)
loop: asyncio.AbstractEventLoop = VirtualTimeLoop()


etl = Pipeline("etl")


@asynccontextmanager
async def opened() -> AsyncIterator[int]:
    yield 1


class Client:
    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass


Pipeline("p", resources={"db": opened, "http": Client, "shared": lambda: nullcontext(Client())})
Pipeline("d", step_options={"max_retries": 3, "retry": Retry(jitter=False), "runs_in": "thread"})
deep = Pipeline("deep", fail_fast=False, schedule="ready", max_concurrency=3, observers=[watch])


shared: StepPolicies = {"max_retries": 3, "retry": Retry(base_ms=10), "pool": Pool(2)}
Pipeline("shared", step_options=shared)
Pipeline("and more", step_options={**shared, "timeout_ms": None})
WorkflowStep("shared", extract, **shared)

of_night: Options = {"fail_fast": False, "on_wait": "stay"}
assert_type(deep.with_options(**of_night), Pipeline)
Orchestrator(accepted_actions).with_options(**of_night)


@dataclasses.dataclass
class Decision:
    by: str


decided = deep.signal(
    "decided", Decision, deadline_ms=1_000, default=Decision("nobody"), description="Send it?"
)
answered = deep.signal("answered", Literal["yes", "no"], deadline_ms=1_000, default="no")
changed = deep.signal(
    "changed", int | None, fallback=lambda error: None, deadline_ms=1, description=lambda a: f"{a}?"
)
assert_type(decided, Signal[Decision])
assert_type(answered, Signal[Literal["yes", "no"]])
assert_type(changed, Signal[int | None])
assert_type(after(answered), Literal["yes", "no"])
assert_type(Signal(bool), Signal[bool])
assert_type(Signal(Literal["a"]), Signal[Literal["a"]])


def declared(kind: Any) -> None:
    assert_type(deep.signal("any", kind), Signal[Any])


async def go_on(answer: Literal["yes", "no"] = after(answered)) -> None: ...


WorkflowStep("wait", Signal(Literal["yes", "no"]))


@etl.step
async def urls(start: str) -> list[str]:
    return [start]


def or_text(error: Exception) -> str | None:
    return str(error) or None


WorkflowStep("urls", urls, fallback=lambda error: [])
etl.step(urls, name="again", fallback=or_text)


@etl.step(fallback=lambda error: [])
async def no_urls() -> list[str]:
    return []


@etl.step(fallback=lambda error: b"", max_retries=2)
async def thumbnail(url: str = each(no_urls)) -> bytes:
    return url.encode()


@etl.step(fallback=or_text, runs_in="thread")
def title() -> str | None:
    return None


@etl.step(fallback=None)
async def read_pages(
    pages: list[bytes] = collect(thumbnail),
    titles: str | None = after(title),
    all_urls: list[str] = after(no_urls),
) -> int:
    return len(pages)


async def has_read(count: int = after(read_pages)) -> None:
    assert_type(await thumbnail("a"), bytes)
    assert_type(await no_urls(), list[str])
    assert_type(title(), str | None)


@etl.step(max_retries=3, timeout_ms=None, retry=Retry(base_ms=10), pool=Pool(2), name="pages")
async def page(url: str = each(urls), *, depth: int = 1) -> bytes:
    return url.encode() * depth


@etl.step(runs_in="thread")
def count(pages: list[bytes] = collect(page)) -> int:
    return len(pages)


@etl.step(tolerated_failures=0.01, keep_outputs=False)
async def size(page: bytes = each(collect(page))) -> int:
    return len(page)


@etl.step(tolerated_failures=2)
async def half(size: int = each(collect(size))) -> float:
    return size / 2


@etl.step(depends_on=[count, "urls", deep], run_if="always", when=lambda urls: bool(urls))
async def report(total: float = after(count), sizes: Sequence[int] = collect(size)) -> None: ...


@etl.step(depends_on={"total": count, "start": "urls", "inner": deep})
async def again(total: int, start: list[str], maybe: int | None = after(count)) -> None: ...


@etl.step(tolerated_failures=1)
async def of_input(repo: str = each("repos"), depth: int = each("urls")) -> bytes:
    assert_type(each("repos"), Any)
    return repo.encode() * depth


@etl.step
async def length_of_input(text: bytes = each(collect(of_input))) -> int:
    return len(text)


@etl.step(depends_on={"repo": "repos"}, map_over="repos")
async def mapped_over_input(repo: str) -> bytes:
    return repo.encode()


WorkflowStep("over input", of_input, {"repo": "repos"}, map_over="repos", keep_outputs=False)


@etl.step(depends_on={"urls": urls}, map_over=urls, deadline_ms=5, heartbeat_ms=0.5)
async def mapped(urls: str) -> None: ...


async def stream() -> AsyncIterable[int]:
    return generated()


async def streamed(number: int = each(stream)) -> None: ...


async def generated() -> AsyncIterator[int]:
    yield 1


def numbers() -> tuple[int, ...]:
    return (1, 2)


async def from_thread(number: int = each(numbers)) -> None: ...


async def from_pipeline(output: str = after(deep), item: int = each(deep)) -> None: ...


async def from_task(one: int = after(factory), two: int = after(future)) -> None: ...


assert_type(after(urls), list[str])
assert_type(after(count), int)
assert_type(after(factory), int)
assert_type(after(deep), Any)
assert_type(each(urls), str)
assert_type(each(numbers), int)
assert_type(each(stream), int)
assert_type(each(generated), int)
assert_type(each(deep), Any)
assert_type(collect(page), list[bytes])
assert_type(collect(count), list[int])
assert_type(each(collect(page)), bytes)
assert_type(each(collect(half)), float)
unchanged: Callable[[str], Coroutine[Any, Any, list[str]]] = etl.step(urls, name="again")
etl.step(Loader(), name="loader", depends_on={"table": urls})
etl.step(functools.partial(transform, factor=3), name="partial")
etl.include(deep)
etl.include(deep, name="other", depends_on={"rows": urls, "more": "count"})
assert_type(etl.name, str)
assert_type(etl.steps, list[WorkflowStep])
assert_type(topological_sort(etl), list[str])


async def run_it() -> None:
    assert_type(await etl.run(), RunReport)
    assert_type(await etl.run(start="https://example.org", self=1, run_id=2), RunReport)
    assert_type(await run_pipeline(etl, run_id="r1", inputs={"start": "a"}), RunReport)
    assert_type(await page("a", depth=2), bytes)
    assert_type(count([b""]), int)
    await Orchestrator(etl, fail_fast=False).run()


async def handled() -> None:
    run = etl.with_options(run_id="r1", journal=None, event_buffer=100).start(start="a", name=1)
    assert_type(run, RunHandle)
    async with run as entered:
        assert_type(entered, RunHandle)
        reader: EventReader = run.events()
        async for event in reader:
            assert_type(event, Event | EventsMissed)
        results: ResultReader = run.results("fetch")
        async for result in results:
            assert_type(result, StepResult)
        assert_type(run.run_id, str)
        assert_type(run.status, RunStatus)
        assert_type(run.progress, RunProgress)
        assert_type(run.progress.running, tuple[str, ...])
        run.cancel("enough")
        try:
            assert_type(await run.report(), RunReport)
        except RunCancelledError as error:
            assert_type(error.report, RunReport | None)
            assert_type(error.reason, str)
    async with asyncio.TaskGroup() as group:
        owner: RunOwner = group
        assert_type(await Orchestrator(etl).start().begin(group), RunHandle)
        (await etl.start().begin(owner)).detach()


async def durable() -> None:
    async with SQLiteJournal("runs.db", synchronous="NORMAL", lease_s=10) as journal:
        report = await run_pipeline(
            accepted_actions, journal=journal, run_id="r", on_active="wait", secret_inputs=["key"]
        )
        assert_type(report.reused, list[StepResult])
        assert_type(report["a"].rerun_reason, str | None)
        assert_type(await etl.orchestrator.with_options(journal=journal).run(), RunReport)
        assert_type(await journal.runs(status="FAILED", pipeline="etl"), list[RunRecord])
        await journal.runs("ORPHANED", limit=None)
        page = await journal.runs("FAILED", text="night", limit=10)
        await journal.runs(before=page[-1].place, since=datetime(2026, 1, 1))
        assert_type(page[0].duration_s, float | None)
        assert_type(page[0].span_s, float | None)
        assert_type(await journal.record("r"), RunRecord)
        assert_type(await journal.cancel("r"), bool)
        assert_type(await journal.events("r", after=3), list[StoredEvent])
        assert_type(await journal.report("r"), RunReport)
        preview = await etl.with_options(journal=journal).preview("r", rerun=True, from_="a")
        assert_type(preview, RunPreview)
        assert_type(preview["a"].decision, Literal["reused", "runs", "waits", "skipped", "missing"])
        assert_type(await journal.last_passed("r"), RunRecord | None)
        comparison = await journal.compare("r", "q")
        assert_type(comparison, RunComparison)
        assert_type(report.compare(report), RunComparison)
        assert_type(comparison.notable_steps, list[StepComparison])
        assert_type(comparison.inputs, tuple[InputChange, ...])
        assert_type(await resume_all(journal, [etl, deep.orchestrator]), list[RunReport])
        assert_type(await resume_all(journal, {"etl": accepted_actions}), list[RunReport])
        Pipeline("kept", journal=journal)
        WorkflowStep("a", extract, version="2", secret=True, max_crashes=0)
        pages = web.app(journal, pipelines={"etl": etl, "deep": deep.orchestrator}, token="x" * 16)
        assert_type(pages, Starlette)
        await web.serve(journal, host="::1", port=0, on_ready=print, allowed_hosts=["ops.example"])


async def watched() -> None:
    with LiveView(Console(stderr=True)) as view:
        assert_type(view, LiveView)
        await run_pipeline(accepted_actions, observers=[view, watch])


def simulated(tmp_path: Path) -> None:
    with fake(etl, extract=fails(2, OSError, then=[1]), load=lambda rows: None) as fakes:
        assert_type(fakes, Fakes)
        assert_type(fakes["load"].calls, list[FakeCall])
        assert_type(fakes["load"].calls[0].arguments, dict[str, Any])
    with step_context(attempt=2, remaining_ms=10) as said:
        assert_type(said, DirectCall)
        assert_type(said.heartbeats, int)
    faults = Faults(fail=0.2, cancel=0)
    report = simulate(etl, {"url": "u"}, seed=3, faults=faults, cancel_at=7)
    assert_type(report, RunReport)
    assert_order(report, "extract", "load")
    assert_overlap(report, "extract", "load")
    found = explore(accepted_actions, dict, seeds=[1, 2], check=lambda run: run.all_passed)
    assert_type(found, Exploration)
    assert_type(found.passed, int)
    crashes = crash_everywhere(
        etl.orchestrator, lambda: SQLiteJournal(tmp_path / "runs.db"), check=print, kill=True
    )
    assert_type(crashes, Crashes)
    assert_type(crashes.repeated, dict[str, int])
