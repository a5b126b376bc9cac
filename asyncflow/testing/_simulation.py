"""Simulated runs: attempts that misbehave, and cancellations anywhere, in an order of a seed.

Rules:

1. A seed decides about all that happens: the order of what is ready at the same time, the faults,
   the moment of a cancellation, and what `random` returns. So the same seed always makes the same
   run, as long as the actions themselves are deterministic. Pools begin anew for each.
2. The fault of an attempt follows from the seed, the step, the item and the attempt: it stays
   the same when other steps change.
3. Actions run in the event loop, also those for threads, processes and engines, whose order
   no seed decides.
4. Nothing is stored, and no observer of the pipeline is notified.
"""

from __future__ import annotations

import asyncio
import math
import random
import struct
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from hashlib import blake2b
from itertools import count
from random import Random
from typing import Any, Literal, NamedTuple, TypeAlias

from asyncflow._core.arguments import check_count, check_number, reject_awaitable
from asyncflow._core.errors import HangError
from asyncflow._core.history.replay import StoredRun
from asyncflow._core.history.report import RunReport
from asyncflow._core.history.results import RunStatus, StepResult, StepStatus
from asyncflow._core.history.stored_report import report_from
from asyncflow._core.pipeline.step import WorkflowStep
from asyncflow._core.record import record, show, values_by_name
from asyncflow._core.running.context import current_step
from asyncflow._core.text import duration, plural
from asyncflow._core.tracebacks import awaiting_location
from asyncflow._runtime.planned_pipeline import replacements
from asyncflow._views.event_text import describe_event
from asyncflow.events import Event
from asyncflow.testing._checks import Check, check_is_plain, failed_check
from asyncflow.testing._fresh_pools import fresh_pools
from asyncflow.testing._recorded_runs import unrecorded
from asyncflow.testing._stand_ins import AnyPipeline, orchestrator_of, replacement
from asyncflow.testing._virtual_time import VirtualTimeLoop, checked_seed

AnyInputs: TypeAlias = "Mapping[str, Any] | Callable[[], Mapping[str, Any]] | None"

_MOST_TURNS = 1_000_000
"""More turns of the event loop than a simulated run takes: it does not end."""
_LOOK_EVERY = 997
"""After how many turns a simulation looks whether attempts go on although they were cancelled. This
is a prime, so that not every look meets the same turn of what they repeat."""
_LONGEST_CLEANUP_S = 3_600.0
"""An attempt that goes on for longer after it was cancelled, in seconds, ignores that."""
_LAST_TURNS = 10_000
"""How many turns tasks have to end when a simulation has given up."""
_MOST_LINES = 200
"""How many lines of its event log an error shows at most."""
_SWALLOWED_S = 60.0
"""The longest that an attempt runs on after it swallowed its cancellation, in seconds."""


class SimulatedError(Exception):
    """What an attempt raises that a simulation makes fail."""


@record(frozen=True, kw_only=True)
class Faults:
    """How likely it is that attempts misbehave in a simulated run, and that the run is cancelled.

    An attempt has at most one fault, so the first four must not exceed 1 together.

    Raises:
        TypeError: A value is not a number.
        ValueError: One is not from 0 to 1, or the first four exceed 1 together.
    """

    fail: float = 0.15
    """The chance that an attempt raises `SimulatedError`: half of these before its action is
    called, and half after the action has done its work."""
    hang: float = 0.05
    """The chance that an attempt never ends by itself, so that only a time limit ends it."""
    slow: float = 0.15
    """The chance that an attempt waits before its action is called, for up to twice its time limit;
    for up to a minute without one."""
    swallow: float = 0.05
    """The chance that an attempt ignores its cancellation: its action runs to its end, for up to a
    minute."""
    cancel: float = 0.2
    """The chance that the caller of the run is cancelled at some moment."""

    def __post_init__(self) -> None:
        for name, chance in values_by_name(self).items():
            check_number(f"Faults: {name}", chance, 0)
            if chance > 1:
                raise ValueError(f"Faults: {name} must be at most 1, not {chance}")
        if self.fail + self.hang + self.slow + self.swallow > 1:
            raise ValueError("Faults: fail, hang, slow and swallow must not exceed 1 together")

    def __repr__(self) -> str:
        # What a user has to write for it.
        defaults = values_by_name(type(self)())
        return show(self, {k: v for k, v in values_by_name(self).items() if v != defaults[k]})


_NO_FAULTS = Faults(fail=0, hang=0, slow=0, swallow=0, cancel=0)


