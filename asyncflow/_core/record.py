"""Slotted records: dataclasses that take a fifth of the time to define.

A dataclass of the standard library would show a secret output by `dataclasses.asdict`, raise what a
user's value raises when it is shown or compared, and take half of ``import asyncflow`` to define.

Rules:

1. A record is to its users what ``@dataclass(slots=True)`` makes: the functions of `dataclasses`
   accept it.
2. Only ``__init__`` is compiled for each class; all other methods are shared.
3. Values belong to users. One that raises when it is compared is equal to itself only, and one that
   raises when it is shown has a placeholder.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, Literal, NoReturn, TypeVar, dataclass_transform, overload

T = TypeVar("T")


class _Made:
    """Stands, in the body of a class, for a value that a factory makes for each record."""

    def __init__(self, factory: Callable[[], Any]) -> None:
        self.factory = factory


REQUIRED: Any = object()
"""Stands for the default of a field that has none."""
_DERIVED: Any = object()
_OWN_REPR = SimpleNamespace(repr=False)
"""What `pprint` asks of a dataclass: whether `dataclasses` has made its ``__repr__``."""


def made_by(default_factory: Callable[[], T]) -> T:
    """Give a field a default that is made anew for each record."""
    return _Made(default_factory)  # type: ignore[return-value]


def derived(*, init: Literal[False] = False) -> Any:
    """Make a slot that the class fills by itself, and that is no field."""
    return _DERIVED


@overload
def record(cls: type[T], /) -> type[T]: ...
@overload
def record(*, frozen: bool = False, kw_only: bool = False) -> Callable[[type[T]], type[T]]: ...
@dataclass_transform(frozen_default=True, field_specifiers=(made_by, derived))
def record(cls: Any = None, /, *, frozen: bool = False, kw_only: bool = False) -> Any:
    """Make the class a slotted record, whose fields are its annotated attributes.

    Methods that the class has by itself stay. Type checkers refuse assignments to any record.

    The annotations of ``cls`` are strings, and its base classes have no fields. With ``frozen``,
    assignments fail at run time too, and records can be hashed. Then one takes three times as long
    to make, and a run makes three records a step. With ``kw_only``, all arguments must be given by
    keyword.
    """
    if cls is None:
        return lambda cls: _record(cls, frozen, kw_only)
    return _record(cls, frozen, kw_only)


def replace(data: T, /, **changes: Any) -> T:
    """Return a record with other values in some fields, checked as a new one is."""
    return type(data)(**values_by_name(data) | changes)


def values_by_name(data: Any) -> dict[str, Any]:
    """Return the values of a record's fields, in order."""
    return {name: getattr(data, name) for name in data._fields}


def defaults_of(cls: Any) -> dict[str, Any]:
    """Return the default of each field of a record, in order; `REQUIRED` if it has none."""
    from dataclasses import MISSING, fields  # not at the top: see there

    defaults = {}
    for field in fields(cls):
        defaults[field.name] = REQUIRED if field.default is MISSING else field.default
        if field.default_factory is not MISSING:
            defaults[field.name] = field.default_factory()
    return defaults


def show(data: Any, values: dict[str, Any]) -> str:
    """Return the ``repr`` of a record that has these values."""
    from asyncflow._core.value_size import safe_repr  # few programs show any

    arguments = ", ".join(f"{name}={safe_repr(value)}" for name, value in values.items())
    return f"{type(data).__name__}({arguments})"


