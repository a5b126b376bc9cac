"""The command ``asyncflow resume``: one run, or all that match."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from typing import Any

import click
from click.core import ParameterSource

from asyncflow._cli.engines import open_engines
from asyncflow._cli.execution import (
    Execution,
    exit_code_of,
    preview_run,
    run_once,
    stopped_by_signals,
)
from asyncflow._cli.loader import LoadedPipeline
from asyncflow._cli.options import (
    PIPELINES,
    AnyJournal,
    GroupedCommand,
    RunFlags,
    complete_run,
    dry_run_option,
    having_attribute_option,
    open_journal,
    pipelines_argument,
    require_journal,
    run_options,
    since_option,
    status_option,
)
from asyncflow._cli.output import (
    INVALID,
    PASSED,
    RUN_FAILED,
    RUN_WAITING,
    CommandError,
    logs_on_stderr,
    stdout_for_results_only,
    write_note,
    write_result,
)
from asyncflow._cli.run import check_pipeline, execute_run, load, pipeline_of, read_run
from asyncflow._cli.runs import write_table
from asyncflow._core.arguments import AttributeValue
from asyncflow._core.errors import (
    ResourceError,
    RunAlreadyActiveError,
    RunNotFoundError,
    RunUnreadableError,
)
from asyncflow._core.history.results import RunStatus
from asyncflow._core.text import escape_controls
from asyncflow._runtime.recovery import outer_run_of
from asyncflow.journal import RunRecord
from asyncflow.journal._read.queries import record_document

_SEVERITY = (PASSED, RUN_WAITING, RUN_FAILED, INVALID)
"""The exit codes of runs, the worst last."""


_EXAMPLES = """\b
Examples:
  asyncflow resume latest etl:pipeline --dry-run
  asyncflow resume calm-otter etl:pipeline --input token=@env:TOKEN
  asyncflow resume --status FAILED --since yesterday --jobs 4 etl:pipeline
