"""Runs a case in a virtual-time loop of its own, and records what its actions did and saw."""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import sys
from asyncio import events as asyncio_events
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from itertools import count
from random import Random
from typing import Any

import anyio

from asyncflow import (
    JournalError,
    Orchestrator,
    Pool,
    Retry,
    RunReport,
    StepContext,
    WorkflowStep,
    current_step,
)
from asyncflow._core.running import scheduler
from asyncflow.events import AttemptStarted, Event, ThreadAbandoned
from asyncflow.testing._virtual_time import shuffle
from tests.explore import threads
from tests.explore.cases import (
    GIVEN,
    STREAM_WAITS,
    TICK_MS,
    Act,
    Fault,
    Flow,
    Items,
    PoolSpec,
    Step,
    dependencies_of,
    tiers_of,
)
from tests.explore.journals import Journal

__all__ = ["Call", "Exit", "Instead", "Pipeline", "World", "key_of"]

TICK_S = TICK_MS / 1000
_TOO_MANY_TURNS = 20_000
"""More turns than any run takes: the driver spins."""


_log = logging.getLogger("explored")
_log.setLevel(logging.INFO)


class Exit(BaseException):
    """Something that is not an `Exception`, and so ends the run."""


class Loop(asyncio.BaseEventLoop):
    """The smallest event loop: a virtual clock, no files, and hooks at the start of each turn."""

    def __init__(self, order: int | None = None) -> None:
        super().__init__()
        self._random = None if order is None else Random(order)
        self._selector = self
        self._clock_resolution = 1e-9
        self.now = 1_000.0  # as that of `VirtualTimeLoop`, and for the same reason
        self.turns = 0
        self.at_turn: dict[int, list[tuple[int, Callable[[], object]]]] = {}
        """What to call in which turn, and after how many callbacks."""
        self.complaints: list[dict[str, Any]] = []
        self.hangs = False

    def time(self) -> float:
        return self.now

    def select(self, timeout: float | None) -> tuple[()]:
        """Advance the clock to the next timer, where a selector would wait."""
        if timeout is None:
            self.hangs = True
            self.stop()
        elif timeout:
            self.now += timeout
        self.turns = turn = self.turns + 1
        if self._random is not None:
            shuffle(self, self._random)
        if turn in self.at_turn:
            for after, call in self.at_turn.pop(turn):
                handle = asyncio_events.Handle(call, (), self, None)
                self._ready.insert(after, handle)  # type: ignore[attr-defined]
        elif turn > _TOO_MANY_TURNS:
            self.hangs = True
            self.stop()
        return ()

    def _process_events(self, _: object) -> None:
        pass

    def _write_to_self(self) -> None:
        pass

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        self.complaints.append(context)

    def leftovers(self, known: list[asyncio.Task[None]]) -> list[object]:
        """Return what timers and tasks are pending, without those that are known."""
        scheduled = self._scheduled  # type: ignore[attr-defined]
        found: list[object] = [
            timer
            for timer in scheduled
            if not (timer._cancelled or _is_of_thread(timer._callback))  # one that was abandoned
        ]
        return found + [task for task in asyncio.all_tasks(self) if task not in known]


def _is_of_thread(callback: object) -> bool:
    return isinstance(getattr(callback, "__self__", None), threads.Turns)


class Call:
    """One call of an action."""

    __slots__ = (
        "arguments",
        "attempt",
        "beats",
        "began",
        "began_at",
        "began_turn",
        "cancels",
        "ended",
        "ended_at",
        "ended_turn",
        "error",
        "found",
        "item",
        "own",
        "remaining_ms",
        "results",
        "run",
        "said",
        "saved",
        "step",
        "streamed",
        "value",
        "was_abandoned",
    )

    def __init__(self, world: World, step: int, context: StepContext, arguments: Any) -> None:
        self.run = int(context.run_id)
        self.step = step
        self.item = context.item
        self.attempt = context.attempt
        self.arguments = arguments
        self.results = context.results
        self.remaining_ms = context.remaining_ms()
        self.began = len(world.log)
        self.began_at = world.loop.now
        self.began_turn = world.loop.turns
        self.cancels: list[tuple[float, int]] = []
        """When it received a `CancelledError`: the time and the turn."""
        self.own: list[float] = []
        """When it caused one itself."""
        self.beats: list[float] = []
        self.said: list[str] = []
        """The names of what it attached, and what it logged."""
        self.found = context.last_checkpoint
        self.saved: list[tuple[int, Any]] = []
        """Its checkpoints, each with its place in the log."""
        self.streamed: list[tuple[int, Any]] = []
        """What it has streamed, likewise."""
        self.was_abandoned = False
        self.ended = -1
        self.ended_at = -1.0
        self.ended_turn = -1
        self.value: Any = None
        self.error: BaseException | None = None

    @property
    def key(self) -> tuple[int, int | None]:
        return self.step, self.item


