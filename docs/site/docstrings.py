"""Reads the docstrings for the API pages of the site, as an extension of griffe.

A name between single backticks is a reference: it becomes a link to the entry of what it names,
seen from where the docstring is. One that names neither this package, an argument nor another
library is an error, and so `make docs` fails.
"""

from __future__ import annotations

import ast
import builtins
import re
import sys
import textwrap
import typing
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import griffe

_REFERENCE = re.compile(r"(?<!`)`([A-Za-z_][\w.]*)`(?!`)")
_DOUBLE = re.compile(r"(``.+?``)", re.DOTALL)
_NAMES = re.compile(r"^( +)(\w+(?:,\s+\w+)+): (.*(?:\n\1 +.*)*)", re.MULTILINE)
_LIBRARIES = frozenset(
    {
        "IPython",
        "anyio",
        "click",
        "cloudpickle",
        "distributed",
        "jinja2",
        "msgspec",
        "opentelemetry",
    }
    | {"psycopg", "pydantic", "pytest", "ray", "rich", "starlette", "structlog", "uvicorn"}
)
_LITERAL = re.compile(r"^( *)(.*)::\n\n((?:\1    .*\n|\n)+)", re.MULTILINE)
_MADE = re.compile(r"made_by\((?:default_factory=)?(\w+)\)")
_logger = griffe.get_logger("griffe.asyncflow")  # what mkdocstrings turns into warnings of MkDocs


class Docstrings(griffe.Extension):
    """Prepares the public objects of the package, once it is loaded."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Give each public object the docstring, the members and the signature of its entry."""
        public = _Public(pkg)
        for shown in (*public.modules, *public.objects.values()):
            if isinstance(shown, griffe.Class):
                bases = [each for each in shown.bases if public.knows(each)]
                shown.extra["site"]["bases"] = bases
            for each in (shown, *_members(shown).values()):
                if each.docstring is not None:
                    public.prepare(each)


class _Public:
    """The public objects of the package by where users import them from."""

    def __init__(self, package: griffe.Module) -> None:
        self.modules = [each for each in _modules(package) if each.exports is not None]
        self.objects: dict[str, Any] = {}
        self.paths: dict[str, str] = {}
        """From what an object is called in the package, wherever it is, to its public path."""
        self._prepared: set[str] = set()
        for module in self.modules:
            self.paths[module.path] = module.path
            for name in map(str, module.exports or ()):
                path, shown = f"{module.path}.{name}", _target(module[name])
                self.objects[path] = shown
                for known in (path, name, shown.path):
                    self.paths.setdefault(known, path)
                if isinstance(shown, griffe.Attribute):
                    shown.labels.clear()
                if isinstance(shown, griffe.Class):
                    _move_attributes(shown)
                    _add_init_of_record(shown)
                    for each in shown.attributes.values():
                        _tidy_attribute(_target(each))
                    _hide_arguments(shown)
                for name, member in _members(shown).items():
                    self.paths.setdefault(member.path, f"{path}.{name}")

    def knows(self, base: str | griffe.Expr) -> bool:
        """Tell whether users can import a base class from somewhere."""
        path = base if isinstance(base, str) else base.canonical_path
        inside = path.partition(".")[0] == self.modules[0].path
        return path in self.paths if inside else not path.endswith(("Protocol", "NamedTuple"))

    def prepare(self, shown: Any) -> None:
        """Write links into a docstring, and one line for each of the arguments that share one."""
        if shown.path in self._prepared:
            return
        self._prepared.add(shown.path)
        text = _NAMES.sub(_one_by_one, shown.docstring.value)
        text = _LITERAL.sub(_fenced, text + "\n").rstrip()
        parts = _DOUBLE.split(text)
        parts[::2] = [
            _REFERENCE.sub(lambda m: self._link(shown, m[1]), part) for part in parts[::2]
        ]
        shown.docstring.value = "".join(parts)

    def _link(self, shown: Any, name: str) -> str:
        target = self._find(shown, name)
        if target is not None:
            return f"[`{name}`][{target}]"
        first = name.partition(".")[0]
        known = {*sys.stdlib_module_names, *_LIBRARIES, *vars(builtins), *vars(typing)}
        if first not in known:
            where = f"{shown.relative_filepath}:{shown.docstring.lineno}"
            _logger.warning(f"{where}: `{name}` in the docstring of {shown.path} has no entry")
        return f"`{name}`"

    def _find(self, shown: Any, name: str) -> str | None:
        """Return the path of the entry that shows what a docstring calls so."""
        first, _, rest = name.partition(".")
        rest = rest and f".{rest}"
        candidates = [name]
        with suppress(griffe.NameResolutionError):
            candidates.insert(0, shown.resolve(first) + rest)
        owner = shown if shown.is_class else shown.parent
        if owner is not None and owner.is_class and first in owner.all_members:
            candidates.insert(0, _target(owner.all_members[first]).path + rest)
        for candidate in candidates:
            if candidate in self.paths:
                return self.paths[candidate]
            path, _, member = candidate.rpartition(".")
            entry = self.paths.get(path, "")
            if member in getattr(self.objects.get(entry), "all_members", ()):
                return entry if member.startswith("_") else f"{entry}.{member}"
        return None


