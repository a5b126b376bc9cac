"""What callers ask a journal about its runs, and what it answers, as plain data."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, TypeAlias, get_args

from asyncflow._core.analysis.statistics import StepStatistics, median, nearest_rank, usual
from asyncflow._core.arguments import AttributeValue, check_count, check_number, check_text
from asyncflow._core.history.results import InterruptionCause, RunStatus
from asyncflow._core.run_attributes import checked_attributes
from asyncflow._core.text import describe_error, safe_text
from asyncflow.events import Event
from asyncflow.journal._codec.events import column_of, is_storable
from asyncflow.journal._database.sql import LARGEST

UNFINISHED = (RunStatus.RUNNING, RunStatus.ORPHANED)
"""The statuses of runs whose latest segment has not ended. Their rows are alike: only the lease
tells."""

UNENDED = (*UNFINISHED, RunStatus.WAITING)
"""The statuses of runs that have not ended."""

DAMAGED = "DAMAGED"
"""What lists show instead of a status if the row of a run is damaged."""

Place = tuple[float, str]
"""The position of a run in the list of all runs: its start time and its id."""

_LONGEST_LEASE_S = 86_400
_LONGEST_TEXT = 1_000
USUAL_RUNS = 20
"""How many of the latest runs of a pipeline tell what is usual."""
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")
_RELATIVE = (".", "..")
"""Path segments that clients remove from a URL before they send it."""

_TIME = "a datetime or seconds since the epoch"
_AGE = re.compile(
    r"(?P<number>\d+) ?(?P<unit>[smhdw]|(?:second|minute|hour|day|week)s?)(?: ago)?", re.ASCII
)
_DAYS = {"today": timedelta(0), "yesterday": timedelta(days=1)}
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


WaitKind: TypeAlias = Literal["signal", "time", "key", "place"]


@dataclass(frozen=True, slots=True)
class WaitsFor:
    """For what a run waits that is ``WAITING``."""

    kind: WaitKind
    """``"signal"`` if it has started, and waits for signals. A run that waits to start waits for
    its ``"time"``, then for its ``"key"``, which another run has or waits for before it, then for a
    ``"place"`` in a service."""
    signals: tuple[str, ...] = ()
    """The names of the signals."""
    due_at: float | None = None
    """When a run that waits to start is due, or was, in seconds since the epoch."""
    key: str = ""
    """The key of a run that waits for it."""


@dataclass(frozen=True, slots=True)
class QueueStats:
    """How many runs wait to start."""

    waiting: int
    """How many runs wait to start, those that are not due among them."""
    due: int
    """How many of them are due."""
    oldest_due_s: float | None
    """For how many seconds the first of these has been due; ``None`` if none is."""
    blocked_keys: int
    """How many keys have runs that are due, and another run that has not ended."""


@dataclass(frozen=True, slots=True)
class RunRecord:
    """A run as a journal lists it."""

    run_id: str
    pipeline: str
    """The name of its pipeline; empty if the pipeline has none."""
    status: RunStatus
    """``ORPHANED`` if it has not ended and no process runs it: its process is provably dead, did
    not renew the lease, or gave up the run when the journal failed."""
    started_at: float
    """When it started, in seconds since the epoch (UTC), by the clock of the machine that ran
    it."""
    updated_at: float
    """When it last started, resumed or ended, in seconds since the epoch, by the database's clock,
    which may be another machine's. In virtual time, by the clock of that."""
    owner: str | None
    """The process that runs it, or ran it until it died; ``None`` if no process holds its lease."""
    latest_ms: float = 0.0
    """The time of its latest event, in milliseconds since it started, pauses left out."""
    paused_s: float = 0.0
    """For how many seconds no process ran it before it was resumed, in all, by wall clock."""
    damaged: bool = False
    """Whether its row is damaged, so that the other fields may be wrong: an unreadable text is
    escaped or empty, an unreadable time is 0. The run itself is a `RunUnreadableError`."""
    parent: str = ""
    """The id of the run one of whose steps started this one; empty if none did. The journal may not
    have it."""
    parent_step: str = ""
    """The name of that step."""
    rerun_of: str = ""
    """The id of the run whose results it reuses, if it is a rerun. The journal may not have that
    run any more."""
    label: str = ""
    """What it is about; empty if it was given no label."""
    attributes: Mapping[str, AttributeValue] = field(default_factory=dict, hash=False)
    """What programs find it by."""
    key: str = ""
    """The key that no other run of its pipeline has until this one has ended; empty if it has
    none."""
    cause: InterruptionCause | None = None
    """What interrupted it, as in `RunInterrupted`, if it is ``INTERRUPTED``."""
    crashes: int = 0
    """How many processes have died, or lost the journal, while they ran it, since it last ended."""
    enqueued_at: float | None = None
    """When it was enqueued, as ``started_at``; ``None`` if it was not. Lists have it in its place
    by this time, and its start is this too until it starts."""
    waits_for: WaitsFor | None = None
    """For what it waits if it is ``WAITING``."""
    seen_at: float | None = field(default=None, compare=False)
    """When a process that ran it last gave a sign of life, as ``updated_at``: it renews the run's
    lease every few seconds. ``None`` if none has run it. Records that differ in it alone are
    equal."""

    @property
    def duration_s(self) -> float | None:
        """For how many seconds its segments were running, as in `RunReport.total_duration_ms`.

        A segment whose process died lasted until its latest event. ``None`` while a process runs
        the run, and if it is damaged.
        """
        if self.damaged or self.status is RunStatus.RUNNING:
            return None
        return self.latest_ms / 1000

    @property
    def span_s(self) -> float | None:
        """Seconds from its start to its end, pauses included, as in `RunReport.span_ms`.

        ``None`` while a process runs the run.
        """
        return None if self.duration_s is None else self.duration_s + self.paused_s

    @property
    def place(self) -> tuple[float, str]:
        """Its position in the list of all runs; as ``before``, it selects the runs that follow."""
        first_s = self.started_at if self.enqueued_at is None else self.enqueued_at
        return first_s, self.run_id


