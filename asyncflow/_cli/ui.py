"""The command that serves the pages of a journal's runs: ``asyncflow ui``."""

from __future__ import annotations

import asyncio
import sys
import webbrowser
from collections.abc import Callable, Mapping, Sequence

import click

from asyncflow._cli.execution import stopped_by_signals
from asyncflow._cli.loader import load_pipeline
from asyncflow._cli.options import (
    PIPELINES,
    complete_target,
    journal_exists,
    journal_option,
    kept_logs,
    log_options,
    logs_option,
    open_journal,
)
from asyncflow._cli.output import (
    PASSED,
    RUN_FAILED,
    USAGE,
    CommandError,
    logs_on_stderr,
    write_note,
)
from asyncflow._runtime.orchestrator import Orchestrator

_TOKEN = "ASYNCFLOW_TOKEN"


@click.command()
@journal_option
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8765,
    show_default=True,
    help="The port; 0 for any free one.",
)
@click.option(
    "--token",
    metavar="TEXT",
    envvar=_TOKEN,
    show_envvar=True,
    help="A secret that browsers must send; required if other machines can connect.",
)
@click.option(
    "--pipeline",
    "pipelines",  # as the project's defaults name them
    metavar="MODULE:PIPELINE",
    shell_complete=complete_target,
    multiple=True,
    envvar=PIPELINES,
    show_envvar=True,
    help="A pipeline whose runs the pages can resume and rerun; repeatable.",
)
@click.option("--open", "opens", is_flag=True, help="Open the pages in a browser.")
@logs_option
@log_options
def ui(
    journal: str,
    host: str,
    port: int,
    token: str | None,
    pipelines: Sequence[str],
    opens: bool,
    logs: str | None,
    log_level: int | None,
) -> None:
    """Serve pages that show the runs of a journal as they happen, until a signal stops it.

    The pages can cancel runs, and resume and rerun those of the pipelines that are named: here, or
    as `pipelines` of the project.
    """
    loaded = [load_pipeline(target).orchestrator for target in pipelines]
    by_name = {orchestrator.name: orchestrator for orchestrator in loaded}
    is_new = not journal_exists(journal)

    def on_ready(url: str) -> None:
        if is_new:
            write_note(
                f"Journal {journal} did not exist; the pages show its first run as it starts"
            )
        # The address of a database may contain a password.
        write_note(f"The runs {'' if '://' in journal else f'of {journal} '}are at {url}")
        if opens:
            webbrowser.open(url)

    kept = kept_logs(logs)
    with logs_on_stderr(log_level, kept, is_asked=logs is not None):
        code = asyncio.run(_serve(journal, kept, host, port, token, by_name, on_ready))
    sys.exit(code)


async def _serve(
    journal: str,
    logs: str | None,
    host: str,
    port: int,
    token: str | None,
    pipelines: Mapping[str, Orchestrator],
    on_ready: Callable[[str], object],
) -> int:
    from asyncflow.web import serve  # its extra may be missing

    async with open_journal(journal, logs=logs) as opened:
        serving = asyncio.ensure_future(
            serve(opened, host=host, port=port, token=token, pipelines=pipelines, on_ready=on_ready)
        )
        with stopped_by_signals(serving, "closing the pages") as stop:
            await asyncio.wait([serving])
        try:
            serving.result()
        except asyncio.CancelledError:
            pass  # a signal cancelled it
        except ValueError as error:
            raise CommandError(f"{error}; use --token TEXT, or ${_TOKEN}", USAGE) from error
        except OSError as error:
            raise CommandError(str(error), RUN_FAILED) from error
    return PASSED if stop.signal is None else 128 + stop.signal
