"""What a policy may do to a run: the hooks that the run and its parts call.

Rules:

1. A policy is one object a run. It has its own state, and the run knows none by name.
2. A hook is a method whose name begins with ``on_``. A policy overrides those it needs; another
   name that begins so is an error when the class is made, not a hook that never runs.
3. Hooks are called in the order in which `asyncflow._policies.policies` lists the policies. That is
   where each order that matters has its reason.
4. A hook that raises is a bug of asyncflow: it ends the run, which awaits its steps and raises that
   error. Only what ``on_call``, ``on_output`` and ``on_rescue`` raise is a failure of the node.
5. What a policy may ask of the run is a `asyncflow._kernel.run_scope.Host`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, ClassVar, Concatenate, ParamSpec, TypeAlias, TypeVar

from asyncflow._core.errors import JournalError, RunCancelledError
from asyncflow.events import AttemptStarted, Event

if TYPE_CHECKING:
    from asyncflow._core.pipeline.step import WorkflowStep

P = ParamSpec("P")
R = TypeVar("R")

Call: TypeAlias = Callable[[], Awaitable[Any]]
"""Calls the action of an attempt."""


class NoAttempt(Enum):
    """Why a node makes no attempt that has waited for one."""

    HAS_ENDED = auto()
    """Its end is reported."""
    IS_PARKED = auto()
    """It has no task from now on, and starts again when the state queues it again.

    That is for its first attempt alone. Nothing is told to other policies: one whose gate it has
    passed keeps what it has given to the node.
    """


Passage: TypeAlias = NoAttempt | Exception | None
"""What a wait of a node leads to: ``None`` is an attempt, and an error is what the node fails with
for good."""


class Causes:
    """What has ended a run early: the first of each kind."""

    interruption: BaseException | None = None
    """What ends the program, the failure of the journal, or a bug of asyncflow."""
    cancellation: asyncio.CancelledError | None = None
    """That of the caller."""
    cancelled: RunCancelledError | None = None
    """The run itself was cancelled or drained."""

    def first(self) -> BaseException | None:
        """Return what the run raises, if anything."""
        if self.cancellation is not None and isinstance(self.interruption, JournalError):
            return self.cancellation  # one from outside always gets through
        for cause in (self.interruption, self.cancellation, self.cancelled):
            if cause is not None:
                return cause
        return None


class Policy:
    """What one policy does in one run. By default, a hook does nothing."""

    run_hooks: ClassVar[frozenset[str]] = frozenset()
    """The names of the hooks of the run that the class overrides."""
    node_hooks: ClassVar[frozenset[str]] = frozenset()
    """The same of nodes."""

    arguments: frozenset[str] = frozenset()
    """Nodes have its hooks whose step was given one of these arguments. Empty: all nodes have."""
    calls_users_code = False
    """Whether what it does before nodes start calls functions that belong to no step."""
    makes_attempts_elsewhere = False
    """Whether its attempts have a context of their own, which it enters itself."""

    def __init_subclass__(cls) -> None:
        names = {name for name in vars(cls) if name.startswith("on_")}
        for name in names:
            if not hasattr(Policy, name):
                raise TypeError(f"{cls.__name__}.{name} is no hook of a policy")
        cls.node_hooks |= {name for name in names if hasattr(NodeHooks, name)}
        cls.run_hooks |= {name for name in names if hasattr(Hooks, name)}

    # The run, in this order.

    def on_open(self) -> None:
        """The run opens, in the task that runs it: nothing was reported yet."""

    def on_begin(self) -> None:
        """It was reported that the run begins. What is reported here belongs to the same turn."""

    async def on_resume(self) -> None:
        """Nothing has started yet, and other tasks may get turns."""

    def on_watch(self) -> Callable[[], object] | None:
        """Nodes are about to run: begin with what must end with them, and return what ends it.

        What is returned is called even if the event loop is given up, the latest first.
        """
        return None

    def on_start(self) -> None:
        """The first nodes are about to start, in a run that was not cancelled before."""

    async def on_close(
        self, causes: Causes, on_cancel: Callable[[asyncio.CancelledError], object]
    ) -> None:
        """All nodes have ended. The causes say what the run raises so far.

        ``on_cancel`` takes the cancellation of the caller that comes meanwhile.
        """

    def on_end(self) -> None:
        """It is about to be reported that the run ends."""

    def on_ended(self) -> None:
        """That was reported, or the run is broken and has no end. Let go of the run."""

    async def on_release(self, causes: Causes) -> None:
        """Nothing is reported any more. What fails or cancels this joins the causes."""

    async def on_raise(self, raised: BaseException | None) -> BaseException | None:
        """Return what the run raises instead of this, or the same."""
        return raised

    # While nodes run.

    def on_advance(self) -> None:
        """Nodes are about to start, if any is ready. Others may become ready, or end."""

    def on_advanced(self) -> None:
        """All have started that were ready."""

    def on_settled(self, node: int, task: asyncio.Task[Any] | None) -> None:
        """A node has ended, in this task if it has had one, or will never start.

        If the run stops a node at a gate, this is called twice, as `on_over` is.
        """

    def on_idle(self) -> bool:
        """Nothing runs, and nodes are left. Return whether the run may end all the same.

        It may also report the end of nodes, or let others start.
        """
        return False

    def on_back_off(self) -> None:
        """A node is about to wait for its next attempt."""

    def on_stop(self) -> None:
        """The run is about to ask its nodes to stop."""

    def on_stopped(self) -> None:
        """It has asked them."""

    def on_broken(self) -> None:
        """The state may be wrong from here on: wait for nothing that it would have to tell."""

    def on_explain(self) -> str:
        """Return what else explains that the run stops now, for its reason."""
        return ""

    # Events.

    def on_event(self, event: Event) -> None:
        """An event is about to be applied to the state."""

    def on_applied(self, event: Event) -> None:
        """An event was applied to the state."""

    def on_attempt(self, running: AttemptStarted) -> None:
        """An attempt is about to call its action, in its context."""

    # A node, in this order: once before its task.

    def on_admit(self, node: int, step: WorkflowStep) -> bool:
        """Return whether a node starts, whose turn has come.

        If not, its end is reported (`Host.fail`), or will be.
        """
        return True

    def on_launch(self, node: int, step: WorkflowStep) -> Coroutine[Any, Any, None] | None:
        """Return the coroutine of a node's task, if that makes no attempts. It raises nothing."""
        return None

    def on_line_up(self, node: int, step: WorkflowStep) -> None:
        """A node is about to get its task, in this turn. It may join a line, before others do."""

    # Before each attempt, in the task of the node.

    def on_gate(
        self, node: int, step: WorkflowStep
    ) -> Callable[[], Coroutine[Any, Any, Passage]] | None:
        """Return what waits until a node may make an attempt; ``None`` if it may right now.

        A wait that a third party cancels begins again; only the run cuts it short. Gates are passed
        one after the other: one that was passed is not asked again before the next attempt, even if
        a later gate takes long. What must hold at the start of the attempt is the last gate, and
        must let go of what the node holds already.
        """
        return None

    def on_turn(self, node: int) -> None:
        """A node that is queued for its next attempt, and waits at a gate, has its turn."""

    # An attempt.

    def on_started(self, node: int, step: WorkflowStep) -> Callable[[], Awaitable[object]] | None:
        """The start of an attempt was reported; its limit does not count yet.

        Return what waits until it does, as a gate would; ``None`` if it does right now.
        """
        return None

    def on_abort(self, node: int) -> bool:
        """The run stops a node in such a wait. Return whether what was begun must still end.

        The attempt is made then, without a limit, to await that.
        """
        return False

    def on_call(self, call: Call, node: int, step: WorkflowStep, running: AttemptStarted) -> Call:
        """An attempt is about to call its action, within its limit.

        Return what is called instead, such as a coroutine function that awaits this call; or the
        same. The first policy is the innermost one. A call may be awaited more than once, also at
        the same time, but for that of an engine.
        """
        return call

    def on_output(self, node: int, step: WorkflowStep, output: Any) -> None:
        """A node is about to succeed with an output. What this raises, it fails with instead."""

    def on_retry_after(self, node: int, ended_ms: float, named_ms: float, is_retried: bool) -> None:
        """An attempt has failed, and its service has named a time for the next one.

        That is ``named_ms`` after the end of the attempt; ``is_retried`` says whether one follows.
        """

    def on_rescue(self, node: int, step: WorkflowStep, failure: Exception) -> Any:
        """Return the output with which a node succeeds, although it has failed for good.

        Or raise what it fails with: the same, or another error.
        """
        raise failure

    def on_attempted(self, node: int) -> None:
        """An attempt is over, its end is reported. What follows is in line, or may have started."""

    def on_hold(self, node: int, delay_ms: float, ends_ms: float) -> bool:
        """Return whether a gate of this policy waits for the delay before the next attempt.

        ``ends_ms`` is when it ends.
        """
        return False

    def on_over(self, node: int) -> None:
        """The task of a node is over, or it will get none. Not when it was parked.

        If the run stops a node at a gate, this is called at once, and once more when its task ends.
        """


