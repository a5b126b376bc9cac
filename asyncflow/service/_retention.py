"""Deletes the old runs of a journal for as long as a service lives.

Services look at times of their own, so that the replicas of a deploy do not delete at once. If two
do, that costs time alone: what one has deleted, the other does not find.
"""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta
from random import random
from typing import TYPE_CHECKING

from asyncflow._core.errors import JournalError
from asyncflow._core.text import plural, safe_text

if TYPE_CHECKING:
    from asyncflow.journal._base import SQLJournal

_LEAST = timedelta(hours=1)
_LOOK_EVERY_S = 3600.0

_log = logging.getLogger("asyncflow")


def check_keep(keep: object) -> None:
    """Check how long to keep runs; ``None`` stands for no limit."""
    if keep is None:
        return
    if not isinstance(keep, timedelta):
        raise TypeError(
            "keep must be a timedelta, such as timedelta(days=90), not "
            f"{safe_text(repr, keep)}: a number does not tell its unit"
        )
    if keep < _LEAST:
        raise ValueError(
            f"keep must be at least an hour, not {keep}; journal.prune() deletes runs at once"
        )


async def delete_old_runs(journal: SQLJournal, keep: timedelta) -> None:
    """Delete the runs that ended longer ago, hour by hour, until this is cancelled."""
    await asyncio.sleep(random() * _LOOK_EVERY_S)
    while True:
        try:
            count = await journal._prune_unneeded(keep.total_seconds())
        except JournalError as error:
            _log.warning("the service can't delete old runs: %s", error)
        else:
            if count:
                _log.info("%s deleted that ended more than %s ago", plural(count, "run"), keep)
        await asyncio.sleep(_LOOK_EVERY_S)
