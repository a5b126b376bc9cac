"""Hypothesis may take its time: how long an example takes says nothing about the core."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile(
    "core",
    deadline=None,
    # mutmut runs all tests many times in one process, each time with new objects of their classes.
    suppress_health_check=[HealthCheck.differing_executors],
)
settings.load_profile("core")