def _none(hook: Callable[Concatenate[Any, P], R], /) -> tuple[Callable[P, R], ...]:
    """Return an empty tuple of what a hook is, bound to its policy."""
    return ()


class NodeHooks:
    """The hooks of all nodes whose steps were given the same arguments.

    Attributes:
        is_plain: Whether their attempts have a limit, and nothing else within it.
        is_direct: Whether in addition nothing happens before and after an attempt.
        makes_attempts_elsewhere: See `Policy`.
    """

    on_admit = _none(Policy.on_admit)
    on_launch = _none(Policy.on_launch)
    on_line_up = _none(Policy.on_line_up)
    on_gate = _none(Policy.on_gate)
    on_started = _none(Policy.on_started)
    on_abort = _none(Policy.on_abort)
    on_call = _none(Policy.on_call)
    on_output = _none(Policy.on_output)
    on_retry_after = _none(Policy.on_retry_after)
    on_rescue = _none(Policy.on_rescue)
    on_attempted = _none(Policy.on_attempted)
    on_hold = _none(Policy.on_hold)
    on_over = _none(Policy.on_over)

    def __init__(self, policies: Iterable[Policy], given: frozenset[str]) -> None:
        self.makes_attempts_elsewhere = False
        for policy in policies:
            if not policy.arguments or policy.arguments & given:
                _bind(self, policy, policy.node_hooks)
                self.makes_attempts_elsewhere |= policy.makes_attempts_elsewhere
        within = self.on_started or self.on_call or self.on_output
        self.is_plain = not (within or given & _WITHIN_ATTEMPTS)
        around = self.on_gate or self.on_attempted or self.on_over
        self.is_direct = self.is_plain and not around


