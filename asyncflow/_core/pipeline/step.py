"""One step of a pipeline as a user declares it, checked when it is made."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from types import FunctionType
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypedDict, Unpack, get_args, overload

from asyncflow._core.arguments import (
    NO_PARAMETERS,
    Signature,
    check_count,
    check_limit,
    check_number,
    check_worker_action,
    function_of,
    is_async,
    signature_of,
    suggests_arguments,
    unawaitable_result,
)
from asyncflow._core.errors import DEFAULT_TIMEOUT_MS
from asyncflow._core.pipeline.retry import NO_BACKOFF, Retry
from asyncflow._core.record import derived, record, replace, show, values_by_name
from asyncflow._core.text import did_you_mean, safe_text

if TYPE_CHECKING:  # to make a class of protocols takes long
    from typing import Protocol

    from asyncflow._core.pipeline.signal import Signal
    from asyncflow._core.pools.pool import Pool

    class AnyEngine(Protocol):
        """What a step must know of an engine: see `asyncflow.engines.Engine`."""

        name: str
        moves_data: bool
        tells_began: bool

        def check(self, step: WorkflowStep, /) -> None:
            """Check that it can run a step."""

        def run(self, call: Any, /) -> Awaitable[Any]:
            """Make an attempt."""
            ...

else:
    AnyEngine = Any  # who asks for the hints of these functions can resolve it

Action: TypeAlias = Callable[..., Any]
"""Returns an awaitable, unless the step runs in a thread or a process."""
Condition: TypeAlias = Callable[..., object]
Fallback: TypeAlias = Callable[[Exception], Any]
OpenResource: TypeAlias = Callable[[], AbstractAsyncContextManager[Any]]
"""Opens a resource of a run, such as a pool of connections."""
RunIf: TypeAlias = Literal["success", "unless_failed", "failure", "always"]
RunsIn: TypeAlias = Literal["loop", "thread", "process"]
EngineChoice: TypeAlias = "AnyEngine | Literal['local'] | None"

_RUN_IF = get_args(RunIf)
_RUNS_IN = get_args(RunsIn)


class CommonPolicies(TypedDict, total=False):
    """How a step is run, wherever it runs: arguments of `WorkflowStep`."""

    max_retries: int
    timeout_ms: float | None
    retry: float | Retry
    deadline_ms: float | None
    heartbeat_ms: float | None
    pool: Pool | None
    slots: int | Callable[..., int]
    tokens: float | Callable[..., float] | None
    priority: int
    pool_key: str | Callable[..., str | None] | None
    when: Condition | None
    run_if: RunIf
    version: str
    cache_ms: float | None
    secret: bool
    max_crashes: int
    tolerated_failures: float
    keep_outputs: bool


class StepPolicies(CommonPolicies, total=False):
    """How and where a step is run: the type of a pipeline's ``step_options``.

    Its keys are the arguments of `WorkflowStep` but ``name``, ``action``, ``depends_on``,
    ``map_over`` and ``parameters``. Each may be missing.
    """

    runs_in: RunsIn
    engine: EngineChoice
    fallback: Fallback | None


@suggests_arguments
@record(frozen=True)
class WorkflowStep:
    """One step of a pipeline: a name, an action, what it depends on and how it is run.

    A step holds no state of any run, so any number of pipelines, runs, event loops and threads can
    use the same object at once.

    Args:
        name: A non-empty string, unique in its pipeline.
        action: An async callable: a coroutine function, a `functools.partial` of one, a bound
            method, an object whose ``__call__`` is async, or any callable that returns an
            awaitable; a plain function if ``runs_in`` says so. It gets its data by parameter
            name: a parameter with the name of a dependency receives that step's output, one
            with the name of a run input receives that input, and ``**kwargs`` receives the
            outputs of all other dependencies. Parameters that a partial has bound stay as they are.
            Or a `Signal`: then the step waits until a value is sent to the run, its output.
        depends_on: The names of the steps whose outputs this one needs, ``["extract"]``, or
            ``{parameter: step name}`` where a parameter has another name than the step. A
            repeated name counts once.
        max_retries: How many attempts there are in all, at least 1 (the default).
        timeout_ms: How many milliseconds each attempt may take; finite and above 0; 30,000 by
            default. ``None`` means no limit. Waiting for a tier, a pool or the next attempt does
            not count. If the step returns an async iterator over which another one is mapped, it
            limits each wait for the next item too: the mapped step fails if none comes in time.
        retry: A `Retry` policy, or the milliseconds between the end of a failed attempt and the
            start of the next. With 0 (the default), the next one starts in the next turn of the
            event loop. It needs ``max_retries`` above 1.
        deadline_ms: How many milliseconds all attempts and the backoff between them may take;
            ``None`` (the default) means no limit. Waiting for a pool does not count. A backoff that
            would exceed the deadline does not begin: the step fails at once. In a mapped step it is
            the deadline of each item, and of all waits for the items of an async iterator together.
        heartbeat_ms: How many milliseconds an attempt may go without calling
            ``current_step().heartbeat()``; ``None`` (the default) means no limit. With
            ``runs_in="process"`` the start of the process counts, until it calls the function.
        pool: A `Pool`, of which each attempt takes a slot while it runs.
        slots: How many slots of the pool an attempt takes, at least 1 (the default): a number, or
            a plain function with parameters of the action's, by name. It is called once for the
            step, or for each item, before that waits for its pool. If it raises or returns more
            than the pool has ever had, the step fails without an attempt, or falls back. It needs a
            ``pool``.
        tokens: How many of the pool's ``tokens_per_minute`` an attempt takes: a number, or a
            function as above. ``None`` (the default) means none. It needs a ``pool`` with that.
        priority: Which attempts of the pool start first when several wait: those with the highest
            number. 0 by default. It needs a ``pool``.
        pool_key: For whom an attempt takes its slots, such as a tenant: a string of 1 to 200
            characters, or a plain function as above that returns one, or ``None`` for no key. In
            the pool's line, keys take turns, and each has at most the pool's ``per_key`` slots at a
            time. ``None`` (the default) means no key. It needs a ``pool``.
        map_over: One of the dependencies, or an input of the run, if no step has that name. The
            action is called once for each item of that output or input (any iterable or async
            iterable), all of them concurrently, and receives the item instead. Each item has its
            own attempts, limits and place in the pool; the step's output is the list of what the
            calls returned, in the order of the items.
        when: A plain function that gets its data by parameter name, as the action does. If it
            returns a false value, the step and all that depends on it are skipped by condition.
        tolerated_failures: How many items of a mapped step may fail for good without the step
            failing: an ``int`` is a count, a ``float`` from 0.0 to 1.0 a share of all items. 0 by
            default. Within it the step succeeds and its output leaves the failed items out. A step
            without ``map_over`` can't have it.
        keep_outputs: Whether the result of a mapped step has what each item returned (the
            default). If not, ``output`` is ``None``, and ``items`` has only those that did not
            succeed or fell back; an output is kept until the steps that are mapped over this one
            have taken it.
            So a map over a million items takes no more memory than the items under way. No step
            can then take the output as a whole.
        run_if: Whether the step runs if all its dependencies succeeded (``"success"``, the
            default), if none of them failed and at least one succeeded (``"unless_failed"``), if
            one of them did not succeed because of a failure (``"failure"``), or in any case
            (``"always"``). For an output that does not exist, a parameter receives its default,
            or else ``None``; a step that is mapped over it is skipped. ``"unless_failed"`` joins
            branches that a condition may skip, and is an ordinary step otherwise. If a condition
            has skipped all its dependencies, it is skipped by condition too. ``"failure"`` and
            ``"always"`` are for clean-up and notification. They also run when the run stops
            because a step failed or its deadline expired, once everything else has ended. Without
            ``depends_on``, they depend on all steps but the clean-up steps that name none either.
            A step that depends on all has an edge from each: thousands of those among
            thousands of steps make millions of edges and take seconds to plan, so let each name
            what it cleans up after.
        fallback: A plain function that receives the error with which the step, or an item of a
            mapped step, has failed for good, and returns its output instead. The step has succeeded
            then, and its result keeps the error: see `StepResult.fell_back`. It is called neither
            for what the run has stopped, nor for a condition or a source of items that raises. If
            it raises, the step fails with that.
        runs_in: Where the action runs: in the event ``"loop"`` (the default), or, if it is a
            plain function, in a ``"thread"`` or a ``"process"`` of its own.
        engine: On whose machine the action runs: an engine of `asyncflow.engines`, or ``"local"``
            for this process. ``None`` (the default) means the engine of the run, if it has one.
            Where the action runs there, ``runs_in`` says. ``timeout_ms`` and ``deadline_ms`` count
            from when the action begins, so waiting for a worker does not count.
        version: Change it when the action changes its meaning. In a run with a journal, a stored
            result of another version is no longer valid.
        cache_ms: How many milliseconds old a success may be that the step, or the item, reuses
            instead of running: one of the same pipeline, step and ``version`` with the same
            arguments, in any run of the journal. ``None`` (the default) means it always runs. It
            needs a journal, a pipeline with a name, and arguments that are not secret.
        secret: Whether the output must not be stored in a journal. If a resumed run needs it, the
            action is called again.
        max_crashes: How many attempts, in a run with a journal, may fail to finish because their
            process died. After one more, the step fails with `StepCrashedError` when the run is
            resumed. Such attempts don't count against ``max_retries``. 3 by default.
        parameters: ``{parameter: step name}`` where a parameter has another name than the step, for
            a ``depends_on`` that is a list. A mapping in ``depends_on`` replaces this one.

    Raises:
        TypeError: An argument has the wrong type; in particular the action is a coroutine
            object, an async generator function, a plain function whose annotation says that it
            returns nothing to await, or not callable, or ``depends_on`` is a single string.
        ValueError: An argument is out of its range, or ``retry`` is given without ``max_retries``
            above 1.
    """

    __match_args__ = ("name", "action", "depends_on")

    name: str
    action: Action
    depends_on: tuple[str, ...]
    max_retries: int
    timeout_ms: float | None
    retry: Retry
    deadline_ms: float | None
    heartbeat_ms: float | None
    pool: Pool | None
    slots: int | Callable[..., int]
    tokens: float | Callable[..., float] | None
    priority: int
    pool_key: str | Callable[..., str | None] | None
    map_over: str | None
    when: Condition | None
    run_if: RunIf
    fallback: Fallback | None
    runs_in: RunsIn
    engine: EngineChoice
    version: str
    cache_ms: float | None
    secret: bool
    max_crashes: int
    tolerated_failures: float
    keep_outputs: bool
    parameters: tuple[tuple[str, str], ...]
    signature: Signature = derived()
    """The parameters that the action can be given, or the description of a signal."""
    condition: Signature = derived()
    """The parameters that ``when`` can be given."""
    timeout_s: float | None = derived()
    """``timeout_ms`` in seconds."""
    remote: AnyEngine | None = derived()
    """``engine``, unless it is this process."""
    needs_worker: bool = derived()
    """Whether it runs in a thread or a process here."""
    needs_permit: bool = derived()
    """Whether an attempt waits for a slot of a pool, or for a thread or process here, or may have
    lent its place in the run."""
    line: object = derived()
    """Where its attempts stand in line: in a pool, and there with a priority, with or without a
    key.
    """
    needs: tuple[int, float, str | None] = derived()
    """The slots and tokens that an attempt takes, and for which key; of no meaning if there are
    `measures`."""
    measures: tuple[tuple[str, Callable[..., Any], Signature], ...] = derived()
    """Which of ``slots``, ``tokens`` and ``pool_key`` are functions, and their parameters."""
    may_pause: bool = derived()
    """Whether its retry policy may name a time until which its pool is paused."""
    is_cleanup: bool = derived()
    """Whether a failure or the run's deadline does not keep it from running; see ``run_if``."""
    signal: Signal[Any] | None = derived()
    """What it waits for, if it has no action."""
    given: frozenset[str] = derived()
    """The arguments that ask for anything beyond one attempt with a limit: ``"until"`` for that of
    ``retry``, ``"run_if"`` for a clean-up step alone, and ``"signal"`` for an action that is one.
    Its policies follow from them."""

    @overload
    def __init__(
        self,
        name: str,
        action: Callable[..., Awaitable[Any]],
        depends_on: Iterable[str] | Mapping[str, str] = (),
        *,
        map_over: str | None = None,
        fallback: Fallback | None = None,
        runs_in: RunsIn = "loop",
        engine: EngineChoice = None,
        parameters: Mapping[str, str] | Iterable[tuple[str, str]] = (),
        **policies: Unpack[CommonPolicies],
    ) -> None: ...

    @overload
    def __init__(
        self,
        name: str,
        action: Action,
        depends_on: Iterable[str] | Mapping[str, str] = (),
        *,
        map_over: str | None = None,
        fallback: Fallback | None = None,
        runs_in: Literal["thread", "process"],
        engine: EngineChoice = None,
        parameters: Mapping[str, str] | Iterable[tuple[str, str]] = (),
        **policies: Unpack[CommonPolicies],
    ) -> None: ...

    def __init__(
        self,
        name: str,
        action: Action,
        depends_on: Iterable[str] | Mapping[str, str] = (),
        *,
        max_retries: int = 1,
        timeout_ms: float | None = DEFAULT_TIMEOUT_MS,
        retry: float | Retry = NO_BACKOFF,
        deadline_ms: float | None = None,
        heartbeat_ms: float | None = None,
        pool: Pool | None = None,
        slots: int | Callable[..., int] = 1,
        tokens: float | Callable[..., float] | None = None,
        priority: int = 0,
        pool_key: str | Callable[..., str | None] | None = None,
        map_over: str | None = None,
        when: Condition | None = None,
        run_if: RunIf = "success",
        fallback: Fallback | None = None,
        runs_in: RunsIn = "loop",
        engine: EngineChoice = None,
        version: str = "",
        cache_ms: float | None = None,
        secret: bool = False,
        max_crashes: int = 3,
        tolerated_failures: float = 0,
        keep_outputs: bool = True,
        parameters: Mapping[str, str] | Iterable[tuple[str, str]] = (),
    ) -> None:
        _check_name(name)
        _check_one_of(name, "runs_in", runs_in, _RUNS_IN)
        _check_action(name, action, runs_in)
        _check_max_retries(name, max_retries)
        _check_limits(name, timeout_ms, deadline_ms, heartbeat_ms)
        _check_pool(name, pool)
        _check_needs(name, pool, slots, tokens, priority, pool_key)
        retry = retry if isinstance(retry, Retry) else _checked_retry(name, retry)
        may_pause = pool is not None and pool.pauses and retry.names_times
        if not may_pause:
            _check_can_retry(name, retry, max_retries)
        _check_when(name, when)
        _check_one_of(name, "run_if", run_if, _RUN_IF)
        _check_fallback(name, fallback)
        check_engine(f"step {name!r}: engine", engine, local=True)
        _check_durability(name, version, secret, max_crashes)
        _check_cache(name, cache_ms, secret)
        check_of_items(name, tolerated_failures, keep_outputs)
        signal = _as_signal(action)
        if signal is not None:
            timeout_ms = None
            others: dict[str, object] = {
                "max_retries": max_retries > 1,
                "heartbeat_ms": heartbeat_ms,
                "pool": pool,
            }
            others |= {"map_over": map_over, "secret": secret}
            _check_signal(name, others, deadline_ms, fallback, run_if)
        if isinstance(depends_on, Mapping):
            parameters = depends_on.items()
            depends_on = depends_on.values()
        # Its own assignments are refused, since a step is frozen.
        fill = object.__setattr__
        fill(self, "name", name)
        fill(self, "action", action)
        fill(self, "depends_on", _checked_dependencies(name, depends_on))
        fill(self, "max_retries", max_retries)
        fill(self, "timeout_ms", timeout_ms)
        fill(self, "timeout_s", None if timeout_ms is None else timeout_ms / 1000)
        fill(self, "retry", retry)
        fill(self, "deadline_ms", deadline_ms)
        fill(self, "heartbeat_ms", heartbeat_ms)
        fill(self, "pool", pool)
        fill(self, "slots", slots)
        fill(self, "tokens", tokens)
        is_known = not (callable(slots) or callable(tokens) or callable(pool_key))
        fill(self, "needs", (slots, tokens or 0.0, pool_key) if is_known else (1, 0.0, None))
        fill(self, "priority", priority)
        fill(self, "pool_key", pool_key)
        has_own_line = priority or pool_key is not None
        fill(self, "line", (pool, priority, pool_key is None) if has_own_line else pool)
        fill(self, "may_pause", may_pause)
        fill(self, "map_over", map_over)
        fill(self, "when", when)
        fill(self, "run_if", run_if)
        fill(self, "fallback", fallback)
        fill(self, "is_cleanup", run_if in ("failure", "always"))
        fill(self, "runs_in", runs_in)
        remote = None if isinstance(engine, str) else engine
        fill(self, "engine", engine)
        fill(self, "remote", remote)
        fill(self, "needs_worker", runs_in != "loop" and remote is None)
        needs_permit = pool is not None or self.needs_worker or cache_ms is not None
        fill(self, "needs_permit", needs_permit)
        fill(self, "version", version)
        fill(self, "cache_ms", cache_ms)
        fill(self, "secret", secret)
        fill(self, "max_crashes", max_crashes)
        fill(self, "tolerated_failures", tolerated_failures)
        fill(self, "keep_outputs", keep_outputs)
        fill(self, "parameters", _checked_parameters(name, parameters))
        fill(self, "signature", _signature_of(name, action))
        condition = NO_PARAMETERS if when is None else signature_of(name, when, "condition")
        fill(self, "condition", condition)
        fill(self, "signal", signal)
        given = {
            "max_retries": None if max_retries == 1 else max_retries,
            "deadline_ms": deadline_ms,
            "heartbeat_ms": heartbeat_ms,
            "until": retry.until,
            "pool": pool,
            "map_over": map_over,
            "when": when,
            "run_if": run_if if self.is_cleanup else None,
            "fallback": fallback,
            "runs_in": None if runs_in == "loop" else runs_in,
            "engine": remote,
            "cache_ms": cache_ms,
            "secret": secret or None,
            "signal": signal,
        }
        fill(self, "given", frozenset([name for name in given if given[name] is not None]))
        fill(self, "measures", _measures_of(self))
        _check_parameters(self)
        _check_map_over(self)

    def __repr__(self) -> str:
        # Bound arguments may be secret.
        values = values_by_name(self)
        functions = "action", "when", "fallback", "slots", "tokens", "pool_key"
        values |= {name: function_of(values[name]) for name in functions}
        if self.remote is not None:
            values["engine"] = self.remote.name  # its address may have a password
        return show(self, values)


