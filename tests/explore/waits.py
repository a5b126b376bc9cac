"""Random runs that wait for signals, in virtual time, and a model of how each must end.

A run is resumed with changed steps at a moment at which nothing but waits is left, or after it has
failed. Times that decide are never close to each other, so the model need not tell ties apart.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from itertools import pairwise
from random import Random
from typing import Any, NamedTuple

from asyncflow import (
    Orchestrator,
    Pool,
    RunNotFoundError,
    RunReport,
    RunStatus,
    Signal,
    WorkflowStep,
    current_step,
)
from asyncflow._core.analysis.preview import RunPreview
from asyncflow.events import (
    AttemptStarted,
    SignalReceived,
    StepFailed,
    StepWaiting,
)
from asyncflow.journal import SQLiteJournal
from asyncflow.testing import run_in_virtual_time

STEP_S = 0.25
APART_S = 0.2
HORIZON_S = 100.0
_NEVER = float("inf")


class Step(NamedTuple):
    """A step."""

    kind: str
    """``step``; ``fails``, if it fails until it is changed; or ``waits``."""
    needs: tuple[int, ...]
    deadline_s: float | None = None
    instead: str = ""
    """What a deadline leads to: an error, a ``default``, a ``fallback``, or one that ``raises``."""


class Case(NamedTuple):
    """A pipeline, what is sent to it when, and when which steps are changed."""

    steps: tuple[Step, ...]
    sent: tuple[tuple[float, int], ...]
    """When a value is sent to which step; the value is the place in here."""
    stays: tuple[bool, bool]
    """Whether the run stays in its process, before and after the change."""
    changed: frozenset[int]
    changed_s: float
    unmet: frozenset[int] = frozenset()
    """The steps whose condition is false."""
    deadlines: tuple[tuple[int, float | None], ...] = ()
    """The steps that wait whose deadline is another one after the change, and that, in seconds."""
    has_policies: bool = False
    """Whether the steps measure slots of a pool, take a resource of the run and say something."""


class Result(NamedTuple):
    """How a step has ended."""

    status: str
    output: Any
    end_s: float
    by_condition: bool = False


class Outcome(NamedTuple):
    """How a run has ended."""

    results: dict[str, tuple[str, Any]]
    calls: Counter[str]


def random_case(number: int) -> Case:
    """Return a random case in which nothing that decides ties."""
    chance, more = Random(number), Random(f"more {number}")
    while True:
        case = _random_case(chance)
        if number % 3 == 1:
            steps = [at for at, step in enumerate(case.steps) if step.kind == "step"]
            unmet = frozenset(at for at in steps if more.random() < 0.3)
            case = case._replace(unmet=unmet, has_policies=more.random() < 0.7)
        if number % 3 == 2:
            waits = [at for at, step in enumerate(case.steps) if step.kind == "waits"]
            others = [(at, more.choice([None, more.uniform(1, 25)])) for at in waits]
            deadlines = tuple(other for other in others if more.random() < 0.5)
            case = case._replace(deadlines=deadlines)
        if _Model(case).is_clear():
            return case


def _random_case(chance: Random) -> Case:
    steps = []
    for at in range(chance.randint(1, 6)):
        kind = chance.choice(["step", "step", "waits", "waits", "fails"])
        needs = tuple(
            sorted({chance.randrange(at) for _ in range(chance.randint(0, 2))} if at else ())
        )
        if kind == "waits" and chance.random() < 0.5:
            instead = chance.choice(["", "default", "fallback", "raises"])
            steps.append(Step(kind, needs, chance.uniform(1, 15), instead))
        else:
            steps.append(Step(kind, needs))
    waits = [at for at, step in enumerate(steps) if step.kind == "waits"]
    sent = [
        (chance.uniform(0.1, 40), at) for at in waits for _ in range(chance.choice([0, 1, 1, 2, 3]))
    ]
    return Case(
        tuple(steps),
        tuple(sorted(sent)),
        (chance.random() < 0.5, chance.random() < 0.5),
        frozenset(at for at in range(len(steps)) if chance.random() < 0.25),
        chance.uniform(1, 45),
    )


# --- the model -----------------------------------------------------------------------------------


class _Model:
    """Computes how a run must end."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.results: dict[int, Result] = {}
        self.turns: dict[int, float] = {}
        """Since when each step waits."""
        self.valid_s = dict.fromkeys(range(len(case.steps)), 0.0)
        """From when on what is sent to a step counts."""
        self.deadlines = {at: step.deadline_s for at, step in enumerate(case.steps)}
        self.calls: Counter[str] = Counter()
        self.decisive: list[float] = [case.changed_s]
        """The times that must not be close to those at which something is sent."""
        self._advance(0, case.changed_s, ())
        self.first = dict(self.results)
        if self._has_passed():
            return
        self._change()
        self.deadlines |= dict(case.deadlines)
        self._advance(case.changed_s, _NEVER, case.changed)

    def _has_passed(self) -> bool:
        ended = len(self.results) == len(self.case.steps)
        results = self.results.values()
        return ended and all(each.status == "SUCCESS" or each.by_condition for each in results)

    def is_clear(self) -> bool:
        """Whether nothing runs when steps are changed, and no two decisive times are close."""
        ends = [each.end_s for each in self.first.values()]
        running = any(self.case.changed_s - each < 2 * STEP_S for each in ends)
        times = sorted([*self.decisive, *(at_s for at_s, _ in self.case.sent)])
        close = any(b - a < APART_S for a, b in pairwise(times))
        return not (running or close)

    def outcome(self) -> Outcome:
        shown = {f"s{at}": (each.status, each.output) for at, each in self.results.items()}
        pending = {f"s{at}": ("PENDING", None) for at in range(len(self.case.steps))}
        return Outcome(pending | shown, self.calls)

    def _change(self) -> None:
        """Drop what does not hold any more when the run is resumed."""
        has_ended = len(self.results) == len(self.case.steps)
        again = set()
        for at, step in enumerate(self.case.steps):
            result = self.results.get(at)
            is_void = bool(again.intersection(step.needs))
            has_run = result is not None and result.status != "SKIPPED"
            if has_run and at in self.case.changed and step.kind != "waits":
                is_void = True
            if is_void:
                again.add(at)
                self.valid_s[at] = self.case.changed_s
                self.turns.pop(at, None)
                self.results.pop(at, None)
            elif result is not None and result.status in ("FAILED", "SKIPPED") and has_ended:
                if result.status == "FAILED" and step.kind == "waits":
                    self.valid_s[at] = self.case.changed_s  # what comes before is too late
                    self.turns.pop(at, None)
                del self.results[at]

    def _advance(self, begin_s: float, until_s: float, changed: Any) -> None:
        for at, step in enumerate(self.case.steps):
            if at in self.results:
                continue
            needed = [self.results.get(need) for need in step.needs]
            if None in needed:
                continue  # its turn has not come, whether it will run or not
            if any(each is not None and each.status != "SUCCESS" for each in needed):
                self.results[at] = _skipped([each for each in needed if each is not None])
                continue
            ready_s = max(begin_s, *(each.end_s for each in needed if each), 0.0)
            if step.kind == "waits":
                self._wait(at, step, ready_s, until_s)
                continue
            if at in self.case.unmet:
                self.results[at] = Result("SKIPPED", None, ready_s, by_condition=True)
                continue
            name = f"s{at}" + ("'" if at in changed else "")
            self.calls[name] += 1
            end_s = ready_s + STEP_S
            if step.kind == "fails" and at not in changed:
                self.results[at] = Result("FAILED", "ValueError", end_s)
            else:
                outputs = [each.output for each in needed if each]
                self.results[at] = Result("SUCCESS", _output(name, outputs), end_s)
        self._skip_ahead()

    def _skip_ahead(self) -> None:
        """Skip what is lost, once nothing but waits is left, if anything waits."""
        if not any(at in self.turns and at not in self.results for at in self.turns):
            return
        for at, step in enumerate(self.case.steps):
            needed = [self.results.get(need) for need in step.needs]
            lost = [each for each in needed if each is not None and each.status != "SUCCESS"]
            # What only a condition has lost is left to the end of the waits: a failure counts more.
            if at not in self.results and not all(each.by_condition for each in lost):
                self.results[at] = _skipped(lost)

    def _wait(self, at: int, step: Step, ready_s: float, until_s: float) -> None:
        turn_s = self.turns.setdefault(at, ready_s)
        deadline_s = self.deadlines[at]
        expires_s = _NEVER if deadline_s is None else turn_s + deadline_s
        self.decisive += [expires_s] if expires_s < HORIZON_S else []
        for value, (sent_s, to) in enumerate(self.case.sent):
            if to == at and self.valid_s[at] <= sent_s < min(until_s, max(expires_s, turn_s)):
                self.results[at] = Result("SUCCESS", value, max(turn_s, sent_s, ready_s))
                return
        if expires_s < until_s:
            end_s = max(expires_s, ready_s)
            instead = {
                "": ("FAILED", "StepTimeoutError"),
                "default": ("SUCCESS", -1),
                "fallback": ("SUCCESS", -2),
                "raises": ("FAILED", "KeyError"),
            }[step.instead]
            self.results[at] = Result(*instead, end_s)


