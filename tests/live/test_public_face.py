"""The public names of `asyncflow.live`, which costs nothing unless it is imported."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

import asyncflow.live
from asyncflow import Observer, ObserverFactory
from asyncflow.live import LiveView


def test_the_public_names_are_exactly_these() -> None:
    assert asyncflow.live.__all__ == ["LiveView"]


def test_a_public_name_reports_the_public_module_and_is_documented() -> None:
    assert LiveView.__module__ == "asyncflow.live"
    assert inspect.getdoc(LiveView)
    assert inspect.getdoc(LiveView.for_run)


def test_a_view_is_a_factory_of_observers() -> None:
    with LiveView() as view:
        factory: ObserverFactory = view
        observer: Observer = factory.for_run()

    assert callable(observer)


@pytest.mark.process
def test_importing_asyncflow_does_not_import_rich() -> None:
    script = "import asyncflow, sys; assert not {'rich', 'click'} & sys.modules.keys()"

    subprocess.run([sys.executable, "-c", script], check=True)