class World:
    """What happens in one simulated run, or in two that share pools.

    Attributes:
        log: The events in order: which run, the event, the turn, the time.
        calls: All calls of actions.
        strangers: When a third party has cancelled something.
        blocks: In which turns actions have blocked the loop, and for how many ticks.
        exits: What was raised that is no `Exception`.
        conditions: Of which steps the conditions were asked, and when.
        violations: What an action has seen that must not be.
        reports: What each run returned.
        raised: What each run raised.
        accepted: How many cancellations of the caller were accepted while the run went on.
        counts: What `cancelling()` of the caller said after the run.
    """

    def __init__(self, pipeline: Pipeline, loop: Loop, copies: int) -> None:
        self.pipeline = pipeline
        self.loop = loop
        self.log: list[tuple[int, Event, int, float]] = []
        self.calls: list[Call] = []
        self.strangers: list[float] = []
        self.blocks: list[tuple[int, int]] = []
        self.exits: list[BaseException] = []
        self.conditions: list[tuple[int, float]] = []
        self.violations: list[str] = []
        self.reports: list[RunReport | None] = [None] * copies
        self.raised: list[BaseException | None] = [None] * copies
        self.accepted = [0] * copies
        self.counts = [0] * copies
        self.scope_cancelled = False
        self.running = [0] * copies
        self.in_pool = [0] * len(pipeline.pools)
        self.of_key: list[Counter[str]] = [Counter() for _ in pipeline.pools]
        self.latest_start = [-1.0] * len(pipeline.pools)
        self.latest_tokens = [(-1.0, 0)] * len(pipeline.pools)
        """The latest start that took tokens, and how many."""
        self.numbers = [[(-1.0, spec)] for spec in pipeline.flow.pools]
        """The numbers of each pool, and since when it has them."""
        self.paused_until = [-1.0] * len(pipeline.pools)
        self.paused_at = [-1.0] * len(pipeline.pools)
        self.live: dict[tuple[int, int, int | None], Call] = {}
        self.in_threads = 0
        self.given: dict[int, Any] = {}
        """The input of each run, if it has one."""
        self.measured: list[tuple[int, int | None]] = []
        """The steps and items for which slots were computed."""
        self.resources = [""] * copies
        """What the resource of each run does: nothing, ``opens``, ``is open``, ``closes`` or ``is
        closed``."""
        self.opened_at = [-1.0] * copies
        self.resource_failed = [False] * copies
        self.streams = 0
        self.journal: Journal | None = None
        self.requests: list[int] = []
        """The places in the log at which the first run was cancelled through its journal."""
        self.callers: list[asyncio.Task[None]] = []
        self.unfinished = copies
        self.paying: set[tuple[Any, ...]] = set()
        """The calls by name whose functions run: the run, the step, the item, and the name."""
        self.paid: dict[tuple[Any, ...], int] = {}
        """The attempts whose calls have returned."""
        self.left: list[asyncio.Task[None]] = []
        """What attempts have left running, or may have."""

    def enter(self, step: int, arguments: dict[str, Any]) -> tuple[Call, StepContext]:
        context = current_step()
        call = Call(self, step, context, arguments)
        self.calls.append(call)
        flow, spec = self.pipeline.flow, self.pipeline.flow.steps[step]
        key = (call.run, step, call.item)
        if key in self.live:
            self.violations.append(f"two attempts of {key} overlap")
        self.live[key] = call
        if spec.resource and self.resources[call.run] != "is open":
            self.violations.append(f"{key} takes a resource that {self.resources[call.run]!r}")
        self.in_threads += spec.thread
        if self.in_threads > flow.threads:
            self.violations.append(f"{key} makes it more than {flow.threads} threads")
        self.running[call.run] += 1
        limit = flow.max_concurrency
        if limit is not None and self.running[call.run] > limit:
            self.violations.append(f"{key} makes it more than max_concurrency={limit}")
        if spec.pool is not None:
            self._enter_pool(spec.pool, spec, key)
            name, limit = key_of(spec, call.item), flow.pools[spec.pool].per_key
            self.of_key[spec.pool][name] += spec.slots
            if name and limit is not None and self.of_key[spec.pool][name] > limit:
                self.violations.append(f"{key} makes it more than {limit} slots of key {name!r}")
        if self.journal is not None and not any(
            type(event) is AttemptStarted
            and (event.step, event.item, event.attempt) == (spec.name, call.item, call.attempt)
            for event in reversed(self.journal.events_of(call.run))
        ):
            self.violations.append(f"{key} is called before its start is stored")
        return call, context

    def name_time(self, step: Step, error: BaseException) -> bool | float:
        """Answer as a service that names a time, which pauses its pool."""
        if step.named is None or not isinstance(error, ValueError):
            return True
        if step.pool is not None and self.pipeline.flow.pools[step.pool].pauses:
            until = self.loop.now + step.named * TICK_S
            self.paused_until[step.pool] = max(self.paused_until[step.pool], until)
            self.paused_at[step.pool] = self.loop.now
        return step.named * TICK_MS

    def _enter_pool(self, pool: int, spec: Step, key: object) -> None:
        may_be_late = spec.thread or self.journal is not None or bool(self.blocks)
        now, all_numbers = self.loop.now, self._numbers_of(pool, since_ever=may_be_late)
        size = max(numbers.size for numbers in all_numbers)
        self.in_pool[pool] += spec.slots
        if self.in_pool[pool] > max(size, spec.slots):
            self.violations.append(f"{key} makes it more than the pool of {size} has room for")
        if (spec.thread or self.journal is not None) and now == self.paused_at[pool]:
            return  # its attempt had started a turn or two before
        if now < self.paused_until[pool] - 1e-6 and sys.version_info >= (3, 12):
            self.violations.append(f"{key} starts although its pool is paused")
        if spec.tokens:
            token = min(numbers.tokens or 0 for numbers in all_numbers)
            since, tokens = self.latest_tokens[pool]
            if now < since + tokens * token * TICK_S - 1e-6 and not self.blocks:
                self.violations.append(f"{key} starts sooner than tokens_per_minute allows")
            self.latest_tokens[pool] = now, spec.tokens if token else 0
        interval = min(numbers.interval or 0 for numbers in all_numbers)
        is_early = now < self.latest_start[pool] + interval * TICK_S - 1e-6
        if is_early and not self.blocks:  # else both were due when the loop went on
            self.violations.append(f"{key} starts sooner than per_second allows")
        # A rate that is set counts from the next start, which this one may not be.
        self.latest_start[pool] = now if interval else -1.0

    def change(self, pool: int, numbers: PoolSpec) -> None:
        """Set the numbers of a pool, as an operator does."""
        before = self.numbers[pool][-1][1]
        if before.interval is None:
            self.latest_start[pool] = -1.0  # it counts from the next start
        if before.tokens is None:
            self.latest_tokens[pool] = -1.0, 0
        self.numbers[pool].append((self.loop.now, numbers))
        self.pipeline.set_numbers(pool, numbers)

    def _numbers_of(self, pool: int, *, since_ever: bool) -> list[PoolSpec]:
        """Return the numbers that a pool has, or has had at the present time."""
        changes = self.numbers[pool]
        ends = [at_s for at_s, _ in changes[1:]] + [math.inf]
        return [
            numbers
            for (_, numbers), end_s in zip(changes, ends, strict=True)
            if since_ever or end_s >= self.loop.now
        ]

    def size_at(self, pool: int, at_s: float) -> int:
        """Return how many slots a pool had at a time."""
        return next(
            numbers.size for since, numbers in reversed(self.numbers[pool]) if since <= at_s
        )

    def leave(self, call: Call) -> None:
        call.ended = len(self.log)
        call.ended_at = self.loop.now
        call.ended_turn = self.loop.turns
        self.live.pop((call.run, call.step, call.item), None)
        if not call.was_abandoned:
            self.running[call.run] -= 1
        spec = self.pipeline.flow.steps[call.step]
        self.in_threads -= spec.thread
        if spec.pool is not None:
            self.in_pool[spec.pool] -= spec.slots
            self.of_key[spec.pool][key_of(spec, call.item)] -= spec.slots

    def abandon(self, run: int, event: ThreadAbandoned) -> None:
        """Note that an attempt has ended whose thread has not."""
        call = self.live.get((run, self.pipeline.index[event.step], event.item))
        if call is not None:  # else it ends at the same time
            call.was_abandoned = True
            self.running[run] -= 1

    @asynccontextmanager
    async def resource(self, run: int) -> AsyncIterator[str]:
        """Open the resource of a run, and close it."""
        opens, closes = self.pipeline.flow.resource or (0, 0)
        if self.resources[run]:
            self.violations.append("a resource is opened twice")
        self.resources[run] = "opens"
        try:
            await asyncio.sleep(opens * TICK_S)
        except asyncio.CancelledError:
            self.resources[run] = "is closed"
            raise
        if self.pipeline.flow.resource_fails == "opens":
            self.resources[run], self.resource_failed[run] = "is closed", True
            raise ConnectionError("it is down")
        self.resources[run], self.opened_at[run] = "is open", self.loop.now
        try:
            yield f"resource {run}"
        finally:
            self.resources[run] = "closes"
            if self.running[run]:
                self.violations.append("a resource is closed before the last action has ended")
            try:
                await asyncio.sleep(closes * TICK_S)
            finally:
                self.resources[run] = "is closed"
            if self.pipeline.flow.resource_fails == "closes":
                self.resource_failed[run] = True
                raise ConnectionError("it is gone")

    def request(self) -> None:
        """Cancel the first run through its journal."""
        assert self.journal is not None
        session = self.journal.open_sessions.get("0")
        if session is not None and session.is_watched and session.failure is None:
            self.requests.append(len(self.log))
            session.cancel()

    def exit(self) -> BaseException:
        """Return what to raise that ends the run."""
        kinds = (Exit, KeyboardInterrupt, SystemExit)
        raised = kinds[len(self.exits) % 3](f"exit {len(self.exits)}")
        self.exits.append(raised)
        return raised

    def cancel_caller(self, run: int) -> None:
        caller = self.callers[run]
        if self.reports[run] is None and self.raised[run] is None and caller.cancel("from outside"):
            self.accepted[run] += 1

    def cancel_stranger(self, which: int) -> None:
        """Cancel the task of a step, as a third party can."""
        tasks = sorted(
            (
                task
                for task in asyncio.all_tasks(self.loop)
                if task not in self.callers and task.get_name().startswith(_RUN_TASKS)
            ),
            key=lambda task: task.get_name(),
        )
        if tasks and tasks[which % len(tasks)].cancel():
            self.strangers.append(self.loop.now)

    def forget(self) -> None:
        """Let go of all that refers back to here, so that nothing waits for the collector."""
        self.loop.at_turn.clear()
        self.loop._selector = None
        for call in self.calls:
            call.error = None
        for each in (self.log, self.calls, self.exits, self.reports, self.raised, self.callers):
            each.clear()  # type: ignore[attr-defined]


