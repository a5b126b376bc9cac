"""How a value of a signal is asked for."""

import datetime
import json
from dataclasses import dataclass
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal
from uuid import UUID

import pytest
from msgspec import Meta

from asyncflow._core.pipeline.signal import Signal, take
from asyncflow._views.signal_form import example_of


class Colour(Enum):
    GREEN = "grün"


@dataclass
class Paint:
    colour: Colour
    until: datetime.date
    litres: int = 1


@dataclass
class Order:
    paint: Paint
    price: Decimal


@dataclass
class Endless:
    next: "Endless"


@pytest.mark.parametrize(
    "hint",
    [
        *(bool, int, float, str, Decimal, Path, UUID, Paint, Order, Literal["b", "a"]),
        *(datetime.date, datetime.datetime, datetime.time, datetime.timedelta),
    ],
)
def test_the_example_of_a_value_is_one_that_its_signal_takes(hint: Any) -> None:
    example = example_of(Signal(hint)._schema)

    assert take(Signal(hint), "s", json.loads(example)) is not None


@pytest.mark.parametrize(
    "hint",
    [
        Annotated[int, Meta(ge=100)],
        Annotated[str, Meta(pattern="^[0-9]+$")],
        *(bytes, bool | None, Any, list[int], Endless),
    ],
)
def test_there_is_no_example_where_none_is_known_to_fit(hint: Any) -> None:
    assert example_of(Signal(hint)._schema) == "JSON"
