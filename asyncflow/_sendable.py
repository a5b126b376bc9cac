"""Whether an action can run beside the event loop: in a thread, or in a process that imports it."""

from __future__ import annotations

import sys
from functools import partial
from types import MethodType

from asyncflow._plain import is_async

__all__ = ["can_be_imported_again", "check_plain"]


def check_plain(name: str, action: object, runs_in: str) -> None:
    """Refuse what could only fail in a thread or a process, as far as it can be seen.

    Raises:
        TypeError: The action is async, or another process could not find it.
    """
    function = _function_of(action)
    if is_async(function):
        raise TypeError(
            f"step {name!r}: an async function runs in the event loop, and runs_in={runs_in!r} "
            "is for plain ones; leave it out, or make the action a plain function"
        )
    if runs_in == "process":
        _check_sendable(name, action, function)


def _check_sendable(name: str, action: object, function: object) -> None:
    homes = {getattr(function, "__module__", None)}
    if isinstance(action, MethodType):
        homes.add(getattr(action.__self__, "__module__", None))
        if not isinstance(action.__self__, type):
            # The object may be large, and not yet be what it is when the step runs.
            action = action.__func__
    if "__main__" in homes and not can_be_imported_again(sys.modules["__main__"]):
        raise TypeError(
            f"step {name!r}: its action cannot be sent to another process, which can't import "
            "what a shell, a notebook or python -c defines; define it in a file, and import it "
            "from there"
        )
    import pickle  # only steps that run in a process need it

    try:
        pickle.dumps(action)
    except Exception as error:  # the objects of users may raise anything
        raise TypeError(
            f"step {name!r}: its action cannot be sent to another process; use a function "
            f"that is defined at the top of a module ({error})"
        ) from error


def _function_of(action: object) -> object:
    """Return what is called in the end, without what is bound to it."""
    while isinstance(action, partial | MethodType):
        action = action.func if isinstance(action, partial) else action.__func__
    return action


def can_be_imported_again(main: object) -> bool:
    """Whether a main module has a name or a file; one that is typed in or piped has none."""
    path = getattr(main, "__file__", None)
    # From 3.13 on, that of the standard input is "<stdin>".
    is_file = path is not None and not path.startswith("<")
    return is_file or getattr(main, "__spec__", None) is not None
