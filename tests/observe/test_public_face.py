"""The public names of the observer modules, which only their users import."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest

import asyncflow.logs
import asyncflow.otel
from asyncflow import Observer, ObserverFactory

modules = pytest.mark.parametrize(
    ("module", "names"),
    [
        (asyncflow.logs, ["LoggingObserver", "StepFilter", "add_step", "keep_record"]),
        (asyncflow.otel, ["OpenTelemetryObserver"]),
    ],
)


def test_the_observers_satisfy_the_observer_protocol() -> None:
    factories: list[ObserverFactory] = [
        asyncflow.logs.LoggingObserver(),
        asyncflow.otel.OpenTelemetryObserver(),
    ]
    observers: list[Observer] = [factory.for_run() for factory in factories]
    assert all(map(callable, observers))


@pytest.mark.parametrize(
    ("name", "kind"), [("tracer_provider", "TracerProvider"), ("meter_provider", "MeterProvider")]
)
def test_an_invalid_provider_is_refused_when_the_observer_is_made(name: str, kind: str) -> None:
    with pytest.raises(TypeError, match=f"{name} must be a {kind}, not str"):
        asyncflow.otel.OpenTelemetryObserver(**{name: "x"})  # type: ignore[arg-type]


@pytest.mark.parametrize("missing", ["opentelemetry.metrics", "opentelemetry.trace"])
def test_without_its_package_the_error_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    spec = importlib.util.spec_from_file_location("anew", asyncflow.otel.__file__)
    assert spec is not None
    assert spec.loader is not None

    with pytest.raises(ImportError, match=r"pip install 'asyncflow-tiers\[otel\]'"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


def imports(statement: str, packages: list[str]) -> list[str]:
    """Return which of the packages a statement imports in a new interpreter."""
    script = f"import sys\n{statement}\nprint(*[p for p in {packages} if p in sys.modules])"
    command = [sys.executable, "-c", script]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()


THEIRS = ["opentelemetry", "opentelemetry.sdk", "opentelemetry.semconv", "structlog"]


@pytest.mark.process
def test_logs_import_no_package_and_otel_imports_the_api_only() -> None:
    assert imports("import asyncflow.logs", THEIRS) == []
    assert imports("import asyncflow.otel", THEIRS) == ["opentelemetry"]
