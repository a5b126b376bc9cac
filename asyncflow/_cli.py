"""All commands of the command line, and what they have in common."""

from __future__ import annotations

from typing import Any

import click

from asyncflow import __version__
from asyncflow._cli_completion import completion
from asyncflow._cli_errors import errors_explained
from asyncflow._cli_plan import plan
from asyncflow._cli_run import resume, run
from asyncflow._cli_runs import cancel, forget, prune, runs
from asyncflow._cli_show import show
from asyncflow._cli_ui import ui

__all__ = ["commands"]


class _Commands(click.Group):
    """Says of each error what it is, and lists the commands in the order of their use."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command."""
        with errors_explained():
            return super().invoke(ctx)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the commands."""
        return list(self.commands)


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="asyncflow")
def commands() -> None:
    """Run pipelines of dependent async steps, and see their runs.

    Results go to the standard output, all else to the standard error. The exit code is 0 if all
    went well, 1 if a run or a journal has failed, 2 for a wrong usage, 3 for a pipeline that can't
    be imported or run, 4 if there is no such run or journal, 70 for a bug of asyncflow, 130 and 143
    after SIGINT and SIGTERM.
    """


for _command in (run, plan, runs, show, resume, cancel, prune, forget, ui, completion):
    commands.add_command(_command)
