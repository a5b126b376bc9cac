"""A pipeline that is checked and planned once and run any number of times."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Self

from asyncflow._core.arguments import suggests_arguments
from asyncflow._core.history.report import RunReport
from asyncflow._core.pipeline.step import OpenResource, WorkflowStep
from asyncflow._core.running.state import Schedule
from asyncflow._runtime.options import (
    NO_ATTRIBUTES,
    NO_RESOURCES,
    OnActive,
    OnWait,
    RunOptions,
)
from asyncflow._runtime.planned_pipeline import PlannedPipeline, Plans
from asyncflow._runtime.runnable import Runnable

if TYPE_CHECKING:
    from asyncflow._core.arguments import AttributeValue
    from asyncflow._core.pipeline.step import AnyEngine
    from asyncflow._policies.durable import Journal
    from asyncflow._policies.observers import AnyObserver


@suggests_arguments
class Orchestrator(Runnable):
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
        plans = Plans(steps)
        super().__init__(lambda: plans, options)

    @classmethod
    def _of(cls, plans: Plans, options: RunOptions) -> Self:
        """Return one with steps that are planned already."""
        made = cls.__new__(cls)
        Runnable.__init__(made, lambda: plans, options)
        return made

    def _use(self, options: RunOptions) -> None:
        super()._use(options)
        self._plan = self._planned().plan  # at once: the targets may be wrong

    @property
    def steps(self) -> list[WorkflowStep]:
        """The steps that will be run, in the order of their declaration."""
        return list(self._plan.steps)

    @property
    def dependencies(self) -> dict[str, tuple[str, ...]]:
        """For each step, in topological order, the names of the steps that it depends on.

        A clean-up step that names none depends on all steps that it looks at.
        """
        return dict(self._plan.depends_on)

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
        from asyncflow._core.analysis.diagram import to_mermaid  # few programs draw one

        return to_mermaid(self._plan.depends_on)


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
    attributes: Mapping[str, AttributeValue] = NO_ATTRIBUTES,
    key: str | None = None,
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
        attributes: What programs find the run by, such as ``{"tenant": "acme"}``; see
            `Orchestrator.with_options`.
        key: What no two runs of the pipeline that have started and not ended may have in common,
            such as ``"customer 17"``; ``None`` for nothing.
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
    return await PlannedPipeline(Plans(steps), options).run(inputs)
