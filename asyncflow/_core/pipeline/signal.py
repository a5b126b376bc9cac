"""A signal: what a step without an action waits for, and which values it takes.

A signal takes the same values from every sender, and wherever its type is known:

1. Plain data, which is what JSON gives back as it was, is taken if the schema of the type takes it.
   It becomes an instance: ``"red"`` an enumeration's member, ``1`` a ``float``.
2. Anything else must be an instance of exactly the type. Inside lists, dictionaries, sets and
   tuples the same holds of each part. A tuple is no list, and a ``bool`` no ``int``.
3. `Any` and `object` take plain data.
4. A type that JSON has no form for takes its instances only; so does each type where msgspec is not
   installed, which schemas and conversions need.

A journal does not know the types of a pipeline. It has their JSON schemas, each with the *shape* of
its type: what of a type tells whether a value is an instance, with names in place of classes.
"""

from __future__ import annotations

import collections.abc
import inspect
import json
import math
import sys
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import cache
from operator import ge, gt, le, lt
from types import ModuleType, UnionType
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Generic,
    Literal,
    TypeAlias,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
    overload,
)
from zlib import crc32

from asyncflow._core.arguments import is_async
from asyncflow._core.errors import MissingExtraError
from asyncflow._core.text import safe_text
from asyncflow._core.value_size import extent, safe_repr

if TYPE_CHECKING:
    from typing_extensions import TypeForm  # type checkers bring it; `typing` has it from 3.15 on

    from asyncflow._core.pipeline.graph import Plan

T = TypeVar("T")

Description: TypeAlias = str | Callable[..., str]
"""What is asked; a function returns it when the wait begins."""

Shape: TypeAlias = str | Mapping[str, Any]
"""The name of a class, or an object with one key; an empty one is plain data."""

SHAPE = "x-python-type"
"""The key that the shape of a type has in its schema."""

_LONGEST_SENDER, _LONGEST_NOTE = 200, 10_000
"""How many characters the name of a sender and a note have at most."""

LONGEST_DESCRIPTION = 10_000
"""How many characters are stored of what is asked."""


class Signal(Generic[T]):
    """Stands for a step that waits until a value is sent to the run: see `Pipeline.signal`.

    It takes the place of a function: ``after(approved)`` receives the value. `WorkflowStep` takes
    it as an action.

    Args:
        hint: The type of the value, as an annotation: ``bool``, ``list[str]``, a dataclass.
        name: What it is called where it is shown.
        description: What is asked: a text of at most 10,000 characters, or a plain function that
            returns one, as for `Pipeline.signal`; ``None`` (the default) for nothing.

    Raises:
        TypeError: It is no type, or one that msgspec, if it is installed, makes no schema of; or
            the description is neither a text nor a plain function.
        ValueError: The description is too long.
    """

    @overload
    def __init__(
        self, hint: TypeForm[T], name: str = "signal", *, description: Description | None = None
    ) -> None: ...
    @overload  # what an older type checker takes for no type, as Literal["yes", "no"]
    def __init__(
        self: Signal[Any],
        hint: Any,
        name: str = "signal",
        *,
        description: Description | None = None,
    ) -> None: ...
    def __init__(
        self, hint: Any, name: str = "signal", *, description: Description | None = None
    ) -> None:
        self.type = hint
        self.__name__ = name
        _check_description(f"signal {name!r}: description", description)
        self.description = description
        try:
            self._shape, types = shape_of(hint), _types()
            self._schema: Mapping[str, Any] = types.schema_of_signal(hint) if types else {}
        except TypeError as error:
            of_type = f"signal {name!r} can't be of type {type_text(hint)}"
            raise TypeError(f"{of_type}: {error}") from error

    async def __call__(self) -> T:
        """Raise an error: only a run can wait for a signal."""
        raise RuntimeError(f"{self!r} can't be called: a run waits for it, and a sender answers it")

    def __repr__(self) -> str:
        return f"<signal {self.__name__}: {type_text(self.type)}>"


def _check_description(what: str, description: object) -> None:
    if callable(description):
        if is_async(description):
            raise TypeError(
                f"{what} must be a plain function; what has to be awaited belongs in a step before "
                "it"
            )
    elif not isinstance(description, str | None):
        raise TypeError(
            f"{what} must be a str, a plain function or None, not {type(description).__name__}"
        )
    elif description is not None and len(description) > LONGEST_DESCRIPTION:
        raise ValueError(
            f"{what} must have at most {LONGEST_DESCRIPTION:,} characters, not {len(description):,}"
        )


def take(signal: Signal[T], name: str, value: Any) -> T:
    """Return the instance of a signal's type that a value is, or becomes.

    ``name`` is that of the step. Raise `ValueError` if it is none that the signal takes.
    """
    if (types := _types()) is not None:
        taken: T = types.take(name, value, signal.type, signal._schema)
        return taken
    if not fits(value, signal._shape):
        raise ValueError(f"signal {name!r} {other_type(value, signal._shape)}")
    return value  # type: ignore[no-any-return]


