"""Suggests the right argument to a caller who passes one that does not exist."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import wraps
from inspect import iscoroutinefunction, signature
from typing import Any, TypeVar, cast

from asyncflow._core.text import did_you_mean

T = TypeVar("T")

_ARGUMENTS: dict[str, frozenset[str]] = {}
"""The arguments of each class and function that suggests them."""

_GUESSES = {
    "action": "function func fn task coro callable target",
    "depends_on": "dependencies deps needs requires upstream after inputs",
    "max_retries": "retries attempts max_attempts tries max_tries retry_count retry_times",
    "timeout_ms": "timeout timeout_s timeout_seconds execution_timeout time_limit attempt_timeout",
    "deadline_ms": "deadline timeout timeout_s timeout_seconds time_limit max_time run_timeout",
    "heartbeat_ms": "heartbeat heartbeat_timeout",
    "cache_ms": "cache cache_ttl ttl cache_expiration cache_s cache_key_fn cache_policy",
    "retry": "backoff retry_delay retry_delay_seconds retry_backoff retry_policy delay wait",
    "base_ms": "delay delay_ms backoff initial initial_delay base min_delay wait",
    "factor": "multiplier exponent exponential_base exp_base backoff_factor",
    "max_ms": "max_delay max_wait max_backoff max_retry_delay cap",
    "on": "exceptions errors retry_on retry_on_exceptions on_exception autoretry_for retry_if",
    "until": "retry_if_result retry_on_result predicate",
    "pool": "limiter semaphore concurrency max_concurrency limit",
    "size": "slots capacity concurrency max_concurrency max_workers workers limit",
    "priority": "priority_weight weight",
    "tokens": "token_count weight cost",
    "slots": "pool_slots permits",
    "tokens_per_minute": "tpm token_rate tokens_per_second",
    "per_minute": "rpm requests_per_minute calls_per_minute",
    "per_second": "rate rate_limit max_rate rps requests_per_second",
    "max_concurrency": "concurrency max_workers workers parallelism max_parallel max_active_tasks",
    "map_over": "map each foreach expand",
    "when": "condition only_if skip_if",
    "run_if": "trigger trigger_rule",
    "fail_fast": "stop_on_error stop_on_failure",
    "observers": "callbacks hooks listeners",
    "journal": "storage store persistence checkpointer",
}
"""What other libraries call an argument. The first that a caller can use is suggested."""


def suggests_arguments(target: T) -> T:
    """Make a class or a coroutine function refuse an unknown argument with the right one."""
    marked: Any = target
    if not isinstance(target, type):
        return cast("T", _checked(marked.__name__, marked))
    marked.__init__ = _checked(marked.__name__, marked.__init__)
    return target


def arguments_of(what: str) -> frozenset[str]:
    """Return the arguments of a class or function that suggests them, by its name."""
    return _ARGUMENTS[what]


def check_arguments(what: str, given: Iterable[str], known: frozenset[str]) -> None:
    """Refuse the arguments that do not exist.

    ``what`` takes the arguments, and begins the message.
    """
    if not known.issuperset(given):
        unknown = next(name for name in given if name not in known)
        raise TypeError(f"{what} got an unknown argument {unknown!r}{suggestion(unknown, known)}")


def suggestion(unknown: str, known: frozenset[str]) -> str:
    """Return `` (did you mean 'x'?)``, also for what takes another name or is another's."""
    meanings = [unknown, *(name for name in _GUESSES if unknown in _GUESSES[name].split())]
    for name in meanings:
        if name in known:
            return f" (did you mean {name!r}?)"
    for name in meanings:
        for what, arguments in _ARGUMENTS.items():
            if name in arguments:
                return f" (did you mean {name!r} of {what}?)"
    return did_you_mean(unknown, known)


def _checked(what: str, function: Callable[..., Any]) -> Callable[..., Any]:
    parameters = signature(function).parameters.values()  # also if something has wrapped it
    names = {
        each.name for each in parameters if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)
    }
    known = _ARGUMENTS[what] = frozenset(names - {"self"})

    @wraps(function)
    def call(*args: Any, **named: Any) -> Any:
        check_arguments(f"{what}()", named, known)
        return function(*args, **named)

    @wraps(function)
    async def call_and_wait(*args: Any, **named: Any) -> Any:
        check_arguments(f"{what}()", named, known)
        return await function(*args, **named)

    return call_and_wait if iscoroutinefunction(function) else call
