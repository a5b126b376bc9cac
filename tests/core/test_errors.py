"""An error names the thing, its state and the way out, and has the same facts as attributes."""

from __future__ import annotations

import asyncio
import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest

import asyncflow
from asyncflow import (
    ActionNotAwaitableError,
    CyclicDependencyError,
    IllegalEventError,
    JournalError,
    LeaseLostError,
    NotSendableError,
    OutputLostError,
    OutputNotAwaitedError,
    PayloadError,
    PipelineChangedError,
    ResourceError,
    RestoredError,
    ResultRefusedError,
    RunAlreadyActiveError,
    RunCancelledError,
    RunIdInUseError,
    RunNotFoundError,
    RunUnreadableError,
    RunWaitingError,
    SharedIteratorError,
    StepCancelledError,
    StepCrashedError,
    StepTimeoutError,
    WorkerLostError,
)
from asyncflow._core import errors as _errors
from asyncflow._core.errors import HangError, MissingExtraError, MissingInputError
from asyncflow._core.text import did_you_mean
from asyncflow.events import StepSkipped

TABLE: list[tuple[Callable[[], Exception], type[Exception], dict[str, Any], str]] = [
    (
        lambda: CyclicDependencyError(["a", "b", "a"]),
        ValueError,
        {"cycle": ["a", "b", "a"]},
        "steps depend on each other in a circle: a -> b -> a",
    ),
    (
        lambda: StepTimeoutError("load", 2, 1500.0),
        TimeoutError,
        {"step_name": "load", "attempt": 2, "timeout_ms": 1500.0, "errno": None, "strerror": None},
        "attempt 2 of step 'load' exceeded its timeout_ms of 1500 ms",
    ),
    (
        lambda: StepTimeoutError("load", 1, 30_000),
        TimeoutError,
        {"step_name": "load", "attempt": 1, "timeout_ms": 30_000, "kind": "attempt"},
        "attempt 1 of step 'load' exceeded the default timeout_ms of 30000 ms; give the step "
        "another one, or None for no limit",
    ),
    (
        lambda: StepTimeoutError("load", 2, 1500.0, "step"),
        TimeoutError,
        {"step_name": "load", "attempt": 2, "timeout_ms": 1500.0, "kind": "step"},
        "step 'load' exceeded, in attempt 2, its deadline of 1500 ms",
    ),
    (
        lambda: StepTimeoutError("approved", 0, 1500.0, "step"),
        TimeoutError,
        {"step_name": "approved", "attempt": 0, "timeout_ms": 1500.0, "kind": "step"},
        "step 'approved' received no signal within its deadline of 1500 ms",
    ),
    (
        lambda: RunWaitingError("r1", ("approved", "paid")),
        Exception,
        {"run_id": "r1", "signals": ("approved", "paid")},
        "run 'r1' waits for 'approved', 'paid'; send each with journal.signal() or "
        "`asyncflow signal`, and the run continues; until then, answer a request with 202 and the "
        'id of the run, or let the run stay in its process with on_wait="stay"',
    ),
    (
        lambda: StepTimeoutError("load", 2, 1500.0, "heartbeat"),
        TimeoutError,
        {"step_name": "load", "attempt": 2, "timeout_ms": 1500.0, "kind": "heartbeat"},
        "attempt 2 of step 'load' gave no heartbeat for 1500 ms",
    ),
    (
        lambda: StepTimeoutError("load", 2, 1500.0, "run"),
        TimeoutError,
        {"step_name": "load", "attempt": 2, "timeout_ms": 1500.0, "kind": "run"},
        "attempt 2 of step 'load' was running when the run exceeded its deadline of 1500 ms",
    ),
    (
        lambda: StepCrashedError("load", 2, 1),
        Exception,
        {"step_name": "load", "attempt": 2, "crashes": 1},
        "attempt 2 of step 'load' did not finish: its process died or its journal failed",
    ),
    (
        lambda: StepCrashedError("load", 5, 4),
        Exception,
        {"step_name": "load", "attempt": 5, "crashes": 4},
        "attempt 5 of step 'load' did not finish: its process died or its journal failed (4 such "
        "attempts)",
    ),
    (
        lambda: JournalError("runs.db", "the disk is full"),
        Exception,
        {"journal": "runs.db", "problem": "the disk is full"},
        "journal runs.db: the disk is full",
    ),
    (
        lambda: NotSendableError("load", "argument 'db'", "TypeError: cannot pickle it"),
        TypeError,
        {"step_name": "load", "subject": "argument 'db'"},
        "step 'load': argument 'db' can't be sent between processes: TypeError: cannot pickle it",
    ),
    (
        lambda: LeaseLostError("runs.db", "another process has run 'x'"),
        JournalError,
        {"journal": "runs.db"},
        "journal runs.db: another process has run 'x'",
    ),
    (
        lambda: RunUnreadableError("runs.db", "order-17", "its checksum is wrong", 3),
        JournalError,
        {"run_id": "order-17", "reason": "its checksum is wrong", "position": 3},
        "journal runs.db: event 3 of run 'order-17' can't be read: its checksum is wrong. It was "
        "left as it is: restore the journal from a backup, or remove the run with forget; if a "
        "newer asyncflow wrote it, upgrade this one",
    ),
    (
        lambda: RunAlreadyActiveError("order-17", "web-1:42"),
        Exception,
        {"run_id": "order-17", "owner": "web-1:42"},
        "run 'order-17' is active in web-1:42; to wait until it has ended there, say "
        'on_active="wait"',
    ),
    (
        lambda: RunIdInUseError("order-17", "belongs to pipeline 'a', not to 'b'"),
        ValueError,
        {"run_id": "order-17", "problem": "belongs to pipeline 'a', not to 'b'"},
        "run 'order-17' belongs to pipeline 'a', not to 'b'",
    ),
    (
        lambda: PipelineChangedError("order-17", "shop", {"chek": "check", "pay": None}),
        ValueError,
        {"run_id": "order-17", "pipeline": "shop", "missing": {"chek": "check", "pay": None}},
        "run 'order-17' can't continue: pipeline 'shop' no longer has its steps 'chek' (did you "
        "mean 'check'?), 'pay'; continue it with a version that has all of them, or skip them with "
        "with_options(allow_missing_steps=True) or --allow-missing-steps",
    ),
    (
        lambda: RunCancelledError("order-17"),
        Exception,
        {"run_id": "order-17"},
        "run 'order-17' was cancelled through its journal; start it again under its id to resume "
        "it",
    ),
    (
        lambda: RunCancelledError("order-17", "the customer left"),
        Exception,
        {"run_id": "order-17", "reason": "the customer left", "report": None},
        "run 'order-17' was cancelled: the customer left",
    ),
    (
        lambda: RunNotFoundError("order-17", "runs.db", " (did you mean 'order-18'?)"),
        LookupError,
        {"run_id": "order-17", "journal": "runs.db"},
        "journal runs.db has no run 'order-17' (did you mean 'order-18'?)",
    ),
    (
        lambda: MissingInputError("url", "step 'load'", "it is neither a dependency"),
        ValueError,
        {"parameter": "url", "taker": "step 'load'", "hint": "it is neither a dependency"},
        "nothing provides parameter 'url' of step 'load': it is neither a dependency",
    ),
    (
        lambda: MissingExtraError("a page needs jinja2"),
        ImportError,
        {},
        "a page needs jinja2",
    ),
    (
        lambda: WorkerLostError("load", 2, "w1", "it was killed"),
        Exception,
        {"step_name": "load", "attempt": 2, "worker": "w1", "reason": "it was killed"},
        "step 'load', attempt 2: its worker w1 was lost: it was killed",
    ),
    (
        lambda: WorkerLostError("load", 2, "", "no connection"),
        Exception,
        {"step_name": "load", "attempt": 2, "worker": "", "reason": "no connection"},
        "step 'load', attempt 2: it was lost before it began: no connection",
    ),
    (
        lambda: OutputLostError("dask", "w1", "its worker was lost"),
        LookupError,
        {"engine": "dask", "worker": "w1", "reason": "its worker was lost", "parameter": ""},
        "an output, which stayed on engine 'dask' at w1, is lost: its worker was lost",
    ),
    (
        lambda: OutputLostError("dask", "w1", "its worker was lost", "load", "rows"),
        LookupError,
        {"step_name": "load", "parameter": "rows"},
        "the output of step 'load' for parameter 'rows', which stayed on engine 'dask' at w1, is "
        "lost: its worker was lost",
    ),
    (
        lambda: ResourceError("db", "failed while it closed: OSError: lost", None),  # type: ignore[arg-type]
        Exception,
        {"resource": "db", "problem": "failed while it closed: OSError: lost", "report": None},
        "resource 'db' failed while it closed: OSError: lost",
    ),
    (
        lambda: PayloadError("the output of step 'load'", "is too large"),
        Exception,
        {"subject": "the output of step 'load'", "problem": "is too large"},
        "the output of step 'load' is too large",
    ),
    (
        lambda: ResultRefusedError("load", 2, "pending"),
        Exception,
        {"step_name": "load", "attempt": 2, "result": "pending"},
        "attempt 2 of step 'load' returned a value that its Retry(until=...) did not accept",
    ),
    (
        lambda: StepCancelledError("load", 3),
        Exception,
        {"step_name": "load", "attempt": 3},
        "attempt 3 of step 'load' was cancelled from inside: it cancelled its own task or "
        "awaited something that was cancelled",
    ),
    (
        lambda: ActionNotAwaitableError("load", "int"),
        TypeError,
        {"step_name": "load", "returned": "int"},
        "the action of step 'load' returned int, which cannot be awaited; make it 'async def', "
        'or say runs_in="thread" if it is a plain function',
    ),
    (
        lambda: OutputNotAwaitedError("load", "fetch"),
        TypeError,
        {"step_name": "load", "returned": "fetch"},
        "the action of step 'load' returned the coroutine fetch without having awaited it; put an "
        "'await' before the call",
    ),
    (
        lambda: StepTimeoutError("load", 0, 1000, "attempt", "rows"),
        TimeoutError,
        {
            "step_name": "load",
            "attempt": 0,
            "timeout_ms": 1000,
            "kind": "attempt",
            "source": "rows",
        },
        "step 'load' waited for the next item of 'rows' longer than that one's timeout_ms of 1000 "
        "ms",
    ),
    (
        lambda: StepTimeoutError("load", 0, 2000, "step", "rows"),
        TimeoutError,
        {"step_name": "load", "attempt": 0, "timeout_ms": 2000, "kind": "step", "source": "rows"},
        "step 'load' waited for the next item of 'rows' longer than its deadline of 2000 ms",
    ),
    (
        lambda: SharedIteratorError("rows", "generator", ("a", "b", "c")),
        TypeError,
        {
            "step_name": "rows",
            "returned": "generator",
            "takers": ("a", "b", "c"),
            "instead": "a list",
        },
        "step 'rows' returned an iterator (generator), which steps 'a', 'b' and 'c' take, and each "
        "would get only some of its items; return a list",
    ),
    (
        lambda: PipelineChangedError("r", "orders", {"check": None, "ship": "shipping"}),
        ValueError,
        {
            "run_id": "r",
            "pipeline": "orders",
            "missing": {"check": None, "ship": "shipping"},
        },
        "run 'r' can't continue: pipeline 'orders' no longer has its steps 'check', 'ship' (did "
        "you mean 'shipping'?); continue it with a version that has all of them, or skip them with "
        "with_options(allow_missing_steps=True) or --allow-missing-steps",
    ),
    (
        lambda: RestoredError("app.DiskFull", "no space", "Traceback …"),
        Exception,
        {"type_name": "app.DiskFull", "message": "no space", "traceback": "Traceback …"},
        "app.DiskFull: no space",
    ),
    (
        lambda: IllegalEventError(StepSkipped("load", 1.5, "why"), "the step has ended"),
        RuntimeError,
        {"event": StepSkipped("load", 1.5, "why"), "state": "the step has ended"},
        "StepSkipped(step='load', at_ms=1.5, reason='why', by_condition=False, item=None) "
        "cannot happen: the step has ended",
    ),
    (
        lambda: HangError(["one at a.py:1", "two at b.py:2"]),
        RuntimeError,
        {"waiting": ["one at a.py:1", "two at b.py:2"]},
        "nothing can ever happen again, but these tasks wait:\n  one at a.py:1\n  two at b.py:2",
    ),
]
each_error = pytest.mark.parametrize(
    ("make", "base", "attributes", "message"),
    TABLE,
    ids=[type(make()).__name__ for make, *_ in TABLE],
)


