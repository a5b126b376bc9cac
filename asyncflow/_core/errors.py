"""The exceptions that asyncflow raises itself.

Rules:

1. The exception of a step is never wrapped in one of these.
2. Each of them can be pickled, and has all that its message says as attributes too.
3. Names and errors belong to users: nothing that they hold or raise breaks a line that shows them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    # It imports this module.
    from asyncflow._core.history.report import RunReport

TimeoutKind: TypeAlias = Literal["attempt", "step", "heartbeat", "run"]


class _AttributedError(Exception):
    """An exception whose message is a template that its attributes fill.

    A subclass passes all its arguments on, in order, so that pickle can call it with them again.
    """

    _message: str

    def __str__(self) -> str:
        return self._message.format_map(vars(self))


class CyclicDependencyError(_AttributedError, ValueError):
    """The steps depend on each other in a circle, so there is no order to run them in.

    Attributes:
        cycle: The names along the circle, each one a dependency of the next. The first and
            the last name are the same: ``["a", "b", "a"]``.
    """

    def __init__(self, cycle: list[str]) -> None:
        super().__init__(cycle)
        self.cycle = cycle

    def __str__(self) -> str:
        return f"steps depend on each other in a circle: {' -> '.join(self.cycle)}"


DEFAULT_TIMEOUT_MS = 30_000
"""The ``timeout_ms`` of a step that says nothing, as the error of its attempts does."""


class StepTimeoutError(TimeoutError):
    """An attempt, or a wait for the next item of a mapped step, exceeded a time limit.

    Only the run raises it. A ``TimeoutError`` that the step itself raises stays as it is, so the
    two can be told apart. If the step's clean-up raises while the limit cancels it, that
    exception is the ``__cause__``.

    Attributes:
        step_name: The step; with its number, ``fetch[3]``, for an item of a mapped step.
        attempt: The number of the attempt, counted from 1; 0 for a mapped step as a whole, and for
            a step that waited for a signal.
        timeout_ms: The limit that was exceeded, in milliseconds.
        kind: Which limit that was: ``"attempt"`` (the step's ``timeout_ms``), ``"step"`` (its
            ``deadline_ms``), ``"heartbeat"`` (its ``heartbeat_ms``) or ``"run"`` (the run's
            ``deadline_ms``).
        source: What a mapped step waited for the next item of, if it did: a step, whose
            ``timeout_ms`` limits each such wait, or an input. Empty otherwise.
    """

    def __init__(
        self,
        step_name: str,
        attempt: int,
        timeout_ms: float,
        kind: TimeoutKind = "attempt",
        source: str = "",
    ) -> None:
        who = f"attempt {attempt} of step {step_name!r}" if attempt else f"step {step_name!r}"
        what = _EXCEEDED[kind].format(who=who, step=repr(step_name), attempt=attempt)
        is_default = kind == "attempt" and timeout_ms == DEFAULT_TIMEOUT_MS
        if source:
            limit = "its deadline" if kind == "step" else "that one's timeout_ms"
            limit = "the default timeout_ms" if is_default else limit
            what = f"{who} waited for the next item of {source!r} longer than {limit} of"
        elif kind == "step" and not attempt:
            what = f"{who} received no signal within its deadline of"
        elif is_default:
            what = f"{who} exceeded the default timeout_ms of"
        whose = repr(source) if source else "the step"
        way_out = f"; give {whose} another one, or None for no limit" if is_default else ""
        # One argument only: OSError, the base of TimeoutError, reads two as errno and text.
        super().__init__(f"{what} {timeout_ms:.10g} ms{way_out}")
        self.step_name = step_name
        self.attempt = attempt
        self.timeout_ms = timeout_ms
        self.kind: TimeoutKind = kind
        self.source = source

    def __reduce__(self) -> tuple[object, ...]:
        arguments = self.step_name, self.attempt, self.timeout_ms, self.kind, self.source
        return type(self), arguments, self.__dict__


_EXCEEDED: dict[TimeoutKind, str] = {
    "attempt": "{who} exceeded its timeout_ms of",
    "step": "step {step} exceeded, in attempt {attempt}, its deadline of",
    "heartbeat": "{who} gave no heartbeat for",
    "run": "{who} was running when the run exceeded its deadline of",
}


class ResultRefusedError(_AttributedError):
    """An attempt returned a value that the step's ``Retry(until=...)`` did not accept.

    Attributes:
        step_name: The step.
        attempt: The number of the attempt, counted from 1.
        result: The value; what stands for it if the step is secret.
    """

    _message = (
        "attempt {attempt} of step {step_name!r} returned a value that its Retry(until=...) "
        "did not accept"
    )

    def __init__(self, step_name: str, attempt: int, result: object) -> None:
        super().__init__(step_name, attempt, result)
        self.step_name = step_name
        self.attempt = attempt
        self.result = result


class StepCancelledError(_AttributedError):
    """A step raised ``CancelledError`` although nothing had asked it to stop.

    The step cancelled its own task, or it awaited something that a third party cancelled. The
    ``CancelledError`` is the ``__cause__``. This is an ordinary failure, not a cancellation: the
    step is retried, and this class is no ``CancelledError``.

    Attributes:
        step_name: The step.
        attempt: The number of the attempt, counted from 1.
    """

    _message = (
        "attempt {attempt} of step {step_name!r} was cancelled from inside: it cancelled its own "
        "task or awaited something that was cancelled"
    )

    def __init__(self, step_name: str, attempt: int) -> None:
        super().__init__(step_name, attempt)
        self.step_name = step_name
        self.attempt = attempt


class ActionNotAwaitableError(_AttributedError, TypeError):
    """An action was called and returned something that cannot be awaited.

    The call has had its effect by then, so the step is not retried.

    Attributes:
        step_name: The step.
        returned: The name of the type that the action returned.
    """

    _message = (
        "the action of step {step_name!r} returned {returned}, which cannot be awaited; make it "
        "'async def', or say runs_in=\"thread\" if it is a plain function"
    )

    def __init__(self, step_name: str, returned: str) -> None:
        super().__init__(step_name, returned)
        self.step_name = step_name
        self.returned = returned


class OutputNotAwaitedError(_AttributedError, TypeError):
    """An action returned a coroutine: its code lacks an ``await``, so that coroutine never ran.

    The step is not retried, since the next attempt would lack it too.

    Attributes:
        step_name: The step.
        returned: The name of the coroutine.
    """

    _message = (
        "the action of step {step_name!r} returned the coroutine {returned} without having "
        "awaited it; put an 'await' before the call"
    )

    def __init__(self, step_name: str, returned: str) -> None:
        super().__init__(step_name, returned)
        self.step_name = step_name
        self.returned = returned


def shared_by(takers: Sequence[str]) -> str:
    """Return what is wrong with an iterator that these steps take, as a part of a sentence."""
    *others, last = map(repr, takers)
    if not others:
        return f"each item of step {last} takes, and would get only some of what it gives"
    return f"steps {', '.join(others)} and {last} take, and each would get only some of its items"


class SharedIteratorError(_AttributedError, TypeError):
    """A step returned an iterator that several steps take: each would get only some of its items.

    So would the items of a mapped step to which it is an argument.

    The step is not retried, since the next attempt would return one too. A list can be taken any
    number of times.

    Attributes:
        step_name: The step; with its number, ``fetch[3]``, for an item of a mapped step.
        returned: The name of the type that the step returned.
        takers: The names of the steps that take it.
        instead: What the step can return instead: of an open file, its path.
    """

    def __init__(
        self, step_name: str, returned: str, takers: tuple[str, ...], instead: str = "a list"
    ) -> None:
        super().__init__(step_name, returned, takers, instead)
        self.step_name = step_name
        self.returned = returned
        self.takers = takers
        self.instead = instead

    def __str__(self) -> str:
        return (
            f"step {self.step_name!r} returned an iterator ({self.returned}), which "
            f"{shared_by(self.takers)}; return {self.instead}"
        )


class RestoredError(_AttributedError):
    """Stands for an exception that did not survive a trip through JSON or pickle.

    Attributes:
        type_name: The qualified name of the original's class.
        message: What ``str()`` of the original gave.
        traceback: The original's formatted traceback, or an empty string.
    """

    _message = "{type_name}: {message}"

    def __init__(self, type_name: str, message: str, traceback: str = "") -> None:
        super().__init__(type_name, message, traceback)
        self.type_name = type_name
        self.message = message
        self.traceback = traceback


class StepCrashedError(_AttributedError):
    """An attempt did not finish: its process died, its journal failed, or it lost its lease.

    The history of a resumed run has one for each such attempt. A step with more of them than its
    ``max_crashes`` fails with the last.

    Attributes:
        step_name: The step; with its number, ``fetch[3]``, for an item of a mapped step.
        attempt: The number of the attempt, counted from 1.
        crashes: How many attempts of the step did not finish, this one included.
    """

    def __init__(self, step_name: str, attempt: int, crashes: int) -> None:
        super().__init__(step_name, attempt, crashes)
        self.step_name = step_name
        self.attempt = attempt
        self.crashes = crashes

    def __str__(self) -> str:
        others = "" if self.crashes == 1 else f" ({self.crashes} such attempts)"
        return (
            f"attempt {self.attempt} of step {self.step_name!r} did not finish: its process died "
            f"or its journal failed{others}"
        )


class WorkerLostError(_AttributedError):
    """The worker of an engine was lost with an attempt: how far the action came is unknown.

    It is retried like any other failure. `StepContext.idempotency_key` lets an action find out what
    an earlier attempt has done.

    Attributes:
        step_name: The step.
        attempt: The attempt, counted from 1.
        worker: The worker; empty if the attempt had not begun.
        reason: What the engine knows about it.
    """

    def __init__(self, step_name: str, attempt: int, worker: str, reason: str) -> None:
        super().__init__(step_name, attempt, worker, reason)
        self.step_name = step_name
        self.attempt = attempt
        self.worker = worker
        self.reason = reason

    def __str__(self) -> str:
        lost = (
            f"its worker {self.worker} was lost" if self.worker else "it was lost before it began"
        )
        return f"step {self.step_name!r}, attempt {self.attempt}: {lost}: {self.reason}"


class OutputLostError(_AttributedError, LookupError):
    """An output that stayed on an engine is not there any more, as after the loss of its worker.

    A step that takes it fails with this error and is not retried, since each attempt would miss it
    too. The step that made it does not run again: it has succeeded, and may have had effects. A new
    run, or a resumption of one with a journal, makes the output again.

    Attributes:
        engine: The engine.
        worker: Where the output was.
        reason: What the engine knows about it.
        step_name: The step that made it; empty if the engine does not know.
        parameter: The parameter that would have received it; empty if `RemoteOutput.fetch` was
            called.
    """

    def __init__(
        self, engine: str, worker: str, reason: str, step_name: str = "", parameter: str = ""
    ) -> None:
        super().__init__(engine, worker, reason, step_name, parameter)
        self.engine = engine
        self.worker = worker
        self.reason = reason
        self.step_name = step_name
        self.parameter = parameter

    def __str__(self) -> str:
        output = f"the output of step {self.step_name!r}" if self.step_name else "an output"
        taker = f" for parameter {self.parameter!r}" if self.parameter else ""
        return (
            f"{output}{taker}, which stayed on engine {self.engine!r} at {self.worker}, is lost: "
            f"{self.reason}"
        )


class ResourceError(_AttributedError):
    """A resource of a run could not be opened, failed while it closed, or stopped the run.

    What the resource raised is the ``__cause__``. The steps have ended, and the other resources are
    closed. If a resource failed while it closed, the run may have passed: nothing else says so but
    the report.

    Attributes:
        resource: The name of the resource; empty if a third party cancelled the task that holds the
            resources.
        problem: What happened.
        report: The report of the run. Its status is ``INTERRUPTED``, unless all steps had ended
            before; or ``WAITING``, if the run had waited, and waits on.
    """

    def __init__(self, resource: str, problem: str, report: RunReport) -> None:
        super().__init__(resource, problem, report)
        self.resource = resource
        self.problem = problem
        self.report = report

    def __str__(self) -> str:
        subject = f"resource {self.resource!r}" if self.resource else "the task of the resources"
        return f"{subject} {self.problem}"


class RunWaitingError(_AttributedError):
    """A run has no failures to raise and no results either: it waits for signals, or to start.

    Attributes:
        run_id: The run.
        signals: The names of the steps that wait; empty if the run waits to start.
    """

    def __init__(self, run_id: str, signals: tuple[str, ...]) -> None:
        super().__init__(run_id, signals)
        self.run_id = run_id
        self.signals = signals

    def __str__(self) -> str:
        if not self.signals:
            return (
                f"run {self.run_id!r} waits to start; a service starts it when it is due, its key "
                "is free and there is a place; until then, answer a request with 202 and the id of "
                "the run"
            )
        names = ", ".join(map(repr, self.signals))
        return (
            f"run {self.run_id!r} waits for {names}; send each with journal.signal() or "
            "`asyncflow signal`, and the run continues; until then, answer a request with 202 and "
            'the id of the run, or let the run stay in its process with on_wait="stay"'
        )


class NotSendableError(_AttributedError, TypeError):
    """An action, an argument, an output or an error can't be sent between a run and its engine.

    The step is not retried: the next attempt could not send it either.

    Attributes:
        step_name: The step.
        subject: What can't be sent: ``its action``, ``argument 'db'``, ``its output``.
        problem: Why not, and what can be done about it.
    """

    _message = "step {step_name!r}: {subject} can't be sent between processes: {problem}"

    def __init__(self, step_name: str, subject: str, problem: str) -> None:
        super().__init__(step_name, subject, problem)
        self.step_name = step_name
        self.subject = subject
        self.problem = problem


class JournalError(_AttributedError):
    """A journal could not read or write.

    The message says what happened, and what is safe. What was committed before stays committed:
    once the cause is gone, the same run can be started again under its id.

    Attributes:
        journal: Which journal it is: its file, or its address without the password.
        problem: What happened.
    """

    _message = "journal {journal}: {problem}"

    def __init__(self, journal: str, problem: str) -> None:
        super().__init__(journal, problem)
        self.journal = journal
        self.problem = problem


class LeaseLostError(JournalError):
    """Another process acquired the run's lease, which this one did not renew in time."""


