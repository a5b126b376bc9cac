"""A report as Markdown: a table of its steps, and the tracebacks of those with errors.

It is for a comment, a chat or the summary of a CI job, which have limits: names, errors and
tracebacks are cut, and so are the table and the number of tracebacks. Nothing that a step or an
error says can be Markdown, HTML, a link or a mention.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator

from asyncflow._core.analysis.failures import failures, why_failed
from asyncflow._core.analysis.looks import WORST_FIRST, look_of
from asyncflow._core.analysis.remarks import result_note
from asyncflow._core.history.report import RunReport
from asyncflow._core.history.results import StepResult, StepStatus
from asyncflow._core.text import cut, duration, escape_controls, plural
from asyncflow._core.tracebacks import format_error

# In all, less than the 1 MiB that the summary of a job on GitHub may have.
_MOST_ROWS, _MOST_TRACEBACKS = 100, 10
_MOST_ITEMS = 8
"""How many items of a group of errors are named."""
_NAME, _WORDS, _TRACEBACK = 100, 500, 8_000

_ACTIVE = re.compile(r"[!#$%&*+:-@\[-`{-~]|(?<=\w)[./](?=\w)")
"""What may be a part of Markdown, HTML, a link or a mention."""


def to_markdown(report: RunReport) -> str:
    """Return the report as Markdown that ends with a line break."""
    return "\n".join(_lines(report)) + "\n"


def _lines(report: RunReport) -> Iterator[str]:
    label = f", {_code(report.label)}" if report.label else ""
    yield f"### {_code(report.pipeline or report.run_id)} {report.status}"
    yield f"\nRun {_code(report.run_id)}{label}: {duration(report.total_duration_ms)}"
    if report.stop_reason is not None:
        yield f"\nStopped: {_words(report.stop_reason)}"
    failed = failures(report.values())
    names = {each.step_name for each in failed}
    others = [each for each in report.values() if each.step_name not in names]
    results = [*failed, *sorted(others, key=lambda each: WORST_FIRST.index(look_of(each).word))]
    yield "\n| step | status | attempts | took | |\n| --- | --- | --: | --: | --- |"
    for result in results[:_MOST_ROWS]:
        note = _words(result_note(result, len(report.segments)).removeprefix(": "))
        look = look_of(result)
        facts = f"{look.symbol} {look.word} | {result.attempts:,} | {duration(result.duration_ms)}"
        yield f"| {_code(result.step_name)} | {facts} | {note} |"
    if len(results) > _MOST_ROWS:
        yield f"\nand {plural(len(results) - _MOST_ROWS, 'more step')}"
    endured = [each for each in others if each.items and each.status is StepStatus.SUCCESS]
    traced = [one for result in (*failed, *endured) for one in _errors(result)]
    for of, error in traced[:_MOST_TRACEBACKS]:
        yield from _traceback(of, error)
    if len(traced) > _MOST_TRACEBACKS:
        yield f"\nand {plural(len(traced) - _MOST_TRACEBACKS, 'more traceback')}"


def _errors(result: StepResult) -> Iterator[tuple[str, BaseException]]:
    """Yield the error of a step, and one for each group of those of its items, with whose it is."""
    error, groups = why_failed(result)
    name = _code(result.step_name)
    if error is not None:
        yield name, error
    for group in groups:
        more = len(group.items) - _MOST_ITEMS
        named = ", ".join(f"[{item}]" for item in group.items[:_MOST_ITEMS])
        items = _words(f"{group.label}, {named}{f' and {more:,} more' if more > 0 else ''}")
        yield f"{name}: {items}", group.first


def _traceback(of: str, error: BaseException) -> Iterator[str]:
    text = format_error(error)
    if len(text) > _TRACEBACK:
        text = f"({len(text) - _TRACEBACK:,} characters left out)\n{text[-_TRACEBACK:]}"
    # Between blank lines, only the end of `pre` ends it, and the text can't have that.
    yield f"\n<details><summary>Traceback of {of}</summary>\n"
    yield f"<pre>\n{html.escape(text, quote=False)}\n</pre>\n\n</details>"


def _code(name: str) -> str:
    return f"<code>{_plain(cut(escape_controls(name), _NAME))}</code>"


def _words(text: str) -> str:
    return _plain(cut(escape_controls(text), _WORDS))


def _plain(text: str) -> str:
    """Return a text in which nothing is Markdown, HTML, a link or a mention.

    A character reference never is a part of the structure of Markdown:
    https://spec.commonmark.org/0.31.2/#entity-and-numeric-character-references
    """
    return _ACTIVE.sub(lambda found: f"&#{ord(found[0])};", text)
