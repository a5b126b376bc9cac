"""A `Pool`: slots for calls of one service, and the line of the attempts that wait for them.

Rules:

1. A pool neither waits nor makes timers. A waiting attempt brings a clock to read, and a callable
   that the pool calls: with ``None`` when the slots are there, or with a time at which to `look`
   again. So one pool serves any number of runs, event loops and threads at once.
2. There is one line, by priority and then by age. Its head holds it for all behind it, so that
   attempts that need many slots are not starved. Only an attempt that can't take slots, since its
   event loop was stopped, is passed over. Once an attempt with a key has joined, the line is that
   of `asyncflow._core.pools.keys`, which costs more: keys take turns in it.
3. Nothing is reserved for waiting attempts: the head is judged when something changes, or when its
   time has come. So an attempt that leaves takes nothing along, and a pause that begins holds all.
   So does a number that is set: no ticket knows any. One that needs more slots than there are now
   starts when all are free.
4. Times are compared as they are stored, never as they could be computed again: sums of floats
   differ by less than a timer can wait.
5. One lock. Other threads release slots, and so does the garbage collector when it ends a
   coroutine: at any line of this code, also in the thread that holds the lock. So what is released
   is queued first, and the thread that moves the line takes back what is queued.
6. Attempts take slots up to a limit. It is the size, or what this process has of a pool that others
   share (`asyncflow._core.pools.shares`), as long as its lease holds. By a virtual clock, it is
   the size.
"""

from __future__ import annotations

import math
import sys
import threading
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Callable, Iterable
from itertools import count
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, Protocol, TypeAlias
from weakref import WeakSet

from asyncflow._core.arguments import check_count, check_number, suggests_arguments
from asyncflow._core.pools.rates import NO_START, CommonPause, CountedStart, Gates, PoolPause
from asyncflow._core.record import record
from asyncflow._core.text import safe_text

if TYPE_CHECKING:
    from asyncflow._core.pools.keys import KeyedLine
    from asyncflow._core.pools.shares import Demand, PoolShare


class Clock(NamedTuple):
    """A clock that those who wait go by."""

    key: Any
    """What identifies it: real event loops share one, each virtual one has its own. A pool holds it
    weakly."""
    now_s: Callable[[], float]
    is_running: Callable[[], bool] | None = None
    """Whether the event loop that goes by it runs; ``None`` in a thread without one."""


Call: TypeAlias = Callable[[float | None], object]
"""Called in any thread: with ``None`` when the slots are there, with a time to look again then; the
latest such time counts. If it raises `RuntimeError`, as a closed event loop does, the ticket is
released."""


class Watcher(Protocol):
    """Receives what happens to pools, in any thread."""

    def note_pause(self, pool: Pool, /) -> None:
        """A pause of a pool has begun."""

    def note_size(self, pool: Pool, /) -> None:
        """A pool has more slots than before."""


def _no_clock() -> Clock:
    raise RuntimeError("asyncflow's driver has not been imported")


present_clock: Callable[[], Clock] = _no_clock
"""Returns the clock of the caller. The driver sets it: the core neither knows loops nor time."""

_pools: WeakSet[Pool] = WeakSet()
"""All pools of this process."""


def begin_in_child() -> None:
    """Let all pools forget the process of which this one is a fork. The driver sees to that."""
    for pool in _pools:
        pool._begin_in_child()


@record
class PoolKeyStats:
    """The current state of one key of a `Pool`."""

    key: str
    """The ``pool_key``. What a secret input says is replaced in it."""
    in_use: int
    """How many slots it has."""
    waiting: int
    """How many attempts of it wait in the pool's line."""


