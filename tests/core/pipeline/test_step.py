"""A step validates its arguments at construction, and has the signature of its action."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import inspect
import math
import pickle
import sys
import types
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable
from decimal import Decimal
from typing import Any, Protocol

import pytest

from asyncflow import Pool, Retry, Signal, WorkflowStep
from asyncflow._core.arguments import NO_PARAMETERS, Signature


async def nothing() -> None:
    pass


async def takes_x(x: int) -> int:
    return x


async def takes_anything(x: int = 0, **others: object) -> object:
    return x, others


class Loader:
    async def load(self, table: str) -> str:
        return table

    @classmethod
    async def load_all(cls, tables: str) -> str:
        return tables

    @staticmethod
    async def unload(table: str) -> str:
        return table


class Callable_:
    async def __call__(self, table: str) -> str:
        return table


class CallableWithKeywords:
    """A callable with a ``keywords`` attribute that is not a partial."""

    keywords = ("table",)

    async def __call__(self, table: str) -> str:
        return table


async def rows() -> AsyncIterator[int]:
    yield 1


def positional_only(table: str, /) -> bool:
    return bool(table)


LIMITS = ("timeout_ms", "deadline_ms", "heartbeat_ms")
NOT_A_LIST = (
    "depends_on must be a list of step names or a mapping of parameter to step name, not {}"
)
NO_SECOND = (
    "retry has no effect, since max_retries is 1 and counts all attempts; give it 2 or more, or "
    "leave retry out"
)
NO_ITEMS = (
    "maps over 'rows', but its action has no parameter of that name that could receive the items; "
    "add one, or map it in depends_on"
)
NOT_PLAIN = (
    "when must be a plain function; if it has to await something, make that a step of its own and "
    "take its output here"
)
NOT_IN_LOOP = (
    "an async function runs in the event loop, and runs_in={!r} is for plain ones; leave it out, "
    "or make the action a plain function"
)
REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"action": None}, TypeError, "action must be an async callable, not NoneType"),
    ({"action": [nothing]}, TypeError, "action must be an async callable, not list"),
    ({"depends_on": "extract"}, TypeError, NOT_A_LIST.format("str") + "; write ['extract']"),
    ({"depends_on": nothing}, TypeError, NOT_A_LIST.format("function")),
    ({"depends_on": ["a", None]}, TypeError, "depends_on must hold names of steps, not NoneType"),
    ({"depends_on": {"x": 1}}, TypeError, "depends_on must hold names of steps, not int"),
    (
        {"depends_on": [WorkflowStep("extract", nothing)]},
        TypeError,
        "depends_on must hold names of steps, not WorkflowStep",
    ),
    (
        {"depends_on": {1: "extract"}},
        TypeError,
        "depends_on must map names of parameters to names of steps, not (1, 'extract')",
    ),
    (
        {"action": takes_x, "depends_on": {"xx": "a"}},
        ValueError,
        "maps parameter 'xx' to 'a', but its action has no such parameter (did you mean 'x'?)",
    ),
    (
        {"action": takes_x, "depends_on": ["a"], "parameters": [("x", "b")]},
        ValueError,
        "maps parameter 'x' to 'b', which is not one of its dependencies",
    ),
    ({"max_retries": True}, TypeError, "max_retries must be an int, not bool"),
    ({"max_retries": 2.0}, TypeError, "max_retries must be an int, not float"),
    (
        {"max_retries": 0},
        ValueError,
        "max_retries must be at least 1, not 0; it counts all attempts, the first one too",
    ),
    *(
        ({limit: value}, TypeError, f"{limit} must be a number or None, not {type(value).__name__}")
        for limit in LIMITS
        for value in (True, Decimal(1))
    ),
    *(
        (
            {limit: value},
            ValueError,
            f"{limit} must be finite and above 0, not {value}; use None for no limit",
        )
        for limit in LIMITS
        # The last one is above 0 in milliseconds, but not in seconds.
        for value in (0, -0.5, math.nan, math.inf, 10**400, 5e-324)
    ),
    *(
        (
            {"retry": value},
            TypeError,
            f"retry must be a number of milliseconds or a Retry, not {type(value).__name__}",
        )
        for value in (None, True, Decimal(1))
    ),
    *(
        ({"retry": value}, ValueError, f"retry must be finite and at least 0 ms, not {value}")
        for value in (-1e-300, math.nan, math.inf, 10**400)
    ),
    ({"retry": 100}, ValueError, NO_SECOND),
    ({"retry": Retry()}, ValueError, NO_SECOND),
    ({"pool": True}, TypeError, "pool must be a Pool or None, not bool"),
    (
        {"pool": 3},
        TypeError,
        "pool must be a Pool or None, not int; make one, Pool(3), and share it",
    ),
    ({"action": takes_x, "depends_on": ["x"], "map_over": "rows"}, ValueError, NO_ITEMS),
    ({"depends_on": ["rows"], "map_over": "rows"}, ValueError, NO_ITEMS),
    ({"action": takes_x, "depends_on": ["rows"], "map_over": "rows"}, ValueError, NO_ITEMS),
    (
        {
            "action": takes_x,
            "depends_on": ["other", "rows"],
            "map_over": "rows",
            "parameters": [("x", "other")],
        },
        ValueError,
        NO_ITEMS,
    ),
    ({"when": True}, TypeError, "when must be callable, not bool"),
    *(
        ({"when": when}, TypeError, NOT_PLAIN)
        for when in (nothing, functools.partial(takes_x, 1), Loader().load, rows)
    ),
    (
        {"when": positional_only},
        TypeError,
        "parameter 'table' of its condition is positional-only, but conditions get their data by "
        "parameter name; remove the '/'",
    ),
    (
        {"run_if": "Failure"},
        ValueError,
        "run_if must be one of 'success', 'unless_failed', 'failure', 'always', not 'Failure'",
    ),
    (
        {"runs_in": None},
        ValueError,
        "runs_in must be one of 'loop', 'thread', 'process', not None",
    ),
    ({"runs_in": "thread"}, TypeError, NOT_IN_LOOP.format("thread")),
    (
        {"runs_in": "process", "action": functools.partial(takes_x, 1)},
        TypeError,
        NOT_IN_LOOP.format("process"),
    ),
    (
        {"fallback": "nothing"},
        TypeError,
        "fallback must be a function of the error that returns the output, not str; for a value, "
        "write a lambda",
    ),
    ({"version": 2}, TypeError, "version must be a str, not int; write version='2'"),
    ({"version": None}, TypeError, "version must be a str, not NoneType"),
    ({"secret": 1}, TypeError, "secret must be True or False, not 1"),
    ({"max_crashes": True}, TypeError, "max_crashes must be an int, not bool"),
    ({"max_crashes": -1}, ValueError, "max_crashes must be at least 0, not -1"),
]


@pytest.mark.parametrize(("options", "kind", "message"), REFUSED)
def test_an_argument_that_makes_no_step_is_refused(
    options: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind) as refused:
        WorkflowStep(**{"name": "load", "action": nothing, **options})

    subject = "step 'load' " if message.startswith("maps ") else "step 'load': "
    assert str(refused.value) == subject + message


@pytest.mark.parametrize(
    ("name", "message"),
    [(1, "a step's name must be a str, not int"), ("", "a step's name must not be empty")],
)
def test_a_name_that_names_nothing_is_refused(name: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError)) as refused:
        WorkflowStep(name, nothing)

    assert str(refused.value) == message


class TestAction:
    @pytest.mark.parametrize(
        "action",
        [
            nothing,
            functools.partial(takes_x, 1),
            functools.partial(takes_x, x=1),
            functools.partial(functools.partial(takes_anything, y=1), z=2),
            functools.partial(functools.partial(takes_x), x=1),
            Loader().load,
            Loader.load_all,
            Loader.unload,
            Callable_(),
            functools.partial(Callable_(), table="t"),
            lambda: nothing(),
            lambda: asyncio.ensure_future(nothing()),
            asyncio.sleep,
        ],
    )
    def test_may_be_any_callable_that_returns_an_awaitable(
        self, action: Callable[..., Any]
    ) -> None:
        step = WorkflowStep("load", action)

        assert step.action is action or step.action == action

    def test_must_not_be_a_coroutine_object(self, recwarn: pytest.WarningsRecorder) -> None:
        coroutine = nothing()

        with pytest.raises(TypeError) as refused:
            WorkflowStep("load", coroutine)  # type: ignore[arg-type]

        assert str(refused.value) == (
            "step 'load': action is a coroutine object, which can run only once; pass the "
            "function itself (nothing, without the call)"
        )
        assert inspect.getcoroutinestate(coroutine) == inspect.CORO_CLOSED
        del coroutine
        assert not recwarn.list

    async def test_must_not_be_a_task_or_a_future(self) -> None:
        task = asyncio.ensure_future(nothing())

        with pytest.raises(TypeError, match="must be an async callable, not Task"):
            WorkflowStep("load", task)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="must be an async callable, not Future"):
            WorkflowStep("load", asyncio.Future())  # type: ignore[arg-type]

        await task

    def test_must_not_be_an_async_generator_function(self) -> None:
        async def rows() -> AsyncIterator[int]:
            yield 1

        for action in (rows, functools.partial(rows)):
            with pytest.raises(TypeError) as refused:
                WorkflowStep("load", action)  # type: ignore[arg-type]
            with pytest.raises(TypeError, match="async generator function"):
                WorkflowStep("load", action, runs_in="thread")

            assert str(refused.value) == (
                "step 'load': action is an async generator function, which cannot be awaited; "
                "pass an async function that returns the async iterator: its items stream into a "
                "step that maps over it"
            )

    def test_must_not_be_a_plain_function_that_returns_nothing_to_await(self) -> None:
        def count(rows: list[int]) -> int:
            return len(rows)

        def save() -> None: ...

        def maybe() -> int | None: ...

        def listed() -> list[int]:
            return []

        def iterated() -> AsyncIterator[int]:
            return rows()

        def generated():  # type: ignore[no-untyped-def]
            yield 1

        class Saver:
            def __call__(self) -> None: ...

            def method(self) -> bytes:
                return b""

        for action, returned in (
            (count, "int"),
            (save, "None"),
            (maybe, "int | None"),
            (listed, "list[int]"),
            (iterated, "collections.abc.AsyncIterator[int]"),
            (generated, "a generator"),
            (functools.partial(count, rows=[]), "int"),
            (Saver(), "None"),
            (Saver().method, "bytes"),
        ):
            with pytest.raises(TypeError) as refused:
                WorkflowStep("load", action)

            assert str(refused.value) == (
                f"step 'load': action is a plain function that returns {returned}, which cannot be "
                "awaited; make it 'async def', or say runs_in=\"thread\""
            )
            WorkflowStep("load", action, runs_in="thread")

    def test_may_be_a_plain_function_that_may_return_an_awaitable(self) -> None:
        def wrapped(function: Any) -> Any:
            @functools.wraps(function)
            def call(*args: Any) -> Any:
                return function(*args)

            return call

        @wrapped
        async def count() -> int:
            return 1

        def awaitable() -> Awaitable[int]:
            return count()  # type: ignore[no-any-return]

        def future() -> asyncio.Future[None]: ...

        def anything() -> object: ...

        def hashable() -> Hashable: ...

        def unknown() -> "Missing":  # type: ignore[name-defined]  # noqa: F821, UP037
            ...

        def either() -> Awaitable[int] | int: ...

        class Sized(Protocol):
            size: int

        def sized() -> Sized: ...

        @types.coroutine
        def old() -> Any:
            yield

        for action in (count, awaitable, future, anything, hashable, unknown, either, sized, old):
            WorkflowStep("load", action)


class TestLimits:
    def test_is_30_s_per_attempt_and_unlimited_otherwise_by_default(self) -> None:
        step = WorkflowStep("load", nothing)

        assert (step.timeout_ms, step.deadline_ms, step.heartbeat_ms) == (30_000, None, None)


class TestRetry:
    @pytest.mark.parametrize("value", [0, 0.0, 1e-300, 1, 60_000, sys.float_info.max])
    def test_a_number_is_a_policy_of_constant_delays(self, value: float) -> None:
        policy = WorkflowStep("load", nothing, max_retries=2, retry=value).retry

        assert [policy.backoff_ms(attempt, float) for attempt in (1, 2, 99)] == [value] * 3


def plain() -> None: ...


class TestMapOver:
    @pytest.mark.parametrize(
        ("action", "depends_on"),
        [
            (takes_x, ["x"]),
            (takes_x, {"x": "x"}),
            (takes_anything, ["x"]),
            (lambda **others: nothing(), ["x"]),
        ],
    )
    def test_is_one_of_the_dependencies(self, action: Any, depends_on: Any) -> None:
        assert WorkflowStep("load", action, depends_on, map_over="x").map_over == "x"


class TestWhen:
    @pytest.mark.parametrize("when", [bool, lambda: True, functools.partial(max, 1, 2)])
    def test_may_be_any_plain_callable(self, when: Any) -> None:
        assert WorkflowStep("load", nothing, when=when).when == when

    def test_has_a_signature_of_its_own(self) -> None:
        step = WorkflowStep("load", takes_x, ["x"], when=lambda x, y=1: x)

        assert step.condition == signature("x", "y", required="x")
        assert step.signature == signature("x", required="x")
        assert WorkflowStep("load", takes_x, ["x"]).condition is NO_PARAMETERS


class TestRunIf:
    @pytest.mark.parametrize(
        ("run_if", "is_cleanup"), [("success", False), ("failure", True), ("always", True)]
    )
    def test_tells_which_step_is_a_clean_up_step(self, run_if: Any, is_cleanup: bool) -> None:
        assert WorkflowStep("load", nothing, run_if=run_if).is_cleanup is is_cleanup


class TestRunsIn:
    def test_accepts_a_lambda_in_a_thread_but_not_in_a_process(self) -> None:
        action = lambda: 1  # noqa: E731

        assert WorkflowStep("load", action, runs_in="thread").action is action
        with pytest.raises(TypeError) as refused:
            WorkflowStep("load", action, runs_in="process")

        assert str(refused.value).startswith(
            "step 'load': its action cannot be sent to another process; use a function that is "
            "defined at the top of a module ("
        )
        assert str(refused.value).endswith(f"({refused.value.__cause__})")

    def test_reports_any_error_that_pickling_raises(self) -> None:
        class Unpicklable:
            def __call__(self) -> None: ...

            def __reduce__(self) -> str:
                raise RuntimeError("no")

        with pytest.raises(TypeError, match=r"defined at the top of a module \(no\)$"):
            WorkflowStep("load", Unpicklable(), runs_in="process")


class TestGiven:
    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"timeout_ms": 5},
            {"timeout_ms": None},
            {"run_if": "success", "runs_in": "loop", "engine": "local", "secret": False},
            {"run_if": "unless_failed"},
        ],
    )
    def test_one_attempt_with_a_limit_is_what_every_step_has(self, options: Any) -> None:
        assert WorkflowStep("load", nothing, **options).given == frozenset()

    @pytest.mark.parametrize(
        ("argument", "options"),
        [
            ("deadline_ms", {"deadline_ms": 5}),
            ("heartbeat_ms", {"heartbeat_ms": 5}),
            ("run_if", {"run_if": "always"}),
            ("runs_in", {"runs_in": "thread", "action": plain, "depends_on": []}),
            ("max_retries", {"max_retries": 3, "retry": 7}),
            ("until", {"max_retries": 2, "retry": Retry(until=bool)}),
            ("pool", {"pool": Pool(1)}),
            ("when", {"when": bool}),
            ("map_over", {"map_over": "x"}),
            ("fallback", {"fallback": repr}),
            ("cache_ms", {"cache_ms": 0}),
            ("secret", {"secret": True}),
            ("signal", {"action": Signal(int)}),
        ],
    )
    def test_all_else_is_found_by_its_argument(self, argument: str, options: Any) -> None:
        step = WorkflowStep(**{"name": "load", "action": takes_x, "depends_on": ["x"], **options})

        assert step.given == {argument} | ({"max_retries"} if argument == "until" else set())


class TestDependsOn:
    def test_must_not_map_a_parameter_that_a_partial_binds(self) -> None:
        for action in (
            functools.partial(takes_x, x=1),
            functools.partial(takes_anything, x=1),
            functools.partial(takes_anything, 1),
        ):
            with pytest.raises(ValueError, match="no such parameter"):
                WorkflowStep("load", action, {"x": "extract"})


class TestData:
    def test_a_step_is_frozen(self) -> None:
        step = WorkflowStep("load", nothing)

        for field in dataclasses.fields(step):
            with pytest.raises(dataclasses.FrozenInstanceError):
                setattr(step, field.name, None)
        with pytest.raises((dataclasses.FrozenInstanceError, TypeError)):
            step.anything = 1  # type: ignore[attr-defined]
        assert not hasattr(step, "__dict__")

    def test_replace_returns_another_step_that_is_validated_again(self) -> None:
        step = WorkflowStep("load", takes_x, {"x": "a"}, max_retries=3, timeout_ms=5)

        other = dataclasses.replace(step, name="store", max_retries=4)

        assert (other.name, other.max_retries) == ("store", 4)
        assert (other.depends_on, other.parameters, other.timeout_ms) == (
            step.depends_on,
            step.parameters,
            step.timeout_ms,
        )
        assert step.name == "load"
        with pytest.raises(ValueError, match="max_retries"):
            dataclasses.replace(step, max_retries=0)

    def test_a_pickled_step_comes_back_equal(self) -> None:
        for step in (
            WorkflowStep("load", nothing),
            WorkflowStep("load", takes_x, {"x": "a"}, max_retries=3, timeout_ms=None),
        ):
            for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
                back = pickle.loads(pickle.dumps(step, protocol))

                assert back == step
                assert back.signature == step.signature

    def test_equal_arguments_make_equal_steps(self) -> None:
        step = WorkflowStep("load", takes_x, {"x": "a"})

        assert step == WorkflowStep("load", takes_x, {"x": "a"})
        assert hash(step) == hash(WorkflowStep("load", takes_x, {"x": "a"}))
        assert step == WorkflowStep("load", takes_x, ["a"], parameters=[("x", "a")])
        for change in (
            {"name": "other"},
            {"action": takes_anything},
            {"parameters": ()},
            {"max_retries": 2},
            {"timeout_ms": 1},
            {"max_retries": 2, "retry": 1},
            {"deadline_ms": 1},
            {"heartbeat_ms": 1},
            {"pool": Pool(1)},
            {"map_over": "a"},
            {"when": bool},
            {"run_if": "always"},
        ):
            assert dataclasses.replace(step, **change) != step  # type: ignore[arg-type]
        assert step != "load"

    def test_the_repr_reads_like_the_call_of_the_constructor(self) -> None:
        text = repr(WorkflowStep("load", nothing, ["a"], max_retries=2, timeout_ms=5))

        assert text.startswith("WorkflowStep(name='load', action=<function nothing")
        assert "depends_on=('a',), max_retries=2, timeout_ms=5, retry=Retry(" in text


def typed(function: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    @functools.wraps(function)
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        return await function(*args, **kwargs)

    return wrapper


async def defaults(a: int, b: int = 1, *, c: int, d: int = 2) -> None: ...


async def varied(a: int, *rest: int, **others: int) -> None: ...


async def with_optional_positional(a: int = 1, /, b: int = 2) -> None: ...


async def keyword_only(*, a: int) -> None: ...


async def only_varargs(*rest: int) -> None: ...


async def only_kwargs(**others: int) -> None: ...


def signature(
    *names: str, required: str = "", takes_any: bool = False, bound: str = ""
) -> Signature:
    return Signature(names, frozenset(required.split()), takes_any, frozenset(bound.split()))


class TestSignature:
    @pytest.mark.parametrize(
        ("action", "expected"),
        [
            (nothing, NO_PARAMETERS),
            (takes_x, signature("x", required="x")),
            (defaults, signature("a", "b", "c", "d", required="a c")),
            (keyword_only, signature("a", required="a")),
            (only_varargs, NO_PARAMETERS),
            (only_kwargs, signature(takes_any=True)),
            (varied, signature("a", required="a", takes_any=True)),
            (with_optional_positional, signature("b")),
            (typed(defaults), signature("a", "b", "c", "d", required="a c")),
            (typed(nothing), NO_PARAMETERS),
            (Loader().load, signature("table", required="table")),
            (Loader.load_all, signature("tables", required="tables")),
            (Loader.unload, signature("table", required="table")),
            (Callable_(), signature("table", required="table")),
            (CallableWithKeywords(), signature("table", required="table")),
            (functools.partial(takes_x, 1), NO_PARAMETERS),
            (functools.partial(takes_x, x=1), NO_PARAMETERS),
            (functools.partial(defaults, 1), signature("b", "c", "d", required="c", bound="a")),
            (functools.partial(defaults, c=1), signature("a", "b", "d", required="a", bound="c")),
            (functools.partial(only_kwargs, y=1), signature(takes_any=True, bound="y")),
            (functools.partial(takes_anything, 1), signature(takes_any=True, bound="x")),
            (functools.partial(takes_anything, x=1), signature(takes_any=True, bound="x")),
            (lambda a, b=1: None, signature("a", "b", required="a")),
        ],
    )
    def test_lists_the_parameters_that_can_be_bound(
        self, action: Callable[..., Any], expected: Signature
    ) -> None:
        assert WorkflowStep("load", action).signature == expected

    @pytest.mark.parametrize("with_others", [False, True])
    def test_refuses_a_required_positional_only_parameter(self, with_others: bool) -> None:
        async def only(table: str, /) -> None: ...

        async def mixed(table: str, /, other: int = 1, **rest: int) -> None: ...

        with pytest.raises(TypeError) as refused:
            WorkflowStep("load", mixed if with_others else only)

        assert str(refused.value) == (
            "step 'load': parameter 'table' of its action is positional-only, but actions get "
            "their data by parameter name; remove the '/'"
        )

    def test_accepts_a_positional_only_parameter_that_a_partial_binds(self) -> None:
        async def load(table: str, /, limit: int) -> None: ...

        assert WorkflowStep("load", functools.partial(load, "t")).signature.names == ("limit",)

    def test_is_empty_for_a_callable_without_a_signature(self) -> None:
        with pytest.raises(ValueError, match="signature"):
            inspect.signature(dict)

        assert WorkflowStep("load", dict).signature is NO_PARAMETERS  # type: ignore[arg-type]

    def test_does_not_evaluate_annotations(self) -> None:
        async def load(table: NotDefinedAnywhere) -> None: ...  # type: ignore[name-defined]  # noqa: F821

        assert WorkflowStep("load", load).signature.names == ("table",)


# Of the mutants that mutmut makes of `_core.pipeline.step` and `_core.arguments`, these survive,
# since they differ in nothing:
#
# - `check_limit` with `0 <=` for `0 <`: 0 seconds are refused anyway; or with 1001 for 1000: no
#   float lies between the two limits below which a time becomes 0 seconds.
# - `signature_of` that uses its fast path for functions without parameters less often: `inspect`
#   gives the same answer.
