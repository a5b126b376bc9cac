"""What an attempt reads of the checkpoints of earlier ones."""

from __future__ import annotations

import math
import pickle

import pytest

from asyncflow import PayloadError
from asyncflow._core.history.results import Payload
from asyncflow._core.running.checkpoints import (
    LARGEST,
    Checkpoints,
    PickleCodec,
    received_checkpoints,
)


def attempt(number, item=None, step="a"):
    return step, number, 0.0, 0.0, item


def saved(value):
    return PickleCodec().encode("x", value, None)


def test_an_attempt_reads_what_the_latest_one_before_it_has_saved_and_never_its_own():
    checkpoints = Checkpoints()
    checkpoints.save(attempt(1), "one", is_last=False)
    checkpoints.save(attempt(2), "two", is_last=False)
    checkpoints.save(attempt(2), "two again", is_last=False)

    seen = [checkpoints.last(attempt(number)) for number in (2, 3)]

    assert seen == ["one", "two again"]


def test_what_was_stored_is_earlier_than_an_attempt_of_any_number():
    checkpoints = Checkpoints(stored={("a", None): saved("before")})
    first = checkpoints.last(attempt(1))
    checkpoints.save(attempt(1), "now", is_last=False)

    assert (first, checkpoints.last(attempt(1)), checkpoints.last(attempt(2))) == (
        "before",
        "before",
        "now",
    )


def test_what_the_action_changes_later_changes_no_checkpoint():
    checkpoints, rows = Checkpoints(), [1]
    checkpoints.save(attempt(1), rows, is_last=False)
    rows.append(2)

    first = checkpoints.last(attempt(2))
    first.append(3)

    assert checkpoints.last(attempt(2)) == [1]


def test_an_attempt_that_is_over_saves_nothing_over_a_later_one():
    checkpoints = Checkpoints()
    checkpoints.save(attempt(2), "two", is_last=False)
    checkpoints.save(attempt(1), "late", is_last=False)

    assert checkpoints.last(attempt(3)) == "two"


def test_nothing_is_kept_for_an_attempt_that_never_comes():
    checkpoints = Checkpoints()

    checkpoints.save(attempt(3), "x", is_last=True)

    assert not checkpoints.saved


def test_a_checkpoint_is_refused_where_it_is_made_if_it_is_too_large_or_cannot_be_pickled():
    checkpoints = Checkpoints()
    checkpoints.save(attempt(1), b"x" * (LARGEST - 100), is_last=False)

    with pytest.raises(
        PayloadError, match=r"step 'a' takes 65,5\d\d bytes, and the limit is 65,536"
    ):
        checkpoints.save(attempt(1), b"x" * LARGEST, is_last=True)
    with pytest.raises(
        PayloadError, match=r"checkpoint of step 'a' can't be pickled: .*plain data"
    ):
        checkpoints.save(attempt(1), lambda: None, is_last=True)
    assert len(checkpoints.last(attempt(2))) == LARGEST - 100


def test_another_process_reads_what_was_sent_and_passes_on_what_it_saves():
    home, passed_on = Checkpoints(), []
    home.save(attempt(1, 3), {"row": 5}, is_last=False)
    sent = pickle.loads(pickle.dumps(home.to_send(attempt(2, 3))))
    there = received_checkpoints(
        attempt(2, 3), sent, lambda key, payload: passed_on.append(payload)
    )

    seen = there.last(attempt(2, 3))
    there.save(attempt(2, 3), math.pi, is_last=True)
    home.keep(attempt(2, 3), Payload(*passed_on[0]))

    assert seen == {"row": 5}
    assert home.last(attempt(3, 3)) == math.pi
