"""A pipeline of decorated functions equals the pipeline of the plain steps that they stand for."""

from __future__ import annotations

import functools
import gc
import inspect
import re
import sys
import typing
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from memory_journal import MemoryJournal

from asyncflow import (
    Orchestrator,
    Pipeline,
    Pool,
    Retry,
    StepStatus,
    WorkflowStep,
    after,
    collect,
    each,
    run_pipeline,
)
from asyncflow._core.pipeline.step import StepPolicies
from asyncflow._core.record import replace
from asyncflow._runtime.options import OPTIONS, Options, RunOptions
from asyncflow.events import RunStarted

OF_A_RUN = {
    *("run_id", "label", "attributes", "key"),
    *("on_active", "on_wait", "allow_missing_steps", "event_buffer"),
}
"""The options that only `with_options` takes."""


async def extract(url: str) -> list[int]:
    return [1, 2, len(url)]


async def load(rows: list[int] = after(extract)) -> int:
    return sum(rows)


async def list_urls() -> list[str]:
    return ["a", "b"]


async def fetch(url: str = each(list_urls)) -> bytes:
    return url.encode()


async def index(pages: list[bytes] = collect(fetch)) -> int:
    return len(pages)


async def nothing() -> None:
    pass


def work() -> None:
    pass


def pipeline_of(*functions: Any, name: str = "etl", **options: Any) -> Pipeline:
    pipeline = Pipeline(name, **options)
    for function in functions:
        pipeline.step(function)
    return pipeline


def edges(steps: Any) -> dict[str, tuple[tuple[str, ...], tuple[tuple[str, str], ...]]]:
    return {step.name: (step.depends_on, step.parameters) for step in steps}


