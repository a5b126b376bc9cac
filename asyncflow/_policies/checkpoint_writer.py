"""Brings the checkpoints of a run's steps from any thread to its journal.

A run without a journal does not load this module.

Rules:

1. A checkpoint is stored soon after the call, and with the end of its attempt: it may lag behind
   what the action did, and never leads. What a call by name returns is stored at once.
2. Both are deleted in the transaction that stores the success of their step, or that it reuses one.
3. What an attempt saves after its step has ended is dropped.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Iterable
from contextlib import suppress

from asyncflow._core.history.results import Key, Payload, StepStatus
from asyncflow._core.running.checkpoints import StoredCall
from asyncflow._kernel.policy import Policy
from asyncflow._kernel.run_scope import RunScope
from asyncflow._policies.durable import CheckpointSession
from asyncflow.events import (
    AttemptFailed,
    Event,
    StepCancelled,
    StepFailed,
    StepReused,
    StepSucceeded,
)

_STORE_S = 0.05
"""How long a checkpoint waits for a later one. The journal's transaction takes as long again."""

_ENDS = frozenset({AttemptFailed, StepFailed, StepCancelled, StepSucceeded, StepReused})


class CheckpointWriter(Policy):
    """The policy of a run that has a journal whose sessions take checkpoints."""

    def __init__(self, scope: RunScope, session: CheckpointSession) -> None:
        self._loop = scope.loop
        self._thread = threading.get_ident()
        self._context = scope.context
        """That of the run: a timer belongs to no attempt."""
        self._runs = scope.state.step_runs
        self._checkpoints = scope.run_context.checkpoints
        self._session = session
        self._secret = scope.start.event.secret
        """The steps whose checkpoints are not stored."""
        self._void = scope.start.void
        self._stored = {*scope.start.saved, *scope.start.called, *scope.start.void}
        """Those of which the journal has a checkpoint, or what a call returned."""
        self._has_any = bool(self._stored)
        """Whether a step has saved anything, in any process."""
        self._unstored: dict[Key, Payload] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._is_scheduled = False
        self._checkpoints.on_save = self._take
        if callable(getattr(type(session), "append_call", None)):
            self._checkpoints.store_call = self._store_call
            self._checkpoints.load_call = self._load_call

    def on_begin(self) -> None:
        self._discard(self._void)

    def _discard(self, keys: Iterable[Key]) -> None:
        """Delete stored checkpoints."""
        for key in keys:
            self._stored.discard(key)
            self._session.append_checkpoint(*key, None)

    def _take(self, key: Key, payload: Payload) -> None:
        """Take a checkpoint, in any thread. The caller holds the lock of the checkpoints."""
        if key[0] in self._secret:
            return
        self._unstored[key] = payload
        self._has_any = True
        if not self._is_scheduled:
            self._is_scheduled = True
            if threading.get_ident() == self._thread:
                self._schedule()
            else:
                with suppress(RuntimeError):  # the loop is closed
                    self._loop.call_soon_threadsafe(self._schedule, context=self._context)

    def _store_call(self, key: Key, name: str, stored: StoredCall) -> Awaitable[None]:
        self._stored.add(key)
        self._has_any = True
        return self._session.append_call(*key, name, stored)

    def _load_call(self, key: Key, name: str) -> Awaitable[StoredCall | None]:
        return self._session.load_call(*key, name)

    def _schedule(self) -> None:
        if self._timer is None and self._checkpoints.on_save is not None:
            self._timer = self._loop.call_later(_STORE_S, self._store, context=self._context)

    def _store(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._is_scheduled, self._timer = False, None
        while self._unstored:
            key, payload = self._unstored.popitem()
            if self._runs.find_unended(*key) is not None:
                self._stored.add(key)
                self._session.append_checkpoint(*key, payload)

    def on_event(self, event: Event) -> None:
        if self._has_any and type(event) in _ENDS:
            self._store_before_end(event)

    def _store_before_end(self, event: Event) -> None:
        """Store what an attempt saved before its end; delete it before a success."""
        assert event.step is not None
        step, item = key = event.step, event.item
        reuses = type(event) is StepReused and event.status is StepStatus.SUCCESS
        if reuses or type(event) is StepSucceeded:
            self._unstored.pop(key, None)
            gone = {key}
            if item is None:  # those of its items that failed and are tolerated, too
                gone.update(each for each in self._stored if each[0] == step)
            self._discard(gone & self._stored)
        elif key in self._unstored:
            self._store()

    def on_end(self) -> None:
        # What comes is dropped. And each of them would keep this, and so the run, in a cycle.
        self._checkpoints.on_save = None
        self._checkpoints.store_call = self._checkpoints.load_call = None
        self._store()
