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
from asyncflow import RunStatus, StepResult, StepStatus
from asyncflow._core.analysis.looks import (
    DIED_LOOK,
    OUTCOME_LOOKS,
    RUN_LOOKS,
    STEP_LOOKS,
    WAITS_LOOK,
    WORST_FIRST,
    Look,
    counted_looks,
    look_of,
)
from asyncflow._core.analysis.statistics import StepOutcome
from asyncflow.journal._read.queries import DAMAGED

LOOKS = [*STEP_LOOKS.values(), *RUN_LOOKS.values(), *OUTCOME_LOOKS.values(), DIED_LOOK]


def test_every_status_has_a_look() -> None:
    assert set(STEP_LOOKS) == set(WORST_FIRST) == {*StepStatus, "ORPHANED", "WAITS"}
    assert set(RUN_LOOKS) == {*RunStatus, "STOPPING", "QUEUED", DAMAGED}
    assert set(OUTCOME_LOOKS) == {*get_args(StepOutcome)}


@pytest.mark.parametrize("look", LOOKS, ids=lambda look: look.word)
def test_a_look_suits_every_renderer(look: Look) -> None:
    assets = Path(asyncflow.__file__).parent.rglob("*.css")
    classes = re.findall(r"\.(?:badge|cell)\.([\w-]+)", "".join(map(Path.read_text, assets)))

    assert cell_len(look.symbol) == len(look.ascii) == 1
    assert look.ascii.isascii()
    assert Style.parse(look.colour).color or look.colour == "dim"
    assert look.kind in classes


def test_counts_have_one_order_what_has_ended_first() -> None:
    counts = Counter(chain(StepStatus, [StepStatus.RUNNING], [StepStatus.PENDING] * 3))

    words = [f"{count} {look.said}" for look, count in counted_looks(counts, 3)]

    ended = ["1 succeeded", "1 failed", "1 cancelled", "1 skipped"]
    assert words == [*ended, "2 running", "3 waiting", "1 pending"]
    dead = {StepStatus.RUNNING: 2, StepStatus.PENDING: 1}
    assert counted_looks(dead, 1, has_died=True) == [(DIED_LOOK, 2), (WAITS_LOOK, 1)]
    assert counted_looks({}, 0) == []


def test_only_a_running_step_died_with_its_process() -> None:
    results = [StepResult("a", status) for status in StepStatus]

    dead = [each.status for each in results if look_of(each, has_died=True) is DIED_LOOK]

    assert dead == [StepStatus.RUNNING]


def test_a_step_that_waits_looks_neither_pending_nor_dead() -> None:
    waits = StepResult("a", StepStatus.PENDING, waiting_since=1.0)

    assert look_of(waits) is look_of(waits, has_died=True) is WAITS_LOOK
    words = [{look.word, look.kind, look.symbol, look.ascii, look.said} for look in LOOKS_OF_STEPS]
    for number, one in enumerate(words):
        assert not any(one & other for other in words[number + 1 :])


LOOKS_OF_STEPS = [*STEP_LOOKS.values()]
