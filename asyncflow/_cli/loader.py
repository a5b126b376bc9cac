"""Loads the pipeline that ``MODULE:PIPELINE`` names, by importing the user's code."""

from __future__ import annotations

import importlib
import inspect
import os
import pkgutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import click

from asyncflow._cli.output import INVALID, CommandError
from asyncflow._core.arguments import python_signature
from asyncflow._core.pipeline.step import WorkflowStep
from asyncflow._core.text import describe_error, did_you_mean
from asyncflow._core.tracebacks import format_error
from asyncflow._runtime.orchestrator import Orchestrator
from asyncflow._runtime.pipeline import Pipeline


class LoadedPipeline(NamedTuple):
    """A pipeline and how the user names it."""

    orchestrator: Orchestrator
    target: str


def load_pipeline(target: str) -> LoadedPipeline:
    """Import a module and return a pipeline in it.

    ``target`` is ``package.module:name`` or ``path/to/file.py:name``; the name may be dotted.
    Without a name it is the only pipeline of the module.
    """
    place, colon, name = target.rpartition(":") if ":" in target else (target, "", "")
    if not place or (colon and not name):
        raise click.UsageError(
            f"{target!r} is not MODULE:PIPELINE: name a module and what is in it, such as "
            "etl:pipeline, shop.etl:pipeline or path/to/etl.py:pipeline"
        )
    module = _import(place)
    name = name or _only_pipeline(module, target)
    found = _look_up(module, name)
    if inspect.isroutine(found) or inspect.isclass(found):
        found = _call(target, found)
    return LoadedPipeline(_plan(target, f"{module.__name__}:{name}", found), target)


def select_targets(orchestrator: Orchestrator, targets: Sequence[str]) -> Orchestrator:
    """Return an orchestrator with only these steps and their dependencies; all if none is given."""
    try:
        return orchestrator.with_options(targets=targets) if targets else orchestrator
    except ValueError as error:
        raise click.UsageError(str(error)) from error


# The module.


def _import(place: str) -> ModuleType:
    is_file = place.endswith(".py") or os.sep in place
    root, name = _locate(place) if is_file else (Path.cwd(), place)
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))  # as `python file.py` and `python -m module` do
    importlib.invalidate_caches()
    try:
        module = importlib.import_module(name)
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(f"{error.name}."):
            raise _missing(place, str(error.name)) from error
        why = f"{place!r} can't be imported: {describe_error(error)}"
        raise CommandError(why, INVALID, _user_trace(error)) from error
    if is_file and not Path(place).absolute().samefile(
        getattr(module, "__file__", None) or os.devnull
    ):
        raise CommandError(
            f"{place} can't be imported as {name!r}, which is another module already; give the "
            "file another name",
            INVALID,
        )
    return module


def _locate(file: str) -> tuple[Path, str]:
    """Return the directory to import a file from, and the name of its module there."""
    path = Path.cwd() / file
    if not path.is_file():
        hint = did_you_mean(path.name, [each.name for each in path.parent.glob("*.py")])
        raise CommandError(f"there is no file {file!r}{hint}", INVALID)
    parts, root = [path.stem], path.parent
    while (root / "__init__.py").is_file():
        parts.append(root.name)
        root = root.parent
    return root, ".".join(reversed(parts))


def _missing(place: str, missing: str) -> CommandError:
    parent, _, name = missing.rpartition(".")
    paths = list(getattr(sys.modules.get(parent), "__path__", ())) if parent else [os.getcwd()]
    if parent and not paths:
        why = f"{parent!r} is a module, not a package"
    else:
        where = f"in {parent!r}" if parent else "here or among the installed packages"
        hint = did_you_mean(name, [module.name for module in pkgutil.iter_modules(paths)])
        why = f"there is no module {name!r} {where}{hint}"
    return CommandError(
        f"{place!r} can't be imported: {why}; name a module that can be imported from this "
        "directory, or a file, such as path/to/etl.py:pipeline",
        INVALID,
    )


