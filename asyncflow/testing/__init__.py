"""The testing kit: pipelines in virtual time, which take milliseconds and are deterministic.

A test of a pipeline that backs off for hours::

    from asyncflow.testing import run_in_virtual_time

    report = run_in_virtual_time(run_pipeline(steps))

With pytest, the marker ``virtual_time`` runs an async test so; see docs/guides/testing.md.
"""

from asyncflow._core.errors import HangError
from asyncflow.testing._assertions import assert_order, assert_overlap
from asyncflow.testing._crashes import CrashError, Crashes, crash_everywhere
from asyncflow.testing._fakes import FakeCall, Fakes, FakeStep, fails, fake
from asyncflow.testing._simulation import (
    Exploration,
    ExplorationError,
    Faults,
    SimulatedError,
    explore,
    simulate,
)
from asyncflow.testing._step_context import DirectCall, step_context
from asyncflow.testing._virtual_time import VirtualTimeLoop, run_in_virtual_time

__all__ = [
    "CrashError",
    "Crashes",
    "DirectCall",
    "Exploration",
    "ExplorationError",
    "FakeCall",
    "FakeStep",
    "Fakes",
    "Faults",
    "HangError",
    "SimulatedError",
    "VirtualTimeLoop",
    "assert_order",
    "assert_overlap",
    "crash_everywhere",
    "explore",
    "fails",
    "fake",
    "run_in_virtual_time",
    "simulate",
    "step_context",
]

for _public in [globals()[_name] for _name in __all__]:
    _public.__module__ = __name__  # where users know them from