def check(error: Exception, attributes: dict[str, Any], message: str) -> None:
    assert {name: getattr(error, name) for name in attributes} == attributes
    assert str(error) == message


def test_the_table_holds_every_error_of_the_package() -> None:
    errors = {
        name
        for name in [*asyncflow.__all__, *vars(_errors)]
        if isinstance(kind := getattr(asyncflow, name, None) or getattr(_errors, name, None), type)
        and issubclass(kind, Exception)
        and not name.startswith("_")
    }

    assert errors == {type(make()).__name__ for make, *_ in TABLE}


@each_error
def test_an_error_has_its_facts_in_its_message_and_its_attributes(
    make: Callable[[], Exception], base: type[Exception], attributes: dict[str, Any], message: str
) -> None:
    error = make()

    assert isinstance(error, base)
    check(error, attributes, message)


@each_error
@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_an_unpickled_error_has_its_attributes_and_notes(
    make: Callable[[], Exception],
    base: type[Exception],
    attributes: dict[str, Any],
    message: str,
    protocol: int,
) -> None:
    error = make()
    error.add_note("in step 'load'")

    back = pickle.loads(pickle.dumps(error, protocol))

    assert type(back) is type(error)
    assert back.__notes__ == ["in step 'load'"]
    check(back, attributes, message)


