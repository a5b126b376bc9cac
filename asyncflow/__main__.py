"""Starts the command line: ``asyncflow``, or ``python -m asyncflow``."""

from __future__ import annotations

import importlib.util
import sys

__all__ = ["main"]

_REQUIRED = ("click", "rich", "msgspec")


def main() -> None:
    """Run the command that the process was given, and exit with its exit code."""
    missing = [name for name in _REQUIRED if importlib.util.find_spec(name) is None]
    if missing:
        names = " and ".join(filter(None, [", ".join(missing[:-1]), missing[-1]]))
        sys.stderr.write(
            f"Error: the command line needs {names}: pip install 'asyncflow-tiers[cli]'\n"
        )
        sys.exit(2)
    for stream in (sys.stdout, sys.stderr):
        # A character that the terminal's encoding lacks must not be an error.
        getattr(stream, "reconfigure", lambda **_: None)(errors="backslashreplace")
    try:
        from asyncflow._cli import commands
    except KeyboardInterrupt:  # the import takes a while, and there is nothing to report
        sys.exit(130)

    commands(prog_name="asyncflow")


if __name__ == "__main__":  # a worker process imports this module too
    main()
