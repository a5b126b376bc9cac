"""How a run begins: as a new one, or with a journal as one that goes on or has passed already.

What keeps a run beyond its process: the seam between the driver and a database.

Rules:

1. An action is called only when all that has happened before is kept, the start of its attempt
   included. So a process that dies has done nothing that the journal could not know of.
2. A report is returned only when the end of the run is kept.
3. In the events of a journal, outputs and inputs are `Payload` objects. The output of a mapped
   step as a whole is ``None``, because each of its items has kept its own.

How one run with a journal keeps what its actions return, and what it was given.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeVar

from asyncflow._core.annotations import input_types, output_type
from asyncflow._core.errors import (
    JournalError,
    PayloadError,
    RunCancelledError,
    escape_controls,
    safe_text,
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
from asyncflow._core.replay import StoredRun
from asyncflow._core.report import RunReport
from asyncflow._core.results import REDACTED, REDACTED_OUTPUT, Payload
from asyncflow._core.resume import Fingerprints, resume
from asyncflow._core.step import WorkflowStep
from asyncflow._core.step_runs import Checkpoint
from asyncflow._runtime.asyncio_compat import shield
from asyncflow.events import Event, RunResumed, RunStarted

__all__ = [
    "Journal",
    "JournalSession",
    "OutputTypes",
    "Request",
    "RunPersistence",
    "RunStart",
    "begin",
    "inputs_to_keep",
    "open_run",
]

T = TypeVar("T")


class JournalSession(Protocol):
    """One run's part of a journal, while this process owns the run."""

    def watch(self, on_stop: Callable[[JournalError | RunCancelledError], object]) -> None:
        """Call a function in the event loop, not before its next turn, when the run has to stop.

        With a `JournalError`, at most once, when the journal fails or the run is lost to another.
        With a `RunCancelledError`, at most once and before that, when somebody has cancelled the
        run through the journal, which goes on keeping what is added.
        """

    def add(self, event: Event) -> None:
        """Append an event. It does not wait, and after a failure it does nothing."""

    async def kept(self) -> None:
        """Wait until all that was added before is kept; for ever, if the journal has failed.

        It may be cancelled at any time, to no effect.
        """

    def close(self) -> Coroutine[Any, Any, None]:
        """Wait until all is kept, and give up the run. It may be cancelled, and called again.

        Raises:
            JournalError: The journal has failed, now or before.
        """
        ...


class Journal(Protocol):
    """Keeps the events of runs; `asyncflow.journal` has such."""

    def encode(self, subject: str, value: Any, hint: Any) -> Payload:
        """Turn a value into bytes.

        Args:
            subject: What the value is, for the error: "the output of step 'load'".
            value: The value.
            hint: Its type, as far as annotations tell; `Any` if they don't.

        Raises:
            PayloadError: It would not come back equal.
        """
        ...

    def decode(self, subject: str, payload: Payload, hint: Any) -> Any:
        """Turn bytes into the value again.

        Raises:
            PayloadError: They are not such a value.
        """
        ...

    async def open(
        self, run_id: str, *, wait: bool, read: Callable[[Sequence[Event]], T]
    ) -> tuple[JournalSession, T]:
        """Become the only owner of a run, and read what is kept of it.

        Args:
            run_id: The run, which need not exist.
            wait: Whether to wait until another owner has ended.
            read: Called in another thread with the events that are kept, in their order; again,
                with those that there are then, if the run was read before it was owned. Only the
                latest answer counts.

        Returns:
            The run's book, and what ``read`` returned at last.

        Raises:
            RunAlreadyActiveError: It has another owner.
            JournalError: The journal has failed.
            Exception: What ``read`` raised. The run has no owner then.
        """
        ...


