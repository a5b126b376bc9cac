"""Models of pydantic come back from a journal as equal instances, or are refused when stored."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import ipaddress
import json
import pathlib
import threading
import uuid
import zoneinfo
from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any, Generic, Literal, TypeVar

import pydantic
import pytest
from pydantic import BaseModel, ConfigDict, Field, RootModel, computed_field

from asyncflow import (
    Orchestrator,
    Pipeline,
    RunNotFoundError,
    WorkflowStep,
    collect,
    each,
    run_pipeline,
)
from asyncflow._core.errors import PayloadError
from asyncflow.journal import SQLiteJournal
from asyncflow.journal._codec.payloads import Codec

CODEC = Codec("json", 100_000)
SUBJECT = "the output of step 'load'"
T = TypeVar("T")
NOON = datetime.datetime(2024, 6, 1, 12, tzinfo=datetime.UTC)
CENTRAL = datetime.timezone(datetime.timedelta(hours=1), "CET")


class Colour(enum.Enum):
    RED = "red"


class Line(BaseModel):
    article: str = Field(alias="sku")
    count: int = 1


class Order(BaseModel):
    id: uuid.UUID = Field(default_factory=uuid.uuid4)
    when: datetime.datetime = NOON
    total: decimal.Decimal = decimal.Decimal("1.50")
    lines: tuple[Line, ...] = ()
    tags: set[str] = set()
    colour: Colour = Colour.RED
    days: dict[int, datetime.date] = {}
    host: ipaddress.IPv4Address = ipaddress.IPv4Address("10.0.0.1")
    path: pathlib.PurePosixPath = pathlib.PurePosixPath("a/b")
    url: pydantic.HttpUrl | None = None
    note: str | None = None


class Private(BaseModel):
    name: str
    _seen: int = 0
    _lock: Any = None


class Open(BaseModel, extra="allow"):
    name: str = ""


class Computed(BaseModel, extra="forbid", frozen=True):
    width: int

    @computed_field
    def area(self) -> int:
        return self.width**2


class Strict(BaseModel):
    model_config = ConfigDict(strict=True)
    when: datetime.date
    share: float


class Answer(BaseModel):
    text: str
    cost: float = 0
    weights: tuple[float, ...] = (0, 1)


class Cat(BaseModel):
    kind: Literal["cat"] = "cat"


class Dog(BaseModel):
    kind: Literal["dog"] = "dog"


class Owner(BaseModel):
    pet: Annotated[Cat | Dog, Field(discriminator="kind")]


class Page(BaseModel, Generic[T]):
    items: list[T]


class Node(BaseModel):
    children: list[Node] = []


class Numbers(RootModel[list[int]]): ...


class Pet(RootModel[Cat | Dog]): ...


@pydantic.dataclasses.dataclass
class Point:
    x: int
    line: Line


@dataclasses.dataclass
class Envelope:
    order: Order
    lines: dict[str, Line | None]


LINE = Line(sku="a", count=2)


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (LINE, Line),
        ([LINE, Line(sku="b")], list[Line]),
        ({"x": LINE}, dict[str, Line]),
        ((LINE,), tuple[Line, ...]),
        ((LINE, Line(sku="b")), Sequence[Line]),
        (LINE, Line | None),
        (None, Line | None),
        (Order(), Order),
        (Order(lines=(LINE,), tags={"x", "y"}, days={1: NOON.date()}, note="n"), Order),
        (Order(url="https://example.org/x", when="2024-06-01T12:00:00Z"), Order),  # type: ignore[arg-type]
        (Envelope(Order(), {"x": LINE, "y": None}), Envelope),
        (Private(name="a"), Private),
        (Open(more=[1, {"x": None}]), Open),  # type: ignore[call-arg]
        (Computed(width=3), Computed),
        (Strict(when=NOON.date(), share=0.5), Strict),
        (Answer(text="a"), Answer),
        ([Answer(text="a"), Answer(text="b", cost=1)], list[Answer]),
        (Owner(pet=Dog()), Owner),
        (Page[Line](items=[LINE]), Page[Line]),
        (Node(children=[Node(children=[Node()])]), Node),
        (Numbers([1, 2]), Numbers),
        ([Pet(Dog()), Pet(Cat())], list[Pet]),
        (Point(1, LINE), Point),
        ([Point(1, Line(sku="c"))], list[Point]),
    ],
)
def test_a_model_comes_back_as_an_equal_instance(value: Any, hint: Any) -> None:
    payload = CODEC.encode(SUBJECT, value, hint)
    again = CODEC.decode(SUBJECT, payload, hint)

    assert type(again) is type(value)
    assert again == value
    json.loads(payload.data)
    CODEC.decode(SUBJECT, payload, Any)


def test_a_time_of_a_model_comes_back_by_itself() -> None:
    when = Order(when="2024-06-01T12:00:00+01:00").when  # type: ignore[arg-type]

    payload = CODEC.encode(SUBJECT, when, datetime.datetime)

    assert CODEC.decode(SUBJECT, payload, datetime.datetime) == when


@pytest.mark.parametrize(
    "value", [Line(sku="a"), Order(note=None), Open(more=1), Node(children=[Node()])]
)
def test_the_fields_that_were_not_given_stay_so(value: Any) -> None:
    for whole, hint in ((value, type(value)), ((value, LINE), tuple[type(value), Line])):
        payload = CODEC.encode(SUBJECT, whole, hint)
        again = CODEC.decode(SUBJECT, payload, hint)
        again = again[0] if isinstance(whole, tuple) else again

        assert again.model_fields_set == value.model_fields_set
        assert again.model_dump(exclude_unset=True) == value.model_dump(exclude_unset=True)
    assert "given" not in CODEC.decode(SUBJECT, CODEC.encode(SUBJECT, value, type(value)), Any)


def test_a_sequence_of_models_with_defaults_comes_back_as_a_tuple() -> None:
    value = (Line(sku="a"),)

    payload = CODEC.encode(SUBJECT, value, Sequence[Line])

    assert payload.codec == "json-tuple+given"
    assert CODEC.decode(SUBJECT, payload, Sequence[Line]) == value


class Shouting(BaseModel):
    name: str

    @pydantic.field_validator("name")
    @classmethod
    def shout(cls, name: str) -> str:
        return f"{name}!"


class Left(BaseModel):
    kept: int = 1
    left_out: int = Field(default=0, exclude=True)


class Hidden(BaseModel):
    password: pydantic.SecretStr


class Holding(BaseModel):
    model_config = ConfigDict(arbitrary_types_allowed=True)
    lock: Any


def private_of(value: Any) -> Private:
    model = Private(name="a")
    model._lock = value
    return model


@pytest.mark.parametrize(
    ("value", "hint", "says"),
    [
        (LINE, Any, "Line would come back as dict; annotate what the action returns"),
        (LINE, "an unresolved name", "a RootModel of the annotation"),
        (Dog(), Cat | Dog, "return one model that contains it, such as a RootModel of the"),
        (LINE, Cat, "Line would come back as tests.journal.codec.test_models.Cat"),
        (Shouting(name="a"), Shouting, "'a!' would come back as 'a!!', at .name"),
        (Left(left_out=3), Left, "3 would come back as 0, at .left_out"),
        (Hidden(password="x"), Hidden, "at .password"),  # type: ignore[arg-type]
        (
            Line.model_construct(article="a", count="3"),
            Line,
            "str would come back as int, at .count",
        ),
        (
            Line.model_construct(article="a", count="x"),
            Line,
            "not a valid Line: count: Input should",
        ),
        (Holding(lock=threading.Lock()), Holding, "it can't be written as JSON"),
        (private_of(3), Private, "int would come back as NoneType, at ._lock"),
        (Open.model_construct(more=(1,)), Open, "tuple would come back as list, at .more"),
        (Page(items=[(1,)]), Page, "tuple would come back as list, at .items[0]"),
        (
            Order(when=NOON.astimezone(zoneinfo.ZoneInfo("Europe/Berlin"))),
            Order,
            "would come back as datetime.datetime(2024",
        ),
        (
            Order(when=NOON.astimezone(CENTRAL)),
            Order,
            "'CET')) would come back as datetime.datetime(2024",
        ),
        ([LINE, object()], list[Any], "Encoding objects of type object is unsupported"),
    ],
)
def test_a_model_that_would_come_back_different_is_refused(
    value: Any, hint: Any, says: str
) -> None:
    with pytest.raises(PayloadError, match="can't be stored in the journal") as caught:
        CODEC.encode(SUBJECT, value, hint)

    assert says in str(caught.value)


def test_a_private_attribute_that_the_class_does_not_make_is_refused() -> None:
    model = Private(name="a")
    model.__pydantic_private__["more"] = 1  # type: ignore[index]

    with pytest.raises(PayloadError, match=r"it would not come back, at \.more"):
        CODEC.encode(SUBJECT, model, Private)


# --- runs ----------------------------------------------------------------------------------------


@pytest.fixture
async def journal() -> AsyncIterator[SQLiteJournal]:
    async with SQLiteJournal(":memory:") as journal:
        yield journal


class Ordered(BaseModel):
    quantity: int


async def place() -> Order:
    return Order(lines=(Line(sku="a"),))


async def ship(place: Order, line: Line) -> list[Line]:
    return [*place.lines, line]


async def fail(ship: list[Line]) -> None:
    raise ValueError("not yet")


class Batch(BaseModel):
    line: Line
    cost: float = 0


async def test_a_pipeline_reads_a_stored_report_with_its_types(journal: SQLiteJournal) -> None:
    shop = Pipeline("shop", journal=journal, secret_inputs=["key"], fail_fast=False)

    @shop.step
    async def lines(order: Order, key: str) -> list[Line]:
        return [*order.lines]

    @shop.step(max_retries=2)
    async def pack(line: Line = each(lines)) -> Batch:
        return Batch(line=line)

    @shop.step
    async def send(batches: list[Batch] = collect(pack)) -> tuple[int, ...]:
        raise ValueError("not yet")

    order = Order(lines=(LINE,))
    ran = await shop.with_options(run_id="r").run(order=order, key="hunter2")

    stored = await shop.with_options(targets=["lines"]).report("r")

    assert stored["lines"].output == [LINE]
    assert stored["pack"].output == ran["pack"].output == [Batch(line=LINE)]
    assert stored["pack"].items[0].output == Batch(line=LINE)  # type: ignore[index]
    assert stored.inputs["order"] == order
    assert "hunter2" not in repr(stored.inputs)
    assert (stored.status, str(stored["send"].error)) == ("FAILED", "builtins.ValueError: not yet")
    plain = await journal.report("r")
    assert plain["pack"].output == [{"line": {"article": "a", "count": 2}, "cost": 0.0}]


async def test_a_stored_value_that_no_longer_fits_is_plain_data_in_a_report(
    journal: SQLiteJournal,
) -> None:
    async def other() -> Ordered: ...

    await run_pipeline([WorkflowStep("place", place)], journal=journal, run_id="r")

    report = await Orchestrator([WorkflowStep("place", other)], journal=journal).report("r")

    assert report["place"].output["lines"] == [{"article": "a", "count": 1}]


async def test_a_pipeline_reports_its_own_stored_runs_only(journal: SQLiteJournal) -> None:
    await (
        Orchestrator([WorkflowStep("place", place)], name="a", journal=journal)
        .with_options(run_id="r")
        .run()
    )
    other = Orchestrator([WorkflowStep("place", place)], name="b", journal=journal)

    with pytest.raises(ValueError, match="run 'r' belongs to pipeline 'a', not to 'b'; ask that"):
        await other.report("r")
    with pytest.raises(RunNotFoundError):
        await other.report("s")
    with pytest.raises(TypeError, match="run_id must be a str, not int"):
        await other.report(7)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"report\(\) needs the journal that has the run"):
        await other.with_options(journal=None).report("r")


async def test_a_resumed_run_has_real_models(journal: SQLiteJournal) -> None:
    received: list[Any] = []

    async def receive(ship: list[Line], line: Line) -> None:
        received.extend([*ship, line])

    first = [WorkflowStep("place", place), WorkflowStep("ship", ship, ["place"])]
    before = await run_pipeline(
        [*first, WorkflowStep("end", fail, ["ship"])],
        journal=journal,
        run_id="r",
        inputs={"line": LINE},
    )
    after = await run_pipeline(
        [*first, WorkflowStep("end", receive, ["ship"])], journal=journal, run_id="r"
    )

    assert [result.step_name for result in after.reused] == ["place", "ship"]
    assert after["place"].output == before["place"].output
    assert received == [Line(sku="a"), LINE, LINE]
    assert received[0].model_fields_set == {"article"}
    assert after.inputs == {"line": LINE}
    with pytest.raises(ValueError, match="was started with another input 'line'"):
        await run_pipeline(first, journal=journal, run_id="r", inputs={"line": Line(sku="b")})


def test_a_value_of_a_model_is_not_in_its_error() -> None:
    payload = CODEC.encode(SUBJECT, {"sku": "a", "count": "hunter2"}, Any)

    with pytest.raises(PayloadError) as caught:
        CODEC.decode(SUBJECT, payload, Line)

    assert "article: Field required; count: Input should be a valid integer" in str(caught.value)
    assert "hunter2" not in str(caught.value)