@record
class PoolStats:
    """The current state of a `Pool`."""

    size: int
    """How many slots it has."""
    in_use: int
    """How many of its slots are taken: more than it has, if ``size`` was set to less meanwhile."""
    waiting: int
    """How many attempts wait in its line."""
    paused_ms: float
    """How many milliseconds are left of its pause; 0 if it is not paused."""
    paused_by: str
    """The step whose failure has paused it; empty if it is not paused, or by `Pool.pause`."""
    retries_left: float
    """How many retries its ``retry_budget`` allows now; infinite without one."""
    per_second: float | None
    """How many attempts may start in a second."""
    per_minute: float | None
    """The same for a minute."""
    tokens_per_minute: float | None
    """How many tokens the attempts that start in a minute may take."""
    keys: tuple[PoolKeyStats, ...]
    """The keys that have slots or wait: those of which there is most, at most 100."""
    share: int | None
    """How many of the slots this process may use now, if the pool is ``shared``: 0 while no
    attempt here needs one. ``None`` if it is not shared."""


_BURST = 10.0
"""How many retries a budget saves up."""


class RetryBudget:
    """How many retries there may be: each success earns ``per_success`` of one.

    Any thread may call it.
    """

    __slots__ = ("_lock", "left", "per_success")

    def __init__(self, per_success: float | None) -> None:
        self.per_success = per_success
        """``None`` lets any number be."""
        self.begin_in_child()
        self.begin_anew()

    def begin_in_child(self) -> None:
        """Forget the threads of the process that was forked."""
        self._lock = threading.RLock()

    def begin_anew(self) -> None:
        """Forget what was earned and spent."""
        self.left = math.inf if self.per_success is None else _BURST

    def earn(self) -> None:
        """Note that an attempt has succeeded."""
        if self.per_success is not None:
            with self._lock:
                self.left = min(_BURST, self.left + self.per_success)

    def spend(self) -> bool:
        """Return whether there may be another retry, which is counted then."""
        with self._lock:
            if self.left < 1 - 1e-9:  # ten times 0.1 is below 1
                return False
            self.left = max(0.0, self.left - 1)
        return True