class OutputTypes:
    """The types of what the actions of a plan return, each found out when it is asked for."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._types: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._types:
            self._types[name] = output_type(self._plan.steps[self._plan.index[name]])
        return self._types[name]


class Closing(NamedTuple):
    """How the closing of a book has ended."""

    failure: BaseException | None
    """What the journal has failed with."""
    cancellation: asyncio.CancelledError | None
    """The cancellation that came meanwhile."""


class RunPersistence:
    """Makes payloads of outputs, and outputs of payloads.

    Attributes:
        book: Where the events of the run go.
        has_closed: Whether the run has been given up.
    """

    def __init__(self, journal: Journal, book: JournalSession, types: OutputTypes) -> None:
        self.book = book
        self.has_closed = False
        self._journal = journal
        self._types = types

    def output(self, name: str, step: WorkflowStep, value: Any) -> Payload:
        """Return what is to be kept of an output.

        Args:
            name: What the step, or the item, is called.
            step: The step.
            value: What its action has returned.

        Raises:
            PayloadError: It can't be kept.
        """
        if step.secret:
            return REDACTED
        return self._journal.encode(f"the output of step {name!r}", value, self._types[step.name])

    async def close(self, run_id: str) -> Closing:
        """Wait until all is kept, and give up the run; a cancellation does not cut that short."""
        loop, cancellation, self.has_closed = asyncio.get_running_loop(), None, True
        closing = loop.create_task(self.book.close(), name=f"asyncflow:{run_id}")
        with shield():
            while not closing.done():
                try:
                    await asyncio.wait([closing])
                except asyncio.CancelledError as again:
                    cancellation = again
        try:
            return Closing(None if closing.cancelled() else closing.exception(), cancellation)
        finally:
            del cancellation  # it keeps this frame


def inputs_to_keep(
    journal: Journal, plan: Plan, inputs: Mapping[str, Any], secret: Collection[str]
) -> dict[str, Payload]:
    """Return what is to be kept of a run's inputs.

    Raises:
        PayloadError: One of them can't be kept.
    """
    types = input_types(plan.steps, inputs)
    return {
        name: REDACTED if name in secret else journal.encode(f"input {name!r}", value, types[name])
        for name, value in inputs.items()
    }


class Request(NamedTuple):
    """The run that somebody asks for."""

    run_id: str
    pipeline: str
    """What the pipeline is called."""
    plan: Plan
    types: OutputTypes
    inputs: Mapping[str, Any]
    secret_inputs: Collection[str]
    fail_fast: bool


class RunStart(NamedTuple):
    """How a run begins or goes on."""

    inputs: Mapping[str, Any]
    bindings: list[Binding]
    conditions: Mapping[int, Binding]
    event: RunStarted | RunResumed
    kept: RunStarted | RunResumed | None = None
    """The event as a journal keeps it."""
    checkpoint: Checkpoint | None = None


def begin(request: Request) -> RunStart:
    """Return how a run begins that no journal keeps, or none has kept before.

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
        inputs=_shown(inputs, request.secret_inputs),
        max_retries=MaxRetriesView(plan),
        secret=secret_steps(plan),
    )
    return RunStart(inputs, bindings, conditions, event)


async def open_run(
    journal: Journal, request: Request, *, wait: bool
) -> tuple[RunPersistence, RunStart | RunReport]:
    """Become the owner of a run in a journal; return how it begins, or its report if it has passed.

    Raises:
        PayloadError: An input can't be kept, or not be read again.
        ValueError: The run was started with other inputs, or as `begin` raises it.
        RunAlreadyActiveError: Somebody else owns the run, and is not waited for.
        JournalError: The journal has failed.
    """
    given = inputs_to_keep(journal, request.plan, request.inputs, request.secret_inputs)
    book, opening = await journal.open(
        request.run_id,
        wait=wait,
        read=partial(_read, journal, request, given),
    )
    return RunPersistence(journal, book, request.types), opening


def _read(
    journal: Journal, request: Request, given: Mapping[str, Payload], events: Sequence[Event]
) -> RunStart | RunReport:
    if not events:
        opening = begin(request)
        event = replace(opening.event, fingerprints=Fingerprints(request.plan))
        return opening._replace(event=event, kept=replace(event, inputs=given))
    story = StoredRun(events)
    _check_pipeline(request, story.started.pipeline)
    _check_inputs(journal, request, story, given)
    has_new_inputs = not given.keys() <= story.inputs.keys()
    if story.outcome == "passed" and story.has_all(request.plan.index) and not has_new_inputs:
        return story.report(
            partial(_decode_somehow, journal, request), partial(_decode_input, journal, request)
        )
    return _go_on(journal, request, given, story)


