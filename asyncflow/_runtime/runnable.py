"""What a `Pipeline` and an `Orchestrator` have in common: options, and runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from copy import copy
from typing import TYPE_CHECKING, Any, Self, Unpack

from asyncflow._core.arguments import method_suggests_arguments, takes_by_name
from asyncflow._core.history.report import RunReport
from asyncflow._core.pipeline.step import OpenResource
from asyncflow._runtime.planned_pipeline import PlannedPipeline, Plans

if TYPE_CHECKING:
    from asyncflow._core.analysis.preview import RunPreview
    from asyncflow._core.arguments import AttributeValue
    from asyncflow._policies.observers import AnyObserver
    from asyncflow._runtime.handle import RunHandle
    from asyncflow._runtime.options import OnConflict, Options, RunOptions


class Runnable:
    """Steps that can run, with options: the base of `Pipeline` and `Orchestrator`.

    ``plans`` returns the plans of the steps as they stand: for an orchestrator always the same, for
    a pipeline other ones when steps were added. It raises what `Orchestrator` raises.
    """

    def __init__(self, plans: Callable[[], Plans], options: RunOptions) -> None:
        self._plans = plans
        self._use(options)

    def _use(self, options: RunOptions) -> None:
        """Take these options, instead of any others."""
        self._options = options
        self._latest: PlannedPipeline | None = None

    def _planned(self) -> PlannedPipeline:
        """Return the steps as they stand, planned, with the options."""
        plans, latest = self._plans(), self._latest
        if latest is None or latest.plans is not plans:
            latest = self._latest = PlannedPipeline(plans, self._options)
        return latest

    @property
    def name(self) -> str:
        """What the pipeline is called in a journal, and when another one includes it."""
        return self._options.name

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

    @takes_by_name("options", "run_id=...")
    def with_options(self, **options: Unpack[Options]) -> Self:
        """Return the same pipeline with other values for these options.

        Both have the same steps; those of a `Pipeline` even share what is added later to either of
        them. It is cheap, since nothing is planned again unless the targets, the engine or the
        resources change. So each run may have one of its own:
        ``await pipeline.with_options(run_id="monday").run(url=...)``.

        Args:
            **options: Whatever `Orchestrator` takes besides the steps, and what a run takes:

                ``run_id`` identifies the run, as a string; ``None``, the default, makes a random
                id for each run.

                ``label`` says what the run is about, such as ``"order 12345"``. Lists of runs show
                it, and find the run by it. It has at most 200 characters. A run that is resumed
                keeps the label it has.

                ``attributes`` are what programs find the run by, such as ``{"tenant": "acme"}``:
                up to 16 names (ASCII letters, digits, ``_``, ``.``, ``-``; at most 64), each with a
                string of at most 200 characters, an int of 64 bits, a finite float or a bool.
                They are stored and shown in plain text, so keep secrets out of them. A run that is
                resumed keeps those it has; a nested run has none of its parent's.

                ``key`` is a string of at most 200 characters, such as ``"customer 17"``: at most
                one run of the pipeline that has started and not ended has it, in the whole journal.
                Whatever starts or continues another one raises a `RunAlreadyActiveError`, whatever
                ``on_active`` says. A run that waits for a signal has not ended, nor has one that
                was drained or has lost its process, unless it was asked to stop. A run that is
                resumed keeps the key it has. ``None``, the default, is no key.

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
                ``observers=[*pipeline.observers, mine]``. ``targets=None`` brings back what the
                targets of this one leave out. The targets of a `Pipeline`, to which steps may be
                added, are checked when it runs.

        Raises:
            TypeError: One of them is no such option, or has the wrong type.
            ValueError: One of them is out of its range, or ``run_id`` is empty.
        """
        other = copy(self)
        other._use(self._options.with_changes(options))
        return other

    @takes_by_name("inputs", "url=...")
    async def run(self, /, **inputs: Any) -> RunReport:
        """Run the pipeline and return its report, even when steps failed.

        With a journal, a run of its ``run_id`` that has not passed is resumed: its completed steps
        are not run again while their results are valid. The stored report of one that has passed is
        returned, its steps ``reused``, unless this pipeline has steps that the run did not have.

        Args:
            **inputs: Values for the parameters of actions, by parameter name. A resumed run has
                those that it was started with.

        Raises:
            ValueError, TypeError, CyclicDependencyError: The steps of a `Pipeline` don't fit
                together, as `Pipeline.steps` and `Orchestrator` raise it. Nothing has run.
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
            RunAlreadyActiveError: A run of that id is active, or another run has the key. Nothing
                has run.
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
        return await self._planned().run(inputs)

    @takes_by_name("inputs", "url=...")
    def start(self, /, **inputs: Any) -> RunHandle:
        """Return a handle of a run, which starts when it is entered.

        ``async with pipeline.start(url=...) as run`` runs the pipeline during the block, and ends
        it with the block. The run has the id of the options, or a random one.

        Args:
            **inputs: As `run` takes them. They are checked when it starts.

        Raises:
            ValueError, TypeError, CyclicDependencyError: As in `run`, of steps that don't fit
                together.
        """
        return self._planned().start(inputs)

    @method_suggests_arguments
    async def enqueue(
        self,
        inputs: Mapping[str, Any] | None = None,
        *,
        run_id: str | None = None,
        key: str | None = None,
        on_conflict: OnConflict = "wait",
        delay_ms: float = 0,
        label: str | None = None,
        attributes: Mapping[str, AttributeValue] | None = None,
    ) -> str:
        """Store a run that waits to start, and return its id when that is stored.

        A `asyncflow.service.Service` on the journal that has the pipeline, in any process, starts
        it when it is due and there is a place for it, in the order in which runs became due.
        ``run`` with its ``run_id`` starts it at once, and ``journal.cancel`` ends it. Until it has
        started its status is ``WAITING``, and `asyncflow.journal.RunRecord.waits_for` says for
        what. It runs with the options of the pipeline that starts it, which must have all steps
        that this one has now.

        The same id again, with the same pipeline and inputs, stores nothing, whatever became of the
        run. So a call that may be repeated is made once with an id that is the same then; in a
        step, ``run_id=f"{current_step().idempotency_key}/reminder"``.

        Args:
            inputs: The inputs of the run, by name.
            run_id: Identifies the run; by default the option of the pipeline, else a random id.
            key: Of the runs of the pipeline with this key, such as ``"customer 17"``, one runs at a
                time, and the others wait; see `with_options`. By default the option of the
                pipeline.
            on_conflict: What to do if there is a run of the key that has not ended: ``"wait"`` (the
                default) behind those that are due before; ``"raise"`` a `RunAlreadyActiveError`;
                ``"return"`` the id of the one that waits, or else of the one that has started,
                whatever its inputs; or ``"replace"`` them: those that wait are dropped, and the one
                that has started is cancelled when this one is due, and awaited through its
                clean-up. Both end as ``INTERRUPTED``, with the cause ``"replaced"``, and no service
                resumes them. One that is not due counts as any other.
            delay_ms: In how many milliseconds the run is due, at least 0 (the default) and at most
                100 years. One that is not due holds up no other run. With ``"replace"`` this is a
                debounce: of calls that come sooner after each other than that, the last one runs.
            label: What the run is about; by default the option of the pipeline.
            attributes: What programs find the run by; by default the option of the pipeline.

        Returns:
            The id of the run; with ``"return"``, it may be that of another one.

        Raises:
            RuntimeError: The pipeline has no journal.
            TypeError: An argument has the wrong type, or the journal can't store such runs.
            ValueError: An argument is out of range; the pipeline has no name; an input is secret,
                so that it would not be stored; or the inputs are wrong as in `run`.
            RunIdInUseError: A ``ValueError``: a run of this id has other inputs, or another
                pipeline.
            RunAlreadyActiveError: With ``"raise"``, there is a run of the key; or another call is
                about to start a run of this id.
            PayloadError: The journal can't store an input.
            JournalError: The journal fails.
        """
        given: Options = {}
        if run_id is not None:
            given["run_id"] = run_id
        if key is not None:
            given["key"] = key
        if label is not None:
            given["label"] = label
        if attributes is not None:
            given["attributes"] = attributes
        chosen = self.with_options(**given) if given else self
        return await chosen._planned().enqueue(inputs, on_conflict, delay_ms)

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
        return await self._planned().rerun(run_id, new_id, inputs, from_)

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
        return await self._planned().preview(run_id, inputs, rerun, from_)

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
        return await self._planned().report(run_id)