def tolerates(step: WorkflowStep, failed: int, count: int | None) -> bool:
    """Whether a mapped step may succeed although so many of its items have failed.

    ``count`` is how many there are in all; ``None`` if only the end will tell.
    """
    tolerated = step.tolerated_failures
    if isinstance(tolerated, int):
        return failed <= tolerated
    if not failed or count is None or count < failed:  # a collection may not know its length
        return not failed or tolerated > 0
    return failed / count <= tolerated  # not `failed <= tolerated * count`: 0.29 * 100 < 29


def on_engine(steps: Iterable[WorkflowStep], engine: AnyEngine) -> Iterator[WorkflowStep]:
    """Yield the steps as they are in a run that has an engine."""
    for step in steps:
        is_here = step.engine is not None or step.signal is not None
        yield step if is_here else replace(step, engine=engine)


def parameters_of(steps: Iterable[WorkflowStep]) -> set[str]:
    """Return the names of all parameters of the steps' actions and conditions."""
    steps = tuple(steps)
    names = {name for step in steps for name in (*step.signature.names, *step.condition.names)}
    return names.union(inputs_mapped_over(steps))


def inputs_of(steps: Iterable[WorkflowStep]) -> list[str]:
    """Return the names of the parameters that no dependency provides, and of the inputs over which
    steps are mapped, in order.
    """
    steps = tuple(steps)
    names, mapped_over = dict[str, None](), inputs_mapped_over(steps)
    for step in steps:
        provided = {*step.depends_on, *(parameter for parameter, _ in step.parameters)}
        if step.map_over in mapped_over:
            names[step.map_over] = None
        taken = (*step.signature.names, *step.condition.names)
        names |= dict.fromkeys(name for name in taken if name not in provided)
    return list(names)


