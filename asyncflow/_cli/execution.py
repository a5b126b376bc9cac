"""One run as the command line has it: watched, kept, stopped by signals, told of at its end.

Ends a run gracefully at the first SIGINT or SIGTERM, and the process at the second one.

Rules:

1. The first one cancels the run as its caller would: what is running is cancelled and awaited, so
   that clean-up is done and the journal is told the end.
2. The second one ends the process within the handler of the interpreter, since a step may be
   blocking the event loop, for which a handler of the loop would wait. The loop is told of
   signals all the same: it wakes up also if they interrupt another thread.
3. One that was ignored when the process began stays so: a script that starts it in the background
   does that, so that Ctrl-C ends the script alone.

Names of runs that people can say, remember and type: ``calm-otter-3f2a``.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shlex
import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import (
    AbstractContextManager,
    asynccontextmanager,
    contextmanager,
    nullcontext,
    suppress,
)
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

from asyncflow._cli.loader import Loaded
from asyncflow._cli.options import AnyJournal, how_to_name, opened
from asyncflow._cli.output import (
    INVALID,
    PASSED,
    RUN_FAILED,
    CommandError,
    report_lines,
    say,
    say_json,
    tell,
    tracebacks,
    write_html,
)
from asyncflow._core.errors import PayloadError, RunCancelledError, escape_controls, safe_text
from asyncflow._core.replay import StoredRun
from asyncflow._core.report import RunReport
from asyncflow._core.results import REDACTED, RestoredOutput
from asyncflow._runtime.asyncio_compat import FAILURES
from asyncflow._runtime.dispatcher import AnyObserver
from asyncflow.events import Event, RunStarted, StepSucceeded

__all__ = [
    "End",
    "Execution",
    "Stop",
    "execute",
    "new_run_name",
    "stopped_by_signals",
    "tell_end",
]

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_STDERR = 2


class Stop:
    """Whether a signal has asked a run to stop.

    Attributes:
        signal: Which one, if one has.
    """

    def __init__(self, task: asyncio.Task[Any], on_stop: Callable[[str], object]) -> None:
        self.signal: signal.Signals | None = None
        self._task = task
        self._on_stop = on_stop
        self._loop = asyncio.get_running_loop()

    def handle(self, number: int, _: FrameType | None) -> None:
        """Do what a signal asks for."""
        if self.signal is not None:
            end_at_once(number)
        else:
            self.signal = signal.Signals(number)
            self._loop.call_soon_threadsafe(self._stop, self.signal.name)

    def _stop(self, name: str) -> None:
        if self._task.cancel(name):
            self._on_stop(name)


def end_at_once(number: int) -> None:
    """End the process without any ado, with the exit code that a shell gives for that signal."""
    # Not by `print`, which the interrupted code may be in the midst of.
    os.write(_STDERR, b"\nstopped at once\n")
    os._exit(128 + number)


@contextmanager
def stopped_by_signals(task: asyncio.Task[Any], on_stop: Callable[[str], object]) -> Iterator[Stop]:
    """Have signals stop a task for as long as this lasts.

    Args:
        task: What the first one cancels.
        on_stop: Called in the event loop with the name of the first one, when it has done so.
    """
    stop, loop = Stop(task, on_stop), asyncio.get_running_loop()
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    before = {number: kept for number, kept in before.items() if kept != signal.SIG_IGN}
    for number in before:
        with suppress(NotImplementedError):  # on Windows
            loop.add_signal_handler(number, _nothing)
        signal.signal(number, stop.handle)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            with suppress(NotImplementedError):
                loop.remove_signal_handler(number)
            signal.signal(number, handler)


def _nothing() -> None:
    """Stand in for a handler of the loop."""


_HOW = """
able agile amber bold brave breezy bright brisk calm candid cheery clear clever cosmic cosy crisp
daring deft eager early fair fancy fine fleet fond frank fresh gentle glad golden grand happy hardy
honest humble jolly keen kind lively loyal lucky lunar mellow merry mild misty modest neat nimble
noble patient placid plucky polite prime proud quick quiet ready rosy sandy serene sharp shiny
silent silver simple sleek smart snowy solar solid spry steady stout sunny sure swift tidy tranquil
trusty upbeat velvet vivid warm wise witty zesty
"""
_WHO = """
alpaca ant badger beaver bee bison bobcat camel cat cheetah clam condor crab crane cricket curlew
deer dingo dolphin dove duck eagle egret elk falcon ferret finch fox gecko gibbon goat goose grouse
gull hare hawk heron hippo ibex ibis jackal jay kiwi koala lark lemur lion llama lobster lynx
magpie marmot mole moose moth mouse newt ocelot octopus orca osprey otter owl panda panther parrot
pelican penguin pigeon pony puffin quail rabbit raven robin salmon seal shrew skunk sloth sparrow
squid stork swan tapir tern tiger toad trout turtle vole walrus weasel whale wolf wombat wren yak
zebra
"""


def new_run_name() -> str:
    """Return a name that is hardly taken yet: there are more than 500 million."""
    how, who = secrets.choice(_HOW.split()), secrets.choice(_WHO.split())
    return f"{how}-{who}-{secrets.token_hex(2)}"


_TRACEBACKS = 3
"""Of how many steps the tracebacks are shown at the end of a run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Execution:
    """What is to be run, and what is to be told of it."""

    loaded: Loaded
    inputs: Mapping[str, Any]
    journal: str | None
    run_id: str | None
    wait: bool
    html: Path | None
    as_json: bool
    quiet: bool
    all_frames: bool
    repeated: str
    """The options that whoever goes on with it has to give again."""