def take_instead(signal: Signal[T], name: str, value: Any, what: str) -> T:
    """Return the same of the ``what`` that takes the place of a value: its default, for one.

    Raise `TypeError` if the signal does not take it.
    """
    try:
        return take(signal, name, value)
    except ValueError as error:
        raise TypeError(f"the {what} of {error}") from None


def check_value(plan: Plan, name: str, value: Any) -> None:
    """Raise `ValueError` if a plan has a signal of this name which does not take a value."""
    index = plan.index.get(name)
    if index is not None and (signal := plan.steps[index].signal) is not None:
        take(signal, name, value)


async def check_answer(
    journal: Any,
    pipelines: Mapping[str, Any],
    run_id: str,
    name: str,
    value: Any,
    *,
    renew: Callable[[Any], Awaitable[bool]],
) -> None:
    """Raise `ValueError` if a run that waits has a pipeline here which does not take a value.

    If another version of its pipeline has left the run waiting, ``renew`` continues it with this
    one, so that it asks as this one does. It returns whether that succeeded: if not, the journal
    checks the value by what the other version asks for.
    """
    waits = await journal._asks(run_id)
    pipeline = None if waits is None else pipelines.get(waits[0])
    if waits is None or pipeline is None:
        return
    if waits[1] != pipeline._planned().asked(journal)[1] and not await renew(pipeline):
        return
    pipeline._planned().check_signal(name, value)


def check_sender(sent_by: object, note: object) -> None:
    """Check who sends a value, if the sender says so, and the note that goes with it."""
    if not isinstance(sent_by, str | None):
        raise TypeError(f"sent_by must be a str or None, not {type(sent_by).__name__}")
    if sent_by is not None and not 0 < len(sent_by) <= _LONGEST_SENDER:
        raise ValueError(
            f"sent_by must have 1 to {_LONGEST_SENDER} characters, not {len(sent_by):,}"
        )
    if not isinstance(note, str):
        raise TypeError(f"note must be a str, not {type(note).__name__}")
    if len(note) > _LONGEST_NOTE:
        raise ValueError(f"note must have at most {_LONGEST_NOTE:,} characters, not {len(note):,}")


@cache
def _types() -> ModuleType | None:
    """Return what knows schemas, which needs msgspec; ``None`` without it."""
    try:
        from asyncflow.journal._codec import signal_types
    except MissingExtraError:
        return None
    return signal_types


def asks_of(signals: Mapping[str, Any], deadlines: Mapping[str, float]) -> int:
    """Return a checksum of what a version of a pipeline asks for.

    ``signals`` are the schemas of its signals by name, and ``deadlines`` those that they have, in
    milliseconds.
    """
    asked = [signals, {name: float(deadlines[name]) for name in deadlines}]
    return crc32(json.dumps(asked, sort_keys=True).encode())


class Always:
    """A fallback that always returns the same value."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __call__(self, error: Exception) -> Any:
        """Return the value."""
        return self.value


def type_text(hint: Any) -> str:
    """Return a type as its annotation is written."""
    is_class = isinstance(hint, type) and not get_args(hint)
    return hint.__name__ if is_class else safe_text(str, hint)


# --- shapes --------------------------------------------------------------------------------------

_CONCRETE: Mapping[Any, type] = {
    **dict.fromkeys((collections.abc.Collection, collections.abc.Sequence), list),
    collections.abc.MutableSequence: list,
    **dict.fromkeys((collections.abc.Set, collections.abc.MutableSet), set),
    **dict.fromkeys((collections.abc.Mapping, collections.abc.MutableMapping), dict),
}
"""The class of the instances that JSON becomes, if a type is abstract."""


def shape_of(hint: Any, within: tuple[Any, ...] = ()) -> Shape:
    """Return the shape of a type, as JSON.

    ``within`` are the types around it whose names may lead back to them. Raise `TypeError` if it is
    no type, or no value has exactly this type.
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any or hint is object or isinstance(hint, TypeVar):
        return {}
    if origin is Literal:
        return {"literal": list(arguments)}
    if origin is Annotated:
        bounds = dict(_bounds_of(arguments[1:]))
        shape = shape_of(arguments[0], within)
        return {"bounded": [shape, bounds]} if bounds else shape
    if origin in (Union, UnionType):
        return {"union": [shape_of(each, within) for each in arguments]}
    named = getattr(hint, "__supertype__", None) or getattr(origin or hint, "__value__", None)
    if named is not None and not isinstance(hint, type):  # a NewType, or a type alias
        return {} if hint in within else shape_of(named, (*within, hint))
    kind = type(None) if hint is None else origin or hint
    if not isinstance(kind, type):
        quotes = "; a name in quotes can't be resolved here" if isinstance(kind, str) else ""
        raise TypeError(f"hint must be a type, not {safe_repr(hint)}{quotes}")
    kind = _CONCRETE.get(kind, kind)
    if is_typeddict(kind):
        return {} if kind in within else _shape_of_fields(kind, (*within, kind))
    if inspect.isabstract(kind) or getattr(kind, "_is_protocol", False):
        raise TypeError("hint must be no abstract type, since no value has exactly this one")
    if kind not in (list, set, frozenset, dict, tuple) or not arguments:
        return kind.__qualname__
    if kind is tuple and arguments[-1] is not ...:
        return {"places": [shape_of(each, within) for each in arguments]}
    parts = [shape_of(each, within) for each in arguments if each is not ...]
    return {kind.__name__: parts}


