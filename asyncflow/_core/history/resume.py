"""Decides which results of a stored run are valid when it resumes, or is rerun, with a pipeline.

Rules:

1. The result of a step is valid if its fingerprint is unchanged, and the results of all steps that
   it depends on are valid. The fingerprint is the data that the step's action takes, and its
   ``version``. How the step is run (attempts, limits, pools) is no part of it.
2. A valid success is restored. So is a failure for good or a skip, if the run continues where it
   was.
3. A run that had ended, or was stopping, starts afresh: everything that has not succeeded runs.
   The condition of a skipped step is asked again, but what succeeded without the step stays valid.
   An item that failed and is tolerated does not make a run stop, so it stays failed.
4. A journal stores no secret output. If a step that runs needs one, the step with that output runs
   again too. Results that came of it before are valid all the same.
5. A rerun reuses the valid successes of another run, as if that had ended. A result is not valid
   if the step is asked to run again, or if it takes an input that has another value now.
6. A signal is void if a step that it depends on runs again after it had a result: what was sent
   answers a result that is gone. It is void too if that step is recalled: what it makes may differ.
7. A mapped step that has not finished is valid by item: the items that have ended stay, the others
   run. So is a step that is mapped over such a step, item by item, if nothing else that it depends
   on runs again; and in a rerun, a step of which items failed, so that only these run again. Which
   items a step skips follows from those of its source, so it is decided anew.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any, NamedTuple, TypeVar

from asyncflow._core.errors import PayloadError
from asyncflow._core.history.carryover import PendingAttempts
from asyncflow._core.history.remote_output import is_remote
from asyncflow._core.history.replay import StoredRun
from asyncflow._core.history.results import (
    REDACTED,
    REDACTED_OUTPUT,
    Key,
    Payload,
    StepStatus,
    blocks_dependents,
)
from asyncflow._core.history.step_view import StepView
from asyncflow._core.history.stored_report import decode_outputs
from asyncflow._core.pipeline.fingerprint import difference, fingerprints_of
from asyncflow._core.pipeline.graph import ITEM, Bindings, Plan, with_dependents
from asyncflow._core.pipeline.step import WorkflowStep, tolerates
from asyncflow._core.record import made_by, record, replace
from asyncflow.events import RECALLED, ResultReused, RunResumed, RunStarted, StepReused

T = TypeVar("T")


@record
class Snapshot:
    """Where a run stands that is resumed."""

    run_id: str
    wall_time: float
    """When it began, in seconds since the epoch (UTC)."""
    at_ms: float
    """The time at which it stood still."""
    restored: Mapping[Key, StepView]
    """What has ended and stays so, with outputs as values."""
    pending_attempts: Mapping[Key, PendingAttempts]
    """What continues with the attempts that it has left."""
    replay: StoredRun
    """The replay of the run, up to the `RunResumed` with which it continues."""
    pipeline: str = ""
    """What the pipeline is called."""
    inputs: Mapping[str, Any] = made_by(default_factory=dict)
    """All inputs of the run, with a stand-in for each secret one."""
    limited_from_ms: float = 0.0
    """From when on the deadline of the run counts."""

    def steps_begun(self) -> frozenset[str]:
        """The steps that continue: they, or items of theirs, had started."""
        items = {name for name, item in self.restored if item is not None}
        return frozenset(
            items.union(self.replay.signals.waits, (name for name, _ in self.pending_attempts))
        )

    def stored_end(
        self, step: WorkflowStep, at_ms: float, item: int | None = None
    ) -> StepReused | None:
        """Return the event with which the run reuses a stored result, if there is one."""
        restored = self.restored.get((step.name, item))
        if restored is None:
            return None
        keeps_outputs = step.keep_outputs or item is not None
        return StepReused(step.name, at_ms, item, restored.status, restored.origin, keeps_outputs)

    def restored_steps(self, plan: Plan) -> frozenset[int]:
        """Return the steps of a plan (not the items) that have a result already."""
        return frozenset(plan.index[name] for name, item in self.restored if item is None)


def resume(
    run: StoredRun,
    plan: Plan,
    *,
    bindings: Bindings,
    new_inputs: Collection[str],
    missing_steps: Mapping[str, tuple[str, ...]],
    fail_fast: bool,
    wall_time: float,
    process: str,
    decode: Callable[[str, Payload], Any],
) -> tuple[RunResumed, Snapshot]:
    """Decide which results of a stored run are valid, and resume its replay.

    The pipeline and the bindings are as they are now. ``new_inputs`` are the names of those that
    the run did not have before and whose value is not the default, ``missing_steps`` the steps that
    it would still run and that the pipeline does not have, each with its dependencies.
    ``wall_time`` is the present, in seconds since the epoch, and ``process`` is this one.
    ``decode`` makes a value of the payload of a step's output, or raises `PayloadError`, as this
    does then. Return the event that begins the new segment, and the snapshot that it starts from.
    """
    carryover = run.carryover
    known = _of_plan(carryover.settled(), plan)
    has_failed = _has_failed(run, plan, known)
    afresh = run.has_ended or run.was_stopping or (fail_fast and has_failed)
    why_new = {name: f"the run did not have the input {name!r} before" for name in new_inputs}
    reasons = _of_takers(plan, bindings, why_new)
    found = _judge(run, plan, known, reasons, (), bindings, afresh=afresh, final=carryover.final)
    del known  # it may be large, and the next one has as much
    event = RunResumed(
        run.started.run_id,
        run.at_ms,
        wall_time,
        dict(plan.depends_on),  # observers receive it, and other runs have the plan too
        fingerprints_of(plan),
        found.outdated,
        found.unfinished,
        found.recalled,
        afresh,
        max_retries=dict(plan.max_retries),
        map_over=dict(plan.map_over),
        secret=plan.secret,
        missing_steps=missing_steps,
        process=process,
        attributes=run.attributes,
    )
    run.apply(event)
    sent = run.signals.sent.items()
    run.signals.sent = {name: each for name, each in sent if name not in event.outdated}
    restored = {
        key: step
        for key, step in _of_plan(carryover.settled(), plan).items()
        if _is_restored(key, found, plan)
        and not (key[1] is not None and step.status is StepStatus.SKIPPED)
    }
    for (name, item), step in restored.items():
        if item is None:
            step.keep_outputs(plan.steps[plan.index[name]].keep_outputs)
    _decode(restored, decode)
    started = run.started
    pending_attempts = _of_plan(carryover.pending_attempts(run.at_ms), plan)
    snapshot = Snapshot(
        started.run_id,
        started.wall_time,
        event.at_ms,
        restored,
        pending_attempts,
        replay=run,
        limited_from_ms=run.limited_from_ms,
    )
    return event, snapshot


def valid_checkpoints(stored: Mapping[Key, T], resumed: RunResumed, plan: Plan) -> dict[Key, T]:
    """Return the checkpoints, or calls, with which the steps of a resumed run continue.

    That of a step is not valid if what the step had done is not, nor that of an item if its items
    came from an output that is made anew: another item may have its number now.
    """
    return {
        key: saved
        for key, saved in stored.items()
        if key[0] not in resumed.outdated and not _is_of_recalled(key, resumed.recalled, plan)
    }


class RerunStart(NamedTuple):
    """How a rerun starts."""

    event: RunStarted
    """As it is stored."""
    reused: Iterator[tuple[ResultReused, ResultReused]]
    """What it reuses, with outputs as values, each with the event as it is stored."""
    snapshot: Snapshot


def rerun(
    origin: StoredRun,
    event: RunStarted,
    plan: Plan,
    *,
    bindings: Bindings,
    from_steps: Collection[str],
    other_inputs: Mapping[str, str],
    decode: Callable[[str, Payload], Any],
) -> RerunStart:
    """Decide which results of another run a new run reuses.

    ``origin`` stays as it is. ``event`` is the start of the new run, as it is stored.
    ``other_inputs`` are those whose value is another one now, each with why steps that take it run
    again. The rest is as for `resume`.
    """
    known = _of_plan(origin.carryover.settled(), plan)
    reasons = _of_takers(plan, bindings, other_inputs)
    reasons |= dict.fromkeys(from_steps, "the rerun starts from it")
    # Unlike a resumption, a rerun does not have what was stored before its step became secret.
    secret = plan.secret
    found = _judge(
        *(origin, plan, known, reasons, secret, bindings),
        afresh=True,
        runs_failed_items=True,
    )
    event = replace(event, rerun_reasons=found.reasons)
    keys = [
        key
        for key in sorted(known, key=partial(_place, plan=plan))
        if known[key].status is StepStatus.SUCCESS
        and key[0] not in found.outdated
        and (key[0] in found.valid or _is_restored(key, found, plan))
    ]
    run_id, at_ms = origin.run_id, origin.at_ms
    # There may be many: each event is made twice, so that not all of them are there at once.
    run = StoredRun(
        chain([event], (_reused_result(key, known[key], run_id, at_ms, plan) for key in keys))
    )
    settled = run.carryover.settled()
    _decode(settled, decode)

    def reused() -> Iterator[tuple[ResultReused, ResultReused]]:
        for key in keys:
            each = _reused_result(key, known.pop(key), run_id, at_ms, plan)
            yield replace(each, output=_value_of(each, settled)), each

    restored = {key: each for key, each in settled.items() if _is_restored(key, found, plan)}
    run.log = []  # its events come when the run begins
    snapshot = Snapshot(event.run_id, event.wall_time, 0.0, restored, {}, replay=run)
    return RerunStart(event, reused(), snapshot)


def _value_of(reused: ResultReused, settled: Mapping[Key, StepView]) -> object:
    if reused.secret:
        return REDACTED_OUTPUT
    return None if reused.items is not None else settled[reused.step, reused.item].output


def _place(key: Key, plan: Plan) -> tuple[int, bool, int]:
    """Return the place of a result among those of a plan: a step comes after its items."""
    name, item = key
    return plan.index[name], item is None, item or 0


def _reused_result(key: Key, step: StepView, run_id: str, at_ms: float, plan: Plan) -> ResultReused:
    """Return what a rerun reuses of a run, which stands at ``at_ms``."""
    name, item = key
    is_secret = step.secret or plan.steps[plan.index[name]].secret
    output, count = step.output, None
    if step.items is not None:
        output, count = None, len(step.items)
    if is_secret:
        output = REDACTED
    return ResultReused(
        name,
        0.0,
        step.origin or run_id,
        step.own_attempt_count + step.origin_attempts,
        step.duration_ms(at_ms) or 0.0,
        output,
        item,
        count,
        is_secret,
        step.error,
        plan.steps[plan.index[name]].keep_outputs or item is not None,
    )


class _Judgement(NamedTuple):
    """Which results of a run are valid for a plan."""

    valid: dict[str, None]
    """The steps with a valid result, but for those whose condition is asked again."""
    outdated: dict[str, str]
    """The steps with a result that is not valid, each with why."""
    unfinished: dict[str, str]
    """The other steps that have begun and not succeeded, or not with all of their items, each with
    what became of it."""
    recalled: tuple[str, ...]
    """The steps with valid results whose outputs were not stored, which steps that run need."""

    @property
    def reasons(self) -> dict[str, str]:
        """Why steps of which something is known run again."""
        return {**dict.fromkeys(self.recalled, RECALLED), **self.unfinished, **self.outdated}


def _judge(
    run: StoredRun,
    plan: Plan,
    known: Mapping[Key, StepView],
    reasons: Mapping[str, str],
    secret: Collection[str],
    bindings: Bindings,
    *,
    afresh: bool,
    final: Collection[str] = (),
    runs_failed_items: bool = False,
) -> _Judgement:
    """Decide which results of a run are valid.

    ``reasons`` say why steps must run again, whatever their fingerprints say. ``secret`` are the
    steps whose outputs are not there, beside those that were not stored. With ``afresh``,
    everything that has not succeeded runs, but for the ``final`` steps, whose results are valid
    whatever has changed; with ``runs_failed_items``, also the failed items of steps that have
    succeeded.
    """
    valid, by_item, outdated = _verdicts(
        *(run, plan, known, reasons),
        afresh=afresh,
        final=final,
        runs_failed_items=runs_failed_items,
    )
    with_items = {name for name, item in known if item is not None}
    unfinished = {n: why for n, why in by_item.items() if n in with_items}
    unfinished |= run.carryover.unfinished()
    not_stored = _not_stored(known, outdated, secret)
    with_results = _with_results(known, afresh=afresh)
    begun = unfinished.keys() | with_results
    if plan.signals:
        # One may have been sent before its turn, but no later than what it answers was outdated.
        gone = with_results & outdated.keys() | (_signals(plan) & reasons.keys())
        begun -= _signals(plan) - with_results
        begun |= with_dependents(gone, plan.depends_on.items()) & _signals(plan)
    asked_again = {
        name
        for name in valid.keys() - set(final)
        if afresh and known[name, None].status is StepStatus.SKIPPED
    }
    restored = {name: None for name in valid if name not in asked_again}
    asked = run.signals.waits.keys() - outdated.keys()  # what was to be known for that was known
    recalled = _recalled(plan, restored, not_stored, bindings, asked)
    void = _void_answers(plan, recalled) - reasons.keys()
    if void:
        # What these let run may need other outputs that were not stored.
        why = "what it answers was not stored, and is made again"
        return _judge(
            *(run, plan, known, {**reasons, **dict.fromkeys(void, why)}, secret, bindings),
            afresh=afresh,
            final=final,
            runs_failed_items=runs_failed_items,
        )
    return _Judgement(
        restored,
        {name: why for name, why in outdated.items() if name in begun},
        {n: why for n, why in unfinished.items() if n in plan.index and n not in outdated | valid},
        recalled,
    )


def _signals(plan: Plan) -> set[str]:
    return {plan.steps[at].name for at in plan.signals}


def _void_answers(plan: Plan, recalled: Collection[str]) -> set[str]:
    """Return the signals that answer a result which is made again."""
    if not (plan.signals and recalled):
        return set()
    return _signals(plan) & with_dependents(recalled, plan.depends_on.items())


def _of_takers(plan: Plan, bindings: Bindings, reasons: Mapping[str, str]) -> dict[str, str]:
    """Return the steps that take one of these inputs, for their action or their ``when``.

    The answer has for each step the reason that ``reasons`` has for its input.
    """
    found: dict[str, str] = {}
    for index, step in enumerate(plan.steps if reasons else ()):
        for source in bindings.sources(index):
            if isinstance(source, str) and source in reasons:
                found.setdefault(step.name, reasons[source])
    return found


def _with_results(known: Mapping[Key, StepView], *, afresh: bool) -> set[str]:
    """Return the steps with a result that can be outdated, as no skip for a failure is afresh."""
    skipped = StepStatus.SKIPPED
    return {
        name
        for (name, _), one in known.items()
        if not (afresh and one.status is skipped and not one.by_condition)
    }


def _of_plan(known: dict[Key, T], plan: Plan) -> dict[Key, T]:
    """Leave what is known of the plan's steps and of their items, of which there may be many."""
    for key in [key for key in known if key[0] not in plan.index]:
        del known[key]
    return known


