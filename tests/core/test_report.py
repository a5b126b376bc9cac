"""A report is plain data that outlives its run, whatever the outputs and errors in it are."""

from __future__ import annotations

import dataclasses
import datetime
import gc
import json
import math
import pickle
import traceback
import tracemalloc
from collections.abc import Callable
from decimal import Decimal
from pathlib import PurePath
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncflow import (
    Attempt,
    RestoredError,
    RestoredOutput,
    RunReport,
    StepResult,
    StepStatus,
    StepTimeoutError,
)
from asyncflow._report import describe

SUCCESS, FAILED = StepStatus.SUCCESS, StepStatus.FAILED
SKIPPED, CANCELLED = StepStatus.SKIPPED, StepStatus.CANCELLED


class Refusing(Exception):
    """What hostile objects raise."""


class Hostile:
    """An output that bears nothing at all."""

    def refuse(self, *_: object) -> Any:
        raise Refusing

    __repr__ = __str__ = __bool__ = __eq__ = __hash__ = __len__ = __iter__ = refuse
    __format__ = __lt__ = __reduce__ = __reduce_ex__ = refuse


class HostileError(Exception):
    """An error that bears nothing but being raised."""

    def refuse(self, *_: object) -> Any:
        raise Refusing

    __repr__ = __str__ = __bool__ = __eq__ = __hash__ = refuse
    __reduce__ = __reduce_ex__ = refuse