def _record(cls: Any, frozen: bool, kw_only: bool) -> Any:
    own = {k: v for k, v in cls.__dict__.items() if k not in ("__dict__", "__weakref__")}
    slots = [name for name, kind in cls.__annotations__.items() if not kind.startswith("ClassVar")]
    defaults = {name: own.pop(name) for name in slots if name in own}
    fields = tuple(name for name in slots if defaults.get(name) is not _DERIVED)
    shared: dict[str, Any] = {
        "__slots__": tuple(slots),
        "_fields": fields,
        "__match_args__": () if kw_only else fields,
        "__eq__": _equal,
        "__hash__": None,
        "__repr__": lambda self: show(self, values_by_name(self)),
        "__replace__": replace,
        "__dataclass_fields__": _DataclassFields(defaults),
        "__dataclass_params__": _OWN_REPR,
    }
    if frozen:
        shared |= {"__setattr__": _refuse, "__delattr__": _refuse, "__hash__": _hash}
        shared |= {"__getstate__": _state, "__setstate__": _fill}
    if "__init__" not in own:
        shared["__init__"] = _init(cls, fields, defaults, frozen, kw_only)
    return type(cls.__name__, cls.__bases__, shared | own)


def _init(
    cls: Any, fields: tuple[str, ...], defaults: dict[str, Any], frozen: bool, kw_only: bool
) -> Any:
    names = {f"default_{name}": value for name, value in defaults.items()}
    names |= {"fill": object.__setattr__, "Made": _Made}
    parameters = [f"{name}=default_{name}" if name in defaults else name for name in fields]
    lines = ["def __init__(" + ", ".join(["self", *["*"] * kw_only, *parameters]) + "):"]
    for name in fields:
        if type(defaults.get(name)) is _Made:
            lines.append(f"if {name} is default_{name}: {name} = {name}.factory()")
        lines.append(f"fill(self, {name!r}, {name})" if frozen else f"self.{name} = {name}")
    if hasattr(cls, "__post_init__"):
        lines.append("self.__post_init__()")
    exec("\n ".join(lines), names)
    names["__init__"].__qualname__ = f"{cls.__qualname__}.__init__"
    return names["__init__"]


def _equal(self: Any, other: object) -> Any:
    if type(other) is not type(self):
        return NotImplemented
    try:
        # Dictionaries take what is identical for equal. From 3.13 on, dataclasses do not.
        return values_by_name(self) == values_by_name(other)
    except Exception:
        return False


def _hash(self: Any) -> int:
    return hash(tuple(values_by_name(self).values()))


def _refuse(self: Any, name: str, *_: object) -> NoReturn:
    from dataclasses import FrozenInstanceError  # not at the top: see there

    raise FrozenInstanceError(f"{type(self).__name__}: {name} can't be changed")


def _state(self: Any) -> list[Any]:
    return [getattr(self, name) for name in self.__slots__]


def _fill(self: Any, state: list[Any]) -> None:
    for name, value in zip(self.__slots__, state, strict=True):
        object.__setattr__(self, name, value)


class _DataclassFields:
    """The field objects that `dataclasses` looks for, made when it does so.

    The field of a hidden value is one for initialization only: `dataclasses.replace` passes it on,
    and `dataclasses.asdict` leaves it out.
    """

    def __init__(self, defaults: dict[str, Any]) -> None:
        self._defaults = defaults
        self._made: dict[tuple[str, ...], Any] = {}

    def __get__(self, data: Any, owner: Any) -> Any:
        hidden: tuple[str, ...] = getattr(data, "_hidden", ())
        if hidden not in self._made:
            self._made[hidden] = self._make(owner, hidden)
        return self._made[hidden]

    def _make(self, owner: Any, hidden: tuple[str, ...]) -> Any:
        import dataclasses  # not at the top: see there

        kinds = {name: owner.__annotations__[name] for name in owner._fields}
        fields = [(name, kind, self._field(name)) for name, kind in kinds.items()]
        for name in hidden:
            passed_on = name, dataclasses.InitVar[Any], dataclasses.field(default=None)
            fields[owner._fields.index(name)] = passed_on
        twin: Any = dataclasses.make_dataclass(owner.__name__, fields, kw_only=True)
        return twin.__dataclass_fields__

    def _field(self, name: str) -> Any:
        from dataclasses import field

        default = self._defaults.get(name, ...)
        if type(default) is _Made:
            return field(default_factory=default.factory)
        return field() if default is ... else field(default=default)
