"""How a run begins: as a new one, or with a journal as one that goes on or has passed already."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from asyncflow._core.annotations import input_types
from asyncflow._core.errors import PayloadError, in_one_line, text_of
from asyncflow._core.graph import (
    Binding,
    MaxRetries,
    Plan,
    Shape,
    bind,
    bind_conditions,
    secret_steps,
)
from asyncflow._core.replay import Story
from asyncflow._core.report import RunReport
from asyncflow._core.results import REDACTED, REDACTED_OUTPUT, Payload
from asyncflow._core.resume import Fingerprints, resume
from asyncflow._core.step_runs import Past
from asyncflow._journal import Journal
from asyncflow._keeper import Keeper, OutputTypes, inputs_to_keep
from asyncflow.events import Event, RunResumed, RunStarted

__all__ = ["Opening", "Request", "begin", "open_run"]


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


class Opening(NamedTuple):
    """How a run begins or goes on."""

    inputs: Mapping[str, Any]
    bindings: list[Binding]
    conditions: Mapping[int, Binding]
    event: RunStarted | RunResumed
    kept: RunStarted | RunResumed | None = None
    """The event as a journal keeps it."""
    past: Past | None = None


def begin(request: Request) -> Opening:
    """Return how a run begins that no journal keeps, or none has kept before.

    Raises:
        ValueError: Nothing provides a parameter of an action, or two things do.
    """
    plan, inputs = request.plan, request.inputs
    bindings, conditions = bind(plan, inputs), bind_conditions(plan, inputs)
    event = RunStarted(
        request.run_id,
        time.time(),
        Shape(plan),
        request.pipeline,
        inputs=_shown(inputs, request.secret_inputs),
        max_retries=MaxRetries(plan),
        secret=secret_steps(plan),
    )
    return Opening(inputs, bindings, conditions, event)


async def open_run(
    journal: Journal, request: Request, *, wait: bool
) -> tuple[Keeper, Opening | RunReport]:
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
    return Keeper(journal, book, request.types), opening


def _read(
    journal: Journal, request: Request, given: Mapping[str, Payload], events: Sequence[Event]
) -> Opening | RunReport:
    if not events:
        opening = begin(request)
        event = replace(opening.event, fingerprints=Fingerprints(request.plan))
        return opening._replace(event=event, kept=replace(event, inputs=given))
    story = Story(events)
    _check_pipeline(request, story.started.pipeline)
    _check_inputs(journal, request, story, given)
    has_new_inputs = not given.keys() <= story.inputs.keys()
    if story.outcome == "passed" and story.has_all(request.plan.index) and not has_new_inputs:
        return story.report(
            partial(_decode_somehow, journal, request), partial(_decode_input, journal, request)
        )
    return _go_on(journal, request, given, story)


def _go_on(
    journal: Journal, request: Request, given: Mapping[str, Payload], story: Story
) -> Opening:
    plan, new = request.plan, {n: each for n, each in given.items() if n not in story.inputs}
    inputs = _all_inputs(journal, request, story.inputs)
    bindings, conditions = bind(plan, inputs), bind_conditions(plan, inputs)
    event, past = resume(
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
    past = replace(past, pipeline=event.pipeline, inputs=all_shown)
    return Opening(
        inputs,
        bindings,
        conditions,
        replace(event, inputs=shown),
        replace(event, inputs=to_keep),
        past,
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
    story: Story,
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
    text = in_one_line(text_of(repr, value))
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
