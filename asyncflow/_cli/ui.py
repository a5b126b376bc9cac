"""The command that shows runs in a browser, live: ``asyncflow ui``."""

from __future__ import annotations

import asyncio
import sys
import webbrowser
from collections.abc import Callable, Mapping, Sequence

import click

from asyncflow._cli.execution import stopped_by_signals
from asyncflow._cli.loader import load
from asyncflow._cli.options import PIPELINES, TargetType, journal_option, must_exist, opened
from asyncflow._cli.output import PASSED, RUN_FAILED, USAGE, CommandError, logs_on_stderr, tell
from asyncflow._runtime.orchestrator import Orchestrator

__all__ = ["ui"]

_TOKEN = "ASYNCFLOW_TOKEN"


@click.command(short_help="Show the runs of a journal in a browser, live.")
@journal_option
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen at.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8765,
    show_default=True,
    help="The port; 0 for one that is free.",
)
@click.option(
    "--token",
    metavar="TEXT",
    envvar=_TOKEN,
    show_envvar=True,
    help="A secret that a browser must show; needed unless only this machine can reach it.",
)
@click.option(
    "--pipeline",
    "targets",
    metavar="MODULE:PIPELINE",
    type=TargetType(),
    multiple=True,
    envvar=PIPELINES,
    show_envvar=True,
    help="A pipeline whose runs may be resumed there; may be given several times.",
)
@click.option("--open", "opens", is_flag=True, help="Open it in a browser.")
def ui(
    journal: str,
    host: str,
    port: int,
    token: str | None,
    targets: Sequence[str],
    opens: bool,
) -> None:
    """Serve pages that show the runs of a journal as they happen, until a signal comes.

    There, runs can be cancelled, and those of the pipelines that are named here resumed.
    """
    must_exist(journal)
    loaded = [load(target).orchestrator for target in targets]
    pipelines = {orchestrator.name: orchestrator for orchestrator in loaded}

    def ready(url: str) -> None:
        tell(f"The runs of {journal} are at {url}" if is_file else f"The runs are at {url}")
        if opens:
            webbrowser.open(url)

    is_file = "://" not in journal  # an address may hold a password
    with logs_on_stderr():
        code = asyncio.run(_serve(journal, host, port, token, pipelines, ready))
    sys.exit(code)


async def _serve(
    journal: str,
    host: str,
    port: int,
    token: str | None,
    pipelines: Mapping[str, Orchestrator],
    ready: Callable[[str], object],
) -> int:
    from asyncflow.web import serve  # it comes with another extra

    async with opened(journal) as kept:
        serving = asyncio.ensure_future(
            serve(kept, host=host, port=port, token=token, pipelines=pipelines, on_ready=ready)
        )
        with stopped_by_signals(serving, _tell_stop) as stop:
            await asyncio.wait([serving])
        try:
            serving.result()
        except asyncio.CancelledError:
            pass  # as it was asked to
        except ValueError as error:
            why = f"{error}; here it is --token TEXT, or ${_TOKEN}"
            raise CommandError(why, USAGE) from error
        except OSError as error:
            raise CommandError(str(error), RUN_FAILED) from error
    return PASSED if stop.signal is None else 128 + stop.signal


def _tell_stop(name: str) -> None:
    tell(f"{name}: the pages end; one more stops the process at once")