@dataclass(frozen=True, slots=True)
class End:
    """What came of it."""

    report: RunReport
    events: Iterable[Event]
    signal: int | None
    was_kept: bool
    """Whether there had been a report already, and nothing was run."""


async def execute(execution: Execution) -> End:
    """Run a pipeline, and return what came of it.

    Raises:
        CommandError: It can't run with these inputs.
        JournalError: The journal has failed.
        RunAlreadyActiveError: Somebody else runs it.
    """
    async with _journal_of(execution) as journal:
        run_id = execution.run_id or await _free_name(journal)
        return await _run(execution, run_id, journal)


@asynccontextmanager
async def _journal_of(execution: Execution) -> AsyncIterator[AnyJournal | None]:
    if execution.journal is None:
        yield None
        return
    async with opened(execution.journal) as journal:
        yield journal


async def _free_name(journal: AnyJournal | None) -> str:
    """Return a name for a new run; under one that is taken, that run would go on."""
    while True:
        name = new_run_name()
        if journal is None or not await journal.runs(text=name, limit=1):
            return name


async def _run(execution: Execution, run_id: str, journal: AnyJournal | None) -> End:
    heard: list[Event] = []

    def hear(event: Event) -> None:
        if journal is None or not heard:  # what a journal keeps need not be kept here
            heard.append(event)

    with _view_of(execution) as view:
        task = asyncio.ensure_future(_attended(execution, run_id, journal, [*view, hear]))
        with stopped_by_signals(task, _tell_stop) as stop:
            await asyncio.wait([task])
    report = None if task.cancelled() else task.result()
    if report is None and not heard:
        raise CommandError("stopped before the run began, so nothing has run", _code_of(stop))
    events: Iterable[Event] = heard
    if journal is None:
        report = report or _report_of(heard)
    else:
        report = report or await journal.report(run_id)
        if execution.html is not None:
            events = [each.event for each in await journal.events(run_id)]
    was_interrupted = report.outcome not in ("passed", "failed")
    return End(report, events, stop.signal if was_interrupted else None, was_kept=not heard)


