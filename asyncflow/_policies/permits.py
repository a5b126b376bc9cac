"""What an attempt must hold: a place of the run, slots of a pool, a token for a thread or process.

Rules:

1. None of the waiting is part of the attempt's time.
2. A slot is offered after all nodes that its release made ready have joined the line, so that the
   line's order decides. Steps join in the turn of the release, and items later: the task of their
   mapped step must add them. So where a less urgent attempt could get the slot, that is kept until
   these tasks have had their turn (``adding``).
3. A node that waits for slots lends its place. When the slots are there it claims one, in the order
   in which the pool has given them: not when its task learns of them, which may be some turns
   later.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio

from asyncflow._core.pipeline.graph import Plan
from asyncflow._core.pipeline.step import WorkflowStep
from asyncflow._core.pools.pool import Clock, Pool, PoolTicket
from asyncflow._core.running.step_runs import Phase
from asyncflow._kernel.asyncio_compat import NO_TIME_S
from asyncflow._kernel.policy import Policy
from asyncflow._kernel.run_scope import Parts
from asyncflow._policies.pool_clock import pool_clock
from asyncflow.events import PoolPaused

if TYPE_CHECKING:
    from asyncflow._policies.workers import ThreadEnd

_log = logging.getLogger("asyncflow")

_FIRST = Phase.SCHEDULED
"""The phase of a node that is about to make its first attempt."""
_AT_GATE = (Phase.SCHEDULED, Phase.RESCHEDULED)
"""The phases of a node that is about to make any."""


def prepare_workers(plan: Plan) -> None:
    """Import what steps in threads and processes need, before a run's time begins to count."""
    for index in plan.having("runs_in"):
        step = plan.steps[index]
        if step.needs_worker:
            _limiter_for(step.runs_in)


def _limiter_for(runs_in: str) -> anyio.CapacityLimiter:
    """Return what limits how many workers of a kind there are in this loop. Only for a task.

    anyio finds the loop by the running task where sniffio is installed, and by nothing else.
    """
    from asyncflow._policies.workers import limiter_for  # few need what that imports

    return limiter_for(runs_in)


def _priorities_of(plan: Plan) -> Mapping[Pool, tuple[int, int]]:
    """Return the lowest and the highest priority that steps have in each pool."""
    found: dict[Pool, tuple[int, int]] = {}
    for at in plan.having("pool"):
        pool, priority = plan.steps[at].pool, plan.steps[at].priority
        assert pool is not None
        lowest, highest = found.get(pool, (priority, priority))
        found[pool] = min(lowest, priority), max(highest, priority)
    return found


def _call_soon(loop: asyncio.AbstractEventLoop, call: Callable[..., object], *args: Any) -> None:
    """Call a function in a later turn of a loop, from any thread."""
    # In the thread of the loop, another way than this one takes ten times as long. And the
    # collector may have called us, so that nothing may be done here but this.
    is_here = asyncio._get_running_loop() is loop
    (loop.call_soon if is_here else loop.call_soon_threadsafe)(call, *args)


