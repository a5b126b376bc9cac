"""The engine that ``--engine`` names: ``dask://127.0.0.1:8786``, ``ray``, ``processes:4``."""

from __future__ import annotations

import multiprocessing
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import click

from asyncflow._cli.output import RUN_FAILED, CommandError
from asyncflow._core.errors import did_you_mean

__all__ = ["check_engine_name", "open_engine"]

_FORMS = "dask://HOST:PORT, ray://HOST:PORT, ray, processes or processes:NUMBER"


def check_engine_name(ctx: click.Context, param: click.Parameter, name: str | None) -> str | None:
    """Return the name of an engine, checked as far as that goes without it.

    Raises:
        click.BadParameter: There is no such engine.
    """
    if name is not None:
        _maker_of(name)
    return name


@asynccontextmanager
async def open_engine(name: str | None) -> AsyncIterator[Any]:
    """Open the engine with a name, which was checked; ``None`` for none.

    Raises:
        ImportError: Its extra is missing.
        CommandError: It can't be opened.
    """
    if name is None:
        yield None
        return
    engine = _maker_of(name)()
    try:
        await engine.__aenter__()
    except Exception as error:  # what a library raises that does not reach its cluster
        text = f"{type(error).__name__}: {error}"
        raise CommandError(f"engine {name} can't be opened: {text}", RUN_FAILED) from error
    try:
        yield engine
    finally:
        await engine.__aexit__(None, None, None)


def _maker_of(name: str) -> Callable[[], Any]:
    """Return what makes the engine with a name.

    Raises:
        click.BadParameter: There is no such engine.
    """
    scheme, separator, address = name.partition("://")
    if scheme == "dask" and address:
        return partial(_dask, f"tcp://{address}")
    if scheme == "ray" and (address or not separator):
        return partial(_ray, name if address else "auto")
    kind, colon, count = name.partition(":")
    if kind == "processes" and not separator and (not colon or (count.isdecimal() and int(count))):
        return partial(_processes, int(count) if count else None)
    kinds = ["dask", "ray", "processes"]
    hint = "" if kind in kinds else did_you_mean(kind, kinds)
    raise click.BadParameter(f"{name!r} is no engine; use {_FORMS}{hint}")


def _dask(address: str) -> Any:
    from asyncflow.engines.dask import DaskEngine

    return DaskEngine(address)


def _ray(address: str) -> Any:
    from asyncflow.engines.ray import RayEngine

    return RayEngine(address)


def _processes(count: int | None) -> Any:
    from asyncflow.engines.executor import ExecutorEngine

    # A fork would have copies of what the threads of this process hold.
    context = multiprocessing.get_context("spawn")
    return ExecutorEngine(partial(ProcessPoolExecutor, count, mp_context=context))
