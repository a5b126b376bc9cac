"""Checks of what users pass: numbers and callables, and the data that a callable asks for.

Rules:

1. A message begins with the argument and ends with the way out.
2. A number is one that a timer can work with: no bool, finite, in its range.
3. A callable gets its data by parameter name. Where a plain function is due, an async one is
   refused: nothing would await what it returns.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from functools import partial, wraps
from types import CoroutineType, FunctionType, MethodType, NoneType, UnionType
from typing import Any, TypeAlias, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from asyncflow._core.errors import ActionNotAwaitableError, OutputNotAwaitedError
from asyncflow._core.record import record
from asyncflow._core.text import safe_text

if sys.version_info >= (3, 14):
    from annotationlib import Format

AttributeValue: TypeAlias = str | int | float | bool
"""What an attribute of a run may be. Types count: ``1``, ``1.0``, ``True`` and ``"1"`` differ."""


def check_text(what: str, value: object) -> None:
    """Check that a value is a text."""
    if not isinstance(value, str):
        raise TypeError(f"{what} must be a str, not {type(value).__name__}")


def check_limit(what: str, limit_ms: object) -> None:
    """Check a limit in milliseconds: ``None``, or finite and above 0."""
    if limit_ms is None:
        return
    number = _checked_type(what, limit_ms, "a number or None")
    # A NaN would break the timers of every other step of the loop: gh-105331.
    # An integer above all floats is not infinite, but no timer can be set to it.
    if not 0 < number <= sys.float_info.max or number / 1000 == 0:
        raise ValueError(
            f"{what} must be finite and above 0, not {safe_text(str, number)}; "
            "use None for no limit"
        )


def check_number(
    what: str, value: object, at_least: float, *, kind: str = "a number", unit: str = ""
) -> None:
    """Check a number: finite and at least ``at_least``.

    ``what`` begins the messages, ``kind`` says what the number must be, and ``unit`` what it
    counts, with a space before.
    """
    number = _checked_type(what, value, kind)
    if not at_least <= number <= sys.float_info.max:
        raise ValueError(
            f"{what} must be finite and at least {at_least:g}{unit}, not {safe_text(str, number)}"
        )


def check_count(
    what: str,
    value: object,
    at_least: int,
    *,
    kind: str = "an int",
    hint: str = "",
    at_most: int | None = None,
) -> None:
    """Check a count: an integer, at least ``at_least`` and at most ``at_most``.

    ``what`` begins the messages, ``kind`` says what the count must be, and ``hint`` ends the
    message if it is too small.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{what} must be {kind}, not {type(value).__name__}")
    if value < at_least:
        shown = safe_text(str, value)
        raise ValueError(f"{what} must be at least {at_least}, not {shown}{hint}")
    if at_most is not None and value > at_most:
        raise ValueError(f"{what} must be at most {at_most}, not {safe_text(str, value)}")


def check_names(what: str, names: Any, of: str) -> tuple[str, ...]:
    """Return names that a user gives as an iterable of texts.

    ``what`` is the argument, for the error, and ``of`` says what has these names, as in ``"step"``.
    """
    if isinstance(names, str) or not isinstance(names, Iterable):
        raise TypeError(f"{what} must be a list of {of} names; put a single one in a list")
    copied = tuple(names)
    for name in copied:
        if not isinstance(name, str):
            raise TypeError(f"{what} must hold names of {of}s, not {type(name).__name__}")
    return copied


LEVELS = {
    "DEBUG": 10,
    "INFO": 20,
    "WARNING": 30,
    "ERROR": 40,
    "CRITICAL": 50,
}
"""The levels of log records, as `logging` has them."""


def parse_level(what: str, level: object) -> int:
    """Return a level of log records, given as a number or as one of the names, in any case."""
    if isinstance(level, str):
        known = LEVELS.get(level.upper())
        if known is None:
            raise ValueError(
                f"{what} must be a number or one of {', '.join(LEVELS)}, not "
                f"{safe_text(repr, level)}"
            )
        return known
    kind = f"a number or one of {', '.join(LEVELS)}"
    check_count(what, level, 0, kind=kind)
    assert isinstance(level, int)
    return level


def _checked_type(what: str, value: object, kind: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{what} must be {kind}, not {type(value).__name__}")
    return value


T = TypeVar("T")


def is_async(function: object) -> bool:
    """Whether calling this makes a coroutine or an async generator, as far as its code shows."""
    while isinstance(function, partial):
        function = function.func
    # An instance is called through its class; an attribute ``__call__`` of its own does not count.
    return _is_written_async(function) or _is_written_async(type(function).__call__)


def _is_written_async(function: object) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)