def inputs_mapped_over(steps: Iterable[WorkflowStep]) -> frozenset[str]:
    """Return the names of the inputs over which steps of a whole pipeline are mapped."""
    steps = tuple(steps)
    mapped = {step.map_over for step in steps if step.map_over is not None}
    return frozenset(mapped.difference(step.name for step in steps)) if mapped else frozenset()


def resources_of(step: WorkflowStep, resources: Collection[str]) -> list[str]:
    """Return the names of these resources that a step's action or its condition takes."""
    names = inputs_of([step])  # of one step alone: its source would seem to be an input
    return [name for name in names if name in resources and name != step.map_over]


def _check_parameters(step: WorkflowStep) -> None:
    accepts = step.signature
    known = (*accepts.names, *step.condition.names)
    for parameter, step_name in step.parameters:
        if step_name not in step.depends_on and step_name != step.map_over:
            raise ValueError(
                f"step {step.name!r} maps parameter {parameter!r} to {step_name!r}, "
                "which is not one of its dependencies"
            )
        takes_it = accepts.takes_kwargs and parameter not in accepts.bound
        if parameter not in known and not takes_it:
            raise ValueError(
                f"step {step.name!r} maps parameter {parameter!r} to {step_name!r}, but its "
                f"action has no such parameter{did_you_mean(parameter, known)}"
            )


