"""An async callable is refused where a plain one is needed: a coroutine is always true."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from asyncflow import Orchestrator, Retry, WorkflowStep
from asyncflow._core.arguments import is_async, reject_awaitable


async def ask(value: object = None) -> bool:
    return False


async def stream(value: object = None) -> AsyncIterator[bool]:
    yield False


class Asker:
    async def __call__(self, value: object = None) -> bool:
        return False

    async def method(self, value: object = None) -> bool:
        return False


class Streamer:
    async def __call__(self, value: object = None) -> AsyncIterator[bool]:
        yield False


class PlainAsker:
    def __init__(self) -> None:
        self.__dict__["__call__"] = ask  # Python looks for it in the class

    def __call__(self, value: object = None) -> bool:
        return False


ASYNC = [
    *(ask, stream, Asker(), Asker().method, Streamer()),
    *(functools.partial(ask, 1), functools.partial(functools.partial(Asker()), 1)),
]


@pytest.mark.parametrize("function", ASYNC)
class TestAsync:
    def test_is_recognised(self, function: Any) -> None:
        assert is_async(function)

    @pytest.mark.parametrize("name", ["on", "until", "random"])
    def test_is_refused_by_a_retry_policy(self, function: Any, name: str) -> None:
        with pytest.raises(TypeError) as refused:
            Retry(**{name: function})

        assert str(refused.value) == (
            f"Retry: {name} must be a plain function; what has to be awaited belongs in the action"
        )

    def test_is_refused_as_a_condition(self, function: Any) -> None:
        with pytest.raises(TypeError, match="step 'a': when must be a plain function"):
            WorkflowStep("a", ask, when=function)

    def test_is_refused_as_a_fallback(self, function: Any) -> None:
        with pytest.raises(TypeError, match="step 'a': fallback must be a plain function"):
            WorkflowStep("a", ask, fallback=function)

    def test_is_refused_as_an_observer(self, function: Any) -> None:
        with pytest.raises(TypeError, match="an observer must be a plain function"):
            Orchestrator([], observers=[function])


@pytest.mark.parametrize(
    "function",
    [print, PlainAsker(), PlainAsker, Asker, functools.partial(print), lambda: ask(), None, 1],
)
def test_a_plain_callable_is_not_recognised_as_async(function: Any) -> None:
    assert not is_async(function)


@pytest.mark.parametrize("answer", [True, 0, None, "no", [], ValueError])
def test_a_plain_answer_is_returned(answer: object) -> None:
    assert reject_awaitable("it", answer) is answer


async def test_an_awaitable_answer_is_refused() -> None:
    future = asyncio.get_running_loop().create_future()

    for make, kind in ((ask, "coroutine"), (lambda: future, "Future")):
        refuse: Callable[[], object] = make
        with pytest.raises(TypeError) as refused:
            reject_awaitable("it", refuse())

        assert str(refused.value) == (
            f"it returned {kind}, which would have to be awaited; it must be a plain function "
            "that returns its answer"
        )


def test_a_retry_condition_that_returns_a_coroutine_is_named_in_the_error() -> None:
    policy = Retry(on=lambda error: ask())  # type: ignore[arg-type,return-value]

    with pytest.raises(TypeError, match="Retry: on returned coroutine"):
        policy.answer(OSError())
