"""A report is plain data that outlives its run, whatever the outputs and errors in it are."""

from __future__ import annotations

import copyreg
import dataclasses
import json
import pickle
import sys
import traceback
import tracemalloc
from types import TracebackType
from typing import Any, ClassVar

import pytest
from freed import Holding, without_collector
from results import (
    Hostile,
    HostileError,
    Refusing,
    cancelled,
    failed,
    mapped,
    raised,
    report_of,
    skipped,
    skipped_by_condition,
    succeeded,
)

from asyncflow import (
    Attempt,
    RestoredError,
    RestoredOutput,
    RunReport,
    RunStatus,
    StepResult,
    StepStatus,
    StepTimeoutError,
)
from asyncflow._core.text import describe_error

SUCCESS, FAILED = StepStatus.SUCCESS, StepStatus.FAILED
SKIPPED, CANCELLED = StepStatus.SKIPPED, StepStatus.CANCELLED


class TwoArgumentsError(Exception):
    """Cannot be unpickled: pickle calls it with the one argument that its base was given."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code}: {text}")


class PickleOnly:
    """Can be pickled, but not unpickled."""

    def __reduce__(self) -> tuple[object, ...]:
        return int, ("no number",)


class TestText:
    def test_a_passed_run_has_one_line_per_step(self) -> None:
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

    def test_a_step_that_did_not_succeed_shows_why(self) -> None:
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
            "exceeded its timeout_ms of 50 ms\n"
            "Total: 14ms"
        )

    @pytest.mark.parametrize(
        ("error", "text"),
        [
            (ValueError("boom"), "ValueError: boom"),
            (ValueError("first\nsecond"), "ValueError: first"),
            (ValueError("\n  first  \r\nsecond"), "ValueError: first"),
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
    def test_an_error_is_shown_in_one_line(self, error: Exception, text: str) -> None:
        assert describe_error(error) == text
        assert str(report_of(failed("a", error))).splitlines()[1:-1] == [
            f"[FAILED ] a (1 attempt(s), 3ms): {text}"
        ]

    @pytest.mark.parametrize(
        ("unsafe", "shown"),
        [
            ("\n", r"\n"),
            ("\r", r"\r"),
            ("\t", r"\t"),
            ("\0", r"\x00"),
            ("\x1b[2K", r"\x1b[2K"),
            ("\x7f", r"\x7f"),
            ("\x85", r"\x85"),
            ("\u061c", r"\u061c"),
            ("\u200f", r"\u200f"),
            ("\u2028", r"\u2028"),
            ("\u202e", r"\u202e"),
            ("\u2066", r"\u2066"),
            ("\ud800", r"\ud800"),
            ("größe 日本 👩\u200d💻", "größe 日本 👩\u200d💻"),
        ],
    )
    def test_a_name_or_a_reason_cannot_forge_a_line(self, unsafe: str, shown: str) -> None:
        report = report_of(skipped(f"a{unsafe}b", f"c{unsafe}d"))

        assert str(report).split("\n")[1:-1] == [
            f"[SKIPPED] a{shown}b (0 attempt(s), 0ms): c{shown}d"
        ]

    def test_the_repr_of_a_report_is_short(self) -> None:
        assert repr(report_of(succeeded("a"))) == "<RunReport r1 PASSED: 1 step(s)>"
        assert repr(report_of(skipped("a"))) == "<RunReport r1 FAILED: 1 step(s)>"

    @pytest.mark.parametrize("status", [each for each in RunStatus if each != "ORPHANED"])
    def test_a_report_from_a_journal_may_have_another_status(self, status):
        report = RunReport(
            "r1", [succeeded("a")], total_duration_ms=1.0, wall_time=1.0, status=status
        )

        assert report.status is status
        assert str(report).startswith(f"Pipeline {status}\n")
        assert RunReport.from_json(report.to_json()).status is status

    def test_a_status_reads_as_its_name(self) -> None:
        assert [str(status) for status in RunStatus] == [
            *("RUNNING", "PASSED", "FAILED", "INTERRUPTED", "ORPHANED", "WAITING")
        ]
        assert [str(status) for status in StepStatus] == [
            "PENDING",
            "RUNNING",
            "SUCCESS",
            "FAILED",
            "SKIPPED",
            "CANCELLED",
        ]


class TestMapping:
    def test_it_is_true_if_all_passed_as_a_response_is_if_it_is_ok(self) -> None:
        assert report_of()
        assert report_of(succeeded("a"), skipped_by_condition("b"))
        assert not report_of(succeeded("a"), skipped("b"))
        assert not report_of(succeeded("a"), failed("b", OSError()))

    def test_get_does_not_search_for_a_similar_name(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def compare(*_: object) -> str:
            raise AssertionError("a miss is no mistake")

        report = report_of(succeeded("a"))
        monkeypatch.setattr("asyncflow._core.history.report.did_you_mean", compare)

        assert report.get("a") is report["a"]
        assert report.get("b") is None
        assert report.get("b", 7) == 7
        assert report.get("b", default=7) == 7

    def test_an_unknown_name_gets_a_suggestion(self) -> None:
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

    def test_the_summary_counts_results_by_status(self) -> None:
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
            ([succeeded("a"), skipped_by_condition("b")], True),
            ([skipped_by_condition("a"), skipped("b")], False),
            ([dataclasses.replace(cancelled("a"), by_condition=True)], False),
            ([succeeded("a"), cancelled("b")], False),
        ],
    )
    def test_a_run_passed_if_every_step_succeeded_or_was_skipped_by_condition(
        self, results: list[StepResult], passed: bool
    ) -> None:
        assert report_of(*results).all_passed is passed

    def test_a_report_is_equal_to_itself_only(self) -> None:
        report, twin = report_of(succeeded("a")), report_of(succeeded("a"))

        assert report == report
        assert report != twin
        assert len({report, twin, report}) == 2
        assert hash(report) != hash(twin)


class TestHistory:
    def test_a_mapped_step_has_no_history_but_its_items_have(self) -> None:
        step = mapped("a", succeeded("a[0]"))

        assert step.history == ()
        assert step.items is not None
        assert step.items[0].history == (Attempt(1, 0.0, 3.0, None),)


class TestResults:
    @pytest.mark.parametrize("field", [each.name for each in dataclasses.fields(StepResult)])
    def test_results_that_differ_in_a_field_are_not_equal(self, field: str) -> None:
        result = StepResult("a", SUCCESS)

        assert result == StepResult("a", SUCCESS)
        assert result != dataclasses.replace(result, **{field: "other"})

    def test_the_repr_shows_the_fields(self) -> None:
        assert repr(StepResult("a", SUCCESS, 1, output=[2], recorded=())) == (
            "StepResult(step_name='a', status=<StepStatus.SUCCESS: 'SUCCESS'>, attempts=1, "
            "duration_ms=0.0, output=[2], error=None, reason=None, started_ms=None, "
            "depends_on=(), queued_ms=0.0, loop_blocked_ms=0.0, abandoned=False, "
            "by_condition=False, items=None, reused=False, rerun_reason=None, secret=False, "
            "origin='', engine='', worker='', item=None, left_out=0, waiting_since=None, "
            "waiting_until=None, max_retries=None, wait=None, item_value=None)"
        )
        assert repr(Attempt(1, 0.0, 1.0, ValueError("boom"))) == (
            "Attempt(number=1, started_ms=0.0, duration_ms=1.0, error=ValueError('boom'), "
            "queued_ms=0.0, segment=1, cancelled=False, item=None, engine='', worker='', "
            "retry_in_ms=None)"
        )

    def test_the_repr_shows_a_placeholder_for_a_value_whose_repr_raises(self) -> None:
        result = failed("a", HostileError(), output=Hostile())

        assert "output=<Hostile, whose repr raised Refusing>, " in repr(result)
        assert "error=<HostileError, whose repr raised Refusing>, " in repr(result)
        assert "error=<HostileError, whose repr raised Refusing>, " in repr(result.history)
        assert "whose repr raised" in repr(mapped("a", result))


def note(step: str, attempt: int = 1) -> str:
    return f"in step {step!r}, attempt {attempt}, of run r1"


class TracedError(ValueError):
    """Keeps its traceback when it is pickled, as all errors do once Dask's library is imported."""

    kept: ClassVar[list[TracebackType | None]] = []

    def __reduce__(self) -> tuple[Any, ...]:
        self.kept.append(self.__traceback__)
        return TracedError.restored, (len(self.kept) - 1, self.args, self.__dict__)

    @classmethod
    def restored(cls, at: int, args: tuple[Any, ...], values: dict[str, Any]) -> TracedError:
        error = cls(*args).with_traceback(cls.kept[at])
        error.__dict__.update(values)
        return error


