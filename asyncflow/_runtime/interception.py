"""Where a test intercepts runs: it can replace the steps of any, and see the report of each.

Both lists are empty outside of tests. A run asks each of them once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from asyncflow._core.report import RunReport
from asyncflow._core.step import WorkflowStep

StepReplacement: TypeAlias = "Callable[[tuple[WorkflowStep, ...]], tuple[WorkflowStep, ...] | None]"
"""Receives the steps of a pipeline that is about to run; returns those that run instead of them,
or ``None`` for the same ones."""

replacements: list[StepReplacement] = []
"""Each receives what the one before it has returned."""

report_watchers: list[Callable[[RunReport], object]] = []
"""Each is called with the report of every run that has ended by itself."""