def _decode(restored: Mapping[Key, StepView], decode: Callable[[str, Payload], Any]) -> None:
    """Decode the outputs of what is restored before anything runs, so that no error comes late."""
    for (name, _), step in restored.items():
        try:
            decode_outputs(step, partial(decode, name))
        except PayloadError as error:
            raise PayloadError(
                error.subject,
                f"{error.problem}; nothing has run: make its type or the journal fit, or give step "
                f"{name!r} another version so that it runs again",
            ) from error


def _verdicts(
    run: StoredRun,
    plan: Plan,
    known: Mapping[Key, StepView],
    reasons: Mapping[str, str],
    *,
    afresh: bool,
    final: Collection[str],
    runs_failed_items: bool,
) -> tuple[dict[str, None], dict[str, str], dict[str, str]]:
    """Return the steps with a valid result, those that are valid by item, and the outdated ones.

    The latter two come each with why it runs.
    """
    valid: dict[str, None] = {}
    by_item: dict[str, str] = {}
    outdated: dict[str, str] = {}
    shape, fingerprints, before = plan.depends_on, fingerprints_of(plan), run.carryover
    for name, needed in shape.items():
        if name not in before.fingerprints:
            continue  # a new step
        if name in final and (name, None) in known:
            valid[name] = None
            continue
        why = reasons.get(name) or difference(before.fingerprints[name], fingerprints[name])
        step, index = known.get((name, None)), plan.index[name]
        if why is None and set(needed) != set(before.dependencies[name]):
            why = f"it depends on {_listed(needed)}, and depended on " + _listed(
                before.dependencies[name]
            )
        again = [other for other in needed if other not in valid]
        ended = [known[other, None] for other in needed if other in valid]
        if again and step is not None and _is_lost(plan.steps[index], step, ended):
            again = []  # whatever comes of the others, for which it did not wait
        flows = index in plan.flows and again == [plan.steps[plan.flows[index]].name]
        if why is None and again and not (flows and again[0] in by_item):
            why = f"step {again[0]!r}, which it depends on, runs again"
        failed = _unsuccessful(step) if runs_failed_items else 0
        if why is not None:
            outdated[name] = why
        elif again:
            by_item[name] = f"items of step {again[0]!r}, over which it is mapped, run again"
        elif failed:
            by_item[name] = "1 item had failed" if failed == 1 else f"{failed} items had failed"
        elif step is not None and not (
            afresh and blocks_dependents(step.status, step.by_condition)
        ):
            valid[name] = None
        elif plan.steps[index].map_over is not None:
            by_item[name] = "it had not finished"
    return valid, by_item, outdated


