"""A signal: what a step without an action waits for, and whether a value fits its type."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from operator import ge, gt, le, lt
from types import UnionType
from typing import Annotated, Any, Generic, Literal, TypeVar, Union, get_args, get_origin

T = TypeVar("T")


class Signal(Generic[T]):
    """Stands for a step that waits until a value is sent to the run: see `Pipeline.signal`.

    It takes the place of a function: ``after(approved)`` receives the value. `WorkflowStep` takes
    it as an action.

    Args:
        hint: The type of the value, as an annotation: ``bool``, ``list[str]``, a dataclass.
        name: What it is called where it is shown.
    """

    def __init__(self, hint: type[T] | Any, name: str = "signal") -> None:
        self.type = hint
        self.__name__ = name

    async def __call__(self) -> T:
        """Raise an error: only a run can wait for a signal."""
        raise RuntimeError(f"{self!r} can't be called: a run waits for it, and a sender answers it")

    def __repr__(self) -> str:
        return f"<signal {self.__name__}: {type_text(self.type)}>"


class Always:
    """A fallback that always returns the same value."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __call__(self, error: Exception) -> Any:
        """Return the value."""
        return self.value


def type_text(hint: Any) -> str:
    """Return a type as its annotation is written."""
    return hint.__name__ if isinstance(hint, type) and not get_args(hint) else str(hint)


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a type, as far as that can be told without a library.

    An ``int`` is a ``float``, and no ``bool`` is an ``int``: so it is in JSON, and in PEP 484.
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return fits(value, arguments[0]) and _is_within(value, arguments[1:])
    if origin in (Union, UnionType):
        return any(fits(value, each) for each in arguments)
    if origin is Literal:
        return any(type(value) is type(each) and value == each for each in arguments)
    if hint is None or hint is type(None):
        return value is None
    kind = origin or hint
    if not isinstance(kind, type):
        return True
    if kind in (int, float):
        return type(value) is int or (kind is float and type(value) is float)
    try:
        if not isinstance(value, kind):
            return False
    except TypeError:  # a TypedDict or a protocol
        return True
    if kind is tuple or not arguments:
        return True
    if isinstance(value, Mapping):
        return all(all(map(fits, pair, arguments)) for pair in value.items())  # a Counter has one
    if isinstance(value, list | set | frozenset):
        return all(fits(each, arguments[0]) for each in value)
    return True


_BOUNDS: Mapping[str, Callable[[Any, Any], bool]] = {
    "ge": ge,
    "gt": gt,
    "le": le,
    "lt": lt,
    "min_length": lambda value, bound: len(value) >= bound,
    "max_length": lambda value, bound: len(value) <= bound,
}


def _is_within(value: Any, metadata: Iterable[object]) -> bool:
    """Whether a value is within the bounds of annotated_types, or of a `msgspec.Meta`."""
    return all(
        _holds(holds, value, bound)
        for each in metadata
        for name, holds in _BOUNDS.items()
        if (bound := getattr(each, name, None)) is not None and not callable(bound)
    )


def _holds(holds: Callable[[Any, Any], bool], value: Any, bound: Any) -> bool:
    try:
        return holds(value, bound)
    except TypeError:  # of a union, it concerns another type
        return True