def key_of(spec: Step, item: int | None) -> str:
    """Return the key of a step or an item in its pool; empty for none."""
    if spec.key in ("by item", "raise"):
        return ("", "a", "b", "c")[(item or 0) % 4]
    return spec.key


_RUN_TASKS = "asyncflow:"


class _Iterable:
    """Items that are not known before."""

    def __init__(self, world: World, items: Items) -> None:
        self.world, self.items = world, items

    def __iter__(self) -> Iterator[int]:
        yield from range(self.items.count)
        self._break()

    def _break(self) -> None:
        match self.items.breaks:
            case "raise":
                raise OSError("the items break off")
            case "cancelled":
                raise asyncio.CancelledError("the items break off")
            case "exit":
                raise self.world.exit()


class _Iterator(_Iterable):
    """Items that come once."""

    def __init__(self, world: World, items: Items) -> None:
        super().__init__(world, items)
        self._rest = super().__iter__()

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        return next(self._rest)


class _Stream(_Iterable):
    """Items that come one by one."""

    async def __aiter__(self) -> AsyncIterator[int]:
        self.world.streams += 1
        try:
            for item in range(self.items.count):
                await asyncio.sleep(STREAM_WAITS * TICK_S if item == 1 else 0)
                yield item
            if self.items.breaks == "hang":
                await asyncio.get_running_loop().create_future()
            self._break()
        finally:
            self.world.streams -= 1


