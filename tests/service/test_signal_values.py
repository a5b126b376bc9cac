"""Which values a signal takes does not depend on who sends them."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime as dt
import enum
import json
import math
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, NamedTuple, Protocol, TypedDict

import httpx
import msgspec
import pydantic
import pytest
from click.testing import CliRunner

from asyncflow import PayloadError, Pipeline, Signal, after
from asyncflow._cli import commands
from asyncflow._core.pipeline.signal import is_plain
from asyncflow.journal import SQLiteJournal
from asyncflow.service import Service
from asyncflow.testing import run_in_virtual_time
from asyncflow.web import app


@dataclasses.dataclass
class Answer:
    n: int
    why: str = ""


class Longer(Answer): ...


class Colour(enum.Enum):
    RED = "red"


class Point(NamedTuple):
    x: float
    y: float


class Model(pydantic.BaseModel):
    n: int
    why: str = ""


class Struct(msgspec.Struct):
    n: int


class Fields(TypedDict):
    n: int


class Dated(TypedDict):
    at: dt.date
    answer: Answer


NO = object()
"""Stands for a refusal."""
DAY, MIDNIGHT = dt.date(2026, 1, 1), dt.datetime(2026, 1, 1)
UTC_MIDNIGHT = MIDNIGHT.replace(tzinfo=dt.UTC)
NON_NEGATIVE = Annotated[int, msgspec.Meta(ge=0)]
BOTH = {"at": DAY, "answer": Answer(1)}

TABLE: list[tuple[Any, list[tuple[Any, Any]]]] = [
    (int, [(True, NO), (1, 1), (1.0, NO), ("1", NO), (2**70, 2**70), (None, NO)]),
    (float, [(1, 1.0), (1.5, 1.5), (True, NO), (math.nan, NO), (math.inf, NO), ("1", NO)]),
    (float, [(10**400, NO), (10**300, 1e300)]),
    (str, [("x", "x"), (1, NO), ("\ud800", NO), ("", ""), (b"x", NO), (Colour.RED, NO)]),
    (bool, [(True, True), (1, NO), ("true", NO), (None, NO)]),
    (Literal["a", "b"], [("a", "a"), ("c", NO), (None, NO)]),
    (list[int], [([1], [1]), ((1, 2), NO), ([True], NO), ([1.0], NO), ({1}, NO), ("12", NO)]),
    (list[int], [([None], NO), ({"a": 1}.keys(), NO)]),
    (dict[str, int], [({"a": 1}, {"a": 1}), ({1: 1}, NO), ({"a": True}, NO), ([("a", 1)], NO)]),
    (dict[int, int], [({1: 1}, {1: 1}), ({"1": 1}, {1: 1}), ({1: True}, NO)]),
    (int | None, [(None, None), (1, 1), ("x", NO)]),
    (bytes, [(b"x", b"x"), ("eA==", b"x"), ("e", NO), (bytearray(b"x"), NO)]),
    (dt.datetime, [(MIDNIGHT, MIDNIGHT), (UTC_MIDNIGHT, UTC_MIDNIGHT), (DAY, NO), (5, NO)]),
    (dt.datetime, [("2026-01-01T00:00:00", MIDNIGHT)]),
    (dt.date, [(DAY, DAY), (MIDNIGHT, NO), ("2026-01-01", DAY)]),
    (Colour, [(Colour.RED, Colour.RED), ("red", Colour.RED), ("blue", NO)]),
    (Answer, [(Answer(1), Answer(1)), ({"n": 1}, Answer(1)), ({"n": "1"}, NO), ({"m": 1}, NO)]),
    (Answer, [(Answer("x"), NO), ({"n": 1, "z": 2}, Answer(1)), (Longer(1), NO)]),  # type: ignore[arg-type]
    (Point, [(Point(1, 2), Point(1.0, 2.0)), ((1, 2), NO), ([1.5, 2], Point(1.5, 2.0))]),
    (Point, [({"x": 1, "y": 2}, NO)]),
    (Model, [(Model(n=1), Model(n=1)), ({"n": 1}, Model(n=1)), ({"n": "1"}, NO)]),
    (Model, [({"n": 1, "z": 1}, Model(n=1))]),
    (Struct, [(Struct(1), Struct(1)), ({"n": 1}, Struct(1))]),
    (Fields, [({"n": 1}, {"n": 1}), ({"n": "x"}, NO), ({}, NO)]),
    (Dated, [(BOTH, BOTH), ({"at": "2026-01-01", "answer": {"n": 1}}, BOTH), ({"at": DAY}, NO)]),
    (list[Answer], [([Answer(1)], [Answer(1)]), ([{"n": 1}], [Answer(1)]), ([Struct(1)], NO)]),
    (Answer | None, [(Answer(1), Answer(1)), (None, None), ({"n": 1}, Answer(1))]),
    (list[Model], [([Model(n=1)], [Model(n=1)]), ([{"n": 1}], [Model(n=1)])]),
    (list[Colour], [([Colour.RED], [Colour.RED]), (["red"], [Colour.RED])]),
    (list[dt.date], [([DAY], [DAY]), (["2026-01-01"], [DAY]), ([MIDNIGHT], NO)]),
    (dict[str, Struct], [({"a": Struct(1)}, {"a": Struct(1)})]),
    (tuple[Answer, ...], [((Answer(1),), (Answer(1),)), ([], ())]),
    (set[int], [({1}, {1}), ([1], {1}), ({1.5}, NO)]),
    (tuple[int, str], [((1, "a"), (1, "a")), ([1, "a"], (1, "a")), ((1,), NO)]),
    (Sequence[int], [([1], [1]), ((1,), NO)]),
    (Path, [(Path("a"), Path("a")), ("a", Path("a")), (PurePosixPath("a"), NO)]),
    (NON_NEGATIVE, [(1, 1), (-1, NO)]),
    (list[NON_NEGATIVE], [([1], [1]), ([-1], NO)]),
    (object, [(1, 1), (Answer(1), NO), ({"a": [1, None]}, {"a": [1, None]}), ((1,), NO)]),
    (object, [({1, 2}, NO)]),
    (list, [([1], [1]), ((1,), NO), ({"a"}, NO), ([Answer(1)], NO)]),
    (dict, [({"a": 1}, {"a": 1}), ({1: 2}, NO)]),
]


class Page:
    """Sends signals as a browser does."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client

    async def signal(self, run_id: str, name: str, value: Any) -> None:
        body = {"name": name, "value": value}
        answer = await self._client.post(f"/api/runs/{run_id}/signal", json=body)
        assert answer.status_code in (200, 409)
        if answer.status_code == 409:
            raise ValueError(answer.text)