@suggests_arguments
class Pool:
    """A limit that steps of the same service share: at most ``size`` of their attempts run at once.

    Share the object: ``WorkflowStep(..., pool=openai)``, in one pipeline or in many. It limits all
    concurrent runs of the process together, in any event loop or thread. Within a run it is first
    come, first served. Runs take turns: at most ``size`` attempts of each hold a slot or wait in
    the pool's line, so that one with many waiting steps doesn't starve another. An attempt holds
    its slot while it runs; between two attempts, a step holds none. Waiting for a slot is no part
    of the step's time; see `StepResult.queued_ms`.

    If a step's `Retry.on` returns milliseconds, the service has named a time: the pool is paused,
    and no attempt starts in it before then, in any run.

    A step that runs another pipeline must not share a pool with it: it would wait for itself.

    ``size``, ``per_second``, ``per_minute`` and ``tokens_per_minute`` can be set at any time, from
    any thread: ``openai.size = 2``. A new number counts at once for all who wait, and takes back
    nothing from those that run. All else is read-only. What ``slots`` and ``tokens`` of steps may
    ask for is the most that the pool has ever had: an attempt that asks for more slots than there
    are now starts when all are free, and more tokens than there are now count as those of a whole
    minute.

    Args:
        size: How many slots there are, at least 1.
        per_second: How many attempts may start in a second, above 0; a fraction is fine, and
            ``None`` (the default) means no such limit. Starts are spread evenly: with ``5`` there
            is one every 200 ms, so that no second, wherever it begins, sees a burst. A start counts
            when the attempt gets it. With a journal it is stored before the action is called, so
            after a stall of the database up to ``size`` attempts may begin together. An event
            loop with a virtual clock has starts of its own.
        per_minute: The same for a minute. A pool has one of the two.
        tokens_per_minute: How many tokens the attempts that start in a minute may take, above 0;
            see ``tokens`` of a step. They are spread evenly too: after an attempt that takes a
            tenth of them, the next one that takes any starts 6 seconds later. ``None`` (the
            default) means no such limit.
        pauses: Whether milliseconds from `Retry.on` pause the pool (the default), or just delay
            the step.
        max_pause_ms: The longest pause in milliseconds, above 0; 600,000 (10 minutes) by default.
        retry_budget: How many retries there may be for each attempt that succeeds, such as 0.1, at
            least 0. The pool starts with 10 of them and saves up no more. When none is left, a
            failure is final; a retry at a time that the service has named needs none. ``None`` (the
            default) means any number.
        per_key: How many slots the attempts of one ``pool_key`` may have at a time, at least 1.
            ``None`` (the default) means no such limit: keys just take turns. A key at its limit
            holds up no other, and attempts without a key have no such limit.
        name: What displays call it.
        shared: Whether its size, its rates and its pauses hold over all processes whose runs use
            the same journal database, which know it by its ``name``. Each process has a share of
            the slots, by what its attempts need, and the same part of the rates; it asks the
            database for it about ten times a second while one waits. Each run that uses it must
            have a journal of `asyncflow.journal`. A ``retry_budget`` is one of each process.
            Without ``shared`` (the default), the pool is one of this process.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is out of its range, both rates are given, or a shared pool has no
            name, or a ``per_key``.
    """

    __slots__ = (
        *("_ages", "_era", "_gates", "_in_use", "_is_moving", "_is_shared", "_keys"),
        *("_largest_size", "_limit", "_line", "_lock", "_max_pause_ms", "_name", "_pauses"),
        *("_per_key", "_released", "_retries", "_share", "_size", "_watchers", "__weakref__"),
    )

    def __init__(
        self,
        size: int,
        *,
        per_second: float | None = None,
        per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        pauses: bool = True,
        max_pause_ms: float = 600_000,
        retry_budget: float | None = None,
        per_key: int | None = None,
        name: str | None = None,
        shared: bool = False,
    ) -> None:
        _check_size(size)
        _check_rate("per_second", per_second)
        _check_rate("per_minute", per_minute)
        _check_rate("tokens_per_minute", tokens_per_minute)
        if per_second is not None and per_minute is not None:
            raise ValueError("a pool has one rate of starts: give it per_second or per_minute")
        if not isinstance(pauses, bool):
            raise TypeError(f"a pool's pauses must be True or False, not {safe_text(repr, pauses)}")
        check_number("a pool's max_pause_ms", max_pause_ms, 1, unit=" ms")
        if retry_budget is not None:
            check_number("a pool's retry_budget", retry_budget, 0, kind="a number or None")
        if per_key is not None:
            check_count("a pool's per_key", per_key, 1, kind="an int or None")
        if name is not None and not isinstance(name, str):
            raise TypeError(f"a pool's name must be a str or None, not {type(name).__name__}")
        _check_shared(shared, name, per_key)
        self._size = self._largest_size = size
        self._pauses = pauses
        self._max_pause_ms = max_pause_ms
        self._retries = RetryBudget(retry_budget)
        self._per_key: int | None = per_key
        self._name: str | None = name
        self._is_shared = shared
        self._limit = size
        """How many slots attempts may take now: the size, or less while processes share it."""
        self._share: PoolShare | None = None
        """What this process has of it, while runs use it as a shared one."""
        self._era = 0
        """How often it has begun anew: slots of an earlier era are not in ``_in_use``."""
        self._in_use = 0
        self._line: list[tuple[int, int, PoolTicket]] = []
        self._keys: KeyedLine | None = None
        """The line instead of that, since an attempt with a key has joined it."""
        self._ages = count()
        self._gates = Gates(per_second, per_minute, tokens_per_minute)
        self._released: deque[tuple[PoolTicket, bool]] = deque()
        """The slots to take back, and whether each is unused."""
        self._watchers: WeakSet[Watcher] = WeakSet()
        self._is_moving = False
        self._lock = threading.RLock()
        _pools.add(self)

    @property
    def size(self) -> int:
        """How many slots there are. It can be set."""
        return self._size

    @size.setter
    def size(self, size: int) -> None:
        _check_size(size)
        with self._lock:
            is_larger, self._size = size > self._size, size
            self._limit = size if self._share is None else min(size, self._limit)
            self._largest_size = max(self._largest_size, size)
            watchers = list(self._watchers) if is_larger else []
        self._settle()
        for watcher in watchers:
            watcher.note_size(self)

    @property
    def per_second(self) -> float | None:
        """How many attempts may start in a second. It can be set.

        ``None`` lets all who wait for it start at once. Another number counts from the last start,
        and one after ``None`` from the next.
        """
        return self._gates.per_second

    @per_second.setter
    def per_second(self, rate: float | None) -> None:
        _check_rate("per_second", rate)
        with self._lock:
            self._set_rates(rate, self.per_minute, self.tokens_per_minute)

    @property
    def per_minute(self) -> float | None:
        """How many attempts may start in a minute. It can be set, as `per_second`."""
        return self._gates.per_minute

    @per_minute.setter
    def per_minute(self, rate: float | None) -> None:
        _check_rate("per_minute", rate)
        with self._lock:
            self._set_rates(self.per_second, rate, self.tokens_per_minute)

    @property
    def tokens_per_minute(self) -> float | None:
        """How many tokens the attempts that start in a minute may take. It can be set, as
        `per_second`.
        """
        return self._gates.tokens_per_minute

    @tokens_per_minute.setter
    def tokens_per_minute(self, rate: float | None) -> None:
        _check_rate("tokens_per_minute", rate)
        with self._lock:
            self._set_rates(self.per_second, self.per_minute, rate)

    @property
    def pauses(self) -> bool:
        """Whether milliseconds from `Retry.on` pause it."""
        return self._pauses

    @property
    def max_pause_ms(self) -> float:
        """The longest pause in milliseconds."""
        return self._max_pause_ms

    @property
    def retry_budget(self) -> float | None:
        """How many retries there may be for each attempt that succeeds."""
        return self._retries.per_success

    @property
    def per_key(self) -> int | None:
        """How many slots the attempts of one ``pool_key`` may have at a time."""
        return self._per_key

    @property
    def name(self) -> str | None:
        """What displays call it."""
        return self._name

    @property
    def shared(self) -> bool:
        """Whether it holds over all processes whose runs use the same journal database."""
        return self._is_shared

    @property
    def in_use(self) -> int:
        """How many slots are taken."""
        return self._in_use

    @property
    def waiting(self) -> int:
        """How many attempts wait in its line: at most ``size`` of each run and priority, or of a
        larger one that it had when they joined; of those with a ``pool_key``, at most 100 or twice
        its ``size``.
        """
        return len(self._line) if self._keys is None else len(self._keys)

    @property
    def title(self) -> str:
        """Its name in messages."""
        return "its pool" if self._name is None else f"pool {self._name!r}"

    def pause(self, ms: float) -> None:
        """Let no attempt start before so many milliseconds have passed; any thread may call it.

        A longer pause that has begun already continues, and none is longer than ``max_pause_ms``.
        In an event loop with a virtual clock, it counts by that clock, and only there. Called where
        no event loop runs, it counts everywhere; in a virtual loop that uses the pool only later,
        from then on. Other processes that share the pool are paused a moment later; if no run here
        uses the pool, when the next one does.

        Raises:
            TypeError: ``ms`` is not a number.
            ValueError: It is negative, infinite or NaN.
        """
        check_number("pause: ms", ms, 0, unit=" ms")
        clock, pause_s = present_clock(), min(ms, self._max_pause_ms) / 1000
        until_s = clock.now_s() + pause_s
        if clock.is_running is None:
            self._pause_all(CommonPause(clock.now_s, until_s, pause_s), clock)
        self._pause(clock, until_s, "")

    def stats(self) -> PoolStats:
        """Return its current state; any thread may ask."""
        pause = self._pause_of(present_clock())
        with self._lock:
            keys = () if self._keys is None else self._keys.stats()
        return PoolStats(
            size=self._size,
            in_use=self._in_use,
            waiting=self.waiting,
            paused_ms=0.0 if pause is None else pause.left_ms,
            paused_by="" if pause is None else pause.by,
            retries_left=self._retries.left,
            per_second=self.per_second,
            per_minute=self.per_minute,
            tokens_per_minute=self.tokens_per_minute,
            keys=keys,
            share=self._present_share() if self._is_shared else None,
        )

    def _present_share(self) -> int:
        with self._lock:
            if self._share is None:
                return 0
            self._share.check_lease()
            return self._limit

    def _demand(self, share: PoolShare) -> Demand:
        """Return what attempts here need of it, as far as it has so much."""
        from asyncflow._core.pools.shares import Demand  # those that ask have loaded it

        with self._lock:
            was_moving, self._is_moving = self._is_moving, True  # the collector may release slots
            try:
                head, waiting = None, 0
                for ticket in self._waiting_tickets():
                    if ticket.stands_still or not share.is_for(ticket.clock):
                        continue
                    head = head or ticket
                    waiting += ticket.slots
                    if self._in_use + waiting >= self._size:
                        break
                if self._keys is not None:
                    head = self._keys.next()
            finally:
                self._is_moving = was_moving
            if self._released:
                self._settle()
            return Demand(self._in_use, waiting, head, share.owes())

    def _set_rates(
        self, per_second: float | None, per_minute: float | None, tokens: float | None
    ) -> None:
        if per_second is not None and per_minute is not None:
            given, other = ("per_second", "per_minute")[:: 1 if self.per_second is None else -1]
            raise ValueError(
                f"{self.title} has one rate of starts: set {other} to None before {given}"
            )
        self._is_moving = True
        try:
            self._gates.set_rates(per_second, per_minute, tokens)
        finally:
            self._is_moving = False
        self._settle()

    def _begin_anew(self) -> None:
        """Forget what runs have left: slots taken, the budget spent, pauses and starts.

        Its numbers stay, and so do those who wait. A simulated run begins with it.
        """
        with self._lock:
            self._era += 1
            self._in_use = 0
            self._retries.begin_anew()
            if self._keys is not None:
                self._keys.take_back_all()
            self._gates.begin_anew()
        self._settle()

    def _begin_in_child(self) -> None:
        """Forget the attempts of the process that was forked, which hold slots or wait there."""
        self._lock = threading.RLock()  # a thread that is gone may have held the other one
        self._is_moving = False
        self._era += 1
        for ticket in self._waiting_tickets():
            ticket._is_done, ticket._call = True, None
        self._in_use = 0
        self._line, self._keys, self._released = [], None, deque()
        self._watchers = WeakSet()
        self._share, self._limit = None, self._size
        self._gates.leave_share()
        self._retries.begin_in_child()

    # The line.

    def _waiting_tickets(self) -> Iterable[PoolTicket]:
        return [each[-1] for each in self._line] if self._keys is None else self._keys

    def _use_keys(self) -> KeyedLine:
        """Go on with a line in which keys take turns."""
        from asyncflow._core.pools.keys import KeyedLine  # few pools have one

        self._keys = KeyedLine(self._per_key, self._ages)
        for *_, ticket in self._line:
            self._keys.add(ticket)
        self._line = []
        return self._keys

    def _take(self, slots: int = 1) -> PoolTicket | None:
        """Take slots at once, unless something has to be waited for or counted."""
        with self._lock:
            if self._share is not None:
                self._share.check_lease()
            if (
                self._gates.may_hold
                or self._line
                or self._keys
                or self._in_use + slots > self._limit
            ):
                return None
            self._in_use += slots
            return PoolTicket(self, slots, age=next(self._ages))

    def _give_back(self, ticket: PoolTicket) -> bool:
        """Take slots back if no other attempt waits for them; return whether it did."""
        with self._lock:
            if (
                self._line
                or self._gates.may_hold
                or not ticket.has_slots
                or ticket._era != self._era
            ):
                return False
            if self._keys is not None and (self._keys or ticket.key is not None):
                return False
            ticket._is_done, ticket.has_slots = True, False
            self._in_use -= ticket.slots
        return True

    def _waits_below(self, priority: int) -> bool:
        """Whether attempts wait in its line, and all of them are less urgent than that."""
        if not self._line and not self._keys:
            return False
        with self._lock:
            if self._keys:
                return self._keys.highest_priority() < priority
            return bool(self._line) and self._line[0][0] > -priority

    def _join(
        self,
        clock: Clock,
        call: Call,
        *,
        slots: int = 1,
        tokens: float = 0.0,
        priority: int = 0,
        age: int | None = None,
        key: str | None = None,
        shown_key: str = "",
        run: object = None,
    ) -> PoolTicket:
        """Join the line; the ticket may have its slots when this returns.

        With the ``age`` of an earlier ticket, it has the place of that. Among those with a ``key``,
        runs take turns, too. ``shown_key`` is what displays call the key.
        """
        age = next(self._ages) if age is None else age
        ticket = PoolTicket(
            self, slots, age=age, tokens=tokens, priority=priority, clock=clock, call=call
        )
        ticket.key, ticket.shown_key, ticket.run = key, shown_key, run
        ticket.before = NO_START, NO_START
        with self._lock:
            self._is_moving = True
            try:
                keys = self._keys
                if keys is None and key is not None:
                    keys = self._use_keys()
                if keys is None:
                    insort(self._line, (-priority, age, ticket))
                else:
                    keys.add(ticket)
            finally:
                self._is_moving = False
        self._settle()
        share = self._share
        if share is not None and not ticket.has_slots:
            share.ask()
        return ticket

    def _settle(self) -> None:
        """Take back what was released, and let the line move up."""
        with self._lock:
            while not self._is_moving:  # else the collector has called, in the midst of a change
                self._is_moving = True
                try:
                    while self._released:
                        ticket, unused = self._released.popleft()
                        self._take_back(ticket, unused=unused)
                    self._move_up()
                finally:
                    self._is_moving = False
                if not self._released:
                    return

    def _take_back(self, ticket: PoolTicket, *, unused: bool) -> None:
        """Take back what a ticket holds: its place in line, or its slots."""
        if ticket._is_done:
            return
        ticket._is_done, ticket._call = True, None
        keys = self._keys
        if not ticket.has_slots:
            if keys is None:
                del self._line[bisect_left(self._line, (-ticket.priority, ticket.age))]
            else:
                keys.remove(ticket)
            return
        ticket.has_slots = False
        if ticket._era != self._era:
            return
        self._in_use -= ticket.slots
        if keys is not None:
            keys.take_back(ticket)
        if unused:
            self._gates.give_back(ticket)

    def _move_up(self) -> None:
        """Let those at the head of the line have their slots, as far as that is possible.

        An attempt whose event loop was stopped can't start, so it is passed over until that runs.
        """
        at, line, keys = 0, self._line, self._keys
        if self._share is not None:
            self._share.check_lease()
        while True:
            if keys is not None:
                ticket = keys.next()
            elif at < len(line):
                ticket = line[at][-1]
            else:
                return
            if ticket is None:
                return
            limit, size = self._limit, self._size
            if self._share is not None and self._share.is_for(ticket.clock):
                size = min(size, self._share.size)
            elif self._share is not None:
                limit = size  # by a virtual clock, it is an ordinary pool
            if self._in_use + ticket.slots > limit and (
                self._in_use or limit < min(ticket.slots, size)
            ):
                return
            if ticket.stands_still:
                if not (ticket._is_passed_over or ticket._tell_to_look()):
                    self._take_back(ticket, unused=True)  # its event loop is closed
                elif keys is not None:
                    keys.set_aside(ticket)
                else:
                    at += 1
                continue
            opens_s = self._gates.look(ticket) if self._gates.may_hold else None
            if opens_s is None:
                if keys is not None:
                    keys.grant(ticket)
                else:
                    del line[at]
                self._grant(ticket)
            if not ticket._tell(opens_s):
                self._take_back(ticket, unused=True)  # its event loop is closed
            elif opens_s is not None:
                return

    def _grant(self, ticket: PoolTicket) -> None:
        self._in_use += ticket.slots
        ticket.has_slots, ticket._era = True, self._era
        if self._gates.are_rated:
            self._gates.take(ticket)

    # When the head may start.

    def _lend_start(self, ticket: PoolTicket) -> None:
        """Let another attempt have the start of one that has slots and waits for more."""
        if not self._gates.are_rated or not self._gates.has_one_of(ticket):
            return
        with self._lock:
            self._is_moving = True
            try:
                ticket.has_start = False
                self._gates.give_back(ticket)
            finally:
                self._is_moving = False
        self._settle()

    def _claim_start(self, ticket: PoolTicket) -> bool:
        """Return whether an attempt that has slots may start now, as far as pause and rate allow.

        It has its start, or takes another if it has lent that.
        """
        if ticket.has_start:
            may_hold = self._gates.may_hold
            return not may_hold or self._pause_of(ticket.clock or present_clock()) is None
        with self._lock:
            self._is_moving = True
            try:
                ticket.has_start = self._gates.look(ticket) is None
                if ticket.has_start:
                    self._gates.take(ticket)
            finally:
                self._is_moving = False
        self._settle()
        return ticket.has_start

    def _look(self, clock: Clock, at_s: float, ticket: PoolTicket | None = None) -> None:
        """Judge the head again, since the time has come at which a ticket asked for that."""
        with self._lock:
            if self._keys is not None and ticket is not None:
                self._is_moving = True
                try:
                    self._keys.put_back(ticket)
                finally:
                    self._is_moving = False
            self._gates.vouch(clock, at_s)
        self._settle()

    def _pause(self, clock: Clock, until_s: float, by: str) -> None:
        """Let no attempt of a clock start before this time; the longer pause wins."""
        with self._lock:
            if not self._gates.pause(clock, until_s, by):
                return
            watchers, share = list(self._watchers), self._share
        self._settle()
        for watcher in watchers:
            watcher.note_pause(self)
        if share is not None:
            share.note_pause(clock, until_s, by)

    def _pause_all(self, pause: CommonPause, own: Clock) -> None:
        """Let no attempt start before then, by whatever clock; ``own`` is that of the caller."""
        with self._lock:
            clocks = [
                ticket.clock for ticket in self._waiting_tickets() if ticket.clock is not None
            ]
            self._gates.pause_all(pause, [own, *clocks])

    def _watch(self, watcher: Watcher) -> None:
        """Report each pause that begins, for as long as the watcher exists."""
        with self._lock:
            self._watchers.add(watcher)

    def _pause_of(self, clock: Clock) -> PoolPause | None:
        """Return the pause of a clock, if the pool is paused."""
        with self._lock:
            return self._gates.pause_of(clock) if self._gates.may_hold else None

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a Pool belongs to its process and can't be pickled or copied: make one where it is "
            "used, such as at the top of a module, and share the object"
        )

    def __repr__(self) -> str:
        options = [str(self.size)]
        for name in ("per_second", "per_minute", "tokens_per_minute", "retry_budget", "per_key"):
            value = getattr(self, name)
            options += [] if value is None else [f"{name}={value:g}"]
        options += [] if self.pauses else ["pauses=False"]
        options += [] if self.name is None else [f"name={self.name!r}"]
        options += ["shared=True"] if self.shared else []
        state = f"{self._in_use} in use, {self.waiting} waiting"
        return f"<Pool({', '.join(options)}): {state}>"