class RunUnreadableError(JournalError):
    """What a journal has of a run can't be read: it is damaged, or a newer asyncflow wrote it.

    The journal was left as it is, and its other runs are not affected.

    Attributes:
        run_id: The run.
        reason: What is wrong.
        position: The event that can't be read, counted from 1; ``None`` if it is the run as a
            whole.
    """

    def __init__(self, journal: str, run_id: str, reason: str, position: int | None = None) -> None:
        subject = f"run {run_id!r}" if position is None else f"event {position} of run {run_id!r}"
        super().__init__(
            journal,
            f"{subject} can't be read: {reason}. It was left as it is: restore the journal from a "
            "backup, or remove the run with forget; if a newer asyncflow wrote it, upgrade this "
            "one",
        )
        self.args = journal, run_id, reason, position
        self.run_id = run_id
        self.reason = reason
        self.position = position


class RunAlreadyActiveError(_AttributedError):
    """A run with the same id is running, or another run has the key.

    Attributes:
        run_id: The run that is active.
        owner: Which process runs it; empty if none does.
        advice: What the caller can do about it.
        key: The key that it has; empty if it is about the id of the run.
        status: Then, the status of the run that has the key.
    """

    def __init__(
        self,
        run_id: str,
        owner: str,
        advice: str = 'to wait until it has ended there, say on_active="wait"',
        *,
        key: str = "",
        status: str = "",
    ) -> None:
        super().__init__(run_id, owner)
        self.run_id = run_id
        self.owner = owner
        self.advice = advice
        self.key = key
        self.status = status

    def __str__(self) -> str:
        where = f" in {self.owner}" if self.owner else ""
        if self.key:
            state = f"{self.status}{where}"
            what = f"run {self.run_id!r}, which is {state}, has the key {self.key!r}"
        else:
            what = f"run {self.run_id!r} is active{where}"
        return f"{what}; {self.advice}"


