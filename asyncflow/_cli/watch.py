"""The command ``asyncflow watch``: follows a run of any process in the terminal, to its end."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable

import click

from asyncflow._cli.execution import exit_code_of, expect, write_hints, write_report
from asyncflow._cli.options import (
    AnyJournal,
    complete_run,
    find_run,
    journal_named,
    journal_option,
    json_option,
    open_journal,
    require_journal,
    resume_command,
)
from asyncflow._cli.output import INTERRUPTED, NOT_FOUND, CommandError, write_note
from asyncflow._core.history.report import RunReport
from asyncflow._core.history.results import RunStatus
from asyncflow._core.text import escape_controls
from asyncflow._views.waiting import is_queued, wait_text
from asyncflow.events import Event, RunFinished, StepProgressed
from asyncflow.journal import RunRecord
from asyncflow.journal._read.queries import counts_until

_PAUSE_S = 0.3
"""How long to wait between two reads of a run."""


@click.command()
@click.argument("run", metavar="[RUN]", required=False, shell_complete=complete_run)
@journal_option
@json_option
def watch(run: str | None, journal: str, as_json: bool) -> None:
    """Follow a run that another process runs, or will start, until it ends.

    RUN is its id, the start of its id, or "latest"; by default the latest one that is running. It
    shows what `asyncflow run` shows, and its exit code is that of the run: 0 if it passed, 5 if it
    waits for a signal, 1 otherwise. While it waits to start, it says for what. Ctrl-C stops
    watching, and the run goes on.
    """
    require_journal(journal)
    try:
        record, report, is_shown = asyncio.run(_watch(journal, run))
    except KeyboardInterrupt:
        write_note("stopped watching; the run goes on")
        sys.exit(INTERRUPTED)
    write_report(report, as_json=as_json, is_shown=is_shown, with_traces=not is_shown)
    if record.status is RunStatus.ORPHANED:
        write_note("no process runs it any more")
    write_hints(report, resume_command(record, journal), journal_named(journal))
    sys.exit(exit_code_of(record.status))


async def _watch(address: str, run: str | None) -> tuple[RunRecord, RunReport, bool]:
    """Show a run until it has ended; return it, and whether its end is on the terminal."""
    from asyncflow.live import LiveView  # slow to import

    async with open_journal(address) as journal:
        record = await (_latest_running(journal) if run is None else find_run(journal, run))
        await _until_it_starts(journal, record)
        with LiveView() as view:
            await expect(view, journal, record.pipeline, elsewhere=True)
            record = await _follow(journal, record.run_id, view.for_run())
            if record.status is RunStatus.ORPHANED:  # for its last frame
                view._expected.died_at = counts_until(record, time.time())
        return record, await journal.report(record.run_id), view.has_shown_end


async def _until_it_starts(journal: AnyJournal, record: RunRecord) -> None:
    """Wait while a run waits to start, and say for what."""
    said = None
    while (wait := record.waits_for) is not None and is_queued(wait):
        if wait != said:
            said = wait
            write_note(escape_controls(f"run {record.run_id} waits {wait_text(wait, time.time())}"))
        await asyncio.sleep(_PAUSE_S)
        record = await journal.record(record.run_id)


async def _latest_running(journal: AnyJournal) -> RunRecord:
    running = await journal.runs(RunStatus.RUNNING)
    if not running:
        raise CommandError("no run is running; name the one to watch", NOT_FOUND)
    return next((each for each in running if not each.parent), running[0])


async def _follow(
    journal: AnyJournal, run_id: str, observe: Callable[[Event], object]
) -> RunRecord:
    """Let an observer see a run from its first event to its last."""
    after = noted = 0
    finished: RunFinished | None = None
    while True:
        # Before the events: those of a run that has ended are all there.
        record = await journal.record(run_id)
        come = await journal.events(run_id, after)
        for stored in come:
            after, event = stored.position, stored.event
            finished = event if isinstance(event, RunFinished) else None
            if finished is None:
                observe(event)
        for stored in await journal.notes(run_id, after=noted, kinds=[StepProgressed]):
            noted = stored.position
            observe(stored.event)
        if record.status is RunStatus.RUNNING:
            await asyncio.sleep(_PAUSE_S)
        elif not come:  # else another process may have resumed it since
            if finished is not None:  # it is no orphan
                observe(finished)
            return record
