"""Which data a user's function asks for: its parameters, as far as they can be given by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from types import FunctionType
from typing import Any, NamedTuple

__all__ = ["NO_PARAMETERS", "Signature", "signature_of"]


class Signature(NamedTuple):
    """Which parameters of an action can be filled by name."""

    names: tuple[str, ...] = ()
    required: frozenset[str] = frozenset()
    """Those without a default."""
    takes_any: bool = False
    """Whether there is a ``**kwargs``."""
    bound: frozenset[str] = frozenset()
    """Those that a `functools.partial` has filled already."""


NO_PARAMETERS = Signature()


def signature_of(name: str, action: Callable[..., Any], what: str = "action") -> Signature:
    if type(action) is FunctionType and not action.__dict__:
        # Most actions: `inspect` would take fifty times as long for the same answer.
        code = action.__code__
        if not (
            code.co_argcount or code.co_kwonlyargcount or code.co_flags & inspect.CO_VARKEYWORDS
        ):
            return NO_PARAMETERS
    try:
        signature = inspect.signature(action)
    except ValueError:  # some callables written in C do not tell
        return NO_PARAMETERS
    bound = _bound(action) if isinstance(action, partial) else frozenset()
    names, required, takes_any = [], set(), False
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            takes_any = True
        elif parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            if parameter.name not in bound:
                names.append(parameter.name)
                if parameter.default is parameter.empty:
                    required.add(parameter.name)
        elif parameter.kind is parameter.POSITIONAL_ONLY and parameter.default is parameter.empty:
            raise TypeError(
                f"step {name!r}: parameter {parameter.name!r} of its {what} is positional-only, "
                f"but {what}s get their data by parameter name; remove the '/'"
            )
    if not names and not takes_any:
        return NO_PARAMETERS
    return Signature(tuple(names), frozenset(required), takes_any, bound)


def _bound(action: partial[Any]) -> frozenset[str]:
    positional = list(inspect.signature(action.func).parameters)[: len(action.args)]
    return frozenset(positional).union(action.keywords)
