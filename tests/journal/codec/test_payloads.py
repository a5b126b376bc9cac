"""A value is stored only if it comes back exactly equal; a refusal says why and what to do."""

from __future__ import annotations

import collections.abc
import csv
import dataclasses
import datetime
import decimal
import enum
import gc
import importlib
import io
import math
import sys
import threading
import typing
import uuid
import weakref
import zoneinfo
from collections.abc import Callable
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from typing import Annotated, Any, NamedTuple

import msgspec
import pytest

import asyncflow.journal._codec.payloads
from asyncflow._core.errors import PayloadError
from asyncflow._core.history.results import REDACTED, Payload
from asyncflow._core.value_size import field_names
from asyncflow.journal._codec.payloads import Codec, roundtrip_difference

SUBJECT = "the output of step 'load'"
PLAIN, PICKLING = Codec("json", 1_000), Codec("cloudpickle", 1_000)


def roundtrip(value: Any, hint: Any = Any, codec: Codec = PLAIN) -> Any:
    payload = codec.encode(SUBJECT, value, hint)
    return codec.decode(SUBJECT, payload, hint)


def refusal(value: Any, hint: Any = Any, codec: Codec = PLAIN, *, subject: str = SUBJECT) -> str:
    with pytest.raises(PayloadError) as caught:
        codec.encode(subject, value, hint)
    assert caught.value.subject == subject
    assert str(caught.value) == f"{subject} {caught.value.problem}"
    return caught.value.problem


class Colour(enum.Enum):
    RED = "red"


class Text(str): ...


class OwnPath(PurePosixPath): ...


class Pair(NamedTuple):
    left: int
    right: str


class Thing(msgspec.Struct):
    name: str
    tags: tuple[str, ...] = ()


@dataclasses.dataclass
class Order:
    when: datetime.datetime
    lines: list[Pair]
    colour: Colour = Colour.RED
    note: str = dataclasses.field(default="", compare=False)


class Measure(NamedTuple):
    ratio: float
    parts: tuple[float, ...] = (0, 1)


@dataclasses.dataclass
class Report:
    total: float = 0
    best: Measure | None = None
    by_day: dict[float, list[Measure]] = dataclasses.field(default_factory=dict)


class Attrs:
    """An attrs class, as far as msgspec can tell."""

    __attrs_attrs__ = (type("Attribute", (), {"name": "x"})(),)

    def __init__(self, x: Any) -> None:
        self.x = x


NOON = datetime.datetime(2024, 6, 1, 12, tzinfo=datetime.UTC)
CENTRAL = datetime.timezone(datetime.timedelta(hours=1), "CET")


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        *((value, Any) for value in (None, True, 1, 2**70, -0.0, 1.5, "x", "é\0", [], {"a": [1]})),
        (None, None),
        ((1, 2), tuple[int, ...]),
        ({1, 2}, set[int]),
        (frozenset({(1, 2)}), frozenset[tuple[int, int]]),
        ({1: "x"}, dict[int, str]),
        ({"b": 1, "a": 2}, dict),
        (b"\xff", bytes),
        (NOON, datetime.datetime),
        (datetime.date(2024, 6, 1), datetime.date),
        (datetime.timedelta(1, 2, 3), datetime.timedelta),
        (decimal.Decimal("1.0"), decimal.Decimal),
        (uuid.UUID(int=1), uuid.UUID),
        (Path("a/b.csv"), Path),
        (PureWindowsPath("C:/a"), PureWindowsPath),
        ([Path("a"), None], list[Path | None]),
        ({"a": {Path("b")}}, dict[str, set[Path]]),
        (Colour.RED, Colour),
        (Pair(1, "x"), Pair),
        ([Thing("a", ("x",))], list[Thing]),
        (Order(NOON, [Pair(1, "x")], note="n"), Order),
        (1, int | str | None),
        (1, typing.Optional[int]),  # noqa: UP045
        ({"a": (1,)}, dict[str, tuple[int]]),
        (1, Annotated[int, msgspec.Meta(ge=0)]),
        (7, Annotated[int, []]),  # unhashable
        (7, "an unresolved name"),
        ([7], collections.abc.Iterable[int]),  # unknown to msgspec
        ([7], object),
        ([7, "x"], list[object]),
        ([7], list[Exception]),
        (7, lambda: None),
    ],
)
def test_a_value_that_comes_back_equal_is_stored(value: Any, hint: Any) -> None:
    again = roundtrip(value, hint)

    assert type(again) is type(value)
    assert again == value
    assert repr(again) == repr(value)


