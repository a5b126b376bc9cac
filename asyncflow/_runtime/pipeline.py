"""A pipeline as decorated functions, whose dependencies type checkers check.

Rules:

1. Steps are declared where their functions are, and a function stays what it was.
2. A parameter's default names the step whose output it receives: `after`, `each`, `collect`.
3. A pipeline is planned again only when steps were added to it, or to one that it includes.
4. A pipeline with other options is the same pipeline: both have the same steps, also later ones.
"""

from __future__ import annotations

import inspect
from collections.abc import (
    AsyncIterable,
    Awaitable,
    Callable,
    Collection,
    Coroutine,
    Iterable,
    Iterator,
    Mapping,
)
from typing import (
    TYPE_CHECKING,
    Any,
    Never,
    ParamSpec,
    Protocol,
    TypeAlias,
    TypeVar,
    Unpack,
    overload,
)
from weakref import WeakValueDictionary

from asyncflow._core.arguments import Upstream, suggests_arguments
from asyncflow._core.pipeline.composition import (
    DeclaredStep,
    IncludedPipeline,
    check_policies,
    checked_dependencies,
    checked_step_options,
    identity_of,
    steps_of,
    with_defaults,
)
from asyncflow._core.pipeline.signal import Always, Description, Signal, take_instead
from asyncflow._core.pipeline.step import (
    CommonPolicies,
    Condition,
    EngineChoice,
    Fallback,
    OpenResource,
    RunsIn,
    StepPolicies,
    WorkflowStep,
)
from asyncflow._core.running.state import Schedule
from asyncflow._runtime.options import NO_RESOURCES, RunOptions
from asyncflow._runtime.orchestrator import Orchestrator
from asyncflow._runtime.planned_pipeline import Plans
from asyncflow._runtime.runnable import Runnable

if TYPE_CHECKING:
    from typing_extensions import TypeForm  # type checkers bring it; `typing` has it from 3.15 on

    from asyncflow._core.pipeline.step import AnyEngine
    from asyncflow._policies.durable import Journal
    from asyncflow._policies.observers import AnyObserver

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])
R = TypeVar("R")
P = ParamSpec("P")
T_co = TypeVar("T_co", covariant=True)

_NOTHING: Any = object()
"""Stands for a default that was not given, which could be ``None``."""
_Empty: TypeAlias = "list[Never] | dict[Never, Never] | set[Never] | tuple[()]"
"""What ``lambda error: []`` returns, which fits each list."""


class _WithFallback(Protocol[T_co]):
    """Makes a function a step whose output may be that of its fallback too.

    The function stays what it is. Its type has what the fallback returns, so that a type checker
    refuses it where a step that takes the output does not expect it.
    """

    @overload
    def __call__(self: _WithFallback[_Empty], function: F, /) -> F: ...
    @overload
    def __call__(
        self, function: Callable[P, Coroutine[Any, Any, R]], /
    ) -> Callable[P, Coroutine[Any, Any, R | T_co]]: ...
    @overload
    def __call__(
        self, function: Callable[P, Awaitable[R]], /
    ) -> Callable[P, Awaitable[R | T_co]]: ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> Callable[P, R | T_co]: ...


@overload
def after(step: Pipeline) -> Any: ...
@overload
def after(step: Callable[..., Awaitable[T]]) -> T: ...
@overload
def after(step: Callable[..., T]) -> T: ...
def after(step: Any) -> Any:
    """Make a parameter receive the output of another step.

    ``async def load(rows: list[Row] = after(extract))`` makes extract a dependency of load.

    Args:
        step: The function of the other step, or a `Pipeline` that is included in this one.

    Returns:
        A placeholder. Type checkers see what the function returns.

    Raises:
        TypeError: It is neither a function nor a pipeline.
    """
    return Upstream(_checked_source("after", step))


