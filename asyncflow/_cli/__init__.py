"""The command line: the group of all commands, and ``asyncflow completion``.

Each command has a module, which is loaded when it is called. They may import everything but the
examples. `asyncflow.__main__` calls the group.
"""

from __future__ import annotations

from typing import Any

import click
from click.shell_completion import CompletionItem, get_completion_class

from asyncflow import __version__

_COMMANDS = {
    "run": "Run a pipeline, or resume the run with that id.",
    "enqueue": "Store a run that a service starts when it is due.",
    "plan": "Show the steps of a pipeline in their tiers, and run nothing.",
    "runs": "List the runs of a journal, the latest start first.",
    "show": "Show a run: its report and its tracebacks.",
    "watch": "Follow a run of another process until it ends.",
    "diff": "Compare a run with another one.",
    "logs": "Show what the steps of a run logged.",
    "stats": "Show the latest runs of a pipeline, step by step.",
    "resume": "Resume a run that has not passed.",
    "rerun": "Rerun a run from a step, under a new id.",
    "signal": "Send a value to a step of a run that waits for it.",
    "cancel": "Ask the process that runs a run to stop it.",
    "export": "Copy a run into a file of its own.",
    "prune": "Remove runs that ended long ago.",
    "forget": "Remove a run that no process runs.",
    "ui": "Show the runs of a journal in a browser, live.",
    "completion": "Print a completion script for a shell.",
}
"""What each command does, in the order of their use."""


class _Commands(click.Group):
    """Imports a command when it runs, and explains errors."""

    def invoke(self, ctx: click.Context) -> Any:
        from asyncflow._cli.output import explained_errors
        from asyncflow._cli.project import project_defaults

        with explained_errors():
            ctx.default_map = dict.fromkeys(_COMMANDS, project_defaults())
            return super().invoke(ctx)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command, with the modules that only it needs."""
        command: click.Command
        match cmd_name:
            case "run":
                from asyncflow._cli.run import run as command
            case "enqueue":
                from asyncflow._cli.enqueue import enqueue as command
            case "plan":
                from asyncflow._cli.show import plan as command
            case "runs":
                from asyncflow._cli.runs import runs as command
            case "show":
                from asyncflow._cli.show import show as command
            case "watch":
                from asyncflow._cli.watch import watch as command
            case "diff":
                from asyncflow._cli.diff import diff as command
            case "logs":
                from asyncflow._cli.logs import logs as command
            case "stats":
                from asyncflow._cli.stats import stats as command
            case "resume":
                from asyncflow._cli.resume import resume as command
            case "rerun":
                from asyncflow._cli.rerun import rerun as command
            case "signal":
                from asyncflow._cli.signal import signal as command
            case "cancel":
                from asyncflow._cli.runs import cancel as command
            case "export":
                from asyncflow._cli.export import export as command
            case "prune":
                from asyncflow._cli.runs import prune as command
            case "forget":
                from asyncflow._cli.runs import forget as command
            case "ui":
                from asyncflow._cli.ui import ui as command
            case "completion":
                command = _completion
            case _:
                return None
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write what each command does, without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl([*_COMMANDS.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Return the commands and options that begin so, without importing any."""
        found = [name for name in _COMMANDS if name.startswith(incomplete)]
        items = [CompletionItem(name, help=_COMMANDS[name]) for name in found]
        return [*items, *click.Command.shell_complete(self, ctx, incomplete)]


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="asyncflow")
def commands() -> None:
    """Run pipelines of dependent async steps, and inspect their runs.

    Results go to standard output, everything else to standard error. The exit code is 0 on success,
    1 if a run or a journal failed, 2 for a usage error, 3 for a pipeline that can't be imported or
    run, 4 if a run or a journal does not exist, 5 if a run waits for a signal, 70 for a bug in
    asyncflow, 130 and 143 after SIGINT and SIGTERM.
    """


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def _completion(ctx: click.Context, shell: str) -> None:
    """Print a script that completes commands, options and run ids in a shell.

    bash: eval "$(asyncflow completion bash)" in ~/.bashrc;
    zsh: the same with zsh, in ~/.zshrc;
    fish: asyncflow completion fish | source, in ~/.config/fish/config.fish.
    """
    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(ctx.find_root().command, {}, "asyncflow", "_ASYNCFLOW_COMPLETE").source())
