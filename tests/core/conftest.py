"""Hypothesis may take its time: how long an example takes says nothing about the core."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("core", deadline=None)
settings.load_profile("core")
