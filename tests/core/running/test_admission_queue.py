"""The admission queue admits nodes first come, first served, within the limits."""

from __future__ import annotations

import pytest

from asyncflow import Pool, WorkflowStep
from asyncflow._core.running.scheduler import AdmissionQueue
from asyncflow._core.running.step_runs import Phase


def plain() -> None: ...


async def nothing() -> None: ...


class Harness:
    """An admission queue of steps, each given by its pool: "a", "b", or "-" for none."""

    def __init__(self, limit: int | None, pools: str, sizes: dict[str, int]) -> None:
        by_name = {name: Pool(size) for name, size in sizes.items()}
        self.steps = [
            WorkflowStep(f"s{n}", nothing, pool=by_name.get(name)) for n, name in enumerate(pools)
        ]
        self.phases = [Phase.READY] * len(pools)
        self.queue = AdmissionQueue(limit, self.steps, self.phases, range(len(pools)))
        for node in range(len(pools)):
            self.queue.put([node], float(node))

    def take(self) -> list[int]:
        return self.queue.take_ready()

    def leave(self, *nodes: int) -> list[int]:
        for node in nodes:
            self.queue.leave(node)
        return self.take()


class TestPools:
    def test_a_node_that_waits_for_no_pool_has_no_queued_time(self) -> None:
        harness = Harness(None, "a-", {"a": 1})

        assert [harness.queue.queued_ms(node, 7.0) for node in (0, 1)] == [7.0, 0.0]

    def test_a_node_held_up_by_a_pool_is_admitted_before_later_ones(self) -> None:
        harness = Harness(2, "aaa--a", {"a": 1})
        assert harness.take() == [0, 3]
        harness.steps.append(harness.steps[0])
        harness.phases.append(Phase.READY)
        harness.queue.put([6], 6.0)

        assert harness.leave(0, 3) == [1, 4]
        assert harness.leave(1, 4) == [2]
        assert harness.leave(2) == [5]
        assert harness.leave(5) == [6]

    def test_a_free_slot_of_a_pool_does_not_admit_a_node_to_a_full_run(self) -> None:
        harness = Harness(2, "aa--", {"a": 1})
        assert harness.take() == [0, 2]
        harness.queue.leave(0)
        harness.phases[3] = Phase.SCHEDULED  # a stored run is being replayed
        harness.queue.moved(3, Phase.READY, Phase.SCHEDULED)

        assert harness.take() == []
        assert harness.leave(2) == [1]


class TestDirty:
    @pytest.mark.parametrize(
        ("pools", "limit", "is_dirty"), [("-", 1, False), ("--", 1, True), ("aa", None, True)]
    )
    def test_the_queue_is_dirty_after_a_leave_if_a_node_waits(
        self, pools: str, limit: int | None, is_dirty: bool
    ) -> None:
        harness = Harness(limit, pools, {"a": 1})
        assert harness.take() == [0]
        assert not harness.queue.is_dirty

        harness.queue.leave(0)

        assert harness.queue.is_dirty is is_dirty

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
    def test_the_queue_is_limited_if_a_step_may_have_to_wait(
        self, limit: int | None, steps: list[WorkflowStep], special: tuple[int, ...], expected: bool
    ) -> None:
        phases = [Phase.READY] * len(steps)

        assert AdmissionQueue(limit, steps, phases, special).is_limited is expected


class TestTime:
    def test_queued_time_counts_from_the_put_to_the_start(self) -> None:
        harness = Harness(1, "--", {})
        assert harness.queue.queued_ms(1, 5.0) == 4.0
        harness.take()
        assert harness.queue.queued_ms(0, 5.0) == 5.0

        harness.queue.begin(0, 5.0)

        assert harness.queue.queued_ms(0, 7.0) == 0.0
        harness.queue.put([0], 8.0)
        assert harness.queue.queued_ms(0, 9.5) == 1.5
