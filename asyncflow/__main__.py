"""The command line: ``asyncflow``, or ``python -m asyncflow``."""

from __future__ import annotations

import importlib.util
import sys

__all__ = ["main"]

_NEEDED = ("click", "rich", "msgspec")


def main() -> None:
    """Run a command of the command line, and end the process with its exit code."""
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        needed = " and ".join(filter(None, [", ".join(missing[:-1]), missing[-1]]))
        sys.stderr.write(
            f"Error: the command line needs {needed}: pip install 'asyncflow-tiers[cli]'\n"
        )
        sys.exit(2)
    for stream in (sys.stdout, sys.stderr):
        # What a terminal can't show, it shall at least not fail for.
        getattr(stream, "reconfigure", lambda **_: None)(errors="backslashreplace")
    try:
        from asyncflow._cli import commands
    except KeyboardInterrupt:  # it takes a while, and nothing has begun that could be told of
        sys.exit(130)

    commands(prog_name="asyncflow")


if __name__ == "__main__":  # else it is imported, as by a process that runs a step
    main()
