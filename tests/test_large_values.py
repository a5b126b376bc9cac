"""Values and messages that are too large are refused or cut, before anything is written."""

from __future__ import annotations

import collections
import dataclasses
import decimal
import io
import logging
import math
import tracemalloc
import types
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec
import pydantic
import pytest
from results import failed, report_of, succeeded

from asyncflow import RunReport, WorkflowStep, run_pipeline
from asyncflow._core.errors import PayloadError
from asyncflow._core.text import LONGEST_LINE, LONGEST_TEXT, describe_fully
from asyncflow._core.tracebacks import format_error, has_long_message
from asyncflow._core.value_size import Extent, extent, safe_repr
from asyncflow.events import StepFailed
from asyncflow.journal import SQLiteJournal
from asyncflow.journal._codec.events import row_of
from asyncflow.journal._codec.payloads import Codec
from asyncflow.logs import LoggingObserver

MEGABYTE = 2**20


@dataclasses.dataclass
class Held:
    items: Any
    constant = [0] * 1_000


class Struct(msgspec.Struct):
    items: Any


class Model(pydantic.BaseModel, extra="allow"):
    items: Any


class Pair(NamedTuple):
    items: Any
    other: int = 0


class Text(str): ...


def billion_references() -> Any:
    """Return a list that stands for 10^9 elements, and takes no memory."""
    value: Any = 1
    for _ in range(9):
        value = [value] * 10
    return value