def _modules(module: griffe.Module) -> Iterator[griffe.Module]:
    yield module
    for each in module.modules.values():
        if not each.is_alias and not each.name.startswith("_") and each.name != "examples":
            yield from _modules(each)


def _target(shown: Any) -> Any:
    return shown.final_target if shown.is_alias else shown


def _members(shown: Any) -> dict[str, Any]:
    """Return the members of a class that have an entry below it."""
    members = shown.all_members if isinstance(shown, griffe.Class) else {}
    return {name: _target(each) for name, each in members.items() if not name.startswith("_")}


def _move_attributes(shown: griffe.Class) -> None:
    """Give each attribute the words that the docstring of its class has for it.

    So an attribute is shown once, with its type, and a reference can lead to it.
    """
    if shown.docstring is None:
        return
    text = shown.docstring.value + "\n"
    section = re.search(r"^Attributes:\n((?:    .*\n|\n)+)", text, re.MULTILINE)
    if section is None:
        return
    left = section[1]
    for entry in re.finditer(r"^    (\w+): (.*\n(?:     +.*\n|\n)*)", section[1], re.MULTILINE):
        member = shown.members.get(entry[1])
        if isinstance(member, griffe.Object) and member.docstring is None:
            words = textwrap.dedent(" " * 8 + entry[2]).strip()
            member.docstring = griffe.Docstring(words, parent=member, lineno=shown.docstring.lineno)
            left = left.replace(entry[0], "")
    kept = f"Attributes:\n{left}" if left.strip() else ""
    shown.docstring.value = (text[: section.start()] + kept + text[section.end() :]).strip()


def _hide_arguments(shown: griffe.Class) -> None:
    """Leave out the attributes that are no more than an argument, which is described already."""
    text = shown.docstring.value if shown.docstring is not None else ""
    arguments = re.search(r"^Args:\n((?:    .*\n|\n)+)", text + "\n", re.MULTILINE)
    described = re.findall(r"^    (\w+):", arguments[1], re.MULTILINE) if arguments else []
    for name in described:
        if name in shown.members and shown.members[name].docstring is None:
            shown.del_member(name)


def _tidy_attribute(shown: griffe.Attribute) -> None:
    """Show a value only if it is one that users can read, and the type of the argument it keeps."""
    value = str(shown.value)
    init = shown.parent.members.get("__init__") if shown.parent else None
    if shown.annotation is None and isinstance(init, griffe.Function) and value in init.parameters:
        shown.annotation = init.parameters[value].annotation
    made = _MADE.fullmatch(value)
    if made:
        shown.value = f"{made[1]}()"
    elif shown.value is not None:
        try:
            ast.literal_eval(value)
        except (ValueError, SyntaxError):
            shown.value = None
    shown.labels -= {"class-attribute", "instance-attribute", "module-attribute"}


def _add_init_of_record(shown: griffe.Class) -> None:
    """Give a record the signature that its decorator makes, as griffe does for a dataclass."""
    decorators = {str(each.value).partition("(")[0]: each for each in shown.decorators}
    if "record" not in decorators or "__init__" in shown.members or "events" in shown.path:
        return
    decorator = str(decorators["record"].value)
    kind = griffe.ParameterKind
    parameters = [griffe.Parameter("self", kind=kind.positional_or_keyword)]
    for each in shown.attributes.values():
        value = None if each.value is None else str(each.value)
        if each.annotation is None or value == "derived()":
            continue
        made = _MADE.fullmatch(value or "")
        parameters.append(
            griffe.Parameter(
                each.name,
                annotation=each.annotation,
                default=f"{made[1]}()" if made else value,
                kind=kind.keyword_only if "kw_only" in decorator else kind.positional_or_keyword,
            )
        )
    init = griffe.Function("__init__", parameters=griffe.Parameters(*parameters), returns="None")
    shown.set_member("__init__", init)


def _fenced(match: re.Match[str]) -> str:
    """Turn an indented example after `::` into a fenced one."""
    indent, words, code = match[1], match[2], textwrap.dedent(match[3]).strip("\n")
    language = "console" if code.startswith("$ ") else "python"
    fence = textwrap.indent(f"```{language}\n{code}\n```", indent)
    return (f"{indent}{words}:\n\n" if words else "") + fence + "\n\n"


def _one_by_one(match: re.Match[str]) -> str:
    indent, names, text = match.groups()
    return "\n".join(f"{indent}{name}: {text}" for name in re.split(r",\s+", names))
