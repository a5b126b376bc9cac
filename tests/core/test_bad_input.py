"""Whatever a caller passes, each public callable does what it says or refuses it by name.

The calls come from the signatures: one argument after the other is wrong, and what else the
callable needs is right. An error is one that the code raises on purpose. A `TypeError` that Python
raises somewhere inside, an `AttributeError` or a `KeyError` is a mistake that went unnoticed.
"""

from __future__ import annotations

import asyncio
import dis
import importlib
import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import chdir, closing, suppress
from datetime import timedelta
from typing import Any, NamedTuple, is_typeddict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from results import failed, mapped, raised, report_of, skipped, succeeded

from asyncflow import (
    Attempt,
    JournalError,
    Orchestrator,
    PayloadError,
    Pipeline,
    Pool,
    RestoredError,
    Retry,
    RunCancelledError,
    RunHandle,
    RunReport,
    WorkflowStep,
)
from asyncflow.journal import PostgresJournal, SQLiteJournal
from asyncflow.service import Service
from asyncflow.testing import crash_everywhere, explore, run_in_virtual_time
from asyncflow.web import serve

MODULES = (
    *("asyncflow", "asyncflow.engines", "asyncflow.engines.executor"),
    *("asyncflow.html_report", "asyncflow.journal", "asyncflow.live", "asyncflow.logs"),
    *("asyncflow.notebook", "asyncflow.otel", "asyncflow.service", "asyncflow.testing"),
    "asyncflow.web",
)

NOT_FOR_CALLERS = {
    "StepContext": "a run makes it",
    "RunHandle": "start() makes it",
    "RunPreview": "preview() makes it",
    "EventReader": "RunHandle.events() makes it",
    "ResultReader": "RunHandle.results() makes it",
    "EngineCall": "a run makes it for an engine",
    "RemoteOutput": "an engine makes it",
    "Fakes": "fake() makes it",
    "StepFilter": "logging.Filter checks its name",
    "add_step": "structlog calls it",
    "keep_record": "structlog calls it",
    "serve": "serves until it is stopped: what it refuses is below",
    "crash_everywhere": "runs a pipeline many times: what it refuses is below",
    "explore": "runs a pipeline 1,000 times: what it refuses is below",
}
NOT_FOR_CALLERS |= {
    f"SQLiteJournal.{name}": "the driver calls it"
    for name in ("open", "encode", "decode", "admits", "replay")
}
NOT_FOR_CALLERS |= {
    f"{owner}.start": "takes what run() takes, and warns if nothing enters its handle"
    for owner in ("Pipeline", "Orchestrator")
}
NOT_FOR_CALLERS |= dict.fromkeys(("RunPreview.get", "RunReport.get"), "a mapping")

NOT_FOR_CALLERS |= {
    f"Service.{name}": "waits for a client, or for ever: what it refuses is below"
    for name in ("answer", "events")
}

OTHERS_CHECK = {
    ("PostgresJournal", "dsn"): "libpq",
    ("RunReport.from_json", "text"): "json",
    ("simulate", "seed"): "Python prints no longer integers",
}
"""Arguments whose errors are those of another library, which this package passes on."""

SAYS = {
    "name": "name|signal",
    "steps": "WorkflowStep",
    "pipeline": "Pipeline|WorkflowStep|pipeline",
    "function": "step",
}
SAYS |= {"report": "report|steps", "pipelines": "steps|name", "value": "signal"}
SAYS |= {
    "base_ms": "max_ms",
    "sent_by": "signal",
    "note": "signal",
    "map_over": "maps over",
    "new_id": "another id",
    "runs": "limit",
}
"""What names an argument in a message, if that is not its name."""


async def action(x: int = 1) -> int:
    return x


def generator() -> Iterator[int]:
    yield 1


def made_steps() -> list[WorkflowStep]:
    return [WorkflowStep("a", action), WorkflowStep("b", action, ["a"])]


def made_pipeline() -> Pipeline:
    pipeline = Pipeline("p")
    pipeline.step(action, name="a")
    return pipeline


def made_report() -> RunReport:
    attempts = (Attempt(1, 0.5, 1.25, ValueError("one")), Attempt(2, 3.0, 0.25, None))
    return report_of(
        succeeded("a", [1, "two"], attempts=2, recorded=attempts, depends_on=("b",)),
        mapped("b", succeeded("b[0]", {"x": None})),
        failed("c", raised(ValueError("boom"))),
        skipped("d"),
    )


class Unprintable:
    def __repr__(self) -> str:
        raise RuntimeError("no text")