def _is_lost(step: WorkflowStep, before: StepView, ended: Iterable[StepView]) -> bool:
    """Whether a step was skipped for a failure before it that still is there."""
    was_lost = before.status is StepStatus.SKIPPED and not before.by_condition
    return (
        was_lost
        and not step.is_cleanup
        and any(blocks_dependents(each.status, each.by_condition) for each in ended)
    )


def _unsuccessful(step: StepView | None) -> int:
    """Return how many items of a step have ended and not succeeded."""
    if step is None or step.items is None:
        return 0
    return sum(item.status is not StepStatus.SUCCESS for item in step.items.values())


def _has_failed(run: StoredRun, plan: Plan, known: Mapping[Key, StepView]) -> bool:
    """Whether a step has failed for good, or more items of one than it tolerates."""
    failed: Counter[str] = Counter()
    skipped: Counter[str] = Counter()
    for (name, item), one in known.items():
        if item is not None and one.status is StepStatus.SKIPPED:
            skipped[name] += 1
        if one.status is not StepStatus.FAILED:
            continue
        if item is None:
            return True
        whole = known.get((name, None))
        failed[name] += whole is None or whole.status is not StepStatus.SUCCESS
    for name, count in failed.items():
        of = run.steps[name].item_count if name in run.steps else None
        given = None if of is None else of - skipped[name]
        if not tolerates(plan.steps[plan.index[name]], count, given):
            return True
    return False


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names)) or "nothing"


