"""Fakes: what runs instead of the actions of steps, and what it was called with.

Rules:

1. Fakes work in the context of their ``with`` block, in the tasks and threads that inherit it, and
   nowhere else; after the block, nowhere.
2. A fake takes what the action could take, or less.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from functools import partial
from typing import Any

from asyncflow._core.arguments import check_count, signature_of
from asyncflow._core.pipeline.step import WorkflowStep
from asyncflow._core.record import record
from asyncflow._core.running.context import current_step
from asyncflow._core.text import did_you_mean, safe_text
from asyncflow._runtime.planned_pipeline import replacements
from asyncflow.testing._stand_ins import AnyPipeline, orchestrator_of, replacement

_ITSELF: Any = object()
"""Stands for the action that is replaced."""


@record(frozen=True)
class FakeCall:
    """One call of a fake."""

    arguments: dict[str, Any]
    """What the action would have received, by parameter name."""
    attempt: int
    """The number of the attempt, counted from 1."""
    run_id: str
    """The run."""
    item: int | None
    """The item of a mapped step, counted from 0; ``None`` for other steps."""


@record
class FakeStep:
    """A step that is replaced."""

    name: str
    """Its name, as it was given."""
    calls: list[FakeCall]
    """Its calls so far, in order: one for each attempt."""


@record(frozen=True)
class Fails:
    """What `fails` returns."""

    times: int
    error: Any
    then: Any


def fails(
    times: int, error: BaseException | type[BaseException] = OSError, *, then: Any = _ITSELF
) -> Any:
    """Let the first attempts of a step fail: ``fake(pipeline, load=fails(2, OSError))``.

    Args:
        times: How many attempts fail, at least 1, in each run, and of each item of a mapped step.
        error: What they raise: an exception, or its class.
        then: What replaces the action in the attempts after these, as in `fake`. By default the
            step is itself: its own action is called.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: ``times`` is less than 1.
    """
    check_count("fails: times", times, 1)
    if not _is_error(error):
        raise TypeError(f"fails: error must be an exception, not {safe_text(repr, error)}")
    return Fails(times, error, then)


class Fakes(Mapping[str, FakeStep]):
    """Fakes by the names of their steps; `fake` makes them. Enter it to replace the steps."""

    def __init__(self, steps: dict[str, WorkflowStep], stand_ins: Mapping[str, Any]) -> None:
        self._steps = {name: FakeStep(name, []) for name in stand_ins}
        self._entered = 0
        self._is_everywhere = False
        self._replace = replacement(
            [
                (steps[name], partial(self._call, name, _checked(steps[name], stand_in)))
                for name, stand_in in stand_ins.items()
            ],
            self._is_on,
        )

    def __getitem__(self, name: str) -> FakeStep:
        if name not in self._steps:
            raise KeyError(f"no fake is named {name!r}{did_you_mean(name, self._steps)}")
        return self._steps[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._steps)

    def __len__(self) -> int:
        return len(self._steps)

    def __enter__(self) -> Fakes:
        self._begin()
        _here.set((*_here.get(), self))
        return self

    def __exit__(self, *_: object) -> None:
        # No token: a fixture may leave it in another context than it has entered it in.
        _here.set(tuple(each for each in _here.get() if each is not self))
        self._end()

    def _enter_everywhere(self) -> None:
        """Replace the steps in all contexts: a fixture does not know that of its test's runs."""
        self._begin()
        self._is_everywhere = True

    def _leave_everywhere(self) -> None:
        """End what `_enter_everywhere` began."""
        self._is_everywhere = False
        self._end()

    def _begin(self) -> None:
        if not self._entered:
            replacements.append(self._replace)
        self._entered += 1

    def _end(self) -> None:
        self._entered -= 1
        if not self._entered:
            replacements.remove(self._replace)

    def _is_on(self) -> bool:
        return self._is_everywhere or any(each is self for each in _here.get())

    async def _call(
        self, name: str, stand_in: Any, step: WorkflowStep, arguments: dict[str, Any]
    ) -> Any:
        context = current_step()
        call = FakeCall(arguments, context.attempt, context.run_id, context.item)
        self._steps[name].calls.append(call)
        return await _answer(stand_in, step, arguments, context.attempt)