@record
class Exploration:
    """How the runs ended that `explore` has simulated."""

    runs: int
    """How many there were."""
    passed: int
    failed: int
    interrupted: int
    """How many were cancelled before all of their steps had ended."""


class ExplorationError(AssertionError):
    """`explore` has found a run that must not be.

    Attributes:
        seed: Its seed, the smallest that leads to such a run.
        cancel_at: In which turn of the event loop its caller was cancelled, with
            ``cancel_everywhere``; otherwise ``None``.
        log: What happened in the run, line by line.
        replay: The line that simulates it again.
    """

    def __init__(
        self, problem: str, seed: int, cancel_at: int | None, log: list[str], replay: str
    ) -> None:
        super().__init__(problem, seed, cancel_at, log, replay)
        self.problem = problem
        self.seed = seed
        self.cancel_at = cancel_at
        self.log = log
        self.replay = replay

    def __str__(self) -> str:
        left_out = len(self.log) - _MOST_LINES
        log = self.log[:_MOST_LINES]
        if left_out > 0:
            log = [*log, f"and {plural(left_out, 'more line')}"]
        at = "" if self.cancel_at is None else f", cancelled in turn {self.cancel_at}"
        lines = "\n  ".join(log)
        return (
            f"with seed {self.seed}{at}: {self.problem}\n"
            f"what happened:\n  {lines}\nto replay it:\n  {self.replay}"
        )


def simulate(
    pipeline: AnyPipeline,
    inputs: AnyInputs = None,
    *,
    seed: int = 0,
    faults: Faults | None = None,
    cancel_at: int | None = None,
) -> RunReport:
    """Run a pipeline once in virtual time, in a random order and with random faults.

    It runs an event loop of its own, so call it from a plain function. Fakes work in it. Pools
    begin anew with the run: they keep their numbers, and nothing that an earlier run has left.

    Args:
        pipeline: A `Pipeline`, an `Orchestrator` or `WorkflowStep` objects.
        inputs: The inputs of the run, or a function that makes them.
        seed: Decides about all that is random. The same seed makes the same run.
        faults: How likely which faults are. ``None``, the default, means none.
        cancel_at: In which turn of the event loop the caller of the run is cancelled, counted from
            0, instead of at a random one.

    Returns:
        The report. That of a run that was cancelled has the status ``INTERRUPTED``, unless all
        of its steps had ended.

    Raises:
        HangError: The run never ends; the error names where its steps wait.
        RuntimeError: The run does not end although it keeps busy, an attempt ignores its
            cancellation for more than an hour or swallows it and returns, steps leave tasks
            running, or an event loop is running this code.
        ValueError: The inputs are wrong, as `Orchestrator.run` says.
        BaseException: What else `Orchestrator.run` raises.
    """
    if cancel_at is not None:
        check_count("simulate: cancel_at", cancel_at, 0)
    return _Simulator(pipeline, inputs, faults or _NO_FAULTS).run(seed, cancel_at)


def explore(
    pipeline: AnyPipeline,
    inputs: AnyInputs = None,
    *,
    seeds: int | Iterable[int] = 1_000,
    faults: Faults | None = None,
    check: Check | None = None,
    cancel_everywhere: bool = False,
) -> Exploration:
    """Simulate many runs of a pipeline; stop at the first one that must not be.

    A run must not hang, not leave tasks behind, and not raise anything but its cancellation. Its
    steps must not ignore a cancellation, nor swallow it and return. What else must hold is for
    ``check`` to say::

        def check(report):
            if report.all_passed:
                assert len(database) == 2

        explore(pipeline, make_inputs, check=check)

    Args:
        pipeline: A `Pipeline`, an `Orchestrator` or `WorkflowStep` objects.
        inputs: The inputs of the runs, or a function that makes those of each run. What steps
            change should be made anew: the report has it in its ``inputs``.
        seeds: How many seeds, counted from 0, at least 1; or which ones.
        faults: How likely which faults are; by default those of `Faults`.
        check: Is called with the report of each run, and raises, or returns something falsy, if
            the run must not be. If it may be, it returns ``None`` or ``True``.
        cancel_everywhere: Whether each seed is simulated once for each turn of the event loop in
            which its caller may be cancelled, and once without a cancellation. By default, random
            runs are cancelled once each, as ``faults`` say.

    Returns:
        How the runs ended.

    Raises:
        ExplorationError: A run must not be. It has the smallest such seed, if the seeds ascend, the
            log of the run, and the line that simulates it again.
        RuntimeError: An event loop is running this code.
        TypeError: ``check`` is async or returns something else, or an argument has the wrong
            type.
        ValueError: There is no seed, or the inputs are wrong, as `Orchestrator.run` says.
    """
    __tracebackhide__ = True  # the error says all
    if not isinstance(seeds, Iterable):
        check_count("explore: seeds", seeds, 1, kind="an int, or the seeds")
        seeds = range(seeds)
    check_is_plain(check)
    simulator = _Simulator(pipeline, inputs, Faults() if faults is None else faults)
    ends: Counter[str] = Counter()
    with unrecorded():
        for seed in seeds:
            for cancel_at in count() if cancel_everywhere else (None,):
                report = simulator.checked_run(seed, cancel_at, check)
                ends[report.status] += 1
                if not simulator.was_cancelled:
                    break
    if not ends:
        raise ValueError("explore: seeds must have at least one seed")
    return Exploration(ends.total(), ends["PASSED"], ends["FAILED"], ends["INTERRUPTED"])


