"""The log of a run of which a journal has read the events: with values in place of payloads.

Rules:

1. What is valid has been decoded before, or nothing runs. Of what is outdated, an output that can't
   be read any more has a stand-in.
2. Nothing that is secret now is in it, but for what a step of this process is given.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeAlias

from asyncflow._core.errors import JournalError, PayloadError
from asyncflow._core.history.log import LogEntry, StartedAttempt
from asyncflow._core.history.remote_output import RemoteOutput, is_remote
from asyncflow._core.history.results import REDACTED, REDACTED_OUTPUT, Key, Payload, RestoredOutput
from asyncflow._core.record import replace
from asyncflow._core.text import describe_error
from asyncflow.events import (
    AttemptStarted,
    Event,
    ResultReused,
    RunResumed,
    RunStarted,
    StepSucceeded,
)

_Start: TypeAlias = RunStarted | RunResumed
_Decode: TypeAlias = Callable[[str, Payload], Any]


class OutputReader:
    """Decodes stored outputs. What it has decoded has that value wherever it is shown.

    ``decode_outdated`` makes a value of what it is shown beside that; by default ``decode`` does.
    """

    def __init__(self, decode: _Decode, decode_outdated: _Decode | None = None) -> None:
        self._decode = decode
        self._decode_outdated = decode_outdated or decode
        self._values: dict[int, Any] = {}

    def __call__(self, step: str, payload: Payload) -> Any:
        """Return the value of an output of a step; raise whatever decoding it does."""
        value = self._values[id(payload)] = self._decode(step, payload)
        return value

    def shown(self, step: str, output: Any, *, is_secret: bool) -> Any:
        """Return the value of an output of any segment, or what stands for it."""
        if type(output) is not Payload:
            return output
        if id(output) in self._values:
            return self._values[id(output)]
        if is_secret or output == REDACTED:
            return REDACTED_OUTPUT
        if is_remote(output):
            return RemoteOutput.from_payload(output)
        try:
            return self._decode_outdated(step, output)
        except (PayloadError, JournalError) as error:
            return RestoredOutput(f"<{describe_error(error)}>")


def log_of(
    stored: list[Event],
    outputs: OutputReader,
    inputs: Mapping[str, Any],
    secret: Collection[str],
    slim: Collection[str],
) -> list[LogEntry]:
    """Return the log that the stored events of a run make, each of which it replaces in place.

    ``outputs`` has read those that are valid. ``inputs`` are those of the run as they are shown,
    ``secret`` the steps whose outputs are secret now, and ``slim`` those whose are not kept.
    """
    log: list[Any] = stored
    started: dict[Key, StartedAttempt] = {}
    begun: _Start | None = None
    for at, event in enumerate(stored):
        if isinstance(event, AttemptStarted) and not event.engine:
            start = event.step, event.attempt, event.at_ms, event.queued_ms, event.item
            log[at] = started[event.step, event.item] = start
        elif isinstance(event, StepSucceeded | ResultReused):
            is_secret, output = event.secret or event.step in secret, None
            if event.step not in slim:
                output = outputs.shown(event.step, event.output, is_secret=is_secret)
            attempt = started.pop((event.step, event.item), None)
            if attempt is None or is_secret or not _is_all(attempt, event):
                log[at] = replace(event, output=output, secret=is_secret)
            else:
                log[at] = attempt, event.at_ms, output
        elif isinstance(event, RunStarted | RunResumed):
            shown = {name: inputs[name] for name in event.inputs}
            begun = log[at] = replace(event, inputs=shown, **_shared(event, begun))
    return log


def _is_all(attempt: StartedAttempt, event: StepSucceeded | ResultReused) -> bool:
    """Whether a step, or an item, succeeded by that attempt and nothing else is said of it."""
    return isinstance(event, StepSucceeded) and event.error is None and event.attempt == attempt[1]


def _shared(event: _Start, before: _Start | None) -> dict[str, Any]:
    """Return what an event says of each step as one before has it, if that says the same."""
    return {
        name: getattr(before, name)
        for name in ("dependencies", "fingerprints")
        if before is not None
        and [*getattr(before, name).items()] == [*getattr(event, name).items()]
    }
