"""The public face of `asyncflow.live`."""

from __future__ import annotations

from asyncflow import Observer, ObserverFactory
from asyncflow.live import LiveView


def test_a_view_is_a_factory_of_observers() -> None:
    with LiveView() as view:
        factory: ObserverFactory = view
        observer: Observer = factory.for_run()

    assert callable(observer)