def unawaitable_result(action: Callable[..., Any]) -> str:
    """Return what a plain action returns that can't be awaited, in words; empty if none can tell.

    What has no annotation can't be told, nor a wrapper, whose annotation is that of the function
    in it: it may hand on the coroutine.
    """
    function: Any = function_of(action)
    if not isinstance(function, FunctionType):
        function = type(function).__call__
    if not isinstance(function, FunctionType) or hasattr(function, "__wrapped__"):
        return ""
    flags = function.__code__.co_flags
    if flags & inspect.CO_GENERATOR and not flags & inspect.CO_ITERABLE_COROUTINE:
        return "a generator"
    if flags & _ASYNC or "return" not in getattr(function, "__annotations__", ()):
        return ""
    try:
        annotation = get_type_hints(function)["return"]
    except Exception:  # a name that exists for type checkers only, or anything else
        return ""
    if not _is_never_awaitable(annotation):
        return ""
    return "None" if annotation is type(None) else inspect.formatannotation(annotation)


_ASYNC = inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR


def _is_never_awaitable(annotation: Any) -> bool:
    kind = get_origin(annotation) or annotation
    if kind is Any:
        return False
    if kind in (Union, UnionType):
        return all(map(_is_never_awaitable, get_args(annotation)))
    try:
        # A coroutine is an object, and hashable: who promises no more may return one.
        return not hasattr(kind, "__await__") and not issubclass(CoroutineType, kind)
    except TypeError:  # it is no class, or a protocol
        return False


def reject_awaitable(what: str, answer: T) -> T:
    """Return what a plain callable returned.

    Raise `TypeError` for an awaitable, whose truth value says nothing.
    """
    if not inspect.isawaitable(answer):
        return answer
    if inspect.iscoroutine(answer):
        answer.close()  # it will never be awaited, and the TypeError says so better
    raise TypeError(
        f"{what} returned {type(answer).__name__}, which would have to be awaited; it must be a "
        "plain function that returns its answer"
    )


def check_worker_action(name: str, action: object, runs_in: str) -> None:
    """Refuse an action that can only fail in a thread or a process, as far as its code shows.

    That is an async action, and one that another process can't import.
    """
    function = function_of(action)
    if is_async(function):
        raise TypeError(
            f"step {name!r}: an async function runs in the event loop, and runs_in={runs_in!r} "
            "is for plain ones; leave it out, or make the action a plain function"
        )
    if runs_in == "process":
        _check_picklable(name, action, function)


def _check_picklable(name: str, action: object, function: object) -> None:
    homes = {getattr(function, "__module__", None)}
    if isinstance(action, MethodType):
        homes.add(getattr(action.__self__, "__module__", None))
        if not isinstance(action.__self__, type):
            # The object may be large, and may change before the step runs.
            action = action.__func__
    if "__main__" in homes and not is_importable_main(sys.modules["__main__"]):
        raise TypeError(
            f"step {name!r}: its action cannot be sent to another process, which can't import "
            "what a shell, a notebook or python -c defines; define it in a file, and import it "
            "from there"
        )
    import pickle  # only steps that run in a process need it

    try:
        pickle.dumps(action)
    except Exception as error:  # it is the user's object, and may raise anything
        raise TypeError(
            f"step {name!r}: its action cannot be sent to another process; use a function "
            f"that is defined at the top of a module ({error})"
        ) from error


def function_of(action: object) -> object:
    """Return the function below all partials and bound methods."""
    while isinstance(action, partial | MethodType):
        action = action.func if isinstance(action, partial) else action.__func__
    return action


def callable_name(action: object) -> str:
    """Return what an action is called, without its bound arguments, which may be secret."""
    function: Any = function_of(action)
    named = function if isinstance(getattr(function, "__qualname__", None), str) else type(function)
    return f"{named.__module__}.{named.__qualname__}"


def is_importable_main(main: object) -> bool:
    """Whether another process can import a main module: not one that was typed in or piped."""
    path = getattr(main, "__file__", None)
    # From 3.13 on, the file of a piped module is "<stdin>".
    is_file = path is not None and not path.startswith("<")
    return is_file or getattr(main, "__spec__", None) is not None


@record
class Upstream:
    """The default of a parameter that receives the output of another step."""

    source: Any
    """The function of that step, or the included pipeline."""
    is_mapped: bool = False
    """Whether the source is a mapped step, whose output is the list of what its calls returned."""
    each: bool = False
    """Whether the parameter receives one item of the output at a time."""

    def __repr__(self) -> str:
        source = getattr(function_of(self.source), "__qualname__", None) or repr(self.source)
        word = "collect" if self.is_mapped else "each" if self.each else "after"
        text = f"{word}({source})"
        text = f"each({text})" if self.is_mapped and self.each else text
        return f"<{text}: only a run fills it in; to call the function yourself, pass a value>"