def _check_size(size: object) -> None:
    hint = "; to let nothing start for a while, pause it: pool.pause(ms)"
    check_count("a pool's size", size, 1, hint=hint)


def _check_rate(name: str, rate: object) -> None:
    if rate is None:
        return
    if isinstance(rate, bool) or not isinstance(rate, int | float):
        raise TypeError(f"a pool's {name} must be a number or None, not {type(rate).__name__}")
    if not 1 / sys.float_info.max < rate <= sys.float_info.max:
        raise ValueError(f"a pool's {name} must be finite and above 0, not {safe_text(str, rate)}")


def _check_shared(shared: object, name: str | None, per_key: int | None) -> None:
    if not isinstance(shared, bool):
        raise TypeError(f"a pool's shared must be True or False, not {safe_text(repr, shared)}")
    if shared and not name:
        raise ValueError(
            "a shared pool needs a name, by which processes know it: Pool(8, name='openai', "
            "shared=True)"
        )
    if shared and per_key is not None:
        raise ValueError(
            "per_key of a shared pool holds in one process only: leave it out; keys of runs hold "
            "over processes: service.enqueue(..., key='acme')"
        )


class PoolTicket:
    """A place in the line of a pool, and then slots of it, until it is released."""

    __slots__ = (
        *("_call", "_era", "_is_done", "_is_passed_over", "_pool", "age", "before", "clock"),
        *("has_slots", "has_start", "key", "priority", "run", "shown_key", "slots"),
        *("started_s", "tokens"),
    )

    shown_key: str
    """What displays call its key. Those that had to wait have it, and the next."""
    run: object
    """Stands for the run that takes turns with others."""
    before: tuple[CountedStart, CountedStart]
    """The starts that counted when it took its own: for the rate of starts, and of tokens."""

    def __init__(
        self,
        pool: Pool,
        slots: int,
        *,
        age: int,
        tokens: float = 0.0,
        priority: int = 0,
        clock: Clock | None = None,
        call: Call | None = None,
    ) -> None:
        self._pool = pool
        self._call = call
        self._era = pool._era
        self._is_done = self._is_passed_over = False
        self.slots = slots
        self.tokens = tokens
        self.priority = priority
        self.age = age
        self.clock = clock
        """The clock of the waiting attempt; ``None`` if it never had to wait."""
        self.has_slots = call is None
        self.has_start = True
        """Whether the start that comes with its slots is still its own."""
        self.started_s = -math.inf
        """When it took its start, by the pace of its gate."""
        self.key: str | None = None

    @property
    def is_waiting(self) -> bool:
        """Whether it is in line."""
        return not (self._is_done or self.has_slots)

    @property
    def is_gated(self) -> bool:
        """Whether an attempt of the pool may have to wait although there are slots."""
        return self._pool._gates.may_hold

    @property
    def is_at_limit(self) -> bool:
        """Whether it waits since its key has all the slots that one may have."""
        keys = self._pool._keys
        with self._pool._lock:
            if keys is None or self._is_done or self.has_slots:
                return False
            return not keys.has_room(self)

    def lend_start(self) -> None:
        """Let another attempt start instead, while this one has its slots and waits for more."""
        self._pool._lend_start(self)

    def claim_start(self) -> bool:
        """Return whether it may start now that it has all else; if not, release it."""
        return self._pool._claim_start(self)

    def renew(self) -> bool:
        """Become the ticket of another attempt, if no other waits for the slots."""
        pool = self._pool
        if pool._line or pool._keys or pool._gates.may_hold or self._era != pool._era:
            return False
        share = pool._share
        if share is not None:
            with pool._lock:
                share.check_lease()
        if pool._in_use > pool._limit:
            return False  # it has been made smaller, or another process is to have the slots
        self.age = next(pool._ages)
        return True

    @property
    def stands_still(self) -> bool:
        """Whether the event loop of the waiting attempt was stopped."""
        is_running = None if self.clock is None else self.clock.is_running
        return is_running is not None and not is_running()

    def look(self, at_s: float) -> None:
        """Let the pool look again, since the time has come at which it asked for that."""
        assert self.clock is not None
        self._is_passed_over = False
        self._pool._look(self.clock, at_s, self)

    def _tell_to_look(self) -> bool:
        """Let the attempt look as soon as its event loop runs again; return whether it can."""
        assert self.clock is not None
        self._is_passed_over = True
        return self._tell(self.clock.now_s())

    def _tell(self, at_s: float | None) -> bool:
        """Call back; return whether that was possible."""
        call = self._call
        assert call is not None
        if at_s is None:
            self._call = None
        try:
            call(at_s)
        except RuntimeError:
            return False
        return True

    def release(self, *, unused: bool = False) -> None:
        """Leave the line, or give the slots to the next in it. Only the first call counts.

        ``unused`` says that no attempt has started, so that its start and its tokens are free too.
        """
        pool = self._pool
        if not self._is_done and not pool._give_back(self):
            pool._released.append((self, unused))
            pool._settle()

    def __del__(self) -> None:
        # A task that never begins, because its loop was given up, can't release what it was given.
        if self.has_slots:
            self.release(unused=True)


for _public in (Pool, PoolKeyStats, PoolStats):
    _public.__module__ = "asyncflow"  # where users know them from
