"""What the segments of a run leave to the next one: results that hold, attempts that continue.

The replay of a run keeps it, and resumption decides by it. Rules:

1. A result holds until a resumption declares it outdated, whatever becomes of its run.
2. What had begun and not ended when a segment ended continues with the attempts that it has left.
3. The results of a run that has passed are final.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from copy import copy
from typing import NamedTuple

from asyncflow import events
from asyncflow._core.errors import StepCrashedError
from asyncflow._core.history.results import (
    REDACTED_OUTPUT,
    UNSETTLED,
    Key,
    StepStatus,
    blocks_dependents,
)
from asyncflow._core.history.step_view import StepView
from asyncflow._core.pipeline.graph import with_dependents
from asyncflow._core.record import replace

_ENDS_OF_UNFINISHED = {
    StepStatus.FAILED: "it had failed",
    StepStatus.CANCELLED: "it was cancelled",
}


class PendingAttempts(NamedTuple):
    """The attempts of a step, or of an item, that has started and not ended."""

    latest: events.AttemptStarted
    error: BaseException | None
    """What it failed with: a `StepCrashedError` if it was interrupted."""
    unfinished: int
    """How many were interrupted."""
    crashes: int
    """How many of these had begun: one that was queued at an engine did not."""
    failure: BaseException | None
    """What the latest that finished failed with."""

    @property
    def is_interrupted(self) -> bool:
        """Whether the latest attempt did not finish: its process died, or its journal failed."""
        return isinstance(self.error, StepCrashedError)

    @property
    def last_error(self) -> BaseException | None:
        """What the next attempt can ask for: see `StepContext.last_error`."""
        if self.failure is None or not self.is_interrupted:
            return self.error
        try:
            last_error = copy(self.failure)  # in the history it has no context
            last_error.__context__ = self.error
        except Exception:  # it was never stored, and refuses to be copied
            return self.failure
        return last_error


class Carryover:
    """What is known of the steps of a run by its segments.

    ``steps`` are those of the latest segment: the replay lays them out anew in each one, and
    changes them. ``missing`` are those among them that this segment skips, since its pipeline does
    not have them, each with its dependencies. ``dependencies``, ``fingerprints`` and ``map_over``
    are the latest of each step of any segment. ``final`` are the steps that the run had when it
    last passed.
    """

    def __init__(self, steps: Mapping[str, StepView]) -> None:
        self.steps = steps
        self.missing: Mapping[str, tuple[str, ...]] = {}
        self.dependencies: dict[str, tuple[str, ...]] = {}
        self.fingerprints: dict[str, tuple[str, str]] = {}
        self.map_over: dict[str, str] = {}
        self.final: frozenset[str] = frozenset()
        self.pending: dict[Key, StepView] = {}
        """What earlier segments began, as far as it continues."""
        self._settled: dict[Key, StepView] = {}
        """What earlier segments settled, as far as it holds."""
        self._former: dict[str, StepView] = {}
        """Each step as the latest segment before this one left it that had the step."""
        self._reused_items: dict[str, dict[int, StepView]] = {}
        """The items that a rerun reuses, by step, until the event of the step itself."""
        self._reasons: Mapping[str, str] = {}
        """Why steps run again in the latest segment."""

    # From one segment to the next.

    def begin(self, event: events.RunStarted | events.RunResumed) -> None:
        """Note what a segment that begins says of its steps."""
        self.dependencies.update(event.dependencies)
        self.fingerprints.update(event.fingerprints)
        self.map_over.update(event.map_over)
        self._reasons = event.rerun_reasons
        if isinstance(event, events.RunResumed):
            self.missing = event.missing_steps

    def end_segment(self) -> None:
        """Keep what the latest segment leaves, before the steps of the next one are laid out."""
        self._settled, self.pending = self.settled(), self._begun()
        self._former.update(self.steps)

    def forget(self, event: events.RunResumed) -> set[str]:
        """Forget what does not hold any more now that the run resumes.

        Return the steps that begin anew, or that the pipeline does not have.
        """
        edges = self.dependencies.items()
        outdated = with_dependents(event.outdated, edges)
        # Dependents of a step that begins anew may be steps that the pipeline leaves out now.
        outdated |= with_dependents(event.unfinished, edges) - event.unfinished.keys()
        for key in list(self._settled):
            step = self._settled[key]
            if key[0] in self.final:
                continue
            begins_anew = event.afresh or (key[1] is None and key[0] in event.unfinished)
            # What a condition skipped asks it again, and tells until then what dependents lacked.
            if key[0] in outdated or (
                begins_anew and blocks_dependents(step.status, step.by_condition)
            ):
                del self._settled[key]
        given_up = outdated | event.missing_steps.keys()
        for key in list(self.pending):
            if event.afresh or key[0] in given_up:
                del self.pending[key]
        return given_up

    def note_pass(self) -> None:
        """Let the results of the run be final, as it has passed."""
        self.final = frozenset(self.steps.keys() - self.missing.keys())

    # What the next segment starts from.

    def former(self, name: str) -> StepView | None:
        """Return a step as earlier segments left it."""
        return self._former.get(name)

    def continue_from(self, key: Key, step: StepView) -> None:
        """Let a step or an item continue with the attempts of earlier segments, if it had any."""
        before = self.pending.get(key)
        if before is not None:
            step.fresh_from = before.fresh_from

    def restore(self, key: Key, step: StepView) -> None:
        """Give a step or an item the result that an earlier segment settled, if one did."""
        before = self._settled.get(key)
        if before is not None:
            _restore(step, before)

    def reuse(self, event: events.ResultReused) -> None:
        """Settle what a rerun has from another run, as if an earlier segment had done so."""
        step, item = self.steps[event.step], event.item
        reused = self._settled[event.step, item] = StepView(
            step.name if item is None else f"{step.name}[{item}]",
            step.depends_on,
            step.tier,
            step.max_retries,
            event.secret or step.secret,
            StepStatus.SUCCESS,
            output=event.output,
            origin=event.origin,
            origin_attempts=event.attempts,
            origin_ms=event.duration_ms,
            error=event.error,
            item=item,
            keeps_outputs=event.keeps_outputs,
        )
        if event.items is not None:
            items = reused.items = self._reused_items.pop(event.step, {})
            reused.item_count = event.items
            reused.tally = Counter(each.status for each in items.values())
            if event.keeps_outputs:
                reused.output = [items[number].output for number in sorted(items)]
        if reused.secret:
            reused.output = REDACTED_OUTPUT
        if item is not None:
            self._reused_items.setdefault(event.step, {})[item] = reused

    # What holds, and what continues, if the latest segment ends now.

    def all(self) -> Iterator[tuple[Key, StepView]]:
        """Return the steps of the latest segment, each before its items."""
        for name, step in self.steps.items():
            yield (name, None), step
            for number, item in (step.items or {}).items():
                yield (name, number), item

    def settled(self) -> dict[Key, StepView]:
        """Return the steps and items whose results hold; none that was cancelled."""
        settled = dict(self._settled)
        for key, step in self.all():
            settled_one = self._result_of(step, settled.get(key))
            if settled_one is not None:
                settled[key] = settled_one
        return settled

    def settled_step(self, name: str) -> StepView | None:
        """Return what `settled` has of a step, without looking at any item."""
        before = self._settled.get((name, None))
        return self._result_of(self.steps[name], before) if name in self.steps else before

    def _result_of(self, step: StepView, before: StepView | None) -> StepView | None:
        """Return the result that holds: that of the latest segment, or the one before."""
        if step.item is None and step.name in self.missing:
            return before  # a version that has it runs it after all
        is_restored = step.reused and before is not None
        if is_restored or step.status in (*UNSETTLED, StepStatus.CANCELLED):
            return before
        if step.status is StepStatus.SUCCESS or before is None or not _has_succeeded(before):
            return step
        return before

    def missing_from(self, known: Collection[str]) -> dict[str, tuple[str, ...]]:
        """Return the steps that the run would still run and that are not among those known.

        Each comes with the steps that it depends on. Those that its latest segment has skipped for
        that are among them.
        """
        return {
            name: step.depends_on
            for name, step in self.steps.items()
            if name not in known
            and (
                name in self.missing
                or (end := self.settled_step(name)) is None
                or blocks_dependents(end.status, end.by_condition)
            )
        }

    def _begun(self) -> dict[Key, StepView]:
        """Return the steps and items that have begun and not ended."""
        begun = dict(self.pending)
        for key, step in self.all():
            if step.status not in UNSETTLED:
                begun.pop(key, None)
            elif step.latest is not None:
                begun[key] = step
        return begun

    def pending_attempts(self, at_ms: float) -> dict[Key, PendingAttempts]:
        """Return what has begun and not ended, as it is if the segment ends at a time."""
        return {key: _attempts_left(key, step, at_ms) for key, step in self._begun().items()}

    def unfinished(self) -> dict[str, str]:
        """Return the steps that have begun and not succeeded, each with what became of it."""
        reasons = dict(self._reasons)
        begun = [name for name, step in self.steps.items() if step.items is not None]
        begun += [name for name, _ in self._begun()]
        reasons.update(dict.fromkeys(begun, "it had not finished"))
        for name, step in self.steps.items():
            if step.status in _ENDS_OF_UNFINISHED:
                reasons[name] = _ENDS_OF_UNFINISHED[step.status]
        return {name: why for name, why in reasons.items() if not self._has_result(name)}

    def _has_result(self, name: str) -> bool:
        end = self.settled_step(name)
        return end is not None and _has_succeeded(end)

    def drop_outputs(self, steps: Iterable[str]) -> None:
        """Forget what these steps, and items of theirs, have returned."""
        names = frozenset(steps)
        known = [each for (name, _), each in self._settled.items() if name in names]
        for views in (self._former, self.steps):
            known += [views[name] for name in names if name in views]
        for step in known:
            step.drop_outputs()


def crash_of(step: StepView) -> StepCrashedError:
    """Return the error of the latest attempt of a step or an item, which did not finish."""
    series = step.attempts[step.fresh_from :]
    crashes = sum(attempt.end == "crashed" for attempt in series) + 1
    return StepCrashedError(step.name, step.attempts[-1].number, crashes)


def _attempts_left(key: Key, step: StepView, at_ms: float) -> PendingAttempts:
    series = step.attempts[step.fresh_from :]
    latest = series[-1]
    unfinished = [each for each in series if each.end == "crashed"]
    if latest.ended_ms is None:
        latest = replace(latest, ended_ms=at_ms, end="crashed", error=crash_of(step))
        if not latest.began:
            latest.begin(at_ms)
        unfinished.append(latest)
    start = events.AttemptStarted(
        *(key[0], latest.number, latest.started_ms, latest.queued_ms, key[1], latest.engine)
    )
    crashes = sum(each.began for each in unfinished)
    failures = [each.error for each in series if each.error is not None and each.end != "crashed"]
    failure = failures[-1] if failures else None
    return PendingAttempts(start, latest.error, len(unfinished), crashes, failure)


def _restore(step: StepView, before: StepView) -> None:
    """Give a step or an item the result that an earlier segment settled."""
    step.fresh_from, step.ended_ms = before.fresh_from, before.ended_ms
    if step.started_ms is None:  # it was mapped, and had no items
        step.started_ms, step.active = before.started_ms, [*before.active]
    step.output, step.error = before.output, before.error
    step.reason, step.by_condition = before.reason, before.by_condition
    step.item_count, step.tally = before.item_count, before.tally
    step.answer, step.description = before.answer, before.description
    step.origin, step.origin_ms = before.origin, before.origin_ms
    step.origin_attempts, step.keeps_outputs = before.origin_attempts, before.keeps_outputs
    step.wait = before.wait
    if before.items is not None:
        step.items = {n: _restored_item(step, n, item) for n, item in before.items.items()}
    step.secret = step.secret or before.secret


def _restored_item(step: StepView, number: int, before: StepView) -> StepView:
    """Return an item of a restored step, with all attempts that it has had."""
    latest = step.former_items.pop(number, before)
    if latest is before and not step.secret:
        return before
    item = replace(before, secret=before.secret or step.secret)
    item.carry(latest)
    item.fresh_from = before.fresh_from
    return item


def _has_succeeded(step: StepView) -> bool:
    return step.status is StepStatus.SUCCESS
