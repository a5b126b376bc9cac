"""What GitHub Actions shows of a run: the summary of a job, and errors at the lines that raised.

``asyncflow run``, ``resume`` and ``rerun`` write both by themselves. In a program of your own::

    from asyncflow.github import write_errors, write_summary

    report = await run_pipeline(steps)
    write_summary(report)
    write_errors(report)

Outside of GitHub Actions, both do nothing. Neither shows inputs or outputs.

The formats, and their limits, are those of
https://docs.github.com/en/actions/reference/workflows-and-actions/workflow-commands.
"""

from __future__ import annotations

import html
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from asyncflow._core.arguments import check_count
from asyncflow._core.error_text import describe_error, error_lines
from asyncflow._core.report import RunReport
from asyncflow._core.results import StepStatus
from asyncflow._core.step_view import StepView
from asyncflow._core.text import duration, escape_controls, plural
from asyncflow._core.tracebacks import format_error, user_frames
from asyncflow._views.preview import shortened
from asyncflow._views.run_end import (
    endured_steps,
    endured_text,
    failed_steps,
    lost_steps,
    verdict,
)
from asyncflow._views.run_view import RunView, view_of
from asyncflow._views.workflow_commands import in_github_actions

__all__ = ["MAX_ERRORS", "MAX_SUMMARY_BYTES", "to_markdown", "write_errors", "write_summary"]

MAX_SUMMARY_BYTES = 1024 * 1024
"""How large the summary of a step of a job may be; GitHub shows nothing of a larger one."""
MAX_ERRORS = 10
"""How many errors GitHub shows for a step of a job."""

_MOST_ROWS, _MOST_TRACEBACKS, _MOST_GROUPS, _SLOWEST = 100, 20, 10, 5
_NAME, _WORDS, _TRACEBACK = 200, 500, 20_000
"""How many characters, at most, a name, an error in a line, and a traceback have."""
_CUT = "\n\nThe rest is left out: a summary may have 1 MiB.\n"


