"""What the schema of a signal's type excludes, the type excludes too."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import json
import uuid
from collections import Counter
from enum import Enum
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
import pydantic
import pytest
from annotated_types import Ge, MinLen

from asyncflow import PayloadError, Pipeline
from asyncflow._core.history.results import Payload
from asyncflow._core.pipeline.signal import fits, shape_of
from asyncflow.journal import SQLiteJournal
from asyncflow.journal._codec.payloads import Codec
from asyncflow.journal._codec.schema import mismatch
from asyncflow.journal._codec.signal_types import schema_of_signal
from asyncflow.journal._write.signals import SentSignal
from asyncflow.testing import run_in_virtual_time

CODEC = Codec("json", 1_000_000)


class Size(Enum):
    S = "s"
    L = "l"


class Pair(NamedTuple):
    number: int
    text: str


@dataclasses.dataclass
class Plain:
    amount: float
    tags: list[str] = dataclasses.field(default_factory=list)


class Address(pydantic.BaseModel, extra="forbid"):
    zip_code: str = pydantic.Field(alias="zip", max_length=5)


class Order(pydantic.BaseModel):
    count: int = pydantic.Field(ge=1, lt=100)
    to: Address
    at: datetime.datetime | None = None
    size: Size = Size.S


UUID = "6ba7b810-9dad-11d1-80b4-00c04fd430c8"
HOME = {"zip_code": "12345"}
MINUS = "2026-01-01T10:00\N{MINUS SIGN}05:00"
ORDER = {"count": 1, "to": HOME, "at": "2026-01-01T10:00", "size": "l"}


@pytest.mark.parametrize(
    ("hint", "good", "bad"),
    [
        (bool, [True], [1, "true", None]),
        (bool | None, [True, None], [0]),
        (float, [1, 1.5], [True, "1"]),
        (Annotated[int, msgspec.Meta(ge=0, lt=10)], [0, 9], [-1, 10, 1.5]),
        (Annotated[float, msgspec.Meta(gt=0, le=1)], [0.5, 1], [0, 1.5]),
        (Annotated[int | None, Ge(1)], [1, None], [1.5]),
        (Annotated[str, msgspec.Meta(min_length=2, max_length=3)], ["ab"], ["a", "abcd"]),
        (Annotated[str, msgspec.Meta(pattern="^[ab]+$")], ["ab"], ["c"]),
        (Annotated[list[int], msgspec.Meta(min_length=1)], [[1]], [[], ["a"]]),
        (Annotated[int, msgspec.Meta(multiple_of=5)], [0, -10], [11]),
        (Literal["yes", "no"], ["yes"], ["perhaps", 2]),
        (Size, ["s"], ["m"]),
        (datetime.date, ["2026-01-01"], ["tomorrow"]),
        (datetime.datetime, ["2026-01-01T00:00:00.5Z", "2026-01-01t00:00:00-05:00"], ["tomorrow"]),
        (datetime.time, ["10:00:00"], ["noon"]),
        (
            Order,
            [{**ORDER, "at": at} for at in ("1767225600", MINUS)],
            [{**ORDER, "at": "tomorrow"}],
        ),
        (uuid.UUID, [UUID], ["6ba7"]),
        (decimal.Decimal, ["1.50"], ["1,50"]),
        (Pair, [[1, "a"]], [[1], ["a", 1], [1, "a", 2]]),
        (Plain, [{"amount": 1}], [{}, {"amount": 1, "tags": [1]}]),
        (dict[str, list[Size]], [{"a": ["s"]}], [{"a": ["m"]}]),
        (Order, [ORDER, {"count": 1, "to": HOME}], [{**ORDER, "count": 0}, {"count": 1}]),
        (Order, [], [{**ORDER, "to": {"zip_code": "123456"}}, {**ORDER, "size": "m"}]),
        (Address, [HOME], [{**HOME, "street": ""}, {"zip": "12345"}]),
        (list[Order], [[ORDER]], [[{**ORDER, "count": 100}], [{**ORDER, "to": {}}]]),
    ],
)
def test_a_schema_excludes_what_its_type_excludes(
    hint: Any, good: list[Any], bad: list[Any]
) -> None:
    schema = json.loads(json.dumps(schema_of_signal(hint)))

    for value in good:
        CODEC.decode("it", Payload("json", json.dumps(value).encode()), hint)
        assert mismatch(value, schema) == ""
    for value in bad:
        with pytest.raises(PayloadError):
            CODEC.decode("it", Payload("json", json.dumps(value).encode()), hint)
        assert mismatch(value, schema)


class Named(pydantic.BaseModel):
    name: str = pydantic.Field(pattern=r"^\p{L}+$")


def test_a_pattern_that_only_pydantic_can_read_is_left_to_the_run() -> None:
    schema = json.loads(json.dumps(schema_of_signal(Named)))

    assert mismatch({"name": "Zoë"}, schema) == ""


class Even(pydantic.BaseModel):
    number: int = pydantic.Field(ge=0)

    @pydantic.field_validator("number")
    @classmethod
    def check(cls, number: int) -> int:
        if number % 2:
            raise ValueError("it is odd")
        return number


def test_what_no_schema_says_is_refused_by_the_run_which_waits_on() -> None:
    async def send() -> tuple[Any, Any, Any]:
        pipeline = Pipeline("p")
        pipeline.signal("number", Even)
        async with SQLiteJournal(":memory:") as journal:
            run = pipeline.with_options(journal=journal, run_id="r").run
            await run()
            with pytest.raises(ValueError, match="'number' must be at least 0, not"):
                await journal.signal("r", "number", {"number": -2})
            await journal.signal("r", "number", {"number": 1})
            refused = await run()
            events = [stored.event for stored in await journal.events("r")]
            await journal.signal("r", "number", {"number": 2})
            return refused, events, await run()

    refused, events, report = run_in_virtual_time(send())

    assert refused.status == "WAITING"
    assert "it is odd" in [getattr(event, "refused", "") for event in events][-2]
    assert report["number"].output == Even(number=2)


@pytest.mark.parametrize(
    "hint", [Annotated[int, Ge(0)], Annotated[int, msgspec.Meta(ge=0)]], ids=["types", "msgspec"]
)
def test_the_process_of_a_run_checks_bounds(hint: Any) -> None:
    async def send() -> tuple[Any, Any]:
        pipeline = Pipeline("p")
        pipeline.signal("number", hint)
        async with SQLiteJournal(":memory:") as journal:
            run = pipeline.with_options(journal=journal, run_id="r")
            await run.run()
            payload = Payload("json", b"-1")
            await journal._worker.send_signal(SentSignal("r", "number", payload))
            refused = await run.run()
            async with run.with_options(on_wait="stay").start() as stays:
                with pytest.raises(ValueError, match="signal 'number' must be "):
                    await stays.signal("number", -1)
                await stays.signal("number", 0)
                return refused, await stays.report()

    refused, report = run_in_virtual_time(send())

    assert refused.status == "WAITING"
    assert report["number"].output == 0


@pytest.mark.parametrize(
    ("hint", "value"),
    [
        (Annotated[int | None, Ge(1)], None),
        (Annotated[int | list[int], MinLen(1)], 0),
        (Counter[str], Counter("a")),
    ],
    ids=str,
)
def test_a_bound_concerns_the_values_that_can_have_it(hint: Any, value: object) -> None:
    assert fits(value, shape_of(hint))