def _check_map_over(step: WorkflowStep) -> None:
    source, accepts = step.map_over, step.signature
    if source is None:
        given = "tolerated_failures" if step.tolerated_failures else "keep_outputs"
        if step.tolerated_failures or not step.keep_outputs:
            raise ValueError(
                f"step {step.name!r}: {given} is about the items of a mapped step, and this one is "
                f"not mapped; give it map_over, or leave {given} out"
            )
        return
    if not isinstance(source, str):
        raise TypeError(
            f"step {step.name!r}: map_over must be the name of a dependency or None, "
            f"not {type(source).__name__}"
        )
    takers = {parameter for parameter, name in step.parameters if name == source} or {source}
    if not accepts.takes_kwargs and not takers.intersection(accepts.names):
        raise ValueError(
            f"step {step.name!r} maps over {source!r}, but its action has no parameter of that "
            "name that could receive the items; add one, or map it in depends_on"
        )


_LONGEST_KEY = 200
_LIMITS_MS = "timeout_ms", "deadline_ms", "heartbeat_ms"


def _check_name(name: object) -> None:
    if not isinstance(name, str):
        raise TypeError(f"a step's name must be a str, not {type(name).__name__}")
    if not name:
        raise ValueError("a step's name must not be empty")


def _check_one_of(name: str, argument: str, value: object, choices: tuple[str, ...]) -> None:
    if not isinstance(value, str) or value not in choices:
        raise ValueError(
            f"step {name!r}: {argument} must be one of {', '.join(map(repr, choices))}, "
            f"not {safe_text(repr, value)}"
        )


