"""What is a valid pipeline, in which order and tiers it runs, and how actions get their data."""

from __future__ import annotations

import functools
import itertools
import json
import os
import pickle
import random
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

from asyncflow import (
    CyclicDependencyError,
    WorkflowStep,
    parallel_groups,
    topological_sort,
)
from asyncflow._graph import Binding, Shape, bind, plan

TRACES = Path(
    os.environ.get("ASYNCFLOW_TRACES")
    or Path(__file__).parents[2].resolve().parent / "shared" / "wfinstances"
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
    def test_the_steps_of_a_tier_stand_in_the_order_of_declaration(self, edges: Edges) -> None:
        declared = list(edges)

        for tier in parallel_groups(steps_of(edges)):
            assert tier == sorted(tier, key=declared.index)

    @given(graphs())
    def test_the_order_is_the_tiers_one_after_the_other(self, edges: Edges) -> None:
        steps = steps_of(edges)

        order = topological_sort(steps)

        assert order == [name for tier in parallel_groups(steps) for name in tier]
        assert all(order.index(need) < order.index(name) for name in edges for need in edges[name])

    @given(graphs(), st.randoms(use_true_random=False))
    def test_the_order_of_the_dependencies_does_not_matter(
        self, edges: Edges, chance: random.Random
    ) -> None:
        shuffled = {name: chance.sample(needs, len(needs)) for name, needs in edges.items()}

        assert topological_sort(steps_of(shuffled)) == topological_sort(steps_of(edges))

    @given(graphs())
    def test_a_plan_keeps_each_edge_in_both_directions(self, edges: Edges) -> None:
        planned = plan(steps_of(edges))

        names = [step.name for step in planned.steps]
        assert names == list(edges) == list(planned.index)
        assert list(planned.index.values()) == list(range(len(edges)))
        for name, step in planned.index.items():
            assert [names[needed] for needed in planned.dependencies[step]] == edges[name]
            assert [names[other] for other in planned.dependents[step]] == [
                other for other in edges if name in edges[other]
            ]

    def test_nothing_is_a_pipeline_too(self) -> None:
        assert topological_sort([]) == []
        assert parallel_groups([]) == []
        assert plan([]).order == []

    def test_steps_may_come_from_any_iterable(self) -> None:
        steps = steps_of({"b": ["a"], "a": []})

        assert topological_sort(iter(steps)) == ["a", "b"]
        assert parallel_groups(step for step in steps) == [["a"], ["b"]]
        assert topological_sort({step.name: step for step in steps}.values()) == ["a", "b"]

    def test_a_subclass_of_a_step_is_a_step(self) -> None:
        class Named(WorkflowStep):
            pass

        assert topological_sort([Named("a", nothing), WorkflowStep("b", nothing)]) == ["a", "b"]


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

    def test_a_cycle_leads_from_each_step_to_one_that_depends_on_it(self) -> None:
        with pytest.raises(CyclicDependencyError) as refused:
            topological_sort(steps_of({"b": ["a"], "c": ["b"], "a": ["c"]}))

        assert refused.value.cycle == ["b", "c", "a", "b"]

    def test_a_cycle_begins_with_the_step_of_it_that_was_declared_first(self) -> None:
        edges: Edges = {"root": [], "tail": ["y"], "x": ["root", "z"], "y": ["x"], "z": ["y"]}

        with pytest.raises(CyclicDependencyError) as refused:
            parallel_groups(steps_of(edges))

        assert refused.value.cycle == ["x", "y", "z", "x"]

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

    def test_an_unknown_dependency_that_is_near_to_nothing_gets_no_guess(self) -> None:
        with pytest.raises(ValueError, match=r"^step 'a' depends on unknown step 'zzz'$"):
            parallel_groups(steps_of({"a": ["zzz"]}))

    def test_two_steps_of_one_name_are_refused(self) -> None:
        steps = [WorkflowStep(name, nothing) for name in ("a", "b", "c", "c", "b")]

        with pytest.raises(ValueError, match="unique") as refused:
            plan(steps)

        assert str(refused.value) == "two steps are named 'b'; names must be unique"

    @pytest.mark.parametrize(
        "steps",
        ["ab", [None], [("a", nothing)], {"a": WorkflowStep("a", nothing)}, [WorkflowStep]],
    )
    def test_what_is_no_step_is_refused(self, steps: Any) -> None:
        kind = type(next(iter(steps))).__name__

        with pytest.raises(TypeError) as refused:
            plan(steps)

        assert str(refused.value) == f"a pipeline is made of WorkflowStep objects, not {kind}"

    @pytest.mark.parametrize("steps", [None, 1, WorkflowStep("a", nothing), WorkflowStep])
    def test_what_is_no_list_of_steps_is_refused(self, steps: Any) -> None:
        with pytest.raises(TypeError) as refused:
            plan(steps)

        assert str(refused.value) == (
            "steps must be a list of WorkflowStep objects; put a single one in a list"
        )


class TestShape:
    @given(graphs())
    def test_a_shape_is_the_plan_as_names_in_topological_order(self, edges: Edges) -> None:
        steps = steps_of(edges)

        shape = Shape(plan(steps))

        assert dict(shape) == {name: tuple(needs) for name, needs in edges.items()}
        assert list(shape) == topological_sort(steps)
        assert len(shape) == len(edges)
        assert repr(shape) == repr(dict(shape))

    def test_a_pickled_shape_is_a_dict_without_actions(self) -> None:
        edges: Edges = {"b": ["a"], "a": []}
        steps = [WorkflowStep(name, lambda: nothing(), needs) for name, needs in edges.items()]

        back = pickle.loads(pickle.dumps(Shape(plan(steps))))

        assert back == {"a": (), "b": ("a",)}
        assert list(back) == ["a", "b"]
        assert type(back) is dict

    def test_a_shape_knows_no_other_step(self) -> None:
        with pytest.raises(KeyError):
            Shape(plan([]))["a"]


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
    def test_a_chain_of_100_000_steps_needs_no_recursion(self) -> None:
        count = 100_000
        assert count > 10 * sys.getrecursionlimit()
        steps = [WorkflowStep(f"s{i}", nothing, [f"s{i - 1}"] if i else ()) for i in range(count)]
        steps.reverse()

        tiers = parallel_groups(steps)

        assert tiers == [[f"s{i}"] for i in range(count)]

    def test_a_circle_of_100_000_steps_is_found(self) -> None:
        count = 100_000
        steps = [WorkflowStep(f"s{i}", nothing, [f"s{i - 1}"]) for i in range(1, count)]

        with pytest.raises(CyclicDependencyError) as refused:
            plan([WorkflowStep("s0", nothing, [f"s{count - 1}"]), *steps])

        assert refused.value.cycle == [*(f"s{i}" for i in range(count)), "s0"]

    def test_100_000_steps_with_300_000_dependencies_are_planned_in_linear_time(self) -> None:
        few, many = layered(20_000), layered(100_000)
        assert sum(len(step.depends_on) for step in many) == pytest.approx(300_000, rel=0.001)

        ratio = cpu_seconds(lambda: plan(many)) / cpu_seconds(lambda: plan(few))

        assert ratio < 5 * 2

    def test_one_step_of_100_000_dependencies_is_planned_in_linear_time(self) -> None:
        def fan(count: int) -> list[WorkflowStep]:
            middle = [WorkflowStep(f"s{i}", nothing) for i in range(count)]
            return [*middle, WorkflowStep("end", nothing, [step.name for step in middle])]

        few, many = fan(20_000), fan(100_000)

        ratio = cpu_seconds(lambda: plan(many)) / cpu_seconds(lambda: plan(few))

        assert ratio < 5 * 2


def traces() -> list[Any]:
    files = sorted(TRACES.rglob("*.json"))
    absent = pytest.mark.skip(reason="no workflow traces here; ASYNCFLOW_TRACES tells where")
    return [pytest.param(file, id=file.stem) for file in files] or [
        pytest.param(None, id="absent", marks=absent)
    ]


@pytest.mark.parametrize("file", traces())
def test_the_tiers_of_a_real_workflow_are_its_topological_generations(file: Path) -> None:
    tasks = json.loads(file.read_text())["workflow"]["specification"]["tasks"]
    edges = {task["id"]: task["parents"] for task in tasks}

    tiers = parallel_groups(steps_of(edges))

    expected = [set(tier) for tier in nx.topological_generations(oracle_of(edges))]
    assert [set(tier) for tier in tiers] == expected


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
    """Which argument comes from where: ``"<a"`` for the output of step a, ``"url"`` for an input.

    Steps a, b, c and "two words" stand before the step "load".
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
            # One with the name of an input receives that.
            (takes_a, [], ["a"], {"a": "a"}),
            (takes_a, ["b"], ["a", "c"], {"a": "a"}),
            (takes_a_and_b, ["b"], ["a"], {"a": "a", "b": "<b"}),
            # A mapping gives a dependency to a parameter of another name, and to no other one.
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
            # What a partial binds is left alone.
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
        ("action", "depends_on", "inputs", "parameter"),
        [
            (takes_a, [], [], "a"),
            (takes_a, ["b"], ["c"], "a"),
            (takes_a_and_b, {"a": "b"}, [], "b"),
            (takes_a_and_all, ["b"], [], "a"),
            (takes_a_and_all, {"x": "a"}, [], "a"),
        ],
    )
    def test_a_required_parameter_that_nothing_provides_is_refused(
        self, action: Callable[..., Any], depends_on: Any, inputs: list[str], parameter: str
    ) -> None:
        with pytest.raises(ValueError, match="nothing provides") as refused:
            binding_of(action, depends_on, inputs)

        assert str(refused.value) == (
            f"nothing provides parameter {parameter!r} of step 'load': it is neither "
            "a dependency of the step nor a run input"
        )

    def test_the_nearest_dependency_or_input_is_offered(self) -> None:
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

    def test_steps_without_parameters_share_one_empty_binding(self) -> None:
        bindings: list[Binding] = bind(plan(steps_of({"a": [], "b": ["a"]})))

        assert bindings == [(), ()]
        assert bindings[0] is bindings[1]

    def test_a_pickled_pipeline_is_bound_like_the_original(self) -> None:
        steps = [WorkflowStep("a", nothing), WorkflowStep("load", takes_a, ["a"])]

        back = pickle.loads(pickle.dumps(steps))

        assert bind(plan(back)) == bind(plan(steps)) == [(), (("a", 0),)]
