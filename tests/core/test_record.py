"""A record behaves like a slotted dataclass."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import pprint
from typing import Any, ClassVar

import pytest

from asyncflow._core.record import derived, made_by, record, replace


@record
class Point:
    x: int
    y: float = 2.0
    seen: list[str] = made_by(list)
    axes: ClassVar[int] = 2

    def length(self) -> float:
        return (self.x**2 + self.y**2) ** 0.5


@record(frozen=True, kw_only=True)
class Limits:
    low: int = 0
    high: int = 9
    span: int = derived()

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError("upside down")
        object.__setattr__(self, "span", self.high - self.low)


@dataclasses.dataclass(slots=True)
class Like:
    x: int
    y: float = 2.0
    seen: list[str] = dataclasses.field(default_factory=list)
    axes: ClassVar[int] = 2


class Refusing(Exception):
    pass


class Hostile:
    def __eq__(self, other: object) -> bool:
        raise Refusing

    def __repr__(self) -> str:
        raise Refusing

    __hash__ = None  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("positional", "named"), [((1,), {}), ((1, 3), {}), ((), {"x": 1}), ((1,), {"seen": ["a"]})]
)
def test_a_record_has_the_fields_repr_and_equality_of_a_dataclass(
    positional: Any, named: Any
) -> None:
    ours, like = Point(*positional, **named), Like(*positional, **named)

    assert dataclasses.asdict(ours) == dataclasses.asdict(like)  # type: ignore[call-overload]
    assert repr(ours) == repr(like).replace("Like", "Point")
    assert ours == Point(*positional, **named)
    assert ours != like
    assert ours != replace(ours, y=7)


def test_a_record_has_slots_and_no_other_attributes() -> None:
    point = Point(1)

    with pytest.raises(AttributeError):
        point.z = 1  # type: ignore[attr-defined]
    assert (Point.axes, Point.__slots__) == (2, Like.__slots__)
    assert Point.__match_args__ == Like.__match_args__


@pytest.mark.parametrize(("positional", "named"), [((), {}), ((1, 2, [], 4), {}), ((1,), {"z": 1})])
def test_wrong_arguments_raise_the_error_of_a_dataclass(positional: Any, named: Any) -> None:
    with pytest.raises(TypeError) as ours:
        Point(*positional, **named)
    with pytest.raises(TypeError) as like:
        Like(*positional, **named)

    assert str(ours.value) == str(like.value).replace("Like", "Point")


def test_the_module_dataclasses_knows_its_fields_and_defaults() -> None:
    ours, like = dataclasses.fields(Point), dataclasses.fields(Like)  # type: ignore[arg-type]

    assert dataclasses.is_dataclass(Point)
    assert [(f.name, f.type, f.default, f.default_factory) for f in ours] == [
        (f.name, f.type, f.default, f.default_factory) for f in like
    ]
    assert dataclasses.fields(Point(1)) is not None  # type: ignore[arg-type]
    assert [f.name for f in dataclasses.fields(Limits)] == ["low", "high"]  # type: ignore[arg-type]


@pytest.mark.parametrize("replacing", [replace, dataclasses.replace, Limits.__replace__])  # type: ignore[attr-defined]
def test_a_changed_record_is_checked_again(replacing: Any) -> None:
    assert replacing(Limits(low=3), high=5) == Limits(low=3, high=5)
    assert replacing(Limits(low=3), high=5).span == 2
    with pytest.raises(ValueError, match="upside down"):
        replacing(Limits(low=3), high=2)


def test_a_frozen_record_can_be_hashed_and_not_changed() -> None:
    limits = Limits(low=3)

    with pytest.raises(dataclasses.FrozenInstanceError, match="Limits: low can't be changed"):
        limits.low = 4  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        del limits.low
    assert hash(limits) == hash(Limits(low=3))
    assert {limits, Limits(low=3), Limits()} == {limits, Limits()}
    with pytest.raises(TypeError, match="unhashable"):
        hash(Point(1))


@pytest.mark.parametrize("data", [Point(1, 3.0, ["a"]), Limits(low=3)])
@pytest.mark.parametrize(
    "trip", [copy.copy, copy.deepcopy, lambda data: pickle.loads(pickle.dumps(data))]
)
def test_a_record_can_be_copied_and_pickled(data: Any, trip: Any) -> None:
    assert trip(data) == data
    assert trip(data) is not data
    assert getattr(trip(data), "span", 6) == 6


def test_a_field_that_can_be_neither_compared_nor_shown_does_not_break_a_record() -> None:
    hostile: Any = Hostile()
    point = Point(hostile)

    assert point == Point(hostile)
    assert point != Point(Hostile())  # type: ignore[arg-type]
    assert repr(point) == "Point(x=<Hostile, whose repr raised Refusing>, y=2.0, seen=[])"


def test_pprint_shows_a_record_that_is_longer_than_a_line() -> None:
    point = Point(1, seen=["x" * 30] * 5)

    assert pprint.pformat(point) == repr(point)