WRONG: list[Any] = [
    *(None, True, False, 0, -1, 2, 10**400, -(10**5_000), 10**5_000, float("nan"), float("inf")),
    *(-0.5, 1.5, 1e-320, 1e308, 1j, "", "x", "a/b", "a\0b", "a\nb", "\ud800", b"", b"x"),
    *((), [], [1], [None], [[]], ["a", "a"], ["zz"], [Unprintable()], {1}, range(3)),
    *({}, {1: 1}, {"a": 1}, {"a": None}, {"a": []}, {"a": Unprintable()}, {"\ud800": 1}),
    *(object(), int, print, action, generator, lambda: None, Unprintable()),
    *(ValueError("x"), KeyboardInterrupt, WorkflowStep("s", action), Retry(), Pool(1)),
]
wrong_values = st.sampled_from(WRONG) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.integers(), inner, max_size=3)
    ),
    max_leaves=5,
)


class Face(NamedTuple):
    """A public callable: its name, what calls it, and its parameters."""

    name: str
    call: Callable[..., Any]
    parameters: list[inspect.Parameter]


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Callable[[], Any]]]:
    """Return what makes a right argument, by the name of the parameter."""
    folder = tmp_path_factory.mktemp("journals")
    with chdir(folder), closing(SQLiteJournal(folder / "right.db")) as journal:
        run_in_virtual_time(Orchestrator(made_steps(), journal=journal).run())
        yield {
            "steps": made_steps,
            "action": lambda: action,
            "step": lambda: action,
            "function": lambda: action,
            "pipeline": made_pipeline,
            "pipelines": lambda: {"p": made_pipeline()},
            "journal": lambda: journal,
            "path": lambda: folder / "other.db",
            "dsn": lambda: "postgresql://127.0.0.1:1/x",
            "factory": lambda: ThreadPoolExecutor,
            "report": made_report,
            "run": made_report,
            "baseline": made_report,
            "results": lambda: made_report().results,
            "text": lambda: made_report().to_json(),
            "size": lambda: 2,
            "times": lambda: 2,
            "total_duration_ms": lambda: 1.0,
            "age_ms": lambda: 1.0,
            "wall_time": lambda: 1.0,
            "main": lambda: action(),
            "records": list,
            "type": lambda: int,
            "hint": lambda: int,
            "older_than": lambda: timedelta(days=1),
            "SQLiteJournal": lambda: journal,
            "Pool": lambda: Pool(2),
            "Pipeline": lambda: made_pipeline().with_options(journal=journal),
            "Orchestrator": lambda: Orchestrator(made_steps(), name="p", journal=journal),
            "RunReport": made_report,
            "RunHandle": lambda: Entered(RunHandle, made_pipeline().start),
            "Service": lambda: Entered(Service, lambda: Service([made_pipeline()])),
        }


class Entered:
    """Makes an object for each call of a method, and enters it; one that begins is not entered."""

    def __init__(self, public: type, make: Callable[[], Any]) -> None:
        self.public, self.make = public, make

    def __getattr__(self, name: str) -> Callable[..., Any]:
        async def call(*args: Any, **kwargs: Any) -> object:
            if name == "begin":
                return await self.make().begin(*args, **kwargs)
            with suppress(RunCancelledError):
                return await self.within(name, args, kwargs)

        signature = inspect.signature(getattr(self.public, name))
        call.__signature__ = signature.replace(  # type: ignore[attr-defined]
            parameters=[*signature.parameters.values()][1:]
        )
        return call

    async def within(self, name: str, args: Any, kwargs: Any) -> object:
        async with self.make() as entered:
            made = getattr(entered, name)(*args, **kwargs)
            return await made if inspect.isawaitable(made) else made


def is_record(public: Any) -> bool:
    """Whether it is plain data, which holds whatever it is given, or an error, with a message."""
    return isinstance(public, type) and (
        hasattr(public, "__dataclass_fields__")
        or issubclass(public, tuple | BaseException)
        or hasattr(public, "__members__")
    )


CHECKED_RECORDS = {"WorkflowStep", "Retry", "Faults"}


def faces() -> Iterator[str]:
    found = set()
    for module in map(importlib.import_module, MODULES):
        for name in module.__all__:
            public = getattr(module, name)
            is_plain = is_record(public) and name not in CHECKED_RECORDS
            is_type = (
                is_typeddict(public)
                or getattr(public, "_is_protocol", False)
                or not (inspect.isfunction(public) or isinstance(public, type))
            )
            if name in found or is_plain or is_type or name in NOT_FOR_CALLERS:
                continue
            found.add(name)
            if not inspect.signature(public).parameters:
                continue
            yield f"{module.__name__}:{name}"
    for owner in ("Pipeline", "Orchestrator", "Pool", "RunHandle", "RunReport"):
        yield from methods("asyncflow", owner)
    yield from methods("asyncflow.service", "Service")
    yield from methods("asyncflow.journal", "SQLiteJournal")