def _user_trace(error: BaseException) -> str:
    """Return the traceback of the user's code, without the frames that imported it."""
    trace = error.__traceback__
    while trace is not None and _is_import_machinery(trace.tb_frame.f_code.co_filename):
        trace = trace.tb_next
    return format_error(error.with_traceback(trace))


def _is_import_machinery(path: str) -> bool:
    return path == __file__ or "importlib" in path


# The pipeline in it.


def _only_pipeline(module: ModuleType, target: str) -> str:
    """Return the name of the only pipeline of a module."""
    names = _pipelines_in(module)
    if len(names) == 1:
        return names[0]
    if names:
        some = ", ".join(f"{target}:{name}" for name in names)
        why = f"there are several pipelines in {target!r}; name one: {some}"
    else:
        why = f"there is no pipeline in {target!r}; name a function that returns one: {target}:NAME"
    raise CommandError(why, INVALID)


def _look_up(module: ModuleType, name: str) -> Any:
    found: Any = module
    for part in name.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            pipelines = _pipelines_in(found)
            hint = did_you_mean(part, pipelines)
            if pipelines and not hint:
                hint = f"; its pipelines are: {', '.join(pipelines)}"
            owner = f"{module.__name__}:{name}".removesuffix(f".{part}").removesuffix(f":{part}")
            raise CommandError(f"there is no {part!r} in {owner!r}{hint}", INVALID) from None
    return found


def _pipelines_in(owner: Any) -> list[str]:
    """Return the names of the pipelines in a module; of its lists of steps, if there are none."""
    values = {name: getattr(owner, name) for name in dir(owner) if not name.startswith("_")}
    found = {name: each for name, each in values.items() if _is_pipeline(each)}
    if not found:
        found = {name: each for name, each in values.items() if _is_list_of_steps(each)}
    unique: dict[int, str] = {}
    for name, each in found.items():
        unique.setdefault(id(each), name)
    return [*unique.values()]


def _is_pipeline(value: object) -> bool:
    return isinstance(value, Pipeline | Orchestrator)


def _is_list_of_steps(value: object) -> bool:
    if not isinstance(value, list | tuple) or not value:
        return False
    return all(isinstance(each, WorkflowStep) for each in value)


def _needs_nothing(function: Callable[..., Any]) -> bool:
    try:
        python_signature(function).bind()
    except (TypeError, ValueError):
        return False
    return True


def _call(target: str, function: Callable[[], Any]) -> Any:
    if not _needs_nothing(function):
        kind = "class that needs" if inspect.isclass(function) else "function that needs"
        raise CommandError(
            f"{target!r} is a {kind} arguments; name a pipeline, or a function without arguments "
            "that returns one",
            INVALID,
        )
    try:
        returned = function()
    except (Exception, SystemExit) as error:
        why = f"{target!r} raised {describe_error(error)}"
        raise CommandError(why, INVALID, _user_trace(error)) from error
    if inspect.iscoroutine(returned):
        returned.close()  # or Python would warn that it was never awaited
        raise CommandError(
            f"{target!r} is an async function; name a pipeline, or a plain function that returns "
            "one",
            INVALID,
        )
    return returned


def _plan(target: str, name: str, found: Any) -> Orchestrator:
    """Return a planned pipeline. Without a name of its own, it is named after its module."""
    try:
        if isinstance(found, Pipeline):
            return found.orchestrator
        if isinstance(found, Iterable) and not isinstance(found, str | bytes | Mapping):
            found = Orchestrator(found)
        if isinstance(found, Orchestrator):
            return found if found.name else found.with_options(name=name)
    except (ValueError, TypeError) as error:
        raise CommandError(f"{target!r} is not valid: {error}", INVALID) from error
    raise CommandError(
        f"{target!r} is of type {type(found).__name__}; name a Pipeline, an Orchestrator, a list "
        "of WorkflowStep objects, or a function without arguments that returns one",
        INVALID,
    )