def raised_by_a_step(error: ValueError) -> ValueError:
    try:
        raise error
    except ValueError:
        return error


def frames_of_raise(report: RunReport) -> list[str]:
    """Return the names of the functions in the traceback that a report raises."""
    with pytest.raises(ValueError, match="boom") as caught:
        report.raise_for_failures()
    return [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]


class TestRaising:
    def test_a_step_that_the_deadline_cancelled_counts_as_failed(self) -> None:
        late = StepTimeoutError("a", 1, 50, "run")
        report = report_of(cancelled("a", late), skipped("b"))

        with pytest.raises(StepTimeoutError) as raised:
            report.raise_for_failures()

        assert raised.value is late

    def test_a_deadline_that_passed_while_no_step_was_running_is_raised_too(self) -> None:
        report = report_of(succeeded("a"), skipped("b"))
        report.stop_reason = "the run exceeded its deadline of 50 ms"

        with pytest.raises(TimeoutError, match="exceeded its deadline of 50 ms, in run r1"):
            report.raise_for_failures()

    def test_the_error_of_the_only_failed_step_is_raised_as_itself(self) -> None:
        error = ValueError("boom")
        report = report_of(failed("a", error, attempts=3, recorded=()), skipped("b"))

        with pytest.raises(ValueError, match="boom") as caught:
            report.raise_for_failures()

        assert caught.value is error
        assert error.__notes__ == [note("a", 3)]
        assert error.__cause__ is error.__context__ is None

    def test_an_error_that_is_raised_again_has_the_frames_of_one_raise(self) -> None:
        report = report_of(failed("a", raised_by_a_step(ValueError("boom"))))

        traces = [frames_of_raise(report) for _ in range(3)]

        assert traces[0][1:] == ["raise_for_failures", "raised_by_a_step"]
        assert traces[0] == traces[1] == traces[2]

    def test_an_error_of_a_nested_run_keeps_the_frames_of_the_step_around_it(self) -> None:
        def outer_step() -> None:
            report_of(failed("inner", raised_by_a_step(ValueError("boom")))).raise_for_failures()

        with pytest.raises(ValueError, match="boom") as caught:
            outer_step()
        BaseException.with_traceback(caught.value, caught.tb.tb_next)  # as a step's is kept
        outer = report_of(failed("outer", caught.value))

        traces = [frames_of_raise(outer) for _ in range(3)]

        nested = ["outer_step", "raise_for_failures", "raised_by_a_step"]
        assert traces[0][1:] == ["raise_for_failures", *nested]
        assert traces[0] == traces[1] == traces[2]

    def test_a_report_that_is_raised_and_pickled_again_and_again_gains_no_frames(self) -> None:
        report, texts = report_of(failed("a", raised_by_a_step(TracedError("boom")))), []

        for _ in range(3):
            frames_of_raise(report)
            texts.append(report.to_json())
            report = pickle.loads(pickle.dumps(report))

        assert "in frames_of_raise" in texts[0]
        assert texts[0] == texts[1] == texts[2]

    def test_the_errors_of_several_failed_steps_are_raised_together(self) -> None:
        errors = [ValueError("one"), OSError("two")]
        report = report_of(failed("a", errors[0]), succeeded("b"), failed("c", errors[1]))

        with pytest.raises(ExceptionGroup) as caught:
            report.raise_for_failures()

        assert caught.value.message == "2 steps of run r1 failed"
        assert caught.value.exceptions == tuple(errors)
        assert [error.__notes__ for error in errors] == [[note("a")], [note("c")]]

    def test_the_note_is_added_once(self) -> None:
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

    def test_a_report_that_has_raised_is_freed_without_the_garbage_collector(self) -> None:
        hold = Holding()

        with without_collector():
            report = report_of(succeeded("a", hold()), failed("b", ValueError()))
            try:
                report.raise_for_failures()
            except ValueError:
                pass
            else:
                pytest.fail("nothing was raised")
            del report
            assert hold.alive() == []