class Instead(list[Any]):
    """What a fallback returns: no items, if a step maps over it."""

    def __init__(self, error: Exception) -> None:
        self.error = error


def _no_fallback(error: Exception) -> None:
    raise KeyError("fallback")


class _Recorder:
    """An observer: writes the log of the world at hand, and wants log records if steps speak."""

    logs: int | None = None

    def __init__(self, pipeline: Pipeline, run: int) -> None:
        self._pipeline, self._run = pipeline, run
        self.logs = pipeline.logs

    def __call__(self, event: Event) -> None:
        world = self._pipeline.world
        world.log.append((self._run, event, world.loop.turns, world.loop.now))
        if type(event) is ThreadAbandoned:
            world.abandon(self._run, event)


class Pipeline:
    """The orchestrators of a flow, whose actions report to the world of the run at hand.

    Attributes:
        orchestrators: One for each of the runs that go on at once, which writes their log.
        dependencies: Those of each step.
        tiers: The number of each step's tier.
    """

    def __init__(self, flow: Flow) -> None:
        if not flow.durable and any(spec.caches for spec in flow.steps):
            raise ValueError("results are reused only where they are stored")
        if (flow.given is not None) != any(spec.maps == GIVEN for spec in flow.steps):
            raise ValueError("it has an input that no step takes, or none that one takes")
        self.flow = flow
        self.pools = [
            Pool(
                spec.size,
                per_second=_per(1, spec.interval),
                tokens_per_minute=_per(60, spec.tokens),
                retry_budget=None if spec.budget is None else 0,
                pauses=spec.pauses,
                per_key=spec.per_key,
                name=f"pool {number}",
                # In virtual time it is an ordinary one.
                shared=bool(number % 2) and spec.per_key is None,
            )
            for number, spec in enumerate(flow.pools)
        ]
        self.world: World
        self.index = {spec.name: number for number, spec in enumerate(flow.steps)}
        steps = [self._step(index, spec) for index, spec in enumerate(flow.steps)]
        self.logs = logging.INFO if any(spec.notes for spec in flow.steps) else None
        orchestrator = Orchestrator(
            steps,
            flow.fail_fast,
            name="explored" if flow.durable else "",
            schedule=flow.schedule,  # type: ignore[arg-type]
            max_concurrency=flow.max_concurrency,
            deadline_ms=_ms(flow.deadline),
        )
        self.orchestrators = [
            orchestrator.with_options(
                run_id=str(run),
                key=f"key {run}" if flow.durable else None,
                observers=[_Recorder(self, run)],
                **self._resources(run),
            )
            for run in range(flow.copies)
        ]
        self.has_threads = any(spec.thread for spec in flow.steps)
        self.dependencies = dependencies_of(flow.steps)
        self.tiers = tiers_of(self.dependencies)

    def set_numbers(self, pool: int, numbers: PoolSpec) -> None:
        """Set the numbers of a pool."""
        its = self.pools[pool]
        its.size = numbers.size
        its.per_second = _per(1, numbers.interval)
        its.tokens_per_minute = _per(60, numbers.tokens)

    def source_of(self, spec: Step) -> str:
        """Return the name of the step, or of the input, over which a step is mapped."""
        assert spec.maps is not None
        return "given" if spec.maps == GIVEN else self.flow.steps[spec.maps].name

    def _resources(self, run: int) -> dict[str, Any]:
        if not any(spec.resource for spec in self.flow.steps):
            return {}
        return {"resources": {"resource": lambda: self.world.resource(run)}}

    def _step(self, index: int, spec: Step) -> WorkflowStep:
        flow, options = self.flow, {}
        if spec.timeout is not None:
            options["timeout_ms"] = _ms(spec.timeout)
        if spec.refused or spec.doubling or spec.named is not None:
            options["retry"] = Retry(
                base_ms=spec.backoff * TICK_MS,
                factor=2 if spec.doubling else 1,
                max_ms=max(30_000, spec.backoff * TICK_MS),
                jitter=False,
                on=partial(self._name_time, spec) if spec.named is not None else Exception,
                until=_is_wanted if spec.refused else None,
            )
        elif spec.backoff:
            options["retry"] = spec.backoff * TICK_MS
        if spec.pool is not None:
            options["pool"], options["priority"] = self.pools[spec.pool], spec.priority
            options["slots"] = (lambda: spec.slots) if spec.asks else spec.slots
            if spec.measured:
                options["slots"] = self._measure(index, spec)
            options["tokens"] = spec.tokens or None
            options["pool_key"] = self._key(spec)
        if spec.maps is not None:
            options["map_over"] = self.source_of(spec)
            options["tolerated_failures"] = spec.tolerated
            options["keep_outputs"] = spec.keeps
        if spec.when:
            options["when"] = self._condition(index, spec.when)
        if spec.fallback:
            options["fallback"] = Instead if spec.fallback == "value" else _no_fallback
        if spec.caches:
            options["cache_ms"] = _ms(spec.caches)
        return WorkflowStep(
            spec.name,
            self._action_in_thread(index, spec) if spec.thread else self._action(index, spec),
            [flow.steps[need].name for need in spec.needs] + ["given"] * (spec.maps == GIVEN),
            max_retries=spec.retries,
            deadline_ms=_ms(spec.deadline),
            heartbeat_ms=_ms(spec.heartbeat),
            run_if=spec.run_if,
            runs_in="thread" if spec.thread else "loop",
            **options,
        )

    def _measure(self, index: int, spec: Step) -> Callable[..., int]:
        assert spec.pool is not None
        pool = self.pools[spec.pool]

        def measure(**arguments: Any) -> int:
            item = self._item_of(spec, arguments)
            self.world.measured.append((index, item))
            if item is None or item % 2:
                if spec.measured == "raise":
                    raise KeyError("slots")
                if spec.measured == "much":
                    return pool._largest_size + 1
            return spec.slots

        return measure

    def _item_of(self, spec: Step, arguments: dict[str, Any]) -> int | None:
        """Return the item for which a function of a step is called."""
        if spec.maps is None:
            return None
        value = arguments[self.source_of(spec)]
        return value if isinstance(value, int) else value[1]

    def _key(self, spec: Step) -> str | Callable[..., str | None] | None:
        if spec.key not in ("by item", "raise"):
            return spec.key or None

        def key(**arguments: Any) -> str | None:
            item = self._item_of(spec, arguments)
            if spec.key == "raise" and (item is None or item % 2):
                raise KeyError("pool_key")
            return key_of(spec, item) or None

        return key

    def _name_time(self, spec: Step, error: Exception) -> bool | float:
        return self.world.name_time(spec, error)

    def _condition(self, index: int, says: str) -> Callable[..., bool]:
        def condition(**outputs: Any) -> bool:
            world = self.world
            world.conditions.append((index, world.loop.now))
            if says == "raise":
                raise KeyError("condition")
            if says == "exit":
                raise world.exit()
            return says == "yes"

        return condition

    def _action(self, index: int, spec: Step) -> Callable[..., Awaitable[Any]]:
        acts = spec.acts
        last = len(acts) - 1

        async def action(**arguments: Any) -> Any:
            world = self.world
            call, context = world.enter(index, arguments)
            act = acts[min(context.attempt - 1 + (call.item or 0) % 3, last)]
            try:
                value = await _perform(world, call, context, act, spec)
                if value is not None:
                    value = _value(world, spec, call)
                call.value = value
                return value
            except BaseException as error:
                call.error = error
                raise
            finally:
                world.leave(call)

        async def action_with_resource(resource: str, **arguments: Any) -> Any:
            return await action(resource=resource, **arguments)

        return action_with_resource if spec.resource else action

    def _action_in_thread(self, index: int, spec: Step) -> Callable[..., Any]:
        acts = spec.acts
        last = len(acts) - 1

        def action(**arguments: Any) -> Any:
            world = self.world
            call, context = world.enter(index, arguments)
            act = acts[min(context.attempt - 1 + (call.item or 0) % 3, last)]
            try:
                _perform_in_thread(world, call, context, act, spec)
                call.value = _value(world, spec, call)
                return call.value
            except BaseException as error:
                call.error = error
                raise
            finally:
                world.leave(call)

        def action_with_resource(resource: str, **arguments: Any) -> Any:
            return action(resource=resource, **arguments)

        return action_with_resource if spec.resource else action

    def simulate(self, fault: Fault) -> World:
        """Run the pipeline once, with a disturbance."""
        flow, loop = self.flow, Loop(self.flow.order)
        world = self.world = World(self, loop, flow.copies)
        for at, (pool, spec) in enumerate(zip(self.pools, flow.pools, strict=True)):
            self.set_numbers(at, spec)
            pool._retries.left = float("inf") if spec.budget is None else spec.budget
        if flow.durable:
            world.journal = Journal(fault.fails_at, self.logs)
        scheduler._MOST_WAITING = flow.ahead
        if flow.eager and hasattr(asyncio, "eager_task_factory"):
            loop.set_task_factory(asyncio.eager_task_factory)
        world.callers = [
            asyncio.Task(_caller(world, run, fault), loop=loop, name=f"caller {run}")
            for run in range(flow.copies)
        ]
        for turn, after in fault.cancels:
            loop.at_turn.setdefault(turn + 2, []).append((after, lambda: world.cancel_caller(0)))
        for turn, which in fault.strangers:
            loop.at_turn.setdefault(turn + 2, []).append(
                (which, lambda which=which: world.cancel_stranger(which))  # type: ignore[misc]
            )
        for turn, after in fault.requests:
            loop.at_turn.setdefault(turn + 2, []).append((after, world.request))
        for turn, after, at, numbers in fault.changes:
            change = partial(world.change, at, numbers)
            loop.at_turn.setdefault(turn + 2, []).append((after, change))
        try:
            with threads.in_turns():
                loop.run_forever()
            if loop.hangs:
                world.violations.append("the run hangs")
            loop.set_task_factory(None)
        finally:
            loop.close()
        if loop.complaints:
            world.violations.append(f"the loop complains: {loop.complaints}")
        return world


