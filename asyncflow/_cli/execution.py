"""Executes one run for a command: observes it, stops it at a signal, and reports its end.

Rules for signals:

1. The first SIGINT or SIGTERM cancels the run as its caller would: running steps are cancelled and
   awaited, and the journal records the end.
2. The second one exits within the interpreter's handler, since a step may block the event loop.
   Handlers of the loop are installed all the same: they wake the loop up when a signal interrupts
   another thread.
3. A signal that is ignored when the command starts stays ignored: a script does that to what it
   starts in the background, so that Ctrl-C ends the script alone.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from asyncflow._cli.engines import open_engines
from asyncflow._cli.loader import LoadedPipeline
from asyncflow._cli.options import AnyJournal, RunFlags, journal_named, open_journal, usual_times
from asyncflow._cli.output import (
    INVALID,
    PASSED,
    RUN_FAILED,
    RUN_WAITING,
    CommandError,
    format_report,
    format_tracebacks,
    stdout_console,
    write_html,
    write_note,
    write_result,
)
from asyncflow._core.errors import (
    JournalError,
    MissingInputError,
    PayloadError,
    ResourceError,
    RunCancelledError,
)
from asyncflow._core.history.replay import StoredRun
from asyncflow._core.history.report import RunReport
from asyncflow._core.history.results import REDACTED, RestoredOutput, RunStatus
from asyncflow._core.history.stored_report import report_from
from asyncflow._core.text import escape_controls
from asyncflow._core.tracebacks import format_error
from asyncflow._core.value_size import safe_repr
from asyncflow._kernel.asyncio_compat import FAILURES
from asyncflow._policies.observers import AnyObserver
from asyncflow._views.next_command import command_of, next_commands
from asyncflow._views.run_view import RunView
from asyncflow.events import Event, RunStarted, StepSucceeded
from asyncflow.journal._read.streams import latest_streamed
from asyncflow.journal._run_names import free_name, new_run_name

if TYPE_CHECKING:
    from asyncflow._core.analysis.preview import RunPreview
    from asyncflow.live import LiveView

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_STDERR = 2
_TRACEBACKS = 3
"""For how many steps the end of a run shows tracebacks."""


@dataclass(frozen=True, slots=True)
class Rerun:
    """The run whose results a new run reuses."""

    run_id: str
    from_steps: Sequence[str]


@dataclass(frozen=True, slots=True)
class Execution:
    loaded: LoadedPipeline
    inputs: Mapping[str, Any]
    journal: str | None
    run_id: str | None
    flags: RunFlags
    rerun: Rerun | None = None


@dataclass(frozen=True, slots=True)
class RunEnd:
    report: RunReport
    events: Iterable[Event]
    signal: int | None
    had_passed: bool
    """Whether the run had passed earlier, so that nothing ran now."""
    is_shown: bool
    """Whether the live view shows the end on a terminal."""
    failure: ResourceError | None = None


async def execute(execution: Execution) -> RunEnd:
    """Run a pipeline and return how that ended.

    Raise `CommandError` if it can't run with these inputs, an engine can't be opened, or it was
    stopped before it started.
    """
    flags = execution.flags
    loaded = execution.loaded
    async with open_engines(flags.engine, loaded.orchestrator) as orchestrator:
        execution = replace(execution, loaded=loaded._replace(orchestrator=orchestrator))
        if execution.journal is None:
            return await _execute(execution, execution.run_id or new_run_name(), None)
        opened = open_journal(execution.journal, logs=flags.kept_logs, prints=flags.prints)
        async with opened as journal:
            run_id = execution.run_id or await free_name(journal)
            return await _execute(execution, run_id, journal)


async def _execute(execution: Execution, run_id: str, journal: AnyJournal | None) -> RunEnd:
    events: list[Event] = []

    def observe(event: Event) -> None:
        if not events and execution.rerun is not None:  # it was not refused
            origin, quiet = execution.rerun.run_id, execution.flags.quiet
            write_note(escape_controls(f"run {run_id}, a rerun of run {origin}"), quiet=quiet)
        if journal is None or not events:  # the journal has the others
            events.append(event)

    with _live_view(enabled=not execution.flags.quiet) as view:
        observers: list[AnyObserver] = [observe] if view is None else [view, observe]
        task = asyncio.ensure_future(run_once(execution, run_id, journal, observers))
        with stopped_by_signals(task, "stopping; running steps are cleaning up") as stop:
            usual = asyncio.ensure_future(_expect_usual(view, journal, execution))
            await asyncio.wait([task])
            usual.cancel()
            await asyncio.wait([usual])  # it reads the journal
    failure: ResourceError | None = None
    try:
        report = None if task.cancelled() else task.result()
    except ResourceError as error:
        report, failure = error.report, error
    has_started = bool(events)
    if report is None and not has_started:
        code = RUN_FAILED if stop.signal is None else 128 + stop.signal
        raise CommandError("stopped before the run started; nothing has run", code)
    if journal is None:
        report = _report_of(events) if report is None else report
    else:
        report = await journal.report(run_id) if report is None else report
        if execution.flags.html is not None:
            stored = [
                *await journal.events(run_id),
                *await journal.notes(run_id),
                *await latest_streamed(journal, run_id),
            ]
            events = [each.event for each in stored]
    was_interrupted = report.status not in (RunStatus.PASSED, RunStatus.FAILED)
    return RunEnd(
        report,
        events,
        stop.signal if was_interrupted else None,
        had_passed=not has_started,
        is_shown=view is not None and view.has_shown_end,
        failure=failure,
    )


async def _expect_usual(
    view: LiveView | None, journal: AnyJournal | None, execution: Execution
) -> None:
    if view is not None and journal is not None:
        with suppress(JournalError):  # the run reports it
            await expect(view, journal, execution.loaded.orchestrator.name)


async def expect(
    view: LiveView, journal: AnyJournal, pipeline: str, *, elsewhere: bool = False
) -> None:
    """Let a view on a terminal say when a run will end, as far as the journal can tell.

    ``elsewhere`` says whether another process runs it.
    """
    # Lines have no such estimate.
    run_ms, steps_ms = await usual_times(journal, pipeline if sys.stderr.isatty() else "")
    view.expect(run_ms, steps_ms, elsewhere=elsewhere)


@contextmanager
def _live_view(*, enabled: bool) -> Iterator[LiveView | None]:
    if not enabled:
        yield None
        return
    from asyncflow.live import LiveView  # slow to import

    with LiveView() as view:
        yield view


async def run_once(
    execution: Execution, run_id: str, journal: AnyJournal | None, observers: list[AnyObserver]
) -> RunReport | None:
    """Run the pipeline; return ``None`` if something other than a signal interrupted it."""
    orchestrator, rerun = execution.loaded.orchestrator, execution.rerun
    orchestrator = orchestrator.with_options(
        run_id=run_id,
        journal=journal,
        on_active="wait" if execution.flags.wait else "raise",
        observers=[*orchestrator.observers, *observers],
    )
    try:
        with explained_refusals(execution.loaded.target):
            if rerun is not None:
                return await orchestrator.rerun(
                    rerun.run_id, from_=rerun.from_steps, inputs=execution.inputs
                )
            return await orchestrator.run(**execution.inputs)
    except RunCancelledError:
        return None
    except FAILURES:
        raise
    except BaseException:  # a step raised it, such as SystemExit, and the report says so
        return None


@contextmanager
def explained_refusals(target: str) -> Iterator[None]:
    """Explain why a pipeline can't run: what a step raises is in its report."""
    try:
        yield
    except (ValueError, TypeError, PayloadError, RuntimeError) as error:
        # An engine that is not open is no bug of ours.
        if isinstance(error, RuntimeError) and type(error) is not RuntimeError:
            raise
        is_missing = isinstance(error, MissingInputError)
        hint = "; give it with --input NAME=VALUE" if is_missing else ""
        raise CommandError(f"{target!r} can't run: {error}{hint}", INVALID) from error