def _go_on(
    journal: Journal, request: Request, given: Mapping[str, Payload], story: StoredRun
) -> RunStart:
    plan, new = request.plan, {n: each for n, each in given.items() if n not in story.inputs}
    inputs = _all_inputs(journal, request, story.inputs)
    bindings, conditions = bind(plan, inputs), bind_conditions(plan, inputs)
    event, checkpoint = resume(
        story,
        plan,
        bindings=bindings,
        conditions=conditions,
        new_inputs=new,
        fail_fast=request.fail_fast,
        wall_time=time.time(),
        decode=partial(_decode, journal, request),
    )
    event = replace(event, pipeline=request.pipeline or story.started.pipeline)
    all_shown = _shown(inputs, story.secret_inputs.union(request.secret_inputs))
    # Those that have become secret are told of once more, so that nobody shows them any longer.
    now_secret = {*request.secret_inputs} - story.secret_inputs
    to_keep = {**dict.fromkeys(sorted(now_secret & story.inputs.keys()), REDACTED), **new}
    shown = {name: all_shown[name] for name in to_keep}
    checkpoint = replace(checkpoint, pipeline=event.pipeline, inputs=all_shown)
    return RunStart(
        inputs,
        bindings,
        conditions,
        replace(event, inputs=shown),
        replace(event, inputs=to_keep),
        checkpoint,
    )


def _check_pipeline(request: Request, stored: str) -> None:
    if stored and request.pipeline and stored != request.pipeline:
        raise ValueError(
            f"run {request.run_id!r} is one of pipeline {stored!r}, and not of "
            f"{request.pipeline!r}; give it another run id"
        )


# Inputs.


def _shown(inputs: Mapping[str, Any], secret: Collection[str]) -> Mapping[str, Any]:
    if not secret:
        return inputs
    return {name: REDACTED_OUTPUT if name in secret else inputs[name] for name in inputs}


def _check_inputs(
    journal: Journal,
    request: Request,
    story: StoredRun,
    given: Mapping[str, Payload],
) -> None:
    types = input_types(request.plan.steps, given)
    secret = story.secret_inputs.union(request.secret_inputs)
    for name, payload in given.items():
        before = story.inputs.get(name, payload)
        if before == REDACTED:
            continue  # what was secret is not there to be compared
        if payload == REDACTED:
            payload = _as_kept(journal, name, request.inputs[name], types[name])
        if before == payload:
            continue
        was = journal.decode(f"the stored input {name!r}", before, types[name])
        if not _is_equal(was, request.inputs[name]):
            values = f": {_text(was)}, and not {_text(request.inputs[name])}"
            raise ValueError(
                f"run {request.run_id!r} was started with another input {name!r}"
                f"{'' if name in secret else values}; leave the inputs out to go on "
                "with those it has, or give it another run id"
            )


def _as_kept(journal: Journal, name: str, value: Any, hint: Any) -> Payload:
    """Return how a secret input would have been kept, if it could."""
    try:
        return journal.encode(f"input {name!r}", value, hint)
    except PayloadError:
        return REDACTED


def _is_equal(one: Any, other: Any) -> bool:
    try:
        return type(one) is type(other) and bool(one == other)
    except Exception:  # of arrays, and whatever else can't tell
        return False


def _text(value: Any) -> str:
    text = escape_controls(safe_text(repr, value))
    return text if len(text) <= 60 else f"{text[:57]}..."


def _decode_input(journal: Journal, request: Request, name: str, payload: Payload) -> Any:
    """Decode an input of a run that has passed, which nobody needs any more."""
    types = input_types(request.plan.steps, {name: payload})
    try:
        return journal.decode(f"the stored input {name!r}", payload, types[name])
    except PayloadError:
        return journal.decode(f"the stored input {name!r}", payload, Any)


def _all_inputs(
    journal: Journal, request: Request, stored: Mapping[str, Payload]
) -> dict[str, Any]:
    """Return the inputs with which a run goes on: those that are given now, and the stored ones."""
    types = input_types(request.plan.steps, stored)
    inputs = dict(request.inputs)
    for name, payload in stored.items():
        if name in inputs:
            continue
        if payload == REDACTED:
            raise ValueError(
                f"input {name!r} of run {request.run_id!r} is secret, so it was not kept; give it "
                "again to go on"
            )
        inputs[name] = journal.decode(f"the stored input {name!r}", payload, types[name])
    return inputs


# Outputs.


def _decode(journal: Journal, request: Request, step: str, payload: Payload) -> Any:
    hint = request.types[step] if step in request.plan.index else Any
    return journal.decode(f"the stored output of step {step!r}", payload, hint)


def _decode_somehow(journal: Journal, request: Request, step: str, payload: Payload) -> Any:
    """Decode an output of a run that has passed, which is valid whatever annotations say now."""
    try:
        return _decode(journal, request, step, payload)
    except PayloadError:
        return journal.decode(f"the stored output of step {step!r}", payload, Any)