def _check_action(name: str, action: Action, runs_in: str) -> None:
    if inspect.iscoroutine(action):
        action.close()  # it will never be awaited, and the TypeError says so better
        raise TypeError(
            f"step {name!r}: action is a coroutine object, which can run only once; pass the "
            f"function itself ({action.__name__}, without the call)"
        )
    if not callable(action):
        raise TypeError(
            f"step {name!r}: action must be an async callable, not {type(action).__name__}"
        )
    if inspect.isasyncgenfunction(action):
        raise TypeError(
            f"step {name!r}: action is an async generator function, which cannot be awaited; "
            "pass an async function that returns the async iterator: its items stream into a step "
            "that maps over it"
        )
    if runs_in != "loop":
        check_worker_action(name, action, runs_in)
    elif returned := unawaitable_result(action):
        raise TypeError(
            f"step {name!r}: action is a plain function that returns {returned}, which cannot be "
            "awaited; make it 'async def', or say runs_in=\"thread\""
        )


def check_engine(what: str, engine: Any, *, local: bool = False) -> None:
    """Check what a user gives as an engine, which may be ``None``.

    ``what`` is the argument, for the error, and ``local`` says whether it may be ``"local"``.
    """
    if engine is None or (local and isinstance(engine, str) and engine == "local"):
        return
    kinds = 'an engine of asyncflow.engines, "local" or None' if local else "an engine or None"
    if isinstance(engine, str):
        hint = "; open the engine first, and give that: DaskEngine(...)"
        raise ValueError(f"{what} must be {kinds}, not {engine!r}{hint}")
    is_engine = all(callable(getattr(type(engine), method, None)) for method in ("check", "run"))
    if not is_engine or isinstance(engine, type):
        kind = f"the class {engine.__name__}" if isinstance(engine, type) else type(engine).__name__
        raise TypeError(f"{what} must be {kinds}, not {kind}")