async def _caller(world: World, run: int, fault: Fault) -> None:
    """Await one run, as the code of a user does."""
    loop, me = world.loop, world.callers[run]
    if world.pipeline.has_threads:
        limiter = anyio.to_thread.current_default_thread_limiter()
        limiter.total_tokens = world.pipeline.flow.threads
    orchestrator = world.pipeline.orchestrators[run]
    if world.journal is not None:
        orchestrator = orchestrator.with_options(journal=world.journal)
    if run:
        await asyncio.sleep(world.pipeline.flow.offset * TICK_S)
    elif fault.observer is not None:
        observers = [*orchestrator.observers, _observer(world, *fault.observer)]
        orchestrator = orchestrator.with_options(observers=observers)
    given = world.pipeline.flow.given
    if given is None:
        work = orchestrator.run()
    else:
        world.given[run] = _items(world, given)
        work = orchestrator.run(given=world.given[run])
    try:
        if run == 0 and fault.scope is not None:
            await _scoped(world, work, *fault.scope)
        else:
            world.reports[run] = await work
            if me.cancelling():  # at the last event: it arrives as soon as the caller waits
                await asyncio.sleep(0)
    except BaseException as error:
        world.raised[run] = error
    world.counts[run] = me.cancelling()
    while me.cancelling():
        me.uncancel()
    world.unfinished -= 1
    if not world.unfinished:
        if world.left:
            await _outlive_cancellation()
            await asyncio.gather(*world.left, return_exceptions=True)
        left = loop.leftovers(world.callers)
        if left:
            world.violations.append(f"after the run there is {left}")
        await _outlive_cancellation()
        while any(call.was_abandoned for call in world.live.values()):
            await asyncio.sleep(TICK_S)
        loop.stop()