class RunIdInUseError(_AttributedError, ValueError):
    """A stored run has the id, and it is another one: it has other inputs, or another pipeline.

    The message has no values: it may reach a client that has chosen the id of another one's run.

    Attributes:
        run_id: The id.
        problem: How the stored run differs, and what to do.
    """

    _message = "run {run_id!r} {problem}"

    def __init__(self, run_id: str, problem: str) -> None:
        super().__init__(run_id, problem)
        self.run_id = run_id
        self.problem = problem


class PipelineChangedError(_AttributedError, ValueError):
    """A stored run is to continue, and its pipeline no longer has all steps that it would run.

    The run was left as it is. A version of the pipeline that has these steps continues it; so does
    this one, without them, with ``with_options(allow_missing_steps=True)``.

    Attributes:
        run_id: The run.
        pipeline: The name of the pipeline; empty if it has none.
        missing: The steps that it no longer has, in topological order, each with its nearest step;
            ``None`` if none is near.
    """

    def __init__(self, run_id: str, pipeline: str, missing: Mapping[str, str | None]) -> None:
        super().__init__(run_id, pipeline, missing)
        self.run_id = run_id
        self.pipeline = pipeline
        self.missing = missing

    def __str__(self) -> str:
        steps = ", ".join(
            repr(name) if nearest is None else f"{name!r} (did you mean {nearest!r}?)"
            for name, nearest in self.missing.items()
        )
        of = f"pipeline {self.pipeline!r}" if self.pipeline else "the pipeline"
        noun = "step" if len(self.missing) == 1 else "steps"
        return (
            f"run {self.run_id!r} can't continue: {of} no longer has its {noun} {steps}; continue "
            "it with a version that has all of them, or skip them with "
            "with_options(allow_missing_steps=True) or --allow-missing-steps"
        )


