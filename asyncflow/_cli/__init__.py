"""The command line: the group of all commands, and ``asyncflow completion``."""

from __future__ import annotations

from typing import Any

import click
from click.shell_completion import get_completion_class

from asyncflow import __version__
from asyncflow._cli.diff import diff
from asyncflow._cli.logs import logs
from asyncflow._cli.output import explained_errors
from asyncflow._cli.rerun import rerun
from asyncflow._cli.run import resume, run
from asyncflow._cli.runs import cancel, forget, prune, runs
from asyncflow._cli.show import plan, show
from asyncflow._cli.stats import stats
from asyncflow._cli.ui import ui

__all__ = ["commands", "completion"]


class _Commands(click.Group):
    """Explains errors, and lists the commands in the order of their use."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command."""
        with explained_errors():
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
    """Run pipelines of dependent async steps, and inspect their runs.

    Results go to standard output, everything else to standard error. The exit code is 0 on success,
    1 if a run or a journal failed, 2 for a usage error, 3 for a pipeline that can't be imported or
    run, 4 if a run or a journal does not exist, 70 for a bug in asyncflow, 130 and 143 after SIGINT
    and SIGTERM.
    """


@click.command(short_help="Print a completion script for a shell.")
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


for _command in (
    *(run, plan, runs, show, diff, logs, stats, resume, rerun, cancel, prune, forget),
    *(ui, completion),
):
    commands.add_command(_command)