async def _outlive_cancellation() -> None:
    """Let a cancellation arrive, which `uncancel` does not take back before Python 3.13."""
    with suppress(asyncio.CancelledError):
        await asyncio.sleep(0)


async def _scoped(world: World, work: Awaitable[RunReport], kind: str, ticks: int) -> None:
    loop = world.loop

    async def inner() -> None:
        try:
            world.reports[0] = await work
            if world.callers[0].cancelling():
                await asyncio.sleep(0)
        except BaseException as error:
            world.raised[0] = error
            raise

    def expire(cancel: Callable[[], object]) -> None:
        if world.reports[0] is None and world.raised[0] is None:
            world.scope_cancelled = True
            cancel()

    if kind == "anyio":
        with anyio.CancelScope() as scope:
            timer = loop.call_later(ticks * TICK_S, expire, scope.cancel)
            try:
                await inner()
            finally:
                timer.cancel()
        was_cancelled = isinstance(world.raised[0], asyncio.CancelledError)
        if scope.cancelled_caught != was_cancelled and not world.accepted[0]:
            world.violations.append("the scope of anyio has not caught its cancellation")
    else:
        with suppress(TimeoutError):
            async with asyncio.timeout(None) as limit:
                timer = loop.call_later(ticks * TICK_S, expire, lambda: limit.reschedule(loop.now))
                try:
                    await inner()
                finally:
                    timer.cancel()