def write_summary(report: RunReport) -> bool:
    """Append a report to the summary of the job, as Markdown.

    It has the verdict, the steps that failed with their tracebacks, which are collapsed, how many
    were skipped and why, and the slowest steps. What does not fit is left out, and the summary says
    so. It appends to the file that the variable ``GITHUB_STEP_SUMMARY`` names.

    Returns:
        Whether there was such a file, with room for it.

    Raises:
        OSError: The file can't be written.
    """
    name = os.environ.get("GITHUB_STEP_SUMMARY")
    if not name:
        return False
    path = Path(name)
    used = path.stat().st_size if path.exists() else 0
    text = to_markdown(report, limit=MAX_SUMMARY_BYTES - used)
    if text:
        with path.open("a", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
            file.write(text)
    return bool(text)


def write_errors(report: RunReport, file: TextIO | None = None) -> int:
    """Write an ``::error`` command for each failed step, at most `MAX_ERRORS`.

    GitHub shows them at the top of the run, and in pull requests at the line of your code that
    raised. It does nothing unless the variable ``GITHUB_ACTIONS`` is ``true``.

    Args:
        report: The report of the run.
        file: Where to write; by default `sys.stderr`, where GitHub reads them too.

    Returns:
        How many commands were written.
    """
    if not in_github_actions():
        return 0
    failed = [step for step in failed_steps(view_of(report)) if step.status is StepStatus.FAILED]
    for step in failed[:MAX_ERRORS]:
        print(_error_command(step), file=sys.stderr if file is None else file, flush=True)
    return len(failed[:MAX_ERRORS])


# Errors.


def _error_command(step: StepView) -> str:
    assert step.error is not None
    properties = {"title": f"Step {shortened(escape_controls(step.name), _NAME)} failed"}
    frames = user_frames(step.error)
    path = _path_in_workspace(frames[-1].path) if frames else None
    if path is not None:
        properties |= {"file": path, "line": str(frames[-1].line)}
    given = ",".join(f"{name}={_escape_property(value)}" for name, value in properties.items())
    message = "\n".join(error_lines(step.error))
    return f"::error {given}::{_escape_data(message)}"


def _path_in_workspace(path: str) -> str | None:
    """Return a path as GitHub knows the file; ``None`` if it is no file of the repository."""
    workspace = Path(os.environ.get("GITHUB_WORKSPACE") or Path.cwd()).resolve()
    file = Path(path).resolve()
    return file.relative_to(workspace).as_posix() if file.is_relative_to(workspace) else None


def _escape_data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _escape_property(text: str) -> str:
    return _escape_data(text).replace(":", "%3A").replace(",", "%2C")


# The summary.


def to_markdown(report: RunReport, *, limit: int = MAX_SUMMARY_BYTES) -> str:
    """Return the report of a run as GitHub's Markdown.

    Args:
        report: The report of the run.
        limit: How many bytes of UTF-8 it may have, at least 0. Tracebacks are left out first.

    Returns:
        The text; an empty one if not even the verdict has room.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: The limit is below 0.
    """
    check_count("limit", limit, 0)
    view = view_of(report)
    name = _code(view.pipeline or view.run_id, _NAME)
    about = f", {_code(view.label, _NAME)}" if view.label else ""
    run = f"Run {_code(view.run_id, _NAME)}{about}"
    head = f"\n### {name} {view.word}\n\n{_text(verdict(view))}. {run}.\n"
    tail = "".join([*_lost(view), *_endured(view), *_slowest(view)])
    room = limit - _size(head) - _size(_CUT)
    if room < 0:
        return ""
    parts, note = [head], ""
    if _size(tail) > room:
        tail, note = "", _CUT
    room -= _size(tail)
    for part in _failures(failed_steps(view)):
        room -= _size(part)
        if room < 0:
            note = _CUT
            break
        parts.append(part)
    return "".join([*parts, note, tail])


def _failures(steps: list[StepView]) -> Iterator[str]:
    if not steps:
        return
    yield "\n| step | status | attempts | took | error |\n| --- | --- | --: | --: | --- |\n"
    for step in steps[:_MOST_ROWS]:
        assert step.error is not None
        yield _row(
            _code(step.name, _NAME),
            step.status,
            f"{step.attempt_count:,}",
            _lasted(step),
            _code(describe_error(step.error), _WORDS),
        )
    if len(steps) > _MOST_ROWS:
        yield f"\n{len(steps) - _MOST_ROWS:,} more steps with errors\n"
    for step in steps[:_MOST_TRACEBACKS]:
        assert step.error is not None
        trace = format_error(step.error)
        if len(trace) > _TRACEBACK:
            left_out = len(trace) - _TRACEBACK
            trace = f"({left_out:,} characters left out)\n{trace[-_TRACEBACK:]}"
        summary = f"Traceback of {_code(step.name, _NAME)}"
        # Between blank lines, only the end of `pre` ends it, and the text can't have that.
        yield (
            f"\n<details><summary>{summary}</summary>\n\n"
            f"<pre>\n{html.escape(trace, quote=False)}\n</pre>\n\n</details>\n"
        )
    if len(steps) > _MOST_TRACEBACKS:
        yield f"\n{len(steps) - _MOST_TRACEBACKS:,} more tracebacks left out\n"


def _lost(view: RunView) -> Iterator[str]:
    groups = lost_steps(view)
    yield "\n" if groups else ""
    for group in groups[:_MOST_GROUPS]:
        steps = plural(len(group.names), "step")
        reason = _text(shortened(escape_controls(group.reason), _WORDS))
        yield f"- {steps} {group.status.lower()}: {reason}\n"
    if len(groups) > _MOST_GROUPS:
        yield f"- {len(groups) - _MOST_GROUPS:,} more reasons\n"


def _endured(view: RunView) -> Iterator[str]:
    steps = [*endured_steps(view)]
    yield "\n" if steps else ""
    for step in steps[:_MOST_GROUPS]:
        text = shortened(escape_controls(endured_text(step)), _WORDS)
        yield f"- {_code(step.name, _NAME)}: {_text(text)}\n"
    if len(steps) > _MOST_GROUPS:
        yield f"- {len(steps) - _MOST_GROUPS:,} more steps in which something failed\n"


def _slowest(view: RunView) -> Iterator[str]:
    timed = [(step.duration_ms(view.at_ms) or 0.0, step) for step in view.steps.values()]
    slowest = sorted(timed, key=lambda each: -each[0])[:_SLOWEST]
    if len(timed) < 2:
        return
    yield "\n<details><summary>Slowest steps</summary>\n\n"
    yield "| step | status | took |\n| --- | --- | --: |\n"
    for lasted_ms, step in slowest:
        if lasted_ms:
            yield _row(_code(step.name, _NAME), step.status, duration(lasted_ms))
    yield "\n</details>\n"


def _lasted(step: StepView) -> str:
    lasted_ms = step.duration_ms(step.ended_ms or 0.0)
    return "" if lasted_ms is None else duration(lasted_ms)


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |\n"


def _code(text: str, limit: int) -> str:
    return f"<code>{_text(shortened(escape_controls(text), limit))}</code>"


_ACTIVE = re.compile(r"[!#$%&*+:-@\[-`{-~]|(?<=\w)[./](?=\w)")
"""What may be a part of Markdown, HTML, a link or a mention."""


def _text(text: str) -> str:
    """Return a text in which nothing is Markdown, HTML, a link or a mention.

    A character reference never is a part of the structure of Markdown:
    https://spec.commonmark.org/0.31.2/#entity-and-numeric-character-references
    """
    return _ACTIVE.sub(lambda found: f"&#{ord(found[0])};", text)


def _size(text: str) -> int:
    return len(text.encode("utf-8", "backslashreplace"))