async def _attended(
    execution: Execution,
    run_id: str,
    journal: AnyJournal | None,
    watching: list[AnyObserver],
) -> RunReport | None:
    """Run the pipeline; return none if it was stopped by other means than a signal."""
    try:
        return await execution.loaded.orchestrator.run(
            inputs=execution.inputs,
            run_id=run_id,
            journal=journal,
            on_active="wait" if execution.wait else "raise",
            observers=watching,
        )
    except RunCancelledError:
        return None
    except (ValueError, TypeError, PayloadError) as error:  # no step's: those are in the report
        raise CommandError(
            f"{execution.loaded.target!r} can't run: {_hinted(error)}", INVALID
        ) from error
    except FAILURES:
        raise
    except BaseException:  # a step has raised it, such as SystemExit, and the report says so
        return None


def _hinted(error: Exception) -> str:
    text = str(error)
    return f"{text}; give it with --input NAME=VALUE" if "nor a run input" in text else text


def _code_of(stop: Stop) -> int:
    return RUN_FAILED if stop.signal is None else 128 + stop.signal


def _report_of(events: Iterable[Event]) -> RunReport:
    """Return the report of a run that was interrupted and that no journal has kept."""
    secret: frozenset[str] = frozenset()
    story = StoredRun(())
    for event in events:
        if isinstance(event, RunStarted):
            secret = frozenset(event.secret)
        if isinstance(event, StepSucceeded):
            text = RestoredOutput(safe_text(repr, event.output))
            event = replace(event, output=REDACTED if event.step in secret else text)
        story.apply(event)
    return story.report(lambda _, payload: payload, lambda _, value: value)


# What is told.


def _view_of(execution: Execution) -> AbstractContextManager[list[AnyObserver]]:
    return nullcontext([]) if execution.quiet else _live_view()


@contextmanager
def _live_view() -> Iterator[list[AnyObserver]]:
    from asyncflow.live import LiveView  # it takes a while to import

    with LiveView() as view:
        yield [view]


def _tell_stop(name: str) -> None:
    tell(
        f"{name}: the run is being stopped, what is running cleans up; one more stops the process "
        "at once"
    )


def tell_end(execution: Execution, end: End) -> int:
    """Write what is to be told of the end of a run, and return the exit code."""
    report, quiet = end.report, execution.quiet
    if end.was_kept:
        run_id = escape_controls(report.run_id)
        tell(f"run {run_id} has passed before; this is what is kept of it", quiet=quiet)
    trace = tracebacks(report, limit=_TRACEBACKS, all_frames=execution.all_frames)
    if trace:
        tell(f"{trace}\n")
    if execution.as_json:
        say_json(report.to_json(indent=2))
    else:
        say(report_lines(report))
    if execution.html is not None:
        write_html(execution.html, end.events)
        tell(f"HTML report: {execution.html}", quiet=quiet)
    if execution.journal is not None:
        tell(escape_controls(_how_to_go_on(execution, report, execution.journal)), quiet=quiet)
    _tell_threads(report)
    if end.signal is not None:
        return 128 + end.signal
    return PASSED if report.outcome == "passed" else RUN_FAILED


def _tell_threads(report: RunReport) -> None:
    """Say why the process does not end yet, if a thread outlives the run."""
    left = [escape_controls(name) for name, result in report.items() if result.abandoned]
    others = set(threading.enumerate()) - {threading.main_thread()}
    if left and any(not thread.daemon for thread in others):
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # or the interpreter would go on waiting
        tell(
            f"a thread of step {', '.join(left)} still runs and can't be stopped, so the process "
            "waits for it; Ctrl-C ends it"
        )


def _how_to_go_on(execution: Execution, report: RunReport, journal: str) -> str:
    run_id, named = shlex.quote(report.run_id), how_to_name(journal)
    if report.outcome == "passed":
        return f"To see it again: asyncflow show {run_id}{named}"
    target = shlex.quote(execution.loaded.target)
    return f"To go on with it: asyncflow resume {run_id} {target}{execution.repeated}{named}"
