"""What a user may say of a step, and what is said to one who says something else."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from asyncflow._numbers import check_count, check_limit, check_number
from asyncflow._plain import is_async
from asyncflow._pool import Pool
from asyncflow._retry import AT_ONCE, Retry
from asyncflow._sendable import check_plain

__all__ = [
    "check_action",
    "check_durability",
    "check_heartbeat",
    "check_limits",
    "check_max_retries",
    "check_name",
    "check_one_of",
    "check_pool",
    "check_when",
    "constant_retry",
    "dependency_names",
    "parameter_pairs",
]

LIMITS_MS = "timeout_ms", "deadline_ms", "heartbeat_ms"


def check_name(name: object) -> None:
    if not isinstance(name, str):
        raise TypeError(f"a step's name must be a str, not {type(name).__name__}")
    if not name:
        raise ValueError("a step's name must not be empty")


def check_one_of(name: str, argument: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(
            f"step {name!r}: {argument} must be one of {', '.join(map(repr, choices))}, "
            f"not {value!r}"
        )


def check_action(name: str, action: object, runs_in: str) -> None:
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
    if runs_in != "loop":
        check_plain(name, action, runs_in)


def check_max_retries(name: str, max_retries: object) -> None:
    if type(max_retries) is not int or max_retries < 1:  # the words cost more than the check
        hint = "; it counts all attempts, the first one too"
        check_count(f"step {name!r}: max_retries", max_retries, 1, hint=hint)


def check_durability(name: str, version: object, secret: object, max_crashes: object) -> None:
    """Check what only a run with a journal asks for."""
    if not isinstance(version, str):
        hint = f"; write version={str(version)!r}" if type(version) in (int, float) else ""
        raise TypeError(f"step {name!r}: version must be a str, not {type(version).__name__}{hint}")
    if not isinstance(secret, bool):
        raise TypeError(f"step {name!r}: secret must be True or False, not {secret!r}")
    if type(max_crashes) is not int or max_crashes < 0:  # as in `check_max_retries`
        check_count(f"step {name!r}: max_crashes", max_crashes, 0)


def check_limits(name: str, *limits_ms: object) -> None:
    for argument, limit_ms in zip(LIMITS_MS, limits_ms, strict=True):
        if limit_ms is not None:  # most are, and the words cost as much as the check
            check_limit(f"step {name!r}: {argument}", limit_ms)


def check_heartbeat(name: str, heartbeat_ms: object, runs_in: str) -> None:
    """Check that a step which must give signs of life can do so.

    Raises:
        ValueError: It can't, because its run is in another process.
    """
    if heartbeat_ms is not None and runs_in == "process":
        raise ValueError(
            f"step {name!r}: heartbeat_ms does not work with runs_in='process', because "
            "current_step() is not there in another process; use timeout_ms"
        )


def constant_retry(name: str, retry: Any) -> Retry:
    kind = "a number of milliseconds or a Retry"
    check_number(f"step {name!r}: retry", retry, 0, kind=kind, unit=" ms")
    return Retry(base_ms=retry, factor=1, max_ms=retry, jitter=False) if retry else AT_ONCE


def check_pool(name: str, pool: object) -> None:
    if pool is not None and not isinstance(pool, Pool):
        hint = f"; make one, Pool({pool}), and share it" if type(pool) is int else ""
        raise TypeError(
            f"step {name!r}: pool must be a Pool or None, not {type(pool).__name__}{hint}"
        )


def check_when(name: str, when: object) -> None:
    if when is None:
        return
    if not callable(when):
        raise TypeError(f"step {name!r}: when must be callable, not {type(when).__name__}")
    if is_async(when):
        raise TypeError(
            f"step {name!r}: when must be a plain function; what takes time to find out "
            "belongs into a step of its own, whose output this one can look at"
        )


def dependency_names(name: str, depends_on: object) -> tuple[str, ...]:
    if isinstance(depends_on, str | bytes) or not isinstance(depends_on, Iterable):
        raise TypeError(
            f"step {name!r}: depends_on must be a list of step names or a mapping of parameter "
            f"to step name, not {type(depends_on).__name__}"
        )
    names = tuple(depends_on)
    for dependency in names:
        if not isinstance(dependency, str):
            raise TypeError(
                f"step {name!r}: depends_on must hold names of steps, "
                f"not {type(dependency).__name__}"
            )
    return tuple(dict.fromkeys(names))


def parameter_pairs(name: str, parameters: Any) -> tuple[tuple[str, str], ...]:
    pairs = tuple(parameters.items() if isinstance(parameters, Mapping) else parameters)
    for pair in pairs:
        if not (isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str)):
            raise TypeError(
                f"step {name!r}: depends_on must map names of parameters to names of steps, "
                f"not {pair!r}"
            )
    return pairs
