"""The public API as text: every public name with its signature, its attributes and its methods.

After a change that is meant, write it anew, and read what has changed::

    python -m tests.public_api
"""

from __future__ import annotations

import enum
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MODULES = (
    *("asyncflow", "asyncflow.events", "asyncflow.journal", "asyncflow.service"),
    *("asyncflow.engines", "asyncflow.engines.executor", "asyncflow.engines.dask"),
    *("asyncflow.testing", "asyncflow.html_report", "asyncflow.web", "asyncflow.live"),
    *("asyncflow.logs", "asyncflow.otel", "asyncflow.notebook"),
)
"""The public modules, except for `asyncflow.engines.ray`, which can't be imported without Ray."""

SNAPSHOT = Path(__file__).with_name("public_api.txt")


def public_api() -> str:
    lines = []
    for module in map(importlib.import_module, MODULES):
        lines += ["", f"# {module.__name__}"]
        for name in module.__all__:
            lines += ["", *described(name, getattr(module, name))]
    return "\n".join(lines).lstrip() + "\n"


def described(name: str, public: Any) -> Iterator[str]:
    if not isinstance(public, type):
        yield (
            function(name, public)
            if inspect.isroutine(public)
            else f"{name}: {without_address(public)}"
        )
        return
    bases = ", ".join(base.__name__ for base in public_bases(public))
    yield f"class {name}({bases})" if bases else f"class {name}"
    if issubclass(public, enum.Enum):
        yield from (f"    {member.name} = {member.value!r}" for member in public)
        return
    if not getattr(public, "_is_protocol", False) and is_ours(public.__init__, public.__new__):
        yield f"    def __init__{signature(public)}"
    for member, owner in sorted(members_of(public).items()):
        yield f"    {member_text(member, owner)}"


def public_bases(public: type) -> Iterator[type]:
    for base in public.__bases__:
        if base.__name__.startswith("_"):
            yield from public_bases(base)
        elif base is not object:
            yield base


def is_ours(*makers: Any) -> bool:
    """Whether one of these is written here, or made by a decorator for a class of this package."""
    return any(
        getattr(maker, "__module__", None) != "builtins"
        for maker in makers
        if hasattr(maker, "__code__")
    )


def members_of(public: type) -> dict[str, type]:
    """Return the class that defines each public member; those of other packages are left out."""
    found: dict[str, type] = {}
    for owner in reversed(public.__mro__):
        if owner.__module__.startswith("asyncflow"):
            names = [*vars(owner), *inspect.get_annotations(owner)]
            found |= dict.fromkeys((name for name in names if is_shown(name)), owner)
    return found


def is_shown(name: str) -> bool:
    protocols = ("__call__", "__aenter__", "__aexit__", "__iter__", "__getitem__", "__len__")
    return not name.startswith("_") or name in protocols


def member_text(name: str, owner: type) -> str:
    member = vars(owner).get(name)
    if isinstance(member, classmethod | staticmethod):
        return f"@{type(member).__name__} {function(name, member.__func__)}"
    member = inspect.unwrap(member)
    if inspect.isroutine(member):
        return function(name, member)
    getter = getattr(member, "fget", None) or getattr(member, "func", None)  # or cached
    if getter is not None:
        return f"{name}: {text_of(inspect.signature(getter).return_annotation)}"
    annotation = inspect.get_annotations(owner).get(name)
    return name if annotation is None else f"{name}: {text_of(annotation)}"


def function(name: str, public: Any) -> str:
    prefix = "async " if inspect.iscoroutinefunction(public) else ""
    return f"{prefix}def {name}{signature(public)}"


def signature(public: Any) -> str:
    found = inspect.signature(public)
    parameters = [
        each.replace(annotation=Annotation(each.annotation))
        if each.annotation is not each.empty
        else each
        for each in found.parameters.values()
    ]
    returned = found.return_annotation
    if returned is not found.empty:
        returned = Annotation(returned)
    return without_address(found.replace(parameters=parameters, return_annotation=returned))


class Annotation:
    """An annotation as it is written, without the quotes of text."""

    def __init__(self, annotation: Any) -> None:
        self.annotation = annotation

    def __repr__(self) -> str:
        return text_of(self.annotation)


def text_of(annotation: Any) -> str:
    written = getattr(annotation, "__forward_arg__", annotation)
    return written if isinstance(written, str) else inspect.formatannotation(written)


def without_address(public: Any) -> str:
    return re.sub(r" at 0x[0-9a-f]+", "", str(public))


if __name__ == "__main__":
    SNAPSHOT.write_text(public_api(), encoding="utf-8")