def _check_max_retries(name: str, max_retries: object) -> None:
    if type(max_retries) is not int or max_retries < 1:  # the message costs more than the check
        hint = "; it counts all attempts, the first one too"
        check_count(f"step {name!r}: max_retries", max_retries, 1, hint=hint)


def _check_durability(name: str, version: object, secret: object, max_crashes: object) -> None:
    if not isinstance(version, str):
        hint = f"; write version={safe_text(str, version)!r}"
        hint = hint if type(version) in (int, float) else ""
        raise TypeError(f"step {name!r}: version must be a str, not {type(version).__name__}{hint}")
    if not isinstance(secret, bool):
        raise TypeError(
            f"step {name!r}: secret must be True or False, not {safe_text(repr, secret)}"
        )
    if type(max_crashes) is not int or max_crashes < 0:  # as above
        check_count(f"step {name!r}: max_crashes", max_crashes, 0)


def check_of_items(name: str, tolerated: object, keep_outputs: object) -> None:
    """Check what a user gives as ``tolerated_failures`` and ``keep_outputs``."""
    if not isinstance(keep_outputs, bool):
        raise TypeError(
            f"step {name!r}: keep_outputs must be True or False, not "
            f"{safe_text(repr, keep_outputs)}"
        )
    if type(tolerated) is int:
        if tolerated >= 0:
            return
    elif type(tolerated) is not float:
        raise TypeError(
            f"step {name!r}: tolerated_failures must be an int (a count of items) or a float (a "
            f"share of them), not {type(tolerated).__name__}"
        )
    elif 0 <= tolerated <= 1:
        return
    raise ValueError(
        f"step {name!r}: tolerated_failures must be a count of at least 0, or a share from 0.0 to "
        f"1.0, not {tolerated!r}"
    )


def _check_cache(name: str, cache_ms: Any, secret: object) -> None:
    if cache_ms is not None:
        check_number(f"step {name!r}: cache_ms", cache_ms, 0)
    if cache_ms is not None and secret:
        raise ValueError(
            f"step {name!r}: cache_ms reuses stored outputs, and with secret=True the output is "
            "not stored; leave one of them out"
        )


