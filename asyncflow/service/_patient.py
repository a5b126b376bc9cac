"""Waits for a resource that is down, so that no run is lost because a database restarts."""

from __future__ import annotations

import asyncio
import logging
from types import TracebackType
from typing import Any

from asyncflow._core.pipeline.step import OpenResource
from asyncflow._core.text import describe_error
from asyncflow._policies.resources import check_manager

_FIRST_RETRY_S = 0.25
_LONGEST_RETRY_S = 15.0

_log = logging.getLogger("asyncflow")


class PatientResource:
    """Opens a resource of one run as soon as it can be opened.

    Meanwhile the run has begun, keeps its place, and can be cancelled and drained.

    ``name`` is what the steps call it, and ``open_resource`` returns the context manager that opens
    it.
    """

    def __init__(self, name: str, open_resource: OpenResource) -> None:
        self._name = name
        self._open_resource = open_resource
        self._manager: Any = None

    def __getattr__(self, name: str) -> Any:
        # A warning that opening takes long looks for the frames of the manager.
        return getattr(self._manager, name)

    async def __aenter__(self) -> Any:
        delay_s = _FIRST_RETRY_S
        while True:
            try:
                manager = self._manager = self._open_resource()
            except Exception as error:
                self._log_failure(error, delay_s)
            else:
                check_manager(manager)  # no waiting would make one of it
                try:
                    return await type(manager).__aenter__(manager)
                except Exception as error:
                    self._log_failure(error, delay_s)
            await asyncio.sleep(delay_s)
            delay_s = min(2 * delay_s, _LONGEST_RETRY_S)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> Any:
        return await type(self._manager).__aexit__(self._manager, kind, error, trace)

    def _log_failure(self, error: Exception, delay_s: float) -> None:
        _log.warning(
            "resource %r could not be opened, and is tried again in %g s: %s",
            *(self._name, delay_s, describe_error(error)),
        )