@overload
def each(step: Pipeline) -> Any: ...
@overload
def each(step: str) -> Any: ...
@overload
def each(step: list[T]) -> T: ...
@overload
def each(step: Callable[..., Awaitable[Iterable[T]]]) -> T: ...
@overload
def each(step: Callable[..., Awaitable[AsyncIterable[T]]]) -> T: ...
@overload
def each(step: Callable[..., Iterable[T]]) -> T: ...
@overload
def each(step: Callable[..., AsyncIterable[T]]) -> T: ...
def each(step: Any) -> Any:
    """Call an action once for each item that another step returns, or that an input has.

    ``async def fetch(url: str = each(list_urls))`` makes list_urls a dependency of fetch, and sets
    the ``map_over`` of that step. What its calls return is taken with `collect`, or again one by
    one: ``page: Page = each(collect(fetch))``. ``each("repos")`` takes the items of the input
    ``repos`` of the run, ``await pipeline.run(repos=[...])``.

    Args:
        step: The function of the other step, a `Pipeline` that is included in this one, the
            `collect` of a mapped step, or the name of a step or an input.

    Raises:
        TypeError: It is none of these.
    """
    if isinstance(step, Upstream) and step.is_mapped and not step.each:
        return Upstream(step.source, is_mapped=True, each=True)
    if isinstance(step, str):
        return Upstream(step, each=True)
    return Upstream(_checked_source("each", step), each=True)


@overload
def collect(step: Callable[..., Awaitable[T]]) -> list[T]: ...
@overload
def collect(step: Callable[..., T]) -> list[T]: ...
def collect(step: Any) -> Any:
    """Make a parameter receive all that a mapped step returns, as a list.

    ``async def index(pages: list[Page] = collect(fetch))`` makes fetch a dependency of index. Each
    call of fetch returned one page, and the list has the order of the items.

    Args:
        step: The function of a step that has a parameter with `each`.

    Raises:
        TypeError: It is not a function.
    """
    return Upstream(_checked_source("collect", step), is_mapped=True)


def _checked_source(word: str, step: object) -> object:
    if not callable(step) and not isinstance(step, Pipeline):
        way_out = "a name goes into @pipeline.step(depends_on=...)"
        if word == "each" and isinstance(step, Iterable):
            way_out = "values that the caller has are an input: each('urls'), and run(urls=...)"
        raise TypeError(
            f"{word}() takes the function of another step, not {type(step).__name__}; {way_out}"
        )
    return step


Dependency: TypeAlias = "str | Callable[..., Any] | Pipeline"
"""A step by its name or function, or an included pipeline."""


