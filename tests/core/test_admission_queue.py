"""Who stands in line goes in first come, first served, as far as there is room."""

from __future__ import annotations

import pytest

from asyncflow import Pool, WorkflowStep
from asyncflow._core.scheduler import AdmissionQueue


def plain() -> None: ...


async def nothing() -> None: ...


class Line:
    """A queue of steps named by their pools: "a", "b", or "-" for none."""

    def __init__(self, limit: int | None, pools: str, sizes: dict[str, int]) -> None:
        by_name = {name: Pool(size) for name, size in sizes.items()}
        self.steps = [
            WorkflowStep(f"s{n}", nothing, pool=by_name.get(name)) for n, name in enumerate(pools)
        ]
        self.queue = AdmissionQueue(limit, self.steps, range(len(pools)))
        for node in range(len(pools)):
            self.queue.put([node], float(node))

    def take(self) -> list[int]:
        taken = []
        for node in self.queue.take():
            self.queue.enter(node)
            taken.append(node)
        return taken

    def leave(self, *step_runs: int) -> list[int]:
        for node in step_runs:
            self.queue.leave(node)
        return self.take()


class TestLimit:
    def test_without_a_limit_all_go_in_at_once_in_their_order(self) -> None:
        line = Line(None, "---", {})

        assert not line.queue.is_limited
        assert line.take() == [0, 1, 2]
        assert line.take() == []

    def test_no_more_go_in_than_there_is_room_for(self) -> None:
        line = Line(2, "-----", {})

        assert line.queue.is_limited
        assert line.take() == [0, 1]
        assert line.take() == []
        assert line.leave(1) == [2]
        assert line.leave(0, 2) == [3, 4]

    def test_who_did_not_stand_in_line_takes_room_too(self) -> None:
        line = Line(2, "---", {})
        line.queue.enter(2)

        assert line.take() == [0]


class TestPools:
    def test_who_waits_for_nothing_has_not_stood_in_line(self) -> None:
        line = Line(None, "a-", {"a": 1})

        assert [line.queue.queued_ms(node, 7.0) for node in (0, 1)] == [7.0, 0.0]

    def test_no_more_go_in_than_their_pool_has_slots(self) -> None:
        line = Line(None, "aaabb", {"a": 2, "b": 1})

        assert line.queue.is_limited
        assert line.take() == [0, 1, 3]
        assert line.leave(0) == [2]
        assert line.leave(3) == [4]
        assert line.leave(1, 2, 4) == []

    def test_who_waits_for_a_pool_keeps_out_nobody_else(self) -> None:
        line = Line(2, "aaa--", {"a": 1})

        assert line.take() == [0, 3]
        assert line.leave(3) == [4]

    def test_who_was_held_up_by_a_pool_goes_before_those_who_came_later(self) -> None:
        line = Line(2, "aaa--a", {"a": 1})
        assert line.take() == [0, 3]
        line.queue.put([6], 6.0)
        line.steps.append(line.steps[0])

        assert line.leave(0, 3) == [1, 4]
        assert line.leave(1, 4) == [2]
        assert line.leave(2) == [5]
        assert line.leave(5) == [6]

    def test_the_limit_holds_for_those_whom_a_pool_has_held_up(self) -> None:
        line = Line(2, "aaaa-", {"a": 2})
        assert line.take() == [0, 1]

        assert line.leave(0) == [2]
        assert line.leave(1) == [3]
        assert line.leave(2) == [4]

    def test_a_free_slot_of_a_pool_is_no_room_in_the_run(self) -> None:
        line = Line(2, "aa--", {"a": 1})
        assert line.take() == [0, 2]
        line.queue.leave(0)
        line.queue.enter(3)  # a stored run is being replayed

        assert line.take() == []
        assert line.leave(2) == [1]

    def test_one_pool_that_is_full_does_not_hold_up_another(self) -> None:
        line = Line(None, "aabb", {"a": 1, "b": 1})
        assert line.take() == [0, 2]

        assert line.leave(2) == [3]
        assert line.leave(0) == [1]


class TestNews:
    @pytest.mark.parametrize("limit", [None, 1])
    def test_there_is_news_when_one_gets_in_line_or_leaves(self, limit: int | None) -> None:
        steps = [WorkflowStep("a", nothing)]
        queue = AdmissionQueue(limit, steps, ())
        assert queue.is_dirty is False

        queue.put([0], 1.0)
        assert queue.is_dirty is True
        list(queue.take())
        queue.is_dirty = False  # as `RunState.ready` does, which knows of other news too
        queue.enter(0)
        assert queue.is_dirty is False
        queue.leave(0)
        assert queue.is_dirty is True

    @pytest.mark.parametrize(
        ("limit", "steps", "special", "expected"),
        [
            (None, [WorkflowStep("a", nothing)], (), False),
            (None, [WorkflowStep("a", nothing)], (0,), False),
            (3, [WorkflowStep("a", nothing)], (), True),
            (None, [WorkflowStep("a", nothing, pool=Pool(1))], (0,), True),
            (None, [WorkflowStep("a", plain, runs_in="thread")], (0,), True),
            (None, [WorkflowStep("a", plain, runs_in="process")], (0,), True),
            (None, [WorkflowStep(n, nothing, pool=p) for n, p in [("a", None), ("b", Pool(1))]],
             (1,), True),
        ],
    )  # fmt: skip
    def test_it_knows_whether_anybody_may_have_to_wait(
        self, limit: int | None, steps: list[WorkflowStep], special: tuple[int, ...], expected: bool
    ) -> None:
        assert AdmissionQueue(limit, steps, special).is_limited is expected


class TestTime:
    def test_it_tells_how_long_one_has_waited_from_the_line_to_the_start(self) -> None:
        line = Line(1, "--", {})
        assert line.queue.queued_ms(1, 5.0) == 4.0
        line.take()
        assert line.queue.queued_ms(0, 5.0) == 5.0

        line.queue.begin(0)

        assert line.queue.queued_ms(0, 7.0) == 0.0
        line.queue.put([0], 8.0)
        assert line.queue.queued_ms(0, 9.5) == 1.5

    def test_nobody_waits_where_nothing_is_limited(self) -> None:
        line = Line(None, "-", {})

        assert line.queue.queued_ms(0, 7.0) == 0.0
        line.queue.begin(0)
