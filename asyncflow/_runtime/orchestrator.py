"""A pipeline that is checked and planned once and run any number of times.

Rules:

1. Everything is checked before any action is called.
2. An orchestrator holds no state of a run, so it can be shared and run concurrently.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias, Unpack

from asyncflow._core.arguments import check_names, suggests_arguments
from asyncflow._core.context import current_attempt, is_inside_run
from asyncflow._core.graph import OutputTypes, Plan, plan
from asyncflow._core.record import replace
from asyncflow._core.report import RunReport, to_mermaid
from asyncflow._core.state import RunState, Schedule
from asyncflow._core.step import OpenResource, WorkflowStep, on_engine, parameters_of
from asyncflow._core.text import did_you_mean
from asyncflow._kernel.asyncio_compat import wall_clock
from asyncflow._kernel.run import Run
from asyncflow._kernel.run_scope import RunStart
from asyncflow._policies.policies import policies_of, prepare
from asyncflow._runtime.options import (
    NO_RESOURCES,
    OPTIONS,
    OnActive,
    OnWait,
    Options,
    RunOptions,
    check_run_id,
)
from asyncflow._runtime.scope_opening import Request, new_start, open_scope
from asyncflow.events import RunResumed

if TYPE_CHECKING:
    from asyncflow._core.run_preview import RunPreview
    from asyncflow._core.step import AnyEngine
    from asyncflow._policies.durable import Journal, RunPersistence
    from asyncflow._policies.observers import AnyObserver, Observer
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


class Plans:
    """The plan of some steps, and the latest plan of some of them; shared by orchestrators.

    ``whole`` is the plan of all steps. Raises as `Orchestrator` does.
    """

    def __init__(self, steps: Iterable[WorkflowStep]) -> None:
        self.whole = plan(steps)
        self.types = OutputTypes(self.whole)
        self._latest: tuple[object, AnyEngine | None, Plan] = None, None, self.whole

    def of(
        self,
        targets: tuple[str, ...] | None,
        engine: AnyEngine | None = None,
        resources: Iterable[str] = (),
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


@suggests_arguments
class Orchestrator:
    """A pipeline that is checked and planned once and can run many times, even concurrently.

    Args:
        steps: The steps, in any order.
        fail_fast: What happens when the last attempt of a step fails. If true (the default), the
            running steps are cancelled and the others skipped, except clean-up steps; if false,
            only the steps that depend on the failed one are skipped.
        schedule: ``"tiers"`` (the default) starts a tier when the one before has ended;
            ``"ready"`` starts a step as soon as its own dependencies have succeeded.
        max_concurrency: How many attempts may run at the same time, at least 1; ``None`` (the
            default) means no limit. A step that waits for its next attempt does not count.
        deadline_ms: How many milliseconds the run may take; ``None`` (the default) means no
            limit. When they expire, the running steps are cancelled and the others skipped,
            and the report is returned; clean-up steps (`WorkflowStep`'s ``run_if``) still run.
        targets: The names of the steps to be run; all others are left out, except what these
            depend on. ``None`` (the default) means all.
        observers: Callables that receive each `asyncflow.events` object as it happens; or objects
            with a method ``for_run``, which returns such a callable for each run
            (`ObserverFactory`).
        name: What the pipeline is called in a journal; empty by default.
        journal: Stores the runs, so that they can be resumed: an `asyncflow.journal.SQLiteJournal`,
            for one. ``None`` (the default) stores nothing.
        secret_inputs: The names of run inputs that must be neither stored in a journal nor shown.
        engine: Runs the actions of the steps elsewhere, such as on a cluster: an engine of
            `asyncflow.engines`, which must be open while the pipeline runs. A step with an
            ``engine`` of its own keeps that. ``None`` (the default) means this process.
        resources: For each name of a parameter, a function without arguments that returns an async
            context manager, such as one that opens a pool of connections. A run enters what its
            steps take before the first of them starts, gives the value to actions and conditions
            by parameter name, and exits it, in reverse order, after the last step has ended,
            clean-up steps included. It is neither stored nor shown, and can't be sent to another
            process.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is out of its range, two steps have the same name, or a dependency
            names an unknown step.
        CyclicDependencyError: The steps depend on each other in a circle.
    """

    def __init__(
        self,
        steps: Iterable[WorkflowStep],
        fail_fast: bool = True,
        *,
        schedule: Schedule = "tiers",
        max_concurrency: int | None = None,
        deadline_ms: float | None = None,
        targets: Iterable[str] | None = None,
        observers: Iterable[AnyObserver] = (),
        name: str = "",
        journal: Journal | None = None,
        secret_inputs: Iterable[str] = (),
        engine: AnyEngine | None = None,
        resources: Mapping[str, OpenResource] = NO_RESOURCES,
    ) -> None:
        options = RunOptions.of(locals())
        self._set(Plans(steps), options)

    @classmethod
    def _of(cls, plans: Plans, options: RunOptions) -> Orchestrator:
        """Return one that runs steps that were planned before."""
        made = cls.__new__(cls)
        made._set(plans, options)
        return made

    def _set(self, plans: Plans, options: RunOptions) -> None:
        self._plans = plans
        self._plan = plans.of(options.targets, options.engine, options.resources)
        self._options = options

    @property
    def name(self) -> str:
        """What the pipeline is called in a journal."""
        return self._options.name

    @property
    def steps(self) -> list[WorkflowStep]:
        """The steps that will be run, in the order of their declaration."""
        return list(self._plan.steps)

    @property
    def secret_inputs(self) -> frozenset[str]:
        """The names of the run inputs that are neither stored in a journal nor shown."""
        return self._options.secret_inputs

    @property
    def observers(self) -> tuple[AnyObserver, ...]:
        """The observers of its runs."""
        return self._options.observers

    @property
    def resources(self) -> dict[str, OpenResource]:
        """What opens each resource of its runs, by the parameter that receives it."""
        return dict(self._options.resources)

    @property
    def dependencies(self) -> dict[str, tuple[str, ...]]:
        """For each step, in topological order, the names of the steps that it depends on.

        A clean-up step that names none depends on all steps that it looks at.
        """
        return dict(self._plan.depends_on)

    def with_options(self, **options: Unpack[Options]) -> Orchestrator:
        """Return another one with the same steps, and with other values for these options.

        It is cheap, since nothing is planned again unless the targets, the engine or the resources
        change. So each run may have one of its own:
        ``await orchestrator.with_options(run_id="monday").run()``.

        Args:
            **options: Whatever `Orchestrator` takes besides the steps, and what a run takes:

                ``run_id`` identifies the run, as a string; ``None``, the default, makes a random
                id for each run.

                ``label`` says what the run is about, such as ``"order 12345"``. Lists of runs show
                it, and find the run by it. It has at most 200 characters. A run that is resumed
                keeps the label it has.

                ``on_active`` says what to do if the journal has an active run of that id:
                ``"raise"`` (the default), or ``"wait"`` until it has ended, here or in another
                process, and then resume it.

                ``on_wait`` says what happens when nothing is left but to wait for signals, with a
                journal: ``"suspend"`` (the default) returns a report with the status ``WAITING``,
                and the run continues when it is started again, as a `asyncflow.service.Service` or
                `resume_all` does; ``"stay"`` waits in this process. Nested runs stay.

                ``allow_missing_steps`` says whether a stored run continues although this pipeline
                no longer has all steps that it would still run. By default that is a
                `PipelineChangedError`. If true, these steps are skipped by condition.

                ``event_buffer`` is how many events a `RunHandle` keeps for slow readers, at least
                1 (default 10,000).

                A value replaces the one before, ``observers`` too. To add one, name the others:
                ``observers=[*orchestrator.observers, mine]``. ``targets=None`` brings back what
                the targets of this one leave out.

        Raises:
            TypeError: One of them is no such option, or has the wrong type.
            ValueError: As `Orchestrator` raises it, or ``run_id`` is empty.
        """
        return self._of(self._plans, self._options.with_changes(options))

    def _intercepted(self) -> Orchestrator:
        """Return what runs instead, if a test has replaced any step; else this one."""
        if not replacements:
            return self
        whole = steps = self._plans.whole.steps
        for stand_in in replacements.copy():
            steps = stand_in(steps) or steps
        return self if steps is whole else self._of(Plans(steps), self._options)

    def _asked(self, journal: Journal) -> tuple[dict[str, Any], int]:
        """Return its signals with the schemas of their types, and a checksum of what it asks for.

        A journal has the same of a run that waits.
        """
        from asyncflow._runtime.run_opening import asked_by  # as in _run

        self = self._intercepted()
        return asked_by(self._plan, self._plans.types, journal)

    def _check_signal(self, name: str, value: Any) -> None:
        """Raise `ValueError` if it has a signal of this name which does not take a value."""
        from asyncflow._core.signal import check_value  # few programs send one

        check_value(self._plan, name, value)

    async def _acting_on(self, name: str) -> ActingPolicies:
        """Return which policies act on a step. Raise `ValueError` if there is none of that name."""
        from asyncflow._runtime.explaining import acting_on  # no run needs it

        index = self._plan.index
        if name not in index:
            raise ValueError(f"the pipeline has no step {name!r}{did_you_mean(name, index)}")
        return await acting_on(self._plan, self._options, self._plan.steps[index[name]])

    @property
    def tiers(self) -> list[list[str]]:
        """The names of the steps, in the groups that run at the same time; see `parallel_groups`.

        It is what will be run: without what ``targets`` leave out.
        """
        steps = self._plan.steps
        return [[steps[index].name for index in tier] for tier in self._plan.tiers]

    @property
    def execution_order(self) -> list[str]:
        """The names of the steps, tier after tier; see `topological_sort`."""
        return [name for tier in self.tiers for name in tier]

    def _repr_svg_(self) -> str:
        """Return the picture that a notebook shows."""
        from asyncflow._views.dag import to_svg  # few programs need it

        return to_svg(self.name, self.tiers, self.dependencies)

    def to_mermaid(self) -> str:
        """Return the pipeline as a Mermaid flowchart, with an arrow from each dependency.

        GitHub, GitLab and many editors draw such text. `RunReport.to_mermaid` adds how each step
        ended.
        """
        return to_mermaid(self._plan.depends_on)

    async def run(self, /, **inputs: Any) -> RunReport:
        """Run the pipeline and return its report, even when steps failed.

        With a journal, a run of its ``run_id`` that has not passed is resumed: its completed steps
        are not run again while their results are valid. The stored report of one that has passed is
        returned, its steps ``reused``, unless this pipeline has steps that the run did not have.

        Args:
            **inputs: Values for the parameters of actions, by parameter name. A resumed run has
                those that it was started with.

        Raises:
            ValueError: Nothing provides a required parameter of an action, or both a dependency
                and an input do; or no step takes an input, not even one that targets leave out.
                Nothing has run.
            RunIdInUseError: A ``ValueError``: the run was started with other inputs, or by another
                pipeline. Nothing has run.
            PipelineChangedError: A ``ValueError``: this pipeline does not have all steps that the
                stored run would still run. Nothing has run, and the run is as it was.
            RuntimeError, TypeError, ValueError: An engine is not open, or can't run a step. Nothing
                has run.
            PayloadError: The journal can't store an input. Nothing has run.
            RunAlreadyActiveError: A run of that id is active. Nothing has run.
            RunCancelledError: The run was cancelled through its journal. The steps have ended, and
                the run can be started again under its id.
            JournalError: The journal has failed. The steps have ended; what it stored is safe.
            RuntimeError: No asyncio event loop is running this code.
            ResourceError: A resource could not be opened, and no step has run; or it failed while
                it closed, or stopped the run. The steps have ended; the error has the report.
            asyncio.CancelledError: The caller was cancelled. The steps have ended.
            BaseException: What a step raised that is neither an `Exception` nor a cancellation,
                such as `KeyboardInterrupt` or `SystemExit`. The steps have ended.
        """
        return await self._run(inputs)

    def start(self, /, **inputs: Any) -> RunHandle:
        """Return a handle of a run, which starts when it is entered.

        ``async with orchestrator.start(url=...) as run`` runs the pipeline during the block, and
        ends it with the block. The run has the id of the options, or a random one.

        Args:
            **inputs: As `run` takes them. They are checked when it starts.
        """
        from asyncflow._policies.run_link import RunLink  # `run` needs none
        from asyncflow._runtime.handle import RunHandle

        options = self._options
        run_id = _random_id() if options.run_id is None else options.run_id
        link = RunLink(run_id, self._plan, options.event_buffer)
        return RunHandle(link, partial(self._run, inputs))

    async def _run(
        self, inputs: Mapping[str, Any] | None, link: RunLink | None = None
    ) -> RunReport:
        _check_asyncio()
        self = self._intercepted()
        options = self._options
        request = self._request(options.run_id if link is None else link.run_id, inputs)
        self._prepare_places()
        if options.journal is None:
            if "cache_ms" in request.plan.given:
                from asyncflow._core.step_cache import check_not_cached  # few runs need it

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

    async def rerun(
        self,
        run_id: str,
        new_id: str | None = None,
        *,
        inputs: Mapping[str, Any] | None = None,
        from_: str | Iterable[str] | None = None,
    ) -> RunReport:
        """Run the pipeline under a new id with the valid results of a stored run.

        The other run stays as it is, whatever its status; of one that is running, the new run
        reuses what is stored so far. A result is valid as it is in a resumption: its step has
        succeeded, takes the same data and has the same ``version``, and so do all steps that it
        depends on. A step also runs again if it is ``from_``, if its action or its ``when``
        takes an input that has another value now, or if it depends on such a step. A mapped step
        that runs reuses the valid items.

        The new run has what it reuses in its own rows, so that the other run may be pruned, and the
        new one resumed under its id. `StepResult.origin` says where a result comes from.

        Args:
            run_id: The other run.
            new_id: Identifies the new run; by default the option ``run_id``, if it has a value,
                else a random id.
            inputs: Values for inputs that differ from those of the other run. A secret input was
                not stored, so it must be given again; it counts as unchanged.
            from_: The step, or the steps, that run again with all that depends on them. By default
                only what is not valid runs.

        Raises:
            TypeError: An argument has the wrong type.
            ValueError: There is no journal; the new id is taken; the other run belongs to another
                pipeline; there is no such step; a secret input is missing; or the inputs are wrong
                as in `run`. Nothing has run.
            RunNotFoundError: The journal does not have the other run. Nothing has run.
            RunUnreadableError: The other run is damaged. Nothing has run.
            RunAlreadyActiveError: Another call has just taken the new id. Nothing has run.
            PayloadError: A value can't be stored, or a stored one can't be read. Nothing has run.
            BaseException: What else `run` raises.
        """
        _check_asyncio()
        _check_stored_id(run_id)
        check_run_id("new_id", new_id)
        options = self._options
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
        from asyncflow._runtime.run_opening import open_rerun  # as in _run

        persistence, start = await open_rerun(journal, request, run_id, from_steps)
        return await self._execute(request, start, persistence)

    async def preview(
        self,
        run_id: str,
        *,
        inputs: Mapping[str, Any] | None = None,
        rerun: bool = False,
        from_: str | Iterable[str] | None = None,
    ) -> RunPreview:
        """Return what the resumption of a stored run would do, step by step, and with the reasons.

        Nothing runs, and nothing is written. What opens a resumption decides, so that one with the
        same inputs reuses exactly the results that are ``reused``, and runs nothing that is not in
        ``runs``. If steps are ``missing``, it raises a `PipelineChangedError`. The resumption of a
        run that has passed runs nothing, unless the pipeline has steps that the run did not have.
        Of a run that is running, it says what a resumption would do if the run stopped now.

        Args:
            run_id: The run.
            inputs: Inputs as the resumption will be given them: secret ones, and new ones.
            rerun: Whether it is about a rerun of the run, with these inputs.
            from_: As `rerun` takes it.

        Raises:
            TypeError: An argument has the wrong type.
            ValueError: There is no journal; or the resumption, or the rerun, would be refused with
                this error.
            RunNotFoundError: The journal does not have the run.
            RunUnreadableError: It is damaged.
            PayloadError: A value can't be stored, or a stored one can't be read.
            JournalError: The journal fails.
        """
        _check_stored_id(run_id)
        if from_ is not None and not rerun:
            raise ValueError("from_ is an argument of a rerun; give rerun=True too")
        from_steps = self._checked_from_steps(from_) if rerun else None
        self = self._intercepted()
        request = self._request(None if rerun else run_id, inputs)
        is_refused = not request.allows_missing_steps
        request = request._replace(allows_missing_steps=True)
        journal = self._journal_of("preview()")
        from asyncflow._core.run_preview import preview_of_report, preview_of_start, with_missing
        from asyncflow._runtime.run_opening import preview_run  # as in _run

        start = await preview_run(journal, request, run_id, from_steps)
        if isinstance(start, RunReport):
            return preview_of_report(start)
        assert start.snapshot is not None  # a stored run has events
        reused = [event for event, _ in start.reused]
        state, now_s = self._state(start), request.clock()
        found = preview_of_start(
            run_id, self._plan, state, start.event, reused, start.snapshot, now_s
        )
        if isinstance(start.event, RunResumed) and start.event.missing_steps:
            refused = start.missing if is_refused else {}
            return with_missing(found, start.event.missing_steps, refused)
        return found

    async def report(self, run_id: str) -> RunReport:
        """Return the stored report of a run; of one that has not ended, what is known so far.

        Outputs and inputs have the types that the annotations of the pipeline say, as in the report
        that `run` returns. A value that no longer fits its annotation is plain data, as all values
        are in the report of the journal itself, which needs no pipeline.

        Args:
            run_id: The run.

        Raises:
            TypeError: The id is not a string.
            ValueError: There is no journal, or the run belongs to another pipeline.
            RunNotFoundError: The journal does not have the run.
            RunUnreadableError: It is damaged.
            PayloadError: A stored value can't be read: it is a pickle, and the journal reads none.
            JournalError: The journal fails.
        """
        _check_stored_id(run_id)
        journal, options, plans = self._journal_of("report()"), self._options, self._plans
        from asyncflow._runtime.run_opening import read_report  # as in _run

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
        journal = self._options.journal
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
            if name not in self._plan.index:
                hint = did_you_mean(name, self._plan.index)
                if name in self._plans.whole.index:
                    hint = "; the targets leave it out"
                raise ValueError(f"from_ names {name!r}, which is no step{hint}")
        return names

    def _request(self, run_id: str | None, inputs: Mapping[str, Any] | None) -> Request:
        """Return what a caller asks for, checked."""
        options = self._options
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
            plan=self._plan,
            types=self._plans.types,
            inputs=checked,
            secret_inputs=options.secret_inputs,
            fail_fast=options.fail_fast,
            parent="" if within is None else within[0],
            parent_step="" if within is None else within[1].step,
            # A nested run would end its step without an end of its own.
            known_steps=self._plans.whole.index,
            allows_missing_steps=options.allow_missing_steps,
            stays=options.on_wait == "stay" or within is not None or self._plan.keeps_waiting,
            clock=wall_clock(),
            label=options.label,
        )

    def _prepare_places(self) -> None:
        """Check that the steps can run where they are to run, before anything does."""
        prepare(self._plan, self._options.max_concurrency)
        if "engine" in self._plan.given:
            check_engines(self._plan.steps[index] for index in self._plan.having("engine"))

    def _check_secret_inputs(self) -> None:
        taken = parameters_of(self._plan.steps)
        for name in self._options.secret_inputs - taken:
            raise ValueError(
                f"secret_inputs names {name!r}, which no step takes{did_you_mean(name, taken)}"
            )

    def _check_resources(self) -> None:
        taken = parameters_of(self._plans.whole.steps)
        for name in self._options.resources:
            if name not in taken:
                raise ValueError(f"no step takes a resource {name!r}{did_you_mean(name, taken)}")

    def _check_takes(self, inputs: Mapping[str, Any]) -> None:
        taken = parameters_of(self._plans.whole.steps)
        for name in inputs:
            if name in self._options.resources:
                raise ValueError(
                    f"{name!r} is both an input and a resource; leave the input out, or rename one"
                )
            if name not in taken:
                hint = did_you_mean(name, taken)
                if name in OPTIONS:
                    hint = f"; options go to with_options({name}=...), or to run_pipeline()"
                elif name == "inputs":
                    hint = "; give each input by its name, as in run(url=...)"
                of = f" of pipeline {self.name!r}" if self.name else ""
                raise ValueError(f"no step{of} takes an input {name!r}{hint}")

    async def _execute(
        self,
        request: Request,
        start: RunStart,
        persistence: RunPersistence | None,
        link: RunLink | None = None,
    ) -> RunReport:
        """Execute a run that can start, and release it in its journal at its end."""
        options = self._options
        observers = options.observers if link is None else (*options.observers, link)
        try:
            watching: tuple[Observer, ...] = ()
            if observers:
                from asyncflow._policies.observers import for_run  # their check has loaded it

                watching = for_run(observers)
            # No variable may hold the run: what it raises holds this frame, and would hold itself.
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
        options = self._options
        return RunState(
            self._plan,
            fail_fast=options.fail_fast,
            schedule=options.schedule,
            max_concurrency=options.max_concurrency,
            deadline_ms=options.deadline_ms,
            random=_random,
            snapshot=start.snapshot,
        )


@suggests_arguments
async def run_pipeline(
    steps: Iterable[WorkflowStep],
    fail_fast: bool = True,
    *,
    schedule: Schedule = "tiers",
    max_concurrency: int | None = None,
    deadline_ms: float | None = None,
    targets: Iterable[str] | None = None,
    inputs: Mapping[str, Any] | None = None,
    run_id: str | None = None,
    label: str = "",
    observers: Iterable[AnyObserver] = (),
    name: str = "",
    journal: Journal | None = None,
    on_active: OnActive = "raise",
    on_wait: OnWait = "suspend",
    allow_missing_steps: bool = False,
    secret_inputs: Iterable[str] = (),
    engine: AnyEngine | None = None,
    resources: Mapping[str, OpenResource] = NO_RESOURCES,
) -> RunReport:
    """Check, plan and run a pipeline once, and return its report, even when steps failed.

    It raises what `Orchestrator` and `Orchestrator.run` raise. All checks are made before any
    action is called. `Orchestrator` says more about what it takes too.

    Args:
        steps: The steps, in any order.
        fail_fast: Whether the failure of a step stops the others (the default); otherwise only the
            steps that depend on it are skipped.
        schedule: ``"tiers"`` (the default) or ``"ready"``: when a step may start.
        max_concurrency: How many attempts may run at the same time; ``None`` means no limit.
        deadline_ms: How many milliseconds the run may take; ``None`` means no limit.
        targets: The steps to be run, with what they depend on; ``None`` means all.
        inputs: The inputs of the run, by name.
        run_id: Identifies the run; ``None`` makes a random id.
        label: What the run is about, such as ``"order 12345"``: lists of runs show it, and find
            the run by it. At most 200 characters.
        observers: What receives each event.
        name: What the pipeline is called in a journal.
        journal: Stores the run, so that it can be resumed; ``None`` stores nothing.
        on_active: What to do if the journal has an active run of that id: ``"raise"`` (the
            default), or ``"wait"`` until it has ended, and then resume it.
        on_wait: What to do with a journal while nothing is left but to wait for signals:
            ``"suspend"`` (the default) the run, or ``"stay"`` in this process.
        allow_missing_steps: Whether a stored run continues although these are not all steps that it
            would still run; the others are skipped by condition. By default that is a
            `PipelineChangedError`.
        secret_inputs: The inputs that must be neither stored nor shown.
        engine: Runs the actions elsewhere; ``None`` means this process.
        resources: What the run opens for its steps, by the names of parameters.
    """
    options = RunOptions.of(locals())
    return await Orchestrator._of(Plans(steps), options)._run(inputs)


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