def _skipped(needed: list[Result]) -> Result:
    """Return the result of a step that lacks some of what it needs."""
    lost = [each for each in needed if each.status != "SUCCESS"]
    by_condition = all(each.by_condition for each in lost)
    return Result("SKIPPED", None, max(each.end_s for each in needed), by_condition)


def _output(name: str, outputs: list[Any]) -> str:
    return f"{name}({', '.join(map(str, outputs))})"


# --- the run -------------------------------------------------------------------------------------


class _Driver:
    """Runs a case with a journal, as a service does in one process after the other."""

    def __init__(self, case: Case, journal: SQLiteJournal) -> None:
        self.case, self.journal = case, journal
        self.loop = asyncio.get_running_loop()
        self.began_s = self.loop.time()
        self.woken = asyncio.Event()
        self.calls: Counter[str] = Counter()
        self.accepted: list[tuple[float, int, int]] = []
        """When which value was accepted, and for which step."""
        self.is_open = False
        """Whether the resource of the run is."""

    @property
    def now_s(self) -> float:
        return self.loop.time() - self.began_s

    async def run(self) -> Outcome:
        sending = [
            asyncio.ensure_future(self._send(value, *each))
            for value, each in enumerate(self.case.sent)
        ]
        report = await self._until(self.case.changed_s, frozenset(), self.case.stays[0])
        if report.status is not RunStatus.PASSED:
            await asyncio.sleep(self.case.changed_s - self.now_s)
            await self._until(HORIZON_S, self.case.changed, self.case.stays[1])
        for each in sending:
            each.cancel()
        await asyncio.gather(*sending, return_exceptions=True)
        report = await self.journal.report("r")
        return Outcome({name: _shown(result) for name, result in report.items()}, self.calls)

    async def _until(self, limit_s: float, changed: frozenset[int], stays: bool) -> RunReport:
        """Run, and continue whenever the run is due, until then or until it has ended."""
        on_wait: Any = "stay" if stays else "suspend"
        steps = _steps(self, changed, is_changed=limit_s == HORIZON_S)
        resources = (
            {"db": self._resource} if any("db" in it.signature.names for it in steps) else {}
        )
        pipeline = Orchestrator(steps, False, name="random", schedule="ready").with_options(
            journal=self.journal, run_id="r", on_wait=on_wait, resources=resources
        )
        while True:
            preview = await self._preview(pipeline)
            async with pipeline.start() as run:
                ending = asyncio.ensure_future(run.report())
                await asyncio.wait([ending], timeout=limit_s - self.now_s)
                is_cut = not ending.done()
                if is_cut:
                    run.drain("a deployment")
                report = await ending
            if preview is not None:
                waits_on = report.status is RunStatus.WAITING and not is_cut
                await self._check(*preview, waits_on=waits_on)
            if report.status is not RunStatus.WAITING:
                return report
            while not await self.journal.due():
                if self.now_s >= limit_s:
                    return report
                waits = [wait.waiting_until for wait in report.waiting.values()]
                now = self.loop.wall_time()  # type: ignore[attr-defined]
                ends = [until - now for until in waits if until is not None]
                left_s = min([limit_s - self.now_s, *ends])
                self.woken.clear()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self.woken.wait(), max(left_s, 0.001))

    async def _preview(self, pipeline: Orchestrator) -> tuple[RunPreview, int] | None:
        """Return what the next segment will do, and how many events are before it."""
        try:
            return await pipeline.preview("r"), len(await self.journal.events("r"))
        except RunNotFoundError:
            return None

    async def _check(self, preview: RunPreview, before: int, *, waits_on: bool) -> None:
        """Check that a segment has run nothing else than its preview says."""
        events = [each.event for each in (await self.journal.events("r", after=before))]
        waits = {step.step_name for step in preview.waits}
        ended = [each for each in events if isinstance(each, SignalReceived | StepFailed)]
        if waits & {each.step for each in ended}:
            return  # it came, or its deadline expired, after the preview
        started = {each.step for each in events if isinstance(each, AttemptStarted)}
        started |= {each.step for each in ended}
        assert started <= {step.step_name for step in preview.runs}, (preview, events)
        assert waits or not waits_on, preview

    @asynccontextmanager
    async def _resource(self) -> AsyncIterator[None]:
        assert not self.is_open
        self.is_open = True
        try:
            yield
        finally:
            self.is_open = False

    async def _send(self, value: int, at_s: float, to: int) -> None:
        await asyncio.sleep(at_s)
        try:
            await self.journal.signal("r", f"s{to}", value)
        except ValueError:
            return
        self.accepted.append((at_s, to, value))
        self.woken.set()