def _shape_of_fields(kind: Any, within: tuple[Any, ...]) -> Shape:
    try:
        hints = get_type_hints(kind)
    except Exception as error:  # a name that is not there, or exists for type checkers only
        raise TypeError(f"hint must have types that can be resolved: {error}") from error
    fields = {name: shape_of(hint, within) for name, hint in hints.items()}
    return {"fields": [fields, sorted(kind.__required_keys__)]}


def shape_text(shape: Shape) -> str:
    """Return a shape as its annotation is written."""
    if isinstance(shape, str):
        return "None" if shape == "NoneType" else shape
    if not shape:
        return "plain data"
    ((key, parts),) = shape.items()
    if key == "literal":
        return f"Literal[{', '.join(map(repr, parts))}]"
    if key == "bounded":
        bounds = ", ".join(f"{name}={bound}" for name, bound in parts[1].items())
        return f"{shape_text(parts[0])} ({bounds})"
    if key == "fields":
        texts = [f"{name!r}: {shape_text(each)}" for name, each in parts[0].items()]
        return f"{{{', '.join(texts)}}}"
    texts = [shape_text(each) for each in parts]
    if key == "union":
        return " | ".join(texts)
    texts += ["..."] if key == "tuple" else []
    return f"{'tuple' if key == 'places' else key}[{', '.join(texts)}]"


def other_type(value: Any, shape: Shape) -> str:
    """Return that a value must be of a type."""
    return f"must be of type {shape_text(shape)}, not {safe_repr(value)}"


# --- instances -----------------------------------------------------------------------------------


def is_plain(value: object) -> bool:
    """Whether a value has only what JSON gives back as it was."""
    return extent(value, sys.maxsize) == "plain"


def fits(value: Any, shape: Shape) -> bool:
    """Whether a value is an instance of exactly the type of a shape.

    An ``int`` is a ``float``, and no ``bool`` is an ``int``: so it is in JSON, and in PEP 484.
    """
    kind = type(value)
    if isinstance(shape, str):
        return _is_instance(value, kind, shape)
    if not shape:
        return is_plain(value)
    ((key, parts),) = shape.items()
    if key == "union":
        return any(fits(value, each) for each in parts)
    if key == "literal":
        return any(kind is type(each) and value == each for each in parts)
    if key == "bounded":
        return fits(value, parts[0]) and _is_within(value, parts[1])
    if key == "fields":
        return kind is dict and _has_fields(value, *parts)
    if key == "places":
        return kind is tuple and len(value) == len(parts) and all(map(fits, value, parts))
    if kind is dict and key == "dict":
        return all(all(map(fits, pair, parts)) for pair in value.items())
    is_collection = kind in (list, tuple, set, frozenset) and kind.__name__ == key
    return is_collection and all(fits(each, parts[0]) for each in value)


def _is_instance(value: Any, kind: type, name: str) -> bool:
    if name == "float" and kind in (float, int):
        return math.isfinite(value)  # JSON has no other
    if kind.__module__.partition(".")[0] == "pathlib":  # a Path is of the class of its system
        return name in [base.__qualname__ for base in kind.__mro__]
    if kind.__qualname__ != name:
        return False
    if kind is dict:
        return is_plain(value)
    return kind not in (list, tuple, set, frozenset) or all(map(is_plain, value))


def _has_fields(value: Mapping[Any, Any], fields: Mapping[str, Shape], required: list[str]) -> bool:
    return fields.keys() >= value.keys() >= {*required} and all(
        fits(each, fields[name]) for name, each in value.items()
    )


_BOUNDS: Mapping[str, Callable[[Any, Any], bool]] = {
    "ge": ge,
    "gt": gt,
    "le": le,
    "lt": lt,
    "min_length": lambda value, bound: len(value) >= bound,
    "max_length": lambda value, bound: len(value) <= bound,
}


def _bounds_of(metadata: Iterable[object]) -> Iterable[tuple[str, float]]:
    """Yield the numbers among the bounds of annotated_types, or of a `msgspec.Meta`."""
    for each in metadata:
        for name in _BOUNDS:
            bound = getattr(each, name, None)
            if isinstance(bound, int | float):
                yield name, bound


def _is_within(value: Any, bounds: Mapping[str, float]) -> bool:
    return all(_holds(_BOUNDS[name], value, bound) for name, bound in bounds.items())


def _holds(holds: Callable[[Any, Any], bool], value: Any, bound: Any) -> bool:
    try:
        return holds(value, bound)
    except TypeError:  # of a union, it concerns another type
        return True


Signal.__module__ = "asyncflow"  # where users know it from