def counts_until(record: RunRecord, now_s: float) -> float:
    """Return until when a run that has not ended counts, in seconds since the epoch.

    Until now, or until its process last gave a sign of life if that has died.
    """
    return (record.seen_at or 0.0) if record.status is RunStatus.ORPHANED else now_s


def so_far_ms(record: RunRecord, now_s: float) -> float:
    """Return for how many milliseconds a run has been running, pauses left out.

    A run that waits for a signal, or has ended, does not go on.
    """
    if record.status not in UNFINISHED:
        return record.latest_ms
    ran_s = counts_until(record, now_s) - record.started_at - record.paused_s
    return max(ran_s * 1000, record.latest_ms)


def listed_status(record: RunRecord) -> str:
    """Return the status that a list shows: that of a run, ``QUEUED`` or `DAMAGED`."""
    waits = record.waits_for
    is_queued = waits is not None and waits.kind != "signal"
    return DAMAGED if record.damaged else "QUEUED" if is_queued else record.status


@dataclass(frozen=True, slots=True)
class RunSummary:
    """What a list says of a run beside its record; but for times, it comes from the latest events.

    All of it is empty if what it would be read from is damaged.
    """

    inputs: Mapping[str, Any] = field(default_factory=dict)
    """The inputs that it started with, as those of `RunReport.inputs`; none if they are large."""
    steps: int | None = None
    """How many steps it has; known of a run that has not ended, as are `settled` and `active`."""
    settled: int = 0
    """How many of them have ended, or were skipped."""
    active: tuple[str, ...] = ()
    """The steps that run now, in topological order."""
    waits: tuple[str, ...] = ()
    """The steps that wait for a signal."""
    answered: tuple[str, ...] = ()
    """Those of them to which a value was sent that no process has taken yet."""
    failed_step: str = ""
    """The step that failed first, if the run failed."""
    error: BaseException | None = None
    """Its error."""
    stop_reason: str | None = None
    """Why the run stopped, if it did and no step failed."""
    usual_ms: float | None = None
    """How many milliseconds it usually takes, if it runs and that is known; see `usual_ms` of a
    journal."""

    @property
    def line(self) -> str:
        """What runs now or is waited for, the first error, or why the run stopped.

        ``12 of 20, load``, ``3 of 5, waits for approved`` or, once that was sent and until a
        process takes it, ``3 of 5, has an answer for approved``.
        """
        if self.steps is not None:
            now, verb = (self.active, "") if self.active else (self.waits, "waits for ")
            if self.answered and not self.active:
                now, verb = self.answered, "has an answer for "
            first = f", {verb}{now[0]}" if now else ""
            more = f" and {len(now) - 1} more" if len(now) > 1 else ""
            return f"{self.settled} of {self.steps}{first}{more}"
        if self.error is not None:
            return f"{self.failed_step}: {describe_error(self.error)}"
        return self.stop_reason or ""


