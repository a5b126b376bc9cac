"""Finds the pipeline that ``MODULE:PIPELINE`` names, by importing the reader's code."""

from __future__ import annotations

import importlib
import inspect
import os
import pkgutil
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import click

from asyncflow._cli.output import INVALID, CommandError
from asyncflow._core.errors import describe_error, did_you_mean
from asyncflow._core.tracebacks import format_error
from asyncflow._runtime.orchestrator import Orchestrator
from asyncflow._runtime.pipeline import Pipeline

__all__ = ["Loaded", "load"]


class Loaded(NamedTuple):
    """A pipeline that was found."""

    orchestrator: Orchestrator
    target: str
    """What the reader has called it."""


def load(target: str, *, all_frames: bool = False) -> Loaded:
    """Import a module and return the pipeline in it.

    Args:
        target: ``package.module:name`` or ``path/to/file.py:name``, where the name may be dotted.
        all_frames: Whether a traceback shows all frames.

    Raises:
        click.UsageError: It does not read like that.
        CommandError: It can't be imported, or is no valid pipeline.
    """
    place, _, name = target.rpartition(":")
    if not place or not name:
        raise click.UsageError(
            f"{target!r} is not MODULE:PIPELINE: name a module and what is in it, such as "
            "etl:pipeline, shop.etl:pipeline or path/to/etl.py:pipeline"
        )
    module = _Importing(place, all_frames).module()
    found = _found_in(module, name)
    if inspect.isroutine(found) or inspect.isclass(found):
        found = _called(target, found, all_frames)
    return Loaded(_orchestrator_of(target, f"{module.__name__}:{name}", found), target)


class _Importing:
    """One import of the reader's code."""

    def __init__(self, place: str, all_frames: bool) -> None:
        self._place = place
        self._all_frames = all_frames
        self._is_file = place.endswith(".py") or os.sep in place
        self._name = place

    def module(self) -> ModuleType:
        root = self._root_of_file() if self._is_file else _here()
        if str(root) not in sys.path:
            sys.path.insert(0, str(root))  # as for `python file.py` and `python -m module`
        importlib.invalidate_caches()
        try:
            module = importlib.import_module(self._name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{self._name}.".startswith(f"{error.name}."):
                raise self._failure(error) from error  # it is something that the module needs
            raise self._unknown(error.name) from error
        except (Exception, SystemExit) as error:
            raise self._failure(error) from error
        if self._is_file:
            self._check_is_that_file(module)
        return module

    def _root_of_file(self) -> Path:
        """Return the directory from which a file is imported, and keep the name of its module."""
        path = _here() / self._place
        if not path.is_file():
            names = [each.name for each in path.parent.glob("*.py")]
            hint = did_you_mean(path.name, names)
            raise CommandError(f"there is no file {self._place!r}{hint}", INVALID)
        parts = [path.stem]
        root = path.parent
        while (root / "__init__.py").is_file():
            parts.append(root.name)
            root = root.parent
        self._name = ".".join(reversed(parts))
        return root

    def _check_is_that_file(self, module: ModuleType) -> None:
        path = Path(self._place).absolute()
        if not path.samefile(getattr(module, "__file__", None) or os.devnull):
            raise CommandError(
                f"{self._place} can't be imported as {self._name!r}, which is another module "
                "already; give the file another name",
                INVALID,
            )

    def _unknown(self, missing: str) -> CommandError:
        parent, _, name = missing.rpartition(".")
        places = list(getattr(sys.modules.get(parent), "__path__", ())) if parent else [os.getcwd()]
        hint = did_you_mean(name, [module.name for module in pkgutil.iter_modules(places)])
        if parent and not places:
            why = f"{parent!r} is a module, and no package"
        else:
            where = f"in {parent!r}" if parent else "here, nor among what is installed"
            why = f"there is no module {name!r} {where}{hint}"
        return CommandError(
            f"{self._place!r} can't be imported: {why}; name a module that can be imported from "
            "this directory, or a file, such as path/to/etl.py:pipeline",
            INVALID,
        )

    def _failure(self, error: BaseException) -> CommandError:
        trace = format_error(_from_users_code(error), all_frames=self._all_frames)
        return CommandError(
            f"{self._place!r} can't be imported: {describe_error(error)}", INVALID, trace
        )


def _here() -> Path:
    try:
        return Path.cwd()
    except FileNotFoundError:
        raise CommandError(
            "the current directory is not there any more; change to another one", INVALID
        ) from None


def _from_users_code(error: BaseException) -> BaseException:
    """Leave out of a traceback what imported the reader's code, and return its error."""
    trace = error.__traceback__
    while trace is not None and _is_importing(trace.tb_frame.f_code.co_filename):
        trace = trace.tb_next
    return error.with_traceback(trace)


def _is_importing(path: str) -> bool:
    return path == __file__ or "importlib" in path


def _found_in(module: ModuleType, name: str) -> Any:
    found: Any = module
    for part in name.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            names = [each for each in dir(found) if not each.startswith("_")]
            hint = did_you_mean(part, names) or _those_there(found, names)
            owner = f"{module.__name__}:{name}".removesuffix(f".{part}").removesuffix(f":{part}")
            raise CommandError(f"there is no {part!r} in {owner!r}{hint}", INVALID) from None
    return found


def _those_there(owner: Any, names: Iterable[str]) -> str:
    there = [name for name in names if isinstance(getattr(owner, name), Pipeline | Orchestrator)]
    return f"; its pipelines are: {', '.join(there)}" if there else ""


def _called(target: str, function: Callable[[], Any], all_frames: bool) -> Any:
    try:
        inspect.signature(function).bind()
    except (TypeError, ValueError):
        raise CommandError(
            f"{target!r} is a function that can't be called without arguments; name a pipeline, "
            "or a function without arguments that returns one",
            INVALID,
        ) from None
    try:
        made = function()
    except (Exception, SystemExit) as error:
        trace = format_error(_from_users_code(error), all_frames=all_frames)
        raise CommandError(
            f"{target!r} has raised {describe_error(error)}", INVALID, trace
        ) from error
    if inspect.iscoroutine(made):
        made.close()  # or there would be a warning that nobody has awaited it
        raise CommandError(
            f"{target!r} is an async function; name a pipeline, or a plain function that returns "
            "one",
            INVALID,
        )
    return made


def _orchestrator_of(target: str, name: str, found: Any) -> Orchestrator:
    """Return a pipeline, planned; one that has no name is called as the module and what is in it.

    So it can be told of a run which pipeline it is of.
    """
    try:
        if isinstance(found, Pipeline):
            return found.orchestrator
        if isinstance(found, Iterable) and not isinstance(found, str | bytes | Mapping):
            found = Orchestrator(found)
        if isinstance(found, Orchestrator):
            return found if found.name else found.replace(name=name)
    except (ValueError, TypeError) as error:
        raise CommandError(f"{target!r} is not valid: {error}", INVALID) from error
    raise CommandError(
        f"{target!r} is of type {type(found).__name__}; name a Pipeline, an Orchestrator, a list "
        "of WorkflowStep objects, or a function without arguments that returns one",
        INVALID,
    )
