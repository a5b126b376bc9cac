"""The defaults of a project: the table ``[tool.asyncflow]`` of its ``pyproject.toml``.

It is that of the current directory, to which its modules and files are relative.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import click

from asyncflow._core.text import did_you_mean

_KINDS = {"pipelines": list, "journal": str, "logs": str}


def project_defaults() -> dict[str, Any]:
    """Return the values of the options that the project sets, by the names of parameters."""
    try:
        document = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise click.UsageError(f"pyproject.toml can't be read: {error}") from None
    table: Any = document
    for name in ("tool", "asyncflow"):
        table = table.get(name, {})
        if not isinstance(table, dict):
            raise click.UsageError(f"{name!r} in pyproject.toml must be a table")
    for name, value in table.items():
        kind = _KINDS.get(name)
        if kind is None:
            hint = did_you_mean(name, _KINDS) or f"; it has {', '.join(_KINDS)}"
            raise click.UsageError(f"[tool.asyncflow] of pyproject.toml has no {name!r}{hint}")
        if not isinstance(value, kind) or not all(isinstance(each, str) for each in value):
            words = "a list of MODULE:PIPELINE" if kind is list else "a string"
            raise click.UsageError(f"[tool.asyncflow] of pyproject.toml: {name} must be {words}")
    return {name: value for name, value in table.items() if value}  # "" sets nothing