_Running: TypeAlias = "tuple[asyncio.Task[Any], str]"
"""The task of an attempt that runs, and what the attempt is called."""

_FaultKind: TypeAlias = Literal["none", "fail", "fail late", "hang", "slow", "swallow"]


class _Fault(NamedTuple):
    kind: _FaultKind
    wait_s: float


class _Simulator:
    """Simulates runs of one pipeline."""

    def __init__(self, pipeline: AnyPipeline, inputs: AnyInputs, faults: Faults) -> None:
        if not isinstance(faults, Faults):
            raise TypeError(f"faults must be Faults or None, not {type(faults).__name__}")
        self._orchestrator = orchestrator_of(pipeline).with_options(
            journal=None, key=None, engine=None, observers=[self._observe]
        )
        self._inputs = inputs
        self._faults = faults
        self._kinds: list[tuple[_FaultKind, float]] = [
            *(("fail", faults.fail / 2), ("fail late", faults.fail / 2), ("hang", faults.hang)),
            *(("slow", faults.slow), ("swallow", faults.swallow)),
        ]
        self.was_cancelled = False
        self._seed = 0
        self._log: list[Event | tuple[float, str]] = []
        self._loop: _SimulationLoop | None = None
        self._started_s = 0.0
        steps = self._orchestrator._planned().plans.whole.steps
        self._replace = replacement([(step, self._attempt) for step in steps], lambda: True)

    def run(self, seed: int, cancel_at: int | None) -> RunReport:
        """Simulate one run; see `simulate`."""
        if asyncio._get_running_loop() is not None:
            raise RuntimeError(
                "simulate() and explore() run an event loop of their own; call them from a plain "
                "function, not from an async one"
            )
        self._seed = seed
        self._log.clear()
        inputs = self._inputs
        if callable(inputs):
            inputs = reject_awaitable("inputs", inputs())
        inputs = {} if inputs is None else inputs
        if not isinstance(inputs, Mapping) or not all(isinstance(name, str) for name in inputs):
            raise TypeError("inputs must be a mapping of parameter to value, or return one")
        chance = Random(checked_seed(seed))
        if cancel_at is None and chance.random() < self._faults.cancel:
            # Whatever the number of turns a run takes: as likely in 10 to 20 as in 100 to 200.
            cancel_at = int(math.exp(chance.uniform(0, math.log(1_000)))) - 1
        loop = self._loop = _SimulationLoop(seed, cancel_at)
        with _random_numbers(seed), self._intercepting():
            with asyncio.Runner(loop_factory=lambda: loop) as runner:
                report = runner.run(self._caller(loop, dict(inputs)))
        self.was_cancelled = loop.was_cancelled
        return report

    def checked_run(self, seed: int, cancel_at: int | None, check: Check | None) -> RunReport:
        """Simulate one run, and check it.

        Raise `ExplorationError` if it must not be.
        """
        __tracebackhide__ = True
        try:
            report = self.run(seed, cancel_at)
        except Exception as error:
            if not self._log:
                raise  # the inputs are wrong: nothing has run
            raise self._error(f"{type(error).__name__}: {error}", cancel_at) from error
        failed = failed_check(check, report)
        if failed is not None:
            raise self._error(failed.problem, cancel_at) from failed.error
        return report

    def _error(self, problem: str, cancel_at: int | None) -> ExplorationError:
        arguments = ["pipeline"]
        if self._inputs is not None:
            arguments.append("inputs")
        arguments += [f"seed={self._seed}", f"faults={self._faults!r}"]
        if cancel_at is not None:
            arguments.append(f"cancel_at={cancel_at}")
        replay = f"simulate({', '.join(arguments)})"
        return ExplorationError(problem, self._seed, cancel_at, [*self._lines()], replay)

    def _lines(self) -> Iterator[str]:
        for entry in self._log:
            at_ms, text = (
                entry if isinstance(entry, tuple) else (entry.at_ms, describe_event(entry))
            )
            yield f"{duration(at_ms):>8}  {text}"

    @contextmanager
    def _intercepting(self) -> Iterator[None]:
        replacements.append(self._replace)
        try:
            yield
        finally:
            replacements.remove(self._replace)

    async def _caller(self, loop: _SimulationLoop, inputs: dict[str, Any]) -> RunReport:
        """Await the run as the code of a user does, in a task that may be cancelled."""
        me = asyncio.current_task()
        self._started_s = loop.time()
        pipeline = self._orchestrator.with_options(run_id=f"seed-{self._seed}")
        with fresh_pools():
            loop.victim = run = asyncio.Task(pipeline.run(**inputs), name="the run")
            await asyncio.wait([run])
        loop.victim = None
        left = [task for task in asyncio.all_tasks() if task is not me]
        if left:
            where = sorted(f"{t.get_name()} at {awaiting_location(t.get_coro())}" for t in left)
            raise RuntimeError("\n  ".join(["after the run, these tasks are left:", *where]))
        if loop.problem is not None:
            raise RuntimeError(loop.problem)
        report = None if run.cancelled() else run.result()
        assert run.cancelled() is loop.was_cancelled, "a cancellation was lost, or made up"
        if report is not None:
            return report
        if not self._log:
            return self._report_before_the_start(inputs)
        stored = StoredRun(event for event in self._log if not isinstance(event, tuple))
        return report_from(stored, lambda _, output: output)

    def _report_before_the_start(self, inputs: dict[str, Any]) -> RunReport:
        """Return the report of a run that was cancelled before it began, with all its steps."""
        reason = "the run was cancelled before it began"
        steps = {step.name: step for step in self._orchestrator._planned().plans.whole.steps}
        return RunReport(
            f"seed-{self._seed}",
            [
                StepResult(
                    *(name, StepStatus.SKIPPED),
                    reason=reason,
                    depends_on=steps[name].depends_on,
                )
                for name in self._orchestrator.execution_order
            ],
            total_duration_ms=0.0,
            wall_time=0.0,
            stop_reason=reason,
            pipeline=self._orchestrator.name,
            inputs=inputs,
            status=RunStatus.INTERRUPTED,
        )

    def _observe(self, event: Event) -> None:
        if self._loop is not None and self._loop.victim is not None:
            self._log.append(event)

    async def _attempt(self, step: WorkflowStep, arguments: dict[str, Any]) -> Any:
        """Make an attempt of a step, with its fault."""
        attempt, task, loop = current_step(), asyncio.current_task(), self._loop
        assert task is not None
        assert loop is not None
        fault = self._fault_of(step, attempt.item, attempt.attempt)
        name = step.name if attempt.item is None else f"{step.name}[{attempt.item}]"
        if fault.kind != "none":
            text = f"{name}: attempt {attempt.attempt} {_WORDS[fault.kind]}"
            self._log.append(((loop.time() - self._started_s) * 1000, text))
        running = (task, f"attempt {attempt.attempt} of step {name!r}")
        loop.running.add(running)
        cancelled = task.cancelling()
        try:
            output = await _act(step, arguments, fault)
        finally:
            loop.running.discard(running)
        # A cancellation that has not reached the action is still to come.
        reached: bool = task.cancelling() > cancelled and not task._must_cancel  # type: ignore[attr-defined]
        if reached and fault.kind != "swallow" and loop.problem is None:
            loop.problem = (
                f"{running[1]} swallowed its cancellation and returned; let it raise the "
                "CancelledError again"
            )
        return output

    def _fault_of(self, step: WorkflowStep, item: int | None, attempt: int) -> _Fault:
        # A hash takes a tenth of the time of `Random`, and there is one for each attempt.
        text = f"{self._seed} {step.name} {item} {attempt}"
        drawn, share = struct.unpack("<QQ", blake2b(text.encode(), digest_size=16).digest())
        drawn /= 2**64
        for kind, likely in self._kinds:
            if drawn < likely:
                limit_s = 30.0 if step.timeout_s is None else step.timeout_s
                return _Fault(kind, share / 2**63 * limit_s)
            drawn -= likely
        return _Fault("none", 0.0)


