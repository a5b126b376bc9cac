"""Outputs and inputs have the types that the user's functions are annotated with, or Any."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Coroutine, Generator
from functools import partial
from types import GenericAlias
from typing import Any, get_type_hints

import pytest

from asyncflow import Pipeline, WorkflowStep, after, each
from asyncflow._core.pipeline.annotations import input_types, output_type

USER_ID = int


async def plain() -> int: ...
async def bound(x: str, y: int) -> list[str]: ...
async def unannotated(): ...
async def half(x: str, y): ...
async def nothing() -> None: ...
async def by_alias() -> USER_ID: ...
async def unresolvable(x: Missing) -> Missing: ...  # noqa: F821
async def half_known(x: Missing, y: list[int]) -> list[USER_ID]: ...  # noqa: F821
def some_awaitable() -> Awaitable[int]: ...
def bare_awaitable() -> Awaitable: ...
def some_coroutine() -> Coroutine[Any, Any, int]: ...
def some_future() -> asyncio.Future[int]: ...
def some_task() -> asyncio.Task[int]: ...
def no_awaitable() -> object: ...
def text() -> dict[str, int]: ...


class OwnAwaitable(Awaitable[int]):
    def __await__(self) -> Generator[Any, None, int]: ...


def own_awaitable() -> OwnAwaitable: ...


class Callable:
    async def __call__(self, x: int) -> bytes: ...

    async def method(self) -> float: ...

    @classmethod
    async def of_class(cls) -> complex: ...

    @staticmethod
    async def static() -> str: ...


@pytest.mark.parametrize(
    ("action", "hint"),
    [
        (plain, int),
        (partial(bound, "a"), list[str]),
        (partial(partial(bound, "a"), y=1), list[str]),
        (Callable(), bytes),
        (partial(Callable(), 1), bytes),
        (Callable().method, float),
        (Callable.of_class, complex),
        (Callable.static, str),
        (nothing, type(None)),
        (by_alias, int),
        (unannotated, Any),
        (half, Any),
        (unresolvable, Any),
        (half_known, list[int]),
        (some_awaitable, int),
        (bare_awaitable, Any),
        (some_coroutine, int),
        (some_future, int),
        (some_task, int),
        (no_awaitable, Any),
        (own_awaitable, Any),
        (lambda: plain(), Any),
    ],
)
def test_the_output_type_is_the_awaited_return_type_of_the_action(action, hint):
    assert output_type(WorkflowStep("a", action)) == hint


@pytest.mark.parametrize(("runs_in", "hint"), [("thread", dict[str, int])])
def test_the_output_type_of_a_plain_function_is_its_return_type(runs_in, hint):
    assert output_type(WorkflowStep("a", text, runs_in=runs_in)) == hint


class GeneratorLike(Generator[Any, Any, Any], Awaitable[Any]):
    """An awaitable generator, with its three type parameters."""

    __class_getitem__ = classmethod(GenericAlias)


def generator_like() -> GeneratorLike[Any, None, int]: ...


def test_the_output_type_of_an_awaitable_generator_is_its_return_type():
    assert output_type(WorkflowStep("a", generator_like)) is int


def test_the_output_type_of_a_mapped_step_is_the_type_of_an_item():
    async def act(xs: int) -> str: ...
    async def xs() -> list[int]: ...

    assert output_type(WorkflowStep("a", act, ["xs"], map_over="xs")) is str


class TestInputs:
    def test_an_input_has_the_type_of_the_first_annotated_parameter(self):
        async def first(x, y): ...
        async def second(x: int, z: str): ...
        async def third(x: float): ...

        steps = tuple(WorkflowStep(f.__name__, f) for f in (first, second, third))

        assert input_types(steps, {"x": 1, "y": 2, "w": 3}) == {"x": int, "y": Any, "w": Any}

    def test_the_inputs_of_all_steps_are_typed(self):
        async def first(x: int): ...
        async def second(y: str): ...

        steps = (WorkflowStep("first", first), WorkflowStep("second", second))

        assert input_types(steps, {"x": 1, "y": "a"}) == {"x": int, "y": str}

    def test_annotations_are_not_resolved_without_inputs(self):
        assert input_types((WorkflowStep("a", unresolvable),), {}) == {}


class TestNestedPipelines:
    def included(self, *functions):
        inner, outer = Pipeline("inner"), Pipeline("outer")
        for function in functions:
            inner.step(function)
        outer.include(inner)
        return next(step for step in outer.steps if step.name == "inner")

    def test_a_single_last_step_gives_its_own_type(self):
        async def one() -> list[int]: ...
        async def two(one: list[int] = after(one)) -> int: ...

        assert output_type(self.included(one, two)) is int

    def test_a_mapped_last_step_gives_a_list(self):
        async def one() -> list[int]: ...
        async def two(one: int = each(one)) -> str: ...

        assert output_type(self.included(one, two)) == list[str]

    def test_several_last_steps_give_a_mapping_by_name(self):
        async def one() -> int: ...
        async def two() -> str: ...

        hint = output_type(self.included(one, two))

        assert get_type_hints(hint) == {"one": int, "two": str}
