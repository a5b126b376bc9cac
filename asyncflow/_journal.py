"""What keeps a run beyond its process: the seam between the driver and a database.

Rules:

1. An action is called only when all that has happened before is kept, the start of its attempt
   included. So a process that dies has done nothing that the journal could not know of.
2. A report is returned only when the end of the run is kept.
3. In the events of a journal, outputs and inputs are `Payload` objects. The output of a mapped
   step as a whole is ``None``, because each of its items has kept its own.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol, TypeVar

from asyncflow._core.errors import JournalError, RunCancelledError
from asyncflow._core.results import Payload
from asyncflow.events import Event

__all__ = ["Book", "Journal"]

T = TypeVar("T")


class Book(Protocol):
    """One run's part of a journal, while this process owns the run."""

    def watch(self, on_stop: Callable[[JournalError | RunCancelledError], object]) -> None:
        """Call a function in the event loop, not before its next turn, when the run has to stop.

        With a `JournalError`, at most once, when the journal fails or the run is lost to another.
        With a `RunCancelledError`, at most once and before that, when somebody has cancelled the
        run through the journal, which goes on keeping what is added.
        """

    def add(self, event: Event) -> None:
        """Append an event. It does not wait, and after a failure it does nothing."""

    async def kept(self) -> None:
        """Wait until all that was added before is kept; for ever, if the journal has failed.

        It may be cancelled at any time, to no effect.
        """

    def close(self) -> Coroutine[Any, Any, None]:
        """Wait until all is kept, and give up the run. It may be cancelled, and called again.

        Raises:
            JournalError: The journal has failed, now or before.
        """
        ...


class Journal(Protocol):
    """Keeps the events of runs; `asyncflow.journal` has such."""

    def encode(self, subject: str, value: Any, hint: Any) -> Payload:
        """Turn a value into bytes.

        Args:
            subject: What the value is, for the error: "the output of step 'load'".
            value: The value.
            hint: Its type, as far as annotations tell; `Any` if they don't.

        Raises:
            PayloadError: It would not come back equal.
        """
        ...

    def decode(self, subject: str, payload: Payload, hint: Any) -> Any:
        """Turn bytes into the value again.

        Raises:
            PayloadError: They are not such a value.
        """
        ...

    async def open(
        self, run_id: str, *, wait: bool, read: Callable[[Sequence[Event]], T]
    ) -> tuple[Book, T]:
        """Become the only owner of a run, and read what is kept of it.

        Args:
            run_id: The run, which need not exist.
            wait: Whether to wait until another owner has ended.
            read: Called in another thread with the events that are kept, in their order; again,
                with those that there are then, if the run was read before it was owned. Only the
                latest answer counts.

        Returns:
            The run's book, and what ``read`` returned at last.

        Raises:
            RunAlreadyActiveError: It has another owner.
            JournalError: The journal has failed.
            Exception: What ``read`` raised. The run has no owner then.
        """
        ...
