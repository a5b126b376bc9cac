"""The runs of a journal in a browser, live: the list of them, and the page of each one.

It comes with an extra: ``pip install 'asyncflow-tiers[web]'``. ``asyncflow ui --journal runs.db``
serves it on this machine. `app` gives it to an ASGI service that there is already::

    from asyncflow.web import app
    from starlette.applications import Starlette
    from starlette.routing import Mount

    ui = app(journal, pipelines={"etl": etl}, token=os.environ["UI_TOKEN"])
    service = Starlette(routes=[..., Mount("/runs-ui", ui)])

The pages read the journal and nothing else, so the runs may go on in any process. What people do
there goes through the journal too, but for `resume`, which this process does itself.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager

try:
    import jinja2  # noqa: F401
    import sse_starlette  # noqa: F401
    import uvicorn  # noqa: F401
    from starlette.applications import Starlette
except ImportError as _error:
    raise ImportError(
        "the pages of runs need starlette, uvicorn, sse-starlette and jinja2, which come with an "
        "extra: pip install 'asyncflow-tiers[web]'"
    ) from _error

from asyncflow._core.arguments import check_number
from asyncflow.web._auth import is_loopback
from asyncflow.web._resumer import Resumable, RunsJournal
from asyncflow.web._routes import Site
from asyncflow.web._server import serve_app

__all__ = ["app", "serve"]


def app(
    journal: RunsJournal,
    *,
    pipelines: Mapping[str, Resumable] | None = None,
    token: str | None = None,
    allowed_hosts: Iterable[str] | None = None,
    grace_s: float = 30.0,
) -> Starlette:
    """Return the pages as an ASGI application, to be mounted into another one or to be served.

    A framework does not run the lifespan of an application that is mounted. For the runs that were
    resumed from a page to end cleanly with the service, enter that lifespan from its own one:
    ``async with ui.router.lifespan_context(ui): yield``. The journal must be closed after that.

    Args:
        journal: The journal, open as long as the pages are served. They don't close it.
        pipelines: The pipelines whose runs can be resumed from their page, `Orchestrator` and
            `Pipeline` objects by the name they have in the journal. By default there are none.
        token: A secret of at least 16 characters that must be shown before anything is: in the
            form that asks for it, as ``?token=…``, or by a program in the header
            ``Authorization: Bearer …``. By default none is asked for.
        allowed_hosts: The names, without ports, under which the pages may be asked for; those of
            this machine (``localhost``, ``127.0.0.1``, ``[::1]``) always may. By default there are
            no others, or with a token, all.
        grace_s: How many seconds resumed runs may take to clean up when the service ends.

    Raises:
        TypeError: Something among ``pipelines`` is no pipeline, or ``token`` no text.
        ValueError: ``token`` is too short, or ``grace_s`` negative.
    """
    return _app(Site(journal, pipelines, token, allowed_hosts), grace_s)


def _app(site: Site, grace_s: float) -> Starlette:
    check_number("grace_s", grace_s, 0, unit=" s")

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        try:
            yield
        finally:
            site.end_streams()
            await site.resumer.close(grace_s)

    pages = Starlette(
        routes=site.routes,
        middleware=site.middleware,
        exception_handlers=site.exception_handlers,
        lifespan=lifespan,
    )
    pages.router.redirect_slashes = False  # an id may end in one
    return pages


async def serve(
    journal: RunsJournal,
    *,
    host: str = "127.0.0.1",
    port: int = 8765,
    pipelines: Mapping[str, Resumable] | None = None,
    token: str | None = None,
    allowed_hosts: Iterable[str] | None = None,
    grace_s: float = 30.0,
    on_ready: Callable[[str], object] = lambda url: None,
) -> None:
    """Serve the pages until the calling task is cancelled.

    It handles no signals: who calls it decides which of them cancel it. Then open connections are
    cut within a second, and runs that were resumed from a page are cancelled and awaited, so that
    they can be resumed again.

    Args:
        journal: The journal. It is not closed.
        host: The address to listen at. Any but this machine's own asks for a ``token``.
        port: The port; 0 for one that is free.
        pipelines: As `app` takes them.
        token: As `app` takes it.
        allowed_hosts: As `app` takes them.
        grace_s: As `app` takes it.
        on_ready: Called with the URL of the list of runs, without the token, as soon as it can be
            opened.

    Raises:
        TypeError, ValueError: As `app` raises them; or the address can be reached from other
            machines, and there is no token.
        OSError: Nothing can listen there. The message says why.
        asyncio.CancelledError: The calling task was cancelled. All has ended.
    """
    if token is None and not is_loopback(host):
        raise ValueError(
            f"host {host!r} can be reached from other machines, so it needs a token of at least 16 "
            "characters, token=secrets.token_urlsafe(), or host='127.0.0.1'"
        )
    site = Site(journal, pipelines, token, allowed_hosts)
    pages = _app(site, grace_s)
    try:
        await serve_app(pages, host, port, on_ready=on_ready, on_end=site.end_streams)
    finally:
        await site.resumer.close(grace_s)
