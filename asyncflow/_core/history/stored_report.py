"""The report of a stored run, with its log: values in place of the payloads of its events.

Rules:

1. What is valid has been decoded before, or nothing runs. Of what is outdated, an output that can't
   be read any more has a stand-in.
2. Nothing that is secret now is in it, but for what a step of this process is given.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any, TypeAlias

from asyncflow._core.errors import JournalError, PayloadError
from asyncflow._core.history.item_values import give_all
from asyncflow._core.history.log import LogEntry, StartedAttempt
from asyncflow._core.history.remote_output import RemoteOutput, is_remote
from asyncflow._core.history.replay import StoredRun
from asyncflow._core.history.report import RunReport, with_events
from asyncflow._core.history.results import (
    REDACTED,
    REDACTED_OUTPUT,
    UNSETTLED,
    Key,
    Payload,
    RestoredOutput,
    RunStatus,
    StepResult,
    outputs_of,
    run_facts,
)
from asyncflow._core.history.step_view import StepView
from asyncflow._core.record import replace
from asyncflow._core.text import describe_error
from asyncflow.events import (
    AttemptStarted,
    Event,
    ResultReused,
    RunResumed,
    RunStarted,
    StepReused,
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


def report_from(
    run: StoredRun,
    decode: _Decode,
    decode_input: _Decode | None = None,
    *,
    ran_nothing: bool = False,
) -> RunReport:
    """Return the report of a stored run, even if it has not ended.

    ``decode`` makes a value of the payload of an output, and receives the step's name.
    ``decode_input`` does the same for an input; by default it is ``decode``. With
    ``ran_nothing``, it is for a start that has run nothing: what has ended is reused.
    """
    decode_input, decode = decode_input or decode, OutputReader(decode)
    inputs = {
        name: REDACTED_OUTPUT if name in run.secret_inputs else decode_input(name, value)
        for name, value in run.inputs.items()
    }
    results = [
        _show_outputs(step.to_result(run.at_ms), partial(decode, name))
        for name, step in run.steps.items()
    ]
    if ran_nothing:
        results = [
            each if each.status in UNSETTLED else replace(each, reused=True, rerun_reason=None)
            for each in results
        ]
    slim = {name for name, step in run.steps.items() if not step.keeps_outputs}
    give_all({each.step_name: each for each in results}, run.carryover.map_over, inputs, slim)
    report = RunReport(
        run.run_id,
        results,
        total_duration_ms=run.at_ms,
        wall_time=run.started.wall_time,
        stop_reason=run.stop_reason if run.has_ended else None,
        pipeline=run.pipeline,
        inputs=inputs,
        status=RunStatus.ORPHANED if run.journal.is_orphaned else run.status,
        segments=run.segments,
        **run_facts(run),
    )
    if run.log is None:
        return report
    log = log_of(run, run.log, decode, inputs, slim)
    if ran_nothing:  # it has only found what is there
        log += [
            StepReused(
                *(each.step_name, run.at_ms, None, each.status, each.origin),
                keeps_outputs=each.step_name not in slim,
            )
            for each in results
            if each.reused
        ]
    return with_events(report, log)


def log_of(
    run: StoredRun,
    stored: list[Event],
    outputs: OutputReader,
    inputs: Mapping[str, Any],
    slim: Collection[str],
) -> list[LogEntry]:
    """Return the log that the stored events of a run make, each of which it replaces in place.

    ``outputs`` has read those that are valid. ``inputs`` are those of the run as they are shown,
    and ``slim`` the steps whose outputs are not kept.
    """
    secret = {name for name, step in run.steps.items() if step.secret}
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


def decode_outputs(step: StepView, decode: Callable[[Payload], Any]) -> None:
    """Replace the payloads of the outputs of a step, or of an item, by what they stand for."""
    if step.items is None:
        step.output = _decoded(step.output, decode)
        return
    for item in step.items.values():
        decode_outputs(item, decode)
    if isinstance(step.output, list):
        step.output = outputs_of(step.items[number] for number in sorted(step.items))


def _show_outputs(result: StepResult, decode: Callable[[Payload], Any]) -> StepResult:
    """Put its outputs in place of their payloads in a result that was just made, and return it.

    Secret ones stay hidden.
    """
    output = result.output
    if result.items is not None:
        for item in result.items:
            _show_outputs(item, decode)
        output = output and outputs_of(result.items)
    elif result.secret:
        output = REDACTED_OUTPUT
    else:
        output = _decoded(output, decode)
    result.output = output  # type: ignore[misc]
    return result


def _decoded(output: Any, decode: Callable[[Payload], Any]) -> Any:
    if not isinstance(output, Payload):
        return output
    return RemoteOutput.from_payload(output) if is_remote(output) else decode(output)