class RunCancelledError(_AttributedError):
    """The run was cancelled through its journal, or by its handle (`RunHandle.cancel`).

    Its steps have ended, clean-up included, and the journal, if it has one, has stored that. A step
    that awaits the run and fails with this error is not retried: another attempt would resume the
    cancelled run.

    Attributes:
        run_id: The run.
        reason: Why it was cancelled; empty if it was cancelled through its journal without one.
        cause: ``"cancelled"``; or ``"replaced"`` if another run of its key has replaced it.
        report: How its steps ended; ``None`` if it had not begun, or if the error was stored.
    """

    def __init__(self, run_id: str, reason: str = "") -> None:
        super().__init__(run_id, reason)
        self.run_id = run_id
        self.reason = reason
        self.cause: Literal["cancelled", "replaced"] = "cancelled"
        self.report: RunReport | None = None

    def __str__(self) -> str:
        if self.reason:
            return f"run {self.run_id!r} was cancelled: {self.reason}"
        return (
            f"run {self.run_id!r} was cancelled through its journal; start it again under its id "
            "to resume it"
        )


class MissingInputError(_AttributedError, ValueError):
    """An action, or the condition of a step, requires a parameter that nothing provides.

    ``hint`` says what it is not, and which name may have been meant.
    """

    _message = "nothing provides parameter {parameter!r} of {taker}: {hint}"

    def __init__(self, parameter: str, taker: str, hint: str) -> None:
        super().__init__(parameter, taker, hint)
        self.parameter = parameter
        self.taker = taker
        self.hint = hint