class Permit:
    """What an attempt has to wait for: slots of a pool, and a token for its thread or process.

    The pool calls it, in any thread. Most never need a future: their slots come before they ask.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        step: WorkflowStep,
        on_slots: Callable[[], object] | None = None,
    ) -> None:
        self.ticket: PoolTicket | None = None
        self.worker = step.runs_in if step.needs_worker else None
        """What it needs a token for: a thread, a process or nothing."""
        self._loop = loop
        self._on_slots = on_slots
        """Called when the slots are there, in any thread and by the collector too."""
        self._waiter: asyncio.Future[None] | None = None
        self._at_s: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._limiter: anyio.CapacityLimiter | None = None
        """The one of which it has a token."""
        self._is_over = False

    # In the line of the pool.

    def call(self, at_s: float | None) -> None:
        """Take note of a call of the pool: that the slots are there, or when to look again."""
        if at_s is not None and (at_s != self._at_s or self._loop.is_closed()):
            self._at_s = at_s
            _call_soon(self._loop, self._set_timer, at_s)
        elif at_s is None:
            if self._on_slots is not None:
                self._on_slots()
            if self._waiter is not None or self._loop.is_closed():
                _call_soon(self._loop, self._wake_up)

    def _wake_up(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _set_timer(self, at_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if not self._is_over:
            self._timer = self._loop.call_at(at_s, self._look, at_s)

    def _look(self, at_s: float) -> None:
        if at_s - self._loop.time() > NO_TIME_S:  # a timer may be early
            self._set_timer(at_s)
        elif self.ticket is not None:
            self._at_s = None
            self.ticket.look(at_s)

    async def slots(self) -> None:
        """Wait for the slots."""
        # First the future, then the question: another thread may answer between the two.
        self._waiter = self._loop.create_future()
        if self.ticket is not None and not self.ticket.has_slots:
            await self._waiter

    # In a thread or a process.

    async def token(self) -> None:
        """Wait for the token."""
        if self.worker is None or self._limiter is not None:
            return
        limiter = _limiter_for(self.worker)
        try:
            # A token that is free is never waited for: before 4.16 anyio, if cancelled in the
            # turn that it then lets pass, gives back a token of the task, and not this one.
            limiter.acquire_on_behalf_of_nowait(self)
        except anyio.WouldBlock:
            # A rate limits starts, and there is none before the token: kept until then, those of
            # all that wait here would come at once. The slots stay, so that no more wait here than
            # the pool has, and the line's order decides which.
            if self.ticket is not None:
                self.ticket.lend_start()
            await limiter.acquire_on_behalf_of(self)
        self._limiter = limiter

    def end_wait(self) -> None:
        """Let no timer fire any more: when a rate is set, the slots may be there before."""
        self._is_over = True
        if self._timer is not None:
            self._timer.cancel()

    def release(self, *, unused: bool = False) -> None:
        """Release what was acquired; ``unused`` if no attempt has started."""
        self.end_wait()
        if self._limiter is not None:
            self._limiter.release_on_behalf_of(self)
            self._limiter = None
        if self.ticket is not None:
            self.ticket.release(unused=unused)


def _ticket_of(held: PoolTicket | Permit | None) -> PoolTicket | None:
    return held.ticket if isinstance(held, Permit) else held


class Permits(Policy):
    """The policy of a run in which attempts may have to wait for what they must hold.

    Attributes:
        needs: The slots, tokens and key of each node whose step has functions for them.
        until: What must have ended before what a node holds is released: an abandoned thread.
        adding: The mapped steps that are about to add items, or to end, as soon as their tasks run;
            ``None`` if no slot may have to wait for that.
        on_larger: Called when a pool has become larger: by its size, how many items may wait.
    """

    arguments = frozenset({"pool", "runs_in", "cache_ms"})

    def __init__(self, parts: Parts) -> None:
        scope = parts.scope
        self._run = parts.run
        self._dispatcher = parts.dispatcher
        self._stop_control = parts.stop_control
        self._state = scope.state
        self._queue = scope.state.queue
        self._steps = scope.state.step_runs.steps
        self._phases = scope.state.step_runs.phases
        self._run_context = scope.run_context
        self._now_ms = scope.run_context.now_ms
        self._loop = scope.loop
        if self._queue.has_limit:  # each further attempt needs a place, as the first has one
            self.arguments |= {"max_retries"}
        self._turns: dict[int, asyncio.Future[None]] = {}
        """What each node waits for that is queued for its next attempt, or has claimed a place."""
        self._since_ms: dict[int, float] = {}
        """From when on each node waits for its next attempt that stands in line during a delay."""
        self._held: dict[int, PoolTicket | Permit] = {}
        """What each node holds or waits for: a mere ticket if it never had to wait."""
        self._served = deque[int]()
        """The nodes that have received slots in line, in order: they may have lent their place."""
        self._ages: dict[int, int] = {}
        """The place in line that a node keeps for its next attempt, or for its next request."""
        self.needs: dict[int, tuple[int, float, str | None]] = {}
        self.until: dict[int, ThreadEnd] = {}
        self.on_larger: Callable[[], object] | None = None
        self._joining: dict[int, None] = {}
        """The nodes that were started and are not in line yet, in order."""
        self._late: list[tuple[PoolTicket | Permit, Pool | None]] = []
        """What is released when the nodes that its attempts have made ready are in line."""
        self._kept: list[PoolTicket | Permit] = []
        """What is released when no mapped step is about to add items."""
        self._looks_soon = False
        plan = self._plan = scope.plan
        self._priorities = _priorities_of(plan) if self._queue.is_limited else {}
        self._has_priorities = bool(self._priorities) and any(
            low or high for low, high in self._priorities.values()
        )
        has_maps = self._priorities and plan.having("map_over")
        self.adding: set[int] | None = set() if has_maps else None
        self._reported_ms: dict[Pool, float] = {}
        """Until when each pool for which it waits is paused, as far as that was reported."""
        self._is_watching = False
        self._turn = object()
        """Stands for this run where it takes turns with others: itself would be in a cycle."""

    @property
    def _clock(self) -> Clock:
        return pool_clock(self._loop)

    def on_watch(self) -> Callable[[], object]:
        """Learn of pauses and sizes of its pools from the start: a node may wait in no line yet."""
        for pool in self._priorities:
            pool._watch(self)
        self._is_watching = True
        return self._end_watch

    def _end_watch(self) -> None:
        self._is_watching = False

    # Before an attempt.

    def on_advance(self) -> None:
        self._claim_places()

    def _claim_places(self) -> None:
        """Claim places for those that have received their slots, before others claim one."""
        while self._served:
            node = self._served.popleft()
            ticket = _ticket_of(self._held.get(node))
            # Else it was stopped meanwhile: a node that has ended would keep its place.
            if ticket is not None and ticket.has_slots and self._phases[node] in _AT_GATE:
                self._queue.claim(node)

    def on_turn(self, node: int) -> None:
        self._line_up(node, self._steps[node])  # with its place it takes a slot that is free
        turn = self._turns.get(node)  # without one, its task does not know of its slots yet
        if turn is not None and not turn.done():
            turn.set_result(None)

    def on_line_up(self, node: int, step: WorkflowStep) -> None:
        if step.cache_ms is None:  # else it may need no slot
            self._line_up(node, step)

    def _line_up(self, node: int, step: WorkflowStep) -> None:
        """Let a node that starts join the line of its pool, before any slot of this run is offered.

        It joins when its task begins or a slot is released, whichever comes first. Mostly it need
        not join at all: it receives the slot of the attempt that made it ready.
        """
        if self._queue.has_limit:
            self._join(node, step)  # so that it can lend its place to nodes that start with it
        elif step.pool is not None and node not in self._held:
            self._joining[node] = None

    def _join(self, node: int, step: WorkflowStep) -> None:
        """Let a node take its slots, or join the line of its pool."""
        pool = step.pool
        if pool is None or node in self._held:
            return
        self._joining.pop(node, None)
        slots, tokens, key = self.needs[node] if step.measures else step.needs
        age = self._ages.pop(node, None) if self._ages else None
        ticket = None if step.needs_worker or key is not None else pool._take(slots)
        if ticket is not None:
            self._held[node] = ticket
            return
        on_slots = partial(self._served.append, node) if self._queue.has_limit else None
        permit = self._held[node] = Permit(self._loop, step, on_slots)
        clock, priority = self._clock, step.priority
        needs: dict[str, Any] = {"slots": slots, "tokens": tokens, "priority": priority}
        if key is not None:
            secrets = self._run_context.secrets
            needs |= {"key": key, "shown_key": secrets.replaced(key) if secrets else key}
        permit.ticket = ticket = pool._join(clock, permit.call, age=age, run=self._turn, **needs)
        if ticket.has_slots:
            return
        if self._queue.has_limit:
            self._queue.lend(node)
        if pool not in self._reported_ms:
            self._reported_ms[pool] = 0.0
            if pool._gates.may_hold:
                self.note_pause(pool)
            if pool in self._run_context.pools:
                _log.warning(
                    "step %r waits for %s, of which a step around its run holds a slot: if it "
                    "needs that one, it waits for itself; give the nested run a pool of its own",
                    *(self._state.step_runs.name_of(node), pool.title),
                )

    def on_gate(
        self, node: int, step: WorkflowStep
    ) -> Callable[[], Coroutine[Any, Any, None]] | None:
        if self._phases[node] is not _FIRST:
            return partial(self._line_up_again, node, step)
        if step.needs_permit and not self._may_start(node):
            return partial(self._acquire, node, step)
        return None

    async def _line_up_again(self, node: int, step: WorkflowStep) -> None:
        """Wait for the turn of another attempt, and then until the node holds what that needs."""
        if self._phases[node] is Phase.WAITING:
            keeps_place = node in self._ages
            since_ms = self._since_ms.pop(node, None)
            since_ms = self._now_ms() if since_ms is None else since_ms
            self._state.queue.put_again(node, since_ms, first=keeps_place)
            await self._wait_for_turn(node)
        if step.needs_permit and not self._may_start(node):
            await self._acquire(node, step)

    def _may_start(self, node: int) -> bool:
        """Let a node join its line; return whether it holds all that its attempt needs."""
        if node in self._joining:
            self._join(node, self._steps[node])
        held = self._held.get(node)
        if self._queue.has_limit:
            return False
        if isinstance(held, PoolTicket):
            return not held.is_gated
        ticket = None if held is None or held.worker is not None else held.ticket
        return ticket is not None and ticket.has_slots and not ticket.is_gated

    async def _acquire(self, node: int, step: WorkflowStep) -> None:
        """Wait until a node holds all that its attempt needs."""
        while True:
            if node not in self._held and step.pool is None:
                self._held[node] = Permit(self._loop, step)
            else:
                self._join(node, step)
                if self._queue.is_dirty:
                    self._run.advance()  # it has lent its place
            held = self._held[node]
            try:
                if isinstance(held, Permit):
                    await held.slots()
                self._claim_places()
                has_place = self._queue.claim(node)  # it may have lent its own
                if has_place and isinstance(held, Permit):
                    await held.token()
            except BaseException:
                self._give_back(node)
                raise
            ticket = _ticket_of(held)
            if has_place and (ticket is None or ticket.claim_start()):
                return
            # The run has become full meanwhile, or the pool was paused, or the token came too soon
            # after another's start. The token is released too: others may need it for longer.
            self._give_back(node)
            if not has_place:
                await self._wait_for_turn(node)

    def _give_back(self, node: int) -> None:
        """Release what a node holds, which keeps its place in line."""
        held = self._held.pop(node, None)
        ticket = _ticket_of(held)
        if held is not None:
            if ticket is not None:
                self._ages[node] = ticket.age
            held.release(unused=True)

    # After an attempt.

    def on_attempted(self, node: int, *, unused: bool = False) -> None:
        """Release what a node holds; if its attempt has abandoned a thread, when that has ended."""
        held = self._held.pop(node, None)
        if held is None:
            return
        pool = self._steps[node].pool
        if (
            pool is not None
            and pool._retries.per_success is not None
            and self._state.step_runs.has_succeeded(node)
            and self._state.step_runs.error(node) is None  # else its fallback has
        ):
            pool._retries.earn()
        thread = self.until.get(node) if self.until else None
        if thread is not None and not thread.done():
            slots = _ticket_of(held)
            if slots is not None:
                thread.call_at_once(slots.release)  # from any thread, even if the loop is closed
            if isinstance(held, Permit):
                held.end_wait()  # the thread may outlive the run
            thread.add_done_callback(lambda _: held.release())
        elif unused:
            held.release(unused=True)
        elif self._queue.is_dirty:
            self._late.append((held, pool))
        elif self.adding and self._is_awaited(pool):
            self._kept.append(held)
            self._look_soon()
        elif not self._joining or not self._hand_over(held, pool):
            self._offer(held)

    def on_advanced(self) -> None:
        """Offer the slots of attempts whose successors are in line now."""
        while self._late:
            held, pool = self._late.pop()
            if self.adding and self._is_awaited(pool):
                self._kept.append(held)
            else:
                self._offer(held)
        if self._kept and self.adding:
            self._look_soon()
        while self._kept and not self.adding:
            self._offer(self._kept.pop())

    def _is_awaited(self, pool: Pool | None) -> bool:
        """Whether less urgent attempts could get a slot of a pool before items that are added."""
        if pool is None:
            return False
        lowest, highest = self._priorities[pool]
        return lowest < highest or pool._waits_below(highest)

    def _look_soon(self) -> None:
        if not self._looks_soon:
            self._looks_soon = True
            self._loop.call_soon(self._look)

    def _look(self) -> None:
        self._looks_soon = False
        if not self._queue.is_dirty:  # else nodes are about to start, and then it is offered
            self.on_advanced()

    def on_end(self) -> None:
        """Offer all that was released: nothing more starts."""
        self.adding = None
        self.on_advanced()

    def _offer(self, held: PoolTicket | Permit) -> None:
        """Release slots when all nodes that were started are in line."""
        for node in [*self._joining]:
            self._join(node, self._steps[node])
        held.release()

    def _hand_over(self, held: PoolTicket | Permit, pool: Pool | None) -> bool:
        """Give a slot to the node that joins next, if no other run can have a claim to it."""
        ticket = _ticket_of(held)
        if ticket is None or ticket.key is not None or self._has_priorities:
            return False
        if isinstance(held, Permit) and held.worker is not None:
            return False
        node = next(iter(self._joining))
        step = self._steps[node]
        if (
            step.pool is not pool
            or step.needs_worker
            or step.measures
            or step.pool_key is not None
            or step.needs[0] != ticket.slots
        ):
            return False
        if not ticket.renew():
            return False
        if isinstance(held, Permit):
            held.end_wait()
        del self._joining[node]
        self._ages.pop(node, None)
        self._held[node] = ticket
        return True

    def on_over(self, node: int) -> None:
        # No action was called with what it still holds.
        self._since_ms.pop(node, None)
        if self._ages or self.needs:
            self._ages.pop(node, None)
            self.needs.pop(node, None)
        if node in self._joining:
            del self._joining[node]
        if node in self._held:
            self.on_attempted(node, unused=True)

    def note_pause(self, pool: Pool) -> None:
        """Report soon that a pool is paused for which it waits. Any thread may call it."""
        if pool in self._reported_ms:
            with suppress(RuntimeError):  # the loop is closed
                _call_soon(self._loop, self._report_pause, pool)

    def note_size(self, pool: Pool) -> None:
        """Let more nodes join the line of a larger pool soon. Any thread may call it."""
        with suppress(RuntimeError):  # the loop is closed
            _call_soon(self._loop, self._admit_more)

    def _admit_more(self) -> None:
        self._queue.look_again()
        if self._is_watching and self._queue.is_dirty:
            self._run.advance()
        if self._is_watching and self.on_larger is not None:
            self.on_larger()

    def _report_pause(self, pool: Pool) -> None:
        pause = pool._pause_of(self._clock)
        if pause is None or self._state.has_finished:
            return
        now_ms = self._now_ms()
        until_ms = now_ms + pause.left_ms
        if until_ms > self._reported_ms.get(pool, 0.0) + 0.5:
            self._reported_ms[pool] = until_ms
            steps = [self._plan.steps[at] for at in self._plan.having("pool")]
            names = tuple([step.name for step in steps if step.pool is pool])
            self._dispatcher.emit(PoolPaused(now_ms, until_ms, pool.name or "", pause.by, names))

    def on_explain(self) -> str:
        """Return for which pool, key or share nodes wait, and why, as an end of a sentence."""
        why = ""
        for node, held in self._held.items():
            pool = self._state.step_runs.steps[node].pool
            ticket = _ticket_of(held)
            if pool is not None and ticket is not None and not ticket.has_slots:
                pause = pool._pause_of(self._clock)
                if pause is not None:
                    by = f" by step {pause.by!r}" if pause.by else ""
                    return f"while {pool.title} was paused{by} for another {pause.left_ms:,.0f} ms"
                if pool._share is not None:
                    from asyncflow._policies.pool_sharing import why_waiting  # its run has done so

                    why = why or why_waiting(pool)
                elif ticket.is_at_limit:
                    why = (
                        f"while key {ticket.shown_key!r} was at its limit in {pool.title} "
                        f"(per_key={pool.per_key})"
                    )
        return why

    def on_retry_after(self, node: int, ended_ms: float, named_ms: float, is_retried: bool) -> None:
        """Pause the pool of a node, whose service has named a time."""
        step = self._state.step_runs.steps[node]
        pool = step.pool
        if pool is None or not pool.pauses:
            return
        until_s = self._run_context.at_s(ended_ms + min(named_ms, pool.max_pause_ms))
        name = self._state.step_runs.name_of(node)
        if named_ms > pool.max_pause_ms:
            _log.warning(
                "step %r: its service named a time in %.0f ms, and %s is paused for no more than "
                "its max_pause_ms of %g",
                *(name, named_ms, pool.title, pool.max_pause_ms),
            )
        self._reported_ms.setdefault(pool, 0.0)
        pool._pause(self._clock, until_s, name)
        held = self._held.get(node)
        ticket = _ticket_of(held)
        if is_retried and ticket is not None:
            self._ages[node] = ticket.age

    def on_hold(self, node: int, delay_ms: float, ends_ms: float) -> bool:
        """Let a node that keeps its place stand in line during the delay."""
        pool = self._steps[node].pool
        if node not in self._ages or pool is None or delay_ms > pool.max_pause_ms:
            return False
        self._since_ms[node] = ends_ms
        return True

    async def _wait_for_turn(self, node: int) -> None:
        """Wait until the run admits a node, or gives it the place that it has claimed."""
        turn = self._turns[node] = self._loop.create_future()
        self._run.advance()
        try:
            # Not begun again with the wait around it, which would claim its place once more.
            await self._stop_control.undisturbed(node, partial(asyncio.wait, [turn]))
        finally:
            del self._turns[node]