@dataclass(frozen=True, slots=True)
class PipelineStatistics:
    """The latest runs of a pipeline, and what they say together. Times are milliseconds."""

    pipeline: str
    """The name of the pipeline; empty for all runs whose pipeline has none."""
    runs: tuple[RunRecord, ...]
    """The runs, the latest start first. One whose row is damaged, or what had to be read of it
    beside that, is marked as damaged, and counts nowhere else: the summary of one that has ended,
    or waits, else its events."""
    steps: Mapping[str, StepStatistics]
    """The steps of the latest run in topological order, then those that only earlier runs had."""

    @property
    def passed_ms(self) -> list[float]:
        """The durations of the runs that passed, pauses left out, the latest start first.

        Those of reruns are left out: a rerun runs only a part of the pipeline.
        """
        return [
            run.latest_ms
            for run in self.runs
            if run.status is RunStatus.PASSED and not run.damaged and not run.rerun_of
        ]

    @property
    def median_ms(self) -> float | None:
        """The median of `passed_ms`; ``None`` if there is none."""
        return median(self.passed_ms)

    @property
    def p95_ms(self) -> float | None:
        """The 95th percentile of `passed_ms` by nearest rank; ``None`` if there is none."""
        return nearest_rank(self.passed_ms, 95)

    @property
    def usual_ms(self) -> dict[str, float]:
        """How long steps usually take, by name: the median of each that has three durations."""
        found = {name: usual(step.passed_ms) for name, step in self.steps.items()}
        return {name: usual_ms for name, usual_ms in found.items() if usual_ms is not None}

    @property
    def success_rate(self) -> float | None:
        """Which share of the runs that passed or failed has passed, from 0 to 1.

        ``None`` if no run has passed or failed. Interrupted runs don't count.
        """
        statuses = [run.status for run in self.runs if not run.damaged]
        passed, failed = map(statuses.count, (RunStatus.PASSED, RunStatus.FAILED))
        return passed / (passed + failed) if passed + failed else None


def record_document(record: RunRecord) -> dict[str, Any]:
    """Return a record for JSON."""
    return {**asdict(record), "duration_s": record.duration_s, "span_s": record.span_s}


def statistics_document(found: PipelineStatistics) -> dict[str, Any]:
    """Return statistics for JSON, with the steps as a list in their order."""
    figures = ("median_ms", "p95_ms", "last_ms", "failure_rate", "flakiness")
    return {
        "pipeline": found.pipeline,
        "success_rate": found.success_rate,
        "median_ms": found.median_ms,
        "p95_ms": found.p95_ms,
        "runs": [record_document(record) for record in found.runs],
        "steps": [
            {
                "step": name,
                **{figure: getattr(step, figure) for figure in figures},
                "outcomes": step.outcomes,
                "durations_ms": step.durations_ms,
                "failed_items": step.failed_items,
                "retried_items": step.retried_items,
                "errors": step.errors,
            }
            for name, step in found.steps.items()
        ],
    }


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """An event of a run with its position."""

    position: int
    """Its place among the events of its run, counted from 1."""
    event: Event


@dataclass(frozen=True, slots=True)
class RunFilter:
    """Selects runs for a list: those that meet every condition, the latest start first.

    Its fields are the parameters of a journal's ``runs()``, which documents them; so
    ``journal.runs(**asdict(RunFilter(...)))`` lists the runs. It checks them when it is made, and
    turns times into seconds since the epoch and a status into a `RunStatus`.
    """

    status: RunStatus | str | None = None
    pipeline: str | None = None
    since: datetime | float | None = None
    limit: int | None = 100
    before: datetime | float | Place | None = None
    text: str | None = None
    parent: str | None = None
    cause: InterruptionCause | None = None
    label: str | None = None
    waits_for: WaitKind | None = None
    attributes: Mapping[str, AttributeValue] | None = None

    def __post_init__(self) -> None:
        if self.waits_for is not None and self.waits_for not in get_args(WaitKind):
            kinds = ", ".join(map(repr, get_args(WaitKind)))
            raise ValueError(
                f"waits_for must be one of {kinds}, not {safe_text(repr, self.waits_for)}"
            )
        if self.cause is not None and self.cause not in get_args(InterruptionCause):
            causes = ", ".join(map(repr, get_args(InterruptionCause)))
            raise ValueError(f"cause must be one of {causes}, not {safe_text(repr, self.cause)}")
        if self.pipeline is not None:
            check_text("pipeline", self.pipeline)
        if self.parent is not None:
            check_text("parent", self.parent)
        if self.label is not None:
            check_text("label", self.label)
        if self.limit is not None:
            check_count("limit", self.limit, 0, at_most=LARGEST)
        if self.text is not None:
            check_text("text", self.text)
            if not is_searchable(self.text):
                raise ValueError(
                    f"text must have at most {_LONGEST_TEXT:,} characters, and neither NUL nor "
                    "surrogates"
                )
        for name, value in {
            "status": parse_status(self.status),
            "since": None if self.since is None else _seconds("since", self.since),
            "before": None if self.before is None else _place(self.before),
            "text": self.text or None,
            "attributes": checked_attributes(self.attributes or {}) or None,
        }.items():
            object.__setattr__(self, name, value)