def peak_bytes(call: Callable[[], object]) -> int:
    """Return how much memory a call takes at most."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


# --- the extent of values ------------------------------------------------------------------------


PLAIN = [
    *(None, True, 1, -1.5, "x" * 1_000, [], {}, {"a": [1, "b"]}),
    *([1] * 400, [1.5] * 400, [{"a": 1}] * 100, ["x"] * 300),
]
OTHER = [
    *((1,), {1: 2}, {1}, math.nan, [math.inf], b"x", Text("x"), {Text("x"): 1}, [{1: 2}] * 50),
    *(collections.Counter(), Held(1), Struct(1), Model(items=1), Pair(1), object(), Held),
]
LARGE = [
    *("x" * 1_001, [0] * 501, ["x" * 100] * 11, {"x" * 1_001: 1}, {1: "x" * 1_001}),
    *(10**5_000, [2**70] * 100, b"x" * 1_001, bytearray(1_001), memoryview(bytes(1_001))),
    *([{"x" * 40: 1}] * 30, [{}, *[{"a": 1}] * 250], [{1: "x" * 50}] * 50, [{"a": "x" * 50}] * 50),
    *(Text("x" * 1_001), decimal.Decimal("1" * 1_001), {*range(501)}, frozenset(range(501))),
    *((0,) * 501, type("List", (list,), {})([0] * 501), collections.OrderedDict(a="x" * 1_001)),
    *(cls(items=["x" * 500] * 3) for cls in (Held, Struct, Model, Pair)),
    Model(items=1, more=["x" * 500] * 3),
    *(collections.deque([0] * 501), collections.UserList([0] * 501), ValueError([0] * 501)),
    *(collections.UserDict(a=[0] * 501), types.SimpleNamespace(a=[0] * 501)),
    collections.ChainMap({"a": [0] * 501}),
]


@pytest.mark.parametrize(
    ("values", "found"), [(PLAIN, "plain"), (OTHER, "other"), (LARGE, "large")]
)
def test_a_value_is_counted_against_a_budget(values: list[object], found: Extent) -> None:
    assert [extent(value, 1_000) for value in values] == [found] * len(values)


def test_a_value_that_contains_itself_is_too_deep() -> None:
    endless: list[Any] = []
    endless.append(endless)

    assert extent(endless, MEGABYTE) == "deep"
    assert safe_repr(endless) == "<list of 1, too deep to be shown>"


def test_what_counts_a_value_survives_its_attributes() -> None:
    class Refusing(Struct):
        def __getattribute__(self, name: str) -> Any:
            raise RuntimeError(name)

    assert extent(Refusing(1), 1_000) == "other"


# --- values --------------------------------------------------------------------------------------


@pytest.mark.parametrize("holder", [lambda value: value, Held, Struct, lambda v: Model(items=v)])
def test_a_billion_references_are_refused_without_being_written(
    holder: Callable[[Any], Any],
) -> None:
    value, codec = holder(billion_references()), Codec("json", MEGABYTE)

    def refuse() -> None:
        with pytest.raises(PayloadError, match="whose limit is 1,048,576: store it elsewhere"):
            codec.encode("the output of step 'a'", value, type(value))

    assert peak_bytes(refuse) < MEGABYTE


def test_a_pickle_is_written_up_to_the_limit_only() -> None:
    value, codec = [float(number) for number in range(10**6)], Codec("cloudpickle", MEGABYTE)

    def refuse() -> None:
        with pytest.raises(PayloadError, match="takes more bytes than can be stored"):
            codec.encode("the output of step 'a'", (value, object), Any)

    assert peak_bytes(refuse) < 3 * MEGABYTE


def test_a_pickle_may_refer_to_the_same_object_often() -> None:
    codec = Codec("cloudpickle", MEGABYTE)

    payload = codec.encode("the output of step 'a'", billion_references(), Any)

    assert payload.codec == "cloudpickle"
    assert len(payload.data) < 1_000


def test_a_report_with_a_billion_references_can_be_written() -> None:
    report = report_of(
        succeeded("a", billion_references()),
        succeeded("b", Held(billion_references())),
        succeeded("c", "x" * 20_000_000),
        succeeded("d", collections.deque([billion_references()])),
    )
    report_of(succeeded("a", 1)).to_html()  # what the first page imports and compiles is not meant
    texts: list[str] = []

    def write() -> None:
        texts[:] = report.to_json(), report.to_html(), repr(report["a"]), repr(report["b"])

    assert peak_bytes(write) < 5 * MEGABYTE
    again = RunReport.from_json(texts[0])
    assert again["a"].output.text == "<list of 10, too large to be shown>"
    assert again["b"].output.text == "<Held, too large to be shown>"
    assert again["c"].output.text == "<str, too large to be shown>"
    assert again["d"].output.text == "<deque, too large to be shown>"


# --- messages ------------------------------------------------------------------------------------

LENGTH = 20_000_000


def long_errors() -> list[BaseException]:
    """Return errors with a long message: their own, that of a cause, in a group, and in a note."""
    long = ValueError("x" * LENGTH)
    led_to = RuntimeError("short")
    led_to.__cause__ = long
    noted = RuntimeError("short")
    noted.add_note("y" * LENGTH)
    return [long, led_to, ExceptionGroup("group", [long]), noted]


@pytest.mark.parametrize("number", range(4))
def test_a_long_message_is_cut_wherever_it_is_shown(number: int) -> None:
    error = long_errors()[number]
    report, event = report_of(failed("a", error)), StepFailed("a", 1, 1.0, error)
    handler = logging.StreamHandler(io.StringIO())
    logger = logging.Logger("cut")
    logger.addHandler(handler)
    texts: list[str] = []

    def show() -> None:
        LoggingObserver(logger).for_run()(event)
        texts[:] = [
            *(str(report), report.to_json(), report.to_html(), describe_fully(error)),
            *(format_error(error), str(row_of("r", 1, event).payload), handler.stream.getvalue()),
        ]

    assert peak_bytes(show) < 5 * MEGABYTE
    assert report["a"].error is error
    assert has_long_message(error)
    assert max(map(len, texts)) < 4 * LONGEST_TEXT
    for text in (texts[1], *texts[4:]):
        assert " more characters)" in text
    assert f"… ({LENGTH - LONGEST_LINE:,} more characters)" in texts[4]


def test_a_line_says_how_much_of_a_message_it_lacks() -> None:
    report = report_of(
        failed("a", ValueError("x" * LENGTH)), failed("b", ValueError("one\n" * LENGTH))
    )

    first, second = str(report).splitlines()[1:3]

    assert first.endswith(f"ValueError: {'x' * LONGEST_LINE}… (19,990,000 more characters)")
    assert second.endswith("ValueError: one")


def test_an_error_whose_message_cannot_be_read_has_no_long_one() -> None:
    class Refusing(Exception):
        def __getattribute__(self, name: str) -> Any:
            raise RuntimeError(name)

    assert not has_long_message(Refusing())


async def test_a_step_with_a_long_message_fails_with_the_error_as_raised() -> None:
    async def fail() -> None:
        raise ValueError("x" * LENGTH)

    async with SQLiteJournal(":memory:") as journal:
        report = await run_pipeline([WorkflowStep("fail", fail)], journal=journal)
        stored = await journal.report(report.run_id)

    assert str(report["fail"].error) == "x" * LENGTH
    assert str(stored["fail"].error).endswith("… (19,900,000 more characters)")
