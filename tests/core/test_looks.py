"""Each status has one look, and all counts stand in the order of the looks."""

from __future__ import annotations

import re
from collections import Counter
from itertools import chain
from pathlib import Path
from typing import get_args

import pytest
from rich.cells import cell_len
from rich.style import Style

import asyncflow
from asyncflow import RunStatus, StepStatus
from asyncflow._core.looks import (
    DIED_LOOK,
    OUTCOME_LOOKS,
    RUN_LOOKS,
    STEP_LOOKS,
    WORST_FIRST,
    Look,
    counted_looks,
    look_of,
)
from asyncflow._core.statistics import StepOutcome
from asyncflow.journal._queries import DAMAGED

LOOKS = [*STEP_LOOKS.values(), *RUN_LOOKS.values(), *OUTCOME_LOOKS.values(), DIED_LOOK]


def test_every_status_has_a_look() -> None:
    assert set(STEP_LOOKS) == set(WORST_FIRST) == set(StepStatus)
    assert set(RUN_LOOKS) == {*RunStatus, "STOPPING", DAMAGED}
    assert set(OUTCOME_LOOKS) == set(get_args(StepOutcome))


@pytest.mark.parametrize("look", LOOKS, ids=lambda look: look.word)
def test_a_look_suits_every_renderer(look: Look) -> None:
    assets = Path(asyncflow.__file__).parent.rglob("*.css")
    classes = re.findall(r"\.(?:badge|cell)\.([\w-]+)", "".join(map(Path.read_text, assets)))

    assert cell_len(look.symbol) == len(look.ascii) == 1
    assert look.ascii.isascii()
    assert Style.parse(look.colour).color or look.colour == "dim"
    assert look.kind in classes


def test_counts_have_one_order_what_has_ended_first() -> None:
    counts = Counter(chain(StepStatus, [StepStatus.RUNNING]))

    words = [f"{count} {look.said}" for look, count in counted_looks(counts)]

    ended = ["1 succeeded", "1 failed", "1 cancelled", "1 skipped"]
    assert words == [*ended, "2 running", "1 pending"]
    assert counted_looks({StepStatus.RUNNING: 2}, has_died=True) == [(DIED_LOOK, 2)]
    assert counted_looks({}) == []


def test_only_a_running_step_died_with_its_process() -> None:
    assert [status for status in StepStatus if look_of(status, has_died=True) is DIED_LOOK] == [
        StepStatus.RUNNING
    ]
