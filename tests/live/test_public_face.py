"""The public names of `asyncflow.live`, which costs nothing unless it is imported."""

from __future__ import annotations

import subprocess
import sys

import pytest

from asyncflow import Observer, ObserverFactory
from asyncflow.live import LiveView


def test_a_view_is_a_factory_of_observers() -> None:
    with LiveView() as view:
        factory: ObserverFactory = view
        observer: Observer = factory.for_run()

    assert callable(observer)


@pytest.mark.process
def test_importing_asyncflow_does_not_import_rich() -> None:
    script = "import asyncflow, sys; assert not {'rich', 'click'} & sys.modules.keys()"

    subprocess.run([sys.executable, "-c", script], check=True)