def _shown(result: Any) -> tuple[str, Any]:
    error = result.error
    if result.status == "FAILED":
        name = getattr(error, "type_name", "") or type(error).__name__
        return "FAILED", name.rpartition(".")[2]
    return str(result.status), result.output


def _steps(
    driver: _Driver, changed: frozenset[int], *, is_changed: bool = False
) -> list[WorkflowStep]:
    case, pool = driver.case, Pool(20)
    deadlines = dict(case.deadlines) if is_changed else {}

    def made(at: int, step: Step) -> WorkflowStep:
        needs = [f"s{need}" for need in step.needs]
        if step.kind == "waits":
            deadline_s = deadlines.get(at, step.deadline_s)
            deadline_ms = None if deadline_s is None else deadline_s * 1000
            return WorkflowStep(
                f"s{at}",
                Signal(int, description=_asking(at)),
                needs,
                deadline_ms=deadline_ms,
                fallback=None if deadline_s is None else _FALLBACKS[step.instead],
            )

        async def action(**outputs: Any) -> str:
            name = f"s{at}" + ("'" if at in changed else "")
            driver.calls[name] += 1
            await asyncio.sleep(STEP_S)
            if step.kind == "fails" and at not in changed:
                raise ValueError("it fails")
            return _output(name, [outputs[need] for need in needs])

        async def action_with_policies(db: None, **outputs: Any) -> str:
            assert driver.is_open
            current_step().progress(1)
            current_step().checkpoint(at)
            return await action(**outputs)

        options: dict[str, Any] = {"version": "2" if at in changed else "1"}
        if at in case.unmet:
            options["when"] = _never
        if not case.has_policies:
            return WorkflowStep(f"s{at}", action, needs, **options)
        options |= {"pool": pool, "slots": _two, "priority": at % 3}
        return WorkflowStep(f"s{at}", action_with_policies, needs, **options)

    return [made(at, step) for at, step in enumerate(case.steps)]