def parse_status(status: object) -> RunStatus | None:
    """Return a status that was given in any case; ``None`` for ``None``."""
    if status is None:
        return None
    try:
        return RunStatus(str.upper(status))  # type: ignore[arg-type]  # a TypeError if it is no text
    except (TypeError, ValueError):
        raise ValueError(
            f"status must be one of {', '.join(RunStatus)}, not {safe_text(repr, status)}"
        ) from None


def parse_time(text: str, now_s: float) -> float:
    """Return a time that a person typed, in seconds since the epoch.

    ``text`` is an age (``30s``, ``15m``, ``2h``, ``3 days ago``), counted back from now and at most
    to the epoch; ``today`` or ``yesterday``; a date or a time in ISO 8601, local unless it has an
    offset; or seconds since the epoch, as ``now_s`` is.
    """
    try:
        if text in _DAYS:
            today = datetime.fromtimestamp(now_s).replace(hour=0, minute=0, second=0, microsecond=0)
            return (today - _DAYS[text]).timestamp()
        if (past := parse_age(text)) is not None:
            return max(0.0, (datetime.fromtimestamp(now_s, UTC) - past).timestamp())
        time = _seconds_of_date(text)
    except (ValueError, OverflowError, OSError):
        time = math.nan
    if not 0 <= time < math.inf:
        raise ValueError(
            f"invalid time {text!r}; use an age (2h, 3d) or an ISO date (2024-06-01T12:00)"
        )
    return time


def parse_age(text: str) -> timedelta | None:
    """Return an age that a person typed; ``None`` if the text is none."""
    age = _AGE.fullmatch(text)
    return age and timedelta(**{_UNITS[age["unit"][0]]: int(age["number"])})


def _seconds_of_date(text: str) -> float:
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return float(text)


def check_lease(lease_s: float) -> None:
    """Check the duration of a lease, in seconds.

    It must be between a tenth of a second and a day.
    """
    check_number("lease_s", lease_s, 0.1, unit=" s")
    if lease_s > _LONGEST_LEASE_S:
        raise ValueError(
            f"lease_s must be at most {_LONGEST_LEASE_S} s, not {lease_s:g}; it is how long others "
            "wait for a process that has died on another machine"
        )


def check_new_id(run_id: str) -> None:
    """Check the id of a run to store.

    Raise `ValueError` if a database, a line of text or a URL could not hold it.
    """
    check_text("run_id", run_id)
    if not run_id:
        raise ValueError("run_id must not be empty; leave it out for a generated one")
    is_plain = column_of(run_id) == run_id and not _CONTROL.search(run_id)
    if not is_plain or run_id in _RELATIVE:
        raise ValueError(
            f"run_id can't be {run_id!r}: it appears in tables, lines of text and URLs, so it must "
            "have no control characters and no surrogates, not begin with '\"', "
            "and not be '.' or '..'"
        )


def is_searchable(text: str) -> bool:
    """Whether ``runs(text=...)`` accepts a text: not too long, and storable in every database."""
    return len(text) <= _LONGEST_TEXT and is_storable(text)


def _seconds(what: str, time: datetime | float, kind: str = _TIME) -> float:
    if isinstance(time, datetime):
        return time.timestamp()
    check_number(what, time, 0, kind=kind)
    return float(time)  # databases have smaller integers


def _place(before: Any) -> float | Place:
    if not isinstance(before, tuple):
        return _seconds("before", before, f"{_TIME}, or RunRecord.place")
    try:
        started_at, run_id = before
    except ValueError:
        raise TypeError("before must be a time, or what RunRecord.place gives") from None
    check_text("the run id in before", run_id)
    if not is_storable(run_id):
        raise ValueError(f"the run id in before must have neither NUL nor surrogates: {run_id!r}")
    return _seconds("the time in before", started_at), run_id
