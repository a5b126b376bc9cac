"""Connects a run to a journal: its protocol, and how a run starts, resumes and stores its values.

Rules:

1. An action is called only after everything that happened before is stored, including the start of
   its attempt. So a process that dies has done nothing that the journal does not know of.
2. A report is returned only after the end of the run is stored.
3. In the events of a journal, outputs and inputs are `Payload` objects. The output of a mapped
   step as a whole is ``None``, because each of its items stores its own.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Coroutine, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

from asyncflow._core.annotations import input_types, output_type
from asyncflow._core.errors import (
    JournalError,
    PayloadError,
    RunCancelledError,
    escape_controls,
)
from asyncflow._core.graph import (
    Binding,
    DependencyView,
    MaxRetriesView,
    Plan,
    bind,
    bind_conditions,
    secret_steps,
)
from asyncflow._core.record import replace
from asyncflow._core.report import RunReport
from asyncflow._core.results import REDACTED, REDACTED_OUTPUT, Payload
from asyncflow._core.step import WorkflowStep
from asyncflow._core.step_runs import Checkpoint
from asyncflow._core.value_size import safe_repr
from asyncflow._runtime.asyncio_compat import outlast
from asyncflow.events import (
    Event,
    NoteEvent,
    RunResumed,
    RunStarted,
    StepLogged,
    StepTakenOver,
)

if TYPE_CHECKING:
    from asyncflow._core.replay import StoredRun

__all__ = [
    "Journal",
    "JournalSession",
    "OutputTypes",
    "Request",
    "RunPersistence",
    "RunStart",
    "begin",
    "open_fork",
    "open_run",
]

T = TypeVar("T")


# --- the protocol --------------------------------------------------------------------------------


class JournalSession(Protocol):
    """One run's access to a journal, while this process owns the run."""

    def watch(self, on_stop: Callable[[JournalError | RunCancelledError], object]) -> None:
        """Call a function in the event loop, not before its next turn, when the run must stop.

        With a `JournalError`, at most once, when the journal fails or another process takes over
        the run. With a `RunCancelledError`, at most once and before that, when the run is cancelled
        through the journal, which still stores what is appended.
        """

    def append(self, event: Event) -> None:
        """Append an event. Never blocks, and does nothing after a failure or the close.

        Events that are appended in one turn of the loop are stored together or not at all.

        A session may have a method ``append_note``, which does the same for a `NoteEvent`: what
        steps say. These are no part of a run's history. Without the method they are not stored.
        """

    async def flush(self) -> None:
        """Wait until all events appended so far are stored; forever if the journal has failed.

        It may be cancelled at any time, without effect.
        """

    def close(self) -> Coroutine[Any, Any, None]:
        """Wait until all events are stored, and release the run.

        It begins at the call, and may be cancelled and called again.

        Raises:
            JournalError: The journal fails, or failed before.
        """
        ...


class Journal(Protocol):
    """Stores the events of runs, as the journals of `asyncflow.journal` do.

    Its class may have two attributes: ``logs``, the level from which on it stores the log records
    of steps, or ``None``; and ``prints``, whether it stores what they print. Its sessions must
    take notes then.
    """

    def encode(self, subject: str, value: Any, hint: Any) -> Payload:
        """Encode a value.

        Args:
            subject: What the value is, for the error: "the output of step 'load'".
            value: The value.
            hint: Its type by annotations; `Any` if there are none.

        Raises:
            PayloadError: It would not come back equal.
        """
        ...

    def decode(self, subject: str, payload: Payload, hint: Any) -> Any:
        """Decode a value.

        Raises:
            PayloadError: It is not of that type.
        """
        ...

    async def open(
        self, run_id: str, *, wait: bool, read: Callable[[StoredRun], T]
    ) -> tuple[JournalSession, T]:
        """Become the only owner of a run, and replay its stored events.

        Args:
            run_id: The run, which need not exist.
            wait: Whether to wait until another owner is gone.
            read: Called in another thread with the replay, which it may change; of a new run, it
                has no segments. Called again with another replay if events were read before the run
                was owned; the last answer counts.

        Returns:
            The run's session, and the last answer of ``read``.

        Raises:
            RunAlreadyActiveError: It has another owner.
            JournalError: The journal fails.
            Exception: What ``read`` raised. The run has no owner then.
        """
        ...

    async def replay(self, run_id: str, read: Callable[[StoredRun], T]) -> T:
        """Replay the stored events of a run, whoever owns it, and return what ``read`` returns.

        Only a fork calls it, so that a journal without it still runs and resumes runs.

        Args:
            run_id: The run.
            read: Called in another thread with the replay, which it may change.

        Raises:
            RunNotFoundError: There is no such run.
            RunUnreadableError: It is damaged.
            JournalError: The journal fails.
            Exception: What ``read`` raised.
        """
        ...


