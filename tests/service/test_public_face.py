"""The public names of `asyncflow.service`: their module, order, documentation and errors."""

from __future__ import annotations

import inspect
import pickle
from typing import Any

import pytest

from asyncflow import service


@pytest.mark.parametrize("name", service.__all__)
def test_a_public_name_reports_the_public_module_and_is_documented(name: str) -> None:
    public: Any = getattr(service, name)

    assert public.__module__ == "asyncflow.service"
    assert pickle.loads(pickle.dumps(public)) is public
    assert (inspect.getdoc(public) or "").count("\n") > 2 or issubclass(public, Exception)
    for member in vars(public):
        if not member.startswith("_"):
            assert inspect.getdoc(getattr(public, member)), member


def test_public_names_are_sorted() -> None:
    assert service.__all__ == sorted(service.__all__)


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
