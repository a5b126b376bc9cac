"""The command that lets a shell complete the others: ``asyncflow completion``."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

__all__ = ["completion"]


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
