"""How a run with a journal starts, resumes, or is rerun from another one.

A run without a journal does not load this module.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Awaitable, Callable, Collection, Iterator
from functools import partial
from inspect import signature
from typing import Any

from asyncflow._core.arguments import default_of
from asyncflow._core.errors import PayloadError, PipelineChangedError, RunIdInUseError
from asyncflow._core.history.replay import StoredRun
from asyncflow._core.history.report import RunReport
from asyncflow._core.history.results import REDACTED, REDACTED_OUTPUT, Payload, RunStatus
from asyncflow._core.history.resume import rerun, resume, valid_checkpoints
from asyncflow._core.history.stored_report import OutputReader, log_of, report_from
from asyncflow._core.pipeline.annotations import input_types
from asyncflow._core.pipeline.fingerprint import fingerprints_of
from asyncflow._core.pipeline.graph import OutputTypes, Plan
from asyncflow._core.pipeline.signal import asks_of
from asyncflow._core.pipeline.step import taker_of
from asyncflow._core.record import replace
from asyncflow._core.running.step_cache import check_cached
from asyncflow._core.same_value import is_same_value
from asyncflow._core.text import nearest
from asyncflow._kernel.run_scope import RunStart
from asyncflow._policies.durable import (
    Journal,
    RunPersistence,
    is_for_another_version,
    value_of_signal,
)
from asyncflow._runtime.scope_opening import Request, new_start, redacted
from asyncflow.events import RunStarted


async def open_run(
    journal: Journal, request: Request, *, wait: bool
) -> tuple[RunPersistence, RunStart] | RunReport:
    """Claim a run in a journal; return how it starts or resumes.

    One that has passed is released again, and its report returned.

    Raises:
        RunIdInUseError: The run was started with other inputs, or by another pipeline.
        PipelineChangedError: The pipeline does not have all steps that the run would still run.
        RunAlreadyActiveError: The run has another owner, and ``wait`` is false; or another run has
            its key.
    """
    session, start = await journal.open(
        request.run_id,
        wait=wait,
        read=_RunOpening(journal, request).read,
        **_key_of(journal, request),
    )
    persistence = RunPersistence(journal, session, request.types)
    if not isinstance(start, RunReport):
        return persistence, start
    failure, cancellation = await persistence.close(request.run_id)
    try:
        if failure is not None or cancellation is not None:
            raise cancellation or failure  # type: ignore[misc]
        return start
    finally:
        del failure, cancellation  # what is raised holds this frame


async def open_rerun(
    journal: Journal, request: Request, origin: str, from_steps: Collection[str]
) -> tuple[RunPersistence, RunStart]:
    """Claim a new run in a journal, and return how it starts with the results of another one.

    Raises:
        RunIdInUseError: The id is taken, or the other run belongs to another pipeline.
        RunAlreadyActiveError: Another process has just claimed the new id.
    """
    opening = _RunOpening(journal, request)
    start = await journal.replay(origin, partial(opening.rerun, from_steps=from_steps))
    session, _ = await journal.open(
        request.run_id, wait=False, read=opening.check_new, **_key_of(journal, request)
    )
    return RunPersistence(journal, session, request.types), start


async def enqueue_run(
    journal: Journal, request: Request, *, delay_ms: float, on_conflict: str
) -> str:
    """Store a run that waits to start, and return its id; or that of the one that is there.

    Raises:
        RunIdInUseError: A run of this id has other inputs, or another pipeline.
        RunAlreadyActiveError: There is another run of the key, or a process has just taken the id.
    """
    enqueue: Callable[..., Awaitable[str]] | None = getattr(journal, "_enqueue", None)
    if enqueue is None:
        raise TypeError(
            f"enqueue() needs a journal of asyncflow.journal, and {type(journal).__name__} can't "
            "store a run that waits to start"
        )
    for name in request.inputs.keys() & {*request.secret_inputs}:
        raise ValueError(
            f"input {name!r} is secret, so it would not be stored, and the run could never start; "
            "let a resource provide it"
        )
    opening = _RunOpening(journal, request)
    start = opening.read(StoredRun())
    if not request.pipeline:
        raise ValueError(
            "enqueue() needs a pipeline with a name, by which a service knows which one to run"
        )
    assert isinstance(start, RunStart)
    return await enqueue(
        start.stored_event,
        delay_ms=delay_ms,
        on_conflict=on_conflict,
        check_same=opening.check_same,
    )


async def preview_run(
    journal: Journal, request: Request, origin: str, from_steps: Collection[str] | None
) -> RunStart | RunReport:
    """Return how a run would resume, or how a rerun of it would start, from these steps.

    A run that has passed does not resume: its report is returned.
    """
    opening = _RunOpening(journal, request)
    read = opening.preview if from_steps is None else partial(opening.rerun, from_steps=from_steps)
    return await journal.replay(origin, read)


async def read_report(journal: Journal, request: Request) -> RunReport:
    """Return the stored report of a run, with values of the types that annotations say."""
    return await journal.replay(request.run_id, _RunOpening(journal, request).report)


def _key_of(journal: Journal, request: Request) -> dict[str, Any]:
    """Return the key of a run as ``Journal.open`` takes it, if the run has one."""
    if request.key is None:
        return {}
    if not request.pipeline:
        raise ValueError(
            f"key {request.key!r} is one of a pipeline, and this one has no name: give it one"
        )
    if "key" not in signature(getattr(journal, "__wrapped__", journal).open).parameters:
        raise TypeError(
            f"key {request.key!r} needs a journal whose open() takes a key, and that of "
            f"{type(journal).__name__} takes none; asyncflow.Journal says what it does"
        )
    return {"key": (request.pipeline, request.key)}


class _RunOpening:
    """Decides from the replay of a run how it starts, resumes or is rerun."""

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

    def read(self, stored: StoredRun, *, previews: bool = False) -> RunStart | RunReport:
        request, given = self._request, self._given
        if not stored.segments:
            start = new_start(request)
            check_cached(request.pipeline, request.plan, start.bindings, request.secret_inputs)
            event = replace(
                start.event,
                fingerprints=fingerprints_of(request.plan),
                signals=self._asked()[0],
                process=_this_process(),
            )
            return start._replace(event=event, stored_event=replace(event, inputs=given))
        self._check_pipeline(stored)
        self._check_inputs(stored)
        new = self._new_inputs(stored)
        if stored.status is RunStatus.PASSED:
            for name in new:
                raise RunIdInUseError(
                    stored.run_id,
                    f"has passed without the input {name!r}, and would run again with this value; "
                    "leave the input out for the report of the run, or use another run id",
                )
            if request.plan.index.keys() <= stored.steps.keys():
                return self._report_of(stored, ran_nothing=True)
        if not (new or previews) and self._is_still_waiting(stored):
            return self._report_of(stored, ran_nothing=True)
        return self._resume(stored)

    def preview(self, stored: StoredRun) -> RunStart | RunReport:
        """Return how a run resumes; of one that still waits, when something has come for it."""
        return self.read(stored, previews=True)

    def _is_still_waiting(self, stored: StoredRun) -> bool:
        """Whether nothing has come for a run that waits, so that there is nothing to do."""
        request = self._request
        if stored.status is not RunStatus.WAITING or stored.journal.must_stop or request.stays:
            return False
        signals, waits = stored.signals, stored.signals.waits
        if not waits:  # it waits to start
            return False
        now_s = request.clock()
        return (
            not any(
                name in signals.sent or (wait.until is not None and wait.until <= now_s)
                for name, wait in waits.items()
            )
            and request.plan.depends_on
            == {
                name: step.depends_on
                for name, step in stored.steps.items()
                if name not in stored.carryover.missing
            }
            and asks_of(signals.schemas, signals.deadlines) == self._asked()[1]
            and all(
                stored.carryover.fingerprints.get(name) == fingerprint
                for name, fingerprint in fingerprints_of(request.plan).items()
            )
            # A test may have put a fake in its place, which has the same fingerprint.
            and all(request.plan.index[name] in request.plan.signals for name in waits)
        )

    def _asked(self) -> tuple[dict[str, Any], int]:
        return asked_by(self._request.plan, self._request.types, self._journal)

    def _check_answers(self, stored: StoredRun) -> None:
        """Raise `PayloadError` if another version has asked for a value that this one can't read.

        ``stored`` has resumed: what is void is not there any more.
        """
        plan, types = self._request.plan, self._request.types
        for name, answer in stored.signals.sent.items():
            if answer is None or name not in plan.index or plan.index[name] not in plan.signals:
                continue
            try:
                value_of_signal(self._journal, name, answer.payload, types[name])
            except PayloadError as error:
                asked = stored.signals.all_schemas.get(name, ())
                is_taken = stored.carryover.settled_step(name) is not None
                if is_taken or not is_for_another_version(
                    self._journal, types[name], answer.payload, asked
                ):
                    continue
                raise PayloadError(
                    f"signal {name!r} of run {stored.run_id!r}",
                    f"{error.problem}, and another version of the pipeline has asked for it; "
                    "nothing has run: continue the run with that version, or let the type accept "
                    "the value",
                ) from error

    def report(self, stored: StoredRun) -> RunReport:
        self._check_pipeline(stored, "ask that one, or the journal, for its report")
        return self._report_of(stored)

    def _report_of(self, stored: StoredRun, *, ran_nothing: bool = False) -> RunReport:
        decode, decode_input = self._decode_any_output, self._decode_any_input
        return report_from(stored, decode, decode_input, ran_nothing=ran_nothing)

    def _resume(self, stored: StoredRun) -> RunStart:
        request, plan = self._request, self._request.plan
        missing = stored.carryover.missing_from(request.known_steps)
        near = {
            name: nearest(name, request.known_steps)
            for name in missing
            if name not in stored.carryover.missing
        }
        if near and not request.allows_missing_steps:
            raise PipelineChangedError(stored.run_id, request.pipeline, near)
        added = {name: each for name, each in self._given.items() if name not in stored.inputs}
        inputs = self._all_inputs(stored, "resume")
        bindings = plan.bindings(inputs.keys())
        outputs = OutputReader(self._decode_output, self._decode_any_output)
        event, snapshot = resume(
            stored,
            plan,
            bindings=bindings,
            new_inputs=self._new_inputs(stored),
            missing_steps=missing,
            fail_fast=request.fail_fast,
            wall_time=request.clock(),
            process=_this_process(),
            decode=outputs,
        )
        self._check_answers(stored)
        event = replace(
            event,
            pipeline=request.pipeline or stored.started.pipeline,
            signals=self._asked()[0],
            signal_deadlines=plan.signal_deadlines(),
        )
        secret = stored.secret_inputs.union(request.secret_inputs)
        check_cached(event.pipeline, plan, bindings, secret)
        shown = redacted(inputs, secret)
        if stored.log is not None:
            slim = [step.name for step in plan.steps if not step.keep_outputs]
            stored.log = log_of(stored, stored.log, outputs, shown, slim)
        # An input that has become secret is reported once more, so that no view shows its value.
        now_secret = {*request.secret_inputs} - stored.secret_inputs
        added = {**dict.fromkeys(sorted(now_secret & stored.inputs.keys()), REDACTED), **added}
        checkpoints, calls = stored.journal.checkpoints, stored.journal.calls
        saved = valid_checkpoints(checkpoints, event, plan)
        called = valid_checkpoints(calls, event, plan)
        return RunStart(
            inputs,
            bindings,
            replace(event, inputs={name: shown[name] for name in added}),
            replace(event, inputs=added),
            replace(snapshot, pipeline=event.pipeline, inputs=shown),
            saved=saved,
            called=called,
            missing=near,
            void=(checkpoints.keys() - saved.keys()) | (calls.keys() - called.keys()),
        )

    def _check_pipeline(self, stored: StoredRun, way_out: str = "use another run id") -> None:
        pipeline, theirs = self._request.pipeline, stored.started.pipeline
        if theirs and pipeline and theirs != pipeline:
            raise RunIdInUseError(
                stored.run_id, f"belongs to pipeline {theirs!r}, not to {pipeline!r}; {way_out}"
            )

    def check_same(self, stored: StoredRun) -> None:
        """Raise `RunIdInUseError` unless a stored run is one of this pipeline with these inputs."""
        self._check_pipeline(stored)
        self._check_inputs(stored)
        others = [*self._new_inputs(stored)]
        types = input_types(self._request.plan.steps, stored.inputs)
        for name in stored.inputs.keys() - self._given.keys():
            payload = stored.inputs[name]
            defaults = [*self._defaults_before(name, stored)]
            if payload == REDACTED or not defaults:
                others.append(name)
                continue
            value = self._decode_input(name, payload, types[name])
            if not all(_is_equal(default, value) for default in defaults):
                others.append(name)
        for name in others:
            raise RunIdInUseError(
                stored.run_id, f"was started with another input {name!r}; use another run id"
            )

    # Reruns.

    def check_new(self, stored: StoredRun) -> None:
        """Check that a run is new."""
        if stored.segments:
            raise RunIdInUseError(
                stored.run_id,
                "exists already; choose another id, or leave it out for a generated one",
            )

    def rerun(self, origin: StoredRun, from_steps: Collection[str]) -> RunStart:
        """Return how a new run starts that reuses what is still valid of another one."""
        request, plan = self._request, self._request.plan
        self._check_pipeline(origin, "rerun it with that pipeline")
        if origin.status is RunStatus.WAITING and not origin.signals.waits:
            raise ValueError(
                f"run {origin.run_id!r} waits to start, so there is nothing to reuse; start it, "
                "or enqueue another one"
            )
        secret = origin.secret_inputs.union(request.secret_inputs)
        inputs = self._all_inputs(origin, "rerun it")
        name = request.pipeline or origin.pipeline
        start = new_start(request._replace(pipeline=name, inputs=inputs, secret_inputs=secret))
        assert isinstance(start.event, RunStarted)
        check_cached(name, plan, start.bindings, secret)
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
        event = replace(
            start.event,
            fingerprints=fingerprints_of(plan),
            signals=self._asked()[0],
            rerun_of=origin.run_id,
            label=request.label or origin.label,
            attributes=dict(request.attributes or origin.attributes),
            from_steps=tuple(from_steps),
            process=_this_process(),
        )
        found = rerun(
            origin,
            replace(event, inputs=stored_inputs),
            plan,
            bindings=start.bindings,
            from_steps=from_steps,
            other_inputs=others,
            decode=self._decode_output,
        )
        return start._replace(
            event=replace(event, rerun_reasons=found.event.rerun_reasons),
            stored_event=found.event,
            snapshot=found.snapshot,
            reused=found.reused,
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
        for name, before, hint in self._changed(stored):
            was = self._decode_input(name, before, hint)
            if not _is_equal(was, self._request.inputs[name]):
                raise RunIdInUseError(
                    stored.run_id,
                    f"was started with another input {name!r}; leave the inputs out to resume "
                    "with those it has, or use another run id",
                )

    def _new_inputs(self, stored: StoredRun) -> list[str]:
        """Return the given inputs without which the run was started and which change it.

        One that has the value of the default changes nothing.
        """
        return [
            name
            for name in self._given
            if name not in stored.inputs
            and not all(
                _is_equal(default, self._request.inputs[name])
                for default in self._defaults_before(name, stored)
            )
        ]

    def _defaults_before(self, name: str, stored: StoredRun) -> Iterator[object]:
        """Yield the default of an input in each action and condition of a step the run has had."""
        for step in self._request.plan.steps:
            if step.name in stored.carryover.fingerprints:
                if name in step.signature.names:
                    yield default_of(taker_of(step.action), name)
                if step.when is not None and name in step.condition.names:
                    yield default_of(step.when, name)

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
            if payload == REDACTED and name in request.plan.resources:
                inputs[name] = REDACTED_OUTPUT  # a resource has taken its place
                continue
            if payload == REDACTED:
                raise ValueError(
                    f"input {name!r} of run {stored.run_id!r} is secret, so it was not stored; "
                    f"give it again to {purpose}"
                )
            inputs[name] = self._decode_input(name, payload, types[name])
        return inputs

    # Stored values. A report has them whatever annotations say now.

    def _decode_any_input(self, name: str, payload: Payload) -> Any:
        types = input_types(self._request.plan.steps, {name: payload})
        try:
            return self._decode_input(name, payload, types[name])
        except PayloadError:
            return self._decode_input(name, payload, Any)

    def _decode_output(self, step: str, payload: Payload) -> Any:
        request = self._request
        hint = request.types[step] if step in request.plan.index else Any
        return self._journal.decode(f"the stored output of step {step!r}", payload, hint)

    def _decode_any_output(self, step: str, payload: Payload) -> Any:
        try:
            return self._decode_output(step, payload)
        except PayloadError:
            return self._journal.decode(f"the stored output of step {step!r}", payload, Any)


def _is_equal(one: Any, other: Any) -> bool:
    try:
        return is_same_value(one, other)
    except Exception:  # arrays, for example, have no single truth value
        return False


def _this_process() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"


def asked_by(plan: Plan, types: OutputTypes, journal: Journal) -> tuple[dict[str, Any], int]:
    """Return the signals of a pipeline, each with the schema of its type, and `asks_of` them."""
    schema: Callable[[Any], Any] = getattr(journal, "schema", lambda hint: {})
    names = [plan.steps[at].name for at in sorted(plan.signals)]
    signals = {name: schema(types[name]) for name in names}
    return signals, asks_of(signals, plan.signal_deadlines())
