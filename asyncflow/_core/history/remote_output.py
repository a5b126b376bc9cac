"""Stands for an output that stays on the engine that made it."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

from asyncflow._core.history.results import Payload

_CODEC = "json-remote"


class RemoteOutput:
    """An output that stays on the engine where it was made; `fetch` brings it home.

    A copy that was pickled, or that comes from a stored run, knows its size and place only.

    Attributes:
        engine: The name of the engine.
        worker: Where the output was made.
        size: Its size in bytes, as far as the engine can tell.
        reference: What the engine knows it by; ``None`` in a copy.
        step_name: The step that made it; empty in a copy.

    Args:
        engine, worker, size, reference, step_name: As above.
        fetch: Brings the output home.
    """

    __slots__ = ("__weakref__", "_fetch", "engine", "reference", "size", "step_name", "worker")

    def __init__(
        self,
        engine: str,
        worker: str,
        size: int,
        reference: Any = None,
        fetch: Callable[[], Awaitable[Any]] | None = None,
        step_name: str = "",
    ) -> None:
        self.engine: str = engine
        self.worker: str = worker
        self.size: int = size
        self.reference: Any = reference
        self.step_name: str = step_name
        self._fetch = fetch

    async def fetch(self) -> Any:
        """Return the output itself.

        Raises:
            RuntimeError: This is a copy, or the engine is closed.
            OutputLostError: The engine has lost the output.
        """
        if self._fetch is None:
            raise RuntimeError(
                f"this output stayed on engine {self.engine!r} and this is a copy of its place; "
                "fetch it from the report of the run while the engine is open"
            )
        return await self._fetch()

    def to_payload(self) -> Payload:
        """Return what a journal stores of it: its size and place."""
        place = {"engine": self.engine, "worker": self.worker, "size": self.size}
        return Payload(_CODEC, json.dumps(place).encode())

    @classmethod
    def from_payload(cls, payload: Payload) -> RemoteOutput:
        """Return the copy for which a payload stands."""
        return cls(**json.loads(payload.data))

    def __reduce__(self) -> Any:
        return RemoteOutput, (self.engine, self.worker, self.size)

    def __repr__(self) -> str:
        return f"<RemoteOutput of {self.size:,} bytes on {self.engine} at {self.worker}>"


def is_remote(value: object) -> bool:
    """Whether a value stands for an output that is not here: it, or the payload of one."""
    # A user's value may refuse to be compared.
    return isinstance(value, RemoteOutput) or (type(value) is Payload and value.codec == _CODEC)