@pytest.mark.parametrize(
    ("value", "hint", "says"),
    [
        ((1, 2), Any, "tuple would come back as list; annotate what the action returns, or pass"),
        ([{"a": (1,)}], Any, "tuple would come back as list, at [0]['a']"),
        ({1: 2}, Any, "int would come back as str, at a key"),
        ({"x": {1: 2}}, Any, "int would come back as str, at a key of ['x']"),
        ({1, 2}, Any, "set would come back as list"),
        (NOON, Any, "datetime.datetime would come back as str"),
        (NOON.astimezone(zoneinfo.ZoneInfo("Europe/Berlin")), datetime.datetime, "would come back"),
        (NOON.astimezone(CENTRAL), datetime.datetime, "would come back"),
        (math.nan, Any, "JSON has no nan"),
        ([-math.inf], Any, "JSON has no -inf, at [0]"),
        (math.nan, float | None, "JSON has no nan"),
        (math.nan, float, "ValidationError: Expected `float`, got `null` (JSON has no nan and no"),
        (Order(NOON, []), int, "it is not what the annotation says: ValidationError: Expected `in"),
        (Order(NOON, []), Any, "test_payloads.Order would come back as dict"),
        (Text("x"), Any, "Encoding objects of type Text is unsupported"),
        ({"x": Text("x")}, Any, "Encoding objects of type Text is unsupported"),
        (collections.Counter("a"), Any, "collections.Counter would come back as dict"),
        (((1,),), list, "tuple would come back as list"),
        (bytearray(b"x"), bytes, "bytearray would come back as bytes"),
        ([bytearray(b"x")], list[bytes], "bytearray would come back as bytes, at [0]"),
        (Path("a"), Any, "Path would come back as str; annotate what the action returns"),
        (Path("a"), PurePath, "Path would come back as pathlib"),
        (Path("a"), Path | str, "Path would come back as str; annotate a path as Path"),
        ([1, Path("a")], list[Path], "it is not what the annotation says: ValidationError: "),
        (OwnPath("a"), OwnPath, "test_payloads.OwnPath comes back the same"),
        (object(), Any, "Encoding objects of type object is unsupported"),
        (lambda: None, Any, "Encoding objects of type function is unsupported"),
        ("\ud800", Any, "UnicodeEncodeError"),
        (msgspec.Raw(b"1"), msgspec.Raw, "no telling whether a msgspec.Raw comes back the same"),
    ],
)
def test_a_value_that_would_come_back_different_is_refused(
    value: Any, hint: Any, says: str
) -> None:
    problem = refusal(value, hint)

    assert problem.startswith("can't be stored in the journal: ")
    assert says in problem
    assert problem.endswith(', or pass codec="cloudpickle" to the journal')


@pytest.mark.parametrize(
    ("value", "hint", "output", "given"),
    [
        ({1}, Any, "annotate what the action returns", "annotate the parameter that takes it"),
        *(
            (
                value,
                hint,
                "return plain data, a dataclass or a",
                "give plain data, a dataclass or a",
            )
            for value in (object(), Text("x"))
            for hint in (Any, object)
        ),
        ({1}, list, "return what the annotation says, or plain", "give what the annotation says"),
    ],
)
def test_a_refusal_suggests_a_remedy(value: Any, hint: Any, output: str, given: str) -> None:
    assert f"; {output}" in refusal(value, hint)
    assert f"; {given}" in refusal(value, hint, subject="input 'x'")


class _Cursor(collections.abc.Iterator[int]):
    def __next__(self) -> int:
        return 1

    def fetchall(self) -> list[int]:
        return [1]


async def _rows() -> collections.abc.AsyncIterator[int]:
    yield 1


