"""Sends the signals of a run, whichever process runs it, and notes which of them were accepted.

A sender that is killed has not noted whether its latest value was. The next one sends the same
again, as webhooks do, or another one, and learns which of them counts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import aclosing
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from asyncflow import JournalError, RunNotFoundError
from tests.crash.effects import append, lines_of

__all__ = ["Answers", "answers_in", "send"]


class Answers(NamedTuple):
    """What was sent to a signal."""

    tried: list[int]
    accepted: int | None
    is_refused: bool
    """Whether a value came second, to another value or to the end of the deadline."""


def answers_in(folder: Path, name: str) -> Answers:
    lines = [line.split() for line in lines_of(folder / "sent")]
    of_name = [(what, int(value)) for what, signal, value in lines if signal == name]
    tried = [value for what, value in of_name if what == "try"]
    accepted = [value for what, value in of_name if what == "accepted"]
    return Answers(tried, accepted[0] if accepted else None, "refused" in dict(of_name))


async def send(journal: Any, folder: Path, run_id: str, names: Iterable[str]) -> None:
    """Send a value to each signal of which it is not known yet whether it has one."""
    random = Random(len(lines_of(folder / "sent")))
    async with aclosing(journal):
        for name in names:
            tried, accepted, is_refused = answers_in(folder, name)
            if accepted is not None or is_refused:
                continue
            await asyncio.sleep(random.uniform(0, 0.04))  # the deadline of one is 30 ms
            again = bool(tried) and random.random() < 0.5
            value = tried[-1] if again else len(tried) + 1
            append(folder / "sent", f"try {name} {value}\n")
            try:
                await _send(journal, run_id, name, value)
            except ValueError:
                append(folder / "sent", f"refused {name} {value}\n")
            else:
                append(folder / "sent", f"accepted {name} {value}\n")


async def _send(journal: Any, run_id: str, name: str, value: int) -> None:
    while True:
        try:
            return await journal.signal(run_id, name, value)
        except (RunNotFoundError, JournalError):  # it has not begun, or the server is down
            await asyncio.sleep(0.002)