class TestHostility:
    def test_hostile_outputs_and_errors_do_not_break_a_report(self) -> None:
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
        assert second["error"]["type"] == "results.HostileError"

    def test_an_error_whose_traceback_cannot_be_formatted_has_none(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(error: BaseException) -> object:
            raise Refusing

        monkeypatch.setattr("traceback.TracebackException.from_exception", refuse)

        report = RunReport.from_json(report_of(failed("a", ValueError("boom"))).to_json())

        assert report["a"].error.args == ("builtins.ValueError", "boom", "")  # type: ignore[union-attr]

    def test_a_keyboard_interrupt_in_a_repr_is_not_swallowed(self) -> None:
        class Interrupting:
            def __repr__(self) -> str:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            report_of(succeeded("a", Interrupting())).to_json()


def through_pickle(report: RunReport, protocol: int = pickle.DEFAULT_PROTOCOL) -> RunReport:
    back = pickle.loads(pickle.dumps(report, protocol))
    assert isinstance(back, RunReport)
    return back


class TestPickle:
    @pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
    def test_a_report_comes_back_equal(self, protocol: int) -> None:
        attempts = (Attempt(1, 0.5, 1.25, None), Attempt(2, 3.0, 0.25, None))
        report = report_of(
            succeeded("a", {(1, 2): {3}}, attempts=2, recorded=attempts, depends_on=("x",)),
            skipped_by_condition("b"),
            mapped("c", succeeded("c[0]", queued_ms=1.0), queued_ms=1.0),
            succeeded("d", loop_blocked_ms=101.0, abandoned=True),
        )
        report.stop_reason = "why"

        back = through_pickle(report, protocol)

        assert back.results == report.results
        assert (back.run_id, back.wall_time, back.total_duration_ms) == ("r1", 1_000.5, 14.0)
        assert back.stop_reason == "why"
        assert back.succeeded == report.succeeded

    def test_an_error_comes_back_as_itself_with_its_notes(self) -> None:
        error = raised(StepTimeoutError("a", 1, 50))
        error.add_note("my own")

        back = through_pickle(report_of(failed("a", error)))["a"].error

        assert isinstance(back, StepTimeoutError)
        assert (back.step_name, back.__notes__) == ("a", ["my own"])
        # Dask's library, if a test has imported it, makes errors keep their tracebacks.
        assert back.__traceback__ is None or "tblib" in sys.modules

    def test_an_error_that_does_not_survive_pickling_has_a_stand_in(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Dask's library, if a test has imported it, teaches pickle how to keep such an error.
        monkeypatch.delitem(copyreg.dispatch_table, TwoArgumentsError, raising=False)

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

            for restored in (back.error, back.history[0].error):
                assert isinstance(restored, RestoredError)
                assert restored.type_name.endswith(type(error).__qualname__)
                assert restored.message == message
                assert "in raised" in restored.traceback

    def test_an_output_that_does_not_survive_pickling_has_a_stand_in(self) -> None:
        def unsendable() -> None: ...

        report = report_of(
            succeeded("lambda", unsendable),
            succeeded("in a list", [1, unsendable]),
            succeeded("read", PickleOnly()),
            succeeded("well", [1, 2]),
            mapped("map", succeeded("map[0]", unsendable), succeeded("map[1]", 1)),
        )

        back = through_pickle(report)

        assert back["lambda"].output == RestoredOutput(repr(unsendable))
        assert back["in a list"].output == RestoredOutput(repr([1, unsendable]))
        assert type(back["read"].output) is RestoredOutput
        assert back["well"].output == [1, 2]
        assert back["map"].items is not None
        assert back["map"].items[0].output == RestoredOutput(repr(unsendable))
        assert back["map"].items[1].output == 1
        assert report["lambda"].output is unsendable


def test_a_result_takes_at_most_400_bytes() -> None:
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
