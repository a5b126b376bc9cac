"""Which data a user's function asks for: its parameters, as far as they can be given by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import FunctionType
from typing import Any, NamedTuple

__all__ = ["NO_PARAMETERS", "Signature", "Upstream", "signature_of", "upstream_of"]


@dataclass(frozen=True, slots=True, repr=False)
class Upstream:
    """The default of a parameter that is to receive what another step returned."""

    source: Any
    """The function of that step, or the pipeline."""
    is_mapped: bool = False
    """Whether the source is a mapped step, whose output is a list of what its calls returned."""
    each: bool = False
    """Whether the parameter receives one item of the output at a time."""

    def __repr__(self) -> str:
        source = getattr(self.source, "__qualname__", None) or repr(self.source)
        word = "collect" if self.is_mapped else "each" if self.each else "after"
        text = f"{word}({source})"
        text = f"each({text})" if self.is_mapped and self.each else text
        return f"<{text}: only a run fills it in; to call the function yourself, pass a value>"


class Signature(NamedTuple):
    """Which parameters of an action can be filled by name."""

    names: tuple[str, ...] = ()
    required: frozenset[str] = frozenset()
    """Those without a default, or with an `Upstream`, which is a promise and no value."""
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
        is_required = parameter.default is parameter.empty or type(parameter.default) is Upstream
        if parameter.kind is parameter.VAR_KEYWORD:
            takes_any = True
        elif parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            if parameter.name not in bound:
                names.append(parameter.name)
                if is_required:
                    required.add(parameter.name)
        elif parameter.kind is parameter.POSITIONAL_ONLY and is_required:
            raise TypeError(
                f"step {name!r}: parameter {parameter.name!r} of its {what} is positional-only, "
                f"but {what}s get their data by parameter name; remove the '/'"
            )
    if not names and not takes_any:
        return NO_PARAMETERS
    return Signature(tuple(names), frozenset(required), takes_any, bound)


def upstream_of(function: Callable[..., Any]) -> dict[str, Upstream]:
    """Return, by parameter, which outputs of other steps a function's defaults ask for."""
    try:
        parameters = inspect.signature(function).parameters
    except ValueError:  # some callables written in C do not tell
        return {}
    return {
        parameter.name: parameter.default
        for parameter in parameters.values()
        if type(parameter.default) is Upstream
    }


def _bound(action: partial[Any]) -> frozenset[str]:
    positional = list(inspect.signature(action.func).parameters)[: len(action.args)]
    return frozenset(positional).union(action.keywords)
