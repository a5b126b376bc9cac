"""The steps of a run that wait for signals: what is sent to them, and when their deadlines expire.

Rules:

1. A step that waits has no task. Only this makes its end an event, in a turn of its own, and only
   while the step still waits: the run may have stopped in the same turn.
2. With a journal, a signal and the expiry of its deadline compete there: the first one counts. This
   reads what there is, and decides nothing by itself.
3. Without one, or with a journal that takes no signals, what is sent is kept here.
4. Deadlines count by the wall clock, because they outlive the process.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from asyncflow._core.arguments import reject_awaitable
from asyncflow._core.errors import (
    JournalError,
    PayloadError,
    RunNotFoundError,
    StepTimeoutError,
)
from asyncflow._core.history.results import Payload, SignalAnswer, StepStatus
from asyncflow._core.pipeline.signal import LONGEST_DESCRIPTION, Always, take
from asyncflow._core.pipeline.step import Fallback, WorkflowStep
from asyncflow._core.running.step_runs import Phase
from asyncflow._core.same_value import is_same_value
from asyncflow._core.text import cut, describe_error, did_you_mean, safe_text
from asyncflow._core.tracebacks import strip_internal_frames
from asyncflow._core.value_size import safe_repr
from asyncflow._kernel.asyncio_compat import FAILURES, wall_clock
from asyncflow._kernel.outcome import raised_by, step_succeeded
from asyncflow._kernel.policy import Causes, Policy
from asyncflow._kernel.run_scope import Parts
from asyncflow._policies.durable import RunPersistence, SignalSession
from asyncflow.events import SignalReceived, StepWaiting

if TYPE_CHECKING:
    from asyncflow._policies.run_deadline import RunDeadline

_AGAIN_S = 1.0
"""When to poll the journal again if it has refused a poll, as a locked file does."""

_LONGEST_DEFAULT = 200
"""How many characters of a default are stored with a wait, for people."""

_NOT_RECEIVED = "a signal could not be received"
_IS_LATE = "comes too late: its deadline has expired"
_HAS_ANOTHER = "has another value already; the first one counts"

_log = logging.getLogger("asyncflow")


def _asked(describe: Callable[..., Any], arguments: Mapping[str, Any]) -> str:
    """Return what a function says is asked; raise what it raises, or `TypeError`."""
    text = reject_awaitable("it", describe(**arguments))
    if not isinstance(text, str):
        raise TypeError(f"it must return a str, not {type(text).__name__}")
    return text


def _otherwise(fallback: Fallback | None) -> str:
    """Return what follows when a deadline expires, in words that complete "then …"."""
    if fallback is None:
        return "the step fails"
    if isinstance(fallback, Always):
        return f"the answer is {cut(safe_repr(fallback.value), _LONGEST_DEFAULT)}"
    return "its fallback decides"


class _SentHere(NamedTuple):
    """A value that was sent to the process."""

    value: Any
    payload: Payload | None = None
    """How it is stored, if it is."""
    sent: tuple[float, str, str] = (0.0, "", "")
    """When and by whom, and the note."""


class Waits(Policy):
    """The policy of a run with steps that wait.

    With ``may_suspend``, the run ends its segment when nothing is left but to wait, if it has a
    journal that takes signals.
    """

    arguments = frozenset({"signal"})

    def __init__(
        self, parts: Parts, persistence: RunPersistence | None, *, may_suspend: bool
    ) -> None:
        scope = self._scope = parts.scope
        self._run = parts.run
        self._dispatcher = parts.dispatcher
        self.deadline: RunDeadline | None = None
        """That of the run, which does not count while it only waits."""
        self._state = scope.state
        self._steps = scope.plan.steps
        signals = [self._steps[at].signal for at in scope.plan.signals]
        self.calls_users_code = any(callable(each.description) for each in signals if each)
        self._now_ms = scope.run_context.now_ms
        self._wall_s = wall_clock()
        snapshot = scope.start.snapshot
        self._before = {} if snapshot is None else dict(snapshot.replay.signals.waits)
        """The waits of earlier segments, by step."""
        self._asked = {} if snapshot is None else snapshot.replay.signals.all_schemas
        """The schemas of signals that versions of the pipeline have asked for, by step."""
        sent = {} if snapshot is None else snapshot.replay.signals.sent
        self._sent: dict[str, SignalAnswer | None] = {
            name: answer for name, answer in sent.items() if answer is not None
        }
        """What the journal has received for steps that have not taken it, by name."""
        self._persistence = persistence
        self._mailbox: SignalSession | None = None
        if persistence is not None and persistence.takes_signals:
            self._mailbox = cast("SignalSession", persistence.session)
        self._kept: dict[str, _SentHere] = {}
        """What was sent to the process, by name."""
        self._timers: dict[int, asyncio.TimerHandle] = {}
        self._expired: list[str] = []
        """The steps whose expiry is not stored yet."""
        self._late: set[str] = set()
        """The steps that have ended because their deadline expired."""
        self.is_held = False
        """Whether nothing is taken yet, since the resources are not open."""
        self._on_news: Callable[[], object] | None = None
        """What opens them."""
        self._takes_soon = self._is_reading = self._must_poll = self._is_closed = False
        self._task: asyncio.Task[None] | None = None
        """What polls the journal."""
        self._again: asyncio.TimerHandle | None = None
        """The next poll after one that the journal has refused."""
        if self._mailbox is not None:
            self._mailbox.on_signal(self._poll_soon)
        self._may_suspend = may_suspend and self._mailbox is not None
        self._may_leave = self._mailbox is not None and not scope.plan.keeps_waiting
        """Whether another process may continue the run when it has waited."""

    def on_idle(self) -> bool:
        # Unless something may have come that was not polled yet.
        if self._takes_soon or self._is_reading or not self._only_waits():
            return False
        self._state.readiness.skip_lost()  # so that people see which answers still matter
        if self._state.queue.is_dirty:
            self._run.let_start()  # nothing is held while the run is idle
            return False
        if self.deadline is not None:
            self.deadline.rest()
        return self._may_suspend

    def _only_waits(self) -> bool:
        """Whether nothing is left but to wait."""
        state = self._state
        return bool(state.awaiting) and state.stop_reason is None and self._run.is_idle()

    def stay(self) -> None:
        """Let no other process continue the run, which is nested in another one."""
        self._may_leave = False

    def suspend(self) -> bool:
        """End the segment now, if nothing is left but to wait; return whether it ends."""
        if not self.is_held and not (self._may_leave and self._only_waits()):
            return False
        self._may_suspend = True
        self._run.let_start()
        self._close()  # what may have come is for the next segment
        self.on_stopped()
        self._run.advance()
        return True

    def hold(self, on_news: Callable[[], object]) -> bool:
        """Take nothing until `release`, and call a function when something has come.

        Return False if the run does not only wait, as it has done in an earlier segment.
        """
        if not (self._may_leave and self._begins_with_waits()):
            return False
        self.is_held, self._on_news = True, on_news
        return True

    def _begins_with_waits(self) -> bool:
        """Whether nothing may start but signals that earlier segments have waited for."""
        state, plan, snapshot = self._state, self._scope.plan, self._scope.start.snapshot
        if snapshot is None or state.readiness.unreachable:
            return False
        begun, queued = snapshot.steps_begun(), (Phase.READY, Phase.QUEUED)
        nodes = [node for node, phase in enumerate(state.step_runs.phases) if phase in queued]
        return (
            bool(nodes)
            and all(node in plan.signals for node in nodes)
            and all(self._steps[at].name in begun for at in [*nodes, *state.readiness.unasked])
        )

    def release(self) -> None:
        """Take what has come, if nothing could be taken."""
        if self.is_held:
            self.is_held, self._on_news = False, None
            self._take_soon()

    def on_admit(self, node: int, step: WorkflowStep) -> bool:
        """Let a step wait whose turn has come, since then or since an earlier segment."""
        name = step.name
        before = self._before.pop(name, None)
        if before is not None:
            self._announce(node, before.since, before.description)
        else:
            self._begin(node, step)
        if name in self._sent or name in self._kept:
            self._take_soon()
        elif self._mailbox is not None:
            self._poll_soon()
        return False

    def _call_soon(self, call: Callable[[], None]) -> None:
        # In a copy: what follows the end of a step enters the context itself.
        self._scope.loop.call_soon(call, context=self._scope.context.copy())

    def on_stopped(self) -> None:
        # If the journal has failed, nothing else would end the poll.
        if self._task is not None:
            self._task.cancel()

    async def on_close(
        self, causes: Causes, on_cancel: Callable[[asyncio.CancelledError], object]
    ) -> None:
        self._close()

    def on_end(self) -> None:
        self._close()  # a run whose group has failed was not closed

    def on_ended(self) -> None:
        self.deadline = self._on_news = None  # both lead back, by way of the resources

    def _close(self) -> None:
        """Take nothing more: what comes from now on is for the next segment."""
        self._is_closed = True
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        if self._again is not None:
            self._again.cancel()

    def _begin(self, node: int, step: WorkflowStep) -> None:
        """Let a step wait from now on, with what it asks."""
        since = self._wall_s()
        try:
            self._announce(node, since, self._described(node, step))
        except Exception:
            raise  # a bug of asyncflow
        except BaseException as error:  # a KeyboardInterrupt or the like of the description
            strip_internal_frames(error)
            self._announce(node, since, "")  # before the run stops, which ends each wait
            by = raised_by(f"the description of signal {step.name!r}", error)
            self._run.interrupt(error, by)

    def _described(self, node: int, step: WorkflowStep) -> str:
        """Return what a step asks whose turn has come, without secrets."""
        assert step.signal is not None
        asks, scope = step.signal.description, self._scope
        if callable(asks):
            try:
                asks = scope.context.copy().run(_asked, asks, scope.data.of_action(node))
            except FAILURES as error:
                strip_internal_frames(error)
                _log.warning(
                    "the description of signal %r failed, so run %r waits without: %s",
                    *(step.name, scope.run_id, describe_error(error)),
                    exc_info=error,
                )
                return ""
        return cut(self._public(asks or ""), LONGEST_DESCRIPTION)

    def _public(self, text: str) -> str:
        secrets = self._scope.run_context.secrets
        return text if secrets is None else secrets.replaced(text)

    def _announce(self, node: int, since: float, description: str, refused: str = "") -> None:
        step, now_ms, deadline_ms = self._steps[node], self._now_ms(), self._steps[node].deadline_ms
        otherwise = "" if deadline_ms is None else self._public(_otherwise(step.fallback))
        self._dispatcher.emit(
            StepWaiting(step.name, now_ms, since, deadline_ms, refused, description, otherwise)
        )
        if step.deadline_ms is not None and node not in self._timers:
            self._expire_in_time(node)

    # Deadlines.

    def _expire_in_time(self, node: int) -> None:
        """Let the deadline of a step expire when it must; the wall clock may have been set."""
        self._timers.pop(node, None)
        wait = self._state.awaiting.get(node)
        if wait is None or wait.until is None:
            return
        left_s, loop = wait.until - self._wall_s(), self._scope.loop
        if left_s > 0:
            context = self._scope.context.copy()
            timer = loop.call_later(left_s, self._expire_in_time, node, context=context)
            self._timers[node] = timer
        elif self._mailbox is not None:
            self._expired.append(wait.step)
            self._poll_soon()
        else:
            self._time_out(node)

    def _time_out(self, node: int) -> None:
        step = self._steps[node]
        if self._wakes(node):
            assert step.deadline_ms is not None
            self._late.add(step.name)
            self._run.fail(node, StepTimeoutError(step.name, 0, step.deadline_ms, "step"))

    def _wakes(self, node: int) -> bool:
        """Whether a step still waits, which is about to end."""
        if node not in self._state.awaiting or self._state.stop_reason is not None:
            return False
        if self.deadline is not None:
            self.deadline.resume()
        return True

    def _succeed(self, node: int, output: Any, sent: tuple[float, str, str]) -> None:
        step, now_ms = self._steps[node], self._now_ms()
        self._dispatcher.emit(SignalReceived(step.name, now_ms, *sent))
        self._dispatcher.emit(step_succeeded(step, 0, now_ms, output))

    # What is sent.

    async def send(self, name: str, value: Any, sent_by: str | None, note: str) -> None:
        """Take a value that is sent by way of the handle of the run.

        Raise `ValueError` if the pipeline has no such signal, its type is another one, or another
        value was sent before.
        """
        plan, persistence, run_id = self._scope.plan, self._persistence, self._scope.run_id
        node = plan.index.get(name)
        step = None if node is None else self._steps[node]
        if node is None or step is None or (signal := step.signal) is None:
            names = [self._steps[at].name for at in sorted(plan.signals)]
            hint = did_you_mean(name, names)
            raise ValueError(f"run {run_id!r} waits for no signal {name!r}{hint}")
        given, value = value, take(signal, name, value)
        end = self._state.result(node)
        if end is not None and end.status is StepStatus.SUCCESS:
            # It need not have been sent: it is the default, or a rerun has reused it.
            self._kept.setdefault(name, _SentHere(end.output))
        is_late = name in self._late or (end is not None and end.fell_back)
        if name in self._kept:
            if not is_same_value(self._kept[name].value, value):
                why = _IS_LATE if is_late else _HAS_ANOTHER
                raise ValueError(f"signal {name!r} of run {run_id!r} {why}")
            return
        payload = None if persistence is None else persistence.output(name, step, value)
        if self._mailbox is not None and not (end is not None and end.by_condition):
            assert persistence is not None
            stored = persistence.sent(name, given)
            await self._mailbox.send(name, SignalAnswer(stored, 0.0, sent_by or "", note))
            return
        if is_late:
            raise ValueError(f"signal {name!r} of run {run_id!r} {_IS_LATE}")
        if end is not None:
            problem = safe_text(str, end.error) if end.error is not None else end.reason
            raise ValueError(
                f"signal {name!r} of run {run_id!r} takes no value any more: {problem}"
            )
        process = self._scope.start.event.process
        self._kept[name] = _SentHere(value, payload, (self._wall_s(), sent_by or process, note))
        self._take_soon()

    def _take_soon(self) -> None:
        self._takes_soon = True
        self._call_soon(self._take_all)

    def _take_all(self, *, has_read: bool = False) -> None:
        """Let the steps that wait take what was sent to them."""
        self._takes_soon = False
        # What they refuse now, a poll that is under way could bring once more.
        may_take = not self._is_closed and (has_read or not self._is_reading)
        try:
            if may_take and self.is_held:
                self._note_news()
                may_take = False
            for node, wait in list(self._state.awaiting.items()) if may_take else ():
                if wait.step in self._sent:
                    self._take(node, wait, self._sent.pop(wait.step))
                elif wait.step in self._kept and self._wakes(node):
                    value, payload, sent = self._kept[wait.step]
                    if payload is not None and self._persistence is not None:
                        self._persistence.payloads[wait.step, None] = payload
                    self._succeed(node, value, sent)
        except BaseException as bug:
            self._run.broken(bug, _NOT_RECEIVED)
        self._run.advance()

    def _note_news(self) -> None:
        """Let the resources be opened if something has come."""
        waiting = {wait.step for wait in self._state.awaiting.values()}
        if self._on_news is not None and waiting & (self._sent.keys() | self._kept.keys()):
            on_news, self._on_news = self._on_news, None
            if self.deadline is not None:
                self.deadline.resume()
            on_news()

    def _poll_soon(self) -> None:
        """Read what the journal has received, once more if that is being done."""
        self._must_poll = True
        if not (self._is_reading or self._is_closed) and self._state.awaiting:
            self._is_reading = True
            name = f"asyncflow:{self._scope.run_id}:signals"
            context = self._scope.context.copy()
            poll = self._poll()
            self._task = self._run.start_task(poll, name=name, context=context)
            # It may be cancelled before its first line.
            self._task.add_done_callback(partial(self._polled, poll), context=context)

    async def _poll(self) -> None:
        mailbox = self._mailbox
        assert mailbox is not None
        try:
            while self._must_poll and self._state.awaiting:
                self._must_poll = False
                if self._expired:
                    await mailbox.flush()  # or what is void would count as the first
                while self._expired:
                    await mailbox.send(self._expired[0], None)
                    del self._expired[0]  # not the last one, which may have come meanwhile
                self._sent.update(await mailbox.receive())
                self._take_all(has_read=True)
        except asyncio.CancelledError:
            self._must_poll = True  # the run stops, or another task of the caller did this
        except (JournalError, RunNotFoundError) as error:
            # What was sent is safe there, so the run must not end. If its journal has failed for
            # good, or another process has taken over the run and deleted it, its session stops it.
            _log.warning(
                "run %r could not read its signals and tries again: %s", self._scope.run_id, error
            )
            if self._again is not None:
                self._again.cancel()
            if not self._is_closed:
                loop, context = self._scope.loop, self._scope.context.copy()
                self._again = loop.call_later(_AGAIN_S, self._poll_soon, context=context)
        except BaseException as bug:
            self._run.broken(bug, _NOT_RECEIVED)

    def _polled(self, poll: Coroutine[Any, Any, None], _: object) -> None:
        poll.close()
        self._is_reading, self._task = False, None
        if self._must_poll and self._state.stop_reason is None:
            self._poll_soon()  # it came after the last poll
        self._take_all()

    def _take(self, node: int, wait: StepWaiting, answer: SignalAnswer | None) -> None:
        """Take what was sent to a step; ``None`` stands for its expired deadline."""
        persistence = self._persistence
        assert persistence is not None
        if answer is None:
            if self._steps[node].deadline_ms is None:
                why = "its deadline was removed from the pipeline"
                self._announce(node, wait.since, wait.description, why)
            else:
                self._time_out(node)
            return
        payload = answer.payload
        try:
            value = persistence.received(wait.step, payload)
            step = self._steps[node]
            for hook in self._dispatcher.hooks.of_nodes[step.given].on_output:
                hook(node, step, value)
        except PayloadError as error:
            if persistence.is_for_another_version(
                wait.step, payload, self._asked.get(wait.step, ())
            ):
                # It came while this process took over the run. The row stays, and the run is due.
                _log.error(
                    "run %r leaves what it has received to another version of its pipeline, which "
                    "has asked for it: %s",
                    *(self._scope.run_id, error),
                )
            else:
                self._announce(node, wait.since, wait.description, str(error))
            return
        if self._wakes(node):
            self._succeed(node, value, (answer.sent_at, answer.sent_by, answer.note))