def methods(module: str, owner: str) -> Iterator[str]:
    public = getattr(importlib.import_module(module), owner)
    for name, member in inspect.getmembers(public, callable):
        named = f"{owner}.{name}"
        if name.startswith("_") or named in NOT_FOR_CALLERS:
            continue
        if inspect.signature(member).parameters.keys() - {"self"}:
            yield f"{module}:{named}"


def face_of(name: str, right: Mapping[str, Callable[[], Any]]) -> Face:
    module, _, path = name.partition(":")
    owner, _, method = path.partition(".")
    public = getattr(importlib.import_module(module), owner)
    if method:
        is_bound = inspect.ismethod(getattr(public, method))
        public = getattr(public if is_bound else right[owner](), method)
    return Face(path, public, [*inspect.signature(public).parameters.values()])


def arguments(
    face: Face, wrong: inspect.Parameter, value: object, right: Mapping[str, Callable[[], Any]]
) -> tuple[list[Any], dict[str, Any]]:
    """Return arguments, one of them wrong; what may be left out is left out."""
    by_position: list[Any] = []
    by_name: dict[str, Any] = {}
    has_rest = any(each.kind is each.VAR_POSITIONAL for each in face.parameters)
    for each in face.parameters:
        is_variadic = each.kind in (each.VAR_POSITIONAL, each.VAR_KEYWORD)
        if each is wrong:
            given = value
        elif is_variadic or each.default is not each.empty:
            continue
        elif face.name in ("SQLiteJournal.statistics", "SQLiteJournal.compare", "Service.start"):
            given = "p"  # what others call so is an object
        else:
            given = right.get(each.name, lambda: "x")()
        if each.kind in (each.POSITIONAL_ONLY, each.VAR_POSITIONAL) or has_rest:
            by_position.append(given)
        else:
            by_name["a" if is_variadic else each.name] = given
    return by_position, by_name


def is_by_condition(error: BaseException) -> bool:
    """Whether a ``raise`` of this package has raised it, and not Python within an expression."""
    trace = error.__traceback__
    assert trace is not None
    while trace.tb_next is not None:
        trace = trace.tb_next
    code = trace.tb_frame.f_code
    operation = dis.opname[code.co_code[trace.tb_lasti]]
    return operation in ("RAISE_VARARGS", "RERAISE") and "asyncflow" in code.co_filename


def check(face: Face, wrong: inspect.Parameter, args: list[Any], kwargs: dict[str, Any]) -> None:
    """Call it, and end what it starts; an error must be one that says what is wrong."""
    try:
        made = outcome(face, args, kwargs)
        if isinstance(made, asyncio.AbstractEventLoop | PostgresJournal | SQLiteJournal):
            made.close()
    except (TypeError, ValueError, LookupError, JournalError, PayloadError) as error:
        if (face.name, wrong.name) not in OTHERS_CHECK:
            check_refusal(error, f"{face.name}({wrong.name})", wrong.name)
    finally:
        for each in (*args, *kwargs.values()):
            if inspect.iscoroutine(each):
                each.close()


def check_refusal(error: Exception, where: str, parameter: str) -> None:
    assert is_by_condition(error), f"{where} lets Python raise {error!r}"
    if isinstance(error, TypeError | ValueError):
        words = [parameter.removesuffix("s"), *SAYS.get(parameter, parameter).split("|")]
        assert any(word in str(error) for word in words), f"{where} is not named: {error}"


def outcome(face: Face, args: list[Any], kwargs: dict[str, Any]) -> Any:
    made = face.call(*args, **kwargs)
    return run_in_virtual_time(within_an_hour(made)) if inspect.iscoroutine(made) else made


async def within_an_hour(awaited: Any) -> Any:
    async with asyncio.timeout(3_600):
        return await awaited


@pytest.mark.parametrize("name", [*faces()])
@given(data=st.data())
def test_a_wrong_argument_is_refused_by_name_or_has_its_meaning(
    name: str, right: dict[str, Callable[[], Any]], data: st.DataObject
) -> None:
    face = face_of(name, right)
    wrong = data.draw(st.sampled_from(face.parameters))
    value = data.draw(wrong_values)

    check(face, wrong, *arguments(face, wrong, value, right))


