"""Every text and every page shows failures in the same order."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import pytest
from results import cancelled, failed, mapped, report_of, skipped, succeeded

from asyncflow import Attempt, RunReport, RunStatus, StepResult, StepStatus
from asyncflow._cli.output import format_tracebacks
from asyncflow._core.analysis.failures import (
    error_counts,
    failures,
    final_errors,
    first_failure,
    item_errors,
    own_error,
    why_failed,
)
from asyncflow._core.errors import RestoredError
from asyncflow._core.history.results import to_restored_error
from asyncflow._core.tracebacks import raised_at
from asyncflow._views.run_view import RunView
from asyncflow.events import (
    AttemptStarted,
    RunFinished,
    RunResumed,
    RunStarted,
    StepFailed,
)


def test_what_failed_first_comes_first_and_what_was_cancelled_with_an_error_last() -> None:
    late, early = failed("late", OSError("b"), started_ms=5.0), failed("early", OSError("a"))
    stopped, plain = cancelled("stopped", ValueError("no clean-up")), cancelled("plain")
    fell_back = succeeded("fell back", error=ValueError("no rows"))
    steps = [plain, stopped, late, skipped("lost"), fell_back, early]

    assert failures(steps) == [early, late, stopped]
    assert first_failure(steps) is early
    assert first_failure([stopped, fell_back]) is None


def test_a_mapped_step_failed_when_its_last_item_ended() -> None:
    items = [failed("map[0]", OSError(), started_ms=1.0, duration_ms=9.0)]
    whole = replace(mapped("map", *items), status=items[0].status, error=OSError())

    assert failures([whole, failed("y", OSError(), started_ms=2.0)])[0].step_name == "y"


def test_texts_and_pages_of_a_resumed_run_agree_on_the_first_failure() -> None:
    needs: dict[str, tuple[str, ...]] = {"twice": (), "once": ()}
    view = RunView(
        [
            RunStarted("r", 0.0, needs),
            AttemptStarted("twice", 1, 0.0),
            RunResumed("r", 1000.0, 9.0, needs, {}, unfinished={"twice": "it was cut"}),
            AttemptStarted("once", 1, 1000.0),
            StepFailed("once", 1, 1500.0, OSError("once")),
            AttemptStarted("twice", 2, 1600.0),
            StepFailed("twice", 2, 1700.0, OSError("twice")),
            RunFinished(1700.0, RunStatus.FAILED),
        ]
    )
    results = [step.to_result(view.at_ms) for step in view.steps.values()]
    report = RunReport("r", results, total_duration_ms=1700.0, wall_time=0.0)

    assert [step.name for step in view.failures] == ["once", "twice"]
    assert [result.step_name for result in failures(results)] == ["once", "twice"]
    assert re.findall("Step (.*) failed", format_tracebacks(report)) == ["once", "twice"]
    assert re.findall("Traceback of <code>(.*)</code>", report.to_markdown()) == ["once", "twice"]
    assert report_of(*results).compare(report).to_json().count('"first_failure": "once"') == 2


# Errors of items.


def refuse(number: int) -> None:
    raise ValueError(f"{number} is odd")


def errors_of(*calls: Callable[[], object]) -> list[BaseException]:
    found = list[BaseException]()
    for call in calls:
        try:
            call()
        except Exception as error:
            found.append(error)
    return found


def with_errors(*errors: BaseException, error: BaseException | None = None) -> StepResult:
    items = [failed(f"x[{at}]", each, item=at) for at, each in enumerate(errors)]
    whole = mapped("x", *items, succeeded(f"x[{len(items)}]", item=len(items)))
    return whole if error is None else replace(whole, status=StepStatus.FAILED, error=error)


@pytest.mark.parametrize("convert", [lambda error: error, to_restored_error])
def test_errors_of_items_are_alike_if_their_type_is_and_the_line_that_raised_them(
    convert: Callable[[BaseException], BaseException],
) -> None:
    raised = errors_of(
        lambda: refuse(1),
        lambda: refuse(3),
        lambda: int("a"),
        lambda: {}["a"],
        lambda: refuse(5),
    )

    groups = item_errors(with_errors(*map(convert, raised)))

    assert [(group.end, group.label, group.items) for group in groups] == [
        ("failed", "ValueError x 3", (0, 1, 4)),
        ("failed", "ValueError", (2,)),
        ("failed", "KeyError", (3,)),
    ]
    assert groups[0].words == "ValueError x 3: 1 is odd"
    assert error_counts(groups) == "ValueError x 4, KeyError"


def test_the_name_of_an_error_has_no_control_characters() -> None:
    (group,) = item_errors(
        with_errors(RestoredError("app.Bad\x1b[31m", "no"), RestoredError("app.Bad\x1b[31m", "no"))
    )

    assert group.words == "Bad\\x1b[31m x 2: no"


def test_what_failed_for_good_comes_before_what_was_retried() -> None:
    again = Attempt(1, 0.0, 1.0, OSError("busy")), Attempt(2, 2.0, 1.0, None)
    retried = [succeeded(f"x[{at}]", item=at, attempts=2, recorded=again) for at in range(2)]
    fell_back = succeeded("x[2]", error=KeyError("no"), item=2)
    groups = item_errors(mapped("x", *retried, fell_back, failed("x[3]", OSError("gone"), item=3)))

    ends = [(group.end, group.label) for group in groups]
    assert ends == [("failed", "OSError"), ("fell back", "KeyError"), ("retried", "OSError x 2")]
    assert [group.end for group in final_errors(groups)] == ["failed", "fell back"]


@pytest.mark.parametrize("convert", [lambda error: error, to_restored_error])
def test_the_error_of_a_map_is_its_own_only_if_it_says_more_than_its_items_do(
    convert: Callable[[BaseException], BaseException],
) -> None:
    of_items, source = [OSError("a"), OSError("b")], ConnectionError("the source broke")
    only_items = with_errors(*of_items, error=convert(ExceptionGroup("2 of 3 failed", of_items)))
    group = convert(ExceptionGroup("2 of 3 failed", [source, *of_items]))
    with_source = with_errors(*of_items, error=group)

    assert own_error(only_items) is None
    assert own_error(with_source) is (source if isinstance(group, ExceptionGroup) else group)
    assert own_error(failed("y", source)) is source
    assert [each.label for each in why_failed(with_source)[1]] == ["OSError x 2"]


def test_the_line_that_raised_an_error_is_the_same_live_and_restored() -> None:
    caused, bare = errors_of(lambda: blame(ValueError("caused"))), TimeoutError("bare")
    bare.__cause__ = caused[0]
    away = KeyError("away")
    away.add_note('On w1:\nTraceback (most recent call last):\n  File "a.py", line 7, in work\n')
    group = errors_of(lambda: blame(ExceptionGroup("several", [ValueError("one")])))

    found = {str(error): raised_at(error) for error in (*caused, bare, away, *group)}
    again = {
        str(error): raised_at(to_restored_error(error)) for error in (*caused, bare, away, *group)
    }

    assert found == again
    assert found[str(away)] == ("a.py", 7)
    assert found["caused"] is not None
    assert found["caused"][0] == __file__
    assert [found[str(error)] for error in (bare, *group)] == [None, None]


def blame(error: BaseException) -> None:
    try:
        refuse(3)
    except ValueError as cause:
        raise error from cause
