"""All commands of the command line, and what they have in common.

The command that lets a shell complete the others: ``asyncflow completion``.
"""

from __future__ import annotations

from typing import Any

import click
from click.shell_completion import get_completion_class

from asyncflow import __version__
from asyncflow._cli.output import errors_explained
from asyncflow._cli.run import resume, run
from asyncflow._cli.runs import cancel, forget, prune, runs
from asyncflow._cli.show import plan, show
from asyncflow._cli.ui import ui

__all__ = [
    "commands",
    "completion",
]


@click.command(short_help="Print a script for the completion of a shell.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print a script that completes commands, options and run ids in a shell.

    bash: eval "$(asyncflow completion bash)" in ~/.bashrc;
    zsh: the same with zsh, in ~/.zshrc;
    fish: asyncflow completion fish | source, in ~/.config/fish/config.fish.
    """
    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(ctx.find_root().command, {}, "asyncflow", "_ASYNCFLOW_COMPLETE").source())


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