async def preview_run(execution: Execution, journal: str, run_id: str) -> RunPreview:
    """Return what would run, of which nothing does. No engine is opened for that."""
    rerun = execution.rerun
    async with open_journal(journal) as opened:
        with explained_refusals(execution.loaded.target):
            return await execution.loaded.orchestrator.with_options(journal=opened).preview(
                run_id,
                inputs=execution.inputs,
                rerun=rerun is not None,
                from_=None if rerun is None else rerun.from_steps,
            )


def _report_of(events: Iterable[Event]) -> RunReport:
    """Return the report of an interrupted run without a journal."""
    secret: frozenset[str] = frozenset()
    shown = list[Event]()
    for event in events:
        if isinstance(event, RunStarted):
            secret = frozenset(event.secret)
        if isinstance(event, StepSucceeded):
            text = RestoredOutput(safe_repr(event.output))
            event = replace(event, output=REDACTED if event.step in secret else text)
        shown.append(event)
    run = StoredRun.with_log(shown)
    return report_from(run, lambda _, payload: payload, lambda _, value: value)


# The end of a run.


def report_end(execution: Execution, end: RunEnd) -> int:
    """Write the report of a run and the hints that follow from it, and return the exit code.

    On a terminal, the end that the live view shows takes the place of the report.
    """
    report, flags = end.report, execution.flags
    if end.had_passed:
        why = "still waits for a signal" if report.status is RunStatus.WAITING else "has passed"
        note = f"run {report.run_id} {why}, so nothing ran; this is its report"
        write_note(escape_controls(note), quiet=flags.quiet)
    # The live view has the user's frames; without a journal, nothing else has the others.
    write_report(
        report,
        as_json=flags.as_json,
        is_shown=end.is_shown,
        with_traces=not end.is_shown or execution.journal is None,
    )
    if end.failure is not None:
        if end.failure.__cause__ is not None:
            write_note(format_error(end.failure.__cause__).rstrip("\n"))
        write_note(escape_controls(f"Error: {end.failure}"))
    if flags.html is not None:
        stored_in = execution.journal
        resume = "" if stored_in is None else _resume_command(execution, report, stored_in)
        write_html(flags.html, end.events, resume=resume)
        write_note(f"HTML report: {flags.html}", quiet=flags.quiet)
    if execution.journal is not None:
        resume = _resume_command(execution, report, execution.journal)
        if not flags.quiet:
            write_hints(report, resume, journal_named(execution.journal))
    _explain_threads(report)
    if end.signal is not None:
        return 128 + end.signal
    return RUN_FAILED if end.failure is not None else exit_code_of(report.status)