@pytest.mark.parametrize(
    ("name", "parameter", "value"),
    [
        ("asyncflow:WorkflowStep", "parameters", 1),
        ("asyncflow:WorkflowStep", "map_over", 1),
        ("asyncflow:WorkflowStep", "secret", Unprintable()),
        ("asyncflow:WorkflowStep", "max_retries", -(10**5_000)),
        ("asyncflow:Retry", "jitter", Unprintable()),
        ("asyncflow:Orchestrator", "fail_fast", Unprintable()),
        ("asyncflow:Orchestrator", "targets", [[]]),
        ("asyncflow:Orchestrator", "secret_inputs", [[]]),
        ("asyncflow:RunReport", "results", ["x"]),
        ("asyncflow:RunReport", "status", "PASSED"),
        ("asyncflow:RunReport.compare", "baseline", {}),
        ("asyncflow:RunReport.to_json", "indent", 10**400),
        ("asyncflow:resume_all", "journal", 1),
        ("asyncflow:resume_all", "interrupted", Unprintable()),
        ("asyncflow.html_report:to_html", "run", ["x"]),
        ("asyncflow.html_report:to_html", "notes", 1),
        ("asyncflow.html_report:to_html", "resume", 1),
        ("asyncflow.html_report:to_html", "usual_ms", 1),
        ("asyncflow.journal:SQLiteJournal", "codec", 1),
        ("asyncflow.journal:SQLiteJournal.notes", "kinds", 1),
        ("asyncflow.journal:SQLiteJournal.runs", "limit", 10**400),
        ("asyncflow.journal:SQLiteJournal.summaries", "records", ["x"]),
        ("asyncflow.service:Service", "pipelines", 1),
        ("asyncflow.service:Service", "pipelines", {1: []}),
        ("asyncflow.service:Service", "resources", 1),
        ("asyncflow.testing:simulate", "faults", 1),
        ("asyncflow.testing:simulate", "inputs", 1),
        ("asyncflow.testing:simulate", "inputs", action),
        ("asyncflow.testing:VirtualTimeLoop", "seed", "x"),
        ("asyncflow.testing:run_in_virtual_time", "main", None),
        ("asyncflow.web:app", "pipelines", 1),
    ],
    ids=lambda each: each if isinstance(each, str) else type(each).__name__,
)
def test_what_once_slipped_through_is_refused(
    name: str, parameter: str, value: Any, right: dict[str, Callable[[], Any]]
) -> None:
    face = face_of(name, right)
    wrong = next(each for each in face.parameters if each.name == parameter)
    args, kwargs = arguments(face, wrong, value, right)

    with pytest.raises((TypeError, ValueError)) as refused:
        outcome(face, args, kwargs)

    check_refusal(refused.value, name, parameter)


def test_a_time_beyond_the_integers_of_a_database_is_after_all_runs(
    right: dict[str, Callable[[], Any]],
) -> None:
    counts = run_in_virtual_time(right["journal"]().counts(since=2**63))

    assert not any(counts.values())


async def nothing_arrives() -> dict[str, Any]:
    return await asyncio.Event().wait() or {}


def made_service(right: Mapping[str, Callable[[], Any]]) -> Service:
    return Service([made_pipeline()], journal=right["journal"]())


async def answered(right: Mapping[str, Callable[[], Any]], **wrong: Any) -> None:
    async with made_service(right) as service:
        run = await service.start("p")
        await service.answer(**{"run": run, "request": nothing_arrives, **wrong})


async def listed(right: Mapping[str, Callable[[], Any]], **wrong: Any) -> None:
    async for _ in made_service(right).events(**{"run_id": "x", **wrong}):
        pass


def explored(_: object, **wrong: Any) -> None:
    explore(**{"pipeline": made_steps(), "seeds": 1, **wrong})


def crashed(right: Mapping[str, Callable[[], Any]], **wrong: Any) -> None:
    crash_everywhere(**{"pipeline": made_steps(), "journal": right["journal"], **wrong})


async def served(right: Mapping[str, Callable[[], Any]], **wrong: Any) -> None:
    await serve(**{"journal": right["journal"](), "port": 0, **wrong})


def awaited(made: Any) -> None:
    if inspect.iscoroutine(made):
        asyncio.run(made)


def dask_engine(_: object, **wrong: Any) -> None:
    dask = pytest.importorskip("asyncflow.engines.dask")
    dask.DaskEngine(**{"cluster": "tcp://127.0.0.1:1", **wrong})