@record
class Signature:
    """The parameters of an action that can be given by name."""

    names: tuple[str, ...] = ()
    required: frozenset[str] = frozenset()
    """Those without a default, or with an `Upstream`, which stands for a value."""
    takes_kwargs: bool = False
    """Whether there is a ``**kwargs``."""
    bound: frozenset[str] = frozenset()
    """Those that a `functools.partial` has bound."""
    is_data: bool = True
    """Whether they decide if a stored result is valid: not those of the description of a signal."""


NO_PARAMETERS = Signature()


def python_signature(function: Callable[..., Any]) -> inspect.Signature:
    """Return what `inspect.signature` does, even if annotations have names for type checkers.

    Since 3.14, Python evaluates annotations when they are asked for, and these can't be.
    """
    if sys.version_info >= (3, 14):  # pragma: no cover
        return inspect.signature(function, annotation_format=Format.FORWARDREF)
    return inspect.signature(function)  # pragma: no cover


def signature_of(name: str, action: Callable[..., Any], what: str = "action") -> Signature:
    if type(action) is FunctionType and not action.__dict__:
        # As most actions have none: `inspect` takes fifty times as long to say so.
        code = action.__code__
        if not (
            code.co_argcount or code.co_kwonlyargcount or code.co_flags & inspect.CO_VARKEYWORDS
        ):
            return NO_PARAMETERS
    try:
        signature = python_signature(action)
    except ValueError:  # some callables written in C have none
        return NO_PARAMETERS
    bound = _bound(action) if isinstance(action, partial) else frozenset()
    names, required, takes_kwargs = [], set(), False
    for parameter in signature.parameters.values():
        is_required = parameter.default is parameter.empty or type(parameter.default) is Upstream
        if parameter.kind is parameter.VAR_KEYWORD:
            takes_kwargs = True
        elif parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            if parameter.name not in bound:
                names.append(parameter.name)
                if is_required:
                    required.add(parameter.name)
        elif parameter.kind is parameter.POSITIONAL_ONLY and is_required:
            raise TypeError(
                f"step {name!r}: parameter {parameter.name!r} of its {what} is positional-only, "
                f"but {what}s get their data by parameter name; remove the '/'"
            )
    if not names and not takes_kwargs:
        return NO_PARAMETERS
    return Signature(tuple(names), frozenset(required), takes_kwargs, bound)


def default_of(function: Callable[..., Any], parameter: str) -> object:
    """Return the default of a parameter; `inspect.Parameter.empty` if it has none."""
    return python_signature(function).parameters[parameter].default


def defaults_of(function: Callable[..., Any]) -> dict[str, object]:
    """Return the defaults of a function's parameters that have one."""
    try:
        parameters = python_signature(function).parameters
    except ValueError:  # some callables written in C have none
        return {}
    return {
        parameter.name: parameter.default
        for parameter in parameters.values()
        if parameter.default is not parameter.empty
    }


def upstream_defaults(function: Callable[..., Any]) -> dict[str, Upstream]:
    """Return the outputs that a function's defaults ask for, by parameter."""
    return {
        parameter: default
        for parameter, default in defaults_of(function).items()
        if type(default) is Upstream
    }


def _bound(action: partial[Any]) -> frozenset[str]:
    positional = list(python_signature(action.func).parameters)[: len(action.args)]
    return frozenset(positional).union(action.keywords)


def checked_awaitable(name: str, returned: object) -> Awaitable[Any]:
    """Return what an action has returned, if it can be awaited."""
    if not inspect.isawaitable(returned):
        raise ActionNotAwaitableError(name, type(returned).__name__)
    return returned


PLAIN_OUTPUTS = frozenset({NoneType, bool, int, float, str, bytes, list, tuple, dict, set})
"""The types of most outputs, which are neither coroutines nor iterators."""


def is_iterator(value: object) -> bool:
    """Whether a value gives each of its items only once."""
    return issubclass(type(value), Iterator | AsyncIterator)


def instead_of_iterator(iterator: object) -> str:
    """Name what to return, or pass, in place of an iterator: what can be read more than once."""
    kind = type(iterator)
    if hasattr(kind, "getvalue"):  # a file in memory
        return "what its getvalue() returns"
    if hasattr(kind, "readline"):
        return "the path of the file, or what its read() returns"
    if hasattr(kind, "fetchall"):
        return "its rows, with fetchall()"
    if issubclass(kind, AsyncIterator):
        return (
            "a list, [item async for item in ...]; only one mapped step, in a run without a "
            "journal, can take the items as they come"
        )
    return "a list, with list(...)"