_WORDS = {
    "fail": "is made to fail before its action",
    "fail late": "is made to fail after its action",
    "hang": "is made to hang",
    "slow": "is made to wait",
    "swallow": "is made to ignore its cancellation",
}


async def _act(step: WorkflowStep, arguments: dict[str, Any], fault: _Fault) -> Any:
    match fault.kind:
        case "fail":
            raise SimulatedError("simulated: the attempt fails before its action")
        case "hang":
            await asyncio.Event().wait()
        case "slow":
            await asyncio.sleep(fault.wait_s)
        case "swallow":
            return await _although_cancelled(_call(step, arguments))
    output = await _call(step, arguments)
    if fault.kind == "fail late":
        raise SimulatedError("simulated: the attempt fails after its action")
    return output


async def _call(step: WorkflowStep, arguments: dict[str, Any]) -> Any:
    output = step.action(**arguments)
    return await output if step.runs_in == "loop" else output


async def _although_cancelled(action: Awaitable[Any]) -> Any:
    """Await an action in a task of its own, which does not notice that this one is cancelled."""
    work, ends_s = asyncio.ensure_future(action), math.inf
    clock = asyncio.get_running_loop().time
    while not work.done():
        left_s = None if ends_s == math.inf else max(ends_s - clock(), 0.0)
        try:
            await asyncio.wait([work], timeout=left_s)
            if not work.done():
                work.cancel()  # it has had its time
                ends_s = math.inf
        except asyncio.CancelledError:
            ends_s = min(ends_s, clock() + _SWALLOWED_S)
    return work.result()


