"""How one run with a journal keeps what its actions return, and what it was given."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from asyncflow._core.annotations import input_types, output_type
from asyncflow._core.graph import Plan
from asyncflow._core.results import REDACTED, Payload
from asyncflow._core.step import WorkflowStep
from asyncflow._journal import Book, Journal
from asyncflow._shield import shield

__all__ = ["Keeper", "OutputTypes", "inputs_to_keep"]


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


class Keeper:
    """Makes payloads of outputs, and outputs of payloads.

    Attributes:
        book: Where the events of the run go.
        has_closed: Whether the run has been given up.
    """

    def __init__(self, journal: Journal, book: Book, types: OutputTypes) -> None:
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