@each_error
def test_a_copied_error_keeps_its_attributes(
    make: Callable[[], Exception], base: type[Exception], attributes: dict[str, Any], message: str
) -> None:
    error = make()

    for twin in (copy.copy(error), copy.deepcopy(error)):
        assert type(twin) is type(error)
        check(twin, attributes, message)


@each_error
def test_the_repr_of_an_error_shows_its_attributes(
    make: Callable[[], Exception], base: type[Exception], attributes: dict[str, Any], message: str
) -> None:
    shown = repr(make())

    values = [v for name, v in attributes.items() if v is not None and name != "kind"]
    assert all(repr(value) in shown or f"{value:g} ms" in shown for value in values), shown


def test_a_step_cancelled_error_is_not_a_cancellation() -> None:
    assert not issubclass(StepCancelledError, asyncio.CancelledError)


def test_a_step_timeout_formats_short_and_long_limits_readably() -> None:
    messages = [str(StepTimeoutError("a", 1, limit)) for limit in (0.25, 50, 60_000.0)]

    assert [message.partition("timeout_ms of ")[2] for message in messages] == [
        "0.25 ms",
        "50 ms",
        "60000 ms",
    ]


def test_a_restored_error_needs_no_traceback() -> None:
    assert RestoredError("ValueError", "boom").traceback == ""


def test_the_nearest_name_is_suggested_if_there_is_one() -> None:
    assert did_you_mean("extrakt", ["load", "extract", "extra"]) == " (did you mean 'extract'?)"
    assert did_you_mean("extrakt", iter(["extract"])) == " (did you mean 'extract'?)"
    assert did_you_mean("zzz", ["load", "extract"]) == ""
    assert did_you_mean("zzz", []) == ""


# Of the mutants that mutmut makes of `_core.errors`, two survive: in `did_you_mean` they ask
# `difflib` for more than one name, and only the first is used.