@contextmanager
def _random_numbers(seed: int) -> Iterator[None]:
    """Seed the random numbers of this process, which jitter takes for one, and restore them."""
    state = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(state)


class _SimulationLoop(VirtualTimeLoop):
    """Cancels a task in a turn.

    Turns are counted while there is a ``victim``. When the loop gives up, there is none, and the
    tasks are cancelled in some more turns. ``problem`` is the first thing that an attempt did and
    that none may do.
    """

    def __init__(self, seed: int, cancel_at: int | None) -> None:
        super().__init__(seed)
        self.victim: asyncio.Task[Any] | None = None
        self.was_cancelled = False
        self.running: set[_Running] = set()
        self.problem: str | None = None
        self._cancelled_s: dict[_Running, float] = {}
        """When it was first seen that an attempt was cancelled and goes on."""
        self._gave_up: RuntimeError | None = None
        self._turn = 0
        self._cancel_at = cancel_at
        self._place = Random(seed)

    def _jump(self, timeout: float | None, select: Any) -> Any:
        try:
            events = super()._jump(timeout, select)
        except HangError:
            self.victim = None
            raise
        if self._gave_up is not None:
            self._turn += 1
            if self._turn > _LAST_TURNS:  # some task ignores its cancellation
                raise self._gave_up
        elif self.victim is not None:
            if self._turn == self._cancel_at:
                ready: Any = self._ready  # type: ignore[attr-defined]
                handle = asyncio.Handle(self._cancel, (self.victim,), self)
                ready.insert(self._place.randint(0, len(ready)), handle)
            self._turn += 1
            if self._turn % _LOOK_EVERY == 0:
                self._break_off_endless_cleanups()
            if self._turn > _MOST_TURNS:
                self._gave_up = RuntimeError(self.problem or self._is_busy())
                self.victim, self._turn = None, 0
                raise self._gave_up
        return events

    def _is_busy(self) -> str:
        running = ", ".join(sorted(words for _, words in self.running)) or "none"
        turns = f"the run has not ended after {_MOST_TURNS:,} turns of the loop"
        return f"{turns}; attempts that run: {running}"

    def _break_off_endless_cleanups(self) -> None:
        now_s = self.time()
        self._cancelled_s = {
            each: self._cancelled_s.get(each, now_s)
            for each in self.running
            if each[0].cancelling()
        }
        for (task, words), since_s in self._cancelled_s.items():
            if now_s - since_s > _LONGEST_CLEANUP_S:
                at = awaiting_location(task.get_coro())
                problem = f"{words} goes on an hour after it was cancelled; it is at {at}"
                self.problem = self.problem or problem
                _break_off(task, SimulatedError(problem))

    def _cancel(self, victim: asyncio.Task[Any]) -> None:
        self.was_cancelled = victim.cancel("simulated")


def _break_off(task: Any, error: SimulatedError) -> None:
    """Let what a task waits for fail, which ends code that ignores every cancellation."""
    waits_for = task._fut_waiter
    while isinstance(waits_for, asyncio.Task):
        waits_for = waits_for._fut_waiter  # type: ignore[attr-defined]
    if waits_for is not None and not waits_for.done():
        waits_for.set_exception(error)