@contextmanager
def calls_at_most(depth: int) -> Iterator[None]:
    """Let calls be nested no deeper than this from here on."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack(0)) + depth)
    try:
        yield
    finally:
        sys.setrecursionlimit(limit)


def refused(text: str, kind: type[Exception] = ValueError) -> Any:
    return pytest.raises(kind, match=re.escape(text))


class TestSteps:
    """Decorated functions become plain steps."""

    def test_a_default_declares_the_edge_and_its_parameter(self) -> None:
        steps = pipeline_of(extract, load).steps

        assert steps == [
            WorkflowStep("extract", extract),
            WorkflowStep("load", load, {"rows": "extract"}),
        ]

    def test_the_decorator_returns_the_function_unchanged(self) -> None:
        etl = Pipeline("etl")

        assert etl.step(extract) is extract
        assert etl.step(max_retries=3)(load) is load
        assert etl.step(nothing, name="other", timeout_ms=None) is nothing

    @pytest.mark.parametrize(
        ("marker", "spelling"),
        [
            (after(extract), "after(extract)"),
            (each(extract), "each(extract)"),
            (collect(extract), "collect(extract)"),
            (each(collect(extract)), "each(collect(extract))"),
            (after(Pipeline("inner")), "after(Pipeline('inner'))"),
        ],
    )
    def test_the_repr_of_a_marker_says_that_only_a_run_fills_it_in(
        self, marker: Any, spelling: str
    ) -> None:
        assert repr(marker) == (
            f"<{spelling}: only a run fills it in; to call the function yourself, pass a value>"
        )

    async def test_a_plain_step_does_not_resolve_a_marker(self) -> None:
        with refused("nothing provides parameter 'rows' of step 'load'"):
            await run_pipeline([WorkflowStep("load", load)])

    def test_a_positional_only_parameter_cannot_have_a_marker(self) -> None:
        async def broken(rows: list[int] = after(extract), /) -> None: ...

        with refused("'rows' of its action is positional-only", TypeError):
            Pipeline("etl").step(broken)

    def test_each_policy_is_passed_on(self) -> None:
        etl = Pipeline("etl")
        policies: StepPolicies = {
            "max_retries": 3,
            "timeout_ms": 5,
            "retry": Retry(base_ms=7),
            "deadline_ms": 100,
            "heartbeat_ms": 9,
            "pool": Pool(2, tokens_per_minute=60),
            "slots": 2,
            "tokens": 3.5,
            "priority": 1,
            "pool_key": "acme",
            "when": lambda: True,
            "run_if": "always",
            "runs_in": "thread",
            "engine": "local",
            "version": "2",
            "cache_ms": None,
            "secret": True,
            "max_crashes": 1,
            "tolerated_failures": 0,
            "keep_outputs": True,
            "fallback": repr,
        }

        etl.step(bool, name="step", **policies)

        assert policies.keys() == StepPolicies.__annotations__.keys()
        assert etl.steps == [WorkflowStep("step", bool, **policies)]

    def test_the_decorator_takes_the_policies_of_a_step_with_the_same_types(self) -> None:
        parameters = dict(list(inspect.signature(WorkflowStep).parameters.items())[3:])
        step = inspect.signature(Pipeline.step).parameters
        hints = typing.get_type_hints(WorkflowStep.__init__, None, {"Pool": Pool})

        expected = {name: hints[name] for name in parameters if name not in {*step, "parameters"}}
        assert typing.get_type_hints(StepPolicies, None, {"Pool": Pool}) == expected

    def test_steps_are_made_once_until_one_is_added(self) -> None:
        etl = pipeline_of(extract)

        before = etl.steps
        again = etl.steps
        etl.step(load)

        assert before[0] is again[0]
        assert before is not again
        assert [step.name for step in etl.steps] == ["extract", "load"]

    async def test_inputs_can_have_the_names_of_our_own_parameters(self) -> None:
        etl = Pipeline("etl")
        names = ["self", "run_id", "inputs", "name", "observers"]

        @etl.step
        async def take(**given: object) -> object:
            return given

        @etl.step(name="named")
        async def named(self: int, run_id: int, inputs: int, name: int, observers: int) -> int:
            return self + run_id + inputs + name + observers

        report = await etl.run(**dict.fromkeys(names, 2))

        assert report["named"].output == 10

    async def test_it_takes_the_options_of_an_orchestrator(self) -> None:
        events: list[Any] = []

        async def fail() -> None:
            raise ValueError("broken")

        etl = pipeline_of(
            fail,
            fail_fast=False,
            schedule="ready",
            max_concurrency=1,
            observers=iter([events.append]),
        )
        etl.step(nothing)
        first = await etl.run()
        etl.step(extract)
        second = await etl.run(url="")

        assert first["nothing"].status is second["extract"].status is StepStatus.SUCCESS
        assert [type(event) for event in events].count(RunStarted) == 2

    @pytest.mark.parametrize(
        ("options", "text"),
        [
            ({"fail_fast": 1}, "fail_fast must be"),
            ({"schedule": "fast"}, "schedule must be"),
            ({"max_concurrency": 0}, "max_concurrency must be"),
            ({"observers": print}, "observers must be a list"),
            ({"name": 3}, "a pipeline's name must be a str, not int"),
            ({"name": ""}, "a pipeline's name must not be empty"),
        ],
    )
    def test_its_options_are_checked_when_it_is_made(
        self, options: dict[str, Any], text: str
    ) -> None:
        with pytest.raises((TypeError, ValueError), match=text):
            Pipeline(**{"name": "etl"} | options)


class TestRuns:
    async def test_a_parameter_of_a_condition_alone_is_an_input_too(self) -> None:
        etl = Pipeline("etl")
        etl.step(when=lambda go: go)(nothing)

        assert (await etl.run(go=False))["nothing"].by_condition

    async def test_its_orchestrator_has_its_options_and_takes_the_options_of_a_run(self) -> None:
        events: list[object] = []
        etl = Pipeline("etl", observers=[events.append])
        etl.step(extract)

        report = await etl.orchestrator.with_options(run_id="monday").run(url="")

        assert report.run_id == "monday"
        assert events
        assert etl.orchestrator.tiers == [["extract"]]
        assert etl.orchestrator is etl.orchestrator


class TestOptions:
    """A pipeline with other options is the same pipeline."""

    def test_nothing_is_planned_again_unless_steps_or_targets_change(self) -> None:
        etl = pipeline_of(extract, load)

        runs = [etl.with_options(run_id=str(number)).orchestrator for number in range(3)]
        some = etl.with_options(targets=["extract"])
        parts = [some.with_options(run_id=str(number)).orchestrator for number in range(3)]

        assert len({id(each._plan) for each in [etl.orchestrator, *runs]}) == 1
        assert len({id(each._plan) for each in [some.orchestrator, *parts]}) == 1
        assert parts[0].tiers == [["extract"]]
        etl.step(nothing)
        assert etl.orchestrator.tiers == [["extract", "nothing"], ["load"]]

    def test_wrong_options_are_refused_at_once(self) -> None:
        etl = Pipeline("etl")

        with refused("got an unknown option 'run_di' (did you mean 'run_id'?)", TypeError):
            etl.with_options(run_di="monday")  # type: ignore[call-arg]
        with refused("inputs, which are no option: give each by its name", TypeError):
            etl.with_options(inputs={})  # type: ignore[call-arg]
        with refused("option 'timeout_ms' (did you mean 'timeout_ms' of WorkflowStep?)", TypeError):
            etl.with_options(timeout_ms=1)  # type: ignore[call-arg]
        with refused("run_id must be a str, not int", TypeError):
            etl.with_options(run_id=1)  # type: ignore[arg-type]
        with refused("run_id must not be empty"):
            etl.with_options(run_id="")
        with refused("on_active must be 'raise' or 'wait', not 'skip'"):
            etl.with_options(on_active="skip")  # type: ignore[arg-type]
        with refused("a pipeline's name must not be empty"):
            etl.with_options(name="")

    @pytest.mark.parametrize(
        ("public", "left_out"),
        [
            (Pipeline, {"targets", *OF_A_RUN}),
            (Orchestrator, OF_A_RUN),
            (run_pipeline, {"event_buffer"}),
        ],
    )
    def test_a_signature_takes_the_options_with_their_types_and_defaults(
        self, public: Any, left_out: set[str]
    ) -> None:
        parameters = inspect.signature(public).parameters
        taken = {name: parameters[name] for name in parameters.keys() & OPTIONS}

        assert OPTIONS - taken.keys() == left_out
        assert {name: each.annotation for name, each in taken.items()} == {
            name: Options.__annotations__[name].__forward_arg__ for name in taken
        }
        defaults = {
            name: each.default for name, each in taken.items() if each.default is not each.empty
        }
        assert RunOptions.of(defaults) == RunOptions()

    def test_a_run_that_is_given_no_option_makes_and_checks_none(self) -> None:
        parameters = inspect.signature(run_pipeline).parameters.items()
        arguments = {name: parameter.default for name, parameter in parameters}

        assert RunOptions.of(arguments) is RunOptions.of({})
        assert RunOptions.of(arguments | {"label": "x"}) == replace(RunOptions(), label="x")

    async def test_a_rerun_has_the_id_and_the_observers_of_the_options(self) -> None:
        seen: list[object] = []
        etl = pipeline_of(nothing).with_options(journal=MemoryJournal())
        await etl.with_options(run_id="r").run()
        other = etl.with_options(run_id="f", observers=[seen.append])

        assert (await other.rerun("r")).run_id == "f"
        assert (await other.rerun("r", "g")).run_id == "g"
        assert seen
        with refused("a rerun of run 'f' needs another id"):
            await other.rerun("f")


class TestStepPolicies:
    """Defaults that a pipeline has for its steps."""

    def test_they_are_the_defaults_of_its_steps_and_what_a_step_says_itself_wins(self) -> None:
        etl = Pipeline("etl", step_options={"max_retries": 3, "timeout_ms": 500})
        etl.step(extract)
        etl.step(timeout_ms=None)(load)

        assert etl.steps == [
            WorkflowStep("extract", extract, max_retries=3, timeout_ms=500),
            WorkflowStep("load", load, {"rows": "extract"}, max_retries=3, timeout_ms=None),
        ]

    def test_an_included_pipeline_keeps_its_own(self) -> None:
        inner = pipeline_of(extract, name="inner", step_options={"max_retries": 2})
        outer = Pipeline("outer", step_options={"max_retries": 5, "secret": True})
        outer.include(inner)
        outer.step(nothing)

        shown = {step.name: (step.max_retries, step.secret) for step in outer.steps}
        assert shown == {
            "inner/extract": (2, False),
            "inner": (1, False),
            "nothing": (5, True),
        }

    def test_the_pipeline_with_other_options_has_the_same(self) -> None:
        etl = Pipeline("etl", step_options={"max_retries": 3})
        etl.with_options(fail_fast=False).step(extract)

        assert etl.steps[0].max_retries == 3

    def test_a_retry_policy_applies_to_the_steps_that_have_several_attempts(self) -> None:
        policy = Retry(base_ms=10)
        etl = Pipeline("etl", step_options={"retry": policy, "max_retries": 2})
        etl.step(extract)
        etl.step(max_retries=1)(load)

        assert [step.retry == policy for step in etl.steps] == [True, False]
        with refused("step 'nothing': retry has no effect, since max_retries is 1"):
            etl.step(max_retries=1, retry=100)(nothing)

    def test_what_needs_something_else_applies_to_the_steps_that_have_it(self) -> None:
        pool = Pool(1)
        options: StepPolicies = {"tolerated_failures": 2, "keep_outputs": False}
        etl = Pipeline("etl", step_options={**options, "pool": pool, "priority": 1})
        etl.step(list_urls)
        etl.step(pool=None)(fetch)

        assert etl.steps == [
            WorkflowStep("list_urls", list_urls, pool=pool, priority=1),
            WorkflowStep("fetch", fetch, {"url": "list_urls"}, map_over="list_urls", **options),
        ]

    @pytest.mark.parametrize(
        ("options", "kind", "text"),
        [
            (
                {"max_retires": 3},
                TypeError,
                "pipeline 'etl': step_options got an unknown argument 'max_retires' (did you mean "
                "'max_retries'?)",
            ),
            (
                {"timeout": 3},
                TypeError,
                "pipeline 'etl': step_options got an unknown argument 'timeout' (did you mean "
                "'timeout_ms'?)",
            ),
            (
                {"name": "load"},
                TypeError,
                "pipeline 'etl': step_options got 'name', which is no default: give it to a "
                "single step",
            ),
            (
                [("max_retries", 3)],
                TypeError,
                "pipeline 'etl': step_options must be a mapping of arguments of @pipeline.step to "
                "their defaults, not list",
            ),
        ],
    )
    def test_misspelt_ones_are_refused_with_the_nearest_name(
        self, options: Any, kind: type[Exception], text: str
    ) -> None:
        with refused(text, kind):
            Pipeline("etl", step_options=options)

    def test_an_error_of_a_step_says_what_the_pipeline_gave_it(self) -> None:
        etl = Pipeline("etl", step_options={"timeout_ms": 0, "max_retries": 2})

        with refused("step 'extract': timeout_ms must be finite and above 0") as caught:
            etl.step(max_retries=3)(extract)

        note = "step_options of pipeline 'etl' give the step: timeout_ms"
        assert caught.value.__notes__ == [note]


class TestNames:
    """A step has the name of its function unless it is given another."""

    @pytest.mark.parametrize(
        ("function", "kind"),
        [(lambda: nothing(), "<lambda>"), (functools.partial(nothing), "partial")],
    )
    def test_a_callable_without_a_name_must_be_given_one(self, function: Any, kind: str) -> None:
        etl = Pipeline("etl")

        with refused(f"has no name of its own, being a {kind}; give it one: step(..., name=...)"):
            etl.step(function)
        etl.step(function, name="it")

        assert etl.steps == [WorkflowStep("it", function)]

    def test_methods_and_callables_that_cannot_be_hashed_are_found_again(self) -> None:
        class Client:
            __hash__ = None  # type: ignore[assignment]

            async def get(self) -> int:
                return 1

            async def __call__(self, got: int) -> None: ...

        a, b = Client(), Client()
        etl = Pipeline("etl")
        etl.step(a.get)
        etl.step(b.get, name="other")
        etl.step(a, name="call", depends_on={"got": b.get})
        etl.step(nothing, depends_on=[a, a.get])

        assert edges(etl)["call"] == (("other",), (("got", "other"),))
        assert edges(etl)["nothing"] == (("call", "get"), ())

    def test_a_function_is_one_step_of_a_pipeline(self) -> None:
        etl = pipeline_of(extract)

        with refused(
            "the function of step 'again' is in pipeline 'etl' already, as step 'extract'"
        ):
            etl.step(extract, name="again")

    def test_a_slash_is_for_included_pipelines(self) -> None:
        etl = Pipeline("etl")

        with refused("name 'a/b' in pipeline 'etl' has a '/'"):
            etl.step(extract, name="a/b")
        with refused("name 'team/etl' in pipeline 'etl' has a '/'"):
            etl.include(pipeline_of(extract, name="team/etl"))

    @pytest.mark.parametrize(
        ("arguments", "text"),
        [
            (("extract",), "must be a function, not str; give options by keyword"),
            ((Pipeline("in"),), "pipeline 'etl' must be a function, not Pipeline; to have all"),
            ((extract, {"max_retries": 0}), "step 'extract': max_retries must be at least 1"),
            ((extract, {"no_such": 0}), "no_such"),
            ((extract, {"name": 3}), "a step's name must be a str, not int"),
            ((extract, {"depends_on": "a"}), "step 'extract': depends_on must be a list"),
            ((extract, {"depends_on": load}), "step 'extract': depends_on must be a list"),
            ((extract, {"depends_on": {1: load}}), "depends_on must map names of parameters"),
        ],
    )
    def test_the_decorator_refuses_invalid_arguments(self, arguments: Any, text: str) -> None:
        function, *options = arguments

        with pytest.raises((TypeError, ValueError), match=text):
            Pipeline("etl").step(function, **(options[0] if options else {}))

    def test_a_coroutine_instead_of_a_function_is_refused(self) -> None:
        with refused("pass the function itself", TypeError):
            Pipeline("etl").step(nothing())  # type: ignore[arg-type]

    def test_a_step_in_a_process_must_be_importable_from_its_module(self) -> None:
        etl = Pipeline("etl")

        @etl.step(runs_in="process")
        def local() -> None: ...

        etl.step(nothing)
        with refused("step 'local': its action cannot be sent to another process", TypeError):
            etl.steps  # noqa: B018
        assert Pipeline("etl").step(runs_in="process")(work) is work


class TestEdges:
    """A step can depend on functions, names and included pipelines."""

    def test_order_can_be_declared_by_function_and_name_mixed(self) -> None:
        etl = pipeline_of(extract, list_urls)
        etl.step(depends_on=[extract, "list_urls"])(nothing)

        assert edges(etl)["nothing"] == (("extract", "list_urls"), ())

    def test_defaults_are_seen_through_wrappers_and_partials(self) -> None:
        @functools.wraps(load)
        async def wrapped(*args: Any, **kwargs: Any) -> Any:
            return await load(*args, **kwargs)

        etl = pipeline_of(extract, wrapped)
        etl.step(functools.partial(load), name="partial")
        etl.step(functools.partial(load, rows=[1]), name="filled")
        etl.step(functools.partial(load, [1]), name="bound")

        expected = (("extract",), (("rows", "extract"),))
        assert edges(etl)["load"] == edges(etl)["partial"] == expected
        assert edges(etl)["filled"] == edges(etl)["bound"] == ((), ())

    def test_a_function_without_a_signature_has_no_edges(self) -> None:
        etl = Pipeline("etl")
        etl.step(type, name="opaque", runs_in="thread")  # written in C

        assert [step.depends_on for step in etl] == [()]

    @pytest.mark.parametrize(
        ("options", "text"),
        [
            ({}, "parameter 'rows' of step 'load' depends on extract, which is not a step of "),
            ({"depends_on": {"rows": extract}}, "parameter 'rows' of step 'load' depends on extr"),
            ({"depends_on": {"rows": "a"}, "map_over": extract}, "step 'load' depends on extract"),
        ],
    )
    def test_a_dependency_outside_the_pipeline_is_refused(
        self, options: dict[str, Any], text: str
    ) -> None:
        etl = Pipeline("etl")
        etl.step(**options)(load)

        with refused(text):
            etl.steps  # noqa: B018

    def test_the_error_about_a_dependency_outside_the_pipeline_names_the_fix(self) -> None:
        etl = pipeline_of(load)

        with refused(
            "pipeline 'etl'; decorate it with that one's step, above all its other decorators, "
            "or give depends_on={'rows': ...}"
        ):
            etl.steps  # noqa: B018

    def test_a_dependency_on_a_pipeline_that_is_not_included_is_refused(self) -> None:
        etl = Pipeline("etl")
        etl.step(depends_on=[Pipeline("inner")])(nothing)

        with refused("Pipeline('inner'), which pipeline 'etl' does not include; call its include"):
            etl.steps  # noqa: B018

    def test_a_dependency_on_a_pipeline_that_is_included_twice_is_refused(self) -> None:
        inner = pipeline_of(nothing, name="inner")
        etl = Pipeline("etl")
        etl.include(inner)
        etl.include(inner, name="again")
        etl.step(extract, depends_on=[inner])

        with refused("includes several times; name one of 'inner', 'again' in depends_on"):
            etl.steps  # noqa: B018

    def test_a_dependency_that_is_no_step_is_refused(self) -> None:
        etl = Pipeline("etl")
        etl.step(depends_on=[3])(nothing)  # type: ignore[list-item]

        with refused("step 'nothing' depends on 3; a dependency is the name or", TypeError):
            etl.steps  # noqa: B018

    def test_a_step_as_a_default_is_refused_where_the_decorator_is(self) -> None:
        etl = pipeline_of(list_urls, fetch)

        with refused(
            "step 'late': the default of parameter 'u' of its action is step 'list_urls', and "
            "would be passed as it is; write after(list_urls) to take its output, each(list_urls) "
            "to take it item by item, or depends_on=[list_urls] and name the parameter "
            "'list_urls' without a default"
        ):

            @etl.step
            async def late(u: Any = list_urls) -> None: ...

        with refused("write collect(fetch) to take its output, each(collect(fetch)) to take it"):

            @etl.step(depends_on=[list_urls])
            async def later(pages: Any = fetch, *, list_urls: Any = list_urls) -> None: ...

        assert len(etl.steps) == 2

    def test_a_step_as_a_default_of_a_condition_is_refused_too(self) -> None:
        etl = pipeline_of(extract)

        with refused("its condition is step 'extract', and would be passed as it is; write after"):
            etl.step(when=lambda rows=extract: bool(rows))(nothing)

    def test_a_signal_or_a_pipeline_as_a_default_is_refused(self) -> None:
        etl, inner = Pipeline("etl"), pipeline_of(nothing, name="inner")
        agreed = etl.signal("agreed", bool)

        async def takes_signal(answer: Any = agreed) -> None: ...
        async def takes_pipeline(part: Any = inner) -> None: ...

        with refused("'answer' of its action is step 'agreed', and would be passed as it is; wri"):
            etl.step(takes_signal)
        with refused("pipeline 'inner', and would be passed as it is; include it and take its"):
            etl.step(takes_pipeline)
        etl.include(inner)
        with refused("pipeline 'inner', and would be passed as it is; write after(inner) to take"):
            etl.step(takes_pipeline)

    def test_a_step_of_another_pipeline_as_a_default_is_refused(self) -> None:
        async def source() -> None: ...
        async def late(rows: Any = source) -> None: ...

        other = pipeline_of(source, name="other")

        with refused("include pipeline 'other' and take its output with after()"):
            Pipeline("etl").step(late)
        del other
        gc.collect()
        assert Pipeline("etl").step(late) is late  # no step any more

    def test_a_function_may_have_a_default_that_a_dependency_or_a_partial_replaces(self) -> None:
        etl = pipeline_of(list_urls, nothing)

        async def late(list_urls: Any = list_urls, other: Any = nothing) -> None: ...

        etl.step(depends_on={"list_urls": list_urls, "other": nothing})(late)
        etl.step(functools.partial(late, other=nothing), name="again", depends_on=[list_urls])

        assert etl.steps[2].parameters == (("list_urls", "list_urls"), ("other", "nothing"))

    @pytest.mark.parametrize("word", [after, each, collect])
    def test_a_marker_takes_a_function(self, word: Any) -> None:
        if word is not each:  # it may name an input
            with refused(
                f"{word.__name__}() takes the function of another step, not str", TypeError
            ):
                word("extract")
        with refused(f"{word.__name__}() takes the function of another step", TypeError):
            word(each(collect(fetch)))
        with refused(f"{word.__name__}() takes the function of another step", TypeError):
            word(after(extract))


class TestMapped:
    """`each` maps a step, and `collect` takes the outputs of a mapped step."""

    def test_each_declares_the_edge_and_the_mapping(self) -> None:
        steps = pipeline_of(list_urls, fetch).steps

        assert steps[1] == WorkflowStep("fetch", fetch, {"url": "list_urls"}, map_over="list_urls")

    def test_collect_takes_the_list(self) -> None:
        steps = pipeline_of(list_urls, fetch, index).steps

        assert steps[2] == WorkflowStep("index", index, {"pages": "fetch"})

    @pytest.mark.parametrize("source", [list_urls, "list_urls"])
    def test_a_mapping_can_be_declared_by_function_and_name(self, source: Any) -> None:
        async def get(url: str) -> bytes: ...

        async def count(pages: list[bytes] = collect(get)) -> None: ...

        etl = pipeline_of(list_urls)
        etl.step(depends_on={"url": source}, map_over=source)(get)
        etl.step(count)

        assert etl.steps[1].map_over == "list_urls"
        assert etl.steps[2].depends_on == ("get",)

    @pytest.mark.parametrize(
        ("default", "problem", "instead"),
        [
            (after(fetch), "'fetch' is mapped, so its output is a list", "collect(fetch)"),
            (each(fetch), "'fetch' is mapped, so its output is a list", "each(collect(fetch))"),
            (collect(list_urls), "'list_urls' is not mapped", "after(list_urls)"),
            (each(collect(list_urls)), "'list_urls' is not mapped", "each(list_urls)"),
        ],
    )
    def test_the_wrong_marker_is_refused_with_the_right_one(
        self, default: Any, problem: str, instead: str
    ) -> None:
        async def use(it: Any = default) -> None: ...

        etl = pipeline_of(list_urls, fetch, use)

        with refused(f"parameter 'it' of step 'use': step {problem}; write {instead}"):
            etl.steps  # noqa: B018

    def test_a_step_is_mapped_over_one_step(self) -> None:
        async def pairs(url: str = each(list_urls), n: int = each(extract)) -> None: ...

        with refused("step 'pairs' is mapped over both 'list_urls' and 'extract'"):
            pipeline_of(extract, list_urls, pairs).steps  # noqa: B018

    def test_two_parameters_can_take_the_same_item(self) -> None:
        async def twice(url: str = each(list_urls), again: str = each(list_urls)) -> None: ...

        step = pipeline_of(list_urls, twice).steps[1]

        assert step.parameters == (("url", "list_urls"), ("again", "list_urls"))

    def test_a_mapped_step_cannot_take_the_whole_output_too(self) -> None:
        async def both(url: str = each(list_urls), urls: list[str] = after(list_urls)) -> None: ...

        with refused("parameter 'urls' of step 'both' takes the whole output of 'list_urls'"):
            pipeline_of(list_urls, both).steps  # noqa: B018


class TestConditions:
    """The parameters of a condition declare edges, as the parameters of an action do."""

    def test_a_default_of_a_condition_declares_the_edge(self) -> None:
        def is_large(rows: list[int] = after(extract)) -> bool:
            return len(rows) > 2

        etl = pipeline_of(extract)
        etl.step(when=is_large)(load)

        assert edges(etl)["load"] == (("extract",), (("rows", "extract"),))

    def test_a_mapping_precedes_a_default_of_a_condition(self) -> None:
        etl = pipeline_of(extract)
        etl.step(depends_on={"rows": "extract"}, when=lambda rows=after(nothing): bool(rows))(load)

        assert edges(etl)["load"] == (("extract",), (("rows", "extract"),))

    @pytest.mark.parametrize(
        ("default", "instead"), [(each(list_urls), "after"), (each(collect(fetch)), "collect")]
    )
    def test_a_condition_cannot_be_mapped(self, default: Any, instead: str) -> None:
        etl = pipeline_of(list_urls, fetch)
        etl.step(when=lambda url=default: bool(url))(nothing)

        with refused(f"but a condition is asked once; use {instead}()"):
            etl.steps  # noqa: B018

    def test_one_parameter_has_one_source(self) -> None:
        etl = pipeline_of(extract, list_urls)
        etl.step(when=lambda rows=after(list_urls): bool(rows))(load)

        with refused("take parameter 'rows' from different steps, 'extract' and 'list_urls'"):
            etl.steps  # noqa: B018


class TestIncluded:
    """A pipeline can include another."""

    async def test_others_depend_on_it_and_receive_its_output(self) -> None:
        ingest = pipeline_of(extract, load, name="ingest")
        outer = Pipeline("outer")
        outer.include(ingest)

        @outer.step
        async def tell(total: int = after(ingest)) -> str:
            return f"{total} rows"

        @outer.step(depends_on=["ingest", "ingest/extract"])
        async def named(ingest: int) -> int:
            return ingest

        report = await outer.run(url="")

        assert report["tell"].output == "3 rows"
        assert report["named"].output == 3

    async def test_its_output_holds_the_outputs_of_its_last_steps_by_name(self) -> None:
        outer = Pipeline("outer")
        inner = pipeline_of(extract, list_urls, name="inner")
        inner.include(pipeline_of(list_urls, name="deep"))
        outer.include(inner)

        report = await run_pipeline(outer, inputs={"url": ""})

        assert report["inner"].output == {
            "extract": [1, 2, 0],
            "list_urls": ["a", "b"],
            "deep": ["a", "b"],
        }
        assert "inner/deep/list_urls" in report

    async def test_every_kind_of_parameter_keeps_its_source(self) -> None:
        inner = pipeline_of(extract, name="inner")

        @inner.step(depends_on=["extract"])
        async def by_name(extract: list[int], url: str) -> int:
            return len(extract) + len(url)

        @inner.step(depends_on={"numbers": extract})
        async def rest(**others: object) -> object:
            return others

        @inner.step(depends_on=["extract", "by_name"])
        async def some(by_name: int, **others: object) -> object:
            return by_name, others

        @inner.step(depends_on=[some, rest])
        async def order() -> None: ...

        outer = Pipeline("outer")
        outer.include(inner)
        alone, nested = await inner.run(url=""), await outer.run(url="")

        assert alone.all_passed
        for name in alone:
            assert nested[f"inner/{name}"].output == alone[name].output

    def test_an_included_step_keeps_its_policies(self) -> None:
        inner = Pipeline("inner")
        inner.step(max_retries=3, retry=5, pool=Pool(1), timeout_ms=7)(nothing)
        outer = Pipeline("outer")
        outer.include(inner)

        step = outer.steps[0]

        (before,) = inner.steps
        assert (step.max_retries, step.retry, step.timeout_ms) == (3, before.retry, 7)
        assert step.pool is before.pool

    async def test_it_runs_after_its_dependencies_and_receives_their_outputs(self) -> None:
        inner = pipeline_of(list_urls, name="inner")

        @inner.step(depends_on=["list_urls"])
        async def use(list_urls: list[str], url: str, table: int = 0) -> object:
            return list_urls, url, table

        @inner.step
        async def take_all(**others: object) -> object:
            return others

        outer = Pipeline("outer")

        @outer.step
        async def url() -> str:
            return "https"

        @outer.step
        async def count() -> int:
            return 3

        outer.include(inner, name="a", depends_on=[url])
        outer.include(inner, name="b", depends_on={"url": "url", "table": count})
        report = await outer.run()

        assert report["a/use"].output == (["a", "b"], "https", 0)
        assert report["b/use"].output == (["a", "b"], "https", 3)
        assert report["a/take_all"].output == {"url": "https"}
        assert report["b/take_all"].output == {"url": "https", "table": 3}
        depends_on = {name: names for name, (names, _) in edges(outer).items()}
        assert depends_on["a/list_urls"] == ("url",)
        assert depends_on["b/list_urls"] == ("url", "count")
        assert depends_on["a/use"] == ("a/list_urls", "url")

    def test_a_step_inside_precedes_a_dependency_of_the_inclusion(self) -> None:
        outer = pipeline_of(extract)
        outer.include(
            pipeline_of(extract, load, name="in"), depends_on={"rows": extract, "url": extract}
        )

        assert edges(outer)["in/load"] == (("in/extract",), (("rows", "in/extract"),))

    def test_a_mapped_parameter_that_no_step_has_is_refused(self) -> None:
        outer = pipeline_of(list_urls)
        outer.include(pipeline_of(extract, name="in"), depends_on={"ur": list_urls})

        with refused(
            "pipeline 'in' maps parameter 'ur' to 'list_urls', but none of its steps has such a "
            "parameter (did you mean 'url'?)"
        ):
            outer.steps  # noqa: B018

    def test_steps_added_after_the_inclusion_are_included(self) -> None:
        inner = pipeline_of(extract, name="inner")
        outer = Pipeline("outer")
        outer.include(inner)

        before = len(outer.steps)
        inner.step(load)

        assert (before, len(outer.steps)) == (2, 3)

    def test_an_empty_pipeline_cannot_be_included(self) -> None:
        outer = Pipeline("outer")
        outer.include(Pipeline("inner"))

        with refused("pipeline 'outer' includes 'inner', which has no steps; import the modules"):
            outer.steps  # noqa: B018

    @pytest.mark.exhaustive
    def test_inclusions_can_be_nested_deeper_than_calls(self) -> None:
        outer = innermost = pipeline_of(extract, name="in")
        for _ in range(60):
            inner, outer = outer, Pipeline("in")
            outer.include(inner)

        with calls_at_most(50):
            before = len(outer.steps)
            innermost.step(load)

            assert (before, len(outer.steps)) == (61, 62)
            with refused("because it would include itself"):
                innermost.include(outer, name="out")

    def test_a_pipeline_cannot_include_itself(self) -> None:
        a, b, c = Pipeline("a"), Pipeline("b"), Pipeline("c")
        a.include(b)
        b.include(c)

        for outer, inner in [(a, a), (b, a), (c, a)]:
            with refused(f"pipeline '{outer.name}' cannot include 'a', because it would include"):
                outer.include(inner, name="x")

    @pytest.mark.parametrize(
        ("inner", "options", "kind", "text"),
        [
            (extract, {}, TypeError, "include() takes a Pipeline, not function"),
            (Pipeline("a"), {"name": ""}, ValueError, "must not be empty"),
            (Pipeline("a"), {"name": 3}, TypeError, "must be a str, not int"),
            (Pipeline("extract"), {}, ValueError, "has a step named 'extract' already"),
            (Pipeline("a"), {"depends_on": "b"}, TypeError, "depends_on must be a list"),
        ],
    )
    def test_include_refuses_invalid_arguments(
        self, inner: Any, options: Any, kind: type[Exception], text: str
    ) -> None:
        with refused(text, kind):
            pipeline_of(extract).include(inner, **options)

    def test_clean_up_waits_for_its_own_pipeline_and_no_step_waits_for_it(self) -> None:
        inner = pipeline_of(extract, name="in")
        inner.step(name="clean", run_if="always")(nothing)
        inner.step(lambda: nothing(), name="tell", depends_on=["extract"], run_if="failure")
        inner.step(lambda: nothing(), name="closed", depends_on=["clean"])
        inner.step(lambda: nothing(), name="mended", depends_on=["closed", "clean"])
        outer = pipeline_of(list_urls)
        outer.include(inner, depends_on=[list_urls])

        depends_on = {name: names for name, (names, _) in edges(outer).items()}

        assert depends_on["in/clean"] == ("in/extract", "in/tell")
        assert depends_on["in/tell"] == ("in/extract",)
        assert depends_on["in"] == ("in/extract", "in/mended")

    def test_a_pipeline_of_clean_up_alone_can_be_included(self) -> None:
        inner = Pipeline("in")
        inner.step(run_if="always")(nothing)
        outer = pipeline_of(list_urls)
        outer.include(inner, depends_on=[list_urls])

        assert edges(outer) == {
            "list_urls": ((), ()),
            "in/nothing": (("list_urls",), ()),
            "in": (("in/nothing",), ()),
        }

    def test_a_condition_receives_the_outputs_that_its_pipeline_depends_on(self) -> None:
        inner = pipeline_of(extract, name="in")
        inner.step(depends_on=["extract"], when=lambda limit: bool(limit))(nothing_with)
        outer = pipeline_of(nothing)
        outer.include(inner, depends_on={"limit": nothing})

        assert edges(outer)["in/nothing_with"] == (
            ("in/extract", "nothing"),
            (("extract", "in/extract"), ("limit", "nothing")),
        )


async def nothing_with(**_: object) -> None: ...


def test_a_notebook_draws_a_pipeline_whose_steps_fit_together():
    pipeline = Pipeline("etl")

    @pipeline.step
    async def extract() -> int:
        return 1

    @pipeline.step
    async def load(rows: int = after(extract)) -> int:
        return rows

    picture = pipeline._repr_svg_()

    assert picture == pipeline.orchestrator._repr_svg_()
    assert picture.startswith("<svg")
    assert "extract" in picture

    @pipeline.step(depends_on=["gone"])
    async def alone() -> None:
        pass

    assert pipeline._repr_svg_() is None
