"""What users import, and what they are told when it is not installed."""

from __future__ import annotations

import importlib.util
import sys

import pytest

from asyncflow import web


@pytest.mark.parametrize("name", ["starlette.applications", "uvicorn", "sse_starlette", "jinja2"])
def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    spec = importlib.util.find_spec("asyncflow.web")
    assert spec is not None
    assert spec.loader is not None

    with pytest.raises(ImportError, match=r"pip install 'asyncflow-tiers\[web\]'"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


def test_there_is_an_app_and_a_server() -> None:
    assert web.__all__ == ["app", "serve"]
    assert all(getattr(web, name).__module__ == "asyncflow.web" for name in web.__all__)


@pytest.fixture(autouse=True)
def nothing_leaks() -> None:
    """There is no loop here."""