def refuse_unawaited(name: str, output: CoroutineType[Any, Any, Any]) -> None:
    """Refuse an output that is a coroutine which nothing has begun to await."""
    if inspect.getcoroutinestate(output) == inspect.CORO_CREATED:
        output.close()  # or Python would warn that it was never awaited
        raise OutputNotAwaitedError(name, output.__qualname__)


ARGUMENTS: dict[str, frozenset[str]] = {}
"""The arguments of each class and function that suggests them."""


def suggests_arguments(target: T) -> T:
    """Make a class or a coroutine function refuse an unknown argument with the right one."""
    marked: Any = target
    if not isinstance(target, type):
        return cast("T", _refusing(marked.__name__, marked))
    marked.__init__ = _refusing(marked.__name__, marked.__init__)
    return target


def method_suggests_arguments(method: T) -> T:
    """Make a coroutine method that takes the inputs of a run as a mapping do the same.

    The message names the class of the object, which may have inherited the method.
    What it does not take is more likely an input than the argument of a step or a pool.
    """
    marked: Any = method
    known = _names_of(marked)

    @wraps(marked)
    async def call_and_wait(self: object, /, *args: Any, **named: Any) -> Any:
        if not known.issuperset(named):
            from asyncflow._core.argument_names import suggestion  # no right call needs it

            unknown = next(name for name in named if name not in known)
            raise TypeError(
                f"{type(self).__name__}.{marked.__name__}() got an unknown argument {unknown!r}"
                + (
                    suggestion(unknown, known, others={})
                    or f"; inputs of the run are one argument: inputs={{{unknown!r}: ...}}"
                )
            )
        return await marked(self, *args, **named)

    return cast("T", call_and_wait)


def takes_by_name(what: str, example: str) -> Callable[[T], T]:
    """Make a method refuse what is not given by name, which Python would blame on its base class.

    ``what`` is what it takes: ``"inputs"``. The example is ``"url=..."``.
    """

    def decorate(method: T) -> T:
        marked: Any = method
        name = marked.__name__

        def refuse(self: object) -> None:
            raise TypeError(
                f"{type(self).__name__}.{name}() takes {what} by name: {name}({example}); "
                f"if they are in a mapping, unpack it: {name}(**{what})"
            )

        @wraps(marked)
        def call(self: object, /, *values: object, **named: Any) -> Any:
            if values:
                refuse(self)
            return marked(self, **named)

        @wraps(marked)
        async def call_and_wait(self: object, /, *values: object, **named: Any) -> Any:
            if values:
                refuse(self)
            return await marked(self, **named)

        return cast("T", call_and_wait if inspect.iscoroutinefunction(marked) else call)

    return decorate


def arguments_of(what: str) -> frozenset[str]:
    """Return the arguments of a class or function that suggests them, by its name."""
    return ARGUMENTS[what]


def check_arguments(what: str, given: Iterable[str], known: frozenset[str]) -> None:
    """Refuse the arguments that do not exist.

    ``what`` takes the arguments, and begins the message.
    """
    if not known.issuperset(given):
        from asyncflow._core.argument_names import suggestion  # no right call needs it

        unknown = next(name for name in given if name not in known)
        suggested = suggestion(unknown, known)
        if "inputs" in known and " of " not in suggested:  # else it is known to be no input
            suggested += f"; an input of the run is given in inputs={{{unknown!r}: ...}}"
        raise TypeError(f"{what} got an unknown argument {unknown!r}{suggested}")


def _names_of(function: Callable[..., Any]) -> frozenset[str]:
    """Return the arguments that can be given by name."""
    parameters = inspect.signature(function).parameters.values()  # also if something has wrapped it
    return frozenset(
        each.name
        for each in parameters
        if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY) and each.name != "self"
    )


def _refusing(what: str, function: Callable[..., Any]) -> Callable[..., Any]:
    known = ARGUMENTS[what] = _names_of(function)

    @wraps(function)
    def call(*args: Any, **named: Any) -> Any:
        check_arguments(f"{what}()", named, known)
        return function(*args, **named)

    @wraps(function)
    async def call_and_wait(*args: Any, **named: Any) -> Any:
        check_arguments(f"{what}()", named, known)
        return await function(*args, **named)

    return call_and_wait if inspect.iscoroutinefunction(function) else call