def _observer(world: World, what: str, at: int) -> Callable[[Event], object]:
    numbers = count()

    def observe(event: Event) -> None:
        number = next(numbers)
        if number > at and not what.startswith("cancel "):
            world.violations.append("an observer is called again after it has raised")
        if number != at:
            return
        match what:
            case "raise":
                raise RuntimeError("observer")
            case "cancelled":
                raise asyncio.CancelledError("observer")
            case "exit":
                raise world.exit()
            case "cancel caller":
                world.cancel_caller(0)
            case _:
                task = asyncio.current_task()
                if task is world.callers[0]:
                    world.cancel_caller(0)
                elif task is not None and task.cancel():
                    world.strangers.append(world.loop.now)

    return observe


def _value(world: World, spec: Step, call: Call) -> Any:
    if call.attempt <= spec.refused:
        return _REFUSED
    if spec.items is None:
        return (spec.name, None, None) if spec.equal else (spec.name, call.item, call.attempt)
    return _items(world, spec.items)


def _items(world: World, items: Items) -> Any:
    match items.kind:
        case "list":
            return list(range(items.count))
        case "pairs":
            return [number // 2 for number in range(items.count)]
        case "iterable":
            return _Iterable(world, items)
        case "iterator":
            return _Iterator(world, items)
    return _Stream(world, items)


_REFUSED = ("refused",)


def _is_wanted(value: object) -> bool:
    return value is not _REFUSED


def _per(time_s: float, ticks: int | None) -> float | None:
    return None if ticks is None else time_s / (ticks * TICK_S)


def _ms(ticks: int | None) -> float | None:
    return None if ticks is None else ticks * TICK_MS


def _speak(world: World, call: Call, context: StepContext, spec: Step) -> None:
    for _ in range(spec.notes):
        call.beats.append(world.loop.now)  # a progress is a heartbeat too
        call.said.append(f"{call.attempt} {len(call.said)}")
        context.progress(len(call.said), 100)
        context.attach(call.said[-1], "text")
        _log.info(call.said[-1])
    _save(world, call, context, spec.saves)
    _stream(world, call, context, spec.streams)


def _stream(world: World, call: Call, context: StepContext, times: int) -> None:
    for _ in range(times):
        value = [call.step, call.item, call.attempt, len(call.streamed)]
        call.streamed.append((len(world.log), value))
        context.stream(value)


async def _pay(
    world: World, call: Call, context: StepContext, spec: Step, turn: int, wait: int
) -> None:
    """Wait as a call by name, or as several."""
    if spec.pays in {"in turn", "again"}:
        refusals = int(spec.pays == "again")
        await _pay_for(world, call, context, f"turn {turn}", wait, refusals)
    elif spec.pays == "at once":
        payments = [
            asyncio.create_task(_pay_for(world, call, context, f"turn {turn}", wait)),
            asyncio.create_task(_pay_for(world, call, context, f"beside {turn}", 1 - wait % 2)),
        ]
        world.left += payments  # `gather` awaits none of them when one has raised
        await asyncio.gather(*payments)
    else:
        left = _leave(world, call, context, spec, turn, wait)
        world.left.append(asyncio.create_task(left))
        await asyncio.sleep(wait * TICK_S)


async def _leave(
    world: World, call: Call, context: StepContext, spec: Step, turn: int, wait: int
) -> None:
    """Make a call that may outlive its attempt."""
    with suppress(RuntimeError, JournalError):  # its step has ended
        await _pay_for(world, call, context, f"turn {turn}", 2 * wait + 1)
    _stream(world, call, context, spec.streams)


async def _pay_for(
    world: World, call: Call, context: StepContext, name: str, wait: int, refusals: int = 0
) -> None:
    """Make a call, and again while its function refuses."""
    paid = call.run, call.step, call.item, name

    async def pay(is_refused: bool) -> tuple[Any, ...]:
        if paid in world.paid or paid in world.paying:
            world.violations.append(f"{paid} is paid again")
        world.paying.add(paid)
        try:
            await asyncio.sleep(wait * TICK_S)
        finally:
            world.paying.discard(paid)
        if is_refused:
            raise ConnectionRefusedError
        world.paid[paid] = call.attempt
        if world.journal is not None and world.live.get((call.run, *call.key)) is call:
            world.journal.must_store(str(call.run), (context.step_name, call.item), name)
        return (*paid, call.attempt)

    for _ in range(refusals):
        with suppress(ConnectionRefusedError):
            answered = await context.call(name, pay, True)
            break
    else:
        answered = await context.call(name, pay, False)
    expected = *paid, world.paid.get(paid)
    if answered != expected:
        world.violations.append(f"the call has returned {answered}, and not {expected}")


def _save(world: World, call: Call, context: StepContext, times: int) -> None:
    for _ in range(times):
        value = call.step, call.item, call.attempt, len(call.saved)
        call.saved.append((len(world.log), value))
        context.checkpoint(value)


async def _perform(world: World, call: Call, context: StepContext, act: Act, spec: Step) -> bool:
    """Do what the act says; return a true value where the action returns its output."""
    loop, own = world.loop, None
    _save(world, call, context, spec.saves - 1)
    try:
        if act.block:
            loop.now += act.block * TICK_S
            world.blocks.append((loop.turns, act.block))
        for turn, wait in enumerate(act.waits):
            _speak(world, call, context, spec)
            if spec.pays:
                await _pay(world, call, context, spec, turn, wait)
            else:
                await asyncio.sleep(wait * TICK_S)
            if spec.beats:
                call.beats.append(loop.now)
                context.heartbeat()
        match act.end:
            case "return":
                return True
            case "raise":
                raise ValueError("work")
            case "hang":
                await loop.create_future()
            case "exit":
                raise world.exit()
            case "cancelled":
                own = asyncio.CancelledError("own")
                raise own
            case "timeout error":
                raise TimeoutError("its own")
            case "await a cancelled future":
                future = loop.create_future()
                loop.call_soon(future.cancel)
                call.own.append(loop.now)
                await future
            case _:
                task = asyncio.current_task()
                assert task is not None
                call.own.append(loop.now)
                task.cancel()
                if act.end == "cancel itself and wait":
                    await asyncio.sleep(0)
        return True
    except asyncio.CancelledError as cancellation:
        if cancellation is own:
            raise
        call.cancels.append((loop.now, loop.turns))
        try:
            for wait in act.clean:
                await asyncio.sleep(wait * TICK_S)
        except asyncio.CancelledError:
            call.cancels.append((loop.now, loop.turns))
            if act.on_cancel not in ("return", "go on"):
                raise
        match act.on_cancel:
            case "return":
                return True
            case "raise":
                raise OSError("clean-up") from None
            case "exit":
                raise world.exit() from None
            case "go on":
                try:
                    await asyncio.sleep(2 * TICK_S)
                except asyncio.CancelledError:
                    call.cancels.append((loop.now, loop.turns))
                    raise
                return True
        raise


def _perform_in_thread(
    world: World, call: Call, context: StepContext, act: Act, spec: Step
) -> None:
    """Do in a thread what the act says; return where the action returns its output."""
    _save(world, call, context, spec.saves - 1)
    for wait in act.waits:
        _speak(world, call, context, spec)
        if not _rests(wait, world, context, act):
            return
        if spec.beats:
            call.beats.append(world.loop.now)
            context.heartbeat()
    match act.end:
        case "raise":
            raise ValueError("work")
        case "hang":
            for doubled in range(13):  # longer than the default of timeout_ms
                if not _rests(2**doubled, world, context, act):
                    return
        case "exit":
            raise world.exit()
        case "cancelled":
            raise asyncio.CancelledError("own")
        case "timeout error":
            raise TimeoutError("its own")


def _rests(ticks: int, world: World, context: StepContext, act: Act) -> bool:
    """Let a thread sleep; return False if it was asked to stop and returns."""
    threads.rest(ticks * TICK_S)
    if not context.cancel_requested or act.on_cancel == "go on":
        return True
    for wait in act.clean:
        threads.rest(wait * TICK_S)
    match act.on_cancel:
        case "return":
            return False
        case "raise":
            raise OSError("clean-up")
        case "exit":
            raise world.exit()
    raise asyncio.CancelledError("obeyed")


gc.freeze()