@pytest.mark.parametrize(
    ("made", "kind", "instead"),
    [
        (lambda: (n for n in "ab"), "generator", "a list, with list(...)"),
        (lambda: csv.reader([]), "reader", "a list, with list(...)"),
        (_rows, "async_generator", "a list, [item async for item in ...]; only one mapped step, "),
        (Path(__file__).open, "TextIOWrapper", "the path of the file, or what its read()"),
        (io.BytesIO, "BytesIO", "what its getvalue() returns"),
        (_Cursor, "_Cursor", "its rows, with fetchall()"),
    ],
)
def test_the_refusal_of_an_iterator_says_what_would_work_for_its_kind(
    made: Callable[[], Any], kind: str, instead: str
) -> None:
    problem = f"can't be stored in the journal: it is an iterator ({kind}), which yields each item "
    problem += "only once; "
    iterator = made()

    for codec in [PLAIN, PICKLING] if "a list" in instead else [PLAIN]:
        assert refusal(iterator, Any, codec).startswith(f"{problem}return {instead}")
        given = refusal(iterator, Any, codec, subject="input 'x'")
        assert given.startswith(f"{problem}give {instead}")
    if hasattr(iterator, "close"):
        iterator.close()


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (0, float),
        ([1.5, 0], list[float]),
        (None, Order),
        ("x", int),
        ({"left": 1}, Pair),
        ([1, "x"], Pair),
        ({"name": "a", "more": 1}, Thing),
        (7, Path),
        ("a", Path),
    ],
)
def test_a_value_that_violates_its_annotation_is_stored_if_it_comes_back_equal(
    value: Any, hint: Any
) -> None:
    payload = PLAIN.encode(SUBJECT, value, hint)

    assert payload.codec == "json-plain"
    for later in (hint, Any, bytes):
        again = PLAIN.decode(SUBJECT, payload, later)
        assert repr(again) == repr(value)


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (Report(), Report),
        (Report(3, Measure(1), {0: [Measure(2)], 1.5: []}), Report),
        ([Measure(0), Measure(0.5)], list[Measure]),
        ({2, 0.5}, set[float]),
        ((5, NOON), tuple[float, datetime.datetime]),
        ((0, 1), collections.abc.Sequence[float]),
    ],
)
def test_an_int_for_a_float_comes_back_equal_at_any_depth(value: Any, hint: Any) -> None:
    again = roundtrip(value, hint)

    assert type(again) is type(value)
    assert again == value


def test_an_int_that_no_float_equals_is_refused_in_place_of_one() -> None:
    assert "9007199254740993 would come back as 9007199254740992.0, at .total" in refusal(
        Report(2**53 + 1), Report
    )
    assert "bool" in refusal(Report(True), Report)
    assert roundtrip(2**53 + 1, float) == 2**53 + 1


def test_the_codec_keeps_no_type_of_a_dropped_pipeline_alive() -> None:
    codec = Codec("json", 1_000)
    made = dataclasses.make_dataclass("Made", [("x", int)])
    gone = weakref.ref(made)
    assert roundtrip(made(1), made, codec).x == 1

    del made
    for number in range(asyncflow.journal._codec.payloads._DECODERS):
        roundtrip(number, typing.Literal[number], codec)  # type: ignore[valid-type]
        field_names(type("Other", (), {}))
    gc.collect()

    assert gone() is None


def test_a_recursive_value_is_refused() -> None:
    endless: list[Any] = []
    endless.append(endless)

    problem = refusal(endless, codec=Codec("json", 10_000))

    assert "it is nested too deeply, or contains itself" in problem


class Odd:
    def __eq__(self, other: object) -> bool:
        raise RuntimeError("no")

    __hash__ = None  # type: ignore[assignment]


@dataclasses.dataclass
class Holder:
    a: int
    __eq__ = Odd.__eq__  # type: ignore[assignment]

    def __repr__(self) -> str:
        raise RuntimeError("no")


class OddProperty(msgspec.Struct):
    a: int

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError("no")


def test_objects_that_cannot_be_compared_are_handled() -> None:
    assert roundtrip(Holder(1), Holder).a == 1
    assert "it can't be compared with what comes back: RuntimeError" in refusal(
        OddProperty(1), OddProperty
    )


def test_an_oversized_value_is_refused() -> None:
    assert roundtrip("x" * 998) == "x" * 998
    for codec, size in ((PLAIN, "1,001 bytes"), (PICKLING, "more bytes than can be stored")):
        assert refusal("x" * 999, codec=codec) == (
            f"takes {size} in the journal, whose limit is 1,000: store it elsewhere and "
            "return where, or raise max_payload_bytes"
        )
    assert "store it elsewhere and give where it is, or" in refusal("x" * 999, subject="input 'x'")