def _asking(at: int) -> Callable[..., str]:
    def ask(**outputs: Any) -> str:
        if at % 3 == 2:
            raise LookupError("no words")
        return f"s{at} after {outputs}"

    return ask


def _never(**outputs: Any) -> bool:
    return False


def _two(**outputs: Any) -> int:
    return 2


def _raise(error: Exception) -> int:
    raise KeyError("instead")


_FALLBACKS: dict[str, Callable[[Exception], int] | None] = {
    "": None,
    "default": lambda error: -1,
    "fallback": lambda error: -2,
    "raises": _raise,
}


def problem_of(case: Case) -> str:
    """Run a case; return how it differs from the model, and empty if it does not."""

    async def main() -> tuple[Outcome, list[tuple[float, int, int]], list[Any]]:
        async with SQLiteJournal(":memory:") as journal:
            driver = _Driver(case, journal)
            outcome = await driver.run()
            return outcome, driver.accepted, [each.event for each in await journal.events("r")]

    model = _Model(case)
    outcome, accepted, events = run_in_virtual_time(main())
    asked: dict[tuple[str, float], str] = {}
    for event in events:
        if isinstance(event, StepWaiting):
            before = asked.setdefault((event.step, event.since), event.description)
            is_told = event.description.startswith(f"{event.step} after ")
            if event.description != before or is_told is (event.step in ("s2", "s5")):
                return f"{event.step} asks {event.description!r}, after {before!r}"
    if outcome != model.outcome():
        return f"is      {outcome}\nmust be {model.outcome()}"
    for at_s, to, value in accepted:
        is_void = at_s < model.valid_s[to]
        status, output = outcome.results[f"s{to}"]
        if status == "SUCCESS" and output != value and not is_void:
            return f"value {value} was accepted for s{to}, and {output} counted"
        if status == "FAILED" and not is_void:
            return f"value {value} was accepted for s{to}, which failed"
    return ""


def first_problem(first: int, runs: int) -> str:
    """Run so many cases from a number on; describe the first that differs from the model."""
    for number in range(first, first + runs):
        case = random_case(number)
        problem = problem_of(case)
        if problem:
            return f"case {number}: {case}\n{problem}"
    return ""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.explore.waits", description=__doc__)
    parser.add_argument("--runs", type=int, default=1_000, help="how many cases")
    parser.add_argument("--first", type=int, default=0, help="the number of the first one")
    options = parser.parse_args()
    problem = first_problem(options.first, options.runs)
    print(problem or f"{options.runs:,} runs that wait end as they must")
    return 1 if problem else 0


if __name__ == "__main__":
    sys.exit(main())
