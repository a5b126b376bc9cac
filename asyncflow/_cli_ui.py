"""The command that shows runs in a browser, live: ``asyncflow ui``."""

from __future__ import annotations

from collections.abc import Sequence

import click

from asyncflow._cli_errors import USAGE, CommandError
from asyncflow._cli_journal import made, must_exist
from asyncflow._cli_load import load
from asyncflow._cli_options import PIPELINES, TargetType, journal_option

__all__ = ["ui"]


@click.command(short_help="Show the runs of a journal in a browser, live.")
@journal_option
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to bind to.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8321,
    show_default=True,
    help="The port; 0 for any that is free.",
)
@click.option(
    "--token",
    metavar="TEXT",
    envvar="ASYNCFLOW_TOKEN",
    show_envvar=True,
    help="What a browser must know; any other host than this machine needs one.",
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
    """Serve a page that shows the runs of a journal as they happen, until it is interrupted."""
    from asyncflow.web import serve  # it comes with another extra

    must_exist(journal)
    pipelines = [load(target).orchestrator for target in targets]
    try:
        serve(made(journal), host, port, pipelines=pipelines, token=token, open_browser=opens)
    except ValueError as error:
        raise CommandError(str(error), USAGE) from error
