"""The public names of `asyncflow.web`, and the error of a missing extra."""

from __future__ import annotations

import importlib.util
import sys

import pytest


@pytest.mark.parametrize("name", ["starlette.applications", "uvicorn", "sse_starlette", "jinja2"])
def test_a_missing_package_is_reported_with_the_extra(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    spec = importlib.util.find_spec("asyncflow.web")
    assert spec is not None
    assert spec.loader is not None

    with pytest.raises(ImportError, match=r"pip install 'asyncflow-tiers\[web\]'"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


@pytest.fixture(autouse=True)
def nothing_leaks() -> None:
    """Override the fixture that needs an event loop."""
