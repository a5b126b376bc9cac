"""The rows by which steps with ``cache_ms`` find results: each names the event that has one.

A row is written in the transaction of its event, and deleted with its run. What is asked for in one
turn of the loop, or while another question is under way, is one question: a hop to another thread
costs more than to read a row.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from typing import Any, TypeAlias

from asyncflow._core.error_text import describe_fully
from asyncflow._core.errors import JournalError
from asyncflow._core.results import Payload
from asyncflow._core.step_cache import CachedResult
from asyncflow.events import StepSucceeded
from asyncflow.journal._event_codec import event_checksum, event_of
from asyncflow.journal._sql import EVENT_COLUMNS, NOW, Statement, virtual_now

_REMEMBER = (
    "INSERT INTO cached_results (key, run_id, position, attempts, duration_ms, stored_at, "
    f"checksum) VALUES (?, ?, ?, ?, ?, {NOW}, ?) ON CONFLICT (key) DO UPDATE SET "
    "run_id = excluded.run_id, position = excluded.position, attempts = excluded.attempts, "
    "duration_ms = excluded.duration_ms, stored_at = excluded.stored_at, "
    "checksum = excluded.checksum"
)

SELECT_CACHED = (
    f"SELECT c.key, {NOW} - c.stored_at, c.run_id, c.position, c.attempts, c.duration_ms, "
    f"c.checksum, {', '.join(f'e.{column}' for column in EVENT_COLUMNS)} FROM cached_results c "
    "JOIN events e ON e.run_id = c.run_id AND e.position = c.position "
    "WHERE c.key IN ({keys})"
)
"""The results with some keys, each with its age in seconds: the present is a parameter."""

Wanted: TypeAlias = Mapping[str, float]
"""Keys, each with how many seconds old its result may be."""

_log = logging.getLogger("asyncflow")


def remembered(
    key: str,
    run_id: str,
    position: int,
    attempts: int,
    duration_ms: float,
    now: float | None,
) -> Statement:
    """Return the statement that lets a result be found. ``now`` is the present in virtual time."""
    values = run_id, position, attempts, duration_ms
    return Statement(_REMEMBER, (key, *values, now, _checksum(key, *values)))


class Lookups:
    """Asks for the results of one event loop.

    ``read`` returns those with some keys that are not too old. It is called in ``thread``, with
    the keys and the present in virtual time.
    """

    def __init__(
        self, thread: Executor, read: Callable[[Wanted, float | None], Mapping[str, CachedResult]]
    ) -> None:
        self._thread = thread
        self._read = read
        self._wanted: dict[str, float] = {}
        self._answer: asyncio.Future[Mapping[str, CachedResult]] | None = None
        """That of the next question."""
        self._is_busy = False

    async def find(self, key: str, age_s: float) -> CachedResult | None:
        """Return the result with a key that is not older; ``None`` if there is none."""
        # Equal calls ask together; what is too old for one of them is made anew.
        self._wanted[key] = min(age_s, self._wanted.get(key, age_s))
        if self._answer is None:
            loop = asyncio.get_running_loop()  # not kept: the loop is what a journal finds this by
            self._answer = loop.create_future()
            if not self._is_busy:
                self._is_busy = True
                loop.call_soon(self._ask)
        # The answer is for others too, whom the cancellation of one must not disturb.
        return (await asyncio.shield(self._answer)).get(key)

    def _ask(self) -> None:
        wanted, answer = self._wanted, self._answer
        assert answer is not None
        self._wanted, self._answer = {}, None
        try:
            loop = answer.get_loop()
            job = loop.run_in_executor(self._thread, self._read, wanted, virtual_now(loop))
        except JournalError as error:  # it is closed
            self._pass_on(answer, None, error)
        else:
            job.add_done_callback(lambda job: self._pass_on(answer, job, job.exception()))

    def _pass_on(
        self,
        answer: asyncio.Future[Mapping[str, CachedResult]],
        job: asyncio.Future[Mapping[str, CachedResult]] | None,
        error: BaseException | None,
    ) -> None:
        if job is None or error is not None:
            answer.set_exception(error or JournalError("", ""))
            answer.exception()  # all who wanted it may be gone
        else:
            answer.set_result(job.result())
        self._is_busy = self._answer is not None
        if self._is_busy:
            self._ask()


def cached_of(
    journal: str, wanted: Wanted, rows: Iterable[Sequence[Any]]
) -> dict[str, CachedResult]:
    """Return the results that rows of `SELECT_CACHED` lead to, without the damaged and the old."""
    found = {}
    for key, age_s, *row in rows:
        result = _result_of(journal, key, row) if age_s <= wanted.get(key, -1) else None
        if result is not None:
            found[key] = result
    return found


def _result_of(journal: str, key: str, row: Sequence[Any]) -> CachedResult | None:
    run_id, position, attempts, duration_ms, checksum, *event_row = row
    try:
        if checksum != _checksum(key, run_id, position, attempts, duration_ms):
            raise ValueError("its checksum is wrong, so it has changed since it was written")
        event = event_of(event_row)
        if isinstance(event, StepSucceeded) and isinstance(event.output, Payload):
            return CachedResult(run_id, attempts, duration_ms, event.output)
        raise ValueError("it leads to another event")
    # Only our decoding is in here, and in a damaged row anything can be of any type.
    except Exception as error:
        _log.warning(
            "journal %s: a result of run %r can't be reused: %s",
            *(journal, run_id, describe_fully(error)),
        )
        return None


def _checksum(key: str, run_id: str, position: int, attempts: int, duration_ms: float) -> int:
    return event_checksum(
        run_id, position, "Cached", None, None, attempts, duration_ms, None, key, None
    )
