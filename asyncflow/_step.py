"""What a user declares: one step of a pipeline."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import FunctionType
from typing import Any, NamedTuple, TypeAlias

from asyncflow._errors import nearest

__all__ = ["NO_PARAMETERS", "Action", "Signature", "WorkflowStep"]

Action: TypeAlias = Callable[..., Awaitable[Any]]


@dataclass(frozen=True, slots=True, init=False)
class WorkflowStep:
    """One step of a pipeline: a name, an async action and what it depends on.

    A step holds no state of any run, so the same object may be used in any number of
    pipelines, runs, event loops and threads at once. It is checked when it is made.

    Args:
        name: A non-empty string, unique in its pipeline.
        action: An async callable: a coroutine function, a `functools.partial` of one, a bound
            method, an object whose ``__call__`` is async, or any callable that returns an
            awaitable. It gets its data by parameter name: a parameter with the name of a
            dependency receives that step's output, one with the name of a run input receives
            that input, and ``**kwargs`` receives the outputs of all other dependencies. What
            a partial already binds is left alone.
        depends_on: The names of the steps whose outputs this one needs, ``["extract"]``, or
            ``{parameter: step name}`` where a parameter has another name than the step. A
            repeated name counts once.
        max_retries: How many attempts there are in all, at least 1 (the default: no second one).
        timeout_ms: How many milliseconds each attempt may take; finite and above 0. ``None``
            means no limit. Waiting for a tier or between two attempts does not count.
        retry: How many milliseconds pass between the end of a failed attempt and the start of the
            next; finite and not below 0. With 0 (the default) the next one starts in the next
            turn of the event loop.
        parameters: For which parameters ``depends_on`` was a mapping, as pairs of parameter and
            step name. It is filled from that mapping; there is no need to give it, and with a
            mapping what is given here does not count.

    Raises:
        TypeError: An argument has the wrong type; in particular the action is a coroutine
            object, an async generator function or not callable, or ``depends_on`` is a single
            string.
        ValueError: An argument has the right type and an impossible value.
    """

    name: str
    action: Action
    depends_on: tuple[str, ...]
    max_retries: int = field(kw_only=True)
    timeout_ms: float | None = field(kw_only=True)
    retry: float = field(kw_only=True)
    parameters: tuple[tuple[str, str], ...] = field(kw_only=True)
    signature: Signature = field(init=False, repr=False, compare=False)
    """The parameters that the action can be given."""

    def __init__(
        self,
        name: str,
        action: Action,
        depends_on: Iterable[str] | Mapping[str, str] = (),
        *,
        max_retries: int = 1,
        timeout_ms: float | None = 30_000,
        retry: float = 0,
        parameters: Iterable[tuple[str, str]] = (),
    ) -> None:
        _check_name(name)
        _check_action(name, action)
        _check_max_retries(name, max_retries)
        _check_timeout(name, timeout_ms)
        _check_retry(name, retry)
        if isinstance(depends_on, Mapping):
            parameters = depends_on.items()
            depends_on = depends_on.values()
        # A frozen dataclass can be filled only behind its own back.
        fill = object.__setattr__
        fill(self, "name", name)
        fill(self, "action", action)
        fill(self, "depends_on", _dependency_names(name, depends_on))
        fill(self, "max_retries", max_retries)
        fill(self, "timeout_ms", timeout_ms)
        fill(self, "retry", retry)
        fill(self, "parameters", tuple(parameters))
        fill(self, "signature", _signature(name, action))
        self._check_parameters()

    def _check_parameters(self) -> None:
        accepts = self.signature
        for parameter, step_name in self.parameters:
            if not isinstance(parameter, str):
                raise TypeError(
                    f"step {self.name!r}: depends_on must map names of parameters to names of "
                    f"steps, not {type(parameter).__name__}"
                )
            if step_name not in self.depends_on:
                raise ValueError(
                    f"step {self.name!r} maps parameter {parameter!r} to {step_name!r}, "
                    "which is not one of its dependencies"
                )
            takes_it = accepts.takes_any and parameter not in accepts.bound
            if parameter not in accepts.names and not takes_it:
                raise ValueError(
                    f"step {self.name!r} maps parameter {parameter!r} to {step_name!r}, but its "
                    f"action has no such parameter{nearest(parameter, accepts.names)}"
                )


class Signature(NamedTuple):
    """Which parameters of an action can be filled by name."""

    names: tuple[str, ...] = ()
    required: frozenset[str] = frozenset()
    """Those without a default."""
    takes_any: bool = False
    """Whether there is a ``**kwargs``."""
    bound: frozenset[str] = frozenset()
    """Those that a `functools.partial` has filled already."""


def _check_name(name: object) -> None:
    if not isinstance(name, str):
        raise TypeError(f"a step's name must be a str, not {type(name).__name__}")
    if not name:
        raise ValueError("a step's name must not be empty")


def _check_action(name: str, action: object) -> None:
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
            "pass an async function that consumes it and returns the result"
        )


def _check_max_retries(name: str, max_retries: object) -> None:
    if isinstance(max_retries, bool) or not isinstance(max_retries, int):
        raise TypeError(
            f"step {name!r}: max_retries must be an int, not {type(max_retries).__name__}"
        )
    if max_retries < 1:
        raise ValueError(
            f"step {name!r}: max_retries must be at least 1, not {max_retries}; "
            "it counts all attempts, the first one too"
        )


def _check_timeout(name: str, timeout_ms: object) -> None:
    if timeout_ms is None:
        return
    if isinstance(timeout_ms, bool) or not isinstance(timeout_ms, int | float):
        raise TypeError(
            f"step {name!r}: timeout_ms must be a number or None, not {type(timeout_ms).__name__}"
        )
    # A NaN would break the timers of every other step of the loop: gh-105331.
    # An integer above all floats is not infinite, but no timer can be set to it.
    if not 0 < timeout_ms <= sys.float_info.max or timeout_ms / 1000 == 0:
        raise ValueError(
            f"step {name!r}: timeout_ms must be finite and above 0, not {timeout_ms}; "
            "use None for no limit"
        )


def _check_retry(name: str, retry: object) -> None:
    if isinstance(retry, bool) or not isinstance(retry, int | float):
        raise TypeError(
            f"step {name!r}: retry must be a number of milliseconds, not {type(retry).__name__}"
        )
    if not 0 <= retry <= sys.float_info.max:
        raise ValueError(f"step {name!r}: retry must be finite and not below 0 ms, not {retry}")


def _dependency_names(name: str, depends_on: object) -> tuple[str, ...]:
    if isinstance(depends_on, str | bytes) or not isinstance(depends_on, Iterable):
        raise TypeError(
            f"step {name!r}: depends_on must be a list of step names or a mapping of parameter "
            f"to step name, not {type(depends_on).__name__}"
        )
    names = tuple(dict.fromkeys(depends_on))
    for dependency in names:
        if not isinstance(dependency, str):
            raise TypeError(
                f"step {name!r}: depends_on must hold names of steps, "
                f"not {type(dependency).__name__}"
            )
    return names


NO_PARAMETERS = Signature()


def _signature(name: str, action: Action) -> Signature:
    if type(action) is FunctionType and not action.__dict__:
        # Most actions: `inspect` would take fifty times as long for the same answer.
        code = action.__code__
        if not (
            code.co_argcount or code.co_kwonlyargcount or code.co_flags & inspect.CO_VARKEYWORDS
        ):
            return NO_PARAMETERS
    try:
        signature = inspect.signature(action)
    except ValueError:  # some callables written in C do not tell
        return NO_PARAMETERS
    bound = _bound(action) if isinstance(action, partial) else frozenset()
    names, required, takes_any = [], set(), False
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            takes_any = True
        elif parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            if parameter.name not in bound:
                names.append(parameter.name)
                if parameter.default is parameter.empty:
                    required.add(parameter.name)
        elif parameter.kind is parameter.POSITIONAL_ONLY and parameter.default is parameter.empty:
            raise TypeError(
                f"step {name!r}: parameter {parameter.name!r} of its action is positional-only, "
                "but actions get their data by parameter name; remove the '/'"
            )
    if not names and not takes_any:
        return NO_PARAMETERS
    return Signature(tuple(names), frozenset(required), takes_any, bound)


def _bound(action: partial[Any]) -> frozenset[str]:
    positional = list(inspect.signature(action.func).parameters)[: len(action.args)]
    return frozenset(positional).union(action.keywords)