def _check_limits(name: str, *limits_ms: object) -> None:
    for argument, limit_ms in zip(_LIMITS_MS, limits_ms, strict=True):
        if limit_ms is not None:  # most are None, and the message costs as much as the check
            check_limit(f"step {name!r}: {argument}", limit_ms)


def _checked_retry(name: str, retry: Any) -> Retry:
    kind = "a number of milliseconds or a Retry"
    check_number(f"step {name!r}: retry", retry, 0, kind=kind, unit=" ms")
    return Retry(base_ms=retry, factor=1, max_ms=retry, jitter=False) if retry else NO_BACKOFF


def _check_can_retry(name: str, retry: Retry, max_retries: int) -> None:
    if max_retries == 1 and retry is not NO_BACKOFF and retry != NO_BACKOFF:
        raise ValueError(
            f"step {name!r}: retry has no effect, since max_retries is 1 and counts all attempts; "
            "give it 2 or more, or leave retry out"
        )


def _check_pool(name: str, pool: object) -> None:
    if pool is None:
        return
    from asyncflow._core.pools.pool import Pool  # who has one has loaded it

    if not isinstance(pool, Pool):
        hint = (
            f"; make one, Pool({safe_text(str, pool)}), and share it" if type(pool) is int else ""
        )
        raise TypeError(
            f"step {name!r}: pool must be a Pool or None, not {type(pool).__name__}{hint}"
        )


def _check_needs(
    name: str, pool: Pool | None, slots: Any, tokens: Any, priority: Any, pool_key: Any
) -> None:
    """Check what the attempts of a step need of its pool."""
    for argument, need in ("slots", slots), ("tokens", tokens), ("pool_key", pool_key):
        if callable(need) and is_async(need):
            raise TypeError(
                f"step {name!r}: {argument} must be a plain function; what has to be awaited "
                "belongs in a step before it"
            )
    if type(slots) is not int and not callable(slots):
        check_count(f"step {name!r}: slots", slots, 1, kind="an int or a function")
    elif not callable(slots) and slots != 1:
        check_slots(f"step {name!r}: slots", slots, pool)
    if tokens is not None and not callable(tokens):
        check_tokens(f"step {name!r}: tokens", tokens, pool)
    if type(priority) is not int:
        check_count(f"step {name!r}: priority", priority, -sys.maxsize)
    if pool is None:
        needs = {"slots": slots != 1, "tokens": tokens is not None, "priority": priority}
        needs["pool_key"] = pool_key is not None
        for argument, is_given in needs.items():
            if is_given:
                raise ValueError(
                    f"step {name!r}: {argument} has no effect without a pool; give it one"
                )
    elif tokens is not None and pool._gates.most_tokens is None:
        raise ValueError(
            f"step {name!r}: tokens has no effect, since {pool.title} has no tokens_per_minute; "
            "give it one, or leave tokens out"
        )
    if pool_key is not None and not callable(pool_key):
        check_pool_key(f"step {name!r}: pool_key", pool_key, kind="a str, a function or None")
        if not callable(slots):
            check_slots_of_key(f"step {name!r}: slots", slots, pool)


def check_pool_key(what: str, key: object, kind: str = "a str or None") -> None:
    """Check for whom an attempt takes its slots. ``what`` begins the messages."""
    if not isinstance(key, str):
        raise TypeError(f"{what} must be {kind}, not {type(key).__name__}")
    if not 0 < len(key) <= _LONGEST_KEY:
        raise ValueError(f"{what} must have 1 to {_LONGEST_KEY} characters, not {len(key)}")


def check_slots_of_key(what: str, slots: int, pool: Pool | None) -> None:
    """Check how many slots an attempt takes that has a key. ``what`` begins the messages."""
    if pool is not None and pool.per_key is not None and slots > pool.per_key:
        raise ValueError(
            f"{what} must be at most {pool.per_key}, the per_key of {pool.title}, not {slots}"
        )


def check_slots(what: str, slots: object, pool: Pool | None) -> None:
    """Check how many slots an attempt takes. ``what`` begins the messages."""
    check_count(what, slots, 1)
    if pool is not None and slots > pool._largest_size:  # type: ignore[operator]
        largest = "size" if pool._largest_size == pool.size else "largest size so far"
        raise ValueError(
            f"{what} must be at most {pool._largest_size}, the {largest} of {pool.title}, not "
            f"{safe_text(str, slots)}"
        )


