"""Engines: where the attempts of steps run, when it is not in this process.

Each engine is a module of its own, so that its library is imported only with it.
"""

from asyncflow._core.history.remote_output import RemoteOutput
from asyncflow._policies.engine import Engine, EngineCall

__all__ = ["Engine", "EngineCall", "RemoteOutput"]