_here: ContextVar[tuple[Fakes, ...]] = ContextVar("asyncflow.fakes", default=())
"""The fakes that work in this context."""


def fake(pipeline: AnyPipeline, /, **steps: Any) -> Fakes:
    """Replace steps in whatever runs them, in a ``with`` block::

        with fake(pipeline, fetch=[1, 2], load=fails(2, OSError)) as fakes:
            report = run_in_virtual_time(pipeline.run())
        assert fakes["load"].calls[0].arguments == {"rows": [1, 2]}

    The steps keep their options: attempts, time limits, pools and so on. Only ``runs_in`` and
    engines do not apply: a fake runs in the event loop. The block may hold any number of runs: of
    the pipeline, of another one that includes it, or of its steps in an `Orchestrator` or
    `run_pipeline`. Fakes within fakes replace them.

    Args:
        pipeline: A `Pipeline`, an `Orchestrator` or `WorkflowStep` objects.
        **steps: What replaces each step, by its name: a value, which it returns; an exception, or
            the class of one, which it raises; `fails`; or a function, async or not, that is called
            instead of the action, with those of its arguments that have the names of its
            parameters. Give steps of an included pipeline as ``**{"ingest/fetch": ...}``.

    Returns:
        A mapping of the names to `FakeStep`, which records the calls.

    Raises:
        ValueError: There is no such step.
        TypeError: A function takes what the step does not, or a coroutine stands for its function.
    """
    __tracebackhide__ = True
    orchestrator = orchestrator_of(pipeline)
    known = {step.name: step for step in orchestrator._planned().plans.whole.steps}
    for name in steps:
        if name not in known:
            of = f" of pipeline {orchestrator.name!r}" if orchestrator.name else ""
            hint = did_you_mean(name, known)
            if name in orchestrator.resources:
                hint = "; it is a resource: use with_options(resources=...)"
            raise ValueError(f"fake(): no step{of} is named {name!r}{hint}")
    return Fakes(known, steps)


def _checked(step: WorkflowStep, stand_in: Any) -> Any:
    """Return what replaces an action, which `_answer` understands, checked."""
    if isinstance(stand_in, Fails):
        return Fails(stand_in.times, stand_in.error, _checked(step, stand_in.then))
    if inspect.iscoroutine(stand_in):
        stand_in.close()  # it will never be awaited, and the TypeError says so better
        raise TypeError(
            f"the fake of step {step.name!r} is a coroutine object, which can run only once; pass "
            f"the function itself ({stand_in.__name__}, without the call)"
        )
    if _is_error(stand_in) or not callable(stand_in):
        return stand_in
    accepts = signature_of(step.name, stand_in, "fake")
    may_take = {*step.signature.names, *step.signature.bound}
    if step.signature.takes_kwargs:
        may_take |= {*step.depends_on, *(parameter for parameter, _ in step.parameters)}
    for name in accepts.names:
        if name in accepts.required and name not in may_take:
            raise TypeError(
                f"the fake of step {step.name!r} takes {name!r}, which the step does not receive"
                f"{did_you_mean(name, may_take)}"
            )
    if accepts.takes_kwargs:
        return _Function(stand_in, None)
    return _Function(stand_in, frozenset(accepts.names))


@record
class _Function:
    """A function that replaces an action."""

    function: Callable[..., Any]
    takes: frozenset[str] | None
    """Which arguments it takes; ``None`` for all."""


async def _answer(
    stand_in: Any, step: WorkflowStep, arguments: dict[str, Any], attempt: int
) -> Any:
    if isinstance(stand_in, Fails):
        stand_in = stand_in.error if attempt <= stand_in.times else stand_in.then
    if stand_in is _ITSELF:
        if step.runs_in != "loop":
            return await asyncio.to_thread(step.action, **arguments)
        return await step.action(**arguments)
    if _is_error(stand_in):
        raise stand_in
    if not isinstance(stand_in, _Function):
        return stand_in
    takes = stand_in.takes
    if takes is not None:
        arguments = {name: value for name, value in arguments.items() if name in takes}
    output = stand_in.function(**arguments)
    return await output if inspect.isawaitable(output) else output


def _is_error(stand_in: object) -> bool:
    return isinstance(stand_in, BaseException) or (
        isinstance(stand_in, type) and issubclass(stand_in, BaseException)
    )