def exit_code_of(status: RunStatus) -> int:
    """Return the exit code of a command that shows how a run ends."""
    return {RunStatus.PASSED: PASSED, RunStatus.WAITING: RUN_WAITING}.get(status, RUN_FAILED)


def write_hints(report: RunReport, resume: str, journal: str) -> None:
    """Write what a run asks for, or what failed in it received, and what a user may do about it."""
    if report.status is RunStatus.WAITING:
        from asyncflow._cli.show_run import asked_lines  # slow to import

        for line in asked_lines(RunView(report.events()), stdout_console()):
            write_note(line.plain)
    for hint in next_commands(report, resume, journal):
        write_note(escape_controls(hint))


def write_report(report: RunReport, *, as_json: bool, is_shown: bool, with_traces: bool) -> None:
    """Write a report, unless the end of the run is shown on the terminal where it would go."""
    if with_traces and (trace := format_tracebacks(report, limit=_TRACEBACKS)):
        write_note(f"{trace}\n")
    if as_json:
        click.echo(report.to_json(indent=2))
    elif not (is_shown and sys.stdout.isatty()):
        write_result(format_report(report))


def _resume_command(execution: Execution, report: RunReport, journal: str) -> str:
    flags = execution.flags
    # A resumption must give these again.
    given = [word for step in flags.targets for word in ("--target", step)]
    if flags.schedule is not None:
        given += ["--schedule", flags.schedule]
    if flags.keep_going:
        given.append("--keep-going")
    if flags.engine is not None:
        given += ["--engine", flags.engine]
    words = report.run_id, execution.loaded.target, *given
    return command_of("resume", *words, journal=journal_named(journal))


def _explain_threads(report: RunReport) -> None:
    """Say why the process does not exit yet, if a thread outlives the run."""
    names = [escape_controls(name) for name, result in report.items() if result.abandoned]
    others = set(threading.enumerate()) - {threading.main_thread()}
    if names and any(not thread.daemon for thread in others):
        # The interpreter's own handler would let it wait on.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        write_note(
            f"a thread of step {', '.join(names)} is still running, and the process waits for it; "
            "press Ctrl-C to exit"
        )


# Signals.


class StopSignal:
    """The signal that stopped a task, if there was one.

    It is the first one, if there are several.
    """

    def __init__(self, task: asyncio.Task[Any], notice: str) -> None:
        self.signal: signal.Signals | None = None
        self._task = task
        self._notice = notice
        self._loop = asyncio.get_running_loop()

    def handle(self, number: int, _: FrameType | None) -> None:
        """Cancel the task, or exit if a signal has done that already."""
        if self.signal is not None:
            # Not `print`, which the signal may have interrupted.
            os.write(_STDERR, b"\nexited immediately\n")
            os._exit(128 + number)  # as a shell reports a signal
        else:
            self.signal = signal.Signals(number)
            self._loop.call_soon_threadsafe(self._stop, self.signal.name)

    def _stop(self, name: str) -> None:
        if self._task.cancel(name):
            again = "Press Ctrl-C" if name == "SIGINT" else "Send it"
            write_note(f"{name}: {self._notice}. {again} again to exit immediately")


@contextmanager
def stopped_by_signals(task: asyncio.Task[Any], notice: str) -> Iterator[StopSignal]:
    """Let SIGINT and SIGTERM stop a task.

    The first signal cancels the task, and ``notice`` is written to standard error.
    """
    stop, loop = StopSignal(task, notice), asyncio.get_running_loop()
    handlers = {number: signal.getsignal(number) for number in _SIGNALS}
    handlers = {number: each for number, each in handlers.items() if each != signal.SIG_IGN}
    for number in handlers:
        with suppress(NotImplementedError):  # on Windows
            loop.add_signal_handler(number, _wake_up)
        signal.signal(number, stop.handle)
    try:
        yield stop
    finally:
        for number, handler in handlers.items():
            with suppress(NotImplementedError):
                loop.remove_signal_handler(number)
            signal.signal(number, handler)


def _wake_up() -> None:
    """Run in the loop, after the handler of the interpreter has done its work."""
