"""Run a pipeline of dependent async steps inside your own event loop."""

import logging as _logging
import typing as _typing

from asyncflow._core.errors import (
    ActionNotAwaitableError,
    CyclicDependencyError,
    IllegalEventError,
    JournalError,
    LeaseLostError,
    NotSendableError,
    OutputLostError,
    OutputNotAwaitedError,
    PayloadError,
    PipelineChangedError,
    ResourceError,
    RestoredError,
    ResultRefusedError,
    RunAlreadyActiveError,
    RunCancelledError,
    RunIdInUseError,
    RunNotFoundError,
    RunUnreadableError,
    RunWaitingError,
    SharedIteratorError,
    StepCancelledError,
    StepCrashedError,
    StepTimeoutError,
    WorkerLostError,
)
from asyncflow._core.history.report import RunReport
from asyncflow._core.history.results import (
    Attempt,
    RestoredOutput,
    RunStatus,
    Segment,
    SignalWait,
    StepResult,
    StepStatus,
)
from asyncflow._core.pipeline.graph import parallel_groups, topological_sort
from asyncflow._core.pipeline.retry import Retry
from asyncflow._core.pipeline.step import StepPolicies, WorkflowStep
from asyncflow._core.running.context import StepContext, current_step
from asyncflow._runtime.options import Options
from asyncflow._runtime.orchestrator import Orchestrator, run_pipeline

if _typing.TYPE_CHECKING:  # `__getattr__` loads them
    from asyncflow._core.pipeline.retry_after import retry_after
    from asyncflow._core.pipeline.signal import Signal
    from asyncflow._core.running.streamed import StreamedValue, ValuesMissed
    from asyncflow._policies.durable import Journal
    from asyncflow._policies.observers import Observer, ObserverFactory
    from asyncflow._policies.pool_clock import Pool, PoolKeyStats, PoolStats
    from asyncflow._policies.run_link import EventReader, ResultReader
    from asyncflow._runtime.handle import RunHandle, RunOwner, RunProgress
    from asyncflow._runtime.pipeline import Pipeline, after, collect, each
    from asyncflow._runtime.recovery import resume_all

__all__ = [
    "ActionNotAwaitableError",
    "Attempt",
    "CyclicDependencyError",
    "EventReader",
    "IllegalEventError",
    "Journal",
    "JournalError",
    "LeaseLostError",
    "NotSendableError",
    "Observer",
    "ObserverFactory",
    "Options",
    "Orchestrator",
    "OutputLostError",
    "OutputNotAwaitedError",
    "PayloadError",
    "Pipeline",
    "PipelineChangedError",
    "Pool",
    "PoolKeyStats",
    "PoolStats",
    "ResourceError",
    "RestoredError",
    "RestoredOutput",
    "ResultReader",
    "ResultRefusedError",
    "Retry",
    "RunAlreadyActiveError",
    "RunCancelledError",
    "RunHandle",
    "RunIdInUseError",
    "RunNotFoundError",
    "RunOwner",
    "RunProgress",
    "RunReport",
    "RunStatus",
    "RunUnreadableError",
    "RunWaitingError",
    "Segment",
    "SharedIteratorError",
    "Signal",
    "SignalWait",
    "StepCancelledError",
    "StepContext",
    "StepCrashedError",
    "StepPolicies",
    "StepResult",
    "StepStatus",
    "StepTimeoutError",
    "StreamedValue",
    "ValuesMissed",
    "WorkerLostError",
    "WorkflowStep",
    "after",
    "collect",
    "current_step",
    "each",
    "parallel_groups",
    "resume_all",
    "retry_after",
    "run_pipeline",
    "topological_sort",
]

_logging.getLogger(__name__).addHandler(_logging.NullHandler())

__version__ = "0.1.0"

for _public in [globals()[_name] for _name in __all__ if _name in globals()]:
    _public.__module__ = __name__  # where users know them from; the others say so themselves

if not _typing.TYPE_CHECKING:  # pragma: no branch - it would let any name pass

    def __getattr__(name: str) -> object:
        """Load what a short run does without, when it is first asked for: half of an import."""
        match name:
            case "Pool" | "PoolKeyStats" | "PoolStats":
                from asyncflow._policies import pool_clock as home
            case "retry_after":
                from asyncflow._core.pipeline import retry_after as home
            case "Signal":
                from asyncflow._core.pipeline import signal as home
            case "StreamedValue" | "ValuesMissed":
                from asyncflow._core.running import streamed as home
            case "Journal":
                from asyncflow._policies import durable as home
            case "Observer" | "ObserverFactory":
                from asyncflow._policies import observers as home
            case "EventReader" | "ResultReader":
                from asyncflow._policies import run_link as home
            case "RunHandle" | "RunOwner" | "RunProgress":
                from asyncflow._runtime import handle as home
            case "Pipeline" | "after" | "collect" | "each":
                from asyncflow._runtime import pipeline as home
            case "resume_all":
                from asyncflow._runtime import recovery as home
            case _:
                raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        public = globals()[name] = getattr(home, name)
        return public

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
