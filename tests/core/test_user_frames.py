"""The location of a suspended coroutine is its innermost await in user code."""

from __future__ import annotations

import asyncio
import inspect
import json
import sys
import threading
import types
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import dropwhile
from typing import Any

import pytest

from asyncflow._core.tracebacks import awaiting_location, user_location


@types.coroutine
def pause() -> Generator[None, None, None]:
    yield  # innermost


async def inner() -> None:
    await pause()


async def outer() -> None:
    await inner()


class Waiting:
    def __await__(self) -> Iterator[None]:
        yield  # in __await__


@contextmanager
def suspended(coroutine: Any) -> Iterator[Any]:
    coroutine.send(None)
    try:
        yield coroutine
    finally:
        coroutine.close()


def place(function: Callable[..., Any], text: str) -> str:
    lines, first = inspect.getsourcelines(function)
    number = next(first + offset for offset, line in enumerate(lines) if text in line)
    return f"{__file__}:{number} in {function.__qualname__}"


def test_the_innermost_generator_is_named() -> None:
    with suspended(outer()) as coroutine:
        assert awaiting_location(coroutine) == place(pause, "# innermost")


def test_the_await_method_of_a_user_awaitable_is_named() -> None:
    async def action() -> None:
        await Waiting()

    with suspended(action()) as coroutine:
        assert awaiting_location(coroutine) == place(Waiting.__await__, "# in __await__")


async def test_a_user_frame_is_preferred_to_a_library_frame() -> None:
    async def action() -> None:
        await asyncio.Event().wait()  # here

    task = asyncio.ensure_future(action())
    await asyncio.sleep(0)

    assert awaiting_location(task.get_coro()) == place(action, "# here")

    task.cancel()
    await asyncio.wait([task])


async def test_a_library_frame_is_named_if_there_is_no_other() -> None:
    task = asyncio.ensure_future(asyncio.Event().wait())
    await asyncio.sleep(0)

    assert awaiting_location(task.get_coro()).endswith("in Event.wait")

    task.cancel()
    await asyncio.wait([task])


def test_a_coroutine_that_loops_over_an_async_generator_is_named_at_its_loop() -> None:
    async def rows() -> AsyncIterator[int]:
        await pause()
        yield 1

    async def action(source: AsyncIterator[int]) -> None:
        async for _ in source:  # here
            pass

    with suspended(action(rows())) as coroutine:
        assert awaiting_location(coroutine) == place(action, "# here")


def test_an_async_generator_is_followed() -> None:
    async def rows() -> AsyncIterator[int]:
        await inner()
        yield 1

    source = rows()
    step: Awaitable[int] = anext(source)
    step.__await__().__next__()

    assert awaiting_location(source) == place(pause, "# innermost")


async def test_an_async_generator_that_waits_in_a_library_is_named_itself() -> None:
    async def rows() -> AsyncIterator[int]:
        await asyncio.sleep(0)  # here
        yield 1

    source = rows()
    step: Awaitable[int] = anext(source)
    step.__await__().__next__()

    assert awaiting_location(source) == place(rows, "# here")


def test_a_generator_is_followed_to_the_one_it_delegates_to() -> None:
    @types.coroutine
    def delegate() -> Generator[None, None, None]:
        yield from pause()

    async def action() -> None:
        await delegate()

    with suspended(action()) as coroutine:
        assert awaiting_location(coroutine) == place(pause, "# innermost")


class Opaque:
    """An awaitable without a frame."""

    def __await__(self) -> Iterator[None]:
        return iter([None])


def function_of(module: str | None) -> Callable[[object], Any]:
    """Return an async function that appears to belong to the module, or to none."""
    namespace: dict[str, Any] = {} if module is None else {"__name__": module}
    exec("async def wait(awaitable): await awaitable", namespace)
    return namespace["wait"]  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("module", "is_named"),
    [
        ("asyncio", False),
        ("asyncio.locks", False),
        ("anyio._backends._asyncio", False),
        ("asyncflow._kernel.run", False),
        ("asyncio_extras", True),
        ("app.asyncio", True),
        (None, True),
    ],
)
def test_only_asyncio_anyio_and_asyncflow_count_as_libraries(
    module: str | None, is_named: bool
) -> None:
    wait = function_of(module)

    async def action() -> None:
        await wait(Opaque())  # here

    with suspended(action()) as coroutine:
        line = awaiting_location(coroutine)

    assert line == ("<string>:1 in wait" if is_named else place(action, "# here"))


def test_an_object_that_is_not_suspended_waits_at_an_unknown_place() -> None:
    coroutine = inner()
    coroutine.close()

    assert awaiting_location(coroutine) == "an unknown place"
    assert awaiting_location(None) == "an unknown place"
    assert awaiting_location("anything") == "an unknown place"


def frames_of(thread: int) -> Iterator[types.FrameType]:
    frame = sys._current_frames().get(thread)
    while frame is not None:
        yield frame
        frame = frame.f_back


def calls_the_library(call: Callable[[str], object]) -> None:
    json.loads("1", parse_int=call)  # here


def test_a_user_frame_is_preferred_to_a_standard_library_frame() -> None:
    lines = list[str]()

    def called_back(_: str) -> None:
        inside = list(frames_of(threading.get_ident()))
        in_json = dropwhile(lambda frame: frame.f_code.co_filename == __file__, inside)
        lines.append(user_location(in_json))

    calls_the_library(called_back)

    assert lines == [place(calls_the_library, "# here")]


def test_the_innermost_frame_is_named_if_there_is_no_user_frame() -> None:
    release = threading.Event()
    thread = threading.Thread(target=release.wait)
    thread.start()
    try:
        assert thread.ident is not None
        assert user_location(frames_of(thread.ident)).split(" in ")[1] in {
            "Condition.wait",
            "Event.wait",
        }
    finally:
        release.set()
        thread.join()


def test_a_line_typed_into_a_shell_is_user_code() -> None:
    code = "async def typed(wait):\n    await wait()"
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(code, "<stdin>", "exec"), names)

    async def outer(waits: Any) -> None:
        await waits

    asleep = names["typed"](partial(asyncio.sleep, 0))
    with suspended(outer(asleep)) as coroutine:
        assert awaiting_location(coroutine) == "<stdin>:2 in typed"


# Of the mutants that mutmut makes of `awaiting_location`, one survives: it replaces the name of a
# module without a name, and neither name is a library. One never ends.