_WITHIN_ATTEMPTS = frozenset({"deadline_ms", "until"})
"""What the kernel itself does within an attempt for steps that were given it."""


class _HooksByArguments(dict[frozenset[str], NodeHooks]):
    """The hooks of nodes, by the arguments that their step was given."""

    def __init__(self, policies: Sequence[Policy]) -> None:
        self._policies = policies

    def __missing__(self, given: frozenset[str]) -> NodeHooks:
        found = self[given] = NodeHooks(self._policies, given)
        return found


_NO_HOOKS = _HooksByArguments(())
"""Those of runs in which no policy has hooks of nodes, as most have none."""


class Hooks:
    """The hooks of a run: of each, those of the policies that override it, in their order.

    They are found once a run, so that a hook which no policy overrides costs nothing.
    """

    on_open = _none(Policy.on_open)
    on_begin = _none(Policy.on_begin)
    on_resume = _none(Policy.on_resume)
    on_watch = _none(Policy.on_watch)
    on_start = _none(Policy.on_start)
    on_close = _none(Policy.on_close)
    on_end = _none(Policy.on_end)
    on_ended = _none(Policy.on_ended)
    on_release = _none(Policy.on_release)
    on_raise = _none(Policy.on_raise)

    on_advance = _none(Policy.on_advance)
    on_advanced = _none(Policy.on_advanced)
    on_turn = _none(Policy.on_turn)
    on_settled = _none(Policy.on_settled)
    on_idle = _none(Policy.on_idle)
    on_back_off = _none(Policy.on_back_off)
    on_stop = _none(Policy.on_stop)
    on_stopped = _none(Policy.on_stopped)
    on_broken = _none(Policy.on_broken)
    on_explain = _none(Policy.on_explain)

    on_event = _none(Policy.on_event)
    on_applied = _none(Policy.on_applied)
    on_attempt = _none(Policy.on_attempt)

    def __init__(self, policies: Iterable[Policy] = ()) -> None:
        acting, self.calls_users_code = list[Policy](), False
        for policy in policies:
            _bind(self, policy, policy.run_hooks)
            if policy.node_hooks:
                acting.append(policy)
            if policy.calls_users_code:
                self.calls_users_code = True
        self.of_nodes = _HooksByArguments(acting) if acting else _NO_HOOKS
        """Those of the nodes of a step, by the arguments that it was given."""


NO_HOOKS = Hooks()
"""Those of a run before it has policies, and after its end."""


def _bind(hooks: object, policy: Policy, names: Iterable[str]) -> None:
    """Add the hooks of a policy that have these names to those of the policies before it."""
    for name in names:
        setattr(hooks, name, (*getattr(hooks, name), getattr(policy, name)))