"""


@click.command(cls=GroupedCommand, epilog=_EXAMPLES)
@click.argument("run", metavar="[RUN]", required=False, shell_complete=complete_run)
@pipelines_argument
@status_option("Resume all runs with this status, of which none is named: FAILED, for one.")
@since_option
@having_attribute_option
@click.option(
    "--jobs",
    type=click.IntRange(1, 1_000),
    default=1,
    help="With --status: how many runs are resumed at once; by default one after the other.",
)
@dry_run_option
@run_options
def resume(
    run: str | None,
    pipelines: Sequence[str],
    status: RunStatus | None,
    since: float | None,
    attributes: Mapping[str, AttributeValue] | None,
    jobs: int,
    dry_run: bool,
    flags: RunFlags,
) -> None:
    """Resume a run that failed, was stopped, or whose process died; or all that match.

    RUN is its id, the start of its id, or "latest". Completed steps run again only if
    their results are not valid any more. The inputs are those of the run; only secret ones must be
    given again.

    A journal stores no code, so name the pipeline: MODULE:PIPELINE as for `run`, or a list of them
    in the variable ASYNCFLOW_PIPELINES, of which the one with the name of the run's pipeline is
    used. It runs all steps of the pipeline, even those that --target left out when the run started,
    unless --target is given again. Nothing runs if the run has steps left that the pipeline no
    longer has: say --allow-missing-steps to skip them.

    With --status, and without RUN, all runs of the named pipelines with this status are resumed,
    the oldest first and those of one key one after the other, and listed with their ends; without a
    name, those of all pipelines in the variable or the project.
    """
    require_journal(flags.journal)
    if status is None:
        if since is not None or attributes is not None or jobs != 1:
            raise click.UsageError(
                "--since, --attribute and --jobs are about several runs: give --status too"
            )
        if run is None:
            raise click.MissingParameter(param_type="argument", param_hint="'RUN'")
        stored = asyncio.run(read_run(flags.journal, run))
        target = pipeline_of(stored, pipelines, flags)
        execute_run(target, flags.journal, stored.run_id, flags, stored, dry_run=dry_run)
        return
    if status in (RunStatus.PASSED, RunStatus.RUNNING):
        raise click.UsageError(f"--status {status}: no such run can be resumed")
    if flags.html is not None:
        raise click.UsageError("--html is about one run: name it instead of --status")
    if run is not None:  # it is a pipeline too, and those that are named replace the project's
        source = click.get_current_context().get_parameter_source("pipelines")
        pipelines = (run, *pipelines) if source is ParameterSource.COMMANDLINE else (run,)
    if not pipelines:
        raise click.UsageError(
            f"name the pipelines: as MODULE:PIPELINE, in ${PIPELINES}, or as `pipelines` of "
            "[tool.asyncflow] in pyproject.toml"
        )
    with stdout_for_results_only(flags.as_json):
        loaded = [load(target, flags) for target in dict.fromkeys(pipelines)]
        resumption = _Resumption(loaded, flags, dry_run=dry_run)
        with logs_on_stderr(flags.log_level, flags.kept_logs, is_asked=flags.logs is not None):
            asyncio.run(resumption.run(status, since, attributes, jobs))
    resumption.write()
    sys.exit(resumption.exit_code)


def _is_due(record: RunRecord) -> bool:
    """Whether a run that waits to start is due, if it is one."""
    return record.waits_for is None or record.waits_for.kind != "time"


class _Resumption:
    """Resumes runs and remembers how each ended."""

    def __init__(
        self,
        loaded: Sequence[tuple[LoadedPipeline, Mapping[str, Any]]],
        flags: RunFlags,
        *,
        dry_run: bool,
    ) -> None:
        self._pipelines = {each.orchestrator.name: (each, inputs) for each, inputs in loaded}
        self._flags = flags
        self._dry_run = dry_run
        self._ends: dict[str, int] = {}
        """The exit code of each run that is over, by its id."""
        self._count = 0
        self._signal: int | None = None
        self._previews: list[Any] = []
        self._listed: list[RunRecord] = []
        self._summaries: Mapping[str, Any] = {}

    @property
    def exit_code(self) -> int:
        """The worst of all runs, or that of the signal that stopped them."""
        if self._signal is not None:
            return 128 + self._signal
        return max(self._ends.values(), key=_SEVERITY.index, default=PASSED)

    async def run(
        self,
        status: RunStatus,
        since: float | None,
        attributes: Mapping[str, AttributeValue] | None,
        jobs: int,
    ) -> None:
        """Resume all runs with a status that started since then, as many at once as that."""
        flags = self._flags
        async with AsyncExitStack() as stack:
            journal = open_journal(flags.journal, logs=flags.kept_logs, prints=flags.prints)
            await stack.enter_async_context(journal)
            found = await journal.runs(status, since=since, attributes=attributes, limit=None)
            # A run within a run is resumed by the step that has started it.
            ours = [
                each
                for each in found
                if each.pipeline in self._pipelines and not outer_run_of(each) and _is_due(each)
            ]
            used = {record.pipeline for record in ours}
            for name, (loaded, inputs) in self._pipelines.items():
                if name in used and not self._dry_run:
                    opened = await stack.enter_async_context(
                        open_engines(flags.engine, loaded.orchestrator)
                    )
                    self._pipelines[name] = loaded._replace(orchestrator=opened), inputs
            self._count = len(ours)
            task = asyncio.ensure_future(self._resume_all(journal, ours[::-1], jobs))
            with stopped_by_signals(task, "stopping; running steps are cleaning up") as stop:
                await asyncio.wait([task])
            self._signal = stop.signal
            if not task.cancelled():
                task.result()
            if not self._dry_run:
                for each in ours:
                    with suppress(RunNotFoundError):  # it was removed meanwhile
                        self._listed.append(await journal.record(each.run_id))
                others = [each for each in self._listed if each.status is not RunStatus.PASSED]
                self._summaries = await journal.summaries(others)

    async def _resume_all(
        self, journal: AnyJournal, records: Sequence[RunRecord], jobs: int
    ) -> None:
        slots = asyncio.Semaphore(jobs)
        keys: dict[tuple[str, str], asyncio.Lock] = {}

        async def resume_one(record: RunRecord) -> None:
            key = record.pipeline, record.key or record.run_id
            async with keys.setdefault(key, asyncio.Lock()), slots:
                await self._resume(journal, record)

        try:
            async with asyncio.TaskGroup() as group:
                for record in records:
                    group.create_task(resume_one(record))
        except BaseExceptionGroup as several:  # the journal has failed, of all of them
            raise several.exceptions[0] from None

    async def _resume(self, journal: AnyJournal, record: RunRecord) -> None:
        run_id, (loaded, inputs) = record.run_id, self._pipelines[record.pipeline]
        execution = Execution(loaded, inputs, self._flags.journal, run_id, self._flags)
        try:
            now = await journal.record(run_id)  # it may have been removed, and would begin anew
            if now.status is not record.status:  # it may be a failed one by now
                self._end(record, f"was taken by another process: it is {now.status} now", PASSED)
                return
            check_pipeline(record, loaded)
            if self._dry_run:
                self._previews.append(await preview_run(execution, self._flags.journal, run_id))
                self._ends[run_id] = PASSED
                return
            report = await run_once(execution, run_id, journal, [])
            status = (report or await journal.report(run_id)).status
        except (CommandError, click.UsageError) as error:
            self._end(record, f"was not resumed: {error}", INVALID)
        except (RunNotFoundError, RunUnreadableError) as error:
            self._end(record, f"was not resumed: {error}", RUN_FAILED)
        except RunAlreadyActiveError as error:
            if error.key:
                self._end(record, f"was not continued: {error}", RUN_FAILED)
            else:
                self._end(record, f"was taken by another process: {error.owner}", PASSED)
        except ResourceError as error:
            self._end(record, f"{error.report.status}: {error}", RUN_FAILED)
        else:
            self._end(record, status, exit_code_of(status))

    def _end(self, record: RunRecord, how: str, code: int) -> None:
        self._ends[record.run_id] = code
        line = f"{len(self._ends)} of {self._count}: run {record.run_id} {how}"
        write_note(escape_controls(line), quiet=self._flags.quiet and code != INVALID)

    def write(self) -> None:
        """Write the runs with their ends, or the previews of them."""
        if self._dry_run:
            if self._flags.as_json:
                previews = [json.loads(each.to_json()) for each in self._previews]
                write_result(json.dumps(previews, indent=2))
            elif self._previews:
                write_result("\n\n".join(map(str, self._previews)))
        elif self._flags.as_json:
            click.echo(json.dumps([record_document(each) for each in self._listed], indent=2))
        elif self._listed:
            write_table(self._listed, self._summaries, {})
        if not self._count:
            write_note("no matching runs")