def check_tokens(what: str, tokens: object, pool: Pool | None) -> None:
    """Check how many tokens an attempt takes. ``what`` begins the messages."""
    check_number(what, tokens, 0)
    most = None if pool is None else pool._gates.most_tokens
    if pool is not None and most is not None and tokens > most:  # type: ignore[operator]
        largest = "" if most == pool.tokens_per_minute else "largest "
        raise ValueError(
            f"{what} must be at most {most:g}, the {largest}tokens_per_minute of {pool.title}, not "
            f"{safe_text(str, tokens)}"
        )


def _measures_of(step: WorkflowStep) -> tuple[tuple[str, Callable[..., Any], Signature], ...]:
    measures, accepts = [], step.signature
    needs = ("slots", step.slots), ("tokens", step.tokens), ("pool_key", step.pool_key)
    for argument, need in needs:
        if callable(need):
            signature = signature_of(step.name, need, f"{argument} function")
            for parameter in signature.required.difference(accepts.names):
                if not accepts.takes_kwargs:
                    raise ValueError(
                        f"step {step.name!r}: its {argument} function takes {parameter!r}, which "
                        f"its action does not{did_you_mean(parameter, accepts.names)}"
                    )
            measures.append((argument, need, signature))
    return tuple(measures)


def _check_when(name: str, when: object) -> None:
    if when is None:
        return
    if not callable(when):
        raise TypeError(f"step {name!r}: when must be callable, not {type(when).__name__}")
    if is_async(when):
        raise TypeError(
            f"step {name!r}: when must be a plain function; if it has to await something, make "
            "that a step of its own and take its output here"
        )


def _signature_of(name: str, action: Action) -> Signature:
    taker = taker_of(action)
    if taker is action:
        return signature_of(name, action)
    return replace(signature_of(name, taker, "description"), is_data=False)


def taker_of(action: Action) -> Callable[..., Any]:
    """Return what takes the data of a step: its action, or the description of its signal."""
    signal = _as_signal(action)
    return signal.description if signal is not None and callable(signal.description) else action


def _as_signal(action: object) -> Signal[Any] | None:
    if isinstance(action, FunctionType):
        return None
    from asyncflow._core.pipeline.signal import Signal  # few steps wait for one

    return action if isinstance(action, Signal) else None


def _check_signal(
    name: str, others: Mapping[str, object], deadline_ms: object, fallback: object, run_if: str
) -> None:
    """Check the arguments of a step that waits for a signal."""
    for argument, given in others.items():
        if given:
            raise ValueError(
                f"step {name!r} waits for a signal, so {argument} has no effect; put it on a step "
                "after this one"
            )
    if run_if not in ("success", "unless_failed"):
        raise ValueError(f"step {name!r} waits for a signal, so it can't be a clean-up step")
    if fallback is not None and deadline_ms is None:
        raise ValueError(
            f"step {name!r} waits for a signal without a limit, so its fallback or default has no "
            "effect; give it a deadline_ms"
        )


def _check_fallback(name: str, fallback: object) -> None:
    if fallback is None:
        return
    if not callable(fallback):
        raise TypeError(
            f"step {name!r}: fallback must be a function of the error that returns the output, not "
            f"{type(fallback).__name__}; for a value, write a lambda"
        )
    if is_async(fallback):
        raise TypeError(
            f"step {name!r}: fallback must be a plain function; what has to be awaited belongs in "
            'the action, or in a step with run_if="failure"'
        )


def _checked_dependencies(name: str, depends_on: object) -> tuple[str, ...]:
    if isinstance(depends_on, str | bytes) or not isinstance(depends_on, Iterable):
        instead = f"; write [{safe_text(repr, depends_on)}]" if isinstance(depends_on, str) else ""
        raise TypeError(
            f"step {name!r}: depends_on must be a list of step names or a mapping of parameter "
            f"to step name, not {type(depends_on).__name__}{instead}"
        )
    names = tuple(depends_on)
    for dependency in names:
        if not isinstance(dependency, str):
            instead = "; functions go into Pipeline.step(depends_on=...)"
            raise TypeError(
                f"step {name!r}: depends_on must hold names of steps, "
                f"not {type(dependency).__name__}{instead if callable(dependency) else ''}"
            )
    return tuple(dict.fromkeys(names))


def _checked_parameters(name: str, parameters: Any) -> tuple[tuple[str, str], ...]:
    if not isinstance(parameters, Iterable):
        raise TypeError(
            f"step {name!r}: parameters must be a mapping of parameter to step name, "
            f"not {type(parameters).__name__}"
        )
    pairs = tuple(parameters.items() if isinstance(parameters, Mapping) else parameters)
    for pair in pairs:
        if not (isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str)):
            raise TypeError(
                f"step {name!r}: depends_on must map names of parameters to names of steps, "
                f"not {safe_text(repr, pair)}"
            )
    return pairs
