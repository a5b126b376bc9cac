"""The way of a run: from what a caller asks for to the report.

Rules:

1. Everything is checked before any action is called.
2. A planned pipeline holds no state of a run, so it can be shared and run concurrently.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from asyncflow._core.arguments import check_names, check_number
from asyncflow._core.history.report import RunReport
from asyncflow._core.pipeline.graph import OutputTypes, Plan, plan
from asyncflow._core.pipeline.step import WorkflowStep, on_engine, parameters_of
from asyncflow._core.record import replace
from asyncflow._core.running.context import current_attempt, is_inside_run
from asyncflow._core.running.state import RunState
from asyncflow._core.text import did_you_mean
from asyncflow._kernel.asyncio_compat import wall_clock
from asyncflow._kernel.run import Run
from asyncflow._kernel.run_scope import RunStart
from asyncflow._policies.policies import policies_of, prepare
from asyncflow._runtime.options import (
    OPTIONS,
    OnConflict,
    RunOptions,
    check_on_conflict,
    check_run_id,
)
from asyncflow._runtime.scope_opening import Request, new_start, open_scope
from asyncflow.events import RunResumed

if TYPE_CHECKING:
    from asyncflow._core.analysis.preview import RunPreview
    from asyncflow._core.pipeline.step import AnyEngine
    from asyncflow._policies.durable import Journal, RunPersistence
    from asyncflow._policies.observers import Observer
    from asyncflow._policies.run_link import RunLink
    from asyncflow._runtime.explaining import ActingPolicies
    from asyncflow._runtime.handle import RunHandle


# Where a test intercepts runs. The lists are empty outside of tests; a run asks each of them once.

StepReplacement: TypeAlias = "Callable[[tuple[WorkflowStep, ...]], tuple[WorkflowStep, ...] | None]"
"""Receives the steps of a pipeline that is about to run; returns those that run instead of them,
or ``None`` for the same ones."""

replacements: list[StepReplacement] = []
"""Each receives what the one before it has returned."""

report_watchers: list[Callable[[RunReport], object]] = []
"""Each is called with the report of every run that has ended by itself."""

_LONGEST_DELAY_MS = 100 * 365.25 * 86_400_000
"""Later times are no dates."""


class Plans:
    """The plan of some steps, and the latest plan of some of them; planned pipelines share it.

    ``whole`` is the plan of all steps. Raises as `Orchestrator` does.
    """

    def __init__(self, steps: Iterable[WorkflowStep]) -> None:
        self.whole = plan(steps)
        self.types = OutputTypes(self.whole)
        self._latest: tuple[object, AnyEngine | None, Plan] = None, None, self.whole

    def of(
        self,
        targets: tuple[str, ...] | None,
        engine: AnyEngine | None,
        resources: Collection[str],
    ) -> Plan:
        """Return the plan of these steps and all that they depend on, for a run.

        ``targets`` are the names of these steps; ``None`` means all.
        """
        if targets is None and engine is None and not resources:
            return self.whole
        wanted = targets, frozenset(resources)
        latest, latest_engine, planned = self._latest
        if latest != wanted or latest_engine is not engine:
            planned = self.whole
            if targets is not None or engine is not None:
                steps = self.whole.steps if engine is None else on_engine(self.whole.steps, engine)
                planned = plan(steps, targets)
            planned = replace(planned, resources=wanted[1])
            self._latest = wanted, engine, planned
        return planned


class PlannedPipeline:
    """The steps of a `Pipeline` or an `Orchestrator` with a plan and options, ready to run.

    `Runnable` says what its runs are. Raises as `Orchestrator` does.
    """

    def __init__(self, plans: Plans, options: RunOptions) -> None:
        self.plans = plans
        self.plan = plans.of(options.targets, options.engine, options.resources)
        self.options = options

    def _intercepted(self) -> PlannedPipeline:
        """Return what runs instead, if a test has replaced any step; else this one."""
        if not replacements:
            return self
        whole = steps = self.plans.whole.steps
        for stand_in in replacements.copy():
            steps = stand_in(steps) or steps
        return self if steps is whole else PlannedPipeline(Plans(steps), self.options)

    def asked(self, journal: Journal) -> tuple[dict[str, Any], int]:
        """Return its signals with the schemas of their types, and a checksum of what it asks for.

        A journal has the same of a run that waits.
        """
        from asyncflow._runtime.run_opening import asked_by  # as in run

        self = self._intercepted()
        return asked_by(self.plan, self.plans.types, journal)

    def check_signal(self, name: str, value: Any) -> None:
        """Raise `ValueError` if it has a signal of this name which does not take a value."""
        from asyncflow._core.pipeline.signal import check_value  # few programs send one

        check_value(self.plan, name, value)

    async def acting_on(self, name: str) -> ActingPolicies:
        """Return which policies act on a step. Raise `ValueError` if there is none of that name."""
        from asyncflow._runtime.explaining import acting_on  # no run needs it

        index = self.plan.index
        if name not in index:
            raise ValueError(f"the pipeline has no step {name!r}{did_you_mean(name, index)}")
        return await acting_on(self.plan, self.options, self.plan.steps[index[name]])

    async def run(self, inputs: Mapping[str, Any] | None, link: RunLink | None = None) -> RunReport:
        _check_asyncio()
        self = self._intercepted()
        options = self.options
        request = self._request(options.run_id if link is None else link.run_id, inputs)
        self._prepare_places()
        if options.journal is None:
            if options.key is not None:
                raise ValueError(
                    f"key {options.key!r} needs a journal, which knows the other runs; give it "
                    "one: with_options(journal=...)"
                )
            if "cache_ms" in request.plan.given:
                from asyncflow._core.running.step_cache import check_not_cached  # few runs need it

                check_not_cached(request.plan)
            return await self._execute(request, new_start(request), None, link)
        wait = options.on_active == "wait"
        if wait and is_inside_run(request.run_id):
            raise ValueError(f"a step of run {request.run_id!r} can't wait for the end of that run")
        from asyncflow._runtime.run_opening import open_run  # no run without a journal needs it

        opened = await open_run(options.journal, request, wait=wait)
        if isinstance(opened, RunReport):
            return opened
        persistence, start = opened
        return await self._execute(request, start, persistence, link)

    def start(self, inputs: Mapping[str, Any] | None) -> RunHandle:
        from asyncflow._policies.run_link import RunLink  # `run` needs none
        from asyncflow._runtime.handle import RunHandle

        options = self.options
        run_id = _random_id() if options.run_id is None else options.run_id
        link = RunLink(
            run_id,
            self.plan,
            options.event_buffer,
            getattr(options.journal, "follow_streamed", None),
        )
        return RunHandle(link, partial(self.run, inputs))

    async def enqueue(
        self, inputs: Mapping[str, Any] | None, on_conflict: OnConflict, delay_ms: float
    ) -> str:
        _check_asyncio()
        check_number("delay_ms", delay_ms, 0, unit=" ms")
        if delay_ms > _LONGEST_DELAY_MS:
            raise ValueError(f"delay_ms must be at most 100 years, not {delay_ms:g} ms")
        check_on_conflict(on_conflict)
        options, self = self.options, self._intercepted()
        if options.journal is None:
            raise RuntimeError(
                "enqueue() needs a journal, which stores the run: give it one by "
                "with_options(journal=...)"
            )
        if on_conflict != "wait" and options.key is None:
            raise ValueError(
                f"on_conflict={on_conflict!r} is about the runs of a key: give a key too"
            )
        request = self._request(options.run_id, inputs)
        from asyncflow._runtime.run_opening import enqueue_run  # as in run

        return await enqueue_run(
            options.journal, request, delay_ms=delay_ms, on_conflict=on_conflict
        )

    async def rerun(
        self,
        run_id: str,
        new_id: str | None,
        inputs: Mapping[str, Any] | None,
        from_: str | Iterable[str] | None,
    ) -> RunReport:
        _check_asyncio()
        _check_stored_id(run_id)
        check_run_id("new_id", new_id)
        options = self.options
        new_id = options.run_id if new_id is None else new_id
        if new_id == run_id:
            raise ValueError(
                f"a rerun of run {run_id!r} needs another id; leave it out to have one made"
            )
        from_steps = self._checked_from_steps(from_)
        self = self._intercepted()
        request = self._request(new_id, inputs)
        self._prepare_places()
        journal = self._journal_of("rerun()")
        from asyncflow._runtime.run_opening import open_rerun  # as in run

        persistence, start = await open_rerun(journal, request, run_id, from_steps)
        return await self._execute(request, start, persistence)

    async def preview(
        self,
        run_id: str,
        inputs: Mapping[str, Any] | None,
        rerun: bool,
        from_: str | Iterable[str] | None,
    ) -> RunPreview:
        _check_stored_id(run_id)
        if from_ is not None and not rerun:
            raise ValueError("from_ is an argument of a rerun; give rerun=True too")
        from_steps = self._checked_from_steps(from_) if rerun else None
        self = self._intercepted()
        request = self._request(None if rerun else run_id, inputs)
        is_refused = not request.allows_missing_steps
        request = request._replace(allows_missing_steps=True)
        journal = self._journal_of("preview()")
        from asyncflow._core.analysis.preview import (
            preview_of_report,
            preview_of_start,
            with_missing,
        )
        from asyncflow._runtime.run_opening import preview_run  # as in run

        start = await preview_run(journal, request, run_id, from_steps)
        if isinstance(start, RunReport):
            return preview_of_report(start)
        assert start.snapshot is not None  # a stored run has events
        reused = [event for event, _ in start.reused]
        state, now_s = self._state(start), request.clock()
        found = preview_of_start(
            run_id, self.plan, state, start.event, reused, start.snapshot, now_s
        )
        if isinstance(start.event, RunResumed) and start.event.missing_steps:
            refused = start.missing if is_refused else {}
            return with_missing(found, start.event.missing_steps, refused)
        return found

    async def report(self, run_id: str) -> RunReport:
        _check_stored_id(run_id)
        journal, options, plans = self._journal_of("report()"), self.options, self.plans
        from asyncflow._runtime.run_opening import read_report  # as in run

        request = Request(
            run_id=run_id,
            pipeline=options.name,
            plan=plans.whole,
            types=plans.types,
            inputs={},
            secret_inputs=options.secret_inputs,
            fail_fast=options.fail_fast,
        )
        return await read_report(journal, request)

    def _journal_of(self, method: str) -> Journal:
        """Return the journal that a method reads a run from."""
        journal = self.options.journal
        if journal is None:
            raise ValueError(
                f"{method} needs the journal that has the run: give it to the pipeline or the "
                "Orchestrator, or by with_options(journal=...)"
            )
        if not callable(getattr(journal, "replay", None)):
            raise TypeError(
                f"{method} reads the run by the journal's replay(), and {type(journal).__name__} "
                "has no replay(); asyncflow.Journal says what it does"
            )
        return journal

    def _checked_from_steps(self, from_: object) -> tuple[str, ...]:
        if from_ is not None and not isinstance(from_, Iterable):
            raise TypeError(
                f"from_ must be the name of a step or a list of names, not {type(from_).__name__}"
            )
        names = (from_,) if isinstance(from_, str) else from_ or ()
        names = check_names("from_", names, "step")
        for name in names:
            if name not in self.plan.index:
                hint = did_you_mean(name, self.plan.index)
                if name in self.plans.whole.index:
                    hint = "; the targets leave it out"
                raise ValueError(f"from_ names {name!r}, which is no step{hint}")
        return names

    def _request(self, run_id: str | None, inputs: Mapping[str, Any] | None) -> Request:
        """Return what a caller asks for, checked."""
        options = self.options
        if options.secret_inputs and options.targets is None:  # else what is left out may take them
            self._check_secret_inputs()
        if options.resources:
            self._check_resources()
        checked = _checked_inputs(inputs)
        if checked:
            self._check_takes(checked)
        within = current_attempt()
        return Request(
            run_id=_random_id() if run_id is None else run_id,
            pipeline=options.name,
            plan=self.plan,
            types=self.plans.types,
            inputs=checked,
            secret_inputs=options.secret_inputs,
            fail_fast=options.fail_fast,
            parent="" if within is None else within[0],
            parent_step="" if within is None else within[1].step,
            # A nested run would end its step without an end of its own.
            known_steps=self.plans.whole.index,
            allows_missing_steps=options.allow_missing_steps,
            stays=options.on_wait == "stay" or within is not None or self.plan.keeps_waiting,
            clock=wall_clock(),
            label=options.label,
            attributes=options.attributes,
            key=options.key,
        )

    def _prepare_places(self) -> None:
        """Check that the steps can run where they are to run, before anything does."""
        prepare(self.plan, self.options.max_concurrency)
        if "engine" in self.plan.given:
            check_engines(self.plan.steps[index] for index in self.plan.having("engine"))

    def _check_secret_inputs(self) -> None:
        taken = parameters_of(self.plan.steps)
        for name in self.options.secret_inputs - taken:
            raise ValueError(
                f"secret_inputs names {name!r}, which no step takes{did_you_mean(name, taken)}"
            )

    def _check_resources(self) -> None:
        taken = parameters_of(self.plans.whole.steps)
        for name in self.options.resources:
            if name not in taken:
                raise ValueError(f"no step takes a resource {name!r}{did_you_mean(name, taken)}")

    def _check_takes(self, inputs: Mapping[str, Any]) -> None:
        taken = parameters_of(self.plans.whole.steps)
        for name in inputs:
            if name in self.options.resources:
                raise ValueError(
                    f"{name!r} is both an input and a resource; leave the input out, or rename one"
                )
            if name not in taken:
                hint = did_you_mean(name, taken)
                if name in OPTIONS:
                    hint = f"; options go to with_options({name}=...), or to run_pipeline()"
                elif name == "inputs":
                    hint = "; give each input by its name, as in run(url=...)"
                of = f" of pipeline {self.options.name!r}" if self.options.name else ""
                raise ValueError(f"no step{of} takes an input {name!r}{hint}")

    async def _execute(
        self,
        request: Request,
        start: RunStart,
        persistence: RunPersistence | None,
        link: RunLink | None = None,
    ) -> RunReport:
        """Execute a run that can start, and release it in its journal at its end."""
        options = self.options
        observers = options.observers if link is None else (*options.observers, link)
        try:
            watching: tuple[Observer, ...] = ()
            if observers:
                from asyncflow._policies.observers import for_run  # their check has loaded it

                watching = for_run(observers)
            # No variable may hold the run: what it raises holds this frame, and would hold itself.
            with _sharing(request.plan, persistence):
                report = await Run(
                    open_scope(request, start, self._state(start), watching, persistence),
                    partial(
                        policies_of,
                        observers=watching,
                        resources=options.resources,
                        persistence=persistence,
                        link=link,
                        may_suspend=not request.stays,
                    ),
                ).execute()
        finally:
            if persistence is not None and not persistence.has_closed:  # it could not even begin
                await persistence.close(request.run_id)
        for watch in report_watchers.copy():
            watch(report)
        return report

    def _state(self, start: RunStart) -> RunState:
        options = self.options
        return RunState(
            self.plan,
            fail_fast=options.fail_fast,
            schedule=options.schedule,
            max_concurrency=options.max_concurrency,
            deadline_ms=options.deadline_ms,
            random=_random,
            snapshot=start.snapshot,
        )


def _sharing(plan: Plan, persistence: RunPersistence | None) -> AbstractContextManager[object]:
    """Return what lets a run use the pools that processes share, if it has any."""
    if not plan.shared_pools:
        return _NO_SHARING
    from asyncflow._policies.pool_sharing import sharing  # few runs have one

    return sharing(plan.shared_pools, persistence)


_NO_SHARING = nullcontext()


def check_engines(steps: Iterable[WorkflowStep]) -> None:
    """Let each engine check its steps.

    Raise what an engine raises, with the names of both.
    """
    for step in steps:
        if step.remote is None:
            continue
        try:
            step.remote.check(step)
        except (RuntimeError, TypeError, ValueError) as error:
            hint = "" if isinstance(error, RuntimeError) else '; engine="local" runs it here'
            message = f"step {step.name!r} can't run on engine {step.remote.name!r}: {error}{hint}"
            kinds = (RuntimeError, TypeError, ValueError)
            raise next(kind for kind in kinds if isinstance(error, kind))(message) from error


def _check_stored_id(run_id: object) -> None:
    if not isinstance(run_id, str):
        raise TypeError(f"run_id must be a str, not {type(run_id).__name__}")


def _random_id() -> str:
    return os.urandom(8).hex()


def _random() -> float:
    """Return a random number from 0 up to 1, for the jitter of a backoff."""
    from random import random  # few pipelines need it, and it takes a while to import

    return random()


def _check_asyncio() -> None:
    try:
        task = asyncio.current_task()
    except RuntimeError:  # no running event loop, or trio's
        task = None
    if task is None:
        raise RuntimeError(
            "asyncflow runs only in a task of an asyncio event loop; start it with asyncio.run(), "
            "or with anyio.run() and its default backend"
        )


def _checked_inputs(inputs: object) -> dict[str, Any]:
    if inputs is None or (type(inputs) is dict and not inputs):
        return {}
    if not isinstance(inputs, Mapping):
        raise TypeError(
            f"inputs must be a mapping of parameter name to value, not {type(inputs).__name__}"
        )
    for name in inputs:
        if not isinstance(name, str):
            raise TypeError(f"the names of inputs must be str, not {type(name).__name__}")
    return dict(inputs)
