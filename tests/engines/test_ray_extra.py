"""The Ray engine without Ray, which is not among what the tests need."""

from __future__ import annotations

import sys

import pytest


def test_without_ray_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "asyncflow.engines.ray", raising=False)

    with pytest.raises(ImportError, match=r"pip install 'asyncflow-tiers\[ray\]'") as raised:
        import asyncflow.engines.ray  # noqa: F401
    assert raised.value.name == "ray"