class Shell:
    """Sends signals as a shell does."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def signal(self, run_id: str, name: str, value: Any) -> None:
        arguments = ["signal", run_id, name, json.dumps(value), "--journal", str(self._path)]
        result = await asyncio.to_thread(CliRunner().invoke, commands, arguments)
        assert result.exit_code in (0, 1), result.output
        if result.exit_code == 1:
            raise ValueError(result.output)


def is_sent_as_text(value: Any) -> bool:
    """Whether a shell and a page can send a value."""
    try:
        return is_plain(value) and bool(json.dumps(value, ensure_ascii=False).encode())
    except UnicodeEncodeError:
        return False


async def sent_by_each_face(path: Path, kind: Any, value: Any, **options: Any) -> dict[str, Any]:
    """Return what each sender of a value hears, or what the step after the signal receives."""
    async with SQLiteJournal(path, **options) as journal:
        return await sent_with(journal, path, kind, value)


async def sent_with(journal: Any, path: Path, kind: Any, value: Any) -> dict[str, Any]:
    received: list[Any] = []
    pipeline = Pipeline("p")
    signal = pipeline.signal("answer", kind)

    @pipeline.step
    async def take(answer: Any = after(signal)) -> None:
        received.append(answer)

    async def by_handle(journal: Any) -> None:
        options = pipeline.with_options(journal=journal, on_wait="stay")
        async with options.start() as run:
            try:
                await run.signal("answer", value)
            except BaseException:
                run.cancel()
                raise
            assert (await run.report()).all_passed

    async def by_id(sender: Any) -> None:
        run_id = type(sender).__name__
        waiting = pipeline.with_options(journal=journal, run_id=run_id)
        await waiting.run()
        await sender.signal(run_id, "answer", value)
        assert (await waiting.with_options(on_active="wait").run()).all_passed

    heard: dict[str, Any] = {}
    transport = httpx.ASGITransport(app(journal, pipelines={"p": pipeline}))
    async with (
        Service([pipeline], journal=journal) as service,
        httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8765") as client,
    ):
        faces: dict[str, Callable[[], Any]] = {
            "handle": lambda: by_handle(None),
            "handle, with a journal": lambda: by_handle(journal),
            "journal": lambda: by_id(journal),
            "service": lambda: by_id(service),
        }
        if is_sent_as_text(value):
            faces |= {"page": lambda: by_id(Page(client)), "shell": lambda: by_id(Shell(path))}
        for face, send in faces.items():
            received.clear()
            try:
                async with asyncio.timeout(60):
                    await send()
                (heard[face],) = received
            except ValueError:
                heard[face] = NO
    return heard


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        pytest.param(kind, value, expected, id=f"{getattr(kind, '__name__', kind)} {value!r}")
        for kind, values in TABLE
        for value, expected in values
    ],
)
def test_what_a_signal_takes_does_not_depend_on_who_sends_it(
    tmp_path: Path, kind: Any, value: Any, expected: Any
) -> None:
    heard = run_in_virtual_time(sent_by_each_face(tmp_path / "runs.db", kind, value))

    assert heard == dict.fromkeys(heard, expected)
    if expected is not NO:
        assert {type(each) for each in heard.values()} == {type(expected)}
        assert {repr(each) for each in heard.values()} == {repr(expected)}


class Unresolved(TypedDict):
    answer: Missing  # type: ignore[name-defined]  # noqa: F821


class Drawing(Protocol):
    width: int


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (
            dt.date | str,
            r"date \| str: msgspec .* makes no JSON schema of this hint: .* one str-like",
        ),
        (list["Answer"], "must be a type, not 'Answer'; a name in quotes can't be resolved here"),
        (list[Unresolved], "hint must have types that can be resolved: name 'Missing'"),
        (Drawing, "Drawing: hint must be no abstract type, since no value has exactly this one"),
        ("Answer", "hint must be a type, not 'Answer'"),
    ],
)
def test_a_type_without_a_schema_is_refused_where_the_signal_is_made(kind: Any, why: str) -> None:
    with pytest.raises(TypeError, match=f"signal 'answer' can't be of type .*{why}"):
        Pipeline("p").signal("answer", kind)
    with pytest.raises(TypeError, match=why):
        Signal(kind)


@pytest.mark.parametrize(
    ("value", "expected"),
    [("a", "a"), (1, 1), (True, NO), ("b", NO)],
    ids=["a", "1", "True", "b"],
)
def test_a_literal_of_several_types_is_checked_or_refused(
    tmp_path: Path, value: Any, expected: Any
) -> None:
    try:
        Signal(Literal["a", 1])
    except TypeError as error:  # before 0.22, msgspec made no schema of it
        problem = str(error)
    else:
        problem = ""
    if problem:
        assert "makes no JSON schema of this hint" in problem
        return
    kind = Literal["a", 1]
    heard = run_in_virtual_time(sent_by_each_face(tmp_path / "runs.db", kind, value))

    assert heard == dict.fromkeys(heard, expected)
    assert {type(each) for each in heard.values()} == {type(expected)}


class Engine:
    """Has no form in JSON."""

    def __eq__(self, other: object) -> bool:
        return type(other) is Engine

    def __hash__(self) -> int:
        return 0


@pytest.mark.parametrize(
    ("value", "is_taken"), [(Engine(), True), (None, True), ({}, False), (Answer(1), False)]
)
def test_a_type_without_a_form_in_json_takes_its_instances_only(
    tmp_path: Path, value: Any, is_taken: bool
) -> None:
    path, kind = tmp_path / "runs.db", Engine | None
    heard = run_in_virtual_time(sent_by_each_face(path, kind, value, codec="cloudpickle"))

    assert heard == dict.fromkeys(heard, value if is_taken else NO)


async def test_an_instance_that_the_journal_can_not_store_is_refused_and_the_run_waits_on(
    tmp_path: Path,
) -> None:
    pipeline = Pipeline("p")
    pipeline.signal("engine", Engine | None)
    async with SQLiteJournal(tmp_path / "runs.db") as journal:
        waiting = pipeline.with_options(journal=journal, run_id="r")
        await waiting.run()
        with pytest.raises(PayloadError, match=r"signal 'engine' can't be stored in the journal"):
            await journal.signal("r", "engine", Engine())
        async with waiting.with_options(on_wait="stay").start() as run:
            with pytest.raises(PayloadError, match="can't be stored in the journal"):
                await run.signal("engine", Engine())
            await run.signal("engine", None)

            assert (await run.report()).all_passed


async def test_a_service_checks_the_value_for_a_run_that_it_has(tmp_path: Path) -> None:
    """A schema does not say all of a type, and the run would delete the value."""
    pipeline = Pipeline("p")
    pipeline.signal("at", list[dt.datetime])
    async with (
        SQLiteJournal(tmp_path / "runs.db") as journal,
        Service([pipeline.with_options(on_wait="stay")], journal=journal) as service,
    ):
        run = await service.start("p", run_id="r")
        with pytest.raises(ValueError, match=r"signal 'at' .*tomorrow"):
            await service.signal("r", "at", ["tomorrow"])
        await service.signal("r", "at", ["2026-01-01T00:00:00"])

        assert (await run.report())["at"].output == [MIDNIGHT]


async def test_the_same_value_is_no_other_one_whoever_sends_it_again(tmp_path: Path) -> None:
    """A handle makes 1.0 of the 1 that it is given, and a journal does not know the type."""
    pipeline = Pipeline("p")
    point = pipeline.signal("point", Point)
    pipeline.signal("never", bool, depends_on=[point])
    async with SQLiteJournal(tmp_path / "runs.db") as journal:
        staying = pipeline.with_options(journal=journal, run_id="r", on_wait="stay")
        async with staying.start() as run:
            await run.signal("point", Point(1, 2))
            await journal.signal("r", "point", [1, 2])
            await journal.signal("r", "point", Point(1, 2))
            await run.signal("point", [1, 2])
            with pytest.raises(ValueError, match="has another value already"):
                await journal.signal("r", "point", [1, 3])
            run.cancel()


WITHOUT_MSGSPEC = """
import sys
sys.modules["msgspec"] = None
import asyncio, dataclasses, datetime
from typing import Annotated, Literal, TypedDict
from annotated_types import Ge
from asyncflow import Signal
from asyncflow._core.pipeline.signal import take

