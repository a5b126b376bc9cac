"""What a user may type next about a run, as command lines that can be pasted."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping
from typing import Any

from asyncflow._core.analysis.failures import first_failure
from asyncflow._core.history.report import RunReport
from asyncflow._core.history.results import RunStatus
from asyncflow._views.received import received_text
from asyncflow._views.run_view import RunView
from asyncflow._views.signal_form import example_of, type_of_signal
from asyncflow.events import RunResumed, RunStarted

PLACEHOLDER = "MODULE:PIPELINE"
"""Stands for a pipeline in a command, where nothing tells where its code is."""


def command_of(verb: str, *words: str, journal: str = "") -> str:
    """Return a command with its arguments, each quoted for a shell if it needs that.

    ``journal`` is the journal, or a word that stands for it; empty if the command finds it.
    """
    return shlex.join(("asyncflow", verb, *words, *(("--journal", journal) if journal else ())))


def answer_command(run_id: str, name: str, schema: Mapping[str, Any], journal: str) -> str:
    """Return the command that answers a signal, with a value of its type as an example."""
    return command_of("signal", run_id, name, example_of(schema), journal=journal)


def next_commands(
    report: RunReport, resume: str, journal: str, answered: Collection[str] = ()
) -> list[str]:
    """Return what a user may want to do after the end of a run that a journal has, in words.

    Of one that failed, it says first what the step received: the end in the live view can't, since
    that keeps no outputs. ``resume`` is the command that resumes it, and ``journal`` is as in
    `command_of`. ``answered`` are the signals that it waits for and that have come.
    """
    if report.status is RunStatus.PASSED:
        return [f"To show it again: {command_of('show', report.run_id, journal=journal)}"]
    if report.status is not RunStatus.WAITING:
        hints: list[str] = []
        if (failed := first_failure(report.values())) is not None:
            name = failed.step_name
            view = RunView(report.events())
            hints += filter(None, [received_text(view, view.steps[name])])
            show = command_of("show", report.run_id, name, journal=journal)
            hints.append(f"To see what {name} did: {show}")
        return [*hints, f"To resume it: {resume}"]
    answers, signals = [], _signals_of(report)
    for name in report.waiting:
        if name not in answered:
            schema = signals.get(name, {})
            kind = type_of_signal(schema)
            command = answer_command(report.run_id, name, schema, journal)
            answers.append(f"To answer it{kind and f', of type {kind}'}: {command}")
    if answered:
        return [*answers, f"It has an answer for {', '.join(answered)}; to resume it: {resume}"]
    return [*answers, f"Then resume it: {resume}"] if answers else [f"To start it now: {resume}"]


def _signals_of(report: RunReport) -> Mapping[str, Any]:
    """Return the schemas of the signals of a run, as its latest segment has them."""
    starts = [each for each in report.events() if isinstance(each, RunStarted | RunResumed)]
    return starts[-1].signals
