"""Pipelines are validated, sorted into tiers, and bound to their data by parameter name."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import networkx as nx
import pytest
from cpu_time import cpu_seconds
from hypothesis import given
from hypothesis import strategies as st
from strategies import Edges, graphs, oracle_of
from traces import NO_TRACES, trace_files

from asyncflow import (
    CyclicDependencyError,
    Retry,
    WorkflowStep,
    parallel_groups,
    topological_sort,
)
from asyncflow._core.pipeline.graph import (
    ITEM,
    Binding,
    Plan,
    bind,
    bind_conditions,
    outputs_to_keep,
    plan,
)


async def nothing() -> None: ...


def steps_of(edges: Edges) -> list[WorkflowStep]:
    return [WorkflowStep(name, nothing, needs) for name, needs in edges.items()]


class TestOrder:
    @given(graphs())
    def test_tiers_are_the_topological_generations(self, edges: Edges) -> None:
        tiers = parallel_groups(steps_of(edges))

        expected = [set(tier) for tier in nx.topological_generations(oracle_of(edges))]
        assert [set(tier) for tier in tiers] == expected
        assert sum(map(len, tiers)) == len(edges)

    @given(graphs())
    def test_a_plan_stores_each_edge_in_both_directions(self, edges: Edges) -> None:
        planned = plan(steps_of(edges))

        names = [step.name for step in planned.steps]
        assert names == list(edges) == list(planned.index)
        assert list(planned.index.values()) == list(range(len(edges)))
        for name, step in planned.index.items():
            assert [names[needed] for needed in planned.dependencies[step]] == edges[name]
            assert [names[other] for other in planned.dependents[step]] == [
                other for other in edges if name in edges[other]
            ]


class TestRefusal:
    @given(graphs(acyclic=False))
    def test_a_pipeline_is_refused_exactly_if_it_has_a_cycle(self, edges: Edges) -> None:
        steps = steps_of(edges)

        try:
            plan(steps)
        except CyclicDependencyError as refused:
            cycle = refused.cycle
        else:
            assert nx.is_directed_acyclic_graph(oracle_of(edges))
            return

        assert not nx.is_directed_acyclic_graph(oracle_of(edges))
        assert cycle[0] == cycle[-1]
        assert len(set(cycle)) == len(cycle) - 1
        assert all(before in edges[after] for before, after in itertools.pairwise(cycle))

    def test_a_cycle_is_shown_in_the_message(self) -> None:
        with pytest.raises(CyclicDependencyError) as refused:
            topological_sort(steps_of({"a": ["b"], "b": ["a"]}))

        assert refused.value.cycle == ["a", "b", "a"]
        assert str(refused.value) == "steps depend on each other in a circle: a -> b -> a"
        assert isinstance(refused.value, ValueError)
        assert refused.value.__context__ is None  # the search is an implementation detail

    def test_a_step_that_depends_on_itself_is_a_cycle(self) -> None:
        with pytest.raises(CyclicDependencyError) as refused:
            parallel_groups(steps_of({"b": [], "a": ["b", "a"]}))

        assert refused.value.cycle == ["a", "a"]

    def test_an_unknown_dependency_is_refused_with_the_nearest_name(self) -> None:
        with pytest.raises(ValueError, match="unknown step") as refused:
            topological_sort(steps_of({"extract": [], "load": ["extract", "extrakt"]}))

        assert str(refused.value) == (
            "step 'load' depends on unknown step 'extrakt' (did you mean 'extract'?)"
        )
        assert refused.value.__suppress_context__

    def test_two_steps_of_one_name_are_refused(self) -> None:
        steps = [WorkflowStep(name, nothing) for name in ("a", "b", "c", "c", "b")]

        with pytest.raises(ValueError, match="unique") as refused:
            plan(steps)

        assert str(refused.value) == "two steps are named 'b'; names must be unique"

    @pytest.mark.parametrize(
        "steps",
        ["ab", [None], [("a", nothing)], {"a": WorkflowStep("a", nothing)}, [WorkflowStep]],
    )
    def test_an_object_that_is_not_a_step_is_refused(self, steps: Any) -> None:
        kind = type(next(iter(steps))).__name__

        with pytest.raises(TypeError) as refused:
            plan(steps)

        assert str(refused.value) == f"a pipeline is made of WorkflowStep objects, not {kind}"


def assert_equal(one: Plan, other: Plan) -> None:
    assert list(one.dependents) == list(other.dependents)
    assert dataclasses.replace(one, dependents=other.dependents) == other


class TestTargets:
    @given(graphs(), st.data())
    def test_the_plan_holds_the_targets_and_all_their_ancestors(
        self, edges: Edges, data: st.DataObject
    ) -> None:
        steps = steps_of(edges)
        targets = data.draw(st.lists(st.sampled_from(list(edges)))) if edges else []

        planned = plan(steps, targets)

        oracle = oracle_of(edges)
        needed = set(targets).union(*(nx.ancestors(oracle, target) for target in targets))
        expected = [step for step in steps if step.name in needed]
        assert planned.targets == set(targets)
        assert_equal(dataclasses.replace(planned, targets=frozenset()), plan(expected))
        assert list(planned.index) == [step.name for step in expected]

    @pytest.mark.parametrize(
        ("targets", "message"),
        [
            (["a", "extrakt"], "targets name unknown step 'extrakt' (did you mean 'extract'?)"),
            (["zzz"], "targets name unknown step 'zzz'"),
        ],
    )
    def test_an_unknown_target_is_refused_with_the_nearest_name(
        self, targets: Any, message: str
    ) -> None:
        with pytest.raises(ValueError, match="unknown step") as refused:
            plan(steps_of({"a": [], "extract": ["a"]}), targets)

        assert str(refused.value) == message

    @pytest.mark.parametrize(
        ("others", "what"),
        [({"x": ["y"], "y": ["x"]}, "circle"), ({"x": ["y"]}, "unknown step 'y'")],
    )
    def test_steps_outside_of_the_targets_must_be_valid_too(self, others: Edges, what: str) -> None:
        with pytest.raises(ValueError, match=what):
            plan(steps_of({"a": [], **others}), ["a"])

    def test_a_clean_up_target_without_dependencies_does_not_select_all_other_steps(self) -> None:
        tidy = WorkflowStep("tidy", nothing, run_if="always")
        steps = [tidy, *steps_of({"a": [], "b": ["a"]})]

        assert list(plan(steps, ["tidy"]).index) == ["tidy"]
        assert list(plan(steps, ["a"]).index) == ["a"]
        planned = plan(steps, ["tidy", "a"])
        assert planned.order == [1, 0]
        assert planned.dependencies == [(1,), ()]


def cleanup(name: str, depends_on: Iterable[str] = (), run_if: Any = "always") -> WorkflowStep:
    return WorkflowStep(name, nothing, depends_on, run_if=run_if)


class TestCleanUp:
    def test_a_clean_up_step_that_names_no_dependencies_comes_after_all_others(self) -> None:
        steps = [
            cleanup("tidy"),
            *steps_of({"a": [], "b": ["a"]}),
            cleanup("log", run_if="failure"),
        ]

        planned = plan(steps)

        assert parallel_groups(steps) == [["a"], ["b"], ["tidy", "log"]]
        assert planned.dependencies == [(1, 2), (), (1,), (1, 2)]
        assert list(map(sorted, planned.dependents)) == [[], [0, 2, 3], [0, 3], []]
        assert planned.cleanups == {0, 3}
        assert planned.having("run_if") == (0, 3)
        assert dict(planned.depends_on) == {
            "a": (),
            "b": ("a",),
            "tidy": ("a", "b"),
            "log": ("a", "b"),
        }

    @given(graphs(), st.data())
    def test_clean_up_steps_make_no_cycle_and_follow_all_steps_but_their_descendants(
        self, edges: Edges, data: st.DataObject
    ) -> None:
        chosen = data.draw(st.sets(st.sampled_from(list(edges)))) if edges else set()
        steps = [
            cleanup(name, needs) if name in chosen else WorkflowStep(name, nothing, needs)
            for name, needs in edges.items()
        ]

        view = plan(steps).depends_on

        last = {name for name in chosen if not edges[name]}
        oracle = oracle_of(edges)
        after_them = last.union(*(nx.descendants(oracle, name) for name in last))
        others = tuple(name for name in edges if name not in after_them)
        for name, needs in edges.items():
            assert view[name] == (others if name in last else tuple(needs))
        assert set(topological_sort(steps)) == edges.keys()

    def test_a_plan_lists_the_steps_with_special_policies(self) -> None:
        steps = [
            WorkflowStep("plain", nothing, timeout_ms=5),
            WorkflowStep("a", nothing, max_retries=3, retry=7),
            WorkflowStep("b", nothing, when=bool),
            WorkflowStep("c", nothing, deadline_ms=5),
        ]

        planned = plan(steps)

        assert planned.given == {"max_retries": (1,), "when": (2,), "deadline_ms": (3,)}


def layered(count: int, needs: int = 3, width: int = 50) -> list[WorkflowStep]:
    return [
        WorkflowStep(
            f"s{i}",
            nothing,
            [f"s{(i // width - 1) * width + (i * 7 + k * 13) % width}" for k in range(needs)]
            if i >= width
            else (),
        )
        for i in range(count)
    ]


class TestSize:
    @pytest.mark.exhaustive
    def test_a_chain_of_100_000_steps_needs_no_recursion(self) -> None:
        count = 100_000
        assert count > 10 * sys.getrecursionlimit()
        steps = [WorkflowStep(f"s{i}", nothing, [f"s{i - 1}"] if i else ()) for i in range(count)]
        steps.reverse()

        tiers = parallel_groups(steps)

        assert tiers == [[f"s{i}"] for i in range(count)]

    @pytest.mark.exhaustive
    def test_a_cycle_of_100_000_steps_is_found(self) -> None:
        count = 100_000
        steps = [WorkflowStep(f"s{i}", nothing, [f"s{i - 1}"]) for i in range(1, count)]

        with pytest.raises(CyclicDependencyError) as refused:
            plan([WorkflowStep("s0", nothing, [f"s{count - 1}"]), *steps])

        assert refused.value.cycle == [*(f"s{i}" for i in range(count)), "s0"]

    @pytest.mark.exhaustive
    def test_100_000_steps_with_300_000_dependencies_are_planned_in_linear_time(self) -> None:
        few, many = layered(20_000), layered(100_000)
        assert sum(len(step.depends_on) for step in many) == pytest.approx(300_000, rel=0.001)

        ratio = cpu_seconds(lambda: plan(many)) / cpu_seconds(lambda: plan(few))

        assert ratio < 5 * 3  # 25 if it were quadratic; caches make large graphs dearer

    @pytest.mark.exhaustive
    def test_one_step_with_100_000_dependencies_is_planned_in_linear_time(self) -> None:
        def fan(count: int) -> list[WorkflowStep]:
            middle = [WorkflowStep(f"s{i}", nothing) for i in range(count)]
            return [*middle, WorkflowStep("end", nothing, [step.name for step in middle])]

        few, many = fan(20_000), fan(100_000)

        ratio = cpu_seconds(lambda: plan(many)) / cpu_seconds(lambda: plan(few))

        assert ratio < 5 * 3  # 25 if it were quadratic; caches make large graphs dearer


def traces() -> list[Any]:
    return [pytest.param(file, id=file.stem) for file in trace_files()] or [
        pytest.param(None, id="absent", marks=pytest.mark.skip(NO_TRACES))
    ]


@pytest.mark.parametrize("file", traces())
def test_the_tiers_of_a_real_workflow_are_its_topological_generations(file: Path) -> None:
    tasks = json.loads(file.read_text())["workflow"]["specification"]["tasks"]
    edges = {task["id"]: task["parents"] for task in tasks}

    tiers = parallel_groups(steps_of(edges))

    expected = [set(tier) for tier in nx.topological_generations(oracle_of(edges))]
    assert [set(tier) for tier in tiers] == expected


async def takes_q(q: int) -> None: ...


async def takes_a(a: int) -> None: ...
async def takes_a_and_b(a: int, b: int) -> None: ...
async def takes_optional_a(a: int = 0) -> None: ...
async def takes_all(**outputs: int) -> None: ...
async def takes_a_and_all(a: int, **others: int) -> None: ...
async def takes_only_optional_positional(a: int = 0, /, **others: int) -> None: ...


class Method:
    async def load(self, a: int, *rest: int) -> None: ...


def binding_of(
    action: Callable[..., Any], depends_on: Any = (), inputs: Iterable[str] = ()
) -> dict[str, str]:
    """Return the source of each argument: ``"<a"`` is the output of step a, ``"url"`` an input.

    The step "load" comes after the steps a, b, c and "two words".
    """
    others = [WorkflowStep(name, nothing) for name in ("a", "b", "c", "two words")]
    planned = plan([*others, WorkflowStep("load", action, depends_on)])

    *nothings, binding = bind(planned, frozenset(inputs))

    assert nothings == [()] * len(others)
    assert len(dict(binding)) == len(binding)
    return {
        parameter: source if isinstance(source, str) else f"<{planned.steps[source].name}"
        for parameter, source in binding
    }


UNKNOWN = "it is neither a dependency of the step nor a run input"
A_STEP = (
    "there is a step '{0}', but it is not a dependency; write {0}=after({0}), or name it in "
    "depends_on"
)


class TestBinding:
    @pytest.mark.parametrize(
        ("action", "depends_on", "inputs", "expected"),
        [
            # An action without parameters is simply called.
            (nothing, ["a"], ["url"], {}),
            # A parameter with the name of a dependency receives its output.
            (takes_a, ["a"], [], {"a": "<a"}),
            (takes_a, ["b", "a"], [], {"a": "<a"}),
            (takes_a_and_b, ["b", "a"], [], {"a": "<a", "b": "<b"}),
            (Method().load, ["a"], [], {"a": "<a"}),
            # A parameter with the name of an input receives that input.
            (takes_a, [], ["a"], {"a": "a"}),
            (takes_a, ["b"], ["a", "c"], {"a": "a"}),
            (takes_a_and_b, ["b"], ["a"], {"a": "a", "b": "<b"}),
            # A mapping binds a dependency to a parameter of another name only.
            (takes_a, {"a": "b"}, [], {"a": "<b"}),
            (takes_a_and_b, {"a": "b", "b": "a"}, [], {"a": "<b", "b": "<a"}),
            (takes_a_and_b, {"a": "c", "b": "c"}, [], {"a": "<c", "b": "<c"}),
            (takes_a_and_b, {"a": "a", "b": "a"}, [], {"a": "<a", "b": "<a"}),
            (takes_a_and_b, {"b": "a"}, ["a"], {"a": "a", "b": "<a"}),
            # A default is used if nothing provides the parameter.
            (takes_optional_a, ["b"], ["c"], {}),
            (takes_optional_a, ["a"], [], {"a": "<a"}),
            (takes_optional_a, [], ["a"], {"a": "a"}),
            # **kwargs receives the outputs of all dependencies, and no inputs.
            (takes_all, ["b", "a"], ["url"], {"a": "<a", "b": "<b"}),
            (takes_all, ["two words"], [], {"two words": "<two words"}),
            (takes_all, {"x": "a", "b": "b"}, [], {"x": "<a", "b": "<b"}),
            (takes_all, {"x": "a", "y": "a"}, [], {"x": "<a", "y": "<a"}),
            (takes_all, [], ["url"], {}),
            (takes_a_and_all, ["b", "a"], [], {"a": "<a", "b": "<b"}),
            (takes_a_and_all, ["b", "c"], ["a"], {"a": "a", "b": "<b", "c": "<c"}),
            (takes_only_optional_positional, ["a"], [], {"a": "<a"}),
            # A parameter that a partial binds is not bound again.
            (functools.partial(takes_a_and_b, 1), ["a", "b"], [], {"b": "<b"}),
            (functools.partial(takes_a_and_b, b=1), ["a", "b"], ["c"], {"a": "<a"}),
            (functools.partial(takes_a, a=1), ["a"], ["a"], {}),
            (functools.partial(takes_a_and_all, 1), ["a", "b"], [], {"b": "<b"}),
            (functools.partial(takes_a_and_all, a=1), ["a", "b"], [], {"b": "<b"}),
            (functools.partial(takes_all, b=1), ["a", "b"], [], {"a": "<a"}),
        ],
    )
    def test_an_action_gets_its_data_by_parameter_name(
        self,
        action: Callable[..., Any],
        depends_on: Any,
        inputs: list[str],
        expected: dict[str, str],
    ) -> None:
        assert binding_of(action, depends_on, inputs) == expected

    def test_all_outputs_come_in_the_order_of_the_dependencies(self) -> None:
        assert list(binding_of(takes_a_and_all, ["c", "a", "b"])) == ["a", "c", "b"]

    @pytest.mark.parametrize(
        ("action", "depends_on", "inputs", "parameter", "why"),
        [
            (takes_q, ["b"], ["c"], "q", UNKNOWN),
            (takes_a, [], [], "a", A_STEP.format("a")),
            (takes_a, ["b"], ["c"], "a", A_STEP.format("a")),
            (takes_a_and_all, ["b"], [], "a", A_STEP.format("a")),
            (takes_a_and_b, {"a": "c"}, [], "b", A_STEP.format("b")),
            (takes_a_and_b, {"a": "b"}, [], "b", "the output of step 'b' is received as 'a' there"),
            (
                takes_a_and_all,
                {"x": "a"},
                [],
                "a",
                "the output of step 'a' is received as 'x' there",
            ),
        ],
    )
    def test_a_required_parameter_that_nothing_provides_is_refused(
        self,
        action: Callable[..., Any],
        depends_on: Any,
        inputs: list[str],
        parameter: str,
        why: str,
    ) -> None:
        with pytest.raises(ValueError, match="nothing provides") as refused:
            binding_of(action, depends_on, inputs)

        assert str(refused.value) == (
            f"nothing provides parameter {parameter!r} of step 'load': {why}"
        )

    def test_a_missing_parameter_of_a_condition_is_attributed_to_the_condition(self) -> None:
        async def load(q: int) -> None: ...

        steps = [
            WorkflowStep("use", load),
            WorkflowStep("load", load, {"q": "use"}, when=lambda use: use > 0),
        ]
        with pytest.raises(ValueError, match="nothing provides") as refused:
            bind_conditions(plan(steps))

        assert str(refused.value) == (
            "nothing provides parameter 'use' of the condition of step 'load': the output of step "
            "'use' is received as 'q' there"
        )
        with pytest.raises(ValueError, match="nothing provides") as refused:
            bind_conditions(plan([steps[0], WorkflowStep("load", nothing, when=lambda use: use)]))
        assert str(refused.value).endswith(
            "there is a step 'use', but it is not a dependency; name it in depends_on"
        )

    def test_the_nearest_dependency_or_input_is_suggested(self) -> None:
        async def load(word: str) -> None: ...

        with pytest.raises(ValueError, match=r"run input \(did you mean 'words'\?\)$"):
            binding_of(load, ["a"], ["words"])
        with pytest.raises(ValueError, match=r"run input \(did you mean 'two words'\?\)$"):
            binding_of(load, ["two words"], ["url"])

    @pytest.mark.parametrize(
        ("action", "depends_on"),
        [
            (takes_a, ["a"]),
            (takes_a, {"a": "b"}),
            (takes_optional_a, ["a"]),
            (takes_a_and_all, ["a"]),
        ],
    )
    def test_a_parameter_that_a_dependency_and_an_input_provide_is_refused(
        self, action: Callable[..., Any], depends_on: Any
    ) -> None:
        with pytest.raises(ValueError, match="provided twice") as refused:
            binding_of(action, depends_on, ["a"])

        assert str(refused.value) == (
            "parameter 'a' of step 'load' is provided twice: by a dependency and by a run input "
            "of that name; rename the input, or map the dependency to another parameter"
        )


class TestMapOver:
    @pytest.mark.parametrize(
        ("action", "depends_on", "expected"),
        [
            (takes_a, ["a"], (("a", ITEM),)),
            (takes_a_and_b, ["a", "b"], (("a", ITEM), ("b", 1))),
            (takes_a_and_b, {"a": "b", "b": "a"}, (("a", 1), ("b", ITEM))),
            (takes_a_and_b, {"a": "a", "b": "a"}, (("a", ITEM), ("b", ITEM))),
            (takes_all, ["b", "a"], (("b", 1), ("a", ITEM))),
            (takes_all, {"x": "a"}, (("x", ITEM),)),
        ],
    )
    def test_an_item_takes_the_place_of_the_output(
        self, action: Callable[..., Any], depends_on: Any, expected: Binding
    ) -> None:
        steps = [WorkflowStep(name, nothing) for name in "ab"]
        planned = plan([*steps, WorkflowStep("load", action, depends_on, map_over="a")])

        assert bind(planned) == [(), (), expected]


class TestConditions:
    def test_a_condition_uses_the_names_of_the_mapping(self) -> None:
        def when(x: int) -> bool:
            return bool(x)

        async def load(x: int) -> None: ...

        planned = plan(
            [WorkflowStep("a", nothing), WorkflowStep("load", load, {"x": "a"}, when=when)]
        )

        assert bind_conditions(planned) == {1: (("x", 0),)}


class TestOutputsToKeep:
    """Which outputs may stay on the engine that makes them."""

    class Engine:
        def __init__(self, moves_data: bool = True) -> None:
            self.name, self.moves_data = "fake", moves_data

        def check(self, step: WorkflowStep, /) -> None: ...
        async def run(self, call: Any, /) -> None: ...

    def kept(self, *steps: WorkflowStep, targets: Iterable[str] | None = None) -> list[str]:
        planned = plan(steps, targets)
        found = outputs_to_keep(planned, planned.bindings(set()))
        return [planned.steps[index].name for index in sorted(found)]

    async def make(self) -> None: ...
    async def take(self, a: Any) -> None: ...
    async def order(self) -> None: ...

    def test_an_output_stays_if_all_its_takers_are_on_the_same_engine(self) -> None:
        one, other = self.Engine(), self.Engine()
        a = WorkflowStep("a", self.make, engine=one)
        on_one = [WorkflowStep(name, self.take, ["a"], engine=one) for name in "bc"]

        assert self.kept(a, *on_one) == ["a"]
        assert self.kept(a, *on_one, WorkflowStep("d", self.take, ["a"])) == []
        assert self.kept(a, *on_one, WorkflowStep("d", self.take, ["a"], engine=other)) == []

    def test_an_output_that_no_step_takes_comes_home(self) -> None:
        one = self.Engine()
        a = WorkflowStep("a", self.make, engine=one)

        assert self.kept(a) == []
        assert self.kept(a, WorkflowStep("b", self.order, ["a"], engine=one)) == []

    def test_an_order_alone_takes_no_output(self) -> None:
        one = self.Engine()
        a = WorkflowStep("a", self.make, engine=one)
        b = WorkflowStep("b", self.take, ["a"], engine=one)

        assert self.kept(a, b, WorkflowStep("c", self.order, ["a"])) == ["a"]

    def test_what_the_run_looks_at_comes_home(self) -> None:
        one = self.Engine()
        b = WorkflowStep("b", self.take, ["a"], engine=one)
        options: list[Any] = [{"max_retries": 2, "retry": Retry(until=bool)}, {}, {}]
        others = [
            [],
            [WorkflowStep("c", self.order, ["a"], engine=one, when=lambda a: a)],
            [WorkflowStep("c", self.take, ["a"], map_over="a", engine=one)],
        ]

        for policies, more in zip(options, others, strict=True):
            a = WorkflowStep("a", self.make, engine=one, **policies)
            assert self.kept(a, b, *more) == []

    def test_the_list_of_a_mapped_step_is_made_by_the_run(self) -> None:
        one = self.Engine()
        items = WorkflowStep("items", self.make)
        a = WorkflowStep("a", self.make_of, ["items"], map_over="items", engine=one)

        assert self.kept(items, a, WorkflowStep("b", self.take, ["a"], engine=one)) == []

    async def make_of(self, items: Any) -> None: ...

    def test_a_target_comes_home(self) -> None:
        one = self.Engine()
        steps = [
            WorkflowStep("a", self.make, engine=one),
            WorkflowStep("b", self.take, ["a"], engine=one),
        ]

        assert self.kept(*steps, targets=["b"]) == ["a"]
        assert self.kept(*steps, targets=["a", "b"]) == []

    def test_an_engine_that_moves_no_data_keeps_none(self) -> None:
        one = self.Engine(moves_data=False)
        steps = [
            WorkflowStep("a", self.make, engine=one),
            WorkflowStep("b", self.take, ["a"], engine=one),
        ]

        assert self.kept(*steps) == []
