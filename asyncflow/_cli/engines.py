"""The engines of a run: its pipeline's own, and the one that ``--engine`` names."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any

import click

from asyncflow._cli.output import RUN_FAILED, CommandError
from asyncflow._core.text import did_you_mean
from asyncflow._runtime.orchestrator import Orchestrator

_FORMS = "dask://HOST:PORT, ray://HOST:PORT, ray, processes or processes:NUMBER"


def check_engine_name(ctx: click.Context, param: click.Parameter, name: str | None) -> str | None:
    """Return the name of an engine, checked as far as that goes without it."""
    if name is not None:
        _maker_of(name)
    return name


@asynccontextmanager
async def open_engines(name: str | None, pipeline: Orchestrator) -> AsyncIterator[Orchestrator]:
    """Open the engines of a pipeline; yield the pipeline as it runs.

    ``name`` was checked; ``None`` means no other engine. An engine of the pipeline's own, or of a
    step, is opened if it is an async context manager.
    """
    async with AsyncExitStack() as stack:
        engine = None if name is None else _maker_of(name)()
        if engine is not None:
            pipeline = pipeline.with_options(engine=engine)
        for each in {id(step.remote): step.remote for step in pipeline.steps}.values():
            if isinstance(each, AbstractAsyncContextManager):
                which = name if each is engine else each.name
                await stack.enter_async_context(_opened(f"engine {which}", each))
        yield pipeline


@asynccontextmanager
async def _opened(what: str, engine: AbstractAsyncContextManager[Any]) -> AsyncIterator[None]:
    try:
        await engine.__aenter__()
    except Exception as error:  # what a library raises that does not reach its cluster
        raise _problem(f"{what} can't be opened", error) from error
    try:
        yield
    finally:
        try:
            await engine.__aexit__(None, None, None)
        except Exception as error:
            raise _problem(f"{what} can't be closed", error) from error


def _problem(what: str, error: Exception) -> CommandError:
    return CommandError(f"{what}: {type(error).__name__}: {error}", RUN_FAILED)


def _maker_of(name: str) -> Callable[[], Any]:
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
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    from asyncflow.engines.executor import ExecutorEngine

    # A fork would have copies of what the threads of this process hold.
    context = multiprocessing.get_context("spawn")
    return ExecutorEngine(partial(ProcessPoolExecutor, count, mp_context=context))
