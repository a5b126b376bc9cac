"""The failures of a run: which step is shown first, and which errors of items are alike.

Every text and every page reads them here.

Rules:

1. The step that failed first is the cause that people look for, so it comes first.
2. Steps that were cancelled with an error come after all that failed: they were stopped because of
   one.
3. A step that fell back has succeeded, so it is no failure.
4. Errors of items are alike if they have the same type and were raised at the same line, whatever
   their messages say. One of them stands for all, with its traceback.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, NamedTuple, TypeAlias, TypeVar

from asyncflow._core.errors import RestoredError
from asyncflow._core.history.results import StepResult, StepStatus
from asyncflow._core.history.step_view import StepView
from asyncflow._core.text import describe_error, escape_controls
from asyncflow._core.tracebacks import raised_at

Step = TypeVar("Step", StepView, StepResult)


def failures(steps: Iterable[Step]) -> list[Step]:
    """Return the steps that failed, the first failure first, then cancelled ones with an error."""
    found = [
        step
        for step in steps
        if step.status is StepStatus.FAILED
        or (step.status is StepStatus.CANCELLED and step.error is not None)
    ]
    return sorted(found, key=lambda step: (step.status is StepStatus.CANCELLED, _ended_ms(step)))


def first_failure(steps: Iterable[Step]) -> Step | None:
    """Return the step that failed first, if one has failed."""
    first = next(iter(failures(steps)), None)
    return None if first is None or first.status is not StepStatus.FAILED else first


def _ended_ms(step: StepView | StepResult) -> float:
    """Return when a step ended; 0 for a result of a step that failed before its first attempt."""
    if isinstance(step, StepView):
        return step.ended_ms or 0.0
    ended_ms = (step.started_ms or 0.0) + step.duration_ms
    # The duration of a step that ran in several segments leaves out what lies between.
    ends = (each.started_ms + each.duration_ms for each in step.recorded or ())
    of_items = map(_ended_ms, step.items or ())
    return max(ended_ms, *ends, *of_items) if step.recorded or step.items else ended_ms


ItemErrorEnd: TypeAlias = Literal["failed", "cancelled", "fell back", "retried"]
"""What became of an item that had an error; it was retried if it succeeded later, or may yet."""

_ENDS: dict[StepStatus, ItemErrorEnd] = {
    StepStatus.FAILED: "failed",
    StepStatus.CANCELLED: "cancelled",
    StepStatus.SUCCESS: "fell back",
}
_ORDER: tuple[ItemErrorEnd, ...] = ("failed", "cancelled", "fell back", "retried")

_Alike: TypeAlias = tuple[ItemErrorEnd, str, tuple[str, int] | None]
_SUB_ERRORS = re.compile(r"\((\d+) sub-exceptions?\)\Z")


class ItemErrors(NamedTuple):
    """Errors of items of a mapped step that are alike."""

    end: ItemErrorEnd
    name: str
    """Their type, without its module."""
    first: BaseException
    items: tuple[int, ...]
    """The items that have one, in order."""

    @property
    def label(self) -> str:
        """Their type, and how many items have one: ``OSError x 10``."""
        return _times(self.name, len(self.items))

    @property
    def words(self) -> str:
        """The same with what the first one says: ``OSError x 10: no such file``."""
        return f"{self.label}{describe_error(self.first).removeprefix(self.name)}"


def item_errors(step: StepView | StepResult) -> list[ItemErrors]:
    """Return the errors of the items of a step in groups: final ones first, then frequent ones.

    Of an item that did not succeed, the last error counts, else those of all of its attempts.
    """
    found: dict[_Alike, list[tuple[int, BaseException]]] = {}
    for number, item in _items_of(step):
        for error in _errors_of(item):
            end = "retried" if item.error is None else _ENDS.get(item.status, "retried")
            key = end, _type_of(error), raised_at(error)
            found.setdefault(key, []).append((number, error))
    groups = [
        ItemErrors(end, name, errors[0][1], tuple(dict(errors)))
        for (end, name, _), errors in found.items()
    ]
    return sorted(groups, key=lambda group: (_ORDER.index(group.end), -len(group.items)))


def why_failed(step: StepView | StepResult) -> tuple[BaseException | None, list[ItemErrors]]:
    """Return its `own_error`, and the errors of the items that failed, or fell back, in groups.

    A step that has failed has at least one of them.
    """
    groups = final_errors(item_errors(step))
    return own_error(step) if groups else step.error, groups


def final_errors(groups: Iterable[ItemErrors]) -> list[ItemErrors]:
    """Return the groups of items that failed or fell back: others were retried, or stopped."""
    return [group for group in groups if group.end in ("failed", "fell back")]


def own_error(step: StepView | StepResult) -> BaseException | None:
    """Return the error of a step, unless that only says which of its items have failed."""
    count, error = failed_items(step), step.error
    if not count or error is None:
        return error
    if isinstance(error, BaseExceptionGroup):
        # What ended the iteration over the items comes first: see `common_error`.
        return error.exceptions[0] if len(error.exceptions) > count else None
    found = _SUB_ERRORS.search(error.message) if isinstance(error, RestoredError) else None
    return None if found is not None and int(found[1]) <= count else error


def error_counts(groups: Iterable[ItemErrors]) -> str:
    """Return how many items have which type of error: ``OSError x 10, ValueError x 10``."""
    counts = Counter[str]()
    for group in groups:
        counts[group.name] += len(group.items)
    return ", ".join(_times(name, count) for name, count in counts.most_common())


def failed_items(step: StepView | StepResult) -> int:
    """Return how many items of a step have failed for good, tolerated ones too."""
    if isinstance(step, StepView):
        return step.tally[StepStatus.FAILED]
    return sum([item.status is StepStatus.FAILED for item in step.items or ()])


def _times(name: str, count: int) -> str:
    return name if count == 1 else f"{name} x {count:,}"


def _items_of(step: StepView | StepResult) -> Iterable[tuple[int, StepView | StepResult]]:
    if isinstance(step, StepView):
        return sorted((step.items or {}).items())
    items: Sequence[StepResult] = step.items or ()
    return [(at if each.item is None else each.item, each) for at, each in enumerate(items)]


def _errors_of(item: StepView | StepResult) -> Iterator[BaseException]:
    if item.error is not None:
        yield item.error
    elif isinstance(item, StepResult):
        if item.attempts > 1:
            yield from (each.error for each in item.history if each.error is not None)
    elif not item.is_brief:  # it would need a record of its attempt
        yield from (each.error for each in item.attempts if each.error is not None)


def _type_of(error: BaseException) -> str:
    name = error.type_name if isinstance(error, RestoredError) else type(error).__name__
    return escape_controls(name.rpartition(".")[2])