class _Declaration:
    """The steps of a pipeline; shared with the same pipeline with other options.

    ``name`` is what the pipeline was called when it was made. ``parts`` are its steps and the
    pipelines that it includes, by name, and ``functions`` has the name of the step of each
    function. ``step_options`` are the defaults of its own steps.
    """

    def __init__(self, name: str, step_options: StepPolicies) -> None:
        self.name = name
        self.step_options = step_options
        self.parts: dict[str, DeclaredStep | IncludedPipeline] = {}
        self.functions: dict[object, str] = {}
        self.included: list[_Declaration] = []
        self._built: tuple[int, tuple[WorkflowStep, ...]] = (0, ())
        self._planned: tuple[tuple[WorkflowStep, ...], Plans] | None = None

    def steps(self) -> tuple[WorkflowStep, ...]:
        if self._built[0] != self._size():
            # A build asks the included pipelines for their steps. From the inside out, those are
            # built already, so that no depth of nesting meets the limit of recursion.
            for declaration in self.inside_out():
                declaration._build()
        return self._built[1]

    def plans(self) -> Plans:
        steps, planned = self.steps(), self._planned
        if planned is None or planned[0] is not steps:
            planned = self._planned = steps, Plans(steps)
        return planned[1]

    def _build(self) -> None:
        size = self._size()  # parts are added, and never removed or changed
        if self._built[0] != size:
            self._built = size, steps_of(self.name, [*self.parts.values()])

    def _size(self) -> int:
        return sum(len(declaration.parts) for declaration in self.inside_out())

    def inside_out(self) -> list[_Declaration]:
        """Return this one and all within it, each once and after those that it includes."""
        found: dict[_Declaration, None] = {}
        stack = [self]
        while stack:
            missing = [inner for inner in [*stack[-1].included] if inner not in found]
            if missing:
                stack += missing
            else:
                found[stack.pop()] = None
        return [*found]

    def add(self, step: DeclaredStep) -> None:
        self.check_new(step.name)
        self._check_defaults(step)
        key = identity_of(step.function)
        self.parts[step.name] = step
        self.functions[key] = step.name
        _DECLARED_IN[key] = self

    def _check_defaults(self, step: DeclaredStep) -> None:
        """Refuse a default that is a step itself: the action would receive the function."""
        given: Collection[object] = step.depends_on
        if not isinstance(step.depends_on, dict):
            given = [e if isinstance(e, str) else self._name_of(e) for e in step.depends_on]
        for taker, parameter, default in step.left_defaults(given):
            other = _DECLARED_IN.get(identity_of(default))
            if (name := self._name_of(default)) is not None:
                way_out = self._ways_to_take(name, default, is_condition=taker != "action")
            elif other is not None:
                name = other.functions[identity_of(default)]
                way_out = f"include pipeline {other.name!r} and take its output with after()"
            elif isinstance(default, Pipeline):
                name, way_out = default.name, "include it and take its output with after()"
            else:
                continue
            what = "pipeline" if isinstance(default, Pipeline) else "step"
            raise ValueError(
                f"step {step.name!r}: the default of parameter {parameter!r} of its {taker} is "
                f"{what} {name!r}, and would be passed as it is; {way_out}"
            )

    def _name_of(self, source: object) -> str | None:
        """Return the name of the step or included pipeline for which an object stands here."""
        if not isinstance(source, Pipeline):
            return self.functions.get(identity_of(source))
        included = (part for part in self.parts.values() if isinstance(part, IncludedPipeline))
        return next((part.name for part in included if part.pipeline is source), None)

    def _ways_to_take(self, name: str, source: object, *, is_condition: bool) -> str:
        """Say how a parameter takes the output of a step or an included pipeline."""
        part, shown = self.parts[name], getattr(source, "__name__", name)
        is_mapped = isinstance(part, DeclaredStep) and part.is_mapped()
        whole = f"{'collect' if is_mapped else 'after'}({shown})"
        item = f"each({whole if is_mapped else shown})"
        return (
            f"write {whole} to take its output"
            + ("" if is_condition else f", {item} to take it item by item")
            + f", or depends_on=[{shown}] and name the parameter {name!r} without a default"
        )

    def check_new(self, name: str) -> None:
        if "/" in name:
            raise ValueError(
                f"name {name!r} in pipeline {self.name!r} has a '/', which stands between an "
                "included pipeline and its steps; give it another name=..."
            )
        if name in self.parts:
            raise ValueError(
                f"pipeline {self.name!r} has a step named {name!r} already; give this one "
                "another name=..."
            )


_DECLARED_IN: WeakValueDictionary[object, _Declaration] = WeakValueDictionary()
"""The pipeline of each function that is a step, by the function's identity: where one is a default
is a mistake, whatever pipeline it belongs to."""


