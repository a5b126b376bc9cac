"""Resources of a run are opened before its first step, and closed after its last one, always."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import re
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from typing import Any

import anyio
import pytest
from fake_engine import FakeEngine
from freed import Held, Holding, without_collector
from memory_journal import MemoryJournal
from process_work import return_argument
from turn_counting import TurnCountingLoop

from asyncflow import (
    JournalError,
    Orchestrator,
    Pipeline,
    Pool,
    ResourceError,
    StepStatus,
    WorkflowStep,
    run_pipeline,
)
from asyncflow._kernel.asyncio_compat import is_closed_over, running_task
from asyncflow.events import Event, RunFinished, RunInterrupted
from asyncflow.testing import VirtualTimeLoop

pytestmark = pytest.mark.exact_time

Open = Callable[[], AbstractAsyncContextManager[Any]]


class Log(list[str]):
    """What happens, in order: to resources and in steps."""

    def resource(
        self,
        name: str,
        *,
        open_s: float = 0.0,
        close_s: float = 0.0,
        open_error: BaseException | None = None,
        close_error: BaseException | None = None,
    ) -> Open:
        """Return what opens a resource with this name as its value."""

        @asynccontextmanager
        async def resource() -> AsyncIterator[str]:
            self.append(f"open {name}")
            await asyncio.sleep(open_s)
            if open_error is not None:
                raise open_error
            try:
                yield name
            except BaseException as error:
                self.append(f"{name} is told {type(error).__name__}")
                raise
            finally:
                await asyncio.sleep(close_s)
                self.append(f"close {name}")
                if close_error is not None:
                    raise close_error

        return resource

    def step(self, name: str, *arguments: Any, takes_s: float = 0.0, **options: Any) -> Any:
        """Return a step that takes the resource ``db``."""

        async def action(db: str) -> str:
            self.append(f"{name} has {db}")
            try:
                await asyncio.sleep(takes_s)
            finally:
                self.append(f"{name} ends")
            return name

        return WorkflowStep(name, action, *arguments, **options)


@pytest.fixture
def log() -> Log:
    return Log()


async def fails(db: str) -> None:
    raise ValueError("no")


# What a run opens, and who receives it.


async def test_actions_conditions_items_and_included_steps_receive_resources(log: Log) -> None:
    asked: list[Any] = []

    def is_open(db: str, http: str) -> bool:
        asked.append((db, http))
        return True

    async def load(ids: int, db: str, ingest: list[str], http: str = "none") -> tuple[Any, ...]:
        return ids, db, ingest, http

    async def list_ids() -> list[int]:
        return [1, 2]

    inner, outer = (
        Pipeline("ingest"),
        Pipeline("outer", resources={"db": log.resource("db"), "http": log.resource("http")}),
    )
    inner.step(log.step("read").action, name="read")
    outer.step(list_ids)
    outer.include(inner)
    steps = {"ids": list_ids, "ingest": inner}
    outer.step(load, depends_on=steps, map_over=list_ids, when=is_open)

    report = await outer.run()

    report.raise_for_failures()
    assert report["load"].output == [(1, "db", "read", "http"), (2, "db", "read", "http")]
    assert asked == [("db", "http")]
    assert report.inputs == {}
    assert log == ["open db", "open http", "read has db", "read ends", "close http", "close db"]


async def test_a_resource_is_open_for_clean_up_steps_after_a_failure(log: Log) -> None:
    steps = [
        WorkflowStep("load", fails),
        log.step("next", ["load"]),
        log.step("undo", ["load"], run_if="failure"),
    ]

    report = await run_pipeline(steps, resources={"db": log.resource("db")})

    assert [report[name].status for name in report] == ["FAILED", "SKIPPED", "SUCCESS"]
    assert log == ["open db", "undo has db", "undo ends", "close db"]  # it is told of no error


async def test_a_run_opens_only_what_its_steps_take(log: Log) -> None:
    async def other(http: str) -> str:
        return http

    steps = [log.step("load"), WorkflowStep("other", other)]
    resources = {"db": log.resource("db"), "http": log.resource("http")}

    report = await run_pipeline(steps, targets=["other"], resources=resources)

    assert report["other"].output == "http"
    assert log == ["open http", "close http"]


@pytest.mark.parametrize("limit", [None, 1])
async def test_the_time_in_which_resources_open_is_no_wait_for_a_slot(
    log: Log, limit: int | None
) -> None:
    async def work(db: str) -> None:
        await asyncio.sleep(0.02)

    steps = [WorkflowStep(name, work, pool=Pool(1)) for name in ("first", "second")]
    steps.append(WorkflowStep("third", work, ["second"]))

    report = await run_pipeline(
        steps, resources={"db": log.resource("db", open_s=0.05)}, max_concurrency=limit
    )

    queued = [round(result.queued_ms) for result in report.results]
    assert queued == [0, 0 if limit is None else 20, 0]


async def test_a_nested_run_takes_what_its_parent_has_opened(log: Log) -> None:
    async def nested(db: str) -> Any:
        steps = [log.step("inner")]
        report = await run_pipeline(steps, resources={"db": lambda: nullcontext(db)})
        return report["inner"].output

    resources = {"db": log.resource("db")}
    report = await run_pipeline([WorkflowStep("nested", nested)], resources=resources)

    assert report["nested"].output == "inner"
    assert log == ["open db", "inner has db", "inner ends", "close db"]


# What is refused before anything runs.


async def test_a_resource_that_no_step_takes_is_refused(log: Log) -> None:
    pipeline = Orchestrator([log.step("load")], resources={"dbs": log.resource("dbs")})

    message = "no step takes a resource 'dbs' (did you mean 'db'?)"

    with pytest.raises(ValueError, match=re.escape(message)):
        await pipeline.run()

    assert log == []


async def test_an_input_of_the_same_name_is_refused(log: Log) -> None:
    with pytest.raises(ValueError, match="'db' is both an input and a resource"):
        await run_pipeline(
            [log.step("load")], inputs={"db": "x"}, resources={"db": log.resource("db")}
        )

    assert log == []


async def test_a_dependency_of_the_same_name_is_refused(log: Log) -> None:
    async def db() -> str:
        return "a step"

    steps = [WorkflowStep("db", db), log.step("load", ["db"])]

    with pytest.raises(ValueError, match="twice: by a dependency and by a resource of that name"):
        await run_pipeline(steps, resources={"db": log.resource("db")})

    assert log == []


async def test_a_step_in_another_process_can_receive_none(log: Log) -> None:
    step = WorkflowStep("load", return_argument, runs_in="process")

    with pytest.raises(
        ValueError, match="'load' runs in another process, to which its parameter 'value'"
    ):
        await run_pipeline([step], resources={"value": log.resource("value")})

    assert log == []


async def test_a_step_on_an_engine_can_receive_none(log: Log) -> None:
    engine, resources = FakeEngine(name="far"), {"db": log.resource("db")}
    message = "step 'a' runs on engine 'far', to which its parameter 'db' can't be sent: .*"
    message += 'give the step engine="local"'

    with pytest.raises(ValueError, match=message):
        await run_pipeline([log.step("a")], engine=engine, resources=resources)
    with pytest.raises(ValueError, match=message):
        await run_pipeline([log.step("a", engine=engine)], resources=resources)
    assert log == engine.calls == []

    async def far(a: str) -> str:
        return a

    steps = [log.step("a", engine="local"), WorkflowStep("far", far, ["a"])]
    report = await run_pipeline(steps, engine=engine, resources=resources)

    assert (report["far"].output, report["far"].engine) == ("a", "far")
    assert log[-1] == "close db"


async def test_a_missing_parameter_is_compared_with_the_names_of_resources(log: Log) -> None:
    async def action(dbs: str) -> None:
        pass

    steps = [WorkflowStep("wrong", action), log.step("load")]

    with pytest.raises(ValueError, match=r"nor a run input, nor a resource \(did you mean 'db'"):
        await run_pipeline(steps, resources={"db": log.resource("db")})


async def coroutine_function() -> str:
    return "pool"


async def generator_function() -> AsyncIterator[str]:
    yield "pool"


def with_parameters(dsn: str) -> Any:
    return nullcontext(dsn)


@pytest.mark.parametrize(
    ("resources", "message"),
    [
        ([("db", nullcontext)], "resources must be a mapping of parameter name"),
        ({1: nullcontext}, "the names of resources must be str, not int"),
        ({"db": nullcontext("pool")}, "'db' must be a function .* not nullcontext; to share"),
        ({"db": coroutine_function}, "'db' is an async function.*asynccontextmanager"),
        ({"db": generator_function}, "'db' is an async function.*asynccontextmanager"),
        ({"db": with_parameters}, "without arguments, but missing .* 'dsn'; .*partial"),
    ],
)
def test_what_opens_no_resource_is_refused(resources: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        Pipeline("p", resources=resources)
    with pytest.raises(TypeError, match=message):
        Orchestrator([], resources=resources)


def test_a_callable_without_a_signature_is_accepted() -> None:
    resources: Any = {"db": dict}

    assert Orchestrator([], resources=resources).resources == resources
    assert Pipeline("p", resources=resources).resources == resources


@pytest.mark.parametrize(
    ("returned", "hint"),
    [
        (coroutine_function, "coroutine, which is no async .*asynccontextmanager"),
        (lambda: contextlib.suppress(OSError), "suppress, which is no async .* within an async g"),
    ],
)
async def test_what_is_no_async_context_manager_fails_as_it_is_opened(
    log: Log, returned: Callable[[], Any], hint: str
) -> None:
    with pytest.raises(ResourceError, match=hint) as caught:
        await run_pipeline([log.step("load")], resources={"db": lambda: returned()})

    assert isinstance(caught.value.__cause__, TypeError)


# Opening fails, or is cut short.


async def test_a_resource_that_cannot_be_opened_fails_the_run_before_its_first_step(
    log: Log,
) -> None:
    refused, events = OSError("refused"), list[Event]()
    resources = {
        "db": log.resource("db"),
        "http": log.resource("http", open_error=refused),
        "s3": log.resource("s3"),
    }

    async def action(db: str, http: str, s3: str) -> None:
        raise AssertionError

    steps = [WorkflowStep("a", action), log.step("undo", run_if="always")]

    with pytest.raises(ResourceError) as caught:
        await run_pipeline(steps, resources=resources, observers=[events.append])

    failure = caught.value
    assert failure.resource == "http"
    assert str(failure) == "resource 'http' could not be opened: OSError: refused"
    assert failure.__cause__ is refused
    assert log == ["open db", "open http", "db is told OSError", "close db"]
    reason = "resource 'http' could not be opened: OSError"  # its message may have an address
    assert {result.reason for result in failure.report.skipped} == {reason}
    assert failure.report.status == "INTERRUPTED"
    interrupted = [e for e in events if isinstance(e, RunInterrupted)]
    assert [(e.cause, e.reason) for e in interrupted] == [("resource", reason)]
    assert isinstance(events[-1], RunFinished)
    assert events[-1].cause == "resource"


@pytest.mark.parametrize("again_s", [None, 0.0, 0.5])
async def test_a_cancellation_while_a_resource_opens_closes_what_is_open(
    log: Log, again_s: float | None
) -> None:
    resources = {"db": log.resource("db", close_s=1), "http": log.resource("http", open_s=60)}

    async def action(db: str, http: str) -> None:
        raise AssertionError

    task = asyncio.create_task(run_pipeline([WorkflowStep("a", action)], resources=resources))
    await asyncio.sleep(1)
    task.cancel("shutdown")
    if again_s is not None:
        await asyncio.sleep(again_s)
        task.cancel()

    with pytest.raises(asyncio.CancelledError, match="shutdown"):
        await task
    assert log == ["open db", "open http", "db is told CancelledError", "close db"]


async def test_what_swallows_the_cancellation_of_its_opening_is_closed(log: Log) -> None:
    @asynccontextmanager
    async def stubborn() -> AsyncIterator[str]:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(60)
        log.append("open")
        try:
            yield "late"
        finally:
            log.append("close")

    async def action(late: str, db: str) -> None:
        raise AssertionError

    resources = {"late": stubborn, "db": log.resource("db")}
    task = asyncio.create_task(run_pipeline([WorkflowStep("a", action)], resources=resources))
    await asyncio.sleep(1)
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task
    assert log == ["open", "close"]


async def test_what_fails_when_its_opening_is_cancelled_is_logged(
    log: Log, caplog: pytest.LogCaptureFixture
) -> None:
    @asynccontextmanager
    async def broken() -> AsyncIterator[str]:
        try:
            await asyncio.sleep(60)
        finally:
            raise OSError("half open")
        yield "never"

    task = asyncio.create_task(run_pipeline([log.step("a")], run_id="r", resources={"db": broken}))
    await asyncio.sleep(1)
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task
    assert caplog.messages == ["run 'r': resource 'db' could not be opened: OSError: half open"]
    assert caplog.records[0].exc_info is not None


async def test_the_deadline_of_the_run_cuts_an_opening_short(log: Log) -> None:
    resources = {"db": log.resource("db", open_s=60)}
    steps, events = [log.step("a"), log.step("undo", run_if="always")], list[Event]()
    start_s = asyncio.get_running_loop().time()

    with pytest.raises(ResourceError, match="not open before the run exceeded") as e:
        await run_pipeline(steps, resources=resources, deadline_ms=500, observers=[events.append])

    assert asyncio.get_running_loop().time() - start_s == pytest.approx(0.5)
    assert [result.status for result in e.value.report.results] == ["SKIPPED", "SKIPPED"]
    assert [e.cause for e in events if isinstance(e, RunInterrupted)] == ["deadline"]
    assert log == ["open db"]


@pytest.mark.parametrize("kind", [KeyboardInterrupt, GeneratorExit])
async def test_what_ends_the_program_while_a_resource_opens_leaves_the_run_as_it_is(
    log: Log, kind: type[BaseException]
) -> None:
    interrupt = kind()

    @asynccontextmanager
    async def at_once() -> AsyncIterator[str]:
        raise interrupt
        yield

    with pytest.raises(kind) as caught:
        await run_pipeline([log.step("a")], resources={"db": at_once})

    assert caught.value is interrupt
    assert log == []


# Closing, whatever happens.


@pytest.mark.parametrize("again_s", [None, 0.0, 0.5, 1.5])
async def test_a_cancelled_run_closes_its_resources_although_it_is_cancelled_again(
    log: Log, again_s: float | None
) -> None:
    async def action(db: str, http: str) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(1)
            log.append("clean")

    resources = {"db": log.resource("db", close_s=1), "http": log.resource("http", close_s=1)}
    start_s = asyncio.get_running_loop().time()
    task = asyncio.create_task(run_pipeline([WorkflowStep("a", action)], resources=resources))
    await asyncio.sleep(1)
    task.cancel("shutdown")
    if again_s is not None:
        await asyncio.sleep(again_s)
        task.cancel()

    with pytest.raises(asyncio.CancelledError, match="shutdown"):
        await task
    assert asyncio.get_running_loop().time() - start_s == pytest.approx(4)
    assert log[2:] == [
        "clean",
        *("http is told CancelledError", "close http", "db is told CancelledError", "close db"),
    ]


async def test_a_cancellation_while_resources_close_gets_through(log: Log) -> None:
    resources = {"db": log.resource("db", close_s=2)}
    task = asyncio.create_task(run_pipeline([log.step("a")], resources=resources))
    await asyncio.sleep(1)
    task.cancel()
    await asyncio.sleep(0.5)
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task
    assert log[-1] == "close db"


async def test_a_base_exception_of_a_step_is_told_to_resources_and_raised(log: Log) -> None:
    interrupt = KeyboardInterrupt()

    async def action(db: str) -> None:
        raise interrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        await run_pipeline([WorkflowStep("a", action)], resources={"db": log.resource("db")})

    assert caught.value is interrupt
    assert log == ["open db", "db is told KeyboardInterrupt", "close db"]


async def test_an_error_while_closing_keeps_the_report(log: Log) -> None:
    lost = OSError("lost")
    resources = {"db": log.resource("db"), "http": log.resource("http", close_error=lost)}

    async def action(db: str, http: str) -> str:
        return db + http

    with pytest.raises(ResourceError) as caught:
        await run_pipeline([WorkflowStep("a", action)], resources=resources)

    assert str(caught.value) == "resource 'http' failed while it closed: OSError: lost"
    assert caught.value.__cause__ is lost
    assert caught.value.report.all_passed
    assert caught.value.report.status == "PASSED"
    assert caught.value.report["a"].output == "dbhttp"
    assert log[2:] == ["close http", "db is told OSError", "close db"]


async def test_a_cancellation_precedes_an_error_while_closing(
    log: Log, caplog: pytest.LogCaptureFixture
) -> None:
    resources = {"db": log.resource("db", close_error=OSError("lost"))}
    task = asyncio.create_task(
        run_pipeline([log.step("a", takes_s=60)], run_id="r", resources=resources)
    )
    await asyncio.sleep(1)
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task
    assert caplog.messages == ["run 'r': resource 'db' failed while it closed: OSError: lost"]


@pytest.mark.parametrize("kind", [KeyboardInterrupt, GeneratorExit])
async def test_what_ends_the_program_while_a_resource_closes_is_raised_as_it_is(
    log: Log, kind: type[BaseException]
) -> None:
    interrupt = kind()
    resources = {"db": log.resource("db", close_error=interrupt)}

    with pytest.raises(kind) as caught:
        await run_pipeline([log.step("a")], resources=resources)

    assert caught.value is interrupt


def test_what_a_resource_raises_differs_from_the_end_of_its_coroutine_without_a_loop() -> None:
    async def is_closed() -> tuple[asyncio.Task[Any], bool]:
        task = running_task()
        return task, is_closed_over(task, GeneratorExit())

    task, is_closed_while_it_runs = asyncio.run(is_closed())

    assert not is_closed_while_it_runs
    assert is_closed_over(task, GeneratorExit())
    assert not is_closed_over(task, KeyboardInterrupt())


@pytest.mark.parametrize("slow", [{"open_s": 60}, {"close_s": 60}])
def test_a_loop_that_is_closed_over_a_resource_is_no_failure_of_it(
    log: Log,
    slow: dict[str, float],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)  # the task group can't abort
    # Its scopes would keep the tasks.
    monkeypatch.delitem(sys.modules, "anyio._backends._asyncio", raising=False)
    events: list[Event] = []

    def abandon() -> None:
        loop = VirtualTimeLoop()
        loop.set_exception_handler(lambda *_: None)
        pipeline = Orchestrator(
            [log.step("a")], resources={"db": log.resource("db", **slow)}, observers=[events.append]
        )
        loop.create_task(pipeline.run())
        loop.run_until_complete(asyncio.sleep(1))
        loop.close()

    abandon()
    gc.collect()

    assert not any(isinstance(event, RunInterrupted | RunFinished) for event in events)
    assert caplog.messages == []


async def test_a_resource_cannot_suppress_what_the_run_raises(log: Log) -> None:
    @asynccontextmanager
    async def suppressing() -> AsyncIterator[str]:
        with contextlib.suppress(BaseException):
            yield "db"

    task = asyncio.create_task(
        run_pipeline([log.step("a", takes_s=60)], resources={"db": suppressing})
    )
    await asyncio.sleep(1)
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_resource_that_raises_what_it_is_told_has_not_failed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Strict:
        async def __aenter__(self) -> str:
            return "db"

        async def __aexit__(self, kind: Any, raised: BaseException | None, trace: Any) -> None:
            if raised is not None:
                raise raised

    interrupt = KeyboardInterrupt()

    async def action(db: str) -> None:
        raise interrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        await run_pipeline([WorkflowStep("a", action)], resources={"db": Strict})

    assert caught.value is interrupt
    assert caplog.messages == []


# Scopes and task groups in resources.


async def test_a_task_group_in_a_resource_works_in_the_background(log: Log) -> None:
    @asynccontextmanager
    async def polled() -> AsyncIterator[list[float]]:
        seen: list[float] = []

        async def poll() -> None:
            while True:
                seen.append(asyncio.get_running_loop().time())
                await anyio.sleep(1)

        async with anyio.create_task_group() as group:
            group.start_soon(poll)
            yield seen
            group.cancel_scope.cancel()

    async def action(polls: list[float]) -> int:
        await asyncio.sleep(2.5)
        return len(polls)

    report = await run_pipeline([WorkflowStep("a", action)], resources={"polls": polled})

    assert report["a"].output == 3


@pytest.mark.parametrize("library", ["anyio", "asyncio"])
async def test_a_task_group_whose_task_fails_stops_the_run(log: Log, library: str) -> None:
    lost = OSError("lost")

    async def listen() -> None:
        await asyncio.sleep(1)
        raise lost

    @asynccontextmanager
    async def listening() -> AsyncIterator[str]:
        if library == "anyio":
            async with anyio.create_task_group() as group:
                group.start_soon(listen)
                yield "queue"
        else:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(listen())
                yield "queue"

    async def action(queue: str, db: str) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(1)
            log.append("clean")

    resources = {"queue": listening, "db": log.resource("db", close_s=1)}

    with pytest.raises(ResourceError) as caught:
        await run_pipeline([WorkflowStep("a", action)], resources=resources)

    assert caught.value.resource == "queue"
    assert "stopped the run: ExceptionGroup" in caught.value.problem
    assert isinstance(caught.value.__cause__, ExceptionGroup)
    assert caught.value.__cause__.exceptions == (lost,)
    assert caught.value.report["a"].status is StepStatus.CANCELLED
    assert log == ["open db", "clean", "db is told CancelledError", "close db"]
    assert asyncio.current_task().cancelling() == 0  # type: ignore[union-attr]


async def test_a_time_limit_in_a_resource_stops_the_run(log: Log) -> None:
    @asynccontextmanager
    async def limited() -> AsyncIterator[str]:
        async with asyncio.timeout(1):
            yield "db"

    start_s = asyncio.get_running_loop().time()
    with pytest.raises(ResourceError, match="'db' stopped the run: TimeoutError") as caught:
        await run_pipeline([log.step("a", takes_s=60)], resources={"db": limited})

    assert asyncio.get_running_loop().time() - start_s == pytest.approx(1)
    assert log == ["a has db", "a ends"]
    assert caught.value.report.stop_reason == "a resource has cancelled it"


async def test_a_cancel_scope_in_a_resource_stops_the_run(log: Log) -> None:
    @asynccontextmanager
    async def limited() -> AsyncIterator[str]:
        with anyio.move_on_after(1):
            yield "db"

    with pytest.raises(ResourceError, match=r"resource 'db' stopped the run$") as caught:
        await run_pipeline([log.step("a", takes_s=60)], resources={"db": limited})

    assert isinstance(caught.value.__cause__, asyncio.CancelledError)
    assert log == ["a has db", "a ends"]


async def test_resources_open_and_close_in_the_same_task(log: Log) -> None:
    tasks: list[Any] = []

    @asynccontextmanager
    async def resource() -> AsyncIterator[str]:
        tasks.append(asyncio.current_task())
        yield "db"
        tasks.append(asyncio.current_task())

    await run_pipeline([log.step("a")], run_id="r", resources={"db": resource})

    assert tasks[0] is tasks[1]
    assert tasks[0].get_name() == "asyncflow:r:resources"


# A third party cancels the task of the resources.


def task_of_resources() -> asyncio.Task[Any]:
    return next(t for t in asyncio.all_tasks() if t.get_name() == "asyncflow:r:resources")


@pytest.mark.parametrize(
    ("at_s", "problem"),
    [
        (0.5, "resource 'db' could not be opened: CancelledError"),
        (1.5, "the task of the resources was cancelled by a third party"),
        (2.5, "resource 'db' failed while it closed: CancelledError"),
    ],
)
async def test_a_third_party_that_cancels_the_resources_fails_the_run(
    log: Log, at_s: float, problem: str
) -> None:
    resources = {"db": log.resource("db", open_s=1, close_s=1)}
    run = asyncio.create_task(
        run_pipeline([log.step("a", takes_s=1)], run_id="r", resources=resources)
    )
    await asyncio.sleep(at_s)
    task_of_resources().cancel()

    with pytest.raises(ResourceError) as caught:
        await run

    assert str(caught.value) == problem


async def test_resources_that_a_third_party_cancels_before_their_first_line_fail_the_run(
    log: Log,
) -> None:
    loop = asyncio.get_running_loop()
    if loop.get_task_factory() is not None:
        pytest.skip("an eager task begins at once")

    def cancelling(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> Any:
        task: asyncio.Task[Any] = asyncio.Task(coroutine, loop=loop, **options)
        if coroutine.__name__ == "_hold":
            task.cancel()
        return task

    loop.set_task_factory(cancelling)
    try:
        with pytest.raises(ResourceError, match="was cancelled by a third party") as caught:
            await run_pipeline([log.step("a")], run_id="r", resources={"db": log.resource("db")})
    finally:
        loop.set_task_factory(None)

    assert caught.value.report["a"].status is StepStatus.SKIPPED
    assert log == []


async def test_what_takes_long_to_open_or_close_is_logged_with_its_line(
    log: Log, caplog: pytest.LogCaptureFixture
) -> None:
    resources = {"db": log.resource("db", open_s=6, close_s=6)}

    await run_pipeline([log.step("a")], run_id="r", resources=resources)

    lines = [re.sub(r"at .*test_resources\.py:\d+ in", "at", text) for text in caplog.messages]
    where = "Log.resource.<locals>.resource"
    assert lines == [
        f"resource 'db' is still {doing} after 5 s, at {where} (asyncflow:r:resources)"
        for doing in ("opening", "closing")
    ]


async def test_a_run_without_anyio_needs_no_scopes(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "anyio._backends._asyncio", raising=False)
    resources = {"db": log.resource("db"), "http": log.resource("http", open_error=OSError())}

    await run_pipeline([log.step("a")], resources={"db": resources["db"]})

    async def both(db: str, http: str) -> None:
        raise AssertionError

    with pytest.raises(ResourceError):
        await run_pipeline([WorkflowStep("both", both)], resources=resources)
    assert log[-1] == "close db"


async def test_a_journal_stores_neither_resources_nor_their_names(log: Log) -> None:
    journal = MemoryJournal()

    report = await run_pipeline(
        [log.step("a")], run_id="r", journal=journal, resources={"db": log.resource("secret pool")}
    )

    assert report.all_passed
    assert "db" not in str(journal.stored)
    assert "secret pool" not in str(journal.stored)


# With a journal.


async def test_a_step_that_takes_a_resource_now_keeps_its_result(log: Log) -> None:
    journal, ran = MemoryJournal(), list[str]()

    async def first() -> str:
        ran.append("first")
        return "first"

    async def first_now(db: str) -> str:
        ran.append(db)
        return db

    async def second(first: str) -> str:
        if not journal_is_ready:
            raise ValueError
        return first

    journal_is_ready = False
    steps = [WorkflowStep("first", first), WorkflowStep("second", second, ["first"])]
    await run_pipeline(steps, run_id="r", journal=journal)
    journal_is_ready = True
    steps[0] = WorkflowStep("first", first_now)
    resources = {"db": log.resource("db")}
    report = await run_pipeline(steps, run_id="r", journal=journal, resources=resources)

    assert report["second"].output == "first"
    assert ran == ["first"]
    assert log == []  # the only step that takes it had passed


async def test_a_resumed_or_rerun_run_opens_resources_anew_if_steps_need_them(log: Log) -> None:
    journal, fail = MemoryJournal(), True

    async def load(db: str) -> str:
        if fail:
            raise OSError
        return db

    resources = {"db": log.resource("db")}
    pipeline = Orchestrator([WorkflowStep("load", load)], journal=journal, resources=resources)
    await pipeline.with_options(run_id="r").run()
    fail = False
    await pipeline.with_options(run_id="r").run()
    passed = await pipeline.with_options(run_id="r").run()
    rerun = await pipeline.rerun("r", "f", from_="load")

    assert passed["load"].output == rerun["load"].output == "db"
    assert log == ["open db", "close db"] * 3


async def test_a_resource_takes_the_place_of_a_secret_input(log: Log) -> None:
    journal = MemoryJournal()
    await run_pipeline(
        [WorkflowStep("a", fails)],
        run_id="r",
        journal=journal,
        inputs={"db": "x"},
        secret_inputs=["db"],
    )

    report = await run_pipeline(
        [log.step("a")], run_id="r", journal=journal, resources={"db": log.resource("db")}
    )

    assert report["a"].output == "a"
    assert str(report.inputs["db"]) == "<secret>" or "redacted" in repr(report.inputs["db"])


async def test_resources_close_when_the_journal_fails(log: Log) -> None:
    journal = MemoryJournal(fail_at=3)
    resources = {"db": log.resource("db")}

    with pytest.raises(JournalError):
        await run_pipeline(
            [log.step("a", takes_s=1), log.step("b", ["a"])],
            run_id="r",
            journal=journal,
            resources=resources,
        )

    assert log[-1] == "close db"


# At any moment.


class AgainLoop(TurnCountingLoop):
    """Cancels the task once more, so many turns later."""

    def __init__(self, turn: int, eager: bool, later: int | None) -> None:
        super().__init__(turn, eager)
        self.later = later

    def _run_once(self) -> None:
        if self.later is not None and self.turns == self.turn + self.later and self.cancel_accepted:
            self.victim.cancel("again")
        super()._run_once()


@pytest.mark.parametrize("eager", [False, True])
@pytest.mark.parametrize("later", [None, 1, 4])
def test_a_cancellation_in_any_turn_leaves_nothing_open(
    eager: bool, later: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    for turn in itertools.count():
        log = Log()
        resources = {
            "db": log.resource("db", open_s=0.001, close_s=0.001),
            "http": log.resource("http", close_s=0.001),
        }

        async def action(db: str, http: str, log: Log = log) -> None:
            log.append("start")
            await asyncio.sleep(0.001)

        async def main(
            action: Any = action, resources: Any = resources, log: Log = log
        ) -> BaseException | None:
            steps = [WorkflowStep("a", action), log.step("undo", ["a"], run_if="always")]
            run = asyncio.create_task(run_pipeline(steps, resources=resources))
            loop = asyncio.get_running_loop()
            assert isinstance(loop, AgainLoop)
            loop.victim = run
            await asyncio.wait([run])
            assert asyncio.all_tasks() == {asyncio.current_task()}
            return None if run.cancelled() or run.exception() is None else run.exception()

        loop = AgainLoop(turn, eager, later)
        with asyncio.Runner(loop_factory=lambda loop=loop: loop) as runner:
            assert runner.run(main()) is None

        opened = [entry.split()[1] for entry in log if entry.startswith("open ")]
        closed = [entry.split()[1] for entry in log if entry.startswith("close ")]
        has_closed_all = closed == opened[::-1] or (
            loop.cancel_accepted and "start" not in log and closed == opened[-2::-1]
        )
        assert has_closed_all, (turn, log)
        assert loop.complaints == []
        assert caplog.messages == []
        if not loop.cancel_accepted:
            assert log[-2:] == ["close http", "close db"]
            return


# Nothing stays behind.


async def test_nothing_keeps_what_a_run_with_resources_held(
    log: Log, caplog: pytest.LogCaptureFixture
) -> None:
    pools = Holding()

    @asynccontextmanager
    async def resource() -> AsyncIterator[Held]:
        yield pools()

    async def failing(db: Held) -> None:
        raise ValueError

    with without_collector():
        for close_error in (None, OSError("lost")):
            resources = {"db": resource, "http": log.resource("http", close_error=close_error)}

            async def action(db: Held, http: str) -> None:
                pass

            del close_error
            with contextlib.suppress(ResourceError):
                await run_pipeline([WorkflowStep("a", action)], resources=resources)
            del resources
        task = asyncio.create_task(
            run_pipeline([WorkflowStep("a", failing)], resources={"db": resource})
        )
        await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        del task
        await asyncio.sleep(0)

        assert pools
        assert pools.alive() == []


async def test_without_a_collector_the_error_of_an_opening_frees_what_that_held() -> None:
    pools = Holding()

    @asynccontextmanager
    async def unreachable() -> AsyncIterator[Held]:
        pool = pools()
        raise OSError
        yield pool

    async def action(db: Held) -> None:
        pass

    with without_collector():
        with contextlib.suppress(ResourceError):
            await run_pipeline([WorkflowStep("a", action)], resources={"db": unreachable})

        assert pools
        assert pools.alive() == []