REFUSED: list[tuple[Callable[..., Any], str, list[Any]]] = [
    (explored, "pipeline", [None, 1, [1]]),
    (explored, "inputs", [1, "x", [1], action, {1: 1}]),
    (explored, "seeds", [None, 0, -1, True, 1.5, "x", [], [None], action, Unprintable()]),
    (explored, "faults", [1, "x", {}]),
    (explored, "check", [1, "x", action, Unprintable()]),
    (crashed, "pipeline", [None, 1, [1]]),
    (crashed, "inputs", [1, "x", [1], action]),
    (crashed, "journal", [None, 1, "x", action, Unprintable(), lambda: None, lambda: 1]),
    (crashed, "check", [1, "x", action, Unprintable()]),
    (served, "host", [None, 1, b"x", Unprintable()]),
    (served, "port", [None, -1, 65_536, 10**5_000, 1.5, True, "80"]),
    (served, "pipelines", [1, "x", [1]]),
    (served, "token", [1, "short"]),
    (served, "grace_s", [-1, "x", float("nan")]),
    (served, "on_ready", [None, 1, Unprintable()]),
    (answered, "run", [None, 1, "x", Unprintable()]),
    (answered, "request", [None, 1, "x", Unprintable()]),
    (answered, "on_disconnect", [1, "x", Unprintable()]),
    (listed, "run_id", [1, "", [], Unprintable()]),
    (listed, "after", [None, -1, 1.5, "x", True]),
    (dask_engine, "cluster", [None, 1, b"x", Unprintable()]),
    (dask_engine, "keep_bytes", [-1, 1.5, "x", True]),
    (dask_engine, "resources", [1, "x", [1], {1: 1}, {"GPU": -1}, {"GPU": "x"}, {"GPU": None}]),
]


@pytest.mark.parametrize(
    ("call", "parameter", "values"),
    REFUSED,
    ids=[f"{call.__name__}-{parameter}" for call, parameter, _ in REFUSED],
)
def test_what_takes_long_refuses_a_wrong_argument_at_once(
    call: Callable[..., Any],
    parameter: str,
    values: list[Any],
    right: dict[str, Callable[[], Any]],
) -> None:
    for value in values:
        with pytest.raises((TypeError, ValueError)) as refused:
            awaited(call(right, **{parameter: value}))

        check_refusal(refused.value, f"{call.__name__}({parameter})", parameter)


# --- The JSON of a report -------------------------------------------------------------------------


def places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield place
    inner = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, each in inner:
        yield from places(each, (*place, key))


TEXT = made_report().to_json()
PLACES = [*places(json.loads(TEXT))]


@st.composite
def damaged_texts(draw: st.DrawFn) -> str | bytes:
    """Draw the JSON of a report with a bit flipped, cut, or with another value somewhere."""
    kind = draw(st.sampled_from(["bit", "cut", "value", "missing"]))
    if kind == "bit":
        bits = bytearray(TEXT.encode())
        bits[draw(st.integers(0, len(bits) - 1))] ^= 1 << draw(st.integers(0, 7))
        return bytes(bits)
    if kind == "cut":
        return TEXT[: draw(st.integers(0, len(TEXT) - 1))]
    document = json.loads(TEXT)
    place = draw(st.sampled_from(PLACES))
    if not place:
        return json.dumps(draw(st.none() | st.integers() | st.text() | st.lists(st.none())))
    owner = document
    for key in place[:-1]:
        owner = owner[key]
    if kind == "missing":
        del owner[place[-1]]
    else:
        owner[place[-1]] = draw(json_values)
    return json.dumps(document)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=4,
) | st.sampled_from([10**400, -1, "PENDING", "FAILED", "passed", "running", "\ud800"])


@settings(max_examples=4 * settings().max_examples)
@given(damaged_texts())
def test_damaged_json_is_a_report_that_all_can_show_or_is_refused(text: str | bytes) -> None:
    try:
        report = RunReport.from_json(text)
    except (json.JSONDecodeError, UnicodeDecodeError):
        return
    except ValueError as error:
        if not str(error).startswith("not the JSON of a report: "):
            raise
        return

    assert RunReport.from_json(report.to_json()).to_json() == report.to_json()
    assert f"{report}{report!r}{report.summary()}{report.to_mermaid()}{report.critical_path}"
    assert report.to_markdown()
    assert "<html" in report.to_html()
    assert report.compare(report).steps is not None
    try:
        report.raise_for_failures()
    except (RestoredError, ExceptionGroup, TimeoutError):
        assert not report.all_passed