@suggests_arguments
class Pipeline(Runnable):
    """Steps that are declared where their functions are: ``@pipeline.step``.

    A pipeline is an iterable of its `WorkflowStep` objects: whatever takes steps, such as
    `run_pipeline`, accepts it. It holds no state of any run: it can run many times, even
    concurrently. Steps can be added at any time; a run has those that were there when it began.

    Args:
        name: What it is called in a journal, and when another pipeline includes it; a non-empty
            string.
        step_options: Defaults for the arguments of `step`, such as
            ``{"max_retries": 3, "timeout_ms": 10_000}``. A step's own arguments win. The steps of
            an included pipeline have those of their own. A ``retry`` policy applies to the steps
            that have more than one attempt, ``slots``, ``tokens``, a ``priority`` and a
            ``pool_key`` to those with a pool, ``tolerated_failures`` and ``keep_outputs`` to mapped
            steps.
        fail_fast, schedule, max_concurrency, deadline_ms, observers, journal, secret_inputs,
            engine, resources: Each as `Orchestrator` takes it.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is out of its range.
    """

    def __init__(
        self,
        name: str,
        *,
        step_options: StepPolicies | None = None,
        fail_fast: bool = True,
        schedule: Schedule = "tiers",
        max_concurrency: int | None = None,
        deadline_ms: float | None = None,
        observers: Iterable[AnyObserver] = (),
        journal: Journal | None = None,
        secret_inputs: Iterable[str] = (),
        engine: AnyEngine | None = None,
        resources: Mapping[str, OpenResource] = NO_RESOURCES,
    ) -> None:
        _check_name(name)
        options = RunOptions.of(locals())
        self._declaration = _Declaration(name, checked_step_options(name, step_options))
        super().__init__(self._declaration.plans, options)

    def _use(self, options: RunOptions) -> None:
        _check_name(options.name)
        super()._use(options)
        self._made: tuple[Plans, Orchestrator] | None = None

    @overload
    def step(
        self,
        function: F,
        /,
        *,
        name: str | None = None,
        depends_on: Iterable[Dependency] | Mapping[str, Dependency] = (),
        map_over: Dependency | None = None,
        fallback: Fallback | None = None,
        runs_in: RunsIn = "loop",
        engine: EngineChoice = None,
        **policies: Unpack[CommonPolicies],
    ) -> F: ...
    @overload
    def step(
        self,
        function: None = None,
        /,
        *,
        name: str | None = None,
        depends_on: Iterable[Dependency] | Mapping[str, Dependency] = (),
        map_over: Dependency | None = None,
        fallback: None = None,
        runs_in: RunsIn = "loop",
        engine: EngineChoice = None,
        **policies: Unpack[CommonPolicies],
    ) -> Callable[[F], F]: ...
    @overload
    def step(
        self,
        function: None = None,
        /,
        *,
        name: str | None = None,
        depends_on: Iterable[Dependency] | Mapping[str, Dependency] = (),
        map_over: Dependency | None = None,
        fallback: Callable[[Exception], T],
        runs_in: RunsIn = "loop",
        engine: EngineChoice = None,
        **policies: Unpack[CommonPolicies],
    ) -> _WithFallback[T]: ...
    def step(
        self,
        function: F | None = None,
        /,
        *,
        name: str | None = None,
        depends_on: Iterable[Dependency] | Mapping[str, Dependency] = (),
        map_over: Dependency | None = None,
        **policies: Unpack[StepPolicies],
    ) -> Any:
        """Make a function a step: ``@pipeline.step``, or ``@pipeline.step(max_retries=3)``.

        Args:
            function: The action, which is returned unchanged. Its parameters that default to
                `after`, `each` or `collect` name its dependencies.
            name: The name of the step, without ``"/"``; by default that of the function.
            depends_on: More dependencies, as names, functions or included pipelines, or as a
                mapping of parameter to these. A mapping precedes a parameter's default.
            map_over: One of the dependencies, if it is not named by `each`, or an input.
            **policies: Whatever else `WorkflowStep` takes; by default what the pipeline's
                ``step_options`` say.

        Raises:
            TypeError: An argument has the wrong type.
            ValueError: An argument is out of its range, or the name or the function is already a
                step of this pipeline.
        """
        if function is None:
            return lambda function: self.step(
                function, name=name, depends_on=depends_on, map_over=map_over, **policies
            )
        name = _name_of(self.name, function) if name is None else name
        declaration = self._declaration
        declared = DeclaredStep(
            name, function, checked_dependencies(name, depends_on), map_over, policies
        )
        declared = with_defaults(declared, declaration.step_options)
        try:
            check_policies(name, function, declared.policies)
        except (TypeError, ValueError) as error:
            inherited = [argument for argument in declared.policies if argument not in policies]
            if inherited:
                error.add_note(
                    f"step_options of pipeline {self.name!r} give the step: {', '.join(inherited)}"
                )
            raise
        if identity_of(function) in declaration.functions:
            raise ValueError(
                f"the function of step {name!r} is in pipeline {self.name!r} already, as step "
                f"{declaration.functions[identity_of(function)]!r}; wrap it in another one to have "
                "it twice"
            )
        declaration.add(declared)
        return function

    @overload
    def signal(
        self,
        name: str,
        type: TypeForm[T],
        *,
        depends_on: Iterable[Dependency] | Mapping[str, Dependency] = (),
        when: Condition | None = None,
        deadline_ms: float | None = None,
        default: Any = ...,  # not T, which the type alone decides: a default "no" makes it a str
        fallback: Fallback | None = None,
        description: Description | None = None,
    ) -> Signal[T]: ...
    @overload  # what an older type checker takes for no type, as Literal["yes", "no"]
    def signal(
        self,
        name: str,
        type: Any,
        *,
        depends_on: Iterable[Dependency] | Mapping[str, Dependency] = (),
        when: Condition | None = None,
        deadline_ms: float | None = None,
        default: Any = ...,
        fallback: Fallback | None = None,
        description: Description | None = None,
    ) -> Signal[Any]: ...
    def signal(
        self,
        name: str,
        type: Any,  # noqa: A002  # the natural word; the builtin is not needed here
        *,
        depends_on: Iterable[Dependency] | Mapping[str, Dependency] = (),
        when: Condition | None = None,
        deadline_ms: float | None = None,
        default: Any = _NOTHING,
        fallback: Fallback | None = None,
        description: Description | None = None,
    ) -> Signal[Any]:
        """Declare a step without an action, which waits for a value that is sent to the run::

            approved = orders.signal("approved", bool, depends_on=[draft], deadline_ms=86_400_000)

            @orders.step
            async def publish(draft: str = after(draft), approved: bool = after(approved)): ...

        The sender calls ``await run.signal("approved", True)``, or, with the id of the run,
        the ``signal`` of the journal or of the service, or ``asyncflow signal``. The first value
        counts, even if it is sent before the step's turn. With a journal, a run that has nothing
        else to do returns with the status ``WAITING``: see the option ``on_wait``. A step that
        waits holds up no tier and no place of ``max_concurrency``.

        Args:
            name: The name of the step, without ``"/"``.
            type: The type of the value: ``bool``, a dataclass, ``Literal["yes", "no"]``. The signal
                takes instances of exactly this type and, if msgspec is installed, plain data that
                the JSON schema of the type takes, which becomes an instance.
            depends_on: What the signal answers, as in `step`. If one of these runs again after it
                had a result, what was sent is void, and the step waits again.
            when: A plain function, as in `step`: if it returns a false value, the step is skipped
                by condition, without waiting.
            deadline_ms: How many milliseconds the step may wait from its turn on, by the wall clock
                and across processes; ``None`` (the default) means no limit. Then it fails with a
                `StepTimeoutError`, unless there is a default or a fallback.
            default: The output if the deadline expires: what the signal itself would take.
            fallback: As in `step`: a function of the error that returns the output. If that is not
                what the signal would take, the step fails with a `TypeError`.
            description: What is asked: a text of at most 10,000 characters, or a plain function
                that returns it. Its parameters have the names of the steps that the signal depends
                on, or are marked with ``after``, or have the names of inputs of the run, but not
                of resources. It is called once, when the wait begins, and what it returns is stored
                with the wait and shown to people; of a longer text, the beginning. Secret inputs
                and outputs are replaced in it. If it raises, that is logged, and the step waits
                without a description. Another description makes no answer void.

        Returns:
            What ``after`` and ``depends_on`` take.

        Raises:
            TypeError: An argument has the wrong type, the default too, msgspec makes no schema of
                ``type``, or the description is an async function.
            ValueError: An argument is out of its range, the name is taken, or a default or a
                fallback has no deadline, or there are both.
        """
        _check_name(name, "a signal")
        signal: Signal[Any] = Signal(type, name, description=description)
        if default is not _NOTHING:
            if fallback is not None:
                raise ValueError(f"signal {name!r} has a default and a fallback; give one of them")
            fallback = Always(take_instead(signal, name, default, "default"))
        policies: StepPolicies = {"when": when, "deadline_ms": deadline_ms, "fallback": fallback}
        self._declare(
            DeclaredStep(name, signal, checked_dependencies(name, depends_on), None, policies)
        )
        return signal

    def _declare(self, declared: DeclaredStep) -> None:
        check_policies(declared.name, declared.function, declared.policies)
        self._declaration.add(declared)

    def include(
        self,
        pipeline: Pipeline,
        /,
        *,
        name: str | None = None,
        depends_on: Iterable[Dependency] | Mapping[str, Dependency] = (),
    ) -> None:
        """Make all steps of another pipeline, as ``name/step``, steps of this one.

        Its options (``fail_fast``, ``resources`` and so on) don't apply here. One more step,
        ``name`` itself, comes after its last ones. Its output is that of the last one, or a
        dictionary of their outputs by their names if there are several.

        Args:
            pipeline: The other pipeline. Steps that are added to it later are included too.
            name: What it is called here, without ``"/"``; by default its own name.
            depends_on: The dependencies of its steps. A parameter of any of them that nothing in
                that pipeline provides, and that has the name of one of these or is mapped to one,
                receives its output.

        Raises:
            TypeError: An argument has the wrong type.
            ValueError: The name is taken, or a pipeline would include itself.
        """
        if not isinstance(pipeline, Pipeline):
            raise TypeError(f"include() takes a Pipeline, not {type(pipeline).__name__}")
        name = pipeline.name if name is None else name
        _check_name(name)
        declaration = self._declaration
        declaration.check_new(name)
        if declaration in pipeline._declaration.inside_out():
            raise ValueError(
                f"pipeline {self.name!r} cannot include {pipeline.name!r}, because it would "
                "include itself"
            )
        part = IncludedPipeline(name, pipeline, checked_dependencies(name, depends_on))
        declaration.parts[name] = part
        declaration.included.append(pipeline._declaration)

    @property
    def steps(self) -> list[WorkflowStep]:
        """Its steps, in the order in which they were declared.

        Raises:
            ValueError: A dependency is no step of this pipeline, or a parameter takes an output in
                the wrong way (`after`, `each`, `collect`).
            TypeError: A step with ``runs_in="process"`` can't be sent to one.
        """
        return list(self._declaration.steps())

    def __iter__(self) -> Iterator[WorkflowStep]:
        return iter(self._declaration.steps())

    def __repr__(self) -> str:
        return f"Pipeline({self.name!r})"

    def _repr_svg_(self) -> str | None:
        """Return the picture that a notebook shows; none while the steps don't fit together."""
        try:
            return self.orchestrator._repr_svg_()
        except (TypeError, ValueError):
            return None

    @property
    def orchestrator(self) -> Orchestrator:
        """The pipeline as it stands, planned, with its options.

        `run_pipeline` and `Orchestrator` take a pipeline too, but only its steps.

        Raises:
            ValueError, TypeError, CyclicDependencyError: As `steps` and `Orchestrator` raise
                them.
        """
        plans, made = self._declaration.plans(), self._made
        if made is None or made[0] is not plans:
            made = self._made = plans, Orchestrator._of(plans, self._options)
        return made[1]


def _check_name(name: object, whose: str = "a pipeline") -> None:
    if not isinstance(name, str):
        instead = "; to run a list of steps, call run_pipeline(steps)"
        raise TypeError(
            f"{whose}'s name must be a str, not {type(name).__name__}"
            + (instead if isinstance(name, Iterable) else "")
        )
    if not name:
        raise ValueError(f"{whose}'s name must not be empty")


def _name_of(pipeline: str, function: object) -> str:
    if not callable(function) and not inspect.iscoroutine(function):
        instead = "give options by keyword: step(name=...)"
        if isinstance(function, Pipeline):
            instead = "to have all its steps, call include() with it"
        raise TypeError(
            f"the step of pipeline {pipeline!r} must be a function, not "
            f"{type(function).__name__}; {instead}"
        )
    name = getattr(function, "__name__", None)
    if not isinstance(name, str) or not name.isidentifier():  # that of a lambda is none
        raise ValueError(
            f"a step of pipeline {pipeline!r} has no name of its own, being a "
            f"{name or type(function).__name__}; give it one: step(..., name=...)"
        )
    return name


for _public in (Pipeline, after, collect, each):
    _public.__module__ = "asyncflow"  # where users know them from
