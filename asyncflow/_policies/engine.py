"""The engine protocol: runs one attempt of one step elsewhere, such as on a cluster.

An engine decides on whose machine an attempt runs; the step's ``runs_in`` decides where in the
process that it reaches. Retries, limits, fail-fast and the journal stay with the run.

Rules:

1. Awaiting `Engine.run` runs the attempt. When that await is over, however it ends, the body of the
   attempt has ended, or will never begin; a thread that was reported as abandoned is the exception.
2. An engine never retries and never times out: a body runs at most once for each call.
3. What the attempt did is always an answer, never an error of the engine. `WorkerLostError` is the
   one error that an engine makes itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from asyncflow._core.pipeline.step import WorkflowStep
from asyncflow._core.record import record

if TYPE_CHECKING:
    from asyncflow._core.history.log import StartedAttempt
    from asyncflow._core.running.context import Notes
    from asyncflow._policies.workers import ThreadEnd


@record
class EngineCall:
    """One attempt, as a run gives it to an engine. Its callables belong to the loop's thread."""

    run_id: str
    step: WorkflowStep
    running: StartedAttempt
    """The attempt: the step's name, its number, and its item if the step is mapped."""
    arguments: Mapping[str, Any]
    """What the action is called with. Among the values may be a `RemoteOutput` of this engine."""
    limit_s: float | None
    """How many seconds the body may take from when it begins: the tighter one of the attempt's
    limit and what is left until the step's deadline. The run enforces it. ``None`` for no limit."""
    deadline_s: float | None
    """How many seconds are left from now until the deadline of the run, or of the attempt around
    it, for which the wait for a worker counts too; ``None`` for none. The run enforces it."""
    may_keep: bool
    """Whether the output may stay on the engine, because only this engine's steps take it."""
    began: Callable[[str], None]
    """To be called once, when the body begins, with the name of its worker. From then on the
    attempt's time counts."""
    located: Callable[[str], None]
    """To be called with the process that has run the body, as ``host:pid``, once that is known and
    if ``began`` did not say it."""
    beat: Callable[[], None] | None
    """To be called at each heartbeat of the body; ``None`` if the step has no ``heartbeat_ms``."""
    saved: Callable[[tuple[str, bytes]], None]
    """To be called with a checkpoint of the body, encoded: soon if that is possible, and with the
    latest when the body has ended."""
    abandon: Callable[[ThreadEnd], None]
    """To be called when the attempt ends before its thread does."""
    unconfirmed: Callable[[str], None]
    """To be called, with a reason, when it can't be told for long whether a body has ended."""
    notes: Notes | None
    """Takes what the attempt says: progress, attachments, and log records if it ``takes_logs``."""


class Engine(Protocol):
    """Runs attempts elsewhere. It lasts longer than a run, as a journal does, and serves many.

    Attributes:
        name: What displays call it, such as ``"dask"``.
        stops_bodies: Whether it can stop a body that runs in an event loop or a process. If not,
            a body that must stop is abandoned, reported, and never overlapped by another attempt.
        moves_data: Whether an output may stay where it was made.
        tells_began: Whether it reports the moment when a body begins. If not, it reports the
            submission, and each of its attempts counts a crash when the process of the run dies.
    """

    name: str
    stops_bodies: bool
    moves_data: bool
    tells_began: bool

    def check(self, step: WorkflowStep, /) -> None:
        """Check that this engine can run a step, before anything runs.

        Raises:
            RuntimeError: The engine is not open, or belongs to another event loop.
            TypeError: The action can't be sent to a worker.
            ValueError: The engine has no room for such a step, or can't serve one of its options.
        """
        ...

    async def run(self, call: EngineCall, /) -> Any:
        """Make an attempt, and return what the action returned, or a `RemoteOutput`.

        Raises:
            asyncio.CancelledError: The caller was cancelled; the body has ended.
            WorkerLostError: The worker was lost. How far the body came is unknown.
            OutputLostError: A `RemoteOutput` among the arguments is not there any more.
            BaseException: What the action raised, with its remote traceback as a note.
        """
        ...
