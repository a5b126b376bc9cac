"""Suggests the right argument to a caller who passes one that does not exist."""

from __future__ import annotations

from collections.abc import Mapping

import asyncflow._core.pools.pool  # noqa: F401  # its arguments are among those
from asyncflow._core.arguments import ARGUMENTS
from asyncflow._core.text import did_you_mean

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
    "on": "exceptions errors retry_on retry_on_exceptions on_exception autoretry_for retry_if "
    "retry_after",
    "until": "retry_if_result retry_on_result predicate",
    "pool": "limiter semaphore concurrency max_concurrency limit",
    "size": "slots capacity concurrency max_concurrency max_workers workers limit",
    "priority": "priority_weight weight",
    "tokens": "token_count weight cost",
    "slots": "pool_slots permits",
    "pool_key": "key tenant partition_key concurrency_key limit_key group_by",
    "per_key": "size_per_key max_per_key limit_per_key key_limit concurrency_limit",
    "tokens_per_minute": "tpm token_rate tokens_per_second",
    "per_minute": "rpm requests_per_minute calls_per_minute",
    "per_second": "rate rate_limit max_rate rps requests_per_second",
    "max_concurrency": "concurrency max_workers workers parallelism max_parallel max_active_tasks",
    "map_over": "map each foreach expand",
    "when": "condition only_if skip_if",
    "run_if": "trigger trigger_rule",
    "fail_fast": "stop_on_error stop_on_failure",
    "observers": "callbacks hooks listeners",
    "delay_ms": "countdown eta delay delay_s delay_seconds defer_by start_delay",
    "on_conflict": "on_duplicate if_exists conflict_policy",
    "journal": "storage store persistence checkpointer",
}
"""What other libraries call an argument. The first that a caller can use is suggested."""


def suggestion(
    unknown: str, known: frozenset[str], others: Mapping[str, frozenset[str]] = ARGUMENTS
) -> str:
    """Return `` (did you mean 'x'?)``, also for what takes another name or is another's."""
    meanings = [unknown, *(name for name in _GUESSES if unknown in _GUESSES[name].split())]
    for name in meanings:
        if name in known:
            return f" (did you mean {name!r}?)"
    for name in meanings:
        for what, arguments in others.items():
            if name in arguments:
                return f" (did you mean {name!r} of {what}?)"
    return did_you_mean(unknown, known)
