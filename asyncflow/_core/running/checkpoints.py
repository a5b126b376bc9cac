"""The checkpoints that actions make: where the next attempt of their step continues.

What a call by name has returned (`StepContext.call`) is a checkpoint with a name: it is kept as
long, and in the same places.

Rules:

1. A value is encoded at the call, so nothing that the action changes later changes the checkpoint.
2. A step, or an item, has one checkpoint: the latest. It is no part of the run's history.
3. An attempt reads what an earlier one left, never its own. What a journal stored is earlier than
   any attempt of this process: the numbers of attempts start again when a run starts afresh.
"""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from asyncflow._core.errors import PayloadError
from asyncflow._core.history.results import Payload
from asyncflow._core.text import describe_fully

if TYPE_CHECKING:  # to make a class of protocols takes long
    from typing import Protocol

    class CheckpointCodec(Protocol):
        """Encodes checkpoints. It can be pickled: other processes have steps, too."""

        def encode(self, subject: str, value: Any, hint: Any) -> Payload:
            """Encode a value, or raise `PayloadError`."""
            ...

        def decode(self, subject: str, payload: Payload, hint: Any) -> Any:
            """Decode a value, or raise `PayloadError`."""


LARGEST = 65_536
"""The maximum size of an encoded checkpoint, in bytes."""

SavingAttempt: TypeAlias = "tuple[str, int, float, float, int | None]"
"""The fields of an `AttemptStarted`."""

_Key: TypeAlias = "tuple[str, int | None]"
_Saved: TypeAlias = "tuple[int, Payload, Payload | None]"
"""The attempt that saved the latest checkpoint, that, and what the attempts before it left."""


class StoredCall(NamedTuple):
    """What a call by name has returned."""

    attempt: int
    """The attempt that has made it."""
    arguments: int | None
    """A checksum of its arguments, if they have one."""
    payload: Payload


class PickleCodec:
    """Encodes the checkpoints of a run without a journal."""

    def encode(self, subject: str, value: Any, hint: Any) -> Payload:
        import pickle  # takes a while to import, and few runs need it

        try:
            return Payload("pickle", pickle.dumps(value, pickle.HIGHEST_PROTOCOL))
        except Exception as error:  # whatever its objects raise
            problem = f"can't be pickled: {describe_fully(error)}; save plain data"
            raise PayloadError(subject, problem) from None

    def decode(self, subject: str, payload: Payload, hint: Any) -> Any:
        import pickle  # as above

        return pickle.loads(payload.data)


_PICKLE = PickleCodec()


class Checkpoints:
    """The latest checkpoint of each step and item of a run. Any thread may call it.

    ``stored`` are those that earlier processes left.
    """

    def __init__(
        self, codec: CheckpointCodec = _PICKLE, stored: Mapping[_Key, Payload] | None = None
    ) -> None:
        self.on_save: Callable[[_Key, Payload], object] | None = None
        """Takes each checkpoint on to where it outlasts the process, if there is such a place."""
        self.calls: dict[_Key, Any] = {}
        """What keeps the calls of each step and item that has made one and not ended."""
        self.store_call: Callable[[_Key, str, StoredCall], Awaitable[None]] | None = None
        """Stores what a call has returned where it outlasts the process, if there is such a place.
        What it returns is done when that is stored, and fails if it can't be."""
        self.load_call: Callable[[_Key, str], Awaitable[StoredCall | None]] | None = None
        """Reads it there again; ``None`` if it is damaged."""
        self._codec = codec
        self.saved: dict[_Key, _Saved] = {k: (0, p, None) for k, p in (stored or {}).items()}
        self._lock = threading.Lock()

    def save(self, running: SavingAttempt, value: object, *, is_last: bool) -> None:
        """Encode and keep the checkpoint of an attempt, which may be the last one of its step."""
        subject = f"the checkpoint of step {running[0]!r}"
        payload = self._codec.encode(subject, value, Any)
        if len(payload.data) > LARGEST:
            raise PayloadError(
                subject,
                f"takes {len(payload.data):,} bytes, and the limit is {LARGEST:,}: save where the "
                "action has come to, and store the data elsewhere",
            )
        if self.on_save is not None or not is_last:
            self.keep(running, payload)

    def keep(self, running: SavingAttempt, payload: Payload) -> None:
        """Keep an encoded checkpoint of an attempt, unless a later attempt has saved one."""
        step, attempt, _, _, item = running
        key = step, item
        with self._lock:
            before = self.saved.get(key)
            earlier = None
            if before is not None:
                if attempt < before[0]:
                    return
                earlier = before[2] if attempt == before[0] else before[1]
            self.saved[key] = attempt, payload, earlier
            if self.on_save is not None:
                self.on_save(key, payload)

    def earlier(self, running: SavingAttempt) -> Payload | None:
        """Return the latest checkpoint of the attempts before one, as it is encoded."""
        saved = self.saved.get((running[0], running[4]))
        if saved is None:
            return None
        attempt, latest, earlier = saved
        return earlier if attempt == running[1] else latest

    def last(self, running: SavingAttempt) -> Any:
        """Return the latest checkpoint of the attempts before one; ``None`` if there is none."""
        payload = self.earlier(running)
        if payload is None:
            return None
        return self._codec.decode(f"the checkpoint of step {running[0]!r}", payload, Any)

    # Other processes.

    def to_send(self, running: SavingAttempt) -> SentCheckpoint:
        """Return what another process needs, in types of Python alone, to make the attempt."""
        import pickle  # as above

        earlier = self.earlier(running)
        plain = None if earlier is None else (earlier.codec, earlier.data)
        return pickle.dumps(self._codec), plain


SentCheckpoint: TypeAlias = "tuple[bytes, tuple[str, bytes] | None]"
"""The codec, pickled, and what the attempts before left."""


def received_checkpoints(
    running: SavingAttempt,
    sent: SentCheckpoint,
    on_save: Callable[[_Key, Payload], object] | None,
) -> Checkpoints:
    """Return the checkpoints of an attempt that another process has sent."""
    codec, earlier = sent
    stored = {} if earlier is None else {(running[0], running[4]): Payload(*earlier)}
    checkpoints = Checkpoints(_codec_of(codec), stored)
    checkpoints.on_save = on_save
    return checkpoints


@lru_cache(4)
def _codec_of(pickled: bytes) -> Any:
    import pickle  # as above

    return pickle.loads(pickled)