@dataclasses.dataclass
class Answer: n: int
class Fields(TypedDict, total=False): n: int

DAY = datetime.date(2026, 1, 1)
for kind, takes, refuses in [
    (int, [1], [True, 1.0, "1"]),
    (float, [1, 1.5], [True, float("nan")]),
    (list[Answer], [[Answer(1)], []], [[{"n": 1}], (Answer(1),)]),
    (Answer, [Answer(1)], [{"n": 1}]),
    (datetime.date, [DAY], ["2026-01-01", datetime.datetime(2026, 1, 1)]),
    (dict[str, list[int]], [{"a": [1]}], [{"a": (1,)}, {1: [1]}]),
    (tuple[int, ...] | None, [(1, 2), None], [[1]]),
    (Fields, [{}, {"n": 1}], [{"n": "1"}, {"m": 1}]),
    (Annotated[int | None, Ge(1)], [1, None], [0]),
    (Literal[1, "a"], [1, "a"], [True]),
    (object, [{"a": [1]}], [Answer(1), (1,)]),
]:
    signal = Signal(kind)
    for value in takes:
        assert take(signal, "it", value) is value, (kind, value)
    for value in refuses:
        try:
            take(signal, "it", value)
        except ValueError as error:
            assert "signal 'it' must be of type" in str(error)
        else:
            raise AssertionError((kind, value))
"""


@pytest.mark.process
def test_without_msgspec_a_signal_takes_instances_of_its_type() -> None:
    subprocess.run([sys.executable, "-c", WITHOUT_MSGSPEC], check=True)
