"""What a step may reuse of other runs: by which key, and what it gets.

Rules:

1. The key is a digest of the pipeline's name, the step's name and version, and its arguments as a
   journal stores them. Resources are no arguments.
2. Nothing secret goes into a key: a digest of a secret can be guessed. So a step with secret
   arguments can't be cached, nor can one whose own output is secret.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

from asyncflow._core.history.results import Payload
from asyncflow._core.pipeline.graph import ITEM, Bindings, Plan
from asyncflow._core.pipeline.step import WorkflowStep


class CachedResult(NamedTuple):
    """A stored success that an equal call may reuse."""

    origin: str
    """The run whose result it is."""
    attempts: int
    duration_ms: float
    output: Payload


def cache_key(pipeline: str, step: WorkflowStep, arguments: Mapping[str, Payload]) -> str:
    """Return the key of a call: two calls have the same one only if they are equal."""
    digest = hashlib.sha256()
    parts = [pipeline.encode(errors="surrogatepass"), step.name.encode(errors="surrogatepass")]
    parts.append(step.version.encode(errors="surrogatepass"))
    for name, (codec, data) in sorted(arguments.items()):
        parts += [name.encode(), codec.encode(), data]
    for part in parts:  # each with its length, so that no two lists have the same bytes
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()


def check_cached(
    pipeline: str, plan: Plan, bindings: Bindings, secret_inputs: Collection[str]
) -> None:
    """Check that the results of all steps with ``cache_ms`` may be reused.

    Raise `ValueError` if the pipeline has no name, or such a step takes something secret.
    """
    for step, index in _cached(plan):
        if not pipeline:
            raise ValueError(
                f"step {step.name!r} has cache_ms, which reuses results of the pipeline of that "
                "name: give the pipeline one"
            )
        for parameter, source in bindings.actions[index]:
            origin = plan.index[step.map_over or ""] if source == ITEM else source
            if isinstance(origin, str):
                what, is_secret = f"input {origin!r}", origin in secret_inputs
            else:
                other = plan.steps[origin]
                what, is_secret = f"output of step {other.name!r}", other.secret
            if is_secret:
                raise ValueError(
                    f"step {step.name!r} has cache_ms, and its parameter {parameter!r} is the "
                    f"secret {what}, of which nothing may be stored; leave cache_ms out"
                )


def check_not_cached(plan: Plan) -> None:
    """Check that no step has ``cache_ms``, in a run without a journal."""
    for step, _ in _cached(plan):
        raise ValueError(
            f"step {step.name!r} has cache_ms, which reuses results that are stored: give the run "
            "a journal, or leave cache_ms out"
        )


def _cached(plan: Plan) -> Iterator[tuple[WorkflowStep, int]]:
    for index in plan.having("cache_ms"):
        yield plan.steps[index], index
