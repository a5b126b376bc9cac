"""Every event comes back unchanged from its row."""

from __future__ import annotations

import json
import math
import struct
from dataclasses import fields, replace
from typing import Any, get_args

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from asyncflow import RunStatus, StepStatus
from asyncflow._core.errors import (
    RestoredError,
    ResultRefusedError,
    RunCancelledError,
    StepCancelledError,
    StepCrashedError,
    StepTimeoutError,
)
from asyncflow._core.history.results import REDACTED, Payload
from asyncflow._core.tracebacks import format_error
from asyncflow.events import (
    AttemptFailed,
    AttemptStarted,
    Event,
    ResultReused,
    RunEvent,
    RunFinished,
    RunInterrupted,
    RunResumed,
    RunStarted,
    SignalReceived,
    StepEvent,
    StepFailed,
    StepSucceeded,
    StepWaiting,
)
from asyncflow.journal._codec.events import event_of, row_of, sealed
from asyncflow.journal._database.tables import EventRow


def has_no_surrogate_pair(text: str) -> bool:
    """Return whether no two surrogates are adjacent: JSON merges them into one character."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass") == text


texts = st.text() | st.text(st.characters(categories=["Cs", "Cc"]), max_size=3).filter(
    has_no_surrogate_pair
)
names = st.text(min_size=1) | st.sampled_from(['"', '"a"', "a\0", "\ud800", "é"])
times = st.floats(0, 1e9)
moments = st.floats(0, 1e11)
counts = st.integers(0, 2**31 - 1)
items = st.none() | counts
json_payloads = st.builds(
    lambda value: Payload("json", json.dumps(value, ensure_ascii=False).encode()),
    st.recursive(st.none() | st.text() | st.integers(), st.lists, max_leaves=5),
)
payloads = (
    json_payloads | st.builds(Payload, st.just("cloudpickle"), st.binary()) | st.just(REDACTED)
)
restored = st.builds(RestoredError, texts, texts, texts)
own_errors = st.one_of(
    st.builds(
        StepTimeoutError,
        texts,
        counts,
        st.floats(1, 1e6),
        st.sampled_from(["attempt", "step", "heartbeat", "run"]),
    ),
    st.builds(StepCancelledError, texts, counts),
    st.builds(StepCrashedError, texts, counts, counts),
    st.builds(RunCancelledError, texts, texts),
    st.builds(ResultRefusedError, texts, counts, st.none()),
)


@st.composite
def errors(draw: st.DrawFn) -> BaseException:
    error: BaseException = draw(restored | own_errors)
    for note in draw(st.lists(texts, max_size=2)):
        error.add_note(note)
    return error


@st.composite
def graphs(draw: st.DrawFn) -> dict[str, tuple[str, ...]]:
    steps: dict[str, tuple[str, ...]] = {}
    for name in draw(st.lists(texts, max_size=4, unique=True)):
        steps[name] = tuple(each for each in steps if draw(st.booleans()))
    return steps


graph = graphs()
fingerprints = st.dictionaries(texts, st.tuples(texts, texts), max_size=3)
FIELDS: dict[Any, tuple[st.SearchStrategy[Any], ...]] = {
    RunStarted: (
        *(texts, times, graph, texts, fingerprints),
        st.dictionaries(texts, payloads, max_size=3),
        *(st.dictionaries(texts, counts, max_size=3), st.lists(texts, max_size=3).map(tuple)),
        *(texts, texts, texts, st.dictionaries(texts, texts, max_size=3)),
    ),
    RunResumed: (
        *(texts, times, times, graph, fingerprints, st.dictionaries(texts, texts)),
        *(st.dictionaries(texts, texts), st.lists(texts, max_size=3).map(tuple), st.booleans()),
        st.dictionaries(texts, payloads, max_size=3),
    ),
    RunInterrupted: (times, texts),
    RunFinished: (
        times,
        st.sampled_from(["PASSED", "FAILED", "INTERRUPTED"]).map(RunStatus),
        texts | st.none(),
    ),
    AttemptStarted: (
        *(names, counts, times, times | st.just(0.0), items),
        st.sampled_from(["", "dask"]),
    ),
    StepSucceeded: (
        *(names, counts, times, payloads | st.none(), items),
        *(st.just(False), errors() | st.none()),
    ),
    ResultReused: (
        *(names, times, texts, counts, times, payloads | st.none(), items, items),
        *(st.just(False), errors() | st.none()),
    ),
    StepWaiting: (names, times, moments, times | st.none(), texts, texts, texts),
    SignalReceived: (names, times, moments, texts, texts),
}
"""The strategies of events of which some fields hold more, or less, than their types say."""
BY_TYPE = {
    "str": texts,
    "tuple[str, ...]": st.lists(texts, max_size=3).map(tuple),
    "int": counts,
    "int | None": items,
    "float": times,
    "bool": st.booleans(),
    "float | None": times | st.none(),
    # What an event reuses has ended.
    "StepStatus": st.sampled_from([each for each in StepStatus if each != StepStatus.RUNNING]),
    "BaseException": errors(),
    "BaseException | None": errors() | st.none(),
}


def made(cls: Any) -> st.SearchStrategy[Any]:
    """Return the strategy of an event: if none is given, by the types of its fields."""
    if cls in FIELDS:
        return st.builds(cls, *FIELDS[cls])
    values = {each.name: BY_TYPE[str(each.type)] for each in fields(cls)}
    return st.builds(cls, **values | ({"step": names} if "step" in values else {}))


events = st.one_of(*map(made, [*get_args(StepEvent), *get_args(RunEvent)])).map(
    lambda event: (
        replace(event, secret=event.output == REDACTED)
        if isinstance(event, StepSucceeded | ResultReused)
        else event
    )
)


def comparable(event: Event) -> dict[str, Any]:
    """Return an event as values that can be compared."""
    values = {each.name: getattr(event, each.name) for each in fields(event)}
    if (error := values.get("error")) is not None:
        notes = getattr(error, "__notes__", [])
        values["error"] = (type(error), error.args, vars(error), notes)
    return {"type": type(event), **values}


@given(st.integers(1, 2**40), events)
def test_every_event_comes_back_from_its_row(position: int, event: Event) -> None:
    row = row_of("r", position, event)

    assert row[:2] == ("r", position)
    assert comparable(read(row)) == comparable(event)
    for text in (row.step, row.payload):
        if text is not None:
            text.encode()
            assert "\0" not in text


def test_an_event_read_without_its_output_still_says_that_its_step_fell_back() -> None:
    row = row_of("r", 1, StepSucceeded("a", 1, 1.0, Payload("json", b"1"), error=ValueError("x")))

    event = event_of((*row[:-1], None), is_brief=True)

    assert isinstance(event, StepSucceeded)
    assert (event.step, event.attempt, event.output) == ("a", 1, None)
    assert isinstance(event.error, RestoredError)


def test_fields_without_a_column_are_json_that_a_person_can_read() -> None:
    finished = row_of("r", 9, RunFinished(1.0, RunStatus.FAILED, "why", "drained"))
    started = row_of("r", 2, AttemptStarted("a", 1, 1.0))

    assert finished.payload == '{"status":"FAILED","stop_reason":"why","cause":"drained"}'
    assert started.payload is None  # all of them have their default


class Number(float):
    """As numpy has them."""


class Text(str):
    pass


@pytest.mark.parametrize("surrogate", ["", "\ud800"])
def test_values_of_subclasses_come_back_as_plain_ones(surrogate: str) -> None:
    error = RestoredError("E", Text(f"m{surrogate}"))
    event = AttemptFailed("a", 1, 2.0, error, Number(3.5))

    again: Any = read(row_of("r", 1, event))

    assert (type(again.retry_in_ms), again.retry_in_ms) == (float, 3.5)
    assert (type(again.error.message), again.error.message) == (str, f"m{surrogate}")


@pytest.mark.parametrize("odd", [math.inf, math.nan, True])
def test_an_error_of_an_action_with_odd_arguments_leaves_its_run_readable(odd: float) -> None:
    error = StepTimeoutError("a", 1, odd, "attempt")

    again: Any = read(row_of("r", 1, StepFailed("a", 1, 2.0, error)))

    assert isinstance(again.error, RestoredError)
    assert again.error.message == str(error)


def read(row: EventRow) -> Event:
    return event_of(row)


def row(kind: str, step: str | None, attempt: int | None, payload: str | None) -> EventRow:
    return sealed("r", 1, kind, step, None, attempt, 1.0, None, payload, None)


def restored_from_row(error: BaseException) -> Any:
    row = row_of("r", 1, StepFailed("a", 1, 1.0, error))
    return read(row).error  # type: ignore[union-attr]


class Unprintable(Exception):
    def __str__(self) -> str:
        raise ValueError("no")


class UnprintableNote:
    def __str__(self) -> str:
        raise ValueError("no")


def test_an_error_comes_back_with_its_message_traceback_and_notes() -> None:
    error = KeyError("x")
    error.add_note("in step 'a'")
    try:
        raise error
    except KeyError as caught:
        again = restored_from_row(caught)

    assert isinstance(again, RestoredError)
    assert (again.type_name, again.message) == ("builtins.KeyError", "'x'")
    assert "test_events.py" in again.traceback
    assert again.__notes__ == ["in step 'a'"]


def test_an_unprintable_error_is_stored_with_a_placeholder() -> None:
    odd = Unprintable()
    odd.__notes__ = [UnprintableNote(), "fine"]

    again = restored_from_row(odd)

    assert again.type_name.endswith(".Unprintable")
    assert again.message == "<Unprintable, whose str raised ValueError>"
    assert again.__notes__ == ["<UnprintableNote, whose str raised ValueError>", "fine"]


def test_a_long_message_is_truncated() -> None:
    again = restored_from_row(ValueError("x" * 200_000))

    assert again.message.endswith("… (100,000 more characters)")
    assert len(again.message) < 100_100
    assert len(again.traceback) < 100_100


@pytest.mark.parametrize(
    ("kind", "payload"),
    [("RunPaused", None), ("RunInterrupted", None), ("RunInterrupted", '{"why": 1}')],
)
def test_a_malformed_row_is_refused(kind: str, payload: str | None) -> None:
    with pytest.raises(ValueError, match=kind):
        read(row(kind, None, None, payload))


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (row("AttemptStarted", "a", -1, None), "a number is out of range"),
        (
            sealed("r", 1, "AttemptStarted", "a", None, 1, 1e300, None, None, None),
            "a number is out of range",
        ),
        (
            row("AttemptStarted", "a", 1, '{"queued_ms": "5"}'),
            r"Expected `int .*`.*queued_ms",
        ),
        (row("RunFinished", None, None, '{"status": "PAUSED"}'), "PAUSED"),
        (row("RunFinished", None, None, '{"status": "ORPHANED"}'), "nothing ends as ORPHANED"),
        (row("StepReused", "a", None, '{"status": "PAUSED"}'), "PAUSED"),
        (
            row("StepFailed", "a", 1, '{"error": {"type": "E", "message": 5}}'),
            r"Expected `str`.*error.message",
        ),
        (
            row(
                *("RunStarted", None, None),
                '{"run_id": "r", "wall_time": 1e300, "dependencies": {}}',
            ),
            r"Expected `float`.*wall_time",
        ),
        (
            row(
                *("RunStarted", None, None),
                '{"run_id": "r", "wall_time": 1, "dependencies": {"b": ["a"], "a": []}}',
            ),
            "step 'b' comes before one that it depends on",
        ),
    ],
)
def test_a_row_of_another_type_is_refused(row: EventRow, says: str) -> None:
    """Its checksum is right: another program wrote it."""
    with pytest.raises(ValueError, match=says):
        read(row)


@given(events, st.sampled_from(EventRow._fields), st.data())
def test_a_change_of_any_column_is_noticed(event: Event, column: str, data: st.DataObject) -> None:
    row = row_of("r", 1, event)
    value = getattr(row, column)
    other = data.draw(st.none() | st.text() | st.binary(min_size=1) | st.integers(0, 9))
    # No row has an empty text, and no data is the same as empty data.
    assume(other != value and (other or value))

    changed = row._replace(**{column: other})
    with pytest.raises((ValueError, TypeError, AttributeError, KeyError, struct.error)):
        event_of(changed)


def restored_error(stored: dict[str, Any]) -> Any:
    payload = json.dumps({"error": stored})
    return read(row("StepFailed", "a", 1, payload)).error  # type: ignore[union-attr]


@pytest.mark.parametrize("module", ["asyncflow", "asyncflow._errors", "asyncflow._core.errors"])
def test_an_error_of_asyncflow_comes_back_from_any_former_module_path(module: str) -> None:
    own_errors = {"step_name": "a", "attempt": 2, "timeout_ms": 5, "kind": "step"}

    error = restored_error(
        {"type": f"{module}.StepTimeoutError", "message": "m", "own": own_errors}
    )

    assert isinstance(error, StepTimeoutError)
    assert (error.step_name, error.attempt, error.timeout_ms, error.kind) == tuple(
        own_errors.values()
    )


def test_an_unknown_error_of_asyncflow_comes_back_as_a_restored_error() -> None:
    error = restored_error({"type": "asyncflow.StepPausedError", "message": "m", "own": {"a": 1}})

    assert isinstance(error, RestoredError)
    assert (error.type_name, error.message) == ("asyncflow.StepPausedError", "m")


STORED_TRACEBACK = """Traceback (most recent call last):
  File "/srv/asyncflow/_verdicts.py", line 8, in _attempt
    value = await action()
  File "/srv/asyncflow/_kernel/outcome.py", line 8, in attempt
    value = await action()
  File "/srv/app/steps.py", line 3, in load
    await journal.report("x")
  File "/srv/asyncflow/journal/_write/worker.py", line 9, in _run_job
    result = fn(*args)
ValueError: x
"""


def test_frames_of_any_asyncflow_version_are_hidden_from_a_stored_traceback() -> None:
    stored = {"type": "builtins.ValueError", "message": "x", "traceback": STORED_TRACEBACK}

    assert format_error(restored_error(stored)).splitlines() == [
        "Traceback (most recent call last):",
        '  File "/srv/app/steps.py", line 3, in load',
        '    await journal.report("x")',
        "ValueError: x",
    ]
