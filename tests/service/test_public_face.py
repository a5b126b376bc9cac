"""The errors of `asyncflow.service`."""

from __future__ import annotations

import pickle

import pytest

from asyncflow import service


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            service.ServiceUnavailableError(3),
            "the service starts no run at present; try again in 3 s",
        ),
        (service.ServiceFullError(3, 7), "the service has 7 runs, its limit; try again in 3 s"),
        (service.ServiceStoppingError(1), "the service is shutting down; try again in 1 s"),
        (
            service.ClientDisconnectedError("r", "detach"),
            "the client of run 'r' went away; the run continues",
        ),
    ],
)
def test_an_error_can_be_pickled(error: Exception, message: str) -> None:
    copy = pickle.loads(pickle.dumps(error))

    assert str(copy) == str(error) == message
    assert vars(copy) == vars(error)