class TwoArgumentsError(Exception):
    """Cannot be unpickled: pickle calls it with the one argument that its base was given."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code}: {text}")


@dataclasses.dataclass(frozen=True)
class FrozenError(Exception):
    code: int


def report_of(*results: StepResult, total_duration_ms: float = 14.0) -> RunReport:
    return RunReport("r1", results, total_duration_ms=total_duration_ms, wall_time=1_000.5)


def succeeded(name: str, output: Any = None, **fields: Any) -> StepResult:
    fields = {"attempts": 1, "duration_ms": 3.0, "started_ms": 0.0, **fields}
    return StepResult(name, SUCCESS, output=output, **fields)


def failed(name: str, error: BaseException, **fields: Any) -> StepResult:
    fields = {"attempts": 1, "duration_ms": 3.0, "started_ms": 0.0, **fields}
    return StepResult(name, FAILED, error=error, **fields)


def skipped(name: str, reason: str = "it depends on step 'a', which failed") -> StepResult:
    return StepResult(name, SKIPPED, reason=reason, recorded=())


def cancelled(name: str, error: BaseException | None = None) -> StepResult:
    return StepResult(name, CANCELLED, 1, 2.0, None, error, "step 'a' failed", 0.0)


def raised(error: BaseException) -> BaseException:
    """The error with a traceback."""
    try:
        raise error
    except BaseException as caught:
        return caught


class TestText:
    def test_a_passed_run_has_a_line_a_step(self) -> None:
        report = report_of(
            succeeded("extract", duration_ms=3.2),
            succeeded("transform", duration_ms=0.6, attempts=2, recorded=()),
            succeeded("load", duration_ms=9.0),
            total_duration_ms=13.6,
        )

        assert str(report) == (
            "Pipeline PASSED\n"
            "[SUCCESS] extract (1 attempt(s), 3ms)\n"
            "[SUCCESS] transform (2 attempt(s), 1ms)\n"
            "[SUCCESS] load (1 attempt(s), 9ms)\n"
            "Total: 14ms"
        )

    def test_a_step_that_did_not_succeed_tells_why(self) -> None:
        report = report_of(
            failed("a", ValueError("no such table"), attempts=3, recorded=()),
            cancelled("b"),
            cancelled("c", OSError("while closing")),
            skipped("d"),
            failed("e", StepTimeoutError("e", 1, 50)),
        )

        assert str(report) == (
            "Pipeline FAILED\n"
            "[FAILED ] a (3 attempt(s), 3ms): ValueError: no such table\n"
            "[CANCELLED] b (1 attempt(s), 2ms): step 'a' failed\n"
            "[CANCELLED] c (1 attempt(s), 2ms): step 'a' failed: OSError: while closing\n"
            "[SKIPPED] d (0 attempt(s), 0ms): it depends on step 'a', which failed\n"
            "[FAILED ] e (1 attempt(s), 3ms): StepTimeoutError: attempt 1 of step 'e' "
            "exceeded 50 ms\n"
            "Total: 14ms"
        )

    def test_an_empty_run_has_passed(self) -> None:
        assert str(report_of(total_duration_ms=0.0)) == "Pipeline PASSED\nTotal: 0ms"

    @pytest.mark.parametrize(
        ("error", "text"),
        [
            (ValueError("boom"), "ValueError: boom"),
            (ValueError("first\nsecond"), "ValueError: first"),
            (ValueError("\n  first  \r\nsecond"), "ValueError: first  "),
            (ValueError("first\rsecond\u2028third"), "ValueError: first"),
            (ValueError(), "ValueError"),
            (ValueError(" \n "), "ValueError"),
            (KeyError("key"), "KeyError: 'key'"),
            (HostileError(), "HostileError: <HostileError, whose str raised Refusing>"),
            (
                ExceptionGroup("two", [OSError(), OSError()]),
                "ExceptionGroup: two (2 sub-exceptions)",
            ),
            (RestoredError("app.errors.DiskFull", "no\nspace"), "DiskFull: no"),
            (RestoredError("DiskFull", ""), "DiskFull"),
        ],
    )
    def test_an_error_is_told_in_one_line(self, error: Exception, text: str) -> None:
        assert describe(error) == text
        assert str(report_of(failed("a", error))).splitlines()[1:-1] == [
            f"[FAILED ] a (1 attempt(s), 3ms): {text}"
        ]

    def test_its_repr_is_short(self) -> None:
        assert repr(report_of(succeeded("a"))) == "<RunReport r1 PASSED: 1 step(s)>"
        assert repr(report_of(skipped("a"))) == "<RunReport r1 FAILED: 1 step(s)>"

    def test_a_status_reads_as_its_name(self) -> None:
        assert [str(status) for status in StepStatus] == [
            "PENDING",
            "RUNNING",
            "SUCCESS",
            "FAILED",
            "SKIPPED",
            "CANCELLED",
        ]


class TestMapping:
    def test_results_are_found_by_name_in_the_order_in_which_they_came(self) -> None:
        results = [succeeded("b"), succeeded("a")]
        report = report_of(*results)

        assert report.results == results
        assert list(report) == ["b", "a"]
        assert list(report.values()) == results
        assert dict(report.items()) == {"b": results[0], "a": results[1]}
        assert len(report) == 2
        assert report["a"] is results[1]
        assert report.get("c") is None

    def test_the_list_of_results_is_the_callers_own(self) -> None:
        report = report_of(succeeded("a"))

        report.results.clear()

        assert len(report.results) == 1

    def test_a_name_is_in_it_or_not(self) -> None:
        report = report_of(succeeded("a"))

        assert "a" in report
        assert "b" not in report
        assert 1 not in report

    def test_an_unknown_name_gets_a_guess(self) -> None:
        report = report_of(succeeded("extract"))

        with pytest.raises(KeyError) as refused:
            report["extrakt"]
        assert refused.value.args == ("no step is named 'extrakt' (did you mean 'extract'?)",)
        with pytest.raises(KeyError) as refused:
            report["zzz"]
        assert refused.value.args == ("no step is named 'zzz'",)
        with pytest.raises(KeyError) as refused:
            report[1]  # type: ignore[index]
        assert refused.value.args == ("no step is named 1",)
        assert refused.value.__suppress_context__

    def test_results_are_found_by_status(self) -> None:
        results = [
            succeeded("a"),
            failed("b", ValueError()),
            skipped("c"),
            cancelled("d"),
            succeeded("e"),
        ]
        report = report_of(*results)

        assert report.succeeded == [results[0], results[4]]
        assert report.failed == [results[1]]
        assert report.skipped == [results[2]]
        assert report.cancelled == [results[3]]

    def test_the_summary_counts_them(self) -> None:
        report = report_of(
            *(succeeded(f"a{number}") for number in range(4)),
            *(failed(f"b{number}", ValueError()) for number in range(3)),
            *(skipped(f"c{number}") for number in range(2)),
            cancelled("d"),
        )

        assert report.summary() == {
            "total_steps": 10,
            "succeeded": 4,
            "failed": 3,
            "skipped": 2,
            "cancelled": 1,
            "total_duration_ms": 14.0,
        }

    @pytest.mark.parametrize(
        ("results", "passed"),
        [
            ([], True),
            ([succeeded("a")], True),
            ([succeeded("a"), failed("b", ValueError())], False),
            ([succeeded("a"), skipped("b")], False),
            ([succeeded("a"), cancelled("b")], False),
        ],
    )
    def test_it_passed_if_every_step_succeeded(
        self, results: list[StepResult], passed: bool
    ) -> None:
        assert report_of(*results).all_passed is passed

    def test_it_is_equal_to_itself_only(self) -> None:
        report, twin = report_of(succeeded("a")), report_of(succeeded("a"))

        assert report == report
        assert report != twin
        assert len({report, twin, report}) == 2
        assert hash(report) != hash(twin)

    def test_it_takes_no_other_attributes(self) -> None:
        with pytest.raises(AttributeError):
            report_of().anything = 1  # type: ignore[attr-defined]


class TestHistory:
    def test_one_attempt_is_made_up_from_the_result(self) -> None:
        error = ValueError()

        assert succeeded("a").history == (Attempt(1, 0.0, 3.0, None),)
        assert failed("a", error).history == (Attempt(1, 0.0, 3.0, error),)

    def test_several_are_kept(self) -> None:
        attempts = (Attempt(1, 0.0, 1.0, ValueError()), Attempt(2, 2.0, 1.0, None))

        assert succeeded("a", attempts=2, recorded=attempts).history is attempts

    def test_a_step_that_never_started_has_none(self) -> None:
        assert skipped("a").history == ()


def note(step: str, attempt: int = 1) -> str:
    return f"in step {step!r}, attempt {attempt}, of run r1"


class TestRaising:
    def test_nothing_is_raised_if_nothing_failed(self) -> None:
        report_of().raise_for_failures()
        report_of(succeeded("a"), skipped("b"), cancelled("c", OSError())).raise_for_failures()

    def test_the_error_of_the_only_failed_step_is_raised_as_itself(self) -> None:
        error = ValueError("boom")
        report = report_of(failed("a", error, attempts=3, recorded=()), skipped("b"))

        with pytest.raises(ValueError, match="boom") as caught:
            report.raise_for_failures()

        assert caught.value is error
        assert error.__notes__ == [note("a", 3)]
        assert error.__cause__ is error.__context__ is None

    def test_the_errors_of_several_failed_steps_are_raised_together(self) -> None:
        errors = [ValueError("one"), OSError("two")]
        report = report_of(failed("a", errors[0]), succeeded("b"), failed("c", errors[1]))

        with pytest.raises(ExceptionGroup) as caught:
            report.raise_for_failures()

        assert caught.value.message == "2 steps of run r1 failed"
        assert caught.value.exceptions == tuple(errors)
        assert [error.__notes__ for error in errors] == [[note("a")], [note("c")]]

    def test_the_note_is_made_once(self) -> None:
        error = ValueError("boom")
        error.add_note("my own")
        report = report_of(failed("a", error))

        for _ in range(2):
            with pytest.raises(ValueError, match="boom"):
                report.raise_for_failures()

        assert error.__notes__ == ["my own", note("a")]

    def test_an_error_that_two_steps_share_names_both(self) -> None:
        error = ValueError("boom")

        with pytest.raises(ExceptionGroup) as caught:
            report_of(failed("a", error), failed("b", error)).raise_for_failures()

        assert caught.value.exceptions == (error, error)
        assert error.__notes__ == [note("a"), note("b")]

    def test_a_group_that_a_step_raised_is_not_split(self) -> None:
        group = ExceptionGroup("mine", [ValueError()])

        with pytest.raises(ExceptionGroup) as caught:
            report_of(failed("a", group)).raise_for_failures()

        assert caught.value is group

    def test_an_error_that_bears_no_note_is_raised_without(self) -> None:
        error = FrozenError(7)

        with pytest.raises(FrozenError) as caught:
            report_of(failed("a", error)).raise_for_failures()

        assert caught.value is error
        assert not hasattr(error, "__notes__")

    def test_a_hostile_error_is_raised_as_itself(self) -> None:
        error = HostileError()

        try:
            report_of(failed("a", error)).raise_for_failures()
        except HostileError as caught:
            assert caught is error  # noqa: PT017
        else:
            pytest.fail("nothing was raised")

    def test_a_report_that_has_raised_is_freed_without_a_collector(self) -> None:
        class Canary:
            alive = 0

            def __init__(self) -> None:
                Canary.alive += 1

            def __del__(self) -> None:
                Canary.alive -= 1

        gc.collect()
        gc.disable()
        try:
            report = report_of(succeeded("a", Canary()), failed("b", ValueError()))
            try:
                report.raise_for_failures()
            except ValueError:
                pass
            else:
                pytest.fail("nothing was raised")
            del report
            assert Canary.alive == 0
        finally:
            gc.enable()


class TestHostility:
    def test_outputs_and_errors_that_bear_nothing_do_not_break_a_report(self) -> None:
        output, error = Hostile(), raised(HostileError())
        report = report_of(succeeded("a", output), failed("b", error), cancelled("c", error))

        text, document = str(report), json.loads(report.to_json())

        assert "[SUCCESS] a" in text
        assert "[FAILED ] b" in text
        assert not report.all_passed
        assert repr(report) == "<RunReport r1 FAILED: 3 step(s)>"
        assert report.summary()["total_steps"] == 3
        assert report["a"].output is output
        assert report["b"].error is error
        assert [result.step_name for result in report.failed] == ["b"]
        assert report == report
        first, second, _ = document["results"]
        assert first["output_repr"] == "<Hostile, whose repr raised Refusing>"
        assert second["error"]["message"] == "<HostileError, whose str raised Refusing>"
        assert second["error"]["type"] == f"{__name__}.HostileError"

    def test_hostile_outputs_inside_of_others_are_not_touched(self) -> None:
        report = report_of(succeeded("a", [1, Hostile()]), succeeded("b", {"x": Hostile()}))

        outputs = [result.output for result in RunReport.from_json(report.to_json()).results]

        assert outputs == [
            RestoredOutput("<list, whose repr raised Refusing>"),
            RestoredOutput("<dict, whose repr raised Refusing>"),
        ]

    def test_an_error_whose_traceback_cannot_be_printed_goes_without(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(error: BaseException) -> list[str]:
            raise Refusing

        monkeypatch.setattr("traceback.format_exception", refuse)

        report = RunReport.from_json(report_of(failed("a", ValueError("boom"))).to_json())

        assert report["a"].error.args == ("builtins.ValueError", "boom", "")  # type: ignore[union-attr]

    def test_a_repr_that_interrupts_is_not_swallowed(self) -> None:
        class Interrupting:
            def __repr__(self) -> str:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            report_of(succeeded("a", Interrupting())).to_json()


plain_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    # "\ud800\udc00" would come back as the one character that the two stand for.
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


def through_json(output: Any) -> Any:
    return RunReport.from_json(report_of(succeeded("a", output)).to_json())["a"].output


def same(one: Any, other: Any) -> bool:
    """Equal, and of equal types all the way down: 1 is not True and not 1.0."""
    return bool(one == other) and repr(one) == repr(other)


class TestJson:
    @given(plain_values)
    def test_plain_values_come_back_equal(self, output: Any) -> None:
        assert same(through_json(output), output)

    @pytest.mark.parametrize("output", [2**1999, -(2**1999), 1e308, -0.0, "\ud800", "\0", {}, []])
    def test_plain_values_at_the_edge_come_back_equal(self, output: Any) -> None:
        assert same(through_json(output), output)

    @pytest.mark.parametrize(
        "output",
        [
            (1, 2),
            {1, 2},
            frozenset(),
            b"bytes",
            datetime.date(2024, 1, 2),
            Decimal("1.10"),
            PurePath("a/b"),
            1j,
            math.nan,
            math.inf,
            -math.inf,
            {1: "int key"},
            {None: 1},
            {"a": (1,)},
            [{"a": [math.nan]}],
            [1, [2, {3}]],
            SUCCESS,
            print,
        ],
    )
    def test_what_json_would_change_comes_back_as_its_repr(self, output: Any) -> None:
        assert through_json(output) == RestoredOutput(repr(output))

    def test_subclasses_of_plain_types_come_back_as_their_repr(self) -> None:
        class Text(str):
            pass

        class Number(int):
            pass

        class Row(dict[str, int]):
            pass

        class Rows(list[int]):
            pass

        for output in (Text("a"), Number(1), Row(a=1), Rows([1]), {Text("a"): 1}):
            assert through_json(output) == RestoredOutput(repr(output))

    @pytest.mark.parametrize("sign", [1, -1])
    def test_a_number_of_more_than_2000_bits_comes_back_as_its_repr(self, sign: int) -> None:
        assert through_json(sign * 2**2000) == RestoredOutput(repr(sign * 2**2000))

    @pytest.mark.parametrize("sign", [1, -1])
    def test_a_number_that_python_does_not_write_comes_back_as_a_word(self, sign: int) -> None:
        assert through_json(sign * 10**100_000) == RestoredOutput(
            "<int, whose repr raised ValueError>"
        )

    @pytest.mark.parametrize("levels", [100, 101, 5_000, 200_000])
    @pytest.mark.parametrize("wrap", [lambda inner: [inner], lambda inner: {"a": inner}])
    def test_a_deep_output_does_not_break_it(self, wrap: Callable[[Any], Any], levels: int) -> None:
        output = wrap(1)
        for _ in range(levels - 1):
            output = wrap(output)

        back = through_json(output)

        if levels <= 100:
            assert back == output
        else:
            assert isinstance(back, RestoredOutput)

    def test_an_output_that_holds_itself_does_not_break_it(self) -> None:
        rows: list[Any] = [1]
        rows += [rows, rows]
        columns: dict[str, Any] = {}
        columns["x"] = columns["y"] = columns

        assert through_json(rows) == RestoredOutput("[1, [...], [...]]")
        assert through_json(columns) == RestoredOutput("{'x': {...}, 'y': {...}}")

    def test_a_report_comes_back_with_all_its_figures(self) -> None:
        attempts = (Attempt(1, 0.5, 1.25, ValueError("one")), Attempt(2, 3.0, 0.25, None))
        report = report_of(
            succeeded("a", {"rows": [1, 2]}, attempts=2, recorded=attempts),
            skipped("b"),
            cancelled("c"),
            succeeded("d"),
        )

        back = RunReport.from_json(report.to_json())

        assert (back.run_id, back.wall_time, back.total_duration_ms) == ("r1", 1_000.5, 14.0)
        assert list(back) == list(report)
        for name in ("b", "c", "d"):
            assert dataclasses.replace(back[name], recorded=None) == dataclasses.replace(
                report[name], recorded=None
            )
            assert back[name].history == report[name].history
        assert back["a"].output == {"rows": [1, 2]}
        assert back["a"].attempts == 2
        one, two = back["a"].history
        assert (one.number, one.started_ms, one.duration_ms) == (1, 0.5, 1.25)
        assert isinstance(one.error, RestoredError)
        assert two == attempts[1]

    def test_an_error_comes_back_as_its_type_message_and_traceback(self) -> None:
        original = raised(StepTimeoutError("a", 1, 50))
        report = report_of(failed("a", original))

        error = RunReport.from_json(report.to_json())["a"].error

        assert isinstance(error, RestoredError)
        assert error.type_name == "asyncflow.StepTimeoutError"
        assert error.message == "attempt 1 of step 'a' exceeded 50 ms"
        assert error.traceback == "".join(traceback.format_exception(original))

    def test_a_report_that_came_back_is_written_and_told_the_same_again(self) -> None:
        report = report_of(
            succeeded("a", [1, "two"]),
            failed("b", raised(ValueError("boom\nsecond line"))),
            failed("c", ZeroDivisionError()),
            skipped("d"),
        )

        back = RunReport.from_json(report.to_json())

        assert back.to_json() == report.to_json()
        assert str(back) == str(report)
        with pytest.raises(ExceptionGroup):
            back.raise_for_failures()

    def test_it_is_ascii_in_one_line_or_indented(self) -> None:
        report = report_of(succeeded("größe", "äöü"))

        assert report.to_json().isascii()
        assert "\n" not in report.to_json()
        assert '\n  "run_id": "r1"' in report.to_json(indent=2)
        assert json.loads(report.to_json(indent=2)) == json.loads(report.to_json())
        assert RunReport.from_json(report.to_json().encode())["größe"].output == "äöü"

    def test_what_is_no_report_is_refused(self) -> None:
        with pytest.raises(ValueError, match="Expecting value"):
            RunReport.from_json("no json")
        with pytest.raises(KeyError):
            RunReport.from_json("{}")


def through_pickle(report: RunReport, protocol: int = pickle.DEFAULT_PROTOCOL) -> RunReport:
    back = pickle.loads(pickle.dumps(report, protocol))
    assert isinstance(back, RunReport)
    return back


class TestPickle:
    @pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
    def test_a_report_comes_back_equal(self, protocol: int) -> None:
        attempts = (Attempt(1, 0.5, 1.25, None), Attempt(2, 3.0, 0.25, None))
        report = report_of(
            succeeded("a", {(1, 2): {3}}, attempts=2, recorded=attempts), skipped("b")
        )

        back = through_pickle(report, protocol)

        assert back.results == report.results
        assert (back.run_id, back.wall_time, back.total_duration_ms) == ("r1", 1_000.5, 14.0)
        assert back.succeeded == report.succeeded

    def test_an_error_comes_back_as_itself_with_its_notes(self) -> None:
        error = raised(StepTimeoutError("a", 1, 50))
        error.add_note("my own")

        back = through_pickle(report_of(failed("a", error)))["a"].error

        assert isinstance(back, StepTimeoutError)
        assert (back.step_name, back.__notes__) == ("a", ["my own"])
        assert back.__traceback__ is None

    def test_an_error_that_does_not_survive_pickling_has_a_stand_in(self) -> None:
        class LocalError(Exception):
            pass

        holding = ValueError(lambda: None)
        for error, message in (
            (TwoArgumentsError(7, "seven"), "7: seven"),
            (LocalError("local"), "local"),
            (holding, str(holding)),
        ):
            report = report_of(
                failed("a", raised(error), attempts=2, recorded=(Attempt(1, 0.0, 1.0, error),))
            )

            back = through_pickle(report)["a"]

            for kept in (back.error, back.history[0].error):
                assert isinstance(kept, RestoredError)
                assert kept.type_name.endswith(type(error).__qualname__)
                assert kept.message == message
                assert "in raised" in kept.traceback

    def test_even_a_hostile_error_has_a_stand_in(self) -> None:
        back = through_pickle(report_of(failed("a", raised(HostileError()))))["a"].error

        assert isinstance(back, RestoredError)
        assert back.message == "<HostileError, whose str raised Refusing>"

    def test_a_stand_in_stays_what_it_is(self) -> None:
        error = RestoredError("app.DiskFull", "no space", "Traceback …")
        report = report_of(failed("a", error))

        for back in (through_pickle(report), RunReport.from_json(report.to_json())):
            assert back["a"].error.args == error.args  # type: ignore[union-attr]

    def test_pickling_leaves_the_report_as_it_is(self) -> None:
        error = TwoArgumentsError(7, "seven")
        report = report_of(failed("a", error))

        pickle.dumps(report)

        assert report["a"].error is error


def test_a_kept_result_takes_400_bytes_at_most() -> None:
    count = 10_000
    names = [f"s{number}" for number in range(count)]  # the steps have them anyway

    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        report = RunReport(
            "r1",
            (
                StepResult(name, SUCCESS, 1, float(number), None, None, None, number + 0.5)
                for number, name in enumerate(names)
            ),
            total_duration_ms=1.0,
            wall_time=1.0,
        )
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()

    assert len(report) == count
    assert taken / count <= 400


# Of the mutants that mutmut makes of `_report`, three survive, which let `to_json` write NaN: there
# is none to write, because `_is_plain_json` leaves it to its `repr`. One never ends.