def _not_stored(
    known: Mapping[Key, StepView], outdated: Mapping[str, str], secret: Collection[str]
) -> set[str]:
    """Return the steps with a valid output that was not stored, of their own or of an item."""
    found = {
        name
        for (name, _), step in known.items()
        if (step.secret or name in secret or is_remote(step.output))
        and step.status is StepStatus.SUCCESS
    }
    return found - outdated.keys()


def _recalled(
    plan: Plan,
    restored: Mapping[str, None],
    not_stored: Collection[str],
    bindings: Bindings,
    asked: Collection[str],
) -> tuple[str, ...]:
    """Return the steps whose outputs were not stored and which steps that run need.

    Those that have ``asked`` for their signals need none.
    """
    recalled, needed = [], set()
    for index in reversed(plan.order):
        step = plan.steps[index]
        if index in needed and step.name in not_stored:
            recalled.append(step.name)
        elif step.name in restored or step.name in asked:
            continue
        for source in bindings.sources(index):
            if source == ITEM:
                needed.add(plan.index[step.map_over or ""])
            elif isinstance(source, int):
                needed.add(source)
    return tuple(reversed(recalled))


def _is_restored(key: Key, found: _Judgement, plan: Plan) -> bool:
    """Whether a valid result is restored."""
    name, item = key
    if name in found.recalled:
        return False
    if item is None or name in found.valid:
        return item is None and name in found.valid
    return not _is_of_recalled(key, found.recalled, plan)


def _is_of_recalled(key: Key, recalled: Collection[str], plan: Plan) -> bool:
    """Whether an item comes from an output that may differ now, of any step of its chain."""
    source, item = key
    while item is not None and source in plan.index:
        source = plan.steps[plan.index[source]].map_over or ""
        if source in recalled:
            return True
    return False
