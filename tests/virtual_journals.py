"""Tests of journals on any database, in virtual time."""

from __future__ import annotations

from inspect import Parameter, signature
from typing import Any

from asyncflow.testing import run_in_virtual_time


def in_virtual_time(test: Any) -> Any:
    """Let a test that takes a ``journal`` run in virtual time, and the journal be of its loop."""
    own = signature(test)
    journals = Parameter("make_journal", Parameter.POSITIONAL_OR_KEYWORD)
    others = [
        each for name, each in own.parameters.items() if name not in ("journal", "make_journal")
    ]

    def run(make_journal: Any, **fixtures: Any) -> None:
        if "make_journal" in own.parameters:
            fixtures["make_journal"] = make_journal

        async def main() -> None:
            async with make_journal() as journal:
                await test(journal, **fixtures)

        run_in_virtual_time(main())

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    run.__signature__ = own.replace(parameters=[journals, *others])  # type: ignore[attr-defined]
    return run