# --- a run's values ------------------------------------------------------------------------------


class OutputTypes:
    """The annotated output type of each step of a plan, found when it is first needed."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._types: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._types:
            self._types[name] = output_type(self._plan.steps[self._plan.index[name]])
        return self._types[name]


class RunPersistence:
    """Stores what one run produces.

    Attributes:
        session: Takes the events of the run.
        has_closed: Whether the run has been released.
        takes_notes: Whether the session stores what steps say.
        logs: From which level on it stores log records; ``None`` for none.
        prints: Whether it stores printed lines.
    """

    def __init__(self, journal: Journal, session: JournalSession, types: OutputTypes) -> None:
        self.session = session
        self.has_closed = False
        self._journal = journal
        self._types = types
        # A run without a journal needs none of it.
        from asyncflow._runtime.notes import OWN_LOGGER, STREAMS, log_level_of, wants_prints

        self._streams, self._own_logger = STREAMS, OWN_LOGGER
        self.takes_notes = callable(getattr(type(session), "append_note", None))
        self.logs = log_level_of(journal) if self.takes_notes else None
        self.prints = self.takes_notes and wants_prints(journal)

    def store_note(self, note: NoteEvent) -> None:
        """Store what a step said, unless it is a log record that the journal does not want."""
        if isinstance(note, StepLogged):
            if note.logger in self._streams:
                is_wanted = self.prints
            else:
                is_wanted = self.logs is not None and note.level >= self.logs
            if not is_wanted and note.logger != self._own_logger:
                return
        self.session.append_note(note)  # type: ignore[attr-defined]  # it takes notes

    def output(self, name: str, step: WorkflowStep, value: Any) -> Payload:
        """Encode an output; a secret one is replaced.

        Args:
            name: The name of the step, or of the item.
            step: The step.
            value: What its action returned.

        Raises:
            PayloadError: It can't be stored.
        """
        if step.secret:
            return REDACTED
        return self._journal.encode(f"the output of step {name!r}", value, self._types[step.name])

    async def close(
        self, run_id: str
    ) -> tuple[BaseException | None, asyncio.CancelledError | None]:
        """Wait until all events are stored, and release the run, even if cancelled meanwhile.

        Returns:
            The journal's failure, and the cancellation that came meanwhile, if any.
        """
        self.has_closed, cancellation = True, None
        while True:
            closing = asyncio.create_task(self.session.close(), name=f"asyncflow:{run_id}")
            late = await outlast(closing.done, partial(asyncio.wait, [closing]))
            cancellation = cancellation or late
            if not closing.cancelled():  # else by a third party
                break
        try:
            return closing.exception(), cancellation
        finally:
            del cancellation, late  # they keep this frame


# --- how a run starts or resumes -----------------------------------------------------------------


class Request(NamedTuple):
    """The run that a caller asks for."""

    run_id: str
    pipeline: str
    """The name of the pipeline; empty if it has none."""
    plan: Plan
    types: OutputTypes
    inputs: Mapping[str, Any]
    secret_inputs: Collection[str]
    fail_fast: bool
    parent: str = ""
    """The run one of whose steps asks for it; empty if none does."""
    parent_step: str = ""
    """That step."""


class RunStart(NamedTuple):
    """How a run starts or resumes."""

    inputs: Mapping[str, Any]
    bindings: list[Binding]
    conditions: Mapping[int, Binding]
    event: RunStarted | RunResumed
    stored_event: RunStarted | RunResumed | None = None
    """The event as the journal stores it."""
    checkpoint: Checkpoint | None = None
    taken: Sequence[tuple[StepTakenOver, StepTakenOver]] = ()
    """What a fork takes over: the events that follow, each with the one that the journal stores."""


def begin(request: Request) -> RunStart:
    """Return how a new run starts.

    Raises:
        ValueError: Nothing provides a parameter of an action, or two things do.
    """
    plan, inputs = request.plan, request.inputs
    bindings, conditions = bind(plan, inputs), bind_conditions(plan, inputs)
    event = RunStarted(
        request.run_id,
        time.time(),
        DependencyView(plan),
        request.pipeline,
        inputs=_redacted(inputs, request.secret_inputs),
        max_retries=MaxRetriesView(plan),
        secret=secret_steps(plan),
        parent=request.parent,
        parent_step=request.parent_step,
    )
    return RunStart(inputs, bindings, conditions, event)


async def open_run(
    journal: Journal, request: Request, *, wait: bool
) -> tuple[RunPersistence, RunStart | RunReport]:
    """Claim a run in a journal; return how it starts or resumes, or its report if it has passed.

    Raises:
        PayloadError: An input can't be stored, or a stored one can't be read.
        ValueError: The run was started with other inputs, or as `begin` raises it.
        RunAlreadyActiveError: The run has another owner, and ``wait`` is false.
        JournalError: The journal fails.
    """
    session, start = await journal.open(
        request.run_id, wait=wait, read=_RunOpening(journal, request).read
    )
    return RunPersistence(journal, session, request.types), start


async def open_fork(
    journal: Journal, request: Request, origin: str, from_steps: Collection[str]
) -> tuple[RunPersistence, RunStart]:
    """Claim a new run in a journal, and return how it starts with the results of another one.

    Raises:
        PayloadError: An input can't be stored, or a stored value can't be read.
        ValueError: The id is taken, the other run belongs to another pipeline, a secret input is
            missing, or as `begin` raises it.
        RunNotFoundError: There is no other run of that id.
        RunUnreadableError: It is damaged.
        RunAlreadyActiveError: Another process has just claimed the new id.
        JournalError: The journal fails.
    """
    opening = _RunOpening(journal, request)
    start = await journal.replay(origin, partial(opening.fork, from_steps=from_steps))
    session, _ = await journal.open(request.run_id, wait=False, read=opening.check_new)
    return RunPersistence(journal, session, request.types), start


class _RunOpening:
    """Decides from the replay of a run how it starts, resumes or is forked."""

    def __init__(self, journal: Journal, request: Request) -> None:
        self._journal = journal
        self._request = request
        types = input_types(request.plan.steps, request.inputs)
        self._given = {
            name: REDACTED
            if name in request.secret_inputs
            else journal.encode(f"input {name!r}", value, types[name])
            for name, value in request.inputs.items()
        }
        """The inputs that the caller gives, as they are stored."""

    def read(self, stored: StoredRun) -> RunStart | RunReport:
        from asyncflow._core.resume import Fingerprints  # a run without a journal does not need it

        request, given = self._request, self._given
        if not stored.segments:
            start = begin(request)
            event = replace(start.event, fingerprints=Fingerprints(request.plan))
            return start._replace(event=event, stored_event=replace(event, inputs=given))
        self._check_pipeline(stored)
        self._check_inputs(stored)
        has_new_inputs = not given.keys() <= stored.inputs.keys()
        if stored.outcome == "passed" and stored.has_all(request.plan.index) and not has_new_inputs:
            return stored.report(self._decode_passed_output, self._decode_passed_input)
        return self._resume(stored)

    def _resume(self, stored: StoredRun) -> RunStart:
        from asyncflow._core.resume import resume

        request, plan = self._request, self._request.plan
        new = {name: each for name, each in self._given.items() if name not in stored.inputs}
        inputs = self._all_inputs(stored, "resume")
        bindings, conditions = bind(plan, inputs), bind_conditions(plan, inputs)
        event, checkpoint = resume(
            stored,
            plan,
            bindings=bindings,
            conditions=conditions,
            new_inputs=new,
            fail_fast=request.fail_fast,
            wall_time=time.time(),
            decode=self._decode_output,
        )
        event = replace(event, pipeline=request.pipeline or stored.started.pipeline)
        shown = _redacted(inputs, stored.secret_inputs.union(request.secret_inputs))
        # An input that has become secret is reported once more, so that no view shows its value.
        now_secret = {*request.secret_inputs} - stored.secret_inputs
        added = {**dict.fromkeys(sorted(now_secret & stored.inputs.keys()), REDACTED), **new}
        return RunStart(
            inputs,
            bindings,
            conditions,
            replace(event, inputs={name: shown[name] for name in added}),
            replace(event, inputs=added),
            replace(checkpoint, pipeline=event.pipeline, inputs=shown),
        )

    def _check_pipeline(self, stored: StoredRun, way_out: str = "use another run id") -> None:
        pipeline, theirs = self._request.pipeline, stored.started.pipeline
        if theirs and pipeline and theirs != pipeline:
            raise ValueError(
                f"run {stored.run_id!r} belongs to pipeline {theirs!r}, not to {pipeline!r}; "
                f"{way_out}"
            )

    # Forks.

    def check_new(self, stored: StoredRun) -> None:
        """Check that a run is new.

        Raises:
            ValueError: It is not.
        """
        if stored.segments:
            raise ValueError(
                f"run {stored.run_id!r} exists already; fork to another id, or leave it out for a "
                "generated one"
            )

    def fork(self, origin: StoredRun, from_steps: Collection[str]) -> RunStart:
        """Return how a new run starts that takes over what is valid of another one."""
        from asyncflow._core.resume import Fingerprints, fork

        request, plan = self._request, self._request.plan
        self._check_pipeline(origin, "fork it with that pipeline")
        secret = origin.secret_inputs.union(request.secret_inputs)
        inputs = self._all_inputs(origin, "fork it")
        name = request.pipeline or origin.pipeline
        start = begin(request._replace(pipeline=name, inputs=inputs, secret_inputs=secret))
        assert isinstance(start.event, RunStarted)
        stored_inputs = {
            name: REDACTED if name in secret else payload
            for name, payload in {**origin.inputs, **self._given}.items()
        }
        others = {
            name: f"the other run does not have its input {name!r}"
            for name in self._given.keys() - origin.inputs.keys()
        }
        for name, before, hint in self._changed(origin):
            if not self._is_readable_and_equal(name, before, hint):
                others[name] = f"its input {name!r} has another value"
        event = replace(start.event, fingerprints=Fingerprints(plan), forked_from=origin.run_id)
        found = fork(
            origin,
            replace(event, inputs=stored_inputs),
            plan,
            bindings=start.bindings,
            conditions=start.conditions,
            from_steps=from_steps,
            other_inputs=others,
            decode=self._decode_output,
        )
        return start._replace(
            event=replace(event, rerun_reasons=found.event.rerun_reasons),
            stored_event=found.event,
            checkpoint=found.checkpoint,
            taken=[*zip(found.taken, found.stored, strict=True)],
        )

    def _is_readable_and_equal(self, name: str, before: Payload, hint: Any) -> bool:
        """Whether a stored input equals the given one; one that can't be read does not."""
        try:
            was = self._decode_input(name, before, hint)
        except PayloadError:
            return False
        return _is_equal(was, self._request.inputs[name])

    # Inputs.

    def _check_inputs(self, stored: StoredRun) -> None:
        request = self._request
        secret = stored.secret_inputs.union(request.secret_inputs)
        for name, before, hint in self._changed(stored):
            was, value = self._decode_input(name, before, hint), request.inputs[name]
            if not _is_equal(was, value):
                values = f": {_short(was)}, and not {_short(value)}"
                raise ValueError(
                    f"run {request.run_id!r} was started with another input {name!r}"
                    f"{'' if name in secret else values}; leave the inputs out to resume with "
                    "those it has, or use another run id"
                )

    def _changed(self, stored: StoredRun) -> Iterator[tuple[str, Payload, Any]]:
        """Yield the given inputs that are not stored as those of a run are, which may be equal.

        Each comes with what is stored and its type by annotations.
        """
        types = input_types(self._request.plan.steps, self._given)
        for name, payload in self._given.items():
            before = stored.inputs.get(name, payload)
            if before == REDACTED:
                continue  # a secret value was not stored and can't be compared
            if payload == REDACTED:
                payload = self._encode_secret(name, self._request.inputs[name], types[name])
            if before != payload:
                yield name, before, types[name]

    def _decode_input(self, name: str, payload: Payload, hint: Any) -> Any:
        return self._journal.decode(f"the stored input {name!r}", payload, hint)

    def _encode_secret(self, name: str, value: Any, hint: Any) -> Payload:
        """Return how a secret input would be stored if it were not secret, if it can be."""
        try:
            return self._journal.encode(f"input {name!r}", value, hint)
        except PayloadError:
            return REDACTED

    def _all_inputs(self, stored: StoredRun, purpose: str) -> dict[str, Any]:
        """Return the given inputs and the other stored ones."""
        request = self._request
        types = input_types(request.plan.steps, stored.inputs)
        inputs = dict(request.inputs)
        for name, payload in stored.inputs.items():
            if name in inputs:
                continue
            if payload == REDACTED:
                raise ValueError(
                    f"input {name!r} of run {stored.run_id!r} is secret, so it was not stored; "
                    f"give it again to {purpose}"
                )
            inputs[name] = self._decode_input(name, payload, types[name])
        return inputs

    # Stored values. Those of a run that has passed are valid whatever annotations say now.

    def _decode_passed_input(self, name: str, payload: Payload) -> Any:
        types = input_types(self._request.plan.steps, {name: payload})
        try:
            return self._decode_input(name, payload, types[name])
        except PayloadError:
            return self._decode_input(name, payload, Any)

    def _decode_output(self, step: str, payload: Payload) -> Any:
        request = self._request
        hint = request.types[step] if step in request.plan.index else Any
        return self._journal.decode(f"the stored output of step {step!r}", payload, hint)

    def _decode_passed_output(self, step: str, payload: Payload) -> Any:
        try:
            return self._decode_output(step, payload)
        except PayloadError:
            return self._journal.decode(f"the stored output of step {step!r}", payload, Any)


def _redacted(inputs: Mapping[str, Any], secret: Collection[str]) -> Mapping[str, Any]:
    if not secret:
        return inputs
    return {name: REDACTED_OUTPUT if name in secret else inputs[name] for name in inputs}


def _is_equal(one: Any, other: Any) -> bool:
    try:
        return type(one) is type(other) and bool(one == other)
    except Exception:  # arrays, for example, have no single truth value
        return False


def _short(value: Any) -> str:
    text = escape_controls(safe_repr(value))
    return text if len(text) <= 60 else f"{text[:57]}..."