def test_an_oversized_value_is_refused_before_it_is_decoded_or_compared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(asyncflow.journal._codec.payloads, "roundtrip_difference", None)
    monkeypatch.setattr("cloudpickle.loads", None)

    assert "takes 1,202 bytes" in refusal("\0" * 200)
    assert "in the journal, whose limit is 1,000" in refusal(b"x" * 2_000, codec=PICKLING)


# --- cloudpickle ---------------------------------------------------------------------------------


def test_values_that_json_cannot_restore_are_pickled_on_request() -> None:
    assert PICKLING.encode(SUBJECT, [1], Any).codec == "json"
    assert PICKLING.encode(SUBJECT, (1, 2), Any).codec == "cloudpickle"
    assert roundtrip((1, 2), codec=PICKLING) == (1, 2)
    assert roundtrip(lambda: 7, codec=PICKLING)() == 7
    assert math.isnan(roundtrip(math.nan, codec=PICKLING))


@pytest.mark.parametrize("codec", [PLAIN, PICKLING])
def test_the_refusal_of_an_input_that_is_no_data_says_where_it_belongs(codec: Codec) -> None:
    connection, hint = threading.Lock(), "; a client or a connection can't be an input of a run "

    assert hint in refusal(connection, codec=codec, subject="input 'client'")
    assert hint not in refusal(connection, codec=codec)


def test_a_pickle_is_read_only_on_request() -> None:
    payload = PICKLING.encode(SUBJECT, (1, 2), Any)

    with pytest.raises(PayloadError, match="reading a pickle can run any code"):
        PLAIN.decode(SUBJECT, payload, Any)


@pytest.mark.parametrize(
    ("payload", "hint", "says"),
    [
        (Payload("yaml", b"x"), Any, "its codec 'yaml' is not one of 'json', 'cloudpickle'"),
        (REDACTED, Any, "it was secret, so it was never stored"),
        (Payload("json", b"[1"), Any, "DecodeError: Input data was truncated"),
        (Payload("json", b'"x"'), int, "ValidationError: Expected `int`, got `str`"),
        (Payload("cloudpickle", b"x"), Any, "UnpicklingError"),
    ],
)
def test_an_unreadable_payload_is_refused(payload: Payload, hint: Any, says: str) -> None:
    with pytest.raises(PayloadError, match="can't be read from the journal") as caught:
        PICKLING.decode(SUBJECT, payload, hint)

    assert says in str(caught.value)


def test_a_journal_without_msgspec_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(sys.modules):
        if name == "msgspec" or name.startswith(("msgspec.", "asyncflow.journal")):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "msgspec", None)

    with pytest.raises(
        ImportError, match=r"needs msgspec.* pip install 'asyncflow-tiers\[journal\]'"
    ):
        importlib.import_module("asyncflow.journal")


def test_a_codec_without_cloudpickle_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cloudpickle", None)

    with pytest.raises(ImportError, match=r"pip install 'asyncflow-tiers\[cloudpickle\]'"):
        roundtrip((1, 2), codec=Codec("cloudpickle", 1_000))


# --- the comparison ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (True, 1),
        (0.0, -0.0),
        ((1,), [1]),
        ([1, 2], [1]),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        ({"a": 1}, {"a": 1, "b": 2}),
        ({1}, {True}),
        ({1}, {2}),
        ({1, 2}, {1}),
        ("x", Text("x")),
        (Colour.RED, "red"),
        (Thing("a"), Thing("b")),
        (Attrs(1), Attrs(True)),
        (Order(NOON, [], note="a"), Order(NOON, [], note="b")),
        (NOON, NOON.replace(fold=1)),
        (object, object),
        ([1, "x" * 200], [1, "y" * 200]),
    ],
)
@pytest.mark.parametrize("simple", [True, False])
def test_a_difference_is_found(one: Any, other: Any, simple: bool) -> None:
    found = roundtrip_difference(one, other, simple=simple)

    assert found
    assert "\n" not in found
    assert len(found) < 300


def test_a_comparison_gives_up_on_deep_nesting() -> None:
    endless: list[Any] = []
    endless.append(endless)

    assert roundtrip_difference(endless, endless) == "it is nested too deeply to be compared"