class MissingExtraError(ModuleNotFoundError):
    """What an extra of asyncflow brings is not installed; its message says how to install that."""


class RunNotFoundError(_AttributedError, LookupError):
    """A journal has no run with that id.

    Attributes:
        run_id: The id.
        journal: Which journal it is.
        hint: The end of the message: which run may have been meant.
    """

    _message = "journal {journal} has no run {run_id!r}{hint}"

    def __init__(self, run_id: str, journal: str, hint: str = "") -> None:
        super().__init__(run_id, journal, hint)
        self.run_id = run_id
        self.journal = journal
        self.hint = hint


class PayloadError(_AttributedError):
    """A journal can't store a value, or can't read it back.

    Attributes:
        subject: Which value it is: ``the output of step 'load'``.
        problem: What is wrong with it, and what can be done about it.
    """

    _message = "{subject} {problem}"

    def __init__(self, subject: str, problem: str) -> None:
        super().__init__(subject, problem)
        self.subject = subject
        self.problem = problem


class IllegalEventError(_AttributedError, RuntimeError):
    """An event cannot happen to a step, or to a run, in the state that it is in.

    The event was refused and has changed nothing.

    Attributes:
        event: The refused event.
        state: In one or two words, the state that refused it.
    """

    _message = "{event!r} cannot happen: {state}"

    def __init__(self, event: object, state: str) -> None:
        super().__init__(event, state)
        self.event = event
        self.state = state


class HangError(_AttributedError, RuntimeError):
    """In virtual time: nothing can ever happen again, and tasks still wait.

    Attributes:
        waiting: For each task, its name and where it waits.
    """

    def __init__(self, waiting: list[str]) -> None:
        super().__init__(waiting)
        self.waiting = waiting

    def __str__(self) -> str:
        return "\n  ".join(["nothing can ever happen again, but these tasks wait:", *self.waiting])


SHUTDOWN = "the service was shut down"
"""Why a service interrupts its runs at its end."""
